"""The engine of synthetic file systems, through the kern_* cores, on a tree made for the test."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfuser.kern.proc import CallerId
from dfuser.libkern.errno import (
    EACCES,
    EAGAIN,
    EBUSY,
    EFBIG,
    EINVAL,
    EIO,
    EMSGSIZE,
    ENOATTR,
    ENOENT,
    ENOMEM,
    ENOTDIR,
    EOPNOTSUPP,
    EPERM,
    EROFS,
    KError,
)
from dfuser.libkern.fcntl import O_CREAT, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt.block import Block
from dfuser.vfs import pseudofs
from dfuser.vfs.devfs.node import DevfsMount, DevfsNode
from dfuser.vfs.mountflags import MNT, VFCF
from dfuser.vfs.pseudofs import (
    ROOT_INO,
    InodeTable,
    PfsDir,
    PfsEntry,
    PfsFile,
    PfsMount,
    PfsNode,
    TextFile,
)
from dfuser.vfs.pseudofs_vnops import PfsVfsOps
from dfuser.vfs.syscalls import (
    kern_close,
    kern_create,
    kern_getxattr,
    kern_link,
    kern_listxattr,
    kern_lookup,
    kern_mkdir,
    kern_mknod,
    kern_open,
    kern_read,
    kern_readdir,
    kern_removexattr,
    kern_rename,
    kern_rmdir,
    kern_setattr,
    kern_setxattr,
    kern_symlink,
    kern_unlink,
    kern_write,
)
from dfuser.vfs.vattr import Vattr
from dfuser.vfs.vop import EXTATTR_NAMESPACE_SYSTEM, EXTATTR_NAMESPACE_USER

from .synth_world import ROOT, USER, SynthWorld


class LiveFile(PfsFile):
    """A file whose text is a value of a dictionary; a write replaces it."""

    __slots__ = ("dir", "name")

    def __init__(self, parent: LiveDir, name: str) -> None:
        super().__init__(parent.inodes.number((name, parent.births[name])), parent)
        self.dir = parent
        self.name = name

    def alive(self) -> bool:
        return self.name in self.dir.files

    def mode(self) -> int:
        return 0o600 if self.name.startswith("secret") else 0o644

    def extattrs(self) -> dict[bytes, bytes]:
        return {b"dfuser.descr": self.name.encode()}

    def read(self, cred: Ucred) -> bytes:
        self.dir.reads += 1
        return self.dir.files[self.name]

    def write(self, data: bytes, cred: Ucred) -> bytes | None:
        if data == b"bad":
            raise KError(EINVAL)
        if data == b"wait":
            raise Block(lambda: None, "testwt")  # type: ignore[arg-type, return-value]
        self.dir.files[self.name] = data
        return b"answer to " + data


class LiveDir(PfsDir):
    """A directory that shows a dictionary."""

    __slots__ = ("births", "files", "inodes", "reads", "serial")

    def __init__(self, inodes: InodeTable) -> None:
        super().__init__(ROOT_INO, None)
        self.inodes = inodes
        self.files: dict[str, bytes] = {}
        self.births: dict[str, int] = {}
        self.serial = 0
        self.reads = 0

    def add(self, name: str, data: bytes = b"") -> None:
        """Make a file; one of a name used before is a new file."""
        self.serial += 1
        self.births[name] = self.serial
        self.files[name] = data

    def lookup(self, name: bytes, cred: Ucred) -> PfsNode | None:
        text = name.decode()
        return LiveFile(self, text) if text in self.files else None

    def entries(self, cred: Ucred, after: int = 0) -> Iterable[PfsEntry]:
        return [LiveFile(self, name).entry(name.encode()) for name in self.files]


class LiveFs(PfsVfsOps):
    """Mounts a `LiveDir`."""

    def make_root(self, inodes: InodeTable) -> PfsDir:
        return LiveDir(inodes)


class World(SynthWorld):
    """The kernel with a live directory on /mnt."""

    def __init__(self) -> None:
        super().__init__()
        self.vfs.fstypes.register("live", LiveFs, VFCF.SYNTHETIC)
        self.mp = self.mount("live", "/mnt")
        self.live: LiveDir = self.mp.data.root


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 7, 4096])
def test_a_text_stays_as_it_was_at_open(world: World, piece: int) -> None:
    """What if the object changes while a reader takes its text in pieces?"""
    world.live.add("f", b"before " * 10)
    file = world.open("/mnt/f")
    first = bytes(kern_read(file, None, piece))
    world.live.files["f"] = b"after"
    assert first + b"".join(world.pieces(file, piece)) == b"before " * 10
    kern_close(file)
    assert world.read("/mnt/f") == b"after"
    assert world.live.reads == 2


def test_two_opens_have_two_texts(world: World) -> None:
    """What if two readers open the file at different moments?"""
    world.live.add("f", b"one")
    first = world.open("/mnt/f")
    world.live.files["f"] = b"two"
    second = world.open("/mnt/f")
    assert bytes(kern_read(second, 0, 10)) == b"two"
    assert bytes(kern_read(first, 0, 10)) == b"one"
    kern_close(first)
    kern_close(second)


def test_the_size_is_not_promised(world: World) -> None:
    """What if a program looks at the size before it reads?"""
    world.live.add("f", b"text")
    attrs = world.stat("/mnt/f")
    assert (attrs.size, attrs.nlink, attrs.uid, attrs.mode) == (0, 1, 0, 0o644)
    assert world.read("/mnt/f") == b"text"


def test_reading_past_the_end_is_the_end(world: World) -> None:
    """What if a read begins at or behind the end?"""
    world.live.add("f", b"text")
    file = world.open("/mnt/f")
    assert bytes(kern_read(file, 4, 10)) == b""
    assert bytes(kern_read(file, 1 << 40, 10)) == b""
    assert bytes(kern_read(file, 2, 10)) == b"xt"
    kern_close(file)


def test_an_open_file_outlives_its_object(world: World) -> None:
    """What if the object goes while somebody has its file open?"""
    world.live.add("f", b"text")
    file = world.open("/mnt/f")
    writer = world.open("/mnt/f", O_WRONLY)
    del world.live.files["f"]
    assert bytes(kern_read(file, 0, 10)) == b"text"
    assert world.errno(kern_write, writer, 0, b"x") == ENOENT
    assert world.errno(world.stat, "/mnt/f") == ENOENT
    kern_close(file)
    kern_close(writer)
    assert world.errno(world.read, "/mnt/f") == ENOENT


# --- writing -------------------------------------------------------------------------------------


def test_one_write_is_one_command_wherever_it_goes(world: World) -> None:
    """What if two commands are written through one descriptor, the second behind the first?"""
    world.live.add("f")
    file = world.open("/mnt/f", O_WRONLY)
    assert kern_write(file, None, b"first") == 5
    assert kern_write(file, None, b"second") == 6
    kern_close(file)
    assert world.live.files["f"] == b"second"


def test_the_answer_is_read_from_the_same_open(world: World) -> None:
    """What if a program writes a command and reads what came of it?"""
    world.live.add("f", b"status")
    file = world.open("/mnt/f", O_RDWR)
    assert bytes(kern_read(file, 0, 100)) == b"status"
    kern_write(file, 0, b"command")
    assert bytes(kern_read(file, 0, 100)) == b"answer to command"
    kern_close(file)


def test_errors_of_commands_are_errors_of_the_write(world: World) -> None:
    """What if a command fails, is too long, or must wait?"""
    world.live.add("f", b"status")
    assert world.errno(world.write, "/mnt/f", b"bad") == EINVAL
    assert world.errno(world.write, "/mnt/f", b"x" * (pseudofs.COMMAND_MAX + 1)) == EMSGSIZE
    with pytest.raises(Block) as block:
        world.write("/mnt/f", b"wait")
    assert block.value.wmesg == "testwt"
    assert world.live.files["f"] == b"status"


def test_a_shell_redirection_works(world: World) -> None:
    """What if `echo x > file` opens with O_CREAT and O_TRUNC?"""
    world.live.add("f")
    assert world.write("/mnt/f", b"x", flags=O_WRONLY | O_TRUNC) == 1
    place = world.hold("/mnt")
    nch, file = kern_create(world.vfs, place, b"f", 0o644, O_WRONLY | O_CREAT | O_TRUNC, ROOT)
    assert nch.ncp.name == b"f"
    kern_write(file, 0, b"y")
    kern_close(file)
    assert world.live.files["f"] == b"y"
    world.vfs.cache.drop_nch(place)


# --- permissions and refusals --------------------------------------------------------------------


def test_modes_are_enforced(world: World) -> None:
    """What if another user opens what is not for him?"""
    world.live.add("secret", b"x")
    world.live.add("open", b"y")
    assert world.errno(world.open, "/mnt/secret", O_RDONLY, USER) == EACCES
    assert world.read("/mnt/open", USER) == b"y"
    assert world.errno(world.open, "/mnt/open", O_WRONLY, USER) == EACCES
    assert world.read("/mnt/secret") == b"x"


def test_nothing_can_be_made_or_removed(world: World) -> None:
    """What if root tries everything that changes names?"""
    world.live.add("f")
    vfs, place, target = world.vfs, world.hold("/mnt"), world.hold("/mnt/f")
    attempts: list[tuple[Any, ...]] = [
        (kern_create, vfs, place, b"new", 0o644, O_WRONLY, ROOT),
        (kern_mkdir, vfs, place, b"new", 0o755, ROOT),
        (kern_mknod, vfs, place, b"new", 0o010644, 0, 0, ROOT),
        (kern_symlink, vfs, place, b"new", b"target", ROOT),
        (kern_link, vfs, target, place, b"new", ROOT),
        (kern_unlink, vfs, place, b"f", ROOT),
        (kern_rename, vfs, place, b"f", place, b"g", 0, ROOT),
    ]
    for func, *args in attempts:
        assert world.errno(func, *args) == EROFS, func
    assert world.errno(kern_rmdir, vfs, place, b"f", ROOT) in (EROFS, ENOTDIR)
    vfs.cache.drop_nch(target)
    vfs.cache.drop_nch(place)
    assert world.names("/mnt") == ["f"]


def test_attributes_are_the_nodes_own(world: World) -> None:
    """What if root changes owner, mode, flags, size or times?"""
    world.live.add("f")
    place = world.hold("/mnt/f")

    def set_to(**what: Any) -> int:
        return world.errno(kern_setattr, world.vfs, place, Vattr(**what), ROOT)

    assert set_to(mode=0o600) == EPERM
    assert set_to(uid=5) == EPERM
    assert set_to(flags=1) == EOPNOTSUPP
    assert set_to(size=0) == 0
    assert set_to(atime=1, mtime=1) == 0
    world.vfs.cache.drop_nch(place)
    place = world.hold("/mnt")
    assert set_to(mode=0o700) == EPERM
    world.vfs.cache.drop_nch(place)
    assert world.stat("/mnt/f").mode == 0o644


def test_extended_attributes(world: World) -> None:
    """What if somebody lists, reads, sets and removes extended attributes?"""
    world.live.add("f")
    vfs, place = world.vfs, world.hold("/mnt/f")
    user, system = EXTATTR_NAMESPACE_USER, EXTATTR_NAMESPACE_SYSTEM
    assert list(kern_listxattr(vfs, place, user, ROOT)) == [b"dfuser.descr"]
    assert kern_getxattr(vfs, place, user, b"dfuser.descr", ROOT) == b"f"
    assert kern_getxattr(vfs, place, user, b"user.dfuser.descr", ROOT) == b"f"
    assert world.errno(kern_getxattr, vfs, place, user, b"nope", ROOT) == ENOATTR
    assert world.errno(kern_getxattr, vfs, place, system, b"dfuser.descr", ROOT) == ENOATTR
    assert world.errno(kern_setxattr, vfs, place, user, b"x", b"y", 0, ROOT) == EPERM
    assert world.errno(kern_removexattr, vfs, place, user, b"dfuser.descr", ROOT) == EPERM
    assert world.errno(kern_removexattr, vfs, place, user, b"nope", ROOT) == ENOATTR
    vfs.cache.drop_nch(place)


# --- names ---------------------------------------------------------------------------------------


def test_a_name_that_appears_is_found(world: World) -> None:
    """What if a name is looked up in vain, then exists, goes, and exists again?"""
    for _ in range(3):
        assert world.errno(world.read, "/mnt/f") == ENOENT
        assert world.errno(world.read, "/mnt/f") == ENOENT
        world.live.add("f", b"here")
        assert world.read("/mnt/f") == b"here"
        del world.live.files["f"]


def test_a_file_of_an_old_name_is_a_new_file(world: World) -> None:
    """What if a file goes and another of the same name comes: do they share a number?"""
    world.live.add("f")
    before = world.stat("/mnt/f").fileid
    del world.live.files["f"]
    world.mp.data.forget(before)
    world.live.add("f")
    assert world.stat("/mnt/f").fileid != before


def test_the_parent_of_the_root_is_crossed(world: World) -> None:
    """What if a path goes up and down through the mount?"""
    world.live.add("f", b"x")
    assert world.read("/mnt/../mnt/./f") == b"x"
    assert world.errno(world.read, "/mnt/f/below") == ENOTDIR


def test_the_directory_cannot_be_read_as_a_file(world: World) -> None:
    """What if somebody lists a file or reads a directory?"""
    world.live.add("f")
    file = world.open("/mnt/f")
    assert world.errno(kern_readdir, file, 0, 10) == ENOTDIR
    kern_close(file)
    directory = world.open("/mnt")
    assert world.errno(kern_readdir, directory, -1, 10) == EINVAL
    kern_close(directory)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 20), unique=True, max_size=20),
    st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=30),
    st.integers(1, 4),
)
def test_what_stays_is_listed_exactly_once(
    start: list[int], changes: list[tuple[bool, int]], limit: int
) -> None:
    """What if names come and go between the pieces of a listing?"""
    world = World()
    for number in start:
        world.live.add(str(number))
    touched: set[str] = set()
    seen: list[str] = []
    steps = iter(changes)
    file = world.open("/mnt")
    cookie = 0
    while batch := kern_readdir(file, cookie, limit):
        seen += [entry.name.decode() for entry in batch]
        cookie = batch[-1].cookie
        for add, number in (step for step, _ in zip(steps, range(3), strict=False)):
            name = str(number)
            touched.add(name)
            if add and name not in world.live.files:
                world.live.add(name)
            elif not add:
                world.live.files.pop(name, None)
    kern_close(file)
    for name in [".", "..", *(str(n) for n in start if str(n) not in touched)]:
        assert seen.count(name) == 1
    world.close()


# --- limits --------------------------------------------------------------------------------------


def test_texts_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What if a text is too long, or too many long texts are open?"""
    monkeypatch.setattr(pseudofs, "CONTENT_MAX", 1000)
    world.mp.data.maxcontent = 2500
    world.live.add("big", b"x" * 1001)
    world.live.add("fits", b"x" * 1000)
    assert world.errno(world.open, "/mnt/big") == EFBIG
    files = [world.open("/mnt/fits") for _ in range(2)]
    assert world.errno(world.open, "/mnt/fits") == ENOMEM
    kern_close(files.pop())
    files.append(world.open("/mnt/fits"))
    for file in files:
        kern_close(file)
    stats = world.mp.ops.statistics(world.mp)  # type: ignore[attr-defined]
    assert (stats.content_bytes, stats.opens) == (0, 0)


