"""tsleep and wakeup: nothing lost, nothing early, nothing left behind."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import trio

from dfuser.hw.clock import HostClock
from dfuser.libkern.errno import EINTR, ERESTART, EWOULDBLOCK, Panic
from dfuser.libkern.param import (
    HZ,
    PCATCH,
    PDOMAIN_UMTX,
    PDOMAIN_XLOCK,
    PINTERLOCKED,
)
from dfuser.lwkt import thread as thread_mod
from dfuser.lwkt.lockmgr import LK_EXCLUSIVE, Lock
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.mtx import Mtx
from dfuser.lwkt.sched import Cpu
from dfuser.lwkt.serialize import LwktSerialize
from dfuser.lwkt.sleepq import synch_of
from dfuser.lwkt.spinlock import Spinlock
from dfuser.lwkt.synch import (
    abort_sleep,
    lksleep,
    mtxsleep,
    ssleep,
    tsleep,
    tsleep_interlock,
    tsleep_remove,
    wakeup,
    wakeup_domain,
    wakeup_domain_one,
    wakeup_end_delayed,
    wakeup_mycpu,
    wakeup_oncpu,
    wakeup_one,
    wakeup_start_delayed,
    zsleep,
)
from dfuser.lwkt.thread import TDF, cpu_pause, crit_enter, crit_exit

from .conftest import Driver, make_lwkt
from .vtime import run_all, run_ticks


def nothing_left(lwkt: Lwkt) -> bool:
    """Whether no sleep queue, mask or flag of a past sleep exists."""
    synch = synch_of(lwkt)
    return (
        not any(synch.queues)
        and not synch.masks
        and not any(td.flags & (TDF.TSLEEPQ | TDF.SINTR) for td in lwkt.threads.values())
    )


# --- ways a sleep ends -----------------------------------------------------------------------


async def test_wakeup_wakes_everyone_on_the_ident(any_driver: Driver) -> None:
    """What if sleepers of one ident live on several CPUs, beside sleepers of another?"""
    lwkt = any_driver.lwkt
    woken: list[int] = []
    target, other = object(), object()

    async def sleeper(n: int, ident: object) -> None:
        assert await tsleep(ident, 0, "test") == 0
        woken.append(n)

    for n in range(8):
        any_driver.create(sleeper, n, target, cpu=n % 4)
    bystander = any_driver.create(sleeper, 99, other, cpu=1)
    await any_driver.run()
    assert synch_of(lwkt).statistics().sleepers == 9
    assert bystander.wmesg == "test"
    assert bystander.wchan is other

    async def waker() -> None:
        wakeup(target)

    any_driver.create(waker, cpu=0)
    await any_driver.run()
    assert sorted(woken) == list(range(8))

    async def waker2() -> None:
        wakeup(other)

    any_driver.create(waker2, cpu=3)
    await any_driver.run()
    assert woken[-1] == 99
    assert nothing_left(lwkt)


def test_values_and_identities(lwkt: Lwkt) -> None:
    """What if equal ints, strings or tuples are different objects, or equal objects differ?"""
    woken: list[Any] = []
    one, two = [1], [1]

    async def sleeper(ident: Any, name: Any) -> None:
        await tsleep(ident, 0, "test")
        woken.append(name)

    names = {"int": 10**9, "str": "a" * 40, "tuple": (one, "x"), "one": one, "two": two}
    for name, ident in names.items():
        lwkt.create(sleeper, ident, name, cpu=0)
    lwkt.run_until_idle()

    async def wake(ident: Any) -> None:
        wakeup(ident)

    for ident in (int("1000000000"), "".join(["a"] * 40), (one, "x"), two):
        lwkt.create(wake, ident, cpu=1)
        lwkt.run_until_idle()
    assert woken == ["int", "str", "tuple", "two"]
    lwkt.create(wake, one, cpu=0)
    lwkt.run_until_idle()
    assert woken[-1] == "one"


@pytest.mark.parametrize("ticks", [1, 2, 7, 1023, 1024, 1025, 5000])
def test_timeout_is_never_early(lwkt: Lwkt, ticks: int) -> None:
    """What if the sleep is shorter, as long as, or longer than one turn of the callwheel?"""
    ended: list[tuple[int, int]] = []

    async def sleeper() -> None:
        start = lwkt.ticks
        error = await tsleep("never", 0, "test", ticks)
        ended.append((error, lwkt.ticks - start))

    lwkt.create(sleeper, cpu=2)
    run_ticks(lwkt, ticks - 1)
    assert ended == []
    run_ticks(lwkt, 1)
    assert ended == [(EWOULDBLOCK, ticks)]
    assert nothing_left(lwkt)


def test_wakeup_beats_the_timeout_of_the_same_instant(lwkt: Lwkt) -> None:
    """What if the timeout fires between the wakeup and the sleeper's resumption?"""
    results: list[int] = []

    async def sleeper() -> None:
        results.append(await tsleep("x", 0, "test", 5))
        # A stale timer must not end the next sleep on the same identifier either.
        results.append(await tsleep("x", 0, "test", 20))
        results.append(lwkt.ticks)

    td = lwkt.create(sleeper, cpu=0)
    lwkt.run_until_idle()
    cpu = lwkt.cpus[0]
    cpu.interrupt(wakeup, "x")
    assert td.flags & TDF.RUNQ
    run_ticks(lwkt, 40)
    assert results == [0, EWOULDBLOCK, 20]

    results.clear()
    td = lwkt.create(sleeper, cpu=0)
    lwkt.run_until_idle()
    start = lwkt.ticks
    # The clock passes the deadline while the sleeper is runnable but has not run.
    cpu.interrupt(wakeup, "x")
    lwkt.clock.advance(10 * 10_000_000)  # type: ignore[attr-defined]
    run_ticks(lwkt, 60)
    assert results[:2] == [0, EWOULDBLOCK]
    assert results[2] >= start + 30
    assert synch_of(lwkt).statistics().timeouts == 2
    assert nothing_left(lwkt)


