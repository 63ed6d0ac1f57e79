"""hypothesis strategies for legal values of every protocol."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from dfuser.net.wire import icmp, icmp6, ip_options, mld6, nd6, nd6_options, pcapng, tcp_options
from dfuser.net.wire.arp import ArpRepr
from dfuser.net.wire.ethernet import EtherRepr
from dfuser.net.wire.ip6_ext import (
    Ip6Chain,
    Ip6DstOpts,
    Ip6Fragment,
    Ip6HopOpts,
    Ip6Opt,
    Ip6Routing,
    padded,
    router_alert,
)
from dfuser.net.wire.ipv4 import Ipv4Repr
from dfuser.net.wire.ipv6 import Ipv6Repr
from dfuser.net.wire.pcap import PcapFileRepr, PcapPacket
from dfuser.net.wire.tcp import TcpRepr
from dfuser.net.wire.udp import UdpRepr
from dfuser.net.wire.vnet import VnetRepr

U8 = st.integers(0, 255)
U16 = st.integers(0, 65535)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)


def exactly(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


def made(cls: Any, *fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Values of a class from its first fields; unlike builds it leaves the defaults alone."""
    return st.tuples(*fields).map(lambda values: cls(*values))


def units(size: int, least: int = 0, most: int = 6, rest: int = 0) -> st.SearchStrategy[bytes]:
    """Bytes whose length is `rest` plus a multiple of `size`."""
    return st.integers(least, most).flatmap(lambda count: exactly(count * size + rest))


MAC, IP4, IP6 = exactly(6), exactly(4), exactly(16)
UNICAST6 = IP6.filter(lambda addr: addr[0] != 0xFF)
MULTICAST6 = exactly(15).map(lambda tail: b"\xff" + tail)
LINKLOCAL6 = exactly(14).map(lambda tail: b"\xfe\x80" + tail)
PAYLOAD = st.binary(max_size=64)

ETHER = st.tuples(
    made(EtherRepr, MAC, MAC, U16.filter(lambda t: t != 0x8100))
    | made(EtherRepr, MAC, MAC, U16.filter(lambda t: t != 0x8100), U16),
    PAYLOAD,
)


@st.composite
def arp(draw: st.DrawFn) -> ArpRepr:
    if draw(st.booleans()):
        return ArpRepr(draw(U16), *(draw(s) for s in (MAC, IP4, MAC, IP4)))
    hln, pln = draw(st.integers(0, 20)), draw(st.integers(0, 20))
    addrs = [draw(exactly(size)) for size in (hln, pln, hln, pln)]
    return ArpRepr(draw(U16), *addrs, draw(U16), draw(U16))


IP_OPTIONS = (
    st.lists(
        st.just(ip_options.IpOptNop())
        | made(
            ip_options.IpOptRoute,
            st.sampled_from((7, 131, 137)),
            st.integers(4, 255),
            st.binary(max_size=9),
        )
        | made(
            ip_options.IpOptTimestamp,
            U8,
            st.integers(0, 15),
            st.integers(0, 15),
            st.binary(max_size=8),
        )
        | made(ip_options.IpOptRouterAlert, U16)
        | made(
            ip_options.IpOptOther,
            U8.filter(lambda t: t not in (0, 1, 7, 68, 131, 137, 148)),
            st.binary(max_size=9),
        ),
        max_size=6,
    )
    .filter(lambda options: sum(len(option.data()) + 2 for option in options) <= 40)
    .map(tuple)
)


@st.composite
def ipv4(draw: st.DrawFn) -> Any:
    payload = draw(PAYLOAD)
    options = draw(units(4, 0, 10))
    value = Ipv4Repr(
        draw(IP4), draw(IP4), draw(U8), len(payload),
        draw(U8), draw(U8), draw(U16), draw(U16), options,
    )  # fmt: skip
    return value, payload


UDP = st.tuples(made(UdpRepr, U16, U16), PAYLOAD)

