"""The opcodes: from a parsed request to the bytes of its answer.

One method for each opcode that is served, named after it. It gets the request's head (which is the
caller as well), what the parser made of the body, and the buffer the request lies in; it runs in a
borrowed context, answers a reply for ``write`` or ``writev`` (None: there is none, or it comes
later), and raises as the operations do. `docs/fuse-protocol.md` has the table.

Counterpart: fuse_lowlevel.c of libfuse (do_lookup ...).
Invariants: a method answers with its own request's ``unique`` and nothing else; nothing it keeps
refers to the buffer.
"""

from __future__ import annotations

import errno as host_errno
from typing import TYPE_CHECKING, Any, Final

from dfuser.fuse.attr import VOLATILE
from dfuser.fuse.wire import inputs as i
from dfuser.fuse.wire import reply as r
from dfuser.fuse.wire.attr import (
    STATX_ATTR_APPEND,
    STATX_ATTR_IMMUTABLE,
    STATX_ATTR_NODUMP,
    decode_dev,
    pack_statx,
)
from dfuser.fuse.wire.const import (
    FATTR_ATIME,
    FATTR_ATIME_NOW,
    FATTR_CTIME,
    FATTR_FH,
    FATTR_GID,
    FATTR_KILL_SUIDGID,
    FATTR_LOCKOWNER,
    FATTR_MODE,
    FATTR_MTIME,
    FATTR_MTIME_NOW,
    FATTR_SIZE,
    FATTR_UID,
    FUSE_FSYNC_FDATASYNC,
    FUSE_LK_FLOCK,
    FUSE_OPEN_KILL_SUIDGID,
    FUSE_POLL_SCHEDULE_NOTIFY,
    FUSE_RELEASE_FLOCK_UNLOCK,
    FUSE_SETXATTR_ACL_KILL_SGID,
    FUSE_WRITE_KILL_SUIDGID,
    WRITE_DATA,
)
from dfuser.fuse.wire.dirent import pack_direntplus, pack_dirents
from dfuser.fuse.wire.notify import emit_poll_wakeup
from dfuser.fuse.wire.outputs import LkOut, StatfsOut
from dfuser.libkern.errno import ERANGE, KError
from dfuser.libkern.stat import APPEND, IMMUTABLE, UF_NODUMP
from dfuser.vfs import syscalls as kern
from dfuser.vfs.vattr import Vattr

from .quick import READ_MAX

if TYPE_CHECKING:
    from dfuser.fuse.wire.layout import Buffer

    from .connection import DeviceConnection

Reply = "bytes | tuple[Data, ...] | list[Data] | None"

#: Least bytes an entry takes in a listing with attributes, and in one without.
_LEAST_PLUS: Final = 160
_LEAST_PLAIN: Final = 32
_SECOND: Final = 1_000_000_000
#: Bits of SETATTR that name no attribute.
_NO_CHANGE: Final = FATTR_FH | FATTR_LOCKOWNER
#: Flags of a file that statx tells, and what they are to it.
_STATX_FLAGS: Final = (
    (IMMUTABLE, STATX_ATTR_IMMUTABLE),
    (APPEND, STATX_ATTR_APPEND),
    (UF_NODUMP, STATX_ATTR_NODUMP),
)
_STATX_KNOWN: Final = STATX_ATTR_IMMUTABLE | STATX_ATTR_APPEND | STATX_ATTR_NODUMP


class DevicePoll:
    """Whom to wake when a file is ready. Counterpart: `dfuser.fuse.polling.PollHandle`."""

    __slots__ = ("connection", "kh")

    def __init__(self, connection: DeviceConnection, kh: int) -> None:
        self.connection = connection
        self.kh = kh

    def notify(self) -> None:
        """Tell the host to ask again. Raises OSError."""
        self.connection.notify(emit_poll_wakeup(self.kh))


