"""A new volume is one that readers accept, and looks as newfs_hammer2's do."""

from __future__ import annotations

import random

import pytest

from dfuser.hw.disk.ram import RamDisk
from dfuser.libkern.errno import EINVAL, ENOSPC, KError
from dfuser.vfs.hammer2 import strategy, xops
from dfuser.vfs.hammer2.dev import Dev
from dfuser.vfs.hammer2.io import DiskDevice
from dfuser.vfs.hammer2.newfs import newfs
from dfuser.vfs.hammer2.ondisk.const import BrefType, Comp
from dfuser.vfs.hammer2.reader import Reader
from dfuser.vfs.hammer2.volume import Device, open_set
from tests.unit.vfs.hammer2 import images
from tests.unit.vfs.hammer2.world import (
    FOUR,
    GIB,
    MIB,
    SMALL,
    TWO,
    Ticks,
    deep_check,
    entropy,
    new_disk,
    open_disk,
    reader,
)

SAME = (
    "boot_beg", "boot_end", "aux_beg", "aux_end", "volu_size", "version", "flags", "copyid",
    "freemap_version", "peer_type", "volu_id", "nvolumes", "fstype", "allocator_size",
    "allocator_free", "mirror_tid", "freemap_tid", "bulkfree_tid", "total_size", "volu_loff",
)  # fmt: skip
METAS = (
    "version", "type", "op_flags", "mode", "inum", "nlinks", "iparent", "name_key", "name_len",
    "comp_algo", "check_algo", "pfs_type", "pfs_inum",
)  # fmt: skip


def test_as_dragonfly() -> None:
    """What if the header or the first inodes had another value than newfs_hammer2 writes?"""
    mine = reader(new_disk(SMALL, labels=[b"BOOT", b"ROOT"]))
    golden = images.reader("fresh")
    for name in SAME:
        assert getattr(mine.volume.header, name) == getattr(golden.volume.header, name), name
    pairs = zip(golden.pfs_list(), mine.pfs_list(), strict=True)
    nodes = [(theirs.root, ours.root) for theirs, ours in pairs]
    for theirs, ours in [*nodes, (golden.sroot, mine.sroot)]:
        assert ours.name == theirs.name
        for name in METAS:
            assert getattr(ours.meta, name) == getattr(theirs.meta, name), (ours.name, name)
        for name in ("type", "methods", "copyid", "keybits", "vradix", "flags", "key"):
            assert getattr(ours.bref, name) == getattr(theirs.bref, name), (ours.name, name)


@pytest.mark.parametrize(("size", "copies"), [(32 * MIB, 1), (TWO, 2), (5 * GIB, 3), (FOUR, 4)])
def test_header_copies(size: int, copies: int) -> None:
    """What if a copy that fits was not written?"""
    disk = new_disk(size)
    found = reader(disk).volume.volumes[0].copies
    assert [copy.valid for copy in found] == [True] * copies
    assert deep_check(disk) == []
    assert reader(disk).pfs(b"DATA").root.meta.comp_algo == Comp.LZ4


def test_old_volume_forgotten() -> None:
    """What if a larger, newer volume was on the disk before?"""
    disk = new_disk(FOUR)
    for _ in range(5):
        open_disk(disk).flush.sync(force=True)
    newfs([DiskDevice(disk)], clock=Ticks(), entropy=entropy, labels=[b"OTHER"])
    tids = {copy.header.mirror_tid for copy in reader(disk).volume.volumes[0].copies if copy.header}
    assert tids == {16}
    assert reader(disk).pfs(b"OTHER")


def test_unaligned_device() -> None:
    """What if the device is no multiple of 8 MiB, and its tail has room for an old header?"""
    disk = RamDisk(2 * GIB + 128 * 1024)
    disk.write(2 * GIB, new_disk(FOUR).read(0, 65536))
    newfs([DiskDevice(disk)], clock=Ticks(), entropy=entropy)
    assert reader(disk).volume.size == 2 * GIB
    assert disk.read(2 * GIB, 65536) == bytes(65536)


def test_refused() -> None:
    """What if devices or labels make no volume?"""
    disk = DiskDevice(RamDisk(SMALL))
    common = {"clock": Ticks(), "entropy": entropy}
    for labels in ([b"a", b"b", b"c", b"d"], [b"a", b"a"], [b""], [b"x/y"], [b"x" * 256]):
        with pytest.raises(KError) as error:
            newfs([disk], labels, **common)
        assert error.value.errno == EINVAL
    with pytest.raises(KError) as error:
        newfs([disk], version=3, **common)
    assert error.value.errno == EINVAL
    with pytest.raises(KError) as error:
        newfs([disk, disk], version=1, **common)
    assert error.value.errno == EINVAL
    with pytest.raises(KError) as error:
        newfs([disk, disk], **common)
    assert error.value.errno == EINVAL
    with pytest.raises(KError) as error:
        newfs([DiskDevice(RamDisk(16 * MIB))], **common)
    assert error.value.errno == ENOSPC


def test_version_1() -> None:
    """What if old systems shall read it: are the fields of version 2 zero?"""
    header = reader(new_disk(SMALL, version=1)).volume.header
    assert (header.version, header.nvolumes, header.total_size) == (1, 0, 0)
    assert set(header.volu_loff) == {0}


def test_several_devices() -> None:
    """What if a volume has three devices?"""
    disks = [RamDisk(2 * GIB), RamDisk(GIB), RamDisk(24 * MIB)]
    devices = [DiskDevice(disk) for disk in disks]
    newfs(devices, clock=Ticks(), entropy=entropy)
    dev = Dev(devices[::-1], Ticks())
    assert dev.volume.size == 3 * GIB + 24 * MIB
    assert [volume.header.volu_id for volume in dev.volume.volumes] == [0, 1, 2]
    other = dev.volume.volumes[1].header
    assert other.sroot_blockset[0] == BrefType.INVALID
    assert dev.pfs_labels() == [b"DATA", b"LOCAL"]
    ip = xops.ncreate(dev.pfs(b"DATA").root, b"f")
    data = random.Random(1).randbytes(300_000)
    for gib in (0, 2, 3):
        dev.freemap._hints.clear()
        dev.freemap._starts[BrefType.DATA] = gib * GIB
        strategy.write(ip, gib << 20, data)
    dev.sync()
    assert disks[1].resident
    assert disks[2].resident
    plain = [Device(device.name, device.size, device.read_at) for device in devices]
    pfs = Reader(open_set(plain)).pfs(b"DATA")
    assert pfs.read(pfs.resolve(b"f"), 3 << 20, 300_000) == data
    again = Dev(devices, Ticks()).pfs(b"DATA").root
    assert strategy.read(xops.nresolve(again, b"f"), 2 << 20, 300_000) == data
