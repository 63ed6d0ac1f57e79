"""scapy as an independent opinion: it reads what we write, and we read what it writes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from scapy.layers import inet, inet6, l2
from scapy.packet import Packet, Raw

from dfuser.net.cksum import in_sum
from dfuser.net.wire import icmp, icmp6, ip_options, mld6, nd6, nd6_options, tcp_options
from dfuser.net.wire.addr import ether_aton, inet_ntop, inet_pton, kether_ntoa
from dfuser.net.wire.arp import ArpRepr, ArpView
from dfuser.net.wire.base import pack
from dfuser.net.wire.ethernet import EtherRepr, EtherView, evl_maketag
from dfuser.net.wire.icmp6_message import Icmp6Repr, Icmp6View
from dfuser.net.wire.ip6_ext import (
    Ip6Chain,
    Ip6DstOpts,
    Ip6Fragment,
    Ip6HopOpts,
    Ip6Opt,
    padded,
    router_alert,
    walk,
)
from dfuser.net.wire.ipv4 import Ipv4Repr, Ipv4View
from dfuser.net.wire.ipv6 import Ipv6Repr, Ipv6View
from dfuser.net.wire.tcp import TcpRepr, TcpView
from dfuser.net.wire.udp import UdpRepr, UdpView

ROUNDS = 30


class Dice:
    """Random fields."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def bits(self, count: int) -> int:
        return self.rng.getrandbits(count)

    def mac(self) -> bytes:
        return self.rng.randbytes(6)

    def ip4(self) -> bytes:
        return bytes((self.rng.randrange(1, 224),)) + self.rng.randbytes(3)

    def ip6(self) -> bytes:
        return b"\x20\x01" + self.rng.randbytes(14)

    def data(self) -> bytes:
        return self.rng.randbytes(self.rng.randrange(40))

    def tcp_options(self) -> tuple[tcp_options.TcpOption, ...]:
        nop = tcp_options.NOP
        stamp = tcp_options.TcpOptTimestamp(self.bits(32), self.bits(32))
        block = (self.bits(32), self.bits(32))
        syn = (
            tcp_options.TcpOptMaxseg(self.bits(16)),
            tcp_options.SACK_PERMITTED,
            stamp,
            nop,
            tcp_options.TcpOptWindow(self.rng.randrange(15)),
        )
        choices: tuple[Any, ...] = (
            (), (nop, nop, stamp), syn, (nop, nop, tcp_options.TcpOptSack((block, block))),
        )  # fmt: skip
        return self.rng.choice(choices)  # type: ignore[no-any-return]


def frame4(dice: Dice, proto: int, body: bytes, head: Ipv4Repr | None = None) -> bytes:
    """A frame of ours around an IPv4 payload."""
    if head is None:
        head = ipv4_head(dice, proto, len(body))
    vlan = evl_maketag(dice.bits(12), dice.bits(3)) if dice.bits(1) else None
    return pack(EtherRepr(dice.mac(), dice.mac(), 0x0800, vlan)) + pack(head) + body


def ipv4_head(dice: Dice, proto: int, size: int) -> Ipv4Repr:
    return Ipv4Repr(
        dice.ip4(), dice.ip4(), proto, size, dice.bits(8), dice.bits(8), dice.bits(16), 0x4000
    )  # fmt: skip


def transport(head: TcpRepr | UdpRepr, pseudo: int, data: bytes) -> bytes:
    buf = bytearray(head.wire_len + len(data))
    at = head.emit(buf, 0, pseudo, size=len(data), total=in_sum(data))
    buf[at:] = data
    return bytes(buf)


def icmp6_bytes(message: Icmp6Repr, head: Ipv6Repr) -> bytes:
    buf = bytearray(message.wire_len)
    message.emit(buf, 0, head.pseudo(58))
    return bytes(buf)


def rebuilt(raw: bytes) -> tuple[Packet, bytes]:
    """What scapy reads, and what it writes when it must compute all checksums and lengths."""
    packet = l2.Ether(raw)
    layer: Any = packet
    while layer:
        assert not isinstance(layer, Raw) or not layer.payload
        for name in ("chksum", "cksum", "len", "plen", "ihl", "dataofs"):
            if name in layer.fields and not isinstance(layer, inet.IPerror | inet6.IPerror6):
                layer.delfieldval(name)
        layer = layer.payload if not isinstance(layer.payload, inet.IPerror) else None
    return l2.Ether(raw), bytes(packet)


