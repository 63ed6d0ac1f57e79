"""pcapng files: several interfaces, comments, counters of what was dropped.

::

    block:    type 4 | length 4 | body, padded to words | length 4
    options:  code 2 | length 2 | value, padded to words | ... | 0 | 0
    section header:   0x0A0D0D0A  byte order magic, version, section length, options
    interface:        1           link type, snap length, options (name, resolution ...)
    enhanced packet:  6           interface, time in the interface's units, lengths, data, options
    simple packet:    3           length, data
    statistics:       5           interface, time, options (received, dropped ...)

A file is one section or more, each in the byte order of whoever wrote it. Blocks of other types
are an `NgOther`: kept, as the format asks of readers. Reading eats bytes in pieces of any size
(`NgReader.receive`); `NgReader.when_ns` knows each interface's clock.

Counterpart: none in the kernel; the format of draft-ietf-opsawg-pcapng, which tcpdump and
    wireshark read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import ClassVar, Final

import attrs

from dfuser.net.wire.base import Buffer, Why, WireError, illegal
from dfuser.net.wire.pcap import MAXIMUM_SNAPLEN, LinkType, PcapPacket

NG_SHB: Final = 0x0A0D0D0A
NG_IDB: Final = 1
NG_SPB: Final = 3
NG_ISB: Final = 5
NG_EPB: Final = 6
NG_BYTE_ORDER_MAGIC: Final = 0x1A2B3C4D

OPT_ENDOFOPT: Final = 0
OPT_COMMENT: Final = 1
SHB_USERAPPL: Final = 4
IF_NAME: Final = 2
IF_DESCRIPTION: Final = 3
IF_TSRESOL: Final = 9
IF_TSOFFSET: Final = 14
ISB_IFRECV: Final = 4
ISB_IFDROP: Final = 5

#: The longest block that is read; wireshark's limit too.
NG_MAX_BLOCK: Final = 16 * 1024 * 1024
#: Most interfaces of a section that are remembered.
NG_MAX_INTERFACES: Final = 4096

NgOptions = tuple[tuple[int, bytes], ...]


def _pad(raw: bytes) -> bytes:
    """Bytes with zeroes up to a whole word."""
    return raw + bytes(-len(raw) % 4)


def pack_options(options: Iterable[tuple[int, bytes]], order: str) -> bytes:
    """The bytes of options, closed by the end option if there are any."""
    raw = b"".join(
        struct.pack(order + "HH", code, len(value)) + _pad(value) for code, value in options
    )
    return raw + bytes(4) if raw else b""


def parse_options(raw: bytes, order: str) -> NgOptions:
    """The options at the end of a block.

    Raises:
        WireError: PCAP_BADBLOCK, an option longer than the block.
    """
    found = []
    at = 0
    while at + 4 <= len(raw):
        code, size = struct.unpack_from(order + "HH", raw, at)
        if code == OPT_ENDOFOPT:
            break
        at += 4
        if at + size > len(raw):
            raise WireError(Why.PCAP_BADBLOCK, f"option {code} of {size} bytes")
        found.append((code, raw[at : at + size]))
        at += size + -size % 4
    return tuple(found)


@attrs.frozen
class NgBlock:
    """A block; the subclasses are the kinds."""

    type: ClassVar[int] = -1

    def body(self, order: str) -> bytes:
        """What stands between the two lengths."""
        raise illegal("a block of no kind")

    def kind(self) -> int:
        """The block's type."""
        return self.type

    def pack(self, order: str = "<") -> bytes:
        """The block's bytes in a byte order.

        Raises:
            WireError: ILLEGAL, a field out of range or a block longer than any reader takes.
        """
        try:
            body = _pad(self.body(order))
            size = 12 + len(body)
            if size > NG_MAX_BLOCK:
                raise illegal(f"a block of {size} bytes")
            return struct.pack(order + "II", self.kind(), size) + body + struct.pack(
                order + "I", size
            )  # fmt: skip
        except struct.error as error:
            raise illegal(str(error)) from None


@attrs.frozen
class NgSection(NgBlock):
    """Section header: begins a file, and begins it anew wherever it stands.

    Attributes:
        options: SHB_USERAPPL and the like.
        length: bytes of the section, or -1 if the writer did not know.
        minor: of the version, whose major number is 1.
    """

    type = NG_SHB

    options: NgOptions = ()
    length: int = -1
    minor: int = 0

    @classmethod
    def of(cls, body: bytes, order: str) -> NgSection:
        """Read what stands between the lengths."""
        _magic, major, minor, length = struct.unpack_from(order + "IHHq", body)
        if major != 1:
            raise WireError(Why.PCAP_BADMAGIC, f"version {major}")
        return cls(parse_options(body[16:], order), length, minor)

    def body(self, order: str) -> bytes:
        """What stands between the lengths."""
        head = struct.pack(order + "IHHq", NG_BYTE_ORDER_MAGIC, 1, self.minor, self.length)
        return head + pack_options(self.options, order)


