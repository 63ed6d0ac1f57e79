"""Callers of another pid namespace: FUSE has no number for them, so their waits are bounded.

That is where the server has to look for signals (pyfuse3). The device transport is told of them,
and no wait is bounded.

The server lives in a pid namespace of its own, as in a container, and its callers outside. What
decides how much it sees of callers inside is its ``/proc``: a fresh one shows its own namespace,
the old one shows numbers that mean others than those FUSE names.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.rig import PATIENCE, Rig, eventually, mounted_paths

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes pid namespaces"),
    pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare"),
]

UNSHARE = ("unshare", "--pid", "--fork", "--kill-child")
#: A fresh /proc needs a mount namespace; only what is mounted below a shared mount is seen outside.
FRESH_PROC = (
    *UNSHARE, "--mount", "--propagation", "unchanged", "sh", "-ec",
    'mount --make-rprivate /proc; mount -t proc proc /proc; exec "$@"', "sh",
)  # fmt: skip

#: A host program: says what is in the log, then what comes. Python would repeat a read that ends
#: with EINTR and no signal of its own, so it asks libc.
READER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open(sys.argv[1], os.O_RDONLY)
room = ctypes.create_string_buffer(65536)
print("reads", flush=True)
while (count := libc.read(fd, room, 65536)) > 0:
    print("data", room.raw[:count].decode().replace(chr(10), "|"), flush=True)
print("got", count, ctypes.get_errno(), flush=True)
"""


def run(*command: str | Path) -> None:
    """Run a command that must work."""
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=60)


@contextlib.contextmanager
def shared_directory() -> Iterator[Path]:
    """A directory whose mounts are seen in every mount namespace made from ours."""
    base = Path(tempfile.mkdtemp(prefix="dfuser-pidns-"))
    base.chmod(0o755)
    (base / "shared").mkdir()
    run("mount", "--bind", base / "shared", base / "shared")
    try:
        run("mount", "--make-private", base / "shared")
        run("mount", "--make-shared", base / "shared")
        yield base / "shared"
    finally:
        run("umount", base / "shared")
        shutil.rmtree(base)


@pytest.fixture(params=["old /proc", "fresh /proc"])
def world(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """A server in a pid namespace of its own, seen from outside of it."""
    with shared_directory() as base:
        (base / "mnt").mkdir()
        fresh = request.param == "fresh /proc"
        made = Rig(base / "mnt", *(FRESH_PROC if fresh else UNSHARE))
        try:
            assert made.stat("os.getpid()") == 1, "it is the first of its namespace"
            assert made.stat("s.watcher._sees") is fresh
            assert base / "mnt" in mounted_paths()
            yield made
            assert made.stat("s.context.failed") == 0, made.stat("k.msgbuf.text()")
            eventually(lambda: parked(made) == 0, "nobody waits any more")
            made.end()
        finally:
            made.clear()
        assert base / "mnt" not in mounted_paths()


def parked(world: Rig) -> int:
    """How many requests wait now."""
    count = world.stat("len(s.context.parked_threads)")
    assert isinstance(count, int)
    return count


def told() -> bool:
    """Whether the host tells the server of signals."""
    return os.environ.get("DFUSER_TRANSPORT") == "device"


def bound(world: Rig, seconds: int) -> None:
    """Set the longest wait of a caller who cannot be seen, for those that wait already too."""
    world.inside(f'k.sysctl.set("vfs.fuse.foreign_wait", "{seconds}")')


def inside(world: Rig) -> tuple[str, ...]:
    """The words of a command that runs another one in the server's namespaces."""
    unshare = world.child.pid
    server = Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()[0]
    return ("nsenter", "--target", server, "--pid", "--mount")


@contextlib.contextmanager
def reader(world: Rig, *before: str) -> Iterator[subprocess.Popen[str]]:
    """A host process that waits in the kernel's log."""
    child = subprocess.Popen(
        [*before, sys.executable, "-c", READER, str(world.path / "dev" / "klog")],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "reads\n"
        yield child
    finally:
        child.kill()
        child.communicate(timeout=PATIENCE)


def waits(world: Rig, child: subprocess.Popen[str]) -> list[int]:
    """Returns when ``child`` waits or has been told to stop: the pids FUSE names for who waits."""
    eventually(lambda: parked(world) == 1 or child.poll() is not None, "it waits")
    pids = world.stat("[c.pid for c in s.context.parked_threads.values()]")
    assert isinstance(pids, list)
    return pids


def last_word(child: subprocess.Popen[str]) -> str:
    """The last line of a child that ends by itself."""
    out, _ = child.communicate(timeout=PATIENCE)
    return out.splitlines()[-1] if out else ""


def test_a_caller_outside_waits_for_a_bounded_time(world: Rig) -> None:
    """What if a process of another pid namespace waits for ever: EINTR in time, and all goes on?"""
    if told():
        pytest.skip("the host tells of signals: such a wait ends by a signal only")
    bound(world, 1)
    for number in range(2):
        begun = time.monotonic()
        with reader(world) as child:
            assert set(waits(world, child)) <= {0}
            assert last_word(child) == f"got -1 {errno.EINTR}"
        assert time.monotonic() - begun >= 1, "not before its time"
        assert world.stat("s.watcher.interrupted") == number + 1
        (world.path / "file").write_text(f"alive {number}")
        assert (world.path / "file").read_text() == f"alive {number}"


def test_a_killed_caller_outside_is_let_go(world: Rig) -> None:
    """What if a waiting process of another pid namespace is killed: gone, at once or in time?"""
    bound(world, 86400 if told() else 1)
    with reader(world) as child:
        waits(world, child)
        child.kill()
        assert child.wait(PATIENCE) == -signal.SIGKILL
    eventually(lambda: parked(world) == 0, "its request is gone")
    assert sorted(os.listdir(world.path)) == ["dev", "kern", "proc", "sysctl", "tmp"]


def test_a_caller_outside_gets_what_comes(world: Rig) -> None:
    """What if it happens what a process of another pid namespace waits for: does it get it?"""
    with reader(world) as child:
        assert waits(world, child) == [0]
        world.inside('k.log("here it is")')
        assert child.stdout is not None
        while "here it is" not in child.stdout.readline():
            assert child.poll() is None
        bound(world, 1)


def test_a_caller_inside(world: Rig) -> None:
    """What if a caller lives in the server's namespace: killed at once if the server can know?"""
    sees = told() or world.stat("s.watcher._sees")
    bound(world, 86400 if sees else 1)
    with reader(world, *inside(world)) as child:
        assert all(pid > 1 for pid in waits(world, child))
        if sees:
            [pid] = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
            os.kill(int(pid), signal.SIGKILL)
            assert child.wait(PATIENCE) == -signal.SIGKILL, "nsenter ends as its child did"
        else:
            assert last_word(child) == f"got -1 {errno.EINTR}"


def test_groups_are_not_read_off_another_namespace() -> None:
    """What if a caller's number is a stranger's in the old /proc: are the groups left alone?"""
    code = "import sys; from dfuser.fuse.callers import groups_of as g; print(g(int(sys.argv[1])))"
    ask = [sys.executable, "-c", code]
    stranger = subprocess.Popen(["sleep", "600"], extra_groups=[4242])
    try:
        for before, groups in (((), "(4242,)"), (UNSHARE, "()")):
            done = subprocess.run(
                [*before, *ask, str(stranger.pid)],
                cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
            )  # fmt: skip
            assert done.stdout.strip() == groups
    finally:
        stranger.kill()
        stranger.wait(PATIENCE)
