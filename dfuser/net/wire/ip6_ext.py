"""IPv6 extension headers: walked with limits, kept in order.

::

    hop-by-hop, destination:  nxt | len | options...          len in units of 8 beyond the first 8
    routing:                  nxt | len | type | segleft | data
    fragment:                 nxt | 0   | offset:13 0:2 M:1 | ident:32

    option:  Pad1 = 00        others: type | length (of data) | data
             the two highest bits of the type say what to do with an unknown one

`walk` goes from header to header until a protocol, or a real fragment, behind which only the
reassembler can see. What it does not do is act: unknown options, routing types and the router
alert are found by the caller in the headers it gets.

An attacker can fill a packet with headers or with options of one byte each. Both are bounded:
`IP6_HDRNESTLIMIT` headers (net.inet6.ip6.hdrnestlimit) and `IP6_OPTIONLIMIT` options in all.

Counterpart: struct ip6_hbh, ip6_dest, ip6_rthdr, ip6_frag, IP6OPT_* (netinet/ip6.h); the loop
    of ip6_input, ip6_process_hopopts (netinet6/ip6_input.c), dest6_input, route6_input, the
    checks at the head of frag6_input.
Differs from DragonFly: the limit on options is ours (RFC 8504, 5.3 allows it); errors that
    DragonFly answers with an ICMPv6 parameter problem carry the pointer for it in `at`,
    counted from the start of the IPv6 header. An atomic fragment (RFC 6946) is walked through.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from dfuser.net.wire.base import Why, WireError, WriteBuffer, illegal, put
from dfuser.net.wire.ipv6 import IPV6_MAXPACKET, Ipv6View
from dfuser.net.wire.protocols import IpProto

IP6_HDRNESTLIMIT: Final = 50
IP6_OPTIONLIMIT: Final = 128

IP6OPT_PAD1: Final = 0x00
IP6OPT_PADN: Final = 0x01
IP6OPT_TUNNEL_LIMIT: Final = 0x04
IP6OPT_ROUTER_ALERT: Final = 0x05
IP6OPT_EID: Final = 0x8A
IP6OPT_JUMBO: Final = 0xC2
IP6OPT_NSAP_ADDR: Final = 0xC3
IP6OPT_HOME_ADDRESS: Final = 0xC9

IP6OPT_RTALERT_MLD: Final = 0
IP6OPT_RTALERT_RSVP: Final = 1
IP6OPT_RTALERT_ACTNET: Final = 2

#: What to do with an unknown option: IP6OPT_TYPE() of its number.
IP6OPT_TYPE_SKIP: Final = 0x00
IP6OPT_TYPE_DISCARD: Final = 0x40
IP6OPT_TYPE_FORCEICMP: Final = 0x80
IP6OPT_TYPE_ICMP: Final = 0xC0
IP6OPT_MUTABLE: Final = 0x20

#: The length an option of this type must have; DragonFly refuses others.
_FIXED: Final = frozenset(((IP6OPT_ROUTER_ALERT, 2), (IP6OPT_JUMBO, 4)))
_FIXED_TYPES: Final = frozenset((IP6OPT_ROUTER_ALERT, IP6OPT_JUMBO))

_HOPOPTS: Final = int(IpProto.HOPOPTS)
_ROUTING: Final = int(IpProto.ROUTING)
_FRAGMENT: Final = int(IpProto.FRAGMENT)
_DSTOPTS: Final = int(IpProto.DSTOPTS)
_EXTENSIONS: Final = frozenset((_HOPOPTS, _ROUTING, _FRAGMENT, _DSTOPTS))

_FRAG: Final = struct.Struct("!BBHI")


class Ip6Opt(NamedTuple):
    """One option of a hop-by-hop or destination header, padding too.

    Counterpart: struct ip6_opt.

    Attributes:
        type: the option's number.
        data: what stands behind type and length; empty in Pad1, which has neither.
    """

    type: int
    data: bytes = b""

    @property
    def action(self) -> int:
        """What to do if the option is unknown: IP6OPT_TYPE_*."""
        return self.type & 0xC0

    @property
    def value(self) -> int:
        """The data as one number: the meaning of a router alert, the length of a jumbogram."""
        return int.from_bytes(self.data, "big")

    def pack(self) -> bytes:
        """The option's bytes.

        Raises:
            WireError: ILLEGAL.
        """
        size = len(self.data)
        if not 0 <= self.type <= 255 or size > 255:
            raise illegal(f"{self}")
        if self.type in _FIXED_TYPES and (self.type, size) not in _FIXED:
            raise illegal(f"option {self.type} with {size} bytes")
        if self.type == IP6OPT_PAD1:
            if size:
                raise illegal("Pad1 has no data")
            return b"\0"
        return bytes((self.type, size)) + self.data


def router_alert(value: int) -> Ip6Opt:
    """The option that makes every router look (RFC 2711); MLD messages carry it with 0."""
    return Ip6Opt(IP6OPT_ROUTER_ALERT, struct.pack("!H", value))


def jumbo(length: int) -> Ip6Opt:
    """The option with a payload's length above 65535 (RFC 2675)."""
    return Ip6Opt(IP6OPT_JUMBO, struct.pack("!I", length))


