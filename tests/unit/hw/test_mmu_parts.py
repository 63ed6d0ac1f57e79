"""Entries, control registers, the MMU of a CPU, and scans of many entries."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Iterator

import pytest

from dfuser.hw.mmu.batch import SCALAR_BELOW, BatchScanner, TableRun
from dfuser.hw.mmu.fault import ACCESS_FETCH, ACCESS_READ, ACCESS_USER, ACCESS_WRITE, is_fault
from dfuser.hw.mmu.pte import (
    PAT_UNCACHEABLE,
    PAT_UNCACHED,
    PAT_WRITE_BACK,
    PAT_WRITE_THROUGH,
    X86_PG_A,
    X86_PG_G,
    X86_PG_M,
    X86_PG_NX,
    X86_PG_PS,
    X86_PG_RW,
    X86_PG_U,
    X86_PG_V,
    PageTables,
    memory_type,
    pte_index,
    reserved_bits,
)
from dfuser.hw.mmu.regs import (
    CR0_CD,
    CR0_ET,
    CR0_KERNEL,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR3_NOFLUSH,
    CR4_KERNEL,
    CR4_LA57,
    CR4_PAE,
    CR4_PCIDE,
    CR4_PGE,
    CR4_SMEP,
    EFER_KERNEL,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    FLUSH_ALL,
    FLUSH_CONTEXT,
    FLUSH_NONE,
    ControlRegisters,
    GeneralProtection,
    MmuFeatures,
)
from dfuser.hw.mmu.unit import (
    INVPCID_ADDRESS,
    INVPCID_ALL,
    INVPCID_ALL_NONGLOBAL,
    INVPCID_CONTEXT,
    Mmu,
)
from dfuser.hw.mmu.walk import Walker
from dfuser.hw.physmem import PhysMem
from dfuser.libkern.errno import EINVAL, KError
from dfuser.libkern.sysctl import SysctlTree
from dfuser.libkern.ucred import Ucred

FULL = X86_PG_V | X86_PG_RW | X86_PG_U
ROOT, PDPT, PD, PT = 0x1000, 0x2000, 0x3000, 0x4000
HAVE_NUMPY = importlib.util.find_spec("numpy") is not None
WAYS = [
    False,
    pytest.param(True, marks=pytest.mark.skipif(not HAVE_NUMPY, reason="numpy is not installed")),
]


@pytest.fixture
def tables() -> Iterator[PageTables]:
    """Memory with one chain of tables; the page table is empty."""
    physmem = PhysMem(1 << 20)
    made = PageTables(physmem)
    for table, below in ((ROOT, PDPT), (PDPT, PD), (PD, PT)):
        made.pte_store(table, below | FULL)
    yield made
    made.close()
    physmem.close()


# Entries


def test_an_entry_is_written_and_read_whole(tables: PageTables) -> None:
    """What if the highest bit of an entry were lost on the way to memory?"""
    entry = X86_PG_NX | 0x000F_FFFF_FFFF_F000 | FULL
    tables.pte_store(PT + 8, entry)
    assert tables.pte_load(PT + 8) == entry
    assert tables.pte_load(PT) == 0


def test_a_bad_store_writes_nothing(tables: PageTables) -> None:
    """What if an entry is stored off its place, beyond memory, or too large?"""
    for address, entry, error in (
        (PT + 4, FULL, ValueError),
        (1 << 20, FULL, IndexError),
        (PT, 1 << 64, ValueError),
        (PT, -1, ValueError),
    ):
        with pytest.raises(error):
            tables.pte_store(address, entry)
    with pytest.raises(ValueError, match="no page-table entry"):
        tables.pte_load(PT + 1)
    assert tables.pte_load(PT) == 0


def test_memory_cannot_go_while_tables_use_it() -> None:
    """What if physical memory were closed under the page tables?"""
    physmem = PhysMem(4096)
    tables = PageTables(physmem)
    with pytest.raises(BufferError):
        physmem.close()
    tables.close()
    tables.close()
    with pytest.raises(ValueError, match="released"):
        tables.pte_load(0)
    physmem.close()


def test_reserved_bits_of_each_level() -> None:
    """What if a bit is reserved at the wrong level? (SDM tables 4-14 to 4-20)"""

    def bits(level: int, leaf: bool, nxe: bool = True, page1gb: bool = True) -> set[int]:
        value = reserved_bits(level, leaf, 48, nxe, page1gb)
        return {bit for bit in range(64) if value >> bit & 1}

    high = {48, 49, 50, 51}
    assert bits(1, True) == bits(2, False) == bits(3, False) == bits(4, False) == high
    assert bits(2, True) == high | set(range(13, 21))
    assert bits(3, True) == high | set(range(13, 30))
    assert bits(3, True, page1gb=False) == high | {7}
    assert bits(4, True) == bits(5, True) == high | {7}
    assert bits(1, True, nxe=False) == high | {63}
    assert reserved_bits(1, True, 52, True, True) == 0
    for level, width in ((0, 48), (6, 48), (1, 31), (1, 53)):
        with pytest.raises(ValueError, match="no paging"):
            reserved_bits(level, True, width, True, True)


def test_memory_types_after_reset() -> None:
    """What if the reset value of IA32_PAT were read in the wrong order?"""
    types = [PAT_WRITE_BACK, PAT_WRITE_THROUGH, PAT_UNCACHED, PAT_UNCACHEABLE]
    assert [memory_type(index) for index in range(8)] == types * 2
    assert memory_type(1, 0x0100) == 1
    assert [pte_index(0o777_001_002_003 << 12, level) for level in (4, 3, 2, 1)] == [511, 1, 2, 3]


# Control registers


def test_what_control_registers_refuse() -> None:
    """What if software wrote what the architecture forbids: a #GP must leave all as it was."""
    regs = ControlRegisters(MmuFeatures(maxphyaddr=40))
    for write, value in (
        (regs.mov_cr0, CR0_KERNEL | 1 << 32),
        (regs.mov_cr0, CR0_KERNEL & ~CR0_PG),
        (regs.mov_cr0, CR0_KERNEL & ~CR0_PE),
        (regs.mov_cr0, CR0_KERNEL | CR0_NW),
        (regs.mov_cr3, 1 << 40),
        (regs.mov_cr3, CR3_NOFLUSH | 0x1000),
        (regs.mov_cr4, CR4_KERNEL & ~CR4_PAE),
        (regs.mov_cr4, CR4_KERNEL | CR4_LA57),
        (regs.mov_cr4, CR4_KERNEL | CR4_PCIDE),
        (regs.mov_cr4, CR4_KERNEL | 1 << 22),
        (regs.wrmsr_efer, EFER_KERNEL & ~EFER_LME),
        (regs.wrmsr_efer, EFER_KERNEL | 1 << 12),
    ):
        with pytest.raises(GeneralProtection):
            write(value)
    assert (regs.cr0, regs.cr3, regs.cr4, regs.efer) == (CR0_KERNEL, 0, CR4_KERNEL, EFER_KERNEL)
    with pytest.raises(ValueError, match="32 to 52"):
        ControlRegisters(MmuFeatures(maxphyaddr=53))


