"""Live deduplication: blocks written lately, found again by the hash of what lies in them.

A block about to be written whose bytes are known to lie on the volume already is not written: the
blockref is given the place of the other block. What is remembered is a hash and a place; the bytes
are read and compared before they are believed.

A remembered block stays as it is, since nothing on a volume is overwritten. What could make a
place untrue is told to `forget`: a block of the present transaction that is written over or given
back. Bulkfree forgets everything before it begins, so that no block is found here whose freeing it
has decided; a block that it has marked as possibly free is marked allocated again when it is
shared (`Freemap.adjust`).

Counterpart: hammer2_dedup_record, hammer2_dedup_lookup, hammer2_dedup_clear (hammer2_strategy.c).
Differs from DragonFly: what is remembered are blocks written, not blocks read as well, and the
    oldest goes first, where DragonFly has four places for each hash.
Token/lock order: takes none.
Invariants: each place has one hash and each hash one place; there are no more than the limit.
"""

from __future__ import annotations

from typing import NamedTuple

from dfuser.vfs.hammer2.check import xxhash64
from dfuser.vfs.hammer2.io import Io
from dfuser.vfs.hammer2.ondisk.const import OFF_MASK, OFF_MASK_RADIX
from dfuser.vfs.hammer2.tunables import Tunables


class DedupStatistics(NamedTuple):
    """What a `Dedup` has done so far."""

    known: int
    limit: int
    hits: int
    mismatches: int
    saved_bytes: int


class Dedup:
    """The blocks of one volume that may be shared. Counterpart: ``heur_dedup``."""

    __slots__ = ("_hashes", "_places", "hits", "io", "mismatches", "saved_bytes", "tunables")

    def __init__(self, io: Io, tunables: Tunables) -> None:
        """Nothing is known yet."""
        self.io = io
        self.tunables = tunables
        self._places: dict[int, int] = {}
        self._hashes: dict[int, int] = {}
        self.hits = 0
        self.mismatches = 0
        self.saved_bytes = 0

    def statistics(self) -> DedupStatistics:
        """Counters since the volume was opened."""
        return DedupStatistics(
            len(self._places), self.tunables.limit_dedup, self.hits, self.mismatches,
            self.saved_bytes,
        )  # fmt: skip

    @staticmethod
    def hash(block: bytes) -> int:
        """What a block is found by."""
        return xxhash64(block)

    def lookup(self, digest: int, block: bytes) -> int:
        """The data_off of a block with these bytes; 0 if none is known.

        Args:
            digest: the hash of the block.
            block: its bytes.
        """
        data_off = self._places.get(digest)
        if data_off is None or 1 << (data_off & OFF_MASK_RADIX) != len(block):
            return 0
        try:
            same = self.io.read_at(data_off & OFF_MASK, len(block)) == block
        except OSError:
            same = False
        if not same:
            self.mismatches += 1
            self.forget(data_off)
            return 0
        self.hits += 1
        self.saved_bytes += len(block)
        return data_off

    def record(self, digest: int, data_off: int) -> None:
        """Remember a block that was written; the oldest is forgotten if there are too many."""
        places, hashes = self._places, self._hashes
        self.forget(data_off)
        old = places.pop(digest, None)
        if old is not None:
            del hashes[old]
        while places and len(places) >= self.tunables.limit_dedup:
            del hashes[places.pop(next(iter(places)))]
        if self.tunables.limit_dedup:
            places[digest] = data_off
            hashes[data_off] = digest

    def forget(self, data_off: int) -> None:
        """A block will have other bytes, or is free."""
        digest = self._hashes.pop(data_off, None)
        if digest is not None:
            del self._places[digest]

    def clear(self) -> None:
        """Forget everything."""
        self._places.clear()
        self._hashes.clear()
