"""What the VFS tells the host's caches.

The host remembers names, attributes and pages of our files. Whoever changes a file through the
VFS says so here, after the change and without waiting; the bridge decides whether the host must be
told (a request that came from the host has already updated the host's own caches) and sends the
message later from a thread of its own. Who gives an order from outside and then looks at the result
through the host waits with `HostCache.settle` in between.

Counterpart: none. The nearest relative is cache_inval_vp for NFS exports.
Differs from DragonFly: an addition; the machine below DragonFly has no caches of names.
Token/lock order: takes none. An implementation must not call back into the VFS.
Invariants: a method is called only after the change is complete and visible; none may raise.
`settle` is for the edges (bridge, control socket), never for code of the VFS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .mount import Mount
    from .vnode import Vnode


class HostCache(Protocol):
    """Receives changes. The methods that tell of one must be quick, and neither raise nor wait."""

    def entry_changed(self, dvp: Vnode, name: bytes) -> None:
        """The name ``name`` in directory ``dvp`` came, went, or means something else now."""

    def entry_removed(self, dvp: Vnode, name: bytes, vp: Vnode) -> None:
        """The name ``name`` in directory ``dvp``, which was one of ``vp``, went."""

    def attr_changed(self, vp: Vnode) -> None:
        """Attributes of ``vp`` are not what they were (link count, owner, times ...)."""

    def xattr_changed(self, vp: Vnode) -> None:
        """Extended attributes of ``vp``, or its access control lists, are others."""

    def data_changed(self, vp: Vnode) -> None:
        """Contents or size of ``vp`` changed."""

    def vnode_reclaimed(self, vp: Vnode) -> None:
        """``vp`` is leaving memory. Its file lives on: forget the pointer, keep the number."""

    def mount_changed(self, mp: Mount) -> None:
        """The flags of a mount are others: modes and rights shown before may be void."""

    async def settle(self) -> None:
        """Wait, in the host's event loop and a bounded time, until the host knows all so far."""


class NullHostCache:
    """A host without caches: hears everything, does nothing. For kernels that are not mounted."""

    __slots__ = ()

    def entry_changed(self, dvp: Vnode, name: bytes) -> None:
        """Ignore."""

    def entry_removed(self, dvp: Vnode, name: bytes, vp: Vnode) -> None:
        """Ignore."""

    def attr_changed(self, vp: Vnode) -> None:
        """Ignore."""

    def xattr_changed(self, vp: Vnode) -> None:
        """Ignore."""

    def data_changed(self, vp: Vnode) -> None:
        """Ignore."""

    def vnode_reclaimed(self, vp: Vnode) -> None:
        """Ignore."""

    def mount_changed(self, mp: Mount) -> None:
        """Ignore."""

    async def settle(self) -> None:
        """Return at once."""