def padded(options: Iterable[Ip6Opt]) -> tuple[Ip6Opt, ...]:
    """Options with the padding behind them that makes their header a multiple of 8 bytes."""
    options = tuple(options)
    room = -(2 + sum(len(option.pack()) for option in options)) % 8
    if room == 0:
        return options
    return (*options, Ip6Opt(IP6OPT_PADN, bytes(room - 2)) if room > 1 else Ip6Opt(IP6OPT_PAD1))


class Ip6HopOpts(NamedTuple):
    """Options for every hop; only the first header can be this. Counterpart: struct ip6_hbh."""

    options: tuple[Ip6Opt, ...]
    proto: int = _HOPOPTS

    def pack(self, nxt: int) -> bytes:
        """The header's bytes, in front of `nxt`."""
        return _pack_options(self.options, nxt)


class Ip6DstOpts(NamedTuple):
    """Options for the destination. Counterpart: struct ip6_dest."""

    options: tuple[Ip6Opt, ...]
    proto: int = _DSTOPTS

    def pack(self, nxt: int) -> bytes:
        """The header's bytes, in front of `nxt`."""
        return _pack_options(self.options, nxt)


class Ip6Routing(NamedTuple):
    """A route to take; what `data` means depends on the type. Counterpart: struct ip6_rthdr.

    Attributes:
        type: 0 was the source route that RFC 5095 has abolished.
        segleft: hops still to visit.
        data: 4 bytes, and 8 more as often as needed.
    """

    type: int
    segleft: int
    data: bytes
    proto: int = _ROUTING

    def pack(self, nxt: int) -> bytes:
        """The header's bytes, in front of `nxt`."""
        size = 4 + len(self.data)
        if size & 7 or size > 2048:
            raise illegal(f"a routing header with {len(self.data)} bytes of data")
        return bytes((nxt, (size >> 3) - 1, self.type, self.segleft)) + self.data


class Ip6Fragment(NamedTuple):
    """Which part of a packet this is. Counterpart: struct ip6_frag.

    Attributes:
        offset: where the part begins behind the unfragmentable headers, in bytes.
        more: whether parts follow.
        ident: equal in all parts.
    """

    offset: int
    more: bool
    ident: int
    proto: int = _FRAGMENT

    @property
    def atomic(self) -> bool:
        """Whether the one part is the whole (RFC 6946)."""
        return not self.offset and not self.more

    def pack(self, nxt: int) -> bytes:
        """The header's bytes, in front of `nxt`."""
        if self.offset & 7:
            raise illegal(f"a fragment at {self.offset}")
        return _FRAG.pack(nxt, 0, self.offset | self.more, self.ident)


Ip6Ext = Ip6HopOpts | Ip6DstOpts | Ip6Routing | Ip6Fragment


def _pack_options(options: Iterable[Ip6Opt], nxt: int) -> bytes:
    """A header of options."""
    raw = b"".join(option.pack() for option in options)
    size = 2 + len(raw)
    if size & 7 or size > 2048:
        raise illegal(f"options of {len(raw)} bytes; padded() makes them fit")
    return bytes((nxt, (size >> 3) - 1)) + raw


