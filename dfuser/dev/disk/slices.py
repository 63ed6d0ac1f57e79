"""Slices and partitions of one disk, and the check of every transfer against them.

A device of the disk layer is a (unit, slice, partition) triple, packed into its minor number.
Partition 255 is "the slice itself", slice 1 "the disk itself". `dscheck` turns an offset in one of
them into one on the disk: it refuses what does not lie on whole sectors or beyond the end, clips
what crosses the end, and guards the label::

    sectors of a slice   0 ........ ds_reserved ............... ds_size
                         label, boot    free to write
                         EROFS unless DIOCWLABEL says otherwise

Writing to the label's place, or to the disk itself, asks for a new probe at the next close.

Counterpart: kern/subr_diskslice.c, sys/diskslice.h.
Differs from DragonFly: which partitions are open is what their devices count
    (`diskdev.Disk.opens`), not a bit that any close clears; freeing blocks is guarded like writing
    them.
Token and lock order: takes none.
Invariants: a slice without a label has nothing reserved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from uuid import UUID

from dfuser.libkern.errno import EINVAL, EROFS, KError
from dfuser.libkern.param import powerof2

from .bio import B, Bio, BufCmd, push_bio
from .label import Disklabel, Extent
from .table import BASE_SLICE, NIL, WHOLE_DISK_SLICE, DiskInfo, SliceEntry, SliceTable

DKMAXUNITS: Final = 512
DKMAXPARTITIONS: Final = 256
#: Partitions from this number on have meanings of their own.
DKRESPARTITIONS: Final = 128
#: The slice itself.
WHOLE_SLICE_PART: Final = DKMAXPARTITIONS - 1

#: ds_flags: probe again at the next close. Counterpart: DSF_REPROBE.
DSF_REPROBE: Final = 0x0001


def dkmakeminor(unit: int, slot: int, part: int) -> int:
    """Pack unit (9 bits), slice (7 bits) and partition (8 bits). Counterpart: dkmakeminor."""
    return (
        (unit & 0x001F) << 3
        | (unit & 0x01E0) << 16
        | (slot & 0x000F) << 16
        | (slot & 0x0070) << 25
        | part & 0x0007
        | (part & 0x0008) << 17
        | (part & 0x00F0) << 21
    )


def dkunit(minor: int) -> int:
    """The unit in a minor number. Counterpart: dkunit."""
    return minor >> 3 & 0x001F | minor >> 16 & 0x01E0


def dkslice(minor: int) -> int:
    """The slice in a minor number. Counterpart: dkslice."""
    return minor >> 16 & 0x000F | minor >> 25 & 0x0070


def dkpart(minor: int) -> int:
    """The partition in a minor number. Counterpart: dkpart."""
    return minor & 0x0007 | minor >> 17 & 0x0008 | minor >> 21 & 0x00F0


class Diskslice:
    """A slice. Counterpart: struct diskslice (sys/diskslice.h); ds_ is dropped.

    Attributes:
        offset, size: in sectors of the medium.
        reserved: sectors at its start that hold the label.
        type, type_uuid, stor_uuid: what the table says of it.
        flags: DSF bits.
        label: its label, or None.
        wlabel: whether the label may be overwritten.
    """

    __slots__ = (
        "flags",
        "label",
        "offset",
        "reserved",
        "size",
        "stor_uuid",
        "type",
        "type_uuid",
        "wlabel",
    )

    def __init__(self, offset: int = 0, size: int = 0, kind: int = 0) -> None:
        self.offset = offset
        self.size = size
        self.type = kind
        self.type_uuid: UUID = NIL
        self.stor_uuid: UUID = NIL
        self.reserved = 0
        self.flags = 0
        self.label: Disklabel | None = None
        self.wlabel = False

    @classmethod
    def from_entry(cls, entry: SliceEntry) -> Diskslice:
        """The slice a table describes."""
        self = cls(entry.offset, entry.size, entry.type)
        self.type_uuid = entry.type_uuid
        self.stor_uuid = entry.stor_uuid
        return self

    def set_label(self, label: Disklabel | None, blksize: int) -> None:
        """Put a label into force, protected, or take it out. Counterpart: set_ds_label."""
        self.label = label
        self.reserved = label.reserved(blksize) if label is not None else 0
        self.wlabel = False


class Diskslices:
    """All slices of a disk. Counterpart: struct diskslices (sys/diskslice.h); dss_ is dropped.

    Attributes:
        slices: slot to slice; empty slots are None.
        secsize: bytes of a sector.
        kind: of the table they come from.
    """

    __slots__ = ("kind", "secsize", "slices")

    def __init__(self, info: DiskInfo, table: SliceTable) -> None:
        """Make what a probe found; slot 0 becomes the whole disk where there is no table."""
        self.secsize = info.media_blksize
        self.kind = table.kind
        self.slices: list[Diskslice | None] = [None] * max(table.nslots, BASE_SLICE)
        for entry in table.slices:
            self.slices[entry.slot] = Diskslice.from_entry(entry)
        self.slices[WHOLE_DISK_SLICE] = Diskslice(0, info.media_blocks)
        if self.slices[0] is None and table.kind == "none":
            self.slices[0] = Diskslice(0, info.media_blocks)

    @property
    def nslices(self) -> int:
        """Slots, empty ones included."""
        return len(self.slices)

    def get(self, slot: int) -> Diskslice | None:
        """The slice in a slot, or None."""
        return self.slices[slot] if 0 <= slot < len(self.slices) else None

    def extent(self, sp: Diskslice) -> Extent:
        """Where a slice lies."""
        return Extent(sp.offset, sp.size, self.secsize)

    def inherit(self, old: Diskslices) -> None:
        """Take over which labels may be written, from before a new probe, for slices that stay."""
        for slot, before in enumerate(old.slices):
            now = self.get(slot)
            if before is not None and now is not None and self.extent(now) == old.extent(before):
                now.wlabel = before.wlabel

    def bounds(self, slot: int, part: int) -> tuple[int, int]:
        """First sector in the slice, and sectors, of a device.

        Raises:
            KError: EINVAL, no such slice or partition.
        """
        sp = self.get(slot)
        if sp is None:
            raise KError(EINVAL, f"no slice {slot}")
        if part == WHOLE_SLICE_PART:
            return 0, sp.size
        if slot == WHOLE_DISK_SLICE or sp.label is None:
            raise KError(EINVAL, "attempt to access non-existent partition")
        start, blocks = sp.label.getpartbounds(part, self.secsize)
        if start > sp.size or blocks > sp.size - start:
            raise KError(EINVAL, f"partition {part} is not in its slice")
        return start, blocks

    def place(self, slot: int, part: int) -> tuple[int, int]:
        """First sector on the disk, and sectors, of a device; (-1, 0) where it has no place."""
        try:
            start, blocks = self.bounds(slot, part)
        except KError:
            return -1, 0
        sp = self.slices[slot]
        assert sp is not None
        return sp.offset + start, blocks


def dscheck(
    bio: Bio, ssp: Diskslices, slot: int, part: int, complain: Callable[[str], object]
) -> Bio | None:
    """Check a transfer and translate it to the disk.

    Args:
        bio: as the device got it.
        ssp: the disk's slices.
        slot: the device's slice.
        part: the device's partition.
        complain: takes a line for the log.

    Returns:
        The bio for the raw device, or None where the transfer is over already: end of the device,
        or an error noted in the buffer. The caller then calls biodone on the bio it passed.

    Counterpart: dscheck.
    """
    bp = bio.buf
    if bp.cmd is BufCmd.FLUSH:
        return _pushed(bio, 0)
    try:
        offset = _translate(bio, ssp, slot, part)
    except KError as error:
        if error.errno != EROFS:
            complain(f"dscheck: {error.strerror}")
        bp.fail(error.errno)
        bp.flags |= B.INVAL
        return None
    if offset < 0:
        bp.resid = bp.bcount
        bp.flags |= B.INVAL
        return None
    return _pushed(bio, offset)


def _pushed(bio: Bio, offset: int) -> Bio:
    nbio = push_bio(bio)
    nbio.offset = offset
    return nbio


def _translate(bio: Bio, ssp: Diskslices, slot: int, part: int) -> int:
    """The offset on the disk; -1 at the end of the device. Clips ``bcount``.

    Raises:
        KError: EINVAL, EROFS.
    """
    bp = bio.buf
    secsize = ssp.secsize
    if bio.offset < 0:
        raise KError(EINVAL, f"negative offset {bio.offset}")
    if not powerof2(secsize) or bp.bcount & (secsize - 1) or bio.offset & (secsize - 1):
        raise KError(EINVAL, f"{bio!r} is not on a sector boundary (ssize {secsize})")
    secno, nsec = bio.offset // secsize, bp.bcount // secsize
    start, blocks = ssp.bounds(slot, part)
    sp = ssp.slices[slot]
    assert sp is not None
    if bp.cmd in (BufCmd.WRITE, BufCmd.FREEBLKS) and nsec:
        if slot == WHOLE_DISK_SLICE:
            sp.flags |= DSF_REPROBE
        elif start + secno < sp.reserved:
            if not sp.wlabel:
                raise KError(EROFS, "the label is write-protected")
            sp.flags |= DSF_REPROBE
    if secno + nsec > blocks:
        if secno > blocks or bp.flags & B.BNOCLIP:
            raise KError(EINVAL, f"{bio!r} is beyond the end")
        if secno == blocks:
            return -1
        bp.bcount = (blocks - secno) * secsize
    return (sp.offset + start + secno) * secsize
