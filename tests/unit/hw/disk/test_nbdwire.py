"""The NBD protocol without sockets: handshakes, replies, rubbish; and the session's memory."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfuser.hw.disk import nbdwire as wire
from dfuser.hw.disk.disk import DiskCmd, DiskRequest
from dfuser.hw.disk.nbdsession import NbdSession
from dfuser.hw.disk.nbdwire import Chunk, Export, Handshake, NbdAddress, NbdError, ReplyDecoder
from dfuser.libkern.errno import EIO, ENOSPC, ENXIO, KError
from tests.unit.hw.disk.nbdserver import ALL, REQUEST, chunk

GREETING = wire.NBDMAGIC + wire.IHAVEOPT + b"\0\3"


def reply(option: int, kind: int, body: bytes = b"") -> bytes:
    return struct.pack(">QIII", wire.OPT_REPLY_MAGIC, option, kind, len(body)) + body


def info(size: int, flags: int = ALL) -> bytes:
    return reply(wire.OPT_GO, wire.REP_INFO, struct.pack(">HQH", wire.INFO_EXPORT, size, flags))


def blocks(low: int, middle: int, high: int) -> bytes:
    body = struct.pack(">HIII", wire.INFO_BLOCK_SIZE, low, middle, high)
    return reply(wire.OPT_GO, wire.REP_INFO, body)


ACK = reply(wire.OPT_GO, wire.REP_ACK)
YES = reply(wire.OPT_STRUCTURED_REPLY, wire.REP_ACK)
NO = reply(wire.OPT_STRUCTURED_REPLY, wire.REP_ERR | 1)


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_handshake_in_pieces(step: int) -> None:
    """What if the server's bytes come one by one, and data follow at once?"""
    stream = GREETING + YES + info(1 << 30) + blocks(512, 4096, 1 << 20) + ACK + b"early"
    shake = Handshake("disk")
    said = b"".join(shake.feed(stream[i : i + step]) for i in range(0, len(stream), step))
    assert shake.export == Export(1 << 30, ALL, 512, 4096, 1 << 20, True)
    rest = stream[-5:] if step == 1000 else b""
    assert shake.rest.startswith(rest)
    assert said[:4] == b"\0\0\0\3"
    assert said[4:20] == wire.pack_option(wire.OPT_STRUCTURED_REPLY)
    assert b"disk" in said[20:]


def test_servers_that_know_less() -> None:
    """What if a server knows no structured replies, no GO, or not even fixed newstyle?"""
    shake = Handshake()
    shake.feed(GREETING + NO + info(4096) + ACK)
    assert shake.export == Export(4096, ALL)
    shake = Handshake("x")
    shake.feed(GREETING + NO)
    assert wire.pack_option(wire.OPT_EXPORT_NAME, b"x") in shake.feed(
        reply(wire.OPT_GO, wire.REP_ERR | 1)
    )
    shake.feed(struct.pack(">QH", 8192, ALL))
    assert shake.export == Export(8192, ALL)
    shake = Handshake("y")
    said = shake.feed(wire.NBDMAGIC + wire.IHAVEOPT + b"\0\0")
    assert said == bytes(4) + wire.pack_option(wire.OPT_EXPORT_NAME, b"y")
    shake.feed(struct.pack(">QH", 8192, ALL) + bytes(123))
    assert shake.export is None
    shake.feed(b"\0")
    assert shake.export == Export(8192, ALL)


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (b"HTTP/1.1 400 Bad", "no NBD server"),
        (wire.NBDMAGIC + bytes.fromhex("0000420281861253"), "before 2011"),
        (GREETING + YES + reply(wire.OPT_GO, wire.REP_ERR | 5), "TLS"),
        (GREETING + YES + reply(wire.OPT_GO, wire.REP_ERR | 6, b"gone"), "no export.*gone"),
        (GREETING + YES + reply(wire.OPT_GO, wire.REP_ERR | 99), "error 99"),
        (GREETING + YES + ACK, "did not tell the size"),
        (GREETING + YES + info(4096, 0) + ACK, "no flags"),
        (GREETING + YES + info(1 << 63) + ACK, "export of"),
        (GREETING + YES + reply(wire.OPT_GO, wire.REP_INFO, b"\0"), "without a type"),
        (GREETING + YES + reply(wire.OPT_GO, wire.REP_INFO, b"\0\0\0"), "odd length"),
        (GREETING + YES + reply(wire.OPT_GO, wire.REP_INFO, b"\0\3\0"), "odd length"),
        (GREETING + YES + blocks(3, 4096, 65536), "block sizes"),
        (GREETING + YES + blocks(512, 4096, 100), "block sizes"),
        (GREETING + reply(wire.OPT_GO, wire.REP_ACK), "no reply to option"),
        (GREETING + YES + struct.pack(">QIII", wire.OPT_REPLY_MAGIC, 7, 1, 1 << 30), "bytes to"),
        (GREETING + bytes(20), "no reply"),
    ],
)
def test_servers_that_refuse_or_rave(stream: bytes, words: str) -> None:
    """What if the server is none, refuses, or breaks the protocol: is there one clear sentence?"""
    with pytest.raises(NbdError, match=words):
        Handshake("e").feed(stream)


