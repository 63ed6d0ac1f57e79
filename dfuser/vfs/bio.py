"""The buffer cache of a kernel: blocks of vnodes in memory, on their way to and from the disk.

::

    BufSpace   bufspace.py    limits, and the lines in front of them
      BufPool    bufpool.py     getblk, brelse; dirty and clean; pages
        BufIo      bufio.py       bread, bwrite, bdwrite; completions
          ClusterIo  cluster.py     neighbours together, reading ahead
            VnodeSync  bufsync.py     fsync, truncate, reclaim
              BufDaemon  bufdaemon.py   bufdaemon, bufdaemon_hw
                BufCache   here           all of it, with figures and a check

A block's way: `getblk` or `bread` gives its buffer, held. The file system reads or changes the data
(`CacheBuf.read`, `CacheBuf.write`), and gives it back: `bqrelse` if nothing changed, `bdwrite` if
it did. The syncer, an fsync or a daemon writes it some time; `vop_strategy` of the file system is
handed the transfer, says where on the device it goes (`push_bio`) and passes it on to
`dev_dstrategy`. The completion is an interrupt.

What a file system must keep to:

- `vop_strategy` never waits and never raises Block; each bio is ended by `biodone` once.
- `bwillwrite` is called before a write changes anything.
- A core that is told `Block` gives back every buffer it holds first.
- `vop_reclaim` calls `reclaim`.

Counterpart: kern/vfs_bio.c.
Token/lock order: takes none; see the parts.
Invariants: `check` recomputes every figure from the buffers themselves.
"""

from __future__ import annotations

from typing import NamedTuple

from dfuser.dev.disk.bio import BufCmd
from dfuser.libkern.ddbcmd import ddb_show
from dfuser.libkern.errno import KKASSERT

from .bufdaemon import DAEMON_SYSCTLS, BufDaemon
from .bufio import IO_SYSCTLS
from .bufpool import POOL_SYSCTLS
from .bufqueue import B, BQueue, CacheBuf
from .bufspace import SPACE_SYSCTLS
from .cluster import CLUSTER_SYSCTLS

__all__ = ["B", "BufCache", "BufStatistics", "CacheBuf"]


class BufStatistics(NamedTuple):
    """The figures of the buffer cache; from ``hits`` on they count since boot."""

    headers: int
    locked: int
    clean: int
    dirty: int
    dirty_hw: int
    empty: int
    bufspace: int
    dirtybufspace: int
    dirtybufspacehw: int
    dirtybufcount: int
    runningbufspace: int
    runningbufcount: int
    waiting: int
    hits: int
    misses: int
    reuses: int
    reads: int
    writes: int
    read_errors: int
    write_errors: int
    stalls: int
    clusters: int
    clustered: int
    readaheads: int
    ahead_hits: int
    daemon_writes: int
    retries: int


