"""Nodeids are file handles: exact forget, bounded vnodes, numbers never reused."""

from __future__ import annotations

import ctypes
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.rig import Rig, eventually, rig

pytestmark = pytest.mark.mount

LIBC = ctypes.CDLL(None, use_errno=True)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs to drop the host's caches")


@pytest.fixture
def world(transport: str) -> Iterator[Rig]:
    """A mount of its own for each test."""
    with rig(onemount=True) as made:
        yield made
        assert made.stat("s.context.failed") == 0, made.stat("k.msgbuf.text()")
        made.end()


def drop_caches() -> None:
    """Have the host forget every name and inode that is not in use."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


@as_root
def test_forget_is_exact(world: Rig) -> None:
    """What if the host drops its caches: is anything left but the root and what is open?"""
    deep = world.path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    for number in range(500):
        (deep / f"f{number}").touch()
    held = os.open(deep / "f7", os.O_RDONLY)
    open_path = {world.path.stat().st_ino}
    for path in (world.path / "a", world.path / "a" / "b", deep, deep / "f7"):
        open_path.add(path.stat().st_ino)
    for base, dirs, files in os.walk(world.path):
        for name in dirs + files:
            os.lstat(os.path.join(base, name))
    assert world.stat("len(s.root.nodes.by_id)") > 500

    def only_the_open_ones() -> bool:
        drop_caches()
        return set(world.stat("list(s.root.nodes.by_id)")) == open_path

    eventually(only_the_open_ones, "only open files remain")
    os.close(held)

    def only_the_root() -> bool:
        drop_caches()
        return bool(world.stat("list(s.root.nodes.by_id)") == [1])

    eventually(only_the_root, "only the root remains")
    assert world.stat("sum(n.nlookup for n in s.root.nodes.by_id.values())") == 0
    counts = world.stat("list(s.root.nodes.statistics())")
    assert counts[2] == counts[3], "made and forgotten"


@as_root
@pytest.mark.parametrize("many_files", [5_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_vnodes_stay_within_their_limit(world: Rig, many_files: int) -> None:
    """What if 20,000 files are found with kern.maxvnodes=2000, a file open and a deep cwd?"""
    world.inside('k.sysctl.set("kern.maxvnodes", "2000")')
    deep = world.path
    for level in range(30):
        deep = deep / f"level{level}"
    deep.mkdir(parents=True)
    (deep / "here").write_text("deep")
    held = os.open(world.path / "open", os.O_RDWR | os.O_CREAT)
    os.write(held, b"held")
    many = world.path / "many"
    many.mkdir()
    for number in range(many_files):
        os.close(os.open(many / f"f{number}", os.O_CREAT | os.O_WRONLY))
    numbers = {name: os.lstat(many / name).st_ino for name in os.listdir(many)}
    before = os.getcwd()
    os.chdir(deep)
    try:
        assert len(numbers) == many_files
        assert world.stat("len(s.root.nodes.by_id)") >= many_files
        eventually(lambda: world.stat("vfs.vnodes.numvnodes") <= 2200, "vnlru keeps kern.maxvnodes")
        for count, (name, number) in enumerate(numbers.items()):
            fd = os.open(many / name, os.O_RDONLY)
            assert os.fstat(fd).st_ino == number
            os.close(fd)
            if not count % 2000:
                assert world.stat("vfs.vnodes.numvnodes") <= 2400
        assert world.stat("s.root.nodes.revived") > 0
        assert Path("here").read_text() == "deep"
        Path("new").write_text("made by a relative path")
        assert (deep / "new").exists()
        assert os.pread(held, 10, 0) == b"held"
    finally:
        os.chdir(before)
        os.close(held)


class FileHandle(ctypes.Structure):
    """struct file_handle of Linux."""

    _fields_ = (
        ("handle_bytes", ctypes.c_uint), ("handle_type", ctypes.c_int),
        ("f_handle", ctypes.c_ubyte * 128),
    )  # fmt: skip


def name_to_handle(path: Path) -> FileHandle:
    handle, mount_id = FileHandle(handle_bytes=128), ctypes.c_int()
    result = LIBC.name_to_handle_at(
        -100, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount_id), 0
    )
    if result:
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    return handle


def open_by_handle(mount: Path, handle: FileHandle) -> int:
    root = os.open(mount, os.O_RDONLY)
    try:
        fd = int(LIBC.open_by_handle_at(root, ctypes.byref(handle), os.O_RDONLY))
        if fd < 0:
            raise OSError(ctypes.get_errno(), "open_by_handle_at")
        return fd
    finally:
        os.close(root)


@as_root
def test_file_handles_outlive_forget(world: Rig) -> None:
    """What if a file handle is opened after host and kernel have forgotten the file?"""
    path = world.path / "x" / "y" / "file"
    path.parent.mkdir(parents=True)
    path.write_text("found again")
    inner = world.path / "tmp" / "dir"
    inner.mkdir()
    handles = [name_to_handle(path), name_to_handle(path.parent), name_to_handle(inner)]
    numbers = [path.stat().st_ino, path.parent.stat().st_ino, inner.stat().st_ino]

    def forgotten() -> bool:
        drop_caches()
        return bool(world.stat("list(s.root.nodes.by_id)") == [1])

    eventually(forgotten, "everything is forgotten")
    for handle, number in zip(handles, numbers, strict=True):
        fd = open_by_handle(world.path, handle)
        assert os.fstat(fd).st_ino == number
        os.close(fd)
    fd = open_by_handle(world.path, handles[0])
    assert os.read(fd, 100) == b"found again"
    os.close(fd)
    path.unlink()
    eventually(forgotten, "everything is forgotten again")
    with pytest.raises(OSError, match=r"Stale|open_by_handle") as caught:
        open_by_handle(world.path, handles[0])
    assert caught.value.errno == 116
    assert world.stat("all(n.nlookup > 0 for n in s.root.nodes.by_id.values() if n.nodeid != 1)")


def test_numbers_are_never_reused(world: Rig) -> None:
    """What if files are made and removed a thousand times: does any number come twice?"""
    seen: Counter[int] = Counter()
    for _ in range(1000):
        path = world.path / "f"
        path.touch()
        seen[path.stat().st_ino] += 1
        path.unlink()
    assert len(seen) == 1000


def test_numbers_are_unique_over_all_mounts(world: Rig) -> None:
    """What if file systems inside number their files alike: do two files share st_ino?"""
    ctl = world.path / "kern" / "ctl"
    (world.path / "m1").mkdir()
    (world.path / "m2").mkdir()
    ctl.write_text("mount -t tmpfs tmpfs /m1")
    ctl.write_text("mount -t null /m1 /m2")
    for base in ("", "tmp", "m1"):
        for number in range(5):
            (world.path / base / f"f{number}").touch()
    seen: Counter[tuple[int, int]] = Counter()
    for base, dirs, files in os.walk(world.path):
        for name in [*dirs, *files]:
            is_ = os.lstat(os.path.join(base, name))
            if is_.st_nlink == 1 or os.path.isdir(os.path.join(base, name)):
                seen[is_.st_dev, is_.st_ino] += 1
    assert seen.most_common(1)[0][1] == 1, seen.most_common(3)
    ctl.write_text("umount /m2")
    ctl.write_text("umount /m1")
    first = (world.path / "m1").stat().st_ino  # the number below the mount, or of it
    ctl.write_text("mount -t tmpfs tmpfs /m1")
    used = {first, *[ino for _, ino in seen]}
    assert (world.path / "m1").stat().st_ino not in used


def test_numbers_of_a_gone_mount_are_stale(world: Rig) -> None:
    """What if the host holds a directory of a mount that was forced off inside?"""
    ctl = world.path / "kern" / "ctl"
    (world.path / "m").mkdir()
    ctl.write_text("mount -t tmpfs tmpfs /m")
    (world.path / "m" / "d").mkdir()
    fd = os.open(world.path / "m" / "d", os.O_RDONLY)
    ctl.write_text("umount -f /m")
    with pytest.raises(OSError, match=r"Stale|No such|Input/output|not a dir"):
        os.stat("x", dir_fd=fd)
    os.close(fd)
    assert os.listdir(world.path / "m") == []


def test_forget_races_with_lookup(world: Rig) -> None:
    """What if names are found and forgotten by several threads at once: do the counts agree?"""
    for number in range(200):
        (world.path / f"f{number}").touch()

    def look() -> None:
        for _ in range(20):
            for number in range(200):
                os.stat(world.path / f"f{number}")

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    if os.geteuid() == 0:
        for _ in range(20):
            drop_caches()
    for thread in threads:
        thread.join()
    assert world.stat("all(n.nlookup > 0 for n in s.root.nodes.by_id.values() if n.nodeid != 1)")
