"""tsleep and wakeup: sleeping on an identifier until somebody wakes it.

A thread that must wait for something names it (any object, an int or a string) and sleeps on the
name; whoever makes it happen wakes the name. The two need not know each other. A sleeper that has
to check a condition first announces itself, so that a wakeup between its check and its sleep is
not lost::

    tsleep_interlock(queue, 0)
    if not queue.ready:
        await tsleep(queue, PINTERLOCKED, "qwait", 0)

Waking is synchronous and never suspends, so interrupts and callouts may do it. Sleeping releases
the tokens of the sleeper, and is refused (a panic) in critical sections, under spinlocks and in
interrupts.

Counterpart: sys/kern/kern_synch.c (tsleep, ssleep, wakeup, lwkt_sleep and their relatives).
Differs from DragonFly: see `sleepq`, which keeps the queues.
Token and lock order: takes none but the lock handed to ssleep, lksleep, mtxsleep or zsleep, which
is released after the interlock and taken again after the sleep.
Invariants: a sleep ends for one reason only: a wakeup of its identifier and domain, its timeout, a
signal or abort with PCATCH; a wakeup after `tsleep_interlock` is never lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from dfuser.libkern.param import (
    PCATCH,
    PDOMAIN_MASK,
    PINTERLOCKED,
    PWAKEUP_MYCPU,
    PWAKEUP_ONE,
)

from . import thread as _thread
from .sleepq import synch_of
from .thread import TDF, Thread, lwkt_deschedule_self, switch

if TYPE_CHECKING:
    from .sched import Cpu

#: Wakeups that a thread may hold back between start_delayed and end_delayed, as in DragonFly.
MAX_DELAYED: Final = 2


class SpinLike(Protocol):
    """What `ssleep` needs of a spinlock."""

    async def spin_lock_wait(self) -> None:
        """Take it, spinning while another CPU holds it."""

    def spin_unlock(self) -> None:
        """Give it back."""


class SleepLock(Protocol):
    """What `lksleep` and `mtxsleep` need of a lock that may have to be waited for."""

    async def acquire(self) -> None:
        """Take it exclusively."""

    def release(self) -> None:
        """Give it back."""


class SerializerLike(Protocol):
    """What `zsleep` needs of a serializer."""

    async def enter(self) -> None:
        """Take it."""

    def exit(self) -> None:
        """Give it back."""


def running() -> Thread | None:
    """The running thread; None before any thread runs and in host code."""
    return _thread.curthread


def tsleep_interlock(ident: Any, flags: int = 0) -> None:
    """Announce that the running thread is about to sleep on ``ident``.

    A wakeup from here on makes the following ``tsleep(..., PINTERLOCKED, ...)`` return at once.
    Only the last announcement of a thread counts. Never suspends; outside any thread it does
    nothing.
    """
    td = running()
    if td is not None:
        synch_of(td.cpu.lwkt).interlock(td, ident, flags)


def tsleep_remove(td: Thread) -> None:
    """Take back the announcement of ``td``. Must run on the thread's CPU."""
    synch_of(td.cpu.lwkt).tsleep_remove(td)


async def tsleep(ident: Any, flags: int, wmesg: str, timo: int = 0) -> int:
    """Sleep until ``ident`` is woken.

    Args:
        ident: what to wait for. Ints, strings and tuples count by value, objects by identity.
        flags: PCATCH (a signal ends the sleep), PINTERLOCKED (`tsleep_interlock` was called), and a
            PDOMAIN_* number.
        wmesg: what ``ps`` shows meanwhile, at most 8 characters.
        timo: ticks; 0 or less means no limit. The sleep ends when the tick counter has advanced by
            ``timo``, that is between ``timo - 1`` and ``timo`` ticks of time later.

    Returns:
        0 when woken, EWOULDBLOCK when the time was up, EINTR or ERESTART when a signal or
        `abort_sleep` ended the sleep. Outside any thread and after a panic always 0, at once.
    """
    td = running()
    if td is None or (td.tid < 0 and not td.critcount):
        return 0
    lwkt = td.cpu.lwkt
    synch = synch_of(lwkt)
    if td in synch.delayed:
        wakeup_end_delayed()
    if lwkt.panicked is not None:
        synch.tsleep_remove(td)
        return 0
    if not flags & PINTERLOCKED:
        synch.interlock(td, ident, flags)
    elif not synch.interlocked(td, ident, flags):
        return 0
    if flags & PCATCH and (error := synch.pending_signal(td)):
        synch.tsleep_remove(td)
        synch.interrupted += 1
        return error
    if synch.ktr.mask:
        synch.ktr.log(synch.ktr_tsleep_beg, td.name, wmesg, ident)
    error = await synch.sleep(td, flags, wmesg, timo)
    if synch.ktr.mask:
        synch.ktr.log(synch.ktr_tsleep_end, td.name, error)
    return error


async def ssleep(ident: Any, spin: SpinLike, flags: int, wmesg: str, timo: int = 0) -> int:
    """Release the spinlock, sleep as `tsleep` does, take the spinlock again.

    Counterpart: ssleep.
    """
    tsleep_interlock(ident, flags)
    spin.spin_unlock()
    error = await tsleep(ident, flags | PINTERLOCKED, wmesg, timo)
    await spin.spin_lock_wait()
    return error


