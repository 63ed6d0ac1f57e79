"""Every protocol as a pair of functions, bytes to value and back, and a corpus of packets.

A value here is what the protocol's classes know of a packet: a Repr, and the payload where the
header does not say everything. `loose` decoding skips checksums, so that corrupted packets reach
the code behind them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from dfuser.net.cksum import in_pseudo, in_sum
from dfuser.net.wire import icmp6, ip_options, nd6_options, tcp_options
from dfuser.net.wire.arp import ArpRepr, ArpView
from dfuser.net.wire.base import Buffer, WireError, pack
from dfuser.net.wire.ethernet import EtherRepr, EtherView, VlanView
from dfuser.net.wire.icmp import IcmpError, IcmpRedirect, IcmpRepr, IcmpView
from dfuser.net.wire.icmp6_message import Icmp6Repr, Icmp6View
from dfuser.net.wire.ip6_ext import walk
from dfuser.net.wire.ipv4 import Ipv4Repr, Ipv4View
from dfuser.net.wire.ipv6 import Ipv6Repr, Ipv6View
from dfuser.net.wire.pcap import PcapFileRepr, PcapReader
from dfuser.net.wire.pcapng import NgReader
from dfuser.net.wire.tcp import TcpRepr, TcpView
from dfuser.net.wire.udp import UdpRepr, UdpView
from dfuser.net.wire.vnet import VnetRepr, VnetView

SRC, DST = b"\x0a\x09\x00\x01", b"\x0a\x09\x00\x02"
SRC6 = bytes.fromhex("fe800000000000000200000000000001")
DST6 = bytes.fromhex("20010db8000000000000000000000002")
GROUP6 = bytes.fromhex("ff0200000000000000000001ff000002")
PSEUDO_TCP = in_pseudo(SRC, DST, 6)
PSEUDO_UDP = in_pseudo(SRC, DST, 17)
PSEUDO_ICMP6 = in_pseudo(SRC6, DST6, 58)


class Codec(NamedTuple):
    """How to read and write one protocol's packets."""

    name: str
    decode: Callable[[Buffer, bool], Any]
    encode: Callable[[Any], bytes]


def ether_decode(raw: Buffer, _loose: bool) -> Any:
    view = EtherView(raw)
    value = EtherRepr.parse(view)
    assert (view.type, view.vlan, view.dhost, view.shost) == (
        value.type, value.vlan, value.dhost, value.shost,
    )  # fmt: skip
    if value.vlan is not None and value.type == 0x8100:
        inner = VlanView(raw, view.data)
        assert len(inner.payload) == len(view.payload) - 4
    return value, bytes(view.payload)


def with_payload(value: Any) -> bytes:
    head, payload = value
    return pack(head) + payload


def arp_decode(raw: Buffer, _loose: bool) -> Any:
    value = ArpRepr.parse(ArpView(raw))
    assert value.is_ether_ip in (True, False)
    return value


def ipv4_decode(raw: Buffer, loose: bool) -> Any:
    view = Ipv4View(raw)
    value = Ipv4Repr.parse(view, verify=not loose)
    assert (view.version, view.len) == (4, value.wire_len + value.payload_len)
    assert (view.off, view.p, view.src, view.dst) == (value.off, value.p, value.src, value.dst)
    assert view.options == value.options
    assert view.is_fragment == value.is_fragment
    assert len(view.payload) == value.payload_len
    return value, bytes(view.payload)


def ipv4_options_decode(raw: Buffer, _loose: bool) -> Any:
    return ip_options.parse_options(raw[:40])


def udp_decode(raw: Buffer, loose: bool) -> Any:
    view = UdpView(raw)
    value = UdpRepr.parse(view, None if loose else PSEUDO_UDP)
    assert (view.sport, view.dport) == value
    return value, bytes(view.payload)


def tcp_decode(raw: Buffer, loose: bool) -> Any:
    view = TcpView(raw)
    value = TcpRepr.parse(view, None if loose else PSEUDO_TCP)
    assert (view.sport, view.dport, view.flags) == (value.sport, value.dport, value.flags)
    tcp_options.TcpOpt.of(value.options, is_syn=bool(value.flags & 2))
    return value, bytes(view.payload)


def transport_encode(pseudo: int) -> Callable[[Any], bytes]:
    def encode(value: Any) -> bytes:
        head, payload = value
        buf = bytearray(head.wire_len + len(payload))
        at = head.emit(buf, 0, pseudo, size=len(payload), total=in_sum(payload))
        buf[at:] = payload
        return bytes(buf)

    return encode


