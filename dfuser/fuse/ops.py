"""The operations of a connection, one short method a request, whatever transport brought it.

Each method is a plain function over the VFS cores (`dfuser.vfs.syscalls`). It runs in a context
that the transport has bound (`request.RequestContext`), answers or raises `KError` or `Block`, and
never waits. What it answers is in the transport's own form where that is packed once and kept
(`attr.AttrCache`), else in plain numbers and bytes.

The host's kernel has checked permissions (mount option ``default_permissions``), so the cores are
asked not to check again; they could not, since FUSE does not pass supplementary groups.

A caller (``ctx``) has ``uid``, ``gid`` and ``pid``. Operations on an open file get an `OpenFile`;
they run for whoever opened it where the transport does not know better.

Counterpart: the fuse_lowlevel operations of libfuse; our side is sys/kern/vfs_syscalls.c.
Invariants: every answer that names a file counts one lookup on its node, and nothing else does;
``.`` and ``..`` of a listing count none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dfuser.libkern.acl import XATTR_ACCESS, XATTR_DEFAULT
from dfuser.libkern.errno import (
    EACCES,
    EBADF,
    EEXIST,
    ELOOP,
    ENOATTR,
    ENOENT,
    ESTALE,
    KError,
)
from dfuser.libkern.fcntl import (
    FREAD,
    FWRITE,
    O_APPEND,
    O_DIRECTORY,
    O_EXCL,
    O_NOATIME,
    O_RDONLY,
    oflags_from_linux,
)
from dfuser.libkern.stat import DT_DIR, S_ISGID, S_ISUID, S_IXGRP, VType
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt.block import Block
from dfuser.vfs import syscalls as kern
from dfuser.vfs.file import File
from dfuser.vfs.mountflags import MNT
from dfuser.vfs.namecache import NCF, NcHandle
from dfuser.vfs.ncpath import live_ncp
from dfuser.vfs.vattr import Vattr
from dfuser.vfs.vop import EXTATTR_NAMESPACE_SYSTEM, EXTATTR_NAMESPACE_USER

from .attr import VOLATILE, flags_of, mount_below
from .nodes import NodeTable
from .request import Caller, OpenFile
from .wire.const import (
    FOPEN_CACHE_DIR,
    FOPEN_DIRECT_IO,
    FOPEN_KEEP_CACHE,
    FOPEN_PARALLEL_DIRECT_WRITES,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dfuser.vfs.mount import Mount
    from dfuser.vfs.namecache import NamecacheEntry
    from dfuser.vfs.vattr import Statfs
    from dfuser.vfs.vfs import Vfs
    from dfuser.vfs.vnode import Vnode
    from dfuser.vfs.vop import Buffer

    from .attr import AttrCache
    from .nodes import Node
    from .polling import PollHandle, PollTable
    from .request import RequestContext

_USER: Final = b"user."
#: The host opens the file to execute it. Counterpart: __FMODE_EXEC (linux/fs.h).
FMODE_EXEC: Final = 0x20
#: Combinations of open flags that are remembered.
OFLAGS_MAX: Final = 256
#: Rebuilding the path of a directory is the kernel's own business.
ROOT_CRED: Final = Ucred.root()
#: How the host treats what is opened, by kind: its own caches, or every request to us.
_OPEN_CACHED: Final = FOPEN_KEEP_CACHE
_OPEN_DIRECT: Final = FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES
_OPENDIR_CACHED: Final = FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE


class Opened(NamedTuple):
    """An open: the number the host gets for it, and FOPEN_ flags."""

    fh: int
    flags: int


class Listed(NamedTuple):
    """An entry of a listing."""

    record: Any
    """Packed attributes, in the transport's form."""
    ino: int
    cookie: int
    """Continues behind this entry."""
    dtype: int
    name: bytes
    node: Node | None
    """What the record names; None for ``.`` and ``..``."""


def bare(vp: Vnode) -> bool:
    """Whether a file has no extended attribute, of either name space."""
    for space in (EXTATTR_NAMESPACE_USER, EXTATTR_NAMESPACE_SYSTEM):
        try:
            if vp.ops.use.vop_listextattr(vp, space, ROOT_CRED):
                return False
        except KError:
            continue
    return True


