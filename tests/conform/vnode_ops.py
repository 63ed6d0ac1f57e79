"""What every read-write file system must do, as cases that any of them can be put through.

A case is a function that gets a `World`: a booted VFS and a directory in it that belongs to
the file system under test. It works through the kern_* functions, as the bridge and system
calls do. `World.check` runs the file system's own invariants; the runner calls it after
each case, cases call it where something interesting has just happened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dfuser.hw.clock import VirtualClock
from dfuser.libkern import acl
from dfuser.libkern.acl import Acl
from dfuser.libkern.errno import (
    EACCES,
    EEXIST,
    EFBIG,
    EINVAL,
    EISDIR,
    ENAMETOOLONG,
    ENOATTR,
    ENOENT,
    ENOTDIR,
    ENOTEMPTY,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    EXDEV,
    KError,
)
from dfuser.libkern.fcntl import (
    F_POSIX,
    F_RDLCK,
    F_SETLK,
    F_WRLCK,
    O_APPEND,
    O_RDONLY,
    O_RDWR,
    O_TRUNC,
    O_WRONLY,
)
from dfuser.libkern.klist import (
    NOTE_ATTRIB,
    NOTE_DELETE,
    NOTE_EXTEND,
    NOTE_LINK,
    NOTE_RENAME,
    NOTE_WRITE,
    HookKnote,
)
from dfuser.libkern.stat import (
    DT_DIR,
    DT_LNK,
    DT_REG,
    S_IFBLK,
    S_IFCHR,
    S_IFIFO,
    S_IFSOCK,
    SF_IMMUTABLE,
    UF_APPEND,
    UF_IMMUTABLE,
    UF_NODUMP,
    UF_NOUNLINK,
    VType,
)
from dfuser.libkern.ucred import Ucred
from dfuser.vfs import syscalls as sc
from dfuser.vfs.file import File
from dfuser.vfs.lockf import Flock
from dfuser.vfs.namecache import NcHandle
from dfuser.vfs.vattr import Dirent, Statfs, Vattr
from dfuser.vfs.vfs import Vfs
from dfuser.vfs.vnode import Vnode
from dfuser.vfs.vop import (
    EXTATTR_CREATE,
    EXTATTR_NAMESPACE_SYSTEM,
    EXTATTR_NAMESPACE_USER,
    EXTATTR_REPLACE,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
)

ROOT = Ucred.root()
ALICE = Ucred.of(1001, 1001, (500,))
BOB = Ucred.of(1002, 1002)
USER, SYSTEM = EXTATTR_NAMESPACE_USER, EXTATTR_NAMESPACE_SYSTEM
SECOND = 1_000_000_000
OFF_MAX = (1 << 63) - 1

Case = Callable[["World"], None]
CASES: list[Case] = []


def case(function: Case) -> Case:
    """Add a case to the suite."""
    CASES.append(function)
    return function


class _Errno:
    """See `errno`."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, traceback: object) -> bool:
        assert isinstance(error, KError), f"expected errno {self.number}, got {error!r}"
        assert error.errno == self.number, f"expected errno {self.number}, got {error}"
        return True


def errno(number: int) -> _Errno:
    """What is inside ``with errno(ENOENT):`` must fail with that errno."""
    return _Errno(number)


