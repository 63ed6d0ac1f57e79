"""What the host's ``/proc`` tells of the processes whose requests wait here.

FUSE names the thread that asks, and for operations on an open file pyfuse3 does not pass even
that on: a read may come from any thread of the process that opened the file, or from any process
that inherited or was sent the descriptor. Whoever it is holds the file open, so
``/proc/PID/fdinfo`` shows it with our inode number. Nothing here touches the mount itself.

Counterpart: none; a kernel knows its callers.
Invariants: every function answers for what it can see and never raises for a process that is gone.
"""

from __future__ import annotations

import os
from typing import Final

#: States of a process that will not run again. Counterpart: EXIT_ZOMBIE, EXIT_DEAD of Linux.
_DEAD: Final = (b"Z", b"X")
#: What a probe answers for a thread that is gone.
GONE: Final = -1


def proc_is_ours() -> bool:
    """Whether ``/proc`` shows the pid namespace this process lives in.

    In a new pid namespace with the old ``/proc`` the numbers FUSE gives us mean others there.
    """
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def pending_signals(pid: int) -> int:
    """Mask of signals that wait for host thread ``pid`` and that it does not block; `GONE`: dead.

    Reads /proc/PID/status. Signals a process ignores never become pending.
    """
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            text = status.read()
    except OSError:
        return GONE
    pending = blocked = 0
    for line in text.splitlines():
        if line.startswith((b"SigPnd:", b"ShdPnd:")):
            pending |= int(line[7:], 16)
        elif line.startswith(b"SigBlk:"):
            blocked = int(line[7:], 16)
        elif line.startswith(b"State:") and line[6:].strip()[:1] in _DEAD:
            return GONE
    return pending & ~blocked


def process_signals(pid: int) -> int:
    """The pending signals of all threads of the process of thread ``pid``; `GONE`: none lives."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return GONE
    pending = 0
    alive = False
    for tid in threads:
        mask = pending_signals(int(tid))
        if mask != GONE:
            alive = True
            pending |= mask
    return pending if alive else GONE


def process_of(tid: int) -> int:
    """The process that thread ``tid`` belongs to; 0 when it is gone."""
    try:
        with open(f"/proc/{tid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"Tgid:"):
                    return int(line[5:])
    except OSError:
        pass
    return 0


def groups_of(pid: int) -> tuple[int, ...]:
    """The supplementary groups of host thread ``pid``; empty when it cannot be seen.

    A ``/proc`` of another pid namespace may show a stranger by that number: it is not asked.
    """
    if pid <= 0 or not proc_is_ours():
        return ()
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"Groups:"):
                    return tuple(int(gid) for gid in line[7:].split())
    except OSError:
        pass
    return ()


def holders_of(inodes: frozenset[int]) -> dict[int, set[int]]:
    """Which processes have a file open that has one of these inode numbers, by number.

    Walks every process that may be looked at: milliseconds, so call it from a worker thread.
    Inode numbers of other file systems may coincide: a process too many may be named.
    """
    found: dict[int, set[int]] = {inode: set() for inode in inodes}
    own = os.getpid()
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != own:
            for inode in _open_inodes(entry) & inodes:
                found[inode].add(int(entry))
    return found


def _open_inodes(pid: str) -> set[int]:
    """The inode numbers of all files that a process has open."""
    found: set[int] = set()
    base = f"/proc/{pid}/fdinfo"
    try:
        descriptors = os.listdir(base)
    except OSError:
        return found
    for number in descriptors:
        try:
            with open(f"{base}/{number}", "rb") as info:
                head = info.read(128)
        except OSError:
            continue
        _, mark, rest = head.partition(b"ino:\t")
        if mark:
            found.add(int(rest.split(b"\n", 1)[0]))
    return found
