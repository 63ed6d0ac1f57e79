"""Words for numbers of the protocol: flags, errors, modes, names, as strace(1) would say them.

A number whose bits have names is shown as the names with ``|`` between them and what is left in
hexadecimal; a name of a file is shown in quotes, and whatever could play with a terminal or be
mistaken for something else is escaped.

Open flags, errors and the like are the *host's* numbers: some of them differ between machines, so
they are taken from this one.

Counterpart: the xlat tables of strace; linux/fuse.h, asm/fcntl.h, asm/errno.h of the host.
Invariants: nothing here raises, whatever number or bytes it is given; a text has no control
characters and no line break.
"""

from __future__ import annotations

import errno
import os
from types import MappingProxyType
from typing import Final

from . import const as c

Words = tuple[tuple[int, str], ...]

#: Bytes of a text that are shown; longer ones end in ``...``.
SHOWN: Final = 64
NAME_SHOWN: Final = 255

#: Errors that have two names on Linux, and the one that its manual pages use.
_ERRNO: Final = MappingProxyType(
    {
        **errno.errorcode,
        errno.EAGAIN: "EAGAIN",
        errno.EDEADLK: "EDEADLK",
        errno.EOPNOTSUPP: "EOPNOTSUPP",
        512: "ERESTARTSYS",
    }
)
_KINDS: Final = MappingProxyType(
    {1: "fifo", 2: "chr", 4: "dir", 6: "blk", 8: "reg", 10: "lnk", 12: "sock"}
)
_DIRENT_KINDS: Final = MappingProxyType({**_KINDS, 0: "?"})
_ACCESS_MODES: Final = ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE")
#: The kernel opens every file with it on 64-bit machines, where the C library calls it 0.
_O_LARGEFILE: Final = 0o100000 if os.O_DIRECT == 0o40000 else 0o400000

#: Names with several bits come before those whose bits they contain.
OPEN_WORDS: Final[Words] = (
    (os.O_CREAT, "O_CREAT"),
    (os.O_EXCL, "O_EXCL"),
    (os.O_NOCTTY, "O_NOCTTY"),
    (os.O_TRUNC, "O_TRUNC"),
    (os.O_APPEND, "O_APPEND"),
    (os.O_NONBLOCK, "O_NONBLOCK"),
    (os.O_SYNC, "O_SYNC"),
    (os.O_DSYNC, "O_DSYNC"),
    (os.O_ASYNC, "O_ASYNC"),
    (os.O_DIRECT, "O_DIRECT"),
    (os.O_TMPFILE, "O_TMPFILE"),
    (os.O_DIRECTORY, "O_DIRECTORY"),
    (os.O_NOFOLLOW, "O_NOFOLLOW"),
    (os.O_NOATIME, "O_NOATIME"),
    (os.O_CLOEXEC, "O_CLOEXEC"),
    (os.O_PATH, "O_PATH"),
    (0x20, "FMODE_EXEC"),
)
FOPEN_WORDS: Final[Words] = (
    (c.FOPEN_DIRECT_IO, "FOPEN_DIRECT_IO"),
    (c.FOPEN_KEEP_CACHE, "FOPEN_KEEP_CACHE"),
    (c.FOPEN_NONSEEKABLE, "FOPEN_NONSEEKABLE"),
    (c.FOPEN_CACHE_DIR, "FOPEN_CACHE_DIR"),
    (c.FOPEN_STREAM, "FOPEN_STREAM"),
    (c.FOPEN_NOFLUSH, "FOPEN_NOFLUSH"),
    (c.FOPEN_PARALLEL_DIRECT_WRITES, "FOPEN_PARALLEL_DIRECT_WRITES"),
    (c.FOPEN_PASSTHROUGH, "FOPEN_PASSTHROUGH"),
)
OPEN_IN_WORDS: Final[Words] = ((c.FUSE_OPEN_KILL_SUIDGID, "KILL_SUIDGID"),)
READ_WORDS: Final[Words] = ((c.FUSE_READ_LOCKOWNER, "LOCKOWNER"),)
WRITE_WORDS: Final[Words] = (
    (c.FUSE_WRITE_CACHE, "CACHE"),
    (c.FUSE_WRITE_LOCKOWNER, "LOCKOWNER"),
    (c.FUSE_WRITE_KILL_SUIDGID, "KILL_SUIDGID"),
)
RELEASE_WORDS: Final[Words] = (
    (c.FUSE_RELEASE_FLUSH, "FLUSH"),
    (c.FUSE_RELEASE_FLOCK_UNLOCK, "FLOCK_UNLOCK"),
)
FSYNC_WORDS: Final[Words] = ((c.FUSE_FSYNC_FDATASYNC, "FDATASYNC"),)
LK_WORDS: Final[Words] = ((c.FUSE_LK_FLOCK, "FLOCK"),)
XATTR_WORDS: Final[Words] = ((os.XATTR_CREATE, "XATTR_CREATE"), (os.XATTR_REPLACE, "XATTR_REPLACE"))
SETXATTR_WORDS: Final[Words] = ((c.FUSE_SETXATTR_ACL_KILL_SGID, "ACL_KILL_SGID"),)
RENAME_WORDS: Final[Words] = (
    (1, "RENAME_NOREPLACE"),
    (2, "RENAME_EXCHANGE"),
    (4, "RENAME_WHITEOUT"),
)
ACCESS_WORDS: Final[Words] = ((os.R_OK, "R_OK"), (os.W_OK, "W_OK"), (os.X_OK, "X_OK"))
POLL_WORDS: Final[Words] = (
    (0x1, "POLLIN"),
    (0x2, "POLLPRI"),
    (0x4, "POLLOUT"),
    (0x8, "POLLERR"),
    (0x10, "POLLHUP"),
    (0x20, "POLLNVAL"),
    (0x40, "POLLRDNORM"),
    (0x80, "POLLRDBAND"),
    (0x100, "POLLWRNORM"),
    (0x200, "POLLWRBAND"),
    (0x400, "POLLMSG"),
    (0x2000, "POLLRDHUP"),
)
POLL_IN_WORDS: Final[Words] = ((c.FUSE_POLL_SCHEDULE_NOTIFY, "SCHEDULE_NOTIFY"),)
FALLOC_WORDS: Final[Words] = (
    (0x01, "FALLOC_FL_KEEP_SIZE"),
    (0x02, "FALLOC_FL_PUNCH_HOLE"),
    (0x08, "FALLOC_FL_COLLAPSE_RANGE"),
    (0x10, "FALLOC_FL_ZERO_RANGE"),
    (0x20, "FALLOC_FL_INSERT_RANGE"),
    (0x40, "FALLOC_FL_UNSHARE_RANGE"),
)
IOCTL_WORDS: Final[Words] = (
    (c.FUSE_IOCTL_COMPAT, "COMPAT"),
    (c.FUSE_IOCTL_UNRESTRICTED, "UNRESTRICTED"),
    (c.FUSE_IOCTL_RETRY, "RETRY"),
    (c.FUSE_IOCTL_32BIT, "32BIT"),
    (c.FUSE_IOCTL_DIR, "DIR"),
    (c.FUSE_IOCTL_COMPAT_X32, "COMPAT_X32"),
)
STATX_WORDS: Final[Words] = (
    (0xFFF, "STATX_ALL"),
    (0x7FF, "STATX_BASIC_STATS"),
    (0x1, "STATX_TYPE"),
    (0x2, "STATX_MODE"),
    (0x4, "STATX_NLINK"),
    (0x8, "STATX_UID"),
    (0x10, "STATX_GID"),
    (0x20, "STATX_ATIME"),
    (0x40, "STATX_MTIME"),
    (0x80, "STATX_CTIME"),
    (0x100, "STATX_INO"),
    (0x200, "STATX_SIZE"),
    (0x400, "STATX_BLOCKS"),
    (0x800, "STATX_BTIME"),
)
AT_WORDS: Final[Words] = (
    (0x100, "AT_SYMLINK_NOFOLLOW"),
    (0x800, "AT_NO_AUTOMOUNT"),
    (0x1000, "AT_EMPTY_PATH"),
    (0x2000, "AT_STATX_FORCE_SYNC"),
    (0x4000, "AT_STATX_DONT_SYNC"),
)
LOCK_TYPES: Final = ("F_RDLCK", "F_WRLCK", "F_UNLCK")
WHENCES: Final = ("SEEK_SET", "SEEK_CUR", "SEEK_END", "SEEK_DATA", "SEEK_HOLE")
#: The two upper bits of an ioctl's number, as asm-generic/ioctl.h has them.
_IOC_DIRECTIONS: Final = ("_IO", "_IOW", "_IOR", "_IOWR")


