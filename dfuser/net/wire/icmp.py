"""ICMP for IPv4: every type DragonFly knows, each with the fields it has.

::

     0      1      2       4                8
    +------+------+-------+----------------+----------
    | type | code |  sum  | word by type   | data by type
    +------+------+-------+----------------+----------
     echo, timestamp, mask, information: id, seq
     unreachable: -, words, next-hop MTU      time exceeded, parameter problem: pptr, words, -
     redirect: gateway                        router advertisement: count, size, lifetime

An error carries the start of the datagram that caused it: its header and at least 8 bytes
behind that (ICMP_ADVLEN), or the message is refused, because the ports could not be read. The
original is kept as bytes; `IcmpError.embedded` gives a view on it. If `words` is not zero the
original is that many words long and RFC 4884's extensions follow it.

Types without fields of their own here (traceroute, data conversion error, mobile, SKIP,
Photuris, and whatever comes) are an `IcmpOther` and lose nothing. Codes are never refused: an
unknown one is the receiver's question (icps_badcode).

Counterpart: struct icmp, ICMP_* (netinet/ip_icmp.h), the length checks of icmp_input
    (netinet/ip_icmp.c).
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ClassVar, Final

import attrs

from dfuser.net.cksum import in_cksum, in_sum
from dfuser.net.wire.base import Buffer, View, Why, WireError, WriteBuffer, illegal, put
from dfuser.net.wire.ipv4 import Ipv4View

ICMP_MINLEN: Final = 8
ICMP_TSLEN: Final = 20
ICMP_MASKLEN: Final = 12
#: An error with the shortest original: a header without options and 8 bytes.
ICMP_ADVLENMIN: Final = 36

_IDSEQ: Final = struct.Struct("!HH")
_STAMPS: Final = struct.Struct("!HHIII")
_ADVERT: Final = struct.Struct("!BBH")
_ENTRY: Final = struct.Struct("!4si")
_ERROR: Final = struct.Struct("!BBH")


class IcmpType(enum.IntEnum):
    """ICMP_*: message types."""

    ECHOREPLY = 0
    UNREACH = 3
    SOURCEQUENCH = 4
    REDIRECT = 5
    ALTHOSTADDR = 6
    ECHO = 8
    ROUTERADVERT = 9
    ROUTERSOLICIT = 10
    TIMXCEED = 11
    PARAMPROB = 12
    TSTAMP = 13
    TSTAMPREPLY = 14
    IREQ = 15
    IREQREPLY = 16
    MASKREQ = 17
    MASKREPLY = 18
    TRACEROUTE = 30
    DATACONVERR = 31
    MOBILE_REDIRECT = 32
    IPV6_WHEREAREYOU = 33
    IPV6_IAMHERE = 34
    MOBILE_REGREQUEST = 35
    MOBILE_REGREPLY = 36
    SKIP = 39
    PHOTURIS = 40


class IcmpUnreach(enum.IntEnum):
    """ICMP_UNREACH_*: codes of UNREACH."""

    NET = 0
    HOST = 1
    PROTOCOL = 2
    PORT = 3
    NEEDFRAG = 4
    SRCFAIL = 5
    NET_UNKNOWN = 6
    HOST_UNKNOWN = 7
    ISOLATED = 8
    NET_PROHIB = 9
    HOST_PROHIB = 10
    TOSNET = 11
    TOSHOST = 12
    FILTER_PROHIB = 13
    HOST_PRECEDENCE = 14
    PRECEDENCE_CUTOFF = 15


class IcmpRedirectCode(enum.IntEnum):
    """ICMP_REDIRECT_*: codes of REDIRECT."""

    NET = 0
    HOST = 1
    TOSNET = 2
    TOSHOST = 3


class IcmpTimxceed(enum.IntEnum):
    """ICMP_TIMXCEED_*: codes of TIMXCEED."""

    INTRANS = 0
    REASS = 1


class IcmpParamprob(enum.IntEnum):
    """ICMP_PARAMPROB_*: codes of PARAMPROB."""

    ERRATPTR = 0
    OPTABSENT = 1
    LENGTH = 2


class IcmpRouteradvert(enum.IntEnum):
    """ICMP_ROUTERADVERT_*: codes of ROUTERADVERT."""

    NORMAL = 0
    NOROUTE_COMMON = 16


class IcmpPhoturis(enum.IntEnum):
    """ICMP_PHOTURIS_*: codes of PHOTURIS."""

    UNKNOWN_INDEX = 1
    AUTH_FAILED = 2
    DECRYPT_FAILED = 3


class IcmpView(View):
    """A message of at least 8 bytes; `data` is behind the word that depends on the type."""

    __slots__ = ()

    def __init__(self, buf: Buffer, start: int = 0, end: int | None = None) -> None:
        """Check the length.

        Raises:
            WireError: ICPS_TOOSHORT.
        """
        if end is None:
            end = len(buf)
        if end - start < ICMP_MINLEN:
            raise WireError(Why.ICPS_TOOSHORT, f"{end - start} bytes")
        self.buf = buf
        self.start = start
        self.data = start + ICMP_MINLEN
        self.end = end

    @property
    def type(self) -> int:
        """The message's type."""
        return self.buf[self.start]

    @property
    def code(self) -> int:
        """The message's code."""
        return self.buf[self.start + 1]

    def verify(self) -> bool:
        """Whether the checksum is right; it covers the whole message."""
        return in_sum(memoryview(self.buf)[self.start : self.end]) == 0xFFFF


