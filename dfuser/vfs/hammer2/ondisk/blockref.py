"""The blockref: 128 bytes that point to one block and vouch for it.

Everything on a volume hangs together by these records. One tells what kind of thing it points
to, which range of keys lies below it, where its block is and how large, and the check code of
that block; since the block of a table holds blockrefs again, the header vouches for everything::

    00 type   01 methods (check << 4 | compression)   02 copyid   03 keybits
    04 vradix 05 flags   06 leaf_count (u16)
    08 key         first key below; the last is key + 2**keybits - 1
    10 mirror_tid  when this block was flushed, never less than anything below it
    18 modify_tid  which operation of its PFS changed it
    20 data_off    byte offset of the block, its radix in the low 6 bits; 0: no block
    28 update_tid  unused
    30 embed[16]   DIRENT: inum, namlen, type.  INODE, INDIRECT: data_count, inode_count
    40 check[64]   check code; DIRENT: the name, if it has at most 64 bytes

Records are tuples in the order of the bytes: `make(Blockref, BLOCKREF.unpack(...))` reads one,
`BLOCKREF.pack(*bref)` writes it, and a table of a hundred is one `iter_unpack`. They cannot be
changed; who changes a block makes a new blockref with `_replace`. The two unions stay bytes and
are taken apart only by those who ask.

Counterpart: struct hammer2_blockref, struct hammer2_dirent_head (vfs/hammer2/hammer2_disk.h).
Token/lock order: takes none.
Invariants: ``Blockref(*BLOCKREF.unpack(b)).pack() == b`` for any 128 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import Final, NamedTuple

from dfuser.vfs.hammer2.ondisk.const import (
    BLOCKREF_BYTES,
    DIRENT_INLINE_NAME,
    INODE_MAXNAME,
    OFF_MASK,
    OFF_MASK_RADIX,
    BrefType,
)

Buffer = bytes | bytearray | memoryview

BLOCKREF: Final = Struct("<6BH5Q16s64s")
DIRENT_HEAD: Final = Struct("<QHB5x")
STATS: Final = Struct("<2Q")
FREEMAP_CHECK: Final = Struct("<2IQ")

NO_EMBED: Final = bytes(16)
NO_CHECK: Final = bytes(64)
#: Makes a record from a tuple without the detour through its constructor.
make: Final = tuple.__new__


class DirentHead(NamedTuple):
    """What a directory entry says besides its name.

    Counterpart: struct hammer2_dirent_head (hammer2_disk.h).
    """

    inum: int
    namlen: int
    type: int

    def pack(self) -> bytes:
        """The 16 bytes of a blockref's embed."""
        return DIRENT_HEAD.pack(*self)


class FreemapCheck(NamedTuple):
    """Check code and hints of a freemap block.

    ``bigmask`` has a bit for each radix that may still be had below, ``avail`` counts bytes.
    Counterpart: check.freemap of struct hammer2_blockref (hammer2_disk.h).
    """

    icrc32: int
    bigmask: int
    avail: int

    def pack(self) -> bytes:
        """The 64 bytes of a blockref's check."""
        return FREEMAP_CHECK.pack(*self) + bytes(48)


class Blockref(NamedTuple):
    """A reference to one block. Counterpart: struct hammer2_blockref (hammer2_disk.h)."""

    type: int
    methods: int = 0
    copyid: int = 0
    keybits: int = 0
    vradix: int = 0
    flags: int = 0
    leaf_count: int = 0
    key: int = 0
    mirror_tid: int = 0
    modify_tid: int = 0
    data_off: int = 0
    update_tid: int = 0
    embed: bytes = NO_EMBED
    check: bytes = NO_CHECK

    @property
    def offset(self) -> int:
        """Where the block begins, in bytes from the start of the volume."""
        return self.data_off & OFF_MASK

    @property
    def radix(self) -> int:
        """The block has 2**radix bytes; 0 says that there is none."""
        return self.data_off & OFF_MASK_RADIX

    @property
    def nbytes(self) -> int:
        """Size of the block; 0 says that there is none."""
        radix = self.data_off & OFF_MASK_RADIX
        return 1 << radix if radix else 0

    @property
    def last_key(self) -> int:
        """The last key that lies below; more than 64 bits if the record is wrong."""
        return self.key + (1 << self.keybits) - 1

    @property
    def dirent(self) -> DirentHead:
        """What a DIRENT says about its file."""
        head: DirentHead = make(DirentHead, DIRENT_HEAD.unpack(self.embed))
        return head

    @property
    def inline_name(self) -> bytes | None:
        """The name of a DIRENT that lies in the blockref; None if it has a block."""
        namlen = int.from_bytes(self.embed[8:10], "little")
        return self.check[:namlen] if namlen <= DIRENT_INLINE_NAME else None

    @property
    def stats(self) -> tuple[int, int]:
        """Bytes allocated and inodes below an INODE or INDIRECT: data_count, inode_count."""
        data_count, inode_count = STATS.unpack(self.embed)
        return data_count, inode_count

    @property
    def freemap(self) -> FreemapCheck:
        """Check code and hints of a freemap block."""
        check: FreemapCheck = make(FreemapCheck, FREEMAP_CHECK.unpack_from(self.check))
        return check

    def pack(self) -> bytes:
        """The record as 128 bytes.

        Raises:
            struct.error: a number does not fit its member; that is the caller's bug.
        """
        return BLOCKREF.pack(*self)


def unpack_blockref(data: Buffer, offset: int = 0) -> Blockref:
    """The blockref at a place of a buffer.

    Raises:
        struct.error: the buffer ends before the record does.
    """
    bref: Blockref = make(Blockref, BLOCKREF.unpack_from(data, offset))
    return bref


def unpack_blockrefs(data: Buffer) -> list[Blockref]:
    """All blockrefs of a blockset or indirect block, the empty ones included.

    Raises:
        struct.error: not a whole number of records.
    """
    return [make(Blockref, values) for values in BLOCKREF.iter_unpack(data)]


def pack_blockrefs(brefs: Iterable[Blockref], size: int) -> bytes:
    """A table of `size` bytes that begins with the given records and is empty after them.

    Raises:
        ValueError: they do not fit.
    """
    data = b"".join([BLOCKREF.pack(*bref) for bref in brefs])
    if len(data) > size or size % BLOCKREF_BYTES:
        raise ValueError(f"{len(data)} bytes of blockrefs in a table of {size}")
    return data + bytes(size - len(data))


def pack_stats(data_count: int, inode_count: int) -> bytes:
    """The embed of an INODE or INDIRECT."""
    return STATS.pack(data_count, inode_count)


def make_dirent(key: int, inum: int, objtype: int, name: bytes) -> Blockref:
    """A directory entry, all but its tids; a name over 64 bytes still needs its block.

    Raises:
        ValueError: the name is empty, ``.`` or ``..``, longer than 255 bytes, or has a NUL or a
            slash.
    """
    bad = b"\0" in name or b"/" in name or name in (b".", b"..")
    if bad or not 0 < len(name) < INODE_MAXNAME:
        raise ValueError(f"no name for a directory entry: {name!r}")
    inline = len(name) <= DIRENT_INLINE_NAME
    return Blockref(
        type=BrefType.DIRENT,
        key=key,
        embed=DIRENT_HEAD.pack(inum, len(name), objtype),
        check=name.ljust(64, b"\0") if inline else NO_CHECK,
    )
