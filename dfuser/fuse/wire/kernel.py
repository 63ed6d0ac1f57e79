"""The other end: requests as the kernel writes them, replies as it reads them.

A server needs neither. Tests do: what `request` parses is made here, what `reply` makes is judged
here, with the kernel's own rules for what it takes; so does a tracer that shows a reply decoded.

Counterpart: fuse_dev_do_read, fuse_dev_do_write and fuse_copy_out_args (fs/fuse/dev.c of Linux).
Invariants: parse_request(emit_request(...)) answers what was given; a reply that the kernel would
refuse with EINVAL raises `WireError`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from . import inputs as i
from . import outputs as o
from .attr import ENTRY_SIZE, unpack_attr, unpack_entry, unpack_statx
from .const import ERRNO_LIMIT, FUSE_IOCTL_MAX_IOV, FUSE_IOCTL_RETRY, OUT_HEADER_SIZE, Opcode
from .dirent import parse_direntplus, parse_dirents
from .ext import Extension, emit_extensions
from .layout import Buffer, Data, Layout, WireError, check_name, make

_HEAD: Final = OUT_HEADER_SIZE
_IOCTL_HEAD: Final = _HEAD + o.IOCTL_OUT.size


class Tail(Enum):
    """What follows the structure of a request."""

    NOTHING = "nothing"
    NAME = "a name"
    NAMES = "two names"
    VALUE = "a name and a value"
    DATA = "data"
    RECORDS = "records"


class Shape(NamedTuple):
    """How a request's body is made: a structure, if there is one, and what follows it."""

    layout: Layout | None
    tail: Tail = Tail.NOTHING
    one: Layout | None = None


#: How the kernel makes each request.
SHAPES: Final = MappingProxyType(
    {
        Opcode.LOOKUP: Shape(None, Tail.NAME),
        Opcode.FORGET: Shape(i.FORGET_IN),
        Opcode.GETATTR: Shape(i.GETATTR_IN),
        Opcode.SETATTR: Shape(i.SETATTR_IN),
        Opcode.READLINK: Shape(None),
        Opcode.SYMLINK: Shape(None, Tail.NAMES),
        Opcode.MKNOD: Shape(i.MKNOD_IN, Tail.NAME),
        Opcode.MKDIR: Shape(i.MKDIR_IN, Tail.NAME),
        Opcode.UNLINK: Shape(None, Tail.NAME),
        Opcode.RMDIR: Shape(None, Tail.NAME),
        Opcode.RENAME: Shape(i.RENAME_IN, Tail.NAMES),
        Opcode.LINK: Shape(i.LINK_IN, Tail.NAME),
        Opcode.OPEN: Shape(i.OPEN_IN),
        Opcode.READ: Shape(i.READ_IN),
        Opcode.WRITE: Shape(i.WRITE_IN, Tail.DATA),
        Opcode.STATFS: Shape(None),
        Opcode.RELEASE: Shape(i.RELEASE_IN),
        Opcode.FSYNC: Shape(i.FSYNC_IN),
        Opcode.SETXATTR: Shape(i.SETXATTR_IN, Tail.VALUE),
        Opcode.GETXATTR: Shape(i.GETXATTR_IN, Tail.NAME),
        Opcode.LISTXATTR: Shape(i.LISTXATTR_IN),
        Opcode.REMOVEXATTR: Shape(None, Tail.NAME),
        Opcode.FLUSH: Shape(i.FLUSH_IN),
        Opcode.INIT: Shape(i.INIT_IN),
        Opcode.OPENDIR: Shape(i.OPEN_IN),
        Opcode.READDIR: Shape(i.READ_IN),
        Opcode.RELEASEDIR: Shape(i.RELEASE_IN),
        Opcode.FSYNCDIR: Shape(i.FSYNC_IN),
        Opcode.GETLK: Shape(i.LK_IN),
        Opcode.SETLK: Shape(i.LK_IN),
        Opcode.SETLKW: Shape(i.LK_IN),
        Opcode.ACCESS: Shape(i.ACCESS_IN),
        Opcode.CREATE: Shape(i.CREATE_IN, Tail.NAME),
        Opcode.INTERRUPT: Shape(i.INTERRUPT_IN),
        Opcode.BMAP: Shape(i.BMAP_IN),
        Opcode.DESTROY: Shape(None),
        Opcode.IOCTL: Shape(i.IOCTL_IN, Tail.DATA),
        Opcode.POLL: Shape(i.POLL_IN),
        Opcode.NOTIFY_REPLY: Shape(i.NOTIFY_RETRIEVE_IN, Tail.DATA),
        Opcode.BATCH_FORGET: Shape(i.BATCH_FORGET_IN, Tail.RECORDS, i.FORGET_ONE),
        Opcode.FALLOCATE: Shape(i.FALLOCATE_IN),
        Opcode.READDIRPLUS: Shape(i.READ_IN),
        Opcode.RENAME2: Shape(i.RENAME2_IN, Tail.NAMES),
        Opcode.LSEEK: Shape(i.LSEEK_IN),
        Opcode.COPY_FILE_RANGE: Shape(i.COPY_FILE_RANGE_IN),
        Opcode.SETUPMAPPING: Shape(i.SETUPMAPPING_IN),
        Opcode.REMOVEMAPPING: Shape(i.REMOVEMAPPING_IN, Tail.RECORDS, i.REMOVEMAPPING_ONE),
        Opcode.SYNCFS: Shape(i.SYNCFS_IN),
        Opcode.TMPFILE: Shape(i.CREATE_IN, Tail.NAME),
        Opcode.STATX: Shape(i.STATX_IN),
        Opcode.COPY_FILE_RANGE_64: Shape(i.COPY_FILE_RANGE_IN),
    }
)


