"""The TLB against a model that has none: a stale answer only where the architecture allows one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dfuser.hw.mmu.fault import (
    ACCESS_FETCH,
    ACCESS_READ,
    ACCESS_USER,
    ACCESS_WRITE,
    is_fault,
)
from dfuser.hw.mmu.pte import (
    X86_PG_A,
    X86_PG_G,
    X86_PG_M,
    X86_PG_NX,
    X86_PG_PS,
    X86_PG_RW,
    X86_PG_U,
    X86_PG_V,
    PageTables,
)
from dfuser.hw.mmu.regs import (
    CR0_KERNEL,
    CR0_WP,
    CR3_NOFLUSH,
    CR4_KERNEL,
    CR4_PCIDE,
    CR4_PGE,
    CR4_SMEP,
    GeneralProtection,
    MmuFeatures,
)
from dfuser.hw.mmu.tlb import TLB_ENTRIES_MIN, Tlb
from dfuser.hw.mmu.unit import Mmu
from dfuser.hw.physmem import PhysMem
from tests.unit.hw import golden_mmu_rules as rules

FULL = X86_PG_V | X86_PG_RW | X86_PG_U
MEMORY = 0x20000
ROOTS = (0x1000, 0x5000)
ACCESSES = (
    ACCESS_READ, ACCESS_WRITE, ACCESS_FETCH,
    ACCESS_USER, ACCESS_USER | ACCESS_WRITE, ACCESS_USER | ACCESS_FETCH,
)  # fmt: skip
SMALL_PAGES = 24
LARGE = 1 << 21
FEW = [0x0000, 0x1000, 0x2000, 0x3000, LARGE, LARGE + 0x1000, LARGE + 0x1FF000]
"""The addresses of the state machine: so few that they meet in the TLB again and again."""


class Known(NamedTuple):
    """A translation that some access obtained."""

    page: int
    frame: int
    user: bool
    write: bool
    fetch: bool
    dirty: bool
    size: int


class Machine:
    """Two address spaces in a small memory: 24 small pages, and 2 MiB that can be large."""

    def __init__(
        self, features: MmuFeatures, capacity: int = TLB_ENTRIES_MIN, kind: type[Tlb] = Tlb
    ) -> None:
        self.physmem = PhysMem(MEMORY)
        self.tables = PageTables(self.physmem)
        for root in ROOTS:
            for table in range(3):
                here = root + 0x1000 * table
                self.tables.pte_store(here, here + 0x1000 | FULL)
        self.mmu = Mmu(self.tables, features, capacity)
        self.mmu.tlb = kind(self.mmu.walker, capacity)
        self.mmu.translate, self.mmu.lookup = self.mmu.tlb.translate, self.mmu.tlb.lookup
        self.mmu.mov_cr3(ROOTS[0])

    def pte(self, root: int, page: int) -> int:
        """Where the entry of a small page is."""
        return root + 0x3000 + 8 * page

    def pde(self, root: int) -> int:
        """Where the entry of the second 2 MiB is."""
        return root + 0x2000 + 8

    def close(self) -> None:
        self.tables.close()
        self.physmem.close()


flags = st.builds(
    lambda *bits: sum(bits),
    st.sampled_from([X86_PG_V] * 7 + [0]),
    st.sampled_from([X86_PG_RW] * 3 + [0]),
    st.sampled_from([X86_PG_U] * 3 + [0]),
    st.sampled_from([0, X86_PG_A | X86_PG_M]),
    st.sampled_from([0, 0, X86_PG_G]),
    st.sampled_from([0, 0, 0, X86_PG_NX]),
)
touches = st.lists(st.tuples(st.sampled_from(FEW), st.sampled_from(ACCESSES)), min_size=1)


class TlbMachine(RuleBasedStateMachine):
    """A CPU with a TLB beside a model without one.

    The model walks for every access by the SDM's rules. It remembers, for each context and page,
    the translations that accesses obtained since the last invalidation that reached them: those,
    and no others, may be seen again after the tables changed.
    """

    kind: type[Tlb] = Tlb

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine(MmuFeatures(pcid=True), kind=self.kind)
        self.mmu = self.machine.mmu
        self.local: dict[int, set[Known]] = {}
        self.glob: set[Known] = set()

    @initialize(pcide=st.booleans(), glob=st.sets(st.sampled_from(FEW)))
    def map_everything(self, pcide: bool, glob: set[int]) -> None:
        for space in (0, 1):
            for number, va in enumerate(FEW):
                self.store(space, va, number, FULL | X86_PG_G * (va in glob))
        self.load_cr4(True, pcide, False)

    def teardown(self) -> None:
        self.machine.close()

    @property
    def pcid(self) -> int:
        return self.mmu.regs.pcid

    def cpu(self) -> rules.Machine:
        regs = self.mmu.regs
        protection = regs.protection()
        return rules.Machine(
            regs.root,
            wp=protection.wp,
            smep=protection.smep,
            pge=bool(regs.cr4 & CR4_PGE),
        )

    def store(self, space: int, va: int, frame: int, flags: int) -> None:
        """Software writes an entry and tells nobody."""
        root = ROOTS[space]
        if va < LARGE:
            entry = frame + 0x100 * space << 12 | flags
            self.machine.tables.pte_store(self.machine.pte(root, va >> 12), entry)
        else:
            entry = frame + 0x100 * space << 21 | flags | X86_PG_PS
            self.machine.tables.pte_store(self.machine.pde(root), entry)

    @rule(va=st.sampled_from(FEW), frame=st.integers(0, 9), flags=flags, uses=touches)
    def change_entry(self, va: int, frame: int, flags: int, uses: list[tuple[int, int]]) -> None:
        """Software changes an entry that is in use, and programs go on."""
        self.touch(va, ACCESS_READ)
        self.store(ROOTS.index(self.mmu.regs.root), va, frame, flags)
        self.touch(va, uses[0][1])
        self.use(uses)

    @rule(uses=touches)
    def split(self, uses: list[tuple[int, int]]) -> None:
        """Software makes small pages of a large one; 512 of them, of which the first few exist."""
        root = self.mmu.regs.root
        self.machine.tables.pte_store(self.machine.pde(root), root + 0x3000 | FULL)
        self.use(uses)

    @rule(uses=touches)
    def use(self, uses: list[tuple[int, int]]) -> None:
        """Programs run."""
        for va, access in uses:
            self.touch(va, access)

    def touch(self, va: int, access: int) -> None:
        """A program uses an address."""
        kind = "fetch" if access & ACCESS_FETCH else "write" if access & ACCESS_WRITE else "read"
        cpu = self.cpu()
        what = rules.Access(kind, bool(access & ACCESS_USER))
        fresh = rules.translate(self.load, cpu, va, what)
        hits = self.mmu.statistics().hits
        result = self.mmu.translate(va, access)
        hit = self.mmu.statistics().hits != hits
        if is_fault(result):
            # A fault comes from a walk, never from something old (SDM 4.10.2.3, 4.10.4.3).
            assert (hit, fresh.fault, fresh.error) == (False, "PF", ~result)
            self.forget(va, self.pcid, glob=True)
        elif not hit:
            assert result == fresh.address
            assert all(self.load(where) == entry for where, entry in fresh.stores.items())
            self.learn(va, fresh)
        else:
            event("stale answer" if result != fresh.address else "fresh answer")
            assert any(
                known.frame == result >> 12 << 12
                and rules.allowed(what, cpu, known.user, known.write, not known.fetch)
                and (known.dirty or kind != "write")
                for known in self.local.get(self.pcid, set()) | self.glob
                if known.page == va >> 12
            ), "an answer that no walk since the last invalidation has given"

    def load(self, address: int) -> int:
        return self.machine.tables.pte_load(address) if address < MEMORY else (1 << 64) - 1

    def learn(self, va: int, fresh: rules.Outcome) -> None:
        """A walk has obtained a translation, which may be kept from now on."""
        leaf = list(fresh.stores.values())[-1]
        known = Known(
            va >> 12,
            fresh.address >> 12 << 12,
            "user" in fresh.granted,
            "write" in fresh.granted,
            "fetch" in fresh.granted,
            bool(leaf & X86_PG_M),
            fresh.size,
        )
        if fresh.glob:
            self.glob.add(known)
        else:
            self.local.setdefault(self.pcid, set()).add(known)

    def forget(self, va: int, pcid: int, glob: bool) -> None:
        """One page is invalidated, with all of a large page that covers it."""

        def hit(known: Known) -> bool:
            return known.page << 12 & -known.size == va & -known.size

        places = [self.local.get(pcid, set())] + [self.glob] * glob
        for place in places:
            place -= {known for known in place if hit(known)}

    @rule(va=st.sampled_from(FEW))
    def invlpg(self, va: int) -> None:
        self.mmu.invlpg(va)
        self.forget(va, self.pcid, glob=True)

    @rule(space=st.integers(0, 1), pcid=st.integers(0, 2), keep=st.booleans())
    def load_cr3(self, space: int, pcid: int, keep: bool) -> None:
        """A context switch, which with PCIDs may keep what is known of the context."""
        value = ROOTS[space]
        if self.mmu.regs.pcide:
            value |= pcid | (CR3_NOFLUSH if keep else 0)
        self.mmu.mov_cr3(value)
        if not value & CR3_NOFLUSH:
            self.local.pop(self.pcid, None)

    @rule(pge=st.booleans(), pcide=st.booleans(), smep=st.booleans())
    def load_cr4(self, pge: bool, pcide: bool, smep: bool) -> None:
        old = self.mmu.regs.cr4
        value = CR4_KERNEL & ~CR4_PGE | CR4_PGE * pge | CR4_PCIDE * pcide | CR4_SMEP * smep
        try:
            self.mmu.mov_cr4(value)
        except GeneralProtection:
            assert pcide
            assert self.mmu.regs.cr3 & 0xFFF
            return
        if (old ^ value) & CR4_PGE or old & ~value & CR4_PCIDE:
            self.local.clear()
            self.glob.clear()
        elif value & ~old & CR4_SMEP:
            self.local.pop(self.pcid, None)

    @rule(wp=st.booleans())
    def load_cr0(self, wp: bool) -> None:
        self.mmu.mov_cr0(CR0_KERNEL if wp else CR0_KERNEL & ~CR0_WP)

    @rule(kind=st.integers(0, 3), pcid=st.integers(0, 2), va=st.sampled_from(FEW))
    def invpcid(self, kind: int, pcid: int, va: int) -> None:
        pcid = pcid if self.mmu.regs.pcide else 0
        self.mmu.invpcid(kind, pcid, va)
        if kind == 0:
            self.forget(va, pcid, glob=False)
        elif kind == 1:
            self.local.pop(pcid, None)
        else:
            self.local.clear()
            if kind == 2:
                self.glob.clear()

    @precondition(lambda self: self.mmu.statistics().entries > 8)
    @rule(capacity=st.integers(16, 20))
    def resize(self, capacity: int) -> None:
        self.mmu.tlb.resize(capacity)
        self.local.clear()
        self.glob.clear()

    @invariant()
    def counts_add_up(self) -> None:
        seen = self.mmu.statistics()
        assert seen.entries <= seen.capacity
        assert seen.global_entries <= seen.entries
        assert seen.refused + seen.faults <= 2 * seen.misses
        assert seen.entries <= seen.misses - seen.faults
        tlb = self.mmu.tlb
        assert all(tlb._queue[at] == slot for slot, at in tlb._place.items())
        assert {*tlb._local, *(page | 1 << 64 for page in tlb._global)} <= set(tlb._place)


TestTlb = TlbMachine.TestCase
TestTlb.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


class TestTlbLong(TlbMachine.TestCase):  # type: ignore[name-defined,misc]
    """The same, for longer."""

    pytestmark = pytest.mark.slow
    settings = settings(max_examples=600, stateful_step_count=80, deadline=None)


class InvlpgKeepsGlobal(Tlb):
    """Wrong: a global page cannot be invalidated by itself."""

    __slots__ = ()

    def invlpg(self, va: int) -> None:
        self.invalidate_address(va, self._context >> 52)


class InvlpgKeepsPieces(Tlb):
    """Wrong: only the piece of a large page that is named goes."""

    __slots__ = ()

    def _drop(self, slot: int) -> None:
        self._forget(slot)


class Cr3KeepsAll(Tlb):
    """Wrong: a context switch drops nothing."""

    __slots__ = ()

    def flush_context(self, pcid: int) -> None:
        self.flushes += 1


class FlushKeepsGlobal(Tlb):
    """Wrong: a toggle of PGE leaves global translations."""

    __slots__ = ()

    def flush(self) -> None:
        self.flush_nonglobal()


class OneContext(Tlb):
    """Wrong: translations of all contexts are one."""

    __slots__ = ()

    def configure(self, pcid: int) -> None:
        super().configure(0)


class ForgetsD(Tlb):
    """Wrong: a store through a kept translation does not care for D."""

    __slots__ = ()

    def configure(self, pcid: int) -> None:
        super().configure(pcid)
        self._masks = [mask & ~X86_PG_M for mask in self._masks]
        self._wants = [want & ~X86_PG_M for want in self._wants]


class IgnoresRights(Tlb):
    """Wrong: whatever is kept serves every access."""

    __slots__ = ()

    def configure(self, pcid: int) -> None:
        super().configure(pcid)
        self._masks = [0] * len(self._masks)
        self._wants = [0] * len(self._wants)


class FaultsFromOldRights(Tlb):
    """Wrong: a kept translation that does not serve the access faults without a walk."""

    __slots__ = ()

    def _miss(self, va: int, access: int, refused: bool) -> int:
        return ~7 if refused else super()._miss(va, access, refused)


@pytest.mark.parametrize(
    "wrong",
    [
        InvlpgKeepsGlobal,
        InvlpgKeepsPieces,
        Cr3KeepsAll,
        FlushKeepsGlobal,
        OneContext,
        ForgetsD,
        IgnoresRights,
        FaultsFromOldRights,
    ],
)
def test_wrong_tlbs_are_caught(wrong: type[Tlb]) -> None:
    """What if the model above were too forgiving to notice a mistake?"""

    class Wrong(TlbMachine):
        kind = wrong

    search = settings(
        max_examples=400,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate,),
        print_blob=False,
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Wrong, settings=search)


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine with PCIDs, all pages mapped in both spaces."""
    made = Machine(MmuFeatures(pcid=True))
    for root in ROOTS:
        for page in range(SMALL_PAGES):
            made.tables.pte_store(made.pte(root, page), (page << 12) + root | FULL)
        made.tables.pte_store(made.pde(root), 0x40_0000 | FULL | X86_PG_PS)
    yield made
    made.close()


