"""What serving the host costs in memory: nothing that only a collection frees, little for a file.

The server's collector runs rarely (there may be a million live objects to walk), so a request must
not leave anything behind that only the collector finds."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.rig import PATIENCE, Rig, rig

pytestmark = pytest.mark.mount

ROUNDS = 2000
READS = 200
FILES = 50_000
#: Bytes of resident memory that an empty file may cost while host and kernel remember it.
FILE_COST = 1638

#: From here on nothing is collected; what the first collection finds is not counted.
START = """
import gc
gc.disable()
gc.collect()
"""
#: What only a collection frees: types and their numbers.
GARBAGE = """
import collections, gc
gc.set_debug(gc.DEBUG_SAVEALL)
gc.collect()
gc.set_debug(0)
found = collections.Counter(type(item).__module__ + '.' + type(item).__qualname__
                            for item in gc.garbage)
del gc.garbage[:]
gc.enable()
return found
"""
#: Wait for each read to wait, then give it something.
ANSWER = f"""
from dfuser.lwkt.synch import tsleep
for number in range({READS}):
    while s.context.parked <= number or not s.context.parked_threads:
        await tsleep(k, 0, 'pause', 1)
    await tsleep(k, 0, 'pause', 1)
    k.log(f'message {{number}}.')
"""
RESIDENT = """
import gc
gc.collect()
with open('/proc/self/statm') as statm:
    return int(statm.read().split()[1]) * 4096
"""


@pytest.fixture
def world(transport: str) -> Iterator[Rig]:
    """A mount of its own for each test."""
    with rig(sysctl={"kern.maxvnodes": "200000"}) as made:
        yield made
        assert made.stat("s.context.failed") == 0, made.stat("k.msgbuf.text()")
        made.end()


def one_round(base: Path, number: int) -> None:
    """Some twenty calls, a third of which fail."""
    a, b, d = base / f"a{number}", base / "b", base / "d"
    fd = os.open(a, os.O_CREAT | os.O_RDWR)
    os.write(fd, b"text")
    os.fsync(fd)
    os.ftruncate(fd, 2)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.pread(fd, 10, 0)
    os.close(fd)
    os.mkdir(d)
    os.listdir(base)
    os.rename(a, b)
    os.link(b, a)
    os.chmod(a, 0o600)
    os.utime(a)
    os.setxattr(a, "user.x", b"y")
    os.getxattr(a, "user.x")
    os.symlink("b", d / "l")
    os.readlink(d / "l")
    os.statvfs(base)
    for call in (
        lambda: os.stat(base / f"none{number}"),
        lambda: os.mkdir(d),
        lambda: os.rmdir(d),
        lambda: os.getxattr(a, "user.none"),
        lambda: os.open(a, os.O_CREAT | os.O_EXCL),
        lambda: (base.parent / "kern" / "ctl").write_text("nonsense"),
    ):
        with contextlib.suppress(OSError):
            call()
            raise AssertionError("it must fail")
    for path in (a, b, d / "l"):
        path.unlink()
    d.rmdir()


def test_requests_leave_no_cycles(world: Rig) -> None:
    """What if 2,000 rounds of calls are served, a third of which fail: is anything cyclic left?"""
    base = world.path / "work"
    base.mkdir()
    one_round(base, 0)
    world.inside(START)
    for number in range(ROUNDS):
        one_round(base, number)
    assert world.inside(GARBAGE) == {}


def test_waits_leave_no_cycles(world: Rig) -> None:
    """What if 200 reads wait and are answered: is anything cyclic left of them?"""
    fd = os.open(world.path / "dev" / "klog", os.O_RDONLY)
    seen: list[bytes] = []

    def read() -> None:
        while not seen or b"message %d." % (READS - 1) not in seen[-1]:
            seen.append(os.pread(fd, 65_536, 0))

    reader = threading.Thread(target=read, daemon=True)
    world.inside(START)
    reader.start()
    world.inside(ANSWER)
    reader.join(PATIENCE)
    assert not reader.is_alive()
    os.close(fd)
    assert world.stat("s.context.parked") >= READS
    assert world.inside(GARBAGE) == {}


@pytest.mark.slow
def test_memory_of_a_cached_file(world: Rig) -> None:
    """What if 50,000 empty files are remembered: what do name, vnode, node and number cost?"""
    base = world.path / "many"
    base.mkdir()
    make_files(base, "warm", 2000)
    before = world.inside(RESIDENT)
    make_files(base, "f", FILES)
    after = world.inside(RESIDENT)
    assert world.stat("len(s.root.nodes.by_id)") > FILES
    assert world.stat("vfs.vnodes.numvnodes") > FILES
    assert (after - before) / FILES <= FILE_COST


def make_files(base: Path, prefix: str, count: int) -> None:
    """Make empty files and look at each, so that everything about it is remembered."""
    for number in range(count):
        path = base / f"{prefix}{number}"
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        os.stat(path)