def test_interlock_remembers_a_wakeup(lwkt: Lwkt) -> None:
    """What if the wakeup comes between the interlock and the sleep?"""
    seen: list[Any] = []

    async def sleeper() -> None:
        tsleep_interlock("a", 0)
        wakeup("a")
        seen.append(await tsleep("a", PINTERLOCKED, "test"))
        tsleep_interlock("a", 0)
        tsleep_interlock("b", 0)
        wakeup("a")
        assert thread_mod.curthread.flags & TDF.TSLEEPQ
        wakeup("b")
        seen.append(await tsleep("b", PINTERLOCKED, "test"))
        tsleep_interlock("a", 0)
        seen.append(await tsleep("b", PINTERLOCKED, "other"))
        tsleep_interlock("a", 0)
        seen.append(await tsleep("a", PINTERLOCKED | PDOMAIN_UMTX, "domain"))

    lwkt.create(sleeper, cpu=0)
    lwkt.run_until_idle()
    assert seen == [0, 0, 0, 0]
    assert synch_of(lwkt).statistics().ilockfail == 4
    assert nothing_left(lwkt)


def test_domains_do_not_mix(lwkt: Lwkt) -> None:
    """What if the same ident is slept on in several domains?"""
    woken: list[int] = []

    async def sleeper(domain: int) -> None:
        await tsleep("d", domain, "test")
        woken.append(domain)

    async def call(fn: Any, *args: Any) -> None:
        fn(*args)

    for domain in (0, PDOMAIN_UMTX, PDOMAIN_XLOCK, PDOMAIN_XLOCK):
        lwkt.create(sleeper, domain, cpu=1)
    lwkt.run_until_idle()
    lwkt.create(call, wakeup_domain, "d", PDOMAIN_UMTX, cpu=0)
    lwkt.run_until_idle()
    assert woken == [PDOMAIN_UMTX]
    lwkt.create(call, wakeup_domain_one, "d", PDOMAIN_XLOCK, cpu=0)
    lwkt.run_until_idle()
    assert woken == [PDOMAIN_UMTX, PDOMAIN_XLOCK]
    lwkt.create(call, wakeup, "d", cpu=0)
    lwkt.run_until_idle()
    assert woken[2:] == [0]
    lwkt.create(call, wakeup_domain, "d", PDOMAIN_XLOCK, cpu=1)
    lwkt.run_until_idle()
    assert nothing_left(lwkt)


# --- signals ---------------------------------------------------------------------------------


