"""The one connection that pyfuse3 mounts and serves. pyfuse3's session is global to a process.

Counterpart: fuse_session of libfuse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyfuse3

from dfuser.fuse import mountpoint as host
from dfuser.fuse.connection import Connection
from dfuser.fuse.mountpoint import MountError

from .attr import StockPacker
from .operations import StockOperations
from .workers import Workers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dfuser.fuse.request import RequestContext
    from dfuser.vfs.mount import Mount
    from dfuser.vfs.vfs import Vfs


class StockConnection(Connection):
    """The root's connection, served by pyfuse3.

    Args:
        vfs: the file systems.
        context: for its requests.
        mount: the root mount.
        path: where the host mounts it.
        separate: whether a mount has a connection of its own (none has).
        settle: waits until the host knows of all changes.
        writeback: let the host collect writes.
    """

    def __init__(
        self,
        vfs: Vfs,
        context: RequestContext,
        mount: Mount,
        path: str,
        separate: Callable[[Mount], bool],
        settle: Callable[[], Awaitable[None]],
        *,
        writeback: bool = False,
    ) -> None:
        super().__init__(vfs, context, mount, path, StockPacker(), separate)
        self.workers = Workers(context.close)
        self.handlers = StockOperations(
            self.ops, context, self.workers, settle, writeback=writeback
        )

    def inval_entry(self, nodeid: int, name: bytes, expire: bool) -> None:
        """Invalidate a name. Nothing is mounted on it for the host, so there is nothing to keep."""
        pyfuse3.invalidate_entry(nodeid, name)

    def delete_entry(self, nodeid: int, name: bytes, child: int) -> None:
        """Tell of a removed name."""
        pyfuse3.invalidate_entry(nodeid, name, child)

    def inval_inode(self, nodeid: int, attr_only: bool) -> None:
        """Invalidate a file."""
        pyfuse3.invalidate_inode(nodeid, attr_only)

    async def serve(self) -> None:
        """Run pyfuse3's session loop until the host has unmounted."""
        await self.workers.run()

    def shut(self) -> None:
        """End pyfuse3's session; takes the mount away if it is still there."""
        if self.fd < 0:
            return
        self.fd = -1
        close_mount(self)

    def served(self) -> dict[str, int]:
        """Requests by operation."""
        return dict(self.handlers.counts)

    def statistics(self) -> dict[str, Any]:
        """The statistics of every part, by name."""
        return {
            **super().statistics(),
            "workers": self.workers.statistics(),
            "by_operation": self.served(),
        }


def open_mount(handlers: pyfuse3.Operations, path: str, options: set[str]) -> int:
    """Have pyfuse3 mount ``path``; the device's descriptor. Blocks until fusermount3 is done.

    Raises `MountError`.
    """
    before = host.fuse_descriptors()
    try:
        pyfuse3.init(handlers, path, options)
    except RuntimeError as error:
        raise MountError("fuse", f"the host refused to mount on {path} ({error})") from None
    return min(host.fuse_descriptors() - before, default=-1)


def close_mount(connection: Connection) -> None:
    """Have pyfuse3 unmount what `open_mount` has mounted, if it is still there."""
    still_mounted = host.mounted_at(connection.path) is not None
    pyfuse3.close(unmount=still_mounted)
    if still_mounted:
        host.detach_quietly(connection.path, connection.number)