def flag_words(value: int, words: Words, none: str = "0") -> str:
    """The names of the bits that are set, and what is left in hexadecimal."""
    found = []
    for mask, name in words:
        if value & mask == mask:
            found.append(name)
            value &= ~mask
    if value:
        found.append(f"{value:#x}")
    return "|".join(found) or none


def open_words(flags: int) -> str:
    """Linux's open flags; O_LARGEFILE, which is always there, is left out."""
    mode = _ACCESS_MODES[flags & 3]
    rest = flag_words(flags & ~(3 | _O_LARGEFILE), OPEN_WORDS, "")
    return f"{mode}|{rest}" if rest else mode


def one_of(value: int, words: tuple[str, ...]) -> str:
    """The name of a number that counts from zero, or the number."""
    return words[value] if 0 <= value < len(words) else str(value)


def errno_word(number: int) -> str:
    """The host's name of an error number."""
    return _ERRNO.get(number, f"error {number}")


def kind_word(mode: int) -> str:
    """Type of a file and its permissions: ``dir 0755``."""
    kind = _KINDS.get(mode >> 12, f"type {mode >> 12}")
    return f"{kind} {mode & 0o7777:04o}"


def dirent_word(kind: int) -> str:
    """The type of an entry of a listing."""
    return _DIRENT_KINDS.get(kind, str(kind))


def quote(text: bytes, limit: int = NAME_SHOWN, *, cut: bool = False) -> str:
    """A name or a value in quotes; ``cut`` says that there is more than was given."""
    shown = text[:limit]
    chars = shown.decode("utf-8", "surrogateescape")
    if not chars.isprintable() or '"' in chars or "\\" in chars:
        chars = "".join(map(_escaped, chars))
    return f'"{chars}"' + ("..." if cut or len(text) > limit else "")


def _escaped(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    if char.isprintable():
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(char, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def ioctl_word(command: int) -> str:
    """An ioctl's number: taken apart where it encodes its size, else in hexadecimal."""
    size, group = command >> 16 & 0x3FFF, chr(command >> 8 & 0xFF)
    if not size or command >> 32:
        return f"{command:#x}"
    shown = f"'{group}'" if group.isascii() and group.isprintable() else f"{ord(group):#x}"
    return f"{_IOC_DIRECTIONS[command >> 30]}({shown},{command & 0xFF},{size})"


def seconds(sec: int, nsec: int) -> str:
    """A time as seconds since 1970."""
    return f"{sec}.{nsec:09d}" if nsec else str(sec)
