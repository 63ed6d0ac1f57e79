"""Answers out of memory: the most frequent requests, where nothing need be done but to remember.

Most lookups, attribute requests and questions for extended attributes are about files whose answer
lies packed already. For these no context is bound and nothing is parsed into a record: a tenth of a
microsecond counts here. Each function gets the head's numbers and the buffer, and answers the reply
or None: then the request goes the ordinary way (`handlers`), which knows all cases and makes the
next answer quick.

Counterpart: none.
Invariants: nothing here changes what the ordinary way would find, but for counters and the order
of the negative names; nothing raises or waits.
"""

from __future__ import annotations

import errno as host_errno
from struct import Struct
from typing import TYPE_CHECKING, Final

from dfuser.fuse.wire.attr import ATTR_OUT_SIZE, ENTRY_ATTR_OUT, ENTRY_SIZE
from dfuser.fuse.wire.const import IN_HEADER_SIZE, OUT_HEADER_SIZE, Opcode
from dfuser.vfs.ncpath import live_ncp
from dfuser.vfs.nlookup import lookup1_cached

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfuser.fuse.wire.layout import Buffer

    from .connection import DeviceConnection

    Quick = Callable[[int, int, Buffer, int], bytes | None]

_header: Final = Struct("=IiQ").pack
_ENTRY: Final = OUT_HEADER_SIZE + ENTRY_SIZE
_ATTR: Final = OUT_HEADER_SIZE + ATTR_OUT_SIZE
_NAME: Final = IN_HEADER_SIZE


class QuickAnswers:
    """The quick answers of one connection. Their arguments: unique, nodeid, buffer, its length."""

    def __init__(self, connection: DeviceConnection) -> None:
        self.connection = connection
        self.vfs = connection.vfs
        self.nodes = connection.nodes
        self.by_id = connection.nodes.by_id
        self.locks = connection.locks
        self.negative = connection.attrs.negative(connection.mount)

    def table(self, size: int) -> tuple[Quick | None, ...]:
        """The functions by opcode."""
        known: dict[int, Quick] = {
            Opcode.LOOKUP: self.lookup,
            Opcode.GETATTR: self.getattr,
            Opcode.GETXATTR: self.getxattr,
            Opcode.FLUSH: self.flush,
        }
        return tuple(known.get(opcode) for opcode in range(size))

    def getattr(self, unique: int, nodeid: int, buf: Buffer, size: int) -> bytes | None:
        """GETATTR of a file whose packed attributes are good."""
        node = self.by_id.get(nodeid)
        if node is None:
            return None
        record, vp = node.packed, node.vp
        if record is None or vp is None or vp.attr_cache is not record:
            return None
        return _header(_ATTR, 0, unique) + record[ENTRY_ATTR_OUT:]  # type: ignore[no-any-return]

    def lookup(self, unique: int, nodeid: int, buf: Buffer, size: int) -> bytes | None:
        """LOOKUP of a name that the namecache knows, and whose file is packed."""
        node = self.by_id.get(nodeid)
        if node is None or node.vp is None:
            return None
        dncp = live_ncp(node.vp)
        if dncp is None or not dncp.children:
            return None
        ncp = lookup1_cached(self.vfs.cache, dncp, bytes(buf[_NAME : size - 1]))
        if ncp is None:
            return None
        vp = ncp.vp
        if vp is None:
            return _header(_ENTRY, 0, unique) + self.negative  # type: ignore[no-any-return]
        mount, nodes = node.mount, self.nodes
        found = vp.handle
        while found is not None and (found.table is not nodes or found.mount is not mount):
            found = found.next
        if found is None:
            return None
        record = found.packed
        if record is None or vp.attr_cache is not record:
            return None
        found.nlookup += 1
        return _header(_ENTRY, 0, unique) + record  # type: ignore[no-any-return]

    def getxattr(self, unique: int, nodeid: int, buf: Buffer, size: int) -> bytes | None:
        """GETXATTR of a file that is known to have no extended attribute at all."""
        node = self.by_id.get(nodeid)
        if node is None or not node.plain:
            return None
        return _header(OUT_HEADER_SIZE, -host_errno.ENODATA, unique)

    def flush(self, unique: int, nodeid: int, buf: Buffer, size: int) -> bytes | None:
        """FLUSH while nobody on this connection holds a lock."""
        if self.locks.owners or not self.connection.serves_locks:
            return None
        return _header(OUT_HEADER_SIZE, 0, unique)
