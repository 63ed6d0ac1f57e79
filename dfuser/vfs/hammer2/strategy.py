"""File data: pieces of 64 KiB on their way to blocks and back.

A piece is written whole: cut to what the file's end needs (a power of two of at least 1 KiB),
looked through for zeroes, compressed if that helps, looked for among the blocks written lately,
and then given a block and a check code of its own::

    piece --> all zero? --> hole          not with check "none", whose blocks are written in place
          --> compress --> half the size or less? keep it
          --> dedup    --> equal block known and still right? refer to it
          --> allocate, check code, write behind

Whoever holds buffers calls `strategy_write` with whole pieces. `write` is for those who do not: it
reads what a partial piece had before.

A block of the present transaction that only this file refers to is written over in place if its
size stays, and given back at once if not, so that appending in small steps does not use up space.

Files and symbolic links of up to 512 bytes have their data in the inode. They move out when they
grow beyond and do not move back.

Counterpart: hammer2_strategy.c; hammer2_truncate_file, hammer2_extend_file, hammer2_write_file
    (hammer2_vnops.c).
Differs from DragonFly: no thread of its own; who wants one gives the compression to it (compress.py
    holds no lock). Blocks of the same transaction are reused, as above. Punching holes is ours.
Token/lock order: takes none; the holder of the volume's lock calls.
Invariants: the tree has no piece at or behind the end of the file; what a block holds behind the
    end is zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfuser.libkern.errno import EFBIG, EINVAL, EISDIR, ENOSPC, KError
from dfuser.vfs.hammer2.chain import fill_table
from dfuser.vfs.hammer2.check import setcheck
from dfuser.vfs.hammer2.compress import all_zero, compress, decompress
from dfuser.vfs.hammer2.errors import MediaError
from dfuser.vfs.hammer2.ondisk.blockref import Blockref
from dfuser.vfs.hammer2.ondisk.const import (
    EMBEDDED_BYTES,
    KEY_MAX,
    PBUFMASK,
    PBUFRADIX,
    PBUFSIZE,
    BrefType,
    Check,
    Comp,
    ObjType,
    OpFlag,
    dec_algo,
)
from dfuser.vfs.hammer2.ondisk.keys import calc_physical

if TYPE_CHECKING:
    from dfuser.vfs.hammer2.inode import Inode, InodeChain

_DATA: Final = int(BrefType.DATA)
_DIRECTDATA: Final = int(OpFlag.DIRECTDATA)
_NONE: Final = int(Check.NONE)
_MAX_SIZE: Final = (1 << 63) - 1
#: Pieces deleted between two looks at the cache.
_BATCH: Final = 4096
#: After so many pieces in a row that did not get smaller, only each eighth is tried.
_HOPELESS: Final = 8
_TIRED: Final = 128
_WITH_DATA: Final = (int(ObjType.REGFILE), int(ObjType.SOFTLINK))


# --- pieces --------------------------------------------------------------------------------


def strategy_read(ip: Inode, lbase: int) -> bytes | None:
    """A piece of a file as far as there is a block for it; what is missing is zero.

    Args:
        ip: the file.
        lbase: the piece's offset, a multiple of 64 KiB.

    Returns:
        At most 64 KiB; None for a hole.

    Raises:
        MediaError: the block is damaged, or one on the way to it.

    Counterpart: hammer2_xop_strategy_read.
    """
    chain = ip.chain
    if chain.meta.op_flags & _DIRECTDATA:
        return chain.u[: chain.meta.size] if lbase == 0 else None
    bref = ip.pfs.dev.chains.lookup(chain, lbase)
    return None if bref is None else _load(ip, bref)


def _load(ip: Inode, bref: object) -> bytes:
    """The data of a DATA blockref."""
    if not isinstance(bref, Blockref) or bref.type != _DATA or bref.keybits != PBUFRADIX:
        raise MediaError(f"inode {ip.inum:#x} has something else than data")
    data = ip.pfs.dev.io.load(bref)
    comp = bref.methods & 15
    if not comp:
        return data
    try:
        return decompress(comp, data)
    except MediaError as exc:
        raise MediaError(exc.strerror, bref.data_off) from None


def strategy_write(ip: Inode, lbase: int, piece: bytes, mtid: int) -> None:
    """Write a piece of a file whose data does not lie in its inode.

    Args:
        ip: the file.
        lbase: the piece's offset, a multiple of 64 KiB.
        piece: all of it up to the end of the file: 1 byte to 64 KiB.
        mtid: the operation.

    Raises:
        KError: ENOSPC, EIO; the file has what it had.

    Counterpart: hammer2_write_file_core.
    """
    size = calc_physical(len(piece), 0)
    if len(piece) != size:
        piece = piece.ljust(size, b"\0")
    meta = ip.chain.meta
    check = meta.check_algo & 15
    comp = dec_algo(meta.comp_algo)
    if comp != Comp.NONE and check != _NONE and all_zero(piece):
        zero_write(ip, lbase, mtid)
        return
    packed = _compress(ip, meta.comp_algo, piece) if comp >= Comp.LZ4 else None
    if packed is None:
        _assign(ip, lbase, piece, check << 4, mtid)
    else:
        _assign(ip, lbase, packed, check << 4 | comp, mtid)


def _compress(ip: Inode, comp_algo: int, piece: bytes) -> bytes | None:
    """Compress a piece, unless this file's pieces never get smaller."""
    tries = ip.comp_heuristic
    if tries >= _HOPELESS and tries & 7 and not ip.pfs.dev.tunables.always_compress:
        packed = None
    else:
        packed = compress(comp_algo, piece)
    if packed is not None:
        ip.comp_heuristic = 0
    else:
        ip.comp_heuristic = tries + 1 if tries < _TIRED else _HOPELESS
    return packed