def test_numbers_are_bounded_and_not_reused() -> None:
    """What if very many identities come by?"""
    table = InodeTable(limit=10)
    given_out = [table.number(key) for key in range(100)]
    assert len(set(given_out)) == 100
    assert (len(table), table.forgotten) == (10, 90)
    assert table.number(99) == given_out[99]
    assert table.number(0) > max(given_out)


def test_ten_thousand_opens_leave_nothing(world: World) -> None:
    """What if files come, are opened, and go, all day?"""
    before = world.vfs.vnodes.statistics().numvnodes
    opened = 0
    for number in range(2500):
        name = f"f{number}"
        world.live.add(name, b"text")
        for flags in (O_RDONLY, O_RDWR, O_WRONLY, O_RDONLY):
            file = world.open(f"/mnt/{name}", flags)
            opened += 1
            kern_close(file)
        ino = world.stat(f"/mnt/{name}").fileid
        del world.live.files[name]
        world.mp.data.forget(ino)
    assert opened == 10_000
    stats = world.mp.ops.statistics(world.mp)  # type: ignore[attr-defined]
    assert (stats.vnodes, stats.opens, stats.content_bytes) == (1, 0, 0)
    assert world.vfs.vnodes.statistics().numvnodes <= before + 2


def test_negative_names_do_not_pile_up(world: World) -> None:
    """What if ten thousand names are looked up that do not exist?"""
    place = world.hold("/mnt")
    for number in range(10_000):
        assert kern_lookup(world.vfs, place, b"n%d" % number, ROOT) is None
    world.vfs.cache.drop_nch(place)
    cache = world.vfs.cache.statistics()
    assert cache.numneg <= max(1024, cache.neglimit)


