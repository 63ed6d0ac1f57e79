"""Whole volumes: every golden image against its manifest, and what only a builder can make."""

from __future__ import annotations

import hashlib
import random
from operator import attrgetter

import pytest

from dfuser.libkern.errno import EINVAL, EIO, ELOOP, ENOENT, ENOTDIR, KError
from dfuser.libkern.stat import VType
from dfuser.vfs.hammer2.errors import MediaError
from dfuser.vfs.hammer2.node import Node
from dfuser.vfs.hammer2.ondisk.blockref import Blockref, pack_blockrefs
from dfuser.vfs.hammer2.ondisk.bmap import BmapData, initial_leaf, pack_leaf, unpack_leaf
from dfuser.vfs.hammer2.ondisk.const import (
    BrefType,
    Check,
    Comp,
    ObjType,
    OpFlag,
    PfsSubtype,
    PfsType,
)
from dfuser.vfs.hammer2.ondisk.keys import cookie_of, dirhash
from dfuser.vfs.hammer2.reader import Entry, Pfs, Reader
from dfuser.vfs.hammer2.volume import open_set
from tests.unit.vfs.hammer2 import images
from tests.unit.vfs.hammer2.builder import Builder


def open_pfs(builder: Builder, *brefs: Blockref) -> Pfs:
    """The only PFS of a volume with some inodes and names."""
    image = builder.finish(builder.pfs(b"ROOT", brefs))
    return Reader(open_set([image.device()])).pfs(b"ROOT")


def errno_of(call, *args, **options) -> int:
    """The number with which a call fails."""
    with pytest.raises(KError) as caught:
        call(*args, **options)
    return caught.value.errno


@pytest.mark.parametrize(("image", "label"), images.MANIFESTS)
def test_golden_images_are_what_their_manifests_say(image, label):
    # What if one byte, name, link or number of a volume of DragonFly's were read wrongly?
    found = sorted(images.lines_of(images.reader(image).pfs(label.encode())))
    assert found == sorted(images.manifest_lines(image, label))


@pytest.mark.slow
@pytest.mark.parametrize("image", images.NAMES)
def test_packed_images_are_the_images(image):
    # What if an image had been packed wrongly, and the tests read something else?
    sums = dict(
        reversed(line.split()) for line in (images.FOLDER / "SHA256SUMS").read_text().splitlines()
    )
    assert images.load(image).sha256() == sums[image + ".img"]


def test_an_image_in_a_file_reads_the_same(tmp_path):
    # What if the packed image and the file made of it differed?
    path = tmp_path / "disk.img"
    image = images.load("fresh")
    image.write_to(path)
    assert path.stat().st_size == image.size
    assert hashlib.sha256(path.read_bytes()).hexdigest() == image.sha256()


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("lz4_xxhash", [b"DATA", b"LOCAL"]),
        ("snapshots", [b"DATA", b"LOCAL", b"empty", b"snap2"]),
        ("four_headers", [b"DATA", b"LOCAL", b"p1", b"p2", b"p3", b"p4", b"p5"]),
        ("fresh", [b"BOOT", b"LOCAL", b"ROOT"]),
    ],
)
def test_pfs_lists(image, labels):
    # What if a PFS or snapshot could not be seen, or not be opened by its label?
    reader = images.reader(image)
    assert sorted(pfs.label for pfs in reader.pfs_list()) == labels
    for label in labels:
        meta = reader.pfs(label).root.meta
        assert meta.pfs_type == PfsType.MASTER
        wanted = PfsSubtype.SNAPSHOT if label == b"snap2" else PfsSubtype.NONE
        assert meta.pfs_subtype == wanted
    assert errno_of(reader.pfs, b"nobody") == ENOENT
    assert reader.sroot.name == b"SUPROOT"
    assert reader.sroot.meta.pfs_type == PfsType.SUPROOT


def test_names_are_found_as_they_are_listed():
    # What if a name that readdir shows could not be looked up: long, colliding, or not UTF-8?
    pfs = images.reader("lz4_xxhash").pfs(b"DATA")
    count = long = 0
    for path, node in pfs.walk():
        if not node.is_directory:
            continue
        entries = list(pfs.readdir(node))
        assert [entry.key for entry in entries] == sorted(entry.key for entry in entries)
        for entry in entries:
            assert pfs.lookup(node, entry.name) == entry
            assert errno_of(pfs.lookup, node, entry.name + b"?") == ENOENT
            found = pfs.resolve(path + b"/" + entry.name, follow=False)
            assert found.meta.inum == entry.inum
            assert found.meta.type == entry.type
            count += 1
            long += len(entry.name) > 64
    assert count == 941
    assert long > 0


