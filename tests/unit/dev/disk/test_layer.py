"""The disk layer: names, aliases, probes, opens, protection, ioctls, at once and waiting."""

from __future__ import annotations

import random
import struct
import uuid
from pathlib import Path

import pytest

from dfuser.dev.disk import disklabel32, disklabel64, ioctl
from dfuser.dev.disk.bio import Buf, BufCmd
from dfuser.dev.disk.ddbshow import DiskDdb
from dfuser.dev.disk.disklabel32 import Disklabel32
from dfuser.dev.disk.disklabel64 import Disklabel64
from dfuser.dev.disk.label import FS_HAMMER2, FS_SWAP, Extent
from dfuser.dev.disk.mbr import DosPartition, chs, emit_mbr
from dfuser.dev.disk.md import MD_NSECT, MdOps
from dfuser.dev.disk.physio import KEPT_MAX
from dfuser.dev.disk.slices import WHOLE_SLICE_PART, dkmakeminor, dkpart, dkslice, dkunit
from dfuser.dev.disk.table import DSO_COMPATLABEL, DSO_COMPATPARTA, DSO_DEVICEMAPPER
from dfuser.dev.ioccom import IOC_IN, IOC_OUT, ioc
from dfuser.hw.disk.executor import HeldExecutor
from dfuser.hw.disk.fault import FaultDisk
from dfuser.hw.disk.faultrule import Fault, FaultRule
from dfuser.hw.disk.image import ImageDisk
from dfuser.hw.disk.ram import RamDisk
from dfuser.libkern.ddbcmd import DdbCommands
from dfuser.libkern.errno import (
    EAGAIN,
    EBADF,
    EBUSY,
    EEXIST,
    EINVAL,
    EIO,
    ENOATTR,
    ENODEV,
    ENXIO,
    EROFS,
    ESRCH,
    KError,
)
from dfuser.libkern.fcntl import FREAD
from dfuser.libkern.sysctl import SysctlTree
from dfuser.lwkt.block import Block
from tests.unit.dev.disk.partools import probe_image
from tests.unit.dev.disk.world import (
    BLOCKS,
    LABEL64,
    MIB,
    RDWR,
    ROOT,
    SIZE,
    UUID_A,
    UUID_D,
    UUID_S,
    World,
    gpt_disk,
    label64_for,
    mbr_disk,
    put,
)

S1 = Extent(2048, 40960, 512)


def errno_of(call: object, *args: object) -> int:
    with pytest.raises(KError) as refused:
        call(*args)  # type: ignore[operator]
    return refused.value.errno


# --- names ---------------------------------------------------------------------------------


def test_minors_pack_and_unpack() -> None:
    """What if every unit, slice and partition is packed: is each found again, none twice?"""
    seen = set()
    for unit in (0, 1, 31, 32, 511):
        for slot in (0, 1, 2, 15, 16, 127):
            for part in (0, 7, 8, 15, 128, 255):
                minor = dkmakeminor(unit, slot, part)
                assert (dkunit(minor), dkslice(minor), dkpart(minor)) == (unit, slot, part)
                assert not minor & 0xFF00
                seen.add(minor)
    assert len(seen) == 5 * 6 * 6


def test_names_on_an_mbr_disk() -> None:
    """What if a disk has slices with both kinds of label, and one with none?"""
    world = World()
    world.vkd.attach(mbr_disk(), serialno=" A b/1 ")
    assert world.names() == [
        "vkd0", "vkd0s1", "vkd0s1a", "vkd0s1b", "vkd0s2", "vkd0s2a", "vkd0s2d", "vkd0s3",
    ]  # fmt: skip
    assert world.aliases() == {
        "serno/A_b_1": "vkd0",
        "serno/A_b_1.s1": "vkd0s1",
        "serno/A_b_1.s1a": "vkd0s1a",
        "serno/A_b_1.s1b": "vkd0s1b",
        "serno/A_b_1.s2": "vkd0s2",
        "serno/A_b_1.s2a": "vkd0s2a",
        "serno/A_b_1.s2d": "vkd0s2d",
        "serno/A_b_1.s3": "vkd0s3",
        "by-label/ROOT": "vkd0s1",
        "by-label/fictitious": "vkd0s2",
        f"part-by-uuid/{UUID_A}": "vkd0s1a",
        f"part-by-uuid/{UUID_D}": "vkd0s1b",
        "part-by-label/ROOT.a": "vkd0s1a",
        "part-by-label/ROOT.b": "vkd0s1b",
        "part-by-label/fictitious.a": "vkd0s2a",
        "part-by-label/fictitious.d": "vkd0s2d",
    }
    dev = world.dev("vkd0s1b")
    assert (dev.uid, dev.gid, dev.perms, dev.parent) == (0, 5, 0o640, world.dev("vkd0s1"))
    assert dkmakeminor(0, 2, 1) == dev.uminor
    assert world.dev("vkd0").uminor == dkmakeminor(0, 1, WHOLE_SLICE_PART)


