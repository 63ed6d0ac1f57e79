"""Tracing of requests: counted and timed by opcode, and decoded, while somebody asks for it.

The loop on a device calls `FuseTrace` at five moments, and only ``if trace.level:``, so that a
trace that is off costs one comparison::

    begin      a request was read                end        the kernel took its reply
    no_reply   one that has none is done         notified   a notification was written
    aborted    the connection is gone

Level 1 counts and times by opcode. Level 2 also keeps a line of each request with its reply. Lines
are kept as bytes, the few that matter of each message, and decoded by `wire.show` only when
somebody reads them: the request pays for two copies, not for the words, and a line that nobody
reads is never decoded.

The level in force is the higher of the variable ``vfs.fuse.trace`` and of what the open taps want
(`boot.tracing`). A tap has a filter, its own place in the ring and its own histogram, so two
readers do not disturb each other; what no tap and no variable wants is not kept.

Latency is the time from `begin` to `end`: from the moment the request was read to the moment the
kernel had taken the reply. How long it lay in the kernel's queue before is not in it.

Counterpart: none; ktrace(2) for the idea, strace(1) for the looks, linux/fuse.h for the bytes.
Differs from DragonFly: an addition.
Token/lock order: takes none. `notified` may be called by a thread of the host that is not the
    kernel's (the notifier's); it only appends to a queue of its own. Everything else is the
    kernel's thread's.
Invariants: the five calls never raise, whatever the bytes are; open requests, lines and taps are
bounded, and what did not fit is counted; nothing of a caller's buffer is kept.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

from dfuser.boot.tracing import COUNT, DECODE, OFF, Tracer, Want
from dfuser.libkern.errno import EAGAIN, EINVAL, KError
from dfuser.libkern.latency import Latency, LatencyRow
from dfuser.libkern.sysctl import INT, LONG, RW, Sysctl

from .tracetap import OPS, OTHER, FuseTap, Line, OpenRequest, rows_of
from .wire.const import FUSE_UNIQUE_RESEND, IN_HEADER_SIZE
from .wire.inputs import IN_HEADER
from .wire.layout import Data
from .wire.outputs import OUT_HEADER
from .wire.show import REPLY_KEEP, gather, reply_keep, request_keep

#: Lines that are kept, and requests that are followed at a time.
LINES: Final = 4096
OPEN: Final = 8192
#: Milliseconds after which a request counts as waiting.
SLOW: Final = 100
TAPS_MAX: Final = 16
#: Notifications that wait to become lines.
NOTIFIED: Final = 1024

_HEAD: Final = IN_HEADER_SIZE
_UNIQUE: Final = FUSE_UNIQUE_RESEND - 1
_unpack: Final = IN_HEADER.struct.unpack_from
_unpack_out: Final = OUT_HEADER.struct.unpack_from


class FuseTraceStatistics(NamedTuple):
    """What `FuseTrace.statistics` returns.

    Attributes:
        level: in force now.
        taps: readers.
        open: requests that are followed now.
        begun: requests that were read.
        ended: requests that are done.
        notified: notifications that were written.
        abandoned: requests whose connection ended first, or that were followed no longer.
        unmatched: replies to requests that were not followed.
        untracked: requests that were not followed because too many were open.
        malformed: what was read and is no request.
        overrun: notifications that came too fast to be counted.
        lines: lines that were kept, ever.
        dropped: lines that made room for newer ones.
        failures: bugs met here; each cost one line.
    """

    level: int
    taps: int
    open: int
    begun: int
    ended: int
    notified: int
    abandoned: int
    unmatched: int
    untracked: int
    malformed: int
    overrun: int
    lines: int
    dropped: int
    failures: int


class FuseTrace(Tracer):
    """The trace of all connections of one session.

    Args:
        monotonic_ns: the clock that latencies are taken from.
        realtime_ns: the clock that lines show; without it they count from the other's beginning.
        report: called with a place and a traceback at the first bug met here.
    """

    layer = "fuse"
    sysctls = (
        Sysctl("vfs.fuse.trace", "0: off, 1: count and time requests, 2: keep decoded lines too",
               attr="level", setter="set_level", kind=INT, flags=RW, minimum=OFF, maximum=DECODE),
        Sysctl("vfs.fuse.trace_lines", "Lines that are kept", attr="lines", setter="set_lines",
               kind=INT, flags=RW, minimum=1, maximum=1 << 20),
        Sysctl("vfs.fuse.trace_open", "Most open requests that are followed", attr="open_limit",
               kind=INT, flags=RW, minimum=1, maximum=1 << 20),
        Sysctl("vfs.fuse.trace_slow", "Milliseconds after which an open request is shown as "
               "begun to who asks for it", attr="slow", kind=INT, flags=RW, minimum=0),
        Sysctl("vfs.fuse.trace_clear", "Write 1 to forget lines and counters",
               getter=lambda _: 0, setter="sysctl_clear", kind=INT, flags=RW, minimum=0,
               maximum=1),
        Sysctl("vfs.fuse.trace_taps", "Readers of the trace", getter="count_taps", kind=INT),
        Sysctl("vfs.fuse.trace_dropped", "Lines that made room for newer ones", attr="dropped",
               kind=LONG),
    )  # fmt: skip

    def __init__(
        self,
        monotonic_ns: Callable[[], int],
        realtime_ns: Callable[[], int] | None = None,
        report: Callable[[str, str], None] | None = None,
    ) -> None:
        #: In force now. The loop on a device looks at it before each call.
        self.level = OFF
        #: Notifications that came too fast to be counted.
        self.overrun = 0
        #: Whether the transport calls us at all; the stock one cannot.
        self.fed = True
        self.lines = LINES
        self.open_limit = OPEN
        self.slow = SLOW
        self.seq = 0
        self.dropped = 0
        self.begun = self.ended = self.notifications = self.abandoned = 0
        self.unmatched = self.untracked = self.malformed = self.failures = 0
        self._now = monotonic_ns
        self._realtime = realtime_ns or monotonic_ns
        self._report = report
        self._base = OFF
        self._ring: deque[Line] = deque(maxlen=LINES)
        self._open: dict[str, dict[int, OpenRequest]] = {}
        self._open_count = 0
        #: Notifications that are not in the ring yet: place, time, size, bytes.
        self._told: deque[tuple[str, int, int, bytes]] = deque(maxlen=NOTIFIED)
        #: Requests that have a line for being waited for.
        self._waiting: set[tuple[str, int]] = set()
        self._table: dict[int, Latency] = {}
        self._taps: dict[str, FuseTap] = {}
        self._listeners: list[Callable[[], None]] = []

    # --- what the loop on a device calls -----------------------------------------------------

    def begin(self, connection: str, data: Data, size: int) -> None:
        """A request of `size` bytes was read; `data` may be longer and is used again afterwards."""
        try:
            now = self._now()
            if size < _HEAD or len(data) < _HEAD:
                self._malformed(connection, data, size, now)
                return
            _length, opcode, unique, nodeid, uid, gid, pid, _ext = _unpack(data)
            self.begun += 1
            request = b""
            if self.level >= DECODE and self._wanted(connection, opcode, pid):
                request = bytes(data[: request_keep(opcode, size)])
            requests = self._open.get(connection)
            if requests is None:
                requests = self._open[connection] = {}
            unique &= _UNIQUE
            if unique in requests:
                self._forget(requests, connection, unique)
            elif self._open_count >= self.open_limit:
                self.untracked += 1
                return
            requests[unique] = OpenRequest(now, opcode, nodeid, uid, gid, pid, size, request)
            self._open_count += 1
        except Exception:
            self._bug("begin")

    def end(self, connection: str, unique: int, error: int, buffers: Sequence[Data]) -> None:
        """The kernel took the reply to a request: `error` is 0 or a positive Linux errno."""
        try:
            opened = self._take(connection, unique)
            if opened is not None:
                keep = _HEAD if error else reply_keep(opened.opcode)
                reply = gather(buffers, keep) if opened.request else b""
                self._done(connection, unique, opened, error, reply)
        except Exception:
            self._bug("end")

    def no_reply(self, connection: str, unique: int) -> None:
        """A request that gets no reply is done."""
        try:
            opened = self._take(connection, unique)
            if opened is not None:
                self._done(connection, unique, opened, 0, None)
        except Exception:
            self._bug("no_reply")

    def notified(self, connection: str, message: Sequence[Data]) -> None:
        """A notification was written to the kernel, in one buffer or several.

        May be called by another thread of the host. It becomes a line at the next moment that one
        is kept or read.
        """
        try:
            data = gather(message, REPLY_KEEP) if self.level >= DECODE else b""
            if len(self._told) == self._told.maxlen:
                self.overrun += 1
            self._told.append((connection, self._now(), sum(map(len, message)), data))
        except Exception:
            self.failures += 1

    def aborted(self, connection: str) -> None:
        """A connection ended: forget what is open on it."""
        try:
            requests = self._open.pop(connection, None) or {}
            self._open_count -= len(requests)
            self.abandoned += len(requests)
            self._waiting = {key for key in self._waiting if key[0] != connection}
            if self.level >= DECODE:
                self._append("ended", connection, 0, OTHER, 0, 0,
                             _bare(self._now(), len(requests)), None)  # fmt: skip
        except Exception:
            self._bug("aborted")

    def settle_notifications(self) -> None:
        """Count the notifications that were written since, and make lines of them."""
        while self._told:
            connection, now, size, data = self._told.popleft()
            self.notifications += 1
            op = -_unpack_out(data)[1] if len(data) >= OUT_HEADER.size else OTHER
            if data and self._wanted(connection, op, -1):
                self._put("notify", connection, 0, op, 0, 0, _bare(now, size), data)

    # --- what they are made of ---------------------------------------------------------------

    def _wanted(self, connection: str, op: int, pid: int) -> bool:
        """Whether somebody wants the line of a message."""
        if self._base >= DECODE:
            return True
        for tap in self._taps.values():
            if tap.level >= DECODE and tap.wants(connection, op, pid):
                return True
        return False

    def _take(self, connection: str, unique: int) -> OpenRequest | None:
        """The open request of a number, which is open no longer."""
        requests = self._open.get(connection)
        opened = requests.pop(unique & _UNIQUE, None) if requests is not None else None
        if opened is None:
            self.unmatched += 1
            return None
        self._open_count -= 1
        if self._waiting:
            self._waiting.discard((connection, unique & _UNIQUE))
        return opened

    def _forget(self, requests: dict[int, OpenRequest], connection: str, unique: int) -> None:
        """A number is used again: the kernel sent the request a second time."""
        del requests[unique]
        self._open_count -= 1
        self.abandoned += 1
        self._waiting.discard((connection, unique))

    def _done(
        self, connection: str, unique: int, opened: OpenRequest, error: int, reply: bytes | None
    ) -> None:
        """Count a request and keep its line."""
        ns = self._now() - opened.started
        opcode = opened.opcode
        self.ended += 1
        index = opcode if opcode < 64 else OTHER
        row = self._table.get(index)
        if row is None:
            row = self._table[index] = Latency()
        row.note(ns, error)
        if opened.request:
            self._append("done", connection, unique & _UNIQUE, opcode, ns, error, opened, reply)
        for tap in self._taps.values():
            if tap.wants(connection, opcode, opened.pid):
                tap.done(index, ns, error, self.seq)

    def _append(
        self, kind: str, connection: str, unique: int, op: int, ns: int, error: int,
        opened: OpenRequest, reply: bytes | None,
    ) -> None:  # fmt: skip
        """Keep a line, and tell readers when a quarter of the ring is new."""
        if self._told:
            self.settle_notifications()
        self._put(kind, connection, unique, op, ns, error, opened, reply)
        if self._listeners and not self.seq % (self.lines // 4 or 1):
            for fn in tuple(self._listeners):
                fn()

    def _put(
        self, kind: str, connection: str, unique: int, op: int, ns: int, error: int,
        opened: OpenRequest, reply: bytes | None,
    ) -> None:  # fmt: skip
        """Put a line into the ring; the oldest makes room."""
        if len(self._ring) == self.lines:
            self.dropped += 1
        self.seq += 1
        line = Line(self.seq, kind, connection, unique, op, ns, error, opened, reply)
        self._ring.append(line)

    def _malformed(self, connection: str, data: Data, size: int, now: int) -> None:
        self.malformed += 1
        if self.level >= DECODE and self._wanted(connection, OTHER, -1):
            opened = _bare(now, size)._replace(request=bytes(data[: min(size, _HEAD)]))
            self._append("malformed", connection, 0, OTHER, 0, 0, opened, None)

    def _bug(self, where: str) -> None:
        """A bug in the tracer must not cost a request; the first is reported, all are counted."""
        self.failures += 1
        if self.failures == 1 and self._report is not None:
            self._report(f"fuse.trace.{where}", traceback.format_exc())

    # --- lines -------------------------------------------------------------------------------

    @property
    def first_seq(self) -> int:
        """Number of the oldest line that is kept."""
        return self.seq - len(self._ring) + 1

    def lines_after(self, seq: int) -> Iterator[Line]:
        """The kept lines whose number is higher."""
        return islice(self._ring, max(0, seq - self.first_seq + 1), None)

    def note_waiting(self) -> None:
        """Put a line into the ring for each request that waits for long and has none yet."""
        before = self._now() - self.slow * 1_000_000
        for connection, requests in self._open.items():
            for unique, opened in requests.items():
                if opened.started > before:
                    break
                if opened.request and (connection, unique) not in self._waiting:
                    self._waiting.add((connection, unique))
                    self._append("begun", connection, unique, opened.opcode, 0, 0, opened, None)

    def zero(self) -> int:
        """When the clock of lines was 0, in nanoseconds since 1970."""
        return self._realtime() - self._now()

    def set_lines(self, lines: int) -> None:
        """Keep so many lines; the newest stay."""
        self._ring = deque(self._ring, maxlen=lines)
        self.lines = lines

    # --- levels and taps ---------------------------------------------------------------------

    def set_level(self, level: int) -> None:
        """Setter of vfs.fuse.trace. Taps that are open keep the level up that they need."""
        self._base = level
        self._settle()

    def _settle(self) -> None:
        """Work out the level; nothing is followed while it is 0."""
        self.level = max([self._base, *(tap.level for tap in self._taps.values())])
        if self.level == OFF:
            self.abandoned += self._open_count
            self._open.clear()
            self._waiting.clear()
            self._open_count = 0

    def operations(self) -> list[str]:
        """The names that a tap may ask for."""
        return list(OPS)

    def note(self) -> str:
        """Why nothing will be seen, if that is so."""
        if self.fed:
            return ""
        return "pyfuse3 serves this mount and cannot be traced: mount with --transport device"

    def open_tap(self, key: str, want: Want) -> FuseTap:
        """Begin to trace for a reader. Raises KError: see `Tracer.open_tap`."""
        tap = self._taps.get(key)
        if tap is not None:
            return tap
        if len(self._taps) >= TAPS_MAX:
            raise KError(EAGAIN, f"{TAPS_MAX} traces are running")
        if not COUNT <= want.level <= DECODE:
            raise KError(EINVAL, f"level must be {COUNT} or {DECODE}")
        tap = self._taps[key] = FuseTap(self, want)
        self._settle()
        return tap

    def find_tap(self, key: str) -> FuseTap | None:
        """An open tap."""
        return self._taps.get(key)

    def close_tap(self, key: str) -> None:
        """End a tap, if it is there."""
        if self._taps.pop(key, None) is not None:
            self._settle()

    def count_taps(self) -> int:
        """Readers of the trace."""
        return len(self._taps)

    def listen(self, fn: Callable[[], None]) -> None:
        """Call `fn` each time a quarter of the ring was written."""
        self._listeners.append(fn)

    def unlisten(self, fn: Callable[[], None]) -> None:
        """The opposite of `listen`."""
        self._listeners.remove(fn)

    # --- counters ----------------------------------------------------------------------------

    def latency(self) -> list[LatencyRow]:
        """What was counted since boot or `reset`, by opcode, most time first."""
        return rows_of(self._table)

    def reset(self) -> None:
        """Forget what was counted, and the lines; what is open stays."""
        self._table.clear()
        self._ring.clear()

    def sysctl_clear(self, value: int) -> None:
        """Setter of vfs.fuse.trace_clear."""
        if value:
            self.reset()

    def statistics(self) -> FuseTraceStatistics:
        """Counters since boot."""
        self.settle_notifications()
        return FuseTraceStatistics(
            level=self.level,
            taps=len(self._taps),
            open=self._open_count,
            begun=self.begun,
            ended=self.ended,
            notified=self.notifications,
            abandoned=self.abandoned,
            unmatched=self.unmatched,
            untracked=self.untracked,
            malformed=self.malformed,
            overrun=self.overrun,
            lines=self.seq,
            dropped=self.dropped,
            failures=self.failures,
        )


def _bare(now: int, size: int) -> OpenRequest:
    """What stands for a request where there is none."""
    return OpenRequest(now, OTHER, 0, 0, 0, -1, size, b"")
