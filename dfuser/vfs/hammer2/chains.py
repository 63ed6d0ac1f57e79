"""The chains of a volume: finding, changing, growing and shrinking its trees; the cache.

What a chain is, and what copy-on-write means here, is told in chain.py. This is what is done with
them::

    seek, lookup, collect     find by key, reading blocks on the way
    modify, claim             give what will be changed new blocks; the only place that can fail
    insert, replace, delete   change one entry
    way, cut                  drop everything behind a key, whole branches at a time
    create_indirect           a full table grows
    indirect_maintenance      a sparse one shrinks, at the flush
    trim                      keep the number of chains in memory within its limit

Counterpart: hammer2_chain.c.
Differs from DragonFly: as chain.py says. `cut` is ours; DragonFly deletes piece by piece.
Token/lock order: takes none. Chains found in one call may be gone after `trim`.
Invariants: after `modify` or `claim` of everything it touches, an operation cannot fail, unless it
    inserts: then it may need an indirect block.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Final, NamedTuple

from dfuser.libkern.errno import EEXIST, ENOENT, KKASSERT, KError
from dfuser.vfs.hammer2.chain import Chain, make_inner
from dfuser.vfs.hammer2.errors import MediaError
from dfuser.vfs.hammer2.io import Io
from dfuser.vfs.hammer2.ondisk.blockref import Blockref
from dfuser.vfs.hammer2.ondisk.const import BLOCKREF_BYTES, SET_COUNT, BrefType, Check
from dfuser.vfs.hammer2.ondisk.indkey import (
    indirect_bytes,
    indkey_dir,
    indkey_file,
    indkey_freemap,
)
from dfuser.vfs.hammer2.ondisk.keys import getradix
from dfuser.vfs.hammer2.tree import MAX_DEPTH
from dfuser.vfs.hammer2.tunables import Tunables

_INDIRECT: Final = int(BrefType.INDIRECT)
_DATA: Final = int(BrefType.DATA)
_NODE: Final = int(BrefType.FREEMAP_NODE)
_LEAF: Final = int(BrefType.FREEMAP_LEAF)
_VOLUME: Final = int(BrefType.VOLUME)
_FREEMAP: Final = int(BrefType.FREEMAP)
_INNER: Final = (_INDIRECT, _NODE)

#: Makes the chain of a blockref from its verified block.
MakeChain = Callable[[Blockref, bytes], Chain]
#: Claims space for a block: type, key, size; returns its data_off.
Allocate = Callable[[int, int, int], int]
#: The next place of a freemap block.
Reserve = Callable[[Blockref], int]


class ChainStatistics(NamedTuple):
    """What the chains of a volume have done so far."""

    chains: int
    modified: int
    limit: int
    loads: int
    evictions: int
    indirects_created: int
    indirects_removed: int
    indirects_folded: int


class Chains:
    """All chains of one volume. Counterpart: hammer2_chain.c."""

    __slots__ = (
        "_ring", "allocate", "evictions", "fchain", "give_back", "indirects_created",
        "indirects_folded", "indirects_removed", "io", "loads", "makers", "mirror_tid", "modified",
        "reserve", "tunables", "vchain",
    )  # fmt: skip

    def __init__(self, io: Io, tunables: Tunables, mirror_tid: int) -> None:
        """Begin with two empty roots; the allocator is set by who makes it.

        Args:
            io: where blocks come from.
            tunables: limits.
            mirror_tid: of the header; changes get the one after it.
        """
        self.io = io
        self.tunables = tunables
        self.mirror_tid = mirror_tid
        self.vchain = Chain(_root(_VOLUME, Check.XXHASH64, mirror_tid), SET_COUNT)
        self.fchain = Chain(_root(_FREEMAP, Check.FREEMAP, mirror_tid), SET_COUNT)
        self.makers: dict[int, MakeChain] = {_INDIRECT: make_inner, _NODE: make_inner}
        self.allocate: Allocate
        self.reserve: Reserve
        self.give_back: Callable[[int, int], None]
        self._ring: dict[Chain, None] = {}
        self.modified = 0
        self.loads = 0
        self.evictions = 0
        self.indirects_created = 0
        self.indirects_removed = 0
        self.indirects_folded = 0

    def statistics(self) -> ChainStatistics:
        """Counters since the volume was opened."""
        return ChainStatistics(
            len(self._ring), self.modified, self.tunables.limit_chains, self.loads, self.evictions,
            self.indirects_created, self.indirects_removed, self.indirects_folded,
        )  # fmt: skip

    # --- finding ---------------------------------------------------------------------------

    def load(self, parent: Chain, index: int) -> Chain:
        """The chain of a slot, read if it is a blockref yet.

        Raises:
            MediaError: its block is damaged.
        """
        slot = parent.slots[index]
        if slot.__class__ is not Blockref:
            slot.used = True  # type: ignore[union-attr]
            return slot  # type: ignore[return-value]
        bref: Blockref = slot
        maker = self.makers.get(bref.type)
        if maker is None:
            raise MediaError(f"an entry of type {bref.type} where a table was looked for",
                             bref.data_off)  # fmt: skip
        chain = maker(bref, self.io.load(bref))
        self._adopt(parent, index, chain)
        self.loads += 1
        return chain

    def _adopt(self, parent: Chain, index: int, chain: Chain) -> None:
        """Put a chain into a slot that held its blockref, or was made for it."""
        parent.slots[index] = chain
        parent.nchains += 1
        chain.parent = parent
        self._ring[chain] = None

    def seek(self, root: Chain, key: int) -> tuple[Chain, int, bool]:
        """The table in which a key is, or would be.

        Returns:
            The table's chain, the index of the slot that covers the key, and true; or the index
            at which an entry with the key would be put, and false.

        Raises:
            MediaError: a block on the way is damaged.
        """
        chain = root
        for _ in range(MAX_DEPTH):
            index = bisect_right(chain.keys, key) - 1
            if index < 0:
                return chain, 0, False
            slot = chain.slots[index]
            bref: Blockref = slot if slot.__class__ is Blockref else slot.bref  # type: ignore[union-attr]
            if key >= bref[7] + (1 << bref[3]):
                return chain, index + 1, False
            if bref[0] not in _INNER:
                return chain, index, True
            chain = slot if slot.__class__ is not Blockref else self.load(chain, index)  # type: ignore[assignment]
            chain.used = True
        raise MediaError("a tree too deep to be one", root.bref.data_off)

    def lookup(self, root: Chain, key: int) -> Blockref | Chain | None:
        """What covers a key, or None.

        Raises:
            MediaError: a block on the way is damaged.
        """
        chain, index, found = self.seek(root, key)
        return chain.slots[index] if found else None

    def collect(
        self, chain: Chain, first: int, last: int, out: list[Blockref], limit: int, depth: int = 0
    ) -> bool:
        """Append to a list the leaves that cover a range of keys, ascending.

        Args:
            chain: the root of the tree.
            first: first key of the range.
            last: last key.
            out: gets the blockrefs; those of chains have old check codes.
            limit: stop when the list has so many.
            depth: how deep below the root `chain` is.

        Returns:
            Whether the limit ended it.

        Raises:
            MediaError: a block in the range is damaged; the list has what lies before.
        """
        if depth > MAX_DEPTH:
            raise MediaError("a tree too deep to be one", chain.bref.data_off)
        keys, slots = chain.keys, chain.slots
        index = bisect_right(keys, first) - 1
        if index < 0:
            index = 0
        elif keys[index] < first:
            slot = slots[index]
            bref: Blockref = slot if slot.__class__ is Blockref else slot.bref  # type: ignore[union-attr]
            if first >= bref[7] + (1 << bref[3]):
                index += 1
        while index < len(keys) and keys[index] <= last:
            if len(out) >= limit:
                return True
            slot = slots[index]
            bref = slot if slot.__class__ is Blockref else slot.bref  # type: ignore[union-attr]
            if bref[0] not in _INNER:
                out.append(bref)
            elif self.collect(self.load(chain, index), first, last, out, limit, depth + 1):
                return True
            index += 1
        return False

    # --- changing --------------------------------------------------------------------------

    def modify(self, chain: Chain, mtid: int = 0) -> None:
        """Make sure that a chain may be changed: it and its ancestors have new blocks.

        Args:
            chain: what will be changed.
            mtid: the operation that does it; 0 keeps what there is.

        Raises:
            KError: ENOSPC or EIO; nothing has changed.
        """
        if not chain.modified:
            self._modify_up(chain)
        if mtid > chain.modify_tid:
            chain.modify_tid = mtid

    def _modify_up(self, chain: Chain) -> None:
        """Give a chain and those above it that are not modified yet new blocks."""
        todo: list[Chain] = []
        up: Chain | None = chain
        while up is not None and not up.modified:
            todo.append(up)
            up = up.parent
        places: list[int] = []
        try:
            places = [0] * len(todo)
            for index, up in enumerate(todo):
                places[index] = self._place(up.bref)
        except KError:
            for up, place in zip(todo, places, strict=True):
                if place:
                    self.give_back(up.bref.type, place)
            raise
        tid = self.mirror_tid + 1
        for up, place in zip(todo, places, strict=True):
            up.bref = up.bref._replace(data_off=place, mirror_tid=tid)
            self._mark(up)

    def _mark(self, chain: Chain) -> None:
        """A chain has a new block."""
        chain.modified = True
        self.modified += 1
        if chain.parent is not None:
            chain.parent.dirty[chain] = None

    def _place(self, bref: Blockref) -> int:
        """Claim a new block for what a blockref leads to; 0 for the header's own."""
        kind = bref.type
        if kind in (_VOLUME, _FREEMAP):
            return 0
        if kind in (_NODE, _LEAF):
            return self.reserve(bref)
        return self.allocate(kind, bref.key, bref.nbytes)

    def insert(self, root: Chain, bref: Blockref, mtid: int, chain: Chain | None = None) -> None:
        """Put a new entry into a tree; its blocks are its maker's business.

        Args:
            root: the root of the tree.
            bref: the entry; its key must be free.
            mtid: the operation.
            chain: a chain that shall be the entry, new and with a block of its own; None for a
                blockref alone.

        Raises:
            KError: ENOSPC, EIO, EEXIST; the tree has what it had.
        """
        parent, index, found = self.seek(root, bref.key)
        if found:
            raise KError(EEXIST)
        self.modify(parent, mtid)
        while len(parent.keys) >= parent.room:
            parent = self.create_indirect(parent, bref.key, bref.type, mtid)
            index = bisect_right(parent.keys, bref.key)
        parent.keys.insert(index, bref.key)
        parent.slots.insert(index, bref)
        if chain is not None:
            chain.bref = bref
            chain.alive = True
            self._adopt(parent, index, chain)
            self._mark(chain)
            chain.modify_tid = mtid

    def replace(self, root: Chain, bref: Blockref, mtid: int) -> Blockref | None:
        """Put an entry into a tree, in place of one with the same key if there is one.

        Returns:
            What was there before.

        Raises:
            KError: ENOSPC, EIO; the tree has what it had.
        """
        parent, index, found = self.seek(root, bref.key)
        if not found:
            self.insert(root, bref, mtid)
            return None
        old = parent.slots[index]
        KKASSERT(old.__class__ is Blockref, "a chain is not replaced by a blockref")
        self.modify(parent, mtid)
        parent.slots[index] = bref
        return old  # type: ignore[return-value]

    def delete(self, root: Chain, key: int, mtid: int) -> Blockref | Chain:
        """Take an entry out of a tree, with all that lies below it.

        Blocks are not freed; that is bulkfree's work.

        Raises:
            KError: ENOENT; ENOSPC or EIO, nothing has changed.
        """
        parent, index, found = self.seek(root, key)
        if not found:
            raise KError(ENOENT)
        self.modify(parent, mtid)
        slot = parent.slots[index]
        del parent.keys[index], parent.slots[index]
        if slot.__class__ is not Blockref:
            self._detach(parent, slot)  # type: ignore[arg-type]
        return slot

    def way(self, root: Chain, first: int) -> list[Chain]:
        """The tables in which `cut` finds something to cut, the root's first.

        Raises:
            MediaError: a block on the way is damaged.
        """
        path = [root]
        while len(path) <= MAX_DEPTH:
            chain = path[-1]
            index = bisect_left(chain.keys, first) - 1
            if index < 0:
                break
            slot = chain.slots[index]
            bref: Blockref = slot if slot.__class__ is Blockref else slot.bref  # type: ignore[union-attr]
            if bref.type not in _INNER or first >= bref.key + (1 << bref.keybits):
                break
            path.append(self.load(chain, index))
        return path

    def cut(self, root: Chain, first: int, mtid: int) -> int:
        """Take every entry from a key on out of a tree, whole branches at a time.

        Only the tables on the way to the key are looked into, so it takes as long for a file of a
        terabyte as for a small one.

        Args:
            root: the root of the tree.
            first: the first key that goes; an entry that begins before it stays.
            mtid: the operation.

        Returns:
            How many slots went.

        Raises:
            KError: ENOSPC or EIO; nothing has changed.
        """
        path = self.way(root, first)
        if all(not chain.keys or chain.keys[-1] < first for chain in path):
            return 0
        self.modify(path[-1], mtid)
        gone = 0
        for chain in path:
            low = bisect_left(chain.keys, first)
            slots = chain.slots[low:]
            gone += len(slots)
            del chain.keys[low:], chain.slots[low:]
            if chain.nchains:
                for slot in slots:
                    if slot.__class__ is not Blockref:
                        self._detach(chain, slot)  # type: ignore[arg-type]
        return gone

    def claim(self, root: Chain, key: int, mtid: int) -> None:
        """Make sure that an entry can be deleted or replaced: then it cannot fail any more.

        Raises:
            KError: ENOENT; ENOSPC or EIO, nothing has changed.
        """
        parent, _, found = self.seek(root, key)
        if not found:
            raise KError(ENOENT)
        self.modify(parent, mtid)

    def _detach(self, parent: Chain, chain: Chain) -> None:
        """A chain leaves its tree; those below it go with it."""
        parent.nchains -= 1
        parent.dirty.pop(chain, None)
        chain.parent = None
        todo = [chain]
        while todo:
            gone = todo.pop()
            gone.alive = False
            self._ring.pop(gone, None)
            if gone.modified:
                gone.modified = False
                self.modified -= 1
            if gone.nchains:
                todo += [slot for slot in gone.slots if slot.__class__ is not Blockref]  # type: ignore[misc]

    # --- indirect blocks -------------------------------------------------------------------

    def create_indirect(self, parent: Chain, key: int, for_type: int, mtid: int) -> Chain:
        """Move a range of a full table into a new indirect block.

        Args:
            parent: the full table; modified.
            key: of the entry for which there was no room.
            for_type: its type.
            mtid: the operation.

        Returns:
            The table in which the key now belongs.

        Raises:
            KError: ENOSPC, EIO; nothing has changed.
        """
        brefs = parent.brefs()
        nbytes = indirect_bytes(for_type, parent.room, below_directory=parent.below_directory)
        kind = _INDIRECT
        if for_type in (_NODE, _LEAF):
            kind = _NODE
            base, keybits = indkey_freemap(brefs)
        elif for_type == _DATA:
            base, keybits = indkey_file(brefs, nbytes)
        else:
            base, keybits = indkey_dir(key, brefs, nbytes)
        bref = Blockref(
            kind, parent.bref.methods & 0xF0, keybits=keybits, key=base,
            mirror_tid=self.mirror_tid + 1, data_off=getradix(nbytes),
        )  # fmt: skip
        if kind == _NODE:
            bref = bref._replace(data_off=self.reserve(bref._replace(data_off=0)))
        else:
            bref = bref._replace(data_off=self.allocate(kind, base, nbytes))
        new = Chain(bref, nbytes // BLOCKREF_BYTES)
        new.modify_tid = mtid
        low = bisect_left(parent.keys, base)
        high = bisect_right(parent.keys, base + (1 << keybits) - 1)
        KKASSERT(low < high, f"an indirect block at {base:#x}/{keybits} takes nothing over")
        self._move(parent, low, high, new)
        parent.keys.insert(low, base)
        parent.slots.insert(low, bref)
        self._adopt(parent, low, new)
        self._mark(new)
        self.indirects_created += 1
        return new if key >> keybits == base >> keybits else parent

    @staticmethod
    def _move(source: Chain, low: int, high: int, target: Chain) -> None:
        """Move slots of one table to the end of another."""
        moved = source.slots[low:high]
        target.keys += source.keys[low:high]
        target.slots += moved
        del source.keys[low:high], source.slots[low:high]
        if not source.nchains:
            return
        for slot in moved:
            if slot.__class__ is Blockref:
                continue
            child: Chain = slot  # type: ignore[assignment]
            child.parent = target
            source.nchains -= 1
            target.nchains += 1
            if child.modified:
                source.dirty.pop(child, None)
                target.dirty[child] = None

    def indirect_maintenance(self, parent: Chain, chain: Chain) -> bool:
        """Remove an indirect block that is empty, or fold it into the table above if it fits.

        There is some play, so that a table does not go up and down with each entry: only a block
        that is at most three quarters full is folded.

        Args:
            parent: the table above; modified.
            chain: the indirect block; modified, what lies below it is flushed.

        Returns:
            Whether the block is gone.

        Counterpart: hammer2_chain_indirect_maintenance (hammer2_chain.c).
        """
        live = len(chain.keys)
        if live and (len(parent.keys) + live - 1 > parent.room or live > chain.room * 3 // 4):
            return False
        index = bisect_left(parent.keys, chain.bref.key)
        KKASSERT(parent.slots[index] is chain, "an indirect block is not where it should be")
        behind = Chain(parent.bref, parent.room)
        self._move(parent, index + 1, len(parent.keys), behind)
        del parent.keys[index], parent.slots[index]
        self._move(chain, 0, live, parent)
        self._move(behind, 0, len(behind.keys), parent)
        self._detach(parent, chain)
        parent.modify_tid = max(parent.modify_tid, chain.modify_tid)
        if live:
            self.indirects_folded += 1
        else:
            self.indirects_removed += 1
        return True

    # --- cache -----------------------------------------------------------------------------

    def trim(self) -> None:
        """Drop unmodified chains that were not used lately until the limit is kept.

        Call it between operations only: chains that someone still works with may go.
        """
        ring = self._ring
        excess = len(ring) - self.modified - self.tunables.limit_chains
        if excess <= 0:
            return
        # Each may be given a second chance once; what is modified or has chains below stays.
        tries = 4 * excess + 16
        while excess > 0 and tries > 0:
            tries -= 1
            chain = next(iter(ring))
            del ring[chain]
            if chain.used or chain.modified or chain.nchains or chain.pinned:
                chain.used = False
                ring[chain] = None
                continue
            self._evict(chain)
            excess -= 1

    def _evict(self, chain: Chain) -> None:
        """Put a blockref in the place of its chain."""
        parent = chain.parent
        assert parent is not None
        index = bisect_left(parent.keys, chain.bref.key)
        KKASSERT(parent.slots[index] is chain, "a chain is not where it should be")
        parent.slots[index] = chain.bref
        parent.nchains -= 1
        chain.alive = False
        self.evictions += 1


def _root(kind: int, check: int, mirror_tid: int) -> Blockref:
    """The blockref of one of the header's tables; it lies nowhere."""
    return Blockref(kind, check << 4, keybits=64, mirror_tid=mirror_tid)
