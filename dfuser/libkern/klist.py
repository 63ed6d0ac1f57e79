"""Kernel event lists: who wants to know when something about an object changes.

An object others may watch (a vnode, a process, a pipe, a socket) carries a `Klist`. A
watcher hangs a *knote* on it. When the object changes, its owner walks the list with a
*hint* that says what happened (NOTE_WRITE, NOTE_EXIT, or 0 for "look again"); each knote
decides for itself whether that is an event for it, and if so is activated, which queues
it for its watcher. That one mechanism carries kqueue, select, poll, and the messages to
the host's caches.

The walk is plain and synchronous. What a knote does when it is activated may well attach
or detach knotes, its own or others': a knote detached during a walk is not called any
more, one attached during a walk waits for the next.

Counterpart: struct klist, struct knote, struct kevent (sys/event.h), knote,
    knote_insert, knote_remove (kern/kern_event.c).
Differs from DragonFly: a knote is anything with `filter`, `event` and `activate`; the queue
    behind it belongs to the room above. A list has a limit.
Token/lock order: takes none; the owner of the object calls under its own token.
Invariants: a knote is on a list at most once; a knote that was removed is never called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, Protocol, runtime_checkable

from dfuser.libkern.errno import EEXIST, ENOMEM, KError

# Filters.
EVFILT_READ: Final = -1
EVFILT_WRITE: Final = -2
EVFILT_AIO: Final = -3
EVFILT_VNODE: Final = -4
EVFILT_PROC: Final = -5
EVFILT_SIGNAL: Final = -6
EVFILT_TIMER: Final = -7
EVFILT_EXCEPT: Final = -8
EVFILT_USER: Final = -9
EVFILT_FS: Final = -10
EVFILT_SYSCOUNT: Final = 10

# Actions and flags of a kevent.
EV_ADD: Final = 0x0001
EV_DELETE: Final = 0x0002
EV_ENABLE: Final = 0x0004
EV_DISABLE: Final = 0x0008
EV_ONESHOT: Final = 0x0010
EV_CLEAR: Final = 0x0020
EV_RECEIPT: Final = 0x0040
EV_DISPATCH: Final = 0x0080
EV_HUP: Final = 0x0800
EV_NODATA: Final = 0x1000
EV_FLAG1: Final = 0x2000
EV_ERROR: Final = 0x4000
EV_EOF: Final = 0x8000
EV_SYSFLAGS: Final = 0xF800

# Hints: EVFILT_READ, WRITE and EXCEPT.
NOTE_LOWAT: Final = 0x0001
NOTE_OOB: Final = 0x0002

# Hints: EVFILT_VNODE.
NOTE_DELETE: Final = 0x0001
NOTE_WRITE: Final = 0x0002
NOTE_EXTEND: Final = 0x0004
NOTE_ATTRIB: Final = 0x0008
NOTE_LINK: Final = 0x0010
NOTE_RENAME: Final = 0x0020
NOTE_REVOKE: Final = 0x0040

# Hints: EVFILT_PROC.
NOTE_EXIT: Final = 0x8000_0000
NOTE_FORK: Final = 0x4000_0000
NOTE_EXEC: Final = 0x2000_0000
NOTE_PCTRLMASK: Final = 0xF000_0000
NOTE_PDATAMASK: Final = 0x000F_FFFF
NOTE_TRACK: Final = 0x0000_0001
NOTE_TRACKERR: Final = 0x0000_0002
NOTE_CHILD: Final = 0x0000_0004

# Hints: EVFILT_USER.
NOTE_FFNOP: Final = 0x0000_0000
NOTE_FFAND: Final = 0x4000_0000
NOTE_FFOR: Final = 0x8000_0000
NOTE_FFCOPY: Final = 0xC000_0000
NOTE_FFCTRLMASK: Final = 0xC000_0000
NOTE_FFLAGSMASK: Final = 0x00FF_FFFF
NOTE_TRIGGER: Final = 0x0100_0000

# Markers inside the kernel.
NOTE_SIGNAL: Final = 0x0800_0000
NOTE_OLDAPI: Final = 0x0400_0000

KLIST_MAX: Final = 65_536
"""Most knotes on one list."""


class Kevent(NamedTuple):
    """What a watcher asks for and what he is told.

    Counterpart: struct kevent (sys/event.h).
    """

    ident: int
    filter: int
    flags: int = 0
    fflags: int = 0
    data: int = 0
    udata: int = 0


@runtime_checkable
class Knote(Protocol):
    """What can hang on a `Klist`.

    Counterpart: struct knote with its filterops (sys/event.h).
    """

    @property
    def filter(self) -> int:
        """EVFILT_*: what kind of event is waited for; an object may have only some kinds."""
        ...

    def event(self, hint: int) -> bool:
        """Whether a change is an event for this watcher. Never suspends.

        Args:
            hint: NOTE_* bits, or 0 when the caller says only "something changed".
        """
        ...

    def activate(self) -> None:
        """Queue the note for its watcher. Never suspends; may attach and detach."""
        ...


class HookKnote:
    """A knote for watchers inside the kernel: a callback and the hints it wants.

    The hints seen since the last `take` are collected in `fflags`, so a watcher that
    looks late still learns everything that happened.
    """

    __slots__ = ("_callback", "fflags", "filter", "mask")

    def __init__(
        self,
        mask: int,
        callback: Callable[[HookKnote], object],
        filter: int = EVFILT_VNODE,  # noqa: A002 - DragonFly's kn_filter
    ) -> None:
        """Watch for the hints in mask; the callback must not suspend."""
        self.filter = filter
        self.mask = mask
        self.fflags = 0
        self._callback = callback

    def event(self, hint: int) -> bool:
        """Collect the hints that are asked for; True if there was one."""
        self.fflags |= hint & self.mask
        return bool(hint & self.mask)

    def activate(self) -> None:
        """Call back."""
        self._callback(self)

    def take(self) -> int:
        """Give the hints collected since the last call and forget them."""
        fflags, self.fflags = self.fflags, 0
        return fflags


class Klist:
    """The watchers of one object. Empty lists are cheap and false: ``if klist: ...``.

    Counterpart: struct klist (sys/event.h).
    """

    __slots__ = ("_limit", "_notes")

    def __init__(self, limit: int = KLIST_MAX) -> None:
        """Make an empty list for at most `limit` knotes."""
        self._notes: dict[int, Knote] | None = None
        self._limit = limit

    def insert(self, kn: Knote) -> None:
        """Hang a knote on the list.

        Counterpart: knote_insert.

        Raises:
            KError: EEXIST, it hangs here already; ENOMEM, the list is full.
        """
        notes = self._notes
        if notes is None:
            notes = self._notes = {}
        if id(kn) in notes:
            raise KError(EEXIST, "knote is on this list already")
        if len(notes) >= self._limit:
            raise KError(ENOMEM, "too many knotes on one object")
        notes[id(kn)] = kn

    def remove(self, kn: Knote) -> bool:
        """Take a knote off; False if it was not here.

        Counterpart: knote_remove.
        """
        notes = self._notes
        if notes is None or notes.pop(id(kn), None) is None:
            return False
        if not notes:
            self._notes = None
        return True

    def knote(self, hint: int) -> int:
        """Tell every watcher that the object has changed.

        Counterpart: KNOTE, knote.

        Args:
            hint: NOTE_* bits that say what happened, or 0.

        Returns:
            How many knotes were activated.
        """
        if self._notes is None:
            return 0
        activated = 0
        for key, kn in tuple(self._notes.items()):
            if not self._holds(key, kn):
                continue
            if kn.event(hint):
                activated += 1
                kn.activate()
        return activated

    def clear(self) -> list[Knote]:
        """Take all knotes off, for an object that goes away, and return them."""
        notes, self._notes = self._notes, None
        return list(notes.values()) if notes is not None else []

    def _holds(self, key: int, kn: Knote) -> bool:
        """Whether a knote is (still) on the list."""
        return self._notes is not None and self._notes.get(key) is kn

    def __len__(self) -> int:
        return len(self._notes) if self._notes is not None else 0

    def __bool__(self) -> bool:
        return self._notes is not None

    def __iter__(self) -> Iterator[Knote]:
        return iter(tuple(self._notes.values()) if self._notes is not None else ())
