"""fcntl(2) record locks: which conflict, how ranges split and join, what F_GETLK tells.

Each question is asked of the locks of processes and of those of open file descriptions (OFD).
Who owns a lock and when it goes is in lock_owners.py, who waits in lock_waits.py.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

from tests.posix.case import case, refuse, same, table, true
from tests.posix.locking import (
    F_OFD_GETLK,
    READ,
    UNLOCK,
    WRITE,
    Record,
    apply,
    ask,
    lock,
    locked,
    shape,
    shape_of_bytes,
)
from tests.posix.peer import Peer
from tests.posix.tools import folder, opened, put

BLOCKED = (errno.EAGAIN, errno.EACCES)
LAST = 2**63 - 1
KINDS = {"read": READ, "write": WRITE}
#: Where the second range stands to the first one, 100 to 149, and whether they share a byte.
PLACES = {
    "far-before": (0, 50, False),
    "just-before": (50, 50, False),
    "one-byte-in": (50, 51, True),
    "same": (100, 50, True),
    "inside": (110, 5, True),
    "around": (50, 200, True),
    "last-byte": (149, 1, True),
    "just-after": (150, 10, False),
    "to-the-end": (120, 0, True),
    "all": (0, 0, True),
    "after-to-the-end": (150, 0, False),
}


def _conflict_rows() -> dict[str, tuple[int, int, int, int, bool]]:
    return {
        f"{first}-{second}-{place}": (KINDS[first], KINDS[second], start, length, shared)
        for first in KINDS
        for second in KINDS
        for place, (start, length, shared) in PLACES.items()
    }


@table(_conflict_rows())
def conflicts(d: Path, first: int, second: int, start: int, length: int, shared: bool) -> None:
    """Two owners: kept out exactly when a byte is shared and one of the locks is for writing."""
    other = Peer()
    with opened(put(d / "f", bytes(400)), os.O_RDWR) as f, opened(d / "f", os.O_RDWR) as g:
        theirs = other(os.open, d / "f", os.O_RDWR)
        wanted = not (shared and WRITE in (first, second))
        for ofd in (False, True):
            lock(f, first, 100, 50, ofd=ofd)
            in_the_way = other(ask, theirs, second, start, length)
            same(in_the_way is None, wanted, "F_GETLK finds the way free")
            same(other(locked, theirs, second, start, length), wanted, "another process")
            other(lock, theirs, UNLOCK)
            same(other(locked, theirs, second, start, length, ofd=True), wanted, "an OFD lock")
            other(lock, theirs, UNLOCK, ofd=True)
            if ofd:
                same(locked(g, second, start, length, ofd=True), wanted, "another description")
            lock(f, UNLOCK, ofd=ofd)
            lock(g, UNLOCK, ofd=True)


SHAPES = {
    "one": ("w10+5", "w10+5"),
    "unlock-middle": ("w0+30 u10+10", "w0+10 w20+10"),
    "unlock-head": ("w0+30 u0+10", "w10+20"),
    "unlock-tail": ("w0+30 u20+10", "w0+20"),
    "unlock-around": ("w10+10 u0+100", ""),
    "unlock-nothing": ("w10+10 u30+10", "w10+10"),
    "unlock-several": ("w0+10 w20+10 w40+10 u5+40", "w0+5 w45+5"),
    "downgrade-middle": ("w0+30 r10+10", "w0+10 r10+10 w20+10"),
    "upgrade-middle": ("r0+30 w10+10", "r0+10 w10+10 r20+10"),
    "upgrade-all": ("r0+30 w0+30", "w0+30"),
    "downgrade-head": ("w0+30 r0+10", "r0+10 w10+20"),
    "join-touching": ("w0+10 w10+10", "w0+20"),
    "join-touching-below": ("w10+10 w0+10", "w0+20"),
    "join-overlapping": ("w0+15 w10+10", "w0+20"),
    "join-over-a-gap": ("w0+10 w20+10 w10+10", "w0+30"),
    "join-by-conversion": ("r0+10 w10+10 r10+10", "r0+20"),
    "swallow-several": ("w5+5 r15+5 w25+5 w0+40", "w0+40"),
    "touching-kinds-stay": ("r0+10 w10+10", "r0+10 w10+10"),
    "same-again": ("w0+10 w0+10", "w0+10"),
    "to-the-end": ("w10+0", "w10+0"),
    "end-is-cut": ("w10+0 u50+0", "w10+40"),
    "end-joins": ("w10+10 w20+0", "w10+0"),
    "hole-before-the-end": ("w0+0 u100+50", "w0+100 w150+0"),
    "read-to-the-end-over-write": ("w0+0 r64+0", "w0+64 r64+0"),
    "last-possible-byte": (f"w{LAST}+1", f"w{LAST}+0"),
    "up-to-the-last-byte": (f"w{LAST - 9}+9", f"w{LAST - 9}+9"),
    "far": (f"w{5 << 30}+{1 << 30} r{6 << 30}+1", f"w{5 << 30}+{1 << 30} r{6 << 30}+1"),
}


@table(SHAPES)
def shapes(d: Path, text: str, want: str) -> None:
    """Locking over one's own locks replaces, splits and joins them as POSIX says."""
    other = Peer()
    theirs = other(os.open, put(d / "f", bytes(100)), os.O_RDWR)
    with opened(d / "f", os.O_RDWR) as f:
        for ofd in (False, True):
            apply(f, text, ofd=ofd)
            same(other(shape, theirs), want, f"locks that another process sees, OFD {ofd}")
            lock(f, UNLOCK, ofd=ofd)
            same(other(shape, theirs), "", f"after unlocking all, OFD {ofd}")