@attrs.frozen
class NgInterface(NgBlock):
    """Interface description; interfaces of a section are numbered in order.

    Attributes:
        linktype: a `LinkType` or another.
        snaplen: most bytes captured of each packet; 0 for no limit.
        options: IF_NAME, IF_TSRESOL and the like.
    """

    type = NG_IDB

    linktype: int = LinkType.EN10MB
    snaplen: int = MAXIMUM_SNAPLEN
    options: NgOptions = ()

    @classmethod
    def named(cls, name: str, linktype: int = LinkType.EN10MB) -> NgInterface:
        """An interface with a name and a clock of nanoseconds."""
        options = ((IF_NAME, name.encode()), (IF_TSRESOL, b"\x09"))
        return cls(linktype, MAXIMUM_SNAPLEN, options)

    @classmethod
    def of(cls, body: bytes, order: str) -> NgInterface:
        """Read what stands between the lengths."""
        linktype, snaplen = struct.unpack_from(order + "H2xI", body)
        return cls(linktype, snaplen, parse_options(body[8:], order))

    def body(self, order: str) -> bytes:
        """What stands between the lengths."""
        head = struct.pack(order + "H2xI", self.linktype, self.snaplen)
        return head + pack_options(self.options, order)

    def when_ns(self, stamp: int, order: str) -> int:
        """Nanoseconds since 1970 of a time in this interface's units."""
        options = dict(self.options)
        resolution = options.get(IF_TSRESOL, b"\x06")[:1] or b"\x06"
        power = resolution[0] & 0x7F
        units = 2**power if resolution[0] & 0x80 else 10**power
        raw = options.get(IF_TSOFFSET, b"")
        offset = struct.unpack(order + "q", raw)[0] if len(raw) == 8 else 0
        return int(offset * 1_000_000_000 + stamp * 1_000_000_000 // units)


@attrs.frozen
class NgPacket(NgBlock):
    """Enhanced packet.

    Attributes:
        interface: number of the interface in its section.
        stamp: time in the interface's units, 64 bits.
        data: what was captured.
        wire_len: how long the packet was on the wire.
        options: comments and the like.
    """

    type = NG_EPB

    interface: int
    stamp: int
    data: bytes
    wire_len: int
    options: NgOptions = ()

    @classmethod
    def of(cls, body: bytes, order: str) -> NgPacket:
        """Read what stands between the lengths."""
        interface, high, low, size, wire_len = struct.unpack_from(order + "IIIII", body)
        if 20 + size > len(body):
            raise WireError(Why.PCAP_BADBLOCK, f"a packet of {size} bytes")
        options = parse_options(body[20 + size + -size % 4 :], order)
        return cls(interface, high << 32 | low, body[20 : 20 + size], wire_len, options)

    def body(self, order: str) -> bytes:
        """What stands between the lengths."""
        stamp = (self.stamp >> 32, self.stamp & 0xFFFFFFFF)
        lengths = (len(self.data), self.wire_len)
        head = struct.pack(order + "IIIII", self.interface, *stamp, *lengths)
        return head + _pad(self.data) + pack_options(self.options, order)


@attrs.frozen
class NgSimplePacket(NgBlock):
    """Simple packet: of interface 0, without a time.

    Attributes:
        wire_len: how long the packet was on the wire.
        data: what was captured, with the padding to whole words, which only the interface's
            snap length can tell from data if the packet was cut.
    """

    type = NG_SPB

    wire_len: int
    data: bytes

    @classmethod
    def of(cls, body: bytes, order: str) -> NgSimplePacket:
        """Read what stands between the lengths."""
        wire_len = struct.unpack_from(order + "I", body)[0]
        return cls(wire_len, body[4 : 4 + wire_len])

    def body(self, order: str) -> bytes:
        """What stands between the lengths."""
        if len(self.data) > self.wire_len or (
            self.wire_len > len(self.data) and len(self.data) & 3
        ):
            raise illegal(f"{len(self.data)} bytes of a packet of {self.wire_len}")
        return struct.pack(order + "I", self.wire_len) + self.data


@attrs.frozen
class NgStatistics(NgBlock):
    """Interface statistics.

    Attributes:
        interface: number of the interface in its section.
        stamp: time in the interface's units, 64 bits.
        options: ISB_IFRECV, ISB_IFDROP and the like, 64 bit numbers in the file's order.
    """

    type = NG_ISB

    interface: int
    stamp: int
    options: NgOptions = ()

    @classmethod
    def of(cls, body: bytes, order: str) -> NgStatistics:
        """Read what stands between the lengths."""
        interface, high, low = struct.unpack_from(order + "III", body)
        return cls(interface, high << 32 | low, parse_options(body[12:], order))

    def body(self, order: str) -> bytes:
        """What stands between the lengths."""
        stamp = (self.stamp >> 32, self.stamp & 0xFFFFFFFF)
        return struct.pack(order + "III", self.interface, *stamp) + pack_options(
            self.options, order
        )


@attrs.frozen
class NgOther(NgBlock):
    """A block of any other type, kept as it is.

    Attributes:
        number: the block's type.
        raw: what stands between the lengths, whole words.
    """

    number: int
    raw: bytes

    def kind(self) -> int:
        """The block's type."""
        return self.number

    def body(self, order: str) -> bytes:
        """What stands between the lengths."""
        if self.number in _KINDS or len(self.raw) & 3:
            raise illegal(f"a block of type {self.number} with {len(self.raw)} bytes")
        return self.raw


_Parser = Callable[[bytes, str], NgBlock]
#: For each type the shortest body and what reads it.
_KINDS: Final[Mapping[int, tuple[int, _Parser]]] = MappingProxyType(
    {
        NG_SHB: (16, NgSection.of),
        NG_IDB: (8, NgInterface.of),
        NG_SPB: (4, NgSimplePacket.of),
        NG_ISB: (12, NgStatistics.of),
        NG_EPB: (20, NgPacket.of),
    }
)


class NgReader:
    """Reads a file that arrives in pieces.

    Invariants: holds at most one block, at most NG_MAX_BLOCK, and what arrived with it; after
    an error nothing more can be read.
    """

    __slots__ = ("_at", "_buf", "interfaces", "order")

    def __init__(self) -> None:
        """Start before the first byte."""
        self._buf = bytearray()
        self._at = 0
        #: Byte order of the section at hand; empty before the first.
        self.order = ""
        #: Interfaces of the section at hand.
        self.interfaces: list[NgInterface] = []

    def receive(self, data: Buffer) -> None:
        """Take the next bytes of the file; `next_block` hands out what they complete."""
        del self._buf[: self._at]
        self._at = 0
        self._buf += data

    @property
    def pending(self) -> int:
        """Bytes that belong to a block not yet complete; not 0 at the end of a cut file."""
        return len(self._buf) - self._at

    def packet(self, block: NgBlock) -> PcapPacket | None:
        """The packet in a block that was just read, with its time; None if it holds none.

        Raises:
            WireError: PCAP_BADBLOCK, of an interface that was not described.
        """
        if not isinstance(block, NgPacket | NgSimplePacket):
            return None
        number = block.interface if isinstance(block, NgPacket) else 0
        if number >= len(self.interfaces):
            raise WireError(Why.PCAP_BADBLOCK, f"interface {number} of {len(self.interfaces)}")
        interface = self.interfaces[number]
        if isinstance(block, NgPacket):
            when = interface.when_ns(block.stamp, self.order)
            return PcapPacket(when, block.data, block.wire_len)
        limit = interface.snaplen or block.wire_len
        return PcapPacket(0, block.data[:limit], block.wire_len)

    def next_block(self) -> NgBlock | None:
        """The next block, or None if not all of it has arrived.

        Raises:
            WireError: PCAP_BADMAGIC (no section header where one must be), PCAP_BADLEN,
                PCAP_BADBLOCK.
        """
        buf, at = self._buf, self._at
        if self.pending < 12:
            return None
        if buf[at : at + 4] == b"\x0a\x0d\x0d\x0a":
            self._new_section(bytes(buf[at + 8 : at + 12]))
        elif not self.order:
            raise WireError(Why.PCAP_BADMAGIC, bytes(buf[at : at + 4]).hex())
        kind, size = struct.unpack_from(self.order + "II", buf, at)
        if size < 12 or size & 3 or size > NG_MAX_BLOCK:
            raise WireError(Why.PCAP_BADLEN, f"a block of {size} bytes")
        if self.pending < size:
            return None
        if struct.unpack_from(self.order + "I", buf, at + size - 4)[0] != size:
            raise WireError(Why.PCAP_BADLEN, "a block's two lengths differ")
        block = self._block(kind, bytes(buf[at + 8 : at + size - 4]))
        self._at = at + size
        return block

    def _new_section(self, magic: bytes) -> None:
        """Learn the byte order of a section; forget the interfaces of the last one."""
        for order in "<>":
            if magic == struct.pack(order + "I", NG_BYTE_ORDER_MAGIC):
                self.order = order
                self.interfaces = []
                return
        raise WireError(Why.PCAP_BADMAGIC, magic.hex())

    def _block(self, kind: int, body: bytes) -> NgBlock:
        """The value of a block; remembers interfaces."""
        shortest, parser = _KINDS.get(kind, (0, None))
        if parser is None:
            return NgOther(kind, body)
        if len(body) < shortest:
            raise WireError(Why.PCAP_BADLEN, f"{len(body)} bytes in a block of type {kind}")
        block = parser(body, self.order)
        if isinstance(block, NgInterface):
            if len(self.interfaces) >= NG_MAX_INTERFACES:
                raise WireError(Why.PCAP_BADBLOCK, "too many interfaces")
            self.interfaces.append(block)
        return block
