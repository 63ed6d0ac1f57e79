"""Attributes of tmpfs files: reading and changing them.

Who may change what is decided once for all file systems (`vfs.access`); here is what only
the file system knows: which kinds have a size, what a read-only mount and the flags of a
file forbid, what a change does to times, set-id bits, pages and the access control list.
A change is validated whole before the first attribute is set, so a request that asks for
two things does both or neither.

An immutable file refuses all but a change of its flags, an append-only one all but that and
its times. A write or a truncation by anybody but the super-user clears the set-id bits.

Counterpart: tmpfs_access, tmpfs_getattr, tmpfs_setattr (vfs/tmpfs/tmpfs_vnops.c);
    tmpfs_chflags, tmpfs_chmod, tmpfs_chown, tmpfs_chsize, tmpfs_chtimes, tmpfs_itimes
    (tmpfs_subr.c).
Differs from DragonFly: setattr is all or nothing, and its errors are all reported (those of
    chmod are dropped there). Where an access control list exists it decides, and chmod
    moves its mask. Setting the size a file has already updates its times, as POSIX asks of
    O_TRUNC.
Token/lock order: none; nothing here suspends.
Invariants: the mode's nine bits are those of the access list, if there is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dfuser.libkern.errno import EFBIG, EINVAL, EISDIR, EOPNOTSUPP, EPERM, EROFS, KError
from dfuser.libkern.klist import NOTE_ATTRIB, NOTE_EXTEND, NOTE_WRITE
from dfuser.libkern.param import PAGE_SHIFT, PAGE_SIZE
from dfuser.libkern.stat import ALLPERMS, APPEND, IMMUTABLE, S_ISGID, S_ISUID, VType
from dfuser.vfs.access import setattr_check, vaccess
from dfuser.vfs.event import vn_knote
from dfuser.vfs.fileflags import flags_ioctl
from dfuser.vfs.mountflags import MNT
from dfuser.vfs.vattr import Vattr
from dfuser.vfs.vop import VnodeOps

from .node import TmpfsNode, TmpfsReg, TmpfsSpecial

if TYPE_CHECKING:
    from dfuser.libkern.ucred import Ucred
    from dfuser.vfs.vnode import Vnode
    from dfuser.vfs.vop import Buffer

    from .mount import TmpfsMount


class AttrOps(VnodeOps):
    """The operations on attributes. See `vnops.TmpfsVnodeOps`."""

    __slots__ = ("tm",)

    def __init__(self, tm: TmpfsMount) -> None:
        self.tm = tm

    def fill(self, node: TmpfsNode) -> Vattr:
        """All attributes of a file, whether it has a vnode or not. About a third of a us."""
        major = minor = pages = 0
        if type(node) is TmpfsReg:
            obj = node.object
            if obj is not None:
                pages = obj.resident_page_count
        elif type(node) is TmpfsSpecial:
            major, minor = node.rmajor, node.rminor
        return Vattr(
            node.type, node.mode, node.uid, node.gid, node.size, node.atime, node.mtime,
            node.ctime, node.flags, major, minor, node.nlink, node.ino, self.tm.mp.fsid, 1,
            PAGE_SIZE, pages << PAGE_SHIFT, node.btime,
        )  # fmt: skip

    def vop_getattr(self, vp: Vnode) -> Vattr:
        """Every attribute. Counterpart: tmpfs_getattr."""
        return self.fill(vp.data)

    def vop_access(self, vp: Vnode, mode: int, cred: Ucred) -> None:
        """Decide by mount, flags and mode or access list. Counterpart: tmpfs_access.

        Raises:
            KError: EROFS, EPERM (immutable), EACCES.
        """
        vaccess(vp, self.fill(vp.data), mode, cred)

    def vop_aclcheck(self, vp: Vnode, vap: Vattr, vmode: int, cred: Ucred) -> bool | None:
        """What the access control list says, if there is one."""
        node: TmpfsNode = vp.data
        if node.ext is None or node.ext.acl is None:
            return None
        return node.ext.acl.permits(cred, node.uid, node.gid, vmode >> 6)

    def vop_setattr(self, vp: Vnode, vap: Vattr, cred: Ucred) -> None:
        """Change what ``vap`` has set. Counterpart: tmpfs_setattr.

        Raises:
            KError: EROFS, EPERM, EISDIR, EFBIG, EINVAL, EOPNOTSUPP.
        """
        node: TmpfsNode = vp.data
        flags, mode, resize = self._validate(node, vap, cred)
        now = self.tm.now()
        hint = NOTE_ATTRIB
        if resize:
            assert isinstance(node, TmpfsReg)
            assert vap.size is not None
            hint = NOTE_WRITE | (NOTE_EXTEND if vap.size > node.size else 0)
            self.set_size(node, vap.size)
            node.mtime = now
        node.flags = flags
        if vap.uid is not None:
            node.uid = vap.uid
        if vap.gid is not None:
            node.gid = vap.gid
        if mode != node.mode:
            self.set_mode(node, mode)
        if vap.atime_now or vap.atime is not None:
            node.atime = now if vap.atime_now else vap.atime or 0
        if vap.mtime_now or vap.mtime is not None:
            node.mtime = now if vap.mtime_now else vap.mtime or 0
        if vap.btime is not None:
            node.btime = vap.btime
        node.ctime = now
        vp.attr_changed()
        vn_knote(vp, hint)

    def vop_ioctl(
        self,
        vp: Vnode,
        command: int,
        data: Buffer,
        fflag: int,
        cred: Ucred,
        fdata: Any = None,
    ) -> bytes:
        """File flags and generation as the host's programs ask for them (`fileflags`).

        Raises:
            KError: ENOTTY, another number; EPERM, not the owner, or a flag that is root's; EROFS,
                EINVAL, EOPNOTSUPP.
        """
        va = self.fill(vp.data)
        answer = flags_ioctl(command, data, va.flags or 0, va.gen, cred.uid == 0)
        if answer.flags is not None:
            vap = setattr_check(vp, va, Vattr(VType.VNON, flags=answer.flags), cred)
            self.vop_setattr(vp, vap, cred)
        return answer.data

    def vop_markatime(self, vp: Vnode, cred: Ucred) -> None:
        """The file was read through a mapping. Counterpart: vop_markatime, as other systems do."""
        if not self.tm.mp.flag & (MNT.NOATIME | MNT.RDONLY):
            self.accessed(vp.data)

    def _validate(self, node: TmpfsNode, vap: Vattr, cred: Ucred) -> tuple[int, int, bool]:
        """Check every part of a request; returns the new flags, the new mode and resize or not."""
        if self.tm.mp.flag & MNT.RDONLY:
            raise KError(EROFS)
        flags = node.flags if vap.flags is None else vap.flags
        contents = (vap.size, vap.uid, vap.gid, vap.mode)
        changed = any(value is not None for value in contents)
        times = vap.atime_now or vap.mtime_now
        times = times or not (vap.atime is None and vap.mtime is None and vap.btime is None)
        held = node.flags if flags & (IMMUTABLE | APPEND) else 0
        if held & IMMUTABLE and (changed or times):
            raise KError(EPERM)
        touched = vap.atime_now and vap.mtime_now
        if held & APPEND and (changed or (times and not touched)):
            raise KError(EPERM)
        resize = vap.size is not None and self._may_resize(node, vap.size)
        mode = node.mode
        if vap.mode is not None:
            mode = vap.mode & ALLPERMS
        elif cred.uid and node.type is not VType.VDIR and any(v is not None for v in contents):
            mode &= ~(S_ISUID | S_ISGID)
        return flags, mode, resize

    def _may_resize(self, node: TmpfsNode, size: int) -> bool:
        """Whether setting the size means anything for this kind. Counterpart: tmpfs_chsize."""
        if node.type is VType.VDIR:
            raise KError(EISDIR)
        if isinstance(node, TmpfsSpecial) and node.type is not VType.VSOCK:
            return False
        if not isinstance(node, TmpfsReg):
            raise KError(EOPNOTSUPP)
        if size < 0:
            raise KError(EINVAL)
        if size > self.tm.limits.maxfilesize:
            raise KError(EFBIG)
        return True

    # --- steps the other operations use ---------------------------------------------------

    def set_size(self, node: TmpfsReg, size: int) -> None:
        """Cut or grow a file; growing makes a hole. Counterpart: tmpfs_truncate."""
        if size or node.object is not None:
            obj = self.tm.data_object(node)
            self.tm.change_data(obj, obj.truncate, size)
            node.size = size

    def set_mode(self, node: TmpfsNode, mode: int) -> None:
        """Set the mode; an access list follows it."""
        node.mode = mode
        if node.ext is not None and node.ext.acl is not None:
            node.ext.acl = node.ext.acl.chmod(mode)

    def accessed(self, node: TmpfsNode) -> None:
        """The file was read: renew its access time if it is due, by the relatime rule."""
        now = self.tm.now()
        if node.atime_is_stale(now):
            node.atime = now
            node.attr_changed()

    def vop_print(self, vp: Vnode) -> str:
        """Counterpart: tmpfs_print."""
        node: TmpfsNode = vp.data
        return (
            f"tag VT_TMPFS, tmpfs_node {node.ino}, flags {node.flags:#x}, links {node.nlink}, "
            f"mode {node.mode:04o}, owner {node.uid}, group {node.gid}, size {node.size}"
        )
