"""Talking to a running dfuser: LWKT message ports from any host program.

    with dfuser.client.connect() as kernel:
        print(kernel.domsg("sysctl", "get", name="kern.ostype"))
        msg = kernel.sendmsg("log", "wait", since=0)     # asynchronous
        ...
        reply = kernel.waitmsg(msg)

A message is sent to a named port of the kernel and is replied to exactly once, synchronously or
whenever the kernel is done. Replies may come in any order. `abortmsg` asks for an early reply
(error 85, ECANCELED); it may lose the race, and then the ordinary reply comes.

A connection belongs to one thread at a time. Errors of the kernel are `KernelError`, whose
``errno`` is DragonFly's number.

Counterpart: lwkt_sendmsg, lwkt_domsg, lwkt_waitmsg, lwkt_waitport, lwkt_abortmsg
(sys/kern/lwkt_msgport.c), and the user-land messaging that DragonFly's founding paper announces.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from types import TracebackType
from typing import Any, Final

from . import instances as _instances
from .wire import MAX_REPLY, MSGID_MASK, Decoder, Frame, Op, WireError

_RECV: Final = 1 << 16


class KernelError(OSError):
    """The kernel replied with an error: ``errno`` is DragonFly's, the text says what was wrong."""


class ConnectionLost(ConnectionError):
    """The kernel ended, or closed this connection."""


class Msg:
    """A message on its way. ``done`` once the reply is here."""

    __slots__ = ("cmd", "done", "error", "msgid", "port", "result")

    def __init__(self, msgid: int, port: str, cmd: str) -> None:
        self.msgid = msgid
        self.port = port
        self.cmd = cmd
        self.done = False
        self.error = 0
        self.result: Any = None

    def value(self) -> Any:
        """The result of a message that is done; raises `KernelError` if it failed."""
        if self.error:
            text = (self.result or {}).get("error", "") if isinstance(self.result, dict) else ""
            raise KernelError(self.error, text or f"{self.port}.{self.cmd} failed")
        return self.result


class Connection:
    """A connection to one kernel.

    Args:
        path: its control socket.
        name: what the kernel shows this client as.
        timeout: seconds to wait for the kernel to accept and greet.
    """

    def __init__(self, path: str, name: str = "", timeout: float = 10.0) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._decoder = Decoder(MAX_REPLY)
        self._open: dict[int, Msg] = {}
        self._arrived: deque[Msg] = deque()
        self._next = 0
        try:
            self._sock.settimeout(timeout)
            self._sock.connect(path)
            hello = Msg(0, "", "hello")
            self._open[0] = hello
            self._send(Frame(Op.HELLO, 0, 0, {"client": name or f"pid {os.getpid()}"}))
            #: What the kernel said about itself: version, pid, mountpoint, ports.
            self.kernel: dict[str, Any] = self.waitmsg(hello, timeout)
            self._sock.settimeout(None)
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; the kernel aborts what is still open."""
        self._sock.close()

    def fileno(self) -> int:
        """The socket's descriptor, for select and the like."""
        return self._sock.fileno()

    # --- messages --------------------------------------------------------------------------

    def sendmsg(self, port: str, cmd: str, **args: Any) -> Msg:
        """Send a message and return at once. Counterpart: lwkt_sendmsg.

        Raises ConnectionLost; TypeError for arguments that JSON cannot carry.
        """
        self._next = self._next % MSGID_MASK + 1
        msg = Msg(self._next, port, cmd)
        payload = {"port": port, "cmd": cmd, "args": args}
        self._send(Frame(Op.SENDMSG, msg.msgid, 0, payload))
        self._open[msg.msgid] = msg
        return msg

    def domsg(self, port: str, cmd: str, **args: Any) -> Any:
        """Send a message, wait for its reply and return the result. Counterpart: lwkt_domsg."""
        return self.waitmsg(self.sendmsg(port, cmd, **args))

    def waitmsg(self, msg: Msg, timeout: float | None = None) -> Any:
        """Wait for one reply; other replies are kept for `waitport`. Counterpart: lwkt_waitmsg.

        Raises KernelError, ConnectionLost, and TimeoutError after ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not msg.done:
            self._receive(deadline)
        if msg in self._arrived:
            self._arrived.remove(msg)
        return msg.value()

    def waitport(self, timeout: float | None = None) -> Msg:
        """Wait for any reply, oldest first. Counterpart: lwkt_waitport on a reply port."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._arrived:
            self._receive(deadline)
        return self._arrived.popleft()

    def abortmsg(self, msg: Msg) -> None:
        """Ask for an early reply to ``msg``. Counterpart: lwkt_abortmsg."""
        if not msg.done:
            self._send(Frame(Op.ABORT, msg.msgid, 0, None))

    # --- the socket ------------------------------------------------------------------------

    def _send(self, frame: Frame) -> None:
        try:
            self._sock.sendall(frame.encode())
        except (BrokenPipeError, ConnectionResetError):
            raise ConnectionLost("the kernel has closed the connection") from None

    def _receive(self, deadline: float | None) -> None:
        if deadline is not None:
            self._sock.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            data = self._sock.recv(_RECV)
        except ConnectionResetError:
            data = b""
        finally:
            if deadline is not None:
                self._sock.settimeout(None)
        if not data:
            raise ConnectionLost("the kernel has closed the connection")
        try:
            for frame in self._decoder.feed(data):
                self._take(frame)
        except WireError as error:
            raise ConnectionLost(f"the other side does not speak this protocol: {error}") from None

    def _take(self, frame: Frame) -> None:
        msg = self._open.pop(frame.msgid, None)
        if msg is not None:
            msg.error, msg.result, msg.done = frame.error, frame.payload, True
            self._arrived.append(msg)
        elif frame.msgid == 0 and frame.error:
            text = frame.payload.get("error") if isinstance(frame.payload, dict) else None
            raise ConnectionLost(f"the kernel gave up on this connection: {text or frame.error}")


def connect(
    mountpoint: str | None = None, *, path: str | None = None, name: str = ""
) -> Connection:
    """Connect to the kernel mounted on ``mountpoint``, to the only one, or to a socket ``path``.

    Raises:
        NoInstance: nothing fits.
        KernelError: the kernel does not want this client.
        OSError: the socket cannot be connected.
    """
    return Connection(path or _instances.choose(mountpoint).socket, name)
