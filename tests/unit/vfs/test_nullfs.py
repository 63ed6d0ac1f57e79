from __future__ import annotations

from collections.abc import Iterator

import pytest

from dfuser.hw.clock import VirtualClock
from dfuser.hw.physmem import PhysMem
from dfuser.libkern.errno import EBUSY, EINVAL, ENOENT, ENOTDIR, EROFS, EXDEV, KError
from dfuser.libkern.fcntl import O_RDONLY, O_RDWR
from dfuser.vfs import syscalls as sc
from dfuser.vfs.mount import Mount
from dfuser.vfs.mountflags import MNT
from dfuser.vfs.nullfs.vfsops import NullVfsOps
from dfuser.vfs.tmpfs.vfsops import TmpfsVfsOps
from dfuser.vfs.vfs import Vfs
from dfuser.vm.page import VmPages
from tests.conform.world import ROOT, World, errno


class Tree(World):
    """A root tmpfs with a directory ``data``, and null mounts made on demand."""

    def null(self, source: str, on: bytes, flags: int = 0) -> Mount:
        if not self.exists(on):
            self.mkdir(on)
        return self.vfs.mounts.mount("null", source, self.nch(on), {}, flags, ROOT)

    def unmount(self, mp: Mount, flags: int = 0) -> None:
        self.vfs.mounts.unmount(mp, flags)


@pytest.fixture
def w() -> Iterator[Tree]:
    physmem = PhysMem(4 << 20)
    pages = VmPages(physmem)
    before = pages.v_free_count
    vfs = Vfs(clock=VirtualClock(), pages=pages)
    vfs.fstypes.register("tmpfs", TmpfsVfsOps)
    vfs.fstypes.register("null", NullVfsOps)
    root = vfs.mounts.mount("tmpfs", "tmpfs", None, {}, 0, ROOT)
    tree = Tree(vfs, vfs.cache.hold(root.ncmountpt), lambda: root.data.check())
    tree.mkdir(b"data")
    tree.put(b"data/f", b"F")
    yield tree
    tree.check()
    tree.close()
    vfs.close()
    assert vfs.vnodes.numvnodes == 0
    assert pages.v_free_count == before
    physmem.close()


def test_same_files_at_two_places(w: Tree) -> None:
    # What if a directory is shown a second time: are both places one, with one set of names?
    shown = w.null("/data", b"mnt")
    assert w.vp(b"mnt") is w.vp(b"data")
    assert w.vp(b"mnt/f") is w.vp(b"data/f")
    w.put(b"mnt/new", b"N")
    assert w.get(b"data/new") == b"N"
    w.rename(b"data/new", b"data/newer")
    assert not w.exists(b"mnt/new")
    assert w.get(b"mnt/newer") == b"N"
    assert w.nch(b"mnt/newer").mount is shown
    assert w.nch(b"data/newer").ncp is w.nch(b"mnt/newer").ncp
    w.unmount(shown)
    assert w.ls(b"mnt") == []
    assert w.exists(b"data/newer")


def test_paths_and_dotdot(w: Tree) -> None:
    # What if the path of a file below a null mount is asked for, and one goes up from its root?
    w.mkdir(b"data/sub")
    w.null("/data", b"mnt")
    fullpath = w.vfs.cache.fullpath
    assert fullpath(w.nch(b"mnt/sub")) == b"/mnt/sub"
    assert fullpath(w.nch(b"data/sub")) == b"/data/sub"
    assert fullpath(w.nch(b"mnt/sub/..")) == b"/mnt"
    assert fullpath(w.nch(b"mnt/..")) == b"/"
    assert fullpath(w.nch(b"data/..")) == b"/"


def test_read_only_by_its_own_flag(w: Tree) -> None:
    # What if the null mount is read-only: is it so at this place alone?
    w.null("/data", b"mnt", MNT.RDONLY)
    assert w.get(b"mnt/f") == b"F"
    for call in (
        lambda: w.put(b"mnt/n"),
        lambda: w.mkdir(b"mnt/n"),
        lambda: w.unlink(b"mnt/f"),
        lambda: w.rename(b"mnt/f", b"mnt/g"),
        lambda: w.setattr(b"mnt/f", mode=0o600),
        lambda: w.open(b"mnt/f", O_RDWR),
        lambda: w.link(b"mnt/f", b"mnt/l"),
        lambda: w.symlink(b"t", b"mnt/l"),
        lambda: w.setx(b"mnt/f", b"k", b"v"),
    ):
        with errno(EROFS):
            call()
    w.put(b"data/f", b"changed")
    assert w.get(b"mnt/f") == b"changed"


def test_read_only_is_inherited(w: Tree) -> None:
    # What if a null mount shows a directory through a read-only null mount?
    w.mkdir(b"data/sub")
    w.null("/data", b"ro", MNT.RDONLY | MNT.NOEXEC)
    inner = w.null("/ro/sub", b"mnt")
    assert inner.flag & (MNT.RDONLY | MNT.NOEXEC) == MNT.RDONLY | MNT.NOEXEC
    with errno(EROFS):
        w.mkdir(b"mnt/x")
    assert inner.data.lower is w.top.mount


