"""What a file system is to the VFS: an object for each mount, and a type with a name.

A file system brings two things. `VfsOps` is what can be done with a mount as a whole (bring it up,
give the root, say how full it is, sync, find a file by number, shut down); its subclass is
instantiated once for each mount. Its vnode operations (`vop.VnodeOps`) are what can be done with a
file. It becomes mountable by registering a name and a factory.

Counterpart: struct vfsops, struct vfsconf (sys/mount.h), vfs_register (kern/vfs_init.c).
Differs from DragonFly: an instance a mount instead of one table a type; quota, export and
    extended-attribute control of whole mounts are not part of it.
Token/lock order: none. Methods are plain; they raise `KError`, or `Block` before a change.
Invariants: a type's number and name are unique in a kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dfuser.libkern.errno import EEXIST, ENODEV, EOPNOTSUPP, KError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dfuser.libkern.ucred import Ucred

    from .mount import Mount
    from .vattr import Statfs
    from .vnode import Vnode


class VfsOps:
    """What a file system can do as a whole; one object for each mount.

    Counterpart: struct vfsops (sys/mount.h).
    """

    #: Whether files can be read and written without having been opened: an open keeps nothing here
    #: and refuses nothing that the file's permissions do not. A host may then leave opens out.
    stateless = False
    #: Whether everything is in memory: `VnodeOps.vop_getattr` and ``vop_read`` of a regular file
    #: neither wait nor need a thread.
    at_hand = False

    def vfs_mount(self, mp: Mount, source: str, options: dict[str, str], cred: Ucred) -> None:
        """Bring the file system up, or with MNT.UPDATE in ``mp.flag`` change how it is mounted.

        Sets ``mp.vn_cell`` and ``mp.data``. A file system that shares the names of another mount
        also sets ``mp.rootncp`` and MNTK.NCALIASED. Raises `KError` having changed nothing.
        """
        raise KError(EOPNOTSUPP)

    def vfs_start(self, mp: Mount) -> None:
        """The mount is in the tree."""

    def vfs_unmount(self, mp: Mount, flags: int) -> None:
        """Shut down. No vnode of the mount is left but dead ones."""

    def vfs_root(self, mp: Mount) -> Vnode:
        """The root directory's vnode, referenced."""
        raise KError(EOPNOTSUPP)

    def vfs_statfs(self, mp: Mount) -> Statfs:
        """How big and how full it is."""
        raise KError(EOPNOTSUPP)

    def vfs_sync(self, mp: Mount, waitfor: int) -> None:
        """Write what is dirty (MNT_WAIT, MNT_NOWAIT or MNT_LAZY, `vop`)."""

    def vfs_vget(self, mp: Mount, ino: int) -> Vnode:
        """The vnode of an inode number, referenced; ESTALE or ENOENT when there is none."""
        raise KError(EOPNOTSUPP)


class FsType(NamedTuple):
    """A registered file system type. Counterpart: struct vfsconf (sys/mount.h)."""

    name: str
    factory: Callable[[], VfsOps]
    flags: int
    typenum: int


class FsTypes:
    """The types a kernel can mount. Counterpart: vfsconf list, vfs_register."""

    def __init__(self) -> None:
        self._types: dict[str, FsType] = {}
        self._next = 1

    def register(self, name: str, factory: Callable[[], VfsOps], flags: int = 0) -> FsType:
        """Make a type known; numbers count up from 1.

        Raises:
            KError: EEXIST, the name is taken.
        """
        if name in self._types:
            raise KError(EEXIST, f"file system type {name} is registered already")
        fstype = FsType(name, factory, flags, self._next)
        self._next += 1
        self._types[name] = fstype
        return fstype

    def find(self, name: str) -> FsType:
        """Look a type up. Counterpart: vfsconf_find_by_name.

        Raises:
            KError: ENODEV, no such type.
        """
        fstype = self._types.get(name)
        if fstype is None:
            raise KError(ENODEV, f"no file system type {name}")
        return fstype

    def __iter__(self) -> Iterator[FsType]:
        return iter(tuple(self._types.values()))
