"""What only tmpfs promises: its options and limits, its memory, and random use against a model."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from dfuser.hw.clock import VirtualClock
from dfuser.hw.physmem import PhysMem
from dfuser.libkern.acl import XATTR_ACCESS, XATTR_DEFAULT, Acl
from dfuser.libkern.errno import (
    EBUSY,
    EFBIG,
    EINVAL,
    EIO,
    EMLINK,
    ENAMETOOLONG,
    ENOSPC,
    EPERM,
    EROFS,
    KError,
)
from dfuser.libkern.fcntl import O_RDWR
from dfuser.libkern.param import LINK_MAX, PAGE_SIZE
from dfuser.libkern.stat import UF_IMMUTABLE, VType
from dfuser.libkern.ucred import Ucred
from dfuser.vfs import syscalls as sc
from dfuser.vfs.mountflags import MNT
from dfuser.vfs.tmpfs.mount import TmpfsMount
from dfuser.vfs.tmpfs.node import TmpfsNode
from dfuser.vfs.tmpfs.vfsops import TmpfsVfsOps, parse_limits, parse_size
from dfuser.vfs.vattr import Vattr
from dfuser.vfs.vfs import Vfs
from dfuser.vfs.vop import EXTATTR_NAMESPACE_SYSTEM as SYSTEM
from dfuser.vfs.vop import RENAME_EXCHANGE, RENAME_WHITEOUT
from dfuser.vm.page import VmPages
from tests.conform.world import ROOT, USER, World, errno

MEMORY = 4 << 20


class Box:
    """One kernel's worth of memory and a VFS that knows tmpfs."""

    def __init__(self, memory: int = MEMORY, maxvnodes: int = 100_000) -> None:
        self.physmem = PhysMem(memory)
        self.pages = VmPages(self.physmem)
        self.free = self.pages.v_free_count
        self.vfs = Vfs(clock=VirtualClock(), pages=self.pages, maxvnodes=maxvnodes)
        self.vfs.fstypes.register("tmpfs", TmpfsVfsOps)

    def mount(self, flags: int = 0, **options: str) -> World:
        mp = self.vfs.mounts.mount("tmpfs", "tmpfs", None, options, flags, ROOT)
        return World(self.vfs, self.vfs.cache.hold(mp.ncmountpt), lambda: mp.data.check())

    def close(self) -> None:
        """Everything must be given back, whatever is still open."""
        self.vfs.close()
        assert self.pages.v_free_count == self.free
        self.pages.check()
        self.physmem.close()


@pytest.fixture
def box() -> Iterator[Box]:
    made = Box()
    yield made
    made.close()


def tm_of(w: World) -> TmpfsMount:
    tm = w.top.mount.data
    assert isinstance(tm, TmpfsMount)
    return tm


# --- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("4096", 4096), ("1k", 1024), ("3M", 3 << 20), ("2g", 2 << 30), ("1t", 1 << 40),
     ("50%", 500), ("150%", 1500)],
)  # fmt: skip
def test_sizes(text: str, number: int) -> None:
    # What if a size has a unit, in either case, or is a share of the memory?
    assert parse_size(text, 1000) == number


@pytest.mark.parametrize("text", ["", "k", "-1", "1.5m", "1kb", "%", "x", "²"])
def test_bad_sizes(text: str) -> None:
    # What if a size is not one?
    with errno(EINVAL):
        parse_size(text, 1000)


def test_default_limits() -> None:
    # What if nothing is asked for, or less than a file system can do with?
    limits = parse_limits({}, 4096 * 400)
    assert (limits.pages, limits.nodes) == (100, 403)
    assert limits.maxsymlink == 1023
    assert limits.maxfilesize == (1 << 63) - 1
    small = parse_limits({"size": "1", "inodes": "1"}, 1 << 30)
    assert (small.pages, small.nodes) == (1, 3)
    assert parse_limits({"nr_inodes": "7"}, 1 << 30).nodes == 7


@pytest.mark.parametrize(
    "options",
    [{"sise": "1m"}, {"size": "many"}, {"mode": "888"}, {"uid": "root"}, {"uid": "-1"},
     {"maxsymlink": "0"}, {"maxsymlink": "4096"}, {"coherence": "volatile"}],
)  # fmt: skip
def test_bad_options(box: Box, options: dict[str, str]) -> None:
    # What if an option is unknown or has no sensible value: is nothing mounted?
    with errno(EINVAL):
        box.mount(**options)
    assert len(box.vfs.mounts) == 0


