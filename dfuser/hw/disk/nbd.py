"""Network block devices: a disk behind a socket.

This is the road to storage that others have built: qemu-nbd, nbdkit and what they front (Ceph RBD,
qcow2, object stores). Requests are pipelined; when the connection breaks it is made again, for as
long as it takes, and nothing is lost (see `nbdsession`).

`NbdDisk`
    For kernels. `connect` makes the first connection, so that the size is known; ``run`` is the
    pump that sends, receives, and connects again. Replies are interrupts. It has no in-place form.
`BlockingNbdDisk`
    For tools without a kernel: in place, over a blocking socket, with a limited number of tries.

Counterpart: none in DragonFly.
Token/lock order: takes none.
Invariants: at most one connection a disk; after `close` there is none.
"""

from __future__ import annotations

import contextlib
import math
import socket
import time
from typing import Final

import trio

from dfuser.libkern.errno import EIO, EROFS, KKASSERT, KError
from dfuser.libkern.linux_errno import kerror_from_host

from . import nbdwire as wire
from .disk import DiskBase, DiskRequest
from .nbdsession import REPLAY_BYTES, NbdSession, NbdSessionStatistics
from .nbdwire import Export, Handshake, NbdAddress, NbdError

#: Bytes asked of a socket at once.
RECEIVE: Final = 256 << 10
#: Seconds before a lost connection is made again, at first and at most.
BACKOFF_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0
#: Seconds a handshake may take.
HANDSHAKE_S: Final = 10.0
#: Tries of `BlockingNbdDisk` to make a connection again.
TRIES: Final = 8

_FAILURES: Final = (OSError, NbdError, trio.BrokenResourceError, trio.ClosedResourceError)


def _geometry(address: NbdAddress, export: Export, readonly: bool) -> tuple[str, int, int, bool]:
    """Name, size, sector size and read-only flag of a disk.

    Raises:
        KError: EROFS, writing is wanted and the export is read-only.
    """
    if not readonly and export.flags & wire.FLAG_READ_ONLY:
        raise KError(EROFS, f"{address}: the export is read-only")
    sector = min(max(512, export.minimum), 4096)
    return str(address), export.size // sector * sector, sector, readonly


# --- for kernels ---------------------------------------------------------------------------


async def _open_stream(address: NbdAddress) -> trio.SocketStream:
    if address.path:
        return await trio.open_unix_socket(address.path)
    stream = await trio.open_tcp_stream(address.host, address.port)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream


async def _handshake(address: NbdAddress) -> tuple[trio.SocketStream, Export, bytes]:
    """Connect; returns the stream, the export, and what came behind the handshake."""
    with trio.move_on_after(HANDSHAKE_S):
        stream = await _open_stream(address)
        try:
            shake = Handshake(address.export)
            while shake.export is None:
                data = await stream.receive_some(RECEIVE)
                if not data:
                    raise NbdError("the server hung up during the handshake")
                answer = shake.feed(bytes(data))
                if answer:
                    await stream.send_all(answer)
            return stream, shake.export, shake.rest
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
    raise NbdError(f"no handshake within {HANDSHAKE_S:g} s")


