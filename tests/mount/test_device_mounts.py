"""A connection for each mount: what the host sees, and every way in which one of them can end."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest

from dfuser.fuse import mountpoint as host
from tests.mount.rig import Rig, eventually, rig

pytestmark = pytest.mark.mount

INSIDE = ("tmp", "dev", "proc", "sysctl", "kern")
CONNECTIONS = Path("/sys/fs/fuse/connections")
GONE = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ESTALE, errno.ENOENT)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may")
#: Seconds within which a signal must end a wait; it takes a few thousandths.
AT_ONCE = 2.0


@pytest.fixture(autouse=True)
def only_device(transport: str) -> None:
    """All of this is about the device transport."""
    if transport != "device":
        pytest.skip("one connection carries everything")


@pytest.fixture(scope="module")
def shared(transport: str) -> Iterator[Rig | None]:
    """One mount for the tests that leave it as it was."""
    if transport != "device":
        yield None
        return
    with rig() as made:
        (made.path / "m").mkdir()
        yield made
        assert made.stat("s.context.failed") == 0, made.stat("k.msgbuf.text()")
        assert made.end()[:2] == ["end", 0]


@pytest.fixture
def world(shared: Rig | None) -> Rig:
    """The shared mount, for a test."""
    assert shared is not None
    return shared


def ctl(world: Rig, line: str) -> None:
    """A command to the kernel, through the mount."""
    (world.path / "kern" / "ctl").write_text(line)


def number_of(call: Callable[[], object]) -> int:
    """The errno that a call fails with, 0 if it succeeds."""
    try:
        call()
    except OSError as error:
        return error.errno or -1
    return 0


def below(path: Path) -> dict[str, host.MountInfo]:
    """The host's mounts at and below a path, by their place in it."""
    return {
        os.path.relpath(info.path, path): info
        for info in host.mounts()
        if Path(info.path) == path or path in Path(info.path).parents
    }


