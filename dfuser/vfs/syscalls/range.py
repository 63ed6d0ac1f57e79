"""Ranges of open files: seek, data and holes, fallocate, copy_file_range.

`kern_lseek` answers without moving anything, for callers whose offset is kept elsewhere (the host
keeps that of its processes); `kern_seek` is the same and moves the file's own.

A copy goes through the file system of the target where it can (`vop_copyrange`) and is done here by
reading and writing where it cannot: between different file systems, which is no error (the host's
EXDEV), and from files that are made when they are read. One call copies at most `COPY_MAX` bytes,
so that a request is bounded; the callers of copy_file_range(2) go on from a short count.

Counterpart: sys_lseek, vn_seek (kern/vfs_syscalls.c, kern/vfs_vnops.c). DragonFly has neither
    fallocate nor copy_file_range; the host's rules hold for them.
Differs from DragonFly: SEEK_DATA and SEEK_HOLE.
Token/lock order: none.
Invariants: when a core raises nothing has changed; a copy that was interrupted says how much was
    done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfuser.libkern.errno import (
    EBADF,
    EFBIG,
    EINVAL,
    EISDIR,
    ENODEV,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    ESPIPE,
    KError,
)
from dfuser.libkern.fcntl import (
    FREAD,
    FWRITE,
    O_APPEND,
    O_NOATIME,
    SEEK_CUR,
    SEEK_DATA,
    SEEK_END,
    SEEK_HOLE,
    SEEK_SET,
)
from dfuser.libkern.stat import APPEND, IMMUTABLE, VType
from dfuser.lwkt.block import Block

from ..subr import ncp_writechk, vn_writechk
from ..vattr import IO
from ..vop import FALLOC_KEEP_SIZE

if TYPE_CHECKING:
    from ..file import File
    from ..vnode import Vnode

_SEEKABLE: Final = (VType.VREG, VType.VDIR, VType.VBLK, VType.VCHR)
#: Largest file offset, as off_t has it.
OFF_MAX: Final = (1 << 63) - 1
#: Most bytes one `kern_copy_file_range` copies.
COPY_MAX: Final = 16 << 20
#: Bytes of one read and write where the file system cannot copy.
COPY_PIECE: Final = 128 << 10


def _alive(file: File) -> Vnode:
    """The vnode of an open file that its file system still stands behind.

    Raises:
        KError: EBADF, the file is closed, or was taken away by a forced unmount.
    """
    vp = file.vp
    if file.refs <= 0 or vp.type is VType.VBAD:
        raise KError(EBADF)
    return vp


def kern_lseek(file: File, offset: int, whence: int) -> int:
    """Where lseek(2) would go; the file's own offset stays.

    SEEK_DATA and SEEK_HOLE ask the file system; the end of a file counts as a hole.

    Raises:
        KError: EBADF; ESPIPE, cannot seek; EINVAL, a bad whence or a result that is negative or too
            large; ENXIO, no data (or hole) there.
        Block: the file system must wait.
    """
    vp = _alive(file)
    if vp.type not in _SEEKABLE:
        raise KError(ESPIPE)
    if whence == SEEK_SET:
        new = offset
    elif whence == SEEK_CUR:
        new = file.offset + offset
    elif whence == SEEK_END:
        new = (vp.ops.use.vop_getattr(vp).size or 0) + offset
    elif whence in (SEEK_DATA, SEEK_HOLE):
        if offset < 0 and vp.type is VType.VREG:
            raise KError(ENXIO)
        new = vp.ops.use.vop_seek(vp, offset, whence == SEEK_HOLE)
    else:
        raise KError(EINVAL)
    if not 0 <= new <= OFF_MAX:
        raise KError(EINVAL)
    return new


def kern_seek(file: File, offset: int, whence: int) -> int:
    """lseek(2): set and return the file's offset. See `kern_lseek`."""
    file.offset = new = kern_lseek(file, offset, whence)
    return new


