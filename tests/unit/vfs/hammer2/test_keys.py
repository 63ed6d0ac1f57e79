"""Hashes of names, their collisions, sizes of pieces: against the names on real volumes."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfuser.vfs.hammer2.ondisk.const import (
    BOOT_KEY,
    DIRHASH_FORCED,
    DIRHASH_LOMASK,
    DIRHASH_VISIBLE,
)
from dfuser.vfs.hammer2.ondisk.keys import (
    calc_physical,
    cookie_of,
    dirhash,
    dirhash_last,
    getradix,
    key_of_cookie,
    probe,
)
from tests.unit.vfs.hammer2 import images


def crc32c(data: bytes) -> int:
    """CRC-32C by its definition, a bit at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def slow_dirhash(name: bytes) -> int:
    """The hash as its description says it, without any trick."""
    fields, field = [], b""
    for byte in name:
        if chr(byte) in ".-_~":
            fields.append(field)
            field = b""
        else:
            field += bytes([byte])
    fields.append(field)
    upper = sum(crc32c(field) for field in fields if field) & 0xFFFFFFFF
    whole = crc32c(name)
    lower = (whole ^ whole << 16) & 0xFFFF0000
    return (upper | 0x80000000) << 32 | lower | 0x8000


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (b"BOOT", BOOT_KEY),
        (b"ROOT", 0xB0D7DDDC6D0B8000),
        (b"LOCAL", 0xDE25E1C43FE18000),
        (b"DATA", 0xC78FFF92381D8000),
        (b"", 0x8000000000008000),
        (b"...", 0x8000000000008000 | slow_dirhash(b"...") & 0xFFFF0000),
    ],
)
def test_known_hashes(name, key):
    # What if a label of DragonFly's were looked for under another key?
    assert dirhash(name) == key


@given(st.binary(max_size=255) | st.text(".-_~ab", max_size=40).map(str.encode))
def test_the_fast_hash_is_the_described_one(name):
    # What if the shortcut through translate and split lost a field or a separator?
    assert dirhash(name) == slow_dirhash(name)


@given(st.binary(max_size=255))
def test_the_forced_bits(name):
    # What if a name's key were an inode number, or its range met the one of another hash?
    key = dirhash(name)
    assert key & DIRHASH_VISIBLE
    assert key & DIRHASH_FORCED
    assert key & DIRHASH_LOMASK == 0
    assert dirhash_last(key) - key == 32767
    assert key_of_cookie(cookie_of(key)) == key
    assert cookie_of(key) > 1


@given(st.permutations(["ab", "c1", "x", "yz"]))
def test_parts_in_any_order_share_the_upper_half(parts):
    # What if similar names were not kept together?
    name = ".".join(parts).encode()
    assert dirhash(name) >> 32 == dirhash(b"ab-c1_x~yz") >> 32


def names_by_hash(name: str) -> dict[tuple[bytes, int], list[tuple[int, bytes]]]:
    """All names of an image: key and name by directory and hash."""
    found = defaultdict(list)
    for pfs in images.reader(name).pfs_list():
        for path, node in pfs.walk():
            if node.is_directory:
                for entry in pfs.readdir(node):
                    place = (pfs.label + b":" + path, dirhash(entry.name))
                    found[place].append((entry.key, entry.name))
    return found


@pytest.mark.parametrize("name", ["lz4_xxhash", "four_headers"])
def test_names_of_dragonfly_lie_in_the_range_of_their_hash(name):
    # What if a name were not where the kernel's probe puts it: first +1, second +0?
    collisions = 0
    for (_, base), entries in names_by_hash(name).items():
        used: list[int] = []
        for _ in entries:
            key = probe(base, sorted(used))
            assert key is not None
            used.append(key)
        assert sorted(used) == [key for key, _ in entries]
        collisions += len(entries) > 1
    assert collisions >= 2


def test_the_probe_fills_the_whole_range():
    # What if the probe gave one key twice, or stopped long before the range is full?
    base = dirhash(b"name")
    used: list[int] = []
    for _ in range(2000):
        key = probe(base, sorted(used))
        assert key is not None
        assert key not in used
        assert base <= key <= dirhash_last(base)
        used.append(key)
    assert [key - base for key in used[:6]] == [1, 0, 3, 2, 5, 4]


def test_a_full_range_has_no_key():
    # What if an entry were put beyond its range, where nobody would look for it?
    base = dirhash(b"name")
    assert probe(base, range(base, base + 32768)) is None
    assert probe(base, range(base, base + 32767)) is None
    assert probe(base, range(base + 1, base + 32768)) == base


@pytest.mark.parametrize(
    ("size", "radix"),
    [(0, 0), (-1, 0), (1, 10), (1024, 10), (1025, 11), (16384, 14), (16385, 15), (65536, 16)],
)
def test_radix_of_a_size(size, radix):
    # What if a block were one power of two too small?
    assert getradix(size) == radix


@pytest.mark.parametrize(
    ("size", "base", "expected"),
    [
        (0, 0, 0), (1, 0, 1024), (1024, 0, 1024), (1025, 0, 2048), (65535, 0, 65536),
        (65536, 0, 65536), (65537, 0, 65536), (65537, 65536, 1024), (65536, 65536, 0),
        (200_000, 196608, 4096), (1 << 62, 1 << 61, 65536),
    ],
)  # fmt: skip
def test_physical_size_of_a_piece(size, base, expected):
    # What if the last piece of a file took more or less than it needs?
    assert calc_physical(size, base) == expected


def test_a_piece_begins_at_64_kib():
    # What if a size were asked for a place inside a piece?
    with pytest.raises(ValueError, match="not the start"):
        calc_physical(100_000, 1024)
