from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dfuser.libkern.errno import (
    EACCES,
    EBADF,
    EEXIST,
    EINVAL,
    EISDIR,
    ELOOP,
    EMLINK,
    ENAMETOOLONG,
    ENOENT,
    ENOTDIR,
    ENOTEMPTY,
    EOPNOTSUPP,
    EPERM,
    ESPIPE,
    ETXTBSY,
    EXDEV,
    KError,
    Panic,
)
from dfuser.libkern.fcntl import (
    O_APPEND,
    O_CREAT,
    O_DIRECTORY,
    O_EXCL,
    O_RDONLY,
    O_RDWR,
    O_TRUNC,
    O_WRONLY,
    SEEK_CUR,
    SEEK_END,
    SEEK_SET,
)
from dfuser.libkern.stat import UF_APPEND, UF_IMMUTABLE
from dfuser.libkern.ucred import Ucred
from dfuser.vfs.access import access_mode, helper_chmod, naccess_va
from dfuser.vfs.cache import NcHandle
from dfuser.vfs.nlookup import NLC
from dfuser.vfs.syscalls import (
    kern_access,
    kern_create,
    kern_fallocate,
    kern_fsync,
    kern_getxattr,
    kern_link,
    kern_listxattr,
    kern_lookup,
    kern_mkdir,
    kern_mknod,
    kern_mount,
    kern_open,
    kern_pathconf,
    kern_read,
    kern_readdir,
    kern_readlink,
    kern_removexattr,
    kern_rename,
    kern_rmdir,
    kern_seek,
    kern_setattr,
    kern_setxattr,
    kern_stat,
    kern_symlink,
    kern_unlink,
    kern_unmount,
    kern_write,
)
from dfuser.vfs.vattr import Vattr
from dfuser.vfs.vfs import Vfs
from dfuser.vfs.vnode import V, Vnode
from dfuser.vfs.vop import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT
from tests.unit.vfs.dictfs import ROOT, check, fs_of, make_vfs

USER = Ucred.of(1000, 1000, (50,))
OTHER = Ucred.of(2000, 2000)


def errno_of(fn: Any, *args: Any) -> int:
    with pytest.raises(KError) as err:
        fn(*args)
    return err.value.errno


def touch(vfs: Vfs, name: bytes, cred: Ucred = ROOT, mode: int = 0o644) -> NcHandle:
    return kern_mknod(vfs, vfs.rootnch, name, 0o100000 | mode, 0, 0, cred, False)


