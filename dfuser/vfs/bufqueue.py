"""Buffers as the cache sees them, and the queues they wait in.

A buffer (`CacheBuf`) is a block of a vnode: it begins at ``loffset``, has ``bufsize`` bytes, and
its data are a window on pages of the vnode's VM object. It is either *held*, by the thread that got
it or by the transfer under way (`Holder.KERNPROC`), or it lies in one of the queues::

    EMPTY     headers without data
    CLEAN     what the disk has as well; the front goes first when space is wanted
    DIRTY     what must be written (B.DELWRI); the front is written first
    DIRTY_HW  the same, where writing needs further buffers (B.HEAVY); a daemon of its own
    LOCKED    what the file system keeps (B.LOCKED); neither written nor reused
    NONE      held by somebody

A buffer without B.AGE at the front of CLEAN goes round once more, with the flag set.

`VnodeBufs` is what a vnode knows of its buffers: all by offset, the dirty ones, and what is in
flight.

Counterpart: struct buf (sys/buf.h), bufqueues (kern/vfs_bio.c), v_rbhash_tree, v_rbdirty_tree,
    v_track_read, v_track_write (sys/vnode.h), cluster_cache (kern/vfs_cluster.c).
Differs from DragonFly: one set of queues, not one a CPU; dictionaries instead of trees (sorted
    where an order is wanted); a vnode has one cluster under construction, not four.
Token/lock order: takes none; nothing here suspends.
Invariants: a buffer on a queue is not held; one that is HASHED is in its owner's ``hash``, one with
    DELWRI in its ``dirty`` too.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any, Final, Protocol

from dfuser.dev.disk.bio import NOOFFSET, BioTrack, Buf
from dfuser.dev.disk.bio import B as DevB
from dfuser.libkern.errno import EINVAL, KError
from dfuser.libkern.param import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfuser.dev.devsw import Buffer
    from dfuser.hw.physmem import PhysMem

    from .bufpages import VnodeObject
    from .vnode import Vnode

#: Activity of a buffer, as of a page. Counterpart: ACT_* (vm/vm_page.h).
ACT_INIT: Final = 5
ACT_ADVANCE: Final = 3
ACT_MAX: Final = 64


class B(DevB):
    """Flags of a buffer, with those only the cache uses. Counterpart: B_* (sys/buf.h)."""

    RAM: Final = 0x1000_0000
    """Who reads this should start reading ahead."""
    VMIO: Final = 0x2000_0000
    CLUSTER: Final = 0x4000_0000
    VFSFLAG1: Final = 0x8000_0000
    """The file system's own."""


class BQueue(IntEnum):
    """Where a buffer lies. Counterpart: enum bufq_type (kern/vfs_bio.c)."""

    NONE = 0
    LOCKED = 1
    CLEAN = 2
    DIRTY = 3
    DIRTY_HW = 4
    EMPTY = 5


class Holder(Enum):
    """Who holds a buffer when it is no thread."""

    #: The transfer under way. Counterpart: LK_KERNTHREAD (BUF_KERNPROC).
    KERNPROC = 1
    #: Code outside of any thread.
    NOTHREAD = 2


class ReadWait:
    """What those who wait for a read look at: whether it is over, and how it ended."""

    __slots__ = ("done", "error")

    def __init__(self) -> None:
        self.done = False
        self.error = 0


class BufOwner(Protocol):
    """The cache, as its buffers see it."""

    @property
    def physmem(self) -> PhysMem:
        """The memory the windows are on."""

    def buf_done(self, bp: CacheBuf, elseit: bool) -> None:
        """A transfer of a buffer is over."""

    def running_done(self, size: int) -> None:
        """So many bytes are in flight no longer."""


