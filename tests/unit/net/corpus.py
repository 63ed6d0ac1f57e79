"""Packets of every kind, for truncating and corrupting at every offset."""

from __future__ import annotations

from typing import Any

from dfuser.net.wire import icmp, icmp6, ip_options, mld6, nd6, nd6_options, pcapng, tcp_options
from dfuser.net.wire.arp import ArpRepr
from dfuser.net.wire.base import pack
from dfuser.net.wire.ethernet import EtherRepr, evl_maketag
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
from dfuser.net.wire.ipv4 import IP_DF, IP_MF, Ipv4Repr
from dfuser.net.wire.ipv6 import Ipv6Repr
from dfuser.net.wire.pcap import PcapFileRepr, PcapPacket
from dfuser.net.wire.tcp import TH_ACK, TH_PUSH, TH_RST, TH_SYN, TH_URG, TcpRepr
from dfuser.net.wire.tcp_options import NOP, SACK_PERMITTED
from dfuser.net.wire.udp import UdpRepr
from dfuser.net.wire.vnet import VnetRepr
from tests.unit.net.codecs import CODECS, DST, DST6, GROUP6, SRC, SRC6

MAC1, MAC2 = b"\x02\x00\x00\x00\x00\x01", b"\x02\x00\x00\x00\x00\x02"
ROUTE = ip_options.IpOptRoute(7, 4, bytes(12))
OPTIONS4 = (
    ip_options.IpOptRouterAlert(),
    ROUTE,
    ip_options.IpOptNop(),
    ip_options.IpOptTimestamp(5, 0, 1, bytes(8)),
    ip_options.IpOptOther(130, b"\1\2\3"),
)
ORIGINAL4 = pack(Ipv4Repr(SRC, DST, 17, 16, options=bytes(4))) + b"\0\x35\0\x35\0\x10\0\0"
SYN_OPTIONS = (
    tcp_options.TcpOptMaxseg(1460),
    SACK_PERMITTED,
    tcp_options.TcpOptTimestamp(0x01020304, 0),
    NOP,
    tcp_options.TcpOptWindow(7),
)
SACK_OPTIONS = (
    NOP,
    NOP,
    tcp_options.TcpOptTimestamp(77, 66),
    NOP,
    NOP,
    tcp_options.TcpOptSack(((100, 200), (50, 300), (2**32 - 5, 3))),
)
STAMP_OPTIONS = (NOP, NOP, tcp_options.TcpOptTimestamp(9, 8))
ODD_OPTIONS = (
    tcp_options.TcpOptOther(253, b"\xf9\x89"),
    tcp_options.TcpOptOther(3, b"\1\2"),
    tcp_options.TcpOptBad(b"\x05\x20\1\2"),
)

CHAIN = Ip6Chain(
    (
        Ip6HopOpts(padded((router_alert(0),))),
        Ip6DstOpts(padded((Ip6Opt(0x1E, b"abc"), Ip6Opt(0), Ip6Opt(1, b"\0\0")))),
        Ip6Routing(0, 1, bytes(4) + DST6),
        Ip6Fragment(0, False, 7),
    ),
    58,
)
FRAGMENT6 = Ip6Chain((Ip6HopOpts(padded(())), Ip6Fragment(1232, True, 0xDEADBEEF)), 17)
ORIGINAL6 = pack(Ipv6Repr(SRC6, DST6, 17, 8)) + b"\0\x35\0\x35\0\x08\0\0"
ND_OPTIONS = (
    nd6_options.NdOptLinkaddr(1, MAC1),
    nd6_options.NdOptMtu(mtu=1500),
    nd6_options.NdOptPrefix(prefix=DST6, prefix_len=64, valid_time=2592000, preferred_time=604800),
    nd6_options.NdOptRdnss(lifetime=600, servers=(DST6, SRC6)),
    nd6_options.NdOptDnssl(lifetime=600, domains=b"\3lan\0\0\0\0"),
    nd6_options.NdOptOther(24, b"\x40\0\0\0\0\x3c" + bytes(8)),
)
REDIRECTED = nd6_options.NdOptRedirected(original=ORIGINAL6)
TARGET = nd6_options.NdOptLinkaddr(2, MAC2)