class Ip6Chain(NamedTuple):
    """The headers between an IPv6 header and what it carries.

    Attributes:
        headers: in order; empty for most packets.
        proto: what is behind them.
    """

    headers: tuple[Ip6Ext, ...]
    proto: int

    @property
    def nxt(self) -> int:
        """What `Ipv6Repr.nxt` must be."""
        return self.headers[0].proto if self.headers else self.proto

    @property
    def fragment(self) -> Ip6Fragment | None:
        """The real fragment header, which is then the last."""
        last = self.headers[-1] if self.headers else None
        return last if isinstance(last, Ip6Fragment) and not last.atomic else None

    @property
    def wire_len(self) -> int:
        """Bytes of all headers."""
        return len(self.pack())

    def pack(self) -> bytes:
        """The bytes of all headers.

        Raises:
            WireError: ILLEGAL: a header out of range, hop-by-hop options that are not first,
                something behind a real fragment header, more than `walk` accepts, or a `proto`
                that is itself an extension header.
        """
        protos = [header.proto for header in self.headers] + [self.proto]
        options = 0
        raw = b""
        for index, (header, nxt) in enumerate(zip(self.headers, protos[1:], strict=True)):
            options += _check_place(header, index, index == len(self.headers) - 1)
            try:
                raw += header.pack(nxt)
            except (struct.error, ValueError) as error:
                raise illegal(f"{header}: {error}") from None
        if len(self.headers) > IP6_HDRNESTLIMIT or options > IP6_OPTIONLIMIT:
            raise illegal(f"{len(self.headers)} headers, {options} options")
        if self.proto in _EXTENSIONS and self.fragment is None:
            raise illegal(f"{self.proto} is an extension header")
        return raw

    def emit(self, buf: WriteBuffer, start: int = 0) -> int:
        """Write all headers; return the offset of what they carry.

        Raises:
            WireError: ILLEGAL.
        """
        return put(buf, start, self.pack())


def _check_place(header: Ip6Ext, index: int, last: bool) -> int:
    """Refuse a header where it cannot stand; return how many options it has."""
    kind = _PROTOS.get(type(header))
    if header.proto != kind:
        raise illegal(f"{type(header).__name__} is never {header.proto}")
    if isinstance(header, Ip6HopOpts) and index:
        raise illegal("hop-by-hop options come first")
    if isinstance(header, Ip6Fragment) and not header.atomic and not last:
        raise illegal("nothing can be seen behind a fragment header")
    if isinstance(header, Ip6HopOpts) and any(o.type == IP6OPT_JUMBO for o in header.options):
        jumbos = [o for o in header.options if o.type == IP6OPT_JUMBO]
        if len(jumbos) > 1 or jumbos[0].value <= IPV6_MAXPACKET:
            raise illegal("one jumbo payload length, above 65535")
    return len(header.options) if isinstance(header, Ip6HopOpts | Ip6DstOpts) else 0


class Walked(NamedTuple):
    """What `walk` found.

    Attributes:
        chain: the headers and the protocol behind them.
        data: offset of what they carry, in the view's buffer.
        end: offset after it.
    """

    chain: Ip6Chain
    data: int
    end: int


