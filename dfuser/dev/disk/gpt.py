"""The GUID partition table: parse and emit, both copies.

::

    sector 0      protective MBR: one entry of type 0xEE over the disk
    sector 1      header
    sector 2...   entries: 128 of 128 bytes, as a rule
    ...           the partitions
    last-32...    entries again
    last          header again, its two "where" fields exchanged

The header carries a CRC-32 of itself and one of the entries. Entry i becomes slice s(i): the first
entry, which other tools number 1, is ``s0``, in the slot of the compatibility slice.

`gptinit` reads as DragonFly does: the header's CRC must be right, that of the entries is *not*
looked at, the copy at the end is never used, and an entry that lies wrong is left out, alone. With
``use_backup`` the copy is used where the first header is bad, and a wrong CRC of the entries counts
as bad. `Gpt` is for tools: it reads and writes both copies and checks everything.

Counterpart: kern/subr_diskgpt.c, sys/gpt.h.
Differs from DragonFly: the signature is checked, and all 64 bits of the place of the entries are
    used; of 128 entries the last two have no number in a minor and get no device.
Token and lock order: takes none.
Invariants: Gpt.parse(g.emit()) == g; both copies say the same.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Generator, Sequence
from typing import Final, NamedTuple
from uuid import UUID

from dfuser.libkern.errno import EINVAL, KError
from dfuser.libkern.param import MAXBSIZE

from .table import (
    BASE_SLICE,
    COMPATIBILITY_SLICE,
    DKMAXSLICES,
    NIL,
    NO_TABLE,
    DiskInfo,
    Probe,
    ReadSectors,
    SliceEntry,
    SliceTable,
)

GPT_HDR_SIG: Final = b"EFI PART"
GPT_HDR_REVISION: Final = 0x0001_0000
GPT_MIN_HDR_SIZE: Final = 92
GPT_ENTRIES_MAX: Final = 128
GPT_ENT_SIZE: Final = 128
#: The type of every slice of a GPT in a `SliceEntry`, as DragonFly has it.
GPT_SLICE_TYPE: Final = 1

# Bits of an entry's attributes. Counterpart: GPT_ENT_ATTR_* (sys/gpt.h).
GPT_ENT_ATTR_PLATFORM: Final = 1 << 0
GPT_ENT_ATTR_BOOTFAILED: Final = 1 << 57
GPT_ENT_ATTR_BOOTONCE: Final = 1 << 58
GPT_ENT_ATTR_BOOTME: Final = 1 << 59

# Types of entries. Counterpart: GPT_ENT_TYPE_* (sys/gpt.h).
GPT_ENT_TYPE_EFI: Final = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
GPT_ENT_TYPE_DRAGONFLY_LABEL32: Final = "9d087404-1ca5-11dc-8817-01301bb8a9f5"
GPT_ENT_TYPE_DRAGONFLY_LABEL64: Final = "3d48ce54-1d16-11dc-8696-01301bb8a9f5"
GPT_ENT_TYPE_DRAGONFLY_SWAP: Final = "9d58fdbd-1ca5-11dc-8817-01301bb8a9f5"
GPT_ENT_TYPE_DRAGONFLY_UFS1: Final = "9d94ce7c-1ca5-11dc-8817-01301bb8a9f5"
GPT_ENT_TYPE_DRAGONFLY_HAMMER: Final = "61dc63ac-6e38-11dc-8513-01301bb8a9f5"
GPT_ENT_TYPE_DRAGONFLY_HAMMER2: Final = "5cbb9ad1-862d-11dc-a94d-01301bb8a9f5"
GPT_ENT_TYPE_LINUX_DATA: Final = "0fc63daf-8483-4772-8e79-3d69d8477de4"
GPT_ENT_TYPE_MS_BASIC_DATA: Final = "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7"

_HDR: Final = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENT: Final = struct.Struct("<16s16sQQQ72s")


class GptError(ValueError):
    """Bytes that are no valid header or table; the text says why."""


class GptHeader(NamedTuple):
    """A header. Counterpart: struct gpt_hdr (sys/gpt.h); hdr_ is dropped.

    Attributes:
        lba_self, lba_alt: where this header and the other copy are.
        lba_start, lba_end: first and last sector partitions may use.
        uuid: of the disk.
        lba_table: where the entries are.
        entries, entsz: how many, of how many bytes.
        crc_table: CRC-32 of all of them.
        revision, size: of the header.
    """

    lba_self: int
    lba_alt: int
    lba_start: int
    lba_end: int
    uuid: UUID
    lba_table: int
    entries: int
    entsz: int
    crc_table: int
    revision: int = GPT_HDR_REVISION
    size: int = GPT_MIN_HDR_SIZE

    @classmethod
    def parse(cls, sector: bytes) -> GptHeader:
        """The header at the start of a sector.

        Raises:
            GptError: no signature, a size that is none, a wrong CRC.
        """
        if len(sector) < GPT_MIN_HDR_SIZE or sector[:8] != GPT_HDR_SIG:
            raise GptError("no GPT signature")
        fields = _HDR.unpack_from(sector)
        _sig, revision, size, crc, _reserved = fields[:5]
        if not GPT_MIN_HDR_SIZE <= size <= len(sector):
            raise GptError(f"Illegal GPT header size {size}")
        blank = bytes(sector[:16]) + bytes(4) + bytes(sector[20:size])
        if zlib.crc32(blank) != crc:
            raise GptError("GPT CRC32 did not match")
        this, alt, start, end, name, table, entries, entsz, crc_table = fields[5:]
        return cls(
            this, alt, start, end, UUID(bytes_le=name), table, entries, entsz, crc_table,
            revision, size,
        )  # fmt: skip

    def emit(self, blksize: int) -> bytes:
        """The sector."""
        rest = (
            self.lba_self, self.lba_alt, self.lba_start, self.lba_end, self.uuid.bytes_le,
            self.lba_table, self.entries, self.entsz, self.crc_table,
        )  # fmt: skip
        size = self.size
        blank = _HDR.pack(GPT_HDR_SIG, self.revision, size, 0, 0, *rest).ljust(size, b"\0")
        crc = zlib.crc32(blank)
        sealed = _HDR.pack(GPT_HDR_SIG, self.revision, size, crc, 0, *rest)
        return sealed.ljust(blksize, b"\0")

    def table_blocks(self, blksize: int) -> int:
        """Sectors the entries take."""
        return -(-self.entries * self.entsz // blksize)

    def check_table(self, info: DiskInfo) -> None:
        """Refuse what DragonFly refuses: where and how large the table may be.

        Raises:
            GptError: out of bounds.
        """
        blocks = self.table_blocks(info.media_blksize)
        if (
            not 1 <= self.entries <= GPT_ENTRIES_MAX
            or self.entsz < GPT_ENT_SIZE
            or self.entsz & 7
            or self.entsz > MAXBSIZE // self.entries
            or self.lba_table < 2
            or self.lba_table + blocks > info.media_blocks
        ):
            raise GptError("GPT partition table is out of bounds")


class GptEntry(NamedTuple):
    """An entry. Counterpart: struct gpt_ent (sys/gpt.h); ent_ is dropped.

    Attributes:
        type: what is in it; nil is an unused entry.
        uuid: its own.
        lba_start, lba_end: first and last sector.
        attr: GPT_ENT_ATTR_*.
        name: up to 36 UTF-16 units.
    """

    type: UUID = NIL
    uuid: UUID = NIL
    lba_start: int = 0
    lba_end: int = 0
    attr: int = 0
    name: str = ""

    @classmethod
    def parse(cls, data: bytes, offset: int) -> GptEntry:
        """The entry at ``offset``. A name that is no UTF-16 keeps its sound parts."""
        kind, own, start, end, attr, raw = _ENT.unpack_from(data, offset)
        units = raw.decode("utf-16-le", "replace")
        return cls(
            UUID(bytes_le=kind), UUID(bytes_le=own), start, end, attr,
            units.partition("\0")[0],
        )  # fmt: skip

    def emit(self) -> bytes:
        """Its 128 bytes.

        Raises:
            GptError: the name is too long, or holds half a character.
        """
        try:
            raw = self.name.encode("utf-16-le")
        except UnicodeEncodeError:
            raise GptError(f"{self.name!r} cannot be written in UTF-16") from None
        if len(raw) > 72:
            raise GptError(f"{self.name!r} is longer than 36 UTF-16 units")
        return _ENT.pack(
            self.type.bytes_le, self.uuid.bytes_le, self.lba_start, self.lba_end, self.attr, raw
        )


class Gpt(NamedTuple):
    """A whole table, for tools.

    Attributes:
        blocks, blksize: of the disk it is for.
        uuid: of the disk.
        entries: all places, used or not.
    """

    blocks: int
    blksize: int
    uuid: UUID
    entries: tuple[GptEntry, ...]

    @classmethod
    def make(cls, blocks: int, blksize: int, disk: UUID, used: Sequence[GptEntry]) -> Gpt:
        """A table of 128 places, the first ones used.

        Raises:
            GptError: too many entries, or one that lies where it must not.
        """
        if len(used) > GPT_ENTRIES_MAX:
            raise GptError(f"{len(used)} entries are more than {GPT_ENTRIES_MAX}")
        filled = (*used, *(GptEntry(),) * (GPT_ENTRIES_MAX - len(used)))
        table = cls(blocks, blksize, disk, filled)
        table.check()
        return table

    @property
    def table_blocks(self) -> int:
        """Sectors one copy of the entries takes."""
        return -(-len(self.entries) * GPT_ENT_SIZE // self.blksize)

    @property
    def usable(self) -> tuple[int, int]:
        """First and last sector partitions may use."""
        return 2 + self.table_blocks, self.blocks - 2 - self.table_blocks

    def check(self) -> None:
        """Refuse entries that overlap or lie outside of the usable sectors.

        Raises:
            GptError: with the first thing that is wrong.
        """
        first, last = self.usable
        if first > last:
            raise GptError(f"{self.blocks} sectors are too few for a GPT")
        before = first - 1
        for entry in sorted((e for e in self.entries if e.type != NIL), key=lambda e: e.lba_start):
            if not before < entry.lba_start <= entry.lba_end <= last:
                raise GptError(f"a partition at {entry.lba_start}..{entry.lba_end} is in the way")
            before = entry.lba_end

    def emit(self) -> dict[int, bytes]:
        """First sector number to bytes: protective MBR, both headers, both copies of the entries.

        Raises:
            GptError: as `check` and `GptEntry.emit`.
        """
        self.check()
        table = b"".join(entry.emit() for entry in self.entries)
        first, last = self.usable
        end = self.blocks - 1
        header = GptHeader(
            1, end, first, last, self.uuid, 2, len(self.entries), GPT_ENT_SIZE, zlib.crc32(table)
        )
        backup = header._replace(lba_self=end, lba_alt=1, lba_table=last + 1)
        table = table.ljust(self.table_blocks * self.blksize, b"\0")
        return {
            0: protective_mbr(self.blocks, self.blksize),
            1: header.emit(self.blksize),
            2: table,
            last + 1: table,
            end: backup.emit(self.blksize),
        }

    @classmethod
    def parse(
        cls, read: Callable[[int, int], bytes], blocks: int, blksize: int, *, backup: bool = False
    ) -> Gpt:
        """Read one copy and check everything.

        Args:
            read: gives so many sectors (second argument) from a sector on (first argument).
            blocks: sectors of the disk.
            blksize: bytes of a sector.
            backup: read the copy at the end.

        Raises:
            GptError: what is wrong with it.
            KError: what ``read`` raises.
        """
        here = blocks - 1 if backup else 1
        header = GptHeader.parse(read(here, 1))
        header.check_table(DiskInfo(blksize, blocks))
        if header.lba_self != here:
            raise GptError(f"a header at {here} says that it is at {header.lba_self}")
        table = read(header.lba_table, header.table_blocks(blksize))
        size = header.entries * header.entsz
        if zlib.crc32(table[:size]) != header.crc_table:
            raise GptError("the CRC32 of the entries did not match")
        entries = tuple(GptEntry.parse(table, at) for at in range(0, size, header.entsz))
        return cls(blocks, blksize, header.uuid, entries)


def protective_mbr(blocks: int, blksize: int) -> bytes:
    """Sector 0 of a disk with a GPT."""
    size = min(blocks - 1, 0xFFFF_FFFF)
    entry = struct.pack("<BBBBBBBBII", 0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF, 1, size)
    return (bytes(446) + entry + bytes(48) + b"\x55\xaa").ljust(blksize, b"\0")


def gptinit(info: DiskInfo, *, use_backup: bool = False) -> Probe:
    """Probe a disk whose MBR says that it has a GPT.

    Args:
        info: the medium.
        use_backup: use the copy at the end where the first one is bad. DragonFly does not.

    Raises:
        KError: EIO, the header or the table cannot be read.

    Counterpart: gptinit.
    """
    messages: list[str] = []
    for here in (1, info.media_blocks - 1)[: 1 + use_backup]:
        if here < 1 or here >= info.media_blocks:
            continue
        try:
            header = GptHeader.parse((yield ReadSectors(here, 1)))
            header.check_table(info)
            slices = yield from _entries(info, header, messages, strict=use_backup)
        except GptError as error:
            messages.append(str(error))
            continue
        if here != 1:
            messages.append("using the backup GPT")
        return SliceTable("gpt", BASE_SLICE + header.entries, slices, tuple(messages))
    return NO_TABLE._replace(messages=tuple(messages))


def _entries(
    info: DiskInfo, header: GptHeader, messages: list[str], *, strict: bool
) -> Generator[ReadSectors, bytes, tuple[SliceEntry, ...]]:
    """Read the entries and make slices of those that lie well.

    Raises:
        GptError: their CRC is wrong, and that matters.
    """
    blocks = header.table_blocks(info.media_blksize)
    table = yield ReadSectors(header.lba_table, blocks)
    size = header.entries * header.entsz
    if zlib.crc32(table[:size]) != header.crc_table:
        text = "the CRC32 of the GPT entries did not match"
        if strict:
            raise GptError(text)
        messages.append(f"{text}: used all the same")
    # The copy of the entries at the end is behind the partitions, the first one before them.
    lowest = header.lba_table + blocks if header.lba_self == 1 else 2
    slices = []
    for number in range(header.entries):
        entry = GptEntry.parse(table, number * header.entsz)
        if entry.type == NIL:
            continue
        slot = BASE_SLICE + number - 1 if number else COMPATIBILITY_SLICE
        if not lowest <= entry.lba_start < entry.lba_end < info.media_blocks:
            messages.append(f"part {number}: unavailable, bad start or ending lba")
        elif slot >= DKMAXSLICES:
            messages.append(f"part {number}: no minor number is left for it")
        else:
            slices.append(
                SliceEntry(
                    slot, entry.lba_start, entry.lba_end + 1 - entry.lba_start, GPT_SLICE_TYPE,
                    entry.type, entry.uuid, entry.name,
                )
            )  # fmt: skip
    return tuple(slices)


def gpt_type(text: str) -> UUID:
    """One of the GPT_ENT_TYPE_* texts as a UUID.

    Raises:
        KError: EINVAL, it is no UUID.
    """
    try:
        return UUID(text)
    except ValueError:
        raise KError(EINVAL, f"{text!r} is no UUID") from None