def test_names_on_a_gpt_disk(rng: random.Random) -> None:
    """What if a disk has a GPT: is its first entry s0?"""
    world = World()
    world.vkd.attach(gpt_disk(rng), name="root")
    assert world.names() == ["root", "root" + "s0", "roots0a", "roots1"]
    assert world.aliases()[f"slice-by-uuid/{UUID_S}"] == "roots0"
    assert world.aliases()[f"part-by-uuid/{UUID_A}"] == "roots0a"


def test_a_disk_without_a_table_has_slice_0() -> None:
    """What if a disk is blank, or has a label from its first sector on?"""
    world = World()
    world.vkd.attach(RamDisk(SIZE))
    assert world.names() == ["vkd0", "vkd0s0"]
    assert world.dev("vkd0s0").ops.d_psize(world.dev("vkd0s0")) == BLOCKS  # type: ignore[attr-defined]
    disk = RamDisk(SIZE)
    label = label64_for(Extent(0, BLOCKS, 512), b"", [(MIB, MIB, FS_HAMMER2, uuid.UUID(int=0))])
    disk.write(0, disklabel64.put(bytes(2048), label))
    world.vkd.attach(disk)
    assert world.names()[2:] == ["vkd1", "vkd1s0", "vkd1s0a"]
    assert world.layer.names() == "vkd1 vkd0"


def test_names_of_mapped_and_compatible_disks() -> None:
    """What if a disk is a device mapper's volume, or asks for a label made up?"""
    world = World()
    world.vkd.attach(mbr_disk(), name="vol", dsflags=DSO_DEVICEMAPPER)
    assert world.names()[:3] == ["vol", "vol.s1", "vol.s1a"]
    cd = RamDisk(4 * MIB, name="cd")
    world.vkd.attach(cd, name="cd0", dsflags=DSO_COMPATLABEL | DSO_COMPATPARTA)
    assert [n for n in world.names() if n.startswith("cd")] == ["cd0", "cd0s0", "cd0s0a"]
    label = Disklabel32.unpack_from(world.ioctl("cd0s0", ioctl.DIOCGDINFO32))
    assert label.d_partitions[2].p_size == 8192


def test_two_disks_with_one_label_share_the_alias() -> None:
    """What if two disks call themselves the same: does the second one work, without the alias?"""
    world = World()
    first = world.vkd.attach(mbr_disk())
    world.vkd.attach(mbr_disk())
    assert world.aliases()["by-label/ROOT"] == "vkd0s1"
    assert any("alias by-label/ROOT is taken" in line for line in world.log.lines)
    assert "vkd1s1a" in world.names()
    world.vkd.detach(first)
    assert all(name.startswith("vkd1") for name in world.names())
    assert not [a for a in world.aliases() if "ROOT" in a]


def test_a_taken_name_is_refused_and_leaves_nothing() -> None:
    """What if a disk wants a name that is in use, or a unit number beyond all bounds?"""
    world = World()
    world.vkd.attach(RamDisk(SIZE), name="root")
    assert errno_of(lambda: world.vkd.attach(RamDisk(SIZE), name="root")) == EEXIST
    assert len(world.vkd.units) == 1
    assert world.layer.devstats.count() == 1
    assert errno_of(world.layer.disk_create, 512, world.vkd) == EINVAL


# --- transfers -----------------------------------------------------------------------------


def test_partitions_lie_where_the_label_says(rng: random.Random) -> None:
    """What if each device is written at its start and end: does the disk agree?"""
    disk = mbr_disk()
    world = World()
    world.vkd.attach(disk)
    starts = {
        "vkd0s1": (2048 * 512, 40960 * 512),
        "vkd0s1a": (2048 * 512 + MIB, 4 * MIB),
        "vkd0s1b": (2048 * 512 + 5 * MIB, 2 * MIB),
        "vkd0s2d": ((45056 + 100) * 512, 20380 * 512),
        "vkd0s3": (67584 * 512, 2048 * 512),
    }
    for name, (base, size) in starts.items():
        data = rng.randbytes(1024)
        assert world.write(name, size - 1024, data) == 1024
        assert disk.read(base + size - 1024, 1024) == data
        assert world.read(name, size - 1024, 4096) == data
        assert world.read(name, size, 512) == b""
        assert errno_of(world.read, name, size + 512, 512) == EINVAL
        big = rng.randbytes(512 * 1024 + 512)
        if size > 2 * MIB:
            assert world.write(name, MIB, big) == len(big)
            assert world.read(name, MIB, len(big)) == big
            assert disk.read(base + MIB, len(big)) == big


