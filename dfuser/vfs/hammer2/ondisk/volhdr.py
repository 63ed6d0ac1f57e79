"""The volume header: 64 KiB from which everything on a volume is reached.

::

    0000  magic, areas, sizes, version, ids, allocator, transaction ids      sector 0
    00C8  copyexists     01E0  icrc_sects[8]
    0200  sroot_blockset       four blockrefs; the first leads to the super-root inode
    0400  reserved
    0800  freemap_blockset     four blockrefs to the freemap
    0A00  reserved             0E00  volu_loff[64]
    1000  copyinfo[256]        remote copies, never used
    9000  reserved
    FFFC  icrc_volheader

Three CRCs guard it, to be made in this order: icrc_sects[6] over sector 1 (0200-03FF),
icrc_sects[7] over sector 0 up to itself (0000-01FB), icrc_volheader over all before it. `seal`
does that; `wrong_icrc` tells which does not hold.

``mirror_tid`` says which flush wrote this copy, ``freemap_tid`` which one wrote the freemap that
it refers to. ``allocator_free`` counts down from ``allocator_size`` in steps of 16 KiB.

Fields of version 2, several devices in one volume: ``volu_id`` and ``nvolumes``, ``total_size``,
and ``volu_loff`` (where each device's first byte lies in the volume, all ones for none). Version 1
has zeroes there.

Counterpart: struct hammer2_volume_data, struct hammer2_volconf (vfs/hammer2/hammer2_disk.h).
Differs from DragonFly: the sources of 2020 call the fields of version 2 reserved.
Token/lock order: takes none.
Invariants: reserved bytes are kept as they were read and written back.
"""

from __future__ import annotations

from struct import unpack_from
from typing import Final
from uuid import UUID

import google_crc32c

from dfuser.libkern.structs import Record, array, raw, u8, u16, u32, u64
from dfuser.vfs.hammer2.ondisk.const import (
    MAX_VOLUMES,
    PEER_HAMMER2,
    UUID_STRING,
    VOL_ICRC_SECT0,
    VOL_ICRC_SECT1,
    VOL_VERSION_MIN,
    VOLUME_BYTES,
    VOLUME_ID_HBO,
)

#: What the fstype of each HAMMER2 volume is, as it lies on the media.
FSTYPE: Final = UUID(UUID_STRING).bytes_le
NO_LOFF: Final = 0xFFFF_FFFF_FFFF_FFFF

#: First byte of what each CRC covers, and the byte behind the last.
_SECT0: Final = (0, 512 - 4)
_SECT1: Final = (512, 1024)
_VOLHEADER: Final = (0, VOLUME_BYTES - 4)


class VolConf(Record, endian="<"):
    """Where a remote copy is found. Counterpart: struct hammer2_volconf (hammer2_disk.h)."""

    copyid: int = u8(default=0)
    inprog: int = u8(default=0)
    chain_to: int = u8(default=0)
    chain_from: int = u8(default=0)
    flags: int = u16(default=0)
    error: int = u8(default=0)
    priority: int = u8(default=0)
    remote_pfs_type: int = u8(default=0)
    reserved08: bytes = raw(23, default=b"")
    pfs_clid: bytes = raw(16, default=b"")
    label: bytes = raw(16, default=b"")
    path: bytes = raw(64, default=b"")


class VolumeData(Record, endian="<"):
    """A volume header, all but the copyinfo table taken apart.

    Counterpart: struct hammer2_volume_data (hammer2_disk.h).
    """

    magic: int = u64(default=VOLUME_ID_HBO)
    boot_beg: int = u64(default=0)
    boot_end: int = u64(default=0)
    aux_beg: int = u64(default=0)
    aux_end: int = u64(default=0)
    volu_size: int = u64(default=0)
    version: int = u32(default=VOL_VERSION_MIN)
    flags: int = u32(default=0)
    copyid: int = u8(default=0)
    freemap_version: int = u8(default=0)
    peer_type: int = u8(default=PEER_HAMMER2)
    volu_id: int = u8(default=0)
    nvolumes: int = u8(default=0)
    reserved003D: bytes = raw(3, default=b"")
    fsid: bytes = raw(16, default=b"")
    fstype: bytes = raw(16, default=FSTYPE)
    allocator_size: int = u64(default=0)
    allocator_free: int = u64(default=0)
    allocator_beg: int = u64(default=0)
    mirror_tid: int = u64(default=0)
    reserved0080: int = u64(default=0)
    reserved0088: int = u64(default=0)
    freemap_tid: int = u64(default=0)
    bulkfree_tid: int = u64(default=0)
    reserved00A0: bytes = raw(32, default=b"")
    total_size: int = u64(default=0)
    copyexists: tuple[int, ...] = array(u32(), 8, default=(0,) * 8)
    reserved00E8: bytes = raw(248, default=b"")
    icrc_sects: tuple[int, ...] = array(u32(), 8, default=(0,) * 8)
    sroot_blockset: bytes = raw(512, default=b"")
    sector2: bytes = raw(512, default=b"")
    sector3: bytes = raw(512, default=b"")
    freemap_blockset: bytes = raw(512, default=b"")
    sector5: bytes = raw(512, default=b"")
    sector6: bytes = raw(512, default=b"")
    volu_loff: tuple[int, ...] = array(u64(), MAX_VOLUMES, default=(0,) * MAX_VOLUMES)
    copyinfo: bytes = raw(256 * 128, default=b"")
    reserved9000: bytes = raw(0x6FFC, default=b"")
    icrc_volheader: int = u32(default=0)

    def seal(self) -> bytes:
        """The 64 KiB to write, with all three CRCs made anew here and in the record.

        Raises:
            KError: EOVERFLOW, a value does not fit its field.
        """
        data = bytearray(self.pack())
        at = VolumeData.offset_of("icrc_sects")
        _put_crc(data, _SECT1, at + 4 * VOL_ICRC_SECT1)
        _put_crc(data, _SECT0, at + 4 * VOL_ICRC_SECT0)
        self.icrc_volheader = _put_crc(data, _VOLHEADER, VOLUME_BYTES - 4)
        self.icrc_sects = unpack_from("<8I", data, at)
        return bytes(data)

    def copies(self) -> list[VolConf]:
        """The table of remote copies, slots that are in use only."""
        return [conf for conf in VolConf.iter_unpack(self.copyinfo) if conf.copyid]


def _crc(data: bytes | bytearray, part: tuple[int, int]) -> int:
    """The CRC over a part of a header."""
    crc: int = google_crc32c.value(bytes(data[slice(*part)]))
    return crc


def _put_crc(data: bytearray, part: tuple[int, int], at: int) -> int:
    """Write the CRC over a part of a header into the header."""
    crc = _crc(data, part)
    data[at : at + 4] = crc.to_bytes(4, "little")
    return crc


def wrong_icrc(data: bytes, header: VolumeData) -> str:
    """Which CRC of a header copy is wrong: the name of its part, empty if all hold.

    Args:
        data: the 64 KiB as they were read.
        header: the record made from them.
    """
    parts = (
        ("sector 0", _SECT0, header.icrc_sects[VOL_ICRC_SECT0]),
        ("sector 1", _SECT1, header.icrc_sects[VOL_ICRC_SECT1]),
        ("the whole header", _VOLHEADER, header.icrc_volheader),
    )
    for name, part, stored in parts:
        if _crc(data, part) != stored:
            return name
    return ""
