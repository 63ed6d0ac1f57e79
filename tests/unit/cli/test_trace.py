"""``dfuser trace`` against a running kernel whose trace is fed by hand."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dfuser.cli.exits import ExitCode
from dfuser.cli.trace import line_of
from dfuser.fuse.trace import FuseTrace
from dfuser.fuse.wire import inputs as i
from dfuser.fuse.wire import notify, reply
from dfuser.fuse.wire.const import Opcode
from dfuser.fuse.wire.kernel import emit_request

from .conftest import Dfuser, Running

RECORD: dict[str, Any] = {
    "seq": 1, "kind": "done", "time_ns": 123_456_789, "connection": "/", "unique": 24,
    "pid": 4711, "uid": 0, "gid": 0, "op": "LOOKUP", "nodeid": 1, "request": '1 "usr"',
    "reply": "node 42 dir 0755 0:0", "error": 0, "latency_ns": 7_312,
}  # fmt: skip


class Traced:
    """A running kernel with a trace, and a thread that makes requests once somebody looks."""

    def __init__(self, running: Running) -> None:
        kernel = running.kernel
        assert kernel is not None
        self.running = running
        self.looked = threading.Event()
        clock = kernel.host.clock
        self.trace = FuseTrace(clock.monotonic_ns, clock.realtime_ns, kernel.report)
        open_tap = self.trace.open_tap

        def opened(*args: Any) -> Any:
            tap = open_tap(*args)
            self.looked.set()
            return tap

        self.trace.open_tap = opened  # type: ignore[method-assign]
        running.call(kernel.add_owner, self.trace)

    def lookup(self, name: bytes, unique: int, pid: int = 4711) -> None:
        """A LOOKUP that fails."""
        raw = emit_request(Opcode.LOOKUP, name, unique=unique, nodeid=1, pid=pid)
        self.trace.begin("/", raw, len(raw))
        self.trace.end("/", unique, 2, [reply.emit_error(unique, 2)])

    def some(self) -> None:
        """Two LOOKUPs of different callers, an OPEN and a notification."""
        self.lookup(b"usr", 24)
        self.lookup(b"\x1b[31m", 26, pid=12)
        raw = emit_request(Opcode.OPEN, i.OpenIn(0, 0), unique=28, nodeid=42, pid=4711)
        self.trace.begin("/tmp", raw, len(raw))
        self.trace.end("/tmp", 28, 0, [reply.emit_open(28, 3, 0)])
        self.trace.notified("/", [notify.emit_inval_entry(1, b"usr")])

    @contextmanager
    def meanwhile(self, *steps: Callable[[], object]) -> Iterator[None]:
        """Do these on another thread as soon as somebody looks."""

        def work() -> None:
            assert self.looked.wait(60)
            for step in steps:
                step()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            self.looked.set()
            thread.join(60)
            assert not thread.is_alive()

    def feed(self) -> None:
        """`some`, on the kernel's thread."""
        self.running.call(self.some)


@pytest.fixture
def traced(running: Running) -> Traced:
    """A kernel whose trace is off."""
    return Traced(running)


def interrupt(number: int = signal.SIGINT) -> Callable[[], None]:
    """What Ctrl-C or kill(1) does to this process."""
    return lambda: os.kill(os.getpid(), number)


def test_the_looks_of_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # What if columns do not stand below each other, or a line has an arrow to nowhere?
    monkeypatch.setenv("TZ", "UTC")
    done = line_of(RECORD)
    assert done == (
        '00:00:00.123456 /      #24      pid 4711    uid 0      LOOKUP      1 "usr"'
        "                              -> node 42 dir 0755 0:0 (7.31 us)"
    )
    forget = line_of({**RECORD, "op": "FORGET", "request": "42 nlookup 3", "reply": ""})
    assert forget.endswith("FORGET      42 nlookup 3 (7.31 us)")
    begun = line_of({**RECORD, "kind": "begun", "reply": ""})
    assert begun.endswith('LOOKUP      1 "usr" ...')
    told = line_of({**RECORD, "kind": "notify", "pid": -1, "unique": 0, "reply": ""})
    assert told.index("LOOKUP") == done.index("LOOKUP")
    assert "pid" not in told


def test_so_many_requests(dfuser: Dfuser, traced: Traced) -> None:
    # What if one wants to see three requests and then no more?
    with traced.meanwhile(traced.feed):
        result = dfuser("trace", "--layer", "fuse", "--count", "3")
    assert result.code == ExitCode.OK, result
    assert result.err == ""
    lines = result.out.splitlines()
    assert len(lines) == 3
    assert ' LOOKUP      1 "usr" ' in lines[0]
    assert "-> ENOENT (" in lines[0]
    assert '"\\x1b[31m"' in lines[1]
    assert "OPEN        42 O_RDONLY" in lines[2]
    assert "/tmp" in lines[2]
    assert lines[0].index(" -> ") == lines[2].index(" -> ")
    assert (traced.trace.level, traced.trace.count_taps()) == (0, 0)


