"""Election, round robin, priorities, the tick, fairness, stopping, seeds."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from dfuser.hw.clock import VirtualClock
from dfuser.libkern.errno import Panic
from dfuser.libkern.ktr import Ktr
from dfuser.libkern.log import MsgBuf
from dfuser.libkern.param import NSEC_PER_TICK
from dfuser.lwkt import thread as _thread
from dfuser.lwkt.globaldata import RQF
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.sched import Outcome
from dfuser.lwkt.thread import (
    TDF,
    TDPRI,
    Thread,
    cpu_pause,
    lwkt_deschedule_self,
    lwkt_setpri_self,
    lwkt_yield,
    lwkt_yield_quick,
    switch,
)

from .conftest import Driver


def yielder(log: list[str], name: str, rounds: int) -> Callable[[], Any]:
    async def body() -> None:
        for _ in range(rounds):
            log.append(name)
            await lwkt_yield()

    return body


async def test_three_equal_threads_take_exact_turns(any_driver: Any) -> None:
    """What if three threads of one priority yield for ever: is the order ABCABC without a slip?"""
    log: list[str] = []
    for name in "ABC":
        any_driver.create(yielder(log, name, 500), name=name, cpu=0)
    await any_driver.run()
    assert "".join(log) == "ABC" * 500


def test_round_robin_over_a_thousand_seeds(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if the turns of four CPUs are drawn at random: is each CPU's own order still exact?"""
    lwkt = new_lwkt(4)
    for seed in range(1000):
        logs: list[list[str]] = [[] for _ in lwkt.cpus]
        for cpu in range(4):
            for name in "ABC":
                lwkt.create(yielder(logs[cpu], name, 4), cpu=cpu)
        lwkt.run_until_idle(rng=random.Random(seed))
        assert all("".join(log) == "ABC" * 4 for log in logs), f"seed {seed}"


async def test_trios_own_order_decides_nothing(any_driver: Any) -> None:
    """What if trio wakes ready tasks in random order: do four CPUs still keep exact turns?"""
    for _ in range(20):
        logs: list[list[str]] = [[] for _ in range(4)]
        for cpu in range(4):
            for name in "ABC":
                any_driver.create(yielder(logs[cpu], name, 10), cpu=cpu)
        await any_driver.run()
        assert all("".join(log) == "ABC" * 10 for log in logs)


@pytest.mark.slow
async def test_round_robin_of_tasks_a_thousand_times(new_host: Any) -> None:
    """What if trio draws its order a thousand times: is each CPU's own order of tasks exact?"""
    async with new_host() as lwkt:
        driver = Driver("task", lwkt)
        for round_ in range(1000):
            logs: list[list[str]] = [[] for _ in range(4)]
            for cpu in range(4):
                for name in "ABC":
                    lwkt.create(yielder(logs[cpu], name, 4), cpu=cpu)
            await driver.run()
            assert all("".join(log) == "ABC" * 4 for log in logs), f"round {round_}"


async def test_both_drivers_share_one_queue(new_host: Any) -> None:
    """What if task threads and coroutine threads of one priority mix on a CPU:

    One order for all?
    """
    async with new_host() as lwkt:
        log: list[str] = []
        for name, driver in zip("AbCd", ("task", "coro", "task", "coro"), strict=True):
            lwkt.create(yielder(log, name, 50), cpu=1, driver=driver)
        await trio.testing.wait_all_tasks_blocked()
        assert "".join(log) == "AbCd" * 50


async def test_higher_priority_runs_first_and_to_its_end(any_driver: Any) -> None:
    """What if threads of different priorities are runnable: does the lower one wait for the end?"""
    log: list[str] = []
    any_driver.create(yielder(log, "l", 5), pri=TDPRI.KERN_USER, cpu=0)
    any_driver.create(yielder(log, "h", 5), pri=TDPRI.SOFT_NORM, cpu=0)
    any_driver.create(yielder(log, "m", 5), pri=TDPRI.KERN_DAEMON, cpu=0)
    await any_driver.run()
    assert "".join(log) == "hhhhhmmmmmlllll"


async def test_setpri_self_takes_effect_at_the_next_yield(any_driver: Any) -> None:
    """What if a running thread lowers itself: does it keep the CPU until it yields, then wait?"""
    log: list[str] = []

    async def body() -> None:
        lwkt_setpri_self(TDPRI.USER_NORM)
        log.append("still here")
        await lwkt_yield()
        log.append("after")

    any_driver.create(body, cpu=0, pri=TDPRI.KERN_DAEMON)
    any_driver.create(yielder(log, "x", 2), cpu=0, pri=TDPRI.KERN_USER)
    await any_driver.run()
    assert log == ["still here", "x", "x", "after"]


