"""The session as ``/kern`` shows it: connections, requests by operation, negotiated flags.

Counterpart: /sys/fs/fuse/connections of Linux, which tells less.
Invariants: every number is read from the part that it belongs to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dfuser.boot.attached import Attached

from .device.connection import DeviceConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .connection import Connection


class ConnectionViews(Attached):
    """The tables of a session.

    Args:
        connections: the connections of this moment.
    """

    def __init__(self, connections: Callable[[], Iterable[Connection]]) -> None:
        self._connections = connections

    def table(self, name: str) -> Iterator[dict[str, Any]]:
        """The rows of "fuse", "fuse_ops" or "fuse_flags"."""
        rows = {"fuse": self._line, "fuse_ops": self._operations, "fuse_flags": self._flags}
        make = rows.get(name)
        for connection in self._connections() if make is not None else ():
            yield from make(connection)  # type: ignore[misc]

    @staticmethod
    def _line(connection: Connection) -> Iterator[dict[str, Any]]:
        nodes = connection.nodes.statistics()
        device = connection if isinstance(connection, DeviceConnection) else None
        agreed = device.negotiated if device is not None else None
        yield {
            "connection": connection.name,
            "type": connection.mount.fstype.name,
            "number": connection.number,
            "transport": "pyfuse3" if device is None else "device",
            "protocol": "-" if agreed is None else f"7.{agreed.minor}",
            "served": sum(connection.served().values()),
            "parked": len(connection.context.parked_threads) if device is None
            else len(device.parked),
            "nodes": nodes.nodes,
            "lookups": nodes.lookups,
            "opens": len(connection.ops.files),
            "refused": 0 if device is None else device.refused,
            "garbled": 0 if device is None else device.garbled,
            "path": connection.path,
        }  # fmt: skip

    @staticmethod
    def _operations(connection: Connection) -> Iterator[dict[str, Any]]:
        for op, count in sorted(connection.served().items()):
            yield {"connection": connection.name, "op": op, "count": count}

    @staticmethod
    def _flags(connection: Connection) -> Iterator[dict[str, Any]]:
        agreed = connection.negotiated if isinstance(connection, DeviceConnection) else None
        for flag in agreed.decisions if agreed is not None else ():
            yield {
                "connection": connection.name, "flag": flag.name, "on": int(flag.on),
                "reason": flag.reason,
            }  # fmt: skip
