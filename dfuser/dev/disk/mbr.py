"""The master boot record and its chain of extended records: parse and emit.

A record is one sector: 446 bytes of boot code, four entries, and 55 AA. An entry of an extended
type points to a further record, whose entries are relative to that record, but whose own extended
entries are relative to the first extended partition::

    MBR [ s1 | s2 | s3 | extended ]
                            |
                            +-> EBR [ s5 | next ] -> EBR [ s6 | next ] -> EBR [ s7 ]

Primary entry i becomes slice s(i+1), used or not; logical ones follow from s5 on.

`mbrinit` does what DragonFly's probe does: an entry of type 0xEE in the first place means that the
disk has a GPT; Ontrack's disk manager moves the record to sector 63; the table that old boot blocks
carry ("dangerously dedicated") is ignored; the geometry is guessed from the ends of the entries; an
entry that starts beyond the disk is left out, one that ends beyond it is cut.

Counterpart: kern/subr_diskmbr.c, sys/diskmbr.h.
Differs from DragonFly: a record of the chain is read once only and at most `EBR_MAX` of them are,
    so that no table on any disk keeps the probe busy; DragonFly bounds only the depth.
Token and lock order: takes none.
Invariants: parse(emit(x)) == x.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence
from typing import Final, NamedTuple

from dfuser.libkern.errno import EINVAL, EIO, KError
from dfuser.libkern.param import DEV_BSIZE

from .gpt import gptinit
from .table import (
    BASE_SLICE,
    MAX_SLICES,
    NO_TABLE,
    DiskInfo,
    Geometry,
    Probe,
    ReadSectors,
    SliceEntry,
    SliceTable,
)

NDOSPART: Final = 4
DOSBBSECTOR: Final = 0
DOSPARTOFF: Final = 446
DOSMAGICOFFSET: Final = 510
DOSMAGIC: Final = b"\x55\xaa"

# Types of entries. Counterpart: DOSPTYP_* (sys/diskmbr.h).
DOSPTYP_EXTENDED: Final = 0x05
DOSPTYP_EXTENDEDX: Final = 0x0F
DOSPTYP_ONTRACK: Final = 0x54
DOSPTYP_DFLYBSD: Final = 0x6C
DOSPTYP_LINSWP: Final = 0x82
DOSPTYP_LINUX: Final = 0x83
DOSPTYP_386BSD: Final = 0xA5
DOSPTYP_OPENBSD: Final = 0xA6
DOSPTYP_NETBSD: Final = 0xA9
DOSPTYP_PMBR: Final = 0xEE
DOSPTYP_EFI: Final = 0xEF

#: Types that may hold a disk label; 0 is the compatibility slice, 1 a slice of a GPT.
LABEL_TYPES: Final = frozenset(
    (0, 1, DOSPTYP_386BSD, DOSPTYP_NETBSD, DOSPTYP_OPENBSD, DOSPTYP_DFLYBSD)
)
EXTENDED_TYPES: Final = frozenset((DOSPTYP_EXTENDED, DOSPTYP_EXTENDEDX))

#: Where Ontrack's disk manager keeps the real record.
ONTRACK_SECTOR: Final = 63
#: Depth of a chain at which DragonFly stops.
LEVEL_MAX: Final = 16
#: Records of a chain that are read at most.
EBR_MAX: Final = 128
#: Size of an entry that means: to the end of the medium.
SIZE_REST: Final = 0xFFFF_FFFF

_ENTRY: Final = struct.Struct("<BBBBBBBBII")


class DosPartition(NamedTuple):
    """An entry. Counterpart: struct dos_partition (sys/diskmbr.h); dp_ is dropped."""

    flag: int = 0
    shd: int = 0
    ssect: int = 0
    scyl: int = 0
    typ: int = 0
    ehd: int = 0
    esect: int = 0
    ecyl: int = 0
    start: int = 0
    size: int = 0

    @classmethod
    def unpack(cls, data: bytes, offset: int) -> DosPartition:
        """The entry at ``offset``."""
        return cls._make(_ENTRY.unpack_from(data, offset))

    def pack(self) -> bytes:
        """Its 16 bytes."""
        return _ENTRY.pack(*self)

    @property
    def empty(self) -> bool:
        """Whether DragonFly takes it for unused."""
        return not (self.scyl or self.shd or self.ssect or self.start or self.size)

    @classmethod
    def make(
        cls, typ: int, start: int, size: int, *, active: bool = False, at: int = 0
    ) -> DosPartition:
        """An entry for a modern disk: cylinders, heads and sectors as for 255 heads of 63 sectors.

        Args:
            typ: DOSPTYP_*.
            start: first sector, relative to the record's base.
            size: sectors.
            active: whether the boot code shall prefer it.
            at: what the record is relative to, for the cylinders.

        Raises:
            KError: EINVAL, more than 32 bits.
        """
        if not (0 <= start <= SIZE_REST and 0 <= size <= SIZE_REST and 0 <= typ <= 0xFF):
            raise KError(EINVAL, f"an MBR cannot hold {size} sectors at {start}")
        first, last = chs(at + start), chs(at + start + max(size, 1) - 1)
        return cls(0x80 if active else 0, *first, typ, *last, start, size)


#: What boot blocks of "dangerously dedicated" disks carry; the second kind has legal heads.
HISTORICAL: Final = tuple(
    (DosPartition(),) * 3
    + (DosPartition(0x80, 0, 1, 0, DOSPTYP_DFLYBSD, heads, 255, 255, 0, 50000),)
    for heads in (255, 254)
)


class BootRecord(NamedTuple):
    """A master or extended boot record.

    Attributes:
        partitions: the four entries.
        boot: what is before them.
    """

    partitions: tuple[DosPartition, ...]
    boot: bytes = bytes(DOSPARTOFF)

    @classmethod
    def parse(cls, sector: bytes) -> BootRecord | None:
        """The record in a sector, or None where 55 AA is missing."""
        if sector[DOSMAGICOFFSET : DOSMAGICOFFSET + 2] != DOSMAGIC:
            return None
        offsets = range(DOSPARTOFF, DOSPARTOFF + NDOSPART * _ENTRY.size, _ENTRY.size)
        entries = tuple(DosPartition.unpack(sector, offset) for offset in offsets)
        return cls(entries, bytes(sector[:DOSPARTOFF]))

    def emit(self, blksize: int = DEV_BSIZE) -> bytes:
        """The sector.

        Raises:
            KError: EINVAL, not four entries, or too much boot code.
        """
        if len(self.partitions) != NDOSPART or len(self.boot) > DOSPARTOFF:
            raise KError(EINVAL, "a boot record has 446 bytes of code and four entries")
        entries = b"".join(entry.pack() for entry in self.partitions)
        sector = self.boot.ljust(DOSPARTOFF, b"\0") + entries + DOSMAGIC
        return sector.ljust(blksize, b"\0")


def dpsect(sector: int) -> int:
    """The sector's number in the second byte of an address. Counterpart: DPSECT."""
    return sector & 0x3F


