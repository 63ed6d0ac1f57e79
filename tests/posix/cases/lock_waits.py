"""Waiting for record locks: who is woken by what, signals, deaths, deadlocks.

No case looks at a clock to say that something is right. That somebody waits is seen in /proc; that
he goes on is an answer that must come within a generous limit.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

from tests.posix.case import CaseFailed, case, eventually, refuse, same, table, true
from tests.posix.locking import READ, UNLOCK, WRITE, Record, ask, lock, locked, shape
from tests.posix.peer import Peer
from tests.posix.tools import opened, put

KINDS = {"process": (False,), "description": (True,)}
Party = tuple[Peer, int]


def _party(path: Path) -> Party:
    """A process with the file open, and its descriptor."""
    peer = Peer()
    return peer, peer(os.open, path, os.O_RDWR)


def _parties(path: Path, count: int) -> list[Party]:
    put(path, bytes(100))
    return [_party(path) for _ in range(count)]


def _waits(party: Party, kind: int, start: int, length: int, *, ofd: bool = False) -> None:
    """Let a party wait for a lock; fails the case when it does not wait."""
    party[0].waits(lock, party[1], kind, start, length, wait=True, ofd=ofd)


def _unlock(peer: Peer, file: int) -> None:
    peer(lock, file, UNLOCK)
    peer(lock, file, UNLOCK, ofd=True)


def _close(peer: Peer, file: int) -> None:
    peer(os.close, file)


def _close_second(peer: Peer, file: int) -> None:
    peer(_open_and_close, f"/proc/self/fd/{file}")


def _open_and_close(path: str) -> None:
    os.close(os.open(path, os.O_RDONLY))


def _exit(peer: Peer, file: int) -> None:
    same(peer.end(), 0, "exit status")


def _kill(peer: Peer, file: int) -> None:
    same(peer.kill(), -signal.SIGKILL, "exit status")


ENDS: dict[str, tuple[Callable[[Peer, int], None], bool, bool]] = {
    f"{name}-{'description' if held else 'process'}-{'description' if wanted else 'process'}": (
        end, held, wanted,
    )
    for name, end in {
        "unlock": _unlock, "close": _close, "close-of-another": _close_second,
        "exit": _exit, "kill": _kill,
    }.items()
    for held in (False, True)
    for wanted in (False, True)
    if not (held and name == "close-of-another")
}  # fmt: skip


@table(ENDS)
def woken_by(d: Path, end: Callable[[Peer, int], None], held: bool, wanted: bool) -> None:
    """Who waits gets the lock as soon as it is gone, in whatever way it goes."""
    holder, waiter = _parties(d / "f", 2)
    holder[0](lock, holder[1], WRITE, 10, 10, ofd=held)
    _waits(waiter, WRITE, 0, 50, ofd=wanted)
    end(*holder)
    waiter[0].reply()
    with opened(d / "f", os.O_RDWR) as f:
        found = ask(f)
        same(found and found[:3], (WRITE, 0, 50), "the waiter's lock")
        true(wanted or (found and found.owner == waiter[0].pid), "the holder that is told")


@case()
def woken_by_a_downgrade(d: Path) -> None:
    """A write lock that becomes a read lock lets waiting readers in, all, and no writer."""
    holder, writer, *readers = _parties(d / "f", 5)
    holder[0](lock, holder[1], WRITE, 0, 10)
    for reader in readers:
        _waits(reader, READ, 0, 10)
    _waits(writer, WRITE, 0, 10)
    holder[0](lock, holder[1], READ, 0, 10)
    for reader in readers:
        reader[0].reply()
    true(not writer[0].answered(0.05), "the writer got in among readers")
    for party in (holder, *readers):
        true(not writer[0].answered(), "the writer got in before the last reader left")
        party[0](lock, party[1], UNLOCK)
    writer[0].reply()


@case()
def woken_by_a_part(d: Path) -> None:
    """When bytes are let go in pieces a waiter gets in with the last piece it needs."""
    holder, waiter = _parties(d / "f", 2)
    holder[0](lock, holder[1], WRITE, 0, 40)
    _waits(waiter, WRITE, 10, 20)
    for start in (0, 30, 10, 25):
        holder[0](lock, holder[1], UNLOCK, start, 5 if start else 10)
        true(not waiter[0].answered(0.02), f"in after {start} was let go")
    holder[0](lock, holder[1], UNLOCK, 15, 10)
    waiter[0].reply()
    same(holder[0](shape, holder[1]), "w10+20", "the waiter's lock")


@case()
def only_who_can_go_on_is_woken(d: Path) -> None:
    """Of waiters for different bytes each gets in when its own bytes are let go."""
    holder, *waiters = _parties(d / "f", 4)
    holder[0](lock, holder[1], WRITE, 0, 30)
    for n, waiter in enumerate(waiters):
        _waits(waiter, WRITE, n * 10, 10)
    for n in (1, 2, 0):
        holder[0](lock, holder[1], UNLOCK, n * 10, 10)
        waiters[n][0].reply()
        same(holder[0](ask, holder[1], WRITE, n * 10, 1).owner, waiters[n][0].pid, "new holder")
    same(sum(waiter[0].answered() for waiter in waiters), 0, "answers nobody waited for")


@case(limit=30.0)
def every_waiter_gets_a_turn(d: Path) -> None:
    """Ten waiters for one byte all get it, one at a time, nobody twice, nobody never."""
    holder, *waiting = _parties(d / "f", 11)
    holder[0](lock, holder[1], WRITE, 0, 1)
    for waiter in waiting:
        _waits(waiter, WRITE, 0, 1)
    holder[0](lock, holder[1], UNLOCK)
    while waiting:
        eventually(lambda: any(w[0].answered() for w in waiting), "somebody gets the lock")
        inside = [waiter for waiter in waiting if waiter[0].answered()]
        same(len(inside), 1, "holders of one write lock")
        inside[0][0].reply()
        same(holder[0](ask, holder[1]).owner, inside[0][0].pid, "the holder that F_GETLK tells")
        waiting.remove(inside[0])
        inside[0][0](lock, inside[0][1], UNLOCK)


@case()
def readers_go_together(d: Path) -> None:
    """All who wait to read get in together when the writer lets go."""
    holder, *readers = _parties(d / "f", 7)
    holder[0](lock, holder[1], WRITE)
    for n, reader in enumerate(readers):
        _waits(reader, READ, 0, n * 10)
    holder[0](lock, holder[1], UNLOCK)
    for reader in readers:
        reader[0].reply()


@case()
def upgrade_waits_for_the_readers(d: Path) -> None:
    """A reader that wants to write keeps its lock while it waits for the others to leave."""
    one, two = _parties(d / "f", 2)
    one[0](lock, one[1], READ, 0, 10)
    two[0](lock, two[1], READ, 0, 10)
    _waits(one, WRITE, 0, 10)
    same(two[0](ask, two[1]), Record(READ, 0, 10, os.SEEK_SET, one[0].pid), "while waiting")
    two[0](lock, two[1], UNLOCK)
    one[0].reply()
    same(two[0](ask, two[1]), Record(WRITE, 0, 10, os.SEEK_SET, one[0].pid), "afterwards")


@case()
def granted_without_waiting(d: Path) -> None:
    """F_SETLKW does not wait for bytes that others only read, or do not hold."""
    one, two = _parties(d / "f", 2)
    one[0](lock, one[1], READ, 0, 10)
    one[0](lock, one[1], WRITE, 20, 10)
    two[0](lock, two[1], READ, 0, 20, wait=True)
    two[0](lock, two[1], WRITE, 30, 0, wait=True)
    two[0](lock, two[1], UNLOCK, wait=True)
    two[0](lock, two[1], WRITE, 10, 10, wait=True, ofd=True)


@table(KINDS)
def interrupted(d: Path, ofd: bool) -> None:
    """A signal ends the wait with EINTR, nothing is locked, and waiting again works."""
    holder, waiter = _parties(d / "f", 2)
    waiter[0].on_signal(signal.SIGUSR1)
    holder[0](lock, holder[1], WRITE, 0, 10)
    for _ in range(5):
        _waits(waiter, WRITE, 0, 50, ofd=ofd)
        waiter[0].send(signal.SIGUSR1)
        refuse(errno.EINTR, waiter[0].reply)
        same(holder[0](shape, holder[1]), "", "locks of who was interrupted")
    _waits(waiter, WRITE, 0, 50, ofd=ofd)
    holder[0](lock, holder[1], UNLOCK)
    waiter[0].reply()


@case()
def interrupted_upgrade(d: Path) -> None:
    """Who is interrupted while he waits to write still has his lock for reading."""
    one, two = _parties(d / "f", 2)
    one[0].on_signal(signal.SIGUSR1)
    one[0](lock, one[1], READ, 0, 10)
    two[0](lock, two[1], READ, 0, 10)
    _waits(one, WRITE, 0, 10)
    one[0].send(signal.SIGUSR1)
    refuse(errno.EINTR, one[0].reply)
    same(two[0](ask, two[1]), Record(READ, 0, 10, os.SEEK_SET, one[0].pid), "the lock it had")


@case()
def stopped_and_continued(d: Path) -> None:
    """A waiter that is stopped and continued waits on, and gets the lock in the end."""
    holder, waiter = _parties(d / "f", 2)
    holder[0](lock, holder[1], WRITE, 0, 10)
    _waits(waiter, WRITE, 0, 10)
    for number in (signal.SIGSTOP, signal.SIGCONT, signal.SIGSTOP, signal.SIGCONT):
        waiter[0].send(number)
        _until_state(waiter[0], stopped=number == signal.SIGSTOP)
    true(not waiter[0].answered(0.05), "in before the holder let go")
    holder[0](lock, holder[1], UNLOCK)
    waiter[0].reply()


def _until_state(peer: Peer, *, stopped: bool) -> None:
    eventually(lambda: (peer.state() in "tT") is stopped, f"stopped is {stopped}")


@table(KINDS)
def killed_waiters_leave_nothing(d: Path, ofd: bool) -> None:
    """Waiters that are killed take no lock with them, then or later."""
    path = put(d / "f", bytes(100))
    holder, other = _party(path), _party(path)
    holder[0](lock, holder[1], WRITE, 0, 10)
    for _ in range(5):
        waiter = _party(path)
        _waits(waiter, WRITE, 0, 10, ofd=ofd)
        same(waiter[0].kill(), -signal.SIGKILL, "exit status")
    holder[0](lock, holder[1], UNLOCK)
    same(holder[0](ask, holder[1]), None, "locks that the dead left")
    true(other[0](locked, other[1], WRITE), "the dead are in the way")


@case()
def killed_waiter_does_not_stop_the_next(d: Path) -> None:
    """Of two waiters the first is killed: the second gets the lock."""
    holder, first, second = _parties(d / "f", 3)
    holder[0](lock, holder[1], WRITE)
    _waits(first, WRITE, 0, 0)
    _waits(second, WRITE, 0, 0)
    first[0].kill()
    holder[0](lock, holder[1], UNLOCK)
    second[0].reply()


@case(limit=30.0)
def waiters_do_not_stop_the_file(d: Path) -> None:
    """While 30 processes wait for a lock, the file and the directory work for everybody else."""
    holder, *waiters = _parties(d / "f", 31)
    holder[0](lock, holder[1], WRITE)
    for waiter in waiters:
        waiter[0].start(lock, waiter[1], WRITE, wait=True)
    with opened(d / "f", os.O_RDWR) as f:
        for n in range(20):
            os.pwrite(f, b"x", n)
            same((os.pread(f, 1, n), os.fstat(f).st_size), (b"x", 100), "the file")
            os.unlink(put(d / f"other{n}"))
        os.ftruncate(f, 10)
        os.fsync(f)
    same((d / "f").read_bytes(), b"x" * 10, "bytes")
    for waiter in waiters:
        same(waiter[0].kill(), -signal.SIGKILL, "exit status")
    true(holder[0](locked, holder[1], WRITE), "the holder lost its lock")


@case(limit=30.0)
def counter(d: Path) -> None:
    """Four processes that count up under F_SETLKW lose nothing."""
    parties = _parties(d / "f", 4)
    (d / "f").write_bytes(b"0")
    for peer, file in parties:
        peer.start(_count, file, 100)
    for peer, _ in parties:
        peer.reply(25.0)
    same((d / "f").read_bytes(), b"400", "count")


def _count(file: int, times: int) -> None:
    for _ in range(times):
        lock(file, WRITE, 0, 1, wait=True)
        number = int(os.pread(file, 20, 0)) + 1
        os.pwrite(file, str(number).encode(), 0)
        lock(file, UNLOCK, 0, 1)


@case()
def deadlock_of_two(d: Path) -> None:
    """Two that wait for each other's bytes: the second is refused with EDEADLK and keeps his."""
    one, two = _parties(d / "f", 2)
    one[0](lock, one[1], WRITE, 0, 1)
    two[0](lock, two[1], WRITE, 1, 1)
    _waits(one, WRITE, 1, 1)
    refuse(errno.EDEADLK, two[0], lock, two[1], WRITE, 0, 1, wait=True)
    same(locked_by(d / "f", 1), two[0].pid, "who holds what the refused one had")
    two[0](lock, two[1], UNLOCK)
    one[0].reply()


