"""Options of neighbor discovery.

::

    +------+-----+------------------------
    | type | len | data...                      len in units of 8 bytes, type and len included
    +------+-----+------------------------

A length of 0, or one beyond the message, refuses the whole message (RFC 4861, 4.6). An option
of unknown type, or of a known type in a length that it cannot have, is an `NdOptOther`: kept,
and without meaning. DragonFly looks at `ND6_MAXNDOPT` options and one more
(net.inet6.icmp6.nd6_maxndopt) and ignores what follows; that rest is an `NdOptRest`, so that
it can be counted (icp6s_nd_toomanyopt) and shown.

Counterpart: struct nd_opt_*, ND_OPT_* (netinet/icmp6.h), nd6_option and nd6_options
    (netinet6/nd6.c).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import ClassVar, Final

import attrs

from dfuser.net.wire.base import Why, WireError, illegal, need_len

ND6_MAXNDOPT: Final = 10

ND_OPT_SOURCE_LINKADDR: Final = 1
ND_OPT_TARGET_LINKADDR: Final = 2
ND_OPT_PREFIX_INFORMATION: Final = 3
ND_OPT_REDIRECTED_HEADER: Final = 4
ND_OPT_MTU: Final = 5
ND_OPT_RDNSS: Final = 25
ND_OPT_DNSSL: Final = 31

ND_OPT_PI_FLAG_ONLINK: Final = 0x80
ND_OPT_PI_FLAG_AUTO: Final = 0x40

#: A lifetime that never ends.
ND6_INFINITE_LIFETIME: Final = 0xFFFFFFFF

_PREFIX: Final = struct.Struct("!BBII4x16s")
_MTU: Final = struct.Struct("!2xI")


@attrs.frozen
class NdOpt:
    """An option; the subclasses are the kinds. Counterpart: struct nd_opt_hdr."""

    types: ClassVar[frozenset[int]] = frozenset()

    type: int

    def body(self) -> bytes:
        """What stands behind type and length, whole units."""
        raise illegal("an option of no kind")

    def pack(self) -> bytes:
        """The option's bytes.

        Raises:
            WireError: ILLEGAL.
        """
        if self.types and self.type not in self.types:
            raise illegal(f"{type(self).__name__} is never of type {self.type}")
        try:
            body = self.body()
            size = 2 + len(body)
            if size & 7:
                raise illegal(f"an option of {size} bytes")
            return bytes((self.type, size >> 3)) + body
        except (struct.error, ValueError) as error:
            raise illegal(f"{self}: {error}") from None


@attrs.frozen
class NdOptLinkaddr(NdOpt):
    """SOURCE_LINKADDR and TARGET_LINKADDR: a link-layer address.

    Attributes:
        lladdr: the address with its padding: 6 bytes on Ethernet, or 8 more as often as needed.
    """

    types = frozenset((ND_OPT_SOURCE_LINKADDR, ND_OPT_TARGET_LINKADDR))

    lladdr: bytes

    @classmethod
    def of(cls, kind: int, body: bytes) -> NdOptLinkaddr:
        """Read what stands behind type and length."""
        return cls(kind, body)

    def body(self) -> bytes:
        """What stands behind type and length."""
        return self.lladdr


@attrs.frozen(kw_only=True)
class NdOptPrefix(NdOpt):
    """PREFIX_INFORMATION: addresses that are on this link, or may be made from it.

    Counterpart: struct nd_opt_prefix_info.

    Attributes:
        prefix: 16 bytes; those beyond the prefix's length mean nothing.
        prefix_len: bits; above 128 the receiver ignores the option.
        flags: ND_OPT_PI_FLAG_*.
        valid_time: seconds.
        preferred_time: seconds.
    """

    types = frozenset((ND_OPT_PREFIX_INFORMATION,))

    type: int = ND_OPT_PREFIX_INFORMATION
    prefix: bytes
    prefix_len: int
    flags: int = ND_OPT_PI_FLAG_ONLINK | ND_OPT_PI_FLAG_AUTO
    valid_time: int
    preferred_time: int

    @classmethod
    def of(cls, _kind: int, body: bytes) -> NdOptPrefix | None:
        """Read what stands behind type and length; None if that is too little or too much."""
        if len(body) != _PREFIX.size:
            return None
        size, flags, valid, preferred, prefix = _PREFIX.unpack(body)
        return cls(
            prefix=prefix,
            prefix_len=size,
            flags=flags,
            valid_time=valid,
            preferred_time=preferred,
        )

    def body(self) -> bytes:
        """What stands behind type and length."""
        need_len("prefix", self.prefix, 16)
        times = (self.valid_time, self.preferred_time)
        return _PREFIX.pack(self.prefix_len, self.flags, *times, self.prefix)


@attrs.frozen(kw_only=True)
class NdOptRedirected(NdOpt):
    """REDIRECTED_HEADER: the packet that a redirect is about. Counterpart: nd_opt_rd_hdr.

    Attributes:
        original: from its IPv6 header on, whole units of 8 bytes.
    """

    types = frozenset((ND_OPT_REDIRECTED_HEADER,))

    type: int = ND_OPT_REDIRECTED_HEADER
    original: bytes

    @classmethod
    def of(cls, _kind: int, body: bytes) -> NdOptRedirected:
        """Read what stands behind type and length."""
        return cls(original=body[6:])

    def body(self) -> bytes:
        """What stands behind type and length."""
        return bytes(6) + self.original


@attrs.frozen(kw_only=True)
class NdOptMtu(NdOpt):
    """MTU: what all on this link shall use. Counterpart: struct nd_opt_mtu.

    Attributes:
        mtu: bytes.
    """

    types = frozenset((ND_OPT_MTU,))

    type: int = ND_OPT_MTU
    mtu: int

    @classmethod
    def of(cls, _kind: int, body: bytes) -> NdOptMtu | None:
        """Read what stands behind type and length; None if that is too much."""
        return cls(mtu=_MTU.unpack(body)[0]) if len(body) == _MTU.size else None

    def body(self) -> bytes:
        """What stands behind type and length."""
        return _MTU.pack(self.mtu)


@attrs.frozen(kw_only=True)
class NdOptRdnss(NdOpt):
    """RDNSS: name servers (RFC 8106). Counterpart: struct nd_opt_rdnss.

    Attributes:
        lifetime: seconds.
        servers: addresses of 16 bytes, at least one.
    """

    types = frozenset((ND_OPT_RDNSS,))

    type: int = ND_OPT_RDNSS
    lifetime: int
    servers: tuple[bytes, ...]

    @classmethod
    def of(cls, _kind: int, body: bytes) -> NdOptRdnss | None:
        """Read what stands behind type and length; None if there is half a server, or none."""
        if len(body) < 22 or (len(body) - 6) & 15:
            return None
        servers = tuple(body[at : at + 16] for at in range(6, len(body), 16))
        return cls(lifetime=_MTU.unpack_from(body)[0], servers=servers)

    def body(self) -> bytes:
        """What stands behind type and length."""
        if not self.servers or any(len(server) != 16 for server in self.servers):
            raise illegal("one server at least, each of 16 bytes")
        return _MTU.pack(self.lifetime) + b"".join(self.servers)


@attrs.frozen(kw_only=True)
class NdOptDnssl(NdOpt):
    """DNSSL: domains to search (RFC 8106). Counterpart: struct nd_opt_dnssl.

    Attributes:
        lifetime: seconds.
        domains: in DNS encoding, padded with zeroes to whole units of 8 bytes.
    """

    types = frozenset((ND_OPT_DNSSL,))

    type: int = ND_OPT_DNSSL
    lifetime: int
    domains: bytes

    @classmethod
    def of(cls, _kind: int, body: bytes) -> NdOptDnssl | None:
        """Read what stands behind type and length; None if there is no domain."""
        if len(body) < 14:
            return None
        return cls(lifetime=_MTU.unpack_from(body)[0], domains=body[6:])

    def body(self) -> bytes:
        """What stands behind type and length."""
        if not self.domains:
            raise illegal("no domain")
        return _MTU.pack(self.lifetime) + self.domains


@attrs.frozen
class NdOptOther(NdOpt):
    """An option of unknown type, or of an impossible length: kept, without meaning.

    Attributes:
        data: what stands behind type and length.
    """

    data: bytes

    def body(self) -> bytes:
        """What stands behind type and length."""
        if not 0 <= self.type <= 255:
            raise illegal(f"type {self.type}")
        parser = _PARSERS.get(self.type)
        if parser and not len(self.data) + 2 & 7 and parser(self.type, self.data):
            raise illegal(f"an option of type {self.type} with its proper length")
        return self.data


@attrs.frozen(kw_only=True)
class NdOptRest(NdOpt):
    """What follows after more options than are looked at.

    Attributes:
        data: from the first option that was not looked at on, not empty.
    """

    type: int = -1
    data: bytes

    def pack(self) -> bytes:
        """The bytes as they are."""
        if not self.data or self.type != -1:
            raise illegal("the rest is empty")
        return self.data


_Parser = Callable[[int, bytes], NdOpt | None]
_PARSERS: Final[Mapping[int, _Parser]] = MappingProxyType(
    {
        ND_OPT_SOURCE_LINKADDR: NdOptLinkaddr.of,
        ND_OPT_TARGET_LINKADDR: NdOptLinkaddr.of,
        ND_OPT_PREFIX_INFORMATION: NdOptPrefix.of,
        ND_OPT_REDIRECTED_HEADER: NdOptRedirected.of,
        ND_OPT_MTU: NdOptMtu.of,
        ND_OPT_RDNSS: NdOptRdnss.of,
        ND_OPT_DNSSL: NdOptDnssl.of,
    }
)


def parse_options(raw: bytes) -> tuple[NdOpt, ...]:
    """The options at the end of a message.

    Raises:
        WireError: ICP6S_ND_BADOPT, a length of 0 or one beyond the message.
    """
    found: list[NdOpt] = []
    at, end = 0, len(raw)
    while at < end:
        if len(found) > ND6_MAXNDOPT:
            found.append(NdOptRest(data=raw[at:]))
            break
        size = raw[at + 1] << 3 if at + 1 < end else 0
        if size == 0 or at + size > end:
            raise WireError(Why.ICP6S_ND_BADOPT, f"an option of {size} bytes in {end - at}")
        kind, body = raw[at], raw[at + 2 : at + size]
        parser = _PARSERS.get(kind)
        option = parser(kind, body) if parser else None
        found.append(option or NdOptOther(kind, body))
        at += size
    return tuple(found)


def emit_options(options: Iterable[NdOpt]) -> bytes:
    """The bytes of a list of options.

    Raises:
        WireError: ILLEGAL, an option that is none, more of them than are looked at, or an
            `NdOptRest` elsewhere than behind those.
    """
    raw = []
    for index, option in enumerate(options):
        if isinstance(option, NdOptRest) != (index == ND6_MAXNDOPT + 1):
            raise illegal(f"option {index + 1} of {ND6_MAXNDOPT + 1}")
        if index > ND6_MAXNDOPT + 1:
            raise illegal("something behind the rest")
        raw.append(option.pack())
    return b"".join(raw)


def find_linkaddr(options: Iterable[NdOpt], kind: int) -> bytes | None:
    """The first link-layer address of a kind, as nd6_options keeps the first; or None."""
    for option in options:
        if isinstance(option, NdOptLinkaddr) and option.type == kind:
            return option.lladdr
    return None