TCP_OPTIONS_LOOSE = st.lists(
    st.just(tcp_options.NOP)
    | st.just(tcp_options.SACK_PERMITTED)
    | made(tcp_options.TcpOptMaxseg, U16)
    | made(tcp_options.TcpOptWindow, U8)
    | made(tcp_options.TcpOptSack, st.lists(st.tuples(U32, U32), max_size=4).map(tuple))
    | made(tcp_options.TcpOptTimestamp, U32, U32)
    | made(
        tcp_options.TcpOptOther,
        U8.filter(lambda kind: kind not in (0, 1, 2, 3, 4, 5, 8)),
        st.binary(max_size=18),
    )
    | made(tcp_options.TcpOptOther, st.sampled_from((2, 3, 4, 5, 8)), st.just(b"\1\2\3")),
    max_size=5,
).filter(lambda options: sum(len(option.pack()) for option in options) <= 40)


@st.composite
def tcp_option_list(draw: st.DrawFn) -> Any:
    options = draw(TCP_OPTIONS_LOOSE)
    size = sum(len(option.pack()) for option in options)
    if size < 36 and draw(st.integers(0, 4)) == 0:
        tail = draw(exactly(-size % 4 + draw(st.sampled_from((4, 8))))) if size <= 28 else b""
        tail = bytes((max(tail[:1], b"\2")[0], 0)) + tail[2:]
        if (size + len(tail)) % 4 == 0:
            options = [*options, tcp_options.TcpOptBad(tail)]
    return tuple(options)


TCP = st.tuples(made(TcpRepr, U16, U16, U32, U32, U8, U16, U16, tcp_option_list()), PAYLOAD)

ORIGINAL4 = st.integers(5, 15).flatmap(
    lambda hl: st.binary(min_size=hl * 4 + 7, max_size=hl * 4 + 30).map(
        lambda tail: bytes((0x40 | hl,)) + tail
    )
)
ICMP = (
    st.builds(icmp.IcmpEcho, st.sampled_from((0, 8)), U8, U16, U16, PAYLOAD)
    | st.builds(icmp.IcmpError, st.just(3), U8, ORIGINAL4, nextmtu=U16, words=U8)
    | st.builds(icmp.IcmpError, st.just(4), U8, ORIGINAL4)
    | st.builds(icmp.IcmpError, st.just(11), U8, ORIGINAL4, words=U8)
    | st.builds(icmp.IcmpError, st.just(12), U8, ORIGINAL4, pptr=U8, words=U8)
    | st.builds(icmp.IcmpRedirect, st.just(5), U8, IP4, ORIGINAL4)
    | st.builds(icmp.IcmpTimestamp, st.sampled_from((13, 14)), U8, U16, U16, U32, U32, U32)
    | st.builds(icmp.IcmpMask, st.sampled_from((17, 18)), U8, U16, U16, IP4)
    | st.builds(icmp.IcmpInformation, st.sampled_from((15, 16)), U8, U16, U16)
    | st.builds(
        icmp.IcmpRouterAdvert,
        st.just(9),
        U8,
        U16,
        st.lists(st.tuples(IP4, st.integers(-(2**31), 2**31 - 1)), min_size=1, max_size=4).map(
            tuple
        ),
    )
    | st.builds(icmp.IcmpRouterSolicit, st.just(10), U8)
    | st.builds(
        icmp.IcmpOther,
        st.sampled_from((1, 2, 6, 30, 31, 32, 33, 34, 35, 36, 39, 40, 41, 255)),
        U8,
        st.binary(min_size=4, max_size=40),
    )
)

IP6_OPTION = (
    made(Ip6Opt, U8.filter(lambda t: t not in (0, 5, 0xC2)), st.binary(max_size=12))
    | st.just(Ip6Opt(0))
    | st.builds(router_alert, U16)
)
IP6_OPTIONS = st.lists(IP6_OPTION, max_size=5).map(padded)


