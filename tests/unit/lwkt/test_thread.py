"""Threads: life, Table I, migration, holding, exit, failures."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from dfuser.libkern.errno import Panic
from dfuser.lwkt import migrate
from dfuser.lwkt import thread as _thread
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.thread import (
    TDF,
    TDPRI,
    Thread,
    cpu_pause,
    lwkt_deschedule_self,
    lwkt_exit,
    lwkt_hold,
    lwkt_rele,
    lwkt_yield,
    switch,
)
from dfuser.lwkt.token import Token


async def test_result_name_and_exit(any_driver: Any) -> None:
    """What if a thread returns: are its result and name kept, and is it gone from the list?"""
    done: list[Thread] = []

    async def worker(a: int, b: int) -> int:
        return a + b

    td = any_driver.create(worker, 2, 3, cpu=1)
    td.done = done.append
    assert td.name == "worker"
    assert td.state == "R"
    assert any_driver.lwkt.threads == {td.tid: td}
    await any_driver.run()
    assert td.result == 5
    assert done == [td]
    assert any_driver.lwkt.threads == {}


async def test_migration_moves_thread_and_tokens(any_driver: Any) -> None:
    """What if a thread migrates: does it go on there, with its tokens, and may it come back?"""
    lwkt = any_driver.lwkt
    tok = Token(lwkt, "t")
    trail: list[int] = []

    async def traveller() -> None:
        async with tok:
            for cpuid in (1, 3, 3, 0, 2):
                await migrate.lwkt_migratecpu(cpuid)
                td = _thread.curthread
                assert td.cpu.cpuid == cpuid
                assert td.cpu.curthread is td
                assert tok.held_excl
                assert not td.flags & TDF.MIGRATING
                trail.append(cpuid)

    any_driver.create(traveller, cpu=0)
    await any_driver.run()
    assert trail == [1, 3, 3, 0, 2]


def test_wakeup_of_a_thread_that_moves(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if threads are scheduled while they migrate: is none lost and none run twice?"""
    lwkt = new_lwkt(4)
    moves = 0

    async def traveller(seed: int) -> None:
        nonlocal moves
        rng = random.Random(seed)
        for _ in range(50):
            await migrate.lwkt_migratecpu(rng.randrange(4))
            moves += 1

    async def pest(targets: list[Thread]) -> None:
        for _ in range(200):
            for td in targets:
                lwkt.schedule(td)
            await lwkt_yield()

    travellers = [lwkt.create(traveller, n, cpu=n % 4) for n in range(6)]
    for cpu in range(4):
        lwkt.create(pest, travellers, cpu=cpu)
    lwkt.run_until_idle(rng=random.Random(7))
    assert moves == 300
    assert all(td.flags & TDF.EXITING for td in travellers)


