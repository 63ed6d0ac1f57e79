"""What changes inside is seen by the host; nobody deadlocks; writeback's rules."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator

import pytest

from tests.mount.rig import PATIENCE, Rig, eventually, rig

pytestmark = pytest.mark.mount


@pytest.fixture(scope="module")
def world(transport: str) -> Iterator[Rig]:
    """One mount for all tests of this file."""
    with rig() as made:
        yield made
        assert made.stat("s.context.failed") == 0, made.stat("k.msgbuf.text()")
        made.end()


def test_create_inside_ends_a_negative_answer(world: Rig) -> None:
    """What if the host remembers that a name does not exist, and it is made inside?"""
    path = world.path / "negative"
    assert not path.exists()
    served = world.stat("s.served()['lookup']")
    for _ in range(10):
        assert not path.exists()
    assert world.stat("s.served()['lookup']") == served, "the host did not ask again"
    world.at("kern.kern_mkdir(vfs, place('/'), b'negative', 0o755, ROOT)")
    eventually(path.is_dir, "the new directory is seen")
    assert "negative" in os.listdir(world.path)


def test_unlink_inside(world: Rig) -> None:
    """What if a file the host has cached is removed inside?"""
    path = world.path / "unlinked"
    path.write_text("x")
    assert path.exists()
    world.at("kern.kern_unlink(vfs, place('/'), b'unlinked', ROOT)")
    eventually(lambda: not path.exists(), "the removal is seen")


def test_rename_inside(world: Rig) -> None:
    """What if a file and a directory are renamed inside, over names that exist?"""
    for name in ("r1", "r2"):
        (world.path / name).write_text(name)
    (world.path / "rd").mkdir()
    (world.path / "rd" / "in").write_text("in")
    assert not (world.path / "re").exists()
    fd = os.open(world.path / "rd" / "in", os.O_RDONLY)
    world.at("""
kern.kern_rename(vfs, place('/'), b'r1', place('/'), b'r2', 0, ROOT)
kern.kern_rename(vfs, place('/'), b'rd', place('/'), b're', 0, ROOT)
""")
    eventually(lambda: not (world.path / "r1").exists(), "the old name is gone")
    eventually(lambda: (world.path / "r2").read_text() == "r1", "the new name is the old file")
    eventually((world.path / "re" / "in").exists, "the directory has moved")
    assert os.read(fd, 10) == b"in"
    os.close(fd)


def test_data_and_attributes_inside(world: Rig) -> None:
    """What if contents, size, mode and owner of a cached, mapped and open file change inside?"""
    path = world.path / "data"
    path.write_bytes(b"old contents")
    assert path.read_bytes() == b"old contents"
    fd = os.open(path, os.O_RDONLY)
    assert os.pread(fd, 3, 0) == b"old"
    world.at("""
from dfuser.libkern.fcntl import O_RDWR
file = kern.kern_open(vfs, place('data'), O_RDWR, ROOT)
kern.kern_write(file, 0, b'new and longer contents')
kern.kern_close(file)
""")
    eventually(lambda: os.pread(fd, 3, 0) == b"new", "the open file shows it")
    eventually(lambda: path.read_bytes() == b"new and longer contents", "size and data")
    world.at("""
from dfuser.vfs.vattr import Vattr
from dfuser.libkern.stat import VType
kern.kern_setattr(vfs, place('data'), Vattr(VType.VNON, mode=0o640, uid=77, gid=78), ROOT)
""")
    eventually(lambda: path.stat().st_mode & 0o7777 == 0o640, "the mode")
    assert (path.stat().st_uid, path.stat().st_gid) == (77, 78)
    world.at("""
from dfuser.vfs.vattr import Vattr
from dfuser.libkern.stat import VType
kern.kern_setattr(vfs, place('data'), Vattr(VType.VNON, size=3), ROOT)
""")
    eventually(lambda: path.stat().st_size == 3, "the size")
    assert os.pread(fd, 100, 0) == b"new"
    os.close(fd)


def test_the_same_file_through_a_null_mount(world: Rig) -> None:
    """What if the host changes a file through one path and looks through the other?"""
    ctl = world.path / "kern" / "ctl"
    for name in ("below", "above"):
        (world.path / name).mkdir()
    ctl.write_text("mount -t null /below /above")
    low, high = world.path / "below", world.path / "above"
    eventually(lambda: not os.path.samefile(low, high), "the mount is seen")
    (low / "f").write_text("one")
    eventually((high / "f").exists, "made below")
    assert (high / "f").read_text() == "one"
    assert not os.path.samefile(low / "f", high / "f")
    (high / "f").write_text("second")
    eventually(lambda: (low / "f").read_text() == "second", "written above")
    assert not (low / "g").exists()
    os.rename(high / "f", high / "g")
    eventually((low / "g").exists, "renamed above")
    eventually(lambda: not (low / "f").exists(), "gone below")
    (low / "g").chmod(0o600)
    eventually(lambda: (high / "g").stat().st_mode & 0o777 == 0o600, "mode")
    ctl.write_text("umount /above")
    eventually(lambda: os.listdir(high) == [], "the unmount is seen")


def test_volatile_files_are_always_fresh(world: Rig) -> None:
    """What if a sysctl and a /kern view change between two opens?"""
    path = world.path / "sysctl" / "vfs" / "fuse" / "notify_limit"
    first = path.read_text()
    world.inside('k.sysctl.set("vfs.fuse.notify_limit", "12345")')
    assert path.read_text() == "12345\n"
    path.write_text(first)
    assert path.read_text() == first


def test_overflow_resyncs(world: Rig) -> None:
    """What if more invalidations are due than the queue holds: is anything stale afterwards?"""
    world.inside('k.sysctl.set("vfs.fuse.notify_limit", "16")')
    base = world.path / "flood"
    base.mkdir()
    for number in range(100):
        (base / f"f{number}").write_text("x")
        assert not (base / f"g{number}").exists()
    before = world.stat("s.notifier.resyncs")
    world.at("""
