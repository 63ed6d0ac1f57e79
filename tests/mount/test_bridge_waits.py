"""Requests that wait: killable, bounded, visible, and gone afterwards."""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.rig import Rig, eventually, rig

pytestmark = pytest.mark.mount

#: A host program: opens the log, empties it, and reads on in as many threads as asked.
READER = """
import os, sys, threading
path, count = sys.argv[1], int(sys.argv[2])
fd = os.open(path, os.O_RDONLY)
def read():
    while True:
        try:
            data = os.pread(fd, 65536, 0)
        except OSError as error:
            print("errno", error.errno, flush=True)
            return
        print("data", data.decode().strip().replace(chr(10), "|"), flush=True)
threads = [threading.Thread(target=read, daemon=False) for _ in range(count - 1)]
for thread in threads:
    thread.start()
read()
"""


#: Readers of the test that runs, ended with it.
STARTED: list[subprocess.Popen[bytes]] = []


@pytest.fixture
def world(transport: str) -> Iterator[Rig]:
    """A mount of its own for each test."""
    with rig() as made:
        try:
            yield made
        finally:
            while STARTED:
                STARTED[-1].kill()
                end(STARTED.pop())
        if made.child.poll() is None:
            assert made.stat("s.context.failed") == 0, made.stat("k.msgbuf.text()")
            eventually(lambda: parked(made) == 0, "nobody waits any more")
            made.end()


def parked(world: Rig) -> int:
    """How many requests wait now."""
    count = world.stat("len(s.context.parked_threads)")
    assert isinstance(count, int)
    return count


