"""lockmgr: locks that may be held while sleeping, shared or exclusive.

A `Lock` is taken shared by many threads or exclusively by one, upgraded, downgraded, taken
recursively, waited for with a time limit or until a signal, and its waiters can be cancelled::

    error = await lk.lockmgr(LK_EXCLUSIVE | LK_TIMELOCK)
    if lk.lock_nowait(LK_SHARED) == 0: ...
    lk.unlock()

The uncontended case is a few integer tests and never suspends. Synchronous cores use `lock_nowait`
and raise ``lk.block(flags)`` when it says EBUSY.

Who gets the lock, in this order: a shared holder that waits for its upgrade; then the waiters in
the order in which they came, all waiting shared requests together. While an upgrade or an exclusive
request waits for shared holders to leave, new shared requests wait behind it, except those of a
thread with TDF_DEADLKTREAT.

Counterpart: sys/kern/kern_lock.c, sys/sys/lock.h (struct lock).
Differs from DragonFly: the releaser hands the lock over to the next owner and wakes exactly him, so
that waiting is fair and no herd wakes up in vain; there, who waits for an exclusive holder tries
again when woken. The 64-bit ``lk_count`` is spelled out in fields and can be read as `lk_count`.

Token and lock order: takes none; never suspends with anything half done.
Invariants: not both ``xcount`` and ``scount`` are above 0; ``lockholder`` is set exactly while
``xcount`` is; a free lock has no waiters; a waiter is on the lock until it is granted, fails or
gives up, whichever comes first, and never two of them.
"""

from __future__ import annotations

from typing import Any, Final

import attrs

from dfuser.libkern.errno import EBUSY, ENOLCK, KKASSERT, panic
from dfuser.libkern.ktr import KtrInfo
from dfuser.libkern.param import PCATCH, PINTERLOCKED

from . import thread as _thread
from .block import Block
from .synch import running, tsleep, tsleep_interlock, wakeup
from .thread import Thread

# Request types and flags; the numbers are those of sys/lock.h.
LK_TYPE_MASK: Final = 0x0000000F
LK_SHARED: Final = 0x00000001
LK_EXCLUSIVE: Final = 0x00000002
LK_UPGRADE: Final = 0x00000003
LK_EXCLUPGRADE: Final = 0x00000004
LK_DOWNGRADE: Final = 0x00000005
LK_RELEASE: Final = 0x00000006
LK_EXCLOTHER: Final = 0x00000008
LK_CANCEL_BEG: Final = 0x00000009
LK_CANCEL_END: Final = 0x0000000A
LK_EXTFLG_MASK: Final = 0x070000F0
LK_NOWAIT: Final = 0x00000010
LK_SLEEPFAIL: Final = 0x00000020
LK_CANRECURSE: Final = 0x00000040
LK_NOCOLLSTATS: Final = 0x00000080
LK_CANCELABLE: Final = 0x01000000
LK_TIMELOCK: Final = 0x02000000
LK_PCATCH: Final = 0x04000000
LK_FAILRECLAIM: Final = 0x00010000
LK_RETRY: Final = 0x00020000

# Bits of lk_count; sys/lock.h.
LKC_EXREQ: Final = 0x40000000
LKC_SHARED: Final = 0x20000000
LKC_UPREQ: Final = 0x10000000
LKC_EXREQ2: Final = 0x08000000
LKC_CANCEL: Final = 0x04000000
LKC_XMASK: Final = 0x03FFFFFF
LKC_SSHIFT: Final = 32

#: A thread with this flag may share a lock although an exclusive request waits (sys/thread.h).
TDF_DEADLKTREAT: Final = 0x00800000

#: Kept in ``Lock.flags`` while a cancellation is in effect; outside LK_EXTFLG_MASK.
_CANCEL: Final = LKC_CANCEL << 4


