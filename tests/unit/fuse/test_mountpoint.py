"""The host's side: which mounts are asked whether they live, and for how long."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from dfuser.fuse import mountpoint as host


def mount_of(fstype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have something of that type mounted on /there."""
    info = host.MountInfo(1, "0:9", "/there", fstype, "x")
    monkeypatch.setattr(host, "mounts", lambda: [info])


@pytest.mark.parametrize("fstype", ["fuse.sshfs", "fuse", "fuseblk", "nfs4", "ext4"])
def test_the_mounts_of_others_are_not_asked(fstype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What if somebody else's mount, which may be wedged, is there?"""

    def ask(path: str) -> int:
        raise AssertionError(f"{path} was asked")

    monkeypatch.setattr(host, "ask", ask)
    mount_of(fstype, monkeypatch)
    assert not host.is_stale("/there")


@pytest.mark.parametrize(
    ("answer", "stale"),
    [(0, False), (None, False), (errno.EACCES, False), (errno.ENOTCONN, True),
     (errno.ECONNABORTED, True)],
)  # fmt: skip
def test_what_an_answer_means(
    answer: int | None, stale: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What if a dfuser mount answers, is somebody else's, is dead, or says nothing?"""
    monkeypatch.setattr(host, "ask", lambda _path: answer)
    mount_of(host.FSTYPE, monkeypatch)
    assert host.is_stale("/there") is stale


def test_asking(tmp_path: Path) -> None:
    """What if a directory answers, is not there, or has a name that is not UTF-8?"""
    assert host.ask(str(tmp_path)) == 0
    assert host.ask(str(tmp_path / "none")) == errno.ENOENT
    odd = tmp_path / "odd\udcff name"
    odd.mkdir()
    assert host.ask(str(odd)) == 0


def test_who_does_not_come_back_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What if the question is never answered?"""
    monkeypatch.setattr(host, "ASK_SECONDS", 0.05)
    monkeypatch.setattr(host, "_ASKER", "import signal; signal.pause()")
    assert host.ask(str(tmp_path)) is None
