"""Locks of host processes: the owners that the FUSE protocol names by number.

A lock request of the host says who owns the lock with a 64-bit number: for a record lock (fcntl)
one that stands for the process, for an flock one that stands for the open file. `lockf` wants an
object, compared by identity. `HostLocks` keeps the objects: made with the owner's first lock, gone
with its last, so that the table is as large as what is locked::

    (number, posix or flock) -> HostOwner -> the vnodes on which it has locks, each referenced
    open file -> the owners whose locks came through it

The protocol tells when locks end that nobody released: FLUSH carries the owner of record locks (a
process closed a descriptor of the file: all its record locks on it go), RELEASE that of an flock.
Locks that belong to an open file but are record locks (F_OFD_SETLK) have an owner that neither
names; they end with the RELEASE of the file they came through. Both are called for every close, so
a file without locks must cost nothing: one or two looks into tables. A server that answers opens
with "no flush at close" cuts these releases off, so it must not do that where record locks are
served.

The numbers of the host's lock types are turned round here: F_RDLCK 0, F_WRLCK 1, F_UNLCK 2; a range
ends with its last byte, 2**63 - 1 is "to the end, wherever that is".

Counterpart: none; fuse_lk_in and fuse_file_lock (linux/fuse.h), p_leader and fp as owners in
    kern_fcntl and sys_flock (kern/kern_descrip.c).
Differs from DragonFly: record locks are counted to the user who opened the file (or the one the
    caller names), not to a process. As there, record locks and flocks conflict with each other
    (the host's own file systems keep them apart), and a deadlock is noticed on one file only.
Token/lock order: none; plain functions. A lock that must be waited for raises `Block`.
Invariants: an owner with locks is in the table; one without is there only while its flock is given
    up for an upgrade that waits or was interrupted, until its RELEASE; every vnode an owner names
    is referenced once; `gone` leaves both tables empty (`check`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from dfuser.libkern.errno import EINVAL, ENOLCK, KKASSERT, KError
from dfuser.libkern.fcntl import (
    F_GETLK,
    F_POSIX,
    F_RDLCK,
    F_SETLK,
    F_UNLCK,
    F_WAIT,
    F_WRLCK,
)
from dfuser.lwkt.block import Block
from dfuser.vfs.lockf import OFF_MAX, Flock, Lockf, PosixLocks
from dfuser.vfs.syscalls import kern_advlock

if TYPE_CHECKING:
    from dfuser.vfs.file import File
    from dfuser.vfs.vnode import Vnode

#: Lock types of Linux (asm-generic/fcntl.h).
LINUX_F_RDLCK: Final = 0
LINUX_F_WRLCK: Final = 1
LINUX_F_UNLCK: Final = 2

_FROM_LINUX: Final = (F_RDLCK, F_WRLCK, F_UNLCK)

#: Owners one connection may have, unless `vfs.fuse.lock_owners_limit` says otherwise.
OWNERS_MAX: Final = 65_536


class HostOwner:
    """One owner of locks on the host; a `lockf.LockOwner`.

    Attributes:
        number: the protocol's name for it.
        flock: whether it is an open file, not a process.
        pid: the host's process, the one that asked first.
        files: the vnodes on which it has locks, each with the open file the last one came through.
    """

    __slots__ = ("files", "flock", "locks", "number", "pid", "posixlock_limit", "posixlocks", "uid")

    def __init__(self, number: int, flock: bool, pid: int, uid: int, locks: PosixLocks) -> None:
        self.number = number
        self.flock = flock
        self.pid = pid
        self.uid = uid
        self.posixlocks = 0
        #: The host's processes have no RLIMIT_POSIXLOCKS.
        self.posixlock_limit = -1
        self.locks: PosixLocks | None = locks
        self.files: dict[Vnode, File] = {}

    def __repr__(self) -> str:
        """Kind, number and process."""
        kind = "flock" if self.flock else "posix"
        return f"<HostOwner {kind} {self.number:#x} pid={self.pid} files={len(self.files)}>"


class LockReply(NamedTuple):
    """The answer to a getlk, in the host's terms."""

    start: int
    end: int
    type: int
    pid: int
    """The host's process that holds it; 0 when nobody does, or it is an open file's."""


