"""Requests and replies there and back, and what must be refused: every opcode, both directions."""

from __future__ import annotations

import contextlib
import random
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dfuser.fuse.wire import attr, const, ext, outputs, reply
from dfuser.fuse.wire.const import WRITE_DATA, Notify, Opcode
from dfuser.fuse.wire.dirent import pack_direntplus, pack_dirents
from dfuser.fuse.wire.inputs import InitIn, UnknownIn
from dfuser.fuse.wire.kernel import SHAPES, Tail, emit_request, parse_reply
from dfuser.fuse.wire.layout import Layout, WireError, take_name
from dfuser.fuse.wire.notify import parse_notification
from dfuser.fuse.wire.operations import OPERATIONS, has_reply, name_of, refusal
from dfuser.fuse.wire.request import (
    PARSERS,
    Request,
    parse_header,
    parse_request,
    parsers_for,
)

from .test_wire_traffic import EMITTED, NOTIFIED, again, emitted
from .wire_corpus import recorded

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
NAMES = st.binary(min_size=1, max_size=300).map(lambda b: b.replace(b"\0", b"n"))
BYTES = st.binary(max_size=300)
RANGES = {
    "H": st.integers(0, 2**16 - 1),
    "I": U32,
    "i": st.integers(-(2**31), 2**31 - 1),
    "Q": U64,
    "q": st.integers(-(2**63), 2**63 - 1),
}


def members(layout: Layout) -> list[st.SearchStrategy[int]]:
    """A strategy for each member of a structure."""
    codes = struct.Struct(layout.struct.format).format
    found: list[st.SearchStrategy[int]] = []
    repeat = ""
    for code in codes.lstrip("="):
        if code.isdigit():
            repeat += code
            continue
        if code != "x":
            found += [RANGES[code]] * int(repeat or 1)
        repeat = ""
    return found


@st.composite
def bodies(draw: st.DrawFn, opcode: Opcode) -> tuple[Any, bytes]:
    """What the parser of an opcode answers, and the data that WRITE and its like carry."""
    layout, tail, one = SHAPES[opcode]
    if opcode == Opcode.INIT:
        minor = draw(st.integers(36, 99))
        flags = draw(U64) | 1 << 30
        return InitIn(7, minor, draw(U32), flags), b""
    if tail is Tail.RECORDS:
        assert one is not None
        return draw(st.lists(st.tuples(*members(one)), max_size=20)), b""
    if layout is None or layout.record is tuple:
        names = tuple(draw(NAMES) for _ in range({Tail.NAME: 1, Tail.NAMES: 2}.get(tail, 0)))
        if opcode == Opcode.SYMLINK:
            return names, b""
        return (names[0] if names else None), b""
    values = dict(zip(layout.record._fields, (draw(m) for m in members(layout)), strict=False))
    data = draw(BYTES) if tail in (Tail.DATA, Tail.VALUE) else b""
    for size in ("size", "in_size"):
        if tail in (Tail.DATA, Tail.VALUE) and size in values:
            values[size] = len(data)
    for field in layout.record._fields[len(values) :]:
        values[field] = data if field == "data" else draw(NAMES)
    if opcode == Opcode.FORGET:
        return values["nlookup"], b""
    return layout.record(**values), b"" if "data" in values else data


SECCTX = st.builds(lambda name, context: ext.Secctx(len(context), name, context), NAMES, BYTES)
EXTENSIONS = st.lists(
    st.one_of(
        st.builds(ext.SecurityContexts, st.lists(SECCTX, max_size=4).map(tuple)),
        st.builds(ext.SuppGroups, st.lists(U32, max_size=33).map(tuple)),
    ),
    max_size=3,
).map(tuple)


