"""The translation lookaside buffer of one CPU: what walks found, until somebody says otherwise.

The TLB is a memory of its own. A change of a page table does not reach it; software must
invalidate, and until then a CPU may go on with what it knew. That is a fact other kernel code has
to live with (it is why TLB shootdown exists), so this model keeps stale translations faithfully
instead of being cleverly coherent.

What is kept (SDM 4.10.2): translations that a walk *completed*, with the rights, the D flag, the
memory type and the G flag they had then. Never kept: an entry that was not present or had a
reserved bit, so making a page present needs no invalidation. Control registers are not part of
it; WP, SMEP, SMAP and AC are applied at each hit, by the rules of ``fault.py``.

When a kept translation does not serve an access (rights too small, or a store and D not known to
be set), the access does not fault: everything kept of that page is dropped and the tables are
walked again, and the walk's answer counts. So raising rights needs no invalidation either, there
are no spurious faults (SDM 4.10.4.3 allows them, real CPUs walk again too), and the D flag is set
by the store that needs it. A page fault drops what is kept for its address (SDM 4.10.4.1).

How it is kept: always per 4 KiB page, also out of large pages (SDM 4.10.2.3 allows that); then an
invalidation of any address in the large page drops all its pieces. One dictionary for global
translations, one for all others, whose keys carry the process-context identifier above the page
number. Each new translation takes the next of ``capacity`` places, in a circle, as a hardware
pointer does: the oldest goes first, now and then though another place is free.

Source: Intel SDM volume 3, section 4.10 (caching translation information).
Counterpart: none in DragonFly; cpu_invlpg, cpu_invltlb and pmap_inval.c are its users.
Differs from the processor: fully associative; no prefetch, nothing is cached without an access;
    no separate instruction TLB; no paging-structure caches, so upper levels are never stale on
    their own.
Token/lock order: takes none; a CPU touches its own TLB only, others ask it by IPI.
Invariants: each translation kept has a place of its own (``_queue[_place[slot]] == slot``), so
    they never exceed the capacity; each has A set; no address is non-canonical; each piece of a
    large page has its region in ``_regions``; ``_only`` is the one context that the non-global
    ones have, or says that they may have several.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from dfuser.hw.mmu.fault import TRANSLATION_LEVEL_SHIFT, level_of
from dfuser.hw.mmu.pte import LEVEL_SHIFT, PG_FRAME, X86_PG_G
from dfuser.hw.mmu.walk import Walker
from dfuser.libkern.sysctl import INT, RW, UQUAD, Sysctl

TLB_ENTRIES: Final = 1536
"""Translations that a CPU keeps by default: the second-level TLB of a common processor."""
TLB_ENTRIES_MIN: Final = 16
TLB_ENTRIES_MAX: Final = 1 << 20

_CONTEXT_SHIFT: Final = 52
"""Where the PCID stands in a key, above the 52 bits of a page number."""
_IN_GLOBAL: Final = 1 << 64
"""Marks a page that is in the global dictionary, where only both together can tell (a "slot")."""
_MIXED: Final = -1
_OFFSET: Final = 0xFFF
_LARGE: Final = 2 << TRANSLATION_LEVEL_SHIFT
"""The bit of a translation that 2 MiB and 1 GiB pages have set and 4 KiB pages have not."""


class TlbStatistics(NamedTuple):
    """What one TLB did since the start, and what it holds.

    Attributes:
        capacity: translations it may keep.
        entries: translations it keeps, global ones included.
        global_entries: the global ones of them.
        hits: accesses answered without a walk.
        misses: accesses that had to walk.
        refused: misses for which a translation was kept, but did not serve the access.
        faults: misses that ended in a fault.
        evictions: translations dropped to make room.
        flushes: invalidations of more than one page.
        invlpgs: invalidations of one page.
    """

    capacity: int
    entries: int
    global_entries: int
    hits: int
    misses: int
    refused: int
    faults: int
    evictions: int
    flushes: int
    invlpgs: int


class Tlb:
    """One CPU's TLB, with the walker that fills it.

    Args:
        walker: answers what is not kept.
        capacity: translations to keep, 16 to 2**20.
        cpuid: whose it is, for the sysctl names.

    Raises:
        ValueError: the capacity is out of range.
    """

    __slots__ = ("_capacity", "_context", "_global", "_local", "_masks", "_next", "_only",
                 "_place", "_queue", "_regions", "_walker", "_wants", "cpuid", "evictions",
                 "faults", "flushes", "hits", "invlpgs", "misses", "refused")  # fmt: skip

    sysctl_tlb = (
        Sysctl(lambda t: f"hw.mmu.cpu{t.cpuid}.tlb_entries", "Most translations kept",
               attr="capacity", setter="resize", kind=INT, flags=RW,
               minimum=TLB_ENTRIES_MIN, maximum=TLB_ENTRIES_MAX),
        Sysctl(lambda t: f"hw.mmu.cpu{t.cpuid}.tlb_hits", "Accesses without a walk",
               attr="hits", kind=UQUAD),
        Sysctl(lambda t: f"hw.mmu.cpu{t.cpuid}.tlb_misses", "Accesses that walked",
               attr="misses", kind=UQUAD),
        Sysctl(lambda t: f"hw.mmu.cpu{t.cpuid}.tlb_refused", "Kept translations that did not do",
               attr="refused", kind=UQUAD),
        Sysctl(lambda t: f"hw.mmu.cpu{t.cpuid}.tlb_faults", "Walks that faulted",
               attr="faults", kind=UQUAD),
        Sysctl(lambda t: f"hw.mmu.cpu{t.cpuid}.tlb_evictions", "Translations that made room",
               attr="evictions", kind=UQUAD),
        Sysctl(lambda t: f"hw.mmu.cpu{t.cpuid}.tlb_flushes", "Invalidations of many pages",
               attr="flushes", kind=UQUAD),
        Sysctl(lambda t: f"hw.mmu.cpu{t.cpuid}.tlb_invlpgs", "Invalidations of one page",
               attr="invlpgs", kind=UQUAD),
    )  # fmt: skip

    def __init__(self, walker: Walker, capacity: int = TLB_ENTRIES, cpuid: int = 0) -> None:
        self._walker = walker
        self.cpuid = cpuid
        self._local: dict[int, int] = {}
        self._global: dict[int, int] = {}
        self._context = 0
        self._only = 0
        self._regions: set[int] = set()
        self.hits = self.misses = self.refused = self.faults = 0
        self.evictions = self.flushes = self.invlpgs = 0
        self.configure(0)
        self.resize(capacity)

    @property
    def capacity(self) -> int:
        """Most translations it keeps."""
        return self._capacity

    def resize(self, capacity: int) -> None:
        """Change how many translations are kept; drops all that are.

        Raises:
            ValueError: the capacity is not between 16 and 2**20.
        """
        if not TLB_ENTRIES_MIN <= capacity <= TLB_ENTRIES_MAX:
            raise ValueError(f"a TLB keeps 16 to {TLB_ENTRIES_MAX} translations, not {capacity}")
        self._capacity = capacity
        self._queue = [-1] * capacity
        self._place: dict[int, int] = {}
        self._next = 0
        self._global.clear()
        self._clear_local()

    def configure(self, pcid: int) -> None:
        """Take over the walker's rules, and the context whose translations are used from now on.

        Drops nothing: what a register write invalidates is told by ``regs.py``.

        Args:
            pcid: the process-context identifier, 0 to 4095.
        """
        self._masks = self._walker.masks
        self._wants = self._walker.wants
        self._context = pcid << _CONTEXT_SHIFT
        if not self._local:
            self._only = pcid
        elif self._only != pcid:
            self._only = _MIXED

    def translate(self, va: int, access: int) -> int:
        """Translate an address for an access.

        Args:
            va: the linear address, 0 to 2**64 - 1.
            access: a combination of ``ACCESS_*``.

        Returns:
            The physical address of the byte, or a fault as a negative number (``fault.py``).

        Raises:
            ValueError: there is no such access.
        """
        page = va >> 12
        kept = self._local.get(page | self._context)
        if kept is None:
            kept = self._global.get(page)
        if kept is not None and kept & self._masks[access] == self._wants[access]:
            self.hits += 1
            return kept & PG_FRAME | va & _OFFSET
        result = self._miss(va, access, kept is not None)
        return result if result < 0 else result & PG_FRAME | va & _OFFSET

    def lookup(self, va: int, access: int) -> int:
        """Do as ``translate`` does, but return the whole translation instead of the address.

        For whoever fills a TLB of its own from this one and needs rights, D and memory type.
        """
        page = va >> 12
        kept = self._local.get(page | self._context)
        if kept is None:
            kept = self._global.get(page)
        if kept is not None and kept & self._masks[access] == self._wants[access]:
            self.hits += 1
            return kept
        return self._miss(va, access, kept is not None)

    def cached(self, va: int) -> int | None:
        """Say what is kept for an address now, without counting or walking; for views."""
        page = va >> 12
        kept = self._local.get(page | self._context)
        return self._global.get(page) if kept is None else kept

    def invlpg(self, va: int) -> None:
        """Drop one page: of the current context and global, with all of its large page.

        Source: SDM 4.10.4.1, INVLPG.
        """
        self.invlpgs += 1
        self._drop(va >> 12 | self._context)
        self._drop(va >> 12 | _IN_GLOBAL)

    def invalidate_address(self, va: int, pcid: int) -> None:
        """Drop one page of one context, but not if global (INVPCID type 0)."""
        self.invlpgs += 1
        self._drop(va >> 12 | pcid << _CONTEXT_SHIFT)

    def flush(self) -> None:
        """Drop everything, global or not, of all contexts (CR4.PGE toggled; INVPCID type 2)."""
        self.flushes += 1
        self._global.clear()
        self._clear_local()

    def flush_nonglobal(self) -> None:
        """Drop what is not global, of all contexts (INVPCID type 3)."""
        self.flushes += 1
        self._clear_local()

    def flush_context(self, pcid: int) -> None:
        """Drop what is not global of one context (MOV to CR3; INVPCID type 1)."""
        self.flushes += 1
        if self._only == pcid:
            self._clear_local()
        elif self._only == _MIXED:
            local = self._local
            for key in [key for key in local if key >> _CONTEXT_SHIFT == pcid]:
                del local[key]

    def statistics(self) -> TlbStatistics:
        """Count what it did and what it holds."""
        return TlbStatistics(
            capacity=self._capacity,
            entries=len(self._local) + len(self._global),
            global_entries=len(self._global),
            hits=self.hits,
            misses=self.misses,
            refused=self.refused,
            faults=self.faults,
            evictions=self.evictions,
            flushes=self.flushes,
            invlpgs=self.invlpgs,
        )

    def _miss(self, va: int, access: int, refused: bool) -> int:
        """Walk, and keep what was found."""
        self.misses += 1
        page = va >> 12
        result = self._walker.walk(va, access)
        if refused or result < 0:
            self.refused += refused
            self._drop(page | self._context)
            self._drop(page | _IN_GLOBAL)
            if result < 0:
                self.faults += 1
                return result
        slot = page | (_IN_GLOBAL if result & X86_PG_G else self._context)
        self._make_room(slot)
        if result & X86_PG_G:
            self._global[page] = result
        else:
            self._local[slot] = result
        if result & _LARGE:
            self._note_region(slot, level_of(result))
        return result

    def _make_room(self, slot: int) -> None:
        """Put a new translation in the next place; whoever lives there must go."""
        queue, at, place = self._queue, self._next, self._place
        oldest = queue[at]
        # One that was dropped and came back lives in a later place, and is not meant here.
        if oldest >= 0 and place.get(oldest) == at:
            del place[oldest]
            if self._forget(oldest) is not None:
                self.evictions += 1
        queue[at] = slot
        place[slot] = at
        self._next = at + 1 if at + 1 < self._capacity else 0

    def _drop(self, slot: int) -> None:
        """Drop a page, and where it lies in large pages, the other pieces of those."""
        self._forget(slot)
        if not self._regions:
            return
        for level in (2, 3):
            region = _region(slot, level)
            if region in self._regions:
                self._regions.discard(region)
                for piece in self._pieces(region, level, slot & _IN_GLOBAL):
                    self._forget(piece)

    def _forget(self, slot: int) -> int | None:
        """Take one translation out; its place in the queue stays and means nothing any more."""
        if slot & _IN_GLOBAL:
            return self._global.pop(slot ^ _IN_GLOBAL, None)
        return self._local.pop(slot, None)

    def _pieces(self, region: int, level: int, in_global: int) -> list[int]:
        """Find the pieces of one large page that are kept."""
        return [
            key | in_global
            for key, kept in (self._global if in_global else self._local).items()
            if level_of(kept) == level and _region(key | in_global, level) == region
        ]

    def _note_region(self, slot: int, level: int) -> None:
        """Remember that a piece of this large page is kept."""
        regions = self._regions
        regions.add(_region(slot, level))
        if len(regions) > self._capacity:
            # Evictions leave regions without pieces behind; start anew from what is kept.
            regions.clear()
            for kept, mark in ((self._local, 0), (self._global, _IN_GLOBAL)):
                for key, translation in kept.items():
                    if level_of(translation) > 1:
                        regions.add(_region(key | mark, level_of(translation)))

    def _clear_local(self) -> None:
        """Drop what is not global."""
        self._local.clear()
        self._only = self._context >> _CONTEXT_SHIFT
        if not self._global:
            self._regions.clear()


def _region(slot: int, level: int) -> int:
    """Name the large page of a level that a page lies in, with its context."""
    return slot >> LEVEL_SHIFT[level] - LEVEL_SHIFT[1] << 2 | level