class VnodeBufs:
    """The buffers of one vnode. Counterpart: the v_rb* and v_track_* members of struct vnode.

    Attributes:
        vp: the vnode.
        object: its pages.
        hash: buffers by offset. dirty: those with DELWRI, in the order they became dirty.
        track_read, track_write: transfers under way.
        pins: dirty buffers and transfers; while there are any the vnode is held.
        dead: the vnode has let go; what is still in flight goes when it lands.
        cstart, cbytes, lastw: the cluster being filled by sequential writes.
        synced: who has just waited for an fsync, see `bufsync`.
    """

    __slots__ = ("cbytes", "cstart", "dead", "dirty", "hash", "lastw", "object", "pins", "synced",
                 "track_read", "track_write", "vp")  # fmt: skip

    def __init__(self, vp: Vnode, obj: VnodeObject) -> None:
        self.vp = vp
        self.object = obj
        self.hash: dict[int, CacheBuf] = {}
        self.dirty: dict[int, CacheBuf] = {}
        self.track_read = BioTrack()
        self.track_write = BioTrack()
        self.pins = 0
        self.dead = False
        self.cstart = self.cbytes = 0
        self.lastw = NOOFFSET
        self.synced: tuple[object, int] = (None, 0)

    def pin(self) -> None:
        """Keep the vnode: something of it must still reach the disk, or is on its way."""
        if not self.pins:
            self.vp.hold()
        self.pins += 1

    def unpin(self) -> None:
        """Undo `pin`."""
        self.pins -= 1
        if not self.pins:
            self.vp.drop()

    def in_order(self) -> list[CacheBuf]:
        """The dirty buffers by offset."""
        return [self.dirty[offset] for offset in sorted(self.dirty)]


class CacheBuf(Buf):
    """A block of a vnode in memory. Counterpart: struct buf (sys/buf.h); b_ is dropped.

    Attributes:
        owner: the buffers of the vnode it belongs to, None for an empty header.
        extents: (address in memory, length) of the data, neighbours joined.
        bufsize: bytes of data. bcount: bytes a transfer moves.
        qindex: its queue.
        holder: who has it: a thread, `Holder.KERNPROC`, or None.
        wanted: somebody waits for it.
        refs: `bqhold`s; keep it from being reused.
        act_count: how much it is used.
        running: bytes it has in flight.
        seq: when it became dirty, in a count of such events. dirtied_ns: the same in time.
        retry_ns: not to be written again before, after a failure.
        ahead: was read ahead, and nobody has asked for it yet.
        read_wait: what the readers of the transfer under way wait for.
    """

    __slots__ = ("act_count", "ahead", "bufsize", "cache", "dirtied_ns", "extents", "holder",
                 "owner", "qindex", "read_wait", "refs", "retry_ns", "running", "seq",
                 "wanted")  # fmt: skip

    def __init__(self, cache: BufOwner) -> None:
        super().__init__(None, 0)
        self.cache = cache
        self.owner: VnodeBufs | None = None
        self.extents: list[tuple[int, int]] = []
        self.bufsize = 0
        self.qindex = BQueue.EMPTY
        self.holder: Any = None
        self.wanted = False
        self.refs = 0
        self.act_count = ACT_INIT
        self.running = 0
        self.seq = 0
        self.dirtied_ns = 0
        self.retry_ns = 0
        self.ahead = False
        self.read_wait: ReadWait | None = None
        self.flags = B.INVAL

    @property
    def loffset(self) -> int:
        """Where it begins in its vnode. Counterpart: b_loffset."""
        return self.bio1.offset

    @property
    def vp(self) -> Vnode:
        """Its vnode."""
        assert self.owner is not None
        return self.owner.vp

    @property
    def kvasize(self) -> int:
        """Bytes of the pages it keeps in memory. Counterpart: b_kvasize."""
        start = self.bio1.offset
        return ((start + self.bufsize + PAGE_MASK) & ~PAGE_MASK) - (start & ~PAGE_MASK)

    def frames(self) -> Iterator[range]:
        """The pages of its data, in runs."""
        for address, length in self.extents:
            yield range(address >> PAGE_SHIFT, (address + length + PAGE_MASK) >> PAGE_SHIFT)

    # The data.

    def read(self, offset: int = 0, size: int | None = None) -> bytes:
        """A copy of the data, or of a part.

        Raises:
            KError: EINVAL, the part is not inside.
        """
        end = self.bufsize if size is None else offset + size
        parts = [self.cache.physmem.mem[a : a + n] for a, n in self._pieces(offset, end)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, offset: int, data: Buffer) -> None:
        """Change the data; the holder then calls `bdwrite` or one of its sisters.

        Raises:
            KError: EINVAL, it does not fit.
        """
        mem = self.cache.physmem.mem
        pieces = self._pieces(offset, offset + len(data))
        if len(pieces) == 1:
            mem[pieces[0][0] : pieces[0][0] + pieces[0][1]] = bytes(data)
            return
        view = memoryview(data)
        at = 0
        for address, length in pieces:
            mem[address : address + length] = bytes(view[at : at + length])
            at += length

    def zero(self, offset: int = 0, size: int | None = None) -> None:
        """Clear the data, or a part. Counterpart: clrbuf."""
        end = self.bufsize if size is None else offset + size
        for address, length in self._pieces(offset, end):
            self.cache.physmem.mem[address : address + length] = bytes(length)

    def _pieces(self, offset: int, end: int) -> list[tuple[int, int]]:
        """Where bytes [offset, end) lie."""
        if not 0 <= offset <= end <= self.bufsize:
            raise KError(EINVAL, f"bytes {offset} to {end} of a buffer of {self.bufsize}")
        if len(self.extents) == 1:
            return [(self.extents[0][0] + offset, end - offset)]
        out = []
        for address, length in self.extents:
            if offset < length and end > 0:
                low = max(offset, 0)
                out.append((address + low, min(length, end) - low))
            offset -= length
            end -= length
        return out

    # What the layers below see.

    def buffers(self) -> list[memoryview]:
        """The memory of the transfer: pages that are valid already are not read again."""
        buf = self.cache.physmem.buf
        if not self.flags & B.HASBOGUS:
            return [buf[address : address + length] for address, length in self.extents]
        return self._with_bogus(buf)

    def _with_bogus(self, buf: memoryview) -> list[memoryview]:
        """The memory of a read that must leave valid pages alone. Counterpart: bogus_page."""
        owner = self.owner
        assert owner is not None
        valid, all_valid = owner.object.pages.valid, 0xFF
        out: list[memoryview] = []
        for address, length in self.extents:
            end = address + length
            while address < end:
                take = min(PAGE_SIZE - (address & PAGE_MASK), end - address)
                bogus = valid[address >> PAGE_SHIFT] == all_valid
                # What is read where a page is valid goes nowhere.
                out.append(memoryview(bytearray(take)) if bogus else buf[address : address + take])
                address += take
        return out

    def runningbufwakeup(self) -> None:
        """The transfer is over."""
        if self.running:
            size, self.running = self.running, 0
            self.cache.running_done(size)

    def bpdone(self, elseit: bool) -> None:
        """All layers are done. Counterpart: bpdone."""
        self.cache.buf_done(self, elseit)

    def __repr__(self) -> str:
        where = f"{self.vp!r} " if self.owner is not None else ""
        return (
            f"<CacheBuf {where}{self.loffset}+{self.bufsize} {self.qindex.name} {self.cmd.name}"
            f" flags {self.flags:#x}>"
        )


