"""Page-table entries: what the bits mean, and the only two ways to touch an entry.

A page table is one 4 KiB frame of physical memory with 512 entries of 64 bits. An entry is a
plain int here; there is no class for it, because entries exist in millions and every reader
(our walker, an emulator, a hypervisor) wants the bits. What a set bit says, by level of the
table it stands in (level 1 is the last one; "table" is an entry that names a further table):

====== ====================== ============================ ===============================
bit    in a 4 KiB leaf        in a 2 MiB or 1 GiB leaf     in a table entry
====== ====================== ============================ ===============================
0 P    the entry is valid; all other bits mean nothing while it is clear
1 R/W  writes allowed, if every level allows them
2 U/S  user accesses allowed, if every level allows them
3 PWT  memory type, bit 0                                  how the table itself is cached
4 PCD  memory type, bit 1                                  how the table itself is cached
5 A    set by the processor when it uses the entry
6 D    set by the processor at the first write             ignored
7      PAT: memory type, bit 2 PS: 1, this is a leaf       PS: 0 (reserved above level 3)
8 G    survives a reload of CR3                            ignored
11:9   software's own          software's own              software's own
12     address                 PAT: memory type, bit 2     address
51:13  address                 address; bits below the     address
                               page size are reserved
62:52  ignored (62:59 would be the protection key, which is not modelled)
63 NX  no instruction fetch, if any level says so; reserved while EFER.NXE is 0
====== ====================== ============================ ===============================

Bits from MAXPHYADDR up to 51 are reserved at every level.

Source: Intel SDM volume 3, section 4.5.4 (4-level and 5-level paging) and tables 4-14 to 4-20.
Counterpart: cpu/x86_64/include/pmap.h; its names are used (``X86_PG_V`` is P, ``X86_PG_M`` is D).
Differs from DragonFly: nothing. ``PageTables`` takes the place of the direct map (DMAP), through
    which DragonFly's kernel reaches its tables.
Token/lock order: takes none. A store of an entry is one store of eight bytes, never seen in part.
Invariants: ``PageTables`` keeps the mapping of physical memory alive until ``close``.
"""

from __future__ import annotations

from typing import Final

from dfuser.hw.physmem import PhysMem

X86_PG_V: Final = 0x001
X86_PG_RW: Final = 0x002
X86_PG_U: Final = 0x004
X86_PG_NC_PWT: Final = 0x008
X86_PG_NC_PCD: Final = 0x010
X86_PG_A: Final = 0x020
X86_PG_M: Final = 0x040
X86_PG_PS: Final = 0x080
X86_PG_PTE_PAT: Final = 0x080
X86_PG_G: Final = 0x100
X86_PG_AVAIL1: Final = 0x200
X86_PG_AVAIL2: Final = 0x400
X86_PG_AVAIL3: Final = 0x800
X86_PG_PDE_PAT: Final = 0x1000
X86_PG_NX: Final = 1 << 63

PG_FRAME: Final = 0x000F_FFFF_FFFF_F000
"""The address in a table entry or a 4 KiB leaf."""
PG_PS_FRAME: Final = 0x000F_FFFF_FFE0_0000
"""The address in a 2 MiB leaf."""
PG_PDP_FRAME: Final = 0x000F_FFFF_C000_0000
"""The address in a 1 GiB leaf."""

NPTEPG: Final = 512
"""Entries in one page table."""
PTE_SIZE: Final = 8
PTE_BITS: Final = (1 << 64) - 1

LEVEL_SHIFT: Final = (0, 12, 21, 30, 39, 48)
"""By level: the lowest bit of a linear address that selects an entry of a table of that level."""
PAGE_SIZES: Final = (0, 1 << 12, 1 << 21, 1 << 30)
"""By level of the leaf: bytes that it maps."""
LARGE_FRAME: Final = (0, PG_FRAME, PG_PS_FRAME, PG_PDP_FRAME)
"""By level of the leaf: the address in it."""

