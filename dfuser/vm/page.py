"""The frames of physical memory: who owns them and what state they are in.

A page is an int, its frame number; its state is in the arrays of pagestate.py, the search
for free ones in freespace.py. This file hands pages out, takes them back and says no.

Ordinary callers are refused while their request would take memory below
``v_free_reserved``; the system may go down to ``v_interrupt_free_min``, interrupts to the
last page. On the way down the functions in ``shortage`` are called, so that the rooms above
give back what they can. ``reserve`` does all of this before anything is changed, which is
how an object's write is all or nothing.

Counterpart: struct vm_page, vm/vm_page.c, vm/vm_page.h; vm_pageout_free_page_calc
    (vm/vm_pageout.c); struct vmstats (sys/vmmeter.h).
Differs from DragonFly: an ordinary request is refused when it would *leave* less than the
    reserve (DragonFly: when there already is less). Machines under 4.3 MiB get smaller
    reserves than the formulas give, or nothing would be left. Freeing a wired page is a
    panic at any wire count.
Token/lock order: takes none; the kernel's one host thread is the lock. A ``shortage``
    function may free pages and must not wait.
Invariants: free + used == v_page_count; each used page has exactly one owner, which finds
    it under its pindex, or sits on PQ_HOLD with a hold; a free page has no owner, wire,
    hold or busy. ``check`` recomputes all of it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from dfuser.hw.physmem import PhysMem
from dfuser.libkern.errno import EINVAL, ENOMEM, KKASSERT, KError, panic
from dfuser.libkern.param import PAGE_SHIFT, PAGE_SIZE
from dfuser.libkern.sysctl import LONG, RD, RW, UINT, ULONG, Sysctl
from dfuser.vm.freespace import (
    FLAGS_NONE,
    FLAGS_ZERO,
    PG_ZERO,
    RUN_FULL,
    RUN_MASK,
    RUN_PAGES,
    RUN_SHIFT,
)
from dfuser.vm.pagestate import (
    PG_PINNED,
    PQ_ACTIVE,
    PQ_FREE,
    PQ_HOLD,
    PQ_NONE,
    VM_PAGE_BITS_ALL,
    PageOwner,
    PageState,
)

VM_ALLOC_NORMAL: Final = 0x0001
VM_ALLOC_SYSTEM: Final = 0x0002
VM_ALLOC_INTERRUPT: Final = 0x0004

_NO_OWNERS: Final = (None,) * RUN_PAGES
_QUEUE_RUN: Final = tuple(bytes([queue]) * RUN_PAGES for queue in range(6))
_BITS_RUN: Final = (bytes(RUN_PAGES), bytes([VM_PAGE_BITS_ALL]) * RUN_PAGES)
_ZERO_PAGE: Final = bytes(PAGE_SIZE)


class VmStatistics(NamedTuple):
    """Counts of pages. Counterpart: struct vmstats (sys/vmmeter.h).

    ``v_hold_count`` are pages freed while held, ``v_warm_count`` free pages the host may
    still hold memory for, ``v_alloc_fail`` requests refused, ``v_shortages`` how often the
    free count fell below ``v_free_min``.
    """

    v_page_size: int
    v_page_count: int
    v_free_count: int
    v_free_min: int
    v_free_target: int
    v_free_reserved: int
    v_interrupt_free_min: int
    v_wire_count: int
    v_active_count: int
    v_inactive_count: int
    v_hold_count: int
    v_warm_count: int
    v_alloc_fail: int
    v_shortages: int


class VmPages(PageState):
    """All pages of one machine. Counterpart: vm_page_array and struct vm_page (vm/vm_page.h).

    Attributes:
        v_free_count: pages that are free.
        v_free_min: below this the shortage functions are called.
        v_free_reserved: ordinary requests leave at least so many pages free.
        v_free_target: a shortage is over when so many pages are free again.
        free_warm_max: free pages that ``trim`` leaves with the host's memory attached.
        shortage: functions called with the number of pages wanted; they may free pages.
    """

    __slots__ = ("_in_shortage", "_short", "free_warm_max", "shortage", "v_alloc_fail",
                 "v_free_count", "v_free_min", "v_free_reserved", "v_free_severe",
                 "v_free_target", "v_interrupt_free_min", "v_page_count",
                 "v_page_size", "v_pageout_free_min", "v_shortages")  # fmt: skip

    sysctl_counts = (
        Sysctl("vm.stats.vm.v_page_size", "Page size in bytes", attr="v_page_size", kind=UINT),
        Sysctl("vm.stats.vm.v_page_count", "Total number of pages in system",
               attr="v_page_count", kind=ULONG),
        Sysctl("vm.stats.vm.v_free_reserved", "Pages ordinary requests must leave free",
               attr="v_free_reserved", kind=ULONG),
        Sysctl("vm.stats.vm.v_free_target", "Number of pages desired free",
               attr="v_free_target", kind=ULONG),
        Sysctl("vm.stats.vm.v_free_min", "Minimum number of pages desired free",
               attr="v_free_min", kind=ULONG),
        Sysctl("vm.stats.vm.v_free_count", "Number of pages free", attr="v_free_count",
               kind=ULONG),
        Sysctl("vm.stats.vm.v_wire_count", "Number of pages wired down", attr="v_wire_count",
               kind=ULONG),
        Sysctl("vm.stats.vm.v_active_count", "Number of pages active", attr="v_active_count",
               kind=ULONG),
        Sysctl("vm.stats.vm.v_inactive_count", "Number of pages inactive",
               attr="v_inactive_count", kind=ULONG),
        Sysctl("vm.stats.vm.v_pageout_free_min", "Pages reserved for the pageout daemon",
               attr="v_pageout_free_min", kind=ULONG),
        Sysctl("vm.stats.vm.v_interrupt_free_min", "Pages reserved for interrupt code",
               attr="v_interrupt_free_min", kind=ULONG),
        Sysctl("vm.stats.vm.v_alloc_fail", "Page requests refused", attr="v_alloc_fail",
               kind=ULONG),
        Sysctl("vm.stats.vm.v_shortages", "Times the free pages fell below v_free_min",
               attr="v_shortages", kind=ULONG),
        Sysctl("vm.stats.vm.v_warm_count", "Free pages not given back to the host",
               getter="warm_pages", kind=ULONG, flags=RD),
    )  # fmt: skip
    sysctl_limits = (
        Sysctl("vm.v_free_min", "Minimum number of pages desired free", attr="v_free_min",
               kind=LONG, flags=RW, minimum=0, setter="set_v_free_min"),
        Sysctl("vm.v_free_target", "Number of pages desired free", attr="v_free_target",
               kind=LONG, flags=RW, minimum=0, setter="set_v_free_target"),
        Sysctl("vm.v_free_reserved", "Pages ordinary requests must leave free",
               attr="v_free_reserved", kind=LONG, flags=RW, minimum=0,
               setter="set_v_free_reserved"),
        Sysctl("vm.free_warm_max", "Free pages kept ready instead of given back to the host",
               attr="free_warm_max", kind=LONG, flags=RW, minimum=0),
    )  # fmt: skip

    def __init__(self, physmem: PhysMem) -> None:
        super().__init__(physmem)
        self.shortage: list[Callable[[int], None]] = []
        self._short = False
        self._in_shortage = False
        self.v_page_size = PAGE_SIZE
        self.v_page_count = self.v_free_count = self.npages
        self.v_alloc_fail = 0
        self.v_shortages = 0
        self.free_warm_max = self.npages // 16
        self._free_page_calc()

    def _free_page_calc(self) -> None:
        """Set the thresholds. Counterpart: vm_pageout_free_page_calc."""
        count = self.v_page_count
        low = min(64 + count // 200, count // 16)
        self.v_free_min = low
        self.v_free_reserved = min(low * 4 // 8 + 7, low)
        self.v_free_severe = low * 4 // 8
        self.v_pageout_free_min = min(low * 2 // 8 + 7, self.v_free_reserved)
        self.v_interrupt_free_min = min(low * 1 // 8 + 7, self.v_free_reserved // 2)
        self.v_free_target = 4 * low + self.v_free_reserved

    # Allocation.

    def alloc(
        self,
        n: int = 1,
        owner: PageOwner | None = None,
        pindex: int = 0,
        *,
        zero: bool = False,
        req: int = VM_ALLOC_NORMAL,
    ) -> int:
        """Allocate n contiguous pages. Never blocks. Counterpart: vm_page_alloc.

        Args:
            n: 1 to 16; more than one are contiguous but aligned only if n is 16.
            owner: who gets them (they become active); None is the kernel.
            pindex: index of the first page in its owner.
            zero: clear them, unless they are known to be zero already. Cleared pages are
                valid, others are not; none is dirty.
            req: VM_ALLOC_NORMAL, SYSTEM or INTERRUPT: how deep into the reserve.

        Returns:
            The first frame.

        Raises:
            KError: ENOMEM, nothing changed. With n > 1 also if no run has n free in a row.
        """
        free = self.v_free_count - n
        if free < self.v_free_min:
            self.reserve(n, req)
            free = self.v_free_count - n
        if n != 1:
            return self._alloc_contig(n, owner, pindex, zero)
        mask = self._masks[self._cur] or self._refill()
        low = mask & -mask
        self._masks[self._cur] = mask ^ low
        frame = (self._cur << RUN_SHIFT) + low.bit_length() - 1
        self.v_free_count = free
        if owner is None:
            self._owner[frame] = self.kernel_object
            self._queue[frame] = PQ_NONE
        else:
            self._owner[frame] = owner
            self._queue[frame] = PQ_ACTIVE
        self._pindex[frame] = pindex
        self.dirty[frame] = 0
        flags = self._flags
        if zero:
            if not flags[frame]:
                start = frame << PAGE_SHIFT
                self.mem[start : start + PAGE_SIZE] = _ZERO_PAGE
                self.physmem.bytes_zeroed += PAGE_SIZE
            self.valid[frame] = VM_PAGE_BITS_ALL
        else:
            self.valid[frame] = 0
        flags[frame] = 0
        return frame

    def _alloc_contig(self, n: int, owner: PageOwner | None, pindex: int, zero: bool) -> int:
        KKASSERT(1 < n <= RUN_PAGES, "contiguous pages beyond a run")
        first = self._take_contig(n)
        if first < 0:
            self.v_alloc_fail += 1
            raise KError(ENOMEM, f"no {n} contiguous pages")
        self.v_free_count -= n
        for i in range(n):
            self._assign(first + i, owner, pindex + i, zero)
        return first

    def _assign(self, frame: int, owner: PageOwner | None, pindex: int, zero: bool) -> None:
        """Give a frame that was taken out of the free space its owner."""
        self._owner[frame] = self.kernel_object if owner is None else owner
        self._queue[frame] = PQ_NONE if owner is None else PQ_ACTIVE
        self._pindex[frame] = pindex
        self.dirty[frame] = 0
        self.valid[frame] = VM_PAGE_BITS_ALL if zero else 0
        if zero and not self._flags[frame] & PG_ZERO:
            self.physmem.zero(frame)
        self._flags[frame] = 0

    def alloc_run(
        self,
        owner: PageOwner | None = None,
        pindex: int = 0,
        *,
        zero: bool = False,
        req: int = VM_ALLOC_NORMAL,
    ) -> int | None:
        """Allocate 16 contiguous, aligned pages. Never blocks.

        Returns:
            The first frame, or None when no whole run is free or the reserve would suffer:
            the caller then takes single pages, whose allocation says why it fails.
        """
        free = self.v_free_count - RUN_PAGES
        if free < self.v_free_min and free < self._floor(req):
            return None
        run = self._take_run()
        if run < 0:
            return None
        self.v_free_count = free
        first = run << RUN_SHIFT
        end = first + RUN_PAGES
        self._owner[first:end] = (self.kernel_object if owner is None else owner,) * RUN_PAGES
        self._pindex[first:end] = array("Q", range(pindex, pindex + RUN_PAGES))
        self._queue[first:end] = _QUEUE_RUN[PQ_NONE if owner is None else PQ_ACTIVE]
        self.dirty[first:end] = _BITS_RUN[0]
        self.valid[first:end] = _BITS_RUN[zero]
        if zero and self._flags[first:end] != FLAGS_ZERO:
            self.physmem.zero(first, RUN_PAGES)
        self._flags[first:end] = FLAGS_NONE
        return first

    def _floor(self, req: int) -> int:
        """How many pages a request must leave free."""
        if req & VM_ALLOC_INTERRUPT:
            return 0
        return self.v_interrupt_free_min if req & VM_ALLOC_SYSTEM else self.v_free_reserved

    def reserve(self, n: int, req: int = VM_ALLOC_NORMAL) -> bool:
        """Make sure that n single pages can be allocated now. Changes nothing itself.

        Until the caller suspends or calls out, that many ``alloc`` (with req INTERRUPT)
        cannot fail.

        Returns:
            Whether shortage functions ran: they may have freed pages of anybody, so a
            caller that counted pages before must count again.

        Raises:
            KError: ENOMEM, the reserve would suffer even after asking for memory back.
        """
        if self.v_free_count - n >= self.v_free_min:
            return False
        ran = False
        if not self._short:
            self._short = True
            self.v_shortages += 1
            ran = self._ask_back(n)
        floor = self._floor(req)
        if self.v_free_count - n < floor and not ran:
            ran = self._ask_back(n)
        if self.v_free_count - n < floor:
            self.v_alloc_fail += 1
            raise KError(ENOMEM, f"{n} pages wanted, {self.v_free_count} free")
        return ran

    def _ask_back(self, n: int) -> bool:
        """Call the shortage functions, unless one of them is asking."""
        if self._in_shortage or not self.shortage:
            return False
        self._in_shortage = True
        try:
            for fn in tuple(self.shortage):
                fn(n)
        finally:
            self._in_shortage = False
        return True

    # Freeing.

    def free(self, frame: int) -> None:
        """Free a page. A held page goes to PQ_HOLD until its last unhold.

        The caller has taken it out of its owner. Counterpart: vm_page_free_toq.

        Raises:
            Panic: it is free already, wired or busy.
        """
        queue = self._queue
        if queue[frame] == PQ_FREE or self._flags[frame]:
            return self._free_pinned(frame)
        queue[frame] = PQ_FREE
        self._owner[frame] = None
        self.v_free_count += 1
        run = frame >> RUN_SHIFT
        old = self._masks[run]
        new = old | 1 << (frame & RUN_MASK)
        if run != self._cur and (not old or new == RUN_FULL):
            self._put_frame(frame)
        else:
            self._masks[run] = new
        if self._short and self.v_free_count >= self.v_free_target:
            self._short = False
        return None

    def _free_pinned(self, frame: int) -> None:
        if self._queue[frame] in (PQ_FREE, PQ_HOLD):
            panic(f"vm_page_free: page {frame} is free already")
        if self._wire[frame] or self._busy[frame]:
            panic(f"vm_page_free: page {frame} is wired or busy")
        self._queue[frame] = PQ_HOLD
        self._owner[frame] = None

    def free_pages(self, frames: Iterable[int]) -> None:
        """Free many pages."""
        for frame in frames:
            self.free(frame)

    def free_run(self, first: int) -> None:
        """Free 16 pages that were allocated as one run and are all still its.

        Raises:
            Panic: one of them is free already, wired or busy.
        """
        end = first + RUN_PAGES
        if self._flags[first:end] != FLAGS_NONE or self._masks[first >> RUN_SHIFT]:
            return self.free_pages(range(first, end))
        self._queue[first:end] = _QUEUE_RUN[PQ_FREE]
        self._owner[first:end] = _NO_OWNERS
        self.v_free_count += RUN_PAGES
        self._put_run(first >> RUN_SHIFT)
        if self._short and self.v_free_count >= self.v_free_target:
            self._short = False
        return None

    def trim(self, limit: int = 16384) -> int:
        """Give free memory above ``free_warm_max`` back to the host, 64 MiB a call.

        Only whole runs are given back. Called by a daemon, so that no free() pays for it.

        Returns:
            Pages given back.
        """
        return self.discard_warm(self.free_warm_max, limit)

    def hold(self, frame: int, n: int = 1) -> None:
        """Hold n contiguous pages: their bytes stay readable, whatever the owner does."""
        queue, hold, flags = self._queue, self._hold, self._flags
        for f in range(frame, frame + n):
            if queue[f] == PQ_FREE:
                panic(f"vm_page_hold: page {f} is free")
            hold[f] += 1
            flags[f] |= PG_PINNED

    def unhold(self, frame: int, n: int = 1) -> None:
        """Undo one hold; a page on PQ_HOLD is freed by the last.

        Raises:
            Panic: the page is not held.
        """
        queue, hold = self._queue, self._hold
        for f in range(frame, frame + n):
            left = hold[f] - 1
            if left < 0:
                panic(f"vm_page_unhold: page {f} is not held")
            hold[f] = left
            if not left:
                self._unpin(f)
                if queue[f] == PQ_HOLD:
                    queue[f] = PQ_NONE
                    self.free(f)

    # Limits, views, checks.

    def set_v_free_min(self, value: int) -> None:
        """Set v_free_min, from v_free_reserved to v_free_target (EINVAL otherwise)."""
        if not self.v_free_reserved <= value <= self.v_free_target:
            raise KError(EINVAL)
        self.v_free_min = value

    def set_v_free_target(self, value: int) -> None:
        """Set v_free_target, from v_free_min to all of memory (EINVAL otherwise)."""
        if not self.v_free_min <= value <= self.v_page_count:
            raise KError(EINVAL)
        self.v_free_target = value

    def set_v_free_reserved(self, value: int) -> None:
        """Set v_free_reserved, from v_interrupt_free_min to v_free_min (EINVAL otherwise)."""
        if not self.v_interrupt_free_min <= value <= self.v_free_min:
            raise KError(EINVAL)
        self.v_free_reserved = value

    def statistics(self) -> VmStatistics:
        """Counts of pages now."""
        return VmStatistics(
            v_page_size=PAGE_SIZE,
            v_page_count=self.v_page_count,
            v_free_count=self.v_free_count,
            v_free_min=self.v_free_min,
            v_free_target=self.v_free_target,
            v_free_reserved=self.v_free_reserved,
            v_interrupt_free_min=self.v_interrupt_free_min,
            v_wire_count=self.v_wire_count,
            v_active_count=self.v_active_count,
            v_inactive_count=self.v_inactive_count,
            v_hold_count=self._queue.count(PQ_HOLD),
            v_warm_count=self.warm_pages(),
            v_alloc_fail=self.v_alloc_fail,
            v_shortages=self.v_shortages,
        )

    def check(self, contents: bool = False) -> None:
        """Recompute every invariant of this file. About 1 us a page ever used.

        Args:
            contents: also read that pages known to be zero are.

        Raises:
            Panic: names the page that is wrong.
        """
        self.check_runs()
        KKASSERT(
            self.free_frames() == self.v_free_count,
            f"vm_page: {self.free_frames()} pages are free, {self.v_free_count} counted",
        )
        owned: dict[int, tuple[PageOwner, int]] = {}
        wired = 0
        for frame in range(len(self._queue)):
            owner = self._check_page(frame)
            wired += self._wire[frame] > 0
            if owner is not None:
                owned[id(owner)] = owner, owned.get(id(owner), (owner, 0))[1] + 1
            elif contents and self._flags[frame] & PG_ZERO:
                start = frame << PAGE_SHIFT
                if self.mem[start : start + PAGE_SIZE] != _ZERO_PAGE:
                    panic(f"vm_page: page {frame} is not zero")
        KKASSERT(wired == self.v_wire_count, f"vm_page: {wired} wired, {self.v_wire_count} counted")
        for owner, count in owned.values():
            if owner is not self.kernel_object and owner.resident_page_count != count:
                panic(f"vm_page: {owner!r} counts {owner.resident_page_count} pages, has {count}")

    def _check_page(self, frame: int) -> PageOwner | None:
        """Check one page and return the owner that has it."""
        owner = self._owner[frame]
        pins = self._wire[frame] or self._hold[frame] or self._busy[frame]
        queue = self._queue[frame]
        if self.is_free(frame) != (queue == PQ_FREE):
            panic(f"vm_page: page {frame} is on queue {queue}, the free mask disagrees")
        if bool(self._flags[frame] & PG_PINNED) != bool(pins):
            panic(f"vm_page: page {frame} has a wrong pin mark")
        if queue == PQ_FREE:
            if owner is not None or pins:
                panic(f"vm_page: page {frame} is free, but owned or pinned")
            return None
        if queue == PQ_HOLD:
            if owner is not None or not self._hold[frame]:
                panic(f"vm_page: page {frame} is on the hold queue without a hold")
            return None
        if owner is None:
            panic(f"vm_page: page {frame} is used, but has no owner")
        if owner is not self.kernel_object and owner.vm_page_lookup(self._pindex[frame]) != frame:
            panic(f"vm_page: page {frame} is not where its owner {owner!r} should have it")
        return owner
