"""Control of open files: ioctl and advisory locks.

An ioctl is carried, not understood: its number says how many bytes go which way (`ioccom`), the
file system or the device behind the file says what they mean. `vn_ioctl` takes DragonFly's numbers,
`kern_ioctl` those of the host's programs.

A lock has an *owner*: a process for record locks (F_POSIX), an open file for flock(2). The caller
brings the object that stands for it (`lockf.LockOwner`), because only he knows whose descriptors
these are.

Counterpart: vn_ioctl (kern/vfs_vnops.c), mapped_ioctl (kern/sys_generic.c), the lock half of
    kern_fcntl and sys_flock (kern/kern_descrip.c).
Differs from DragonFly: the answer is returned, not copied into the argument; FIOASYNC is not
    recorded (it does nothing for files there either).
Token/lock order: none.
Invariants: an answer is never longer than the caller has room for.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from dfuser.dev.ioccom import FIOASYNC, FIONREAD, IOC_IN, ioc_from_host
from dfuser.libkern.errno import EBADF, EINVAL, KError
from dfuser.libkern.fcntl import (
    F_GETLK,
    F_POSIX,
    F_RDLCK,
    F_SETLK,
    F_UNLCK,
    F_WRLCK,
    FREAD,
    FWRITE,
    SEEK_CUR,
    SEEK_SET,
)
from dfuser.libkern.stat import VType

from ..lockf import OFF_MAX, Flock, LockOwner
from ..subr import ncp_writechk

if TYPE_CHECKING:
    from ..file import File
    from ..vop import Buffer

_FILES: Final = (VType.VREG, VType.VDIR)
_INT_MAX: Final = (1 << 31) - 1


def kern_ioctl(file: File, command: int, data: Buffer, out_size: int) -> bytes:
    """ioctl(2) with a number of the host.

    Args:
        file: an open file or directory.
        command: as a Linux program spells it.
        data: the bytes the caller gave, as many as the number says (4 or 8 where Linux says long
            and means int).
        out_size: bytes of the answer that the caller has room for.

    Returns:
        The answer, cut to ``out_size``.

    Raises:
        KError: EBADF; ENOTTY, nobody knows the number; EROFS; or those of file system and device.
        Block: the device must wait.
    """
    return vn_ioctl(file, ioc_from_host(command), data, out_size)


def vn_ioctl(file: File, command: int, data: Buffer, out_size: int) -> bytes:
    """ioctl(2) with a number in our spelling. See `kern_ioctl`. Counterpart: vn_ioctl."""
    vp = file.vp
    if file.refs <= 0 or out_size < 0:
        raise KError(EBADF if file.refs <= 0 else EINVAL)
    plain = vp.type in _FILES
    if plain and command == FIONREAD:
        left = (vp.ops.use.vop_getattr(vp).size or 0) - file.offset
        return struct.pack("=i", max(-_INT_MAX, min(left, _INT_MAX)))[:out_size]
    if plain and command == FIOASYNC:
        return b""
    changes = plain and command & IOC_IN
    if changes:
        ncp_writechk(file.nch)
    answer = vp.ops.use.vop_ioctl(vp, command, data, file.flags, file.cred, file.fdata)
    if changes and file.vfs.hostcache is not None:
        file.vfs.hostcache.attr_changed(vp)
    return answer[:out_size]


def kern_advlock(file: File, owner: LockOwner, op: int, fl: Flock, flags: int) -> Flock | None:
    """Take, release or ask about an advisory lock.

    Args:
        file: an open file.
        owner: whose lock it is (see `lockf`).
        op: F_SETLK, F_GETLK, or F_UNLCK, which releases the range whatever ``fl.type`` says.
        fl: type and range; with SEEK_CUR relative to the file's offset.
        flags: F_POSIX for a record lock; F_WAIT to wait for it.

    Returns:
        For F_GETLK the lock in the way, or one of type F_UNLCK; else None.

    Raises:
        KError: EBADF, not open, or not for reading (read lock) or writing (write lock, F_POSIX);
            EINVAL, also for a range that overflows; EAGAIN; EDEADLK; ENOLCK.
        Block: another owner's lock is in the way, and F_WAIT.
    """
    vp = file.vp
    if file.refs <= 0:
        raise KError(EBADF)
    if fl.type not in (F_RDLCK, F_WRLCK, F_UNLCK) or op not in (F_SETLK, F_GETLK, F_UNLCK):
        raise KError(EINVAL)
    if op == F_GETLK and fl.type == F_UNLCK:
        raise KError(EINVAL)
    if op == F_SETLK and flags & F_POSIX:
        needs = {F_RDLCK: FREAD, F_WRLCK: FWRITE, F_UNLCK: 0}[fl.type]
        if file.flags & needs != needs:
            raise KError(EBADF)
    kind = F_UNLCK if op == F_UNLCK else fl.type
    start, whence = fl.start, fl.whence
    if whence == SEEK_CUR:
        start, whence = start + file.offset, SEEK_SET
        if start > OFF_MAX:
            raise KError(EINVAL)
    want = Flock(kind, start, fl.len, whence, fl.pid)
    answer: Flock | None = vp.ops.use.vop_advlock(vp, owner, op, want, flags)
    return answer