@attrs.frozen
class IcmpRepr:
    """A message; the subclasses are the kinds. Counterpart: struct icmp.

    Attributes:
        type: an `IcmpType`, or another byte in an `IcmpOther`.
        code: more about the type.
    """

    types: ClassVar[frozenset[int]] = frozenset()

    type: int
    code: int

    @staticmethod
    def parse(view: IcmpView, *, verify: bool = True) -> IcmpRepr:
        """The value of a checked message.

        Raises:
            WireError: ICPS_CHECKSUM, ICPS_BADLEN (too short for its type).
        """
        if verify and not view.verify():
            raise WireError(Why.ICPS_CHECKSUM)
        body = bytes(view.buf[view.start + 4 : view.end])
        return _PARSERS.get(view.type, IcmpOther)(view.type, view.code, body)

    def body(self) -> bytes:
        """What stands behind the checksum."""
        raise illegal("a message of no kind")

    @property
    def wire_len(self) -> int:
        """Bytes of the message."""
        return 4 + len(self._checked_body())

    def _checked_body(self) -> bytes:
        """The body of a message that would be read back as what it is.

        Raises:
            WireError: ILLEGAL.
        """
        if not (0 <= self.type <= 255 and 0 <= self.code <= 255):
            raise illegal(f"type {self.type}, code {self.code}")
        if self.types and self.type not in self.types:
            raise illegal(f"{type(self).__name__} is never of type {self.type}")
        try:
            return self.body()
        except (struct.error, ValueError) as error:
            raise illegal(str(error)) from None

    def emit(self, buf: WriteBuffer, start: int = 0) -> int:
        """Write the whole message with its checksum; return the offset after it.

        Raises:
            WireError: ILLEGAL, a field out of range, or a type of another kind of message.
        """
        body = self._checked_body()
        cksum = in_cksum(body, self.type << 8 | self.code)
        raw = bytes((self.type, self.code, cksum >> 8, cksum & 255)) + body
        return put(buf, start, raw)


@attrs.frozen
class IcmpEcho(IcmpRepr):
    """ECHO and ECHOREPLY: the reply has everything of the question but the type.

    Attributes:
        id: names the asker.
        seq: counts the questions.
        data: comes back unchanged.
    """

    types = frozenset((IcmpType.ECHO, IcmpType.ECHOREPLY))

    id: int
    seq: int
    data: bytes = b""

    @classmethod
    def of(cls, kind: int, code: int, body: bytes) -> IcmpEcho:
        """Read what stands behind the checksum."""
        ident, seq = _IDSEQ.unpack_from(body)
        return cls(kind, code, ident, seq, body[4:])

    def body(self) -> bytes:
        """What stands behind the checksum."""
        return _IDSEQ.pack(self.id, self.seq) + self.data


