"""The operations of the mount, one short method a request.

Each method is a plain function over the VFS cores (`dfuser.vfs.syscalls`); `request` and
`fh_request` make it the coroutine that pyfuse3 calls, bind the caller, park what must wait and
translate errors. A method answers or raises; it never waits.

The host's kernel has checked permissions (mount option ``default_permissions``), so the cores are
asked not to check again; they could not, since FUSE does not pass supplementary groups.

What pyfuse3 cannot carry (ioctl, lseek, fallocate, locks, copy_file_range, O_TMPFILE, statfs of an
inner mount) is listed in CAVEATS.md.

Counterpart: the fuse_lowlevel operations of libfuse; our side is sys/kern/vfs_syscalls.c.
Invariants: every reply that names a file counts one lookup on its node, and nothing else does;
``.`` and ``..`` of a listing count none.
"""

from __future__ import annotations

import contextlib
import errno as host_errno
import os
from typing import TYPE_CHECKING, Any, Final

import pyfuse3

from dfuser.libkern.acl import XATTR_ACCESS
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
    O_APPEND,
    O_DIRECTORY,
    O_EXCL,
    O_NOATIME,
    O_RDONLY,
    oflags_from_linux,
)
from dfuser.libkern.stat import DT_DIR
from dfuser.libkern.ucred import Ucred
from dfuser.vfs import syscalls as kern
from dfuser.vfs.mountflags import MNT
from dfuser.vfs.namecache import NCF, NcHandle
from dfuser.vfs.ncpath import live_ncp
from dfuser.vfs.vattr import Vattr
from dfuser.vfs.vop import EXTATTR_NAMESPACE_SYSTEM, EXTATTR_NAMESPACE_USER

from .attr import VOLATILE, flags_of, mount_below, negative, pack, statvfs
from .request import Caller, OpenFile, fh_request, request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from dfuser.vfs.file import File
    from dfuser.vfs.mount import Mount
    from dfuser.vfs.namecache import NamecacheEntry
    from dfuser.vfs.vfs import Vfs
    from dfuser.vfs.vnode import Vnode

    from .attr import AttrCache
    from .nodes import Node, NodeTable
    from .polling import PollTable
    from .request import RequestContext

#: Entries asked of a file system at a time; about what fits one readdirplus reply.
READDIR_BATCH: Final = 32
_USER: Final = b"user."
#: The host opens the file to execute it. Counterpart: __FMODE_EXEC (linux/fs.h).
FMODE_EXEC: Final = 0x20
#: Asked by the host before every write, to clear it.
CAPABILITY: Final = b"security.capability"
#: Rebuilding the path of a directory is the kernel's own business.
ROOT_CRED: Final = Ucred.root()
#: Who forgets: the host's kernel, for no process in particular.
KERNEL: Final = Caller(0, 0, 0, 0)


