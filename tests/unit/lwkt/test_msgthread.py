"""The written-out paths of thread ports and of the loop: that they do what the long way does."""

from __future__ import annotations

import gc
import random
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import attrs
import pytest
import trio

from dfuser.lwkt import thread as _thread
from dfuser.lwkt.globaldata import RQF, STOP
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.migrate import lwkt_migratecpu
from dfuser.lwkt.msgkinds import thread_port
from dfuser.lwkt.msgport import MSGF, LwktMsg, Port, ports_of
from dfuser.lwkt.sched import Cpu
from dfuser.lwkt.thread import TDPRI, Thread, ThreadKilled, lwkt_yield, switch

from .conftest import Driver

ROUNDS = 100


def echo(rounds: int, ports: list[Port]) -> Callable[[], Any]:
    """A server that answers so many messages."""

    async def server() -> None:
        port = thread_port(_thread.curthread)
        ports.append(port)
        for _ in range(rounds):
            msg = await port.waitport()
            assert msg is not None
            msg.replymsg(0)

    return server


def calling(rounds: int, ports: list[Port]) -> Callable[[], Any]:
    """A client that calls the first server so many times."""

    async def client() -> None:
        msg = LwktMsg(thread_port(_thread.curthread))
        for _ in range(rounds):
            assert await ports[0].domsg(msg) == 0

    return client


def random_traffic(lwkt: Lwkt, seed: int) -> list[tuple[Any, ...]]:
    """Clients and servers of two CPUs and several priorities; what happened, in order."""
    rng = random.Random(seed)
    log: list[tuple[Any, ...]] = []
    servers: list[Port] = []

    async def server(name: int) -> None:
        port = thread_port(_thread.curthread)
        while True:
            msg = await port.waitport()
            assert msg is not None
            log.append(("serve", name, msg.cmd))
            if rng.random() < 0.3:
                await lwkt_yield()
            msg.replymsg(msg.cmd % 5)

    async def client(name: int) -> None:
        port = thread_port(_thread.curthread)
        msg = LwktMsg(port)
        for _ in range(40):
            msg.cmd = rng.randrange(100)
            target = rng.choice(servers)
            if rng.random() < 0.7:
                error = await target.domsg(msg)
            else:
                msg.flags = MSGF.DONE | rng.choice((0, MSGF.PRIORITY))
                target.sendmsg(msg)
                assert await port.waitport() is msg
                error = msg.error
            assert error == msg.cmd % 5
            log.append(("done", name, msg.cmd))
            if rng.random() < 0.2:
                await lwkt_yield()

    pris = (TDPRI.KERN_DAEMON, TDPRI.KERN_DAEMON, TDPRI.KERN_USER)
    for number in range(4):
        td = lwkt.create(server, number, cpu=number % 2, pri=rng.choice(pris))
        servers.append(thread_port(td))
    clients = [
        lwkt.create(client, number, cpu=number % 2, pri=rng.choice(pris)) for number in range(5)
    ]
    lwkt.run_until_idle(rng=random.Random(seed))
    assert all(td.state == "Z" for td in clients)
    log += [("port", *attrs.astuple(port.statistics())) for port in ports_of(lwkt)]
    log += [("cpu", cpu.switches) for cpu in lwkt.cpus]
    log += [("thread", td.name, td.switches, td.wmesg) for td in lwkt.threads.values()]
    return log


@pytest.mark.parametrize("seed", range(20))
def test_tracing_sends_everything_the_long_way(new_lwkt: Callable[..., Lwkt], seed: int) -> None:
    """What if tracing takes every message and switch off the short paths: is anything different?"""
    plain = new_lwkt(2)
    traced = new_lwkt(2)
    for name in ("msgport", "ctxsw"):
        traced.ktr.master(name).mask = -1
    log = random_traffic(plain, seed)
    assert log == random_traffic(traced, seed)
    points = {p.name: count.count for p, count in traced.ktr.master("msgport").points.items()}
    assert points["put"] == points["reply"] == 5 * 40
    assert points["get"] >= 5 * 40


