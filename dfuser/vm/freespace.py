"""Free frames: which ones, in which order, and what is known about their contents.

Frames come in *runs* of 16 (64 KiB, aligned). A run is the unit that large files and
contiguous memory use, a frame the unit of everything small. Both come from one place::

    never carved  --->  cold runs  --->  a run used whole
    (above _top)        warm runs  --->  the current run, carved frame by frame
                           ^                   |
                           +--- all 16 free ---+---> partial runs (some frames free)

- One 16-bit mask per run has a bit for each free frame. A run whose 16 bits are all set
  is whole again and goes back to the warm runs at once.
- *Warm* runs were used before: the host has memory for them, so they are handed out first
  (a first touch of fresh memory costs 20 times the copy of a page). *Cold* runs are known
  to be zero and cost the host nothing: never used, or given back by ``trim``.
- A frame that is known to be zero carries PG_ZERO while it is free and need not be
  cleared when somebody asks for a zeroed one. Whoever takes a frame clears its flags, so
  a frame comes back without the mark.
- Bookkeeping for memory that was never touched does not exist: the arrays grow with
  ``_top``, so booting with terabytes configured costs nothing.

The list of partial runs may hold entries that are no longer partial; they are skipped when
met. ``_listed`` keeps a run from being entered twice, so the list never exceeds the runs.

Counterpart: vm_page_list_find, vm_page_select_free, vm_page_alloc_contig (vm/vm_page.c);
    PG_ZERO as DragonFly had it when free pages were zeroed in the idle loop.
Differs from DragonFly: no page colouring and no per-CPU queues (there is no cache to
    spread over and no contention to avoid); runs of 16 instead, which DragonFly has only
    in vm_page_alloc_contig.
Token/lock order: takes none.
Invariants: a run is in exactly one state: above ``_top``, warm, cold (mask full), current,
    partial (mask neither 0 nor full, listed), or used up (mask 0). ``check_runs`` proves it.
"""

from __future__ import annotations

from array import array
from typing import Final

from dfuser.hw.physmem import PhysMem
from dfuser.libkern.errno import KKASSERT, panic

RUN_SHIFT: Final = 4
RUN_PAGES: Final = 1 << RUN_SHIFT
RUN_MASK: Final = RUN_PAGES - 1
RUN_FULL: Final = (1 << RUN_PAGES) - 1
GROW_RUNS: Final = 1024
"""Bookkeeping grows by this many runs (64 MiB) at a time."""

PG_ZERO: Final = 0x01
"""Free frame whose bytes are known to be zero."""
FLAGS_ZERO: Final = bytes([PG_ZERO]) * RUN_PAGES
FLAGS_NONE: Final = bytes(RUN_PAGES)


