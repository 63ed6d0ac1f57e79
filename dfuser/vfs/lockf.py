"""Advisory locks on byte ranges: fcntl(2) record locks and flock(2).

A lock keeps nobody from reading or writing; it keeps others from taking a conflicting
lock. Two locks conflict when they overlap, have different owners and one of them is for
writing. The owner of a record lock is a process (F_POSIX), the owner of an flock is an
open file, and both live in one list, so they do conflict with each other.

A vnode's `Lockf` holds the granted ranges in the order of their start, and the blocked
requests in the order they came. A new lock of an owner replaces whatever that owner held
in the range: what sticks out at either side is kept, what touches with the same type is
joined::

    held        [ read  0 ............. 99 ]
    write 20-29 [ read 0..19 ][ write 20..29 ][ read 30..99 ]
    unlock 0-24              [ write 25..29 ][ read 30..99 ]

Whoever unlocks or turns a write lock into a read lock wakes every overlapping request;
each tries again, the rest go back to sleep.

**Deadlock** is noticed in one case only, as in DragonFly: a record lock would wait for an
owner that itself waits *on the same file* (EDEADLK). A circle over two files is not found
and sleeps until a signal.

Counterpart: struct lockf, struct lockf_range (sys/lockf.h), kern/kern_lockf.c.
Differs from DragonFly: the request that must wait raises `Block` and is put into the
    blocked list by the one who waits; an flock that upgrades gives its shared lock up at
    that moment. Ranges of one owner that touch are always joined, also when another
    owner's range stands between them in the list.
Token/lock order: none. A request decides and commits without suspending.
Invariants: `Lockf.check` states them. The number of ranges is bounded by
    kern.maxposixlocksperuid for record locks of ordinary users; an flock is one per open
    file.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from dfuser.libkern.errno import EAGAIN, EDEADLK, EINVAL, ENOLCK, KKASSERT, KError
from dfuser.libkern.fcntl import (
    F_GETLK,
    F_NOEND,
    F_POSIX,
    F_RDLCK,
    F_SETLK,
    F_UNLCK,
    F_WAIT,
    F_WRLCK,
    SEEK_CUR,
    SEEK_END,
    SEEK_SET,
)
from dfuser.libkern.param import PCATCH
from dfuser.libkern.sysctl import INT, RW, Sysctl
from dfuser.lwkt.block import Block
from dfuser.lwkt.synch import tsleep, wakeup

from .vnode import V

if TYPE_CHECKING:
    from .vnode import Vnode

OFF_MAX: Final = (1 << 63) - 1

#: Four for each process the system may have; a machine of 2 GiB has maxusers 256 and maxproc
#: 20 + 16 * maxusers (kern/subr_param.c).
MAXPOSIXLOCKSPERUID: Final = 4 * (20 + 16 * 256)

_START: Final = attrgetter("start")


class LockOwner(Protocol):
    """What a lock must know of its owner; compared by identity.

    ``pid`` is -1 for an open file whose process nobody knows. ``locks`` is None where record
    locks are not counted (the kernel itself).
    """

    pid: int
    uid: int
    posixlocks: int
    """Record locks counted to this process; kept by `PosixLocks`."""
    posixlock_limit: int
    """RLIMIT_POSIXLOCKS of the process; -1 is no limit."""
    locks: PosixLocks | None


class PosixLocks:
    """How many record locks each user has, and may have.

    Counterpart: ui_posixlocks of struct uidinfo, lf_count_change, lf_count_adjust.
    """

    sysctl_max = Sysctl(
        "kern.maxposixlocksperuid", "Maximum number of POSIX-type locks per user id",
        attr="maximum", kind=INT, flags=RW, minimum=-1,
    )  # fmt: skip

    def __init__(self, maximum: int = MAXPOSIXLOCKSPERUID) -> None:
        self.maximum = maximum
        self.counts: dict[int, int] = {}
        self.refused = 0

    def may_add(self, owner: LockOwner) -> bool:
        """Whether the owner's user may have one more; root always may."""
        limits = [n for n in (owner.posixlock_limit, self.maximum) if n >= 0]
        allowed = not owner.uid or not limits or self.counts.get(owner.uid, 0) < min(limits)
        self.refused += not allowed
        return allowed

    def change(self, owner: LockOwner, diff: int) -> None:
        """Count locks that were added (or taken away)."""
        owner.posixlocks += diff
        self._count(owner.uid, diff)

    def adjust(self, owner: LockOwner, uid: int) -> None:
        """Move the locks of a process that gets another user id to that user.

        Counterpart: lf_count_adjust, called on both sides of the change.
        """
        self._count(owner.uid, -owner.posixlocks)
        self._count(uid, owner.posixlocks)

    def _count(self, uid: int, diff: int) -> None:
        """Change one user's count; a user without locks is forgotten."""
        count = self.counts.get(uid, 0) + diff
        KKASSERT(count >= 0, "lockf: negative count")
        if count:
            self.counts[uid] = count
        else:
            self.counts.pop(uid, None)

    def statistics(self) -> PosixLocksStatistics:
        """Locks counted, users who have some, requests refused."""
        return PosixLocksStatistics(sum(self.counts.values()), len(self.counts), self.refused)


