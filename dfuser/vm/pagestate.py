"""The state of pages: arrays, and the operations that change one page in place.

A page is an int, its frame number; there is no object per page. What DragonFly keeps in a
struct of 128 bytes lies in parallel arrays here, 30 bytes a frame, and only for frames that
were ever used (freespace.py):

=========== ================ ==================================================
array       C field          meaning
=========== ================ ==================================================
``_owner``  m->object        who has the page; None while free or on PQ_HOLD
``_pindex`` m->pindex        which page of its owner it is
``_queue``  m->queue         PQ_FREE, PQ_NONE (kernel, wired), PQ_ACTIVE, PQ_INACTIVE,
                             PQ_HOLD (freed while somebody still held it)
``valid``   m->valid         a bit for each 512 bytes that mean something
``dirty``   m->dirty         a bit for each 512 bytes with no other good copy
``_wire``   m->wire_count    wired: never paged out, never moved
``_hold``   m->hold_count    held: contents stay readable even if the owner frees it
``_busy``   m->busy_count    PBUSY_LOCKED or the count of soft busies (I/O in flight)
``_flags``  m->flags         PG_ZERO while free; PG_PINNED mirrors "wire, hold or busy"
=========== ================ ==================================================

Allocating, freeing and holding, which move pages between states, are in page.py.

Counterpart: struct vm_page (vm/vm_page.h) and the one-page functions of vm/vm_page.c.
Differs from DragonFly: no cache queue: clean pages are simply inactive until a pageout
    daemon exists. Queues are marks, not lists. Waiting for a busy page is the business of
    the rooms above; here the answer is True or False.
Token/lock order: takes none; the kernel's one host thread is the lock.
Invariants: a wired page is on PQ_NONE; PG_PINNED is set if and only if the page is wired,
    held or busy; ``valid`` and ``dirty`` of a free page mean nothing.
"""

from __future__ import annotations

from array import array
from typing import Final, Protocol

from dfuser.hw.physmem import PhysMem
from dfuser.libkern.errno import KKASSERT, panic
from dfuser.libkern.param import DEV_BSHIFT, PAGE_SHIFT, PAGE_SIZE
from dfuser.vm.freespace import FreeSpace

PQ_NONE: Final = 0
PQ_FREE: Final = 1
PQ_INACTIVE: Final = 2
PQ_ACTIVE: Final = 3
PQ_HOLD: Final = 5

VM_PAGE_BITS_ALL: Final = 0xFF
PBUSY_LOCKED: Final = 0x8000
PBUSY_MASK: Final = 0x7FFF

PG_PINNED: Final = 0x02
"""The page is wired, held or busy: freeing it needs a closer look."""


class PageOwner(Protocol):
    """What may own pages: a VM object, or the kernel itself."""

    @property
    def resident_page_count(self) -> int:
        """How many pages it has."""

    def vm_page_lookup(self, pindex: int) -> int:
        """The frame it keeps under pindex, or -1."""


class KernelObject:
    """Owner of pages that belong to no VM object. Counterpart: kernel_object (vm/vm_kern.c)."""

    __slots__ = ()

    resident_page_count = -1
    """Not kept: the kernel's pages are known to whoever allocated them."""

    def vm_page_lookup(self, pindex: int) -> int:
        """The kernel keeps no index of its pages."""
        return -1


def page_bits(base: int, size: int) -> int:
    """The valid/dirty bits that cover a byte range of a page. Counterpart: vm_page_bits."""
    KKASSERT(base >= 0 and size >= 0 and base + size <= PAGE_SIZE, "range crosses its page")
    if not size:
        return 0
    return (2 << (base + size - 1 >> DEV_BSHIFT)) - (1 << (base >> DEV_BSHIFT))


