"""Every counter of a primitive, counted once more by somebody outside during a random run."""

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
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.serialize import LwktSerialize
from dfuser.lwkt.synch import tsleep
from dfuser.lwkt.taskqueue import Task, TaskQueue, TimeoutTask
from dfuser.lwkt.thread import TDF, cpu_pause, lwkt_yield
from dfuser.lwkt.token import Token
from dfuser.lwkt.wait import LwktWait, lwkt_block, lwkt_signal

from .vtime import clock_of, run_all, run_ticks

SEEDS = pytest.mark.parametrize("seed", range(6))


def noted(lwkt: Lwkt, master: str) -> Counter[str]:
    """How often each point of a trace master has been noted."""
    return Counter({p.name: c.count for p, c in lwkt.ktr.master(master).points.items()})


def sleepers_on(lwkt: Lwkt, wmesg: str) -> int:
    """Threads on a sleep queue with this wait message."""
    return sum(td.wmesg == wmesg and bool(td.flags & TDF.TSLEEPQ) for td in lwkt.threads.values())


@SEEDS
def test_cv(lwkt: Lwkt, seed: int) -> None:
    """What if waits, time limits, signals and broadcasts mix: waiters, waits and both kinds?"""
    rng = random.Random(seed)
    lwkt.ktr.master("condvar").mask = -1
    cv = Cv("cvobs")
    did: Counter[str] = Counter()

    async def waiter() -> None:
        for _ in range(40):
            for _ in range(rng.randrange(3)):
                await cpu_pause()
            did["waits"] += 1
            if rng.random() < 0.2:
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
        lwkt.create(waiter, cpu=n % 4)
    for _ in range(40):
        for _ in range(3):
            lwkt.create(waker, cpu=rng.randrange(4))
        run_ticks(lwkt, rng.randrange(2), rng)
        stats = cv.statistics()
        assert stats.waiters == sleepers_on(lwkt, "cvobs") == did["waits"] - did["returned"]
        assert (stats.waits, stats.signals) == (did["waits"], did["signals"])
        assert stats.broadcasts == did["broadcasts"]
    trace = noted(lwkt, "condvar")
    assert trace == {"wait": did["returned"], "signal": did["signals"] + did["broadcasts"]}
    assert min(did["timeouts"], did["signals"], did["broadcasts"]) > 0


