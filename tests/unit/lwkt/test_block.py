"""Block: synchronous cores that must wait, and the edge that runs them."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from dfuser.libkern.errno import EINTR, KError
from dfuser.lwkt.block import MAX_ROUNDS, Block, run_blocking
from dfuser.lwkt.lockmgr import Lock
from dfuser.lwkt.thread import lwkt_yield

from .conftest import Driver


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Garbage stays until the test asks for it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Core:
    """A synchronous core that must wait ``rounds`` times; its wait ends with ``error``."""

    def __init__(self, rounds: int, error: int = 0, exclusive: object = None) -> None:
        self.rounds = rounds
        self.error = error
        self.exclusive = exclusive

    async def wait(self) -> int:
        await lwkt_yield()
        return self.error

    def run(self, value: int) -> int:
        if self.rounds:
            self.rounds -= 1
            raise Block(self.wait, "core", self.exclusive)
        return value


async def test_parked_requests_leave_no_garbage(any_driver: Driver, no_collector: None) -> None:
    """What if 1,000 cores wait, for the last of them exclusively, and some are interrupted?"""
    lock = Lock("core")
    garbage: list[int] = []
    done: list[int] = []
    interrupted: list[int | None] = []

    async def body() -> None:
        await run_blocking(Core(1).run, 0)
        gc.collect()
        for n in range(1000):
            core = Core(n % (MAX_ROUNDS + 2), EINTR if n % 7 == 6 else 0, lock)
            try:
                done.append(await run_blocking(core.run, n))
            except KError as error:
                interrupted.append(error.errno)
        garbage.append(gc.collect())

    any_driver.create(body)
    await any_driver.run()
    assert garbage == [0]
    assert len(done) + len(interrupted) == 1000
    assert interrupted
    assert set(interrupted) == {EINTR}
    assert not lock.lockstatus()


async def test_a_core_that_fails_again_and_again_gets_the_lock(any_driver: Driver) -> None:
    """What if a busy object turns a core away three times: does it run under its lock then?"""
    lock = Lock("core")
    owned: list[bool] = []

    async def body() -> None:
        core = Core(MAX_ROUNDS + 1, exclusive=lock)

        def run(value: int) -> int:
            owned.append(lock.owned())
            return core.run(value)

        assert await run_blocking(run, 5) == 5

    any_driver.create(body)
    await any_driver.run()
    assert owned == [False] * MAX_ROUNDS + [True] * 2
    assert not lock.lockstatus()