def locked_by(path: Path, at: int) -> int | None:
    """The process that F_GETLK names for one byte; the case itself holds no lock here."""
    with opened(path, os.O_RDWR) as f:
        found = ask(f, WRITE, at, 1)
    return None if found is None else found.owner


@case()
def deadlock_of_three(d: Path) -> None:
    """A ring of three is seen when the third closes it."""
    parties = _parties(d / "f", 3)
    for n, (peer, file) in enumerate(parties):
        peer(lock, file, WRITE, n, 1)
    _waits(parties[0], WRITE, 1, 1)
    _waits(parties[1], WRITE, 2, 1)
    peer, file = parties[2]
    refuse(errno.EDEADLK, peer, lock, file, WRITE, 0, 1, wait=True)
    peer(lock, file, UNLOCK)
    parties[1][0].reply()
    parties[1][0](lock, parties[1][1], UNLOCK)
    parties[0][0].reply()


@case()
def deadlock_of_two_upgrades(d: Path) -> None:
    """Two readers of the same bytes that both want to write: the second is refused."""
    one, two = _parties(d / "f", 2)
    one[0](lock, one[1], READ, 0, 10)
    two[0](lock, two[1], READ, 0, 10)
    _waits(one, WRITE, 0, 10)
    refuse(errno.EDEADLK, two[0], lock, two[1], WRITE, 0, 10, wait=True)
    two[0](lock, two[1], UNLOCK)
    one[0].reply()


