"""Attributes: stat, setattr, access, readlink, statfs, pathconf, and files by number.

Counterpart: kern_stat, kern_chmod, kern_chown, kern_chflags, kern_utimes, kern_truncate,
    kern_access, kern_readlink, kern_statfs, sys_pathconf, sys_fhopen (kern/vfs_syscalls.c).
Differs from DragonFly: the five calls that change attributes are one core, because a host sends
    them together.
Token/lock order: none.
Invariants: `kern_setattr` changes all that was asked or nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfuser.libkern.errno import EACCES, EINVAL, EISDIR, ENOENT, ESTALE, KError
from dfuser.libkern.stat import VEXEC, VType

from ..access import access_mode, setattr_check, vaccess
from ..mountflags import MNT, MNTK
from ..subr import ncp_writechk, vn_writechk, vnode_of

if TYPE_CHECKING:
    from dfuser.libkern.ucred import Ucred

    from ..mount import Mount
    from ..namecache import NcHandle
    from ..vattr import Statfs, Vattr
    from ..vfs import Vfs
    from ..vnode import Vnode


def kern_stat(vfs: Vfs, nch: NcHandle, cred: Ucred | None = None) -> Vattr:
    """The attributes of what is at a place; links are not followed. Counterpart: kern_stat.

    Raises:
        KError: ENOENT, or the file system's.
        Block: the file system must wait.
    """
    vp = nch[0].vp
    if vp is None:
        vp = vnode_of(vfs, nch, cred if cred is not None else vfs.fscred)
    return vp.ops.use.vop_getattr(vp)


def kern_setattr(vfs: Vfs, nch: NcHandle, vap: Vattr, cred: Ucred, chk: bool = True) -> None:
    """Change mode, owner, flags, size and times, as far as ``vap`` has them set.

    Args:
        vfs: the VFS.
        nch: the place.
        vap: what is to change (see `Vattr`).
        cred: who asks.
        chk: check permissions (`access.setattr_check`).

    Raises:
        KError: ENOENT, EROFS, EPERM, EACCES, EISDIR, EINVAL, ETXTBSY, or the file system's.
        Block: the file system must wait.
    """
    vp = vnode_of(vfs, nch, cred)
    ncp_writechk(nch)
    if vap.size is not None:
        if vp.type is VType.VDIR:
            raise KError(EISDIR)
        if vap.size < 0:
            raise KError(EINVAL)
        vn_writechk(vp)
    if chk:
        va = vp.ops.use.vop_getattr(vp)
        vap = setattr_check(vp, va, vap, cred)
    vp.ops.use.vop_setattr(vp, vap, cred if chk else vfs.fscred)
    if vap.mode is not None or vap.uid is not None or vap.gid is not None:
        vfs.cache.inval_wxok(vp)
    host = vfs.hostcache
    if host is not None:
        host.attr_changed(vp)
        if vap.size is not None:
            host.data_changed(vp)


def kern_access(vfs: Vfs, nch: NcHandle, amode: int, cred: Ucred) -> None:
    """access(2): whether ``cred`` may use the file with R_OK, W_OK, X_OK (0: that it exists).

    Raises:
        KError: ENOENT, EACCES (also to execute on a noexec mount), EPERM, EROFS, EINVAL.
        Block: the file system must wait.
    """
    mode = access_mode(amode)
    vp = vnode_of(vfs, nch, cred)
    if not mode:
        return
    if amode & 2:
        ncp_writechk(nch)
    below = vp.mount.flag if vp.mount is not None else 0
    if mode & VEXEC and vp.type is VType.VREG and (below | nch.mount.flag) & MNT.NOEXEC:
        raise KError(EACCES)
    vaccess(vp, vp.ops.use.vop_getattr(vp), mode, cred)


def kern_readlink(vfs: Vfs, nch: NcHandle, cred: Ucred) -> bytes:
    """The target of a symbolic link. Counterpart: kern_readlink.

    Raises:
        KError: EINVAL, not a link; ENOENT; or the file system's.
        Block: the file system must wait.
    """
    vp = vnode_of(vfs, nch, cred)
    if vp.type is not VType.VLNK:
        raise KError(EINVAL)
    return bytes(vp.ops.use.vop_readlink(vp, cred))


def kern_statfs(vfs: Vfs, nch: NcHandle) -> Statfs:
    """How big and how full the mount of a place is. Counterpart: kern_statfs.

    Raises:
        KError: ENOENT, the file system has been unmounted by force; or the file system's.
        Block: the file system must wait.
    """
    mp = nch[1]
    if vfs.mounts.get(mp.index) is not mp:
        raise KError(ENOENT)
    return mp.ops.vfs_statfs(mp)


def kern_pathconf(vfs: Vfs, nch: NcHandle, name: int, cred: Ucred) -> int:
    """A limit of the file system at a place, by PC_* name (`vop`).

    Raises:
        KError: EINVAL, a name that means nothing here.
        Block: the file system must wait.
    """
    vp = vnode_of(vfs, nch, cred)
    return vp.ops.use.vop_pathconf(vp, name)


def kern_fhtovp(vfs: Vfs, mp: Mount, ino: int) -> Vnode:
    """The vnode of a file handle: mount and inode number. Counterpart: VFS_FHTOVP.

    Returns:
        The vnode, referenced. `NameCache.fromdvp` gives the entry of a directory, `nch_of` a handle
        for anything else.

    Raises:
        KError: ESTALE, the mount or the file is gone.
        Block: the file system must wait.
    """
    if mp.kern_flag & MNTK.UNMOUNT or vfs.mounts.get(mp.index) is not mp:
        raise KError(ESTALE)
    vp = mp.ops.vfs_vget(mp, ino)
    vfs.vnodes.userexit()
    return vp
