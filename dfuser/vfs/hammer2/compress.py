"""Compression of file data, one piece of up to 64 KiB at a time, in both directions.

What lies in a block whose blockref says LZ4::

    length (i32 LE)   one raw LZ4 block of that length   zeroes up to 2**radix

and for ZLIB a zlib stream, then zeroes. Compressed, a piece takes the next power of two of at
least 1 KiB, and it is kept only if that is no more than half. Padding must be zero, since equal
pieces are found by the hash of the whole block. Autozero stores no zeroes and leaves the rest
alone; LZ4 and zlib do that as well. Only check code "none" stores zeroes, for its blocks are
overwritten in place.

What comes out of a damaged block is bounded before it is made: never more than the piece's size.

Counterpart: hammer2_compress_and_write, hammer2_decompress_LZ4_callback,
    hammer2_decompress_ZLIB_callback, test_block_zeros (vfs/hammer2/hammer2_strategy.c).
Differs from DragonFly: a block that cannot be decompressed is EIO; DragonFly panics or returns
    zeroes. A piece of 1 KiB is stored plain, since nothing can be saved. zlib-ng makes the
    streams, so their bytes differ from zlib's while every zlib reads them.
Token/lock order: takes none. Each call holds the processor for up to a millisecond and releases
    the interpreter's lock meanwhile, so that a host worker can run it.
"""

from __future__ import annotations

from typing import Any, Final

from lz4.block import LZ4BlockError
from lz4.block import compress as _lz4_compress
from lz4.block import decompress as _lz4_decompress
from zlib_ng import zlib_ng

from dfuser.vfs.hammer2.errors import MediaError
from dfuser.vfs.hammer2.ondisk.const import ALLOC_MIN, PBUFSIZE, Comp, dec_algo, dec_level

_ZEROES: Final = bytes(PBUFSIZE)
#: The stub of zlib-ng calls its exception class a value.
_ZlibError: Final[Any] = zlib_ng.error
_ZLIB_LEVELS: Final = range(6, 10)


def all_zero(data: bytes) -> bool:
    """Whether a piece of at most 64 KiB has no byte that is not zero.

    Counterpart: test_block_zeros (hammer2_strategy.c).
    """
    return data == (_ZEROES if len(data) == PBUFSIZE else _ZEROES[: len(data)])


def decompress(comp: int, data: bytes, limit: int = PBUFSIZE) -> bytes:
    """The data of a block.

    Args:
        comp: how the block is compressed: the lower half of its blockref's methods.
        data: the whole block.
        limit: most bytes that may come out.

    Returns:
        At most `limit` bytes; the rest of the piece is zero.

    Raises:
        MediaError: the block cannot be decompressed, or holds more.
    """
    if comp == Comp.LZ4:
        return _from_lz4(data, limit)
    if comp == Comp.ZLIB:
        return _from_zlib(data, limit)
    if comp == Comp.NONE:
        if len(data) > limit:
            raise MediaError(f"{len(data)} bytes where {limit} have room")
        return data
    raise MediaError(f"unknown compression {comp}")


def _from_lz4(data: bytes, limit: int) -> bytes:
    """Take an LZ4 block out of its frame."""
    length = int.from_bytes(data[:4], "little", signed=True)
    if not 0 < length <= len(data) - 4:
        raise MediaError(f"an LZ4 block of {length} bytes in {len(data)}")
    try:
        out: bytes = _lz4_decompress(memoryview(data)[4 : 4 + length], uncompressed_size=limit)
    except LZ4BlockError:
        raise MediaError("a damaged LZ4 block") from None
    return out


def _from_zlib(data: bytes, limit: int) -> bytes:
    """Read a zlib stream that zeroes follow."""
    stream: Any = zlib_ng.decompressobj()
    try:
        out: bytes = stream.decompress(data, limit)
        # With all its output made, the stream may still have to read its end.
        if not stream.eof and stream.decompress(stream.unconsumed_tail, 1):
            raise MediaError(f"a zlib stream of more than {limit} bytes")
    except _ZlibError:
        raise MediaError("a damaged zlib stream") from None
    if not stream.eof:
        raise MediaError("a zlib stream without end")
    return out


def compress(comp_algo: int, data: bytes) -> bytes | None:
    """The block for a piece of a file, if compression makes it smaller.

    Args:
        comp_algo: an inode's: algorithm and level.
        data: the piece, 1 to 64 KiB, a power of two.

    Returns:
        What to store, a power of two of at most half the piece; None: store the piece itself.

    Raises:
        ValueError: the piece has another size.
    """
    size = len(data)
    if not ALLOC_MIN <= size <= PBUFSIZE or size & (size - 1):
        raise ValueError(f"a piece of {size} bytes")
    if size == ALLOC_MIN:
        return None
    algo = dec_algo(comp_algo)
    if algo == Comp.LZ4:
        packed: bytes = _lz4_compress(data, store_size=False)
        # DragonFly gives LZ4 eight bytes less than half, and its own length takes four.
        if len(packed) > size // 2 - 8:
            return None
        packed = len(packed).to_bytes(4, "little") + packed
    elif algo == Comp.ZLIB:
        packed = zlib_ng.compress(data, zlib_level(comp_algo))
        if len(packed) > size // 2:
            return None
    else:
        return None
    return packed.ljust(max(ALLOC_MIN, 1 << (len(packed) - 1).bit_length()), b"\0")


def zlib_level(comp_algo: int) -> int:
    """The zlib level of an inode's comp_algo: 6 to 9; what is lower, or not given, is 6."""
    level = dec_level(comp_algo)
    return min(max(level, _ZLIB_LEVELS[0]), _ZLIB_LEVELS[-1])
