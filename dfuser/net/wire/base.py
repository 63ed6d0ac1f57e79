"""What every protocol's two levels share: the error, the reasons, the buffers.

`WireError` is the only exception that reading bytes may raise, and the only one that emitting
a value may raise. It carries a `Why`: a name that counters can be kept by. Where DragonFly has
a counter for the event (ips_badhlen, tcps_rcvbadoff, udps_badlen ...) the reason bears that
counter's name, so the layer that drops the packet increments ``stat[error.why]`` and nothing
has to be translated. Where the sender must be told *where* a packet is wrong (ICMP parameter
problem), `at` is the offset of the wrong byte.

Counterpart: the drop paths of ip_lengthcheck (netinet/ip_demux.c), tcp_input, udp_input,
    icmp_input, ip6_input, and the statistics structures they count in.
Differs from DragonFly: a refused packet is an exception with a reason instead of a counter
    incremented on the way to ``m_freem``.
Token/lock order: takes none.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, Protocol

Buffer = bytes | bytearray | memoryview
#: What is written into: its length never changes here.
WriteBuffer = bytearray | memoryview

#: Makes a NamedTuple from all its fields in half the time that calling its class takes.
make = tuple.__new__


class Why(enum.StrEnum):
    """Reasons to refuse bytes or a value; the value is the counter's name."""

    #: A value that no packet can carry, or a buffer too small for it; only emitting raises it.
    ILLEGAL = "illegal"

    ETHER_TOOSHORT = "ether_tooshort"
    ARP_TOOSHORT = "arp_tooshort"
    VNET_TOOSHORT = "vnet_tooshort"
    VNET_BADGSO = "vnet_badgso"
    VNET_BADCSUM = "vnet_badcsum"

    IPS_TOOSHORT = "ips_tooshort"
    IPS_BADVERS = "ips_badvers"
    IPS_BADHLEN = "ips_badhlen"
    IPS_BADLEN = "ips_badlen"
    IPS_BADSUM = "ips_badsum"
    IPS_BADOPTIONS = "ips_badoptions"

    ICPS_TOOSHORT = "icps_tooshort"
    ICPS_CHECKSUM = "icps_checksum"
    ICPS_BADLEN = "icps_badlen"

    UDPS_HDROPS = "udps_hdrops"
    UDPS_BADLEN = "udps_badlen"
    UDPS_BADSUM = "udps_badsum"
    UDPS_NOSUM = "udps_nosum"

    TCPS_RCVSHORT = "tcps_rcvshort"
    TCPS_RCVBADOFF = "tcps_rcvbadoff"
    TCPS_RCVBADSUM = "tcps_rcvbadsum"

    IP6S_TOOSHORT = "ip6s_tooshort"
    IP6S_TOOSMALL = "ip6s_toosmall"
    IP6S_BADVERS = "ip6s_badvers"
    IP6S_BADOPTIONS = "ip6s_badoptions"
    IP6S_TOOMANYHDR = "ip6s_toomanyhdr"
    IP6S_BADNXT = "ip6s_badnxt"

    ICP6S_TOOSHORT = "icp6s_tooshort"
    ICP6S_CHECKSUM = "icp6s_checksum"
    ICP6S_BADLEN = "icp6s_badlen"
    ICP6S_BADCODE = "icp6s_badcode"
    ICP6S_BADNS = "icp6s_badns"
    ICP6S_BADNA = "icp6s_badna"
    ICP6S_BADREDIRECT = "icp6s_badredirect"
    ICP6S_ND_BADOPT = "icp6s_nd_badopt"
    MLD_BADGROUP = "mld_badgroup"

    PCAP_BADMAGIC = "pcap_badmagic"
    PCAP_BADLEN = "pcap_badlen"
    PCAP_BADBLOCK = "pcap_badblock"


class WireError(Exception):
    """Bytes that are no legal packet, or a value that no packet can carry.

    Attributes:
        why: the reason, named like DragonFly's counter of it.
        at: offset of the offending byte from the start of what was read, or None where no
            protocol asks for it.
    """

    def __init__(self, why: Why, text: str = "", at: int | None = None) -> None:
        """Make the error; it is raised by whoever finds the fault."""
        super().__init__(why, text)
        self.why: Final = why
        self.at: Final = at

    def __str__(self) -> str:
        text = self.args[1]
        return f"{self.why}: {text}" if text else str(self.why)


class Emitter(Protocol):
    """What `pack` needs of a value."""

    @property
    def wire_len(self) -> int:
        """Bytes that `emit` writes."""

    def emit(self, buf: WriteBuffer, start: int = 0) -> int:
        """Write the value at `start`; return the offset after it."""


def pack(value: Emitter) -> bytes:
    """The bytes of a value that needs nothing from outside to be emitted.

    Raises:
        WireError: ILLEGAL, the value has no bytes.
    """
    buf = bytearray(value.wire_len)
    value.emit(buf)
    return bytes(buf)


def illegal(text: str) -> WireError:
    """The error for a value that no packet can carry."""
    return WireError(Why.ILLEGAL, text)


def put(buf: WriteBuffer, start: int, data: Buffer) -> int:
    """Write bytes at an offset without ever growing the buffer; return the offset after them.

    Raises:
        WireError: ILLEGAL, the buffer ends too early.
    """
    end = start + len(data)
    if end > len(buf):
        raise illegal(f"{len(data)} bytes at {start} do not fit into {len(buf)}")
    buf[start:end] = data
    return end


def pack_into(layout: struct.Struct, buf: WriteBuffer, start: int, *fields: object) -> int:
    """Write fields at an offset; return the offset after them.

    Raises:
        WireError: ILLEGAL, a number does not fit its field or the buffer ends too early.
    """
    try:
        layout.pack_into(buf, start, *fields)
    except struct.error as error:
        raise illegal(str(error)) from None
    return start + layout.size


def need_len(name: str, data: Buffer, *sizes: int) -> None:
    """Refuse bytes of the wrong length: struct would cut or pad them silently.

    Raises:
        WireError: ILLEGAL, the length is none of `sizes`.
    """
    if len(data) not in sizes:
        raise illegal(f"{name} has {len(data)} bytes, not {' or '.join(map(str, sizes))}")


class View:
    """A range of a buffer known to hold one header: the first of the two levels.

    The constructor of each protocol's view checks every length once; after that each field is
    at a known offset inside the range and reading it cannot fail. A view does not copy and
    does not own: it must not outlive the buffer's contents.

    Attributes:
        buf: the buffer.
        start: offset of the header's first byte.
        data: offset of the first byte after the header.
        end: offset after the last byte that belongs to the packet.
    """

    __slots__ = ("buf", "data", "end", "start")

    buf: Buffer
    start: int
    data: int
    end: int

    @property
    def header(self) -> memoryview:
        """The header's bytes, not copied."""
        return memoryview(self.buf)[self.start : self.data]

    @property
    def payload(self) -> memoryview:
        """What follows the header inside the packet, not copied."""
        return memoryview(self.buf)[self.data : self.end]

    def __init__(self, buf: Buffer, start: int = 0, end: int | None = None) -> None:
        """Check the header at `start` of a packet that ends at `end`.

        Raises:
            WireError: too short, or its lengths contradict each other.
        """
        self.buf = buf
        self.start = self.data = start
        self.end = len(buf) if end is None else end

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.start}:{self.data}:{self.end}>"
