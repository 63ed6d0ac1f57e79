"""What the trace of requests keeps, and who reads it.

A line is kept as bytes: the few of a request and of its reply that are worth showing, with the
numbers that are known anyway. `record_of` turns it into words when somebody reads it.

A `FuseTap` is one reader: a filter, a place in the ring of lines, and a table of latencies.

Counterpart: none; struct ktr_header (sys/ktrace.h) is the nearest to a line.
Token/lock order: takes none.
Invariants: a reader sees each kept line at most once, in order, and is told how many he missed.
"""

from __future__ import annotations

from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dfuser.boot.tracing import DECODE, Tap, TapAnswer, Want
from dfuser.libkern.errno import EINVAL, KError
from dfuser.libkern.latency import Latency, LatencyRow

from .wire.const import Notify, Opcode
from .wire.operations import name_of
from .wire.show import asked, notification_name, show_notification, show_reply, show_request
from .wire.words import errno_word

if TYPE_CHECKING:
    from .trace import FuseTrace

#: What a tap may ask for: opcodes, and notifications as negative numbers.
OPS: Final = MappingProxyType(
    {
        **{op.name: int(op) for op in Opcode},
        **{notification_name(code): -int(code) for code in Notify},
    }
)
#: Row of a table for opcodes that have no name.
OTHER: Final = 0


class OpenRequest(NamedTuple):
    """A request that was read and is not done. `request` is empty where nobody wants a line."""

    started: int
    opcode: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    size: int
    request: bytes


class Line(NamedTuple):
    """A line of the ring. `reply` is None for what has none; `op` is negative in notifications."""

    seq: int
    kind: str
    connection: str
    unique: int
    op: int
    ns: int
    error: int
    open: OpenRequest
    reply: bytes | None


def record_of(line: Line, zero: int) -> dict[str, Any]:
    """A line as plain data: numbers raw, request and reply in words.

    Args:
        line: what was kept.
        zero: when the clock of lines was 0, in nanoseconds since 1970.
    """
    opened, kind = line.open, line.kind
    request, reply = "", ""
    if kind == "notify":
        name = notification_name(-line.op)
        request = show_notification(line.reply or b"")
    elif kind == "ended":
        name, request = "ENDED", f"{opened.size} requests were open"
    elif kind == "malformed":
        name, request = "MALFORMED", f"{opened.size} bytes: {opened.request.hex()}"
    else:
        name = name_of(line.op)
        request = show_request(opened.request, opened.size)
        if line.error:
            reply = errno_word(line.error)
        elif line.reply is not None:
            reply = show_reply(line.op, line.reply, asked(line.op, opened.request))
    return {
        "seq": line.seq,
        "kind": kind,
        "time_ns": zero + opened.started,
        "connection": line.connection,
        "unique": line.unique,
        "pid": opened.pid,
        "uid": opened.uid,
        "gid": opened.gid,
        "op": name,
        "nodeid": opened.nodeid,
        "request": request,
        "reply": reply,
        "error": line.error,
        "latency_ns": line.ns,
    }


class FuseTap(Tap):
    """A reader of the trace: what it wants, how far it has read, what it has counted."""

    __slots__ = ("_connections", "_cursor", "_end", "_lost", "_ops", "_trace", "level", "table",
                 "want")  # fmt: skip

    def __init__(self, trace: FuseTrace, want: Want) -> None:
        """Raises KError EINVAL: an operation that does not exist."""
        self._ops = frozenset(map(op_number, want.ops))
        name = want.connection
        self._connections = (name, "/") if name == "root" else (name,) if name else ()
        self._trace = trace
        self._cursor = trace.seq
        self._lost = 0
        #: Number of the last line to read, once there are as many as were wanted.
        self._end = -1
        self.want = want
        self.level = want.level
        self.table: dict[int, Latency] = {}

    def wants(self, connection: str, op: int, pid: int) -> bool:
        """Whether this message is to be shown. Notifications have no caller: their pid is -1."""
        want = self.want
        return (
            self._end < 0
            and (not self._ops or op in self._ops)
            and (want.pid < 0 or want.pid == pid)
            and (not self._connections or connection in self._connections)
        )

    def done(self, opcode: int, ns: int, error: int, seq: int) -> None:
        """Count a request that is done; `seq` is the number of its line, if it has one."""
        row = self.table.get(opcode)
        if row is None:
            row = self.table[opcode] = Latency()
        row.note(ns, error)
        if self.want.limit and self.counted() >= self.want.limit:
            self._end = seq

    def counted(self) -> int:
        """Requests that this tap has counted."""
        return sum(row.count for row in self.table.values())

    def read(self, count: int) -> TapAnswer:
        """At most `count` lines that were not read before. Never waits."""
        trace = self._trace
        trace.settle_notifications()
        zero = trace.zero()
        if self.want.begun:
            trace.note_waiting()
        records: list[dict[str, Any]] = []
        last = trace.seq if self._end < 0 else self._end
        if self.level >= DECODE:
            first = trace.first_seq
            if self._cursor < first - 1:
                self._lost += first - 1 - self._cursor
                self._cursor = first - 1
            for line in trace.lines_after(self._cursor):
                if line.seq > last or len(records) >= count:
                    break
                self._cursor = line.seq
                if self._shows(line):
                    records.append(record_of(line, zero))
        lost, self._lost = self._lost, 0
        over = self._end >= 0 and (self.level < DECODE or self._cursor >= last)
        return TapAnswer(records, lost, over)

    def unread(self) -> int:
        """How many lines there are to look at, before they are filtered."""
        return self._trace.seq - self._cursor

    def _shows(self, line: Line) -> bool:
        want = self.want
        return (
            (line.kind != "begun" or want.begun)
            and (not self._ops or line.op in self._ops)
            and (want.pid < 0 or want.pid == line.open.pid)
            and (not self._connections or line.connection in self._connections)
        )

    def summary(self) -> list[LatencyRow]:
        """What this tap has seen, by operation, most time first."""
        return rows_of(self.table)


def op_number(name: str) -> int:
    """The number of an operation. Raises KError EINVAL, with the nearest name there is."""
    number = OPS.get(name.upper())
    if number is None:
        near = get_close_matches(name.upper(), OPS, 1)
        hint = f": did you mean {near[0]}?" if near else ""
        raise KError(EINVAL, f"there is no operation {name!r}{hint}")
    return number


def rows_of(table: dict[int, Latency]) -> list[LatencyRow]:
    """A table by opcode as rows, most time first."""
    rows = [row.row(name_of(op) if op else "other") for op, row in table.items()]
    return sorted(rows, key=lambda row: -row.total_ns)
