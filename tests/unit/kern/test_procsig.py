"""Signals to requests, and what ps shows of processes and threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dfuser.hw.clock import VirtualClock
from dfuser.kern.kinfo import KinfoTable
from dfuser.kern.kinfo_mib import KernMib
from dfuser.kern.proc import CallerId, ProcTable
from dfuser.kern.procsig import SIGNALS, cursig, ksignal
from dfuser.libkern.ddbcmd import DdbCommands
from dfuser.libkern.errno import EINTR, EINVAL, EOPNOTSUPP, EPERM, ESRCH, KError
from dfuser.libkern.ktr import Ktr
from dfuser.libkern.log import MsgBuf
from dfuser.libkern.param import PCATCH
from dfuser.libkern.sysctl import SysctlTree
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.synch import synch_of, tsleep


class World:
    """A machine with a process table."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.lwkt = Lwkt(2, self.clock, Ktr(2, self.clock, entries=64), MsgBuf())
        self.procs = ProcTable(self.clock)
        self.kinfo = KinfoTable(self.procs, lambda: self.lwkt.threads)
        synch_of(self.lwkt).cursig = cursig
        self.results: list[int] = []

    async def sleeper(self, rounds: int = 1, flags: int = PCATCH) -> None:
        for _ in range(rounds):
            self.results.append(await tsleep(self, flags, "klog", 0))

    def park(self, rounds: int = 1, flags: int = PCATCH) -> Any:
        """A request that sleeps, as the bridge would make it."""
        lwp = self.procs.request_enter(1000, 100, 77, "read")
        td = self.lwkt.create(self.sleeper, rounds, flags, name=lwp.proc.comm, cpu=0, start=False)
        td.lwp = lwp
        lwp.thread = td
        self.lwkt.schedule(td)
        self.lwkt.run_until_idle()
        return lwp


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.lwkt.shutdown_nowait()
    assert not made.lwkt.threads


@pytest.mark.parametrize("name", ["kill", "term", "int", "hup", "usr1", "segv"])
def test_a_signal_ends_the_wait_of_a_request(world: World, name: str) -> None:
    """What if a waiting request is killed?"""
    lwp = world.park()
    ksignal(lwp.proc, SIGNALS[name])
    world.lwkt.run_until_idle()
    assert world.results == [EINTR]
    assert lwp.ru.nsignals == 1


@pytest.mark.parametrize("name", ["chld", "urg", "cont", "winch", "info", "io"])
def test_harmless_signals_do_nothing(world: World, name: str) -> None:
    """What if the signal is one that is ignored by default?"""
    lwp = world.park()
    ksignal(lwp.proc, SIGNALS[name])
    world.lwkt.run_until_idle()
    assert world.results == []
    ksignal(lwp.proc, SIGNALS["kill"])
    world.lwkt.run_until_idle()


def test_a_killed_request_does_not_sleep_again(world: World) -> None:
    """What if a request goes on to wait for something else after it was killed?"""
    lwp = world.park(rounds=3)
    ksignal(lwp.proc, SIGNALS["kill"])
    world.lwkt.run_until_idle()
    assert world.results == [EINTR, EINTR, EINTR]


def test_a_signal_before_the_sleep_is_not_lost(world: World) -> None:
    """What if the signal comes before the request sleeps?"""
    lwp = world.procs.request_enter(1000, 100, 77, "read")
    ksignal(lwp.proc, SIGNALS["kill"])
    td = world.lwkt.create(world.sleeper, name="late", cpu=0, start=False)
    td.lwp, lwp.thread = lwp, td
    world.lwkt.schedule(td)
    world.lwkt.run_until_idle()
    assert world.results == [EINTR]