# --- mounting ------------------------------------------------------------------------------------


def test_mount_options_are_checked(world: World) -> None:
    """What if a mount is given an option it does not know, or is to be updated?"""
    assert world.errno(world.mount, "live", "/mnt2", color="red") == EINVAL
    assert world.errno(world.mount, "sysctlfs", "/mnt2", uid="root") == EINVAL
    assert world.errno(world.vfs.mounts.update, world.mp, MNT.RDONLY, {}, ROOT) == EOPNOTSUPP


def test_an_unmount_refuses_or_forces(world: World) -> None:
    """What if a file is open while the file system is unmounted?"""
    world.live.add("f", b"text")
    file = world.open("/mnt/f")
    assert world.errno(world.vfs.mounts.unmount, world.mp, 0) == EBUSY
    world.vfs.mounts.unmount(world.mp, MNT.FORCE)
    assert world.errno(kern_read, file, 0, 10) == EIO
    kern_close(file)
    assert not world.mp.vnodes
    assert world.names("/mnt") == []


@pytest.mark.parametrize("fstype", ["live", "devfs", "procfs", "sysctlfs", "kernfs"])
def test_an_unmounted_file_system_needs_no_garbage_collection(world: World, fstype: str) -> None:
    """What if automatic collections are off, as while mounted, and mounts come and go?"""

    def left() -> int:
        kinds = (PfsMount, DevfsMount, PfsNode, DevfsNode)
        return sum(isinstance(thing, kinds) for thing in gc.get_objects())

    def use() -> None:
        mp = world.mount(fstype, "/mnt2")
        for name in world.names("/mnt2"):
            world.stat(f"/mnt2/{name}")
        world.vfs.mounts.unmount(mp)

    gc.collect()
    gc.disable()
    try:
        before = left()
        for _ in range(5):
            use()
        assert left() == before
    finally:
        gc.enable()


