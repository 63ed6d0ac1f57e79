"""Condition variables: waiting for a condition that a lock protects.

A thread that holds the lock and finds the condition false waits; `Cv.wait` releases the lock,
sleeps, and takes the lock again. Whoever makes the condition true signals one waiter or all. A
wait may return without the condition being true, so it stands in a loop::

    await lk.acquire()
    while not ready():
        await cv.wait(lk)

Counterpart: sys/kern/kern_condvar.c, sys/sys/condvar.h (struct cv).
Differs from DragonFly: there a counter of waiters goes down with each signal, and a waiter whose
time is up stays counted until a signal is spent on it. Here the sleepers themselves are counted
when somebody asks, and a signal always looks at the sleep queue, so neither can be wrong.
Token and lock order: the lock handed in, released during the sleep.
Invariants: a signal after `wait` was entered is not lost; a signal on its way to another CPU may
wake one that has begun to wait after it, as a wait may always end early.
"""

from __future__ import annotations

from typing import Protocol

import attrs

from dfuser.libkern.ktr import KtrInfo
from dfuser.libkern.param import PCATCH, PINTERLOCKED

from . import thread as _thread
from .sleepq import count_asleep
from .synch import tsleep, tsleep_interlock, wakeup, wakeup_one
from .thread import Thread


class CvLock(Protocol):
    """The lock of a condition: lockmgr's `Lock` or a `Mtx`, held exclusively."""

    async def acquire(self) -> None:
        """Take it exclusively."""

    def release(self) -> None:
        """Give it back."""


@attrs.frozen
class CvStatistics:
    """What `Cv.statistics` returns: waiters now; waits, signals, broadcasts since it was made."""

    waiters: int
    waits: int
    signals: int
    broadcasts: int


class Cv:
    """A condition variable. Counterpart: struct cv (sys/condvar.h).

    Args:
        desc: what ``ps`` shows of its waiters, at most 8 characters.
    """

    __slots__ = ("broadcasts", "desc", "inside", "signals", "waits")

    ktr_wait = KtrInfo("condvar", "wait", "%s by %s error %d")
    ktr_signal = KtrInfo("condvar", "signal", "%s waiters %d broadcast %d")

    def __init__(self, desc: str = "cv") -> None:
        self.desc = desc
        #: The threads in a wait, those that have been woken and have not run yet included.
        self.inside: dict[Thread, None] = {}
        self.waits = 0
        self.signals = 0
        self.broadcasts = 0

    async def _wait(self, lock: CvLock | None, flags: int, timo: int) -> int:
        td = _thread.curthread
        tsleep_interlock(self, flags)
        self.inside[td] = None
        self.waits += 1
        try:
            if lock is not None:
                lock.release()
            error = await tsleep(self, flags | PINTERLOCKED, self.desc, timo)
        finally:
            del self.inside[td]
        ktr = td.cpu.lwkt.ktr.master("condvar")
        if ktr.mask:
            ktr.log(self.ktr_wait, self.desc, td.name, error)
        if lock is not None:
            await lock.acquire()
        return error

    async def wait(self, lock: CvLock | None) -> None:
        """Wait for a signal. The lock is held again on return. Counterpart: cv_wait."""
        await self._wait(lock, 0, 0)

    async def wait_sig(self, lock: CvLock | None) -> int:
        """`wait`, or EINTR or ERESTART when a signal came. Counterpart: cv_wait_sig."""
        return await self._wait(lock, PCATCH, 0)

    async def timedwait(self, lock: CvLock | None, timo: int) -> int:
        """`wait`, or EWOULDBLOCK after ``timo`` ticks. Counterpart: cv_timedwait."""
        return await self._wait(lock, 0, timo)

    async def timedwait_sig(self, lock: CvLock | None, timo: int) -> int:
        """`wait`, with both limits. Counterpart: cv_timedwait_sig."""
        return await self._wait(lock, PCATCH, timo)

    def signal(self) -> None:
        """Wake one waiter. Never suspends. Counterpart: cv_signal."""
        self.signals += 1
        self._log(0)
        wakeup_one(self)

    def broadcast(self) -> None:
        """Wake every waiter. Never suspends. Counterpart: cv_broadcast."""
        self.broadcasts += 1
        self._log(1)
        wakeup(self)

    def _log(self, broadcast: int) -> None:
        td = _thread.curthread
        ktr = td.cpu.lwkt.ktr.master("condvar")
        if ktr.mask:
            ktr.log(self.ktr_signal, self.desc, self.waiters, broadcast)

    @property
    def waiters(self) -> int:
        """Threads asleep on the variable now."""
        return count_asleep(self.inside, self)

    def has_waiters(self) -> bool:
        """Whether anybody waits. Counterpart: cv_has_waiters."""
        return self.waiters > 0

    def statistics(self) -> CvStatistics:
        """Waiters now, and counters since it was made."""
        return CvStatistics(
            waiters=self.waiters,
            waits=self.waits,
            signals=self.signals,
            broadcasts=self.broadcasts,
        )
