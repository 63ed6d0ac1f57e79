"""The freemap: its own trees, and its bits against the blocks that are in use.

The freemap's blocks lie at fixed places (ondisk/geometry.py), so each must be where its key and
level say, in one of eight copies. Then every 4 MiB segment is compared with the map of blocks
(blocks.py), in both directions:

    in use, marked free            HOLE: the allocator gives it out, and two files share it
    in use, marked possibly free   STAGED: the next bulkfree mends it, if it comes before the one
                                   that frees
    marked allocated, not in use   LEAK: deleted, or kept for older headers; bulkfree's business
    behind ``linear``, in use      HOLE: the next small block is put on top of it

A GiB without a leaf is one that nobody allocated from: all free, but for the reserved segments
and what newfs itself used. ``avail`` of an entry counts free blocks; hints in blockrefs
(bigmask, avail) are only ever too high and are not looked at. The header's ``allocator_free`` is
what it began with less all blocks allocated since; where that is not so, growfs or an interrupted
DragonFly may be the reason, so it is a warning.

Counterpart: h2_bulkfree_sync (vfs/hammer2/hammer2_bulkfree.c), hammer2_freemap_init
    (hammer2_freemap.c).
Token/lock order: takes none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dfuser.vfs.hammer2.check import testcheck
from dfuser.vfs.hammer2.errors import MediaError
from dfuser.vfs.hammer2.fsck.blocks import BlockMap
from dfuser.vfs.hammer2.fsck.report import Counts, Kind, Report, Severity
from dfuser.vfs.hammer2.fsck.table import check_table
from dfuser.vfs.hammer2.ondisk.blockref import Blockref
from dfuser.vfs.hammer2.ondisk.bmap import (
    ALLOCATED,
    FREE,
    POSSIBLY_FREE,
    BmapData,
    initial_leaf,
    unpack_leaf,
)
from dfuser.vfs.hammer2.ondisk.const import (
    BMAP_ALLONES,
    BMAP_BLOCKS,
    FREEMAP_BLOCK_RADIX,
    FREEMAP_BLOCK_SIZE,
    FREEMAP_COUNT,
    FREEMAP_LEVELN_RADIX,
    FREEMAP_RADIX,
    KEY_MAX,
    RADIX_MIN,
    SEGRADIX,
    SEGSIZE,
    BrefType,
    Check,
)
from dfuser.vfs.hammer2.ondisk.geometry import freemap_copy, freemap_level, freemap_offset
from dfuser.vfs.hammer2.volume import VolumeSet

_NODE: Final = int(BrefType.FREEMAP_NODE)
_LEAF: Final = int(BrefType.FREEMAP_LEAF)
_GIB_RADIX: Final = FREEMAP_RADIX[1]
_GIB: Final = 1 << _GIB_RADIX
_UNITS_PER_BLOCK: Final = 1 << (FREEMAP_BLOCK_RADIX - RADIX_MIN)
_BLOCK_MASK: Final = FREEMAP_BLOCK_SIZE - 1


class Freemap:
    """Checks the freemap of a volume; `walk` first, then `compare` for each window."""

    __slots__ = ("_allocated", "_complete", "_counts", "_leaves", "_report", "_volume")

    def __init__(self, volume: VolumeSet, report: Report, counts: Counts) -> None:
        """Nothing is known yet."""
        self._volume = volume
        self._report = report
        self._counts = counts
        #: By number of GiB; a leaf that cannot be used is None.
        self._leaves: dict[int, Blockref | None] = {}
        self._allocated = 0
        self._complete = True

    def walk(self) -> Iterator[None]:
        """Check the freemap's trees and note the leaves."""
        stack = [self._entries(self._volume.header.freemap_blockset, 0, KEY_MAX, 0)]
        while stack:
            for bref in stack[-1]:
                data = self._block(bref)
                yield
                if bref.type == _LEAF:
                    self._leaves[bref.key >> _GIB_RADIX] = None if data is None else bref
                elif data is not None:
                    stack.append(self._entries(data, bref.key, bref.last_key, bref.data_off))
                    break
                else:
                    self._lose(bref)
            else:
                stack.pop()

    def _lose(self, bref: Blockref) -> None:
        """Note the leaves below a node that cannot be read as damaged."""
        self._complete = False
        stop = min(bref.last_key + 1, self._volume.size)
        for number in range(bref.key >> _GIB_RADIX, -(-stop >> _GIB_RADIX)):
            self._leaves.setdefault(number, None)

    def _entries(self, data: bytes, first: int, last: int, data_off: int) -> Iterator[Blockref]:
        """The entries of a table that can be used."""
        checked = check_table(data, first, last)
        for problem in checked.problems:
            self._report.add(problem.kind, problem.text, key=problem.key, data_off=data_off)
        return iter(checked.brefs)

    def _block(self, bref: Blockref) -> bytes | None:
        """Read a block of the freemap; None, and a finding, if it cannot be used."""
        why = self._misplaced(bref)
        if why:
            self._report.add(Kind.FREEMAP, why, key=bref.key, data_off=bref.data_off)
            return None
        kind, text = Kind.UNREADABLE, ""
        try:
            data = self._volume.read_at(bref.offset, bref.nbytes)
            if len(data) != bref.nbytes:
                text = f"only {len(data)} bytes of the freemap can be read"
            elif not testcheck(bref, data):
                kind, text = Kind.CHECK, "wrong check code in the freemap"
        except (MediaError, OSError) as exc:
            data, text = b"", f"the freemap cannot be read: {exc.strerror or exc}"
        self._counts.blocks += 1
        self._counts.bytes += bref.nbytes
        if text:
            self._report.add(kind, text, key=bref.key, data_off=bref.data_off)
            return None
        return data

    def _misplaced(self, bref: Blockref) -> str:
        """Why a blockref cannot be one of the freemap; empty if it can."""
        level = freemap_level(bref.keybits)
        if bref.type not in (_NODE, _LEAF) or level is None or (bref.type == _LEAF) != (level == 1):
            return f"type {bref.type} with {bref.keybits} bits lies in the freemap"
        if bref.methods >> 4 != Check.FREEMAP:
            return f"check code {bref.methods >> 4} in the freemap"
        place = freemap_copy(bref.data_off)
        right = place is not None and place[0] == level and bref.radix == FREEMAP_LEVELN_RADIX
        if place is None or not right or bref.offset != freemap_offset(bref.key, *place):
            return "a block of the freemap does not lie at its place"
        if bref.offset >= self._volume.size:
            return "a block of the freemap lies behind the end of the volume"
        return ""

    def compare(self, blocks: BlockMap) -> Iterator[None]:
        """Compare the part of the freemap that a map of blocks covers."""
        header = self._volume.header
        stop = min(blocks.stop, self._volume.size)
        for number in range(blocks.base >> _GIB_RADIX, -(-stop >> _GIB_RADIX)):
            base = number << _GIB_RADIX
            fresh = initial_leaf(base, header.allocator_beg, self._volume.size)
            entries = fresh
            if number in self._leaves:
                bref = self._leaves[number]
                data = self._reread(bref)
                if data is None:
                    self._complete = False
                    continue
                entries = unpack_leaf(data)
            yield
            leaked = 0
            for index in range(FREEMAP_COUNT):
                at = base + index * SEGSIZE
                if not blocks.base <= at < stop:
                    continue
                if fresh[index].bitmap:
                    self._closed(at, entries[index])
                else:
                    leaked += self._segment(at, entries[index], blocks.covered(at >> SEGRADIX))
            self._leak(base, leaked)

    def _reread(self, bref: Blockref | None) -> bytes | None:
        """A leaf that was read and verified before."""
        if bref is None:
            return None
        try:
            data = self._volume.read_at(bref.offset, bref.nbytes)
        except OSError as exc:
            text = f"the freemap cannot be read: {exc.strerror or exc}"
            self._report.add(Kind.UNREADABLE, text, key=bref.key, data_off=bref.data_off)
            return None
        return data if len(data) == bref.nbytes else None

    def _leak(self, base: int, leaked: int) -> None:
        """Tell, once for each GiB, what nobody uses."""
        if leaked:
            self._counts.leaked += leaked
            text = f"{leaked} bytes are allocated that nothing refers to; bulkfree returns them"
            self._report.add(Kind.LEAK, text, key=base, found=leaked, expected=0)

    def _closed(self, at: int, entry: BmapData) -> None:
        """Check a segment that must never be allocated from."""
        if entry.bitmap != BMAP_ALLONES or entry.avail:
            text = f"the segment at {at:#x} is reserved, but can be allocated from"
            self._report.add(Kind.FREEMAP, text, key=at)

    def _segment(self, at: int, entry: BmapData, covered: int) -> int:
        """Compare a segment with the blocks in it; the bytes that leaked."""
        self._entry(at, entry, covered)
        self._allocated += SEGSIZE - entry.free_bytes()
        if not covered:
            self._counts.staged += entry.count(POSSIBLY_FREE) * FREEMAP_BLOCK_SIZE
            return entry.count(ALLOCATED) * FREEMAP_BLOCK_SIZE
        data = covered.to_bytes(BMAP_BLOCKS * _UNITS_PER_BLOCK // 8, "little")
        bitmap = entry.bitmap
        holes: list[int] = []
        staged: list[int] = []
        leaked = 0
        for block in range(BMAP_BLOCKS):
            state = bitmap >> 2 * block & 3
            if not (data[2 * block] or data[2 * block + 1]):
                leaked += state == ALLOCATED
                self._counts.staged += FREEMAP_BLOCK_SIZE * (state == POSSIBLY_FREE)
                continue
            self._counts.used += FREEMAP_BLOCK_SIZE
            if state != ALLOCATED:
                (staged if state == POSSIBLY_FREE else holes).append(block)
        self._runs(Kind.HOLE, at, holes, "in use, but not marked allocated")
        self._runs(Kind.STAGED, at, staged, "in use, but marked possibly free")
        return leaked * FREEMAP_BLOCK_SIZE

    def _entry(self, at: int, entry: BmapData, covered: int) -> None:
        """Check what an entry says besides its bits."""
        free = entry.free_bytes()
        if entry.avail != free:
            text = f"the segment at {at:#x} says {entry.avail} bytes are free, not {free}"
            self._report.add(Kind.FREEMAP, text, key=at, expected=free, found=entry.avail)
        linear = entry.linear
        if not 0 <= linear <= SEGSIZE:
            text = f"the segment at {at:#x} goes on at byte {linear}"
            self._report.add(Kind.FREEMAP, text, key=at, found=linear)
        elif linear & _BLOCK_MASK:
            self._linear(at, entry, covered)

    def _linear(self, at: int, entry: BmapData, covered: int) -> None:
        """Check the block in which small blocks are put one behind the other."""
        block = entry.linear >> FREEMAP_BLOCK_RADIX
        first = -(-entry.linear >> RADIX_MIN)
        count = (block + 1) * _UNITS_PER_BLOCK - first
        if covered >> first & (1 << count) - 1:
            text = f"small blocks would be put on top of others at {at + entry.linear:#x}"
            self._report.add(Kind.HOLE, text, key=at, found=entry.linear)
        if entry.state(block) == FREE:
            text = f"small blocks go on at {at + entry.linear:#x}, which is marked free"
            self._report.add(Kind.FREEMAP, text, severity=Severity.WARNING, key=at)

    def _runs(self, kind: Kind, at: int, numbers: list[int], text: str) -> None:
        """Tell blocks of a segment, those that follow each other as one."""
        start = 0
        for index, number in enumerate(numbers):
            if index + 1 < len(numbers) and numbers[index + 1] == number + 1:
                continue
            first = at + numbers[start] * FREEMAP_BLOCK_SIZE
            size = (index + 1 - start) * FREEMAP_BLOCK_SIZE
            self._report.add(kind, f"{size} bytes at {first:#x} are {text}", key=first, found=size)
            start = index + 1

    def finish(self) -> None:
        """Compare the header's count of free bytes, when all windows were compared."""
        header = self._volume.header
        want = header.allocator_size - self._allocated
        if self._complete and header.allocator_free != want:
            self._report.add(
                Kind.STATISTICS,
                f"the header says {header.allocator_free} bytes are free, the freemap {want}",
                severity=Severity.WARNING, expected=want, found=header.allocator_free,
            )  # fmt: skip
