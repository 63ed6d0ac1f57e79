"""/sysctl: every sysctl variable is a file.

``kern.maxvnodes`` is ``/sysctl/kern/maxvnodes``. Reading gives the value of this moment and a
newline; writing sets it, and the error of the write is the handler's: EPERM for a variable that is
read-only or not for this caller, EINVAL for a value it does not take. What the variable means and
what it holds stand in extended attributes::

    $ cat /sysctl/kern/maxvnodes
    100000
    $ echo 200000 > /sysctl/kern/maxvnodes
    $ getfattr -n user.dfuser.descr --only-values /sysctl/kern/maxvnodes
    Maximum number of vnodes

Modes say what can be done: 0444 read-only, 0644 for root, 0666 for anybody, 0200 write-only.
Variables that listings skip (kern.msgbuf) are not listed here either, but open by name.

Counterpart: none; sysctl(3) is a system call in DragonFly (kern/kern_sysctl.c).
Differs from DragonFly: an addition. A raw structure is shown as its declaration prints it.
Token and lock order: takes none.
Invariants: the set of files is what `SysctlTree.walk` visits, at every moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from dfuser.libkern.errno import EISDIR, ENOENT, KError
from dfuser.libkern.sysctl import ANYBODY, RD, SKIP, WR, SysctlOid, SysctlTree

from ..pseudofs import ROOT_INO, InodeTable, PfsDir, PfsEntry, PfsFile, PfsNode
from ..pseudofs_vnops import PfsVfsOps, parse_owner

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfuser.libkern.ucred import Ucred

    from ..mount import Mount
    from ..vfs import Vfs


class SysctlSource:
    """What the nodes of one mount share: the tree, the inode numbers, the files' owner."""

    __slots__ = ("inodes", "owner", "tree")

    def __init__(self, tree: SysctlTree, inodes: InodeTable, owner: tuple[int, int]) -> None:
        self.tree = tree
        self.inodes = inodes
        self.owner = owner

    def find(self, name: str, is_node: bool) -> SysctlOid | None:
        """The variable or node of a name, None when it is gone or of the other kind."""
        try:
            oid = self.tree.find(name)
        except KError:
            return None
        return oid if oid.is_node == is_node else None

    def ino(self, oid: SysctlOid) -> int:
        """The inode number of a name; a node and a variable of one name have two."""
        return self.inodes.number((oid.name, oid.is_node))

    def extattrs(self, oid: SysctlOid) -> Mapping[bytes, bytes]:
        """What the extended attributes tell."""
        attrs = {b"dfuser.type": oid.kind.name.lower().encode(), b"dfuser.fmt": oid.fmt.encode()}
        if oid.descr:
            attrs[b"dfuser.descr"] = oid.descr.encode()
        attrs[b"dfuser.oid"] = ".".join(map(str, oid.mib)).encode()
        return attrs


class SysctlDir(PfsDir):
    """An inner node of the tree."""

    __slots__ = ("name", "source")

    def __init__(self, source: SysctlSource, name: str, ino: int, parent: PfsDir | None) -> None:
        super().__init__(ino, parent)
        self.source = source
        self.name = name

    def alive(self) -> bool:
        """Whether there still is a node of this name."""
        return self.source.find(self.name, True) is not None

    def owner(self) -> tuple[int, int]:
        """As the mount was told."""
        return self.source.owner

    def extattrs(self) -> Mapping[bytes, bytes]:
        """Description and number."""
        oid = self.source.find(self.name, True)
        return self.source.extattrs(oid) if oid is not None else {}

    def lookup(self, name: bytes, cred: Ucred) -> PfsNode | None:
        """A word below this node."""
        oid = self.source.find(self.name, True)
        child = oid.children.get(name.decode("utf-8", "replace")) if oid is not None else None
        if child is None:
            return None
        kind = SysctlDir if child.is_node else SysctlLeaf
        return kind(self.source, child.name, self.source.ino(child), self)

    def entries(self, cred: Ucred, after: int = 0) -> Iterable[PfsEntry]:
        """The words below, but for those that listings skip."""
        oid = self.source.find(self.name, True)
        if oid is None:
            raise KError(ENOENT)
        for child in oid.sorted_children():
            if not child.is_node and child.flags & SKIP:
                continue
            kind = SysctlDir if child.is_node else SysctlLeaf
            node = kind(self.source, child.name, self.source.ino(child), self)
            yield node.entry(child.word.encode())


class SysctlLeaf(PfsFile):
    """A variable."""

    __slots__ = ("name", "source")

    def __init__(self, source: SysctlSource, name: str, ino: int, parent: PfsDir | None) -> None:
        super().__init__(ino, parent)
        self.source = source
        self.name = name

    def _oid(self) -> SysctlOid:
        oid = self.source.find(self.name, False)
        if oid is None:
            raise KError(ENOENT)
        return oid

    def alive(self) -> bool:
        """Whether there still is a variable of this name."""
        return self.source.find(self.name, False) is not None

    def owner(self) -> tuple[int, int]:
        """As the mount was told."""
        return self.source.owner

    def mode(self) -> int:
        """What the variable's flags allow."""
        flags = self._oid().flags
        mode = 0o444 if flags & RD else 0
        if flags & WR:
            mode |= 0o222 if flags & ANYBODY else 0o200
        return mode

    def extattrs(self) -> Mapping[bytes, bytes]:
        """Description, type, format and number."""
        return self.source.extattrs(self._oid())

    def read(self, cred: Ucred) -> bytes:
        """The value of this moment. Raises KError EPERM when it cannot be read."""
        return self._oid().get().encode("utf-8", "surrogateescape") + b"\n"

    def write(self, data: bytes, cred: Ucred) -> bytes | None:
        """Set the value.

        Raises:
            KError: EPERM, EINVAL, or the variable's own error.
        """
        oid = self._oid()
        if oid.is_node:
            raise KError(EISDIR)
        oid.set(data, cred)
        return None


class SysctlfsVfsOps(PfsVfsOps):
    """A mounted sysctl tree.

    Options: ``uid``, ``gid``: who owns the files (0 by default). The tree's own rule about who may
    write stays in force.
    """

    known_options = frozenset({"uid", "gid"})

    def __init__(self, tree: SysctlTree) -> None:
        self.tree = tree
        self.owner = (0, 0)

    @classmethod
    def factory(cls, tree: SysctlTree) -> Callable[[], SysctlfsVfsOps]:
        """What to register as a file system type: makes one instance a mount."""
        return lambda: cls(tree)

    def vfs_mount(self, mp: Mount, source: str, options: dict[str, str], cred: Ucred) -> None:
        """Take the owner from the options, then as every synthetic file system."""
        self.owner = parse_owner(options)
        super().vfs_mount(mp, source, options, cred)

    def make_root(self, inodes: InodeTable) -> PfsDir:
        """The root of the tree."""
        return SysctlDir(SysctlSource(self.tree, inodes, self.owner), "", ROOT_INO, None)

    def times(self, vfs: Vfs) -> int | None:
        """The time of the mount, so that a copy of the tree does not see it change."""
        return vfs.now()