class Operations:
    """What one connection can be asked.

    Args:
        vfs: the file systems.
        context: credentials and CPUs.
        nodes: the files the host knows on this connection.
        attrs: packs their attributes.
        polls: who waits for events.
        separate: whether a mount has a connection of its own, so that the host crosses into it by
            itself and is shown the directory below.
    """

    def __init__(
        self,
        vfs: Vfs,
        context: RequestContext,
        nodes: NodeTable,
        attrs: AttrCache,
        polls: PollTable,
        separate: Callable[[Mount], bool] = lambda _mount: False,
    ) -> None:
        self.vfs = vfs
        self.context = context
        self.nodes = nodes
        self.attrs = attrs
        self.polls = polls
        self.separate = separate
        self.files: dict[int, OpenFile] = {}
        self._next_fh = 0
        #: The host's open flags in our numbers; programs use a handful of combinations.
        self._oflags: dict[int, int] = {}

    # --- helpers ---------------------------------------------------------------------------

    def _dir(self, nodeid: int) -> tuple[Node, NcHandle]:
        """Node and namecache handle of a directory."""
        node, vp = self.nodes.vnode(nodeid)
        return node, NcHandle(self._dncp(vp), node.mount)

    def _dncp(self, dvp: Vnode) -> NamecacheEntry:
        """The namecache entry of a directory, borrowed; its path is rebuilt if it was forgotten."""
        ncp = live_ncp(dvp)
        if ncp is None:
            ncp = self.vfs.cache.fromdvp(dvp, ROOT_CRED)
            self.vfs.cache.drop(ncp)
        return ncp

    def _nch(self, nodeid: int) -> tuple[Node, Vnode, NcHandle]:
        """Node, vnode and some namecache handle of any file; the entry may be None inside."""
        node, vp = self.nodes.vnode(nodeid)
        return node, vp, self.vfs.cache.nch_of(vp, node.mount)

    def _entry(self, mount: Mount, vp: Vnode) -> Any:
        """The reply that names ``vp``: counts a lookup."""
        node = self.nodes.find(mount, vp)
        entry = self.attrs.entry(node, vp)
        node.nlookup += 1
        return entry

    def _entry_of(self, nch: NcHandle) -> Any:
        """The same for a place; ENOENT when nothing is there any more."""
        vp = nch.ncp.vp
        if vp is None:
            raise KError(ENOENT)
        return self._entry(nch.mount, vp)

    def _covered(self, nch: NcHandle, dmount: Mount) -> NcHandle:
        """The place itself, where what is mounted on it is the host's to cross into.

        ``dmount`` is the directory's mount; mounts may lie on mounts.
        """
        while nch.mount is not dmount and self.separate(nch.mount):
            on = nch.mount.ncmounton
            if on is None:
                break
            nch = on
        return nch

    def _mode(self, nodeid: int, dnch: NcHandle, mode: int, umask: int) -> int:
        """The mode of a new file: the umask counts unless the directory has a default ACL."""
        if not umask:
            return mode & 0o7777
        node = self.nodes.by_id[nodeid]
        vp = dnch.ncp.vp
        if not node.plain and vp is not None:
            try:
                vp.ops.use.vop_getextattr(vp, EXTATTR_NAMESPACE_SYSTEM, XATTR_DEFAULT, ROOT_CRED)
                return mode & 0o7777
            except KError:
                node.plain = bare(vp)
        return mode & 0o7777 & ~umask

    def _opened(self, file: File, node: Node, ctx: Any) -> Opened:
        """Enter an open. An append is the host's to place; a null mount's atime rule is ours."""
        file.flags &= ~O_APPEND
        mount = node.mount
        if mount_below(mount) and mount.flag & (MNT.NOATIME | MNT.RDONLY):
            file.flags |= O_NOATIME
        self._next_fh = fh = self._next_fh + 1
        self.files[fh] = OpenFile(file, node, Caller(ctx.uid, ctx.gid, ctx.pid))
        if mount.coherence == VOLATILE:
            return Opened(fh, _OPEN_DIRECT)
        return Opened(fh, _OPEN_CACHED if file.vp.type is VType.VREG else _OPENDIR_CACHED)

    def oflags(self, flags: int) -> int:
        """The host's open flags in DragonFly's numbers."""
        ours = self._oflags.get(flags)
        if ours is None:
            if len(self._oflags) >= OFLAGS_MAX:
                self._oflags.clear()
            ours = self._oflags[flags] = oflags_from_linux(flags)
        return ours

    def file(self, fh: int) -> OpenFile:
        """An open by its number. Raises KError: EBADF, or ESTALE when its mount has gone."""
        opened = self.files.get(fh)
        if opened is None:
            raise KError(EBADF)
        if opened.gone:
            raise KError(ESTALE)
        return opened

    # --- names -----------------------------------------------------------------------------

    def lookup(self, ctx: Any, nodeid: int, name: bytes) -> Any:
        """Find a name in a directory; a name that is not there has a negative record."""
        if name == b"." or name == b"..":
            return self._lookup_dots(ctx, nodeid, name)
        node, dnch = self._dir(nodeid)
        nch = kern.kern_lookup(self.vfs, dnch, name, self.context.cred(ctx.uid, ctx.gid))
        if nch is None:
            return self.attrs.negative(node.mount)
        if nch[1] is not dnch[1]:
            nch = self._covered(nch, dnch.mount)
        return self._entry_of(nch)

    def _lookup_dots(self, ctx: Any, nodeid: int, name: bytes) -> Any:
        """``.`` and ``..`` by node number: the host resolves a file handle it was given earlier."""
        mount, vp = self.nodes.reopen(nodeid)
        if name == b".." and mount.ncmountpt.ncp.vp is not vp:
            dnch = NcHandle(self._dncp(vp), mount)
            nch = kern.kern_lookup(self.vfs, dnch, name, self.context.cred(ctx.uid, ctx.gid))
            if nch is None or nch.ncp.vp is None:
                raise KError(ESTALE)
            mount, vp = nch.mount, nch.ncp.vp
        return self._entry(mount, vp)

    def forget(self, pairs: Iterable[tuple[int, ...]]) -> None:
        """The host gives references back: (nodeid, how many) of each."""
        forget = self.nodes.forget
        for nodeid, nlookup in pairs:
            forget(nodeid, nlookup)

    def mknod(
        self, ctx: Any, nodeid: int, name: bytes, mode: int, rdev: tuple[int, int], umask: int = 0
    ) -> Any:
        """Create a file of any type but a directory or symbolic link; ``rdev`` is major, minor."""
        _, dnch = self._dir(nodeid)
        cred = self.context.cred(ctx.uid, ctx.gid)
        mode = mode & ~0o7777 | self._mode(nodeid, dnch, mode, umask)
        nch = kern.kern_mknod(self.vfs, dnch, name, mode, *rdev, cred, chk=False)
        return self._entry_of(nch)

    def mkdir(self, ctx: Any, nodeid: int, name: bytes, mode: int, umask: int = 0) -> Any:
        """Create a directory."""
        _, dnch = self._dir(nodeid)
        cred = self.context.cred(ctx.uid, ctx.gid)
        mode = self._mode(nodeid, dnch, mode, umask)
        nch = kern.kern_mkdir(self.vfs, dnch, name, mode, cred, chk=False)
        return self._entry_of(nch)

    def symlink(self, ctx: Any, nodeid: int, name: bytes, target: bytes) -> Any:
        """Create a symbolic link."""
        _, dnch = self._dir(nodeid)
        cred = self.context.cred(ctx.uid, ctx.gid)
        nch = kern.kern_symlink(self.vfs, dnch, name, target, cred, chk=False)
        return self._entry_of(nch)

    def link(self, ctx: Any, inode: int, nodeid: int, name: bytes) -> Any:
        """Give file ``inode`` a further name in directory ``nodeid``."""
        node, vp, nch = self._nch(inode)
        _, dnch = self._dir(nodeid)
        cred = self.context.cred(ctx.uid, ctx.gid)
        kern.kern_link(self.vfs, nch, dnch, name, cred, chk=False)
        return self._entry(node.mount, vp)

    def unlink(self, ctx: Any, nodeid: int, name: bytes) -> None:
        """Remove a name."""
        _, dnch = self._dir(nodeid)
        kern.kern_unlink(self.vfs, dnch, name, self.context.cred(ctx.uid, ctx.gid), chk=False)

    def rmdir(self, ctx: Any, nodeid: int, name: bytes) -> None:
        """Remove an empty directory."""
        _, dnch = self._dir(nodeid)
        kern.kern_rmdir(self.vfs, dnch, name, self.context.cred(ctx.uid, ctx.gid), chk=False)

    def rename(
        self, ctx: Any, nodeid: int, name: bytes, newdir: int, newname: bytes, flags: int
    ) -> None:
        """Rename, with the flags of renameat2(2)."""
        _, fdnch = self._dir(nodeid)
        _, tdnch = self._dir(newdir)
        cred = self.context.cred(ctx.uid, ctx.gid)
        kern.kern_rename(self.vfs, fdnch, name, tdnch, newname, flags, cred, chk=False)

    def readlink(self, ctx: Any, nodeid: int) -> bytes:
        """The target of a symbolic link.

        The host asks the same question to follow a link as to show it, and a nosymfollow mount
        must not be followed on: ELOOP for both. (A connection of its own has the flag itself.)
        """
        node, _, nch = self._nch(nodeid)
        if flags_of(node.mount) & MNT.NOSYMFOLLOW & ~self.attrs.host_flags:
            raise KError(ELOOP)
        return kern.kern_readlink(self.vfs, nch, self.context.cred(ctx.uid, ctx.gid))

    # --- attributes ------------------------------------------------------------------------

    def getattr(self, nodeid: int) -> Any:
        """The attributes of a file."""
        node, vp = self.nodes.vnode(nodeid)
        return self.attrs.entry(node, vp)

    def birth(self, nodeid: int) -> tuple[Any, Vattr]:
        """The packed attributes and those that statx alone tells: birth time, flags."""
        node, vp = self.nodes.vnode(nodeid)
        return self.attrs.entry(node, vp), vp.ops.use.vop_getattr(vp)

    def setattr(self, ctx: Any, nodeid: int, vap: Vattr, *, killpriv: bool = False) -> Any:
        """Change attributes; answers with all of them.

        With ``killpriv`` the set-id bits go too, as they do on a truncation by a user.
        """
        node, vp, nch = self._nch(nodeid)
        cred = self.context.cred(ctx.uid, ctx.gid)
        if killpriv or ((vap.uid is not None or vap.gid is not None) and vap.mode is None):
            vap.mode = self._without_privileges(vp, vap.mode)
        kern.kern_setattr(self.vfs, nch, vap, cred, chk=False)
        return self.attrs.entry(node, vp)

    @staticmethod
    def _without_privileges(vp: Vnode, mode: int | None) -> int | None:
        """The mode a file keeps when others may have changed it; None: it has nothing to lose.

        Set-group-id without group execution is no privilege but the mark of mandatory locking.
        """
        if vp.type is not VType.VREG:
            return mode
        now = vp.ops.use.vop_getattr(vp).mode or 0 if mode is None else mode
        kept = now & ~S_ISUID
        if now & S_IXGRP:
            kept &= ~S_ISGID
        return kept if kept != now else mode

    def access(self, ctx: Any, nodeid: int, mode: int) -> None:
        """Only asked without default_permissions; the host checks by itself otherwise."""
        _, vp = self.nodes.vnode(nodeid)
        vp.ops.use.vop_access(vp, mode, self.context.cred(ctx.uid, ctx.gid))

    def statfs(self, nodeid: int) -> Statfs:
        """Figures of the mount that a file is in."""
        node, _, nch = self._nch(nodeid)
        return kern.kern_statfs(self.vfs, NcHandle(nch.ncp, node.mount))

    # --- data ------------------------------------------------------------------------------

    def open(self, ctx: Any, nodeid: int, flags: int, *, killpriv: bool = False) -> Opened:
        """Open a file, truncating it if asked to. ``flags`` are the host's.

        O_APPEND ends here: the host lets appenders in one at a time and says at which offset. It
        also writes dirty pages of a mapping back through any descriptor open for writing, and those
        must not go to the end of the file.
        """
        node, vp, nch = self._nch(nodeid)
        cred = self.context.cred(ctx.uid, ctx.gid)
        ours = self.oflags(flags)
        if flags & FMODE_EXEC and flags_of(node.mount) & MNT.NOEXEC & ~self.attrs.host_flags:
            raise KError(EACCES)
        file = kern.kern_open(self.vfs, nch, ours, cred, chk=False)
        if killpriv:
            self._kill_privileges(vp, nch)
        return self._opened(file, node, ctx)

    def _kill_privileges(self, vp: Vnode, nch: NcHandle) -> None:
        """A user has changed the contents: set-id bits go."""
        mode = self._without_privileges(vp, None)
        if mode is not None:
            kern.kern_setattr(self.vfs, nch, Vattr(mode=mode), ROOT_CRED, chk=False)

    def create(
        self, ctx: Any, nodeid: int, name: bytes, mode: int, flags: int, umask: int = 0
    ) -> tuple[Any, Opened]:
        """Create a regular file and open it.

        The host believes that there is none and has checked the directory only. If there is one
        after all (it appeared from inside a moment ago) we must check whether it may be opened.
        """
        _, dnch = self._dir(nodeid)
        cred = self.context.cred(ctx.uid, ctx.gid)
        ours = self.oflags(flags)
        mode = self._mode(nodeid, dnch, mode, umask)
        try:
            nch, file = kern.kern_create(self.vfs, dnch, name, mode, ours | O_EXCL, cred, chk=False)
        except KError as error:
            if error.errno != EEXIST or ours & O_EXCL:
                raise
            cred = self.context.full_cred(ctx)
            nch, file = kern.kern_create(self.vfs, dnch, name, mode, ours, cred)
        return self._made(ctx, nch.mount, file)

    def _made(self, ctx: Any, mount: Mount, file: File) -> tuple[Any, Opened]:
        """The answer for a file that was made and opened."""
        vp = file.vp
        node = self.nodes.find(mount, vp)
        record = self.attrs.entry(node, vp)
        node.nlookup += 1
        if mount.coherence != VOLATILE:
            node.plain = bare(vp)
        return record, self._opened(file, node, ctx)

    def tmpfile(
        self, ctx: Any, nodeid: int, mode: int, flags: int, umask: int = 0
    ) -> tuple[Any, Opened]:
        """Create a regular file without a name, in the file system of a directory, and open it."""
        _, dnch = self._dir(nodeid)
        cred = self.context.cred(ctx.uid, ctx.gid)
        mode = self._mode(nodeid, dnch, mode, umask)
        nch, file = kern.kern_tmpfile(self.vfs, dnch, mode, self.oflags(flags), cred, chk=False)
        answer = self._made(ctx, nch.mount, file)
        NodeTable.pin(file.vp)
        return answer

    def stateless(self, ctx: Any, nodeid: int) -> OpenFile:
        """A file that the host reads or writes without having opened it; good for one request."""
        node, vp, nch = self._nch(nodeid)
        mode = FREAD if vp.type is VType.VDIR or node.mount.flag & MNT.RDONLY else FREAD | FWRITE
        file = File(self.vfs, nch, vp, mode, self.context.cred(ctx.uid, ctx.gid))
        return OpenFile(file, node, Caller(ctx.uid, ctx.gid, ctx.pid))

    def read(self, opened: OpenFile, off: int, size: int) -> Buffer:
        """Read; the answer may be any buffer."""
        return kern.kern_read(opened.file, off, size)

    def write(self, opened: OpenFile, off: int, data: Buffer, *, killpriv: bool = False) -> int:
        """Write at ``off``. The host has worked out the offset of an appending write already.

        A write to a file of the kernel's own (/kern/ctl, a sysctl) may change any other file, which
        the host cannot know: it is told as of a change from inside.
        """
        if opened.node.mount.coherence == VOLATILE:
            self.context.serving = False
        elif killpriv:
            self._kill_privileges(opened.file.vp, opened.file.nch)
        return kern.kern_write(opened.file, off, data)

    def release(self, fh: int) -> None:
        """The last descriptor of an open is gone."""
        opened = self.files.pop(fh, None)
        if opened is not None:
            self.polls.closed(fh)
            kern.kern_close(opened.file)

    def fsync(self, opened: OpenFile, datasync: bool) -> None:
        """Write a file to stable storage."""
        kern.kern_fsync(opened.file, datasync)

    def poll(self, fh: int, handle: PollHandle | None) -> int:
        """Which events are ready; ``handle`` is notified when that changes."""
        return self.polls.poll(fh, self.file(fh).file, handle)

    # --- directories -----------------------------------------------------------------------

    def opendir(self, ctx: Any, nodeid: int) -> Opened:
        """Open a directory for listing."""
        node, _, nch = self._nch(nodeid)
        cred = self.context.cred(ctx.uid, ctx.gid)
        file = kern.kern_open(self.vfs, nch, O_RDONLY | O_DIRECTORY, cred, chk=False)
        return self._opened(file, node, ctx)

    def readdir(self, opened: OpenFile, cookie: int, limit: int) -> list[Listed]:
        """Up to about ``limit`` entries after ``cookie`` with their attributes; empty at the end.

        Nothing is counted yet: the transport counts what went into its reply and gives the rest
        back (`listed`).
        """
        file, mount = opened.file, opened.node.mount
        kids = file.nch.ncp.children
        found: list[Listed] = []
        while not found:
            entries = kern.kern_readdir(file, cookie, limit, plus=True)
            if not entries:
                break
            for dirent in entries:
                try:
                    one = self._list_one(opened, mount, kids, dirent)
                except Block:
                    if not found:
                        raise
                    break
                if one is not None:
                    found.append(one)
            cookie = entries[-1].cookie
        return found

    def _list_one(
        self, opened: OpenFile, mount: Mount, kids: dict[bytes, NamecacheEntry] | None, dirent: Any
    ) -> Listed | None:
        """An entry of a listing; None when it is gone meanwhile."""
        name = dirent.name
        if name == b"." or name == b"..":
            ino = self._dots(opened, name, dirent.ino)
            return Listed(
                self.attrs.packer.bare(ino, DT_DIR), ino, dirent.cookie, DT_DIR, name, None
            )
        ncp = kids.get(name) if kids is not None else None
        if ncp is not None and ncp.flags & NCF.ISMOUNTPT:
            upper = self.vfs.cache.findmount(NcHandle(ncp, mount))
            if upper is not None and not self.separate(upper):
                node, record = self._listed_mount(upper)
                return Listed(record, node.nodeid, dirent.cookie, dirent.dtype, name, node)
        vattr = dirent.vattr
        if vattr is not None:
            node = self.nodes.find_ino(mount, dirent.ino)
            vp = node.vp
            if vp is not None:
                record = self.attrs.entry(node, vp)
            else:
                record = self.attrs.pack(mount, node.nodeid, vattr)
        else:
            nch = kern.kern_lookup(self.vfs, opened.file.nch, name, opened.file.cred)
            if nch is None or nch.ncp.vp is None:
                return None
            node = self.nodes.find(nch.mount, nch.ncp.vp)
            record = self.attrs.entry(node, nch.ncp.vp)
        return Listed(record, node.nodeid, dirent.cookie, dirent.dtype, name, node)

    def listed(self, entries: list[Listed], count: int) -> None:
        """The first ``count`` entries went into a reply: each counts a lookup. Drops the rest."""
        for entry in entries[:count]:
            if entry.node is not None:
                entry.node.nlookup += 1
        self.unlisted(entries[count:])

    def unlisted(self, entries: list[Listed]) -> None:
        """Entries that the host was not told of, or only by name: their nodes need not stay."""
        for entry in entries:
            node = entry.node
            if node is not None and not node.nlookup and node.nodeid in self.nodes.by_id:
                self.nodes.discard(node)

    def names(self, opened: OpenFile, cookie: int, limit: int) -> list[tuple[int, int, int, bytes]]:
        """Up to ``limit`` entries without attributes: inode number, cookie, type, name."""
        mount = opened.node.mount
        nodeid = self.nodes.nodeid
        found = []
        for dirent in kern.kern_readdir(opened.file, cookie, limit):
            name = dirent.name
            if name == b"." or name == b"..":
                ino = self._dots(opened, name, dirent.ino)
            else:
                ino = nodeid(mount, dirent.ino)
            found.append((ino, dirent.cookie, dirent.dtype, name))
        return found

    def _dots(self, opened: OpenFile, name: bytes, ino: int) -> int:
        """The number of ``.`` or ``..`` in a listing."""
        mount, nch = opened.node.mount, opened.file.nch
        if name == b".." and nch.ncp is mount.ncmountpt.ncp and mount.ncmounton is not None:
            above = kern.kern_lookup(self.vfs, nch, name, ROOT_CRED)
            if above is not None and above.ncp.vp is not None and not self.separate(mount):
                mount, ino = above.mount, above.ncp.vp.ino
        return self.nodes.nodeid(mount, ino)

    def _listed_mount(self, upper: Mount) -> tuple[Node, Any]:
        root = upper.ops.vfs_root(upper)
        try:
            node = self.nodes.find(upper, root)
            return node, self.attrs.entry(node, root)
        finally:
            root.rele()

    def fsyncdir(self, opened: OpenFile, datasync: bool) -> None:
        """Write a directory to stable storage; for the root directory, everything."""
        if opened.file.nch.ncp is self.vfs.mounts.rootnch.ncp:
            self.vfs.sync_all()
            return
        kern.kern_fsync(opened.file, datasync)

    # --- extended attributes ---------------------------------------------------------------

    @staticmethod
    def _xattr(name: bytes) -> tuple[int, bytes]:
        """Name space and name inside for a host attribute name."""
        if name.startswith(_USER):
            return EXTATTR_NAMESPACE_USER, name[len(_USER) :]
        return EXTATTR_NAMESPACE_SYSTEM, name

    def setxattr(
        self, ctx: Any, nodeid: int, name: bytes, value: bytes, flags: int = 0,
        *, kill_sgid: bool = False,
    ) -> None:  # fmt: skip
        """Set an attribute; ``flags`` are XATTR_CREATE and XATTR_REPLACE.

        For an access control list the host leaves it to us whether the set-group-id bit stays, and
        that depends on all groups of the caller; ``kill_sgid`` says that it has decided.
        """
        _, vp, nch = self._nch(nodeid)
        space, key = self._xattr(name)
        if name == XATTR_ACCESS and ctx.uid and not kill_sgid:
            cred = self.context.full_cred(ctx)
        else:
            cred = self.context.cred(ctx.uid, ctx.gid)
        kern.kern_setxattr(self.vfs, nch, space, key, value, flags, cred, chk=False)
        if kill_sgid:
            mode = vp.ops.use.vop_getattr(vp).mode or 0
            if mode & S_ISGID:
                kern.kern_setattr(self.vfs, nch, Vattr(mode=mode & ~S_ISGID), ROOT_CRED, chk=False)

    def getxattr(self, ctx: Any, nodeid: int, name: bytes) -> bytes:
        """The value of an attribute.

        The host asks for ``security.capability`` before writes, and programs for access lists and
        labels of every file. That a file has no attribute at all is remembered in its node until
        one of them changes.
        """
        node, vp, nch = self._nch(nodeid)
        if not node.plain and node.mount.coherence != VOLATILE:
            node.plain = bare(vp)
        if node.plain:
            raise KError(ENOATTR)
        space, key = self._xattr(name)
        cred = self.context.cred(ctx.uid, ctx.gid)
        return kern.kern_getxattr(self.vfs, nch, space, key, cred, chk=False)

    def listxattr(self, ctx: Any, nodeid: int) -> list[bytes]:
        """The names of all attributes, as the host spells them."""
        _, _, nch = self._nch(nodeid)
        cred = self.context.cred(ctx.uid, ctx.gid)
        user = kern.kern_listxattr(self.vfs, nch, EXTATTR_NAMESPACE_USER, cred, chk=False)
        system = kern.kern_listxattr(self.vfs, nch, EXTATTR_NAMESPACE_SYSTEM, cred, chk=False)
        return [_USER + name for name in user] + list(system)

    def removexattr(self, ctx: Any, nodeid: int, name: bytes) -> None:
        """Remove an attribute."""
        _, _, nch = self._nch(nodeid)
        space, key = self._xattr(name)
        cred = self.context.cred(ctx.uid, ctx.gid)
        kern.kern_removexattr(self.vfs, nch, space, key, cred, chk=False)
