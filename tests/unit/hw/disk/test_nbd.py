"""NBD disks over sockets: a server that misbehaves, nbdkit, qemu-nbd; nothing is ever lost."""

from __future__ import annotations

import math
import os
import random
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from dfuser.hw.disk import nbdwire as wire
from dfuser.hw.disk.disk import DiskCmd, DiskRequest
from dfuser.hw.disk.nbd import BlockingNbdDisk, NbdDisk
from dfuser.hw.disk.nbdwire import NbdAddress
from dfuser.libkern.errno import EIO, ENXIO, EOPNOTSUPP, EROFS, KError
from tests.unit.hw.disk.nbdserver import ALL, Server, ThreadServer, listener

SIZE = 1 << 20


class Client:
    """Awaits the requests of an NBD disk."""

    def __init__(self, disk: NbdDisk) -> None:
        self.disk = disk

    async def do(self, request: DiskRequest) -> int:
        over = trio.Event()
        request.done = lambda _: over.set()
        self.disk.submit(request)
        await over.wait()
        return request.error

    async def read(self, offset: int, size: int) -> bytes:
        data = bytearray(size)
        assert not await self.do(DiskRequest(DiskCmd.READ, offset, size, (data,)))
        return bytes(data)

    async def write(self, offset: int, data: bytes, fua: bool = False) -> int:
        return await self.do(DiskRequest(DiskCmd.WRITE, offset, len(data), (data,), fua=fua))

    async def flush(self) -> int:
        return await self.do(DiskRequest(DiskCmd.FLUSH))


@asynccontextmanager
async def attached(
    address: NbdAddress, replay: int = 64 << 20, patience: float = math.inf
) -> AsyncIterator[Client]:
    disk = await NbdDisk.connect(address, replay=replay, patience=patience)
    async with trio.open_nursery() as nursery:
        await nursery.start(disk.run)
        yield Client(disk)
        nursery.cancel_scope.cancel()
    await disk.aclose()


@asynccontextmanager
async def served(server: Server, path: Path) -> AsyncIterator[NbdAddress]:
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, server.serve, [listener(path)])
        yield NbdAddress("", str(path))
        nursery.cancel_scope.cancel()


async def workload(client: Client, rng: random.Random, steps: int) -> bytes:
    """Random requests, up to 16 at once on places of their own; returns what must be there."""
    model = bytearray(SIZE)
    places = SIZE // 65536

    async def one(place: int) -> None:
        start = place * 65536 + rng.randrange(64) * 512
        size = rng.randrange(1, 64) * 512
        what = rng.randrange(6)
        if what < 3:
            data = rng.randbytes(size)
            assert not await client.write(start, data, fua=what == 2)
            model[start : start + size] = data
        elif what == 3:
            assert not await client.do(DiskRequest(DiskCmd.ZERO, start, size))
            model[start : start + size] = bytes(size)
        else:
            assert await client.read(start, size) == model[start : start + size]

    for _ in range(steps):
        async with trio.open_nursery() as nursery:
            for place in rng.sample(range(places), rng.randrange(1, places + 1)):
                nursery.start_soon(one, place)
        if rng.random() < 0.3:
            assert not await client.flush()
    assert not await client.flush()
    return bytes(model)


@pytest.mark.parametrize("kind", ["plain", "simple", "reorder", "old", "oldest", "small", "poor"])
async def test_servers_of_all_kinds(tmp_path: Path, rng: random.Random, kind: str) -> None:
    """What if the server is modern, old, has small blocks, reorders, or can little?"""
    server = Server(SIZE)
    server.structured = kind not in ("simple", "old", "oldest")
    server.reorder = kind == "reorder"
    server.go = kind not in ("old", "oldest")
    server.fixed = kind != "oldest"
    server.zeroes = kind == "oldest"
    server.maximum = 4096 if kind == "small" else 0
    if kind == "poor":
        server.flags = wire.FLAG_HAS_FLAGS | wire.FLAG_SEND_FLUSH
    async with served(server, tmp_path / "s") as address, attached(address) as client:
        model = await workload(client, rng, 12)
        assert await client.read(0, SIZE) == model
        assert server.medium.read(0, SIZE) == model
        seen = client.disk.statistics()
        assert (seen.errors, seen.inflight) == (0, 0)
        assert seen.waited > 0
        assert seen.inflight_max > 1
        assert client.disk.can_trim == (kind != "poor")
    if kind == "small":
        assert max(r[2] for r in server.requests if r[0] == wire.CMD_WRITE) <= 4096


@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize("replay", [64 << 20, 100_000])
async def test_lost_connections_lose_nothing(
    tmp_path: Path, rng: random.Random, crash: bool, replay: int, autojump_clock: object
) -> None:
    """What if the server hangs up every few requests, or crashes and loses its cache each time?"""
    server = Server(SIZE, rng.getrandbits(32))
    server.crash = crash
    async with served(server, tmp_path / "s") as address, attached(address, replay) as client:
        server.hang_up_every = server.hang_up_after = 60
        model = await workload(client, rng, 40)
        server.hang_up_every = server.hang_up_after = 0
        assert not await client.flush()
        assert await client.read(0, SIZE) == model
        assert server.medium.read(0, SIZE) == model
        seen = client.disk.connection()
        assert seen.connects > 2
        assert seen.resent > 0
        assert (seen.inflight, seen.unsent) == (0, 0)


