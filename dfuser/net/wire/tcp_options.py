"""Options of a TCP header, in order, with whatever nobody understands kept.

::

    one byte:  EOL 0, NOP 1
    others:    kind | length (of all) | data

A wrong option never costs a segment: DragonFly's tcp_dooptions skips an option of the wrong
length and stops at one that does not fit, and the segment goes on. So here

* an option of a known kind but the wrong length is a `TcpOptOther`, like an unknown kind;
* what cannot be walked over is the last option of the list, a `TcpOptBad`;
* EOL ends the list and is not part of it; the bytes behind it are ignored, and emitting pads
  with EOL to whole words.

The order of SACK blocks is kept: a first block below the acknowledgement, or inside the second,
is a DSACK (RFC 2883), and only the order tells.

`TcpOpt` is what the protocol wants to know: tcp_dooptions' summary of the list.

Counterpart: TCPOPT_* (netinet/tcp.h), struct tcpopt (netinet/tcp_var.h), tcp_dooptions
    (netinet/tcp_input.c).
Differs from DragonFly: parsing keeps the list, so that packets can be shown and rewritten;
    whether an echoed timestamp lies in the future is asked where the clock is, and whether a
    block is a DSACK where the acknowledgement is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple, Self

from dfuser.net.wire.base import Buffer, illegal, make

TCPOPT_EOL: Final = 0
TCPOPT_NOP: Final = 1
TCPOPT_MAXSEG: Final = 2
TCPOPT_WINDOW: Final = 3
TCPOPT_SACK_PERMITTED: Final = 4
TCPOPT_SACK: Final = 5
TCPOPT_TIMESTAMP: Final = 8
TCPOPT_SIGNATURE: Final = 19

TCPOLEN_MAXSEG: Final = 4
TCPOLEN_WINDOW: Final = 3
TCPOLEN_SACK_PERMITTED: Final = 2
TCPOLEN_SACK_BLOCK: Final = 8
TCPOLEN_TIMESTAMP: Final = 10
#: A timestamp behind two NOPs, as RFC 7323's appendix A lays it out.
TCPOLEN_TSTAMP_APPA: Final = 12

TCP_MAXOLEN: Final = 40
TCP_MAX_WINSHIFT: Final = 14

#: TOF_*: which options `TcpOpt` holds.
TOF_TS: Final = 0x0001
TOF_MSS: Final = 0x0010
TOF_SCALE: Final = 0x0020
TOF_SACK_PERMITTED: Final = 0x0040
TOF_SACK: Final = 0x0080

#: The first four bytes of the option list of nearly every segment: NOP, NOP, timestamp.
_TSTAMP_HDR: Final = b"\x01\x01\x08\x0a"

_SHORT: Final = struct.Struct("!BBH")
_BYTE: Final = struct.Struct("!BBB")
_STAMP: Final = struct.Struct("!BBII")
_TWO: Final = struct.Struct("!II")
_APPA: Final = struct.Struct("!4sII")

SackBlock = tuple[int, int]


class TcpOptNop(NamedTuple):
    """One byte between options."""

    kind: int = TCPOPT_NOP

    def pack(self) -> bytes:
        """The option's bytes."""
        return b"\x01"


class TcpOptMaxseg(NamedTuple):
    """The largest segment the sender wants to receive; legal on SYNs (RFC 9293, 3.7.1).

    Attributes:
        mss: bytes of payload.
    """

    mss: int
    kind: int = TCPOPT_MAXSEG

    def pack(self) -> bytes:
        """The option's bytes."""
        return _SHORT.pack(TCPOPT_MAXSEG, TCPOLEN_MAXSEG, self.mss)


class TcpOptWindow(NamedTuple):
    """The shift of the sender's window fields (RFC 7323, 2).

    Attributes:
        shift: as sent; more than TCP_MAX_WINSHIFT is legal and means that.
    """

    shift: int
    kind: int = TCPOPT_WINDOW

    def pack(self) -> bytes:
        """The option's bytes."""
        return _BYTE.pack(TCPOPT_WINDOW, TCPOLEN_WINDOW, self.shift)


class TcpOptSackPermitted(NamedTuple):
    """The sender understands SACK (RFC 2018, 2)."""

    kind: int = TCPOPT_SACK_PERMITTED

    def pack(self) -> bytes:
        """The option's bytes."""
        return b"\x04\x02"