class PageState(FreeSpace):
    """Per-page state of all frames. VmPages is the subclass that hands pages out.

    Attributes:
        kernel_object: owner of pages allocated without one.
        valid: valid bits of each page; use set_valid and friends outside of this package.
        dirty: dirty bits of each page.
        v_wire_count: pages wired at least once.
    """

    __slots__ = ("_busy", "_hold", "_owner", "_pindex", "_queue", "_wire", "dirty",
                 "kernel_object", "v_wire_count", "valid")  # fmt: skip

    def __init__(self, physmem: PhysMem) -> None:
        self._owner: list[PageOwner | None] = []
        self._pindex = array("Q")
        self._queue = bytearray()
        self.valid = bytearray()
        self.dirty = bytearray()
        self._wire = array("I")
        self._hold = array("I")
        self._busy = array("H")
        self.kernel_object = KernelObject()
        self.v_wire_count = 0
        super().__init__(physmem)

    def _grow_state(self, frames: int) -> None:
        self._owner += [None] * frames
        self._pindex.frombytes(bytes(8 * frames))
        self._queue += bytes([PQ_FREE]) * frames
        self.valid += bytes(frames)
        self.dirty += bytes(frames)
        self._wire.frombytes(bytes(self._wire.itemsize * frames))
        self._hold.frombytes(bytes(self._hold.itemsize * frames))
        self._busy.frombytes(bytes(2 * frames))

    def lookup(self, frame: int) -> tuple[PageOwner | None, int]:
        """Owner and index of a page."""
        return self._owner[frame], self._pindex[frame]

    def queue(self, frame: int) -> int:
        """The queue a page is on."""
        return self._queue[frame] if frame < len(self._queue) else PQ_FREE

    def wire_count(self, frame: int) -> int:
        """How often a page is wired."""
        return self._wire[frame]

    def hold_count(self, frame: int) -> int:
        """How often a page is held."""
        return self._hold[frame]

    @property
    def v_active_count(self) -> int:
        """Pages on the active queue, counted now."""
        return self._queue.count(PQ_ACTIVE)

    @property
    def v_inactive_count(self) -> int:
        """Pages on the inactive queue, counted now."""
        return self._queue.count(PQ_INACTIVE)

    # Wiring and busying.

    def wire(self, frame: int) -> None:
        """Wire a page: off the queues, may not be freed. Counterpart: vm_page_wire."""
        self._used(frame)
        if not self._wire[frame]:
            self.v_wire_count += 1
            self._queue[frame] = PQ_NONE
            self._flags[frame] |= PG_PINNED
        self._wire[frame] += 1

    def unwire(self, frame: int, activate: bool = True) -> None:
        """Undo one wire; the last puts the page on a queue. Counterpart: vm_page_unwire.

        Raises:
            Panic: the page is not wired.
        """
        KKASSERT(self._wire[frame] > 0, f"vm_page_unwire: page {frame} is not wired")
        self._wire[frame] -= 1
        if not self._wire[frame]:
            self.v_wire_count -= 1
            if self._owner[frame] is not self.kernel_object:
                self._queue[frame] = PQ_ACTIVE if activate else PQ_INACTIVE
            self._unpin(frame)

    def busy_try(self, frame: int) -> bool:
        """Hard-busy a page, if nobody has it busy. Counterpart: vm_page_busy_try."""
        self._used(frame)
        if self._busy[frame]:
            return False
        self._busy[frame] = PBUSY_LOCKED
        self._flags[frame] |= PG_PINNED
        return True

    def wakeup(self, frame: int) -> None:
        """Release a hard-busy page. Counterpart: vm_page_wakeup."""
        KKASSERT(self._busy[frame] == PBUSY_LOCKED, f"vm_page_wakeup: page {frame} not busy")
        self._busy[frame] = 0
        self._unpin(frame)

    def sbusy_try(self, frame: int) -> bool:
        """Soft-busy a page (I/O that only reads it), unless it is hard-busy."""
        self._used(frame)
        if self._busy[frame] & PBUSY_LOCKED:
            return False
        KKASSERT(self._busy[frame] < PBUSY_MASK, "too many soft busies")
        self._busy[frame] += 1
        self._flags[frame] |= PG_PINNED
        return True

    def sbusy_drop(self, frame: int) -> None:
        """Undo one soft busy. Counterpart: vm_page_sbusy_drop, vm_page_io_finish."""
        KKASSERT(0 < self._busy[frame] <= PBUSY_MASK, f"page {frame} is not soft-busy")
        self._busy[frame] -= 1
        self._unpin(frame)

    def _unpin(self, frame: int) -> None:
        if not (self._wire[frame] or self._hold[frame] or self._busy[frame]):
            self._flags[frame] &= ~PG_PINNED

    def _used(self, frame: int) -> None:
        if self._owner[frame] is None:
            panic(f"vm_page: page {frame} has no owner")

    # Queues, valid and dirty bits.

    def activate(self, frame: int) -> None:
        """Mark a page active, unless it is wired. Counterpart: vm_page_activate."""
        self._used(frame)
        if not self._wire[frame]:
            self._queue[frame] = PQ_ACTIVE

    def deactivate(self, frame: int) -> None:
        """Mark a page inactive, unless it is wired. Counterpart: vm_page_deactivate."""
        self._used(frame)
        if not self._wire[frame]:
            self._queue[frame] = PQ_INACTIVE

    def set_valid(self, frame: int, base: int, size: int) -> None:
        """Mark a byte range valid, zeroing what its blocks have around it.

        A block that was invalid and is only partly covered gets zeroes in the rest.
        Counterpart: vm_page_set_valid, _vm_page_zero_valid.
        """
        bits = page_bits(base, size)
        missing = bits & ~self.valid[frame]
        start = frame << PAGE_SHIFT
        head = base & -(1 << DEV_BSHIFT)
        if head != base and missing >> (base >> DEV_BSHIFT) & 1:
            self.mem[start + head : start + base] = bytes(base - head)
        end = base + size
        tail = end + (-end & ((1 << DEV_BSHIFT) - 1))
        if tail != end and missing >> (end >> DEV_BSHIFT) & 1:
            self.mem[start + end : start + tail] = bytes(tail - end)
        self.valid[frame] |= bits

    def set_validclean(self, frame: int, base: int, size: int) -> None:
        """Mark a range valid and clean, after I/O. Counterpart: vm_page_set_validclean."""
        self.set_valid(frame, base, size)
        self.clear_dirty(frame, base, size)

    def set_dirty(self, frame: int, base: int, size: int) -> None:
        """Mark a range valid and dirty. Counterpart: vm_page_set_validdirty."""
        bits = page_bits(base, size)
        self.valid[frame] |= bits
        self.dirty[frame] |= bits

    def clear_dirty(self, frame: int, base: int, size: int) -> None:
        """Mark a range clean. Counterpart: vm_page_clear_dirty."""
        self.dirty[frame] &= ~page_bits(base, size)

    def set_invalid(self, frame: int, base: int, size: int) -> None:
        """Mark a range as meaning nothing. Counterpart: vm_page_set_invalid."""
        bits = page_bits(base, size)
        self.valid[frame] &= ~bits
        self.dirty[frame] &= ~bits

    def is_valid(self, frame: int, base: int, size: int) -> bool:
        """Whether all of a range is valid; an empty range is when anything is."""
        bits = page_bits(base, size)
        return bool(self.valid[frame]) and self.valid[frame] & bits == bits

    def test_dirty(self, frame: int) -> bool:
        """Whether any byte is dirty. Counterpart: vm_page_test_dirty."""
        return bool(self.dirty[frame])