async def test_without_memory_a_crash_loses_writes(
    tmp_path: Path, rng: random.Random, autojump_clock: object
) -> None:
    """What if unstable changes are not remembered: does the test above notice at all?"""
    server = Server(SIZE)
    server.crash = True
    server.disk.survival = 0.0
    async with served(server, tmp_path / "s") as address, attached(address, 0) as client:
        assert not await client.write(0, b"x" * 512)
        server.hang_up_after = 1
        assert await client.read(0, 512) == bytes(512)


async def test_errors_of_the_server_reach_the_request(tmp_path: Path) -> None:
    """What if the server answers with errors?"""
    server = Server(SIZE)
    server.error = lambda cmd, offset: 5 if offset == 512 else 0
    async with served(server, tmp_path / "s") as address, attached(address) as client:
        assert await client.write(512, bytes(512)) == EIO
        assert await client.write(1024, bytes(512)) == 0
        request = DiskRequest(DiskCmd.READ, 512, 512, (bytearray(512),))
        assert await client.do(request) == EIO
        assert request.resid == 512
        assert client.disk.statistics().errors == 2
        with pytest.raises(KError) as refused:
            client.disk.read(0, 512)
        assert refused.value.errno == EOPNOTSUPP


async def test_a_garbled_answer_costs_the_connection_only(
    tmp_path: Path, autojump_clock: object
) -> None:
    """What if an answer is rubbish: is the request asked again on a new connection?"""
    server = Server(SIZE)
    left = 2

    def garble(answer: bytes) -> bytes:
        nonlocal left
        left -= 1
        return answer if left < 0 else b"rubbish rubbish rubbish"

    async with served(server, tmp_path / "s") as address, attached(address) as client:
        server.garble = garble
        assert not await client.write(0, b"y" * 512)
        assert await client.read(0, 512) == b"y" * 512
        assert client.disk.connection().connects == 3
        assert "begins with" in client.disk.last_error


async def test_patience_has_an_end(tmp_path: Path, autojump_clock: object) -> None:
    """What if the server never comes back?"""
    server = Server(SIZE)
    path = tmp_path / "s"
    async with trio.open_nursery() as outer:
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, server.serve, [listener(path)])
            disk = await NbdDisk.connect(NbdAddress("", str(path)), patience=30)
            await outer.start(disk.run)
            client = Client(disk)
            assert not await client.write(0, b"z" * 512)
            nursery.cancel_scope.cancel()
        path.unlink()
        assert await client.flush() == ENXIO
        assert await client.write(0, b"z" * 512) == ENXIO
        outer.cancel_scope.cancel()
    await disk.aclose()


async def test_connections_that_are_refused(tmp_path: Path) -> None:
    """What if there is no server, another one, no such export, or a read-only one?"""
    with pytest.raises(KError) as refused:
        await NbdDisk.connect(NbdAddress("", str(tmp_path / "none")))
    assert "none" in refused.value.strerror
    server = Server(SIZE)
    server.flags = ALL | wire.FLAG_READ_ONLY
    async with served(server, tmp_path / "s") as address:
        with pytest.raises(KError) as refused:
            await NbdDisk.connect(address._replace(export="missing"))
        assert refused.value.errno == EIO
        assert "no export of that name" in refused.value.strerror
        with pytest.raises(KError) as refused:
            await NbdDisk.connect(address)
        assert refused.value.errno == EROFS
        disk = await NbdDisk.connect(address, readonly=True)
        done: list[int] = []
        disk.submit(DiskRequest.write(0, (bytes(512),), lambda r: done.append(r.error)))
        assert done == [EROFS]
        await disk.aclose()
        server.greeting = b"SSH-2.0-OpenSSH!"
        with pytest.raises(KError) as refused:
            await NbdDisk.connect(address)
        assert "no NBD server" in refused.value.strerror


# --- for tools -----------------------------------------------------------------------------


@pytest.fixture
def thread_server(tmp_path: Path) -> Iterator[ThreadServer]:
    made = ThreadServer(Server(SIZE), tmp_path / "s")
    yield made
    made.stop()


