"""Many entries at once: scans and changes of whole page tables, and walks of many addresses.

The kernel's big page-table jobs touch thousands of entries and ask the same of each: write-protect
all of a process at fork, collect and clear A for the pageout daemon, find what is dirty, tear
down. One by one in Python an entry costs some 50 ns at best; with numpy it costs one or two.
numpy is optional: without it every method here gives the same answers, more slowly.

``runs``
    cuts a range of linear addresses into stretches of neighbouring leaf entries;
``count``, ``select``, ``update``
    work on such a stretch: how many entries match, which ones, and change those that do.
    An entry matches if ``entry & mask == want``;
``probe_many``
    is ``Walker.probe`` for many addresses.

``update`` is the sister of ``PageTables.pte_store`` for whole stretches. Like it, it reaches no
TLB: whoever takes rights or flags away invalidates.

Counterpart: the scanning loops of pmap.c (pmap_scan, pmap_protect, pmap_clearbit).
Differs from DragonFly: one entry after the other there, with the pv lock of each page table.
Token/lock order: takes none.
Invariants: no view of physical memory leaves this object; after ``close`` none is left.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from dfuser.hw.mmu.pte import (
    LEVEL_SHIFT,
    NPTEPG,
    PAGE_SIZES,
    PG_FRAME,
    PTE_BITS,
    PTE_SIZE,
    X86_PG_NX,
    X86_PG_PDE_PAT,
    X86_PG_PS,
    X86_PG_V,
    PageTables,
)
from dfuser.hw.mmu.walk import (
    GRANTS,
    LARGE_LEAF,
    LEVEL_1,
    LEVEL_2,
    OFFSET_2M,
    BatchMasks,
    Walker,
)

SCALAR_BELOW: Final = 64
"""Fewer addresses than this are walked one by one: numpy costs some 40 us before the first."""

PORTION: Final = 8192
"""So many addresses are walked together."""


class TableRun(NamedTuple):
    """Neighbouring leaf entries.

    Attributes:
        va: the linear address that the first one maps.
        address: the physical address of the first entry.
        npte: how many entries.
        level: 1 for a stretch of a page table; 2 or 3 for one large leaf, which may map more
            than the range that was asked for.
    """

    va: int
    address: int
    npte: int
    level: int


class BatchStatistics(NamedTuple):
    """What was done in batches: entries looked at, entries changed, addresses walked."""

    vectorised: bool
    scanned: int
    changed: int
    walked: int


class BatchScanner:
    """Scans the page tables of a machine.

    Args:
        tables: the entries.
        vectorised: use numpy; the default is to use it where it is installed.

    Raises:
        ImportError: numpy was asked for and is not installed.
    """

    __slots__ = ("_array", "_numpy", "_tables", "changed", "scanned", "walked")

    def __init__(self, tables: PageTables, vectorised: bool | None = None) -> None:
        self._tables = tables
        self._numpy: Any = None
        self._array: Any = None
        self.scanned = self.changed = self.walked = 0
        if vectorised is not False:
            try:
                self._numpy = importlib.import_module("numpy")
            except ImportError:
                if vectorised:
                    raise
            else:
                self._array = self._numpy.frombuffer(tables.words, dtype=self._numpy.uint64)

    @property
    def vectorised(self) -> bool:
        """Whether numpy does the work."""
        return self._numpy is not None

    def runs(self, root: int, start: int, end: int, levels: int = 4) -> Iterator[TableRun]:
        """Cut a range into stretches of leaf entries, leaving out what has no table.

        Entries of a stretch need not be present. Tables that lie beyond physical memory count as
        missing. Nothing may be unmapped between two steps of the iteration except leaves.

        Args:
            root: the top table.
            start: the first linear address, canonical.
            end: the address after the last one; at most 2**64.
            levels: of the tables, 4 or 5.

        Raises:
            ValueError: the range is not within one canonical half of the addresses.
        """
        if start == end:
            return
        sign = LEVEL_SHIFT[levels] + 8
        halves = (0, PTE_BITS >> sign)
        if not start < end or start >> sign not in halves or start >> sign != end - 1 >> sign:
            raise ValueError(f"no canonical range: {start:#x} to {end:#x}")
        yield from self._runs(root, levels, start, end)

    def count(self, run: TableRun, mask: int, want: int) -> int:
        """Count the entries of a stretch that match."""
        self.scanned += run.npte
        first = run.address >> 3
        if self._numpy is not None:
            numpy, part = self._numpy, self._array[first : first + run.npte]
            return int(numpy.count_nonzero(part & numpy.uint64(mask) == numpy.uint64(want)))
        part = self._tables.words[first : first + run.npte].tolist()
        return sum([entry & mask == want for entry in part])

    def select(self, run: TableRun, mask: int, want: int) -> list[tuple[int, int]]:
        """Find the entries of a stretch that match: pairs of position in it and entry."""
        self.scanned += run.npte
        first = run.address >> 3
        if self._numpy is not None:
            numpy, part = self._numpy, self._array[first : first + run.npte]
            found = numpy.flatnonzero(part & numpy.uint64(mask) == numpy.uint64(want))
            return list(zip(found.tolist(), part[found].tolist(), strict=True))
        part = self._tables.words[first : first + run.npte].tolist()
        return [(at, entry) for at, entry in enumerate(part) if entry & mask == want]

    def update(self, run: TableRun, mask: int, want: int, clear: int = 0, add: int = 0) -> int:
        """Clear bits, then set bits, in the entries of a stretch that match.

        Returns:
            How many entries became different. Only those can be stale in a TLB.
        """
        self.scanned += run.npte
        first, keep = run.address >> 3, PTE_BITS & ~clear
        changed = 0
        if self._numpy is not None:
            numpy, part = self._numpy, self._array[first : first + run.npte]
            new = part & numpy.uint64(keep) | numpy.uint64(add)
            hit = (part & numpy.uint64(mask) == numpy.uint64(want)) & (part != new)
            changed = int(numpy.count_nonzero(hit))
            numpy.copyto(part, new, where=hit)
        else:
            words = self._tables.words
            for index, entry in enumerate(words[first : first + run.npte].tolist(), first):
                new = entry & keep | add
                if new != entry and entry & mask == want:
                    words[index] = new
                    changed += 1
        self.changed += changed
        return changed

    def probe_many(self, walker: Walker, addresses: Sequence[int]) -> Sequence[int]:
        """Look many addresses up, as ``Walker.probe`` does one.

        Args:
            walker: whose registers and tables; the tables must be this machine's.
            addresses: linear addresses, 0 to 2**64 - 1; a numpy array of uint64 saves time.

        Returns:
            The translations in the same order, 0 where there is none: a numpy array of uint64
            where numpy did the work, else a list.
        """
        self.walked += len(addresses)
        if self._numpy is None or len(addresses) < SCALAR_BELOW:
            probe = walker.probe
            return [probe(int(va)) for va in addresses]
        found: Sequence[int] = self._probe_array(walker, addresses)
        return found

    def statistics(self) -> BatchStatistics:
        """Count what was done."""
        return BatchStatistics(self.vectorised, self.scanned, self.changed, self.walked)

    def close(self) -> None:
        """Let go of physical memory; must come before the tables are closed."""
        self._array = None
        self._numpy = None

    def _runs(self, table: int, level: int, start: int, end: int) -> Iterator[TableRun]:
        """Cut a range, all of which this table covers."""
        words, shift = self._tables.words, LEVEL_SHIFT[level]
        if table + NPTEPG * PTE_SIZE > len(words) << 3:
            return
        first = start >> shift & NPTEPG - 1
        if level == 1:
            npte = (end - 1 >> shift) - (start >> shift) + 1
            yield TableRun(start & -1 << shift, table + PTE_SIZE * first, npte, 1)
            return
        va = start & -1 << shift
        while va < end:
            at = table + PTE_SIZE * (va >> shift & NPTEPG - 1)
            entry = words[at >> 3]
            if entry & X86_PG_V:
                if not entry & X86_PG_PS:
                    low, high = max(va, start), min(va + (1 << shift), end)
                    yield from self._runs(entry & PG_FRAME, level - 1, low, high)
                elif level < len(PAGE_SIZES):
                    yield TableRun(va, at, 1, level)
            va += 1 << shift

    def _probe_array(self, walker: Walker, addresses: Sequence[int]) -> Any:
        """Walk a portion at a time, so that what numpy makes on the way stays in the cache."""
        numpy = self._numpy
        masks = walker.batch_masks()
        vas = numpy.asarray(addresses, dtype=numpy.uint64)
        result = numpy.empty(len(vas), dtype=numpy.uint64)
        for at in range(0, len(vas), PORTION):
            part = vas[at : at + PORTION]
            found, bad = self._probe_regular(masks, part)
            careful = numpy.flatnonzero(bad)
            if len(careful):
                found[careful] = self._probe_careful(walker, masks, part[careful])
            result[at : at + PORTION] = found
        return result

    def _probe_regular(self, masks: BatchMasks, vas: Any) -> tuple[Any, Any]:
        """Walk as if every entry were present and every page small.

        Returns:
            The translations; and for each a number that is not 0 where that was not so.
        """
        numpy, array = self._numpy, self._array
        u64 = numpy.uint64
        present, low, frame = u64(X86_PG_V), u64(NPTEPG - 1), u64(PG_FRAME)
        bad = vas + u64(masks.half) & u64(masks.canonical)
        both = numpy.full(len(vas), PTE_BITS, dtype=u64)
        either = numpy.zeros(len(vas), dtype=u64)
        table: Any = u64(masks.root)
        entry: Any = table
        for level in range(masks.levels, 0, -1):
            index = vas >> u64(LEVEL_SHIFT[level])
            index &= low
            index += table
            if int(index.max()) >= len(array):
                bad |= index >= len(array)
            entry = array.take(index.view(numpy.int64), mode="clip")
            numpy.bitwise_and(entry, u64(masks.table if level > 1 else masks.leaf), out=index)
            index ^= present
            bad |= index
            either |= entry
            if level > 1:
                both &= entry
                entry &= frame
                entry >>= u64(3)
                table = entry
        both &= u64(GRANTS)
        both |= u64(masks.keep)
        found = both & entry
        either &= u64(X86_PG_NX)
        found |= either
        found |= u64(LEVEL_1)
        return found, bad

    def _probe_careful(self, walker: Walker, masks: BatchMasks, vas: Any) -> Any:
        """Walk addresses some of which are absent or in large pages; the rest one by one."""
        numpy, array = self._numpy, self._array
        u64 = numpy.uint64
        live = vas + u64(masks.half) & u64(masks.canonical) == 0
        odd = numpy.zeros(len(vas), dtype=bool)
        table, both, nx = u64(masks.root), u64(GRANTS), u64(0)
        result = numpy.zeros(len(vas), dtype=u64)
        for level in range(masks.levels, 0, -1):
            index = table + (vas >> u64(LEVEL_SHIFT[level]) & u64(NPTEPG - 1))
            odd |= live & (index >= len(array))
            entry = array.take(index.view(numpy.int64), mode="clip")
            live &= entry & u64(X86_PG_V) != 0
            check = masks.leaf if level == 1 else masks.table
            regular = entry & u64(check) == X86_PG_V
            nx = nx | entry
            if level == 2:
                large = live & (entry & u64(masks.large) == LARGE_LEAF)
                if large.any():
                    found = entry & (both | u64(masks.keep_large)) | nx & u64(X86_PG_NX)
                    found |= vas & u64(OFFSET_2M) | (entry & u64(X86_PG_PDE_PAT)) >> u64(5)
                    numpy.copyto(result, found | u64(LEVEL_2), where=large)
                    live &= ~large
            odd |= live & ~regular
            if level > 1:
                both = both & entry
                table = (entry & u64(PG_FRAME)) >> u64(3)
            else:
                found = entry & (both | u64(masks.keep)) | nx & u64(X86_PG_NX) | u64(LEVEL_1)
                numpy.copyto(result, found, where=live & regular)
        for at in numpy.flatnonzero(odd).tolist():
            result[at] = walker.probe(int(vas[at]))
        return result
