"""What only matters with trio, and how threads end on both drivers."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import trio

from dfuser.libkern.errno import EINTR, KError, Panic
from dfuser.libkern.param import PCATCH
from dfuser.lwkt import thread as _thread
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.synch import tsleep, wakeup
from dfuser.lwkt.thread import (
    ThreadKilled,
    cpu_pause,
    lwkt_deschedule_self,
    lwkt_yield,
    switch,
)
from dfuser.lwkt.token import Token


async def test_shutdown_ends_every_kind_of_waiting(any_driver: Any) -> None:
    """What if the machine stops while threads sleep, yield, spin, wait or never ran: all end?"""
    lwkt = any_driver.lwkt
    tok = Token(lwkt, "t")
    unwound: list[str] = []

    async def life(name: str, wait: Callable[[], Any]) -> None:
        try:
            async with tok:
                pass
            while True:
                await wait()
        except ThreadKilled:
            unwound.append(name)
            raise

    async def asleep() -> None:
        await tsleep("x", 0, "x", 0)

    async def timed() -> None:
        await tsleep("y", PCATCH, "y", 10_000)

    async def down() -> None:
        lwkt_deschedule_self()
        await switch()

    waits = {"asleep": asleep, "timed": timed, "down": down, "spin": cpu_pause}
    for number, (name, wait) in enumerate(waits.items()):
        any_driver.create(life, name, wait, cpu=number)
    for cpu in lwkt.cpus:
        cpu.run(2)
    if any_driver.kind == "task":
        for _ in range(5):
            await trio.lowlevel.checkpoint()
    any_driver.create(life, "unstarted", down, cpu=0, start=False)
    any_driver.create(life, "unstarted", down, cpu=3)
    await lwkt.shutdown()
    assert sorted(unwound) == ["asleep", "down", "spin", "timed"]
    assert lwkt.threads == {}
    gc.collect()


async def test_threads_that_sleep_while_they_unwind_end_too(any_driver: Any) -> None:
    """What if a thread's finally clause sleeps: is it ended again instead of hanging the stop?"""
    ended: list[str] = []

    async def stubborn() -> None:
        try:
            await tsleep("a", 0, "a", 0)
        finally:
            try:
                await tsleep("b", 0, "b", 0)
            finally:
                ended.append("end")

    any_driver.create(stubborn, cpu=1)
    await any_driver.run()
    await any_driver.lwkt.shutdown()
    assert ended == ["end"]


async def test_cancelling_the_nursery_ends_the_machine(new_lwkt: Any) -> None:
    """What if the host cancels the machine's nursery:

    Do threads unwind in order and nothing hang?
    """
    lwkt = new_lwkt(2, default_driver="task")
    unwound: list[str] = []

    async def life(name: str) -> None:
        try:
            await tsleep(name, 0, "x", 0)
        finally:
            assert _thread.curthread.name == name
            unwound.append(name)

    async def busy() -> None:
        while True:
            await lwkt_yield()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await lwkt.start(nursery)
            for name, driver in (("a", "task"), ("b", "coro")):
                for cpu in range(2):
                    lwkt.create(life, name, name=name, cpu=cpu, driver=driver)
            lwkt.create(busy, cpu=0, driver="coro")
            lwkt.create(busy, cpu=1, driver="task")
            while [td.wmesg for td in lwkt.threads.values()].count("x") < 4:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert sorted(unwound) == ["a", "a", "b", "b"]
    assert lwkt.threads == {}


@pytest.mark.parametrize("driver", ["task", "coro"])
async def test_panic_under_trio_ends_the_nursery(new_lwkt: Any, driver: str) -> None:
    """What if a thread panics under trio: does the nursery end with the panic, nothing hanging?"""
    lwkt = new_lwkt(2, default_driver="task")

    async def bad() -> None:
        raise Panic("boom")

    async def asleep() -> None:
        async with Token(lwkt, "t"):
            await tsleep("x", 0, "x", 0)

    with pytest.RaisesGroup(pytest.RaisesExc(Panic, match="boom"), flatten_subgroups=True):
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                await lwkt.start(nursery)
                for other in ("task", "coro"):
                    lwkt.create(asleep, cpu=0, driver=other)
                    lwkt.create(asleep, cpu=1, driver=other)
                await trio.testing.wait_all_tasks_blocked()
                lwkt.create(bad, cpu=0, driver=driver, name="bad")
    assert lwkt.panic_thread is not None
    assert lwkt.panic_thread.name == "bad"
    await lwkt.shutdown()
    gc.collect()