def test_scapy_reads_our_tcp_and_udp(rng: random.Random) -> None:
    # What if our frames were not what everybody else takes for TCP or UDP?
    dice = Dice(rng)
    for _ in range(ROUNDS * 2):
        data = dice.data()
        tcp = TcpRepr(*(dice.bits(n) for n in (16, 16, 32, 32, 8, 16, 16)), dice.tcp_options())
        ip = ipv4_head(dice, 6, tcp.wire_len + len(data))
        raw = frame4(dice, 6, transport(tcp, ip.pseudo(), data), ip)
        packet, again = rebuilt(raw)
        assert again == raw
        got = packet[inet.TCP]
        assert (got.sport, got.dport, got.seq, got.ack) == tcp[:4]
        assert (int(got.flags), got.window, got.urgptr) == tcp[4:7]
        assert (packet[inet.IP].src, packet[inet.IP].dst) == (inet_ntop(ip.src), inet_ntop(ip.dst))
        assert bytes(got.payload) == data
        names = {2: "MSS", 3: "WScale", 4: "SAckOK", 5: "SAck", 8: "Timestamp", 1: "NOP"}
        assert [name for name, _ in got.options] == [names[o.kind] for o in tcp.options]

        udp = UdpRepr(dice.bits(16) | 1, dice.bits(8) | 0x4000)
        ip6 = Ipv6Repr(dice.ip6(), dice.ip6(), 17, 8 + len(data), 64, dice.bits(8), dice.bits(20))
        body = pack(ip6) + transport(udp, ip6.pseudo(17), data)
        raw = pack(EtherRepr(dice.mac(), dice.mac(), 0x86DD)) + body
        packet, again = rebuilt(raw)
        assert again == raw
        head = packet[inet6.IPv6]
        assert (head.tc, head.fl, head.hlim) == (ip6.tclass, ip6.flow, 64)
        assert (packet[inet.UDP].sport, packet[inet.UDP].dport) == udp
        assert bytes(packet[inet.UDP].payload) == data


def test_scapy_reads_our_arp(rng: random.Random) -> None:
    # What if our questions were not understood?
    dice = Dice(rng)
    for _ in range(ROUNDS):
        arp = ArpRepr(rng.randrange(1, 3), dice.mac(), dice.ip4(), dice.mac(), dice.ip4())
        raw = pack(EtherRepr(b"\xff" * 6, arp.ar_sha, 0x0806)) + pack(arp)
        packet, again = rebuilt(raw)
        assert again == raw
        got = packet[l2.ARP]
        assert (got.op, got.hwsrc, got.psrc) == (
            arp.ar_op,
            kether_ntoa(arp.ar_sha),
            inet_ntop(arp.ar_spa),
        )
        assert (got.hwdst, got.pdst) == (kether_ntoa(arp.ar_tha), inet_ntop(arp.ar_tpa))


def our_icmp(dice: Dice) -> list[icmp.IcmpRepr]:
    inner = pack(ipv4_head(dice, 17, 30)) + dice.rng.randbytes(12)
    return [
        icmp.IcmpEcho(8, 0, dice.bits(16), dice.bits(16), dice.data()),
        icmp.IcmpEcho(0, 0, dice.bits(16), dice.bits(16), dice.data()),
        icmp.IcmpError(3, 4, inner, nextmtu=dice.bits(16)),
        icmp.IcmpError(11, 1, inner),
        icmp.IcmpError(12, 0, inner, pptr=dice.bits(8)),
        icmp.IcmpRedirect(5, 1, dice.ip4(), inner),
        icmp.IcmpTimestamp(13, 0, *(dice.bits(n) for n in (16, 16, 32, 32, 32))),
        icmp.IcmpMask(17, 0, dice.bits(16), dice.bits(16), dice.ip4()),
    ]


