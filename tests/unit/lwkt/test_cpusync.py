"""cpusync: CPUs held still, their functions run, two masters at once."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from dfuser.libkern.errno import Panic
from dfuser.lwkt import thread as _thread
from dfuser.lwkt.cpusync import Cpusync
from dfuser.lwkt.ipiq import lwkt_send_ipiq, lwkt_wait_ipiq
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.thread import cpu_pause, critical, lwkt_yield


async def test_held_cpus_do_not_move(any_driver: Any) -> None:
    """What if the other CPUs beat all the time:

    Do they stand still from interlock to deinterlock?
    """
    lwkt = any_driver.lwkt
    beats = [0] * 4
    ran: list[int] = []
    stop = False

    async def heart(cpuid: int) -> None:
        while not stop:
            beats[cpuid] += 1
            await lwkt_yield()

    async def master() -> None:
        nonlocal stop
        for _ in range(5):
            for _ in range(10):
                await cpu_pause()
            cs = Cpusync(lwkt, lwkt.cpus, lambda _: ran.append(_thread.curthread.cpu.cpuid))
            await cs.interlock()
            before = list(beats)
            for _ in range(20):
                await cpu_pause()
            assert beats == before
            assert all(cpu.stopped for cpu in lwkt.cpus[1:])
            await cs.deinterlock()
            assert not any(cpu.stopped for cpu in lwkt.cpus)
            assert _thread.curthread.critcount == 0
        stop = True

    for cpuid in range(1, 4):
        any_driver.create(heart, cpuid, cpu=cpuid)
    any_driver.create(master, cpu=0)
    await any_driver.run()
    assert min(beats[1:]) > 5
    assert ran == [1, 2, 3, 0] * 5
    assert lwkt.ipiqs.statistics().cscount == 5


def test_held_cpus_still_serve_ipis(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if the master waits for an IPI on a CPU it holds: is it served?"""
    lwkt = new_lwkt(2)
    got: list[int] = []

    async def master() -> None:
        cs = Cpusync(lwkt, [lwkt.cpus[1]])
        await cs.interlock()
        seq = await lwkt_send_ipiq(lwkt.cpus[1], lambda n, _: got.append(n), 7)
        await lwkt_wait_ipiq(lwkt.cpus[1], seq)
        assert got == [7]
        await cs.deinterlock()

    lwkt.create(master, cpu=0)
    lwkt.run_until_idle()
    assert got == [7]


def test_interrupts_of_a_held_cpu_come_afterwards(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if an interrupt reaches a held CPU: does it wait, and come when the CPU goes on?"""
    lwkt = new_lwkt(2)
    log: list[str] = []

    async def master() -> None:
        cs = Cpusync(lwkt, [lwkt.cpus[1]])
        await cs.interlock()
        lwkt.cpus[1].interrupt(log.append, "intr")
        await cpu_pause()
        log.append("held")
        await cs.deinterlock()

    lwkt.create(master, cpu=0)
    lwkt.run_until_idle()
    assert log == ["held", "intr"]


def test_two_masters_are_never_inside_together(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if CPUs synchronise each other at the same time: one after the other, no deadlock?"""
    lwkt = new_lwkt(4)
    inside = 0
    rounds = 0

    async def master() -> None:
        nonlocal inside, rounds
        for _ in range(20):
            cs = Cpusync(lwkt, lwkt.cpus)
            await cs.interlock()
            inside += 1
            assert inside == 1
            await cpu_pause()
            assert inside == 1
            inside -= 1
            rounds += 1
            await cs.deinterlock()
            await lwkt_yield()

    for seed in range(20):
        for cpu in range(4):
            lwkt.create(master, cpu=cpu)
        lwkt.run_until_idle(rng=random.Random(seed), max_steps=200_000)
    assert rounds == 20 * 4 * 20
    assert not any(cpu.stopped for cpu in lwkt.cpus)


def test_masters_that_began_together_take_turns(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if both asked before either could answer: the older first, the younger after it?"""
    lwkt = new_lwkt(3)
    log: list[str] = []

    async def master(name: str) -> None:
        with critical():
            await cpu_pause()
            cs = Cpusync(lwkt, lwkt.cpus)
            await cs.interlock()
            log.append(f"{name}+")
            await cpu_pause()
            await cpu_pause()
            log.append(f"{name}-")
            await cs.deinterlock()

    for cpu, name in enumerate("abc"):
        lwkt.create(master, name, cpu=cpu)
    lwkt.run_until_idle(max_steps=10_000)
    assert "".join(log) == "a+a-b+b-c+c-"
    assert not any(cpu.stopped or cpu.cpusync_deferred for cpu in lwkt.cpus)


def test_quick_runs_everywhere(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if nothing has to be held: does quick run the function once on each CPU of the mask?"""
    lwkt = new_lwkt(4)
    ran: list[int] = []

    async def master() -> None:
        await Cpusync(
            lwkt, lwkt.cpus[1:], lambda _: ran.append(_thread.curthread.cpu.cpuid)
        ).quick()
        await Cpusync(lwkt, [lwkt.cpus[1]], lambda d: ran.append(d), 9).simple()

    lwkt.create(master, cpu=1)
    lwkt.run_until_idle()
    assert sorted(ran) == [1, 2, 3, 9]


def test_master_that_is_ended_lets_everybody_go(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if the master is ended while it waits for a CPU: do the held ones go on?"""
    lwkt = new_lwkt(3)

    async def master() -> None:
        await Cpusync(lwkt, lwkt.cpus).interlock()

    async def forever() -> None:
        _thread.crit_enter()
        while True:
            await cpu_pause()

    lwkt.create(forever, cpu=2)
    lwkt.cpus[0].run(1)
    lwkt.cpus[2].run(1)
    lwkt.create(master, cpu=0)
    for _ in range(5):
        for cpu in lwkt.cpus:
            cpu.run(1)
    assert lwkt.cpus[1].stopped
    lwkt.shutdown_nowait()
    assert not lwkt.cpus[1].stopped


def test_deinterlock_without_interlock_panics(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if deinterlock comes first: a panic, not a hang?"""
    lwkt = new_lwkt(2)

    async def body() -> None:
        await Cpusync(lwkt, lwkt.cpus).deinterlock()

    lwkt.create(body)
    with pytest.raises(Panic, match="not the master"):
        lwkt.run_until_idle()