def test_mounted_twice_shows_twice(world: World) -> None:
    """What if a tree is mounted at two places: are numbers and texts those of each?"""
    other = world.mount("live", "/mnt2").data.root
    world.live.add("f", b"one")
    other.add("f", b"two")
    assert (world.read("/mnt/f"), world.read("/mnt2/f")) == (b"one", b"two")
    assert world.stat("/mnt/f").fsid != world.stat("/mnt2/f").fsid


def test_statfs_and_vget(world: World) -> None:
    """What if the host asks for figures, or for a file by its number?"""
    world.live.add("f")
    ino = world.stat("/mnt/f").fileid
    assert world.mp.ops.vfs_statfs(world.mp).blocks == 2
    vp = world.mp.ops.vfs_vget(world.mp, ino)
    assert vp.ino == ino
    vp.rele()
    assert world.errno(world.mp.ops.vfs_vget, world.mp, 999_999) == ENOENT
    for fstype in ("sysctlfs", "kernfs", "procfs", "places"):
        mp = world.mount_of(fstype)
        for name in ("kern", "stats", "0", "mnt"):
            node = mp.data.root.lookup(name.encode(), ROOT)
            if node is not None:
                vp = mp.ops.vfs_vget(mp, node.ino)
                assert vp.ino == node.ino
                vp.rele()


