"""Disk labels: layouts byte for byte, rules, round trips, and damage."""

from __future__ import annotations

import random
import struct
import uuid
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfuser.dev.disk import disklabel32, disklabel64
from dfuser.dev.disk.disklabel32 import Disklabel32, Partition32
from dfuser.dev.disk.disklabel64 import Disklabel64, Partition64
from dfuser.dev.disk.label import FS_HAMMER2, FS_SWAP, FS_UNUSED, RAW_PART, Extent, LabelError
from dfuser.dev.disk.table import DSO_COMPATPARTA, DiskInfo
from dfuser.libkern.errno import EBUSY, EINVAL, ENOSPC, ESRCH, EXDEV, KError

INFO = DiskInfo(512, 1 << 20)
EXTENT = Extent(2048, 1 << 18, 512)


def label32(*parts: tuple[int, int, int]) -> Disklabel32:
    """A virgin label with partitions a, b, d ... of (offset, size, fstype)."""
    label = disklabel32.makevirginlabel(INFO, EXTENT)
    places = [n for n in range(16) if n != RAW_PART]
    for place, (offset, size, fstype) in zip(places, parts, strict=False):
        entry = label.d_partitions[place]
        entry.p_offset, entry.p_size, entry.p_fstype = offset, size, fstype
    return label.seal()


def label64(*parts: tuple[int, int, int]) -> Disklabel64:
    """A virgin label with partitions of (offset, size, fstype), in bytes."""
    label = disklabel64.makevirginlabel(INFO, EXTENT, lambda: uuid.UUID(int=77))
    for number, (offset, size, fstype) in enumerate(parts):
        entry = label.d_partitions[number]
        entry.p_boffset, entry.p_bsize, entry.p_fstype = offset, size, fstype
        entry.p_stor_uuid = uuid.UUID(int=number + 1).bytes_le
    return label.seal()


# --- 32 bits -------------------------------------------------------------------------------


def test_layout_of_the_32_bit_label() -> None:
    """What if the bytes are compared with offsets known from the boot blocks' assembler?"""
    label = label32((16, 100, FS_HAMMER2))
    data = label.pack()
    assert len(data) == 404
    assert struct.unpack_from("<I", data) == (0x82564557,)
    fields = struct.unpack_from("<6I", data, 40)
    assert fields == (
        512, label.d_nsectors, label.d_ntracks, label.d_ncylinders, label.d_secpercyl, 1 << 18,
    )  # fmt: skip
    assert struct.unpack_from("<I", data, 132) == (0x82564557,)
    assert struct.unpack_from("<HHII", data, 136)[1:] == (16, 8192, 8192)
    assert struct.unpack_from("<IIIBBH", data, 148) == (100, 16, 0, FS_HAMMER2, 0, 0)


def test_the_medium_counts_from_the_disk() -> None:
    """What if a label is written and read: are offsets absolute there and relative here?"""
    label = label32((16, 1000, FS_HAMMER2), (1016, 2000, FS_SWAP))
    sector = disklabel32.emit(label, EXTENT)
    assert struct.unpack_from("<II", sector, 148) == (1000, 2048 + 16)
    back = disklabel32.parse(sector, EXTENT)
    assert back.getpartbounds(0, 512) == (16, 1000)
    assert back.getpartbounds(RAW_PART, 512) == (0, 1 << 18)
    assert back.partition_kind(1).fstype == FS_SWAP
    assert back.packname == "fictitious"
    assert back.reserved(512) == 16
    assert back.pack() == label.pack()
    with pytest.raises(KError):
        back.getpartbounds(16, 512)
    assert back.partition_kind(99).fstype == FS_UNUSED


def test_a_label_is_found_anywhere_in_its_sector() -> None:
    """What if the label is not at the start, a broken one is before it, or only broken ones?"""
    data = disklabel32.emit(label32(), EXTENT)[:404]
    moved = bytes(72) + data + bytes(36)
    assert disklabel32.find(moved) == 72
    extra = disklabel32.put(moved, label32((20, 30, FS_SWAP)), EXTENT)
    assert extra[:72] == bytes(72)
    assert disklabel32.parse(extra, EXTENT).getpartbounds(0, 512) == (20, 30)
    broken = bytearray(moved)
    broken[72 + 60] ^= 4
    with pytest.raises(LabelError, match="corrupted") as found:
        disklabel32.parse(bytes(broken), EXTENT)
    assert not found.value.absent
    with pytest.raises(LabelError) as missing:
        disklabel32.parse(bytes(512), EXTENT)
    assert missing.value.absent


