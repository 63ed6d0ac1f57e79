"""The list of devices of one kernel, their aliases and their clone handlers.

Drivers make and destroy devices here; mounted devfs file systems listen and show what is on the
list at every moment. An *alias* is a second name; a *clone handler* turns the opening of one name
into the making of a device (`dfuser.dev.clone`).

Counterpart: kern/kern_conf.c (make_dev, destroy_dev, make_dev_alias, make_autoclone_dev), and the
lists kept by vfs/devfs/devfs_core.c (devfs_dev_list, devfs_alias_list, devfs_chandler_list).
Differs from DragonFly: there a thread with a message port changes the lists on everybody's behalf,
and callers that need the result call sync_devs; here a change is complete when the call returns. A
name that is taken is refused with EEXIST; DragonFly changes the existing entry.
Token and lock order: takes none; listeners are plain functions that do not wait.
Invariants: a name is a device, an alias or free; an alias goes with its device; every listener is
told of each change exactly once, after it is on the list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from dfuser.libkern.errno import EEXIST, EINVAL, ENOENT, ENOSPC, KError
from dfuser.libkern.param import SPECNAMELEN
from dfuser.libkern.sysctl import RD, RW, Sysctl

from .clone import CloneBitmap
from .devsw import Cdev, DeadDevOps, DevOps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfuser.libkern.ucred import Ucred

#: Called when a clonable name is opened; makes the device that shall be opened instead, or returns
#: None to let the name itself be opened. Counterpart: d_clone_t.
CloneHandler = Callable[[Cdev, int, "Ucred"], Cdev | None]

DEVICES_MAX: Final = 16_384
#: Major numbers of drivers: eight bits.
MAJOR_MAX: Final = 255


class DevAlias(NamedTuple):
    """A second name of a device. Counterpart: struct devfs_alias (sys/devfs.h)."""

    name: str
    target: Cdev


class DevListener(Protocol):
    """Who is told when the list changes: one mounted devfs. Must not wait, must not fail."""

    def dev_created(self, dev: Cdev) -> None:
        """``dev`` is on the list."""

    def dev_destroyed(self, dev: Cdev) -> None:
        """``dev`` is off the list and dead."""

    def alias_created(self, alias: DevAlias) -> None:
        """``alias`` is on the list."""

    def alias_destroyed(self, alias: DevAlias) -> None:
        """``alias`` is off the list."""


class DevListStatistics(NamedTuple):
    """What is on the list, and what came and went since boot."""

    devices: int
    aliases: int
    clone_handlers: int
    drivers: int
    listeners: int
    created: int
    destroyed: int
    refused: int


class DevList:
    """The devices of one kernel.

    Counterpart: devfs_dev_list and its relatives (vfs/devfs/devfs_core.c).
    """

    sysctls = (
        Sysctl("kern.devices.count", "Devices and aliases on the list", getter="count", flags=RD),
        Sysctl("kern.devices.max", "Most devices and aliases allowed", attr="limit", flags=RW,
               minimum=1),
        Sysctl("kern.devices.created", "Devices made since boot", attr="created", flags=RD),
        Sysctl("kern.devices.destroyed", "Devices destroyed since boot", attr="destroyed",
               flags=RD),
    )  # fmt: skip

    def __init__(self, limit: int = DEVICES_MAX) -> None:
        """Make an empty list for at most ``limit`` devices and aliases."""
        self.limit = limit
        self.created = 0
        self.destroyed = 0
        self.refused = 0
        self._devices: dict[str, Cdev] = {}
        self._aliases: dict[str, DevAlias] = {}
        self._handlers: dict[str, CloneHandler] = {}
        self._majors = CloneBitmap(MAJOR_MAX)
        self._drivers: dict[int, tuple[DevOps, int, int]] = {}
        self._listeners: list[DevListener] = []
        self._dead = DeadDevOps()

    # --- devices ---------------------------------------------------------------------------

    def make_dev(
        self,
        ops: DevOps,
        minor: int,
        uid: int,
        gid: int,
        perms: int,
        name: str,
        parent: Cdev | None = None,
    ) -> Cdev:
        """Make a device and show it in every devfs.

        Raises:
            KError: EEXIST, the name is taken; EINVAL, it is no name of a device; ENOSPC, the list
                is full or there are too many drivers.

        Counterpart: make_dev.
        """
        self._check_name(name)
        major = self._reference_ops(ops)
        dev = Cdev(name, ops, major, minor, uid, gid, perms, parent)
        self._devices[name] = dev
        self.created += 1
        for listener in tuple(self._listeners):
            listener.dev_created(dev)
        return dev

    def destroy_dev(self, dev: Cdev) -> None:
        """Take a device, its aliases and its clone handler off the list. Opens of it find ENXIO.

        Harmless when it is off already. Counterpart: destroy_dev.
        """
        if self._devices.get(dev.name) is not dev:
            return
        for alias in [a for a in self._aliases.values() if a.target is dev]:
            self._remove_alias(alias)
        self._handlers.pop(dev.name, None)
        del self._devices[dev.name]
        self._release_ops(dev.ops)
        dev.ops = self._dead
        self.destroyed += 1
        for listener in tuple(self._listeners):
            listener.dev_destroyed(dev)

    def destroy_related(self, dev: Cdev) -> None:
        """Destroy the devices that came from ``dev``, and those that came from them.

        Counterpart: destroy_dev's companion devfs_destroy_related.
        """
        for child in [d for d in self._devices.values() if d.parent is dev]:
            self.destroy_related(child)
            self.destroy_dev(child)

    def destroy_by_ops(self, ops: DevOps, minor: int | None = None) -> None:
        """Destroy every device of a driver, or the one with a minor number.

        Counterpart: dev_ops_remove_all, dev_ops_remove_minor.
        """
        for dev in [d for d in self._devices.values() if d.ops is ops]:
            if minor is None or dev.uminor == minor:
                self.destroy_dev(dev)

    # --- aliases ---------------------------------------------------------------------------

    def make_dev_alias(self, target: Cdev, name: str) -> DevAlias:
        """Give a device a second name.

        Raises:
            KError: EEXIST, EINVAL or ENOSPC as for `make_dev`; ENOENT, the device is gone.

        Counterpart: make_dev_alias.
        """
        if self._devices.get(target.name) is not target:
            raise KError(ENOENT, f"{target.name} is no device")
        self._check_name(name)
        alias = DevAlias(name, target)
        self._aliases[name] = alias
        for listener in tuple(self._listeners):
            listener.alias_created(alias)
        return alias

    def destroy_dev_alias(self, target: Cdev, name: str) -> None:
        """Take a second name away.

        Raises:
            KError: ENOENT, the device has no such alias.

        Counterpart: destroy_dev_alias.
        """
        alias = self._aliases.get(name)
        if alias is None or alias.target is not target:
            raise KError(ENOENT, f"{target.name} has no alias {name}")
        self._remove_alias(alias)

    def _remove_alias(self, alias: DevAlias) -> None:
        del self._aliases[alias.name]
        for listener in tuple(self._listeners):
            listener.alias_destroyed(alias)

    # --- clones ----------------------------------------------------------------------------

    def make_autoclone_dev(
        self,
        ops: DevOps,
        handler: CloneHandler,
        uid: int,
        gid: int,
        perms: int,
        name: str,
    ) -> Cdev:
        """Make a device whose opening makes another one.

        Raises:
            KError: as `make_dev`.

        Counterpart: make_autoclone_dev.
        """
        dev = self.make_dev(ops, 0, uid, gid, perms, name)
        self._handlers[name] = handler
        return dev

    def clone(self, dev: Cdev, mode: int, cred: Ucred) -> Cdev:
        """The device to open when ``dev`` is opened: its clone, or itself.

        Raises:
            KError: whatever the driver's handler refuses with.

        Counterpart: devfs_clone.
        """
        handler = self._handlers.get(dev.name)
        if handler is None or self._devices.get(dev.name) is not dev:
            return dev
        return handler(dev, mode, cred) or dev

    # --- looking ---------------------------------------------------------------------------

    def find_device_by_name(self, name: str) -> Cdev | None:
        """A device by its name or an alias. Counterpart: devfs_find_device_by_name."""
        dev = self._devices.get(name)
        if dev is None:
            alias = self._aliases.get(name)
            dev = alias.target if alias is not None else None
        return dev

    def find_device_by_devid(self, devid: int) -> Cdev | None:
        """A device by its number. Counterpart: devfs_find_device_by_devid."""
        return next((d for d in self._devices.values() if d.inode == devid), None)

    def devices(self) -> Iterator[Cdev]:
        """Every device, oldest first; what is made meanwhile is not seen."""
        return iter(tuple(self._devices.values()))

    def aliases(self) -> Iterator[DevAlias]:
        """Every alias, oldest first."""
        return iter(tuple(self._aliases.values()))

    def listen(self, listener: DevListener) -> None:
        """Tell ``listener`` of every change from now on. Limited by the number of mounts."""
        self._listeners.append(listener)

    def unlisten(self, listener: DevListener) -> None:
        """Stop telling; harmless when not listening."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def count(self) -> int:
        """Devices and aliases on the list."""
        return len(self._devices) + len(self._aliases)

    def statistics(self) -> DevListStatistics:
        """Sizes of the lists and counters since boot."""
        return DevListStatistics(
            devices=len(self._devices),
            aliases=len(self._aliases),
            clone_handlers=len(self._handlers),
            drivers=len(self._drivers),
            listeners=len(self._listeners),
            created=self.created,
            destroyed=self.destroyed,
            refused=self.refused,
        )

    # --- inside ----------------------------------------------------------------------------

    def _check_name(self, name: str) -> None:
        """Refuse a name that is malformed, taken, in the way of a directory, or one too many."""
        words = name.split("/")
        bad = any(word in ("", ".", "..") for word in words) or "\0" in name
        if bad or len(name.encode()) > SPECNAMELEN:
            self.refused += 1
            raise KError(EINVAL, f"{name!r} cannot be the name of a device")
        if name in self._devices or name in self._aliases:
            self.refused += 1
            raise KError(EEXIST, f"device {name} exists")
        if self.count() >= self.limit:
            self.refused += 1
            raise KError(ENOSPC, f"{self.limit} devices exist already")

    def _reference_ops(self, ops: DevOps) -> int:
        """The major number of a driver, given out with its first device."""
        held = self._drivers.get(id(ops))
        major = held[1] if held is not None else self._majors.get()
        if major < 0:
            self.refused += 1
            raise KError(ENOSPC, "too many drivers")
        self._drivers[id(ops)] = (ops, major, held[2] + 1 if held is not None else 1)
        return major

    def _release_ops(self, ops: DevOps) -> None:
        """One device of a driver is gone; with its last one the major number is free."""
        _, major, refs = self._drivers[id(ops)]
        if refs > 1:
            self._drivers[id(ops)] = (ops, major, refs - 1)
            return
        del self._drivers[id(ops)]
        self._majors.put(major)