def kern_fallocate(file: File, mode: int, offset: int, length: int) -> None:
    """Reserve, punch or zero a range; ``mode`` as the host's fallocate(2).

    Raises:
        KError: EBADF, not open for writing; EINVAL, a bad range; EISDIR, ESPIPE, ENODEV for what is
            no regular file; EROFS, ETXTBSY; EPERM, an immutable file, or punching or zeroing an
            append-only one; or the file system's (EOPNOTSUPP, ENOSPC, EFBIG ...).
        Block: the file system must wait.
    """
    vp = _alive(file)
    file.want(FWRITE)
    if offset < 0 or length <= 0:
        raise KError(EINVAL)
    if vp.type is not VType.VREG:
        kinds = {VType.VDIR: EISDIR, VType.VFIFO: ESPIPE}
        raise KError(kinds.get(vp.type, ENODEV))
    ncp_writechk(file.nch)
    vn_writechk(vp)
    fixed = IMMUTABLE | APPEND if mode & ~FALLOC_KEEP_SIZE else IMMUTABLE
    if (vp.ops.use.vop_getattr(vp).flags or 0) & fixed:
        raise KError(EPERM)
    vp.ops.use.vop_allocate(vp, offset, length, mode, file.cred)
    if file.vfs.hostcache is not None:
        file.vfs.hostcache.data_changed(vp)


def kern_copy_file_range(
    src: File, off_in: int, dst: File, off_out: int, length: int, flags: int = 0
) -> int:
    """Copy bytes from one open file to another (or within one), holes as holes where possible.

    Args:
        src: a regular file open for reading.
        off_in: first byte there.
        dst: a regular file open for writing, not for appending.
        off_out: where the first byte goes.
        length: bytes; at most `COPY_MAX` are copied by one call.
        flags: 0.

    Returns:
        Bytes copied; 0 at the end of the source; fewer than asked for at the end of the source, at
        the largest offset, at `COPY_MAX`, and at an error after something was copied.

    Raises:
        KError: EINVAL (flags, negative numbers, overlapping ranges of one file, not regular),
            EISDIR, EBADF (modes), EPERM (immutable, append-only), ETXTBSY, EROFS, EFBIG, or the
            file systems'.
        Block: a file system must wait; nothing has been copied.
    """
    fvp, tvp = _alive(src), _alive(dst)
    if flags or off_in < 0 or off_out < 0 or length < 0:
        raise KError(EINVAL)
    _copy_check(src, dst)
    size = fvp.ops.use.vop_getattr(fvp).size or 0
    if off_out >= OFF_MAX:
        raise KError(EFBIG)
    length = max(0, min(length, size - off_in, OFF_MAX - off_out, COPY_MAX))
    if not length:
        return 0
    if fvp is tvp and off_in < off_out + length and off_out < off_in + length:
        raise KError(EINVAL)
    try:
        done = tvp.ops.use.vop_copyrange(fvp, off_in, tvp, off_out, length, dst.cred)
    except KError as error:
        if error.errno != EOPNOTSUPP:
            raise
        done = _copy_by_hand(src, off_in, dst, off_out, length)
    if done and dst.vfs.hostcache is not None:
        dst.vfs.hostcache.data_changed(tvp)
        dst.vfs.hostcache.attr_changed(fvp)
    return done


def _copy_check(src: File, dst: File) -> None:
    """What may not be copied at all; the order is the host's."""
    fvp, tvp = src.vp, dst.vp
    if VType.VDIR in (fvp.type, tvp.type):
        raise KError(EISDIR)
    if fvp.type is not VType.VREG or tvp.type is not VType.VREG:
        raise KError(EINVAL)
    src.want(FREAD)
    dst.want(FWRITE)
    if dst.flags & O_APPEND:
        raise KError(EBADF)
    ncp_writechk(dst.nch)
    vn_writechk(tvp)
    if (tvp.ops.use.vop_getattr(tvp).flags or 0) & (IMMUTABLE | APPEND):
        raise KError(EPERM)


def _copy_by_hand(src: File, off_in: int, dst: File, off_out: int, length: int) -> int:
    """Copy by reading and writing in pieces; after the first an error or a wait ends it short."""
    fvp, tvp = src.vp, dst.vp
    ioflag = IO.NOATIME if src.flags & O_NOATIME else 0
    done = 0
    while done < length:
        take = min(COPY_PIECE, length - done)
        try:
            data = fvp.ops.use.vop_read(fvp, off_in + done, take, ioflag, src.cred, src.fdata)
            if not len(data):
                break
            count = tvp.ops.use.vop_write(tvp, off_out + done, data, 0, dst.cred, dst.fdata)
        except (KError, Block):
            if not done:
                raise
            break
        done += count
        if count < len(data):
            break
    return done