class World:
    """A VFS with a directory of the file system under test. Paths are relative to it.

    Args:
        vfs: the VFS, on a virtual clock.
        top: the directory; the world takes over one hold on it.
        check: the file system's own invariants.
    """

    def __init__(self, vfs: Vfs, top: NcHandle, check: Callable[[], None]) -> None:
        self.vfs = vfs
        self.top = top
        self.check = check
        assert isinstance(vfs.clock, VirtualClock)
        self.clock = vfs.clock

    def close(self) -> None:
        """Let the directory go."""
        self.vfs.cache.drop_nch(self.top)

    def tick(self, ns: int = SECOND) -> int:
        """Let time pass; returns the time it is then."""
        self.clock.advance(ns)
        return self.vfs.now()

    # --- places --------------------------------------------------------------------------

    def nch(self, path: bytes, cred: Ucred = ROOT) -> NcHandle:
        """The place of a path, borrowed; ENOENT when there is nothing."""
        at = self.top
        for name in path.split(b"/") if path else ():
            found = sc.kern_lookup(self.vfs, at, name, cred)
            if found is None:
                raise KError(ENOENT)
            at = found
        return at

    def split(self, path: bytes) -> tuple[NcHandle, bytes]:
        """The directory of a path, borrowed, and its last name."""
        directory, _, name = path.rpartition(b"/")
        return self.nch(directory), name

    def vp(self, path: bytes) -> Vnode:
        """The vnode of a path, borrowed."""
        vp = self.nch(path).ncp.vp
        assert vp is not None
        return vp

    def exists(self, path: bytes) -> bool:
        """Whether the path leads to something."""
        try:
            self.nch(path)
        except KError:
            return False
        return True

    # --- making --------------------------------------------------------------------------

    def mkdir(self, path: bytes, mode: int = 0o755, cred: Ucred = ROOT) -> None:
        sc.kern_mkdir(self.vfs, *self.split(path), mode, cred)

    def mknod(self, path: bytes, mode: int, rdev: tuple[int, int] = (0, 0)) -> None:
        sc.kern_mknod(self.vfs, *self.split(path), mode, *rdev, ROOT)

    def open(self, path: bytes, flags: int = O_RDWR, cred: Ucred = ROOT) -> File:
        return sc.kern_open(self.vfs, self.nch(path), flags, cred)

    def create(
        self, path: bytes, mode: int = 0o644, cred: Ucred = ROOT, flags: int = O_RDWR
    ) -> File:
        return sc.kern_create(self.vfs, *self.split(path), mode, flags, cred)[1]

    def put(self, path: bytes, data: bytes = b"", mode: int = 0o644, cred: Ucred = ROOT) -> None:
        """Make a file with these contents, or give them to the one there."""
        file = self.open(path, O_WRONLY | O_TRUNC) if self.exists(path) else None
        file = file or self.create(path, mode, cred)
        if data:
            assert self.write(file, 0, data) == len(data)
        file.drop()

    def symlink(self, target: bytes, path: bytes, cred: Ucred = ROOT) -> None:
        sc.kern_symlink(self.vfs, *self.split(path), target, cred)

    def link(self, old: bytes, new: bytes, cred: Ucred = ROOT) -> None:
        sc.kern_link(self.vfs, self.nch(old), *self.split(new), cred)

    def unlink(self, path: bytes, cred: Ucred = ROOT) -> None:
        sc.kern_unlink(self.vfs, *self.split(path), cred)

    def rmdir(self, path: bytes, cred: Ucred = ROOT) -> None:
        sc.kern_rmdir(self.vfs, *self.split(path), cred)

    def rename(self, old: bytes, new: bytes, flags: int = 0, cred: Ucred = ROOT) -> None:
        sc.kern_rename(self.vfs, *self.split(old), *self.split(new), flags, cred)

    # --- contents and attributes ------------------------------------------------------------

    def read(self, file: File, offset: int, size: int) -> bytes:
        return bytes(sc.kern_read(file, offset, size))

    def write(self, file: File, offset: int, data: bytes) -> int:
        return sc.kern_write(file, offset, data)

    def get(self, path: bytes) -> bytes:
        """The whole contents of a file."""
        file = self.open(path, O_RDONLY)
        data = self.read(file, 0, self.stat(path).size or 0)
        file.drop()
        return data

    def readlink(self, path: bytes) -> bytes:
        return sc.kern_readlink(self.vfs, self.nch(path), ROOT)

    def stat(self, path: bytes) -> Vattr:
        return sc.kern_stat(self.vfs, self.nch(path))

    def mode(self, path: bytes) -> int:
        """Permission bits of a path."""
        mode = self.stat(path).mode
        assert mode is not None
        return mode

    def setattr(self, path: bytes, cred: Ucred = ROOT, **what: Any) -> None:
        sc.kern_setattr(self.vfs, self.nch(path), Vattr(**what), cred)

    def statfs(self) -> Statfs:
        return sc.kern_statfs(self.vfs, self.top)

    def readdir(self, path: bytes, cookie: int = 0, limit: int = 100) -> list[Dirent]:
        """One batch of a listing."""
        directory = self.open(path, O_RDONLY)
        entries = list(sc.kern_readdir(directory, cookie, limit))
        directory.drop()
        return entries

    def ls(self, path: bytes = b"", limit: int = 7) -> list[bytes]:
        """Every name in a directory but the dots, in listing order."""
        names: list[bytes] = []
        cookie = 0
        while part := self.readdir(path, cookie, limit):
            names += [entry.name for entry in part]
            cookie = part[-1].cookie
        assert names[:2] == [b".", b".."]
        return names[2:]

    # --- extended attributes ------------------------------------------------------------------

    def setx(
        self,
        path: bytes,
        name: bytes,
        value: bytes,
        flags: int = 0,
        space: int = USER,
        cred: Ucred = ROOT,
    ) -> None:
        sc.kern_setxattr(self.vfs, self.nch(path), space, name, value, flags, cred)

    def getx(self, path: bytes, name: bytes, space: int = USER) -> bytes:
        return sc.kern_getxattr(self.vfs, self.nch(path), space, name, ROOT)

    def rmx(self, path: bytes, name: bytes, space: int = USER, cred: Ucred = ROOT) -> None:
        sc.kern_removexattr(self.vfs, self.nch(path), space, name, cred)

    def listx(self, path: bytes, space: int = USER) -> list[bytes]:
        return list(sc.kern_listxattr(self.vfs, self.nch(path), space, ROOT))


# --- names ----------------------------------------------------------------------------------


@case
def create_and_look_up(w: World) -> None:
    # What if a file is created, looked up, created again?
    w.put(b"a", b"x")
    assert w.stat(b"a").type is VType.VREG
    assert w.stat(b"a").nlink == 1
    with errno(EEXIST):
        w.mkdir(b"a")
    with errno(ENOENT):
        w.nch(b"b")
    w.put(b"b")
    assert w.stat(b"b").fileid != w.stat(b"a").fileid
    with errno(ENOTDIR):
        w.nch(b"a/x")
    with errno(ENOENT):
        w.mkdir(b"none/x")


@case
def names_of_any_bytes(w: World) -> None:
    # What if names are not text, look like options, or are as long as may be, and one longer?
    names = [b"\xff\xfe", b"-rf", b" ", b"a\nb", b"...", b"x" * 255, "käse".encode()]
    for name in names:
        w.put(name, name)
    assert sorted(w.ls()) == sorted(names)
    for name in names:
        assert w.get(name) == name
    long = b"x" * 256
    for call in (w.put, w.mkdir, w.unlink, w.rmdir):
        with errno(ENAMETOOLONG):
            call(long)
    with errno(ENAMETOOLONG):
        w.symlink(b"t", long)
    with errno(ENAMETOOLONG):
        w.link(b"-rf", long)
    with errno(ENAMETOOLONG):
        w.rename(b"-rf", long)