def test_root_directory(box: Box) -> None:
    # What if the owner and mode of the root are given?
    w = box.mount(uid="5", gid="6", mode="1777", coherence="shared")
    at = w.stat(b"")
    assert (at.uid, at.gid, at.mode, at.fileid, at.nlink) == (5, 6, 0o1777, 2, 2)
    assert w.top.mount.coherence == "shared"


def test_update(box: Box) -> None:
    # What if the limits of a mounted file system are changed, to more, and to less than is used?
    w = box.mount(size="4k", inodes="5")
    mp = w.top.mount
    w.put(b"a", b"x" * 4096)
    with errno(ENOSPC):
        w.put(b"b", b"x")
    box.vfs.mounts.update(mp, mp.flag, {"size": "8k"}, ROOT)
    w.put(b"b", b"x")
    assert w.statfs().files == 5
    w.put(b"c")
    with errno(EBUSY):
        box.vfs.mounts.update(mp, mp.flag, {"inodes": "3"}, ROOT)
    assert w.statfs().blocks == 2


def test_read_only(box: Box) -> None:
    # What if the mount becomes read-only: does every change fail, and reading work without times?
    w = box.mount()
    w.put(b"a", b"x")
    w.mkdir(b"d")
    w.symlink(b"t", b"l")
    mp = w.top.mount
    box.vfs.mounts.update(mp, mp.flag | MNT.RDONLY, {}, ROOT)
    before = w.stat(b"a").atime
    w.tick()
    vp = w.vp(b"a")
    ops = vp.ops.use
    changes: list[Any] = [
        lambda: w.put(b"n"), lambda: w.mkdir(b"n"), lambda: w.unlink(b"a"), lambda: w.rmdir(b"d"),
        lambda: w.symlink(b"t", b"n"), lambda: w.link(b"a", b"n"), lambda: w.rename(b"a", b"n"),
        lambda: w.setattr(b"a", mode=0), lambda: w.setx(b"a", b"k", b"v"),
        lambda: w.open(b"a", O_RDWR), lambda: ops.vop_setattr(vp, Vattr(mode=0), ROOT),
        lambda: ops.vop_setextattr(vp, USER, b"k", b"v", 0, ROOT),
    ]  # fmt: skip
    for number, change in enumerate(changes):
        with pytest.raises(KError) as caught:
            change()
        assert caught.value.errno == EROFS, number
    assert w.get(b"a") == b"x"
    assert w.ls() == [b"a", b"d", b"l"]
    assert w.stat(b"a").atime == before


# --- limits -----------------------------------------------------------------------------------


def test_no_space_to_the_page(box: Box) -> None:
    # What if a file is written past the limit: how much is taken, and what comes next?
    w = box.mount(size="16k")
    file = w.create(b"a")
    assert w.write(file, 0, b"x" * 20_000) == 16_384
    assert w.statfs().bfree == 0
    with errno(ENOSPC):
        w.write(file, 16_384, b"y")
    assert w.write(file, 100, b"y" * 50) == 50
    w.setattr(b"a", size=8192)
    assert w.statfs().bfree == 2
    assert w.write(file, 8190, b"z" * 10) == 10
    assert w.stat(b"a").size == 8200
    file.drop()
    w.unlink(b"a")
    assert w.statfs().bfree == 4


def test_no_space_among_holes(box: Box) -> None:
    # What if a write crosses pages that are there and pages that are not, with one page left?
    w = box.mount(size="12k")
    file = w.create(b"a")
    w.write(file, 4096, b"m" * 4096)
    w.write(file, 12_288, b"e")
    assert w.write(file, 0, b"x" * 20_000) == 8192
    assert w.read(file, 0, 20_000) == b"x" * 8192 + bytes(4096) + b"e"
    w.check()
    file.drop()


def test_no_space_for_files(box: Box) -> None:
    # What if there are as many files as may be, of any kind?
    w = box.mount(inodes="4")
    for name in (b"a", b"b", b"c"):
        w.put(name)
    assert w.statfs().ffree == 0
    for call in (w.put, w.mkdir, lambda name: w.symlink(b"t", name)):
        with errno(ENOSPC):
            call(b"d")
    w.link(b"a", b"d")
    w.unlink(b"b")
    w.mkdir(b"e")
    w.check()


