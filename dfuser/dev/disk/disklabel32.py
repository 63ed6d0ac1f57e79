"""The 32-bit disk label: parse, check, emit.

It lies somewhere in sector 1 of its slice, at a multiple of 8 bytes, is 404 bytes long, and its
16-bit words, up to the last partition it has, XOR to zero. On the medium partitions are counted
from the start of the disk; in memory from the start of the slice. Partition ``c`` must cover the
slice.

Counterpart: kern/subr_disklabel32.c, sys/disklabel32.h.
Token and lock order: takes none.
Invariants: a parsed label's partitions lie in its slice.
"""

from __future__ import annotations

import struct
from functools import reduce
from operator import xor
from typing import Final, Self

from dfuser.libkern.errno import EBUSY, EINVAL, ENOSPC, ESRCH, EXDEV, KError
from dfuser.libkern.structs import Record, array, nested, raw, u8, u16, u32

from .label import (
    BBSIZE,
    FS_OTHER,
    FS_UNUSED,
    MAXPARTITIONS,
    RAW_PART,
    SBSIZE,
    Extent,
    LabelError,
    PartitionKind,
    packname_text,
)
from .table import DSO_COMPATPARTA, DiskInfo

DISKMAGIC32: Final = 0x8256_4557
LABELSECTOR32: Final = 1
#: Places in the sector where a label is looked for: multiples of a C long.
STEP: Final = 8
_UNLABELLED: Final = "no disk label"


class Partition32(Record):
    """A partition, in sectors. Counterpart: struct partition32 (sys/disklabel32.h)."""

    p_size: int = u32(default=0)
    p_offset: int = u32(default=0)
    p_fsize: int = u32(default=0)
    p_fstype: int = u8(default=0)
    p_frag: int = u8(default=0)
    p_cpg: int = u16(default=0)


def _no_partitions() -> tuple[Partition32, ...]:
    return tuple(Partition32() for _ in range(MAXPARTITIONS))


class Disklabel32(Record):
    """A label. Counterpart: struct disklabel32 (sys/disklabel32.h)."""

    d_magic: int = u32(default=DISKMAGIC32)
    d_type: int = u16(default=0)
    d_subtype: int = u16(default=0)
    d_typename: bytes = raw(16, default=b"")
    d_packname: bytes = raw(16, default=b"")
    d_secsize: int = u32(default=512)
    d_nsectors: int = u32(default=0)
    d_ntracks: int = u32(default=0)
    d_ncylinders: int = u32(default=0)
    d_secpercyl: int = u32(default=0)
    d_secperunit: int = u32(default=0)
    d_sparespertrack: int = u16(default=0)
    d_sparespercyl: int = u16(default=0)
    d_acylinders: int = u32(default=0)
    d_rpm: int = u16(default=3600)
    d_interleave: int = u16(default=1)
    d_trackskew: int = u16(default=0)
    d_cylskew: int = u16(default=0)
    d_headswitch: int = u32(default=0)
    d_trkseek: int = u32(default=0)
    d_flags: int = u32(default=0)
    d_drivedata: tuple[int, ...] = array(u32(), 5, default=(0,) * 5)
    d_spare: tuple[int, ...] = array(u32(), 5, default=(0,) * 5)
    d_magic2: int = u32(default=DISKMAGIC32)
    d_checksum: int = u16(default=0)
    d_npartitions: int = u16(default=MAXPARTITIONS)
    d_bbsize: int = u32(default=BBSIZE)
    d_sbsize: int = u32(default=SBSIZE)
    d_partitions: tuple[Partition32, ...] = nested(Partition32, MAXPARTITIONS, default=())

    # --- what every label answers ----------------------------------------------------------

    @property
    def bits(self) -> int:
        """32."""
        return 32

    @property
    def npartitions(self) -> int:
        """Partitions it has room for."""
        return self.d_npartitions

    @property
    def packname(self) -> str:
        """What its owner calls it."""
        return packname_text(self.d_packname)

    def getpartbounds(self, part: int, blksize: int) -> tuple[int, int]:
        """First sector in the slice, and sectors, of a partition.

        Raises:
            KError: EINVAL, no such partition.
        """
        if not 0 <= part < self.d_npartitions:
            raise KError(EINVAL, f"the label has no partition {part}")
        entry = self.d_partitions[part]
        return entry.p_offset, entry.p_size

    def partition_kind(self, part: int) -> PartitionKind:
        """What the partition is for."""
        inside = 0 <= part < self.d_npartitions
        return PartitionKind(self.d_partitions[part].p_fstype if inside else FS_UNUSED)

    def reserved(self, blksize: int) -> int:
        """Sectors at the start of the slice that are protected."""
        return SBSIZE // blksize

    # --- sums ------------------------------------------------------------------------------

    @property
    def sum(self) -> int:
        """XOR of all words; 0 in a sound label. Counterpart: dkcksum32."""
        return dkcksum32(self.pack(), self.d_npartitions)

    def seal(self) -> Self:
        """Set the checksum; returns the label."""
        self.d_checksum = 0
        self.d_checksum = self.sum
        return self

    def copy(self) -> Disklabel32:
        """A label of its own with the same contents."""
        return Disklabel32.unpack_from(self.pack())