def options_of(path: Path) -> set[str]:
    """The host's flags of a mount."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(path):
            return set(fields[5].split(","))
    raise AssertionError(f"{path} is not mounted")


def attached(world: Rig) -> list[list[str]]:
    """Name and number of each connection, as the server has them."""
    found = world.stat("[[c.name, c.number] for c in s.connections()]")
    assert isinstance(found, list)
    return found


def ended(world: Rig, number: str) -> bool:
    """Whether there is no connection of that number."""
    return number not in dict(attached(world)).values()


def whole(world: Rig) -> None:
    """The whole tree is there and answers."""
    eventually(lambda: set(below(world.path)) == {".", *INSIDE}, "all is attached")
    for name in INSIDE:
        assert os.listdir(world.path / name) or name == "tmp"
    (world.path / "tmp" / "alive").write_text("alive")
    assert (world.path / "tmp" / "alive").read_text() == "alive"
    (world.path / "tmp" / "alive").unlink()


# --- what the host sees ------------------------------------------------------------------------


def test_each_mount_is_one_of_the_hosts(world: Rig) -> None:
    """What if somebody asks the host what is mounted: its table, findmnt, df, mountpoint, stat?"""
    found = below(world.path)
    assert set(found) == {".", *INSIDE}
    assert len({info.device for info in found.values()}) == 6
    assert {info.fstype for info in found.values()} == {"fuse.dfuser"}
    assert found["dev"].source == "devfs:/dev"
    names = dict(attached(world))
    assert names == {
        "/" if name == "." else f"/{name}": info.device.partition(":")[2]
        for name, info in found.items()
    }
    devices = {(world.path / name).stat().st_dev for name in (".", *INSIDE)}
    assert len(devices) == 6
    for name in INSIDE:
        path = world.path / name
        assert os.path.ismount(path)
        assert (path / "..").stat().st_ino == world.path.stat().st_ino
        assert number_of(partial(os.rename, path, world.path / "x")) == errno.EBUSY
        assert number_of(path.rmdir) == errno.EBUSY
    tools = {
        "findmnt": ["findmnt", "-n", "-o", "SOURCE", str(world.path / "proc")],
        "mountpoint": ["mountpoint", str(world.path / "kern")],
        "df": ["df", "--output=source", str(world.path / "tmp")],
    }
    for name, command in tools.items():
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert {"findmnt": "procfs:/proc", "df": "tmpfs:/tmp"}.get(name, "kern") in done.stdout
    for name, command in tools.items():
        if name != "df":
            command[-1] = str(world.path / "m")
            assert subprocess.run(command, capture_output=True, check=False).returncode, name


def test_figures_of_each_mount(world: Rig) -> None:
    """What if a file system is full: is it that one, and no other?"""
    ctl(world, "mount -t tmpfs -o size=1m tmpfs /m")
    try:
        path = world.path / "m"
        before, root = os.statvfs(path), os.statvfs(world.path)
        assert before.f_blocks * before.f_frsize == 1 << 20
        (path / "f").write_bytes(bytes(1 << 19))
        assert os.statvfs(path).f_bfree * before.f_frsize <= 1 << 19
        assert os.statvfs(world.path).f_blocks == root.f_blocks > before.f_blocks
    finally:
        ctl(world, "umount -f /m")


def test_find_stays_on_one_file_system(world: Rig) -> None:
    """What if find is told not to leave the file system?"""
    command = ["find", str(world.path), "-xdev", "-printf", "%P\\n"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not [name for name in out if "/" in name and name.split("/")[0] in INSIDE]
    assert "m" in out
    command = ["find", str(world.path / "dev"), "-name", "null"]
    assert subprocess.run(command, capture_output=True, check=True).stdout


@as_root
@pytest.mark.parametrize("flag", ["ro", "noexec"])
def test_the_host_enforces_flags(world: Rig, flag: str) -> None:
    """What if a mount has a flag: does the host itself refuse, without asking us?"""
    ctl(world, f"mount -t tmpfs -o {flag} tmpfs /m")
    try:
        path = world.path / "m"
        assert {flag, "nosuid", "nodev"} <= options_of(path)
        assert flag not in options_of(world.path)
        shown = {"ro": os.ST_RDONLY, "noexec": os.ST_NOEXEC}[flag]
        assert os.statvfs(path).f_flag & shown
        assert not os.statvfs(world.path).f_flag & shown
        before = world.stat("s.served()")
        if flag == "ro":
            assert number_of(lambda: (path / "f").write_text("x")) == errno.EROFS
            assert not os.access(path, os.W_OK)
        else:
            (path / "prog").write_text("#!/bin/sh\nexit 0\n")
            (path / "prog").chmod(0o755)
            assert number_of(lambda: subprocess.run([path / "prog"], check=True)) == errno.EACCES
            assert (path / "prog").stat().st_mode & 0o111 == 0o111, "the bits need not be hidden"
        after = world.stat("s.served()")
        assert flag != "ro" or after.get("create", 0) == before.get("create", 0)
    finally:
        ctl(world, "umount -f /m")


# --- coming and going --------------------------------------------------------------------------


def test_a_mount_made_at_run_time(world: Rig) -> None:
    """What if mounts are made, one in another, and taken away: do their connections follow?"""
    for _ in range(5):
        ctl(world, "mount -t tmpfs tmpfs /m")
        assert "m" in below(world.path), "the command is answered when the host knows"
        (world.path / "m" / "deep").mkdir()
        ctl(world, "mount -t tmpfs tmpfs /m/deep")
        assert {"m", "m/deep"} <= set(below(world.path))
        assert [name for name, _ in attached(world) if "deep" in name] == ["/m/deep"]
        (world.path / "m" / "deep" / "f").write_text("deep")
        assert (world.path / "m" / "deep").stat().st_dev != (world.path / "m").stat().st_dev
        number = below(world.path)["m/deep"].device.partition(":")[2]
        ctl(world, "umount /m/deep")
        assert "m/deep" not in below(world.path)
        assert os.listdir(world.path / "m" / "deep") == []
        eventually(partial(ended, world, number), "it ends")
        ctl(world, "umount /m")
        assert set(below(world.path)) == {".", *INSIDE}
    eventually(lambda: len(attached(world)) == 6, "their connections have ended")
    assert world.stat("s.loop.statistics().connections") == 6
    served = world.stat("s.served()['mkdir']")
    assert served >= 5, "what connections that are gone have served is not forgotten"


@pytest.mark.parametrize("where", ["tmp", "proc", "."])
def test_unmount_with_somebody_inside(world: Rig, where: str) -> None:
    """What if a process stands in one of the mounts: who is it, and is all attached again?"""
    child = subprocess.Popen(["sleep", "1000"], cwd=world.path / where)
    try:
        before = below(world.path)
        answer = world.inside("""
from dfuser.fuse.mountpoint import MountError
try:
    await s.unmount()
except MountError as error:
    return [error.kind, str(error)]
