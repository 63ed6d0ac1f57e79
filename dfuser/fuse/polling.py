"""poll(2), select(2) and epoll(7) of the host on our files.

The host asks once whether a file is ready and leaves a handle; we notify the handle when the file's
events fire, and the host asks again. Ordinary files are always ready.

Counterpart: sys_poll over kqueue filters (sys/kern/sys_generic.c).
Invariants: at most one handle an open file; a handle is notified at most once.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from dfuser.libkern.errno import KError
from dfuser.libkern.klist import EVFILT_READ

if TYPE_CHECKING:
    from dfuser.vfs.file import File
    from dfuser.vfs.vnode import Vnode

#: What a file is asked for. Counterpart: DEFAULT_POLLMASK (linux/poll.h).
ALL_EVENTS: Final = select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM


class PollHandle(Protocol):
    """What the host left with its question."""

    def notify(self) -> None:
        """Tell the host to ask again. Raises OSError when it does not take it."""


class PollStatistics(NamedTuple):
    """What `PollTable.statistics` returns."""

    waiting: int
    asked: int
    notified: int
    refused: int


class PollKnote:
    """The note a poll hangs on a file: any event makes the host ask again."""

    __slots__ = ("filter", "handle", "table", "vp")

    def __init__(self, table: PollTable, vp: Vnode, handle: PollHandle) -> None:
        self.filter = EVFILT_READ
        self.table = table
        self.vp = vp
        #: None once it was notified.
        self.handle: PollHandle | None = handle

    def event(self, hint: int) -> bool:
        """Every event is worth a look."""
        return self.handle is not None

    def activate(self) -> None:
        """Notify the host."""
        handle, self.handle = self.handle, None
        if handle is None:
            return
        try:
            handle.notify()
        except OSError:
            self.table.refused += 1
        else:
            self.table.notified += 1

    def detach(self) -> None:
        """Take the note off the file."""
        if self.vp.klist is not None:
            self.vp.klist.remove(self)


class PollTable:
    """The poll handles that wait for an event."""

    def __init__(self) -> None:
        self._waiting: dict[int, PollKnote] = {}
        self.asked = 0
        self.notified = 0
        self.refused = 0

    def poll(self, fh: int, file: File, handle: PollHandle | None) -> int:
        """The ready events of ``file``; ``handle`` (or None) waits for the others."""
        self.asked += 1
        vp = file.vp
        ready = vp.ops.use.vop_poll(vp, ALL_EVENTS, file.cred, file.fdata)
        if handle is not None and not ready & (select.POLLIN | select.POLLRDNORM):
            self._wait(fh, vp, handle)
        return ready

    def _wait(self, fh: int, vp: Vnode, handle: PollHandle) -> None:
        note = self._waiting.get(fh)
        if note is not None:
            note.handle = handle
            return
        note = PollKnote(self, vp, handle)
        try:
            vp.ops.use.vop_kqfilter(vp, note)
        except KError:
            return
        self._waiting[fh] = note

    def closed(self, fh: int) -> None:
        """The open file is gone, and with it its handle."""
        note = self._waiting.pop(fh, None)
        if note is not None:
            note.detach()

    def statistics(self) -> PollStatistics:
        """Counters since boot."""
        return PollStatistics(len(self._waiting), self.asked, self.notified, self.refused)
