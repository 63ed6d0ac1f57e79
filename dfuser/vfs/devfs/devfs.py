"""Vnode and file system operations of devfs.

Directories and links are answered from the tree of nodes; a device's vnode hands everything on to
the device (`DevfsSpecOps`). Opening a name that clones makes a new device, and that open is of the
new device.

To the host a device is a regular file of size 0 that is always read and written directly, because a
FUSE server cannot export device nodes that work; what it is stands in the extended attributes
``user.dfuser.type`` (``chr``) and ``user.dfuser.rdev`` (``major:minor``).

Counterpart: vfs/devfs/devfs_vnops.c, devfs_vfsops.c.
Differs from DragonFly: the extended attributes; reading the attributes shows the driver's number as
major number (there always 0).
Token and lock order: takes none; a device may say Block.
Invariants: `DevOpen` holds one open of its device from vop_open to vop_close, or to the reclaim of
the vnode if that comes first.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dfuser.dev.devsw import IO_NDELAY, D
from dfuser.dev.ioccom import FIODTYPE
from dfuser.libkern.errno import (
    EBADF,
    EINVAL,
    EIO,
    EISDIR,
    ENOENT,
    ENOTDIR,
    ENOTEMPTY,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    KError,
)
from dfuser.libkern.fcntl import O_NONBLOCK
from dfuser.libkern.klist import EVFILT_READ
from dfuser.libkern.param import DEV_BSIZE, MAXPATHLEN
from dfuser.libkern.stat import ALLPERMS, DT_DIR, VType

from ..access import helper_chmod, helper_chown, vaccess
from ..lockf import Flock, LockOwner, lf_advlock
from ..mount import VfsOps
from ..mountflags import MNT, MNTK
from ..ownattrs import OwnAttrs
from ..vattr import Dirent, Statfs, Vattr
from ..vop import Buffer, OpsCell
from .node import (
    COOKIE_DOT,
    COOKIE_DOTDOT,
    DEVFS,
    DevfsMount,
    DevfsNode,
    DevfsStatistics,
    DevOpen,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dfuser.dev.devlist import DevList
    from dfuser.libkern.ucred import Ucred

    from ..cache import NamecacheEntry
    from ..mount import Mount
    from ..vnode import Vnode
    from .rules import DevfsRules


class DevNote:
    """Hangs on a device for the watchers of one vnode; a knote in the sense of `Klist`."""

    __slots__ = ("filter", "node")

    def __init__(self, node: DevfsNode) -> None:
        self.filter = EVFILT_READ
        self.node = node

    def event(self, hint: int) -> bool:
        """Everything a device tells is worth a look."""
        return True

    def activate(self) -> None:
        """Tell the watchers of the vnode."""
        if self.node.vp is not None:
            self.node.vp.knote(0)


class DevfsOps(OwnAttrs):
    """Operations on directories and links. Counterpart: devfs_vnode_norm_vops."""

    __slots__ = ("fs",)

    def __init__(self, fs: DevfsMount) -> None:
        self.fs = fs

    @staticmethod
    def node(vp: Vnode) -> DevfsNode:
        """The node behind ``vp``. Raises KError ENOENT when it is hidden or gone."""
        node: DevfsNode | None = vp.data
        if node is None or node.hidden or not node.flags & DEVFS.LINKED:
            raise KError(ENOENT)
        return node

    def _dir(self, vp: Vnode) -> DevfsNode:
        node = self.node(vp)
        if node.type is not VType.VDIR:
            raise KError(ENOTDIR)
        return node

    # --- attributes --------------------------------------------------------------------------

    def vop_access(self, vp: Vnode, mode: int, cred: Ucred) -> None:
        """By owner, group and mode of the node."""
        self.node(vp)
        vaccess(vp, self.vop_getattr(vp), mode, cred)

    def vop_getattr(self, vp: Vnode) -> Vattr:
        """What the node says; also of a node that has just gone, for whoever has it open."""
        node: DevfsNode | None = vp.data
        if node is None:
            raise KError(EIO)
        dev = node.dev
        size = len(node.readlink()) if node.type is VType.VLNK else 0
        return Vattr(
            type=node.type,
            mode=node.mode,
            uid=node.uid,
            gid=node.gid,
            size=size,
            atime=node.atime,
            mtime=node.mtime,
            ctime=node.ctime,
            flags=0,
            rmajor=dev.umajor if dev is not None else 0,
            rminor=dev.uminor if dev is not None else 0,
            nlink=1,
            fileid=node.ino,
            fsid=self.fs.mp.fsid,
            blocksize=DEV_BSIZE,
            btime=node.btime,
        )

    def vop_setattr(self, vp: Vnode, vap: Vattr, cred: Ucred) -> None:
        """Owner, mode and times of this mount's node; the device keeps its own.

        Raises:
            KError: EPERM; EOPNOTSUPP for flags; EINVAL for the size of what has none.
        """
        node = self.node(vp)
        if vap.flags is not None:
            raise KError(EOPNOTSUPP)
        if vap.size is not None and node.type is not VType.VCHR:
            raise KError(EISDIR if node.type is VType.VDIR else EINVAL)
        mode = node.mode
        if vap.uid is not None or vap.gid is not None:
            helper_chown(self.vop_getattr(vp), vap.uid, vap.gid, cred)
            if cred.uid != 0 and node.type is not VType.VDIR:
                mode &= ~0o6000
        gid = vap.gid if vap.gid is not None else node.gid
        if vap.mode is not None:
            mode = helper_chmod(vap.mode, node.uid, gid, cred)
        now = self.fs.vfs.now()
        node.mode = mode
        node.gid = gid
        node.uid = vap.uid if vap.uid is not None else node.uid
        node.atime = now if vap.atime_now else vap.atime if vap.atime is not None else node.atime
        node.mtime = now if vap.mtime_now else vap.mtime if vap.mtime is not None else node.mtime
        node.ctime = now
        vp.attr_changed()

    def extattrs(self, vp: Vnode) -> dict[bytes, bytes]:
        """What a device is; nothing for directories and links."""
        dev = self.node(vp).dev
        if dev is None:
            return {}
        return {
            b"dfuser.type": b"chr",
            b"dfuser.rdev": f"{dev.umajor}:{dev.uminor}".encode(),
        }

    def vop_advlock(self, vp: Vnode, owner: LockOwner, op: int, fl: Flock, flags: int) -> Any:
        """Advisory locks on the node; a device has no end. Counterpart: devfs_spec_advlock."""
        return lf_advlock(vp, owner, op, fl, flags, 0)

    # --- names -------------------------------------------------------------------------------

    def vop_readlink(self, vp: Vnode, cred: Ucred) -> bytes:
        """The target of a user's link, or of an alias."""
        node = self.node(vp)
        if node.type is not VType.VLNK:
            raise KError(EINVAL)
        return node.readlink()

    def vop_readdir(
        self, vp: Vnode, cookie: int, limit: int, cred: Ucred, plus: bool = False
    ) -> Sequence[Dirent]:
        """Nodes in the order they were made, without hidden ones and aliases of hidden ones."""
        node = self._dir(vp)
        if cookie < 0:
            raise KError(EINVAL)
        node.atime = self.fs.vfs.now()
        parent = node.parent if node.parent is not None else node
        out: list[Dirent] = []
        if cookie < COOKIE_DOT:
            out.append(Dirent(node.ino, DT_DIR, b".", COOKIE_DOT))
        if cookie < COOKIE_DOTDOT:
            out.append(Dirent(parent.ino, DT_DIR, b"..", COOKIE_DOTDOT))
        for child in node.children.values():
            if len(out) >= limit:
                break
            if child.cookie > cookie and not child.hidden:
                out.append(Dirent(child.ino, child.dtype, child.name, child.cookie))
        return out[:limit]

    def vop_nresolve(self, dvp: Vnode, ncp: NamecacheEntry, cred: Ucred) -> None:
        """Look into the tree. A negative answer holds until the mount's generation moves on."""
        found = self._dir(dvp).children.get(ncp.name)
        cache = self.fs.vfs.cache
        if found is None or found.hidden:
            cache.setvp(ncp, None)
            return
        vp = self.fs.allocv(found)
        cache.setvp(ncp, vp)
        vp.rele()

    def vop_nlookupdotdot(self, dvp: Vnode, cred: Ucred) -> Vnode:
        """The vnode of the parent."""
        parent = self.node(dvp).parent
        if parent is None:
            raise KError(ENOENT)
        return self.fs.allocv(parent)

    def _user_node(
        self, dvp: Vnode, ncp: NamecacheEntry, vtype: VType, vap: Vattr, cred: Ucred, target: bytes
    ) -> Vnode:
        """Make a user's directory or link, and resolve its name to it."""
        fs = self.fs
        node = fs.user_node(vtype, ncp.name, self._dir(dvp))
        node.uid = vap.uid if vap.uid is not None else cred.uid
        node.gid = vap.gid if vap.gid is not None else cred.gid
        node.mode = (vap.mode if vap.mode is not None else node.mode) & ALLPERMS
        node.symlink = target
        vp = fs.allocv(node)
        fs.vfs.cache.setunresolved(ncp)
        fs.vfs.cache.setvp(ncp, vp)
        return vp

    def vop_nmkdir(self, dvp: Vnode, ncp: NamecacheEntry, vap: Vattr, cred: Ucred) -> Vnode:
        """A directory of the user. Raises KError ENOSPC when there are too many."""
        return self._user_node(dvp, ncp, VType.VDIR, vap, cred, b"")

    def vop_nsymlink(
        self, dvp: Vnode, ncp: NamecacheEntry, vap: Vattr, target: bytes, cred: Ucred
    ) -> Vnode:
        """A symbolic link of the user. Raises KError ENOSPC, or EINVAL for a long target."""
        if len(target) >= MAXPATHLEN:
            raise KError(EINVAL)
        return self._user_node(dvp, ncp, VType.VLNK, vap, cred, target)

    def _removable(self, dvp: Vnode, ncp: NamecacheEntry, directory: bool) -> DevfsNode:
        """The user's node of a name. Raises KError ENOENT, EPERM, EISDIR, ENOTDIR, ENOTEMPTY."""
        node = self._dir(dvp).children.get(ncp.name)
        if node is None:
            raise KError(ENOENT)
        if not node.flags & DEVFS.USER_CREATED:
            raise KError(EPERM)
        if directory and node.type is not VType.VDIR:
            raise KError(ENOTDIR)
        if not directory and node.type is VType.VDIR:
            raise KError(EISDIR)
        if node.children:
            raise KError(ENOTEMPTY)
        return node

    def vop_nremove(self, dvp: Vnode, ncp: NamecacheEntry, cred: Ucred) -> None:
        """Remove a user's link; devices and aliases stay (EPERM)."""
        self._unlink(self._removable(dvp, ncp, False), ncp)

    def vop_nrmdir(self, dvp: Vnode, ncp: NamecacheEntry, cred: Ucred) -> None:
        """Remove a user's empty directory."""
        self._unlink(self._removable(dvp, ncp, True), ncp)

    def _unlink(self, node: DevfsNode, ncp: NamecacheEntry) -> None:
        cache = self.fs.vfs.cache
        cache.ref(ncp)
        self.fs.unlinkp(node)
        cache.unlink(ncp)
        cache.drop(ncp)

    def _badop(self) -> KError:
        """EIO, as DragonFly answers what devfs cannot do. Counterpart: devfs_vop_badop."""
        return KError(EIO)

    def vop_ncreate(self, dvp: Vnode, ncp: NamecacheEntry, vap: Vattr, cred: Ucred) -> Vnode:
        """EIO."""
        raise self._badop()

    def vop_nmknod(self, dvp: Vnode, ncp: NamecacheEntry, vap: Vattr, cred: Ucred) -> Vnode:
        """EIO: devices are made by drivers."""
        raise self._badop()

    def vop_nlink(self, dvp: Vnode, ncp: NamecacheEntry, vp: Vnode, cred: Ucred) -> None:
        """EIO."""
        raise self._badop()

    def vop_nrename(
        self,
        fdvp: Vnode,
        fncp: NamecacheEntry,
        tdvp: Vnode,
        tncp: NamecacheEntry,
        cred: Ucred,
        flags: int = 0,
    ) -> None:
        """EIO."""
        raise self._badop()

    # --- life --------------------------------------------------------------------------------

    def vop_inactive(self, vp: Vnode) -> None:
        """The vnode of a node that is gone is not worth keeping."""
        node: DevfsNode | None = vp.data
        if node is None or not node.flags & DEVFS.LINKED:
            vp.table.vrecycle(vp)

    def vop_reclaim(self, vp: Vnode) -> None:
        """Part vnode and node."""
        node: DevfsNode | None = vp.data
        if node is not None:
            node.vp = None
        vp.data = None

    def vop_print(self, vp: Vnode) -> str:
        """The path of the node."""
        return repr(vp.data)

    def vop_ndirname(self, dvp: Vnode, cred: Ucred) -> bytes | None:
        """The name of a directory."""
        return self._dir(dvp).name or None


