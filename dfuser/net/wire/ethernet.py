"""Ethernet II frames and one 802.1Q tag.

::

     0      6      12     14                 12     14     16     18
    +------+------+------+---------         +------+------+------+------+---------
    | dhost| shost| type | payload    or    | ...  | 8100 | TCI  | type | payload
    +------+------+------+---------         +------+------+------+------+---------
                                             TCI = priority 3, DEI 1, VLAN 12

Only the outermost tag is taken off, as ether_demux does; a second one is then the payload's
first two bytes behind type 0x8100, and `VlanView` reads it. A type below 0x600 is the length
of an 802.3 frame; it is preserved, and whoever demultiplexes drops it.

Counterpart: struct ether_header, struct ether_vlan_header (net/ethernet.h,
    net/vlan/if_vlan_ether.h).
Differs from DragonFly: no CRC is ever seen, a TAP has none.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple, Self

from dfuser.net.wire.base import Buffer, View, Why, WireError, WriteBuffer, illegal, make

ETHER_ADDR_LEN: Final = 6
ETHER_HDR_LEN: Final = 14
ETHER_VLAN_ENCAP_LEN: Final = 4
ETHER_CRC_LEN: Final = 4
ETHER_MIN_LEN: Final = 64
ETHER_MAX_LEN: Final = 1518
ETHER_MAX_LEN_JUMBO: Final = 9018
ETHERMTU: Final = ETHER_MAX_LEN - ETHER_HDR_LEN - ETHER_CRC_LEN
ETHERMIN: Final = ETHER_MIN_LEN - ETHER_HDR_LEN - ETHER_CRC_LEN
#: The smallest number in the type field that is a type and not a length (IEEE 802.3).
ETHERTYPE_MIN: Final = 0x600

ETHERBROADCASTADDR: Final = b"\xff" * 6

_HDR: Final = struct.Struct("!6s6sH")
_VLAN: Final = struct.Struct("!6s6sHHH")
_unpack_hdr = _HDR.unpack_from
_unpack_vlan = _VLAN.unpack_from


class Ethertype(enum.IntEnum):
    """ETHERTYPE_* of net/ethernet.h that this stack handles."""

    IP = 0x0800
    ARP = 0x0806
    REVARP = 0x8035
    VLAN = 0x8100
    IPV6 = 0x86DD
    MPLS = 0x8847
    PPPOEDISC = 0x8863
    PPPOE = 0x8864
    LOOPBACK = 0x9000


_ETHERTYPE_VLAN: Final = int(Ethertype.VLAN)


def ether_is_multicast(addr: Buffer) -> bool:
    """Whether an address names a group; the broadcast address does. ETHER_IS_MULTICAST."""
    return bool(addr[0] & 1)


def evl_vlanoftag(tci: int) -> int:
    """The VLAN of a tag. Counterpart: EVL_VLANOFTAG (net/vlan/if_vlan_var.h)."""
    return tci & 4095


def evl_prioftag(tci: int) -> int:
    """The priority of a tag. Counterpart: EVL_PRIOFTAG."""
    return tci >> 13 & 7


def evl_maketag(vlan: int, priority: int = 0, dei: int = 0) -> int:
    """A tag.

    Raises:
        WireError: ILLEGAL, a part does not fit.
    """
    if not (0 <= vlan <= 4095 and 0 <= priority <= 7 and 0 <= dei <= 1):
        raise illegal(f"VLAN {vlan}, priority {priority}, DEI {dei}")
    return priority << 13 | dei << 12 | vlan


class EtherView(View):
    """A frame of at least 14 bytes, 18 with a tag."""

    __slots__ = ("type",)

    def __init__(self, buf: Buffer, start: int = 0, end: int | None = None) -> None:
        """Check the frame.

        Raises:
            WireError: ETHER_TOOSHORT.
        """
        if end is None:
            end = len(buf)
        if end - start < 14:
            raise WireError(Why.ETHER_TOOSHORT, f"{end - start} bytes")
        kind = buf[start + 12] << 8 | buf[start + 13]
        data = start + 14
        if kind == _ETHERTYPE_VLAN:
            data += 4
            if data > end:
                raise WireError(Why.ETHER_TOOSHORT, "the frame ends in its VLAN tag")
            kind = buf[start + 16] << 8 | buf[start + 17]
        self.buf = buf
        self.start = start
        self.data = data
        self.end = end
        #: The type of the payload, behind the tag if there is one.
        self.type: Final = kind

    @property
    def dhost(self) -> bytes:
        """Destination address."""
        return bytes(self.buf[self.start : self.start + 6])

    @property
    def shost(self) -> bytes:
        """Source address."""
        return bytes(self.buf[self.start + 6 : self.start + 12])

    @property
    def vlan(self) -> int | None:
        """The tag (TCI), or None."""
        if self.data - self.start == 14:
            return None
        return self.buf[self.start + 14] << 8 | self.buf[self.start + 15]


class VlanView(View):
    """A tag in a payload whose frame's type was 0x8100: the second tag of a frame."""

    __slots__ = ("tci", "type")

    def __init__(self, buf: Buffer, start: int = 0, end: int | None = None) -> None:
        """Check the tag.

        Raises:
            WireError: ETHER_TOOSHORT.
        """
        if end is None:
            end = len(buf)
        if end - start < 4:
            raise WireError(Why.ETHER_TOOSHORT, "the frame ends in its VLAN tag")
        self.buf = buf
        self.start = start
        self.data = start + 4
        self.end = end
        self.tci: Final = buf[start] << 8 | buf[start + 1]
        self.type: Final = buf[start + 2] << 8 | buf[start + 3]


class EtherRepr(NamedTuple):
    """A frame's header.

    Counterpart: struct ether_header, struct ether_vlan_header.

    Attributes:
        dhost: destination, 6 bytes.
        shost: source, 6 bytes.
        type: what the payload is; below 0x600 the length of an 802.3 frame.
        vlan: the tag (TCI), or None.
    """

    dhost: bytes
    shost: bytes
    type: int
    vlan: int | None = None

    @classmethod
    def parse(cls, view: EtherView) -> Self:
        """The value of a checked frame; nothing in one can be wrong any more."""
        if view.data - view.start == 14:
            return make(cls, (*_unpack_hdr(view.buf, view.start), None))
        dhost, shost, _tpid, tci, kind = _unpack_vlan(view.buf, view.start)
        return make(cls, (dhost, shost, kind, tci))

    @property
    def wire_len(self) -> int:
        """Bytes of the header."""
        return 14 if self.vlan is None else 18

    def emit(self, buf: WriteBuffer, start: int = 0) -> int:
        """Write the header; return the offset of the payload.

        Raises:
            WireError: ILLEGAL, an address of the wrong length, a field out of range, or an
                untagged frame of type 0x8100, which would be read as a tagged one.
        """
        dhost, shost, kind, vlan = self
        if len(dhost) != 6 or len(shost) != 6:
            raise illegal("an Ethernet address has 6 bytes")
        try:
            if vlan is None:
                if kind == _ETHERTYPE_VLAN:
                    raise illegal("type 0x8100 needs a tag")
                _HDR.pack_into(buf, start, dhost, shost, kind)
                return start + 14
            _VLAN.pack_into(buf, start, dhost, shost, _ETHERTYPE_VLAN, vlan, kind)
        except struct.error as error:
            raise illegal(str(error)) from None
        return start + 18