def test_bits_that_are_ignored_or_fixed() -> None:
    """What if ET could be cleared, LMA written, or PWT in CR3 taken for a PCID?"""
    regs = ControlRegisters(MmuFeatures())
    regs.mov_cr0((CR0_KERNEL | CR0_NW | CR0_CD) & ~CR0_ET | 1 << 10)
    assert regs.cr0 == CR0_KERNEL | CR0_NW | CR0_CD
    regs.wrmsr_efer(EFER_KERNEL & ~EFER_LMA)
    assert regs.efer == EFER_KERNEL
    regs.mov_cr3(0x5018)
    assert (regs.root, regs.pcid, regs.cr3) == (0x5000, 0, 0x5018)
    assert regs.levels == 4
    assert ControlRegisters(MmuFeatures(la57=True)).levels == 5


def test_what_each_write_invalidates() -> None:
    """What if a write that must flush is answered with less? (SDM 4.10.4.1)"""
    regs = ControlRegisters(MmuFeatures(pcid=True))
    assert regs.mov_cr3(0x1000) == FLUSH_CONTEXT
    assert regs.mov_cr0(CR0_KERNEL & ~CR0_WP) == FLUSH_NONE
    assert regs.mov_cr4(CR4_KERNEL | CR4_SMEP) == FLUSH_CONTEXT
    assert regs.mov_cr4(CR4_KERNEL) == FLUSH_NONE
    assert regs.mov_cr4(CR4_KERNEL & ~CR4_PGE) == FLUSH_ALL
    assert regs.mov_cr4(CR4_KERNEL) == FLUSH_ALL
    assert regs.mov_cr4(CR4_KERNEL | CR4_PCIDE) == FLUSH_NONE
    assert regs.mov_cr3(0x1005) == FLUSH_CONTEXT
    assert regs.pcid == 5
    assert regs.mov_cr3(0x1006 | CR3_NOFLUSH) == FLUSH_NONE
    assert (regs.cr3, regs.pcid) == (0x1006, 6)
    assert regs.mov_cr4(CR4_KERNEL) == FLUSH_ALL
    with pytest.raises(GeneralProtection, match="PCID"):
        regs.mov_cr4(CR4_KERNEL | CR4_PCIDE)
    assert regs.wrmsr_efer(EFER_KERNEL & ~EFER_NXE) == FLUSH_NONE


