"""Condition variables: no signal lost, no signal wasted, the lock always held on return."""

from __future__ import annotations

import random
from typing import Any

import pytest

from dfuser.libkern.errno import EINTR, EWOULDBLOCK
from dfuser.lwkt.condvar import Cv
from dfuser.lwkt.lockmgr import Lock
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.mtx import Mtx
from dfuser.lwkt.sleepq import synch_of
from dfuser.lwkt.synch import abort_sleep
from dfuser.lwkt.thread import cpu_pause

from .conftest import Driver
from .vtime import run_ticks


@pytest.mark.parametrize("make", [Lock, Mtx])
async def test_bounded_buffer(any_driver: Driver, make: Any) -> None:
    """What if producers and consumers share a buffer of two places over four CPUs?"""
    lock = make("buf")
    full, empty = Cv("full"), Cv("empty")
    buffer: list[int] = []
    got: list[int] = []

    async def producer(base: int) -> None:
        for n in range(25):
            await lock.acquire()
            while len(buffer) == 2:
                await full.wait(lock)
                assert lock.owned()
            buffer.append(base + n)
            empty.signal()
            lock.release()

    async def consumer() -> None:
        for _ in range(25):
            await lock.acquire()
            while not buffer:
                await empty.wait(lock)
                assert lock.owned()
            got.append(buffer.pop(0))
            full.signal()
            lock.release()

    for cpu in range(4):
        any_driver.create(consumer, cpu=cpu)
        any_driver.create(producer, cpu * 100, cpu=3 - cpu)
    await any_driver.run()
    assert sorted(got) == sorted(base * 100 + n for base in range(4) for n in range(25))
    for base in range(4):
        mine = [n for n in got if n // 100 == base]
        assert mine == sorted(mine)
    assert not full.has_waiters()
    assert not empty.has_waiters()


def test_one_and_all(lwkt: Lwkt) -> None:
    """What if five wait: how many does a signal wake, and how many a broadcast?"""
    cv = Cv("test")
    woken: list[int] = []

    async def waiter(n: int) -> None:
        await cv.wait(None)
        woken.append(n)

    async def call(fn: Any) -> None:
        fn()

    tds = [lwkt.create(waiter, n, cpu=n % 4) for n in range(5)]
    lwkt.run_until_idle()
    assert {td.wmesg for td in tds} == {"test"}
    assert cv.statistics().waiters == 5
    for count in (1, 2):
        lwkt.create(call, cv.signal, cpu=1)
        lwkt.run_until_idle()
        assert len(woken) == count
    lwkt.create(call, cv.broadcast, cpu=3)
    lwkt.run_until_idle()
    assert sorted(woken) == list(range(5))
    lwkt.create(call, cv.signal, cpu=3)
    lwkt.run_until_idle()
    stats = cv.statistics()
    assert (stats.waiters, stats.waits, stats.signals, stats.broadcasts) == (0, 5, 3, 1)


def test_time_limit_and_signal(lwkt: Lwkt) -> None:
    """What if waits end without a signal of the variable: is a later one still worth a waiter?"""
    cv, lock = Cv("test"), Lock("test")
    results: dict[str, Any] = {}

    async def timed() -> None:
        await lock.acquire()
        results["timed"] = (await cv.timedwait(lock, 5), lock.owned())
        lock.release()

    async def caught() -> None:
        results["caught"] = await cv.wait_sig(None)

    async def both() -> None:
        results["both"] = await cv.timedwait_sig(None, 8)

    async def plain() -> None:
        await cv.wait(None)
        results["plain"] = 0

    lwkt.create(timed, cpu=0)
    td = lwkt.create(caught, cpu=1)
    lwkt.create(both, cpu=1)
    lwkt.create(plain, cpu=2)
    run_ticks(lwkt, 5)
    assert results == {"timed": (EWOULDBLOCK, True)}
    abort_sleep(td, EINTR)
    run_ticks(lwkt, 3)
    assert results["caught"] == EINTR
    assert results["both"] == EWOULDBLOCK
    assert cv.statistics().waiters == 1

    async def signaller() -> None:
        cv.signal()

    lwkt.create(signaller, cpu=3)
    lwkt.run_until_idle()
    assert results["plain"] == 0
    assert not cv.has_waiters()


@pytest.mark.parametrize("seed", range(10))
def test_signals_and_timeouts_race(lwkt: Lwkt, seed: int) -> None:
    """What if signals race with timeouts: does each signal wake one while anybody waits?"""
    rng = random.Random(seed)
    cv = Cv("race")
    woken = timed_out = 0

    async def waiter() -> None:
        nonlocal woken, timed_out
        for _ in range(10):
            if await cv.timedwait(None, rng.randrange(1, 4)):
                timed_out += 1
            else:
                woken += 1

    tokens = 0

    async def signaller() -> None:
        nonlocal tokens
        for _ in range(rng.randrange(3)):
            tokens += cv.has_waiters()
            cv.signal()
            await cpu_pause()

    for n in range(8):
        lwkt.create(waiter, cpu=n % 4)
    for _ in range(60):
        lwkt.create(signaller, cpu=rng.randrange(4))
        run_ticks(lwkt, rng.randrange(2), rng)
    run_ticks(lwkt, 100, rng)
    assert woken + timed_out == 80
    assert 0 < woken <= tokens
    assert cv.statistics().waiters == 0


def test_a_timeout_does_not_cost_another_waiter_its_signal(lwkt: Lwkt) -> None:
    """What if a waiter's time is up while a broadcast to it is on its way, and another has come?"""
    cv = Cv("test")
    woken: list[str] = []
    held = lwkt.cpus[3]

    async def waiter(name: str, timo: int) -> None:
        await cv.timedwait(None, timo)
        woken.append(name)

    async def call(fn: Any) -> None:
        fn()

    timed = lwkt.create(waiter, "timed", 5, cpu=3)
    lwkt.run_until_idle()
    held.stop()
    lwkt.create(call, cv.broadcast, cpu=0)
    lwkt.create(waiter, "late", 0, cpu=1)
    lwkt.run_until_idle()
    synch = synch_of(lwkt)
    synch._endtsleep(timed, timed.sleepq_entry)
    held.restart()
    lwkt.run_until_idle()
    assert woken == ["timed"]
    assert cv.has_waiters()
    lwkt.create(call, cv.signal, cpu=0)
    lwkt.run_until_idle()
    assert woken == ["timed", "late"]
    assert not cv.has_waiters()