def dpcyl(cylinder: int, sector: int) -> int:
    """The cylinder in the second and third byte. Counterpart: DPCYL."""
    return cylinder + ((sector & 0xC0) << 2)


def chs(sector: int) -> tuple[int, int, int]:
    """Head, sector and cylinder bytes for 255 heads of 63; the largest where it does not fit."""
    cylinder, rest = divmod(sector, 255 * 63)
    if cylinder > 1023:
        return 254, 0xFF, 0xFF
    head, number = divmod(rest, 63)
    return head, number + 1 | cylinder >> 2 & 0xC0, cylinder & 0xFF


def guess_geometry(entries: Sequence[DosPartition], blocks: int) -> Geometry | None:
    """What the ends of the entries say about heads and sectors."""
    sectors = max(dpsect(entry.esect) for entry in entries)
    heads = max(entry.ehd + 1 for entry in entries)
    if not sectors:
        return None
    return Geometry(heads, sectors, blocks // (sectors * heads))


class _Scan:
    """The state of one probe: slices found, lines for the log."""

    __slots__ = ("info", "messages", "nslots", "seen", "slices")

    def __init__(self, info: DiskInfo) -> None:
        self.info = info
        self.slices: list[SliceEntry] = []
        self.messages: list[str] = []
        self.nslots = BASE_SLICE
        self.seen: set[int] = set()

    def setslice(self, slot: int, entry: DosPartition, base: int) -> bool:
        """Enter a slice, cut to the medium. Counterpart: mbr_setslice."""
        offset = base + entry.start
        blocks = self.info.media_blocks
        if offset > blocks:
            self.messages.append("slice starts beyond end of the disk: rejecting it")
            return False
        size = rest = blocks - offset
        if rest < entry.size:
            self.messages.append(
                f"slice extends beyond end of disk: truncating from {entry.size} to {rest} sectors"
            )
        elif entry.size == SIZE_REST:
            self.messages.append("slice >2TB, using media size instead of slice table size")
        else:
            size = entry.size
        if size or entry.typ:
            self.slices.append(SliceEntry(slot, offset, size, entry.typ))
        return True


def mbrinit(info: DiskInfo, *, gpt_backup: bool = False) -> Probe:
    """Probe a disk for slices.

    Args:
        info: the medium.
        gpt_backup: see `gpt.gptinit`.

    Raises:
        KError: EIO, no medium, a sector size that is no multiple of 512, or sector 0 is unreadable.

    Counterpart: mbrinit.
    """
    if info.media_blksize % DEV_BSIZE or not info.media_size:
        raise KError(EIO, "no medium, or sectors of an odd size")
    base, record = yield from _record(info)
    if record is None or record.partitions in HISTORICAL:
        return NO_TABLE
    if record.partitions[0].typ == DOSPTYP_PMBR:
        return (yield from gptinit(info, use_backup=gpt_backup))
    scan = _Scan(info)
    for number, entry in enumerate(record.partitions):
        scan.setslice(BASE_SLICE + number, entry, base)
    scan.nslots = BASE_SLICE + NDOSPART
    for found in tuple(scan.slices):
        if found.type in EXTENDED_TYPES:
            yield from _extended(scan, found.offset, found.offset, 1)
    geometry = guess_geometry(record.partitions, info.media_blocks) if not base else None
    return SliceTable(
        "mbr",
        min(scan.nslots, MAX_SLICES),
        tuple(found for found in scan.slices if found.size),
        tuple(scan.messages),
        geometry,
    )


def _record(
    info: DiskInfo,
) -> Generator[ReadSectors, bytes, tuple[int, BootRecord | None]]:
    """The record that counts, and what its entries are relative to."""
    record = BootRecord.parse((yield ReadSectors(DOSBBSECTOR, 1)))
    if record is None or record.partitions[0].typ == DOSPTYP_PMBR:
        return DOSBBSECTOR, record
    ontrack = any(entry.typ == DOSPTYP_ONTRACK for entry in record.partitions)
    if not ontrack or info.media_blocks <= ONTRACK_SECTOR:
        return DOSBBSECTOR, record
    return ONTRACK_SECTOR, BootRecord.parse((yield ReadSectors(ONTRACK_SECTOR, 1)))


def _extended(
    scan: _Scan, where: int, base: int, level: int
) -> Generator[ReadSectors, bytes, None]:
    """Follow a chain of extended records. Counterpart: mbr_extended."""
    if level >= LEVEL_MAX or len(scan.seen) >= EBR_MAX:
        scan.messages.append("excessive recursion in search for slices; aborting search")
        return
    if where in scan.seen or where >= scan.info.media_blocks:
        return
    scan.seen.add(where)
    try:
        record = BootRecord.parse((yield ReadSectors(where, 1)))
    except KError:
        scan.messages.append("reading extended partition table: error")
        return
    if record is None:
        return
    further = []
    for entry in record.partitions:
        if entry.empty:
            continue
        if entry.typ in EXTENDED_TYPES:
            if entry.size:
                further.append(base + entry.start)
        elif scan.nslots >= MAX_SLICES:
            scan.messages.append("too many slices")
        elif scan.setslice(scan.nslots, entry, where):
            scan.nslots += 1
    for number, offset in enumerate(further):
        yield from _extended(scan, offset, base, level + 1 + number)


def emit_mbr(
    primaries: Sequence[DosPartition],
    logicals: Sequence[DosPartition] = (),
    *,
    blksize: int = DEV_BSIZE,
    boot: bytes = b"",
) -> dict[int, bytes]:
    """The sectors of a table: sector number to contents.

    Args:
        primaries: up to four entries; one may be extended, and must be if there are logicals.
        logicals: entries with **absolute** starts, ascending; the sector before each must be free,
            for its extended record goes there (into the first sector of the extended partition for
            the first one).
        blksize: bytes of a sector.
        boot: boot code.

    Raises:
        KError: EINVAL, too many entries, or logicals that do not lie in an extended partition.
    """
    if len(primaries) > NDOSPART:
        raise KError(EINVAL, f"an MBR has {NDOSPART} entries, not {len(primaries)}")
    filled = (*primaries, *(DosPartition(),) * (NDOSPART - len(primaries)))
    sectors = {DOSBBSECTOR: BootRecord(filled, boot).emit(blksize)}
    if not logicals:
        return sectors
    containers = [entry for entry in primaries if entry.typ in EXTENDED_TYPES]
    if len(containers) != 1:
        raise KError(EINVAL, "logical slices need one extended one")
    base, end = containers[0].start, containers[0].start + containers[0].size
    sectors.update(_chain(base, end, logicals, blksize))
    return sectors


def _chain(base: int, end: int, logicals: Sequence[DosPartition], blksize: int) -> dict[int, bytes]:
    """The extended records of an extended slice from ``base`` to ``end``.

    Raises:
        KError: EINVAL, a logical slice lies where it must not.
    """
    places = [base, *(entry.start - 1 for entry in logicals[1:])]
    for place, entry, following in zip(places, logicals, [*places[1:], end], strict=True):
        if not place < entry.start or entry.start + entry.size > following or following > end:
            raise KError(EINVAL, f"a logical slice at {entry.start} is in the way")
    sectors = {}
    for number, (place, entry) in enumerate(zip(places, logicals, strict=True)):
        own = DosPartition.make(
            entry.typ, entry.start - place, entry.size, active=bool(entry.flag & 0x80), at=place
        )
        link = DosPartition()
        if number + 1 < len(logicals):
            place2, entry2 = places[number + 1], logicals[number + 1]
            span = entry2.start + entry2.size - place2
            link = DosPartition.make(DOSPTYP_EXTENDED, place2 - base, span, at=base)
        pair = (own, link, DosPartition(), DosPartition())
        sectors[place] = BootRecord(pair).emit(blksize)
    return sectors