def test_listing_goes_on_from_any_cookie():
    # What if a listing read in parts lost or repeated a name?
    pfs = images.reader("lz4_xxhash").pfs(b"DATA")
    coll = pfs.resolve(b"coll")
    whole = list(pfs.readdir(coll))
    assert len(whole) > 500
    parts: list[Entry] = []
    cookie = 0
    while True:
        part = [entry for entry, _ in zip(pfs.readdir(coll, cookie), range(7), strict=False)]
        if not part:
            break
        parts += part
        cookie = cookie_of(part[-1].key) + 1
    assert parts == whole
    assert [entry for entry, _ in pfs.readdir_nodes(coll)] == whole


def test_hard_links_are_one_inode():
    # What if two names of one file were two files?
    pfs = images.reader("lz4_xxhash").pfs(b"DATA")
    names: dict[int, int] = {}
    links = {}
    for _, node in pfs.walk():
        if not node.is_directory:
            names[node.meta.inum] = names.get(node.meta.inum, 0) + 1
            links[node.meta.inum] = node.meta.nlinks
    assert names == links
    assert max(links.values()) > 1


def test_reads_at_odd_places_equal_the_whole():
    # What if a read across blocks, holes or the end gave other bytes than reading it all?
    pfs = images.reader("lz4_xxhash").pfs(b"DATA")
    rng = random.Random(11)
    files = [node for _, node in pfs.walk() if node.meta.type == ObjType.REGFILE]
    big = sorted(files, key=lambda node: node.meta.size)[-30:]
    for node in [*rng.sample(files, 30), *big]:
        size = node.meta.size
        data = pfs.read(node, 0, size + 10)
        assert len(data) == size
        for _ in range(10):
            at, length = rng.randrange(size + 100), rng.randrange(200_000)
            assert pfs.read(node, at, length) == data[at : at + length]
        joined = bytearray(size)
        for at, piece in pfs.pieces(node):
            joined[at : at + len(piece)] = piece
        assert joined == data


def test_holes_are_not_read():
    # What if the holes of a file could not be told from its data?
    builder = Builder()
    data = builder.file({0: b"a" * 65536, 5 << 30: b"b" * 100}, (5 << 30) + 100)
    inode = builder.inode(below=data, size=(5 << 30) + 100)
    pfs = open_pfs(builder, inode, builder.dirent(b"sparse", inode.key))
    node = pfs.resolve(b"sparse")
    assert list(pfs.pieces(node)) == [(0, b"a" * 65536), (5 << 30, b"b" * 100)]
    assert list(pfs.pieces(node, 65530, (5 << 30) + 3)) == [(65530, b"a" * 6), (5 << 30, b"b" * 3)]
    assert pfs.read(node, 65530, 12) == b"a" * 6 + bytes(6)
    assert pfs.read(node, 1 << 31, 3) == bytes(3)
    assert pfs.read(node, (5 << 30) + 98, 50) == b"bb"
    assert pfs.read(node, 6 << 30, 50) == b""


@pytest.mark.parametrize("check", [Check.NONE, Check.DISABLED, *list(Check)[2:5]])
@pytest.mark.parametrize("comp", list(Comp))
def test_every_check_code_with_every_compression(check, comp):
    # What if a combination that no golden image has could not be read?
    builder = Builder(check=check, comp=comp)
    rng = random.Random(7)
    contents = {
        b"empty": b"", b"small": b"x" * 512, b"kib": rng.randbytes(1024),
        b"text": b"some text " * 20_000, b"zeroes": bytes(131072), b"noise": rng.randbytes(70_001),
        b"mixed": bytes(65536) + b"m" * 65536 + rng.randbytes(5),
    }  # fmt: skip
    brefs = []
    for name, data in contents.items():
        below = data if len(data) <= 512 else builder.file(data)
        inode = builder.inode(below=below, size=len(data))
        brefs += [inode, builder.dirent(name, inode.key)]
    pfs = open_pfs(builder, *brefs)
    for name, data in contents.items():
        assert pfs.read(pfs.resolve(name), 0, 1 << 20) == data


