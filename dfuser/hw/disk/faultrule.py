"""The rules of a fault plan: what shall happen to which requests.

A `FaultRule` is a value; `plan` reads and writes it as text. An `ArmedRule` is a rule at work in
one `fault.FaultDisk`: it counts what it concerns and decides whether it strikes.

Counterpart: none in DragonFly.
Token/lock order: takes none.
Invariants: ``fired`` is at most ``matched``, and at most ``times`` where that is set. Chance is
    drawn only for requests that a rule with a probability concerns, in their order.
"""

from __future__ import annotations

import random
from enum import Enum

import attrs

from dfuser.libkern.errno import EIO

from .disk import DiskCmd, DiskRequest


class Fault(Enum):
    """What a rule does to a request."""

    EIO = "eio"
    SHORT = "short"
    TORN = "torn"
    DELAY = "delay"


@attrs.frozen
class FaultRule:
    """One line of a plan.

    Attributes:
        action: what happens.
        cmds: to which commands.
        start, end: to requests that touch these bytes; no end is the end of the disk.
        probability: how often, among the requests that match.
        nth: only to the n-th request that matches, counted from 1; 0 is to each.
        times: at most so often; 0 is without end.
        delay_ns: shortest and longest delay.
        grain: where a write is torn, 512 or 4096.
        silent: report success all the same.
        error: the errno to fail with.
    """

    action: Fault
    cmds: frozenset[DiskCmd] = frozenset(DiskCmd)
    start: int = 0
    end: int | None = None
    probability: float = 1.0
    nth: int = 0
    times: int = 0
    delay_ns: tuple[int, int] = (0, 0)
    grain: int = 512
    silent: bool = False
    error: int = EIO

    def concerns(self, request: DiskRequest) -> bool:
        """Whether the request is of the rule's kind and in its range."""
        if request.cmd not in self.cmds:
            return False
        if request.cmd is DiskCmd.FLUSH:
            return True
        return request.end > self.start and (self.end is None or request.offset < self.end)


@attrs.define
class ArmedRule:
    """A rule at work: how many requests it concerned, and to how many it did something."""

    rule: FaultRule
    matched: int = 0
    fired: int = 0

    def strikes(self, request: DiskRequest, rng: random.Random) -> bool:
        """Whether the rule does something to this request. Counts."""
        rule = self.rule
        if not rule.concerns(request):
            return False
        self.matched += 1
        if rule.times and self.fired >= rule.times:
            return False
        if rule.nth and self.matched != rule.nth:
            return False
        if rule.probability < 1.0 and rng.random() >= rule.probability:
            return False
        self.fired += 1
        return True
