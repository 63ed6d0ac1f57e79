"""The VOP vector: every operation a file system can be asked for, and what happens by default.

A file system subclasses `VnodeOps` and overrides what it supports; what it leaves alone answers
with DragonFly's default errno. VOPs are plain functions. They run to completion, raise `KError`, or
raise `Block` before they have changed anything.

**Layers.** A mount calls its operations through an `OpsCell`, whose ``use`` member is the topmost
of coherency, journal and norm that is installed. Vnodes point at the cell, so a layer can be put in
or taken out of a live mount by one assignment.

**Namespace operations** (``vop_n*``) receive the namecache entry they are about, already resolved
under the parent directory ``dvp``, and leave the entry in its new state (`NameCache.setvp`,
`setunresolved`, `unlink`, `rename`).

Counterpart: sys/sys/vfsops.h, sys/kern/vfs_vopops.c, sys/kern/vfs_default.c.
Differs from DragonFly: arguments are ordinary parameters, results are returned instead of stored;
reads return a buffer and writes take one (no uio); ``vop_nrename`` carries the rename flags of
renameat2(2), which DragonFly lacks; ``vop_readdir`` may deliver attributes with the names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from dfuser.libkern.errno import (
    EINVAL,
    ENOATTR,
    ENOTTY,
    ENXIO,
    EOPNOTSUPP,
    KError,
)
from dfuser.libkern.param import LINK_MAX, MAXPATHLEN, NAME_MAX
from dfuser.libkern.stat import VType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dfuser.libkern.ucred import Ucred

    from .cache import NamecacheEntry
    from .vattr import Dirent, Vattr
    from .vnode import Vnode

Buffer: TypeAlias = "bytes | bytearray | memoryview"

#: Extended attribute name spaces. Counterpart: EXTATTR_NAMESPACE_* (sys/extattr.h).
EXTATTR_NAMESPACE_USER: Final = 1
EXTATTR_NAMESPACE_SYSTEM: Final = 2

#: How setextattr treats an existing name (XATTR_CREATE and XATTR_REPLACE of the host).
EXTATTR_CREATE: Final = 1
EXTATTR_REPLACE: Final = 2

#: Flags of vop_nrename, valued as the host's renameat2(2).
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4

#: Modes of vop_allocate, valued as the host's fallocate(2).
FALLOC_KEEP_SIZE: Final = 0x01
FALLOC_PUNCH_HOLE: Final = 0x02
FALLOC_ZERO_RANGE: Final = 0x10

#: waitfor of vop_fsync and vfs_sync. Counterpart: MNT_WAIT ... (sys/mount.h).
MNT_WAIT: Final = 1
MNT_NOWAIT: Final = 2
MNT_LAZY: Final = 4

#: vop_pathconf names. Counterpart: _PC_* (sys/unistd.h).
PC_LINK_MAX: Final = 1
PC_NAME_MAX: Final = 4
PC_PATH_MAX: Final = 5
PC_PIPE_BUF: Final = 6
PC_CHOWN_RESTRICTED: Final = 7
PC_NO_TRUNC: Final = 8


class OpsCell:
    """What vnodes call their operations through. Counterpart: mnt_vn_use_ops (sys/mount.h)."""

    __slots__ = ("coherency", "journal", "norm", "use")

    def __init__(self, norm: VnodeOps) -> None:
        self.norm = norm
        self.journal: VnodeOps | None = None
        self.coherency: VnodeOps | None = None
        self.use = norm

    def relink(self) -> None:
        """Point ``use`` at the topmost layer, after ``journal`` or ``coherency`` changed."""
        self.use = self.coherency or self.journal or self.norm


class VnodeOps:
    """Default answers to every VOP. Counterpart: struct vop_ops and default_vnode_vops."""

    __slots__ = ()

    # --- the object --------------------------------------------------------------------------

    def vop_open(self, vp: Vnode, mode: int, cred: Ucred) -> Any:
        """Open for ``mode`` (FREAD | FWRITE | O_*). Counts are kept by the caller (`vn_open`).

        Returns an object private to this open (passed back to read, write, close), or None. It may
        wait (say `Block`), but not for a regular file that has just been created.
        """
        return None

    def vop_close(self, vp: Vnode, fflag: int, fdata: Any = None) -> None:
        """The last reference to one open is gone."""

    def vop_access(self, vp: Vnode, mode: int, cred: Ucred) -> None:
        """Whether ``cred`` may use ``vp`` with ``mode`` (VREAD, VWRITE, VEXEC); EACCES if not."""
        raise KError(EOPNOTSUPP)

    def vop_aclcheck(self, vp: Vnode, vap: Vattr, vmode: int, cred: Ucred) -> bool | None:
        """Whether an access control list of ``vp`` grants ``vmode`` (VREAD, VWRITE, VEXEC bits).

        Asked for users who are not root. None means that ``vp`` has no list and the mode bits in
        ``vap`` decide. Counterpart: VOP_ACLCHECK.
        """
        return None

    def vop_getattr(self, vp: Vnode) -> Vattr:
        """A new Vattr with every field set."""
        raise KError(EOPNOTSUPP)

    def vop_setattr(self, vp: Vnode, vap: Vattr, cred: Ucred) -> None:
        """Change the attributes set in ``vap``, all or none."""
        raise KError(EOPNOTSUPP)

    def vop_read(
        self, vp: Vnode, offset: int, size: int, ioflag: int, cred: Ucred, fdata: Any = None
    ) -> Buffer:
        """Up to ``size`` bytes at ``offset``; fewer at the end of the file; empty at or past it."""
        raise KError(EOPNOTSUPP)

    def vop_write(
        self, vp: Vnode, offset: int, data: Buffer, ioflag: int, cred: Ucred, fdata: Any = None
    ) -> int:
        """Write ``data``; returns how much was taken. IO.APPEND ignores ``offset``."""
        raise KError(EOPNOTSUPP)

    def vop_ioctl(
        self,
        vp: Vnode,
        command: int,
        data: Buffer,
        fflag: int,
        cred: Ucred,
        fdata: Any = None,
    ) -> bytes:
        """Device or file system control; returns the bytes to copy out, ENOTTY if unknown.

        ``command`` is spelled as DragonFly spells it (`ioccom`).
        """
        raise KError(ENOTTY)

    def vop_poll(self, vp: Vnode, events: int, cred: Ucred, fdata: Any = None) -> int:
        """The ready ones of ``events`` (POLLIN ...). Ordinary files are always ready."""
        return events

    def vop_kqfilter(self, vp: Vnode, knote: Any) -> None:
        """Attach ``knote`` to the events of ``vp``."""
        raise KError(EOPNOTSUPP)

    def vop_mmap(self, vp: Vnode, fflags: int, cred: Ucred) -> None:
        """Whether ``vp`` may be mapped."""
        raise KError(EINVAL)

    def vop_fsync(self, vp: Vnode, waitfor: int, cred: Ucred | None = None) -> None:
        """Write everything of ``vp`` to stable storage."""

    def vop_readdir(
        self, vp: Vnode, cookie: int, limit: int, cred: Ucred, plus: bool = False
    ) -> Sequence[Dirent]:
        """Up to ``limit`` entries after ``cookie`` (0: from the start), ``.`` and ``..`` included.

        An entry present throughout a listing appears exactly once, whatever else is created or
        removed meanwhile. An empty answer means the end.
        """
        raise KError(EOPNOTSUPP)

    def vop_readlink(self, vp: Vnode, cred: Ucred) -> bytes:
        """The target of a symbolic link."""
        raise KError(EINVAL)

    def vop_inactive(self, vp: Vnode) -> None:
        """The last reference is gone; called once a deactivation. May recycle the vnode.

        Must neither fail nor wait: it runs at the end of somebody's operation. What needs I/O is
        left to the syncer.
        """

    def vop_reclaim(self, vp: Vnode) -> None:
        """Cut the link between ``vp`` and the file system's node. Must neither fail nor wait."""
        vp.data = None

    def vop_bmap(self, vp: Vnode, offset: int) -> tuple[int, int, int]:
        """(device offset, bytes contiguous after, bytes contiguous before) of a file offset."""
        raise KError(EOPNOTSUPP)

    def vop_strategy(self, vp: Vnode, bio: Any) -> None:
        """Start I/O on a logical buffer."""
        raise KError(EOPNOTSUPP)

    def vop_print(self, vp: Vnode) -> str:
        """What the file system can tell about ``vp`` in one line."""
        return ""

    def vop_pathconf(self, vp: Vnode, name: int) -> int:
        """A limit by PC_* name; EINVAL for a name that has no meaning here."""
        limits = {
            PC_LINK_MAX: LINK_MAX,
            PC_NAME_MAX: NAME_MAX,
            PC_PATH_MAX: MAXPATHLEN,
            PC_PIPE_BUF: 512,
            PC_CHOWN_RESTRICTED: 1,
            PC_NO_TRUNC: 1,
        }
        if name not in limits:
            raise KError(EINVAL)
        return limits[name]

    def vop_advlock(self, vp: Vnode, owner: Any, op: int, fl: Any, flags: int) -> Any:
        """Advisory record lock."""
        raise KError(EINVAL)

    def vop_allocate(self, vp: Vnode, offset: int, length: int, mode: int, cred: Ucred) -> None:
        """Allocate, punch or zero a range (FALLOC_*); all or nothing."""
        raise KError(EOPNOTSUPP)

    def vop_seek(self, vp: Vnode, offset: int, hole: bool) -> int:
        """Next data (or hole) at or after ``offset``; ENXIO at or past the end.

        The default is a file without holes: all is data, and the end is a hole.
        """
        if vp.type is not VType.VREG:
            raise KError(EINVAL)
        size = vp.ops.use.vop_getattr(vp).size or 0
        if not 0 <= offset < size:
            raise KError(ENXIO)
        return size if hole else offset

    def vop_copyrange(
        self, fvp: Vnode, foff: int, tvp: Vnode, toff: int, length: int, cred: Ucred
    ) -> int:
        """Copy a range of ``fvp`` into ``tvp``, whose file system is asked; returns how much.

        Ends short where the source ends and, once something was copied, at an error. EOPNOTSUPP
        makes the caller copy by reading and writing.
        """
        raise KError(EOPNOTSUPP)

    def vop_getpages(self, vp: Vnode, offset: int, count: int) -> None:
        """Bring pages of the vnode's object in."""
        raise KError(EOPNOTSUPP)

    def vop_putpages(self, vp: Vnode, offset: int, count: int) -> None:
        """Write dirty pages of the vnode's object out."""
        raise KError(EOPNOTSUPP)

    def vop_markatime(self, vp: Vnode, cred: Ucred) -> None:
        """The file was read or executed through a mapping."""

    # --- extended attributes and ACLs ---------------------------------------------------------

    def vop_getextattr(self, vp: Vnode, namespace: int, name: bytes, cred: Ucred) -> bytes:
        """The value of an attribute; ENOATTR when there is none of that name."""
        raise KError(EOPNOTSUPP)

    def vop_setextattr(
        self, vp: Vnode, namespace: int, name: bytes, value: bytes, flags: int, cred: Ucred
    ) -> None:
        """Set an attribute. With EXTATTR_CREATE EEXIST, with EXTATTR_REPLACE ENOATTR as it is."""
        raise KError(EOPNOTSUPP)

    def vop_rmextattr(self, vp: Vnode, namespace: int, name: bytes, cred: Ucred) -> None:
        """Remove an attribute; ENOATTR when there is none of that name."""
        raise KError(ENOATTR)

    def vop_listextattr(self, vp: Vnode, namespace: int, cred: Ucred) -> Sequence[bytes]:
        """The names in a name space."""
        raise KError(EOPNOTSUPP)

    # --- the name space -----------------------------------------------------------------------

    def vop_nresolve(self, dvp: Vnode, ncp: NamecacheEntry, cred: Ucred) -> None:
        """Resolve ``ncp`` in ``dvp``: `setvp` with the vnode, or with None for a negative entry."""
        raise KError(EOPNOTSUPP)

    def vop_nlookupdotdot(self, dvp: Vnode, cred: Ucred) -> Vnode:
        """The parent directory of ``dvp``, referenced."""
        raise KError(EOPNOTSUPP)

    def vop_ndirname(self, dvp: Vnode, cred: Ucred) -> bytes | None:
        """The name of directory ``dvp`` in its parent, if known without a search; else None.

        Not in DragonFly, which searches the parent. Asked when a path must be rebuilt.
        """
        return None

    def vop_ncreate(self, dvp: Vnode, ncp: NamecacheEntry, vap: Vattr, cred: Ucred) -> Vnode:
        """Create a regular file (or a socket, by ``vap.type``); returns its vnode, referenced."""
        raise KError(EOPNOTSUPP)

    def vop_nmkdir(self, dvp: Vnode, ncp: NamecacheEntry, vap: Vattr, cred: Ucred) -> Vnode:
        """Create a directory; returns its vnode, referenced."""
        raise KError(EOPNOTSUPP)

    def vop_ntmpfile(self, dvp: Vnode, vap: Vattr, cred: Ucred) -> Vnode:
        """Create a regular file without a name in ``dvp``'s file system; its vnode, referenced.

        Owner, group, mode and lists are those a file made in ``dvp`` would get. The link count is
        0 and FINALIZE is set: the file goes with its last reference, unless vop_nlink gives it a
        name before (allowed while the vnode is V.LINKABLE). Counterpart: O_TMPFILE of the host.
        """
        raise KError(EOPNOTSUPP)

    def vop_nmknod(self, dvp: Vnode, ncp: NamecacheEntry, vap: Vattr, cred: Ucred) -> Vnode:
        """Create a device or FIFO; returns its vnode, referenced."""
        raise KError(EOPNOTSUPP)

    def vop_nlink(self, dvp: Vnode, ncp: NamecacheEntry, vp: Vnode, cred: Ucred) -> None:
        """Give ``vp`` a further name."""
        raise KError(EOPNOTSUPP)

    def vop_nsymlink(
        self, dvp: Vnode, ncp: NamecacheEntry, vap: Vattr, target: bytes, cred: Ucred
    ) -> Vnode:
        """Create a symbolic link; returns its vnode, referenced."""
        raise KError(EOPNOTSUPP)

    def vop_nwhiteout(self, dvp: Vnode, ncp: NamecacheEntry, cred: Ucred, flags: int) -> None:
        """Create or delete a whiteout."""
        raise KError(EOPNOTSUPP)

    def vop_nremove(self, dvp: Vnode, ncp: NamecacheEntry, cred: Ucred) -> None:
        """Remove a name of something that is not a directory."""
        raise KError(EOPNOTSUPP)

    def vop_nrmdir(self, dvp: Vnode, ncp: NamecacheEntry, cred: Ucred) -> None:
        """Remove an empty directory."""
        raise KError(EOPNOTSUPP)

    def vop_nrename(
        self,
        fdvp: Vnode,
        fncp: NamecacheEntry,
        tdvp: Vnode,
        tncp: NamecacheEntry,
        cred: Ucred,
        flags: int = 0,
    ) -> None:
        """Rename ``fncp`` to ``tncp``, replacing what is there; with RENAME_EXCHANGE swap both."""
        raise KError(EOPNOTSUPP)
