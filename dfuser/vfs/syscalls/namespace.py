"""Names: create, tmpfile, mkdir, mknod, symlink, link, unlink, rmdir.

Each core prepares the name (`subr.prepare`), applies the rules that do not depend on the file
system, calls one VOP, and tells the host. The VOP leaves the entry in its new state.

Counterpart: kern_open with O_CREAT, kern_mkdir, kern_mknod, kern_symlink, kern_link, kern_unlink,
    kern_rmdir, can_hardlink (kern/vfs_syscalls.c).
Differs from DragonFly: unlink of a directory is EISDIR, which is what programs on the host expect
    (POSIX says EPERM); modes are final, the umask has been applied by the caller.
Token/lock order: none.
Invariants: when a core raises nothing has changed, except that `kern_create` may leave the file it
    made if opening it then fails, as open(2) does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfuser.libkern.errno import (
    EBUSY,
    EEXIST,
    EINVAL,
    EISDIR,
    EMLINK,
    ENOENT,
    ENOTDIR,
    EPERM,
    EROFS,
    EXDEV,
    KError,
)
from dfuser.libkern.fcntl import FWRITE, O_CREAT, O_DIRECTORY, O_EXCL, O_TRUNC, fflags
from dfuser.libkern.stat import ALLPERMS, VType, iftovt

from ..access import NLC, naccess
from ..mountflags import MNT
from ..namecache import NCF, NcHandle
from ..subr import directory, ncp_writechk, prepare, same_mount, told_entry, vnode_of
from ..vattr import Vattr
from ..vnode import V
from ..vop import PC_LINK_MAX
from .open import kern_open, vn_open

if TYPE_CHECKING:
    from dfuser.libkern.ucred import Ucred

    from ..file import File
    from ..vfs import Vfs
    from ..vnode import Vnode


def kern_create(
    vfs: Vfs,
    dnch: NcHandle,
    name: bytes,
    mode: int,
    flags: int,
    cred: Ucred,
    chk: bool = True,
) -> tuple[NcHandle, File]:
    """Create and open a regular file, or open what is there. Counterpart: open(2) with O_CREAT.

    Args:
        vfs: the VFS.
        dnch: the directory.
        name: the name.
        mode: permission bits of a new file; they do not bind this open.
        flags: O_*; O_CREAT is implied.
        cred: who creates; the owner of a new file.
        chk: check permissions.

    Returns:
        The place (borrowed) and the open file (the caller's).

    Raises:
        KError: EEXIST with O_EXCL, those of `subr.prepare` and of `kern_open`, or the file
            system's (ENOSPC ...).
        Block: the file system must wait.
    """
    dvp, ncp = prepare(vfs, dnch, name, NLC.CREATE, cred, chk)
    try:
        nch = NcHandle(ncp, dnch.mount)
        if ncp.vp is not None:
            if flags & O_EXCL:
                raise KError(EEXIST)
            return nch, kern_open(vfs, nch, flags & ~O_CREAT, cred, chk)
        if flags & O_DIRECTORY:
            raise KError(EINVAL)
        vp = dvp.ops.use.vop_ncreate(dvp, ncp, Vattr(VType.VREG, mode & ALLPERMS), cred)
        try:
            file = vn_open(vfs, nch, vp, fflags(flags & ~(O_CREAT | O_EXCL | O_TRUNC)), cred)
        finally:
            told_entry(vfs, dvp, name)
            vfs.vnodes.userexit(vp)
            vp.rele()
        return nch, file
    finally:
        vfs.cache.drop(ncp)


def kern_tmpfile(
    vfs: Vfs, dnch: NcHandle, mode: int, flags: int, cred: Ucred, chk: bool = True
) -> tuple[NcHandle, File]:
    """Create and open a regular file that has no name. Counterpart: O_TMPFILE of the host.

    Its place is an entry outside the tree (`NameCache.nch_of`), as that of a file whose last name
    was removed; it goes with the last reference. `kern_link` may give it its first name, unless it
    was made with O_EXCL; the open file's place stays the one outside the tree.

    Args:
        vfs: the VFS.
        dnch: a directory of the file system it shall be in; owner, mode and access control list
            are those of a file made there.
        mode: permission bits.
        flags: O_*; for writing.
        cred: who creates; the owner.
        chk: check permissions.

    Returns:
        The place (borrowed; the open file holds it) and the open file (the caller's).

    Raises:
        KError: EOPNOTSUPP, the file system cannot; EINVAL, not open for writing; ENOTDIR, ENOENT,
            EACCES, EPERM, EROFS, ENOSPC.
        Block: the file system must wait.
    """
    dvp = directory(vfs, dnch, cred)
    fmode = fflags(flags & ~(O_CREAT | O_EXCL | O_TRUNC | O_DIRECTORY))
    if not fmode & FWRITE:
        raise KError(EINVAL)
    if chk:
        naccess(vfs, dnch.ncp, dnch.mount, NLC.EXEC | NLC.WRITE, cred)
    ncp_writechk(dnch)
    if dvp.mount is not None and dvp.mount.flag & MNT.RDONLY:
        raise KError(EROFS)
    vp = dvp.ops.use.vop_ntmpfile(dvp, Vattr(VType.VREG, mode & ALLPERMS), cred)
    try:
        if not flags & O_EXCL:
            vp.flag |= V.LINKABLE
        nch = vfs.cache.nch_of(vp, dnch.mount)
        return nch, vn_open(vfs, nch, vp, fmode, cred)
    finally:
        vfs.vnodes.userexit(vp)
        vp.rele()


def _made(vfs: Vfs, dnch: NcHandle, dvp: Vnode, nch: NcHandle, vp: Vnode) -> NcHandle:
    """The end of every core that made something: tell, keep the limits, let the vnode be."""
    told_entry(vfs, dvp, nch.ncp.name)
    vfs.vnodes.userexit(vp)
    vp.rele()
    return nch


def kern_mkdir(
    vfs: Vfs, dnch: NcHandle, name: bytes, mode: int, cred: Ucred, chk: bool = True
) -> NcHandle:
    """Make a directory. Counterpart: kern_mkdir.

    Returns:
        Its place (borrowed).

    Raises:
        KError: EEXIST, EMLINK, ENOSPC, those of `subr.prepare`.
        Block: the file system must wait.
    """
    dvp, ncp = prepare(vfs, dnch, name, NLC.CREATE | NLC.EXCL, cred, chk)
    try:
        vap = Vattr(VType.VDIR, mode=mode & ALLPERMS)
        vp = dvp.ops.use.vop_nmkdir(dvp, ncp, vap, cred)
        return _made(vfs, dnch, dvp, NcHandle(ncp, dnch.mount), vp)
    finally:
        vfs.cache.drop(ncp)


def kern_mknod(
    vfs: Vfs,
    dnch: NcHandle,
    name: bytes,
    mode: int,
    rmajor: int,
    rminor: int,
    cred: Ucred,
    chk: bool = True,
) -> NcHandle:
    """Make a FIFO, a socket's name, a device or an empty regular file, by the type in ``mode``.

    Counterpart: kern_mknod, kern_mkfifo.

    Returns:
        Its place (borrowed).

    Raises:
        KError: EPERM, a device is for root only; EINVAL, not a type that can be made so; EEXIST,
            those of `subr.prepare`.
        Block: the file system must wait.
    """
    vtype = iftovt(mode)
    if vtype is VType.VNON and not mode & ~ALLPERMS:
        vtype = VType.VREG
    if vtype in (VType.VBLK, VType.VCHR):
        if chk and cred.uid != 0:
            raise KError(EPERM)
    elif vtype not in (VType.VFIFO, VType.VSOCK, VType.VREG):
        raise KError(EINVAL)
    dvp, ncp = prepare(vfs, dnch, name, NLC.CREATE | NLC.EXCL, cred, chk)
    try:
        vap = Vattr(vtype, mode=mode & ALLPERMS, rmajor=rmajor, rminor=rminor)
        ops = dvp.ops.use
        make = ops.vop_ncreate if vtype in (VType.VREG, VType.VSOCK) else ops.vop_nmknod
        vp = make(dvp, ncp, vap, cred)
        return _made(vfs, dnch, dvp, NcHandle(ncp, dnch.mount), vp)
    finally:
        vfs.cache.drop(ncp)


def kern_symlink(
    vfs: Vfs, dnch: NcHandle, name: bytes, target: bytes, cred: Ucred, chk: bool = True
) -> NcHandle:
    """Make a symbolic link. Counterpart: kern_symlink.

    Returns:
        Its place (borrowed).

    Raises:
        KError: ENOENT, an empty target; ENAMETOOLONG by the file system; those of `subr.prepare`.
        Block: the file system must wait.
    """
    if not target:
        raise KError(ENOENT)
    dvp, ncp = prepare(vfs, dnch, name, NLC.CREATE | NLC.EXCL, cred, chk)
    try:
        vap = Vattr(VType.VLNK, mode=0o777)
        vp = dvp.ops.use.vop_nsymlink(dvp, ncp, vap, target, cred)
        return _made(vfs, dnch, dvp, NcHandle(ncp, dnch.mount), vp)
    finally:
        vfs.cache.drop(ncp)


def kern_link(
    vfs: Vfs, nch: NcHandle, dnch: NcHandle, name: bytes, cred: Ucred, chk: bool = True
) -> NcHandle:
    """Give a file a further name, or the first to one of `kern_tmpfile`. Counterpart: kern_link.

    Args:
        vfs: the VFS.
        nch: the file.
        dnch: the directory of the new name.
        name: the new name.
        cred: who links.
        chk: check permissions.

    Returns:
        The new place (borrowed).

    Raises:
        KError: EPERM, a directory; EXDEV, another file system; EMLINK; EEXIST; ENOENT, the file has
            no name left; those of `subr.prepare`.
        Block: the file system must wait.
    """
    vp = vnode_of(vfs, nch, cred).ref()
    try:
        if vp.type is VType.VDIR:
            raise KError(EPERM)
        dvp, ncp = prepare(vfs, dnch, name, NLC.CREATE | NLC.EXCL, cred, chk)
        try:
            if nch.mount is not dnch.mount or not same_mount(vp.mount, dvp.mount):
                raise KError(EXDEV)
            _can_hardlink(vfs, nch, vp, cred, chk)
            dvp.ops.use.vop_nlink(dvp, ncp, vp, cred)
            told_entry(vfs, dvp, name, vp)
            return NcHandle(ncp, dnch.mount)
        finally:
            vfs.cache.drop(ncp)
    finally:
        vp.rele()


def _can_hardlink(vfs: Vfs, nch: NcHandle, vp: Vnode, cred: Ucred, chk: bool) -> None:
    """Whether this file may have one name more. Counterpart: can_hardlink."""
    va = vp.ops.use.vop_getattr(vp)
    if not va.nlink and not vp.flag & V.LINKABLE:
        raise KError(ENOENT)
    if va.nlink >= vp.ops.use.vop_pathconf(vp, PC_LINK_MAX):
        raise KError(EMLINK)
    if not chk:
        return
    par = nch.ncp.parent
    if par is not None and par.vp is not None:
        dflags = naccess(vfs, par, nch.mount, 0, cred, True)
        naccess(vfs, nch.ncp, nch.mount, NLC.HLINK | dflags, cred)
    if cred.uid == 0 or cred.uid == va.uid:
        return
    if vfs.hardlink_check_uid:
        raise KError(EPERM)
    if vfs.hardlink_check_gid and not (va.gid is not None and cred.groupmember(va.gid)):
        raise KError(EPERM)


def kern_unlink(vfs: Vfs, dnch: NcHandle, name: bytes, cred: Ucred, chk: bool = True) -> None:
    """Remove a name of something that is not a directory. Counterpart: kern_unlink.

    Raises:
        KError: EISDIR, a directory; EBUSY, a mount point; those of `subr.prepare`.
        Block: the file system must wait.
    """
    dvp, ncp = prepare(vfs, dnch, name, NLC.DELETE, cred, chk)
    try:
        vp = ncp.vp
        if vp is None:
            raise KError(ENOENT)
        if ncp.flags & NCF.ISMOUNTPT:
            raise KError(EBUSY)
        if vp.type is VType.VDIR:
            raise KError(EISDIR)
        vp.ref()
        try:
            dvp.ops.use.vop_nremove(dvp, ncp, cred)
            told_entry(vfs, dvp, name, vp, removed=True)
        finally:
            vp.rele()
    finally:
        vfs.cache.drop(ncp)


def kern_rmdir(vfs: Vfs, dnch: NcHandle, name: bytes, cred: Ucred, chk: bool = True) -> None:
    """Remove an empty directory. Counterpart: kern_rmdir.

    Raises:
        KError: ENOTDIR; ENOTEMPTY; EBUSY, a mount point; those of `subr.prepare`.
        Block: the file system must wait.
    """
    dvp, ncp = prepare(vfs, dnch, name, NLC.DELETE, cred, chk)
    try:
        vp = ncp.vp
        if vp is None:
            raise KError(ENOENT)
        if vp.type is not VType.VDIR:
            raise KError(ENOTDIR)
        if ncp.flags & NCF.ISMOUNTPT:
            raise KError(EBUSY)
        vp.ref()
        try:
            dvp.ops.use.vop_nrmdir(dvp, ncp, cred)
            told_entry(vfs, dvp, name, vp, removed=True)
        finally:
            vp.rele()
    finally:
        vfs.cache.drop(ncp)
