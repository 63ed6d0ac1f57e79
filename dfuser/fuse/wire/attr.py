"""Attributes, packed once for each file and kept as one bytes object.

The kernel asks for the attributes of a file in four shapes: behind a name (struct fuse_entry_out:
LOOKUP, CREATE, MKDIR ...), alone (struct fuse_attr_out: GETATTR, SETATTR), inside a listing (struct
fuse_direntplus) and as statx. `pack_entry` makes the first of them, 128 bytes, and the file keeps
them until something about it changes. The others come out of the same bytes::

    0        8          16          24         32         36        40              128
    | nodeid | generation| entry_valid| attr_valid| e. nsec | a. nsec | struct fuse_attr |
    |<------------------------ struct fuse_entry_out, a name's answer ----------------->|
                                      |<----- struct fuse_attr_out, `[24:]` ----------->|

A struct fuse_attr_out has attr_valid, its nanoseconds and a reserved word before the attributes;
here lie attr_valid and two words of nanoseconds. As long as both are zero the tail *is* a struct
fuse_attr_out, and so dfuser's timeouts are whole seconds: GETATTR costs a slice instead of a pack.

Counterpart: fuse_fill_attr, fuse_fillattr and fuse_statx_to_attr (fs/fuse/inode.c, dir.c of Linux).
Differs from the header: times are one number of nanoseconds since 1970, negative before it.
Invariants: packed[24:] is the attr_out of the same file; what is packed has a file type and a size
that the kernel takes (it answers EIO to its program otherwise).
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from .layout import WireError, make
from .outputs import ATTR, ATTR_HEAD, ENTRY_HEAD, STATX, STATX_HEAD, Attr, EntryOut, Statx

#: Bytes of a packed entry, and where the attributes and the struct fuse_attr_out begin in it.
ENTRY_SIZE: Final = 128
ENTRY_ATTR: Final = 40
ENTRY_ATTR_OUT: Final = 24
ATTR_OUT_SIZE: Final = 104
#: An entry that names no file and counts no lookup: ``.`` and ``..`` of a listing with attributes.
NO_ENTRY: Final = bytes(ENTRY_SIZE)

# Bits of statx(2): what a mask says, and attributes of a file.
STATX_BASIC_STATS: Final = 0x7FF
STATX_BTIME: Final = 0x800
STATX_ATTR_COMPRESSED: Final = 0x4
STATX_ATTR_IMMUTABLE: Final = 0x10
STATX_ATTR_APPEND: Final = 0x20
STATX_ATTR_NODUMP: Final = 0x40
STATX_ATTR_ENCRYPTED: Final = 0x800

_SECOND: Final = 1_000_000_000
_MAX_SIZE: Final = (1 << 63) - 1
#: Bit n is set if n is the type of a file, as in the upper four bits of a mode.
_TYPES: Final = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 12
_ENTRY: Final = Struct(ENTRY_HEAD.struct.format + ATTR.struct.format[1:])
_pack: Final = _ENTRY.pack


def pack_entry(
    nodeid: int, generation: int, entry_valid: int, attr_valid: int, ino: int, size: int,
    blocks: int, atime: int, mtime: int, ctime: int, mode: int, nlink: int, uid: int, gid: int,
    rdev: int = 0, blksize: int = 4096, flags: int = 0,
) -> bytes:  # fmt: skip
    """What a file keeps: its struct fuse_entry_out.

    Args:
        nodeid: the file's number on the connection; 0 says that the name does not exist.
        generation: makes a nodeid that is used again another file.
        entry_valid: whole seconds the name may be kept.
        attr_valid: whole seconds the attributes may be kept.
        ino: st_ino.
        size: in bytes.
        blocks: in units of 512 bytes.
        atime: in nanoseconds since 1970, like mtime and ctime.
        mtime: last change of the data.
        ctime: last change of anything.
        mode: type and permissions.
        nlink: number of names.
        uid: owner.
        gid: group.
        rdev: device number, as `encode_dev` makes it.
        blksize: what to read and write at a time, in bytes.
        flags: FUSE_ATTR_ bits.

    Raises:
        WireError: a type or size that the kernel would refuse.
        struct.error: another number does not fit.
    """
    if not _TYPES >> (mode >> 12) & 1 or not 0 <= size <= _MAX_SIZE:
        raise WireError(f"the kernel refuses mode {mode:#o}, size {size}")
    asec, ansec = divmod(atime, _SECOND)
    msec, mnsec = divmod(mtime, _SECOND)
    csec, cnsec = divmod(ctime, _SECOND)
    return _pack(
        nodeid, generation, entry_valid, attr_valid, 0, 0, ino, size, blocks, asec, msec, csec,
        ansec, mnsec, cnsec, mode, nlink, uid, gid, rdev, blksize, flags,
    )  # fmt: skip


def pack_negative(seconds: int) -> bytes:
    """The entry for "no such name", which the kernel may remember for whole `seconds`."""
    return ENTRY_HEAD.pack(0, 0, seconds, 0, 0, 0) + bytes(ATTR.size)


def unpack_entry(data: bytes | bytearray, offset: int = 0) -> EntryOut:
    """The entry that lies at `offset`.

    Raises:
        WireError: the bytes end before it does.
    """
    head = ENTRY_HEAD.unpack(data, offset)
    entry: EntryOut = make(EntryOut, (*head, unpack_attr(data, offset + ENTRY_HEAD.size)))
    return entry


def unpack_attr(data: bytes | bytearray, offset: int = 0) -> Attr:
    """The attributes that lie at `offset`.

    Raises:
        WireError: the bytes end before they do.
    """
    attr: Attr = make(Attr, ATTR.unpack(data, offset))
    return attr


def pack_statx(
    packed: bytes, *, btime: int | None = None, attributes: int = 0, attributes_mask: int = 0
) -> bytes:
    """The struct fuse_statx_out for a packed entry and what only statx tells.

    Args:
        packed: what `pack_entry` made.
        btime: when the file was made, in nanoseconds since 1970; None if nobody knows.
        attributes: STATX_ATTR_ bits that are set.
        attributes_mask: STATX_ATTR_ bits that this file system knows about.

    Raises:
        WireError: `packed` is no entry.
    """
    entry = unpack_entry(packed)
    a = entry.attr
    mask = STATX_BASIC_STATS if btime is None else STATX_BASIC_STATS | STATX_BTIME
    bsec, bnsec = divmod(btime or 0, _SECOND)
    major, minor = decode_dev(a.rdev)
    stat = STATX.pack(
        mask, a.blksize, attributes, a.nlink, a.uid, a.gid, a.mode, a.ino, a.size, a.blocks,
        attributes_mask, a.atime, a.atimensec, bsec, bnsec, a.ctime, a.ctimensec, a.mtime,
        a.mtimensec, major, minor, 0, 0,
    )  # fmt: skip
    return STATX_HEAD.pack(entry.attr_valid, entry.attr_valid_nsec, 0) + stat


def unpack_statx(data: bytes | bytearray, offset: int = 0) -> Statx:
    """The struct fuse_statx that lies at `offset`.

    Raises:
        WireError: the bytes end before it does.
    """
    stat: Statx = make(Statx, STATX.unpack(data, offset))
    return stat


def pack_attr_out(attr: Attr, attr_valid: int, attr_valid_nsec: int = 0) -> bytes:
    """A struct fuse_attr_out from a record: the cold way, with nanoseconds."""
    return ATTR_HEAD.pack(attr_valid, attr_valid_nsec) + ATTR.pack(*attr)


def pack_entry_out(entry: EntryOut) -> bytes:
    """A struct fuse_entry_out from a record: the cold way, with nanoseconds."""
    return ENTRY_HEAD.pack(*entry[:6]) + ATTR.pack(*entry.attr)


def encode_dev(major: int, minor: int) -> int:
    """The 32 bits by which the protocol names a device.

    Counterpart: new_encode_dev (linux/kdev_t.h). The major number has 12 bits, the minor 20.
    """
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def decode_dev(dev: int) -> tuple[int, int]:
    """Major and minor number. Counterpart: new_decode_dev (linux/kdev_t.h)."""
    return dev >> 8 & 0xFFF, dev & 0xFF | dev >> 12 & 0xFFF00
