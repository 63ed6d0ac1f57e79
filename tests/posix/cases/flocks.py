"""flock(2): whole-file locks that belong to an open file description."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path

from tests.posix.case import case, eventually, refuse, same, table, true
from tests.posix.locking import READ, UNLOCK, WRITE, ask, lock, locked
from tests.posix.peer import Peer, in_thread
from tests.posix.tools import folder, opened, put

SHARED, EXCLUSIVE, RELEASE, AT_ONCE = (
    int(fcntl.LOCK_SH), int(fcntl.LOCK_EX), int(fcntl.LOCK_UN), int(fcntl.LOCK_NB),
)  # fmt: skip
KINDS = {"shared": SHARED, "exclusive": EXCLUSIVE}
Party = tuple[Peer, int]


def flocked(descriptor: int, kind: int) -> bool:
    """Try to lock; False when another description's lock is in the way."""
    try:
        fcntl.flock(descriptor, kind | AT_ONCE)
    except BlockingIOError:
        return False
    return True


def _state(path: Path) -> str:
    """What stands on the file, seen through a description of its own: free, shared, exclusive."""
    with opened(path, os.O_RDONLY) as f:
        if flocked(f, EXCLUSIVE):
            return "free"
        return "shared" if flocked(f, SHARED) else "exclusive"


def _party(path: Path) -> Party:
    peer = Peer()
    return peer, peer(os.open, path, os.O_RDWR)


def _parties(path: Path, count: int) -> list[Party]:
    put(path, bytes(100))
    return [_party(path) for _ in range(count)]


def _waits(party: Party, kind: int) -> None:
    party[0].waits(fcntl.flock, party[1], kind)


@table({f"{a}-{b}": (KINDS[a], KINDS[b]) for a in KINDS for b in KINDS})
def conflicts(d: Path, first: int, second: int) -> None:
    """Only shared goes with shared, in one process as between two."""
    other, theirs = _parties(d / "f", 1)[0]
    wanted = first == second == SHARED
    with opened(d / "f", os.O_RDWR) as f, opened(d / "f", os.O_RDWR) as g:
        fcntl.flock(f, first)
        same(flocked(g, second), wanted, "another description of the process")
        fcntl.flock(g, RELEASE)
        same(other(flocked, theirs, second), wanted, "another process")
        other(fcntl.flock, theirs, RELEASE)
        fcntl.flock(f, RELEASE)
        same(other(flocked, theirs, EXCLUSIVE), True, "after the release")


@table({"read": (os.O_RDONLY,), "write": (os.O_WRONLY,), "append": (os.O_WRONLY | os.O_APPEND,)})
def open_modes(d: Path, flags: int) -> None:
    """flock does not ask how the file is open: each mode takes each lock."""
    with opened(put(d / "f"), flags) as f:
        for kind, want in ((SHARED, "shared"), (EXCLUSIVE, "exclusive"), (RELEASE, "free")):
            fcntl.flock(f, kind)
            same(_state(d / "f"), want, "state")


@case()
def bad_requests(d: Path) -> None:
    """Unknown operations are EINVAL; O_PATH and closed descriptors are EBADF."""
    with opened(put(d / "f"), os.O_RDWR) as f:
        for operation in (0, 3, SHARED | EXCLUSIVE | RELEASE, 64 | 128):
            refuse(errno.EINVAL, fcntl.flock, f, operation)
        fcntl.flock(f, RELEASE)
        same(_state(d / "f"), "free", "state")
    with opened(d / "f", os.O_PATH) as f:
        refuse(errno.EBADF, fcntl.flock, f, SHARED)
    refuse(errno.EBADF, fcntl.flock, f, SHARED)


@case()
def conversions(d: Path) -> None:
    """One description changes its own lock either way, and taking it again is no conflict."""
    put(d / "f")
    with opened(d / "f", os.O_RDWR) as f:
        for kind in (SHARED, EXCLUSIVE, EXCLUSIVE, SHARED, SHARED, EXCLUSIVE):
            true(flocked(f, kind), "its own lock is in the way")
            same(_state(d / "f"), "shared" if kind == SHARED else "exclusive", "state")
        fcntl.flock(f, RELEASE)
        fcntl.flock(f, RELEASE)
        same(_state(d / "f"), "free", "state")