async def test_abort_ends_only_interruptible_sleeps(any_driver: Driver) -> None:
    """What if a signal comes for sleepers with and without PCATCH, local and remote?"""
    lwkt = any_driver.lwkt
    ended: dict[str, int] = {}

    async def sleeper(name: str, flags: int) -> None:
        ended[name] = await tsleep("s", flags, "test")

    catch = any_driver.create(sleeper, "catch", PCATCH, cpu=2)
    plain = any_driver.create(sleeper, "plain", 0, cpu=2)
    await any_driver.run()
    assert catch.state == "I"
    assert plain.state == "S"

    async def killer() -> None:
        assert abort_sleep(catch, ERESTART)
        assert not abort_sleep(plain, EINTR)

    any_driver.create(killer, cpu=0)
    await any_driver.run()
    assert ended == {"catch": ERESTART}
    lwkt.cpus[1].interrupt(wakeup, "s")
    await any_driver.run()
    assert ended["plain"] == 0
    assert nothing_left(lwkt)


def test_abort_arrives_after_the_wakeup(lwkt: Lwkt) -> None:
    """What if the sleep has ended, or another has begun, before the abort is served?"""
    results: list[int] = []

    async def sleeper() -> None:
        results.append(await tsleep("s", PCATCH, "test"))
        results.append(await tsleep("s", PCATCH, "test", 10))

    td = lwkt.create(sleeper, cpu=1)
    lwkt.run_until_idle()

    async def race() -> None:
        assert abort_sleep(td, EINTR)

    lwkt.create(race, cpu=0)
    lwkt.cpus[0].run(1)  # the abort is in the ring, not served
    lwkt.cpus[1].interrupt(wakeup, "s")
    run_ticks(lwkt, 20)
    assert results == [0, EWOULDBLOCK]
    assert nothing_left(lwkt)


def test_pending_signal_refuses_the_sleep(lwkt: Lwkt) -> None:
    """What if the signal is pending before the sleep begins?"""
    synch = synch_of(lwkt)
    pending = [EINTR]
    synch.cursig = lambda td: pending[0]
    results: list[int] = []

    async def sleeper() -> None:
        thread_mod.curthread.lwp = object()
        results.append(await tsleep("s", PCATCH, "test", 5))
        results.append(await tsleep("s", 0, "test", 5))
        pending[0] = 0
        results.append(await tsleep("s", PCATCH, "test", 5))

    lwkt.create(sleeper, cpu=0)
    run_ticks(lwkt, 20)
    assert results == [EINTR, EWOULDBLOCK, EWOULDBLOCK]
    assert synch.statistics().interrupted == 1
    assert nothing_left(lwkt)


def test_mistaken_schedule_does_not_end_a_sleep(lwkt: Lwkt) -> None:
    """What if somebody schedules a sleeping thread that nobody has woken?"""
    results: list[tuple[int, int]] = []

    async def sleeper() -> None:
        results.append((await tsleep("s", 0, "test", 30), lwkt.ticks))

    td = lwkt.create(sleeper, cpu=0)
    lwkt.run_until_idle()
    for _ in range(3):
        lwkt.schedule(td)
        lwkt.run_until_idle()
    assert results == []
    run_ticks(lwkt, 40)
    assert results == [(EWOULDBLOCK, 30)]
    assert synch_of(lwkt).statistics().spurious == 3


# --- one, some, elsewhere --------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_wakeup_one_wakes_exactly_one(lwkt: Lwkt, seed: int) -> None:
    """What if many wakeup_one race from all CPUs for sleepers that come and go on all CPUs?"""
    rng = random.Random(seed)
    woken = timed_out = 0

    async def sleeper() -> None:
        nonlocal woken, timed_out
        if await tsleep("one", 0, "test", rng.choice((0, 0, 1, 3))):
            timed_out += 1
        else:
            woken += 1

    async def waker(times: int) -> None:
        for _ in range(times):
            wakeup_one("one")
            if rng.random() < 0.5:
                await cpu_pause()

    sleepers = wakes = 0
    for _ in range(60):
        for _ in range(rng.randrange(4)):
            lwkt.create(sleeper, cpu=rng.randrange(4))
            sleepers += 1
        lwkt.run_until_idle(rng=rng)
        before = synch_of(lwkt).statistics().sleepers
        times = rng.randrange(4)
        was = woken
        lwkt.create(waker, times, cpu=rng.randrange(4))
        lwkt.run_until_idle(rng=rng)
        wakes += times
        assert woken - was == min(times, before)
        run_ticks(lwkt, rng.randrange(3), rng)
    left = synch_of(lwkt).statistics().sleepers
    assert woken + timed_out + left == sleepers