def test_only_some_of_them(dfuser: Dfuser, traced: Traced) -> None:
    # What if filters are given: is everything else left out?
    with traced.meanwhile(traced.feed):
        result = dfuser("trace", "--op", "lookup,read", "--pid", "12", "--count", "1", "--json")
    assert result.code == ExitCode.OK, result
    [document] = map(json.loads, result.out.splitlines())
    assert document["schema"] == 1
    assert (document["trace"]["pid"], document["trace"]["error"]) == (12, 2)
    assert document["trace"]["latency_ns"] >= 0


def test_ctrl_c_ends_it_with_the_lines_and_the_table(dfuser: Dfuser, traced: Traced) -> None:
    # What if Ctrl-C comes right behind the last request?
    with traced.meanwhile(traced.feed, interrupt()):
        result = dfuser("trace", "--summary")
    assert result.code == ExitCode.SIGNAL + signal.SIGINT
    assert result.err == ""
    lines = result.out.splitlines()
    assert 'NOTIFY_INVAL_ENTRY 1 "usr"' in lines[3]
    assert lines[4].split()[:3] == ["OPERATION", "COUNT", "ERRORS"]
    assert {line.split()[0]: line.split()[1:3] for line in lines[5:7]} == {
        "LOOKUP": ["2", "2"],
        "OPEN": ["1", "0"],
    }
    assert lines[8] == "3 requests, latency from"
    assert sum(int(line.split()[-1]) for line in lines[9:]) == 3
    assert traced.trace.level == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigterm_ends_it_too(dfuser: Dfuser, traced: Traced) -> None:
    # What if it is killed politely: is tracing switched off, and the table printed?
    with traced.meanwhile(traced.feed, interrupt(signal.SIGTERM)):
        result = dfuser("trace", "-c", "--json")
    assert result.code == ExitCode.SIGNAL + signal.SIGTERM
    [document] = map(json.loads, result.out.splitlines())
    assert {row["op"]: row["count"] for row in document["summary"]} == {"LOOKUP": 2, "OPEN": 1}
    assert traced.trace.level == 0


def test_only_the_table(dfuser: Dfuser, traced: Traced) -> None:
    # What if nobody wants lines: is nothing decoded and nothing kept?
    with traced.meanwhile(traced.feed):
        result = dfuser("trace", "-c", "-n", "3")
    assert result.code == ExitCode.OK
    assert result.out.startswith("OPERATION")
    assert traced.trace.seq == 0


def test_a_request_that_waits(dfuser: Dfuser, traced: Traced) -> None:
    # What if a lock is waited for: is it shown before it is over?
    raw = emit_request(Opcode.SETLKW, i.LkIn(3, 9, 0, 9, 1, 0, 0), unique=30, nodeid=42)

    def wait() -> None:
        traced.trace.slow = 0
        traced.trace.begin("/", raw, len(raw))
        traced.trace.note_waiting()

    def answer() -> None:
        traced.trace.end("/", 30, 0, [reply.emit_ok(30)])

    call = traced.running.call
    with traced.meanwhile(lambda: call(wait), lambda: call(answer)):
        result = dfuser("trace", "--begun", "--count", "1")
    first, second = result.out.splitlines()
    assert first.endswith("SETLKW      42 fh 3 F_WRLCK 0..9 owner 0x9 ...")
    assert "-> ok (" in second


def test_the_variable_keeps_its_level(dfuser: Dfuser, traced: Traced) -> None:
    # What if tracing was on before: is it on afterwards?
    assert dfuser("sysctl", "vfs.fuse.trace=1").out == "vfs.fuse.trace: 0 -> 1\n"
    with traced.meanwhile(traced.feed):
        assert dfuser("trace", "-n", "1").code == ExitCode.OK
    assert dfuser("sysctl", "-n", "vfs.fuse.trace").out == "1\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--op", "LOKUP"], "did you mean LOOKUP"),
        (["--layer", "net"], "there is no layer 'net'"),
        (["--count", "0"], "--count"),
        (["--pid", "me"], "--pid"),
    ],
)
def test_a_wrong_option_is_one_line(
    dfuser: Dfuser, traced: Traced, words: list[str], text: str
) -> None:
    # What if something is asked for that there is not?
    result = dfuser("trace", *words)
    assert result.code == ExitCode.USAGE
    assert text in result.line
    assert result.out == ""
    assert traced.trace.level == 0


def test_a_mount_that_cannot_be_traced(dfuser: Dfuser, traced: Traced) -> None:
    # What if the stock transport serves the mount: is the user told, instead of waiting for ever?
    traced.trace.fed = False
    result = dfuser("trace")
    assert result.code == ExitCode.USAGE
    assert "pyfuse3" in result.line


def test_nothing_is_mounted(dfuser: Dfuser, running: Running) -> None:
    # What if the kernel has no bridge?
    result = dfuser("trace")
    assert result.code == ExitCode.USAGE
    assert "nothing is mounted on the host" in result.line


def test_the_kernel_ends_meanwhile(dfuser: Dfuser, quiet_environment: None) -> None:
    # What if the server goes away under a trace?
    running = Running()
    running.start()
    traced = Traced(running)
    with traced.meanwhile(running.stop):
        result = dfuser("trace", "--summary")
    assert result.code == ExitCode.NOT_RUNNING
    assert "unmounted" in result.line
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
