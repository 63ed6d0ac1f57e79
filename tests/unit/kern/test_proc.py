"""Processes: ids, limits, requests of the host, visitors, identities."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfuser.hw.clock import VirtualClock
from dfuser.kern import proc as proc_module
from dfuser.kern.proc import PID_MAX, VISITORS_MAX, CallerId, P, Proc, ProcTable
from dfuser.kern.prot import CredTable, p_trespass
from dfuser.libkern.errno import EAGAIN, EPERM, ESRCH, KError
from dfuser.libkern.sysctl import SysctlTree
from dfuser.libkern.ucred import Ucred

SEC = 1_000_000_000


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def procs(clock: VirtualClock) -> ProcTable:
    return ProcTable(clock)


def test_process_0_is_the_kernel(procs: ProcTable) -> None:
    """What if nothing has happened yet: who is there?"""
    assert [p.pid for p in procs.allproc()] == [0]
    assert procs.proc0.comm == "swapper"
    assert procs.proc0.flags & P.SYSTEM
    assert procs.curproc() is procs.proc0


def test_a_request_is_a_process_while_it_waits(procs: ProcTable) -> None:
    """What if a host process reads and must wait?"""
    lwp = procs.request_enter(1000, 100, 4321, "read")
    proc = lwp.proc
    assert (proc.pid, proc.ppid, proc.comm) == (2, 0, "fuse:read/4321")
    assert (proc.ucred.uid, proc.ucred.gid, lwp.tid) == (1000, 100, 1)
    assert procs.pfind(2) is proc
    assert procs.statistics().requests == 1
    procs.request_exit(lwp)
    assert procs.pfind(2) is None
    stats = procs.statistics()
    assert (stats.requests, stats.procs, stats.lwps) == (0, 1, 0)


@pytest.mark.parametrize("op", ["read", "getxattr", "a-very-long-operation"])
@pytest.mark.parametrize("host_pid", [1, 99_999, 4_194_304])
def test_the_name_always_shows_the_whole_host_pid(procs: ProcTable, op: str, host_pid: int) -> None:
    """What if operation and host pid do not fit the sixteen characters of a name?"""
    comm = procs.request_enter(0, 0, host_pid, op).proc.comm
    assert len(comm) <= 16
    assert comm.startswith("fuse:")
    assert comm.endswith(f"/{host_pid}")


def test_an_id_rests_ten_seconds(procs: ProcTable, clock: VirtualClock) -> None:
    """What if ids are so scarce that the same one comes round at once?"""
    procs._nextpid = PID_MAX
    lwp = procs.request_enter(0, 0, 1, "read")
    assert lwp.proc.pid == PID_MAX
    procs.request_exit(lwp)
    procs._nextpid = PID_MAX
    assert procs.request_enter(0, 0, 1, "read").proc.pid == 100
    clock.advance(10 * SEC)
    procs._nextpid = PID_MAX
    assert procs.request_enter(0, 0, 1, "read").proc.pid == PID_MAX
    assert procs.statistics().pids_resting == 0


def test_no_free_id_is_eagain(procs: ProcTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """What if every id is in use or resting?"""
    monkeypatch.setattr(proc_module, "PID_MAX", 110)
    procs._nextpid = 100
    lwps = [procs.request_enter(0, 0, 1, "x") for _ in range(11)]
    with pytest.raises(KError) as err:
        procs.request_enter(0, 0, 1, "x")
    assert err.value.errno == EAGAIN
    procs.request_exit(lwps[0])
    with pytest.raises(KError):
        procs.request_enter(0, 0, 1, "x")
    assert procs.statistics().refused == 2


def test_the_last_places_are_roots(clock: VirtualClock) -> None:
    """What if users fill the table?"""
    procs, tree = ProcTable(clock, maxproc=20), SysctlTree()
    tree.register(procs)
    for _ in range(9):
        procs.request_enter(1000, 100, 1, "read")
    with pytest.raises(KError) as err:
        procs.request_enter(1000, 100, 1, "read")
    assert err.value.errno == EAGAIN
    for _ in range(10):
        procs.request_enter(0, 0, 1, "read")
    with pytest.raises(KError):
        procs.request_enter(0, 0, 1, "read")
    assert tree.get("kern.nprocs") == "20"
    assert tree.get("kern.proc_refused") == "2"
    tree.set("kern.maxproc", "21", Ucred.root())
    procs.request_enter(0, 0, 1, "read")
    assert tree.get("kern.requests_parked") == "20"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=120))
def test_ids_are_unique_among_the_living_and_the_resting(
    steps: list[tuple[bool, int]],
) -> None:
    """What if requests come and go in any order at any speed?"""
    clock = VirtualClock()
    procs = ProcTable(clock)
    live: list[tuple[int, object]] = []
    ended: dict[int, int] = {}
    serials: set[int] = set()
    for enter, number in steps:
        procs._nextpid = min(procs._nextpid, 106)
        if enter or not live:
            lwp = procs.request_enter(0, 0, 1, "x")
            pid = lwp.proc.pid
            assert pid not in [p for p, _ in live]
            assert clock.monotonic_ns() - ended.get(pid, -10 * SEC) >= 10 * SEC
            assert lwp.proc.serial not in serials
            serials.add(lwp.proc.serial)
            live.append((pid, lwp))
        else:
            pid, lwp = live.pop(number % len(live))
            procs.request_exit(lwp)  # type: ignore[arg-type]
            ended[pid] = clock.monotonic_ns()
        clock.advance(number * SEC)
        assert sorted(p.pid for p in procs.allproc()) == sorted([0, *(p for p, _ in live)])


def test_ten_thousand_requests_leave_nothing(procs: ProcTable) -> None:
    """What if requests park and go all day: does anything grow?"""
    for _ in range(100):
        lwps = [procs.request_enter(1000, 100, 1, "read") for _ in range(100)]
        for lwp in lwps:
            procs.request_exit(lwp)
    stats = procs.statistics()
    assert (stats.procs, stats.lwps, stats.requests, stats.created) == (1, 0, 0, 10_000)
    assert stats.pooled <= proc_module.POOL_MAX
    assert len(procs._lwp_pool) <= proc_module.POOL_MAX


def test_exit_hooks_see_the_process_whole(procs: ProcTable) -> None:
    """What if somebody wants to know which process has ended?"""
    seen: list[tuple[int, int, str]] = []
    procs.at_exit.append(lambda p: seen.append((p.pid, p.serial, p.comm)))
    lwp = procs.request_enter(0, 0, 7, "write")
    serial = lwp.proc.serial
    procs.request_exit(lwp)
    assert seen == [(2, serial, "fuse:write/7")]


# --- visitors ------------------------------------------------------------------------------


def test_a_host_process_that_asks_gets_a_lasting_answer(
    procs: ProcTable, clock: VirtualClock
) -> None:
    """What if `cat /proc/curproc/status` resolves the link with one request, reads with another?"""
    procs.caller = lambda: CallerId(555, 1000, 100)
    first = procs.curproc()
    assert first.comm == "host/555"
    clock.advance(9 * SEC)
    assert procs.curproc() is first
    clock.advance(9 * SEC)
    assert procs.pfind(first.pid) is first
    pid = first.pid
    clock.advance(2 * SEC)
    assert procs.pfind(pid) is None
    assert procs.statistics().visitors == 0


def test_visitors_are_limited(procs: ProcTable) -> None:
    """What if a thousand host processes ask within a second?"""
    for host_pid in range(1, 1001):
        procs.visitor(CallerId(host_pid, 0, 0))
    assert procs.statistics().visitors == VISITORS_MAX
    assert [p.host_pid for p in procs.allproc()][-1] == 1000


def test_a_visitor_with_a_new_identity_is_a_new_process(procs: ProcTable) -> None:
    """What if a host process asks, changes its user, and asks again?"""
    before = procs.visitor(CallerId(5, 0, 0)).serial
    after = procs.visitor(CallerId(5, 1000, 100))
    assert after.serial != before
    assert after.ucred.uid == 1000
    assert procs.statistics().visitors == 1


# --- identities ----------------------------------------------------------------------------


def test_credentials_are_shared_and_bounded() -> None:
    """What if very many users come by?"""
    creds = CredTable(limit=10)
    assert creds.get(1, 2) is creds.get(1, 2)
    for uid in range(1000):
        assert creds.get(uid, 7) == Ucred.of(uid, 7)
        assert len(creds) <= 10


JAIL = object()


@pytest.mark.parametrize(
    ("caller", "target", "error"),
    [
        (Ucred.of(0, 0), Ucred.of(1000, 1), 0),
        (Ucred.of(1000, 1), Ucred.of(1000, 5), 0),
        (Ucred.of(1000, 1), Ucred.of(1001, 1), EPERM),
        (Ucred.of(1000, 1).with_uid(5), Ucred.of(1000, 1), 0),
        (Ucred.of(1000, 1), Ucred.of(1000, 1).with_uid(0), 0),
        (Ucred.of(0, 0, prison=JAIL), Ucred.of(0, 0), ESRCH),
        (Ucred.of(0, 0, prison=JAIL), Ucred.of(5, 5, prison=JAIL), 0),
    ],
)
def test_who_may_meddle_with_whom(caller: Ucred, target: Ucred, error: int) -> None:
    """What if a user, root, or root in a prison sends a signal?"""
    if not error:
        p_trespass(caller, target)
        return
    with pytest.raises(KError) as err:
        p_trespass(caller, target)
    assert err.value.errno == error


def test_who_sees_whom(procs: ProcTable) -> None:
    """What if security.ps_showallprocs is 0, and what if the caller is in a prison?"""
    mine: Proc = procs.request_enter(1000, 1, 1, "a").proc
    other: Proc = procs.request_enter(2000, 1, 1, "b").proc
    me = Ucred.of(1000, 1)
    assert procs.visible(me, other)
    procs.showallprocs = 0
    assert procs.visible(me, mine)
    assert not procs.visible(me, other)
    assert procs.visible(Ucred.root(), other)
    assert not procs.visible(Ucred.of(0, 0, prison=JAIL), other)
