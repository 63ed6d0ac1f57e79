"""mtx: counts, links, callbacks, aborts, and a contended run against a model."""

from __future__ import annotations

import random

import pytest

from dfuser.libkern.errno import (
    EAGAIN,
    EDEADLK,
    EINPROGRESS,
    EINTR,
    ENOLCK,
    EWOULDBLOCK,
    Panic,
)
from dfuser.libkern.param import PCATCH
from dfuser.lwkt import thread as thread_mod
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.mtx import (
    MTX_EXCLUSIVE,
    MTX_EXWANTED,
    MTX_LINK_CALLEDBACK,
    MTX_LINK_IDLE,
    MTX_MASK,
    MTX_SHWANTED,
    Mtx,
    MtxLink,
)
from dfuser.lwkt.sleepq import synch_of
from dfuser.lwkt.synch import abort_sleep, tsleep, wakeup
from dfuser.lwkt.thread import cpu_pause, lwkt_yield

from .conftest import Driver
from .vtime import run_ticks


async def test_exclusive_before_shared_in_order(any_driver: Driver) -> None:
    """What if exclusive and shared requests wait for an exclusive owner?"""
    mtx = Mtx("test")
    order: list[str] = []

    async def owner() -> None:
        assert await mtx.lock_ex() == 0
        assert await mtx.lock_ex() == 0, "exclusive locks recurse"
        await tsleep("go", 0, "test")
        assert mtx.mtx_lock == MTX_EXCLUSIVE | MTX_EXWANTED | MTX_SHWANTED | 2
        mtx.unlock()
        assert order == []
        mtx.unlock()

    async def exclusive(name: str) -> None:
        assert await mtx.lock_ex() == 0
        order.append(name)
        await lwkt_yield()
        mtx.unlock()

    async def shared(name: str) -> None:
        assert await mtx.lock_sh() == 0
        order.append(name)
        await lwkt_yield()
        mtx.unlock()

    any_driver.create(owner, cpu=0)
    await any_driver.run()
    for name in ("s1", "s2"):
        td = any_driver.create(shared, name, cpu=1)
    await any_driver.run()
    for name in ("x1", "x2"):
        any_driver.create(exclusive, name, cpu=0)
    await any_driver.run()
    assert td.wmesg == "test"
    any_driver.lwkt.cpus[2].interrupt(wakeup, "go")
    await any_driver.run()
    assert order == ["x1", "x2", "s1", "s2"]
    assert mtx.mtx_lock == 0
    assert mtx.statistics().collisions == 4


def test_try_and_convert(lwkt: Lwkt) -> None:
    """What if locks are tried, upgraded and downgraded without waiting?"""
    mtx = Mtx("test")
    done: list[str] = []

    async def user() -> None:
        assert mtx.lock_sh_try() == 0
        assert mtx.lock_ex_try() == EAGAIN
        assert mtx.lock_sh_try() == 0
        assert mtx.upgrade_try() == EDEADLK
        mtx.unlock()
        assert mtx.upgrade_try() == 0
        assert mtx.owned()
        assert mtx.upgrade_try() == 0
        assert mtx.lock_ex_try() == 0
        assert mtx.lockrefs() == 2
        assert mtx.lock_sh_try() == EAGAIN
        mtx.downgrade()
        assert mtx.mtx_lock & MTX_MASK == 2
        assert not mtx.islocked_ex()
        mtx.downgrade()
        mtx.unlock()
        mtx.unlock()
        assert not mtx.islocked()
        with pytest.raises(Panic):
            mtx.unlock()
        done.append("ok")

    lwkt.create(user, cpu=0)
    lwkt.run_until_idle()
    assert done == ["ok"]


def test_downgrade_lets_shared_in(lwkt: Lwkt) -> None:
    """What if shared requests wait while the owner downgrades, with an exclusive one waiting?"""
    mtx = Mtx("test")
    order: list[str] = []

    async def owner() -> None:
        await mtx.lock_ex()
        await tsleep("go", 0, "test")
        mtx.downgrade()
        assert mtx.lockrefs() == 2
        await tsleep("go", 0, "test")
        mtx.unlock()

    async def shared() -> None:
        await mtx.lock_sh()
        order.append("shared")
        mtx.unlock()

    async def exclusive() -> None:
        await mtx.lock_ex()
        order.append("exclusive")
        mtx.unlock()

    lwkt.create(owner, cpu=0)
    lwkt.run_until_idle()
    lwkt.create(shared, cpu=1)
    lwkt.create(exclusive, cpu=2)
    lwkt.run_until_idle()
    for _ in range(2):
        lwkt.cpus[3].interrupt(wakeup, "go")
        lwkt.run_until_idle()
    assert order == ["shared", "exclusive"]


def test_limits_of_a_wait(lwkt: Lwkt) -> None:
    """What if the wait ends by time or signal: are those it held back let in?"""
    mtx = Mtx("test")
    results: dict[str, int] = {}

    async def holder() -> None:
        await mtx.lock_sh()
        await tsleep("go", 0, "test")
        mtx.unlock()

    async def timed() -> None:
        results["timed"] = await mtx.lock_ex(0, 5)

    async def caught() -> None:
        results["caught"] = await mtx.lock_ex(PCATCH)

    async def shared() -> None:
        results["shared"] = await mtx.lock_sh()
        mtx.unlock()

    lwkt.create(holder, cpu=0)
    lwkt.run_until_idle()
    lwkt.create(timed, cpu=1)
    td = lwkt.create(caught, cpu=2)
    lwkt.run_until_idle()
    lwkt.create(shared, cpu=3)
    lwkt.run_until_idle()
    run_ticks(lwkt, 5)
    assert results == {"timed": EWOULDBLOCK}
    abort_sleep(td, EINTR)
    lwkt.run_until_idle()
    assert results == {"timed": EWOULDBLOCK, "caught": EINTR, "shared": 0}
    assert mtx.mtx_lock == 1
    lwkt.cpus[0].interrupt(wakeup, "go")
    lwkt.run_until_idle()
    assert mtx.mtx_lock == 0


