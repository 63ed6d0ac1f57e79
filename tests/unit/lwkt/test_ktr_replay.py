"""The ctxsw trace explains every switch: who ran on which CPU, and in which order."""

from __future__ import annotations

import random
import types
from collections import defaultdict
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import pytest

from dfuser.lwkt import thread as _thread
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.migrate import lwkt_migratecpu
from dfuser.lwkt.synch import tsleep, wakeup
from dfuser.lwkt.thread import (
    PAUSE,
    TDPRI,
    cpu_pause,
    lwkt_deschedule_self,
    lwkt_yield,
    switch,
)
from dfuser.lwkt.token import Token

from .conftest import Driver

Runs = dict[int, list[str]]


def replay(lwkt: Lwkt) -> Runs:
    """The threads each CPU has run, from nothing but the trace; it must never contradict itself."""
    runs: Runs = defaultdict(list)
    for cpu in lwkt.cpus:
        idle = cpu.idle.name
        running, below = idle, list[str]()
        for entry in lwkt.ktr.dump(cpu.cpuid):
            args = entry.args
            if entry.info.master != "ctxsw":
                continue
            if entry.info.name in ("sw", "idle"):
                assert args[0] == running, entry.line()
                running = str(args[2])
                assert (running == idle) == (entry.info.name == "idle")
            elif entry.info.name == "pre":
                assert args[2] == running, entry.line()
                below.append(running)
                running = str(args[1])
            elif entry.info.name == "preret":
                assert running in (args[1], idle), entry.line()
                running = below.pop()
                assert args[2] == running
                continue
            elif entry.info.name == "deadtd":
                assert args[0] == running, entry.line()
                running = idle
            if running != idle and entry.info.name != "deadtd":
                runs[cpu.cpuid].append(running)
        assert running == idle
        assert not below
    return runs


@types.coroutine
def watched(runs: Runs, body: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
    """Note each time the thread of ``body`` begins to run, seen from within its driver."""
    td = _thread.curthread
    value, spun = None, False
    while True:
        if not spun:
            runs[td.cpu.cpuid].append(td.name)
        try:
            said = body.send(value)
        except StopIteration:
            return
        spun = said == PAUSE
        value = yield said


def once(names: list[str]) -> list[str]:
    """Without repetitions: a task thread that elects itself does not suspend."""
    return [name for n, name in enumerate(names) if n == 0 or names[n - 1] != name]


def populate(lwkt: Lwkt, create: Callable[..., Any], runs: Runs, seed: int) -> None:
    """Threads that yield, sleep, wake, migrate, contend for tokens and preempt."""
    toks = [Token(lwkt, f"tok{n}") for n in range(2)]

    async def above() -> None:
        while True:
            lwkt_deschedule_self()
            await switch()

    interrupts = [
        lwkt.create(
            lambda: watched(runs, above()),
            name=f"intr{cpu}", pri=TDPRI.INT_HIGH, interrupt=True, cpu=cpu,
        )
        for cpu in range(2)
    ]  # fmt: skip

    async def worker(who: int) -> None:
        rng = random.Random(seed * 100 + who)
        for _ in range(rng.randrange(5, 25)):
            what = rng.randrange(6)
            if what == 0:
                await lwkt_yield()
            elif what == 1:
                async with toks[rng.randrange(2)]:
                    await cpu_pause()
                    await lwkt_yield()
            elif what == 2:
                await lwkt_migratecpu(rng.randrange(4))
            elif what == 3:
                lwkt.schedule(interrupts[rng.randrange(2)])
            elif what == 4 and rng.random() < 0.3:
                await tsleep(seed, 0, "test")
            else:
                wakeup(seed)
                await cpu_pause()

    for who in range(12):
        name = f"worker{who}"
        create(lambda w=who: watched(runs, worker(w)), name=name, cpu=who % 4, pri=10 + who % 2)


@pytest.mark.parametrize("seed", range(8))
def test_the_trace_gives_the_exact_sequence(new_lwkt: Callable[..., Lwkt], seed: int) -> None:
    """What if the trace of a random run is replayed: does each CPU run what the threads saw?"""
    lwkt = new_lwkt(4, entries=16384)
    lwkt.ktr_ctxsw.mask = -1
    runs: Runs = defaultdict(list)
    populate(lwkt, lwkt.create, runs, seed)
    rng = random.Random(seed)
    lwkt.run_until_idle(rng=rng)
    while any(td.name.startswith("worker") for td in lwkt.threads.values()):
        lwkt.cpus[0].interrupt(wakeup, seed)
        lwkt.run_until_idle(rng=rng)
    assert lwkt.statistics().preempt_hit > 0
    assert lwkt.statistics().token_stalls > 0
    assert replay(lwkt) == runs
    assert (
        sum(map(len, runs.values())) == lwkt.statistics().switches + lwkt.statistics().preempt_hit
    )


async def test_the_trace_is_exact_on_both_drivers(any_driver: Driver) -> None:
    """What if trio tasks and the loop's coroutines share the CPUs?"""
    lwkt = any_driver.lwkt
    lwkt.ktr_ctxsw.mask = -1
    runs: Runs = defaultdict(list)

    async def worker(who: int) -> None:
        rng = random.Random(who)
        for _ in range(12):
            await (lwkt_yield() if rng.random() < 0.6 else lwkt_migratecpu(rng.randrange(2)))

    for who in range(6):
        driver = "coro" if who % 3 == 0 else any_driver.kind
        lwkt.create(
            lambda w=who: watched(runs, worker(w)), name=f"worker{who}", cpu=who % 2, driver=driver
        )
    await any_driver.run()
    seen = replay(lwkt)
    assert {cpu: once(names) for cpu, names in seen.items()} == {
        cpu: once(names) for cpu, names in runs.items()
    }
    assert sum(map(len, seen.values())) == lwkt.statistics().switches