class PosixLocksStatistics(NamedTuple):
    """Record locks of all files of a kernel."""

    locks: int
    users: int
    refused: int


class Flock:
    """A lock as a program describes it. Counterpart: struct flock (sys/fcntl.h).

    ``len`` 0 reaches to the end of the file, wherever that will be.
    """

    __slots__ = ("len", "pid", "start", "type", "whence")

    def __init__(
        self,
        type: int,  # noqa: A002 - DragonFly's l_type
        start: int = 0,
        len: int = 0,  # noqa: A002 - DragonFly's l_len
        whence: int = SEEK_SET,
        pid: int = 0,
    ) -> None:
        self.type = type
        self.start = start
        self.len = len
        self.whence = whence
        self.pid = pid

    def bounds(self, size: int) -> tuple[int, int, int]:
        """(first byte, last byte, F_NOEND or 0) for a file of ``size`` bytes.

        With SEEK_CUR the caller has added the offset to ``start`` already.

        Raises:
            KError: EINVAL, negative, overflowing or of unknown origin.
        """
        if self.whence not in (SEEK_SET, SEEK_CUR, SEEK_END):
            raise KError(EINVAL)
        start = self.start + (size if self.whence == SEEK_END else 0)
        end = start + self.len - 1 if self.len else OFF_MAX
        if start < 0 or self.len < 0 or end > OFF_MAX:
            raise KError(EINVAL)
        return start, end, 0 if self.len else F_NOEND


class LockfRange:
    """A granted lock, or a request that waits. Counterpart: struct lockf_range (sys/lockf.h)."""

    __slots__ = ("end", "flags", "owner", "start", "type")

    def __init__(self, owner: Any, type_: int, flags: int, start: int, end: int) -> None:
        self.owner = owner
        self.type = type_
        self.flags = flags
        self.start = start
        self.end = end

    def overlaps(self, start: int, end: int) -> bool:
        """Whether any byte is common. Counterpart: lf_overlap."""
        return self.start <= end and start <= self.end

    def conflicts(self, owner: Any, type_: int, start: int, end: int) -> bool:
        """Whether this granted lock keeps another request from being granted."""
        return (
            self.owner is not owner
            and F_WRLCK in (type_, self.type)
            and type_ != F_UNLCK
            and self.overlaps(start, end)
        )

    def joins(self, other: LockfRange) -> bool:
        """Whether both say the same and leave no byte between them. Counterpart: lf_match."""
        return (
            self.type == other.type
            and not (self.flags ^ other.flags) & F_POSIX
            and self.start <= other.end + 1
            and other.start <= self.end + 1
        )

    def part(self, start: int, end: int) -> LockfRange:
        """The same lock on some of its bytes."""
        flags = self.flags if end == self.end else self.flags & ~F_NOEND
        return LockfRange(self.owner, self.type, flags, start, end)

    def __repr__(self) -> str:
        """Type and bytes."""
        kind = {F_RDLCK: "read", F_WRLCK: "write"}.get(self.type, "unlock")
        return f"<LockfRange {kind} {self.start}..{self.end}>"


class LockfStatistics(NamedTuple):
    """Locks of one file."""

    ranges: int
    blocked: int


