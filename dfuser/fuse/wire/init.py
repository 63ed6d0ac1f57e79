"""INIT: what both sides agree on when a connection begins.

The kernel sends its version, how far it reads ahead, and the flags it offers. `negotiate` answers
with one of three outcomes, each of which knows its reply:

* `Negotiated`: the versions fit. Carries everything the connection will need to know, and for each
  flag of the table why it is on or off, so that the decision can be shown to people.
* `Again`: the kernel speaks a newer major version. It is told ours and sends another INIT.
* `Refused`: the kernel is older than 7.12 (Linux 2.6.31), whose requests have other sizes.

Sizes hang together: the largest WRITE must fit the pages of one request, and the buffer that
requests are read into must hold it with its head. Without MAX_PAGES the kernel has 32 pages for a
request, without BIG_WRITES one.

Counterpart: fuse_send_init, process_init_reply, process_init_limits (fs/fuse/inode.c of Linux).
Invariants: a flag that was not offered is never answered; of two flags that exclude each other at
most one is on; the reply has the length that the kernel's version expects (24 bytes before 7.23,
64 since).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import attrs

from . import flags as f
from .const import (
    FUSE_KERNEL_MINOR_VERSION,
    FUSE_KERNEL_VERSION,
    FUSE_MIN_READ_BUFFER,
    OLDEST_MINOR,
    WRITE_DATA,
    Notify,
)
from .inputs import InitIn
from .notify import NOTIFICATIONS
from .outputs import INIT_OUT, InitOutRaw
from .reply import emit_bytes, emit_error

#: Linux's number for a protocol that does not fit; this package knows no errno table.
_EPROTO: Final = 71
#: Pages of a request where the kernel has no MAX_PAGES.
_OLD_MAX_PAGES: Final = 32
#: From this minor version on the reply has all of its structure; before, these many bytes.
_LONG_REPLY_MINOR: Final = 23
_SHORT_REPLY: Final = 24
_LOW: Final = 0xFFFFFFFF


@attrs.frozen
class Wishes:
    """What one mount would like; what it gets depends on the kernel.

    Attributes:
        writeback: gather small writes in the kernel's page cache.
        passthrough: let the kernel read and write backing files itself; excludes writeback.
        zero_open: no OPEN requests (the loop answers the first with ENOSYS).
        zero_opendir: no OPENDIR requests.
        locks: serve record locks and flock.
        acl: have the kernel check POSIX ACLs.
        killpriv: drop set-id bits ourselves.
        cache_symlinks: let the kernel keep what links say.
        explicit_inval: pages stay until notified; else they go by size and mtime.
        max_readahead: bytes, the kernel's own limit holds too.
        max_write: bytes of the largest write, a multiple of the page size.
        max_background: how many read-aheads and write-backs may be under way.
        congestion_threshold: from how many on the kernel calls the mount congested.
        time_gran: nanoseconds; times are kept in multiples of it.
        max_stack_depth: how deep file systems may stack on a passthrough file's.
        request_timeout: seconds, 0 for none.
        page_size: the host's, in bytes.
    """

    writeback: bool = False
    passthrough: bool = False
    zero_open: bool = False
    zero_opendir: bool = False
    locks: bool = True
    acl: bool = True
    killpriv: bool = True
    cache_symlinks: bool = True
    explicit_inval: bool = True
    max_readahead: int = 1 << 20
    max_write: int = 1 << 20
    max_background: int = 64
    congestion_threshold: int = 48
    time_gran: int = 1
    max_stack_depth: int = 1
    request_timeout: int = 0
    page_size: int = 4096


class Decision(NamedTuple):
    """What became of one flag, and why."""

    name: str
    on: bool
    reason: str


@attrs.frozen
class Negotiated:
    """What holds for a connection. The sizes are in bytes, `flags` has 64 bits.

    `announced` is the kernel's minor version, `minor` the one in use (the lower of both sides').
    """

    minor: int
    announced: int
    flags: int
    max_readahead: int
    max_background: int
    congestion_threshold: int
    max_write: int
    time_gran: int
    max_pages: int
    max_stack_depth: int
    request_timeout: int
    decisions: tuple[Decision, ...] = attrs.field(repr=False)

    def has(self, name: str) -> bool:
        """Whether a flag is on, by its name in the table.

        Raises:
            KeyError: there is no such flag.
        """
        return bool(self.flags & f.BY_NAME[name].bit)

    @property
    def setxattr_ext(self) -> bool:
        """Which form SETXATTR has (`request.parsers_for`)."""
        return bool(self.flags & f.FUSE_SETXATTR_EXT)

    @property
    def buffer_size(self) -> int:
        """Bytes of the buffer that requests are read into: the largest WRITE and a page of room."""
        return max(FUSE_MIN_READ_BUFFER, self.max_write + WRITE_DATA + 4096 & -4096)

    def can_notify(self, code: Notify) -> bool:
        """Whether the kernel understands a notification."""
        rule = NOTIFICATIONS[code - 1]
        return self.minor >= rule.since and (not rule.flag or self.has(rule.flag))

    def emit(self, unique: int) -> bytes:
        """The reply to INIT."""
        body = INIT_OUT.pack(
            *InitOutRaw(
                FUSE_KERNEL_VERSION, self.minor, self.max_readahead, self.flags & _LOW,
                self.max_background, self.congestion_threshold, self.max_write, self.time_gran,
                self.max_pages, 0, self.flags >> 32, self.max_stack_depth, self.request_timeout,
            )
        )  # fmt: skip
        return emit_bytes(unique, body[:_SHORT_REPLY] if self.minor < _LONG_REPLY_MINOR else body)


class Again(NamedTuple):
    """The kernel's major version is newer: tell ours and wait for the next INIT."""

    major: int

    def emit(self, unique: int) -> bytes:
        """The reply to INIT: our version and nothing else."""
        rest = (0,) * (len(InitOutRaw._fields) - 2)
        body = INIT_OUT.pack(FUSE_KERNEL_VERSION, FUSE_KERNEL_MINOR_VERSION, *rest)
        return emit_bytes(unique, body)