class DevfsSpecOps(DevfsOps):
    """Operations on devices. Counterpart: devfs_vnode_dev_vops."""

    __slots__ = ()

    def vop_open(self, vp: Vnode, mode: int, cred: Ucred) -> Any:
        """Open the device, or the clone it makes. Raises KError ENXIO when it is gone."""
        node = self.node(vp)
        dev = node.dev
        if dev is None or dev.dead:
            raise KError(ENXIO)
        dev = self.fs.devices.clone(dev, mode, cred)
        own = DevOpen(dev, dev.dopen(mode, cred), bool(mode & O_NONBLOCK))
        node.opens[own] = None
        return own

    def vop_close(self, vp: Vnode, fflag: int, fdata: Any = None) -> None:
        """Close the device of this open."""
        node: DevfsNode | None = vp.data
        if isinstance(fdata, DevOpen) and node is not None:
            node.opens.pop(fdata, None)
            fdata.dev.dclose(fflag, fdata.priv)

    @staticmethod
    def _open(fdata: Any) -> DevOpen:
        if not isinstance(fdata, DevOpen):
            raise KError(EBADF)
        return fdata

    def vop_read(
        self, vp: Vnode, offset: int, size: int, ioflag: int, cred: Ucred, fdata: Any = None
    ) -> Buffer:
        """Ask the device; may say Block unless the open is non-blocking."""
        own = self._open(fdata)
        if own.nonblock:
            ioflag |= IO_NDELAY
        data = own.dev.ops.d_read(own.dev, offset, size, ioflag, own.priv)
        node: DevfsNode | None = vp.data
        if node is not None:
            node.atime = self.fs.vfs.now()
            vp.attr_changed()
        return data

    def vop_write(
        self, vp: Vnode, offset: int, data: Buffer, ioflag: int, cred: Ucred, fdata: Any = None
    ) -> int:
        """Give the bytes to the device."""
        own = self._open(fdata)
        if own.nonblock:
            ioflag |= IO_NDELAY
        taken = own.dev.ops.d_write(own.dev, offset, data, ioflag, own.priv)
        node: DevfsNode | None = vp.data
        if node is not None:
            node.mtime = node.ctime = self.fs.vfs.now()
            vp.attr_changed()
        return taken

    def vop_ioctl(
        self,
        vp: Vnode,
        command: int,
        data: Buffer,
        fflag: int,
        cred: Ucred,
        fdata: Any = None,
    ) -> bytes:
        """Ask the device of this open; FIODTYPE is answered for all. Counterpart: vn_ioctl too."""
        own = self._open(fdata)
        dev = own.dev
        if command == FIODTYPE and not dev.dead:
            return struct.pack("=i", dev.ops.flags & D.TYPEMASK)
        return dev.ops.d_ioctl(dev, command, data, fflag, cred, own.priv)

    def vop_poll(self, vp: Vnode, events: int, cred: Ucred, fdata: Any = None) -> int:
        """Ask the device."""
        own = self._open(fdata)
        return own.dev.ops.d_poll(own.dev, events, own.priv)

    def vop_kqfilter(self, vp: Vnode, knote: Any) -> None:
        """Watch the device: whatever it tells, the watchers of the vnode hear as hint 0."""
        node = self.node(vp)
        dev = node.dev
        if dev is None:
            raise KError(ENXIO)
        if node.note is None:
            note = DevNote(node)
            dev.ops.d_kqfilter(dev, note)
            node.note = note
        vp.get_klist().insert(knote)

    def vop_reclaim(self, vp: Vnode) -> None:
        """Stop watching the device, close what is open through this node, part vnode and node.

        After a forced unmount the files' own close no longer comes here.
        Counterpart: the VOP_CLOSE calls of vclean_vxlocked (kern/vfs_subr.c).
        """
        node: DevfsNode | None = vp.data
        if node is not None:
            if node.note is not None and node.dev is not None:
                node.dev.ops.d_kqdetach(node.dev, node.note)
                node.note = None
            while node.opens:
                own, _ = node.opens.popitem()
                own.dev.dclose(0, own.priv)
        super().vop_reclaim(vp)


