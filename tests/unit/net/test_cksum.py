"""The internet checksum against a naive one, scapy's, and the RFCs' own numbers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.utils import checksum as scapy_checksum

from dfuser.net.cksum import (
    ONE_PIECE,
    ROW,
    in_addword,
    in_cksum,
    in_cksum_range,
    in_cksum_replace,
    in_cksum_update,
    in_fold,
    in_pseudo,
    in_sum,
)


def naive(data: bytes) -> int:
    """RFC 1071, word by word."""
    total = 0
    for at in range(0, len(data), 2):
        total += data[at] << 8 | (data[at + 1] if at + 1 < len(data) else 0)
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_the_example_of_rfc_1071() -> None:
    # What if the sum of section 3 of the RFC came out differently?
    assert in_sum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2
    assert in_cksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D


def test_the_example_of_rfc_1624() -> None:
    # What if the update gave the other zero, as RFC 1141's formula does here?
    assert in_cksum_update(0xDD2F, 0x5555, 0x3285) == 0x0000


@given(st.binary(max_size=200))
def test_it_is_the_naive_sum(data: bytes) -> None:
    # What if the modulo lost something, for instance between the two zeroes?
    assert in_sum(data) == naive(data)
    assert in_cksum(data) == scapy_checksum(data)


@pytest.mark.parametrize("byte", [b"\0", b"\xff", b"\x80", b"\1"])
def test_all_lengths_around_the_rows(byte: bytes, rng: random.Random) -> None:
    # What if a row, or the odd byte behind the last one, were added at the wrong place?
    for base in (0, ONE_PIECE, ROW, 2 * ROW, 65535):
        for size in range(max(0, base - 3), base + 4):
            same = byte * size
            assert in_sum(same) == naive(same), size
            noise = rng.randbytes(size)
            assert in_sum(noise) == naive(noise), size
            assert in_sum(memoryview(noise)) == in_sum(bytearray(noise)) == in_sum(noise)


@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(0, 0xFFFF))
def test_a_chain_of_buffers_of_any_length(chain: list[bytes], partial: int) -> None:
    # What if a packet lay in buffers of odd lengths?
    assert in_cksum_range(chain, partial) == in_cksum(b"".join(chain), partial)


@given(st.binary(min_size=2, max_size=60), st.data())
def test_updating_equals_computing_anew(data: bytes, draw: st.DataObject) -> None:
    # What if a router changed a word, or an address, and patched the checksum?
    data += bytes(len(data) & 1) + b"\x45\x01"  # never all zeroes, as no header is
    at = 2 * draw.draw(st.integers(0, len(data) // 2 - 2))
    size = 2 * draw.draw(st.integers(1, (len(data) - 2 - at) // 2))
    new = draw.draw(st.binary(min_size=size, max_size=size))
    changed = data[:at] + new + data[at + size :]
    old = data[at : at + size]
    assert in_cksum_replace(in_cksum(data), old, new) == in_cksum(changed)
    word = int.from_bytes(data[at : at + 2], "big")
    new_word = int.from_bytes(new[:2], "big")
    changed = data[:at] + new[:2] + data[at + 2 :]
    assert in_cksum_update(in_cksum(data), word, new_word) == in_cksum(changed)


@given(st.binary(min_size=1, max_size=80))
def test_a_packet_with_its_checksum_sums_to_all_ones(data: bytes) -> None:
    # What if the receiver's test did not fit the sender's computation?
    data += bytes(len(data) & 1)
    assert in_sum(data + in_cksum(data).to_bytes(2, "big")) == 0xFFFF


@given(st.sampled_from((4, 16)), st.data(), st.integers(0, 255), st.integers(0, 65535))
def test_the_pseudo_header(size: int, data: st.DataObject, proto: int, length: int) -> None:
    # What if the widths of the pseudo header's fields mattered to the sum?
    src, dst = (data.draw(st.binary(min_size=size, max_size=size)) for _ in "sd")
    fields = length.to_bytes(size // 2 - 0 if size == 4 else 4, "big")
    protocol = proto.to_bytes(2 if size == 4 else 4, "big")
    assert in_pseudo(src, dst, proto + length) == naive(src + dst + protocol + fields)


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
def test_adding_a_word(total: int, word: int) -> None:
    # What if the carry were lost?
    assert in_addword(total, word) == in_fold(total + word)