@SEEDS
def test_serializer(lwkt: Lwkt, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What if threads, tries, calls and a switched-off handler mix: all six counters?"""
    rng = random.Random(seed)
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
        lwkt.create(upper, who, cpu=who % 4)
    lwkt.run_until_idle(rng=rng)
    stats = slz.statistics()
    did["dropped"] = did["asked"] + did["tried"] - did["calls"]
    for counter in ("enters", "sleeps", "tryfails", "calls", "kept", "dropped"):
        assert getattr(stats, counter) == did[counter] > 0, counter
    trace = noted(lwkt, "slz")
    assert (trace["enter_end"], trace["sleep_beg"]) == (did["enters"], did["sleeps"])
    assert trace["tryfail"] == did["tryfails"]


@SEEDS
def test_callout_wheel(lwkt: Lwkt, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What if callouts are armed, moved, stopped and come late: every counter of every wheel?"""
    rng = random.Random(seed)
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
            lwkt.run_until_idle(rng=rng)
        for cpu in range(4):
            stats = callwheel(lwkt.cpus[cpu]).statistics()
            assert stats.pending == sum(home == cpu for home, _ in armed.values())
            for counter in ("resets", "fired", "stopped", "late", "late_ticks", "max_late"):
                assert getattr(stats, counter) == did[cpu, counter], counter
            assert stats.alarms == did[cpu, "alarms"]
    run_all(lwkt, rng)
    every = callout_statistics(lwkt)
    assert every.pending == 0
    assert every.fired == sum(did[cpu, "fired"] for cpu in range(4)) > 50
    assert every.late == sum(did[cpu, "late"] for cpu in range(4)) > 0
    assert every.max_late == max(did[cpu, "max_late"] for cpu in range(4))
    assert every.alarms == sum(did[cpu, "alarms"] for cpu in range(4)) > 0


@SEEDS
def test_taskqueue(lwkt: Lwkt, seed: int) -> None:
    """What if tasks are enqueued now and later, coalesced, cancelled and run: every counter?"""
    rng = random.Random(seed)
    lwkt.ktr.master("taskqueue").mask = -1
    tq = TaskQueue(lwkt, "obs")
    did: Counter[str] = Counter()
    pending: Counter[int] = Counter()
    timed: dict[int, int] = {}

    async def work(number: int, count: int) -> None:
        if number in timed and timed[number] <= lwkt.ticks:
            expire(number)
        assert count == pending.pop(number)
        did["executed"] += 1
        did["running"] += 1
        if rng.random() < 0.5:
            await tsleep("work", 0, "work", rng.randrange(1, 4))
        did["running"] -= 1

    def note_enqueue(number: int) -> None:
        did["enqueued"] += 1
        did["coalesced"] += pending[number] > 0
        pending[number] += 1

    def expire(number: int) -> None:
        del timed[number]
        note_enqueue(number)

    tasks = [TimeoutTask(work, n, n % 3) if n < 5 else Task(work, n, n % 3) for n in range(15)]
    tq.start_threads(3)
    for _ in range(300):
        number = rng.randrange(15)
        task = tasks[number]
        what = rng.random()
        if what < 0.2 and isinstance(task, TimeoutTask):
            ticks = rng.randrange(1, 6)
            tq.enqueue_timeout(task, ticks)
            timed[number] = lwkt.ticks + ticks
        elif what < 0.6:
            tq.enqueue(task)
            note_enqueue(number)
        elif what < 0.75:
            tq.cancel(task)
            did["cancelled"] += pending.pop(number, 0) > 0
        else:
            (tq.block if rng.random() < 0.5 else tq.unblock)()
        if rng.random() < 0.4:
            clock_of(lwkt).advance(NSEC_PER_TICK)
            # Softclock comes before the queue's threads, so what is due is enqueued first.
            for late in [n for n, due in timed.items() if due <= lwkt.ticks]:
                expire(late)
            lwkt.run_until_idle()
            stats = tq.statistics()
            assert stats.queued == sum(count > 0 for count in pending.values())
            assert stats.callouts == len(timed)
            assert stats.threads == 3
            for counter in ("running", "enqueued", "coalesced", "executed", "cancelled"):
                assert getattr(stats, counter) == did[counter], counter
    assert noted(lwkt, "taskqueue")["run"] == did["executed"] > 0
    assert min(did["coalesced"], did["cancelled"]) > 0


@SEEDS
def test_cpusync(lwkt: Lwkt, seed: int) -> None:
    """What if CPUs hold each other at random: is each synchronisation counted, none twice?"""
    rng = random.Random(seed)
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
        lwkt.create(master, home, cpu=home)
    lwkt.run_until_idle(rng=rng, max_steps=100_000)
    trace = noted(lwkt, "ipiq")
    assert lwkt.ipiqs.statistics().cscount == did["counted"] == trace["sync_start"]
    assert trace["sync_end"] == did["counted"]
    assert did["ran"] == did["expected"] > did["counted"] > 0
    assert not any(cpu.stopped for cpu in lwkt.cpus)


@SEEDS
def test_lwkt_wait(lwkt: Lwkt, seed: int) -> None:
    """What if threads block with old and new generations and are signalled: all three counters?"""
    rng = random.Random(seed)
    lwkt.ktr.master("wait").mask = -1
    w = LwktWait()
    did: Counter[str] = Counter()

    async def waiter() -> None:
        for _ in range(10):
            gen = w.gen
            for _ in range(rng.randrange(3)):
                await cpu_pause()
            stale = gen != w.gen
            did["stale" if stale else "blocked"] += 1
            await lwkt_block(w, "obs", gen)
            did["woken"] += not stale

    async def signaller() -> None:
        for _ in range(3):
            did["signals"] += 1
            lwkt_signal(w, rng.randrange(4))
            await cpu_pause()

    for n in range(8):
        lwkt.create(waiter, cpu=n % 4)
    for _ in range(60):
        lwkt.create(signaller, cpu=rng.randrange(4))
        lwkt.run_until_idle(rng=rng)
        stats = w.statistics()
        assert stats.waiting == sleepers_on(lwkt, "obs") == did["blocked"] - did["woken"]
        assert stats.gen == stats.signals == did["signals"]
    assert noted(lwkt, "wait") == {"block": did["blocked"], "signal": did["signals"]}
    assert min(did["blocked"], did["stale"]) > 0


@SEEDS
def test_token(lwkt: Lwkt, seed: int) -> None:
    """What if tokens are taken in every mode: collisions, references, owner, request, at any time?

    The outside observer knows who holds what because threads say so around every suspension.
    """
    rng = random.Random(seed)
    lwkt.ktr_tokens.mask = -1
    toks = [Token(lwkt, f"obs{n}") for n in range(3)]
    mine: dict[str, list[tuple[Token, bool]]] = {}
    wanted: dict[str, list[Token]] = {}
    did: Counter[str] = Counter()

    async def away(who: str, what: Awaitable[object], *more: Token) -> None:
        """The thread may suspend: meanwhile it holds nothing, and wants all back and ``more``."""
        held = mine.pop(who)
        wanted[who] = [*more, *(tok for tok, excl in held if excl)]
        await what
        del wanted[who]
        mine[who] = held

    def check() -> None:
        for tok in toks:
            modes = [excl for held in mine.values() for t, excl in held if t is tok]
            owners = {who for who, held in mine.items() if (tok, True) in held}
            stats = tok.statistics()
            assert stats.references == len(modes)
            assert stats.exclusive == any(modes)
            assert {stats.owner} - {""} == owners
            assert not stats.exclreq or any(tok in w for w in wanted.values())
        did["checks"] += 1

    async def take(who: str, tok: Token) -> None:
        held = mine[who]
        modes = [excl for t, excl in held if t is tok]
        shared = rng.random() < 0.5 or (bool(modes) and not any(modes))
        if rng.random() < 0.4:
            got = tok.trytoken_shared() if shared else tok.trytoken()
            did["refused"] += not got
            if not got:
                return
        else:
            if shared:
                await away(who, tok.gettoken_shared())
            else:
                await away(who, tok.gettoken(), tok)
        held.append((tok, not shared))

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
        lwkt.create(worker, number, name=f"w{number}", cpu=number % 4)
    lwkt.run_until_idle(rng=rng)
    trace = noted(lwkt, "tokens")
    stalls = lwkt.statistics().token_stalls
    assert (
        sum(tok.statistics().collisions for tok in toks) == did["refused"] + trace["fail"] + stalls
    )
    assert trace["succ"] == trace["fail"] > 0
    assert min(stalls, did["refused"]) > 0
    assert [tok.count for tok in toks] == [0, 0, 0]