def test_transfers_off_the_sectors() -> None:
    """What if a transfer does not lie on whole sectors, or its offset is negative?"""
    world = World()
    world.vkd.attach(mbr_disk())
    for offset, size in ((1, 512), (0, 100), (-512, 512)):
        assert errno_of(world.read, "vkd0s1a", offset, size) == EINVAL
    assert any("sector boundary" in line for line in world.log.lines)
    assert world.read("vkd0s1a", 0, 0) == b""


def test_errors_and_short_transfers_reach_the_reader() -> None:
    """What if the medium is bad in the middle of a large read?"""
    disk = FaultDisk(mbr_disk())
    world = World()
    world.vkd.attach(disk)
    world.write("vkd0s3", 0, b"x" * (512 * 1024))
    base = 67584 * 512
    disk.add_rule(FaultRule(Fault.EIO, start=base + 300_000, end=base + 300_001))
    assert world.read("vkd0s3", 0, 512 * 1024) == b"x" * 262144
    assert errno_of(world.read, "vkd0s3", 299520, 1024) == EIO


def test_the_label_is_protected() -> None:
    """What if the label's place is written through a slice or partition, or after DIOCWLABEL?"""
    world = World()
    disk = mbr_disk()
    world.vkd.attach(disk)
    old = disk.read(2048 * 512, 4096)
    assert errno_of(world.write, "vkd0s1", 0, bytes(512)) == EROFS
    assert errno_of(world.write, "vkd0s1", 3584, bytes(512)) == EROFS
    assert world.write("vkd0s1", 4096, bytes(512)) == 512
    assert errno_of(world.write, "vkd0s2a", 0, bytes(512)) == EROFS
    assert world.write("vkd0s2a", 8192, bytes(512)) == 512
    assert world.write("vkd0s3", 0, bytes(512)) == 512
    assert disk.read(2048 * 512, 4096) == old
    assert errno_of(world.ioctl, "vkd0s1", ioctl.DIOCWLABEL, struct.pack("<i", 1), FREAD) == EBADF
    assert errno_of(world.ioctl, "vkd0", ioctl.DIOCWLABEL, struct.pack("<i", 1)) == ENODEV
    world.ioctl("vkd0s1", ioctl.DIOCWLABEL, struct.pack("<i", 1))
    assert world.write("vkd0s1", 0, bytes(4096)) == 4096
    assert world.names() == ["vkd0", "vkd0s1", "vkd0s2", "vkd0s2a", "vkd0s2d", "vkd0s3"]
    assert "by-label/ROOT" not in world.aliases()


# --- opening and probing again -------------------------------------------------------------


def test_a_disk_written_to_is_probed_at_close() -> None:
    """What if a table is written to the whole disk: do devices appear when it is closed?"""
    world = World()
    world.vkd.attach(RamDisk(SIZE))
    image = mbr_disk()
    dev, file = world.open("vkd0")
    for offset in range(0, 48 * MIB, MIB):
        dev.ops.d_write(dev, offset, image.read(offset, MIB), 0, file)
    assert world.names() == ["vkd0", "vkd0s0"]
    dev.dclose(RDWR, file)
    assert "vkd0s1a" in world.names()
    assert "vkd0s0" not in world.names()


def test_what_is_still_right_stays_through_a_probe() -> None:
    """What if the table changes while slices are open: who stays, who finds ENXIO?"""
    world = World()
    disk = mbr_disk()
    unit = world.vkd.attach(disk)
    kept, kept_file = world.open("vkd0s1a")
    gone, gone_file = world.open("vkd0s3")
    sector = bytearray(disk.read(0, 512))
    sector[446 + 32 : 446 + 48] = bytes(16)
    world.write("vkd0", 0, bytes(sector))
    assert world.dev("vkd0s1a") is kept
    assert kept.ops.d_read(kept, 0, 512, 0, kept_file) == bytes(512)
    assert errno_of(gone.ops.d_read, gone, 0, 512, 0, gone_file) == ENXIO
    assert "vkd0s3" not in world.names()
    assert unit.disk.opens(2) == {0: 1}
    assert unit.disk.opencount == 1
    gone.dclose(RDWR, gone_file)
    assert unit.disk.raw_open
    kept.dclose(RDWR, kept_file)
    assert not unit.disk.raw_open
    world.vkd.detach(unit)


