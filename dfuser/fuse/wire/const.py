"""The numbers of the protocol: opcodes, notification codes, flag bits, limits.

Every name is the kernel header's, without the prefix where an enumeration already says it, so that
both sides grep. The numbers are checked one by one against the installed header by the tests.

Counterpart: the enumerations and #defines of linux/fuse.h (protocol 7.45).
Differs from the header: INIT flags are not here; each is a decision and stands in `flags`.
Invariants: nothing here can change while dfuser runs; nothing here depends on the connection.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

#: Version that this codec speaks.
FUSE_KERNEL_VERSION: Final = 7
FUSE_KERNEL_MINOR_VERSION: Final = 45
#: The oldest minor version served: from it on the fixed parts of all requests have today's size.
OLDEST_MINOR: Final = 12
#: The nodeid of a mount's root.
FUSE_ROOT_ID: Final = 1
#: The least buffer the kernel accepts in a read of the device, in bytes.
FUSE_MIN_READ_BUFFER: Final = 8192
#: The longest name the kernel accepts in a notification or in a directory entry.
FUSE_NAME_MAX: Final = 1024
#: A reply's error lies strictly between zero and this; Linux keeps the rest for itself.
ERRNO_LIMIT: Final = 512
#: Bytes of a request's and of a reply's header.
IN_HEADER_SIZE: Final = 40
OUT_HEADER_SIZE: Final = 16
#: Where the data of WRITE and of NOTIFY_REPLY begins.
WRITE_DATA: Final = 80
#: Most iovecs that an ioctl may ask for again, both directions together.
FUSE_IOCTL_MAX_IOV: Final = 256
#: Extension types up to this one are numbers of security contexts.
FUSE_MAX_NR_SECCTX: Final = 31
FUSE_EXT_GROUPS: Final = 32
#: Bit of ``unique`` that marks a request sent again after NOTIFY_RESEND.
FUSE_UNIQUE_RESEND: Final = 1 << 63
#: uid or gid that could not be mapped, on idmapped mounts.
FUSE_INVALID_UIDGID: Final = 0xFFFFFFFF


class Opcode(IntEnum):
    """What a request asks for. Counterpart: enum fuse_opcode (linux/fuse.h)."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


#: Opcodes that are no operation of a file system: CUSE's INIT, and INIT in the other byte order.
CUSE_INIT: Final = 4096
CUSE_INIT_BSWAP_RESERVED: Final = 1048576
FUSE_INIT_BSWAP_RESERVED: Final = 436207616


class Notify(IntEnum):
    """What a message to the kernel tells. Counterpart: enum fuse_notify_code (linux/fuse.h)."""

    POLL = 1
    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    RETRIEVE = 5
    DELETE = 6
    RESEND = 7
    INC_EPOCH = 8
    PRUNE = 9


# SETATTR: which fields are meant.
FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_FH: Final = 1 << 6
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8
FATTR_LOCKOWNER: Final = 1 << 9
FATTR_CTIME: Final = 1 << 10
FATTR_KILL_SUIDGID: Final = 1 << 11

# Replies to OPEN, OPENDIR and CREATE: how the kernel shall treat the open file.
FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_NONSEEKABLE: Final = 1 << 2
FOPEN_CACHE_DIR: Final = 1 << 3
FOPEN_STREAM: Final = 1 << 4
FOPEN_NOFLUSH: Final = 1 << 5
FOPEN_PARALLEL_DIRECT_WRITES: Final = 1 << 6
FOPEN_PASSTHROUGH: Final = 1 << 7

# Flags in requests.
FUSE_RELEASE_FLUSH: Final = 1 << 0
FUSE_RELEASE_FLOCK_UNLOCK: Final = 1 << 1
FUSE_GETATTR_FH: Final = 1 << 0
FUSE_LK_FLOCK: Final = 1 << 0
FUSE_WRITE_CACHE: Final = 1 << 0
FUSE_WRITE_LOCKOWNER: Final = 1 << 1
FUSE_WRITE_KILL_SUIDGID: Final = 1 << 2
FUSE_READ_LOCKOWNER: Final = 1 << 1
FUSE_POLL_SCHEDULE_NOTIFY: Final = 1 << 0
FUSE_FSYNC_FDATASYNC: Final = 1 << 0
FUSE_OPEN_KILL_SUIDGID: Final = 1 << 0
FUSE_SETXATTR_ACL_KILL_SGID: Final = 1 << 0
FUSE_SETUPMAPPING_FLAG_WRITE: Final = 1 << 0
FUSE_SETUPMAPPING_FLAG_READ: Final = 1 << 1

# Ioctls: flags of the request, and RETRY in a reply.
FUSE_IOCTL_COMPAT: Final = 1 << 0
FUSE_IOCTL_UNRESTRICTED: Final = 1 << 1
FUSE_IOCTL_RETRY: Final = 1 << 2
FUSE_IOCTL_32BIT: Final = 1 << 3
FUSE_IOCTL_DIR: Final = 1 << 4
FUSE_IOCTL_COMPAT_X32: Final = 1 << 5

# Attributes, and the notification of an entry.
FUSE_ATTR_SUBMOUNT: Final = 1 << 0
FUSE_ATTR_DAX: Final = 1 << 1
FUSE_EXPIRE_ONLY: Final = 1 << 0

# Ioctls on the device itself. BACKING_OPEN and BACKING_CLOSE carry passthrough files.
FUSE_DEV_IOC_CLONE: Final = 0x8004E500
FUSE_DEV_IOC_BACKING_OPEN: Final = 0x4010E501
FUSE_DEV_IOC_BACKING_CLOSE: Final = 0x4004E502
FUSE_DEV_IOC_SYNC_INIT: Final = 0x0000E503