class Operations(pyfuse3.Operations):
    """The request handlers that pyfuse3 calls."""

    supports_dot_lookup = True
    enable_acl = True

    def __init__(
        self,
        vfs: Vfs,
        context: RequestContext,
        nodes: NodeTable,
        attrs: AttrCache,
        polls: PollTable,
        *,
        settle: Callable[[], Awaitable[None]],
        writeback: bool = False,
    ) -> None:
        super().__init__()
        self.vfs = vfs
        self.context = context
        self.nodes = nodes
        self.attrs = attrs
        self.polls = polls
        self.settle = settle
        self.enable_writeback_cache = writeback
        self.files: dict[int, OpenFile] = {}
        #: The answer "no such name", remembered by the host for long or not at all.
        self._negative = (negative(volatile=False), negative(volatile=True))
        self._next_fh = 0

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

    def _entry(self, mount: Mount, vp: Vnode) -> pyfuse3.EntryAttributes:
        """The reply that names ``vp``: counts a lookup."""
        node = self.nodes.find(mount, vp)
        entry = self.attrs.entry(node, vp)
        node.nlookup += 1
        return entry

    def _entry_of(self, nch: NcHandle) -> pyfuse3.EntryAttributes:
        """The same for a place; ENOENT when nothing is there any more."""
        vp = nch.ncp.vp
        if vp is None:
            raise KError(ENOENT)
        return self._entry(nch.mount, vp)

    def _opened(self, file: File, node: Node, ctx: Any) -> int:
        """Enter an open. An append is the host's to place; a null mount's atime rule is ours."""
        file.flags &= ~O_APPEND
        if mount_below(node.mount) and node.mount.flag & (MNT.NOATIME | MNT.RDONLY):
            file.flags |= O_NOATIME
        self._next_fh = fh = self._next_fh + 1
        self.files[fh] = OpenFile(file, node, Caller(ctx.uid, ctx.gid, ctx.pid, ctx.umask))
        return fh

    @staticmethod
    def _info(fh: int, mount: Mount) -> pyfuse3.FileInfo:
        volatile = mount.coherence == VOLATILE
        return pyfuse3.FileInfo(fh, volatile, not volatile)

    # --- names -----------------------------------------------------------------------------

    @request
    def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        """Find a name in a directory; a negative answer is an entry with inode 0."""
        if name == b"." or name == b"..":
            return self._lookup_dots(parent_inode, name, ctx)
        node, dnch = self._dir(parent_inode)
        nch = kern.kern_lookup(self.vfs, dnch, name, self.context.cred(ctx.uid, ctx.gid))
        if nch is None:
            return self._negative[node.mount.coherence == VOLATILE]
        return self._entry_of(nch)

    def _lookup_dots(self, nodeid: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        """``.`` and ``..`` by node number: the host resolves a file handle it was given earlier."""
        mount, vp = self.nodes.reopen(nodeid)
        if name == b"..":
            dnch = NcHandle(self._dncp(vp), mount)
            nch = kern.kern_lookup(self.vfs, dnch, name, self.context.cred(ctx.uid, ctx.gid))
            if nch is None or nch.ncp.vp is None:
                raise KError(ESTALE)
            mount, vp = nch.mount, nch.ncp.vp
        return self._entry(mount, vp)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """The host gives references back. Never raises: there is nobody to tell."""
        with contextlib.suppress(pyfuse3.FUSEError):
            await self.context.run("forget", KERNEL, 0, self._forget, inode_list)

    def _forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        forget = self.nodes.forget
        for nodeid, nlookup in inode_list:
            forget(nodeid, nlookup)

    @request
    def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        """Create a file of any type but a directory or symbolic link."""
        _, dnch = self._dir(parent_inode)
        cred = self.context.cred(ctx.uid, ctx.gid)
        nch = kern.kern_mknod(
            self.vfs, dnch, name, mode, os.major(rdev), os.minor(rdev), cred, chk=False
        )
        return self._entry_of(nch)

    @request
    def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        """Create a directory."""
        _, dnch = self._dir(parent_inode)
        cred = self.context.cred(ctx.uid, ctx.gid)
        nch = kern.kern_mkdir(self.vfs, dnch, name, mode & 0o7777, cred, chk=False)
        return self._entry_of(nch)

    @request
    def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        """Create a symbolic link."""
        _, dnch = self._dir(parent_inode)
        cred = self.context.cred(ctx.uid, ctx.gid)
        nch = kern.kern_symlink(self.vfs, dnch, name, target, cred, chk=False)
        return self._entry_of(nch)

    @request
    def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        """Give a file a further name."""
        node, vp, nch = self._nch(inode)
        _, dnch = self._dir(new_parent_inode)
        kern.kern_link(
            self.vfs, nch, dnch, new_name, self.context.cred(ctx.uid, ctx.gid), chk=False
        )
        return self._entry(node.mount, vp)

    @request
    def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        """Remove a name."""
        _, dnch = self._dir(parent_inode)
        kern.kern_unlink(self.vfs, dnch, name, self.context.cred(ctx.uid, ctx.gid), chk=False)

    @request
    def rmdir(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        """Remove an empty directory."""
        _, dnch = self._dir(parent_inode)
        kern.kern_rmdir(self.vfs, dnch, name, self.context.cred(ctx.uid, ctx.gid), chk=False)

    @request
    def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: Any,
    ) -> None:
        """Rename, with the flags of renameat2(2)."""
        _, fdnch = self._dir(parent_inode_old)
        _, tdnch = self._dir(parent_inode_new)
        cred = self.context.cred(ctx.uid, ctx.gid)
        kern.kern_rename(self.vfs, fdnch, name_old, tdnch, name_new, flags, cred, chk=False)

    @request
    def readlink(self, inode: int, ctx: Any) -> bytes:
        """The target of a symbolic link.

        The host asks the same question to follow a link as to show it, and a nosymfollow mount
        must not be followed on: ELOOP for both.
        """
        node, _, nch = self._nch(inode)
        if flags_of(node.mount) & MNT.NOSYMFOLLOW:
            raise KError(ELOOP)
        return kern.kern_readlink(self.vfs, nch, self.context.cred(ctx.uid, ctx.gid))

    # --- attributes ------------------------------------------------------------------------

    @request
    def getattr(self, inode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        """The attributes of a file."""
        node, vp = self.nodes.vnode(inode)
        return self.attrs.entry(node, vp)

    @request
    def setattr(
        self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        """Change attributes; answers with all of them."""
        node, vp, nch = self._nch(inode)
        vap = Vattr()
        if fields.update_mode:
            vap.mode = attr.st_mode & 0o7777
        if fields.update_uid:
            vap.uid = attr.st_uid
        if fields.update_gid:
            vap.gid = attr.st_gid
        if fields.update_size:
            vap.size = attr.st_size
        if fields.update_atime:
            vap.atime = attr.st_atime_ns
        if fields.update_mtime:
            vap.mtime = attr.st_mtime_ns
        if fields.update_ctime:
            vap.ctime = attr.st_ctime_ns
        cred = self.context.cred(ctx.uid, ctx.gid)
        kern.kern_setattr(self.vfs, nch, vap, cred, chk=False)
        return self.attrs.entry(node, vp)

    @request
    def access(self, inode: int, mode: int, ctx: Any) -> bool:
        """Only asked without default_permissions; the host checks by itself otherwise."""
        _, vp = self.nodes.vnode(inode)
        try:
            vp.ops.use.vop_access(vp, mode, self.context.cred(ctx.uid, ctx.gid))
        except KError:
            return False
        return True

    @request
    def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        """Figures of the root file system: pyfuse3 does not say which mount is asked about."""
        return statvfs(kern.kern_statfs(self.vfs, self.vfs.mounts.rootnch))

    # --- data ------------------------------------------------------------------------------

    @request
    def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        """Open a file, truncating it if asked to.

        O_APPEND ends here: the host lets appenders in one at a time and says at which offset. It
        also writes dirty pages of a mapping back through any descriptor open for writing, and those
        must not go to the end of the file.
        """
        node, _, nch = self._nch(inode)
        cred = self.context.cred(ctx.uid, ctx.gid)
        ours = oflags_from_linux(flags)
        if flags & FMODE_EXEC and flags_of(node.mount) & MNT.NOEXEC:
            raise KError(EACCES)
        file = kern.kern_open(self.vfs, nch, ours, cred, chk=False)
        return self._info(self._opened(file, node, ctx), node.mount)

    @request
    def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """Create a regular file and open it.

        The host believes that there is none and has checked the directory only. If there is one
        after all (it appeared from inside a moment ago) we must check whether it may be opened.
        """
        dnode, dnch = self._dir(parent_inode)
        cred = self.context.cred(ctx.uid, ctx.gid)
        ours = oflags_from_linux(flags)
        try:
            nch, file = kern.kern_create(
                self.vfs, dnch, name, mode & 0o7777, ours | O_EXCL, cred, chk=False
            )
        except KError as error:
            if error.errno != EEXIST or ours & O_EXCL:
                raise
            cred = self.context.full_cred(ctx)
            nch, file = kern.kern_create(self.vfs, dnch, name, mode & 0o7777, ours, cred)
        node = self.nodes.find(nch.mount, file.vp)
        entry = self.attrs.entry(node, file.vp)
        node.nlookup += 1
        return self._info(self._opened(file, node, ctx), dnode.mount), entry

    @fh_request
    def read(self, opened: OpenFile, off: int, size: int) -> Any:
        """Read; the answer may be any buffer."""
        return kern.kern_read(opened.file, off, size)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write.

        A command (a write to a file of the kernel's own) is answered when the host knows what it
        changed, so that the next command sees it.
        """
        count = await self._write(fh, off, buf)
        opened = self.files.get(fh)
        if opened is not None and opened.node.mount.coherence == VOLATILE:
            self.context.workers.waits()
            try:
                await self.settle()
            finally:
                self.context.workers.resumed()
        return count

    @fh_request
    def _write(self, opened: OpenFile, off: int, buf: bytes) -> int:
        """Write at ``off``. The host has worked out the offset of an appending write already.

        A write to a file of the kernel's own (/kern/ctl, a sysctl) may change any other file, which
        the host cannot know: it is told as of a change from inside.
        """
        if opened.node.mount.coherence != VOLATILE:
            return kern.kern_write(opened.file, off, buf)
        self.context.serving = False
        return kern.kern_write(opened.file, off, buf)

    async def flush(self, fh: int) -> None:
        """A descriptor is closed; others of the same open may live on. Nothing is buffered here.

        ENOSYS says so once and for the whole connection: the host asks no more. It writes its own
        dirty pages back at every close all the same.
        """
        self.context.counts["flush"] += 1
        raise pyfuse3.FUSEError(host_errno.ENOSYS)

    async def release(self, fh: int) -> None:
        """The last descriptor of an open is gone. Errors cannot be reported to anybody."""
        opened = self.files.pop(fh, None)
        if opened is not None:
            self.polls.closed(fh)
            await self.context.run(
                "release", opened.caller, opened.node.nodeid, kern.kern_close, opened.file
            )

    @fh_request
    def fsync(self, opened: OpenFile, datasync: bool) -> None:
        """Write a file to stable storage."""
        kern.kern_fsync(opened.file, datasync)

    async def poll(self, inode: int, fh: int, poll_handle: Any, ctx: Any) -> int:
        """Which events are ready; ``poll_handle`` is notified when that changes."""
        return await self.context.run("poll", ctx, 0, self._poll, fh, poll_handle)

    def _poll(self, fh: int, poll_handle: Any) -> int:
        opened = self.files.get(fh)
        if opened is None:
            raise KError(EBADF)
        return self.polls.poll(fh, opened.file, poll_handle)

    # --- directories -----------------------------------------------------------------------

    @request
    def opendir(self, inode: int, ctx: Any) -> int:
        """Open a directory for listing."""
        node, _, nch = self._nch(inode)
        cred = self.context.cred(ctx.uid, ctx.gid)
        file = kern.kern_open(self.vfs, nch, O_RDONLY | O_DIRECTORY, cred, chk=False)
        return self._opened(file, node, ctx)

    @fh_request
    def readdir(self, opened: OpenFile, start_id: int, token: Any) -> None:
        """List from ``start_id`` on until the reply is full, attributes included."""
        file, mount = opened.file, opened.node.mount
        kids = file.nch.ncp.children
        cookie = start_id
        while True:
            entries = kern.kern_readdir(file, cookie, READDIR_BATCH, plus=True)
            if not entries:
                return
            for dirent in entries:
                name = dirent.name
                if name == b"." or name == b"..":
                    entry = self._dots(opened, name, dirent.ino)
                    if not pyfuse3.readdir_reply(token, name, entry, dirent.cookie):
                        return
                    continue
                ncp = kids.get(name) if kids is not None else None
                upper = None
                if ncp is not None and ncp.flags & NCF.ISMOUNTPT:
                    upper = self.vfs.cache.findmount(NcHandle(ncp, mount))
                found: tuple[Node, pyfuse3.EntryAttributes] | None = (
                    self._listed_mount(upper)
                    if upper is not None
                    else self._listed(mount, file, dirent)
                )
                if found is None:
                    continue
                node, entry = found
                if not pyfuse3.readdir_reply(token, name, entry, dirent.cookie):
                    if not node.nlookup:
                        self.nodes.discard(node)
                    return
                node.nlookup += 1
            cookie = entries[-1].cookie

    def _dots(self, opened: OpenFile, name: bytes, ino: int) -> pyfuse3.EntryAttributes:
        """``.`` and ``..`` of a listing: a number and a type, no lookup."""
        mount, nch = opened.node.mount, opened.file.nch
        if name == b".." and nch.ncp is mount.ncmountpt.ncp and mount.ncmounton is not None:
            above = kern.kern_lookup(self.vfs, nch, name, ROOT_CRED)
            if above is not None and above.ncp.vp is not None:
                mount, ino = above.mount, above.ncp.vp.ino
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = self.nodes.nodeid(mount, ino)
        entry.st_mode = DT_DIR << 12
        return entry

    def _listed_mount(self, upper: Mount) -> tuple[Node, pyfuse3.EntryAttributes]:
        root = upper.ops.vfs_root(upper)
        try:
            node = self.nodes.find(upper, root)
            return node, self.attrs.entry(node, root)
        finally:
            root.rele()

    def _listed(
        self, mount: Mount, file: File, dirent: Any
    ) -> tuple[Node, pyfuse3.EntryAttributes] | None:
        """Node and attributes of a listed entry; None when it is gone meanwhile."""
        vattr = dirent.vattr
        if vattr is not None:
            node = self.nodes.find_ino(mount, dirent.ino)
            vp = node.vp
            if vp is not None:
                return node, self.attrs.entry(node, vp)
            return node, pack(mount, node.nodeid, vattr)
        nch = kern.kern_lookup(self.vfs, file.nch, dirent.name, file.cred)
        if nch is None or nch.ncp.vp is None:
            return None
        node = self.nodes.find(nch.mount, nch.ncp.vp)
        return node, self.attrs.entry(node, nch.ncp.vp)

    async def releasedir(self, fh: int) -> None:
        """A listing is finished."""
        await self.release(fh)

    @fh_request
    def fsyncdir(self, opened: OpenFile, datasync: bool) -> None:
        """Write a directory to stable storage; for the root directory, everything."""
        if opened.node.nodeid == pyfuse3.ROOT_INODE:
            self.vfs.sync_all()
        else:
            kern.kern_fsync(opened.file, datasync)

    # --- extended attributes ---------------------------------------------------------------

    @staticmethod
    def _xattr(name: bytes) -> tuple[int, bytes]:
        """Name space and name inside for a host attribute name."""
        if name.startswith(_USER):
            return EXTATTR_NAMESPACE_USER, name[len(_USER) :]
        return EXTATTR_NAMESPACE_SYSTEM, name

    @request
    def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Any) -> None:
        """Set an attribute; pyfuse3 has applied XATTR_CREATE and XATTR_REPLACE.

        For an access control list the host leaves it to us whether the set-group-id bit stays, and
        that depends on all groups of the caller.
        """
        _, _, nch = self._nch(inode)
        space, key = self._xattr(name)
        if name == XATTR_ACCESS and ctx.uid:
            cred = self.context.full_cred(ctx)
        else:
            cred = self.context.cred(ctx.uid, ctx.gid)
        kern.kern_setxattr(self.vfs, nch, space, key, value, 0, cred, chk=False)

    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        """The value of an attribute.

        The host asks for ``security.capability`` before every write. That a file has none is
        remembered in its node until an attribute of it changes.
        """
        if name == CAPABILITY:
            node = self.nodes.by_id.get(inode)
            if node is not None and node.plain:
                self.context.counts["getxattr"] += 1
                raise pyfuse3.FUSEError(host_errno.ENODATA)
        return await self.context.run("getxattr", ctx, 0, self._getxattr, inode, name, ctx)

    def _getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        node, _, nch = self._nch(inode)
        space, key = self._xattr(name)
        cred = self.context.cred(ctx.uid, ctx.gid)
        try:
            return kern.kern_getxattr(self.vfs, nch, space, key, cred, chk=False)
        except KError as error:
            if name == CAPABILITY and error.errno == ENOATTR:
                node.plain = True
            raise

    @request
    def listxattr(self, inode: int, ctx: Any) -> list[bytes]:
        """The names of all attributes, as the host spells them."""
        _, _, nch = self._nch(inode)
        cred = self.context.cred(ctx.uid, ctx.gid)
        user = kern.kern_listxattr(self.vfs, nch, EXTATTR_NAMESPACE_USER, cred, chk=False)
        system = kern.kern_listxattr(self.vfs, nch, EXTATTR_NAMESPACE_SYSTEM, cred, chk=False)
        return [_USER + name for name in user] + list(system)

    @request
    def removexattr(self, inode: int, name: bytes, ctx: Any) -> None:
        """Remove an attribute."""
        _, _, nch = self._nch(inode)
        space, key = self._xattr(name)
        cred = self.context.cred(ctx.uid, ctx.gid)
        kern.kern_removexattr(self.vfs, nch, space, key, cred, chk=False)

    def stacktrace(self) -> None:
        """pyfuse3's debugging hook (setxattr fuse_stacktrace on the root): reports the threads."""
        self.context.report("stacktrace", "\n".join(map(repr, self.context.lwkt.threads.values())))
