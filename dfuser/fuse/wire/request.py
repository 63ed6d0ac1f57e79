"""Requests: from the bytes read off the device to a record.

The way of a request through the loop::

    header = parse_header(buffer, n)
    opcode = header.opcode
    body = parsers[opcode](buffer, end) if opcode < len(parsers) else parse_unknown(...)

or, where a tenth of a microsecond does not matter, `parse_request`, which does all of it and the
extensions too. `parsers_for` gives the table of parsers for what INIT has negotiated.

A parser gets the buffer the request was read into (it may be longer than the request) and where the
body ends: the request's length, less its extensions. What it answers:

* a bare name for the operations that carry nothing else (LOOKUP, UNLINK, RMDIR, REMOVEXATTR),
* a bare number for FORGET, a list of pairs for BATCH_FORGET and REMOVEMAPPING,
* None where there is nothing (READLINK, STATFS, DESTROY, SYNCFS),
* else the record of `inputs`.

Each size is checked against what is really there, in both directions: a request with bytes that no
member accounts for is as wrong as one that is cut off.

Counterpart: fuse_dev_do_read and its callers (fs/fuse/dev.c, dir.c, file.c of Linux), the side that
writes these bytes (here: `kernel`); libfuse's do_* functions, which read them.
Invariants: parsing raises `WireError` and nothing else; a parser never looks behind the end it was
given; what it answers holds no reference to the buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from . import inputs as i
from .const import IN_HEADER_SIZE, WRITE_DATA, Opcode
from .ext import Extension, parse_extensions
from .flags import FUSE_INIT_EXT
from .layout import Buffer, Layout, WireError, make, split_name, take_name

Parser = Callable[[Buffer, int], Any]


class Request(NamedTuple):
    """A whole request: its head, what its parser answered, and the extensions."""

    header: i.Header
    body: Any
    extensions: tuple[Extension, ...]


#: INIT before 7.36 and what every INIT begins with.
_INIT_SHORT: Final = Struct("=IIII")
_INIT_MINOR_LONG: Final = 36
_HEAD: Final = IN_HEADER_SIZE
_Header: Final = i.Header
#: The longest name of a directory, and by length what takes a name and its NUL out.
_LONGEST: Final = 255
_take: Final = tuple(Struct(f"={n}sB").unpack_from for n in range(_LONGEST + 1))
_unpack_header: Final = i.IN_HEADER.struct.unpack_from


def parse_header(data: Buffer, size: int) -> i.Header:
    """The head of a request of which `size` bytes were read into `data`.

    Raises:
        WireError: it is cut off, or says another length than was read.
    """
    if size < _HEAD:
        raise WireError(f"a request of {size} bytes has no head")
    header = make(_Header, _unpack_header(data))
    if header[0] != size:
        raise WireError(f"a request of {size} bytes says it has {header[0]}")
    return header


def body_end(header: i.Header) -> int:
    """Where the body of a request ends and its extensions begin.

    Raises:
        WireError: the extensions would begin inside the head.
    """
    end = header.len - 8 * header.total_extlen
    if end < _HEAD:
        raise WireError(f"extensions of {8 * header.total_extlen} bytes in {header.len}")
    return end


def parse_request(
    data: Buffer, size: int | None = None, parsers: Sequence[Parser] | None = None
) -> Request:
    """A whole request out of the first `size` bytes of a buffer (all of it, if not given).

    Raises:
        WireError: the bytes are no request.
    """
    header = parse_header(data, len(data) if size is None else size)
    end = body_end(header)
    opcode = header.opcode
    table = PARSERS if parsers is None else parsers
    if opcode < len(table):
        body = table[opcode](data, end)
    else:
        body = parse_unknown(data, end)
    extensions = parse_extensions(data, end, header.len) if header.total_extlen else ()
    return Request(header, body, extensions)


def parse_unknown(data: Buffer, end: int) -> i.UnknownIn:
    """A request whose opcode has no parser: the opcode and its bytes."""
    return i.UnknownIn(_unpack_header(data)[1], bytes(data[_HEAD:end]))


# --- how bodies are parsed: one maker a shape --------------------------------------------------


def _nothing(data: Buffer, end: int) -> None:
    if end != _HEAD:
        raise WireError(f"{end - _HEAD} bytes where none belong")


def _name(data: Buffer, end: int) -> bytes:
    # LOOKUP is the most frequent request of all: a name as long as a directory can hold is taken
    # out with its NUL by one call, without the copies that a slice makes.
    length = end - _HEAD - 1
    if not 0 < length <= _LONGEST:
        return take_name(data, _HEAD, end)
    name: bytes
    name, nul = _take[length](data, _HEAD)
    if nul or 0 in name:
        raise WireError(f"no name between {_HEAD} and {end}")
    return name


def _fixed(layout: Layout) -> Parser:
    """A structure and nothing behind it."""
    unpack, record, wanted = layout.struct.unpack_from, layout.record, _HEAD + layout.size
    name, new = layout.cname, make

    def parse(data: Buffer, end: int) -> Any:
        if end != wanted:
            raise WireError(f"{name} ends at {wanted}, not {end}")
        return new(record, unpack(data, _HEAD))

    return parse


def _number(layout: Layout) -> Parser:
    """A structure with one member that is answered bare."""
    unpack, wanted, name = layout.struct.unpack_from, _HEAD + layout.size, layout.cname

    def parse(data: Buffer, end: int) -> int:
        if end != wanted:
            raise WireError(f"{name} ends at {wanted}, not {end}")
        number: int = unpack(data, _HEAD)[0]
        return number

    return parse


def _named(layout: Layout) -> Parser:
    """A structure and a name."""
    unpack, record, start = layout.struct.unpack_from, layout.record, _HEAD + layout.size

    def parse(data: Buffer, end: int) -> Any:
        name = take_name(data, start, end)
        return make(record, (*unpack(data, _HEAD), name))

    return parse


def _two_names(layout: Layout) -> Parser:
    """A structure and two names."""
    unpack, record, start = layout.struct.unpack_from, layout.record, _HEAD + layout.size

    def parse(data: Buffer, end: int) -> Any:
        name, second = split_name(data, start, end)
        return make(record, (*unpack(data, _HEAD), name, take_name(data, second, end)))

    return parse


def _symlink(data: Buffer, end: int) -> i.SymlinkIn:
    name, second = split_name(data, _HEAD, end)
    return i.SymlinkIn(name, take_name(data, second, end))


def _sized(layout: Layout) -> Parser:
    """WRITE and its like: a structure, then as much data as it says, which stays in the buffer."""
    unpack, record, name, new = layout.struct.unpack_from, layout.record, layout.cname, make
    place = record._fields.index("size")

    def parse(data: Buffer, end: int) -> Any:
        if end < WRITE_DATA:
            raise WireError(f"{name} is cut off at {end}")
        body = new(record, unpack(data, _HEAD))
        if body[place] != end - WRITE_DATA:
            raise WireError(f"{name} says {body[place]} bytes of data, not {end - WRITE_DATA}")
        return body

    return parse


def _setxattr(layout: Layout) -> Parser:
    """SETXATTR in its long or its short form."""
    start = _HEAD + layout.size
    missing = (0,) * (3 - layout.members())

    def parse(data: Buffer, end: int) -> i.SetxattrIn:
        name, at = split_name(data, start, end)
        size, *rest = layout.unpack(data, _HEAD)
        if size != end - at:
            raise WireError(f"SETXATTR says {size} bytes of value, not {end - at}")
        return make(i.SetxattrIn, (size, *rest, *missing, name, bytes(data[at:end])))

    return parse


def _ioctl(data: Buffer, end: int) -> i.IoctlIn:
    start = _HEAD + i.IOCTL_IN.size
    if end < start:
        raise WireError(f"IOCTL is cut off at {end}")
    values = i.IOCTL_IN.unpack(data, _HEAD)
    if values[4] != end - start:
        raise WireError(f"IOCTL says {values[4]} bytes of data, not {end - start}")
    body: i.IoctlIn = make(i.IoctlIn, (*values, bytes(data[start:end])))
    return body


def _many(head: Layout, one: Layout) -> Parser:
    """A number and as many records; answered as a list of plain tuples, read in one pass."""
    start, size = _HEAD + head.size, one.size

    def parse(data: Buffer, end: int) -> list[tuple[int, ...]]:
        if end < start:
            raise WireError(f"{head.cname} is cut off at {end}")
        (count,) = head.struct.unpack_from(data, _HEAD)
        if count * size != end - start:
            raise WireError(f"{head.cname} says {count} records in {end - start} bytes")
        with memoryview(data) as view, view[start:end] as records:
            return list(one.struct.iter_unpack(records))

    return parse


def _init(data: Buffer, end: int) -> i.InitIn:
    """INIT in any length: what is not there is zero, what is there too much is for the future."""
    if end < _HEAD + _INIT_SHORT.size:
        raise WireError(f"INIT is cut off at {end}")
    major, minor, readahead, flags = _INIT_SHORT.unpack_from(data, _HEAD)
    if flags & FUSE_INIT_EXT and end >= _HEAD + i.INIT_IN.size:
        flags |= i.INIT_IN.unpack(data, _HEAD)[4] << 32
    return i.InitIn(major, minor, readahead, flags)


def _syncfs(data: Buffer, end: int) -> None:
    if end != _HEAD + i.SYNCFS_IN.size:
        raise WireError(f"SYNCFS ends at {end}")


_PARSERS: Final = MappingProxyType(
    {
        Opcode.LOOKUP: _name,
        Opcode.FORGET: _number(i.FORGET_IN),
        Opcode.GETATTR: _fixed(i.GETATTR_IN),
        Opcode.SETATTR: _fixed(i.SETATTR_IN),
        Opcode.READLINK: _nothing,
        Opcode.SYMLINK: _symlink,
        Opcode.MKNOD: _named(i.MKNOD_IN),
        Opcode.MKDIR: _named(i.MKDIR_IN),
        Opcode.UNLINK: _name,
        Opcode.RMDIR: _name,
        Opcode.RENAME: _two_names(i.RENAME_IN),
        Opcode.LINK: _named(i.LINK_IN),
        Opcode.OPEN: _fixed(i.OPEN_IN),
        Opcode.READ: _fixed(i.READ_IN),
        Opcode.WRITE: _sized(i.WRITE_IN),
        Opcode.STATFS: _nothing,
        Opcode.RELEASE: _fixed(i.RELEASE_IN),
        Opcode.FSYNC: _fixed(i.FSYNC_IN),
        Opcode.SETXATTR: _setxattr(i.SETXATTR_IN),
        Opcode.GETXATTR: _named(i.GETXATTR_IN),
        Opcode.LISTXATTR: _fixed(i.LISTXATTR_IN),
        Opcode.REMOVEXATTR: _name,
        Opcode.FLUSH: _fixed(i.FLUSH_IN),
        Opcode.INIT: _init,
        Opcode.OPENDIR: _fixed(i.OPEN_IN),
        Opcode.READDIR: _fixed(i.READ_IN),
        Opcode.RELEASEDIR: _fixed(i.RELEASE_IN),
        Opcode.FSYNCDIR: _fixed(i.FSYNC_IN),
        Opcode.GETLK: _fixed(i.LK_IN),
        Opcode.SETLK: _fixed(i.LK_IN),
        Opcode.SETLKW: _fixed(i.LK_IN),
        Opcode.ACCESS: _fixed(i.ACCESS_IN),
        Opcode.CREATE: _named(i.CREATE_IN),
        Opcode.INTERRUPT: _fixed(i.INTERRUPT_IN),
        Opcode.BMAP: _fixed(i.BMAP_IN),
        Opcode.DESTROY: _nothing,
        Opcode.IOCTL: _ioctl,
        Opcode.POLL: _fixed(i.POLL_IN),
        Opcode.NOTIFY_REPLY: _sized(i.NOTIFY_RETRIEVE_IN),
        Opcode.BATCH_FORGET: _many(i.BATCH_FORGET_IN, i.FORGET_ONE),
        Opcode.FALLOCATE: _fixed(i.FALLOCATE_IN),
        Opcode.READDIRPLUS: _fixed(i.READ_IN),
        Opcode.RENAME2: _two_names(i.RENAME2_IN),
        Opcode.LSEEK: _fixed(i.LSEEK_IN),
        Opcode.COPY_FILE_RANGE: _fixed(i.COPY_FILE_RANGE_IN),
        Opcode.SETUPMAPPING: _fixed(i.SETUPMAPPING_IN),
        Opcode.REMOVEMAPPING: _many(i.REMOVEMAPPING_IN, i.REMOVEMAPPING_ONE),
        Opcode.SYNCFS: _syncfs,
        Opcode.TMPFILE: _named(i.CREATE_IN),
        Opcode.STATX: _fixed(i.STATX_IN),
        Opcode.COPY_FILE_RANGE_64: _fixed(i.COPY_FILE_RANGE_IN),
    }
)
#: Parsers by opcode; holes are unknown requests.
PARSERS: Final = tuple(_PARSERS.get(n, parse_unknown) for n in range(max(_PARSERS) + 1))  # type: ignore[call-overload]
#: The same where SETXATTR_EXT was not negotiated.
PARSERS_COMPAT: Final = tuple(
    _setxattr(i.SETXATTR_IN_COMPAT) if n == Opcode.SETXATTR else parse
    for n, parse in enumerate(PARSERS)
)


def parsers_for(*, setxattr_ext: bool) -> Sequence[Parser]:
    """The parsers by opcode for a connection, as its INIT has decided."""
    return PARSERS if setxattr_ext else PARSERS_COMPAT
