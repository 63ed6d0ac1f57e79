"""Packed attributes and listings: one object for all replies, whole records within a limit."""

from __future__ import annotations

import os
import stat
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfuser.fuse.wire import attr, outputs, reply
from dfuser.fuse.wire.attr import pack_entry, pack_negative, pack_statx, unpack_entry
from dfuser.fuse.wire.const import Opcode
from dfuser.fuse.wire.dirent import (
    LONGEST,
    pack_direntplus,
    pack_dirents,
    parse_direntplus,
    parse_dirents,
)
from dfuser.fuse.wire.kernel import parse_reply
from dfuser.fuse.wire.layout import WireError

FILE: dict[str, Any] = {
    "ino": 77, "size": 4097, "blocks": 16, "atime": 1_000_000_001, "mtime": -1,
    "ctime": -1_500_000_000, "mode": stat.S_IFREG | 0o4755, "nlink": 3, "uid": 1001, "gid": 1002,
    "rdev": 0, "blksize": 65536, "flags": 0,
}  # fmt: skip


def packed(**changes: Any) -> bytes:
    """A packed entry of one file, with changes."""
    return pack_entry(5, 9, 86400, 3600, **(FILE | changes))


def test_one_object_for_four_replies() -> None:
    # What if LOOKUP, GETATTR, a listing and STATX told different things about one file?
    data = packed()
    entry = parse_reply(Opcode.LOOKUP, reply.emit_entry(2, data)).body
    alone = parse_reply(Opcode.GETATTR, reply.emit_attr(2, data)).body
    listing, count = pack_direntplus([(data, 77, 1, 8, b"name")], 4096)
    listed, dirent = parse_reply(Opcode.READDIRPLUS, reply.emit_bytes(2, listing)).body[0]
    assert count == 1
    assert entry == listed == unpack_entry(data)
    assert entry.attr == alone.attr
    assert (alone.attr_valid, alone.attr_valid_nsec) == (3600, 0)
    assert entry[:6] == (5, 9, 86400, 3600, 0, 0)
    assert dirent == (77, 1, 8, b"name")
    raw = reply.emit_statx(2, pack_statx(data, btime=5_000_000_006, attributes=16))
    out = parse_reply(Opcode.STATX, raw).body
    assert (out.attr_valid, out.flags) == (3600, 0)
    sx, at = out.stat, entry.attr
    for name in ("ino", "size", "blocks", "mode", "nlink", "uid", "gid", "blksize"):
        assert getattr(sx, name) == getattr(at, name) == FILE[name]
    assert (sx.btime_sec, sx.btime_nsec, sx.attributes) == (5, 6, 16)
    assert sx.mask == attr.STATX_BASIC_STATS | attr.STATX_BTIME
    for name in ("atime", "mtime", "ctime"):
        seconds, nanoseconds = getattr(at, name), getattr(at, name + "nsec")
        assert seconds * 10**9 + nanoseconds == FILE[name]
        assert (getattr(sx, name + "_sec"), getattr(sx, name + "_nsec")) == (seconds, nanoseconds)


def test_statx_without_birth() -> None:
    # What if a file system does not know when a file was made?
    out = parse_reply(Opcode.STATX, reply.emit_statx(2, pack_statx(packed()))).body
    assert out.stat.mask == attr.STATX_BASIC_STATS
    assert (out.stat.btime_sec, out.stat.btime_nsec) == (0, 0)


def test_cold_and_hot_agree() -> None:
    # What if the one-call packing and the packing from records differed?
    data = packed()
    entry = unpack_entry(data)
    assert attr.pack_entry_out(entry) == data
    assert attr.pack_attr_out(entry.attr, 3600) == data[24:]
    assert len(data) == attr.ENTRY_SIZE
    assert len(data[24:]) == attr.ATTR_OUT_SIZE


def test_no_such_name() -> None:
    # What if the kernel took a negative entry for a file?
    entry = parse_reply(Opcode.LOOKUP, reply.emit_entry(2, pack_negative(300))).body
    assert entry[:6] == (0, 0, 300, 0, 0, 0)
    assert set(entry.attr) == {0}


@pytest.mark.parametrize(
    "changes",
    [{"mode": 0o644}, {"mode": 0o170644}, {"mode": 0o1000000}, {"size": 1 << 63}, {"size": -1}],
)
def test_attributes_the_kernel_refuses(changes: dict[str, int]) -> None:
    # What if the kernel answered EIO to a program because a type or a size was impossible?
    with pytest.raises(WireError):
        packed(**changes)


