"""Every counter of a primitive, counted once more by somebody outside during a random run.

Each test runs on both thread drivers: as coroutines in the order of the seed, and as trio tasks in
whatever order trio wakes them. Time is virtual on both, so that it passes only where a test says.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable
from typing import Any

import pytest

from dfuser.libkern.errno import EWOULDBLOCK
from dfuser.libkern.param import NSEC_PER_TICK
from dfuser.lwkt import serialize as serialize_mod
from dfuser.lwkt import thread as _thread
from dfuser.lwkt.callout import Callout, CallWheel, callout_statistics, callwheel
from dfuser.lwkt.condvar import Cv
from dfuser.lwkt.cpusync import Cpusync
from dfuser.lwkt.serialize import LwktSerialize
from dfuser.lwkt.synch import tsleep
from dfuser.lwkt.taskqueue import Task, TaskQueue, TimeoutTask
from dfuser.lwkt.thread import cpu_pause, lwkt_yield
from dfuser.lwkt.token import Token
from dfuser.lwkt.wait import LwktWait, lwkt_block, lwkt_signal

from .observe import SEEDS, noted, sleepers_on
from .vtime import TimedDriver, clock_of


@SEEDS
async def test_cv(timed: TimedDriver, rng: random.Random) -> None:
    """What if waits, time limits, signals and broadcasts mix: waiters, waits and both kinds?"""
    lwkt = timed.lwkt
    lwkt.ktr.master("condvar").mask = -1
    cv = Cv("cvobs")
    did: Counter[str] = Counter()

    async def waiter() -> None:
        for _ in range(40):
            for _ in range(rng.randrange(3)):
                await cpu_pause()
            did["waits"] += 1
            if rng.random() < 0.4:
                did["timeouts"] += await cv.timedwait(None, rng.randrange(1, 5)) == EWOULDBLOCK
            else:
                await cv.wait(None)
            did["returned"] += 1

    async def waker() -> None:
        for _ in range(rng.randrange(5)):
            broadcast = rng.random() < 0.3
            did["broadcasts" if broadcast else "signals"] += 1
            (cv.broadcast if broadcast else cv.signal)()
            await cpu_pause()

    for n in range(8):
        timed.create(waiter, cpu=n % 4)
    for number in range(40):
        quiet = number % 3 == 2  # nobody wakes: every limit passes
        for _ in range(0 if quiet else 3):
            timed.create(waker, cpu=rng.randrange(4))
        await timed.ticks(5 if quiet else rng.randrange(2))
        stats = cv.statistics()
        assert stats.waiters == sleepers_on(lwkt, "cvobs") == did["waits"] - did["returned"]
        assert (stats.waits, stats.signals) == (did["waits"], did["signals"])
        assert stats.broadcasts == did["broadcasts"]
    trace = noted(lwkt, "condvar")
    assert trace == {"wait": did["returned"], "signal": did["signals"] + did["broadcasts"]}
    assert min(did["timeouts"], did["signals"], did["broadcasts"]) > 0


@SEEDS
async def test_serializer(
    timed: TimedDriver, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What if threads, tries, calls and a switched-off handler mix: all six counters?"""
    lwkt = timed.lwkt
    slz = LwktSerialize()
    lwkt.ktr.master("slz").mask = -1
    did: Counter[str] = Counter()

    async def sleep(*args: Any) -> int:
        did["sleeps"] += 1
        return await tsleep(*args)

    monkeypatch.setattr(serialize_mod, "tsleep", sleep)

    def handler() -> None:
        did["calls"] += 1

    def interrupt() -> None:
        if rng.random() < 0.4:
            refused = slz.handler_try(handler)
            did["tryfails"] += refused
            did["tried"] += not refused
        else:
            did["asked"] += 1
            did["kept"] += slz.held and not slz.disabled
            slz.handler_call(handler)

    async def upper(who: int) -> None:
        for _ in range(25):
            how = rng.randrange(3)
            if how == 0 and not slz.try_enter():
                did["tryfails"] += 1
                await lwkt_yield()
                continue
            if how:
                await (slz.enter() if how == 1 else slz.adaptive_enter())
            did["enters"] += 1
            for _ in range(rng.choice((0, 2, 40))):
                await cpu_pause()
                if rng.random() < 0.2:
                    lwkt.cpus[who % 4].interrupt(interrupt)
            (slz.handler_disable if rng.random() < 0.3 else slz.handler_enable)()
            slz.exit()
            lwkt.cpus[who % 4].interrupt(interrupt)

    for who in range(6):
        timed.create(upper, who, cpu=who % 4)
    await timed.idle()
    stats = slz.statistics()
    did["dropped"] = did["asked"] + did["tried"] - did["calls"]
    for counter in ("enters", "sleeps", "tryfails", "calls", "kept", "dropped"):
        assert getattr(stats, counter) == did[counter] > 0, counter
    trace = noted(lwkt, "slz")
    assert (trace["enter_end"], trace["sleep_beg"]) == (did["enters"], did["sleeps"])
    assert trace["tryfail"] == did["tryfails"]


