"""Trees of blockrefs: blocks read and verified, tables decoded, keys found and listed in order.

A tree begins with four blockrefs (in the header or an inode) and grows by indirect blocks::

    blockset  [k=0 INODE] [k=0x400 kb=10 INDIRECT] [ ] [k=1<<63 kb=62 INDIRECT]
                                |                            |
                          [k=0x400 INODE] ...          [k=... DIRENT] ...

An indirect block may be anywhere an entry may be, so trees have no even depth: a table may hold
leaves and indirect blocks side by side. Two rules make it a tree, and `make_table` enforces them:
what lies in a table lies within the range of the blockref that led there, and ranges in a table
do not overlap. They bound every walk as well: each step down shrinks the range or meets the depth
limit, and no block with anything in it can be reached by two ways.

A damaged block is an error for what lies below it and for nothing else. Who lists a tree may hand
in `onerror`; then the listing goes on behind the damaged part.

Counterpart: hammer2_chain_lookup, hammer2_chain_next, hammer2_combined_find
    (vfs/hammer2/hammer2_chain.c).
Differs from DragonFly: for volumes at rest only. No chain is kept in memory; decoded indirect
    blocks are, those used last. Entries need not be sorted in their block, as the
    comment in hammer2_disk.h promises; DragonFly's search expects them to be.
Token/lock order: takes none; reading is a callable handed in.
Invariants: no byte of a block is looked at before its check code held.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from dfuser.vfs.hammer2.check import testcheck
from dfuser.vfs.hammer2.errors import MediaError
from dfuser.vfs.hammer2.ondisk.blockref import BLOCKREF, Blockref, make
from dfuser.vfs.hammer2.ondisk.const import BLOCKREF_BYTES, KEY_MAX, BrefType
from dfuser.vfs.hammer2.ondisk.geometry import block_fits
from dfuser.vfs.hammer2.volume import ReadAt

#: Called with the blockref of a damaged block and what is wrong with it.
OnError = Callable[[Blockref, MediaError], None]

#: Types whose block is a table again.
_INNER: Final = (int(BrefType.INDIRECT), int(BrefType.FREEMAP_NODE))
#: Deeper than 64 halvings of a range no tree can be.
MAX_DEPTH: Final = 64
#: Blockrefs of decoded indirect blocks that are kept; each takes about 500 bytes of memory.
ENTRY_LIMIT: Final = 65536


class Table(NamedTuple):
    """A decoded blockset or indirect block: its entries by ascending key, without empty ones."""

    keys: list[int]
    brefs: list[Blockref]


class TreeStatistics(NamedTuple):
    """What a `Tree` has done so far."""

    blocks_read: int
    bytes_read: int
    check_failures: int
    tables: int
    entries: int
    table_hits: int


def make_table(data: bytes | memoryview, first: int, last: int, data_off: int = 0) -> Table:
    """Decode a table.

    Args:
        data: the bytes of a blockset or indirect block.
        first: first key that may lie in it.
        last: last key that may lie in it.
        data_off: the block's, for the error.

    Raises:
        MediaError: an entry leaves the range, or two overlap.
    """
    brefs = [make(Blockref, values) for values in BLOCKREF.iter_unpack(data) if values[0]]
    keys = [bref.key for bref in brefs]
    end = first - 1
    for bref in brefs:
        if bref.key <= end:
            break
        end = bref.key + (1 << bref.keybits) - 1
    else:
        if end <= last:
            return Table(keys, brefs)
    # Not ascending, or leaving the range: sort, then see what is wrong.
    brefs.sort(key=lambda bref: bref.key)
    end = first - 1
    for bref in brefs:
        if bref.key < first or bref.last_key > last:
            raise MediaError(f"an entry with key {bref.key:#x} leaves its table's range", data_off)
        if bref.key <= end:
            raise MediaError(f"two entries overlap at key {bref.key:#x}", data_off)
        end = bref.last_key
    return Table([bref.key for bref in brefs], brefs)


class Tree:
    """The blocks of a volume at rest, and the trees they make."""

    __slots__ = (
        "_tables", "blocks_read", "bytes_read", "check_failures", "kept", "limit", "read_at",
        "size", "table_hits",
    )  # fmt: skip

    def __init__(self, read_at: ReadAt, size: int, limit: int = ENTRY_LIMIT) -> None:
        """Read from a volume.

        Args:
            read_at: reads bytes of the volume.
            size: how many it has.
            limit: how many blockrefs of decoded indirect blocks are kept.
        """
        self.read_at = read_at
        self.size = size
        self.limit = limit
        self._tables: OrderedDict[int, tuple[Blockref, Table]] = OrderedDict()
        self.kept = 0
        self.blocks_read = 0
        self.bytes_read = 0
        self.check_failures = 0
        self.table_hits = 0

    def statistics(self) -> TreeStatistics:
        """Counters since the tree was made."""
        return TreeStatistics(
            self.blocks_read, self.bytes_read, self.check_failures, len(self._tables), self.kept,
            self.table_hits,
        )  # fmt: skip

    def load(self, bref: Blockref) -> bytes:
        """The block of a blockref, as it lies on the media, verified.

        Raises:
            MediaError: no block can lie there, it cannot be read, or its check code is wrong.
        """
        data_off = bref.data_off
        if not block_fits(data_off, self.size):
            raise MediaError("no block can lie there", data_off)
        size = 1 << (data_off & 63)
        try:
            data = self.read_at(data_off & ~63, size)
        except OSError as exc:
            raise MediaError(f"cannot be read: {exc.strerror or exc}", data_off) from exc
        if len(data) != size:
            raise MediaError(f"only {len(data)} bytes could be read", data_off)
        self.blocks_read += 1
        self.bytes_read += size
        try:
            good = testcheck(bref, data)
        except MediaError as exc:
            raise MediaError(exc.strerror, data_off) from None
        if not good:
            self.check_failures += 1
            raise MediaError("wrong check code", data_off)
        return data

    def table(self, bref: Blockref) -> Table:
        """The entries of an indirect block or freemap node.

        Raises:
            MediaError: the block is damaged (see `load` and `make_table`).
        """
        data_off = bref.data_off
        kept = self._tables.get(data_off)
        if kept is not None and kept[0] == bref:
            self._tables.move_to_end(data_off)
            self.table_hits += 1
            return kept[1]
        data = self.load(bref)
        if len(data) % BLOCKREF_BYTES:
            raise MediaError("an indirect block of this size", data_off)
        table = make_table(data, bref.key, bref.last_key, data_off)
        self._keep(bref, table)
        return table

    def _keep(self, bref: Blockref, table: Table) -> None:
        """Remember a decoded block, and forget those not used for longest."""
        tables = self._tables
        old = tables.pop(bref.data_off, None)
        if old is not None:
            self.kept -= len(old[1].keys)
        tables[bref.data_off] = (bref, table)
        self.kept += len(table.keys)
        # Empty blocks count as well, so that a volume full of them fills nothing.
        while tables and self.kept + len(tables) > self.limit:
            self.kept -= len(tables.popitem(last=False)[1][1].keys)

    def find(self, table: Table, key: int) -> Blockref | None:
        """The leaf that covers a key.

        Args:
            table: where the tree begins.
            key: what is looked for.

        Raises:
            MediaError: a block on the way is damaged.
        """
        for _ in range(MAX_DEPTH):
            index = bisect_right(table.keys, key) - 1
            if index < 0:
                return None
            bref = table.brefs[index]
            if bref.last_key < key:
                return None
            if bref.type not in _INNER:
                return bref
            table = self.table(bref)
        raise MediaError("a tree too deep to be one")

    def scan(
        self,
        table: Table,
        first: int = 0,
        last: int = KEY_MAX,
        onerror: OnError | None = None,
        *,
        inner: bool = False,
    ) -> Iterator[Blockref]:
        """The leaves that cover a range of keys, in order.

        Args:
            table: where the tree begins.
            first: first key.
            last: last key, included.
            onerror: called for each damaged block; the listing goes on behind it.
            inner: give the blockrefs of indirect blocks too, each before what lies below.

        Raises:
            MediaError: a block is damaged and there is no `onerror`.
        """
        levels = [self._entries(table, first)]
        while levels:
            for bref in levels[-1]:
                if bref.key > last:
                    return
                if bref.type not in _INNER:
                    yield bref
                    continue
                if inner:
                    yield bref
                try:
                    if len(levels) >= MAX_DEPTH:
                        raise MediaError("a tree too deep to be one", bref.data_off)
                    below = self.table(bref)
                except MediaError as exc:
                    if onerror is None:
                        raise
                    onerror(bref, exc)
                    continue
                levels.append(self._entries(below, first))
                break
            else:
                levels.pop()

    @staticmethod
    def _entries(table: Table, first: int) -> Iterator[Blockref]:
        """The entries of a table that end at a key or behind it."""
        start = bisect_right(table.keys, first) - 1
        if start < 0 or table.brefs[start].last_key < first:
            start += 1
        return iter(table.brefs[start:] if start else table.brefs)