def zero_write(ip: Inode, lbase: int, mtid: int) -> None:
    """Make a piece a hole. Counterpart: zero_write (hammer2_strategy.c).

    Raises:
        KError: ENOSPC, EIO; the file has what it had.
    """
    dev = ip.pfs.dev
    if dev.chains.lookup(ip.chain, lbase) is not None:
        old = dev.chains.delete(ip.chain, lbase, mtid)
        _drop(ip, old)


def _drop(ip: Inode, old: object) -> None:
    """A file does not refer to a block any more: if it is new and not shared, it is free."""
    if isinstance(old, Blockref) and old.data_off in ip.pfs.dev.freemap.fresh:
        dev = ip.pfs.dev
        dev.dedup.forget(old.data_off)
        dev.io.forget(old.data_off)
        dev.freemap.give_back(_DATA, old.data_off)


def _assign(ip: Inode, lbase: int, block: bytes, methods: int, mtid: int) -> None:
    """Find a place for a block and refer to it. Counterpart: hammer2_assign_physical."""
    dev, root = ip.pfs.dev, ip.chain
    chains = dev.chains
    old = chains.lookup(root, lbase)
    if old is not None and not isinstance(old, Blockref):
        raise MediaError(f"inode {ip.inum:#x} has something else than data", old.bref.data_off)
    sharing = methods >> 4 > Check.DISABLED and bool(dev.tunables.dedup_enable)
    digest = dev.dedup.hash(block) if sharing else 0
    data_off = dev.dedup.lookup(digest, block) if sharing else 0
    shared = data_off != 0
    fresh = False
    if shared:
        dev.freemap.adjust(_DATA, data_off)
        dev.freemap.fresh.discard(data_off)
    elif old is not None and _in_place(ip, old, len(block), methods):
        data_off = old.data_off
    else:
        data_off = dev.freemap.alloc(_DATA, lbase, len(block))
        fresh = True
    bref = Blockref(
        _DATA, methods, keybits=PBUFRADIX, key=lbase, mirror_tid=chains.mirror_tid + 1,
        modify_tid=mtid, data_off=data_off,
    )  # fmt: skip
    try:
        chains.replace(root, setcheck(bref, block), mtid)
    except KError:
        if fresh:
            dev.freemap.give_back(_DATA, data_off)
        raise
    if not shared:
        dev.io.write(data_off, block)
        if sharing:
            dev.dedup.record(digest, data_off)
    if old is not None and old.data_off != data_off:
        _drop(ip, old)


