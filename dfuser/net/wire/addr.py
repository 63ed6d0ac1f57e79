"""Addresses as text, and the few questions about them that parsing asks.

An address is the bytes the wire has: 6, 4 or 16 of them. They compare, hash and slice as they
are, and never need a byte order.

Counterpart: kether_ntoa (net/if_ethersubr.c), kinet_ntoa (netinet/in.c), ip6_sprintf
    (netinet6/in6.c), IN_MULTICAST (netinet/in.h), IN6_IS_ADDR_* (netinet6/in6.h).
"""

from __future__ import annotations

import ipaddress
from typing import Final

from dfuser.net.wire.base import Buffer, illegal

INADDR_ANY: Final = bytes(4)
INADDR_BROADCAST: Final = b"\xff" * 4
IN6ADDR_ANY: Final = bytes(16)


def kether_ntoa(addr: Buffer) -> str:
    """An Ethernet address in colon notation."""
    return bytes(addr).hex(":")


def ether_aton(text: str) -> bytes:
    """The Ethernet address that a text in colon notation names.

    Raises:
        WireError: ILLEGAL, the text is none.
    """
    parts = text.split(":")
    try:
        addr = bytes(int(part, 16) for part in parts)
    except ValueError:
        addr = b""
    if len(addr) != 6 or any(not 1 <= len(part) <= 2 for part in parts):
        raise illegal(f"{text!r} is no Ethernet address")
    return addr


def inet_ntop(addr: Buffer) -> str:
    """An IPv4 address in dotted or an IPv6 address in RFC 5952's notation, by its length."""
    return str(ipaddress.ip_address(bytes(addr)))


def inet_pton(text: str) -> bytes:
    """The 4 or 16 bytes of an address given as text.

    Raises:
        WireError: ILLEGAL, the text is no address.
    """
    try:
        return ipaddress.ip_address(text).packed
    except ValueError as error:
        raise illegal(str(error)) from None


def in_multicast(addr: Buffer) -> bool:
    """Whether an IPv4 address is a group's, 224.0.0.0/4. Counterpart: IN_MULTICAST."""
    return addr[0] & 0xF0 == 0xE0


def in6_is_addr_multicast(addr: Buffer) -> bool:
    """Whether an IPv6 address is a group's, ff00::/8. Counterpart: IN6_IS_ADDR_MULTICAST."""
    return addr[0] == 0xFF


def in6_is_addr_linklocal(addr: Buffer) -> bool:
    """Whether an IPv6 address is of the link, fe80::/10. Counterpart: IN6_IS_ADDR_LINKLOCAL."""
    return addr[0] == 0xFE and addr[1] & 0xC0 == 0x80
