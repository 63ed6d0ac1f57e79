"""Trees of chains against a sorted dictionary: growing, shrinking, cutting, and the cache."""

from __future__ import annotations

import random
from bisect import bisect_left

import pytest

from dfuser.libkern.errno import EEXIST, ENOENT, ENOSPC, KError
from dfuser.vfs.hammer2 import xops
from dfuser.vfs.hammer2.chain import Chain
from dfuser.vfs.hammer2.dev import Dev
from dfuser.vfs.hammer2.inode import InodeChain
from dfuser.vfs.hammer2.ondisk.blockref import Blockref
from dfuser.vfs.hammer2.ondisk.const import KEY_MAX, BrefType, Check, ObjType
from dfuser.vfs.hammer2.tunables import Tunables
from tests.unit.vfs.hammer2.world import FOUR, chain_problems, new_disk, open_disk, reader

METHODS = Check.XXHASH64 << 4


class Plain:
    """An inode's tree, and what ought to be in it."""

    def __init__(self, kind: ObjType, bref_type: BrefType, keybits: int) -> None:
        tunables = Tunables()
        tunables.limit_chains = 64
        self.disk = new_disk(FOUR)
        self.dev: Dev = open_disk(self.disk, tunables)
        self.ip = xops.ncreate(self.dev.pfs(b"DATA").root, b"f", kind)
        self.ip.modify(1).op_flags = 0
        self.bref_type, self.keybits = bref_type, keybits
        self.keys: dict[int, int] = {}
        self.count = 0

    @property
    def root(self) -> InodeChain:
        return self.ip.chain

    def bref(self, key: int) -> Blockref:
        """An entry without a block; its modify_tid tells it from others with the key."""
        self.count += 1
        return Blockref(
            self.bref_type, METHODS, key=key, keybits=self.keybits, modify_tid=self.count,
            mirror_tid=self.dev.chains.mirror_tid + 1,
        )  # fmt: skip

    def insert(self, key: int) -> None:
        bref = self.bref(key)
        if key in self.keys:
            with pytest.raises(KError) as error:
                self.dev.chains.insert(self.root, bref, self.count)
            assert error.value.errno == EEXIST
        else:
            self.dev.chains.insert(self.root, bref, self.count)
            self.keys[key] = self.count

    def replace(self, key: int) -> None:
        old = self.dev.chains.replace(self.root, self.bref(key), self.count)
        assert (old.modify_tid if old else None) == self.keys.get(key)
        self.keys[key] = self.count

    def delete(self, key: int) -> None:
        if key in self.keys:
            self.dev.chains.delete(self.root, key, self.count)
            del self.keys[key]
        else:
            with pytest.raises(KError) as error:
                self.dev.chains.delete(self.root, key, self.count)
            assert error.value.errno == ENOENT

    def cut(self, first: int) -> None:
        self.dev.chains.cut(self.root, first, self.count)
        self.keys = {key: tid for key, tid in self.keys.items() if key < first}

    def check(self) -> None:
        """Compare both, whole and in part, in memory and on the media."""
        assert chain_problems(self.dev) == []
        found: list[Blockref] = []
        assert not self.dev.chains.collect(self.root, 0, KEY_MAX, found, 1 << 20)
        assert {bref.key: bref.modify_tid for bref in found} == self.keys
        keys = sorted(self.keys)
        assert [bref.key for bref in found] == keys
        for first in keys[:: max(1, len(keys) // 7)]:
            part: list[Blockref] = []
            more = self.dev.chains.collect(self.root, first, KEY_MAX, part, 5)
            at = bisect_left(keys, first)
            assert [bref.key for bref in part] == keys[at : at + 5]
            assert more == (len(keys) - at > 5)

    def sync(self) -> None:
        self.dev.sync()
        self.dev.chains.trim()
        tree = reader(self.disk).tree
        node = reader(self.disk).pfs(b"DATA").inode(self.ip.inum)
        assert {bref.key: bref.modify_tid for bref in tree.scan(node.table())} == self.keys


KINDS = [
    (ObjType.REGFILE, BrefType.DATA, 16, [n << 16 for n in range(600)]),
    (ObjType.REGFILE, BrefType.DATA, 16, [n << 44 for n in range(200)]),
    (ObjType.DIRECTORY, BrefType.DIRENT, 0, [(1 << 63) + n * 0x1234567890123 for n in range(700)]),
    (ObjType.DIRECTORY, BrefType.DIRENT, 0, [(1 << 63) + n for n in range(400)]),
]


@pytest.mark.parametrize("which", range(len(KINDS)))
def test_like_a_dictionary(which: int) -> None:
    """What if a tree lost an entry, kept one, or had one twice?"""
    kind, bref_type, keybits, keys = KINDS[which]
    plain = Plain(kind, bref_type, keybits)
    rng = random.Random(which)
    for number in range(2500):
        grow = number % 1000 < 600
        action = rng.choice((plain.insert, plain.replace) if grow else (plain.delete,))
        action(rng.choice(keys))
        if rng.random() < 0.004:
            plain.cut(rng.choice(keys))
        if rng.random() < 0.01:
            plain.sync()
        if number % 100 == 0:
            plain.check()
    plain.check()
    plain.sync()
    statistics = plain.dev.chains.statistics()
    assert statistics.indirects_created > 3
    assert statistics.indirects_removed + statistics.indirects_folded > 2


def test_same_tree_as_the_kernel() -> None:
    """What if a file written in order had more or smaller tables than DragonFly makes?"""
    plain = Plain(ObjType.REGFILE, BrefType.DATA, 16)
    for piece in range(512):
        plain.insert(piece << 16)
    tables = [slot for slot in plain.root.slots if isinstance(slot, Chain)]
    assert [(table.bref.key, table.bref.keybits, len(table.keys)) for table in tables] == [
        (part << 23, 23, 128) for part in range(4)
    ]
    plain.insert(512 << 16)
    tables = [slot for slot in plain.root.slots if isinstance(slot, Chain)]
    assert tables[0].bref.keybits == 30


def test_cut_costs_little() -> None:
    """What if truncating a large file read or changed every table of it?"""
    plain = Plain(ObjType.REGFILE, BrefType.DATA, 16)
    for piece in range(3000):
        plain.insert(piece << 16)
    plain.sync()
    dev = open_disk(plain.disk)
    plain.dev, plain.ip = dev, dev.pfs(b"DATA").inode(plain.ip.inum)
    before = dev.chains.statistics().loads
    plain.cut(200 << 16)
    assert dev.chains.statistics().loads - before <= 4
    plain.check()
    plain.sync()


def test_modify_is_whole() -> None:
    """What if space ran out halfway up to the root: is nothing modified then?"""
    plain = Plain(ObjType.REGFILE, BrefType.DATA, 16)
    for piece in range(600):
        plain.insert(piece << 16)
    plain.dev.sync()
    allocate = plain.dev.chains.allocate
    left = 0

    def failing(kind: int, key: int, size: int) -> int:
        nonlocal left
        if not left:
            raise KError(ENOSPC)
        left -= 1
        return allocate(kind, key, size)

    plain.dev.chains.allocate = failing
    for allowed in range(5):
        left = allowed
        free = plain.dev.flush.voldata.allocator_free
        with pytest.raises(KError):
            plain.replace(5 << 16)
        assert not plain.dev.chains.vchain.modified
        assert plain.dev.flush.voldata.allocator_free == free
    plain.dev.chains.allocate = allocate
    plain.check()
    plain.sync()


def test_cache_is_bounded() -> None:
    """What if the cache kept every inode of a volume, or dropped one that is in use?"""
    disk = new_disk(FOUR)
    dev = open_disk(disk)
    root = dev.pfs(b"DATA").root
    for number in range(1000):
        xops.ncreate(root, b"%d" % number)
    dev.sync()
    tunables = Tunables()
    tunables.limit_chains = 100
    dev = open_disk(disk, tunables)
    root = dev.pfs(b"DATA").root
    held = [xops.nresolve(root, b"%d" % number) for number in range(0, 1000, 5)]
    for _ in range(2):
        for number in range(1000):
            assert xops.nresolve(root, b"%d" % number).meta.nlinks == 1
    assert dev.chains.statistics().chains < 200
    assert dev.chains.statistics().evictions > 1000
    assert [ip.meta.inum for ip in held] == [ip.inum for ip in held]
    assert xops.nresolve(root, b"5") is held[1]
    assert chain_problems(dev) == []
