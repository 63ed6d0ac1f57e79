from __future__ import annotations

from typing import Any

import pytest

from dfuser.hw.clock import VirtualClock
from dfuser.libkern.errno import (
    EBUSY,
    EINVAL,
    EIO,
    ENODEV,
    ENOENT,
    ENOTDIR,
    ENXIO,
    EPERM,
    EROFS,
    ESTALE,
    KError,
)
from dfuser.libkern.fcntl import O_RDONLY, O_RDWR, X_OK
from dfuser.libkern.klist import HookKnote
from dfuser.libkern.ktr import Ktr
from dfuser.libkern.log import MsgBuf
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt.block import run_blocking
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.synch import tsleep
from dfuser.vfs.cache import NcHandle
from dfuser.vfs.hostcache import NullHostCache
from dfuser.vfs.mount import MNT, MNTK, Mount
from dfuser.vfs.mountflags import VQ_MOUNT, VQ_UNMOUNT, format_flags, parse_options
from dfuser.vfs.syscalls import (
    kern_access,
    kern_create,
    kern_getmntinfo,
    kern_lookup,
    kern_mkdir,
    kern_mknod,
    kern_mount,
    kern_open,
    kern_read,
    kern_rename,
    kern_rmdir,
    kern_setattr,
    kern_statfs,
    kern_unlink,
    kern_unmount,
    kern_write,
)
from dfuser.vfs.vattr import Vattr
from dfuser.vfs.vfs import Vfs
from tests.unit.vfs.dictfs import ROOT, DictFs, check, make_vfs

USER = Ucred.of(1000, 1000)


def errno_of(fn: Any, *args: Any, **kw: Any) -> int:
    with pytest.raises(KError) as err:
        fn(*args, **kw)
    return err.value.errno


def directory(vfs: Vfs, name: bytes = b"mnt", dnch: NcHandle | None = None) -> NcHandle:
    return kern_mkdir(vfs, dnch or vfs.rootnch, name, 0o755, ROOT)


def mount(vfs: Vfs, nch: NcHandle, flags: int = 0, cred: Ucred = ROOT, **options: str) -> Mount:
    return vfs.mounts.mount("dict", "src", nch, options, flags, cred)


def test_mount_covers_and_unmount_uncovers() -> None:
    """What if a directory is mounted on? Its contents are hidden, and back after the unmount."""
    vfs = make_vfs()
    heard: list[int] = []
    vfs.mounts.fs_klist.insert(HookKnote(VQ_MOUNT | VQ_UNMOUNT, lambda k: heard.append(k.take())))
    d = vfs.cache.hold(directory(vfs))
    kern_mknod(vfs, d, b"below", 0o100644, 0, 0, ROOT)
    moved: list[Any] = []
    vfs.mounts.checkdirs.append(lambda old, new: moved.append((old, new)))
    mp = mount(vfs, d)
    vfs.cache.drop_nch(d)
    assert moved == [(d, mp.ncmountpt)]
    top = kern_lookup(vfs, vfs.rootnch, b"mnt", ROOT)
    assert top == mp.ncmountpt
    assert kern_lookup(vfs, top, b"below", ROOT) is None
    assert vfs.cache.fullpath(top) == b"/mnt"
    assert mp.onname == "/mnt"
    check(vfs)
    vfs.mounts.unmount(mp)
    back = kern_lookup(vfs, vfs.rootnch, b"mnt", ROOT)
    assert back is not None
    assert kern_lookup(vfs, back, b"below", ROOT) is not None
    assert heard == [VQ_MOUNT, VQ_UNMOUNT]
    assert back.ncp.refs == 0
    check(vfs)


