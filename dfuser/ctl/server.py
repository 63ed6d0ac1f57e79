"""The control socket: LWKT ports for host processes, over one Unix-domain socket.

Each connection is a trio task that decodes frames and a second one that writes replies. A message
becomes a `CtlMsg` on the port of its service, sent from a borrowed context; its reply port writes
the frame. The protocol is in `dfuser.client.wire`.

Only the user who runs dfuser, and root, may connect: the socket's mode is 0600 and the peer's
credentials are checked besides. Both are the kernel's operators, who own its process and its
memory; so commands run with the credentials of root inside, whatever their user is on the host.

Counterpart: none; the export of message ports to user processes that DragonFly's founding paper
announces.
Invariants: an open message belongs to one connection and is replied to or aborted before the
connection's tasks end; what waits to be written is bounded, a peer that does not read is cut off.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import trio

from dfuser.client.wire import MAX_REPLY, MAX_REQUEST, Decoder, Frame, Op, WireError
from dfuser.libkern.errno import EAGAIN, EFBIG, EINVAL, EIO, ENOENT, EPERM
from dfuser.libkern.sysctl import Sysctl
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt.msgkinds import initport_replyonly
from dfuser.lwkt.msgport import MSGF, LwktMsg, Port

from .service import CtlMsg, Service

if TYPE_CHECKING:
    from dfuser.lwkt.machine import Lwkt

_log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 64
#: Open messages a connection may have, and bytes that may wait to be written to it.
MAX_OPEN: Final = 256
MAX_OUTGOING: Final = 64 << 20
#: Seconds a peer that has ended its side gets to take the replies that wait for it.
FLUSH_TIME: Final = 1.0
#: Pause after the host could not give us a descriptor.
_ACCEPT_PAUSE: Final = 0.1
_RECV: Final = 1 << 16
_PEERCRED: Final = struct.Struct("3i")


class ServerStatistics(NamedTuple):
    """What `ControlSocket.statistics` returns."""

    connections: int
    accepted: int
    refused: int
    messages: int
    corrupt: int


class _Peer:
    """One connection: its open messages, and what waits to be written to it."""

    __slots__ = ("_bytes", "_more", "_outgoing", "client", "closing", "cred", "greeted", "open",
                 "port", "scope", "sock")  # fmt: skip

    def __init__(self, sock: trio.socket.SocketType, cred: Ucred, lwkt: Lwkt) -> None:
        self.sock = sock
        self.cred = cred
        self.client = "?"
        self.greeted = False
        self.closing = False
        self.open: dict[int, CtlMsg] = {}
        self.port: Port | None = initport_replyonly(self._reply, "ctl:?", lwkt)
        #: Ends both tasks of the connection at once.
        self.scope = trio.CancelScope()
        #: Frames, each with what the writer awaits before it.
        self._outgoing: deque[tuple[bytes, Callable[[], Awaitable[None]] | None]] = deque()
        self._bytes = 0
        self._more = trio.Event()

    def _reply(self, port: Port, msg: LwktMsg) -> None:
        assert isinstance(msg, CtlMsg)
        msg.flags |= MSGF.REPLY | MSGF.DONE
        self.open.pop(msg.msgid, None)
        self.put(Frame(Op.REPLY, msg.msgid, msg.error, msg.result), msg.settle)

    def put(self, frame: Frame, settle: Callable[[], Awaitable[None]] | None = None) -> None:
        """Queue a frame for the writer. Never raises: it may be called by any thread.

        The writer awaits ``settle`` first: a bounded time, in which later frames wait too.
        """
        data = _encode(frame)
        self._bytes += len(data)
        if self._bytes > MAX_OUTGOING:
            _log.info("control connection of %s: does not read its replies", self.client)
            self.scope.cancel()
        else:
            self._outgoing.append((data, settle))
        self._more.set()

    def finish(self) -> None:
        """Let the writer end when it has written what is queued."""
        self.closing = True
        self._more.set()

    async def write(self) -> None:
        """The writer's task."""
        while True:
            while self._outgoing:
                frame, settle = self._outgoing.popleft()
                if settle is not None:
                    await settle()
                data = memoryview(frame)
                length = len(data)
                while data:
                    data = data[await self.sock.send(data) :]
                self._bytes -= length
            if self.closing:
                return
            self._more = trio.Event()
            await self._more.wait()


