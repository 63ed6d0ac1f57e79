"""Vnodes of disk devices, for file systems that keep their metadata in buffers of the device.

Such a vnode is on no mount and has no name. Offsets in it are bytes of the device, and its
`vop_strategy` hands transfers to the device as they are. A file system makes one when it is mounted
and lets it go when it is unmounted.

Counterpart: bdevvp (kern/vfs_subr.c); devfs_spec_strategy (vfs/devfs/devfs_vnops.c).
Differs from DragonFly: there the vnode of a device is shared by all its users, and named.
Token/lock order: takes none.
Invariants: ``data`` is the device until the vnode is reclaimed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfuser.dev.devsw import Cdev
from dfuser.dev.disk.bio import Bio, push_bio
from dfuser.dev.disk.device import dev_dstrategy
from dfuser.libkern.param import MAXPHYS
from dfuser.libkern.stat import VType

from .vop import OpsCell, VnodeOps

if TYPE_CHECKING:
    from dfuser.libkern.ucred import Ucred

    from .bio import BufCache
    from .vnode import Vnode
    from .vnodetable import VnodeTable


class SpecOps(VnodeOps):
    """Operations of a device's vnode. Counterpart: devfs_vnode_dev_vops."""

    __slots__ = ("bufs",)

    def __init__(self, bufs: BufCache) -> None:
        self.bufs = bufs

    def vop_strategy(self, vp: Vnode, bio: Bio) -> None:
        """Hand a transfer to the device."""
        nbio = push_bio(bio)
        nbio.offset = bio.offset
        dev_dstrategy(vp.data, nbio)

    def vop_bmap(self, vp: Vnode, offset: int) -> tuple[int, int, int]:
        """A device lies in one piece."""
        return offset, MAXPHYS, min(offset, MAXPHYS)

    def vop_fsync(self, vp: Vnode, waitfor: int, cred: Ucred | None = None) -> None:
        """Write its dirty buffers and have it flush its cache."""
        self.bufs.vfsync(vp, waitfor, vp)

    def vop_reclaim(self, vp: Vnode) -> None:
        """Forget its buffers."""
        self.bufs.reclaim(vp)
        vp.data = None


def bdevvp(table: VnodeTable, bufs: BufCache, dev: Cdev) -> Vnode:
    """A new vnode of a disk device, referenced. ``table.vgone`` ends it. Counterpart: bdevvp."""
    vp = table.getnewvnode(None, OpsCell(SpecOps(bufs)), VType.VBLK)
    vp.data = dev
    return vp