class _KernThread:
    """The owner of a lock that any thread may release. Counterpart: LK_KERNTHREAD."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "LK_KERNTHREAD"


LK_KERNTHREAD: Final = _KernThread()


class _Waiter:
    """A request that waits; what its thread sleeps on."""

    __slots__ = ("cancelable", "error", "exclusive", "granted", "td", "watch")

    def __init__(self, td: Thread, exclusive: bool, watch: bool, cancelable: bool) -> None:
        self.td = td
        self.exclusive = exclusive
        #: It is only told when it could have the lock, and does not get it.
        self.watch = watch
        self.cancelable = cancelable
        self.granted = False
        self.error = 0

    def over(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.granted or self.error != 0


@attrs.frozen
class LockStatistics:
    """What `Lock.statistics` returns.

    Attributes:
        xcount: exclusive count (recursion included).
        scount: shared holders.
        waiters: requests that wait, upgrades included.
        holder: name of the exclusive holder, "" when there is none.
        collisions: requests that had to wait since the lock was made.
    """

    xcount: int
    scount: int
    waiters: int
    holder: str
    collisions: int


class Lock:
    """One lock. Counterpart: struct lock (sys/lock.h).

    Args:
        wmesg: what ``ps`` shows of a thread that waits for it, at most 8 characters.
        timo: ticks an LK_TIMELOCK request waits.
        flags: LK_CANRECURSE, LK_NOCOLLSTATS ...: added to each request.
    """

    __slots__ = (
        "colls",
        "flags",
        "lockholder",
        "scount",
        "timo",
        "upreq",
        "waiters",
        "wmesg",
        "xcount",
    )

    ktr_wait = KtrInfo("lockmgr", "wait", "%s by %s exclusive=%d")
    ktr_got = KtrInfo("lockmgr", "got", "%s by %s error %d")

    def __init__(self, wmesg: str = "lock", timo: int = 0, flags: int = 0) -> None:
        self.wmesg = wmesg
        self.timo = timo
        self.flags = flags & LK_EXTFLG_MASK
        self.lockholder: Any = None
        self.xcount = 0
        self.scount = 0
        self.upreq: _Waiter | None = None
        self.waiters: list[_Waiter] | None = None
        self.colls = 0

    # --- requests that never suspend -------------------------------------------------------

    def lock_nowait(self, flags: int) -> int:
        """Do what ``flags`` ask (any LK_ type) without waiting, as with LK_NOWAIT.

        Returns:
            0, or EBUSY. A failed upgrade has released the shared lock.
        """
        kind = flags & LK_TYPE_MASK
        if kind == LK_EXCLUSIVE:
            if not self.xcount and not self.scount:
                self.xcount = 1
                self.lockholder = _thread.curthread
                return 0
            return 0 if self._recurse(flags | LK_NOWAIT) else EBUSY
        if kind == LK_SHARED:
            if not self.xcount and (
                (self.waiters is None and self.upreq is None) or self._deadlktreat()
            ):
                self.scount += 1
                return 0
            return 0 if self._recurse(flags | LK_NOWAIT) else EBUSY
        if kind == LK_RELEASE:
            self.unlock()
            return 0
        return self._rare(kind, flags)

    def unlock(self) -> None:
        """Release one count of the lock, of whichever kind is held, and hand it on. LK_RELEASE.

        Panics when it is not held, or exclusively by somebody else.
        """
        if self.xcount:
            if self.lockholder is not _thread.curthread and self.lockholder is not LK_KERNTHREAD:
                panic(f"lockmgr: {self.wmesg} released by {_thread.curthread}, not by its holder")
            self.xcount -= 1
            if not self.xcount:
                self.lockholder = None
                self.flags &= ~_CANCEL
                if self.waiters is not None:
                    self._grant()
        elif self.scount:
            self.scount -= 1
            if not self.scount:
                self.flags &= ~_CANCEL
                if self.waiters is not None or self.upreq is not None:
                    self._grant()
        else:
            panic(f"lockmgr: LK_RELEASE: {self.wmesg}: no lock held")

    def _recurse(self, ext: int) -> bool:
        """Take another count if the running thread holds it exclusively; says whether it did."""
        if not self.xcount or self.lockholder is not _thread.curthread:
            return False
        if (ext | self.flags) & LK_CANRECURSE:
            self.xcount += 1
            return True
        if ext & LK_NOWAIT:
            return False
        panic(f"lockmgr: {self.wmesg}: locking against myself")

    @staticmethod
    def _deadlktreat() -> bool:
        td = running()
        return td is not None and bool(td.flags & TDF_DEADLKTREAT)

    def _rare(self, kind: int, flags: int) -> int:
        """The types that are not on the hot path, as far as they never wait."""
        if kind == LK_DOWNGRADE:
            self.downgrade()
            return 0
        if kind in (LK_UPGRADE, LK_EXCLUPGRADE):
            if not self._upgrade_at_once():
                self.unlock()
                return EBUSY
            return 0
        if kind == LK_CANCEL_BEG:
            self._cancel_beg()
            return 0
        if kind == LK_CANCEL_END:
            self.flags &= ~_CANCEL
            return 0
        panic(f"lockmgr: unknown locktype request {flags & LK_TYPE_MASK}")

    def downgrade(self) -> None:
        """Turn the exclusive lock into a shared one; shared requests that wait get it too.

        Panics unless the running thread holds exactly one exclusive count. LK_DOWNGRADE.
        """
        if self.xcount != 1 or self.lockholder is not _thread.curthread:
            panic(f"lockmgr: downgrade: {self.wmesg} is not held exclusively once by us")
        self.lockholder = None
        self.xcount = 0
        self.scount = 1
        if self.waiters is not None:
            self._grant_shared()

    def _upgrade_at_once(self) -> bool:
        """Upgrade if the running thread is the only holder; panics when it cannot be a holder."""
        if self.xcount:
            if self.lockholder is _thread.curthread:
                return True
            panic(f"lockmgr: upgrade: {self.wmesg} is held exclusively by another thread")
        if not self.scount:
            panic(f"lockmgr: upgrade: {self.wmesg} is not held")
        if self.scount != 1 or self.upreq is not None:
            return False
        self.scount = 0
        self.xcount = 1
        self.lockholder = _thread.curthread
        return True

    def _cancel_beg(self) -> None:
        """Fail every cancelable request, waiting or to come, until LK_CANCEL_END or the release."""
        KKASSERT(not self.flags & _CANCEL, "lockmgr: LK_CANCEL_BEG twice")
        KKASSERT(self.xcount or self.scount, "lockmgr: LK_CANCEL_BEG: no lock held")
        self.flags |= _CANCEL
        pending = list(self.waiters or ())
        if self.upreq is not None:
            pending.append(self.upreq)
        for waiter in pending:
            if waiter.cancelable:
                self._forget(waiter)
                waiter.error = ENOLCK
                wakeup(waiter)
        self._grant()

    # --- handing over ----------------------------------------------------------------------

    def _grant(self) -> None:
        """Give the lock to whoever may have it now. Wakes exactly those."""
        if self.xcount:
            return
        if self.upreq is not None:
            if not self.scount:
                waiter, self.upreq = self.upreq, None
                self._grant_exclusive(waiter)
            return
        while self.waiters is not None and not self.xcount:
            first = self.waiters[0]
            if not first.exclusive:
                self._grant_shared()
            elif self.scount:
                return
            else:
                self._forget(first)
                self._grant_exclusive(first)

    def _grant_exclusive(self, waiter: _Waiter) -> None:
        if not waiter.watch:
            self.xcount = 1
            self.lockholder = waiter.td
        waiter.granted = True
        wakeup(waiter)

    def _grant_shared(self) -> None:
        assert self.waiters is not None
        granted = [w for w in self.waiters if not w.exclusive]
        self.waiters = [w for w in self.waiters if w.exclusive] or None
        self.scount += sum(not w.watch for w in granted)
        for waiter in granted:
            waiter.granted = True
            wakeup(waiter)

    def _forget(self, waiter: _Waiter) -> None:
        """Take a waiter off the lock."""
        if self.upreq is waiter:
            self.upreq = None
            return
        assert self.waiters is not None
        self.waiters.remove(waiter)
        if not self.waiters:
            self.waiters = None

    # --- requests that may wait ------------------------------------------------------------

    async def lockmgr(self, flags: int) -> int:
        """Do what ``flags`` ask: an LK_ type and LK_NOWAIT, LK_CANCELABLE ...

        Must be called on an LWKT thread when it may wait. Panics when the lock would be waited for
        by its own holder (without LK_CANRECURSE), and when an unheld lock is released or upgraded.

        Returns:
            0 with the lock, or without it: EBUSY (LK_NOWAIT, or LK_EXCLUPGRADE with another upgrade
            pending), ENOLCK (cancelled, or LK_SLEEPFAIL), EWOULDBLOCK (LK_TIMELOCK), EINTR or
            ERESTART (LK_PCATCH). A failed upgrade has released the shared lock.
        """
        ext = flags | self.flags
        kind = flags & LK_TYPE_MASK
        if ext & LK_NOWAIT or kind not in (LK_EXCLUSIVE, LK_SHARED, LK_UPGRADE, LK_EXCLUPGRADE):
            return self.lock_nowait(flags)
        exclusive = kind != LK_SHARED
        if kind in (LK_UPGRADE, LK_EXCLUPGRADE):
            if self._upgrade_at_once():
                return 0
            if self.upreq is None:
                return await self._wait(True, ext, upgrade=True)
            self.unlock()
            if kind == LK_EXCLUPGRADE:
                return EBUSY
            flags = (flags & ~LK_TYPE_MASK) | LK_EXCLUSIVE
        if not self.lock_nowait(flags) or self._recurse(ext):
            return 0
        return await self._wait(exclusive, ext)

    async def _wait(
        self, exclusive: bool, ext: int, upgrade: bool = False, watch: bool = False
    ) -> int:
        """Queue a request and sleep until it is granted, fails, or gives up."""
        if ext & LK_CANCELABLE and self.flags & _CANCEL:
            if upgrade:
                self.unlock()
            return ENOLCK
        td = _thread.curthread
        KKASSERT(running() is not None, "lockmgr: must wait, but no thread runs")
        waiter = _Waiter(td, exclusive, watch, bool(ext & LK_CANCELABLE))
        pflags = PCATCH if ext & LK_PCATCH else 0
        tsleep_interlock(waiter, pflags)
        if upgrade:
            self.scount -= 1
            self.upreq = waiter
        elif self.waiters is None:
            self.waiters = [waiter]
        else:
            self.waiters.append(waiter)
        self.colls += 1
        ktr = td.cpu.lwkt.ktr.master("lockmgr")
        if ktr.mask:
            ktr.log(self.ktr_wait, self.wmesg, td.name, exclusive)
        error = 0
        try:
            while not waiter.over() and not error:
                timo = self.timo if ext & LK_TIMELOCK else 0
                error = await tsleep(waiter, pflags | PINTERLOCKED, self.wmesg, timo)
                if not waiter.over() and not error:
                    tsleep_interlock(waiter, pflags)
        except BaseException:
            self._unwind(waiter)
            raise
        error = self._settle(waiter, ext, error)
        if ktr.mask:
            ktr.log(self.ktr_got, self.wmesg, td.name, error)
        return error

    def _settle(self, waiter: _Waiter, ext: int, error: int) -> int:
        """The sleep is over: own the lock, or leave nothing behind."""
        if waiter.granted:
            if waiter.watch or not ext & LK_SLEEPFAIL:
                return 0
            self.unlock()
            return error or ENOLCK
        if waiter.error:
            return waiter.error
        self._forget(waiter)
        self._grant()
        return error

    def _unwind(self, waiter: _Waiter) -> None:
        """The waiting thread is being ended, perhaps by somebody else."""
        if waiter.granted:
            if not waiter.watch:
                if waiter.exclusive:
                    self.lockholder = LK_KERNTHREAD
                self.unlock()
        elif not waiter.error:
            self._forget(waiter)
            self._grant()

    async def acquire(self) -> None:
        """Take it exclusively; for `Block.exclusive` and callouts."""
        error = await self.lockmgr(LK_EXCLUSIVE)
        KKASSERT(not error, "lockmgr: acquire failed")

    def release(self) -> None:
        """Release it; for `Block.exclusive` and callouts."""
        self.unlock()

    async def wait_for(self, flags: int) -> int:
        """Wait until it is our turn for what ``flags`` ask, but do not take the lock.

        Several that watch are told together: each will take the lock and release it without
        suspending in between. Panics when the running thread holds it and may not recurse.

        Returns:
            0, ENOLCK, EWOULDBLOCK, EINTR or ERESTART, as `lockmgr`.
        """
        if not self.lock_nowait(flags) or self._recurse(flags):
            self.unlock()
            return 0
        return await self._wait(flags & LK_TYPE_MASK != LK_SHARED, flags | self.flags, watch=True)

    def block(self, flags: int) -> Block:
        """What a synchronous core raises when `lock_nowait` of ``flags`` said EBUSY.

        A core that blocks again and again is run under the lock, if that may recurse.
        """
        exclusive = self if self.flags & LK_CANRECURSE else None
        return Block(lambda: self.wait_for(flags & ~LK_NOWAIT), self.wmesg, exclusive)

    # --- questions -------------------------------------------------------------------------

    def lockmgr_kernproc(self) -> None:
        """Let any thread release the exclusive lock we hold. Counterpart: lockmgr_kernproc."""
        KKASSERT(self.owned(), "lockmgr_kernproc: not the holder")
        self.lockholder = LK_KERNTHREAD

    def lockstatus(self, td: Thread | None = None) -> int:
        """How it is held.

        Returns:
            LK_EXCLUSIVE if ``td`` (None: anybody) holds it so, LK_EXCLOTHER if another thread
            does, LK_SHARED if it is shared, 0 if it is free.
        """
        if self.xcount:
            return LK_EXCLUSIVE if td is None or self.lockholder is td else LK_EXCLOTHER
        return LK_SHARED if self.scount else 0

    def lockcount(self) -> int:
        """How often it is held, in either way."""
        return self.xcount + self.scount

    def lockinuse(self) -> bool:
        """Whether it is held."""
        return bool(self.xcount or self.scount)

    def owned(self) -> bool:
        """Whether the running thread holds it exclusively. Counterpart: lockowned."""
        return bool(self.xcount) and self.lockholder is _thread.curthread

    def exclpending(self) -> bool:
        """Whether an exclusive request or an upgrade waits. Counterpart: lockmgr_exclpending."""
        return self.upreq is not None or any(w.exclusive for w in self.waiters or ())

    @property
    def lk_count(self) -> int:
        """The state as DragonFly's 64-bit word (LKC_*)."""
        waiting = self.waiters or ()
        exclusives = sum(w.exclusive for w in waiting)
        count = self.xcount | self.scount << LKC_SSHIFT
        count |= sum(not w.exclusive for w in waiting) << LKC_SSHIFT
        if self.scount:
            count |= LKC_SHARED
        if exclusives:
            count |= LKC_EXREQ2 if self.xcount or exclusives > 1 else 0
            count |= 0 if self.xcount else LKC_EXREQ
        if self.upreq is not None:
            count |= LKC_UPREQ
        return count | (LKC_CANCEL if self.flags & _CANCEL else 0)

    def statistics(self) -> LockStatistics:
        """The state now and the collisions since the lock was made."""
        return LockStatistics(
            xcount=self.xcount,
            scount=self.scount,
            waiters=len(self.waiters or ()) + (self.upreq is not None),
            holder=getattr(self.lockholder, "name", "") if self.xcount else "",
            collisions=self.colls,
        )


def lockinit(wmesg: str, timo: int = 0, flags: int = 0) -> Lock:
    """Counterpart: lockinit."""
    return Lock(wmesg, timo, flags)
