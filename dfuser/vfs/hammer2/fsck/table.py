"""The entries of one block: their order, their ranges, and the counters made from them.

`make_table`, which readers use, refuses a table with one bad entry. A check wants to know what is
wrong with each, and to go on with the good ones: those that lie in the range of the block, do not
overlap the entry before, and have fields that can be.

Statistics of a blockref are sums over the table in its block: ``data_count`` of the bytes of the
blocks and of what they count themselves, ``inode_count`` of inodes likewise, ``leaf_count`` of
entries that are no indirect blocks, all levels of indirect blocks together, up to 65535. They are
compared with what the entries say, not with what was counted below, so that one wrong number is
one finding.

Counterpart: hammer2_base_insert, hammer2_base_delete (vfs/hammer2/hammer2_chain.c).
Token/lock order: takes none.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Final, NamedTuple

from dfuser.vfs.hammer2.fsck.report import Kind
from dfuser.vfs.hammer2.ondisk.blockref import BLOCKREF, Blockref, make
from dfuser.vfs.hammer2.ondisk.const import BLOCKREF_LEAF_MAX, RADIX_KEY, BrefType

_INODE: Final = int(BrefType.INODE)
_INDIRECT: Final = int(BrefType.INDIRECT)


class Problem(NamedTuple):
    """What is wrong with an entry."""

    kind: Kind
    text: str
    key: int


class Checked(NamedTuple):
    """A decoded table: entries that can be used by ascending key, and what is wrong."""

    brefs: list[Blockref]
    problems: list[Problem]


class Sums(NamedTuple):
    """What a blockref should count."""

    data_count: int
    inode_count: int
    leaf_count: int


def check_table(data: bytes | memoryview, first: int, last: int) -> Checked:
    """Decode a table and look at its keys.

    Args:
        data: a blockset or indirect block.
        first: first key that may lie in it.
        last: last key that may lie in it.
    """
    brefs = [make(Blockref, values) for values in BLOCKREF.iter_unpack(data) if values[0]]
    end = first - 1
    for bref in brefs:
        if bref.key <= end or bref.keybits > RADIX_KEY:
            break
        end = bref.key + (1 << bref.keybits) - 1
    else:
        if end <= last:
            return Checked(brefs, [])
    return _sort_out(brefs, first, last)


def _sort_out(brefs: list[Blockref], first: int, last: int) -> Checked:
    """The entries of a bad table that can be used, and what is wrong with the others."""
    problems: list[Problem] = []
    good: list[Blockref] = []
    for bref in brefs:
        if bref.keybits > RADIX_KEY:
            text = f"an entry whose range has {bref.keybits} bits"
            problems.append(Problem(Kind.BLOCKREF, text, bref.key))
        elif bref.key < first or bref.last_key > last:
            text = f"an entry with key {bref.key:#x} leaves the range {first:#x} to {last:#x}"
            problems.append(Problem(Kind.KEY_RANGE, text, bref.key))
        else:
            good.append(bref)
    for before, bref in pairwise(good):
        if bref.key < before.key:
            text = f"key {bref.key:#x} follows {before.key:#x}"
            problems.append(Problem(Kind.KEY_ORDER, text, bref.key))
    good.sort(key=lambda bref: bref.key)
    kept: list[Blockref] = []
    for bref in good:
        if kept and bref.key <= kept[-1].last_key:
            text = f"two entries cover key {bref.key:#x}"
            problems.append(Problem(Kind.KEY_OVERLAP, text, bref.key))
        else:
            kept.append(bref)
    return Checked(kept, problems)


def sums(brefs: Iterable[Blockref]) -> Sums:
    """What a blockref to a block with these entries should count."""
    data_count = inode_count = leaf_count = 0
    for bref in brefs:
        data_count += bref.nbytes
        if bref.type in (_INODE, _INDIRECT):
            below = bref.stats
            data_count += below[0]
            inode_count += below[1]
        inode_count += bref.type == _INODE
        leaf_count += bref.leaf_count if bref.type == _INDIRECT else 1
    return Sums(data_count, inode_count, min(leaf_count, BLOCKREF_LEAF_MAX))
