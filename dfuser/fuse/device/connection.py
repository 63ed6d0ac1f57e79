"""One mount of the host on the device itself: requests in, replies out, and what waits between.

A request's way here::

    read -> parse_header -> parser -> [ enter -> handler -> leave ] -> write
                                          |
                                        Block: copied, parked as an LWKT thread of its own,
                                        answered from there, interrupted by INTERRUPT

The buffer is one for all connections of a loop: nothing that outlives the handler may refer to it,
so a request that must wait is copied first.

What can go wrong with a reply, and what is done: ENOENT, the request is gone (its caller was
killed): counted. ENODEV, the mount is gone: the connection ends. Anything else means that the
kernel refuses the bytes: a report, and an EIO in its place, so that nobody waits for ever.

Counterpart: fuse_session_loop and fuse_session_process_buf of libfuse; fuse_dev_do_read and
fuse_dev_do_write (fs/fuse/dev.c of Linux) on the other end.
Invariants: every request that wants a reply gets exactly one, or its connection is gone.
"""

from __future__ import annotations

import errno as host_errno
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import trio

from dfuser.fuse.attr import VOLATILE
from dfuser.fuse.connection import Connection
from dfuser.fuse.request import Caller, HostError, Parked
from dfuser.fuse.wire.const import IN_HEADER_SIZE, Opcode
from dfuser.fuse.wire.init import Negotiated, Wishes, negotiate
from dfuser.fuse.wire.inputs import IN_HEADER, Header
from dfuser.fuse.wire.layout import WireError, make
from dfuser.fuse.wire.notify import emit_delete, emit_inval_entry, emit_inval_inode
from dfuser.fuse.wire.operations import BY_OPCODE, has_reply, name_of, refusal
from dfuser.fuse.wire.reply import emit_error
from dfuser.fuse.wire.request import PARSERS, body_end, parsers_for
from dfuser.lwkt.block import Block

from .attr import DevicePacker
from .handlers import Handlers
from .quick import QuickAnswers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from dfuser.fuse.hostlocks import HostLocks
    from dfuser.fuse.request import OpenFile, RequestContext
    from dfuser.fuse.trace import FuseTrace
    from dfuser.fuse.wire.inputs import InitIn
    from dfuser.fuse.wire.layout import Buffer
    from dfuser.fuse.wire.request import Parser
    from dfuser.vfs.mount import Mount
    from dfuser.vfs.vfs import Vfs

unpack_head: Final = IN_HEADER.struct.unpack_from
#: Opcodes there are; a request with a higher one is refused.
OPCODES: Final = len(PARSERS)
#: What a connection without extended attributes refuses.
XATTR_OPCODES: Final = (
    Opcode.SETXATTR, Opcode.GETXATTR, Opcode.LISTXATTR, Opcode.REMOVEXATTR,
)  # fmt: skip
#: What a read says when there is nothing to read, and when the mount is gone.
_AGAIN: Final = (host_errno.EAGAIN, host_errno.EINTR, host_errno.ENOENT)
_GONE: Final = (host_errno.ENODEV, host_errno.ECONNABORTED, host_errno.EBADF)
#: Largest write of a synthetic file system's connection.
_SMALL_WRITE: Final = 128 << 10
_LARGE_WRITE: Final = 1 << 20
#: Reports of bad bytes that one connection may make.
_REPORTS: Final = 16


class DeviceStatistics(NamedTuple):
    """What `DeviceConnection.device_statistics` returns."""

    served: int
    replies: int
    late: int
    """Replies whose request was gone."""
    refused: int
    """Replies that the kernel did not take."""
    garbled: int
    """Requests that were none."""
    unknown: int
    """Requests with an opcode nobody knows."""
    parked: int
    """Requests waiting now."""


