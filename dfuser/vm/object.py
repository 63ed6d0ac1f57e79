"""VM objects: sparse stores of bytes made of pages. The data of every file lives in one.

Its pages are found through the table of pagemap.py. This file is what a file system uses:
read, write, truncate, zero, punch, copy, and look for holes.

Rules:

- ``write`` and ``populate`` are all or nothing: pages are counted and reserved first; what
  follows cannot fail.
- Bytes at and beyond ``size`` are zero in every page the object has, so that growing a
  file shows zeroes.
- Reading never allocates.
- Objects of kind DEFAULT and SWAP have the only copy of their data: all their pages are
  valid and dirty, but for those that are only *reserved* (``populate``, ``zero_range``):
  valid, clean and zero. A reserved page is there, so writing it cannot fail, and it is
  still a hole to whoever looks for data. A write makes it dirty.
- For a VNODE object the dirty bits say what the pager must write, and the
  pager makes a range valid before it is read or partly written here.
- An object knows nothing of waiting. Whoever starts I/O on its pages keeps others away.

Counterpart: struct vm_object (vm/vm_object.h), vm/vm_object.c; tmpfs's use of its
    ``tn_aobj`` (vfs/tmpfs).
Differs from DragonFly: ``size`` is in bytes; file data is read and written here
    directly instead of through buffers that map the object (a buf is a window on it). Shadow
    chains belong to vm_map_backing and come with the VM maps.
Token/lock order: takes none; operations don't suspend.
Invariants: those of pagemap.py; no resident byte at or beyond ``size`` differs from zero.
"""

from __future__ import annotations

from typing import Final

from dfuser.hw.physmem import ZEROES
from dfuser.libkern.errno import EFBIG, EINVAL, ENXIO, KKASSERT, KError
from dfuser.libkern.param import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from dfuser.vm.freespace import RUN_MASK, RUN_SHIFT
from dfuser.vm.page import VmPages
from dfuser.vm.pagemap import (
    CHUNK_SHIFT,
    CHUNK_SIZE,
    OBJT_DEAD,
    OBJT_DEFAULT,
    OBJT_SWAP,
    OBJT_VNODE,
    ObjType,
    PageMap,
)
from dfuser.vm.pagestate import VM_PAGE_BITS_ALL

__all__ = [
    "OBJT_DEAD",
    "OBJT_DEFAULT",
    "OBJT_SWAP",
    "OBJT_VNODE",
    "OFF_MAX",
    "ObjType",
    "PageViews",
    "VmObject",
]

OFF_MAX: Final = (1 << 63) - 1
"""Largest size of an object, the largest off_t."""

_ALL_DIRTY: Final = bytes([VM_PAGE_BITS_ALL]) * (RUN_MASK + 1)

Data = bytes | bytearray | memoryview


class PageViews:
    """Windows on a range of an object, for a reply that copies only once.

    The pages are held: what the windows show stays readable until ``release``, whatever
    happens to the object (a write before that shows).

    Attributes:
        buffers: memoryviews that joined make the range.
        size: their length together, in bytes.
    """

    __slots__ = ("_held", "_pages", "buffers", "size")

    def __init__(self, pages: VmPages, extents: list[tuple[int, int]]) -> None:
        self._pages = pages
        self._held: list[tuple[int, int]] = []
        self.buffers: list[memoryview] = []
        self.size = 0
        buf = pages.physmem.buf
        for address, length in extents:
            self.size += length
            if address >= 0:
                first = address >> PAGE_SHIFT
                count = (address + length - 1 >> PAGE_SHIFT) - first + 1
                pages.hold(first, count)
                self._held.append((first, count))
                self.buffers.append(buf[address : address + length])
            else:
                self.buffers += _zero_views(length)

    def release(self) -> None:
        """Close the windows and let the pages go. A second call does nothing."""
        for view in self.buffers:
            view.release()
        self.buffers = []
        held, self._held = self._held, []
        for first, count in held:
            self._pages.unhold(first, count)


