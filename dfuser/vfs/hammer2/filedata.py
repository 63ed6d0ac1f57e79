"""The data of a file at rest: pieces of 64 KiB, holes, and what fits into the inode.

A file's tree has a DATA blockref for each piece of 64 KiB that is not a hole, its key the offset
of the piece. Blocks may be shorter than the piece: the last one of a file, one that was written
when the file was shorter, or a compressed one; what they do not hold is zero. Files and symbolic
links of up to 512 bytes may lie in their inode instead, and do so from their creation until they
grow beyond.

Counterpart: hammer2_xop_strategy_read, hammer2_strategy_read_completion
    (vfs/hammer2/hammer2_strategy.c).
Token/lock order: takes none.
Invariants: no more memory than the piece and what the caller asked for, whatever the size of the
    file claims; a damaged piece fails those reads only that touch it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dfuser.libkern.errno import EINVAL, KError
from dfuser.libkern.param import MAXPATHLEN
from dfuser.vfs.hammer2.compress import decompress
from dfuser.vfs.hammer2.errors import MediaError
from dfuser.vfs.hammer2.node import Node
from dfuser.vfs.hammer2.ondisk.blockref import Blockref
from dfuser.vfs.hammer2.ondisk.const import (
    EMBEDDED_BYTES,
    PBUFMASK,
    PBUFRADIX,
    PBUFSIZE,
    BrefType,
    ObjType,
)
from dfuser.vfs.hammer2.tree import OnError, Tree

_MAX_SIZE: Final = (1 << 63) - 1
_DATA: Final = int(BrefType.DATA)
_WITH_DATA: Final = (int(ObjType.REGFILE), int(ObjType.SOFTLINK))


def load_piece(tree: Tree, bref: Blockref) -> bytes:
    """The data of a DATA blockref: at most 64 KiB, what is missing is zero.

    Raises:
        MediaError: the blockref or its block is damaged.
    """
    if bref.type != _DATA or bref.keybits != PBUFRADIX or bref.key & PBUFMASK:
        raise MediaError(f"no piece of a file at key {bref.key:#x}", bref.data_off)
    data = tree.load(bref)
    comp = bref.methods & 15
    if not comp:
        return data
    try:
        return decompress(comp, data)
    except MediaError as exc:
        raise MediaError(exc.strerror, bref.data_off) from None


def pieces(
    tree: Tree, node: Node, start: int = 0, stop: int | None = None,
    onerror: OnError | None = None,
) -> Iterator[tuple[int, bytes]]:  # fmt: skip
    """What of a range of a file is no hole.

    Args:
        tree: the volume's blocks.
        node: the file or symbolic link.
        start: first byte.
        stop: byte behind the last; None for the end of the file.
        onerror: called for each damaged block; the reading goes on behind it.

    Yields:
        Offset and bytes, ascending and within the range. Between them and behind are zeroes.

    Raises:
        KError: EINVAL, not a file with data, or a negative range.
        MediaError: a block is damaged and there is no `onerror`, or the inode is.
    """
    size = node.meta.size
    if node.meta.type not in _WITH_DATA or start < 0:
        raise KError(EINVAL)
    if size > _MAX_SIZE:
        raise MediaError(f"inode {node.meta.inum:#x} says a size of {size}", node.bref.data_off)
    stop = size if stop is None else min(stop, size)
    if start >= stop:
        return
    if node.meta.directdata:
        if size > EMBEDDED_BYTES:
            raise MediaError(
                f"inode {node.meta.inum:#x} says {size} bytes lie in it", node.bref.data_off
            )
        yield start, node.u[start:stop]
        return
    for bref in tree.scan(node.table(), start, stop - 1, onerror):
        try:
            data = load_piece(tree, bref)
        except MediaError as exc:
            if onerror is None:
                raise
            onerror(bref, exc)
            continue
        low = max(start - bref.key, 0)
        high = min(len(data), stop - bref.key)
        if low < high:
            yield bref.key + low, data if high - low == len(data) else data[low:high]


def read(tree: Tree, node: Node, offset: int, size: int) -> bytes:
    """Bytes of a file, holes as zeroes; fewer at its end.

    Args:
        tree: the volume's blocks.
        node: the file or symbolic link.
        offset: first byte.
        size: at most so many; this much memory may be taken.

    Raises:
        KError: EINVAL, not a file with data, or a negative offset or size.
        MediaError: a block of the range is damaged.
    """
    if size < 0:
        raise KError(EINVAL)
    stop = min(offset + size, node.meta.size)
    whole = offset & PBUFMASK == 0 and stop - offset <= PBUFSIZE
    out: bytearray | None = None
    for at, data in pieces(tree, node, offset, stop):
        if whole and at == offset and len(data) == stop - offset:
            return data
        if out is None:
            out = bytearray(stop - offset)
        out[at - offset : at - offset + len(data)] = data
    return bytes(max(0, stop - offset)) if out is None else bytes(out)


def readlink(tree: Tree, node: Node) -> bytes:
    """Where a symbolic link points.

    Raises:
        KError: EINVAL, not a symbolic link.
        MediaError: the link or its data is damaged.
    """
    if node.meta.type != ObjType.SOFTLINK:
        raise KError(EINVAL)
    if node.meta.size > MAXPATHLEN:
        raise MediaError(
            f"symbolic link {node.meta.inum:#x} has {node.meta.size} bytes", node.bref.data_off
        )
    return read(tree, node, 0, MAXPATHLEN)