class NbdDisk(DiskBase):
    """A network block device for a kernel. Made by `connect`.

    Attributes:
        address: where it is.
        session: what it remembers.
        patience: seconds without a connection after which everything fails with ENXIO.
        last_error: why the last connection broke or was not made.
    """

    __slots__ = ("_first", "_kick", "_running", "address", "last_error", "patience", "session")

    def __init__(
        self,
        address: NbdAddress,
        first: tuple[trio.SocketStream, Export, bytes],
        *,
        readonly: bool,
        replay: int,
        patience: float,
    ) -> None:
        """Take over a connection; use `connect` instead."""
        super().__init__(*_geometry(address, first[1], readonly))
        self.address = address
        self.session = NbdSession(replay)
        self.session.connection_made(first[1])
        self.patience = patience
        self.last_error = ""
        self._first: tuple[trio.SocketStream, Export, bytes] | None = first
        self._kick = trio.Event()
        self._running = False

    @classmethod
    async def connect(
        cls,
        address: NbdAddress,
        *,
        readonly: bool = False,
        replay: int = REPLAY_BYTES,
        patience: float = math.inf,
    ) -> NbdDisk:
        """Make the first connection.

        Args:
            address: where the server is.
            readonly: refuse every change.
            replay: bytes of unstable changes to remember, see `nbdsession`.
            patience: seconds to go on trying when the connection is lost.

        Raises:
            KError: EIO, no server, or none that we understand; the text says why. EROFS, the
                export is read-only and ``readonly`` is not set.
        """
        try:
            first = await _handshake(address)
        except NbdError as error:
            raise KError(EIO, f"{address}: {error}") from None
        except OSError as error:
            raise KError(kerror_from_host(error).errno, f"{address}: {error}") from None
        try:
            return cls(address, first, readonly=readonly, replay=replay, patience=patience)
        except KError:
            await trio.aclose_forcefully(first[0])
            raise

    @property
    def inplace(self) -> bool:
        """Never: it must be waited for."""
        return False

    @property
    def can_trim(self) -> bool:
        """Whether the server can."""
        return self.session.can(wire.FLAG_SEND_TRIM)

    def _start(self, request: DiskRequest) -> None:
        inside = True

        def done(error: int) -> None:
            if not inside:
                self.waited += 1
            self._finish(request, KError(error) if error else None)

        self.session.submit(request, done)
        inside = False
        self._kick.set()

    # --- the pump --------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send, receive, and connect again, until cancelled or out of patience."""
        KKASSERT(not self._running, "the pump of an NBD disk runs twice")
        self._running = True
        task_status.started()
        delay = BACKOFF_S
        try:
            while not self.session.dead:
                first, self._first = self._first, None
                if first is None:
                    first = await self._reconnect()
                if first is None:
                    continue
                answers = self.session.answers
                await self._serve(first)
                if self.session.answers == answers and self.session.busy:
                    await trio.sleep(delay)
                    delay = min(delay * 2, BACKOFF_MAX_S)
                else:
                    delay = BACKOFF_S
        finally:
            self._running = False

    async def _reconnect(self) -> tuple[trio.SocketStream, Export, bytes] | None:
        """Make the connection again; None, and a dead session, when patience is at its end."""
        delay = BACKOFF_S
        deadline = trio.current_time() + self.patience
        while True:
            try:
                made = await _handshake(self.address)
            except _FAILURES as error:
                self.last_error = str(error)
                if trio.current_time() + delay > deadline:
                    self.session.kill(f"no connection: {error}")
                    return None
                await trio.sleep(delay)
                delay = min(delay * 2, BACKOFF_MAX_S)
                continue
            try:
                self.session.connection_made(made[1])
            except KError as error:
                self.last_error = str(error)
                await trio.aclose_forcefully(made[0])
                return None
            return made

    async def _serve(self, made: tuple[trio.SocketStream, Export, bytes]) -> None:
        """Use a connection until it breaks."""
        stream, _export, rest = made
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, stream, nursery.cancel_scope)
                await self._receive(stream, rest)
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)
            if not self.session.dead:
                self.session.connection_lost()

    async def _receive(self, stream: trio.SocketStream, rest: bytes) -> None:
        """Take replies; returns when the connection is of no more use."""
        data = rest
        while True:
            if data:
                try:
                    self.session.input(data)
                except NbdError as error:
                    self.last_error = str(error)
                    return
                self._kick.set()
                if self.session.dead:
                    return
            try:
                data = bytes(await stream.receive_some(RECEIVE))
            except _FAILURES as error:
                self.last_error = str(error)
                return
            if not data:
                self.last_error = "the server hung up"
                return

    async def _send(self, stream: trio.SocketStream, scope: trio.CancelScope) -> None:
        """Send what the session has to send."""
        try:
            while True:
                self._kick = trio.Event()
                out = self.session.output()
                if not out:
                    await self._kick.wait()
                    continue
                for part in out:
                    await stream.send_all(part)
        except _FAILURES as error:
            self.last_error = str(error)
            scope.cancel()

    def connection(self) -> NbdSessionStatistics:
        """What the session did."""
        return self.session.statistics()

    async def aclose(self) -> None:
        """Say goodbye to a server that has answered everything; the pump must have ended."""
        KKASSERT(not self._running, "an NBD disk is closed while its pump runs")
        first, self._first = self._first, None
        if first is not None:
            await trio.aclose_forcefully(first[0])
        self.close()


