"""Attributes as pyfuse3 wants them.

Packing an ``EntryAttributes`` costs more than finding a file, so the packed record of a vnode is
kept in ``Vnode.attr_cache`` until a file system says that something changed (`Vnode.attr_changed`).
Records are bounded: the oldest are dropped when more than the limit are packed.

The flags of a mount inside are the host's business too, and it knows only one mount, ours. What it
decides by itself from a mode is told by the mode: files of a noexec mount have no x bit, those of a
nosuid mount no set-id bits. The bits stay stored, and are seen where the mount lets them.

Device nodes of a synthetic file system are shown as regular files: the host would otherwise open
its own device instead of asking us. Their true type and number are in the extended attributes
``user.dfuser.type`` and ``user.dfuser.rdev``.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Final

import pyfuse3

from dfuser.libkern.stat import S_ISGID, S_ISUID, VType, vttoif
from dfuser.libkern.sysctl import CtlFlag, Sysctl
from dfuser.vfs.mountflags import MNT
from dfuser.vfs.nullfs.vfsops import NullMount

if TYPE_CHECKING:
    from dfuser.vfs.mount import Mount
    from dfuser.vfs.vattr import Statfs, Vattr
    from dfuser.vfs.vnode import Vnode

    from .nodes import Node

#: Seconds the host may keep names and attributes of mounts that tell it about every change.
LONG_TIMEOUT: Final = 86400.0
#: One part in this many of the records is dropped at a time.
EVICT_PART: Final = 8
#: Coherence class whose files the host must ask about each time.
VOLATILE: Final = "volatile"
#: Mount flags that are seen in packed attributes.
SHOWN_FLAGS: Final = MNT.NOEXEC | MNT.NOSUID
_X_BITS: Final = 0o111


class AttrCache:
    """Packs attributes and bounds how many packed records are kept."""

    sysctl_limit = Sysctl(
        "vfs.fuse.attr_limit",
        "packed attribute records kept",
        attr="limit",
        flags=CtlFlag.RW,
        minimum=0,
        maximum=10_000_000,
    )
    sysctl_packed = Sysctl("vfs.fuse.attr_packed", "attribute records packed", attr="packed")

    __slots__ = ("_order", "limit", "packed")

    def __init__(self, limit: int = 65536) -> None:
        self.limit = limit
        self.packed = 0
        self._order: dict[Vnode, None] = {}

    def entry(self, node: Node, vp: Vnode) -> pyfuse3.EntryAttributes:
        """The packed attributes of ``vp`` under the number of ``node``."""
        entry = vp.attr_cache
        if entry is not None and entry.st_ino == node.nodeid:
            return entry  # type: ignore[no-any-return]
        mount = node.mount
        entry = pack(mount, node.nodeid, vp.ops.use.vop_getattr(vp))
        self.packed += 1
        if mount.coherence != VOLATILE:
            vp.attr_cache = entry
            order = self._order
            order[vp] = None
            if len(order) > self.limit:
                self._evict()
        return entry

    def _evict(self) -> None:
        """Drop the oldest records, a batch at a time: finding the first of a dict is not free."""
        order = self._order
        surplus = len(order) - self.limit + self.limit // EVICT_PART
        for vp in list(itertools.islice(order, surplus)):
            del order[vp]
            vp.attr_cache = None

    def drop(self, vp: Vnode) -> None:
        """Forget the record of a vnode that is being reclaimed."""
        vp.attr_cache = None
        self._order.pop(vp, None)

    def clear(self) -> None:
        """Drop every record (at unmount)."""
        for vp in self._order:
            vp.attr_cache = None
        self._order.clear()


def mount_below(mount: Mount) -> Mount | None:
    """The mount whose files a null mount shows; None for any other mount."""
    data = mount.data
    return data.lower if isinstance(data, NullMount) else None


def flags_of(mount: Mount) -> int:
    """The MNT.* flags that hold for files seen through ``mount``, a null mount's lower included."""
    below = mount_below(mount)
    return mount.flag if below is None else mount.flag | below.flag


def pack(mount: Mount, nodeid: int, va: Vattr) -> pyfuse3.EntryAttributes:
    """An ``EntryAttributes`` for ``va``."""
    entry = pyfuse3.EntryAttributes()
    volatile = mount.coherence == VOLATILE
    vtype = va.type
    if vtype is VType.VCHR or vtype is VType.VBLK:
        if volatile:
            vtype = VType.VREG
        else:
            entry.st_rdev = os.makedev(va.rmajor, va.rminor)
    entry.st_ino = nodeid
    entry.generation = 1
    timeout = 0.0 if volatile else LONG_TIMEOUT
    entry.entry_timeout = timeout
    entry.attr_timeout = timeout
    mode = va.mode or 0
    if vtype is VType.VREG:
        flags = flags_of(mount)
        if flags & SHOWN_FLAGS:
            if flags & MNT.NOEXEC:
                mode &= ~_X_BITS
            if flags & MNT.NOSUID:
                mode &= ~(S_ISUID | S_ISGID)
    entry.st_mode = vttoif(vtype) | mode
    entry.st_nlink = va.nlink
    entry.st_uid = va.uid or 0
    entry.st_gid = va.gid or 0
    entry.st_size = va.size or 0
    entry.st_blksize = va.blocksize
    entry.st_blocks = (va.bytes + 511) >> 9
    entry.st_atime_ns = va.atime or 0
    entry.st_mtime_ns = va.mtime or 0
    entry.st_ctime_ns = va.ctime or 0
    return entry


def negative(*, volatile: bool) -> pyfuse3.EntryAttributes:
    """The answer "no such name"; of a volatile mount the host must not remember it."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = 0.0 if volatile else LONG_TIMEOUT
    entry.attr_timeout = 0.0
    return entry


def statvfs(sf: Statfs) -> pyfuse3.StatvfsData:
    """File system figures for the host."""
    data = pyfuse3.StatvfsData()
    data.f_bsize = data.f_frsize = sf.bsize
    data.f_blocks = sf.blocks
    data.f_bfree = sf.bfree
    data.f_bavail = sf.bavail
    data.f_files = sf.files
    data.f_ffree = sf.ffree
    data.f_favail = sf.favail
    data.f_namemax = sf.namemax
    return data
