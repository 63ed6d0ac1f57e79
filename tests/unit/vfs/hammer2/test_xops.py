"""Operations on names and attributes: what each does, and what it refuses."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from dfuser.libkern.errno import (
    EEXIST,
    EFBIG,
    EINVAL,
    EISDIR,
    EMLINK,
    ENAMETOOLONG,
    ENOENT,
    ENOTDIR,
    ENOTEMPTY,
    EOPNOTSUPP,
    EPERM,
    ESTALE,
    EXDEV,
    KError,
)
from dfuser.vfs.hammer2 import dirent, strategy, xops
from dfuser.vfs.hammer2.ondisk.const import BrefType, Comp, ObjType
from dfuser.vfs.hammer2.ondisk.keys import dirhash, probe
from dfuser.vfs.hammer2.tunables import Tunables
from dfuser.vfs.hammer2.xops import RenameFlag
from tests.unit.vfs.hammer2.builder import Builder
from tests.unit.vfs.hammer2.world import (
    FOUR,
    content,
    deep_check,
    disk_of,
    live_content,
    new_disk,
    open_disk,
    reader,
)


def refused(number: int, call: Callable[[], object]) -> None:
    """A call fails with an errno."""
    with pytest.raises(KError) as error:
        call()
    assert error.value.errno == number


def test_every_kind() -> None:
    """What if a kind of file, or one of its attributes, did not come back?"""
    disk = new_disk(FOUR)
    dev = open_disk(disk)
    root = dev.pfs(b"DATA").root
    for kind in ObjType:
        if kind in (ObjType.UNKNOWN, ObjType.WHITEOUT):
            refused(EINVAL, lambda kind=kind: xops.ncreate(root, b"x", kind))
            continue
        ip = xops.ncreate(
            root, b"%d" % kind, kind, mode=0o107751, uid=1000, gid=2000, rmajor=7, rminor=9
        )
        xops.setattr_(ip, atime=1_500_000, mtime=-7_000_000_000, uflags=3)
    dev.sync()
    pfs = reader(disk).pfs(b"DATA")
    for entry, node in pfs.readdir_nodes(pfs.root):
        meta = node.meta  # type: ignore[union-attr]
        assert entry.type == meta.type == int(entry.name)
        assert (meta.mode, meta.unix_uid, meta.unix_gid) == (0o7751, 1000, 2000)
        assert (meta.atime, meta.mtime - (1 << 64), meta.uflags) == (1500, -7_000_000, 3)
        device = entry.type in (ObjType.CDEV, ObjType.BDEV)
        assert (meta.rmajor, meta.rminor) == ((7, 9) if device else (0, 0))
        assert meta.iparent == 1
        assert meta.name_key == meta.inum
        assert node.name == b"0x%016x" % meta.inum  # type: ignore[union-attr]
    assert deep_check(disk) == []


def test_keys_as_the_kernel_probes() -> None:
    """What if names with one hash were given other keys than DragonFly's kernel gives them?"""
    disk = new_disk(FOUR)
    dev = open_disk(disk)
    root = dev.pfs(b"DATA").root
    names = [b"%d" % number for number in range(60)]
    base = dirhash(names[0])
    dirent_hash = dirent.dirhash
    dirent.dirhash = lambda _name: base  # type: ignore[assignment]
    try:
        used: list[int] = []
        for name in names:
            xops.ncreate(root, name)
            key = dirent.lookup(root, name)[1].key
            assert key == probe(base, sorted(used))
            used.append(key)
        assert used[:3] == [base + 1, base, base + 2] or used[:2] == [base + 1, base]
        xops.nremove(root, names[5])
        assert xops.nresolve(root, names[6]).inum
        refused(ENOENT, lambda: xops.nresolve(root, names[5]))
        assert {e.name for e in dirent.readdir(root)} == set(names) - {names[5]}
    finally:
        dirent.dirhash = dirent_hash


