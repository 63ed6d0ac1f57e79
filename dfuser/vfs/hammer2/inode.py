"""Inodes in memory: attributes that may be changed, and how an inode comes and goes.

The block of an inode is a chain (`InodeChain`), for it has a table. An `Inode` is the handle that
the rest of the file system holds: it survives its chain's leaving the cache and finds it again.
There is one for each inode at a time, as long as somebody holds it.

An inode lies below the root of its PFS under its number, whatever names lead to it. Its own
filename is its number in words; ``iparent`` is the directory in which it was made or renamed to
last.

Removed but open: the last name goes at once, the inode stays with ``nlinks`` 0 until it is closed
(`inode_destroy`). A crash before that leaves it behind with nothing leading to it; fsck finds it.

Counterpart: struct hammer2_inode (vfs/hammer2/hammer2.h), hammer2_inode.c.
Differs from DragonFly: attributes live in the chain; a change claims its block at once instead of
    when the inode is flushed. New inodes are in their PFS at once.
Token/lock order: takes none; the holder of the volume's lock calls.
Invariants: ``meta.inum`` is the chain's key; data lies in ``u`` exactly while the flag DIRECTDATA
    is set, and then the table is empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfuser.libkern.errno import ENOENT, ESTALE, KError
from dfuser.vfs.hammer2.chain import Chain, fill_table
from dfuser.vfs.hammer2.errors import MediaError
from dfuser.vfs.hammer2.ondisk.blockref import Blockref
from dfuser.vfs.hammer2.ondisk.const import (
    EMBEDDED_BYTES,
    INODE_BYTES,
    INODE_MAXNAME,
    INODE_VERSION_ONE,
    SET_COUNT,
    BrefType,
    Check,
    ObjType,
    OpFlag,
    enc_methods,
)
from dfuser.vfs.hammer2.ondisk.inode import InodeMeta, unpack_inode

if TYPE_CHECKING:
    from dfuser.vfs.hammer2.pfs import Pfs

_INODE: Final = int(BrefType.INODE)
_DIRECTDATA: Final = int(OpFlag.DIRECTDATA)
#: Kinds of file whose first 512 bytes lie in the inode.
_EMBEDDING: Final = (int(ObjType.REGFILE), int(ObjType.SOFTLINK))


class InodeChain(Chain):
    """The block of an inode.

    Attributes:
        meta: the attributes. filename: what the inode says its name is, not padded.
        u: data, while DIRECTDATA is set.
        pfs: of the root of a PFS that is in use; tells pfs_inum.

    Counterpart: hammer2_chain.data->ipdata.
    """

    __slots__ = ("filename", "meta", "pfs", "u")

    def __init__(self, bref: Blockref, meta: InodeMeta, filename: bytes, u: bytes) -> None:
        """An inode; the table, if it has one, is filled by the caller."""
        super().__init__(bref, SET_COUNT)
        self.meta = meta
        self.filename = filename
        self.u = u
        self.pfs: Pfs | None = None

    @property
    def below_directory(self) -> bool:
        """Whether the inode is a directory's."""
        return self.meta.type == ObjType.DIRECTORY

    def pack(self) -> bytes:
        """The block."""
        meta = self.meta
        if self.pfs is not None:
            meta.pfs_inum = self.pfs.inode_tid
        u = self.u if meta.op_flags & _DIRECTDATA else self.table_bytes()
        return b"".join(
            (meta.pack(), self.filename.ljust(INODE_MAXNAME, b"\0"), u.ljust(EMBEDDED_BYTES, b"\0"))
        )


def make_inode(bref: Blockref, data: bytes) -> InodeChain:
    """The chain of an inode from its block.

    Raises:
        MediaError: it is no inode, or its blockset no table.
    """
    if len(data) != INODE_BYTES:
        raise MediaError(f"an inode of {len(data)} bytes", bref.data_off)
    meta, filename, u = unpack_inode(data)
    if meta.version != INODE_VERSION_ONE:
        raise MediaError(f"an inode of version {meta.version}", bref.data_off)
    if meta.name_len > INODE_MAXNAME:
        raise MediaError(f"an inode with a name of {meta.name_len} bytes", bref.data_off)
    if meta.op_flags & _DIRECTDATA:
        if meta.size > EMBEDDED_BYTES:
            raise MediaError(f"inode {meta.inum:#x} says {meta.size} bytes lie in it",
                             bref.data_off)  # fmt: skip
        return InodeChain(bref, meta, filename[: meta.name_len], u)
    chain = InodeChain(bref, meta, filename[: meta.name_len], b"")
    fill_table(chain, u)
    return chain


