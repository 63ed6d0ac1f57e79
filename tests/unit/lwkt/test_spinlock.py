"""Spinlocks: exclusion between CPUs, diagnostics, misuse."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from dfuser.hw.clock import VirtualClock
from dfuser.libkern.errno import Panic
from dfuser.libkern.ktr import Ktr
from dfuser.libkern.log import MsgBuf
from dfuser.lwkt import thread as _thread
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.spinlock import Spinlock
from dfuser.lwkt.thread import TDPRI, cpu_pause, lwkt_yield


async def test_holders_on_different_cpus_exclude_each_other(any_driver: Any) -> None:
    """What if threads of four CPUs want the lock: is one inside at a time, and does each get in?"""
    spin = Spinlock("test")
    inside = 0
    total = 0

    async def body() -> None:
        nonlocal inside, total
        for _ in range(20):
            async with spin:
                inside += 1
                assert inside == 1
                assert _thread.curthread.spinlocks == 1
                assert _thread.curthread.critcount == 1
                await cpu_pause()
                inside -= 1
                total += 1
            await lwkt_yield()

    for cpu in range(4):
        any_driver.create(body, cpu=cpu)
    await any_driver.run()
    assert total == 80
    stats = spin.statistics()
    assert (stats.holders, stats.excl_wait) == (0, 0)
    assert stats.contested > 0
    assert stats.spins >= stats.contested


def test_shared_holders_and_exclusive_priority(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if readers hold it and a writer spins: do new readers wait behind the writer?"""
    lwkt = new_lwkt(4)
    spin = Spinlock("test")
    log: list[str] = []

    async def reader(name: str, delay: int, hold: int) -> None:
        for _ in range(delay):
            await cpu_pause()
        await spin.spin_lock_shared_wait()
        log.append(name)
        for _ in range(hold):
            await cpu_pause()
        spin.spin_unlock_shared()

    async def writer() -> None:
        await cpu_pause()
        async with spin:
            log.append("w")

    lwkt.create(reader, "r1", 0, 6, cpu=0)
    lwkt.create(reader, "r2", 0, 3, cpu=1)
    lwkt.create(writer, cpu=2)
    lwkt.create(reader, "r3", 3, 0, cpu=3)
    lwkt.run_until_idle()
    assert log == ["r1", "r2", "w", "r3"]
    assert not spin.spin_held()


def test_random_mix_against_a_model(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if readers and writers mix at random: never a writer with anybody else inside?"""
    lwkt = new_lwkt(4)
    spin = Spinlock("test")
    readers = writers = entries = 0

    async def body(seed: int) -> None:
        nonlocal readers, writers, entries
        rng = random.Random(seed)
        for _ in range(60):
            if rng.random() < 0.5:
                await spin.spin_lock_shared_wait()
                readers += 1
                assert writers == 0
                await cpu_pause()
                readers -= 1
                spin.spin_unlock_shared()
            else:
                await spin.spin_lock_wait()
                writers += 1
                assert (readers, writers) == (0, 1)
                await cpu_pause()
                writers -= 1
                spin.spin_unlock()
            entries += 1
            await lwkt_yield()

    for n in range(8):
        lwkt.create(body, n, cpu=n % 4)
    lwkt.run_until_idle(rng=random.Random(11))
    assert entries == 480


def test_suspending_with_a_spinlock_panics(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if the holder yields: a panic that says how many spinlocks it holds?"""
    lwkt = new_lwkt(1)

    async def body() -> None:
        with Spinlock("test"):
            await lwkt_yield()

    lwkt.create(body)
    with pytest.raises(Panic, match="still holds 1 spinlocks"):
        lwkt.run_until_idle()


def test_plain_code_panics_instead_of_spinning(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if plain code needs a lock that another CPU holds: a panic, and does try just say no?"""
    lwkt = new_lwkt(2)
    spin = Spinlock("test")
    tried: list[bool] = []

    async def holder() -> None:
        async with spin:
            for _ in range(3):
                await cpu_pause()

    async def other() -> None:
        await cpu_pause()
        tried.append(spin.spin_trylock())
        with pytest.raises(Panic, match="cannot spin"):
            spin.spin_lock_shared()
        spin.spin_lock()

    lwkt.create(holder, cpu=0)
    lwkt.create(other, cpu=1)
    with pytest.raises(Panic, match=r"spin_lock: test is held by .*cannot spin"):
        lwkt.run_until_idle()
    assert tried == [False]


@pytest.mark.parametrize(
    ("step", "match"),
    [("twice", "already holds"), ("other", "does not hold"), ("shared", "not held shared")],
)
def test_misuse_panics(new_lwkt: Callable[..., Lwkt], step: str, match: str) -> None:
    """What if a lock is taken twice or released by somebody else: a panic that names it?"""
    lwkt = new_lwkt(1)
    spin = Spinlock("test")

    async def body() -> None:
        if step == "twice":
            spin.spin_lock()
            await spin.spin_lock_wait()
        elif step == "other":
            spin.spin_unlock()
        else:
            spin.spin_unlock_shared()

    lwkt.create(body)
    with pytest.raises(Panic, match=match):
        lwkt.run_until_idle()


def test_indefinite_wait_is_reported_and_ends_in_a_panic() -> None:
    """What if a lock is never released: a line a second, a panic after sixty?"""
    clock = VirtualClock()
    msgbuf = MsgBuf()
    lwkt = Lwkt(2, clock, Ktr(2, clock), msgbuf)
    spin = Spinlock("stuck")

    async def holder() -> None:
        spin.spin_lock()
        while True:
            await cpu_pause()

    async def other() -> None:
        await spin.spin_lock_wait()

    lwkt.create(holder, cpu=0)
    lwkt.cpus[0].run(1)
    lwkt.create(other, cpu=1)
    lwkt.cpus[1].run(1)

    def a_minute() -> None:
        for _ in range(70):
            clock.advance(1_000_000_000)
            lwkt.cpus[1].run(1)

    with pytest.raises(Panic, match="spin_lock_ex: stuck, indefinite wait!"):
        a_minute()
    assert msgbuf.text().count("spin_lock_ex: stuck, indefinite wait") == 60
    assert spin.statistics().indefinite == 60
    lwkt.shutdown_nowait()


def test_interrupts_wait_for_the_unlock(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if an interrupt comes under a spinlock: does it run exactly at the unlock?"""
    lwkt = new_lwkt(1)
    log: list[str] = []
    spin = Spinlock("test")

    async def intr() -> None:
        log.append("thread")

    async def body() -> None:
        with spin:
            lwkt.cpus[0].interrupt(log.append, "intr")
            lwkt.create(intr, pri=TDPRI.INT_HIGH, interrupt=True)
            log.append("held")
        log.append("free")

    lwkt.create(body)
    lwkt.run_until_idle()
    assert log == ["held", "intr", "thread", "free"]


def test_counters_agree_with_an_outside_observer(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if the turns of a spinning thread are counted outside: is that what the lock counted?"""
    lwkt = new_lwkt(2)
    spin = Spinlock("test")
    turns = 0

    async def holder() -> None:
        nonlocal turns
        async with spin:
            for _ in range(9):
                turns += 1
                await cpu_pause()

    async def waiter() -> None:
        async with spin:
            pass

    lwkt.create(holder, cpu=0)
    lwkt.create(waiter, cpu=1)
    lwkt.run_until_idle()
    stats = spin.statistics()
    assert stats.contested == 1
    assert stats.spins == turns == 9
