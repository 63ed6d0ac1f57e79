"""Time: two readings and alarms, real or virtual.

The kernel asks the host for three things only: how many nanoseconds have passed
(monotonic), what the calendar says (realtime), and to be interrupted at a deadline. All
else - ticks, callouts, timeouts, process times - is built on these by the rooms above. So
one small interface decides whether a kernel lives in real time or in a test that moves
time by hand:

``HostClock``
    Monotonic time is trio's clock, so a test under pytest-trio's MockClock drives it too.
    One task, ``run``, is the timer chip: it sleeps inside one cancel scope whose deadline
    ``Alarm.arm`` moves, and calls the functions that are due.
``VirtualClock``
    Time stands still until ``advance`` is called; it walks from deadline to deadline.

Rules both keep:

- An alarm is one shot. ``arm`` on an armed alarm replaces its deadline; ``cancel`` on an
  idle one does nothing.
- Alarms fire in the order of their deadlines, equal deadlines in the order of ``arm``.
- When ``fn`` runs, ``monotonic_ns()`` is at or past the deadline and the alarm is idle, so
  ``fn`` may arm it again. A deadline in the past is legal and fires at the next chance,
  never inside ``arm``.
- ``fn`` is called from the host's loop, as an interrupt: it must not wait.
- An exception from ``fn`` is handed to ``on_error``; without one it leaves ``run`` or
  ``advance``, with the remaining alarms still armed. A Panic always leaves.

Counterpart: kern/kern_cputimer.c, kern_systimer.c and kern_clock.c, hardware side: the
    free-running cputimer and the interrupt cputimer (struct cputimer, struct cputimer_intr).
Differs from DragonFly: one timer queue for the machine, not one per CPU, because all
    logical CPUs share one host thread; nanoseconds instead of ``sysclock_t`` ticks.
Token/lock order: takes none; everything runs on the kernel's host thread.
Invariants: an armed alarm has exactly one live entry in the heap (``alarm._entry``); every
    other entry is dead and dropped when met or when the dead outnumber the living.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

import trio

from dfuser.libkern.errno import KKASSERT

NSEC: Final = 1_000_000_000

ErrorHandler = Callable[["Alarm", Exception], None]

#: Linux's number of the clock its file systems stamp with (linux/time.h); Python does not name it.
CLOCK_REALTIME_COARSE: Final = 5


class Alarm(Protocol):
    """One deadline that can be set and moved."""

    @property
    def deadline_ns(self) -> int | None:
        """The monotonic time it is armed for, None when idle."""

    def arm(self, deadline_ns: int) -> None:
        """Fire once when monotonic time reaches deadline_ns; replaces an earlier deadline."""

    def cancel(self) -> None:
        """Forget the deadline; does nothing when idle."""


class Clock(Protocol):
    """What the kernel knows of time. Nothing here waits."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since some fixed moment; never goes back."""

    def realtime_ns(self) -> int:
        """Nanoseconds since 1970-01-01 00:00 UTC; may step."""

    def filetime_ns(self) -> int:
        """Calendar time as the host's kernel stamps files with it: in its ticks, never ahead.

        FUSE brings times the host has taken itself (touch, utimes). Stamps of ours must be from
        the same clock, or a file touched later could look older.
        """

    def alarm(self, fn: Callable[[], None]) -> Alarm:
        """Make an idle alarm that will call fn as an interrupt."""

    def statistics(self) -> ClockStatistics:
        """Count what the alarms of this clock did."""


class ClockStatistics(NamedTuple):
    """What the alarms of one clock did.

    Attributes:
        armed: alarms that wait for their deadline now.
        fired: functions called so far.
        rearmed: ``arm`` calls that replaced a pending deadline.
        cancelled: ``cancel`` calls that stopped a pending deadline.
        errors: functions that raised.
    """

    armed: int
    fired: int
    rearmed: int
    cancelled: int
    errors: int