class Lockf:
    """The locks of one file. Counterpart: struct lockf (sys/lockf.h)."""

    __slots__ = ("blocked", "ranges")

    def __init__(self) -> None:
        self.ranges: list[LockfRange] = []
        self.blocked: list[LockfRange] = []

    def blocker(self, owner: Any, type_: int, start: int, end: int) -> LockfRange | None:
        """The first granted lock that is in the way of a request, or None."""
        for held in self.ranges:
            if held.conflicts(owner, type_, start, end):
                return held
        return None

    def setlock(self, owner: LockOwner, type_: int, flags: int, start: int, end: int) -> None:
        """Take, change or (F_UNLCK) release a range at once. Counterpart: lf_setlock.

        Raises:
            KError: EAGAIN, a conflicting lock without F_WAIT; EDEADLK, see the head of this
                file; ENOLCK, the user has too many.
            Block: a conflicting lock, with F_WAIT.
        """
        held = self.blocker(owner, type_, start, end)
        if held is not None:
            if not flags & F_WAIT:
                raise KError(EAGAIN)
            if self._deadlocks(held, flags):
                raise KError(EDEADLK)
            raise Block(_Waiter(self, owner, type_, flags, start, end).wait, "lockf")
        mine = [r for r in self.ranges if r.owner is owner and r.overlaps(start, end)]
        if flags & F_POSIX and owner.locks is not None:
            worst = self._worst_increase(mine, type_, flags, start, end)
            if worst and not owner.locks.may_add(owner):
                raise KError(ENOLCK)
        self._replace(owner, mine, LockfRange(owner, type_, flags & ~F_WAIT, start, end))
        if any(type_ == F_UNLCK or (type_ == F_RDLCK and r.type == F_WRLCK) for r in mine):
            self._wakeup(start, end)

    def getlock(self, owner: Any, fl: Flock, start: int, end: int) -> Flock:
        """Describe the first lock in the way, or answer F_UNLCK. Counterpart: lf_getlock."""
        held = self.blocker(owner, fl.type, start, end)
        if held is None:
            return Flock(F_UNLCK, fl.start, fl.len, fl.whence, fl.pid)
        length = 0 if held.flags & F_NOEND else held.end - held.start + 1
        pid = held.owner.pid if held.owner is not None and held.flags & F_POSIX else -1
        return Flock(held.type, held.start, length, SEEK_SET, pid)

    def held_by(self, owner: Any) -> bool:
        """Whether an owner has any lock here."""
        return any(r.owner is owner for r in self.ranges)

    def purge(self) -> None:
        """Drop every lock, for a file that its file system no longer stands behind.

        Counts are given back and whoever waits tries again, and finds the dead file.
        """
        for held in self.ranges:
            if held.flags & F_POSIX and held.owner.locks is not None:
                held.owner.locks.change(held.owner, -1)
        self.ranges = []
        self._wakeup(0, OFF_MAX)

    def _deadlocks(self, held: LockfRange, flags: int) -> bool:
        """Whether the owner in the way is itself waiting on this file."""
        return bool(flags & F_POSIX) and any(b.owner is held.owner for b in self.blocked)

    @staticmethod
    def _worst_increase(
        mine: list[LockfRange], type_: int, flags: int, start: int, end: int
    ) -> bool:
        """Whether the request may leave its owner with more ranges than before.

        Releasing everything it touches never does; close(2) depends on that.
        """
        if not mine:
            return type_ != F_UNLCK
        first, last = mine[0], mine[-1]
        if type_ == F_UNLCK and first.start >= start and last.end <= end:
            return False
        probe = LockfRange(first.owner, type_, flags, start, end)
        return not (first.joins(probe) or last.joins(probe))

    def _replace(self, owner: LockOwner, mine: list[LockfRange], new: LockfRange) -> None:
        """Put the new range in place of the owner's overlapping ones, clipping and joining."""
        gone = set(mine)
        kept = []
        for old in mine:
            if old.start < new.start:
                kept.append(old.part(old.start, new.start - 1))
            if old.end > new.end:
                kept.append(old.part(new.end + 1, old.end))
        if new.type != F_UNLCK:
            touching = [r for r in self.ranges if r.owner is owner and r not in gone]
            for near in [r for r in (*kept, *touching) if r.joins(new)]:
                new.start = min(new.start, near.start)
                new.flags |= near.flags & F_NOEND if near.end > new.end else 0
                new.end = max(new.end, near.end)
                gone.add(near)
            kept.append(new)
        added = [r for r in kept if r not in gone]
        if owner.locks is not None:
            diff = sum(1 for r in added if r.flags & F_POSIX)
            diff -= sum(1 for r in self.ranges if r in gone and r.flags & F_POSIX)
            if diff:
                owner.locks.change(owner, diff)
        self.ranges = sorted([r for r in self.ranges if r not in gone] + added, key=_START)

    def _wakeup(self, start: int, end: int) -> None:
        """Let every overlapping request try again. Counterpart: lf_wakeup."""
        woken = [b for b in self.blocked if b.overlaps(start, end)]
        if woken:
            self.blocked = [b for b in self.blocked if b not in woken]
            for request in woken:
                wakeup(request)

    def check(self) -> None:
        """Panic unless the list is in order.

        Sorted by start; no two conflicting locks are granted; no two ranges of an owner
        overlap or touch with the same type.
        """
        ranges = self.ranges
        KKASSERT([r.start for r in ranges] == sorted(r.start for r in ranges), "lockf: unsorted")
        for i, a in enumerate(ranges):
            for b in ranges[i + 1 :]:
                if a.owner is b.owner:
                    KKASSERT(not a.overlaps(b.start, b.end), "lockf: owner overlaps himself")
                    KKASSERT(not a.joins(b), "lockf: ranges not joined")
                else:
                    clash = a.conflicts(b.owner, b.type, b.start, b.end)
                    KKASSERT(not clash, "lockf: conflicting locks granted")

    def statistics(self) -> LockfStatistics:
        """How many locks are granted and how many requests wait."""
        return LockfStatistics(len(self.ranges), len(self.blocked))


