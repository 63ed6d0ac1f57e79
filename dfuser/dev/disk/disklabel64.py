"""The 64-bit disk label: parse, check, emit.

It lies at byte 0 of its slice and counts bytes from there, so it does not care for sectors. Its
first 512 bytes are left alone (a boot block may be there); a CRC-32 covers the rest, up to the
last partition it has::

    0        512                 d_bbase            d_pbase           d_pstop   d_abase
    | boot 0 | label             | boot 2 (32 KiB)  | partitions ...  |         | copy |

A virgin label aligns ``d_pbase`` to 1 MiB of the *disk*, and leaves room for 32 partitions and a
copy at the end of the slice.

Counterpart: kern/subr_disklabel64.c, sys/disklabel64.h.
Token and lock order: takes none.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Final, Self
from uuid import UUID

from dfuser.libkern.errno import EBUSY, EINVAL, ENOSPC, KError
from dfuser.libkern.param import roundup
from dfuser.libkern.structs import Record, nested, raw, u8, u32, u64

from .label import (
    FS_UNUSED,
    MAXPARTITIONS,
    Extent,
    LabelError,
    PartitionKind,
    packname_text,
)
from .table import DSO_COMPATPARTA, NIL, DiskInfo

DISKMAGIC64: Final = 0xC446_4C59
#: Partitions a virgin label leaves room for.
RESPARTITIONS64: Final = 32
BOOT2SIZE64: Final = 32 * 1024
PALIGN_SIZE: Final = 1 << 20
#: Bytes before the magic that no label touches.
RESERVED0: Final = 512


class Partition64(Record):
    """A partition, in bytes. Counterpart: struct partition64 (sys/disklabel64.h)."""

    p_boffset: int = u64(default=0)
    p_bsize: int = u64(default=0)
    p_fstype: int = u8(default=0)
    p_unused01: int = u8(default=0)
    p_unused02: int = u8(default=0)
    p_unused03: int = u8(default=0)
    p_unused04: int = u32(default=0)
    p_unused05: int = u32(default=0)
    p_unused06: int = u32(default=0)
    p_type_uuid: bytes = raw(16, default=bytes(16))
    p_stor_uuid: bytes = raw(16, default=bytes(16))

    @property
    def type_uuid(self) -> UUID:
        """What is in it."""
        return UUID(bytes_le=bytes(self.p_type_uuid))

    @property
    def stor_uuid(self) -> UUID:
        """Its own name."""
        return UUID(bytes_le=bytes(self.p_stor_uuid))


class Disklabel64(Record):
    """A label. Counterpart: struct disklabel64 (sys/disklabel64.h)."""

    d_reserved0: bytes = raw(RESERVED0, default=bytes(RESERVED0))
    d_magic: int = u32(default=DISKMAGIC64)
    d_crc: int = u32(default=0)
    d_align: int = u32(default=4096)
    d_npartitions: int = u32(default=MAXPARTITIONS)
    d_stor_uuid: bytes = raw(16, default=bytes(16))
    d_total_size: int = u64(default=0)
    d_bbase: int = u64(default=0)
    d_pbase: int = u64(default=0)
    d_pstop: int = u64(default=0)
    d_abase: int = u64(default=0)
    d_packname: bytes = raw(64, default=bytes(64))
    d_reserved: bytes = raw(64, default=bytes(64))
    d_partitions: tuple[Partition64, ...] = nested(Partition64, MAXPARTITIONS, default=())

    # --- what every label answers ----------------------------------------------------------

    @property
    def bits(self) -> int:
        """64."""
        return 64

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
            KError: EINVAL, no such partition, or it does not lie on whole sectors.
        """
        if not 0 <= part < self.d_npartitions:
            raise KError(EINVAL, f"the label has no partition {part}")
        entry = self.d_partitions[part]
        if (entry.p_boffset | entry.p_bsize) & (blksize - 1):
            raise KError(EINVAL, f"partition {part} does not lie on whole sectors")
        return entry.p_boffset // blksize, entry.p_bsize // blksize

    def partition_kind(self, part: int) -> PartitionKind:
        """What the partition is for."""
        if not 0 <= part < self.d_npartitions:
            return PartitionKind(FS_UNUSED)
        entry = self.d_partitions[part]
        return PartitionKind(entry.p_fstype, entry.type_uuid, entry.stor_uuid)

    def reserved(self, blksize: int) -> int:
        """Sectors at the start of the slice that are protected: the label, not the boot area."""
        return self.d_bbase // blksize

    # --- sums ------------------------------------------------------------------------------

    @property
    def crc(self) -> int:
        """What ``d_crc`` should be."""
        kept, self.d_crc = self.d_crc, 0
        data = self.pack()
        self.d_crc = kept
        return zlib.crc32(data[RESERVED0 : _covered(self.d_npartitions)])

    def seal(self) -> Self:
        """Set the CRC; returns the label."""
        self.d_crc = self.crc
        return self


def _covered(npartitions: int) -> int:
    """The byte after the last one the CRC covers."""
    return Disklabel64.size - (MAXPARTITIONS - npartitions) * Partition64.size


def span(blksize: int) -> int:
    """Bytes to read or write for a label: whole sectors."""
    return roundup(Disklabel64.size, blksize)


