"""Copying where the file system cannot, and what the cores tell the host."""

from __future__ import annotations

from typing import Any

import pytest

from dfuser.hw.clock import VirtualClock
from dfuser.hw.physmem import PhysMem
from dfuser.libkern.errno import (
    EBADF,
    EIO,
    ENOSPC,
    ENOTTY,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    EROFS,
    ESPIPE,
    EXDEV,
    KError,
)
from dfuser.libkern.fcntl import O_RDWR, SEEK_DATA, SEEK_HOLE
from dfuser.libkern.stat import S_IFIFO, SF_APPEND, SF_IMMUTABLE
from dfuser.lwkt.block import Block
from dfuser.vfs import fileflags as ff
from dfuser.vfs import syscalls as sc
from dfuser.vfs.file import File
from dfuser.vfs.hostcache import NullHostCache
from dfuser.vfs.mountflags import MNT
from dfuser.vfs.nullfs.vfsops import NullVfsOps
from dfuser.vfs.syscalls.range import COPY_MAX, COPY_PIECE
from dfuser.vfs.tmpfs.vfsops import TmpfsVfsOps
from dfuser.vfs.vattr import Vattr
from dfuser.vfs.vfs import Vfs
from dfuser.vfs.vnode import Vnode
from dfuser.vm.page import VmPages
from tests.conform.world import errno
from tests.unit.vfs.dictfs import ROOT, DictOps, fs_of, make_vfs


def make(vfs: Vfs, name: bytes, data: bytes = b"") -> File:
    """An open file with these contents, in the root."""
    file = sc.kern_create(vfs, vfs.rootnch, name, 0o644, O_RDWR, ROOT)[1]
    if data:
        assert sc.kern_write(file, 0, data) == len(data)
    return file