def dkcksum32(data: bytes, npartitions: int, offset: int = 0) -> int:
    """XOR of the 16-bit words of a label with so many partitions. Counterpart: dkcksum32."""
    length = Disklabel32.size - (MAXPARTITIONS - npartitions) * Partition32.size
    return reduce(xor, struct.unpack_from(f"<{length // 2}H", data, offset), 0)


def find(sector: bytes) -> int:
    """Where in sector 1 a sound label begins.

    Raises:
        LabelError: there is none, or only broken ones.
    """
    broken = False
    for offset in range(0, len(sector) - Disklabel32.size + 1, STEP):
        if not _has_magic(sector, offset):
            continue
        (npartitions,) = struct.unpack_from("<H", sector, offset + _NPARTITIONS_AT)
        if npartitions > MAXPARTITIONS or dkcksum32(sector, npartitions, offset):
            broken = True
        else:
            return offset
    # Kept in a variable, the error would hold this frame by its traceback and be cyclic garbage.
    raise LabelError("disk label corrupted" if broken else _UNLABELLED, absent=not broken)


_MAGIC: Final = DISKMAGIC32.to_bytes(4, "little")
_MAGIC2_AT: Final = int(Disklabel32.offset_of("d_magic2"))
_NPARTITIONS_AT: Final = int(Disklabel32.offset_of("d_npartitions"))


def _has_magic(sector: bytes, offset: int) -> bool:
    second = offset + _MAGIC2_AT
    return sector[offset : offset + 4] == _MAGIC and sector[second : second + 4] == _MAGIC


def parse(sector: bytes, extent: Extent) -> Disklabel32:
    """The label in sector 1 of a slice, made slice-relative.

    A partition that does not lie in the slice is emptied. Counterpart: l32_readdisklabel.

    Raises:
        LabelError: no label, a broken one, or one that does not fit the slice.
    """
    label = Disklabel32.unpack_from(sector, find(sector))
    return fixlabel(label, extent, writing=False)


def fixlabel(label: Disklabel32, extent: Extent, *, writing: bool) -> Disklabel32:
    """Make a label slice-relative after reading, disk-relative before writing.

    Changes ``label`` and returns it. Counterpart: l32_fixlabel.

    Raises:
        LabelError: partition c is not the slice, or the geometry is none.
    """
    start, shift = (0, extent.offset) if writing else (extent.offset, -extent.offset)
    whole = label.d_partitions[RAW_PART]
    if whole.p_offset != start:
        raise LabelError("fixlabel: raw partition offset != slice offset")
    if whole.p_size > extent.size:
        raise LabelError("fixlabel: raw partition size > slice size")
    if not label.d_secpercyl:
        raise LabelError("fixlabel: d_secpercyl <= 0")
    end = start + extent.size
    for number, entry in enumerate(label.d_partitions[: label.d_npartitions]):
        if not entry.p_offset and not entry.p_size:
            continue
        last = entry.p_offset + entry.p_size
        if entry.p_offset < start or last > end or entry.p_offset + shift > 0xFFFF_FFFF:
            places = list(label.d_partitions)
            places[number] = Partition32()
            label.d_partitions = tuple(places)
        else:
            entry.p_offset += shift
    label.d_ncylinders = extent.size // label.d_secpercyl & 0xFFFF_FFFF
    label.d_secperunit = extent.size & 0xFFFF_FFFF
    return label.seal()


def put(sector: bytes, label: Disklabel32, extent: Extent) -> bytes:
    """Sector 1 with its label replaced; everything around it stays.

    Counterpart: l32_writedisklabel, without the transfer.

    Raises:
        KError: EXDEV, partition c does not start at 0; ESRCH, the sector has no sound label to
            replace (the first one is written raw, see `emit`); EINVAL, it does not fit the slice.
    """
    if label.d_partitions[RAW_PART].p_offset:
        raise KError(EXDEV, "partition c does not start with the slice")
    try:
        offset = find(sector)
    except LabelError as error:
        raise KError(ESRCH, str(error)) from None
    return _placed(sector, offset, label, extent)