def _zero_views(length: int) -> list[memoryview]:
    """So many zero bytes as windows on the constant zeroes."""
    views = [memoryview(ZEROES) for _ in range(length // len(ZEROES))]
    if length % len(ZEROES):
        views.append(memoryview(ZEROES)[: length % len(ZEROES)])
    return views


class VmObject(PageMap):
    """A sparse store of bytes in pages. Counterpart: struct vm_object (vm/vm_object.h).

    Offsets and sizes are bytes. A new object has one reference; the drop of the last one
    destroys it.

    Args:
        pages: where its pages come from.
        kind: DEFAULT, SWAP or VNODE.

    Attributes:
        size: bytes; reads end here.
        resident_page_count: pages it has.
        ref_count: references.
        kind: what backs it; DEAD once destroyed.
    """

    __slots__ = ("ref_count", "size")

    def __init__(self, pages: VmPages, kind: ObjType = OBJT_DEFAULT) -> None:
        super().__init__(pages, kind)
        self.size = 0
        self.ref_count = 1

    def __repr__(self) -> str:
        return f"<VmObject {self.kind.name} size={self.size} pages={self.resident_page_count}>"

    @property
    def resident(self) -> int:
        """Bytes of memory its pages take."""
        return self.resident_page_count << PAGE_SHIFT

    # References.

    def ref(self) -> None:
        """Take one more reference. Counterpart: vm_object_reference_locked."""
        KKASSERT(self.ref_count > 0, "reference to a dead VM object")
        self.ref_count += 1

    def drop(self) -> None:
        """Give a reference back; the last one destroys. Counterpart: vm_object_deallocate."""
        KKASSERT(self.ref_count > 0, "VM object dropped too often")
        self.ref_count -= 1
        if not self.ref_count:
            self.destroy()

    def destroy(self) -> None:
        """Free all pages; the object is dead afterwards. Counterpart: vm_object_terminate."""
        self._free_pages(0)
        self.size = 0
        self.ref_count = 0
        self.kind = OBJT_DEAD

    # Reading.

    def read(self, offset: int, size: int) -> bytes:
        """Copy a range out; holes are zeroes, the end of the object ends it.

        Raises:
            KError: EINVAL, a negative offset or size.
        """
        end = offset + size
        if end > self.size:
            end = self.size
            size = end - offset
        if size > 0:
            start = self._address(offset, size)
            if start >= 0:
                return self.pages.mem[start : start + size]
        return self._read(offset, end)

    def _read(self, offset: int, end: int) -> bytes:
        """Copy any range out: the general form of read."""
        if offset < 0 or end < min(offset, self.size):
            raise KError(EINVAL)
        extents = self._extents(offset, end)
        if len(extents) == 1:
            address, length = extents[0]
            return bytes(length) if address < 0 else self.pages.mem[address : address + length]
        buf = self.pages.physmem.buf
        parts: list[bytes | memoryview] = [
            bytes(length) if address < 0 else buf[address : address + length]
            for address, length in extents
        ]
        return b"".join(parts)

    def readinto(self, offset: int, buffer: bytearray | memoryview) -> int:
        """Copy a range into a buffer and return how many bytes there were.

        Raises:
            KError: EINVAL, a negative offset.
        """
        if offset < 0:
            raise KError(EINVAL)
        target = memoryview(buffer).cast("B")
        end = min(offset + len(target), self.size)
        pos = 0
        buf = self.pages.physmem.buf
        for address, length in self._extents(offset, end):
            if address < 0:
                target[pos : pos + length] = bytes(length)
            else:
                target[pos : pos + length] = buf[address : address + length]
            pos += length
        return pos

    def views(self, offset: int, size: int) -> PageViews:
        """Open windows on a range without copying; the caller must ``release`` them.

        Raises:
            KError: EINVAL, a negative offset or size.
        """
        if offset < 0 or size < 0:
            raise KError(EINVAL)
        return PageViews(self.pages, self._extents(offset, min(offset + size, self.size)))

    # Writing.

    def write(self, offset: int, data: Data) -> int:
        """Copy data in, growing the object; all of it or nothing.

        Args:
            offset: where it goes.
            data: contiguous bytes (a memoryview must be of format "B").

        Returns:
            The number of bytes, all of them.

        Raises:
            KError: ENOMEM, EFBIG (beyond 2**63 - 1) or EINVAL; the object is as before.
        """
        size = len(data)
        if size and self.kind is not OBJT_VNODE:
            start = self._address(offset, size)
            if start >= 0:
                self.pages.mem[start : start + size] = data
                if self.reserved:
                    self._written(start, size)
                if offset + size > self.size:
                    self.size = offset + size
                return size
        return self._write(offset, data)

    def _write(self, offset: int, data: Data) -> int:
        """Copy data in anywhere: the general form of write."""
        source = data if type(data) is bytes else memoryview(data).cast("B")
        end = self._check_range(offset, len(source))
        if offset == end:
            return 0
        self._allocate(offset, end, offset, end)
        mem = self.pages.mem
        extents = self._extents(offset, end)
        if len(extents) == 1:
            address, length = extents[0]
            mem[address : address + length] = source
        else:
            source = memoryview(source)
            pos = 0
            for address, length in extents:
                mem[address : address + length] = source[pos : pos + length]
                pos += length
        if self.reserved:
            for address, length in extents:
                self._written(address, length)
        if self.kind is OBJT_VNODE:
            self._set_dirty(offset, end)
        if end > self.size:
            self.size = end
        return end - offset

    def _check_range(self, offset: int, size: int) -> int:
        """Validate a range to be changed and return its end."""
        KKASSERT(self.kind is not OBJT_DEAD, "a dead VM object is used")
        if offset < 0 or size < 0:
            raise KError(EINVAL)
        if offset + size > OFF_MAX:
            raise KError(EFBIG)
        return offset + size

    def _written(self, address: int, size: int) -> None:
        """Pages that may have been reserved only hold data now."""
        first, stop = address >> PAGE_SHIFT, (address + size + PAGE_MASK) >> PAGE_SHIFT
        self.pages.dirty[first:stop] = _ALL_DIRTY[:1] * (stop - first)

    def _set_dirty(self, offset: int, end: int) -> None:
        """Mark a resident range valid and dirty."""
        while offset < end:
            base = offset & PAGE_MASK
            take = min(PAGE_SIZE - base, end - offset)
            self.pages.set_dirty(self.vm_page_lookup(offset >> PAGE_SHIFT), base, take)
            offset += take

    def populate(self, offset: int, size: int) -> None:
        """Give a range all its pages, so that writing it cannot fail; size stays.

        New pages are zero and reserved; runs of 64 KiB are taken where there are some.

        Raises:
            KError: ENOMEM, EFBIG or EINVAL; the object is as before.
        """
        end = self._check_range(offset, size)
        if size:
            self._allocate(offset, end, end, end)

    # Shrinking and zeroing.

    def truncate(self, size: int) -> None:
        """Set the size: pages beyond it are freed, growth is a hole.

        Pages reserved beyond the end go also when the size stays what it is; growth keeps them.

        Raises:
            KError: EINVAL (negative) or EFBIG (beyond 2**63 - 1).
        """
        self._check_range(size, 0)
        if size <= self.size:
            self._free_pages(size + PAGE_MASK >> PAGE_SHIFT)
            self._zero_bytes(size, min(self.size, size + (-size & PAGE_MASK)))
        self.size = size

    def zero_range(self, offset: int, size: int) -> None:
        """Make a range read as zero, keeping its pages and adding none; size stays.

        What is left of whole pages is a reservation.

        Raises:
            KError: EINVAL or EFBIG.
        """
        end = min(self._check_range(offset, size), self.size)
        self._zero_bytes(offset, end)
        if self.kind is not OBJT_VNODE:
            stop = end if end < self.size else end + PAGE_MASK
            self._set_reserved(offset + PAGE_MASK >> PAGE_SHIFT, stop >> PAGE_SHIFT)

    def _set_reserved(self, first: int, stop: int) -> None:
        """Pages first to stop hold nothing but zeroes: they are reserved only."""
        if first >= stop:
            return
        dirty = self.pages.dirty
        for number in self._numbers(first >> RUN_SHIFT, stop - 1 >> RUN_SHIFT):
            base = number << RUN_SHIFT
            low, high = max(first, base), min(stop, base + RUN_MASK + 1)
            for address, length in self._extents(low << PAGE_SHIFT, high << PAGE_SHIFT):
                if address >= 0:
                    frame, count = address >> PAGE_SHIFT, length >> PAGE_SHIFT
                    dirty[frame : frame + count] = bytes(count)
                    self.reserved = True

    def punch(self, offset: int, size: int) -> None:
        """Make a range a hole: whole pages are freed, the edges zeroed; size stays.

        Raises:
            KError: EINVAL or EFBIG.
        """
        end = self._check_range(offset, size)
        first = offset + PAGE_MASK >> PAGE_SHIFT
        last = end >> PAGE_SHIFT
        if first > last:
            self._zero_bytes(offset, end)
            return
        self._zero_bytes(offset, first << PAGE_SHIFT)
        self._zero_bytes(last << PAGE_SHIFT, end)
        if first < last:
            self._free_pages(first, last - 1)

    def _zero_bytes(self, offset: int, end: int) -> None:
        """Zero what is resident of a range."""
        mem = self.pages.mem
        for number in self._numbers(offset >> CHUNK_SHIFT, end - 1 >> CHUNK_SHIFT):
            base = number << CHUNK_SHIFT
            start = max(offset, base)
            stop = min(end, base + CHUNK_SIZE)
            for address, length in self._extents(start, stop):
                if address >= 0 and not self._clean(address, length):
                    mem[address : address + length] = ZEROES[:length]
            if self.kind is OBJT_VNODE:
                self._set_dirty_resident(start, stop)

    def _set_dirty_resident(self, offset: int, end: int) -> None:
        while offset < end:
            stop = min(end, (offset | PAGE_MASK) + 1)
            if self.vm_page_lookup(offset >> PAGE_SHIFT) >= 0:
                self._set_dirty(offset, stop)
            offset = stop

    # Looking for data, copying.

    def seek_data(self, offset: int) -> int:
        """The first offset from here on that has a page which is not only reserved.

        Raises:
            KError: ENXIO, there is none before the end; EINVAL, a negative offset.
        """
        if offset < 0:
            raise KError(EINVAL)
        if offset >= self.size:
            raise KError(ENXIO)
        last = self.size - 1 >> PAGE_SHIFT
        pindex = offset >> PAGE_SHIFT
        for number in self._numbers(pindex >> RUN_SHIFT, last >> RUN_SHIFT):
            base = number << RUN_SHIFT
            chunk = self._get(number)
            if (
                isinstance(chunk, int)
                and chunk >= 0
                and self._clean(chunk << PAGE_SHIFT, CHUNK_SIZE)
            ):
                continue
            for i in range(max(pindex, base), min(last, base + RUN_MASK) + 1):
                if self._has_data(i):
                    return max(offset, i << PAGE_SHIFT)
        raise KError(ENXIO)

    def seek_hole(self, offset: int) -> int:
        """The first offset from here on that has no page, or a reserved one; or the end.

        Raises:
            KError: ENXIO, the offset is not before the end; EINVAL, a negative offset.
        """
        if offset < 0:
            raise KError(EINVAL)
        if offset >= self.size:
            raise KError(ENXIO)
        pindex = offset >> PAGE_SHIFT
        last = self.size - 1 >> PAGE_SHIFT
        while pindex <= last:
            chunk = self._get(pindex >> RUN_SHIFT)
            if isinstance(chunk, int) and chunk >= 0 and self._dirty_run(chunk):
                pindex = (pindex | RUN_MASK) + 1
            elif self._has_data(pindex):
                pindex += 1
            else:
                return max(offset, pindex << PAGE_SHIFT)
        return self.size

    def _has_data(self, pindex: int) -> bool:
        """Whether a page is there and not only reserved."""
        frame = self.vm_page_lookup(pindex)
        return frame >= 0 and (not self.reserved or bool(self.pages.dirty[frame]))

    def _clean(self, address: int, size: int) -> bool:
        """Whether all pages of a range in memory are only reserved."""
        if not self.reserved:
            return False
        first, stop = address >> PAGE_SHIFT, (address + size + PAGE_MASK) >> PAGE_SHIFT
        return not self.pages.dirty[first:stop].strip(b"\0")

    def _dirty_run(self, frame: int) -> bool:
        """Whether no page of a run is only reserved."""
        dirty = self.pages.dirty
        return not self.reserved or dirty[frame : frame + RUN_MASK + 1] == _ALL_DIRTY

    def copy_range(self, offset: int, dst: VmObject, dst_offset: int, size: int) -> int:
        """Copy a range to another place, keeping its holes; all or nothing.

        Pages that are only reserved are copied as the zeroes they hold.

        Returns:
            Bytes copied; fewer than size where this object ends.

        Raises:
            KError: ENOMEM or EFBIG; EINVAL, negative, or the ranges overlap in one object.
        """
        if offset < 0 or size < 0:
            raise KError(EINVAL)
        size = max(0, min(size, self.size - offset))
        end = dst._check_range(dst_offset, size)
        if dst is self and offset < end and dst_offset < offset + size:
            raise KError(EINVAL)
        extents = self._reserve_copy(offset, dst, dst_offset, size)
        buf = self.pages.physmem.buf
        # All writes come first: they were reserved, and a punch frees pages.
        for pos, address, length in extents:
            if address >= 0:
                dst.write(pos, buf[address : address + length])
        for pos, address, length in extents:
            if address < 0:
                dst.punch(pos, length)
        if size and end > dst.size:
            dst.size = end
        return size

    def _reserve_copy(
        self, offset: int, dst: VmObject, dst_offset: int, size: int
    ) -> list[tuple[int, int, int]]:
        """Reserve the pages a copy needs; return its (destination, address, length) pieces."""
        while True:
            pieces = []
            pos = dst_offset
            missing = 0
            for address, length in self._extents(offset, offset + size):
                pieces.append((pos, address, length))
                if address >= 0:
                    missing += dst._missing(pos >> PAGE_SHIFT, pos + length - 1 >> PAGE_SHIFT)
                pos += length
            if not missing or not dst.pages.reserve(missing):
                return pieces