def emit_request(
    opcode: int, body: Any, *, unique: int, nodeid: int = 0, uid: int = 0, gid: int = 0,
    pid: int = 0, data: Data = b"", extensions: tuple[Extension, ...] = (),
    setxattr_ext: bool = True,
) -> bytes:  # fmt: skip
    """A request as the kernel writes it.

    Args:
        opcode: what is asked.
        body: what the parser of the opcode answers.
        unique: the request's number.
        nodeid: the file.
        uid: who asks.
        gid: who asks.
        pid: who asks.
        data: what WRITE and NOTIFY_REPLY carry; the other bodies have their data inside.
        extensions: what is appended.
        setxattr_ext: whether SETXATTR has its long form.

    Raises:
        WireError: a name cannot be written.
        struct.error: a number does not fit.
    """
    content = _emit_body(opcode, body, data, setxattr_ext=setxattr_ext)
    tail = emit_extensions(extensions)
    size = i.IN_HEADER.size + len(content) + len(tail)
    head = i.IN_HEADER.pack(size, opcode, unique, nodeid, uid, gid, pid, len(tail) // 8)
    return head + content + tail


def _emit_body(opcode: int, body: Any, data: Data, *, setxattr_ext: bool) -> bytes:
    """The bytes between the head and the extensions."""
    if isinstance(body, i.UnknownIn):
        return body.data
    if isinstance(body, i.InitIn):
        return _emit_init(body)
    layout, tail, one = SHAPES[Opcode(opcode)]
    if opcode == Opcode.SETXATTR and not setxattr_ext:
        layout = i.SETXATTR_IN_COMPAT
    if tail is Tail.RECORDS:
        assert layout is not None
        assert one is not None
        return layout.pack(len(body)) + b"".join(one.pack(*record) for record in body)
    if not isinstance(body, tuple):
        body = () if body is None else (body,)
    count = 0 if layout is None or layout.record is tuple else layout.members()
    head = b"" if layout is None else layout.pack(*body[:count])
    return head + _emit_tail(tail, body[count:], data)


def _emit_tail(tail: Tail, rest: tuple[Any, ...], data: Data) -> bytes:
    """What follows the structure: the record's further fields."""
    if tail is Tail.DATA:
        return bytes(rest[0] if rest else data)
    if tail is Tail.VALUE:
        name, value = rest[-2:]
        return check_name(name) + b"\0" + bytes(value)
    return b"".join(check_name(name) + b"\0" for name in rest)


def _emit_init(body: i.InitIn) -> bytes:
    """INIT, short before 7.36 and long since."""
    low, high = body.flags & 0xFFFFFFFF, body.flags >> 32
    whole = i.INIT_IN.pack(body.major, body.minor, body.max_readahead, low, high)
    return whole if body.minor >= 36 else whole[:16]


# --- replies -----------------------------------------------------------------------------------


class Reply(NamedTuple):
    """A reply: Linux's error number or 0, the request's number, and what it says."""

    error: int
    unique: int
    body: Any


def parse_reply(opcode: int, data: Buffer, asked: int | None = None) -> Reply:
    """A reply as the kernel reads it.

    Args:
        opcode: of the request that is answered.
        data: the reply.
        asked: the `size` of the request, for those that have one: GETXATTR and LISTXATTR answer
            differently when it is 0, data may not be longer. Without it any length is taken.

    Raises:
        WireError: the kernel would refuse it.
    """
    length, error, unique = o.OUT_HEADER.unpack(data)
    if length != len(data) or not unique:
        raise WireError(f"a reply of {len(data)} bytes says {length}, to {unique}")
    if error:
        if not -ERRNO_LIMIT < error < 0 or length != _HEAD:
            raise WireError(f"error {error} in {length} bytes")
        return Reply(-error, unique, None)
    parse = _REPLIES.get(opcode)  # type: ignore[call-overload]
    if parse is None:
        raise WireError(f"a reply to opcode {opcode}")
    return Reply(0, unique, parse(data, asked))


ReplyParser = Callable[[Buffer, int | None], Any]


def _empty(data: Buffer, _asked: int | None) -> None:
    if len(data) != _HEAD:
        raise WireError(f"{len(data) - _HEAD} bytes where none belong")


def _fixed(layout: Layout) -> ReplyParser:
    return lambda data, _asked: layout.exact(data, _HEAD)


def _data(data: Buffer, asked: int | None) -> bytes:
    if asked is not None and len(data) - _HEAD > asked:
        raise WireError(f"{len(data) - _HEAD} bytes where {asked} were asked for")
    return bytes(data[_HEAD:])


def _xattr(data: Buffer, asked: int | None) -> Any:
    """The value, or its size for who asked with size 0."""
    return o.GETXATTR_OUT.exact(data, _HEAD) if asked == 0 else _data(data, asked)


def _entry(data: Buffer, _asked: int | None) -> o.EntryOut:
    if len(data) != _HEAD + ENTRY_SIZE:
        raise WireError(f"an entry of {len(data) - _HEAD} bytes")
    return unpack_entry(data, _HEAD)


def _made(record: Any, head: Layout, data: Buffer, rest: Any) -> Any:
    """A record of a structure's members and one thing more."""
    return make(record, (*head.unpack(data, _HEAD), rest))


def _attr(data: Buffer, _asked: int | None) -> Any:
    size = o.ATTR_HEAD.size
    if len(data) != _HEAD + size + o.ATTR.size:
        raise WireError(f"attributes of {len(data) - _HEAD} bytes")
    return _made(o.AttrOut, o.ATTR_HEAD, data, unpack_attr(data, _HEAD + size))


def _statx(data: Buffer, _asked: int | None) -> Any:
    size = o.STATX_HEAD.size
    if len(data) != _HEAD + size + o.STATX.size:
        raise WireError(f"statx of {len(data) - _HEAD} bytes")
    return _made(o.StatxOut, o.STATX_HEAD, data, unpack_statx(data, _HEAD + size))


def _create(data: Buffer, _asked: int | None) -> o.CreateOut:
    return o.CreateOut(unpack_entry(data, _HEAD), o.OPEN_OUT.exact(data, _HEAD + ENTRY_SIZE))


def _init(data: Buffer, _asked: int | None) -> Any:
    """INIT's reply in one of its three lengths; what is not there is zero."""
    if len(data) - _HEAD not in (8, 24, o.INIT_OUT.size):
        raise WireError(f"INIT answered with {len(data) - _HEAD} bytes")
    whole = bytes(data[_HEAD:]).ljust(o.INIT_OUT.size, b"\0")
    return make(o.InitOutRaw, o.INIT_OUT.unpack(whole))


def _ioctl(data: Buffer, asked: int | None) -> Any:
    head = o.IOCTL_OUT.unpack(data, _HEAD)
    rest = bytes(data[_IOCTL_HEAD:])
    if not head[1] & FUSE_IOCTL_RETRY:
        if asked is not None and len(rest) > asked:
            raise WireError(f"an ioctl passes out {len(rest)} bytes where {asked} fit")
        return make(o.IoctlOut, (*head, rest, ()))
    count = head[2] + head[3]
    if count > FUSE_IOCTL_MAX_IOV or count * o.IOCTL_IOVEC.size != len(rest):
        raise WireError(f"{count} pieces of memory in {len(rest)} bytes")
    iovecs = tuple(make(o.IoctlIovec, v) for v in o.IOCTL_IOVEC.struct.iter_unpack(rest))
    return make(o.IoctlOut, (*head, b"", iovecs))


def _readdir(data: Buffer, asked: int | None) -> list[o.Dirent]:
    return parse_dirents(_data(data, asked))


def _readdirplus(data: Buffer, asked: int | None) -> list[tuple[o.EntryOut, o.Dirent]]:
    return parse_direntplus(_data(data, asked))


#: How the kernel reads the reply to each request. FORGET and its like have none.
_REPLIES: Final = MappingProxyType(
    {
        Opcode.LOOKUP: _entry,
        Opcode.GETATTR: _attr,
        Opcode.SETATTR: _attr,
        Opcode.READLINK: _data,
        Opcode.SYMLINK: _entry,
        Opcode.MKNOD: _entry,
        Opcode.MKDIR: _entry,
        Opcode.UNLINK: _empty,
        Opcode.RMDIR: _empty,
        Opcode.RENAME: _empty,
        Opcode.LINK: _entry,
        Opcode.OPEN: _fixed(o.OPEN_OUT),
        Opcode.READ: _data,
        Opcode.WRITE: _fixed(o.WRITE_OUT),
        Opcode.STATFS: _fixed(o.STATFS_OUT),
        Opcode.RELEASE: _empty,
        Opcode.FSYNC: _empty,
        Opcode.SETXATTR: _empty,
        Opcode.GETXATTR: _xattr,
        Opcode.LISTXATTR: _xattr,
        Opcode.REMOVEXATTR: _empty,
        Opcode.FLUSH: _empty,
        Opcode.INIT: _init,
        Opcode.OPENDIR: _fixed(o.OPEN_OUT),
        Opcode.READDIR: _readdir,
        Opcode.RELEASEDIR: _empty,
        Opcode.FSYNCDIR: _empty,
        Opcode.GETLK: _fixed(o.LK_OUT),
        Opcode.SETLK: _empty,
        Opcode.SETLKW: _empty,
        Opcode.ACCESS: _empty,
        Opcode.CREATE: _create,
        Opcode.INTERRUPT: _empty,
        Opcode.BMAP: _fixed(o.BMAP_OUT),
        Opcode.DESTROY: _empty,
        Opcode.IOCTL: _ioctl,
        Opcode.POLL: _fixed(o.POLL_OUT),
        Opcode.FALLOCATE: _empty,
        Opcode.READDIRPLUS: _readdirplus,
        Opcode.RENAME2: _empty,
        Opcode.LSEEK: _fixed(o.LSEEK_OUT),
        Opcode.COPY_FILE_RANGE: _fixed(o.WRITE_OUT),
        Opcode.SETUPMAPPING: _empty,
        Opcode.REMOVEMAPPING: _empty,
        Opcode.SYNCFS: _empty,
        Opcode.TMPFILE: _create,
        Opcode.STATX: _statx,
        Opcode.COPY_FILE_RANGE_64: _fixed(o.COPY_FILE_RANGE_OUT),
    }
)
