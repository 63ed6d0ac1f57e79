"""``dfuser trace``: requests as they come, decoded. Counterpart: strace(1), and ktrace(1) in part.

The trace lives as long as one message to the kernel, ``trace.hold``, stays open. Whatever ends this
program, or only its connection, ends the message and with it the trace.

Signals are taken only where nothing is half read from the connection: in `_Ending.ready`, which is
where this program waits. A signal that comes at another moment is noticed there.
"""

from __future__ import annotations

import json
import os
import select
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final

import click

from dfuser.client import Connection, ConnectionLost, KernelError, Msg
from dfuser.libkern.latency import BUCKETS, bars, chart, duration

from .exits import CliError, ExitCode
from .output import SCHEMA, Column, clean, print_table, warn
from .talk import talks
from .verb import verb

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
#: Columns that a request takes before the arrow, so that arrows stand below each other.
_CALL: Final = 48
#: Seconds to wait for the kernel to say that tracing has ended.
_LAST_WORD: Final = 5.0
#: Lines that were kept when a signal came and are still shown.
_LAST_LINES: Final = 4096
#: DragonFly's numbers for a trace that is not there, and for a message that was given up.
_ENOENT: Final = 2
_ECANCELED: Final = 85


def _duration(value: Any) -> str:
    return duration(value)


SUMMARY: Final = (
    Column("op", "OPERATION"),
    Column("count", "COUNT", True),
    Column("errors", "ERRORS", True),
    Column("total_ns", "TOTAL", True, _duration),
    Column("mean_ns", "MEAN", True, _duration),
    Column("p50_ns", "P50", True, _duration),
    Column("p99_ns", "P99", True, _duration),
    Column("max_ns", "MAX", True, _duration),
    Column("buckets", "256 ns to 8 s", False, bars),
)


def line_of(record: dict[str, Any]) -> str:
    """A record as one line: when, which, whose, what, and how it ended."""
    sec, nsec = divmod(record["time_ns"], 1_000_000_000)
    when = f"{time.strftime('%H:%M:%S', time.localtime(sec))}.{nsec // 1000:06d}"
    unique = f"#{record['unique']}" if record["unique"] else "-"
    pid = record["pid"]
    who = f"pid {pid:<7} uid {record['uid']:<5}" if pid >= 0 else " " * 21
    head = f"{when} {record['connection']:<6} {unique:<8} {who}"
    call = f"{record['op']:<11} {record['request']}".rstrip()
    if record["kind"] == "begun":
        return clean(f"{head}  {call} ...")
    if record["kind"] != "done":
        return clean(f"{head}  {call}")
    took = f"({duration(record['latency_ns'])})"
    if not record["reply"]:
        return clean(f"{head}  {call} {took}")
    return clean(f"{head}  {call:<{_CALL}} -> {record['reply']} {took}")


class _Ended(Exception):
    """A signal says that it is enough."""


class _Ending:
    """SIGINT and SIGTERM, taken at one place only."""

    def __init__(self) -> None:
        self.number = 0
        self._waiting = False

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        self.number = number
        if self._waiting:
            raise _Ended

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Take the signals inside the ``with`` block. A thread that is not the main one cannot."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = [(number, signal.signal(number, self._signalled)) for number in _SIGNALS]
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)

    def ready(self, kernel: Connection) -> None:
        """Wait until the kernel has said something. Raises `_Ended`."""
        try:
            self._waiting = True
            if self.number:
                raise _Ended
            select.select([kernel.fileno()], [], [])
        finally:
            self._waiting = False


@verb()
@click.option("--layer", default="fuse", show_default=True, help="Which layer to trace.")
@click.option("-e", "--op", "ops", multiple=True, metavar="OP[,OP...]",
              help="Only these operations: LOOKUP, READ, NOTIFY_INVAL_ENTRY ...")  # fmt: skip
@click.option("-p", "--pid", type=click.IntRange(0, (1 << 32) - 1), default=None,
              help="Only requests of this process of the host.")  # fmt: skip
@click.option("--connection", default="", metavar="NAME",
              help="Only this connection: root, or the mount inside it serves.")  # fmt: skip
@click.option("-n", "--count", type=click.IntRange(1), default=None,
              help="End after so many requests.")  # fmt: skip
