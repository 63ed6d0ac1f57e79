"""Neighbor discovery: router and neighbor solicitations and advertisements, redirects.

::

    RS   reserved 4                                                        options
    RA   hop limit, flags, router lifetime 2 | reachable 4 | retransmit 4  options
    NS   reserved 4 | target 16                                            options
    NA   flags 4    | target 16                                            options
    RD   reserved 4 | target 16 | destination 16                           options

What can be judged from the message alone is judged here, with DragonFly's counters: a code, a
target that is a group, a redirect of a group or to a router that is not named by its link-local
address. What needs the IPv6 header (a hop limit of 255, scopes, duplicate address detection's
unspecified source) is the business of nd6_ns_input and its relatives.

Counterpart: struct nd_router_solicit, nd_router_advert, nd_neighbor_solicit,
    nd_neighbor_advert, nd_redirect (netinet/icmp6.h); the first checks of nd6_ns_input,
    nd6_na_input (netinet6/nd6_nbr.c) and icmp6_redirect_input (netinet6/icmp6.c).
"""

from __future__ import annotations

import struct
from typing import Final

import attrs

from dfuser.net.wire.addr import in6_is_addr_linklocal, in6_is_addr_multicast
from dfuser.net.wire.base import Why, WireError, illegal, need_len
from dfuser.net.wire.icmp6_message import Icmp6Repr, Icmp6Type, check_code, check_len
from dfuser.net.wire.nd6_options import NdOpt, emit_options, parse_options

ND_RA_FLAG_MANAGED: Final = 0x80
ND_RA_FLAG_OTHER: Final = 0x40
ND_RA_FLAG_HA: Final = 0x20
ND_RA_FLAG_RTPREF_MASK: Final = 0x18
ND_RA_FLAG_RTPREF_HIGH: Final = 0x08
ND_RA_FLAG_RTPREF_MEDIUM: Final = 0x00
ND_RA_FLAG_RTPREF_LOW: Final = 0x18
ND_RA_FLAG_RTPREF_RSV: Final = 0x10

ND_NA_FLAG_ROUTER: Final = 0x80000000
ND_NA_FLAG_SOLICITED: Final = 0x40000000
ND_NA_FLAG_OVERRIDE: Final = 0x20000000
ND_NA_FLAG_MASK: Final = 0xE0000000

_ADVERT: Final = struct.Struct("!BBHII")
_FLAGS: Final = struct.Struct("!I")


@attrs.frozen(kw_only=True)
class NdRouterSolicit(Icmp6Repr):
    """ND_ROUTER_SOLICIT: routers, speak. Counterpart: struct nd_router_solicit.

    Attributes:
        options: the source's link-layer address, normally.
    """

    types = frozenset((Icmp6Type.ROUTER_SOLICIT,))
    no_code = True

    type: int = Icmp6Type.ROUTER_SOLICIT
    code: int = 0
    options: tuple[NdOpt, ...] = ()

    @classmethod
    def of(cls, _kind: int, code: int, body: bytes) -> NdRouterSolicit:
        """Read what stands behind the checksum.

        Raises:
            WireError: ICP6S_BADCODE, ICP6S_ND_BADOPT.
        """
        check_code(code)
        return cls(options=parse_options(body[4:]))

    def body(self) -> bytes:
        """What stands behind the checksum."""
        return bytes(4) + emit_options(self.options)


@attrs.frozen(kw_only=True)
class NdRouterAdvert(Icmp6Repr):
    """ND_ROUTER_ADVERT: I am a router. Counterpart: struct nd_router_advert.

    Attributes:
        curhoplimit: hop limit for packets of hosts; 0 says nothing.
        flags: ND_RA_FLAG_*.
        router_lifetime: seconds as default router; 0 for none.
        reachable: milliseconds; 0 says nothing.
        retransmit: milliseconds; 0 says nothing.
        options: prefixes, MTU, name servers.
    """

    types = frozenset((Icmp6Type.ROUTER_ADVERT,))
    no_code = True

    type: int = Icmp6Type.ROUTER_ADVERT
    code: int = 0
    curhoplimit: int = 0
    flags: int = 0
    router_lifetime: int
    reachable: int = 0
    retransmit: int = 0
    options: tuple[NdOpt, ...] = ()

    @classmethod
    def of(cls, _kind: int, code: int, body: bytes) -> NdRouterAdvert:
        """Read what stands behind the checksum.

        Raises:
            WireError: ICP6S_BADCODE, ICP6S_BADLEN, ICP6S_ND_BADOPT.
        """
        check_code(code)
        check_len(body, 16)
        hops, flags, lifetime, reachable, retransmit = _ADVERT.unpack_from(body)
        return cls(
            curhoplimit=hops,
            flags=flags,
            router_lifetime=lifetime,
            reachable=reachable,
            retransmit=retransmit,
            options=parse_options(body[12:]),
        )

    def body(self) -> bytes:
        """What stands behind the checksum."""
        times = (self.router_lifetime, self.reachable, self.retransmit)
        return _ADVERT.pack(self.curhoplimit, self.flags, *times) + emit_options(self.options)


