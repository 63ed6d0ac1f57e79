"""Answers out of memory: the most frequent requests, where nothing need be done but to remember.

Most lookups, attribute requests and questions for extended attributes are about files whose answer
lies packed already. For these no context is bound and nothing is parsed into a record: a tenth of a
microsecond counts here. Each function gets the head's numbers and the buffer, and answers the reply
(`DONE` where there is none, or it has been written) or None: then the request goes the ordinary way
(`handlers`), which knows all cases and makes the next answer quick.

Where a file system has everything in memory (`VfsOps.at_hand`) attributes are packed and files are
read here as well; a large read is written straight from page memory.

Counterpart: none.
Invariants: nothing here changes what the ordinary way would find, but for counters, access times
and the order of the negative names. Nothing waits; what is raised is the answer, as it is there.
"""

from __future__ import annotations

import errno as host_errno
from struct import Struct
from typing import TYPE_CHECKING, Final

from dfuser.fuse.wire.attr import ATTR_OUT_SIZE, ENTRY_ATTR_OUT, ENTRY_SIZE
from dfuser.fuse.wire.const import IN_HEADER_SIZE, OUT_HEADER_SIZE, Opcode
from dfuser.fuse.wire.inputs import FLUSH_IN, GETATTR_IN, GETXATTR_IN, READ_IN
from dfuser.vfs.ncpath import live_ncp
from dfuser.vfs.nlookup import lookup1_cached
from dfuser.vfs.syscalls import kern_read, kern_readviews

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfuser.fuse.wire.layout import Buffer, Data

    from .connection import DeviceConnection

    Reply = bytes | tuple[Data, ...] | None
    Quick = Callable[[int, int, Buffer, int], Reply]

_header: Final = Struct("=IiQ").pack
_ENTRY: Final = OUT_HEADER_SIZE + ENTRY_SIZE
_ATTR: Final = OUT_HEADER_SIZE + ATTR_OUT_SIZE
_NAME: Final = IN_HEADER_SIZE
_GETATTR: Final = IN_HEADER_SIZE + GETATTR_IN.size
_XATTR_NAME: Final = IN_HEADER_SIZE + GETXATTR_IN.size
_FLUSH: Final = IN_HEADER_SIZE + FLUSH_IN.size
_READ: Final = IN_HEADER_SIZE + READ_IN.size
_read_in: Final = Struct("=QQI").unpack_from
_FORGET: Final = IN_HEADER_SIZE + 8
_count_in: Final = Struct("=Q").unpack_from
_batch_in: Final = Struct("=I4x").unpack_from
_FORGET_ONE: Final = Struct("=QQ")
#: Reads from this size on are not copied.
VIEW_SIZE: Final = 16 << 10
#: No read that was agreed on is longer; what asks for more gets this much.
READ_MAX: Final = 1 << 20
#: The answer where no reply is due any more.
DONE: Final = b""