PAT_UNCACHEABLE: Final = 0
PAT_WRITE_COMBINING: Final = 1
PAT_WRITE_THROUGH: Final = 4
PAT_WRITE_PROTECTED: Final = 5
PAT_WRITE_BACK: Final = 6
PAT_UNCACHED: Final = 7
PAT_RESET: Final = 0x0007_0406_0007_0406
"""IA32_PAT after reset: write-back, write-through, UC-, UC, and the same again."""


class PageTables:
    """The entries of all page tables of one machine: physical memory read as 64-bit words.

    Counterpart: the direct map (PHYS_TO_DMAP) as pmap.c uses it.

    Args:
        physmem: the memory. It cannot be closed before this object is.

    Attributes:
        words: entry ``n`` of the table at physical address ``t`` is ``words[(t >> 3) + n]``. For
            readers that count microseconds; writers use ``pte_store``.
    """

    __slots__ = ("_bytes", "words")

    def __init__(self, physmem: PhysMem) -> None:
        self._bytes = physmem.buf[:]
        self.words = self._bytes.cast("Q")

    def pte_load(self, address: int) -> int:
        """Read one entry.

        Args:
            address: its physical address, a multiple of 8.

        Raises:
            IndexError: the address is not in physical memory.
            ValueError: the address is no multiple of 8, or the tables are closed.
        """
        if address & 7:
            raise ValueError(f"no page-table entry starts at {address:#x}")
        return self.words[address >> 3]

    def pte_store(self, address: int, entry: int) -> None:
        """Write one entry. This is the only way that software's stores to page tables go.

        A translation that some CPU has cached stays as it was until that CPU invalidates it.

        Args:
            address: its physical address, a multiple of 8.
            entry: the 64 bits.

        Raises:
            IndexError: the address is not in physical memory.
            ValueError: the address is no multiple of 8, the entry has more than 64 bits, or the
                tables are closed. Nothing was written.
        """
        if address & 7:
            raise ValueError(f"no page-table entry starts at {address:#x}")
        self.words[address >> 3] = entry

    def close(self) -> None:
        """Let go of physical memory. A second call does nothing."""
        self.words.release()
        self._bytes.release()


def pte_index(va: int, level: int) -> int:
    """Say which entry a linear address selects in a table of this level (1 to 5)."""
    return va >> LEVEL_SHIFT[level] & (NPTEPG - 1)


def pat_index(entry: int, level: int = 1) -> int:
    """Decode a leaf's memory type: an index into the eight fields of IA32_PAT.

    Source: SDM 4.9.2. PAT is bit 7 of a 4 KiB leaf and bit 12 of a larger one.
    """
    pat = entry & (X86_PG_PTE_PAT if level == 1 else X86_PG_PDE_PAT)
    return (4 if pat else 0) | entry >> 3 & 3


def memory_type(index: int, pat_msr: int = PAT_RESET) -> int:
    """Look a memory type up in IA32_PAT; one of the ``PAT_`` constants (SDM 11.12.2)."""
    return pat_msr >> 8 * index & 7


def reserved_bits(level: int, leaf: bool, maxphyaddr: int, nxe: bool, page1gb: bool) -> int:
    """Say which bits must be clear in a present entry (SDM 4.5.4, tables 4-14 to 4-20).

    Args:
        level: of the table that holds the entry, 1 to 5.
        leaf: whether the entry maps memory. A leaf above level 1 is told by its PS bit; at a
            level that has no leaves, PS itself is the reserved bit.
        maxphyaddr: bits of a physical address, 32 to 52.
        nxe: EFER.NXE.
        page1gb: whether the CPU has 1 GiB pages.

    Raises:
        ValueError: there is no such level or address width.
    """
    if not 1 <= level <= 5 or not 32 <= maxphyaddr <= 52:
        raise ValueError(f"no paging with level {level} and {maxphyaddr} address bits")
    bits = PG_FRAME & ~((1 << maxphyaddr) - 1)
    if not nxe:
        bits |= X86_PG_NX
    if leaf and level > 1:
        if level > 3 or (level == 3 and not page1gb):
            return bits | X86_PG_PS
        bits |= PAGE_SIZES[level] - 1 & PG_FRAME & ~X86_PG_PDE_PAT
    return bits
