"""How long single requests take when four clients ask at the same time.

Each client is a process that asks for the attributes of one file again and again; what counts is
the tail: the 99th percentile as a multiple of the median, which says how even the service is.
"""

from __future__ import annotations

import statistics
from typing import NamedTuple

from benchmarks import client
from benchmarks.field import Field
from benchmarks.harness import rotate
from benchmarks.rows import one_file

CLIENTS = 4
ROW = "latency"


class Percentiles(NamedTuple):
    """Of one round, in microseconds."""

    p50: float
    p99: float
    worst: float


class Latencies:
    """All rounds of all contestants."""

    def __init__(self) -> None:
        """Start with nothing measured."""
        self.samples: dict[str, list[Percentiles]] = {}

    def measure(self, field: Field, rounds: int) -> None:
        """Measure all contestants that answer every row, in turn."""
        everybody = [entry for entry in field.places.values() if not entry[0].rows]
        if not everybody:
            return
        for number in range(rounds):
            for _, path, contestant in rotate(everybody, number):
                if (ROW, contestant.name) in field.failed or contestant.name in field.stalled:
                    continue
                with field.guarded(ROW, contestant):
                    one_file(path)
                    taken = client.latencies(path / "f", CLIENTS, field.sizes.calls)
                    self.samples.setdefault(contestant.name, []).append(percentiles(taken))

    def tail(self, name: str) -> float | None:
        """The median of p99 to p50 within rounds; None if not measured."""
        samples = self.samples.get(name)
        return statistics.median(s.p99 / s.p50 for s in samples) if samples else None

    def lines(self) -> list[str]:
        """A line a contestant: the medians over the rounds."""
        if not self.samples:
            return []
        result = [f"{'four clients':<16}{'p50 us':>10}{'p99 us':>10}{'worst us':>10}{'p99/p50':>9}"]
        for name, samples in self.samples.items():
            middle = [statistics.median(column) for column in zip(*samples, strict=True)]
            cells = "".join(f"{value:>10.1f}" for value in middle)
            result.append(f"{name:<16}{cells}{self.tail(name) or 0:>9.1f}")
        return result


def percentiles(nanoseconds: list[int]) -> Percentiles:
    """Of sorted nanoseconds."""
    count = len(nanoseconds)
    p50, p99, worst = (nanoseconds[at] / 1000 for at in (count // 2, count * 99 // 100, -1))
    return Percentiles(p50, p99, worst)
