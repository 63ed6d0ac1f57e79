"""A small NBD server that can be made to misbehave: hang up, crash, reorder, lie, refuse."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import trio

from dfuser.hw.disk import nbdwire as wire
from dfuser.hw.disk.fault import FaultDisk
from dfuser.hw.disk.ram import RamDisk
from dfuser.libkern.errno import KError

ALL = (
    wire.FLAG_HAS_FLAGS | wire.FLAG_SEND_FLUSH | wire.FLAG_SEND_FUA | wire.FLAG_SEND_TRIM
    | wire.FLAG_SEND_WRITE_ZEROES
)  # fmt: skip
REQUEST = struct.Struct(">IHHQQI")
OPTION = struct.Struct(">8sII")


class Server:
    """A server for one export with a volatile cache.

    Attributes:
        disk: the export; what is not flushed is lost when the server crashes.
        flags: of the export. structured, fixed, zeroes, go: what the handshake knows.
        maximum: block size told to clients; 0 tells none.
        hang_up_after: requests a connection serves before it ends; counts down, 0 is never.
        hang_up_every: each connection gets a random ``hang_up_after`` below this; 0 is none.
        crash: whether the volatile cache is lost when a connection ends so.
        reorder: answer in random order.
        error: called with each request: a Linux errno to answer with, or 0.
        garble: called with each answer before it is sent.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.medium = RamDisk(size)
        self.disk = FaultDisk(self.medium, volatile=True, seed=seed, survival=0.3)
        self.rng = random.Random(seed)
        self.flags = ALL
        self.structured = True
        self.fixed = True
        self.zeroes = False
        self.go = True
        self.maximum = 0
        self.hang_up_after = 0
        self.hang_up_every = 0
        self.crash = False
        self.reorder = False
        self.error: Callable[[int, int], int] = lambda cmd, offset: 0
        self.garble: Callable[[bytes], bytes] = lambda answer: answer
        self.connections = 0
        self.requests: list[tuple[int, int, int, int]] = []
        self.greeting = wire.NBDMAGIC + wire.IHAVEOPT

    # --- the handshake ---------------------------------------------------------------------

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        if self.hang_up_every:
            self.hang_up_after = self.rng.randrange(1, self.hang_up_every)
        try:
            async with stream:
                if await self._options(Reader(stream), stream):
                    await self._transmission(Reader(stream), stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError, EOFError):
            pass

    async def _options(self, reader: Reader, stream: trio.SocketStream) -> bool:
        mine = (wire.FLAG_FIXED_NEWSTYLE if self.fixed else 0) | (
            0 if self.zeroes else wire.FLAG_NO_ZEROES
        )
        await stream.send_all(self.greeting + mine.to_bytes(2, "big"))
        assert int.from_bytes(await reader.take(4), "big") == mine
        agreed = False
        while True:
            magic, option, length = OPTION.unpack(await reader.take(OPTION.size))
            assert magic == wire.IHAVEOPT
            body = await reader.take(length)

            async def reply(kind: int, data: bytes = b"", option: int = option) -> None:
                head = struct.pack(">QIII", wire.OPT_REPLY_MAGIC, option, kind, len(data))
                await stream.send_all(head + data)

            size = struct.pack(">QH", self.disk.size, self.flags)
            if option == wire.OPT_STRUCTURED_REPLY and self.structured:
                agreed = True
                await reply(wire.REP_ACK)
            elif option == wire.OPT_GO and self.go:
                if body[4:-4].startswith(b"missing"):
                    await reply(wire.REP_ERR | 6, b"never heard of it")
                    continue
                await reply(wire.REP_INFO, struct.pack(">H", wire.INFO_EXPORT) + size)
                if self.maximum:
                    blocks = struct.pack(">HIII", wire.INFO_BLOCK_SIZE, 512, 4096, self.maximum)
                    await reply(wire.REP_INFO, blocks)
                await reply(wire.REP_ACK)
                self.chunks = agreed
                return True
            elif option == wire.OPT_EXPORT_NAME:
                await stream.send_all(size + bytes(124 if self.zeroes else 0))
                self.chunks = agreed
                return True
            else:
                await reply(wire.REP_ERR | 1)

    # --- transmission ----------------------------------------------------------------------

    async def _transmission(self, reader: Reader, stream: trio.SocketStream) -> None:
        answers: list[bytes] = []
        while True:
            magic, flags, cmd, handle, offset, length = REQUEST.unpack(
                await reader.take(REQUEST.size)
            )
            assert magic == wire.REQUEST_MAGIC
            data = await reader.take(length) if cmd == wire.CMD_WRITE else b""
            if cmd == wire.CMD_DISC:
                return
            self.requests.append((cmd, offset, length, flags))
            if self.hang_up_after:
                self.hang_up_after -= 1
                if not self.hang_up_after:
                    if self.rng.random() < 0.5:  # done, and the answer never sent
                        self._carry_out(cmd, offset, length, data, flags)
                    if self.crash:
                        self.disk.power_cut()
                        self.disk.power_on()
                    return
            answers.append(self._answer(cmd, handle, offset, length, data, flags))
            if self.reorder and len(answers) < 4 and reader.more():
                continue
            self.rng.shuffle(answers)
            for answer in answers:
                await stream.send_all(self.garble(answer))
            answers.clear()

    def _carry_out(self, cmd: int, offset: int, length: int, data: bytes, flags: int) -> bytes:
        if cmd == wire.CMD_READ:
            return self.disk.read(offset, length)
        if cmd == wire.CMD_WRITE:
            self.disk.write(offset, data, fua=bool(flags & wire.CMD_FLAG_FUA))
        elif cmd == wire.CMD_FLUSH:
            self.disk.flush()
        elif cmd == wire.CMD_TRIM:
            self.disk.trim(offset, length)
        else:
            self.disk.zero(offset, length)
        return b""

    def _answer(
        self, cmd: int, handle: int, offset: int, length: int, data: bytes, flags: int
    ) -> bytes:
        error = self.error(cmd, offset)
        got = b""
        if not error:
            try:
                got = self._carry_out(cmd, offset, length, data, flags)
            except KError as failure:
                error = failure.errno
        if not self.chunks:
            return struct.pack(">IIQ", wire.SIMPLE_MAGIC, error, handle) + got
        if error:
            return chunk(handle, 1, wire.REPLY_ERROR, struct.pack(">IH", error, 3) + b"bad")
        if cmd != wire.CMD_READ:
            return chunk(handle, 1, wire.REPLY_NONE, b"")
        pieces = []
        at = 0
        while at < length:
            size = min(self.rng.choice((512, 4096, 70_000)), length - at)
            part = got[at : at + size]
            if any(part):
                body = struct.pack(">Q", offset + at) + part
                pieces.append(chunk(handle, 0, wire.REPLY_OFFSET_DATA, body))
            else:
                body = struct.pack(">QI", offset + at, size)
                pieces.append(chunk(handle, 0, wire.REPLY_OFFSET_HOLE, body))
            at += size
        self.rng.shuffle(pieces)
        return b"".join(pieces) + chunk(handle, 1, wire.REPLY_NONE, b"")


def chunk(handle: int, flags: int, kind: int, body: bytes) -> bytes:
    return struct.pack(">IHHQI", wire.STRUCTURED_MAGIC, flags, kind, handle, len(body)) + body


class Reader:
    """Takes exactly so many bytes from a stream."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.buffer = bytearray()

    async def take(self, size: int) -> bytes:
        while len(self.buffer) < size:
            data = await self.stream.receive_some(65536)
            if not data:
                raise EOFError
            self.buffer += data
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    def more(self) -> bool:
        """Whether a whole request without data is here already."""
        return len(self.buffer) >= REQUEST.size


def listener(path: Path) -> trio.SocketListener:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.bind(str(path))
    made.listen()
    made.setblocking(False)
    return trio.SocketListener(trio.socket.from_stdlib_socket(made))


class ThreadServer:
    """A server in a thread of its own, for blocking clients."""

    def __init__(self, server: Server, path: Path) -> None:
        self.path = path
        self.server = server
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as self._scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(trio.serve_listeners, self.server.serve, [listener(self.path)])
                self._ready.set()

    def stop(self) -> None:
        self._token.run_sync_soon(self._scope.cancel)
        self._thread.join(10)
        assert not self._thread.is_alive()