def test_addresses() -> None:
    """What if addresses of all kinds are read and written?"""
    assert NbdAddress.parse("nbd://host") == NbdAddress("", "", "host", 10809)
    assert NbdAddress.parse("nbd://[::1]:99/a%20b") == NbdAddress("a b", "", "::1", 99)
    unix = NbdAddress.parse("nbd+unix:///x?socket=/run/s")
    assert unix == NbdAddress("x", "/run/s")
    assert NbdAddress.parse(str(unix)) == unix
    assert str(NbdAddress.parse("nbd://[::1]:99/x")) == "nbd://[::1]:99/x"
    for wrong in ("nbd://", "nbd+unix:///x", "http://host", "file", "nbd://h:x"):
        with pytest.raises(ValueError):
            NbdAddress.parse(wrong)
    with pytest.raises(NbdError):
        Handshake("x" * 5000)


def simple(handle: int, error: int = 0, data: bytes = b"") -> bytes:
    return struct.pack(">IIQ", wire.SIMPLE_MAGIC, error, handle) + data


@given(st.lists(st.integers(1, 40), max_size=40))
def test_replies_in_any_pieces(cuts: list[int]) -> None:
    """What if replies of both kinds arrive cut at any place?"""
    stream = (
        simple(1, 0, b"abcd")
        + simple(2, 5)
        + chunk(3, 0, wire.REPLY_OFFSET_DATA, struct.pack(">Q", 8) + b"xy")
        + chunk(3, 0, wire.REPLY_OFFSET_HOLE, struct.pack(">QI", 10, 6))
        + chunk(3, 1, wire.REPLY_NONE, b"")
        + chunk(4, 1, wire.REPLY_ERROR, struct.pack(">IH", 28, 2) + b"no")
    )
    decoder = ReplyDecoder({1: 4, 2: 4, 3: 8, 4: 0}.get)
    chunks = []
    for cut in [*cuts, len(stream)]:
        chunks += decoder.feed(stream[:cut])
        stream = stream[cut:]
    assert chunks == [
        Chunk(1, True, 0, -1, b"abcd"),
        Chunk(2, True, 5),
        Chunk(3, False, 0, 8, b"xy"),
        Chunk(3, False, 0, 10, b"", 6),
        Chunk(3, True),
        Chunk(4, True, 28),
    ]


