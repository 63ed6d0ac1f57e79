"""The permission matrix: 499,712 cases against a KVM vCPU, the golden table, and the SDM's rules.

What the matrix is, and what a byte of it means, is told in golden_mmu.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from dfuser.hw import kvm
from dfuser.hw.mmu import fault, pte, walk
from dfuser.hw.mmu.fault import ACCESS_AC, ACCESS_FETCH, ACCESS_USER, ACCESS_WRITE, Protection
from dfuser.hw.mmu.regs import MmuFeatures
from dfuser.hw.mmu.walk import Walker
from tests.unit.hw import golden_mmu as matrix
from tests.unit.hw import golden_mmu_rules as rules

MakeWalker = Callable[..., Walker]
ALL_ON = Protection(nxe=True, wp=True, smep=True, smap=True)
ALL_OFF = Protection(nxe=False, wp=False, smep=False, smap=False)
KERNELS = Protection(nxe=True, wp=True, smep=True, smap=False)
FAST_MODES = (ALL_ON, ALL_OFF, KERNELS)


def ask_walker(walker: Walker, access: int) -> Callable[[int], int | None]:
    """Ask the model for the error code of an access."""
    run = walker.walk

    def ask(va: int) -> int | None:
        result = run(va, access)
        return None if result >= 0 else ~result

    return ask


def model(
    mode: Protection, make: MakeWalker = Walker, maxphyaddr: int = matrix.MAXPHYADDR
) -> dict[int, bytes]:
    """All answers of the model in one mode, by access."""
    bench = matrix.Bench()
    try:
        features = MmuFeatures(maxphyaddr=maxphyaddr)
        walker = make(bench.tables, matrix.registers(mode, bench.root, features))
        return {a: bench.slice(a, ask_walker(walker, a)) for a in matrix.ACCESSES}
    finally:
        bench.close()


def first_difference(mode: Protection, access: int, ours: bytes, theirs: bytes) -> str:
    """Say where two slices part, or nothing."""
    if ours == theirs:
        return ""
    bad = [at for at in range(len(ours)) if ours[at] != theirs[at]]
    at = bad[0]
    name = matrix.describe(at, mode, access)
    return f"{len(bad)} of {len(ours)}: {name}: {ours[at]:#x}, must be {theirs[at]:#x}"


def test_the_matrix_is_as_large_as_it_says() -> None:
    """What if cases were lost, or counted twice?"""
    distinct = {
        (group.pml4e, group.pdpte, pde, pte)
        for group in matrix.groups()
        for pde, pte in zip(group.pdes, group.ptes, strict=True)
    }
    assert len(distinct) == matrix.cases() == 3904
    assert matrix.cases() * len(matrix.MODES) * len(matrix.ACCESSES) == 499_712


def test_the_golden_table_has_seen_every_error_code() -> None:
    """What if the table were monotonous, so that agreeing with it means nothing?"""
    seen = set[int]().union(*matrix.golden().values())
    faults = {byte & 0x1F for byte in seen if byte & matrix.FAULT}
    possible = {0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 15, 16, 17, 20, 21, 25, 29}
    assert faults == possible
    assert not any(byte & matrix.CHANGED for byte in seen)
    assert {byte for byte in seen if not byte & matrix.FAULT} == {1, 3, 7, 9}


def test_model_against_the_golden_table() -> None:
    """What if the walker answers one of all the cases differently from a KVM vCPU?"""
    golden = matrix.golden()
    for mode in matrix.MODES:
        for access, ours in model(mode).items():
            assert not first_difference(mode, access, ours, golden[mode, access])


def test_the_general_walker_against_the_golden_table() -> None:
    """What if the loop that serves the odd cases differs from the straight line?"""

    class Looping(Walker):
        def walk(self, va: int, access: int) -> int:
            return self.walk_any(va, access)

    golden = matrix.golden()
    for mode in FAST_MODES:
        for access, ours in model(mode, Looping).items():
            assert not first_difference(mode, access, ours, golden[mode, access])


def rules_slice(mode: Protection, access: int, step: int, start: int) -> str:
    """Compare the golden table with the SDM's rules in each ``step``-th case of a slice."""
    bench = matrix.Bench((access,))
    load = bench.tables.pte_load
    cpu = rules.Machine(bench.root, *mode, maxphyaddr=matrix.MAXPHYADDR)
    kind = "fetch" if access & ACCESS_FETCH else "write" if access & ACCESS_WRITE else "read"
    what = rules.Access(kind, bool(access & ACCESS_USER), bool(access & ACCESS_AC))
    golden = matrix.golden()[mode, access]
    try:
        at = 0
        for number, group in enumerate(matrix.groups()):
            va, pde, pte = bench.places[access, number]
            for n in range(len(group.pdes)):
                if (at + start) % step == 0:
                    out = rules.translate(load, cpu, va + n * matrix.STRIDE, what)
                    where = ((pde + n) * 8, (pte + n) * 8)
                    before = (load(where[0]), load(where[1]))
                    after = (
                        out.stores.get(where[0], before[0]),
                        out.stores.get(where[1], before[1]),
                    )
                    byte = matrix.answer(out.error if out.fault else None, before, after)
                    if byte != golden[at]:
                        name = matrix.describe(at, mode, access)
                        return f"{name}: the rules say {byte:#x}, the table {golden[at]:#x}"
                at += 1
        return ""
    finally:
        bench.close()