class Handlers:
    """What one connection answers."""

    def __init__(self, connection: DeviceConnection) -> None:
        self.connection = connection
        self.ops = connection.ops
        self.locks = connection.locks

    # --- names -----------------------------------------------------------------------------

    def lookup(self, h: i.Header, name: bytes, buf: Buffer) -> Any:
        """LOOKUP."""
        return r.emit_entry(h.unique, self.ops.lookup(h, h.nodeid, name))

    def forget(self, h: i.Header, nlookup: int, buf: Buffer) -> Any:
        """FORGET: no reply."""
        self.ops.forget(((h.nodeid, nlookup),))

    def batch_forget(self, h: i.Header, pairs: list[tuple[int, ...]], buf: Buffer) -> Any:
        """BATCH_FORGET: all in one pass, no reply."""
        self.ops.forget(pairs)

    def mknod(self, h: i.Header, b: i.MknodIn, buf: Buffer) -> Any:
        """MKNOD."""
        device = decode_dev(b.rdev)
        record = self.ops.mknod(h, h.nodeid, b.name, b.mode, device, b.umask)
        return r.emit_entry(h.unique, record)

    def mkdir(self, h: i.Header, b: i.MkdirIn, buf: Buffer) -> Any:
        """MKDIR."""
        return r.emit_entry(h.unique, self.ops.mkdir(h, h.nodeid, b.name, b.mode, b.umask))

    def symlink(self, h: i.Header, b: i.SymlinkIn, buf: Buffer) -> Any:
        """SYMLINK."""
        return r.emit_entry(h.unique, self.ops.symlink(h, h.nodeid, b.name, b.target))

    def link(self, h: i.Header, b: i.LinkIn, buf: Buffer) -> Any:
        """LINK."""
        return r.emit_entry(h.unique, self.ops.link(h, b.oldnodeid, h.nodeid, b.name))

    def unlink(self, h: i.Header, name: bytes, buf: Buffer) -> Any:
        """UNLINK."""
        self.ops.unlink(h, h.nodeid, name)
        return r.emit_ok(h.unique)

    def rmdir(self, h: i.Header, name: bytes, buf: Buffer) -> Any:
        """RMDIR."""
        self.ops.rmdir(h, h.nodeid, name)
        return r.emit_ok(h.unique)

    def rename(self, h: i.Header, b: i.RenameIn, buf: Buffer) -> Any:
        """RENAME."""
        self.ops.rename(h, h.nodeid, b.name, b.newdir, b.newname, 0)
        return r.emit_ok(h.unique)

    def rename2(self, h: i.Header, b: i.Rename2In, buf: Buffer) -> Any:
        """RENAME2, with flags."""
        self.ops.rename(h, h.nodeid, b.name, b.newdir, b.newname, b.flags)
        return r.emit_ok(h.unique)

    def readlink(self, h: i.Header, b: None, buf: Buffer) -> Any:
        """READLINK."""
        return r.emit_bytes(h.unique, self.ops.readlink(h, h.nodeid))

    # --- attributes ------------------------------------------------------------------------

    def getattr(self, h: i.Header, b: i.GetattrIn, buf: Buffer) -> Any:
        """GETATTR."""
        return r.emit_attr(h.unique, self.ops.getattr(h.nodeid))

    def statx(self, h: i.Header, b: i.StatxIn, buf: Buffer) -> Any:
        """STATX: as GETATTR, with birth time and file flags."""
        record, va = self.ops.birth(h.nodeid)
        flags = va.flags or 0
        attributes = sum(bit for ours, bit in _STATX_FLAGS if flags & ours)
        packed = pack_statx(
            record, btime=va.btime, attributes=attributes, attributes_mask=_STATX_KNOWN
        )
        return r.emit_statx(h.unique, packed)

    def setattr(self, h: i.Header, b: i.SetattrIn, buf: Buffer) -> Any:
        """SETATTR."""
        valid = b.valid
        vap = Vattr()
        if valid & FATTR_MODE:
            vap.mode = b.mode & 0o7777
        if valid & FATTR_UID:
            vap.uid = b.uid
        if valid & FATTR_GID:
            vap.gid = b.gid
        if valid & FATTR_SIZE:
            vap.size = b.size
        if valid & FATTR_ATIME:
            vap.atime = b.atime * _SECOND + b.atimensec
            vap.atime_now = bool(valid & FATTR_ATIME_NOW)
        if valid & FATTR_MTIME:
            vap.mtime = b.mtime * _SECOND + b.mtimensec
            vap.mtime_now = bool(valid & FATTR_MTIME_NOW)
        if valid & FATTR_CTIME:
            vap.ctime = b.ctime * _SECOND + b.ctimensec
        # A request that changes nothing is chown(-1, -1), which takes the set-id bits all the same.
        killpriv = bool(valid & FATTR_KILL_SUIDGID) or not valid & ~_NO_CHANGE
        return r.emit_attr(h.unique, self.ops.setattr(h, h.nodeid, vap, killpriv=killpriv))

    def access(self, h: i.Header, b: i.AccessIn, buf: Buffer) -> Any:
        """ACCESS."""
        self.ops.access(h, h.nodeid, b.mask)
        return r.emit_ok(h.unique)

    def statfs(self, h: i.Header, b: None, buf: Buffer) -> Any:
        """STATFS: of the mount the file is in."""
        sf = self.ops.statfs(h.nodeid or 1)
        figures = StatfsOut(
            sf.blocks, sf.bfree, sf.bavail, sf.files, sf.ffree, sf.bsize, sf.namemax, sf.bsize
        )
        return r.emit_statfs(h.unique, figures)

    # --- opening ---------------------------------------------------------------------------

    def open(self, h: i.Header, b: i.OpenIn, buf: Buffer) -> Any:
        """OPEN; ENOSYS, once, on a connection without opens."""
        if self.connection.noopen:
            return r.emit_error(h.unique, host_errno.ENOSYS)
        killpriv = bool(b.open_flags & FUSE_OPEN_KILL_SUIDGID)
        fh, flags = self.ops.open(h, h.nodeid, b.flags, killpriv=killpriv)
        return r.emit_open(h.unique, fh, flags)

    def create(self, h: i.Header, b: i.CreateIn, buf: Buffer) -> Any:
        """CREATE; ENOSYS, once, on a connection without opens: the host sends MKNOD instead."""
        if self.connection.noopen:
            return r.emit_error(h.unique, host_errno.ENOSYS)
        record, (fh, flags) = self.ops.create(h, h.nodeid, b.name, b.mode, b.flags, b.umask)
        return r.emit_create(h.unique, record, fh, flags)

    def tmpfile(self, h: i.Header, b: i.CreateIn, buf: Buffer) -> Any:
        """TMPFILE: the name says nothing."""
        record, (fh, flags) = self.ops.tmpfile(h, h.nodeid, b.mode, b.flags, b.umask)
        return r.emit_create(h.unique, record, fh, flags)

    def opendir(self, h: i.Header, b: i.OpenIn, buf: Buffer) -> Any:
        """OPENDIR; ENOSYS, once, on a connection without opens."""
        if self.connection.noopen:
            return r.emit_error(h.unique, host_errno.ENOSYS)
        fh, flags = self.ops.opendir(h, h.nodeid)
        return r.emit_open(h.unique, fh, flags)

    def release(self, h: i.Header, b: i.ReleaseIn, buf: Buffer) -> Any:
        """RELEASE: the last descriptor of an open is gone, and its flock with it."""
        opened = self.ops.files.get(b.fh)
        if opened is not None:
            flock = bool(b.release_flags & FUSE_RELEASE_FLOCK_UNLOCK)
            self.locks.release(opened.file, b.lock_owner, flock)
        self.ops.release(b.fh)
        return r.emit_ok(h.unique)

    releasedir = release

    def flush(self, h: i.Header, b: i.FlushIn, buf: Buffer) -> Any:
        """FLUSH: a process closes a descriptor, and its record locks on the file go.

        ENOSYS, once, where locks are the host's: nothing is buffered here.
        """
        if not self.connection.serves_locks:
            return r.emit_error(h.unique, host_errno.ENOSYS)
        opened = self.ops.files.get(b.fh)
        if opened is not None:
            self.locks.flush(opened.file, b.lock_owner)
        return r.emit_ok(h.unique)

    # --- data ------------------------------------------------------------------------------

    def read(self, h: i.Header, b: i.ReadIn, buf: Buffer) -> Any:
        """READ."""
        opened = self.connection.file(b.fh, h)
        return r.emit_data(h.unique, self.ops.read(opened, b.offset, min(b.size, READ_MAX)))

    def write(self, h: i.Header, b: i.WriteIn, buf: Buffer) -> Any:
        """WRITE. A command is answered when the host knows what it changed."""
        opened = self.connection.file(b.fh, h)
        killpriv = bool(b.write_flags & FUSE_WRITE_KILL_SUIDGID)
        with memoryview(buf)[WRITE_DATA : WRITE_DATA + b.size] as data:
            count = self.ops.write(opened, b.offset, data, killpriv=killpriv)
        reply = r.emit_write(h.unique, count)
        if opened.node.mount.coherence == VOLATILE:
            return self.connection.when_settled(h.unique, reply)
        return reply

    def fsync(self, h: i.Header, b: i.FsyncIn, buf: Buffer) -> Any:
        """FSYNC."""
        opened = self.connection.file(b.fh, h)
        self.ops.fsync(opened, bool(b.fsync_flags & FUSE_FSYNC_FDATASYNC))
        return r.emit_ok(h.unique)

    def fallocate(self, h: i.Header, b: i.FallocateIn, buf: Buffer) -> Any:
        """FALLOCATE."""
        opened = self.connection.file(b.fh, h)
        kern.kern_fallocate(opened.file, b.mode, b.offset, b.length)
        return r.emit_ok(h.unique)

    def lseek(self, h: i.Header, b: i.LseekIn, buf: Buffer) -> Any:
        """LSEEK: SEEK_DATA and SEEK_HOLE; the host does the others itself."""
        opened = self.connection.file(b.fh, h)
        return r.emit_lseek(h.unique, kern.kern_seek(opened.file, b.offset, b.whence))

    def copy_file_range(self, h: i.Header, b: i.CopyFileRangeIn, buf: Buffer) -> Any:
        """COPY_FILE_RANGE."""
        return r.emit_write(h.unique, self._copy(h, b))

    def copy_file_range_64(self, h: i.Header, b: i.CopyFileRangeIn, buf: Buffer) -> Any:
        """COPY_FILE_RANGE_64."""
        return r.emit_copy_file_range_64(h.unique, self._copy(h, b))

    def _copy(self, h: i.Header, b: i.CopyFileRangeIn) -> int:
        source = self.connection.file(b.fh_in, h)
        target = self.connection.file_of(b.fh_out, b.nodeid_out, h)
        return kern.kern_copy_file_range(
            source.file, b.off_in, target.file, b.off_out, b.len, b.flags
        )

    def ioctl(self, h: i.Header, b: i.IoctlIn, buf: Buffer) -> Any:
        """IOCTL: the host has copied in, and will copy out, what the number says."""
        opened = self.connection.file(b.fh, h)
        return r.emit_ioctl(
            h.unique, 0, kern.kern_ioctl(opened.file, b.cmd, b.data, b.out_size)[: b.out_size]
        )

    def poll(self, h: i.Header, b: i.PollIn, buf: Buffer) -> Any:
        """POLL."""
        wanted = b.flags & FUSE_POLL_SCHEDULE_NOTIFY
        handle = DevicePoll(self.connection, b.kh) if wanted else None
        return r.emit_poll(h.unique, self.ops.poll(b.fh, handle) & b.events)

    # --- directories -----------------------------------------------------------------------

    def readdir(self, h: i.Header, b: i.ReadIn, buf: Buffer) -> Any:
        """READDIR: names only."""
        opened = self.connection.file(b.fh, h)
        entries = self.ops.names(opened, b.offset, b.size // _LEAST_PLAIN + 1)
        data, _count = pack_dirents(entries, b.size)
        return r.emit_data(h.unique, data)

    def readdirplus(self, h: i.Header, b: i.ReadIn, buf: Buffer) -> Any:
        """READDIRPLUS: names with attributes; each counts a lookup."""
        opened = self.connection.file(b.fh, h)
        entries = self.ops.readdir(opened, b.offset, b.size // _LEAST_PLUS + 1)
        data, count = pack_direntplus([entry[:5] for entry in entries], b.size)
        self.ops.listed(entries, count)
        return r.emit_data(h.unique, data)

    def fsyncdir(self, h: i.Header, b: i.FsyncIn, buf: Buffer) -> Any:
        """FSYNCDIR."""
        opened = self.connection.file(b.fh, h)
        self.ops.fsyncdir(opened, bool(b.fsync_flags & FUSE_FSYNC_FDATASYNC))
        return r.emit_ok(h.unique)

    def syncfs(self, h: i.Header, b: None, buf: Buffer) -> Any:
        """SYNCFS: the whole of this connection's mount."""
        self.connection.vfs.sync_all()
        return r.emit_ok(h.unique)

    # --- extended attributes ---------------------------------------------------------------

    def setxattr(self, h: i.Header, b: i.SetxattrIn, buf: Buffer) -> Any:
        """SETXATTR."""
        kill = bool(b.setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID)
        self.ops.setxattr(h, h.nodeid, b.name, b.data, b.flags, kill_sgid=kill)
        return r.emit_ok(h.unique)

    def getxattr(self, h: i.Header, b: i.GetxattrIn, buf: Buffer) -> Any:
        """GETXATTR."""
        return self._sized(h.unique, self.ops.getxattr(h, h.nodeid, b.name), b.size)

    def listxattr(self, h: i.Header, b: i.ListxattrIn, buf: Buffer) -> Any:
        """LISTXATTR: each name with a NUL."""
        names = b"".join(name + b"\0" for name in self.ops.listxattr(h, h.nodeid))
        return self._sized(h.unique, names, b.size)

    @staticmethod
    def _sized(unique: int, value: bytes, size: int) -> Any:
        """A value, or how long it is; ERANGE when it does not fit."""
        if not size:
            return r.emit_xattr_size(unique, len(value))
        if len(value) > size:
            raise KError(ERANGE)
        return r.emit_bytes(unique, value)

    def removexattr(self, h: i.Header, name: bytes, buf: Buffer) -> Any:
        """REMOVEXATTR."""
        self.ops.removexattr(h, h.nodeid, name)
        return r.emit_ok(h.unique)

    # --- locks -----------------------------------------------------------------------------

    def getlk(self, h: i.Header, b: i.LkIn, buf: Buffer) -> Any:
        """GETLK: the lock in the way."""
        opened = self.connection.file(b.fh, h)
        flock = bool(b.lk_flags & FUSE_LK_FLOCK)
        found = self.locks.getlk(opened.file, b.owner, b.start, b.end, b.type, b.pid, flock)
        return r.emit_lk(h.unique, LkOut(*found))

    def setlk(self, h: i.Header, b: i.LkIn, buf: Buffer, *, wait: bool = False) -> Any:
        """SETLK: lock, unlock, or EAGAIN."""
        opened = self.connection.file(b.fh, h)
        flock = bool(b.lk_flags & FUSE_LK_FLOCK)
        self.locks.setlk(
            opened.file, b.owner, b.start, b.end, b.type, b.pid, flock, wait=wait, uid=h.uid
        )
        return r.emit_ok(h.unique)

    def setlkw(self, h: i.Header, b: i.LkIn, buf: Buffer) -> Any:
        """SETLKW: lock, waiting if it must."""
        return self.setlk(h, b, buf, wait=True)

    # --- the connection --------------------------------------------------------------------

    def init(self, h: i.Header, b: i.InitIn, buf: Buffer) -> Any:
        """INIT."""
        return self.connection.negotiate(h, b)

    def interrupt(self, h: i.Header, b: i.InterruptIn, buf: Buffer) -> Any:
        """INTERRUPT: the wait of a request ends. One that is not known was answered just now."""
        self.connection.interrupt(b.unique)

    def notify_reply(self, h: i.Header, b: i.NotifyRetrieveIn, buf: Buffer) -> Any:
        """NOTIFY_REPLY: nothing here asks for pages; no reply."""

    def destroy(self, h: i.Header, b: None, buf: Buffer) -> Any:
        """DESTROY: the host is about to end the connection."""
        return r.emit_ok(h.unique)
