"""Reading and writing buffers: the ways a block takes to and from the disk.

A read that finds its block in memory answers at once. If not, the transfer is started; a disk that
answers in place has it done when `bread` looks again, otherwise the caller is told `Block` and asks
again when the data are there. If the read failed the wait itself ends with the errno, so each of
those who waited hears of it, and nothing of the block stays in memory.

Writes come in three kinds: `bdwrite` only notes that the block must be written some time, `bawrite`
starts the write and returns, `bwrite` waits. A write that fails leaves the buffer dirty, with
B.ERROR: the data stay, and are tried again (see bufdaemon).

While a buffer is in flight its pages are soft-busy, its VM object and its vnode are kept, and the
transfer is counted: by the vnode (``track_read``, ``track_write``) and, for writes, in
``runningbufspace``.

Counterpart: bread, breadn, bwrite, bawrite, bdwrite, vn_strategy, bpdone, vfs_busy_pages,
    vfs_unbusy_pages (kern/vfs_bio.c).
Differs from DragonFly: only `bwrite` sleeps. An asynchronous read is given back by its completion,
    and whoever wants it gets it anew. A transfer that ends short is an error here.
Token/lock order: takes none. Completions run as interrupts.
Invariants: a buffer in flight is held by `Holder.KERNPROC`, or by a thread inside `bwrite`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Final

from dfuser.dev.disk.bio import (
    BIO,
    NOOFFSET,
    Bio,
    BufCmd,
    bio_start_transaction,
    biodone_sync,
    biowait,
)
from dfuser.dev.disk.device import fail_bio
from dfuser.libkern.errno import EIO, KKASSERT, KError
from dfuser.libkern.param import PINTERLOCKED
from dfuser.libkern.sysctl import LONG, Sysctl
from dfuser.lwkt.block import Block
from dfuser.lwkt.synch import tsleep, tsleep_interlock, wakeup

from .bufpages import any_valid, set_validclean
from .bufpool import BufPool
from .bufqueue import B, CacheBuf, ReadWait, VnodeBufs

if TYPE_CHECKING:
    from .vnode import Vnode

#: What of it can be seen and set; `bio.BufCache` declares it.
IO_SYSCTLS: Final = (
    Sysctl("vfs.bufreads", "Reads of buffers started", attr="reads", kind=LONG),
    Sysctl("vfs.bufwrites", "Writes of buffers started", attr="writes", kind=LONG),
    Sysctl("vfs.bufrderrors", "Reads that failed", attr="read_errors", kind=LONG),
    Sysctl("vfs.bufwrerrors", "Writes that failed; the data stay dirty",
           attr="write_errors", kind=LONG),
    Sysctl("vfs.readahead_hits", "Blocks read ahead that were asked for afterwards",
           attr="ahead_hits", kind=LONG),
)  # fmt: skip


class BufIo(BufPool):
    """Transfers of single buffers."""

    reads = writes = read_errors = write_errors = ahead_hits = 0

    # --- reading -----------------------------------------------------------------------------

    def bread(self, vp: Vnode, loffset: int, size: int) -> CacheBuf:
        """The buffer of a block with its data, held.

        Raises:
            Block: it must be waited for; the wait ends with the errno of a read that failed.
            KError: the read failed; or as `getblk`.

        Counterpart: bread.
        """
        bp = self.getblk(vp, loffset, size)
        if bp.flags & B.CACHE:
            if bp.ahead:
                bp.ahead = False
                self.ahead_hits += 1
            return bp
        return self.read_now(bp)

    def read_now(self, bp: CacheBuf) -> CacheBuf:
        """Read a held buffer: the buffer anew where the disk answers in place, else `Block`."""
        vp, loffset, size = bp.vp, bp.loffset, bp.bufsize
        wait = bp.read_wait = ReadWait()
        self.start_read(bp)
        return self.read_result(wait, vp, loffset, size)

    def read_result(self, wait: ReadWait, vp: Vnode, loffset: int, size: int) -> CacheBuf:
        """What a read that was started has come to."""
        if not wait.done:
            raise Block(partial(_until_read, wait), "biord")
        if wait.error:
            raise KError(wait.error)
        return self.bread(vp, loffset, size)

    def breadn(
        self, vp: Vnode, loffset: int, size: int, ahead: Iterable[tuple[int, int]]
    ) -> CacheBuf:
        """`bread`, with further blocks (offset, size) started too. Counterpart: breadn."""
        bp = self.getblk(vp, loffset, size)
        cached = bool(bp.flags & B.CACHE)
        wait = ReadWait()
        if not cached:
            bp.read_wait = wait
            self.start_read(bp)
        for raoffset, rasize in ahead:
            if not self.inmem(vp, raoffset, rasize):
                rabp = self.getblk_nowait(vp, raoffset, rasize)
                if rabp is not None:
                    self.start_read(rabp, ahead=True)
        if not cached:
            return self.read_result(wait, vp, loffset, size)
        if bp.ahead:
            bp.ahead = False
            self.ahead_hits += 1
        return bp

    def start_read(self, bp: CacheBuf, ahead: bool = False) -> None:
        """Start reading a held buffer; its completion gives it back."""
        bp.ahead = ahead
        self.begin(bp, BufCmd.READ)
        self.kernproc(bp)
        self.vn_strategy(bp.vp, bp.bio1)

    # --- writing -----------------------------------------------------------------------------

    async def bwrite(self, bp: CacheBuf) -> int:
        """Write a held buffer, wait, give it back. On an LWKT thread.

        Returns:
            0 or the errno; the data stay dirty then.

        Counterpart: bwrite.
        """
        if bp.flags & B.INVAL:
            self.brelse(bp)
            return 0
        bio = bp.bio1
        bio.done = biodone_sync
        bio.flags = bio.flags & ~BIO.DONE | BIO.SYNC
        owner = bp.owner
        assert owner is not None
        owner.object.ref()
        owner.pin()
        self.begin_write(bp)
        self.vn_strategy(owner.vp, bio)
        error = await biowait(bio, "biows")
        self.brelse(bp)
        self._landed(owner)
        return error

    def bawrite(self, bp: CacheBuf) -> None:
        """Start writing a held buffer; its completion gives it back. Counterpart: bawrite."""
        if bp.flags & B.INVAL:
            self.brelse(bp)
            return
        self.begin_write(bp)
        self.kernproc(bp)
        self.vn_strategy(bp.vp, bp.bio1)

    def bdwrite(self, bp: CacheBuf) -> None:
        """Note that a held buffer must be written some time, and give it back.

        All its bytes mean something now. Counterpart: bdwrite.
        """
        if bp.flags & B.INVAL:
            self.brelse(bp)
            return
        if not bp.flags & B.DELWRI:
            self.bdirty(bp)
        bp.flags |= B.CACHE
        if bp.bio2.offset == NOOFFSET:
            self.bmap(bp)
        set_validclean(self.pages, bp.extents)
        self.bqrelse(bp)

    def bmap(self, bp: CacheBuf) -> int:
        """Where a buffer is on the device, if the file system can say so now.

        Returns:
            Bytes from its start on that lie together there; 0 if that is not known.

        Counterpart: VOP_BMAP, with its answer kept in b_bio2.
        """
        try:
            doffset, after, _before = bp.vp.ops.use.vop_bmap(bp.vp, bp.loffset)
        except (KError, Block):
            return 0
        if doffset == NOOFFSET:
            return 0
        bp.bio2.offset = doffset
        return after

    def begin_write(self, bp: CacheBuf, counted: bool = True) -> None:
        """`begin` for a write; ``counted`` as in flight by itself, not by its cluster."""
        bp.flags |= B.CACHE
        set_validclean(self.pages, bp.extents)
        self.begin(bp, BufCmd.WRITE)
        if counted:
            bp.running = bp.bufsize
            self.bsetrunningbufspace(bp.bufsize)

    # --- transfers ---------------------------------------------------------------------------

    def begin(self, bp: CacheBuf, cmd: BufCmd) -> None:
        """A held buffer goes on its way: busy its pages, keep what it lies on.

        Counterpart: vfs_busy_pages.
        """
        owner = bp.owner
        assert owner is not None
        KKASSERT(bp.cmd is BufCmd.DONE, "a buffer in flight is started again")
        bp.cmd = cmd
        bp.error = bp.resid = 0
        bp.flags &= ~(B.ERROR | B.EINTR | B.INVAL | B.HASBOGUS)
        if cmd is BufCmd.READ:
            self.reads += 1
            if any_valid(self.pages, bp.extents):
                bp.flags |= B.HASBOGUS
        else:
            self.writes += 1
        owner.object.ref()
        owner.pin()
        for frames in bp.frames():
            for frame in frames:
                KKASSERT(self.pages.sbusy_try(frame), "a page of a buffer is hard-busy")

    def vn_strategy(self, vp: Vnode, bio: Bio) -> None:
        """Hand a transfer to the file system, counted by the vnode. Counterpart: vn_strategy."""
        owner = self.vnode_bufs(vp)
        reads = bio.buf.cmd is BufCmd.READ
        bio_start_transaction(bio, owner.track_read if reads else owner.track_write)
        try:
            vp.ops.use.vop_strategy(vp, bio)
        except KError as error:
            fail_bio(bio, error.errno or EIO)

    def buf_done(self, bp: CacheBuf, elseit: bool) -> None:
        """A transfer of a buffer is over; ``elseit``: the buffer is to be given back.

        Counterpart: bpdone.
        """
        cmd, bp.cmd = bp.cmd, BufCmd.DONE
        owner = bp.owner
        assert owner is not None
        if bp.resid and not bp.flags & B.ERROR:
            bp.error = EIO
            bp.flags |= B.ERROR
        for frames in bp.frames():
            for frame in frames:
                self.pages.sbusy_drop(frame)
        if cmd is BufCmd.WRITE:
            self._write_done(bp)
        elif cmd is BufCmd.READ:
            self._read_done(bp)
        if elseit:
            if bp.flags & (B.NOCACHE | B.INVAL | B.ERROR | B.RELBUF):
                self.brelse(bp)
            else:
                self.bqrelse(bp)
        self._landed(owner)

    def _landed(self, owner: VnodeBufs) -> None:
        """Nothing of the transfer needs the vnode or its pages any longer."""
        obj = owner.object
        owner.unpin()
        obj.drop()
        if owner.dead and not owner.pins:
            self.owners.pop(owner, None)

    def _write_done(self, bp: CacheBuf) -> None:
        if bp.flags & (B.ERROR | B.INVAL) == B.ERROR:
            self.write_errors += 1
            bp.flags &= ~(B.NOCACHE | B.RELBUF)
            bp.retry_ns = self.clock.monotonic_ns()
            self.bdirty(bp)
        else:
            self.bundirty(bp)

    def _read_done(self, bp: CacheBuf) -> None:
        if bp.flags & (B.ERROR | B.INVAL | B.NOCACHE):
            self.read_errors += bool(bp.flags & B.ERROR)
        else:
            set_validclean(self.pages, bp.extents, skip_valid=bool(bp.flags & B.HASBOGUS))
            bp.flags = (bp.flags | B.CACHE) & ~B.HASBOGUS
        wait, bp.read_wait = bp.read_wait, None
        if wait is not None:
            wait.done = True
            wait.error = bp.outcome
            wakeup(wait)


async def _until_read(wait: ReadWait) -> int:
    """Wait for a read; its errno ends the wait of the edge."""
    while not wait.done:
        tsleep_interlock(wait)
        await tsleep(wait, PINTERLOCKED, "biord")
    return wait.error
