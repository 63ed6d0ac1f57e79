"""The frames of the control socket: any chunking, any corruption."""

from __future__ import annotations

import itertools
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfuser.client.wire import (
    EBADMSG,
    EPROTONOSUPPORT,
    HEADER,
    MAGIC,
    MAX_REQUEST,
    VERSION,
    Decoder,
    Frame,
    Op,
    WireError,
)

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
frames = st.builds(
    Frame,
    op=st.integers(0, 255),
    msgid=st.integers(0, 2**32 - 1),
    error=st.integers(-(2**31), 2**31 - 1),
    payload=values,
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The pieces of ``data`` between sorted places."""
    marks = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(marks)]


@given(st.lists(frames, max_size=5), st.lists(st.integers(0, 10_000), max_size=8))
def test_any_chunking_gives_the_same_frames(sent: list[Frame], places: list[int]) -> None:
    # What if the stream is cut anywhere, also inside a header?
    decoder = Decoder(1 << 20)
    got: list[Frame] = []
    for piece in cut(b"".join(frame.encode() for frame in sent), places):
        got += decoder.feed(piece)
    assert got == sent
    assert decoder.pending == 0


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_random_bytes_never_do_worse_than_a_wire_error(data: bytes, places: list[int]) -> None:
    # What if the peer is no client at all?
    decoder = Decoder(1 << 16)
    errno = 0
    try:
        for piece in cut(data, places):
            list(decoder.feed(piece))
    except WireError as error:
        errno = error.errno
    assert errno in (EBADMSG, EPROTONOSUPPORT) or decoder.pending <= len(data)


@given(frames, st.integers(0, 10_000), st.integers(1, 255))
def test_one_flipped_byte_is_a_frame_or_a_wire_error(frame: Frame, at: int, flip: int) -> None:
    # What if one byte of a good frame was damaged?
    data = bytearray(frame.encode())
    data[at % len(data)] ^= flip
    decoder = Decoder(1 << 16)
    try:
        got = list(decoder.feed(bytes(data)))
    except WireError:
        return
    assert len(got) <= 1
    assert len(got) == 1 or decoder.pending


def test_frames_before_a_corrupt_one_are_delivered() -> None:
    # What if good messages and garbage arrive in one piece?
    good = Frame(Op.HELLO, 1, 0, {"client": "a"})
    decoder = Decoder(1 << 16)
    got = []
    with pytest.raises(WireError, match="not a dfuser control message"):
        got.extend(iter_into(decoder.feed(good.encode() + b"GARBAGE!"), got))
    assert got == [good]


def iter_into(frames_in: object, got: list[Frame]) -> list[Frame]:
    """Append frames one by one, so that those before an error are kept."""
    for frame in frames_in:  # type: ignore[attr-defined]
        got.append(frame)
    return []


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_wrong_beginning_is_seen_before_the_header_is_whole(length: int) -> None:
    # What if garbage shorter than a header came and the decoder waited for ever?
    with pytest.raises(WireError):
        list(Decoder(10).feed(b"GET"[:length]))


def test_another_version_is_told_apart_from_garbage() -> None:
    # What if a newer client comes: does it learn what is wrong?
    data = HEADER.pack(MAGIC, VERSION + 1, Op.HELLO, 0, 0, 0, 0)
    with pytest.raises(WireError, match="version 2") as caught:
        list(Decoder(10).feed(data))
    assert caught.value.errno == EPROTONOSUPPORT


def test_a_payload_over_the_limit_is_refused_by_its_header() -> None:
    # What if a peer announces four gigabytes: are they collected first?
    decoder = Decoder(MAX_REQUEST)
    with pytest.raises(WireError, match="over the limit"):
        list(decoder.feed(HEADER.pack(MAGIC, VERSION, Op.SENDMSG, 0, 1, 0, 0xFFFFFFFF)))


def test_a_payload_that_is_no_json_is_a_wire_error() -> None:
    # What if the header is right and the payload is not?
    for body in (b"{", b"\xff\xfe", b"[" * 100_000):
        data = HEADER.pack(MAGIC, VERSION, Op.SENDMSG, 0, 1, 0, len(body)) + body
        with pytest.raises(WireError, match="not JSON"):
            list(Decoder(1 << 20).feed(data))


def test_the_layout_is_the_documented_one() -> None:
    # What if a field moved? Clients in other languages are written after the documentation.
    data = Frame(Op.REPLY, 7, -3, {"a": 1}).encode()
    magic, version, op, flags, msgid, error, length = struct.unpack("<4sBBHIiI", data[:20])
    assert (magic, version, op, flags, msgid, error) == (b"DFMP", 1, 3, 0, 7, -3)
    assert json.loads(data[20:]) == {"a": 1}
    assert length == len(data) - 20


def test_lone_surrogates_survive() -> None:
    # What if a path is not UTF-8? Both ends carry it as surrogate escapes.
    frame = Frame(Op.SENDMSG, 1, 0, {"path": b"/a\xff".decode("utf-8", "surrogateescape")})
    [got] = Decoder(1 << 10).feed(frame.encode())
    assert got.payload["path"].encode("utf-8", "surrogateescape") == b"/a\xff"