@case
def link_counts_of_directories(w: World) -> None:
    # What if directories come, go, move: are the counts those of names, dots and double dots?
    base = w.stat(b"").nlink
    w.mkdir(b"d")
    w.mkdir(b"e")
    assert w.stat(b"").nlink == base + 2
    w.mkdir(b"d/s")
    assert (w.stat(b"d").nlink, w.stat(b"d/s").nlink, w.stat(b"e").nlink) == (3, 2, 2)
    w.rename(b"d/s", b"e/s")
    assert (w.stat(b"d").nlink, w.stat(b"e").nlink) == (2, 3)
    up = w.readdir(b"e/s")[1]
    assert (up.name, up.ino) == (b"..", w.stat(b"e").fileid)
    w.mkdir(b"d/s")
    w.rename(b"d/s", b"e/s")
    assert (w.stat(b"d").nlink, w.stat(b"e").nlink) == (2, 3)
    w.rmdir(b"e/s")
    w.rmdir(b"e")
    w.rmdir(b"d")
    assert w.stat(b"").nlink == base


@case
def hard_links(w: World) -> None:
    # What if a file has three names, in two directories, and loses them one by one?
    w.put(b"a", b"data")
    w.mkdir(b"d")
    w.link(b"a", b"b")
    w.link(b"b", b"d/c")
    assert w.stat(b"a").nlink == 3
    assert w.stat(b"d/c").fileid == w.stat(b"a").fileid
    w.unlink(b"a")
    assert w.stat(b"b").nlink == 2
    w.unlink(b"b")
    assert w.get(b"d/c") == b"data"
    w.unlink(b"d/c")
    with errno(ENOENT):
        w.link(b"d/c", b"z")
    w.put(b"a")
    with errno(EPERM):
        w.link(b"d", b"e")
    with errno(EEXIST):
        w.link(b"a", b"d")


@case
def remove_the_wrong_kind(w: World) -> None:
    # What if a directory is unlinked, a file rmdir'ed, a full directory removed?
    w.mkdir(b"d")
    w.put(b"d/f")
    with errno(ENOTEMPTY):
        w.rmdir(b"d")
    with errno(ENOTDIR):
        w.rmdir(b"d/f")
    try:
        w.unlink(b"d")
    except KError as error:
        removed = error.errno
    else:
        removed = 0
    assert removed in (EISDIR, EPERM)
    with errno(ENOENT):
        w.unlink(b"none")
    with errno(ENOENT):
        w.rmdir(b"none")
    w.unlink(b"d/f")
    w.rmdir(b"d")


@case
def unlinked_file_lives_while_open(w: World) -> None:
    # What if an open file loses its name: does it live until the close, and not longer?
    before = w.statfs()
    file = w.create(b"a")
    w.write(file, 0, b"x" * 10_000)
    w.unlink(b"a")
    assert not w.exists(b"a")
    w.write(file, 10_000, b"y")
    assert w.read(file, 9_999, 5) == b"xy"
    assert file.vp.ops.use.vop_getattr(file.vp).nlink == 0
    w.put(b"a", b"other")
    assert w.read(file, 0, 3) == b"xxx"
    w.check()
    file.drop()
    w.unlink(b"a")
    assert w.statfs() == before


@case
def removed_directory_takes_no_names(w: World) -> None:
    # What if a directory is removed while somebody is in it?
    w.mkdir(b"d")
    inside = w.open(b"d", O_RDONLY)
    w.rmdir(b"d")
    with errno(ENOENT):
        sc.kern_mkdir(w.vfs, inside.nch, b"x", 0o755, ROOT)
    assert [entry.name for entry in sc.kern_readdir(inside, 0, 10)] in ([], [b".", b".."])
    w.check()
    inside.drop()


# --- renaming -------------------------------------------------------------------------------


@case
def rename_over(w: World) -> None:
    # What if a name is moved onto another, of the same kind and of another?
    w.put(b"a", b"A")
    w.put(b"b", b"B")
    ino = w.stat(b"a").fileid
    w.rename(b"a", b"b")
    assert w.get(b"b") == b"A"
    assert w.stat(b"b").fileid == ino
    assert not w.exists(b"a")
    w.mkdir(b"d")
    w.mkdir(b"e")
    with errno(EISDIR):
        w.rename(b"b", b"d")
    with errno(ENOTDIR):
        w.rename(b"d", b"b")
    w.put(b"e/f")
    with errno(ENOTEMPTY):
        w.rename(b"d", b"e")
    w.rename(b"e", b"d")
    assert w.ls(b"d") == [b"f"]
    with errno(ENOENT):
        w.rename(b"none", b"x")


@case
def rename_into_itself(w: World) -> None:
    # What if a directory shall move below itself, or a name onto itself or a link of itself?
    w.mkdir(b"d")
    w.mkdir(b"d/e")
    with errno(EINVAL):
        w.rename(b"d", b"d/e/f")
    with errno(EINVAL):
        w.rename(b"d", b"d/x")
    w.rename(b"d", b"d")
    w.put(b"a")
    w.link(b"a", b"b")
    w.rename(b"a", b"b")
    assert w.exists(b"a")
    assert w.stat(b"b").nlink == 2


@case
def rename_flags(w: World) -> None:
    # What if the rename must not replace, or shall exchange?
    w.put(b"a", b"A")
    w.put(b"b", b"B")
    with errno(EEXIST):
        w.rename(b"a", b"b", RENAME_NOREPLACE)
    w.rename(b"a", b"c", RENAME_NOREPLACE)
    w.rename(b"c", b"a", RENAME_NOREPLACE)
    w.rename(b"a", b"b", RENAME_EXCHANGE)
    assert (w.get(b"a"), w.get(b"b")) == (b"B", b"A")
    with errno(ENOENT):
        w.rename(b"a", b"none", RENAME_EXCHANGE)
    with errno(EINVAL):
        w.rename(b"a", b"b", RENAME_EXCHANGE | RENAME_NOREPLACE)


