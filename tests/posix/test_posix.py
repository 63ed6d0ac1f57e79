"""The cases on the host's tmpfs and on the mount: no difference that is not listed."""

from __future__ import annotations

import pytest

from tests.posix.case import all_cases
from tests.posix.differences import differences, entries, titles_of
from tests.posix.runner import FAIL, PASS, Outcome
from tests.posix.transports import TRANSPORTS

TITLES = [case.title for case in all_cases()]


def test_titles_are_unique() -> None:
    """What if two cases had one name: one of them would never be judged."""
    assert len(TITLES) == len(set(TITLES))


def test_differences_name_cases() -> None:
    """What if a listed difference names no case, or one twice: the list would rot."""
    for entry in entries():
        rows = entry.count("|") + 1 if "[" in entry else 1
        assert len(titles_of(entry, TITLES)) >= rows, entry
    for transport in TRANSPORTS:
        assert all(reason.strip() for reason in differences(transport).values())
    assert len(list(entries())) == len(set(entries()))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("title", TITLES)
def test_host(title: str, on_host: dict[str, Outcome]) -> None:
    """What if the case itself is wrong: the host's tmpfs would fail it."""
    outcome = on_host[title]
    assert outcome.verdict != FAIL, outcome.reason


@pytest.mark.mount
@pytest.mark.timeout(900)
@pytest.mark.parametrize("title", TITLES)
def test_mount(
    title: str, listed: dict[str, str], on_host: dict[str, Outcome], on_mount: dict[str, Outcome]
) -> None:
    """What if the mount answers otherwise than the host's tmpfs, and no reason is listed."""
    here, there = on_mount[title], on_host[title]
    if title in listed:
        assert here.verdict != PASS, f"no difference any more, yet listed: {listed[title]}"
    else:
        assert here.verdict == there.verdict, here.reason
