"""One readable line for each message, both directions: what a tracer prints.

`show_request` and `show_reply` are the two halves of a line, `show_notification` is a line of its
own::

    LOOKUP 1 "usr"                  -> node 42 dir 0755 0:0
    OPEN 42 O_RDONLY                -> ENOENT
    READ 42 fh 3 offset 0 size 4096 -> 4096 bytes
    INVAL_ENTRY 1 "usr"

The file that a request is about stands first; then come its arguments, flags by their names. What
the bytes do not say (a request that is cut off, a reply too long) is shown as far as it goes, with
what is wrong with it in angle brackets.

A tracer need not keep a message whole. `KEEP` bytes of a request and `reply_keep` bytes of its
reply are enough, and the sizes of the originals: file data is never shown, and of long values and
listings the beginning.

Counterpart: fuse_lowlevel.c of libfuse with ``-o debug``; strace(1) for the looks.
Invariants: nothing here raises, whatever the bytes are; a text is one line without control
characters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, Final

from . import const as c
from . import flags as init_flags
from . import inputs as i
from . import outputs as o
from . import words as w
from .const import IN_HEADER_SIZE, OUT_HEADER_SIZE, WRITE_DATA, Notify, Opcode
from .dirent import DIRENT_SIZE
from .ext import SecurityContexts, SuppGroups, parse_extensions
from .kernel import parse_reply
from .layout import WireError, align8, make, split_name
from .notify import (
    STORE_OUT,
    NotifyDelete,
    NotifyInvalEntry,
    NotifyInvalInode,
    NotifyPoll,
    NotifyPrune,
    NotifyRetrieve,
    parse_notification,
)
from .request import PARSERS

#: Bytes of a request, and of a reply that is shown in part, which are enough for its line.
KEEP: Final = 8192
REPLY_KEEP: Final = 4096
#: Records of a listing, of BATCH_FORGET and its like that are shown.
RECORDS: Final = 4

_IN: Final = IN_HEADER_SIZE
_OUT: Final = OUT_HEADER_SIZE
_unpack_header: Final = i.IN_HEADER.struct.unpack_from
_unpack_reply: Final = o.OUT_HEADER.struct.unpack_from
_CODES: Final = frozenset(map(int, Notify))
_EXPIRE: Final[w.Words] = ((c.FUSE_EXPIRE_ONLY, "EXPIRE_ONLY"),)
#: Where the flags of SETATTR say that a time is now.
_NOW: Final = MappingProxyType({"atime": c.FATTR_ATIME_NOW, "mtime": c.FATTR_MTIME_NOW})

# --- requests ----------------------------------------------------------------------------------


def request_keep(opcode: int, size: int) -> int:
    """How many bytes of a request are worth keeping: no file data."""
    return min(size, WRITE_DATA if opcode in (Opcode.WRITE, Opcode.NOTIFY_REPLY) else KEEP)


def asked(opcode: int, data: bytes) -> int | None:
    """How many bytes a request has room for in its reply; None where that means nothing."""
    layout = _ASKED.get(opcode)
    if layout is None or len(data) < _IN + layout.size:
        return None
    members = layout.unpack(data, _IN)
    field = "out_size" if opcode == Opcode.IOCTL else "size"
    room: int = members[layout.record._fields.index(field)]
    return room


def show_request(data: bytes, size: int | None = None) -> str:
    """What a request asks, without the name of its opcode.

    Args:
        data: the request, or its first `request_keep` bytes.
        size: how long it was.
    """
    size = len(data) if size is None else size
    if min(size, len(data)) < _IN:
        return f"<{size} bytes are no request>"
    length, opcode, _unique, nodeid, _uid, _gid, _pid, extlen = _unpack_header(data)
    parts = [str(nodeid)] if nodeid else []
    if length != size:
        parts.append(f"<says {length} bytes, has {size}>")
        return " ".join(parts)
    end = size - 8 * extlen
    try:
        if end < _IN:
            raise WireError(f"extensions of {8 * extlen} bytes in {size}")
        parts.append(_body(opcode, data, end))
        if extlen and len(data) >= size:
            parts += map(_extension, parse_extensions(data, end, size))
    except WireError as error:
        parts.append(f"<{error}>")
    return " ".join(filter(None, parts))


def _body(opcode: int, data: bytes, end: int) -> str:
    """The arguments of a request."""
    show = _BULK.get(opcode)
    if show is not None:
        return show(data, end)
    show_record = _REQUESTS.get(opcode)
    if show_record is None:
        return f"{end - _IN} bytes" if end > _IN else ""
    if end > len(data):
        raise WireError(f"{end} bytes")
    return show_record(PARSERS[opcode](data, end))


def _extension(extension: object) -> str:
    if isinstance(extension, SuppGroups):
        return "groups " + ",".join(map(str, extension.groups))
    if isinstance(extension, SecurityContexts):
        return "contexts " + ",".join(w.quote(context.name) for context in extension.contexts)
    return "<unknown extension>"


def _nothing(_body: object) -> str:
    return ""


def _with(text: str, flags: str) -> str:
    """A text and the names of flags, if there are any."""
    return f"{text} {flags}" if flags else text


def _fh(body: Any, flags: int, bit: int) -> str:
    return f"fh {body.fh}" if flags & bit else ""


def _setattr(b: i.SetattrIn) -> str:
    valid, parts = b.valid, []
    for bit, name, shown in (
        (c.FATTR_MODE, "mode", f"{b.mode & 0o7777:04o}"),
        (c.FATTR_UID, "uid", str(b.uid)),
        (c.FATTR_GID, "gid", str(b.gid)),
        (c.FATTR_SIZE, "size", str(b.size)),
        (c.FATTR_ATIME, "atime", w.seconds(b.atime, b.atimensec)),
        (c.FATTR_MTIME, "mtime", w.seconds(b.mtime, b.mtimensec)),
        (c.FATTR_CTIME, "ctime", w.seconds(b.ctime, b.ctimensec)),
        (c.FATTR_FH, "fh", str(b.fh)),
        (c.FATTR_LOCKOWNER, "owner", f"{b.lock_owner:#x}"),
    ):
        if valid & bit:
            parts.append(f"{name} {'now' if valid & _NOW.get(name, 0) else shown}")
    if valid & c.FATTR_KILL_SUIDGID:
        parts.append("KILL_SUIDGID")
    if valid >> 12:
        parts.append(f"{valid >> 12 << 12:#x}")
    return " ".join(parts)


def _device(dev: int) -> str:
    return f" dev {dev >> 8 & 0xFFF}:{dev & 0xFF | dev >> 12 & 0xFFF00}" if dev else ""


def _mknod(b: i.MknodIn) -> str:
    return f"{w.quote(b.name)} {w.kind_word(b.mode)}{_device(b.rdev)} umask {b.umask:03o}"


def _create(b: i.CreateIn) -> str:
    text = f"{w.quote(b.name)} {w.open_words(b.flags)} mode {b.mode & 0o7777:04o}"
    return _with(f"{text} umask {b.umask:03o}", w.flag_words(b.open_flags, w.OPEN_IN_WORDS, ""))


def _read(b: i.ReadIn) -> str:
    text = f"fh {b.fh} offset {b.offset} size {b.size}"
    return _with(text, w.flag_words(b.read_flags, w.READ_WORDS, ""))


def _release(b: i.ReleaseIn) -> str:
    text = f"fh {b.fh} {w.open_words(b.flags)}"
    return _with(text, w.flag_words(b.release_flags, w.RELEASE_WORDS, ""))


def _lock(start: int, end: int, kind: int, pid: int) -> str:
    last = "end" if end >= (1 << 63) - 1 else str(end)
    return f"{w.one_of(kind, w.LOCK_TYPES)} {start}..{last}" + (f" pid {pid}" if pid else "")


def _lk(b: i.LkIn) -> str:
    text = f"fh {b.fh} {_lock(b.start, b.end, b.type, b.pid)} owner {b.owner:#x}"
    return _with(text, w.flag_words(b.lk_flags, w.LK_WORDS, ""))


def _copy(b: i.CopyFileRangeIn) -> str:
    text = (
        f"fh {b.fh_in} offset {b.off_in} to {b.nodeid_out} fh {b.fh_out} "
        f"offset {b.off_out} size {b.len}"
    )
    return _with(text, w.flag_words(b.flags, (), ""))


def _init_words(flags: int) -> str:
    return "|".join(init_flags.names(flags)) or "0"


def _statx_in(b: i.StatxIn) -> str:
    text = _fh(b, b.getattr_flags, c.FUSE_GETATTR_FH)
    words = f"{w.flag_words(b.sx_flags, w.AT_WORDS)} {w.flag_words(b.sx_mask, w.STATX_WORDS)}"
    return f"{text} {words}".lstrip()


#: What is shown of the record that a request's parser answers.
_REQUESTS: Final[MappingProxyType[int, Callable[[Any], str]]] = MappingProxyType(
    {
        Opcode.LOOKUP: w.quote,
        Opcode.FORGET: lambda count: f"nlookup {count}",
        Opcode.GETATTR: lambda b: _fh(b, b.getattr_flags, c.FUSE_GETATTR_FH),
        Opcode.SETATTR: _setattr,
        Opcode.READLINK: _nothing,
        Opcode.SYMLINK: lambda b: f"{w.quote(b.name)} to {w.quote(b.target)}",
        Opcode.MKNOD: _mknod,
        Opcode.MKDIR: lambda b: f"{w.quote(b.name)} {b.mode & 0o7777:04o} umask {b.umask:03o}",
        Opcode.UNLINK: w.quote,
        Opcode.RMDIR: w.quote,
        Opcode.RENAME: lambda b: f"{w.quote(b.name)} to {b.newdir} {w.quote(b.newname)}",
        Opcode.LINK: lambda b: f"{w.quote(b.name)} of {b.oldnodeid}",
        Opcode.OPEN: lambda b: _with(
            w.open_words(b.flags), w.flag_words(b.open_flags, w.OPEN_IN_WORDS, "")
        ),
        Opcode.READ: _read,
        Opcode.STATFS: _nothing,
        Opcode.RELEASE: _release,
        Opcode.FSYNC: lambda b: _with(f"fh {b.fh}", w.flag_words(b.fsync_flags, w.FSYNC_WORDS, "")),
        Opcode.GETXATTR: lambda b: f"{w.quote(b.name)} size {b.size}",
        Opcode.LISTXATTR: lambda b: f"size {b.size}",
        Opcode.REMOVEXATTR: w.quote,
        Opcode.FLUSH: lambda b: f"fh {b.fh} owner {b.lock_owner:#x}",
        Opcode.INIT: lambda b: (
            f"{b.major}.{b.minor} max_readahead {b.max_readahead} {_init_words(b.flags)}"
        ),
        Opcode.OPENDIR: lambda b: w.open_words(b.flags),
        Opcode.READDIR: _read,
        Opcode.RELEASEDIR: _release,
        Opcode.FSYNCDIR: lambda b: _with(
            f"fh {b.fh}", w.flag_words(b.fsync_flags, w.FSYNC_WORDS, "")
        ),
        Opcode.GETLK: _lk,
        Opcode.SETLK: _lk,
        Opcode.SETLKW: _lk,
        Opcode.ACCESS: lambda b: w.flag_words(b.mask, w.ACCESS_WORDS, "F_OK"),
        Opcode.CREATE: _create,
        Opcode.INTERRUPT: lambda b: f"#{b.unique}",
        Opcode.BMAP: lambda b: f"block {b.block} of {b.blocksize}",
        Opcode.DESTROY: _nothing,
        Opcode.POLL: lambda b: _with(
            f"fh {b.fh} kh {b.kh} {w.flag_words(b.events, w.POLL_WORDS)}",
            w.flag_words(b.flags, w.POLL_IN_WORDS, ""),
        ),
        Opcode.FALLOCATE: lambda b: _with(
            f"fh {b.fh} offset {b.offset} size {b.length}",
            w.flag_words(b.mode, w.FALLOC_WORDS, ""),
        ),
        Opcode.READDIRPLUS: _read,
        Opcode.RENAME2: lambda b: _with(
            f"{w.quote(b.name)} to {b.newdir} {w.quote(b.newname)}",
            w.flag_words(b.flags, w.RENAME_WORDS, ""),
        ),
        Opcode.LSEEK: lambda b: f"fh {b.fh} offset {b.offset} {w.one_of(b.whence, w.WHENCES)}",
        Opcode.COPY_FILE_RANGE: _copy,
        Opcode.SETUPMAPPING: lambda b: (
            f"fh {b.fh} offset {b.foffset} size {b.len} at {b.moffset:#x} {b.flags:#x}"
        ),
        Opcode.SYNCFS: _nothing,
        Opcode.TMPFILE: _create,
        Opcode.STATX: _statx_in,
        Opcode.COPY_FILE_RANGE_64: _copy,
    }
)

# --- requests that are shown from a part of their bytes ----------------------------------------


def _write(data: bytes, end: int) -> str:
    b = i.WriteIn(*i.WRITE_IN.unpack(data, _IN))
    text = f"fh {b.fh} offset {b.offset} size {b.size}"
    if b.size != end - WRITE_DATA:
        text += f" <{end - WRITE_DATA} bytes of data>"
    return _with(text, w.flag_words(b.write_flags, w.WRITE_WORDS, ""))


def _retrieved(data: bytes, _end: int) -> str:
    offset, size = i.NOTIFY_RETRIEVE_IN.unpack(data, _IN)
    return f"offset {offset} size {size}"


def _setxattr(data: bytes, end: int) -> str:
    """Both forms; which one it is, the size of the value tells."""
    wrong: WireError | None = None
    for layout in (i.SETXATTR_IN, i.SETXATTR_IN_COMPAT):
        try:
            size, flags, *more = layout.unpack(data, _IN)
            name, at = split_name(data, _IN + layout.size, min(end, len(data)))
        except WireError as error:
            wrong = wrong or error
            continue
        if size == end - at:
            value = w.quote(data[at:end], w.SHOWN)
            text = _with(f"{w.quote(name)} {value}", w.flag_words(flags, w.XATTR_WORDS, ""))
            return _with(text, w.flag_words(more[0] if more else 0, w.SETXATTR_WORDS, ""))
    raise wrong or WireError("the value has another size")


def _ioctl(data: bytes, _end: int) -> str:
    b: i.IoctlIn = make(i.IoctlIn, (*i.IOCTL_IN.unpack(data, _IN), b""))
    text = f"fh {b.fh} {w.ioctl_word(b.cmd)} arg {b.arg:#x} in {b.in_size} out {b.out_size}"
    return _with(text, w.flag_words(b.flags, w.IOCTL_WORDS, ""))


def _batch_forget(data: bytes, end: int) -> str:
    return _records(i.BATCH_FORGET_IN, i.FORGET_ONE, data, end, "nodes", "{0}*{1}")


def _removemapping(data: bytes, end: int) -> str:
    return _records(i.REMOVEMAPPING_IN, i.REMOVEMAPPING_ONE, data, end, "ranges", "{0:#x}+{1:#x}")


def _records(head: Any, one: Any, data: bytes, end: int, noun: str, form: str) -> str:
    """How many records there are, and the first of them."""
    (count,) = head.unpack(data, _IN)
    start = _IN + head.size
    if count * one.size != end - start:
        raise WireError(f"{count} {noun} in {end - start} bytes")
    there = min(count, RECORDS, (len(data) - start) // one.size)
    shown = [form.format(*one.unpack(data, start + n * one.size)) for n in range(there)]
    return f"{count} {noun} " + " ".join(shown) + (" ..." if there < count else "")


_BULK: Final[MappingProxyType[int, Callable[[bytes, int], str]]] = MappingProxyType(
    {
        Opcode.WRITE: _write,
        Opcode.NOTIFY_REPLY: _retrieved,
        Opcode.SETXATTR: _setxattr,
        Opcode.IOCTL: _ioctl,
        Opcode.BATCH_FORGET: _batch_forget,
        Opcode.REMOVEMAPPING: _removemapping,
    }
)
_ASKED: Final = MappingProxyType[int, Any](
    {
        Opcode.READ: i.READ_IN,
        Opcode.READDIR: i.READ_IN,
        Opcode.READDIRPLUS: i.READ_IN,
        Opcode.GETXATTR: i.GETXATTR_IN,
        Opcode.LISTXATTR: i.LISTXATTR_IN,
        Opcode.IOCTL: i.IOCTL_IN,
    }
)

# --- replies -----------------------------------------------------------------------------------


def reply_keep(opcode: int) -> int:
    """How many bytes of a reply are worth keeping."""
    return _OUT if opcode == Opcode.READ else REPLY_KEEP


def show_reply(opcode: int, data: bytes, room: int | None = None) -> str:
    """What a reply says.

    Args:
        opcode: of the request.
        data: the reply, or its first `reply_keep` bytes.
        room: what `asked` says of the request.
    """
    if len(data) < _OUT:
        return f"<{len(data)} bytes are no reply>"
    length, error, _unique = _unpack_reply(data)
    if error:
        return w.errno_word(-error)
    try:
        part = _PARTS.get(opcode)
        if part is not None:
            return part(data, length, room)
        body = parse_reply(opcode, data).body
    except WireError as wrong:
        return f"<{wrong}>"
    show = _REPLIES.get(type(body))
    return "ok" if show is None else show(body)


def _attr(a: o.Attr) -> str:
    text = f"{w.kind_word(a.mode)} {a.uid}:{a.gid}"
    if a.mode >> 12 in (2, 6):
        return text + _device(a.rdev)
    return f"{text} {a.size} bytes" if a.mode >> 12 in (8, 10) else text


def _entry(e: o.EntryOut) -> str:
    if not e.nodeid:
        return f"no such name, for {e.entry_valid} s"
    return f"node {e.nodeid} {_attr(e.attr)}"


def _open_out(b: o.OpenOut) -> str:
    return _with(f"fh {b.fh}", w.flag_words(b.open_flags, w.FOPEN_WORDS, "")) + (
        f" backing {b.backing_id}" if b.backing_id else ""
    )


def _statx_out(b: o.StatxOut) -> str:
    s = b.stat
    size = f" {s.size} bytes" if s.mode >> 12 in (8, 10) else ""
    birth = f" born {w.seconds(s.btime_sec, s.btime_nsec)}" if s.mask & 0x800 else ""
    return f"{w.kind_word(s.mode)} {s.uid}:{s.gid}{size}{birth}"


def _init_out(b: o.InitOutRaw) -> str:
    words = _init_words(b.flags | b.flags2 << 32)
    return f"{b.major}.{b.minor} max_write {b.max_write} max_pages {b.max_pages} {words}"


_REPLIES: Final[MappingProxyType[type, Callable[[Any], str]]] = MappingProxyType(
    {
        o.EntryOut: _entry,
        o.AttrOut: lambda b: _attr(b.attr),
        o.StatxOut: _statx_out,
        o.OpenOut: _open_out,
        o.CreateOut: lambda b: f"{_entry(b.entry)} {_open_out(b.open)}",
        o.WriteOut: lambda b: f"{b.size} bytes",
        o.StatfsOut: lambda b: (
            f"{b.bavail} of {b.blocks} blocks of {b.frsize or b.bsize} free, "
            f"{b.ffree} of {b.files} files"
        ),
        o.LkOut: lambda b: _lock(b.start, b.end, b.type, b.pid),
        o.InitOutRaw: _init_out,
        o.BmapOut: lambda b: f"block {b.block}",
        o.PollOut: lambda b: w.flag_words(b.revents, w.POLL_WORDS),
        o.LseekOut: lambda b: f"offset {b.offset}",
        o.CopyFileRangeOut: lambda b: f"{b.bytes_copied} bytes",
    }
)


def _read_out(_data: bytes, length: int, room: int | None) -> str:
    size = length - _OUT
    over = room is not None and size > room
    return f"{size} bytes" + (" <more than asked>" if over else "")


def _text_out(data: bytes, length: int, _room: int | None) -> str:
    return w.quote(data[_OUT:], w.SHOWN, cut=length > len(data))


def _xattr_out(data: bytes, length: int, room: int | None) -> str:
    if room == 0 and length == _OUT + o.GETXATTR_OUT.size:
        return f"size {o.GETXATTR_OUT.unpack(data, _OUT)[0]}"
    return f"{length - _OUT} bytes {_text_out(data, length, room)}"


def _names_out(data: bytes, length: int, room: int | None) -> str:
    if room == 0:
        return _xattr_out(data, length, room)
    names = data[_OUT:].split(b"\0")[:-1]
    more = " ..." if len(names) > RECORDS or length > len(data) else ""
    return f"{length - _OUT} bytes " + " ".join(w.quote(n) for n in names[:RECORDS]) + more


def _ioctl_out(data: bytes, length: int, _room: int | None) -> str:
    result, flags, count_in, count_out = o.IOCTL_OUT.unpack(data, _OUT)
    if flags & c.FUSE_IOCTL_RETRY:
        return f"again with {count_in} pieces in, {count_out} out"
    size = length - _OUT - o.IOCTL_OUT.size
    return f"{result}" + (f" and {size} bytes" if size else "")


def _listing(before: int, data: bytes, length: int) -> str:
    """How many entries a listing has, and the first of them."""
    if length == _OUT:
        return "end"
    names, count, at, end = list[str](), 0, _OUT, min(length, len(data))
    while at + before + DIRENT_SIZE <= end:
        _ino, _off, size, kind = o.DIRENT.unpack(data, at + before)
        name = data[at + before + DIRENT_SIZE : at + before + DIRENT_SIZE + size]
        if not size or len(name) < size:
            break
        count += 1
        if count <= RECORDS:
            names.append(f"{w.dirent_word(kind)} {w.quote(name)}")
        at += align8(before + DIRENT_SIZE + size)
    if count > RECORDS or at < length:
        names.append("...")
    return f"{length - _OUT} bytes, {count}{'+' * (at < length)} entries: " + " ".join(names)


_PARTS: Final[MappingProxyType[int, Callable[[bytes, int, int | None], str]]] = MappingProxyType(
    {
        Opcode.READ: _read_out,
        Opcode.READLINK: _text_out,
        Opcode.GETXATTR: _xattr_out,
        Opcode.LISTXATTR: _names_out,
        Opcode.IOCTL: _ioctl_out,
        Opcode.READDIR: lambda data, length, _room: _listing(0, data, length),
        Opcode.READDIRPLUS: lambda data, length, _room: _listing(128, data, length),
    }
)

# --- notifications -----------------------------------------------------------------------------


def notification_name(code: int) -> str:
    """The name of a notification, or ``NOTIFY_99`` for one that has none."""
    return f"NOTIFY_{Notify(code).name}" if code in _CODES else f"NOTIFY_{code}"


def show_notification(data: bytes) -> str:
    """What a notification tells, without its name. `data` may be its first `REPLY_KEEP` bytes."""
    if len(data) < _OUT:
        return f"<{len(data)} bytes are no notification>"
    length, code, _unique = _unpack_reply(data)
    try:
        if code == Notify.STORE:
            nodeid, offset, size = STORE_OUT.unpack(data, _OUT)
            return f"{nodeid} offset {offset} size {size}"
        if code == Notify.PRUNE and length > len(data):
            return f"{(length - _OUT - 16) // 8} nodes"
        return _notification(parse_notification(data))
    except WireError as wrong:
        return f"<{wrong}>"


def _notification(n: object) -> str:
    if isinstance(n, NotifyPoll):
        return f"kh {n.kh}"
    if isinstance(n, NotifyInvalInode):
        return f"{n.ino} " + (
            "attributes" if n.off < 0 else f"offset {n.off} size {n.len or 'all'}"
        )
    if isinstance(n, NotifyInvalEntry):
        return _with(f"{n.parent} {w.quote(n.name)}", w.flag_words(n.flags, _EXPIRE, ""))
    if isinstance(n, NotifyRetrieve):
        return f"{n.nodeid} offset {n.offset} size {n.size} as #{n.notify_unique}"
    if isinstance(n, NotifyDelete):
        return f"{n.parent} {w.quote(n.name)} of {n.child}"
    if isinstance(n, NotifyPrune):
        more = " ..." if len(n.nodeids) > RECORDS else ""
        return f"{len(n.nodeids)} nodes " + " ".join(map(str, n.nodeids[:RECORDS])) + more
    return ""


def gather(buffers: Sequence[Any], limit: int) -> bytes:
    """The first `limit` bytes of a message in several buffers."""
    first = bytes(buffers[0][:limit]) if buffers else b""
    if len(first) >= limit or len(buffers) < 2:
        return first
    parts, left = [first], limit - len(first)
    for buffer in buffers[1:]:
        parts.append(bytes(buffer[:left]))
        left -= len(parts[-1])
        if left <= 0:
            break
    return b"".join(parts)
