"""ICMPv6: errors and echo; and `parse`, which reads a message of any kind.

::

    unreachable:       - (1: words of 8)      packet too big:     MTU 4
    time exceeded:     - (1: words of 8)      parameter problem:  pptr 4
    echo:              id 2, seq 2            each followed by the original or the data

An error carries as much of the packet that caused it as fits into the smallest MTU, at least
its IPv6 header, or is refused. Types without fields of their own here (router renumbering, node
information, mtrace, home agent discovery, and whatever comes) are an `Icmp6Other` and lose
nothing.

Counterpart: struct icmp6_hdr (netinet/icmp6.h), the length checks of icmp6_input and
    icmp6_notify_error (netinet6/icmp6.c).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import attrs

from dfuser.net.wire.base import Why, WireError, illegal
from dfuser.net.wire.icmp6_message import Icmp6Repr, Icmp6Type, Icmp6View
from dfuser.net.wire.ipv6 import IP6_HDR_LEN, Ipv6View
from dfuser.net.wire.mld6 import MldMessage, MldQueryV2, MldReportV2
from dfuser.net.wire.nd6 import (
    NdNeighborAdvert,
    NdNeighborSolicit,
    NdRedirect,
    NdRouterAdvert,
    NdRouterSolicit,
)

_IDSEQ: Final = struct.Struct("!HH")
_WORD: Final = struct.Struct("!I")


@attrs.frozen
class Icmp6Error(Icmp6Repr):
    """DST_UNREACH, PACKET_TOO_BIG, TIME_EXCEEDED and PARAM_PROB.

    Attributes:
        original: the packet that caused it, from its IPv6 header on; cut at the end.
        mtu: of PACKET_TOO_BIG: what would pass; else 0.
        pptr: of PARAM_PROB: offset of the wrong byte in the original; else 0.
        words: of DST_UNREACH and TIME_EXCEEDED: length of the original in units of 8 bytes if
            extensions follow it (RFC 4884); else 0.
    """

    types = frozenset(
        (
            Icmp6Type.DST_UNREACH,
            Icmp6Type.PACKET_TOO_BIG,
            Icmp6Type.TIME_EXCEEDED,
            Icmp6Type.PARAM_PROB,
        )
    )

    original: bytes
    mtu: int = 0
    pptr: int = 0
    words: int = 0

    @classmethod
    def of(cls, kind: int, code: int, body: bytes) -> Icmp6Error:
        """Read what stands behind the checksum.

        Raises:
            WireError: ICP6S_TOOSHORT, the original's header is cut.
        """
        original = body[4:]
        if len(original) < IP6_HDR_LEN:
            raise WireError(Why.ICP6S_TOOSHORT, f"{len(original)} bytes of an original")
        word = _WORD.unpack_from(body)[0]
        if kind == Icmp6Type.PACKET_TOO_BIG:
            return cls(kind, code, original, mtu=word)
        if kind == Icmp6Type.PARAM_PROB:
            return cls(kind, code, original, pptr=word)
        return cls(kind, code, original, words=word >> 24)

    def body(self) -> bytes:
        """What stands behind the checksum."""
        if len(self.original) < IP6_HDR_LEN:
            raise illegal("an original without its header")
        mine = {Icmp6Type.PACKET_TOO_BIG: self.mtu, Icmp6Type.PARAM_PROB: self.pptr}.get(
            Icmp6Type(self.type), self.words << 24
        )
        if mine != (self.mtu | self.pptr | self.words << 24):
            raise illegal(f"a field that messages of type {self.type} do not have")
        return _WORD.pack(mine) + self.original

    def embedded(self) -> Ipv6View:
        """A view on the original's header and what is left of its payload."""
        cut = self.original[: max(self.words * 8, IP6_HDR_LEN)] if self.words else self.original
        return Ipv6View(cut, embedded=True)


@attrs.frozen
class Icmp6Echo(Icmp6Repr):
    """ECHO_REQUEST and ECHO_REPLY: the reply has everything of the question but the type.

    Attributes:
        id: names the asker.
        seq: counts the questions.
        data: comes back unchanged.
    """

    types = frozenset((Icmp6Type.ECHO_REQUEST, Icmp6Type.ECHO_REPLY))

    id: int
    seq: int
    data: bytes = b""

    @classmethod
    def of(cls, kind: int, code: int, body: bytes) -> Icmp6Echo:
        """Read what stands behind the checksum."""
        ident, seq = _IDSEQ.unpack_from(body)
        return cls(kind, code, ident, seq, body[4:])

    def body(self) -> bytes:
        """What stands behind the checksum."""
        return _IDSEQ.pack(self.id, self.seq) + self.data


@attrs.frozen
class Icmp6Other(Icmp6Repr):
    """Any other type, preserved as it is.

    Attributes:
        rest: everything behind the checksum, at least 4 bytes.
    """

    rest: bytes

    @classmethod
    def of(cls, kind: int, code: int, body: bytes) -> Icmp6Other:
        """Keep what stands behind the checksum."""
        return cls(kind, code, body)

    def body(self) -> bytes:
        """What stands behind the checksum."""
        if self.type in _PARSERS or len(self.rest) < 4:
            raise illegal(f"type {self.type} with {len(self.rest)} bytes is no other message")
        return self.rest


def parse(view: Icmp6View, pseudo: int | None = None) -> Icmp6Repr:
    """The value of a checked message.

    Args:
        view: the message.
        pseudo: the sum of addresses and protocol; None if the checksum is known good.

    Raises:
        WireError: ICP6S_CHECKSUM, and what the message's kind refuses.
    """
    if pseudo is not None and not view.verify(pseudo):
        raise WireError(Why.ICP6S_CHECKSUM)
    body = bytes(view.buf[view.start + 4 : view.end])
    return _PARSERS.get(view.type, Icmp6Other.of)(view.type, view.code, body)


_Parser = Callable[[int, int, bytes], Icmp6Repr]
_PARSERS: Final[Mapping[int, _Parser]] = MappingProxyType(
    {
        **{int(kind): Icmp6Error.of for kind in Icmp6Error.types},
        **{int(kind): Icmp6Echo.of for kind in Icmp6Echo.types},
        int(Icmp6Type.LISTENER_QUERY): MldQueryV2.of,
        int(Icmp6Type.LISTENER_REPORT): MldMessage.of,
        int(Icmp6Type.LISTENER_DONE): MldMessage.of,
        int(Icmp6Type.LISTENER_REPORT_V2): MldReportV2.of,
        int(Icmp6Type.ROUTER_SOLICIT): NdRouterSolicit.of,
        int(Icmp6Type.ROUTER_ADVERT): NdRouterAdvert.of,
        int(Icmp6Type.NEIGHBOR_SOLICIT): NdNeighborSolicit.of,
        int(Icmp6Type.NEIGHBOR_ADVERT): NdNeighborAdvert.of,
        int(Icmp6Type.REDIRECT): NdRedirect.of,
    }
)
