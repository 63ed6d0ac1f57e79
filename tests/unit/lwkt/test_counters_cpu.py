"""Counters of sleeping, IPIs, ports and CPUs, counted once more by somebody outside.

On both thread drivers, as the other tests of counters.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

import pytest
import trio

from dfuser.libkern.errno import EINTR, ENOENT, EWOULDBLOCK
from dfuser.libkern.param import NSEC_PER_TICK, PCATCH, PINTERLOCKED
from dfuser.lwkt import thread as _thread
from dfuser.lwkt.core import LwktCore
from dfuser.lwkt.ipiq import (
    HIGH_WATER,
    MAXCPUFIFO,
    Ipiqs,
    lwkt_send_ipiq,
    lwkt_send_ipiq_nowait,
    lwkt_send_ipiq_passive,
)
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.msgkinds import thread_port
from dfuser.lwkt.msgport import MSGF, LwktMsg, Port
from dfuser.lwkt.sleepq import Synch, synch_of
from dfuser.lwkt.synch import abort_sleep, tsleep, tsleep_interlock, wakeup, wakeup_one
from dfuser.lwkt.thread import TDPRI, Thread, cpu_pause, critical, lwkt_yield

from .observe import SEEDS, noted, sleepers_on, turns
from .vtime import TimedDriver, clock_of


@SEEDS
async def test_synch(
    timed: TimedDriver, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What if sleeps are woken, late, aborted, disturbed or end before they begin: each reason?"""
    lwkt = timed.lwkt
    synch = synch_of(lwkt)
    synch.ktr.mask = -1
    asleep: dict[Thread, tuple[int, int]] = {}
    did: Counter[str] = Counter()
    chasing = 0

    async def sleep(ident: int, flags: int) -> None:
        td = _thread.curthread
        before = turns()
        asleep[td] = (ident, before)
        error = await tsleep(ident, flags, "obs", rng.randrange(1, 6))
        del asleep[td]
        elected = turns() - before
        did["sleeps" if elected else "ilockfail"] += 1
        did["spurious"] += max(0, elected - 1)
        did[{0: "woken", EWOULDBLOCK: "timeouts", EINTR: "interrupted"}[error]] += 1

    async def sleeper() -> None:
        for _ in range(40):
            ident = rng.randrange(3)
            flags = rng.choice((0, PCATCH))
            if rng.random() < 0.5:
                tsleep_interlock(ident, flags)
                for _ in range(rng.randrange(6)):
                    await cpu_pause()
                flags |= PINTERLOCKED
            await sleep(ident, flags)

    async def waker() -> None:
        for _ in range(rng.randrange(12)):
            did["wakeups"] += 1
            (wakeup if rng.random() < 0.2 else wakeup_one)(rng.randrange(3))
            if rng.random() < 0.3:
                await cpu_pause()

    async def disturber() -> None:
        for td in rng.sample(list(asleep), min(2, len(asleep))):
            if rng.random() < 0.5:
                lwkt.schedule(td)
            else:
                abort_sleep(td, EINTR)

    send = Lwkt.send_ipiq_nowait
    remote = Synch._wakeup_remote

    def sent(machine: Lwkt, target: Any, func: Any, *args: Any) -> None:
        if getattr(func, "__func__", None) is arrived:
            did["ipis"] += 1
            did["forwarded"] += chasing
        send(machine, target, func, *args)

    def arrived(own: Synch, *args: Any) -> None:
        nonlocal chasing
        chasing += 1
        remote(own, *args)
        chasing -= 1

    monkeypatch.setattr(Lwkt, "send_ipiq_nowait", sent)
    monkeypatch.setattr(Synch, "_wakeup_remote", arrived)
    sleepers = [timed.create(sleeper, cpu=n % 4) for n in range(12)]
    while any(td.state != "Z" for td in sleepers):
        for body in rng.choices((waker, disturber), k=rng.randrange(8)):
            timed.create(body, cpu=rng.randrange(4))
        await timed.ticks(1)
        stats = synch.statistics()
        assert stats.sleepers == len(asleep) == sleepers_on(lwkt, "obs")
        assert stats.idents == len({(td.cpu.cpuid, ident) for td, (ident, _) in asleep.items()})
        assert stats.sleeps == did["sleeps"] + len(asleep)
        assert (stats.woken, stats.timeouts) == (did["woken"], did["timeouts"])
        for counter in ("ilockfail", "interrupted", "wakeups", "ipis", "forwarded"):
            assert getattr(stats, counter) == did[counter], counter
        disturbed = sum(td.switches - before for td, (_, before) in asleep.items())
        assert stats.spurious == did["spurious"] + disturbed
    trace = noted(lwkt, "tsleep")
    assert trace["tsleep_beg"] == trace["tsleep_end"] == did["sleeps"]
    assert (trace["ilockfail"], trace["wakeup_beg"]) == (did["ilockfail"], did["wakeups"])
    for what in ("woken", "timeouts", "interrupted", "spurious", "ilockfail", "ipis", "forwarded"):
        assert did[what] > 0, what


