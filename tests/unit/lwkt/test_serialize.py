"""Serializers and reference counts."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from dfuser.libkern.errno import Panic
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.refcount import Refcount
from dfuser.lwkt.serialize import SLZ_PENDING_MAX, LwktSerialize
from dfuser.lwkt.thread import cpu_pause, lwkt_yield


async def test_one_thread_inside_at_a_time(any_driver: Any) -> None:
    """What if threads of four CPUs enter and wait inside: is one inside at a time?"""
    slz = LwktSerialize()
    inside = total = 0

    async def body(adaptive: bool) -> None:
        nonlocal inside, total
        for _ in range(10):
            await (slz.adaptive_enter() if adaptive else slz.enter())
            inside += 1
            assert inside == 1
            await cpu_pause()
            await lwkt_yield()
            inside -= 1
            total += 1
            slz.exit()
            await lwkt_yield()

    for n in range(8):
        any_driver.create(body, n % 2 == 1, cpu=n % 4)
    await any_driver.run()
    assert total == 80
    assert slz.statistics().enters == 80
    assert not slz.held


def test_handler_never_overlaps_a_holder(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if an interrupt storm meets a held serializer: no overlap, no call lost, order kept?"""
    lwkt = new_lwkt(2)
    slz = LwktSerialize()
    inside = False
    got: list[int] = []
    sent = 0

    def handler(number: int) -> None:
        assert not inside
        got.append(number)

    async def device() -> None:
        nonlocal sent
        for number in range(300):
            lwkt.cpus[0].interrupt(slz.handler_call, handler, number)
            sent += 1
            await lwkt_yield()

    async def driver() -> None:
        nonlocal inside
        while sent < 300:
            async with slz:
                inside = True
                for _ in range(3):
                    await cpu_pause()
                inside = False
            await lwkt_yield()

    lwkt.create(device, cpu=1)
    lwkt.create(driver, cpu=0)
    lwkt.run_until_idle(rng=random.Random(2))
    assert got == list(range(300))
    stats = slz.statistics()
    assert stats.calls == 300
    assert 0 < stats.kept < 300
    assert stats.dropped == 0


def test_disable_drops_calls_and_try_refuses(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if handlers are disabled, or the serializer is held:

    Dropped, refused, then run again?
    """
    lwkt = new_lwkt(1)
    slz = LwktSerialize()
    got: list[str] = []

    async def body() -> None:
        assert slz.handler_try(got.append, "try") == 0
        await slz.enter()
        assert slz.handler_try(got.append, "held") == 1
        slz.handler_call(got.append, "dropped at exit")
        slz.handler_disable()
        slz.exit()
        slz.handler_call(got.append, "dropped")
        assert slz.handler_try(got.append, "disabled") == 1
        slz.handler_enable()
        slz.handler_call(got.append, "call")
        assert slz.try_enter()
        for _ in range(SLZ_PENDING_MAX + 3):
            slz.handler_call(got.append, "kept")
        slz.exit()

    lwkt.create(body)
    lwkt.run_until_idle()
    assert got == ["try", "call"] + ["kept"] * SLZ_PENDING_MAX
    stats = slz.statistics()
    assert stats.dropped == 2 + 3
    assert stats.tryfails == 2
    assert stats.calls == len(got)


@pytest.mark.parametrize("how", ["enter twice", "exit free"])
def test_misuse_panics(new_lwkt: Callable[..., Lwkt], how: str) -> None:
    """What if a thread enters twice or leaves what it is not inside of: a panic?"""
    lwkt = new_lwkt(1)
    slz = LwktSerialize("drv")

    async def body() -> None:
        if how == "enter twice":
            await slz.enter()
            slz.try_enter()
        slz.exit()

    lwkt.create(body)
    with pytest.raises(Panic, match="serializer drv"):
        lwkt.run_until_idle()


async def test_refcount_wait_returns_at_zero(any_driver: Any) -> None:
    """What if a thread waits for all references to go: does it wake at the last, not before?"""
    ref = Refcount(1)
    ref.acquire_n(4)
    log: list[str] = []

    async def waiter() -> None:
        await ref.wait("drain")
        log.append("drained")

    async def user(n: int) -> None:
        for _ in range(n):
            await lwkt_yield()
        log.append(str(ref.release_wakeup()))

    td = any_driver.create(waiter, cpu=0)
    await any_driver.run()
    assert td.wmesg == "drain"
    for n in range(5):
        any_driver.create(user, n, cpu=1)
    await any_driver.run()
    assert log == ["False"] * 4 + ["True", "drained"]
    with pytest.raises(Panic, match="1 references released, 0 held"):
        ref.release()
    ref.acquire()
    assert ref.release()
