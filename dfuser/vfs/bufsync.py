"""What a file system does with all buffers of a vnode: sync, invalidate, truncate, extend, let go.

`vfsync` is the heart of a VOP_FSYNC. It starts writing every dirty buffer. With MNT_WAIT the caller
is told `Block`; the wait sees to it that all that was dirty *when fsync was called* is written, or
has failed, and then has the device flush its cache. What becomes dirty meanwhile is not waited for,
so a busy writer cannot hold an fsync up for ever. So that the core, run again, knows that it is
done, the vnode remembers for a moment who has just waited.

A write that fails is an errno to whoever waits for it here, while the data stay dirty and are tried
again later.

Counterpart: vfsync, vinvalbuf, vtruncbuf (kern/vfs_subr.c); nvtruncbuf, nvextendbuf
    (kern/vfs_vm.c).
Differs from DragonFly: vfsync there makes a fixed number of passes over the tree.
Token/lock order: takes none; only the waits that a `Block` names suspend.
Invariants: after `vinvalbuf` and `reclaim` a vnode has no buffer that is not in flight.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from dfuser.dev.disk.bio import BIO, Bio, Buf, BufCmd, biowait, start_sync
from dfuser.libkern.errno import EIO, KKASSERT, KError
from dfuser.libkern.param import HZ, NSEC_PER_SEC, PINTERLOCKED
from dfuser.lwkt import thread as _thread
from dfuser.lwkt.block import Block
from dfuser.lwkt.synch import tsleep, tsleep_interlock

from .bufqueue import B, CacheBuf, VnodeBufs
from .cluster import ClusterIo
from .vop import MNT_WAIT

if TYPE_CHECKING:
    from .vnode import Vnode

#: vinvalbuf writes what is dirty first. Counterpart: V_SAVE (sys/vnode.h).
V_SAVE: Final = 0x0001
#: How long it is remembered who has just waited for an fsync: until its core runs again.
REMEMBERED_NS: Final = NSEC_PER_SEC // 10


class VnodeSync(ClusterIo):
    """Buffers of a vnode as a whole."""

    # --- fsync -------------------------------------------------------------------------------

    def vfsync(self, vp: Vnode, waitfor: int, device: Vnode | None = None) -> None:
        """Write the dirty buffers of a vnode.

        Args:
            vp: whose.
            waitfor: MNT_WAIT to have it done; else writes are started, as many as may be in flight.
            device: with MNT_WAIT, whose cache is flushed afterwards.

        Raises:
            Block: MNT_WAIT, and the disk must be waited for. Ends with the errno if a write fails.
            KError: MNT_WAIT, and a write has failed; the data stay dirty.
        """
        owner = self.vnode_bufs(vp)
        if waitfor == MNT_WAIT and self._just_synced(owner):
            return
        upto = self.dirty_seq
        tried: set[CacheBuf] = set()
        self._write_dirty(owner, upto, tried, waitfor == MNT_WAIT)
        if waitfor != MNT_WAIT:
            return
        error = self._failed(owner, upto, tried)
        if error:
            raise KError(error)
        flush = None
        if not owner.dirty and not owner.track_write.active:
            if device is None:
                return
            flush = self.start_flush(device)
            if flush.flags & BIO.DONE:
                _end_flush(flush)
                return
        raise Block(partial(self._fsync_wait, owner, upto, tried, device, flush), "fsync")

    def _just_synced(self, owner: VnodeBufs) -> bool:
        """Whether the running thread comes back from the wait of its fsync."""
        (td, until), owner.synced = owner.synced, (None, 0)
        return until > self.clock.monotonic_ns() and td is _thread.curthread

    def _write_dirty(self, owner: VnodeBufs, upto: int, tried: set[CacheBuf], again: bool) -> None:
        """Start writing what became dirty up to ``upto``, as long as more may be in flight."""
        now = self.clock.monotonic_ns()
        for bp in owner.in_order():
            if self.runningbufspace > self.hirunningspace * 4 // 6:
                break
            if bp.holder is not None or bp.seq > upto or not bp.flags & B.DELWRI or bp in tried:
                continue
            if bp.flags & B.LOCKED or (bp.flags & B.ERROR and not again and bp.retry_ns > now):
                continue
            tried.add(bp)
            self.cluster_awrite(self._hold(bp))

    def _failed(self, owner: VnodeBufs, upto: int, tried: set[CacheBuf]) -> int:
        """The errno of a buffer that was tried and is dirty still."""
        for bp in owner.dirty.values():
            if bp.flags & B.ERROR and bp.seq <= upto and bp.holder is None and bp in tried:
                return bp.error or EIO
        return 0

    async def _fsync_wait(
        self, owner: VnodeBufs, upto: int, tried: set[CacheBuf], device: Vnode | None,
        flush: Bio | None,
    ) -> int:  # fmt: skip
        """See an fsync through to its end."""
        error = 0
        while flush is None:
            left = [bp for bp in owner.dirty.values() if bp.seq <= upto and not bp.flags & B.LOCKED]
            flying = [bp for bp in left if bp.holder is not None]
            if not flying:
                fresh = [bp for bp in left if bp not in tried]
                if not fresh:
                    error = self._failed(owner, upto, tried)
                    break
            else:
                tsleep_interlock(flying[0])
                flying[0].wanted = True
                await tsleep(flying[0], PINTERLOCKED, "fsync", HZ)
                tried |= {bp for bp in flying if bp.flags & B.ERROR and bp.holder is None}
            await self.waitrunningbufspace()
            self._write_dirty(owner, upto, tried, True)
        if not error and device is not None and not owner.dead:
            flush = flush or self.start_flush(device)
            error = await biowait(flush, "biofl")
            flush.buf.dispose()
        if not error:
            owner.synced = _thread.curthread, self.clock.monotonic_ns() + REMEMBERED_NS
        return error

    def start_flush(self, device: Vnode) -> Bio:
        """Start having a device empty its cache; returns the bio to wait for."""
        bio = start_sync(Buf(b""), BufCmd.FLUSH, 0)
        self.vn_strategy(device, bio)
        return bio

    async def bio_track_wait(self, vp: Vnode) -> int:
        """Wait until no write of a vnode is in flight. Counterpart: bio_track_wait."""
        owner = vp.bufs
        return 0 if owner is None else await owner.track_write.wait()

    # --- invalidating ------------------------------------------------------------------------

    def vinvalbuf(self, vp: Vnode, flags: int = 0) -> None:
        """Forget all buffers and pages of a vnode; with V_SAVE write what is dirty first.

        Raises:
            Block: buffers are in flight or in use; nothing was forgotten.
            KError: V_SAVE, and a write failed; nothing was forgotten.

        Counterpart: vinvalbuf.
        """
        owner = vp.bufs
        if owner is None:
            return
        if flags & V_SAVE and owner.dirty:
            self.vfsync(vp, MNT_WAIT)
            owner.synced = (None, 0)
        self._wait_held(owner, 0)
        self._toss(owner, 0)
        owner.object.free_unpinned()

    def vtruncbuf(self, vp: Vnode, length: int, size: int) -> None:
        """Forget the buffers and pages of blocks that begin at or after ``length``.

        ``size`` is that of the blocks; the block ``length`` is in stays. Sets the object's size.

        Raises:
            Block: some are in flight or in use; nothing has changed.

        Counterpart: vtruncbuf.
        """
        owner = self.vnode_bufs(vp)
        keep = -(-length // size) * size
        if owner.object.size > length or owner.hash:
            self._wait_held(owner, keep)
            self._toss(owner, keep)
            owner.object.free_unpinned(keep)
        owner.object.setsize(length, keep)

    def nvtruncbuf(self, vp: Vnode, length: int, size: int) -> None:
        """`vtruncbuf`, and clear what is beyond ``length`` in the last block.

        Raises:
            Block: as `vtruncbuf`, or the last block must be read. Nothing has changed.
            KError: reading it failed.

        Counterpart: nvtruncbuf.
        """
        owner = self.vnode_bufs(vp)
        keep = -(-length // size) * size
        self._wait_held(owner, keep)
        last = length - length % size
        bp = self.bread(vp, last, size) if length % size else None
        self.vtruncbuf(vp, length, size)
        if bp is None:
            return
        if not bp.read(length - last, size - (length - last)).strip(b"\0"):
            self.bqrelse(bp)  # a hole stays one
            return
        bp.zero(length - last)
        self.bdwrite(bp)

    def nvextendbuf(self, vp: Vnode, nlength: int) -> None:
        """The file has grown to ``nlength``. Counterpart: nvextendbuf."""
        owner = self.vnode_bufs(vp)
        owner.object.setsize(max(nlength, owner.object.size), 0)

    def _wait_held(self, owner: VnodeBufs, start: int) -> None:
        """Say `Block` if a buffer from ``start`` on is held by somebody."""
        for bp in owner.hash.values():
            if bp.bio1.offset >= start and bp.holder is not None:
                raise self._locked(bp)

    def _toss(self, owner: VnodeBufs, start: int) -> None:
        """Forget the buffers from ``start`` on, dirty or not; those in flight when they land."""
        for bp in [bp for bp in owner.hash.values() if bp.bio1.offset >= start]:
            if bp.holder is not None:
                bp.flags |= B.INVAL | B.NOCACHE
                continue
            bp = self._hold(bp)
            bp.flags |= B.INVAL | B.NOCACHE
            bp.refs = 0
            self.brelse(bp)

    def reclaim(self, vp: Vnode) -> None:
        """The vnode goes: forget all it has; what is dirty is lost. Never waits.

        For VOP_RECLAIM. Transfers under way end by themselves, and then their pages go.
        """
        owner = vp.bufs
        vp.bufs = None
        if owner is None:
            return
        if owner.dirty and self.marks is not None:
            self.marks.clrobjdirty(vp)
        owner.dead = True
        for bp in owner.hash.values():
            KKASSERT(
                bp.holder is None or bp.cmd is not BufCmd.DONE, f"reclaim: somebody uses {bp!r}"
            )
        self._toss(owner, 0)
        if not owner.pins:
            del self.owners[owner]
        vp.object = None
        owner.object.drop()


def _end_flush(flush: Bio) -> None:
    """Look at a flush that is over."""
    flush.flags &= ~(BIO.DONE | BIO.SYNC)
    error = flush.buf.outcome
    flush.buf.dispose()
    if error:
        raise KError(error)
