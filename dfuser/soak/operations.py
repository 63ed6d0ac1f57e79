"""Random operations on names: what they are, where they come from, how they are done.

An `Operation` is a call, one or two paths out of a small pool, and numbers. The pool is small on
purpose: with six names a level, most calls meet something that is there already, so that errors
and successes come about equally often. The stream is drawn from a seed and never looks at an
answer. So the same stream can be done on a model (`fsstress`) and on two directories (`twin`).

`perform` does one operation in a directory and returns a `Result`: the errno, and what the call
told (names, modes, link texts), as plain values that can be compared.

Counterpart: none (the idea is SGI's fsstress).
Differs from DragonFly: fsstress draws from what exists, and has no model.
Token/lock order: takes none; it is a host program.
Invariants: an operation never leaves its directory: no path has `..`, no link text is absolute.
"""

from __future__ import annotations

import ctypes
import os
import random
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

NAMES = ("a", "b", "c", "d", "e", "f")
XATTRS = ("user.one", "user.two", "user.three")
DEPTHS = (1, 1, 1, 2, 2, 2, 3, 3, 4)
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2

Value = int | str | bytes | tuple["Value", ...] | None

WEIGHTS: Mapping[str, int] = MappingProxyType(
    {
        "create": 12,
        "open_create": 6,
        "write": 8,
        "truncate": 4,
        "unlink": 9,
        "mkdir": 12,
        "rmdir": 7,
        "rename": 10,
        "rename_noreplace": 3,
        "rename_exchange": 4,
        "link": 7,
        "symlink": 6,
        "mkfifo": 2,
        "chmod": 5,
        "chown": 4,
        "utimens": 4,
        "setxattr": 4,
        "removexattr": 2,
        "getxattr": 2,
        "listxattr": 2,
        "listdir": 6,
        "stat": 6,
        "lstat": 6,
        "readlink": 3,
        "read": 3,
    }
)


class Operation(NamedTuple):
    """One call: its name, a path, a second path (or a link's text), two drawn numbers."""

    call: str
    path: str
    other: str
    number: int
    extra: int

    def __str__(self) -> str:
        """The operation as a failure's log shows it."""
        return f"{self.call} {self.path} {self.other} {self.number:#o} {self.extra}"


class Result(NamedTuple):
    """What an operation answered: errno (0 when it succeeded) and its value."""

    errno: int
    value: Value = None

    def __str__(self) -> str:
        """The answer as a failure shows it."""
        return f"{os.strerror(self.errno)} ({self.errno})" if self.errno else repr(self.value)


def stream(
    seed: int, *, privileged: bool, without: frozenset[str] = frozenset()
) -> Iterator[Operation]:
    """Yield operations without end; `without` names the calls to leave out.

    An unprivileged stream keeps its own rights to every directory and gives nothing away, so that
    no answer depends on who runs it.
    """
    draw = random.Random(seed)
    calls = [call for call in WEIGHTS if call not in without]
    weights = [WEIGHTS[call] for call in calls]
    while True:
        call = draw.choices(calls, weights)[0]
        path, other = _path(draw), _path(draw)
        number, extra = draw.randrange(0o10000), draw.randrange(1000)
        if not privileged:
            number |= 0o700
            extra = 0
        yield Operation(call, path, other, number, extra)


def _path(draw: random.Random) -> str:
    depth = draw.choice(DEPTHS)
    return "/".join(draw.choice(NAMES) for _ in range(depth))


def perform(root: Path, operation: Operation) -> Result:
    """Do one operation below `root` and return its answer; never raises OSError."""
    try:
        return Result(0, CALLS[operation.call](f"{root}/{operation.path}", operation, root))
    except OSError as error:
        return Result(error.errno or 0)


def contents(number: int) -> bytes:
    """The bytes that `write` puts into a file."""
    return b"%o." % number * (number % 700)


def _create(path: str, op: Operation, root: Path) -> Value:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, op.number & 0o1777))
    return None


def _open_create(path: str, op: Operation, root: Path) -> Value:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_NONBLOCK, op.number & 0o777))
    return None


def _write(path: str, op: Operation, root: Path) -> Value:
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK)
    try:
        return os.write(fd, contents(op.number))
    finally:
        os.close(fd)


def _read(path: str, op: Operation, root: Path) -> Value:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(fd, 100_000)
    finally:
        os.close(fd)


def _chown(path: str, op: Operation, root: Path) -> Value:
    if os.geteuid() == 0:
        os.chown(path, op.extra, op.number, follow_symlinks=False)
    else:
        os.chown(path, os.getuid(), os.getgid(), follow_symlinks=False)
    return None


def _setxattr(path: str, op: Operation, root: Path) -> Value:
    flags = (0, 0, os.XATTR_CREATE, os.XATTR_REPLACE)[op.number % 4]
    os.setxattr(path, XATTRS[op.number % 3], contents(op.number % 60), flags)
    return None


def _stat(path: str, op: Operation, root: Path) -> Value:
    return describe(os.stat(path))


def _lstat(path: str, op: Operation, root: Path) -> Value:
    return describe(os.lstat(path))


def describe(found: os.stat_result) -> Value:
    """What the model can know of a stat: type, mode, links, owner, size of files and links."""
    size = found.st_size if stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode) else 0
    return (found.st_mode, found.st_nlink, found.st_uid, found.st_gid, size)


def rename_flags(source: str, target: str, flags: int) -> None:
    """renameat2(2), which `os` does not have.

    Raises:
        OSError: as the system call.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    here = -100
    if libc.renameat2(here, os.fsencode(source), here, os.fsencode(target), flags) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


CALLS: Mapping[str, Callable[[str, Operation, Path], Value]] = MappingProxyType(
    {
        "create": _create,
        "open_create": _open_create,
        "write": _write,
        "read": _read,
        "truncate": lambda p, op, root: os.truncate(p, op.number),
        "unlink": lambda p, op, root: os.unlink(p),
        "mkdir": lambda p, op, root: os.mkdir(p, op.number & 0o1777),
        "rmdir": lambda p, op, root: os.rmdir(p),
        "rename": lambda p, op, root: os.rename(p, root / op.other),
        "rename_noreplace": lambda p, op, root: rename_flags(
            p, f"{root}/{op.other}", RENAME_NOREPLACE
        ),
        "rename_exchange": lambda p, op, root: rename_flags(
            p, f"{root}/{op.other}", RENAME_EXCHANGE
        ),
        "link": lambda p, op, root: os.link(p, root / op.other, follow_symlinks=False),
        "symlink": lambda p, op, root: os.symlink(op.other, p),
        "mkfifo": lambda p, op, root: os.mkfifo(p, op.number & 0o777),
        "chmod": lambda p, op, root: os.chmod(p, op.number),
        "chown": _chown,
        "utimens": lambda p, op, root: os.utime(p, ns=(op.number, op.number * 10**9 + op.extra)),
        "setxattr": _setxattr,
        "removexattr": lambda p, op, root: os.removexattr(p, XATTRS[op.number % 3]),
        "getxattr": lambda p, op, root: os.getxattr(p, XATTRS[op.number % 3]),
        "listxattr": lambda p, op, root: tuple(sorted(n for n in os.listxattr(p) if n in XATTRS)),
        "listdir": lambda p, op, root: tuple(sorted(os.listdir(p))),
        "stat": _stat,
        "lstat": _lstat,
        "readlink": lambda p, op, root: os.readlink(p),
    }
)
