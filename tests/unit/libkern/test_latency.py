"""Histograms of latencies, recounted from outside."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfuser.libkern.latency import BOUNDS, BUCKETS, Latency, bars, chart, duration, span

TIMES = st.lists(st.integers(0, 1 << 36), min_size=1, max_size=200)


def bucket_of(ns: int) -> int:
    """Which bucket a duration belongs to, by comparing it with every bound."""
    return sum(ns >= bound for bound in BOUNDS)


def noted(times: list[int]) -> Latency:
    """A histogram of durations; every third operation failed."""
    row = Latency()
    for n, ns in enumerate(times):
        row.note(ns, 5 if n % 3 == 0 else 0)
    return row


def test_bounds_are_what_the_tables_say() -> None:
    # What if the first and last bound are not 256 ns and 8.6 s?
    assert (BOUNDS[0], BOUNDS[-1], len(BOUNDS)) == (256, 1 << 33, BUCKETS - 1)
    assert all(b == 2 * a for a, b in pairwise(BOUNDS))


@given(TIMES)
def test_every_figure_is_recounted(times: list[int]) -> None:
    # What if a duration lands in the wrong bucket or a figure is off by one?
    row = noted(times).row("X")
    assert row.count == len(times) == sum(row.buckets)
    assert row.errors == (len(times) + 2) // 3
    assert row.total_ns == sum(times)
    assert row.mean_ns == sum(times) // len(times)
    assert row.max_ns == max(times)
    assert row.buckets == tuple(sum(bucket_of(ns) == n for ns in times) for n in range(BUCKETS))


@given(TIMES, st.floats(1, 100))
def test_a_percentile_lies_in_the_bucket_of_the_true_one(times: list[int], percent: float) -> None:
    # What if an estimate is further from the truth than its bucket is wide?
    row = noted(times)
    ordered = sorted(times)
    rank = max(1.0, len(times) * percent / 100)
    true = ordered[int(-(-rank // 1)) - 1]
    estimate = row.percentile(percent)
    n = bucket_of(true)
    assert (BOUNDS[n - 1] if n else 0) <= estimate
    assert estimate <= (BOUNDS[n] if n < BUCKETS - 1 else max(times))
    assert estimate <= max(times)


def test_percentiles_of_a_known_distribution(rng: random.Random) -> None:
    # What if the interpolation is biased? Uniform durations inside one bucket show it.
    times = [rng.randrange(1 << 20, 1 << 21) for _ in range(20_000)]
    row = noted(times)
    ordered = sorted(times)
    for percent in (50, 90, 99):
        assert row.percentile(percent) == pytest.approx(ordered[200 * percent - 1], rel=0.02)


@given(TIMES, TIMES)
def test_sums(one: list[int], two: list[int]) -> None:
    # What if two histograms added are not the histogram of both?
    sum_of = noted(one)
    sum_of.add(noted(two))
    both = noted(one + two)
    assert sum_of.buckets == both.buckets
    assert (sum_of.count, sum_of.total, sum_of.maximum) == (both.count, both.total, both.maximum)


def test_nothing_noted() -> None:
    # What if a row was never used?
    row = Latency().row("X")
    assert (row.count, row.mean_ns, row.p50_ns, row.max_ns) == (0, 0, 0, 0)
    assert bars(row.buckets) == f"|{' ' * BUCKETS}|"
    assert span(row.buckets) == (0, 0)
    assert list(chart(row.buckets)) == []


def test_bars_and_chart() -> None:
    # What if one among a million is invisible, or the picture is shifted by a bucket?
    row = noted([100] + [300] * 1_000)
    line = bars(row.buckets)
    assert line[:4] == "|.@ "
    assert len(line) == BUCKETS + 2
    first, second = chart(row.buckets, 10)
    assert first.split() == ["0", "|#", "|", "1"]
    assert second.split() == ["256", "ns", "|##########|", "1000"]


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 ns"), (7, "7 ns"), (999, "999 ns"), (1000, "1.00 us"), (7_312, "7.31 us"),
        (73_120, "73.1 us"), (731_200, "731 us"), (999_999, "1.00 ms"), (12_000_000, "12.0 ms"),
        (1_500_000_000, "1.50 s"), (999_950_000_000, "1000 s"),
    ],
)  # fmt: skip
def test_durations_have_three_digits(ns: int, text: str) -> None:
    # What if a duration is shown with more digits than mean anything, or in the wrong unit?
    assert duration(ns) == text