def test_mounts_are_refused_as_in_dragonfly() -> None:
    """What if the place, the type or the user is wrong? ENODEV ENOTDIR EBUSY EPERM ENOENT."""
    vfs = make_vfs()
    root = vfs.rootnch
    d = directory(vfs)
    f = kern_mknod(vfs, root, b"f", 0o100644, 0, 0, ROOT)
    assert errno_of(vfs.mounts.mount, "nofs", "x", d, {}, 0, ROOT) == ENODEV
    assert errno_of(mount, vfs, f) == ENOTDIR
    assert errno_of(mount, vfs, d, cred=USER) == EPERM
    assert errno_of(vfs.mounts.mount, "dict", "x", None, {}, 0, ROOT) == EBUSY
    assert errno_of(mount, vfs, d, fail=str(EIO)) == EIO
    assert len(vfs.mounts) == 1
    assert kern_lookup(vfs, root, b"mnt", ROOT) == d
    mount(vfs, d)
    assert errno_of(mount, vfs, d) == EBUSY
    stubborn = mount(vfs, directory(vfs, b"syn"), nostk="")
    inside = directory(vfs, b"in", stubborn.ncmountpt)
    assert errno_of(mount, vfs, inside) == EPERM
    vfs.mounts.usermount = 1
    assert errno_of(mount, vfs, directory(vfs, b"roots"), cred=USER) == EPERM
    own = kern_mkdir(vfs, root, b"own", 0o755, USER, False)
    mp = mount(vfs, own, cred=USER)
    assert mp.flag & (MNT.NOSUID | MNT.NODEV) == MNT.NOSUID | MNT.NODEV
    check(vfs)


def test_index_and_fsid_are_never_used_again() -> None:
    """What if file systems are mounted and unmounted 50 times? Each has its own number."""
    vfs = make_vfs()
    d = vfs.cache.hold(directory(vfs))
    seen = set()
    for _ in range(50):
        mp = mount(vfs, d)
        seen.add((mp.index, mp.fsid))
        assert vfs.mounts.getvfs(mp.fsid) is mp
        vfs.mounts.unmount(mp)
        assert errno_of(vfs.mounts.getvfs, mp.fsid) == ESTALE
    assert len({index for index, _ in seen}) == len({fsid for _, fsid in seen}) == 50
    vfs.cache.drop_nch(d)
    check(vfs)


def test_unmount_says_who_is_inside() -> None:
    """What if a file, a directory or a mount inside is in use? EBUSY with the counts."""
    vfs = make_vfs()
    mp = mount(vfs, directory(vfs))
    _, file = kern_create(vfs, mp.ncmountpt, b"f", 0o644, O_RDWR, ROOT)
    with pytest.raises(KError) as err:
        vfs.mounts.unmount(mp)
    assert err.value.errno == EBUSY
    assert "1 namecache refs, 1 mount refs, 1 vnodes, 0 mounts" in str(err.value)
    assert not mp.kern_flag & MNTK.UNMOUNT
    file.drop()
    cwd = vfs.cache.hold(directory(vfs, b"d", mp.ncmountpt))
    assert errno_of(vfs.mounts.unmount, mp) == EBUSY
    inner = mount(vfs, cwd)
    vfs.cache.drop_nch(cwd)
    assert errno_of(vfs.mounts.unmount, mp) == EBUSY
    vfs.mounts.unmount(inner)
    mp.busy()
    assert errno_of(vfs.mounts.unmount, mp) == EBUSY
    mp.unbusy()
    vfs.mounts.unmount(mp)
    assert vfs.mounts.statistics().busy == 4
    assert errno_of(vfs.mounts.unmount, mp) == EINVAL
    assert vfs.mounts.root is not None
    assert errno_of(vfs.mounts.unmount, vfs.mounts.root) == EINVAL
    check(vfs)


def test_forced_unmount_leaves_dead_files_and_frees_them_later() -> None:
    """What if a file system is torn away? Open files get errors, closing works, nothing leaks."""
    vfs = make_vfs()
    mp = mount(vfs, directory(vfs))
    d = directory(vfs, b"d", mp.ncmountpt)
    _nch, file = kern_create(vfs, d, b"f", 0o644, O_RDWR, ROOT)
    cwd = vfs.cache.hold(d)
    vfs.mounts.unmount(mp, MNT.FORCE)
    assert len(vfs.mounts) == 1
    assert errno_of(kern_read, file, 0, 1) == EIO
    assert errno_of(kern_write, file, 0, b"x") == EIO
    assert errno_of(vfs.cache.fullpath, cwd) == ENOENT
    assert errno_of(kern_mknod, vfs, cwd, b"x", 0o100644, 0, 0, ROOT) == ENOENT
    assert not mp.vnodes
    file.drop()
    vfs.cache.drop_nch(cwd)
    assert vfs.vnodes.numvnodes == 2
    assert vfs.cache.numunlinked == 0
    check(vfs)