@attrs.frozen
class IcmpError(IcmpRepr):
    """UNREACH, SOURCEQUENCH, TIMXCEED and PARAMPROB.

    Attributes:
        original: the datagram that caused it, from its header on; cut at the end.
        nextmtu: of UNREACH with code NEEDFRAG: what would pass (RFC 1191); else 0.
        pptr: of PARAMPROB: offset of the wrong byte in the original; else 0.
        words: length of the original in words of 4 bytes if extensions follow it (RFC 4884).
    """

    types = frozenset(
        (IcmpType.UNREACH, IcmpType.SOURCEQUENCH, IcmpType.TIMXCEED, IcmpType.PARAMPROB)
    )

    original: bytes
    nextmtu: int = 0
    pptr: int = 0
    words: int = 0

    @classmethod
    def of(cls, kind: int, code: int, body: bytes) -> IcmpError:
        """Read what stands behind the checksum.

        Raises:
            WireError: ICPS_BADLEN.
        """
        pptr, words, nextmtu = _ERROR.unpack_from(body)
        original = _checked_original(body[4:])
        if kind == IcmpType.SOURCEQUENCH:
            return cls(kind, code, original)
        return cls(
            kind,
            code,
            original,
            nextmtu if kind == IcmpType.UNREACH else 0,
            pptr if kind == IcmpType.PARAMPROB else 0,
            words,
        )

    def body(self) -> bytes:
        """What stands behind the checksum."""
        if (
            (self.nextmtu and self.type != IcmpType.UNREACH)
            or (self.pptr and self.type != IcmpType.PARAMPROB)
            or (self.words and self.type == IcmpType.SOURCEQUENCH)
        ):
            raise illegal(f"a field that messages of type {self.type} do not have")
        return _ERROR.pack(self.pptr, self.words, self.nextmtu) + _legal_original(self.original)

    def embedded(self) -> Ipv4View:
        """A view on the original's header and what is left of its payload.

        Raises:
            WireError: the original's own length field is smaller than its header.
        """
        cut = self.original[: self.words * 4] if self.words else self.original
        return Ipv4View(cut, embedded=True)


@attrs.frozen
class IcmpRedirect(IcmpRepr):
    """REDIRECT: there is a shorter way.

    Attributes:
        gwaddr: the better gateway, 4 bytes.
        original: the datagram that came the long way.
    """

    types = frozenset((IcmpType.REDIRECT,))

    gwaddr: bytes
    original: bytes

    @classmethod
    def of(cls, kind: int, code: int, body: bytes) -> IcmpRedirect:
        """Read what stands behind the checksum.

        Raises:
            WireError: ICPS_BADLEN.
        """
        return cls(kind, code, body[:4], _checked_original(body[4:]))

    def body(self) -> bytes:
        """What stands behind the checksum."""
        if len(self.gwaddr) != 4:
            raise illegal("a gateway's address has 4 bytes")
        return self.gwaddr + _legal_original(self.original)

    def embedded(self) -> Ipv4View:
        """A view on the original's header and what is left of its payload.

        Raises:
            WireError: the original's own length field is smaller than its header.
        """
        return Ipv4View(self.original, embedded=True)


@attrs.frozen
class IcmpTimestamp(IcmpRepr):
    """TSTAMP and TSTAMPREPLY: milliseconds since midnight UT at three moments.

    Attributes:
        id: names the asker.
        seq: counts the questions.
        otime: when the question left.
        rtime: when it arrived.
        ttime: when the answer left.
    """

    types = frozenset((IcmpType.TSTAMP, IcmpType.TSTAMPREPLY))

    id: int
    seq: int
    otime: int
    rtime: int = 0
    ttime: int = 0

    @classmethod
    def of(cls, kind: int, code: int, body: bytes) -> IcmpTimestamp:
        """Read what stands behind the checksum.

        Raises:
            WireError: ICPS_BADLEN.
        """
        _need(body, ICMP_TSLEN)
        return cls(kind, code, *_STAMPS.unpack_from(body))

    def body(self) -> bytes:
        """What stands behind the checksum."""
        return _STAMPS.pack(self.id, self.seq, self.otime, self.rtime, self.ttime)


@attrs.frozen
class IcmpMask(IcmpRepr):
    """MASKREQ and MASKREPLY (RFC 950): what is the mask of this network?

    Attributes:
        id: names the asker.
        seq: counts the questions.
        mask: 4 bytes.
    """

    types = frozenset((IcmpType.MASKREQ, IcmpType.MASKREPLY))

    id: int
    seq: int
    mask: bytes = bytes(4)

    @classmethod
    def of(cls, kind: int, code: int, body: bytes) -> IcmpMask:
        """Read what stands behind the checksum.

        Raises:
            WireError: ICPS_BADLEN.
        """
        _need(body, ICMP_MASKLEN)
        ident, seq = _IDSEQ.unpack_from(body)
        return cls(kind, code, ident, seq, body[4:8])

    def body(self) -> bytes:
        """What stands behind the checksum."""
        if len(self.mask) != 4:
            raise illegal("a mask has 4 bytes")
        return _IDSEQ.pack(self.id, self.seq) + self.mask