VALUES: dict[str, list[Any]] = {
    "ether": [
        (EtherRepr(MAC1, MAC2, 0x0800), b"payload"),
        (EtherRepr(b"\xff" * 6, MAC2, 0x0806, evl_maketag(42, 5)), b"tagged"),
        (EtherRepr(MAC1, MAC2, 0x8100, 7), b"\x00\x08\x86\xddtwice tagged"),
    ],
    "arp": [
        ArpRepr(1, MAC1, SRC, bytes(6), DST),
        ArpRepr(2, b"\1" * 8, SRC6, b"\2" * 8, DST6, 24, 0x86DD),
    ],
    "ipv4": [
        (Ipv4Repr(SRC, DST, 6, 4, id=1, off=IP_DF), b"data"),
        (Ipv4Repr(SRC, DST, 17, 8, 1, 0xB8, 7, IP_MF | 185), b"fragment"),
        (Ipv4Repr(SRC, DST, 1, 2, options=ip_options.emit_options(OPTIONS4)), b"ok"),
    ],
    "ipv4 options": [OPTIONS4, (ip_options.IpOptRoute(131, 8, bytes(8)), ROUTE)],
    "udp": [(UdpRepr(53, 1024), b"question"), (UdpRepr(0, 9), b"")],
    "tcp": [
        (TcpRepr(1024, 80, 1, 0, TH_SYN, 65535, 0, SYN_OPTIONS), b""),
        (TcpRepr(80, 1024, 2**32 - 1, 5, TH_ACK, 1000, 0, SACK_OPTIONS), b""),
        (TcpRepr(80, 1024, 9, 5, TH_ACK | TH_PUSH, 1000, 0, STAMP_OPTIONS), b"GET /"),
        (TcpRepr(80, 1024, 9, 5, TH_ACK | TH_URG, 1000, 3, ODD_OPTIONS), b"!"),
        (TcpRepr(80, 1024, 9, 0, TH_RST, 0), b""),
    ],
    "tcp options": [SYN_OPTIONS, SACK_OPTIONS, ODD_OPTIONS],
    "icmp": [
        icmp.IcmpEcho(8, 0, 1, 2, b"abcdefgh"),
        icmp.IcmpError(3, 4, ORIGINAL4, nextmtu=1400),
        icmp.IcmpError(12, 0, ORIGINAL4, pptr=20, words=7),
        icmp.IcmpError(4, 0, ORIGINAL4),
        icmp.IcmpRedirect(5, 1, SRC, ORIGINAL4),
        icmp.IcmpTimestamp(13, 0, 1, 2, 3, 4, 5),
        icmp.IcmpMask(18, 0, 1, 2, b"\xff\xff\xff\0"),
        icmp.IcmpInformation(15, 0, 1, 2),
        icmp.IcmpRouterAdvert(9, 0, 1800, ((SRC, 0), (DST, -1))),
        icmp.IcmpRouterSolicit(10, 0),
        icmp.IcmpOther(40, 2, b"\0\0\0\x14"),
    ],
    "ipv6": [
        (Ipv6Repr(SRC6, DST6, 17, 4, 255, 3, 0xABCDE), Ip6Chain((), 17), b"data"),
        (Ipv6Repr(SRC6, DST6, 0, CHAIN.wire_len + 4), CHAIN, b"ping"),
        (Ipv6Repr(SRC6, GROUP6, 0, FRAGMENT6.wire_len + 8), FRAGMENT6, b"fragment"),
    ],
    "icmp6": [
        icmp6.Icmp6Echo(128, 0, 1, 2, b"abcdefgh"),
        icmp6.Icmp6Error(1, 4, ORIGINAL6, words=6),
        icmp6.Icmp6Error(2, 0, ORIGINAL6, mtu=1280),
        icmp6.Icmp6Error(4, 1, ORIGINAL6, pptr=6),
        icmp6.Icmp6Other(139, 0, bytes(12)),
        nd6.NdRouterSolicit(options=ND_OPTIONS[:1]),
        nd6.NdRouterAdvert(
            curhoplimit=64, flags=0xC8, router_lifetime=1800, reachable=1, options=ND_OPTIONS
        ),
        nd6.NdNeighborSolicit(target=DST6, options=ND_OPTIONS[:1]),
        nd6.NdNeighborAdvert(target=DST6, flags=nd6.ND_NA_FLAG_SOLICITED, options=(TARGET,)),
        nd6.NdRedirect(target=SRC6, dst=DST6, options=(TARGET, REDIRECTED)),
        mld6.MldMessage(type=130, maxdelay=10000, addr=bytes(16)),
        mld6.MldMessage(type=132, addr=GROUP6),
        mld6.MldQueryV2(maxcode=0x8123, addr=GROUP6, sources=(SRC6, DST6)),
        mld6.MldReportV2(
            records=(mld6.MldRecord(4, GROUP6), mld6.MldRecord(5, GROUP6, (SRC6,), b"aux!"))
        ),
    ],
    "nd options": [ND_OPTIONS, (TARGET, REDIRECTED)],
    "vnet": [
        (VnetRepr(1, 1, 66, 1448, 34, 16), bytes(80)),
        (VnetRepr(1, 0x84, 86, 1428, 10, 16, 1), bytes(81)),
    ],
    "pcap": [
        (PcapFileRepr(), (PcapPacket(1, b"packet", 6), PcapPacket(10**9, b"cut", 60))),
        (PcapFileRepr(101, 96, False, ">"), (PcapPacket(5_000_001_000, b"\x45", 20),)),
    ],
    "pcapng": [
        (
            (pcapng.NgSection(((4, b"dfuser"),)), "<"),
            (pcapng.NgInterface.named("tap0"), "<"),
            (pcapng.NgPacket(0, 2**40, b"packet", 6, ((1, b"odd"),)), "<"),
            (pcapng.NgSimplePacket(3, b"abc"), "<"),
            (pcapng.NgSection(), ">"),
            (pcapng.NgStatistics(0, 5, ((4, bytes(8)),)), ">"),
            (pcapng.NgOther(0x0BAD, b"kept"), ">"),
        )
    ],
}

PACKETS = [
    (name, CODECS[name].encode(value)) for name, values in VALUES.items() for value in values
]
