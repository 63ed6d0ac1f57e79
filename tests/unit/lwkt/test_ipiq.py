"""IPI queues: order, batching, watermarks, passive sending, stopped CPUs, wake-ups."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import trio

from dfuser.hw.clock import VirtualClock
from dfuser.libkern.errno import ENOENT, Panic
from dfuser.libkern.ktr import Ktr
from dfuser.libkern.log import MsgBuf
from dfuser.libkern.param import NSEC_PER_TICK
from dfuser.lwkt import thread as _thread
from dfuser.lwkt.ipiq import (
    HIGH_WATER,
    LOW_WATER,
    MAXCPUFIFO,
    lwkt_send_ipiq,
    lwkt_send_ipiq_bycpu,
    lwkt_send_ipiq_mask,
    lwkt_send_ipiq_nowait,
    lwkt_send_ipiq_passive,
    lwkt_synchronize_ipiqs,
    lwkt_wait_ipiq,
)
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.thread import (
    TDF,
    Thread,
    cpu_pause,
    crit_enter,
    crit_exit,
    lwkt_deschedule_self,
    lwkt_yield,
    switch,
)


async def flood(driver: Any, each: int) -> tuple[list[int], list[int]]:
    """CPU 0 sends to CPU 1 and back, ``each`` numbers both ways; returns what arrived."""
    lwkt = driver.lwkt
    got: tuple[list[int], list[int]] = ([], [])

    def receive(where: int, number: int) -> None:
        assert _thread.curthread.cpu.cpuid == where
        assert _thread.curthread.critcount
        got[where].append(number)

    async def sender(to: int) -> None:
        for number in range(each):
            await lwkt_send_ipiq(lwkt.cpus[to], receive, to, number)
            if not number % 300:
                await lwkt_yield()

    driver.create(sender, 1, cpu=0)
    driver.create(sender, 0, cpu=1)
    await driver.run()
    return got


def check_flood(lwkt: Lwkt, got: tuple[list[int], list[int]], each: int) -> None:
    assert got[0] == got[1] == list(range(each))
    stats = lwkt.ipiqs.statistics()
    assert stats.count >= 2 * each
    assert stats.doorbells + stats.avoided == stats.count
    assert stats.doorbells < stats.count // 20
    assert stats.fifofull > 0
    assert stats.pending == 0


async def test_two_way_flood(any_driver: Any) -> None:
    """What if two CPUs flood each other: does all arrive in order, many entries behind one bell?"""
    check_flood(any_driver.lwkt, await flood(any_driver, 5_000), 5_000)


@pytest.mark.slow
async def test_two_way_flood_long(any_driver: Any) -> None:
    """What if they send 100,000 each?"""
    check_flood(any_driver.lwkt, await flood(any_driver, 100_000), 100_000)


async def test_sender_parks_while_the_target_is_stopped(any_driver: Any) -> None:
    """What if the target is stopped:

    Does the sender park just over half, others run, order hold?
    """
    lwkt = any_driver.lwkt
    target = lwkt.cpus[1]
    got: list[int] = []
    others = 0
    sent = 0

    async def sender() -> None:
        nonlocal sent
        for number in range(1000):
            await lwkt_send_ipiq(target, lambda n, _: got.append(n), number)
            sent += 1

    async def other() -> None:
        nonlocal others
        for _ in range(10):
            others += 1
            await lwkt_yield()

    target.stop()
    td = any_driver.create(sender, cpu=0)
    any_driver.create(other, cpu=0)
    await any_driver.run()
    assert got == []
    assert others == 10
    assert sent == HIGH_WATER + 1
    assert td.wmesg == "ipiq"
    assert lwkt.ipiqs.statistics().pending == HIGH_WATER + 1
    target.restart()
    await any_driver.run()
    assert got == list(range(1000))
    assert lwkt.ipiqs.statistics().fifofull >= 1000 // (HIGH_WATER + 1)


def test_plain_senders_overflow_in_order_and_are_throttled(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if plain code sends 1,000 to a stopped CPU:

    Is nothing refused, and the thread parked?
    """
    lwkt = new_lwkt(2)
    target = lwkt.cpus[1]
    got: list[int] = []
    log: list[str] = []

    async def sender() -> None:
        for number in range(1000):
            lwkt.send_ipiq_nowait(target, got.append, number)
        log.append("sent")
        await lwkt_yield()
        log.append("went on")

    target.stop()
    td = lwkt.create(sender, cpu=0)
    lwkt.run_until_idle()
    assert log == ["sent"]
    assert td.wmesg == "ipiq"
    assert lwkt.ipiqs.statistics().overflow == 1000 - MAXCPUFIFO
    assert lwkt.ipiqs.statistics().fifofull == 1000 - HIGH_WATER - 1
    target.restart()
    lwkt.run_until_idle()
    assert log == ["sent", "went on"]
    assert got == list(range(1000))