@case()
def deadlock_is_refused_in_turns(d: Path) -> None:
    """After EDEADLK the refused one may try again: the ring is seen each time."""
    one, two = _parties(d / "f", 2)
    one[0](lock, one[1], WRITE, 0, 1)
    two[0](lock, two[1], WRITE, 1, 1)
    _waits(one, WRITE, 1, 1)
    for _ in range(10):
        refuse(errno.EDEADLK, two[0], lock, two[1], WRITE, 0, 1, wait=True)
    same(two[0](locked, two[1], WRITE, 0, 1), False, "F_SETLK is refused as always")


@case()
def chain_is_no_deadlock(d: Path) -> None:
    """Three in a row, the first of whom waits for nobody, all get their turn."""
    first, second, third = _parties(d / "f", 3)
    first[0](lock, first[1], WRITE, 0, 1)
    second[0](lock, second[1], WRITE, 1, 1)
    _patient(second, 0)
    _patient(third, 1)
    first[0](lock, first[1], UNLOCK)
    second[0].reply()
    second[0](lock, second[1], UNLOCK)
    third[0].reply()


def _patient(party: Party, start: int) -> None:
    """Wait for one byte, but never longer than a few seconds: SIGALRM ends it with EINTR."""
    party[0].on_signal(signal.SIGALRM)
    party[0](signal.alarm, 4)
    _waits(party, WRITE, start, 1)


