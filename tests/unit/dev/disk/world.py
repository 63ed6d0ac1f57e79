"""A disk layer with a list of devices and a log, and what tests do with them."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from typing import Any

from dfuser.dev.devlist import DevList
from dfuser.dev.devsw import Cdev
from dfuser.dev.disk import disklabel32, disklabel64
from dfuser.dev.disk.disklabel64 import Disklabel64
from dfuser.dev.disk.gpt import GPT_ENT_TYPE_DRAGONFLY_LABEL64, Gpt, GptEntry
from dfuser.dev.disk.hwdisk import HwDiskOps, HwDiskUnit
from dfuser.dev.disk.label import FS_HAMMER2, FS_SWAP, Extent
from dfuser.dev.disk.layer import DiskLayer
from dfuser.dev.disk.mbr import DosPartition, emit_mbr
from dfuser.dev.disk.table import DiskInfo
from dfuser.hw.clock import VirtualClock
from dfuser.hw.disk.disk import Disk
from dfuser.hw.disk.ram import RamDisk
from dfuser.libkern.fcntl import FREAD, FWRITE
from dfuser.libkern.ktr import Ktr
from dfuser.libkern.log import MsgBuf
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt.block import run_blocking
from dfuser.lwkt.machine import Lwkt

ROOT = Ucred.root()
SIZE = 64 << 20
BLOCKS = SIZE // 512
RDWR = FREAD | FWRITE
LABEL64 = uuid.UUID(GPT_ENT_TYPE_DRAGONFLY_LABEL64)


class Log:
    """A log that is a list."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def kprintf(self, text: str) -> None:
        self.lines.append(text)


class World:
    """A disk layer; with a machine if asked for."""

    def __init__(self, machine: bool = False, depth: int = 32) -> None:
        self.clock = VirtualClock()
        self.devices = DevList()
        self.log = Log()
        self.layer = DiskLayer(self.devices, self.log)
        self.lwkt: Lwkt | None = None
        if machine:
            self.lwkt = Lwkt(2, self.clock, Ktr(2, self.clock), MsgBuf())
            self.layer.start(self.lwkt)
            self.vkd = HwDiskOps(self.layer, self.clock, self.lwkt.cpus[0].interrupt, depth=depth)
        else:
            self.vkd = HwDiskOps(self.layer, self.clock, depth=depth)

    def names(self) -> list[str]:
        return sorted(dev.name for dev in self.devices.devices())

    def aliases(self) -> dict[str, str]:
        return {alias.name: alias.target.name for alias in self.devices.aliases()}

    def dev(self, name: str) -> Cdev:
        dev = self.devices.find_device_by_name(name)
        assert dev is not None, f"no {name} among {self.names()}"
        return dev

    def open(self, name: str) -> tuple[Cdev, Any]:
        dev = self.dev(name)
        return dev, dev.dopen(RDWR, ROOT)

    def read(self, name: str, offset: int, size: int) -> bytes:
        dev, file = self.open(name)
        try:
            return bytes(dev.ops.d_read(dev, offset, size, 0, file))
        finally:
            dev.dclose(RDWR, file)

    def write(self, name: str, offset: int, data: bytes) -> int:
        dev, file = self.open(name)
        try:
            return dev.ops.d_write(dev, offset, data, 0, file)
        finally:
            dev.dclose(RDWR, file)

    def ioctl(self, name: str, cmd: int, data: bytes = b"", fflag: int = RDWR) -> bytes:
        dev, file = self.open(name)
        try:
            return dev.ops.d_ioctl(dev, cmd, data, fflag, ROOT, file)
        finally:
            dev.dclose(RDWR, file)

    def thread(self, core: Callable[..., Any], *args: Any) -> list[Any]:
        """Run a synchronous core as a thread that waits where it must; its result, when it came."""
        results: list[Any] = []

        async def body() -> None:
            try:
                results.append(await run_blocking(core, *args))
            except OSError as error:
                results.append(error)

        assert self.lwkt is not None
        self.lwkt.create(body, name="test", cpu=1)
        return results

    def settle(self) -> None:
        assert self.lwkt is not None
        self.lwkt.run_until_idle()


def put(disk: Disk, sectors: dict[int, bytes]) -> None:
    for block, data in sectors.items():
        disk.write(block * disk.sector_size, data)


def label64_for(
    extent: Extent, pack: bytes, parts: list[tuple[int, int, int, uuid.UUID]]
) -> Disklabel64:
    """A label with partitions of (offset, size, fstype, uuid) in bytes."""
    label = disklabel64.makevirginlabel(DiskInfo(extent.blksize, BLOCKS), extent)
    label.d_packname = pack.ljust(64, b"\0")
    for entry, (offset, size, fstype, own) in zip(label.d_partitions, parts, strict=False):
        entry.p_boffset, entry.p_bsize, entry.p_fstype = offset, size, fstype
        entry.p_stor_uuid = own.bytes_le
    return label.seal()


MIB = 1 << 20
UUID_A, UUID_D, UUID_S = (uuid.UUID(int=n + 0x1234) for n in range(3))


def mbr_disk(disk: Disk | None = None) -> Disk:
    """s1: DragonFly with a 64-bit label (a, b); s2: 386BSD with a 32-bit one (a, d); s3: other."""
    disk = disk or RamDisk(SIZE)
    put(disk, emit_mbr([
        DosPartition.make(0x6C, 2048, 40960),
        DosPartition.make(0xA5, 45056, 20480),
        DosPartition.make(0x83, 67584, 2048),
    ]))  # fmt: skip
    one = Extent(2048, 40960, 512)
    label = label64_for(
        one, b"ROOT", [(MIB, 4 * MIB, FS_HAMMER2, UUID_A), (5 * MIB, 2 * MIB, FS_SWAP, UUID_D)]
    )
    disk.write(2048 * 512, disklabel64.put(bytes(2048), label))
    two = Extent(45056, 20480, 512)
    old = disklabel32.makevirginlabel(DiskInfo(512, BLOCKS), two)
    for number, (start, size) in ((0, (0, 100)), (3, (100, 20380))):
        entry = old.d_partitions[number]
        entry.p_offset, entry.p_size, entry.p_fstype = start, size, FS_HAMMER2
    disk.write((45056 + 1) * 512, disklabel32.emit(old.seal(), two))
    return disk


def gpt_disk(rng: random.Random, disk: Disk | None = None) -> Disk:
    """s0 with a 64-bit label (a), s1 without."""
    disk = disk or RamDisk(SIZE)
    used = [
        GptEntry(LABEL64, UUID_S, 2048, 2048 + 40960 - 1, 0, "first"),
        GptEntry(LABEL64, uuid.UUID(int=rng.getrandbits(128)), 65536, 65535 + 2048, 0, "second"),
    ]
    put(disk, Gpt.make(BLOCKS, 512, uuid.UUID(int=5), used).emit())
    label = label64_for(Extent(2048, 40960, 512), b"", [(MIB, 4 * MIB, FS_HAMMER2, UUID_A)])
    disk.write(2048 * 512, disklabel64.put(bytes(2048), label))
    return disk


def unit_of(world: World, disk: Disk, **options: Any) -> HwDiskUnit:
    return world.vkd.attach(disk, **options)
