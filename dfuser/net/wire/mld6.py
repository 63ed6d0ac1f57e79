"""Multicast listener discovery: which groups does anybody on this link listen to?

::

    v1, 24 bytes:       max delay 2 | reserved 2 | group 16
    v2 query, from 28:  max code 2  | reserved 2 | group 16 | S QRV 1 | QQIC 1 | n 2 | n sources
    v2 report:          reserved 2  | n 2 | n records
       a record:        type 1 | aux words 1 | n 2 | group 16 | n sources | aux data

Query, report and done of version 1 (RFC 2710) are what DragonFly speaks; version 2 (RFC 3810)
is on every link today. A query's version is its length: 24 is 1, 28 and more is 2, anything
between is refused (RFC 3810, 8.1). Bytes behind what a message needs are covered by the
checksum and otherwise ignored.

Counterpart: struct mld_hdr (netinet/icmp6.h), mld6_input (netinet6/mld6.c).
Differs from DragonFly: version 2, which has no counterpart there.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

import attrs

from dfuser.net.wire.addr import in6_is_addr_multicast
from dfuser.net.wire.base import Why, WireError, illegal, need_len
from dfuser.net.wire.icmp6_message import Icmp6Repr, Icmp6Type, check_code, check_len

MLD_HDR_LEN: Final = 24
MLD_V2_QUERY_LEN: Final = 28

_V1: Final = struct.Struct("!H2x16s")
_V2_QUERY: Final = struct.Struct("!H2x16sBBH")
_COUNT: Final = struct.Struct("!2xH")
_RECORD: Final = struct.Struct("!BBH16s")


class MldRecordType(enum.IntEnum):
    """Types of records in a version 2 report (RFC 3810, 5.2.12)."""

    MODE_IS_INCLUDE = 1
    MODE_IS_EXCLUDE = 2
    CHANGE_TO_INCLUDE_MODE = 3
    CHANGE_TO_EXCLUDE_MODE = 4
    ALLOW_NEW_SOURCES = 5
    BLOCK_OLD_SOURCES = 6


@attrs.frozen(kw_only=True)
class MldMessage(Icmp6Repr):
    """Query, report or done of version 1. Counterpart: struct mld_hdr.

    Attributes:
        maxdelay: of a query: milliseconds within which listeners shall answer.
        addr: the group, 16 bytes; the unspecified address in a general query.
    """

    types = frozenset(
        (Icmp6Type.LISTENER_QUERY, Icmp6Type.LISTENER_REPORT, Icmp6Type.LISTENER_DONE)
    )
    no_code = True

    code: int = 0
    maxdelay: int = 0
    addr: bytes

    @classmethod
    def of(cls, kind: int, code: int, body: bytes) -> MldMessage:
        """Read what stands behind the checksum.

        Raises:
            WireError: ICP6S_BADCODE, ICP6S_BADLEN, MLD_BADGROUP.
        """
        check_code(code)
        check_len(body, MLD_HDR_LEN)
        maxdelay, addr = _V1.unpack_from(body)
        _check_group(kind, addr)
        return cls(type=kind, maxdelay=maxdelay, addr=addr)

    def body(self) -> bytes:
        """What stands behind the checksum."""
        _legal_group(self.type, self.addr)
        return _V1.pack(self.maxdelay, self.addr)


@attrs.frozen(kw_only=True)
class MldQueryV2(Icmp6Repr):
    """A query of version 2.

    Attributes:
        maxcode: the delay as it is encoded; `maxdelay` decodes it.
        addr: the group, 16 bytes; the unspecified address in a general query.
        suppress: whether routers shall not adjust their timers (S).
        qrv: the querier's robustness, 0..7.
        qqic: the querier's interval as it is encoded.
        sources: addresses asked about, 16 bytes each.
    """

    types = frozenset((Icmp6Type.LISTENER_QUERY,))
    no_code = True

    type: int = Icmp6Type.LISTENER_QUERY
    code: int = 0
    maxcode: int
    addr: bytes
    suppress: bool = False
    qrv: int = 2
    qqic: int = 125
    sources: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, kind: int, code: int, body: bytes) -> MldQueryV2 | MldMessage:
        """Read a query of either version.

        Raises:
            WireError: ICP6S_BADCODE, ICP6S_BADLEN, MLD_BADGROUP.
        """
        if len(body) + 4 <= MLD_HDR_LEN:
            return MldMessage.of(kind, code, body)
        check_code(code)
        check_len(body, MLD_V2_QUERY_LEN)
        maxcode, addr, flags, qqic, count = _V2_QUERY.unpack_from(body)
        _check_group(kind, addr)
        return cls(
            maxcode=maxcode,
            addr=addr,
            suppress=bool(flags & 8),
            qrv=flags & 7,
            qqic=qqic,
            sources=_sources(body, _V2_QUERY.size, count),
        )

    @property
    def maxdelay(self) -> int:
        """Milliseconds within which listeners shall answer (RFC 3810, 5.1.3)."""
        if self.maxcode < 32768:
            return self.maxcode
        return (self.maxcode & 0xFFF | 0x1000) << ((self.maxcode >> 12 & 7) + 3)

    @property
    def interval(self) -> int:
        """Seconds between general queries (RFC 3810, 5.1.9)."""
        if self.qqic < 128:
            return self.qqic
        return (self.qqic & 15 | 16) << ((self.qqic >> 4 & 7) + 3)

    def body(self) -> bytes:
        """What stands behind the checksum."""
        _legal_group(self.type, self.addr)
        if not 0 <= self.qrv <= 7:
            raise illegal(f"a robustness of {self.qrv}")
        flags = self.suppress << 3 | self.qrv
        fixed = _V2_QUERY.pack(self.maxcode, self.addr, flags, self.qqic, len(self.sources))
        return fixed + _join(self.sources)


class MldRecord(NamedTuple):
    """What a listener wants to hear of one group.

    Attributes:
        type: an `MldRecordType`; receivers ignore a record of another.
        addr: the group, 16 bytes.
        sources: addresses of 16 bytes.
        aux: auxiliary data, whole words; version 2 defines none.
    """

    type: int
    addr: bytes
    sources: tuple[bytes, ...] = ()
    aux: bytes = b""


@attrs.frozen(kw_only=True)
class MldReportV2(Icmp6Repr):
    """A report of version 2.

    Attributes:
        records: one a group or change.
    """

    types = frozenset((Icmp6Type.LISTENER_REPORT_V2,))
    no_code = True

    type: int = Icmp6Type.LISTENER_REPORT_V2
    code: int = 0
    records: tuple[MldRecord, ...]

    @classmethod
    def of(cls, _kind: int, code: int, body: bytes) -> MldReportV2:
        """Read what stands behind the checksum.

        Raises:
            WireError: ICP6S_BADCODE, ICP6S_BADLEN.
        """
        check_code(code)
        records = []
        at = 4
        for _ in range(_COUNT.unpack_from(body)[0]):
            check_len(body, 4 + at + _RECORD.size)
            kind, words, count, addr = _RECORD.unpack_from(body, at)
            sources = _sources(body, at + _RECORD.size, count)
            at += _RECORD.size + 16 * count
            check_len(body, 4 + at + 4 * words)
            records.append(MldRecord(kind, addr, sources, body[at : at + 4 * words]))
            at += 4 * words
        return cls(records=tuple(records))

    def body(self) -> bytes:
        """What stands behind the checksum."""
        raw = [_COUNT.pack(len(self.records))]
        for kind, addr, sources, aux in self.records:
            need_len("addr", addr, 16)
            if len(aux) & 3:
                raise illegal(f"{len(aux)} bytes of auxiliary data")
            raw.append(_RECORD.pack(kind, len(aux) >> 2, len(sources), addr))
            raw.append(_join(sources) + aux)
        return b"".join(raw)


def _sources(body: bytes, at: int, count: int) -> tuple[bytes, ...]:
    """Addresses from an offset on."""
    end = at + 16 * count
    check_len(body, 4 + end)
    return tuple(body[i : i + 16] for i in range(at, end, 16))


def _join(sources: tuple[bytes, ...]) -> bytes:
    """The bytes of addresses."""
    for source in sources:
        need_len("source", source, 16)
    return b"".join(sources)


def _group_ok(kind: int, addr: bytes) -> bool:
    """Whether a message of this type can be about this address."""
    general = kind == Icmp6Type.LISTENER_QUERY and not any(addr)
    return general or in6_is_addr_multicast(addr)


def _check_group(kind: int, addr: bytes) -> None:
    """Refuse a message about an address that is no group."""
    if not _group_ok(kind, addr):
        raise WireError(Why.MLD_BADGROUP)


def _legal_group(kind: int, addr: bytes) -> None:
    """Refuse to emit a message about an address that is no group."""
    need_len("addr", addr, 16)
    if not _group_ok(kind, addr):
        raise illegal("not about a group")