def test_an_open_device_never_finds_itself_elsewhere() -> None:
    """What if a slice moves, shrinks or grows under a partition that is open?"""
    world = World()
    disk = mbr_disk()
    unit = world.vkd.attach(disk)

    def table(start: int, size: int) -> None:
        put(disk, emit_mbr([DosPartition.make(0x83, start, size)]))
        world.layer.reprobe(unit.disk)

    for start, size, stays in ((2048, 8192, True), (2048, 4096, False), (4096, 8192, False)):
        table(2048, 8000)
        dev, file = world.open("vkd0s1")
        table(start, size)
        assert (world.dev("vkd0s1") is dev) == stays
        if stays:
            assert dev.ops.d_psize(dev) == size  # type: ignore[attr-defined]
        else:
            assert errno_of(dev.ops.d_read, dev, 0, 512, 0, file) == ENXIO
            assert not unit.disk.raw_open
        dev.dclose(RDWR, file)
    table(2048, 8000)
    closed = world.dev("vkd0s1")
    table(4096, 100)
    assert world.dev("vkd0s1") is closed


def test_opens_are_counted() -> None:
    """What if a partition is open twice and closed once: does it still protect its label?"""
    world = World()
    unit = world.vkd.attach(mbr_disk())
    first, second = world.open("vkd0s1a"), world.open("vkd0s1a")
    first[0].dclose(RDWR, first[1])
    assert unit.disk.opencount == 1
    smaller = label64_for(S1, b"ROOT", [(MIB, MIB, FS_HAMMER2, UUID_A)])
    assert errno_of(world.ioctl, "vkd0s1", ioctl.DIOCWDINFO64, smaller.pack()) == EBUSY
    assert errno_of(lambda: world.vkd.detach(unit)) == EBUSY
    second[0].dclose(RDWR, second[1])
    world.ioctl("vkd0s1", ioctl.DIOCWDINFO64, smaller.pack())
    assert world.layer.statistics().opens == 0


def test_destroyed_disks_are_gone() -> None:
    """What if a disk is destroyed while devices of it are open?"""
    world = World()
    unit = world.vkd.attach(mbr_disk())
    dev, file = world.open("vkd0s1a")
    raw = world.dev("vkd0")
    world.layer.disk_destroy(unit.disk)
    world.layer.disk_destroy(unit.disk)
    assert world.names() == []
    assert world.aliases() == {}
    assert errno_of(dev.ops.d_read, dev, 0, 512, 0, file) == ENXIO
    bp = Buf(bytearray(512))
    bp.cmd = BufCmd.READ
    done: list[int] = []
    bp.bio1.offset = 0
    bp.bio1.done = lambda bio: done.append(bio.buf.outcome)
    from dfuser.dev.disk.device import dev_dstrategy

    dev_dstrategy(raw, bp.bio1)
    assert done == [ENXIO]
    world.layer.reprobe(unit.disk)
    assert world.names() == []


def test_disks_without_info_cannot_be_opened() -> None:
    """What if a driver has not told of its medium yet, or it is invalidated?"""
    world = World()
    disk = world.layer.disk_create(7, world.vkd)
    assert errno_of(world.open, "vkd7") == ENXIO
    world.layer.disk_destroy(disk)
    unit = world.vkd.attach(RamDisk(SIZE))
    world.layer.disk_invalidate(unit.disk)
    assert errno_of(world.open, "vkd0") == ENXIO
    world.layer.reprobe(unit.disk)
    assert len(world.read("vkd0", 0, 512)) == 512


def test_an_unreadable_disk_has_its_own_device_only() -> None:
    """What if sector 0 cannot be read, or a label cannot?"""
    world = World()
    disk = FaultDisk(mbr_disk(), [FaultRule(Fault.EIO, end=512, times=1)])
    unit = world.vkd.attach(disk)
    assert world.names() == ["vkd0"]
    assert any("reading primary partition table" in line for line in world.log.lines)
    disk.add_rule(FaultRule(Fault.EIO, start=2049 * 512, end=2050 * 512))
    world.layer.reprobe(unit.disk)
    assert "vkd0s2a" in world.names()
    assert "vkd0s1" in world.names()
    assert "vkd0s1a" not in world.names()
    assert any("cannot find label (I/O error" in line for line in world.log.lines)


def test_a_medium_that_changes_is_probed_again() -> None:
    """What if the medium grows?"""
    world = World()
    disk = RamDisk(SIZE)
    unit = world.vkd.attach(disk)
    disk.resize(2 * SIZE)
    world.layer.disk_setdiskinfo(unit.disk, world.vkd.info(disk))
    assert world.dev("vkd0s0").ops.d_psize(world.dev("vkd0s0")) == 2 * BLOCKS  # type: ignore[attr-defined]


# --- ioctls --------------------------------------------------------------------------------


def partinfo(world: World, name: str) -> tuple[int, ...]:
    data = world.ioctl(name, ioctl.DIOCGPART)
    assert len(data) == 144
    return struct.unpack_from("<QQQi4xQi", data)


