"""The trace: what it counts, what it keeps, what it forgets, and that it never raises."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfuser.boot.tracing import COUNT, DECODE, Want
from dfuser.fuse.trace import NOTIFIED, TAPS_MAX, FuseTrace
from dfuser.fuse.tracetap import FuseTap
from dfuser.fuse.wire import attr, notify, reply
from dfuser.fuse.wire import inputs as i
from dfuser.fuse.wire.const import FUSE_UNIQUE_RESEND, Opcode
from dfuser.fuse.wire.kernel import emit_request
from dfuser.libkern.errno import EAGAIN, EINVAL, EPERM, KError
from dfuser.libkern.latency import BOUNDS
from dfuser.libkern.sysctl import SysctlTree
from dfuser.libkern.ucred import Ucred

from .wire_corpus import recorded

EPOCH = 1_700_000_000_000_000_000
PACKED = attr.pack_entry(
    42, 0, 1, 1, ino=42, size=0, blocks=0, atime=0, mtime=0, ctime=0, mode=0o040755, nlink=2,
    uid=0, gid=0,
)  # fmt: skip


class Tracing:
    """A trace with a clock that moves by hand, and a peer that makes requests."""

    def __init__(self, level: int = DECODE) -> None:
        self.now = 5_000
        self.reports: list[str] = []
        self.trace = FuseTrace(
            lambda: self.now,
            lambda: self.now + EPOCH,
            lambda where, text: self.reports.append(where + text),
        )
        self.trace.set_level(level)
        self.buffer = bytearray(b"\xa5" * 70_000)

    def begin(
        self, opcode: int = Opcode.LOOKUP, body: Any = b"usr", *, unique: int = 24, pid: int = 4711,
        connection: str = "/", nodeid: int = 1, data: bytes = b"",
    ) -> None:  # fmt: skip
        """A request is read into a buffer that is used again at once."""
        raw = emit_request(opcode, body, unique=unique, nodeid=nodeid, pid=pid, data=data)
        self.buffer[: len(raw)] = raw
        self.trace.begin(connection, self.buffer, len(raw))
        self.buffer[: len(raw)] = b"\x5a" * len(raw)

    def end(
        self, *buffers: Any, unique: int = 24, error: int = 0, connection: str = "/", ns: int = 0
    ) -> None:
        """The kernel has taken a reply."""
        self.now += ns
        if error:
            buffers = (reply.emit_error(unique, error),)
        self.trace.end(connection, unique, error, buffers or (reply.emit_ok(unique),))

    def one(self, opcode: int = Opcode.LOOKUP, body: Any = b"usr", **more: Any) -> None:
        """A request that fails with ENOENT after 7 microseconds."""
        self.begin(opcode, body, **more)
        self.end(error=2, ns=7_000, unique=more.get("unique", 24),
                 connection=more.get("connection", "/"))  # fmt: skip

    def tap(self, key: str = "t", **want: Any) -> FuseTap:
        """A reader."""
        return self.trace.open_tap(key, Want(**want))


def ops(tap: FuseTap, count: int = 10_000) -> list[str]:
    """The operations of the lines that a reader gets."""
    return [record["op"] for record in tap.read(count).records]


def test_a_request_becomes_a_record() -> None:
    # What if a line does not say when, who, what, and how it ended?
    t = Tracing()
    tap = t.tap()
    t.begin()
    t.end(reply.emit_entry(24, PACKED), ns=7_300)
    [record] = tap.read(9).records
    assert record == {
        "seq": 1, "kind": "done", "time_ns": EPOCH + 5_000, "connection": "/", "unique": 24,
        "pid": 4711, "uid": 0, "gid": 0, "op": "LOOKUP", "nodeid": 1, "request": '1 "usr"',
        "reply": "node 42 dir 0755 0:0", "error": 0, "latency_ns": 7_300,
    }  # fmt: skip
    assert tap.read(9).records == []
    t.one(Opcode.OPEN, i.OpenIn(0, 0), nodeid=42)
    [record] = tap.read(9).records
    assert (record["request"], record["reply"], record["error"]) == ("42 O_RDONLY", "ENOENT", 2)
    assert not t.reports


def test_replies_in_several_buffers() -> None:
    # What if the data of a READ were copied, or an answer in pieces misread?
    t = Tracing()
    tap = t.tap()
    t.begin(Opcode.READ, i.ReadIn(3, 0, 4096, 0, 0, 0))
    t.end(*reply.emit_data(24, memoryview(b"x" * 4096)))
    t.begin(Opcode.READLINK, None)
    t.end(*reply.emit_buffers(24, [b"/et", b"c"]))
    t.begin(Opcode.WRITE, i.WriteIn(3, 0, 60_000, 0, 0, 0), data=b"w" * 60_000)
    t.end(reply.emit_write(24, 60_000))
    assert [r["reply"] for r in tap.read(9).records] == ["4096 bytes", '"/etc"', "60000 bytes"]
    assert all(len(line.open.request) <= 80 for line in t.trace.lines_after(0))


def test_forgets_notifications_and_ends_have_lines() -> None:
    # What if what is not answered, what we tell, and the end of a connection are not seen?
    t = Tracing()
    tap = t.tap()
    t.begin(Opcode.FORGET, 3, nodeid=42)
    t.now += 1_000
    t.trace.no_reply("/", 24)
    t.trace.notified("/", [notify.emit_inval_entry(1, b"usr")])
    t.trace.notified("/", notify.emit_store(42, 0, b"data"))
    t.begin(unique=26)
    t.trace.aborted("/")
    rows = [(r["kind"], r["op"], r["request"], r["reply"]) for r in tap.read(9).records]
    assert rows == [
        ("done", "FORGET", "42 nlookup 3", ""),
        ("notify", "NOTIFY_INVAL_ENTRY", '1 "usr"', ""),
        ("notify", "NOTIFY_STORE", "42 offset 0 size 4", ""),
        ("ended", "ENDED", "1 requests were open", ""),
    ]
    stats = t.trace.statistics()
    assert (stats.open, stats.abandoned, stats.notified, stats.ended) == (0, 1, 2, 1)


def test_counters_are_recounted(rng: random.Random) -> None:
    # What if the histogram is not what happened?
    t = Tracing(COUNT)
    seen: dict[str, list[tuple[int, int]]] = {}
    for unique in range(2, 2_002, 2):
        opcode = rng.choice([Opcode.LOOKUP, Opcode.UNLINK, Opcode.RMDIR])
        ns, error = rng.randrange(1 << rng.randrange(1, 35)), rng.choice([0, 0, 2])
        t.begin(opcode, unique=unique)
        t.end(unique=unique, ns=ns, error=error)
        seen.setdefault(opcode.name, []).append((ns, error))
    rows = {row.op: row for row in t.trace.latency()}
    assert set(rows) == set(seen)
    for op, pairs in seen.items():
        row, times = rows[op], sorted(ns for ns, _ in pairs)
        assert row.count == len(pairs)
        assert row.errors == sum(error != 0 for _, error in pairs)
        assert (row.total_ns, row.max_ns) == (sum(times), times[-1])
        below = [sum(ns < bound for ns in times) for bound in (*BOUNDS, 1 << 99)]
        assert [sum(row.buckets[: n + 1]) for n in range(len(row.buckets))] == below
    totals = [row.total_ns for row in t.trace.latency()]
    assert totals == sorted(totals, reverse=True)
    assert t.trace.seq == 0
    t.trace.reset()
    assert t.trace.latency() == []


def test_unknown_opcodes_share_rows() -> None:
    # What if a peer invents opcodes to fill the table?
    t = Tracing(COUNT)
    for n in range(500):
        t.begin(1000 + n, i.UnknownIn(1000 + n, b"?"), unique=n + 1)
        t.end(unique=n + 1, error=38)
    [row] = t.trace.latency()
    assert (row.op, row.count, row.errors) == ("other", 500, 500)


def test_the_level_follows_variable_and_taps() -> None:
    # What if one reader switches the trace off under another, or leaves it on?
    t = Tracing(level=0)
    tree = SysctlTree()
    tree.register(t.trace)
    root = Ucred.root()
    t.tap("a", level=COUNT)
    assert t.trace.level == COUNT
    t.tap("b")
    assert tree.get("vfs.fuse.trace") == "2"
    t.trace.close_tap("b")
    t.trace.close_tap("b")
    assert t.trace.level == COUNT
    tree.set("vfs.fuse.trace", "2", root)
    t.trace.close_tap("a")
    assert t.trace.level == DECODE
    t.begin()
    tree.set("vfs.fuse.trace", 0, root)
    stats = t.trace.statistics()
    assert (stats.level, stats.open, stats.abandoned, stats.taps) == (0, 0, 1, 0)
    for wrong in (3, -1, "on"):
        with pytest.raises(KError) as caught:
            tree.set("vfs.fuse.trace", wrong, root)
        assert caught.value.errno == EINVAL
    with pytest.raises(KError) as caught:
        tree.set("vfs.fuse.trace", 1, Ucred.of(1000, 1000))
    assert caught.value.errno == EPERM
    t.trace.set_level(DECODE)
    t.one()
    tree.set("vfs.fuse.trace_clear", 1, root)
    assert (t.trace.latency(), list(t.trace.lines_after(0))) == ([], [])


def test_the_ring_is_bounded_and_says_what_is_lost() -> None:
    # What if nobody reads, or one reads too slowly?
    t = Tracing()
    t.trace.set_lines(10)
    tap = t.tap()
    for unique in range(2, 32):
        t.one(unique=unique)
    answer = tap.read(4)
    assert (answer.lost, [r["seq"] for r in answer.records]) == (20, [21, 22, 23, 24])
    answer = tap.read(99)
    assert (answer.lost, [r["seq"] for r in answer.records]) == (0, [25, 26, 27, 28, 29, 30])
    assert t.trace.dropped == 20
    t.trace.set_lines(3)
    assert [line.seq for line in t.trace.lines_after(0)] == [28, 29, 30]
    assert tap.read(9) == ([], 0, False)


def test_open_requests_are_bounded() -> None:
    # What if a million requests are read and never answered?
    t = Tracing(COUNT)
    t.trace.open_limit = 5
    for unique in range(1, 9):
        t.begin(unique=unique)
    assert (t.trace.statistics().open, t.trace.untracked) == (5, 3)
    for unique in range(1, 9):
        t.end(unique=unique)
    assert (t.trace.statistics().open, t.trace.unmatched, t.trace.ended) == (0, 3, 5)


def test_taps_are_bounded() -> None:
    # What if every client of the socket traces?
    t = Tracing(level=0)
    for n in range(TAPS_MAX):
        t.tap(str(n))
    assert t.tap("0") is t.trace.find_tap("0")
    with pytest.raises(KError) as caught:
        t.tap("one more")
    assert caught.value.errno == EAGAIN
    with pytest.raises(KError) as caught:
        Tracing().tap(level=3)
    assert caught.value.errno == EINVAL
    with pytest.raises(KError, match="did you mean LOOKUP"):
        Tracing().tap(ops=("LOKUP",))


def test_a_request_sent_again_is_one_request() -> None:
    # What if a server takes over and the kernel marks what it sends a second time?
    t = Tracing()
    tap = t.tap()
    t.begin(unique=24)
    t.begin(unique=24 | FUSE_UNIQUE_RESEND)
    t.end(unique=24, ns=5)
    assert [r["unique"] for r in tap.read(9).records] == [24]
    assert (t.trace.statistics().open, t.trace.abandoned) == (0, 1)


@pytest.mark.parametrize(
    ("want", "expected"),
    [
        ({}, ["LOOKUP", "UNLINK", "LOOKUP", "NOTIFY_RESEND"]),
        ({"ops": ("unlink", "NOTIFY_RESEND")}, ["UNLINK", "NOTIFY_RESEND"]),
        ({"pid": 7}, ["UNLINK"]),
        ({"pid": 0}, ["LOOKUP"]),
        ({"connection": "/tmp"}, ["LOOKUP", "NOTIFY_RESEND"]),
        ({"connection": "root"}, ["LOOKUP", "UNLINK"]),
        ({"ops": ("LOOKUP",), "limit": 1}, ["LOOKUP"]),
        ({"ops": ("STATFS",)}, []),
    ],
)
@pytest.mark.parametrize("base", [0, DECODE])
def test_filters(base: int, want: dict[str, Any], expected: list[str]) -> None:
    # What if a reader sees what he did not ask for, or misses what he did?
    t = Tracing(base)
    tap = t.tap(**want)
    t.one(Opcode.LOOKUP)
    t.one(Opcode.UNLINK, pid=7)
    t.one(Opcode.LOOKUP, pid=0, connection="/tmp")
    t.trace.notified("/tmp", [notify.emit_resend()])
    assert ops(tap) == expected
    assert sum(row.count for row in tap.summary()) == sum("NOTIFY" not in op for op in expected)
    assert t.trace.seq == (4 if base else len(expected))


def test_two_readers_do_not_disturb_each_other() -> None:
    # What if one reads lines away from another, or sees only what came after it?
    t = Tracing(level=0)
    one = t.tap("one")
    t.one()
    two = t.tap("two", ops=("UNLINK",))
    t.one(Opcode.UNLINK)
    assert ops(one) == ["LOOKUP", "UNLINK"]
    assert ops(two) == ["UNLINK"]
    assert [row.op for row in two.summary()] == ["UNLINK"]


def test_a_limit_ends_the_trace() -> None:
    # What if one wants ten requests and gets eleven, or never hears that it is over?
    t = Tracing(level=0)
    lines, table = t.tap("lines", limit=3), t.tap("table", limit=3, level=COUNT)
    for _ in range(5):
        t.one()
    assert table.read(99) == ([], 0, True)
    first = lines.read(2)
    assert (len(first.records), first.over) == (2, False)
    last = lines.read(2)
    assert (len(last.records), last.over) == (1, True)
    assert [tap.summary()[0].count for tap in (lines, table)] == [3, 3]


def test_requests_that_wait_are_shown_when_asked() -> None:
    # What if a lock is waited for and nobody sees it?
    t = Tracing(level=0)
    quiet, curious = t.tap("quiet"), t.tap("curious", begun=True)
    t.begin(Opcode.SETLKW, i.LkIn(3, 9, 0, 9, 1, 0, 0), unique=30)
    t.now += 99_000_000
    t.begin(unique=32)
    assert curious.read(9).records == []
    t.now += 2_000_000
    [record] = curious.read(9).records
    assert (record["kind"], record["op"], record["unique"]) == ("begun", "SETLKW", 30)
    assert curious.read(9).records == []
    t.end(unique=32, error=2)
    t.end(unique=30)
    assert ops(curious) == ["LOOKUP", "SETLKW"]
    assert ops(quiet) == ["LOOKUP", "SETLKW"]
    t.begin(unique=30)
    t.now += 200_000_000
    assert ops(curious) == ["LOOKUP"]


def test_a_trace_that_begins_in_the_middle() -> None:
    # What if a request was read before anybody looked, or before lines were wanted?
    t = Tracing(level=0)
    tap = t.tap()
    t.end(unique=99)
    assert (tap.read(9).records, t.trace.unmatched) == ([], 1)
    t = Tracing(COUNT)
    t.begin()
    tap = t.tap()
    t.end(ns=5)
    assert tap.read(9).records == []
    assert tap.summary()[0].count == 1


def test_garbage_is_counted_and_shown() -> None:
    # What if what was read is no request?
    t = Tracing()
    tap = t.tap()
    t.trace.begin("/", b"\x01\x02", 2)
    t.trace.begin("/", t.buffer, 39)
    t.begin(unique=5)
    t.trace.end("/", 5, 0, [])
    records = tap.read(9).records
    assert [r["op"] for r in records] == ["MALFORMED", "MALFORMED", "LOOKUP"]
    assert records[0]["request"] == "2 bytes: 0102"
    assert records[2]["reply"] == "<0 bytes are no reply>"
    assert (t.trace.malformed, t.trace.failures) == (2, 0)


CALLS = st.one_of(
    st.tuples(st.just("begin"), st.binary(max_size=200), st.integers(0, 300)),
    st.tuples(
        st.just("end"),
        st.integers(0, 2**64),
        st.integers(-5, 600),
        st.lists(st.binary(max_size=64)),
    ),
    st.tuples(st.just("no_reply"), st.integers(0, 2**64)),
    st.tuples(st.just("notified"), st.lists(st.binary(max_size=64))),
    st.tuples(st.just("aborted")),
)


@given(st.integers(0, DECODE), st.lists(CALLS, max_size=30))
def test_no_call_raises(level: int, calls: list[Any]) -> None:
    # What if the bytes are anything and the calls come in any order?
    t = Tracing(level)
    tap = t.tap(begun=True)
    for name, *args in calls:
        getattr(t.trace, name)("/", *args)
    for record in tap.read(99).records:
        assert all(text.isprintable() for text in (record["request"], record["reply"]))
    stats = t.trace.statistics()
    assert not t.reports
    assert stats.begun == stats.open + stats.ended + stats.abandoned + stats.untracked


def test_real_traffic_is_traced_without_a_bug() -> None:
    # What if two real mounts are traced from their first to their last message?
    t = Tracing(level=0)
    t.trace.set_lines(1 << 16)
    tap = t.tap()
    requests = replies = told = 0
    for message in recorded():
        name = f"mount{message.mount}"
        if message.kernel:
            requests += 1
            t.trace.begin(name, message.data, len(message.data))
            if message.data[4] in (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.NOTIFY_REPLY):
                t.trace.no_reply(name, message.unique)
        elif message.unique:
            replies += 1
            error = -int.from_bytes(message.data[4:8], "little", signed=True)
            t.trace.end(name, message.unique, error, [message.data[:16], message.data[16:]])
        else:
            told += 1
            t.trace.notified(name, [message.data])
    stats = t.trace.statistics()
    assert (stats.begun, stats.notified, stats.failures) == (requests, told, 0)
    records = tap.read(1 << 16).records
    assert len(records) == stats.ended + told
    assert stats.ended >= replies
    assert not [r for r in records if "<" in r["request"] + r["reply"]]


def test_a_bug_of_the_tracer_costs_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    # What if the tracer itself is wrong?
    t = Tracing()

    def broken(*_args: object) -> Any:
        raise ZeroDivisionError

    names: list[tuple[str, Callable[[], None]]] = [
        ("_wanted", t.begin),
        ("_take", t.end),
        ("_take", lambda: t.trace.no_reply("/", 1)),
        ("_append", lambda: t.trace.aborted("/")),
        ("_now", lambda: t.trace.notified("/", [notify.emit_resend()])),
    ]
    for name, call in names:
        with monkeypatch.context() as patch:
            patch.setattr(t.trace, name, broken)
            call()
    assert t.trace.failures == len(names)
    assert len(t.reports) == 1
    assert "ZeroDivisionError" in t.reports[0]


def test_readers_are_told_of_a_full_quarter() -> None:
    # What if a reader looks ten times a second while lines come faster than the ring is long?
    t = Tracing()
    t.trace.set_lines(40)
    calls: list[int] = []

    def told() -> None:
        calls.append(t.trace.seq)

    t.trace.listen(told)
    for _ in range(35):
        t.one()
    t.trace.unlisten(told)
    t.one()
    assert calls == [10, 20, 30]


def test_notifications_come_from_another_thread() -> None:
    # What if the notifier's thread writes while the kernel's keeps lines and reads them?
    t = Tracing()
    tap = t.tap()
    message = [notify.emit_inval_inode(42)]

    def work() -> None:
        for _ in range(500):
            t.trace.notified("/", message)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(500):
        t.one()
    for thread in threads:
        thread.join()
    records = tap.read(10_000).records
    stats = t.trace.statistics()
    assert [r["seq"] for r in records] == list(range(1, len(records) + 1))
    assert stats.notified == sum(r["kind"] == "notify" for r in records)
    assert stats.notified + stats.overrun == 1_000
    for _ in range(NOTIFIED + 5):
        t.trace.notified("/", message)
    assert t.trace.statistics().overrun == stats.overrun + 5


def test_the_stock_transport_is_admitted() -> None:
    # What if nothing can be seen and nobody says so?
    t = Tracing()
    assert t.trace.note() == ""
    t.trace.fed = False
    assert "pyfuse3" in t.trace.note()