def test_asynchronous_links(lwkt: Lwkt) -> None:
    """What if requests are queued with callbacks: granted, and aborted?"""
    mtx = Mtx("test")
    called: list[tuple[str, int, bool]] = []

    def callback(name: str) -> MtxLink:
        return MtxLink(lambda link, error: called.append((name, error, mtx.islocked_ex())))

    async def user() -> None:
        await mtx.lock_ex()
        granted, aborted, shared = callback("granted"), callback("aborted"), callback("shared")
        assert mtx.lock_sh_link_nowait(shared) == EINPROGRESS
        mtx.owner = None  # ours is not recursive for what follows
        assert mtx.lock_ex_link_nowait(granted) == EINPROGRESS
        assert mtx.lock_ex_link_nowait(aborted) == EINPROGRESS
        mtx.owner = thread_mod.curthread
        assert called == []
        mtx.abort_link(aborted)
        assert called == [("aborted", ENOLCK, True)]
        mtx.unlock()
        assert called[1:] == [("granted", 0, True)]
        assert mtx.owned(), "granted to the thread that asked"
        mtx.abort_link(granted)
        assert granted.state == MTX_LINK_CALLEDBACK, "too late to abort"
        mtx.unlock()
        assert called[2:] == [("shared", 0, False)]
        mtx.unlock()
        assert not mtx.islocked()

    lwkt.create(user, cpu=0)
    lwkt.run_until_idle()
    assert len(called) == 3


def test_abort_of_a_waiting_and_of_an_idle_link(lwkt: Lwkt) -> None:
    """What if a link is aborted while its thread sleeps, and before it is used?"""
    mtx = Mtx("test")
    link = MtxLink()
    results: list[int] = []

    async def owner() -> None:
        await mtx.lock_ex()
        await tsleep("go", 0, "test")
        mtx.unlock()

    async def waiter() -> None:
        results.append(await mtx.lock_ex_link(link))
        assert link.state == MTX_LINK_IDLE
        mtx.abort_link(link)
        results.append(await mtx.lock_sh_link(link))

    lwkt.create(owner, cpu=0)
    lwkt.run_until_idle()
    lwkt.create(waiter, cpu=1)
    lwkt.run_until_idle()

    async def aborter() -> None:
        mtx.abort_link(link)

    lwkt.create(aborter, cpu=2)
    lwkt.run_until_idle()
    assert results == [ENOLCK, ENOLCK]
    assert mtx.mtx_lock == MTX_EXCLUSIVE | 1
    lwkt.cpus[0].interrupt(wakeup, "go")
    lwkt.run_until_idle()
    assert mtx.mtx_lock == 0


@pytest.mark.parametrize("seed", range(15))
def test_contended_against_a_model(lwkt: Lwkt, seed: int) -> None:
    """What if 16 threads on four CPUs lock, convert and give up at random?"""
    rng = random.Random(seed)
    mtx = Mtx("model")
    holds: dict[int, str] = {}
    waits = 0

    def hold(who: int, mode: str) -> None:
        holds[who] = mode
        modes = list(holds.values())
        assert "X" not in modes or len(modes) == 1

    async def user(who: int) -> None:
        nonlocal waits
        for _ in range(20):
            mode = rng.choice("SX")
            lock = mtx.lock_ex if mode == "X" else mtx.lock_sh
            before = mtx.colls
            error = await lock(0, rng.choice((0, 0, 2)))
            waits += mtx.colls - before > 0
            if error:
                assert error == EWOULDBLOCK
                continue
            hold(who, mode)
            if rng.random() < 0.5:
                await cpu_pause()
            if mode == "X" and rng.random() < 0.3:
                mtx.downgrade()
                hold(who, "S")
            elif mode == "S" and rng.random() < 0.3 and not mtx.upgrade_try():
                hold(who, "X")
            if rng.random() < 0.3:
                await tsleep("hold", 0, "test", 1)
            else:
                await lwkt_yield()
            del holds[who]
            mtx.unlock()

    tds = [lwkt.create(user, who, cpu=who % 4) for who in range(16)]
    for _ in range(500):
        run_ticks(lwkt, 1, rng)
    assert all(td.state == "Z" for td in tds)
    assert not holds
    assert mtx.mtx_lock == 0
    assert mtx.statistics().collisions > 0
    assert synch_of(lwkt).statistics().sleepers == 0


def test_statistics_agree_with_an_observer(lwkt: Lwkt) -> None:
    """What if somebody outside counts the requests that found the mutex taken?"""
    rng = random.Random(2)
    mtx = Mtx("stat")
    waited = 0

    async def user() -> None:
        nonlocal waited
        for _ in range(30):
            waited += mtx.islocked()
            await mtx.lock_ex()
            await lwkt_yield()
            mtx.unlock()

    for cpu in range(4):
        lwkt.create(user, cpu=cpu)
    lwkt.run_until_idle(rng=rng)
    assert waited == mtx.statistics().collisions > 0