def test_open_file_counts_until_closed(box: Box) -> None:
    # What if a file without a name is still open: are its pages and its inode still used?
    w = box.mount(size="8k", inodes="3")
    file = w.create(b"a")
    w.write(file, 0, b"x" * 8192)
    w.unlink(b"a")
    assert (w.statfs().bfree, w.statfs().ffree) == (0, 1)
    file.drop()
    assert (w.statfs().bfree, w.statfs().ffree) == (2, 2)


def test_fallocate_at_the_limit(box: Box) -> None:
    # What if more pages are asked for than are left: is the file as before?
    w = box.mount(size="16k")
    file = w.create(b"a")
    vp, ops = file.vp, file.vp.ops.use
    with errno(ENOSPC):
        ops.vop_allocate(vp, 0, 16_385, 0, ROOT)
    with errno(ENOSPC):
        ops.vop_allocate(vp, 0, 1 << 62, 0, ROOT)
    assert (w.stat(b"a").size, w.statfs().bfree) == (0, 4)
    ops.vop_allocate(vp, 1, 16_383, 0, ROOT)
    assert (w.stat(b"a").size, w.statfs().bfree) == (16_384, 0)
    ops.vop_allocate(vp, 0, 16_384, 0x10, ROOT)
    ops.vop_allocate(vp, 0, 16_384, 0x03, ROOT)
    assert w.statfs().bfree == 4
    file.drop()


def test_attributes_count(box: Box) -> None:
    # What if extended attributes fill the mount: are they refused, and given back?
    w = box.mount(size="16k")
    w.put(b"a")
    w.setx(b"a", b"k", b"v" * 10_000)
    assert w.statfs().bfree == 1
    with errno(ENOSPC):
        w.setx(b"a", b"l", b"v" * 10_000)
    w.setx(b"a", b"k", b"v")
    w.setx(b"a", b"l", b"v" * 10_000)
    w.check()
    w.unlink(b"a")
    assert w.statfs().bfree == 4


def test_attribute_list_is_bounded(box: Box) -> None:
    # What if a file gets attributes without end?
    w = box.mount()
    w.put(b"a")
    made = 0
    with errno(ENOSPC):
        for i in range(2000):
            w.setx(b"a", b"%0255d" % i, b"")
            made += 1
    assert sum(len(name) + 6 for name in w.listx(b"a")) <= 65_536
    assert made == len(w.listx(b"a")) > 200


def test_memory_ends_before_the_limit() -> None:
    # What if physical memory is out although the mount has room: ENOSPC, and all is as before?
    box = Box(1 << 20)
    w = box.mount(size="100m")
    file = w.create(b"a")
    done = 0
    with errno(ENOSPC):
        while True:
            done += w.write(file, done, b"x" * 8192)
    assert w.stat(b"a").size == done
    w.check()
    file.drop()
    box.close()


def test_longest_file_and_link(box: Box) -> None:
    # What if the mount bounds files and allows links as long as the host's?
    w = box.mount(maxfilesize="10000", maxsymlink="4095")
    file = w.create(b"a")
    with errno(EFBIG):
        w.write(file, 9_999, b"xy")
    with errno(EFBIG):
        w.setattr(b"a", size=10_001)
    assert w.write(file, 9_999, b"x") == 1
    file.drop()
    vp = w.vp(b"")
    ncp = box.vfs.cache.nlookup(w.top.ncp, b"l")
    with errno(ENAMETOOLONG):
        vp.ops.use.vop_nsymlink(vp, ncp, Vattr(), b"x" * 4096, ROOT)
    vp.ops.use.vop_nsymlink(vp, ncp, Vattr(), b"x" * 4095, ROOT).rele()
    box.vfs.cache.drop(ncp)
    assert w.readlink(b"l") == b"x" * 4095


# --- memory -----------------------------------------------------------------------------------