def test_golden_table_against_the_rules_sampled() -> None:
    """What if the machine that wrote the table was not faithful to the SDM?"""
    for number, mode in enumerate(matrix.MODES):
        for access in matrix.ACCESSES:
            assert not rules_slice(mode, access, 23, number)


@pytest.mark.slow
@pytest.mark.parametrize("mode", matrix.MODES, ids=str)
def test_golden_table_against_the_rules(mode: Protection) -> None:
    """What if it was unfaithful in a case that the sample left out?"""
    for access in matrix.ACCESSES:
        assert not rules_slice(mode, access, 1, 0)


@pytest.fixture(scope="module")
def report() -> kvm.KvmReport:
    """What KVM is like here; without a good one the tests that need it are skipped."""
    found = kvm.selftest()
    if not found.behaves:
        pytest.skip(f"no KVM to compare with: {found.reason or found}")
    if found.maxphyaddr > 51:
        pytest.skip("on this host bit 51 belongs to addresses; the matrix needs it reserved")
    return found


def against_kvm(mode: Protection, report: kvm.KvmReport) -> None:
    """Compare the model with a KVM vCPU in one mode, and the entries above the directories."""
    theirs, ours = matrix.Bench(), matrix.Bench()
    vcpu = matrix.Vcpu(theirs, mode)
    try:
        features = MmuFeatures(maxphyaddr=report.maxphyaddr)
        walker = Walker(ours.tables, matrix.registers(mode, ours.root, features))
        for access in matrix.ACCESSES:
            answers = ours.slice(access, ask_walker(walker, access))
            assert not first_difference(mode, access, answers, vcpu.slice(access))
        for key, entries in ours.upper_entries().items():
            # Silicon may set A in a table entry above a fault (SDM 4.8); the model does not.
            seen = theirs.upper_entries()[key]
            assert all(a & ~matrix.A == b & ~matrix.A for a, b in zip(entries, seen, strict=True))
            assert all(a & b & matrix.A == a & matrix.A for a, b in zip(entries, seen, strict=True))
    finally:
        vcpu.cpu.close()
        theirs.close()
        ours.close()


@pytest.mark.parametrize("mode", FAST_MODES, ids=str)
def test_model_against_kvm(mode: Protection, report: kvm.KvmReport) -> None:
    """What if a processor that runs the access itself sees something else than the walker?"""
    against_kvm(mode, report)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [m for m in matrix.MODES if m not in FAST_MODES], ids=str)
def test_model_against_kvm_in_all_modes(mode: Protection, report: kvm.KvmReport) -> None:
    """What if they differ in a setting of the control registers that is rarely used?"""
    against_kvm(mode, report)