def test_names() -> None:
    """What if a name were refused that may be, or taken that may not?"""
    disk = new_disk(FOUR)
    dev = open_disk(disk)
    root = dev.pfs(b"DATA").root
    good = [bytes([byte]) for byte in range(1, 256) if byte not in b"/."]
    good += [b"n" * size for size in (2, 63, 64, 65, 255)] + ["naïve".encode("latin-1")]
    for name in good:
        xops.ncreate(root, name)
    for name, number in (
        (b"", ENOENT), (b".", EINVAL), (b"..", EINVAL), (b"a/b", EINVAL), (b"\0", EINVAL),
        (b"n" * 256, ENAMETOOLONG), (good[0], EEXIST),
    ):  # fmt: skip
        refused(number, lambda name=name: xops.ncreate(root, name))
    dev.sync()
    pfs = reader(disk).pfs(b"DATA")
    assert {entry.name for entry in pfs.readdir(pfs.root)} == set(good)


def test_links() -> None:
    """What if a file went with one of its names, or stayed without any?"""
    disk = new_disk(FOUR)
    dev = open_disk(disk)
    pfs, other = dev.pfs(b"DATA"), dev.pfs(b"LOCAL")
    root = pfs.root
    ip = xops.ncreate(root, b"a")
    xops.nlink(root, b"b", ip)
    assert (ip.meta.nlinks, xops.nresolve(root, b"b")) == (2, ip)
    assert xops.nremove(root, b"a") is ip
    assert ip.meta.nlinks == 1
    refused(EXDEV, lambda: xops.nlink(other.root, b"c", ip))
    refused(EXDEV, lambda: xops.nrename(root, b"b", other.root, b"c"))
    refused(EPERM, lambda: xops.nlink(root, b"c", xops.nmkdir(root, b"d")))
    ip.meta.nlinks = 0xFFFFFFFF
    refused(EMLINK, lambda: xops.nlink(root, b"c", ip))
    ip.meta.nlinks = 1
    assert xops.nremove(root, b"b") is None
    refused(ESTALE, lambda: ip.meta)
    dev.sync()
    assert deep_check(disk) == []


def test_removed_but_open() -> None:
    """What if a file that is open lost its data with its last name?"""
    disk = new_disk(FOUR)
    dev = open_disk(disk)
    root = dev.pfs(b"DATA").root
    ip = xops.ncreate(root, b"a")
    strategy.write(ip, 0, b"x" * 5000)
    assert xops.nremove(root, b"a", isopen=True) is ip
    dev.sync()
    assert deep_check(disk, orphans=True) == []
    assert strategy.read(ip, 0, 9000) == b"x" * 5000
    refused(ENOENT, lambda: xops.nlink(root, b"b", ip))
    xops.inactive(ip)
    dev.sync()
    assert deep_check(disk) == []
    gone = xops.nmkdir(root, b"d")
    xops.nrmdir(root, b"d", isopen=True)
    refused(ENOENT, lambda: xops.ncreate(gone, b"x"))
    xops.inactive(gone)
    refused(ENOENT, lambda: xops.ncreate(gone, b"x"))


def test_remove_refused() -> None:
    """What if a directory with names, or the wrong kind, were removed?"""
    root = open_disk(new_disk(FOUR)).pfs(b"DATA").root
    d, f = xops.nmkdir(root, b"d"), xops.ncreate(root, b"f")
    xops.ncreate(d, b"x")
    refused(ENOTEMPTY, lambda: xops.nrmdir(root, b"d"))
    refused(EISDIR, lambda: xops.nremove(root, b"d"))
    refused(ENOTDIR, lambda: xops.nrmdir(root, b"f"))
    refused(ENOTDIR, lambda: xops.nresolve(f, b"x"))
    refused(ENOENT, lambda: xops.nremove(root, b"g"))


