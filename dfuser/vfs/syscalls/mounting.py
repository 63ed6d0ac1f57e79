"""mount(2) and unmount(2) as seen by a caller with a place in his hand.

`MountList` knows how; here is who may. Mounting is checked there (vfs.usermount, the owner of the
directory). Unmounting and updating are for root and for whoever mounted; the place given must be
the root of the mount that is meant; a jail touches only what it has mounted itself.

Counterpart: sys_mount, sys_unmount, getmntinfo (kern/vfs_syscalls.c).
Differs from DragonFly: places instead of paths; getmntinfo returns records.
Token/lock order: none.
Invariants: none of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dfuser.libkern.errno import EINVAL, ENOENT, EPERM, KError

from ..mountflags import MNT, format_flags, parse_options
from ..subr import vnode_of
from ..vattr import Statfs

if TYPE_CHECKING:
    from dfuser.libkern.ucred import Ucred

    from ..mount import Mount
    from ..namecache import NcHandle
    from ..vfs import Vfs


class MountInfo(NamedTuple):
    """One line of mount(8) and df(1). Counterpart: struct statfs (sys/mount.h)."""

    number: int
    fsid: int
    fstype: str
    fromname: str
    onname: str
    flags: int
    text: str
    owner: int
    vnodes: int
    coherence: str
    statfs: Statfs


def kern_mount(
    vfs: Vfs, fstype: str, source: str, nch: NcHandle, options: str, cred: Ucred
) -> Mount:
    """Mount a file system on a directory, or with the option ``update`` change a mount.

    Args:
        vfs: the VFS.
        fstype: registered type; ignored for an update.
        source: what is mounted.
        nch: the directory; for an update the root of the mount.
        options: words as on a command line (``"ro,noexec,size=1m"``).
        cred: who mounts.

    Raises:
        KError: those of `MountList.mount` and `MountList.update`; EINVAL, an update of a place that
            is not the root of a mount.
        Block: a file system must wait.
    """
    flags, clear, rest = parse_options(options)
    vnode_of(vfs, nch, cred)
    if not flags & MNT.UPDATE:
        return vfs.mounts.mount(fstype, source, nch, rest, flags, cred)
    mp = _mount_at(nch)
    _check_owner(mp, cred)
    keep = mp.flag & (MNT.SETTABLE | MNT.RDONLY) & ~clear
    vfs.mounts.update(mp, keep | flags & ~MNT.UPDATE, rest, cred)
    return mp


def kern_unmount(vfs: Vfs, nch: NcHandle, flags: int, cred: Ucred, *, wait: bool = False) -> None:
    """Unmount the file system whose root is at ``nch``. Counterpart: sys_unmount.

    Args:
        vfs: the VFS.
        nch: the root of the mount.
        flags: MNT.FORCE or 0.
        cred: who unmounts.
        wait: try for a second before EBUSY (the caller must run this by `run_blocking`).

    Raises:
        KError: ENOENT, the place is gone; EINVAL, not the root of a mount, or the kernel's root;
            EPERM; EBUSY with the counts.
        Block: with ``wait``, while somebody is inside.
    """
    vnode_of(vfs, nch, cred)
    mp = _mount_at(nch)
    _check_owner(mp, cred)
    vfs.mounts.unmount(mp, flags & MNT.FORCE, wait=wait)


def _mount_at(nch: NcHandle) -> Mount:
    """The mount whose root a place is."""
    if nch.ncp is not nch.mount.rootncp:
        raise KError(EINVAL, "not the root of a mount")
    return nch.mount


def _check_owner(mp: Mount, cred: Ucred) -> None:
    """Root, or who mounted it; from a jail only its own."""
    if cred.prison is not None and mp.prison is not cred.prison:
        raise KError(EPERM)
    if cred.uid not in (0, mp.owner):
        raise KError(EPERM)


def kern_getmntinfo(vfs: Vfs, cred: Ucred) -> list[MountInfo]:
    """All mounts the caller may see, in the order they were mounted. Counterpart: getmntinfo(3).

    A file system that cannot say how full it is shows zeroes.
    """
    found: list[MountInfo] = []
    for mp in vfs.mounts:
        if cred.prison is not None and mp.prison is not cred.prison:
            continue
        try:
            figures = mp.ops.vfs_statfs(mp)
        except KError:
            figures = Statfs(512, 0, 0, 0, 0, 0, 0)
        info = MountInfo(
            mp.index, mp.fsid, mp.fstype.name, mp.fromname, mount_point(vfs, mp), mp.flag,
            format_flags(mp.flag), mp.owner, len(mp.vnodes), mp.coherence, figures,
        )  # fmt: skip
        found.append(info)
    return found


def mount_point(vfs: Vfs, mp: Mount) -> str:
    """Where a mount is now: the path follows renames above it."""
    if mp.ncmounton is None:
        return "/"
    try:
        path = vfs.cache.fullpath(mp.ncmountpt)
    except KError as error:
        if error.errno != ENOENT:
            raise
        return mp.onname
    return path.decode("utf-8", "surrogateescape")