@SEEDS
async def test_callout_wheel(
    timed: TimedDriver, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What if callouts are armed, moved, stopped and come late: every counter of every wheel?"""
    lwkt = timed.lwkt
    did: Counter[tuple[int, str]] = Counter()
    armed: dict[Callout, tuple[int, int]] = {}
    softtick = CallWheel.softtick

    def alarm(wheel: CallWheel) -> None:
        did[wheel.cpu.cpuid, "alarms"] += 1
        softtick(wheel)

    def fire(number: int) -> None:
        cpu, due = armed.pop(callouts[number])
        assert _thread.curthread.cpu.cpuid == cpu
        late = lwkt.ticks - due
        did[cpu, "fired"] += 1
        did[cpu, "late"] += late > 0
        did[cpu, "late_ticks"] += late
        did[cpu, "max_late"] = max(did[cpu, "max_late"], late)

    monkeypatch.setattr(CallWheel, "softtick", alarm)
    callouts = [Callout(fire, number) for number in range(30)]
    for _ in range(400):
        c = rng.choice(callouts)
        if rng.random() < 0.7:
            cpu, ticks = rng.randrange(4), rng.choice((0, 1, 2, 5, 30, 3000))
            c.reset_bycpu(ticks, lwkt.cpus[cpu])
            armed[c] = (cpu, lwkt.ticks + max(ticks, 1))
            did[cpu, "resets"] += 1
        elif c.stop():
            did[armed.pop(c)[0], "stopped"] += 1
        else:
            assert c not in armed
        if rng.random() < 0.3:
            clock_of(lwkt).advance(rng.choice((1, 1, 2, 50)) * NSEC_PER_TICK)
            await timed.idle()
        for cpu in range(4):
            stats = callwheel(lwkt.cpus[cpu]).statistics()
            assert stats.pending == sum(home == cpu for home, _ in armed.values())
            for counter in ("resets", "fired", "stopped", "late", "late_ticks", "max_late"):
                assert getattr(stats, counter) == did[cpu, counter], counter
            assert stats.alarms == did[cpu, "alarms"]
    await timed.all()
    every = callout_statistics(lwkt)
    assert every.pending == 0
    assert every.fired == sum(did[cpu, "fired"] for cpu in range(4)) > 50
    assert every.late == sum(did[cpu, "late"] for cpu in range(4)) > 0
    assert every.max_late == max(did[cpu, "max_late"] for cpu in range(4))
    assert every.alarms == sum(did[cpu, "alarms"] for cpu in range(4)) > 0


@SEEDS
async def test_taskqueue(
    timed: TimedDriver, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What if tasks are enqueued now and later, coalesced, cancelled and run: every counter?"""
    lwkt = timed.lwkt
    lwkt.ktr.master("taskqueue").mask = -1
    tq = TaskQueue(lwkt, "obs")
    did: Counter[str] = Counter()
    pending: Counter[int] = Counter()
    due: dict[int, int] = {}

    async def work(number: int, count: int) -> None:
        assert count == pending.pop(number)
        did["executed"] += 1
        did["running"] += 1
        if rng.random() < 0.5:
            await tsleep("work", 0, "work", rng.randrange(1, 4))
        did["running"] -= 1

    def note_enqueue(task: Task) -> None:
        did["enqueued"] += 1
        did["coalesced"] += pending[task.context] > 0
        pending[task.context] += 1

    def expire(task: TimeoutTask) -> None:
        assert due.pop(task.context) == lwkt.ticks
        note_enqueue(task)
        timeout(task)

    timeout = TimeoutTask._timeout
    monkeypatch.setattr(TimeoutTask, "_timeout", expire)
    tasks = [TimeoutTask(work, n, n % 3) if n < 5 else Task(work, n, n % 3) for n in range(15)]
    tq.start_threads(3)
    for _ in range(300):
        number = rng.randrange(15)
        task = tasks[number]
        what = rng.random()
        if what < 0.2 and isinstance(task, TimeoutTask):
            ticks = rng.randrange(1, 6)
            tq.enqueue_timeout(task, ticks)
            due[number] = lwkt.ticks + ticks
        elif what < 0.6:
            tq.enqueue(task)
            note_enqueue(task)
        elif what < 0.75:
            tq.cancel(task)
            did["cancelled"] += pending.pop(number, 0) > 0
        else:
            (tq.block if rng.random() < 0.5 else tq.unblock)()
        if rng.random() < 0.4:
            await timed.ticks(1)
            stats = tq.statistics()
            assert stats.queued == sum(count > 0 for count in pending.values())
            assert stats.callouts == len(due)
            assert stats.threads == 3
            for counter in ("running", "enqueued", "coalesced", "executed", "cancelled"):
                assert getattr(stats, counter) == did[counter], counter
    assert noted(lwkt, "taskqueue")["run"] == did["executed"] > 0
    assert min(did["coalesced"], did["cancelled"]) > 0


@SEEDS
async def test_cpusync(timed: TimedDriver, rng: random.Random) -> None:
    """What if CPUs hold each other at random: is each synchronisation counted, none twice?"""
    lwkt = timed.lwkt
    ipi = lwkt.ipiqs.ktr
    ipi.mask = -1
    did: Counter[str] = Counter()

    def ran(_data: object) -> None:
        did["ran"] += 1

    async def master(home: int) -> None:
        for _ in range(10):
            mask = rng.sample(range(4), rng.randrange(1, 5))
            did["counted"] += mask != [home]
            did["expected"] += len(mask)
            cs = Cpusync(lwkt, [lwkt.cpus[n] for n in mask], ran)
            if rng.random() < 0.3:
                await cs.quick()
            else:
                await cs.interlock()
                await cpu_pause()
                await cs.deinterlock()
            await lwkt_yield()

    for home in range(4):
        timed.create(master, home, cpu=home)
    await timed.idle()
    trace = noted(lwkt, "ipiq")
    assert lwkt.ipiqs.statistics().cscount == did["counted"] == trace["sync_start"]
    assert trace["sync_end"] == did["counted"]
    assert did["ran"] == did["expected"] > did["counted"] > 0
    assert not any(cpu.stopped for cpu in lwkt.cpus)


@SEEDS
async def test_lwkt_wait(timed: TimedDriver, rng: random.Random) -> None:
    """What if threads block with old and new generations and are signalled: all three counters?"""
    lwkt = timed.lwkt
    lwkt.ktr.master("wait").mask = -1
    w = LwktWait()
    did: Counter[str] = Counter()

    async def waiter() -> None:
        for _ in range(20):
            gen = w.gen
            for _ in range(rng.randrange(6)):
                await cpu_pause()
            stale = gen != w.gen
            did["stale" if stale else "blocked"] += 1
            await lwkt_block(w, "obs", gen)
            did["woken"] += not stale

    async def signaller() -> None:
        for _ in range(rng.randrange(1, 12)):
            did["signals"] += 1
            lwkt_signal(w, rng.randrange(4))
            await cpu_pause()

    for n in range(8):
        timed.create(waiter, cpu=n % 4)
    for _ in range(60):
        timed.create(signaller, cpu=rng.randrange(4))
        await timed.idle()
        stats = w.statistics()
        assert stats.waiting == sleepers_on(lwkt, "obs") == did["blocked"] - did["woken"]
        assert stats.gen == stats.signals == did["signals"]
    assert noted(lwkt, "wait") == {"block": did["blocked"], "signal": did["signals"]}
    assert min(did["blocked"], did["stale"]) > 0


@SEEDS
async def test_token(timed: TimedDriver, rng: random.Random) -> None:
    """What if tokens are taken in every mode: collisions, references, owner, request, at any time?

    The outside observer knows who holds what because threads say so around every suspension, and
    because a thread that its CPU has elected again has got everything back before it runs.
    """
    lwkt = timed.lwkt
    lwkt.ktr_tokens.mask = -1
    toks = [Token(lwkt, f"obs{n}") for n in range(3)]
    mine: dict[str, list[tuple[Token, bool]]] = {}
    wanted: dict[str, list[tuple[Token, bool]]] = {}
    did: Counter[str] = Counter()

    async def away(who: str, what: Awaitable[object], *more: tuple[Token, bool]) -> None:
        """The thread may suspend: meanwhile it holds nothing, and wants all back and ``more``."""
        wanted[who] = [*mine.pop(who), *more]
        await what
        mine[who] = wanted.pop(who)

    def check() -> None:
        elected = [cpu.curthread.name for cpu in lwkt.cpus if cpu.curthread is not None]
        holds = mine | {who: wanted[who] for who in elected if who in wanted}
        asked = {tok for refs in wanted.values() for tok, excl in refs if excl}
        for tok in toks:
            modes = [excl for held in holds.values() for t, excl in held if t is tok]
            owners = {who for who, held in holds.items() if (tok, True) in held}
            stats = tok.statistics()
            assert stats.references == len(modes)
            assert stats.exclusive == any(modes)
            assert {stats.owner} - {""} == owners
            assert not stats.exclreq or tok in asked
        did["checks"] += 1

    async def take(who: str, tok: Token) -> None:
        modes = [excl for t, excl in mine[who] if t is tok]
        shared = rng.random() < 0.5 or (bool(modes) and not any(modes))
        if rng.random() < 0.4:
            if tok.trytoken_shared() if shared else tok.trytoken():
                mine[who].append((tok, not shared))
            else:
                did["refused"] += 1
        elif shared:
            await away(who, tok.gettoken_shared(), (tok, False))
        else:
            await away(who, tok.gettoken(), (tok, True))

    async def worker(number: int) -> None:
        who = f"w{number}"
        mine[who] = []
        for _ in range(30):
            for _ in range(rng.randrange(1, 4)):
                await take(who, rng.choice(toks))
            check()
            await cpu_pause()
            check()
            if rng.random() < 0.4:
                await away(who, lwkt_yield())
            while mine[who]:
                mine[who].pop()[0].reltoken()

    for number in range(6):
        timed.create(worker, number, name=f"w{number}", cpu=number % 4)
    await timed.idle()
    trace = noted(lwkt, "tokens")
    stalls = lwkt.statistics().token_stalls
    assert (
        sum(tok.statistics().collisions for tok in toks) == did["refused"] + trace["fail"] + stalls
    )
    assert trace["succ"] == trace["fail"] > 0
    assert min(stalls, did["refused"]) > 0
    assert [tok.count for tok in toks] == [0, 0, 0]
