"""The files of a tmpfs: one small object each, by kind.

A node is the file itself. Names point at it (`dir.TmpfsDirent`), the mount's table finds
it by number, and while somebody looks at it a vnode is attached. It stays when the vnode
is reclaimed, so everything that must survive lives here, the data included; the vnode
only borrows it.

Millions of nodes are meant to fit, which is why a node has slots and nothing else, holds
its four times as shared integers (a fresh file has one), and has two places that stay
None until they are needed: the VM object with the data (made with the first byte) and the
`TmpfsExt` with extended attributes and access control lists.

Counterpart: struct tmpfs_node (vfs/tmpfs/tmpfs.h), with a class for each arm of its union.
Differs from DragonFly: times are written at once instead of being noted in status bits and
    worked out later, so what getattr shows is what happened; there is a birth time; a node
    has no generation, because inode numbers are never given out twice.
Token/lock order: none; nodes change only between two suspension points.
Invariants: nlink is the number of names, plus for a directory 1 for its ``.`` and 1 for
    each subdirectory's ``..``; a node with nlink 0 is in the table only while it has a
    vnode; node.vnode.data is node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfuser.libkern.stat import (
    DT_LNK,
    DT_REG,
    S_IFLNK,
    S_IFREG,
    VType,
    vttoif,
    vtype_to_dt,
)

if TYPE_CHECKING:
    from dfuser.libkern.acl import Acl
    from dfuser.vfs.vnode import Vnode
    from dfuser.vm.object import VmObject

RELATIME_NS: Final = 24 * 3600 * 1_000_000_000
"""An access time older than this is renewed whatever the other times are."""


class TmpfsExt:
    """What few files have: extended attributes and access control lists.

    ``xattrs`` is keyed by name space and name; ``xattr_bytes`` counts names and values.
    The access list is kept only where the mode cannot say the same.
    """

    __slots__ = ("acl", "default_acl", "xattr_bytes", "xattrs")

    def __init__(self) -> None:
        self.xattrs: dict[tuple[int, bytes], bytes] = {}
        self.xattr_bytes = 0
        self.acl: Acl | None = None
        self.default_acl: Acl | None = None

    @property
    def empty(self) -> bool:
        """Whether the file could do without this object."""
        return not self.xattrs and self.acl is None and self.default_acl is None


class TmpfsNode:
    """A file of any kind. Counterpart: struct tmpfs_node (vfs/tmpfs/tmpfs.h).

    ``mode`` holds permission, set-id and sticky bits; the kind is in ``type``, an
    attribute of the class for the kinds that have a class of their own.
    """

    __slots__ = (
        "atime",
        "btime",
        "ctime",
        "ext",
        "flags",
        "gid",
        "ino",
        "mode",
        "mtime",
        "nlink",
        "size",
        "uid",
        "vnode",
    )

    type: VType
    dtype: int
    ifmt: int

    def __init__(self, ino: int, mode: int, uid: int, gid: int, now: int) -> None:
        self.ino = ino
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.flags = 0
        self.nlink = 0
        self.size = 0
        self.atime = self.mtime = self.ctime = self.btime = now
        self.ext: TmpfsExt | None = None
        self.vnode: Vnode | None = None

    @property
    def pages(self) -> int:
        """Pages of physical memory the file's data takes."""
        return 0

    def extend(self) -> TmpfsExt:
        """The file's rare attributes, made now if it had none."""
        if self.ext is None:
            self.ext = TmpfsExt()
        return self.ext

    def trim_ext(self) -> None:
        """Let the rare attributes go when the last of them is gone."""
        if self.ext is not None and self.ext.empty:
            self.ext = None

    def atime_is_stale(self, now: int) -> bool:
        """Whether reading at ``now`` must renew the access time, by the relatime rule.

        It must when the file was read for the first time since it changed, or when a day
        has passed.
        """
        atime = self.atime
        return atime <= self.mtime or atime <= self.ctime or now - atime >= RELATIME_NS

    def attr_changed(self) -> None:
        """Tell the vnode, if there is one, that packed attributes kept with it are old."""
        vp = self.vnode
        if vp is not None:
            vp.attr_changed()

    def __repr__(self) -> str:
        """Kind, number, links and size."""
        return f"<{type(self).__name__} ino={self.ino} nlink={self.nlink} size={self.size}>"


class TmpfsReg(TmpfsNode):
    """A regular file. Its data is ``object``; a file that never had a byte has none.

    Counterpart: tn_reg of struct tmpfs_node.
    """

    __slots__ = ("object",)

    type: VType = VType.VREG
    dtype: int = DT_REG
    ifmt: int = S_IFREG

    def __init__(self, ino: int, mode: int, uid: int, gid: int, now: int) -> None:
        super().__init__(ino, mode, uid, gid, now)
        self.object: VmObject | None = None

    @property
    def pages(self) -> int:
        """Pages of physical memory the file's data takes."""
        return 0 if self.object is None else self.object.resident_page_count


class TmpfsLink(TmpfsNode):
    """A symbolic link. Counterpart: tn_link of struct tmpfs_node."""

    __slots__ = ("target",)

    type: VType = VType.VLNK
    dtype: int = DT_LNK
    ifmt: int = S_IFLNK

    def __init__(self, ino: int, mode: int, uid: int, gid: int, now: int, target: bytes) -> None:
        super().__init__(ino, mode, uid, gid, now)
        self.target = target
        self.size = len(target)


class TmpfsSpecial(TmpfsNode):
    """A device, FIFO or socket: a name for something that lives elsewhere.

    Counterpart: tn_rdev of struct tmpfs_node.
    """

    __slots__ = ("dtype", "ifmt", "rmajor", "rminor", "type")

    def __init__(
        self, ino: int, mode: int, uid: int, gid: int, now: int, vtype: VType, rdev: tuple[int, int]
    ) -> None:
        super().__init__(ino, mode, uid, gid, now)
        self.type = vtype
        self.dtype = vtype_to_dt(vtype)
        self.ifmt = vttoif(vtype)
        self.rmajor, self.rminor = rdev