def test_forced_unmount_frees_everything() -> None:
    # What if the file system goes while files are open: is every page free, do the files fail?
    box = Box()
    w = box.mount()
    open_file, unlinked = w.create(b"a"), w.create(b"b")
    w.write(open_file, 0, b"x" * 100_000)
    w.write(unlinked, 0, b"y" * 100_000)
    w.unlink(b"b")
    w.setx(b"a", b"k", b"v" * 5000)
    with errno(EBUSY):
        box.vfs.mounts.unmount(w.top.mount, halting=True)
    assert w.read(open_file, 0, 2) == b"xx"
    box.vfs.mounts.unmount(w.top.mount, MNT.FORCE, halting=True)
    assert box.pages.v_free_count == box.free
    with errno(EIO):
        w.read(open_file, 0, 2)
    open_file.drop()
    unlinked.drop()
    box.close()


@pytest.mark.parametrize("rounds", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_cyclic_garbage(rounds: int) -> None:
    # What if each operation is done many times and all is unmounted: is a cycle left?
    def count() -> int:
        return sum(isinstance(obj, TmpfsMount | TmpfsNode) for obj in gc.get_objects())

    gc.collect()
    before = count()
    box = Box()
    w = box.mount()
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            w.put(b"a", b"x" * 5000)
            w.mkdir(b"d")
            w.symlink(b"t", b"l")
            w.link(b"a", b"b")
            w.setx(b"a", b"k", b"v")
            w.rename(b"a", b"c")
            w.put(b"e")
            w.rename(b"c", b"e")
            w.rename(b"e", b"b", RENAME_EXCHANGE)
            w.ls()
            w.exists(b"none%d" % i)
            w.unlink(b"b")
            w.unlink(b"e")
            w.unlink(b"l")
            w.rmdir(b"d")
        w.check()
        assert len(tm_of(w).nodes) == 1
        garbage = gc.collect()
        assert garbage == 0, f"{garbage} objects in cycles"
        for i in range(50):
            w.put(b"f%d" % i, b"x")
        w.close()
        box.vfs.mounts.unmount(w.top.mount, halting=True)
        box.close()
        assert count() == before
    finally:
        gc.enable()


def test_small_nodes(box: Box) -> None:
    # What if a file is empty: does its node with its integers stay below 300 bytes?
    w = box.mount()
    w.put(b"a")
    w.put(b"b")
    node = tm_of(w).nodes[w.stat(b"a").fileid]
    other = tm_of(w).nodes[w.stat(b"b").fileid]
    assert not hasattr(node, "__dict__")
    own = {id(v): v for v in (getattr(node, s) for s in _slots(node)) if isinstance(v, int)}
    own = {key: v for key, v in own.items() if v > 256 and v is not other.mode}
    assert sys.getsizeof(node) + sum(sys.getsizeof(v) for v in own.values()) <= 300
    assert node.object is None  # type: ignore[attr-defined]
    assert node.ext is None


def _slots(obj: object) -> list[str]:
    return [slot for kind in type(obj).__mro__ for slot in getattr(kind, "__slots__", ())]


def test_files_survive_their_vnodes() -> None:
    # What if many more files than vnodes exist: do contents, numbers and listings stay?
    box = Box(16 << 20, maxvnodes=2000)
    w = box.mount(size="100%", nodes="10000")
    inos = {}
    for i in range(3000):
        name = b"%d" % i
        w.put(name, name)
        inos[name] = w.stat(name).fileid
        if i % 50 == 0:
            box.vfs.vnodes.vnlru_round()
    for _ in range(200):
        box.vfs.vnodes.vnlru_round()
    assert box.vfs.vnodes.numvnodes < 2500
    assert {entry: w.stat(entry).fileid for entry in w.ls(limit=500)} == inos
    assert all(w.get(name) == name for name in inos)
    w.check()
    w.close()
    box.close()


def test_one_page_for_one_byte() -> None:
    # What if a thousand files of one byte are made: is it one page each?
    box = Box(16 << 20)
    w = box.mount(size="100%")
    for i in range(1000):
        w.put(b"%d" % i, b"x")
    assert box.free - box.pages.v_free_count == 1000
    assert w.stat(b"0").bytes == PAGE_SIZE
    w.close()
    box.close()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_million_files() -> None:
    # What if a million files of one byte are made, listed and removed: a page each, all given back?
    number = 1_000_000
    box = Box(number * PAGE_SIZE + (64 << 20), maxvnodes=4_000_000)
    w = box.mount(size="100%", nodes="1100000")
    gc.disable()
    try:
        for i in range(number):
            _, file = sc.kern_create(box.vfs, w.top, b"%d" % i, 0o644, O_RDWR, ROOT)
            sc.kern_write(file, 0, b"x")
            file.drop()
        assert box.free - box.pages.v_free_count == number
        names = w.ls(limit=1000)
        assert len(names) == len(set(names)) == number
        for name in names:
            sc.kern_unlink(box.vfs, w.top, name, ROOT)
    finally:
        gc.enable()
    assert w.statfs().ffree == 1_099_999
    assert box.pages.v_free_count == box.free
    w.close()
    box.close()


def test_statistics(box: Box) -> None:
    # What if the figures are read: are they those of the files?
    w = box.mount(size="1m")
    w.put(b"a", b"x" * 5000)
    w.setx(b"a", b"key", b"v" * 7)
    w.put(b"b")
    stats = tm_of(w).statistics()
    assert (stats.pages_used, stats.nodes_inuse, stats.ext_bytes) == (3, 3, 10)
    assert stats.next_number == 5


def test_name_of_a_directory(box: Box) -> None:
    # What if a directory is asked for its own name, after moves, exchanges and its removal?
    w = box.mount()
    w.mkdir(b"a")
    w.mkdir(b"a/b")
    w.mkdir(b"c")
    dvp = w.vp(b"a/b").ref()
    ops = dvp.ops.use
    assert ops.vop_ndirname(dvp, ROOT) == b"b"
    w.rename(b"a/b", b"a/d")
    assert ops.vop_ndirname(dvp, ROOT) == b"d"
    w.rename(b"a/d", b"c")
    assert ops.vop_ndirname(dvp, ROOT) == b"c"
    w.rename(b"c", b"a", RENAME_EXCHANGE)
    assert ops.vop_ndirname(dvp, ROOT) == b"a"
    w.check()
    w.rmdir(b"a")
    assert ops.vop_ndirname(dvp, ROOT) is None
    dvp.rele()
    root = w.vp(b"")
    assert ops.vop_ndirname(root, ROOT) is None


def test_flags_bind_callers_the_host_has_checked(box: Box) -> None:
    # What if permissions are not asked for, because the host has: do the flags still hold?
    w = box.mount()
    vfs, root = box.vfs, w.top
    w.put(b"a", b"x")
    w.mkdir(b"d")
    w.setattr(b"a", flags=UF_IMMUTABLE)
    w.setattr(b"d", flags=UF_IMMUTABLE)
    place, inside = w.nch(b"a"), w.nch(b"d")
    calls: list[Any] = [
        lambda: sc.kern_unlink(vfs, root, b"a", ROOT, chk=False),
        lambda: sc.kern_rename(vfs, root, b"a", root, b"b", 0, ROOT, chk=False),
        lambda: sc.kern_link(vfs, place, root, b"b", ROOT, chk=False),
        lambda: sc.kern_open(vfs, place, O_RDWR, ROOT, chk=False),
        lambda: sc.kern_setattr(vfs, place, Vattr(mode=0), ROOT, chk=False),
        lambda: sc.kern_mkdir(vfs, inside, b"x", 0o755, ROOT, chk=False),
        lambda: sc.kern_create(vfs, inside, b"x", 0o644, O_RDWR, ROOT, chk=False),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(KError) as caught:
            call()
        assert caught.value.errno == EPERM, number
    w.setattr(b"a", flags=0)
    w.setattr(b"d", flags=0)


def test_an_access_list_is_set_by_the_owner(box: Box) -> None:
    # What if an owner who is not root gives his file an access list, and others try?
    owner, other = Ucred.of(1000, 1000), Ucred.of(1001, 1000)
    w = box.mount()
    w.put(b"f")
    w.mkdir(b"d")
    lst = Acl(6, 4, 0, ((other.uid, 6),), (), 6).pack()
    for path, name in ((b"f", XATTR_ACCESS), (b"d", XATTR_ACCESS), (b"d", XATTR_DEFAULT)):
        w.setattr(path, uid=owner.uid, gid=owner.gid)
        nch = w.nch(path)
        with errno(EPERM):
            sc.kern_setxattr(box.vfs, nch, SYSTEM, name, lst, 0, other)
        sc.kern_setxattr(box.vfs, nch, SYSTEM, name, lst, 0, owner)
        assert sc.kern_getxattr(box.vfs, nch, SYSTEM, name, other) == lst
        with errno(EPERM):
            sc.kern_removexattr(box.vfs, nch, SYSTEM, name, other)
        sc.kern_removexattr(box.vfs, nch, SYSTEM, name, owner)
        with errno(EPERM):
            sc.kern_setxattr(box.vfs, nch, SYSTEM, b"trusted.a", b"", 0, owner)
    w.setattr(b"f", flags=UF_IMMUTABLE)
    with errno(EPERM):
        sc.kern_setxattr(box.vfs, w.nch(b"f"), SYSTEM, XATTR_ACCESS, lst, 0, owner)
    w.setattr(b"f", flags=0)
    w.check()
    w.close()


def test_many_links_go_as_quickly_as_they_came(box: Box) -> None:
    # What if a file has 20,000 names: does each removal look through all the others?
    number = 20_000
    w = box.mount(nodes="30")
    w.put(b"a")
    nch, vp = w.nch(b"a"), w.vp(b"a")
    for i in range(number - 1):
        sc.kern_link(box.vfs, nch, w.top, b"l%d" % i, ROOT)
    assert vp.namecache_count == number
    assert vp.morenames is not None
    assert len(vp.morenames) == number - 1
    for name in (b"a", b"l7", b"l%d" % (number - 2), b"l0"):
        sc.kern_unlink(box.vfs, w.top, name, ROOT)
    assert vp.namecache_count == number - 4
    assert {ncp.name for ncp in vp.ncps()} == {b"l%d" % i for i in range(1, number - 2) if i != 7}
    assert all(ncp.vp is vp for ncp in vp.ncps())
    w.check()
    w.close()
    box.vfs.mounts.unmount(w.top.mount, halting=True)
    assert vp.ncps() == ()
    assert vp.morenames is None
    assert box.vfs.cache.numcache == 0


def test_a_single_name_needs_no_table(box: Box) -> None:
    # What if a file has one name, a second, and one again?
    w = box.mount()
    w.put(b"a")
    vp = w.vp(b"a")
    assert (vp.namecache_count, vp.morenames) == (1, None)
    w.link(b"a", b"b")
    assert vp.morenames is not None
    w.unlink(b"a")
    assert vp.morenames is None
    assert [ncp.name for ncp in vp.ncps()] == [b"b"]
    w.check()
    w.close()


def test_most_links() -> None:
    # What if a file has as many names as can be counted?
    box = Box(16 << 20)
    w = box.mount()
    w.put(b"a")
    for i in range(LINK_MAX - 1):
        sc.kern_link(box.vfs, w.nch(b"a"), w.top, b"l%d" % i, ROOT)
    with errno(EMLINK):
        w.link(b"a", b"more")
    assert w.stat(b"a").nlink == LINK_MAX
    w.check()
    w.close()
    box.close()


def test_most_subdirectories() -> None:
    # What if a directory has as many subdirectories as can be counted?
    box = Box(16 << 20)
    w = box.mount(nodes="40000")
    w.mkdir(b"d")
    at = w.nch(b"d")
    for i in range(LINK_MAX - 2):
        sc.kern_mkdir(box.vfs, at, b"%d" % i, 0o755, ROOT)
    with errno(EMLINK):
        w.mkdir(b"d/more")
    w.mkdir(b"e")
    with errno(EMLINK):
        w.rename(b"e", b"d/more")
    w.check()
    w.close()
    box.close()


def test_whiteout_stays_behind(box: Box) -> None:
    # What if a rename shall leave a whiteout: onto a free name, a taken one, and without an inode?
    w = box.mount(inodes="5")
    w.mkdir(b"d")
    w.put(b"a", b"A")
    w.rename(b"a", b"d/a", RENAME_WHITEOUT)
    at = w.stat(b"a")
    assert (at.type, at.rmajor, at.rminor, at.mode, at.nlink) == (VType.VCHR, 0, 0, 0, 1)
    assert w.get(b"d/a") == b"A"
    w.rename(b"d/a", b"a", RENAME_WHITEOUT)
    assert w.get(b"a") == b"A"
    assert w.stat(b"d/a").type is VType.VCHR
    w.put(b"full")
    with errno(ENOSPC):
        w.rename(b"a", b"b", RENAME_WHITEOUT)
    assert sorted(w.ls()) == [b"a", b"d", b"full"]
    with errno(EINVAL):
        w.rename(b"a", b"full", RENAME_WHITEOUT | RENAME_EXCHANGE)
    w.check()
