"""Work that leaves the kernel's thread and comes back as an interrupt.

Some calls of the host wait for hardware (fdatasync) and would stop the kernel for milliseconds.
They are handed to an executor: it calls ``work()`` elsewhere, and when that is over it calls
``done(error)`` from the host's loop, as an interrupt. The work touches nothing of the kernel but
what it was given; the data it is given belongs to it until ``done``.

``InlineExecutor``
    There and back at once: for tools without a kernel, and for tests that want no threads.
``ThreadExecutor``
    Host threads, at most ``limit`` at once; more work waits in order. ``run`` must be running as
    a task.
``HeldExecutor``
    Work waits until a test lets it go, in any order: the fake twin.

Counterpart: none; DragonFly's drivers talk to hardware that works by itself.
Token/lock order: takes none.
Invariants: ``done`` is called once for each accepted work, never inside ``execute`` except by
    `InlineExecutor`; work that raised anything but OSError ends the pump with that exception.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol, TypeAlias

import trio

from dfuser.libkern.errno import KKASSERT

#: What is to be done elsewhere; its OSError, or None, is handed to `Done`.
Work: TypeAlias = "Callable[[], OSError | None]"
Done: TypeAlias = "Callable[[OSError | None], object]"

#: Threads an executor uses at most: the depth of queue a disk of today likes.
THREADS_MAX: Final = 16


class ExecutorStatistics(NamedTuple):
    """What an executor did.

    Attributes:
        running: works under way now. running_max: the most there were.
        queued: works waiting for a thread. queued_max: the most there were.
        executed: works done.
    """

    running: int
    running_max: int
    queued: int
    queued_max: int
    executed: int


class Executor(Protocol):
    """Who does the work."""

    def execute(self, work: Work, done: Done) -> None:
        """Call ``work`` elsewhere, then ``done`` with what it returned. Never waits."""

    def statistics(self) -> ExecutorStatistics:
        """What it did."""


class InlineExecutor:
    """Does the work at once."""

    __slots__ = ("executed",)

    def __init__(self) -> None:
        self.executed = 0

    def execute(self, work: Work, done: Done) -> None:
        """Call ``work`` and ``done``."""
        error = work()
        self.executed += 1
        done(error)

    def statistics(self) -> ExecutorStatistics:
        """Only ``executed`` ever differs from 0."""
        return ExecutorStatistics(0, 0, 0, 0, self.executed)


class HeldExecutor:
    """Keeps the work until `release` lets it go: a disk whose slowness a test decides.

    Attributes:
        held: works with their completions, oldest first.
    """

    __slots__ = ("executed", "held", "held_max")

    def __init__(self) -> None:
        self.held: deque[tuple[Work, Done]] = deque()
        self.held_max = 0
        self.executed = 0

    def execute(self, work: Work, done: Done) -> None:
        """Keep it."""
        self.held.append((work, done))
        self.held_max = max(self.held_max, len(self.held))

    def release(self, index: int = 0) -> None:
        """Do one of the works held.

        Raises:
            IndexError: there is no such work.
        """
        work, done = self.held[index]
        del self.held[index]
        error = work()
        self.executed += 1
        done(error)

    def release_all(self) -> int:
        """Do all works, oldest first, those that appear meanwhile too; returns how many."""
        count = 0
        while self.held:
            self.release()
            count += 1
        return count

    def statistics(self) -> ExecutorStatistics:
        """Held works count as queued."""
        return ExecutorStatistics(0, 0, len(self.held), self.held_max, self.executed)


class ThreadExecutor:
    """Host threads that do the waiting.

    Args:
        limit: threads at once.
    """

    def __init__(self, limit: int = THREADS_MAX) -> None:
        KKASSERT(limit > 0, "an executor without threads")
        self.limit = limit
        self.executed = 0
        self.running = 0
        self.running_max = 0
        self.queued_max = 0
        self._queue: deque[tuple[Work, Done]] = deque()
        self._nursery: trio.Nursery | None = None
        self._idle = trio.Event()

    def execute(self, work: Work, done: Done) -> None:
        """Give ``work`` to a thread, or queue it. Must be called from the host's loop."""
        nursery = self._nursery
        if nursery is None or self.running >= self.limit:
            self._queue.append((work, done))
            self.queued_max = max(self.queued_max, len(self._queue))
            return
        self._spawn(nursery, work, done)

    def _spawn(self, nursery: trio.Nursery, work: Work, done: Done) -> None:
        self.running += 1
        self.running_max = max(self.running_max, self.running)
        nursery.start_soon(self._carry_out, nursery, work, done)

    async def _carry_out(self, nursery: trio.Nursery, work: Work, done: Done) -> None:
        """One task: a thread for the work, then the interrupt, then the next work."""
        queue = self._queue
        try:
            while True:
                with trio.CancelScope(shield=True):
                    error = await trio.to_thread.run_sync(work)
                self.executed += 1
                done(error)
                if not queue:
                    return
                work, done = queue.popleft()
        finally:
            self.running -= 1
            if not self.running:
                self._idle.set()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; what was accepted is finished first. At most one such task."""
        KKASSERT(self._nursery is None, "the executor's pump runs twice")
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                while self._queue and self.running < self.limit:
                    self._spawn(nursery, *self._queue.popleft())
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    async def drain(self) -> None:
        """Wait until no work is under way. For an orderly end, from outside of the kernel."""
        while self.running or self._queue:
            self._idle = trio.Event()
            await self._idle.wait()

    def statistics(self) -> ExecutorStatistics:
        """What it did."""
        return ExecutorStatistics(
            self.running, self.running_max, len(self._queue), self.queued_max, self.executed
        )
