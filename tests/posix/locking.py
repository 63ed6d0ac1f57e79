"""Record locks as the cases write them down: a lock, a question, a whole file's locks as text.

A range is `(start, length)` as in struct flock, so length 0 reaches to the end of the file however
it grows. `shape` asks F_GETLK again and again and gives the locks that stand in somebody's way as
text, `"w0+10 r20+5 w90+0"`, which is also how the cases say what they expect.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import NamedTuple

from tests.posix.case import CaseFailed

F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW = 36, 37, 38
READ, WRITE, UNLOCK = int(fcntl.F_RDLCK), int(fcntl.F_WRLCK), int(fcntl.F_UNLCK)
LETTERS = {"r": READ, "w": WRITE, "u": UNLOCK}
_FLOCK = "@hhqqi4x"


class Record(NamedTuple):
    """A struct flock; `owner` is l_pid."""

    kind: int
    start: int = 0
    length: int = 0
    whence: int = os.SEEK_SET
    owner: int = 0

    def pack(self) -> bytes:
        """The bytes fcntl(2) takes."""
        return struct.pack(_FLOCK, self.kind, self.whence, self.start, self.length, self.owner)


def lock(
    descriptor: int,
    kind: int,
    start: int = 0,
    length: int = 0,
    whence: int = os.SEEK_SET,
    *,
    wait: bool = False,
    ofd: bool = False,
) -> None:
    """F_SETLK or F_SETLKW, of the process or (`ofd`) of the open file description."""
    if ofd:
        command = F_OFD_SETLKW if wait else F_OFD_SETLK
    else:
        command = fcntl.F_SETLKW if wait else fcntl.F_SETLK
    fcntl.fcntl(descriptor, command, Record(kind, start, length, whence).pack())


def locked(
    descriptor: int, kind: int, start: int = 0, length: int = 0, *, ofd: bool = False
) -> bool:
    """Try to lock; False when somebody else's lock is in the way."""
    try:
        lock(descriptor, kind, start, length, ofd=ofd)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def ask(
    descriptor: int,
    kind: int = WRITE,
    start: int = 0,
    length: int = 0,
    whence: int = os.SEEK_SET,
    *,
    ofd: bool = False,
) -> Record | None:
    """F_GETLK: the lock that is in the way, or None."""
    command = F_OFD_GETLK if ofd else fcntl.F_GETLK
    request = Record(kind, start, length, whence).pack()
    found, origin, at, size, owner = struct.unpack(
        _FLOCK, fcntl.fcntl(descriptor, command, request)
    )
    return None if found == UNLOCK else Record(found, at, size, origin, owner)


def shape(descriptor: int) -> str:
    """The locks of one other owner, from the file's start to its end, as text.

    With several owners use `shape_of_bytes`: which of two locks F_GETLK tells first is open.
    """
    at, found = 0, []
    while (record := ask(descriptor, WRITE, at)) is not None:
        found.append(f"{'rw'[record.kind == WRITE]}{record.start}+{record.length}")
        if record.length == 0:
            break
        if record.start + record.length <= at:
            raise CaseFailed(f"F_GETLK from {at} tells {record}")
        at = record.start + record.length
    return " ".join(found)


def shape_of_bytes(descriptor: int, count: int) -> str:
    """For each of the first `count` bytes: `.` free, `r` or `w` locked by somebody else."""
    letters = ""
    for at in range(count):
        record = ask(descriptor, WRITE, at, 1)
        letters += "." if record is None else "rw"[record.kind == WRITE]
    return letters


def apply(descriptor: int, text: str, *, ofd: bool = False) -> None:
    """Take and release locks as `"w0+30 u10+10"` says, one after the other, none waiting."""
    for word in text.split():
        start, length = word[1:].split("+")
        lock(descriptor, LETTERS[word[0]], int(start), int(length), ofd=ofd)