def test_a_changed_entry_stays_unseen_until_invlpg(machine: Machine) -> None:
    """What if the TLB noticed a store by itself: shootdown bugs would never show."""
    mmu, place = machine.mmu, machine.pte(ROOTS[0], 3)
    assert mmu.translate(0x3007, ACCESS_READ) == 0x4007
    machine.tables.pte_store(place, 0)
    assert mmu.translate(0x3007, ACCESS_READ) == 0x4007
    mmu.invlpg(0x3FFF)
    assert mmu.translate(0x3007, ACCESS_READ) == ~0
    machine.tables.pte_store(place, 0x9000 | FULL)
    assert mmu.translate(0x3007, ACCESS_READ) == 0x9007, "what was absent is never kept"


def test_raised_rights_are_seen_and_lowered_ones_are_not(machine: Machine) -> None:
    """What if making a page writable needed an invalidation, or write-protecting did not?"""
    mmu, place = machine.mmu, machine.pte(ROOTS[0], 0)
    machine.tables.pte_store(place, 0x8000 | X86_PG_V)
    assert mmu.translate(0, ACCESS_READ) == 0x8000
    machine.tables.pte_store(place, 0x8000 | FULL)
    assert mmu.translate(0, ACCESS_USER | ACCESS_WRITE) == 0x8000
    assert mmu.statistics().refused == 1
    machine.tables.pte_store(place, 0x8000 | X86_PG_V)
    assert mmu.translate(0, ACCESS_USER | ACCESS_WRITE) == 0x8000
    mmu.tlb.flush()
    assert mmu.translate(0, ACCESS_USER | ACCESS_WRITE) == ~7


