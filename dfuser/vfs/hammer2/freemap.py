"""The allocator: where the next block goes, and what the media will know about it.

The freemap is a tree of its own below the header: a leaf for each GiB, nodes above when there are
more than four. Its blocks have fixed places in eight copies, so changing it allocates nothing
(ondisk/geometry.py). Leaves are made when something is first allocated in their GiB.

An allocation looks for a segment of 4 MiB whose class fits, beginning with the segment that served
the same kind and size last::

    strict    segments of the same class, or of none     over all leaves, twice
    relaxed   any segment                                once; the mode stays until space is freed
    ENOSPC

Pieces smaller than 16 KiB are packed behind each other (``linear``), file data takes the place in
its segment that its key says if that is free.

**Freeing** is not here: a block that nothing refers to any more stays allocated until bulkfree has
seen it twice (bulkfree.py). Only a block that was allocated in the present transaction and that
nothing refers to yet can be given back at once.

Counterpart: hammer2_freemap.c; ``heur_freemap``, ``freemap_relaxed`` of struct hammer2_dev.
Differs from DragonFly: a leaf is known to be too full for a size only after the relaxed search of
    it, since the strict one may have failed for the class alone. A damaged leaf is passed over:
    its GiB is lost for new blocks, the others serve on. Recovery marks the right bit of an element
    of 32 blocks; DragonFly's reduces the block's number to 16 and marks another for the upper half.
    It also stops the packing of small pieces over one that is younger than the freemap.
Token/lock order: takes none.
Invariants: ``allocator_free`` of the header falls by exactly what ``avail`` of the leaves does; a
    block handed out was marked 00, or is a piece behind ``linear`` of a block marked 11.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from dfuser.libkern.errno import ENOSPC, KKASSERT, KError
from dfuser.vfs.hammer2.chain import Chain, make_inner
from dfuser.vfs.hammer2.chains import Chains
from dfuser.vfs.hammer2.errors import MediaError
from dfuser.vfs.hammer2.ondisk.blockref import Blockref, FreemapCheck
from dfuser.vfs.hammer2.ondisk.bmap import (
    ALLOCATED,
    BMAP,
    FREE,
    BmapData,
    bmap_class,
    initial_leaf,
    pack_leaf,
)
from dfuser.vfs.hammer2.ondisk.const import (
    BMAP_BYTES,
    FREEMAP_BLOCK_RADIX,
    FREEMAP_BLOCK_SIZE,
    FREEMAP_COUNT,
    FREEMAP_LEVELN_PSIZE,
    FREEMAP_RADIX,
    OFF_MASK,
    OFF_MASK_RADIX,
    RADIX_MAX,
    RADIX_MIN,
    SEGMASK,
    SEGRADIX,
    SEGSIZE,
    BrefType,
    Check,
)
from dfuser.vfs.hammer2.ondisk.geometry import freemap_reserve, reserved
from dfuser.vfs.hammer2.ondisk.volhdr import VolumeData

_LEAF: Final = int(BrefType.FREEMAP_LEAF)
_LEAF_RADIX: Final = FREEMAP_RADIX[1]
_LEAF_BYTES: Final = 1 << _LEAF_RADIX
_BLOCK_MASK: Final = FREEMAP_BLOCK_SIZE - 1
_EVERY_RADIX: Final = 0xFFFF_FFFF
#: Kinds of block that have no chain, so that it must be remembered which are new.
_UNCHAINED: Final = (int(BrefType.DATA), int(BrefType.DIRENT))
_DATA: Final = int(BrefType.DATA)


class FreemapLeaf(Chain):
    """A leaf: 256 segments of 4 MiB. Entries are taken apart when they are looked at."""

    __slots__ = ("changed", "data", "entries")

    def __init__(self, bref: Blockref, data: bytes) -> None:
        """A leaf from its block."""
        super().__init__(bref, 0)
        self.data = bytearray(data)
        self.entries: dict[int, BmapData] = {}
        self.changed: set[int] = set()

    def entry(self, index: int) -> BmapData:
        """What a segment is used for; who changes it adds the index to ``changed``."""
        entry = self.entries.get(index)
        if entry is None:
            linear, class_, r06, avail, r20, bits = BMAP.unpack_from(self.data, index * BMAP_BYTES)
            entry = BmapData(linear, class_, r06, avail, r20, int.from_bytes(bits, "little"))
            self.entries[index] = entry
        return entry

    def pack(self) -> bytes:
        """The block."""
        for index in self.changed:
            at = index * BMAP_BYTES
            self.data[at : at + BMAP_BYTES] = self.entries[index].pack()
        self.changed.clear()
        return bytes(self.data)


def make_leaf(bref: Blockref, data: bytes) -> FreemapLeaf:
    """The chain of a freemap leaf.

    Raises:
        MediaError: the block has another size.
    """
    if len(data) != FREEMAP_LEVELN_PSIZE:
        raise MediaError("a freemap leaf of this size", bref.data_off)
    return FreemapLeaf(bref, data)


class FreemapStatistics(NamedTuple):
    """What the allocator has done so far."""

    size: int
    free: int
    allocations: int
    given_back: int
    searches: int
    exhausted: int
    damaged_leaves: int
    relaxed: bool
    fresh: int


class Freemap:
    """The allocator of one volume. Counterpart: hammer2_freemap.c."""

    __slots__ = (
        "_hints", "_starts", "allocations", "attempted", "chains", "damaged", "exhausted", "fresh",
        "given_back", "relaxed", "searches", "size", "voldata",
    )  # fmt: skip

    def __init__(self, chains: Chains, voldata: VolumeData, size: int) -> None:
        """Serve a volume's chains.

        Args:
            chains: the volume's; their `fchain` is the freemap.
            voldata: the header, whose allocator_free is kept.
            size: bytes of the volume.
        """
        self.chains = chains
        self.voldata = voldata
        self.size = size
        self.relaxed = False
        #: The last transaction that a header was, or is about to be, written for.
        self.attempted = voldata.mirror_tid
        #: data_off of blocks without chain that this transaction allocated.
        self.fresh: set[int] = set()
        self._hints: dict[int, tuple[FreemapLeaf, int]] = {}
        self._starts: dict[int, int] = {}
        self.damaged: set[int] = set()
        self.allocations = 0
        self.given_back = 0
        self.searches = 0
        self.exhausted = 0
        chains.makers[_LEAF] = make_leaf
        chains.makers[int(BrefType.FREEMAP_NODE)] = make_inner
        chains.allocate = self.alloc
        chains.reserve = self.reserve
        chains.give_back = self.give_back

    def statistics(self) -> FreemapStatistics:
        """Counters since the volume was opened."""
        return FreemapStatistics(
            self.voldata.allocator_size, self.voldata.allocator_free, self.allocations,
            self.given_back, self.searches, self.exhausted, len(self.damaged), self.relaxed,
            len(self.fresh),
        )  # fmt: skip

    # --- allocating ------------------------------------------------------------------------

    def reserve(self, bref: Blockref) -> int:
        """The next place of a freemap block. Counterpart: hammer2_freemap_reserve.

        The place it has serves on if no header speaks of it. So there are never more than two
        places for each header copy, and eight are enough, however often a transaction is sealed
        without a header of its own.

        Raises:
            MediaError: no freemap block can lie where it lies.
        """
        if bref.mirror_tid > self.attempted and bref.offset:
            return bref.data_off
        try:
            return freemap_reserve(bref.key, bref.keybits, bref.data_off)
        except ValueError as exc:
            raise MediaError(str(exc), bref.data_off) from None

    def alloc(self, kind: int, key: int, nbytes: int) -> int:
        """Claim space for a block.

        Args:
            kind: its `BrefType`.
            key: its key; for file data it says where in a segment it would like to be.
            nbytes: 1 to 64 KiB, a power of two.

        Returns:
            Its data_off.

        Raises:
            KError: ENOSPC.

        Counterpart: hammer2_freemap_alloc.
        """
        radix = nbytes.bit_length() - 1
        if not RADIX_MIN <= radix <= RADIX_MAX or nbytes != 1 << radix:
            raise ValueError(f"a block of {nbytes} bytes")
        hint = self._hints.get(kind << 8 | radix)
        found = -1
        if hint is not None and hint[0].alive:
            found = self._try(hint[0], hint[1], kind, key, radix, self.relaxed)
        if found < 0:
            found = self._search(kind, key, radix)
        data_off = found | radix
        KKASSERT(
            found >= self.voldata.allocator_beg and found + nbytes <= self.size
            and not reserved(found), f"a block at {found:#x}",
        )  # fmt: skip
        self.allocations += 1
        if kind in _UNCHAINED:
            self.fresh.add(data_off)
        return data_off

    def _search(self, kind: int, key: int, radix: int) -> int:
        """Look through all leaves. Counterpart: hammer2_freemap_iterate."""
        self.searches += 1
        base = self._starts.get(kind, 0)
        loops = 0
        relaxed = self.relaxed
        while True:
            leaf = self.leaf(base, create=True)
            if leaf is not None and leaf.bref.freemap.bigmask >> radix & 1:
                found = self._search_leaf(leaf, kind, key, radix, relaxed)
                if found >= 0:
                    self._starts[kind] = base
                    self.relaxed = relaxed
                    return found
            base += _LEAF_BYTES
            if base < self.size:
                continue
            base = 0
            loops += 1
            if loops >= 2:
                if relaxed:
                    self.relaxed = True
                    self.exhausted += 1
                    raise KError(ENOSPC)
                relaxed = True

    def _search_leaf(
        self, leaf: FreemapLeaf, kind: int, key: int, radix: int, relaxed: bool
    ) -> int:
        """Look through the segments of a leaf; -1 if none serves."""
        for index in range(FREEMAP_COUNT):
            found = self._try(leaf, index, kind, key, radix, relaxed)
            if found >= 0:
                self._hints[kind << 8 | radix] = leaf, index
                return found
        if relaxed and leaf.modified:
            check = leaf.bref.freemap
            check = check._replace(bigmask=check.bigmask & ~(1 << radix))
            leaf.bref = leaf.bref._replace(check=check.pack())
        return -1

    def _try(
        self, leaf: FreemapLeaf, index: int, kind: int, key: int, radix: int, relaxed: bool
    ) -> int:
        """Allocate from one segment; -1 if it does not serve. Counterpart: hammer2_bmap_alloc."""
        entry = leaf.entry(index)
        size = 1 << radix
        linear = entry.linear
        within = linear & _BLOCK_MASK
        packed = within and within + size <= FREEMAP_BLOCK_SIZE and linear < SEGSIZE
        if not packed and entry.avail < max(size, FREEMAP_BLOCK_SIZE):
            return -1
        class_ = bmap_class(kind)
        if entry.class_ not in (0, class_) and not relaxed:
            return -1
        if packed:
            offset = linear
        else:
            wanted = key if kind == _DATA and radix >= FREEMAP_BLOCK_RADIX else 0
            place = entry.find_free(radix, wanted)
            if place is None:
                return -1
            offset = place
        if not leaf.modified:
            self.chains.modify(leaf)
        if size < FREEMAP_BLOCK_SIZE:
            entry.linear = offset + size
        if radix >= FREEMAP_BLOCK_RADIX or entry.state(offset >> FREEMAP_BLOCK_RADIX) == FREE:
            taken = max(size, FREEMAP_BLOCK_SIZE)
            entry.avail -= taken
            self.voldata.allocator_free -= taken
        entry.mark(offset, size, ALLOCATED)
        if not entry.class_:
            entry.class_ = class_
        leaf.changed.add(index)
        return leaf.bref.key + (index << SEGRADIX) + offset

    # --- leaves ----------------------------------------------------------------------------

    def leaf(self, offset: int, *, create: bool = False) -> FreemapLeaf | None:
        """The leaf for a byte of the volume.

        Args:
            offset: of the byte.
            create: make it if there is none.

        Returns:
            None if there is none, or if it is damaged; it is remembered as damaged then.
        """
        key = offset >> _LEAF_RADIX << _LEAF_RADIX
        if key in self.damaged:
            return None
        try:
            parent, index, found = self.chains.seek(self.chains.fchain, key)
            if found:
                leaf = self.chains.load(parent, index)
                if not isinstance(leaf, FreemapLeaf) or leaf.bref.key != key:
                    raise MediaError("no freemap leaf", leaf.bref.data_off)
                return leaf
            return self._create(key) if create else None
        except MediaError:
            self.damaged.add(key)
            return None

    def _create(self, key: int) -> FreemapLeaf:
        """Make a leaf. Counterpart: hammer2_freemap_init."""
        entries = initial_leaf(key, self.voldata.allocator_beg, self.size)
        avail = sum(entry.avail for entry in entries)
        bref = Blockref(
            _LEAF, Check.FREEMAP << 4, keybits=_LEAF_RADIX, key=key,
            mirror_tid=self.chains.mirror_tid + 1, data_off=freemap_reserve(key, _LEAF_RADIX, 0),
            check=FreemapCheck(0, _EVERY_RADIX, avail).pack(),
        )  # fmt: skip
        leaf = FreemapLeaf(bref, pack_leaf(entries))
        self.chains.insert(self.chains.fchain, bref, 0, leaf)
        return leaf

    # --- correcting ------------------------------------------------------------------------

    def give_back(self, kind: int, data_off: int) -> None:
        """Free a block that this transaction allocated and nothing refers to.

        A small piece is free again only if it was the last one packed; else it waits for bulkfree.
        """
        self.fresh.discard(data_off)
        if kind in (_LEAF, int(BrefType.FREEMAP_NODE)):
            return
        offset, radix = data_off & OFF_MASK, data_off & OFF_MASK_RADIX
        leaf = self.leaf(offset)
        if leaf is None:
            return
        index = offset >> SEGRADIX & FREEMAP_COUNT - 1
        entry = leaf.entry(index)
        offset &= SEGMASK
        size = 1 << radix
        if size < FREEMAP_BLOCK_SIZE:
            if entry.linear != offset + size:
                return
            entry.linear = offset
            leaf.changed.add(index)
            if offset & _BLOCK_MASK:
                return
            size = FREEMAP_BLOCK_SIZE
        entry.mark(offset, size, FREE)
        entry.avail += size
        self.voldata.allocator_free += size
        leaf.changed.add(index)
        self.given_back += 1

    def adjust(self, kind: int, data_off: int) -> bool:
        """See to it that a block is marked allocated: recovery, or a block that is shared.

        Returns:
            Whether it was not.

        Raises:
            KError: EIO, its leaf is damaged.

        Counterpart: hammer2_freemap_adjust with HAMMER2_FREEMAP_DORECOVER.
        """
        offset, radix = data_off & OFF_MASK, data_off & OFF_MASK_RADIX
        if offset < self.voldata.allocator_beg or not radix:
            return False
        leaf = self.leaf(offset, create=True)
        if leaf is None:
            raise MediaError("its freemap leaf is damaged", data_off)
        index = offset >> SEGRADIX & FREEMAP_COUNT - 1
        entry = leaf.entry(index)
        first = (offset & SEGMASK) >> FREEMAP_BLOCK_RADIX
        last = (offset & SEGMASK) + (1 << radix) - 1 >> FREEMAP_BLOCK_RADIX
        states = [entry.state(block) for block in range(first, last + 1)]
        # A freemap that is older than the block may be about to give its bytes out once more.
        end = (offset & SEGMASK) + (1 << radix)
        linear = entry.linear
        packing = linear & _BLOCK_MASK and first <= linear >> FREEMAP_BLOCK_RADIX <= last
        if all(state == ALLOCATED for state in states) and not (packing and linear < end):
            return False
        self.chains.modify(leaf)
        taken = states.count(FREE) * FREEMAP_BLOCK_SIZE
        entry.avail -= taken
        self.voldata.allocator_free -= taken
        entry.linear = 0
        entry.mark(offset, 1 << radix, ALLOCATED)
        if not entry.class_:
            entry.class_ = bmap_class(kind)
        leaf.changed.add(index)
        self.freed(leaf)
        return True

    def freed(self, leaf: FreemapLeaf) -> None:
        """Something changed that the hints do not know: every size may be had again."""
        check = leaf.bref.freemap
        leaf.bref = leaf.bref._replace(check=check._replace(bigmask=_EVERY_RADIX).pack())
        self.relaxed = False
        self._hints.clear()
        self._starts.clear()

    def seal(self) -> None:
        """The transaction ends: what it allocated is no longer fresh."""
        self.fresh.clear()
