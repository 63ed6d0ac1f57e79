"""What the host is shown of a file's attributes, and the packed records of them.

Packing attributes into what a transport sends costs more than finding a file, so the record of a
file is kept until a file system says that something changed (`Vnode.attr_changed`). It hangs twice:
on the node, which names the file in it, and on the vnode, which knows when it goes stale; it is
good while both hold the same object. Records are bounded: the oldest are dropped when more than the
limit are packed.

A transport packs in its own form (`Packer`): 128 bytes of the protocol for the device, an object of
pyfuse3's for the other. What goes in is decided here, once for both:

* The flags of a mount are the host's business too. What it cannot know, because it sees several of
  our mounts as one, is told by the mode: files of a noexec mount have no x bit, those of a nosuid
  mount no set-id bits. The bits stay stored, and are seen where the mount lets them. A mount on a
  connection of its own shows them as they are: the host has the flags itself.
* Device nodes of a synthetic file system are shown as regular files: the host would otherwise open
  its own device instead of asking us. Their true type and number are in the extended attributes
  ``user.dfuser.type`` and ``user.dfuser.rdev``.

Counterpart: vn_stat (sys/kern/vfs_vnops.c).
Invariants: a record that is sent says what `vop_getattr` would say now; every node with a record
stands in `NodeTable.packed`.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final, Protocol

from dfuser.libkern.stat import S_ISGID, S_ISUID, VType, vttoif
from dfuser.vfs.mountflags import MNT
from dfuser.vfs.nullfs.vfsops import NullMount

if TYPE_CHECKING:
    from dfuser.vfs.mount import Mount
    from dfuser.vfs.vattr import Vattr
    from dfuser.vfs.vnode import Vnode

    from .nodes import Node, NodeTable

#: Seconds the host may keep names and attributes of mounts that tell it about every change.
LONG_TIMEOUT: Final = 86400
#: One part in this many of the records is dropped at a time.
EVICT_PART: Final = 8
#: Coherence class whose files the host must ask about each time.
VOLATILE: Final = "volatile"
#: Mount flags that are seen in packed attributes.
SHOWN_FLAGS: Final = MNT.NOEXEC | MNT.NOSUID
_X_BITS: Final = 0o111
#: Types whose modes no flag of a mount hides.
_NEVER_HIDDEN: Final = frozenset({VType.VDIR, VType.VLNK, VType.VFIFO, VType.VSOCK})
#: File type bits of a mode, by type.
_FORMAT: Final = tuple(vttoif(vtype) for vtype in sorted(VType))


class Packer(Protocol):
    """How a transport packs."""

    def entry(
        self, nodeid: int, va: Vattr, mode: int, rmajor: int, rminor: int, timeout: int
    ) -> Any:
        """The record of a file. What follows ``va`` is what `show` answers."""

    def negative(self, timeout: int) -> Any:
        """The record that says "no such name" for ``timeout`` seconds."""

    def bare(self, ino: int, dtype: int) -> Any:
        """The record of ``.`` or ``..`` in a listing: names a file, counts no lookup."""


class AttrCache:
    """Packs attributes of one connection's files and bounds how many records are kept.

    Args:
        nodes: the files.
        packer: the transport's form.
        host_flags: MNT.* flags that the host enforces by itself for all files here.
        limit: records kept.
    """

    __slots__ = ("host_flags", "limit", "negatives", "nodes", "packed", "packer")

    def __init__(
        self, nodes: NodeTable, packer: Packer, host_flags: int = 0, limit: int = 65536
    ) -> None:
        self.nodes = nodes
        self.packer = packer
        self.host_flags = host_flags
        self.limit = limit
        self.packed = 0
        #: "No such name", to be remembered for long and not at all.
        self.negatives = (packer.negative(LONG_TIMEOUT), packer.negative(0))

    def entry(self, node: Node, vp: Vnode) -> Any:
        """The packed attributes of ``vp`` under the number of ``node``."""
        record = node.packed
        if record is not None and record is vp.attr_cache:
            return record
        mount = node.mount
        record = self.pack(mount, node.nodeid, vp.ops.use.vop_getattr(vp))
        self.packed += 1
        if mount.coherence != VOLATILE:
            vp.attr_cache = node.packed = record
            order = self.nodes.packed
            order[node] = None
            if len(order) > self.limit:
                self._evict()
        return record

    def pack(self, mount: Mount, nodeid: int, va: Vattr) -> Any:
        """A new record for ``va``, kept nowhere."""
        return self.packer.entry(nodeid, va, *show(mount, va, self.host_flags))

    def negative(self, mount: Mount) -> Any:
        """The answer "no such name" in ``mount``."""
        return self.negatives[mount.coherence == VOLATILE]

    def _evict(self) -> None:
        """Drop the oldest records, a batch at a time: finding the first of a dict is not free."""
        order = self.nodes.packed
        surplus = len(order) - self.limit + self.limit // EVICT_PART
        for node in list(itertools.islice(order, surplus)):
            del order[node]
            node.packed = None

    @staticmethod
    def drop(vp: Vnode) -> None:
        """Forget the records of a vnode that is being reclaimed."""
        vp.attr_cache = None

    def clear(self) -> None:
        """Drop every record (at unmount)."""
        for node in self.nodes.packed:
            node.packed = None
        self.nodes.packed.clear()


def mount_below(mount: Mount) -> Mount | None:
    """The mount whose files a null mount shows; None for any other mount."""
    data = mount.data
    return data.lower if isinstance(data, NullMount) else None


def flags_of(mount: Mount) -> int:
    """The MNT.* flags that hold for files seen through ``mount``, a null mount's lower included."""
    below = mount_below(mount)
    return mount.flag if below is None else mount.flag | below.flag


def show(mount: Mount, va: Vattr, host_flags: int = 0) -> tuple[int, int, int, int]:
    """What the host is told of a file with attributes ``va`` in ``mount``.

    Returns:
        Type and permissions; major and minor number of a device; seconds that name and attributes
        may be kept.
    """
    vtype = va.type
    if vtype in _NEVER_HIDDEN or (
        not mount.flag & SHOWN_FLAGS
        and vtype is VType.VREG
        and mount.data.__class__ is not NullMount
    ):
        mode = _FORMAT[vtype] | (va.mode or 0)
        return mode, 0, 0, 0 if mount.coherence == VOLATILE else LONG_TIMEOUT
    volatile = mount.coherence == VOLATILE
    rmajor = rminor = 0
    if vtype is VType.VCHR or vtype is VType.VBLK:
        if volatile:
            vtype = VType.VREG
        else:
            rmajor, rminor = va.rmajor, va.rminor
    mode = va.mode or 0
    if vtype is VType.VREG:
        hidden = flags_of(mount) & SHOWN_FLAGS & ~host_flags
        if hidden:
            if hidden & MNT.NOEXEC:
                mode &= ~_X_BITS
            if hidden & MNT.NOSUID:
                mode &= ~(S_ISUID | S_ISGID)
    return vttoif(vtype) | mode, rmajor, rminor, 0 if volatile else LONG_TIMEOUT