@pytest.mark.parametrize("opcode", list(Opcode), ids=lambda op: op.name)
@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_requests_there_and_back(opcode: Opcode, data: st.DataObject) -> None:
    # What if some value of some member is not what comes out at the other end?
    body, payload = data.draw(bodies(opcode))
    extensions = data.draw(EXTENSIONS)
    unique, nodeid, pid = data.draw(U64), data.draw(U64), data.draw(U32)
    raw = emit_request(
        opcode, body, unique=unique, nodeid=nodeid, uid=pid, gid=0, pid=pid, data=payload,
        extensions=extensions,
    )  # fmt: skip
    request = parse_request(raw)
    assert request.header[:7] == (len(raw), opcode, unique, nodeid, pid, 0, pid)
    assert request.body == body
    assert request.extensions == extensions
    assert not payload or raw[WRITE_DATA : WRITE_DATA + len(payload)] == payload
    assert again(request, raw) == raw


def test_setxattr_has_two_forms() -> None:
    # What if SETXATTR_EXT was not negotiated and the value were read eight bytes too late?
    body = (5, 1, 0, b"user.x", b"value")
    raw = emit_request(Opcode.SETXATTR, body, unique=2, setxattr_ext=False)
    assert len(raw) == 40 + 8 + 7 + 5
    assert parse_request(raw, parsers=parsers_for(setxattr_ext=False)).body == body
    with pytest.raises(WireError):
        parse_request(raw)
    assert parsers_for(setxattr_ext=True) is PARSERS


@st.composite
def replies(draw: st.DrawFn, opcode: Opcode) -> Any:
    """What `parse_reply` answers for an opcode."""
    attrs = st.builds(outputs.Attr, *members(outputs.ATTR))
    entries = st.tuples(*members(outputs.ENTRY_HEAD), attrs).map(lambda t: outputs.EntryOut(*t))
    files = NAMES.map(lambda name: name.replace(b"/", b"s")[:255])
    dirents = st.builds(outputs.Dirent, U64, U64, U32, files)
    reply_of = {row.opcode: row.reply for row in OPERATIONS}[opcode]
    simple = {
        "fuse_open_out": outputs.OPEN_OUT,
        "fuse_write_out": outputs.WRITE_OUT,
        "fuse_statfs_out": outputs.STATFS_OUT,
        "fuse_lk_out": outputs.LK_OUT,
        "fuse_poll_out": outputs.POLL_OUT,
        "fuse_lseek_out": outputs.LSEEK_OUT,
        "fuse_copy_file_range_out": outputs.COPY_FILE_RANGE_OUT,
        "fuse_init_out": outputs.INIT_OUT,
        "fuse_bmap_out": outputs.BMAP_OUT,
    }
    if layout := simple.get(reply_of):
        return draw(st.builds(layout.record, *members(layout)))
    return draw(
        {
            "nothing": st.none(),
            "data": BYTES,
            "fuse_getxattr_out or data": BYTES,
            "fuse_entry_out": entries,
            "fuse_attr_out": st.builds(outputs.AttrOut, U64, U32, attrs),
            "fuse_statx_out": st.builds(
                outputs.StatxOut, U64, U32, U32, st.builds(outputs.Statx, *members(outputs.STATX))
            ),
            "fuse_entry_out, fuse_open_out": st.builds(
                outputs.CreateOut, entries, st.builds(outputs.OpenOut, *members(outputs.OPEN_OUT))
            ),
            "fuse_ioctl_out, data": st.builds(
                outputs.IoctlOut, RANGES["i"], st.just(0), st.just(0), st.just(0), BYTES,
                st.just(()),
            ),
            "fuse_dirent ...": st.lists(dirents, max_size=8),
            "fuse_direntplus ...": st.lists(st.tuples(entries, dirents), max_size=8),
        }[reply_of]
    )  # fmt: skip


@pytest.mark.parametrize(
    "opcode", [row.opcode for row in OPERATIONS if row.reply], ids=lambda op: op.name
)
@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_replies_there_and_back(opcode: Opcode, data: st.DataObject) -> None:
    # What if some value of some member of a reply is not what the kernel reads?
    body = data.draw(replies(opcode))
    unique = data.draw(st.integers(1, 2**64 - 1))
    if opcode == Opcode.BMAP:
        raw = reply.emit_bmap(unique, body.block)
    else:
        raw = emitted(opcode, unique, body)
    assert parse_reply(opcode, raw) == (0, unique, body)
    with pytest.raises(WireError):
        parse_reply(opcode, raw + b"\0")
    for size in range(16):
        with pytest.raises(WireError):
            parse_reply(opcode, raw[:size])
    assert has_reply(opcode)


