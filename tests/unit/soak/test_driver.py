"""The walk over a tree and the driver: what they report, and that they report what is wrong."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from dfuser.soak import driver
from dfuser.soak.__main__ import main
from dfuser.soak.driver import run_load, run_soak
from dfuser.soak.invariants import check_tree
from dfuser.soak.report import SoakFailure, SoakReport


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree with two names for one file."""
    (tmp_path / "dir" / "sub").mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"x" * 5000)
    os.link(tmp_path / "file", tmp_path / "dir" / "second")
    (tmp_path / "link").symlink_to("file")
    return tmp_path


def test_good_tree_has_no_violation(tree: Path) -> None:
    """What if the rules were broken by an ordinary tree?"""
    report = check_tree(tree)
    assert report.violations == ()
    assert (report.directories, report.files, report.names) == (3, 2, 5)


class LyingStat:
    """A stat result with some fields replaced."""

    def __init__(self, found: os.stat_result, **lies: int) -> None:
        self._found, self._lies = found, lies

    def __getattr__(self, name: str) -> int:
        return int(self._lies[name] if name in self._lies else getattr(self._found, name))


@pytest.mark.parametrize(
    ("victim", "lies", "rule"),
    [
        ("link", {"st_ino": 1}, "d_ino"),
        ("file", {"st_nlink": 1}, "two link counts"),
        ("link", {"st_size": 99}, "link text"),
        ("dir", {"st_mode": 0o100644}, "d_type"),
    ],
)
def test_broken_rules_are_found(
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    victim: str,
    lies: dict[str, int],
    rule: str,
) -> None:
    """What if stat told another inode number, link count, size or type?"""
    real = os.lstat

    def lying(path: str) -> os.stat_result | LyingStat:
        found = real(path)
        return LyingStat(found, **lies) if path == str(tree / victim) else found

    monkeypatch.setattr(os, "lstat", lying)
    assert any(rule in violation for violation in check_tree(tree).violations)


def test_load_reports_its_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What if a load finds something: is it in the result with its seed?"""

    def failing(directory: Path, seed: int, seconds: float) -> int:
        raise SoakFailure("failing", seed, 12, "wrong", ["12 the last one"])

    monkeypatch.setattr(driver, "all_loads", lambda: {"failing": failing})
    result = run_load("failing", tmp_path, 77, 1)
    assert not result.ok
    assert result.operations == 12
    assert "seed 77, operation 12: wrong" in result.failure


def test_soak_runs_all_and_leaves_nothing(tmp_path: Path) -> None:
    """What if a short soak left files or forgot a load?"""
    report = run_soak(tmp_path, 0.01, seed=3, loads=("fsx", "names"))
    assert isinstance(report, SoakReport)
    assert report.ok, "\n".join(report.lines())
    assert {result.load for result in report.results} == {"fsx", "names"}
    assert report.operations > 0
    assert os.listdir(tmp_path) == []


def test_crashed_load_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What if a load's process dies without a word?"""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    report = run_soak(tmp_path, 0.001, seed=1, loads=("fsx",))
    assert not report.ok
    assert "it died" in report.results[0].failure
    assert "FAILED" in report.lines()[-1]


def test_unknown_load_is_refused(tmp_path: Path) -> None:
    """What if somebody asks for a load that does not exist?"""
    with pytest.raises(KeyError, match="nonsense"):
        run_soak(tmp_path, 0.01, seed=1, loads=("nonsense",))


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What if one load, run by hand, printed something that is not its result?"""
    assert main(["load", "fsx", str(tmp_path), "--seed", "5", "--seconds", "0.2"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["load"], record["seed"], record["failure"]) == ("fsx", 5, "")