def test_numbers_of_the_ioctls() -> None:
    """What if the numbers are put together from what they must say?"""
    old, new = Disklabel32.size, Disklabel64.size
    table = 32 + 16 * 256
    for number, direction, code, length in (
        (ioctl.DIOCGDINFO32, IOC_OUT, 101, old),
        (ioctl.DIOCGDINFO64, IOC_OUT, 101, new),
        (ioctl.DIOCSDINFO32, IOC_IN, 102, old),
        (ioctl.DIOCSDINFO64, IOC_IN, 102, new),
        (ioctl.DIOCWDINFO32, IOC_IN, 103, old),
        (ioctl.DIOCWDINFO64, IOC_IN, 103, new),
        (ioctl.DIOCGPART, IOC_OUT, 104, 144),
        (ioctl.DIOCGDVIRGIN32, IOC_OUT, 105, old),
        (ioctl.DIOCGDVIRGIN64, IOC_OUT, 105, new),
        (ioctl.DIOCWLABEL, IOC_IN, 109, 4),
        (ioctl.DIOCGSLICEINFO, IOC_OUT, 111, table),
        (ioctl.DIOCSYNCSLICEINFO, IOC_IN, 112, 4),
    ):
        assert number == ioc(direction, "d", code, length)


def test_where_devices_lie() -> None:
    """What if each kind of device is asked where it lies?"""
    world = World()
    world.vkd.attach(mbr_disk())
    assert partinfo(world, "vkd0") == (0, SIZE, BLOCKS, 512, 0, 0)
    assert partinfo(world, "vkd0s1") == (MIB, 40960 * 512, 40960, 512, 8, 0)
    assert partinfo(world, "vkd0s1a") == (2 * MIB, 4 * MIB, 8192, 512, 0, FS_HAMMER2)
    assert partinfo(world, "vkd0s1b")[5] == FS_SWAP
    assert partinfo(world, "vkd0s2a") == (45056 * 512, 51200, 100, 512, 16, FS_HAMMER2)
    data = world.ioctl("vkd0s1a", ioctl.DIOCGPART)
    assert uuid.UUID(bytes_le=data[124:140]) == UUID_A
    heads, cylinders, sectors, _ = struct.unpack_from("<4I", data, 60)
    ends = [chs(at + size - 1) for at, size in ((2048, 40960), (45056, 20480), (67584, 2048))]
    assert heads == max(head for head, _, _ in ends) + 1
    assert sectors == max(sector & 63 for _, sector, _ in ends)
    assert cylinders == BLOCKS // (heads * sectors)


def test_labels_are_read_and_written_by_ioctl() -> None:
    """What if a label is taken, changed and written: is it on the medium, do devices follow?"""
    world = World()
    disk = mbr_disk()
    world.vkd.attach(disk)
    label = Disklabel64.unpack_from(world.ioctl("vkd0s1", ioctl.DIOCGDINFO64))
    entry = label.d_partitions[3]
    entry.p_boffset, entry.p_bsize, entry.p_fstype = 8 * MIB, MIB, FS_HAMMER2
    flushes = disk.statistics().flushes
    world.ioctl("vkd0s1", ioctl.DIOCWDINFO64, label.seal().pack())
    assert "vkd0s1d" in world.names()
    assert disk.statistics().flushes == flushes + 1
    on_disk = disklabel64.parse(disk.read(2048 * 512, 2048))
    assert on_disk.getpartbounds(3, 512) == (16384, 2048)
    fresh = World()
    fresh.vkd.attach(disk)
    assert "vkd0s1d" in fresh.names()
    old = Disklabel32.unpack_from(world.ioctl("vkd0s2", ioctl.DIOCGDINFO32))
    old.d_partitions[3].p_fstype = 0
    world.ioctl("vkd0s2", ioctl.DIOCWDINFO32, old.seal().pack())
    assert "vkd0s2d" not in world.names()
    sector = disk.read(45057 * 512, 512)
    assert disklabel32.parse(sector, Extent(45056, 20480, 512)).pack() == old.pack()


def test_labels_set_without_writing() -> None:
    """What if a label is only set: do devices follow, does the medium stay?"""
    world = World()
    disk = mbr_disk()
    unit = world.vkd.attach(disk)
    before = disk.read(0, 48 * MIB)
    label = label64_for(S1, b"NEW", [(MIB, MIB, FS_HAMMER2, UUID_D)])
    world.ioctl("vkd0s1", ioctl.DIOCSDINFO64, label.pack())
    assert world.aliases()["by-label/NEW"] == "vkd0s1"
    assert world.aliases()[f"part-by-uuid/{UUID_D}"] == "vkd0s1a"
    assert "vkd0s1b" not in world.names()
    assert disk.read(0, 48 * MIB) == before
    world.layer.reprobe(unit.disk)
    assert "vkd0s1b" in world.names()


