"""Replies: what goes back to the device, made with one struct call where it is hot.

Most functions answer bytes, to be written with one ``write``. Those that carry file data answer a
small tuple of buffers for ``writev``, so that the data goes from page memory into the kernel
without having been copied here.

The kernel takes a reply only if its length is exactly what the operation's structure says, or, for
data, no more than was asked for; else the write fails with EINVAL and the request stays open. An
error reply has no body. FORGET, BATCH_FORGET and NOTIFY_REPLY have no reply at all; a reply to
DESTROY is not waited for; INTERRUPT is answered only with EAGAIN, to have it sent again, or with
ENOSYS, to have no more of them.

All error numbers here are Linux's (``libkern.linux_errno`` has the table).

Counterpart: fuse_dev_do_write and fuse_copy_out_args (fs/fuse/dev.c of Linux); libfuse's
fuse_reply_* functions.
Invariants: the length in the head is the length of what follows; `unique` is the request's.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final

from .attr import ATTR_OUT_SIZE, ENTRY_SIZE
from .const import ERRNO_LIMIT, FUSE_IOCTL_MAX_IOV, FUSE_IOCTL_RETRY, OUT_HEADER_SIZE
from .layout import Data, WireError, total
from .outputs import IOCTL_IOVEC, LK_OUT, STATFS_OUT, LkOut, StatfsOut

_HEAD: Final = OUT_HEADER_SIZE
_ENTRY_REPLY: Final = _HEAD + ENTRY_SIZE
_ATTR_REPLY: Final = _HEAD + ATTR_OUT_SIZE
_CREATE_REPLY: Final = _ENTRY_REPLY + 16

_header: Final = Struct("=IiQ").pack
_one: Final = Struct("=IiQQ").pack
_small: Final = Struct("=IiQI4x").pack
_open: Final = Struct("=IiQQIi").pack
_open_out: Final = Struct("=QIi").pack
_ioctl: Final = Struct("=IiQiIII").pack
_statfs: Final = Struct("=IiQ" + STATFS_OUT.struct.format[1:]).pack
_lk: Final = Struct("=IiQ" + LK_OUT.struct.format[1:]).pack


def emit_ok(unique: int) -> bytes:
    """Success that says nothing more."""
    return _header(_HEAD, 0, unique)


def emit_error(unique: int, errno: int) -> bytes:
    """Failure with a Linux error number.

    Raises:
        WireError: the number is none that the kernel takes (1 to 511).
    """
    if not 0 < errno < ERRNO_LIMIT:
        raise WireError(f"{errno} is no error number")
    return _header(_HEAD, -errno, unique)


def emit_entry(unique: int, packed: bytes) -> bytes:
    """A name's answer (LOOKUP, MKNOD, MKDIR, SYMLINK, LINK): what `attr.pack_entry` made.

    Counts one lookup of the file, unless its nodeid is 0 ("no such name").
    """
    return _header(_ENTRY_REPLY, 0, unique) + packed


def emit_attr(unique: int, packed: bytes) -> bytes:
    """Attributes (GETATTR, SETATTR) out of a packed entry."""
    return _header(_ATTR_REPLY, 0, unique) + packed[24:]


def emit_open(unique: int, fh: int, open_flags: int, backing_id: int = 0) -> bytes:
    """An open file or directory, with FOPEN_ flags."""
    return _open(32, 0, unique, fh, open_flags, backing_id)


def emit_create(unique: int, packed: bytes, fh: int, open_flags: int, backing_id: int = 0) -> bytes:
    """A file that was made and opened (CREATE, TMPFILE); counts one lookup."""
    return _header(_CREATE_REPLY, 0, unique) + packed + _open_out(fh, open_flags, backing_id)


def emit_data(unique: int, data: Data) -> tuple[bytes, Data]:
    """Data that stays where it is (READ, READDIR, READDIRPLUS, READLINK, xattrs), for writev."""
    return _header(_HEAD + len(data), 0, unique), data


def emit_buffers(unique: int, buffers: Sequence[Data]) -> list[Data]:
    """Data in several places, for writev: as many as IOV_MAX less one (1023 on Linux)."""
    return [_header(_HEAD + total(buffers), 0, unique), *buffers]


def emit_bytes(unique: int, data: bytes) -> bytes:
    """Little data (READLINK, GETXATTR, LISTXATTR, a short listing) in one piece, for write."""
    return _header(_HEAD + len(data), 0, unique) + data


def emit_write(unique: int, size: int) -> bytes:
    """How many bytes were taken (WRITE, COPY_FILE_RANGE)."""
    return _small(24, 0, unique, size)


def emit_xattr_size(unique: int, size: int) -> bytes:
    """How long the value or the list is (GETXATTR and LISTXATTR that asked with size 0)."""
    return _small(24, 0, unique, size)


def emit_poll(unique: int, revents: int) -> bytes:
    """Which events are there (POLL), as Linux's POLL bits."""
    return _small(24, 0, unique, revents)


def emit_lseek(unique: int, offset: int) -> bytes:
    """Where the data or the hole is (LSEEK)."""
    return _one(24, 0, unique, offset)


def emit_bmap(unique: int, block: int) -> bytes:
    """Which block it is (BMAP)."""
    return _one(24, 0, unique, block)


def emit_copy_file_range_64(unique: int, copied: int) -> bytes:
    """How many bytes were copied (COPY_FILE_RANGE_64); the older opcode takes `emit_write`."""
    return _one(24, 0, unique, copied)


def emit_statfs(unique: int, figures: StatfsOut) -> bytes:
    """The figures of the file system (STATFS)."""
    return _statfs(_HEAD + STATFS_OUT.size, 0, unique, *figures)


def emit_lk(unique: int, lock: LkOut) -> bytes:
    """The lock that is in the way, or one of type F_UNLCK (GETLK)."""
    return _lk(_HEAD + LK_OUT.size, 0, unique, *lock)


def emit_statx(unique: int, packed: bytes) -> bytes:
    """Attributes with birth time (STATX): what `attr.pack_statx` made."""
    return _header(_HEAD + len(packed), 0, unique) + packed


def emit_ioctl(unique: int, result: int, data: bytes = b"") -> bytes:
    """The result of an ioctl and what it passes out: no more than the request's `out_size`.

    `result` is what ioctl(2) returns; a failure is better told with `emit_error`.
    """
    return _ioctl(_HEAD + 16 + len(data), 0, unique, result, 0, 0, 0) + data


def emit_ioctl_retry(
    unique: int, wanted: Sequence[tuple[int, int]], filled: Sequence[tuple[int, int]]
) -> bytes:
    """Ask for an ioctl again, with the caller's memory that it reads and that it fills.

    The kernel allows it for unrestricted ioctls only (FUSE_IOCTL_UNRESTRICTED in the request, which
    character devices in user space set and file systems do not); else its program gets EIO.

    Args:
        unique: the request's.
        wanted: address and length of each piece the ioctl reads.
        filled: address and length of each piece it writes.

    Raises:
        WireError: more pieces than the kernel takes.
    """
    if len(wanted) + len(filled) > FUSE_IOCTL_MAX_IOV:
        raise WireError(f"{len(wanted) + len(filled)} pieces of memory for one ioctl")
    iovecs = b"".join(IOCTL_IOVEC.pack(*piece) for piece in (*wanted, *filled))
    size = _HEAD + 16 + len(iovecs)
    return _ioctl(size, 0, unique, 0, FUSE_IOCTL_RETRY, len(wanted), len(filled)) + iovecs