@case
def exchange_file_and_directory(w: World) -> None:
    # What if a file and a directory of different parents are exchanged: counts and double dots?
    w.mkdir(b"p")
    w.mkdir(b"p/d")
    w.put(b"p/d/in")
    w.mkdir(b"q")
    w.put(b"q/f", b"F")
    w.rename(b"p/d", b"q/f", RENAME_EXCHANGE)
    assert w.get(b"p/d") == b"F"
    assert w.ls(b"q/f") == [b"in"]
    assert (w.stat(b"p").nlink, w.stat(b"q").nlink) == (2, 3)
    assert w.readdir(b"q/f")[1].ino == w.stat(b"q").fileid
    with errno(EINVAL):
        w.rename(b"q", b"q/f", RENAME_EXCHANGE)


@case
def rename_keeps_open_files(w: World) -> None:
    # What if an open file is renamed and the target was open too?
    w.put(b"a", b"A")
    w.put(b"b", b"B")
    one, other = w.open(b"a"), w.open(b"b")
    w.rename(b"a", b"b")
    assert (w.read(one, 0, 1), w.read(other, 0, 1)) == (b"A", b"B")
    assert w.vfs.cache.fullpath(one.nch).endswith(b"/b")
    one.drop()
    other.drop()


# --- listing --------------------------------------------------------------------------------


@case
def listing_has_types_and_numbers(w: World) -> None:
    # What if a directory with one of each kind is listed: do types and numbers agree with stat?
    w.put(b"reg")
    w.mkdir(b"dir")
    w.symlink(b"reg", b"lnk")
    entries = {entry.name: entry for entry in w.readdir(b"")}
    assert entries[b"."].ino == w.stat(b"").fileid
    kinds = {b"reg": DT_REG, b"dir": DT_DIR, b"lnk": DT_LNK, b".": DT_DIR, b"..": DT_DIR}
    assert {name: entry.dtype for name, entry in entries.items()} == kinds
    for name in (b"reg", b"dir", b"lnk"):
        assert entries[name].ino == w.stat(name).fileid
    vp = w.vp(b"")
    for entry in vp.ops.use.vop_readdir(vp, 0, 100, ROOT, True):
        if entry.vattr is not None:
            assert entry.vattr.fileid == entry.ino


@case
def listing_while_it_changes(w: World) -> None:
    # What if names come and go during a listing: is each that was there throughout seen once?
    stay = [b"s%03d" % i for i in range(60)]
    for name in stay:
        w.put(name)
        w.put(b"go" + name)
    seen: list[bytes] = []
    cookie, step = 0, 0
    while part := w.readdir(b"", cookie, 7):
        cookie = part[-1].cookie
        seen += [entry.name for entry in part]
        step += 1
        for name in stay[step * 5 : step * 5 + 5]:
            if w.exists(b"go" + name):
                w.unlink(b"go" + name)
        if step < 9:
            w.put(b"new%d" % step)
            w.rename(b"new%d" % step, b"newer%d" % step)
    assert len(seen) == len(set(seen))
    assert set(stay) <= set(seen)


@case
def listing_from_a_removed_place(w: World) -> None:
    # What if the entry a reader had last is removed, and the whole rest too?
    for i in range(10):
        w.put(b"%d" % i)
    part = w.readdir(b"", 0, 6)
    w.unlink(part[-1].name)
    left = [entry.name for entry in w.readdir(b"", part[-1].cookie)]
    assert len(left) == 6
    for name in left:
        w.unlink(name)
    assert w.readdir(b"", part[-1].cookie) == []


@case
def replaced_name_keeps_its_place(w: World) -> None:
    # What if a name is replaced by rename during a listing that has not reached it yet?
    w.put(b"new")
    w.put(b"mid")
    w.put(b"name")
    part = w.readdir(b"", 0, 3)
    assert part[-1].name == b"new"
    w.rename(b"new", b"name")
    assert sorted(e.name for e in w.readdir(b"", part[-1].cookie)) == [b"mid", b"name"]


# --- contents -------------------------------------------------------------------------------


@case
def read_and_write(w: World) -> None:
    # What if bytes are written in pieces, over page borders, with holes between?
    file = w.create(b"a")
    model = bytearray()
    for offset, size in ((0, 10), (4090, 20), (70_000, 5000), (3, 5), (65_536, 131_072), (0, 0)):
        data = bytes((offset + i) % 251 for i in range(size))
        assert w.write(file, offset, data) == size
        if size:
            model.extend(bytes(max(0, offset + size - len(model))))
            model[offset : offset + size] = data
        assert w.stat(b"a").size == len(model)
    assert w.read(file, 0, 10**6) == model
    assert w.read(file, 4000, 200) == model[4000:4200]
    assert w.read(file, len(model), 10) == b""
    assert w.read(file, len(model) + 5, 10) == b""
    file.drop()


@case
def truncate(w: World) -> None:
    # What if a file is cut inside a page and grown again: are the bytes gone?
    file = w.create(b"a")
    w.write(file, 0, b"x" * 9000)
    w.setattr(b"a", size=4100)
    w.setattr(b"a", size=9000)
    assert w.read(file, 0, 9000) == b"x" * 4100 + bytes(4900)
    w.setattr(b"a", size=0)
    assert w.stat(b"a").bytes == 0
    w.setattr(b"a", size=1 << 40)
    assert w.read(file, (1 << 40) - 3, 10) == bytes(3)
    with errno(EINVAL):
        w.setattr(b"a", size=-1)
    w.mkdir(b"d")
    with errno(EISDIR):
        w.setattr(b"d", size=0)
    file.drop()


