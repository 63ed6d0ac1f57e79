"""The internet checksum, as fast as plain Python can: big integers instead of loops.

The checksum of IP, ICMP, TCP and UDP is the ones' complement of the ones' complement sum of
16-bit words. Two facts make it cheap here. The ones' complement sum of words is their ordinary
sum modulo 65535; and 65536 = 1 modulo 65535, so a *whole buffer read as one big-endian number*
has the same remainder as the sum of its words. ``int.from_bytes`` and one ``%`` by a number that
fits one digit do in C what a loop would do in bytecode.

Above two kilobytes the division, which is linear but slow for each digit, is paid once for
rows of 4096 bytes that are added up first (adding is much cheaper than dividing): 64 KiB then
take about half the time. Summing ``memoryview.cast("Q")`` is two to five times slower at every
size, because each item becomes an object. ``benchmarks/wire.py`` measures the variants.

One trap: a remainder of 0 stands for both zeroes of ones' complement. The sum is 0x0000 only if
every word is zero, and 0xFFFF otherwise, so `in_fold` looks at the number before it is reduced.
Sums may be added as ordinary integers and folded once at the end.

Counterpart: netinet/in_cksum.c, netinet6/in6_cksum.c, sys/in_cksum.h.
Differs from DragonFly: works on buffers and lists of buffers; one function makes the pseudo
    header of both address families, because the sum does not see how wide the fields are;
    words are taken in network order, so no result ever needs swapping. The incremental
    update is RFC 1624's third equation, which DragonFly open-codes where it forwards.
Token/lock order: takes none.
Invariants: every result is a word, 0..0xFFFF; a buffer that contains its own checksum
    sums to 0xFFFF.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

Buffer = bytes | bytearray | memoryview

#: Longest buffer that is reduced in one piece, and the length of the rows above it.
ROW: Final = 4096
ONE_PIECE: Final = 2048

_from_bytes = int.from_bytes


def in_fold(total: int) -> int:
    """Reduce a sum of words, or of numbers equal to such sums, to one word.

    Args:
        total: not negative.
    """
    return total % 65535 or (65535 if total else 0)


def in_sum(buf: Buffer) -> int:
    """The ones' complement sum of a buffer's words; an odd last byte is padded with a zero.

    Returns:
        The folded sum, not complemented. 0xFFFF if the buffer holds its own right checksum.
    """
    size = len(buf)
    if size <= ONE_PIECE:
        total = _from_bytes(buf, "big")
    else:
        total = _rows(buf, size)
    if size & 1:
        total <<= 8
    return total % 65535 or (65535 if total else 0)


def _rows(buf: Buffer, size: int) -> int:
    """A number with the remainder of the whole buffer: rows of even length, added up.

    A last row of odd length is right as it is: shifting the total by one byte, as the caller
    does, shifts every row by 8 bits; the full rows are shifted back here, where that is
    cheap (2**8 * 2**8 = 1 modulo 65535).
    """
    view = memoryview(buf)
    rest = size % ROW
    total = 0
    for at in range(0, size - rest, ROW):
        total += _from_bytes(view[at : at + ROW], "big")
    if size & 1:
        total <<= 8
    return total + _from_bytes(view[size - rest :], "big")


def in_cksum(buf: Buffer, partial: int = 0) -> int:
    """The checksum of a buffer: what is stored in a header whose checksum field was zero.

    Args:
        buf: the bytes to be covered.
        partial: a sum to start from, such as `in_pseudo`'s.
    """
    return 0xFFFF ^ in_fold(partial + in_sum(buf))


def in_cksum_range(chain: Iterable[Buffer], partial: int = 0) -> int:
    """The checksum of a packet that lies in several buffers of any lengths, odd ones too.

    Counterpart: in_cksum_range (netinet/in_cksum.c), for a chain of mbufs.
    """
    total = partial
    odd = False
    for buf in chain:
        part = in_sum(buf)
        # A buffer that begins at an odd position contributes its sum with the bytes swapped.
        total += part << 8 if odd else part
        odd ^= bool(len(buf) & 1)
    return 0xFFFF ^ in_fold(total)


def in_pseudo(src: bytes, dst: bytes, word: int = 0) -> int:
    """The sum of a pseudo header, IPv4's (RFC 9293, 3.1) or IPv6's (RFC 8200, 8.1).

    Args:
        src: source address, 4 or 16 bytes.
        dst: destination address, as long as `src`.
        word: the protocol number, plus the length of header and payload if it is known; a
            connection keeps the sum without the length and adds that for each packet.
    """
    return in_fold(_from_bytes(src, "big") + _from_bytes(dst, "big") + word)


def in_addword(total: int, word: int) -> int:
    """Add one word to a folded sum."""
    total += word
    return total - 65535 if total > 65535 else total


def in_cksum_update(cksum: int, old: int, new: int) -> int:
    """The checksum after one word of the covered bytes has changed.

    RFC 1624, equation 3: HC' = ~(~HC + ~m + m'). Never yields the other zero than computing
    the checksum anew would, as RFC 1141's formula does.

    Args:
        cksum: the checksum in the header now.
        old: the word that was there.
        new: the word that is there now.
    """
    return 0xFFFF ^ in_fold((0xFFFF ^ cksum) + (0xFFFF ^ old) + new)


def in_cksum_replace(cksum: int, old: Buffer, new: Buffer) -> int:
    """The checksum after bytes at an even position have been replaced by as many others.

    Args:
        cksum: the checksum in the header now.
        old: the bytes that were there, an even number.
        new: the bytes that are there now.
    """
    return in_cksum_update(cksum, in_sum(old), in_sum(new))
