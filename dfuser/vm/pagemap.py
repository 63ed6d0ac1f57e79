"""The page table of a VM object: which frame holds which part of it.

An object is cut into *chunks* of 64 KiB (16 pages), and a chunk has one of four forms,
from empty to dense::

    absent         a hole: reads as zero, costs nothing
    ~frame         one page, the chunk's first, nothing else (a one-byte file)
    array of 16    single pages anywhere, -1 where there is none
    frame          a run: 16 contiguous frames

The form follows from how the data came. One write that covers a whole chunk that was absent
takes a run, if a whole run is free; everything else takes single pages, exactly as many as
it touches. Forms mix freely in one object: no page is ever copied to make a run. When the
sixteenth single page of a chunk arrives and the frames happen to be one run (which they
are when a file is written from start to end alone), the array is replaced by the run.
Freeing part of a run turns it into an array. So memory is spent for pages that were
written, never for pages that might be.

Chunk 0 has a field of its own, because most files have no other; the table for the rest is
made with the first of them and goes with the last.

Counterpart: rb_memq of struct vm_object (vm/vm_object.h), vm_page_insert, vm_page_remove,
    vm_page_lookup (vm/vm_page.c), vm_object_page_remove (vm/vm_object.c).
Differs from DragonFly: a table of chunks instead of a red-black tree of pages.
Token/lock order: takes none; operations don't suspend.
Invariants: ``resident_page_count`` frames, each owned by this object under its pindex; an
    array has at least one page that is not the chunk's first; the order of a table lists
    exactly its keys, ascending.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right, insort
from enum import IntEnum
from typing import Final, TypeAlias

from dfuser.libkern.errno import ENOMEM, KError
from dfuser.libkern.param import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from dfuser.vm.freespace import RUN_MASK, RUN_PAGES, RUN_SHIFT
from dfuser.vm.page import VM_ALLOC_INTERRUPT, VM_ALLOC_NORMAL, VmPages
from dfuser.vm.pagestate import VM_PAGE_BITS_ALL

CHUNK_SHIFT: Final = PAGE_SHIFT + RUN_SHIFT
CHUNK_SIZE: Final = 1 << CHUNK_SHIFT
CHUNK_MASK: Final = CHUNK_SIZE - 1
PINDEX_MAX: Final = ((1 << 63) - 1) >> PAGE_SHIFT

_ALL_BITS: Final = bytes([VM_PAGE_BITS_ALL]) * RUN_PAGES
_NO_FRAMES: Final = (-1,) * RUN_PAGES

Chunk: TypeAlias = "int | array[int]"


class ObjType(IntEnum):
    """What backs an object. Counterpart: enum obj_type (vm/vm_object.h)."""

    DEFAULT = 0
    SWAP = 1
    VNODE = 2
    DEVICE = 3
    MGTDEVICE = 4
    PHYS = 5
    DEAD = 6
    MARKER = 7


OBJT_DEFAULT: Final = ObjType.DEFAULT
OBJT_SWAP: Final = ObjType.SWAP
OBJT_VNODE: Final = ObjType.VNODE
OBJT_DEAD: Final = ObjType.DEAD


class ChunkTable(dict[int, Chunk]):
    """Chunks by number, with their numbers in order."""

    __slots__ = ("order",)

    def __init__(self) -> None:
        super().__init__()
        self.order: list[int] = []

    def __setitem__(self, number: int, chunk: Chunk) -> None:
        if number not in self:
            insort(self.order, number)
        super().__setitem__(number, chunk)

    def __delitem__(self, number: int) -> None:
        super().__delitem__(number)
        del self.order[bisect_left(self.order, number)]


class PageMap:
    """The pages of one object by index. VmObject is the subclass that reads and writes.

    Attributes:
        kind: what backs it; DEAD once destroyed.
        pages: where its pages come from.
        resident_page_count: pages it has.
        reserved: whether some pages may be there that nobody has written (see object.py).
    """

    __slots__ = ("_chunk0", "_chunks", "kind", "pages", "reserved", "resident_page_count")

    def __init__(self, pages: VmPages, kind: ObjType) -> None:
        self.pages = pages
        self.kind = kind
        self.resident_page_count = 0
        self.reserved = False
        self._chunk0: Chunk | None = None
        self._chunks: ChunkTable | None = None

    def vm_page_lookup(self, pindex: int) -> int:
        """The frame of a page, or -1 for a hole. Counterpart: vm_page_lookup."""
        chunk = self._get(pindex >> RUN_SHIFT)
        if chunk is None:
            return -1
        if not isinstance(chunk, int):
            return chunk[pindex & RUN_MASK]
        if chunk >= 0:
            return chunk + (pindex & RUN_MASK)
        return -1 if pindex & RUN_MASK else ~chunk

    def _get(self, number: int) -> Chunk | None:
        if not number:
            return self._chunk0
        return None if self._chunks is None else self._chunks.get(number)

    def _set(self, number: int, chunk: Chunk | None) -> None:
        if not number:
            self._chunk0 = chunk
        elif chunk is None:
            if self._chunks is not None:
                del self._chunks[number]
                if not self._chunks:
                    self._chunks = None
        else:
            if self._chunks is None:
                self._chunks = ChunkTable()
            self._chunks[number] = chunk

    def _numbers(self, first: int, last: int) -> list[int]:
        """Numbers of the chunks there are from first to last, ascending."""
        numbers = [0] if first == 0 and self._chunk0 is not None else []
        if self._chunks is not None:
            order = self._chunks.order
            numbers += order[bisect_left(order, first) : bisect_right(order, last)]
        return numbers

    def _address(self, offset: int, size: int) -> int:
        """Where a range lies in memory if it is all in one page or one run; -1 if not.

        The hot half of read and write. The size must be positive.
        """
        inside = offset & CHUNK_MASK
        if inside + size > CHUNK_SIZE or offset < 0:
            return -1
        if offset < CHUNK_SIZE:
            chunk = self._chunk0
        else:
            chunk = None if self._chunks is None else self._chunks.get(offset >> CHUNK_SHIFT)
        if isinstance(chunk, int):
            if chunk >= 0:
                return (chunk << PAGE_SHIFT) + inside
            return (~chunk << PAGE_SHIFT) + inside if inside + size <= PAGE_SIZE else -1
        if chunk is None:
            return -1
        frame = chunk[inside >> PAGE_SHIFT]
        inside &= PAGE_MASK
        return -1 if frame < 0 or inside + size > PAGE_SIZE else (frame << PAGE_SHIFT) + inside

    def _extents(self, offset: int, end: int) -> list[tuple[int, int]]:
        """Cut a range into (address in memory or -1 for a hole, length), neighbours joined."""
        out: list[tuple[int, int]] = []
        last, length = -1, 0
        while offset < end:
            inside = offset & CHUNK_MASK
            chunk = self._get(offset >> CHUNK_SHIFT)
            take = min(CHUNK_SIZE - inside, end - offset)
            if chunk is None:
                address = -1
            elif isinstance(chunk, int) and chunk >= 0:
                address = (chunk << PAGE_SHIFT) + inside
            else:
                frame = self.vm_page_lookup(offset >> PAGE_SHIFT)
                inside &= PAGE_MASK
                take = min(PAGE_SIZE - inside, take)
                address = -1 if frame < 0 else (frame << PAGE_SHIFT) + inside
            offset += take
            if address == (last if last < 0 else last + length):
                length += take
                continue
            if length:
                out.append((last, length))
            last, length = address, take
        if length:
            out.append((last, length))
        return out

    # Allocation.

    def _allocate(self, offset: int, end: int, data: int, data_end: int) -> None:
        """Make every page of [offset, end) resident, all or nothing.

        Bytes inside [data, data_end) are about to be overwritten and need no zeroing. If that is
        empty, the pages are only reserved: valid and clean, unless a pager stands behind them.

        Raises:
            KError: ENOMEM; nothing changed.
        """
        first, last = offset >> PAGE_SHIFT, end - 1 >> PAGE_SHIFT
        pages = self.pages
        if last - first + 1 - self.resident_page_count > pages.v_page_count:
            raise KError(ENOMEM)
        if first == last:
            if self.vm_page_lookup(first) < 0:
                pages.reserve(1)
                self._fill_pages(first >> RUN_SHIFT, first & RUN_MASK, first & RUN_MASK,
                                 data, data_end)  # fmt: skip
            return
        missing = self._missing(first, last)
        while missing and pages.reserve(missing, VM_ALLOC_NORMAL):
            missing = self._missing(first, last)
        if not missing:
            return
        written = data < data_end
        run, run_end = (data, data_end) if written else (offset, end)
        for number in range(first >> RUN_SHIFT, (last >> RUN_SHIFT) + 1):
            base = number << RUN_SHIFT
            low = max(first - base, 0)
            high = min(last - base, RUN_MASK)
            whole = run <= base << PAGE_SHIFT and base + RUN_PAGES << PAGE_SHIFT <= run_end
            if not (whole and self._get(number) is None and self._fill_run(number, written)):
                self._fill_pages(number, low, high, data, data_end)

    def _missing(self, first: int, last: int) -> int:
        """Count the holes among pages first to last."""
        present = 0
        for number in self._numbers(first >> RUN_SHIFT, last >> RUN_SHIFT):
            base = number << RUN_SHIFT
            low = max(first - base, 0)
            high = min(last - base, RUN_MASK)
            chunk = self._get(number)
            assert chunk is not None
            if not isinstance(chunk, int):
                present += high - low + 1 - chunk[low : high + 1].count(-1)
            elif chunk >= 0:
                present += high - low + 1
            else:
                present += low == 0
        return last - first + 1 - present

    def _fill_run(self, number: int, written: bool) -> bool:
        """Make a run of an absent chunk that will be overwritten whole, if there is one.

        If it is not ``written`` but only reserved, it is zeroed.
        """
        pages = self.pages
        frame = pages.alloc_run(self, number << RUN_SHIFT, zero=not written, req=VM_ALLOC_INTERRUPT)
        if frame is None:
            return False
        if self.kind is not OBJT_VNODE:
            pages.valid[frame : frame + RUN_PAGES] = _ALL_BITS
            if written:
                pages.dirty[frame : frame + RUN_PAGES] = _ALL_BITS
            else:
                self.reserved = True
        self.resident_page_count += RUN_PAGES
        self._set(number, frame)
        return True

    def _fill_pages(self, number: int, low: int, high: int, data: int, data_end: int) -> None:
        """Make pages low to high of a chunk resident, each by itself."""
        chunk = self._get(number)
        if isinstance(chunk, int) and chunk >= 0:
            return
        base = number << RUN_SHIFT
        if chunk is None and not high:
            self._set(number, ~self._new_page(base, data, data_end))
            return
        frames = _frames(chunk)
        for i in range(low, high + 1):
            if frames[i] < 0:
                frames[i] = self._new_page(base + i, data, data_end)
        self._set(number, _compact(frames))

    def _new_page(self, pindex: int, data: int, data_end: int) -> int:
        """Take a reserved page for pindex, zeroed unless [data, data_end) covers it."""
        start = pindex << PAGE_SHIFT
        pages = self.pages
        frame = pages.alloc(
            1,
            self,
            pindex,
            zero=start < data or start + PAGE_SIZE > data_end,
            req=VM_ALLOC_INTERRUPT,
        )
        if self.kind is not OBJT_VNODE:
            pages.valid[frame] = VM_PAGE_BITS_ALL
            if data < data_end:
                pages.dirty[frame] = VM_PAGE_BITS_ALL
            else:
                self.reserved = True
        self.resident_page_count += 1
        return frame

    # Freeing.

    def _free_pages(self, first: int, last: int = PINDEX_MAX) -> None:
        """Free the pages from first to last."""
        for number in self._numbers(first >> RUN_SHIFT, last >> RUN_SHIFT):
            base = number << RUN_SHIFT
            self._free_in_chunk(number, max(first - base, 0), min(last - base, RUN_MASK))
        if not self.resident_page_count:
            self.reserved = False

    def _free_in_chunk(self, number: int, low: int, high: int) -> None:
        """Free pages low to high of a chunk that exists."""
        chunk = self._get(number)
        pages = self.pages
        if isinstance(chunk, int):
            if chunk >= 0 and high - low == RUN_MASK:
                self._set(number, None)
                self.resident_page_count -= RUN_PAGES
                pages.free_run(chunk)
                return
            if chunk < 0:
                if low == 0:
                    self._set(number, None)
                    self.resident_page_count -= 1
                    pages.free(~chunk)
                return
        frames = _frames(chunk)
        gone = [frame for frame in frames[low : high + 1] if frame >= 0]
        frames[low : high + 1] = array("i", _NO_FRAMES[low : high + 1])
        self._set(number, _compact(frames))
        self.resident_page_count -= len(gone)
        pages.free_pages(gone)


def _frames(chunk: Chunk | None) -> array[int]:
    """The frames of a chunk of any form as an array of 16."""
    if chunk is None:
        return array("i", _NO_FRAMES)
    if not isinstance(chunk, int):
        return chunk
    if chunk >= 0:
        return array("i", range(chunk, chunk + RUN_PAGES))
    frames = array("i", _NO_FRAMES)
    frames[0] = ~chunk
    return frames


def _compact(frames: array[int]) -> Chunk | None:
    """The smallest form that says the same as an array of 16 frames."""
    first = frames[0]
    aligned = frames[RUN_MASK] - first == RUN_MASK and not first & RUN_MASK
    if aligned and frames == array("i", range(first, first + RUN_PAGES)):
        return first
    absent = frames.count(-1)
    if absent == RUN_PAGES:
        return None
    if absent == RUN_MASK and first >= 0:
        return ~first
    return frames
