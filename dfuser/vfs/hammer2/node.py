"""An inode as it was found on a volume at rest, and the tree below it.

Counterpart: struct hammer2_inode (vfs/hammer2/hammer2.h), as far as a reader needs one.
Token/lock order: takes none.
Invariants: inum, version and size of the block were checked when the node was made.
"""

from __future__ import annotations

from attrs import define, field

from dfuser.vfs.hammer2.errors import MediaError
from dfuser.vfs.hammer2.ondisk.blockref import Blockref
from dfuser.vfs.hammer2.ondisk.const import (
    INODE_BYTES,
    INODE_MAXNAME,
    INODE_VERSION_ONE,
    KEY_MAX,
    BrefType,
    ObjType,
)
from dfuser.vfs.hammer2.ondisk.inode import InodeMeta, unpack_inode
from dfuser.vfs.hammer2.tree import Table, Tree, make_table


@define(eq=False)
class Node:
    """A file, directory or anything else that has an inode.

    ``name`` is what the inode itself says: the label of a PFS, a number in words otherwise.
    ``u`` is the inode's last half: data or blockrefs.
    """

    bref: Blockref
    meta: InodeMeta
    name: bytes
    u: bytes
    _table: Table | None = field(default=None, repr=False)

    @property
    def is_directory(self) -> bool:
        """Whether names can lie below."""
        return self.meta.type == ObjType.DIRECTORY

    def table(self) -> Table:
        """Where the inode's own tree begins; empty if its data lies in the inode.

        Raises:
            MediaError: the blockset is no table.
        """
        if self._table is None:
            if self.meta.directdata:
                self._table = Table([], [])
            else:
                self._table = make_table(self.u, 0, KEY_MAX, self.bref.data_off)
        return self._table


def load_node(tree: Tree, bref: Blockref) -> Node:
    """The inode of an INODE blockref.

    Raises:
        MediaError: the block is damaged, or not an inode.
    """
    if bref.type != BrefType.INODE or bref.nbytes != INODE_BYTES:
        raise MediaError(f"no inode, but type {bref.type}", bref.data_off)
    meta, filename, u = unpack_inode(tree.load(bref))
    if meta.version != INODE_VERSION_ONE:
        raise MediaError(f"an inode of version {meta.version}", bref.data_off)
    if meta.name_len > INODE_MAXNAME:
        raise MediaError(f"an inode with a name of {meta.name_len} bytes", bref.data_off)
    return Node(bref, meta, filename[: meta.name_len], u)