def test_every_kind_of_file():
    # What if a device node, socket or FIFO were read as something else?
    builder = Builder()
    kinds = {
        VType.VREG: ObjType.REGFILE, VType.VLNK: ObjType.SOFTLINK, VType.VFIFO: ObjType.FIFO,
        VType.VSOCK: ObjType.SOCKET, VType.VCHR: ObjType.CDEV, VType.VBLK: ObjType.BDEV,
    }  # fmt: skip
    brefs = []
    for vtype, objtype in kinds.items():
        inode = builder.inode(objtype=objtype, below=b"x", rmajor=4, rminor=5, uflags=2)
        brefs += [inode, builder.dirent(vtype.name.encode(), inode.key, objtype)]
    empty = builder.inode(objtype=ObjType.DIRECTORY, below=())
    pfs = open_pfs(builder, *brefs, empty, builder.dirent(b"VDIR", empty.key, ObjType.DIRECTORY))
    for vtype, objtype in kinds.items():
        node = pfs.resolve(vtype.name.encode(), follow=False) if vtype != VType.VLNK else None
        if node is None:
            continue
        assert node.meta.vtype is vtype
        assert node.meta.type == objtype
        assert (node.meta.rmajor, node.meta.rminor, node.meta.uflags) == (4, 5, 2)
        assert (node.meta.unix_uid, node.meta.unix_gid, node.meta.mode) == (7, 8, 0o644)
        if objtype != ObjType.REGFILE:
            assert errno_of(pfs.read, node, 0, 10) == EINVAL
            assert errno_of(pfs.readlink, node) == EINVAL
    assert pfs.readlink(pfs.resolve(b"VLNK", follow=False)) == b"x"
    assert list(pfs.readdir(pfs.resolve(b"VDIR"))) == []
    assert errno_of(list, pfs.readdir(pfs.resolve(b"VREG"))) == ENOTDIR
    assert errno_of(pfs.lookup, pfs.resolve(b"VREG"), b"x") == ENOTDIR
    assert errno_of(pfs.resolve, b"VREG/x") == ENOTDIR
    assert errno_of(pfs.read, pfs.resolve(b"VREG"), -1, 1) == EINVAL
    assert errno_of(pfs.read, pfs.resolve(b"VREG"), 0, -1) == EINVAL


def test_paths():
    # What if a path with links, dots or slashes led somewhere else?
    builder = Builder()
    file = builder.inode(below=b"found")

    def link(name: bytes, target: bytes) -> list[Blockref]:
        below = target if len(target) <= 512 else builder.file(target)
        inode = builder.inode(objtype=ObjType.SOFTLINK, below=below, size=len(target))
        return [inode, builder.dirent(name, inode.key, ObjType.SOFTLINK)]

    up = link(b"up", b"../file")
    directory = builder.inode(objtype=ObjType.DIRECTORY, below=[up[1]])
    pfs = open_pfs(
        builder, file, builder.dirent(b"file", file.key), up[0], directory,
        builder.dirent(b"dir", directory.key, ObjType.DIRECTORY), *link(b"abs", b"/dir/up"),
        *link(b"loop", b"./loop"), *link(b"long", b"./" * 400 + b"file"), *link(b"here", b"dir/"),
    )  # fmt: skip
    for path in (b"file", b"/file", b"//./dir/../file", b"dir/up", b"abs", b"../..//file",
                 b"here/up", b"here/../file", b"long"):  # fmt: skip
        assert pfs.resolve(path).meta.inum == file.key, path
    assert pfs.resolve(b"") is pfs.root
    assert pfs.resolve(b"here").meta.inum == directory.key
    assert pfs.resolve(b"abs", follow=False).meta.type == ObjType.SOFTLINK
    assert errno_of(pfs.resolve, b"loop") == ELOOP
    assert errno_of(pfs.resolve, b"nothing") == ENOENT
    assert errno_of(pfs.resolve, b"file/..") == ENOTDIR
    assert errno_of(pfs.resolve, b"file/") == ENOTDIR


def test_old_volumes_with_inodes_for_names():
    # What if a volume from before directory entries were unreadable?
    builder = Builder()
    inode = builder.inode(below=b"old", filename=b"ancient")
    directory = builder.inode(
        objtype=ObjType.DIRECTORY, below=[inode._replace(key=dirhash(b"ancient"))]
    )
    pfs = open_pfs(
        builder, inode, directory, builder.dirent(b"dir", directory.key, ObjType.DIRECTORY)
    )
    [entry] = pfs.readdir(pfs.resolve(b"dir"))
    assert entry[1:] == (inode.key, ObjType.REGFILE, b"ancient")
    assert pfs.read(pfs.resolve(b"dir/ancient"), 0, 10) == b"old"