class Host:
    """Records what the host would be told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, bytes]] = []

    def entry_changed(self, dvp: Vnode, name: bytes) -> None:
        self.told.append(("entry", dvp.ino, name))

    def entry_removed(self, dvp: Vnode, name: bytes, vp: Vnode) -> None:
        self.told.append(("entry", dvp.ino, name))

    def attr_changed(self, vp: Vnode) -> None:
        self.told.append(("attr", vp.ino, b""))

    def xattr_changed(self, vp: Vnode) -> None:
        self.told.append(("attr", vp.ino, b""))

    def data_changed(self, vp: Vnode) -> None:
        self.told.append(("data", vp.ino, b""))

    def vnode_reclaimed(self, vp: Vnode) -> None:
        self.told.append(("reclaimed", vp.ino, b""))


# --- names -------------------------------------------------------------------------------------

BAD_NAMES = [
    (b"x" * 256, ENAMETOOLONG, ENAMETOOLONG, ENAMETOOLONG),
    (b"a/b", EINVAL, EINVAL, EINVAL),
    (b"a\0b", EINVAL, EINVAL, EINVAL),
    (b"", ENOENT, ENOENT, ENOENT),
    (b".", EEXIST, EINVAL, EINVAL),
    (b"..", EEXIST, ENOTEMPTY, EINVAL),
]


@pytest.mark.parametrize(("name", "make", "remove", "rename"), BAD_NAMES)
def test_impossible_names(name: bytes, make: int, remove: int, rename: int) -> None:
    """What if a name cannot be? The errno depends on what was to be done with it."""
    vfs = make_vfs()
    r = vfs.rootnch
    f = touch(vfs, b"f")
    assert errno_of(kern_mkdir, vfs, r, name, 0o755, ROOT) == make
    assert errno_of(kern_create, vfs, r, name, 0o644, O_RDWR, ROOT) == make
    assert errno_of(kern_symlink, vfs, r, name, b"t", ROOT) == make
    assert errno_of(kern_link, vfs, f, r, name, ROOT) == make
    assert errno_of(kern_unlink, vfs, r, name, ROOT) == remove
    assert errno_of(kern_rmdir, vfs, r, name, ROOT) == remove
    assert errno_of(kern_rename, vfs, r, name, r, b"g", 0, ROOT) == rename
    assert errno_of(kern_rename, vfs, r, b"f", r, name, 0, ROOT) == rename
    assert sorted(fs_of(vfs).root.entries) == [b"f"]
    check(vfs)


def test_what_exists_cannot_be_made_again() -> None:
    """What if the name is taken? EEXIST from everything that makes; open without O_EXCL opens."""
    vfs = make_vfs()
    r = vfs.rootnch
    f = touch(vfs, b"f")
    assert errno_of(kern_mkdir, vfs, r, b"f", 0o755, ROOT) == EEXIST
    assert errno_of(kern_mknod, vfs, r, b"f", 0o100644, 0, 0, ROOT) == EEXIST
    assert errno_of(kern_symlink, vfs, r, b"f", b"t", ROOT) == EEXIST
    assert errno_of(kern_link, vfs, f, r, b"f", ROOT) == EEXIST
    assert errno_of(kern_create, vfs, r, b"f", 0o644, O_RDWR | O_EXCL, ROOT) == EEXIST
    nch, file = kern_create(vfs, r, b"f", 0o600, O_RDWR | O_CREAT, ROOT)
    assert nch == f
    assert kern_stat(vfs, nch).mode == 0o644
    file.drop()
    check(vfs)


def test_removal_distinguishes_files_and_directories() -> None:
    """What if unlink meets a directory or rmdir a file? EISDIR, ENOTDIR; full ones ENOTEMPTY."""
    vfs = make_vfs()
    r = vfs.rootnch
    d = kern_mkdir(vfs, r, b"d", 0o755, ROOT)
    touch(vfs, b"f")
    assert errno_of(kern_unlink, vfs, r, b"d", ROOT) == EISDIR
    assert errno_of(kern_rmdir, vfs, r, b"f", ROOT) == ENOTDIR
    kern_mkdir(vfs, d, b"in", 0o755, ROOT)
    assert errno_of(kern_rmdir, vfs, r, b"d", ROOT) == ENOTEMPTY
    kern_rmdir(vfs, d, b"in", ROOT)
    kern_rmdir(vfs, r, b"d", ROOT)
    f = kern_lookup(vfs, r, b"f", ROOT)
    assert f is not None
    assert errno_of(kern_mkdir, vfs, f, b"x", 0o755, ROOT) == ENOTDIR
    check(vfs)


def test_mknod_makes_what_can_be_made() -> None:
    """What if mknod is asked for each type? Devices need root; directories and links no way."""
    vfs = make_vfs()
    r = vfs.rootnch
    fs_of(vfs).root.mode = 0o777
    for mode, errno in ((0o010644, 0), (0o140644, 0), (0o644, 0), (0o020644, EPERM),
                        (0o060644, EPERM), (0o040755, EINVAL), (0o120777, EINVAL)):  # fmt: skip
        name = b"%o" % mode
        if errno:
            assert errno_of(kern_mknod, vfs, r, name, mode, 1, 2, USER) == errno
        else:
            kern_mknod(vfs, r, name, mode, 0, 0, USER)
    kern_mknod(vfs, r, b"dev", 0o020644, 1, 2, ROOT)
    check(vfs)


def test_hard_links_follow_the_rules() -> None:
    """What if links are made to directories, across mounts, beyond LINK_MAX, to removed files?"""
    vfs = make_vfs()
    r = vfs.rootnch
    d = vfs.cache.hold(kern_mkdir(vfs, r, b"d", 0o755, ROOT))
    f = vfs.cache.hold(touch(vfs, b"f"))
    assert errno_of(kern_link, vfs, d, r, b"x", ROOT) == EPERM
    mp = vfs.mounts.mount("dict", "s", d, {}, 0, ROOT)
    assert errno_of(kern_link, vfs, f, mp.ncmountpt, b"x", ROOT) == EXDEV
    fs_of(vfs).link_max = 3
    kern_link(vfs, f, r, b"g", ROOT)
    kern_link(vfs, f, r, b"h", ROOT)
    assert errno_of(kern_link, vfs, f, r, b"i", ROOT) == EMLINK
    assert kern_stat(vfs, f).nlink == 3
    vfs.hardlink_check_uid = 1
    fs_of(vfs).link_max = 9
    fs_of(vfs).root.mode = 0o777
    assert errno_of(kern_link, vfs, f, r, b"i", USER) == EPERM
    vfs.hardlink_check_uid = 0
    kern_link(vfs, f, r, b"i", USER)
    assert f.ncp.vp is not None
    vp = f.ncp.vp.ref()
    for name in (b"f", b"g", b"h", b"i"):
        kern_unlink(vfs, r, name, ROOT)
    gone = vfs.cache.nch_of(vp)
    assert errno_of(kern_link, vfs, gone, r, b"again", ROOT) == ENOENT
    vp.rele()
    vfs.cache.drop_nch(f)
    vfs.cache.drop_nch(d)
    check(vfs)


# --- rename ------------------------------------------------------------------------------------


def rename_world() -> Vfs:
    vfs = make_vfs()
    r = vfs.rootnch
    d = kern_mkdir(vfs, r, b"d", 0o755, ROOT)
    kern_mkdir(vfs, d, b"sub", 0o755, ROOT)
    kern_mkdir(vfs, r, b"empty", 0o755, ROOT)
    f = touch(vfs, b"f")
    touch(vfs, b"g")
    kern_link(vfs, f, r, b"f2", ROOT)
    return vfs


RENAMES = [
    ((), b"none", (), b"x", 0, ENOENT),
    ((), b"d", (b"d",), b"x", 0, EINVAL),
    ((), b"d", (b"d", b"sub"), b"x", 0, EINVAL),
    ((b"d",), b"sub", (), b"d", 0, ENOTEMPTY),
    ((b"d",), b"sub", (), b"d", RENAME_EXCHANGE, EINVAL),
    ((), b"f", (), b"empty", 0, EISDIR),
    ((), b"empty", (), b"f", 0, ENOTDIR),
    ((), b"empty", (), b"d", 0, ENOTEMPTY),
    ((), b"f", (), b"g", RENAME_NOREPLACE, EEXIST),
    ((), b"f", (), b"none", RENAME_EXCHANGE, ENOENT),
    ((), b"f", (), b"g", RENAME_EXCHANGE | RENAME_NOREPLACE, EINVAL),
    ((), b"f", (), b"g", RENAME_EXCHANGE | RENAME_WHITEOUT, EINVAL),
    ((), b"f", (), b"g", 64, EINVAL),
    ((), b"f", (), b"f", 0, 0),
    ((), b"f", (), b"f2", 0, 0),
    ((), b"f", (), b"g", 0, 0),
    ((), b"d", (), b"empty", 0, 0),
    ((), b"f", (b"d",), b"f", RENAME_NOREPLACE, 0),
    ((), b"f", (), b"d", RENAME_EXCHANGE, 0),
]


@pytest.mark.parametrize(("fdir", "fname", "tdir", "tname", "flags", "errno"), RENAMES)
def test_rename_table(
    fdir: tuple[bytes, ...], fname: bytes, tdir: tuple[bytes, ...], tname: bytes, flags: int,
    errno: int,
) -> None:  # fmt: skip
    """What if any pair of things is renamed? The errno of the table, or the name moves."""
    vfs = rename_world()

    def at(path: tuple[bytes, ...]) -> NcHandle:
        nch: NcHandle | None = vfs.rootnch
        for name in path:
            assert nch is not None
            nch = kern_lookup(vfs, nch, name, ROOT)
        assert nch is not None
        return nch

    f, t = at(fdir), at(tdir)
    if errno:
        assert errno_of(kern_rename, vfs, f, fname, t, tname, flags, ROOT) == errno
        check(vfs)
        return
    source = kern_lookup(vfs, f, fname, ROOT)
    target = kern_lookup(vfs, t, tname, ROOT)
    assert source is not None
    same = target is not None and target.ncp.vp is source.ncp.vp
    kern_rename(vfs, f, fname, t, tname, flags, ROOT)
    moved = kern_lookup(vfs, t, tname, ROOT)
    assert moved is not None
    assert moved.ncp.vp is source.ncp.vp
    left = kern_lookup(vfs, f, fname, ROOT)
    assert (left is None) == (not same and not flags & RENAME_EXCHANGE)
    check(vfs)


def test_rename_across_mounts_is_exdev() -> None:
    """What if a rename leaves its file system? EXDEV."""
    vfs = rename_world()
    r = vfs.rootnch
    mp = vfs.mounts.mount("dict", "s", kern_mkdir(vfs, r, b"m", 0o755, ROOT), {}, 0, ROOT)
    assert errno_of(kern_rename, vfs, r, b"f", mp.ncmountpt, b"f", 0, ROOT) == EXDEV


def test_directory_that_changes_its_parent_must_be_writable() -> None:
    """What if a user moves a directory he may not write? EACCES elsewhere, allowed in place."""
    vfs = make_vfs()
    r = vfs.rootnch
    fs_of(vfs).root.mode = 0o777
    kern_mkdir(vfs, r, b"fixed", 0o555, USER)
    kern_mkdir(vfs, r, b"to", 0o755, USER)
    to = kern_lookup(vfs, r, b"to", ROOT)
    assert to is not None
    assert errno_of(kern_rename, vfs, r, b"fixed", to, b"fixed", 0, USER) == EACCES
    kern_rename(vfs, r, b"fixed", r, b"other", 0, USER)


# --- open files --------------------------------------------------------------------------------


def test_open_checks_type_and_permission() -> None:
    """What if each kind of thing is opened in each way? EISDIR ELOOP ENOTDIR EACCES EOPNOTSUPP."""
    vfs = make_vfs()
    r = vfs.rootnch
    d = kern_mkdir(vfs, r, b"d", 0o755, ROOT)
    f = touch(vfs, b"f", USER, 0o400)
    link = kern_symlink(vfs, r, b"l", b"f", ROOT)
    sock = kern_mknod(vfs, r, b"s", 0o140644, 0, 0, ROOT)
    assert errno_of(kern_open, vfs, d, O_RDWR, ROOT) == EISDIR
    assert errno_of(kern_open, vfs, d, O_RDONLY | O_TRUNC, ROOT) == EISDIR
    assert errno_of(kern_open, vfs, f, O_RDONLY | O_DIRECTORY, ROOT) == ENOTDIR
    assert errno_of(kern_open, vfs, link, O_RDONLY, ROOT) == ELOOP
    assert errno_of(kern_open, vfs, sock, O_RDONLY, ROOT) == EOPNOTSUPP
    assert errno_of(kern_open, vfs, f, O_RDWR, USER) == EACCES
    assert errno_of(kern_open, vfs, f, O_RDONLY, OTHER) == EACCES
    kern_open(vfs, f, O_RDONLY, USER).drop()
    kern_open(vfs, f, O_RDWR, OTHER, False).drop()
    missing = NcHandle(vfs.cache.nlookup(r.ncp, b"none"), r.mount)
    assert errno_of(kern_open, vfs, missing, O_RDONLY, ROOT) == ENOENT
    vfs.cache.drop(missing.ncp)
    check(vfs)


def test_counts_of_opens_and_writers() -> None:
    """What if a file is opened several times? opencount and writecount follow; text is guarded."""
    vfs = make_vfs()
    f = touch(vfs, b"f")
    vp = f.ncp.vp
    assert vp is not None
    a = kern_open(vfs, f, O_RDWR, ROOT)
    b = kern_open(vfs, f, O_RDONLY, ROOT)
    assert (vp.opencount, vp.writecount, vp.refcnt) == (2, 1, 2)
    assert vp.mount is not None
    assert vp.mount.writers() == 1
    a.drop()
    assert (vp.opencount, vp.writecount, vp.refcnt) == (1, 0, 1)
    vp.flag |= V.TEXT
    assert errno_of(kern_open, vfs, f, O_WRONLY, ROOT) == ETXTBSY
    vp.flag &= ~V.TEXT
    b.drop()
    with pytest.raises(Panic):
        b.drop()
    check(vfs)


def test_created_file_is_open_whatever_its_mode() -> None:
    """What if a file is created with mode 0? The creator has it open; the next open is refused."""
    vfs = make_vfs()
    fs_of(vfs).root.mode = 0o777
    nch, file = kern_create(vfs, vfs.rootnch, b"f", 0, O_RDWR, USER)
    assert kern_write(file, 0, b"x") == 1
    assert kern_stat(vfs, nch).uid == 1000
    assert errno_of(kern_open, vfs, nch, O_RDONLY, USER) == EACCES
    file.drop()


def test_reading_and_writing_respect_the_open_mode() -> None:
    """What if a file is used against its mode? EBADF; O_APPEND and O_TRUNC do what they say."""
    vfs = make_vfs()
    f = vfs.cache.hold(touch(vfs, b"f"))
    w = kern_open(vfs, f, O_WRONLY, ROOT)
    r = kern_open(vfs, f, O_RDONLY, ROOT)
    assert errno_of(kern_read, w, 0, 1) == EBADF
    assert errno_of(kern_write, r, 0, b"x") == EBADF
    assert kern_write(w, None, b"hello ") == 6
    assert kern_write(w, None, b"world") == 5
    assert w.offset == 11
    assert kern_read(r, None, 5) == b"hello"
    assert kern_read(r, None, 99) == b" world"
    assert kern_read(r, None, 99) == b""
    a = kern_open(vfs, f, O_WRONLY | O_APPEND, ROOT)
    assert kern_write(a, 0, b"!") == 1
    assert kern_read(r, 0, 99) == b"hello world!"
    t = kern_open(vfs, f, O_RDWR | O_TRUNC, ROOT)
    assert kern_stat(vfs, f).size == 0
    assert errno_of(kern_write, t, -1, b"x") == EINVAL
    for file in (w, r, a, t):
        file.drop()
    assert errno_of(kern_read, t, 0, 1) == EBADF
    vfs.cache.drop_nch(f)
    check(vfs)


def test_seek_and_directory_reading() -> None:
    """What if offsets are moved and directories read? Bounds EINVAL; every entry once."""
    vfs = make_vfs()
    r = vfs.rootnch
    _nch, file = kern_create(vfs, r, b"f", 0o644, O_RDWR, ROOT)
    kern_write(file, 0, b"0123456789")
    assert kern_seek(file, 4, SEEK_SET) == 4
    assert kern_seek(file, 2, SEEK_CUR) == 6
    assert kern_seek(file, -1, SEEK_END) == 9
    assert errno_of(kern_seek, file, -1, SEEK_SET) == EINVAL
    assert errno_of(kern_seek, file, 0, 9) == EINVAL
    file.drop()
    fifo = kern_open(vfs, kern_mknod(vfs, r, b"p", 0o010644, 0, 0, ROOT), O_RDONLY, ROOT)
    assert errno_of(kern_seek, fifo, 0, SEEK_SET) == ESPIPE
    assert errno_of(kern_readdir, fifo, 0, 10) == ENOTDIR
    fifo.drop()
    d = kern_open(vfs, r, O_RDONLY, ROOT)
    assert errno_of(kern_read, d, 0, 10) == EISDIR
    names: list[bytes] = []
    cookie = 0
    while batch := kern_readdir(d, cookie, 1):
        names += [e.name for e in batch]
        cookie = batch[-1].cookie
    assert names == [b".", b"..", b"f", b"p"]
    kern_fsync(d)
    assert errno_of(kern_fallocate, d, 0, 0, 1) == EBADF
    d.drop()
    check(vfs)


# --- attributes --------------------------------------------------------------------------------

SETATTRS = [
    (Vattr(mode=0o600), USER, 0),
    (Vattr(mode=0o600), OTHER, EPERM),
    (Vattr(mode=0o600), ROOT, 0),
    (Vattr(uid=2000), USER, EPERM),
    (Vattr(uid=1000), USER, 0),
    (Vattr(uid=2000), ROOT, 0),
    (Vattr(gid=50), USER, 0),
    (Vattr(gid=51), USER, EPERM),
    (Vattr(gid=51), ROOT, 0),
    (Vattr(size=5), USER, 0),
    (Vattr(size=5), OTHER, EACCES),
    (Vattr(size=-1), ROOT, EINVAL),
    (Vattr(atime=1, mtime=1), USER, 0),
    (Vattr(atime=1, mtime=1), OTHER, EPERM),
    (Vattr(atime_now=True, mtime_now=True), OTHER, EACCES),
    (Vattr(flags=UF_IMMUTABLE), USER, 0),
    (Vattr(flags=UF_IMMUTABLE), OTHER, EPERM),
    (Vattr(flags=0x20000), USER, EPERM),
    (Vattr(flags=0x20000), ROOT, 0),
]


@pytest.mark.parametrize(("vap", "cred", "errno"), SETATTRS)
def test_who_may_change_attributes(vap: Vattr, cred: Ucred, errno: int) -> None:
    """What if owner, others and root change each attribute? The table; nothing by half."""
    vfs = make_vfs()
    f = touch(vfs, b"f", USER, 0o644)
    if errno:
        assert errno_of(kern_setattr, vfs, f, vap, cred) == errno
        assert kern_stat(vfs, f).mode == 0o644
        if errno != EINVAL:
            kern_setattr(vfs, f, vap, cred, False)
    else:
        kern_setattr(vfs, f, vap, cred)


def test_set_id_bits_go_with_the_owner_and_for_strangers_to_the_group() -> None:
    """What if a set-id file changes owner, or gets set-gid from outside the group? Bits go."""
    vfs = make_vfs()
    f = touch(vfs, b"f", USER, 0o6755)
    kern_setattr(vfs, f, Vattr(gid=50), USER)
    assert kern_stat(vfs, f).mode == 0o755
    kern_setattr(vfs, f, Vattr(gid=99), ROOT)
    kern_setattr(vfs, f, Vattr(mode=0o2755), USER)
    assert kern_stat(vfs, f).mode == 0o755
    assert helper_chmod(0o2755, 1000, 50, USER) == 0o2755


def test_immutable_files_refuse_all_but_their_flags() -> None:
    """What if attributes of an immutable file are changed? EPERM for root too, until cleared."""
    vfs = make_vfs()
    f = touch(vfs, b"f")
    kern_setattr(vfs, f, Vattr(flags=UF_IMMUTABLE), ROOT)
    for vap in (Vattr(mode=0), Vattr(uid=1), Vattr(size=0), Vattr(mtime=1)):
        assert errno_of(kern_setattr, vfs, f, vap, ROOT) == EPERM
    assert errno_of(kern_open, vfs, f, O_RDWR, ROOT) == EPERM
    kern_setattr(vfs, f, Vattr(flags=0), ROOT)
    kern_setattr(vfs, f, Vattr(mode=0), ROOT)


def test_fallocate_is_guarded_before_the_file_system_is_asked() -> None:
    """What if a range is allocated or punched where it may not be? EINVAL, EPERM, ESPIPE."""
    vfs = make_vfs()
    nch, file = kern_create(vfs, vfs.rootnch, b"f", 0o644, O_RDWR, ROOT)
    assert errno_of(kern_fallocate, file, 0, 0, 0) == EINVAL
    assert errno_of(kern_fallocate, file, 0, -1, 5) == EINVAL
    assert errno_of(kern_fallocate, file, 1, 0, 5) == EOPNOTSUPP
    kern_setattr(vfs, nch, Vattr(flags=UF_APPEND), ROOT)
    assert errno_of(kern_fallocate, file, 3, 0, 5) == EPERM
    assert errno_of(kern_fallocate, file, 1, 0, 5) == EOPNOTSUPP
    file.drop()
    pipe = kern_open(vfs, kern_mknod(vfs, vfs.rootnch, b"p", 0o010644, 0, 0, ROOT), O_RDWR, ROOT)
    assert errno_of(kern_fallocate, pipe, 0, 0, 5) == ESPIPE
    pipe.drop()


def test_directories_cannot_be_truncated_and_text_cannot_be_written() -> None:
    """What if a directory is truncated, or a running program? EISDIR, ETXTBSY."""
    vfs = make_vfs()
    d = kern_mkdir(vfs, vfs.rootnch, b"d", 0o755, ROOT)
    f = touch(vfs, b"f")
    assert errno_of(kern_setattr, vfs, d, Vattr(size=0), ROOT, False) == EISDIR
    assert f.ncp.vp is not None
    f.ncp.vp.flag |= V.TEXT
    assert errno_of(kern_setattr, vfs, f, Vattr(size=0), ROOT) == ETXTBSY


@pytest.mark.parametrize("mode", range(0, 0o1000, 0o21))
@pytest.mark.parametrize("cred", [USER, Ucred.of(3, 50), OTHER, ROOT])
def test_access_is_the_class_of_the_caller_and_nothing_else(mode: int, cred: Ucred) -> None:
    """What if any mode meets any caller? Owner bits bind the owner, group bits the group."""
    vfs = make_vfs()
    f = touch(vfs, b"f", USER, mode)
    kern_setattr(vfs, f, Vattr(gid=50), ROOT)
    shift = 6 if cred is USER else 3 if cred.groupmember(50) else 0
    for amode in range(8):
        bits = mode >> shift & 7
        allowed = bits & amode == amode
        if cred is ROOT:
            allowed = not amode & 1 or bool(mode & 0o111)
        if allowed:
            kern_access(vfs, f, amode, cred)
        else:
            assert errno_of(kern_access, vfs, f, amode, cred) == EACCES


def test_access_refuses_unknown_bits_and_readlink_files() -> None:
    """What if access(2) gets odd bits, readlink a file, pathconf a bad name? EINVAL."""
    vfs = make_vfs()
    f = touch(vfs, b"f")
    assert errno_of(access_mode, 8) == EINVAL
    assert errno_of(kern_readlink, vfs, f, ROOT) == EINVAL
    link = kern_symlink(vfs, vfs.rootnch, b"l", b"\xff/x", ROOT)
    assert kern_readlink(vfs, link, ROOT) == b"\xff/x"
    assert errno_of(kern_symlink, vfs, vfs.rootnch, b"m", b"", ROOT) == ENOENT
    assert kern_pathconf(vfs, f, 4, ROOT) == 255
    assert errno_of(kern_pathconf, vfs, f, 999, ROOT) == EINVAL


def test_access_control_list_of_the_file_system_decides() -> None:
    """What if a file system has lists? They replace the group and other bits, not the owner's."""
    vfs = make_vfs()
    f = touch(vfs, b"f", USER, 0o640)
    assert f.ncp.vp is not None
    ops = f.ncp.vp.ops.norm

    class Lists(type(ops)):  # type: ignore[misc]
        __slots__ = ()

        def vop_aclcheck(self, vp: Vnode, vap: Vattr, vmode: int, cred: Ucred) -> bool | None:
            return cred.uid == 2000 if vp.ino == f.ncp.vp.ino else None  # type: ignore[union-attr]

    f.ncp.vp.ops.norm = Lists(fs_of(vfs))
    f.ncp.vp.ops.relink()
    kern_open(vfs, f, O_RDWR, OTHER).drop()
    assert errno_of(kern_open, vfs, f, O_RDWR, Ucred.of(3, 1000)) == EACCES
    kern_open(vfs, f, O_RDWR, USER).drop()