def test_ending_parked_senders_leaves_no_waiter(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if senders are ended while parked on a full ring: does the ring forget them?"""
    lwkt = new_lwkt(2)
    ring = lwkt.ipiqs.rings[0][1]

    async def waiter() -> None:
        while True:
            await lwkt_send_ipiq(lwkt.cpus[1], lambda *_: None)

    async def thrower() -> None:
        for _ in range(300):
            lwkt.send_ipiq_nowait(lwkt.cpus[1], lambda: None)
        await lwkt_yield()

    lwkt.cpus[1].stop()
    lwkt.create(waiter, cpu=0)
    lwkt.create(thrower, cpu=0)
    lwkt.run_until_idle()
    assert len(ring.waiters) == 2
    lwkt.kill_threads()
    assert ring.waiters == []
    lwkt.shutdown_nowait()


def test_nowait_refuses_when_half_full(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if the ring is over half full: does the refusing sender get ENOENT and send nothing?"""
    lwkt = new_lwkt(2)
    results: list[int] = []

    async def sender() -> None:
        results.extend(
            lwkt_send_ipiq_nowait(lwkt.cpus[1], lambda *_: None) for _ in range(MAXCPUFIFO)
        )

    lwkt.cpus[1].stop()
    lwkt.create(sender, cpu=0)
    lwkt.run_until_idle()
    assert results == [0] * (HIGH_WATER + 1) + [ENOENT] * (MAXCPUFIFO - HIGH_WATER - 1)
    lwkt.cpus[1].restart()


def test_own_cpu_runs_at_once_in_a_critical_section(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if a CPU sends to itself: does the function run before the call returns?"""
    lwkt = new_lwkt(2)
    depth: list[int] = []

    async def body() -> None:
        await lwkt_send_ipiq(lwkt.cpus[0], lambda *_: depth.append(_thread.curthread.critcount))
        assert depth == [1]
        await lwkt_send_ipiq_bycpu(0, lambda *_: depth.append(_thread.curthread.critcount))
        lwkt.send_ipiq_nowait(lwkt.cpus[0], depth.append, 9)
        assert depth == [1, 1, 9]
        assert _thread.curthread.critcount == 0

    lwkt.create(body, cpu=0)
    lwkt.run_until_idle()
    assert depth == [1, 1, 9]
    assert lwkt.ipiqs.statistics().count == 0


def test_passive_ipis_wait_for_the_tick() -> None:
    """What if IPIs are sent passively:

    No bell below a quarter, and do they run at the next tick?
    """
    clock = VirtualClock()
    lwkt = Lwkt(2, clock, Ktr(2, clock), MsgBuf())
    got: list[int] = []

    async def sender(first: int, n: int) -> None:
        for number in range(first, first + n):
            lwkt_send_ipiq_passive(lwkt.cpus[1], lambda a, _: got.append(a), number)

    lwkt.create(sender, 0, 10, cpu=0)
    lwkt.run_until_idle()
    assert got == []
    assert lwkt.ipiqs.statistics().doorbells == 0
    clock.advance(NSEC_PER_TICK)
    assert got == list(range(10))
    lwkt.create(sender, 10, LOW_WATER + 5, cpu=0)
    lwkt.run_until_idle()
    assert got == list(range(10 + LOW_WATER + 5))
    stats = lwkt.ipiqs.statistics()
    assert stats.passive == 10 + LOW_WATER
    assert stats.doorbells == 1
    lwkt.shutdown_nowait()


def test_mask_starts_here_and_leaves_stopped_cpus_out(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if a message goes to all CPUs:

    Own one and upwards first, then the lower, none stopped?
    """
    lwkt = new_lwkt(5)
    order: list[int] = []

    async def body() -> None:
        lwkt.cpus[3].stop()
        sent = await lwkt_send_ipiq_mask(
            lwkt.cpus, lambda *_: order.append(_thread.curthread.cpu.cpuid)
        )
        assert sent == 4

    lwkt.create(body, cpu=2)
    lwkt.run_until_idle(choose=lambda cpus: min(cpus, key=lambda c: (c.cpuid < 2, c.cpuid)))
    assert order == [2, 4, 0, 1]
    lwkt.cpus[3].restart()


async def test_wait_ipiq_returns_when_the_function_has_run(any_driver: Any) -> None:
    """What if a thread waits for one entry: has that function, and all before it, returned then?"""
    lwkt = any_driver.lwkt
    got: list[int] = []
    seen: list[list[int]] = []

    async def body() -> None:
        seq = 0
        for number in range(5):
            seq = await lwkt_send_ipiq(lwkt.cpus[1], lambda n, _: got.append(n), number)
        await lwkt_wait_ipiq(lwkt.cpus[1], seq)
        seen.append(list(got))
        await lwkt_synchronize_ipiqs()

    any_driver.create(body, cpu=0)
    await any_driver.run()
    assert seen == [[0, 1, 2, 3, 4]]


def test_wait_ipiq_warns_and_panics() -> None:
    """What if the target never answers: a warning a second, a panic after ten?"""
    clock = VirtualClock()
    lwkt = Lwkt(2, clock, Ktr(2, clock), MsgBuf())
    lwkt.cpus[1].stop()

    async def body() -> None:
        seq = await lwkt_send_ipiq(lwkt.cpus[1], lambda *_: None)
        await lwkt_wait_ipiq(lwkt.cpus[1], seq)

    lwkt.create(body, cpu=0)
    lwkt.cpus[0].run(1)

    def twenty_seconds() -> None:
        for _ in range(40):
            clock.advance(500_000_000)
            lwkt.cpus[0].run(1)

    with pytest.raises(Panic, match="LWKT_WAIT_IPIQ"):
        twenty_seconds()
    assert lwkt.msgbuf.text().count("LWKT_WAIT_IPIQ WARNING! 0 wait 1") == 10
    lwkt.shutdown_nowait()


def test_full_rings_both_ways_in_critical_sections(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if two CPUs fill each other's rings from critical sections: do both drain and go on?"""
    lwkt = new_lwkt(2)
    got: list[list[int]] = [[], []]

    async def sender(to: int) -> None:
        crit_enter()
        for number in range(700):
            await lwkt_send_ipiq(lwkt.cpus[to], lambda n, where: got[where].append(n), number, to)
            if not number % 7:
                await cpu_pause()
        crit_exit()

    lwkt.create(sender, 1, cpu=0)
    lwkt.create(sender, 0, cpu=1)
    lwkt.run_until_idle(rng=random.Random(5))
    assert got == [list(range(700)), list(range(700))]
    assert lwkt.ipiqs.statistics().fifofull > 0


def test_ipi_functions_may_send(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if an IPI function sends IPIs itself, beyond the ring: is the order still exact?"""
    lwkt = new_lwkt(3)
    got: list[int] = []

    def fan(_a: object, _b: object) -> None:
        for number in range(600):
            lwkt.send_ipiq_nowait(lwkt.cpus[2], got.append, number)

    async def body() -> None:
        await lwkt_send_ipiq(lwkt.cpus[1], fan)

    lwkt.create(body, cpu=0)
    lwkt.run_until_idle()
    assert got == list(range(600))


def test_a_thousand_wakeups_need_one_entry(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if one thread wakes a thousand of another CPU:

    One ring entry, each woken once, in order?
    """
    lwkt = new_lwkt(2)
    log: list[int] = []

    async def sleeper(number: int) -> None:
        lwkt_deschedule_self()
        await switch()
        log.append(number)

    sleepers: list[Thread] = [lwkt.create(sleeper, n, cpu=1) for n in range(1000)]
    lwkt.run_until_idle()
    before = lwkt.ipiqs.statistics().count

    async def waker() -> None:
        for td in sleepers:
            lwkt.schedule(td)
            lwkt.schedule(td)
            assert td.flags & TDF.WAKEREQ

    lwkt.create(waker, cpu=0)
    lwkt.run_until_idle()
    assert log == list(range(1000))
    assert lwkt.ipiqs.statistics().count - before == 1


def test_counters_agree_with_an_outside_observer(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if the trace is counted: does it agree with sent, received and bells?"""
    lwkt = new_lwkt(3)
    lwkt.ipiqs.ktr.mask = -1
    ran = 0

    def func(_a: object, _b: object) -> None:
        nonlocal ran
        ran += 1

    async def body(to: int) -> None:
        for number in range(50):
            await lwkt_send_ipiq(lwkt.cpus[to], func)
            lwkt_send_ipiq_passive(lwkt.cpus[(to + 1) % 3], func)
            if not number % 9:
                await lwkt_yield()

    lwkt.create(body, 1, cpu=0)
    lwkt.create(body, 2, cpu=1)
    lwkt.run_until_idle(rng=random.Random(3))
    lwkt.clock.advance(NSEC_PER_TICK)  # type: ignore[attr-defined]
    lwkt.run_until_idle()
    stats = lwkt.ipiqs.statistics()
    points = {info.name: point.count for info, point in lwkt.ipiqs.ktr.points.items()}
    creations = 1
    own = ran + creations - stats.count
    assert points["send_norm"] + points["send_pasv"] == stats.count
    assert points["receive"] == stats.count == ran + creations - own
    assert points["cpu_send"] == stats.doorbells
    assert points["send_pasv"] == stats.passive
    assert stats.avoided == stats.count - stats.doorbells - stats.passive
    assert stats.pending == 0


async def test_kernel_goes_on_after_a_failing_ipi(new_host: Any) -> None:
    """What if an IPI function raises: is it reported with its name, and do the next ones run?"""
    failures: list[str] = []
    got: list[int] = []

    def on_failure(where: str, exc: BaseException) -> None:
        failures.append(f"{where}: {exc}")

    def bad(_a: object, _b: object) -> None:
        raise ValueError("no")

    async with new_host(on_failure=on_failure) as lwkt:

        async def body() -> None:
            await lwkt_send_ipiq(lwkt.cpus[1], bad)
            await lwkt_send_ipiq(lwkt.cpus[1], lambda *_: got.append(1))

        lwkt.create(body, cpu=0)
        await trio.testing.wait_all_tasks_blocked()
    assert got == [1]
    assert len(failures) == 1
    assert "bad" in failures[0]