@pytest.mark.parametrize(
    ("who", "sig", "error"),
    [
        ("kernel", 9, EPERM),
        ("visitor", 9, EPERM),
        ("request", 0, EINVAL),
        ("request", 64, EINVAL),
        ("request", SIGNALS["stop"], EOPNOTSUPP),
        ("ended", 9, ESRCH),
    ],
)
def test_signals_that_are_refused(world: World, who: str, sig: int, error: int) -> None:
    """What if the signal or the process is the wrong one?"""
    request = world.procs.request_enter(0, 0, 1, "x")
    proc = request.proc
    if who == "kernel":
        proc = world.procs.proc0
    elif who == "visitor":
        proc = world.procs.visitor(CallerId(1, 0, 0))
    elif who == "ended":
        world.procs.request_exit(request)
    with pytest.raises(KError) as err:
        ksignal(proc, sig)
    assert err.value.errno == error


def test_ps_shows_every_thread_once(world: World) -> None:
    """What if kernel threads and a parked request exist: what does ps show of each?"""
    lwp = world.park()

    async def daemon() -> None:
        await tsleep("forever", 0, "daemon", 0)

    world.lwkt.create(daemon, name="daemon0", pri=12, cpu=1)
    world.lwkt.run_until_idle()
    shown = {k.tid: k for k in world.kinfo.all()}
    assert sorted(shown) == sorted(world.lwkt.threads)
    request = shown[lwp.thread.tid]
    assert (request.pid, request.comm, request.wmesg) == (2, "fuse:read/77", "klog")
    assert (request.state, request.uid, request.host_pid, request.cpu) == ("I", 1000, 77, 0)
    (kthread,) = [k for k in shown.values() if k.comm == "daemon0"]
    assert (kthread.pid, kthread.pri, kthread.cpu) == (0, 12, 1)
    assert (kthread.wmesg, kthread.state) == ("daemon", "S")


def test_ps_of_a_user_shows_what_he_may_see(world: World) -> None:
    """What if another user asks while only own processes may be seen?"""
    world.park()
    world.procs.showallprocs = 0
    assert [k.pid for k in world.kinfo.all(Ucred.of(5, 5))] == []
    assert 2 in [k.pid for k in world.kinfo.all(Ucred.of(1000, 100))]


def test_a_process_without_threads_is_shown(world: World) -> None:
    """What if nothing runs at all?"""
    (record,) = world.kinfo.all()
    assert (record.pid, record.tid, record.comm) == (0, 0, "swapper")
    assert world.kinfo.threads_of(world.procs.proc0) == []


def test_the_debugger_shows_the_same(world: World) -> None:
    """What if `ps` is typed in the debugger?"""
    lwp = world.park()
    commands = DdbCommands()
    commands.register(world.kinfo)
    head, _, line = commands.run("ps")
    assert head.split() == ["PID", "TID", "PRI", "CPU", "S", "WMESG", "COMMAND"]
    tid = lwp.thread.tid
    assert line.split() == ["2", str(tid), "12", "0", "I", "klog", "fuse:read/77"]


def test_an_lwp_without_a_thread_is_shown_too(world: World) -> None:
    """What if a host process has a process here but no thread?"""
    proc = world.procs.visitor(CallerId(9, 3, 4))
    (record,) = world.kinfo.of_proc(proc)
    assert (record.tid, record.pri, record.cpu, record.state) == (-1, -1, -1, "R")


def test_the_kernel_says_who_it_is() -> None:
    """What if a program asks for the variables every BSD has?"""
    clock, tree = VirtualClock(), SysctlTree()
    boot = clock.realtime_ns()
    tree.register(KernMib(clock, 3, "box", "dfuser 1.2"))
    assert tree.get("kern.ostype") == "DragonFly"
    assert tree.get("kern.version").endswith("(dfuser 1.2)")
    assert tree.get("hw.ncpu") == "3"
    assert tree.get("kern.clockrate") == "{ hz = 100, tick = 10000 }"
    assert tree.get("kern.boottime").startswith(f"{{ sec = {boot // 10**9}, usec = ")
    clock.advance(90 * 10**9)
    assert tree.get("kern.uptime") == "90"
    tree.set("kern.hostname", "other\n", Ucred.root())
    assert tree.get("kern.hostname") == "other"
    assert tree.name2oid("kern.ostype") == (1, 1)
    with pytest.raises(KError) as err:
        tree.set("kern.ostype", "Linux", Ucred.root())
    assert err.value.errno == EPERM
