"""All operations of the protocol in one table, with what dfuser answers.

`OPERATIONS` has a row an opcode; docs/fuse-protocol.md shows the same rows, and a test compares.
`refuse` is the part of the policy that needs no file system: the Linux error number with which an
operation is answered whatever it says. Mind what ENOSYS means to the kernel: for most operations it
is remembered, and the operation is never sent again on this connection. That is what a refusal
wants, and nothing else may use it.

An opcode that is not in the table is refused with ENOSYS too.

Counterpart: enum fuse_opcode (linux/fuse.h); the table fuse_ll_ops of libfuse.
Invariants: every `const.Opcode` has exactly one row; `reply` is the empty string for what must not
be answered.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, NamedTuple

from .const import Opcode

#: Linux's number for "this operation does not exist".
ENOSYS: Final = 38


class Operation(NamedTuple):
    """One operation.

    Attributes:
        opcode: its number and name.
        since: the minor version of the protocol that brought it.
        request: what the request carries behind its head.
        reply: what a reply carries behind its head; the empty string if there must be none.
        answer: what dfuser does with it.
        refuse: the error it is always answered with, or 0.
    """

    opcode: Opcode
    since: int
    request: str
    reply: str
    answer: str
    refuse: int = 0


OPERATIONS: Final = (
    Operation(Opcode.LOOKUP, 1, "name", "fuse_entry_out", "the name, or that there is none"),
    Operation(Opcode.FORGET, 1, "fuse_forget_in", "", "counts lookups down"),
    Operation(Opcode.GETATTR, 1, "fuse_getattr_in", "fuse_attr_out", "attributes"),
    Operation(Opcode.SETATTR, 1, "fuse_setattr_in", "fuse_attr_out", "changes, then attributes"),
    Operation(Opcode.READLINK, 1, "nothing", "data", "what the link says"),
    Operation(Opcode.SYMLINK, 1, "name, target", "fuse_entry_out", "makes a link"),
    Operation(Opcode.MKNOD, 1, "fuse_mknod_in, name", "fuse_entry_out", "makes a file"),
    Operation(Opcode.MKDIR, 1, "fuse_mkdir_in, name", "fuse_entry_out", "makes a directory"),
    Operation(Opcode.UNLINK, 1, "name", "nothing", "removes a name"),
    Operation(Opcode.RMDIR, 1, "name", "nothing", "removes a directory"),
    Operation(Opcode.RENAME, 1, "fuse_rename_in, name, newname", "nothing", "renames"),
    Operation(Opcode.LINK, 1, "fuse_link_in, name", "fuse_entry_out", "makes another name"),
    Operation(
        Opcode.OPEN, 1, "fuse_open_in", "fuse_open_out",
        "opens; ENOSYS on a connection without opens",
    ),
    Operation(Opcode.READ, 1, "fuse_read_in", "data", "data straight from page memory"),
    Operation(Opcode.WRITE, 1, "fuse_write_in, data", "fuse_write_out", "writes"),
    Operation(Opcode.STATFS, 1, "nothing", "fuse_statfs_out", "figures of the mount"),
    Operation(Opcode.RELEASE, 1, "fuse_release_in", "nothing", "last close of an open file"),
    Operation(Opcode.FSYNC, 1, "fuse_fsync_in", "nothing", "writes back; never refused"),
    Operation(
        Opcode.SETXATTR, 1, "fuse_setxattr_in, name, value", "nothing", "sets an attribute"
    ),
    Operation(
        Opcode.GETXATTR, 1, "fuse_getxattr_in, name", "fuse_getxattr_out or data",
        "its size, or its value",
    ),
    Operation(
        Opcode.LISTXATTR, 1, "fuse_getxattr_in", "fuse_getxattr_out or data",
        "the size of the list, or the list",
    ),
    Operation(Opcode.REMOVEXATTR, 1, "name", "nothing", "removes an attribute"),
    Operation(Opcode.FLUSH, 1, "fuse_flush_in", "nothing", "one close: releases record locks"),
    Operation(Opcode.INIT, 1, "fuse_init_in", "fuse_init_out", "negotiates, see below"),
    Operation(
        Opcode.OPENDIR, 1, "fuse_open_in", "fuse_open_out",
        "opens; ENOSYS on a connection without opens",
    ),
    Operation(Opcode.READDIR, 1, "fuse_read_in", "fuse_dirent ...", "a listing"),
    Operation(Opcode.RELEASEDIR, 1, "fuse_release_in", "nothing", "last close of a directory"),
    Operation(Opcode.FSYNCDIR, 2, "fuse_fsync_in", "nothing", "writes back; of the root: all"),
    Operation(Opcode.GETLK, 7, "fuse_lk_in", "fuse_lk_out", "the lock in the way"),
    Operation(Opcode.SETLK, 7, "fuse_lk_in", "nothing", "locks, or EAGAIN"),
    Operation(Opcode.SETLKW, 7, "fuse_lk_in", "nothing", "locks, waiting if it must"),
    Operation(
        Opcode.ACCESS, 3, "fuse_access_in", "nothing",
        "not sent under default_permissions; checks otherwise",
    ),
    Operation(
        Opcode.CREATE, 3, "fuse_create_in, name", "fuse_entry_out, fuse_open_out",
        "makes a file and opens it",
    ),
    Operation(
        Opcode.INTERRUPT, 7, "fuse_interrupt_in", "nothing",
        "ends the wait of a request; one that is not known was answered just now",
    ),
    Operation(
        Opcode.BMAP, 8, "fuse_bmap_in", "fuse_bmap_out", "only for block devices", ENOSYS
    ),
    Operation(Opcode.DESTROY, 8, "nothing", "nothing", "the connection ends"),
    Operation(
        Opcode.IOCTL, 11, "fuse_ioctl_in, data", "fuse_ioctl_out, data",
        "DragonFly's and Linux's sized ioctls; ENOTTY for others",
    ),
    Operation(Opcode.POLL, 11, "fuse_poll_in", "fuse_poll_out", "events, and a wake-up later"),
    Operation(
        Opcode.NOTIFY_REPLY, 15, "fuse_notify_retrieve_in, data", "",
        "takes what RETRIEVE asked for",
    ),
    Operation(
        Opcode.BATCH_FORGET, 16, "fuse_batch_forget_in, fuse_forget_one ...", "",
        "counts lookups down, all in one pass",
    ),
    Operation(
        Opcode.FALLOCATE, 19, "fuse_fallocate_in", "nothing",
        "reserves, punches holes, zeroes ranges",
    ),
    Operation(
        Opcode.READDIRPLUS, 21, "fuse_read_in", "fuse_direntplus ...",
        "a listing with attributes; counts lookups",
    ),
    Operation(
        Opcode.RENAME2, 23, "fuse_rename2_in, name, newname", "nothing",
        "renames; NOREPLACE and EXCHANGE; EINVAL for WHITEOUT",
    ),
    Operation(Opcode.LSEEK, 24, "fuse_lseek_in", "fuse_lseek_out", "SEEK_DATA and SEEK_HOLE"),
    Operation(
        Opcode.COPY_FILE_RANGE, 28, "fuse_copy_file_range_in", "fuse_write_out",
        "copies, sharing blocks where the file system can",
    ),
    Operation(
        Opcode.SETUPMAPPING, 31, "fuse_setupmapping_in", "nothing",
        "DAX windows exist on virtiofs only", ENOSYS,
    ),
    Operation(
        Opcode.REMOVEMAPPING, 31, "fuse_removemapping_in, fuse_removemapping_one ...", "nothing",
        "DAX windows exist on virtiofs only", ENOSYS,
    ),
    Operation(
        Opcode.SYNCFS, 34, "fuse_syncfs_in", "nothing",
        "writes back everything; the kernel sends it on virtiofs and fuseblk only",
    ),
    Operation(
        Opcode.TMPFILE, 37, "fuse_create_in, name", "fuse_entry_out, fuse_open_out",
        "makes a file without a name and opens it",
    ),
    Operation(
        Opcode.STATX, 39, "fuse_statx_in", "fuse_statx_out", "attributes with birth time"
    ),
    Operation(
        Opcode.COPY_FILE_RANGE_64, 45, "fuse_copy_file_range_in", "fuse_copy_file_range_out",
        "as COPY_FILE_RANGE, with more than 4 GiB at a time",
    ),
)  # fmt: skip

#: Rows by opcode.
BY_OPCODE: Final = MappingProxyType({row.opcode.value: row for row in OPERATIONS})


def name_of(opcode: int) -> str:
    """The name of an opcode, or ``opcode 2016`` for one that has none."""
    row = BY_OPCODE.get(opcode)
    return f"opcode {opcode}" if row is None else row.opcode.name


def refusal(opcode: int) -> int:
    """The error that an operation is always answered with; 0 for one that is served."""
    row = BY_OPCODE.get(opcode)
    return ENOSYS if row is None else row.refuse


def has_reply(opcode: int) -> bool:
    """Whether the kernel takes a reply; an unknown operation always gets one."""
    row = BY_OPCODE.get(opcode)
    return row is None or bool(row.reply)
