"""However a mount ends or fails to begin, nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfuser.fuse import mountpoint
from dfuser.fuse.mountpoint import MountError
from dfuser.fuse.session import SessionOptions
from tests.mount.rig import Rig, eventually, mounted_paths, rig

pytestmark = pytest.mark.mount


@pytest.fixture
def world(transport: str) -> Iterator[Rig]:
    """A mount that each test ends in its own way."""
    with rig() as made:
        yield made


def test_unmount_when_asked(world: Rig) -> None:
    """What if the session is asked to unmount while files were used: no node, no mount, exit 0?"""
    (world.path / "f").write_text("x")
    assert world.end()[:2] == ["end", 0]
    assert world.path not in mounted_paths()
    assert os.listdir(world.path) == []


def test_fusermount_from_outside(world: Rig, transport: str) -> None:
    """What if somebody unmounts with fusermount3 while the session knows nothing of it?

    The host refuses while it has mounts inside (nothing of ours can answer that): -z takes all.
    """
    (world.path / "f").write_text("x")
    word = "-u"
    if transport != "pyfuse3":
        refused = subprocess.run(["fusermount3", "-u", str(world.path)], capture_output=True)
        assert b"busy" in refused.stderr
        assert (world.path / "f").read_text() == "x"
        assert (world.path / "kern" / "README").exists()
        word = "-uz"
    subprocess.run(["fusermount3", word, str(world.path)], check=True)
    assert world.read()[:2] == ["end", 0]
    assert world.child.wait(60) == 0


def test_busy_names_who_holds(world: Rig) -> None:
    """What if a process holds a file open when the unmount is asked for?"""
    (world.path / "f").write_text("x")
    with (world.path / "f").open() as file:
        holder = subprocess.Popen(["sleep", "1000"], stdin=file, cwd=world.path)
    try:
        world.send("await s.unmount()")
        kind, text = world.read()
        assert kind == "error"
        assert f"sleep ({holder.pid})" in text
        assert (world.path / "f").read_text() == "x"
    finally:
        holder.kill()
        holder.wait()
    assert world.end()[0] == "end"


def test_lazy_unmount_with_an_open_file(world: Rig) -> None:
    """What if the mount is detached while a file is open: it works on, then all ends by itself?"""
    fd = os.open(world.path / "f", os.O_RDWR | os.O_CREAT)
    assert world.inside("await s.unmount(lazy=True)") is None
    assert world.path not in mounted_paths()
    os.write(fd, b"still here")
    assert os.pread(fd, 20, 0) == b"still here"
    os.close(fd)
    assert world.read()[:2] == ["end", 0]
    assert world.child.wait(60) == 0


def test_unmount_under_load(world: Rig) -> None:
    """What if the mount is detached while threads create, read and remove in it?"""
    stop = threading.Event()
    failures: list[OSError] = []

    def load(who: int) -> None:
        path = world.path / f"load{who}"
        while not stop.is_set():
            try:
                path.write_text("x")
                path.read_text()
                path.unlink()
            except OSError as error:
                failures.append(error)
                return

    (world.path / "mark").touch()
    threads = [threading.Thread(target=load, args=(who,)) for who in range(3)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: world.stat("s.served()['unlink']") > 20, "the load runs")
        world.inside("await s.unmount(lazy=True)")
        assert world.read()[:2] == ["end", 0]
        assert world.child.wait(60) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_killed_server_is_recognised_and_cleared(world: Rig) -> None:
    """What if the server was killed: is the stale mount seen, cleared, and mounted over again?"""
    world.child.kill()
    world.child.wait()
    with pytest.raises(OSError, match=r"not connected|aborted"):
        os.listdir(world.path)
    assert mountpoint.is_stale(str(world.path))
    again = Rig(world.path)
    try:
        (again.path / "f").write_text("new life")
        assert again.end()[0] == "end"
    finally:
        again.clear()
    assert world.path not in mounted_paths()


def test_a_live_mount_is_not_stale(world: Rig) -> None:
    """What if the mount point is taken by a living mount?"""
    assert not mountpoint.is_stale(str(world.path))
    assert not mountpoint.clear_stale(str(world.path))
    with pytest.raises(MountError) as caught:
        mountpoint.check(str(world.path))
    assert caught.value.kind == "mounted"
    world.end()


def test_bad_mount_points(tmp_path: Path) -> None:
    """What if the mount point is missing, a file, or not empty?"""
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").touch()
    for path, text in (
        (tmp_path / "none", "does not exist"), (full / "x", "not a directory"),
        (full, "not empty"),
    ):  # fmt: skip
        with pytest.raises(MountError, match=text) as caught:
            mountpoint.check(str(path))
        assert caught.value.kind == "mountpoint"
        assert len(str(caught.value).splitlines()) == 1
    mountpoint.check(str(full), nonempty=True)


def test_read_only() -> None:
    """What if the session is mounted read-only?"""
    with rig(read_only=True) as made:
        with pytest.raises(OSError, match="Read-only"):
            (made.path / "f").touch()
        assert "ro" in SessionOptions("/x", read_only=True).fuse_options()
        made.end()


def test_a_wedged_server_does_not_hold_who_asks(
    world: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What if a server stands still: is its mount called stale, and does who looks come back?"""
    monkeypatch.setattr(mountpoint, "ASK_SECONDS", 0.2)
    os.kill(world.child.pid, signal.SIGSTOP)
    try:
        assert not mountpoint.is_stale(str(world.path))
    finally:
        os.kill(world.child.pid, signal.SIGCONT)
    assert world.end()[0] == "end"
