"""The handlers that pyfuse3 calls: `dfuser.fuse.ops` in pyfuse3's words.

Each handler runs its operation to completion; when that says `Block` the request is parked and
another worker reads meanwhile. Handlers of open files get no caller from pyfuse3; they run for
whoever opened the file.

What pyfuse3 cannot carry (ioctl, lseek, fallocate, locks, copy_file_range, O_TMPFILE, birth times,
statfs of an inner mount) is listed in CAVEATS.md.

Counterpart: fuse_lowlevel_ops of libfuse.
"""

from __future__ import annotations

import contextlib
import errno as host_errno
import os
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pyfuse3

from dfuser.fuse.attr import VOLATILE
from dfuser.fuse.request import Caller, HostError, Parked
from dfuser.fuse.wire.const import FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE
from dfuser.libkern.errno import KError
from dfuser.lwkt.block import Block
from dfuser.vfs.vattr import Vattr

from .attr import statvfs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from dfuser.fuse.ops import Operations
    from dfuser.fuse.opsbase import Opened
    from dfuser.fuse.request import OpenFile, RequestContext

    from .workers import Workers

R = TypeVar("R")

#: Entries asked of a file system at a time; about what fits one readdirplus reply.
READDIR_BATCH: Final = 32
#: Who forgets: the host's kernel, for no process in particular.
KERNEL: Final = Caller(0, 0, 0)


