"""A dfuser that is mounted for the length of a test session, and what must hold when it ends.

`mounted()` starts `dfuser mount -f SOURCE DIR` as a child process, returns when the kernel lists
the mount, and at the end unmounts with `dfuser umount DIR`. The end is a test of its own: umount
and mount both exit with 0, the log holds no warning, no error and no traceback, and no mount is
left. When the server dies or hangs on the way, the mount is aborted and cleared, so that the next
session starts clean, and the session fails with the tail of the log.

The environment variable DFUSER_TEST_DIR names a plain directory to use instead of a mount: the
same tests then judge any file system.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

#: Longest waits in seconds, for a machine that does much else; nothing takes as long.
STARTING, STOPPING = 60.0, 60.0
BAD_WORDS = ("WARNING", "ERROR", "CRITICAL", "Traceback", "panic:")


class Mounted(NamedTuple):
    """A place to test in: its root, and the server's process and log when there is a server."""

    path: Path
    pid: int | None
    log: Path | None


def dfuser_program() -> Path:
    """The console script that stands beside the running interpreter."""
    return Path(sys.executable).with_name("dfuser")


def dfuser(*args: str | Path, timeout: float = STOPPING) -> subprocess.CompletedProcess[str]:
    """Run one `dfuser` command to its end and return its output and exit status."""
    command = [str(dfuser_program()), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def is_mounted(path: Path) -> bool:
    """Whether something is mounted exactly at `path`, by the kernel's own list."""
    wanted = str(path).replace(" ", "\\040")
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return any(line.split()[1] == wanted for line in lines)


def why_no_mount() -> str | None:
    """Why nothing can be mounted here, or None."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "no access to /dev/fuse"
    if shutil.which("fusermount3") is None:
        return "no fusermount3"
    return None


@contextlib.contextmanager
def mounted(source: str = "tmpfs", *options: str) -> Iterator[Mounted]:
    """Mount `source` for the length of a `with` block and check that it ends clean.

    Raises:
        AssertionError: it did not start, or did not end as it must.
    """
    base = Path(tempfile.mkdtemp(prefix="dfuser-test-"))
    base.chmod(0o755)
    directory, log = base / "mnt", base / "log"
    directory.mkdir(0o755)
    server = None
    try:
        server = launch(directory, log, source, *options)
        wait_for_mount(server, directory, log)
        yield Mounted(directory, server.pid, log)
        _check_end(server, directory, log)
    finally:
        if server is not None:
            clear(server, directory)
        shutil.rmtree(base, ignore_errors=True)


def launch(directory: Path, log: Path, source: str, *options: str) -> subprocess.Popen[bytes]:
    """Start `dfuser mount -f` in a child process whose output goes to `log`."""
    command = [str(dfuser_program()), "mount", "-f", *options, source, str(directory)]
    with log.open("wb") as out:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)


def wait_for_mount(server: subprocess.Popen[bytes], directory: Path, log: Path) -> None:
    """Wait on the kernel's mount table, which poll(2) reports changes of."""
    deadline = time.monotonic() + STARTING
    descriptor, pid = os.open("/proc/self/mounts", os.O_RDONLY), os.pidfd_open(server.pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLPRI)
        poll.register(pid, select.POLLIN)
        while not is_mounted(directory):
            assert server.poll() is None, f"dfuser mount ended: {tail(log)}"
            left = deadline - time.monotonic()
            assert left > 0, f"not mounted after {STARTING} s: {tail(log)}"
            poll.poll(left * 1000)
    finally:
        os.close(descriptor)
        os.close(pid)


def _check_end(server: subprocess.Popen[bytes], directory: Path, log: Path) -> None:
    assert server.poll() is None, f"the server died ({server.returncode}): {tail(log)}"
    umount = dfuser("umount", directory)
    assert umount.returncode == 0, f"dfuser umount: {umount.stderr}\n{tail(log)}"
    assert server.wait(STOPPING) == 0, f"dfuser mount: {server.returncode}\n{tail(log)}"
    assert not is_mounted(directory), "the mount is still there"
    check_log(log)


def check_log(log: Path) -> None:
    """No line of the log may be a warning, an error or a traceback."""
    text = log.read_text(errors="replace")
    bad = [line for line in text.splitlines() if any(word in line for word in BAD_WORDS)]
    assert not bad, "the server complained:\n" + "\n".join(bad[:40])


def clear(server: subprocess.Popen[bytes], directory: Path) -> None:
    """Leave neither process nor mount behind, whatever happened."""
    if server.poll() is None:
        server.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(STOPPING)
    if is_mounted(directory):
        subprocess.run(["fusermount3", "-uz", str(directory)], check=False, capture_output=True)


def tail(log: Path, lines: int = 30) -> str:
    """The last lines of a log, for messages."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