class HostLocksStatistics(NamedTuple):
    """What `HostLocks.statistics` returns; all but the first two count since the connection."""

    owners: int
    files: int
    requests: int
    waits: int
    refused: int
    flushed: int


class HostLocks:
    """The lock owners of one connection.

    Args:
        locks: the kernel's count of record locks a user (kern.maxposixlocksperuid).
    """

    def __init__(self, locks: PosixLocks) -> None:
        self.locks = locks
        self.limit = OWNERS_MAX
        self.owners: dict[tuple[int, bool], HostOwner] = {}
        self.opened: dict[File, dict[HostOwner, None]] = {}
        self.requests = 0
        self.waits = 0
        self.refused = 0
        self.flushed = 0

    def _count(self) -> int:
        return len(self.owners)

    # --- requests --------------------------------------------------------------------------

    def getlk(
        self, file: File, owner: int, start: int, end: int, type_: int, pid: int, flock: bool
    ) -> LockReply:
        """Which lock would be in the way of this one.

        Args:
            file: the open file.
            owner: the protocol's number.
            start: first byte.
            end: last byte, `OFF_MAX` for "to the end".
            type_: LINUX_F_RDLCK or LINUX_F_WRLCK.
            pid: the host's process.
            flock: whether the owner is an open file.

        Returns:
            The lock in the way, or the range asked for with type LINUX_F_UNLCK.

        Raises:
            KError: EINVAL, EBADF.
        """
        self.requests += 1
        want = _flock(start, end, type_)
        who = self.owners.get((owner, flock))
        if who is None:
            who = HostOwner(owner, flock, pid, file.cred.uid, self.locks)
        found = kern_advlock(file, who, F_GETLK, want, 0 if flock else F_POSIX)
        if found is None or found.type == F_UNLCK:
            return LockReply(start, end, LINUX_F_UNLCK, 0)
        last = found.start + found.len - 1 if found.len else OFF_MAX
        return LockReply(found.start, last, _FROM_LINUX.index(found.type), max(found.pid, 0))

    def setlk(
        self,
        file: File,
        owner: int,
        start: int,
        end: int,
        type_: int,
        pid: int,
        flock: bool,
        wait: bool,
        uid: int | None = None,
    ) -> None:
        """Take, change or release a lock.

        Args:
            file: the open file.
            owner: the protocol's number.
            start: first byte.
            end: last byte, `OFF_MAX` for "to the end".
            type_: LINUX_F_RDLCK, LINUX_F_WRLCK or LINUX_F_UNLCK.
            pid: the host's process.
            flock: whether the owner is an open file.
            wait: wait for a lock that is in the way; a signal ends the wait at the edge.
            uid: to whom a record lock counts; None is who opened the file.

        Raises:
            KError: EAGAIN, EDEADLK, EINVAL, EBADF; ENOLCK, the user has too many record locks, or
                the connection too many owners.
            Block: another lock is in the way, and ``wait``; nothing has changed.
        """
        self.requests += 1
        want = _flock(start, end, type_)
        who = self.owners.get((owner, flock))
        if who is None:
            if want.type == F_UNLCK:
                return
            if len(self.owners) >= self.limit:
                self.refused += 1
                raise KError(ENOLCK)
            by = file.cred.uid if uid is None else uid
            who = HostOwner(owner, flock, pid, by, self.locks)
        flags = (0 if flock else F_POSIX) | (F_WAIT if wait else 0)
        try:
            kern_advlock(file, who, F_SETLK, want, flags)
        except Block:
            self.waits += 1
            raise
        self._note(who, file.vp, file)

    def flush(self, file: File, owner: int) -> None:
        """A process closed a descriptor of the file: its record locks on it go."""
        who = self.owners.get((owner, False))
        if who is not None and file.vp in who.files:
            self.flushed += 1
            self._drop(who, file.vp)

    def release(self, file: File, owner: int = 0, flock: bool = False) -> None:
        """The last descriptor of an open file is closed; call it for every RELEASE.

        Args:
            file: the open file, before it is closed here.
            owner: the protocol's number, where ``flock`` is true.
            flock: whether the request says that an flock ends (FUSE_RELEASE_FLOCK_UNLOCK).
        """
        who = self.owners.get((owner, True)) if flock else None
        if who is not None and file.vp in who.files:
            self.flushed += 1
            self._drop(who, file.vp)
        for other in list(self.opened.get(file, ())):
            self.flushed += 1
            self._drop(other, file.vp)

    def gone(self) -> None:
        """The connection has ended: every lock goes. Waiters are ended by their edge."""
        for who in list(self.owners.values()):
            for vp in list(who.files):
                self._drop(who, vp)

    # --- the table -------------------------------------------------------------------------

    def _drop(self, who: HostOwner, vp: Vnode) -> None:
        """Release everything of one owner on one file; a dead file has no locks any more.

        The locks are taken from the file directly: this must work also where the file system would
        refuse the request.
        """
        lockf: Lockf | None = vp.lockf
        if lockf is not None:
            lockf.setlock(who, F_UNLCK, 0 if who.flock else F_POSIX, 0, OFF_MAX)
        self._note(who, vp, None)

    def _note(self, who: HostOwner, vp: Vnode, file: File | None) -> None:
        """Keep the tables in step with what an owner has on a vnode after a change.

        Args:
            who: the owner.
            vp: the vnode.
            file: the open file the change came through, None for a release.
        """
        lockf: Lockf | None = vp.lockf
        before = who.files.get(vp)
        if file is not None and lockf is not None and lockf.held_by(who):
            if before is None:
                vp.ref()
                self.owners[who.number, who.flock] = who
            elif before is not file:
                self._forget(before, who)
            who.files[vp] = file
            self.opened.setdefault(file, {})[who] = None
        elif before is not None:
            self._forget(before, who)
            del who.files[vp]
            if not who.files:
                del self.owners[who.number, who.flock]
            vp.rele()

    def _forget(self, file: File, who: HostOwner) -> None:
        """No lock of this owner counts as coming through this open file any longer."""
        through = self.opened[file]
        del through[who]
        if not through:
            del self.opened[file]

    def check(self) -> None:
        """Panic unless tables and locks agree: see the invariants."""
        pairs = set()
        for (number, flock), who in self.owners.items():
            KKASSERT((who.number, who.flock) == (number, flock), "hostlocks: wrong key")
            KKASSERT(who.files, "hostlocks: owner without files")
            count = 0
            for vp, file in who.files.items():
                KKASSERT(file.vp is vp and who in self.opened[file], "hostlocks: wrong open file")
                pairs.add((file, who))
                ranges = vp.lockf.ranges if vp.lockf is not None else ()
                count += sum(r.owner is who for r in ranges if r.flags & F_POSIX)
            KKASSERT(count == who.posixlocks, "hostlocks: record locks miscounted")
        through = {(file, who) for file, owners in self.opened.items() for who in owners}
        KKASSERT(pairs == through, "hostlocks: tables differ")

    def statistics(self) -> HostLocksStatistics:
        """Sizes now and counters since the connection began."""
        return HostLocksStatistics(
            owners=len(self.owners),
            files=sum(len(who.files) for who in self.owners.values()),
            requests=self.requests,
            waits=self.waits,
            refused=self.refused,
            flushed=self.flushed,
        )


def _flock(start: int, end: int, type_: int) -> Flock:
    """A range of the host as ours.

    Raises:
        KError: EINVAL, no such type, or no such range.
    """
    if not 0 <= type_ < len(_FROM_LINUX) or not 0 <= start <= end <= OFF_MAX:
        raise KError(EINVAL)
    length = 0 if end == OFF_MAX else end - start + 1
    return Flock(_FROM_LINUX[type_], start, length)
