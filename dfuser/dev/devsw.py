"""The device switch: what a driver can be asked, and what stands for a device.

A driver is an object that answers the ``d_*`` calls; a *device* (`Cdev`) is a name, a number, an
owner and permissions, and a pointer to its driver. Many devices may share one driver, which tells
them apart by their minor number. Whoever uses a device (devfs, the bridge) goes through `Cdev` and
never keeps the driver: a device that is destroyed gets `DeadDevOps`, and every user of it finds
ENXIO at his next step.

The calls are plain functions. They run to completion, raise `KError`, or raise `Block` before they
have changed anything; the edge then waits and asks again.

Counterpart: struct dev_ops, struct cdev (sys/device.h, sys/conf.h), kern/kern_device.c,
kern/kern_conf.c.
Differs from DragonFly: reads return a buffer and writes take one (no uio); what `d_open` returns is
private to that open and is handed back to the other calls (there: devfs_set_cdevpriv); d_mmap,
d_strategy, d_dump and d_psize come with the disk layer.
Token and lock order: takes none.
Invariants: ``opencount`` is the number of opens that have not been closed; a dead device has
`DeadDevOps` for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from dfuser.libkern.errno import ENODEV, ENOTTY, ENXIO, KError

if TYPE_CHECKING:
    from dfuser.libkern.klist import Knote
    from dfuser.libkern.ucred import Ucred

Buffer: TypeAlias = "bytes | bytearray | memoryview"

# Owners of devices. Counterpart: UID_*, GID_* (sys/conf.h).
UID_ROOT: Final = 0
GID_WHEEL: Final = 0
GID_KMEM: Final = 2
GID_TTY: Final = 4
GID_OPERATOR: Final = 5

#: The bit of an ioflag that says: do not wait. Counterpart: IO_NDELAY (sys/vnode.h).
IO_NDELAY: Final = 0x0010

# Events of d_poll. Counterpart: sys/poll.h.
POLLIN: Final = 0x0001
POLLPRI: Final = 0x0002
POLLOUT: Final = 0x0004
POLLERR: Final = 0x0008
POLLHUP: Final = 0x0010
POLLNVAL: Final = 0x0020
POLLRDNORM: Final = 0x0040
POLLWRNORM: Final = POLLOUT


class D:
    """What a driver says of its devices. Counterpart: D_* (sys/device.h)."""

    TAPE: Final = 0x0001
    DISK: Final = 0x0002
    TTY: Final = 0x0004
    MEM: Final = 0x0008
    TYPEMASK: Final = 0xFFFF
    TRACKCLOSE: Final = 0x0008_0000
    """`DevOps.d_close` is called for every close, not only for the last one."""
    QUICK: Final = 0x0100_0000
    """Opening and closing need no care."""


class DevOps:
    """A driver. The answers here are those of a driver that supports nothing.

    Counterpart: struct dev_ops and default_dev_ops (kern/kern_device.c).

    Attributes:
        name: what the driver calls itself.
        flags: D bits.
    """

    __slots__ = ("flags", "name")

    def __init__(self, name: str, flags: int = 0) -> None:
        self.name = name
        self.flags = flags

    def d_open(self, dev: Cdev, oflags: int, cred: Ucred) -> Any:
        """Open ``dev``; returns an object private to this open, or None."""
        raise KError(ENODEV)

    def d_close(self, dev: Cdev, fflag: int, priv: Any) -> None:
        """The last close (every close with D.TRACKCLOSE)."""

    def d_read(self, dev: Cdev, offset: int, size: int, ioflag: int, priv: Any) -> Buffer:
        """Up to ``size`` bytes; empty at the end. Block unless ``ioflag`` has IO_NDELAY."""
        raise KError(ENODEV)

    def d_write(self, dev: Cdev, offset: int, data: Buffer, ioflag: int, priv: Any) -> int:
        """Take bytes; returns how many were taken."""
        raise KError(ENODEV)

    def d_ioctl(
        self, dev: Cdev, cmd: int, data: Buffer, fflag: int, cred: Ucred, priv: Any = None
    ) -> bytes:
        """Control the device; returns the bytes to copy out. ``cmd`` is spelled as in `ioccom`.

        ENOTTY for a number the driver does not know, and here for every one (noioctl says ENODEV,
        which programs that only ask "is this a terminal" do not expect).
        """
        raise KError(ENOTTY)

    def d_poll(self, dev: Cdev, events: int, priv: Any) -> int:
        """Which of ``events`` (POLL*) would not block now. A plain device never blocks."""
        return events & (POLLIN | POLLRDNORM | POLLOUT)

    def d_kqfilter(self, dev: Cdev, kn: Knote) -> None:
        """Hang ``kn`` on the device's events."""
        raise KError(ENODEV)

    def d_kqdetach(self, dev: Cdev, kn: Knote) -> None:
        """Take ``kn`` off again; harmless when it does not hang here."""