def test_what_label_ioctls_refuse() -> None:
    """What if they are asked of the wrong device, with the wrong kind, or without permission?"""
    world = World()
    world.vkd.attach(mbr_disk())
    label = world.ioctl("vkd0s1", ioctl.DIOCGDINFO64)
    assert errno_of(world.ioctl, "vkd0s1", ioctl.DIOCGDINFO32) == ENOATTR
    assert errno_of(world.ioctl, "vkd0s1a", ioctl.DIOCGDINFO64) == EINVAL
    assert errno_of(world.ioctl, "vkd0", ioctl.DIOCGDINFO64) == ENODEV
    assert errno_of(world.ioctl, "vkd0s3", ioctl.DIOCGDINFO64) == EINVAL
    assert errno_of(world.ioctl, "vkd0s1", ioctl.DIOCWDINFO64, label, FREAD) == EBADF
    assert errno_of(world.ioctl, "vkd0", ioctl.DIOCWDINFO64, label) == ENODEV
    assert errno_of(world.ioctl, "vkd0s2", ioctl.DIOCWDINFO64, label) == ENOATTR
    assert errno_of(world.ioctl, "vkd0s1", ioctl.DIOCWDINFO64, bytes(1736)) == EINVAL
    assert errno_of(world.ioctl, "vkd0", 0x40046466) != 0
    first = disklabel32.makevirginlabel(world.vkd.info(RamDisk(SIZE)), Extent(67584, 2048, 512))
    assert errno_of(world.ioctl, "vkd0s3", ioctl.DIOCWDINFO32, first.pack()) == ESRCH


def test_a_slice_gets_its_first_label() -> None:
    """What if a virgin 64-bit label is asked for, given a partition, and written?"""
    world = World()
    disk = RamDisk(SIZE)
    world.vkd.attach(disk)
    label = Disklabel64.unpack_from(world.ioctl("vkd0s0", ioctl.DIOCGDVIRGIN64))
    assert label.d_stor_uuid != bytes(16)
    entry = label.d_partitions[0]
    entry.p_boffset, entry.p_fstype = label.d_pbase, FS_HAMMER2
    entry.p_bsize = label.d_pstop - label.d_pbase
    world.ioctl("vkd0s0", ioctl.DIOCWDINFO64, label.seal().pack())
    assert world.names() == ["vkd0", "vkd0s0", "vkd0s0a"]
    assert len(world.ioctl("vkd0s0", ioctl.DIOCGDVIRGIN32)) == 404


def test_slice_table_and_sync() -> None:
    """What if the table of slices is asked for, and the disk told to look again?"""
    world = World()
    disk = mbr_disk()
    world.vkd.attach(disk)
    data = world.ioctl("vkd0", ioctl.DIOCGSLICEINFO)
    assert len(data) == 32 + 16 * 256
    assert struct.unpack_from("<8xIIIiii", data) == (0, 6, 0, 1, 0, 512)
    assert struct.unpack_from("<8xQQI", data, 32 + 2 * 256) == (2048, 40960, 8)
    disk.write(0, bytes(512))
    zero, one = struct.pack("<i", 0), struct.pack("<i", 1)
    dev, file = world.open("vkd0s2")
    assert errno_of(world.ioctl, "vkd0", ioctl.DIOCSYNCSLICEINFO, zero) == EBUSY
    dev.dclose(RDWR, file)
    assert errno_of(world.ioctl, "vkd0s1", ioctl.DIOCSYNCSLICEINFO, zero) == EINVAL
    world.ioctl("vkd0", ioctl.DIOCSYNCSLICEINFO, one)
    assert world.names() == ["vkd0", "vkd0s0"]


# --- disks that must be waited for ---------------------------------------------------------


def slow_world(tmp_path: Path) -> tuple[World, HeldExecutor, ImageDisk]:
    """A world with a disk whose every transfer waits until it is let go."""
    held = HeldExecutor()
    mbr_disk(ImageDisk.create(tmp_path / "a.img", SIZE)).close()
    try:
        disk = ImageDisk.open(tmp_path / "a.img", direct=True, executor=held)
    except KError as error:
        pytest.skip(f"no O_DIRECT here: {error}")
    return World(machine=True), held, disk


def drain(world: World, held: HeldExecutor) -> None:
    world.settle()
    while held.held:
        held.release()
        world.settle()


