"""Directories of tmpfs: looking up, listing, creating, linking, removing.

Each operation validates everything first; what follows cannot fail, so a name, its link
count, its file and the namecache change together. The order of a change is: directory,
link counts, times, namecache, watchers; the vnode of a file that loses its last name is
released last, because that may free the file.

Times: a directory whose names change gets new mtime and ctime; a file gets a new ctime
when it gains, loses or changes a name.

Link counts: a directory counts its name, its own ``.`` and the ``..`` of each subdirectory.

Counterpart: tmpfs_nresolve, tmpfs_nlookupdotdot, tmpfs_ncreate and its sisters,
    tmpfs_nlink, tmpfs_nremove, tmpfs_nrmdir, tmpfs_readdir
    (vfs/tmpfs/tmpfs_vnops.c); tmpfs_alloc_file (tmpfs_subr.c).
Differs from DragonFly: a file can be made without a name (O_TMPFILE of the host); flags of
    directories are enforced here too, for callers whose permissions the host has checked; a set-gid
    directory hands its set-gid bit to new directories; the group of a new file is the
    directory's only in a set-gid directory (there always: BSD's rule), else the creator's.
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
    ENAMETOOLONG,
    ENOENT,
    ENOTDIR,
    ENOTEMPTY,
    EPERM,
    EROFS,
    EXDEV,
    KKASSERT,
    KError,
)
from dfuser.libkern.klist import NOTE_DELETE, NOTE_LINK, NOTE_WRITE
from dfuser.libkern.param import LINK_MAX, NAME_MAX
from dfuser.libkern.stat import (
    ACCESSPERMS,
    ALLPERMS,
    APPEND,
    DT_DIR,
    IMMUTABLE,
    NOUNLINK,
    S_ISGID,
    VType,
)
from dfuser.vfs.event import vn_knote
from dfuser.vfs.mountflags import MNT
from dfuser.vfs.vattr import Dirent, Vattr
from dfuser.vfs.vnode import V

from .dir import COOKIE_DOT, COOKIE_DOTDOT, TmpfsDir, TmpfsDirent
from .node import TmpfsLink, TmpfsNode, TmpfsReg, TmpfsSpecial
from .vnops_range import RangeOps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dfuser.libkern.acl import Acl
    from dfuser.libkern.ucred import Ucred
    from dfuser.vfs.namecache import NamecacheEntry
    from dfuser.vfs.vnode import Vnode

#: What keeps a file's names as they are.
FIXED: Final = IMMUTABLE | APPEND | NOUNLINK

_DEVICES: Final = (VType.VBLK, VType.VCHR, VType.VFIFO)


class NameOps(RangeOps):
    """The operations on names. See `vnops.TmpfsVnodeOps`."""

    __slots__ = ()

    # --- looking ---------------------------------------------------------------------------

    def vop_nresolve(self, dvp: Vnode, ncp: NamecacheEntry, cred: Ucred) -> None:
        """Ask the directory what a name means. Counterpart: tmpfs_nresolve."""
        dnode: TmpfsDir = dvp.data
        cache = self.tm.vfs.cache
        entry = dnode.names.get(ncp.name)
        if entry is None:
            cache.setvp(ncp, None)
            return
        vp = self.tm.alloc_vp(entry.node)
        cache.setvp(ncp, vp)
        vp.rele()

    def vop_nlookupdotdot(self, dvp: Vnode, cred: Ucred) -> Vnode:
        """The directory above, referenced. Counterpart: tmpfs_nlookupdotdot.

        Raises:
            KError: ENOENT, the root or a removed directory.
        """
        parent = dvp.data.parent
        if parent is None:
            raise KError(ENOENT)
        return self.tm.alloc_vp(parent)

    def vop_ndirname(self, dvp: Vnode, cred: Ucred) -> bytes | None:
        """The name a directory has; None for the root or a removed one."""
        entry = dvp.data.dirent
        return None if entry is None else entry.name

    def vop_readdir(
        self, vp: Vnode, cookie: int, limit: int, cred: Ucred, plus: bool = False
    ) -> Sequence[Dirent]:
        """List a directory. Counterpart: tmpfs_readdir.

        Raises:
            KError: ENOTDIR; EINVAL, a negative cookie.
        """
        dnode = vp.data
        if not isinstance(dnode, TmpfsDir):
            raise KError(ENOTDIR)
        if cookie < 0:
            raise KError(EINVAL)
        if not self.tm.mp.flag & (MNT.NOATIME | MNT.RDONLY):
            self.accessed(dnode)
        fill = self.fill
        out: list[Dirent] = []
        if cookie < COOKIE_DOT and limit > 0:
            attr = fill(dnode) if plus else None
            out.append(Dirent(dnode.ino, DT_DIR, b".", COOKIE_DOT, attr))
        if cookie < COOKIE_DOTDOT and len(out) < limit:
            above = dnode.parent or self.tm.root
            attr = fill(above) if plus else None
            out.append(Dirent(above.ino, DT_DIR, b"..", COOKIE_DOTDOT, attr))
        if plus:
            for entry in dnode.after(cookie, limit - len(out)):
                node = entry.node
                out.append(Dirent(node.ino, node.dtype, entry.name, entry.cookie, fill(node)))
        else:
            for entry in dnode.after(cookie, limit - len(out)):
                node = entry.node
                out.append(Dirent(node.ino, node.dtype, entry.name, entry.cookie))
        return out

    # --- creating --------------------------------------------------------------------------

    def vop_ncreate(self, dvp: Vnode, ncp: NamecacheEntry, vap: Vattr, cred: Ucred) -> Vnode:
        """A regular file or a socket. Counterpart: tmpfs_ncreate."""
        vtype = VType.VSOCK if vap.type is VType.VSOCK else VType.VREG
        return self._create(dvp, ncp, vap, vtype, cred)

    def vop_nmkdir(self, dvp: Vnode, ncp: NamecacheEntry, vap: Vattr, cred: Ucred) -> Vnode:
        """A directory. Counterpart: tmpfs_nmkdir."""
        return self._create(dvp, ncp, vap, VType.VDIR, cred)

    def vop_nmknod(self, dvp: Vnode, ncp: NamecacheEntry, vap: Vattr, cred: Ucred) -> Vnode:
        """A device or FIFO. Counterpart: tmpfs_nmknod.

        Raises:
            KError: EINVAL, another kind.
        """
        if vap.type not in _DEVICES:
            raise KError(EINVAL)
        return self._create(dvp, ncp, vap, vap.type, cred)

    def vop_nsymlink(
        self, dvp: Vnode, ncp: NamecacheEntry, vap: Vattr, target: bytes, cred: Ucred
    ) -> Vnode:
        """A symbolic link. Counterpart: tmpfs_nsymlink.

        Raises:
            KError: ENAMETOOLONG, the target is longer than the mount allows; ENOENT, empty.
        """
        if len(target) > self.tm.limits.maxsymlink:
            raise KError(ENAMETOOLONG)
        if not target:
            raise KError(ENOENT)
        return self._create(dvp, ncp, vap, VType.VLNK, cred, target)

    def _create(
        self,
        dvp: Vnode,
        ncp: NamecacheEntry,
        vap: Vattr,
        vtype: VType,
        cred: Ucred,
        target: bytes = b"",
    ) -> Vnode:
        """Make a file and its first name. Counterpart: tmpfs_alloc_file.

        Raises:
            KError: ENOSPC, EMLINK, ENOENT (the directory was removed), EEXIST, EPERM, EROFS.
        """
        tm = self.tm
        dnode: TmpfsDir = dvp.data
        self._may_add(dnode, ncp.name)
        if vtype is VType.VDIR and dnode.nlink >= LINK_MAX:
            raise KError(EMLINK)
        tm.want_node()
        node = self._new_node(dnode, vap, vtype, cred, target)
        tm.nodes[node.ino] = node
        self._attach(dnode, ncp.name, node, node.ino)
        self._touch(dnode, node.ctime)
        vp = tm.alloc_vp(node)
        self._set_entry(ncp, vp)
        vn_knote(dvp, NOTE_WRITE | NOTE_LINK if vtype is VType.VDIR else NOTE_WRITE)
        return vp

    def vop_ntmpfile(self, dvp: Vnode, vap: Vattr, cred: Ucred) -> Vnode:
        """A regular file without a name, as it would be in this directory.

        It counts as a file of the mount. The directory does not change.

        Raises:
            KError: ENOTDIR; ENOSPC; ENOENT, the directory was removed; EPERM, it is immutable;
                EROFS.
        """
        tm = self.tm
        dnode = dvp.data
        if not isinstance(dnode, TmpfsDir):
            raise KError(ENOTDIR)
        self._may_create(dnode)
        tm.want_node()
        node = self._new_node(dnode, vap, VType.VREG, cred, b"")
        tm.nodes[node.ino] = node
        vp = tm.alloc_vp(node)
        vp.set_finalize()
        return vp

    def _new_node(
        self, dnode: TmpfsDir, vap: Vattr, vtype: VType, cred: Ucred, target: bytes
    ) -> TmpfsNode:
        """The file itself: owner, group and mode by the directory's rules.

        Counterpart: tmpfs_alloc_node.
        """
        tm = self.tm
        default = dnode.ext.default_acl if dnode.ext is not None else None
        mode = (ACCESSPERMS if vap.mode is None else vap.mode) & ALLPERMS
        uid = cred.uid if vap.uid is None else vap.uid
        gid = cred.gid if vap.gid is None else vap.gid
        if dnode.mode & S_ISGID:
            gid = dnode.gid
            if vtype is VType.VDIR:
                mode |= S_ISGID
        if vtype is not VType.VDIR and cred.uid and not cred.groupmember(gid):
            mode &= ~S_ISGID
        acl = None
        if default is not None and vtype is not VType.VLNK:
            mode, acl = default.inherit(mode)
        mode = tm.modes.setdefault(mode, mode)
        ino, now = tm.number(), tm.now()
        node: TmpfsNode
        if vtype is VType.VREG:
            node = TmpfsReg(ino, mode, uid, gid, now)
        elif vtype is VType.VDIR:
            node = TmpfsDir(ino, mode, uid, gid, now, dnode)
        elif vtype is VType.VLNK:
            node = TmpfsLink(ino, mode, uid, gid, now, target)
        else:
            node = TmpfsSpecial(ino, mode, uid, gid, now, vtype, (vap.rmajor, vap.rminor))
        if acl is not None:
            self._inherit(node, acl, default)
        return node

    @staticmethod
    def _inherit(node: TmpfsNode, acl: Acl, default: Acl | None) -> None:
        """Give a new file the lists that a directory's default list means for it."""
        if not acl.is_minimal:
            node.extend().acl = acl
        if isinstance(node, TmpfsDir):
            node.extend().default_acl = default

    def vop_nlink(self, dvp: Vnode, ncp: NamecacheEntry, vp: Vnode, cred: Ucred) -> None:
        """A further name for a file, or the first for one made without. Counterpart: tmpfs_nlink.

        Raises:
            KError: EPERM (a directory, a fixed file), EXDEV, ENOENT (the directory was removed, or
                the file lost its last name), EMLINK, EEXIST, EROFS.
        """
        if vp.type is VType.VDIR:
            raise KError(EPERM)
        if vp.mount is not dvp.mount:
            raise KError(EXDEV)
        dnode: TmpfsDir = dvp.data
        node: TmpfsNode = vp.data
        self._may_add(dnode, ncp.name)
        if node.nlink >= LINK_MAX:
            raise KError(EMLINK)
        if not node.nlink and not vp.flag & V.LINKABLE:
            raise KError(ENOENT)
        if node.flags & (IMMUTABLE | APPEND):
            raise KError(EPERM)
        now = self.tm.now()
        vp.flag &= ~(V.LINKABLE | V.FINALIZE)
        self._attach(dnode, ncp.name, node, self.tm.number())
        self._touch(dnode, now)
        node.ctime = now
        vp.attr_changed()
        self._set_entry(ncp, vp)
        vn_knote(vp, NOTE_LINK)
        vn_knote(dvp, NOTE_WRITE)

    # --- removing --------------------------------------------------------------------------

    def vop_nremove(self, dvp: Vnode, ncp: NamecacheEntry, cred: Ucred) -> None:
        """Remove a name of anything but a directory. Counterpart: tmpfs_nremove.

        Raises:
            KError: ENOENT, EISDIR, EPERM, EROFS.
        """
        entry = self._entry(dvp.data, ncp)
        if isinstance(entry.node, TmpfsDir):
            raise KError(EISDIR)
        self._remove(dvp, ncp, entry)
        vn_knote(dvp, NOTE_WRITE)

    def vop_nrmdir(self, dvp: Vnode, ncp: NamecacheEntry, cred: Ucred) -> None:
        """Remove an empty directory. Counterpart: tmpfs_nrmdir.

        Raises:
            KError: ENOENT, ENOTDIR, ENOTEMPTY, EPERM, EROFS.
        """
        entry = self._entry(dvp.data, ncp)
        if not isinstance(entry.node, TmpfsDir):
            raise KError(ENOTDIR)
        if entry.node.names:
            raise KError(ENOTEMPTY)
        self._remove(dvp, ncp, entry)
        vn_knote(dvp, NOTE_WRITE | NOTE_LINK)

    def _remove(self, dvp: Vnode, ncp: NamecacheEntry, entry: TmpfsDirent) -> None:
        """Take a name away that may go, and its file if it was the last."""
        dnode: TmpfsDir = dvp.data
        node = entry.node
        if (node.flags & FIXED) or (dnode.flags & (APPEND | IMMUTABLE)):
            raise KError(EPERM)
        vp = self.tm.alloc_vp(node)
        now = self.tm.now()
        self._detach(dnode, entry)
        self._touch(dnode, now)
        node.ctime = now
        self._lost_name(vp, node)
        self.tm.vfs.cache.unlink(ncp)
        vn_knote(vp, NOTE_DELETE)
        vp.rele()

    # --- steps -----------------------------------------------------------------------------

    def _may_add(self, dnode: TmpfsDir, name: bytes) -> None:
        """Refuse a new name in a directory that is removed, fixed, read-only or has it.

        Raises:
            KError: EROFS, ENOENT, EPERM, ENAMETOOLONG, EEXIST.
        """
        self._may_create(dnode)
        if len(name) > NAME_MAX:
            raise KError(ENAMETOOLONG)
        if name in dnode.names:
            raise KError(EEXIST)

    def _may_create(self, dnode: TmpfsDir) -> None:
        """Refuse a new file in a directory that is removed, fixed or read-only.

        Raises:
            KError: EROFS, ENOENT, EPERM.
        """
        if self.tm.mp.flag & MNT.RDONLY:
            raise KError(EROFS)
        if dnode.nlink == 0:
            raise KError(ENOENT)
        if dnode.flags & IMMUTABLE:
            raise KError(EPERM)

    def _entry(self, dnode: TmpfsDir, ncp: NamecacheEntry) -> TmpfsDirent:
        """The entry that a namecache entry stands for.

        Raises:
            KError: EROFS; ENOENT, there is none.
        """
        if self.tm.mp.flag & MNT.RDONLY:
            raise KError(EROFS)
        entry = dnode.lookup(ncp.name)
        if entry is None:
            raise KError(ENOENT)
        KKASSERT(ncp.vp is None or ncp.vp.data is entry.node, "tmpfs: namecache and entry differ")
        return entry

    @staticmethod
    def _link_node(dnode: TmpfsDir, entry: TmpfsDirent) -> None:
        """Count a name that leads to a file now. Counterpart: tmpfs_dir_attach_locked."""
        node = entry.node
        node.nlink += 1
        if isinstance(node, TmpfsDir):
            node.nlink += node.nlink == 1
            dnode.nlink += 1
            node.parent, node.dirent = dnode, entry

    @staticmethod
    def _unlink_node(dnode: TmpfsDir, node: TmpfsNode) -> None:
        """Count a name that is gone."""
        node.nlink -= 1
        if isinstance(node, TmpfsDir):
            dnode.nlink -= 1
            node.parent = node.dirent = None

    def _attach(self, dnode: TmpfsDir, name: bytes, node: TmpfsNode, cookie: int) -> None:
        """Add a name and count it."""
        self._link_node(dnode, dnode.attach(name, node, cookie))

    def _detach(self, dnode: TmpfsDir, entry: TmpfsDirent) -> None:
        """Remove a name and count it."""
        dnode.detach(entry)
        self._unlink_node(dnode, entry.node)

    @staticmethod
    def _lost_name(vp: Vnode, node: TmpfsNode) -> None:
        """After the loss of a name: a directory without one loses its ``.`` too."""
        if isinstance(node, TmpfsDir):
            node.nlink -= 1
            KKASSERT(node.nlink == 0, "tmpfs: removed directory has links")
        vp.attr_changed()
        if not node.nlink:
            vp.set_finalize()

    @staticmethod
    def _touch(dnode: TmpfsDir, now: int) -> None:
        """The names of a directory changed."""
        dnode.mtime = dnode.ctime = now
        dnode.attr_changed()

    def _set_entry(self, ncp: NamecacheEntry, vp: Vnode) -> None:
        """Resolve the namecache entry of a new name."""
        cache = self.tm.vfs.cache
        cache.setunresolved(ncp)
        cache.setvp(ncp, vp)