class BufCache(BufDaemon):
    """The buffer cache. Counterpart: the globals of kern/vfs_bio.c."""

    sysctls = (
        *SPACE_SYSCTLS, *POOL_SYSCTLS, *IO_SYSCTLS, *CLUSTER_SYSCTLS, *DAEMON_SYSCTLS,
    )  # fmt: skip

    def statistics(self) -> BufStatistics:
        """The figures of this moment."""
        queues = self.queues
        return BufStatistics(
            self.headers, len(queues[BQueue.LOCKED]), len(queues[BQueue.CLEAN]),
            len(queues[BQueue.DIRTY]), len(queues[BQueue.DIRTY_HW]), len(queues[BQueue.EMPTY]),
            self.bufspace, self.dirtybufspace, self.dirtybufspacehw, self.dirtybufcount,
            self.runningbufspace, self.runningbufcount, self.waiting, self.hits, self.misses,
            self.reuses, self.reads, self.writes, self.read_errors, self.write_errors, self.stalls,
            self.clusters, self.clustered, self.readaheads, self.ahead_hits, self.daemon_writes,
            self.retries,
        )  # fmt: skip

    @ddb_show("bufs")
    def show_bufs(self) -> list[str]:
        """Queues, space and transfers of the buffer cache."""
        s = self.statistics()
        return [
            f"headers {s.headers} of {self.nbuf}: locked {s.locked} clean {s.clean}"
            f" dirty {s.dirty} heavy {s.dirty_hw} empty {s.empty}",
            f"bufspace {s.bufspace} of {self.lobufspace}-{self.hibufspace}-{self.maxbufspace}",
            f"dirty {s.dirtybufspace} of {self.lodirtybufspace}-{self.hidirtybufspace},"
            f" {s.waiting} writers wait",
            f"running {s.runningbufspace} of {self.lorunningspace}-{self.hirunningspace}"
            f" in {s.runningbufcount}",
        ]

    def check(self) -> None:
        """Recompute every figure from the queues and the vnodes.

        Raises:
            Panic: a figure or a state is wrong.
        """
        queued = [bp for queue in BQueue for bp in self.queues[queue]]
        bufs = [bp for owner in self.owners for bp in owner.hash.values()]
        held = [bp for bp in bufs if bp.holder is not None]
        for queue in BQueue:
            for bp in self.queues[queue]:
                KKASSERT(bp.qindex is queue and bp.holder is None, f"{bp!r} is on {queue.name}")
        KKASSERT(len(queued) + len(held) == self.headers, "headers are lost")
        self._check_sums(bufs)
        for owner in self.owners:
            dirty = {bp.loffset: bp for bp in owner.hash.values() if bp.flags & B.DELWRI}
            KKASSERT(dirty == owner.dirty, f"{owner.vp!r}: dirty buffers")
            flying = sum(bp.cmd is not BufCmd.DONE for bp in owner.hash.values())
            KKASSERT(owner.pins >= len(dirty) + flying, f"{owner.vp!r}: pins")
            for offset, bp in owner.hash.items():
                KKASSERT(bp.loffset == offset and bp.owner is owner, f"{bp!r} at {offset}")
                self._check_pages(bp)

    def _check_sums(self, bufs: list[CacheBuf]) -> None:
        dirty = [bp for bp in bufs if bp.flags & B.DELWRI]
        heavy = [bp for bp in dirty if bp.flags & B.HEAVY]
        writing = [bp for bp in bufs if bp.cmd is BufCmd.WRITE]
        for what, kept, counted in (
            ("bufspace", self.bufspace, sum(bp.bufsize for bp in bufs)),
            ("dirtybufspace", self.dirtybufspace, sum(bp.bufsize for bp in dirty)),
            ("dirtykvaspace", self.dirtykvaspace, sum(bp.kvasize for bp in dirty)),
            ("dirtybufcount", self.dirtybufcount, len(dirty)),
            ("dirtybufspacehw", self.dirtybufspacehw, sum(bp.bufsize for bp in heavy)),
            ("dirtybufcounthw", self.dirtybufcounthw, len(heavy)),
            ("runningbufspace", self.runningbufspace, sum(bp.bufsize for bp in writing)),
        ):
            KKASSERT(kept == counted, f"vfs.{what} is {kept}, counted {counted}")

    def _check_pages(self, bp: CacheBuf) -> None:
        """A buffer's data are the pages of its vnode's object, wired."""
        assert bp.owner is not None
        pindex = bp.loffset >> 12
        for frames in bp.frames():
            for frame in frames:
                KKASSERT(bp.owner.object.vm_page_lookup(pindex) == frame, f"{bp!r}: page {pindex}")
                KKASSERT(self.pages.wire_count(frame) > 0, f"{bp!r}: page {pindex} is not wired")
                pindex += 1

    def close(self) -> None:
        """Break what refers in circles, after the last unmount; the cache is of no use then."""
        if self.shortage in self.pages.shortage:
            self.pages.shortage.remove(self.shortage)
        for bp in self.queues[BQueue.EMPTY]:
            bp.dispose()
        self.queues[BQueue.EMPTY].clear()
