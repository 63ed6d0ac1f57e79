"""What is known of a disk, and the slices found on it: the ground the codecs stand on.

A slice table is read by a *probe*: a generator that yields `ReadSectors` and is sent the sectors'
bytes, until it returns a `SliceTable`. Who drives it may read at once, wait, or read from a file;
where a read fails he throws the `KError` into the generator. So one piece of code serves the
kernel, the tools and the tests, and it never waits::

    table = run_probe(mbrinit(info), lambda r: disk.read(r.block * 512, r.nblocks * 512))

Slices are numbered as in DragonFly: slot 0 is the compatibility slice (``s0``), slot 1 the whole
disk, slot n from 2 on is ``s(n-1)``.

Counterpart: struct disk_info (sys/disk.h), struct diskslice (sys/diskslice.h).
Differs from DragonFly: there the probe reads through the device itself and sleeps.
Token and lock order: takes none.
Invariants: a probe of any bytes ends, and returns slices that lie on the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

import attrs

from dfuser.libkern.errno import KError

#: Slots of a slice table. Counterpart: sys/diskslice.h.
COMPATIBILITY_SLICE: Final = 0
WHOLE_DISK_SLICE: Final = 1
BASE_SLICE: Final = 2
#: Slots an MBR fills at most.
MAX_SLICES: Final = 16
#: Slots that have a number of their own in a minor.
DKMAXSLICES: Final = 128

NIL: Final = UUID(int=0)

#: d_dsflags. Counterpart: DSO_* (sys/disk.h).
DSO_NOLABELS: Final = 0x0001
DSO_ONESLICE: Final = 0x0002
DSO_COMPATLABEL: Final = 0x0004
DSO_COMPATPARTA: Final = 0x0008
DSO_COMPATMBR: Final = 0x0010
DSO_RAWEXTENSIONS: Final = 0x0020
DSO_MBRQUIET: Final = 0x0040
DSO_DEVICEMAPPER: Final = 0x0080
DSO_RAWPSIZE: Final = 0x0100


@attrs.define
class DiskInfo:
    """What a driver tells of its medium. Counterpart: struct disk_info (sys/disk.h).

    Attributes:
        media_blksize: bytes of a sector.
        media_blocks: sectors.
        dsflags: DSO bits.
        nheads, ncylinders, secpertrack, secpercyl: geometry, 0 when unknown; a slice table that
            implies another one replaces it.
        trimflag: whether freed blocks are of interest to the driver.
        serialno: of the drive, or None.
    """

    media_blksize: int
    media_blocks: int
    dsflags: int = 0
    nheads: int = 0
    ncylinders: int = 0
    secpertrack: int = 0
    secpercyl: int = 0
    trimflag: bool = False
    serialno: str | None = None

    @property
    def media_size(self) -> int:
        """Bytes of the medium."""
        return self.media_blksize * self.media_blocks


class ReadSectors(NamedTuple):
    """What a probe asks for: ``nblocks`` sectors from sector ``block`` on."""

    block: int
    nblocks: int


class SliceEntry(NamedTuple):
    """One slice that was found.

    Attributes:
        slot: its number in the table; see the head of the module.
        offset, size: in sectors of the medium.
        type: the type byte of an MBR; 1 for every slice of a GPT.
        type_uuid, stor_uuid: what a GPT says, else nil.
        name: what a GPT calls it, else empty. DragonFly does not use it.
    """

    slot: int
    offset: int
    size: int
    type: int
    type_uuid: UUID = NIL
    stor_uuid: UUID = NIL
    name: str = ""


class Geometry(NamedTuple):
    """Heads, sectors a track, and cylinders that an MBR implies."""

    nheads: int
    secpertrack: int
    ncylinders: int


class SliceTable(NamedTuple):
    """What a probe found.

    Attributes:
        kind: ``mbr``, ``gpt``, or ``none``: no valid table, the disk has slice 0 only.
        nslots: slots the table has, empty ones included.
        slices: those that are in use.
        messages: lines for the kernel's log.
        geometry: what the table implies, or None.
    """

    kind: str
    nslots: int
    slices: tuple[SliceEntry, ...] = ()
    messages: tuple[str, ...] = ()
    geometry: Geometry | None = None


Probe: TypeAlias = "Generator[ReadSectors, bytes, SliceTable]"

#: No table at all.
NO_TABLE: Final = SliceTable("none", BASE_SLICE)


def run_probe(probe: Probe, read: Callable[[ReadSectors], bytes]) -> SliceTable:
    """Drive a probe where reading does not wait.

    Args:
        probe: the generator, not started.
        read: gives the sectors asked for, or raises `KError`.

    Raises:
        KError: what ``read`` raised, if the probe cannot do without.
    """
    try:
        request = next(probe)
        while True:
            try:
                data = read(request)
            except KError as error:
                request = probe.throw(error)
            else:
                request = probe.send(data)
    except StopIteration as end:
        table: SliceTable = end.value
        return table


def slice_name(slot: int) -> str:
    """What follows the disk's name: ``s0`` for slot 0, nothing for the whole disk, else s(n-1)."""
    if slot == WHOLE_DISK_SLICE:
        return ""
    return f"s{slot - 1 if slot else 0}"