@st.composite
def ip6_chain(draw: st.DrawFn) -> Ip6Chain:
    headers: list[Any] = [Ip6HopOpts(draw(IP6_OPTIONS))] if draw(st.booleans()) else []
    headers += draw(
        st.lists(
            made(Ip6DstOpts, IP6_OPTIONS)
            | made(Ip6Routing, U8, U8, units(8, 0, 3, 4))
            | made(Ip6Fragment, st.just(0), st.just(False), U32),
            max_size=4,
        )
    )
    proto = U8.filter(lambda p: p not in (0, 43, 44, 60))
    if draw(st.booleans()):
        offset, more = draw(st.integers(1, 8191)) * 8, draw(st.booleans())
        headers.append(Ip6Fragment(offset, more, draw(U32)))
        proto = U8
    return Ip6Chain(tuple(headers), draw(proto))


@st.composite
def ipv6(draw: st.DrawFn) -> Any:
    chain, payload = draw(ip6_chain()), draw(PAYLOAD)
    head = Ipv6Repr(
        draw(IP6), draw(IP6), chain.nxt, chain.wire_len + len(payload),
        draw(U8), draw(U8), draw(st.integers(0, 0xFFFFF)),
    )  # fmt: skip
    return head, chain, payload


ND_OPTION = (
    st.builds(nd6_options.NdOptLinkaddr, st.sampled_from((1, 2)), units(8, 0, 3, 6))
    | st.builds(
        nd6_options.NdOptPrefix,
        prefix=IP6,
        prefix_len=U8,
        flags=U8,
        valid_time=U32,
        preferred_time=U32,
    )
    | st.builds(nd6_options.NdOptRedirected, original=units(8))
    | st.builds(nd6_options.NdOptMtu, mtu=U32)
    | st.builds(
        nd6_options.NdOptRdnss,
        lifetime=U32,
        servers=st.lists(IP6, min_size=1, max_size=3).map(tuple),
    )
    | st.builds(nd6_options.NdOptDnssl, lifetime=U32, domains=units(8, 1, 3))
    | st.builds(
        nd6_options.NdOptOther,
        U8.filter(lambda t: t not in (1, 2, 3, 4, 5, 25, 31)),
        units(8, 0, 3, 6),
    )
    | st.builds(nd6_options.NdOptOther, st.sampled_from((3, 5, 25)), units(8, 1, 1, 6))
)


@st.composite
def nd_options(draw: st.DrawFn) -> Any:
    options = draw(st.lists(ND_OPTION, max_size=5))
    if draw(st.integers(0, 9)) == 0:
        options = (options + [nd6_options.NdOptMtu(mtu=i) for i in range(11)])[:11]
        options.append(nd6_options.NdOptRest(data=draw(st.binary(min_size=1, max_size=20))))
    return tuple(options)


ORIGINAL6 = st.binary(min_size=40, max_size=90)
SOURCES = st.lists(IP6, max_size=3).map(tuple)
RECORD = made(mld6.MldRecord, U8, IP6, SOURCES, units(4, 0, 3))
GROUP_OR_ALL = MULTICAST6 | st.just(bytes(16))
REDIRECT = st.builds(
    nd6.NdRedirect, target=LINKLOCAL6, dst=UNICAST6, options=nd_options()
) | UNICAST6.flatmap(
    lambda addr: st.builds(
        nd6.NdRedirect, target=st.just(addr), dst=st.just(addr), options=nd_options()
    )
)
ICMP6 = (
    st.builds(icmp6.Icmp6Echo, st.sampled_from((128, 129)), U8, U16, U16, PAYLOAD)
    | st.builds(icmp6.Icmp6Error, st.sampled_from((1, 3)), U8, ORIGINAL6, words=U8)
    | st.builds(icmp6.Icmp6Error, st.just(2), U8, ORIGINAL6, mtu=U32)
    | st.builds(icmp6.Icmp6Error, st.just(4), U8, ORIGINAL6, pptr=U32)
    | st.builds(
        icmp6.Icmp6Other,
        st.sampled_from((0, 5, 127, 138, 139, 140, 200, 201, 202, 203, 255)),
        U8,
        st.binary(min_size=4, max_size=40),
    )
    | st.builds(nd6.NdRouterSolicit, options=nd_options())
    | st.builds(
        nd6.NdRouterAdvert,
        curhoplimit=U8,
        flags=U8,
        router_lifetime=U16,
        reachable=U32,
        retransmit=U32,
        options=nd_options(),
    )
    | st.builds(nd6.NdNeighborSolicit, target=UNICAST6, options=nd_options())
    | st.builds(
        nd6.NdNeighborAdvert,
        target=UNICAST6,
        flags=st.integers(0, 7).map(lambda top: top << 29),
        options=nd_options(),
    )
    | REDIRECT
    | st.builds(mld6.MldMessage, type=st.just(130), maxdelay=U16, addr=GROUP_OR_ALL)
    | st.builds(mld6.MldMessage, type=st.sampled_from((131, 132)), maxdelay=U16, addr=MULTICAST6)
    | st.builds(
        mld6.MldQueryV2,
        maxcode=U16,
        addr=GROUP_OR_ALL,
        suppress=st.booleans(),
        qrv=st.integers(0, 7),
        qqic=U8,
        sources=SOURCES,
    )
    | st.builds(mld6.MldReportV2, records=st.lists(RECORD, max_size=3).map(tuple))
)


