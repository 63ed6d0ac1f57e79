"""The driver of virtual disks: a disk of the host behind the disk layer.

Bios go into the queue (`bioq`), are taken from it in its order, and become requests to the disk,
``depth`` of them in flight at most. When a request completes, its bio is done: at once if the disk
answers at once, else from an interrupt on CPU 0.

A flush is a barrier here: it starts when nothing is in flight and nothing starts before it is over.
So whatever was given to the driver before a flush is stable after it, which is more than a drive
promises, and what file systems like to believe.

Counterpart: dev/virtual/vkernel/disk/vdisk.c (vkd).
Differs from DragonFly: vkd has no queue order and no flush; it reads and writes in a host thread.
    The counters start when a bio is given to the driver, as there.
Token and lock order: takes none.
Invariants: ``running`` is the number of requests at the disk, at most ``depth``; a bio ends once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dfuser.dev.devsw import Cdev, D
from dfuser.hw.disk.disk import Disk as HwDisk
from dfuser.hw.disk.disk import DiskCmd, DiskRequest
from dfuser.libkern.errno import EBUSY, ENXIO, EOPNOTSUPP, KError
from dfuser.libkern.param import DEV_BSIZE

from .bio import BIO, Bio, BufCmd, biodone
from .bioq import BioqStatistics, BioQueueHead
from .device import StrategyOps, fail_bio
from .devstat import DEVSTAT_PRIORITY_DISK, Devstat, DevstatClock, DevstatStatistics
from .table import DiskInfo

if TYPE_CHECKING:
    from dfuser.libkern.ucred import Ucred

    from .diskdev import Disk
    from .layer import DiskLayer

#: Requests in flight at a disk.
DEPTH: Final = 32

_COMMANDS: Final = (
    None, DiskCmd.READ, DiskCmd.WRITE, DiskCmd.TRIM, None, DiskCmd.FLUSH,
)  # fmt: skip

#: Runs a function as an interrupt of a CPU; `Cpu.interrupt`.
Interrupt = Callable[..., object]


def at_once(func: Callable[..., object], *args: Any) -> None:
    """The interrupt of a driver without a machine: a call."""
    func(*args)


class HwDiskStatistics(NamedTuple):
    """What a unit does: requests at the disk, its queue, its counters."""

    running: int
    bioq: BioqStatistics
    devstat: DevstatStatistics


class HwDiskUnit:
    """One disk. Counterpart: struct vkd_softc.

    Attributes:
        hw: the disk of the host.
        disk: what the disk layer made of it.
        bioq: bios that wait. running: requests at the disk.
        stat: counters.
    """

    __slots__ = (
        "_barrier",
        "_feeding",
        "_intr",
        "bioq",
        "depth",
        "disk",
        "hw",
        "running",
        "stat",
        "unit",
    )

    disk: Disk

    def __init__(
        self, unit: int, hw: HwDisk, bioq: BioQueueHead, stat: Devstat, intr: Interrupt, depth: int
    ) -> None:
        self.unit = unit
        self.hw = hw
        self.bioq = bioq
        self.stat = stat
        self.running = 0
        self.depth = depth
        self._intr = intr
        self._barrier = False
        self._feeding = False

    def queue(self, bio: Bio) -> None:
        """Take a bio. Counterpart: vkdstrategy."""
        self.stat.start_transaction()
        self.bioq.disksort(bio)
        self.feed()

    def feed(self) -> None:
        """Give the disk as much as it may have."""
        if self._feeding:  # a completion inside of `submit`: the loop below goes on
            return
        self._feeding = True
        try:
            while self.running < self.depth and not self._barrier:
                bio = self.bioq.first()
                if bio is None:
                    break
                flush = bio.buf.cmd is BufCmd.FLUSH
                if flush and self.running:
                    break
                self.bioq.takefirst()
                self._barrier = flush
                self._submit(bio)
        finally:
            self._feeding = False

    def _submit(self, bio: Bio) -> None:
        bp = bio.buf
        cmd = _COMMANDS[bp.cmd]
        self.running += 1
        if cmd is None:
            self._end(bio, EOPNOTSUPP, bp.bcount)
            return
        moves = cmd in (DiskCmd.READ, DiskCmd.WRITE)
        inside = True

        def done(request: DiskRequest) -> None:
            if inside:
                self._end(bio, request.error, request.resid)
            else:
                self._intr(self._interrupt, bio, request)

        self.hw.submit(
            DiskRequest(
                cmd,
                0 if cmd is DiskCmd.FLUSH else bio.offset,
                0 if cmd is DiskCmd.FLUSH else bp.bcount,
                bp.buffers() if moves else (),
                done,
                fua=cmd is DiskCmd.WRITE and bool(bio.flags & BIO.FUA),
            )
        )
        inside = False

    def _interrupt(self, bio: Bio, request: DiskRequest) -> None:
        """The disk has completed a request later. Counterpart: vkd_io_intr."""
        self._end(bio, request.error, request.resid)
        self.feed()

    def _end(self, bio: Bio, error: int, resid: int) -> None:
        """A bio is over."""
        bp = bio.buf
        self.running -= 1
        if bp.cmd is BufCmd.FLUSH:
            self._barrier = False
        if error:
            bp.fail(error)
        bp.resid = resid
        self.stat.end_transaction_buf(bp)
        biodone(bio)

    def statistics(self) -> HwDiskStatistics:
        """What it does."""
        return HwDiskStatistics(self.running, self.bioq.statistics(), self.stat.statistics())


class HwDiskOps(StrategyOps):
    """The driver. Its units' raw devices have the unit as ``drv1``. Counterpart: vkd_ops.

    Args:
        layer: the disk layer.
        clock: for the counters.
        intr: `Cpu.interrupt` of the CPU that serves the disks.
        name: of the driver.
        depth: requests in flight at a disk.
    """

    __slots__ = ("clock", "depth", "intr", "layer", "units")

    def __init__(
        self,
        layer: DiskLayer,
        clock: DevstatClock,
        intr: Interrupt = at_once,
        name: str = "vkd",
        depth: int = DEPTH,
    ) -> None:
        super().__init__(name, D.DISK | D.TRACKCLOSE)
        self.layer = layer
        self.clock = clock
        self.intr = intr
        self.depth = depth
        self.units: dict[int, HwDiskUnit] = {}

    def attach(
        self,
        hw: HwDisk,
        *,
        name: str | None = None,
        serialno: str | None = None,
        priority: int = DEVSTAT_PRIORITY_DISK,
        dsflags: int = 0,
    ) -> HwDiskUnit:
        """Make a disk of the host a disk of the kernel, and have it probed.

        Args:
            hw: the disk; the driver owns it from now on.
            name: of the device; the driver's name and the lowest free number by default.
            serialno: what its drive would say.
            priority: of its counters.
            dsflags: DSO bits.

        Raises:
            KError: as `DiskLayer.disk_create`; ``hw`` stays the caller's then.

        Counterpart: vkdinit.
        """
        unit = next(n for n in range(len(self.units) + 1) if n not in self.units)
        disk = self.layer.disk_create(unit, self, name)
        stat = Devstat(self.clock, self.name, unit, hw.sector_size, priority=priority)
        bioq = BioQueueHead(self.layer.tunables)
        softc = HwDiskUnit(unit, hw, bioq, stat, self.intr, self.depth)
        softc.disk = disk
        disk.rawdev.drv1 = softc
        self.units[unit] = softc
        self.layer.devstats.add_entry(stat)
        self.announce(softc)
        info = self.info(hw)
        info.serialno = serialno
        info.dsflags = dsflags
        self.layer.disk_setdiskinfo(disk, info)
        return softc

    def info(self, hw: HwDisk) -> DiskInfo:
        """What the medium is."""
        blocks = hw.size // hw.sector_size
        return DiskInfo(
            hw.sector_size, blocks, nheads=1, ncylinders=1, secpertrack=blocks & 0xFFFF_FFFF,
            secpercyl=blocks & 0xFFFF_FFFF, trimflag=hw.can_trim,
        )  # fmt: skip

    def announce(self, softc: HwDiskUnit) -> None:
        """Say that it is there."""
        hw = softc.hw
        self.layer.log.kprintf(
            f"{softc.disk.name}: {hw.size >> 20}MB "
            f"({hw.size // hw.sector_size} {hw.sector_size} byte sectors)"
            f"{' read-only' if hw.readonly else ''} on {hw.name}"
        )

    def detach(self, softc: HwDiskUnit) -> HwDisk:
        """Take a disk away from the kernel; returns it, for the caller to close.

        Raises:
            KError: EBUSY, a device of it is open, or requests are at the disk.
        """
        if softc.disk.opencount or softc.running or len(softc.bioq) or softc.disk.job is not None:
            raise KError(EBUSY, f"{softc.disk.name} is in use")
        self.layer.disk_destroy(softc.disk)
        self.layer.devstats.remove_entry(softc.stat)
        self.units.pop(softc.unit, None)
        return softc.hw

    # --- the driver ------------------------------------------------------------------------

    def d_open(self, dev: Cdev, oflags: int, cred: Ucred) -> Any:
        """The first open of any device of a disk."""
        if dev.drv1.hw.size < DEV_BSIZE:
            raise KError(ENXIO)

    def d_strategy(self, dev: Cdev, bio: Bio) -> None:
        """Take a bio with an offset on the disk. Counterpart: vkdstrategy."""
        softc: HwDiskUnit | None = dev.drv1
        if softc is None:
            fail_bio(bio, ENXIO)
        else:
            softc.queue(bio)

    def d_psize(self, dev: Cdev) -> int:
        """Sectors of the disk."""
        hw = dev.drv1.hw
        return int(hw.size // hw.sector_size)