def test_waiting_unmount_succeeds_when_the_user_leaves() -> None:
    """What if the last user leaves while an unmount waits? It goes through; else EBUSY in 1 s."""
    clock = VirtualClock()
    lwkt = Lwkt(1, clock, Ktr(1, clock), MsgBuf())
    vfs = make_vfs(lwkt=lwkt, clock=clock)
    mp = mount(vfs, directory(vfs))
    results: list[Any] = []
    cwd = vfs.cache.hold(mp.ncmountpt)

    def try_it() -> None:
        vfs.mounts.unmount(mp, wait=True)

    async def unmount() -> None:
        try:
            await run_blocking(try_it)
            results.append("gone")
        except KError as error:
            results.append(error.errno)

    async def leave() -> None:
        await tsleep("leave", 0, "leave", 35)
        vfs.cache.drop_nch(cwd)

    def turn(seconds: float) -> None:
        for _ in range(int(seconds * 20)):
            lwkt.run_until_idle()
            clock.advance(50_000_000)
        lwkt.run_until_idle()

    lwkt.create(unmount, driver="coro")
    turn(2)
    assert results == [EBUSY]
    lwkt.create(unmount, driver="coro")
    lwkt.create(leave, driver="coro")
    turn(2)
    assert results == [EBUSY, "gone"]
    lwkt.shutdown_nowait()
    check(vfs)


def test_the_host_hears_of_changed_flags() -> None:
    """What if the host has cached modes of a mount that becomes noexec?"""
    vfs = make_vfs()
    mp = mount(vfs, directory(vfs))
    heard: list[Mount] = []

    class Host(NullHostCache):
        def mount_changed(self, mp: Mount) -> None:
            heard.append(mp)

    vfs.hostcache = Host()
    vfs.mounts.update(mp, MNT.NOEXEC, {}, ROOT)
    assert heard == [mp]
    vfs.mounts.update(mp, MNT.NOEXEC, {}, ROOT)
    assert heard == [mp]
    assert errno_of(vfs.mounts.update, mp, MNT.RDONLY, {}, USER) == EPERM
    assert heard == [mp]


def test_update_to_read_only_needs_the_writers_gone() -> None:
    """What if a mount is to become read-only? EBUSY with writers; then EROFS; and back again."""
    vfs = make_vfs()
    mp = mount(vfs, directory(vfs))
    _nch, file = kern_create(vfs, mp.ncmountpt, b"f", 0o644, O_RDWR, ROOT)
    assert errno_of(vfs.mounts.update, mp, MNT.RDONLY, {}, ROOT) == EBUSY
    file.drop()
    assert errno_of(vfs.mounts.update, mp, MNT.RDONLY, {}, USER) == EPERM
    vfs.mounts.update(mp, MNT.RDONLY | MNT.NOSUID, {}, ROOT)
    found = kern_lookup(vfs, mp.ncmountpt, b"f", ROOT)
    assert found is not None
    assert errno_of(kern_open, vfs, found, O_RDWR, ROOT) == EROFS
    assert errno_of(kern_open, vfs, found, O_RDWR, ROOT, False) == EROFS
    assert errno_of(kern_setattr, vfs, found, Vattr(mode=0), ROOT) == EROFS
    assert errno_of(kern_unlink, vfs, mp.ncmountpt, b"f", ROOT, False) == EROFS
    assert errno_of(kern_mkdir, vfs, mp.ncmountpt, b"x", 0o755, ROOT, False) == EROFS
    kern_open(vfs, found, O_RDONLY, ROOT).drop()
    mp.data.root.mode = 0o700

    def fails(mp: Mount, *args: Any) -> None:
        raise KError(EIO)

    mp.ops.vfs_mount = fails  # type: ignore[method-assign]
    flag = mp.flag
    assert errno_of(vfs.mounts.update, mp, 0, {}, ROOT) == EIO
    assert mp.flag == flag
    del mp.ops.vfs_mount  # type: ignore[attr-defined]
    vfs.mounts.update(mp, 0, {}, ROOT)
    assert not mp.flag & (MNT.RDONLY | MNT.NOSUID | MNT.UPDATE)
    kern_unlink(vfs, mp.ncmountpt, b"f", ROOT)
    check(vfs)


