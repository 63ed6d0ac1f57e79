"""UDP headers.

::

     0       2       4       6       8
    +-------+-------+-------+-------+---------
    | sport | dport | ulen  |  sum  | payload       ulen counts the header
    +-------+-------+-------+-------+---------

Checksums, here and in `tcp`: who emits gives the pseudo header's sum (`in_pseudo`) and the sum
of the payload, so that a connection computes the first once and the payload may lie anywhere.
With `partial` only the pseudo header's sum is stored, which is what a device that completes
checksums wants (VIRTIO_NET_HDR_F_NEEDS_CSUM). Who parses gives the pseudo header's sum to have
the checksum verified, or None where it is known to be good.

A sum of zero means that the sender made none. IPv4 allows that; IPv6 does not (RFC 8200, 8.1),
so its input says ``zero_ok=False``. A computed zero is sent as 0xFFFF.

Counterpart: struct udphdr (netinet/udp.h), the head of udp_input (netinet/udp_usrreq.c) and
    udp6_input (netinet6/udp6_usrreq.c).
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple, Self

from dfuser.net.cksum import in_fold, in_sum
from dfuser.net.wire.base import Buffer, View, Why, WireError, WriteBuffer, illegal, pack_into

UDP_HDR_LEN: Final = 8

_HDR: Final = struct.Struct("!HHHH")
_unpack = _HDR.unpack_from


class UdpView(View):
    """A datagram of the length its header says; what the IP payload has beyond is cut off."""

    __slots__ = ()

    def __init__(self, buf: Buffer, start: int = 0, end: int | None = None) -> None:
        """Check the lengths.

        Raises:
            WireError: UDPS_HDROPS (no room for a header), UDPS_BADLEN.
        """
        if end is None:
            end = len(buf)
        if end - start < 8:
            raise WireError(Why.UDPS_HDROPS, f"{end - start} bytes")
        ulen = buf[start + 4] << 8 | buf[start + 5]
        if ulen < 8 or start + ulen > end:
            raise WireError(Why.UDPS_BADLEN, f"{ulen} bytes announced, {end - start} received")
        self.buf = buf
        self.start = start
        self.data = start + 8
        self.end = start + ulen

    @property
    def sport(self) -> int:
        """Source port."""
        return self.buf[self.start] << 8 | self.buf[self.start + 1]

    @property
    def dport(self) -> int:
        """Destination port."""
        return self.buf[self.start + 2] << 8 | self.buf[self.start + 3]

    @property
    def sum(self) -> int:
        """The checksum; 0 if the sender made none."""
        return self.buf[self.start + 6] << 8 | self.buf[self.start + 7]

    def verify(self, pseudo: int) -> bool:
        """Whether the checksum is right, given the sum of addresses and protocol."""
        start, end = self.start, self.end
        return (pseudo + end - start + in_sum(self.buf[start:end])) % 65535 == 0


class UdpRepr(NamedTuple):
    """A header. Counterpart: struct udphdr.

    Attributes:
        sport: source port; 0 where no answer is wanted.
        dport: destination port.
    """

    sport: int
    dport: int

    @classmethod
    def parse(cls, view: UdpView, pseudo: int | None = None, *, zero_ok: bool = True) -> Self:
        """The value of a checked datagram.

        Args:
            view: the datagram.
            pseudo: the sum of addresses and protocol; None if the checksum is known good.
            zero_ok: whether a datagram without checksum is accepted.

        Raises:
            WireError: UDPS_BADSUM, UDPS_NOSUM.
        """
        sport, dport, _ulen, cksum = _unpack(view.buf, view.start)
        if pseudo is not None:
            if not cksum:
                if not zero_ok:
                    raise WireError(Why.UDPS_NOSUM)
            elif not view.verify(pseudo):
                raise WireError(Why.UDPS_BADSUM)
        return cls(sport, dport)

    @property
    def wire_len(self) -> int:
        """Bytes of the header."""
        return UDP_HDR_LEN

    def emit(
        self,
        buf: WriteBuffer,
        start: int = 0,
        pseudo: int | None = None,
        *,
        size: int = 0,
        total: int = 0,
        partial: bool = False,
    ) -> int:
        """Write the header; return the offset of the payload, which the caller writes.

        Args:
            buf: where to.
            start: offset of the header.
            pseudo: the sum of addresses and protocol; None sends no checksum.
            size: bytes of payload.
            total: the payload's `in_sum`.
            partial: store the pseudo header's sum alone, for the device to complete.

        Raises:
            WireError: ILLEGAL, a field out of range.
        """
        sport, dport = self
        ulen = 8 + size
        if size < 0 or ulen > 65535:
            raise illegal(f"{size} bytes of payload")
        if pseudo is None:
            cksum = 0
        elif partial:
            cksum = in_fold(pseudo + ulen)
        else:
            cksum = 0xFFFF ^ in_fold(pseudo + sport + dport + 2 * ulen + total) or 0xFFFF
        return pack_into(_HDR, buf, start, sport, dport, ulen, cksum)