class StockOperations(pyfuse3.Operations):
    """The request handlers of the one mount that pyfuse3 serves."""

    supports_dot_lookup = True
    enable_acl = True

    def __init__(
        self,
        ops: Operations,
        context: RequestContext,
        workers: Workers,
        settle: Callable[[], Awaitable[None]],
        *,
        writeback: bool = False,
    ) -> None:
        super().__init__()
        self.ops = ops
        self.context = context
        self.workers = workers
        self.settle = settle
        self.enable_writeback_cache = writeback
        #: Requests by operation.
        self.counts: dict[str, int] = {}

    async def _run(self, op: str, ctx: Any, nodeid: int, core: Callable[..., R], *args: Any) -> R:
        """Serve one request: ``core(*args)`` for ``ctx``, parked if it must wait.

        ``nodeid`` is the file whose open the request came through, 0 when the caller is known.
        """
        context = self.context
        self.counts[op] = self.counts.get(op, 0) + 1
        try:
            td = context.enter(ctx)
            try:
                return core(*args)
            finally:
                context.leave(td)
        except Block as block:
            wait = block.wait
        except BaseException as exc:
            raise pyfuse3.FUSEError(context.errno_of(op, exc)) from None
        self.workers.waits()
        try:
            caller = Caller(ctx.uid, ctx.gid, ctx.pid)
            return await context.park(op, caller, Parked(nodeid), wait, core, *args)
        except HostError as error:
            raise pyfuse3.FUSEError(error.number) from None
        finally:
            self.workers.resumed()

    async def _on(self, op: str, fh: int, core: Callable[..., R], *args: Any) -> R:
        """The same for an open file: ``core(open_file, *args)``."""
        opened = self._file(fh)
        return await self._run(op, opened.caller, opened.node.nodeid, core, opened, *args)

    def _file(self, fh: int) -> OpenFile:
        try:
            return self.ops.file(fh)
        except KError as error:
            raise pyfuse3.FUSEError(self.context.errno_of("file", error)) from None

    @staticmethod
    def _info(opened: Opened) -> pyfuse3.FileInfo:
        flags = opened.flags
        return pyfuse3.FileInfo(
            opened.fh, bool(flags & FOPEN_DIRECT_IO), bool(flags & FOPEN_KEEP_CACHE)
        )

    # --- names -----------------------------------------------------------------------------

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> Any:
        """Find a name in a directory; a negative answer is an entry with inode 0."""
        return await self._run("lookup", ctx, 0, self.ops.lookup, ctx, parent_inode, name)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """The host gives references back. Never raises: there is nobody to tell."""
        with contextlib.suppress(pyfuse3.FUSEError):
            await self._run("forget", KERNEL, 0, self.ops.forget, inode_list)

    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: Any) -> Any:
        """Create a file of any type but a directory or symbolic link."""
        device = os.major(rdev), os.minor(rdev)
        return await self._run(
            "mknod", ctx, 0, self.ops.mknod, ctx, parent_inode, name, mode, device
        )

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> Any:
        """Create a directory."""
        return await self._run("mkdir", ctx, 0, self.ops.mkdir, ctx, parent_inode, name, mode)

    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: Any) -> Any:
        """Create a symbolic link."""
        return await self._run("symlink", ctx, 0, self.ops.symlink, ctx, parent_inode, name, target)

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: Any) -> Any:
        """Give a file a further name."""
        return await self._run(
            "link", ctx, 0, self.ops.link, ctx, inode, new_parent_inode, new_name
        )

    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        """Remove a name."""
        await self._run("unlink", ctx, 0, self.ops.unlink, ctx, parent_inode, name)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        """Remove an empty directory."""
        await self._run("rmdir", ctx, 0, self.ops.rmdir, ctx, parent_inode, name)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: Any,
    ) -> None:
        """Rename, with the flags of renameat2(2)."""
        await self._run(
            "rename", ctx, 0, self.ops.rename,
            ctx, parent_inode_old, name_old, parent_inode_new, name_new, flags,
        )  # fmt: skip

    async def readlink(self, inode: int, ctx: Any) -> bytes:
        """The target of a symbolic link."""
        return await self._run("readlink", ctx, 0, self.ops.readlink, ctx, inode)

    # --- attributes ------------------------------------------------------------------------

    async def getattr(self, inode: int, ctx: Any) -> Any:
        """The attributes of a file."""
        return await self._run("getattr", ctx, 0, self.ops.getattr, inode)

    async def setattr(self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any) -> Any:
        """Change attributes; answers with all of them."""
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
        return await self._run("setattr", ctx, 0, self.ops.setattr, ctx, inode, vap)

    async def access(self, inode: int, mode: int, ctx: Any) -> bool:
        """Only asked without default_permissions; the host checks by itself otherwise."""
        try:
            await self._run("access", ctx, 0, self.ops.access, ctx, inode, mode)
        except pyfuse3.FUSEError:
            return False
        return True

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        """Figures of the root file system: pyfuse3 does not say which mount is asked about."""
        return statvfs(await self._run("statfs", ctx, 0, self.ops.statfs, pyfuse3.ROOT_INODE))

    # --- data ------------------------------------------------------------------------------

    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        """Open a file, truncating it if asked to."""
        return self._info(await self._run("open", ctx, 0, self.ops.open, ctx, inode, flags))

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, Any]:
        """Create a regular file and open it."""
        record, opened = await self._run(
            "create", ctx, 0, self.ops.create, ctx, parent_inode, name, mode, flags
        )
        return self._info(opened), record

    async def read(self, fh: int, off: int, size: int) -> Any:
        """Read; the answer may be any buffer."""
        return await self._on("read", fh, self.ops.read, off, size)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write.

        A command (a write to a file of the kernel's own) is answered when the host knows what it
        changed, so that the next command sees it.
        """
        count = await self._on("write", fh, self.ops.write, off, buf)
        opened = self.ops.files.get(fh)
        if opened is not None and opened.node.mount.coherence == VOLATILE:
            self.workers.waits()
            try:
                await self.settle()
            finally:
                self.workers.resumed()
        return count

    async def flush(self, fh: int) -> None:
        """A descriptor is closed; others of the same open may live on. Nothing is buffered here.

        ENOSYS says so once and for the whole connection: the host asks no more. It writes its own
        dirty pages back at every close all the same.
        """
        self.counts["flush"] = self.counts.get("flush", 0) + 1
        raise pyfuse3.FUSEError(host_errno.ENOSYS)

    async def release(self, fh: int) -> None:
        """The last descriptor of an open is gone. Errors cannot be reported to anybody."""
        opened = self.ops.files.get(fh)
        if opened is not None:
            await self._run("release", opened.caller, opened.node.nodeid, self.ops.release, fh)

    async def fsync(self, fh: int, datasync: bool) -> None:
        """Write a file to stable storage."""
        await self._on("fsync", fh, self.ops.fsync, datasync)

    async def poll(self, inode: int, fh: int, poll_handle: Any, ctx: Any) -> int:
        """Which events are ready; ``poll_handle`` is notified when that changes."""
        return await self._run("poll", ctx, 0, self.ops.poll, fh, poll_handle)

    # --- directories -----------------------------------------------------------------------

    async def opendir(self, inode: int, ctx: Any) -> int:
        """Open a directory for listing."""
        return (await self._run("opendir", ctx, 0, self.ops.opendir, ctx, inode)).fh

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        """List from ``start_id`` on until the reply is full, attributes included."""
        await self._on("readdir", fh, self._list, start_id, token)

    def _list(self, opened: OpenFile, cookie: int, token: Any) -> None:
        replied = False
        while True:
            try:
                entries = self.ops.readdir(opened, cookie, READDIR_BATCH)
            except Block:
                if replied:
                    return
                raise
            count = 0
            for entry in entries:
                if not pyfuse3.readdir_reply(token, entry.name, entry.record, entry.cookie):
                    break
                count += 1
            self.ops.listed(entries, count)
            if not entries or count < len(entries):
                return
            replied = True
            cookie = entries[-1].cookie

    async def releasedir(self, fh: int) -> None:
        """A listing is finished."""
        await self.release(fh)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Write a directory to stable storage; for the root directory, everything."""
        await self._on("fsyncdir", fh, self.ops.fsyncdir, datasync)

    # --- extended attributes ---------------------------------------------------------------

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Any) -> None:
        """Set an attribute; pyfuse3 has applied XATTR_CREATE and XATTR_REPLACE."""
        await self._run("setxattr", ctx, 0, self.ops.setxattr, ctx, inode, name, value)

    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        """The value of an attribute; ``security.capability`` is asked before every write."""
        node = self.ops.nodes.by_id.get(inode)
        if node is not None and node.plain:
            self.counts["getxattr"] = self.counts.get("getxattr", 0) + 1
            raise pyfuse3.FUSEError(host_errno.ENODATA)
        return await self._run("getxattr", ctx, 0, self.ops.getxattr, ctx, inode, name)

    async def listxattr(self, inode: int, ctx: Any) -> list[bytes]:
        """The names of all attributes, as the host spells them."""
        return await self._run("listxattr", ctx, 0, self.ops.listxattr, ctx, inode)

    async def removexattr(self, inode: int, name: bytes, ctx: Any) -> None:
        """Remove an attribute."""
        await self._run("removexattr", ctx, 0, self.ops.removexattr, ctx, inode, name)

    def stacktrace(self) -> None:
        """pyfuse3's debugging hook (setxattr fuse_stacktrace on the root): reports the threads."""
        self.context.report("stacktrace", "\n".join(map(repr, self.context.lwkt.threads.values())))
