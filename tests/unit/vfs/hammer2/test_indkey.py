"""Growing tables: ranges of new indirect blocks against DragonFly's rules and its volumes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfuser.vfs.hammer2.node import Node
from dfuser.vfs.hammer2.ondisk.blockref import Blockref
from dfuser.vfs.hammer2.ondisk.const import KEY_MAX, BrefType, ObjType
from dfuser.vfs.hammer2.ondisk.indkey import (
    indirect_bytes,
    indkey_dir,
    indkey_file,
    indkey_freemap,
)
from tests.unit.vfs.hammer2 import images

KEYS = st.lists(
    st.integers(0, KEY_MAX) | st.integers(1024, 2000), min_size=5, max_size=40, unique=True
)
OFFSETS = st.lists(
    st.integers(0, 2**47 - 1) | st.integers(0, 300), min_size=5, max_size=300, unique=True
)
SIZES = st.sampled_from([4096, 16384])


def kernel_dir(key: int, entries: list[Blockref], ncount: int) -> tuple[int, int]:
    """The kernel's own loop: the range grows entry by entry, and the counts of its halves with it.

    A second formulation on purpose: what is tested finds the same without walking.
    """
    bits, low, high = 0, 0, 0
    for bref in sorted(entries, key=lambda bref: bref.key):
        grown = max(bits, bref.keybits)
        while grown < 64 and (key ^ bref.key) >> grown:
            grown += 1
        if grown != bits:
            both, low, high = low + high, 0, 0
            if grown and key >> grown - 1 & 1:
                high = both
            else:
                low = both
            bits = grown
        if bref.key >> bits - 1 & 1:
            high += 1
        else:
            low += 1
    bits -= 1
    while 1 << bits < ncount:
        bits += 1
        both, low, high = low + high, 0, 0
        if key >> bits & 1:
            high = both
        else:
            low = both
    base = key >> bits + 1 << bits + 1
    return base | (1 << bits if high > low else 0), bits


@given(KEYS, SIZES)
def test_directories_grow_like_the_kernels(keys, nbytes):
    # What if a directory written here had a shape that DragonFly never makes?
    key, *others = keys
    entries = [Blockref(BrefType.DIRENT, key=other) for other in others]
    found = indkey_dir(key, entries, nbytes)
    assert found == kernel_dir(key, entries, nbytes // 128)
    inside = [bref for bref in entries if found[0] <= bref.key < found[0] + (1 << found[1])]
    assert 2 * len(inside) >= len(entries)


def insert(table: list[Blockref], bref: Blockref, room: int, for_type: int) -> int:
    """Put an entry into a table that may be full; gives how many indirect blocks that took."""
    steps = 0
    while len(table) >= room:
        steps += 1
        assert steps < 200
        nbytes = indirect_bytes(for_type, room, below_directory=for_type != BrefType.DATA)
        if for_type == BrefType.DATA:
            key, keybits = indkey_file(table, nbytes)
        else:
            key, keybits = indkey_dir(bref.key, table, nbytes)
        new = Blockref(BrefType.INDIRECT, key=key, keybits=keybits)
        assert new.last_key <= KEY_MAX
        inside = [e for e in table if key <= e.key and e.last_key <= new.last_key]
        outside = [e for e in table if e.last_key < key or e.key > new.last_key]
        assert inside
        assert len(inside) + len(outside) == len(table)
        assert all(e.keybits < keybits for e in inside)
        table[:] = [*outside, new]
        if new.key <= bref.key <= new.last_key:
            return steps
    for entry in table:
        if entry.key <= bref.key <= entry.last_key:
            return steps
    table.append(bref)
    return steps


@given(KEYS)
def test_a_directory_always_finds_room(keys):
    # What if a full table stayed full, or an entry lay across the border of a new block?
    table: list[Blockref] = []
    for key in keys:
        insert(table, Blockref(BrefType.DIRENT, key=key), 4, BrefType.DIRENT)


@given(OFFSETS)
def test_a_file_always_finds_room(pieces):
    # What if a file with pieces far apart grew indirect blocks for ever?
    table: list[Blockref] = []
    for piece in pieces:
        bref = Blockref(BrefType.DATA, key=piece << 16, keybits=16)
        insert(table, bref, 4, BrefType.DATA)


def test_a_file_written_in_order():
    # What if a plain file had blocks of another range than DragonFly's 8 MiB and 1 GiB?
    pieces = [Blockref(BrefType.DATA, key=n << 16, keybits=16) for n in range(4)]
    assert indkey_file(pieces, 16384) == (0, 23)
    blocks = [Blockref(BrefType.INDIRECT, key=n << 23, keybits=23) for n in range(4)]
    assert indkey_file(blocks, 16384) == (0, 30)
    assert indkey_file([*blocks[1:], pieces[3]], 16384) == (0, 23)
    assert indkey_file([Blockref(BrefType.DATA, key=3 << 62, keybits=62)], 16384) == (1 << 63, 63)


@pytest.mark.parametrize("level", range(1, 5))
def test_freemap_nodes(level):
    # What if a freemap node had a range for which no place is reserved?
    radix = (22, 30, 38, 46, 54, 62)
    entries = [Blockref(BrefType.FREEMAP_NODE, key=n << radix[level], keybits=radix[level])
               for n in (257, 256, 300)]  # fmt: skip
    assert indkey_freemap(entries) == (1 << radix[level + 1], radix[level + 1])


def test_freemap_nodes_that_cannot_be():
    # What if a table of the highest level wanted one above it?
    for keybits in (22, 62, 31):
        with pytest.raises(ValueError, match=f"blocks of {keybits} bits"):
            indkey_freemap([Blockref(BrefType.FREEMAP_LEAF, keybits=keybits)])


def test_sizes_of_new_blocks():
    # What if a block could not take all entries of the table it stands in?
    assert indirect_bytes(BrefType.DIRENT, 4, below_directory=True) == 4096
    assert indirect_bytes(BrefType.INODE, 32, below_directory=False) == 16384
    assert indirect_bytes(BrefType.DATA, 4, below_directory=False) == 16384
    assert indirect_bytes(BrefType.DATA, 512, below_directory=False) == 65536
    assert indirect_bytes(BrefType.FREEMAP_LEAF, 4, below_directory=False) == 32768


def indirect_blocks(name: str) -> Iterator[tuple[Node, Blockref]]:
    """All indirect blocks of an image, with the inode they are below."""
    reader = images.reader(name)
    for pfs in reader.pfs_list():
        for _, node in pfs.walk():
            for bref in reader.tree.scan(node.table(), inner=True):
                if bref.type == BrefType.INDIRECT:
                    yield node, bref


def test_trees_of_dragonfly_look_like_that():
    # What if the sizes and ranges above were not those of the blocks on real volumes?
    blocks = [block for name in ("lz4_xxhash", "snapshots") for block in indirect_blocks(name)]
    assert all(bref.key % (1 << bref.keybits) == 0 for _, bref in blocks)
    files = [bref for node, bref in blocks if node.meta.type == ObjType.REGFILE]
    assert files
    assert {bref.nbytes for bref in files} == {16384}
    assert {bref.keybits for bref in files} <= {23, 30, 37}
    directories = [bref for node, bref in blocks if node.is_directory]
    # Either size may be moved later: down into a new block, up when others go.
    assert {bref.nbytes for bref in directories} == {4096, 16384}
    assert all(5 <= bref.keybits <= 63 for bref in directories)