def test_owner_override_and_creation_flags() -> None:
    """What if NLC_OWN is given? The owner passes whatever the bits say, others do not."""
    va = Vattr(mode=0, uid=1000, gid=1000, flags=0)
    naccess_va(va, NLC.OWN | NLC.WRITE, USER)
    with pytest.raises(KError):
        naccess_va(va, NLC.OWN | NLC.WRITE, OTHER)


def test_extended_attributes_are_guarded() -> None:
    """What if attributes are used without permission, or where there are none? The rule's errno."""
    vfs = make_vfs()
    f = touch(vfs, b"f", USER, 0o600)
    link = kern_symlink(vfs, vfs.rootnch, b"l", b"f", USER, False)
    assert errno_of(kern_getxattr, vfs, f, 1, b"a", OTHER) == EACCES
    assert errno_of(kern_setxattr, vfs, f, 1, b"a", b"", 0, OTHER) == EACCES
    assert errno_of(kern_setxattr, vfs, f, 2, b"a", b"", 0, USER) == EPERM
    assert errno_of(kern_setxattr, vfs, link, 1, b"a", b"", 0, USER) == EPERM
    assert errno_of(kern_getxattr, vfs, f, 7, b"a", USER) == EINVAL
    assert errno_of(kern_getxattr, vfs, f, 1, b"", USER) == EINVAL
    assert errno_of(kern_getxattr, vfs, f, 1, b"x" * 256, USER) == ENAMETOOLONG
    assert errno_of(kern_getxattr, vfs, f, 1, b"a", USER) == EOPNOTSUPP
    assert errno_of(kern_listxattr, vfs, f, 1, USER) == EOPNOTSUPP
    assert errno_of(kern_removexattr, vfs, f, 1, b"a", OTHER) == EACCES