def test_wakeup_one_is_passed_on(lwkt: Lwkt) -> None:
    """What if the sleeper that wakeup_one was sent to times out before the request arrives?"""
    ended: list[tuple[str, int]] = []

    async def sleeper(name: str, timo: int) -> None:
        ended.append((name, await tsleep("one", 0, "test", timo)))

    lwkt.create(sleeper, "short", 1, cpu=3)
    lwkt.create(sleeper, "long", 0, cpu=1)
    lwkt.run_until_idle()

    async def waker() -> None:
        wakeup_one("one")

    lwkt.create(waker, cpu=0)
    lwkt.cpus[0].run(1)
    synch_of(lwkt)._endtsleep(*_sleep_of(lwkt, 3))
    lwkt.run_until_idle()
    assert sorted(ended) == [("long", 0), ("short", EWOULDBLOCK)]
    assert synch_of(lwkt).statistics().forwarded == 1


def _sleep_of(lwkt: Lwkt, cpuid: int) -> tuple[Any, Any]:
    (queue,) = synch_of(lwkt).queues[cpuid].values()
    (td,) = queue
    return td, td.sleepq_entry


def test_wakeup_sends_the_ipis_the_mask_says(lwkt: Lwkt) -> None:
    """What if sleepers are on three CPUs: is exactly one request sent to each?"""
    ident = object()

    async def sleeper() -> None:
        await tsleep(ident, 0, "test")

    async def other() -> None:
        await tsleep("else", 0, "test")

    for cpu in (0, 1, 1, 1, 3):
        lwkt.create(sleeper, cpu=cpu)
    lwkt.create(other, cpu=2)
    lwkt.run_until_idle()
    sent: list[int] = []
    post = lwkt.send_ipiq_nowait

    def spy(target: Cpu, *args: Any) -> None:
        sent.append(target.cpuid)
        post(target, *args)

    lwkt.send_ipiq_nowait = spy  # type: ignore[method-assign]

    async def waker() -> None:
        wakeup(ident)

    lwkt.create(waker, cpu=0)
    lwkt.run_until_idle()
    assert sorted(sent) == [1, 3]
    assert synch_of(lwkt).statistics().ipis == 2
    assert synch_of(lwkt).statistics().sleepers == 1
    lwkt.create(waker, cpu=0)
    lwkt.run_until_idle()
    assert len(sent) == 2


def test_mycpu_and_oncpu(lwkt: Lwkt) -> None:
    """What if only the sleepers of one CPU shall be woken?"""
    woken: list[int] = []

    async def sleeper(cpu: int) -> None:
        await tsleep("m", 0, "test")
        woken.append(cpu)

    async def call(fn: Any, *args: Any) -> None:
        fn(*args)

    for cpu in (0, 0, 1, 2, 2):
        lwkt.create(sleeper, cpu, cpu=cpu)
    lwkt.run_until_idle()
    lwkt.create(call, wakeup_mycpu, "m", cpu=0)
    lwkt.run_until_idle()
    assert woken == [0, 0]
    lwkt.create(call, wakeup_oncpu, lwkt.cpus[2], "m", True, cpu=0)
    lwkt.run_until_idle()
    assert woken == [0, 0, 2]
    lwkt.create(call, wakeup_oncpu, lwkt.cpus[1], "m", cpu=1)
    lwkt.run_until_idle()
    assert woken == [0, 0, 2, 1]


def test_delayed_wakeups(lwkt: Lwkt) -> None:
    """What if a thread holds its wakeups back, and more than two of them, and then sleeps?"""
    woken: list[int] = []

    async def sleeper(n: int) -> None:
        await tsleep(n, 0, "test")
        woken.append(n)

    async def waker() -> None:
        wakeup_start_delayed()
        for n in (1, 2, 1, 3):
            wakeup(n)
        await thread_mod.lwkt_yield()
        assert woken == [3]
        wakeup_end_delayed()
        await thread_mod.lwkt_yield()
        assert woken == [3, 1, 2]
        wakeup_start_delayed()
        wakeup(4)
        assert await tsleep("until 4 has run", 0, "test") == 0

    async def four() -> None:
        await tsleep(4, 0, "test")
        woken.append(4)
        wakeup("until 4 has run")

    for n in (1, 2, 3):
        lwkt.create(sleeper, n, cpu=0)
    lwkt.create(four, cpu=0)
    lwkt.run_until_idle()
    lwkt.create(waker, cpu=0)
    lwkt.run_until_idle()
    assert woken == [3, 1, 2, 4]
    assert not synch_of(lwkt).delayed
    assert nothing_left(lwkt)