def test_a_probe_goes_on_in_its_thread(tmp_path: Path) -> None:
    """What if the disk must be waited for: does the probe end all the same, and sync tell when?"""
    world, held, disk = slow_world(tmp_path)
    world.vkd.attach(disk)
    assert world.names() == ["vkd0"]
    assert world.layer.statistics().probing == 1
    assert world.lwkt is not None
    ended: list[int] = []

    async def waiter() -> None:
        ended.append(await world.layer.sync())

    world.lwkt.create(waiter, name="sync")
    world.settle()
    assert not ended
    drain(world, held)
    assert "vkd0s1a" in world.names()
    assert ended == [0]
    assert world.layer.statistics()[3:] == (1, 0)
    world.lwkt.shutdown_nowait()
    disk.close()


def test_reads_and_writes_that_wait(tmp_path: Path) -> None:
    """What if a core must wait: does it block, and is each write done once?"""
    world, held, disk = slow_world(tmp_path)
    world.vkd.attach(disk)
    drain(world, held)
    dev, file = world.open("vkd0s1b")
    with pytest.raises(Block):
        dev.ops.d_read(dev, 0, 4096, 0, file)
    held.release()
    world.settle()
    assert dev.ops.d_read(dev, 0, 4096, 0, file) == bytes(4096)
    writes = disk.statistics().writes
    data = b"w" * (300 * 1024)
    result = world.thread(dev.ops.d_write, dev, 0, data, 0, file)
    world.settle()
    assert len(held.held) == 3
    assert not result
    drain(world, held)
    assert result == [len(data)]
    assert disk.statistics().writes == writes + 3
    assert file.kept == []
    result = world.thread(dev.ops.d_read, dev, 0, len(data), 0, file)
    drain(world, held)
    assert result == [data]
    dev.dclose(RDWR, file)
    assert world.lwkt is not None
    world.lwkt.shutdown_nowait()
    disk.close()


def test_transfers_nobody_collects_are_limited(tmp_path: Path) -> None:
    """What if callers give up before their transfers are over, again and again?"""
    world, held, disk = slow_world(tmp_path)
    world.vkd.attach(disk)
    drain(world, held)
    dev, file = world.open("vkd0s1b")
    for number in range(KEPT_MAX):
        with pytest.raises(Block):
            dev.ops.d_read(dev, number * 512, 512, 0, file)
    assert errno_of(dev.ops.d_read, dev, 0, 4096, 0, file) == EAGAIN
    drain(world, held)
    with pytest.raises(Block):
        dev.ops.d_read(dev, 0, 4096, 0, file)
    assert len(file.kept) == KEPT_MAX
    assert dev.ops.d_read(dev, 63 * 512, 512, 0, file) == bytes(512)
    assert len(file.kept) == KEPT_MAX - 1
    drain(world, held)
    dev.dclose(RDWR, file)
    assert world.lwkt is not None
    world.lwkt.shutdown_nowait()
    disk.close()


def test_a_label_written_slowly(tmp_path: Path) -> None:
    """What if writing a label must wait, and somebody asks for a probe meanwhile?"""
    world, held, disk = slow_world(tmp_path)
    unit = world.vkd.attach(disk)
    drain(world, held)
    label = label64_for(S1, b"SLOW", [(MIB, MIB, FS_HAMMER2, UUID_A)])
    dev, file = world.open("vkd0s1")
    cmd = ioctl.DIOCWDINFO64
    result = world.thread(dev.ops.d_ioctl, dev, cmd, label.pack(), RDWR, ROOT, file)
    world.settle()
    assert "by-label/ROOT" in world.aliases()
    drain(world, held)
    assert result == [b""]
    assert "by-label/SLOW" in world.aliases()
    world.layer.reprobe(unit.disk)
    world.layer.reprobe(unit.disk)
    world.layer.reprobe(unit.disk, 2)
    drain(world, held)
    assert "by-label/SLOW" in world.aliases()
    assert unit.disk.probes == 3
    dev.dclose(RDWR, file)
    assert world.lwkt is not None
    world.lwkt.shutdown_nowait()
    disk.close()


def test_a_disk_destroyed_during_its_probe(tmp_path: Path) -> None:
    """What if a disk goes while it is being probed: does the end of the probe make devices?"""
    world, held, disk = slow_world(tmp_path)
    unit = world.vkd.attach(disk)
    assert errno_of(lambda: world.vkd.detach(unit)) == EBUSY
    world.layer.disk_destroy(unit.disk)
    drain(world, held)
    assert world.names() == []
    assert world.layer.statistics().probing == 0
    assert world.lwkt is not None
    world.lwkt.shutdown_nowait()
    disk.close()


# --- md, sysctls, oracles ------------------------------------------------------------------


