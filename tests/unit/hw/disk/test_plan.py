"""Fault plans as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfuser.hw.disk.disk import DiskCmd
from dfuser.hw.disk.faultrule import Fault, FaultRule
from dfuser.hw.disk.plan import format_rule, parse_plan, parse_rule
from dfuser.libkern.errno import EINVAL, EIO, KError

rules = st.builds(
    FaultRule,
    st.sampled_from([Fault.EIO, Fault.SHORT, Fault.TORN]),
    st.frozensets(st.sampled_from(DiskCmd), min_size=1),
    start=st.integers(0, 1 << 50),
    end=st.none() | st.integers(0, 1 << 50),
    probability=st.floats(0.001, 1.0),
    nth=st.integers(0, 99),
    times=st.integers(0, 99),
    grain=st.sampled_from((512, 4096)),
    silent=st.booleans(),
    error=st.integers(1, 99),
)


@given(rules)
def test_rules_round_trip(rule: FaultRule) -> None:
    """What if any rule is written and read?"""
    assert parse_rule(format_rule(rule)) == rule


def test_a_plan_of_all_kinds() -> None:
    """What if the examples of the documentation are read?"""
    plan = parse_plan(
        "eio read 1m-2m p=0.01; eio write nth=7 errno=28\n# nothing\n\n"
        "torn write grain=4096 silent # comment\ndelay read,write 5ms-20ms\ndelay flush 1.5s"
    )
    assert plan == [
        FaultRule(Fault.EIO, frozenset({DiskCmd.READ}), 1 << 20, 2 << 20, 0.01),
        FaultRule(Fault.EIO, frozenset({DiskCmd.WRITE}), nth=7, error=28),
        FaultRule(Fault.TORN, frozenset({DiskCmd.WRITE}), grain=4096, silent=True),
        FaultRule(
            Fault.DELAY,
            frozenset({DiskCmd.READ, DiskCmd.WRITE}),
            delay_ns=(5_000_000, 20_000_000),
        ),
        FaultRule(Fault.DELAY, frozenset({DiskCmd.FLUSH}), delay_ns=(1_500_000_000, 1_500_000_000)),
    ]
    assert parse_rule(format_rule(plan[3])) == plan[3]
    assert parse_rule("eio any 4k").start == 4096
    assert parse_rule("eio any 4k").error == EIO


@pytest.mark.parametrize(
    "line",
    ["eio", "what any", "eio reading", "eio any p=2", "eio any p=x", "eio any nth=x", "eio any x=1",
     "delay any", "delay any 5", "delay any 5xs", "delay any s", "eio any 1-x"],
)  # fmt: skip
def test_rules_that_say_nothing(line: str) -> None:
    """What if a rule is wrong: is there an EINVAL with the line?"""
    with pytest.raises(KError) as refused:
        parse_plan(line)
    assert refused.value.errno == EINVAL
    assert line in refused.value.strerror