def test_the_first_store_sets_d_though_the_page_is_known(machine: Machine) -> None:
    """What if a page that was read first is written through the TLB and stays clean?"""
    mmu, place = machine.mmu, machine.pte(ROOTS[0], 0)
    mmu.translate(0, ACCESS_READ)
    assert not machine.tables.pte_load(place) & X86_PG_M
    mmu.translate(0, ACCESS_WRITE)
    assert machine.tables.pte_load(place) & X86_PG_M
    machine.tables.pte_store(place, machine.tables.pte_load(place) & ~X86_PG_M)
    mmu.translate(0, ACCESS_WRITE)
    assert not machine.tables.pte_load(place) & X86_PG_M, "D is known: no walk, no store"


def test_invlpg_drops_all_of_a_large_page(machine: Machine) -> None:
    """What if another piece of a large page survived the invalidation of one address in it?"""
    mmu = machine.mmu
    for offset in (0, 0x1000, 0x1FF000):
        assert mmu.translate(LARGE + offset, ACCESS_READ) == 0x40_0000 + offset
    mmu.translate(0, ACCESS_READ)
    machine.tables.pte_store(machine.pde(ROOTS[0]), 0)
    mmu.invlpg(LARGE + 0x1000)
    for offset in (0, 0x1000, 0x1FF000):
        assert mmu.translate(LARGE + offset, ACCESS_READ) == ~0
    assert mmu.tlb.cached(0) is not None


