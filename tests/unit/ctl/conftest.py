"""A bare machine under trio with a control socket, and a peer that speaks frames."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from dfuser.client.wire import MAX_REPLY, Decoder, Frame, Op
from dfuser.ctl.server import ControlSocket
from dfuser.ctl.service import Service, command
from dfuser.hw.clock import HostClock
from dfuser.libkern.errno import EBUSY, KError
from dfuser.libkern.ktr import Ktr
from dfuser.libkern.log import MsgBuf
from dfuser.libkern.param import PCATCH
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt.block import Block
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.synch import tsleep, wakeup
from dfuser.vfs.hostcache import HostCache


class EchoService(Service):
    """Commands that do everything a command can do."""

    name = "echo"

    def __init__(self, lwkt: Lwkt) -> None:
        self.reports: list[str] = []
        self.panics: list[BaseException] = []
        self.open = False
        self.sleepers = 0
        self.host: HostCache | None = None
        super().__init__(lwkt, lambda where, _text: self.reports.append(where), self.panics.append)

    @property
    def hostcache(self) -> HostCache | None:
        """Whatever the test gives."""
        return self.host

    @command
    def cmd_say(self, cred: Ucred, value: Any = None, times: int = 1) -> Any:
        """Give the value back."""
        return value * times if times != 1 else value

    @command
    def cmd_fail(self, cred: Ucred) -> None:
        """Fail as commands do."""
        raise KError(EBUSY, "taken")

    @command
    def cmd_bug(self, cred: Ucred) -> None:
        """Fail as commands must not."""
        raise ZeroDivisionError("a bug")

    @command(settles=True)
    def cmd_change(self, cred: Ucred) -> str:
        """Change what the host has cached."""
        return "changed"

    @command
    def cmd_unsendable(self, cred: Ucred) -> object:
        """Give what JSON cannot carry."""
        return {1, 2}

    @command
    def cmd_wait(self, cred: Ucred) -> str:
        """Wait until the door is open."""
        if not self.open:
            raise Block(self._wait, "door")
        return "open"

    async def _wait(self) -> int:
        self.sleepers += 1
        try:
            return await tsleep(self, PCATCH, "door")
        finally:
            self.sleepers -= 1

    def open_door(self) -> None:
        """Let all waiters go."""
        self.open = True
        self.lwkt.cpus[0].interrupt(wakeup, self)

    def hidden(self, cred: Ucred) -> None:
        """Not a command."""


class RawPeer:
    """A client that sends whatever a test wants."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.decoder = Decoder(MAX_REPLY)
        self.frames: list[Frame] = []

    async def send(self, *frames: Frame) -> None:
        """Send frames."""
        await self.stream.send_all(b"".join(frame.encode() for frame in frames))

    async def reply(self) -> Frame | None:
        """The next frame; None when the server has closed."""
        while not self.frames:
            try:
                data = await self.stream.receive_some()
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            self.frames += self.decoder.feed(data)
        return self.frames.pop(0)

    async def hello(self) -> Any:
        """Greet; gives what the server says about itself."""
        await self.send(Frame(Op.HELLO, 0, 0, {"client": "test"}))
        frame = await self.reply()
        assert frame is not None
        return frame.payload

    async def call(self, cmd: str, msgid: int = 1, **args: Any) -> Frame:
        """One message and its reply."""
        await self.send(message(cmd, msgid, **args))
        frame = await self.reply()
        assert frame is not None
        return frame


def message(cmd: str, msgid: int = 1, port: Any = "echo", **args: Any) -> Frame:
    """A SENDMSG frame."""
    return Frame(Op.SENDMSG, msgid, 0, {"port": port, "cmd": cmd, "args": args})


class Place:
    """A served control socket."""

    def __init__(self, control: ControlSocket, service: EchoService) -> None:
        self.control = control
        self.service = service
        self.lwkt = control.lwkt
        self._peers: list[RawPeer] = []

    async def connect(self) -> RawPeer:
        """A connected peer that has not greeted; closed at the end of the test at the latest."""
        peer = RawPeer(await trio.open_unix_socket(self.control.path))
        self._peers.append(peer)
        return peer

    async def close(self) -> None:
        """Close every peer."""
        for peer in self._peers:
            await peer.stream.aclose()


@pytest.fixture
def socket_path() -> Iterator[str]:
    """A path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="dfuser-") as directory:
        yield str(Path(directory) / "s")


@pytest.fixture
async def place(socket_path: str, nursery: trio.Nursery) -> AsyncIterator[Place]:
    """A control socket over a machine that trio runs; nothing is left of it afterwards."""
    clock = HostClock()
    lwkt = Lwkt(2, clock, Ktr(2, clock, entries=256), MsgBuf(), default_driver="task")
    await nursery.start(clock.run)
    await lwkt.start(nursery)
    control = ControlSocket(socket_path, lwkt, {"version": "test"})
    service = EchoService(lwkt)
    control.add(service)
    scope = trio.CancelScope()

    async def serve(task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await control.serve(task_status)

    await nursery.start(serve)
    made = Place(control, service)
    yield made
    scope.cancel()
    await made.close()
    await trio.testing.wait_all_tasks_blocked()
    assert not await trio.Path(socket_path).exists()
    assert not control._peers
    await lwkt.shutdown()
    assert not lwkt.threads