def test_scapy_reads_our_icmp(rng: random.Random) -> None:
    # What if an error of ours were not understood by the host that it is for?
    dice = Dice(rng)
    for _ in range(ROUNDS // 2):
        for message in our_icmp(dice):
            raw = frame4(dice, 1, pack(message))
            got = l2.Ether(raw)[inet.ICMP]
            assert (got.type, got.code) == (message.type, message.code)
            fields = {
                "id": "id", "seq": "seq", "nextmtu": "nexthopmtu", "pptr": "ptr",
                "otime": "ts_ori", "rtime": "ts_rx", "ttime": "ts_tx",
            }  # fmt: skip
            for ours, theirs in fields.items():
                if hasattr(message, ours) and theirs in got.fields:
                    assert getattr(got, theirs) == getattr(message, ours), ours
            if isinstance(message, icmp.IcmpRedirect):
                assert got.gw == inet_ntop(message.gwaddr)
            if isinstance(message, icmp.IcmpError | icmp.IcmpRedirect):
                assert got[inet.IPerror].src == inet_ntop(message.embedded().src)
            wrong = got.chksum
            got.delfieldval("chksum")
            assert inet.ICMP(bytes(got)).chksum == wrong


def our_icmp6(dice: Dice) -> list[tuple[Icmp6Repr, type[Packet], dict[str, Any]]]:
    linkaddr = nd6_options.NdOptLinkaddr(1, dice.mac())
    prefix = nd6_options.NdOptPrefix(
        prefix=dice.ip6(), prefix_len=64, valid_time=dice.bits(32), preferred_time=dice.bits(32)
    )
    rdnss = nd6_options.NdOptRdnss(lifetime=dice.bits(32), servers=(dice.ip6(), dice.ip6()))
    mtu = nd6_options.NdOptMtu(mtu=dice.bits(32))
    target, group = dice.ip6(), b"\xff\x02" + dice.rng.randbytes(14)
    ident, seq, delay = dice.bits(16), dice.bits(16), dice.bits(16)
    original = pack(Ipv6Repr(dice.ip6(), dice.ip6(), 17, 100)) + dice.rng.randbytes(16)
    router = nd6.NdRouterAdvert(
        curhoplimit=64,
        flags=0xC0,
        router_lifetime=delay,
        reachable=dice.bits(32),
        retransmit=dice.bits(32),
        options=(linkaddr, mtu, prefix, rdnss),
    )
    return [
        (icmp6.Icmp6Echo(128, 0, ident, seq, dice.data()), inet6.ICMPv6EchoRequest,
         {"id": ident, "seq": seq}),
        (icmp6.Icmp6Error(2, 0, original, mtu=1280), inet6.ICMPv6PacketTooBig, {"mtu": 1280}),
        (icmp6.Icmp6Error(1, 4, original), inet6.ICMPv6DestUnreach, {"code": 4}),
        (icmp6.Icmp6Error(4, 1, original, pptr=6), inet6.ICMPv6ParamProblem, {"ptr": 6}),
        (nd6.NdRouterSolicit(options=(linkaddr,)), inet6.ICMPv6NDOptSrcLLAddr,
         {"lladdr": kether_ntoa(linkaddr.lladdr)}),
        (router, inet6.ICMPv6ND_RA, {"M": 1, "O": 1, "routerlifetime": delay,
         "reachabletime": router.reachable, "retranstimer": router.retransmit}),
        (router, inet6.ICMPv6NDOptPrefixInfo, {"prefix": inet_ntop(prefix.prefix), "L": 1, "A": 1,
         "validlifetime": prefix.valid_time, "preferredlifetime": prefix.preferred_time}),
        (router, inet6.ICMPv6NDOptMTU, {"mtu": mtu.mtu}),
        (router, inet6.ICMPv6NDOptRDNSS, {"lifetime": rdnss.lifetime,
         "dns": [inet_ntop(server) for server in rdnss.servers]}),
        (nd6.NdNeighborSolicit(target=target, options=(linkaddr,)), inet6.ICMPv6ND_NS,
         {"tgt": inet_ntop(target)}),
        (nd6.NdNeighborAdvert(target=target, flags=nd6.ND_NA_FLAG_SOLICITED), inet6.ICMPv6ND_NA,
         {"tgt": inet_ntop(target), "S": 1, "R": 0, "O": 0}),
        (nd6.NdRedirect(target=target, dst=target), inet6.ICMPv6ND_Redirect,
         {"tgt": inet_ntop(target), "dst": inet_ntop(target)}),
        (mld6.MldMessage(type=130, maxdelay=delay, addr=group), inet6.ICMPv6MLQuery,
         {"mrd": delay, "mladdr": inet_ntop(group)}),
        (mld6.MldMessage(type=131, addr=group), inet6.ICMPv6MLReport,
         {"mladdr": inet_ntop(group)}),
        (mld6.MldQueryV2(maxcode=delay, addr=group, suppress=True, qrv=3, sources=(target,)),
         inet6.ICMPv6MLQuery2,
         {"mrd": delay, "S": 1, "QRV": 3, "QQIC": 125, "sources": [inet_ntop(target)]}),
        (mld6.MldReportV2(records=(mld6.MldRecord(4, group, (target,)),)),
         inet6.ICMPv6MLDMultAddrRec,
         {"rtype": 4, "dst": inet_ntop(group), "sources": [inet_ntop(target)]}),
    ]  # fmt: skip


def test_scapy_reads_our_icmp6(rng: random.Random) -> None:
    # What if neighbors did not understand how they are discovered?
    dice = Dice(rng)
    for _ in range(ROUNDS // 2):
        for message, layer, fields in our_icmp6(dice):
            ip6 = Ipv6Repr(dice.ip6(), dice.ip6(), 58, message.wire_len, 255)
            raw = pack(ip6) + icmp6_bytes(message, ip6)
            packet = inet6.IPv6(raw)
            got = packet[layer]
            for name, value in fields.items():
                assert getattr(got, name) == value, (layer, name)
            first = packet.payload
            cksum = first.cksum
            first.delfieldval("cksum")
            assert inet6.IPv6(bytes(packet)).payload.cksum == cksum, layer


def test_scapy_reads_our_extension_headers(rng: random.Random) -> None:
    # What if a router did not find the option that is for it?
    dice = Dice(rng)
    for _ in range(ROUNDS):
        offset, ident = dice.bits(13) * 8, dice.bits(32)
        chain = Ip6Chain(
            (
                Ip6HopOpts(padded((router_alert(0),))),
                Ip6DstOpts(padded((Ip6Opt(0x1E, dice.data()),))),
                Ip6Fragment(offset, True, ident),
            ),
            59,
        )
        data = dice.data()
        ip6 = Ipv6Repr(dice.ip6(), dice.ip6(), chain.nxt, chain.wire_len + len(data))
        raw = pack(ip6) + pack(chain) + data
        packet = inet6.IPv6(raw)
        assert packet[inet6.RouterAlert].value == 0
        assert packet[inet6.HBHOptUnknown].otype == 0x1E
        fragment = packet[inet6.IPv6ExtHdrFragment]
        assert (fragment.offset * 8, fragment.m, fragment.id) == (offset, 1, ident)
        assert bytes(fragment.payload) == data


def scapy_ipv4(dice: Dice, payload: Packet) -> bytes:
    options = [inet.IPOption_Router_Alert(), inet.IPOption_NOP()] if dice.bits(1) else []
    ip = inet.IP(
        src=inet_ntop(dice.ip4()),
        dst=inet_ntop(dice.ip4()),
        ttl=dice.bits(8),
        tos=dice.bits(8),
        id=dice.bits(16),
        flags=dice.rng.choice(("", "DF")),
        options=options,
    )
    return bytes(l2.Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / ip / payload)


def test_we_read_scapys_tcp(rng: random.Random) -> None:
    # What if others' segments were refused, or read differently from what was meant?
    dice = Dice(rng)
    kinds: list[list[Any]] = [
        [],
        [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 2)), ("NOP", None), ("WScale", 7)],
        [("NOP", None), ("NOP", None), ("SAck", (1, 2, 3, 4))],
        [("EOL", None)],
    ]
    for _ in range(ROUNDS * 2):
        options, data = rng.choice(kinds), dice.data()
        tcp = inet.TCP(
            sport=dice.bits(16),
            dport=dice.bits(16),
            seq=dice.bits(32),
            ack=dice.bits(32),
            flags=dice.bits(8),
            window=dice.bits(16),
            urgptr=dice.bits(16),
            options=options,
        )
        raw = scapy_ipv4(dice, tcp / Raw(data) if data else tcp)
        view = EtherView(raw)
        ip_view = Ipv4View(raw, view.data)
        ip = Ipv4Repr.parse(ip_view)
        tcp_view = TcpView(raw, ip_view.data, ip_view.end)
        got = TcpRepr.parse(tcp_view, ip.pseudo())
        assert got[:4] == (tcp.sport, tcp.dport, tcp.seq, tcp.ack)
        assert got[4:7] == (int(tcp.flags), tcp.window, tcp.urgptr)
        assert bytes(tcp_view.payload) == data
        assert len(got.options) == len([o for o in options if o[0] != "EOL"])
        if options != [("EOL", None)]:
            assert transport(got, ip.pseudo(), data) == bytes(ip_view.payload)
        assert pack(ip) == bytes(ip_view.header)
        if ip.options:
            found = ip_options.parse_options(ip.options)
            assert found == (ip_options.IpOptRouterAlert(), ip_options.IpOptNop())
            assert ip_options.emit_options(found) == ip.options