# --- the host ----------------------------------------------------------------------------------


def test_host_is_told_of_every_change_and_of_nothing_else() -> None:
    """What if names, data and attributes change? Exactly those names and files are announced."""
    vfs = make_vfs()
    host = Host()
    vfs.hostcache = host
    r = vfs.rootnch
    root = kern_stat(vfs, r).fileid
    nch, file = kern_create(vfs, r, b"f", 0o644, O_RDWR, ROOT)
    ino = file.vp.ino
    assert host.told == [("entry", root, b"f"), ("attr", root, b"")]
    host.told.clear()
    kern_write(file, 0, b"x")
    assert host.told == [("data", ino, b"")]
    host.told.clear()
    kern_read(file, 0, 1)
    kern_lookup(vfs, r, b"f", ROOT)
    assert errno_of(kern_mkdir, vfs, r, b"f", 0o755, ROOT) == EEXIST
    assert host.told == []
    kern_setattr(vfs, nch, Vattr(mode=0), ROOT)
    assert host.told == [("attr", ino, b"")]
    host.told.clear()
    kern_rename(vfs, r, b"f", r, b"g", 0, ROOT)
    assert {t for t in host.told if t[0] == "entry"} == {
        ("entry", root, b"f"),
        ("entry", root, b"g"),
    }
    host.told.clear()
    kern_unlink(vfs, r, b"g", ROOT)
    assert ("entry", root, b"g") in host.told
    assert ("attr", ino, b"") in host.told
    host.told.clear()
    file.drop()
    assert host.told == [("reclaimed", ino, b"")]


