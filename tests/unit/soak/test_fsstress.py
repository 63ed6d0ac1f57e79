"""The tester of names and its model: right where Linux is right, alarmed where it is not."""

from __future__ import annotations

import errno
import itertools
import os
from collections import Counter
from pathlib import Path

import pytest

from dfuser.soak import fsstress, operations
from dfuser.soak.fsstress import FsStress
from dfuser.soak.operations import WEIGHTS, Operation, Result, perform, stream
from dfuser.soak.report import SoakFailure
from dfuser.soak.twin import TwinRun

PRIVILEGED = os.geteuid() == 0


@pytest.fixture
def without(tmp_path: Path) -> frozenset[str]:
    """The calls that the directory under the tests does not have."""
    try:
        os.setxattr(tmp_path, "user.probe", b"1")
    except OSError:
        return frozenset(name for name in WEIGHTS if "xattr" in name)
    os.removexattr(tmp_path, "user.probe")
    return frozenset()


@pytest.mark.parametrize("seed", range(4))
def test_model_agrees_with_linux(tmp_path: Path, seed: int, without: frozenset[str]) -> None:
    """What if the model's errnos, counts or rules were not the host's?"""
    assert FsStress(tmp_path, seed, without=without).run(operations=2500) == 2500


def test_stream_meets_successes_and_errors(tmp_path: Path) -> None:
    """What if nearly all operations failed the same way: nothing would be tested."""
    met: dict[str, Counter[int]] = {name: Counter() for name in WEIGHTS}
    for operation in itertools.islice(stream(1, privileged=PRIVILEGED), 6000):
        met[operation.call][perform(tmp_path, operation).errno] += 1
    supported = {name for name in WEIGHTS if met[name][errno.EOPNOTSUPP] == 0}
    assert {name for name in supported if met[name][0] >= 3} == supported
    assert all(len(met[name]) >= 3 for name in supported)


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        ("mkdir", Result(errno.EPERM)),
        ("lstat", Result(0, (0, 0, 0, 0, 0))),
        ("listdir", Result(0, ("a", "ghost"))),
    ],
)
def test_wrong_answer_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, wrong: Result
) -> None:
    """What if one call in thirty answered something else?"""
    calls = itertools.count(1)

    def lying(root: Path, operation: Operation) -> Result:
        answer = perform(root, operation)
        return wrong if operation.call == call and next(calls) % 30 == 0 else answer

    monkeypatch.setattr(fsstress, "perform", lying)
    with pytest.raises(SoakFailure, match=call):
        FsStress(tmp_path, 3, without=frozenset({"setxattr"})).run(operations=5000)


def test_silent_change_is_found(tmp_path: Path, without: frozenset[str]) -> None:
    """What if all answers were right but a name had vanished?"""
    tester = FsStress(tmp_path, 5, without=without)
    tester.run(operations=500)
    victim = next(path for path in tmp_path.rglob("*") if not path.is_dir() or path.is_symlink())
    victim.unlink()
    with pytest.raises(SoakFailure):
        tester.check()


def test_twins_agree_and_differ(tmp_path: Path, without: frozenset[str]) -> None:
    """What if two good directories differed, or a changed one did not?"""
    left, right = tmp_path / "left", tmp_path / "right"
    left.mkdir()
    right.mkdir()
    twin = TwinRun(left, right, 7, without=without)
    assert twin.run(operations=1500) == 1500
    (right / "extra").touch()
    with pytest.raises(SoakFailure, match="extra"):
        twin.check()


def test_hard_links_are_compared(tmp_path: Path) -> None:
    """What if two trees had the same names and counts, but other names shared a file?"""
    for side, pair in (("left", ("a", "b")), ("right", ("a", "c"))):
        place = tmp_path / side
        place.mkdir()
        for name in ("a", "x"):
            (place / name).touch()
        other = ({"b", "c"} - {pair[1]}).pop()
        os.link(place / pair[0], place / pair[1])
        os.link(place / "x", place / other)
    twin = TwinRun(tmp_path / "left", tmp_path / "right", 1)
    with pytest.raises(SoakFailure, match="="):
        twin.check()


def test_operations_never_leave_their_directory() -> None:
    """What if a path or a link's text led out of the tree?"""
    for operation in itertools.islice(stream(1, privileged=True), 5000):
        for path in (operation.path, operation.other):
            assert set(path.split("/")) <= set(operations.NAMES)