class Inode:
    """A file, directory or other object, as the file system holds it.

    Attributes:
        pfs: where it lives. inum: its number.
        comp_heuristic: how often in a row its data did not get smaller.
        deleted: it is gone from the media.

    Counterpart: struct hammer2_inode (hammer2.h).
    """

    __slots__ = ("__weakref__", "_chain", "comp_heuristic", "deleted", "inum", "pfs")

    def __init__(self, pfs: Pfs, inum: int, chain: InodeChain) -> None:
        """A handle for a chain; `Pfs.inode` makes them."""
        self.pfs = pfs
        self.inum = inum
        self._chain = chain
        self.comp_heuristic = 0
        self.deleted = False

    @property
    def chain(self) -> InodeChain:
        """The chain, read again if it had left the cache.

        Raises:
            KError: ESTALE, the inode is gone.
            MediaError: its block is damaged.
        """
        chain = self._chain
        if chain.alive:
            chain.used = True
            return chain
        if self.deleted:
            raise KError(ESTALE)
        self._chain = chain = self.pfs.load_chain(self.inum)
        return chain

    @property
    def meta(self) -> InodeMeta:
        """The attributes; call `modify` before changing them."""
        return self.chain.meta

    @property
    def is_directory(self) -> bool:
        """Whether names can lie below."""
        return self.chain.meta.type == ObjType.DIRECTORY

    def modify(self, mtid: int) -> InodeMeta:
        """Claim what a change of the inode needs. Counterpart: hammer2_inode_modify.

        Returns:
            The attributes.

        Raises:
            KError: ENOSPC, EIO; nothing has changed.
        """
        chain = self.chain
        self.pfs.dev.chains.modify(chain, mtid)
        return chain.meta

    def __repr__(self) -> str:
        return f"<Inode {self.inum:#x} of {self.pfs.label!r}>"


def inode_create_normal(pfs: Pfs, dip: Inode, meta: InodeMeta, mtid: int) -> Inode:
    """Make an inode that no name leads to yet.

    Args:
        pfs: where.
        dip: the directory in which its name will be; compression and check code are its.
        meta: type, mode, owner, times, links; the rest is filled in.
        mtid: the operation.

    Raises:
        KError: ENOSPC, EIO; nothing has changed.

    Counterpart: hammer2_inode_create_normal.
    """
    parent = dip.meta
    inum = pfs.newinum()
    meta.version = INODE_VERSION_ONE
    meta.inum = meta.name_key = inum
    meta.iparent = dip.inum
    meta.comp_algo = parent.comp_algo
    meta.check_algo = parent.check_algo
    if meta.type in _EMBEDDING:
        meta.op_flags |= _DIRECTDATA
    filename = b"0x%016x" % inum
    meta.name_len = len(filename)
    dev = pfs.dev
    data_off = dev.freemap.alloc(_INODE, inum, INODE_BYTES)
    bref = Blockref(
        _INODE, inode_methods(meta), key=inum, mirror_tid=dev.chains.mirror_tid + 1,
        modify_tid=mtid, data_off=data_off,
    )  # fmt: skip
    chain = InodeChain(bref, meta, filename, b"")
    try:
        dev.chains.insert(pfs.root_chain, bref, mtid, chain)
    except KError:
        dev.freemap.give_back(_INODE, data_off)
        raise
    return pfs.adopt(inum, chain)


def inode_methods(meta: InodeMeta) -> int:
    """The methods of an inode's blockref; what is no file data is never without a check code."""
    check = meta.check_algo & 15
    if check == Check.NONE:
        check = int(Check.XXHASH64)
    return enc_methods(check, meta.comp_algo)


def inode_destroy(ip: Inode, mtid: int) -> None:
    """Remove an inode from the media; its handle is of no use afterwards.

    Raises:
        KError: ENOSPC, EIO; nothing has changed.

    Counterpart: hammer2_xop_inode_destroy (hammer2_xops.c).
    """
    try:
        ip.pfs.dev.chains.delete(ip.pfs.root_chain, ip.inum, mtid)
    except KError as exc:
        if exc.errno != ENOENT:
            raise
    ip.deleted = True
    ip.pfs.forget(ip.inum)