class DevfsVfsOps(VfsOps):
    """A mounted devfs. Option: ``jail``, to be treated as the devfs of a jail.

    Counterpart: devfs_vfsops.
    """

    def __init__(self, devices: DevList, rules: DevfsRules) -> None:
        self.devices = devices
        self.rules = rules

    @classmethod
    def factory(cls, devices: DevList, rules: DevfsRules) -> Callable[[], DevfsVfsOps]:
        """What to register as a file system type: makes one instance a mount."""
        return lambda: cls(devices, rules)

    def vfs_mount(self, mp: Mount, source: str, options: dict[str, str], cred: Ucred) -> None:
        """Make the tree and follow the list of devices.

        Raises:
            KError: EOPNOTSUPP for an update; EINVAL for an option it does not know.
        """
        if mp.flag & MNT.UPDATE:
            raise KError(EOPNOTSUPP)
        if set(options) - {"jail"}:
            raise KError(EINVAL, "devfs knows the option jail only")
        onname = "/"
        if mp.ncmounton is not None:
            path = mp.vfs.cache.fullpath(mp.ncmounton)
            onname = path.decode("utf-8", "surrogateescape")
        jailed = "jail" in options or cred.prison is not None
        fs = DevfsMount(mp.vfs, mp, self.devices, self.rules, jailed, onname)
        mp.data = fs
        mp.vn_cell = OpsCell(DevfsOps(fs))
        fs.spec_cell = OpsCell(DevfsSpecOps(fs))
        mp.coherence = "volatile"
        mp.flag |= MNT.LOCAL
        mp.kern_flag |= MNTK.NOSTKMNT | MNTK.QUICKHALT | MNTK.NOMSYNC
        fs.populate()
        self.devices.listen(fs)
        self.rules.mounts.append(fs)

    def vfs_unmount(self, mp: Mount, flags: int) -> None:
        """Stop following the list and take the tree apart."""
        fs: DevfsMount = mp.data
        self.devices.unlisten(fs)
        self.rules.mounts.remove(fs)
        fs.dissolve()
        mp.vn_cell = fs.spec_cell = mp.vfs.vnodes.dead_cell

    def vfs_root(self, mp: Mount) -> Vnode:
        """The vnode of the root directory, referenced."""
        fs: DevfsMount = mp.data
        return fs.allocv(fs.root)

    def vfs_statfs(self, mp: Mount) -> Statfs:
        """No blocks; two are claimed so that nobody divides by zero, as in DragonFly."""
        return Statfs(DEV_BSIZE, 2, 0, 0, len(mp.data.nodes), 0, 0)

    def vfs_vget(self, mp: Mount, ino: int) -> Vnode:
        """The vnode of an inode number. Raises KError ENOENT."""
        fs: DevfsMount = mp.data
        node = fs.nodes.get(ino)
        if node is None or node.flags & DEVFS.HIDDEN:
            raise KError(ENOENT)
        return fs.allocv(node)

    def statistics(self, mp: Mount) -> DevfsStatistics:
        """Figures of the mounted tree."""
        fs: DevfsMount = mp.data
        return fs.statistics()