def test_lbolt_comes_once_a_second(lwkt: Lwkt) -> None:
    """What if threads wait for lbolt: does it come on the second, and cost nothing otherwise?"""
    at: list[int] = []

    async def sleeper() -> None:
        for _ in range(3):
            await tsleep(synch_of(lwkt).lbolt, 0, "lbolt")
            at.append(lwkt.ticks)

    run_ticks(lwkt, 130)
    lwkt.create(sleeper, cpu=1)
    lwkt.create(sleeper, cpu=2)
    run_all(lwkt)
    assert at == [200, 200, 300, 300, 400, 400]
    assert lwkt.ticks == 4 * HZ


async def test_an_adopted_request_sleeps_and_is_cancelled() -> None:
    """What if a trio task that became a thread sleeps, is woken, and another's sleep is aborted?"""
    lwkt = make_lwkt(clock=HostClock(), default_driver="task")
    results: dict[str, int] = {}

    async def request(name: str) -> int:
        return await tsleep(name, PCATCH, "fuse", 0)

    async def adopt(name: str, cpu: int) -> None:
        results[name] = await lwkt.adopt(request, name, name=name, cpu=cpu)

    async with trio.open_nursery() as loops:
        await lwkt.start(loops)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(adopt, "woken", 1)
            nursery.start_soon(adopt, "aborted", 2)
            await Driver("task", lwkt).run()
            sleeping = {td.name: td for td in lwkt.threads.values()}
            assert sleeping["woken"].wmesg == sleeping["aborted"].wmesg == "fuse"
            assert abort_sleep(sleeping["aborted"], EINTR), "host code may abort"
            lwkt.cpus[0].interrupt(wakeup, "woken")
        assert results == {"woken": 0, "aborted": EINTR}
        assert nothing_left(lwkt)
        await lwkt.shutdown()
        loops.cancel_scope.cancel()


# --- sleeping with a lock --------------------------------------------------------------------


async def test_locked_sleeps_lose_nothing(any_driver: Driver) -> None:
    """What if the waker takes the lock the moment the sleeper lets go of it?"""
    lwkt = any_driver.lwkt
    lock, mtx, slz = Lock("lk"), Mtx("mtx"), LwktSerialize("slz")
    done: list[str] = []

    async def sleeper(name: str, lk: Any, fn: Any, take: Any, give: Any) -> None:
        await take()
        assert await fn(name, lk, 0, "test", 0) == 0
        done.append(name)
        give()

    async def waker(name: str, take: Any, give: Any) -> None:
        await take()
        wakeup(name)
        give()

    kinds = [
        ("lk", lock, lksleep, lock.acquire, lock.release),
        ("mtx", mtx, mtxsleep, mtx.acquire, mtx.release),
        ("slz", slz, zsleep, slz.enter, slz.exit),
    ]
    for name, lk, fn, take, give in kinds:
        any_driver.create(sleeper, name, lk, fn, take, give, cpu=1)
        any_driver.create(waker, name, take, give, cpu=1)
    spin = Spinlock("spin")

    async def spinner() -> None:
        spin.spin_lock()
        assert await ssleep("spin", spin, 0, "test") == 0
        assert spin.spin_held()
        done.append("spin")
        spin.spin_unlock()

    async def spin_waker() -> None:
        await spin.spin_lock_wait()
        wakeup("spin")
        spin.spin_unlock()

    any_driver.create(spinner, cpu=2)
    any_driver.create(spin_waker, cpu=2)
    await any_driver.run()
    assert sorted(done) == ["lk", "mtx", "slz", "spin"]
    assert not lock.lockinuse()
    assert not mtx.islocked()
    assert nothing_left(lwkt)


# --- where sleeping is not allowed -----------------------------------------------------------


