"""The MMU of one CPU: its control registers, its walker and its TLB, kept in step.

This is what a CPU engine and the pmap of the kernel talk to::

    tables = PageTables(physmem)            # one a machine
    mmu = Mmu(tables, cpuid=0)              # one a CPU
    mmu.mov_cr3(root)
    where = mmu.translate(va, ACCESS_USER | ACCESS_WRITE)
    if where < 0:
        trap, code = trap_of(where)         # CR2 is va

Whoever changes an entry that may be cached (it was present before) must invalidate on each CPU
that may have cached it: ``invlpg`` here for this CPU, an IPI for the others.

Source: Intel SDM volume 3, 4.10.4 (invalidation), volume 2 (INVLPG, INVPCID, MOV CR).
Counterpart: the processor; cpu_invlpg, cpu_invltlb, load_cr3, load_cr4 (cpufunc.h) are the
    instructions DragonFly uses on it.
Differs from DragonFly: INVPCID exists where the ``pcid`` feature is on; DragonFly never uses it.
Token/lock order: takes none; used by its own CPU only.
Invariants: after every method the walker and the TLB work by the registers' present values.
"""

from __future__ import annotations

from typing import Final

from dfuser.hw.mmu.pte import PageTables
from dfuser.hw.mmu.regs import (
    CR3_PCID,
    FLUSH_ALL,
    FLUSH_CONTEXT,
    ControlRegisters,
    GeneralProtection,
    MmuFeatures,
)
from dfuser.hw.mmu.tlb import TLB_ENTRIES, Tlb, TlbStatistics
from dfuser.hw.mmu.walk import Walker

INVPCID_ADDRESS: Final = 0
INVPCID_CONTEXT: Final = 1
INVPCID_ALL: Final = 2
INVPCID_ALL_NONGLOBAL: Final = 3


class Mmu:
    """One CPU's MMU.

    Args:
        tables: the machine's page-table entries.
        features: what the CPU has; the default is four levels without PCIDs.
        tlb_entries: translations its TLB keeps.
        cpuid: number of the CPU, for the sysctl names.

    Raises:
        ValueError: the features or the number of entries are impossible.

    Attributes:
        translate: ``Tlb.translate`` of its TLB: the hot way in.
        lookup: ``Tlb.lookup`` of its TLB.
    """

    __slots__ = ("lookup", "regs", "tlb", "translate", "walker")

    def __init__(
        self,
        tables: PageTables,
        features: MmuFeatures | None = None,
        tlb_entries: int = TLB_ENTRIES,
        cpuid: int = 0,
    ) -> None:
        self.regs = ControlRegisters(MmuFeatures() if features is None else features)
        self.walker = Walker(tables, self.regs)
        self.tlb = Tlb(self.walker, tlb_entries, cpuid)
        self.translate = self.tlb.translate
        self.lookup = self.tlb.lookup

    def mov_cr0(self, value: int) -> None:
        """Write CR0. Raises GeneralProtection as ``ControlRegisters.mov_cr0`` does."""
        self._after(self.regs.mov_cr0(value))

    def mov_cr3(self, value: int) -> None:
        """Write CR3. Raises GeneralProtection as ``ControlRegisters.mov_cr3`` does."""
        self._after(self.regs.mov_cr3(value))

    def mov_cr4(self, value: int) -> None:
        """Write CR4. Raises GeneralProtection as ``ControlRegisters.mov_cr4`` does."""
        self._after(self.regs.mov_cr4(value))

    def wrmsr_efer(self, value: int) -> None:
        """Write EFER. Raises GeneralProtection as ``ControlRegisters.wrmsr_efer`` does."""
        self._after(self.regs.wrmsr_efer(value))

    def invlpg(self, va: int) -> None:
        """Invalidate one page. A non-canonical address is no fault and does nothing (SDM 2)."""
        self.tlb.invlpg(va)

    def invpcid(self, kind: int, pcid: int = 0, va: int = 0) -> None:
        """Invalidate by process-context identifier.

        Args:
            kind: one of ``INVPCID_*``.
            pcid: the context, for the first two kinds.
            va: the address, for the first kind.

        Raises:
            GeneralProtection: there is no such kind; the PCID has more than 12 bits, or is not 0
                while CR4.PCIDE is 0; or the address is needed and not canonical.
        """
        if not INVPCID_ADDRESS <= kind <= INVPCID_ALL_NONGLOBAL:
            raise GeneralProtection(f"INVPCID has no type {kind}")
        if not 0 <= pcid <= CR3_PCID:
            raise GeneralProtection(f"INVPCID descriptor with reserved bits: {pcid:#x}")
        if kind <= INVPCID_CONTEXT and pcid and not self.regs.pcide:
            raise GeneralProtection("INVPCID of a context while CR4.PCIDE is 0")
        if kind == INVPCID_ADDRESS:
            if not self.walker.canonical(va):
                raise GeneralProtection(f"INVPCID of a non-canonical address: {va:#x}")
            self.tlb.invalidate_address(va, pcid)
        elif kind == INVPCID_CONTEXT:
            self.tlb.flush_context(pcid)
        elif kind == INVPCID_ALL:
            self.tlb.flush()
        else:
            self.tlb.flush_nonglobal()

    def statistics(self) -> TlbStatistics:
        """Count what its TLB did; walks are its misses."""
        return self.tlb.statistics()

    def _after(self, flush: int) -> None:
        """Follow a change of the registers."""
        self.walker.configure()
        pcid = self.regs.pcid
        self.tlb.configure(pcid)
        if flush == FLUSH_ALL:
            self.tlb.flush()
        elif flush == FLUSH_CONTEXT:
            self.tlb.flush_context(pcid)
