"""The page walk: from a linear address through the tables to a translation or a fault.

    CR3 -> PML4 table -> PDPT -> page directory -> page table -> page
           va 47:39      38:30   29:21             20:12         11:0

Each step reads one entry. The walk stops with a fault at the first entry that is not present or
has a reserved bit set, at a leaf (a PS bit, or level 1) it compares the rights that all entries
grant together with what the access asks (``fault.py``), and only when the access is allowed it
sets A in every entry it used and, for a store, D in the leaf. A walk that faults changes nothing.
(SDM 4.8 says when the processor sets the flags, and leaves open whether a table entry above a
fault has been "used"; hardware differs, software must accept both, and this model is at the quiet
end, as KVM's walker is.)

There are two walkers in this file with one meaning, and a reader:

``walk``
    what everyone calls: four levels and 4 KiB leaves in one straight line, 2 MiB leaves beside
    it. Whatever is out of the ordinary goes to
``walk_any``
    the same as a loop over the levels: five levels, 1 GiB leaves, tables beyond the end of
    physical memory, faults on reserved bits.

``probe`` reads the same entries without being an access: for views, debuggers and pmap_extract.

Physical memory ends somewhere. A table that lies beyond reads as all ones, as an unclaimed read
on a PC's bus does, and stores to it vanish. Where the page itself lies is not the walk's
business.

Source: Intel SDM volume 3, 4.5 (4-level and 5-level paging), 4.6 (access rights), 4.7 (faults),
    4.8 (accessed and dirty flags), 4.9 (memory typing).
Counterpart: none in DragonFly; the hardware walks for it.
Differs from the processor: A and D are set by plain stores, since nothing else runs meanwhile;
    no speculation, so A is set by real accesses only; paging-structure caches (SDM 4.10.3) are
    not modelled, each walk starts at CR3, which is one of the behaviours the SDM allows.
Token/lock order: takes none; reads and writes physical memory only.
Invariants: ``masks`` and ``wants`` hold the rules of the registers last given to ``configure``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from dfuser.hw.mmu.fault import (
    ACCESS_KINDS,
    FAULT_GP,
    TRANSLATION_LEVEL_SHIFT,
    Rule,
    level_of,
    make_rules,
)
from dfuser.hw.mmu.pte import (
    LARGE_FRAME,
    LEVEL_SHIFT,
    PAGE_SIZES,
    PG_FRAME,
    PG_PS_FRAME,
    PTE_BITS,
    X86_PG_A,
    X86_PG_G,
    X86_PG_M,
    X86_PG_NC_PCD,
    X86_PG_NC_PWT,
    X86_PG_NX,
    X86_PG_PDE_PAT,
    X86_PG_PS,
    X86_PG_PTE_PAT,
    X86_PG_RW,
    X86_PG_U,
    X86_PG_V,
    PageTables,
    reserved_bits,
)
from dfuser.hw.mmu.regs import CR4_PGE, ControlRegisters

GRANTS: Final = X86_PG_RW | X86_PG_U | X86_PG_A
"""Bits of a translation that every level must have."""
FLAGS: Final = X86_PG_A | X86_PG_M
"""Bits of an entry that the processor sets."""
OF_LEAF: Final = X86_PG_V | X86_PG_M | X86_PG_NC_PWT | X86_PG_NC_PCD
"""Bits of a translation that are the leaf's at every page size."""
LEVEL_1: Final = 1 << TRANSLATION_LEVEL_SHIFT
LEVEL_2: Final = 2 << TRANSLATION_LEVEL_SHIFT
LARGE_LEAF: Final = X86_PG_V | X86_PG_PS
OFFSET_2M: Final = PAGE_SIZES[2] - 1 & PG_FRAME
"""The bits of a linear address that choose a 4 KiB piece of a 2 MiB page."""
GP: Final = ~FAULT_GP


class BatchMasks(NamedTuple):
    """What a vectorised walk needs of a walker: see the attributes of the same names there."""

    root: int
    levels: int
    half: int
    canonical: int
    table: int
    leaf: int
    large: int
    keep: int
    keep_large: int


