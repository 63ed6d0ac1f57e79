"""Packets and checksums: microseconds a packet and MB/s, as ratios to scapy and to plain code.

    python -m benchmarks.wire [--rounds N] [--json]

Contestants, run in turn within each round so that all suffer alike from the rest of the machine:

* ``dfuser``: views and values of `dfuser.net.wire`, lengths and checksums verified;
* ``naive``: what one writes first, and what dpkt does: a class for each header that unpacks all
  fields into attributes, checks little, and sums words in a loop;
* ``dpkt``: the package itself, if it is installed; it verifies no checksum when it reads;
* ``scapy``: reading every layer, or building the packet from its layers.

The row ``read`` takes an Ethernet frame apart down to the TCP options; ``write`` makes it from
values. The checksum rows compare the variants that `dfuser.net.cksum` could have been made of.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
from array import array
from collections.abc import Callable

from benchmarks.harness import Contestant, Rounds
from dfuser.net.cksum import in_sum
from dfuser.net.wire.base import pack
from dfuser.net.wire.ethernet import EtherRepr, EtherView
from dfuser.net.wire.ipv4 import IP_DF, Ipv4Repr, Ipv4View
from dfuser.net.wire.tcp import TH_ACK, TH_PUSH, TcpRepr, TcpView
from dfuser.net.wire.tcp_options import NOP, TcpOptTimestamp

SIZES = (20, 40, 576, 1460, 8960, 65480)
SRC, DST = b"\x0a\x09\x00\x01", b"\x0a\x09\x00\x02"
MAC1, MAC2 = b"\x02\x00\x00\x00\x00\x01", b"\x02\x00\x00\x00\x00\x02"

Work = Callable[[], object]


# dfuser ------------------------------------------------------------------------------------


def ours_write(payload: bytes) -> bytes:
    """A frame from values, with both checksums."""
    tcp = TcpRepr(80, 5000, 1, 2, TH_ACK | TH_PUSH, 501, 0, (NOP, NOP, TcpOptTimestamp(7, 8)))
    ip = Ipv4Repr(SRC, DST, 6, 32 + len(payload), id=9, off=IP_DF)
    buf = bytearray(66 + len(payload))
    at = EtherRepr(MAC1, MAC2, 0x0800).emit(buf)
    at = ip.emit(buf, at)
    at = tcp.emit(buf, at, ip.pseudo(), size=len(payload), total=in_sum(payload))
    buf[at:] = payload
    return bytes(buf)


def ours_read(frame: bytes) -> tuple[EtherRepr, Ipv4Repr, TcpRepr, memoryview]:
    """All headers and the payload of a frame, verified."""
    view = EtherView(frame)
    ether = EtherRepr.parse(view)
    ip_view = Ipv4View(frame, view.data, view.end)
    ip = Ipv4Repr.parse(ip_view)
    tcp_view = TcpView(frame, ip_view.data, ip_view.end)
    tcp = TcpRepr.parse(tcp_view, ip.pseudo())
    return ether, ip, tcp, tcp_view.payload


# What one writes first ---------------------------------------------------------------------


def loop_sum(data: bytes) -> int:
    """RFC 1071 as a loop over unpacked words."""
    if len(data) & 1:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


class NaiveEther:
    """dst, src, type."""

    def __init__(self, raw: bytes) -> None:
        self.dst, self.src, self.type = struct.unpack("!6s6sH", raw[:14])
        self.data = NaiveIp(raw[14:])


class NaiveIp:
    """All fields of an IPv4 header."""

    def __init__(self, raw: bytes) -> None:
        fields = struct.unpack("!BBHHHBBH4s4s", raw[:20])
        vhl, self.tos, self.len, self.id, self.off, self.ttl, self.p = fields[:7]
        self.sum, self.src, self.dst = fields[7:]
        size = (vhl & 15) * 4
        self.options = raw[20:size]
        if loop_sum(raw[:size]) != 0xFFFF:
            raise ValueError("checksum")
        body = raw[size : self.len]
        pseudo = self.src + self.dst + struct.pack("!BBH", 0, self.p, len(body))
        if loop_sum(pseudo + body) != 0xFFFF:
            raise ValueError("checksum")
        self.data = NaiveTcp(body)


class NaiveTcp:
    """All fields and options of a TCP header."""

    def __init__(self, raw: bytes) -> None:
        fields = struct.unpack("!HHIIBBHHH", raw[:20])
        self.sport, self.dport, self.seq, self.ack, off = fields[:5]
        self.flags, self.win, self.sum, self.urp = fields[5:]
        size = (off >> 4) * 4
        self.options: list[tuple[int, bytes]] = []
        at = 20
        while at < size and raw[at]:
            if raw[at] == 1:
                at += 1
                continue
            length = raw[at + 1]
            self.options.append((raw[at], raw[at + 2 : at + length]))
            at += length
        self.data = raw[size:]


def naive_write(payload: bytes) -> bytes:
    """A frame from fields, header by header, each checksum summed by the loop."""
    options = struct.pack("!BBBBII", 1, 1, 8, 10, 7, 8)
    tcp = struct.pack("!HHIIBBHHH", 80, 5000, 1, 2, 0x80, 0x18, 501, 0, 0) + options
    pseudo = SRC + DST + struct.pack("!BBH", 0, 6, len(tcp) + len(payload))
    cksum = 0xFFFF ^ loop_sum(pseudo + tcp + payload)
    tcp = tcp[:16] + struct.pack("!H", cksum) + tcp[18:]
    fields = (0x45, 0, 20 + len(tcp) + len(payload), 9, IP_DF, 64, 6, 0, SRC, DST)
    ip = struct.pack("!BBHHHBBH4s4s", *fields)
    ip = ip[:10] + struct.pack("!H", 0xFFFF ^ loop_sum(ip)) + ip[12:]
    return struct.pack("!6s6sH", MAC1, MAC2, 0x0800) + ip + tcp + payload


# Other packages ----------------------------------------------------------------------------


def scapy_rows(payload: bytes, frame: bytes) -> tuple[Work, Work]:
    """Reading and writing with scapy."""
    from scapy.layers.inet import IP, TCP
    from scapy.layers.l2 import Ether
    from scapy.packet import Raw

    def write() -> bytes:
        tcp = TCP(
            sport=80,
            dport=5000,
            seq=1,
            ack=2,
            flags="PA",
            window=501,
            options=[("NOP", None), ("NOP", None), ("Timestamp", (7, 8))],
        )
        ip = IP(src="10.9.0.1", dst="10.9.0.2", id=9, flags="DF")
        ether = Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02")
        return bytes(ether / ip / tcp / Raw(payload))

    assert write() == frame, "scapy and dfuser must write the same packet"
    return lambda: Ether(frame)[TCP].options, write


def dpkt_rows(payload: bytes, frame: bytes) -> tuple[Work, Work] | None:
    """Reading and writing with dpkt, or None where it is not installed."""
    try:
        from dpkt.ethernet import Ethernet
        from dpkt.ip import IP
        from dpkt.tcp import TCP, parse_opts
    except ImportError:
        return None
    options = struct.pack("!BBBBII", 1, 1, 8, 10, 7, 8)

    def write() -> bytes:
        tcp = TCP(
            sport=80,
            dport=5000,
            seq=1,
            ack=2,
            off=8,
            flags=0x18,
            win=501,
            opts=options,
            data=payload,
        )
        ip = IP(src=SRC, dst=DST, p=6, id=9, df=1, ttl=64, data=tcp)
        return bytes(Ethernet(dst=MAC1, src=MAC2, type=0x0800, data=ip))

    assert write() == frame, "dpkt and dfuser must write the same packet"
    return lambda: parse_opts(Ethernet(frame).data.data.opts), write


# Checksum variants -------------------------------------------------------------------------


def variants() -> dict[str, Callable[[bytes], int]]:
    """Ways to sum the words of whole 8 bytes: the same work, byte order and folding aside."""
    from scapy.utils import checksum

    return {
        "dfuser": in_sum,
        "int % 65535": lambda data: int.from_bytes(data, "big") % 65535,
        "cast Q": lambda data: sum(memoryview(data).cast("Q")) % 65535,
        "array Q": lambda data: sum(array("Q", data)) % 65535,
        "struct loop": loop_sum,
        "scapy": checksum,
    }


# Measuring ---------------------------------------------------------------------------------


def repeated(work: Work, count: int) -> Callable[[], int]:
    """A body for the harness: the work, `count` times."""

    def body() -> int:
        for _ in range(count):
            work()
        return count

    return body


def bodies() -> dict[str, dict[str, tuple[Work, int]]]:
    """What every row runs on every contestant, and how often in a round."""
    table: dict[str, dict[str, tuple[Work, int]]] = {}
    for size in (0, 1448):
        payload = os.urandom(size)
        frame = ours_write(payload)
        assert naive_write(payload) == frame
        assert pack(ours_read(frame)[1]) == frame[14:34]
        scapy_read, scapy_write = scapy_rows(payload, frame)
        reading: dict[str, tuple[Work, int]] = {
            "dfuser": (lambda f=frame: ours_read(f), 2000),  # type: ignore[misc]
            "naive": (lambda f=frame: NaiveEther(f), 1000),  # type: ignore[misc]
            "scapy": (scapy_read, 50),
        }
        writing: dict[str, tuple[Work, int]] = {
            "dfuser": (lambda p=payload: ours_write(p), 2000),  # type: ignore[misc]
            "naive": (lambda p=payload: naive_write(p), 1000),  # type: ignore[misc]
            "scapy": (scapy_write, 50),
        }
        if dpkt := dpkt_rows(payload, frame):
            reading["dpkt"], writing["dpkt"] = (dpkt[0], 500), (dpkt[1], 500)
        table[f"read {size}"], table[f"write {size}"] = reading, writing
    for size in SIZES:
        data = os.urandom(size & ~7)
        table[f"sum {len(data)}"] = {
            name: ((lambda f=function, d=data: f(d)), max(5, 200_000 // len(data)))  # type: ignore[misc]
            for name, function in variants().items()
        }
    return table


def report(rounds: Rounds) -> list[dict[str, object]]:
    """A line for each row and contestant."""
    lines: list[dict[str, object]] = []
    for line in rounds.summary("dfuser"):
        what, _, size = line.row.partition(" ")
        speed = int(size) / line.wall_us if what == "sum" else None
        lines.append(
            {
                "row": line.row,
                "contestant": line.contestant,
                "best_us": round(line.wall_us, 3),
                "times_dfuser": None if line.ratio is None else round(line.ratio, 2),
                "mb_per_s": None if speed is None else round(speed, 1),
            }
        )
    return lines


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    table, rounds = bodies(), Rounds()
    for number in range(options.rounds):
        for row, contestants in table.items():
            names = list(contestants)
            first = number % len(names)
            for name in names[first:] + names[:first]:
                work, count = contestants[name]
                rounds.measure(row, Contestant(name), repeated(work, count))
    lines = report(rounds)
    if options.json:
        json.dump(lines, sys.stdout, indent=2)
        print()
        return 0
    print(f"{'row':12} {'contestant':12} {'us':>9} {'MB/s':>8} {'times dfuser':>13}")
    for line in lines:
        speed = line["mb_per_s"] or ""
        print(
            f"{line['row']:12} {line['contestant']:12} {line['best_us']:>9} {speed:>8} "
            f"{line['times_dfuser']:>13}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