def test_rename() -> None:
    """What if renaming lost a file, a directory's parent, or made a loop?"""
    disk = new_disk(FOUR)
    dev = open_disk(disk)
    root = dev.pfs(b"DATA").root
    a, b = xops.nmkdir(root, b"a"), xops.nmkdir(root, b"b")
    c = xops.nmkdir(a, b"c")
    refused(EINVAL, lambda: xops.nrename(root, b"a", c, b"x"))
    refused(EINVAL, lambda: xops.nrename(root, b"a", a, b"x"))
    xops.nrename(a, b"c", b, b"z" * 200)
    assert c.meta.iparent == b.inum
    f, g = xops.ncreate(a, b"f"), xops.ncreate(b, b"g")
    refused(EEXIST, lambda: xops.nrename(a, b"f", b, b"g", RenameFlag.NOREPLACE))
    refused(EISDIR, lambda: xops.nrename(a, b"f", root, b"b"))
    refused(ENOTDIR, lambda: xops.nrename(root, b"b", a, b"f"))
    refused(ENOTEMPTY, lambda: xops.nrename(b, b"z" * 200, root, b"a"))
    assert xops.nrename(a, b"f", b, b"g") is None
    assert (xops.nresolve(b, b"g"), g.deleted) == (f, True)
    xops.nlink(a, b"h", f)
    assert xops.nrename(a, b"h", b, b"g") is None
    assert xops.nresolve(a, b"h") is xops.nresolve(b, b"g") is f
    xops.nrename(root, b"a", b, b"g", RenameFlag.EXCHANGE)
    assert (xops.nresolve(b, b"g"), a.meta.iparent) == (a, b.inum)
    assert xops.nresolve(root, b"a") is f
    refused(EINVAL, lambda: xops.nrename(root, b"b", b, b"g", RenameFlag.EXCHANGE))
    live = live_content(dev.pfs(b"DATA"))
    dev.sync()
    assert deep_check(disk) == []
    assert content(reader(disk).pfs(b"DATA")) == live


def test_times() -> None:
    """What if changing names did not show in the times POSIX says?"""
    root = open_disk(new_disk(FOUR)).pfs(b"DATA").root
    ip = xops.ncreate(root, b"a")
    for call in (
        lambda: xops.nlink(root, b"b", ip), lambda: xops.nrename(root, b"b", root, b"c"),
        lambda: xops.nremove(root, b"c"), lambda: xops.setattr_(ip, mode=0),
    ):  # fmt: skip
        before = ip.meta.ctime, root.meta.mtime, ip.meta.mtime
        call()
        assert ip.meta.ctime > before[0]
        assert ip.meta.mtime == before[2]
    assert root.meta.mtime == root.meta.ctime > ip.meta.btime


def test_many_names() -> None:
    """What if a directory of thousands of names did not shrink with them?"""
    disk = new_disk(FOUR)
    tunables = Tunables()
    tunables.limit_chains = 64
    dev = open_disk(disk, tunables)
    root = dev.pfs(b"DATA").root
    names = [b"%d" % number for number in range(5000)]
    random.Random(1).shuffle(names)
    for number, name in enumerate(names):
        xops.ncreate(root, name)
        if number % 900 == 0:
            dev.sync()
    dev.sync()
    assert deep_check(disk) == []
    assert len(dirent.readdir(root, 0, 1 << 20)) == 5000
    for number, name in enumerate(names[10:]):
        xops.nremove(root, name)
        if number % 900 == 0:
            dev.sync()
    dev.sync()
    assert deep_check(disk) == []
    kinds = [bref.type for bref in reader(disk).topology()]
    assert kinds.count(BrefType.INDIRECT) <= 4
    assert dev.chains.statistics().evictions > 1000
    assert dev.chains.statistics().chains < 200