def test_fewer_partitions_than_sixteen() -> None:
    """What if a label of 8 partitions, as BSD of old wrote it, is read? Is only that summed?"""
    label = label32((16, 100, FS_HAMMER2))
    label.d_npartitions = 8
    sector = bytearray(disklabel32.emit(label, EXTENT))
    sector[276:404] = b"\xff" * 128  # what is behind is not the label's
    back = disklabel32.parse(bytes(sector), EXTENT)
    assert back.npartitions == 8
    assert back.getpartbounds(0, 512) == (16, 100)


def test_labels_that_do_not_fit_their_slice() -> None:
    """What if partition c is elsewhere or larger, a partition sticks out, or cylinders are none?"""
    sector = disklabel32.emit(label32((16, 100, FS_SWAP)), EXTENT)
    for other in (EXTENT._replace(offset=4096), EXTENT._replace(size=1000)):
        with pytest.raises(LabelError):
            disklabel32.parse(sector, other)
    larger = disklabel32.parse(sector, EXTENT._replace(size=1 << 19))
    assert larger.d_secperunit == 1 << 19
    label = Disklabel32.unpack_from(sector)
    label.d_partitions[0].p_size = 1 << 30
    label.d_secpercyl = label.d_secpercyl
    back = disklabel32.parse(label.seal().pack().ljust(512, b"\0"), EXTENT)
    assert back.d_partitions[0] == Partition32()
    label.d_secpercyl = 0
    with pytest.raises(LabelError):
        disklabel32.parse(label.seal().pack().ljust(512, b"\0"), EXTENT)


def test_writing_needs_a_label_to_replace() -> None:
    """What if the sector to write has no label, or partition c does not start at 0?"""
    with pytest.raises(KError) as refused:
        disklabel32.put(bytes(512), label32(), EXTENT)
    assert refused.value.errno == ESRCH
    label = label32()
    label.d_partitions[RAW_PART].p_offset = 1
    with pytest.raises(KError) as refused:
        disklabel32.put(disklabel32.emit(label32(), EXTENT), label, EXTENT)
    assert refused.value.errno == EXDEV


def test_open_partitions_only_grow_32() -> None:
    """What if a new label shrinks, moves, drops or unmarks a partition that is open?"""
    old = label32((16, 1000, FS_HAMMER2))

    def change(offset: int, size: int, fstype: int) -> Disklabel32:
        return disklabel32.setdisklabel(
            old, label32((offset, size, fstype)).pack(), EXTENT, openmask=1
        )

    assert change(16, 2000, FS_UNUSED).d_partitions[0].p_fstype == FS_HAMMER2
    for offset, size in ((16, 999), (17, 1000)):
        with pytest.raises(KError) as refused:
            change(offset, size, FS_HAMMER2)
        assert refused.value.errno == EBUSY
    fewer = label32()
    fewer.d_npartitions = 8
    with pytest.raises(KError) as refused:
        disklabel32.setdisklabel(old, fewer.seal().pack(), EXTENT, openmask=1 << 9)
    assert refused.value.errno == EBUSY


def test_new_labels_are_checked_32() -> None:
    """What if a new label has a wrong sum, a moved c, or is for a larger slice?"""

    def errno_of(label: Disklabel32) -> int:
        with pytest.raises(KError) as refused:
            disklabel32.setdisklabel(None, label.pack(), EXTENT, 0)
        return refused.value.errno

    label = label32()
    label.d_rpm ^= 1
    assert errno_of(label) == EINVAL
    label = label32()
    label.d_partitions[RAW_PART].p_offset = 5
    assert errno_of(label.seal()) == EXDEV
    label = label32((0, (1 << 18) + 1, FS_SWAP))
    assert errno_of(label) == ENOSPC
    label = label32()
    label.d_secperunit += 1
    assert errno_of(label.seal()) == ENOSPC
    assert disklabel32.setdisklabel(None, label32().pack(), EXTENT, 0).sum == 0


# --- 64 bits -------------------------------------------------------------------------------