@case()
def downgrade_lets_readers_in(d: Path) -> None:
    """From exclusive to shared: those who wait for shared get in, who waits for exclusive not."""
    holder, reader, writer = _parties(d / "f", 3)
    holder[0](fcntl.flock, holder[1], EXCLUSIVE)
    _waits(reader, SHARED)
    _waits(writer, EXCLUSIVE)
    holder[0](fcntl.flock, holder[1], SHARED)
    reader[0].reply()
    true(not writer[0].answered(0.05), "exclusive among shared")
    holder[0](fcntl.flock, holder[1], RELEASE)
    true(not writer[0].answered(0.05), "exclusive beside the last reader")
    reader[0](fcntl.flock, reader[1], RELEASE)
    writer[0].reply()


@case()
def upgrade_waits(d: Path) -> None:
    """From shared to exclusive waits for the other readers, and gets in when they leave."""
    one, two = _parties(d / "f", 2)
    for peer, file in (one, two):
        peer(fcntl.flock, file, SHARED)
    _waits(one, EXCLUSIVE)
    two[0](fcntl.flock, two[1], RELEASE)
    one[0].reply()
    same(_state(d / "f"), "exclusive", "state")


@case()
def two_upgrades_are_no_deadlock(d: Path) -> None:
    """An upgrade gives its shared lock up before it waits: two upgrades get in in turn."""
    one, two = _parties(d / "f", 2)
    for peer, file in (one, two):
        peer(fcntl.flock, file, SHARED)
    _waits(one, EXCLUSIVE)
    two[0].start(fcntl.flock, two[1], EXCLUSIVE)
    eventually(lambda: one[0].answered() or two[0].answered(), "one of the two gets in")
    first, second = (one, two) if one[0].answered() else (two, one)
    first[0].reply()
    true(not second[0].answered(0.05), "two exclusive locks")
    first[0](fcntl.flock, first[1], RELEASE)
    second[0].reply()


def _release(peer: Peer, file: int) -> None:
    peer(fcntl.flock, file, RELEASE)


def _close(peer: Peer, file: int) -> None:
    peer(os.close, file)


def _replace(peer: Peer, file: int) -> None:
    peer(os.dup2, 0, file)


def _exit(peer: Peer, file: int) -> None:
    same(peer.end(), 0, "exit status")


def _kill(peer: Peer, file: int) -> None:
    same(peer.kill(), -signal.SIGKILL, "exit status")


ENDS: dict[str, tuple[Callable[[Peer, int], None], int, int]] = {
    f"{name}-{held}-{wanted}": (end, KINDS[held], KINDS[wanted])
    for name, end in {
        "release": _release, "close": _close, "dup2-over": _replace, "exit": _exit, "kill": _kill,
    }.items()
    for held, wanted in (
        ("exclusive", "exclusive"), ("exclusive", "shared"), ("shared", "exclusive"),
    )
}  # fmt: skip


@table(ENDS)
def woken_by(d: Path, end: Callable[[Peer, int], None], held: int, wanted: int) -> None:
    """Who waits gets the lock when it goes, in whatever way it goes."""
    holder, waiter = _parties(d / "f", 2)
    holder[0](fcntl.flock, holder[1], held)
    _waits(waiter, wanted)
    end(*holder)
    waiter[0].reply()
    same(_state(d / "f"), "shared" if wanted == SHARED else "exclusive", "state")


@case()
def copies_are_one_owner(d: Path) -> None:
    """A dup'ed descriptor is not kept out, changes the lock, and drops it."""
    with opened(put(d / "f"), os.O_RDWR) as f:
        copy = os.dup(f)
        fcntl.flock(f, EXCLUSIVE)
        true(flocked(copy, EXCLUSIVE), "its own lock is in the way")
        fcntl.flock(copy, SHARED)
        same(_state(d / "f"), "shared", "after the copy's change")
        os.close(copy)
        same(_state(d / "f"), "shared", "after the copy's close")
        copy = os.dup(f)
        fcntl.flock(copy, RELEASE)
        same(_state(d / "f"), "free", "after the copy's release")
        os.close(copy)


