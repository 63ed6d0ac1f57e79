"""flock(2), fcntl(2) record locks and open-file-description locks."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
from pathlib import Path

from tests.posix.case import CaseFailed, case, refuse, same, true
from tests.posix.tools import Child, Signpost, opened, put

F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW = 36, 37, 38


def _record(kind: int, start: int = 0, length: int = 0) -> bytes:
    """A struct flock; length 0 means to the end of the file, however it grows."""
    return struct.pack("@hhqqi4x", kind, os.SEEK_SET, start, length, 0)


def _holder(path: Path, held: Signpost, release: Signpost, kind: int = fcntl.F_WRLCK) -> None:
    with opened(path, os.O_RDWR) as f:
        fcntl.fcntl(f, fcntl.F_SETLK, _record(kind, 10, 10))
        held.raise_()
        release.wait()


@case()
def flock_excludes(d: Path) -> None:
    """Two descriptors: exclusive keeps all others out, shared lets shared in."""
    put(d / "f")
    with opened(d / "f", os.O_RDWR) as a, opened(d / "f", os.O_RDWR) as b:
        fcntl.flock(a, fcntl.LOCK_EX)
        refuse(errno.EWOULDBLOCK, fcntl.flock, b, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(a, fcntl.LOCK_SH)
        fcntl.flock(b, fcntl.LOCK_SH | fcntl.LOCK_NB)
        refuse(errno.EWOULDBLOCK, fcntl.flock, a, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(b, fcntl.LOCK_UN)
        fcntl.flock(a, fcntl.LOCK_EX | fcntl.LOCK_NB)


@case()
def flock_goes_with_the_last_descriptor(d: Path) -> None:
    """A lock taken through dup'ed descriptors is dropped by the last close."""
    put(d / "f")
    a = os.open(d / "f", os.O_RDWR)
    copy = os.dup(a)
    fcntl.flock(a, fcntl.LOCK_EX)
    os.close(a)
    with opened(d / "f", os.O_RDWR) as b:
        refuse(errno.EWOULDBLOCK, fcntl.flock, b, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(copy)
        fcntl.flock(b, fcntl.LOCK_EX | fcntl.LOCK_NB)


@case()
def flock_waiter_is_woken(d: Path) -> None:
    """A process that waits for a lock gets it when the holder lets go."""
    put(d / "f")
    with opened(d / "f", os.O_RDWR) as a:
        fcntl.flock(a, fcntl.LOCK_EX)
        waiter = Child(_flock_and_leave, d / "f")
        waiter.wait_until_asleep()
        true(not waiter.finished(), "the waiter did not wait")
        fcntl.flock(a, fcntl.LOCK_UN)
        same(waiter.result(), "got it", "the waiter")


@case()
def flock_is_dropped_at_death(d: Path) -> None:
    """A killed holder's lock is free."""
    put(d / "f")
    held, never = Signpost(), Signpost()

    def hold() -> None:
        with opened(d / "f", os.O_RDWR) as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            held.raise_()
            never.wait()

    child = Child(hold)
    held.wait()
    same(child.kill(), -signal.SIGKILL, "exit status")
    same(_flock_and_leave(d / "f"), "got it", "the next one")


def _flock_and_leave(path: Path) -> str:
    with opened(path, os.O_RDWR) as f:
        fcntl.flock(f, fcntl.LOCK_EX)
    return "got it"


@case()
def flock_waiter_can_be_killed(d: Path) -> None:
    """SIGKILL ends a process that waits for a lock."""
    put(d / "f")
    with opened(d / "f", os.O_RDWR) as a:
        fcntl.flock(a, fcntl.LOCK_EX)
        waiter = Child(_flock_and_leave, d / "f")
        waiter.wait_until_asleep()
        same(waiter.kill(), -signal.SIGKILL, "exit status")


@case()
def records_exclude_by_range(d: Path) -> None:
    """Another process is kept out of exactly the locked bytes."""
    put(d / "f", bytes(100))
    held, release = Signpost(), Signpost()
    child = Child(_holder, d / "f", held, release)
    held.wait()
    with opened(d / "f", os.O_RDWR) as f:
        for start, length, free in ((0, 10, True), (5, 10, False), (19, 1, False), (20, 5, True)):
            request = _record(fcntl.F_WRLCK, start, length)
            if free:
                fcntl.fcntl(f, fcntl.F_SETLK, request)
            else:
                refuse((errno.EAGAIN, errno.EACCES), fcntl.fcntl, f, fcntl.F_SETLK, request)
        release.raise_()
    child.result()


@case()
def records_tell_the_holder(d: Path) -> None:
    """F_GETLK tells the holder's process, kind and range."""
    put(d / "f", bytes(100))
    held, release = Signpost(), Signpost()
    child = Child(_holder, d / "f", held, release)
    held.wait()
    with opened(d / "f", os.O_RDWR) as f:
        answer = fcntl.fcntl(f, fcntl.F_GETLK, _record(fcntl.F_WRLCK))
    kind, _, start, length, pid = struct.unpack("@hhqqi4x", answer)
    release.raise_()
    same((kind, start, length, pid), (fcntl.F_WRLCK, 10, 10, child.pid), "holder")
    child.result()


@case()
def records_shared(d: Path) -> None:
    """Read locks of two processes overlap; a write lock over them is refused."""
    put(d / "f", bytes(100))
    held, release = Signpost(), Signpost()
    child = Child(_holder, d / "f", held, release, fcntl.F_RDLCK)
    held.wait()
    with opened(d / "f", os.O_RDWR) as f:
        fcntl.fcntl(f, fcntl.F_SETLK, _record(fcntl.F_RDLCK, 0, 50))
        request = _record(fcntl.F_WRLCK, 15, 1)
        refuse((errno.EAGAIN, errno.EACCES), fcntl.fcntl, f, fcntl.F_SETLK, request)
    release.raise_()
    child.result()


@case()
def records_need_the_open_mode(d: Path) -> None:
    """A write lock needs a writing descriptor: EBADF."""
    with opened(put(d / "f"), os.O_RDONLY) as f:
        refuse(errno.EBADF, fcntl.fcntl, f, fcntl.F_SETLK, _record(fcntl.F_WRLCK))
    with opened(d / "f", os.O_WRONLY) as f:
        refuse(errno.EBADF, fcntl.fcntl, f, fcntl.F_SETLK, _record(fcntl.F_RDLCK))


@case()
def records_go_with_any_close(d: Path) -> None:
    """Closing any descriptor of the file drops all of the process's record locks."""
    put(d / "f", bytes(100))
    with opened(d / "f", os.O_RDWR) as f:
        fcntl.fcntl(f, fcntl.F_SETLK, _record(fcntl.F_WRLCK))
        os.close(os.open(d / "f", os.O_RDONLY))
        same(Child(_try_record, d / "f").result(), "free", "the lock")


@case()
def records_do_not_pass_to_children(d: Path) -> None:
    """A forked child does not own the parent's record lock."""
    put(d / "f", bytes(100))
    with opened(d / "f", os.O_RDWR) as f:
        fcntl.fcntl(f, fcntl.F_SETLK, _record(fcntl.F_WRLCK))
        same(Child(_try_record, d / "f").result(), "locked", "the lock")


def _try_record(path: Path) -> str:
    with opened(path, os.O_RDWR) as f:
        try:
            fcntl.fcntl(f, fcntl.F_SETLK, _record(fcntl.F_WRLCK))
        except BlockingIOError:
            return "locked"
        except PermissionError:
            return "locked"
    return "free"


@case()
def record_waiter_is_woken(d: Path) -> None:
    """F_SETLKW waits, and gets the lock when the holder ends."""
    put(d / "f", bytes(100))
    held, release = Signpost(), Signpost()
    holder = Child(_holder, d / "f", held, release)
    held.wait()

    def wait() -> str:
        with opened(d / "f", os.O_RDWR) as f:
            fcntl.fcntl(f, fcntl.F_SETLKW, _record(fcntl.F_WRLCK))
        return "got it"

    waiter = Child(wait)
    waiter.wait_until_asleep()
    true(not waiter.finished(), "the waiter did not wait")
    release.raise_()
    same(waiter.result(), "got it", "the waiter")
    holder.result()


@case()
def record_waiter_is_interrupted(d: Path) -> None:
    """A signal ends the wait of F_SETLKW: EINTR."""
    put(d / "f", bytes(100))
    held, release = Signpost(), Signpost()
    holder = Child(_holder, d / "f", held, release)
    held.wait()

    def interrupted(number: int, frame: object) -> None:
        raise InterruptedError(errno.EINTR, "the signal came")

    def wait() -> None:
        signal.signal(signal.SIGUSR1, interrupted)
        with opened(d / "f", os.O_RDWR) as f:
            ready.raise_()
            fcntl.fcntl(f, fcntl.F_SETLKW, _record(fcntl.F_WRLCK))

    ready = Signpost()
    waiter = Child(wait)
    ready.wait()
    waiter.wait_until_asleep()
    os.kill(waiter.pid, signal.SIGUSR1)
    refuse(errno.EINTR, waiter.result)
    release.raise_()
    holder.result()


@case()
def record_deadlock_is_seen(d: Path) -> None:
    """Two processes that wait for each other's bytes: one of them gets EDEADLK."""
    put(d / "f", bytes(100))
    mine, theirs = Signpost(), Signpost()

    def cross(first: int, second: int, ready: Signpost, other: Signpost) -> int:
        with opened(d / "f", os.O_RDWR) as f:
            fcntl.fcntl(f, fcntl.F_SETLK, _record(fcntl.F_WRLCK, first, 1))
            ready.raise_()
            other.wait()
            try:
                fcntl.fcntl(f, fcntl.F_SETLKW, _record(fcntl.F_WRLCK, second, 1))
            except OSError as error:
                return error.errno or 0
        return 0

    children = [Child(cross, 0, 1, mine, theirs), Child(cross, 1, 0, theirs, mine)]
    same(sorted(child.result() for child in children), [0, errno.EDEADLK], "outcomes")


@case()
def record_splitting(d: Path) -> None:
    """Unlocking the middle of a range leaves its two ends locked."""
    put(d / "f", bytes(100))
    with opened(d / "f", os.O_RDWR) as f:
        fcntl.fcntl(f, fcntl.F_SETLK, _record(fcntl.F_WRLCK, 0, 30))
        fcntl.fcntl(f, fcntl.F_SETLK, _record(fcntl.F_UNLCK, 10, 10))

        def probe() -> list[bool]:
            with opened(d / "f", os.O_RDWR) as g:
                answers = (
                    fcntl.fcntl(g, fcntl.F_GETLK, _record(fcntl.F_WRLCK, at, 1))
                    for at in (5, 15, 25)
                )
                return [struct.unpack_from("@h", a)[0] != fcntl.F_UNLCK for a in answers]

        same(Child(probe).result(), [True, False, True], "locked bytes")


@case()
def ofd_locks_belong_to_the_description(d: Path) -> None:
    """OFD locks of two descriptors in one process exclude each other, and survive a close."""
    put(d / "f", bytes(100))
    with opened(d / "f", os.O_RDWR) as a, opened(d / "f", os.O_RDWR) as b:
        fcntl.fcntl(a, F_OFD_SETLK, _record(fcntl.F_WRLCK))
        refuse(errno.EAGAIN, fcntl.fcntl, b, F_OFD_SETLK, _record(fcntl.F_WRLCK))
        os.close(os.open(d / "f", os.O_RDONLY))
        refuse(errno.EAGAIN, fcntl.fcntl, b, F_OFD_SETLK, _record(fcntl.F_RDLCK))
        answer = fcntl.fcntl(b, F_OFD_GETLK, _record(fcntl.F_WRLCK))
        same(struct.unpack("@hhqqi4x", answer)[4], -1, "the holder's process")
        fcntl.fcntl(a, F_OFD_SETLK, _record(fcntl.F_UNLCK))
        fcntl.fcntl(b, F_OFD_SETLK, _record(fcntl.F_WRLCK))


@case()
def ofd_waiter_is_woken(d: Path) -> None:
    """F_OFD_SETLKW waits, and gets the lock when it is free."""
    put(d / "f", bytes(100))
    with opened(d / "f", os.O_RDWR) as a:
        fcntl.fcntl(a, F_OFD_SETLK, _record(fcntl.F_WRLCK))

        def wait() -> str:
            with opened(d / "f", os.O_RDWR) as f:
                fcntl.fcntl(f, F_OFD_SETLKW, _record(fcntl.F_WRLCK))
            return "got it"

        waiter = Child(wait)
        waiter.wait_until_asleep()
        fcntl.fcntl(a, F_OFD_SETLK, _record(fcntl.F_UNLCK))
        same(waiter.result(), "got it", "the waiter")


@case()
def ofd_locks_go_with_the_close(d: Path) -> None:
    """Closing the last descriptor of the description drops its OFD lock."""
    put(d / "f", bytes(100))
    a = os.open(d / "f", os.O_RDWR)
    fcntl.fcntl(a, F_OFD_SETLK, _record(fcntl.F_WRLCK))
    os.close(a)
    same(_try_record(d / "f"), "free", "the lock")


@case(limit=30.0)
def counter_under_a_lock(d: Path) -> None:
    """Four processes that count up under flock lose nothing."""
    put(d / "n", b"0")

    def count() -> None:
        with opened(d / "n", os.O_RDWR) as f:
            for _ in range(100):
                fcntl.flock(f, fcntl.LOCK_EX)
                number = int(os.pread(f, 20, 0)) + 1
                os.pwrite(f, str(number).encode(), 0)
                fcntl.flock(f, fcntl.LOCK_UN)

    for child in [Child(count) for _ in range(4)]:
        child.result()
    if (d / "n").read_bytes() != b"400":
        raise CaseFailed(f"counted {(d / 'n').read_text()}, not 400")