def test_we_read_scapys_udp_and_icmp(rng: random.Random) -> None:
    # What if others' datagrams were refused, or read differently from what was meant?
    dice = Dice(rng)
    for _ in range(ROUNDS):
        data = dice.data() + b"x"
        raw = scapy_ipv4(dice, inet.UDP(sport=7, dport=dice.bits(16)) / Raw(data))
        ip_view = Ipv4View(raw, 14)
        ip = Ipv4Repr.parse(ip_view)
        view = UdpView(raw, ip_view.data, ip_view.end)
        got = UdpRepr.parse(view, ip.pseudo())
        assert (got.sport, bytes(view.payload)) == (7, data)
        assert transport(got, ip.pseudo(), data) == bytes(ip_view.payload)
        ident, seq = dice.bits(16), dice.bits(16)
        inner = inet.IP(src="10.0.0.1", dst="10.0.0.2") / inet.UDP(sport=1, dport=2) / Raw(data)
        cases: list[tuple[Packet, icmp.IcmpRepr]] = [
            (
                inet.ICMP(type=8, id=ident, seq=seq) / Raw(data),
                icmp.IcmpEcho(8, 0, ident, seq, data),
            ),
            (
                inet.ICMP(type=3, code=4, nexthopmtu=1400) / inner,
                icmp.IcmpError(3, 4, bytes(inner), nextmtu=1400),
            ),
            (
                inet.ICMP(type=5, code=1, gw="10.0.0.9") / inner,
                icmp.IcmpRedirect(5, 1, b"\x0a\0\0\x09", bytes(inner)),
            ),
            (
                inet.ICMP(type=14, id=ident, seq=seq, ts_ori=1, ts_rx=2, ts_tx=3),
                icmp.IcmpTimestamp(14, 0, ident, seq, 1, 2, 3),
            ),
        ]
        for packet, expected in cases:
            raw = scapy_ipv4(dice, packet)
            body = bytes(Ipv4View(raw, 14).payload)
            assert icmp.IcmpRepr.parse(icmp.IcmpView(body)) == expected
            assert pack(expected) == body


