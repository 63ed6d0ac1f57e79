"""How a full table grows: the size and range of the new indirect block.

When an entry finds its table full, a new indirect block takes the place of all entries in some
range, which move into it. Which range that is decides how the tree looks later:

    file       the lowest piece and as many behind it as the block has entries, so that pieces
               that follow each other share blocks and a block covers 8 MiB, 1 GiB, 128 GiB ...
    directory  keys are hashes or numbers: the smallest power-of-two range around all entries is
               cut in two, and the half with more entries moves; never less than the block holds
    freemap    fixed levels, for its blocks have fixed places (see geometry.py)

A file with pieces far apart may need several steps until its table has room again; each step
makes the ranges in it larger, so there is an end.

Blocks are 4 KiB (32 entries) right below a directory's inode, 16 KiB (128 entries) elsewhere,
32 KiB in the freemap, and never smaller than the table they hang in.

Counterpart: hammer2_chain_create_indirect, hammer2_chain_indkey_dir, _file, _freemap
    (vfs/hammer2/hammer2_chain.c).
Token/lock order: takes none. Arithmetic on a table as it is now; moving is the chain's work.
Invariants: each range contains at least one entry of the table, and each entry lies either inside
    or outside of it, never across its border.
"""

from __future__ import annotations

from collections.abc import Sequence

from dfuser.vfs.hammer2.ondisk.blockref import Blockref
from dfuser.vfs.hammer2.ondisk.const import (
    BLOCKREF_BYTES,
    FREEMAP_LEVELN_PSIZE,
    FREEMAP_RADIX,
    IND_BYTES_MIN,
    IND_BYTES_NOM,
    BrefType,
)


def indirect_bytes(for_type: int, room: int, *, below_directory: bool) -> int:
    """The size of a new indirect block.

    Args:
        for_type: what the entry is for which there was no room.
        room: how many entries the full table has.
        below_directory: whether that table is in the inode of a directory.
    """
    if for_type in (BrefType.FREEMAP_NODE, BrefType.FREEMAP_LEAF):
        return FREEMAP_LEVELN_PSIZE
    wanted = IND_BYTES_MIN if below_directory else IND_BYTES_NOM
    return max(wanted, room * BLOCKREF_BYTES)


def indkey_file(entries: Sequence[Blockref], nbytes: int) -> tuple[int, int]:
    """Key and keybits of a new indirect block in the tree of a file.

    Args:
        entries: what the full table has; not empty.
        nbytes: size of the new block.
    """
    lowest = min(entries, key=lambda bref: (bref.keybits, bref.key))
    keybits = min(63, lowest.keybits + (nbytes // BLOCKREF_BYTES).bit_length() - 1)
    return lowest.key >> keybits << keybits, keybits


def indkey_dir(key: int, entries: Sequence[Blockref], nbytes: int) -> tuple[int, int]:
    """Key and keybits of a new indirect block in the tree of a directory, or for inodes.

    Args:
        key: of the entry for which there was no room; it may end up beside the block.
        entries: what the full table has; not empty.
        nbytes: size of the new block.
    """
    low = min(key, *(bref.key for bref in entries))
    high = max(key, *(bref.last_key for bref in entries))
    keybits = (low ^ high).bit_length() - 1
    least = (nbytes // BLOCKREF_BYTES).bit_length() - 1
    if keybits < least:
        return key >> least << least, least
    upper = high >> keybits << keybits
    above = sum(bref.key >= upper for bref in entries)
    return (upper if 2 * above > len(entries) else upper - (1 << keybits)), keybits


def indkey_freemap(entries: Sequence[Blockref]) -> tuple[int, int]:
    """Key and keybits of a new freemap node.

    Args:
        entries: what the full table has; not empty.

    Raises:
        ValueError: an entry is of no level, or the highest that nodes may have.
    """
    lowest = min(entries, key=lambda bref: (bref.keybits, bref.key))
    if lowest.keybits not in FREEMAP_RADIX[1:5]:
        raise ValueError(f"no freemap node covers blocks of {lowest.keybits} bits")
    keybits = FREEMAP_RADIX[FREEMAP_RADIX.index(lowest.keybits) + 1]
    return lowest.key >> keybits << keybits, keybits