# --- for tools -----------------------------------------------------------------------------


class BlockingNbdDisk(DiskBase):
    """A network block device for tools: in place, on a blocking socket.

    Args:
        address: where the server is.
        readonly: refuse every change.
        tries: how often to connect again before a request fails.

    Raises:
        KError: as `NbdDisk.connect`.
    """

    __slots__ = ("_socket", "_tries", "address", "session")

    def __init__(self, address: NbdAddress, *, readonly: bool = False, tries: int = TRIES) -> None:
        self.address = address
        self.session = NbdSession()
        self._tries = tries
        self._socket: socket.socket | None = None
        try:
            export = self._connect()
        except (OSError, NbdError) as error:
            raise KError(EIO, f"{address}: {error}") from None
        try:
            super().__init__(*_geometry(address, export, readonly))
        except KError:
            self._hang_up()
            raise

    @property
    def can_trim(self) -> bool:
        """Whether the server can."""
        return self.session.can(wire.FLAG_SEND_TRIM)

    def _connect(self) -> Export:
        """Make a connection.

        Raises:
            OSError, NbdError: it was not made.
        """
        address = self.address
        if address.path:
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        else:
            made = socket.create_connection((address.host, address.port), HANDSHAKE_S)
        try:
            made.settimeout(HANDSHAKE_S)
            if address.path:
                made.connect(address.path)
            else:
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            shake = Handshake(address.export)
            while shake.export is None:
                data = made.recv(RECEIVE)
                if not data:
                    raise NbdError("the server hung up during the handshake")
                made.sendall(shake.feed(data))
            made.settimeout(None)
            self.session.connection_made(shake.export)
        except BaseException:
            made.close()
            raise
        self._socket = made
        return shake.export

    def _hang_up(self) -> None:
        made, self._socket = self._socket, None
        if made is not None:
            made.close()
            self.session.connection_lost()

    def _transfer(self, request: DiskRequest) -> None:
        outcome: list[int] = []
        self.session.submit(request, outcome.append)
        failures = 0
        while not outcome:
            try:
                if self._socket is None:
                    self._connect()
                self._exchange()
            except (OSError, NbdError) as error:
                self._hang_up()
                failures += 1
                if failures > self._tries:
                    self.session.kill(str(error))
                elif not self.session.dead:
                    time.sleep(min(BACKOFF_S * 2**failures, BACKOFF_MAX_S))
        if outcome[0]:
            raise KError(outcome[0], self.session.dead or None)

    def _exchange(self) -> None:
        """Send what there is to send, and take one piece of what comes."""
        made = self._socket
        assert made is not None
        for part in self.session.output():
            made.sendall(part)
        if not self.session.busy:
            return
        data = made.recv(RECEIVE)
        if not data:
            raise NbdError("the server hung up")
        self.session.input(data)

    def close(self) -> None:
        """Say goodbye and hang up; a second call does nothing."""
        if self.closed:
            return
        super().close()
        made = self._socket
        if made is not None:
            with contextlib.suppress(OSError):  # it may be gone already
                made.sendall(wire.pack_request(wire.CMD_DISC, 0))
        self._hang_up()