#: (offset of the descriptor, whence, start, length) in a file of 100 bytes, and the range meant.
BASES = {
    "current": (50, os.SEEK_CUR, -10, 20, (40, 20)),
    "current-zero": (50, os.SEEK_CUR, 0, 1, (50, 1)),
    "current-to-the-end": (50, os.SEEK_CUR, 5, 0, (55, 0)),
    "end": (0, os.SEEK_END, -10, 5, (90, 5)),
    "end-across": (0, os.SEEK_END, -10, 20, (90, 20)),
    "end-beyond": (7, os.SEEK_END, 10, 5, (110, 5)),
    "end-to-the-end": (0, os.SEEK_END, 0, 0, (100, 0)),
    "negative": (0, os.SEEK_SET, 50, -20, (30, 20)),
    "negative-to-zero": (0, os.SEEK_SET, 20, -20, (0, 20)),
    "negative-current": (50, os.SEEK_CUR, 0, -10, (40, 10)),
    "negative-end": (0, os.SEEK_END, 0, -10, (90, 10)),
}


@table(BASES)
def bases(
    d: Path, offset: int, whence: int, start: int, length: int, want: tuple[int, int]
) -> None:
    """A range may count from the offset or the end, and a negative length goes backwards."""
    other = Peer()
    theirs = other(os.open, put(d / "f", bytes(100)), os.O_RDWR)
    with opened(d / "f", os.O_RDWR) as f:
        os.lseek(f, offset, os.SEEK_SET)
        for ofd in (False, True):
            lock(f, WRITE, start, length, whence, ofd=ofd)
            same(other(shape, theirs), f"w{want[0]}+{want[1]}", f"range, OFD {ofd}")
            lock(f, UNLOCK, start, length, whence, ofd=ofd)
            same(other(shape, theirs), "", f"after unlocking the same way, OFD {ofd}")
        other(os.lseek, theirs, offset, os.SEEK_SET)
        lock(f, READ)
        found = other(ask, theirs, WRITE, start, length, whence)
        same(found, Record(READ, 0, 0, os.SEEK_SET, os.getpid()), "F_GETLK counts from the start")


BAD = {
    "whence": (Record(WRITE, 0, 1, 7), errno.EINVAL),
    "kind": (Record(9, 0, 1), errno.EINVAL),
    "before-the-start": (Record(WRITE, -1, 5), errno.EINVAL),
    "negative-length": (Record(WRITE, 10, -11), errno.EINVAL),
    "before-the-start-by-end": (Record(WRITE, -101, 5, os.SEEK_END), errno.EINVAL),
    "past-the-last-byte": (Record(WRITE, LAST, 2), (errno.EOVERFLOW, errno.EINVAL)),
    "start-overflows": (Record(WRITE, LAST, 0, os.SEEK_END), (errno.EOVERFLOW, errno.EINVAL)),
}


@table(BAD)
def bad_requests(d: Path, request: Record, number: int | tuple[int, ...]) -> None:
    """A range that cannot be is refused by each command, and nothing is locked."""
    other = Peer()
    theirs = other(os.open, put(d / "f", bytes(100)), os.O_RDWR)
    with opened(d / "f", os.O_RDWR) as f:
        for command in (fcntl.F_SETLK, fcntl.F_SETLKW, fcntl.F_GETLK):
            refuse(number, fcntl.fcntl, f, command, request.pack())
    same(other(shape, theirs), "", "locks")