# The MMU of a CPU


def test_registers_take_effect_at_once(tables: PageTables) -> None:
    """What if a cached translation were judged by the registers of the past?"""
    tables.pte_store(PT, 0x8000 | X86_PG_V | X86_PG_U | X86_PG_NX)
    mmu = Mmu(tables)
    mmu.mov_cr3(ROOT)
    assert mmu.translate(0x10, ACCESS_READ) == 0x8010
    assert is_fault(mmu.translate(0, ACCESS_WRITE))
    mmu.mov_cr0(CR0_KERNEL & ~CR0_WP)
    assert mmu.translate(4, ACCESS_WRITE) == 0x8004
    assert is_fault(mmu.translate(0, ACCESS_USER | ACCESS_FETCH))
    assert mmu.translate(0, ACCESS_READ) == 0x8000
    mmu.wrmsr_efer(EFER_KERNEL & ~EFER_NXE)
    assert mmu.translate(0, ACCESS_FETCH) == 0x8000, "kept from before; the flush is software's"
    mmu.mov_cr3(ROOT)
    assert mmu.translate(0, ACCESS_FETCH) == ~0x9, "without NXE bit 63 is reserved"


def test_invpcid(tables: PageTables) -> None:
    """What if INVPCID drops the wrong context, or takes a descriptor it must refuse?"""
    mmu = Mmu(tables, MmuFeatures(pcid=True))
    with pytest.raises(GeneralProtection, match="PCIDE"):
        mmu.invpcid(INVPCID_CONTEXT, 1)
    mmu.mov_cr4(CR4_KERNEL | CR4_PCIDE)
    tables.pte_store(PT, 0x8000 | FULL)
    tables.pte_store(PT + 8, 0x9000 | FULL | X86_PG_G)
    for pcid in (1, 2):
        mmu.mov_cr3(ROOT | pcid | CR3_NOFLUSH)
        assert mmu.translate(0, ACCESS_READ) == 0x8000
        assert mmu.translate(0x1000, ACCESS_READ) == 0x9000
    assert mmu.statistics().entries == 3
    mmu.invpcid(INVPCID_ADDRESS, 2, 0x1000)
    assert mmu.tlb.cached(0x1000) is not None, "a global translation stays"
    mmu.invpcid(INVPCID_CONTEXT, 1)
    assert mmu.tlb.cached(0) is not None, "that was another context"
    mmu.invpcid(INVPCID_ADDRESS, 2, 0)
    assert mmu.tlb.cached(0) is None
    mmu.translate(0, ACCESS_READ)
    mmu.invpcid(INVPCID_ALL_NONGLOBAL)
    assert mmu.statistics().entries == mmu.statistics().global_entries == 1
    mmu.invpcid(INVPCID_ALL)
    assert mmu.statistics().entries == 0
    for kind, pcid, va in ((4, 0, 0), (-1, 0, 0), (0, 4096, 0), (0, 1, 1 << 63)):
        with pytest.raises(GeneralProtection):
            mmu.invpcid(kind, pcid, va)


