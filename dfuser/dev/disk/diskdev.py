"""A disk under management, and the driver of its devices: open, close, transfers, ioctls.

Every device of a disk leads here: the disk itself, its slices, their partitions. The device's
`DiskNode` says which it is; the disk's slices say where that lies. The driver below is opened with
the first open of any of them and closed with the last.

Counterpart: struct disk (sys/disk.h), disk1_ops, diskopen, diskclose, diskstrategy, diskioctl,
    diskpsize (kern/subr_disk.c), dsopen, dsclose (kern/subr_diskslice.c).
Token and lock order: takes none; plain functions that do not suspend, so that opens cannot race
    (there: ds_token and DISKFLAG_LOCK).
Invariants: the driver is open exactly while a device of the disk is; a device that is open lies
    where it lay when it was opened, or has grown: one that would move is replaced.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from dfuser.dev.devsw import Cdev, D
from dfuser.libkern.errno import ENXIO, KError

from . import ioctl
from .bio import Bio, BioTrack, bio_start_transaction, biodone
from .device import StrategyOps, dev_dstrategy, fail_bio
from .physio import DiskFile, physread, physwrite
from .slices import DSF_REPROBE, WHOLE_SLICE_PART, Diskslices, dscheck
from .table import DSO_DEVICEMAPPER, WHOLE_DISK_SLICE, DiskInfo

if TYPE_CHECKING:
    from dfuser.dev.devsw import Buffer
    from dfuser.libkern.ucred import Ucred

    from .jobs import Job
    from .layer import DiskLayer


#: The whole disk, as slice and partition.
WHOLE_KEY: Final = (WHOLE_DISK_SLICE, WHOLE_SLICE_PART)


class DiskNode:
    """What a device of the disk layer stands for; it is the device's ``drv1``.

    Attributes:
        disk, slot, part: which disk, slice and partition.
        track: transfers in flight on the device.
        where: first sector on the disk, and sectors.
    """

    __slots__ = ("disk", "part", "slot", "track", "where")

    def __init__(self, disk: Disk, slot: int, part: int) -> None:
        self.disk = disk
        self.slot = slot
        self.part = part
        self.track = BioTrack()
        self.where = (0, 0)

    def moves(self, where: tuple[int, int]) -> bool:
        """Whether a device that lies ``where`` is another one than this, for who has it open."""
        return where[0] != self.where[0] or where[1] < self.where[1]


class Disk:
    """A disk under management. Counterpart: struct disk (sys/disk.h); d_ is dropped.

    Attributes:
        name, unit: of the whole disk.
        raw_ops: the driver. rawdev: its own device, which is on no list.
        cdev: the device of the whole disk.
        info: the medium, None until the driver told.
        slices: what was found, None until then.
        disktype: what the driver calls its kind.
        nodes: slot and partition to device, the whole disk not included.
        destroyed: whether it is gone.
    """

    __slots__ = (
        "again",
        "cdev",
        "destroyed",
        "disktype",
        "info",
        "job",
        "name",
        "nodes",
        "probes",
        "raw_open",
        "raw_ops",
        "rawdev",
        "reslice",
        "slices",
        "unit",
    )

    def __init__(self, name: str, unit: int, raw_ops: StrategyOps, rawdev: Cdev) -> None:
        self.name = name
        self.unit = unit
        self.raw_ops = raw_ops
        self.rawdev = rawdev
        self.cdev = rawdev
        self.info: DiskInfo | None = None
        self.slices: Diskslices | None = None
        self.disktype = ""
        self.raw_open = False
        self.probes = 0
        self.nodes: dict[tuple[int, int], Cdev] = {}
        self.destroyed = False
        self.job: Job | None = None
        self.again = False
        self.reslice: set[int] = set()

    def devices(self) -> Iterator[tuple[tuple[int, int], Cdev]]:
        """Slice, partition and device of all there are, the whole disk first."""
        yield WHOLE_KEY, self.cdev
        yield from self.nodes.items()

    @property
    def opencount(self) -> int:
        """Opens of all its devices. Counterpart: d_opencount."""
        return sum(dev.opencount for _, dev in self.devices())

    def opens(self, slot: int) -> dict[int, int]:
        """How often each partition of a slice is open. Counterpart: ds_openmask, ds_ttlopens."""
        return {
            key[1]: dev.opencount for key, dev in self.devices() if key[0] == slot and dev.opencount
        }

    def settle(self, fflag: int = 0) -> None:
        """Close the driver if nothing is open any more."""
        if self.raw_open and not self.opencount:
            self.raw_open = False
            self.raw_ops.d_close(self.rawdev, fflag, None)

    def strategy(self, bio: Bio) -> None:
        """Give a bio with an offset on the disk to the driver."""
        dev_dstrategy(self.rawdev, bio)


class DiskOps(StrategyOps):
    """The driver of the disk layer's devices. Counterpart: disk1_ops (kern/subr_disk.c)."""

    __slots__ = ("layer",)

    def __init__(self, layer: DiskLayer) -> None:
        super().__init__("disk", D.DISK | D.TRACKCLOSE)
        self.layer = layer

    def d_open(self, dev: Cdev, oflags: int, cred: Ucred) -> Any:
        """Open a device. Counterpart: diskopen, dsopen."""
        node: DiskNode = dev.drv1
        disk = node.disk
        if disk.destroyed or disk.slices is None or disk.slices.get(node.slot) is None:
            raise KError(ENXIO)
        if not disk.raw_open:
            disk.raw_ops.d_open(disk.rawdev, oflags, cred)
            disk.raw_open = True
        return DiskFile()

    def d_close(self, dev: Cdev, fflag: int, priv: Any) -> None:
        """Close a device; one that was written where the table is has the disk probed again.

        Counterpart: diskclose, dsclose.
        """
        node: DiskNode = dev.drv1
        disk = node.disk
        sp = disk.slices.get(node.slot) if disk.slices is not None else None
        if sp is not None and sp.flags & DSF_REPROBE:
            sp.flags &= ~DSF_REPROBE
            self.layer.reprobe(disk, None if node.slot == WHOLE_DISK_SLICE else node.slot)
        disk.settle(fflag)

    def d_read(self, dev: Cdev, offset: int, size: int, ioflag: int, priv: Any) -> Buffer:
        """Read; see `physio`."""
        return physread(dev, priv, offset, size)

    def d_write(self, dev: Cdev, offset: int, data: Buffer, ioflag: int, priv: Any) -> int:
        """Write; see `physio`."""
        return physwrite(dev, priv, offset, data)

    def d_ioctl(
        self, dev: Cdev, cmd: int, data: Buffer, fflag: int, cred: Ucred, priv: Any = None
    ) -> bytes:
        """Ask about slices and labels, then the driver. Counterpart: diskioctl."""
        node: DiskNode = dev.drv1
        disk = node.disk
        mapper = disk.info is not None and disk.info.dsflags & DSO_DEVICEMAPPER
        if not (mapper and node.slot == WHOLE_DISK_SLICE):
            answer = ioctl.dsioctl(self.layer, node, cmd, data, fflag, priv or DiskFile())
            if answer is not None:
                return answer
        return disk.raw_ops.d_ioctl(disk.rawdev, cmd, data, fflag, cred)

    def d_strategy(self, dev: Cdev, bio: Bio) -> None:
        """Check a transfer and pass it to the driver. Counterpart: diskstrategy."""
        node: DiskNode = dev.drv1
        disk = node.disk
        if disk.slices is None or disk.destroyed:
            fail_bio(bio, ENXIO)
            return
        bio_start_transaction(bio, node.track)
        complain = partial(self.layer.complain, dev)
        nbio = dscheck(bio, disk.slices, node.slot, node.part, complain)
        if nbio is None:
            biodone(bio)
        else:
            disk.strategy(nbio)

    def d_psize(self, dev: Cdev) -> int:
        """Sectors of the device. Counterpart: diskpsize, dssize."""
        node: DiskNode = dev.drv1
        try:
            return node.disk.slices.bounds(node.slot, node.part)[1] if node.disk.slices else -1
        except KError:
            return -1
