"""The runner itself: a case that hangs, dies or leaves processes costs its own verdict only."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix import linux, runner
from tests.posix.case import Case, CaseFailed, NotApplicable, case, cases_of, refuse
from tests.posix.runner import (
    FAIL,
    GONE,
    NA,
    PASS,
    Outcome,
    remove_tree,
    run_case,
    run_cases,
    table,
)

Body = Callable[[Path], None]


def make(body: Body, *, root: bool = False, limit: float = 10.0) -> Case:
    """A case of one function."""
    return Case("made", "up", body, (), root, limit)


def good(d: Path) -> None:
    (d / "file").touch()


def wrong(d: Path) -> None:
    raise CaseFailed("it is wrong")


def senseless(d: Path) -> None:
    raise NotApplicable("no such thing here")


def broken(d: Path) -> None:
    (d / "missing").read_bytes()


def suicidal(d: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def quitting(d: Path) -> None:
    os._exit(7)


@pytest.mark.parametrize(
    ("body", "verdict", "reason"),
    [
        (good, PASS, ""),
        (wrong, FAIL, "it is wrong"),
        (senseless, NA, "no such thing here"),
        (broken, FAIL, "FileNotFoundError"),
        (suicidal, FAIL, "SIGKILL"),
        (quitting, FAIL, "exit status 7"),
    ],
)
def test_verdicts(tmp_path: Path, body: Body, verdict: str, reason: str) -> None:
    """What if a case ends in an unusual way?"""
    outcome = run_case(make(body), tmp_path)
    assert outcome.verdict == verdict
    assert reason in outcome.reason
    assert os.listdir(tmp_path) == []


def test_hanging_case_is_killed_with_its_children(tmp_path: Path) -> None:
    """What if a case waits forever, and so does a child that it forked?"""
    reader, writer = os.pipe()

    def hang(d: Path) -> None:
        os.close(reader)
        os.fork()
        while True:
            signal.pause()

    outcome = run_case(make(hang, limit=0.2), tmp_path)
    os.close(writer)
    assert outcome.verdict == FAIL
    assert "over its limit" in outcome.reason
    assert os.read(reader, 1) == b"", "somebody still holds the pipe"
    os.close(reader)


def test_root_cases_are_not_asked_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What if a case that needs root runs as somebody else?"""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert run_case(make(wrong, root=True), tmp_path).verdict == NA


def test_dead_file_system_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What if a case kills the file system: are the others blamed?"""
    monkeypatch.setattr(runner, "answers", lambda directory: False)
    outcomes = list(run_cases([make(good), make(wrong), make(good), make(good)], tmp_path))
    assert [outcome.verdict for outcome in outcomes] == [PASS, FAIL, FAIL, FAIL]
    assert outcomes[3].reason == f"{GONE} since made.up"
    assert table(outcomes)[-1] == f"{GONE} since made.up: 2 cases not run"


def test_table_counts() -> None:
    """What if the table's numbers were not those of the outcomes?"""
    outcomes = [
        Outcome("a.x", PASS, "", 0),
        Outcome("a.y", FAIL, "why", 0),
        Outcome("b.z", NA, "", 0),
    ]
    lines = table(outcomes)
    assert [line.split() for line in lines[1:4]] == [
        ["a", "1", "1", "0"],
        ["b", "0", "0", "1"],
        ["total", "1", "1", "1"],
    ]
    assert lines[4] == "fail a.y: why"


def test_deep_trees_are_removed(tmp_path: Path) -> None:
    """What if a case leaves a tree that is deeper than the longest path?"""
    top = tmp_path / "top"
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(60):
        os.mkdir("d" * 100, 0o700, dir_fd=here)
        deeper = os.open("d" * 100, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    remove_tree(top)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files immutable")
def test_flagged_files_are_removed() -> None:
    """What if a case was killed while its files were immutable?"""
    shm = Path("/dev/shm")
    top = Path(tempfile.mkdtemp(dir=shm if shm.is_dir() else None))
    (top / "dir").mkdir()
    (top / "dir" / "file").touch()
    for path in (top / "dir" / "file", top / "dir"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            linux.set_file_flags(descriptor, linux.FS_IMMUTABLE_FL)
        except OSError as error:
            shutil.rmtree(top)
            pytest.skip(f"no file flags here: {error}")
        finally:
            os.close(descriptor)
    remove_tree(top)
    assert not top.exists()


@pytest.mark.parametrize("number", [errno.EPERM, (errno.EPERM, errno.EACCES)])
def test_refuse(number: int | tuple[int, ...]) -> None:
    """What if a call succeeds, or fails with another errno, where an errno is asked for?"""

    def denied() -> None:
        raise PermissionError(errno.EPERM, "no")

    refuse(number, denied)
    with pytest.raises(CaseFailed, match="returned"):
        refuse(number, int)
    with pytest.raises(CaseFailed, match="ENOENT, not EPERM"):
        refuse(number, os.stat, "/nonexistent")


def test_decorated_functions_stay_functions(tmp_path: Path) -> None:
    """What if marking a function changed it, or rows were lost?"""
    assert case()(good) is good
    titles = [found.title for found in cases_of("names")]
    assert "names.case_matters" in titles
    assert "names.odd_name[255]" in titles