@case
def append(w: World) -> None:
    # What if two opens append by turns: is each write at the end?
    w.put(b"a", b"0")
    one, other = w.open(b"a", O_WRONLY | O_APPEND), w.open(b"a", O_WRONLY | O_APPEND)
    for i in range(5):
        w.write(one, 0, b"a%d" % i)
        w.write(other, 0, b"b%d" % i)
    one.drop()
    other.drop()
    assert w.get(b"a") == b"0" + b"".join(b"a%db%d" % (i, i) for i in range(5))


@case
def truncated_by_open(w: World) -> None:
    # What if a file is opened with O_TRUNC while another reads it?
    w.put(b"a", b"x" * 5000)
    reader = w.open(b"a", O_RDONLY)
    w.open(b"a", O_WRONLY | O_TRUNC).drop()
    assert w.read(reader, 0, 10) == b""
    reader.drop()


@case
def offsets_to_the_end(w: World) -> None:
    # What if the last byte an offset can name is written, and one more?
    file = w.create(b"a")
    assert w.write(file, OFF_MAX - 1, b"z") == 1
    assert w.stat(b"a").size == OFF_MAX
    assert w.read(file, OFF_MAX - 1, 9) == b"z"
    with errno(EFBIG):
        w.write(file, OFF_MAX, b"z")
    file.drop()


@case
def holes(w: World) -> None:
    # What if data and holes are looked for, punched, zeroed and filled?
    w.put(b"a", b"")
    file = w.open(b"a")
    w.write(file, 0, b"x" * 4096)
    w.write(file, 40_960, b"y" * 4096)
    vp, ops = file.vp, file.vp.ops.use
    assert ops.vop_seek(vp, 0, True) == 4096
    assert ops.vop_seek(vp, 4096, False) == 40_960
    with errno(ENXIO):
        ops.vop_seek(vp, 45_056, False)
    used = w.stat(b"a").bytes
    ops.vop_allocate(vp, 0, 4096, 0x02 | 0x01, ROOT)
    assert w.stat(b"a").bytes == used - 4096
    assert ops.vop_seek(vp, 0, False) == 40_960
    assert w.read(file, 0, 4096) == bytes(4096)
    ops.vop_allocate(vp, 40_970, 10, 0x10, ROOT)
    assert w.read(file, 40_965, 20) == b"y" * 5 + bytes(10) + b"y" * 5
    ops.vop_allocate(vp, 0, 100_000, 0x01, ROOT)
    assert w.stat(b"a").size == 45_056
    ops.vop_allocate(vp, 0, 100_000, 0, ROOT)
    assert w.stat(b"a").size == 100_000
    with errno(EOPNOTSUPP):
        ops.vop_allocate(vp, 0, 4096, 0x08, ROOT)
    with errno(EINVAL):
        ops.vop_allocate(vp, 0, 0, 0, ROOT)
    file.drop()


@case
def read_a_directory(w: World) -> None:
    # What if a directory is opened for writing, or read like a file?
    w.mkdir(b"d")
    with errno(EISDIR):
        w.open(b"d", O_RDWR)
    file = w.open(b"d", O_RDONLY)
    with errno(EISDIR):
        w.read(file, 0, 10)
    file.drop()


@case
def symbolic_links(w: World) -> None:
    # What if a link is made, read, and is as long as the file system allows?
    w.symlink(b"target/of link", b"l")
    assert w.readlink(b"l") == b"target/of link"
    at = w.stat(b"l")
    assert (at.type, at.size) == (VType.VLNK, 14)
    w.symlink(b"x" * 1023, b"long")
    assert w.readlink(b"long") == b"x" * 1023
    with errno(ENAMETOOLONG):
        w.symlink(b"x" * 5000, b"longer")
    w.put(b"f")
    with errno(EINVAL):
        w.readlink(b"f")


@case
def other_kinds(w: World) -> None:
    # What if a FIFO, a socket and devices are made?
    kinds = [
        (b"fifo", S_IFIFO, VType.VFIFO, (0, 0)),
        (b"sock", S_IFSOCK, VType.VSOCK, (0, 0)),
        (b"chr", S_IFCHR, VType.VCHR, (1, 3)),
        (b"blk", S_IFBLK, VType.VBLK, (8, 260)),
    ]
    for name, fmt, vtype, rdev in kinds:
        w.mknod(name, fmt | 0o600, rdev)
        at = w.stat(name)
        assert (at.type, at.rmajor, at.rminor) == (vtype, *rdev)
        w.unlink(name)


# --- times ----------------------------------------------------------------------------------


def _times(w: World, path: bytes) -> tuple[int, int, int]:
    at = w.stat(path)
    assert at.atime is not None
    assert at.mtime is not None
    assert at.ctime is not None
    return at.atime, at.mtime, at.ctime


@case
def times_of_a_new_file(w: World) -> None:
    # What if a file is made: are its four times now, and its directory's two?
    now = w.tick()
    w.put(b"a")
    at = w.stat(b"a")
    assert {at.atime, at.mtime, at.ctime, at.btime} == {now}
    assert _times(w, b"")[1:] == (now, now)


CHANGES: list[tuple[str, Callable[[World], None], str]] = [
    ("write", lambda w: w.put(b"d/a", b"x"), "mc"),
    ("truncate", lambda w: w.setattr(b"d/a", size=1), "mc"),
    ("chmod", lambda w: w.setattr(b"d/a", mode=0o600), "c"),
    ("chown", lambda w: w.setattr(b"d/a", uid=5), "c"),
    ("chflags", lambda w: w.setattr(b"d/a", flags=UF_NODUMP), "c"),
    ("link", lambda w: w.link(b"d/a", b"d/l"), "c"),
    ("rename", lambda w: w.rename(b"d/a", b"d/n"), "c"),
    ("setxattr", lambda w: w.setx(b"d/a", b"k", b"v"), "c"),
]


