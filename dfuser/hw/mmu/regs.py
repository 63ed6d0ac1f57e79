"""The control registers as far as they steer translation, with the rules for writing them.

The CPU modelled here is always in 64-bit mode with paging on, as every CPU of a running x86-64
kernel is; the architecture itself forbids to leave (clearing CR0.PG, CR4.PAE or EFER.LME there is
a #GP). What can change is little:

- CR3 names the top table, and with CR4.PCIDE a process-context identifier in its low 12 bits;
- CR0.WP, CR4.SMEP, CR4.SMAP and EFER.NXE decide about rights;
- CR4.PGE lets leaves be global; CR4.PCIDE tags cached translations.

A write is checked whole, then done. It answers with the invalidation that the architecture
attaches to it (``FLUSH_*``), which the owner of the TLB must carry out.

Source: Intel SDM volume 3, 2.5 (control registers), 4.1.1 and 4.1.2 (paging modes and their
    enabling), 4.10.1 (PCIDs), 4.10.4.1 (what invalidates); volume 2, MOV to control registers.
Counterpart: cpu/x86_64/include/specialreg.h for the names and values.
Differs from the processor: bits for features that are not modelled (protection keys, CET, VMX,
    user interrupts ...) are reserved, as on a CPU whose CPUID lacks them. DragonFly uses neither
    PCIDs nor five levels; both are off unless a feature turns them on.
Token/lock order: takes none; each CPU has its own registers.
Invariants: the values are always legal together; five levels are fixed at construction, since
    CR4.LA57 cannot change in 64-bit mode.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from dfuser.hw.mmu.fault import Protection
from dfuser.hw.mmu.pte import PG_FRAME

CR0_PE: Final = 0x0000_0001
CR0_MP: Final = 0x0000_0002
CR0_EM: Final = 0x0000_0004
CR0_TS: Final = 0x0000_0008
CR0_ET: Final = 0x0000_0010
CR0_NE: Final = 0x0000_0020
CR0_WP: Final = 0x0001_0000
CR0_AM: Final = 0x0004_0000
CR0_NW: Final = 0x2000_0000
CR0_CD: Final = 0x4000_0000
CR0_PG: Final = 0x8000_0000
CR0_ALL: Final = (
    CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG
)
CR0_KERNEL: Final = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG
"""What a running kernel has in CR0."""

CR3_PCID: Final = 0xFFF
CR3_NOFLUSH: Final = 1 << 63

CR4_PSE: Final = 0x0000_0010
CR4_PAE: Final = 0x0000_0020
CR4_PGE: Final = 0x0000_0080
CR4_FXSR: Final = 0x0000_0200
CR4_XMM: Final = 0x0000_0400
CR4_LA57: Final = 0x0000_1000
CR4_FSGSBASE: Final = 0x0001_0000
CR4_PCIDE: Final = 0x0002_0000
CR4_XSAVE: Final = 0x0004_0000
CR4_SMEP: Final = 0x0010_0000
CR4_SMAP: Final = 0x0020_0000
CR4_LOW: Final = 0x0000_07FF
"""Bits 0 to 10: VME, PVI, TSD, DE, PSE, PAE, MCE, PGE, PCE, FXSR, XMM."""
CR4_ALWAYS: Final = CR4_LOW | CR4_FSGSBASE | CR4_XSAVE | CR4_SMEP | CR4_SMAP
CR4_KERNEL: Final = CR4_PSE | CR4_PAE | CR4_PGE | CR4_FXSR | CR4_XMM

EFER_SCE: Final = 0x001
EFER_LME: Final = 0x100
EFER_LMA: Final = 0x400
EFER_NXE: Final = 0x800
EFER_ALL: Final = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE
EFER_KERNEL: Final = EFER_ALL

FLUSH_NONE: Final = 0
FLUSH_CONTEXT: Final = 1
"""Drop what is not global and belongs to the current PCID."""
FLUSH_ALL: Final = 2
"""Drop everything, global or not, of all PCIDs."""


class GeneralProtection(Exception):
    """A #GP(0): the write was refused and nothing changed."""


class MmuFeatures(NamedTuple):
    """What the CPU has, as CPUID would say it.

    Attributes:
        maxphyaddr: bits of a physical address, 32 to 52.
        page1gb: 1 GiB pages.
        pcid: CR4.PCIDE may be set.
        la57: five levels and 57-bit linear addresses, from the start and for good.
    """

    maxphyaddr: int = 48
    page1gb: bool = True
    pcid: bool = False
    la57: bool = False


