"""The operation vector of tmpfs, put together.

Operations are grouped by what they work on, each group in a file and each built on the
one before: attributes, contents, names, extended attributes. This is the whole.

Counterpart: tmpfs_vnode_vops (vfs/tmpfs/tmpfs_vnops.c).
Differs from DragonFly: one instance for each mount, which it knows; FIFOs have no vector of
    their own here (opening one is the business of the room that has pipes).
Token/lock order: none.
Invariants: none of its own.
"""

from __future__ import annotations

from .vnops_xattr import XattrOps


class TmpfsVnodeOps(XattrOps):
    """Every operation of a tmpfs. Counterpart: tmpfs_vnode_vops."""

    __slots__ = ()
