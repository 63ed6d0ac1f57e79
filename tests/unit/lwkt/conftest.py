"""Fixtures: a deterministic machine, and one body of test run by both thread drivers."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from dfuser.hw.clock import HostClock, VirtualClock
from dfuser.libkern.ktr import Ktr
from dfuser.libkern.log import MsgBuf
from dfuser.lwkt.machine import Lwkt

from .vtime import TimedDriver, timed_driver


def make_lwkt(ncpu: int = 4, **kwargs: Any) -> Lwkt:
    """A machine on virtual time with its own trace rings and log."""
    clock = kwargs.pop("clock", None) or VirtualClock()
    entries = kwargs.pop("entries", 256)
    return Lwkt(ncpu, clock, Ktr(ncpu, clock, entries=entries), MsgBuf(), **kwargs)


@pytest.fixture
def lwkt() -> Iterator[Lwkt]:
    """A machine of four CPUs without an event loop; nothing may be left when the test ends."""
    machine = make_lwkt()
    yield machine
    machine.shutdown_nowait()
    assert not machine.threads


class Driver:
    """Runs threads to their end on one of the two drivers."""

    def __init__(self, kind: str, lwkt: Lwkt) -> None:
        self.kind = kind
        self.lwkt = lwkt

    def create(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Create a thread with this driver."""
        return self.lwkt.create(func, *args, driver=self.kind, **kwargs)

    async def run(self) -> None:
        """Let the machine run until every thread has ended or waits for ever."""
        if self.kind == "coro":
            self.lwkt.run_until_idle()
            return
        while True:
            await trio.testing.wait_all_tasks_blocked()
            if not any(cpu.has_work() or cpu.curthread is not None for cpu in self.lwkt.cpus):
                return


@pytest.fixture(params=["coro", "task"])
async def any_driver(request: pytest.FixtureRequest) -> AsyncIterator[Driver]:
    """The same test body on coroutine threads without a loop, and on trio tasks."""
    if request.param == "coro":
        machine = make_lwkt()
        yield Driver("coro", machine)
        await machine.shutdown()
        assert not machine.threads
        return
    clock = HostClock()
    machine = make_lwkt(clock=clock, default_driver="task")
    async with trio.open_nursery() as nursery:
        await nursery.start(clock.run)
        await machine.start(nursery)
        yield Driver("task", machine)
        await machine.shutdown()
        assert not machine.threads
        nursery.cancel_scope.cancel()


@pytest.fixture(params=["coro", "task"])
async def timed(request: pytest.FixtureRequest, rng: random.Random) -> AsyncIterator[TimedDriver]:
    """Four CPUs on virtual time; all their threads on one driver, the primitives' own too."""
    lwkt = make_lwkt(default_driver=request.param)
    async with timed_driver(request.param, lwkt, rng) as driver:
        yield driver


@pytest.fixture
def new_lwkt() -> Iterator[Callable[..., Lwkt]]:
    """Makes as many machines as a test wants; all are shut down and left empty."""
    machines: list[Lwkt] = []

    def make(ncpu: int = 4, **kwargs: Any) -> Lwkt:
        machine = make_lwkt(ncpu, **kwargs)
        machines.append(machine)
        return machine

    yield make
    for machine in machines:
        machine.shutdown_nowait()
        assert not machine.threads


@asynccontextmanager
async def host_machine(ncpu: int = 4, **kwargs: Any) -> AsyncIterator[Lwkt]:
    """A machine run by trio; everything has ended when the block is left."""
    clock = HostClock()
    machine = make_lwkt(ncpu, clock=clock, **{"default_driver": "task", **kwargs})
    async with trio.open_nursery() as nursery:
        await nursery.start(clock.run)
        await machine.start(nursery)
        yield machine
        await machine.shutdown()
        assert not machine.threads
        assert all(cpu.loop_task is None for cpu in machine.cpus)
        nursery.cancel_scope.cancel()


@pytest.fixture
def new_host() -> Callable[..., Any]:
    """``async with new_host() as lwkt:`` is a machine under trio."""
    return host_machine
