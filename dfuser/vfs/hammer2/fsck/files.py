"""What an inode may say, and what a piece of file data may be.

Each function looks at one record and gives sentences; where it was found is known to who asks.
Nothing is read here except the block that is handed in.

Rules of an inode: its version and kinds are known, its number is the key it lies under, embedded
data fits and belongs to a file or symbolic link, a symbolic link has a length that can be
followed, only files and links have a size that matters, and its algorithms are ones that somebody
can undo. The root of a PFS says so three times: in its blockref, in its flags, and by the part it
plays in its cluster.

Rules of a piece: it begins at a multiple of 64 KiB, it stands for 64 KiB, and what comes out of
the decompressor fits. A piece behind the end of its file is what a crash between truncating and
flushing may leave; nobody ever reads it.

Counterpart: none; DragonFly trusts inodes whose check code holds.
Token/lock order: takes none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dfuser.libkern.param import MAXPATHLEN
from dfuser.vfs.hammer2.compress import decompress
from dfuser.vfs.hammer2.errors import MediaError
from dfuser.vfs.hammer2.fsck.report import Kind, Severity
from dfuser.vfs.hammer2.ondisk.blockref import Blockref
from dfuser.vfs.hammer2.ondisk.const import (
    EMBEDDED_BYTES,
    INODE_MAXNAME,
    INODE_VERSION_ONE,
    PBUFMASK,
    PBUFRADIX,
    BrefFlag,
    Check,
    Comp,
    ObjType,
    OpFlag,
    PfsType,
    dec_algo,
    pfs_type,
)
from dfuser.vfs.hammer2.ondisk.inode import InodeData, InodeMeta
from dfuser.vfs.hammer2.ondisk.keys import dirhash, dirhash_last

#: What is wrong, and how bad that is (None: as bad as its kind).
Saying = tuple[Kind, str, Severity | None]

_MAX_SIZE: Final = (1 << 63) - 1
_PERMISSIONS: Final = 0o7777
_TYPES: Final = frozenset(map(int, ObjType)) - {int(ObjType.UNKNOWN)}
#: Types with data of their own.
WITH_DATA: Final = frozenset({int(ObjType.REGFILE), int(ObjType.SOFTLINK)})
_COMPS: Final = frozenset(map(int, Comp))
_CHECKS: Final = frozenset(map(int, Check)) - {int(Check.FREEMAP)}
#: Autozero is stored as no compression.
_DATA_COMPS: Final = frozenset({int(Comp.NONE), int(Comp.LZ4), int(Comp.ZLIB)})


def usable(meta: InodeMeta) -> str:
    """Why nothing in an inode can be believed; empty if it can."""
    if meta.version != INODE_VERSION_ONE:
        return f"an inode of version {meta.version}"
    if meta.name_len > INODE_MAXNAME:
        return f"an inode with a name of {meta.name_len} bytes"
    return ""


def check_inode(bref: Blockref, inode: InodeData) -> Iterator[Saying]:
    """What is wrong with any inode that can be used at all."""
    meta = inode.meta
    if bref.keybits:
        yield Kind.BLOCKREF, f"an inode that covers {bref.keybits} bits of keys", None
    if meta.type not in _TYPES:
        yield Kind.INODE, f"nobody knows files of type {meta.type}", None
    if meta.mode & ~_PERMISSIONS:
        told = f"its mode {meta.mode:#o} is more than permissions"
        yield Kind.INODE, told, Severity.WARNING
    if dec_algo(meta.comp_algo) not in _COMPS:
        yield Kind.INODE, f"nobody knows compression {dec_algo(meta.comp_algo)}", None
    if dec_algo(meta.check_algo) not in _CHECKS:
        yield Kind.INODE, f"nobody knows check code {dec_algo(meta.check_algo)}", None
    yield from _check_size(meta, inode.u)


def _check_size(meta: InodeMeta, u: bytes) -> Iterator[Saying]:
    """Size, and where the data lies."""
    if meta.size > _MAX_SIZE:
        yield Kind.INODE, f"its size is {meta.size}", None
    if meta.directdata:
        if meta.type not in WITH_DATA:
            yield Kind.INODE, f"data lies in an inode of type {meta.type}", None
        elif meta.size > EMBEDDED_BYTES:
            yield Kind.INODE, f"{meta.size} bytes are said to lie in the inode", None
        elif any(u[meta.size :]):
            told = "bytes behind the end of its embedded data are not zero"
            yield Kind.INODE, told, Severity.WARNING
    if meta.type == ObjType.SOFTLINK and meta.size > MAXPATHLEN:
        yield Kind.INODE, f"a symbolic link of {meta.size} bytes", None


def check_pfs(bref: Blockref, inode: InodeData) -> Iterator[Saying]:
    """What is wrong with the root of a PFS."""
    meta = inode.meta
    if not meta.op_flags & OpFlag.PFSROOT or meta.type != ObjType.DIRECTORY:
        yield Kind.PFS, "what lies there is no root of a PFS", None
        return
    if not bref.flags & BrefFlag.PFSROOT:
        told = "its blockref has no PFSROOT flag; DragonFly adds it when it mounts"
        yield Kind.PFS, told, Severity.WARNING
    if not inode.name or b"\0" in inode.name or b"/" in inode.name:
        yield Kind.PFS, f"its label {inode.name!r} cannot be one", None
    base = dirhash(inode.name)
    if not base <= bref.key <= dirhash_last(base):
        yield Kind.PFS, f"its key {bref.key:#x} is not of its label", None
    known = {int(kind) for kind in PfsType} - {PfsType.SUPROOT, PfsType.NONE}
    if pfs_type(meta.pfs_type) not in known:
        yield Kind.PFS, f"its type {meta.pfs_type} is none a PFS can have", None


def check_piece(bref: Blockref, size: int) -> Iterator[Saying]:
    """What is wrong with the blockref of a piece, its file having `size` bytes."""
    if bref.keybits != PBUFRADIX or bref.key & PBUFMASK:
        yield Kind.DATA, f"no piece of a file has key {bref.key:#x}, {bref.keybits} bits", None
    elif bref.key >= size:
        told = f"a piece at {bref.key} lies behind the end of its file, {size}"
        yield Kind.DATA, told, Severity.WARNING
    if bref.methods & 15 not in _DATA_COMPS:
        yield Kind.DATA, f"nobody can decompress method {bref.methods & 15}", None
    if bref.methods >> 4 not in _CHECKS:
        yield Kind.BLOCKREF, f"nobody knows check code {bref.methods >> 4}", None


def check_payload(bref: Blockref, data: bytes) -> str:
    """Why a block of data cannot be read although its check code holds; empty if it can."""
    comp = bref.methods & 15
    if comp not in _DATA_COMPS or not comp:
        return ""
    try:
        decompress(comp, data)
    except MediaError as exc:
        return exc.strerror or str(exc)
    return ""