@given(st.binary(max_size=200), st.sampled_from([b"", GREETING, GREETING + YES]))
def test_rubbish_is_an_nbd_error(data: bytes, before: bytes) -> None:
    """What if anything at all comes from the server?"""
    for feed in (
        Handshake().feed,
        ReplyDecoder({0: 4}.get).feed,
        lambda d: ReplyDecoder({0: 4}.get).feed(b"\x67\x44\x66\x98" + d),
        lambda d: ReplyDecoder({0: 4}.get).feed(b"\x66\x8e\x33\xef\0\1" + d),
    ):
        try:
            feed(before + data)
        except NbdError:
            continue


def test_replies_nobody_asked_for() -> None:
    """What if a handle is unknown, a chunk too long, of no known kind, or an error is 0?"""
    for stream in (
        simple(9),
        chunk(9, 1, 0, b""),
        struct.pack(">IHHQI", wire.STRUCTURED_MAGIC, 1, 1, 1, 1 << 31),
        chunk(1, 1, 7, b""),
        chunk(1, 0, wire.REPLY_NONE, b""),
        chunk(1, 1, wire.REPLY_ERROR, bytes(6)),
        b"\0\0\0\0",
    ):
        with pytest.raises(NbdError):
            ReplyDecoder({1: 4}.get).feed(stream)


# --- the session ---------------------------------------------------------------------------

EXPORT = Export(1 << 20, ALL, maximum=65536)


class Wire:
    """A session whose other end is the test."""

    def __init__(self, export: Export = EXPORT, replay: int = 1 << 20) -> None:
        self.session = NbdSession(replay)
        self.session.connection_made(export)
        self.done: list[tuple[str, int]] = []

    def submit(
        self, name: str, cmd: DiskCmd, offset: int = 0, data: bytes = b"", **kw: bool
    ) -> None:
        length = 0 if cmd is DiskCmd.FLUSH else len(data)
        request = DiskRequest(cmd, offset, length, (bytearray(data),), fua=kw.get("fua", False))
        self.session.submit(request, lambda error: self.done.append((name, error)))

    def sent(self) -> list[tuple[int, int, int, int]]:
        """Handle, command, offset, first byte of the data (0 where there is none)."""
        out = self.session.output()
        rows = []
        while out:
            _, _flags, cmd, handle, offset, _length = REQUEST.unpack(bytes(out.pop(0)))
            first = bytes(out.pop(0))[0] if cmd == wire.CMD_WRITE else 0
            rows.append((handle, cmd, offset, first))
        return rows

    def answer(self, rows: list[tuple[int, int, int, int]], error: int = 0) -> None:
        for row in rows:
            self.session.input(simple(row[0], error))


def test_unstable_changes_are_sent_again_before_all_else() -> None:
    """What if a connection breaks with changes completed, in flight, and not yet sent?"""
    w = Wire()
    for n in range(1, 5):
        w.submit(f"w{n}", DiskCmd.WRITE, n * 512, bytes([n]) * 512)
    rows = w.sent()
    w.answer(rows[:2])
    w.submit("flush", DiskCmd.FLUSH)
    flush = w.sent()
    w.answer(rows[2:3])
    w.answer(flush)  # covers 1 and 2, not 3
    assert w.done == [("w1", 0), ("w2", 0), ("w3", 0), ("flush", 0)]
    w.session.connection_lost()
    w.submit("w5", DiskCmd.WRITE, 0, b"\5" * 512)
    assert w.sent() == []
    w.session.connection_made(EXPORT)
    again = w.sent()
    assert [row[3] for row in again] == [3]
    w.submit("w6", DiskCmd.WRITE, 0, b"\6" * 512)
    assert w.sent() == []
    w.answer(again)
    flush = w.sent()
    assert [row[1] for row in flush] == [wire.CMD_FLUSH]
    w.answer(flush)
    rest = w.sent()
    assert [row[3] for row in rest] == [4, 5, 6]
    w.answer(rest)
    assert [name for name, _ in w.done[4:]] == ["w4", "w5", "w6"]
    seen = w.session.statistics()
    assert (seen.replayed, seen.resent, seen.unstable, seen.connects) == (1, 1, 3, 2)


