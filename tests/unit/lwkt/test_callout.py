"""Callouts: once each, in order, never early, stopped when they say so."""

from __future__ import annotations

import random

import pytest
import trio

from dfuser.libkern.errno import Panic
from dfuser.libkern.param import HZ, NSEC_PER_TICK
from dfuser.libkern.sysctl import SysctlTree
from dfuser.lwkt import thread as thread_mod
from dfuser.lwkt.callout import (
    CALLWHEEL_SIZE,
    Callout,
    CallWheel,
    callout_init_lk,
    callout_statistics,
    callwheel,
)
from dfuser.lwkt.lockmgr import LK_EXCLUSIVE, Lock
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.synch import tsleep, wakeup
from dfuser.lwkt.thread import TDPRI, lwkt_yield

from .conftest import Driver, make_lwkt
from .vtime import clock_of, run_all, run_ticks


@pytest.mark.parametrize("ticks", [1, 2, 99, CALLWHEEL_SIZE - 1, CALLWHEEL_SIZE, 3000, 123456])
@pytest.mark.parametrize("phase", [0, 1, NSEC_PER_TICK // 2, NSEC_PER_TICK - 1])
def test_fires_at_its_tick(lwkt: Lwkt, ticks: int, phase: int) -> None:
    """What if it is armed within a tick, near or far: does it fire exactly when the tick begins?"""
    clock_of(lwkt).advance(phase)
    at: list[int] = []
    c = Callout(lambda: at.append(clock_of(lwkt).monotonic_ns()))
    c.reset_bycpu(ticks, lwkt.cpus[1])
    assert c.pending
    assert c.active
    run_all(lwkt)
    assert at == [ticks * NSEC_PER_TICK]
    assert not c.pending
    assert c.active, "running does not deactivate"
    c.deactivate()
    assert not c.active


@pytest.mark.parametrize("ticks", [0, -5])
def test_at_least_one_tick(lwkt: Lwkt, ticks: int) -> None:
    """What if it is armed for now or for the past?"""
    run_ticks(lwkt, 7)
    at: list[int] = []
    c = Callout(lambda: at.append(lwkt.ticks))
    c.reset_bycpu(ticks, lwkt.cpus[0])
    lwkt.run_until_idle()
    assert at == []
    run_all(lwkt)
    assert at == [8]


def test_order_within_a_tick_and_across(lwkt: Lwkt) -> None:
    """What if several are due at one tick, armed in different ticks and order?"""
    order: list[str] = []
    cpu = lwkt.cpus[0]
    Callout(order.append, "c").reset_bycpu(20, cpu)
    Callout(order.append, "a").reset_bycpu(10, cpu)
    run_ticks(lwkt, 5)
    Callout(order.append, "d").reset_bycpu(15, cpu)
    Callout(order.append, "b").reset_bycpu(5, cpu)
    moved = Callout(order.append, "e")
    moved.reset_bycpu(3, cpu)
    moved.reset_bycpu(15, cpu)
    run_all(lwkt)
    assert order == ["a", "b", "c", "d", "e"]


def test_late_ones_run_in_order_and_are_counted() -> None:
    """What if the CPU was away for many revolutions of the wheel?"""
    lwkt = make_lwkt(2)
    cpu = lwkt.cpus[0]
    cpu.callwheel = CallWheel(cpu, size=8)
    rng = random.Random(1)
    ran: list[int] = []
    for _ in range(200):
        tick = rng.randrange(1, 100)
        Callout(ran.append, tick).reset_bycpu(tick, cpu)
    clock_of(lwkt).advance(100 * NSEC_PER_TICK)
    lwkt.run_until_idle()
    assert ran == sorted(ran)
    assert len(ran) == 200
    stats = callwheel(cpu).statistics()
    assert stats.late == 200
    assert stats.late_ticks == sum(100 - tick for tick in ran)
    assert stats.max_late == 100 - min(ran)
    lwkt.shutdown_nowait()


def test_stop_says_whether_it_was_pending(lwkt: Lwkt) -> None:
    """What if it is stopped before, after, twice, and from another CPU?"""
    ran: list[int] = []
    c = Callout(ran.append, 1)
    assert not c.stop()
    c.reset_bycpu(5, lwkt.cpus[2])
    assert c.stop()
    assert not c.stop()
    assert not c.active
    assert clock_of(lwkt).next_deadline() is None, "an empty wheel has no alarm"
    run_ticks(lwkt, 10)
    assert ran == []
    c.reset_bycpu(5, lwkt.cpus[2])
    run_ticks(lwkt, 10)
    assert not c.stop()
    assert ran == [1]


def test_rearming_itself_makes_no_drift(lwkt: Lwkt) -> None:
    """What if a callout arms itself again for ten seconds?"""
    at: list[int] = []

    def again() -> None:
        at.append(lwkt.ticks)
        if len(at) < 100:
            c.reset(10)

    c = Callout(again)
    c.reset_bycpu(10, lwkt.cpus[3])
    run_all(lwkt)
    assert at == list(range(10, 1001, 10))
    assert lwkt.ticks == 10 * HZ


def test_arming_anew_on_another_cpu(lwkt: Lwkt) -> None:
    """What if a pending callout is moved to another CPU: does it run there, and only there?"""
    cpus: list[int] = []
    c = Callout(lambda: cpus.append(thread_mod.curthread.cpu.cpuid))
    c.reset_bycpu(5, lwkt.cpus[0])
    c.reset_bycpu(5, lwkt.cpus[3])
    run_all(lwkt)
    assert cpus == [3]

    async def armer() -> None:
        c.reset(1)

    lwkt.create(armer, cpu=2)
    run_all(lwkt)
    assert cpus == [3, 2]


def test_one_callout_stops_another_that_is_due(lwkt: Lwkt) -> None:
    """What if the first of two callouts of the same tick stops, moves or drains the second?"""
    ran: list[str] = []
    cpu = lwkt.cpus[0]
    second = Callout(ran.append, "second")
    third = Callout(ran.append, "third")

    def first() -> None:
        ran.append("first")
        assert second.stop()
        third.reset(5)

    Callout(first).reset_bycpu(3, cpu)
    second.reset_bycpu(3, cpu)
    third.reset_bycpu(3, cpu)
    run_ticks(lwkt, 4)
    assert ran == ["first"]
    run_all(lwkt)
    assert ran == ["first", "third"]
    assert lwkt.ticks == 8


def test_callouts_preempt_nobody(lwkt: Lwkt) -> None:
    """What if a callout comes due while a daemon is between two of its steps?"""
    log: list[str] = []

    async def daemon() -> None:
        Callout(log.append, "callout").reset(1)
        clock_of(lwkt).advance(NSEC_PER_TICK)
        log.append("daemon")
        await lwkt_yield()
        log.append("daemon again")

    lwkt.create(daemon, cpu=0)
    lwkt.run_until_idle()
    assert log == ["daemon", "callout", "daemon again"]
    assert callwheel(lwkt.cpus[0]).thread is not None
    assert callwheel(lwkt.cpus[0]).thread.pri == TDPRI.SOFT_TIMER  # type: ignore[union-attr]
    assert sum(cpu.preempt_hit for cpu in lwkt.cpus) == 0


# --- with a lock -----------------------------------------------------------------------------


def test_locked_callout_is_stopped_for_certain(lwkt: Lwkt) -> None:
    """What if softclock waits for the callout's lock while the lock's holder stops the callout?"""
    lock = Lock("co")
    ran: list[str] = []
    c = callout_init_lk(lock, ran.append, "ran")
    log: list[str] = []

    async def holder() -> None:
        await lock.lockmgr(LK_EXCLUSIVE)
        c.reset(1)
        await tsleep("h", 0, "test", 0)
        log.append("stopping")
        await c.cancel()
        lock.unlock()
        await lwkt_yield()

    lwkt.create(holder, cpu=0)
    run_ticks(lwkt, 3)
    wheel = callwheel(lwkt.cpus[0])
    assert wheel.running is c
    assert wheel.thread is not None
    assert wheel.thread.wmesg == "co", "softclock shows that it waits for the lock"
    lwkt.cpus[0].interrupt(wakeup, "h")
    lwkt.run_until_idle()
    assert log == ["stopping"]
    assert ran == []
    assert not lock.lockinuse()
    c.reset_bycpu(1, lwkt.cpus[0])
    run_all(lwkt)
    assert ran == ["ran"]


def test_cancel_waits_for_a_running_call(lwkt: Lwkt) -> None:
    """What if a thread without the lock cancels a callout that softclock is about to call?"""
    lock = Lock("co")
    ran: list[str] = []
    c = callout_init_lk(lock, ran.append, "ran")
    log: list[str] = []

    async def holder() -> None:
        await lock.lockmgr(LK_EXCLUSIVE)
        c.reset_bycpu(1, lwkt.cpus[2])
        await tsleep("h", 0, "test", 5)
        log.append("unlock")
        lock.unlock()

    async def canceller() -> None:
        await tsleep("c", 0, "test", 2)
        assert not await c.cancel()
        log.append("cancelled")
        await c.terminate()

    lwkt.create(holder, cpu=0)
    td = lwkt.create(canceller, cpu=1)
    run_ticks(lwkt, 3)
    assert td.wmesg == "cowait"
    run_all(lwkt)
    assert log == ["unlock", "cancelled"]
    assert ran == []
    with pytest.raises(Panic, match="terminated"):
        c.reset_bycpu(1, lwkt.cpus[0])


def test_drain_by_the_function_itself(lwkt: Lwkt) -> None:
    """What if a callout's own function stops it: does nobody wait for himself?"""
    ran: list[bool] = []
    c = Callout(lambda: ran.append(c.stop()))
    c.reset_bycpu(1, lwkt.cpus[0])
    run_all(lwkt)
    assert ran == [False]


# --- many ------------------------------------------------------------------------------------


def test_a_hundred_thousand_random_callouts(lwkt: Lwkt) -> None:
    """What if 100,000 callouts are armed, moved and stopped on four CPUs at random?"""
    rng = random.Random(42)
    fired: list[tuple[int, int]] = []
    due: dict[int, int] = {}
    stopped = 0
    last = [0] * 4

    def fire(n: int, cpu: int) -> None:
        now = lwkt.ticks
        assert due.pop(n) == now, "late or early on an idle machine"
        assert now >= last[cpu]
        last[cpu] = now
        fired.append((n, now))

    live: list[tuple[int, Callout]] = []
    count = 0
    while count < 100_000:
        for _ in range(2000):
            cpu = rng.randrange(4)
            ticks = rng.choice((rng.randrange(1, 50), rng.randrange(1, 2500)))
            c = Callout(fire, count, cpu)
            c.reset_bycpu(ticks, lwkt.cpus[cpu])
            due[count] = lwkt.ticks + ticks
            live.append((count, c))
            count += 1
        for _ in range(100):
            n, c = live[rng.randrange(len(live))]
            was = n in due
            assert c.pending == was
            if was and rng.random() < 0.5:
                assert c.stop()
                del due[n]
                stopped += 1
            elif was:
                c.reset_bycpu(700, lwkt.cpus[c.args[1]])
                due[n] = lwkt.ticks + 700
        run_ticks(lwkt, rng.randrange(1, 60))
    run_all(lwkt)
    assert due == {}
    assert len(fired) == count - stopped
    assert len({n for n, _ in fired}) == len(fired)
    stats = callout_statistics(lwkt)
    assert stats.fired == len(fired)
    assert stats.stopped == stopped
    assert stats.pending == 0
    assert stats.late == 0


async def test_ticks_on_the_host_loop(any_driver: Driver) -> None:
    """What if the machine runs under trio's clock instead of the virtual one?"""
    lwkt = any_driver.lwkt
    slept: list[int] = []

    async def sleeper() -> None:
        start = lwkt.ticks
        await tsleep("never", 0, "test", 2)
        slept.append(lwkt.ticks - start)

    any_driver.create(sleeper, cpu=1)
    await any_driver.run()
    if any_driver.kind == "coro":
        run_ticks(lwkt, 2)
    else:
        while not slept:
            await _next_deadline(lwkt)
            await any_driver.run()
    assert slept[0] >= 2


async def _next_deadline(lwkt: Lwkt) -> None:
    deadline = lwkt.clock.next_deadline()  # type: ignore[attr-defined]
    if deadline is not None:
        await trio.sleep_until(deadline / 1e9)


def test_sysctls_show_the_wheel(lwkt: Lwkt) -> None:
    """What if somebody reads kern.callout: is it the wheel itself?"""
    tree = SysctlTree()
    wheel = callwheel(lwkt.cpus[2])
    tree.register(wheel)
    Callout(lambda: None).reset_bycpu(1, lwkt.cpus[2])
    assert tree.get("kern.callout.cpu2.pending") == "1"
    clock_of(lwkt).advance(3 * NSEC_PER_TICK)
    lwkt.run_until_idle()
    assert tree.get("kern.callout.cpu2.pending") == "0"
    assert tree.get("kern.callout.cpu2.fired") == "1"
    assert tree.get("kern.callout.cpu2.late_ticks") == "2"
