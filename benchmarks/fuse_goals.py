"""The goals that `benchmarks.fuse` is held to, and what came of them.

A goal is a ratio, to `passthrough_ll -s` over the host's tmpfs unless it says otherwise. Server CPU
and wall time are both compared by the best of all rounds: see `harness.Rounds.summary`. Counts of
requests are judged to a tenth, so that one request a workload is not one an operation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from benchmarks.fuse_counts import Budget, Counts
from benchmarks.fuse_latency import Latencies
from benchmarks.fuse_rows import APPLICATIONS
from benchmarks.harness import Rounds, geometric_mean

#: The names of the contestants: C's single loop is the yardstick; goals are those of the device
#: transport; pyfuse3 serves the reference transport. "lean" is the device without extended
#: attributes and access control lists, which C has not either; "no-open" without opens, too.
C, TMPFS, DEVICE, LEAN, REFERENCE, NO_OPEN = "C", "tmpfs", "device", "lean", "pyfuse3", "no-open"


#: The columns of the table of goals.
SHOWN = DEVICE, LEAN, REFERENCE


class Goal(NamedTuple):
    """One number to reach: a row's `cpu` or `wall` ratio to `base`, and what to aim at beyond."""

    row: str
    kind: str
    most: float
    aim: float | None = None
    base: str = C


class Verdict(NamedTuple):
    """What came of one goal; a value is None where nothing was measured."""

    item: str
    device: float | None
    lean: float | None
    reference: float | None
    most: float
    aim: float | None = None

    @property
    def word(self) -> str:
        """Met or missed, by the device transport; in brackets by the other one if only that ran."""
        value = self.device if self.device is not None else self.reference
        if value is None:
            return "not measured"
        word = self._judge(value)
        if self.lean is not None and word == "missed" != self._judge(self.lean):
            word = "missed; lean met"
        return word if self.device is not None else f"({word})"

    def _judge(self, value: float) -> str:
        if round(value, 2) > self.most:
            return "missed"
        if self.aim is None or round(value, 2) > self.aim:
            return "met"
        return "met, and the aim"


GOALS = (
    Goal("getattr", "cpu", 1.7, 1.3),
    Goal("getattr", "wall", 1.5, 1.2),
    Goal("lookup", "cpu", 1.7, 1.3),
    Goal("lookup", "wall", 1.5, 1.2),
    Goal("lookup missing", "cpu", 1.7, 1.3),
    Goal("lookup missing", "wall", 1.5, 1.2),
    Goal("create", "wall", 2),
    Goal("unlink", "wall", 2),
    Goal("ls -l", "wall", 1),
    Goal("ls -l cold", "wall", 1),
    Goal("read 1M cold", "wall", 1.2),
    Goal("write 1M fsync", "wall", 2),
    Goal("read 4K random", "wall", 1.5),
)
#: On the connection without opens.
NO_OPEN_GOALS = (
    Goal("open+close", "wall", 2, base=TMPFS),
    Goal("re-read 4K", "wall", 2, base=TMPFS),
)
MEAN, MEAN_AIM, WORST = 1.2, 1.0, 1.8
P99_TO_P50 = 20.0


def ratio(results: Rounds, goal: Goal, name: str) -> float | None:
    """What a contestant reached; None if it or the yardstick was not measured."""
    if goal.kind == "cpu":
        return results.cpu_ratio(goal.row, name, goal.base)
    return wall_ratio(results, goal.row, name, goal.base)


def wall_ratio(results: Rounds, row: str, name: str, base: str = C) -> float | None:
    """The ratio of the best wall times of a row."""
    for summary in results.summary(base, of_bests=True):
        if (summary.row, summary.contestant) == (row, name):
            return summary.ratio
    return None


def applications(results: Rounds, name: str) -> list[float]:
    """The wall ratios of the programs that the yardstick ran; none of them if one is missing."""
    ran = [row for row in APPLICATIONS if (row, C) in results.samples]
    found = [wall_ratio(results, row, name) for row in ran]
    values = [value for value in found if value is not None]
    return values if len(values) == len(ran) else []


def verdicts(
    results: Rounds, latencies: Latencies, counts: Counts, budgets: Iterable[Budget],
) -> Iterator[Verdict]:  # fmt: skip
    """All goals of which something was measured."""
    for goal in GOALS:
        found = (ratio(results, goal, name) for name in SHOWN)
        label = f"{goal.row}, {'server CPU' if goal.kind == 'cpu' else 'wall'}"
        yield Verdict(label, *found, most=goal.most, aim=goal.aim)
    all_of_them = [applications(results, name) for name in SHOWN]
    ran = sum((row, C) in results.samples for row in APPLICATIONS)
    which = "programs" if ran == len(APPLICATIONS) else f"programs ({ran} of {len(APPLICATIONS)})"
    means = map(geometric_mean, all_of_them)
    yield Verdict(f"{which}, geometric mean", *means, most=MEAN, aim=MEAN_AIM)
    worst = (max(values, default=None) for values in all_of_them)
    yield Verdict(f"{which}, the worst", *worst, most=WORST)
    for goal in NO_OPEN_GOALS:
        value = ratio(results, goal, NO_OPEN)
        yield Verdict(f"{goal.row}, no-open, to {goal.base}", value, None, None, goal.most)
    yield Verdict("p99 to p50, four clients", *map(latencies.tail, SHOWN), most=P99_TO_P50)
    for budget in budgets:
        names = (NO_OPEN, None, None) if budget.no_open else SHOWN
        spent = (budget.of(counts.get((budget.name, name))) if name else None for name in names)
        if budget.limit is not None:
            yield Verdict(budget.label, *spent, most=budget.limit)


def measured(all_of_them: Iterable[Verdict]) -> list[Verdict]:
    """Those of which anything was measured."""
    return [v for v in all_of_them if v.device is not None or v.reference is not None]


def lines(found: Iterable[Verdict]) -> list[str]:
    """The second table: a line a goal."""
    head = f"{'':<36}{DEVICE:>8}{LEAN:>8}{REFERENCE:>9}{'goal':>8}{'aim':>6}"
    return [head, *(_line(verdict) for verdict in found)]


def _line(verdict: Verdict) -> str:
    device, lean = _number(verdict.device), _number(verdict.lean)
    reference = _number(verdict.reference)
    most = f"<= {verdict.most:g}"
    aim = "" if verdict.aim is None else f"{verdict.aim:g}"
    line = f"{verdict.item:<36}{device:>8}{lean:>8}{reference:>9}{most:>8}{aim:>6}  {verdict.word}"
    return line.rstrip()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