class ControlRegisters:
    """CR0, CR3, CR4 and EFER of one CPU in 64-bit mode.

    Args:
        features: what the CPU has.

    Raises:
        ValueError: the features are impossible.

    Attributes:
        cr0: its value; write it with ``mov_cr0``, and the others likewise.
        cr3: without the no-flush bit.
        cr4: its value.
        efer: its value.
    """

    __slots__ = ("_cr4_allowed", "cr0", "cr3", "cr4", "efer", "features")

    def __init__(self, features: MmuFeatures) -> None:
        if not 32 <= features.maxphyaddr <= 52:
            raise ValueError(f"physical addresses have 32 to 52 bits, not {features.maxphyaddr}")
        self.features = features
        self._cr4_allowed = CR4_ALWAYS
        if features.pcid:
            self._cr4_allowed |= CR4_PCIDE
        self.cr0 = CR0_KERNEL
        self.cr3 = 0
        self.cr4 = CR4_KERNEL
        if features.la57:
            self._cr4_allowed |= CR4_LA57
            self.cr4 |= CR4_LA57
        self.efer = EFER_KERNEL

    @property
    def root(self) -> int:
        """The physical address of the top table."""
        return self.cr3 & PG_FRAME

    @property
    def pcid(self) -> int:
        """The current process-context identifier; 0 while CR4.PCIDE is 0 (SDM 4.10.1)."""
        return self.cr3 & CR3_PCID if self.cr4 & CR4_PCIDE else 0

    @property
    def pcide(self) -> bool:
        """Whether translations are tagged with PCIDs."""
        return bool(self.cr4 & CR4_PCIDE)

    @property
    def levels(self) -> int:
        """Levels of page tables: 4 or 5."""
        return 5 if self.cr4 & CR4_LA57 else 4

    def protection(self) -> Protection:
        """The bits that decide about rights."""
        return Protection(
            nxe=bool(self.efer & EFER_NXE),
            wp=bool(self.cr0 & CR0_WP),
            smep=bool(self.cr4 & CR4_SMEP),
            smap=bool(self.cr4 & CR4_SMAP),
        )

    def mov_cr0(self, value: int) -> int:
        """Write CR0.

        Returns:
            ``FLUSH_NONE``: only a change of PG would flush, and PG cannot change here.

        Raises:
            GeneralProtection: bits above 31 are set, PG or PE would be cleared, or NW is set
                without CD.
        """
        if value >> 32 or value < 0:
            raise GeneralProtection(f"CR0 has 32 bits: {value:#x}")
        if value & (CR0_PG | CR0_PE) != CR0_PG | CR0_PE:
            raise GeneralProtection("64-bit mode cannot be left by clearing CR0.PG or CR0.PE")
        if value & CR0_NW and not value & CR0_CD:
            raise GeneralProtection("CR0.NW without CR0.CD")
        # Reserved bits of the low half are ignored and ET is fixed (SDM 2.5).
        self.cr0 = value & CR0_ALL | CR0_ET
        return FLUSH_NONE

    def mov_cr3(self, value: int) -> int:
        """Write CR3: the top table, and with PCIDE the PCID and whether to keep its entries.

        Returns:
            The invalidation it brings, for the PCID that is current afterwards.

        Raises:
            GeneralProtection: a bit from MAXPHYADDR up is set (bit 63 is legal with PCIDE).
        """
        pcide = self.cr4 & CR4_PCIDE
        address = value & ~CR3_NOFLUSH if pcide else value
        if address >> self.features.maxphyaddr or value < 0:
            raise GeneralProtection(f"CR3 beyond {self.features.maxphyaddr} bits: {value:#x}")
        self.cr3 = address
        return FLUSH_NONE if pcide and value & CR3_NOFLUSH else FLUSH_CONTEXT

    def mov_cr4(self, value: int) -> int:
        """Write CR4.

        Returns:
            The invalidation it brings.

        Raises:
            GeneralProtection: a bit is set that this CPU does not have, PAE would be cleared,
                LA57 would change, or PCIDE would be set while CR3 has bits in 11:0.
        """
        if value & ~self._cr4_allowed:
            raise GeneralProtection(f"CR4 bits this CPU lacks: {value & ~self._cr4_allowed:#x}")
        changed = value ^ self.cr4
        if not value & CR4_PAE or changed & CR4_LA57:
            raise GeneralProtection("CR4.PAE and CR4.LA57 cannot change in 64-bit mode")
        if changed & value & CR4_PCIDE and self.cr3 & CR3_PCID:
            raise GeneralProtection("CR4.PCIDE set while CR3 names a PCID other than 0")
        self.cr4 = value
        if changed & CR4_PGE or changed & ~value & CR4_PCIDE:
            return FLUSH_ALL
        return FLUSH_CONTEXT if changed & value & CR4_SMEP else FLUSH_NONE

    def wrmsr_efer(self, value: int) -> int:
        """Write EFER; LMA keeps its value whatever is written (SDM 2.2.1).

        Returns:
            ``FLUSH_NONE``: software that changes NXE must flush by itself.

        Raises:
            GeneralProtection: a reserved bit is set, or LME would change.
        """
        if value & ~EFER_ALL:
            raise GeneralProtection(f"EFER bits this CPU lacks: {value & ~EFER_ALL:#x}")
        if not value & EFER_LME:
            raise GeneralProtection("EFER.LME cannot change while paging is on")
        self.efer = value | EFER_LMA
        return FLUSH_NONE
