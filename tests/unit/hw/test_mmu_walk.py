"""The page walk on random tables against the SDM's rules, and its corners one by one."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from dfuser.hw.mmu.fault import (
    ACCESS_AC,
    ACCESS_FETCH,
    ACCESS_IMPLICIT,
    ACCESS_KINDS,
    ACCESS_READ,
    ACCESS_USER,
    ACCESS_WRITE,
    FAULT_GP,
    T_PAGEFLT,
    T_PROTFLT,
    Protection,
    describe,
    is_fault,
    level_of,
    make_rules,
    possible,
    trap_of,
)
from dfuser.hw.mmu.pte import (
    PAGE_SIZES,
    PG_FRAME,
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
    pat_index,
)
from dfuser.hw.mmu.regs import (
    CR0_KERNEL,
    CR0_WP,
    CR4_KERNEL,
    CR4_LA57,
    CR4_PGE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_KERNEL,
    EFER_NXE,
    ControlRegisters,
    MmuFeatures,
)
from dfuser.hw.mmu.walk import Walker
from dfuser.hw.physmem import PhysMem
from tests.unit.hw import golden_mmu_rules as rules

FULL = X86_PG_V | X86_PG_RW | X86_PG_U
ACCESSES = [access for access in range(ACCESS_KINDS) if possible(access)]
TABLES = 6
ROOT = 0x1000
MEMORY = 0x8000


def as_words(access: int) -> rules.Access:
    """An access in the words of the rules."""
    kind = "fetch" if access & ACCESS_FETCH else "write" if access & ACCESS_WRITE else "read"
    return rules.Access(
        kind,
        bool(access & ACCESS_USER),
        bool(access & ACCESS_AC),
        bool(access & ACCESS_IMPLICIT),
    )


def registers(cpu: rules.Machine) -> ControlRegisters:
    """Control registers of a machine described for the rules."""
    regs = ControlRegisters(MmuFeatures(cpu.maxphyaddr, cpu.page1gb, la57=cpu.la57))
    cr4 = CR4_KERNEL | CR4_SMEP * cpu.smep | CR4_SMAP * cpu.smap | CR4_LA57 * cpu.la57
    regs.mov_cr0(CR0_KERNEL if cpu.wp else CR0_KERNEL & ~CR0_WP)
    regs.mov_cr4(cr4 if cpu.pge else cr4 & ~CR4_PGE)
    regs.wrmsr_efer(EFER_KERNEL if cpu.nxe else EFER_KERNEL & ~EFER_NXE)
    regs.mov_cr3(cpu.root)
    return regs


class World:
    """A small memory with page tables in it."""

    def __init__(self, cpu: rules.Machine | None = None) -> None:
        self.physmem = PhysMem(MEMORY)
        self.tables = PageTables(self.physmem)
        self.cpu = rules.Machine(ROOT) if cpu is None else cpu
        self.walker = Walker(self.tables, registers(self.cpu))

    def load(self, address: int) -> int:
        """An entry; ones where there is no memory, as on a bus where nobody answers."""
        return self.tables.pte_load(address) if address < MEMORY else (1 << 64) - 1

    def chain(self, va: int, leaf: int, level: int = 1, flags: int = FULL) -> int:
        """Build the tables for an address down to a leaf; returns where the leaf is."""
        table = ROOT
        for step, shift in enumerate((39, 30, 21, 12)):
            at = table + 8 * (va >> shift & 511)
            if 4 - step == level:
                self.tables.pte_store(at, leaf)
                return at
            table += 0x1000
            self.tables.pte_store(at, table | flags)
        raise AssertionError(level)

    def close(self) -> None:
        self.tables.close()
        self.physmem.close()


@pytest.fixture
def world() -> Iterator[World]:
    """Four levels, as a kernel runs them."""
    made = World()
    yield made
    made.close()


machines = st.builds(
    rules.Machine,
    root=st.just(ROOT),
    nxe=st.booleans(),
    wp=st.booleans(),
    smep=st.booleans(),
    smap=st.booleans(),
    pge=st.booleans(),
    maxphyaddr=st.sampled_from([36, 46, 48, 52]),
    page1gb=st.booleans(),
    la57=st.booleans(),
)


def random_entry(rng: random.Random) -> int:
    """An entry that is mostly sensible: present, with rights, naming one of the tables."""
    entry = (1 + rng.randrange(TABLES)) << 12
    for bit, chance in (
        (0, 0.98), (1, 0.8), (2, 0.8), (3, 0.3), (4, 0.3), (5, 0.5), (6, 0.5), (7, 0.2),
        (8, 0.3), (9, 0.2), (11, 0.2), (12, 0.1), (13, 0.02), (20, 0.01), (21, 0.1), (29, 0.02),
        (30, 0.1), (36, 0.02), (47, 0.01), (51, 0.01), (52, 0.2), (60, 0.2), (63, 0.15),
    ):  # fmt: skip
        if rng.random() < chance:
            entry ^= 1 << bit if bit == 12 else 0
            entry |= 1 << bit
    return entry


def random_address(rng: random.Random, la57: bool) -> int:
    """An address whose indexes are small, in either half, now and then not canonical."""
    va = 0
    for shift in (12, 21, 30, 39, 48):
        va |= rng.choice((0, 1, 511)) << shift
    va = va & (1 << (57 if la57 else 48)) - 1 | rng.randrange(4096)
    top = 56 if la57 else 47
    if va >> top & 1:
        va |= (1 << 64) - (1 << top)
    if rng.random() < 0.05:
        va ^= 1 << rng.randrange(top, 64)
    return va


def check_against_rules(world: World, va: int, access: int, general: bool) -> str:
    """One access through the walker and through the rules; what kind it was."""
    before = world.tables.words.tolist()
    want = rules.translate(world.load, world.cpu, va, as_words(access))
    probed = world.walker.probe(va)
    run = world.walker.walk_any if general else world.walker.walk
    result = run(va, access)
    after = world.tables.words.tolist()
    changed = {
        at * 8: new for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new
    }
    assert changed == {
        at: new for at, new in want.stores.items() if at < MEMORY and before[at >> 3] != new
    }
    if want.fault:
        assert is_fault(result)
        expected = (T_PROTFLT, 0) if want.fault == "GP" else (T_PAGEFLT, want.error)
        assert trap_of(result) == expected
        assert probed == 0 or not want.error & 8
        return want.fault
    assert result & PG_FRAME | va & 0xFFF == want.address
    assert PAGE_SIZES[level_of(result)] == want.size
    assert bool(result & X86_PG_G) == want.glob
    assert pat_index(result) == want.memory_type
    granted = {"user": X86_PG_U, "write": X86_PG_RW}
    assert {name for name, flag in granted.items() if result & flag} == want.granted - {"fetch"}
    assert bool(result & X86_PG_NX) == ("fetch" not in want.granted)
    assert result & X86_PG_A
    assert not access & ACCESS_WRITE or result & X86_PG_M
    assert (probed ^ result) & ~(X86_PG_A | X86_PG_M) == 0
    return f"{want.size >> 10} KiB"


@given(cpu=machines, seed=st.integers(0, 1 << 32), general=st.booleans())
def test_random_tables_against_the_rules(cpu: rules.Machine, seed: int, general: bool) -> None:
    """What if some tree of tables, address and access is walked differently from the SDM?"""
    rng = random.Random(seed)
    world = World(cpu)
    try:
        for table in range(TABLES):
            for index in (0, 1, 511):
                at = 0x1000 * (1 + table) + 8 * index
                world.tables.pte_store(at, random_entry(rng))
        for _ in range(12):
            va = random_address(rng, cpu.la57)
            event(check_against_rules(world, va, rng.choice(ACCESSES), general))
    finally:
        world.close()


def test_the_random_tables_reach_every_page_size() -> None:
    """What if the random trees nearly always fault, so that little is compared?"""
    rng = random.Random(5)
    seen = []
    for round_ in range(60):
        world = World(rules.Machine(ROOT, smep=bool(round_ & 1), la57=bool(round_ & 2)))
        for table in range(TABLES):
            for index in (0, 1, 511):
                at = 0x1000 * (1 + table) + 8 * index
                world.tables.pte_store(at, random_entry(rng))
        for _ in range(12):
            va = random_address(rng, world.cpu.la57)
            seen.append(check_against_rules(world, va, rng.choice(ACCESSES), False))
        world.close()
    assert {"4 KiB", "2048 KiB", "1048576 KiB", "GP", "PF"} == set(seen)
    assert sum(kind.endswith("KiB") for kind in seen) > len(seen) // 10


@pytest.mark.parametrize("la57", [False, True])
def test_the_edges_of_the_canonical_halves(la57: bool) -> None:
    """What if the first address that is not canonical were translated, or the last one not?"""
    world = World(rules.Machine(ROOT, la57=la57))
    top = 56 if la57 else 47
    low, high = (1 << top) - 1, (1 << 64) - (1 << top)
    try:
        for va in (0, low, high, (1 << 64) - 1):
            assert trap_of(world.walker.walk(va, ACCESS_READ)) == (T_PAGEFLT, 0)
        for va in (low + 1, high - 1, 1 << 63):
            assert world.walker.walk(va, ACCESS_READ) == ~FAULT_GP
            assert trap_of(world.walker.walk(va, ACCESS_READ)) == (T_PROTFLT, 0)
            assert world.walker.probe(va) == 0
    finally:
        world.close()


def test_one_gib_page(world: World) -> None:
    """What if an address in the middle of a 1 GiB page leads elsewhere?"""
    at = world.chain(0, 3 << 30 | FULL | X86_PG_PS | X86_PG_PDE_PAT, level=3)
    found = world.walker.walk(0x1234_5678, ACCESS_USER | ACCESS_WRITE)
    assert found & PG_FRAME == (3 << 30) + 0x1234_5000
    assert level_of(found) == 3
    assert pat_index(found) == 4
    assert world.load(at) & (X86_PG_A | X86_PG_M) == X86_PG_A | X86_PG_M


def test_one_gib_page_on_a_cpu_without_them() -> None:
    """What if PS in a PDPT entry were no reserved bit where there are no 1 GiB pages?"""
    world = World(rules.Machine(ROOT, page1gb=False))
    world.chain(0, 3 << 30 | FULL | X86_PG_PS, level=3)
    assert trap_of(world.walker.walk(0, ACCESS_READ)) == (T_PAGEFLT, 0x9)
    world.close()


@pytest.mark.parametrize("bits", range(8))
@pytest.mark.parametrize("level", [1, 2, 3])
def test_memory_type_index(world: World, bits: int, level: int) -> None:
    """What if PAT is looked for in the wrong bit of a large page?"""
    pat = X86_PG_PTE_PAT if level == 1 else X86_PG_PDE_PAT | X86_PG_PS
    leaf = FULL | (0 if level == 1 else X86_PG_PS)
    leaf |= pat if bits & 4 else 0
    leaf |= X86_PG_NC_PCD if bits & 2 else 0
    leaf |= X86_PG_NC_PWT if bits & 1 else 0
    world.chain(0, leaf, level)
    assert pat_index(leaf, level) == bits
    assert pat_index(world.walker.walk(0, ACCESS_READ)) == bits


def test_reads_set_a_on_every_level_and_d_nowhere(world: World) -> None:
    """What if a load leaves a table entry without A, or makes the page dirty?"""
    world.chain(0, 0x8000 | FULL)
    world.walker.walk(0, ACCESS_READ)
    entries = [world.load(ROOT + 0x1000 * n) for n in range(4)]
    assert all(entry & X86_PG_A for entry in entries)
    assert not any(entry & X86_PG_M for entry in entries)
    world.walker.walk(0, ACCESS_WRITE)
    entries = [world.load(ROOT + 0x1000 * n) for n in range(4)]
    assert [bool(entry & X86_PG_M) for entry in entries] == [False, False, False, True]


@pytest.mark.parametrize("general", [False, True])
def test_a_table_that_maps_itself(world: World, general: bool) -> None:
    """What if one entry is used on all four levels, as a recursive slot is: D must not get lost."""
    world.tables.pte_store(ROOT + 8 * 510, ROOT | FULL)
    va = 0xFFFF_0000_0000_0000 | 510 << 39 | 510 << 30 | 510 << 21 | 510 << 12
    run = world.walker.walk_any if general else world.walker.walk
    assert run(va, ACCESS_WRITE) & PG_FRAME == ROOT
    assert world.load(ROOT + 8 * 510) == ROOT | FULL | X86_PG_A | X86_PG_M


def test_a_table_beyond_memory_reads_as_ones(world: World) -> None:
    """What if CR3 or an entry points past the end of memory: an IndexError inside the kernel?"""
    world.tables.pte_store(ROOT, MEMORY | FULL)
    assert trap_of(world.walker.walk(0, ACCESS_READ)) == (T_PAGEFLT, 0x9)
    regs = registers(rules.Machine(MEMORY + 0x5000))
    assert trap_of(Walker(world.tables, regs).walk(0, ACCESS_READ)) == (T_PAGEFLT, 0x9)


def test_a_last_table_beyond_memory_with_all_address_bits() -> None:
    """What if a table of ones is legal, because no address bit is reserved: stores must vanish."""
    world = World(rules.Machine(ROOT, maxphyaddr=52))
    world.chain(0, 0, level=2)
    world.tables.pte_store(ROOT + 0x2000, 1 << 51 | FULL)
    for access in (ACCESS_READ, ACCESS_WRITE):
        assert world.walker.walk(0, access) & PG_FRAME == PG_FRAME
    assert world.load(ROOT + 0x2000) == 1 << 51 | FULL | X86_PG_A
    world.close()


@pytest.mark.parametrize("access", [a for a in range(ACCESS_KINDS) if not possible(a)])
def test_impossible_accesses_are_refused(world: World, access: int) -> None:
    """What if somebody asks for a store that is an instruction fetch?"""
    for leaf in (0, FULL, FULL | X86_PG_A | X86_PG_M, FULL | 1 << 51):
        world.chain(0, leaf)
        with pytest.raises(ValueError, match="no access"):
            world.walker.walk(0, access)
    with pytest.raises(ValueError, match="no access"):
        world.walker.walk(1 << 63, access)


def test_rules_have_no_hole() -> None:
    """What if an access has a rule though impossible, or none though possible?"""
    made = make_rules(Protection())
    assert [access for access, rule in enumerate(made) if rule is not None] == ACCESSES
    assert len(ACCESSES) == 16


def test_implicit_accesses_do_not_care_about_ac() -> None:
    """What if the processor's own access to a user page passed SMAP because AC was set?"""
    world = World(rules.Machine(ROOT, smap=True))
    world.chain(0, FULL)
    assert not is_fault(world.walker.walk(0, ACCESS_AC))
    for access in (ACCESS_IMPLICIT, ACCESS_IMPLICIT | ACCESS_AC):
        assert trap_of(world.walker.walk(0, access)) == (T_PAGEFLT, 1)
    world.close()


def test_probe_changes_nothing_and_asks_nothing(world: World) -> None:
    """What if looking at an address as a debugger marked it used, or needed rights?"""
    world.chain(0, 0x8000 | X86_PG_V, flags=X86_PG_V)
    before = bytes(world.physmem.mem)
    assert world.walker.probe(0x123) & PG_FRAME == 0x8000
    assert world.walker.probe(1 << 30) == 0
    assert bytes(world.physmem.mem) == before


def test_faults_in_words() -> None:
    """What if a log said the wrong thing about a fault?"""
    assert describe(~0x15) == "page fault: user fetch, protection"
    assert describe(~0x02) == "page fault: supervisor write, not present"
    assert describe(~0x0D) == "page fault: user read, reserved bit set"
    assert describe(~FAULT_GP) == "general protection: address not canonical"
