"""The pages behind buffers: the VM object of a vnode, and how cached pages are given back.

The data of a file lie in the pages of its vnode's `VnodeObject`, once. A buffer takes the pages of
its block (`VnodeObject.grab`) and wires them as long as it exists; when it is reused for another
block, the pages stay behind, valid and unwired, and a later buffer for the same block finds them
and need not read. So the file cache is as large as memory allows, while buffers are limited.

What says whether bytes mean something are the page's own valid bits; what says that they must be
written is the buffer (B.DELWRI), as in DragonFly: `bdwrite` marks the pages clean.

When pages are short `PageScan` goes round over all frames, a hand that stops where it has found
enough, and frees what belongs to vnodes, is clean, and is neither wired, held nor busy. Inactive
pages go, active ones become inactive first.

Counterpart: vnode_pager_alloc, vnode_pager_setsize (vm/vnode_pager.c); vinitvmio (kern/vfs_subr.c);
    vm_pageout_scan_inactive (vm/vm_pageout.c), for pages of vnodes.
Differs from DragonFly: the scan runs when a request finds memory short; there is no queue of
    inactive pages to go along, only their marks.
Token/lock order: takes none; nothing here suspends.
Invariants: those of VmObject; a wired or busy page is never freed.
"""

from __future__ import annotations

from typing import Final

from dfuser.libkern.param import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from dfuser.vm.freespace import RUN_SHIFT
from dfuser.vm.object import OBJT_VNODE, VmObject
from dfuser.vm.page import VmPages
from dfuser.vm.pagemap import PINDEX_MAX
from dfuser.vm.pagestate import PQ_ACTIVE, PQ_INACTIVE, VM_PAGE_BITS_ALL

_VALID: Final = bytes([VM_PAGE_BITS_ALL]) * 17
_CLEAN: Final = bytes(17)

Extents = list[tuple[int, int]]


class VnodeObject(VmObject):
    """The pages of a vnode whose blocks come through buffers.

    Counterpart: struct vm_object of type OBJT_VNODE (vm/vm_object.h).
    """

    __slots__ = ()

    def __init__(self, pages: VmPages) -> None:
        super().__init__(pages, OBJT_VNODE)

    def grab(self, offset: int, size: int) -> Extents:
        """Make the pages of a block resident, new ones with nothing valid; returns where they are.

        Runs of 64 KiB are taken where the block covers one.

        Raises:
            KError: ENOMEM; nothing changed.
        """
        start = offset & ~PAGE_MASK
        end = (offset + size + PAGE_MASK) & ~PAGE_MASK
        address = self._address(offset, size)
        if address >= 0:
            return [(address, size)]
        self._allocate(start, end, start, end)
        return self._extents(offset, offset + size)

    def setsize(self, size: int, keep: int) -> None:
        """The file has this size now; pages from ``keep`` bytes on go. They must not be wired.

        Counterpart: vnode_pager_setsize.
        """
        if size < self.size:
            self._free_pages(keep + PAGE_MASK >> PAGE_SHIFT)
        self.size = size

    def free_page(self, pindex: int) -> None:
        """Give one resident page back."""
        self._free_pages(pindex, pindex)

    def free_unpinned(self, offset: int = 0) -> None:
        """Free the pages from ``offset`` on that nobody has wired, held or busied."""
        if not self.resident_page_count:
            return
        first = offset + PAGE_MASK >> PAGE_SHIFT
        for number in self._numbers(first >> RUN_SHIFT, PINDEX_MAX >> RUN_SHIFT):
            for pindex in range(max(first, number << RUN_SHIFT), (number + 1) << RUN_SHIFT):
                frame = self.vm_page_lookup(pindex)
                if frame >= 0 and idle(self.pages, frame):
                    self._free_pages(pindex, pindex)


def idle(pages: VmPages, frame: int) -> bool:
    """Whether a page is neither wired, held nor busy."""
    if pages.wire_count(frame) or pages.hold_count(frame) or not pages.busy_try(frame):
        return False
    pages.wakeup(frame)
    return True


def all_valid(pages: VmPages, extents: Extents) -> bool:
    """Whether every byte means something."""
    for address, length in extents:
        first, stop = address >> PAGE_SHIFT, (address + length + PAGE_MASK) >> PAGE_SHIFT
        if pages.valid[first:stop] == _VALID[: stop - first]:
            continue
        for frame, base, size in _parts(address, length):
            if not pages.is_valid(frame, base, size):
                return False
    return True


def set_validclean(pages: VmPages, extents: Extents, skip_valid: bool = False) -> None:
    """Every byte means something and needs no writing of its own. Counterpart: vfs_clean_pages.

    With ``skip_valid`` pages that are wholly valid stay as they are: a read has not touched them.
    """
    for address, length in extents:
        if not (address | length) & PAGE_MASK and not skip_valid:
            first, count = address >> PAGE_SHIFT, length >> PAGE_SHIFT
            for at in range(first, first + count, 16):
                take = min(16, first + count - at)
                pages.valid[at : at + take] = _VALID[:take]
                pages.dirty[at : at + take] = _CLEAN[:take]
            continue
        for frame, base, size in _parts(address, length):
            if not (skip_valid and pages.valid[frame] == VM_PAGE_BITS_ALL):
                pages.set_validclean(frame, base, size)


def set_invalid(pages: VmPages, extents: Extents, skip_valid: bool = False) -> None:
    """The bytes mean nothing; with ``skip_valid`` but for pages that were valid before the read."""
    for address, length in extents:
        for frame, base, size in _parts(address, length):
            if not (skip_valid and pages.valid[frame] == VM_PAGE_BITS_ALL):
                pages.set_invalid(frame, base, size)


def any_valid(pages: VmPages, extents: Extents) -> bool:
    """Whether some page is wholly valid."""
    return any(
        VM_PAGE_BITS_ALL in pages.valid[a >> PAGE_SHIFT : (a + n + PAGE_MASK) >> PAGE_SHIFT]
        for a, n in extents
    )


def _parts(address: int, length: int) -> list[tuple[int, int, int]]:
    """Cut a range of memory into (frame, base, size)."""
    out = []
    end = address + length
    while address < end:
        base = address & PAGE_MASK
        take = min(PAGE_SIZE - base, end - address)
        out.append((address >> PAGE_SHIFT, base, take))
        address += take
    return out


class PageScan:
    """Gives cached pages of vnodes back when memory is short.

    Attributes:
        hand: the frame to look at next.
        scanned, freed: frames looked at and pages freed since boot.
    """

    __slots__ = ("freed", "hand", "pages", "scanned")

    def __init__(self, pages: VmPages) -> None:
        self.pages = pages
        self.hand = 0
        self.scanned = 0
        self.freed = 0

    def scan(self, want: int) -> int:
        """Free up to ``want`` pages; returns how many. Looks at each frame twice at most."""
        pages = self.pages
        limit = len(pages.valid)
        got = 0
        for _ in range(2 * limit):
            if got >= want:
                break
            frame = self.hand
            self.hand = frame + 1 if frame + 1 < limit else 0
            self.scanned += 1
            queue = pages.queue(frame)
            if queue == PQ_ACTIVE:
                owner, _pindex = pages.lookup(frame)
                if isinstance(owner, VnodeObject):
                    pages.deactivate(frame)
            elif queue == PQ_INACTIVE and not pages.dirty[frame]:
                owner, pindex = pages.lookup(frame)
                if isinstance(owner, VnodeObject) and idle(pages, frame):
                    owner.free_page(pindex)
                    got += 1
        self.freed += got
        return got