@case
def times_of_changes(w: World) -> None:
    # What if a file is changed in each way: which of mtime and ctime move, of it and its directory?
    for what, change, moved in CHANGES:
        w.mkdir(b"d")
        w.put(b"d/a", b"old")
        a0, m0, c0 = _times(w, b"d/a")
        d0 = _times(w, b"d")
        now = w.tick()
        change(w)
        path = b"d/n" if what == "rename" else b"d/a"
        want = (a0, now if "m" in moved else m0, now if "c" in moved else c0)
        assert _times(w, path) == want, what
        names = what in ("link", "rename")
        assert _times(w, b"d") == ((d0[0], now, now) if names else d0), what
        for name in w.ls(b"d"):
            w.unlink(b"d/" + name)
        w.rmdir(b"d")


@case
def times_of_removal(w: World) -> None:
    # What if one of two names goes: does the other's ctime move, by unlink and by rename over it?
    w.mkdir(b"d")
    w.put(b"d/a")
    w.link(b"d/a", b"keep")
    now = w.tick()
    w.unlink(b"d/a")
    assert _times(w, b"keep")[2] == now
    assert _times(w, b"d")[1:] == (now, now)
    w.link(b"keep", b"d/b")
    w.put(b"d/x")
    now = w.tick()
    w.rename(b"d/x", b"d/b")
    assert _times(w, b"keep")[2] == now


@case
def set_times(w: World) -> None:
    # What if times are set, to the nanosecond, one alone, and to now?
    w.put(b"a")
    w.setattr(b"a", atime=1_000_000_007, mtime=-5)
    assert _times(w, b"a")[:2] == (1_000_000_007, -5)
    now = w.tick()
    w.setattr(b"a", mtime=77)
    assert _times(w, b"a") == (1_000_000_007, 77, now)
    w.setattr(b"a", atime_now=True, mtime_now=True)
    assert _times(w, b"a") == (now, now, now)


@case
def access_time(w: World) -> None:
    # What if a file is read at once, again, after a change, and a day later?
    w.put(b"a", b"x")
    file = w.open(b"a", O_RDONLY)
    first = w.tick()
    w.read(file, 0, 1)
    assert _times(w, b"a")[0] == first
    w.tick()
    w.read(file, 0, 1)
    assert _times(w, b"a")[0] == first
    w.setattr(b"a", mode=0o600)
    second = w.tick()
    w.read(file, 0, 1)
    assert _times(w, b"a")[0] == second
    third = w.tick(25 * 3600 * SECOND)
    w.read(file, 0, 1)
    assert _times(w, b"a")[0] == third
    file.drop()
    w.mkdir(b"d")
    now = w.tick()
    w.readdir(b"d")
    assert _times(w, b"d")[0] == now
    w.symlink(b"x", b"l")
    now = w.tick()
    w.readlink(b"l")
    assert _times(w, b"l")[0] == now


# --- owners, modes, flags -------------------------------------------------------------------


@case
def owner_and_group_of_new_files(w: World) -> None:
    # What if another user creates, in a plain directory and in a set-gid one?
    w.mkdir(b"plain")
    w.setattr(b"plain", mode=0o777)
    w.mkdir(b"team")
    w.setattr(b"team", mode=0o2777, gid=500)
    for path, gid in ((b"plain", ALICE.gid), (b"team", 500)):
        w.put(path + b"/f", mode=0o640, cred=ALICE)
        w.mkdir(path + b"/d", 0o750, ALICE)
        w.symlink(b"t", path + b"/l", ALICE)
        for name in (b"/f", b"/d", b"/l"):
            at = w.stat(path + name)
            assert (at.uid, at.gid) == (ALICE.uid, gid), path + name
        assert w.mode(path + b"/f") == 0o640
        assert w.mode(path + b"/d") == (0o750 if path == b"plain" else 0o2750)


@case
def set_id_bits_go(w: World) -> None:
    # What if a set-id file is written, cut or given away, by its owner and by root?
    def fresh() -> None:
        w.put(b"s", b"x")
        w.setattr(b"s", uid=ALICE.uid, gid=ALICE.gid)
        w.setattr(b"s", mode=0o6777)

    fresh()
    file = w.open(b"s", O_RDWR, ALICE)
    w.write(file, 0, b"y")
    file.drop()
    assert w.mode(b"s") == 0o777
    fresh()
    w.setattr(b"s", ALICE, size=0)
    assert w.mode(b"s") == 0o777
    fresh()
    w.setattr(b"s", ALICE, gid=500)
    assert w.mode(b"s") == 0o777
    fresh()
    file = w.open(b"s", O_RDWR)
    w.write(file, 0, b"y")
    file.drop()
    assert w.mode(b"s") == 0o6777


@case
def who_may_change_attributes(w: World) -> None:
    # What if somebody who is not the owner changes mode, owner, times, size?
    w.put(b"a", b"x")
    w.setattr(b"a", uid=ALICE.uid, gid=ALICE.gid)
    for what in ({"mode": 0o777}, {"uid": BOB.uid}, {"gid": BOB.gid}, {"mtime": 5}):
        with errno(EPERM):
            w.setattr(b"a", BOB, **what)
    with errno(EACCES):
        w.setattr(b"a", BOB, size=0)
    with errno(EPERM):
        w.setattr(b"a", ALICE, uid=BOB.uid)
    with errno(EPERM):
        w.setattr(b"a", ALICE, gid=BOB.gid)
    w.setattr(b"a", ALICE, gid=500)
    w.setattr(b"a", ALICE, mode=0o2666)
    assert w.mode(b"a") == 0o2666
    w.setattr(b"a", BOB, atime_now=True, mtime_now=True)