def test_noexec_and_nodev_are_enforced() -> None:
    """What if a mount has noexec and nodev? No execution, no opening of devices."""
    vfs = make_vfs()
    mp = mount(vfs, directory(vfs), MNT.NOEXEC | MNT.NODEV)
    f = kern_mknod(vfs, mp.ncmountpt, b"prog", 0o100755, 0, 0, ROOT)
    assert errno_of(kern_access, vfs, f, X_OK, ROOT) == 13
    dev = kern_mknod(vfs, mp.ncmountpt, b"dev", 0o020666, 1, 3, ROOT)
    assert errno_of(kern_open, vfs, dev, O_RDONLY, ROOT) == ENXIO
    kern_access(vfs, vfs.rootnch, X_OK, ROOT)


def test_mount_point_cannot_be_removed_or_renamed() -> None:
    """What if somebody removes or moves a directory that is mounted on? EBUSY."""
    vfs = make_vfs()
    root = vfs.rootnch
    mount(vfs, directory(vfs))
    directory(vfs, b"other")
    assert errno_of(kern_rmdir, vfs, root, b"mnt", ROOT) == EBUSY
    assert errno_of(kern_rename, vfs, root, b"mnt", root, b"x", 0, ROOT) == EBUSY
    assert errno_of(kern_rename, vfs, root, b"other", root, b"mnt", 0, ROOT) == EBUSY
    check(vfs)


def test_mount_cache_answers_both_ways_and_stays_bounded() -> None:
    """What if mount points are crossed again and again? The list is asked once for each."""
    vfs = make_vfs()
    cache = vfs.cache.ncmount
    cache.set_limit(8)
    mounts = [mount(vfs, directory(vfs, b"m%d" % i)) for i in range(12)]
    for _ in range(3):
        for i, mp in enumerate(mounts):
            got = kern_lookup(vfs, vfs.rootnch, b"m%d" % i, ROOT)
            assert got is not None
            assert got.mount is mp
    stats = cache.statistics()
    assert stats.entries == 8
    assert stats.evictions > 0
    hits = stats.hits
    kern_lookup(vfs, vfs.rootnch, b"m11", ROOT)
    assert cache.statistics().hits == hits + 1
    on = mounts[11].ncmounton
    assert on is not None
    other = NcHandle(on.ncp, mounts[0])
    assert vfs.cache.findmount(other) is None
    assert vfs.cache.findmount(other) is None
    assert cache.statistics().neghits == 1
    vfs.mounts.unmount(mounts[11])
    assert vfs.cache.findmount(on) is None
    check(vfs)


def test_mount_and_unmount_leave_nothing() -> None:
    """What if a file system with 100 files is mounted and unmounted? All counts are as before."""
    vfs = make_vfs()
    d = vfs.cache.hold(directory(vfs))
    before = (vfs.cache.numcache, vfs.vnodes.numvnodes, d.ncp.refs)
    for _ in range(5):
        mp = mount(vfs, d)
        for i in range(100):
            kern_mknod(vfs, mp.ncmountpt, b"%d" % i, 0o100644, 0, 0, ROOT)
            kern_lookup(vfs, mp.ncmountpt, b"n%d" % i, ROOT)
        fs = mp.data
        assert isinstance(fs, DictFs)
        vfs.mounts.unmount(mp)
        assert fs.calls["unmount"] == 1
        assert (vfs.cache.numcache, vfs.vnodes.numvnodes, d.ncp.refs) == before
    assert vfs.cache.numneg == 0
    vfs.cache.drop_nch(d)
    check(vfs)


def test_closing_the_vfs_unmounts_all_in_reverse() -> None:
    """What if the kernel stops with files open three mounts deep? All goes, no vnode stays."""
    vfs = make_vfs()
    a = mount(vfs, directory(vfs))
    b = mount(vfs, directory(vfs, b"in", a.ncmountpt))
    _, file = kern_create(vfs, b.ncmountpt, b"f", 0o644, O_RDWR, ROOT)
    order: list[int] = []
    for mp in vfs.mounts:
        ops = mp.ops
        real = ops.vfs_unmount

        def spy(mp: Mount, flags: int, real: Any = real) -> None:
            order.append(mp.index)
            real(mp, flags)

        ops.vfs_unmount = spy  # type: ignore[method-assign]
    vfs.close()
    assert order == [3, 2, 1]
    assert len(vfs.mounts) == 0
    file.drop()