def test_the_blocking_disk(thread_server: ThreadServer, rng: random.Random) -> None:
    """What if a tool uses a network disk, the server hanging up and crashing on the way?"""
    model = bytearray(SIZE)
    with BlockingNbdDisk(NbdAddress("", str(thread_server.path))) as disk:
        assert disk.inplace
        thread_server.server.crash = True
        for step in range(150):
            if step % 30 == 20:
                thread_server.server.hang_up_after = 3
            start, size = rng.randrange(1000) * 512, rng.randrange(1, 200) * 512
            if rng.random() < 0.6:
                data = rng.randbytes(size)
                disk.write(start, data, fua=rng.random() < 0.2)
                model[start : start + size] = data
            elif rng.random() < 0.3:
                disk.flush()
            else:
                assert disk.read(start, size) == model[start : start + size]
        disk.flush()
        assert disk.read(0, SIZE) == model
        assert disk.session.connects > 3
    assert thread_server.server.medium.read(0, SIZE) == model


def test_the_blocking_disk_gives_up(tmp_path: Path) -> None:
    """What if the server is gone for good, or never was?"""
    made = ThreadServer(Server(SIZE), tmp_path / "s")
    disk = BlockingNbdDisk(NbdAddress("", str(tmp_path / "s")), tries=0)
    made.stop()
    (tmp_path / "s").unlink()
    with pytest.raises(KError) as failed:
        disk.flush()
    assert failed.value.errno == ENXIO
    disk.close()
    with pytest.raises(KError):
        BlockingNbdDisk(NbdAddress("", str(tmp_path / "none")))


# --- the servers of others -----------------------------------------------------------------

NBDKIT = shutil.which("nbdkit", path="/usr/sbin:/usr/bin")
QEMU_NBD = shutil.which("qemu-nbd")
NBDCOPY = shutil.which("nbdcopy")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Program:
    """A server program that can be killed and started again."""

    def __init__(self, *command: str) -> None:
        self.command = command
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def program(kind: str, image: Path, path: Path, port: int) -> tuple[Program, NbdAddress]:
    if kind.startswith("nbdkit"):
        if NBDKIT is None:
            pytest.skip("nbdkit is not installed")
        where = ["-U", str(path)] if kind.endswith("unix") else ["-i", "127.0.0.1", "-p", str(port)]
        made = Program(NBDKIT, "-f", *where, "file", str(image))
    else:
        if QEMU_NBD is None:
            pytest.skip("qemu-nbd (qemu-utils) is not installed")
        where = ["-k", str(path)] if kind.endswith("unix") else ["-b", "127.0.0.1", "-p", str(port)]
        made = Program(
            QEMU_NBD, "-t", "-f", "raw", "--discard=unmap", "--cache=writeback", *where, str(image)
        )
    unix = kind.endswith("unix")
    return made, NbdAddress("", str(path)) if unix else NbdAddress("", "", "127.0.0.1", port)


async def connect_patiently(address: NbdAddress) -> None:
    """Wait until a server that was just started answers."""
    with trio.fail_after(20):
        while True:
            try:
                disk = await NbdDisk.connect(address)
            except KError:
                await trio.sleep(0.02)
                continue
            await disk.aclose()
            return


@pytest.mark.parametrize("kind", ["nbdkit-unix", "nbdkit-tcp", "qemu-unix", "qemu-tcp"])
async def test_programs_of_others(tmp_path: Path, rng: random.Random, kind: str) -> None:
    """What if nbdkit or qemu-nbd serve an image: is all we wrote in it, also if they are killed?"""
    image, path = tmp_path / "a.img", tmp_path / "s"
    image.write_bytes(bytes(SIZE))
    server, address = program(kind, image, path, free_port())
    try:
        await connect_patiently(address)
        async with attached(address) as client:
            model = bytearray(await workload(client, rng, 8))
            assert image.read_bytes() == model
            data = rng.randbytes(65536)
            assert not await client.write(0, data)
            model[:65536] = data
            server.kill()
            path.unlink(missing_ok=True)
            server.start()
            assert await client.read(0, SIZE) == model
            assert client.disk.connection().replayed > 0
            assert not await client.flush()
            assert not await client.do(DiskRequest(DiskCmd.TRIM, 65536, 65536))
            assert not await client.flush()
            export = client.disk.session.export
            assert export is not None
            assert export.structured
            found = await client.read(0, SIZE)
        if NBDCOPY is not None:
            copy = tmp_path / "copy.img"
            done = await trio.run_process(
                [NBDCOPY, str(address), str(copy)], capture_stderr=True,
                check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert copy.read_bytes() == found
    finally:
        server.kill()


async def test_an_error_filter_of_nbdkit(tmp_path: Path) -> None:
    """What if nbdkit's own error filter fails writes?"""
    if NBDKIT is None:
        pytest.skip("nbdkit is not installed")
    path = tmp_path / "s"
    server = Program(
        NBDKIT, "-f", "-U", str(path), "--filter=error", "memory", "1M",
        "error-pwrite=ENOSPC", "error-pwrite-rate=100%",
    )  # fmt: skip
    try:
        await connect_patiently(NbdAddress("", str(path)))
        async with attached(NbdAddress("", str(path))) as client:
            assert os.strerror(28)
            assert await client.write(0, bytes(512)) == 28
            assert await client.read(0, 512) == bytes(512)
    finally:
        server.kill()