SET_EARLY = """
        want = self.wants[access]
        self._words[at] = leaf | want & FLAGS
"""
# Wrong models: file, what it says, what the wrong model says instead.
MUTANTS: dict[str, tuple[str, str, str]] = {
    "WP ignored": ("fault", "if write and (user or wp):", "if write and user:"),
    "WP always on": ("fault", "if write and (user or wp):", "if write:"),
    "SMEP ignored": ("fault", "        if smep:", "        if False:"),
    "SMEP always on": ("fault", "        if smep:", "        if True:"),
    "SMAP ignored": ("fault", "elif smap and", "elif False and"),
    "SMAP though AC": ("fault", "or not access & ACCESS_AC", "or True"),
    "SMAP for fetches": ("fault", "elif fetch:", "elif fetch and not smap:"),
    "NX without NXE in error code": ("fault", "if fetch and (nxe or smep):", "if fetch:"),
    "I/D bit needs NXE": ("fault", "if fetch and (nxe or smep):", "if fetch and nxe:"),
    "RSVD bit missing": ("fault", "code | PGEX_P | PGEX_RSV", "code | PGEX_P"),
    "P bit missing": ("fault", "~(code | PGEX_P), ~", "~code, ~"),
    "P bit missing with RSVD": ("fault", "code | PGEX_P | PGEX_RSV", "code | PGEX_RSV"),
    "user reads supervisor pages": ("fault", "        want |= X86_PG_U\n", "        pass\n"),
    "NX of the leaf only": ("walk", "(e4 | e3 | e2 | e1) & X86_PG_NX", "e1 & X86_PG_NX"),
    "NX of the top forgotten": ("walk", "(e4 | e3 | e2 | e1) &", "(e3 | e2 | e1) &"),
    "NX above 2 MiB forgotten": ("walk", "(e4 | e3 | e2) & X86_PG_NX", "e2 & X86_PG_NX"),
    "rights of the leaf only": ("walk", "e1 & (e4 & e3 & e2 & GRANTS", "e1 & (GRANTS"),
    "rights of the top forgotten": ("walk", "(e4 & e3 & e2 & GRANTS", "(e3 & e2 & GRANTS"),
    "rights above 2 MiB forgotten": ("walk", "e2 & (e4 & e3 & GRANTS", "e2 & (GRANTS"),
    "D set by reads": ("walk", "flags = want & FLAGS", "flags = want & FLAGS | X86_PG_M"),
    "D in table entries": ("walk", "[index] = entry | X86_PG_A", "[index] = entry | FLAGS"),
    "D never set": ("walk", "flags = want & FLAGS", "flags = want & X86_PG_A"),
    "A in leaves only": ("walk", "if not upper & X86_PG_A:", "if False:"),
    "A on tables only": ("walk", "flags = want & FLAGS", "flags = want & X86_PG_M"),
    "A and D set by faults": ("walk", "        want = self.wants[access]\n", SET_EARLY),
    "refusals forgotten": ("walk", "            return rule.denied\n", "            pass\n"),
    "2 MiB reserved bits": ("pte", "bits |= PAGE_SIZES[level]", "bits |= 0 & PAGE_SIZES[level]"),
    "PAT of 2 MiB reserved": ("pte", " & ~X86_PG_PDE_PAT", ""),
    "bit 63 without NXE": ("pte", "    if not nxe:", "    if False:"),
    "bit 63 always reserved": ("pte", "    if not nxe:", "    if True:"),
    "address width": ("pte", "bits = PG_FRAME & ~((1 << maxphyaddr) - 1)", "bits = 0"),
    "PS above": ("walk", "bool(entry & X86_PG_PS)", "entry & X86_PG_PS and level < 4"),
}  # fmt: skip


def replaced(source: str, old: str, new: str) -> str:
    """Change the one place in a source text where it says ``old``."""
    assert source.count(old) == 1, f"{source.count(old)} places say {old!r}"
    return source.replace(old, new)


def mutant(name: str) -> MakeWalker:
    """Build the walker of a wrong model."""
    where, old, new = MUTANTS[name]
    modules = {"fault": fault, "pte": pte, "walk": walk}
    sources = {key: inspect.getsource(module) for key, module in modules.items()}
    sources[where] = replaced(sources[where], old, new)
    spaces: dict[str, dict[str, Any]] = {}
    for key in ("pte", "fault", "walk"):
        spaces[key] = {"__name__": f"mutant_{key}"}
        exec(compile(sources[key], f"<mutant {name}>", "exec"), spaces[key])
    spaces["walk"]["make_rules"] = spaces["fault"]["make_rules"]
    spaces["walk"]["reserved_bits"] = spaces["pte"]["reserved_bits"]
    made: MakeWalker = spaces["walk"]["Walker"]
    return made


def caught(make: MakeWalker) -> str:
    """The first difference between a model and the golden table."""
    golden = matrix.golden()
    for mode in (ALL_OFF, ALL_ON, *matrix.MODES):
        for access, ours in model(mode, make).items():
            found = first_difference(mode, access, ours, golden[mode, access])
            if found:
                return found
    return ""


@pytest.mark.parametrize("name", MUTANTS)
def test_wrong_models_are_caught(name: str) -> None:
    """What if the matrix were blind to a mistake that somebody could make?"""
    assert caught(mutant(name))


def test_the_unchanged_source_is_not_caught() -> None:
    """What if the way mutants are built were itself the difference?"""
    MUTANTS_SAME = ("walk", "GP: Final = ~FAULT_GP", "GP: Final = ~FAULT_GP")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MUTANTS, "none", MUTANTS_SAME)
        make = mutant("none")
    golden = matrix.golden()
    for access, ours in model(ALL_ON, make).items():
        assert ours == golden[ALL_ON, access]
