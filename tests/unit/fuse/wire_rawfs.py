"""A small file system in memory, served over /dev/fuse with nothing but the codec under test.

It is the way the codec meets a real kernel: what the kernel sends is parsed, what the codec emits
is judged by the kernel. `serve` answers until the mount ends and can keep every message.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dfuser.fuse.wire import const as c
from dfuser.fuse.wire import notify, reply
from dfuser.fuse.wire.attr import NO_ENTRY, pack_entry, pack_negative, pack_statx
from dfuser.fuse.wire.const import Opcode
from dfuser.fuse.wire.dirent import pack_direntplus, pack_dirents
from dfuser.fuse.wire.init import Negotiated, Wishes, negotiate
from dfuser.fuse.wire.layout import Data
from dfuser.fuse.wire.operations import has_reply, refusal
from dfuser.fuse.wire.outputs import LkOut, StatfsOut
from dfuser.fuse.wire.request import Request, parse_request

#: A message as recorded: from the kernel or not, and its bytes.
Message = tuple[bool, bytes]
KEEP = 1000
FS_IOC_GETFLAGS = 0x80086601
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
SEEK_HOLE = 4


def mount(where: Path) -> int:
    """Mount through fusermount3 and return the descriptor of the device."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        env = os.environ | {"_FUSE_COMMFD": str(theirs.fileno())}
        options = "fsname=wiretest,subtype=dfuser"
        subprocess.run(
            ["fusermount3", "-o", options, "--", str(where)],
            env=env, pass_fds=[theirs.fileno()], check=True, capture_output=True,
        )  # fmt: skip
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    return fds[0]


class Node:
    """One file."""

    def __init__(self, ino: int, mode: int, uid: int, gid: int) -> None:
        self.ino, self.mode, self.uid, self.gid = ino, mode, uid, gid
        self.nlink = 2 if stat.S_ISDIR(mode) else 1
        self.rdev = 0
        self.data = bytearray()
        self.entries: dict[bytes, Node] = {}
        self.xattrs: dict[bytes, bytes] = {}
        self.btime = self.atime = self.mtime = self.ctime = time.time_ns()
        self.lookups = 0
        self.packed: bytes | None = None

    def entry(self) -> bytes:
        """The packed entry, made when something has changed."""
        if self.packed is None:
            self.packed = pack_entry(
                self.ino, 1, KEEP, KEEP, ino=self.ino, size=len(self.data),
                blocks=len(self.data) + 511 >> 9, atime=self.atime, mtime=self.mtime,
                ctime=self.ctime, mode=self.mode, nlink=self.nlink, uid=self.uid, gid=self.gid,
                rdev=self.rdev,
            )  # fmt: skip
        return self.packed

    def changed(self) -> None:
        """Something is different: times move, the packed entry is stale."""
        self.mtime = self.ctime = time.time_ns()
        self.packed = None


class Fail(Exception):
    """A Linux error for the reply."""