def test_statfs_is_the_mounts_own() -> None:
    """What if statfs is asked on two mounts? Each answers for itself."""
    vfs = make_vfs()
    mp = mount(vfs, directory(vfs))
    assert kern_statfs(vfs, vfs.rootnch).ffree == 98
    assert kern_statfs(vfs, mp.ncmountpt).ffree == 99


def test_option_strings() -> None:
    """What if options are written as on a command line? Later words win, the rest is left over."""
    flags, clear, rest = parse_options("ro,noexec,size=1m,rw,nosuid,,defaults,flag")
    assert flags == MNT.NOEXEC | MNT.NOSUID
    assert clear == MNT.RDONLY
    assert rest == {"size": "1m", "flag": ""}
    assert format_flags(MNT.RDONLY | MNT.LOCAL) == "local, read-only"


def test_mount_and_unmount_by_place_and_owner() -> None:
    """What if mounts are made, changed and ended by command? Only by root or their owner."""
    vfs = make_vfs()
    vfs.mounts.usermount = 1
    own = kern_mkdir(vfs, vfs.rootnch, b"own", 0o755, USER, False)
    mp = kern_mount(vfs, "dict", "src", own, "ro,noatime,size=1", USER)
    assert mp.flag & (MNT.RDONLY | MNT.NOATIME) == MNT.RDONLY | MNT.NOATIME
    assert mp.options == {"size": "1"}
    other = Ucred.of(7, 7)
    assert errno_of(kern_mount, vfs, "", "", mp.ncmountpt, "update,rw", other) == EPERM
    kern_mount(vfs, "", "", mp.ncmountpt, "update,rw", USER)
    assert mp.flag & (MNT.RDONLY | MNT.NOATIME | MNT.NOSUID) == MNT.NOATIME | MNT.NOSUID
    inside = kern_mkdir(vfs, mp.ncmountpt, b"d", 0o755, ROOT)
    assert errno_of(kern_mount, vfs, "", "", inside, "update", ROOT) == EINVAL
    assert errno_of(kern_unmount, vfs, inside, 0, ROOT) == EINVAL
    assert errno_of(kern_unmount, vfs, mp.ncmountpt, 0, other) == EPERM
    infos = kern_getmntinfo(vfs, ROOT)
    shown = [(i.onname, i.fstype, i.owner) for i in infos]
    assert shown == [("/", "dict", 0), ("/own", "dict", 1000)]
    assert "noatime" in infos[1].text
    jailed = Ucred.of(0, 0, prison=object())
    assert kern_getmntinfo(vfs, jailed) == []
    assert errno_of(kern_unmount, vfs, mp.ncmountpt, 0, jailed) == EPERM
    kern_unmount(vfs, mp.ncmountpt, 0, USER)
    assert len(vfs.mounts) == 1
    check(vfs)


def test_mounted_on_directory_is_never_reclaimed() -> None:
    """What if memory is short? What a file system is mounted on keeps its vnode and its path."""
    vfs = make_vfs()
    mp = mount(vfs, directory(vfs))
    on = mp.ncmounton
    assert on is not None
    covered = on.ncp.vp
    for _ in range(50):
        vfs.vnodes.freesomevnodes(10)
    assert on.ncp.vp is covered
    assert vfs.cache.fullpath(mp.ncmountpt) == b"/mnt"
    top = kern_lookup(vfs, vfs.rootnch, b"mnt", ROOT)
    assert top == mp.ncmountpt
    check(vfs)


def test_a_place_in_an_unmounted_file_system_answers_without_harm() -> None:
    """What if somebody still holds the root of a mount that was taken away by force?"""
    vfs = make_vfs()
    mp = mount(vfs, directory(vfs))
    top = vfs.cache.hold(mp.ncmountpt)
    inside = vfs.cache.hold(directory(vfs, b"in", top))
    kern_unmount(vfs, top, MNT.FORCE, ROOT)
    for nch in (top, inside):
        assert errno_of(kern_statfs, vfs, nch) == ENOENT
        assert errno_of(kern_unmount, vfs, nch, 0, ROOT) == ENOENT
        assert errno_of(kern_mkdir, vfs, nch, b"x", 0o755, ROOT) == ENOENT
        assert errno_of(vfs.cache.fullpath, nch) == ENOENT
        vfs.cache.drop_nch(nch)
    check(vfs)
