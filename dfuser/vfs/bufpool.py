"""Buffers: how one is found, made, made dirty or clean, and given back.

`getblk` gives the buffer of a block, held by the caller, who must give it back with `brelse`,
`bqrelse`, `bdwrite` or another write before he waits for anything. If somebody else has it the
caller is told `Block` and asks again. A new buffer takes a header (EMPTY, or the oldest CLEAN one)
and the pages of its block; if all their bytes are valid already it has B.CACHE, and need not be
read.

Rules:

- Whoever gets several buffers gives all of them back before he lets a `Block` go up.
- A thread that asks for a buffer it holds would wait for ever: that is a panic.
- A buffer in flight is held by its transfer, so its data cannot change under the disk.

Counterpart: getblk, findblk, getcacheblk, getnewbuf, allocbuf, brelse, bqrelse, bdirty, bundirty,
    vfs_vmio_release, inmem (kern/vfs_bio.c); bgetvp, brelvp, reassignbuf (kern/vfs_subr.c).
Differs from DragonFly: a failed write leaves the pages valid (they become invalid there, with the
    buffer still dirty); headers are made when needed, up to ``nbuf``; no lists of dependencies
    (struct bio_ops).
Token/lock order: takes none; nothing here suspends.
Invariants: ``bufspace`` is the sum of ``bufsize``, the dirty figures are sums over B.DELWRI;
    `check` in bio.py recomputes them. A buffer with data has all its pages wired once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from dfuser.dev.disk.bio import NOOFFSET, Bio
from dfuser.libkern.errno import EINVAL, ENOMEM, KKASSERT, KError, panic
from dfuser.libkern.param import DEV_BSIZE, MAXBSIZE, PINTERLOCKED
from dfuser.libkern.sysctl import INT, LONG, RW, Sysctl
from dfuser.lwkt import thread as _thread
from dfuser.lwkt.block import Block
from dfuser.lwkt.synch import tsleep, tsleep_interlock, wakeup

from .bufpages import PageScan, VnodeObject, all_valid, idle, set_invalid
from .bufqueue import (
    ACT_ADVANCE,
    ACT_INIT,
    ACT_MAX,
    B,
    BQueue,
    BufQueues,
    CacheBuf,
    Holder,
    VnodeBufs,
)
from .bufspace import BufSpace

if TYPE_CHECKING:
    from dfuser.hw.clock import Clock
    from dfuser.hw.physmem import PhysMem
    from dfuser.vm.page import VmPages

    from .vnode import Vnode

#: Flags of getblk. Counterpart: GETBLK_* (sys/buf.h).
GETBLK_BHEAVY: Final = 0x0002
GETBLK_SZMATCH: Final = 0x0004


class DirtyMarks(Protocol):
    """Who writes vnodes when they have been dirty for long: the syncer."""

    def setobjdirty(self, vp: Vnode) -> None:
        """Buffers of ``vp`` must be written some time."""

    def clrobjdirty(self, vp: Vnode) -> None:
        """They are written."""


#: What of it can be seen and set; `bio.BufCache` declares it.
POOL_SYSCTLS: Final = (
    Sysctl("vfs.getnewbufcalls", "New buffer header acquisition requests",
           attr="getnewbufcalls", kind=INT),
    Sysctl("vfs.bufreuses", "Buffers with data that were reused", attr="reuses", kind=LONG),
    Sysctl("vfs.reassignbufcalls", "Times a buffer became dirty or clean",
           attr="reassignbufcalls", kind=LONG),
    Sysctl("vfs.lowmempgallocs", "Requests for pages that found memory short",
           attr="lowmempgallocs", kind=LONG),
    Sysctl("vfs.vm_cycle_point", "Activity from which pages are kept as active ones",
           attr="vm_cycle_point", kind=INT, flags=RW, minimum=0, maximum=ACT_MAX),
)  # fmt: skip


class BufPool(BufSpace, ABC):
    """All buffers of a kernel.

    Args:
        pages: physical memory.
        clock: time.
        marks: the syncer, told of vnodes with dirty buffers; None for none.
        nbuf: headers; by memory if None.
    """

    def __init__(
        self, pages: VmPages, clock: Clock, marks: DirtyMarks | None = None,
        nbuf: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(clock, pages.physmem.size, nbuf)
        self.pages = pages
        self.physmem: PhysMem = pages.physmem
        self.marks = marks
        self.queues = BufQueues()
        self.scan = PageScan(pages)
        #: Every vnode with buffers or pages of them, until `VnodeSync.reclaim`.
        self.owners: dict[VnodeBufs, None] = {}
        self.headers = 0
        self.getnewbufcalls = self.reuses = self.reassignbufcalls = self.lowmempgallocs = 0
        self.hits = self.misses = 0
        self.vm_cycle_point = 40
        self.flushing = False
        self.dirty_seq = 0
        pages.shortage.append(self.shortage)

    # --- finding -----------------------------------------------------------------------------

    def vnode_bufs(self, vp: Vnode) -> VnodeBufs:
        """What ``vp`` knows of its buffers, made when first asked for. Counterpart: vinitvmio."""
        owner: VnodeBufs | None = vp.bufs
        if owner is None:
            if vp.object is None:
                vp.object = VnodeObject(self.pages)
            owner = vp.bufs = VnodeBufs(vp, vp.object)
            self.owners[owner] = None
        return owner

    def findblk(self, vp: Vnode, loffset: int) -> CacheBuf | None:
        """The buffer of a block if there is one, not held: only to be looked at.

        Counterpart: findblk with FINDBLK_TEST.
        """
        owner = vp.bufs
        return None if owner is None else owner.hash.get(loffset)

    def inmem(self, vp: Vnode, loffset: int, size: int) -> bool:
        """Whether a block can be had without I/O. Counterpart: inmem."""
        bp = self.findblk(vp, loffset)
        if bp is not None:
            return bool(bp.flags & B.CACHE)
        if vp.bufs is None:
            return False
        extents = vp.bufs.object._extents(loffset, loffset + size)
        return all(a >= 0 for a, _ in extents) and all_valid(self.pages, extents)

    def getcacheblk(self, vp: Vnode, loffset: int, size: int) -> CacheBuf | None:
        """The buffer of a block if it is in memory, valid and free. Counterpart: getcacheblk."""
        bp = self.findblk(vp, loffset)
        if bp is None or bp.bufsize != size or bp.holder is not None or not bp.flags & B.CACHE:
            return None
        return self._hold(bp)

    def getblk(self, vp: Vnode, loffset: int, size: int, blkflags: int = 0) -> CacheBuf:
        """The buffer of a block, held. Without B.CACHE its data mean nothing yet.

        Args:
            vp: whose block.
            loffset: where it begins; a multiple of 512.
            size: bytes, up to 64 KiB, a multiple of 512.
            blkflags: GETBLK_BHEAVY, writing it needs further buffers.

        Raises:
            Block: somebody has it, or no space is left for a new one. Nothing has changed.
            KError: ENOMEM; EINVAL, not such a block.

        Counterpart: getblk.
        """
        owner = vp.bufs
        if owner is not None:
            bp: CacheBuf | None = owner.hash.get(loffset)
            if bp is not None:
                if bp.holder is not None:
                    raise self._locked(bp)
                self._hold(bp)
                if bp.bufsize == size:
                    self.hits += 1
                    return bp
                return self._resize(bp, size, blkflags)
        return self._create(vp, loffset, size, blkflags)

    def getblk_nowait(self, vp: Vnode, loffset: int, size: int) -> CacheBuf | None:
        """`getblk`, or None where it would wait, fail, or find another size.

        Counterpart: getblk with GETBLK_NOWAIT and GETBLK_SZMATCH.
        """
        bp = self.findblk(vp, loffset)
        if bp is not None:
            return self._hold(bp) if bp.holder is None and bp.bufsize == size else None
        try:
            return self._create(vp, loffset, size, 0)
        except (Block, KError):
            return None

    def _hold(self, bp: CacheBuf) -> CacheBuf:
        """Take a free buffer off its queue. Counterpart: BUF_LOCK, bremfree."""
        bp.holder = _thread.curthread or Holder.NOTHREAD
        del self.queues.queues[bp.qindex][bp]
        bp.qindex = BQueue.NONE
        return bp

    def _locked(self, bp: CacheBuf) -> Block:
        """What somebody is told who wants a buffer that is held."""
        if bp.holder is (_thread.curthread or Holder.NOTHREAD):
            panic(f"getblk: {bp!r} is held by who asks for it")
        return Block(partial(self._until_free, bp), "bufwait")

    async def _until_free(self, bp: CacheBuf) -> int:
        while bp.holder is not None:
            tsleep_interlock(bp)
            bp.wanted = True
            await tsleep(bp, PINTERLOCKED, "bufwait")
        return 0

    def _unlock(self, bp: CacheBuf) -> None:
        """Give a buffer free. Counterpart: BUF_UNLOCK."""
        bp.holder = None
        if bp.wanted:
            bp.wanted = False
            wakeup(bp)

    # --- making ------------------------------------------------------------------------------

    def _create(self, vp: Vnode, loffset: int, size: int, blkflags: int) -> CacheBuf:
        """A buffer for a block that has none."""
        if not 0 < size <= MAXBSIZE or (loffset | size) & (DEV_BSIZE - 1) or loffset < 0:
            raise KError(EINVAL, f"no block: {loffset}+{size}")
        owner = self.vnode_bufs(vp)
        bp = self._getnewbuf(size, bool(blkflags & GETBLK_BHEAVY))
        bp.bio1.offset = loffset
        try:
            self._allocbuf(bp, owner, size)
        except BaseException:
            self._empty(bp)
            raise
        self.misses += 1
        if blkflags & GETBLK_BHEAVY:
            bp.flags |= B.HEAVY
        owner.hash[loffset] = bp
        bp.flags |= B.HASHED | B.VNCLEAN
        return bp

    def _getnewbuf(self, size: int, heavy: bool) -> CacheBuf:
        """A header without data, held, and space for ``size`` bytes. Counterpart: getnewbuf.

        Raises:
            Block: all there is, is dirty, in use or in flight.
        """
        self.getnewbufcalls += 1
        limit = self.maxbufspace if heavy or _thread.curthread in self.flushers else self.hibufspace
        if self.bufspace + size > limit:
            while self.bufspace + size > self.lobufspace and self._reuse_one():
                pass
            if self.bufspace + size > limit:
                raise self.need_block("bufspc")
        bp = self.queues.first(BQueue.EMPTY)
        if bp is None and self.headers >= self.nbuf:
            self._reuse_one()
            bp = self.queues.first(BQueue.EMPTY)
            if bp is None:
                raise self.need_block("newbuf")
        if bp is None:
            self.headers += 1
            bp = CacheBuf(self)
            bp.qindex = BQueue.NONE
        else:
            self.queues.remove(bp)
        bp.holder = _thread.curthread or Holder.NOTHREAD
        bp.flags = B.BNOCLIP | B.VMIO
        bp.act_count = ACT_INIT
        bp.error = bp.resid = bp.retry_ns = 0
        return bp

    def _reuse_one(self) -> bool:
        """Empty the oldest clean buffer that is not to go round again; False if there is none."""
        clean = self.queues[BQueue.CLEAN]
        for _ in range(2 * len(clean)):
            bp = next(iter(clean))
            if bp.refs or not bp.flags & B.AGE:
                bp.flags |= B.AGE
                clean.move_to_end(bp)
                continue
            self._hold(bp)
            self.reuses += 1
            self._destroy(bp)
            return True
        return False

    def _allocbuf(self, bp: CacheBuf, owner: VnodeBufs, size: int) -> None:
        """Give a buffer its pages; sets B.CACHE if they are valid. Counterpart: allocbuf.

        Raises:
            KError: ENOMEM, nothing changed, and nothing is dirty or in flight.
            Block: ENOMEM, but writing will free some.
        """
        pages = self.pages
        try:
            bp.extents = owner.object.grab(bp.bio1.offset, size)
        except KError as error:
            if error.errno == ENOMEM and (self.dirtybufcount or self.runningbufcount):
                raise self.need_block("vmwait") from None
            raise
        bp.owner = owner
        bp.bufsize = bp.bcount = size
        self.bufspace += size
        for frames in bp.frames():
            for frame in frames:
                pages.wire(frame)
        if all_valid(pages, bp.extents):
            bp.flags |= B.CACHE

    def _resize(self, bp: CacheBuf, size: int, blkflags: int) -> CacheBuf:
        """A block is wanted with another size than its buffer has.

        A dirty one is written first; the pages keep what is valid.
        """
        if bp.flags & B.DELWRI:
            vp, loffset = bp.vp, bp.loffset
            bp.flags |= B.RELBUF
            self.bawrite(bp)
            after = self.findblk(vp, loffset)
            if after is bp and bp.holder is None and bp.flags & B.ERROR:
                raise KError(bp.error or EINVAL)
            return self.getblk(vp, loffset, size, blkflags)
        vp, loffset = bp.vp, bp.loffset
        self._destroy(bp)
        return self._create(vp, loffset, size, blkflags)

    @abstractmethod
    def bawrite(self, bp: CacheBuf) -> None:
        """Start writing a held buffer; see bufio."""

    @abstractmethod
    def buf_done(self, bp: CacheBuf, elseit: bool) -> None:
        """A transfer is over; see bufio."""

    # --- unmaking ----------------------------------------------------------------------------

    def _vmio_release(self, bp: CacheBuf) -> None:
        """Let go of the pages; those that mean nothing are freed. Counterpart: vfs_vmio_release."""
        pages = self.pages
        owner = bp.owner
        assert owner is not None
        active = bp.act_count >= self.vm_cycle_point
        direct = bp.flags & B.DIRECT
        for frames in bp.frames():
            for frame in frames:
                pages.unwire(frame, active)
                if (direct or not pages.valid[frame]) and idle(pages, frame):
                    owner.object.free_page(pages.lookup(frame)[1])
        self.bufspace -= bp.bufsize
        bp.bufsize = bp.bcount = 0
        bp.extents = []

    def _brelvp(self, bp: CacheBuf) -> None:
        """Take a buffer from its vnode. Counterpart: brelvp."""
        owner = bp.owner
        assert owner is not None
        if bp.flags & B.HASHED:
            del owner.hash[bp.loffset]
        bp.flags &= ~(B.HASHED | B.VNCLEAN | B.VNDIRTY)
        bp.owner = None

    def _destroy(self, bp: CacheBuf) -> None:
        """Make a held buffer an empty header."""
        self._vmio_release(bp)
        self._brelvp(bp)
        self._empty(bp)

    def _empty(self, bp: CacheBuf) -> None:
        """Put a header without data where such lie."""
        KKASSERT(not bp.flags & (B.DELWRI | B.HASHED), "an empty buffer is dirty or hashed")
        bp.flags = B.INVAL
        bp.owner = None
        bp.ahead = False
        bio: Bio | None = bp.bio1
        while bio is not None:
            bio.offset = NOOFFSET
            bio = bio.next
        self.queues.insert_head(bp, BQueue.EMPTY)
        self._unlock(bp)

    # --- dirty and clean ---------------------------------------------------------------------

    def bdirty(self, bp: CacheBuf) -> None:
        """A held buffer must be written some time. Counterpart: bdirty."""
        KKASSERT(bp.qindex is BQueue.NONE, "bdirty: the buffer is on a queue")
        bp.flags &= ~(B.RELBUF | B.NOCACHE)
        if bp.flags & B.DELWRI:
            return
        owner = bp.owner
        assert owner is not None
        bp.flags = (bp.flags | B.DELWRI | B.VNDIRTY) & ~B.VNCLEAN
        self.dirty_seq += 1
        bp.seq = self.dirty_seq
        bp.dirtied_ns = self.clock.monotonic_ns()
        self._count_dirty(bp, 1)
        first = not owner.dirty
        owner.dirty[bp.bio1.offset] = bp
        owner.pin()
        if first and self.marks is not None and not owner.dead:
            self.marks.setobjdirty(owner.vp)
        self.bd_heatup()

    def bundirty(self, bp: CacheBuf) -> None:
        """A buffer need not be written. Counterpart: bundirty."""
        bp.flags &= ~B.DEFERRED
        if not bp.flags & B.DELWRI:
            return
        owner = bp.owner
        assert owner is not None
        bp.flags = (bp.flags | B.VNCLEAN) & ~(B.DELWRI | B.VNDIRTY)
        self._count_dirty(bp, -1)
        del owner.dirty[bp.bio1.offset]
        if not owner.dirty and self.marks is not None and not owner.dead:
            self.marks.clrobjdirty(owner.vp)
        owner.unpin()
        self.bd_signal()

    def _count_dirty(self, bp: CacheBuf, sign: int) -> None:
        """Account for a buffer that became dirty (1) or clean (-1)."""
        self.reassignbufcalls += 1
        self.dirtybufcount += sign
        self.dirtykvaspace += sign * bp.kvasize
        self.dirtybufspace += sign * bp.bufsize
        if bp.flags & B.HEAVY:
            self.dirtybufcounthw += sign
            self.dirtybufspacehw += sign * bp.bufsize

    def bheavy(self, bp: CacheBuf) -> None:
        """Writing this buffer needs further buffers. Counterpart: bheavy."""
        if not bp.flags & B.HEAVY:
            bp.flags |= B.HEAVY
            if bp.flags & B.DELWRI:
                self.dirtybufcounthw += 1
                self.dirtybufspacehw += bp.bufsize

    def failedbufspace(self) -> int:
        """Bytes of dirty buffers whose last write failed, counted now."""
        return sum(
            bp.kvasize
            for queue in (BQueue.DIRTY, BQueue.DIRTY_HW)
            for bp in self.queues[queue]
            if bp.flags & B.ERROR
        )

    # --- giving back -------------------------------------------------------------------------

    def brelse(self, bp: CacheBuf) -> None:
        """Give a held buffer back; what is INVAL, RELBUF, NOCACHE or failed is taken apart.

        A dirty one is only taken apart with INVAL. Counterpart: brelse.
        """
        flags = bp.flags
        KKASSERT(bp.qindex is BQueue.NONE and bp.holder is not None, "brelse: not held")
        if flags & (B.NOCACHE | B.DELWRI) == B.NOCACHE | B.DELWRI:
            self.bundirty(bp)
        if bp.flags & (B.INVAL | B.DELWRI) != B.DELWRI and bp.flags & (
            B.NOCACHE | B.INVAL | B.ERROR
        ):
            bp.flags |= B.INVAL
            self.bundirty(bp)
            bp.flags &= ~(B.CACHE | B.LOCKED)
            if bp.flags & (B.NOCACHE | B.ERROR):
                set_invalid(self.pages, bp.extents, skip_valid=bool(bp.flags & B.HASBOGUS))
        if bp.flags & (B.DELWRI | B.LOCKED) or bp.refs:
            bp.flags &= ~B.RELBUF
        elif self.pages.v_free_count < self.pages.v_free_reserved:
            bp.flags |= B.RELBUF
        if bp.flags & (B.INVAL | B.RELBUF):
            self._destroy(bp)
            self.bufspacewakeup()
            return
        self._requeue(bp)

    def bqrelse(self, bp: CacheBuf) -> None:
        """Give a held buffer back that will be wanted again. Counterpart: bqrelse."""
        flags = bp.flags
        KKASSERT(bp.qindex is BQueue.NONE and bp.holder is not None, "bqrelse: not held")
        if bp.act_count < ACT_MAX:
            bp.act_count += ACT_ADVANCE
        if flags & B.INVAL or (
            self.pages.v_free_count < self.pages.v_free_reserved
            and not flags & (B.LOCKED | B.DELWRI)
        ):
            self.brelse(bp)
            return
        self._requeue(bp)

    def _requeue(self, bp: CacheBuf) -> None:
        """Put a buffer that keeps its data at the end of its queue and let go of it."""
        flags = bp.flags
        if flags & B.LOCKED:
            queue = BQueue.LOCKED
        elif flags & B.DELWRI:
            queue = BQueue.DIRTY_HW if flags & B.HEAVY else BQueue.DIRTY
        else:
            queue = BQueue.CLEAN
        bp.qindex = queue
        self.queues.queues[queue][bp] = None
        bp.flags = flags & ~(B.NOCACHE | B.RELBUF | B.DIRECT)
        bp.holder = None
        if bp.wanted:
            bp.wanted = False
            wakeup(bp)
        if self.needsbuffer and queue is BQueue.CLEAN:
            self.bufspacewakeup()

    def bqhold(self, bp: CacheBuf) -> None:
        """Keep a held buffer from being reused after it is given back. Counterpart: bqhold."""
        KKASSERT(bp.holder is not None, "bqhold: not held")
        bp.refs += 1

    def bqdrop(self, bp: CacheBuf) -> None:
        """Undo `bqhold`. Counterpart: bqdrop."""
        KKASSERT(bp.refs > 0, "bqdrop: no reference")
        bp.refs -= 1

    def kernproc(self, bp: CacheBuf) -> None:
        """Hand a held buffer to its transfer. Counterpart: BUF_KERNPROC."""
        KKASSERT(bp.holder is not None and bp.qindex is BQueue.NONE, "I/O on a buffer not held")
        bp.holder = Holder.KERNPROC

    # --- short of memory ---------------------------------------------------------------------

    def shortage(self, want: int) -> None:
        """Physical memory is short: give cached pages back, clean buffers if need be.

        Called by `VmPages`; frees a little more than wanted, so that it is not called each time.
        """
        self.lowmempgallocs += 1
        if not any(owner.object.resident_page_count for owner in self.owners):
            return
        want = max(want, self.pages.v_free_target - self.pages.v_free_count)
        got = self.scan.scan(want)
        while got < want and self._reuse_some():
            more = self.scan.scan(want - got)
            if not more:
                break
            got += more

    def _reuse_some(self) -> bool:
        """Empty up to 64 clean buffers; False if there are none."""
        return sum(1 for _ in range(64) if self._reuse_one()) > 0