@click.option("--begun", is_flag=True, help="Show requests that wait, too, ending in '...'.")
@click.option("-C", "--summary", is_flag=True, help="Print a table of the operations at the end.")
@click.option("-c", "--summary-only", is_flag=True, help="Print nothing but that table.")
@talks
def command(
    kernel: Connection, layer: str, ops: tuple[str, ...], pid: int | None, connection: str,
    count: int | None, begun: bool, summary: bool, summary_only: bool, as_json: bool,
) -> None:  # fmt: skip
    """Show the host's requests as they come, decoded, until Ctrl-C.

    A line has the time at which a request was read, connection, number, caller, what is asked,
    what was answered, and how long that took. Tracing is switched on for as long as this runs.
    With --json each line is one JSON document.

    Examples:
      dfuser trace
      dfuser trace --op LOOKUP,GETATTR --pid 4711
      dfuser trace --connection /tmp --count 100 --summary
      dfuser trace -c                  only the table, which costs the server less
      dfuser trace --begun --op SETLKW,READ
    """
    wanted = {
        "key": f"{os.getpid()}-{time.monotonic_ns()}",
        "layer": layer,
    }
    filters = {
        "level": 1 if summary_only else 2,
        "ops": [name for word in ops for name in word.upper().split(",") if name],
        "pid": -1 if pid is None else pid,
        "connection": connection,
        "begun": begun,
        "limit": count or 0,
    }
    for row in kernel.domsg("trace", "layers"):
        if row["layer"] == layer and row["note"]:
            raise CliError(ExitCode.USAGE, row["note"])
    ending = _Ending()
    with ending.taken():
        hold = kernel.sendmsg("trace", "hold", **wanted, **filters)
        try:
            _follow(kernel, hold, wanted, ending, as_json=as_json)
        except _Ended:
            pass
        finally:
            if summary or summary_only:
                with suppress(ConnectionLost, KernelError):
                    _print_summary(kernel.domsg("trace", "summary", **wanted), as_json=as_json)
            with suppress(ConnectionLost, KernelError, TimeoutError):
                kernel.abortmsg(hold)
                kernel.waitmsg(hold, _LAST_WORD)
    if ending.number:
        raise SystemExit(ExitCode.SIGNAL + ending.number)


def _follow(
    kernel: Connection, hold: Msg, wanted: dict[str, Any], ending: _Ending, *, as_json: bool
) -> None:
    """Print lines until there are enough.

    Raises `_Ended`, `ConnectionLost` also when the kernel gives our message up, and what `hold`
    failed with.
    """
    over = False
    while not over:
        wait = kernel.sendmsg("trace", "wait", **wanted)
        try:
            ending.ready(kernel)
        except _Ended:
            kernel.abortmsg(wait)
            with suppress(KernelError):
                _print_answer(kernel.waitmsg(wait), as_json=as_json)
            answer = kernel.domsg("trace", "wait", **wanted, count=_LAST_LINES, poll=True)
            _print_answer(answer, as_json=as_json)
            raise
        try:
            answer = kernel.waitmsg(wait)
        except KernelError as error:
            if hold.done and error.errno == _ENOENT:
                hold.value()
            if error.errno == _ECANCELED:
                raise ConnectionLost(error.strerror) from None
            raise
        _print_answer(answer, as_json=as_json)
        over = answer["over"]


def _print_answer(answer: dict[str, Any], *, as_json: bool) -> None:
    if answer["lost"]:
        warn(f"{answer['lost']} lines were overwritten before they could be shown")
    for record in answer["records"]:
        print(_json("trace", record) if as_json else line_of(record))
    if answer["records"]:
        print(end="", flush=True)


def _json(key: str, data: Any) -> str:
    """One JSON document on one line."""
    return json.dumps({"schema": SCHEMA, key: data})


def _print_summary(rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """The table, most time first, and the latencies of all requests together."""
    if as_json:
        print(_json("summary", rows))
        return
    print_table(rows, SUMMARY)
    together = [sum(row["buckets"][n] for row in rows) for n in range(BUCKETS)]
    if rows:
        print(f"\n{sum(together)} requests, latency from")
    for line in chart(together):
        print(line)
