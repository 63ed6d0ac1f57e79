"""Contents of tmpfs files: reading, writing, locks, events, and the end of a vnode.

The bytes are in the file's VM object; these operations add what an object does not know:
limits, times, set-id bits, append-only flags, and who is told. A write that meets the
mount's limit takes the part that fits, to the byte, and the next one gets ENOSPC.

A read gives what the object gives and copies once; a write copies once, into the pages.

Counterpart: tmpfs_open, tmpfs_close, tmpfs_read, tmpfs_write, tmpfs_advlock, tmpfs_bmap,
    tmpfs_kqfilter, tmpfs_inactive, tmpfs_reclaim (vfs/tmpfs/tmpfs_vnops.c);
    tmpfs_reg_resize (tmpfs_subr.c).
Differs from DragonFly: no buffers lie between the operations and the pages, so there is no
    vop_strategy and nothing to move at open and inactive; a write that does not fit is cut
    instead of undone; the access time follows the relatime rule; a file that becomes
    immutable is so for those, too, who have it open for writing.
Token/lock order: none; nothing here suspends. A blocked lock raises `Block`.
Invariants: size of node and object agree; see `TmpfsMount.check`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dfuser.libkern.errno import (
    EFBIG,
    EINVAL,
    EISDIR,
    EPERM,
    EROFS,
    KError,
)
from dfuser.libkern.fcntl import FWRITE, O_APPEND
from dfuser.libkern.klist import NOTE_EXTEND, NOTE_WRITE, Knote
from dfuser.libkern.param import MAXBSIZE, PAGE_SHIFT
from dfuser.libkern.stat import APPEND, IMMUTABLE, S_ISGID, S_ISUID, VType
from dfuser.vfs.event import vn_knote, vn_kqfilter
from dfuser.vfs.lockf import Flock, LockOwner, lf_advlock
from dfuser.vfs.mountflags import MNT
from dfuser.vfs.vattr import IO

from .node import TmpfsReg
from .vnops_attr import AttrOps

if TYPE_CHECKING:
    from dfuser.libkern.ucred import Ucred
    from dfuser.vfs.vnode import Vnode
    from dfuser.vfs.vop import Buffer

    from .node import TmpfsNode

#: Mounts that leave access times alone.
NO_ATIME: Final = MNT.NOATIME | MNT.RDONLY
#: What a write by anybody but root takes from the mode.
SUGID: Final = S_ISUID | S_ISGID
_FIXED: Final = IMMUTABLE | APPEND


class FileOps(AttrOps):
    """The operations on contents. See `vnops.TmpfsVnodeOps`."""

    __slots__ = ()

    def vop_open(self, vp: Vnode, mode: int, cred: Ucred) -> None:
        """Refuse writers that the file's flags keep out. Counterpart: tmpfs_open.

        Raises:
            KError: EPERM, immutable, or append-only and not opened for appending; EROFS.
        """
        if mode & FWRITE:
            node: TmpfsNode = vp.data
            if node.flags & IMMUTABLE or (node.flags & APPEND and not mode & O_APPEND):
                raise KError(EPERM)
            if self.tm.mp.flag & MNT.RDONLY and node.type is VType.VREG:
                raise KError(EROFS)

    def vop_read(
        self, vp: Vnode, offset: int, size: int, ioflag: int, cred: Ucred, fdata: Any = None
    ) -> Buffer:
        """Bytes of a regular file. Counterpart: tmpfs_read.

        Raises:
            KError: EISDIR, EINVAL (another kind, a negative offset).
        """
        node = self._regular(vp)
        if offset < 0 or size < 0:
            raise KError(EINVAL)
        tm = self.tm
        if size and not ioflag & IO.NOATIME and not tm.mp.flag & NO_ATIME:
            now = tm.now()
            if node.atime_is_stale(now):
                node.atime = now
                vp.attr_changed()
        obj = node.object
        return obj.read(offset, size) if obj is not None else b""

    def vop_write(
        self, vp: Vnode, offset: int, data: Buffer, ioflag: int, cred: Ucred, fdata: Any = None
    ) -> int:
        """Write to a regular file. Counterpart: tmpfs_write.

        Returns:
            Bytes taken: all, or as many as the mount had room for.

        Raises:
            KError: EISDIR, EINVAL, EFBIG, ENOSPC (not even one byte fitted); EPERM and EROFS as
                `vop_open` has them, for a host that leaves opens out.
        """
        node = self._regular(vp)
        size = len(data)
        if not size:
            return 0
        if ioflag & IO.APPEND:
            offset = node.size
        end = offset + size
        tm = self.tm
        if offset < 0:
            raise KError(EINVAL)
        if end > tm.limits.maxfilesize:
            raise KError(EFBIG)
        if node.flags & _FIXED and (node.flags & IMMUTABLE or offset != node.size):
            raise KError(EPERM)
        if tm.mp.flag & MNT.RDONLY:
            raise KError(EROFS)
        obj = node.object or tm.data_object(node)
        if (end >> PAGE_SHIFT) - (offset >> PAGE_SHIFT) >= tm.pages_free:
            end = tm.room(obj, offset, end)
            data = memoryview(data)[: end - offset]
        tm.change_data(obj, obj.write, offset, data)
        hint = NOTE_WRITE
        if end > node.size:
            node.size = end
            hint |= NOTE_EXTEND
        node.mtime = node.ctime = tm.now()
        if node.mode & SUGID and cred.uid:
            node.mode &= ~SUGID
        vp.attr_changed()
        vn_knote(vp, hint)
        return end - offset

    def vop_fsync(self, vp: Vnode, waitfor: int, cred: Ucred | None = None) -> None:
        """Nothing is kept anywhere else. Counterpart: tmpfs_fsync."""

    def vop_readlink(self, vp: Vnode, cred: Ucred) -> bytes:
        """The target of a symbolic link. Counterpart: tmpfs_readlink."""
        node = vp.data
        if node.type is not VType.VLNK:
            raise KError(EINVAL)
        if not self.tm.mp.flag & NO_ATIME:
            self.accessed(node)
        target: bytes = node.target
        return target

    def vop_mmap(self, vp: Vnode, fflags: int, cred: Ucred) -> None:
        """Regular files may be mapped: their object is what is mapped."""
        node = self._regular(vp)
        self.tm.data_object(node)

    def vop_getpages(self, vp: Vnode, offset: int, count: int) -> None:
        """All pages there are, are in the object; what is missing is a hole and reads as zero."""

    def vop_putpages(self, vp: Vnode, offset: int, count: int) -> None:
        """The object has the only copy: there is nowhere to put pages."""

    def vop_bmap(self, vp: Vnode, offset: int) -> tuple[int, int, int]:
        """File offsets are device offsets, contiguous up to 64 KiB. Counterpart: tmpfs_bmap."""
        inside = offset & (MAXBSIZE - 1)
        return offset, MAXBSIZE - inside, inside

    def vop_advlock(self, vp: Vnode, owner: LockOwner, op: int, fl: Flock, flags: int) -> Any:
        """Advisory locks. Counterpart: tmpfs_advlock."""
        return lf_advlock(vp, owner, op, fl, flags, vp.data.size)

    def vop_kqfilter(self, vp: Vnode, knote: Knote) -> None:
        """Attach a watcher. Counterpart: tmpfs_kqfilter."""
        vn_kqfilter(vp, knote)

    def vop_inactive(self, vp: Vnode) -> None:
        """The last user of a file is gone; without a name it goes now. Counterpart: tmpfs_inactive.

        Its data is given back first, also when the vnode itself has to wait for others.
        """
        node: TmpfsNode | None = vp.data
        if node is None or node.nlink == 0:
            if isinstance(node, TmpfsReg):
                self.tm.drop_data(node)
            self.tm.vfs.vnodes.vrecycle(vp)

    def vop_reclaim(self, vp: Vnode) -> None:
        """Part vnode and file; a file without names ends here. Counterpart: tmpfs_reclaim."""
        node: TmpfsNode | None = vp.data
        vp.data = vp.object = None
        if node is not None:
            node.vnode = None
            if node.nlink == 0:
                self.tm.free_node(node)

    @staticmethod
    def _regular(vp: Vnode) -> TmpfsReg:
        """The regular file behind a vnode.

        Raises:
            KError: EISDIR or EINVAL, it is of another kind.
        """
        node = vp.data
        if type(node) is TmpfsReg:
            return node
        raise KError(EISDIR if vp.type is VType.VDIR else EINVAL)