@case()
def children_inherit(d: Path) -> None:
    """A forked child has the same lock: it stays until both have closed, or one releases it."""
    put(d / "f")
    f = os.open(d / "f", os.O_RDWR)
    fcntl.flock(f, EXCLUSIVE)
    child = Peer(inherit=True)
    true(child(flocked, f, EXCLUSIVE), "the parent's lock is in the child's way")
    os.close(f)
    same(_state(d / "f"), "exclusive", "after the parent's close")
    child(fcntl.flock, f, SHARED)
    same(_state(d / "f"), "shared", "after the child's change")
    same(child.end(), 0, "exit status")
    # FUSE tells a server of the last close a moment later.
    eventually(lambda: _state(d / "f") == "free", "the lock goes with the child")


@case()
def child_releases_for_both(d: Path) -> None:
    """LOCK_UN in a child drops the parent's lock."""
    with opened(put(d / "f"), os.O_RDWR) as f:
        fcntl.flock(f, EXCLUSIVE)
        child = Peer(inherit=True)
        child(fcntl.flock, f, RELEASE)
        same(_state(d / "f"), "free", "state")
        same(child.end(), 0, "exit status")


@case()
def other_closes_do_not_matter(d: Path) -> None:
    """Closing another description of the file, or reading it whole, leaves the lock."""
    with opened(put(d / "f", b"abc"), os.O_RDWR) as f:
        fcntl.flock(f, EXCLUSIVE)
        os.close(os.open(d / "f", os.O_RDWR))
        same((d / "f").read_bytes(), b"abc", "bytes")
        in_thread((d / "f").read_bytes)
        same(_state(d / "f"), "exclusive", "state")


@case()
def passed_descriptors(d: Path) -> None:
    """A descriptor sent to another process carries the lock."""
    taker = Peer()
    f = os.open(put(d / "f"), os.O_RDWR)
    fcntl.flock(f, EXCLUSIVE)
    got = taker.hand(f)
    os.close(f)
    same(_state(d / "f"), "exclusive", "after the sender's close")
    true(taker(flocked, got, SHARED), "the taker has another lock")
    taker(os.close, got)
    eventually(lambda: _state(d / "f") == "free", "the lock goes with the last close")


@case()
def program_keeps(d: Path) -> None:
    """The lock lives through exec, as with flock(1), and goes with the program."""
    put(d / "f")
    reader, writer = os.pipe()
    f = os.open(d / "f", os.O_RDWR)
    fcntl.flock(f, EXCLUSIVE)
    actions = [(os.POSIX_SPAWN_DUP2, reader, 0), (os.POSIX_SPAWN_DUP2, f, 9)]
    pid = os.posix_spawn("/bin/cat", ["cat"], {}, file_actions=actions)
    os.close(f)
    os.close(reader)
    same(_state(d / "f"), "exclusive", "while the program runs")
    os.close(writer)
    same(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0, "exit status")
    eventually(lambda: _state(d / "f") == "free", "the lock goes with the program")


@case()
def names_do_not_matter(d: Path) -> None:
    """The lock is the file's: seen through other names, after renames, and without a name."""
    other = Peer()
    with opened(put(d / "f"), os.O_RDWR) as f:
        os.link(d / "f", d / "g")
        theirs = other(os.open, d / "g", os.O_RDWR)
        fcntl.flock(f, EXCLUSIVE)
        same(_state(d / "g"), "exclusive", "through the second name")
        os.unlink(d / "f")
        os.rename(d / "g", d / "h")
        same(_state(d / "h"), "exclusive", "through the new name")
        os.unlink(d / "h")
        same(other(flocked, theirs, SHARED), False, "without a name")
        put(d / "f")
        same(_state(d / "f"), "free", "a new file of the old name")


