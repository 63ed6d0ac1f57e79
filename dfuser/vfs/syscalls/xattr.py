"""Extended attributes: get, set, remove, list.

An attribute belongs to a name space (EXTATTR_NAMESPACE_USER or SYSTEM, `vop`). User attributes are
guarded by the file's permissions and exist on regular files and directories; in a sticky directory
only its owner sets them. System attributes are for the super-user and the kernel; access control
lists, which are kept there, are also for the file's owner. Reading them is free.

Counterpart: sys_extattr_* (kern/vfs_syscalls.c).
Differs from DragonFly: listing exists; EXTATTR_CREATE and EXTATTR_REPLACE exist.
Token/lock order: none.
Invariants: none of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfuser.libkern.acl import XATTR_ACCESS, XATTR_DEFAULT
from dfuser.libkern.errno import EINVAL, ENAMETOOLONG, EPERM, KError
from dfuser.libkern.param import NAME_MAX
from dfuser.libkern.stat import APPEND, IMMUTABLE, S_ISVTX, VREAD, VWRITE, VType

from ..access import vaccess
from ..subr import ncp_writechk, vnode_of
from ..vop import EXTATTR_NAMESPACE_SYSTEM, EXTATTR_NAMESPACE_USER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dfuser.libkern.ucred import Ucred

    from ..namecache import NcHandle
    from ..vfs import Vfs
    from ..vnode import Vnode
    from ..vop import Buffer

_ACLS: Final = (XATTR_ACCESS, XATTR_DEFAULT)
_SPACES: Final = (EXTATTR_NAMESPACE_USER, EXTATTR_NAMESPACE_SYSTEM)


def _check(vp: Vnode, namespace: int, name: bytes, mode: int, cred: Ucred, chk: bool) -> None:
    """Whether an attribute may be used with ``mode`` (VREAD or VWRITE)."""
    if namespace not in _SPACES:
        raise KError(EINVAL)
    if mode & VWRITE:
        va = vp.ops.use.vop_getattr(vp)
        if (va.flags or 0) & (IMMUTABLE | APPEND):
            raise KError(EPERM)
    if not chk:
        return
    if namespace == EXTATTR_NAMESPACE_SYSTEM:
        if mode & VWRITE and cred.uid != 0:
            owner = vp.ops.use.vop_getattr(vp).uid
            if name not in _ACLS or cred.uid != owner:
                raise KError(EPERM)
        return
    if vp.type not in (VType.VREG, VType.VDIR):
        raise KError(EPERM)
    va = vp.ops.use.vop_getattr(vp)
    sticky = vp.type is VType.VDIR and (va.mode or 0) & S_ISVTX
    if mode & VWRITE and sticky and cred.uid not in (0, va.uid):
        raise KError(EPERM)
    vaccess(vp, va, mode, cred)


def _check_name(name: bytes) -> None:
    """An attribute's name has 1 to 255 bytes."""
    if not name:
        raise KError(EINVAL)
    if len(name) > NAME_MAX:
        raise KError(ENAMETOOLONG)


def kern_getxattr(
    vfs: Vfs, nch: NcHandle, namespace: int, name: bytes, cred: Ucred, chk: bool = True
) -> bytes:
    """The value of an attribute.

    Raises:
        KError: ENOATTR, EACCES, EPERM, EINVAL, EOPNOTSUPP (the file system has none).
        Block: the file system must wait.
    """
    vp = vnode_of(vfs, nch, cred)
    _check_name(name)
    _check(vp, namespace, name, VREAD, cred, chk)
    return vp.ops.use.vop_getextattr(vp, namespace, name, cred)


def kern_setxattr(
    vfs: Vfs,
    nch: NcHandle,
    namespace: int,
    name: bytes,
    value: Buffer,
    flags: int,
    cred: Ucred,
    chk: bool = True,
) -> None:
    """Set an attribute; with EXTATTR_CREATE it must be new, with EXTATTR_REPLACE exist.

    Raises:
        KError: EEXIST, ENOATTR, EACCES, EPERM, EROFS, EINVAL, ENOSPC, EOPNOTSUPP.
        Block: the file system must wait.
    """
    vp = vnode_of(vfs, nch, cred)
    _check_name(name)
    ncp_writechk(nch)
    _check(vp, namespace, name, VWRITE, cred, chk)
    vp.ops.use.vop_setextattr(vp, namespace, name, bytes(value), flags, cred)
    if vfs.hostcache is not None:
        vfs.hostcache.xattr_changed(vp)


def kern_removexattr(
    vfs: Vfs, nch: NcHandle, namespace: int, name: bytes, cred: Ucred, chk: bool = True
) -> None:
    """Remove an attribute.

    Raises:
        KError: ENOATTR, EACCES, EPERM, EROFS, EINVAL.
        Block: the file system must wait.
    """
    vp = vnode_of(vfs, nch, cred)
    _check_name(name)
    ncp_writechk(nch)
    _check(vp, namespace, name, VWRITE, cred, chk)
    vp.ops.use.vop_rmextattr(vp, namespace, name, cred)
    if vfs.hostcache is not None:
        vfs.hostcache.xattr_changed(vp)


def kern_listxattr(
    vfs: Vfs, nch: NcHandle, namespace: int, cred: Ucred, chk: bool = True
) -> Sequence[bytes]:
    """The names of the attributes in a name space.

    Raises:
        KError: EACCES, EINVAL, EOPNOTSUPP.
        Block: the file system must wait.
    """
    if namespace not in _SPACES:
        raise KError(EINVAL)
    vp = vnode_of(vfs, nch, cred)
    return vp.ops.use.vop_listextattr(vp, namespace, cred)