@case(limit=20.0)
def deadlock_over_two_files(d: Path) -> None:
    """Two that wait for each other, over two files: the second is refused with EDEADLK."""
    one, two = _parties(d / "a", 2)
    put(d / "b", bytes(100))
    files = [peer(os.open, d / "b", os.O_RDWR) for peer, _ in (one, two)]
    one[0](lock, one[1], WRITE, 0, 1)
    two[0](lock, files[1], WRITE, 0, 1)
    _patient((one[0], files[0]), 0)
    two[0].on_signal(signal.SIGALRM)
    two[0](signal.alarm, 4)
    try:
        two[0](lock, two[1], WRITE, 0, 1, wait=True)
    except OSError as error:
        got = errno.errorcode[error.errno or 0]
        true(error.errno == errno.EDEADLK, f"waited in a ring until a signal came: {got}")
    else:
        raise CaseFailed("both got in")
    two[0](lock, files[1], UNLOCK)
    one[0].reply()


@case()
def descriptions_never_deadlock(d: Path) -> None:
    """OFD locks belong to no process, so a ring of them is not looked for: it waits."""
    one, two = _parties(d / "f", 2)
    for party, at in ((one, 0), (two, 1)):
        party[0].on_signal(signal.SIGUSR1)
        party[0](lock, party[1], WRITE, at, 1, ofd=True)
    _waits(one, WRITE, 1, 1, ofd=True)
    _waits(two, WRITE, 0, 1, ofd=True)
    two[0].send(signal.SIGUSR1)
    refuse(errno.EINTR, two[0].reply)
    two[0](lock, two[1], UNLOCK, ofd=True)
    one[0].reply()
