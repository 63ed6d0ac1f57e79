"""Views of the devices and of the kernel log.

Counterpart: devinfo and ``ls -l /dev`` for the list, dmesg(8) for the log.
Differs from DragonFly: an addition; it shows what the host cannot show of a device.
Token and lock order: takes none.
Invariants: rows are made while they are read, from the live list, and hold values only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dfuser.dev.devlist import DevList
    from dfuser.libkern.log import MsgBuf

    from .registry import KernViews


class DeviceRow(NamedTuple):
    """One device, or one alias of a device."""

    name: str
    driver: str
    major: int
    minor: int
    mode: str
    uid: int
    gid: int
    opens: int
    alias_of: str


class DevViews:
    """The views of one list of devices, and of the log."""

    def __init__(self, devices: DevList, msgbuf: MsgBuf) -> None:
        self.devices = devices
        self.msgbuf = msgbuf

    def register(self, views: KernViews) -> None:
        """Show them, and the counters."""
        views.add_rows("devices", "devices, their numbers and drivers", self.rows)
        views.add_lines("dmesg", "the kernel's message buffer", self.log)
        views.add_statistics("devices", self.devices.statistics)
        views.add_statistics("msgbuf", self.msgbuf.statistics)

    def rows(self) -> Iterator[DeviceRow]:
        """The devices, then the aliases."""
        named = [(dev.name, dev, "") for dev in self.devices.devices()]
        named += [(a.name, a.target, a.target.name) for a in self.devices.aliases()]
        for name, dev, alias_of in named:
            yield DeviceRow(
                name=name,
                driver=dev.ops.name,
                major=dev.umajor,
                minor=dev.uminor,
                mode=f"{dev.perms:04o}",
                uid=dev.uid,
                gid=dev.gid,
                opens=dev.opencount,
                alias_of=alias_of,
            )

    def log(self) -> Iterable[str]:
        """The lines that are kept; the first one may be cut."""
        return self.msgbuf.text().splitlines()