def _in_place(ip: Inode, old: Blockref, nbytes: int, methods: int) -> bool:
    """Whether a block may be written over.

    Yes if it is of this transaction and this file's alone; and where there is no check code, if no
    snapshot may have it and neither the old nor the new bytes are compressed.
    """
    if old.nbytes != nbytes:
        return False
    if old.data_off in ip.pfs.dev.freemap.fresh:
        return True
    return methods == 0 == old.methods and old.modify_tid > ip.pfs.lsnap_tid


# --- files ---------------------------------------------------------------------------------


def read(ip: Inode, offset: int, size: int) -> bytes:
    """Bytes of a file, holes as zeroes; fewer at its end.

    Raises:
        KError: EISDIR, EINVAL: not a file with data, or a negative offset or size.
        MediaError: a block of the range is damaged.
    """
    chain = _data_chain(ip)
    if offset < 0 or size < 0:
        raise KError(EINVAL)
    stop = min(offset + size, chain.meta.size)
    if offset >= stop:
        return b""
    if chain.meta.op_flags & _DIRECTDATA:
        return chain.u[offset:stop].ljust(stop - offset, b"\0")
    dev = ip.pfs.dev
    dev.chains.trim()
    chain = ip.chain
    found: list[Blockref] = []
    dev.chains.collect(chain, offset & ~PBUFMASK, stop - 1, found, KEY_MAX)
    out = bytearray(stop - offset)
    for bref in found:
        data = _load(ip, bref)
        low = max(offset - bref.key, 0)
        data = data[low : min(len(data), stop - bref.key)]
        at = bref.key + low - offset
        if len(data) == len(out):
            return data
        out[at : at + len(data)] = data
    return bytes(out)


def write(ip: Inode, offset: int, data: bytes, *, root: bool = True) -> int:
    """Write bytes into a file, growing it if they end behind its end. Times are not touched.

    Args:
        ip: a regular file or symbolic link.
        offset: of the first byte.
        data: what is written.
        root: whether the superuser writes, who may use more of the space.

    Returns:
        How many bytes were written: fewer than asked for if space ran out on the way.

    Raises:
        KError: EISDIR, EINVAL, EFBIG, EROFS; ENOSPC or EIO, nothing was written.
    """
    dev = ip.pfs.dev
    dev.modifying()
    chain = _data_chain(ip)
    end = offset + len(data)
    if offset < 0 or end > _MAX_SIZE:
        raise KError(EINVAL if offset < 0 else EFBIG)
    if not data:
        return 0
    if dev.enospace(len(data), root=root) > 1:
        raise KError(ENOSPC)
    mtid = ip.pfs.trans_sub()
    meta = ip.modify(mtid)
    if meta.op_flags & _DIRECTDATA:
        if end <= EMBEDDED_BYTES:
            chain.u = _patched(chain.u[: meta.size], offset, data)
            meta.size = max(meta.size, end)
            return len(data)
        _leave_inode(ip, chain, mtid)
    done = 0
    view = memoryview(data)
    while done < len(data):
        at = offset + done
        step = min(len(data) - done, PBUFSIZE - (at & PBUFMASK))
        try:
            _write_piece(ip, at, view[done : done + step], mtid)
        except KError:
            if not done:
                raise
            break
        done += step
        meta.size = max(meta.size, at + step)
    return done


def _write_piece(ip: Inode, offset: int, part: memoryview, mtid: int) -> None:
    """Write bytes that lie in one piece."""
    lbase = offset & ~PBUFMASK
    size = ip.chain.meta.size
    end = offset + len(part)
    if offset == lbase and (end >= size or len(part) == PBUFSIZE):
        piece = bytes(part)
    else:
        old = strategy_read(ip, lbase) if lbase < size else None
        left = min(size - lbase, PBUFSIZE)
        piece = _patched((old or b"")[: max(0, left)].ljust(max(0, left), b"\0"),
                         offset - lbase, part)  # fmt: skip
    strategy_write(ip, lbase, piece, mtid)


def _patched(old: bytes, at: int, data: bytes | memoryview) -> bytes:
    """Bytes with other bytes laid over them; what is between is zero."""
    out = bytearray(old.ljust(at, b"\0"))
    out[at : at + len(data)] = data
    return bytes(out)


