"""Serializers: exclusion between a driver's threads and its interrupt handler.

A serializer is a mutex with a door for interrupts: the upper half of a driver enters it, its
interrupt handler is called through it, and the upper half can switch the handler off altogether.

    await slz.enter()                # upper half
    slz.handler_disable()            # from here on the handler does not run
    slz.handler_call(func, arg)      # interrupt side: runs func now, or when the holder leaves
    slz.handler_try(func, arg)       # interrupt side: runs func only if nobody is inside

It is held across nothing that waits for long; a thread that finds it taken sleeps ("slize").

Counterpart: kern/lwkt_serialize.c, struct lwkt_serialize (sys/serialize.h).
Differs from DragonFly: there an interrupt thread sleeps in handler_call until the holder is out;
here the handler is plain code and cannot wait, so the call is kept and made by the holder's
`exit`, in order, one at a time. Calls kept when the handler is disabled are dropped, as DragonFly
checks again after its sleep.
Token/lock order: outside of spinlocks and tokens.
Invariants: at most one thread or handler is inside; a handler never overlaps a holder.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import attrs

from dfuser.libkern.errno import panic
from dfuser.libkern.ktr import KtrInfo

from . import thread as _thread
from .synch import tsleep, wakeup_one
from .thread import cpu_pause

if TYPE_CHECKING:
    from .thread import Thread

#: Turns `LwktSerialize.adaptive_enter` spins before it sleeps; DragonFly's 4096 are instructions.
SLZ_ADAPTIVE_SPINMAX: Final = 16
#: Handler calls kept for the holder's exit; more of them are dropped and counted.
SLZ_PENDING_MAX: Final = 256


@attrs.frozen
class SerializeStatistics:
    """What `LwktSerialize.statistics` returns.

    Attributes:
        enters: times it was entered by threads.
        sleeps: times a thread had to sleep for it.
        tryfails: times a try found it taken.
        calls: handler functions run.
        kept: of those, run later by the holder's exit.
        dropped: handler calls not made (disabled, or too many kept).
    """

    enters: int
    sleeps: int
    tryfails: int
    calls: int
    kept: int
    dropped: int


class LwktSerialize:
    """A serializer. Counterpart: struct lwkt_serialize (sys/serialize.h)."""

    __slots__ = (
        "_pending", "calls", "disabled", "dropped", "enters", "held", "kept", "last_td", "name",
        "sleeps", "tryfails",
    )  # fmt: skip

    ktr_enter = KtrInfo("slz", "enter_end", "slz=%s")
    ktr_sleep = KtrInfo("slz", "sleep_beg", "slz=%s")
    ktr_exit = KtrInfo("slz", "exit_end", "slz=%s")
    ktr_tryfail = KtrInfo("slz", "tryfail", "slz=%s")

    def __init__(self, name: str = "slz") -> None:
        self.name = name
        self.held = False
        self.last_td: Thread | None = None
        self.disabled = False
        self._pending: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self.enters = 0
        self.sleeps = 0
        self.tryfails = 0
        self.calls = 0
        self.kept = 0
        self.dropped = 0

    def __repr__(self) -> str:
        return f"<LwktSerialize {self.name} held={self.held}>"

    # --- threads ---------------------------------------------------------------------------

    async def enter(self) -> None:
        """Enter; sleeps while somebody is inside. Counterpart: lwkt_serialize_enter."""
        self.assert_not_serialized()
        while self.held:
            self.sleeps += 1
            self._log(self.ktr_sleep)
            await tsleep(self, 0, "slize", 0)
        self._take()

    async def adaptive_enter(self) -> None:
        """Enter; spins a little before it sleeps. Counterpart: lwkt_serialize_adaptive_enter."""
        self.assert_not_serialized()
        while not await self._spin():
            self.sleeps += 1
            self._log(self.ktr_sleep)
            await tsleep(self, 0, "aslize", 0)
        self._take()

    async def _spin(self) -> bool:
        """Spin a little; whether the serializer is free now."""
        spins = 0
        while self.held:
            if spins == SLZ_ADAPTIVE_SPINMAX:
                return False
            spins += 1
            await cpu_pause()
        return True

    def try_enter(self) -> bool:
        """Enter if nobody is inside. Counterpart: lwkt_serialize_try."""
        self.assert_not_serialized()
        if self.held:
            self.tryfails += 1
            self._log(self.ktr_tryfail)
            return False
        self._take()
        return True

    def exit(self) -> None:
        """Leave; kept handler calls are made first. Counterpart: lwkt_serialize_exit."""
        self.assert_serialized()
        while self._pending:
            func, args = self._pending.popleft()
            if self.disabled:
                self.dropped += 1
                continue
            self.calls += 1
            td = _thread.curthread
            td.critcount += 1
            try:
                func(*args)
            finally:
                _thread.crit_exit()
        self._leave()

    def assert_serialized(self) -> None:
        """Panic unless the running thread is inside. Counterpart: ASSERT_SERIALIZED."""
        if not self.held or self.last_td is not _thread.curthread:
            panic(f"serializer {self.name}: {_thread.curthread} is not inside")

    def assert_not_serialized(self) -> None:
        """Panic if the running thread is inside. Counterpart: ASSERT_NOT_SERIALIZED."""
        if self.held and self.last_td is _thread.curthread:
            panic(f"serializer {self.name}: {_thread.curthread} is inside already")

    async def __aenter__(self) -> LwktSerialize:
        await self.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.exit()

    # --- the interrupt side ----------------------------------------------------------------

    def handler_disable(self) -> None:
        """Let no handler run from now on. Counterpart: lwkt_serialize_handler_disable."""
        self.disabled = True

    def handler_enable(self) -> None:
        """Let handlers run again. Counterpart: lwkt_serialize_handler_enable."""
        self.disabled = False

    def handler_call(self, func: Callable[..., object], *args: Any) -> None:
        """Run ``func(*args)`` inside the serializer: now, or when the holder leaves.

        Dropped when handlers are disabled. Counterpart: lwkt_serialize_handler_call.
        """
        if self.disabled:
            self.dropped += 1
        elif not self.held:
            self._handle(func, args)
        elif len(self._pending) >= SLZ_PENDING_MAX:
            self.dropped += 1
        else:
            self.kept += 1
            self._pending.append((func, args))

    def handler_try(self, func: Callable[..., object], *args: Any) -> int:
        """Run ``func(*args)`` now; returns 0, or 1 if it cannot run now.

        Counterpart: lwkt_serialize_handler_try.
        """
        if self.disabled or self.held:
            self.tryfails += 1
            self._log(self.ktr_tryfail)
            return 1
        self._handle(func, args)
        return 0

    def _handle(self, func: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.held = True
        self.last_td = _thread.curthread
        self.calls += 1
        try:
            func(*args)
        finally:
            self._leave()

    # --- the core --------------------------------------------------------------------------

    def _take(self) -> None:
        self.held = True
        self.last_td = _thread.curthread
        self.enters += 1
        self._log(self.ktr_enter)

    def _leave(self) -> None:
        self.held = False
        self.last_td = None
        self._log(self.ktr_exit)
        wakeup_one(self)

    def _log(self, point: KtrInfo) -> None:
        cpu = _thread.curthread.cpu
        ktr = cpu.lwkt.ktr.master("slz")
        if ktr.mask:
            ktr.log_cpu(cpu.cpuid, point, self.name)

    def statistics(self) -> SerializeStatistics:
        """Counters since the serializer was made."""
        return SerializeStatistics(
            enters=self.enters,
            sleeps=self.sleeps,
            tryfails=self.tryfails,
            calls=self.calls,
            kept=self.kept,
            dropped=self.dropped,
        )