def test_a_file_of_two_callables() -> None:
    """What if a text file has only one of its halves?"""
    reader = TextFile(20, None, lambda: "text")
    writer = TextFile(21, None, None, lambda data, cred: None)
    both = TextFile(22, None, lambda: b"\xff", lambda data, cred: data)
    assert [f.mode() for f in (reader, writer, both)] == [0o444, 0o200, 0o644]
    assert reader.read(ROOT) == b"text"
    assert both.write(b"x", ROOT) == b"x"
    for call in (lambda: reader.write(b"x", ROOT), lambda: writer.read(ROOT)):
        with pytest.raises(KError) as err:
            call()
        assert err.value.errno == EOPNOTSUPP


def test_looking_at_a_link_has_no_effect(world: World) -> None:
    """What if curproc is looked at, and what if no process can be had for the reader?"""
    world.procs.maxproc = 12
    world.procs.caller = lambda: CallerId(1, 1000, 1)
    assert world.stat("/proc/curproc").size == 0
    assert world.procs.statistics().created == 0
    while world.errno(world.procs.request_enter, 1000, 1, 1, "x") == 0:
        pass
    assert world.errno(world.readlink, "/proc/curproc") == EAGAIN
    assert world.stat("/proc/curproc").size == 0


def test_kern_open_of_a_held_place(world: World) -> None:
    """What if a place is held, its object goes, and it is opened then?"""
    world.live.add("f")
    place = world.hold("/mnt/f")
    del world.live.files["f"]
    assert world.errno(kern_open, world.vfs, place, O_RDONLY, ROOT) == ENOENT
    world.vfs.cache.drop_nch(place)