class _Walker:
    """One walk; holds where it is and how much it has seen."""

    __slots__ = ("at", "buf", "end", "options", "jumbo", "view")

    def __init__(self, view: Ipv6View) -> None:
        self.view = view
        self.buf = view.buf
        self.at = view.data
        self.end = view.end
        self.options = 0
        self.jumbo = 0

    def bad(self, why: Why, text: str, at: int) -> WireError:
        """An error with the offset that an ICMPv6 parameter problem points to."""
        return WireError(why, text, at - self.view.start)

    def room(self, size: int) -> None:
        """Refuse a header that is longer than the packet."""
        if self.at + size > self.end:
            raise self.bad(Why.IP6S_TOOSHORT, "the packet ends in an extension header", self.at)

    def header(self, kind: int) -> tuple[Ip6Ext, int]:
        """Read the header at hand; return it and what follows it."""
        self.room(8)
        buf, at = self.buf, self.at
        if kind == _FRAGMENT:
            if self.jumbo:
                raise self.bad(Why.IP6S_BADOPTIONS, "a jumbogram in fragments", at)
            nxt, _reserved, offlg, ident = _FRAG.unpack_from(buf, at)
            self.at = at + 8
            return Ip6Fragment(offlg & 0xFFF8, bool(offlg & 1), ident), nxt
        size = (buf[at + 1] + 1) << 3
        self.room(size)
        self.at = at + size
        if kind == _ROUTING:
            data = bytes(buf[at + 4 : at + size])
            return Ip6Routing(buf[at + 2], buf[at + 3], data), buf[at]
        options = self.read_options(at + 2, at + size)
        if kind == _DSTOPTS:
            return Ip6DstOpts(options), buf[at]
        self.find_jumbo(options, at)
        return Ip6HopOpts(options), buf[at]

    def read_options(self, at: int, end: int) -> tuple[Ip6Opt, ...]:
        """Read the options of a header."""
        buf = self.buf
        found: list[Ip6Opt] = []
        while at < end:
            self.options += 1
            if self.options > IP6_OPTIONLIMIT:
                raise self.bad(Why.IP6S_BADOPTIONS, "too many options", at)
            kind = buf[at]
            if kind == IP6OPT_PAD1:
                found.append(_PAD1)
                at += 1
                continue
            if at + 1 >= end:
                raise self.bad(Why.IP6S_TOOSMALL, "an option without a length", at)
            size = buf[at + 1]
            if at + 2 + size > end:
                raise self.bad(Why.IP6S_TOOSMALL, f"an option of {size} bytes", at + 1)
            if kind in _FIXED_TYPES and (kind, size) not in _FIXED:
                text = f"option {kind} with {size} bytes"
                raise self.bad(Why.IP6S_BADOPTIONS, text, at + 1)
            found.append(Ip6Opt(kind, bytes(buf[at + 2 : at + 2 + size])))
            at += 2 + size
        return tuple(found)

    def find_jumbo(self, options: Iterable[Ip6Opt], start: int) -> None:
        """Take a jumbogram's length from its hop-by-hop options (RFC 2675, 3)."""
        at = start + 2
        for option in options:
            if option.type == IP6OPT_JUMBO:
                if self.view.plen:
                    raise self.bad(Why.IP6S_BADOPTIONS, "two payload lengths", at)
                if self.jumbo or option.value <= IPV6_MAXPACKET:
                    text = f"a jumbo payload length of {option.value}"
                    raise self.bad(Why.IP6S_BADOPTIONS, text, at + 2)
                self.jumbo = option.value
            at += 2 + len(option.data) if option.type else 1
        if self.jumbo:
            if self.view.data + self.jumbo > self.end:
                raise self.bad(Why.IP6S_TOOSHORT, "a jumbogram is cut", start)
            self.end = self.view.data + self.jumbo


def walk(view: Ipv6View, hdrnestlimit: int = IP6_HDRNESTLIMIT) -> Walked:
    """Follow a packet's extension headers.

    Args:
        view: the packet.
        hdrnestlimit: most headers to follow.

    Raises:
        WireError: IP6S_TOOMANYHDR, IP6S_TOOSHORT (it ends in a header), IP6S_TOOSMALL (an
            option longer than its header), IP6S_BADOPTIONS, IP6S_BADNXT (hop-by-hop options
            that are not first); `at` is the pointer of the ICMPv6 parameter problem, whose
            code is NEXTHEADER for IP6S_BADNXT and HEADER otherwise.
    """
    nxt = view.nxt
    if nxt not in _EXTENSIONS:
        return Walked(Ip6Chain((), nxt), view.data, view.end)
    walker = _Walker(view)
    headers: list[Ip6Ext] = []
    nxt_at = view.start + 6
    while nxt in _EXTENSIONS:
        if len(headers) >= hdrnestlimit:
            raise walker.bad(Why.IP6S_TOOMANYHDR, f"more than {hdrnestlimit} headers", nxt_at)
        if nxt == _HOPOPTS and headers:
            raise walker.bad(Why.IP6S_BADNXT, "hop-by-hop options come first", nxt_at)
        nxt_at = walker.at
        header, nxt = walker.header(nxt)
        headers.append(header)
        if isinstance(header, Ip6Fragment) and not header.atomic:
            break
        if isinstance(header, Ip6HopOpts) and not view.plen and not walker.jumbo:
            raise walker.bad(Why.IP6S_BADOPTIONS, "no payload length", view.start + 4)
    return Walked(Ip6Chain(tuple(headers), nxt), walker.at, walker.end)


_PAD1: Final = Ip6Opt(IP6OPT_PAD1)
_PROTOS: Final[Mapping[type, int]] = MappingProxyType(
    {
        Ip6HopOpts: _HOPOPTS,
        Ip6DstOpts: _DSTOPTS,
        Ip6Routing: _ROUTING,
        Ip6Fragment: _FRAGMENT,
    }
)
