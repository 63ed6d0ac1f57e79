"""Running a machine over virtual time, on one of the two thread drivers or on both."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing

from dfuser.hw.clock import VirtualClock
from dfuser.libkern.param import NSEC_PER_TICK
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.thread import Thread


def clock_of(lwkt: Lwkt) -> VirtualClock:
    """The virtual clock a deterministic machine was made with."""
    assert isinstance(lwkt.clock, VirtualClock)
    return lwkt.clock


def run_ticks(lwkt: Lwkt, ticks: int, rng: random.Random | None = None) -> None:
    """Run, and let ``ticks`` ticks pass, stopping at each deadline on the way."""
    clock = clock_of(lwkt)
    end = clock.monotonic_ns() + ticks * NSEC_PER_TICK
    lwkt.run_until_idle(rng=rng)
    while (deadline := clock.next_deadline()) is not None and deadline <= end:
        clock.advance(max(0, deadline - clock.monotonic_ns()))
        lwkt.run_until_idle(rng=rng)
    clock.advance(end - clock.monotonic_ns())
    lwkt.run_until_idle(rng=rng)


def run_all(lwkt: Lwkt, rng: random.Random | None = None) -> None:
    """Run until every CPU is idle and no alarm is armed."""
    clock = clock_of(lwkt)
    lwkt.run_until_idle(rng=rng)
    while (deadline := clock.next_deadline()) is not None:
        clock.advance(max(0, deadline - clock.monotonic_ns()))
        lwkt.run_until_idle(rng=rng)


class TimedDriver:
    """One of the two thread drivers on virtual time, which stands still while anything runs.

    With "coro" there is no loop, and ``rng`` orders the turns of the CPUs. With "task" each thread
    is a trio task, each CPU has its loop, and trio orders them; only time is the test's.
    """

    def __init__(self, kind: str, lwkt: Lwkt, rng: random.Random | None = None) -> None:
        self.kind = kind
        self.lwkt = lwkt
        self.rng = rng

    def create(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Thread:
        """Create a thread with this driver."""
        td = self.lwkt.create(func, *args, driver=self.kind, **kwargs)
        assert td.coro == (self.kind == "coro")
        return td

    async def idle(self) -> None:
        """Let the machine run until every thread has ended or waits; no time passes."""
        if self.kind == "coro":
            self.lwkt.run_until_idle(rng=self.rng)
            return
        while True:
            await trio.testing.wait_all_tasks_blocked()
            if not any(cpu.has_work() or cpu.curthread is not None for cpu in self.lwkt.cpus):
                return

    async def ticks(self, ticks: int) -> None:
        """`run_ticks` on either driver."""
        clock = clock_of(self.lwkt)
        end = clock.monotonic_ns() + ticks * NSEC_PER_TICK
        await self.idle()
        while (deadline := clock.next_deadline()) is not None and deadline <= end:
            clock.advance(max(0, deadline - clock.monotonic_ns()))
            await self.idle()
        clock.advance(end - clock.monotonic_ns())
        await self.idle()

    async def all(self) -> None:
        """`run_all` on either driver."""
        clock = clock_of(self.lwkt)
        await self.idle()
        while (deadline := clock.next_deadline()) is not None:
            clock.advance(max(0, deadline - clock.monotonic_ns()))
            await self.idle()


@asynccontextmanager
async def timed_driver(kind: str, lwkt: Lwkt, rng: random.Random) -> AsyncIterator[TimedDriver]:
    """``lwkt``, made on virtual time, run by one driver; it is empty when the block is left."""
    if kind == "coro":
        yield TimedDriver(kind, lwkt, rng)
        await lwkt.shutdown()
        assert not lwkt.threads
        return
    async with trio.open_nursery() as nursery:
        await lwkt.start(nursery)
        yield TimedDriver(kind, lwkt, rng)
        await lwkt.shutdown()
        assert not lwkt.threads
        assert all(cpu.loop_task is None for cpu in lwkt.cpus)