def icmp_decode(raw: Buffer, loose: bool) -> Any:
    view = IcmpView(raw)
    value = IcmpRepr.parse(view, verify=not loose)
    assert (view.type, view.code) == (value.type, value.code)
    if isinstance(value, IcmpError | IcmpRedirect):
        try_embedded(value)
    return value


def try_embedded(value: IcmpError | IcmpRedirect) -> None:
    """What is embedded may be nonsense, but is refused in the same way as everything."""
    try:
        view = value.embedded()
        Ipv4Repr.parse(view, verify=False)
    except WireError:
        pass


def icmp6_decode(raw: Buffer, loose: bool) -> Any:
    view = Icmp6View(raw)
    value = icmp6.parse(view, None if loose else PSEUDO_ICMP6)
    assert (view.type, view.code) == (value.type, value.code)
    if isinstance(value, icmp6.Icmp6Error):
        assert value.embedded().data == 40
    return value


def icmp6_encode(value: Icmp6Repr) -> bytes:
    buf = bytearray(value.wire_len)
    assert value.emit(buf, 0, PSEUDO_ICMP6) == len(buf)
    return bytes(buf)


def ipv6_decode(raw: Buffer, _loose: bool) -> Any:
    view = Ipv6View(raw)
    value = Ipv6Repr.parse(view)
    assert (view.version, view.plen, view.nxt, view.hlim) == (
        6, value.payload_len, value.nxt, value.hlim,
    )  # fmt: skip
    assert (view.src, view.dst) == (value.src, value.dst)
    found = walk(view)
    return value, found.chain, bytes(raw[found.data : found.end])


def ipv6_encode(value: Any) -> bytes:
    head, chain, payload = value
    assert head.nxt == chain.nxt
    return pack(head) + pack(chain) + payload


def vnet_decode(raw: Buffer, _loose: bool) -> Any:
    view = VnetView(raw, size=12 if len(raw) & 1 else 10)
    value = VnetRepr.parse(view)
    frame = bytearray(view.payload)
    value.complete(frame)
    value.segments(len(frame))
    return value, bytes(view.payload)


def pcap_decode(raw: Buffer, _loose: bool) -> Any:
    reader = PcapReader()
    packets = []
    for at in range(0, len(raw), 7):
        reader.receive(raw[at : at + 7])
        while packet := reader.next_packet():
            packets.append(packet)
    return reader.head, tuple(packets)


def pcap_encode(value: Any) -> bytes:
    head: PcapFileRepr | None
    head, packets = value
    if head is None:
        return b""
    # A file may hold more of a packet than its head promises.
    wide = head._replace(snaplen=max([head.snaplen] + [len(p.data) for p in packets]))
    return head.pack() + b"".join(wide.packet(p.data, p.when_ns, p.wire_len) for p in packets)


def ng_decode(raw: Buffer, _loose: bool) -> Any:
    reader = NgReader()
    blocks = []
    for at in range(0, len(raw), 13):
        reader.receive(raw[at : at + 13])
        while block := reader.next_block():
            blocks.append((block, reader.order))
    return tuple(blocks)


def ng_encode(value: Any) -> bytes:
    return b"".join(block.pack(order) for block, order in value)


def nd_options_decode(raw: Buffer, _loose: bool) -> Any:
    return nd6_options.parse_options(bytes(raw))


def tcp_options_decode(raw: Buffer, _loose: bool) -> Any:
    return tcp_options.parse_options(raw[: len(raw) & ~3][:40])


CODECS = {
    codec.name: codec
    for codec in (
        Codec("ether", ether_decode, with_payload),
        Codec("arp", arp_decode, pack),
        Codec("ipv4", ipv4_decode, with_payload),
        Codec("ipv4 options", ipv4_options_decode, ip_options.emit_options),
        Codec("udp", udp_decode, transport_encode(PSEUDO_UDP)),
        Codec("tcp", tcp_decode, transport_encode(PSEUDO_TCP)),
        Codec("tcp options", tcp_options_decode, tcp_options.emit_options),
        Codec("icmp", icmp_decode, pack),
        Codec("ipv6", ipv6_decode, ipv6_encode),
        Codec("icmp6", icmp6_decode, icmp6_encode),
        Codec("nd options", nd_options_decode, nd6_options.emit_options),
        Codec("vnet", vnet_decode, with_payload),
        Codec("pcap", pcap_decode, pcap_encode),
        Codec("pcapng", ng_decode, ng_encode),
    )
}