class Walker:
    """Walks the tables of one CPU under its current control registers.

    Args:
        tables: where the entries are.
        regs: the registers; ``configure`` must follow each change of them.

    Attributes:
        rules: by access; None where the access is impossible.
        masks: ``rules[access].mask``, for hot code.
        wants: ``rules[access].want``, for hot code; no translation meets an impossible one.
    """

    __slots__ = ("_canonical", "_check_2m", "_check_leaf", "_check_table", "_half", "_keep",
                 "_keep_2m", "_levels", "_reserved_leaf", "_reserved_table", "_rights", "_root",
                 "_size", "_words", "masks", "regs", "rules", "wants")  # fmt: skip

    def __init__(self, tables: PageTables, regs: ControlRegisters) -> None:
        self._words = tables.words
        self._size = len(tables.words)
        self.regs = regs
        self.configure()

    def configure(self) -> None:
        """Take over the control registers after a change."""
        regs = self.regs
        features, protection = regs.features, regs.protection()
        self._root = regs.root >> 3
        self._levels = regs.levels
        # Adding half the address space moves both canonical halves below this power of two.
        self._half = 1 << LEVEL_SHIFT[self._levels] + 8
        self._canonical = PTE_BITS & ~(2 * self._half - 1)
        self.rules: tuple[Rule | None, ...] = make_rules(protection)
        self.masks = [0 if rule is None else rule.mask for rule in self.rules]
        self.wants = [X86_PG_V if rule is None else rule.want for rule in self.rules]
        self._rights = [PTE_BITS if rule is None else rule.rights for rule in self.rules]

        def reserved(level: int, leaf: bool) -> int:
            return reserved_bits(level, leaf, features.maxphyaddr, protection.nxe, features.page1gb)

        self._reserved_leaf = [0] + [reserved(level, True) for level in range(1, 6)]
        self._reserved_table = reserved(2, False)
        self._check_table = X86_PG_V | X86_PG_PS | self._reserved_table
        self._check_leaf = X86_PG_V | self._reserved_leaf[1]
        self._check_2m = LARGE_LEAF | self._reserved_leaf[2]
        glob = X86_PG_G if regs.cr4 & CR4_PGE else 0
        self._keep = OF_LEAF | glob | PG_FRAME | X86_PG_PTE_PAT
        self._keep_2m = OF_LEAF | glob | PG_PS_FRAME

    def canonical(self, va: int) -> bool:
        """Say whether all bits above the highest translated one equal it (SDM volume 1, 3.3.7)."""
        return not va + self._half & self._canonical

    def walk(self, va: int, access: int) -> int:
        """Translate an address for an access, setting A and D as the processor does.

        Args:
            va: the linear address, 0 to 2**64 - 1.
            access: a combination of ``ACCESS_*``.

        Returns:
            A result (``fault.py``): the translation of the 4 KiB page, or a fault as a negative
            number.

        Raises:
            ValueError: there is no such access (a store that is a fetch, say).
        """
        if va + self._half & self._canonical or self._levels != 4:
            return self.walk_any(va, access)
        words, table = self._words, self._check_table
        try:
            e4 = words[self._root + (va >> 39 & 511)]
            if e4 & table != X86_PG_V:
                return self.walk_any(va, access)
            e3 = words[((e4 & PG_FRAME) >> 3) + (va >> 30 & 511)]
            if e3 & table != X86_PG_V:
                return self.walk_any(va, access)
            e2 = words[((e3 & PG_FRAME) >> 3) + (va >> 21 & 511)]
            if e2 & table != X86_PG_V:
                return self._walk_2m(va, access, e4, e3, e2)
            at = ((e2 & PG_FRAME) >> 3) + (va >> 12 & 511)
            e1 = words[at]
        except IndexError:
            return self.walk_any(va, access)
        if e1 & self._check_leaf != X86_PG_V:
            rule = self.rules[access]
            if rule is None:
                return self.walk_any(va, access)
            return rule.reserved if e1 & X86_PG_V else rule.absent
        translation = (
            e1 & (e4 & e3 & e2 & GRANTS | self._keep) | (e4 | e3 | e2 | e1) & X86_PG_NX | LEVEL_1
        )
        if translation & self.masks[access] == self.wants[access]:
            return translation
        return self._settle(va, access, translation, e4 & e3 & e2, at, e1)

    def _walk_2m(self, va: int, access: int, e4: int, e3: int, e2: int) -> int:
        """Go on at a page-directory entry that does not name a page table."""
        if e2 & self._check_2m != LARGE_LEAF:
            rule = self.rules[access]
            if e2 & X86_PG_V or rule is None:
                return self.walk_any(va, access)
            return rule.absent
        translation = (
            e2 & (e4 & e3 & GRANTS | self._keep_2m)
            | (e4 | e3 | e2) & X86_PG_NX
            | va & OFFSET_2M
            | (e2 & X86_PG_PDE_PAT) >> 5
            | LEVEL_2
        )
        if translation & self.masks[access] == self.wants[access]:
            return translation
        at = ((e3 & PG_FRAME) >> 3) + (va >> 21 & 511)
        return self._settle(va, access, translation, e4 & e3, at, e2)

    def _settle(
        self, va: int, access: int, translation: int, upper: int, at: int, leaf: int
    ) -> int:
        """Answer where the rule was not met: a refusal, or flags that must still be set.

        Args:
            va: the linear address.
            access: what is asked.
            translation: what all the entries say together.
            upper: all the entries above the leaf, ANDed.
            at: where the leaf is.
            leaf: the leaf.
        """
        want = self.wants[access]
        if (translation ^ want) & self._rights[access]:
            rule = self.rules[access]
            if rule is None:
                raise ValueError(f"there is no access of kind {access:#x}")
            return rule.denied
        flags = want & FLAGS
        if at < self._size:
            self._words[at] = leaf | flags
        if not upper & X86_PG_A:
            self._mark_upper(va, level_of(translation))
        return translation | flags

    def _mark_upper(self, va: int, leaf: int) -> None:
        """Set A in the entries above a leaf, which are known to be present."""
        words, size = self._words, self._size
        table = self._root
        for level in range(self._levels, leaf, -1):
            index = table + (va >> LEVEL_SHIFT[level] & 511)
            entry = words[index] if index < size else PTE_BITS
            if not entry & X86_PG_A:
                words[index] = entry | X86_PG_A
            table = (entry & PG_FRAME) >> 3

    def walk_any(self, va: int, access: int) -> int:
        """Do what ``walk`` does, for any number of levels, any page size and any fault."""
        rule = self.rules[access] if 0 <= access < ACCESS_KINDS else None
        if rule is None:
            raise ValueError(f"there is no access of kind {access:#x}")
        if not self.canonical(va):
            return GP
        translation, upper, at, last = self._descend(va)
        if translation < 0:
            return rule.reserved if last & X86_PG_V else rule.absent
        if translation & rule.mask == rule.want:
            return translation
        return self._settle(va, access, translation, upper, at, last)

    def probe(self, va: int) -> int:
        """Look an address up as a debugger does: no rights are asked, no flag is set.

        Returns:
            The translation, or 0 where the address has none (it is not canonical, an entry is
            not present or has a reserved bit set).
        """
        if not self.canonical(va):
            return 0
        return max(self._descend(va)[0], 0)

    def batch_masks(self) -> BatchMasks:
        """Hand out what ``batch.py`` computes with, for the present registers."""
        return BatchMasks(
            root=self._root,
            levels=self._levels,
            half=self._half,
            canonical=self._canonical,
            table=self._check_table,
            leaf=self._check_leaf,
            large=self._check_2m,
            keep=self._keep,
            keep_large=self._keep_2m,
        )

    def _descend(self, va: int) -> tuple[int, int, int, int]:
        """Read the entries of a canonical address from the top.

        Returns:
            The translation, or -1 where the last entry read is not present or has a reserved bit
            set; all entries above the last one, ANDed; where the last one is; and the last one.
        """
        words, size = self._words, self._size
        table, level = self._root, self._levels
        upper, nx = PTE_BITS, 0
        while True:
            index = table + (va >> LEVEL_SHIFT[level] & 511)
            entry = words[index] if index < size else PTE_BITS
            leaf = level == 1 or bool(entry & X86_PG_PS)
            reserved = self._reserved_leaf[level] if leaf else self._reserved_table
            if not entry & X86_PG_V or entry & reserved:
                return -1, upper, index, entry
            nx |= entry & X86_PG_NX
            if leaf:
                grants = upper & entry & GRANTS
                return self._leaf(va, level, entry) | grants | nx, upper, index, entry
            upper &= entry
            table = (entry & PG_FRAME) >> 3
            level -= 1

    def _leaf(self, va: int, level: int, entry: int) -> int:
        """Make of a leaf the part of a translation that does not depend on upper levels."""
        translation = entry & (self._keep & ~(PG_FRAME | X86_PG_PTE_PAT))
        pat = entry & X86_PG_PTE_PAT if level == 1 else (entry & X86_PG_PDE_PAT) >> 5
        piece = va & PAGE_SIZES[level] - 1 & PG_FRAME
        frame = entry & LARGE_FRAME[level] | piece
        return translation | pat | frame | level << TRANSLATION_LEVEL_SHIFT