def test_errors_there_and_back() -> None:
    # What if an error number were one that the kernel takes for its own, or none?
    for number in (1, 38, 511):
        assert parse_reply(Opcode.LOOKUP, reply.emit_error(9, number)) == (number, 9, None)
    for number in (0, -2, 512):
        with pytest.raises(WireError):
            reply.emit_error(9, number)
    for raw in (struct.pack("=IiQ", 16, 5, 9), struct.pack("=IiQ", 16, -512, 9)):
        with pytest.raises(WireError):
            parse_reply(Opcode.LOOKUP, raw)
    with pytest.raises(WireError):
        parse_reply(Opcode.FORGET, reply.emit_ok(9))


def test_data_longer_than_asked_is_refused() -> None:
    # What if a reply carried more than the request has room for?
    raw = b"".join(reply.emit_data(4, bytes(100)))
    assert parse_reply(Opcode.READ, raw, 100).body == bytes(100)
    for opcode in (Opcode.READ, Opcode.GETXATTR, Opcode.LISTXATTR, Opcode.READDIR):
        with pytest.raises(WireError):
            parse_reply(opcode, raw, 99)
    assert parse_reply(Opcode.GETXATTR, reply.emit_xattr_size(4, 77), 0).body == (77,)


def test_buffers_are_not_copied() -> None:
    # What if the data of a READ were copied on its way to writev?
    page = memoryview(bytearray(4096))
    head, same = reply.emit_data(6, page)
    assert same is page
    listed = reply.emit_buffers(6, [page, page])
    assert [len(b) for b in listed] == [16, 4096, 4096]
    assert listed[1] is page
    assert head == struct.pack("=IiQ", 4112, 0, 6)
    assert listed[0] == struct.pack("=IiQ", 8208, 0, 6)


def test_ioctl_retry() -> None:
    # What if an ioctl that asks for the caller's memory named pieces the kernel does not read?
    raw = reply.emit_ioctl_retry(8, [(4096, 8), (8192, 16)], [(0, 1)])
    body = parse_reply(Opcode.IOCTL, raw).body
    assert (body.in_iovs, body.out_iovs, body.flags) == (2, 1, const.FUSE_IOCTL_RETRY)
    assert body.iovecs == ((4096, 8), (8192, 16), (0, 1))
    assert len(parse_reply(Opcode.IOCTL, reply.emit_ioctl_retry(8, [(0, 1)] * 256, [])).body) == 6
    with pytest.raises(WireError):
        reply.emit_ioctl_retry(8, [(0, 1)] * 256, [(0, 1)])
    with pytest.raises(WireError):
        parse_reply(Opcode.IOCTL, raw[:4].replace(raw[:1], bytes([len(raw) - 1])) + raw[4:-1])
    with pytest.raises(WireError):
        parse_reply(Opcode.IOCTL, reply.emit_ioctl(8, 0, b"12345678"), asked=7)


def head(opcode: int, size: int, extlen: int = 0) -> bytes:
    """The head of a request of so many bytes."""
    return struct.pack("=IIQQIIIHH", size, opcode, 2, 1, 0, 0, 0, extlen, 0)