def _encode(frame: Frame) -> bytes:
    """The bytes of a reply; an error instead of one that cannot be sent."""
    try:
        data = frame.encode()
    except (TypeError, ValueError, RecursionError) as error:
        _log.error("a reply cannot be sent: %s", error)
        text = {"error": f"the result cannot be sent: {error}"}
        return Frame(frame.op, frame.msgid, EIO, text).encode()
    if len(data) > MAX_REPLY:
        text = {"error": f"the result has {len(data)} bytes, more than {MAX_REPLY}: ask for less"}
        return Frame(frame.op, frame.msgid, EFBIG, text).encode()
    return data


class ControlSocket:
    """The server.

    Args:
        path: where the socket is bound; an old one of a dead process must be gone.
        lwkt: the machine.
        about: what HELLO tells a client, beside the ports.
    """

    sysctl_connections = Sysctl("kern.ctl.connections", "control connections", getter="_count")
    sysctl_messages = Sysctl("kern.ctl.messages", "control messages received", attr="messages")
    sysctl_corrupt = Sysctl(
        "kern.ctl.corrupt", "control connections ended for corrupt frames", attr="corrupt"
    )

    def __init__(self, path: str, lwkt: Lwkt, about: Mapping[str, Any]) -> None:
        self.path = path
        self.lwkt = lwkt
        self.about = about
        self.services: dict[str, Service] = {}
        self.accepted = 0
        self.refused = 0
        self.messages = 0
        self.corrupt = 0
        self._peers: set[_Peer] = set()

    def _count(self) -> int:
        return len(self._peers)

    def add(self, service: Service) -> None:
        """Export a service under its name."""
        self.services[service.name] = service

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept connections until cancelled; the socket file is removed then.

        Raises OSError: the socket cannot be bound.
        """
        listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            before = os.umask(0o177)
            try:
                await listener.bind(self.path)
            finally:
                os.umask(before)
            listener.listen(16)
            task_status.started()
            async with trio.open_nursery() as nursery:
                while True:
                    sock = await self._accept(listener)
                    peer = self._admit(sock)
                    if peer is not None:
                        nursery.start_soon(self._connection, peer)
        finally:
            listener.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)

    async def _accept(self, listener: trio.socket.SocketType) -> trio.socket.SocketType:
        while True:
            try:
                sock, _ = await listener.accept()
            except OSError as error:
                if error.errno == errno.EBADF:
                    raise
                _log.warning("control socket: %s", error)
                await trio.sleep(_ACCEPT_PAUSE)
            else:
                return sock

    def _admit(self, sock: trio.socket.SocketType) -> _Peer | None:
        """A peer for a new connection; None for one that is told why not and closed."""
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
        _pid, uid, _gid = _PEERCRED.unpack(raw)
        error, text = 0, ""
        if uid not in (0, os.geteuid()):
            error, text = EPERM, "only the user who runs this dfuser, and root, may connect"
        elif len(self._peers) >= MAX_CONNECTIONS:
            error, text = EAGAIN, f"{MAX_CONNECTIONS} connections are open"
        if error:
            self.refused += 1
            with contextlib.suppress(OSError), socket.socket(fileno=sock.detach()) as plain:
                plain.send(Frame(Op.REPLY, 0, error, {"error": text}).encode())
            return None
        self.accepted += 1
        peer = _Peer(sock, Ucred.root(), self.lwkt)
        self._peers.add(peer)
        return peer

    async def _connection(self, peer: _Peer) -> None:
        try:
            with peer.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._writer, peer)
                    await self._reader(peer)
                    peer.scope.deadline = trio.current_time() + FLUSH_TIME
                    peer.finish()
        finally:
            self._peers.discard(peer)
            self._in_context(self._abort_all, peer)
            peer.port = None  # port and peer hold each other
            peer.sock.close()

    async def _writer(self, peer: _Peer) -> None:
        try:
            await peer.write()
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.EBADF):
                _log.info("control connection of %s: %s", peer.client, error)
            peer.scope.cancel()

    async def _reader(self, peer: _Peer) -> None:
        """Serve frames until the peer ends, errs, or sends something that is none."""
        decoder = Decoder(MAX_REQUEST)
        while True:
            try:
                data = await peer.sock.recv(_RECV)
            except OSError:
                return
            if not data:
                return
            try:
                for frame in decoder.feed(data):
                    if not self._in_context(self._dispatch, peer, frame):
                        return
            except WireError as error:
                self.corrupt += 1
                peer.put(Frame(Op.REPLY, 0, error.errno, {"error": str(error)}))
                return

    def _in_context(self, fn: Any, *args: Any) -> Any:
        """Run ``fn`` as a request of the host: in a borrowed context on CPU 0."""
        td = self.lwkt.cpus[0].borrow()
        try:
            return fn(*args)
        finally:
            td.cpu.unborrow(td)

    def _dispatch(self, peer: _Peer, frame: Frame) -> bool:
        """Serve one frame; False ends the connection."""
        if frame.op == Op.HELLO:
            peer.greeted = True
            payload = frame.payload if isinstance(frame.payload, dict) else {}
            peer.client = str(payload.get("client", "?"))[:64]
            if peer.port is not None:
                peer.port.name = f"ctl:{peer.client}"
            ports = {name: service.commands() for name, service in self.services.items()}
            peer.put(Frame(Op.REPLY, frame.msgid, 0, {**self.about, "ports": ports}))
            return True
        if not peer.greeted or frame.op not in (Op.SENDMSG, Op.ABORT):
            self.corrupt += 1
            text = f"operation {frame.op} is unknown" if peer.greeted else "expected HELLO first"
            peer.put(Frame(Op.REPLY, frame.msgid, EINVAL, {"error": text}))
            return False
        if frame.op == Op.ABORT:
            msg = peer.open.get(frame.msgid)
            if msg is not None:
                msg.abortmsg()
            return True
        self._message(peer, frame)
        return True

    def _message(self, peer: _Peer, frame: Frame) -> None:
        self.messages += 1
        error, text = self._check(peer, frame)
        if error:
            peer.put(Frame(Op.REPLY, frame.msgid, error, {"error": text}))
            return
        payload = frame.payload
        assert peer.port is not None
        msg = CtlMsg(peer.port, frame.msgid, payload["cmd"], payload.get("args") or {}, peer.cred)
        peer.open[frame.msgid] = msg
        self.services[payload["port"]].port.sendmsg(msg)

    def _check(self, peer: _Peer, frame: Frame) -> tuple[int, str]:
        """What is wrong with a message: errno and text, or 0."""
        payload = frame.payload
        if not (
            isinstance(payload, dict)
            and isinstance(payload.get("port"), str)
            and isinstance(payload.get("cmd"), str)
            and isinstance(payload.get("args", {}), dict)
        ):
            return EINVAL, 'a message is {"port": name, "cmd": name, "args": {...}}'
        if payload["port"] not in self.services:
            names = ", ".join(self.services)
            return ENOENT, f"there is no port {payload['port'][:64]!r}: there are {names}"
        if frame.msgid in peer.open:
            return EINVAL, f"message {frame.msgid} is open already"
        if len(peer.open) >= MAX_OPEN:
            return EAGAIN, f"{MAX_OPEN} messages are open on this connection"
        return 0, ""

    @staticmethod
    def _abort_all(peer: _Peer) -> None:
        for msg in list(peer.open.values()):
            msg.abortmsg()

    def statistics(self) -> ServerStatistics:
        """Counters since boot."""
        return ServerStatistics(
            len(self._peers), self.accepted, self.refused, self.messages, self.corrupt
        )
