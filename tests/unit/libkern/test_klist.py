"""Event lists: who is told, and what happens to a walk that is disturbed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfuser.libkern.errno import EEXIST, ENOMEM, KError
from dfuser.libkern.klist import (
    EVFILT_FS,
    EVFILT_READ,
    EVFILT_SYSCOUNT,
    EVFILT_VNODE,
    NOTE_DELETE,
    NOTE_RENAME,
    NOTE_WRITE,
    HookKnote,
    Klist,
    Knote,
)


def hook(mask: int = NOTE_WRITE, action: Callable[[], object] = lambda: None) -> HookKnote:
    """A knote that runs an action."""
    return HookKnote(mask, lambda _kn: action())


def test_hints_select() -> None:
    # What if a watcher of writes were woken by a rename?
    klist = Klist()
    told: list[str] = []
    klist.insert(hook(NOTE_WRITE, lambda: told.append("w")))
    klist.insert(hook(NOTE_RENAME | NOTE_DELETE, lambda: told.append("r")))
    assert klist.knote(NOTE_WRITE) == 1
    assert klist.knote(NOTE_RENAME | NOTE_WRITE) == 2
    assert klist.knote(0) == 0
    assert told == ["w", "w", "r"]


def test_hints_are_collected() -> None:
    # What if a watcher that looks late missed the first of two changes?
    note = hook(NOTE_WRITE | NOTE_RENAME)
    klist = Klist()
    klist.insert(note)
    klist.knote(NOTE_WRITE)
    klist.knote(NOTE_RENAME | NOTE_DELETE)
    assert note.take() == NOTE_WRITE | NOTE_RENAME
    assert note.take() == 0
    assert isinstance(note, Knote)


def test_empty_lists_are_false_and_small() -> None:
    # What if every vnode paid for watchers it does not have?
    klist = Klist()
    assert not klist
    assert (len(klist), list(klist), klist.knote(NOTE_WRITE)) == (0, [], 0)
    note = hook()
    klist.insert(note)
    assert klist
    assert list(klist) == [note]
    assert klist.remove(note)
    assert not klist.remove(note)
    assert not klist


def test_once_and_bounded() -> None:
    # What if a knote hung twice, or a list grew for ever?
    klist = Klist(limit=2)
    note = hook()
    klist.insert(note)
    with pytest.raises(KError) as caught:
        klist.insert(note)
    assert caught.value.errno == EEXIST
    klist.insert(hook())
    with pytest.raises(KError) as caught:
        klist.insert(hook())
    assert caught.value.errno == ENOMEM


@given(st.integers(1, 8), st.integers(0, 7), st.sets(st.integers(0, 7)), st.integers(0, 3))
def test_a_walk_may_be_disturbed(size: int, at: int, victims: set[int], extra: int) -> None:
    # What if a knote removed by another during the walk were called, or one skipped?
    klist = Klist()
    called: list[int] = []
    notes: list[HookKnote] = []

    def act(number: int) -> None:
        called.append(number)
        if number == at:
            for victim in victims:
                if victim < size:
                    klist.remove(notes[victim])
            for _ in range(extra):
                klist.insert(hook(NOTE_WRITE, lambda: called.append(99)))

    for number in range(size):
        notes.append(hook(NOTE_WRITE, partial(act, number)))
        klist.insert(notes[-1])
    klist.knote(NOTE_WRITE)
    gone = victims if at < size else set()
    assert called == [n for n in range(size) if n <= at or n not in gone]


def test_clear() -> None:
    # What if an object that goes away left its watchers hanging?
    klist = Klist()
    notes = [hook(), hook()]
    for note in notes:
        klist.insert(note)
    assert klist.clear() == notes
    assert klist.clear() == []


def test_filters_are_dragonflys() -> None:
    # What if a filter had FreeBSD's number?
    assert (EVFILT_READ, EVFILT_VNODE, EVFILT_FS, EVFILT_SYSCOUNT) == (-1, -4, -10, 10)
