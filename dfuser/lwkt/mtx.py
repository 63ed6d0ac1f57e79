"""mtx: sleepable mutexes, exclusive or shared, with queued links.

A `Mtx` is the simpler relative of lockmgr: exclusive requests recurse, go before shared ones, and
are served in order. What waits is an `MtxLink`; a link with a callback makes the request
asynchronous, so that code which must not suspend can still queue for the lock::

    error = await mtx.lock_ex()                          # or lock_ex(PCATCH, 100)
    mtx.unlock()

    link = MtxLink(callback=got_it)
    if mtx.lock_ex_link_nowait(link) == EINPROGRESS: ...  # got_it(link, 0) is called with the lock

Counterpart: sys/kern/kern_mutex.c, sys/sys/mutex.h and mutex2.h (struct mtx, struct mtx_link).
Differs from DragonFly: there are no spin mutexes (mtx_spinlock), `spinlock` has those; an exclusive
request that gives up lets the shared ones it held back in at once, where there they wait for the
next release.

Token and lock order: takes none.
Invariants: not held by an owner and shared at once; links are queued only while the mutex is held;
a link is in exactly one state; each link is granted, aborted or withdrawn once, and its callback is
called once, by the granter or the aborter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs

from dfuser.libkern.errno import EAGAIN, EDEADLK, EINPROGRESS, ENOLCK, EWOULDBLOCK, KKASSERT, panic
from dfuser.libkern.ktr import KtrInfo
from dfuser.libkern.param import PCATCH, PINTERLOCKED

from . import thread as _thread
from .synch import tsleep, tsleep_interlock, wakeup
from .thread import Thread

# States of a link; sys/mutex.h.
MTX_LINK_LINKED: Final = 0x1000
MTX_LINK_IDLE: Final = 0
MTX_LINK_LINKED_SH: Final = MTX_LINK_LINKED | 1
MTX_LINK_LINKED_EX: Final = MTX_LINK_LINKED | 2
MTX_LINK_ACQUIRED: Final = 3
MTX_LINK_CALLEDBACK: Final = 4
MTX_LINK_ABORTED: Final = 5

# Bits of mtx_lock; sys/mutex.h.
MTX_EXCLUSIVE: Final = 0x80000000
MTX_SHWANTED: Final = 0x40000000
MTX_EXWANTED: Final = 0x20000000
MTX_MASK: Final = 0x0FFFFFFF


class MtxLink:
    """A request for a mutex. Counterpart: struct mtx_link (sys/mutex.h).

    Args:
        callback: makes the request asynchronous: ``callback(link, error)`` is called once, with the
            lock held by the requesting thread (0), or without it (ENOLCK: aborted). It must not
            suspend.
    """

    __slots__ = ("callback", "owner", "state")

    def __init__(self, callback: Callable[[MtxLink, int], None] | None = None) -> None:
        self.callback = callback
        self.owner: Thread | None = None
        self.state = MTX_LINK_IDLE

    def linked(self) -> bool:
        """Whether it is queued."""
        return bool(self.state & MTX_LINK_LINKED)


@attrs.frozen
class MtxStatistics:
    """What `Mtx.statistics` returns.

    Attributes:
        count: exclusive or shared counts.
        exclusive: whether they are exclusive.
        owner: name of the exclusive owner, "" when there is none.
        exlinks, shlinks: requests that wait now.
        collisions: requests that had to wait since the mutex was made.
    """

    count: int
    exclusive: bool
    owner: str
    exlinks: int
    shlinks: int
    collisions: int


class Mtx:
    """A mutex. Counterpart: struct mtx (sys/mutex.h).

    Args:
        ident: what ``ps`` shows of a thread that waits for it, at most 8 characters.
    """

    __slots__ = ("colls", "count", "exclusive", "exlinks", "ident", "owner", "shlinks")

    ktr_wait = KtrInfo("mtx", "wait", "%s by %s state %#x")

    def __init__(self, ident: str = "mtx") -> None:
        self.ident = ident
        self.count = 0
        self.exclusive = False
        self.owner: Thread | None = None
        self.exlinks: list[MtxLink] = []
        self.shlinks: list[MtxLink] = []
        self.colls = 0

    # --- requests --------------------------------------------------------------------------

    def lock_ex_try(self) -> int:
        """Take it exclusively, recursively too, or return EAGAIN. Counterpart: mtx_lock_ex_try."""
        if not self.count:
            self.count = 1
            self.exclusive = True
            self.owner = _thread.curthread
            return 0
        if self.exclusive and self.owner is _thread.curthread:
            self.count += 1
            return 0
        return EAGAIN

    def lock_sh_try(self) -> int:
        """Share it, even past waiting exclusive requests, or return EAGAIN when it is exclusive.

        Counterpart: mtx_lock_sh_try.
        """
        if self.exclusive:
            return EAGAIN
        self.count += 1
        return 0

    async def lock_ex(self, flags: int = 0, timo: int = 0) -> int:
        """Take it exclusively, recursively too.

        Args:
            flags: PCATCH: a signal ends the wait.
            timo: ticks to wait at most; 0 means no limit.

        Returns:
            0, EWOULDBLOCK, EINTR or ERESTART.  Counterpart: mtx_lock_ex.
        """
        if not self.lock_ex_try():
            return 0
        return await self.lock_ex_link(MtxLink(), flags, timo)

    async def lock_sh(self, flags: int = 0, timo: int = 0) -> int:
        """Share it, behind waiting exclusive requests. As `lock_ex`. Counterpart: mtx_lock_sh."""
        if not self.exclusive and not self.exlinks:
            self.count += 1
            return 0
        return await self.lock_sh_link(MtxLink(), flags, timo)

    def lock_ex_link_nowait(self, link: MtxLink) -> int:
        """Take it, or queue ``link`` for it, exclusively. Never suspends.

        Returns:
            0 with the lock; EINPROGRESS: queued, the callback tells (without a callback call
            `wait_link`); ENOLCK: the link had been aborted before.
            Counterpart: mtx_lock_ex_link.
        """
        if not self.lock_ex_try():
            link.state = MTX_LINK_ACQUIRED
            return 0
        return self._queue(link, MTX_LINK_LINKED_EX, self.exlinks)

    def lock_sh_link_nowait(self, link: MtxLink) -> int:
        """Take it, or queue ``link`` for it, shared. Counterpart: mtx_lock_sh_link."""
        if not self.exclusive and not self.exlinks:
            self.count += 1
            link.state = MTX_LINK_ACQUIRED
            return 0
        return self._queue(link, MTX_LINK_LINKED_SH, self.shlinks)

    async def lock_ex_link(self, link: MtxLink, flags: int = 0, timo: int = 0) -> int:
        """`lock_ex` with a link that can be aborted (ENOLCK). Waits unless it has a callback."""
        error = self.lock_ex_link_nowait(link)
        if error == EINPROGRESS and link.callback is None:
            return await self.wait_link(link, flags, timo)
        return error

    async def lock_sh_link(self, link: MtxLink, flags: int = 0, timo: int = 0) -> int:
        """`lock_sh` with a link that can be aborted (ENOLCK). Waits unless it has a callback."""
        error = self.lock_sh_link_nowait(link)
        if error == EINPROGRESS and link.callback is None:
            return await self.wait_link(link, flags, timo)
        return error

    def _queue(self, link: MtxLink, state: int, links: list[MtxLink]) -> int:
        if link.state == MTX_LINK_ABORTED:
            link.state = MTX_LINK_IDLE
            return ENOLCK
        KKASSERT(not link.linked(), "mtx: the link is queued already")
        td = _thread.curthread
        link.state = state
        link.owner = td
        links.append(link)
        self.colls += 1
        ktr = td.cpu.lwkt.ktr.master("mtx")
        if ktr.mask:
            ktr.log(self.ktr_wait, self.ident, td.name, state)
        return EINPROGRESS

    async def wait_link(self, link: MtxLink, flags: int = 0, timo: int = 0) -> int:
        """Wait for a queued request; it is withdrawn when the wait ends without the lock.

        Returns:
            0, ENOLCK (aborted), EWOULDBLOCK, EINTR or ERESTART.  Counterpart: mtx_wait_link.
        """
        error = 0
        try:
            while link.linked() and not error:
                tsleep_interlock(link, 0)
                error = await tsleep(link, flags & PCATCH | PINTERLOCKED, self.ident, timo)
        except BaseException:
            if link.linked():
                self._unlink(link)
            elif link.state == MTX_LINK_ACQUIRED:
                self.unlock()
            raise
        state, was_linked = link.state, link.linked()
        if was_linked:
            self._unlink(link)
        link.state = MTX_LINK_IDLE
        if state in (MTX_LINK_ACQUIRED, MTX_LINK_CALLEDBACK):
            return 0
        if state == MTX_LINK_ABORTED:
            return ENOLCK
        return error or EWOULDBLOCK

    def abort_link(self, link: MtxLink) -> None:
        """Make the request fail with ENOLCK, unless it has the lock already. Never suspends.

        A link that is not queued fails at its next use. Counterpart: mtx_abort_link.
        """
        if link.state == MTX_LINK_IDLE:
            link.state = MTX_LINK_ABORTED
        elif link.linked():
            self._unlink(link)
            if link.callback is not None:
                link.state = MTX_LINK_CALLEDBACK
                link.callback(link, ENOLCK)
            else:
                link.state = MTX_LINK_ABORTED
                wakeup(link)

    def _unlink(self, link: MtxLink) -> None:
        """Take a queued link out; shared requests that only waited behind it get the lock."""
        if link.state == MTX_LINK_LINKED_SH:
            self.shlinks.remove(link)
            return
        self.exlinks.remove(link)
        if self.shlinks and not self.exlinks and self.count and not self.exclusive:
            self._chain_sh()

    # --- release ---------------------------------------------------------------------------

    def unlock(self) -> None:
        """Release one count and hand the mutex on. Panics when it is not ours.

        Counterpart: mtx_unlock.
        """
        if not self.count:
            panic(f"mtx_unlock: {self.ident} is not held")
        if self.exclusive and self.owner is not _thread.curthread:
            panic(f"mtx_unlock: {self.ident} is owned by {self.owner}")
        self.count -= 1
        if self.count:
            return
        self.exclusive = False
        self.owner = None
        if self.exlinks:
            self._chain_ex()
        elif self.shlinks:
            self._chain_sh()

    def _chain_ex(self) -> None:
        """Hand the free mutex to the first exclusive request. Counterpart: mtx_chain_link_ex."""
        link = self.exlinks.pop(0)
        self.count = 1
        self.exclusive = True
        self.owner = link.owner
        self._granted(link)

    def _chain_sh(self) -> None:
        """Let all waiting shared requests in. Counterpart: mtx_chain_link_sh."""
        links, self.shlinks = self.shlinks, []
        self.count += len(links)
        for link in links:
            self._granted(link)

    @staticmethod
    def _granted(link: MtxLink) -> None:
        if link.callback is not None:
            link.state = MTX_LINK_CALLEDBACK
            link.callback(link, 0)
        else:
            link.state = MTX_LINK_ACQUIRED
            wakeup(link)

    def downgrade(self) -> None:
        """Turn our exclusive counts into shared ones and let waiting shared requests in.

        Nothing happens when it is shared. Counterpart: mtx_downgrade.
        """
        KKASSERT(self.count > 0, "mtx_downgrade: not held")
        if not self.exclusive:
            return
        KKASSERT(self.owner is _thread.curthread, "mtx_downgrade: not the owner")
        self.exclusive = False
        self.owner = None
        if self.shlinks:
            self._chain_sh()

    def upgrade_try(self) -> int:
        """Turn our shared count into an exclusive one, if it is the only one.

        Returns:
            0 (also when it is ours exclusively already), EDEADLK.  Counterpart: mtx_upgrade_try.
        """
        if self.exclusive:
            KKASSERT(self.owner is _thread.curthread, "mtx_upgrade_try: not the owner")
            return 0
        KKASSERT(self.count > 0, "mtx_upgrade_try: not held")
        if self.count != 1:
            return EDEADLK
        self.exclusive = True
        self.owner = _thread.curthread
        return 0

    # --- questions -------------------------------------------------------------------------

    async def acquire(self) -> None:
        """Take it exclusively; for mtxsleep and condition variables."""
        await self.lock_ex()

    def release(self) -> None:
        """Release it; for mtxsleep and condition variables."""
        self.unlock()

    def islocked(self) -> bool:
        """Whether it is held. Counterpart: mtx_islocked."""
        return self.count > 0

    def islocked_ex(self) -> bool:
        """Whether it is held exclusively. Counterpart: mtx_islocked_ex."""
        return self.exclusive

    def owned(self) -> bool:
        """Whether the running thread holds it exclusively. Counterpart: mtx_owned."""
        return self.exclusive and self.owner is _thread.curthread

    def lockrefs(self) -> int:
        """How often it is held. Counterpart: mtx_lockrefs."""
        return self.count

    @property
    def mtx_lock(self) -> int:
        """The state as DragonFly's word (MTX_*)."""
        word = self.count
        word |= MTX_EXCLUSIVE if self.exclusive else 0
        word |= MTX_EXWANTED if self.exlinks else 0
        return word | (MTX_SHWANTED if self.shlinks else 0)

    def statistics(self) -> MtxStatistics:
        """The state now, and the collisions since the mutex was made."""
        return MtxStatistics(
            count=self.count,
            exclusive=self.exclusive,
            owner=self.owner.name if self.owner is not None else "",
            exlinks=len(self.exlinks),
            shlinks=len(self.shlinks),
            collisions=self.colls,
        )