@pytest.mark.parametrize("seed", range(5))
def test_switches_stay_with_the_cpu_that_made_them(
    lwkt: Lwkt, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What if threads migrate, exit and preempt: does each CPU's count agree with the trace?"""
    rng = random.Random(seed)
    lwkt.ktr_ctxsw.mask = -1
    seen: Counter[int] = Counter()

    def note(cpu: Cpu, _left: Thread | None, came: Thread | None) -> None:
        seen[cpu.cpuid] += came is not None

    monkeypatch.setattr(Cpu, "trace_switch", note)

    async def wanderer() -> None:
        for _ in range(rng.randrange(1, 30)):
            if rng.random() < 0.3:
                await lwkt_migratecpu(rng.randrange(4))
            else:
                await lwkt_yield()

    async def preempter() -> None:
        while True:
            _thread.lwkt_deschedule_self()
            await switch()

    above = lwkt.create(preempter, pri=TDPRI.INT_HIGH, interrupt=True, cpu=0)

    async def waker() -> None:
        for _ in range(10):
            lwkt.schedule(above)
            await lwkt_yield()

    for number in range(12):
        lwkt.create(wanderer, cpu=number % 4)
    lwkt.create(waker, cpu=0)
    lwkt.run_until_idle(rng=random.Random(seed))
    assert lwkt.statistics().preempt_hit > 0
    assert [cpu.switches for cpu in lwkt.cpus] == [seen[n] for n in range(4)]
    assert lwkt.statistics().switches == sum(seen.values())


def test_calls_of_a_round_trip(lwkt: Lwkt) -> None:
    """What if a message goes to another thread and back: how many Python functions run?"""
    ports: list[Port] = []
    lwkt.create(echo(ROUNDS, ports), cpu=0)
    lwkt.create(calling(ROUNDS, ports), cpu=0)
    calls: Counter[str] = Counter()

    def note(frame: FrameType, event: str, _arg: object) -> None:
        if event == "call":
            calls[frame.f_code.co_qualname] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        lwkt.cpus[0].run(100_000)
    finally:
        sys.setprofile(before)
    often = {name: count for name, count in calls.items() if count > ROUNDS // 2}
    # Each generator is entered twice: when it is made to start, and when its thread resumes.
    bodies = {name for name in often if "<locals>" in name}
    assert set(often) - bodies == {"ThreadPort.domsg", "thread_waitport", "LwktMsg.replymsg"}
    assert sum(often.values()) <= 7 * ROUNDS + 10


class Steps(trio.abc.Instrument):
    """Counts what trio runs."""

    def __init__(self) -> None:
        self.tasks: Counter[str] = Counter()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """One more step of this task."""
        self.tasks[task.name] += 1


async def test_two_trio_steps_a_round_trip(new_host: Callable[..., Any]) -> None:
    """What if the same happens on trio tasks: does trio run anything but the two of them?"""
    async with new_host(1) as lwkt:
        ports: list[Port] = []
        steps = Steps()
        over = trio.Event()
        lwkt.create(echo(ROUNDS, ports), name="server")
        td = lwkt.create(calling(ROUNDS, ports), name="client")
        td.done = lambda _td: over.set()
        trio.lowlevel.add_instrument(steps)
        await over.wait()
        trio.lowlevel.remove_instrument(steps)
    ours = steps.tasks["lwkt:server"] + steps.tasks["lwkt:client"]
    assert 2 * ROUNDS <= ours <= 2 * ROUNDS + 6
    loops = sum(count for name, count in steps.tasks.items() if "_cpu_loop" in name)
    assert loops <= 4
    assert len(steps.tasks) <= 5  # and the clock, whose steps depend on time, and the test


async def test_an_exited_thread_is_freed_at_once(any_driver: Driver) -> None:
    """What if a thread has ended: is it gone without the garbage collector?"""
    refs: list[weakref.ref[Thread]] = []

    async def body() -> None:
        refs.append(weakref.ref(_thread.curthread))
        await lwkt_yield()

    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            any_driver.create(body)
        await any_driver.run()
        assert [ref() for ref in refs] == [None] * 3
    finally:
        gc.enable()


async def test_every_resumption_of_a_killed_thread_raises(any_driver: Driver) -> None:
    """What if a thread that is ended suspends again and again while it unwinds?"""
    raised: list[str] = []

    async def body() -> None:
        me = _thread.curthread
        for number in range(3):
            try:
                if number:
                    await lwkt_yield()
                else:
                    await thread_port(me).waitport()
            except ThreadKilled:
                raised.append(f"{me.name}{number}")

    any_driver.create(body, name="x")
    await any_driver.run()
    assert raised == []
    any_driver.lwkt.kill_threads()
    await any_driver.run()
    assert raised == ["x0", "x1", "x2"]


def test_a_killed_thread_that_never_ran_has_no_body(lwkt: Lwkt) -> None:
    """What if a thread is ended before its first step: is its body ever made?"""
    made: list[int] = []

    async def body() -> None:
        made.append(1)

    td = lwkt.create(body)
    lwkt.kill_threads()
    lwkt.run_until_idle()
    assert td.state == "Z"
    assert made == []


def test_one_flag_tells_that_a_cpu_is_stopped(lwkt: Lwkt) -> None:
    """What if a CPU is stopped for two reasons: does the one tested flag last as long as both?"""
    cpu = lwkt.cpus[1]
    cpu.stop()
    cpu.stopped |= STOP.CPUSYNC
    assert cpu.reqflags & RQF.STOPPED
    cpu.unstop(STOP.DEBUG)
    assert cpu.stopped == STOP.CPUSYNC
    assert cpu.reqflags & RQF.STOPPED
    cpu.unstop(STOP.CPUSYNC)
    assert not cpu.stopped
    assert not cpu.reqflags & RQF.STOPPED
