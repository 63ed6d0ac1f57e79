"""Running a machine over virtual time."""

from __future__ import annotations

import random

from dfuser.hw.clock import VirtualClock
from dfuser.libkern.param import NSEC_PER_TICK
from dfuser.lwkt.machine import Lwkt


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
