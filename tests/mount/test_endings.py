"""How a mount ends, well or badly, and that the next one starts: each with a server of its own."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.mounted import (
    STOPPING,
    check_log,
    clear,
    dfuser,
    is_mounted,
    launch,
    mounted,
    wait_for_mount,
    why_no_mount,
)

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(why_no_mount() is not None, reason=str(why_no_mount())),
    pytest.mark.skipif("DFUSER_TEST_DIR" in os.environ, reason="it is about our own server"),
]


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory with an empty mount point `mnt`."""
    path = Path(tempfile.mkdtemp(prefix="dfuser-test-"))
    (path / "mnt").mkdir()
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def server(base: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A running server at `base / "mnt"`, whatever the test does to it."""
    child = launch(base / "mnt", base / "log", "tmpfs")
    wait_for_mount(child, base / "mnt", base / "log")
    yield child
    clear(child, base / "mnt")


ENDINGS: dict[str, Callable[[subprocess.Popen[bytes], Path], object]] = {
    "SIGTERM": lambda child, mnt: child.send_signal(signal.SIGTERM),
    "SIGINT": lambda child, mnt: child.send_signal(signal.SIGINT),
    "umount": lambda child, mnt: dfuser("umount", mnt),
    "fusermount3": lambda child, mnt: subprocess.run(["fusermount3", "-uz", str(mnt)], check=True),
}


@pytest.mark.parametrize("way", ENDINGS)
def test_ends_clean(base: Path, server: subprocess.Popen[bytes], way: str) -> None:
    """What if a way to end left the mount, the process or a complaint behind."""
    (base / "mnt" / "file").write_bytes(b"x" * 100_000)
    ENDINGS[way](server, base / "mnt")
    status = server.wait(STOPPING)
    assert status in (0, 128 + signal.SIGTERM, 128 + signal.SIGINT)
    assert not is_mounted(base / "mnt")
    assert os.listdir(base / "mnt") == []
    check_log(base / "log")


def test_umount_of_nothing_is_one_clear_line(base: Path) -> None:
    """What if `dfuser umount` of a plain directory succeeded, or printed a traceback."""
    done = dfuser("umount", base / "mnt")
    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_killed_server(base: Path, server: subprocess.Popen[bytes]) -> None:
    """What if callers of a killed server hang, or its stale mount blocks the next one."""
    mnt = base / "mnt"
    descriptor = os.open(mnt / "file", os.O_CREAT | os.O_RDWR)
    server.kill()
    server.wait(STOPPING)
    for call in (
        lambda: os.listdir(mnt),
        lambda: os.stat(mnt / "new"),
        lambda: os.fsync(descriptor),
    ):
        with pytest.raises(OSError) as failure:
            call()
        assert failure.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    with contextlib.suppress(OSError):
        os.close(descriptor)
    again = launch(mnt, base / "log2", "tmpfs")
    try:
        wait_for_answer(again, mnt, base / "log2")
        assert "file" not in os.listdir(mnt)
        assert dfuser("umount", mnt).returncode == 0
        assert again.wait(STOPPING) == 0
    finally:
        clear(again, mnt)


def wait_for_answer(child: subprocess.Popen[bytes], mnt: Path, log: Path) -> None:
    """Wait until the new server has cleared the stale mount and answers itself."""
    while True:
        assert child.poll() is None, log.read_text(errors="replace")
        with contextlib.suppress(OSError):
            os.stat(mnt / ".")
            if is_mounted(mnt):
                return
        os.sched_yield()


def test_stopped_server_goes_on(base: Path, server: subprocess.Popen[bytes]) -> None:
    """What if callers of a stopped server got an error instead of waiting until it continues."""
    server.send_signal(signal.SIGSTOP)
    reader = subprocess.Popen(["ls", str(base / "mnt")], stdout=subprocess.PIPE)
    server.send_signal(signal.SIGCONT)
    assert reader.wait(STOPPING) == 0
    reader.communicate()


def test_full_file_system() -> None:
    """What if a full tmpfs lost data, counted wrongly, or did not recover."""
    with mounted("tmpfs", "-o", "size=8m") as world:
        kept = world.path / "kept"
        kept.write_bytes(b"k" * 100_000)
        with pytest.raises(OSError) as failure:
            (world.path / "big").write_bytes(b"x" * (16 << 20))
        assert failure.value.errno == errno.ENOSPC
        whole = os.statvfs(world.path)
        assert whole.f_bavail * whole.f_frsize < 1 << 20
        assert kept.read_bytes() == b"k" * 100_000
        (world.path / "big").unlink()
        kept.write_bytes(b"n" * 1_000_000)
        assert kept.read_bytes() == b"n" * 1_000_000


@pytest.mark.parametrize("kind", ["missing", "file", "full"])
def test_bad_mount_points(base: Path, kind: str) -> None:
    """What if a mount point that cannot be used gave a traceback or exit status 0."""
    target = base / "target"
    if kind == "file":
        target.write_text("")
    elif kind == "full":
        target.mkdir()
        (target / "something").write_text("")
    done = dfuser("mount", "-f", "tmpfs", target)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not is_mounted(target)