SOLICIT = inet6.ICMPv6NDOptSrcLLAddr(lladdr="02:00:00:00:00:01")
CASES6: list[Callable[[Dice], tuple[Packet, Icmp6Repr]]] = [
    lambda dice: (
        inet6.ICMPv6EchoReply(id=5, seq=6, data=b"data"),
        icmp6.Icmp6Echo(129, 0, 5, 6, b"data"),
    ),
    lambda dice: (
        inet6.ICMPv6ND_RS() / SOLICIT,
        nd6.NdRouterSolicit(options=(nd6_options.NdOptLinkaddr(1, ether_aton("2:0:0:0:0:1")),)),
    ),
    lambda dice: (
        inet6.ICMPv6ND_RA(M=1, routerlifetime=9, reachabletime=8, retranstimer=7, chlim=63, prf=1)
        / inet6.ICMPv6NDOptMTU(mtu=1480)
        / inet6.ICMPv6NDOptRDNSS(dns=["2001:db8::1"], lifetime=5)
        / inet6.ICMPv6NDOptPrefixInfo(prefix="2001:db8::", validlifetime=4, preferredlifetime=3),
        nd6.NdRouterAdvert(
            curhoplimit=63,
            flags=nd6.ND_RA_FLAG_MANAGED | nd6.ND_RA_FLAG_RTPREF_HIGH,
            router_lifetime=9,
            reachable=8,
            retransmit=7,
            options=(
                nd6_options.NdOptMtu(mtu=1480),
                nd6_options.NdOptRdnss(lifetime=5, servers=(inet_pton("2001:db8::1"),)),
                nd6_options.NdOptPrefix(
                    prefix=inet_pton("2001:db8::"), prefix_len=64, valid_time=4, preferred_time=3
                ),
            ),
        ),
    ),
    lambda dice: (
        inet6.ICMPv6ND_NA(tgt="2001:db8::2", R=0, S=1, O=1),
        nd6.NdNeighborAdvert(
            target=inet_pton("2001:db8::2"),
            flags=nd6.ND_NA_FLAG_SOLICITED | nd6.ND_NA_FLAG_OVERRIDE,
        ),
    ),
    lambda dice: (
        inet6.ICMPv6MLQuery2(mladdr="ff02::5", sources=["2001:db8::1"], QRV=2, QQIC=125, mrd=3),
        mld6.MldQueryV2(maxcode=3, addr=inet_pton("ff02::5"), sources=(inet_pton("2001:db8::1"),)),
    ),
    lambda dice: (
        inet6.ICMPv6MLReport2(
            records=[inet6.ICMPv6MLDMultAddrRec(rtype=3, dst="ff02::5", sources=["::1"])]
        ),
        mld6.MldReportV2(records=(mld6.MldRecord(3, inet_pton("ff02::5"), (inet_pton("::1"),)),)),
    ),
]


