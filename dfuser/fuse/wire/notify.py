"""Notifications: messages to the kernel that answer no request.

A notification looks like a reply whose `unique` is zero and whose error is a code. The kernel works
on it before the write returns, so the write may wait for a page or a directory lock; it must be
made by a thread that holds nothing a request could need (``fuse/notify.py``).

`NOTIFICATIONS` says from which version on each is understood. RETRIEVE is the one with an answer: a
request NOTIFY_REPLY whose unique is the one given here and whose data follows it.

Counterpart: fuse_notify and the functions it calls (fs/fuse/dev.c of Linux), enum fuse_notify_code.
Invariants: a name is followed by one NUL and its length does not count it; parse(emit(n)) == n.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from types import MappingProxyType
from typing import Final, NamedTuple

from .const import FUSE_EXPIRE_ONLY, FUSE_NAME_MAX, OUT_HEADER_SIZE, Notify
from .layout import Buffer, Data, Layout, WireError, check_name, take_name
from .outputs import OUT_HEADER


class NotifyPoll(NamedTuple):
    """A waiter may look again. Counterpart: struct fuse_notify_poll_wakeup_out."""

    kh: int


class NotifyInvalInode(NamedTuple):
    """Forget attributes, and pages from `off` on: `len` bytes, or all with 0; none if off < 0.

    Counterpart: struct fuse_notify_inval_inode_out (linux/fuse.h).
    """

    ino: int
    off: int
    len: int


class NotifyInvalEntry(NamedTuple):
    """Forget a name. Counterpart: struct fuse_notify_inval_entry_out (linux/fuse.h)."""

    parent: int
    flags: int
    name: bytes


class NotifyStore(NamedTuple):
    """Put data into the page cache. Counterpart: struct fuse_notify_store_out (linux/fuse.h)."""

    nodeid: int
    offset: int
    size: int
    data: bytes


class NotifyRetrieve(NamedTuple):
    """Send data of the page cache. Counterpart: struct fuse_notify_retrieve_out."""

    notify_unique: int
    nodeid: int
    offset: int
    size: int


class NotifyDelete(NamedTuple):
    """A name is gone, and watchers shall hear of it. Counterpart: struct fuse_notify_delete_out."""

    parent: int
    child: int
    name: bytes


class NotifyResend(NamedTuple):
    """Send again what was read but not answered."""


class NotifyIncEpoch(NamedTuple):
    """All names of the mount are to be asked for again."""


class NotifyPrune(NamedTuple):
    """Let go of these files if nobody uses them. Counterpart: struct fuse_notify_prune_out."""

    nodeids: tuple[int, ...]


class PruneHead(NamedTuple):
    """How many nodeids follow. Counterpart: struct fuse_notify_prune_out (linux/fuse.h)."""

    number: int


class InvalEntryRaw(NamedTuple):
    """The members before the name. Counterpart: struct fuse_notify_inval_entry_out."""

    parent: int
    namelen: int
    flags: int


class DeleteRaw(NamedTuple):
    """The members before the name. Counterpart: struct fuse_notify_delete_out (linux/fuse.h)."""

    parent: int
    child: int
    namelen: int


Notification = (
    NotifyPoll | NotifyInvalInode | NotifyInvalEntry | NotifyStore | NotifyRetrieve | NotifyDelete
    | NotifyResend | NotifyIncEpoch | NotifyPrune
)  # fmt: skip


class NotifyRule(NamedTuple):
    """When a notification is understood, and what it is for.

    Attributes:
        code: which.
        since: the minor version that brought it.
        flag: the INIT flag that must be negotiated as well, or the empty string.
        use: what dfuser sends it for.
    """

    code: Notify
    since: int
    flag: str
    use: str


NOTIFICATIONS: Final = (
    NotifyRule(Notify.POLL, 11, "", "a polled file became ready"),
    NotifyRule(Notify.INVAL_INODE, 12, "", "data or attributes changed inside"),
    NotifyRule(Notify.INVAL_ENTRY, 12, "", "a name changed inside; expire-only where a mount is"),
    NotifyRule(Notify.STORE, 15, "", "data the kernel will want next"),
    NotifyRule(Notify.RETRIEVE, 15, "", "dirty pages wanted before a shared mount's file is read"),
    NotifyRule(Notify.DELETE, 18, "", "a name was removed inside: inotify hears of it"),
    NotifyRule(Notify.RESEND, 40, "HAS_RESEND", "a new server takes over the descriptor"),
    NotifyRule(Notify.INC_EPOCH, 44, "", "a whole mount changed (rollback of a snapshot)"),
    NotifyRule(Notify.PRUNE, 45, "", "vnodes run short: the kernel holds files nobody uses"),
)

POLL_OUT: Final = Layout("fuse_notify_poll_wakeup_out", NotifyPoll, Struct("=Q"))
INVAL_INODE_OUT: Final = Layout("fuse_notify_inval_inode_out", NotifyInvalInode, Struct("=Qqq"))
INVAL_ENTRY_OUT: Final = Layout("fuse_notify_inval_entry_out", InvalEntryRaw, Struct("=QII"))
STORE_OUT: Final = Layout("fuse_notify_store_out", NotifyStore, Struct("=QQI4x"))
RETRIEVE_OUT: Final = Layout("fuse_notify_retrieve_out", NotifyRetrieve, Struct("=QQQI4x"))
DELETE_OUT: Final = Layout("fuse_notify_delete_out", DeleteRaw, Struct("=QQI4x"))
PRUNE_OUT: Final = Layout("fuse_notify_prune_out", PruneHead, Struct("=I12x"))

_header: Final = OUT_HEADER.struct.pack
_HEAD: Final = OUT_HEADER_SIZE


def _message(code: Notify, body: bytes) -> bytes:
    return _header(_HEAD + len(body), code, 0) + body


def _name(name: bytes) -> bytes:
    """A name that the kernel takes, with its NUL."""
    if len(check_name(name)) > FUSE_NAME_MAX:
        raise WireError(f"a name of {len(name)} bytes")
    return name + b"\0"


def emit_poll_wakeup(kh: int) -> bytes:
    """Wake who polls: `kh` as POLL gave it."""
    return _message(Notify.POLL, POLL_OUT.pack(kh))


def emit_inval_inode(ino: int, off: int = 0, length: int = 0) -> bytes:
    """Invalidate attributes and pages; a negative `off` means attributes only."""
    return _message(Notify.INVAL_INODE, INVAL_INODE_OUT.pack(ino, off, length))


def emit_inval_entry(parent: int, name: bytes, *, expire_only: bool = False) -> bytes:
    """Invalidate a name; `expire_only` lets it live while it is in use (needs HAS_EXPIRE_ONLY).

    Raises:
        WireError: the kernel would not take the name.
    """
    flags = FUSE_EXPIRE_ONLY if expire_only else 0
    text = _name(name)
    return _message(Notify.INVAL_ENTRY, INVAL_ENTRY_OUT.pack(parent, len(name), flags) + text)


def emit_delete(parent: int, child: int, name: bytes) -> bytes:
    """Invalidate a name that was removed, if it still names `child`.

    Raises:
        WireError: the kernel would not take the name.
    """
    text = _name(name)
    return _message(Notify.DELETE, DELETE_OUT.pack(parent, child, len(name)) + text)


def emit_store(nodeid: int, offset: int, data: Data) -> tuple[bytes, Data]:
    """Put `data` into the page cache, for writev."""
    size = len(data)
    head = _header(_HEAD + STORE_OUT.size + size, Notify.STORE, 0)
    return head + STORE_OUT.pack(nodeid, offset, size), data


def emit_retrieve(notify_unique: int, nodeid: int, offset: int, size: int) -> bytes:
    """Ask for data of the page cache; a NOTIFY_REPLY with `notify_unique` will bring it."""
    return _message(Notify.RETRIEVE, RETRIEVE_OUT.pack(notify_unique, nodeid, offset, size))


def emit_resend() -> bytes:
    """Have all requests sent again that were read and not answered."""
    return _message(Notify.RESEND, b"")


def emit_inc_epoch() -> bytes:
    """Have every name of the mount looked up again when it is next used."""
    return _message(Notify.INC_EPOCH, b"")


def emit_prune(nodeids: Sequence[int]) -> bytes:
    """Have files that nobody uses forgotten: FORGETs will follow."""
    count = len(nodeids)
    body = PRUNE_OUT.pack(count) + Struct(f"={count}Q").pack(*nodeids)
    return _message(Notify.PRUNE, body)


# --- the other direction -----------------------------------------------------------------------


def parse_notification(data: Buffer) -> Notification:
    """A notification as the kernel reads it.

    Raises:
        WireError: it is cut off, too long, unknown, or contradicts itself.
    """
    length, code, unique = OUT_HEADER.unpack(data)
    if length != len(data) or unique:
        raise WireError("not a notification")
    parse = _PARSERS.get(code)
    if parse is None:
        raise WireError(f"no notification has the code {code}")
    notification: Notification = parse(data)
    return notification


def _parse_named(data: Buffer, layout: Layout) -> tuple[tuple[int, ...], bytes]:
    members = layout.unpack(data, _HEAD)
    name = take_name(data, _HEAD + layout.size, len(data))
    if members[layout.record._fields.index("namelen")] != len(name):
        raise WireError(f"{layout.cname} says another length than its name has")
    return members, name


def _parse_inval_entry(data: Buffer) -> NotifyInvalEntry:
    (parent, _length, flags), name = _parse_named(data, INVAL_ENTRY_OUT)
    return NotifyInvalEntry(parent, flags, name)


def _parse_delete(data: Buffer) -> NotifyDelete:
    (parent, child, _length), name = _parse_named(data, DELETE_OUT)
    return NotifyDelete(parent, child, name)


def _parse_store(data: Buffer) -> NotifyStore:
    nodeid, offset, size = STORE_OUT.unpack(data, _HEAD)
    start = _HEAD + STORE_OUT.size
    if size != len(data) - start:
        raise WireError(f"STORE says {size} bytes, not {len(data) - start}")
    return NotifyStore(nodeid, offset, size, bytes(data[start:]))


def _parse_prune(data: Buffer) -> NotifyPrune:
    (count,) = PRUNE_OUT.unpack(data, _HEAD)
    start = _HEAD + PRUNE_OUT.size
    if count * 8 != len(data) - start:
        raise WireError(f"PRUNE says {count} files in {len(data) - start} bytes")
    return NotifyPrune(Struct(f"={count}Q").unpack_from(data, start))


def _parse_bare(data: Buffer, notification: Notification) -> Notification:
    if len(data) != _HEAD:
        raise WireError(f"{type(notification).__name__} carries nothing")
    return notification


_PARSERS: Final = MappingProxyType(
    {
        Notify.POLL: lambda data: POLL_OUT.exact(data, _HEAD),
        Notify.INVAL_INODE: lambda data: INVAL_INODE_OUT.exact(data, _HEAD),
        Notify.INVAL_ENTRY: _parse_inval_entry,
        Notify.STORE: _parse_store,
        Notify.RETRIEVE: lambda data: RETRIEVE_OUT.exact(data, _HEAD),
        Notify.DELETE: _parse_delete,
        Notify.RESEND: lambda data: _parse_bare(data, NotifyResend()),
        Notify.INC_EPOCH: lambda data: _parse_bare(data, NotifyIncEpoch()),
        Notify.PRUNE: _parse_prune,
    }
)