def emit(label: Disklabel32, extent: Extent) -> bytes:
    """Sector 1 of a slice that had no label.

    Raises:
        KError: EINVAL, it does not fit the slice.
    """
    return _placed(bytes(extent.blksize), 0, label, extent)


def _placed(sector: bytes, offset: int, label: Disklabel32, extent: Extent) -> bytes:
    try:
        data = fixlabel(label.copy(), extent, writing=True).pack()
    except LabelError as error:
        raise KError(EINVAL, str(error)) from None
    return sector[:offset] + data + sector[offset + len(data) :]


def setdisklabel(
    old: Disklabel32 | None, data: bytes, extent: Extent, openmask: int
) -> Disklabel32:
    """Check a label somebody wants to set, and return it.

    A partition that is open may grow, and nothing else. Counterpart: l32_setdisklabel.

    Args:
        old: the label in force, or None.
        data: the new one, slice-relative.
        extent: of the slice.
        openmask: bit n is set where partition n is open.

    Raises:
        KError: EINVAL, no sound label; EBUSY, an open partition would change; EXDEV, partition c
            does not start at 0; ENOSPC, the slice is too small for it.
    """
    new = Disklabel32.unpack_from(data)
    if (
        new.d_magic != DISKMAGIC32
        or new.d_magic2 != DISKMAGIC32
        or new.d_npartitions > MAXPARTITIONS
        or new.sum
    ):
        raise KError(EINVAL, "no sound disk label")
    before = old.d_partitions if old is not None else _no_partitions()
    for part in range(MAXPARTITIONS):
        if openmask >> part & 1:
            if part >= new.d_npartitions:
                raise KError(EBUSY, f"partition {part} is open")
            _keep_open(before[part], new.d_partitions[part])
    if new.d_partitions[RAW_PART].p_offset:
        raise KError(EXDEV, "partition c does not start with the slice")
    if new.d_secperunit > extent.size or any(
        entry.p_size > extent.size for entry in new.d_partitions[: new.d_npartitions]
    ):
        raise KError(ENOSPC, "the label is for a larger slice")
    return new.seal()


def _keep_open(old: Partition32, new: Partition32) -> None:
    """See that an open partition stays what it is."""
    if new.p_offset != old.p_offset or new.p_size < old.p_size:
        raise KError(EBUSY, "an open partition would change")
    if new.p_fstype == FS_UNUSED and old.p_fstype != FS_UNUSED:
        new.p_fstype, new.p_fsize = old.p_fstype, old.p_fsize
        new.p_frag, new.p_cpg = old.p_frag, old.p_cpg


def clone_label(info: DiskInfo, extent: Extent | None) -> Disklabel32:
    """A label made up for a medium without one: partition c is all of it.

    Counterpart: l32_clone_label.
    """
    label = Disklabel32(
        d_typename=b"amnesiac".ljust(16, b"\0"),
        d_packname=b"fictitious".ljust(16, b"\0"),
        d_secsize=info.media_blksize,
        d_nsectors=info.secpertrack or 32,
        d_ntracks=info.nheads or 64,
        d_partitions=_no_partitions(),
    )
    label.d_secperunit = (extent.size if extent else info.media_blocks) & 0xFFFF_FFFF
    label.d_secpercyl = label.d_nsectors * label.d_ntracks
    label.d_ncylinders = label.d_secperunit // label.d_secpercyl
    label.d_partitions[RAW_PART].p_size = label.d_secperunit
    if info.dsflags & DSO_COMPATPARTA:
        label.d_partitions[0].p_size = label.d_secperunit
        label.d_partitions[0].p_fstype = FS_OTHER
    return label.seal()


def makevirginlabel(info: DiskInfo, extent: Extent) -> Disklabel32:
    """A label to start from: partition c is the slice. Counterpart: l32_makevirginlabel."""
    label = clone_label(info, None)
    label.d_ncylinders = 0
    while label.d_ncylinders < 4:
        if label.d_ntracks > 1:
            label.d_ntracks >>= 1
        elif label.d_nsectors > 1:
            label.d_nsectors >>= 1
        else:
            break
        label.d_secpercyl = label.d_nsectors * label.d_ntracks
        label.d_ncylinders = extent.size // label.d_secpercyl & 0xFFFF_FFFF
    label.d_secperunit = extent.size & 0xFFFF_FFFF
    label.d_partitions[RAW_PART].p_size = label.d_secperunit
    if info.dsflags & DSO_COMPATPARTA:
        label.d_partitions[0].p_size = label.d_secperunit
    return label.seal()