def test_giveaway_and_acquire(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if a CPU gives a sleeping thread away: does it run on the CPU that acquires it?"""
    lwkt = new_lwkt(2)
    seen: list[int] = []

    async def sleeper() -> None:
        lwkt_deschedule_self()
        await switch()
        seen.append(_thread.curthread.cpu.cpuid)

    td = lwkt.create(sleeper, cpu=0)
    lwkt.run_until_idle()

    async def giver() -> None:
        migrate.lwkt_giveaway(td)
        migrate.lwkt_schedule(td)

    async def taker() -> None:
        while not td.flags & TDF.MIGRATING:
            await cpu_pause()
        await migrate.lwkt_acquire(td)
        migrate.lwkt_schedule(td)

    lwkt.create(taker, cpu=1)
    lwkt.create(giver, cpu=0)
    lwkt.run_until_idle()
    assert seen == [1]


def test_table_one_by_name(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if code uses the calls of the paper's Table I: does each do what the table says?"""
    lwkt = new_lwkt(3)
    log: list[str] = []

    async def child(name: str) -> None:
        log.append(f"{name} on {_thread.curthread.cpu.cpuid}")
        await _thread.lwkt_switch()
        await lwkt_yield()
        log.append(f"{name} exits")
        lwkt_exit()

    async def parent() -> None:
        td = migrate.lwkt_alloc_thread(2, "alloc")
        migrate.lwkt_init_thread(td, child, "alloc")
        migrate.lwkt_schedule(td)
        template = migrate.lwkt_alloc_thread(1, "template")
        migrate.lwkt_create(child, "made", template=template, pri=TDPRI.SOFT_NORM)
        never = migrate.lwkt_create(child, "never", cpu=0, nostart=True)
        with _thread.critical():
            assert _thread.curthread.critcount == 1
        migrate.lwkt_free_thread(never)
        assert never.tid not in lwkt.threads

    lwkt.create(parent, cpu=0)
    lwkt.run_until_idle()
    assert sorted(log) == ["alloc exits", "alloc on 2", "made exits", "made on 1"]


def test_alloc_takes_cpus_in_turn(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if the CPU does not matter: do new threads spread over all of them?"""
    lwkt = new_lwkt(4)
    cpus: list[int] = []

    async def parent() -> None:
        for _ in range(8):
            td = migrate.lwkt_alloc_thread()
            cpus.append(td.cpu.cpuid)
            migrate.lwkt_free_thread(td)

    lwkt.create(parent)
    lwkt.run_until_idle()
    assert sorted(cpus) == sorted([0, 1, 2, 3] * 2)


def test_deschedule_and_setpri_of_others(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if another thread is descheduled or reprioritised: at once here, by IPI elsewhere?"""
    lwkt = new_lwkt(2)
    log: list[str] = []

    async def worker(name: str) -> None:
        log.append(name)

    async def boss() -> None:
        here = [lwkt.create(worker, name, cpu=0) for name in "ab"]
        away = lwkt.create(worker, "c", cpu=1)
        migrate.lwkt_setpri(here[1], TDPRI.SOFT_NORM)
        migrate.lwkt_deschedule(away)
        await lwkt_yield()
        assert log == ["b", "a"]
        migrate.lwkt_schedule(away)

    lwkt.create(boss, cpu=0)
    lwkt.run_until_idle()
    assert log == ["b", "a", "c"]


def test_hold_keeps_an_exited_thread_listed(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if somebody holds a thread that exits: does it stay listed until it is released?"""
    lwkt = new_lwkt(1)

    async def body() -> None:
        pass

    td = lwkt.create(body)
    lwkt_hold(td)
    lwkt.run_until_idle()
    assert td.state == "Z"
    assert td.tid in lwkt.threads
    lwkt_rele(td)
    assert td.tid not in lwkt.threads
    with pytest.raises(Panic, match="not held"):
        lwkt_rele(td)


async def test_exception_of_a_thread_is_reported_once(new_host: Any) -> None:
    """What if a thread dies of an exception: is it reported by name, and do the others go on?"""
    failures: list[str] = []
    log: list[str] = []

    async def bad() -> None:
        await lwkt_yield()
        raise ValueError("oops")

    async def good() -> None:
        for _ in range(5):
            await lwkt_yield()
        log.append("done")

    import trio

    async with new_host(on_failure=lambda w, e: failures.append(f"{w}: {e}")) as lwkt:
        for driver in ("task", "coro"):
            lwkt.create(bad, cpu=0, driver=driver, name=f"bad-{driver}")
            lwkt.create(good, cpu=0, driver=driver)
        await trio.testing.wait_all_tasks_blocked()
    assert len(failures) == 2
    assert any("bad-task" in f for f in failures)
    assert any("bad-coro" in f for f in failures)
    assert log == ["done", "done"]


def test_bad_priorities_and_bodies_panic(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if a priority is out of range or a body given twice: a panic before anything changes?"""
    lwkt = new_lwkt(1)

    async def body() -> None:
        pass

    with pytest.raises(Panic, match="not between 0 and 31"):
        lwkt.create(body, pri=32)
    td = lwkt.create(body, start=False)
    with pytest.raises(Panic, match="not between 0 and 31"):
        lwkt.setpri(td, -1)
    with pytest.raises(Panic, match="has a body"):
        migrate.lwkt_init_thread(td, body)
    assert lwkt.statistics().threads == 1
    with pytest.raises(ValueError, match="at least one CPU"):
        new_lwkt(0)