def _leave_inode(ip: Inode, chain: InodeChain, mtid: int) -> None:
    """Move the data of a file out of its inode. The inode is modified.

    Raises:
        KError: ENOSPC, EIO; the data is where it was.
    """
    meta, u = chain.meta, chain.u
    meta.op_flags &= ~_DIRECTDATA
    chain.u = b""
    fill_table(chain, b"")
    if not meta.size:
        return
    try:
        strategy_write(ip, 0, u[: meta.size].ljust(meta.size, b"\0"), mtid)
    except KError:
        meta.op_flags |= _DIRECTDATA
        chain.u = u
        fill_table(chain, b"")
        raise


def truncate(ip: Inode, size: int) -> None:
    """Give a file another size; what is new is zero. Times are not touched.

    Raises:
        KError: EISDIR, EINVAL, EFBIG, EROFS; ENOSPC or EIO, the file is as it was.

    Counterpart: hammer2_truncate_file, hammer2_extend_file (hammer2_vnops.c).
    """
    dev = ip.pfs.dev
    dev.modifying()
    chain = _data_chain(ip)
    if not 0 <= size <= _MAX_SIZE:
        raise KError(EINVAL if size < 0 else EFBIG)
    mtid = ip.pfs.trans_sub()
    meta = ip.modify(mtid)
    if meta.op_flags & _DIRECTDATA:
        if size <= EMBEDDED_BYTES:
            chain.u = chain.u[: min(size, meta.size)]
            meta.size = size
            return
        _leave_inode(ip, chain, mtid)
    elif size < meta.size:
        _shorten(ip, chain, size, mtid)
    meta.size = size


def _shorten(ip: Inode, chain: InodeChain, size: int, mtid: int) -> None:
    """Take away all pieces behind the new end, and the rest of the piece it is in."""
    chains = ip.pfs.dev.chains
    behind = -(-size // PBUFSIZE) * PBUFSIZE
    chains.modify(chains.way(chain, behind)[-1], mtid)
    lbase = size & ~PBUFMASK
    old = strategy_read(ip, lbase) if size != lbase else None
    if old is not None and len(old) > size - lbase:
        strategy_write(ip, lbase, old[: size - lbase], mtid)
    chains.cut(chain, behind, mtid)


def punch(ip: Inode, offset: int, length: int) -> None:
    """Make a range of a file zeroes, giving back what whole pieces took. The size stays.

    Raises:
        KError: EISDIR, EINVAL, EROFS; ENOSPC or EIO, part of the range may be zeroes already.
    """
    dev = ip.pfs.dev
    dev.modifying()
    chain = _data_chain(ip)
    if offset < 0 or length < 0:
        raise KError(EINVAL)
    stop = min(offset + length, chain.meta.size)
    if offset >= stop:
        return
    mtid = ip.pfs.trans_sub()
    meta = ip.modify(mtid)
    if meta.op_flags & _DIRECTDATA:
        chain.u = _patched(chain.u[: meta.size], offset, bytes(stop - offset))
        return
    at = offset & ~PBUFMASK
    while at < stop:
        dev.chains.trim()
        found: list[Blockref] = []
        dev.chains.collect(ip.chain, at, stop - 1, found, _BATCH)
        for bref in found:
            _punch_piece(ip, bref.key, offset, stop, mtid)
        at = found[-1].key + PBUFSIZE if len(found) == _BATCH else stop


def _punch_piece(ip: Inode, lbase: int, start: int, stop: int, mtid: int) -> None:
    """Make the part of a piece that lies in a range zeroes."""
    end = min(lbase + PBUFSIZE, ip.chain.meta.size)
    low, high = max(start, lbase), min(stop, end)
    if low == lbase and high == end:
        zero_write(ip, lbase, mtid)
    else:
        old = strategy_read(ip, lbase) or b""
        piece = _patched(old.ljust(end - lbase, b"\0")[: end - lbase], low - lbase,
                         bytes(high - low))  # fmt: skip
        strategy_write(ip, lbase, piece, mtid)


def _data_chain(ip: Inode) -> InodeChain:
    """The chain of an inode that can have data.

    Raises:
        KError: EISDIR, EINVAL.
    """
    chain = ip.chain
    kind = chain.meta.type
    if kind not in _WITH_DATA:
        raise KError(EISDIR if kind == ObjType.DIRECTORY else EINVAL)
    return chain