class _Entry:
    """One place in the heap; ``alarm`` is None once it is dead."""

    __slots__ = ("alarm", "deadline", "seq")

    def __init__(self, deadline: int, seq: int, alarm: QueueAlarm) -> None:
        self.deadline = deadline
        self.seq = seq
        self.alarm: QueueAlarm | None = alarm

    def __lt__(self, other: _Entry) -> bool:
        if self.deadline != other.deadline:
            return self.deadline < other.deadline
        return self.seq < other.seq


class QueueAlarm:
    """The Alarm of both clocks. Counterpart: struct systimer (sys/systimer.h), one shot."""

    __slots__ = ("_entry", "_queue", "fn")

    def __init__(self, queue: AlarmQueue, fn: Callable[[], None]) -> None:
        self._queue = queue
        self._entry: _Entry | None = None
        self.fn = fn

    @property
    def deadline_ns(self) -> int | None:
        """The monotonic time it is armed for, None when idle."""
        entry = self._entry
        return None if entry is None else entry.deadline

    def arm(self, deadline_ns: int) -> None:
        """Fire once when monotonic time reaches deadline_ns; replaces an earlier deadline."""
        queue = self._queue
        if self._entry is not None:
            queue.rearmed += 1
            queue.forget(self)
        queue.enter(self, deadline_ns)

    def cancel(self) -> None:
        """Forget the deadline; does nothing when idle."""
        if self._entry is not None:
            self._queue.cancelled += 1
            self._queue.forget(self)
            self._queue.moved()


class AlarmQueue:
    """The alarms of one clock in the order in which they fire.

    The two clocks are subclasses: they say what time it is and when to look.
    """

    def __init__(self, on_error: ErrorHandler | None) -> None:
        self._heap: list[_Entry] = []
        self._dead = 0
        self._seq = 0
        self._on_error = on_error
        self.fired = 0
        self.rearmed = 0
        self.cancelled = 0
        self.errors = 0

    def alarm(self, fn: Callable[[], None]) -> Alarm:
        """Make an idle alarm that will call fn as an interrupt."""
        return QueueAlarm(self, fn)

    def next_deadline(self) -> int | None:
        """The earliest armed deadline, None when no alarm is armed."""
        heap = self._heap
        while heap and heap[0].alarm is None:
            heapq.heappop(heap)
            self._dead -= 1
        return heap[0].deadline if heap else None

    def statistics(self) -> ClockStatistics:
        """Count what the alarms of this clock did."""
        return ClockStatistics(
            armed=len(self._heap) - self._dead,
            fired=self.fired,
            rearmed=self.rearmed,
            cancelled=self.cancelled,
            errors=self.errors,
        )

    def enter(self, alarm: QueueAlarm, deadline_ns: int) -> None:
        """Put an idle alarm in its place (for QueueAlarm)."""
        self._seq += 1
        entry = _Entry(deadline_ns, self._seq, alarm)
        alarm._entry = entry
        heapq.heappush(self._heap, entry)
        self.moved()

    def forget(self, alarm: QueueAlarm) -> None:
        """Take an armed alarm out (for QueueAlarm)."""
        entry = alarm._entry
        KKASSERT(entry is not None and entry.alarm is alarm, "alarm without an entry")
        assert entry is not None
        entry.alarm = None
        alarm._entry = None
        self._dead += 1
        if self._dead > 32 and self._dead * 2 > len(self._heap):
            self._heap = [e for e in self._heap if e.alarm is not None]
            heapq.heapify(self._heap)
            self._dead = 0

    def moved(self) -> None:
        """The earliest deadline may have changed; a subclass that sleeps looks again."""

    def _fire_next(self) -> None:
        """Call the function of the earliest alarm, which must be armed and due."""
        entry = heapq.heappop(self._heap)
        alarm = entry.alarm
        assert alarm is not None
        entry.alarm = None
        alarm._entry = None
        self.fired += 1
        try:
            alarm.fn()
        except Exception as error:
            self.errors += 1
            if self._on_error is None:
                raise
            self._on_error(alarm, error)