def test_copy_by_hand() -> None:
    """What if the file system cannot copy: are the bytes the same, in pieces, and how far?"""
    vfs = make_vfs()
    data = bytes(range(251)) * (COPY_PIECE // 100)
    source, target = make(vfs, b"a", data), make(vfs, b"b", b"." * 10)
    with errno(EOPNOTSUPP):
        target.vp.ops.use.vop_copyrange(source.vp, 0, target.vp, 0, 10, ROOT)
    assert sc.kern_copy_file_range(source, 5, target, 7, 1 << 40) == len(data) - 5
    assert bytes(sc.kern_read(target, 0, 1 << 30)) == b"." * 7 + data[5:]
    assert sc.kern_copy_file_range(source, 0, source, len(data), 100) == 100
    source.drop()
    target.drop()


def test_copy_by_hand_is_bounded() -> None:
    """What if more than a call's worth is there?"""
    vfs = make_vfs()
    source, target = make(vfs, b"a", bytes(COPY_MAX + 5)), make(vfs, b"b")
    assert sc.kern_copy_file_range(source, 0, target, 0, 1 << 60) == COPY_MAX
    assert sc.kern_copy_file_range(source, COPY_MAX, target, COPY_MAX, 1 << 60) == 5
    source.drop()
    target.drop()


@pytest.mark.parametrize("error", [KError(ENOSPC), Block(lambda: None, "full")])  # type: ignore[arg-type, return-value]
def test_copy_that_is_interrupted(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """What if the third piece fails, or must wait, or the first does?"""
    vfs = make_vfs()
    source, target = make(vfs, b"a", b"x" * (4 * COPY_PIECE)), make(vfs, b"b")
    write = DictOps.vop_write

    def full(self: DictOps, vp: Vnode, offset: int, data: Any, *rest: Any) -> int:
        if offset >= 2 * COPY_PIECE:
            raise error
        return write(self, vp, offset, data, *rest)

    monkeypatch.setattr(DictOps, "vop_write", full)
    assert sc.kern_copy_file_range(source, 0, target, 0, 1 << 30) == 2 * COPY_PIECE
    with pytest.raises(type(error)):
        sc.kern_copy_file_range(source, 0, target, 2 * COPY_PIECE, 10)
    source.drop()
    target.drop()


def test_copy_into_a_file_that_takes_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """What if the target takes a part of a piece, or the source gives less than its size?"""
    vfs = make_vfs()
    source, target = make(vfs, b"a", b"x" * 1000), make(vfs, b"b")
    write, read = DictOps.vop_write, DictOps.vop_read
    monkeypatch.setattr(
        DictOps, "vop_write", lambda s, vp, o, d, *rest: write(s, vp, o, d[:300], *rest)
    )
    assert sc.kern_copy_file_range(source, 0, target, 0, 1000) == 300
    monkeypatch.setattr(DictOps, "vop_read", lambda s, vp, o, n, *rest: b"")
    assert sc.kern_copy_file_range(source, 0, target, 0, 1000) == 0
    monkeypatch.setattr(DictOps, "vop_read", read)
    source.drop()
    target.drop()


def test_a_file_system_without_holes() -> None:
    """What if data and holes are asked for where the file system does not know any?"""
    vfs = make_vfs()
    file = make(vfs, b"a", b"x" * 10)
    assert sc.kern_lseek(file, 3, SEEK_DATA) == 3
    assert sc.kern_lseek(file, 3, SEEK_HOLE) == 10
    for whence in (SEEK_DATA, SEEK_HOLE):
        with errno(ENXIO):
            sc.kern_lseek(file, 10, whence)
        with errno(ENXIO):
            sc.kern_lseek(file, -1, whence)
    file.drop()


def test_a_file_system_that_can_nothing_of_it() -> None:
    """What if ranges, nameless files and ioctls are asked of a file system without them?"""
    vfs = make_vfs()
    file = make(vfs, b"a", b"x")
    with errno(EOPNOTSUPP):
        sc.kern_fallocate(file, 0, 0, 1)
    with errno(EOPNOTSUPP):
        sc.kern_tmpfile(vfs, vfs.rootnch, 0o600, O_RDWR, ROOT)
    with errno(ENOTTY):
        sc.kern_ioctl(file, ff.FS_IOC_GETFLAGS, b"", 8)
    pipe = sc.kern_mknod(vfs, vfs.rootnch, b"p", S_IFIFO | 0o600, 0, 0, ROOT)
    opened = sc.kern_open(vfs, pipe, O_RDWR, ROOT)
    with errno(ESPIPE):
        sc.kern_lseek(opened, 0, SEEK_DATA)
    opened.drop()
    file.drop()
    assert fs_of(vfs).calls["reclaim"] == 0


class Telltale(NullHostCache):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def attr_changed(self, vp: Vnode) -> None:
        self.told.append(("attr", vp.ino))

    def data_changed(self, vp: Vnode) -> None:
        self.told.append(("data", vp.ino))

    def entry_changed(self, dvp: Vnode, name: bytes) -> None:
        self.told.append((name.decode(), dvp.ino))


class Kernel:
    """A root tmpfs with a null mount of its directory ``data``."""

    def __init__(self) -> None:
        self.physmem = PhysMem(4 << 20)
        self.host = Telltale()
        pages = VmPages(self.physmem)
        vfs = self.vfs = Vfs(clock=VirtualClock(), pages=pages, hostcache=self.host)
        vfs.fstypes.register("tmpfs", TmpfsVfsOps)
        vfs.fstypes.register("null", NullVfsOps)
        vfs.mounts.mount("tmpfs", "tmpfs", None, {}, 0, ROOT)
        self.data = vfs.cache.hold(sc.kern_mkdir(vfs, vfs.rootnch, b"data", 0o755, ROOT))
        on = sc.kern_mkdir(vfs, vfs.rootnch, b"mnt", 0o755, ROOT)
        self.null = vfs.mounts.mount("null", "/data", on, {}, 0, ROOT)

    def close(self) -> None:
        self.vfs.cache.drop_nch(self.data)
        self.vfs.close()
        self.physmem.close()


def test_the_host_is_told() -> None:
    """What if ranges, flags and names change: who is told, and of what?"""
    kernel = Kernel()
    vfs, told = kernel.vfs, kernel.host.told
    source, target = make(vfs, b"a", b"x" * 10), make(vfs, b"b")
    one, other = source.vp.ino, target.vp.ino
    told.clear()
    sc.kern_fallocate(source, 0, 0, 100)
    assert told == [("data", one)]
    told.clear()
    sc.kern_copy_file_range(source, 0, target, 0, 10)
    assert told == [("data", other), ("attr", one)]
    told.clear()
    assert sc.kern_copy_file_range(source, 1000, target, 0, 10) == 0
    sc.kern_ioctl(source, ff.FS_IOC_GETFLAGS, b"", 8)
    sc.kern_lseek(source, 0, SEEK_DATA)
    _, nameless = sc.kern_tmpfile(vfs, vfs.rootnch, 0o600, O_RDWR, ROOT)
    assert told == []
    sc.kern_ioctl(source, ff.FS_IOC_SETFLAGS, bytes(4), 0)
    assert told == [("attr", one)]
    told.clear()
    sc.kern_link(vfs, nameless.nch, vfs.rootnch, b"n", ROOT)
    assert told[0] == ("n", vfs.rootnch.ncp.vp.ino if vfs.rootnch.ncp.vp else 0)
    assert ("attr", nameless.vp.ino) in told
    for file in (source, target, nameless):
        file.drop()
    kernel.close()


def test_a_null_mount_that_is_read_only() -> None:
    """What if the same file is changed through a read-only and through a writable place?"""
    kernel = Kernel()
    vfs = kernel.vfs
    name = sc.kern_create(vfs, kernel.data, b"f", 0o644, O_RDWR, ROOT)[0]
    below = sc.kern_open(vfs, name, O_RDWR, ROOT)
    shown = sc.kern_lookup(vfs, kernel.null.ncmountpt, b"f", ROOT)
    assert shown is not None
    through = sc.kern_open(vfs, shown, O_RDWR, ROOT)
    kernel.null.flag |= MNT.RDONLY
    with errno(EROFS):
        sc.kern_fallocate(through, 0, 0, 10)
    with errno(EROFS):
        sc.kern_copy_file_range(below, 0, through, 0, 1)
    with errno(EROFS):
        sc.kern_ioctl(through, ff.FS_IOC_SETFLAGS, bytes(4), 0)
    with errno(EROFS):
        sc.kern_tmpfile(vfs, kernel.null.ncmountpt, 0o600, O_RDWR, ROOT)
    sc.kern_fallocate(below, 0, 0, 10)
    assert sc.kern_lseek(through, 0, SEEK_HOLE) == 0
    through.drop()
    below.drop()
    kernel.close()


def test_a_name_is_given_on_the_mount_the_file_was_made_on() -> None:
    """What if a nameless file is made through a null mount and linked below it, and through it?"""
    kernel = Kernel()
    vfs, place = kernel.vfs, kernel.null.ncmountpt
    _, file = sc.kern_tmpfile(vfs, place, 0o600, O_RDWR, ROOT)
    with errno(EXDEV):
        sc.kern_link(vfs, file.nch, kernel.data, b"below", ROOT)
    sc.kern_link(vfs, file.nch, place, b"through", ROOT)
    found = sc.kern_lookup(vfs, kernel.data, b"through", ROOT)
    assert found is not None
    assert found.ncp.vp is file.vp
    file.drop()
    kernel.close()


def test_fixed_files_of_any_file_system() -> None:
    """What if a file of a simple file system is fixed: do the cores refuse by themselves?"""
    vfs = make_vfs()
    source, target = make(vfs, b"a", b"x"), make(vfs, b"b")
    for flag in (SF_APPEND, SF_IMMUTABLE):
        sc.kern_setattr(vfs, target.nch, Vattr(flags=flag), ROOT)
        with errno(EPERM):
            sc.kern_copy_file_range(source, 0, target, 0, 1)
        with errno(EPERM):
            sc.kern_fallocate(target, 16, 0, 1)
        sc.kern_setattr(vfs, target.nch, Vattr(flags=0), ROOT)
    source.drop()
    target.drop()


def test_reading_what_was_taken_away() -> None:
    """What if either file of a copy is taken away before it starts?"""
    vfs = make_vfs()
    source, target = make(vfs, b"a", b"x"), make(vfs, b"b")
    vfs.vnodes.vgone(source.vp)
    with errno(EBADF):
        sc.kern_copy_file_range(source, 0, target, 0, 1)
    with errno(EIO):
        sc.kern_read(source, 0, 1)
    source.drop()
    target.drop()