def test_embedded_data() -> None:
    """What if data of up to 512 bytes were not in the inode, or more were?"""
    disk = new_disk(FOUR)
    dev = open_disk(disk)
    ip = xops.ncreate(dev.pfs(b"DATA").root, b"f")
    strategy.write(ip, 500, b"z" * 12)
    assert (ip.meta.directdata, ip.meta.size) == (True, 512)
    assert strategy.read(ip, 0, 999) == bytes(500) + b"z" * 12
    strategy.truncate(ip, 505)
    strategy.truncate(ip, 510)
    assert strategy.read(ip, 500, 99) == b"z" * 5 + bytes(5)
    strategy.write(ip, 512, b"y")
    assert (ip.meta.directdata, ip.meta.size) == (False, 513)
    assert strategy.read(ip, 500, 99) == b"z" * 5 + bytes(7) + b"y"
    strategy.truncate(ip, 3)
    dev.sync()
    node = reader(disk).pfs(b"DATA").resolve(b"f")
    assert (node.meta.directdata, node.meta.size) == (False, 3)
    assert deep_check(disk) == []


def test_huge_file() -> None:
    """What if a hole of terabytes cost space, or its end were not found?"""
    disk = new_disk(FOUR, comp=Comp.NONE)
    dev = open_disk(disk)
    ip = xops.ncreate(dev.pfs(b"DATA").root, b"f")
    last = (1 << 63) - 2
    refused(EFBIG, lambda: strategy.write(ip, last, b"abc"))
    for offset in (last, 5 << 40, 5 << 32, 0):
        strategy.write(ip, offset, b"%d" % (offset & 1))
    assert ip.meta.size == (1 << 63) - 1
    dev.sync()
    assert deep_check(disk) == []
    ip = xops.nresolve(open_disk(disk).pfs(b"DATA").root, b"f")
    assert strategy.read(ip, (5 << 40) - 3, 6) == b"\0\0\0000\0\0"
    assert strategy.read(ip, last, 9) == b"0"
    dev = ip.pfs.dev
    strategy.truncate(ip, (5 << 32) + 1)
    dev.sync()
    assert deep_check(disk) == []
    strategy.punch(ip, 0, 5 << 32)
    strategy.truncate(ip, 6 << 40)
    assert strategy.read(ip, 5 << 32, 3) == b"0\0\0"
    dev.sync()
    assert reader(disk).pfs(b"DATA").resolve(b"f").bref.leaf_count == 1
    refused(EINVAL, lambda: strategy.truncate(ip, -1))
    refused(EFBIG, lambda: strategy.truncate(ip, 1 << 63))
    refused(EISDIR, lambda: strategy.write(dev.pfs(b"DATA").root, 0, b"x"))


def test_directories_of_first_versions() -> None:
    """What if a directory has inodes in place of names: is it read, and left alone?"""
    made = Builder()
    old = made.inode(5, ObjType.REGFILE, b"old", filename=b"name")
    old = old._replace(key=dirhash(b"name"))
    disk = disk_of(made.finish(made.pfs(b"DATA", [old])))
    dev = open_disk(disk)
    root = dev.pfs(b"DATA").root
    assert [entry.name for entry in dirent.readdir(root)] == [b"name"]
    refused(EOPNOTSUPP, lambda: dirent.refuse_old(dirent.lookup(root, b"name")[0]))
    refused(EEXIST, lambda: xops.ncreate(root, b"name"))


def test_sync_goes_on_beside_operations() -> None:
    """What if files change while a sync waits for its device?"""
    disk = new_disk(FOUR)
    dev = open_disk(disk)
    pfs = dev.pfs(b"DATA")
    rng = random.Random(2)
    ip = xops.ncreate(pfs.root, b"f")
    for round_ in range(6):
        strategy.write(ip, 0, rng.randbytes(150_000))
        xops.ncreate(pfs.root, b"%d" % round_)
        synced = live_content(pfs)
        for step in dev.flush.sync_steps():
            dev.io.barrier()
            strategy.write(ip, rng.randrange(100_000), rng.randbytes(60_000))
            xops.ncreate(pfs.root, b"%d during %d" % (round_, step))
        assert content(reader(disk).pfs(b"DATA")) == synced
        for number in range(4):
            assert deep_check(disk, number) == []
        assert dev.flush.pending
    dev.sync()
    assert content(reader(disk).pfs(b"DATA")) == live_content(pfs)
    assert not dev.flush.pending
    assert dev.statistics().flush.syncs == 7
