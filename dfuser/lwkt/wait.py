"""Wait queues with a generation count: ``lwkt_block`` and ``lwkt_signal`` of the 2004 paper.

A `LwktWait` counts signals. A thread that wants to wait for something remembers the generation,
looks whether it has happened, and blocks with the generation it remembers: when a signal came in
between, the count has moved on and the call returns at once. That is the whole interlock::

    gen = w.gen
    if not done():
        await lwkt_block(w, "wait", gen)

Counterpart: lwkt_wait_t, Table I of "The DragonFly BSD Operating System" (2004); gone from today's
sources, where tsleep has taken its place. Kept as a thin layer for code written against the paper.
Differs from the original: the queue is a tsleep queue, so waiters are seen like all other sleepers.
Token and lock order: takes none.
Invariants: a signal after the generation was read is never lost; ``waiting`` counts the threads
that sleep now; they are woken in the order in which they blocked on each CPU.
"""

from __future__ import annotations

import attrs

from dfuser.libkern.ktr import KtrInfo
from dfuser.libkern.param import PINTERLOCKED

from . import thread as _thread
from .sleepq import count_asleep
from .synch import tsleep, tsleep_interlock, wakeup, wakeup_one
from .thread import Thread


@attrs.frozen
class WaitStatistics:
    """What `LwktWait.statistics` returns: waiters and generation now; signals since it was made."""

    waiting: int
    gen: int
    signals: int


class LwktWait:
    """A wait queue. Counterpart: struct lwkt_wait (2004)."""

    __slots__ = ("gen", "inside", "signals")

    ktr_block = KtrInfo("wait", "block", "%s by %s gen %d")
    ktr_signal = KtrInfo("wait", "signal", "count %d gen %d")

    def __init__(self) -> None:
        self.gen = 0
        #: The threads in `lwkt_block`, those that have been woken and have not run yet included.
        self.inside: dict[Thread, None] = {}
        self.signals = 0

    @property
    def waiting(self) -> int:
        """Threads asleep on the queue now."""
        return count_asleep(self.inside, self)

    def statistics(self) -> WaitStatistics:
        """What waits now, and how often it was signalled."""
        return WaitStatistics(waiting=self.waiting, gen=self.gen, signals=self.signals)


async def lwkt_block(w: LwktWait, wmesg: str, gen: int) -> None:
    """Wait on ``w`` until it is signalled; return at once if it was since ``gen`` was read.

    Args:
        w: the wait queue.
        wmesg: what ``ps`` shows meanwhile, at most 8 characters.
        gen: ``w.gen`` as read before the condition was looked at.
    """
    if w.gen != gen:
        return
    td = _thread.curthread
    ktr = td.cpu.lwkt.ktr.master("wait")
    if ktr.mask:
        ktr.log(w.ktr_block, wmesg, td.name, gen)
    tsleep_interlock(w)
    w.inside[td] = None
    try:
        await tsleep(w, PINTERLOCKED, wmesg)
    finally:
        del w.inside[td]


def lwkt_signal(w: LwktWait, count: int) -> None:
    """Advance the generation and wake up to ``count`` waiters; a count below 1 wakes all.

    Never suspends.
    """
    w.gen += 1
    w.signals += 1
    ktr = _thread.curthread.cpu.lwkt.ktr.master("wait")
    if ktr.mask:
        ktr.log(w.ktr_signal, count, w.gen)
    if count < 1:
        wakeup(w)
        return
    for _ in range(min(count, w.waiting)):
        wakeup_one(w)
