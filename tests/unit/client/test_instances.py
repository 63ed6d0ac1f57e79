"""Which dfusers run: files of the living, the dead, and of numbers used again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dfuser.client import Instance, NoInstance, choose, instances
from dfuser.client.instances import birth, canonical, register, run_dir, sweep, unregister


@pytest.fixture(autouse=True)
def own_run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for instance files of this test alone."""
    monkeypatch.setenv("DFUSER_RUN_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


def put(mountpoint: str, pid: int, born: int, started: float = 1.0) -> Path:
    """Write the file of an instance as another process would."""
    name = f"{os.path.basename(mountpoint)}-{pid}"
    run_dir().mkdir(exist_ok=True)
    socket = run_dir() / f"{name}.sock"
    path = run_dir() / f"{name}.json"
    path.write_text(
        json.dumps(Instance(pid, mountpoint, str(socket), started, name, born)._asdict())
    )
    socket.touch()
    return path


def mine() -> int:
    """When this process began."""
    born = birth(os.getpid())
    assert born is not None
    return born


def dead_pid() -> int:
    """The number of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_register_and_unregister_leave_nothing(own_run_dir: Path) -> None:
    # What if an instance ends: is its file still there?
    instance = register("/some/where", 5.0)
    assert instances() == [instance]
    assert instance.mountpoint == "/some/where"
    assert own_run_dir.stat().st_mode & 0o777 == 0o700
    unregister(instance)
    assert list(own_run_dir.iterdir()) == []


def test_files_of_the_dead_are_removed(own_run_dir: Path) -> None:
    # What if a dfuser was killed: is it listed for ever?
    put("/dead", dead_pid(), 1)
    assert instances() == []
    assert list(own_run_dir.iterdir()) == []


def test_a_process_number_used_again_is_not_the_same_process(own_run_dir: Path) -> None:
    # What if the pid of a killed dfuser now belongs to somebody else?
    put("/reused", os.getpid(), mine() + 1)
    assert instances() == []
    assert list(own_run_dir.iterdir()) == []


def test_files_that_are_none_are_ignored(own_run_dir: Path) -> None:
    # What if something else lies in the directory, or a file is half written?
    own_run_dir.mkdir()
    (own_run_dir / "half.json").write_text('{"pid": ')
    (own_run_dir / "other.json").write_text('{"hello": 1}')
    (own_run_dir / "list.json").write_text("[1]")
    assert instances() == []


def test_sweep_removes_sockets_without_an_instance(own_run_dir: Path) -> None:
    # What if a server was killed between its socket and its file?
    own_run_dir.mkdir()
    left = own_run_dir / f"mnt-{dead_pid()}.sock"
    left.touch()
    foreign = own_run_dir / "notes.txt"
    foreign.touch()
    alive = register("/alive", 1.0)
    sweep()
    assert not left.exists()
    assert foreign.exists()
    assert instances() == [alive]


def test_choosing(tmp_path: Path) -> None:
    # What if there are none, one, or several, or the path is inside a mount?
    with pytest.raises(NoInstance, match="dfuser demo"):
        choose()
    put("/mnt/a", os.getpid(), mine())
    assert choose().mountpoint == "/mnt/a"
    assert choose("/mnt/a/dir/file").mountpoint == "/mnt/a"
    with pytest.raises(NoInstance, match=r"/mnt/ab; running: /mnt/a \(pid"):
        choose("/mnt/ab")
    put("/mnt/a/b", os.getpid(), mine(), 2.0)
    assert [item.mountpoint for item in instances()] == ["/mnt/a", "/mnt/a/b"]
    assert choose("/mnt/a/b/c").mountpoint == "/mnt/a/b"
    with pytest.raises(NoInstance, match="-m DIR"):
        choose()


def test_the_current_directory_decides_between_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What if two run, and the shell stands in one of them?
    for name in ("a", "b"):
        (tmp_path / name / "sub").mkdir(parents=True)
        put(str(tmp_path / name), os.getpid(), mine())
    monkeypatch.chdir(tmp_path / "b" / "sub")
    assert choose().mountpoint == str(tmp_path / "b")


def test_a_mount_point_is_found_through_a_symbolic_link(tmp_path: Path) -> None:
    # What if the user names the mount by a link, or by a path through one?
    (tmp_path / "real" / "mnt").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "direct").symlink_to(tmp_path / "link" / "mnt")
    wanted = str(tmp_path / "real" / "mnt")
    assert canonical(str(tmp_path / "link" / "mnt")) == wanted
    assert canonical(str(tmp_path / "direct")) == wanted
    (tmp_path / "loop").symlink_to("loop")
    assert canonical(str(tmp_path / "loop")).endswith("loop")


def test_a_socket_path_that_is_too_long_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What if the directory's name alone fills the address of a socket?
    monkeypatch.setenv("DFUSER_RUN_DIR", str(tmp_path / ("x" * 120)))
    with pytest.raises(OSError, match="too long for a socket"):
        register("/mnt", 1.0)


def test_a_directory_that_others_may_write_is_closed(own_run_dir: Path) -> None:
    # What if the directory was there before, open to everybody?
    own_run_dir.mkdir()
    own_run_dir.chmod(0o777)
    unregister(register("/mnt", 1.0))
    assert own_run_dir.stat().st_mode & 0o777 == 0o700


def test_a_directory_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What if another user made /tmp/dfuser-1000 first, to read our socket?
    trap = tmp_path / "trap"
    trap.mkdir()
    monkeypatch.setenv("DFUSER_RUN_DIR", str(trap))
    monkeypatch.setattr(os, "geteuid", lambda: trap.stat().st_uid + 1)
    with pytest.raises(PermissionError):
        register("/mnt", 1.0)