def test_across_the_two_places(w: Tree) -> None:
    # What if a name shall move from the directory to its own second place?
    w.null("/data", b"mnt")
    w.mkdir(b"other")
    w.null("/other", b"mnt2")
    for target in (b"mnt/g", b"mnt2/g"):
        with pytest.raises(KError) as caught:
            w.rename(b"data/f", target)
        assert caught.value.errno in (EXDEV, EINVAL)
        with errno(EXDEV):
            w.link(b"data/f", target)


def test_no_loops(w: Tree) -> None:
    # What if a directory is shown inside itself, on itself, and above itself?
    w.mkdir(b"data/in")
    inside = w.null("/data", b"data/in")
    assert sorted(w.ls(b"data/in")) == [b"f", b"in"]
    assert w.ls(b"data/in/in") == []
    assert w.vfs.cache.fullpath(w.nch(b"data/in/in")) == b"/data/in/in"
    w.unmount(inside)
    over = w.null("/data/in", b"data")
    assert w.ls(b"data") == []
    w.put(b"data/x")
    w.unmount(over)
    assert w.ls(b"data/in") == [b"x"]
    itself = w.null("/data", b"data")
    assert w.get(b"data/f") == b"F"
    w.unmount(itself)


def test_stack(w: Tree) -> None:
    # What if null mounts stand on each other's mount point and go in order?
    w.mkdir(b"a")
    w.put(b"a/in-a")
    w.mkdir(b"b")
    w.put(b"b/in-b")
    one = w.null("/a", b"mnt")
    two = w.vfs.mounts.mount("null", "/b", w.nch(b"mnt"), {}, 0, ROOT)
    assert w.ls(b"mnt") == [b"in-b"]
    with errno(EBUSY):
        w.unmount(one)
    w.unmount(two)
    assert w.ls(b"mnt") == [b"in-a"]
    w.unmount(one)


def test_what_is_shown_stays(w: Tree) -> None:
    # What if the directory that is shown shall be removed, or its file system unmounted?
    w.mkdir(b"vol")
    volume = w.vfs.mounts.mount("tmpfs", "tmpfs", w.nch(b"vol"), {}, 0, ROOT)
    w.mkdir(b"vol/d")
    shown = w.null("/vol/d", b"mnt")
    with pytest.raises(KError) as caught:
        w.rmdir(b"vol/d")
    assert caught.value.errno in (EBUSY, EINVAL)
    with errno(EBUSY):
        w.unmount(volume)
    w.unmount(shown)
    w.rmdir(b"vol/d")
    w.unmount(volume)


def test_forced_unmount_below(w: Tree) -> None:
    # What if the file system below is taken away by force?
    w.mkdir(b"vol")
    volume = w.vfs.mounts.mount("tmpfs", "tmpfs", w.nch(b"vol"), {}, 0, ROOT)
    w.mkdir(b"vol/d")
    w.put(b"vol/d/f", b"x")
    shown = w.null("/vol/d", b"mnt")
    w.unmount(volume, MNT.FORCE)
    with pytest.raises(KError):
        w.get(b"mnt/f")
    w.unmount(shown, MNT.FORCE)
    assert w.ls(b"mnt") == []
    assert w.exists(b"data/f")


def test_busy_while_used(w: Tree) -> None:
    # What if a file was opened through the null mount?
    shown = w.null("/data", b"mnt")
    file = w.open(b"mnt/f", O_RDONLY)
    with errno(EBUSY):
        w.unmount(shown)
    file.drop()
    w.unmount(shown)


def test_bad_sources(w: Tree) -> None:
    # What if the source is missing, no directory, or an option is given?
    w.mkdir(b"mnt")
    for source, number in (("/none", ENOENT), ("/data/f", ENOTDIR)):
        with errno(number):
            w.null(source, b"mnt")
    with errno(EINVAL):
        w.vfs.mounts.mount("null", "/data", w.nch(b"mnt"), {"size": "1"}, 0, ROOT)
    assert len(w.vfs.mounts) == 1
    assert w.ls(b"mnt") == []


def test_figures_and_numbers(w: Tree) -> None:
    # What if statfs and file handles are asked of the null mount?
    shown = w.null("/data", b"mnt")
    assert sc.kern_statfs(w.vfs, w.nch(b"mnt")) == w.statfs()
    assert shown.fsid != w.top.mount.fsid
    vp = shown.ops.vfs_vget(shown, w.stat(b"data/f").fileid)
    assert vp is w.vp(b"data/f")
    vp.rele()


def test_coherence(w: Tree) -> None:
    # What if a file system the host trusted alone can now change at two places?
    assert w.top.mount.coherence == "exclusive"
    shown = w.null("/data", b"mnt")
    assert (shown.coherence, w.top.mount.coherence) == ("shared", "shared")
