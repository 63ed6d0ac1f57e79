"""Flags of open(2), fcntl(2), flock(2), access(2) and lseek(2), and the way from Linux's.

Open flags are the second table (after errno) whose names agree with Linux and whose
numbers do not: O_CREAT is 0x200 here and 0x40 there, and Linux has no separate bit for
reading. A FUSE request brings Linux flags; `oflags_from_linux` turns them round once, at
the edge, and everything below sees DragonFly's.

Inside the kernel an open file keeps *fflags*: the access mode is stored as two bits that
can be tested alone, FREAD and FWRITE, which is the open mode plus one.

Counterpart: sys/fcntl.h, access modes from sys/unistd.h.
Differs from DragonFly: flags used only by its garbage collection of passed descriptors
    (FMARK, FDEFER) are listed by number but nothing here reads them.
Token/lock order: takes none.
Invariants: fflags(o) always has FREAD or FWRITE for a valid access mode;
    oflags(fflags(o)) == o.
"""

from __future__ import annotations

import os
from types import MappingProxyType
from typing import Final

# Access mode.
O_RDONLY: Final = 0x0000
O_WRONLY: Final = 0x0001
O_RDWR: Final = 0x0002
O_ACCMODE: Final = 0x0003

# The same as bits of an open file.
FREAD: Final = 0x0001
FWRITE: Final = 0x0002

O_NONBLOCK: Final = 0x0004
O_APPEND: Final = 0x0008
O_SHLOCK: Final = 0x0010
O_EXLOCK: Final = 0x0020
O_ASYNC: Final = 0x0040
O_FSYNC: Final = 0x0080
O_SYNC: Final = O_FSYNC
O_NOFOLLOW: Final = 0x0100
O_CREAT: Final = 0x0200
O_TRUNC: Final = 0x0400
O_EXCL: Final = 0x0800
FMARK: Final = 0x1000
FDEFER: Final = 0x2000
FHASLOCK: Final = 0x4000
O_NOCTTY: Final = 0x8000
O_DIRECT: Final = 0x0001_0000
O_CLOEXEC: Final = 0x0002_0000
O_FBLOCKING: Final = 0x0004_0000
O_FNONBLOCKING: Final = 0x0008_0000
O_FAPPEND: Final = 0x0010_0000
O_FOFFSET: Final = 0x0020_0000
O_FSYNCWRITE: Final = 0x0040_0000
O_FASYNCWRITE: Final = 0x0080_0000
O_NOATIME: Final = 0x0100_0000
"""Reads leave the access time alone. An addition: DragonFly has no such flag, Linux has."""
O_DIRECTORY: Final = 0x0800_0000
FREVOKED: Final = 0x1000_0000
FAPPENDONLY: Final = 0x2000_0000
FOFFSETLOCK: Final = 0x4000_0000
FOFFSETWAKE: Final = 0x8000_0000

O_FMASK: Final = O_FBLOCKING | O_FNONBLOCKING | O_FAPPEND | O_FOFFSET | O_FSYNCWRITE | O_FASYNCWRITE

# Kernel spellings of the same bits.
FAPPEND: Final = O_APPEND
FASYNC: Final = O_ASYNC
FFSYNC: Final = O_FSYNC
FNONBLOCK: Final = O_NONBLOCK
FNDELAY: Final = O_NONBLOCK
O_NDELAY: Final = O_NONBLOCK
FPOSIXSHM: Final = O_NOFOLLOW
"""After the open the bit of O_NOFOLLOW is free and marks POSIX shared memory."""

FMASK: Final = (
    FREAD | FWRITE | FAPPEND | FASYNC | FFSYNC | FNONBLOCK | FAPPENDONLY | FREVOKED | O_DIRECT
)
"""What an open file keeps of its open flags."""
FCNTLFLAGS: Final = FAPPEND | FASYNC | FFSYNC | FNONBLOCK | FPOSIXSHM | O_DIRECT
"""What fcntl(F_SETFL) may change."""

# Directory-relative calls.
AT_FDCWD: Final = 0xFFFA_FDCD
AT_SYMLINK_NOFOLLOW: Final = 1
AT_REMOVEDIR: Final = 2
AT_EACCESS: Final = 4
AT_SYMLINK_FOLLOW: Final = 8

