"""How everything is measured here: interleaved in one run, told as ratios.

A machine that other work shares is never equally fast twice, so absolute times are worth little.
Here every row is run on every contestant in turn, again and again, in an order that rotates from
round to round; the ratio to the yardstick is taken within a round, where the machine was the same,
and the report gives the median of those ratios beside the best times. What one contestant cannot
do is left out and named.

Server CPU is what the kernel charged to the server process (and its children) meanwhile, read from
the CPU clock of the process in nanoseconds: /proc/PID/stat counts only ticks, and schedstat of the
threads loses those that have ended, as the threads of a multi-threaded server do.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

Body = Callable[[], int]


class Sample(NamedTuple):
    """One measurement: microseconds of wall time and of server CPU for one operation."""

    wall_us: float
    cpu_us: float


class Contestant(NamedTuple):
    """Something to measure: its name and the server's process, if it has one."""

    name: str
    pid: int | None = None


class Summary(NamedTuple):
    """What came out for one row and one contestant.

    `ratio` is the median of the ratios to the yardstick, round by round, or the ratio of both
    bests where that was asked for; None for what the yardstick could not do.
    """

    row: str
    contestant: str
    wall_us: float
    median_us: float
    cpu_us: float
    ratio: float | None
    rounds: int


class Rounds:
    """All samples of a run, by row and contestant, round by round."""

    def __init__(self) -> None:
        """Start with nothing measured."""
        self.samples: dict[tuple[str, str], list[Sample]] = {}

    def measure(self, row: str, contestant: Contestant, body: Body) -> Sample:
        """Time one call of `body`, which returns how many operations it did; keep the sample."""
        cpu = cpu_ns(contestant.pid)
        started = time.perf_counter_ns()
        count = body()
        wall = time.perf_counter_ns() - started
        spent = cpu_ns(contestant.pid) - cpu
        sample = Sample(wall / count / 1000, spent / count / 1000)
        self.samples.setdefault((row, contestant.name), []).append(sample)
        return sample

    def summary(self, yardstick: str, *, of_bests: bool = False) -> list[Summary]:
        """Summarise every row and contestant against the yardstick.

        `of_bests` is for requests that last microseconds: whether client and server happen to share
        a CPU makes them several times as fast, by chance and for each contestant anew, so that only
        the best of many rounds are alike.
        """
        result = []
        for (row, name), samples in self.samples.items():
            base = self.samples.get((row, yardstick), [])
            ratios = [s.wall_us / b.wall_us for s, b in zip(samples, base, strict=False)]
            if of_bests and base:
                ratios = [min(s.wall_us for s in samples) / min(b.wall_us for b in base)]
            result.append(
                Summary(
                    row,
                    name,
                    min(s.wall_us for s in samples),
                    statistics.median(s.wall_us for s in samples),
                    min(s.cpu_us for s in samples),
                    statistics.median(ratios) if ratios else None,
                    len(samples),
                )
            )
        return result

    def cpu_ratio(self, row: str, name: str, base: str) -> float | None:
        """The ratio of two servers' least CPU for one operation of a row."""
        ours, theirs = self.samples.get((row, name)), self.samples.get((row, base))
        if not ours or not theirs:
            return None
        least = min(s.cpu_us for s in theirs)
        return min(s.cpu_us for s in ours) / least if least else None


def cpu_ns(pid: int | None) -> int:
    """Nanoseconds of CPU that a process and its living descendants have used; 0 without one."""
    if pid is None:
        return 0
    return sum(_process_ns(process) for process in family(pid))


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    found, waiting = [], [pid]
    while waiting:
        here = waiting.pop()
        found.append(here)
        for task in Path(f"/proc/{here}/task").glob("*/children"):
            waiting += [int(child) for child in _read(task).split()]
    return found


def _process_ns(pid: int) -> int:
    # What clock_getcpuclockid(3) makes of a pid: its complement, and CPUCLOCK_SCHED.
    try:
        return time.clock_gettime_ns(~pid << 3 | 2)
    except OSError:
        return 0


def _read(path: Path) -> str:
    """Read a file of /proc whose process may have gone meanwhile."""
    try:
        return path.read_text()
    except OSError:
        return ""


def rotate(contestants: Sequence[Contestant], number: int) -> Sequence[Contestant]:
    """The order for one round: a different one first each time."""
    at = number % len(contestants)
    return [*contestants[at:], *contestants[:at]]


def geometric_mean(values: Iterable[float]) -> float | None:
    """The geometric mean, or None of nothing."""
    logs = [math.log(value) for value in values if value > 0]
    return math.exp(sum(logs) / len(logs)) if logs else None


def table(summaries: Sequence[Summary], names: Sequence[str], yardstick: str) -> list[str]:
    """The report: a line a row, for each contestant best wall us, server CPU us and the ratio."""
    cells = {(s.row, s.contestant): s for s in summaries}
    rows = list(dict.fromkeys(s.row for s in summaries))
    width = 30
    lines = [" " * 16 + "".join(f"{name:>{width}}" for name in names)]
    lines.append(" " * 16 + f"{'wall us    cpu us    ratio':>{width}}" * len(names))
    for row in rows:
        line = f"{row:<16}"
        for name in names:
            cell = cells.get((row, name))
            line += f"{'-':>{width}}" if cell is None else f"{_cell(cell):>{width}}"
        lines.append(line)
    means = (geometric_mean(_ratios(cells, rows, name)) for name in names)
    ends = "".join(f"{'-' if m is None else f'{m:.2f}':>{width}}" for m in means)
    return [*lines, f"{'geometric mean':<16}{ends}", f"ratios are to {yardstick}, by wall time"]


def _cell(cell: Summary) -> str:
    ratio = "-" if cell.ratio is None else f"{cell.ratio:.2f}"
    return f"{cell.wall_us:11.1f}{cell.cpu_us:10.1f}{ratio:>9}"


def _ratios(
    cells: dict[tuple[str, str], Summary], rows: Sequence[str], name: str
) -> Iterable[float]:
    for row in rows:
        cell = cells.get((row, name))
        if cell is not None and cell.ratio is not None:
            yield cell.ratio
