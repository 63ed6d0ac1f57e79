"""How long things take: counters and a histogram of latencies, one a kind of operation.

A `Latency` has 27 buckets whose bounds double, from 256 ns to 8.6 s; noting one duration is a
shift, a few additions and no allocation. From the buckets come percentiles: the rank is looked up
and the place inside its bucket interpolated, so an estimate lies in the bucket of the true value
and is never more than twice or less than half of it. Mean and maximum are exact.

`bars` shows a histogram in a line of characters, one a bucket, for the last column of a table;
`chart` as lines, one a bucket, for the end of a report.

Counterpart: none; the devstat(9) times are the nearest relative, biolatency of BCC the model.
Token/lock order: takes none; may be used by interrupts.
Invariants: the buckets together are the count; total and maximum cover exactly what was noted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import attrs

#: Buckets, and the least power of two that bounds one: 2**8 ns.
BUCKETS: Final = 27
FIRST: Final = 8
#: Exclusive upper bounds of all buckets but the last, in nanoseconds.
BOUNDS: Final = tuple(1 << n for n in range(FIRST, FIRST + BUCKETS - 1))
_LAST: Final = BUCKETS - 1
#: From few to many; an empty bucket is a blank.
_SHADES: Final = " .:-=+*#@"
_UNITS: Final = ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us"), (1, "ns"))


@attrs.frozen
class LatencyRow:
    """One kind of operation; times are nanoseconds, `buckets` counts by `BOUNDS`."""

    op: str
    count: int
    errors: int
    mean_ns: int
    p50_ns: int
    p90_ns: int
    p99_ns: int
    max_ns: int
    total_ns: int
    buckets: tuple[int, ...]


class Latency:
    """Durations of one kind of operation."""

    __slots__ = ("buckets", "count", "errors", "maximum", "total")

    def __init__(self) -> None:
        self.count = 0
        self.errors = 0
        self.total = 0
        self.maximum = 0
        self.buckets = [0] * BUCKETS

    def note(self, ns: int, error: int = 0) -> None:
        """One operation took `ns` nanoseconds and ended with `error` (0: well)."""
        self.count += 1
        self.total += ns
        if error:
            self.errors += 1
        if ns > self.maximum:
            self.maximum = ns
        index = (ns >> FIRST).bit_length()
        self.buckets[index if index < _LAST else _LAST] += 1

    def add(self, other: Latency) -> None:
        """Count what another has counted."""
        self.count += other.count
        self.errors += other.errors
        self.total += other.total
        self.maximum = max(self.maximum, other.maximum)
        for n, count in enumerate(other.buckets):
            self.buckets[n] += count

    def percentile(self, percent: float) -> int:
        """The duration that so many of a hundred did not exceed, estimated; 0 without any."""
        wanted = max(1.0, self.count * percent / 100)
        seen = 0
        for n, count in enumerate(self.buckets):
            if count and seen + count >= wanted:
                low = BOUNDS[n - 1] if n else 0
                high = min(BOUNDS[n], self.maximum) if n < _LAST else self.maximum
                return low + round((high - low) * (wanted - seen) / count)
            seen += count
        return 0

    def row(self, op: str) -> LatencyRow:
        """What was counted, as a record."""
        return LatencyRow(
            op=op,
            count=self.count,
            errors=self.errors,
            mean_ns=self.total // self.count if self.count else 0,
            p50_ns=self.percentile(50),
            p90_ns=self.percentile(90),
            p99_ns=self.percentile(99),
            max_ns=self.maximum,
            total_ns=self.total,
            buckets=tuple(self.buckets),
        )


def duration(ns: float) -> str:
    """A duration with three digits that count: ``7.31 us``, ``120 ms``."""
    for index, (size, unit) in enumerate(_UNITS):
        value = ns / size
        if value >= 0.9995 or size == 1:
            digits = 0 if size == 1 or value >= 99.95 else 1 if value >= 9.995 else 2
            if digits == 0 and value >= 999.5 and index:
                return f"1.00 {_UNITS[index - 1][1]}"
            return f"{value:.{digits}f} {unit}"
    return "0 ns"


def span(buckets: Sequence[int]) -> tuple[int, int]:
    """The first bucket that is not empty, and the one behind the last."""
    used = [n for n, count in enumerate(buckets) if count]
    return (used[0], used[-1] + 1) if used else (0, 0)


def bars(buckets: Sequence[int]) -> str:
    """A histogram as one character a bucket, between two bars."""
    most = max(buckets, default=0)
    steps = len(_SHADES) - 1
    return f"|{''.join(_SHADES[-(-count * steps // most) if most else 0] for count in buckets)}|"


def chart(buckets: Sequence[int], width: int = 50) -> Iterable[str]:
    """A histogram as lines: the lower bound of a bucket, a bar, the count."""
    first, end = span(buckets)
    most = max(buckets, default=0)
    for n in range(first, end):
        count = buckets[n]
        low = duration(BOUNDS[n - 1]) if n else "0"
        yield f"{low:>8} |{'#' * -(-count * width // most):<{width}}| {count}"