REMOVED: dict[str, Callable[[Vfs, NcHandle], object]] = {
    "lookup": lambda vfs, d: kern_lookup(vfs, d, b"x", USER, True),
    "lookup dots": lambda vfs, d: kern_lookup(vfs, d, b"..", USER),
    "create": lambda vfs, d: kern_create(vfs, d, b"x", 0o644, O_RDWR, USER),
    "mkdir": lambda vfs, d: kern_mkdir(vfs, d, b"x", 0o755, USER),
    "mkdir dot": lambda vfs, d: kern_mkdir(vfs, d, b".", 0o755, USER),
    "mknod": lambda vfs, d: kern_mknod(vfs, d, b"x", 0o100644, 0, 0, USER),
    "symlink": lambda vfs, d: kern_symlink(vfs, d, b"x", b"y", USER),
    "unlink": lambda vfs, d: kern_unlink(vfs, d, b"x", USER),
    "rmdir": lambda vfs, d: kern_rmdir(vfs, d, b"x", USER),
    "rename": lambda vfs, d: kern_rename(vfs, d, b"x", d, b"y", 0, USER),
    "rename in": lambda vfs, d: kern_rename(vfs, vfs.rootnch, b"f", d, b"y", 0, ROOT),
    "rename out": lambda vfs, d: kern_rename(vfs, d, b"x", vfs.rootnch, b"y", 0, ROOT),
    "open": lambda vfs, d: kern_open(vfs, d, O_RDONLY, USER),
    "stat": lambda vfs, d: kern_stat(vfs, d, USER),
    "setattr": lambda vfs, d: kern_setattr(vfs, d, Vattr(mode=0o700), USER),
    "setxattr": lambda vfs, d: kern_setxattr(vfs, d, 1, b"a", b"", 0, USER),
    "mount": lambda vfs, d: kern_mount(vfs, "dict", "x", d, "", ROOT),
    "update": lambda vfs, d: kern_mount(vfs, "dict", "x", d, "update", ROOT),
    "unmount": lambda vfs, d: kern_unmount(vfs, d, 0, ROOT),
}


