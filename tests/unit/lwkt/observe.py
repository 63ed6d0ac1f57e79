"""What the tests of counters share: an observer has to look from outside."""

from __future__ import annotations

from collections import Counter

import pytest

from dfuser.lwkt import thread as _thread
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.thread import TDF

SEEDS = pytest.mark.parametrize("seed", range(6))


def noted(lwkt: Lwkt, master: str) -> Counter[str]:
    """How often each point of a trace master has been noted."""
    return Counter({p.name: c.count for p, c in lwkt.ktr.master(master).points.items()})


def sleepers_on(lwkt: Lwkt, wmesg: str) -> int:
    """Threads on a sleep queue with this wait message."""
    return sum(td.wmesg == wmesg and bool(td.flags & TDF.TSLEEPQ) for td in lwkt.threads.values())


def turns() -> int:
    """How often the running thread has been elected: who has not waited has not been again."""
    return _thread.curthread.switches
