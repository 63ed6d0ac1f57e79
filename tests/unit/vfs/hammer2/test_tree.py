"""Trees of blockrefs: finding and listing against a plain model, and tables that are none."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfuser.libkern.errno import EIO, KError
from dfuser.vfs.hammer2.errors import MediaError
from dfuser.vfs.hammer2.ondisk.blockref import Blockref, pack_blockrefs
from dfuser.vfs.hammer2.ondisk.const import KEY_MAX, BrefType, Check
from dfuser.vfs.hammer2.tree import MAX_DEPTH, Table, Tree, make_table
from tests.unit.vfs.hammer2.builder import Builder

KEYS = st.lists(st.integers(0, KEY_MAX), min_size=1, max_size=150, unique=True)


def leaf(key: int, keybits: int = 0) -> Blockref:
    """A blockref without a block."""
    return Blockref(BrefType.DIRENT, key=key, keybits=keybits)


def tree_of(keys: list[int], **options: int) -> tuple[Tree, Table, Builder]:
    """A tree with leaves at some keys."""
    builder = Builder(**options)
    data = builder.blockset([leaf(key) for key in keys])
    return Tree(builder.image.read_at, builder.image.size), make_table(data, 0, KEY_MAX), builder


@settings(max_examples=60)
@given(KEYS, st.integers(0, KEY_MAX), st.integers(0, KEY_MAX))
def test_listing_is_the_sorted_slice(keys, one, other):
    # What if a listing missed a key, gave one twice, or came out of order?
    tree, table, _ = tree_of(keys)
    first, last = sorted((one, other))
    assert [bref.key for bref in tree.scan(table)] == sorted(keys)
    want = sorted(key for key in keys if first <= key <= last)
    assert [bref.key for bref in tree.scan(table, first, last)] == want
    some = keys[0]
    assert [bref.key for bref in tree.scan(table, some, some)] == [some]


@settings(max_examples=60)
@given(KEYS, st.lists(st.integers(0, KEY_MAX), max_size=20))
def test_each_key_is_found_and_no_other(keys, others):
    # What if the search went past a key, or found one that is not there?
    tree, table, _ = tree_of(keys)
    for key in keys:
        found = tree.find(table, key)
        assert found is not None
        assert found.key == key
    for key in set(others) - set(keys):
        assert tree.find(table, key) is None


def test_a_leaf_covers_its_range():
    # What if a piece of 64 KiB were found at its first byte only?
    table = make_table(pack_blockrefs([leaf(65536, 16), leaf(196608, 16)], 512), 0, KEY_MAX)
    tree = Tree(lambda offset, size: b"", 0)
    assert tree.find(table, 131071) == leaf(65536, 16)
    assert tree.find(table, 131072) is None
    assert tree.find(table, 65535) is None
    assert [bref.key for bref in tree.scan(table, 100_000, 100_001)] == [65536]
    assert [bref.key for bref in tree.scan(table, 131072)] == [196608]


def test_empty_entries_and_any_order_are_accepted():
    # What if a table with holes, or one that is not sorted, hid its entries?
    brefs = [leaf(9), Blockref(0), leaf(3), Blockref(0), leaf(5)]
    table = make_table(b"".join(bref.pack() for bref in brefs), 0, KEY_MAX)
    assert table.keys == [3, 5, 9]
    tree = Tree(lambda offset, size: b"", 0)
    assert [tree.find(table, key) for key in (3, 5, 9)] == [leaf(3), leaf(5), leaf(9)]


@pytest.mark.parametrize(
    ("brefs", "words"),
    [
        ([leaf(5), leaf(5)], "overlap at key 0x5"),
        ([leaf(0, 3), leaf(7)], "overlap at key 0x7"),
        ([leaf(7), leaf(0, 3)], "overlap at key 0x7"),
        ([leaf(99)], "leaves its table's range"),
        ([leaf(64, 6)], "leaves its table's range"),
        ([leaf(0, 255)], "leaves its table's range"),
        ([leaf(0, 64), leaf(1)], "leaves its table's range"),
    ],
)
def test_tables_that_are_none(brefs, words):
    # What if a table reached out of its range, so that a walk could come back to it?
    with pytest.raises(MediaError, match=words) as caught:
        make_table(pack_blockrefs(brefs, 512), 0, 98, 0x10000A)
    assert caught.value.errno == EIO
    assert caught.value.data_off == 0x10000A
    assert "0x100000, 1024 bytes" in caught.value.strerror


def test_a_damaged_block_hides_what_is_below_it_only():
    # What if one bad indirect block ended a listing of everything?
    keys = sorted(random.Random(3).sample(range(1 << 40), 500))
    tree, table, builder = tree_of(keys)
    below = next(bref for bref in builder.metadata if bref.type == BrefType.INDIRECT)
    builder.image.write_at(below.offset + 5, b"\xff")
    with pytest.raises(MediaError, match="wrong check code"):
        list(tree.scan(table))
    told = []
    found = [b.key for b in tree.scan(table, onerror=lambda bref, exc: told.append((bref, exc)))]
    lost = [key for key in keys if below.key <= key <= below.last_key]
    assert lost
    assert sorted(found + lost) == keys
    assert [(bref.data_off, exc.errno) for bref, exc in told] == [(below.data_off, EIO)]
    assert tree.statistics().check_failures == 2
    with pytest.raises(MediaError):
        tree.find(table, lost[0])
    assert tree.find(table, found[0]) is not None


def test_inner_blocks_come_before_what_is_below():
    # What if a walk over all blocks missed the indirect ones?
    tree, table, builder = tree_of(list(range(0, 100_000, 100)))
    indirect = [bref for bref in builder.metadata if bref.type == BrefType.INDIRECT]
    brefs = list(tree.scan(table, inner=True))
    assert sorted(b.data_off for b in brefs if b.type == BrefType.INDIRECT) == sorted(
        b.data_off for b in indirect
    )
    assert len(brefs) == 1000 + len(indirect)
    for at, bref in enumerate(brefs):
        if bref.type == BrefType.INDIRECT:
            assert bref.key <= brefs[at + 1].key <= bref.last_key


def chain_of_indirects(depth: int) -> tuple[Tree, Table]:
    """Indirect blocks that all stand for one range, each below the other."""
    builder = Builder()
    bref = leaf(5)
    for _ in range(depth):
        bref = builder.indirect([bref], 0, 10)
    table = make_table(pack_blockrefs([bref], 512), 0, KEY_MAX)
    return Tree(builder.image.read_at, builder.image.size), table


def test_the_deepest_tree():
    # What if a tree made to be endless were walked until the stack or the patience ends?
    tree, table = chain_of_indirects(MAX_DEPTH - 1)
    assert tree.find(table, 5) == leaf(5)
    assert list(tree.scan(table)) == [leaf(5)]
    tree, table = chain_of_indirects(MAX_DEPTH)
    with pytest.raises(MediaError, match="too deep"):
        tree.find(table, 5)
    with pytest.raises(MediaError, match="too deep"):
        list(tree.scan(table))


def test_a_block_that_refers_to_itself():
    # What if an unchecked block were its own child?
    builder = Builder(meta_check=Check.DISABLED)
    bref = builder.indirect([leaf(5)], 0, 10)
    builder.image.write_at(bref.offset, bref.pack())
    tree = Tree(builder.image.read_at, builder.image.size)
    table = make_table(pack_blockrefs([bref], 512), 0, KEY_MAX)
    with pytest.raises(MediaError, match="too deep"):
        list(tree.scan(table))


@pytest.mark.parametrize("data_off", [0, 10 | 63, 5, (1 << 40) | 10, 512 | 16])
def test_blocks_that_cannot_be(data_off):
    # What if a blockref pointed outside of the volume?
    tree = Tree(lambda offset, size: bytes(size), 1 << 26)
    with pytest.raises(MediaError, match="no block can lie there"):
        tree.load(Blockref(BrefType.DATA, 0x10, data_off=data_off))


def test_reading_that_fails():
    # What if a bad sector were not told as EIO of its block, or a short read as data?
    def sick(_offset: int, _size: int) -> bytes:
        raise KError(EIO, "bad sector")

    bref = Blockref(BrefType.DATA, 0x10, data_off=65536 | 10)
    with pytest.raises(MediaError, match="cannot be read: bad sector"):
        Tree(sick, 1 << 26).load(bref)
    with pytest.raises(MediaError, match="only 3 bytes"):
        Tree(lambda offset, size: b"abc", 1 << 26).load(bref)
    with pytest.raises(MediaError, match=r"unknown kind of check code 9.*0x10000"):
        Tree(lambda o, size: bytes(size), 1 << 26).load(bref._replace(methods=0x90))


def test_kept_tables_are_bounded_and_true():
    # What if decoded blocks piled up, or one were used for another blockref?
    keys = list(range(0, 1 << 20, 64))
    tree, table, _ = tree_of(keys)
    tree.limit = 100
    for key in random.Random(5).sample(keys, 300):
        assert tree.find(table, key) == leaf(key)
        assert tree.statistics().tables + tree.statistics().entries <= 100
        assert tree.statistics().entries >= 0
    assert tree.statistics().table_hits > 0
    before = tree.statistics()
    inner = next(bref for bref in tree.scan(table, inner=True) if bref.type == BrefType.INDIRECT)
    assert tree.table(inner) is tree.table(inner)
    with pytest.raises(MediaError):
        tree.table(inner._replace(keybits=1))
    assert tree.statistics().blocks_read > before.blocks_read


def test_tables_of_a_wrong_size():
    # What if the radix of a blockref made half an entry?
    builder = Builder(meta_check=Check.DISABLED)
    bref = builder.put(Blockref(BrefType.INDIRECT, 0x10, keybits=10), bytes(1024))
    tree = Tree(builder.image.read_at, builder.image.size)
    assert tree.table(bref) == Table([], [])