class TcpOptSack(NamedTuple):
    """What arrived out of order (RFC 2018, 3), a duplicate first (RFC 2883).

    Attributes:
        blocks: pairs of the first sequence number and the one after the last, in wire order.
    """

    blocks: tuple[SackBlock, ...]
    kind: int = TCPOPT_SACK

    def pack(self) -> bytes:
        """The option's bytes."""
        size = 2 + TCPOLEN_SACK_BLOCK * len(self.blocks)
        return bytes((TCPOPT_SACK, size)) + b"".join(_TWO.pack(*block) for block in self.blocks)


class TcpOptTimestamp(NamedTuple):
    """A timestamp and the echo of one (RFC 7323, 3).

    Attributes:
        tsval: the sender's clock.
        tsecr: the newest value the sender has received; 0 unless ACK is set.
    """

    tsval: int
    tsecr: int
    kind: int = TCPOPT_TIMESTAMP

    def pack(self) -> bytes:
        """The option's bytes."""
        return _STAMP.pack(TCPOPT_TIMESTAMP, TCPOLEN_TIMESTAMP, self.tsval, self.tsecr)


class TcpOptOther(NamedTuple):
    """An unknown option, or a known one of the wrong length: preserved, without meaning.

    Attributes:
        kind: the option's number.
        data: what stands behind kind and length.
    """

    kind: int
    data: bytes

    def pack(self) -> bytes:
        """The option's bytes."""
        raw = bytes((self.kind, 2 + len(self.data))) + self.data
        if self.kind < 2 or not isinstance(_known(raw), TcpOptOther):
            raise illegal(f"option {self.kind} with {len(self.data)} bytes has its own class")
        return raw


class TcpOptBad(NamedTuple):
    """The end of a list that cannot be walked: an option longer than the rest, or of length 0.

    Attributes:
        data: everything from the wrong option on; ends with the header.
    """

    data: bytes
    kind: int = -1

    def pack(self) -> bytes:
        """The option's bytes."""
        data = self.data
        if not data or data[0] < 2 or (len(data) > 1 and 2 <= data[1] <= len(data)):
            raise illegal(f"{data.hex()} could be walked over")
        return data


TcpOption = (
    TcpOptNop
    | TcpOptMaxseg
    | TcpOptWindow
    | TcpOptSackPermitted
    | TcpOptSack
    | TcpOptTimestamp
    | TcpOptOther
    | TcpOptBad
)
NOP: Final = TcpOptNop()
SACK_PERMITTED: Final = TcpOptSackPermitted()


def _maxseg(raw: bytes) -> TcpOption | None:
    return TcpOptMaxseg(raw[2] << 8 | raw[3]) if len(raw) == TCPOLEN_MAXSEG else None


def _window(raw: bytes) -> TcpOption | None:
    return TcpOptWindow(raw[2]) if len(raw) == TCPOLEN_WINDOW else None


def _sack_permitted(raw: bytes) -> TcpOption | None:
    return SACK_PERMITTED if len(raw) == TCPOLEN_SACK_PERMITTED else None


def _sack(raw: bytes) -> TcpOption | None:
    if (len(raw) - 2) & 7:
        return None
    return TcpOptSack(tuple(_TWO.iter_unpack(raw[2:])))


def _timestamp(raw: bytes) -> TcpOption | None:
    if len(raw) != TCPOLEN_TIMESTAMP:
        return None
    return TcpOptTimestamp(*_TWO.unpack_from(raw, 2))


_PARSERS: Final[Mapping[int, Callable[[bytes], TcpOption | None]]] = MappingProxyType(
    {
        TCPOPT_MAXSEG: _maxseg,
        TCPOPT_WINDOW: _window,
        TCPOPT_SACK_PERMITTED: _sack_permitted,
        TCPOPT_SACK: _sack,
        TCPOPT_TIMESTAMP: _timestamp,
    }
)


def _known(raw: bytes) -> TcpOption:
    """The value of one whole option."""
    parser = _PARSERS.get(raw[0])
    option = parser(raw) if parser else None
    return option or TcpOptOther(raw[0], raw[2:])


