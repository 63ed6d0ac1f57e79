"""The trees of DragonFly's images, written by us; and DragonFly's images, changed by us."""

from __future__ import annotations

import random

import pytest

from dfuser.vfs.hammer2 import strategy, xops
from dfuser.vfs.hammer2.bulkfree import Bulkfree
from dfuser.vfs.hammer2.ondisk.const import Check, Comp, ObjType
from tests.unit.vfs.hammer2 import images
from tests.unit.vfs.hammer2.world import (
    FOUR,
    GIB,
    content,
    copy_tree,
    deep_check,
    disk_of,
    live_content,
    live_walk,
    new_disk,
    open_disk,
    reader,
)

TREES = [("lz4_xxhash", "DATA"), ("snapshots", "snap2")]
METHODS = [
    (Comp.LZ4, Check.XXHASH64), (Comp.NONE, Check.NONE), (Comp.AUTOZERO, Check.ISCSI32),
    (6 << 4 | Comp.ZLIB, Check.SHA192), (Comp.NONE, Check.DISABLED),
]  # fmt: skip


def manifest_of(disk: object, label: bytes) -> list[str]:
    """The manifest of what lies on a disk, but for the times of directories, which makefs sets."""
    return sorted(images.lines_of(reader(disk).pfs(label)))  # type: ignore[arg-type]


def same_tree(image: str, label: str, comp: int, check: int) -> None:
    disk = new_disk(FOUR, comp=comp, check=check)
    dev = open_disk(disk)
    pfs = dev.pfs(b"DATA")
    copy_tree(images.reader(image).pfs(label.encode()), pfs)
    live = live_content(pfs)
    dev.sync()
    lines = sorted(images.manifest_lines(image, label))
    assert manifest_of(disk, b"DATA") == lines
    assert deep_check(disk) == []
    assert content(reader(disk).pfs(b"DATA")) == live
    again = open_disk(disk)
    assert live_content(again.pfs(b"DATA")) == live


@pytest.mark.parametrize(("image", "label"), TREES[:1])
def test_tree_written(image: str, label: str) -> None:
    """What if a tree that makefs wrote were another one when we write it?"""
    same_tree(image, label, *METHODS[0])


@pytest.mark.slow
@pytest.mark.parametrize(("comp", "check"), METHODS)
@pytest.mark.parametrize(("image", "label"), TREES)
def test_trees_written(image: str, label: str, comp: int, check: int) -> None:
    """What if that depended on how data is compressed and checked?"""
    same_tree(image, label, comp, check)


def change(dev: object, seed: int, count: int) -> None:
    """Change a random part of a tree: data, names, links."""
    rng = random.Random(seed)
    pfs = dev.pfs(b"DATA")  # type: ignore[attr-defined]
    known = dict(live_walk(pfs))
    directories = [path for path, ip in known.items() if ip.is_directory]
    files = [path for path, ip in known.items() if ip.meta.type == ObjType.REGFILE]
    for number in range(count):
        dip = known[rng.choice(directories)]
        path = files.pop(rng.randrange(len(files)))
        parent, _, name = path.rpartition(b"/")
        ip = known[path]
        match rng.randrange(6):
            case 0:
                strategy.write(ip, rng.randrange(200_000), rng.randbytes(rng.randrange(1, 90_000)))
            case 1:
                strategy.truncate(ip, rng.randrange(300_000))
            case 2:
                xops.nremove(known[parent], name)
            case 3:
                xops.nrename(known[parent], name, dip, b"moved%d" % number)
            case 4:
                xops.nlink(dip, b"link%d" % number, ip)
            case 5:
                new = xops.ncreate(dip, bytes([200 + number % 50]) * rng.randrange(1, 255))
                strategy.write(new, 0, rng.randbytes(rng.randrange(70_000)))


def changed_image(image: str, count: int) -> None:
    disk = disk_of(images.load(image))
    # makefs leaves inodes without names, and snapshots without counts, behind.
    known = set(deep_check(disk))
    for seed in range(3):
        dev = open_disk(disk)
        change(dev, seed, count)
        live = live_content(dev.pfs(b"DATA"))
        dev.sync()
        assert content(reader(disk).pfs(b"DATA")) == live
        assert set(deep_check(disk)) <= known
    results = [Bulkfree(dev).run() for _ in range(2)]
    assert results[0].corrupt == results[1].corrupt == 0
    assert results[1].freed > 0
    assert set(deep_check(disk)) <= known
    assert content(reader(disk).pfs(b"DATA")) == live


def test_image_changed() -> None:
    """What if an image of DragonFly's tools broke when we write to it?"""
    changed_image("lz4_xxhash", 30)


@pytest.mark.slow
@pytest.mark.parametrize("image", ["zlib_crc32", "snapshots", "four_headers"])
def test_images_changed(image: str) -> None:
    """What if only some of them did, or a snapshot changed with its source?"""
    before = [(pfs.label, content(pfs)) for pfs in images.reader(image).pfs_list()]
    changed_image(image, 100)
    disk = disk_of(images.load(image))
    dev = open_disk(disk)
    change(dev, 9, 100)
    dev.sync()
    after = {pfs.label: content(pfs) for pfs in reader(disk).pfs_list()}
    assert all(after[label] == tree for label, tree in before if label != b"DATA")


def test_beyond_gib() -> None:
    """What if the first allocation of a GiB and the fifth leaf of a volume went wrong?"""
    disk = new_disk(FOUR)
    dev = open_disk(disk)
    ip = xops.ncreate(dev.pfs(b"DATA").root, b"f")
    for kind in range(1, 5):
        dev.freemap._starts[kind] = 0
    for gib in (0, 1, 2, 3, 5, 7):
        dev.freemap._hints.clear()
        for kind in range(1, 5):
            dev.freemap._starts[kind] = gib * GIB
        strategy.write(ip, gib << 20, bytes([gib + 1]) * 70_000)
        dev.sync()
        assert deep_check(disk) == []
    assert len(list(reader(disk).freemap())) == 6
    again = open_disk(disk).pfs(b"DATA")
    ip = xops.nresolve(again.root, b"f")
    assert strategy.read(ip, 7 << 20, 9) == b"\x08" * 9