@case()
def asking_for_an_unlock(d: Path) -> None:
    """F_GETLK with F_UNLCK is EINVAL; an OFD command with a process in l_pid is, too."""
    with opened(put(d / "f"), os.O_RDWR) as f:
        refuse(errno.EINVAL, fcntl.fcntl, f, fcntl.F_GETLK, Record(UNLOCK).pack())
        request = Record(WRITE, owner=os.getpid()).pack()
        refuse(errno.EINVAL, fcntl.fcntl, f, F_OFD_GETLK, request)


@case()
def free_answer_keeps_the_question(d: Path) -> None:
    """When nothing is in the way F_GETLK changes the kind to F_UNLCK and leaves the rest."""
    with opened(put(d / "f", bytes(100)), os.O_RDWR) as f:
        request = Record(WRITE, 10, 20, os.SEEK_SET, 77)
        answer = fcntl.fcntl(f, fcntl.F_GETLK, request.pack())
    same(Record(*_fields(answer)), request._replace(kind=UNLOCK), "answer")


def _fields(answer: bytes) -> tuple[int, int, int, int, int]:
    kind, whence, start, length, owner = struct.unpack("@hhqqi4x", answer)
    return kind, start, length, whence, owner


@case()
def own_locks_are_not_in_the_way(d: Path) -> None:
    """F_GETLK never tells the asker's own lock, through whichever descriptor it is asked."""
    with opened(put(d / "f", bytes(100)), os.O_RDWR) as f, opened(d / "f", os.O_RDWR) as g:
        lock(f, WRITE)
        same((ask(f), ask(g)), (None, None), "in the process's own way")
        true(locked(g, READ, 10, 10), "its own lock keeps the process out")
        lock(f, UNLOCK)
        lock(f, WRITE, ofd=True)
        same(ask(f, ofd=True), None, "in the description's own way")
        same(ask(g, ofd=True), Record(WRITE, owner=-1), "in the other description's way")


@table({"read": (READ,), "write": (WRITE,)})
def holder_is_told(d: Path, kind: int) -> None:
    """F_GETLK tells kind, whole range and process of the lock, asked for one byte of it."""
    holder, asker = Peer(), Peer()
    held = holder(os.open, put(d / "f", bytes(100)), os.O_RDWR)
    holder(lock, held, kind, 20, 60)
    theirs = asker(os.open, d / "f", os.O_RDWR)
    want = Record(kind, 20, 60, os.SEEK_SET, holder.pid)
    same(asker(ask, theirs, WRITE, 79, 1), want, "process lock")
    holder(lock, held, UNLOCK)
    holder(lock, held, kind, 20, 60, ofd=True)
    same(asker(ask, theirs, WRITE, 30, 1)[:4], want[:4], "OFD lock")


@case()
def descriptions_have_no_process(d: Path) -> None:
    """F_GETLK tells -1 as the process of an OFD lock."""
    holder, asker = Peer(), Peer()
    held = holder(os.open, put(d / "f", bytes(100)), os.O_RDWR)
    holder(lock, held, WRITE, 20, 60, ofd=True)
    theirs = asker(os.open, d / "f", os.O_RDWR)
    same(asker(ask, theirs), Record(WRITE, 20, 60, os.SEEK_SET, -1), "OFD lock")


@case()
def process_is_told_to_descriptions(d: Path) -> None:
    """F_OFD_GETLK tells the process that holds a record lock."""
    holder, asker = Peer(), Peer()
    held = holder(os.open, put(d / "f", bytes(100)), os.O_RDWR)
    holder(lock, held, WRITE, 20, 60)
    theirs = asker(os.open, d / "f", os.O_RDWR)
    same(asker(ask, theirs, ofd=True), Record(WRITE, 20, 60, os.SEEK_SET, holder.pid), "lock")


@case()
def refused_request_changes_nothing(d: Path) -> None:
    """A request of which one byte is not to be had leaves the asker's own locks as they were."""
    other = Peer()
    theirs = other(os.open, put(d / "f", bytes(100)), os.O_RDWR)
    with opened(d / "f", os.O_RDWR) as f:
        apply(f, "r0+10 w20+10")
        other(lock, theirs, READ, 40, 1)
        refuse(BLOCKED, lock, f, WRITE, 0, 50)
        same(other(shape, theirs), "r0+10 w20+10", "own locks afterwards")


@case()
def refused_upgrade_keeps_the_read_lock(d: Path) -> None:
    """Who cannot get from reading to writing still holds the read lock."""
    one, two = Peer(), Peer()
    first = one(os.open, put(d / "f", bytes(100)), os.O_RDWR)
    second = two(os.open, d / "f", os.O_RDWR)
    one(lock, first, READ, 0, 10)
    two(lock, second, READ, 5, 10)
    refuse(BLOCKED, one, lock, first, WRITE, 0, 10)
    same(two(ask, second), Record(READ, 0, 10, os.SEEK_SET, one.pid), "the first one's lock")
    two(lock, second, UNLOCK)
    one(lock, first, WRITE, 0, 10)
    same(two(ask, second, READ), Record(WRITE, 0, 10, os.SEEK_SET, one.pid), "the upgraded lock")


