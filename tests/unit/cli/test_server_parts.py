"""What a server is made of, without a mount: checks, collector, notification, log, daemon."""

from __future__ import annotations

import errno
import gc
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dfuser.cli import stale
from dfuser.cli.collector import no_full_collections
from dfuser.cli.demo import lines, place
from dfuser.cli.exits import CliError, ExitCode
from dfuser.cli.logs import ServerLog
from dfuser.cli.mount import log_path
from dfuser.cli.notify import notify, watchdog_seconds
from dfuser.cli.plan import make_plan
from dfuser.fuse import mountpoint as host
from dfuser.fuse.mountpoint import MountError
from dfuser.libkern.log import LOG_ERR, LOG_WARNING, MsgBuf

from .conftest import Dfuser


@pytest.fixture
def fuse_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has, FUSE looks usable."""
    monkeypatch.setattr(host, "check_fuse", lambda: None)


@pytest.mark.usefixtures("fuse_here")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("verb", [["mount", "-f", "tmpfs"], ["mount", "-d", "tmpfs"], ["demo"]])
def test_bad_mount_points(dfuser: Dfuser, tmp_path: Path, verb: list[str]) -> None:
    # What if the mount point is missing, a file, or not empty? Nothing is booted.
    file, full = tmp_path / "file", tmp_path / "full"
    file.touch()
    (full / "inside").mkdir(parents=True)
    missing = tmp_path / "no" / "such"
    for path, text in ((missing, str(missing)), (file, "not a directory"), (full, "not empty")):
        result = dfuser(*verb, path)
        assert result.code == ExitCode.MOUNTPOINT
        assert text in result.line


@pytest.mark.usefixtures("fuse_here")
def test_a_mount_point_that_is_mounted(
    dfuser: Dfuser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What if a file system is mounted there already?
    info = host.MountInfo(1, "0:9", str(tmp_path), "fuse.sshfs", "host:/")
    monkeypatch.setattr(host, "mounts", lambda: [info])
    result = dfuser("mount", "-f", "tmpfs", tmp_path)
    assert result.code == ExitCode.MOUNTED
    assert "mounted already (host:/)" in result.line


@pytest.mark.usefixtures("fuse_here")
def test_a_mount_point_of_somebody_else(
    dfuser: Dfuser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What if an ordinary user names a directory that is not his?
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setattr(os, "access", lambda *_args: False)
    result = dfuser("mount", "-f", "tmpfs", tmp_path)
    assert result.code == ExitCode.PERMISSION
    assert "not yours" in result.line


def test_no_dev_fuse(dfuser: Dfuser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What if the machine has no /dev/fuse?
    real = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path != "/dev/fuse" and real(path))
    result = dfuser("mount", "-f", "tmpfs", tmp_path)
    assert result.code == ExitCode.FUSE
    assert "no /dev/fuse" in result.line
    assert "modprobe fuse" in result.line


def test_dev_fuse_may_not_be_opened(
    dfuser: Dfuser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What if /dev/fuse is for others?
    monkeypatch.setattr(host.shutil, "which", lambda _name: "/usr/bin/fusermount3")
    monkeypatch.setattr(host.os.path, "exists", lambda _path: True)
    monkeypatch.setattr(os, "access", lambda *_args: False)
    result = dfuser("mount", "-f", "tmpfs", tmp_path)
    assert result.code == ExitCode.PERMISSION
    assert "/dev/fuse" in result.line


def test_stale_means_that_the_server_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    # What if the host still answers stat(2) for a dead mount from its cache?
    info = host.MountInfo(1, "0:9", "/dead", "fuse.dfuser", "tmpfs")
    monkeypatch.setattr(host, "mounted_at", lambda _path: info)

    monkeypatch.setattr(host, "ask", lambda _path: errno.ENOTCONN)
    assert stale.is_stale("/dead")
    detached: list[str] = []
    monkeypatch.setattr(host, "detach", lambda path, lazy: detached.append(path))
    assert stale.clear_stale("/dead")
    assert detached == ["/dead"]

    def refuse(_path: str, lazy: bool) -> None:
        raise MountError("permission", "not you")

    monkeypatch.setattr(host, "detach", refuse)
    with pytest.raises(MountError, match="killed server"):
        stale.clear_stale("/dead")
    monkeypatch.setattr(host, "mounted_at", lambda _path: None)
    assert not stale.clear_stale("/dead")


def test_no_full_collection_starts_by_itself() -> None:
    # What if a million objects come and stay while mounted: is there a full collection?
    seen: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            seen.append(info["generation"])

    before = gc.get_threshold()
    with no_full_collections():
        gc.callbacks.append(note)
        try:
            kept = [[number] for number in range(1_000_000)]
        finally:
            gc.callbacks.remove(note)
        assert gc.get_freeze_count() > 0
    assert len(kept) == 1_000_000
    assert seen
    assert 2 not in seen
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


def test_the_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What if systemd waits for READY=1? And if nobody does?
    assert not notify("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "n"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        assert notify("READY=1", "STATUS=fine")
        assert sock.recv(100) == b"READY=1\nSTATUS=fine"
    assert not notify("STOPPING=1")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@dfuser-test-{os.getpid()}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0dfuser-test-{os.getpid()}")
        assert notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "nonsense")
    assert not notify("READY=1")


def test_the_watchdog_is_for_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    # What if the variable was inherited from somebody else?
    assert watchdog_seconds() is None
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert watchdog_seconds() == 30
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_seconds() is None


def test_the_kernel_log_goes_to_stderr_with_its_levels(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What if the kernel says something before and after we follow, and after we stopped?
    msgbuf = MsgBuf()
    msgbuf.kprintf("early\n")
    log = ServerLog(logging.WARNING)
    log.follow(msgbuf)
    msgbuf.log(LOG_ERR, "bad thing\n")
    msgbuf.log(LOG_WARNING, "odd thing\n")
    log.say("hello")
    log.close()
    msgbuf.log(LOG_ERR, "too late\n")
    err = capfd.readouterr().err
    assert "early" not in err
    assert "ERROR dfuser.kernel: bad thing" in err
    assert "WARNING dfuser.kernel: odd thing" in err
    assert "dfuser: hello" in err
    assert "too late" not in err
    assert msgbuf.statistics().listeners == 0


def test_under_systemd_lines_carry_their_level(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What if the journal reads our stderr?
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    msgbuf = MsgBuf()
    log = ServerLog(logging.INFO)
    log.follow(msgbuf)
    msgbuf.log(LOG_ERR, "bad\n")
    msgbuf.kprintf("fine\n")
    log.close()
    assert capfd.readouterr().err == "<3>bad\n<6>fine\n"


def test_a_daemons_log_has_everything_and_survives_rotation(tmp_path: Path) -> None:
    # What if the file is moved away and SIGHUP comes? In a child: it replaces its own stderr.
    code = f"""