def test_a_loop_of_directories():
    # What if a directory inside itself kept a walk going for ever?
    builder = Builder()
    inner = builder.inode(
        2000, ObjType.DIRECTORY, below=[builder.dirent(b"again", 2000, ObjType.DIRECTORY)]
    )
    pfs = open_pfs(builder, inner, builder.dirent(b"dir", 2000, ObjType.DIRECTORY))
    told = []
    paths = [path for path, _ in pfs.walk(onerror=lambda path, exc: told.append((path, exc)))]
    assert paths == [b"", b"dir"]
    assert [(path, exc.errno) for path, exc in told] == [(b"dir/again", EIO)]
    with pytest.raises(MediaError, match="directory 0x7d0 has two names"):
        list(pfs.walk())
    assert [path for path, _ in pfs.walk(pfs.resolve(b"dir"), lambda *_: None)] == [b""]


def lying(**fields: object) -> Pfs:
    """A PFS whose file ``bad`` says something impossible in its inode, and ``good`` does not."""
    builder = Builder()
    below = fields.pop("below", b"data")
    bad = builder.inode(below=below, **fields)  # type: ignore[arg-type]
    good = builder.inode(below=b"good")
    return open_pfs(
        builder, bad._replace(key=1024), good, builder.dirent(b"bad", 1024),
        builder.dirent(b"good", good.key),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"size": 513}, "513 bytes lie in it"),
        ({"size": 1 << 63}, "a size of"),
        ({"version": 2}, "version 2"),
        ({"name_len": 257}, "a name of 257"),
        ({"change": lambda meta: setattr(meta, "inum", 5000)}, "inode 0x400 says it is 0x1388"),
        ({"below": [Blockref(BrefType.DIRENT, key=0)], "size": 9}, "no piece of a file"),
        ({"below": [Blockref(BrefType.DATA, keybits=15)], "size": 9}, "no piece of a file"),
        ({"below": [Blockref(BrefType.DATA, keybits=16)], "size": 9}, "no block can lie"),
        ({"below": [Blockref(BrefType.INDIRECT, keybits=20)], "size": 9}, "no block can lie"),
    ],
)
def test_inodes_that_cannot_be(fields, words):
    # What if an impossible number in an inode did more than make that one file fail?
    pfs = lying(**fields)
    with pytest.raises(MediaError, match=words) as caught:
        pfs.read(pfs.resolve(b"bad"), 0, 100)
    assert caught.value.errno == EIO
    assert pfs.read(pfs.resolve(b"good"), 0, 100) == b"good"


def test_links_that_cannot_be():
    # What if a symbolic link of a terabyte were read into memory?
    pfs = lying(objtype=ObjType.SOFTLINK, size=1 << 40, op_flags=0, below=())
    with pytest.raises(MediaError, match="has 1099511627776 bytes"):
        pfs.resolve(b"bad")
    with pytest.raises(MediaError, match="has 1099511627776 bytes"):
        pfs.readlink(pfs.resolve(b"bad", follow=False))


@pytest.mark.parametrize(
    ("namlen", "name"),
    [(0, b""), (300, b"n" * 300), (3, b"a/b"), (3, b"a\0b"), (70, b"/" * 70), (2, b"..")],
)
def test_names_that_cannot_be(namlen, name):
    # What if a name with a slash, or one that leads upwards, left the reader?
    builder = Builder()
    inode = builder.inode(below=b"x")
    embed = inode.key.to_bytes(8, "little") + namlen.to_bytes(2, "little") + b"\2".ljust(6, b"\0")
    bad = Blockref(BrefType.DIRENT, 0x30, key=1 << 63, embed=embed)
    if namlen > 64:
        bad = builder.put(bad, name)
    else:
        bad = bad._replace(check=name.ljust(64, b"\0"))
    pfs = open_pfs(builder, inode, bad, builder.dirent(b"good", inode.key))
    told = []
    names = [e.name for e in pfs.readdir(pfs.root, onerror=lambda b, exc: told.append((b, exc)))]
    assert names == [b"good"]
    assert [bref.key for bref, _ in told] == [1 << 63]
    with pytest.raises(MediaError):
        list(pfs.readdir(pfs.root))


