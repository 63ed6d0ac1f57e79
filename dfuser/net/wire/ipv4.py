"""IPv4 headers: length checks, header checksum, fragment fields.

::

     0       1       2       4       6       8       9      10      12      16      20
    +-------+-------+-------+-------+-------+-------+-------+-------+-------+-------+------
    |vers:hl|  tos  |  len  |  id   |  off  |  ttl  |   p   |  sum  |  src  |  dst  | options
    +-------+-------+-------+-------+-------+-------+-------+-------+-------+-------+------
                                     off = RF DF MF and 13 bits in units of 8 bytes

`Ipv4View` answers every question about lengths, in the order and with the counters of
ip_lengthcheck; `Ipv4Repr.parse` adds the version and the checksum. Options stay the bytes they
are: only ip_dooptions looks into them (`ip_options`), and their faults are answered, not
dropped.

Counterpart: struct ip (netinet/ip.h), ip_lengthcheck (netinet/ip_demux.c), the head of
    ip_input (netinet/ip_input.c).
Differs from DragonFly: the TCP and UDP lengths that ip_lengthcheck looks at are checked by
    those protocols' own views, with the same counters; `off` and `id` are read in host order.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple, Self

from dfuser.net.cksum import in_fold, in_pseudo, in_sum
from dfuser.net.wire.base import Buffer, View, Why, WireError, WriteBuffer, illegal, make, put

IPVERSION: Final = 4
IP_HDR_LEN: Final = 20
IP_MAXHLEN: Final = 60
IP_MAXPACKET: Final = 65535

IP_RF: Final = 0x8000
IP_DF: Final = 0x4000
IP_MF: Final = 0x2000
IP_OFFMASK: Final = 0x1FFF

MAXTTL: Final = 255
IPDEFTTL: Final = 64

IPTOS_ECN_MASK: Final = 0x03
IPTOS_ECN_NOTECT: Final = 0x00
IPTOS_ECN_ECT1: Final = 0x01
IPTOS_ECN_ECT0: Final = 0x02
IPTOS_ECN_CE: Final = 0x03

_HDR: Final = struct.Struct("!BBHHHBBH4s4s")
_unpack = _HDR.unpack_from
_from_bytes = int.from_bytes


class Ipv4View(View):
    """A datagram: at least a header, and not shorter than the header says.

    Bytes after the datagram, such as Ethernet's padding, are outside of it. The original
    inside an ICMP error is usually cut: `embedded` reads it with all checks but that one.
    """

    __slots__ = ()

    def __init__(
        self, buf: Buffer, start: int = 0, end: int | None = None, *, embedded: bool = False
    ) -> None:
        """Check the lengths.

        Args:
            buf: what holds the datagram.
            start: offset of its first byte.
            end: offset after the last byte received; the end of the buffer if None.
            embedded: whether the datagram may be cut anywhere behind its header.

        Raises:
            WireError: IPS_TOOSHORT, IPS_BADHLEN, IPS_BADLEN.
        """
        if end is None:
            end = len(buf)
        room = end - start
        if room < 20:
            raise WireError(Why.IPS_TOOSHORT, f"{room} bytes")
        hlen = (buf[start] & 15) << 2
        if hlen < 20 or hlen > room:
            raise WireError(Why.IPS_BADHLEN, f"a header of {hlen} in {room} bytes")
        total = buf[start + 2] << 8 | buf[start + 3]
        if total > room and not embedded:
            raise WireError(Why.IPS_TOOSHORT, f"{total} bytes announced, {room} received")
        if total < hlen:
            raise WireError(Why.IPS_BADLEN, f"{total} bytes with a header of {hlen}")
        self.buf = buf
        self.start = start
        self.data = start + hlen
        self.end = min(start + total, end)

    @property
    def version(self) -> int:
        """4, unless this is something else."""
        return self.buf[self.start] >> 4

    @property
    def len(self) -> int:
        """Length of header and payload, as the header says."""
        return self.buf[self.start + 2] << 8 | self.buf[self.start + 3]

    @property
    def off(self) -> int:
        """Fragment flags and offset as they are on the wire."""
        return self.buf[self.start + 6] << 8 | self.buf[self.start + 7]

    @property
    def p(self) -> int:
        """Protocol of the payload."""
        return self.buf[self.start + 9]

    @property
    def src(self) -> bytes:
        """Source address."""
        return bytes(self.buf[self.start + 12 : self.start + 16])

    @property
    def dst(self) -> bytes:
        """Destination address."""
        return bytes(self.buf[self.start + 16 : self.start + 20])

    @property
    def options(self) -> bytes:
        """Options with their padding: whole words, at most 40 bytes."""
        return bytes(self.buf[self.start + 20 : self.data])

    @property
    def is_fragment(self) -> bool:
        """Whether the payload is only a part of what was sent."""
        return bool(self.off & (IP_MF | IP_OFFMASK))

    def verify(self) -> bool:
        """Whether the header's checksum is right."""
        return in_sum(memoryview(self.buf)[self.start : self.data]) == 0xFFFF


