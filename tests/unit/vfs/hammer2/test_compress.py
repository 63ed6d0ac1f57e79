"""Compression in both directions, and what damaged or hostile blocks may do: nothing."""

from __future__ import annotations

import random
import zlib

import lz4.block
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfuser.libkern.errno import EIO
from dfuser.vfs.hammer2.compress import all_zero, compress, decompress, zlib_level
from dfuser.vfs.hammer2.errors import MediaError
from dfuser.vfs.hammer2.filedata import load_piece
from dfuser.vfs.hammer2.ondisk.const import BrefType, Comp, enc_algo
from tests.unit.vfs.hammer2 import images

SIZES = (1024, 2048, 4096, 16384, 65536)
PIECES = st.builds(
    lambda size, words, seed: (b" ".join(words) + random.Random(seed).randbytes(seed % 3000))
    .ljust(size, b"\0")[:size],
    st.sampled_from(SIZES), st.lists(st.binary(max_size=40), max_size=200), st.integers(0, 10**6),
)  # fmt: skip


def bounded(comp: int, data: bytes, limit: int) -> bool:
    """Whether a block gives no more than it may, or EIO."""
    try:
        return len(decompress(comp, data, limit)) <= limit
    except MediaError as exc:
        return exc.errno == EIO


@pytest.mark.parametrize("algo", [Comp.LZ4, Comp.ZLIB, enc_algo(Comp.ZLIB, 9)])
@given(data=PIECES)
def test_what_is_compressed_comes_back(algo, data):
    # What if a file's data changed on its way to the media and back?
    packed = compress(algo, data)
    if packed is None:
        return
    assert len(packed) in (1024, 2048, 4096, 8192, 16384, 32768)
    assert len(packed) <= len(data) // 2
    assert decompress(algo & 15, packed).ljust(len(data), b"\0") == data
    if algo == Comp.LZ4:
        length = int.from_bytes(packed[:4], "little")
        assert length <= len(data) // 2 - 8
        assert lz4.block.decompress(packed[4 : 4 + length], uncompressed_size=65536) == data
        assert not any(packed[4 + length :])
    else:
        stream = zlib.decompressobj()
        assert stream.decompress(packed) == data
        assert not any(stream.unused_data)


@pytest.mark.parametrize("algo", [Comp.LZ4, Comp.ZLIB, Comp.NONE, Comp.AUTOZERO])
def test_what_does_not_shrink_is_stored_plain(algo):
    # What if random data grew on the media?
    data = random.Random(1).randbytes(65536)
    assert compress(algo, data) is None
    assert decompress(Comp.NONE, data) is data


def test_half_is_the_limit():
    # What if a block just over half of its piece were stored compressed, saving nothing?
    rng = random.Random(2)
    for algo, most in ((Comp.LZ4, 32768 + 4 - 8), (Comp.ZLIB, 32768)):
        results = set()
        for noise in range(32000, 33200, 8):
            packed = compress(algo, rng.randbytes(noise).ljust(65536, b"\0"))
            results.add(packed is None)
            if packed is not None:
                assert len(packed) <= 32768
                used = len(packed.rstrip(b"\0"))
                assert used <= most
        assert results == {True, False}


def test_a_piece_of_one_kib_is_not_compressed():
    # What if a piece of the smallest size were compressed for nothing?
    assert compress(Comp.LZ4, bytes(1024)) is None
    for size in (0, 100, 1025, 131072):
        with pytest.raises(ValueError, match="a piece of"):
            compress(Comp.LZ4, bytes(size))


def test_levels_of_zlib():
    # What if a level outside of 6 to 9 reached the library?
    assert [zlib_level(enc_algo(Comp.ZLIB, level)) for level in (0, 1, 5, 6, 8, 9, 15)] == [
        6, 6, 6, 6, 8, 9, 9,
    ]  # fmt: skip


@given(st.integers(1, 65536), st.integers(0, 65535), st.booleans())
def test_zeroes_are_told_from_almost_zeroes(size, at, zero):
    # What if one set byte were lost in a hole?
    data = bytearray(size)
    if not zero:
        data[at % size] = 1
    assert all_zero(bytes(data)) is zero


@pytest.mark.parametrize("comp", [Comp.LZ4, Comp.ZLIB])
@given(data=st.binary(min_size=4, max_size=2048), limit=st.sampled_from([0, 1, 1024, 65536]))
def test_noise_is_an_error_or_bounded(comp, data, limit):
    # What if noise in place of a compressed block crashed, or made more than a piece?
    assert bounded(comp, data, limit)


@pytest.mark.parametrize("comp", [Comp.LZ4, Comp.ZLIB])
@given(bit=st.integers(0, 8 * 1024 - 1))
def test_a_flipped_bit_is_an_error_or_bounded(comp, bit):
    # What if one wrong bit in a block without check code crashed the decoder?
    packed = bytearray(compress(comp, b"all work and no play " * 195 + b"1") or b"")
    packed[bit // 8] ^= 1 << bit % 8
    assert bounded(comp, bytes(packed), 65536)


@pytest.mark.parametrize("length", [-1, 0, 1021, 1 << 30, -(1 << 31)])
def test_lengths_that_leave_the_block(length):
    # What if the length in an LZ4 block led behind its end?
    block = length.to_bytes(4, "little", signed=True).ljust(1024, b"\0")
    with pytest.raises(MediaError, match="an LZ4 block of"):
        decompress(Comp.LZ4, block)


def test_a_stream_may_fill_its_piece_exactly():
    # What if a full piece were refused because its stream has an end to read?
    for size in (65536, 65535, 1):
        data = b"x" * size
        assert decompress(Comp.ZLIB, zlib.compress(data).ljust(1024, b"\0")) == data
    with pytest.raises(MediaError, match="more than 65536"):
        decompress(Comp.ZLIB, zlib.compress(bytes(65537)).ljust(1024, b"\0"))
    with pytest.raises(MediaError, match="without end"):
        decompress(Comp.ZLIB, zlib.compress(b"abc" * 50)[:-6])
    packed = lz4.block.compress(bytes(65537), store_size=False)
    with pytest.raises(MediaError, match="damaged LZ4"):
        decompress(Comp.LZ4, len(packed).to_bytes(4, "little") + packed)


def test_a_bomb_stays_small():
    # What if a few bytes on the media took a gigabyte of memory?
    bomb = zlib.compress(bytes(1 << 26), 9)
    with pytest.raises(MediaError, match="more than 65536"):
        decompress(Comp.ZLIB, bomb)


@pytest.mark.parametrize("comp", [Comp.AUTOZERO, 4, 15])
def test_unknown_compression_is_an_error(comp):
    # What if a kind that never is on the media were taken for plain data?
    with pytest.raises(MediaError, match="unknown compression"):
        decompress(comp, bytes(1024))
    with pytest.raises(MediaError, match="have room"):
        decompress(Comp.NONE, bytes(2048), 1024)


@pytest.mark.parametrize(("name", "comp"), [("lz4_xxhash", Comp.LZ4), ("zlib_crc32", Comp.ZLIB)])
def test_blocks_of_dragonfly_shrink_as_well_with_us(name, comp):
    # What if we needed a larger block than DragonFly for the same piece?
    reader = images.reader(name)
    count = 0
    for bref in reader.topology():
        if bref.type == BrefType.DATA and bref.methods & 15 == comp:
            data = load_piece(reader.tree, bref)
            if len(data) == 1024:
                # DragonFly compresses these too, for nothing.
                assert bref.nbytes == 1024
                continue
            ours = compress(comp, data)
            assert ours is not None
            assert len(ours) == bref.nbytes
            count += 1
    assert count > 20
