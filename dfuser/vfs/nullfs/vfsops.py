"""Null mounts: a second place for a subtree, with mount flags of its own.

A null mount has no files, no vnodes and no names. Its root entry *is* the namecache entry
of the directory it shows, and what tells the two places apart is the pair of entry and
mount (`NcHandle`): below ``/mnt`` the same entries and vnodes are met as below ``/data``,
but with the null mount in the handle, so its flags (read-only, noexec) apply and ``..`` at
its root leads to ``/mnt``. All operations on vnodes go to the file system below directly.

**No loops.** A place is a pair, so showing ``/a`` at ``/a/b`` gives a ``/a/b/b`` that is the
plain directory: something is mounted on (b, the mount of /a), nothing on (b, the null
mount). Any depth of mounts on mounts is finite for the same reason.

**Across.** The two places of one directory are different mounts: link and rename between
them answer EXDEV. Between two null mounts of different file systems too (EINVAL in
DragonFly's vector; the VFS compares mounts before it is asked).

**Busy below.** The directory's entry and vnode are held: it cannot be removed, and the file
system below cannot be unmounted without force. After a forced unmount below, everything
through the null mount fails; it can still be unmounted itself.

A null mount of a null mount shows what that one shows: it goes to the same file system and
inherits read-only and noexec. Since one file can then change at two places, the file system
below stops being "exclusive" to the host.

Counterpart: struct null_mount (vfs/nullfs/null.h), vfs/nullfs/null_vfsops.c.
Differs from DragonFly: there is no operation vector (null_vnops.c redirects the operations
    on names to the vector below; here they are called on the vnode and are there already).
    File handles are resolved below without a check that they lie inside the subtree, as
    there.
Token/lock order: none; nothing here suspends.
Invariants: the lower mount is never itself a null mount; the held entry and vnode are given
    back exactly once, at unmount.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dfuser.libkern.errno import EINVAL, ENOENT, ENOTDIR, KError
from dfuser.libkern.stat import VType
from dfuser.vfs.mount import VfsOps
from dfuser.vfs.mountflags import MNT, MNTK
from dfuser.vfs.namecache import NCF, NcHandle
from dfuser.vfs.nlookup import NLC, NlookupData, nlookup

if TYPE_CHECKING:
    from dfuser.libkern.ucred import Ucred
    from dfuser.vfs.mount import Mount
    from dfuser.vfs.vattr import Statfs
    from dfuser.vfs.vnode import Vnode


class NullMount(NamedTuple):
    """What a null mount shows. Counterpart: struct null_mount (vfs/nullfs/null.h)."""

    lower: Mount
    """The mount the vnodes belong to (nullm_vfs)."""
    rootvp: Vnode
    """The directory shown, referenced (nullm_rootvp)."""


class NullVfsOps(VfsOps):
    """One null mount. Counterpart: null_vfsops."""

    def vfs_mount(self, mp: Mount, source: str, options: dict[str, str], cred: Ucred) -> None:
        """Show the directory ``source``. Counterpart: nullfs_mount.

        An update changes flags only, which the caller has done.

        Raises:
            KError: ENOTDIR, ENOENT, EACCES and so on for the path; EINVAL, any option, or a
                null mount as the root of the kernel.
        """
        if options:
            raise KError(EINVAL, f"nullfs knows no option {min(options)!r}")
        if mp.flag & MNT.UPDATE:
            return
        if mp.ncmounton is None:
            raise KError(EINVAL, "a null mount needs something below it")
        self._attach(mp, self._find(mp, source, cred))

    def _find(self, mp: Mount, source: str, cred: Ucred) -> NcHandle:
        """Look the directory up; the handle is held.

        Raises:
            KError: whatever the walk says; ENOTDIR.
        """
        vfs = mp.vfs
        path = source.encode("utf-8", "surrogateescape")
        nd = NlookupData(vfs, vfs.rootnch, vfs.rootnch, path, cred, NLC.FOLLOW)
        try:
            nch = nlookup(nd)
            vp = nch.ncp.vp
            if vp is None or vp.mount is None:
                raise KError(ENOENT)
            if vp.type is not VType.VDIR:
                raise KError(ENOTDIR)
            return vfs.cache.hold(nch)
        finally:
            nd.done()

    def _attach(self, mp: Mount, nch: NcHandle) -> None:
        """Make the found directory the root of the mount; takes over the hold on its entry."""
        vp = nch.ncp.vp
        assert vp is not None
        lower = vp.mount
        assert lower is not None
        nch.mount.refs -= 1
        if nch.mount is not lower:
            mp.flag |= nch.mount.flag & (MNT.RDONLY | MNT.NOEXEC)
        mp.data = NullMount(lower, vp.ref())
        mp.rootncp = nch.ncp
        mp.vn_cell = lower.vn_cell
        nch.ncp.flags |= NCF.ISMOUNTPT
        mp.kern_flag |= MNTK.NCALIASED
        mp.flag = mp.flag & ~MNT.LOCAL | lower.flag & MNT.LOCAL
        if lower.coherence == "exclusive":
            lower.coherence = "shared"
        mp.coherence = lower.coherence

    def vfs_unmount(self, mp: Mount, flags: int) -> None:
        """Let the directory go. Counterpart: nullfs_unmount.

        The hold on its entry is the root's own and is given back by the caller.
        """
        null: NullMount = mp.data
        mp.data = None
        mp.vn_cell = mp.vfs.vnodes.dead_cell
        ncp = mp.rootncp
        others = [other for other in mp.vfs.mounts if other is not mp]
        shown = any(other.rootncp is ncp for other in others)
        covered = any(o.ncmounton is not None and o.ncmounton.ncp is ncp for o in others)
        if not (shown or covered):
            ncp.flags &= ~NCF.ISMOUNTPT
        null.rootvp.rele()

    def vfs_root(self, mp: Mount) -> Vnode:
        """The directory shown, referenced. Counterpart: nullfs_root."""
        null: NullMount = mp.data
        return null.rootvp.ref()

    def vfs_statfs(self, mp: Mount) -> Statfs:
        """How full the file system below is; names and number are the null mount's own.

        Counterpart: nullfs_statfs.
        """
        null: NullMount = mp.data
        return null.lower.ops.vfs_statfs(null.lower)

    def vfs_sync(self, mp: Mount, waitfor: int) -> None:
        """The file system below has its own syncer; a null mount keeps nothing."""

    def vfs_vget(self, mp: Mount, ino: int) -> Vnode:
        """The vnode of an inode number of the file system below. Counterpart: nullfs_fhtovp."""
        null: NullMount = mp.data
        return null.lower.ops.vfs_vget(null.lower, ino)