def parse_options(raw: Buffer) -> tuple[TcpOption, ...]:
    """The options of a header; nothing is refused.

    Args:
        raw: what stands between the fixed header and the payload.
    """
    raw = bytes(raw)
    end = len(raw)
    if end == TCPOLEN_TSTAMP_APPA and raw[:4] == _TSTAMP_HDR:
        tsval, tsecr = _TWO.unpack_from(raw, 4)
        return (NOP, NOP, make(TcpOptTimestamp, (tsval, tsecr, TCPOPT_TIMESTAMP)))
    found: list[TcpOption] = []
    at = 0
    while at < end:
        kind = raw[at]
        if kind == TCPOPT_EOL:
            break
        if kind == TCPOPT_NOP:
            found.append(NOP)
            at += 1
            continue
        size = raw[at + 1] if at + 1 < end else 0
        if size < 2 or at + size > end:
            found.append(TcpOptBad(raw[at:]))
            break
        found.append(_known(raw[at : at + size]))
        at += size
    return tuple(found)


def emit_options(options: Sequence[TcpOption]) -> bytes:
    """The bytes of a list: whole words, padded with EOL.

    Raises:
        WireError: ILLEGAL, more than 40 bytes, an option that is none, or a `TcpOptBad` that
            does not end the header.
    """
    raw = b""
    bad = False
    if len(options) == 3 and options[0] == options[1] == NOP:
        stamp = options[2]
        # Nearly every segment: not worth a loop.
        if type(stamp) is TcpOptTimestamp and stamp.kind == TCPOPT_TIMESTAMP:
            try:
                return _APPA.pack(_TSTAMP_HDR, stamp.tsval, stamp.tsecr)
            except struct.error as error:
                raise illegal(str(error)) from None
    for option in options:
        if bad:
            raise illegal("nothing can follow an option that cannot be walked over")
        try:
            one = option.pack()
        except (struct.error, ValueError, TypeError) as error:
            raise illegal(f"{option}: {error}") from None
        bad = isinstance(option, TcpOptBad)
        if option.kind != (-1 if bad else one[0]):
            raise illegal(f"{option} is not of kind {option.kind}")
        raw += one
    if bad and len(raw) & 3:
        raise illegal("an option that cannot be walked over ends a header of whole words")
    raw += bytes(-len(raw) % 4)
    if len(raw) > TCP_MAXOLEN:
        raise illegal(f"{len(raw)} bytes of options")
    return raw


class TcpOpt(NamedTuple):
    """What a segment's options say to the protocol. Counterpart: struct tcpopt.

    Attributes:
        flags: TOF_*: which of the others were given.
        mss: with TOF_MSS.
        requested_s_scale: with TOF_SCALE, at most TCP_MAX_WINSHIFT.
        tsval: with TOF_TS.
        tsecr: with TOF_TS.
        sackblocks: with TOF_SACK, in wire order.
        badsack: a block was empty or reversed, so all were discarded (tcps_rcvbadsackopt).
    """

    flags: int = 0
    mss: int = 0
    requested_s_scale: int = 0
    tsval: int = 0
    tsecr: int = 0
    sackblocks: tuple[SackBlock, ...] = ()
    badsack: bool = False

    @classmethod
    def of(cls, options: Iterable[TcpOption], *, is_syn: bool) -> Self:
        """Summarise the options of a segment; of two equal kinds the last counts.

        Args:
            options: of the segment.
            is_syn: whether SYN is set; only then MSS, scale and SACK-permitted mean anything.
        """
        flags = mss = scale = tsval = tsecr = 0
        blocks: tuple[SackBlock, ...] = ()
        badsack = False
        for option in options:
            if isinstance(option, TcpOptTimestamp):
                flags |= TOF_TS
                tsval, tsecr = option.tsval, option.tsecr
            elif isinstance(option, TcpOptSack):
                # SEQ_LEQ(end, start): the distance, as a signed number, is not positive.
                wrong = any(not 0 < (end - start) & 0xFFFFFFFF < 1 << 31
                            for start, end in option.blocks)  # fmt: skip
                badsack |= wrong
                blocks = () if wrong else option.blocks
                flags = flags & ~TOF_SACK if wrong else flags | TOF_SACK
            elif is_syn and isinstance(option, TcpOptMaxseg):
                flags |= TOF_MSS
                mss = option.mss
            elif is_syn and isinstance(option, TcpOptWindow):
                flags |= TOF_SCALE
                scale = min(option.shift, TCP_MAX_WINSHIFT)
            elif is_syn and isinstance(option, TcpOptSackPermitted):
                flags |= TOF_SACK_PERMITTED
        return cls(flags, mss, scale, tsval, tsecr, blocks, badsack)