class VirtualClock(AlarmQueue):
    """Time that moves only by ``advance``. The fake twin of HostClock.

    Args:
        base_ns: what the calendar says at monotonic time 0 (default 2020-07-01 00:00 UTC).
        on_error: takes exceptions of alarm functions; without one they leave ``advance``.
    """

    def __init__(
        self, base_ns: int = 1_593_561_600 * NSEC, on_error: ErrorHandler | None = None
    ) -> None:
        super().__init__(on_error)
        self._now = 0
        self._base = base_ns

    def monotonic_ns(self) -> int:
        """Nanoseconds advanced so far."""
        return self._now

    def realtime_ns(self) -> int:
        """The base plus monotonic time, plus the steps made."""
        return self._base + self._now

    filetime_ns = realtime_ns

    def step(self, delta_ns: int) -> None:
        """Step the calendar forth or back, as an administrator or NTP does to a host."""
        self._base += delta_ns

    def advance(self, ns: int) -> int:
        """Let time pass and fire what becomes due on the way.

        Each function sees the time of its own deadline. Alarms that a function arms
        inside the span fire in the same call.

        Args:
            ns: nanoseconds, 0 or more; 0 fires only what is due already.

        Returns:
            The number of functions called.
        """
        KKASSERT(ns >= 0, "time does not go back")
        target = self._now + ns
        before = self.fired
        while (deadline := self.next_deadline()) is not None and deadline <= target:
            if deadline > self._now:
                self._now = deadline
            self._fire_next()
        if target > self._now:
            self._now = target
        return self.fired - before


class HostClock(AlarmQueue):
    """The clock of the host, for a kernel that runs under one ``trio.run``.

    Monotonic readings are possible anywhere inside that trio run; alarms fire only while
    ``run`` is running as a task.

    Args:
        on_error: takes exceptions of alarm functions; without one they leave ``run``.
    """

    def __init__(self, on_error: ErrorHandler | None = None) -> None:
        super().__init__(on_error)
        self._read: Callable[[], float] = self._bind
        self._floor = 0
        self._scope: trio.CancelScope | None = None

    def _bind(self) -> float:
        """First reading: remember the clock of this trio run, which saves a lookup later."""
        self._read = trio.lowlevel.current_clock().current_time
        return self._read()

    def monotonic_ns(self) -> int:
        """Trio's time in nanoseconds; only differences mean something.

        Raises:
            RuntimeError: the first reading was tried outside of trio.
        """
        now = round(self._read() * 1e9)
        floor = self._floor
        return now if now > floor else floor

    def realtime_ns(self) -> int:
        """The host's calendar time."""
        return time.time_ns()

    def filetime_ns(self) -> int:
        """The host's coarse calendar time, a few milliseconds behind at most."""
        return time.clock_gettime_ns(CLOCK_REALTIME_COARSE)

    def moved(self) -> None:
        """Move the wake-up time of the pump to the earliest deadline."""
        scope = self._scope
        if scope is not None:
            scope.deadline = self._wakeup_time()

    def _wakeup_time(self) -> float:
        deadline = self.next_deadline()
        return math.inf if deadline is None else deadline / 1e9

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fire alarms until cancelled. At most one such task a clock.

        Functions that are due together are called back to back; one that arms itself in
        the past is called again only after the other tasks of the loop had a turn.
        """
        KKASSERT(self._scope is None, "the clock's pump runs twice")
        self._bind()
        try:
            with trio.CancelScope(deadline=self._wakeup_time()) as self._scope:
                task_status.started()
                await trio.sleep_forever()
            while True:
                self._fire_due()
                with trio.CancelScope(deadline=self._wakeup_time()) as self._scope:
                    await trio.sleep_forever()
        finally:
            self._scope = None

    def _fire_due(self) -> None:
        """Fire what is due and was armed before this pass began."""
        seen = self._seq
        while (deadline := self.next_deadline()) is not None:
            # Compared as trio compares, in float seconds: a deadline that woke us is due
            # even where its nanoseconds do not survive the round trip through a float.
            if deadline / 1e9 > self._read() or self._heap[0].seq > seen:
                break
            if deadline > self._floor:
                self._floor = deadline
            self._fire_next()