""")
        assert answer[0] == "busy"
        assert f"sleep ({child.pid})" in answer[1]
        assert set(below(world.path)) == set(before)
        whole(world)
        assert len(attached(world)) == 6
        assert Path(f"/proc/{child.pid}/cwd").resolve() == (world.path / where).resolve()
    finally:
        child.kill()
        child.wait()


# --- ends --------------------------------------------------------------------------------------


def clean_end(made: Rig, word: list[Any] | None = None) -> None:
    """The server has ended by itself, cleanly, and nothing is mounted."""
    word = made.read() if word is None else word
    assert word[0] == "end", word
    assert word[1] == 0, "no number is held"
    assert made.child.wait(60) == 0, made.log.read_text()[-3000:]
    eventually(lambda: not below(made.path), "nothing is mounted")
    assert "Traceback" not in made.log.read_text()


def test_a_lazy_unmount() -> None:
    """What if the tree is taken out of sight while files of several mounts are open?"""
    with rig() as made:
        names = (".", "tmp", "dev/null", "kern/locks")
        fds = [os.open(made.path / name, os.O_RDONLY) for name in names]
        file = os.open(made.path / "tmp" / "f", os.O_CREAT | os.O_RDWR)
        made.inside("await s.unmount(lazy=True)")
        assert not below(made.path)
        assert os.listdir(made.path) == []
        assert os.write(file, b"still here") == 10
        assert os.pread(file, 100, 0) == b"still here"
        for fd in (file, *reversed(fds)):
            os.close(fd)
        clean_end(made)


def test_sigkill_and_a_new_start() -> None:
    """What if the server is killed with its tree attached and in use, and started again there?"""
    with rig() as made:
        fd = os.open(made.path / "tmp" / "f", os.O_CREAT | os.O_RDWR)
        os.write(fd, b"x")
        made.child.kill()
        made.child.wait()
        assert set(below(made.path)) == {".", *INSIDE}, "the dead tree is still there"
        assert number_of(lambda: os.statvfs(made.path)) == errno.ENOTCONN
        again = Rig(made.path)
        try:
            assert len(below(made.path)) == 6, "the stale tree is gone"
            whole(again)
            assert number_of(lambda: os.write(fd, b"x")) in GONE
            assert number_of(lambda: os.close(fd)) in (0, *GONE)
            assert again.end()[:2] == ["end", 0]
        finally:
            again.clear()
        assert not below(made.path)


@as_root
@pytest.mark.parametrize("name", ["tmp", "dev"])
def test_the_host_aborts_one_connection(name: str) -> None:
    """What if one connection is broken: is its dead mount taken away, and the rest unharmed?"""
    with rig() as made:
        number = below(made.path)[name].device.partition(":")[2]
        if not (CONNECTIONS / number).is_dir():
            pytest.skip("fusectl is not mounted")
        fd = os.open(made.path / name, os.O_RDONLY)
        (CONNECTIONS / number / "abort").write_text("1")
        eventually(lambda: name not in below(made.path), "the dead mount is taken away")
        assert number_of(lambda: os.listdir(fd)) in GONE
        os.close(fd)
        eventually(lambda: len(attached(made)) == 5, "the connection has ended")
        for other in set(INSIDE) - {name}:
            os.listdir(made.path / other)
        listed = eventually_lists(made.path / name)
        assert ("null" in listed) is (name == "dev"), "seen through the mount around it"
        (made.path / "plain").write_text("x")
        assert made.end()[:2] == ["end", 0]
        assert not below(made.path)


def eventually_lists(path: Path) -> list[str]:
    """What is in a directory, as soon as the host has dropped what it knew of it."""
    found: list[str] = []

    def listed() -> bool:
        found[:] = os.listdir(path) if not number_of(lambda: os.listdir(path)) else []
        return bool(found) or path.name == "tmp"

    eventually(listed, f"{path} can be listed")
    return found


@as_root
def test_the_host_aborts_the_root() -> None:
    """What if the root's connection is broken, with readers blocked in another one?"""
    with rig() as made:
        number = below(made.path)["."].device.partition(":")[2]
        if not (CONNECTIONS / number).is_dir():
            pytest.skip("fusectl is not mounted")
        with reader(made, "dev/klog") as child:
            (CONNECTIONS / number / "abort").write_text("1")
            clean_end(made)
            child.wait(60)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_descriptor_is_closed_under_us(index: int) -> None:
    """What if the device of the root, or of a mount inside, is closed by mistake in the server?"""
    with rig() as made:
        name, _ = attached(made)[index]
        made.inside(f"os.close(list(s.connections())[{index}].fd)")
        where = made.path / name.strip("/")
        number_of(lambda: os.statvfs(where))
        if not index:
            clean_end(made)
            return
        eventually(lambda: len(attached(made)) == 5, "the connection has ended")
        eventually(lambda: name.strip("/") not in below(made.path), "the dead mount is gone")
        os.listdir(made.path / "proc")
        assert made.end()[0] == "end"
        assert not below(made.path)