def test_sysctls_of_two_cpus(tables: PageTables) -> None:
    """What if the TLBs of two CPUs claimed one name, or a limit could be set to nonsense?"""
    tree = SysctlTree()
    cpus = [Mmu(tables, cpuid=n, tlb_entries=64) for n in range(2)]
    for mmu in cpus:
        tree.register(mmu.tlb)
        mmu.mov_cr3(ROOT)
    tables.pte_store(PT, 0x8000 | FULL)
    cpus[1].translate(0, ACCESS_READ)
    cpus[1].translate(0, ACCESS_READ)
    assert tree.get("hw.mmu.cpu1.tlb_hits") == "1"
    assert tree.get("hw.mmu.cpu0.tlb_misses") == "0"
    tree.set("hw.mmu.cpu1.tlb_entries", "128", Ucred.root())
    assert cpus[1].statistics().capacity == 128
    assert cpus[1].statistics().entries == 0
    with pytest.raises(KError) as caught:
        tree.set("hw.mmu.cpu1.tlb_entries", "15", Ucred.root())
    assert caught.value.errno == EINVAL
    for bad in (15, (1 << 20) + 1):
        with pytest.raises(ValueError, match="translations"):
            Mmu(tables, tlb_entries=bad)


# Many entries at once


@pytest.fixture
def scanner(request: pytest.FixtureRequest, tables: PageTables) -> Iterator[BatchScanner]:
    """A scanner that works in the way the test asks for."""
    made = BatchScanner(tables, vectorised=request.param)
    yield made
    made.close()


both_ways = pytest.mark.parametrize("scanner", WAYS, indirect=True, ids=["plain", "numpy"])


@both_ways
def test_scans_against_one_by_one(
    scanner: BatchScanner, tables: PageTables, rng: random.Random
) -> None:
    """What if a scan of a stretch missed an entry, or changed one that does not match?"""
    entries = [rng.getrandbits(64) & ~0x1F | rng.getrandbits(5) for _ in range(512)]
    for number, entry in enumerate(entries):
        tables.pte_store(PT + 8 * number, entry)
    for _ in range(20):
        mask, clear, add = (rng.choice([1, 3, 0x67, X86_PG_NX, 0]) for _ in range(3))
        want = mask & rng.getrandbits(64)
        first = rng.randrange(512)
        run = TableRun(first << 12, PT + 8 * first, rng.randrange(513 - first), 1)
        places = range(first, first + run.npte)
        hits = [at for at in places if entries[at] & mask == want]
        assert scanner.count(run, mask, want) == len(hits)
        assert scanner.select(run, mask, want) == [(at - first, entries[at]) for at in hits]
        new = {at: entries[at] & ~clear | add for at in hits}
        different = sum(entries[at] != entry for at, entry in new.items())
        assert scanner.update(run, mask, want, clear, add) == different
        for at, entry in new.items():
            entries[at] = entry
        assert tables.words[PT >> 3 : (PT >> 3) + 512].tolist() == entries
    done = scanner.statistics()
    assert done.scanned > 0
    assert done.vectorised == scanner.vectorised


@both_ways
def test_runs_of_a_range(scanner: BatchScanner, tables: PageTables) -> None:
    """What if a range that begins and ends anywhere is cut at the wrong entries?"""
    tables.pte_store(PD + 8, 0x40_0000 | FULL | X86_PG_PS)
    tables.pte_store(PD + 8 * 511, 0x5000 | FULL)
    tables.pte_store(PDPT + 8 * 3, FULL | X86_PG_PS)
    tables.pte_store(PDPT + 8 * 4, 1 << 30 | FULL)
    tables.pte_store(ROOT + 8 * 511, PDPT | FULL)
    runs = list(scanner.runs(ROOT, 0x1F_E800, 5 << 30))
    assert runs == [
        TableRun(0x1F_E000, PT + 8 * 510, 2, 1),
        TableRun(0x20_0000, PD + 8, 1, 2),
        TableRun(511 << 21, 0x5000, 512, 1),
        TableRun(3 << 30, PDPT + 8 * 3, 1, 3),
    ]
    assert list(scanner.runs(ROOT, 0x3000, 0x3001)) == [TableRun(0x3000, PT + 24, 1, 1)]
    assert list(scanner.runs(ROOT, 0x3000, 0x3000)) == []
    top = (1 << 64) - (1 << 39)
    assert next(scanner.runs(ROOT, top + 0x1000, 1 << 64)) == TableRun(top + 0x1000, PT + 8, 511, 1)
    for start, end in ((0, 1 << 48), (1 << 47, 1 << 48), (5, 4), (0, 1 << 64)):
        with pytest.raises(ValueError, match="canonical"):
            list(scanner.runs(ROOT, start, end))


