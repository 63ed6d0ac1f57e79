"""The cases on the host's tmpfs and on the mount: no difference that is not listed."""

from __future__ import annotations

import pytest

from tests.posix.case import all_cases
from tests.posix.differences import DIFFERENCES
from tests.posix.runner import FAIL, PASS, Outcome

TITLES = [case.title for case in all_cases()]


def test_titles_are_unique() -> None:
    """What if two cases had one name: one of them would never be judged."""
    assert len(TITLES) == len(set(TITLES))


def test_differences_name_cases() -> None:
    """What if a listed difference names no case: the list would rot."""
    assert not set(DIFFERENCES) - set(TITLES)
    assert all(reason.strip() for reason in DIFFERENCES.values())


@pytest.mark.timeout(600)
@pytest.mark.parametrize("title", TITLES)
def test_host(title: str, on_host: dict[str, Outcome]) -> None:
    """What if the case itself is wrong: the host's tmpfs would fail it."""
    outcome = on_host[title]
    assert outcome.verdict != FAIL, outcome.reason


@pytest.mark.mount
@pytest.mark.timeout(600)
@pytest.mark.parametrize("title", TITLES)
def test_mount(title: str, on_host: dict[str, Outcome], on_mount: dict[str, Outcome]) -> None:
    """What if the mount answers otherwise than the host's tmpfs, and no reason is listed."""
    here, there = on_mount[title], on_host[title]
    if title in DIFFERENCES:
        assert here.verdict != PASS, f"no difference any more, yet listed: {DIFFERENCES[title]}"
    else:
        assert here.verdict == there.verdict, here.reason
