"""TCP headers.

::

     0       2       4           8           12      13      14      16      18      20
    +-------+-------+-----------+-----------+-------+-------+-------+-------+-------+-----
    | sport | dport |    seq    |    ack    | off:4 | flags |  win  |  sum  |  urp  | options
    +-------+-------+-----------+-----------+-------+-------+-------+-------+-------+-----
                                             off = header length in words of 4 bytes

The four bits between `off` and the flags are ignored when read and written as zero (RFC 9293,
3.1). How checksums are asked for is told in `udp`.

Counterpart: struct tcphdr, TH_* (netinet/tcp.h); the length checks of ip_lengthcheck and
    tcp_input.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple, Self

from dfuser.net.cksum import in_fold, in_sum
from dfuser.net.wire.base import Buffer, View, Why, WireError, WriteBuffer, illegal, make, put
from dfuser.net.wire.tcp_options import TcpOption, emit_options, parse_options

TCP_HDR_LEN: Final = 20
TCP_MAXHLEN: Final = 60
TCP_MSS: Final = 512
TCP_MINMSS: Final = 256
TCP6_MSS: Final = 1024
TCP_MAXWIN: Final = 65535

TH_FIN: Final = 0x01
TH_SYN: Final = 0x02
TH_RST: Final = 0x04
TH_PUSH: Final = 0x08
TH_ACK: Final = 0x10
TH_URG: Final = 0x20
TH_ECE: Final = 0x40
TH_CWR: Final = 0x80
#: All flags that tcp_input looks at; PUSH is none of them.
TH_FLAGS: Final = TH_FIN | TH_SYN | TH_RST | TH_ACK | TH_URG | TH_ECE | TH_CWR

_HDR: Final = struct.Struct("!HHIIBBHHH")
_unpack = _HDR.unpack_from
_from_bytes = int.from_bytes


def th_names(flags: int) -> str:
    """The flags as tcpdump-like letters, ``SA`` for a SYN with ACK; ``.`` for none."""
    return "".join(letter for bit, letter in enumerate("FSRPAUEC") if flags >> bit & 1) or "."


class TcpView(View):
    """A segment whose header with its options lies inside it."""

    __slots__ = ()

    def __init__(self, buf: Buffer, start: int = 0, end: int | None = None) -> None:
        """Check the lengths.

        Raises:
            WireError: TCPS_RCVSHORT, TCPS_RCVBADOFF.
        """
        if end is None:
            end = len(buf)
        if end - start < 20:
            raise WireError(Why.TCPS_RCVSHORT, f"{end - start} bytes")
        data = start + (buf[start + 12] >> 4 << 2)
        if data - start < 20 or data > end:
            raise WireError(Why.TCPS_RCVBADOFF, f"a header of {data - start} bytes")
        self.buf = buf
        self.start = start
        self.data = data
        self.end = end

    @property
    def sport(self) -> int:
        """Source port."""
        return self.buf[self.start] << 8 | self.buf[self.start + 1]

    @property
    def dport(self) -> int:
        """Destination port."""
        return self.buf[self.start + 2] << 8 | self.buf[self.start + 3]

    @property
    def ports(self) -> bytes:
        """Both ports as they are on the wire: half of a connection's key."""
        return bytes(self.buf[self.start : self.start + 4])

    @property
    def flags(self) -> int:
        """TH_*."""
        return self.buf[self.start + 13]

    @property
    def options(self) -> bytes:
        """Options with their padding."""
        return bytes(self.buf[self.start + 20 : self.data])

    def verify(self, pseudo: int) -> bool:
        """Whether the checksum is right, given the sum of addresses and protocol."""
        start, end = self.start, self.end
        return (pseudo + end - start + in_sum(self.buf[start:end])) % 65535 == 0


class TcpRepr(NamedTuple):
    """A header.

    Counterpart: struct tcphdr and its options.

    Attributes:
        sport: source port.
        dport: destination port.
        seq: sequence number of the first byte, or of the SYN.
        ack: next byte expected; meaningful with TH_ACK.
        flags: TH_*.
        win: window as sent, before scaling.
        urp: urgent pointer; meaningful with TH_URG.
        options: in wire order, without EOL and padding.
    """

    sport: int
    dport: int
    seq: int
    ack: int
    flags: int
    win: int
    urp: int = 0
    options: tuple[TcpOption, ...] = ()

    @classmethod
    def parse(cls, view: TcpView, pseudo: int | None = None) -> Self:
        """The value of a checked segment.

        Args:
            view: the segment.
            pseudo: the sum of addresses and protocol; None if the checksum is known good.

        Raises:
            WireError: TCPS_RCVBADSUM.
        """
        buf, start, data = view.buf, view.start, view.data
        sport, dport, seq, ack, _off, flags, win, _sum, urp = _unpack(buf, start)
        if pseudo is not None and not view.verify(pseudo):
            raise WireError(Why.TCPS_RCVBADSUM)
        options = parse_options(buf[start + 20 : data]) if data - start > 20 else ()
        return make(cls, (sport, dport, seq, ack, flags, win, urp, options))

    @property
    def wire_len(self) -> int:
        """Bytes of the header."""
        return 20 + len(emit_options(self.options))

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
            pseudo: the sum of addresses and protocol; None leaves the checksum zero.
            size: bytes of payload.
            total: the payload's `in_sum`.
            partial: store the pseudo header's sum alone, for the device to complete.

        Raises:
            WireError: ILLEGAL, a field out of range or options that have no bytes.
        """
        sport, dport, seq, ack, flags, win, urp, options = self
        if size < 0:
            raise illegal(f"{size} bytes of payload")
        raw = emit_options(options) if options else b""
        off = (20 + len(raw)) << 2
        cksum = 0
        if pseudo is not None:
            cksum = in_fold(pseudo + 20 + len(raw) + size)
            if not partial:
                words = sport + dport + seq + ack + (off << 8) + flags + win + urp
                cksum = 0xFFFF ^ in_fold(cksum + words + _from_bytes(raw, "big") + total)
        try:
            _HDR.pack_into(buf, start, sport, dport, seq, ack, off, flags, win, cksum, urp)
        except struct.error as error:
            raise illegal(str(error)) from None
        return put(buf, start + 20, raw) if raw else start + 20