class QuickAnswers:
    """The quick answers of one connection. Their arguments: unique, nodeid, buffer, its length."""

    def __init__(self, connection: DeviceConnection) -> None:
        self.connection = connection
        self.vfs = connection.vfs
        self.mount = connection.mount
        self.nodes = connection.nodes
        self.by_id = connection.nodes.by_id
        self.locks = connection.locks
        self.files = connection.ops.files
        self.attrs = connection.attrs
        self.negative = connection.attrs.negative(connection.mount)
        #: Whether attributes can be had at any moment, without a thread to wait in.
        self.at_hand = connection.mount.ops.at_hand

    def table(self, size: int) -> tuple[Quick | None, ...]:
        """The functions by opcode."""
        known: dict[int, Quick] = {
            Opcode.LOOKUP: self.lookup,
            Opcode.GETATTR: self.getattr,
            Opcode.GETXATTR: self.getxattr,
            Opcode.FLUSH: self.flush,
            Opcode.READ: self.read,
            Opcode.FORGET: self.forget,
            Opcode.BATCH_FORGET: self.batch_forget,
        }
        return tuple(known.get(opcode) for opcode in range(size))

    def getattr(self, unique: int, nodeid: int, buf: Buffer, size: int) -> bytes | None:
        """GETATTR of a file that is in memory."""
        node = self.by_id.get(nodeid)
        if node is None or size != _GETATTR:
            return None
        record, vp = node.packed, node.vp
        if vp is None:
            return None
        if record is None or vp.attr_cache is not record:
            if not self.at_hand or node.mount is not self.mount:
                return None
            record = self.attrs.entry(node, vp)
        return _header(_ATTR, 0, unique) + record[ENTRY_ATTR_OUT:]  # type: ignore[no-any-return]

    def lookup(self, unique: int, nodeid: int, buf: Buffer, size: int) -> bytes | None:
        """LOOKUP of a name that the namecache knows, and whose file is packed."""
        node = self.by_id.get(nodeid)
        if node is None or node.vp is None or size <= _NAME or buf[size - 1]:
            return None
        dncp = live_ncp(node.vp)
        if dncp is None or not dncp.children:
            return None
        ncp = lookup1_cached(self.vfs.cache, dncp, bytes(buf[_NAME : size - 1]))
        if ncp is None:
            return None
        vp = ncp.vp
        if vp is None:
            if node.mount is not self.mount:
                return None
            return _header(_ENTRY, 0, unique) + self.negative  # type: ignore[no-any-return]
        mount, nodes = node.mount, self.nodes
        found = vp.handle
        while found is not None and (found.table is not nodes or found.mount is not mount):
            found = found.next
        if found is None:
            if not self.at_hand or mount is not self.mount:
                return None
            found = nodes.find(mount, vp)
        record = found.packed
        if record is None or vp.attr_cache is not record:
            if not self.at_hand or mount is not self.mount:
                return None
            record = self.attrs.entry(found, vp)
        found.nlookup += 1
        return _header(_ENTRY, 0, unique) + record  # type: ignore[no-any-return]

    def forget(self, unique: int, nodeid: int, buf: Buffer, size: int) -> Reply:
        """FORGET of a file that is not kept only because the host knows it."""
        node = self.by_id.get(nodeid)
        if node is None or size != _FORGET or node.pinned:
            return None
        self.nodes.forget(nodeid, _count_in(buf, IN_HEADER_SIZE)[0])
        return DONE

    def batch_forget(self, unique: int, nodeid: int, buf: Buffer, size: int) -> Reply:
        """BATCH_FORGET of such files."""
        first = IN_HEADER_SIZE + 8
        if size < first or size != first + _batch_in(buf, IN_HEADER_SIZE)[0] * _FORGET_ONE.size:
            return None
        with memoryview(buf) as view, view[first:size] as records:
            pairs = list(_FORGET_ONE.iter_unpack(records))
        by_id = self.by_id
        for one, _ in pairs:
            node = by_id.get(one)
            if node is not None and node.pinned:
                return None
        forget = self.nodes.forget
        for one, nlookup in pairs:
            forget(one, nlookup)
        return DONE

    def getxattr(self, unique: int, nodeid: int, buf: Buffer, size: int) -> bytes | None:
        """GETXATTR of a file that is known to have no extended attribute at all."""
        node = self.by_id.get(nodeid)
        if node is None or not node.plain or size < _XATTR_NAME + 2:
            return None
        if buf.find(0, _XATTR_NAME, size) != size - 1:
            return None
        return _header(OUT_HEADER_SIZE, -host_errno.ENODATA, unique)

    def read(self, unique: int, nodeid: int, buf: Buffer, size: int) -> Reply:
        """READ of an open file that is in memory."""
        if not self.at_hand or size != _READ:
            return None
        fh, offset, length = _read_in(buf, IN_HEADER_SIZE)
        opened = self.files.get(fh)
        if opened is None or opened.gone or opened.node.mount is not self.mount:
            return None
        length = min(length, READ_MAX)
        if length >= VIEW_SIZE:
            views = kern_readviews(opened.file, offset, length)
            if views is not None:
                try:
                    head = _header(OUT_HEADER_SIZE + views.size, 0, unique)
                    self.connection.reply(unique, [head, *views.buffers])
                finally:
                    views.release()
                return DONE
        data = kern_read(opened.file, offset, length)
        return _header(OUT_HEADER_SIZE + len(data), 0, unique), data

    def flush(self, unique: int, nodeid: int, buf: Buffer, size: int) -> bytes | None:
        """FLUSH while nobody on this connection holds a lock."""
        if self.locks.owners or not self.connection.serves_locks or size != _FLUSH:
            return None
        return _header(OUT_HEADER_SIZE, 0, unique)
