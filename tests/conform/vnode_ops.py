"""What every read-write file system must do, as cases that any of them can be put through.

A case is a function that gets a `World`: a booted VFS and a directory in it that belongs to
the file system under test. It works through the kern_* functions, as the bridge and system
calls do. `World.check` runs the file system's own invariants; the runner calls it after
each case, cases call it where something interesting has just happened.

Here: names, directories, contents. Times, owners, attributes and the rest: vnode_attrs.py.
"""

from __future__ import annotations

from dfuser.libkern.errno import (
    EEXIST,
    EFBIG,
    EINVAL,
    EISDIR,
    ENAMETOOLONG,
    ENOENT,
    ENOTDIR,
    ENOTEMPTY,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    KError,
)
from dfuser.libkern.fcntl import (
    O_APPEND,
    O_RDONLY,
    O_RDWR,
    O_TRUNC,
    O_WRONLY,
)
from dfuser.libkern.stat import (
    DT_DIR,
    DT_LNK,
    DT_REG,
    S_IFBLK,
    S_IFCHR,
    S_IFIFO,
    S_IFSOCK,
    VType,
)
from dfuser.vfs import syscalls as sc
from dfuser.vfs.vop import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
)
from tests.conform.world import (
    OFF_MAX,
    ROOT,
    Case,
    World,
    collector,
    errno,
)

CASES: list[Case] = []
case = collector(CASES)


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