class Ipv4Repr(NamedTuple):
    """A header.

    Counterpart: struct ip.

    Attributes:
        src: source address, 4 bytes.
        dst: destination address, 4 bytes.
        p: protocol of the payload, `IpProto` or any other byte.
        payload_len: bytes behind the header.
        ttl: hops left.
        tos: type of service: DSCP and ECN.
        id: identification, equal in the fragments of one datagram.
        off: IP_RF, IP_DF, IP_MF and the offset in units of 8 bytes.
        options: whole words, at most ten; see `ip_options`.
    """

    src: bytes
    dst: bytes
    p: int
    payload_len: int
    ttl: int = IPDEFTTL
    tos: int = 0
    id: int = 0
    off: int = 0
    options: bytes = b""

    @classmethod
    def parse(cls, view: Ipv4View, *, verify: bool = True) -> Self:
        """The value of a checked datagram.

        Args:
            view: the datagram.
            verify: whether the checksum is looked at; not where hardware has done so.

        Raises:
            WireError: IPS_BADVERS, IPS_BADSUM.
        """
        buf, start = view.buf, view.start
        vhl, tos, total, ident, off, ttl, p, _sum, src, dst = _unpack(buf, start)
        if vhl >> 4 != 4:
            raise WireError(Why.IPS_BADVERS, str(vhl >> 4))
        hlen = view.data - start
        # All ones is what is a multiple of 65535 and not zero, which no header with a version is.
        if verify and _from_bytes(buf[start : view.data], "big") % 65535:
            raise WireError(Why.IPS_BADSUM)
        options = bytes(buf[start + 20 : view.data]) if hlen > 20 else b""
        return make(cls, (src, dst, p, total - hlen, ttl, tos, ident, off, options))

    @property
    def wire_len(self) -> int:
        """Bytes of the header."""
        return 20 + len(self.options)

    @property
    def offset(self) -> int:
        """Where in the whole datagram's payload this part begins, in bytes."""
        return (self.off & IP_OFFMASK) << 3

    @property
    def more_fragments(self) -> bool:
        """Whether this is not the last part."""
        return bool(self.off & IP_MF)

    @property
    def is_fragment(self) -> bool:
        """Whether this is a part of a datagram and not a whole one."""
        return bool(self.off & (IP_MF | IP_OFFMASK))

    def pseudo(self) -> int:
        """The sum of addresses and protocol for the checksum of the protocol above."""
        return in_pseudo(self.src, self.dst, self.p)

    def emit(self, buf: WriteBuffer, start: int = 0) -> int:
        """Write the header with its checksum; return the offset of the payload.

        Raises:
            WireError: ILLEGAL, an address or the options of the wrong length, or a field out
                of range.
        """
        src, dst, p, payload_len, ttl, tos, ident, off, options = self
        if len(src) != 4 or len(dst) != 4:
            raise illegal("an IPv4 address has 4 bytes")
        hlen = 20 + len(options)
        if hlen & 3 or hlen > IP_MAXHLEN:
            raise illegal(f"{hlen - 20} bytes of options")
        total = hlen + payload_len
        if payload_len < 0 or total > IP_MAXPACKET:
            raise illegal(f"{payload_len} bytes of payload behind {hlen} of header")
        vhl = 0x40 | hlen >> 2
        # The sum of the fields is the sum of the header; adding them is cheaper than reading.
        words = (vhl << 8) + tos + total + ident + off + (ttl << 8) + p
        cksum = 0xFFFF ^ in_fold(words + _from_bytes(src + dst + options, "big"))
        try:
            _HDR.pack_into(buf, start, vhl, tos, total, ident, off, ttl, p, cksum, src, dst)
        except struct.error as error:
            raise illegal(str(error)) from None
        return put(buf, start + 20, options) if options else start + 20
