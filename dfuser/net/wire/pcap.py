"""pcap files: what tcpdump has written for decades.

::

    file:    magic 4 | major 2 | minor 2 | zone 4 | sigfigs 4 | snaplen 4 | linktype 4
    packet:  seconds 4 | micro- or nanoseconds 4 | captured length 4 | wire length 4 | bytes

The magic number tells byte order and resolution. Writing makes bytes and reading eats them in
pieces of any size (`PcapReader.receive`), so that a file, a pipe or a socket can be at the
other end; nothing here opens one.

Counterpart: libpcap's savefile format, as used by DragonFly's tcpdump; DLT_* (net/bpf.h).
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

from dfuser.net.wire.base import Buffer, Why, WireError, illegal

#: libpcap's MAXIMUM_SNAPLEN: no packet in a sane file is longer.
MAXIMUM_SNAPLEN: Final = 262144
TCPDUMP_MAGIC: Final = 0xA1B2C3D4
NSEC_TCPDUMP_MAGIC: Final = 0xA1B23C4D
PCAP_VERSION_MAJOR: Final = 2
PCAP_VERSION_MINOR: Final = 4

_FILE: Final = "IHHiIII"
_PACKET: Final = "IIII"
_FILE_LEN: Final = 24
_PACKET_LEN: Final = 16


class LinkType(enum.IntEnum):
    """LINKTYPE_*: what the packets of a file begin with."""

    NULL = 0
    EN10MB = 1
    RAW = 101
    LOOP = 108
    BLUETOOTH_HCI_H4 = 187
    IPV4 = 228
    IPV6 = 229


class PcapPacket(NamedTuple):
    """One packet of a file.

    Attributes:
        when_ns: nanoseconds since 1970.
        data: what was captured.
        wire_len: how long the packet was on the wire.
    """

    when_ns: int
    data: bytes
    wire_len: int


class PcapFileRepr(NamedTuple):
    """The head of a file.

    Attributes:
        linktype: a `LinkType` or another.
        snaplen: most bytes captured of each packet.
        nanosecond: whether fractions are nanoseconds.
        order: ``<`` or ``>``.
    """

    linktype: int = LinkType.EN10MB
    snaplen: int = MAXIMUM_SNAPLEN
    nanosecond: bool = True
    order: str = "<"

    @classmethod
    def parse(cls, raw: Buffer) -> PcapFileRepr:
        """The value of the first 24 bytes of a file.

        Raises:
            WireError: PCAP_BADLEN, PCAP_BADMAGIC (no such file, or a version nobody knows).
        """
        if len(raw) < _FILE_LEN:
            raise WireError(Why.PCAP_BADLEN, f"{len(raw)} bytes")
        for order in "<>":
            magic, major, _minor, _zone, _digits, snaplen, linktype = struct.unpack_from(
                order + _FILE, raw
            )
            if magic in (TCPDUMP_MAGIC, NSEC_TCPDUMP_MAGIC) and major == PCAP_VERSION_MAJOR:
                # The upper bits say how long a frame check sequence is; no packet has one here.
                return cls(linktype & 0xFFFF, snaplen, magic == NSEC_TCPDUMP_MAGIC, order)
        raise WireError(Why.PCAP_BADMAGIC, bytes(raw[:4]).hex())

    def pack(self) -> bytes:
        """The file's first 24 bytes.

        Raises:
            WireError: ILLEGAL.
        """
        if self.order not in ("<", ">") or not 0 <= self.linktype <= 0xFFFF:
            raise illegal(f"{self}")
        magic = NSEC_TCPDUMP_MAGIC if self.nanosecond else TCPDUMP_MAGIC
        version = (PCAP_VERSION_MAJOR, PCAP_VERSION_MINOR)
        try:
            return struct.pack(
                self.order + _FILE, magic, *version, 0, 0, self.snaplen, self.linktype
            )
        except struct.error as error:
            raise illegal(str(error)) from None

    def packet(self, data: Buffer, when_ns: int, wire_len: int | None = None) -> bytes:
        """The bytes of one packet, cut at `snaplen`.

        Args:
            data: the packet.
            when_ns: nanoseconds since 1970; microsecond files lose the last three digits.
            wire_len: how long it was, if `data` is less than that.

        Raises:
            WireError: ILLEGAL, a time that the file cannot hold (it ends in 2106).
        """
        seconds, fraction = divmod(when_ns, 1_000_000_000)
        if not self.nanosecond:
            fraction //= 1000
        kept = bytes(data[: self.snaplen])
        length = len(data) if wire_len is None else wire_len
        try:
            head = struct.pack(self.order + _PACKET, seconds, fraction, len(kept), length)
        except struct.error as error:
            raise illegal(str(error)) from None
        return head + kept


class PcapReader:
    """Reads a file that arrives in pieces.

    Invariants: holds at most one packet and what arrived with it; after an error nothing more
    can be read, because where the next packet begins is unknown.
    """

    __slots__ = ("_at", "_buf", "head")

    def __init__(self) -> None:
        """Start before the first byte."""
        self._buf = bytearray()
        self._at = 0
        #: The head of the file, once it has arrived.
        self.head: PcapFileRepr | None = None

    def receive(self, data: Buffer) -> None:
        """Take the next bytes of the file; `next_packet` hands out what they complete."""
        del self._buf[: self._at]
        self._at = 0
        self._buf += data

    @property
    def pending(self) -> int:
        """Bytes that belong to a packet not yet complete; not 0 at the end of a cut file."""
        return len(self._buf) - self._at

    def next_packet(self) -> PcapPacket | None:
        """The next packet, or None if not all of it has arrived.

        Raises:
            WireError: PCAP_BADMAGIC, PCAP_BADLEN (a packet longer than any).
        """
        if self.head is None:
            if self.pending < _FILE_LEN:
                return None
            self.head = PcapFileRepr.parse(self._buf[:_FILE_LEN])
            self._at = _FILE_LEN
        if self.pending < _PACKET_LEN:
            return None
        order = self.head.order
        seconds, fraction, size, wire_len = struct.unpack_from(order + _PACKET, self._buf, self._at)
        if size > max(MAXIMUM_SNAPLEN, self.head.snaplen & 0xFFFFFF):
            raise WireError(Why.PCAP_BADLEN, f"a packet of {size} bytes")
        if self.pending < _PACKET_LEN + size:
            return None
        begin = self._at + _PACKET_LEN
        self._at = begin + size
        unit = 1 if self.head.nanosecond else 1000
        when = seconds * 1_000_000_000 + fraction * unit
        return PcapPacket(when, bytes(self._buf[begin : self._at]), wire_len)