def test_a_connection_that_breaks_while_sending_again() -> None:
    """What if the next connection breaks before all is sent again, three times?"""
    w = Wire()
    for n in range(1, 4):
        w.submit(f"w{n}", DiskCmd.WRITE, n * 512, bytes([n]) * 512)
    w.answer(w.sent())
    w.submit("w4", DiskCmd.WRITE, 0, b"\4" * 512)
    w.sent()
    for _ in range(3):
        w.session.connection_lost()
        w.session.connection_made(EXPORT)
        rows = w.sent()
        assert [row[3] for row in rows] == [1, 2, 3]
        w.answer(rows[:2])
    w.answer(rows[2:])
    flush = w.sent()
    w.session.connection_lost()
    w.session.connection_made(EXPORT)
    again = w.sent()
    assert [row[3] for row in again] == [1, 2, 3]
    w.answer(again)
    flush = w.sent()
    assert [row[1] for row in flush] == [wire.CMD_FLUSH]
    w.answer(flush)
    assert [row[3] for row in w.sent()] == [4]
    assert w.session.statistics().unstable == 0


def test_a_server_that_fails_again_and_again_gets_through() -> None:
    """What if every connection breaks after forty answers, with 300 changes to send again?"""
    w = Wire()
    for n in range(300):
        w.submit("w", DiskCmd.WRITE, n * 512, b"\1" * 512)
    w.answer(w.sent())
    w.submit("last", DiskCmd.WRITE, 0, b"\2" * 512)
    connections = 0
    while w.done[-1][0] != "last":
        w.session.connection_lost()
        w.session.connection_made(EXPORT)
        connections += 1
        left = 40
        while left > 0 and (rows := w.sent()):
            w.answer(rows[:left])
            left -= len(rows)
    assert connections <= 12


def test_fua_writes_keep_their_place_in_a_replay() -> None:
    """What if an unstable write and then a FUA write went to the same place?"""
    w = Wire()
    w.submit("old", DiskCmd.WRITE, 0, b"\1" * 512)
    w.answer(w.sent())
    w.submit("new", DiskCmd.WRITE, 0, b"\2" * 512, fua=True)
    w.answer(w.sent())
    w.session.connection_lost()
    w.session.connection_made(EXPORT)
    assert [row[3] for row in w.sent()] == [1, 2]


def test_too_much_to_remember_is_flushed() -> None:
    """What if more is written than the session wants to remember?"""
    w = Wire(replay=2048)
    for n in range(1, 7):
        w.submit(f"w{n}", DiskCmd.WRITE, n * 512, bytes([n]) * 512)
    w.answer(w.sent())
    flush = w.sent()
    assert [row[1] for row in flush] == [wire.CMD_FLUSH]
    assert w.session.statistics().autoflushes == 1
    w.answer(flush)
    assert w.session.statistics().unstable == 1
    assert len(w.done) == 6


def test_servers_without_commands() -> None:
    """What if the server has no flush, no trim, no FUA, no zeroes?"""
    w = Wire(EXPORT._replace(flags=wire.FLAG_HAS_FLAGS))
    w.submit("flush", DiskCmd.FLUSH)
    w.submit("trim", DiskCmd.TRIM, 0, bytes(512))
    assert w.done == [("flush", 0), ("trim", 0)]
    w.submit("zero", DiskCmd.ZERO, 512, bytes(1024))
    w.submit("fua", DiskCmd.WRITE, 0, b"\7" * 512, fua=True)
    rows = w.sent()
    assert [row[1:] for row in rows] == [(wire.CMD_WRITE, 512, 0), (wire.CMD_WRITE, 0, 7)]
    w.answer(rows)
    assert len(w.done) == 4
    w = Wire(EXPORT._replace(flags=wire.FLAG_HAS_FLAGS | wire.FLAG_SEND_FLUSH))
    w.submit("fua", DiskCmd.WRITE, 0, b"\7" * 512, fua=True)
    w.answer(w.sent())
    assert w.done == []
    flush = w.sent()
    assert [row[1] for row in flush] == [wire.CMD_FLUSH]
    w.answer(flush)
    assert w.done == [("fua", 0)]