def test_before_and_after() -> None:
    """What if tsleep is called with no thread, and what after a panic?"""
    lwkt = make_lwkt(1)
    coro = tsleep("x", 0, "test")
    with pytest.raises(StopIteration) as stop:
        coro.send(None)
    assert stop.value.value == 0
    lwkt.panicked = Panic("test")
    results: list[int] = []

    async def sleeper() -> None:
        tsleep_interlock("x", 0)
        results.append(await tsleep("x", PINTERLOCKED, "test"))

    lwkt.create(sleeper, cpu=0)
    lwkt.cpus[0].run(3)
    lwkt.panicked = None
    lwkt.run_until_idle()
    assert results == [0]
    assert nothing_left(lwkt)
    lwkt.shutdown_nowait()


def test_sleeping_in_a_critical_section_panics() -> None:
    """What if a thread sleeps in a critical section?"""
    lwkt = make_lwkt(1)
    caught: list[str] = []

    async def sleeper() -> None:
        crit_enter()
        try:
            await tsleep("x", 0, "test", 10)
        except Panic as exc:
            caught.append(str(exc))
        crit_exit()

    lwkt.create(sleeper, cpu=0)
    lwkt.run_until_idle()
    assert len(caught) == 1
    assert "critical section" in caught[0]
    assert nothing_left(lwkt)
    lwkt.shutdown_nowait()


def test_a_killed_sleeper_leaves_nothing(lwkt: Lwkt) -> None:
    """What if threads are ended while they sleep, with and without timeout, holding a lock?"""
    lock = Lock("lk")

    async def sleeper(timo: int) -> None:
        await tsleep("k", 0, "test", timo)

    async def locker() -> None:
        await lock.lockmgr(LK_EXCLUSIVE)

    lock.lock_nowait(LK_EXCLUSIVE)
    for n in range(4):
        lwkt.create(sleeper, n * 10, cpu=n)
        lwkt.create(locker, cpu=n)
    lwkt.run_until_idle()
    assert synch_of(lwkt).statistics().sleepers == 8
    lwkt.shutdown_nowait()
    assert nothing_left(lwkt)
    assert lock.statistics().waiters == 0
    assert lwkt.clock.next_deadline() is None  # type: ignore[attr-defined]


# --- every interleaving ----------------------------------------------------------------------


class Choices:
    """Enumerates every sequence of decisions: the next run differs in the last open one."""

    def __init__(self) -> None:
        self.prefix: list[int] = []
        self.taken: list[tuple[int, int]] = []

    def pick(self, n: int) -> int:
        """Decide between ``n`` ways."""
        at = len(self.taken)
        choice = self.prefix[at] if at < len(self.prefix) else 0
        self.taken.append((choice, n))
        return choice

    def next(self) -> bool:
        """Prepare the next sequence; False when all were made."""
        while self.taken:
            choice, n = self.taken.pop()
            if choice + 1 < n:
                self.prefix = [c for c, _ in self.taken] + [choice + 1]
                self.taken = []
                return True
        return False


#: What the producer makes in each schedule; 3 give 7,793 different schedules.
ITEMS = 3


def _interleave(interlock: bool) -> tuple[int, int]:
    """Run producer and consumer in every order of steps; returns (schedules, hangs)."""
    choices = Choices()
    schedules = hangs = 0
    while True:
        lwkt = make_lwkt(2)
        state = {"ready": 0, "taken": 0}

        async def consumer(state: dict[str, int] = state) -> None:
            while state["taken"] < ITEMS:
                if interlock:
                    tsleep_interlock("cond", 0)
                await cpu_pause()
                if state["ready"] > state["taken"]:
                    state["taken"] += 1
                    continue
                await cpu_pause()
                await tsleep("cond", PINTERLOCKED if interlock else 0, "cond")
                await cpu_pause()
            tsleep_remove(thread_mod.curthread)

        async def producer(state: dict[str, int] = state) -> None:
            for _ in range(ITEMS):
                state["ready"] += 1
                await cpu_pause()
                wakeup("cond")
                await cpu_pause()

        lwkt.create(consumer, cpu=0)
        lwkt.create(producer, cpu=1)
        lwkt.run_until_idle(choose=lambda ready: ready[choices.pick(len(ready))])
        schedules += 1
        hangs += state["taken"] != ITEMS
        lwkt.shutdown_nowait()
        if interlock:
            assert nothing_left(lwkt)
        if not choices.next():
            return schedules, hangs