@pytest.mark.parametrize(
    ("opcode", "body"),
    [
        (Opcode.LOOKUP, b""),
        (Opcode.LOOKUP, b"\0"),
        (Opcode.LOOKUP, b"name"),
        (Opcode.LOOKUP, b"na\0me\0"),
        (Opcode.LOOKUP, b"name\0\0"),
        (Opcode.SYMLINK, b"name\0target"),
        (Opcode.SYMLINK, b"name\0\0"),
        (Opcode.SYMLINK, b"\0target\0"),
        (Opcode.RENAME, bytes(8) + b"one\0"),
        (Opcode.RENAME, bytes(8) + b"one\0two\0three\0"),
        (Opcode.READLINK, b"x"),
        (Opcode.WRITE, struct.pack("=QQIIQII", 0, 0, 5, 0, 0, 0, 0) + b"1234"),
        (Opcode.WRITE, struct.pack("=QQIIQII", 0, 0, 3, 0, 0, 0, 0) + b"1234"),
        (Opcode.NOTIFY_REPLY, struct.pack("=QQIIQQ", 0, 0, 9, 0, 0, 0)),
        (Opcode.BATCH_FORGET, struct.pack("=II", 2, 0) + bytes(16)),
        (Opcode.BATCH_FORGET, struct.pack("=II", 0xFFFFFFFF, 0) + bytes(16)),
        (Opcode.BATCH_FORGET, b"1234"),
        (Opcode.REMOVEMAPPING, struct.pack("=I", 1) + bytes(8)),
        (Opcode.SETXATTR, struct.pack("=IIII", 9, 0, 0, 0) + b"user.x\0value"),
        (Opcode.SETXATTR, struct.pack("=IIII", 3, 0, 0, 0) + b"user.x\0value"),
        (Opcode.SETXATTR, struct.pack("=IIII", 0, 0, 0, 0) + b"user.x"),
        (Opcode.IOCTL, struct.pack("=QIIQII", 0, 0, 0, 0, 5, 0) + b"1234"),
        (Opcode.IOCTL, bytes(31)),
        (Opcode.INIT, bytes(15)),
        (Opcode.FORGET, bytes(7)),
        (Opcode.SYNCFS, b""),
    ],
)
def test_sizes_that_lie(opcode: Opcode, body: bytes) -> None:
    # What if a size inside contradicts what is there, or a name has a NUL inside or none behind?
    with pytest.raises(WireError):
        parse_request(head(opcode, 40 + len(body)) + body)


def test_heads_that_lie() -> None:
    # What if the head says another length than was read, or extensions longer than the request?
    good = head(Opcode.LOOKUP, 45) + b"name\0"
    assert parse_request(good).body == b"name"
    for raw in (good + b"\0", good[:-1], good[:39], b""):
        with pytest.raises(WireError):
            parse_request(raw)
    for extlen in (1, 5, 6, 0xFFFF):
        with pytest.raises(WireError):
            parse_request(head(Opcode.LOOKUP, 45, extlen) + b"name\0")
    with pytest.raises(WireError):
        parse_header(bytes(40), 39)


