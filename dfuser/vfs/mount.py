"""Mounts: which file systems are in the tree, where, and on what terms.

A `Mount` joins a file system (`VfsOps`, one object a mount) to a place in the name space: its root
entry ``ncmountpt`` is shown instead of the directory ``ncmounton``. Mounts are crossed in the
namecache; the vnodes know only their own mount.

**Mounting** is refused where DragonFly refuses: unknown type ENODEV, not a directory ENOTDIR, a
synthetic tree that allows nothing inside EPERM, a place that is taken EBUSY, another user EPERM
unless vfs.usermount is set (and then nosuid and nodev are forced).

**Unmounting** asks whether anybody is inside: a held name (a current directory, an open file, a
mount further down), a referenced vnode, a thread that waits in an operation. If so it says EBUSY
with the counts; a caller that can wait has up to ten tries, 0.1 s apart ("mntbsy"). With FORCE it
goes on: everything that is open gets dead vnodes, held names are destroyed.

Counterpart: struct mount, struct vfsops, struct vfsconf (sys/mount.h), kern/vfs_mount.c,
    sys_mount, dounmount (kern/vfs_syscalls.c), vflush (kern/vfs_mount.c).
Differs from DragonFly: the mounted-on directory's vnode is referenced, not only its name; `vflush`
    is done here before ``vfs_unmount``, once for all file systems; a mount's number is given to
    it for ever (C counts fsids a type and may repeat them).
Token/lock order: none; everything runs to completion or says `Block` before a change.
Invariants: an index is never used twice; every mount but the first is mounted on something that
    is in the tree; a mount with MNTK.UNMOUNT accepts no new work (`busy`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dfuser.libkern.errno import (
    EBUSY,
    EINVAL,
    ENOENT,
    ENOTDIR,
    EOPNOTSUPP,
    EPERM,
    EROFS,
    ESTALE,
    KError,
)
from dfuser.libkern.klist import Klist
from dfuser.libkern.param import HZ
from dfuser.libkern.stat import VType
from dfuser.libkern.sysctl import INT, RD, RW, Sysctl
from dfuser.lwkt.block import Block
from dfuser.lwkt.synch import tsleep

from .mountflags import MNT, MNTK, VFCF, VQ_MOUNT, VQ_UNMOUNT, MountOptions
from .namecache import CINV, NCF, NamecacheEntry, NcHandle
from .vfsops import FsType, FsTypes, VfsOps
from .vnode import V

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dfuser.libkern.ucred import Ucred

    from .vfs import Vfs
    from .vnode import Vnode
    from .vop import OpsCell

__all__ = ["MNT", "MNTK", "VFCF", "FsType", "FsTypes", "Mount", "MountList", "MountOptions",
           "VfsOps"]  # fmt: skip

#: Tries of a waiting unmount, and ticks between them. Counterpart: dounmount.
UNMOUNT_TRIES: Final = 10
UNMOUNT_PAUSE: Final = HZ // 10 + 1


class Mount:
    """One mounted file system. Counterpart: struct mount (sys/mount.h), mnt_ dropped."""

    __slots__ = (
        "vfs", "index", "fstype", "ops", "vn_cell", "flag", "kern_flag", "fromname", "onname",
        "owner", "data", "options", "rootncp", "ncmounton", "vp_on", "vnodes", "coherence",
        "fsid", "refs", "busycount", "namecache_gen", "syncer", "tries", "prison", "__weakref__",
    )  # fmt: skip

    def __init__(self, vfs: Vfs, index: int, fstype: FsType, fromname: str) -> None:
        self.vfs = vfs
        self.index = index
        self.fstype = fstype
        self.ops = fstype.factory()
        self.vn_cell: OpsCell = vfs.vnodes.dead_cell
        self.flag = 0
        self.kern_flag = 0
        self.fromname = fromname
        self.onname = "/"
        self.owner = 0
        self.data: Any = None
        self.options: dict[str, str] = {}
        #: The root entry; a file system may set it in vfs_mount to show an entry it has.
        self.rootncp: NamecacheEntry = NULL_NCP
        self.ncmounton: NcHandle | None = None
        self.vp_on: Vnode | None = None
        self.vnodes: dict[Vnode, None] = {}
        #: "exclusive", "shared" or "volatile": how far the host's caches may be trusted.
        self.coherence = "shared"
        #: Unique for the life of the kernel. Counterpart: f_fsid, vfs_getnewfsid.
        self.fsid = fstype.typenum << 32 | index
        #: Places held in this mount by `NameCache.hold`, beyond the root's own.
        self.refs = 0
        self.busycount = 0
        #: Bumped when names may have appeared; older negative entries are void.
        self.namecache_gen = 0
        self.syncer: Any = None
        self.tries = 0
        self.prison: object | None = None

    @property
    def ncmountpt(self) -> NcHandle:
        """The root of the mount as a place, borrowed; after an unmount a dead one.

        Made when asked for: a handle kept here would hold the mount by itself for ever.
        """
        return NcHandle(self.rootncp, self)

    @property
    def rdonly(self) -> bool:
        """Whether nothing may be changed."""
        return bool(self.flag & MNT.RDONLY)

    def busy(self) -> None:
        """Announce work that may wait; an unmount stays out until `unbusy`.

        Counterpart: vfs_busy.

        Raises:
            KError: ENOENT, the file system is being unmounted.
        """
        if self.kern_flag & MNTK.UNMOUNT:
            raise KError(ENOENT)
        self.busycount += 1

    def unbusy(self) -> None:
        """The announced work is done. Counterpart: vfs_unbusy."""
        self.busycount -= 1

    def namecache_news(self) -> None:
        """Names may have appeared by themselves (a device): old negative entries are void."""
        self.namecache_gen += 1

    def writers(self) -> int:
        """How many vnodes are open for writing."""
        return sum(1 for vp in self.vnodes if vp.writecount)

    def __repr__(self) -> str:
        return f"<Mount {self.index} {self.fstype.name} {self.fromname} on {self.onname}>"


class MountStatistics(NamedTuple):
    """Figures of the mount list; the last four count since boot."""

    mounts: int
    vnodes: int
    mounted: int
    unmounted: int
    forced: int
    busy: int


#: Stands in ``rootncp`` while a mount is being made.
NULL_NCP: Final[Any] = None


class MountList:
    """All mounts of a kernel. Counterpart: mountlist (kern/vfs_mount.c)."""

    sysctls = (
        Sysctl("vfs.usermount", "Allow unprivileged users to mount", attr="usermount", kind=INT,
               flags=RW, minimum=0, maximum=1),
        Sysctl("vfs.debug_busyprt", "Print the vnodes that make an unmount busy",
               attr="debug_busyprt", kind=INT, flags=RW, minimum=0, maximum=1),
        Sysctl("vfs.nummounts", "File systems mounted", getter=len, kind=INT, flags=RD),
    )  # fmt: skip

    def __init__(self, vfs: Vfs) -> None:
        self.vfs = vfs
        self._mounts: dict[int, Mount] = {}
        self._on: dict[tuple[int, Any], Mount] = {}
        self._next_index = 1
        self.root: Mount | None = None
        self.usermount = 0
        self.debug_busyprt = 0
        #: Watchers of mounts and unmounts (EVFILT_FS). Counterpart: fs_klist.
        self.fs_klist = Klist()
        #: Called with (old, new) place when a mount covers a directory somebody may be in.
        self.checkdirs: list[Callable[[NcHandle, NcHandle], None]] = []
        self.mounted = 0
        self.unmounted = 0
        self.forced = 0
        self.busy = 0

    # --- looking -----------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Mount]:
        """The mounts in the order they were mounted. Counterpart: mountlist_scan."""
        return iter(tuple(self._mounts.values()))

    def __len__(self) -> int:
        return len(self._mounts)

    def get(self, index: int) -> Mount | None:
        """The mount with this index, if it still is mounted."""
        return self._mounts.get(index)

    def getvfs(self, fsid: int) -> Mount:
        """The mount with this fsid. Counterpart: vfs_getvfs.

        Raises:
            KError: ESTALE, it is not mounted (any more).
        """
        mp = self._mounts.get(fsid & 0xFFFF_FFFF)
        if mp is None or mp.fsid != fsid:
            raise KError(ESTALE)
        return mp

    def find_on(self, nch: NcHandle) -> Mount | None:
        """What is mounted on a place; `NameCache.findmount` is the quick way."""
        return self._on.get((nch.mount.index, nch.ncp))

    @property
    def rootnch(self) -> NcHandle:
        """The root of the kernel's name space (borrowed). Counterpart: rootnch.

        Raises:
            KError: ENOENT, nothing is mounted.
        """
        if self.root is None:
            raise KError(ENOENT, "no root file system")
        return self.root.ncmountpt

    # --- mounting ----------------------------------------------------------------------------

    def mount(
        self,
        fstype: str,
        source: str,
        nch_on: NcHandle | None,
        options: dict[str, str],
        flags: int,
        cred: Ucred,
    ) -> Mount:
        """Mount a file system. Counterpart: sys_mount.

        Args:
            fstype: registered type.
            source: what is mounted, for the file system and for people.
            nch_on: the directory, or None for the first mount, the root.
            options: words for the file system.
            flags: MNT.*
            cred: who mounts.

        Raises:
            KError: see the head of this file; or the file system's own error.
        """
        flags = self._check_priv(flags, cred)
        vtype = self._check_place(fstype, nch_on, cred)
        mp = Mount(self.vfs, self._next_index, vtype, source)
        mp.flag = flags & (MNT.SETTABLE | MNT.RDONLY | MNT.FORCE | MNT.LOCAL)
        if not vtype.flags & (VFCF.NETWORK | VFCF.SYNTHETIC):
            mp.flag |= MNT.LOCAL
        if vtype.flags & VFCF.READONLY:
            mp.flag |= MNT.RDONLY
        if nch_on is None:
            mp.flag |= MNT.ROOTFS
        mp.owner = cred.uid
        mp.prison = cred.prison
        mp.options = dict(options)
        mp.ncmounton = nch_on
        mp.ops.vfs_mount(mp, source, options, cred)
        mp.flag &= ~MNT.CMDFLAGS
        self._next_index += 1
        self._install(mp, nch_on, cred)
        return mp

    def _check_priv(self, flags: int, cred: Ucred) -> int:
        """May this user mount? Forces nosuid and nodev on those who are not root."""
        if self.usermount and cred.prison is not None:
            raise KError(EPERM)
        if cred.uid == 0:
            return flags
        if not self.usermount:
            raise KError(EPERM)
        return flags | MNT.NOSUID | MNT.NODEV | MNT.USER

    def _check_place(self, fstype: str, nch_on: NcHandle | None, cred: Ucred) -> FsType:
        """May something be mounted there? Gives the type that is meant."""
        if nch_on is None:
            if self.root is not None:
                raise KError(EBUSY, "a root file system is mounted already")
            return self.vfs.fstypes.find(fstype)
        if nch_on.ncp.flags & NCF.UNRESOLVED:
            self.vfs.cache.resolve(nch_on.ncp, nch_on.mount, cred)
        vp = nch_on.ncp.vp
        if vp is None or vp.mount is None or nch_on.ncp.flags & NCF.DESTROYED:
            raise KError(ENOENT)
        if cred.uid != 0 and vp.ops.use.vop_getattr(vp).uid != cred.uid:
            raise KError(EPERM)
        if vp.type is not VType.VDIR:
            raise KError(ENOTDIR)
        if (vp.mount.kern_flag | nch_on.mount.kern_flag) & MNTK.NOSTKMNT:
            raise KError(EPERM, "nothing may be mounted inside this file system")
        found = self.vfs.fstypes.find(fstype)
        if self.find_on(nch_on) is not None:
            raise KError(EBUSY, "something is mounted there already")
        return found

    def _install(self, mp: Mount, nch_on: NcHandle | None, cred: Ucred) -> None:
        """Put a mount whose file system is up into the tree."""
        vfs = self.vfs
        if mp.rootncp is NULL_NCP:
            mp.rootncp = vfs.cache.allocroot(mp).ncp
        self._mounts[mp.index] = mp
        try:
            vfs.cache.resolve(mp.rootncp, mp, cred)
        except BaseException:
            del self._mounts[mp.index]
            mp.ops.vfs_unmount(mp, MNT.FORCE)
            raise
        if nch_on is None:
            self.root = mp
        else:
            vfs.cache.hold(nch_on)
            if nch_on.ncp.vp is not None:
                mp.vp_on = nch_on.ncp.vp.ref()
            nch_on.ncp.flags |= NCF.ISMOUNTPT
            self._on[nch_on.mount.index, nch_on.ncp] = mp
            mp.onname = vfs.cache.fullpath(nch_on).decode("utf-8", "surrogateescape")
            vfs.cache.ncmount.ismounting(mp)
            for hook in self.checkdirs:
                hook(nch_on, mp.ncmountpt)
        self.mounted += 1
        vfs.syncer.mount_added(mp)
        mp.ops.vfs_start(mp)
        self._tell(mp, VQ_MOUNT)

    def _tell(self, mp: Mount, event: int) -> None:
        """Tell the watchers of mounts, and the host that a name means something else now."""
        self.fs_klist.knote(event)
        on = mp.ncmounton
        if self.vfs.hostcache is not None and on is not None:
            par = on.ncp.parent
            if par is not None and par.vp is not None:
                self.vfs.hostcache.entry_changed(par.vp, on.ncp.name)

    def update(
        self, mp: Mount, flags: int, options: dict[str, str], cred: Ucred, clear: int = 0
    ) -> None:
        """Change how a file system is mounted. Counterpart: sys_mount with MNT_UPDATE.

        Args:
            mp: the mount.
            flags: all the MNT.* it shall have from now on (RDONLY included), and RELOAD, FORCE.
            options: words for the file system.
            cred: who changes it.
            clear: flags to take away although they are not in ``flags`` as a set; unused bits 0.

        Raises:
            KError: EPERM; EBUSY, read-only is asked for and files are open for writing; EINVAL,
                RELOAD of what is not read-only; or the file system's own error. Nothing changed.
        """
        if cred.uid not in (0, mp.owner):
            raise KError(EPERM)
        if flags & MNT.RELOAD and not mp.flag & MNT.RDONLY:
            raise KError(EOPNOTSUPP)
        if mp.kern_flag & MNTK.UNMOUNT:
            raise KError(EBUSY)
        going_ro = flags & MNT.RDONLY and not mp.flag & MNT.RDONLY
        if going_ro and not flags & MNT.FORCE and (writers := mp.writers()):
            raise KError(EBUSY, f"{writers} files are open for writing")
        if not flags & MNT.RDONLY and mp.fstype.flags & VFCF.READONLY:
            raise KError(EROFS)
        if cred.uid != 0:
            flags |= MNT.NOSUID | MNT.NODEV
        old_flag, old_kern, old_options = mp.flag, mp.kern_flag, mp.options
        if going_ro:
            mp.ops.vfs_sync(mp, 1)
        if flags & MNT.RDONLY:
            mp.flag |= MNT.RDONLY
        elif mp.flag & MNT.RDONLY:
            mp.kern_flag |= MNTK.WANTRDWR
        mp.flag &= ~MNT.SETTABLE
        mp.flag |= flags & MNT.SETTABLE & ~clear | MNT.UPDATE | flags & (MNT.RELOAD | MNT.FORCE)
        try:
            mp.ops.vfs_mount(mp, mp.fromname, options, cred)
        except BaseException:
            mp.flag, mp.kern_flag, mp.options = old_flag, old_kern, old_options
            raise
        mp.options = mp.options | options
        if mp.kern_flag & MNTK.WANTRDWR:
            mp.flag &= ~MNT.RDONLY
        mp.flag &= ~MNT.CMDFLAGS
        mp.kern_flag &= ~MNTK.WANTRDWR
        for vp in mp.vnodes:
            vp.attr_cache = None
        host = self.vfs.hostcache
        if host is not None and mp.flag != old_flag:
            host.mount_changed(mp)

    # --- unmounting --------------------------------------------------------------------------

    def unmount(
        self, mp: Mount, flags: int = 0, *, wait: bool = False, halting: bool = False
    ) -> None:
        """Unmount a file system. Counterpart: dounmount.

        Args:
            mp: the mount.
            flags: MNT.FORCE to go on although it is in use.
            wait: say `Block` for up to ten tries 0.1 s apart before giving up as EBUSY.
            halting: the kernel stops: the root may go too.

        Raises:
            KError: EBUSY with the counts; EINVAL, the root, or not mounted.
            Block: with ``wait``, while it is in use.
        """
        if self._mounts.get(mp.index) is not mp:
            raise KError(EINVAL, "not mounted")
        if mp is self.root and not halting:
            raise KError(EINVAL, "the root file system stays")
        if mp.kern_flag & MNTK.UNMOUNT:
            raise KError(EBUSY, "an unmount is going on")
        mp.kern_flag |= MNTK.UNMOUNT | (MNTK.UNMOUNTF if flags & MNT.FORCE else 0)
        try:
            if not mp.flag & MNT.RDONLY and not (halting and mp.kern_flag & MNTK.QUICKHALT):
                mp.ops.vfs_sync(mp, 1)
            reason = self._in_use(mp)
            if reason and not flags & MNT.FORCE:
                self._say_busy(mp, reason, wait)
            self._take_apart(mp, flags, reason)
        finally:
            mp.kern_flag &= ~(MNTK.UNMOUNT | MNTK.UNMOUNTF)

    def _in_use(self, mp: Mount) -> str:
        """Who is inside, in words; "" when nobody is."""
        vfs = self.vfs
        aliased = mp.kern_flag & MNTK.NCALIASED
        above = sum(1 for other in self if other.ncmounton and other.ncmounton.mount is mp)
        held = vfs.cache.purgevfs(mp) if not aliased else 0
        root = mp.rootncp
        held += 0 if aliased else root.refs - 1
        busy = sum(1 for vp in mp.vnodes if vp.refcnt)
        vfs.cache.ncmount.unmounting(mp)
        if not (above or held or busy or mp.refs or mp.busycount):
            return ""
        if self.debug_busyprt:
            for vp in mp.vnodes:
                if vp.refcnt:
                    vfs.msgbuf.kprintf(f"unmount {mp.onname}: busy {vp!r}\n")
        return (
            f"{held} namecache refs, {mp.refs} mount refs, {busy} vnodes, {above} mounts,"
            f" {mp.busycount} operations still present"
        )

    def _say_busy(self, mp: Mount, reason: str, wait: bool) -> None:
        """Refuse an unmount, or let the caller wait and try again."""
        if wait and mp.tries < UNMOUNT_TRIES:
            mp.tries += 1

            async def pause() -> int:
                await tsleep(mp, 0, "mntbsy", UNMOUNT_PAUSE)
                return 0

            raise Block(pause, "mntbsy")
        mp.tries = 0
        self.busy += 1
        text = f"unmount of {mp.onname}: {reason}"
        self.vfs.msgbuf.kprintf(text + "\n")
        raise KError(EBUSY, text)

    def _take_apart(self, mp: Mount, flags: int, reason: str) -> None:
        """Take a mount out of the tree and end it. The root entry's names die with it."""
        vfs = self.vfs
        if reason:
            self.forced += 1
            vfs.msgbuf.kprintf(f"unmount of {mp.onname}: {reason}; forcing\n")
            for other in self:
                if other.ncmounton and other.ncmounton.mount is mp:
                    self.unmount(other, flags)
        vflush(mp, flags)
        mp.ops.vfs_unmount(mp, flags)
        vfs.syncer.mount_removed(mp)
        root = mp.rootncp
        if not mp.kern_flag & MNTK.NCALIASED:
            vfs.cache.inval(root, CINV.DESTROY | CINV.CHILDREN)
            root.flags |= NCF.DESTROYED
        vfs.cache.drop(root)
        vfs.cache.ncmount.unmounting(mp)
        del self._mounts[mp.index]
        self._uncover(mp)
        self.unmounted += 1
        self._tell(mp, VQ_UNMOUNT)
        mp.data = None
        mp.tries = 0

    def _uncover(self, mp: Mount) -> None:
        """Show again what the mount covered. Counterpart: cache_clrmountpt."""
        on = mp.ncmounton
        if on is None:
            self.root = None
            return
        del self._on[on.mount.index, on.ncp]
        if not any(ncp is on.ncp for _, ncp in self._on):
            on.ncp.flags &= ~NCF.ISMOUNTPT
        self.vfs.cache.ncmount.ismounting(mp)
        if mp.vp_on is not None:
            mp.vp_on.rele()
            mp.vp_on = None
        self.vfs.cache.drop_nch(on)

    def unmountall(self) -> list[tuple[Mount, KError]]:
        """Unmount everything in reverse order, the root last, forcing what is in use.

        Counterpart: vfs_unmountall.

        Returns:
            The mounts whose file system could not be shut down, with the reason.
        """
        failed: list[tuple[Mount, KError]] = []
        for mp in reversed(tuple(self._mounts.values())):
            if self._mounts.get(mp.index) is not mp:
                continue
            try:
                self.unmount(mp, MNT.FORCE, halting=True)
            except KError as error:
                failed.append((mp, error))
        return failed

    def statistics(self) -> MountStatistics:
        """The figures of this moment."""
        return MountStatistics(
            len(self._mounts), sum(len(mp.vnodes) for mp in self), self.mounted, self.unmounted,
            self.forced, self.busy,
        )  # fmt: skip


def vflush(mp: Mount, flags: int) -> int:
    """Let go of all vnodes of a mount; with MNT.FORCE those in use become dead ones.

    Counterpart: vflush.

    Returns:
        How many are still in use (0 with MNT.FORCE).
    """
    busy = 0
    table = mp.vfs.vnodes
    for vp in tuple(mp.vnodes):
        if vp.flag & V.RECLAIMED:
            continue
        if vp.refcnt and not flags & MNT.FORCE:
            busy += 1
            continue
        table.vgone(vp)
    return busy
