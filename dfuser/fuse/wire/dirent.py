"""Listings: entries packed in one pass, one struct call each.

READDIR answers with struct fuse_dirent records, READDIRPLUS with struct fuse_direntplus, which put
a struct fuse_entry_out (`attr`) before each. A record is padded to eight bytes, and the kernel
wants whole records only, in no more bytes than it asked for. For each length a name can have there
is one prepared struct that writes attributes, entry, name and padding at once; so an entry costs
one call, whatever its name.

The cookie `off` of an entry is what the kernel sends back to continue *behind* it. An entry of a
listing with attributes counts one lookup of its file, which FORGET gives back; entries whose
nodeid is zero (`attr.NO_ENTRY`, for ``.`` and ``..``) count none. The packers say how many entries
went in, so that exactly those are counted.

Counterpart: fuse_emit, parse_dirfile and parse_dirplusfile (fs/fuse/readdir.c of Linux).
Invariants: every record begins at a multiple of eight; the result is never longer than `size`;
parse(pack(entries)) == entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import Final

from .attr import ENTRY_SIZE, unpack_entry
from .layout import Buffer, WireError, align8
from .outputs import DIRENT, Dirent, EntryOut

#: The longest name that is packed. Counterpart: NAME_MAX (sys/syslimits.h).
LONGEST: Final = 255
#: Bytes of a record before its name.
DIRENT_SIZE: Final = 24
DIRENTPLUS_SIZE: Final = ENTRY_SIZE + DIRENT_SIZE

#: By length of name: what packs a whole record. A name of no length has none.
_DIRENT: Final = tuple(
    Struct(f"=QQII{n}s{-(DIRENT_SIZE + n) % 8}x").pack for n in range(LONGEST + 1)
)
_DIRENTPLUS: Final = tuple(
    Struct(f"={ENTRY_SIZE}sQQII{n}s{-(DIRENTPLUS_SIZE + n) % 8}x").pack for n in range(LONGEST + 1)
)


def pack_dirents(entries: Iterable[tuple[int, int, int, bytes]], size: int) -> tuple[bytes, int]:
    """As many entries as fit `size` bytes, and how many these are.

    Args:
        entries: inode number, cookie, type (DT_) and name of each, in the order of the listing.
        size: the most bytes the kernel takes.

    Raises:
        WireError: a name is empty or longer than `LONGEST`.
        struct.error: a number does not fit.
    """
    left, records = size, list[bytes]()
    add, packers = records.append, _DIRENT
    for ino, off, kind, name in entries:
        length = len(name)
        if not 0 < length <= LONGEST:
            raise WireError(f"a name of {length} bytes")
        left -= DIRENT_SIZE + 7 + length & -8
        if left < 0:
            break
        add(packers[length](ino, off, length, kind, name))
    return b"".join(records), len(records)


def pack_direntplus(
    entries: Iterable[tuple[bytes, int, int, int, bytes]], size: int
) -> tuple[bytes, int]:
    """As many entries with attributes as fit `size` bytes, and how many these are.

    Args:
        entries: packed entry (`attr.pack_entry`), inode number, cookie, type (DT_) and name.
        size: the most bytes the kernel takes.

    Raises:
        WireError: a name is empty or longer than `LONGEST`.
        struct.error: a number does not fit.
    """
    left, records = size, list[bytes]()
    add, packers = records.append, _DIRENTPLUS
    for packed, ino, off, kind, name in entries:
        length = len(name)
        if not 0 < length <= LONGEST:
            raise WireError(f"a name of {length} bytes")
        left -= DIRENTPLUS_SIZE + 7 + length & -8
        if left < 0:
            break
        add(packers[length](packed, ino, off, length, kind, name))
    return b"".join(records), len(records)


def parse_dirents(data: Buffer) -> list[Dirent]:
    """The entries of a listing.

    Raises:
        WireError: a record is cut off, or its name is empty or has a NUL or a slash inside.
    """
    found, at = [], 0
    while at < len(data):
        entry, at = _parse_dirent(data, at)
        found.append(entry)
    return found


def parse_direntplus(data: Buffer) -> list[tuple[EntryOut, Dirent]]:
    """The entries of a listing with attributes.

    Raises:
        WireError: as `parse_dirents`.
    """
    found, at = [], 0
    while at < len(data):
        entry = unpack_entry(data, at)
        dirent, at = _parse_dirent(data, at + ENTRY_SIZE)
        found.append((entry, dirent))
    return found


def _parse_dirent(data: Buffer, at: int) -> tuple[Dirent, int]:
    """The entry at `at`, and where the next record begins."""
    ino, off, length, kind = DIRENT.unpack(data, at)
    start = at + DIRENT_SIZE
    name = bytes(data[start : start + length])
    if not name or len(name) != length or 0 in name or b"/" in name:
        raise WireError(f"an entry at {at} with a name of {length} bytes")
    end = align8(start + length)
    if end > len(data):
        raise WireError(f"the padding of the entry at {at} is cut off")
    return Dirent(ino, off, kind, name), end
