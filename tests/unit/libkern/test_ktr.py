"""The trace rings: bounded, ordered, switched by mask, frozen by a panic."""

from __future__ import annotations

import gc
import weakref
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfuser.libkern.ktr import MASTERS, Ktr, KtrInfo
from dfuser.libkern.sysctl import SysctlTree

FAIL = KtrInfo("tokens", "fail", "%s by %s")
SUCC = KtrInfo("tokens", "succ", "%s by %s")


class Ticker:
    """A clock that moves one microsecond each time it is read."""

    def __init__(self) -> None:
        self.now = 0

    def monotonic_ns(self) -> int:
        self.now += 1000
        return self.now


@pytest.fixture
def ktr() -> Ktr:
    return Ktr(2, Ticker(), entries=8)


def test_off_by_default(ktr: Ktr) -> None:
    # What if a kernel nobody traces paid for tracing?
    for name in MASTERS:
        assert ktr.masters[name].mask == 0
    ktr.masters["tokens"].log(FAIL, 1, 2)
    assert ktr.statistics().written == (0, 0)


def test_the_mask_selects_points(ktr: Ktr) -> None:
    # What if switching one event on noted its neighbours too?
    tokens = ktr.master("tokens")
    tokens.mask = tokens.point(SUCC).mask
    assert tokens.point(FAIL).mask != tokens.point(SUCC).mask
    tokens.log(FAIL, "a", "b")
    tokens.log(SUCC, "c", "d")
    assert [entry.info for entry in ktr.dump(0)] == [SUCC]
    tokens.mask = -1
    tokens.log(FAIL, "a", "b")
    assert [entry.info.name for entry in ktr.dump(0)] == ["succ", "fail"]


@given(st.lists(st.integers(0, 1), max_size=60), st.integers(0, 20))
def test_rings_against_bounded_queues(cpus: list[int], count: int) -> None:
    # What if a ring lost an entry, kept one too many, or mixed up the order of two CPUs?
    ktr = Ktr(2, Ticker(), entries=8)
    tokens = ktr.master("tokens")
    tokens.mask = -1
    oracle: list[deque[int]] = [deque(maxlen=8), deque(maxlen=8)]
    for number, cpu in enumerate(cpus):
        tokens.log_cpu(cpu, FAIL, number, cpu)
        oracle[cpu].append(number)
    for cpu in (0, 1):
        entries = ktr.dump(cpu)
        assert [entry.args for entry in entries] == [(n, cpu) for n in oracle[cpu]]
        assert [entry.idx for entry in entries] == list(
            range(cpus.count(cpu) - len(entries), cpus.count(cpu))
        )
        assert [e.args[0] for e in ktr.dump(cpu, 3)] == list(oracle[cpu])[-3:]
    kept = sorted([*oracle[0], *oracle[1]])
    tail = ktr.tail(count)
    assert [e.args[0] for e in tail] == (kept[-count:] if count else [])
    assert [e.timestamp for e in tail] == sorted(e.timestamp for e in tail)
    stats = ktr.statistics()
    assert stats.written == (cpus.count(0), cpus.count(1))
    assert stats.overwritten == tuple(max(0, cpus.count(c) - 8) for c in (0, 1))


def test_the_current_cpu_is_asked(ktr: Ktr) -> None:
    # What if notes of all CPUs ended in the ring of the first?
    ktr.curcpu = lambda: 1
    ktr.master("tokens").mask = -1
    ktr.master("tokens").log(FAIL, 1, 2)
    assert (len(ktr.dump(0)), len(ktr.dump(1))) == (0, 1)


def test_a_note_keeps_nothing_alive(ktr: Ktr) -> None:
    # What if the trace of a vnode kept the vnode, or a huge text stayed whole?
    class Thing:
        def __str__(self) -> str:
            return "x" * 5000

    thing = Thing()
    gone = weakref.ref(thing)
    ktr.master("tokens").mask = -1
    ktr.master("tokens").log(FAIL, thing, 1)
    del thing
    gc.collect()
    assert gone() is None
    assert ktr.dump(0)[0].args == ("x" * 192, 1)


def test_a_stop_freezes_the_rings(ktr: Ktr) -> None:
    # What if the dump of a panic were overwritten by the panic's own work?
    tokens = ktr.master("tokens")
    tokens.mask = -1
    tokens.log(FAIL, 1, 2)
    ktr.stop()
    tokens.log(FAIL, 3, 4)
    assert [entry.args for entry in ktr.tail(10)] == [(1, 2)]
    assert ktr.statistics().stopped


def test_lines_and_bad_formats(ktr: Ktr) -> None:
    # What if a format that does not fit its values raised in the middle of a panic?
    tokens = ktr.master("tokens")
    tokens.mask = -1
    tokens.log(FAIL, "vm_token", 7)
    tokens.log(FAIL, "alone")
    ktr.stacktrace = 1
    tokens.log(FAIL, "here", 1)
    first, second, third = ktr.lines(3)
    assert "tokens_fail" in first
    assert first.endswith("vm_token by 7")
    assert "('alone',)" in second
    assert "test_ktr.py:" in third


def test_many_points_share_the_last_bit(ktr: Ktr) -> None:
    # What if the 33rd point of a master shifted its bit out of the mask?
    many = ktr.master("many")
    points = [many.point(KtrInfo("many", f"p{n}")) for n in range(40)]
    assert [p.bit for p in points] == [min(n, 31) for n in range(40)]
    assert all(0 < p.mask < 2**32 for p in points)


def test_sysctls_switch_it(ktr: Ktr) -> None:
    # What if debug.ktr did not reach a master made before or after it was attached?
    tree = SysctlTree()
    ktr.master("tokens").point(FAIL)
    ktr.attach(tree)
    ktr.master("late").point(KtrInfo("late", "one"))
    for name in ("tokens", "late"):
        tree.set(f"debug.ktr.{name}_enable", "-1")
        assert ktr.master(name).mask == -1
    assert tree.get("debug.ktr.tokens.fail_mask") == "1"
    assert tree.get("debug.ktr.late.one_mask") == "1"
    assert tree.get("debug.ktr.entries") == "8"


def test_declared_points_are_found(ktr: Ktr) -> None:
    # What if a point could be listed only after it had fired?
    class Token:
        KTR_FAIL = FAIL
        KTR_SUCC = SUCC

    ktr.declare(Token)
    assert set(ktr.master("tokens").points) == {FAIL, SUCC}


def test_clear_and_sizes(ktr: Ktr) -> None:
    # What if clearing broke the numbering, or a ring of odd size were accepted?
    tokens = ktr.master("tokens")
    tokens.mask = -1
    tokens.log(FAIL, 1, 2)
    ktr.clear()
    assert ktr.dump(0) == []
    tokens.log(FAIL, 3, 4)
    assert [entry.idx for entry in ktr.dump(0)] == [1]
    with pytest.raises(ValueError, match="power of two"):
        Ktr(1, Ticker(), entries=100)
