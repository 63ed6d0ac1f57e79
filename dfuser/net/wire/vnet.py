"""The header in front of each frame of a TAP opened with IFF_VNET_HDR: offloads.

::

     0       1          2         4          6            8             10            12
    +-------+----------+---------+----------+------------+-------------+ - - - - - - +
    | flags | gso_type | hdr_len | gso_size | csum_start | csum_offset | num_buffers :
    +-------+----------+---------+----------+------------+-------------+ - - - - - - +

It says what the sender has left to do: complete the checksum from `csum_start` on (the field,
`csum_offset` bytes further, holds the pseudo header's sum), and cut the payload into segments
of `gso_size`. One such frame of 64 KiB costs what one of 1500 bytes does.

Numbers are little-endian: virtio 1.0's rule, and a TAP's own on every little-endian host
(elsewhere TUNSETVNETLE asks for it). With the 12 byte form (TUNSETVNETHDRSZ) comes the number
of merged buffers, which a TAP leaves 0.

Counterpart: struct virtio_net_hdr, struct virtio_net_hdr_mrg_rxbuf
    (dev/virtual/virtio/net/virtio_net.h); vtnet_rx_csum and vtnet_tx_offload are its users.
Differs from DragonFly: knows the flags and types that virtio got later and Linux's TAP sends
    (DATA_VALID, RSC_INFO, GSO_UDP_L4). What is said about the frame is checked against it.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple, Self

from dfuser.net.cksum import in_sum
from dfuser.net.wire.base import Buffer, View, Why, WireError, WriteBuffer, illegal, pack_into

VIRTIO_NET_HDR_LEN: Final = 10
VIRTIO_NET_HDR_MRG_LEN: Final = 12

VIRTIO_NET_HDR_F_NEEDS_CSUM: Final = 1
VIRTIO_NET_HDR_F_DATA_VALID: Final = 2
VIRTIO_NET_HDR_F_RSC_INFO: Final = 4
_FLAGS: Final = 7

VIRTIO_NET_HDR_GSO_NONE: Final = 0
VIRTIO_NET_HDR_GSO_TCPV4: Final = 1
VIRTIO_NET_HDR_GSO_UDP: Final = 3
VIRTIO_NET_HDR_GSO_TCPV6: Final = 4
VIRTIO_NET_HDR_GSO_UDP_L4: Final = 5
#: Added to a type: the TCP segments carry CWR, which only the first may keep.
VIRTIO_NET_HDR_GSO_ECN: Final = 0x80
_GSO_TYPES: Final = frozenset((0, 1, 3, 4, 5, 0x81, 0x84))

_HDR: Final = struct.Struct("<BBHHHH")
_MRG: Final = struct.Struct("<BBHHHHH")
_unpack_hdr = _HDR.unpack_from
_unpack_mrg = _MRG.unpack_from


class VnetView(View):
    """A header and, as payload, the frame it speaks of."""

    __slots__ = ()

    def __init__(
        self,
        buf: Buffer,
        start: int = 0,
        end: int | None = None,
        *,
        size: int = VIRTIO_NET_HDR_LEN,
    ) -> None:
        """Check the length.

        Args:
            buf: what holds header and frame.
            start: offset of the header.
            end: offset after the frame; the end of the buffer if None.
            size: bytes of the header, VIRTIO_NET_HDR_LEN or VIRTIO_NET_HDR_MRG_LEN.

        Raises:
            WireError: VNET_TOOSHORT.
        """
        if end is None:
            end = len(buf)
        if end - start < size:
            raise WireError(Why.VNET_TOOSHORT, f"{end - start} bytes")
        self.buf = buf
        self.start = start
        self.data = start + size
        self.end = end


class VnetRepr(NamedTuple):
    """What is left to do to a frame. Counterpart: struct virtio_net_hdr.

    Attributes:
        flags: VIRTIO_NET_HDR_F_*.
        gso_type: VIRTIO_NET_HDR_GSO_*.
        hdr_len: bytes of all headers of the frame; a hint.
        gso_size: bytes of payload in each segment; not 0 with a type.
        csum_start: where the bytes to sum begin in the frame.
        csum_offset: where, from there, the checksum belongs.
        num_buffers: buffers of a merged frame; None in the 10 byte form.
    """

    flags: int = 0
    gso_type: int = VIRTIO_NET_HDR_GSO_NONE
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    num_buffers: int | None = None

    @classmethod
    def parse(cls, view: VnetView) -> Self:
        """The value of a header; unknown flags are dropped, as virtio demands.

        Raises:
            WireError: VNET_BADGSO (an unknown type, or segments of no size), VNET_BADCSUM (a
                checksum outside of the frame).
        """
        if view.data - view.start == VIRTIO_NET_HDR_LEN:
            found = cls(*_unpack_hdr(view.buf, view.start))
        else:
            found = cls(*_unpack_mrg(view.buf, view.start))
        if found.flags & ~_FLAGS:
            found = found._replace(flags=found.flags & _FLAGS)
        if found.gso_type and not found._gso_ok():
            raise WireError(Why.VNET_BADGSO, f"type {found.gso_type}, size {found.gso_size}")
        if found.needs_csum:
            end = found.csum_start + found.csum_offset + 2
            if end > view.end - view.data:
                raise WireError(Why.VNET_BADCSUM, f"up to {end} in {view.end - view.data} bytes")
        return found

    def _gso_ok(self) -> bool:
        """Whether type and size of segments belong together."""
        return self.gso_type in _GSO_TYPES and (self.gso_size > 0 or not self.gso_type)

    @property
    def needs_csum(self) -> bool:
        """Whether a checksum is to be completed."""
        return bool(self.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)

    @property
    def wire_len(self) -> int:
        """Bytes of the header."""
        return VIRTIO_NET_HDR_LEN if self.num_buffers is None else VIRTIO_NET_HDR_MRG_LEN

    def segments(self, payload_len: int) -> int:
        """How many segments a payload is, for counting as TCP must; at least 1.

        Args:
            payload_len: bytes behind the transport header.
        """
        if not self.gso_type:
            return 1
        return max(1, -(-payload_len // self.gso_size))

    def complete(self, frame: WriteBuffer) -> None:
        """Do in software what NEEDS_CSUM asks of the device.

        Args:
            frame: the frame, without this header; its checksum field is overwritten.

        Raises:
            WireError: VNET_BADCSUM, the field is outside of the frame.
        """
        if not self.needs_csum:
            return
        at = self.csum_start + self.csum_offset
        if at + 2 > len(frame):
            raise WireError(Why.VNET_BADCSUM, f"{at} in {len(frame)} bytes")
        # A sum of zero would say "no checksum" in UDP; the other zero is equal.
        cksum = 0xFFFF ^ in_sum(memoryview(frame)[self.csum_start :]) or 0xFFFF
        frame[at] = cksum >> 8
        frame[at + 1] = cksum & 255

    def emit(self, buf: WriteBuffer, start: int = 0) -> int:
        """Write the header; return the offset of the frame.

        Raises:
            WireError: ILLEGAL, an unknown flag or type, segments of no size, or a field out
                of range.
        """
        if self.flags & ~_FLAGS or not self._gso_ok():
            raise illegal(f"{self}")
        if self.num_buffers is None:
            return pack_into(_HDR, buf, start, *self[:6])
        return pack_into(_MRG, buf, start, *self)