@attrs.frozen
class IcmpInformation(IcmpRepr):
    """IREQ and IREQREPLY: which network is this? Obsolete (RFC 6918), still known.

    Attributes:
        id: names the asker.
        seq: counts the questions.
    """

    types = frozenset((IcmpType.IREQ, IcmpType.IREQREPLY))

    id: int
    seq: int

    @classmethod
    def of(cls, kind: int, code: int, body: bytes) -> IcmpInformation:
        """Read what stands behind the checksum."""
        return cls(kind, code, *_IDSEQ.unpack_from(body))

    def body(self) -> bytes:
        """What stands behind the checksum."""
        return _IDSEQ.pack(self.id, self.seq)


@attrs.frozen
class IcmpRouterAdvert(IcmpRepr):
    """ROUTERADVERT (RFC 1256). Counterpart: struct ih_rtradv, struct icmp_ra_addr.

    Attributes:
        lifetime: seconds the addresses are valid.
        addrs: pairs of an address (4 bytes) and its preference (signed), at least one.
    """

    types = frozenset((IcmpType.ROUTERADVERT,))

    lifetime: int
    addrs: tuple[tuple[bytes, int], ...]

    @classmethod
    def of(cls, kind: int, code: int, body: bytes) -> IcmpRouterAdvert:
        """Read what stands behind the checksum; entries longer than two words are cut.

        Raises:
            WireError: ICPS_BADLEN.
        """
        count, wpa, lifetime = _ADVERT.unpack_from(body)
        if not count or wpa < 2 or len(body) < 4 + count * wpa * 4:
            raise WireError(Why.ICPS_BADLEN, f"{count} entries of {wpa} words")
        addrs = tuple(_ENTRY.unpack_from(body, 4 + i * wpa * 4) for i in range(count))
        return cls(kind, code, lifetime, addrs)

    def body(self) -> bytes:
        """What stands behind the checksum."""
        if not self.addrs or any(len(addr) != 4 for addr, _ in self.addrs):
            raise illegal("one address at least, each of 4 bytes")
        entries = b"".join(_ENTRY.pack(*pair) for pair in self.addrs)
        return _ADVERT.pack(len(self.addrs), 2, self.lifetime) + entries


@attrs.frozen
class IcmpRouterSolicit(IcmpRepr):
    """ROUTERSOLICIT (RFC 1256): are there routers?"""

    types = frozenset((IcmpType.ROUTERSOLICIT,))

    @classmethod
    def of(cls, kind: int, code: int, _body: bytes) -> IcmpRouterSolicit:
        """Read what stands behind the checksum: nothing that means anything."""
        return cls(kind, code)

    def body(self) -> bytes:
        """What stands behind the checksum."""
        return bytes(4)


@attrs.frozen
class IcmpOther(IcmpRepr):
    """Any other type, preserved as it is.

    Attributes:
        rest: everything behind the checksum, at least 4 bytes.
    """

    rest: bytes

    def body(self) -> bytes:
        """What stands behind the checksum."""
        if self.type in _PARSERS or len(self.rest) < 4:
            raise illegal(f"type {self.type} with {len(self.rest)} bytes is no other message")
        return self.rest


def _need(body: bytes, size: int) -> None:
    """Refuse a message shorter than its type demands."""
    if len(body) + 4 < size:
        raise WireError(Why.ICPS_BADLEN, f"{len(body) + 4} bytes, not {size}")


def _checked_original(original: bytes) -> bytes:
    """An original whose ports can be read. Counterpart: the test of ICMP_ADVLEN.

    Raises:
        WireError: ICPS_BADLEN.
    """
    hlen = (original[0] & 15) << 2 if original else 0
    if hlen < 20 or len(original) < hlen + 8:
        raise WireError(Why.ICPS_BADLEN, f"{len(original)} bytes of an original")
    return original


def _legal_original(original: bytes) -> bytes:
    """An original that may be sent.

    Raises:
        WireError: ILLEGAL.
    """
    try:
        return _checked_original(original)
    except WireError as error:
        raise illegal(str(error)) from None


_Parser = Callable[[int, int, bytes], IcmpRepr]
_PARSERS: Final[Mapping[int, _Parser]] = MappingProxyType(
    {
        int(kind): parser
        for types, parser in (
            (IcmpEcho.types, IcmpEcho.of),
            (IcmpError.types, IcmpError.of),
            (IcmpRedirect.types, IcmpRedirect.of),
            (IcmpTimestamp.types, IcmpTimestamp.of),
            (IcmpMask.types, IcmpMask.of),
            (IcmpInformation.types, IcmpInformation.of),
            (IcmpRouterAdvert.types, IcmpRouterAdvert.of),
            (IcmpRouterSolicit.types, IcmpRouterSolicit.of),
        )
        for kind in types
    }
)
