"""One writer an image, and a clear word about who it is.

Two programs that write the same image destroy it. So whoever opens an image takes a lock on the
whole file first: a writer an exclusive one, a reader a shared one. The lock belongs to the open
file (an "open file description lock", fcntl(2) F_OFD_SETLK), which has three good sides: a second
open in the same process is refused too; it goes when the last descriptor of that open goes, however
the process ends; and qemu, which locks single bytes the same way, is kept out and keeps us out.

The host does not say who holds such a lock. `holders` finds out: it looks for processes that have
the file open and asks /proc/PID/fdinfo for their locks. Where that is not allowed the message says
"another process".

Counterpart: none in DragonFly (vn(4) does not lock its file; vkernel uses O_EXLOCK).
Token/lock order: never waits: a lock that is taken is an error.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from dfuser.libkern.errno import EBUSY, KError
from dfuser.libkern.linux_errno import kerror_from_host

#: struct flock as fcntl(2) of 64-bit Linux takes it: l_type, l_whence, l_start, l_len, l_pid.
_FLOCK: Final = struct.Struct("hhqqi4x")


class Holder(NamedTuple):
    """A process that holds a lock on the file. ``kind`` is READ or WRITE."""

    pid: int
    command: str
    kind: str

    def __str__(self) -> str:
        who = "this process" if self.pid == os.getpid() else f"process {self.pid}"
        doing = "writing" if self.kind == "WRITE" else "reading"
        return f"{who} ({self.command}) has it open for {doing}"


def lock_image(fd: int, path: str, *, exclusive: bool) -> None:
    """Lock the file open as ``fd`` until that open is closed.

    Raises:
        KError: EBUSY, somebody else has it locked; the text says who. EOPNOTSUPP or another error
            of the host, where the file system cannot lock.
    """
    kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            failure = kerror_from_host(error)
            raise KError(failure.errno, f"{path} cannot be locked: {error.strerror}") from None
    else:
        return
    who = "; ".join(str(holder) for holder in holders(fd)) or "another process has it open"
    raise KError(EBUSY, f"{path} is in use: {who}")


def holders(fd: int) -> list[Holder]:
    """The processes we may look at that hold a lock on the file open as ``fd``."""
    found: dict[int, Holder] = {}
    for pid, number in _opens(os.fstat(fd)):
        if kind := _locked(pid, number):
            found.setdefault(pid, Holder(pid, _command(pid), kind))
    return list(found.values())


def _opens(wanted: os.stat_result) -> Iterator[tuple[int, str]]:
    """Process and descriptor number of every open of a file that we may see."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            numbers = os.listdir(f"/proc/{entry}/fd")
        except OSError:  # gone, or not ours to look at
            continue
        for number in numbers:
            try:
                found = os.stat(f"/proc/{entry}/fd/{number}")
            except OSError:
                continue
            if os.path.samestat(found, wanted):
                yield int(entry), number


def _locked(pid: int, number: str) -> str:
    """READ or WRITE, the lock an open holds; empty when it holds none."""
    try:
        with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii", errors="replace") as info:
            words = [line.split() for line in info if line.startswith("lock:")]
    except OSError:
        return ""
    # lock:  1: OFDLCK ADVISORY  WRITE 4711 fe:01:1234 0 EOF
    kinds = [word[4] for word in words if len(word) > 4]
    return "WRITE" if "WRITE" in kinds else (kinds[0] if kinds else "")


def _command(pid: int) -> str:
    """The short name of a process."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
            return comm.read().strip()
    except OSError:
        return "?"