@case()
def three_owners(d: Path) -> None:
    """Locks of three processes stand side by side, and each byte is told with its kind."""
    peers = [Peer() for _ in range(3)]
    put(d / "f", bytes(40))
    files = [peer(os.open, d / "f", os.O_RDWR) for peer in peers]
    for peer, file, text in zip(peers, files, ("w0+5 r20+10", "w5+5 r25+10", "r22+6"), strict=True):
        peer(apply, file, text)
    with opened(d / "f", os.O_RDWR) as f:
        same(shape_of_bytes(f, 40), "w" * 10 + "." * 10 + "r" * 15 + "." * 5, "bytes")
        peers[1](lock, files[1], UNLOCK)
        same(shape_of_bytes(f, 40), "w" * 5 + "." * 15 + "r" * 10 + "." * 10, "without the second")


@case()
def many_ranges(d: Path) -> None:
    """A thousand single bytes can be locked, are all told, and go with one unlock."""
    other = Peer()
    theirs = other(os.open, put(d / "f", bytes(2000)), os.O_RDWR)
    with opened(d / "f", os.O_RDWR) as f:
        for at in range(0, 2000, 2):
            lock(f, WRITE, at, 1)
        same(other(shape, theirs), " ".join(f"w{at}+1" for at in range(0, 2000, 2)), "locks")
        lock(f, UNLOCK, 500, 1000)
        same(other(shape, theirs).count("w"), 500, "locks after the middle is unlocked")
        lock(f, WRITE)
        same(other(shape, theirs), "w0+0", "locked as a whole")
        lock(f, UNLOCK)
        same(other(shape, theirs), "", "unlocked")


@case()
def open_modes(d: Path) -> None:
    """A read lock needs reading, a write lock writing, O_PATH gives neither: EBADF."""
    put(d / "f")
    for flags, kind, ofd in (
        (os.O_RDONLY, WRITE, False), (os.O_RDONLY, WRITE, True), (os.O_WRONLY, READ, False),
        (os.O_WRONLY, READ, True), (os.O_PATH, READ, False),
    ):  # fmt: skip
        with opened(d / "f", flags) as f:
            refuse(errno.EBADF, lock, f, kind, ofd=ofd)
    with opened(d / "f", os.O_RDONLY) as f:
        lock(f, READ)
        same(ask(f, WRITE), None, "F_GETLK for writing on a reading descriptor")
    with opened(d / "f", os.O_WRONLY) as f:
        lock(f, WRITE)
    refuse(errno.EBADF, lock, f, WRITE)


@case()
def directories(d: Path) -> None:
    """A directory takes read locks; a write lock is EBADF, for it cannot be open for writing."""
    with opened(folder(d / "dir"), os.O_RDONLY) as f:
        lock(f, READ)
        refuse(errno.EBADF, lock, f, WRITE)
        lock(f, UNLOCK)


@case()
def nobody_is_kept_from_reading_and_writing(d: Path) -> None:
    """Locks are advisory: others read, write, truncate and remove the file all the same."""
    holder = Peer()
    held = holder(os.open, put(d / "f", b"x" * 100), os.O_RDWR)
    holder(lock, held, WRITE)
    with opened(d / "f", os.O_RDWR) as f:
        same((os.pread(f, 3, 0), os.pwrite(f, b"abc", 0)), (b"xxx", 3), "reading and writing")
        os.ftruncate(f, 50)
        same(ask(f), Record(WRITE, 0, 0, os.SEEK_SET, holder.pid), "the lock after a truncation")
    os.unlink(d / "f")


@case()
def ranges_do_not_move_with_the_end(d: Path) -> None:
    """A range that was counted from the end stays where it was when the file grows."""
    other = Peer()
    theirs = other(os.open, put(d / "f", bytes(100)), os.O_RDWR)
    with opened(d / "f", os.O_RDWR) as f:
        lock(f, WRITE, -10, 10, os.SEEK_END)
        os.pwrite(f, bytes(100), 100)
        same(other(shape, theirs), "w90+10", "locks")
        lock(f, WRITE, 0, 0, os.SEEK_END)
        os.ftruncate(f, 10)
        same(other(shape, theirs), "w90+10 w200+0", "locks beyond the new end")
