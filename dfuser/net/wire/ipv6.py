"""IPv6 headers.

::

     0                       4       6      7      8           24          40
    +-----------------------+-------+------+------+-----------+-----------+---------
    | 6:4 class:8 label:20  | plen  | nxt  | hlim |  src: 16  |  dst: 16  | payload
    +-----------------------+-------+------+------+-----------+-----------+---------

There is no checksum and no fragment field: extension headers do that (`ip6_ext`), and `nxt`
says which one comes first. A `plen` of 0 in front of a hop-by-hop header may be a jumbogram
(RFC 2675); then the view reaches to the end of what was received, and `ip6_ext.walk` finds the
true length or refuses.

Counterpart: struct ip6_hdr (netinet/ip6.h), the head of ip6_input (netinet6/ip6_input.c).
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple, Self

from dfuser.net.cksum import in_pseudo
from dfuser.net.wire.base import (
    Buffer,
    View,
    Why,
    WireError,
    WriteBuffer,
    illegal,
    need_len,
    pack_into,
)
from dfuser.net.wire.protocols import IpProto

IP6_HDR_LEN: Final = 40
IPV6_MMTU: Final = 1280
IPV6_MAXPACKET: Final = 65535
IPV6_MAXHLIM: Final = 255
IPV6_DEFHLIM: Final = 64

_HDR: Final = struct.Struct("!IHBB16s16s")
_unpack = _HDR.unpack_from
_HOPOPTS: Final = int(IpProto.HOPOPTS)


class Ipv6View(View):
    """A packet that is as long as its header says; what was received beyond is outside."""

    __slots__ = ()

    def __init__(
        self, buf: Buffer, start: int = 0, end: int | None = None, *, embedded: bool = False
    ) -> None:
        """Check the lengths.

        Args:
            buf: what holds the packet.
            start: offset of its first byte.
            end: offset after the last byte received; the end of the buffer if None.
            embedded: whether the packet may be cut behind its header, as in an ICMPv6 error.

        Raises:
            WireError: IP6S_TOOSMALL, IP6S_TOOSHORT.
        """
        if end is None:
            end = len(buf)
        room = end - start
        if room < 40:
            raise WireError(Why.IP6S_TOOSMALL, f"{room} bytes")
        plen = buf[start + 4] << 8 | buf[start + 5]
        if plen + 40 > room and not embedded:
            raise WireError(Why.IP6S_TOOSHORT, f"{plen + 40} bytes announced, {room} received")
        self.buf = buf
        self.start = start
        self.data = start + 40
        if plen == 0 and buf[start + 6] == _HOPOPTS:
            self.end = end
        else:
            self.end = min(start + 40 + plen, end)

    @property
    def version(self) -> int:
        """6, unless this is something else."""
        return self.buf[self.start] >> 4

    @property
    def plen(self) -> int:
        """Bytes behind the header, as it says; 0 in a jumbogram."""
        return self.buf[self.start + 4] << 8 | self.buf[self.start + 5]

    @property
    def nxt(self) -> int:
        """What follows: an extension header or a protocol."""
        return self.buf[self.start + 6]

    @property
    def hlim(self) -> int:
        """Hops left; 255 proves that a packet never crossed a router (RFC 4861)."""
        return self.buf[self.start + 7]

    @property
    def src(self) -> bytes:
        """Source address."""
        return bytes(self.buf[self.start + 8 : self.start + 24])

    @property
    def dst(self) -> bytes:
        """Destination address."""
        return bytes(self.buf[self.start + 24 : self.start + 40])


class Ipv6Repr(NamedTuple):
    """A header. Counterpart: struct ip6_hdr.

    Attributes:
        src: source address, 16 bytes.
        dst: destination address, 16 bytes.
        nxt: what follows.
        payload_len: bytes behind the header, extension headers among them; 0 in a jumbogram.
        hlim: hops left.
        tclass: traffic class: DSCP and ECN.
        flow: flow label, 20 bits.
    """

    src: bytes
    dst: bytes
    nxt: int
    payload_len: int
    hlim: int = IPV6_DEFHLIM
    tclass: int = 0
    flow: int = 0

    @classmethod
    def parse(cls, view: Ipv6View) -> Self:
        """The value of a checked packet.

        Raises:
            WireError: IP6S_BADVERS.
        """
        first, plen, nxt, hlim, src, dst = _unpack(view.buf, view.start)
        if first >> 28 != 6:
            raise WireError(Why.IP6S_BADVERS, str(first >> 28))
        return cls(src, dst, nxt, plen, hlim, first >> 20 & 255, first & 0xFFFFF)

    @property
    def wire_len(self) -> int:
        """Bytes of the header."""
        return IP6_HDR_LEN

    def pseudo(self, proto: int) -> int:
        """The sum of addresses and protocol for the checksum of the protocol above.

        Args:
            proto: the protocol behind all extension headers.
        """
        return in_pseudo(self.src, self.dst, proto)

    def emit(self, buf: WriteBuffer, start: int = 0) -> int:
        """Write the header; return the offset of what follows.

        Raises:
            WireError: ILLEGAL, an address of the wrong length or a field out of range.
        """
        src, dst, nxt, plen, hlim, tclass, flow = self
        need_len("src", src, 16)
        need_len("dst", dst, 16)
        if not (0 <= tclass <= 255 and 0 <= flow <= 0xFFFFF):
            raise illegal(f"traffic class {tclass}, flow label {flow}")
        first = 6 << 28 | tclass << 20 | flow
        return pack_into(_HDR, buf, start, first, plen, nxt, hlim, src, dst)