@case
def all_or_nothing(w: World) -> None:
    # What if one of two changes is not allowed: is the other made?
    w.put(b"a", b"x")
    w.setattr(b"a", uid=ALICE.uid)
    with errno(EPERM):
        w.setattr(b"a", ALICE, mode=0o600, uid=BOB.uid)
    assert w.mode(b"a") == 0o644


@case
def file_flags(w: World) -> None:
    # What if a file or directory is immutable, append-only or must keep its name?
    w.mkdir(b"d")
    w.put(b"d/a", b"x")
    for flag in (UF_IMMUTABLE, SF_IMMUTABLE):
        w.setattr(b"d/a", flags=flag)
        with errno(EPERM):
            w.open(b"d/a", O_RDWR)
        with errno(EPERM):
            w.setattr(b"d/a", mode=0o600)
        with errno(EPERM):
            w.unlink(b"d/a")
        with errno(EPERM):
            w.rename(b"d/a", b"d/b")
        with errno(EPERM):
            w.setx(b"d/a", b"k", b"v")
        w.setattr(b"d/a", flags=0)
    w.setattr(b"d/a", flags=UF_NOUNLINK)
    with errno(EPERM):
        w.unlink(b"d/a")
    w.put(b"d/a", b"y")
    w.setattr(b"d/a", flags=UF_APPEND)
    with errno(EPERM):
        w.open(b"d/a", O_RDWR)
    file = w.open(b"d/a", O_RDWR | O_APPEND)
    w.write(file, 0, b"z")
    file.drop()
    with errno(EPERM):
        w.setattr(b"d/a", size=0)
    assert w.get(b"d/a") == b"yz"
    w.setattr(b"d/a", flags=0)
    w.setattr(b"d", flags=UF_IMMUTABLE)
    for call in (lambda: w.put(b"d/n"), lambda: w.unlink(b"d/a"), lambda: w.mkdir(b"d/n")):
        with errno(EPERM):
            call()
    w.setattr(b"d", flags=UF_APPEND)
    w.put(b"d/n")
    with errno(EPERM):
        w.unlink(b"d/n")
    w.setattr(b"d", flags=0)


# --- extended attributes and access control lists --------------------------------------------


@case
def extended_attributes(w: World) -> None:
    # What if attributes are made, replaced, listed, removed, empty and too long?
    w.put(b"a")
    with errno(ENOATTR):
        w.getx(b"a", b"k")
    w.setx(b"a", b"k", b"")
    assert w.getx(b"a", b"k") == b""
    with errno(EEXIST):
        w.setx(b"a", b"k", b"v", EXTATTR_CREATE)
    w.setx(b"a", b"k", b"v", EXTATTR_REPLACE)
    with errno(ENOATTR):
        w.setx(b"a", b"other", b"v", EXTATTR_REPLACE)
    w.setx(b"a", b"other", b"\0" * 5000, EXTATTR_CREATE)
    assert sorted(w.listx(b"a")) == [b"k", b"other"]
    w.setx(b"a", b"security.x", b"s", space=SYSTEM)
    assert w.listx(b"a", SYSTEM) == [b"security.x"]
    w.rmx(b"a", b"k")
    with errno(ENOATTR):
        w.rmx(b"a", b"k")
    assert w.listx(b"a") == [b"other"]
    w.symlink(b"a", b"l")
    with errno(EPERM):
        w.setx(b"l", b"k", b"v")


@case
def access_list_and_mode(w: World) -> None:
    # What if an access list is set, the mode changed, the list removed?
    w.put(b"a", b"x", 0o600)
    lst = Acl(6, 4, 0, ((BOB.uid, 6),), (), 6)
    w.setx(b"a", acl.XATTR_ACCESS, lst.pack(), space=SYSTEM)
    assert w.mode(b"a") == 0o660
    w.open(b"a", O_RDWR, BOB).drop()
    with errno(EACCES):
        w.open(b"a", O_RDONLY, ALICE)
    w.setattr(b"a", mode=0o640)
    assert Acl.parse(w.getx(b"a", acl.XATTR_ACCESS, SYSTEM)) == lst.chmod(0o640)
    with errno(EACCES):
        w.open(b"a", O_RDWR, BOB)
    w.rmx(b"a", acl.XATTR_ACCESS, SYSTEM)
    assert w.mode(b"a") == 0o640
    w.setx(b"a", acl.XATTR_ACCESS, Acl.from_mode(0o604).pack(), space=SYSTEM)
    assert w.mode(b"a") == 0o604
    with errno(ENOATTR):
        w.getx(b"a", acl.XATTR_ACCESS, SYSTEM)
    with errno(EPERM):
        w.setx(b"a", acl.XATTR_ACCESS, lst.pack(), space=SYSTEM, cred=BOB)
    with errno(EINVAL):
        w.setx(b"a", acl.XATTR_ACCESS, b"jnk", space=SYSTEM)
    with errno(EACCES):
        w.setx(b"a", acl.XATTR_DEFAULT, lst.pack(), space=SYSTEM)


