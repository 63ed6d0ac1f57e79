"""The disk layer in a kernel that runs: real threads for fdatasync, a real socket for NBD."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from dfuser.dev.devlist import DevList
from dfuser.dev.disk.bio import BIO, Buf, BufCmd, biowait, start_sync
from dfuser.dev.disk.device import dev_dstrategy
from dfuser.dev.disk.hwdisk import HwDiskOps
from dfuser.dev.disk.layer import DiskLayer
from dfuser.hw.clock import HostClock
from dfuser.hw.disk.executor import ThreadExecutor
from dfuser.hw.disk.image import ImageDisk
from dfuser.hw.disk.nbd import NbdDisk
from dfuser.hw.disk.nbdwire import NbdAddress
from dfuser.libkern.ktr import Ktr
from dfuser.libkern.log import MsgBuf
from dfuser.lwkt.machine import Lwkt
from tests.unit.dev.disk.world import MIB, SIZE, Log, mbr_disk
from tests.unit.hw.disk.nbdserver import Server, listener


class Kernel:
    """A machine with a disk layer, running under trio."""

    def __init__(self, lwkt: Lwkt, nursery: trio.Nursery) -> None:
        self.lwkt = lwkt
        self.nursery = nursery
        self.devices = DevList()
        self.layer = DiskLayer(self.devices, Log())
        self.layer.start(lwkt)
        self.vkd = HwDiskOps(self.layer, lwkt.clock, lwkt.cpus[0].interrupt)

    async def transfer(self, name: str, cmd: BufCmd, offset: int = 0, data: bytes = b"",
                       flags: int = 0) -> bytes:  # fmt: skip
        """One transfer, waited for on an LWKT thread."""

        async def body() -> bytes:
            bp = Buf(bytearray(data))
            bio = start_sync(bp, cmd, offset)
            bio.flags |= flags
            dev = self.devices.find_device_by_name(name)
            assert dev is not None
            dev_dstrategy(dev, bio)
            assert not await biowait(bio)
            return bytes(bp.data or b"")

        return await self.lwkt.adopt(body, name="transfer")


@asynccontextmanager
async def kernel() -> AsyncIterator[Kernel]:
    clock = HostClock()
    async with trio.open_nursery() as nursery:
        await nursery.start(clock.run)
        lwkt = Lwkt(2, clock, Ktr(2, clock), MsgBuf())
        await lwkt.start(nursery)
        yield Kernel(lwkt, nursery)
        await lwkt.shutdown()
        nursery.cancel_scope.cancel()


async def test_fdatasync_comes_back_as_an_interrupt(tmp_path: Path) -> None:
    """What if threads write and flush at once, and the host's threads do the flushing?"""
    executor = ThreadExecutor()
    mbr_disk(ImageDisk.create(tmp_path / "a.img", SIZE)).close()
    disk = ImageDisk.open(tmp_path / "a.img", executor=executor)
    async with kernel() as k:
        await k.nursery.start(executor.run)
        unit = k.vkd.attach(disk)

        async def writer(number: int) -> None:
            data = bytes([number + 1]) * 4096
            for step in range(5):
                offset = (number * 5 + step) * 4096
                flags = BIO.FUA if step == 3 else 0
                await k.transfer("vkd0s1a", BufCmd.WRITE, offset, data, flags)
                await k.transfer("vkd0s1a", BufCmd.FLUSH)
                assert await k.transfer("vkd0s1a", BufCmd.READ, offset, bytes(4096)) == data

        async with trio.open_nursery() as writers:
            for number in range(8):
                writers.start_soon(writer, number)
        seen = disk.statistics()
        assert (seen.flushes, seen.fua, seen.waited) == (40, 8, 48)
        assert executor.statistics().executed == 48
        assert unit.stat.busy_count == 0
        assert unit.stat.num_other == 40
    disk.close()
    body = (tmp_path / "a.img").read_bytes()[2048 * 512 + MIB :]
    assert body[: 40 * 4096] == b"".join(bytes([n + 1]) * 20480 for n in range(8))


async def test_a_network_disk_becomes_devices(tmp_path: Path) -> None:
    """What if the disk is behind a socket: is it probed, read and written, its server lost?"""
    server = Server(SIZE)
    mbr_disk(server.medium)
    async with kernel() as k:
        await k.nursery.start(trio.serve_listeners, server.serve, [listener(tmp_path / "s")])
        disk = await NbdDisk.connect(NbdAddress("", str(tmp_path / "s")))
        await k.nursery.start(disk.run)
        k.vkd.attach(disk)
        assert k.devices.find_device_by_name("vkd0s1a") is None
        assert not await k.lwkt.adopt(k.layer.sync, name="sync")
        assert k.devices.find_device_by_name("vkd0s1a") is not None
        data = b"n" * 65536
        server.crash = True
        for step in range(6):
            server.hang_up_after = 2
            await k.transfer("vkd0s1a", BufCmd.WRITE, step * 65536, data)
        await k.transfer("vkd0s1a", BufCmd.FLUSH)
        server.hang_up_after = 0
        base = 2048 * 512 + MIB
        assert server.medium.read(base, 6 * 65536) == data * 6
        assert await k.transfer("vkd0s1a", BufCmd.READ, 5 * 65536, bytes(512)) == b"n" * 512
        assert disk.connection().connects > 1
    await disk.aclose()