class DeviceConnection(Connection):
    """A connection that is served here.

    Args:
        vfs: the file systems.
        context: for its requests.
        mount: whose root is its root.
        path: where the host mounts it.
        separate: whether a mount has a connection of its own.
        settle: waits until the host knows of all changes.
        settled: whether it knows now.
        trace: who follows requests.
        locks: the locks of host processes on this connection.
        host_flags: MNT.* flags that the host enforces.
        writeback: let the host collect writes.
        noopen: no OPEN requests, where the file system needs none.
        noxattr: no extended attributes and access control lists.
        max_background: read-aheads and other requests nobody waits for, at a time.
    """

    def __init__(
        self,
        vfs: Vfs,
        context: RequestContext,
        mount: Mount,
        path: str,
        separate: Callable[[Mount], bool],
        settle: Callable[[], Awaitable[None]],
        settled: Callable[[], bool],
        trace: FuseTrace,
        locks: HostLocks,
        *,
        host_flags: int = 0,
        writeback: bool = False,
        noopen: bool = False,
        noxattr: bool = False,
        max_background: int = 64,
    ) -> None:
        super().__init__(vfs, context, mount, path, DevicePacker(), separate, host_flags)
        self.settle = settle
        self.settled = settled
        self.trace = trace
        volatile = mount.coherence == VOLATILE
        self.noopen = noopen and mount.ops.stateless
        self.serves_locks = not self.noopen and not volatile
        self.wishes = Wishes(
            writeback=writeback and not volatile,
            zero_open=self.noopen,
            zero_opendir=self.noopen,
            acl=not noxattr,
            locks=self.serves_locks,
            cache_symlinks=not volatile,
            max_write=_SMALL_WRITE if volatile else _LARGE_WRITE,
            max_background=min(max_background, 0xFFFF),
            congestion_threshold=min(max_background, 0xFFFF) * 3 // 4,
        )
        self.negotiated: Negotiated | None = None
        self.locks = locks
        #: Requests by opcode.
        self.counts = [0] * OPCODES
        self.replies = self.late = self.refused = self.garbled = self.unknown = 0
        self.ended = trio.Event()
        #: MNT.* flags that were given to the host as words.
        self.told = 0
        #: Requests that wait, by their number.
        self.parked: dict[int, Parked] = {}
        self.nursery: trio.Nursery | None = None
        self._reports = 0
        self._parsers: Sequence[Parser] = PARSERS
        refused = XATTR_OPCODES if noxattr else ()
        handlers = Handlers(self)
        self._handlers: tuple[Any, ...] = tuple(
            getattr(handlers, row.opcode.name.lower(), None)
            if (row := BY_OPCODE.get(n)) is not None and n not in refused
            else None
            for n in range(OPCODES)
        )
        quick = QuickAnswers(self).table(OPCODES)
        self._quick = tuple(None if n in refused else one for n, one in enumerate(quick))

    # --- requests --------------------------------------------------------------------------

    def serve_one(self, buf: bytearray) -> bool:
        """Read one request into ``buf`` and serve it; False when there was none to read.

        Never raises and never waits. `ended` is set when the mount is gone.
        """
        try:
            size = os.readv(self.fd, (buf,))
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _AGAIN:
                self._lost(error)
            return False
        if not size:
            self._lost(OSError(host_errno.ENODEV, "end of file"))
            return False
        self.dispatch(buf, size)
        return True

    def server(self, buf: bytearray) -> Callable[[], bool]:
        """A function that serves one request through ``buf``; False when the mount is gone."""
        serve, ended = self.serve_one, self.ended

        def one() -> bool:
            serve(buf)
            return not ended.is_set()

        return one

    def dispatch(self, buf: Buffer, size: int) -> None:
        """Serve the request in the first ``size`` bytes of ``buf``. Never raises."""
        if size < IN_HEADER_SIZE:
            self._garbled(f"{size} bytes")
            return
        head = unpack_head(buf)
        length, opcode, unique, nodeid, _, _, _, extensions = head
        if length != size:
            self._garbled(f"{size} bytes that say they are {length}")
            return
        if self.trace.level:
            self.trace.begin(self.name, buf, size)
        reply: Any
        if opcode < OPCODES:
            self.counts[opcode] += 1
            quick = self._quick[opcode]
            if quick is not None and not extensions:
                try:
                    reply = quick(unique, nodeid, buf, size)
                except Block:
                    reply = None
                except BaseException as exc:
                    reply = self._failure(make(Header, head), exc) or b""
                if reply:
                    self.reply(unique, reply)
                    return
                if reply is not None:
                    if self.trace.level:
                        self.trace.no_reply(self.name, unique)
                    return
        self._dispatch(make(Header, head), buf, size)

    def _dispatch(self, head: Header, buf: Buffer, size: int) -> None:
        """The ordinary way of a request."""
        opcode = head.opcode
        handler = self._handlers[opcode] if opcode < OPCODES else None
        if handler is None:
            self._refuse(head)
            return
        context = self.context
        try:
            end = body_end(head) if head.total_extlen else size
            body = self._parsers[opcode](buf, end)
            td = context.enter(head)
            try:
                reply = handler(head, body, buf)
            finally:
                context.leave(td)
        except Block as block:
            self._park(head, buf, size, block.wait)
            return
        except WireError as error:
            self._garbled(str(error))
            reply = emit_error(head.unique, host_errno.EINVAL) if has_reply(opcode) else None
        except BaseException as exc:
            reply = self._failure(head, exc)
        if reply is not None:
            self.reply(head.unique, reply)
        elif self.trace.level and not has_reply(opcode):
            self.trace.no_reply(self.name, head.unique)

    def _failure(self, head: Header, exc: BaseException) -> bytes | None:
        """The answer for what a handler raised; None where nobody waits for one."""
        number = self.context.errno_of(name_of(head.opcode).lower(), exc) or host_errno.EIO
        return emit_error(head.unique, number) if has_reply(head.opcode) else None

    def _refuse(self, head: Header) -> None:
        """An operation that is not served: ENOSYS once and the kernel asks no more."""
        if head.opcode not in BY_OPCODE:
            self.unknown += 1
        number = refusal(head.opcode) or host_errno.ENOSYS
        self.reply(head.unique, emit_error(head.unique, number))

    def _garbled(self, why: str) -> None:
        self.garbled += 1
        self._report(f"a request that is none: {why}")

    def _report(self, text: str) -> None:
        """Into the kernel's log, a bounded number of times."""
        self._reports += 1
        if self._reports <= _REPORTS:
            self.context.report(f"fuse {self.name}", text)

    # --- requests that wait ----------------------------------------------------------------

    def _park(
        self, head: Header, buf: Buffer, size: int, wait: Callable[[], Awaitable[int]]
    ) -> None:
        """Go on with a request as a thread of its own; its bytes are copied."""
        if self.nursery is None:
            self.reply(head.unique, emit_error(head.unique, host_errno.EAGAIN))
            return
        parked = self.parked[head.unique] = Parked(told=True)
        self.nursery.start_soon(self._wait, head, parked, bytes(buf[:size]), wait)

    async def _wait(
        self, head: Header, parked: Parked, data: bytes, wait: Callable[[], Awaitable[int]]
    ) -> None:
        caller = Caller(head.uid, head.gid, head.pid)
        name = name_of(head.opcode).lower()
        reply: Any
        try:
            reply = await self.context.park(name, caller, parked, wait, self._again, head, data)
        except HostError as error:
            reply = emit_error(head.unique, error.number)
        finally:
            self.parked.pop(head.unique, None)
        if reply is not None and has_reply(head.opcode):
            self.reply(head.unique, reply)

    def _again(self, head: Header, data: bytes) -> Any:
        """Run the handler once more, on the copy."""
        end = body_end(head)
        return self._handlers[head.opcode](head, self._parsers[head.opcode](data, end), data)

    def interrupt(self, unique: int) -> None:
        """The caller of request ``unique`` was signalled."""
        parked = self.parked.get(unique)
        if parked is not None:
            self.context.interrupt(parked)

    def when_settled(self, unique: int, reply: bytes) -> bytes | None:
        """Answer a command: at once, or when the host has heard what it changed."""
        if self.settled() or self.nursery is None:
            return reply
        self.nursery.start_soon(self._after_settling, unique, reply)
        return None

    async def _after_settling(self, unique: int, reply: bytes) -> None:
        try:
            await self.settle()
        finally:
            self.reply(unique, reply)

    # --- replies and messages --------------------------------------------------------------

    def reply(self, unique: int, reply: Any) -> None:
        """Write a reply. Never raises."""
        try:
            if type(reply) is bytes:
                os.write(self.fd, reply)
            else:
                os.writev(self.fd, reply)
            self.replies += 1
        except OSError as error:
            self._not_taken(unique, error)
        if self.trace.level:
            buffers = (reply,) if type(reply) is bytes else reply
            error_number = -int.from_bytes(bytes(buffers[0][4:8]), "little", signed=True)
            self.trace.end(self.name, unique, error_number, buffers)

    def _not_taken(self, unique: int, error: OSError) -> None:
        """The kernel did not take a reply."""
        if error.errno == host_errno.ENOENT:
            self.late += 1
        elif error.errno in _GONE:
            self._lost(error)
        else:
            self.refused += 1
            self._report(f"the kernel refuses a reply: {error.strerror}")
            try:
                os.write(self.fd, emit_error(unique, host_errno.EIO))
            except OSError:
                self.late += 1

    def notify(self, message: bytes) -> None:
        """Write a message of our own. May block in the host; raises OSError."""
        os.write(self.fd, message)
        if self.trace.level:
            self.trace.notified(self.name, (message,))

    def inval_entry(self, nodeid: int, name: bytes, expire: bool) -> None:
        """Tell the host that a name is void, or only old."""
        negotiated = self.negotiated
        expire = expire and negotiated is not None and negotiated.has("HAS_EXPIRE_ONLY")
        self.notify(emit_inval_entry(nodeid, name, expire_only=expire))

    def delete_entry(self, nodeid: int, name: bytes, child: int) -> None:
        """Tell the host that a name of file ``child`` was removed; void it if that is not so."""
        try:
            self.notify(emit_delete(nodeid, child, name))
        except OSError as error:
            if error.errno not in (host_errno.ENOENT, host_errno.ENOTEMPTY, host_errno.EBUSY):
                raise
            self.inval_entry(nodeid, name, expire=False)

    def inval_inode(self, nodeid: int, attr_only: bool) -> None:
        """Tell the host that attributes, or pages too, of a file are void."""
        self.notify(emit_inval_inode(nodeid, -1 if attr_only else 0))

    # --- files -----------------------------------------------------------------------------

    def file(self, fh: int, head: Header) -> OpenFile:
        """The open file of a request. Raises KError EBADF, ESTALE."""
        opened = self.ops.files.get(fh)
        if opened is None or opened.gone:
            return self.file_of(fh, head.nodeid, head)
        return opened

    def file_of(self, fh: int, nodeid: int, head: Header) -> OpenFile:
        """The same for a file named by ``nodeid``, which need not be open with ``noopen``."""
        if fh or not self.noopen:
            return self.ops.file(fh)
        return self.ops.stateless(head, nodeid)

    # --- beginning and end -----------------------------------------------------------------

    def negotiate(self, head: Header, init: InitIn) -> bytes:
        """Answer INIT."""
        outcome = negotiate(init, self.wishes)
        if isinstance(outcome, Negotiated):
            self.negotiated = outcome
            self._parsers = parsers_for(setxattr_ext=outcome.setxattr_ext)
        return outcome.emit(head.unique)

    def release_all(self) -> None:
        """Drop every lock, close every file, forget every number. Needs a kernel context."""
        self.locks.gone()
        super().release_all()

    def shut(self) -> None:
        """Close the descriptor. Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
            self.trace.aborted(self.name)

    def _lost(self, error: OSError) -> None:
        """The mount is gone, or the descriptor cannot be read any more."""
        if error.errno == host_errno.EBADF:
            self.fd = -1  # closed behind our back: the number may be somebody else's soon
        if not self.ended.is_set():
            if error.errno not in _GONE:
                self._report(f"the device cannot be read: {error.strerror}")
            self.ended.set()

    async def serve(self) -> None:
        """Hold the threads of waiting requests until the mount is gone; then end them.

        Requests are read by `loop.DeviceLoop`.
        """
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            try:
                await self.ended.wait()
            finally:
                self.nursery = None
                for parked in list(self.parked.values()):
                    self.context.interrupt(parked)

    def device_statistics(self) -> DeviceStatistics:
        """Counters since the connection began."""
        return DeviceStatistics(
            sum(self.counts), self.replies, self.late, self.refused, self.garbled,
            self.unknown, len(self.parked),
        )  # fmt: skip

    def served(self) -> dict[str, int]:
        """Requests by operation."""
        return {name_of(opcode).lower(): count for opcode, count in enumerate(self.counts) if count}

    def statistics(self) -> dict[str, Any]:
        """The statistics of every part, by name."""
        return {
            **super().statistics(),
            "device": self.device_statistics(),
            "by_operation": self.served(),
        }