class DeadDevOps(DevOps):
    """The driver of a device that is gone: ENXIO for everything but closing.

    Counterpart: dead_dev_ops.
    """

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("dead")

    def d_open(self, dev: Cdev, oflags: int, cred: Ucred) -> Any:
        """Refuse."""
        raise KError(ENXIO)

    def d_read(self, dev: Cdev, offset: int, size: int, ioflag: int, priv: Any) -> Buffer:
        """Refuse."""
        raise KError(ENXIO)

    def d_write(self, dev: Cdev, offset: int, data: Buffer, ioflag: int, priv: Any) -> int:
        """Refuse."""
        raise KError(ENXIO)

    def d_ioctl(
        self, dev: Cdev, cmd: int, data: Buffer, fflag: int, cred: Ucred, priv: Any = None
    ) -> bytes:
        """Refuse."""
        raise KError(ENXIO)

    def d_poll(self, dev: Cdev, events: int, priv: Any) -> int:
        """Ready, so that a waiter comes and finds the error."""
        return events & (POLLIN | POLLOUT | POLLRDNORM) | POLLERR | POLLHUP

    def d_kqfilter(self, dev: Cdev, kn: Knote) -> None:
        """Refuse."""
        raise KError(ENXIO)


class Cdev:
    """A device. Counterpart: struct cdev (sys/conf.h); the si_ prefix is dropped.

    Attributes:
        name: path below the root of devfs, for example ``null`` or ``part-by-uuid/...``.
        ops: the driver now; `DeadDevOps` once the device is destroyed.
        umajor: number of the driver. uminor: the driver's own number of the device.
        uid, gid, perms: owner and permission bits a new devfs node starts with.
        inode: the device number, as stat shows it.
        parent: the device this one came from (a slice's disk), or None.
        opencount: opens that are not closed.
        drv1: for the driver.
    """

    __slots__ = (
        "__weakref__",
        "drv1",
        "gid",
        "name",
        "opencount",
        "ops",
        "parent",
        "perms",
        "uid",
        "umajor",
        "uminor",
    )

    def __init__(
        self,
        name: str,
        ops: DevOps,
        umajor: int,
        uminor: int,
        uid: int,
        gid: int,
        perms: int,
        parent: Cdev | None = None,
    ) -> None:
        self.name = name
        self.ops = ops
        self.umajor = umajor
        self.uminor = uminor
        self.uid = uid
        self.gid = gid
        self.perms = perms
        self.parent = parent
        self.opencount = 0
        self.drv1: Any = None

    @property
    def inode(self) -> int:
        """The device number. Counterpart: makeudev (kern/kern_conf.c)."""
        return makeudev(self.umajor, self.uminor)

    @property
    def dead(self) -> bool:
        """Whether the device has been destroyed. Counterpart: dev_is_good, negated."""
        return isinstance(self.ops, DeadDevOps)

    def __repr__(self) -> str:
        return f"<Cdev {self.name} {self.umajor}:{self.uminor}>"

    def dopen(self, oflags: int, cred: Ucred) -> Any:
        """Open the device and count it. Counterpart: dev_dopen."""
        priv = self.ops.d_open(self, oflags, cred)
        self.opencount += 1
        return priv

    def dclose(self, fflag: int, priv: Any) -> None:
        """Give one open back; the driver hears of the last one. Counterpart: dev_dclose."""
        self.opencount -= 1
        if not self.opencount or self.ops.flags & D.TRACKCLOSE:
            self.ops.d_close(self, fflag, priv)


def makeudev(major: int, minor: int) -> int:
    """Join a major (8 bits) and a minor (24 bits) number to a device number.

    The minor's bits 8 to 15 are not usable. Counterpart: makeudev (kern/kern_conf.c).
    """
    return major << 8 | minor
