"""Who lies where: a map of the blocks in use, in units of 1 KiB, and marks on single blocks.

Two brefs may refer to one block, after a snapshot or because equal data was found; then they
agree on where it begins and how large it is. Anything else that touches a block's bytes is
damage. For each 4 MiB the map has three numbers of 4096 bits: which KiB are covered, at which a
block begins, at which one ends. Adding a block is a few operations on them.

A map covers a part of the volume, its window; a check of a larger volume goes through the
topology once for each window. Only segments with blocks take memory, about 2 KiB each: no more
than 130 MiB for a window of 256 GiB.

Counterpart: the in-memory freemap of hammer2_bulkfree.c, which knows 16 KiB and no borders.
Token/lock order: takes none.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from dfuser.vfs.hammer2.ondisk.const import SEGMASK, SEGRADIX, SEGSIZE

#: Bytes of a window.
WINDOW: Final = 256 << 30
_UNITRADIX: Final = 10
UNITS: Final = SEGSIZE >> _UNITRADIX


class Added(Enum):
    """What a block was when it was added to the map."""

    NEW = "new"
    SAME = "same"
    OVERLAP = "overlap"
    OUTSIDE = "outside"


class BlockMap:
    """The blocks that lie in one window of the volume."""

    __slots__ = ("base", "elsewhere", "segments", "stop", "units")

    def __init__(self, base: int = 0, span: int = WINDOW) -> None:
        """An empty map.

        Args:
            base: first byte of the window, a multiple of 4 MiB.
            span: its size, a multiple of 4 MiB.
        """
        self.base = base
        self.stop = base + span
        #: By number of segment: units covered, where blocks begin, where they end.
        self.segments: dict[int, tuple[int, int, int]] = {}
        self.units = 0
        #: Numbers of other windows of this size that have blocks.
        self.elsewhere: set[int] = set()

    def add(self, offset: int, size: int) -> Added:
        """Note a block; one that overlaps another is not noted.

        Args:
            offset: where it begins, a multiple of 1 KiB.
            size: 1 to 64 KiB, not crossing a multiple of 64 KiB.
        """
        if not self.base <= offset < self.stop:
            self.elsewhere.add(offset // (self.stop - self.base))
            return Added.OUTSIDE
        unit = (offset & SEGMASK) >> _UNITRADIX
        count = size >> _UNITRADIX
        mask = (1 << count) - 1 << unit
        first, last = 1 << unit, 1 << unit + count - 1
        covered, begins, ends = self.segments.get(offset >> SEGRADIX, (0, 0, 0))
        touched = covered & mask
        if not touched:
            self.segments[offset >> SEGRADIX] = covered | mask, begins | first, ends | last
            self.units += count
            return Added.NEW
        if touched == mask and begins & mask == first and ends & mask == last:
            return Added.SAME
        return Added.OVERLAP

    def covered(self, segment: int) -> int:
        """Which of the 4096 KiB of a segment are in use, as bits."""
        found = self.segments.get(segment)
        return found[0] if found is not None else 0


class Marks:
    """A mark for each KiB at which a block may begin; memory goes where marks are."""

    __slots__ = ("_segments",)

    def __init__(self) -> None:
        """No mark anywhere."""
        self._segments: dict[int, int] = {}

    def __contains__(self, offset: int) -> bool:
        found = self._segments.get(offset >> SEGRADIX, 0)
        return bool(found >> ((offset & SEGMASK) >> _UNITRADIX) & 1)

    def add(self, offset: int) -> bool:
        """Mark a place; whether it was marked already."""
        segment, bit = offset >> SEGRADIX, 1 << ((offset & SEGMASK) >> _UNITRADIX)
        found = self._segments.get(segment, 0)
        if found & bit:
            return True
        self._segments[segment] = found | bit
        return False