class Refused(NamedTuple):
    """The kernel is too old: the mount ends."""

    major: int
    minor: int

    def emit(self, unique: int) -> bytes:
        """The reply to INIT: EPROTO."""
        return emit_error(unique, _EPROTO)


def negotiate(init: InitIn, wishes: Wishes) -> Negotiated | Again | Refused:
    """Agree with the kernel.

    Raises:
        ValueError: `max_write` is no multiple of the page size, or none at all.
    """
    if wishes.max_write <= 0 or wishes.max_write % wishes.page_size:
        raise ValueError(f"max_write {wishes.max_write} is no multiple of {wishes.page_size}")
    if init.major > FUSE_KERNEL_VERSION:
        return Again(init.major)
    if init.major < FUSE_KERNEL_VERSION or init.minor < OLDEST_MINOR:
        return Refused(init.major, init.minor)
    flags, decisions = decide(init.flags, wishes)
    max_write, max_pages = _request_size(flags, wishes)
    on = flags.__and__
    return Negotiated(
        minor=min(init.minor, FUSE_KERNEL_MINOR_VERSION),
        announced=init.minor,
        flags=flags,
        max_readahead=min(init.max_readahead, wishes.max_readahead),
        max_background=wishes.max_background,
        congestion_threshold=wishes.congestion_threshold,
        max_write=max_write,
        time_gran=wishes.time_gran,
        max_pages=max_pages,
        max_stack_depth=wishes.max_stack_depth if on(f.FUSE_PASSTHROUGH) else 0,
        request_timeout=wishes.request_timeout if on(f.FUSE_REQUEST_TIMEOUT) else 0,
        decisions=decisions,
    )


def _request_size(flags: int, wishes: Wishes) -> tuple[int, int]:
    """The largest write, and `max_pages` of the reply (0 where the kernel does not read it)."""
    if flags & f.FUSE_MAX_PAGES:
        return wishes.max_write, min(wishes.max_write // wishes.page_size, 0xFFFF)
    pages = _OLD_MAX_PAGES if flags & f.FUSE_BIG_WRITES else 1
    return min(wishes.max_write, pages * wishes.page_size), 0


def decide(offered: int, wishes: Wishes) -> tuple[int, tuple[Decision, ...]]:
    """The flags to answer, and for each row of the table what became of it."""
    why: dict[str, str] = {}
    on = {flag.name for flag in f.FLAGS if _wanted(flag, offered, wishes, why)}
    _drop_needy(on, why)
    for flag in f.FLAGS:
        winner = next((name for name in flag.yields if name in on), None)
        if flag.name in on and winner is not None:
            on.discard(flag.name)
            why[flag.name] = f"yields to {winner}"
    _drop_needy(on, why)
    decisions = tuple(
        Decision(flag.name, flag.name in on, why.get(flag.name, flag.why)) for flag in f.FLAGS
    )
    return sum(flag.bit for flag in f.FLAGS if flag.name in on), decisions


def _wanted(flag: f.Flag, offered: int, wishes: Wishes, why: dict[str, str]) -> bool:
    """Whether a flag is offered and wished for; if not, `why` says which of the two it is."""
    if flag.wish == f.NEVER:
        why[flag.name] = f"not wanted: {flag.why}"
    elif flag.wish != f.ALWAYS and not getattr(wishes, flag.wish):
        why[flag.name] = f"this mount does not wish for {flag.wish}"
    elif not offered & flag.bit:
        why[flag.name] = "the kernel does not offer it"
    else:
        return True
    return False


def _drop_needy(on: set[str], why: dict[str, str]) -> None:
    """Switch off, until nothing changes, what needs a flag that is off."""
    changed = True
    while changed:
        changed = False
        for flag in f.FLAGS:
            missing = next((name for name in flag.needs if name not in on), None)
            if flag.name in on and missing is not None:
                on.discard(flag.name)
                why[flag.name] = f"needs {missing}"
                changed = True