def test_memory_disks_multiply_by_opening() -> None:
    """What if the last memory disk is opened, and an earlier one?"""
    world = World()
    md = MdOps(world.layer, world.clock)
    md.create()
    assert world.names() == ["md0", "md0s0"]
    dev, file = world.open("md0")
    assert world.names() == ["md0", "md0s0", "md1", "md1s0"]
    assert dev.ops.d_psize(dev) == MD_NSECT  # type: ignore[attr-defined]
    data = b"m" * 65536
    assert dev.ops.d_write(dev, 0, data, 0, file) == 65536
    assert dev.ops.d_read(dev, 0, 65536, 0, file) == data
    assert errno_of(md.destroy, md.units[0]) == EBUSY
    dev.dclose(RDWR, file)
    md.destroy(md.units[0])
    assert world.names() == ["md1", "md1s0"]


def test_sysctls_of_the_layer() -> None:
    """What if the variables are read and written as a user does?"""
    world = World()
    tree = SysctlTree()
    for owner in (world.layer, world.layer.tunables, world.layer.devstats):
        tree.register(owner)
    world.vkd.attach(mbr_disk())
    assert tree.get("kern.disks") == "vkd0"
    assert tree.get("kern.devstat.numdevs") == "1"
    assert tree.get("kern.devstat.version") == "4"
    assert tree.get("kern.devstat.all") == world.layer.devstats.pack().hex()
    tree.set("kern.bioq_reorder_minor_interval", "1", ROOT)
    assert world.layer.tunables.minor_interval == 1
    with pytest.raises(KError):
        tree.set("kern.bioq_reorder_minor_interval", "0", ROOT)


def test_devices_agree_with_the_image(tmp_path: Path, rng: random.Random) -> None:
    """What if the devices' places are compared with a probe of the plain image?"""
    path = tmp_path / "a.img"
    disk = gpt_disk(rng, ImageDisk.create(path, SIZE))
    world = World()
    unit = world.vkd.attach(disk)
    table = probe_image(path)
    for entry, name in zip(table.slices, ("vkd0s0", "vkd0s1"), strict=True):
        assert partinfo(world, name)[:3] == (
            entry.offset * 512, entry.size * 512, entry.size,
        )  # fmt: skip
        assert entry.type_uuid == LABEL64
    world.vkd.detach(unit).close()


def test_a_backup_gpt_is_used_if_wanted(rng: random.Random) -> None:
    """What if the first GPT is damaged: nothing by default, all of it with the sysctl?"""
    disk = gpt_disk(rng)
    disk.write(512, bytes(512))
    world = World()
    unit = world.vkd.attach(disk)
    assert world.names() == ["vkd0", "vkd0s0"]
    world.layer.gpt_backup = 1
    world.layer.reprobe(unit.disk)
    assert world.names() == ["vkd0", "vkd0s0", "vkd0s0a", "vkd0s1"]
    assert any("backup GPT" in line for line in world.log.lines)


def test_random_tables_never_leave_the_lists_wrong(rng: random.Random) -> None:
    """What if tables and labels change at random: are devices always what a new disk gives?"""
    world = World()
    disk = RamDisk(SIZE)
    unit = world.vkd.attach(disk)
    for _ in range(40):
        choice = rng.randrange(5)
        if choice == 0:
            mbr_disk(disk)
        elif choice == 1:
            gpt_disk(rng, disk)
        elif choice == 2:
            put(disk, {rng.choice((0, 1, 2, 2048, 2049, 45057)): bytes(512)})
        else:
            block = rng.choice((0, 1, 2, 2049, 45057))
            sector = bytearray(disk.read(block * 512, 512))
            sector[rng.randrange(512)] ^= 1 << rng.randrange(8)
            disk.write(block * 512, bytes(sector))
        world.layer.reprobe(unit.disk)
        fresh = World()
        fresh.vkd.attach(disk)
        assert world.names() == fresh.names()
        assert world.aliases() == fresh.aliases()


def test_what_the_debugger_shows() -> None:
    """What if disks are shown, probed and not, open and idle?"""
    world = World()
    ddb = DiskDdb(world.layer)
    table = DdbCommands()
    table.register(ddb)
    world.layer.disk_create(9, world.vkd)
    world.vkd.attach(mbr_disk())
    dev, file = world.open("vkd0s1a")
    dev.ops.d_read(dev, 0, 4096, 0, file)
    shown = {line.split()[0]: line.split()[1:] for line in ddb.ddb_show_disks()}
    assert shown["vkd9"] == ["-1", "0", "0", "0", "unprobed"]
    assert shown["vkd0"] == ["0", str(BLOCKS), "0", "0", "mbr"]
    assert shown["vkd0s1a"] == ["4096", "8192", "1", "0", "0x6c", "label64"]
    counted = list(ddb.ddb_show_devstat())[1].split()
    assert counted[0] == "vkd0"
    assert int(counted[1]) == world.vkd.units[0].stat.num_reads
    dev.dclose(RDWR, file)