@attrs.frozen(kw_only=True)
class NdNeighborSolicit(Icmp6Repr):
    """ND_NEIGHBOR_SOLICIT: who has this address? Counterpart: struct nd_neighbor_solicit.

    Attributes:
        target: the address asked for, 16 bytes, never a group's.
        options: the source's link-layer address, unless the source has no address yet.
    """

    types = frozenset((Icmp6Type.NEIGHBOR_SOLICIT,))
    no_code = True

    type: int = Icmp6Type.NEIGHBOR_SOLICIT
    code: int = 0
    target: bytes
    options: tuple[NdOpt, ...] = ()

    @classmethod
    def of(cls, _kind: int, code: int, body: bytes) -> NdNeighborSolicit:
        """Read what stands behind the checksum.

        Raises:
            WireError: ICP6S_BADCODE, ICP6S_BADLEN, ICP6S_BADNS, ICP6S_ND_BADOPT.
        """
        check_code(code)
        check_len(body, 24)
        if in6_is_addr_multicast(body[4:20]):
            raise WireError(Why.ICP6S_BADNS, "the target is a group")
        return cls(target=body[4:20], options=parse_options(body[20:]))

    def body(self) -> bytes:
        """What stands behind the checksum."""
        _need_unicast("target", self.target)
        return bytes(4) + self.target + emit_options(self.options)


@attrs.frozen(kw_only=True)
class NdNeighborAdvert(Icmp6Repr):
    """ND_NEIGHBOR_ADVERT: I have this address. Counterpart: struct nd_neighbor_advert.

    Attributes:
        target: the address, 16 bytes, never a group's.
        flags: ND_NA_FLAG_*.
        options: the target's link-layer address.
    """

    types = frozenset((Icmp6Type.NEIGHBOR_ADVERT,))
    no_code = True

    type: int = Icmp6Type.NEIGHBOR_ADVERT
    code: int = 0
    target: bytes
    flags: int = 0
    options: tuple[NdOpt, ...] = ()

    @classmethod
    def of(cls, _kind: int, code: int, body: bytes) -> NdNeighborAdvert:
        """Read what stands behind the checksum; reserved bits are dropped.

        Raises:
            WireError: ICP6S_BADCODE, ICP6S_BADLEN, ICP6S_BADNA, ICP6S_ND_BADOPT.
        """
        check_code(code)
        check_len(body, 24)
        if in6_is_addr_multicast(body[4:20]):
            raise WireError(Why.ICP6S_BADNA, "the target is a group")
        flags = _FLAGS.unpack_from(body)[0] & ND_NA_FLAG_MASK
        return cls(target=body[4:20], flags=flags, options=parse_options(body[20:]))

    def body(self) -> bytes:
        """What stands behind the checksum."""
        _need_unicast("target", self.target)
        if self.flags & ~ND_NA_FLAG_MASK:
            raise illegal(f"flags {self.flags:#x}")
        return _FLAGS.pack(self.flags) + self.target + emit_options(self.options)


@attrs.frozen(kw_only=True)
class NdRedirect(Icmp6Repr):
    """ND_REDIRECT: there is a shorter way. Counterpart: struct nd_redirect.

    Attributes:
        target: the better first hop: a router's link-local address, or `dst` itself if that
            is on the link.
        dst: the destination that was meant, never a group.
        options: the target's link-layer address, the packet that went the long way.
    """

    types = frozenset((Icmp6Type.REDIRECT,))
    no_code = True

    type: int = Icmp6Type.REDIRECT
    code: int = 0
    target: bytes
    dst: bytes
    options: tuple[NdOpt, ...] = ()

    @classmethod
    def of(cls, _kind: int, code: int, body: bytes) -> NdRedirect:
        """Read what stands behind the checksum.

        Raises:
            WireError: ICP6S_BADCODE, ICP6S_BADLEN, ICP6S_BADREDIRECT, ICP6S_ND_BADOPT.
        """
        check_code(code)
        check_len(body, 40)
        target, dst = body[4:20], body[20:36]
        if in6_is_addr_multicast(dst) or not (in6_is_addr_linklocal(target) or target == dst):
            raise WireError(Why.ICP6S_BADREDIRECT)
        return cls(target=target, dst=dst, options=parse_options(body[36:]))

    @property
    def is_onlink(self) -> bool:
        """Whether the destination is a neighbor (ND_REDIRECT_ONLINK), not behind a router."""
        return self.target == self.dst

    def body(self) -> bytes:
        """What stands behind the checksum."""
        _need_unicast("dst", self.dst)
        need_len("target", self.target, 16)
        if not (in6_is_addr_linklocal(self.target) or self.is_onlink):
            raise illegal("the target is neither a link-local address nor the destination")
        return bytes(4) + self.target + self.dst + emit_options(self.options)


def _need_unicast(name: str, addr: bytes) -> None:
    """Refuse an address that is none, or a group's."""
    need_len(name, addr, 16)
    if in6_is_addr_multicast(addr):
        raise illegal(f"{name} is a group")
