"""ARP: who has this protocol address, and what is its hardware address?

::

     0     2     4     5     6     8        8+h     8+h+p   8+2h+p   8+2h+2p
    +-----+-----+-----+-----+-----+--------+-------+--------+-------+
    | hrd | pro | hln | pln | op  |ar_sha h|ar_spa |ar_tha h|ar_tpa |
    +-----+-----+-----+-----+-----+--------+-------+--------+-------+

Every hardware and protocol is read; `ArpRepr.is_ether_ip` says whether it is the kind this
stack speaks (Ethernet and IPv4), which is the first thing in_arpinput asks.

Counterpart: struct arphdr (net/if_arp.h), struct ether_arp (netinet/if_ether.h).
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple, Self

from dfuser.net.wire.base import (
    Buffer,
    View,
    Why,
    WireError,
    WriteBuffer,
    illegal,
    pack_into,
    put,
)
from dfuser.net.wire.ethernet import Ethertype

ARP_FIXED_LEN: Final = 8
#: A packet for Ethernet and IPv4.
ETHER_ARP_LEN: Final = 28

_HDR: Final = struct.Struct("!HHBBH")
_ETHER_IP: Final = struct.Struct("!HHBBH6s4s6s4s")
_unpack_hdr = _HDR.unpack_from
_unpack_ether_ip = _ETHER_IP.unpack_from


class ArpHrd(enum.IntEnum):
    """ARPHRD_*: formats of hardware addresses."""

    ETHER = 1
    IEEE802 = 6
    ARCNET = 7
    FRELAY = 15
    IEEE1394 = 24


class ArpOp(enum.IntEnum):
    """ARPOP_*: what is asked or answered."""

    REQUEST = 1
    REPLY = 2
    REVREQUEST = 3
    REVREPLY = 4
    INVREQUEST = 8
    INVREPLY = 9


class ArpView(View):
    """A packet as long as its address lengths say; bytes after it are Ethernet's padding."""

    __slots__ = ()

    def __init__(self, buf: Buffer, start: int = 0, end: int | None = None) -> None:
        """Check the packet.

        Raises:
            WireError: ARP_TOOSHORT.
        """
        if end is None:
            end = len(buf)
        if end - start < ARP_FIXED_LEN:
            raise WireError(Why.ARP_TOOSHORT, f"{end - start} bytes")
        size = ARP_FIXED_LEN + 2 * (buf[start + 4] + buf[start + 5])
        if end - start < size:
            raise WireError(Why.ARP_TOOSHORT, f"{end - start} bytes, not {size}")
        self.buf = buf
        self.start = start
        self.data = self.end = start + size


class ArpRepr(NamedTuple):
    """One question or answer.

    Counterpart: struct arphdr and the four addresses behind it. The fields keep the prefix that
    DragonFly's macros for the addresses have (ar_sha, ar_tpa ...).

    Attributes:
        ar_op: an `ArpOp`, or a number not known here.
        ar_sha: sender's hardware address.
        ar_spa: sender's protocol address.
        ar_tha: target's hardware address, as long as `ar_sha`.
        ar_tpa: target's protocol address, as long as `ar_spa`.
        ar_hrd: format of the hardware addresses.
        ar_pro: format of the protocol addresses, an Ethernet type.
    """

    ar_op: int
    ar_sha: bytes
    ar_spa: bytes
    ar_tha: bytes
    ar_tpa: bytes
    ar_hrd: int = ArpHrd.ETHER
    ar_pro: int = Ethertype.IP

    @classmethod
    def parse(cls, view: ArpView) -> Self:
        """The value of a checked packet."""
        buf, at = view.buf, view.start
        if view.end - at == ETHER_ARP_LEN and buf[at + 4] == 6:
            ar_hrd, ar_pro, _hln, _pln, ar_op, ar_sha, ar_spa, ar_tha, ar_tpa = _unpack_ether_ip(
                buf, at
            )
            return cls(ar_op, ar_sha, ar_spa, ar_tha, ar_tpa, ar_hrd, ar_pro)
        ar_hrd, ar_pro, hln, pln, ar_op = _unpack_hdr(buf, at)
        ar_spa = at + ARP_FIXED_LEN + hln
        ar_tha = ar_spa + pln
        ar_tpa = ar_tha + hln
        return cls(
            ar_op,
            bytes(buf[ar_spa - hln : ar_spa]),
            bytes(buf[ar_spa:ar_tha]),
            bytes(buf[ar_tha:ar_tpa]),
            bytes(buf[ar_tpa : ar_tpa + pln]),
            ar_hrd,
            ar_pro,
        )

    @property
    def is_ether_ip(self) -> bool:
        """Whether this is about IPv4 addresses on Ethernet, or IEEE 802 which counts as that."""
        return (
            self.ar_hrd in (ArpHrd.ETHER, ArpHrd.IEEE802)
            and self.ar_pro == Ethertype.IP
            and len(self.ar_sha) == 6
            and len(self.ar_spa) == 4
        )

    @property
    def wire_len(self) -> int:
        """Bytes of the packet."""
        return ARP_FIXED_LEN + 2 * (len(self.ar_sha) + len(self.ar_spa))

    def emit(self, buf: WriteBuffer, start: int = 0) -> int:
        """Write the packet; return the offset after it.

        Raises:
            WireError: ILLEGAL, addresses of unequal lengths or a field out of range.
        """
        if len(self.ar_sha) != len(self.ar_tha) or len(self.ar_spa) != len(self.ar_tpa):
            raise illegal("sender's and target's addresses differ in length")
        at = pack_into(
            _HDR,
            buf,
            start,
            self.ar_hrd,
            self.ar_pro,
            len(self.ar_sha),
            len(self.ar_spa),
            self.ar_op,
        )
        for addr in (self.ar_sha, self.ar_spa, self.ar_tha, self.ar_tpa):
            at = put(buf, at, addr)
        return at
