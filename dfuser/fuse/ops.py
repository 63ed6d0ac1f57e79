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

from typing import TYPE_CHECKING, Any, Final

from dfuser.libkern.errno import (
    EACCES,
    EEXIST,
    ELOOP,
    ESTALE,
    KError,
)
from dfuser.libkern.fcntl import (
    FREAD,
    FWRITE,
    O_EXCL,
)
from dfuser.libkern.stat import S_ISGID, S_ISUID, S_IXGRP, VType
from dfuser.vfs import syscalls as kern
from dfuser.vfs.file import File
from dfuser.vfs.mountflags import MNT
from dfuser.vfs.namecache import NcHandle
from dfuser.vfs.vattr import Vattr

from .attr import VOLATILE, flags_of
from .listing import ListingOps
from .nodes import NodeTable
from .opsbase import ROOT_CRED, Opened, bare
from .request import Caller, OpenFile
from .xattrs import XattrOps

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dfuser.vfs.mount import Mount
    from dfuser.vfs.vattr import Statfs
    from dfuser.vfs.vnode import Vnode
    from dfuser.vfs.vop import Buffer

    from .polling import PollHandle

#: The host opens the file to execute it. Counterpart: __FMODE_EXEC (linux/fs.h).
FMODE_EXEC: Final = 0x20


class Operations(ListingOps, XattrOps):
    """What one connection can be asked: all of it."""

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
        must not be followed on: ELOOP for both.
        """
        node, _, nch = self._nch(nodeid)
        if flags_of(node.mount) & MNT.NOSYMFOLLOW:
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
        if vp.type is VType.VDIR:
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