async def lksleep(ident: Any, lock: SleepLock, flags: int, wmesg: str, timo: int = 0) -> int:
    """`ssleep` for an exclusively held lockmgr lock. Counterpart: lksleep."""
    tsleep_interlock(ident, flags)
    lock.release()
    error = await tsleep(ident, flags | PINTERLOCKED, wmesg, timo)
    await lock.acquire()
    return error


async def mtxsleep(ident: Any, mtx: SleepLock, flags: int, wmesg: str, timo: int = 0) -> int:
    """`ssleep` for an exclusively held mtx. Counterpart: mtxsleep."""
    return await lksleep(ident, mtx, flags, wmesg, timo)


async def zsleep(ident: Any, slz: SerializerLike, flags: int, wmesg: str, timo: int = 0) -> int:
    """`ssleep` for a held serializer. Counterpart: zsleep."""
    tsleep_interlock(ident, flags)
    slz.exit()
    error = await tsleep(ident, flags | PINTERLOCKED, wmesg, timo)
    await slz.enter()
    return error


async def lwkt_sleep(wmesg: str, flags: int) -> int:
    """Deschedule the running thread until somebody schedules it directly.

    Cheaper than `tsleep`; the caller loops over its own condition, because any `lwkt_schedule` ends
    it. With PCATCH a signal or `abort_sleep` ends it too.

    Returns:
        0, or EINTR or ERESTART.  Counterpart: lwkt_sleep.
    """
    td = _thread.curthread
    synch = synch_of(td.cpu.lwkt)
    catch = flags & PCATCH
    if catch:
        if error := synch.pending_signal(td):
            synch.interrupted += 1
            return error
        synch.tsleep_remove(td)
        td.sleepq_entry = object()
        td.flags |= TDF.SINTR
    lwkt_deschedule_self()
    td.wmesg = wmesg
    try:
        await switch()
    finally:
        td.wmesg = ""
        error = 0
        if catch:
            td.sleepq_entry = None
            td.flags &= ~TDF.SINTR
            error = td.intr_error
            td.intr_error = 0
    if error:
        synch.interrupted += 1
    return error


def wakeup(ident: Any) -> None:
    """Wake every thread that sleeps on ``ident`` in the default domain, on any CPU.

    Never suspends. Outside any thread there is no machine to ask and nothing happens; host code
    raises an interrupt (`Cpu.interrupt`) to wake somebody.
    """
    td = running()
    if td is None:
        return
    synch = synch_of(td.cpu.lwkt)
    if synch.delayed:
        held = synch.delayed.get(td)
        if held is not None and (len(held) < MAX_DELAYED or (ident, 0) in held):
            if (ident, 0) not in held:
                held.append((ident, 0))
            return
    synch.wakeup(ident, 0)


def _wakeup(ident: Any, domain: int) -> None:
    td = running()
    if td is not None:
        synch_of(td.cpu.lwkt).wakeup(ident, domain)


def wakeup_one(ident: Any) -> None:
    """Wake the one thread that has slept longest on this CPU, or one on another CPU."""
    _wakeup(ident, PWAKEUP_ONE)


def wakeup_mycpu(ident: Any) -> None:
    """Wake the sleepers of this CPU only."""
    _wakeup(ident, PWAKEUP_MYCPU)


def wakeup_mycpu_one(ident: Any) -> None:
    """Wake one sleeper of this CPU only."""
    _wakeup(ident, PWAKEUP_MYCPU | PWAKEUP_ONE)


def wakeup_oncpu(cpu: Cpu, ident: Any, one: bool = False) -> None:
    """Wake all sleepers, or one, of another CPU. Counterpart: wakeup_oncpu, wakeup_oncpu_one."""
    td = running()
    if td is None:
        return
    domain = PWAKEUP_MYCPU | (PWAKEUP_ONE if one else 0)
    synch = synch_of(cpu.lwkt)
    if td.cpu is cpu:
        synch.wakeup(ident, domain)
    else:
        synch.ipis += 1
        cpu.lwkt.send_ipiq_nowait(cpu, synch.wakeup, ident, domain)


def wakeup_domain(ident: Any, domain: int) -> None:
    """Wake every sleeper on ``ident`` in a PDOMAIN_* domain."""
    _wakeup(ident, domain & PDOMAIN_MASK)


def wakeup_domain_one(ident: Any, domain: int) -> None:
    """Wake one sleeper on ``ident`` in a PDOMAIN_* domain."""
    _wakeup(ident, domain & PDOMAIN_MASK | PWAKEUP_ONE)


def wakeup_start_delayed() -> None:
    """Hold back up to two wakeups of this thread until `wakeup_end_delayed` or its next sleep.

    Lets a thread wake somebody while it holds a lock the sleeper will want. Must be ended before
    the thread exits.
    """
    td = _thread.curthread
    synch_of(td.cpu.lwkt).delayed.setdefault(td, [])


def wakeup_end_delayed() -> None:
    """Do the wakeups that were held back."""
    td = _thread.curthread
    synch = synch_of(td.cpu.lwkt)
    for ident, domain in synch.delayed.pop(td, ()):
        synch.wakeup(ident, domain)


def abort_sleep(td: Thread, error: int) -> bool:
    """End the interruptible sleep of ``td`` with ``error`` (EINTR or ERESTART).

    For whoever posts a signal or cancels a request. May be called from interrupts and from host
    code. Never suspends.

    Returns:
        False when ``td`` is not in an interruptible sleep now; nothing is remembered then. True
        when the request was made; a wakeup or timeout that gets there first still wins.
    """
    return synch_of(td.cpu.lwkt).abort_sleep(td, error)
