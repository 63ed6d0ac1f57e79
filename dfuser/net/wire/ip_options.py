"""Options of an IPv4 header: routes, timestamps, router alert, anything else.

::

    one byte:  EOL 0, NOP 1
    others:    type | length (of all) | data...        the header is padded with EOL

`parse_options` reads what ip_dooptions would walk over; where that function would answer with
an ICMP parameter problem, the error's `at` is the offset of the wrong byte **from the start of
the IP header**, as the ICMP message wants it. Padding is not part of the value: EOL ends the
list, what is behind it is ignored, and `emit_options` writes as much as the header needs.

Counterpart: ip_dooptions (netinet/ip_input.c), struct ip_timestamp and IPOPT_* (netinet/ip.h).
Differs from DragonFly: reading and acting are separate; what a router does with an option is
    not known here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from dfuser.net.wire.base import Buffer, Why, WireError, illegal

IPOPT_EOL: Final = 0
IPOPT_NOP: Final = 1
IPOPT_RR: Final = 7
IPOPT_TS: Final = 68
IPOPT_SECURITY: Final = 130
IPOPT_LSRR: Final = 131
IPOPT_SATID: Final = 136
IPOPT_SSRR: Final = 137
IPOPT_RA: Final = 148

#: Smallest pointer of a route: the first slot, counted from 1.
IPOPT_MINOFF: Final = 4
MAX_IPOPTLEN: Final = 40

IPOPT_TS_TSONLY: Final = 0
IPOPT_TS_TSANDADDR: Final = 1
IPOPT_TS_PRESPEC: Final = 3

_ROUTES: Final = frozenset((IPOPT_RR, IPOPT_LSRR, IPOPT_SSRR))
_IP_HDR_LEN: Final = 20


def ipopt_copied(kind: int) -> bool:
    """Whether an option goes into every fragment. Counterpart: IPOPT_COPIED."""
    return bool(kind & 0x80)


class IpOptNop(NamedTuple):
    """One byte between options."""

    type: int = IPOPT_NOP

    def data(self) -> bytes:
        """Nothing."""
        return b""


class IpOptRoute(NamedTuple):
    """A route: recorded (RR), or to be taken loosely (LSRR) or strictly (SSRR).

    Attributes:
        type: IPOPT_RR, IPOPT_LSRR or IPOPT_SSRR.
        ptr: offset of the next slot inside the option, counted from 1; 4 is the first.
        slots: the addresses, 4 bytes each. A length that is not a multiple of 4 is legal on
            the wire (the odd rest is no slot).
    """

    type: int
    ptr: int
    slots: bytes

    @property
    def addrs(self) -> tuple[bytes, ...]:
        """The slots one by one."""
        return tuple(self.slots[at : at + 4] for at in range(0, len(self.slots) & ~3, 4))

    def data(self) -> bytes:
        """What stands behind type and length."""
        if self.type not in _ROUTES or not IPOPT_MINOFF <= self.ptr <= 255:
            raise illegal(f"{self}")
        return bytes((self.ptr,)) + self.slots


class IpOptTimestamp(NamedTuple):
    """Timestamps of the routers on the way. Counterpart: struct ip_timestamp.

    Attributes:
        ptr: offset of the next entry, counted from 1; 5 is the first.
        oflw: how many routers found no room, 0..15.
        flg: IPOPT_TS_*.
        entries: timestamps, or pairs of address and timestamp, 4 bytes each.
    """

    ptr: int
    oflw: int
    flg: int
    entries: bytes
    type: int = IPOPT_TS

    def data(self) -> bytes:
        """What stands behind type and length."""
        if not (0 <= self.ptr <= 255 and 0 <= self.oflw <= 15 and 0 <= self.flg <= 15):
            raise illegal(f"{self}")
        return bytes((self.ptr, self.oflw << 4 | self.flg)) + self.entries


class IpOptRouterAlert(NamedTuple):
    """Every router shall look at the packet (RFC 2113).

    Attributes:
        value: 0.
    """

    value: int = 0
    type: int = IPOPT_RA

    def data(self) -> bytes:
        """What stands behind type and length."""
        try:
            return struct.pack("!H", self.value)
        except struct.error as error:
            raise illegal(str(error)) from None


class IpOptOther(NamedTuple):
    """Any other option, or a router alert of a length that is none: preserved as it is.

    Attributes:
        type: the option's number.
        body: what stands behind type and length.
    """

    type: int
    body: bytes

    def data(self) -> bytes:
        """What stands behind type and length."""
        known = self.type in _ROUTES or self.type in (IPOPT_EOL, IPOPT_NOP, IPOPT_TS)
        if known or (self.type == IPOPT_RA and len(self.body) == 2):
            raise illegal(f"option {self.type} has a class of its own")
        return self.body


IpOption = IpOptNop | IpOptRoute | IpOptTimestamp | IpOptRouterAlert | IpOptOther
_NOP: Final = IpOptNop()


def parse_options(raw: Buffer) -> tuple[IpOption, ...]:
    """The options of a header.

    Args:
        raw: what stands between the fixed header and the payload.

    Raises:
        WireError: IPS_BADOPTIONS; `at` is the offset for the ICMP parameter problem.
    """
    found: list[IpOption] = []
    at, end = 0, len(raw)
    while at < end and raw[at] != IPOPT_EOL:
        if raw[at] == IPOPT_NOP:
            found.append(_NOP)
            at += 1
            continue
        if at + 1 >= end:
            raise _bad("an option without a length", at)
        size = raw[at + 1]
        if size < 2 or at + size > end:
            raise _bad(f"an option of {size} bytes", at + 1)
        found.append(_one(raw[at], bytes(raw[at + 2 : at + size]), at))
        at += size
    return tuple(found)


def _bad(text: str, at: int) -> WireError:
    return WireError(Why.IPS_BADOPTIONS, text, _IP_HDR_LEN + at)


def _one(kind: int, body: bytes, at: int) -> IpOption:
    """Make the value of one option found at an offset of the options."""
    if kind in _ROUTES:
        if not body:
            raise _bad("a route without a pointer", at + 1)
        if body[0] < IPOPT_MINOFF:
            raise _bad(f"a route that points to {body[0]}", at + 2)
        return IpOptRoute(kind, body[0], body[1:])
    if kind == IPOPT_TS:
        if len(body) < 2:
            raise _bad("timestamps without a pointer", at + 1)
        return IpOptTimestamp(body[0], body[1] >> 4, body[1] & 15, body[2:])
    if kind == IPOPT_RA and len(body) == 2:
        return IpOptRouterAlert(body[0] << 8 | body[1])
    return IpOptOther(kind, body)


def emit_options(options: Iterable[IpOption]) -> bytes:
    """The bytes for `Ipv4Repr.options`: whole words, padded with EOL.

    Raises:
        WireError: ILLEGAL, more than 40 bytes or an option that is none.
    """
    raw = bytearray()
    for option in options:
        body = option.data()
        if isinstance(option, IpOptNop):
            if option.type != IPOPT_NOP:
                raise illegal(f"{option}")
            raw.append(IPOPT_NOP)
            continue
        if not 0 <= option.type <= 255 or len(body) > MAX_IPOPTLEN:
            raise illegal(f"{option}")
        raw += bytes((option.type, len(body) + 2)) + body
    raw += bytes(-len(raw) % 4)
    if len(raw) > MAX_IPOPTLEN:
        raise illegal(f"{len(raw)} bytes of options")
    return bytes(raw)