@pytest.mark.parametrize("number", range(len(CASES6)))
def test_we_read_scapys_icmp6(number: int, rng: random.Random) -> None:
    # What if others' neighbor discovery were refused, or read differently?
    dice = Dice(rng)
    for _ in range(ROUNDS // 2):
        message, expected = CASES6[number](dice)
        hops: Any = inet6.IPv6ExtHdrHopByHop(options=[inet6.RouterAlert()])
        ip6 = inet6.IPv6(
            src=inet_ntop(dice.ip6()), dst=inet_ntop(dice.ip6()), hlim=255, fl=dice.bits(20)
        )
        packet = ip6 / hops / message if dice.bits(1) else ip6 / message
        raw = bytes(l2.Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / packet)
        view = Ipv6View(raw, EtherView(raw).data)
        head = Ipv6Repr.parse(view)
        found = walk(view)
        assert found.chain.proto == 58
        got = icmp6.parse(Icmp6View(raw, found.data, found.end), head.pseudo(58))
        assert got == expected
        assert icmp6_bytes(got, head) == raw[found.data :]
        assert pack(head) + pack(found.chain) == raw[view.start : found.data]


def test_we_read_scapys_arp(rng: random.Random) -> None:
    # What if others' answers were not understood?
    dice = Dice(rng)
    for _ in range(ROUNDS):
        sha, spa, target, tpa = dice.mac(), dice.ip4(), dice.mac(), dice.ip4()
        arp = l2.ARP(
            op=2,
            hwsrc=kether_ntoa(sha),
            psrc=inet_ntop(spa),
            hwdst=kether_ntoa(target),
            pdst=inet_ntop(tpa),
        )
        tag = dice.bits(12)
        raw = bytes(
            l2.Ether(src=kether_ntoa(sha), dst=kether_ntoa(target)) / l2.Dot1Q(vlan=tag) / arp
        )
        view = EtherView(raw)
        assert EtherRepr.parse(view) == EtherRepr(target, sha, 0x0806, tag)
        assert ArpRepr.parse(ArpView(view.payload)) == ArpRepr(2, sha, spa, target, tpa)