def test_a_fault_drops_all_of_a_large_page(machine: Machine) -> None:
    """What if a fault on one piece left the others known? (SDM 4.10.4.1)"""
    mmu = machine.mmu
    mmu.translate(LARGE, ACCESS_READ)
    machine.tables.pte_store(machine.pde(ROOTS[0]), 0)
    assert mmu.translate(LARGE, ACCESS_READ) == 0x40_0000
    assert is_fault(mmu.translate(LARGE + 0x1000, ACCESS_READ))
    assert is_fault(mmu.translate(LARGE, ACCESS_READ))


def test_global_pages_survive_cr3_and_not_a_toggle_of_pge(machine: Machine) -> None:
    """What if the kernel's pages were dropped at each context switch, or never?"""
    mmu = machine.mmu
    for root in ROOTS:
        machine.tables.pte_store(machine.pte(root, 1), 0x8000 | FULL | X86_PG_G)
    mmu.translate(0, ACCESS_READ)
    mmu.translate(0x1000, ACCESS_READ)
    mmu.mov_cr3(ROOTS[1])
    assert mmu.tlb.cached(0) is None
    assert mmu.tlb.cached(0x1000) is not None
    mmu.mov_cr4(CR4_KERNEL & ~CR4_PGE)
    assert mmu.statistics().entries == 0
    mmu.translate(0x1000, ACCESS_READ)
    assert mmu.statistics().global_entries == 0, "G means nothing while PGE is 0"


