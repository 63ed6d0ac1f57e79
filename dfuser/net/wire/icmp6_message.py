"""What all ICMPv6 messages share: types, the checked view, the base of the values.

::

     0      1      2       4                8
    +------+------+-------+----------------+----------
    | type | code |  sum  | word by type   | data by type
    +------+------+-------+----------------+----------

Other than ICMP's, the checksum covers the pseudo header; it is mandatory. Messages are read by
`icmp6.parse`, which knows all kinds: errors and echo (`icmp6`), neighbor discovery (`nd6`),
multicast listeners (`mld6`).

Counterpart: struct icmp6_hdr, ICMP6_*, ND_*, MLD_* (netinet/icmp6.h).
"""

from __future__ import annotations

import enum
import struct
from typing import ClassVar, Final

import attrs

from dfuser.net.cksum import in_fold, in_sum
from dfuser.net.wire.base import Buffer, View, Why, WireError, WriteBuffer, illegal, put

ICMP6_HDR_LEN: Final = 8
#: Most of an original that an error carries, so that it passes every link.
ICMPV6_PLD_MAXLEN: Final = 1232


class Icmp6Type(enum.IntEnum):
    """ICMP6_*, MLD_* and ND_*: message types."""

    DST_UNREACH = 1
    PACKET_TOO_BIG = 2
    TIME_EXCEEDED = 3
    PARAM_PROB = 4
    ECHO_REQUEST = 128
    ECHO_REPLY = 129
    LISTENER_QUERY = 130
    LISTENER_REPORT = 131
    LISTENER_DONE = 132
    ROUTER_SOLICIT = 133
    ROUTER_ADVERT = 134
    NEIGHBOR_SOLICIT = 135
    NEIGHBOR_ADVERT = 136
    REDIRECT = 137
    ROUTER_RENUMBERING = 138
    NI_QUERY = 139
    NI_REPLY = 140
    #: RFC 3810's; DragonFly, which speaks MLDv1, has no name for it.
    LISTENER_REPORT_V2 = 143
    MTRACE_RESP = 200
    MTRACE = 201
    HADISCOV_REQUEST = 202
    HADISCOV_REPLY = 203


class Icmp6Unreach(enum.IntEnum):
    """ICMP6_DST_UNREACH_*: codes of DST_UNREACH."""

    NOROUTE = 0
    ADMIN = 1
    BEYONDSCOPE = 2
    ADDR = 3
    NOPORT = 4


class Icmp6TimeExceed(enum.IntEnum):
    """ICMP6_TIME_EXCEED_*: codes of TIME_EXCEEDED."""

    TRANSIT = 0
    REASSEMBLY = 1


class Icmp6ParamProb(enum.IntEnum):
    """ICMP6_PARAMPROB_*: codes of PARAM_PROB."""

    HEADER = 0
    NEXTHEADER = 1
    OPTION = 2


class Icmp6View(View):
    """A message of at least 8 bytes; `data` is behind the word that depends on the type."""

    __slots__ = ()

    def __init__(self, buf: Buffer, start: int = 0, end: int | None = None) -> None:
        """Check the length.

        Raises:
            WireError: ICP6S_TOOSHORT.
        """
        if end is None:
            end = len(buf)
        if end - start < ICMP6_HDR_LEN:
            raise WireError(Why.ICP6S_TOOSHORT, f"{end - start} bytes")
        self.buf = buf
        self.start = start
        self.data = start + ICMP6_HDR_LEN
        self.end = end

    @property
    def type(self) -> int:
        """The message's type."""
        return self.buf[self.start]

    @property
    def code(self) -> int:
        """The message's code."""
        return self.buf[self.start + 1]

    @property
    def is_error(self) -> bool:
        """Whether this is an error, which must never be answered by another."""
        return self.type < 128

    def verify(self, pseudo: int) -> bool:
        """Whether the checksum is right, given the sum of addresses and protocol."""
        covered = memoryview(self.buf)[self.start : self.end]
        return in_fold(pseudo + len(covered) + in_sum(covered)) == 0xFFFF


@attrs.frozen
class Icmp6Repr:
    """A message; the subclasses are the kinds. Counterpart: struct icmp6_hdr.

    Attributes:
        type: an `Icmp6Type`, or another byte where a kind allows it.
        code: more about the type; 0 in neighbor discovery and MLD.
    """

    #: The types a kind of message can have.
    types: ClassVar[frozenset[int]] = frozenset()
    #: Whether the code must be 0.
    no_code: ClassVar[bool] = False

    type: int
    code: int

    def body(self) -> bytes:
        """What stands behind the checksum."""
        raise illegal("a message of no kind")

    def _checked_body(self) -> bytes:
        """The body of a message that would be read back as what it is.

        Raises:
            WireError: ILLEGAL.
        """
        if not (0 <= self.type <= 255 and 0 <= self.code <= 255):
            raise illegal(f"type {self.type}, code {self.code}")
        if (self.types and self.type not in self.types) or (self.no_code and self.code):
            name = type(self).__name__
            raise illegal(f"{name} is never of type {self.type}, code {self.code}")
        try:
            return self.body()
        except (struct.error, ValueError) as error:
            raise illegal(str(error)) from None

    @property
    def wire_len(self) -> int:
        """Bytes of the message."""
        return 4 + len(self._checked_body())

    def emit(self, buf: WriteBuffer, start: int = 0, pseudo: int | None = None) -> int:
        """Write the whole message; return the offset after it.

        Args:
            buf: where to.
            start: offset of the message.
            pseudo: the sum of addresses and protocol; None leaves the checksum zero.

        Raises:
            WireError: ILLEGAL, a field out of range or a type of another kind of message.
        """
        body = self._checked_body()
        cksum = 0
        if pseudo is not None:
            words = (self.type << 8 | self.code) + 4 + len(body)
            cksum = 0xFFFF ^ in_fold(pseudo + words + in_sum(body))
        raw = bytes((self.type, self.code, cksum >> 8, cksum & 255)) + body
        return put(buf, start, raw)


def check_code(code: int) -> None:
    """Refuse a code other than 0, for messages that have none.

    Raises:
        WireError: ICP6S_BADCODE.
    """
    if code:
        raise WireError(Why.ICP6S_BADCODE, str(code))


def check_len(body: bytes, size: int) -> None:
    """Refuse a message shorter than its type demands.

    Args:
        body: what stands behind the checksum.
        size: bytes of the shortest message.

    Raises:
        WireError: ICP6S_BADLEN.
    """
    if len(body) + 4 < size:
        raise WireError(Why.ICP6S_BADLEN, f"{len(body) + 4} bytes, not {size}")