# --- requests that wait ------------------------------------------------------------------------

READER = """
import os, signal, sys, threading, time
def caught(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGINT, caught)
fd = os.open(sys.argv[1], os.O_RDONLY)
print("ready", flush=True)
def more():
    while True:
        os.pread(fd, 65536, 0)
for _ in range(int(sys.argv[2]) - 1):
    threading.Thread(target=more, daemon=True).start()
try:
    while True:
        os.pread(fd, 65536, 0)
except KeyboardInterrupt:
    print(time.monotonic(), flush=True)
"""
LOCKER = """
import fcntl, os, signal, sys, time
def caught(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGINT, caught)
fd = os.open(sys.argv[1], os.O_RDWR)
print("ready", flush=True)
try:
    (fcntl.flock if sys.argv[2] == "flock" else fcntl.lockf)(fd, fcntl.LOCK_EX)
    print("locked", flush=True)
    signal.pause()
except KeyboardInterrupt:
    print(time.monotonic(), flush=True)
"""


@contextlib.contextmanager
def reader(
    world: Rig, name: str, *words: str, waits: bool = True, threads: int = 1
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that reads a device, or takes a lock, and waits in there; ended with the block."""
    wanted = parked(world) + threads * waits
    script = LOCKER if words else READER
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(world.path / name), *(words or (str(threads),))],
        stdout=subprocess.PIPE,
    )
    try:
        assert line(child) == b"ready"
        eventually(lambda: parked(world) == wanted, "it waits")
        yield child
    finally:
        child.kill()
        child.communicate()


def line(child: subprocess.Popen[bytes]) -> bytes:
    """The next line that a child says."""
    out: IO[bytes] | None = child.stdout
    assert out is not None
    return out.readline().strip()


def parked(world: Rig) -> int:
    """How many requests wait now."""
    count = world.stat("len(s.context.parked_threads)")
    assert isinstance(count, int)
    return count


def test_a_blocked_device_does_not_stall_the_rest(world: Rig) -> None:
    """What if more readers of /dev wait than Linux lets be in the background of one connection?"""
    with reader(world, "dev/klog", threads=40):
        for number in range(20):
            (world.path / f"f{number}").write_bytes(b"x" * 300_000)
            assert len((world.path / f"f{number}").read_bytes()) == 300_000
            (world.path / f"f{number}").unlink()
        for name in INSIDE:
            os.listdir(world.path / name)
        with (world.path / "dev" / "zero").open("rb") as zero:
            assert zero.read(10) == bytes(10)
        assert world.stat("[c.name for c in s.connections() if c.parked]") == ["/dev"]
        assert parked(world) == 40
    eventually(lambda: parked(world) == 0, "all are gone")


@pytest.mark.parametrize("kind", ["read", "flock", "fcntl"])
def test_ctrl_c_ends_a_wait_at_once(
    world: Rig, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What if somebody presses Ctrl-C while a read, or a lock, waits: how long does it take?"""
    path = world.path / "locked"
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    if kind != "read":
        (fcntl.flock if kind == "flock" else fcntl.lockf)(fd, fcntl.LOCK_EX)
    words = () if kind == "read" else (kind,)
    before = world.stat("s.watcher.interrupted")
    with reader(world, "dev/klog" if kind == "read" else "locked", *words) as child:
        sent = time.monotonic()
        child.send_signal(signal.SIGINT)
        took = float(line(child)) - sent
    with capsys.disabled():
        print(f" [{kind}: {took * 1000:.1f} ms]", end="")
    assert took < AT_ONCE
    assert world.stat("s.watcher.interrupted") == before + 1
    eventually(lambda: parked(world) == 0, "the request is gone")
    os.close(fd)
    path.unlink()


# --- locks -------------------------------------------------------------------------------------


def locks(world: Rig) -> list[list[str]]:
    """The table of locks."""
    return [row.split() for row in (world.path / "kern" / "locks").read_text().splitlines()[1:]]


@pytest.mark.parametrize("kind", ["flock", "fcntl"])
def test_locks_of_two_processes(world: Rig, kind: str) -> None:
    """What if two processes lock a file: is it seen inside, and gone with the one killed?"""
    path = world.path / "tmp" / "locked"
    path.write_text("x")
    with reader(world, "tmp/locked", kind, waits=False) as first:
        assert line(first) == b"locked"
        held = [row for row in locks(world) if row[2] == "held" or "wait" not in " ".join(row)]
        assert len(held) == 1, locks(world)
        assert "locked" in held[0][-1]
        if kind == "fcntl":
            assert str(first.pid) in held[0]
        with path.open("r+") as file:
            take = fcntl.flock if kind == "flock" else fcntl.lockf
            assert number_of(lambda: take(file, fcntl.LOCK_EX | fcntl.LOCK_NB)) == errno.EAGAIN
            if kind == "fcntl":
                asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
                found = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked))
                assert (found[0], found[4]) == (fcntl.F_WRLCK, first.pid)
            with reader(world, "tmp/locked", kind) as second:
                assert len(locks(world)) == 2, "one holds it, one waits"
                first.kill()
                assert line(second) == b"locked", "it is the next one's at once"
                assert len(locks(world)) == 1
            eventually(lambda: locks(world) == [], "gone with its process")
            take(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert locks(world) == []
    assert world.stat("[len(c.locks.owners) for c in s.connections()]") == [0] * 6


# --- other ways to mount -----------------------------------------------------------------------


def test_onemount() -> None:
    """What if everything is to be one mount of the host's?"""
    with rig(onemount=True) as made:
        assert set(below(made.path)) == {"."}
        for name in INSIDE:
            assert os.listdir(made.path / name) or name == "tmp"
            assert (made.path / name).stat().st_dev == made.path.stat().st_dev
        (made.path / "m").mkdir()
        ctl(made, "mount -t tmpfs -o noexec tmpfs /m")
        (made.path / "m" / "f").write_text("x")
        assert set(below(made.path)) == {"."}
        assert len(attached(made)) == 1
        ctl(made, "umount -f /m")
        assert os.listdir(made.path / "m") == []
        assert made.end()[:2] == ["end", 0]


def test_noopen() -> None:
    """What if the host is told to open files by itself: is everything still as it should be?"""
    with rig(noopen=True) as made:
        path = made.path / "tmp"
        before = made.stat("s.served()")
        data = bytes(range(256)) * 1000
        with (path / "f").open("wb") as file:
            file.write(data)
        assert (path / "f").read_bytes() == data
        fd = os.open(path / "f", os.O_RDWR)
        assert os.pread(fd, 10, 256_000 - 5) == data[-5:]
        os.close(os.open(path / "f", os.O_WRONLY | os.O_TRUNC))
        assert os.fstat(fd).st_size == 0
        assert os.write(fd, b"again") == 5
        os.rename(path / "f", path / "g")
        assert os.write(fd, b" and more") == 9
        assert (path / "g").read_bytes() == b"again and more"
        os.unlink(path / "g")
        assert os.fstat(fd).st_nlink == 0
        assert os.pwrite(fd, b"A", 0) == 1
        assert os.pread(fd, 100, 0) == b"Again and more"
        os.ftruncate(fd, 5)
        os.fsync(fd)
        os.close(fd)
        with (path / "h").open("x") as file:
            file.write("new")
        with (path / "h").open("a") as file:
            file.write("er")
        assert (path / "h").read_text() == "newer"
        (path / "dir").mkdir()
        for number in range(300):
            (path / "dir" / f"file {number}").touch()
        assert len(os.listdir(path / "dir")) == 300
        assert number_of(lambda: (path / "dir").open("w")) == errno.EISDIR
        with (path / "h").open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert made.stat("s.served()").get("lookup", 0) > before.get("lookup", 0)
        tmp = "next(c for c in s.connections() if c.name == '/tmp')"
        served = made.stat(f"{tmp}.served()")
        for operation in ("open", "create", "opendir"):
            assert served.get(operation, 0) <= 1, "asked once, and never again"
        for operation in ("release", "releasedir", "flush", "setlk"):
            assert served.get(operation, 0) <= 1, served
        assert made.stat(f"len({tmp}.ops.files)") == 0
        assert made.stat("s.context.failed") == 0
        assert made.end()[:2] == ["end", 0]


def test_noxattr() -> None:
    """What if there are to be no extended attributes: asked for once, and never again?"""
    with rig(noxattr=True) as made:
        path = made.path / "tmp"
        for number in range(50):
            (path / f"f{number}").write_text("x")
            (path / f"f{number}").chmod(0o600)
            unsupported = number_of(partial(os.getxattr, path / f"f{number}", "user.a"))
            assert unsupported == errno.EOPNOTSUPP
        set_one = number_of(lambda: os.setxattr(path / "f1", "user.a", b"x"))
        assert set_one == errno.EOPNOTSUPP
        assert number_of(lambda: os.listxattr(path / "f1")) in (0, errno.EOPNOTSUPP)
        served = made.stat("next(c for c in s.connections() if c.name == '/tmp').served()")
        for operation in ("getxattr", "setxattr", "listxattr"):
            assert served.get(operation, 0) <= 1, served
        assert made.end()[:2] == ["end", 0]