@st.composite
def vnet(draw: st.DrawFn) -> Any:
    payload = draw(st.binary(min_size=2, max_size=80))
    merged = draw(st.booleans())
    if len(payload) & 1 != merged:
        payload += b"\0"  # the codec takes an odd length for the 12 byte form
    start = draw(st.integers(0, len(payload) - 2))
    value = VnetRepr(
        draw(st.integers(0, 7)),
        draw(st.sampled_from((0, 1, 3, 4, 5, 0x81, 0x84))),
        draw(U16),
        draw(st.integers(1, 65535)),
        start,
        draw(st.integers(0, len(payload) - 2 - start)),
        draw(U16) if merged else None,
    )
    return value, payload


@st.composite
def pcap(draw: st.DrawFn) -> Any:
    nanosecond = draw(st.booleans())
    head = PcapFileRepr(
        draw(U16), draw(st.integers(64, 2**24)), nanosecond, draw(st.sampled_from("<>"))
    )
    fraction = (
        st.integers(0, 999_999_999)
        if nanosecond
        else st.integers(0, 999_999).map(lambda u: u * 1000)
    )
    when = st.builds(lambda s, f: s * 1_000_000_000 + f, U32, fraction)
    return head, tuple(draw(st.lists(made(PcapPacket, when, PAYLOAD, U32), max_size=4)))


NG_OPTIONS = st.lists(st.tuples(st.integers(1, 65535), st.binary(max_size=9)), max_size=3).map(
    tuple
)
SIMPLE = st.integers(0, 40).flatmap(
    lambda size: st.builds(pcapng.NgSimplePacket, st.just(size), exactly(size))
)
NG_BLOCK = (
    st.builds(pcapng.NgInterface, U16, U32, NG_OPTIONS)
    | st.builds(pcapng.NgPacket, U32, U64, PAYLOAD, U32, NG_OPTIONS)
    | SIMPLE
    | st.builds(pcapng.NgStatistics, U32, U64, NG_OPTIONS)
    | st.builds(
        pcapng.NgOther, U32.filter(lambda t: t not in (1, 3, 5, 6, pcapng.NG_SHB)), units(4)
    )
)
NG_SECTION = st.builds(pcapng.NgSection, NG_OPTIONS, st.integers(-(2**63), 2**63 - 1), U16)


@st.composite
def pcapng_file(draw: st.DrawFn) -> Any:
    blocks = []
    for order in draw(st.lists(st.sampled_from("<>"), min_size=1, max_size=3)):
        blocks.append((draw(NG_SECTION), order))
        blocks += [(block, order) for block in draw(st.lists(NG_BLOCK, max_size=3))]
    return tuple(blocks)


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "ether": ETHER,
    "arp": arp(),
    "ipv4": ipv4(),
    "ipv4 options": IP_OPTIONS,
    "udp": UDP,
    "tcp": TCP,
    "tcp options": tcp_option_list(),
    "icmp": ICMP,
    "ipv6": ipv6(),
    "icmp6": ICMP6,
    "nd options": nd_options(),
    "vnet": vnet(),
    "pcap": pcap(),
    "pcapng": pcapng_file(),
}
