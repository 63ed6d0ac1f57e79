"""A volume in use: its devices, header, chains, allocator and flush, put together.

::

    Dev -- Io        blocks to and from the devices        io.py
        -- Chains    trees in memory, copy-on-write        chain.py
        -- Freemap   the allocator                         freemap.py
        -- Flush     transactions become headers           flush.py
        -- Pfs ...   the file systems in it                pfs.py

Opening reads the newest intact header. If the freemap is older than the topology, which only
happens to volumes that were not written by this program, every block that is younger than the
freemap is marked allocated before anything else is (`recover`).

Nothing here waits. A device's reads and writes are called in place; the flushes of a sync are
steps that whoever drives it carries out (`Flush.sync_steps`).

Counterpart: struct hammer2_dev (vfs/hammer2/hammer2.h); hammer2_vfs_mount, hammer2_recovery,
    hammer2_vfs_enospace, hammer2_vfs_statfs (hammer2_vfsops.c).
Differs from DragonFly: the reserve is of space that can be allocated; DragonFly counts up to 4 MiB
    that cannot, which on a small volume is all of the reserve.
Token/lock order: takes none. Whoever may be interrupted between two calls holds one lock for the
    whole volume around each operation; the steps of a sync need it only between themselves.
Invariants: `voldata` is the header that the next sync would write, but for what that sync fills in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from dfuser.libkern.errno import ENOENT, EROFS, KError
from dfuser.vfs.hammer2.chain import fill_table
from dfuser.vfs.hammer2.chains import Chains, ChainStatistics
from dfuser.vfs.hammer2.dedup import Dedup, DedupStatistics
from dfuser.vfs.hammer2.errors import MediaError, VolumeError
from dfuser.vfs.hammer2.flush import Flush, FlushStatistics
from dfuser.vfs.hammer2.freemap import Freemap, FreemapStatistics
from dfuser.vfs.hammer2.inode import InodeChain, make_inode
from dfuser.vfs.hammer2.io import BlockDevice, Io, IoStatistics
from dfuser.vfs.hammer2.node import load_node
from dfuser.vfs.hammer2.ondisk.blockref import Blockref
from dfuser.vfs.hammer2.ondisk.const import (
    DIRHASH_VISIBLE,
    KEY_MAX,
    RESERVE_SPACING,
    SEGSIZE,
    SROOT_KEY,
    BrefType,
    OpFlag,
)
from dfuser.vfs.hammer2.ondisk.keys import dirhash, dirhash_last
from dfuser.vfs.hammer2.pfs import Pfs
from dfuser.vfs.hammer2.tree import Tree, make_table
from dfuser.vfs.hammer2.tunables import Tunables
from dfuser.vfs.hammer2.volume import Device, VolumeSet, open_set

_INODE: Final = int(BrefType.INODE)
#: One part in so many of a volume is kept for root, half of that for the file system itself.
RESERVE_PART: Final = 20


class Statfs(NamedTuple):
    """Sizes of a volume in bytes; what users may have, and how many inodes a PFS has."""

    size: int
    free: int
    avail: int
    inodes: int


class DevStatistics(NamedTuple):
    """What a volume has done so far."""

    io: IoStatistics
    chains: ChainStatistics
    freemap: FreemapStatistics
    flush: FlushStatistics
    dedup: DedupStatistics


class Dev:
    """A volume in use. Counterpart: struct hammer2_dev (hammer2.h)."""

    __slots__ = (
        "_pfss", "_uncounted", "bulkfreeing", "chains", "clock", "dedup", "flush", "freemap", "io",
        "name", "readonly", "recovered", "sroot", "staged_tid", "tunables", "volume",
    )  # fmt: skip

    def __init__(
        self, devices: Sequence[BlockDevice], clock: Callable[[], int], *,
        tunables: Tunables | None = None, readonly: bool = False,
    ) -> None:  # fmt: skip
        """Open a volume.

        Args:
            devices: all devices of the volume, in any order. Who opened them closes them.
            clock: nanoseconds since 1970, for the times of files.
            tunables: limits; the default ones if None.
            readonly: refuse every change, and leave recovery alone.

        Raises:
            VolumeError: they are no volume.
            MediaError: what every use of it needs is damaged.
        """
        plain = [Device(dev.name, dev.size, dev.read_at) for dev in devices]
        self.volume = volume = open_set(plain)
        order = [devices[_index(plain, member.device)] for member in volume.volumes]
        voldata = volume.header
        self.name = volume.name
        self.clock = clock
        self.readonly = readonly
        self.tunables = tunables or Tunables()
        self.io = Io(order, volume.starts, volume.size, self.tunables)
        self.chains = Chains(self.io, self.tunables, voldata.mirror_tid)
        self.chains.makers[_INODE] = make_inode
        self.freemap = Freemap(self.chains, voldata, volume.size)
        self.dedup = Dedup(self.io, self.tunables)
        self.flush = Flush(
            self.chains, self.freemap, self.io, voldata, _copies(volume), volume.volumes[0].best
        )
        self._uncounted = self._count_unusable()
        fill_table(self.chains.vchain, voldata.sroot_blockset)
        fill_table(self.chains.fchain, voldata.freemap_blockset)
        self.sroot = self._load_sroot()
        self._pfss: dict[bytes, Pfs] = {}
        #: Whether a bulkfree pass runs; the last header that may lead to what one found unused.
        self.bulkfreeing = False
        self.staged_tid = voldata.mirror_tid
        self.recovered = 0 if readonly else self._recover()

    def _load_sroot(self) -> InodeChain:
        """The super-root, which stays in memory."""
        parent, index, found = self.chains.seek(self.chains.vchain, SROOT_KEY)
        if not found:
            raise MediaError("the volume has no super-root")
        chain = self.chains.load(parent, index)
        if not isinstance(chain, InodeChain) or not chain.below_directory:
            raise MediaError("the super-root is no directory", chain.bref.data_off)
        chain.pinned = True
        return chain

    # --- file systems ----------------------------------------------------------------------

    def pfs(self, label: bytes) -> Pfs:
        """The PFS with a label; the same object each time.

        Raises:
            KError: ENOENT, there is none.
            MediaError: it is damaged.
        """
        pfs = self._pfss.get(label)
        if pfs is None:
            pfs = self._pfss[label] = Pfs(self, self._find_pfs(label))
        return pfs

    def forget_pfs(self, label: bytes) -> None:
        """A PFS is gone; nobody uses it any more."""
        self._pfss.pop(label, None)

    def _find_pfs(self, label: bytes) -> InodeChain:
        """The root of the PFS with a label."""
        base = dirhash(label)
        for chain in self._pfs_roots(base, dirhash_last(base)):
            if chain.filename == label:
                return chain
        raise KError(ENOENT, f"no PFS {label.decode(errors='backslashreplace')}")

    def pfs_labels(self) -> list[bytes]:
        """The labels of all PFSs, by the keys of their hashes.

        Raises:
            MediaError: one is damaged.
        """
        return [chain.filename for chain in self._pfs_roots(DIRHASH_VISIBLE, KEY_MAX)]

    def _pfs_roots(self, first: int, last: int) -> Iterator[InodeChain]:
        """The chains of PFS roots in a range of keys."""
        found: list[Blockref] = []
        self.chains.collect(self.sroot, first, last, found, 1 << 20)
        for bref in found:
            parent, index, _ = self.chains.seek(self.sroot, bref.key)
            chain = self.chains.load(parent, index)
            if not isinstance(chain, InodeChain) or not chain.meta.op_flags & OpFlag.PFSROOT:
                raise MediaError("no root of a PFS", bref.data_off)
            yield chain

    # --- space -----------------------------------------------------------------------------

    @property
    def free(self) -> int:
        """Bytes that can be allocated: what the header says, less what it counts by mistake."""
        return self.flush.voldata.allocator_free - self._uncounted

    def _count_unusable(self) -> int:
        """Bytes that count as free but lie in a segment that is never allocated from.

        newfs counts from allocator_beg on; the freemap begins with the next whole segment.
        """
        voldata, size = self.flush.voldata, self.volume.size
        first = -(-voldata.allocator_beg // SEGSIZE) * SEGSIZE
        last = size // SEGSIZE * SEGSIZE
        reserves = sum(
            first <= at < last for at in range(0, size, RESERVE_SPACING)
        ) * SEGSIZE  # fmt: skip
        return max(0, voldata.allocator_size - (last - first - reserves))

    @property
    def free_reserved(self) -> int:
        """Bytes that only root may use; half of them not even root."""
        return max(SEGSIZE, self.flush.voldata.allocator_size // RESERVE_PART)

    def enospace(self, nbytes: int = 0, *, root: bool = True) -> int:
        """Whether space runs out. Counterpart: hammer2_vfs_enospace.

        Args:
            nbytes: what is wanted.
            root: whether the superuser wants it.

        Returns:
            0: there is enough. 1: less than twice the reserve will be left. 2: refuse.
        """
        left = self.free - nbytes
        reserve = self.free_reserved
        if left < (reserve // 2 if root else reserve):
            return 2
        return 1 if left < 2 * reserve else 0

    def statfs(self, pfs: Pfs) -> Statfs:
        """Sizes, as of the last sync where inodes are concerned."""
        voldata = self.flush.voldata
        avail = max(0, self.free - self.free_reserved)
        return Statfs(
            voldata.allocator_size, voldata.allocator_free, avail, pfs.root_chain.bref.stats[1]
        )

    # --- changing and syncing --------------------------------------------------------------

    def modifying(self) -> None:
        """Begin an operation that changes something: an operation that cannot is refused here.

        Raises:
            KError: EROFS; EIO, the devices take no writes.

        Counterpart: hammer2_vfs_modifying.
        """
        if self.readonly:
            raise KError(EROFS)
        self.io.check()
        self.chains.trim()

    @property
    def dirty_excess(self) -> bool:
        """Whether so much has changed in memory that a sync is due."""
        return self.chains.modified > self.tunables.limit_dirty_chains

    def sync(self) -> None:
        """Make durable everything up to now, in place.

        Raises:
            OSError: a device failed; the next sync tries again.
        """
        self.flush.sync()

    def statistics(self) -> DevStatistics:
        """Counters since the volume was opened."""
        return DevStatistics(
            self.io.statistics(), self.chains.statistics(), self.freemap.statistics(),
            self.flush.statistics(), self.dedup.statistics(),
        )  # fmt: skip

    # --- recovery --------------------------------------------------------------------------

    def _recover(self) -> int:
        """Mark allocated what the freemap may not know of; how many blocks it did not.

        Counterpart: hammer2_recovery.
        """
        voldata = self.flush.voldata
        if voldata.freemap_tid >= voldata.mirror_tid:
            return 0
        tree = Tree(self.io.read_at, self.volume.size)
        count = 0
        for bref in younger(tree, voldata.sroot_blockset, voldata.freemap_tid):
            if bref.data_off:
                count += self.freemap.adjust(bref.type, bref.data_off)
        return count


def younger(tree: Tree, blockset: bytes, tid: int) -> Iterator[Blockref]:
    """All blockrefs below a blockset that were flushed after a transaction.

    Since a block is never older than anything below it, older ones are not looked into.

    Raises:
        MediaError: a block on the way is damaged.
    """
    levels: list[Iterator[Blockref]] = [iter(make_table(blockset, 0, KEY_MAX).brefs)]
    while levels:
        for bref in levels[-1]:
            if bref.mirror_tid <= tid:
                continue
            yield bref
            below: Iterable[Blockref] = ()
            if bref.type == _INODE:
                below = load_node(tree, bref).table().brefs
            elif bref.type == BrefType.INDIRECT:
                below = tree.table(bref).brefs
            levels.append(iter(below))
            break
        else:
            levels.pop()


def _copies(volume: VolumeSet) -> dict[int, int]:
    """mirror_tid of each valid header copy of the first device."""
    return {
        copy.number: copy.header.mirror_tid
        for copy in volume.volumes[0].copies
        if copy.valid and copy.header is not None
    }


def _index(devices: Sequence[Device], device: Device) -> int:
    """Where a device is in a sequence: that very one."""
    for index, other in enumerate(devices):
        if other is device:
            return index
    raise VolumeError(f"{device.name} is no device of the volume")
