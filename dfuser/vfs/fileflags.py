"""File flags as the host's chattr(1) and lsattr(1) know them.

DragonFly's chflags(2) and Linux's FS_IOC_SETFLAGS name the same few ideas with different bits, and
with a different idea of who may: ours come in pairs, one for the owner (UF_), one for root (SF_);
Linux has one of each and reserves two of them for root::

    Linux (chattr)       xflags        ours
    FS_IMMUTABLE_FL i    IMMUTABLE     SF_IMMUTABLE or UF_IMMUTABLE
    FS_APPEND_FL    a    APPEND        SF_APPEND or UF_APPEND
    FS_NODUMP_FL    d    NODUMP        UF_NODUMP

Shown is a flag when either of the pair is set; setting it sets SF_, clearing it clears both, and
what Linux has no word for (opaque, nounlink, nohistory, cache ...) stays as it is. Every other flag
of Linux, noatime among them, has no counterpart here and setting it is EOPNOTSUPP.

The argument of FS_IOC_GETFLAGS and its sisters is an ``int``, although their numbers say ``long``:
4 bytes are answered, 4 or 8 accepted.

Counterpart: none; ioctl_setflags and fileattr of the host's kernel, chflags(2) of ours.
Differs from DragonFly: an addition for the programs of the host.
Token/lock order: none; only bytes and numbers here.
Invariants: to_host(from_host(old, to_host(old))) == to_host(old), and from_host keeps every bit
    that Linux has no word for.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from dfuser.dev.ioccom import ioc_from_host
from dfuser.libkern.errno import EINVAL, ENOTTY, EOPNOTSUPP, EPERM, KError
from dfuser.libkern.stat import (
    APPEND,
    IMMUTABLE,
    SF_APPEND,
    SF_IMMUTABLE,
    UF_NODUMP,
)

# Numbers of Linux (linux/fs.h), as its programs use them.
FS_IOC_GETFLAGS: Final = 0x80086601
FS_IOC_SETFLAGS: Final = 0x40086602
FS_IOC32_GETFLAGS: Final = 0x80046601
FS_IOC32_SETFLAGS: Final = 0x40046602
FS_IOC_FSGETXATTR: Final = 0x801C581F
FS_IOC_FSSETXATTR: Final = 0x401C5820
FS_IOC_GETVERSION: Final = 0x80087601
FS_IOC32_GETVERSION: Final = 0x80047601

FS_IMMUTABLE_FL: Final = 0x10
FS_APPEND_FL: Final = 0x20
FS_NODUMP_FL: Final = 0x40
FS_NOATIME_FL: Final = 0x80

FS_XFLAG_IMMUTABLE: Final = 0x08
FS_XFLAG_APPEND: Final = 0x10
FS_XFLAG_NODUMP: Final = 0x80

_FLAGS: Final = FS_IMMUTABLE_FL | FS_APPEND_FL | FS_NODUMP_FL
_XFLAGS: Final = (
    (FS_XFLAG_IMMUTABLE, FS_IMMUTABLE_FL),
    (FS_XFLAG_APPEND, FS_APPEND_FL),
    (FS_XFLAG_NODUMP, FS_NODUMP_FL),
)
_XMASK: Final = FS_XFLAG_IMMUTABLE | FS_XFLAG_APPEND | FS_XFLAG_NODUMP

_INT: Final = Struct("=I")
#: Counterpart: struct fsxattr (linux/fs.h): xflags, extsize, nextents, projid, cowextsize, pad.
_FSXATTR: Final = Struct("=5I8x")

# The same numbers in our spelling, by what they ask for.
_GETFLAGS: Final = frozenset(map(ioc_from_host, (FS_IOC_GETFLAGS, FS_IOC32_GETFLAGS)))
_SETFLAGS: Final = frozenset(map(ioc_from_host, (FS_IOC_SETFLAGS, FS_IOC32_SETFLAGS)))
_GETVERSION: Final = frozenset(map(ioc_from_host, (FS_IOC_GETVERSION, FS_IOC32_GETVERSION)))
_GETXATTR: Final = frozenset(map(ioc_from_host, (FS_IOC_FSGETXATTR,)))
_SETXATTR: Final = frozenset(map(ioc_from_host, (FS_IOC_FSSETXATTR,)))


class FlagsAnswer(NamedTuple):
    """What an ioctl on file flags comes to."""

    data: bytes
    """The bytes to copy out."""
    flags: int | None
    """The flags (ours) that the file shall have, or None if nothing is to change."""


def to_host(flags: int) -> int:
    """FS_*_FL of our flags."""
    return (
        (FS_IMMUTABLE_FL if flags & IMMUTABLE else 0)
        | (FS_APPEND_FL if flags & APPEND else 0)
        | (FS_NODUMP_FL if flags & UF_NODUMP else 0)
    )


def from_host(old: int, wanted: int, privileged: bool) -> int:
    """Our flags after FS_IOC_SETFLAGS.

    Args:
        old: our flags now.
        wanted: FS_*_FL bits.
        privileged: whether root asks.

    Raises:
        KError: EOPNOTSUPP, a flag without counterpart; EPERM, immutable or append-only would
            change and it is not root who asks.
    """
    if wanted & ~_FLAGS:
        raise KError(EOPNOTSUPP)
    changed = wanted ^ to_host(old)
    if changed & (FS_IMMUTABLE_FL | FS_APPEND_FL) and not privileged:
        raise KError(EPERM)
    new = old
    for bit, ours, pair in (
        (FS_IMMUTABLE_FL, SF_IMMUTABLE, IMMUTABLE),
        (FS_APPEND_FL, SF_APPEND, APPEND),
        (FS_NODUMP_FL, UF_NODUMP, UF_NODUMP),
    ):
        if changed & bit:
            new = new | ours if wanted & bit else new & ~pair
    return new


def flags_ioctl(
    command: int, data: bytes | bytearray | memoryview, flags: int, gen: int, privileged: bool
) -> FlagsAnswer:
    """Serve the ioctls of this file for a file system that has flags.

    Args:
        command: the number in our spelling (`ioccom.ioc_from_host`).
        data: what the caller gave.
        flags: the file's flags now.
        gen: its generation.
        privileged: whether root asks.

    Raises:
        KError: ENOTTY, another number; EINVAL, a wrong length; EOPNOTSUPP, EPERM: `from_host`.
    """
    if command in _GETFLAGS:
        return FlagsAnswer(_INT.pack(to_host(flags)), None)
    if command in _GETVERSION:
        return FlagsAnswer(_INT.pack(gen & 0xFFFF_FFFF), None)
    if command in _GETXATTR:
        return FlagsAnswer(_FSXATTR.pack(_to_xflags(flags), 0, 0, 0, 0), None)
    if command in _SETFLAGS:
        if len(data) not in (4, 8):
            raise KError(EINVAL)
        return FlagsAnswer(b"", from_host(flags, _INT.unpack_from(data)[0], privileged))
    if command in _SETXATTR:
        return FlagsAnswer(b"", from_host(flags, _from_xflags(data), privileged))
    raise KError(ENOTTY)


def _to_xflags(flags: int) -> int:
    """FS_XFLAG_* of our flags."""
    host = to_host(flags)
    return sum(xflag for xflag, flag in _XFLAGS if host & flag)


def _from_xflags(data: bytes | bytearray | memoryview) -> int:
    """FS_*_FL of a struct fsxattr.

    Raises:
        KError: EINVAL, a wrong length; EOPNOTSUPP, it asks for extent sizes, a project or other
            flags.
    """
    if len(data) != _FSXATTR.size:
        raise KError(EINVAL)
    xflags, extsize, _, projid, cowextsize = _FSXATTR.unpack(data)
    if xflags & ~_XMASK or extsize or projid or cowextsize:
        raise KError(EOPNOTSUPP)
    return sum(flag for xflag, flag in _XFLAGS if xflags & xflag)
