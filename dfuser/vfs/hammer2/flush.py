"""The flush: a transaction becomes a header, and the header becomes durable.

A sync has two halves. **Sealing** happens at once and cannot fail: every modified chain is packed,
bottom up, its check code and statistics go into the table above, at last into the header's two
blocksets; the topology first, then the freemap, which knows by then of every block. From that
moment the transaction is over. What is changed later belongs to the next one and gets new blocks,
so that nothing sealed is ever touched again.

**Committing** takes as long as the devices take, and other operations may run meanwhile::

    write all blocks that wait  ->  barrier  ->  write one header copy  ->  barrier  ->  done

The header goes to the next of its four places, never to the newest one, which stays valid
whatever happens to this write. The first barrier puts every block on the media before a header
speaks of it. After the second one the sync is acknowledged; DragonFly leaves that one out.

If anything fails, the transaction stays sealed and the header stays owed: the next sync writes one
that has this transaction in it as well. A header whose writing failed may or may not have reached
the media; the same place is used again, since it is the only one whose contents are in doubt, and
since the blocks it may speak of are never overwritten, either outcome is a consistent volume.

Transaction ids: everything changed in a transaction has mirror_tid of the last header plus one; so
have header and freemap_tid afterwards. Equal tids tell the next mount that the freemap needs no
recovery.

Counterpart: hammer2_flush.c; hammer2_xop_inode_flush for the order.
Differs from DragonFly: always the whole volume, so that names, link counts and data of one
    operation are never torn apart; blocks are claimed by `Chains.modify`, never here, so that a
    full volume can still be made stable.
Token/lock order: takes none. One sync at a time; `sync_steps` may be suspended at each step.
Invariants: sealing leaves no chain modified; a header is written only after a barrier that began
    when no block waited.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

from dfuser.libkern.errno import EIO, KKASSERT, KError
from dfuser.vfs.hammer2.chain import Chain, blockset
from dfuser.vfs.hammer2.chains import Chains
from dfuser.vfs.hammer2.check import setcheck
from dfuser.vfs.hammer2.freemap import Freemap
from dfuser.vfs.hammer2.io import Io
from dfuser.vfs.hammer2.ondisk.blockref import STATS, Blockref
from dfuser.vfs.hammer2.ondisk.const import (
    BLOCKREF_LEAF_MAX,
    OFF_MASK_RADIX,
    BrefType,
)
from dfuser.vfs.hammer2.ondisk.geometry import header_offset, header_slots, next_header
from dfuser.vfs.hammer2.ondisk.volhdr import VolumeData

_INODE: Final = int(BrefType.INODE)
_INDIRECT: Final = int(BrefType.INDIRECT)
_WITH_STATS: Final = (_INODE, _INDIRECT)
#: Header writes in a row that may fail before the volume takes no more changes to the media.
DOUBTFUL_MAX: Final = 3
_unpack_stats: Final = STATS.unpack
_pack_stats: Final = STATS.pack


class Step(IntEnum):
    """Where a sync waits for the devices: whoever drives it flushes them, then goes on."""

    BEFORE_HEADER = 1
    AFTER_HEADER = 2


class FlushStatistics(NamedTuple):
    """What a `Flush` has done so far."""

    syncs: int
    failures: int
    chains_flushed: int
    mirror_tid: int
    volhdrno: int
    owed: bool


class Flush:
    """Makes the transactions of one volume durable. Counterpart: hammer2_flush.c."""

    __slots__ = (
        "chains", "chains_flushed", "copies", "doubtful", "failures", "freemap", "io", "owed",
        "running", "syncs", "voldata", "volhdrno",
    )  # fmt: skip

    def __init__(
        self, chains: Chains, freemap: Freemap, io: Io, voldata: VolumeData,
        copies: dict[int, int], volhdrno: int,
    ) -> None:  # fmt: skip
        """Go on where a header ended.

        Args:
            chains: the volume's.
            freemap: the volume's allocator.
            io: the volume's devices.
            voldata: the header, kept up to date.
            copies: mirror_tid of each valid header copy by its number.
            volhdrno: the number of the copy that counts.
        """
        self.chains = chains
        self.freemap = freemap
        self.io = io
        self.voldata = voldata
        self.copies = copies
        self.volhdrno = volhdrno
        self.owed = False
        self.doubtful = 0
        self.running = False
        self.syncs = 0
        self.failures = 0
        self.chains_flushed = 0

    def statistics(self) -> FlushStatistics:
        """Counters since the volume was opened."""
        return FlushStatistics(
            self.syncs, self.failures, self.chains_flushed, self.chains.mirror_tid, self.volhdrno,
            self.owed,
        )  # fmt: skip

    @property
    def pending(self) -> bool:
        """Whether a sync has something to do."""
        return self.owed or self.chains.vchain.modified or self.chains.fchain.modified

    # --- sealing ---------------------------------------------------------------------------

    def seal(self) -> bytes:
        """End the transaction. Cannot fail.

        Returns:
            The header that speaks of it: 64 KiB, not written yet.
        """
        chains, voldata = self.chains, self.voldata
        self._below(chains.vchain)
        self._below(chains.fchain)
        for root in (chains.vchain, chains.fchain):
            if root.modified:
                root.modified = False
                chains.modified -= 1
        KKASSERT(chains.modified == 0, f"{chains.modified} chains were not flushed")
        tid = chains.mirror_tid + 1
        chains.mirror_tid = tid
        voldata.mirror_tid = voldata.freemap_tid = tid
        voldata.sroot_blockset = blockset(chains.vchain)
        voldata.freemap_blockset = blockset(chains.fchain)
        self.freemap.seal()
        self.owed = True
        return voldata.seal()

    def _below(self, chain: Chain) -> None:
        """Flush what is modified below a chain, not the chain itself."""
        for child in list(chain.dirty):
            self._below(child)
            folded = child.bref.type == _INDIRECT and self.chains.indirect_maintenance(chain, child)
            if not folded:
                self._finish(chain, child)
        chain.dirty.clear()

    def _finish(self, parent: Chain, chain: Chain) -> None:
        """Pack a chain whose table is final. Counterpart: hammer2_flush_core, its second half."""
        bref = chain.bref
        if bref.type in _WITH_STATS:
            leafs, stats = table_stats(chain)
            bref = bref._replace(modify_tid=chain.modify_tid, leaf_count=leafs, embed=stats)
        else:
            bref = bref._replace(modify_tid=chain.modify_tid)
        data = chain.pack()
        chain.bref = setcheck(bref, data)
        self.io.write(bref.data_off, data)
        chain.modified = False
        self.chains.modified -= 1
        self.chains_flushed += 1
        if chain.modify_tid > parent.modify_tid:
            parent.modify_tid = chain.modify_tid

    # --- committing ------------------------------------------------------------------------

    def sync_steps(self, *, force: bool = False) -> Iterator[Step]:
        """Make durable everything up to now.

        The caller flushes the devices at each step, then goes on; if that fails it closes the
        generator, and the next sync makes up for it.

        Args:
            force: write a header even if nothing has changed.

        Yields:
            The steps, in order; none if there is nothing to do.

        Raises:
            OSError: a device failed; nothing is lost, the next sync tries again.
        """
        KKASSERT(not self.running, "two syncs of one volume at a time")
        if not self.pending and not force:
            return
        self.running = True
        failed = True
        written = self.freemap.attempted
        try:
            header = self.seal()
            tid = self.freemap.attempted = self.chains.mirror_tid
            self.io.drain()
            yield Step.BEFORE_HEADER
            number = next_header(self.volhdrno, self.voldata.volu_size)
            self._begin_header()
            written = tid
            self.io.write_header(header_offset(number), header)
            yield Step.AFTER_HEADER
            self.doubtful = 0
            self.copies[number] = tid
            self.volhdrno = number
            # A snapshot may have sealed again meanwhile.
            self.owed = self.chains.mirror_tid != tid
            self.syncs += 1
            failed = False
        finally:
            self.running = False
            self.failures += failed
            self.freemap.attempted = written

    def _begin_header(self) -> None:
        """Refuse to write headers without end of which nobody knows whether they arrived.

        Each may be the one that is found after a crash, and each needs its freemap.

        Raises:
            KError: EIO.
        """
        if self.doubtful >= DOUBTFUL_MAX:
            raise KError(EIO, "headers cannot be written")
        self.doubtful += 1

    def sync(self, *, force: bool = False) -> None:
        """Make durable everything up to now, in place.

        Raises:
            OSError: a device failed; nothing is lost, the next sync tries again.
        """
        steps = self.sync_steps(force=force)
        try:
            for _ in steps:
                self.io.barrier()
        finally:
            steps.close()  # type: ignore[attr-defined]

    def oldest_copy(self) -> int:
        """The lowest mirror_tid of a header copy that might be chosen after a crash.

        Places that the rotation never comes to belong to an older volume.
        """
        slots = header_slots(self.voldata.volu_size)
        return min(tid for number, tid in self.copies.items() if number < slots)


def table_stats(chain: Chain) -> tuple[int, bytes]:
    """What a chain's blockref tells about its table: leaf_count, and the embed with its counts."""
    data = inodes = leafs = 0
    for slot in chain.slots:
        bref: Blockref = slot if slot.__class__ is Blockref else slot.bref  # type: ignore[union-attr]
        radix = bref[10] & OFF_MASK_RADIX
        if radix:
            data += 1 << radix
        kind = bref[0]
        if kind in _WITH_STATS:
            below, inodes_below = _unpack_stats(bref[12])
            data += below
            inodes += inodes_below
        if kind == _INODE:
            inodes += 1
        leafs += bref[6] if kind == _INDIRECT else 1
    return min(leafs, BLOCKREF_LEAF_MAX), _pack_stats(data, inodes)
