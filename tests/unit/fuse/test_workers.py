"""One reader at a time: who takes over while a request waits, and when the session is over."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from dfuser.fuse.stock import workers as module
from dfuser.fuse.stock.workers import Workers


class Loop:
    """Stands for pyfuse3's session loop: each worker reads until told, like the real one."""

    def __init__(self) -> None:
        self.reading = 0
        self.over = trio.Event()

    async def run(self, nursery: trio.Nursery, min_tasks: int, max_tasks: int) -> None:
        assert min_tasks == 0
        assert max_tasks < 0
        while not self.over.is_set() and self.reading <= min_tasks:
            self.reading += 1
            await self.over.wait()
            self.reading -= 1


async def test_a_waiting_request_is_replaced_and_the_end_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What if two requests wait while the host unmounts?
    loop = Loop()
    monkeypatch.setattr(module.pyfuse3, "_session_loop", loop.run)
    ends: list[int] = []
    workers = Workers(lambda: ends.append(workers.readers))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(workers.run)
        await trio.testing.wait_all_tasks_blocked()
        assert workers.statistics() == (1, 1)
        loop.reading -= 1  # the reader has taken a request that must wait
        workers.waits()
        await trio.testing.wait_all_tasks_blocked()
        assert workers.statistics() == (1, 2)
        workers.resumed()
        assert workers.readers == 2
        workers.waits()
        assert workers.statistics() == (1, 2)
        loop.reading += 1
        workers.resumed()
        loop.over.set()
    assert workers.readers == 0
    assert ends == [0]