@SEEDS
async def test_ipiq(
    timed: TimedDriver, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What if CPUs send in every way, and one stops until its rings are full: every counter?"""
    lwkt = timed.lwkt
    ipiqs = lwkt.ipiqs
    ipiqs.ktr.mask = -1
    flying: Counter[tuple[int, int]] = Counter()
    did: Counter[str] = Counter()

    def ran(src: Any, dst: Any) -> None:
        assert lwkt.mycpu().cpuid == dst
        flying[src, dst] -= 1
        did["ran"] += 1

    def count(src: int, dst: int) -> None:
        flying[src, dst] += 1
        did["sent"] += src != dst
        did["own"] += src == dst

    async def drained(own: Ipiqs, ring: Any) -> None:
        did["fifofull"] += 1
        await wait_drained(own, ring)

    def scheduled(own: Ipiqs, *args: Any) -> None:
        did["wakereqs"] += 1
        schedule_remote(own, *args)

    wait_drained, schedule_remote = Ipiqs.wait_drained, Ipiqs._schedule_remote
    monkeypatch.setattr(Ipiqs, "wait_drained", drained)
    monkeypatch.setattr(Ipiqs, "_schedule_remote", scheduled)

    async def sender(src: int) -> None:
        for _ in range(500):
            dst = rng.choice((0, 1, 2, 3, 3))
            how = rng.randrange(3)
            full = src != dst and flying[src, dst] > HIGH_WATER
            if how == 0:
                count(src, dst)
                if lwkt_send_ipiq_nowait(lwkt.cpus[dst], ran, src, dst) == ENOENT:
                    assert full
                    flying[src, dst] -= 1
                    did["sent"] -= 1
                    did["fifofull"] += 1
                    await lwkt_yield()
            elif how == 1:
                did["fifofull"] += full
                count(src, dst)
                lwkt_send_ipiq_passive(lwkt.cpus[dst], ran, src, dst)
            else:
                # It may wait for room first: what is counted then has not been sent yet.
                await lwkt_send_ipiq(lwkt.cpus[dst], ran, src, dst)
                count(src, dst)
            if rng.random() < 0.05:
                await cpu_pause()

    def check() -> None:
        stats = ipiqs.statistics()
        trace = noted(lwkt, "ipiq")
        assert (
            stats.count
            == did["sent"] + did["wakereqs"]
            == (trace["send_norm"] + trace["send_pasv"])
        )
        assert stats.passive == trace["send_pasv"]
        assert stats.doorbells == trace["cpu_send"]
        assert stats.avoided == stats.count - stats.passive - stats.doorbells
        assert stats.pending == stats.count - trace["receive"] == flying.total()
        assert stats.overflow == sum(max(0, n - MAXCPUFIFO) for n in flying.values())
        assert stats.fifofull == did["fifofull"]
        assert stats.fifofull == sum(ring.fifofull for row in ipiqs.rings for ring in row)
        did["overflow"] += stats.overflow

    def burst() -> None:
        """An interrupt sends as much as it likes."""
        for _ in range(300):
            did["fifofull"] += flying[0, 3] > HIGH_WATER
            count(0, 3)
            lwkt.send_ipiq_nowait(lwkt.cpus[3], ran, 0, 3)

    async def round_of() -> None:
        for src in range(3):
            timed.create(sender, src, cpu=src)
        await timed.idle()

    await round_of()
    await timed.ticks(1)
    check()
    lwkt.cpus[3].stop()
    await round_of()
    await timed.ticks(1)
    check()
    lwkt.cpus[0].interrupt(burst)
    check()
    lwkt.cpus[3].restart()
    await timed.idle()
    await timed.ticks(2)
    check()
    assert flying.total() == 0
    assert did["ran"] == did["sent"] + did["own"]
    for what in ("fifofull", "overflow", "wakereqs"):
        assert did[what] > 0, what


@SEEDS
async def test_ports(timed: TimedDriver, rng: random.Random) -> None:
    """What if messages of both classes go and return between CPUs, one stopped: every counter?

    What crosses CPUs is on its way until the target's CPU runs, and is queued then.
    """
    lwkt = timed.lwkt
    ports: list[Port] = []
    did: dict[Port, Counter[str]] = {}
    waits: set[Port] = set()

    def own() -> Port:
        td = _thread.curthread
        if td.msgport is None:
            ports.append(thread_port(td))
            did[ports[-1]] = Counter()
        return thread_port(td)

    def arrives(port: Port, msg: LwktMsg, *, queued: bool) -> None:
        assert port.td is not None
        remote = port.td.cpu is not lwkt.mycpu()
        did[port]["flying" if remote else "local"] += 1
        if queued:
            way = "prio" if msg.flags & MSGF.PRIORITY else "plain"
            did[port][f"flying {way}" if remote else way] += 1

    def landed(port: Port) -> None:
        """The CPU of the port has run: nothing is on its way any more."""
        count = did[port]
        count["remote"] += count.pop("flying", 0)
        for way in ("prio", "plain"):
            count[way] += count.pop(f"flying {way}", 0)

    async def take(port: Port) -> LwktMsg:
        msg = port.getport() if rng.random() < 0.3 else None
        if msg is None:
            waits.add(port)
            msg = await port.waitport()
            waits.remove(port)
        assert msg is not None
        did[port]["gets"] += 1
        did[port]["prio" if msg.flags & MSGF.PRIORITY else "plain"] -= 1
        return msg

    async def server() -> None:
        port = own()
        while True:
            msg = await take(port)
            if rng.random() < 0.5:
                await tsleep("busy", 0, "busy", rng.randrange(1, 4))
            assert msg.reply_port is not None
            did[msg.reply_port]["replies"] += 1
            arrives(msg.reply_port, msg, queued=not msg.flags & MSGF.SYNC)
            msg.replymsg(0)

    async def client() -> None:
        port = own()
        for _ in range(8):
            target = rng.choice(servers)
            if rng.random() < 0.3:
                msg = LwktMsg(port)
                did[target]["puts"] += 1
                arrives(target, msg, queued=True)
                waits.add(port)
                assert await target.domsg(msg) == 0
                waits.remove(port)
                continue
            sent = rng.randrange(1, 5)
            for _ in range(sent):
                msg = LwktMsg(port, rng.choice((0, MSGF.PRIORITY)))
                did[target]["puts"] += 1
                arrives(target, msg, queued=True)
                assert target.td is not None
                here = target.td.cpu is lwkt.mycpu() and rng.random() < 0.5
                (target.sendmsg_oncpu if here else target.sendmsg)(msg)
            await tsleep("busy", 0, "busy", rng.randrange(1, 4))
            for _ in range(sent):
                await take(port)

    def check(stopped: int | None) -> None:
        for port in ports:
            stats = port.statistics()
            if port not in live:
                continue
            if stats.cpuid != stopped:
                landed(port)
            count = did[port]
            assert stats.intransit == count["flying"]
            assert (stats.queued, stats.queued_prio) == (count["plain"], count["prio"])
            assert stats.waiting == (port in waits)
            for counter in ("puts", "gets", "replies", "remote"):
                assert getattr(stats, counter) == count[counter], counter
            seen.update(intransit=stats.intransit, prio=stats.queued_prio, remote=stats.remote)

    seen: Counter[str] = Counter()
    tds = [timed.create(server, cpu=cpu) for cpu in range(4)]
    await timed.idle()
    servers = list(ports)
    clients = [timed.create(client, cpu=n % 4) for n in range(8)]
    await timed.idle()
    live = set(ports)
    for number in itertools.count():
        stopped = 3 if number % 4 == 3 else None
        if stopped is not None:
            lwkt.cpus[3].stop()
        await timed.ticks(1)
        check(stopped)
        lwkt.cpus[3].restart()
        await timed.idle()
        check(None)
        if all(td.state == "Z" for td in clients):
            break
    assert all(td.state != "Z" for td in tds)
    assert min(seen["intransit"], seen["prio"], seen["remote"]) > 0


@SEEDS
async def test_machine(
    timed: TimedDriver, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What if threads come, yield, sleep, are preempted and end, and ticks pass: every counter?"""
    lwkt = timed.lwkt
    clock = clock_of(lwkt)
    did: Counter[str] = Counter()
    making: set[int] = set()

    def schedulerclock(machine: LwktCore, cpu: Any) -> None:
        did["interrupts"] += 1
        tick(machine, cpu)

    def wake(task: trio.lowlevel.Task, *args: Any) -> None:
        did["kicks"] += any(task is cpu.loop_task for cpu in lwkt.cpus)
        reschedule(task, *args)

    tick, reschedule = LwktCore._schedulerclock, trio.lowlevel.reschedule
    monkeypatch.setattr(LwktCore, "_schedulerclock", schedulerclock)
    monkeypatch.setattr(trio.lowlevel, "reschedule", wake)

    def handler() -> None:
        did["interrupts"] += 1

    async def intr(cpuid: int) -> None:
        did["preempt_hit" if cpuid in making else "switches"] += 1

    def preempt() -> None:
        """An interrupt thread, which runs at once: here, or where a critical section ends."""
        cpu = lwkt.mycpu()
        making.add(cpu.cpuid)
        did["created"] += 1
        if rng.random() < 0.5:
            lwkt.create(intr, cpu.cpuid, interrupt=True, pri=TDPRI.INT_HIGH)
        else:
            with critical():
                lwkt.create(intr, cpu.cpuid, interrupt=True, pri=TDPRI.INT_HIGH)
            did["preempt_miss"] += 1
        making.remove(cpu.cpuid)

    async def body() -> None:
        did["switches"] += 1
        for _ in range(15):
            what = rng.randrange(6)
            if what == 0:
                lwkt.mycpu().interrupt(handler)
            elif what == 1:
                preempt()
            elif what == 2:
                clock.advance(NSEC_PER_TICK)
            else:
                await (lwkt_yield() if what == 3 else tsleep(what, 0, "obs"))
                did["switches"] += 1

    async def waker() -> None:
        did["switches"] += 1
        wakeup(rng.choice((4, 5)))

    def create(func: Any) -> Thread:
        did["created"] += 1
        return timed.create(func, cpu=rng.randrange(4))

    tds = [create(body) for _ in range(12)]
    while any(td.state != "Z" for td in tds):
        await timed.idle()
        stats = lwkt.statistics()
        assert stats.ncpu == 4
        assert (stats.created, stats.threads) == (did["created"], len(lwkt.threads))
        assert stats.exited == stats.created - stats.threads
        assert stats.threads == sum(td.state != "Z" for td in tds)
        bells = lwkt.ipiqs.statistics().doorbells
        assert stats.interrupts == did["interrupts"] + bells
        assert stats.hardclocks == clock.statistics().fired
        for counter in ("switches", "kicks", "preempt_hit", "preempt_miss", "preempt_weird"):
            assert getattr(stats, counter) == did[counter], counter
        create(waker)
    for what in ("switches", "interrupts", "preempt_hit", "preempt_miss"):
        assert did[what] > 0, what
    assert (did["kicks"] > 0) == (timed.kind == "task")
