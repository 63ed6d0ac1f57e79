"""Bulkfree: finding out what nobody refers to any more, and freeing it in two passes.

Nothing is freed when it is deleted: a snapshot may have it, another file may share it, an older
header leads to it. Instead a pass walks everything that the header just written leads to and lays
what it met over the live freemap::

    in use?   live      becomes
    no        11        10      possibly free
    no        10        00      free: found so by two passes
    yes       10        11
    yes       00        11      must not happen; counted

A block is given out again only when it is 00, so between its last use and its next lie two passes
and the syncs around them. That alone would still leave older header copies that lead to it. So a
pass first writes headers until **every copy that could be chosen is younger than the previous
pass**; none of those leads to a block that pass had found unused. What becomes 00 is then free for
good, whichever copy a crash leaves.

A pass may be interrupted between its steps by other operations. What they allocate meanwhile is
not in the snapshot being walked, so it may be marked 10 by mistake; the next pass sees it and marks
it 11 again, and nothing is ever allocated from 10.

Counterpart: hammer2_bulkfree.c.
Differs from DragonFly: a block that cannot be read ends the pass with nothing changed; DragonFly
    goes on, and frees what lay below that block. Headers are rewritten first, as said above.
    The map is kept for the whole volume, 64 bytes for each 4 MiB in use.
Token/lock order: takes none. One pass of a volume at a time; each step is whole.
Invariants: a segment that is reserved or no part of the volume is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from dfuser.libkern.errno import EINPROGRESS, KError
from dfuser.vfs.hammer2.flush import Step
from dfuser.vfs.hammer2.node import load_node
from dfuser.vfs.hammer2.ondisk.blockref import Blockref
from dfuser.vfs.hammer2.ondisk.bmap import ALLOCATED, BmapData, initial_leaf
from dfuser.vfs.hammer2.ondisk.const import (
    BMAP_ALLONES,
    FREEMAP_BLOCK_RADIX,
    FREEMAP_BLOCK_SIZE,
    FREEMAP_COUNT,
    FREEMAP_RADIX,
    KEY_MAX,
    OFF_MASK,
    OFF_MASK_RADIX,
    SEGMASK,
    SEGRADIX,
    SEGSIZE,
    BrefType,
)
from dfuser.vfs.hammer2.tree import Tree, make_table

if TYPE_CHECKING:
    from dfuser.vfs.hammer2.dev import Dev
    from dfuser.vfs.hammer2.freemap import FreemapLeaf

_LOWER: Final = BMAP_ALLONES // 3
_INODE: Final = int(BrefType.INODE)
_INDIRECT: Final = int(BrefType.INDIRECT)
_LEAF_RADIX: Final = FREEMAP_RADIX[1]
#: Blockrefs looked at between two steps.
_STEP: Final = 1024


class BulkfreeResult(NamedTuple):
    """What a pass found and did, in blocks of 16 KiB; the names are DragonFly's.

    ``freed`` and ``staged`` are what the pass is for, ``restored`` what is in use again,
    ``corrupt`` what was in use and marked free. ``brefs`` counts what was walked.
    """

    brefs: int
    freed: int
    staged: int
    restored: int
    corrupt: int


class Bulkfree:
    """One pass over a volume. Counterpart: hammer2_bulkfree_info_t."""

    __slots__ = ("brefs", "corrupt", "dev", "freed", "linear", "restored", "staged", "used")

    def __init__(self, dev: Dev) -> None:
        """A pass that has not begun."""
        self.dev = dev
        #: For each segment the lower bits of the pairs in use, and where its last piece ends.
        self.used: dict[int, int] = {}
        self.linear: dict[int, int] = {}
        self.brefs = 0
        self.freed = 0
        self.staged = 0
        self.restored = 0
        self.corrupt = 0

    def run(self) -> BulkfreeResult:
        """Do the whole pass in place. See `steps`."""
        steps = self.steps()
        try:
            for step in steps:
                if step is not None:
                    self.dev.io.barrier()
        finally:
            steps.close()  # type: ignore[attr-defined]
        return self.result()

    def result(self) -> BulkfreeResult:
        """What was found so far."""
        return BulkfreeResult(self.brefs, self.freed, self.staged, self.restored, self.corrupt)

    def steps(self) -> Iterator[Step | None]:
        """The pass, piece by piece.

        Yields:
            A step of a sync, at which the caller flushes the devices; or None, where others may
            have their turn.

        Raises:
            KError: EINPROGRESS, another pass runs; EROFS; EIO, something could not be read or
                written: nothing was freed.
        """
        dev = self.dev
        if dev.bulkfreeing:
            raise KError(EINPROGRESS)
        dev.modifying()
        dev.bulkfreeing = True
        try:
            dev.dedup.clear()
            yield from dev.flush.sync_steps()
            while dev.flush.oldest_copy() < dev.staged_tid:
                yield from dev.flush.sync_steps(force=True)
            snapshot = dev.chains.mirror_tid
            yield from self._gather(dev.flush.voldata.sroot_blockset)
            dev.staged_tid = snapshot
            self._merge()
            yield from dev.flush.sync_steps(force=True)
        finally:
            dev.bulkfreeing = False

    # --- gathering -------------------------------------------------------------------------

    def _gather(self, blockset: bytes) -> Iterator[None]:
        """Note every block that a header's topology leads to. Counterpart: hammer2_bulk_scan."""
        tree = Tree(self.dev.io.read_at, self.dev.volume.size)
        seen: set[int] = set()
        levels: list[Iterator[Blockref]] = [iter(make_table(blockset, 0, KEY_MAX).brefs)]
        while levels:
            for bref in levels[-1]:
                self.brefs += 1
                if not self.brefs % _STEP:
                    yield None
                data_off = bref.data_off
                if data_off & OFF_MASK_RADIX:
                    self._note(data_off)
                if bref.type not in (_INODE, _INDIRECT) or data_off in seen:
                    continue
                seen.add(data_off)
                below: Iterable[Blockref]
                if bref.type == _INODE:
                    below = load_node(tree, bref).table().brefs
                else:
                    below = tree.table(bref).brefs
                levels.append(iter(below))
                break
            else:
                levels.pop()

    def _note(self, data_off: int) -> None:
        """A block is in use. Counterpart: h2_bulkfree_callback."""
        offset, radix = data_off & OFF_MASK, data_off & OFF_MASK_RADIX
        segment, within = offset >> SEGRADIX, offset & SEGMASK
        pairs = 1 << max(0, radix - FREEMAP_BLOCK_RADIX)
        ones = ((1 << 2 * pairs) - 1) // 3
        bits = ones << 2 * (within >> FREEMAP_BLOCK_RADIX)
        self.used[segment] = self.used.get(segment, 0) | bits
        if radix < FREEMAP_BLOCK_RADIX:
            end = within + (1 << radix)
            if end > self.linear.get(segment, 0):
                self.linear[segment] = end

    # --- merging ---------------------------------------------------------------------------

    def _merge(self) -> None:
        """Lay what is in use over the live freemap. Counterpart: h2_bulkfree_sync.

        Raises:
            KError: EIO, ENOSPC; what was merged so far is consistent, and a pass more repeats it.
        """
        freemap = self.dev.freemap
        first = freemap.voldata.allocator_beg >> _LEAF_RADIX << _LEAF_RADIX
        for key in range(first, freemap.size, 1 << _LEAF_RADIX):
            leaf = freemap.leaf(key)
            if leaf is not None:
                self._merge_leaf(leaf)

    def _merge_leaf(self, leaf: FreemapLeaf) -> None:
        """Merge the segments of a leaf."""
        freemap = self.dev.freemap
        key = leaf.bref.key
        usable = initial_leaf(key, freemap.voldata.allocator_beg, freemap.size)
        changed = False
        for index in range(FREEMAP_COUNT):
            if not usable[index].avail:
                continue
            entry = leaf.entry(index)
            used = self.used.get((key >> SEGRADIX) + index, 0)
            if entry.bitmap == used * 3 and (entry.bitmap or not entry.class_):
                continue
            if not changed:
                self.dev.chains.modify(leaf)
                changed = True
            adjust = self._merge_segment(entry, used)
            self._adjust_linear(entry, self.linear.get((key >> SEGRADIX) + index, 0))
            freemap.voldata.allocator_free += adjust
            leaf.changed.add(index)
        if changed:
            freemap.freed(leaf)

    def _merge_segment(self, entry: BmapData, used: int) -> int:
        """Merge the bits of a segment; by how many bytes its free space grows.

        Counterpart: h2_bulkfree_sync_adjust.
        """
        low, high = entry.bitmap & _LOWER, entry.bitmap >> 1 & _LOWER
        staged = low & high & ~used
        freed = high & ~low & ~used
        restored = used & high & ~low
        corrupt = used & ~high & ~low
        entry.bitmap = entry.bitmap & ~staged & ~(freed << 1) | used * 3
        self.staged += staged.bit_count()
        self.freed += freed.bit_count()
        self.restored += restored.bit_count()
        self.corrupt += corrupt.bit_count()
        adjust = (freed.bit_count() - corrupt.bit_count()) * FREEMAP_BLOCK_SIZE
        entry.avail += adjust
        return adjust

    @staticmethod
    def _adjust_linear(entry: BmapData, last: int) -> None:
        """Where small pieces go on: nowhere in a block that is free, or before a piece in use."""
        if not entry.bitmap:
            entry.class_ = entry.linear = 0
            entry.avail = SEGSIZE
            return
        linear = entry.linear
        if linear >= SEGSIZE or not linear & FREEMAP_BLOCK_SIZE - 1:
            return
        block = linear >> FREEMAP_BLOCK_RADIX
        if entry.state(block) != ALLOCATED:
            entry.linear = 0
        elif last > linear and last - 1 >> FREEMAP_BLOCK_RADIX == block:
            entry.linear = last
