"""Vnode and file system operations of synthetic file systems.

The rules are in `dfuser.vfs.pseudofs`; this file applies them. A file system derives from
`PfsVfsOps` and says in `make_root` what its tree is; nothing else is needed for one that only
shows. One `PfsOps` serves one mount.

Counterpart: sys/vfs/procfs/procfs_vnops.c, procfs_vfsops.c.
Differs from DragonFly: an unchanged owner and mode are a refusal (EPERM); procfs there pretends
success. Removing and creating answer EROFS as there.
Token and lock order: takes none.
Invariants: an operation on a node whose object is gone answers ENOENT and changes nothing.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Final

from dfuser.libkern.errno import (
    EINVAL,
    EMSGSIZE,
    ENOENT,
    ENOTDIR,
    EOPNOTSUPP,
    EPERM,
    EROFS,
    KError,
)
from dfuser.libkern.fcntl import FREAD, FWRITE
from dfuser.libkern.param import DEV_BSIZE
from dfuser.libkern.stat import DT_DIR
from dfuser.libkern.ucred import Ucred

from .access import vaccess
from .lockf import Flock, LockOwner, lf_advlock
from .mount import VfsOps
from .mountflags import MNT, MNTK
from .ownattrs import OwnAttrs
from .pseudofs import (
    COMMAND_MAX,
    COOKIE_DOT,
    COOKIE_DOTDOT,
    InodeTable,
    PfsDir,
    PfsEntry,
    PfsFile,
    PfsLink,
    PfsMount,
    PfsNode,
    PfsOpen,
    PfsStatistics,
)
from .vattr import Dirent, Statfs, Vattr
from .vop import Buffer, OpsCell, VnodeOps

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .cache import NamecacheEntry
    from .mount import Mount
    from .vfs import Vfs
    from .vnode import Vnode

_BLOCK: Final = 4096


def parse_owner(options: Mapping[str, str]) -> tuple[int, int]:
    """The options ``uid`` and ``gid`` of a mount. Raises KError EINVAL for what is no number."""
    numbers = []
    for key in ("uid", "gid"):
        text = options.get(key, "0")
        if not text.isdecimal() or int(text) >= 1 << 32:
            raise KError(EINVAL, f"{key}={text} is no id")
        numbers.append(int(text))
    return numbers[0], numbers[1]


class PfsOps(OwnAttrs):
    """Operations on the vnodes of one synthetic mount. Counterpart: procfs_vnode_vops."""

    __slots__ = ("fs",)

    def __init__(self, fs: PfsMount) -> None:
        self.fs = fs

    @staticmethod
    def node(vp: Vnode, cred: Ucred | None = None) -> PfsNode:
        """The node behind ``vp``.

        Raises:
            KError: ENOENT, what it shows is gone, or ``cred`` may not know of it.
        """
        node: PfsNode | None = vp.data
        if node is None or not node.alive():
            raise KError(ENOENT)
        if cred is not None and not node.visible(cred):
            raise KError(ENOENT)
        return node

    # --- files -------------------------------------------------------------------------------

    def vop_open(self, vp: Vnode, mode: int, cred: Ucred) -> Any:
        """Work a file out, if it is opened for reading only; else at its first reading."""
        node = self.node(vp, cred)
        fs = self.fs
        if not isinstance(node, PfsFile):
            return None
        fdata = PfsOpen()
        if mode & (FREAD | FWRITE) == FREAD:
            fs.render(node, cred, fdata)
        fs.opens += 1
        return fdata

    def vop_close(self, vp: Vnode, fflag: int, fdata: Any = None) -> None:
        """Give the text of this open back."""
        if isinstance(fdata, PfsOpen):
            self.fs.keep(fdata, None)
            self.fs.opens -= 1

    def vop_read(
        self, vp: Vnode, offset: int, size: int, ioflag: int, cred: Ucred, fdata: Any = None
    ) -> Buffer:
        """A piece of the text of this open; the object may be gone meanwhile."""
        own = fdata if isinstance(fdata, PfsOpen) else None
        content = own.content if own is not None else None
        if content is None:
            node = self.node(vp, cred)
            if not isinstance(node, PfsFile):
                raise KError(EINVAL)
            content = self.fs.render(node, cred, own)
        return memoryview(content)[offset : offset + size]

    def vop_write(
        self, vp: Vnode, offset: int, data: Buffer, ioflag: int, cred: Ucred, fdata: Any = None
    ) -> int:
        """Obey one command. Raises KError EMSGSIZE when it is too long, or its own error."""
        node = self.node(vp, cred)
        if not isinstance(node, PfsFile):
            raise KError(EINVAL)
        if len(data) > COMMAND_MAX:
            raise KError(EMSGSIZE)
        fs = self.fs
        try:
            answer = node.write(bytes(data), cred)
        except KError:
            fs.errors += 1
            raise
        fs.commands += 1
        if isinstance(fdata, PfsOpen):
            fs.keep(fdata, answer)
        vp.attr_changed()
        return len(data)

    def vop_readlink(self, vp: Vnode, cred: Ucred) -> bytes:
        """The target of this moment."""
        node = self.node(vp)
        if not isinstance(node, PfsLink):
            raise KError(EINVAL)
        return node.readlink(cred)

    # --- attributes --------------------------------------------------------------------------

    def vop_access(self, vp: Vnode, mode: int, cred: Ucred) -> None:
        """By owner, group and mode of the node."""
        self.node(vp, cred)
        vaccess(vp, self.vop_getattr(vp), mode, cred)

    def vop_getattr(self, vp: Vnode) -> Vattr:
        """Attributes of this moment; the size of texts and links is 0, nobody knows it before."""
        node = self.node(vp)
        uid, gid = node.owner()
        fs = self.fs
        when = node.timestamp() or fs.times or fs.vfs.now()
        return Vattr(
            type=vp.type,
            mode=node.mode(),
            uid=uid,
            gid=gid,
            size=DEV_BSIZE if isinstance(node, PfsDir) else 0,
            atime=when,
            mtime=when,
            ctime=when,
            btime=when,
            flags=0,
            nlink=1,
            fileid=node.ino,
            fsid=fs.mp.fsid,
            blocksize=_BLOCK,
        )

    def vop_setattr(self, vp: Vnode, vap: Vattr, cred: Ucred) -> None:
        """Size and times of a writable file: accepted, nothing changes. The rest is refused.

        Raises:
            KError: EOPNOTSUPP for flags, EPERM for owner and mode and for what cannot be written.
        """
        node = self.node(vp)
        if vap.flags is not None:
            raise KError(EOPNOTSUPP)
        if vap.mode is not None or vap.uid is not None or vap.gid is not None:
            raise KError(EPERM)
        if not isinstance(node, PfsFile) or not node.mode() & 0o222:
            raise KError(EPERM)

    def extattrs(self, vp: Vnode) -> Mapping[bytes, bytes]:
        """What the node tells of itself."""
        return self.node(vp).extattrs()

    def vop_advlock(self, vp: Vnode, owner: LockOwner, op: int, fl: Flock, flags: int) -> Any:
        """Advisory locks; the end of a text that is made when it is read counts as 0."""
        return lf_advlock(vp, owner, op, fl, flags, 0)

    # --- names -------------------------------------------------------------------------------

    def vop_readdir(
        self, vp: Vnode, cookie: int, limit: int, cred: Ucred, plus: bool = False
    ) -> Sequence[Dirent]:
        """Names in the order of their inode numbers, which are the cookies."""
        node = self.node(vp, cred)
        if not isinstance(node, PfsDir):
            raise KError(ENOTDIR)
        if cookie < 0:
            raise KError(EINVAL)
        out: list[Dirent] = []
        if cookie < COOKIE_DOT:
            out.append(Dirent(node.ino, DT_DIR, b".", COOKIE_DOT))
        if cookie < COOKIE_DOTDOT:
            out.append(Dirent(node.parent.ino, DT_DIR, b"..", COOKIE_DOTDOT))
        rest: Iterable[PfsEntry] = (e for e in node.entries(cred, cookie) if e.ino > cookie)
        if not node.ordered:
            rest = sorted(rest, key=lambda entry: entry.ino)
        room = max(0, limit - len(out))
        out += [Dirent(e.ino, e.dtype, e.name, e.ino) for e in islice(rest, room)]
        return out[:limit]

    def vop_nresolve(self, dvp: Vnode, ncp: NamecacheEntry, cred: Ucred) -> None:
        """Ask the directory.

        A negative answer is good for this operation only: the generation of the mount moves on, so
        that the next lookup asks again (a name may appear unannounced).

        Raises:
            KError: ENOTDIR; ENOENT, the directory itself is gone.
        """
        dnode = self.node(dvp, cred)
        if not isinstance(dnode, PfsDir):
            raise KError(ENOTDIR)
        node = dnode.lookup(ncp.name, cred)
        cache = self.fs.vfs.cache
        if node is None:
            cache.setvp(ncp, None)
            self.fs.mp.namecache_gen += 1
            return
        vp = self.fs.allocv(node)
        cache.setvp(ncp, vp)
        vp.rele()

    def vop_nlookupdotdot(self, dvp: Vnode, cred: Ucred) -> Vnode:
        """The vnode of the parent."""
        return self.fs.allocv(self.node(dvp).parent)

    def vop_ncreate(self, dvp: Vnode, ncp: NamecacheEntry, vap: Vattr, cred: Ucred) -> Vnode:
        """EROFS."""
        raise KError(EROFS)

    def vop_nmkdir(self, dvp: Vnode, ncp: NamecacheEntry, vap: Vattr, cred: Ucred) -> Vnode:
        """EROFS."""
        raise KError(EROFS)

    def vop_nmknod(self, dvp: Vnode, ncp: NamecacheEntry, vap: Vattr, cred: Ucred) -> Vnode:
        """EROFS."""
        raise KError(EROFS)

    def vop_nlink(self, dvp: Vnode, ncp: NamecacheEntry, vp: Vnode, cred: Ucred) -> None:
        """EROFS."""
        raise KError(EROFS)

    def vop_nsymlink(
        self, dvp: Vnode, ncp: NamecacheEntry, vap: Vattr, target: bytes, cred: Ucred
    ) -> Vnode:
        """EROFS."""
        raise KError(EROFS)

    def vop_nremove(self, dvp: Vnode, ncp: NamecacheEntry, cred: Ucred) -> None:
        """EROFS."""
        raise KError(EROFS)

    def vop_nrmdir(self, dvp: Vnode, ncp: NamecacheEntry, cred: Ucred) -> None:
        """EROFS."""
        raise KError(EROFS)

    def vop_nrename(
        self,
        fdvp: Vnode,
        fncp: NamecacheEntry,
        tdvp: Vnode,
        tncp: NamecacheEntry,
        cred: Ucred,
        flags: int = 0,
    ) -> None:
        """EROFS."""
        raise KError(EROFS)

    # --- life --------------------------------------------------------------------------------

    def vop_inactive(self, vp: Vnode) -> None:
        """A vnode whose object is gone is not worth keeping."""
        node: PfsNode | None = vp.data
        if node is None or not node.alive():
            vp.table.vrecycle(vp)

    def vop_reclaim(self, vp: Vnode) -> None:
        """Part vnode and node."""
        self.fs.freev(vp)

    def vop_print(self, vp: Vnode) -> str:
        """Kind and number of the node."""
        return f"{type(vp.data).__name__} ino {vp.ino}"


class PfsVfsOps(VfsOps):
    """A mounted synthetic file system. Derive and say what the tree is.

    Counterpart: procfs_vfsops (sys/vfs/procfs/procfs_vfsops.c).
    """

    #: Options of `vfs_mount` that the file system knows.
    known_options: ClassVar[frozenset[str]] = frozenset()

    def make_root(self, inodes: InodeTable) -> PfsDir:
        """The node of the root directory, number `ROOT_INO`, of a new mount."""
        raise KError(EOPNOTSUPP)

    def make_ops(self, fs: PfsMount) -> VnodeOps:
        """The operations of a new mount."""
        return PfsOps(fs)

    def times(self, vfs: Vfs) -> int | None:
        """What stat shows as the times of nodes: None for the present moment."""
        return None

    def vfs_mount(self, mp: Mount, source: str, options: dict[str, str], cred: Ucred) -> None:
        """Make the tree.

        Raises:
            KError: EOPNOTSUPP for an update; EINVAL for an option it does not know.
        """
        if mp.flag & MNT.UPDATE:
            raise KError(EOPNOTSUPP)
        unknown = sorted(set(options) - self.known_options)
        if unknown:
            raise KError(EINVAL, f"unknown mount option {unknown[0]!r}")
        inodes = InodeTable()
        fs = PfsMount(mp.vfs, mp, self.make_root(inodes), inodes)
        fs.times = self.times(mp.vfs)
        mp.data = fs
        mp.vn_cell = OpsCell(self.make_ops(fs))
        mp.coherence = "volatile"
        mp.flag |= MNT.LOCAL
        mp.kern_flag |= MNTK.NOSTKMNT | MNTK.QUICKHALT | MNTK.NOMSYNC

    def vfs_unmount(self, mp: Mount, flags: int) -> None:
        """Nothing is stored, and the caller has flushed the vnodes; break the cycle of objects."""
        mp.vn_cell = mp.vfs.vnodes.dead_cell

    def vfs_root(self, mp: Mount) -> Vnode:
        """The vnode of the root directory, referenced."""
        fs: PfsMount = mp.data
        return fs.allocv(fs.root)

    def vfs_statfs(self, mp: Mount) -> Statfs:
        """No blocks; two are claimed so that nobody divides by zero, as in DragonFly."""
        return Statfs(512, 2, 0, 0, len(mp.data.inodes), 0, 0)

    def vfs_sync(self, mp: Mount, waitfor: int) -> None:
        """Nothing is stored."""

    def vfs_vget(self, mp: Mount, ino: int) -> Vnode:
        """The vnode of an inode number, in memory or found in the tree. Raises KError ENOENT."""
        fs: PfsMount = mp.data
        vp = fs.vnodes.get(ino)
        if vp is not None:
            return vp.table.vget(vp)
        node = fs.find_node(ino, Ucred.root())
        if node is None:
            raise KError(ENOENT)
        return fs.allocv(node)

    def statistics(self, mp: Mount) -> PfsStatistics:
        """Figures of the mounted tree."""
        fs: PfsMount = mp.data
        return fs.statistics()
