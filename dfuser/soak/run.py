"""A run of random operations: the loop that the testers of names share.

A tester does the next operation of a seeded stream and compares (`step`); every `CHECK_EVERY`
operations, and at the end, it compares the whole tree (`check`). What is compared with what is the
tester's matter.

Counterpart: none.
Differs from DragonFly: an addition.
Token/lock order: takes none; it is a host program.
Invariants: an operation is in the log before it is done, so that a failure tells it.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from typing import ClassVar, Final

from dfuser.soak.operations import Operation, stream
from dfuser.soak.report import OperationLog, SoakFailure

CHECK_EVERY: Final = 1000


class StreamRun(ABC):
    """A tester driven by a stream of operations.

    Attributes:
        seed: what the stream of operations is drawn from.
    """

    __slots__ = ("_log", "_stream", "seed")

    #: How failures name the tester.
    name: ClassVar[str]

    def __init__(self, seed: int, *, without: frozenset[str] = frozenset()) -> None:
        """Prepare a run; `without` names calls that are never drawn."""
        self.seed = seed
        self._log = OperationLog()
        self._stream = stream(seed, privileged=os.geteuid() == 0, without=without)

    @property
    def operations(self) -> int:
        """How many operations were done."""
        return self._log.count

    def run(self, operations: int | None = None, seconds: float | None = None) -> int:
        """Do `operations`, or as many as fit into `seconds`; return how many were done.

        The process' umask is 0 meanwhile, so that modes arrive as they were drawn.

        Raises:
            SoakFailure: an answer or a tree is not as it must be.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        mask = os.umask(0)
        try:
            while operations is None or self._log.count < operations:
                if deadline is not None and time.monotonic() >= deadline:
                    break
                self.step()
                if self._log.count % CHECK_EVERY == 0:
                    self.check()
            self.check()
        finally:
            os.umask(mask)
        return self._log.count

    def step(self) -> None:
        """Do the next operation and compare its answer.

        Raises:
            SoakFailure: the answer differs.
        """
        operation = next(self._stream)
        self._log.add(str(operation))
        difference = self.compare(operation)
        if difference:
            raise self._failure(f"{operation}: {difference}")

    def check(self) -> None:
        """Compare the trees whole.

        Raises:
            SoakFailure: something differs.
        """
        difference = self.difference()
        if difference:
            raise self._failure(difference)

    @abstractmethod
    def compare(self, operation: Operation) -> str:
        """Do an operation and compare the answers: what differs, or ""."""

    @abstractmethod
    def difference(self) -> str:
        """The first difference between the trees, or ""."""

    def _failure(self, what: str) -> SoakFailure:
        return SoakFailure(self.name, self.seed, self._log.count, what, self._log.lines())