def test_requests_larger_than_the_server_takes() -> None:
    """What if a read and a write must be cut, and a piece fails?"""
    w = Wire()
    w.submit("big", DiskCmd.WRITE, 0, b"\1" * 200_704)
    rows = w.sent()
    assert [row[2] for row in rows] == [0, 65536, 131072, 196608]
    w.answer(rows[:3])
    assert not w.done
    w.answer(rows[3:], error=28)
    assert w.done == [("big", ENOSPC)]
    buffers = bytearray(70_000), bytearray(61_072)
    request = DiskRequest(DiskCmd.READ, 0, 131_072, buffers)
    w.session.submit(request, lambda error: w.done.append(("read", error)))
    first, second = w.sent()
    w.session.input(simple(second[0], 0, b"\2" * 65536) + simple(first[0], 0, b"\1" * 65536))
    assert b"".join(buffers) == b"\1" * 65536 + b"\2" * 65536
    assert w.done[-1] == ("read", 0)


@pytest.mark.parametrize(
    "stream",
    [
        lambda h: simple(h, 0, b"x" * 512) + simple(h, 0, b"x" * 512),
        lambda h: chunk(h, 1, wire.REPLY_OFFSET_DATA, struct.pack(">Q", 512) + b"x"),
        lambda h: chunk(h, 1, wire.REPLY_OFFSET_DATA, struct.pack(">Q", 0) + b"x" * 513),
        lambda h: chunk(h, 1, wire.REPLY_OFFSET_HOLE, struct.pack(">QI", 0, 1024)),
        lambda h: chunk(h, 1, wire.REPLY_OFFSET_DATA, struct.pack(">Q", 0) + b"x" * 100),
        lambda h: chunk(h, 1, wire.REPLY_NONE, b""),
        lambda h: chunk(h, 1, wire.REPLY_ERROR, struct.pack(">IH", 108, 0)),
    ],
)
def test_answers_that_do_not_fit(stream: object) -> None:
    """What if an answer has too much, too little, elsewhere, twice, or says goodbye?"""
    w = Wire()
    w.session.submit(
        DiskRequest(DiskCmd.READ, 0, 512, (bytearray(512),)),
        lambda error: w.done.append(("r", error)),
    )
    ((handle, *_),) = w.sent()
    with pytest.raises(NbdError):
        w.session.input(stream(handle))  # type: ignore[operator]


@pytest.mark.parametrize(
    "export",
    [
        EXPORT._replace(size=512),
        EXPORT._replace(flags=wire.FLAG_HAS_FLAGS),
        EXPORT._replace(flags=ALL | wire.FLAG_READ_ONLY),
    ],
)
def test_another_export_than_before(export: Export) -> None:
    """What if the export is smaller, read-only or cannot flush when the connection is back?"""
    w = Wire()
    w.submit("w", DiskCmd.WRITE, 0, b"\1" * 512)
    w.session.connection_lost()
    with pytest.raises(KError) as refused:
        w.session.connection_made(export)
    assert refused.value.errno == ENXIO
    assert w.done == [("w", ENXIO)]
    w.submit("x", DiskCmd.FLUSH)
    assert w.done[-1] == ("x", ENXIO)


def test_an_error_is_not_remembered_as_a_change() -> None:
    """What if a write fails: is it sent again?"""
    w = Wire()
    w.submit("w", DiskCmd.WRITE, 0, b"\1" * 512)
    w.answer(w.sent(), error=5)
    assert w.done == [("w", EIO)]
    assert w.session.statistics().unstable == 0
