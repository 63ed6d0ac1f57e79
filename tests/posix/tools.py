"""What the cases share: small files, other users, clocks that moved, children that answer.

Other users are plain numbers: no account needs to exist. `as_user` forks, becomes the user, runs a
function and brings the outcome back, an OSError as that very OSError, so that `refuse` can wrap it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import random
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.posix.case import CaseFailed

CLOCK_REALTIME_COARSE = 5
OLD = 1_000_000_000 * 10**9


class User(NamedTuple):
    """A user by number: who, in which group, and in which others."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ALICE = User(4001, 4001)
BOB = User(4002, 4002)
FRIEND = User(4003, 4003, (4001,))


def put(path: Path, data: bytes = b"", mode: int = 0o644) -> Path:
    """Make a file with the given bytes and exactly the given mode; return its path."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, data)
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)
    return path


def folder(path: Path, mode: int = 0o755) -> Path:
    """Make a directory with exactly the given mode; return its path."""
    path.mkdir()
    path.chmod(mode)
    return path


def give(path: Path, user: User, mode: int | None = None) -> Path:
    """Hand a file to a user and set its mode afterwards, since chown clears bits."""
    os.chown(path, user.uid, user.gid, follow_symlinks=False)
    if mode is not None:
        path.chmod(mode)
    return path


@contextlib.contextmanager
def opened(path: Path | str | bytes, flags: int, mode: int = 0o644) -> Iterator[int]:
    """Open a file for the length of a `with` block."""
    descriptor = os.open(path, flags, mode)
    try:
        yield descriptor
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def mode_of(path: Path) -> int:
    """The twelve mode bits of a file, links not followed."""
    return path.lstat().st_mode & 0o7777


def aged(path: Path) -> Path:
    """Set a file's atime and mtime far back, so that any later update shows."""
    os.utime(path, ns=(OLD, OLD), follow_symlinks=False)
    return path


def tick() -> None:
    """Return when the coarse clock that file systems stamp with has moved twice."""
    for _ in range(2):
        start = coarse_now()
        while coarse_now() == start:
            os.sched_yield()


def coarse_now() -> int:
    """The clock that Linux file systems stamp with, in nanoseconds; it moves once a jiffy."""
    return time.clock_gettime_ns(CLOCK_REALTIME_COARSE)


def undisturbed(body: Callable[[Path], None]) -> Callable[[Path], None]:
    """Decorate a case that looks at figures of the whole file system, which others may use, too.

    It is tried ten times, each in a directory of its own, and believed when it is right once.
    """

    @functools.wraps(body)
    def tries(d: Path) -> None:
        for n in range(9):
            with contextlib.suppress(CaseFailed):
                body(folder(d / f"try-{n}"))
                return
            time.sleep(random.random() / 5)  # out of step with a run of the same case beside us
        body(folder(d / "last"))

    return tries


def as_user(user: User, call: Callable[..., Any], *args: Any) -> Any:
    """Run `call(*args)` as another user in a child and return its result, which must pickle.

    Raises:
        OSError: the one that the call raised.
        CaseFailed: the call raised anything else, or the child died.
    """

    def become() -> Any:
        os.setgroups(list(user.groups))
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
        return call(*args)

    return Child(become).result()


class Child:
    """A forked child that runs one function and sends its outcome back.

    `say`/`hear` of the pair of pipes let a case order the steps of two processes without sleeping.
    """

    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        """Fork and start `call(*args)` in the child at once."""
        self._reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(writer)
            return
        try:
            outcome: tuple[str, Any] = ("ok", call(*args))
        except OSError as error:
            outcome = ("os", error.errno)
        except BaseException as error:
            outcome = ("bad", f"{type(error).__name__}: {error}")
        with contextlib.suppress(OSError):
            os.write(writer, pickle.dumps(outcome))
        os._exit(0)

    def result(self) -> Any:
        """Wait for the child and return, or raise, what its function did."""
        data = b""
        while chunk := os.read(self._reader, 65536):
            data += chunk
        os.close(self._reader)
        _, status = os.waitpid(self.pid, 0)
        if not data:
            raise CaseFailed(f"a child died: {os.waitstatus_to_exitcode(status)}")
        kind, value = pickle.loads(data)
        if kind == "os":
            raise OSError(value, os.strerror(value))
        if kind == "bad":
            raise CaseFailed(f"in a child: {value}")
        return value

    def finished(self) -> bool:
        """Whether the outcome is there already."""
        return bool(select.select([self._reader], [], [], 0)[0])

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal that ends the child, and return its exit status as Python counts it."""
        os.kill(self.pid, number)
        _, status = os.waitpid(self.pid, 0)
        os.close(self._reader)
        return os.waitstatus_to_exitcode(status)

    def wait_until_asleep(self) -> None:
        """Return once the child sleeps in a system call.

        /proc tells the state; a child that still runs is given the processor and looked at again.
        """
        while True:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            if fields[0] in "SDZ":
                return
            os.sched_yield()


class Signpost:
    """One-way word from one process to another: a pipe with one byte a call."""

    def __init__(self) -> None:
        """Make it before forking; both sides then hold it."""
        self._reader, self._writer = os.pipe()

    def raise_(self) -> None:
        """Let one waiter pass."""
        os.write(self._writer, b".")

    def wait(self) -> None:
        """Return when the other side has raised it once more."""
        os.read(self._reader, 1)