def test_contexts_do_not_see_each_other(machine: Machine) -> None:
    """What if one process used the translations of another?"""
    mmu = machine.mmu
    mmu.mov_cr4(CR4_KERNEL | CR4_PCIDE)
    mmu.mov_cr3(ROOTS[0] | 1)
    assert mmu.translate(0, ACCESS_READ) == ROOTS[0]
    mmu.mov_cr3(ROOTS[1] | 2)
    assert mmu.translate(0, ACCESS_READ) == ROOTS[1]
    mmu.mov_cr3(ROOTS[0] | 1 | CR3_NOFLUSH)
    before = mmu.statistics().misses
    assert mmu.translate(0, ACCESS_READ) == ROOTS[0]
    assert mmu.statistics().misses == before
    mmu.mov_cr3(ROOTS[1] | 2)
    assert mmu.tlb.cached(0) is None
    assert mmu.statistics().entries == 1


def test_the_oldest_goes_when_it_is_full(machine: Machine) -> None:
    """What if the TLB grew beyond its capacity, or counted evictions that were none?"""
    mmu = machine.mmu
    for page in range(20):
        mmu.translate(page << 12, ACCESS_READ)
    seen = mmu.statistics()
    assert (seen.entries, seen.evictions, seen.misses) == (16, 4, 20)
    assert mmu.tlb.cached(3 << 12) is None
    assert mmu.tlb.cached(4 << 12) is not None
    mmu.tlb.flush()
    for page in range(16):
        mmu.translate(page << 12, ACCESS_READ)
    assert mmu.statistics().evictions == 4
    assert mmu.statistics().entries == 16