def test_layout_of_the_64_bit_label() -> None:
    """What if the bytes are compared with the layout and CRC computed by hand?"""
    data = label64((1 << 20, 4096, FS_HAMMER2)).pack()
    assert len(data) == 1736
    magic, crc, align, count = struct.unpack_from("<4I", data, 512)
    assert (magic, align, count) == (0xC4464C59, 4096, 16)
    assert crc == zlib.crc32(data[512:516] + bytes(4) + data[520:])
    total, bbase, pbase, pstop, abase = struct.unpack_from("<5Q", data, 544)
    assert (total, bbase, abase) == (1 << 27, 4096, (1 << 27) - 4096)
    assert (pbase + 2048 * 512) % (1 << 20) == 0
    assert (pstop - pbase) % (1 << 20) == 0
    assert pbase >= bbase + 32768
    assert pstop <= abase
    assert struct.unpack_from("<QQB", data, 712) == (1 << 20, 4096, FS_HAMMER2)


def test_64_round_trip_and_boot_block() -> None:
    """What if the label is written over a boot block: does the block stay?"""
    label = label64((1 << 20, 1 << 20, FS_HAMMER2))
    label.d_packname = b"ROOT/1".ljust(64, b"\0")
    label.seal()
    area = disklabel64.put(b"B" * 512 + b"\xee" * 1536, label)
    assert area[:512] == b"B" * 512
    assert area[1736:] == b"\xee" * 312
    back = disklabel64.parse(area)
    assert back.packname == "ROOT_1"
    assert back.getpartbounds(0, 512) == (2048, 2048)
    assert back.getpartbounds(0, 4096) == (256, 256)
    kind = back.partition_kind(0)
    assert (kind.fstype, kind.stor_uuid) == (FS_HAMMER2, uuid.UUID(int=1))
    assert back.reserved(512) == 8
    assert back.partition_kind(16).fstype == FS_UNUSED


def test_partitions_off_the_sectors() -> None:
    """What if a partition does not lie on whole sectors?"""
    label = label64(((1 << 20) + 512, 4096, FS_HAMMER2))
    assert label.getpartbounds(0, 512) == (2049, 8)
    with pytest.raises(KError) as refused:
        label.getpartbounds(0, 4096)
    assert refused.value.errno == EINVAL


def test_open_partitions_only_grow_64() -> None:
    """What if a new label changes an open partition's place, size or names?"""
    old = label64((1 << 20, 1 << 20, FS_HAMMER2))
    assert disklabel64.setdisklabel(old, label64((1 << 20, 1 << 21, FS_HAMMER2)).pack(), EXTENT, 1)
    shrunk = label64((1 << 20, 4096, FS_HAMMER2))
    moved = label64((1 << 21, 1 << 20, FS_HAMMER2))
    renamed = label64((1 << 20, 1 << 20, FS_HAMMER2))
    renamed.d_partitions[0].p_stor_uuid = bytes(range(16))
    retyped = label64((1 << 20, 1 << 20, FS_HAMMER2))
    retyped.d_partitions[0].p_type_uuid = bytes(range(16))
    for new in (shrunk, moved, renamed.seal(), retyped.seal()):
        with pytest.raises(KError) as refused:
            disklabel64.setdisklabel(old, new.pack(), EXTENT, 1)
        assert refused.value.errno == EBUSY
        disklabel64.setdisklabel(old, new.pack(), EXTENT, 0)


def test_new_labels_are_checked_64() -> None:
    """What if sizes are odd, too large, before the base, or an empty partition has a place?"""

    def errno_of(label: Disklabel64) -> int:
        with pytest.raises(KError) as refused:
            disklabel64.setdisklabel(None, label.seal().pack(), EXTENT, 0)
        return refused.value.errno

    assert errno_of(label64((4096, 4096, 1))) == ENOSPC
    assert errno_of(label64((1 << 20, 1 << 27, 1))) == ENOSPC
    assert errno_of(label64(((1 << 20) + 1, 4096, 1))) == EINVAL
    assert errno_of(label64((1 << 20, 0, 1))) == EINVAL
    label = label64()
    label.d_total_size += 512
    assert errno_of(label) == ENOSPC
    for field in ("d_total_size", "d_bbase", "d_pbase", "d_pstop", "d_abase"):
        label = label64()
        setattr(label, field, getattr(label, field) - 1)
        assert errno_of(label) == EINVAL
    label = label64()
    label.d_reserved = b"x".ljust(64, b"\0")
    with pytest.raises(KError) as refused:
        disklabel64.setdisklabel(None, label.pack(), EXTENT, 0)
    assert refused.value.errno == EINVAL


