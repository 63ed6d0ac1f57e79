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
number. Replacement is first in, first out over both.

Source: Intel SDM volume 3, section 4.10 (caching translation information).
Counterpart: none in DragonFly; cpu_invlpg, cpu_invltlb and pmap_inval.c are its users.
Differs from the processor: fully associative; no prefetch, nothing is cached without an access;
    no separate instruction TLB; no paging-structure caches, so upper levels are never stale on
    their own.
Token/lock order: takes none; a CPU touches its own TLB only, others ask it by IPI.
Invariants: translations kept never exceed the capacity; each has A set, and present tables when
    it was made; no key of a non-canonical address exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from dfuser.hw.mmu.fault import TRANSLATION_LEVEL_SHIFT
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
"""Marks a slot of the replacement queue whose key is in the global dictionary."""
_OFFSET: Final = 0xFFF
_LARGE: Final = 2 << TRANSLATION_LEVEL_SHIFT
"""The bit of a translation that is set for 2 MiB, the one below for 1 GiB with it."""
_LEVEL_MASK: Final = 3 << TRANSLATION_LEVEL_SHIFT


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

    __slots__ = ("_capacity", "_context", "_global", "_large", "_local", "_masks", "_next",
                 "_queue", "_walker", "_wants", "cpuid", "evictions", "faults", "flushes", "hits",
                 "invlpgs", "misses", "refused")  # fmt: skip

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
        self._large = False
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
        self._next = 0
        self._forget_all()

    def configure(self, pcid: int) -> None:
        """Take over the walker's rules, and the context whose translations are used from now on.

        Drops nothing: what a register write invalidates is told by ``regs.py``.

        Args:
            pcid: the process-context identifier, 0 to 4095.
        """
        self._masks = self._walker.masks
        self._wants = self._walker.wants
        self._context = pcid << _CONTEXT_SHIFT

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
        self._drop(va, self._context)
        self._drop_global(va)

    def invalidate_address(self, va: int, pcid: int) -> None:
        """Drop one page of one context, but not if global (INVPCID type 0)."""
        self.invlpgs += 1
        self._drop(va, pcid << _CONTEXT_SHIFT)

    def flush(self) -> None:
        """Drop everything, global or not, of all contexts (CR4.PGE toggled; INVPCID type 2)."""
        self.flushes += 1
        self._forget_all()

    def flush_nonglobal(self) -> None:
        """Drop what is not global, of all contexts (INVPCID type 3)."""
        self.flushes += 1
        self._local.clear()

    def flush_context(self, pcid: int) -> None:
        """Drop what is not global of one context (MOV to CR3; INVPCID type 1)."""
        self.flushes += 1
        local = self._local
        gone = [key for key in local if key >> _CONTEXT_SHIFT == pcid]
        if len(gone) == len(local):
            local.clear()
        else:
            _remove(local, gone)

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
        result = self._walker.walk(va, access)
        if refused or result < 0:
            self.refused += refused
            self._drop(va, self._context)
            self._drop_global(va)
        if result < 0:
            self.faults += 1
            return result
        page = va >> 12
        if result & X86_PG_G:
            self._make_room(page | _IN_GLOBAL)
            self._global[page] = result
        else:
            key = page | self._context
            self._make_room(key)
            self._local[key] = result
        if result & _LARGE:
            self._large = True
        return result

    def _make_room(self, slot: int) -> None:
        """Take the place of the oldest one in the queue, which may be gone long since."""
        queue, at = self._queue, self._next
        oldest = queue[at]
        if oldest >= 0:
            if oldest & _IN_GLOBAL:
                gone = self._global.pop(oldest ^ _IN_GLOBAL, None)
            else:
                gone = self._local.pop(oldest, None)
            if gone is not None:
                self.evictions += 1
        queue[at] = slot
        self._next = at + 1 if at + 1 < self._capacity else 0

    def _drop(self, va: int, context: int) -> None:
        """Drop the page of a context, and the other pieces of its large page."""
        local, page = self._local, va >> 12
        local.pop(page | context, None)
        if self._large:
            _remove(local, _pieces(local, page, context))

    def _drop_global(self, va: int) -> None:
        """Drop the global page, and the other pieces of its large page."""
        glob, page = self._global, va >> 12
        glob.pop(page, None)
        if self._large:
            _remove(glob, _pieces(glob, page, 0))

    def _forget_all(self) -> None:
        """Empty both dictionaries."""
        self._local.clear()
        self._global.clear()
        self._large = False


def _remove(kept: dict[int, int], keys: Iterable[int]) -> None:
    """Delete keys; the dictionary stays the same object, which hot code holds."""
    pop: Callable[[int], int] = kept.pop
    for key in keys:
        pop(key)


def _pieces(kept: dict[int, int], page: int, context: int) -> list[int]:
    """Find the pieces of large pages that cover a page."""
    found = []
    for level in (2, 3):
        shift = LEVEL_SHIFT[level] - LEVEL_SHIFT[1]
        marker, wanted = level << TRANSLATION_LEVEL_SHIFT, (page | context) >> shift
        found += [
            key
            for key, translation in kept.items()
            if key >> shift == wanted and translation & _LEVEL_MASK == marker
        ]
    return found
