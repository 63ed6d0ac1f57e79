"""Renaming in tmpfs: moving a name, replacing one, exchanging two.

Everything is validated first; what follows cannot fail. Moved entries keep their cookie where they
can (see dir.py), so a listing that is under way shows every file once.

Counterpart: tmpfs_nrename (vfs/tmpfs/tmpfs_vnops.c).
Differs from DragonFly: rename knows NOREPLACE, EXCHANGE and WHITEOUT; flags of directories are
    enforced here too, for callers whose permissions the host has checked.
Token/lock order: none; nothing here suspends.
Invariants: those of dir.py and `TmpfsMount.check`, between any two operations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfuser.libkern.errno import (
    EEXIST,
    EINVAL,
    EISDIR,
    EMLINK,
    ENOENT,
    ENOTDIR,
    ENOTEMPTY,
    EPERM,
    EROFS,
    EXDEV,
    KError,
)
from dfuser.libkern.klist import NOTE_DELETE, NOTE_RENAME, NOTE_WRITE
from dfuser.libkern.param import LINK_MAX
from dfuser.libkern.stat import APPEND, IMMUTABLE, VType
from dfuser.vfs.event import vn_knote
from dfuser.vfs.mountflags import MNT
from dfuser.vfs.vop import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT

from .dir import TmpfsDir, TmpfsDirent
from .node import TmpfsNode, TmpfsSpecial
from .vnops_name import FIXED, NameOps

if TYPE_CHECKING:
    from dfuser.libkern.ucred import Ucred
    from dfuser.vfs.namecache import NamecacheEntry
    from dfuser.vfs.vnode import Vnode

_RENAME_FLAGS: Final = RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT


class RenameOps(NameOps):
    """Rename. See `vnops.TmpfsVnodeOps`."""

    __slots__ = ()

    def vop_nrename(
        self,
        fdvp: Vnode,
        fncp: NamecacheEntry,
        tdvp: Vnode,
        tncp: NamecacheEntry,
        cred: Ucred,
        flags: int = 0,
    ) -> None:
        """Move a name, replacing what is there, or exchange two. Counterpart: tmpfs_nrename.

        With RENAME_WHITEOUT a whiteout stays at the old name.

        Raises:
            KError: ENOENT, EEXIST (NOREPLACE), EXDEV, ENOTDIR, EISDIR, ENOTEMPTY, EMLINK,
                EPERM, EROFS, ENOSPC (no inode for the whiteout); EINVAL for a senseless pair
                of flags, or a directory into itself.
        """
        if flags & ~_RENAME_FLAGS or (flags & RENAME_EXCHANGE and flags != RENAME_EXCHANGE):
            raise KError(EINVAL)
        if fdvp.mount is not tdvp.mount:
            raise KError(EXDEV)
        fdnode: TmpfsDir = fdvp.data
        tdnode: TmpfsDir = tdvp.data
        fde = self._entry(fdnode, fncp)
        tde = tdnode.lookup(tncp.name)
        if tde is not None and flags & RENAME_NOREPLACE:
            raise KError(EEXIST)
        if tde is None and flags & RENAME_EXCHANGE:
            raise KError(ENOENT)
        if tde is not None and fde.node is tde.node:
            return
        self._may_move(fdnode, fde, tdnode)
        if flags & RENAME_WHITEOUT:
            self.tm.want_node()
        name = fncp.name
        if tde is None:
            self._may_add(tdnode, tncp.name)
            self._rename(fdvp, fncp, fde, tdvp, tncp)
        elif flags & RENAME_EXCHANGE:
            self._may_move(tdnode, tde, fdnode)
            self._exchange(fdvp, fncp, fde, tdvp, tncp, tde)
        else:
            self._may_replace(fde.node, tdnode, tde.node)
            self._replace(fdvp, fncp, fde, tdvp, tncp, tde)
        if flags & RENAME_WHITEOUT:
            self._whiteout(fdnode, name, cred)

    def _whiteout(self, dnode: TmpfsDir, name: bytes, cred: Ucred) -> None:
        """Leave what overlay file systems take for "removed here": a character device 0, 0."""
        ino = self.tm.number()
        none = TmpfsSpecial(ino, 0, cred.uid, cred.gid, dnode.mtime, VType.VCHR, (0, 0))
        self.tm.nodes[ino] = none
        self._attach(dnode, name, none, ino)

    def _may_move(self, dnode: TmpfsDir, entry: TmpfsDirent, to: TmpfsDir) -> None:
        """Refuse a move of one entry from its directory to another."""
        if self.tm.mp.flag & MNT.RDONLY:
            raise KError(EROFS)
        if to.nlink == 0:
            raise KError(ENOENT)
        node = entry.node
        if (node.flags & FIXED) or (dnode.flags & (APPEND | IMMUTABLE)):
            raise KError(EPERM)
        if isinstance(node, TmpfsDir) and dnode is not to:
            if to.is_below(node):
                raise KError(EINVAL)
            if to.nlink >= LINK_MAX:
                raise KError(EMLINK)

    @staticmethod
    def _may_replace(node: TmpfsNode, tdnode: TmpfsDir, victim: TmpfsNode) -> None:
        """Refuse to put one file in another's place."""
        if (victim.flags & FIXED) or (tdnode.flags & (APPEND | IMMUTABLE)):
            raise KError(EPERM)
        if isinstance(node, TmpfsDir):
            if not isinstance(victim, TmpfsDir):
                raise KError(ENOTDIR)
            if victim.names:
                raise KError(ENOTEMPTY)
        elif isinstance(victim, TmpfsDir):
            raise KError(EISDIR)

    def _rename(
        self,
        fdvp: Vnode,
        fncp: NamecacheEntry,
        fde: TmpfsDirent,
        tdvp: Vnode,
        tncp: NamecacheEntry,
    ) -> None:
        """Move to a free name; within one directory the entry keeps its cookie."""
        fdnode, tdnode, node = fdvp.data, tdvp.data, fde.node
        if fdnode is tdnode:
            fdnode.rename(fde, tncp.name)
        else:
            self._detach(fdnode, fde)
            self._attach(tdnode, tncp.name, node, self.tm.number())
        self._moved(fdvp, tdvp, node)
        self.tm.vfs.cache.rename(fncp, tncp)
        self._note_moved(fdvp, tdvp, node)

    def _replace(
        self,
        fdvp: Vnode,
        fncp: NamecacheEntry,
        fde: TmpfsDirent,
        tdvp: Vnode,
        tncp: NamecacheEntry,
        tde: TmpfsDirent,
    ) -> None:
        """Move onto a taken name: its entry stays where it is and leads to the moved file."""
        fdnode, tdnode, node, victim = fdvp.data, tdvp.data, fde.node, tde.node
        vp = self.tm.alloc_vp(victim)
        self._detach(fdnode, fde)
        self._unlink_node(tdnode, victim)
        tde.node = node
        self._link_node(tdnode, tde)
        self._moved(fdvp, tdvp, node)
        victim.ctime = node.ctime
        self._lost_name(vp, victim)
        self.tm.vfs.cache.rename(fncp, tncp)
        vn_knote(vp, NOTE_DELETE)
        self._note_moved(fdvp, tdvp, node)
        vp.rele()

    def _exchange(
        self,
        fdvp: Vnode,
        fncp: NamecacheEntry,
        fde: TmpfsDirent,
        tdvp: Vnode,
        tncp: NamecacheEntry,
        tde: TmpfsDirent,
    ) -> None:
        """Swap what two names mean; both entries stay where they are."""
        fdnode, tdnode = fdvp.data, tdvp.data
        one, other = fde.node, tde.node
        self._unlink_node(fdnode, one)
        self._unlink_node(tdnode, other)
        fde.node, tde.node = other, one
        self._link_node(fdnode, fde)
        self._link_node(tdnode, tde)
        self._moved(fdvp, tdvp, one)
        other.ctime = one.ctime
        other.attr_changed()
        self.tm.vfs.cache.exchange(fncp, tncp)
        self._note_moved(fdvp, tdvp, one)
        if other.vnode is not None:
            vn_knote(other.vnode, NOTE_RENAME)

    def _moved(self, fdvp: Vnode, tdvp: Vnode, node: TmpfsNode) -> None:
        """Set the times of a rename."""
        now = self.tm.now()
        self._touch(fdvp.data, now)
        if tdvp is not fdvp:
            self._touch(tdvp.data, now)
        node.ctime = now
        node.attr_changed()

    @staticmethod
    def _note_moved(fdvp: Vnode, tdvp: Vnode, node: TmpfsNode) -> None:
        """Tell the watchers of a rename."""
        vn_knote(fdvp, NOTE_WRITE)
        if tdvp is not fdvp:
            vn_knote(tdvp, NOTE_WRITE)
        if node.vnode is not None:
            vn_knote(node.vnode, NOTE_RENAME)