import logging
from pathlib import Path
from dfuser.cli.logs import ServerLog
from dfuser.libkern.log import MsgBuf
path = Path({str(tmp_path / "d" / "log")!r})
msgbuf = MsgBuf()
log = ServerLog(logging.INFO, path)
log.follow(msgbuf)
msgbuf.kprintf("booted")
log.to_file()
msgbuf.kprintf("first")
path.rename(path.with_name("log.1"))
log.reopen()
msgbuf.kprintf("second")
log.say("third")
log.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    old = (tmp_path / "d" / "log.1").read_text()
    new = (tmp_path / "d" / "log").read_text()
    assert old.count("booted") == old.count("first") == 1
    assert "second" in new
    assert "third" in new
    assert "first" not in new


def test_the_parent_of_a_daemon_learns_how_it_went(tmp_path: Path) -> None:
    # What if the child becomes ready, fails with a code, dies of a signal, or breaks?
    script = """
import os, signal, sys
from dfuser.cli.daemon import in_background
from dfuser.cli.exits import CliError, ExitCode
def serve(on_ready):
    if sys.argv[1] == "ready":
        on_ready(); os.close(0); os.close(1); os.close(2); return 0
    if sys.argv[1] == "fail":
        raise CliError(ExitCode.MOUNTED, "taken")
    if sys.argv[1] == "signal":
        os.kill(os.getpid(), signal.SIGKILL)
    return 1 // 0
sys.exit(in_background(serve))
"""
    for mode, code, text in (
        ("ready", 0, ""),
        ("fail", ExitCode.MOUNTED, "dfuser: taken\n"),
        ("signal", 137, ""),
        ("bug", ExitCode.INTERNAL, "a bug in dfuser: ZeroDivisionError"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, mode], capture_output=True, text=True, check=False
        )
        assert done.returncode == code, mode
        assert text in done.stderr
        assert "Traceback" not in done.stderr


def test_the_log_has_a_place_of_its_own(tmp_path: Path) -> None:
    # What if no log file is given, or a relative one?
    plan = make_plan("tmpfs", "/mnt/a b", [f"state_dir={tmp_path}"])
    assert log_path(plan, None) == tmp_path / "mnt-a b.log"
    assert log_path(plan, "x.log") == Path.cwd() / "x.log"


def test_a_demo_makes_its_directory_and_removes_it(tmp_path: Path) -> None:
    # What if the directory of a demo does not exist, or was there before?
    with place(str(tmp_path / "new")) as where:
        assert os.path.isdir(where)
    assert not os.path.exists(where)
    with place(str(tmp_path)) as where:
        assert where == str(tmp_path)
    assert tmp_path.is_dir()
    with place(None) as where:
        assert os.path.isdir(where)
    assert not os.path.exists(where)
    with pytest.raises(CliError, match="cannot make"), place(str(tmp_path / "a" / "b")):
        pass


def test_a_demo_has_six_lines_that_can_be_pasted() -> None:
    # What if the directory has a blank in its name?
    shown = lines("/mnt/a b")
    assert len(shown) == 6
    assert all("'/mnt/a b" in line for line in shown if "/mnt" in line)