class BufQueues:
    """The queues. Counterpart: struct bufpcpu (kern/vfs_bio.c)."""

    __slots__ = ("queues",)

    def __init__(self) -> None:
        self.queues: tuple[OrderedDict[CacheBuf, None], ...] = tuple(OrderedDict() for _ in BQueue)

    def __getitem__(self, queue: BQueue) -> OrderedDict[CacheBuf, None]:
        return self.queues[queue]

    def insert_tail(self, bp: CacheBuf, queue: BQueue) -> None:
        """Append."""
        bp.qindex = queue
        self.queues[queue][bp] = None

    def insert_head(self, bp: CacheBuf, queue: BQueue) -> None:
        """Put in front."""
        bp.qindex = queue
        where = self.queues[queue]
        where[bp] = None
        where.move_to_end(bp, last=False)

    def remove(self, bp: CacheBuf) -> None:
        """Take out; the buffer is on no queue then. Counterpart: bremfree."""
        del self.queues[bp.qindex][bp]
        bp.qindex = BQueue.NONE

    def dirty_queue(self, bp: CacheBuf) -> BQueue:
        """Where a buffer goes that must be written."""
        return BQueue.DIRTY_HW if bp.flags & B.HEAVY else BQueue.DIRTY

    def first(self, queue: BQueue) -> CacheBuf | None:
        """The buffer in front, or None."""
        return next(iter(self.queues[queue]), None)
