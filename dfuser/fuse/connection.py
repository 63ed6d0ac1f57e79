"""A connection: one mount of the host, and what of our mounts it shows.

The root of the host's mount is the root of one of ours, `Connection.mount`. What is mounted inside
that one is seen through the same connection, unless it has a connection of its own; then the host
crosses into it by itself (`Operations.separate`).

A connection knows its files by number (`NodeTable`), packs their attributes in its transport's form
and answers operations on them. How requests come and answers go is the transport's part, in a
subclass: `stock.connection` and `device.connection`.

Counterpart: struct fuse_conn (fs/fuse/fuse_i.h of Linux), seen from the other end.
Invariants: while it is attached the root node stands in the table; the root of the whole session is
referenced, too.
"""

from __future__ import annotations

import abc
import logging
from typing import TYPE_CHECKING, Any

from dfuser.libkern.errno import KError
from dfuser.vfs.syscalls import kern_close

from . import mountpoint as host
from .attr import AttrCache
from .nodes import NodeTable
from .ops import Operations
from .polling import PollTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfuser.vfs.mount import Mount
    from dfuser.vfs.vfs import Vfs
    from dfuser.vfs.vnode import Vnode

    from .attr import Packer
    from .request import RequestContext

_log = logging.getLogger(__name__)


class Connection(abc.ABC):
    """One mount of the host.

    Args:
        vfs: the file systems.
        context: credentials and CPUs for its requests.
        mount: whose root is the root of the connection.
        path: where the host mounts it.
        packer: the form of packed attributes.
        separate: whether a mount has a connection of its own.
        host_flags: MNT.* flags that the host enforces by itself.
    """

    def __init__(
        self,
        vfs: Vfs,
        context: RequestContext,
        mount: Mount,
        path: str,
        packer: Packer,
        separate: Callable[[Mount], bool],
        host_flags: int = 0,
    ) -> None:
        self.vfs = vfs
        self.context = context
        self.mount = mount
        self.path = path
        self.nodes = NodeTable(vfs.mounts.get, self)
        self.attrs = AttrCache(self.nodes, packer, host_flags)
        self.polls = PollTable()
        self.ops = Operations(vfs, context, self.nodes, self.attrs, self.polls, separate)
        #: Number under /sys/fs/fuse/connections.
        self.number = ""
        #: It was taken off the host's tree. Its number may be another connection's from then on.
        self.detached = False
        #: The descriptor of the device, -1 while there is none.
        self.fd = -1
        self._rootvp: Vnode | None = None

    @property
    def name(self) -> str:
        """The place inside, for people: ``/tmp``."""
        return self.mount.onname or "/"

    def take_root(self, *, hold: bool = True) -> None:
        """Make the root node 1. Needs a kernel context.

        With ``hold`` it is referenced; without, the mount can be unmounted inside meanwhile.
        """
        vp = self.mount.ops.vfs_root(self.mount)
        self.nodes.set_root(self.mount, vp)
        if hold:
            self._rootvp = vp
        else:
            vp.rele()

    def is_gone(self) -> bool:
        """Whether the host has unmounted or aborted it: nobody waits for an answer any more."""
        return self.fd >= 0 and host.is_disconnected(self.fd)

    def unmounted_inside(self) -> None:
        """A mount of ours has gone: what the host has open of it fails from now on."""
        mounted = self.vfs.mounts.get
        for opened in self.ops.files.values():
            mount = opened.node.mount
            if mounted(mount.index) is not mount:
                opened.gone = True

    def release_all(self) -> None:
        """Close what the host left open, and forget every number. Needs a kernel context."""
        for opened in list(self.ops.files.values()):
            try:
                kern_close(opened.file)
            except KError as error:
                _log.warning("closing a file at unmount: %s", error)
        self.ops.files.clear()
        self.attrs.clear()
        self.nodes.unmounted()
        for node in list(self.nodes.by_id.values()):
            self.nodes.discard(node)
        vp, self._rootvp = self._rootvp, None
        if vp is not None:
            vp.rele()

    # --- the transport ---------------------------------------------------------------------

    @abc.abstractmethod
    def inval_entry(self, nodeid: int, name: bytes, expire: bool) -> None:
        """Tell the host that a name is void (or, with ``expire``, old). May block."""

    @abc.abstractmethod
    def delete_entry(self, nodeid: int, name: bytes, child: int) -> None:
        """Tell the host that a name of file ``child`` was removed. May block."""

    @abc.abstractmethod
    def inval_inode(self, nodeid: int, attr_only: bool) -> None:
        """Tell the host that attributes (and pages) of a file are void. May block."""

    @abc.abstractmethod
    async def serve(self) -> None:
        """Answer requests until the host has unmounted; may be called once."""

    @abc.abstractmethod
    def shut(self) -> None:
        """Give the descriptor back, whatever state the connection is in. Idempotent."""

    @abc.abstractmethod
    def served(self) -> dict[str, int]:
        """Requests by operation, as ``lookup``."""

    def statistics(self) -> dict[str, Any]:
        """The statistics of every part, by name."""
        return {"nodes": self.nodes.statistics(), "polls": self.polls.statistics()}