def test_all_types_and_the_largest_size() -> None:
    # What if a legal file were refused?
    for kind in (stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR, stat.S_IFBLK, stat.S_IFREG,
                 stat.S_IFLNK, stat.S_IFSOCK):  # fmt: skip
        assert unpack_entry(packed(mode=kind | 0o7777)).attr.mode == kind | 0o7777
    assert unpack_entry(packed(size=(1 << 63) - 1)).attr.size == (1 << 63) - 1
    with pytest.raises(struct.error):
        packed(uid=1 << 32)


@given(st.integers(0, 0xFFF), st.integers(0, 0xFFFFF))
def test_device_numbers(major: int, minor: int) -> None:
    # What if a device were another one on the other side?
    number = attr.encode_dev(major, minor)
    assert attr.decode_dev(number) == (major, minor)
    assert number < 1 << 32
    # Where both fit, C's own encoding is the same.
    assert os.makedev(major, minor) == number


NAMES = st.binary(min_size=1, max_size=LONGEST).map(
    lambda name: name.replace(b"\0", b"0").replace(b"/", b"1")
)
ROWS = st.lists(
    st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 15), NAMES),
    max_size=30,
)


@given(ROWS, st.integers(0, 6000))
def test_listings_within_a_limit(rows: list[tuple[int, int, int, bytes]], size: int) -> None:
    # What if a record were cut, lay unaligned, went beyond the limit, or one was lost?
    data, count = pack_dirents(iter(rows), size)
    assert parse_dirents(data) == rows[:count]
    assert len(data) <= size
    assert len(data) % 8 == 0
    if count < len(rows):
        assert len(data) + (24 + len(rows[count][3]) + 7 & -8) > size
    plus = [(packed(ino=row[0]), *row) for row in rows]
    data, count = pack_direntplus(iter(plus), size)
    parsed = parse_direntplus(data)
    assert [dirent for _, dirent in parsed] == rows[:count]
    assert [entry.attr.ino for entry, _ in parsed] == [row[0] for row in rows[:count]]
    assert len(data) <= size
    if count < len(rows):
        assert len(data) + (152 + len(rows[count][3]) + 7 & -8) > size


def test_a_listing_fills_its_limit() -> None:
    # What if the last record that just fits were left out, or one byte more were taken?
    rows = [(1, at, 8, b"n" * 8) for at in range(4)]
    plus = [(packed(), *row) for row in rows]
    for pack, listed, record in ((pack_dirents, rows, 32), (pack_direntplus, plus, 160)):
        for count in range(5):
            assert pack(listed, count * record)[1] == count
            assert pack(listed, count * record + record - 1)[1] == count
    assert pack_dirents([(1, 1, 8, b"n" * 9)], 39) == (b"", 0)
    assert pack_direntplus([(packed(), 1, 1, 8, b"n" * 9)], 167) == (b"", 0)


def test_every_length_of_a_name() -> None:
    # What if the padding of some length were wrong: the kernel would lose all entries behind it.
    for length in range(1, LONGEST + 1):
        name = b"n" * length
        data, _ = pack_dirents([(1, 2, 4, name)], 4096)
        assert data == struct.pack("=QQII", 1, 2, length, 4) + name + bytes(-length % 8)
        data, _ = pack_direntplus([(packed(), 1, 2, 4, name)], 4096)
        wanted = packed() + struct.pack("=QQII", 1, 2, length, 4) + name + bytes(-length % 8)
        assert data == wanted


@pytest.mark.parametrize("name", [b"", b"n" * (LONGEST + 1)])
def test_names_that_no_listing_has(name: bytes) -> None:
    # What if an impossible name ended the whole listing with EIO in the kernel?
    with pytest.raises(WireError):
        pack_dirents([(1, 1, 8, name)], 4096)
    with pytest.raises(WireError):
        pack_direntplus([(packed(), 1, 1, 8, name)], 4096)


def test_broken_listings() -> None:
    # What if a listing is cut anywhere, or a name in it is none?
    rows = [(1, 1, 4, b"."), (2, 2, 8, b"a name")]
    data, _ = pack_dirents(rows, 4096)
    plus, _ = pack_direntplus([(packed(), *row) for row in rows], 4096)
    for whole, parse in ((data, parse_dirents), (plus, parse_direntplus)):
        good = {0, len(whole) // 2}
        for size in set(range(len(whole))) - good:
            with pytest.raises(WireError):
                parse(whole[:size])
    for name in (b"a/b", b"a\0b"):
        with pytest.raises(WireError):
            parse_dirents(pack_dirents([(1, 1, 8, name)], 4096)[0])
    with pytest.raises(WireError):
        parse_dirents(outputs.DIRENT.pack(1, 1, 0, 8))
    with pytest.raises(WireError):
        parse_dirents(outputs.DIRENT.pack(1, 1, 0xFFFFFFFF, 8) + b"n" * 100)