@pytest.mark.parametrize(
    "area",
    [
        struct.pack("=II", 7, 32),
        struct.pack("=II", 17, 32) + bytes(8),
        struct.pack("=II", 0, 0),
        struct.pack("=III", 16, 32, 2) + bytes(4),
        struct.pack("=II", 8, 32),
        struct.pack("=II", 8, 1),
        struct.pack("=IIII", 16, 1, 0, 0),
        struct.pack("=IIII", 24, 1, 9, 0) + b"selinux\0",
        struct.pack("=IIII", 24, 2, 0, 0) + b"selinux\0",
        struct.pack("=IIII", 24, 1, 0xFFFFFFFF, 0) + b"seli\0abc",
    ],
)
def test_extensions_that_lie(area: bytes) -> None:
    # What if an extension reaches beyond its area, or says more than it holds?
    body = struct.pack("=II", 0o755, 0) + b"d\0"
    raw = head(Opcode.MKDIR, 50 + len(area), len(area) // 8) + body + area
    with pytest.raises(WireError):
        parse_request(raw)


def test_an_unknown_extension_is_kept() -> None:
    # What if a newer kernel appends something that nobody here knows?
    body = struct.pack("=II", 0o755, 0) + b"d\0"
    area = struct.pack("=II8s", 16, 77, b"whatever")
    request = parse_request(head(Opcode.MKDIR, 66, 2) + body + area)
    assert request.extensions == (ext.UnknownExtension(77, b"whatever"),)
    assert request.body == (0o755, 0, b"d")
    assert ext.emit_extensions(request.extensions) == area


def test_unknown_opcodes_are_reported() -> None:
    # What if a kernel asks for something new: an exception, or a request that can be answered?
    for opcode in (0, 7, 19, 54, 2016, const.CUSE_INIT, const.FUSE_INIT_BSWAP_RESERVED):
        request = parse_request(head(opcode, 44) + b"what")
        assert request.body == UnknownIn(opcode, b"what")
        assert refusal(opcode) == 38
        assert has_reply(opcode)
        assert name_of(opcode) == f"opcode {opcode}"
        assert again(request, b"") == head(opcode, 44) + b"what"
    assert name_of(Opcode.READ) == "READ"
    assert {row.opcode for row in OPERATIONS if row.refuse} == {
        Opcode.BMAP, Opcode.SETUPMAPPING, Opcode.REMOVEMAPPING,
    }  # fmt: skip
    assert not any(has_reply(op) for op in (Opcode.FORGET, Opcode.BATCH_FORGET))


def test_names_that_cannot_be_written() -> None:
    # What if a name with a NUL went out, and the reader saw another name?
    for name in (b"", b"a\0b", b"\0"):
        with pytest.raises(WireError):
            emit_request(Opcode.LOOKUP, name, unique=2)
    assert take_name(b"xxname\0", 2, 7) == b"name"


def judge(data: bytes) -> None:
    """Whatever the bytes are, nothing but WireError comes out of any parser."""
    for parse in (parse_request, parse_notification):
        with contextlib.suppress(WireError):
            parse(data)


def test_100_000_random_buffers(rng: random.Random) -> None:
    # What if the bytes are nothing at all, or a request in which anything is wrong?
    real = [m.data for m in recorded() if m.kernel] + [m.data for m in recorded() if not m.kernel]
    taken = 0
    for number in range(100_000):
        if number & 3 == 0:
            raw = bytearray(rng.randbytes(rng.randrange(120)))
        else:
            raw = bytearray(rng.choice(real)[:400])
            for _ in range(rng.randrange(1, 4)):
                if raw:
                    raw[rng.randrange(len(raw))] = rng.choice((0, 1, 255, rng.randrange(256)))
            if number & 1:
                del raw[rng.randrange(len(raw) + 1) :]
        if number & 2 and len(raw) >= 40:
            raw[0:4] = struct.pack("=I", len(raw))
            raw[4:8] = struct.pack("=I", rng.randrange(60))
            raw[36:38] = bytes(2) if number & 4 else raw[36:38]
        try:
            request = parse_request(raw)
        except WireError:
            continue
        taken += 1
        assert isinstance(request, Request)
    assert 1000 < taken < 99_000


def test_random_replies_and_notifications(rng: random.Random) -> None:
    # What if the other end sends rubbish: does the tracer that shows it survive?
    real = [m.data for m in recorded() if not m.kernel]
    codes = [*Opcode, 0, 77, 4096]
    taken = 0
    for _ in range(20_000):
        raw = bytearray(rng.choice(real)[:600])
        for _ in range(rng.randrange(3)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        del raw[rng.randrange(len(raw) + 1) :]
        raw[0:4] = struct.pack("=I", len(raw))
        judge(raw)
        try:
            parse_reply(rng.choice(codes), raw, rng.choice((None, 0, 10, 4096)))
        except WireError:
            continue
        taken += 1
    assert taken > 100


def test_a_batch_is_read_in_one_pass() -> None:
    # What if a batch as long as a buffer holds were cut or came in another order?
    pairs = [(number, number + 1) for number in range(60_000)]
    raw = bytearray(emit_request(Opcode.BATCH_FORGET, pairs, unique=2))
    assert parse_request(raw).body == pairs
    del raw[:]  # a view that is still open would forbid this


def test_tables_agree() -> None:
    # What if an opcode were in one table and not in the other?
    assert len(OPERATIONS) == len(Opcode)
    assert {row.opcode for row in OPERATIONS} == set(Opcode) == set(SHAPES)
    assert len(PARSERS) == max(Opcode) + 1
    assert set(EMITTED) < set(Opcode)
    assert len(NOTIFIED) == len(Notify)
    assert pack_dirents([], 4096) == pack_direntplus([], 4096) == (b"", 0)
    assert len(attr.NO_ENTRY) == attr.ENTRY_SIZE