def start_reader(world: Rig, count: int, *before: str) -> subprocess.Popen[bytes]:
    """A host process with ``count`` threads that wait for the log."""
    child = subprocess.Popen(
        [*before, sys.executable, "-c", READER, str(world.path / "dev" / "klog"), str(count)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    STARTED.append(child)
    eventually(lambda: parked(world) == count, f"{count} readers wait")
    return child


def end(child: subprocess.Popen[bytes]) -> bytes:
    """What a child said until its end."""
    if child.stdout is None or child.stdout.closed:
        return b""
    out, _ = child.communicate(timeout=60)
    return out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_blocked_reader_is_killable(world: Rig, number: signal.Signals) -> None:
    """What if a process blocked in a read is interrupted, terminated or killed?"""
    child = start_reader(world, 1)
    before = world.stat("s.watcher.interrupted")
    child.send_signal(number)
    end(child)
    assert child.returncode in (-number, 1)
    assert world.stat("s.watcher.interrupted") == before + 1
    eventually(lambda: parked(world) == 0, "the request is gone")


def test_many_threads_read_one_open(world: Rig) -> None:
    """What if twenty threads wait on one open: all see text come, and one kill ends them all?"""
    child = start_reader(world, 20)
    world.inside('k.log("a message")')
    assert child.stdout is not None
    while b"a message" not in child.stdout.readline():
        pass
    eventually(lambda: parked(world) == 20, "all wait again")
    child.kill()
    end(child)
    eventually(lambda: parked(world) == 0, "all are gone")


def test_a_reader_that_inherited_the_descriptor(world: Rig, transport: str) -> None:
    """What if the opener is gone and a child of it waits: is it killable, and not disturbed?"""
    script = textwrap.dedent("""
        import os, sys
        fd = os.open(sys.argv[1], os.O_RDONLY)
        os.read(fd, 65536)
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            os._exit(0)
        try:
            os.read(fd, 65536)
        finally:
            os._exit(0)
    """)
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(world.path / "dev" / "klog")], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    reader = int(child.stdout.readline())
    child.wait(60)
    child.stdout.close()
    eventually(lambda: parked(world) == 1, "the child waits")
    if transport == "pyfuse3":
        searches = world.stat("s.watcher.searches")
        eventually(
            lambda: world.stat("s.watcher.searches") > searches + 1, "holders were looked for"
        )
    assert parked(world) == 1, "the end of the opener is not the end of the reader"
    os.kill(reader, signal.SIGKILL)
    eventually(lambda: parked(world) == 0, "the child's request is gone")


def test_five_hundred_blocked_readers(world: Rig) -> None:
    """What if 500 requests wait, more than Linux lets be in the background: does the mount live?"""
    child = start_reader(world, 500)
    for number in range(20):
        (world.path / f"f{number}").write_bytes(b"x" * 300_000)
        assert len((world.path / f"f{number}").read_bytes()) == 300_000
    assert len(os.listdir(world.path)) == 25
    child.kill()
    end(child)
    eventually(lambda: parked(world) == 0, "all are gone")


def test_a_parked_request_is_visible(world: Rig) -> None:
    """What if somebody looks at /proc and the threads while a request waits, and afterwards?"""
    child = start_reader(world, 1)

    def shown() -> list[str]:
        found = []
        for entry in os.scandir(world.path / "proc"):
            if entry.name.isdigit():
                found.append(Path(entry.path, "status").read_text())
        return [text for text in found if f"fuse:read/{child.pid}"[:16] in text]

    assert len(shown()) == 1
    assert "klog" in shown()[0]
    threads = world.stat("[(t.name, t.wmesg) for t in k.lwkt.threads.values()]")
    assert ["fuse:read", "klog"] in threads
    child.kill()
    end(child)
    eventually(lambda: not shown(), "its process is gone")
    threads = world.stat("[t.name for t in k.lwkt.threads.values()]")
    assert "fuse:read" not in threads


def test_too_many_waiters(world: Rig) -> None:
    """What if more requests would wait than are allowed: EAGAIN, and the rest go on waiting?"""
    world.inside('k.sysctl.set("vfs.fuse.max_parked", "3")')
    child = start_reader(world, 3)
    child.kill()
    end(child)
    child = subprocess.Popen(
        [sys.executable, "-c", READER, str(world.path / "dev" / "klog"), "4"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert child.stdout is not None
    while (line := child.stdout.readline()) and not line.startswith(b"errno"):
        pass
    assert line.split() == [b"errno", b"%d" % errno.EAGAIN]
    assert parked(world) == 3
    child.kill()
    end(child)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs unshare")
def test_callers_below_in_a_pid_namespace(world: Rig) -> None:
    """What if the caller lives in a pid namespace below ours, where its number differs?"""
    child = start_reader(world, 1, "unshare", "--pid", "--fork", "--kill-child")
    child.kill()
    end(child)
    eventually(lambda: parked(world) == 0, "its request is gone")


def test_callers_nobody_can_see(world: Rig, transport: str) -> None:
    """What if FUSE reports no process: does the wait end by itself after the bounded time?"""
    if transport != "pyfuse3":
        pytest.skip("the device is told of signals: nobody need be seen")
    world.inside('k.sysctl.set("vfs.fuse.foreign_wait", "1")')
    world.inside("s.watcher._sees = False")
    child = start_reader(world, 1)
    eventually(lambda: world.stat("s.watcher.interrupted") >= 2, "Python asks again, and again")
    child.kill()
    end(child)


def test_poll_on_the_log(world: Rig) -> None:
    """What if a process polls the log: does it sleep until there is a message, each time?"""
    fd = os.open(world.path / "dev" / "klog", os.O_RDONLY)
    os.read(fd, 65536)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(0) == []
    for number in range(3):
        world.send(f"""
from dfuser.lwkt.synch import tsleep
await tsleep(vfs, 0, 'later', 5)
k.log("message {number}")
""")
        assert poll.poll(60_000) == [(fd, select.POLLIN)]
        assert world.read()[0] == "ok"
        assert b"message %d" % number in os.read(fd, 65536)
        assert poll.poll(0) == []
    ready = select.poll()
    plain = os.open(world.path / "plain", os.O_RDWR | os.O_CREAT)
    ready.register(plain, select.POLLIN | select.POLLOUT)
    assert ready.poll(60_000) == [(plain, select.POLLIN | select.POLLOUT)]
    os.close(plain)
    os.close(fd)
    eventually(lambda: world.stat("len(s.root.polls._waiting)") == 0, "the note goes with the file")


def test_unmount_while_requests_wait(world: Rig) -> None:
    """What if the mount is taken away lazily while readers wait: are they let go, is all gone?"""
    child = start_reader(world, 5)
    world.send("""
await s.unmount(lazy=True)
s.context.close()
""")
    assert world.read()[0] == "ok"
    out = end(child)
    assert out.count(b"errno") >= 1
    assert world.child.stdin is not None
    world.child.stdin.close()
    assert world.child.wait(60) == 0, world.log.read_text()


def test_abort_while_requests_wait(world: Rig) -> None:
    """What if the host breaks the connection while readers wait: does everything end by itself?"""
    if os.geteuid():
        pytest.skip("only root may abort")
    child = start_reader(world, 5)
    subprocess.run(["umount", "-i", "-f", str(world.path)], check=False, capture_output=True)
    out = end(child)
    assert out.count(b"errno") >= 1
    word = world.read()
    assert word[0] == "end"
    assert word[1] == 0
    assert world.child.wait(60) == 0, world.log.read_text()