def test_labels_made_up_for_media_without_one() -> None:
    """What if a CD has no label: is there a c, and an a if asked for?"""
    info = DiskInfo(2048, 5000, dsflags=DSO_COMPATPARTA)
    old = disklabel32.clone_label(info, None)
    assert old.getpartbounds(RAW_PART, 2048) == (0, 5000)
    assert old.getpartbounds(0, 2048) == (0, 5000)
    assert old.sum == 0
    new = disklabel64.clone_label(info, Extent(0, 4000, 2048))
    assert new.getpartbounds(2, 2048) == (0, 4000)
    assert new.getpartbounds(0, 2048) == (0, 4000)
    assert new.crc == new.d_crc
    tiny = disklabel32.makevirginlabel(DiskInfo(512, 8), Extent(0, 3, 512))
    assert tiny.d_secpercyl == 1
    with_a = disklabel64.makevirginlabel(info, Extent(0, 5000, 2048))
    assert with_a.d_partitions[0].p_bsize == with_a.d_pstop - with_a.d_pbase


# --- damage --------------------------------------------------------------------------------


@given(st.data())
def test_every_flipped_bit_is_noticed(data: st.DataObject) -> None:
    """What if one bit of a label flips: is it ever taken for sound?"""
    area = bytearray(disklabel64.put(bytes(2048), label64((1 << 20, 4096, FS_HAMMER2))))
    bit = data.draw(st.integers(512 * 8, 1736 * 8 - 1))
    area[bit // 8] ^= 1 << bit % 8
    with pytest.raises(LabelError):
        disklabel64.parse(bytes(area))
    sector = bytearray(disklabel32.emit(label32((16, 100, FS_SWAP)), EXTENT))
    bit = data.draw(st.integers(0, 404 * 8 - 1))
    sector[bit // 8] ^= 1 << bit % 8
    with pytest.raises(LabelError):
        disklabel32.parse(bytes(sector), EXTENT)


@given(st.binary(max_size=2048), st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_rubbish_is_a_label_error(data: bytes, offset: int, size: int) -> None:
    """What if rubbish with the right magic is parsed?"""
    extent = Extent(offset, size, 512)
    old = bytearray(data.ljust(512, b"\0")[:512])
    old[0:4] = old[132:136] = b"\x57\x45\x56\x82"
    if old[138] < 17 and not old[139]:
        old[136:138] = bytes(2)
        old[136:138] = disklabel32.dkcksum32(bytes(old), old[138]).to_bytes(2, "little")
    for parse in (
        lambda: disklabel32.parse(bytes(old), extent),
        lambda: disklabel64.parse(data),
        lambda: disklabel64.parse(data[:512].ljust(512) + b"\x59\x4c\x46\xc4" + data[516:]),
    ):
        try:
            label = parse()
        except LabelError:
            continue
        for part in range(label.npartitions):
            start, blocks = label.getpartbounds(part, 512)
            assert start + blocks <= max(size, 0)


@given(st.randoms(use_true_random=False))
def test_any_sound_label_round_trips(rng: random.Random) -> None:
    """What if a label holds any partitions that lie in the slice?"""
    parts32 = []
    parts64 = []
    for _ in range(rng.randrange(15)):
        start = rng.randrange(EXTENT.size)
        parts32.append((start, rng.randrange(1, EXTENT.size - start + 1), rng.randrange(256)))
        low, high = 1 << 20, EXTENT.size * 512
        at = rng.randrange(low, high, 512)
        parts64.append((at, rng.randrange(512, high - at + 1, 512), rng.randrange(256)))
    one = label32(*parts32)
    assert disklabel32.parse(disklabel32.emit(one, EXTENT), EXTENT).pack() == one.pack()
    assert disklabel32.setdisklabel(None, one.pack(), EXTENT, 0).pack() == one.pack()
    two = label64(*parts64)
    assert disklabel64.parse(disklabel64.put(bytes(2048), two)).pack() == two.pack()
    assert disklabel64.setdisklabel(None, two.pack(), EXTENT, 0).pack() == two.pack()
    assert Partition64.unpack_from(two.d_partitions[0].pack()) == two.d_partitions[0]
