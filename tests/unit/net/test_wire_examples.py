"""Packets by hand or from RFCs: what each field means, and which counter a fault has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dfuser.net.cksum import in_cksum_update, in_pseudo, in_sum
from dfuser.net.wire import icmp, icmp6, ip_options, mld6, nd6, nd6_options, tcp_options
from dfuser.net.wire.addr import (
    ether_aton,
    in6_is_addr_linklocal,
    in6_is_addr_multicast,
    in_multicast,
    inet_ntop,
    inet_pton,
    kether_ntoa,
)
from dfuser.net.wire.arp import ArpOp, ArpRepr, ArpView
from dfuser.net.wire.base import Why, WireError, pack
from dfuser.net.wire.ethernet import (
    EtherRepr,
    EtherView,
    VlanView,
    ether_is_multicast,
    evl_maketag,
    evl_prioftag,
    evl_vlanoftag,
)
from dfuser.net.wire.icmp6_message import Icmp6Type, Icmp6View
from dfuser.net.wire.ip6_ext import (
    IP6OPT_TYPE_ICMP,
    Ip6Chain,
    Ip6DstOpts,
    Ip6Fragment,
    Ip6HopOpts,
    Ip6Opt,
    Ip6Routing,
    jumbo,
    padded,
    router_alert,
    walk,
)
from dfuser.net.wire.ipv4 import IP_DF, IP_MF, Ipv4Repr, Ipv4View
from dfuser.net.wire.ipv6 import Ipv6Repr, Ipv6View
from dfuser.net.wire.protocols import IpProto
from dfuser.net.wire.tcp import TH_ACK, TH_SYN, TcpRepr, TcpView, th_names
from dfuser.net.wire.tcp_options import TcpOpt
from dfuser.net.wire.udp import UdpRepr, UdpView
from dfuser.net.wire.vnet import VnetRepr, VnetView
from tests.unit.net.codecs import DST, DST6, GROUP6, SRC, SRC6
from tests.unit.net.corpus import CHAIN, ORIGINAL4, ORIGINAL6

UDP_IN_IP = bytes.fromhex("450000730000400040 11b861c0a80001c0a800c7") + bytes(0x73 - 20)


def refused(read: Callable[[], object]) -> Why:
    """The reason for which something is refused."""
    with pytest.raises(WireError) as caught:
        read()
    assert str(caught.value).startswith(caught.value.why)
    return caught.value.why


def test_an_ipv4_header_from_the_books() -> None:
    # What if the header everybody computes by hand were read differently?
    view = Ipv4View(UDP_IN_IP)
    value = Ipv4Repr.parse(view)
    assert value == Ipv4Repr(
        inet_pton("192.168.0.1"), inet_pton("192.168.0.199"), IpProto.UDP, 95, 64, 0, 0, IP_DF
    )
    assert view.verify()
    assert pack(value) == UDP_IN_IP[:20]
    assert bytes(view.header) == UDP_IN_IP[:20]
    assert value.pseudo() == in_pseudo(value.src, value.dst, 17)


def test_a_router_patches_the_checksum() -> None:
    # What if the checksum patched for a lower TTL were not the one computed anew?
    for ident in range(0, 65536, 251):
        before = Ipv4Repr(SRC, DST, 17, 8, ttl=64, id=ident)
        old, new = pack(before), pack(before._replace(ttl=63))
        words = [int.from_bytes(raw[8:10], "big") for raw in (old, new)]
        patched = in_cksum_update(int.from_bytes(old[10:12], "big"), *words)
        assert patched == int.from_bytes(new[10:12], "big")


def test_ethernet_padding_is_outside() -> None:
    # What if a short datagram came in a frame of the least length?
    raw = pack(Ipv4Repr(SRC, DST, 17, 2)) + b"ok" + bytes(24)
    assert bytes(Ipv4View(raw).payload) == b"ok"


@pytest.mark.parametrize(
    ("at", "new", "why"),
    [
        (None, UDP_IN_IP[:19], Why.IPS_TOOSHORT),
        (0, 0x44, Why.IPS_BADHLEN),
        (0, 0x65, Why.IPS_BADVERS),
        (2, 0xFF, Why.IPS_TOOSHORT),
        (3, 19, Why.IPS_BADLEN),
        (8, 63, Why.IPS_BADSUM),
        (None, UDP_IN_IP[:60], Why.IPS_TOOSHORT),
        (None, b"\x4f" + UDP_IN_IP[1:50], Why.IPS_BADHLEN),
    ],
)
def test_ipv4_counters(at: int | None, new: Any, why: Why) -> None:
    # What if a fault were counted as another?
    raw = new if at is None else UDP_IN_IP[:at] + bytes((new,)) + UDP_IN_IP[at + 1 :]
    assert refused(lambda: Ipv4Repr.parse(Ipv4View(raw))) is why


def test_fragment_fields() -> None:
    # What if offset and flags were mixed up?
    value = Ipv4Repr(SRC, DST, 17, 8, off=IP_MF | 185)
    assert (value.offset, value.more_fragments, value.is_fragment) == (1480, True, True)
    last = value._replace(off=185)
    assert (last.offset, last.more_fragments, last.is_fragment) == (1480, False, True)
    assert not value._replace(off=IP_DF).is_fragment


@pytest.mark.parametrize(
    ("raw", "at"),
    [
        ("07", 20),  # no length
        ("0701", 21),  # shorter than itself
        ("07280400", 21),  # longer than the header
        ("010702", 22),  # a route without a pointer
        ("07030300", 22),  # a pointer in front of the first slot
        ("4403050000000000", 21),  # timestamps without flags
    ],
)
def test_bad_ip_options_point_to_the_byte(raw: str, at: int) -> None:
    # What if the parameter problem named the wrong byte?
    with pytest.raises(WireError) as caught:
        ip_options.parse_options(bytes.fromhex(raw))
    assert (caught.value.why, caught.value.at) == (Why.IPS_BADOPTIONS, at)


def test_ip_options() -> None:
    # What if the fields of options were read at the wrong places?
    raw = bytes.fromhex("01 830b04 0a000001 0a000002 4408051100000000 94040000 00ff").ljust(28)
    found = ip_options.parse_options(raw)
    assert found == (
        ip_options.IpOptNop(),
        ip_options.IpOptRoute(131, 4, bytes.fromhex("0a0000010a000002")),
        ip_options.IpOptTimestamp(5, 1, 1, bytes(4)),
        ip_options.IpOptRouterAlert(0),
    )
    assert found[1].addrs == (b"\x0a\0\0\1", b"\x0a\0\0\2")  # type: ignore[union-attr]
    assert ip_options.emit_options(found) == raw[:24]
    assert ip_options.ipopt_copied(131)
    assert not ip_options.ipopt_copied(7)


def test_arp() -> None:
    # What if a request, as every host sends it, were misread?
    raw = bytes.fromhex("0001080006040001 020000000001 0a090001 000000000000 0a090002")
    value = ArpRepr.parse(ArpView(raw + bytes(18)))
    assert value == ArpRepr(ArpOp.REQUEST, ether_aton("02:0:0:0:0:1"), SRC, bytes(6), DST)
    assert value.is_ether_ip
    assert not value._replace(ar_hrd=7).is_ether_ip
    assert pack(value) == raw
    assert refused(lambda: ArpView(raw[:27])) is Why.ARP_TOOSHORT
    assert refused(lambda: ArpView(raw[:7])) is Why.ARP_TOOSHORT


def test_ethernet_and_tags() -> None:
    # What if the tag were taken for the type?
    raw = bytes.fromhex("ffffffffffff 020000000001 8100 a02a 0800") + b"data"
    view = EtherView(raw)
    value = EtherRepr.parse(view)
    assert (value.type, value.vlan, bytes(view.payload)) == (0x0800, 0xA02A, b"data")
    assert (evl_vlanoftag(0xA02A), evl_prioftag(0xA02A)) == (42, 5)
    assert evl_maketag(42, 5) == 0xA02A
    assert ether_is_multicast(value.dhost)
    assert not ether_is_multicast(value.shost)
    assert refused(lambda: EtherView(raw[:17])) is Why.ETHER_TOOSHORT
    assert refused(lambda: EtherView(raw[:13])) is Why.ETHER_TOOSHORT
    assert refused(lambda: VlanView(b"\0\1\2")) is Why.ETHER_TOOSHORT
    assert VlanView(bytes.fromhex("000786dd"), 0).tci == 7
    assert refused(lambda: evl_maketag(4096)) is Why.ILLEGAL


def test_udp_checksums() -> None:
    # What if "no checksum", a computed zero and a missing one were mixed up?
    pseudo4, pseudo6 = in_pseudo(SRC, DST, 17), in_pseudo(SRC6, DST6, 17)
    none = pack(UdpRepr(1, 2))
    assert UdpRepr.parse(UdpView(none), pseudo4) == (1, 2)
    assert refused(lambda: UdpRepr.parse(UdpView(none), pseudo6, zero_ok=False)) is Why.UDPS_NOSUM
    # Choose a payload that makes the sum all ones: the complement would be zero.
    buf = bytearray(10)
    UdpRepr(1, 2).emit(buf, 0, pseudo4, size=2, total=0)
    cksum = buf[6] << 8 | buf[7]
    at = UdpRepr(1, 2).emit(buf, 0, pseudo4, size=2, total=cksum)
    buf[at:] = cksum.to_bytes(2, "big")
    assert bytes(buf[6:8]) == b"\xff\xff"
    assert UdpRepr.parse(UdpView(buf), pseudo4) == (1, 2)
    buf[0] ^= 1
    assert refused(lambda: UdpRepr.parse(UdpView(buf), pseudo4)) is Why.UDPS_BADSUM


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ("00010002000800", Why.UDPS_HDROPS),
        ("0001000200070000", Why.UDPS_BADLEN),
        ("0001000200090000", Why.UDPS_BADLEN),
    ],
)
def test_udp_counters(raw: str, why: Why) -> None:
    # What if a wrong length were counted as another?
    assert refused(lambda: UdpView(bytes.fromhex(raw))) is why


def test_udp_may_be_shorter_than_the_ip_payload() -> None:
    # What if the IP payload has bytes behind the datagram? They are not covered.
    buf = bytearray(10)
    pseudo = in_pseudo(SRC, DST, 17)
    at = UdpRepr(7, 8).emit(buf, 0, pseudo, size=2, total=in_sum(b"ab"))
    buf[at:] = b"ab"
    view = UdpView(bytes(buf) + b"beyond")
    assert UdpRepr.parse(view, pseudo) == (7, 8)
    assert bytes(view.payload) == b"ab"


def test_tcp_syn_with_options() -> None:
    # What if the options of a SYN, as Linux sends it, were misread?
    raw = bytes.fromhex(
        "c350 0050 00000001 00000000 a002 fa00 0000 0000"
        "020405b4 0402 080a 01020304 00000000 01 030307"
    )
    value = TcpRepr.parse(TcpView(raw))
    assert value[:7] == (50000, 80, 1, 0, TH_SYN, 64000, 0)
    found = TcpOpt.of(value.options, is_syn=True)
    flags = (
        tcp_options.TOF_MSS
        | tcp_options.TOF_SCALE
        | tcp_options.TOF_SACK_PERMITTED
        | tcp_options.TOF_TS
    )
    assert found == TcpOpt(flags, 1460, 7, 0x01020304, 0)
    assert TcpOpt.of(value.options, is_syn=False).flags == tcp_options.TOF_TS
    assert th_names(TH_SYN | TH_ACK) == "SA"
    assert th_names(0) == "."
    assert pack(value) == raw


def test_tcp_reserved_bits_are_ignored_and_not_sent() -> None:
    # What if a peer set the four bits that mean nothing?
    raw = bytearray(pack(TcpRepr(1, 2, 3, 4, TH_ACK, 5)))
    raw[12] |= 0x0E
    assert pack(TcpRepr.parse(TcpView(raw)))[12] == 0x50


def test_dsack_order_is_kept() -> None:
    # What if blocks were sorted? The first one below the ACK is a report of a duplicate.
    blocks = ((500, 1000), (4000, 4500), (3000, 3500))
    options = (tcp_options.NOP, tcp_options.NOP, tcp_options.TcpOptSack(blocks))
    raw = pack(TcpRepr(1, 2, 3, 4000, TH_ACK, 5, 0, options))
    assert TcpRepr.parse(TcpView(raw)).options == options
    found = TcpOpt.of(options, is_syn=False)
    assert (found.flags, found.sackblocks) == (tcp_options.TOF_SACK, blocks)


@pytest.mark.parametrize("wrong", [(7, 7), (8, 7), (0, 1 << 31)])
def test_an_impossible_sack_block_discards_all(wrong: tuple[int, int]) -> None:
    # What if one block is empty or reversed?
    found = TcpOpt.of([tcp_options.TcpOptSack(((1, 2), wrong))], is_syn=False)
    assert (found.flags, found.sackblocks, found.badsack) == (0, (), True)
    across = TcpOpt.of([tcp_options.TcpOptSack(((2**32 - 1, 3),))], is_syn=False)
    assert across.flags == tcp_options.TOF_SACK


def test_a_scale_above_the_limit_means_the_limit() -> None:
    # What if the peer asks for a window of 2**40?
    assert TcpOpt.of([tcp_options.TcpOptWindow(40)], is_syn=True).requested_s_scale == 14


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("0200ffff", (tcp_options.TcpOptBad(b"\2\0\xff\xff"),)),
        ("01010102", (tcp_options.NOP,) * 3 + (tcp_options.TcpOptBad(b"\2"),)),
        ("0205b400", (tcp_options.TcpOptBad(b"\2\5\xb4\0"),)),
        ("0203b400", (tcp_options.TcpOptOther(2, b"\xb4"),)),
        ("00ffffff", ()),
        ("fd04f989", (tcp_options.TcpOptOther(253, b"\xf9\x89"),)),
    ],
)
def test_wrong_tcp_options_cost_no_segment(raw: str, expected: object) -> None:
    # What if an option has length 0, or too long a one, or one that its kind cannot have?
    assert tcp_options.parse_options(bytes.fromhex(raw)) == expected


@pytest.mark.parametrize(
    ("off", "size", "why"),
    [(5, 19, Why.TCPS_RCVSHORT), (4, 20, Why.TCPS_RCVBADOFF), (6, 20, Why.TCPS_RCVBADOFF)],
)
def test_tcp_counters(off: int, size: int, why: Why) -> None:
    # What if a wrong data offset were counted as a short segment?
    raw = (bytes(12) + bytes((off << 4,)) + bytes(20))[:size]
    assert refused(lambda: TcpView(raw)) is why


def test_a_partial_checksum_is_completed_by_the_device() -> None:
    # What if the pseudo header's sum, stored for the device, were the wrong one?
    pseudo = in_pseudo(SRC, DST, 6)
    head, payload = TcpRepr(1, 2, 3, 4, TH_ACK, 5), b"payload"
    whole, partial = bytearray(27), bytearray(27)
    at = head.emit(whole, 0, pseudo, size=7, total=in_sum(payload))
    assert head.emit(partial, 0, pseudo, size=7, partial=True) == at
    whole[at:] = partial[at:] = payload
    frame = bytearray(34) + partial
    VnetRepr(1, 0, 54, 0, 34, 16).complete(frame)
    assert frame[34:] == whole
    untouched = bytes(frame)
    VnetRepr().complete(frame)
    assert frame == untouched
    assert refused(lambda: VnetRepr(1, 0, 0, 0, 60, 0).complete(frame)) is Why.VNET_BADCSUM


def test_a_completed_zero_is_sent_as_ones() -> None:
    # What if the device's sum were all ones? A zero would say that UDP has no checksum.
    frame = bytearray.fromhex("0000 fffe 0001 0000 0000")
    VnetRepr(1, 0, 0, 0, 2, 4).complete(frame)
    assert frame[6:8] == b"\xff\xff"


def test_vnet_header() -> None:
    # What if a frame of 64 KiB from the host were misread?
    raw = bytes.fromhex("01 01 4200 a805 2200 1000") + bytes(100)
    value = VnetRepr.parse(VnetView(raw))
    assert value == VnetRepr(1, 1, 66, 1448, 34, 16)
    assert [value.segments(size) for size in (0, 1, 1448, 1449, 65160)] == [1, 1, 1, 2, 45]
    assert VnetRepr().segments(9000) == 1
    merged = VnetRepr.parse(VnetView(raw[:10] + b"\2\0" + raw[10:], size=12))
    assert merged == value._replace(num_buffers=2)
    assert VnetRepr.parse(VnetView(b"\xf0" + bytes(9))).flags == 0
    for wrong, why in (
        ("00020000a80500000000", Why.VNET_BADGSO),
        ("00800000000000000000", Why.VNET_BADGSO),
        ("00010000000000000000", Why.VNET_BADGSO),
        ("01000000000000000000", Why.VNET_BADCSUM),
        ("000000000000000000", Why.VNET_TOOSHORT),
    ):
        raw = bytes.fromhex(wrong)
        assert refused(lambda raw=raw: VnetRepr.parse(VnetView(raw))) is why  # type: ignore[misc]


def test_icmp_errors_carry_the_original() -> None:
    # What if the ports of the connection that an error is about could not be found?
    value = icmp.IcmpError(3, icmp.IcmpUnreach.NEEDFRAG, ORIGINAL4, nextmtu=1400)
    raw = pack(value)
    assert raw[6:8] == (1400).to_bytes(2, "big")
    view = value.embedded()
    assert (view.src, view.dst, view.p) == (SRC, DST, 17)
    assert UdpView(bytes(view.payload) + bytes(8)).dport == 53
    extended = icmp.IcmpError(11, 0, ORIGINAL4 + b"extension", words=len(ORIGINAL4) // 4)
    assert extended.embedded().end == len(ORIGINAL4)
    redirect = icmp.IcmpRedirect(5, 1, SRC, ORIGINAL4)
    assert redirect.embedded().dst == DST


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ("0800000000010002"[:14], Why.ICPS_TOOSHORT),
        ("0300000000000000" + "45" + "00" * 26, Why.ICPS_BADLEN),
        ("0b00000000000000" + "46" + "00" * 30, Why.ICPS_BADLEN),
        ("0500000000000000" + "44" + "00" * 40, Why.ICPS_BADLEN),
        ("0d00000000000000" + "00" * 11, Why.ICPS_BADLEN),
        ("1100000000000000" + "00" * 3, Why.ICPS_BADLEN),
        ("0900000000020000", Why.ICPS_BADLEN),
        ("0900000001010000" + "00" * 8, Why.ICPS_BADLEN),
        ("0900000002020000" + "00" * 12, Why.ICPS_BADLEN),
    ],
)
def test_icmp_counters(raw: str, why: Why) -> None:
    # What if a message too short for its type got through?
    data = bytes.fromhex(raw)
    assert refused(lambda: icmp.IcmpRepr.parse(icmp.IcmpView(data), verify=False)) is why


def test_every_icmp_type_dragonfly_knows() -> None:
    # What if a type were refused, or lost something on the way?
    for kind in icmp.IcmpType:
        body = bytes((0, 0, 0, 0)) if kind not in icmp.IcmpRouterAdvert.types else b"\1\2\0\0"
        raw = bytes((kind, 0, 0, 0)) + body + ORIGINAL4
        value = icmp.IcmpRepr.parse(icmp.IcmpView(raw), verify=False)
        assert value.type == kind
        again = icmp.IcmpRepr.parse(icmp.IcmpView(pack(value)))
        assert again == value


def test_ipv6_header_and_chain() -> None:
    # What if a header behind another one were missed?
    value = Ipv6Repr(SRC6, DST6, 0, CHAIN.wire_len, 255, 0xB8, 0x12345)
    raw = pack(value) + pack(CHAIN)
    assert raw[:4].hex() == "6b812345"
    assert Ipv6Repr.parse(Ipv6View(raw)) == value
    found = walk(Ipv6View(raw))
    assert found.chain == CHAIN
    assert found.data == found.end == len(raw)
    kinds = [type(header) for header in found.chain.headers]
    assert kinds == [Ip6HopOpts, Ip6DstOpts, Ip6Routing, Ip6Fragment]
    assert found.chain.fragment is None, "an atomic fragment is no fragment"


def ip6(nxt: int, body: bytes, plen: int | None = None) -> Ipv6View:
    size = len(body) if plen is None else plen
    return Ipv6View(pack(Ipv6Repr(SRC6, DST6, nxt, size)) + body)


@pytest.mark.parametrize(
    ("nxt", "raw", "why", "at"),
    [
        (0, "3b00", Why.IP6S_TOOSHORT, 40),
        (0, "3b01010400000000", Why.IP6S_TOOSHORT, 40),
        (60, "000001040000000000000104000000003b00010400000000", Why.IP6S_BADNXT, 40),
        (60, "3b00010500000000", Why.IP6S_TOOSMALL, 43),
        (60, "3b00010300000005", Why.IP6S_TOOSMALL, 47),
        (0, "3b00050300000001", Why.IP6S_BADOPTIONS, 43),
        (0, "3b00c20400010000", Why.IP6S_BADOPTIONS, 42),
        (44, "3b000001000000", Why.IP6S_TOOSHORT, 40),
        (43, "3b01000000000000", Why.IP6S_TOOSHORT, 40),
    ],
)
def test_ip6_faults_point_to_the_byte(nxt: int, raw: str, why: Why, at: int) -> None:
    # What if the parameter problem named the wrong byte?
    with pytest.raises(WireError) as caught:
        walk(ip6(nxt, bytes.fromhex(raw)))
    assert (caught.value.why, caught.value.at) == (why, at)


def test_bytes_behind_an_ipv6_packet_are_outside() -> None:
    # What if a short packet came in a frame of the least length?
    view = Ipv6View(
        pack(Ipv6Repr(SRC6, DST6, 60, 10)) + bytes.fromhex("3b000104000000000102") + b"pad"
    )
    assert bytes(view.payload)[-2:] == b"\1\2"
    found = walk(view)
    assert (found.data, found.end) == (48, 50)


def test_ip6_counters() -> None:
    # What if a short packet were counted as another fault?
    raw = pack(Ipv6Repr(SRC6, DST6, 59, 4)) + b"data"
    assert refused(lambda: Ipv6View(raw[:39])) is Why.IP6S_TOOSMALL
    assert refused(lambda: Ipv6View(raw[:43])) is Why.IP6S_TOOSHORT
    assert refused(lambda: Ipv6Repr.parse(Ipv6View(b"\x45" + raw[1:]))) is Why.IP6S_BADVERS
    assert Ipv6View(raw[:41], embedded=True).end == 41


def test_jumbograms() -> None:
    # What if a packet were longer than its length field can say?
    size = 70000
    options = Ip6Chain((Ip6HopOpts(padded((jumbo(size),))),), 59)
    body = pack(options) + bytes(size - options.wire_len)
    view = ip6(0, body + b"beyond", 0)
    found = walk(view)
    assert found.chain == options
    assert (found.data, found.end) == (48, 40 + size)
    assert refused(lambda: walk(ip6(0, body[:-1], 0))) is Why.IP6S_TOOSHORT
    for wrong in (
        b"\x3b\0\xc2\4\0\0\xff\xff",  # would fit the ordinary field
        b"\x3b\1\xc2\4\0\1\0\0\xc2\4\0\1\0\0\1\0",  # two of them
        b"\x3b\0\1\4\0\0\0\0",  # none at all
    ):
        assert refused(lambda raw=wrong: walk(ip6(0, raw + bytes(size), 0))) is Why.IP6S_BADOPTIONS  # type: ignore[misc]
    fragment = b"\x2c\0\xc2\4\0\1\x11\x70" + b"\x3b\0\0\1\0\0\0\7"
    assert refused(lambda: walk(ip6(0, fragment + bytes(size), 0))) is Why.IP6S_BADOPTIONS


def test_a_real_fragment_ends_the_walk() -> None:
    # What if the bytes behind a fragment header were taken for headers?
    chain = Ip6Chain((Ip6Fragment(8, True, 9),), 60)
    found = walk(ip6(44, pack(chain) + b"\xff" * 8))
    assert found.chain == chain
    assert found.chain.fragment == Ip6Fragment(8, True, 9)
    assert found.data == 48


def test_ip6_options() -> None:
    # What if the two bits that say what to do were read from elsewhere?
    assert Ip6Opt(0xC9).action == IP6OPT_TYPE_ICMP
    assert Ip6Opt(0x1E).action == 0
    assert router_alert(2).value == 2
    for sizes in range(20):
        total = 2 + sum(len(o.pack()) for o in padded((Ip6Opt(9, bytes(sizes)),)))
        assert total % 8 == 0


def test_neighbor_discovery() -> None:
    # What if an advertisement, as radvd sends it, were misread?
    raw = bytes.fromhex(
        "8600000040c8070800007530000003e8"
        "0101020000000001"
        "050100000000 05dc"
        "030440c000278d0000093a800000000020010db8000000000000000000000000"
        "1903000000000258 20010db8000000000000000000000053"
    )
    value = icmp6.parse(Icmp6View(raw))
    assert isinstance(value, nd6.NdRouterAdvert)
    assert (value.curhoplimit, value.router_lifetime) == (64, 1800)
    assert (value.reachable, value.retransmit) == (30000, 1000)
    assert value.flags & nd6.ND_RA_FLAG_RTPREF_MASK == nd6.ND_RA_FLAG_RTPREF_HIGH
    lladdr = nd6_options.find_linkaddr(value.options, nd6_options.ND_OPT_SOURCE_LINKADDR)
    assert lladdr == ether_aton("02:00:00:00:00:01")
    assert nd6_options.find_linkaddr(value.options, 2) is None
    mtu, prefix, rdnss = value.options[1:]
    assert mtu == nd6_options.NdOptMtu(mtu=1500)
    assert isinstance(prefix, nd6_options.NdOptPrefix)
    assert (prefix.prefix_len, inet_ntop(prefix.prefix)) == (64, "2001:db8::")
    assert isinstance(rdnss, nd6_options.NdOptRdnss)
    assert [inet_ntop(server) for server in rdnss.servers] == ["2001:db8::53"]
    assert pack(value) == raw


def nd(kind: Icmp6Type, body: bytes, code: int = 0) -> Callable[[], object]:
    return lambda: icmp6.parse(Icmp6View(bytes((kind, code, 0, 0)) + body))


@pytest.mark.parametrize(
    ("read", "why"),
    [
        (nd(Icmp6Type.ROUTER_SOLICIT, bytes(4), 1), Why.ICP6S_BADCODE),
        (nd(Icmp6Type.ROUTER_SOLICIT, bytes(4) + b"\1\0" + bytes(6)), Why.ICP6S_ND_BADOPT),
        (nd(Icmp6Type.ROUTER_SOLICIT, bytes(4) + b"\1\2" + bytes(6)), Why.ICP6S_ND_BADOPT),
        (nd(Icmp6Type.ROUTER_SOLICIT, bytes(5)), Why.ICP6S_ND_BADOPT),
        (nd(Icmp6Type.ROUTER_ADVERT, bytes(11)), Why.ICP6S_BADLEN),
        (nd(Icmp6Type.NEIGHBOR_SOLICIT, bytes(19)), Why.ICP6S_BADLEN),
        (nd(Icmp6Type.NEIGHBOR_SOLICIT, bytes(4) + GROUP6), Why.ICP6S_BADNS),
        (nd(Icmp6Type.NEIGHBOR_ADVERT, bytes(4) + GROUP6), Why.ICP6S_BADNA),
        (nd(Icmp6Type.REDIRECT, bytes(4) + SRC6 + GROUP6), Why.ICP6S_BADREDIRECT),
        (nd(Icmp6Type.REDIRECT, bytes(4) + DST6 + SRC6), Why.ICP6S_BADREDIRECT),
        (nd(Icmp6Type.LISTENER_QUERY, bytes(22)), Why.ICP6S_BADLEN),
        (nd(Icmp6Type.LISTENER_QUERY, bytes(4) + DST6), Why.MLD_BADGROUP),
        (nd(Icmp6Type.LISTENER_REPORT, bytes(20)), Why.MLD_BADGROUP),
        (nd(Icmp6Type.LISTENER_REPORT_V2, b"\0\0\0\1" + bytes(19)), Why.ICP6S_BADLEN),
        (nd(Icmp6Type.PACKET_TOO_BIG, bytes(43)), Why.ICP6S_TOOSHORT),
        (lambda: Icmp6View(bytes(7)), Why.ICP6S_TOOSHORT),
    ],
)
def test_icmp6_counters(read: Callable[[], object], why: Why) -> None:
    # What if a message that must be discarded got through, or was counted wrongly?
    assert refused(read) is why


def test_nd_options_of_impossible_lengths_mean_nothing() -> None:
    # What if an option had half a name server, or more than an MTU?
    for kind, units in ((25, 1), (25, 2), (25, 4), (5, 2), (3, 3), (31, 1)):
        raw = bytes((kind, units)) + bytes(units * 8 - 2)
        assert nd6_options.parse_options(raw) == (nd6_options.NdOptOther(kind, raw[2:]),)


def test_redirects() -> None:
    # What if a redirect to a neighbor were taken for one to a router?
    assert nd6.NdRedirect(target=DST6, dst=DST6).is_onlink
    assert not nd6.NdRedirect(target=SRC6, dst=DST6).is_onlink
    assert refused(lambda: pack(nd6.NdRedirect(target=DST6, dst=SRC6))) is Why.ILLEGAL


def test_icmp6_errors_carry_the_original() -> None:
    # What if the connection that an error is about could not be found?
    value = icmp6.Icmp6Error(2, 0, ORIGINAL6, mtu=1280)
    view = value.embedded()
    assert (view.src, view.dst, UdpView(view.payload).sport) == (SRC6, DST6, 53)
    cut = icmp6.Icmp6Error(1, 0, ORIGINAL6 + b"extension", words=len(ORIGINAL6) // 8)
    assert cut.embedded().end == len(ORIGINAL6)
    assert Icmp6View(pack(value)).is_error
    assert not Icmp6View(pack(icmp6.Icmp6Echo(128, 0, 1, 2))).is_error


def test_mld_codes() -> None:
    # What if the floating point of RFC 3810, 5.1.3 and 5.1.9 were decoded wrongly?
    query = mld6.MldQueryV2(maxcode=10000, addr=bytes(16), qqic=125)
    assert (query.maxdelay, query.interval) == (10000, 125)
    large = mld6.MldQueryV2(maxcode=0x8000, addr=bytes(16), qqic=0x80)
    assert (large.maxdelay, large.interval) == (32768, 128)
    largest = mld6.MldQueryV2(maxcode=0xFFFF, addr=bytes(16), qqic=0xFF)
    assert (largest.maxdelay, largest.interval) == (8387584, 31744)
    old = icmp6.parse(Icmp6View(bytes.fromhex("82000000 27100000") + bytes(16)))
    assert old == mld6.MldMessage(type=130, maxdelay=10000, addr=bytes(16))


def test_addresses_as_text() -> None:
    # What if an address were printed in a way that nobody can read back?
    assert kether_ntoa(ether_aton("2:0:0:a:B:ff")) == "02:00:00:0a:0b:ff"
    assert inet_ntop(inet_pton("fe80:0::1")) == "fe80::1"
    assert inet_ntop(memoryview(SRC)) == "10.9.0.1"
    for wrong in ("2:0:0:0:0", "2:0:0:0:0:100", "2:0:0:0:0:x", "", "2:0:0:0:0:"):
        assert refused(lambda text=wrong: ether_aton(text)) is Why.ILLEGAL  # type: ignore[misc]
    assert refused(lambda: inet_pton("10.9.0")) is Why.ILLEGAL
    assert in_multicast(inet_pton("224.0.0.1"))
    assert not in_multicast(inet_pton("240.0.0.1"))
    assert in6_is_addr_multicast(GROUP6)
    assert in6_is_addr_linklocal(inet_pton("febf::1"))
    assert not in6_is_addr_linklocal(inet_pton("fec0::1"))


ILLEGAL: list[Any] = [
    EtherRepr(b"short", bytes(6), 0x800),
    EtherRepr(bytes(6), bytes(6), 0x8100),
    EtherRepr(bytes(6), bytes(6), 0x10000),
    ArpRepr(1, bytes(6), SRC, bytes(5), DST),
    Ipv4Repr(SRC6, DST, 6, 0),
    Ipv4Repr(SRC, DST, 6, 65516),
    Ipv4Repr(SRC, DST, 6, -1),
    Ipv4Repr(SRC, DST, 256, 0),
    Ipv4Repr(SRC, DST, 6, 0, tos=-1),
    Ipv4Repr(SRC, DST, 6, 0, options=b"\1"),
    Ipv4Repr(SRC, DST, 6, 0, options=bytes(44)),
    UdpRepr(-1, 1),
    UdpRepr(1, 65536),
    TcpRepr(1, 2, 2**32, 0, 0, 0),
    TcpRepr(1, 2, 0, 0, 256, 0),
    TcpRepr(1, 2, 0, 0, 0, 0, 0, (tcp_options.TcpOptMaxseg(65536),)),
    TcpRepr(1, 2, 0, 0, 0, 0, 0, (tcp_options.TcpOptMaxseg(1, kind=3),)),
    TcpRepr(1, 2, 0, 0, 0, 0, 0, (tcp_options.TcpOptOther(2, b"\1\2"),)),
    TcpRepr(1, 2, 0, 0, 0, 0, 0, (tcp_options.TcpOptOther(1, b""),)),
    TcpRepr(1, 2, 0, 0, 0, 0, 0, (tcp_options.TcpOptOther(300, b""),)),
    TcpRepr(1, 2, 0, 0, 0, 0, 0, (tcp_options.TcpOptBad(b"\2\4\1\1"),)),
    TcpRepr(1, 2, 0, 0, 0, 0, 0, (tcp_options.TcpOptBad(b"\2\0"),)),
    TcpRepr(1, 2, 0, 0, 0, 0, 0, (tcp_options.TcpOptBad(b"\2\0\0\0"), tcp_options.NOP)),
    TcpRepr(1, 2, 0, 0, 0, 0, 0, (tcp_options.TcpOptSack(((1, 2),) * 5),)),
    icmp.IcmpEcho(3, 0, 1, 2),
    icmp.IcmpEcho(8, 256, 1, 2),
    icmp.IcmpEcho(8, 0, 65536, 2),
    icmp.IcmpError(3, 0, b"\x45" + bytes(26)),
    icmp.IcmpError(11, 0, ORIGINAL4, nextmtu=1),
    icmp.IcmpError(3, 0, ORIGINAL4, pptr=1),
    icmp.IcmpError(4, 0, ORIGINAL4, words=1),
    icmp.IcmpRedirect(5, 0, SRC6, ORIGINAL4),
    icmp.IcmpMask(17, 0, 1, 2, b"\xff"),
    icmp.IcmpRouterAdvert(9, 0, 1, ()),
    icmp.IcmpOther(8, 0, bytes(4)),
    icmp.IcmpOther(40, 0, bytes(3)),
    icmp.IcmpRepr(8, 0),
    Ipv6Repr(SRC, DST6, 6, 0),
    Ipv6Repr(SRC6, DST6, 6, 65536),
    Ipv6Repr(SRC6, DST6, 6, 0, flow=1 << 20),
    Ip6Chain((), 60),
    Ip6Chain((Ip6DstOpts(()),), 6),
    Ip6Chain((Ip6DstOpts(padded(())), Ip6HopOpts(padded(()))), 6),
    Ip6Chain((Ip6Fragment(8, False, 1), Ip6DstOpts(padded(()))), 6),
    Ip6Chain((Ip6Fragment(4, False, 1),), 6),
    Ip6Chain((Ip6Fragment(0, False, 1, proto=60),), 6),
    Ip6Chain((Ip6Routing(0, 256, bytes(4)),), 6),
    Ip6Chain((Ip6Routing(0, 1, bytes(5)),), 6),
    Ip6Chain((Ip6DstOpts(padded(())),) * 51, 6),
    Ip6Chain((Ip6HopOpts(padded((jumbo(65535),))),), 6),
    Ip6Chain((Ip6DstOpts((Ip6Opt(5, b"\0\0\0\0"),)),), 6),
    Ip6Chain((Ip6DstOpts((Ip6Opt(0, b"\0\0\0\0"),)),), 6),
    icmp6.Icmp6Echo(1, 0, 1, 2),
    icmp6.Icmp6Error(1, 0, bytes(39)),
    icmp6.Icmp6Error(1, 0, ORIGINAL6, mtu=1280),
    icmp6.Icmp6Error(2, 0, ORIGINAL6, pptr=1),
    icmp6.Icmp6Other(135, 0, bytes(20)),
    nd6.NdNeighborSolicit(target=GROUP6),
    nd6.NdNeighborSolicit(target=DST6, code=1),
    nd6.NdNeighborAdvert(target=DST6, flags=1),
    nd6.NdNeighborAdvert(target=DST6, options=(nd6_options.NdOptLinkaddr(2, bytes(7)),)),
    nd6.NdNeighborAdvert(target=DST6, options=(nd6_options.NdOptOther(5, bytes(6)),)),
    nd6.NdNeighborAdvert(target=DST6, options=(nd6_options.NdOptRest(data=b"x"),)),
    nd6.NdNeighborAdvert(target=DST6, options=(nd6_options.NdOptMtu(mtu=1),) * 12),
    nd6.NdNeighborAdvert(target=DST6, options=(nd6_options.NdOptRdnss(lifetime=1, servers=()),)),
    nd6.NdNeighborAdvert(target=DST6, options=(nd6_options.NdOptDnssl(lifetime=1, domains=b""),)),
    mld6.MldMessage(type=131, addr=bytes(16)),
    mld6.MldMessage(type=131, addr=DST6),
    mld6.MldQueryV2(maxcode=1, addr=bytes(16), qrv=8),
    mld6.MldQueryV2(maxcode=1, addr=bytes(16), sources=(SRC,)),
    mld6.MldReportV2(records=(mld6.MldRecord(1, GROUP6, (), b"odd"),)),
    VnetRepr(8),
    VnetRepr(0, 2, 0, 1),
    VnetRepr(0, 1, 0, 0),
    VnetRepr(0, 0, 0, 65536),
]


@pytest.mark.parametrize("value", ILLEGAL, ids=range(len(ILLEGAL)))
def test_illegal_values_are_refused(value: Any) -> None:
    # What if the kernel sent a packet that no receiver may accept?
    def emit() -> None:
        value.emit(bytearray(100_000))

    assert refused(emit) is Why.ILLEGAL


def test_a_buffer_too_small_is_never_grown() -> None:
    # What if the buffer ended inside the packet? A bytearray would silently grow.
    for value in (
        TcpRepr(1, 2, 3, 4, 5, 6, 0, (tcp_options.TcpOptTimestamp(1, 2),)),
        Ipv4Repr(SRC, DST, 6, 0, options=bytes(4)),
        icmp.IcmpEcho(8, 0, 1, 2, b"data"),
        icmp6.Icmp6Echo(128, 0, 1, 2, b"data"),
        ArpRepr(1, bytes(6), SRC, bytes(6), DST),
        CHAIN,
        EtherRepr(bytes(6), bytes(6), 1, 2),
    ):
        for size in range(value.wire_len):
            buf = bytearray(size)
            assert refused(lambda value=value, buf=buf: value.emit(buf)) is Why.ILLEGAL  # type: ignore[misc]
            assert len(buf) == size
        where = bytearray(value.wire_len + 3)
        assert value.emit(memoryview(where), 3) == len(where)
        assert where[3:] == pack(value)


@pytest.mark.parametrize(
    "options",
    [
        (ip_options.IpOptRoute(7, 3, b""),),
        (ip_options.IpOptRoute(8, 4, b""),),
        (ip_options.IpOptTimestamp(5, 16, 0, b""),),
        (ip_options.IpOptRouterAlert(65536),),
        (ip_options.IpOptOther(7, b""),),
        (ip_options.IpOptOther(148, b"\0\0"),),
        (ip_options.IpOptOther(256, b""),),
        (ip_options.IpOptOther(9, bytes(39)),),
        (ip_options.IpOptNop(2),),
    ],
)
def test_illegal_ip_options_are_refused(options: tuple[Any, ...]) -> None:
    # What if an option were written that is read back as another?
    assert refused(lambda: ip_options.emit_options(options)) is Why.ILLEGAL
