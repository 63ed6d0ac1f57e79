"""Who reads requests: one pyfuse3 worker, and a further one for each request that waits.

pyfuse3's ``main`` starts a second worker with the first request, because it cannot know which
handler will suspend; from then on every request hands a lock from one task to the other, a fifth of
its whole cost. Here it is known: a handler runs to completion unless it says `waits` first. So
there is one reader. When its request must wait, a new worker takes over the reading before it
suspends; when there are two readers again, one of them ends.

The loop itself is pyfuse3's own (``_session_loop``), told never to start workers by itself.

Counterpart: none.
Invariants: while the session lives and no handler runs, at least one worker reads; a worker that
ends and leaves no reader means that the session has ended.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final, NamedTuple

import pyfuse3
import trio

from dfuser.libkern.sysctl import Sysctl

#: pyfuse3's limit of workers it starts by itself; its own count may go below zero here.
_NEVER: Final = -(1 << 30)


class WorkerStatistics(NamedTuple):
    """What `Workers.statistics` returns."""

    readers: int
    started: int


class Workers:
    """The session loops of one connection.

    Args:
        on_end: called when the session is over, to end the requests that still wait; may be called
            more than once.
    """

    sysctl_started = Sysctl("vfs.fuse.workers_started", "session loops started", attr="started")

    def __init__(self, on_end: Callable[[], None]) -> None:
        self.on_end = on_end
        self.readers = 0
        self.started = 0
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Serve until the session is over and every request has been answered."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._start()
        self._nursery = None

    def _start(self) -> None:
        assert self._nursery is not None
        self.readers += 1
        self.started += 1
        self._nursery.start_soon(self._work, name="fuse-worker")

    async def _work(self) -> None:
        try:
            await pyfuse3._session_loop(self._nursery, 0, _NEVER)  # type: ignore[attr-defined]
        except OSError as error:
            # Unmounted lazily under load, the connection may be gone before libfuse reads of it.
            if error.errno not in (errno.ECONNABORTED, errno.ENODEV):
                raise
        finally:
            self.readers -= 1
            if not self.readers:
                self.on_end()

    def waits(self) -> None:
        """The handler of a request is about to suspend: somebody else must read."""
        self.readers -= 1
        if not self.readers:
            self._start()

    def resumed(self) -> None:
        """The handler goes on; its worker will read again."""
        self.readers += 1

    def statistics(self) -> WorkerStatistics:
        """Counters since the session began."""
        return WorkerStatistics(self.readers, self.started)
