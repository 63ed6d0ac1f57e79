"""The device's own transport: every request is answered once, whatever its bytes and its luck."""

from __future__ import annotations

import errno
import gc
import os
import random
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import hypothesis.strategies as st
import pytest
import trio
from hypothesis import HealthCheck, given, settings

from dfuser.fuse.device import connection as module
from dfuser.fuse.wire import inputs as i
from dfuser.fuse.wire.const import IN_HEADER_SIZE, Opcode
from dfuser.fuse.wire.kernel import parse_reply
from dfuser.fuse.wire.operations import BY_OPCODE, OPERATIONS, has_reply
from dfuser.fuse.wire.reply import emit_error
from dfuser.libkern.errno import EINTR, EJUSTRETURN, ENOIOCTL, ENOSPC, ERESTART, KError, Panic
from dfuser.vfs.vop import VnodeOps
from tests.unit.fuse.device_world import INIT_BODY, Maker, World, asked, mutate
from tests.unit.fuse.wire_corpus import recorded

#: Operations whose requests get no answer, or only one that says "again".
SILENT = {row.opcode for row in OPERATIONS if not row.reply} | {Opcode.INTERRUPT}
#: Random names of attributes have no name space, and random numbers are no ioctl.
XATTRS = {"SETXATTR", "GETXATTR", "REMOVEXATTR"}
REQUESTS = 30_000
RANDOM_REQUESTS = 100_000
FAULTS = 20_000
MANY_FAULTS = 1_000_000
#: Objects that may be alive after a storm and were not before: caches that fill up to a limit.
SLACK = 2000


@pytest.fixture
def world() -> Iterator[World]:
    """A connection for one test."""
    made = World()
    yield made
    made.close()


# --- each operation ----------------------------------------------------------------------------


def test_every_operation_is_answered_once(world: World) -> None:
    # What if the kernel asks everything it can ask, in any order, about files that are there or
    # not: is each answered exactly once, with its number and the length the kernel insists on?
    maker, seen, good = Maker(random.Random(7)), set(), set()
    for number in range(2, 2 * REQUESTS + 2, 2):
        opcode, body, request = maker.request(number)
        answer = world.put(request)
        seen.add(opcode)
        if opcode in SILENT:
            assert not answer, Opcode(opcode).name
            continue
        reply = parse_reply(opcode, answer, asked(opcode, body))
        assert reply.unique == number
        maker.learn(opcode, reply)
        if not reply.error:
            good.add(opcode)
    assert seen == set(BY_OPCODE)
    never = {Opcode(opcode).name for opcode in seen - good - SILENT}
    assert never <= {"BMAP", "SETUPMAPPING", "REMOVEMAPPING", "IOCTL", *XATTRS}, never
    statistics = world.connection.device_statistics()
    assert statistics.served == REQUESTS
    assert statistics.replies == REQUESTS - sum(world.connection.counts[n] for n in SILENT)
    assert statistics[2:5] == (0, 0, statistics.garbled)
    assert world.session.context.failed == 0, world.reports


@pytest.mark.parametrize("opcode", [0, 7, 19, 54, 63, 2016, 4096, 0xFFFFFFFF])
def test_an_operation_nobody_knows(world: World, opcode: int) -> None:
    # What if a newer kernel asks for something that did not exist when this was written?
    answer = world.put(world.emit(opcode, i.UnknownIn(opcode, b"whatever it carries")))
    assert answer == emit_error(world.unique, errno.ENOSYS)
    assert world.connection.device_statistics().unknown == 1


def test_what_is_switched_off_is_refused_each_time() -> None:
    # What if a mount without extended attributes is asked for one of a file that has none?
    world = World(noxattr=True)
    nodeid, _ = world.make(b"a")
    for opcode, body in (
        (Opcode.GETXATTR, i.GetxattrIn(0, b"security.capability")),
        (Opcode.LISTXATTR, i.ListxattrIn(0)),
        (Opcode.REMOVEXATTR, b"user.a"),
        (Opcode.SETXATTR, i.SetxattrIn(1, 0, 0, b"user.a", b"x")),
    ):
        reply = world.ask(opcode, body, nodeid)
        assert reply is not None
        assert reply.error == errno.ENOSYS, opcode
    world.close()


