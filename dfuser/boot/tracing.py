"""Tracers: what a layer that can be traced looks like to those who show its trace.

A layer (the FUSE bridge is the first) makes a `Tracer` and gives it to the kernel among its other
owners of variables. Who shows traces, the control socket and ``/kern``, finds it there by name and
knows nothing else of the layer.

A reader opens a `Tap`: it says what it wants to see, and for as long as it is open the layer
traces that much. Levels are counted by users in this way: the level in force is the highest of the
variable's and of all taps, and falls back when a tap is closed.

Counterpart: none; ktrace(2) and ktr(9) are the models.
Token/lock order: takes none.
Invariants: a tracer that nobody taps and whose variable is 0 costs one comparison a request.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import attrs

from dfuser.libkern.latency import LatencyRow, bars

if TYPE_CHECKING:
    from .kernel import Kernel

#: Levels: nothing; count and time; keep a line of each as well.
OFF: Final = 0
COUNT: Final = 1
DECODE: Final = 2


class Want(NamedTuple):
    """What a tap is for.

    Attributes:
        level: COUNT or DECODE.
        ops: names of operations, in capitals; none means all.
        pid: of the caller on the host; -1 means any.
        connection: the name of one, or the empty string for all.
        begun: tell of requests that wait, too.
        limit: end after so many operations; 0 for never.
    """

    level: int = DECODE
    ops: tuple[str, ...] = ()
    pid: int = -1
    connection: str = ""
    begun: bool = False
    limit: int = 0


class TapAnswer(NamedTuple):
    """What a tap gives at a reading.

    Attributes:
        records: lines as plain data, oldest first.
        lost: lines that were overwritten before this reading.
        over: whether this tap has seen as many operations as it wanted.
    """

    records: list[dict[str, Any]]
    lost: int
    over: bool


class Tap(ABC):
    """One reader of a tracer."""

    __slots__ = ()

    @abstractmethod
    def read(self, count: int) -> TapAnswer:
        """At most `count` lines that were not read before. Never waits."""

    @abstractmethod
    def unread(self) -> int:
        """How many lines there are to look at, before they are filtered."""

    @abstractmethod
    def summary(self) -> list[LatencyRow]:
        """What this tap has seen, by operation."""


class Tracer(ABC):
    """A layer that can be traced."""

    #: Its name, for ``dfuser trace --layer``.
    layer = ""

    @abstractmethod
    def operations(self) -> list[str]:
        """The names that `Want.ops` may have."""

    @abstractmethod
    def note(self) -> str:
        """What a reader should know beforehand (nothing can be traced, and why), or nothing."""

    @abstractmethod
    def open_tap(self, key: str, want: Want) -> Tap:
        """Begin to trace for a reader; the tap that has this key already, if there is one.

        Raises:
            KError: EINVAL, an operation that does not exist; EAGAIN, too many taps.
        """

    @abstractmethod
    def find_tap(self, key: str) -> Tap | None:
        """An open tap."""

    @abstractmethod
    def close_tap(self, key: str) -> None:
        """End a tap, if it is there; the level falls back to what the others want."""

    @abstractmethod
    def listen(self, fn: Callable[[], None]) -> None:
        """Call `fn` when a good part of the lines that can be kept is new. It must not raise."""

    @abstractmethod
    def unlisten(self, fn: Callable[[], None]) -> None:
        """The opposite of `listen`."""

    @abstractmethod
    def latency(self) -> list[LatencyRow]:
        """What was counted since boot or `reset`, by operation, most time first."""

    @abstractmethod
    def reset(self) -> None:
        """Forget what was counted, and the lines."""

    @abstractmethod
    def statistics(self) -> Any:
        """Counters since boot."""


def tracers(kernel: Kernel) -> dict[str, Tracer]:
    """The tracers there are at this moment, by layer."""
    return {owner.layer: owner for owner in kernel.owners() if isinstance(owner, Tracer)}


#: Columns of a table of latencies in /kern.
COLUMNS: Final = (
    "op", "count", "errors", "mean_ns", "p50_ns", "p90_ns", "p99_ns", "max_ns", "histogram",
)  # fmt: skip


def latency_view(kernel: Kernel, layer: str) -> Callable[[], Iterable[dict[str, Any]]]:
    """What gives the rows of a layer's latencies; none while the layer is not there."""

    def rows() -> Iterator[dict[str, Any]]:
        tracer = tracers(kernel).get(layer)
        for row in tracer.latency() if tracer is not None else ():
            yield {**attrs.asdict(row), "histogram": bars(row.buckets)}

    return rows
