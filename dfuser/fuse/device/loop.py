"""The loop that reads the devices of all connections of a session.

Requests are served by `idle.IdleDoor`, between two passes of the event loop and while it has
nothing to do. Where that cannot be installed each connection has a task that waits for its device,
drains a bounded burst and lets others run. Both ways end in `DeviceConnection.serve_one`, on one
buffer.

Counterpart: fuse_session_loop of libfuse.
Invariants: one request at a time; the buffer holds the largest request any connection may get. A
device is watched through a descriptor of the loop's own, so that one that is closed by mistake is
found out with the next request, and its number is not watched for somebody else.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import trio

from dfuser.fuse.wire.const import WRITE_DATA
from dfuser.libkern.sysctl import CtlFlag, Sysctl

from .idle import IdleDoor

if TYPE_CHECKING:
    from .connection import DeviceConnection

#: Room for the largest write, its head, and what a newer kernel may put behind.
BUFFER: Final = (1 << 20) + 4096 + WRITE_DATA


class LoopStatistics(NamedTuple):
    """What `DeviceLoop.statistics` returns."""

    connections: int
    bursts: int
    idle: int
    idle_installed: bool


class DeviceLoop:
    """Reads requests for all connections of one session."""

    sysctl_burst = Sysctl(
        "vfs.fuse.burst",
        "requests of one connection served before others run",
        attr="burst",
        flags=CtlFlag.RW,
        minimum=1,
        maximum=100_000,
    )

    def __init__(self, burst: int = 64) -> None:
        self.burst = burst
        self.bursts = 0
        self.idle = IdleDoor()
        self._buffer = bytearray(BUFFER)
        self._connections = 0

    def start(self) -> None:
        """Begin; call from a trio task."""
        self.idle.install()

    def stop(self) -> None:
        """End. Idempotent."""
        self.idle.remove()

    async def run(self, connection: DeviceConnection) -> None:
        """Serve a connection until its mount is gone."""
        os.set_blocking(connection.fd, False)
        watched = os.dup(connection.fd)
        self._connections += 1
        try:
            self.idle.watch(watched, connection.server(self._buffer))
            async with trio.open_nursery() as nursery:
                if not self.idle.installed:
                    nursery.start_soon(self._read, connection, watched)
                await connection.serve()
                nursery.cancel_scope.cancel()
        finally:
            self._connections -= 1
            self.idle.unwatch(watched)
            os.close(watched)

    async def _read(self, connection: DeviceConnection, watched: int) -> None:
        buffer = self._buffer
        while not connection.ended.is_set():
            self.bursts += 1
            for _ in range(self.burst):
                if not connection.serve_one(buffer):
                    break
            else:
                await trio.lowlevel.checkpoint()
                continue
            if connection.ended.is_set():
                return
            await trio.lowlevel.wait_readable(watched)

    def statistics(self) -> LoopStatistics:
        """Counters since the session began."""
        return LoopStatistics(self._connections, self.bursts, self.idle.served, self.idle.installed)

    def sysctl_owners(self) -> tuple[Any, ...]:
        """The objects whose sysctls the kernel shows."""
        return (self, self.idle)