class FreeSpace:
    """Finds and takes back frames. VmPages is the subclass that gives them meaning.

    Attributes:
        physmem: the memory whose frames these are.
        mem: its mapping, for slices that copy.
        npages: number of frames.
    """

    __slots__ = ("_cold", "_cur", "_flags", "_listed", "_masks", "_nruns", "_partial", "_top",
                 "_warm", "mem", "npages", "physmem")  # fmt: skip

    def __init__(self, physmem: PhysMem) -> None:
        self.physmem = physmem
        self.mem = physmem.mem
        self.npages = physmem.npages
        self._nruns = (self.npages + RUN_PAGES - 1) >> RUN_SHIFT
        self._masks = array("H")
        self._listed = bytearray()
        self._flags = bytearray()
        self._partial: list[int] = []
        self._warm: list[int] = []
        self._cold: list[int] = []
        self._top = 0
        self._grow()
        self._cur = self._carve()
        self._masks[self._cur] = self._whole(self._cur)

    def _grow(self) -> None:
        """Make bookkeeping for the next runs above the ones that have it."""
        runs = min(GROW_RUNS, self._nruns - len(self._masks))
        self._masks.frombytes(bytes(2 * runs))
        self._listed += bytes(runs)
        frames = min(runs << RUN_SHIFT, self.npages - len(self._flags))
        self._flags += bytes([PG_ZERO]) * frames
        self._grow_state(frames)

    def _grow_state(self, frames: int) -> None:
        """Let the subclass make its own bookkeeping for so many more frames."""

    def _whole(self, run: int) -> int:
        """The mask of a run with all its frames free; the last run may be short."""
        frames = min(RUN_PAGES, self.npages - (run << RUN_SHIFT))
        return (1 << frames) - 1

    def _carve(self) -> int:
        """Take the next run that was never used; there must be one."""
        run = self._top
        self._top = run + 1
        if run >= len(self._masks):
            self._grow()
        return run

    def _take_run(self) -> int:
        """Take a whole run out of the free space, warm before cold; -1 if there is none."""
        if self._warm:
            run = self._warm.pop()
        elif self._cold:
            run = self._cold.pop()
        elif self._top < self.npages >> RUN_SHIFT:
            run = self._carve()
        elif self._masks[self._cur] == RUN_FULL:
            run = self._cur
        else:
            return -1
        self._masks[run] = 0
        return run

    def _refill(self) -> int:
        """Make a run with free frames the current one and return its mask.

        The caller knows that the current run is used up and that a free frame exists.
        """
        masks = self._masks
        partial = self._partial
        while partial:
            run = partial.pop()
            self._listed[run] = 0
            if 0 < masks[run] < RUN_FULL:
                self._cur = run
                return masks[run]
        run = self._take_run()
        if run < 0:
            if self._top >= self._nruns:
                panic("vm_page: free pages are counted, but none can be found")
            run = self._carve()
        self._cur = run
        mask = masks[run] = self._whole(run)
        return mask

    def _put_partial(self, run: int) -> None:
        """Enter a run into the list of partial runs, once."""
        if not self._listed[run]:
            self._listed[run] = 1
            self._partial.append(run)

    def _put_frame(self, frame: int) -> None:
        """Take back one frame."""
        run = frame >> RUN_SHIFT
        masks = self._masks
        old = masks[run]
        new = old | 1 << (frame & RUN_MASK)
        masks[run] = new
        if run != self._cur:
            if new == RUN_FULL:
                self._warm.append(run)
            elif not old:
                self._put_partial(run)

    def _put_run(self, run: int) -> None:
        """Take back a whole run."""
        self._masks[run] = RUN_FULL
        if run != self._cur:
            self._warm.append(run)

    def _take_contig(self, n: int) -> int:
        """Take n contiguous frames (2 to 16) out of one run; -1 if no run has them."""
        need = (1 << n) - 1
        run = self._take_run()
        if run >= 0:
            self._masks[run] = RUN_FULL & ~need
            if n < RUN_PAGES and run != self._cur:
                self._put_partial(run)
            return run << RUN_SHIFT
        for run in (self._cur, *self._partial):
            mask = self._masks[run]
            for shift in range(RUN_PAGES - n + 1):
                if mask >> shift & need == need:
                    self._masks[run] = mask & ~(need << shift)
                    return (run << RUN_SHIFT) + shift
        return -1

    def warm_pages(self) -> int:
        """Free frames in whole runs that the host may still hold memory for."""
        return len(self._warm) << RUN_SHIFT

    def discard_warm(self, keep: int, limit: int) -> int:
        """Give the memory of free whole runs back to the host, oldest first.

        Args:
            keep: frames that stay warm.
            limit: most frames given back by this call, to bound its time (about 1 us each).

        Returns:
            The number of frames given back.
        """
        excess = min(self.warm_pages() - keep, limit) >> RUN_SHIFT
        if excess <= 0:
            return 0
        runs = sorted(self._warm[:excess])
        start = end = runs[0]
        for run in [*runs[1:], -1]:
            if run == end + 1:
                end = run
                continue
            self.physmem.discard(start << RUN_SHIFT, (end - start + 1) << RUN_SHIFT)
            start = end = run
        del self._warm[:excess]
        for run in runs:
            frame = run << RUN_SHIFT
            self._flags[frame : frame + RUN_PAGES] = FLAGS_ZERO
        self._cold += reversed(runs)
        return excess << RUN_SHIFT

    def free_frames(self) -> int:
        """Count the free frames from the masks alone, for checks."""
        carved = sum(mask.bit_count() for mask in self._masks[: self._top])
        return carved + max(0, self.npages - (self._top << RUN_SHIFT))

    def is_free(self, frame: int) -> bool:
        """Whether a frame is free."""
        run = frame >> RUN_SHIFT
        return run >= self._top or bool(self._masks[run] >> (frame & RUN_MASK) & 1)

    def check_runs(self) -> None:
        """Prove that every run is in exactly one state.

        Raises:
            Panic: names the run that is not.
        """
        whole = [*self._warm, *self._cold]
        stacked = set(whole)
        KKASSERT(len(stacked) == len(whole), "vm_page: a free run is stacked twice")
        listed = set(self._partial)
        KKASSERT(len(listed) == len(self._partial), "vm_page: a partial run is listed twice")
        for run in range(self._top):
            mask = self._masks[run]
            if (mask == RUN_FULL and run != self._cur) != (run in stacked):
                panic(f"vm_page: run {run} (frame {run << RUN_SHIFT}) is not stacked as free")
            if bool(self._listed[run]) != (run in listed):
                panic(f"vm_page: run {run} has a wrong listed mark")
            if 0 < mask < RUN_FULL and run != self._cur and run not in listed:
                panic(f"vm_page: partial run {run} (frame {run << RUN_SHIFT}) is lost")
            if mask & ~self._whole(run):
                panic(f"vm_page: run {run} has frames beyond the end of memory")