async def test_adopted_task_is_a_thread_like_others(new_host: Any) -> None:
    """What if a host task is adopted: seen in the list, scheduled, woken, its result returned?"""
    async with new_host() as lwkt:
        seen: list[str] = []

        async def request(n: int) -> int:
            td = _thread.curthread
            seen.append(td.name)
            assert td.tid in lwkt.threads
            assert await tsleep("go", 0, "req", 0) == 0
            assert _thread.curthread is td
            return n * 2

        results: list[int] = []

        async def host(n: int) -> None:
            results.append(await lwkt.adopt(request, n, name=f"req{n}", cpu=n % 4))

        async def waker() -> None:
            wakeup("go")

        async with trio.open_nursery() as nursery:
            for n in range(8):
                nursery.start_soon(host, n)
            await trio.testing.wait_all_tasks_blocked()
            assert len(lwkt.threads) == 8
            assert {td.wmesg for td in lwkt.threads.values()} == {"req"}
            lwkt.create(waker, cpu=2)
        assert sorted(results) == [n * 2 for n in range(8)]
        assert sorted(seen) == [f"req{n}" for n in range(8)]


async def test_cancelled_adopted_task_leaves_its_sleep_with_eintr(new_host: Any) -> None:
    """What if the host cancels a sleeping request: EINTR, clean queues, then the cancellation?"""
    async with new_host() as lwkt:
        results: list[int] = []

        async def request() -> None:
            results.append(await tsleep("never", PCATCH, "req", 0))
            await lwkt_yield()
            results.append(await tsleep("never", PCATCH, "req", 0))

        with trio.move_on_after(3600) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: lwkt.adopt(request, name="req", cpu=1))
                await trio.testing.wait_all_tasks_blocked()
                assert len(lwkt.threads) == 1
                scope.cancel()
        assert scope.cancel_called
        assert results == [EINTR, EINTR]
        assert lwkt.threads == {}
        assert all(cpu.runmask == 0 and cpu.curthread is None for cpu in lwkt.cpus)


async def test_adopted_task_at_shutdown_gets_eintr(new_host: Any) -> None:
    """What if the machine stops under an adopted request:

    Does its host task get EINTR, not hang?
    """
    errors: list[int] = []

    async def request() -> None:
        await tsleep("never", 0, "req", 0)

    async with new_host() as lwkt, trio.open_nursery() as nursery:

        async def host() -> None:
            with pytest.raises(KError) as info:
                await lwkt.adopt(request, name="req", cpu=3)
            errors.append(info.value.errno)

        nursery.start_soon(host)
        await trio.testing.wait_all_tasks_blocked()
        await lwkt.shutdown()
    assert errors == [EINTR]


async def test_exception_of_adopted_task_goes_to_its_host(new_host: Any) -> None:
    """What if the body of an adopted thread raises: does the host task get it, the CPU go on?"""
    async with new_host() as lwkt:

        async def request() -> None:
            await lwkt_yield()
            raise KError(5)

        with pytest.raises(KError):
            await lwkt.adopt(request, name="req", cpu=0)
        assert await lwkt.adopt(_answer, name="req", cpu=0) == 42


async def _answer() -> int:
    await lwkt_yield()
    return 42


async def test_hand_over_between_drivers_and_cpus(new_host: Any) -> None:
    """What if 40 threads of both drivers wake each other over 4 CPUs: does each get its turns?"""
    async with new_host() as lwkt:
        turns = dict.fromkeys(range(40), 0)

        async def ring(n: int) -> None:
            for _ in range(20):
                await tsleep(("ring", n), 0, "ring", 0)
                turns[n] += 1
                wakeup(("ring", (n + 1) % 40))

        for n in range(40):
            lwkt.create(ring, n, cpu=n % 4, driver="task" if n % 3 else "coro")
        await trio.testing.wait_all_tasks_blocked()

        async def kick() -> None:
            wakeup(("ring", 0))

        lwkt.create(kick, cpu=0)
        await trio.testing.wait_all_tasks_blocked()
        assert set(turns.values()) == {20}


async def test_two_kernels_in_one_process(new_host: Any) -> None:
    """What if two machines run side by side under one trio: does each keep its own threads?"""
    async with new_host(2) as one, new_host(3) as two:
        log: list[tuple[int, int]] = []

        async def body(which: int, lwkt: Lwkt) -> None:
            for _ in range(50):
                assert _thread.curthread.cpu.lwkt is lwkt
                await lwkt_yield()
            log.append((which, _thread.curthread.cpu.cpuid))

        for which, lwkt in ((1, one), (2, two)):
            for cpu in range(len(lwkt.cpus)):
                for driver in ("task", "coro"):
                    lwkt.create(body, which, lwkt, cpu=cpu, driver=driver)
        await trio.testing.wait_all_tasks_blocked()
        assert len(log) == 10
        assert one.statistics().threads == two.statistics().threads == 0