# --- damaged requests --------------------------------------------------------------------------


def lied(data: bytes, length: int) -> bytes:
    """The same request, saying another length."""
    return length.to_bytes(4, "little") + data[4:]


def extended(data: bytes, units: int) -> bytes:
    """The same request, saying that so many units of eight bytes are extensions."""
    return data[:36] + units.to_bytes(2, "little") + data[38:]


def cut(data: bytes, by: int) -> bytes:
    """The same request, shorter, and honest about it."""
    return lied(data[:-by], len(data) - by)


def grown(data: bytes, more: bytes) -> bytes:
    """The same request, longer, and honest about it."""
    return lied(data + more, len(data) + len(more))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "an extension that reaches into the head": lambda data: extended(data, 0xFFFF),
    "an extension out of the body": lambda data: extended(data, 1),
    "a name without its NUL": lambda data: cut(data, 1),
    "a name that ends with something else": lambda data: data[:-1] + b"x",
    "a NUL inside a name": lambda data: data[:-2] + b"\0\0",
    "no name at all": lambda data: lied(data[:IN_HEADER_SIZE], IN_HEADER_SIZE),
    "bytes behind": lambda data: grown(data, b"\0\0\0\0\0\0\0\0"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_garbled_request_is_refused(world: World, damage: str) -> None:
    # What if the bytes of a request contradict themselves: an error for it, and nothing done?
    nodeid, _ = world.make(b"ab")
    world.body(Opcode.LOOKUP, b"ab")
    lookups = world.connection.nodes.by_id[nodeid].nlookup
    for opcode, body, number in (
        (Opcode.LOOKUP, b"ab", 1),
        (Opcode.UNLINK, b"ab", 1),
        (Opcode.GETXATTR, i.GetxattrIn(0, b"user.a"), nodeid),
        (Opcode.MKDIR, i.MkdirIn(0o755, 0, b"ab"), 1),
    ):
        before = world.connection.garbled
        answer = world.put(DAMAGE[damage](world.emit(opcode, body, number)))
        assert answer == emit_error(world.unique, errno.EINVAL), opcode
        assert world.connection.garbled == before + 1
    assert world.connection.nodes.by_id[nodeid].nlookup == lookups
    assert world.connection.nodes.by_id[nodeid].nlookup == 2


@pytest.mark.parametrize(
    ("opcode", "body"),
    [
        (Opcode.GETATTR, i.GetattrIn(0, 0)), (Opcode.FLUSH, i.FlushIn(1, 1)),
        (Opcode.READ, i.ReadIn(1, 0, 10, 0, 0, 0)), (Opcode.FORGET, 1),
        (Opcode.BATCH_FORGET, [(1, 1), (1, 1)]), (Opcode.STATFS, None),
        (Opcode.INIT, INIT_BODY),
    ],
)  # fmt: skip
def test_a_request_that_is_cut_off_anywhere(world: World, opcode: Opcode, body: Any) -> None:
    # What if the device hands out any part of a request, with a true length or the old one?
    world.make(b"a")
    whole = world.emit(opcode, body)
    for size in range(len(whole)):
        assert not world.put(whole[:size]), "the length in the head is another"
        if size < IN_HEADER_SIZE or opcode == Opcode.INIT:
            continue
        answer = world.put(lied(whole[:size], size))
        if opcode == Opcode.GETATTR and size == IN_HEADER_SIZE + 16:
            continue
        wanted = emit_error(world.unique, errno.EINVAL) if has_reply(opcode) else b""
        assert answer == wanted, size
    assert world.connection.nodes.by_id[1].nlookup == 0


def test_a_buffer_that_is_longer_than_its_request(world: World) -> None:
    # What if old bytes lie behind the request in the buffer, as they always do?
    world.make(b"long")
    buf = bytearray(4096)
    for name, number in ((b"long", 0), (b"lon", errno.ENOENT), (b"longer", errno.ENOENT)):
        request = world.emit(Opcode.LOOKUP, name)
        buf[: len(request)] = request
        buf[len(request) :] = b"g" * (4096 - len(request))
        reply = parse_reply(Opcode.LOOKUP, world.put(buf, len(request)))
        assert (reply.error, bool(reply.body.nodeid)) == (0, not number)


@pytest.mark.parametrize("quick", [True, False])
def test_a_read_that_no_kernel_would_send(quick: bool) -> None:
    # What if four gigabytes of a file full of holes, or of zeroes, are asked for?
    world = World(quick=quick)
    nodeid, fh = world.make(b"a")
    values = dict.fromkeys(i.SetattrIn._fields, 0) | {"valid": 8, "size": 1 << 33}
    world.body(Opcode.SETATTR, i.SetattrIn(**values), nodeid)
    dev = world.body(Opcode.LOOKUP, b"dev").nodeid
    zero = world.body(Opcode.LOOKUP, b"zero", dev).nodeid
    device = world.body(Opcode.OPEN, i.OpenIn(0, 0), zero).fh
    for handle, number in ((fh, nodeid), (device, zero)):
        read = i.ReadIn(handle, 5, 0xFFFFFFFF, 0, 0, 0)
        assert world.body(Opcode.READ, read, number) == bytes(1 << 20)
    world.close()


def storm(world: World, rng: random.Random, count: int) -> None:
    """Random requests: sound ones, damaged ones, and damaged recordings of a real kernel's."""
    corpus = [message.data for message in recorded() if message.kernel]
    maker = Maker(rng)
    for number in range(2, 2 * count + 2, 2):
        kind = rng.randrange(3)
        opcode, body, request = maker.request(number)
        if kind == 1:
            request = mutate(rng, request)
        elif kind == 2:
            request = mutate(rng, rng.choice(corpus))
        answer = world.put(request)
        if not kind:
            reply = parse_reply(opcode, answer, asked(opcode, body)) if answer else None
            maker.learn(opcode, reply)
        elif answer:
            assert int.from_bytes(answer[:4], "little") == len(answer), request
            assert answer[8:16] == request[8:16]


def test_a_hundred_thousand_random_requests(world: World) -> None:
    # What if the device goes mad: does anything escape, is anything left, is a handler broken?
    storm(world, random.Random(11), RANDOM_REQUESTS)
    statistics = world.connection.device_statistics()
    assert statistics.garbled > RANDOM_REQUESTS // 5
    assert statistics.unknown > RANDOM_REQUESTS // 20
    assert statistics.refused == statistics.late == 0
    assert world.session.context.failed == 0, world.reports
    assert not world.panics
    assert world.body(Opcode.INIT, INIT_BODY).major == 7
    world.release()


HEAD = st.tuples(st.integers(0, 70), st.integers(0, 100), st.integers(0, 3), st.integers(0, 3))


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(heads=st.lists(st.tuples(HEAD, st.binary(max_size=120)), max_size=20))
def test_bytes_from_anywhere(heads: list[tuple[tuple[int, int, int, int], bytes]]) -> None:
    # What if bodies are nothing but noise behind a sound head?
    world = shared()
    for (opcode, unique, nodeid, units), body in heads:
        head = i.IN_HEADER.pack(len(body) + 40, opcode, unique, nodeid, 0, 0, 1, units)
        answer = world.put(head + body)
        assert len(answer) == (int.from_bytes(answer[:4], "little") if answer else 0)
    assert world.held() == dict.fromkeys(world.held(), 0)
    assert world.session.context.failed == 0, world.reports


_SHARED: list[World] = []


def shared() -> World:
    """One world for all examples of `test_bytes_from_anywhere`."""
    if not _SHARED:
        _SHARED.append(World())
    return _SHARED[0]


@pytest.fixture(scope="module", autouse=True)
def nothing_stays() -> Iterator[None]:
    """Take down what the examples shared; it must come down clean."""
    yield
    while _SHARED:
        _SHARED.pop().close()


# --- replies that are not taken ----------------------------------------------------------------


class Refusing:
    """Stands for ``os`` in the connection: writes fail a number of times."""

    def __init__(self, number: int, times: int) -> None:
        self.number = number
        self.left = times
        self.written: list[bytes] = []

    def write(self, fd: int, data: bytes) -> int:
        """One buffer."""
        if self.left:
            self.left -= 1
            raise OSError(self.number, os.strerror(self.number))
        self.written.append(bytes(data))
        return len(data)

    def writev(self, fd: int, buffers: Any) -> int:
        """Several."""
        return self.write(fd, b"".join(buffers))


def refusing(patch: pytest.MonkeyPatch, number: int, times: int = 1) -> Refusing:
    """Have the connection's next writes fail."""
    made = Refusing(number, times)
    patch.setattr(module, "os", SimpleNamespace(write=made.write, writev=made.writev))
    return made


ANSWERS = {
    "bytes": (Opcode.STATFS, None),
    "buffers": (Opcode.READ, i.ReadIn(1, 0, 10, 0, 0, 0)),
    "quick": (Opcode.GETATTR, i.GetattrIn(0, 0)),
}


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize(
    ("number", "late", "refused", "ended"),
    [
        (errno.ENOENT, 1, 0, False), (errno.EINVAL, 0, 1, False), (errno.EAGAIN, 0, 1, False),
        (errno.ENOMEM, 0, 1, False), (errno.ENODEV, 0, 0, True), (errno.ECONNABORTED, 0, 0, True),
        (errno.EBADF, 0, 0, True),
    ],
)  # fmt: skip
def test_a_reply_that_the_kernel_refuses(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: str, number: int, late: int,
    refused: int, ended: bool,
) -> None:  # fmt: skip
    # What if the write of a reply fails: the caller killed, the bytes wrong, the mount gone?
    _, fh = world.make(b"a")
    assert fh == 1
    connection = world.connection
    replies, fd = connection.replies, connection.fd
    with monkeypatch.context() as patch:
        device = refusing(patch, number)
        connection.dispatch((request := world.emit(*ANSWERS[kind])), len(request))
    assert (connection.late, connection.refused) == (late, refused)
    assert connection.ended.is_set() is ended
    assert connection.replies == replies
    wanted = [emit_error(world.unique, errno.EIO)] if refused else []
    assert device.written == wanted, "nobody waits for ever"
    assert (connection.fd == fd) is (number != errno.EBADF)
    connection.fd = fd
    assert world.body(Opcode.STATFS).blocks


def test_a_kernel_that_refuses_the_error_as_well(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What if neither the reply nor the EIO in its place is taken, often: is the log still bounded?
    connection = world.connection
    with monkeypatch.context() as patch:
        refusing(patch, errno.EINVAL, 400)
        for _ in range(200):
            connection.dispatch((request := world.emit(Opcode.STATFS)), len(request))
    assert (connection.refused, connection.late) == (200, 200)
    assert not connection.ended.is_set()
    assert len(world.reports) == 16
    assert world.body(Opcode.STATFS).blocks


@pytest.mark.parametrize("number", [errno.EINTR, errno.ENOENT, errno.EAGAIN])
def test_a_read_that_brings_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    # What if the request that was there is gone when it is read?
    def readv(fd: int, buffers: Any) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(module, "os", SimpleNamespace(readv=readv))
        assert not world.connection.serve_one(bytearray(4096))
    assert not world.connection.ended.is_set()


def test_a_device_that_is_closed_or_ends(world: World) -> None:
    # What if the descriptor is closed under us, or reads as if at its end?
    connection, fd = world.connection, world.connection.fd
    one = connection.server(bytearray(4096))
    reader, writer = os.pipe()
    connection.fd = reader
    os.close(writer)
    assert not one()
    assert connection.ended.is_set()
    os.close(reader)
    connection.ended = trio.Event()
    one = connection.server(bytearray(4096))
    assert not one()
    assert connection.ended.is_set()
    assert connection.fd == -1, "the number is not ours any more"
    connection.shut()
    connection.fd = fd
    assert not world.reports


# --- handlers that fail ------------------------------------------------------------------------


class Broken:
    """A layer on a file system whose operations raise, all of them or none."""

    def __init__(self, below: Any) -> None:
        self.below = below
        self.fault: BaseException | None = None
        self.raised = 0

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.below, name)
        if not name.startswith("vop_"):
            return call

        def operation(*args: Any, **kw: Any) -> Any:
            if self.fault is not None:
                self.raised += 1
                raise self.fault.with_traceback(None)
            return call(*args, **kw)

        return operation


class BrokenWorld(World):
    """A world whose root file system fails on command, and a request for each operation."""

    def __init__(self) -> None:
        super().__init__()
        root = self.vfs.mounts.rootnch.mount
        cell = root.ops.vfs_root(root)
        self.layer = Broken(cell.ops.norm)
        cell.ops.coherency = cast("VnodeOps", self.layer)
        cell.ops.relink()
        self.kernel.in_context(cell.rele)
        self.node, self.fh = self.make(b"f")
        self.body(Opcode.SETXATTR, i.SetxattrIn(1, 0, 0, b"user.a", b"x"), self.node)
        self.folder = self.body(Opcode.MKDIR, i.MkdirIn(0o755, 0, b"d")).nodeid
        self.link = self.body(Opcode.SYMLINK, i.SymlinkIn(b"l", b"f")).nodeid
        self.dfh = self.body(Opcode.OPENDIR, i.OpenIn(0, 0), self.folder).fh

    def attempts(self) -> list[tuple[int, Any, int]]:
        """Requests that reach the file system: opcode, body, file."""
        fh, dfh, node = self.fh, self.dfh, self.node
        mode = dict.fromkeys(i.SetattrIn._fields, 0) | {"valid": 1, "mode": 0o600}
        return [
            (Opcode.LOOKUP, b"absent", 1),
            (Opcode.MKNOD, i.MknodIn(0o10644, 0, 0, b"p"), 1),
            (Opcode.MKDIR, i.MkdirIn(0o755, 0, b"d2"), 1),
            (Opcode.SYMLINK, i.SymlinkIn(b"s", b"x"), 1),
            (Opcode.LINK, i.LinkIn(node, b"f2"), 1),
            (Opcode.UNLINK, b"f", 1),
            (Opcode.RMDIR, b"d", 1),
            (Opcode.RENAME, i.RenameIn(1, b"f", b"g"), 1),
            (Opcode.RENAME2, i.Rename2In(1, 1, b"f", b"g"), 1),
            (Opcode.READLINK, None, self.link),
            (Opcode.SETATTR, i.SetattrIn(**mode), node),
            (Opcode.STATX, i.StatxIn(0, 0, 0, 0xFFF), node),
            (Opcode.ACCESS, i.AccessIn(4), node),
            (Opcode.OPEN, i.OpenIn(2, 0), node),
            (Opcode.CREATE, i.CreateIn(2, 0o100644, 0, 0, b"new"), 1),
            (Opcode.TMPFILE, i.CreateIn(2, 0o100644, 0, 0, b"#1"), 1),
            (Opcode.READ, i.ReadIn(fh, 0, 100, 0, 0, 0), node),
            (Opcode.WRITE, i.WriteIn(fh, 0, 0, 0, 0, 0), node),
            (Opcode.FSYNC, i.FsyncIn(fh, 0), node),
            (Opcode.FALLOCATE, i.FallocateIn(fh, 0, 4096, 0), node),
            (Opcode.LSEEK, i.LseekIn(fh, 0, 3), node),
            (Opcode.OPENDIR, i.OpenIn(0, 0), self.folder),
            (Opcode.READDIR, i.ReadIn(dfh, 0, 4096, 0, 0, 0), self.folder),
            (Opcode.READDIRPLUS, i.ReadIn(dfh, 0, 4096, 0, 0, 0), self.folder),
            (Opcode.FSYNCDIR, i.FsyncIn(dfh, 0), self.folder),
            (Opcode.SETXATTR, i.SetxattrIn(1, 0, 0, b"user.b", b"x"), node),
            (Opcode.GETXATTR, i.GetxattrIn(100, b"user.a"), node),
            (Opcode.LISTXATTR, i.ListxattrIn(100), node),
            (Opcode.REMOVEXATTR, b"user.a", node),
            (Opcode.SETLK, i.LkIn(fh, 1, 0, 1, 1, 1, 0), node),
        ]  # fmt: skip


def injected(count: int) -> tuple[int, int]:
    """So many requests with a fault in each; blocks allocated after a start and at the end."""
    world = BrokenWorld()
    attempts = [(opcode, world.emit(opcode, *rest)) for opcode, *rest in world.attempts()]
    nodes, files = set(world.connection.nodes.by_id), set(world.connection.ops.files)
    wanted = {opcode: emit_error(0, errno.EIO)[:8] for opcode, _ in attempts}
    world.layer.fault = ValueError("injected")
    early = 0
    for number in range(count):
        opcode, request = attempts[number % len(attempts)]
        answer = world.put(request)
        assert answer[:8] == wanted[opcode], Opcode(opcode).name
        assert answer[8:] == request[8:16]
        if number == min(count // 2, 20_000):
            gc.collect()
            early = sys.getallocatedblocks()
    gc.collect()
    late = sys.getallocatedblocks()
    world.layer.fault = None
    assert world.session.context.failed == count
    assert world.layer.raised >= count
    assert (set(world.connection.nodes.by_id), set(world.connection.ops.files)) == (nodes, files)
    assert all(node.nlookup <= 1 for node in world.connection.nodes.by_id.values())
    assert world.body(Opcode.LOOKUP, b"f").nodeid == world.node
    assert world.body(Opcode.GETXATTR, i.GetxattrIn(100, b"user.a"), world.node) == b"x"
    world.body(Opcode.READDIRPLUS, i.ReadIn(world.dfh, 0, 4096, 0, 0, 0), world.folder)
    world.close()
    return early, late


def test_a_fault_in_every_operation() -> None:
    # What if the file system raises in whatever it is asked, twenty thousand times?
    early, late = injected(FAULTS)
    assert late - early < SLACK


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_million_faults() -> None:
    # What if it does so a million times: an EIO for each, and not a byte more in use?
    early, late = injected(MANY_FAULTS)
    assert late - early < SLACK


@pytest.mark.parametrize(
    ("fault", "number"),
    [
        (KError(ENOSPC), errno.ENOSPC), (KError(ERESTART), errno.EINTR),
        (KError(EINTR), errno.EINTR),
        (KError(0), errno.EIO), (KError(ENOIOCTL), None), (KError(EJUSTRETURN), None),
        (KError(70_000), errno.EIO), (OSError(512, "Linux's own"), errno.EIO),
        (OSError(28, "full"), errno.ENOSPC), (OSError("no number"), errno.EIO),
        (MemoryError(), errno.ENOMEM), (RecursionError(), errno.EIO), (Exception(), errno.EIO),
        (Panic("a broken invariant"), errno.EIO), (StopIteration(), errno.EIO),
    ],
    ids=repr,
)  # fmt: skip
def test_any_exception_is_a_number(fault: BaseException, number: int | None) -> None:
    # What if an operation raises anything at all, in the ordinary way or in a quick answer?
    world = BrokenWorld()
    for opcode, body, nodeid in world.attempts():
        world.layer.fault = fault
        reply = world.ask(opcode, body, nodeid)
        world.layer.fault = None
        assert reply is not None
        assert reply.error == number or (number is None and 0 < reply.error < 512), opcode
    assert bool(world.panics) is isinstance(fault, Panic)
    world.close()