@case()
def directories(d: Path) -> None:
    """A directory is locked as a file is."""
    with opened(folder(d / "dir"), os.O_RDONLY) as f:
        for kind, want in ((SHARED, "shared"), (EXCLUSIVE, "exclusive"), (RELEASE, "free")):
            fcntl.flock(f, kind)
            same(_state(d / "dir"), want, "state")


@case()
def waiter_is_interrupted(d: Path) -> None:
    """A signal ends the wait with EINTR; waiting again works, and nothing is left behind."""
    holder, waiter = _parties(d / "f", 2)
    waiter[0].on_signal(signal.SIGUSR1)
    holder[0](fcntl.flock, holder[1], EXCLUSIVE)
    for kind in (EXCLUSIVE, SHARED, EXCLUSIVE):
        _waits(waiter, kind)
        waiter[0].send(signal.SIGUSR1)
        refuse(errno.EINTR, waiter[0].reply)
    holder[0](fcntl.flock, holder[1], RELEASE)
    same(_state(d / "f"), "free", "after the interruptions")
    waiter[0](fcntl.flock, waiter[1], EXCLUSIVE)


@case()
def killed_waiters_leave_nothing(d: Path) -> None:
    """Killed waiters take no lock with them and do not stop the next."""
    holder, first, second = _parties(d / "f", 3)
    holder[0](fcntl.flock, holder[1], EXCLUSIVE)
    _waits(first, EXCLUSIVE)
    _waits(second, EXCLUSIVE)
    same(first[0].kill(), -signal.SIGKILL, "exit status")
    holder[0](fcntl.flock, holder[1], RELEASE)
    second[0].reply()
    second[0](fcntl.flock, second[1], RELEASE)
    same(_state(d / "f"), "free", "state")


@case(limit=30.0)
def every_waiter_gets_a_turn(d: Path) -> None:
    """Ten waiters all get an exclusive lock, one at a time."""
    holder, *waiting = _parties(d / "f", 11)
    holder[0](fcntl.flock, holder[1], EXCLUSIVE)
    for waiter in waiting:
        _waits(waiter, EXCLUSIVE)
    holder[0](fcntl.flock, holder[1], RELEASE)
    while waiting:
        eventually(lambda: any(w[0].answered() for w in waiting), "somebody gets the lock")
        inside = [waiter for waiter in waiting if waiter[0].answered()]
        same(len(inside), 1, "exclusive locks at once")
        inside[0][0].reply()
        waiting.remove(inside[0])
        inside[0][0](fcntl.flock, inside[0][1], RELEASE)


@table(
    {
        "exclusive-write": (EXCLUSIVE, WRITE),
        "exclusive-read": (EXCLUSIVE, READ),
        "shared-write": (SHARED, WRITE),
    }
)
def no_business_of_record_locks(d: Path, whole: int, kind: int) -> None:
    """flock and fcntl locks do not see each other, between two processes and within one."""
    one, two = _parties(d / "f", 2)
    one[0](fcntl.flock, one[1], whole)
    same(two[0](ask, two[1], kind), None, "F_GETLK under a flock of another process")
    same(two[0](locked, two[1], kind), True, "F_SETLK under a flock of another process")
    two[0](lock, two[1], UNLOCK)
    one[0](fcntl.flock, one[1], RELEASE)
    two[0](lock, two[1], WRITE)
    same(one[0](flocked, one[1], EXCLUSIVE), True, "flock under another's record lock")
    same(two[0](flocked, two[1], SHARED), False, "a flock against a flock")


@case()
def both_kinds_in_one_process(d: Path) -> None:
    """A program that takes both kinds, as mailers do, is not in its own way."""
    with opened(put(d / "f", bytes(100)), os.O_RDWR) as f:
        fcntl.flock(f, EXCLUSIVE)
        true(locked(f, WRITE), "its own flock keeps the record lock out")
        fcntl.flock(f, RELEASE)
        lock(f, WRITE)
        true(flocked(f, EXCLUSIVE), "its own record lock keeps the flock out")
        lock(f, UNLOCK)
        same(_state(d / "f"), "exclusive", "the flock after the record unlock")
