"""The entries of a freemap leaf: which 16 KiB blocks of a 4 MiB segment are in use.

A leaf is 32 KiB, 256 entries of 128 bytes, and stands for 1 GiB. An entry has two bits for each
of its segment's 256 blocks::

    00  free
    01  reserved
    10  possibly free: the first pass of bulkfree found nobody using it
    11  allocated

All 512 bits are one Python number here, block n at bits 2n and 2n+1. DragonFly's eight elements
of 64 bits follow each other in it, so finding a free run is arithmetic on one number instead of a
loop: runs are aligned to their size and at most four blocks long, so none crosses an element.

``linear`` packs pieces smaller than 16 KiB: where the last block used for such pieces has its
next free byte. It counts for something only if it is no multiple of 16 KiB; the block it lies in
is marked allocated already. ``class_`` is ``type << 8 | 16`` of the blockrefs whose blocks are
collected here, 0 for an entry that nobody uses; it keeps inodes together. ``avail`` counts free
bytes in units of 16 KiB: what ``linear`` still has is not in it.

Counterpart: struct hammer2_bmap_data (vfs/hammer2/hammer2_disk.h); hammer2_bmap_alloc,
    hammer2_freemap_init (vfs/hammer2/hammer2_freemap.c).
Token/lock order: takes none. An entry may be changed by who holds it.
Invariants: reserved bytes are kept as they were read and written back.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import Final

from attrs import define

from dfuser.vfs.hammer2.ondisk.blockref import Buffer
from dfuser.vfs.hammer2.ondisk.const import (
    BMAP_ALLONES,
    BMAP_BLOCKS,
    FREEMAP_BLOCK_RADIX,
    FREEMAP_BLOCK_SIZE,
    FREEMAP_COUNT,
    FREEMAP_LEVELN_PSIZE,
    PBUFRADIX,
    RADIX_MAX,
    RADIX_MIN,
    SEGMASK,
    SEGSIZE,
)

BMAP: Final = Struct("<iH22sI32s64s")
FREE: Final = 0
POSSIBLY_FREE: Final = 2
ALLOCATED: Final = 3
#: The lower bit of each of the 256 pairs.
_LOWER: Final = BMAP_ALLONES // 3
#: The lower bits of pairs at which a run of 1, 2 or 4 blocks may begin.
_STARTS: Final = (_LOWER, BMAP_ALLONES // 15, BMAP_ALLONES // 255)


@define
class BmapData:
    """What one segment of 4 MiB is used for.

    Counterpart: struct hammer2_bmap_data (hammer2_disk.h).
    """

    linear: int = 0
    class_: int = 0
    reserved06: bytes = bytes(22)
    avail: int = SEGSIZE
    reserved20: bytes = bytes(32)
    bitmap: int = 0

    @classmethod
    def full(cls) -> BmapData:
        """The entry of a segment that must never be allocated from: reserved, or past the end."""
        return cls(linear=SEGSIZE, avail=0, bitmap=BMAP_ALLONES)

    def pack(self) -> bytes:
        """The record as 128 bytes.

        Raises:
            struct.error, OverflowError: a number does not fit; that is the caller's bug.
        """
        return BMAP.pack(
            self.linear, self.class_, self.reserved06, self.avail, self.reserved20,
            self.bitmap.to_bytes(64, "little"),
        )  # fmt: skip

    def state(self, block: int) -> int:
        """The two bits of one of the 256 blocks."""
        return self.bitmap >> 2 * block & 3

    def mark(self, offset: int, size: int, state: int) -> None:
        """Give all blocks that some bytes of the segment touch the same two bits.

        Args:
            offset: first byte, counted from the start of the segment or of the volume.
            size: how many bytes; they must not leave the segment.
            state: FREE, POSSIBLY_FREE or ALLOCATED.
        """
        first = (offset & SEGMASK) >> FREEMAP_BLOCK_RADIX
        last = ((offset & SEGMASK) + size - 1) >> FREEMAP_BLOCK_RADIX
        if size <= 0 or last >= BMAP_BLOCKS:
            raise ValueError(f"{size} bytes at {offset:#x} leave their segment")
        ones = (1 << 2 * (last - first + 1)) - 1
        self.bitmap = self.bitmap & ~(ones << 2 * first) | (ones // 3 * state) << 2 * first

    def find_free(self, radix: int, hint: int = 0) -> int | None:
        """Where a run of free blocks for 2**radix bytes begins, aligned to its size.

        Args:
            radix: 10 to 16; less than 14 takes a whole block of 16 KiB.
            hint: a byte offset whose place in the segment is taken if it is free.

        Returns:
            Byte offset from the start of the segment; None if there is no such run.
        """
        if not RADIX_MIN <= radix <= RADIX_MAX:
            raise ValueError(f"radix {radix}")
        order = max(0, radix - FREEMAP_BLOCK_RADIX)
        used = self.bitmap | self.bitmap >> 1
        for shift in (2, 4)[:order]:
            used |= used >> shift
        free = ~used & _STARTS[order]
        if not free:
            return None
        at = 2 * ((hint & SEGMASK) >> FREEMAP_BLOCK_RADIX >> order << order)
        bit = at if free >> at & 1 else (free & -free).bit_length() - 1
        return bit // 2 << FREEMAP_BLOCK_RADIX

    def count(self, state: int) -> int:
        """How many of the 256 blocks are in a state."""
        low = self.bitmap & _LOWER
        high = self.bitmap >> 1 & _LOWER
        if not state & 1:
            low ^= _LOWER
        if not state & 2:
            high ^= _LOWER
        return (low & high).bit_count()

    def free_bytes(self) -> int:
        """What ``avail`` ought to be: the bytes of all blocks marked free."""
        return self.count(FREE) * FREEMAP_BLOCK_SIZE


def bmap_class(bref_type: int) -> int:
    """The class of entries for blocks of a type; all device buffers are 64 KiB."""
    return bref_type << 8 | PBUFRADIX


def unpack_leaf(data: Buffer) -> list[BmapData]:
    """The 256 entries of a freemap leaf.

    Raises:
        ValueError: the block does not have 32 KiB.
    """
    if len(data) != FREEMAP_LEVELN_PSIZE:
        raise ValueError(f"a freemap leaf has {FREEMAP_LEVELN_PSIZE} bytes, not {len(data)}")
    return [
        BmapData(linear, class_, r06, avail, r20, int.from_bytes(bits, "little"))
        for linear, class_, r06, avail, r20, bits in BMAP.iter_unpack(data)
    ]


def pack_leaf(entries: Iterable[BmapData]) -> bytes:
    """A freemap leaf from its 256 entries.

    Raises:
        ValueError: their number is another.
    """
    data = b"".join([entry.pack() for entry in entries])
    if len(data) != FREEMAP_LEVELN_PSIZE:
        raise ValueError(f"a freemap leaf has {FREEMAP_COUNT} entries")
    return data


def initial_leaf(key: int, allocator_beg: int, volu_size: int) -> list[BmapData]:
    """The entries of a leaf nobody has written yet.

    Nothing can be allocated below `allocator_beg` (rounded up to a segment), in the first segment
    of the GiB, or past the end of the volume (rounded down to a segment).

    Args:
        key: first byte that the leaf stands for, a multiple of 1 GiB.
        allocator_beg: first byte that the volume's maker left to the allocator.
        volu_size: size of the volume in bytes.

    Counterpart: hammer2_freemap_init (hammer2_freemap.c).
    """
    low = max((allocator_beg + SEGMASK) & ~SEGMASK, key + SEGSIZE)
    high = min(key + FREEMAP_COUNT * SEGSIZE, volu_size & ~SEGMASK)
    return [
        BmapData() if low <= at < high else BmapData.full()
        for at in range(key, key + FREEMAP_COUNT * SEGSIZE, SEGSIZE)
    ]
