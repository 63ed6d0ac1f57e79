"""Listings stay true while the directory changes; directories in odd states."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.rig import Rig, rig

pytestmark = pytest.mark.mount

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.opendir.restype = LIBC.readdir.restype = ctypes.c_void_p
LIBC.telldir.restype = ctypes.c_long
#: Offset of d_name in struct dirent of 64-bit Linux.
D_NAME = 19


@pytest.fixture(scope="module")
def world(transport: str) -> Iterator[Rig]:
    """One mount for all tests of this file."""
    with rig() as made:
        yield made
        assert made.stat("s.context.failed") == 0, made.stat("k.msgbuf.text()")
        made.end()


def fill(world: Rig, name: str, count: int) -> Path:
    """A directory with ``count`` empty files, made from inside, which is quicker."""
    made = world.at(f"""
kern.kern_mkdir(vfs, vfs.mounts.rootnch, {name.encode()!r}, 0o777, ROOT)
for number in range({count}):
    kern.kern_mknod(vfs, place({name!r}), b"f%d" % number, 0o100644, 0, 0, ROOT)
return {count}
""")
    assert made == count
    return world.path / name


@pytest.mark.parametrize("count", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_every_stable_entry_exactly_once(world: Rig, count: int) -> None:
    """What if a directory of 100,000 is changed in front of, behind and at the reader's place?"""
    path = fill(world, f"big{count}", count)
    stop = threading.Event()
    stable = {f"f{number}" for number in range(count) if number % 3}
    gone = [f"f{number}" for number in range(0, count, 3)]

    def churn() -> None:
        made = 0
        while not stop.is_set():
            (path / f"new{made}").touch()
            os.rename(path / f"new{made}", path / f"moved{made}")
            if made % 2:
                (path / f"moved{made}").unlink()
            if gone:
                (path / gone.pop(made * 7919 % len(gone))).unlink()
            made += 1

    thread = threading.Thread(target=churn)
    thread.start()
    seen: Counter[str] = Counter()
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                seen[entry.name] += 1
    finally:
        stop.set()
        thread.join()
    assert {name for name in seen if name in stable} == stable
    assert max(seen.values()) == 1


def test_removal_while_listing(world: Rig) -> None:
    """What if every entry is removed as it is listed: is one missed, does the directory go?"""
    path = fill(world, "removed", 3000)
    with os.scandir(path) as entries:
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir(path) == []
    path.rmdir()


def names_from(handle: ctypes.c_void_p) -> list[bytes]:
    """The rest of an open listing."""
    found = []
    while entry := LIBC.readdir(handle):
        found.append(ctypes.string_at(entry + D_NAME))
    return found


def test_telldir_and_seekdir(world: Rig, transport: str) -> None:
    """What if a reader goes back to a place it remembered, after entries around it were removed?

    The host may keep a listing while the directory is open (on the device it does), so that removed
    names are still told, which POSIX leaves open; what is there must come, once and in order.
    """
    path = fill(world, "seek", 2000)
    handle = ctypes.c_void_p(LIBC.opendir(os.fsencode(path)))
    for _ in range(1000):
        LIBC.readdir(handle)
    where = LIBC.telldir(handle)
    rest = names_from(handle)
    LIBC.seekdir(handle, ctypes.c_long(where))
    assert names_from(handle) == rest
    for name in rest[::2]:
        os.unlink(os.path.join(os.fsencode(path), name))
    LIBC.seekdir(handle, ctypes.c_long(where))
    left = names_from(handle)
    assert left == rest[1::2] if transport == "pyfuse3" else left in (rest, rest[1::2])
    LIBC.rewinddir(handle)
    assert len(names_from(handle)) == 2002 - len(rest[::2])
    LIBC.closedir(handle)


def test_mount_points_in_a_listing(world: Rig, transport: str) -> None:
    """What if entries of a listing are roots of other mounts: are their own attributes shown?

    A mount that the host knows is its business: the listing has the number of what is covered.
    """
    with os.scandir(world.path) as entries:
        found = {entry.name: entry for entry in entries}
    assert {"tmp", "dev", "proc", "sysctl", "kern"} <= set(found)
    for name in ("tmp", "dev", "proc"):
        if transport == "pyfuse3":
            assert found[name].inode() == os.stat(world.path / name).st_ino
        else:
            assert os.path.ismount(world.path / name)
    assert os.stat(world.path / "tmp").st_mode & 0o7777 == 0o1777


def test_removed_working_directory(world: Rig) -> None:
    """What if the directory a process stands in is removed?"""
    path = world.path / "gone"
    path.mkdir()
    before = os.getcwd()
    os.chdir(path)
    try:
        path.rmdir()
        assert os.listdir(".") == []
        assert os.stat(".").st_nlink == 0
        for attempt in (
            lambda: open("x", "w").close(), lambda: os.mkdir("d"), lambda: os.symlink("a", "b"),
            lambda: os.stat("x"), os.getcwd,
        ):  # fmt: skip
            with pytest.raises(OSError, match="No such file") as caught:
                attempt()
            assert caught.value.errno == errno.ENOENT
    finally:
        os.chdir(before)


def test_listing_of_a_removed_directory(world: Rig) -> None:
    """What if a directory is removed while it is open for listing?"""
    path = world.path / "listed"
    path.mkdir()
    fd = os.open(path, os.O_RDONLY)
    path.rmdir()
    assert os.listdir(fd) == []
    os.close(fd)


def test_deep_trees(world: Rig) -> None:
    """What if directories are nested 300 deep, walked from the top and removed?"""
    before = os.getcwd()
    (world.path / "deep").mkdir()
    os.chdir(world.path / "deep")
    try:
        for level in range(300):
            os.mkdir(f"d{level}")
            os.chdir(f"d{level}")
        Path("bottom").write_text("x")
        for level in reversed(range(300)):
            os.chdir("..")
            assert os.listdir(".") == [f"d{level}"]
    finally:
        os.chdir(before)
    import shutil

    shutil.rmtree(world.path / "deep")
