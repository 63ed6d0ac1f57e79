"""Drivers of disks, and the way a request takes to them.

A driver below the disk layer is a `StrategyOps`: it is given bios and calls `biodone` on each, at
once or from an interrupt. Devices of the disk layer are `StrategyOps` too. `dev_dstrategy` is how
everybody hands a bio to a device; a device that is gone, or that never took bios, fails them.

Counterpart: d_strategy_t, d_psize_t (sys/device.h), dev_dstrategy (kern/kern_device.c).
Token and lock order: takes none.
"""

from __future__ import annotations

from dfuser.dev.devsw import Cdev, DeadDevOps, DevOps
from dfuser.libkern.errno import ENXIO, EOPNOTSUPP

from .bio import Bio, biodone


class StrategyOps(DevOps):
    """A driver that takes bios. Counterpart: struct dev_ops with d_strategy."""

    __slots__ = ()

    def d_strategy(self, dev: Cdev, bio: Bio) -> None:
        """Carry out a bio: `biodone` is called on it once. Never raises, never waits."""
        fail_bio(bio, EOPNOTSUPP)

    def d_psize(self, dev: Cdev) -> int:
        """Sectors of the device, -1 where there is no telling."""
        return -1


def dev_dstrategy(dev: Cdev, bio: Bio) -> None:
    """Hand a bio to a device. Counterpart: dev_dstrategy."""
    ops = dev.ops
    if isinstance(ops, StrategyOps):
        ops.d_strategy(dev, bio)
    else:
        fail_bio(bio, ENXIO if isinstance(ops, DeadDevOps) else EOPNOTSUPP)


def dev_dpsize(dev: Cdev) -> int:
    """Sectors of a device, -1 where there is no telling. Counterpart: dev_dpsize."""
    ops = dev.ops
    return ops.d_psize(dev) if isinstance(ops, StrategyOps) else -1


def fail_bio(bio: Bio, error: int) -> None:
    """End a bio with an error."""
    bio.buf.fail(error)
    biodone(bio)
