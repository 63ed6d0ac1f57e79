"""Clusters: neighbouring blocks that travel together, and reading ahead.

**Writing.** Who writes a dirty buffer (`cluster_awrite`) takes along the dirty ones beside it, if
the file system says that they may be joined (B.CLUSTEROK) and that they lie together on the device.
They become one transfer of up to MAXPHYS bytes (`ClusterBuf`) whose memory is theirs, in pieces.
A file system that writes a file from start to end calls `cluster_write` instead of `bdwrite`: as
soon as a cluster is full it is written, so that a large file does not fill the cache with dirty
buffers.

**Reading.** `cluster_read` is told how much of the file is likely to be read next (`Sequential`
keeps count of that). It reads the block together with its neighbours on the device, goes on
reading ahead, and leaves a mark (B.RAM) half-way: who reads the marked block starts the next piece
before the first is used up. Nobody waits for what is read ahead.

Counterpart: cluster_readx, cluster_rbuild, cluster_write, cluster_awrite, cluster_wbuild
    (kern/vfs_cluster.c); vfs_bio_awrite (its older name); sequential_heuristic (kern/vfs_vnops.c).
Differs from DragonFly: no pool of cluster buffers: ``runningbufspace`` and the buffers themselves
    bound their number; no reallocation of clusters (VOP_REALLOCBLKS).
Token/lock order: takes none; nothing here suspends.
Invariants: the children of a cluster in flight are held by it; each is given back once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfuser.dev.disk.bio import NOOFFSET, Buf, BufCmd
from dfuser.libkern.param import MAXBSIZE, MAXPHYS
from dfuser.libkern.sysctl import INT, LONG, RW, Sysctl

from .bufio import BufIo
from .bufqueue import B, CacheBuf, ReadWait, VnodeBufs

if TYPE_CHECKING:
    from .vnode import Vnode

#: Most that is read ahead, whatever the sysctl says.
READAHEAD_MAX: Final = 16 << 20
#: Largest sequential count. Counterpart: IO_SEQMAX (sys/file.h).
SEQMAX: Final = 127
#: Growth of the sequential count is in blocks of this size. Counterpart: MAXBSIZE there.
_SEQBLOCK: Final = MAXBSIZE


class Sequential:
    """How sequentially a file is read through one open. Counterpart: sequential_heuristic.

    Attributes:
        nextoff: where the last read ended.
        count: blocks of 64 KiB in sequence, up to 127.
    """

    __slots__ = ("count", "nextoff")

    def __init__(self) -> None:
        self.nextoff = 0
        self.count = 0

    def note(self, offset: int, size: int) -> int:
        """A read of ``size`` bytes at ``offset``; returns the bytes likely to be wanted next."""
        if offset == self.nextoff or (not offset and not self.count):
            self.count = min(SEQMAX, self.count + max(1, (size + _SEQBLOCK - 1) // _SEQBLOCK))
        else:
            self.count = 1 if self.count > 1 else 0
        self.nextoff = offset + size
        return self.count * _SEQBLOCK


class ClusterBuf(Buf):
    """Several buffers in one transfer. Counterpart: a pbuf with B_CLUSTER, struct cluster_save."""

    __slots__ = ("cache", "children", "running")

    def __init__(self, cache: ClusterIo, children: list[CacheBuf], cmd: BufCmd) -> None:
        super().__init__(None, sum(bp.bufsize for bp in children))
        self.cache = cache
        self.children = children
        self.running = 0
        self.cmd = cmd
        self.flags = B.CLUSTER | B.BNOCLIP

    def buffers(self) -> list[memoryview]:
        """The memory of all children, in order."""
        return [piece for bp in self.children for piece in bp.buffers()]

    def runningbufwakeup(self) -> None:
        """The transfer is over."""
        if self.running:
            size, self.running = self.running, 0
            self.cache.running_done(size)

    def bpdone(self, elseit: bool) -> None:
        """Each child is done, with the outcome of the whole. Counterpart: cluster_callback."""
        children, self.children = self.children, []
        if self.resid and not self.flags & B.ERROR:
            self.fail(0)
        for bp in children:
            if self.flags & B.ERROR:
                bp.fail(self.outcome)
            self.cache.buf_done(bp, True)
        self.dispose()


#: What of it can be seen and set; `bio.BufCache` declares it.
CLUSTER_SYSCTLS: Final = (
    Sysctl("vfs.write_behind", "Cluster write-behind setting: 0 none, 1 full ones, 2 always",
           attr="write_behind", kind=INT, flags=RW, minimum=0, maximum=2),
    Sysctl("vfs.write_behind_minfilesize", "Files below this size are not written behind",
           attr="write_behind_minfilesize", kind=LONG, flags=RW, minimum=0),
    Sysctl("vfs.max_readahead", "Limit in bytes for desired cluster read-ahead",
           attr="max_readahead", kind=INT, flags=RW, minimum=0, maximum=READAHEAD_MAX),
    Sysctl("vfs.clusters", "Transfers of several buffers", attr="clusters", kind=LONG),
    Sysctl("vfs.clustered", "Buffers that travelled in them", attr="clustered", kind=LONG),
)  # fmt: skip


class ClusterIo(BufIo):
    """Transfers of several buffers."""

    write_behind = 1
    write_behind_minfilesize = 10 << 20
    max_readahead = 2 << 20
    clusters = clustered = readaheads = 0

    # --- writing -----------------------------------------------------------------------------

    def cluster_awrite(self, bp: CacheBuf) -> int:
        """Start writing a held buffer with the dirty ones beside it; returns the bytes started.

        Counterpart: cluster_awrite, vfs_bio_awrite.
        """
        size = bp.bufsize
        if not bp.flags & B.CLUSTEROK or bp.flags & B.INVAL or not bp.flags & B.DELWRI:
            self.bawrite(bp)
            return size
        if bp.bio2.offset == NOOFFSET:
            self.bmap(bp)
        children = [bp] if bp.bio2.offset == NOOFFSET else self._gather(bp)
        if len(children) == 1:
            self.bawrite(bp)
            return size
        for child in children:
            if child is not bp:
                self._hold(child)
            self.begin_write(child, counted=False)
        return self._send(children, BufCmd.WRITE)

    vfs_bio_awrite = cluster_awrite

    def _gather(self, bp: CacheBuf) -> list[CacheBuf]:
        """A dirty buffer with those on both sides that may travel with it, in order."""
        owner = bp.owner
        assert owner is not None
        size = bp.bufsize
        room = MAXPHYS // size - 1
        before: list[CacheBuf] = []
        after: list[CacheBuf] = []
        for side, sign in ((before, -1), (after, 1)):
            while len(before) + len(after) < room:
                step = sign * (len(side) + 1) * size
                beside = owner.dirty.get(bp.loffset + step)
                if beside is None or not self._joins(beside, bp, step):
                    break
                side.append(beside)
        return [*reversed(before), bp, *after]

    def _joins(self, beside: CacheBuf, bp: CacheBuf, step: int) -> bool:
        """Whether a buffer may travel with another that lies ``step`` bytes before it."""
        if beside.holder is not None or beside.bufsize != bp.bufsize or beside.flags & B.ERROR:
            return False
        if (beside.flags ^ bp.flags) & B.HEAVY or not beside.flags & B.CLUSTEROK:
            return False
        if beside.flags & (B.INVAL | B.LOCKED | B.NEEDCOMMIT):
            return False
        if beside.bio2.offset == NOOFFSET:
            self.bmap(beside)
        return beside.bio2.offset == bp.bio2.offset + step

    def _send(self, children: list[CacheBuf], cmd: BufCmd) -> int:
        """One transfer for buffers that have begun theirs."""
        cluster = ClusterBuf(self, children, cmd)
        size = cluster.bcount
        for bp in children:
            self.kernproc(bp)
        if cmd is BufCmd.WRITE:
            cluster.running = size
            self.bsetrunningbufspace(size)
        self.clusters += 1
        self.clustered += len(children)
        cluster.bio1.offset = children[0].loffset
        cluster.bio2.offset = children[0].bio2.offset
        self.vn_strategy(children[0].vp, cluster.bio1)
        return size

    def cluster_write(self, bp: CacheBuf, filesize: int, seqbytes: int) -> None:
        """`bdwrite` for a file that is written in order: full clusters are started at once.

        Args:
            bp: a held buffer with new data.
            filesize: of the file now.
            seqbytes: 0 if the file is not written in order.

        Counterpart: cluster_write.
        """
        owner = bp.owner
        assert owner is not None
        loffset, size = bp.loffset, bp.bufsize
        bp.flags |= B.CLUSTEROK
        behind = self.write_behind == 2 or (
            self.write_behind == 1 and seqbytes and filesize >= self.write_behind_minfilesize
        )
        in_order = bool(owner.cbytes) and loffset == owner.lastw + size
        if behind and owner.cbytes and not in_order and loffset != owner.lastw:
            self._push(owner, size)
        if not in_order and loffset != owner.lastw:
            owner.cstart, owner.cbytes = loffset, 0
        self.bdwrite(bp)
        owner.lastw = loffset
        owner.cbytes = loffset + size - owner.cstart
        if owner.cbytes >= MAXPHYS:
            if behind:
                self._push(owner, size)
            owner.cstart, owner.cbytes = loffset + size, 0

    def _push(self, owner: VnodeBufs, size: int) -> None:
        """Start writing what is dirty of the cluster under construction."""
        for offset in range(owner.cstart, owner.cstart + owner.cbytes, size):
            bp = owner.dirty.get(offset)
            if bp is not None and bp.holder is None and not bp.flags & (B.LOCKED | B.ERROR):
                self.cluster_awrite(self._hold(bp))

    # --- reading -----------------------------------------------------------------------------

    def cluster_read(
        self, vp: Vnode, filesize: int, loffset: int, size: int, minreq: int, maxreq: int
    ) -> CacheBuf:
        """`bread`, reading on beyond the block as far as is likely to be wanted.

        Args:
            vp: whose block.
            filesize: nothing beyond is read ahead.
            loffset: where the block begins.
            size: of each block.
            minreq: bytes that certainly will be wanted.
            maxreq: bytes that probably will be wanted.

        Raises:
            Block, KError: as `bread`.

        Counterpart: cluster_read.
        """
        bp = self.getblk(vp, loffset, size)
        maxreq = min(max(maxreq, minreq), self.max_readahead)
        maxra = max(0, min(max(maxreq, size), filesize - loffset)) // size
        if bp.flags & B.CACHE:
            if bp.ahead:
                bp.ahead = False
                self.ahead_hits += 1
            if maxra > 1 and bp.flags & B.RAM:
                bp.flags &= ~B.RAM
                self._continue(vp, filesize, loffset, size, maxra)
            return bp
        wait = bp.read_wait = ReadWait()
        mark = (maxra + 1) // 2
        sent = self._read_run(bp, vp, loffset, size, max(1, maxra), mark, False)
        self._read_ahead(vp, loffset + sent * size, size, maxra - sent, mark - sent)
        return self.read_result(wait, vp, loffset, size)

    def _continue(self, vp: Vnode, filesize: int, loffset: int, size: int, maxra: int) -> None:
        """A marked block was asked for: read on where the last piece ended."""
        ahead = 1
        while ahead < maxra and self.findblk(vp, loffset + ahead * size) is not None:
            ahead += 1
        if ahead < maxra:
            start = loffset + ahead * size
            maxra = min(maxra, max(0, filesize - start) // size)
            self._read_ahead(vp, start, size, maxra, 1)

    def _read_ahead(self, vp: Vnode, loffset: int, size: int, count: int, mark: int) -> None:
        """Start reading so many blocks; the ``mark``-th (from 1) gets the mark."""
        while count > 0:
            bp = self.getblk_nowait(vp, loffset, size)
            if bp is None:
                return
            if bp.flags & B.CACHE:
                self.bqrelse(bp)
                return
            sent = self._read_run(bp, vp, loffset, size, count, mark, True)
            self.readaheads += sent
            loffset += sent * size
            count -= sent
            mark -= sent

    def _read_run(
        self, bp: CacheBuf, vp: Vnode, loffset: int, size: int, count: int, mark: int, ahead: bool
    ) -> int:
        """Start one transfer for a held buffer and those after it that lie together on the device.

        Returns:
            How many blocks it has. Counterpart: cluster_rbuild.
        """
        together = min(self.bmap(bp), MAXPHYS) // size if count > 1 else 1
        children = [bp]
        while len(children) < min(together, count):
            offset = loffset + len(children) * size
            beside = self.getblk_nowait(vp, offset, size)
            if beside is None:
                break
            if beside.flags & B.CACHE:
                self.bqrelse(beside)
                break
            beside.bio2.offset = bp.bio2.offset + len(children) * size
            children.append(beside)
        for number, child in enumerate(children):
            child.ahead = ahead or number > 0
            if number + 1 == mark:
                child.flags |= B.RAM
        if len(children) == 1:
            self.start_read(bp, ahead)
            return 1
        for child in children:
            self.begin(child, BufCmd.READ)
        self._send(children, BufCmd.READ)
        return len(children)
