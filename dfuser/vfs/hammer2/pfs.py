"""A PFS in use: one file system of a volume, with a root, inode numbers and operation ids.

All PFSs of a volume share its blocks, its transactions and its syncs. What each has for itself is
the tree below its root, the next inode number, and ``modify_tid``, which counts operations and is
written into everything they change.

Counterpart: struct hammer2_pfs (vfs/hammer2/hammer2.h), hammer2_pfsalloc, hammer2_vfs_root
    (hammer2_vfsops.c), hammer2_trans_sub, hammer2_trans_newinum (hammer2_flush.c).
Differs from DragonFly: one copy, one master: no clusters.
Token/lock order: takes none; the holder of the volume's lock calls.
Invariants: at most one handle for each inode; no inode number is given out twice, for the root
    says which was the last in the same header that brings the inode.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from dfuser.libkern.errno import ENOENT, KError
from dfuser.vfs.hammer2.errors import MediaError
from dfuser.vfs.hammer2.inode import Inode, InodeChain
from dfuser.vfs.hammer2.ondisk.const import DIRHASH_VISIBLE, INODE_START, ROOT_INUM

if TYPE_CHECKING:
    from dfuser.vfs.hammer2.dev import Dev


class Pfs:
    """One file system of a volume. Counterpart: struct hammer2_pfs (hammer2.h)."""

    __slots__ = ("dev", "inode_tid", "inodes", "label", "modify_tid", "root", "root_chain")

    def __init__(self, dev: Dev, chain: InodeChain) -> None:
        """Use the PFS with this root; `Dev.pfs` makes it.

        The chain stays in memory from now on.
        """
        self.dev = dev
        self.label = chain.filename
        self.root_chain = chain
        chain.pinned = True
        chain.pfs = self
        self.inode_tid = max(chain.meta.pfs_inum + 1, INODE_START)
        self.modify_tid = chain.bref.modify_tid
        self.inodes: WeakValueDictionary[int, Inode] = WeakValueDictionary()
        self.root = Inode(self, ROOT_INUM, chain)

    @property
    def lsnap_tid(self) -> int:
        """The operation of the last snapshot: what is older may be shared with one."""
        return self.root_chain.meta.pfs_lsnap_tid

    def trans_sub(self) -> int:
        """An id for an operation. Counterpart: hammer2_trans_sub."""
        self.modify_tid += 1
        return self.modify_tid

    def newinum(self) -> int:
        """A number for an inode. Counterpart: hammer2_trans_newinum."""
        inum = self.inode_tid
        self.inode_tid += 1
        return inum

    def load_chain(self, inum: int) -> InodeChain:
        """The chain of an inode.

        Raises:
            KError: ENOENT, there is none.
            MediaError: it is damaged, or says another number.
        """
        if not 0 < inum < DIRHASH_VISIBLE:
            raise KError(ENOENT, f"no inode {inum:#x}")
        if inum == ROOT_INUM:
            return self.root_chain
        chains = self.dev.chains
        parent, index, found = chains.seek(self.root_chain, inum)
        if not found:
            raise KError(ENOENT, f"no inode {inum:#x}")
        chain = chains.load(parent, index)
        if not isinstance(chain, InodeChain) or chain.meta.inum != inum:
            raise MediaError(f"inode {inum:#x} says it is another", chain.bref.data_off)
        return chain

    def inode(self, inum: int) -> Inode:
        """The handle of an inode. Counterpart: hammer2_inode_get.

        Raises:
            KError: ENOENT, there is none.
            MediaError: it is damaged.
        """
        ip = self.inodes.get(inum)
        if ip is not None:
            return ip
        if inum == ROOT_INUM:
            return self.root
        return self.adopt(inum, self.load_chain(inum))

    def adopt(self, inum: int, chain: InodeChain) -> Inode:
        """Make the handle of an inode whose chain is at hand."""
        ip = Inode(self, inum, chain)
        self.inodes[inum] = ip
        return ip

    def forget(self, inum: int) -> None:
        """An inode is gone."""
        self.inodes.pop(inum, None)
