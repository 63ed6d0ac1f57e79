"""Capture files: the formats by hand, in pieces, damaged, and with scapy at the other end."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.utils import PcapNgReader as ScapyNgReader
from scapy.utils import RawPcapReader, RawPcapWriter

from dfuser.net.wire import pcapng
from dfuser.net.wire.base import Why, WireError
from dfuser.net.wire.pcap import LinkType, PcapFileRepr, PcapPacket, PcapReader
from dfuser.net.wire.pcapng import (
    NgInterface,
    NgOther,
    NgPacket,
    NgReader,
    NgSection,
    NgSimplePacket,
)

PACKETS = [PcapPacket(i * 1_000_000_007, bytes((i,)) * (i * 13), i * 13) for i in range(1, 40)]


def read(raw: bytes, step: int = 1 << 20) -> list[PcapPacket]:
    reader, found = PcapReader(), []
    for at in range(0, len(raw), step):
        reader.receive(raw[at : at + step])
        while packet := reader.next_packet():
            found.append(packet)
    return found


def write(head: PcapFileRepr) -> bytes:
    return head.pack() + b"".join(head.packet(p.data, p.when_ns) for p in PACKETS)


@given(st.integers(1, 700))
def test_pieces_of_any_size(step: int) -> None:
    # What if a file arrived byte by byte, or all at once?
    assert read(write(PcapFileRepr()), step) == PACKETS


def test_the_format_by_hand() -> None:
    # What if another program could not read the file?
    head = PcapFileRepr(LinkType.EN10MB, 65535, nanosecond=False)
    raw = head.pack() + head.packet(b"abcd", 1_500_000_000, 60)
    assert raw.hex() == (
        "d4c3b2a1020004000000000000000000ffff0000010000000100000020a10700040000003c00000061626364"
    )
    assert read(raw) == [PcapPacket(1_500_000_000, b"abcd", 60)]


def test_a_packet_is_cut_at_the_snap_length() -> None:
    # What if a packet were longer than the file wants?
    head = PcapFileRepr(snaplen=10)
    assert read(head.pack() + head.packet(bytes(64), 0)) == [PcapPacket(0, bytes(10), 64)]


def test_a_cut_file_says_so() -> None:
    # What if the writer was killed in the middle of a packet?
    raw = write(PcapFileRepr())
    reader = PcapReader()
    reader.receive(raw[:-1])
    while reader.next_packet():
        pass
    assert reader.pending == 16 + 39 * 13 - 1


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (bytes(24), Why.PCAP_BADMAGIC),
        (PcapFileRepr().pack()[:4] + b"\3" + PcapFileRepr().pack()[5:], Why.PCAP_BADMAGIC),
        (PcapFileRepr().pack() + bytes(8) + b"\xff" * 8, Why.PCAP_BADLEN),
    ],
)
def test_files_that_are_none(raw: bytes, why: Why) -> None:
    # What if somebody gave us another file, or a length that would fill the memory?
    with pytest.raises(WireError) as caught:
        read(raw)
    assert caught.value.why is why
    with pytest.raises(WireError, match="pcap_badlen"):
        PcapFileRepr.parse(bytes(23))


@pytest.mark.parametrize(
    "make",
    [
        lambda: PcapFileRepr(order="!").pack(),
        lambda: PcapFileRepr(linktype=65536).pack(),
        lambda: PcapFileRepr(snaplen=-1).pack(),
        lambda: PcapFileRepr().packet(b"", 2**32 * 1_000_000_000),
        lambda: PcapFileRepr().packet(b"", -1),
        lambda: NgPacket(-1, 0, b"", 0).pack(),
        lambda: NgPacket(0, 2**64, b"", 0).pack(),
        lambda: NgOther(1, b"").pack(),
        lambda: NgOther(99, b"odd").pack(),
        lambda: NgOther(99, bytes(pcapng.NG_MAX_BLOCK)).pack(),
        lambda: NgSimplePacket(2, b"abc").pack(),
        lambda: NgSection(((70000, b""),)).pack(),
        lambda: pcapng.NgBlock().pack(),
    ],
)
def test_illegal_files_are_not_written(make: object) -> None:
    # What if a field did not fit?
    with pytest.raises(WireError, match="illegal"):
        make()  # type: ignore[operator]


def test_scapy_reads_ours(tmp_path: Path) -> None:
    # What if only we could read what we write?
    for head in (PcapFileRepr(), PcapFileRepr(nanosecond=False, order=">")):
        path = tmp_path / "ours.pcap"
        path.write_bytes(write(head))
        with RawPcapReader(str(path)) as reader:
            found = list(reader)
        unit = 1 if head.nanosecond else 1000
        assert [raw for raw, _ in found] == [p.data for p in PACKETS]
        whens = [meta.sec * 10**9 + meta.usec * unit for _, meta in found]
        assert whens == [p.when_ns // unit * unit for p in PACKETS]


def test_we_read_scapys(tmp_path: Path) -> None:
    # What if we could only read what we write?
    path = tmp_path / "theirs.pcap"
    with RawPcapWriter(str(path), linktype=1, nano=True) as writer:
        writer.write_header(None)
        for p in PACKETS:
            sec, nsec = divmod(p.when_ns, 10**9)
            writer.write_packet(p.data, sec=sec, usec=nsec)
    assert read(path.read_bytes()) == PACKETS


def ng_file(order: str = "<") -> bytes:
    blocks = [NgSection(((pcapng.SHB_USERAPPL, b"dfuser"),)), NgInterface.named("tap0")]
    blocks += [NgPacket(0, p.when_ns, p.data, p.wire_len) for p in PACKETS]
    return b"".join(block.pack(order) for block in blocks)


def ng_read(raw: bytes) -> list[PcapPacket]:
    reader, found = NgReader(), []
    reader.receive(raw)
    while block := reader.next_block():
        if packet := reader.packet(block):
            found.append(packet)
    assert reader.pending == 0
    return found


def test_pcapng_in_both_orders_and_several_sections() -> None:
    # What if files of two machines were joined?
    assert ng_read(ng_file() + ng_file(">")) == PACKETS * 2


def test_scapy_reads_our_pcapng(tmp_path: Path) -> None:
    # What if only we could read what we write?
    path = tmp_path / "ours.pcapng"
    path.write_bytes(ng_file())
    with ScapyNgReader(str(path)) as reader:
        found = [(raw, int(meta.tshigh) << 32 | int(meta.tslow)) for raw, meta in iter_raw(reader)]
    assert found == [(p.data, p.when_ns) for p in PACKETS]


def iter_raw(reader: ScapyNgReader) -> list[tuple[bytes, object]]:
    found = []
    while True:
        try:
            found.append(reader._read_packet())
        except EOFError:
            return found


@pytest.mark.parametrize(
    ("options", "stamp", "expected"),
    [
        ((), 1_000_001, 1_000_001_000),
        (((pcapng.IF_TSRESOL, b"\x03"),), 5, 5_000_000),
        (((pcapng.IF_TSRESOL, b"\x8a"),), 1024, 1_000_000_000),
        (((pcapng.IF_TSRESOL, b"\xff"),), 2**63, 0),
        (((pcapng.IF_TSOFFSET, b"\2" + bytes(7)),), 0, 2_000_000_000),
        (((pcapng.IF_TSRESOL, b""),), 1, 1000),
    ],
)
def test_clocks_of_interfaces(
    options: tuple[tuple[int, bytes], ...], stamp: int, expected: int
) -> None:
    # What if an interface counted time in other units?
    assert NgInterface(options=options).when_ns(stamp, "<") == expected


def test_a_simple_packet_is_cut_by_its_interface() -> None:
    # What if padding were taken for data?
    raw = (
        NgSection().pack()
        + NgInterface(snaplen=6).pack()
        + NgSimplePacket(60, b"abcdef\0\0").pack()
    )
    assert ng_read(raw) == [PcapPacket(0, b"abcdef", 60)]


SHB = NgSection().pack()
LONG_PACKET = b"\6\0\0\0\x20\0\0\0" + bytes(12) + b"\x40" + bytes(7) + b"\x20\0\0\0"
LONG_OPTION = b"\1\0\0\0\x18\0\0\0" + bytes(8) + b"\2\0\5\0\x18\0\0\0"


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (bytes(12), Why.PCAP_BADMAGIC),
        (b"\x0a\x0d\x0d\x0a" + bytes(24), Why.PCAP_BADMAGIC),
        (SHB[:12] + b"\2" + SHB[13:], Why.PCAP_BADMAGIC),
        (SHB + b"\6\0\0\0\x0d\0\0\0" + bytes(5), Why.PCAP_BADLEN),
        (SHB + b"\6\0\0\0\x0c\0\0\0\x0c\0\0\0", Why.PCAP_BADLEN),
        (SHB + b"\6\0\0\0\0\0\0\x7f" + bytes(5), Why.PCAP_BADLEN),
        (SHB + b"\x63\0\0\0\x0c\0\0\0\x10\0\0\0", Why.PCAP_BADLEN),
        (SHB + NgPacket(0, 0, b"", 0).pack(), Why.PCAP_BADBLOCK),
        (SHB + LONG_PACKET, Why.PCAP_BADBLOCK),
        (SHB + LONG_OPTION, Why.PCAP_BADBLOCK),
    ],
)
def test_pcapng_files_that_are_none(raw: bytes, why: Why) -> None:
    # What if lengths contradict each other, or a packet belongs to no interface?
    with pytest.raises(WireError) as caught:
        ng_read(raw)
    assert caught.value.why is why


def test_a_section_has_its_own_interfaces() -> None:
    # What if a packet were timed by an interface of the section before?
    reader = NgReader()
    reader.receive(ng_file() + SHB + NgPacket(0, 5, b"", 0).pack())
    *_, last = iter(reader.next_block, None)
    with pytest.raises(WireError, match="interface 0 of 0"):
        reader.packet(last)


def test_interfaces_are_bounded() -> None:
    # What if a file described interfaces without end?
    reader = NgReader()
    reader.receive(SHB + NgInterface().pack() * (pcapng.NG_MAX_INTERFACES + 1))
    for _ in range(pcapng.NG_MAX_INTERFACES + 1):
        assert reader.next_block()
    with pytest.raises(WireError, match="too many interfaces"):
        reader.next_block()
    assert len(reader.interfaces) == pcapng.NG_MAX_INTERFACES