for number in range(100):
    kern.kern_rename(vfs, place('flood'), b'f%d' % number, place('flood'), b'g%d' % number, 0, ROOT)
""")
    assert world.stat("s.notifier.resyncs") > before
    for number in range(100):
        eventually((base / f"g{number}").exists, f"g{number} is seen")
        eventually(lambda n=number: not (base / f"f{n}").exists(), f"f{number} is gone")
    world.inside('k.sysctl.set("vfs.fuse.notify_limit", "65536")')


def test_both_sides_change_one_directory(world: Rig) -> None:
    """What if host and inside create, rename and remove in one directory: a deadlock?"""
    base = world.path / "both"
    base.mkdir()
    stop = threading.Event()
    rounds = [0, 0]

    def outside(who: int) -> None:
        while not stop.is_set():
            a, b = base / f"h{who}", base / f"i{who}"
            a.write_text("x")
            os.rename(a, b)
            os.listdir(base)
            (base / "shared").exists()
            b.unlink()
            rounds[who] += 1

    threads = [threading.Thread(target=outside, args=(who,)) for who in range(2)]
    for thread in threads:
        thread.start()
    world.at("""
from dfuser.lwkt.synch import tsleep
for number in range(300):
    d = place('both')
    kern.kern_mkdir(vfs, d, b'shared', 0o755, ROOT)
    kern.kern_rename(vfs, d, b'shared', d, b'other', 0, ROOT)
    kern.kern_rmdir(vfs, d, b'other', ROOT)
    await tsleep(vfs, 0, 'pause', 1)
""")
    stop.set()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert min(rounds) > 0
    eventually(lambda: os.listdir(base) == [], "both sides agree")


# --- writeback ---------------------------------------------------------------------------------


@pytest.fixture
def lazy() -> Iterator[Rig]:
    """A mount with the host's writeback cache."""
    with rig(writeback=True) as made:
        yield made
        if made.child.poll() is None:
            assert made.stat("s.context.failed") == 0, made.stat("k.msgbuf.text()")
            made.end()


CONTENTS = """
from dfuser.libkern.fcntl import O_RDONLY
file = kern.kern_open(vfs, place('f'), O_RDONLY, ROOT)
data = bytes(kern.kern_read(file, 0, 1 << 20))
kern.kern_close(file)
return [len(data), data[:20].decode()]
"""


def test_writeback_collects_and_fsync_delivers(lazy: Rig) -> None:
    """What if many small writes are made: do they arrive in fewer requests, and all by fsync?"""
    path = lazy.path / "f"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    for number in range(1000):
        os.write(fd, b"%04d," % number)
    assert os.fstat(fd).st_size == 5000
    assert path.read_bytes()[-5:] == b"0999,"
    os.fsync(fd)
    assert lazy.stat("s.served()['write']") < 100
    assert lazy.at(CONTENTS) == [5000, "0000,0001,0002,0003,"]
    os.close(fd)


def test_writeback_delivers_at_close(lazy: Rig) -> None:
    """What if a file is written and closed: can the inside read it after that?"""
    (lazy.path / "f").write_bytes(b"closed" * 100)
    assert lazy.at(CONTENTS)[0] == 600


def test_writeback_appends_and_modes(lazy: Rig) -> None:
    """What if a file opened write-only is written in pieces of a page, and appended to by two?"""
    path = lazy.path / "f"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.pwrite(fd, b"middle", 100)
    os.pwrite(fd, b"begin", 0)
    os.close(fd)
    one, two = (os.open(path, os.O_WRONLY | os.O_APPEND) for _ in range(2))
    for number in range(50):
        os.write((one, two)[number % 2], b"%02d" % number)
    os.close(one)
    os.close(two)
    data = path.read_bytes()
    assert data[:5] == b"begin"
    assert data[100:106] == b"middle"
    assert data[106:] == b"".join(b"%02d" % number for number in range(50))
    os.utime(path, ns=(5, 7))
    assert path.stat().st_mtime_ns == 7


def test_writeback_survives_the_unmount(lazy: Rig) -> None:
    """What if pages are dirty in the host when it unmounts: do they arrive before the end?"""
    fd = os.open(lazy.path / "f", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 8192)
    with mmap.mmap(fd, 8192) as view:
        os.close(fd)
        view[:5] = b"dirty"
    _, nodes, writes = lazy.end()
    assert nodes == 0
    assert writes >= 1
