"""Spinlocks: short exclusion between CPUs; a holder must not suspend.

    spin.spin_lock()             # plain code: takes it; panics where it would have to spin
    await spin.spin_lock_wait()  # a thread that can spin: lets other CPUs run until it is free

Code between two suspension points cannot be interrupted by another CPU here, so a spinlock is found
held only when its holder spins itself, in `cpu_pause`, on another CPU (waiting for an IPI, a
cpusync or another spinlock), or when the running interrupt thread has preempted the holder. Plain
code can do nothing about that and panics: spinning would never end. `spin_lock_wait` spins through
`cpu_pause`, reports "indefinite wait" to the log every second and panics after sixty.

Holding a spinlock is holding a critical section: no preemption, no interrupts, no IPIs on this CPU.
Exclusive waiters have priority over new shared takers.

Counterpart: kern/kern_spinlock.c, struct spinlock (sys/spinlock.h), sys/indefinite2.h.
Differs from DragonFly: the holder is known; taking a lock twice panics at once instead of hanging.
Token/lock order: below everything; nothing that can suspend may be called under one.
Invariants: ``count`` is the number of holders; ``shared`` says their kind; ``excl_wait`` waiters.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Final

import attrs

from dfuser.libkern.errno import panic
from dfuser.libkern.ktr import KtrInfo

from . import thread as _thread
from .thread import cpu_pause, crit_exit

if TYPE_CHECKING:
    from .thread import Thread

_SECOND: Final = 1_000_000_000
#: Seconds of spinning after which the kernel gives up.
_PANIC_SECS: Final = 60


@attrs.frozen
class SpinlockStatistics:
    """What `Spinlock.statistics` returns.

    Attributes:
        name: the lock's description.
        holders: how many hold it now.
        shared: whether those hold it shared.
        excl_wait: threads that spin for exclusive use now.
        contested: times somebody had to spin.
        spins: turns of spinning.
        indefinite: one-second warnings given.
    """

    name: str
    holders: int
    shared: bool
    excl_wait: int
    contested: int
    spins: int
    indefinite: int


class Spinlock:
    """A spinlock, exclusive or shared. Counterpart: struct spinlock (sys/spinlock.h)."""

    __slots__ = (
        "contested", "count", "excl_wait", "indefinite", "name", "owner", "shared", "spins",
    )  # fmt: skip

    ktr_beg = KtrInfo("spin", "beg", "spin=%s type=%s")
    ktr_end = KtrInfo("spin", "end", "spin=%s type=%s")

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self.shared = False
        self.owner: Thread | None = None
        self.excl_wait = 0
        self.contested = 0
        self.spins = 0
        self.indefinite = 0

    def __repr__(self) -> str:
        return f"<Spinlock {self.name} count={self.count}>"

    # --- exclusive -------------------------------------------------------------------------

    def spin_lock(self) -> None:
        """Take the lock exclusively; panics if it is held. Counterpart: spin_lock."""
        if self.count:
            panic(f"spin_lock: {self.name} is held by {self.owner} and this code cannot spin")
        self._take(_thread.curthread)

    def spin_trylock(self) -> bool:
        """Take the lock exclusively if it is free. Counterpart: spin_trylock."""
        if self.count:
            return False
        self._take(_thread.curthread)
        return True

    async def spin_lock_wait(self) -> None:
        """Take the lock exclusively, spinning while a thread of another CPU holds it.

        Counterpart: _spin_lock_contested.
        """
        td = _thread.curthread
        if self.count:
            self._refuse_recursion(td)
            self.excl_wait += 1
            td.critcount += 1
            try:
                await self._spin(td, "S")
            finally:
                self.excl_wait -= 1
                td.critcount -= 1
        self._take(td)

    def spin_unlock(self) -> None:
        """Release the exclusive lock; deferred interrupts run. Counterpart: spin_unlock."""
        td = _thread.curthread
        if self.owner is not td or self.shared:
            panic(f"spin_unlock: {td} does not hold {self.name}")
        self.owner = None
        self.count = 0
        td.spinlocks -= 1
        crit_exit()

    # --- shared ----------------------------------------------------------------------------

    def spin_lock_shared(self) -> None:
        """Take the lock shared; panics where it would have to spin.

        Counterpart: spin_lock_shared.
        """
        if not self._sharable():
            panic(f"spin_lock_shared: {self.name} is held by {self.owner}: this code cannot spin")
        self._take_shared(_thread.curthread)

    async def spin_lock_shared_wait(self) -> None:
        """Take the lock shared, spinning while it is held or wanted exclusively.

        Counterpart: _spin_lock_shared_contested.
        """
        td = _thread.curthread
        if not self._sharable():
            self._refuse_recursion(td)
            td.critcount += 1
            try:
                await self._spin(td, "s")
            finally:
                td.critcount -= 1
        self._take_shared(td)

    def spin_unlock_shared(self) -> None:
        """Release a shared lock. Counterpart: spin_unlock_shared."""
        td = _thread.curthread
        if not self.shared or not self.count:
            panic(f"spin_unlock_shared: {self.name} is not held shared")
        self.count -= 1
        if not self.count:
            self.shared = False
        td.spinlocks -= 1
        crit_exit()

    # --- the core --------------------------------------------------------------------------

    def spin_held(self) -> bool:
        """Whether anybody holds the lock. Counterpart: spin_held."""
        return self.count != 0

    def _sharable(self) -> bool:
        return not self.excl_wait and (not self.count or self.shared)

    def _take(self, td: Thread) -> None:
        td.critcount += 1
        td.spinlocks += 1
        self.count = 1
        self.owner = td

    def _take_shared(self, td: Thread) -> None:
        td.critcount += 1
        td.spinlocks += 1
        self.shared = True
        self.count += 1

    def _refuse_recursion(self, td: Thread) -> None:
        if self.owner is td:
            panic(f"spin_lock: {td} already holds {self.name}")

    async def _spin(self, td: Thread, kind: str) -> None:
        """Spin in `cpu_pause` until the lock can be taken; the diagnostics of indefinite_check."""
        lwkt = td.cpu.lwkt
        ktr = lwkt.ktr.master("spin")
        if ktr.mask:
            ktr.log_cpu(td.cpu.cpuid, self.ktr_beg, self.name, kind)
        self.contested += 1
        warn_at = lwkt.clock.monotonic_ns() + _SECOND
        secs = 0
        while self.count if kind == "S" else not self._sharable():
            self.spins += 1
            await cpu_pause()
            if lwkt.clock.monotonic_ns() >= warn_at:
                secs += 1
                warn_at += _SECOND
                self.indefinite += 1
                what = "spin_lock_ex" if kind == "S" else "spin_lock_sh"
                text = f"{what}: {self.name}, indefinite wait"
                lwkt.msgbuf.kprintf(f"{text} ({secs} secs)!")
                if secs >= _PANIC_SECS:
                    panic(f"{text}!")
        if ktr.mask:
            ktr.log_cpu(td.cpu.cpuid, self.ktr_end, self.name, kind)

    # --- convenience -----------------------------------------------------------------------

    #: What `synch.ssleep` calls.
    lock = spin_lock
    unlock = spin_unlock

    def __enter__(self) -> Spinlock:
        self.spin_lock()
        return self

    def __exit__(self, *exc: object) -> None:
        self.spin_unlock()

    async def __aenter__(self) -> Spinlock:
        await self.spin_lock_wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.spin_unlock()

    def statistics(self) -> SpinlockStatistics:
        """State and counters."""
        return SpinlockStatistics(
            name=self.name,
            holders=self.count,
            shared=self.shared,
            excl_wait=self.excl_wait,
            contested=self.contested,
            spins=self.spins,
            indefinite=self.indefinite,
        )