async def test_sleeping_thread_does_not_run_until_scheduled(any_driver: Any) -> None:
    """What if a thread deschedules itself: does it run again exactly when somebody schedules it?"""
    lwkt = any_driver.lwkt
    log: list[str] = []

    async def sleeper() -> None:
        log.append("down")
        lwkt_deschedule_self()
        await switch()
        log.append("up")

    td = any_driver.create(sleeper, cpu=2)
    await any_driver.run()
    assert log == ["down"]
    assert td.state == "S"
    assert not td.runnable

    async def waker() -> None:
        lwkt.schedule(td)
        lwkt.schedule(td)

    any_driver.create(waker, cpu=0)
    await any_driver.run()
    assert log == ["down", "up"]
    assert td.state == "Z"
    assert lwkt.statistics().threads == 0


def test_tick_rotates_only_when_the_cpu_is_contended(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if the tick comes:

    Does the head go behind its equals, and does an idle CPU have none?
    """
    clock = VirtualClock()
    lwkt = Lwkt(1, clock, Ktr(1, clock), MsgBuf())
    seen: list[str] = []

    async def spin(name: str) -> None:
        for _ in range(3):
            seen.append(name)
            await cpu_pause()

    a = lwkt.create(spin, "a")
    lwkt.cpus[0].run(1)
    assert not lwkt.ticking
    b = lwkt.create(spin, "b")
    assert lwkt.ticking
    assert lwkt.cpus[0].runnable() == [a, b]
    clock.advance(NSEC_PER_TICK)
    assert lwkt.cpus[0].runnable() == [b, a]
    assert lwkt.cpus[0].reqflags & RQF.RESCHED
    lwkt.run_until_idle()
    clock.advance(NSEC_PER_TICK)
    assert not lwkt.ticking
    assert clock.next_deadline() is None
    assert lwkt.statistics().hardclocks == 2
    lwkt.shutdown_nowait()


def test_yield_quick_yields_after_a_tick_of_work() -> None:
    """What if a thread computes without waiting:

    Does yield_quick end its turn once a tick is over?
    """
    clock = VirtualClock()
    lwkt = Lwkt(1, clock, Ktr(1, clock), MsgBuf())
    log: list[str] = []

    async def worker(name: str) -> None:
        for _ in range(64):
            log.append(name)
            clock.advance(NSEC_PER_TICK // 20)
            await lwkt_yield_quick()

    lwkt.create(worker, "a")
    lwkt.create(worker, "b")
    lwkt.run_until_idle()
    first = "".join(log)
    turn = len(first) - len(first.lstrip("a"))
    assert 16 <= turn <= 48
    assert first.count("a") == first.count("b") == 64
    lwkt.shutdown_nowait()


async def test_a_yielding_thread_does_not_starve_the_host(new_host: Any) -> None:
    """What if threads yield for ever on all CPUs: do the host's own tasks still get their turns?"""
    async with new_host() as lwkt:
        stop = False

        async def forever() -> None:
            while not stop:
                await lwkt_yield()

        for cpu in range(4):
            lwkt.create(forever, cpu=cpu, driver="coro")
            lwkt.create(forever, cpu=cpu, driver="task")
        turns = 0
        for _ in range(50):
            await trio.lowlevel.checkpoint()
            turns += 1
        switches = lwkt.statistics().switches
        stop = True
        assert turns == 50
        assert switches > 50


def test_run_stops_at_its_time_limit() -> None:
    """What if the steps of coroutine threads are long: does the loop give the CPU back in time?"""
    clock = VirtualClock()
    lwkt = Lwkt(1, clock, Ktr(1, clock), MsgBuf())

    async def slow() -> None:
        while True:
            clock.step(0)
            clock.advance(100_000)
            await lwkt_yield()

    lwkt.create(slow)
    started = clock.monotonic_ns()
    lwkt.cpus[0].run(1_000_000, 500_000)
    assert clock.monotonic_ns() - started <= 900_000
    lwkt.measure_stretch = 1
    lwkt.cpus[0].run(1_000_000, 500_000)
    assert lwkt.statistics().longest_stretch_ns == 100_000
    lwkt.shutdown_nowait()


async def test_a_stopped_cpu_runs_nothing_until_restart(any_driver: Any) -> None:
    """What if a CPU is stopped:

    Do its threads, interrupts and IPIs wait, and then come in order?
    """
    lwkt = any_driver.lwkt
    log: list[str] = []
    lwkt.cpus[1].stop()
    any_driver.create(yielder(log, "t", 2), cpu=1)
    lwkt.cpus[1].interrupt(log.append, "i")
    lwkt.send_ipiq_nowait(lwkt.cpus[1], log.append, "p")
    any_driver.create(yielder(log, "o", 2), cpu=0)
    await any_driver.run()
    assert log == ["o", "o"]
    lwkt.cpus[1].restart()
    await any_driver.run()
    assert log == ["o", "o", "p", "i", "t", "t"]


async def test_elected_task_freezes_when_its_cpu_is_stopped(new_host: Any) -> None:
    """What if a CPU is stopped after it elected a task thread that has not woken yet:

    Does it wait?
    """
    async with new_host() as lwkt:
        log: list[str] = []

        async def body() -> None:
            log.append("ran")

        td = lwkt.create(body, cpu=1, driver="task")
        await trio.lowlevel.checkpoint()
        lwkt.cpus[1].stop()
        before = list(log)
        await trio.testing.wait_all_tasks_blocked()
        assert log == before
        lwkt.cpus[1].restart()
        await trio.testing.wait_all_tasks_blocked()
        assert log == ["ran"]
        assert td.state == "Z"


async def test_woken_task_freezes_and_keeps_its_election(new_host: Any) -> None:
    """What if a CPU is stopped after a switching task was woken: not one more line of it runs?"""
    async with new_host() as lwkt:
        log: list[str] = []
        cpu = lwkt.cpus[1]
        for name in "ab":
            lwkt.create(yielder(log, name, 200), cpu=1, driver="task")
        while len(log) < 10:
            await trio.lowlevel.checkpoint()
        cpu.stop()
        before = list(log)
        elected = cpu.curthread
        assert elected is not None
        await trio.testing.wait_all_tasks_blocked()
        assert log == before
        assert cpu.frozen is elected
        cpu.restart()
        await trio.testing.wait_all_tasks_blocked()
        assert "".join(log) == "ab" * 200


async def test_spinning_task_freezes_when_its_cpu_is_stopped(new_host: Any) -> None:
    """What if a task thread spins on a CPU that is stopped:

    Does it stand still until the restart?
    """
    async with new_host() as lwkt:
        turns = 0
        stop = False

        async def spinner() -> None:
            nonlocal turns
            while not stop:
                turns += 1
                await cpu_pause()

        td = lwkt.create(spinner, cpu=2, driver="task")
        while turns < 3:
            await trio.lowlevel.checkpoint()
        lwkt.cpus[2].stop()
        before = turns
        await trio.testing.wait_all_tasks_blocked()
        assert turns == before
        assert lwkt.cpus[2].curthread is td
        stop = True
        lwkt.cpus[2].restart()


def test_spinning_thread_and_its_cpu(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if a thread spins: interrupts come between, and stopping its CPU stops the spinning?"""
    lwkt = new_lwkt(2)
    cpu = lwkt.cpus[0]
    log: list[str] = []

    async def spinner() -> None:
        for number in range(4):
            log.append(str(number))
            await cpu_pause()

    lwkt.create(spinner, cpu=0)
    cpu.run(1)
    cpu.reqflags |= RQF.INTPEND
    cpu.intpend.append((log.append, ("intr",)))
    cpu.run(1)
    assert log == ["0", "intr", "1"]
    cpu.stop()
    assert cpu.run(1) == Outcome.HANDED
    assert log == ["0", "intr", "1"]
    cpu.restart()
    lwkt.run_until_idle()
    assert log == ["0", "intr", "1", "2", "3"]


def racy(seed: int) -> tuple[int, list[int]]:
    """Two CPUs add to one number with a pause between reading and writing; returns sum and

    Trace.
    """
    clock = VirtualClock()
    lwkt = Lwkt(2, clock, Ktr(2, clock, entries=16), MsgBuf(), seed=seed)
    total = 0
    trace: list[int] = []

    async def adder(who: int) -> None:
        nonlocal total
        for _ in range(10):
            seen = total
            trace.append(who)
            await cpu_pause()
            total = seen + 1
            await lwkt_yield()

    lwkt.create(adder, 0, cpu=0)
    lwkt.create(adder, 1, cpu=1)
    lwkt.run_until_idle()
    lwkt.shutdown_nowait()
    return total, trace


def test_a_seed_replays_a_failing_schedule() -> None:
    """What if a racy program fails under one seed: does the same seed fail the same way again?"""
    results = {seed: racy(seed) for seed in range(30)}
    failing = [seed for seed, (total, _) in results.items() if total < 20]
    assert failing
    assert len({tuple(trace) for _, trace in results.values()}) > 20
    for seed in failing:
        assert racy(seed) == results[seed]


def model_enqueue(queue: list[tuple[int, int, int]], pri: int, upri: int, tid: int) -> None:
    """_lwkt_enqueue on one sorted list: before the first with a lower (pri, upri), else last."""
    at = 0
    while at < len(queue) and (queue[at][0], queue[at][1]) >= (pri, upri):
        at += 1
    queue.insert(at, (pri, upri, tid))


OPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from((0, 6, 7, 31)), st.integers(-2, 2)),
        st.tuples(st.just("del"), st.integers(0, 50), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(OPS)
def test_run_queue_agrees_with_the_model(ops: list[tuple[str, int, int]]) -> None:
    """What if threads come and go with any priorities: is the order that of _lwkt_enqueue?"""
    clock = VirtualClock()
    lwkt = Lwkt(1, clock, Ktr(1, clock, entries=16), MsgBuf())
    cpu = lwkt.cpus[0]
    model: list[tuple[int, int, int]] = []
    threads: dict[int, Thread] = {}
    for tid, (op, first, upri) in enumerate(ops):
        if op == "add":
            td = threads[tid] = Thread(cpu, tid, "t", first)
            td.upri = upri
            cpu.runq_enqueue(td)
            model_enqueue(model, first, upri, tid)
        elif model:
            gone = model.pop(first % len(model))
            cpu.runq_remove(threads[gone[2]])
        assert [td.tid for td in cpu.runnable()] == [entry[2] for entry in model]
        mask = sum(1 << pri for pri in {entry[0] for entry in model})
        assert cpu.runmask == mask


def test_counters_agree_with_an_outside_observer(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if somebody outside counts elections, threads and interrupts:

    Do the statistics agree?
    """
    lwkt = new_lwkt(2)
    elections = interrupts = 0
    mask = lwkt.ktr_ctxsw
    mask.mask = -1

    async def body() -> None:
        nonlocal elections
        for _ in range(7):
            elections += 1
            await lwkt_yield()
        elections += 1

    def handler() -> None:
        nonlocal interrupts
        interrupts += 1

    threads = [lwkt.create(body, cpu=i % 2) for i in range(5)]
    for _ in range(3):
        lwkt.cpus[1].interrupt(handler)
    lwkt.run_until_idle(rng=random.Random(1))
    stats = lwkt.statistics()
    assert stats.switches == elections == 5 * 8
    assert sum(td.switches for td in threads) == elections
    assert interrupts == 3
    assert stats.interrupts == interrupts + lwkt.ipiqs.statistics().doorbells
    assert (stats.created, stats.exited, stats.threads) == (5, 5, 0)
    assert sum(mask.point(p).count for p in mask.points if p.name == "sw") == elections


def test_panic_in_a_thread_ends_all_elections(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if a thread panics: is the culprit remembered, and does nobody run any more?"""
    lwkt = new_lwkt(2)
    log: list[str] = []

    async def bad() -> None:
        await lwkt_yield()
        raise Panic("boom")

    td = lwkt.create(bad, cpu=0)
    lwkt.create(yielder(log, "x", 100), cpu=1)
    with pytest.raises(Panic, match="boom"):
        lwkt.run_until_idle()
    ran = len(log)
    assert lwkt.panic_thread is td
    assert str(lwkt.panicked) == "boom"
    assert lwkt.run_until_idle() == 0
    assert len(log) == ran


def test_curthread_is_the_idle_thread_outside(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if nothing runs: is curthread still a thread, the idle one, never None?"""
    lwkt = new_lwkt(1)
    assert _thread.curthread is lwkt.cpus[0].idle
    inside: list[Thread] = []

    async def body() -> None:
        inside.append(_thread.curthread)

    td = lwkt.create(body)
    lwkt.run_until_idle()
    assert inside == [td]
    assert _thread.curthread is lwkt.cpus[0].idle
    assert td.flags & TDF.EXITING
