"""The memory disk: md0, md1, ...

There is always one that nobody has opened: opening the last one makes the next. Each has
`MD_NSECT` sectors, and takes memory only for what is not zeroes; freed blocks give it back. When
the kernel ends, so do they.

Counterpart: dev/disk/md/md.c.
Differs from DragonFly: contents are kept in pieces of 4 KiB instead of sectors; nothing is
    preloaded, because there is no loader.
Token and lock order: takes none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dfuser.dev.devsw import Cdev
from dfuser.hw.disk.ram import RamDisk
from dfuser.libkern.param import DEV_BSIZE

from .devstat import DEVSTAT_PRIORITY_OTHER, DevstatClock
from .hwdisk import DEPTH, HwDiskOps, HwDiskUnit, at_once

if TYPE_CHECKING:
    from dfuser.libkern.ucred import Ucred

    from .hwdisk import Interrupt
    from .layer import DiskLayer

#: Sectors of a memory disk. Counterpart: MD_NSECT.
MD_NSECT: Final = 10_000 * 2
#: Memory disks a kernel makes at most by opening them.
MD_UNITS_MAX: Final = 64


class MdOps(HwDiskOps):
    """The driver. Counterpart: md_ops.

    Args:
        layer: the disk layer.
        clock: for the counters.
        intr: see `HwDiskOps`; a memory disk never uses it.
        nsect: sectors of each disk.
    """

    __slots__ = ("nsect",)

    def __init__(
        self,
        layer: DiskLayer,
        clock: DevstatClock,
        intr: Interrupt = at_once,
        nsect: int = MD_NSECT,
    ) -> None:
        super().__init__(layer, clock, intr, "md", DEPTH)
        self.nsect = nsect

    def create(self) -> HwDiskUnit:
        """Make the next memory disk. Counterpart: mdcreate_malloc.

        Raises:
            KError: as `HwDiskOps.attach`.
        """
        hw = RamDisk(self.nsect * DEV_BSIZE, name="memory")
        softc = self.attach(hw, priority=DEVSTAT_PRIORITY_OTHER)
        softc.disk.disktype = "memory"
        return softc

    def d_open(self, dev: Cdev, oflags: int, cred: Ucred) -> Any:
        """The first open; of the last one it makes the next. Counterpart: mdopen."""
        if dev.drv1.unit == max(self.units) and len(self.units) < MD_UNITS_MAX:
            self.create()

    def destroy(self, softc: HwDiskUnit) -> None:
        """Take a memory disk away, with its contents.

        Raises:
            KError: EBUSY, it is open.

        Counterpart: md_drvcleanup.
        """
        self.detach(softc).close()