class RawFs:
    """The file system, and what happens on its connection."""

    def __init__(self, device: int, wishes: Wishes, refused: tuple[int, ...] = ()) -> None:
        self.device, self.wishes, self.refused = device, wishes, refused
        self.root = Node(1, stat.S_IFDIR | 0o777, 0, 0)
        self.nodes = {1: self.root}
        self.next = 2
        self.agreed: Negotiated | None = None
        self.buffer = bytearray((1 << 20) + 8192)
        self.messages: list[Message] = []
        self.requests: list[Request] = []
        self.errors: list[tuple[int, str]] = []
        self.parked: dict[int, int] = {}
        self.polled: list[int] = []
        self.ready = False
        self.locks: list[LkOut] = []

    # --- the loop --------------------------------------------------------------------------

    def serve(self, done: Callable[[], None], timeout: float = 60.0) -> None:
        """Answer until the mount ends; `done` is called when nothing comes for a moment."""
        poller = select.poll()
        poller.register(self.device, select.POLLIN)
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if not poller.poll(20):
                done()
                continue
            try:
                size = os.readv(self.device, [self.buffer])
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in (errno.ENOENT, errno.EAGAIN, errno.EINTR):
                    continue
                raise
            self.one(size)
        raise TimeoutError("the mount did not end")

    def one(self, size: int) -> None:
        """Answer one request."""
        self.messages.append((True, bytes(self.buffer[:size])))
        request = parse_request(self.buffer, size)
        self.requests.append(request)
        unique, opcode = request.header.unique, request.header.opcode
        answer: Any = None
        try:
            error = errno.ENOSYS if opcode in self.refused else refusal(opcode)
            answer = reply.emit_error(unique, error) if error else self.answer(request)
        except Fail as fail:
            answer = reply.emit_error(unique, fail.args[0])
        except KeyError:
            answer = reply.emit_error(unique, errno.ENOENT)
        if opcode == Opcode.SETXATTR and request.body.name == b"user.notify":
            # Before the reply: the program then waits for us and has no page or directory locked
            # that the notification needs.
            what = request.body.data.decode()
            if what != "resend":
                self.tell(what)
            elif not unique & c.FUSE_UNIQUE_RESEND:
                self.tell(what)
                return  # the kernel has taken this very request back and will send it again
        if answer is not None and has_reply(opcode):
            self.write(answer, request)

    def write(self, answer: Data | tuple[Data, ...] | list[Data], request: Request | None) -> None:
        """Write a reply or a notification, and note what the kernel says to it."""
        parts = [answer] if isinstance(answer, bytes) else list(answer)  # type: ignore[arg-type]
        self.messages.append((False, b"".join(parts)))
        try:
            os.writev(self.device, parts)
        except OSError as error:
            what = "notification" if request is None else Opcode(request.header.opcode).name
            self.errors.append((error.errno or 0, what))

    # --- operations ------------------------------------------------------------------------

    def answer(self, request: Request) -> Any:
        """The reply to a request: bytes, buffers, or None for one that gets none yet."""
        header, body = request.header, request.body
        name = Opcode(header.opcode).name.lower()
        method = getattr(self, f"do_{name}")
        if header.opcode in (Opcode.INIT, Opcode.BATCH_FORGET, Opcode.DESTROY):
            return method(header, body)
        return method(header, body, self.nodes[header.nodeid] if header.nodeid else self.root)

    def new(self, header: Any, parent: Node, name: bytes, mode: int) -> Node:
        if name in parent.entries:
            raise Fail(errno.EEXIST)
        node = self.nodes[self.next] = Node(self.next, mode, header.uid, header.gid)
        self.next += 1
        if name != b"/":
            parent.entries[name] = node
            parent.changed()
        return node

    def entry(self, header: Any, node: Node) -> bytes:
        node.lookups += 1
        return reply.emit_entry(header.unique, node.entry())

    def do_init(self, header: Any, body: Any) -> bytes:
        outcome = negotiate(body, self.wishes)
        assert isinstance(outcome, Negotiated)
        self.agreed = outcome
        return outcome.emit(header.unique)

    def do_lookup(self, header: Any, name: bytes, parent: Node) -> bytes:
        node = parent.entries.get(name)
        if node is None:
            return reply.emit_entry(header.unique, pack_negative(KEEP))
        return self.entry(header, node)

    def drop(self, ino: int, count: int) -> None:
        node = self.nodes.get(ino)
        if node is not None and ino != 1:
            node.lookups -= count
            if not node.lookups and not node.nlink:
                del self.nodes[ino]

    def do_forget(self, header: Any, count: int, _node: Node) -> None:
        self.drop(header.nodeid, count)

    def do_batch_forget(self, _header: Any, pairs: list[tuple[int, int]]) -> None:
        for ino, count in pairs:
            self.drop(ino, count)

    def do_destroy(self, header: Any, _body: None) -> bytes:
        return reply.emit_ok(header.unique)

    def do_getattr(self, header: Any, _body: Any, node: Node) -> bytes:
        return reply.emit_attr(header.unique, node.entry())

    def do_statx(self, header: Any, _body: Any, node: Node) -> bytes:
        return reply.emit_statx(header.unique, pack_statx(node.entry(), btime=node.btime))

    def do_setattr(self, header: Any, body: Any, node: Node) -> bytes:
        valid = body.valid
        if valid & c.FATTR_SIZE:
            self.resize(node, body.size)
        if valid & c.FATTR_MODE:
            node.mode = body.mode
        if valid & c.FATTR_UID:
            node.uid = body.uid
        if valid & c.FATTR_GID:
            node.gid = body.gid
        node.changed()
        if valid & c.FATTR_ATIME:
            node.atime = body.atime * 10**9 + body.atimensec
        if valid & c.FATTR_MTIME and not valid & c.FATTR_MTIME_NOW:
            node.mtime = body.mtime * 10**9 + body.mtimensec
        return self.do_getattr(header, None, node)

    def resize(self, node: Node, size: int) -> None:
        del node.data[size:]
        node.data.extend(bytes(size - len(node.data)))

    def do_readlink(self, header: Any, _body: None, node: Node) -> bytes:
        return reply.emit_bytes(header.unique, bytes(node.data))

    def do_symlink(self, header: Any, body: Any, parent: Node) -> bytes:
        node = self.new(header, parent, body.name, stat.S_IFLNK | 0o777)
        node.data[:] = body.target
        return self.entry(header, node)

    def do_mknod(self, header: Any, body: Any, parent: Node) -> bytes:
        node = self.new(header, parent, body.name, body.mode & ~body.umask)
        node.rdev = body.rdev
        return self.entry(header, node)

    def do_mkdir(self, header: Any, body: Any, parent: Node) -> bytes:
        mode = stat.S_IFDIR | body.mode & ~body.umask
        return self.entry(header, self.new(header, parent, body.name, mode))

    def do_unlink(self, header: Any, name: bytes, parent: Node) -> bytes:
        node = parent.entries.pop(name)
        node.nlink -= 1
        node.changed()
        parent.changed()
        return reply.emit_ok(header.unique)

    def do_rmdir(self, header: Any, name: bytes, parent: Node) -> bytes:
        if parent.entries[name].entries:
            raise Fail(errno.ENOTEMPTY)
        parent.entries.pop(name).nlink = 0
        parent.changed()
        return reply.emit_ok(header.unique)

    def do_rename(self, header: Any, body: Any, parent: Node) -> bytes:
        other, node = self.nodes[body.newdir], parent.entries[body.name]
        flags = getattr(body, "flags", 0)
        there = other.entries.get(body.newname)
        if flags & RENAME_EXCHANGE and there is not None:
            parent.entries[body.name] = there
        elif flags & RENAME_NOREPLACE and there is not None:
            raise Fail(errno.EEXIST)
        else:
            del parent.entries[body.name]
        other.entries[body.newname] = node
        parent.changed()
        other.changed()
        return reply.emit_ok(header.unique)

    do_rename2 = do_rename

    def do_link(self, header: Any, body: Any, parent: Node) -> bytes:
        node = self.nodes[body.oldnodeid]
        parent.entries[body.name] = node
        node.nlink += 1
        node.changed()
        return self.entry(header, node)

    def do_open(self, header: Any, body: Any, node: Node) -> bytes:
        if body.flags & os.O_TRUNC:
            self.resize(node, 0)
            node.changed()
        name = next((n for n, child in self.root.entries.items() if child is node), b"")
        flags = c.FOPEN_DIRECT_IO if name.startswith(b"direct") else c.FOPEN_KEEP_CACHE
        return reply.emit_open(header.unique, node.ino, flags)

    def do_opendir(self, header: Any, _body: Any, node: Node) -> bytes:
        return reply.emit_open(header.unique, node.ino, 0)

    def do_create(self, header: Any, body: Any, parent: Node) -> bytes:
        node = self.new(header, parent, body.name, body.mode & ~body.umask)
        if body.name == b"/":
            node.nlink = 0
        node.lookups += 1
        return reply.emit_create(header.unique, node.entry(), node.ino, c.FOPEN_KEEP_CACHE)

    do_tmpfile = do_create

    def do_read(self, header: Any, body: Any, node: Node) -> Any:
        if node is self.root.entries.get(b"direct-block"):
            self.parked[header.unique] = header.opcode
            return None
        return reply.emit_data(header.unique, bytes(node.data[body.offset :][: body.size]))

    def do_interrupt(self, header: Any, body: Any, _node: Node) -> bytes | None:
        if self.parked.pop(body.unique, None) is None:
            return reply.emit_error(header.unique, errno.EAGAIN)
        self.write(reply.emit_error(body.unique, errno.EINTR), None)
        return None

    def do_write(self, header: Any, body: Any, node: Node) -> bytes:
        data = self.buffer[c.WRITE_DATA : c.WRITE_DATA + body.size]
        if len(node.data) < body.offset:
            self.resize(node, body.offset)
        node.data[body.offset : body.offset + body.size] = data
        node.changed()
        return reply.emit_write(header.unique, body.size)

    def do_statfs(self, header: Any, _body: None, _node: Node) -> bytes:
        return reply.emit_statfs(header.unique, StatfsOut(1000, 500, 400, 99, 9, 4096, 255, 4096))

    def nothing(self, header: Any, _body: Any, _node: Node) -> bytes:
        return reply.emit_ok(header.unique)

    do_release = do_releasedir = do_fsync = do_fsyncdir = do_flush = do_access = do_syncfs = nothing

    def do_setxattr(self, header: Any, body: Any, node: Node) -> bytes:
        node.xattrs[body.name] = body.data
        return reply.emit_ok(header.unique)

    def do_getxattr(self, header: Any, body: Any, node: Node) -> bytes:
        if body.name not in node.xattrs:
            raise Fail(errno.ENODATA)
        return self.sized(header, body, node.xattrs[body.name])

    def do_listxattr(self, header: Any, body: Any, node: Node) -> bytes:
        return self.sized(header, body, b"".join(name + b"\0" for name in node.xattrs))

    def sized(self, header: Any, body: Any, value: bytes) -> bytes:
        if not body.size:
            return reply.emit_xattr_size(header.unique, len(value))
        if len(value) > body.size:
            raise Fail(errno.ERANGE)
        return reply.emit_bytes(header.unique, value)

    def do_removexattr(self, header: Any, name: bytes, node: Node) -> bytes:
        if node.xattrs.pop(name, None) is None:
            raise Fail(errno.ENODATA)
        return reply.emit_ok(header.unique)

    def listing(self, node: Node, offset: int) -> list[tuple[bytes, int, int, int, bytes]]:
        rows: list[tuple[bytes, int, int, int, bytes]] = [
            (NO_ENTRY, node.ino, 1, 4, b"."),
            (NO_ENTRY, node.ino, 2, 4, b".."),
        ]
        for at, (name, child) in enumerate(node.entries.items(), 3):
            rows.append((child.entry(), child.ino, at, child.mode >> 12, name))
        return rows[offset:]

    def do_readdir(self, header: Any, body: Any, node: Node) -> Any:
        rows = (row[1:] for row in self.listing(node, body.offset))
        return reply.emit_data(header.unique, pack_dirents(rows, body.size)[0])

    def do_readdirplus(self, header: Any, body: Any, node: Node) -> Any:
        rows = self.listing(node, body.offset)
        data, count = pack_direntplus(rows, body.size)
        for row in rows[:count]:
            if row[0] is not NO_ENTRY:
                self.nodes[row[1]].lookups += 1
        return reply.emit_data(header.unique, data)

    def do_getlk(self, header: Any, body: Any, _node: Node) -> bytes:
        wanted = LkOut(body.start, body.end, body.type, body.pid)
        held = next((lock for lock in self.locks if lock.type == 1), wanted._replace(type=2))
        return reply.emit_lk(header.unique, held)

    def do_setlk(self, header: Any, body: Any, _node: Node) -> bytes:
        if body.type == 2:
            self.locks.clear()
        else:
            self.locks.append(LkOut(body.start, body.end, body.type, body.pid))
        return reply.emit_ok(header.unique)

    do_setlkw = do_setlk

    def do_ioctl(self, header: Any, body: Any, _node: Node) -> bytes:
        if body.cmd == FS_IOC_GETFLAGS:
            return reply.emit_ioctl(header.unique, 0, b"\x10".ljust(body.out_size, b"\0"))
        if body.in_size and body.in_size == body.out_size:
            return reply.emit_ioctl(header.unique, 7, body.data[::-1])
        raise Fail(errno.ENOTTY)

    def do_poll(self, header: Any, body: Any, _node: Node) -> bytes:
        if body.flags & c.FUSE_POLL_SCHEDULE_NOTIFY:
            self.polled.append(body.kh)
        return reply.emit_poll(header.unique, body.events & select.POLLIN if self.ready else 0)

    def do_fallocate(self, header: Any, body: Any, node: Node) -> bytes:
        end = body.offset + body.length
        if body.mode & FALLOC_FL_PUNCH_HOLE:
            node.data[body.offset : end] = bytes(len(node.data[body.offset : end]))
        elif not body.mode & FALLOC_FL_KEEP_SIZE and end > len(node.data):
            self.resize(node, end)
        node.changed()
        return reply.emit_ok(header.unique)

    def do_lseek(self, header: Any, body: Any, node: Node) -> bytes:
        if body.offset >= len(node.data):
            raise Fail(errno.ENXIO)
        where = len(node.data) if body.whence == SEEK_HOLE else body.offset
        return reply.emit_lseek(header.unique, where)

    def copied(self, body: Any, node: Node) -> int:
        data = node.data[body.off_in : body.off_in + body.len]
        target = self.nodes[body.nodeid_out]
        target.data[body.off_out : body.off_out + len(data)] = data
        target.changed()
        return len(data)

    def do_copy_file_range(self, header: Any, body: Any, node: Node) -> bytes:
        return reply.emit_write(header.unique, self.copied(body, node))

    def do_copy_file_range_64(self, header: Any, body: Any, node: Node) -> bytes:
        return reply.emit_copy_file_range_64(header.unique, self.copied(body, node))

    def do_notify_reply(self, _header: Any, body: Any, _node: Node) -> None:
        assert self.buffer[c.WRITE_DATA : c.WRITE_DATA + body.size].startswith(b"stored")

    # --- notifications ---------------------------------------------------------------------

    def tell(self, what: str) -> None:
        """Send a notification about ``note`` in the root."""
        node = self.root.entries.get(b"note", self.root)
        made: dict[str, Callable[[], Any]] = {
            "poll": lambda: notify.emit_poll_wakeup(self.polled[0] if self.polled else 0),
            "inval_inode": lambda: notify.emit_inval_inode(node.ino),
            "inval_attr": lambda: notify.emit_inval_inode(node.ino, -1),
            "inval_entry": lambda: notify.emit_inval_entry(1, b"note"),
            "expire": lambda: notify.emit_inval_entry(1, b"note", expire_only=True),
            "store": lambda: notify.emit_store(node.ino, 0, b"stored by the server\n"),
            "retrieve": lambda: notify.emit_retrieve(4242, node.ino, 0, 4096),
            "delete": lambda: notify.emit_delete(1, node.ino, b"note"),
            "resend": notify.emit_resend,
            "inc_epoch": notify.emit_inc_epoch,
            # The FORGETs of many files wait until this write returns, and so come as a batch.
            "prune": lambda: notify.emit_prune([ino for ino in self.nodes if ino != 1]),
        }
        self.ready |= what == "poll"
        if what == "delete":
            node.nlink = 0
            del self.root.entries[b"note"]
        self.write(made[what](), None)
