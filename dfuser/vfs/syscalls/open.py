"""Open files: open, close, read, write, readdir, fsync.

`vn_open` counts: ``opencount`` of the vnode for every open, ``writecount`` for those that write.
Running programs (V.TEXT) and open writers exclude each other with ETXTBSY.

Counterpart: kern_open (kern/vfs_syscalls.c), vn_open, vn_close, vn_read, vn_write, vn_writechk
    (kern/vfs_vnops.c).
Differs from DragonFly: offsets are explicit (None: the file's own); a read of a directory is
    EISDIR; opening a symbolic link is ELOOP, as O_NOFOLLOW is on the host (EMLINK in C).
Token/lock order: none.
Invariants: a `File` that was returned is closed exactly once, by its last `File.drop`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfuser.libkern.errno import (
    EBADF,
    EINVAL,
    EISDIR,
    ELOOP,
    ENOTDIR,
    ENXIO,
    EOPNOTSUPP,
    KError,
)
from dfuser.libkern.fcntl import (
    FREAD,
    FWRITE,
    O_APPEND,
    O_CREAT,
    O_DIRECTORY,
    O_EXCL,
    O_FSYNC,
    O_NOATIME,
    O_TRUNC,
    fflags,
)
from dfuser.libkern.stat import VType

from ..access import NLC, naccess
from ..file import File
from ..mountflags import MNT
from ..subr import ncp_writechk, vn_writechk, vnode_of
from ..vattr import IO, Vattr
from ..vop import MNT_WAIT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dfuser.libkern.ucred import Ucred
    from dfuser.vm.object import PageViews

    from ..namecache import NcHandle
    from ..vattr import Dirent
    from ..vfs import Vfs
    from ..vnode import Vnode
    from ..vop import Buffer

_DEVICES: Final = (VType.VCHR, VType.VBLK)


def kern_open(vfs: Vfs, nch: NcHandle, flags: int, cred: Ucred, chk: bool = True) -> File:
    """Open what is at a place. Links are not followed. Counterpart: open(2) without O_CREAT.

    Args:
        vfs: the VFS.
        nch: the place.
        flags: O_* (DragonFly's numbers, `fcntl.oflags_from_linux`).
        cred: who opens; kept for the operations through this open.
        chk: check permissions.

    Raises:
        KError: ENOENT, ELOOP (a symbolic link), EOPNOTSUPP (a socket), ENOTDIR, EISDIR, EACCES,
            EPERM, EROFS, ETXTBSY, ENXIO (a device on a nodev mount), or the file system's.
        Block: the file system must wait.
    """
    vp = vnode_of(vfs, nch, cred)
    fmode = fflags(flags)
    if chk:
        naccess(vfs, nch.ncp, nch.mount, _nlc_of(fmode), cred)
    if fmode & (FWRITE | O_TRUNC) and vp.type is VType.VREG:
        ncp_writechk(nch)
    return vn_open(vfs, nch, vp, fmode & ~(O_CREAT | O_EXCL), cred)


def _nlc_of(fmode: int) -> int:
    """What a path walk would have been told of this open."""
    return (
        NLC.OPEN
        | (NLC.READ if fmode & FREAD else 0)
        | (NLC.WRITE if fmode & (FWRITE | O_TRUNC) else 0)
        | (NLC.APPEND if fmode & O_APPEND else 0)
        | (NLC.TRUNCATE if fmode & O_TRUNC else 0)
    )


def vn_open(vfs: Vfs, nch: NcHandle, vp: Vnode, fmode: int, cred: Ucred) -> File:
    """Open a vnode whose permissions have been checked. Counterpart: vn_open.

    Args:
        vfs: the VFS.
        nch: where it was found; the file holds it.
        vp: the vnode; the file references it.
        fmode: FREAD, FWRITE and O_*.
        cred: who opens.

    Raises:
        KError: see `kern_open`.
        Block: the file system must wait.
    """
    _check_type(vp, nch, fmode)
    if fmode & (FWRITE | O_TRUNC) and vp.type not in _DEVICES and vp.type is not VType.VFIFO:
        vn_writechk(vp)
    file = File(vfs, nch, vp, fmode & ~O_TRUNC, cred)
    vp.ref()
    try:
        file.fdata = vp.ops.use.vop_open(vp, fmode, cred)
    except BaseException:
        file.refs = 0
        vp.rele()
        raise
    vfs.cache.hold(nch)
    vp.opencount += 1
    if fmode & FWRITE:
        vp.writecount += 1
    if fmode & O_TRUNC and vp.type is VType.VREG:
        try:
            vp.ops.use.vop_setattr(vp, Vattr(VType.VNON, size=0), vfs.fscred)
        except BaseException:
            file.drop()
            raise
        if vfs.hostcache is not None:
            vfs.hostcache.data_changed(vp)
    return file


def _check_type(vp: Vnode, nch: NcHandle, fmode: int) -> None:
    """What cannot be opened, or not so."""
    vtype = vp.type
    if vtype is VType.VREG:
        if fmode & O_DIRECTORY:
            raise KError(ENOTDIR)
    elif vtype is VType.VDIR:
        if fmode & (FWRITE | O_TRUNC):
            raise KError(EISDIR)
    elif vtype is VType.VLNK:
        raise KError(ELOOP)
    elif vtype is VType.VSOCK:
        raise KError(EOPNOTSUPP)
    else:
        if fmode & O_DIRECTORY:
            raise KError(ENOTDIR)
        below = vp.mount.flag if vp.mount is not None else 0
        if vtype in _DEVICES and (below | nch.mount.flag) & MNT.NODEV:
            raise KError(ENXIO)


def kern_close(file: File) -> None:
    """Give up an open file; the last reference closes it. Counterpart: closef.

    Raises:
        KError: what the file system says of the close; the file is closed nevertheless.
    """
    file.drop()


def kern_read(file: File, offset: int | None, size: int) -> Buffer:
    """Read up to ``size`` bytes at ``offset`` (None: at the file's own offset, which moves).

    Raises:
        KError: EBADF, not open for reading; EISDIR; EINVAL; or the file system's.
        Block: the file system must wait.
    """
    if not file.flags & FREAD or file.refs <= 0:
        raise KError(EBADF)
    vp = file.vp
    if vp.type is VType.VDIR:
        raise KError(EISDIR)
    ioflag = IO.NOATIME if file.flags & O_NOATIME else 0
    if offset is not None:
        return vp.ops.use.vop_read(vp, offset, size, ioflag, file.cred, file.fdata)
    data = vp.ops.use.vop_read(vp, file.offset, size, ioflag, file.cred, file.fdata)
    file.offset += len(data)
    return data


def kern_readviews(file: File, offset: int, size: int) -> PageViews | None:
    """Windows on the pages of a file that is in memory, instead of `kern_read`'s copy.

    Returns:
        The windows, which the caller releases before it does anything else; None when the file's
        bytes cannot be had so (not a regular file in memory, or not open for reading).
    """
    vp = file.vp
    mount, obj = vp.mount, vp.object
    if obj is None or mount is None or not mount.ops.at_hand or not file.flags & FREAD:
        return None
    if offset < 0 or file.refs <= 0:
        return None
    if not file.flags & O_NOATIME:
        vp.ops.use.vop_markatime(vp, file.cred)
    views: PageViews = obj.views(min(offset, obj.size), size)
    return views


def kern_write(file: File, offset: int | None, data: Buffer) -> int:
    """Write at ``offset`` (None: at the file's own, which moves); O_APPEND writes at the end.

    Returns:
        How many bytes were taken; fewer than given only if the file system ran out of room.

    Raises:
        KError: EBADF, not open for writing; EINVAL; or the file system's (ENOSPC, EFBIG ...).
        Block: the file system must wait.
    """
    if not file.flags & FWRITE or file.refs <= 0:
        raise KError(EBADF)
    vp = file.vp
    mount = vp.mount
    ioflag = 0
    if file.flags & O_APPEND:
        ioflag = IO.APPEND
    if file.flags & O_FSYNC or (mount is not None and mount.flag & MNT.SYNCHRONOUS):
        ioflag |= IO.SYNC
    at = file.offset if offset is None else offset
    if at < 0:
        raise KError(EINVAL)
    count = vp.ops.use.vop_write(vp, at, data, ioflag, file.cred, file.fdata)
    if offset is None:
        end = at + count
        if ioflag & IO.APPEND:
            end = vp.ops.use.vop_getattr(vp).size or 0
        file.offset = end
    host = file.vfs.hostcache
    if host is not None:
        host.data_changed(vp)
    return count


def kern_readdir(file: File, cookie: int, limit: int, plus: bool = False) -> Sequence[Dirent]:
    """Up to ``limit`` entries after ``cookie`` (0: from the start); empty at the end.

    Args:
        file: the open directory.
        cookie: from the last entry seen.
        limit: how many at most.
        plus: with attributes, where the file system has them at hand.

    Raises:
        KError: EBADF, not open for reading; ENOTDIR; or the file system's.
        Block: the file system must wait.
    """
    vp = file.want(FREAD)
    if vp.type is not VType.VDIR:
        raise KError(ENOTDIR)
    return vp.ops.use.vop_readdir(vp, cookie, limit, file.cred, plus)


def kern_fsync(file: File, datasync: bool = False) -> None:
    """Write everything of a file, and wait for it. Counterpart: sys_fsync.

    Args:
        file: an open file or directory.
        datasync: only what is needed to read the data back; file systems here write all.

    Raises:
        KError: the file system could not.
        Block: it must wait.
    """
    if file.refs <= 0:
        raise KError(EBADF)
    vp = file.vp
    if vp.mount is not None and vp.mount.flag & MNT.RDONLY:
        return
    vp.ops.use.vop_fsync(vp, MNT_WAIT, file.cred)