@both_ways
def test_fork_and_pageout_as_scans(scanner: BatchScanner, tables: PageTables) -> None:
    """What if write-protecting a process or ageing its pages by scans lost or invented bits?"""
    for number in range(100):
        flags = FULL | X86_PG_A * (number % 2) | X86_PG_M * (number % 3 == 0)
        tables.pte_store(PT + 8 * number, (0x100 + number) << 12 | flags)
    (run,) = scanner.runs(ROOT, 0, 100 << 12)
    writable = X86_PG_V | X86_PG_RW
    assert scanner.update(run, writable, writable, clear=X86_PG_RW) == 100
    assert scanner.update(run, writable, writable, clear=X86_PG_RW) == 0
    assert scanner.update(run, X86_PG_A, X86_PG_A, clear=X86_PG_A) == 50
    dirty = scanner.select(run, X86_PG_M, X86_PG_M)
    assert [at for at, _ in dirty] == list(range(0, 100, 3))
    assert scanner.count(run, X86_PG_V, X86_PG_V) == 100
    assert scanner.statistics().changed == 150


@both_ways
@pytest.mark.parametrize("la57", [False, True], ids=["4 levels", "5 levels"])
@pytest.mark.parametrize("maxphyaddr", [36, 52])
def test_many_probes_against_one_by_one(
    scanner: BatchScanner, tables: PageTables, rng: random.Random, la57: bool, maxphyaddr: int
) -> None:
    """What if a batch of addresses were looked up differently from each alone?"""
    for table in range(1, 7):
        for number in (0, 1, 511):
            entry = rng.randrange(1, 7) << 12 | FULL | rng.getrandbits(12) & 0xF7F
            for bit, chance in ((7, 0.2), (12, 0.2), (21, 0.1), (30, 0.1), (40, 0.05), (63, 0.2)):
                entry |= (rng.random() < chance) << bit
            tables.pte_store(0x1000 * table + 8 * number, entry & ~(rng.random() < 0.1))
    regs = ControlRegisters(MmuFeatures(maxphyaddr=maxphyaddr, la57=la57))
    regs.mov_cr3(ROOT)
    walker = Walker(tables, regs)
    top = 56 if la57 else 47
    addresses = []
    for _ in range(4 * SCALAR_BELOW):
        va = sum(rng.choice((0, 1, 511)) << shift for shift in (12, 21, 30, 39, 48))
        va &= (2 << top) - 1
        va |= (1 << 64) - (1 << top) if va >> top & 1 else 0
        addresses.append(va ^ (rng.random() < 0.05) << 62)
    expected = [walker.probe(va) for va in addresses]
    assert list(scanner.probe_many(walker, addresses)) == expected
    assert list(scanner.probe_many(walker, addresses[:5])) == expected[:5]
    assert scanner.statistics().walked == 4 * SCALAR_BELOW + 5


@both_ways
def test_the_probes_reach_what_they_must(scanner: BatchScanner, tables: PageTables) -> None:
    """What if the batch of probes finds nothing anywhere: small, large and huge pages are there."""
    tables.pte_store(PT + 8, 0x8000 | FULL)
    tables.pte_store(PD + 8, 0x40_0000 | FULL | X86_PG_PS)
    tables.pte_store(PDPT + 8, 1 << 30 | FULL | X86_PG_PS | X86_PG_NX)
    tables.pte_store(PDPT + 16, 1 << 40 | FULL)
    regs = ControlRegisters(MmuFeatures())
    regs.mov_cr3(ROOT)
    walker = Walker(tables, regs)
    addresses = [0x1000, 0x20_1000, 0x4000_1000, 0x8000_0000, 0, 1 << 63] * SCALAR_BELOW
    found = list(scanner.probe_many(walker, addresses))
    assert [entry & 0x000F_FFFF_FFFF_F000 for entry in found[:3]] == [
        0x8000,
        0x40_1000,
        0x4000_1000,
    ]
    assert found[2] & X86_PG_NX
    assert found[3:6] == [0, 0, 0]
    assert found == [walker.probe(va) for va in addresses]


def test_a_scanner_without_numpy(tables: PageTables, monkeypatch: pytest.MonkeyPatch) -> None:
    """What if numpy is missing: nothing may break, unless it was asked for."""
    monkeypatch.setitem(sys.modules, "numpy", None)
    scanner = BatchScanner(tables)
    assert not scanner.vectorised
    scanner.close()
    with pytest.raises(ImportError):
        BatchScanner(tables, vectorised=True)
