"""Records against struct and against themselves."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfuser.libkern.errno import EINVAL, EOVERFLOW, KError
from dfuser.libkern.structs import (
    Record,
    array,
    chars,
    nested,
    pad,
    raw,
    s8,
    s16,
    s32,
    s64,
    u8,
    u16,
    u32,
    u64,
)


class Point(Record, endian=">"):
    x: int = s16()
    y: int = s16(default=-1)


class Numbers(Record):
    a: int = u8()
    b: int = s8()
    c: int = u16()
    d: int = u32()
    e: int = s32()
    f: int = u64()
    g: int = s64()


class Everything(Record):
    magic: int = u32(default=0x1234)
    name: bytes = chars(8, default=b"")
    blob: bytes = raw(4, default=b"\0" * 4)
    _hole: None = pad(2)
    words: tuple[int, ...] = array(u16(), 3, default=(0, 0, 0))
    at: Point = nested(Point, default=None)
    many: tuple[Point, ...] = nested(Point, 2, default=())


def full(**changes: object) -> Everything:
    """A record with every field filled."""
    values: dict[str, object] = {"at": Point(1, 2), "many": (Point(3), Point(4, 5))}
    return Everything(**(values | changes))  # type: ignore[arg-type]


@given(
    st.tuples(
        st.integers(0, 255),
        st.integers(-128, 127),
        st.integers(0, 2**16 - 1),
        st.integers(0, 2**32 - 1),
        st.integers(-(2**31), 2**31 - 1),
        st.integers(0, 2**64 - 1),
        st.integers(-(2**63), 2**63 - 1),
    )
)
def test_numbers_against_struct(values: tuple[int, int, int, int, int, int, int]) -> None:
    # What if a code had the wrong width or sign, or padding crept in?
    data = struct.pack("<BbHIiQq", *values)
    assert Numbers(*values).pack() == data
    assert Numbers.unpack_from(b"pre" + data, 3) == Numbers(*values)
    assert Numbers.size == len(data) == 28


@given(st.binary(min_size=36, max_size=36))
def test_any_bytes_come_back(data: bytes) -> None:
    # What if reading and writing a record changed a byte that is not a hole?
    record = Everything.unpack_from(data)
    again = Everything.unpack_from(record.pack())
    assert again == record
    assert record.pack()[:4] == data[:4]
    assert record.pack()[16:18] == b"\0\0"
    assert record.pack()[18:] == data[18:]


def test_layout() -> None:
    # What if a field began elsewhere than the format says?
    assert Everything.size == 36
    offsets = [Everything.offset_of(n) for n in ("magic", "name", "blob", "words", "at", "many")]
    assert offsets == [0, 4, 12, 18, 24, 28]
    data = full(name=b"dev", words=(1, 2, 3)).pack()
    assert data[4:12] == b"dev\0\0\0\0\0"
    assert data[18:24] == b"\1\0\2\0\3\0"
    assert data[24:28] == b"\0\1\0\2"
    with pytest.raises(KeyError):
        Everything.offset_of("nope")


def test_big_and_little() -> None:
    # What if the byte order of the outer record leaked into the inner one?
    assert Point(1, 2).pack() == b"\0\1\0\2"
    assert full().pack()[24:28] == b"\0\1\0\2"
    with pytest.raises(ValueError, match="endian"):
        type("Bad", (Record,), {}, endian="!")


def test_strings_end_at_their_nul() -> None:
    # What if garbage behind the NUL became part of a name?
    data = bytearray(full(name=b"ab").pack())
    data[7:9] = b"zz"
    assert Everything.unpack_from(data).name == b"ab"


@pytest.mark.parametrize(
    "record",
    [
        Numbers(256, 0, 0, 0, 0, 0, 0),
        Numbers(0, 0, -1, 0, 0, 0, 0),
        full(name=b"ninechars"),
        full(blob=b"12345"),
        full(words=(1, 2)),
        full(words=(1, 2, 70000)),
        full(many=(Point(1),)),
    ],
)
def test_what_does_not_fit_is_refused(record: Record) -> None:
    # What if a value were cut to its field without a word?
    with pytest.raises(KError) as caught:
        record.pack()
    assert caught.value.errno == EOVERFLOW


def test_short_buffers_are_refused() -> None:
    # What if a torn block were read past its end?
    for buffer, offset in ((b"", 0), (b"\0" * 3, 0), (b"\0" * 8, 5), (b"\0" * 8, -1)):
        with pytest.raises(KError) as caught:
            Point.unpack_from(buffer, offset)
        assert caught.value.errno == EINVAL
    with pytest.raises(KError):
        Point.iter_unpack(b"\0" * 5)
    room = bytearray(5)
    with pytest.raises(KError):
        Point(1, 2).pack_into(room, 2)
    assert room == bytearray(5)
    Point(1, 2).pack_into(room, 1)
    assert room == b"\0\0\1\0\2"
    assert list(Point.iter_unpack(bytes(8))) == [Point(0, 0), Point(0, 0)]


def test_making_records() -> None:
    # What if a misspelt field were accepted, or a default shared?
    with pytest.raises(TypeError, match="needs x"):
        Point()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unknown"):
        Point(1, z=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="twice"):
        Point(1, x=3)  # type: ignore[misc]
    with pytest.raises(TypeError, match="has 2"):
        Point(1, 2, 3)  # type: ignore[call-arg]
    assert repr(Point(1)) == "Point(x=1, y=-1)"
    assert Point(1).replace(y=5) == Point(1, 5)
    assert Point(1) != Point(2)
    assert Point(1) != (1, -1)
    with pytest.raises(AttributeError):
        Point(1).z = 3  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="unhashable"):
        hash(Point(1))
