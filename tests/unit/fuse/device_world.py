"""A device connection without a mount: requests are put in by hand, replies are read back.

`World` dispatches requests directly; what is written for each lies in a file in memory, so that
long replies fit and several writes for one request would be seen. Its kernel has all its mounts
behind the one connection, as with ``-o onemount``.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import trio

from dfuser.boot.config import Config
from dfuser.boot.kernel import Kernel
from dfuser.fuse.device.connection import DeviceConnection
from dfuser.fuse.session import FuseSession, SessionOptions
from dfuser.fuse.wire import inputs as i
from dfuser.fuse.wire.const import IN_HEADER_SIZE, Opcode
from dfuser.fuse.wire.kernel import SHAPES, Reply, Tail, emit_request, parse_reply
from dfuser.fuse.wire.operations import has_reply
from dfuser.hw.fake import FakeHost

MEMORY: Final = 16 << 20
PID: Final = 4242
NAMES: Final = (b"a", b"b", b"dir", b"link", b"none", b"dev", b"kern", b"proc", b".", b"..")
#: What the kernel offers in INIT.
INIT_BODY: Final = i.InitIn(7, 45, 1 << 20, 0)
#: What takes away what the others need, and what makes it; so that random requests find something.
DESTRUCTIVE: Final = frozenset(
    {
        Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.RELEASE, Opcode.RELEASEDIR, Opcode.UNLINK,
        Opcode.RMDIR, Opcode.RENAME, Opcode.RENAME2, Opcode.DESTROY, Opcode.INIT,
    }
)  # fmt: skip
CONSTRUCTIVE: Final = (
    Opcode.LOOKUP, Opcode.CREATE, Opcode.CREATE, Opcode.OPEN, Opcode.OPENDIR, Opcode.TMPFILE,
    Opcode.MKDIR, Opcode.MKNOD,
)  # fmt: skip
S_IFREG: Final = 0o100000
O_RDWR: Final = 2


class World:
    """A kernel, its session, and the root's connection.

    Args:
        quick: whether answers come out of memory where they can.
        options: of the session.
    """

    def __init__(self, *, quick: bool = True, **options: Any) -> None:
        self.kernel = Kernel(Config(memory=MEMORY, seed=1, ncpu=2), FakeHost(MEMORY))
        self.kernel.boot()
        self.reports: list[str] = []
        self.panics: list[BaseException] = []
        self.session = FuseSession(
            self.kernel.vfs, self.kernel.lwkt, self.kernel.procs,
            SessionOptions("/nowhere", transport="device", onemount=True, **options),
            self._report, self.panics.append, self.kernel.posixlocks,
        )  # fmt: skip
        self.vfs = self.kernel.vfs
        self.vfs.hostcache = self.session.notifier
        root = self.session.root
        assert isinstance(root, DeviceConnection)
        self.connection = root
        self.kernel.in_context(root.take_root)
        if not quick:
            root._quick = (None,) * len(root._quick)
        self.out = root.fd = os.memfd_create("replies")
        self.unique = 0
        self.threads = set(self.kernel.lwkt.threads)

    def _report(self, where: str, text: str) -> None:
        if len(self.reports) < 100:
            self.reports.append(f"{where}: {text}")

    # --- requests --------------------------------------------------------------------------

    def put(self, data: bytes | bytearray, size: int | None = None) -> bytes:
        """Dispatch raw bytes; whatever was written for them."""
        os.ftruncate(self.out, 0)
        os.lseek(self.out, 0, os.SEEK_SET)
        self.connection.dispatch(data, len(data) if size is None else size)
        return os.pread(self.out, 1 << 24, 0)

    def emit(self, opcode: int, body: Any = None, nodeid: int = 1, **more: Any) -> bytes:
        """A request with a new number, from an ordinary user."""
        self.unique += 2
        more.setdefault("uid", 0)
        return emit_request(opcode, body, unique=self.unique, nodeid=nodeid, pid=PID, **more)

    def ask(self, opcode: int, body: Any = None, nodeid: int = 1, **more: Any) -> Reply | None:
        """Ask and check that the answer is the one the protocol wants; None where it wants none."""
        request = self.emit(opcode, body, nodeid, **more)
        answer = self.put(request)
        if not has_reply(opcode):
            assert not answer
            return None
        reply = parse_reply(opcode, answer, asked(opcode, body))
        assert reply.unique == self.unique
        return reply

    def body(self, opcode: int, body: Any = None, nodeid: int = 1, **more: Any) -> Any:
        """What the answer says; it must be a success."""
        reply = self.ask(opcode, body, nodeid, **more)
        assert reply is not None
        assert reply.error == 0, os.strerror(reply.error)
        return reply.body

    def make(self, name: bytes, mode: int = 0o644) -> tuple[int, int]:
        """Create a file; its number and its open."""
        made = self.body(Opcode.CREATE, i.CreateIn(O_RDWR, S_IFREG | mode, 0o022, 0, name))
        return made.entry.nodeid, made.open.fh

    # --- the end ---------------------------------------------------------------------------

    def held(self) -> dict[str, int]:
        """Everything that requests could have left behind, counted."""
        connection = self.connection
        return {
            "parked": len(connection.parked),
            "waiting": len(self.session.context.parked_threads),
            "threads": len(set(self.kernel.lwkt.threads) - self.threads),
            "contexts": sum(cpu.curthread is not None for cpu in self.kernel.lwkt.cpus),
            "serving": int(self.session.context.serving),
        }

    def release(self) -> None:
        """The host is gone: nothing is left of what it had."""
        connection = self.connection
        assert self.held() == dict.fromkeys(self.held(), 0)
        connection.locks.check()
        self.kernel.in_context(connection.release_all)
        nodes = connection.nodes
        assert not connection.ops.files
        assert not nodes.by_id
        assert not nodes.packed
        assert not nodes.orphans
        assert not connection.locks.owners
        assert not connection.locks.opened
        assert not self.kernel.posixlocks.counts

    def close(self) -> None:
        """Take everything down; the kernel must find nothing in use."""
        if self.connection.nodes.by_id:
            self.release()
        fd, self.connection.fd = self.connection.fd, -1
        os.close(self.out)
        assert fd == self.out or fd < 0
        self.vfs.hostcache = None
        pages = self.kernel.pages
        self.kernel.stop()
        assert "unmount of" not in self.kernel.msgbuf.text()
        now = pages.statistics()
        assert now.v_free_count == now.v_page_count


class Served:
    """A `World` whose kernel runs and whose loop reads a socket that stands for the device."""

    def __init__(self, world: World, ours: socket.socket) -> None:
        self.world = world
        self.ours = ours
        self.answers: dict[int, bytes] = {}
        #: Set when the loop has found the connection to be over.
        self.over = trio.Event()

    def send(self, opcode: int, body: Any = None, nodeid: int = 1, **more: Any) -> int:
        """Put a request into the device; its number."""
        self.ours.send(self.world.emit(opcode, body, nodeid, **more))
        return self.world.unique

    async def answer(self, unique: int) -> bytes:
        """The answer to a request, whenever it comes."""
        while unique not in self.answers:
            try:
                data = self.ours.recv(1 << 20)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.ours)
                continue
            assert data, "the other end is closed"
            number = int.from_bytes(data[8:16], "little")
            assert number not in self.answers, "answered twice"
            self.answers[number] = data
        return self.answers[unique]

    async def ask(self, opcode: int, body: Any = None, nodeid: int = 1, **more: Any) -> Reply:
        """A request and its answer."""
        unique = self.send(opcode, body, nodeid, **more)
        return parse_reply(opcode, await self.answer(unique), asked(opcode, body))

    async def body(self, opcode: int, body: Any = None, nodeid: int = 1, **more: Any) -> Any:
        """What the answer says; it must be a success."""
        reply = await self.ask(opcode, body, nodeid, **more)
        assert reply.error == 0, os.strerror(reply.error)
        return reply.body

    async def until(self, happened: Callable[[], bool]) -> None:
        """Let everything else run until it has happened."""
        with trio.fail_after(30):
            while not happened():
                await trio.lowlevel.checkpoint()


@contextlib.asynccontextmanager
async def served(**options: Any) -> AsyncIterator[Served]:
    """A running kernel behind a socket; at the end nothing may be left."""
    world = World(**options)
    kernel, session, connection = world.kernel, world.session, world.connection
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    made = Served(world, ours)
    async with trio.open_nursery() as nursery:
        await nursery.start(kernel.run)
        world.threads = set(kernel.lwkt.threads)
        nursery.start_soon(session.watcher.run)
        session.loop.start()
        connection.fd = theirs.detach()

        async def serve() -> None:
            await session.loop.run(connection)
            made.over.set()

        nursery.start_soon(serve)
        try:
            yield made
        finally:
            ours.close()
            with trio.fail_after(30):
                await made.over.wait()
                while session.context.parked_threads:
                    await trio.lowlevel.checkpoint()
            session.loop.stop()
            connection.shut()
            world.release()
            os.close(world.out)
            world.vfs.hostcache = None
            kernel.request_stop()
            nursery.cancel_scope.cancel()
    assert "unmount of" not in kernel.msgbuf.text()


def asked(opcode: int, body: Any) -> int | None:
    """The size that a request asked for, where it bounds the answer."""
    if opcode == Opcode.IOCTL:
        return int(body.out_size)
    if opcode in (
        Opcode.READ, Opcode.READDIR, Opcode.READDIRPLUS, Opcode.GETXATTR, Opcode.LISTXATTR,
    ):  # fmt: skip
        return int(body.size)
    return None


class Maker:
    """Makes random requests that the kernel could send, about few files, so that they meet.

    Args:
        rng: where chance comes from.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.nodes = [1]
        self.fhs = [0]

    def learn(self, opcode: int, reply: Reply | None) -> None:
        """Remember the numbers that an answer brought."""
        if reply is None or reply.error or reply.body is None:
            return
        entry = getattr(reply.body, "entry", reply.body)
        if getattr(entry, "nodeid", 0):
            self.nodes.append(entry.nodeid)
        opened = getattr(reply.body, "open", reply.body)
        if getattr(opened, "fh", 0):
            self.fhs.append(opened.fh)
        if opcode == Opcode.READDIRPLUS:
            self.nodes.extend(entry.nodeid for entry, _ in reply.body if entry.nodeid)
        del self.nodes[1:-40]
        del self.fhs[1:-20]

    def nodeid(self) -> int:
        """A file, mostly one that is known."""
        return self.rng.choice(self.nodes) if self.rng.random() < 0.97 else self.rng.getrandbits(64)

    def body(self, opcode: int) -> tuple[Any, bytes]:
        """What an opcode carries, and its data."""
        rng = self.rng
        if opcode == Opcode.INIT:
            return INIT_BODY, b""
        if opcode == Opcode.FORGET:
            return rng.randrange(4), b""
        if opcode in (Opcode.BATCH_FORGET, Opcode.REMOVEMAPPING):
            return [(self.nodeid(), rng.randrange(3)) for _ in range(rng.randrange(4))], b""
        layout, tail, _ = SHAPES[Opcode(opcode)]
        if layout is None or layout.record is tuple:
            if opcode == Opcode.SYMLINK:
                return i.SymlinkIn(rng.choice(NAMES), rng.choice(NAMES)), b""
            return (rng.choice(NAMES) if tail is Tail.NAME else None), b""
        data = bytes(rng.getrandbits(8) for _ in range(rng.choice((0, 1, 8, 100))))
        fields: dict[str, Any] = {
            name: self.field(name, width) for name, _, width in layout.fields()
        }
        if "name" in layout.record._fields:
            fields["name"] = rng.choice(NAMES)
        if "newname" in layout.record._fields:
            fields["newname"] = rng.choice(NAMES)
        if opcode == Opcode.FALLOCATE:
            fields["mode"] = rng.choice((0, 1, 3, 16))
        if "data" in layout.record._fields:
            fields["data"] = data
            fields["size" if "size" in fields else "in_size"] = len(data)
        elif tail is Tail.DATA:
            fields["size"] = len(data)
        return layout.record(**fields), data

    def field(self, name: str, width: int) -> int:
        """A value for a member, such as the kernel would send, or nonsense."""
        rng = self.rng
        top = (1 << 8 * width) - 1
        if name in ("atime", "mtime", "ctime"):
            return rng.randrange(-(1 << 40), 1 << 40)
        if name in ("fh", "fh_in", "fh_out"):
            return rng.choice(self.fhs)
        if name in ("nodeid_out", "oldnodeid", "newdir", "nodeid"):
            return self.nodeid() & top
        if name == "mode":
            return rng.choice((0o644, 0o100644, 0o40755, 0o10600, 0o120777, 0o20666)) & top
        if name == "unique":
            return rng.randrange(1 << 10)
        usual = (0, 1, 2, 3, 8, 100, 4096, 65536)
        return rng.choice(usual) & top if rng.random() < 0.95 else rng.getrandbits(8 * width)

    def request(self, unique: int) -> tuple[int, Any, bytes]:
        """An opcode, its body, and the bytes of the request."""
        opcode = int(self.rng.choice(tuple(SHAPES)))
        if opcode in DESTRUCTIVE and self.rng.random() < 0.6:
            opcode = int(self.rng.choice(CONSTRUCTIVE))
        body, data = self.body(opcode)
        request = emit_request(
            opcode, body, unique=unique, nodeid=self.nodeid(), uid=self.rng.choice((0, 1000)),
            gid=0, pid=PID + self.rng.randrange(2), data=data,
        )  # fmt: skip
        return opcode, body, request


def mutate(rng: random.Random, data: bytes) -> bytes:
    """The same bytes, damaged; mostly so that the length in the head is still true."""
    buf = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        kind = rng.randrange(6)
        if kind == 0 and buf:
            buf[rng.randrange(len(buf))] = rng.getrandbits(8)
        elif kind == 1:
            del buf[rng.randrange(len(buf) + 1) :]
        elif kind == 2:
            buf += bytes(rng.getrandbits(8) for _ in range(rng.randrange(1, 64)))
        elif kind == 3 and len(buf) > IN_HEADER_SIZE:
            at = rng.randrange(IN_HEADER_SIZE, len(buf))
            buf[at : at + 8] = bytearray(rng.randbytes(8))
        elif kind == 4 and len(buf) >= IN_HEADER_SIZE:
            struct.pack_into("=H", buf, 36, rng.choice((0, 1, 2, 100, 0xFFFF)))
        elif len(buf) >= 8:
            struct.pack_into("=I", buf, 4, rng.choice((rng.randrange(70), rng.getrandbits(32))))
    if len(buf) >= 4 and rng.random() < 0.9:
        struct.pack_into("=I", buf, 0, len(buf))
    return bytes(buf)