def test_what_came_back_after_a_flush_stays(machine: Machine) -> None:
    """What if the place that a page had before a flush threw it out of its new one?"""
    mmu = machine.mmu
    for _ in range(50):
        mmu.tlb.flush_nonglobal()
        for page in range(12):
            mmu.translate(page << 12, ACCESS_READ)
        before = mmu.statistics()
        for page in range(12):
            mmu.translate(page << 12, ACCESS_READ)
        after = mmu.statistics()
        assert (after.hits - before.hits, after.misses) == (12, before.misses)
    assert mmu.statistics().evictions == 0
    assert len(mmu.tlb._place) <= mmu.tlb.capacity


def test_hits_and_misses_are_what_happened(machine: Machine, rng: random.Random) -> None:
    """What if the counters drift from what a count by hand says?"""
    mmu, known, hits, misses = machine.mmu, set[int](), 0, 0
    mmu.tlb.resize(64)
    for _ in range(300):
        page = rng.randrange(SMALL_PAGES)
        if rng.random() < 0.1:
            mmu.invlpg(page << 12)
            known.discard(page)
            continue
        hits, misses = hits + (page in known), misses + (page not in known)
        mmu.translate(page << 12, ACCESS_READ)
        known.add(page)
    seen = mmu.statistics()
    assert (seen.hits, seen.misses, seen.entries) == (hits, misses, len(known))
    assert seen.refused == seen.faults == seen.evictions == 0


def test_lookup_answers_the_whole_translation(machine: Machine) -> None:
    """What if an engine that fills its own TLB were not told what it may cache?"""
    mmu = machine.mmu
    first = mmu.lookup(0x1000, ACCESS_USER)
    assert first & 0xFFF_F000 == ROOTS[0] + 0x1000
    assert first & FULL == FULL
    assert not first & X86_PG_M
    assert mmu.lookup(0x1000, ACCESS_USER) == first
    assert mmu.lookup(0x1000, ACCESS_USER | ACCESS_WRITE) & X86_PG_M
    assert mmu.lookup(1 << 63, ACCESS_READ) < 0
    seen = mmu.statistics()
    assert (seen.hits, seen.misses, seen.refused, seen.faults) == (1, 3, 1, 1)


def test_large_pieces_are_remembered_within_bounds() -> None:
    """What if a kernel that touches ever new large pages made the TLB grow without end?"""
    machine = Machine(MmuFeatures())
    try:
        for number in range(512):
            entry = number << 21 | FULL | X86_PG_PS
            machine.tables.pte_store(ROOTS[0] + 0x2000 + 8 * number, entry)
        tlb: Tlb = machine.mmu.tlb
        for number in range(512):
            machine.mmu.translate(number << 21, ACCESS_READ)
        assert len(tlb._regions) <= tlb.capacity
        assert machine.mmu.statistics().entries == 16
        machine.tables.pte_store(ROOTS[0] + 0x2000 + 8 * 511, 0)
        machine.mmu.invlpg((511 << 21) + 0x5000)
        assert is_fault(machine.mmu.translate(511 << 21, ACCESS_READ))
    finally:
        machine.close()