def test_a_name_without_a_file():
    # What if a name whose inode is gone were told as "no such file", hiding the damage?
    builder = Builder()
    pfs = open_pfs(builder, builder.dirent(b"ghost", 7777), builder.dirent(b"neg", 1 << 63 | 5))
    for name in (b"ghost", b"neg"):
        assert errno_of(pfs.resolve, name) == EIO
    assert errno_of(pfs.inode, 7777) == ENOENT
    results = dict(pfs.readdir_nodes(pfs.root))
    assert len(results) == 2
    assert all(isinstance(found, MediaError) for found in results.values())


def test_volumes_without_their_beginnings():
    # What if a volume without super-root, or with something else there, crashed the reader?
    builder = Builder()
    root = builder.pfs(b"ROOT", ())
    file = builder.inode(0, below=b"file")
    for blockset in (b"", file.pack(), builder.indirect([], 0, 40).pack(), root.pack()):
        image = builder.finish(root, sroot_blockset=blockset)
        with pytest.raises(MediaError, match=r"super-root|no inode"):
            Reader(open_set([image.device()]))
    image = builder.finish(root, builder.inode(5, below=b"no pfs")._replace(key=1 << 63))
    reader = Reader(open_set([image.device()]))
    told = []
    assert [p.label for p in reader.pfs_list(lambda b, exc: told.append(exc))] == [b"ROOT"]
    assert "no root of a PFS" in told[0].strerror
    with pytest.raises(MediaError, match="no root of a PFS"):
        list(reader.pfs_list())


def test_a_shared_inode_is_walked_once():
    # What if a volume of many snapshots took as many walks over the same blocks?
    reader = images.reader("snapshots")
    brefs = list(reader.topology())
    inodes = [bref for bref in brefs if bref.type == BrefType.INODE]
    assert len({bref.data_off for bref in inodes}) < len(inodes)
    data = sum(bref.type == BrefType.DATA for bref in brefs)
    pieces = sum(
        len(list(pfs.pieces(node)))
        for pfs in reader.pfs_list()
        for _, node in pfs.walk()
        if node.meta.type == ObjType.REGFILE and not node.meta.directdata
    )
    assert data < 0.6 * pieces
    assert brefs[0] == reader.sroot.bref


def test_a_freemap_with_nodes():
    # What if the freemap of a large volume, five leaves and more, could not be read?
    builder = Builder(6 << 30)
    leaves = []
    for number in range(5):
        data = pack_leaf(initial_leaf(number << 30, 8 << 20, 6 << 30))
        bref = Blockref(BrefType.FREEMAP_LEAF, Check.FREEMAP << 4, key=number << 30, keybits=30)
        leaves.append(builder.put(bref, data))
    node = Blockref(BrefType.FREEMAP_NODE, Check.FREEMAP << 4, key=0, keybits=38)
    node = builder.put(node, pack_blockrefs(leaves, 32768))
    image = builder.finish(builder.pfs(b"ROOT", ()), freemap_blockset=node.pack())
    reader = Reader(open_set([image.device()]))
    assert list(reader.freemap()) == leaves
    found = reader.tree.find(reader.freemap_table(), 3 << 30 | 12345)
    assert found == leaves[3]
    assert unpack_leaf(reader.tree.load(found))[0] == BmapData.full()
    image.write_at(node.offset, b"\xff")
    told: list[MediaError] = []
    assert list(reader.freemap(lambda _, exc: told.append(exc))) == leaves
    reader = Reader(open_set([image.device()]))
    assert list(reader.freemap(lambda _, exc: told.append(exc))) == []
    assert [exc.data_off for exc in told] == [node.data_off]


def test_twenty_thousand_names():
    # What if a large directory were listed in anything but one pass over its blocks?
    builder = Builder(comp=Comp.NONE)
    inodes = [builder.inode(below=b"") for _ in range(20_000)]
    names = [builder.dirent(b"file%05d" % n, inode.key) for n, inode in enumerate(inodes)]
    pfs = open_pfs(builder, *inodes, *names)
    before = pfs.tree.statistics().blocks_read
    assert {entry.name for entry in pfs.readdir(pfs.root)} == {
        b"file%05d" % n for n in range(20_000)
    }
    tables = sum(bref.type == BrefType.INDIRECT for bref in builder.metadata)
    assert pfs.tree.statistics().blocks_read - before <= tables
    assert pfs.lookup(pfs.root, b"file12345").inum == inodes[12345].key
    nodes = [node for _, node in pfs.readdir_nodes(pfs.root) if isinstance(node, Node)]
    assert len(nodes) == 20_000
    assert not any(map(attrgetter("meta.size"), nodes))
    assert pfs.root.meta.op_flags == OpFlag.PFSROOT