class _Waiter:
    """One round of waiting for a conflicting lock to change."""

    __slots__ = ("_flags", "_lockf", "_request")

    def __init__(
        self, lockf: Lockf, owner: LockOwner, type_: int, flags: int, start: int, end: int
    ) -> None:
        self._lockf = lockf
        self._flags = flags
        self._request = LockfRange(owner, type_, flags & ~F_WAIT, start, end)

    async def wait(self) -> int:
        """Sleep in the blocked list until a lock in the range is released or lowered.

        Returns:
            0 to try again, EINTR or ERESTART for a signal, EDEADLK when somebody made
            this wait hopeless before it began.
        """
        lockf, want = self._lockf, self._request
        held = lockf.blocker(want.owner, want.type, want.start, want.end)
        if held is None:
            return 0
        if lockf._deadlocks(held, self._flags):
            return EDEADLK
        if not self._flags & F_POSIX and want.type == F_WRLCK:
            lockf.setlock(want.owner, F_UNLCK, 0, want.start, want.end)
        lockf.blocked.append(want)
        try:
            return await tsleep(want, PCATCH, "lockf", 0)
        finally:
            if want in lockf.blocked:
                lockf.blocked.remove(want)


def lf_advlock(
    vp: Vnode, owner: LockOwner, op: int, fl: Flock, flags: int, size: int
) -> Flock | None:
    """Serve a VOP_ADVLOCK from the locks kept with the vnode.

    Args:
        vp: the file; its list is made with the first lock.
        owner: a process with F_POSIX in ``flags``, else an open file.
        op: F_SETLK, F_UNLCK or F_GETLK.
        fl: range and type.
        flags: F_POSIX, F_WAIT.
        size: of the file, for SEEK_END.

    Returns:
        For F_GETLK the lock in the way (or one of type F_UNLCK), else None.

    Raises:
        KError: EINVAL, EAGAIN, EDEADLK, ENOLCK.
        Block: the request must wait.
    """
    start, end, noend = fl.bounds(size)
    lockf: Lockf | None = vp.lockf
    if op == F_GETLK:
        return (lockf or Lockf()).getlock(owner, fl, start, end)
    if op not in (F_SETLK, F_UNLCK):
        raise KError(EINVAL)
    if lockf is None:
        if fl.type == F_UNLCK:
            return None
        lockf = vp.lockf = Lockf()
    lockf.setlock(owner, fl.type, flags | noend, start, end)
    vp.flag |= V.MAYHAVELOCKS
    return None