def test_every_interleaving_of_two_threads() -> None:
    """What if producer and consumer, on two CPUs, meet in any order of steps?"""
    schedules, hangs = _interleave(interlock=True)
    assert schedules > 5000
    assert hangs == 0


def test_the_interleavings_find_a_missing_interlock() -> None:
    """What if the interlock is left out: does the enumeration notice the lost wakeup?"""
    _, hangs = _interleave(interlock=False)
    assert hangs > 0


@pytest.mark.parametrize("seed", range(10))
def test_interlock_torture(lwkt: Lwkt, seed: int) -> None:
    """What if many producers and consumers on four CPUs are scheduled at random?"""
    _torture(lwkt, random.Random(seed), 200)


@pytest.mark.slow
def test_interlock_torture_at_length(lwkt: Lwkt) -> None:
    """What if they go on for 300,000 items?"""
    _torture(lwkt, random.Random(2020), 300_000)


def _torture(lwkt: Lwkt, rng: random.Random, total: int) -> None:
    counter = itertools.count()
    queue: list[int] = []
    got: list[int] = []

    async def consumer() -> None:
        while len(got) < total:
            tsleep_interlock(queue, 0)
            if rng.random() < 0.3:
                await cpu_pause()
            if queue:
                got.append(queue.pop())
                if len(got) == total:
                    wakeup(queue)
                continue
            await tsleep(queue, PINTERLOCKED, "torture")

    async def producer() -> None:
        while (n := next(counter)) < total:
            queue.append(n)
            if rng.random() < 0.3:
                await cpu_pause()
            (wakeup if rng.random() < 0.2 else wakeup_one)(queue)
            if rng.random() < 0.5:
                await thread_mod.lwkt_yield()

    for cpu in range(4):
        lwkt.create(consumer, cpu=cpu)
        lwkt.create(consumer, cpu=cpu)
        lwkt.create(producer, cpu=cpu)
    lwkt.run_until_idle(rng=rng, max_steps=100 * total + 10_000)
    assert sorted(got) == list(range(total))
    stats = synch_of(lwkt).statistics()
    assert stats.sleepers == 0
    assert stats.woken <= stats.sleeps + stats.ilockfail + total * 2


def test_sleeps_are_traced(lwkt: Lwkt) -> None:
    """What if the trace points of tsleep are on: can the sleep be read from the trace?"""
    lwkt.ktr.master("tsleep").mask = -1

    async def sleeper() -> None:
        await tsleep("traced", 0, "mesg", 3)
        tsleep_interlock("traced", 0)
        wakeup("traced")
        await tsleep("traced", PINTERLOCKED, "mesg")

    lwkt.create(sleeper, name="dozer", cpu=1)
    run_all(lwkt)
    text = [line.split("tsleep", 1)[1] for line in lwkt.ktr.lines(10)]
    assert len(text) == 5
    for line, words in zip(
        text,
        (
            ("tsleep_beg", "dozer mesg on traced"),
            ("tsleep_end", f"dozer error {EWOULDBLOCK}"),
            ("wakeup_beg", "traced"),
            ("wakeup_end", "traced"),
            ("ilockfail", "dozer traced"),
        ),
        strict=True,
    ):
        assert all(word in line for word in words), line


def test_statistics_agree_with_an_observer(lwkt: Lwkt) -> None:
    """What if somebody outside counts the sleeps and wakeups?"""
    rng = random.Random(7)
    slept = woken = timeouts = 0

    async def sleeper() -> None:
        nonlocal slept, woken, timeouts
        for _ in range(20):
            slept += 1
            if await tsleep(rng.randrange(4), 0, "stat", 1 + rng.randrange(3)):
                timeouts += 1
            else:
                woken += 1

    calls = 0

    async def waker() -> None:
        nonlocal calls
        for _ in range(50):
            calls += 1
            wakeup(rng.randrange(4))
            await tsleep("waker", 0, "stat", 1)

    for cpu in range(4):
        lwkt.create(sleeper, cpu=cpu)
    lwkt.create(waker, cpu=1)
    run_all(lwkt, rng)
    stats = synch_of(lwkt).statistics()
    assert stats.sleeps == slept + calls
    assert stats.woken == woken
    assert stats.timeouts == timeouts + calls
    assert stats.wakeups == calls
    assert stats.sleepers == stats.idents == 0
