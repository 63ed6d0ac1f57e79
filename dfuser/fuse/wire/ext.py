"""Extensions: what follows the body of a request that makes a file.

A header whose ``total_extlen`` is not zero announces that many units of eight bytes at the end of
the request. They hold extensions, each beginning with its size and type:

* **Security contexts** (INIT flag SECURITY_CTX): the type is the number of contexts, each with the
  name of an extended attribute and its value, padded to eight bytes.
* **Groups** (INIT flag CREATE_SUPP_GROUP): the one supplementary group of the caller that is the
  parent directory's group, if there is such; otherwise the extension is left out.

An extension of an unknown type is kept as it is, so that a newer kernel does no harm.
SECURITY_CTX is older (7.36) than ``total_extlen`` (7.38); the two versions between, which append
the contexts without announcing them, are never asked for contexts (see `flags`).

Counterpart: struct fuse_ext_header, fuse_secctx_header, fuse_secctx, fuse_supp_groups.
Invariants: an extension never reaches beyond the area announced; emit(parse(area)) == area for
what the kernel sends.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from .const import FUSE_EXT_GROUPS, FUSE_MAX_NR_SECCTX
from .layout import Buffer, Layout, WireError, align8, check_name, split_name


class ExtHeader(NamedTuple):
    """The head of an extension; `size` includes it. Counterpart: struct fuse_ext_header."""

    size: int
    type: int


class Secctx(NamedTuple):
    """One security context: an attribute's name and value. Counterpart: struct fuse_secctx."""

    size: int
    name: bytes
    context: bytes


class SecurityContexts(NamedTuple):
    """Labels for the new file. Counterpart: struct fuse_secctx_header (linux/fuse.h)."""

    contexts: tuple[Secctx, ...]


class SuppGroups(NamedTuple):
    """Groups of the caller that matter. Counterpart: struct fuse_supp_groups (linux/fuse.h)."""

    groups: tuple[int, ...]


class UnknownExtension(NamedTuple):
    """An extension of a type this codec does not know, with all bytes behind its head."""

    type: int
    data: bytes


class SecctxHeader(NamedTuple):
    """Size of all contexts and their number. Counterpart: struct fuse_secctx_header."""

    size: int
    nr_secctx: int


class SuppGroupsHead(NamedTuple):
    """The number of groups that follow. Counterpart: struct fuse_supp_groups."""

    nr_groups: int


Extension = SecurityContexts | SuppGroups | UnknownExtension

EXT_HEADER: Final = Layout("fuse_ext_header", ExtHeader, Struct("=II"))
SECCTX: Final = Layout("fuse_secctx", Secctx, Struct("=I4x"))
SECCTX_HEADER: Final = Layout("fuse_secctx_header", SecctxHeader, Struct("=II"))
SUPP_GROUPS: Final = Layout("fuse_supp_groups", SuppGroupsHead, Struct("=I"))


def parse_extensions(data: Buffer, start: int, end: int) -> tuple[Extension, ...]:
    """The extensions that fill `data` from `start` to `end`.

    Raises:
        WireError: one is shorter than its head, reaches beyond `end`, or contradicts itself.
    """
    found: list[Extension] = []
    while start < end:
        if end - start < EXT_HEADER.size:
            raise WireError("an extension is cut off")
        size, kind = EXT_HEADER.unpack(data, start)
        if not EXT_HEADER.size <= size <= end - start:
            raise WireError(f"an extension of {size} bytes where {end - start} are left")
        body, stop = start + EXT_HEADER.size, start + size
        if kind <= FUSE_MAX_NR_SECCTX:
            found.append(_parse_contexts(data, body, stop, kind))
        elif kind == FUSE_EXT_GROUPS:
            found.append(_parse_groups(data, body, stop))
        else:
            found.append(UnknownExtension(kind, bytes(data[body:stop])))
        start += align8(size)
    return tuple(found)


def _parse_contexts(data: Buffer, at: int, end: int, count: int) -> SecurityContexts:
    contexts = []
    for _ in range(count):
        if end - at < SECCTX.size:
            raise WireError("a security context is cut off")
        (size,) = SECCTX.unpack(data, at)
        name, value = split_name(data, at + SECCTX.size, end)
        if size > end - value:
            raise WireError(f"a security context of {size} bytes where {end - value} are left")
        contexts.append(Secctx(size, name, bytes(data[value : value + size])))
        at += align8(value + size - at)
    return SecurityContexts(tuple(contexts))


def _parse_groups(data: Buffer, at: int, end: int) -> SuppGroups:
    if end - at < SUPP_GROUPS.size:
        raise WireError("the number of groups is cut off")
    (count,) = SUPP_GROUPS.unpack(data, at)
    if count * 4 > end - at - SUPP_GROUPS.size:
        raise WireError(f"{count} groups do not fit their extension")
    return SuppGroups(Struct(f"={count}I").unpack_from(data, at + SUPP_GROUPS.size))


def emit_extensions(extensions: tuple[Extension, ...]) -> bytes:
    """The extensions as the kernel writes them; the length is a multiple of eight.

    Raises:
        WireError: a name cannot be written.
        struct.error: a number does not fit.
    """
    return b"".join(map(_emit_extension, extensions))


def _emit_extension(extension: Extension) -> bytes:
    if isinstance(extension, SecurityContexts):
        kind = len(extension.contexts)
        body = b"".join(
            _padded(SECCTX.pack(c.size) + check_name(c.name) + b"\0" + c.context)
            for c in extension.contexts
        )
    elif isinstance(extension, SuppGroups):
        kind, count = FUSE_EXT_GROUPS, len(extension.groups)
        body = _padded(Struct(f"=I{count}I").pack(count, *extension.groups))
    else:
        kind, body = extension.type, extension.data
    return _padded(EXT_HEADER.pack(EXT_HEADER.size + len(body), kind) + body)


def _padded(data: bytes) -> bytes:
    """Fill with zeroes up to a multiple of eight."""
    return data.ljust(align8(len(data)), b"\0")