# fcntl commands.
F_DUPFD: Final = 0
F_GETFD: Final = 1
F_SETFD: Final = 2
F_GETFL: Final = 3
F_SETFL: Final = 4
F_GETOWN: Final = 5
F_SETOWN: Final = 6
F_GETLK: Final = 7
F_SETLK: Final = 8
F_SETLKW: Final = 9
F_DUP2FD: Final = 10
F_DUPFD_CLOEXEC: Final = 17
F_DUP2FD_CLOEXEC: Final = 18
FD_CLOEXEC: Final = 1

# Record locks.
F_RDLCK: Final = 1
F_UNLCK: Final = 2
F_WRLCK: Final = 3
F_WAIT: Final = 0x010
"""Sleep until the lock is granted."""
F_POSIX: Final = 0x040
"""The lock belongs to a process and ends with its first close of the file."""
F_NOEND: Final = 0x080
"""The lock reaches to the end of the file, wherever that will be."""

# flock(2).
LOCK_SH: Final = 0x01
LOCK_EX: Final = 0x02
LOCK_NB: Final = 0x04
LOCK_UN: Final = 0x08

# access(2) and lseek(2).
F_OK: Final = 0
X_OK: Final = 1
W_OK: Final = 2
R_OK: Final = 4
SEEK_SET: Final = 0
SEEK_CUR: Final = 1
SEEK_END: Final = 2
SEEK_DATA: Final = 3
SEEK_HOLE: Final = 4

# posix_fadvise(2); accepted, and as in DragonFly no promise follows.
POSIX_FADV_NORMAL: Final = 0
POSIX_FADV_SEQUENTIAL: Final = 1
POSIX_FADV_RANDOM: Final = 2
POSIX_FADV_WILLNEED: Final = 3
POSIX_FADV_DONTNEED: Final = 4
POSIX_FADV_NOREUSE: Final = 5

# rename flags have no DragonFly counterpart; the numbers are Linux's renameat2(2).
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4

# Linux bit -> DragonFly bit, for the flags both have. O_SYNC is two bits on Linux
# (O_DSYNC is part of it); either of them asks us for synchronous writes.
_FROM_LINUX: Final = MappingProxyType(
    {
        os.O_NONBLOCK: O_NONBLOCK,
        os.O_APPEND: O_APPEND,
        os.O_ASYNC: O_ASYNC,
        os.O_DSYNC: O_FSYNC,
        os.O_SYNC & ~os.O_DSYNC: O_FSYNC,
        os.O_NOFOLLOW: O_NOFOLLOW,
        os.O_CREAT: O_CREAT,
        os.O_TRUNC: O_TRUNC,
        os.O_EXCL: O_EXCL,
        os.O_NOCTTY: O_NOCTTY,
        os.O_DIRECT: O_DIRECT,
        os.O_CLOEXEC: O_CLOEXEC,
        os.O_DIRECTORY: O_DIRECTORY,
        os.O_NOATIME: O_NOATIME,
    }
)


def fflags(oflags: int) -> int:
    """Turn open flags into the flags of an open file (FREAD, FWRITE as bits).

    Counterpart: FFLAGS (sys/fcntl.h).
    """
    return oflags + 1


def oflags(fflags: int) -> int:
    """Turn the flags of an open file back into open flags.

    Counterpart: OFLAGS (sys/fcntl.h).
    """
    return fflags - 1


def oflags_from_linux(flags: int) -> int:
    """Translate the open flags of a host program.

    Bits without a counterpart (O_LARGEFILE, O_PATH, O_TMPFILE's own bit) are
    dropped: the host has acted on them before the request reaches us.

    Args:
        flags: Linux open(2) flags.

    Returns:
        DragonFly open flags. The access mode 3, which Linux reserves for ioctl-only
        opens, becomes O_RDWR.
    """
    mode = flags & os.O_ACCMODE
    result = O_RDWR if mode == O_ACCMODE else mode
    for linux, ours in _FROM_LINUX.items():
        if flags & linux:
            result |= ours
    return result