@pytest.mark.parametrize("what", REMOVED)
@pytest.mark.parametrize("nested", [False, True])
def test_everything_in_a_removed_directory_is_enoent(what: str, nested: bool) -> None:
    """What if the directory one stands in was removed, with its parent, and its vnode is gone?"""
    vfs = make_vfs()
    touch(vfs, b"f")
    d = kern_mkdir(vfs, vfs.rootnch, b"d", 0o777, ROOT)
    held = [vfs.cache.hold(d)]
    if nested:
        held.append(vfs.cache.hold(kern_mkdir(vfs, d, b"e", 0o777, ROOT)))
        kern_rmdir(vfs, d, b"e", ROOT)
    kern_rmdir(vfs, vfs.rootnch, b"d", ROOT)
    assert held[-1].ncp.vp is None
    assert errno_of(REMOVED[what], vfs, held[-1]) == ENOENT
    for nch in held:
        vfs.cache.drop_nch(nch)
    check(vfs)


def test_a_directory_keeps_its_set_id_bits_when_its_owner_changes() -> None:
    """What if an owner gives a set-gid directory to another of his groups? As on Linux."""
    vfs = make_vfs()
    d = kern_mkdir(vfs, vfs.rootnch, b"d", 0o755, ROOT)
    kern_setattr(vfs, d, Vattr(uid=1000, gid=1000, mode=0o6755), ROOT)
    kern_setattr(vfs, d, Vattr(gid=50), USER)
    assert kern_stat(vfs, d).mode == 0o6755
    kern_setattr(vfs, d, Vattr(uid=1000), USER)
    assert kern_stat(vfs, d).mode == 0o6755