@case
def default_list_is_inherited(w: World) -> None:
    # What if a directory has a default list: what do a file, a directory and a link in it get?
    w.mkdir(b"d")
    lst = Acl(7, 5, 0, ((BOB.uid, 7),), (), 7)
    w.setx(b"d", acl.XATTR_DEFAULT, lst.pack(), space=SYSTEM)
    w.put(b"d/f", mode=0o666)
    assert w.mode(b"d/f") == 0o660
    got = Acl.parse(w.getx(b"d/f", acl.XATTR_ACCESS, SYSTEM))
    assert got == lst.inherit(0o666)[1]
    w.mkdir(b"d/s", 0o777)
    assert w.mode(b"d/s") == 0o770
    assert Acl.parse(w.getx(b"d/s", acl.XATTR_DEFAULT, SYSTEM)) == lst
    w.symlink(b"x", b"d/l")
    with errno(EOPNOTSUPP):
        w.getx(b"d/l", acl.XATTR_ACCESS, SYSTEM)
    w.rmx(b"d", acl.XATTR_DEFAULT, SYSTEM)
    w.put(b"d/g", mode=0o604)
    assert w.mode(b"d/g") == 0o604


# --- the rest -------------------------------------------------------------------------------


class _Owner:
    """A process as far as locks go."""

    def __init__(self, pid: int) -> None:
        self.pid, self.uid, self.posixlocks, self.posixlock_limit = pid, 0, 0, -1
        self.locks = None


@case
def advisory_locks(w: World) -> None:
    # What if two processes lock parts of a file?
    w.put(b"a", b"x" * 100)
    vp = w.vp(b"a")
    one, other = _Owner(1), _Owner(2)
    vp.ops.use.vop_advlock(vp, one, F_SETLK, Flock(F_WRLCK, 0, 50), F_POSIX)
    vp.ops.use.vop_advlock(vp, other, F_SETLK, Flock(F_RDLCK, 50, 0), F_POSIX)
    try:
        vp.ops.use.vop_advlock(vp, other, F_SETLK, Flock(F_RDLCK, 49, 1), F_POSIX)
    except KError as error:
        refused = error.errno
    else:
        refused = 0
    assert refused


@case
def watchers_are_told(w: World) -> None:
    # What if a file and its directory are watched while everything happens to them?
    w.mkdir(b"d")
    w.put(b"d/a")
    everything = NOTE_WRITE | NOTE_EXTEND | NOTE_ATTRIB | NOTE_LINK | NOTE_RENAME | NOTE_DELETE
    on_file = HookKnote(everything, lambda note: None)
    on_dir = HookKnote(everything, lambda note: None)
    vp, dvp = w.vp(b"d/a").ref(), w.vp(b"d").ref()
    vp.ops.use.vop_kqfilter(vp, on_file)
    dvp.ops.use.vop_kqfilter(dvp, on_dir)
    steps: list[tuple[Callable[[], None], int, int]] = [
        (lambda: w.setattr(b"d/a", mode=0o600), NOTE_ATTRIB, 0),
        (lambda: w.put(b"d/a", b"xyz"), NOTE_WRITE | NOTE_EXTEND, 0),
        (lambda: w.link(b"d/a", b"d/b"), NOTE_LINK, NOTE_WRITE),
        (lambda: w.rename(b"d/a", b"d/c"), NOTE_RENAME, NOTE_WRITE),
        (lambda: w.mkdir(b"d/s"), 0, NOTE_WRITE | NOTE_LINK),
        (lambda: w.rmdir(b"d/s"), 0, NOTE_WRITE | NOTE_LINK),
        (lambda: w.unlink(b"d/b"), NOTE_DELETE, NOTE_WRITE),
    ]
    for number, (step, told_file, told_dir) in enumerate(steps):
        step()
        assert on_file.take() & told_file == told_file, number
        assert on_dir.take() == told_dir, number
    vp.rele()
    dvp.rele()


@case
def figures_move(w: World) -> None:
    # What if files are made and removed: do free blocks and files follow, and come back?
    before = w.statfs()
    w.put(b"a", b"x" * 40_960)
    middle = w.statfs()
    assert before.bfree - middle.bfree == 40_960 // before.bsize
    assert before.ffree - middle.ffree == 1
    assert (middle.blocks, middle.files, middle.namemax) == (before.blocks, before.files, 255)
    w.unlink(b"a")
    assert w.statfs() == before


@case
def found_by_number(w: World) -> None:
    # What if a file is asked for by number, with its vnode in memory, reclaimed, and removed?
    w.put(b"a", b"data")
    vp = w.vp(b"a")
    mp, ino = vp.mount, vp.ino
    assert mp is not None
    again = mp.ops.vfs_vget(mp, ino)
    assert again is vp
    again.rele()
    w.vfs.vnodes.vgone(vp)
    fresh = mp.ops.vfs_vget(mp, ino)
    assert fresh.ops.use.vop_getattr(fresh).size == 4
    fresh.rele()
    assert w.get(b"a") == b"data"
    w.unlink(b"a")
    with errno(ENOENT):
        mp.ops.vfs_vget(mp, ino)


@case
def numbers_are_not_used_again(w: World) -> None:
    # What if many files are made and removed: is a number ever given out twice?
    seen = set()
    for _ in range(200):
        w.put(b"a")
        seen.add(w.stat(b"a").fileid)
        w.unlink(b"a")
    assert len(seen) == 200


@case
def across_mounts(w: World) -> None:
    # What if a name shall move to, or be linked from, another mount?
    w.mkdir(b"mnt")
    other = w.vfs.mounts.mount("tmpfs", "tmpfs", w.nch(b"mnt"), {}, 0, ROOT)
    w.put(b"a")
    with errno(EXDEV):
        w.rename(b"a", b"mnt/a")
    with errno(EXDEV):
        w.link(b"a", b"mnt/a")
    w.vfs.mounts.unmount(other)