def parse(data: bytes) -> Disklabel64:
    """The label at the start of a slice. Counterpart: l64_readdisklabel.

    Raises:
        LabelError: no label, or a broken one.
    """
    if len(data) < Disklabel64.size:
        raise LabelError("no disk label", absent=True)
    magic, crc, _align, npartitions = struct.unpack_from("<IIII", data, RESERVED0)
    if magic != DISKMAGIC64:
        raise LabelError("no disk label", absent=True)
    if npartitions > MAXPARTITIONS:
        raise LabelError("disklabel64 corrupted, too many partitions")
    body = data[RESERVED0 : RESERVED0 + 4] + bytes(4) + data[RESERVED0 + 8 : _covered(npartitions)]
    if zlib.crc32(body) != crc:
        raise LabelError("disklabel64 corrupted, bad CRC")
    return Disklabel64.unpack_from(data)


def put(data: bytes, label: Disklabel64) -> bytes:
    """The first sectors of a slice with the label written over; the first 512 bytes stay.

    Counterpart: l64_writedisklabel, without the transfer.

    Raises:
        KError: EINVAL, fewer bytes than a label has.
    """
    if len(data) < Disklabel64.size:
        raise KError(EINVAL, f"a label needs {Disklabel64.size} bytes")
    return bytes(data[:RESERVED0]) + label.pack()[RESERVED0:] + bytes(data[Disklabel64.size :])


def setdisklabel(
    old: Disklabel64 | None, data: bytes, extent: Extent, openmask: int
) -> Disklabel64:
    """Check a label somebody wants to set, and return it.

    A partition that is open may grow, and nothing else. Counterpart: l64_setdisklabel.

    Args:
        old: the label in force, or None.
        data: the new one.
        extent: of the slice.
        openmask: bit n is set where partition n is open.

    Raises:
        KError: EINVAL, no sound label or one that does not lie on sectors; EBUSY, an open
            partition would change; ENOSPC, something does not fit.
    """
    new = Disklabel64.unpack_from(data)
    if new.d_magic != DISKMAGIC64 or new.d_npartitions > MAXPARTITIONS or new.crc != new.d_crc:
        raise KError(EINVAL, "no sound disk label")
    for part in range(MAXPARTITIONS):
        if openmask >> part & 1:
            before = old.d_partitions[part] if old is not None else Partition64()
            if part >= new.d_npartitions or _changes(before, new.d_partitions[part]):
                raise KError(EBUSY, f"partition {part} is open and would change")
    _check_sizes(new, extent)
    return new.seal()


def _changes(old: Partition64, new: Partition64) -> bool:
    """Whether an open partition would become another one."""
    return (
        new.p_boffset != old.p_boffset
        or new.p_bsize < old.p_bsize
        or new.p_type_uuid != old.p_type_uuid
        or new.p_stor_uuid != old.p_stor_uuid
    )


def _check_sizes(label: Disklabel64, extent: Extent) -> None:
    """See that everything lies on sectors and in the slice.

    Raises:
        KError: EINVAL or ENOSPC.
    """
    mask = extent.blksize - 1
    if label.d_total_size > extent.size * extent.blksize:
        raise KError(ENOSPC, "the label is for a larger slice")
    where = (label.d_total_size, label.d_bbase, label.d_pbase, label.d_pstop, label.d_abase)
    if any(value & mask for value in where):
        raise KError(EINVAL, "the label does not lie on whole sectors")
    for entry in label.d_partitions[: label.d_npartitions]:
        if not entry.p_bsize:
            if entry.p_boffset:
                raise KError(EINVAL, "an empty partition with an offset")
            continue
        if (entry.p_boffset | entry.p_bsize) & mask:
            raise KError(EINVAL, "a partition does not lie on whole sectors")
        end = entry.p_boffset + entry.p_bsize
        if entry.p_boffset < label.d_pbase or end > label.d_total_size:
            raise KError(ENOSPC, "a partition does not lie in the slice")


def _no_partitions() -> tuple[Partition64, ...]:
    return tuple(Partition64() for _ in range(MAXPARTITIONS))


def clone_label(info: DiskInfo, extent: Extent | None) -> Disklabel64:
    """A label made up for a medium without one; it is not legal, its bases are 0.

    Counterpart: l64_clone_label.
    """
    blocks = extent.size if extent else info.media_blocks
    total = blocks * info.media_blksize
    label = Disklabel64(
        d_align=info.media_blksize,
        d_total_size=total,
        d_pstop=total,
        d_partitions=_no_partitions(),
    )
    label.d_partitions[2].p_bsize = total
    if info.dsflags & DSO_COMPATPARTA:
        label.d_partitions[0].p_bsize = total
    return label.seal()


def makevirginlabel(
    info: DiskInfo, extent: Extent, uuidgen: Callable[[], UUID] = lambda: NIL
) -> Disklabel64:
    """A label to start from, without partitions. Counterpart: l64_makevirginlabel.

    Args:
        info: the medium.
        extent: the slice; larger than 2 MiB or there is no room for partitions.
        uuidgen: makes the label's own UUID.
    """
    base = extent.offset * info.media_blksize
    align = max(info.media_blksize, 4096)
    total = extent.size * extent.blksize
    reserved = roundup(_covered(RESPARTITIONS64), align)
    end = max(total - reserved, 0)
    start = roundup(base + reserved + roundup(BOOT2SIZE64, align), PALIGN_SIZE) - base
    stop = start + max(end - start, 0) // PALIGN_SIZE * PALIGN_SIZE
    label = Disklabel64(
        d_align=align,
        d_stor_uuid=uuidgen().bytes_le,
        d_total_size=total,
        d_bbase=reserved,
        d_pbase=start,
        d_pstop=stop,
        d_abase=end,
        d_partitions=_no_partitions(),
    )
    if info.dsflags & DSO_COMPATPARTA:
        label.d_partitions[0].p_boffset = start
        label.d_partitions[0].p_bsize = stop - start
    return label.seal()
