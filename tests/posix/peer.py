"""A second process that does what it is told, one call at a time.

`Child` (tools.py) runs one function and ends; locks need processes that live through a whole case
and take their turns. A `Peer` is told `peer(os.open, path, flags)` and answers with the result, or
raises the call's OSError here. `start` and `reply` part the two, for calls that wait. A peer lives
on a socket: when the case's process ends, however it ends, the socket says so and the peer leaves.

A new peer closes every descriptor it was born with, so that no lock or open file of the case is
shared by accident; `inherit` keeps them, for cases about exactly that.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pickle
import select
import signal
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from types import BuiltinFunctionType
from typing import Any, NoReturn

from tests.posix.case import CaseFailed

PATIENCE = 8.0
_STARTED = struct.pack("=i", -1)


class Peer:
    """A forked process that obeys. Leaves with the case at the latest; `end` lets it go before."""

    def __init__(self, *, inherit: bool = False) -> None:
        """Fork it; with `inherit` it keeps the descriptors that are open here."""
        self._line, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid:
            theirs.close()
            return
        self._line.close()
        if not inherit:
            os.closerange(3, theirs.fileno())
            os.closerange(theirs.fileno() + 1, 65536)
        _obey(theirs)

    def __call__(self, call: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        """Let the peer run `call(*args)` and return its result, which must pickle.

        Raises:
            OSError: what the call raised over there.
            CaseFailed: it raised anything else, died, or did not answer in time.
        """
        self.start(call, *args, **kw)
        return self.reply()

    def start(self, call: Callable[..., Any], *args: Any, **kw: Any) -> None:
        """Return as soon as the peer begins the call."""
        _send(self._line, _dumps((call, args, kw)))
        self._wait(PATIENCE)
        if self._line.recv(4) != _STARTED:
            raise CaseFailed(f"a peer died before {call.__name__}")

    def answered(self, seconds: float = 0.0) -> bool:
        """Whether the call that was started has ended, waiting for that up to `seconds`."""
        return bool(select.select([self._line], [], [], seconds)[0])

    def reply(self, seconds: float = PATIENCE) -> Any:
        """Result of the call that was started; raises as calling the peer does."""
        self._wait(seconds)
        data = _receive(self._line)
        if data is None:
            raise CaseFailed("a peer died")
        kind, value = pickle.loads(data)
        if kind == "os":
            raise OSError(value, os.strerror(value))
        if kind == "bad":
            raise CaseFailed(f"in a peer: {value}")
        return value

    def waits(self, call: Callable[..., Any], *args: Any, **kw: Any) -> None:
        """Start a call that must wait, and return when it sleeps.

        Raises:
            CaseFailed: it did not wait. Whoever answers late, after 30 ms, is caught by what
                the case asks next.
        """
        self.start(call, *args, **kw)
        while self.state() not in "SDZ":
            os.sched_yield()
        if self.answered(0.03):
            outcome = self._outcome()
            raise CaseFailed(f"{call.__name__} did not wait: {outcome}")

    def on_signal(self, number: signal.Signals) -> None:
        """Let this signal end the peer's calls with EINTR instead of ending the peer."""
        self(_interrupt_by, number)

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal that ends the peer; its exit status as Python counts it."""
        os.kill(self.pid, number)
        return self._gone()

    def end(self) -> int:
        """Let the peer leave by exit(2); its exit status."""
        self._line.shutdown(socket.SHUT_WR)
        return self._gone()

    def close(self) -> None:
        """Forget a peer that has been waited for already."""
        self._line.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc: object) -> None:
        """Leave nothing behind, whatever happened: for tests that outlive their peers."""
        if self._line.fileno() >= 0:
            self.kill()

    def gone_by(self, call: Callable[..., Any], *args: Any) -> int:
        """Let the peer make a call it does not return from; its exit status."""
        self.start(call, *args)
        return self._gone()

    def hand(self, descriptor: int) -> int:
        """Pass an open descriptor of this process to the peer; its number over there."""
        self.start(_take_descriptor)
        socket.send_fds(self._line, [b"."], [descriptor])
        return int(self.reply())

    def _gone(self) -> int:
        handle = os.pidfd_open(self.pid)
        ready = select.select([handle], [], [], PATIENCE)[0]
        os.close(handle)
        if not ready:
            raise CaseFailed("a peer does not end")
        self._line.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _wait(self, seconds: float) -> None:
        if not self.answered(seconds):
            raise CaseFailed(f"a peer did not answer within {seconds:g} s")

    def _outcome(self) -> str:
        try:
            return repr(self.reply())
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error))

    def state(self) -> str:
        """The letter that /proc has for the process."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]


def in_thread(call: Callable[..., Any], *args: Any) -> Any:
    """Run a call in a second thread of the calling process; its result, or its OSError."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(call(*args))
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(outcome[0], OSError):
        raise outcome[0]
    return outcome[0]


def _interrupt_by(number: signal.Signals) -> None:
    signal.signal(number, _interrupted)


def _interrupted(number: int, frame: object) -> None:
    raise InterruptedError(errno.EINTR, "the signal came")


def _take_descriptor(line: socket.socket) -> int:
    """The one call that needs the peer's own end of the line, and is given it."""
    return int(socket.recv_fds(line, 1, 1)[1][0])


def _obey(line: socket.socket) -> NoReturn:
    """The peer's life: a call, its outcome, the next call, until the other side is gone."""
    while (data := _receive(line)) is not None:
        try:
            call, args, kw = pickle.loads(data)
            line.sendall(_STARTED)
            if call is _take_descriptor:
                args = (line,)
            outcome: tuple[str, Any] = ("ok", call(*args, **kw))
        except OSError as error:
            outcome = ("os", error.errno)
        except BaseException as error:
            outcome = ("bad", f"{type(error).__name__}: {error}")
        with contextlib.suppress(OSError):
            _send(line, _dumps(outcome))
    os._exit(0)


class _Pickler(pickle.Pickler):
    """Pickles system calls by their names in `os`.

    Their own module is called posix, and so is this directory, which pytest may have put in its
    place among the modules.
    """

    def reducer_override(self, obj: Any) -> Any:
        """How to make one object again over there."""
        if isinstance(obj, BuiltinFunctionType) and obj.__module__ == "posix":
            return _system_call, (obj.__name__,)
        return NotImplemented


def _system_call(name: str) -> Any:
    return getattr(os, name)


def _dumps(what: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer).dump(what)
    return buffer.getvalue()


def _send(line: socket.socket, data: bytes) -> None:
    line.sendall(struct.pack("=i", len(data)) + data)


def _receive(line: socket.socket) -> bytes | None:
    """One message, or None when the other side is gone."""
    try:
        head = line.recv(4, socket.MSG_WAITALL)
        if len(head) < 4:
            return None
        return line.recv(struct.unpack("=i", head)[0], socket.MSG_WAITALL)
    except OSError:
        return None
