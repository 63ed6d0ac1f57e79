"""Telling the host's kernel what to forget.

The host caches names, attributes and pages of our files for as long as we allow. A change that came
from the host has already updated its caches; every other change (a process inside, a verb of the
command line, the same file seen through a second mount) is sent here as an invalidation.

Invalidations are written by an OS thread of their own, after the change and while nothing is
held: the host's kernel may take a directory lock that a request we are serving holds, so that
writing from the kernel's thread would deadlock. The GIL is free during the call.

A file may be known on several connections (its mount's own, and that of a null mount); each is told
by itself. A name that something is mounted on is only expired: an invalidation would make the host
detach what is mounted there.

The queue merges equal messages and is bounded by ``vfs.fuse.notify_limit``. When it is full the
messages are dropped together and every node the host holds is invalidated instead: slow, never
wrong.

Counterpart: none.
Token/lock order: the queue's condition variable is a leaf; nothing is called while it is held.
Invariants: a message is queued only after the change is visible; a node that the host does not hold
is never named.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import trio

from dfuser.libkern.sysctl import CtlFlag, Sysctl
from dfuser.vfs.namecache import NCF
from dfuser.vfs.vnode import V

from .attr import VOLATILE, mount_below
from .nodes import NodeTable

if TYPE_CHECKING:
    from dfuser.vfs.mount import Mount
    from dfuser.vfs.vnode import Vnode

    from .request import RequestContext

_log = logging.getLogger(__name__)

#: What a message says: of a file its attributes, or its pages too; of a name that it is void, or
#: (something is mounted there) only old.
_ATTR: Final = 1
_DATA: Final = 2
_EXPIRE: Final = 4
#: Longest that `Notifier.stop` waits for a message the host is slow to take.
STOP_SECONDS: Final = 5
#: Longest that a command waits until the host has heard what it changed.
SETTLE_SECONDS: Final = 2


class Listener(Protocol):
    """A connection, as the notifier knows it."""

    @property
    def nodes(self) -> NodeTable:
        """What the host holds on it."""

    def inval_entry(self, nodeid: int, name: bytes, expire: bool) -> None:
        """Write one invalidation of a name. May block. Raises OSError when it is refused."""

    def delete_entry(self, nodeid: int, name: bytes, child: int) -> None:
        """Write that a name of file ``child`` was removed; watchers of the host are told."""

    def inval_inode(self, nodeid: int, attr_only: bool) -> None:
        """Write one invalidation of a file."""


#: (connection, nodeid, name), the name None for the file itself.
_Key = tuple[Listener, int, bytes | None]


class NotifyStatistics(NamedTuple):
    """What `Notifier.statistics` returns."""

    queued: int
    sent: int
    merged: int
    refused: int
    resyncs: int
    waiting: int


class Notifier:
    """The `HostCache` of a mounted kernel.

    Args:
        listeners: the connections there are.
        context: tells whether the running code serves the host.
        limit: messages that may wait.
        first: what `settle` waits for before the messages.
        flags: called with a mount whose flags have changed.
    """

    sysctl_limit = Sysctl(
        "vfs.fuse.notify_limit",
        "invalidations that may wait",
        attr="limit",
        flags=CtlFlag.RW,
        minimum=16,
        maximum=1_000_000,
    )
    sysctl_sent = Sysctl("vfs.fuse.notify_sent", "invalidations written", attr="sent")
    sysctl_resyncs = Sysctl(
        "vfs.fuse.notify_resyncs", "times everything was invalidated", attr="resyncs"
    )

    def __init__(
        self,
        listeners: Callable[[], Iterable[Listener]],
        context: RequestContext,
        limit: int = 65536,
        first: Callable[[], Awaitable[None]] | None = None,
        flags: Callable[[Mount], None] = lambda _mount: None,
    ) -> None:
        self._listeners = listeners
        self._flags = flags
        self._first = first
        self.context = context
        self.limit = limit
        self.queued = 0
        self.sent = 0
        self.merged = 0
        self.refused = 0
        self.resyncs = 0
        self._queue: dict[_Key, int] = {}
        self._cond = threading.Condition()
        self._stopping = False
        self._writing = False
        self._settling: list[tuple[trio.lowlevel.TrioToken, trio.Event]] = []
        self._thread: threading.Thread | None = None

    # --- HostCache -------------------------------------------------------------------------

    def entry_changed(self, dvp: Vnode, name: bytes) -> None:
        """A name came, went or means something else."""
        node = dvp.handle
        if node is None or (self.context.serving and node.next is None):
            return
        while node is not None:
            if node.mount.coherence != VOLATILE:
                listener = node.table.connection
                self._put(listener, node.nodeid, name, _EXPIRE if covered(dvp, name) else _ATTR)
                self._put(listener, node.nodeid, None, _ATTR)
            node = node.next

    def entry_removed(self, dvp: Vnode, name: bytes, vp: Vnode) -> None:
        """A name of a file was removed: who watches it on the host hears of a deletion."""
        node = dvp.handle
        if node is None or (self.context.serving and node.next is None):
            return
        while node is not None:
            if node.mount.coherence != VOLATILE:
                table = node.table
                child = vp.handle
                while child is not None and child.table is not table:
                    child = child.next
                # A negative number names the file; it does not merge with other messages.
                what = -child.nodeid if child is not None else _ATTR
                self._put(table.connection, node.nodeid, name, what)
                self._put(table.connection, node.nodeid, None, _ATTR)
            node = node.next

    def attr_changed(self, vp: Vnode) -> None:
        """Attributes changed; a file may have lost its last name."""
        if vp.handle is None:
            return
        if vp.flag & V.FINALIZE and not vp.ops.use.vop_getattr(vp).nlink:
            NodeTable.pin(vp)
        self._changed(vp, _ATTR)

    def xattr_changed(self, vp: Vnode) -> None:
        """Extended attributes changed: a file that had none may have some."""
        node = vp.handle
        while node is not None:
            node.plain = False
            node = node.next
        self._changed(vp, _ATTR)

    def data_changed(self, vp: Vnode) -> None:
        """Contents or size changed."""
        self._changed(vp, _DATA)

    def vnode_reclaimed(self, vp: Vnode) -> None:
        """The vnode goes, its nodes stay."""
        vp.attr_cache = None
        NodeTable.reclaimed(vp)

    def mount_changed(self, mount: Mount) -> None:
        """The flags of a mount are others: what was packed from its files is void.

        Pages go as well: the host may keep what links say, which must not be followed any more.
        """
        self._flags(mount)
        for listener in self._listeners():
            for node in listener.nodes.by_id.values():
                if node.mount is mount or mount_below(node.mount) is mount:
                    if node.vp is not None:
                        node.vp.attr_cache = None
                    self._put(listener, node.nodeid, None, _DATA)

    def unmounted(self) -> None:
        """A mount has gone: the host must not answer from its caches for files that were open."""
        for listener in self._listeners():
            for node in listener.nodes.unmounted():
                self._put(listener, node.nodeid, None, _DATA)

    def _changed(self, vp: Vnode, what: int) -> None:
        node = vp.handle
        if node is None or (self.context.serving and node.next is None):
            return
        while node is not None:
            if node.mount.coherence != VOLATILE:
                self._put(node.table.connection, node.nodeid, None, what)
            node = node.next

    def _put(self, listener: Listener, nodeid: int, name: bytes | None, what: int) -> None:
        key = (listener, nodeid, name)
        with self._cond:
            queue = self._queue
            before = queue.get(key)
            if before is not None:
                self.merged += 1
                queue[key] = before | what if before > 0 < what else _ATTR
                return
            if len(queue) >= self.limit:
                queue.clear()
                self.resyncs += 1
                queue.update(self._everything())
            queue[key] = what
            self.queued += 1
            self._cond.notify()

    def _everything(self) -> Iterator[tuple[_Key, int]]:
        for listener in self._listeners():
            for node in listener.nodes.by_id.values():
                yield (listener, node.nodeid, None), _DATA
                vp = node.vp
                for ncp in vp.ncps() if vp is not None else ():
                    for name, child in (ncp.children or {}).items():
                        mounted = child.flags & NCF.ISMOUNTPT
                        yield (listener, node.nodeid, name), _EXPIRE if mounted else _ATTR

    def gone(self, listener: Listener) -> None:
        """A connection has ended: what waits for it is moot."""
        with self._cond:
            for key in [key for key in self._queue if key[0] is listener]:
                del self._queue[key]

    @property
    def busy(self) -> bool:
        """Whether something has not been written yet."""
        return bool(self._queue) or self._writing

    async def settle(self) -> None:
        """Wait until the host knows what is queued, at most `SETTLE_SECONDS`.

        Bounded, because a message may wait in the host for a lock that a request holds which waits
        here.
        """
        if self._first is not None:
            await self._first()
        with self._cond:
            if self._thread is None or not self.busy:
                return
            settled = trio.Event()
            self._settling.append((trio.lowlevel.current_trio_token(), settled))
        with trio.move_on_after(SETTLE_SECONDS):
            await settled.wait()

    def _has_settled(self) -> None:
        """Tell those who wait in `settle`. Called with the condition held, from the thread."""
        for token, settled in self._settling:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(settled.set)
        self._settling.clear()

    # --- the thread ------------------------------------------------------------------------

    def start(self) -> None:
        """Start writing. Called once the mount answers."""
        self._thread = threading.Thread(target=self._run, name="fuse-notify", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop after the message that is being written; what waits is moot once unmounted."""
        with self._cond:
            self._stopping = True
            self._queue.clear()
            self._cond.notify()
        if self._thread is not None:
            self._thread.join(timeout=STOP_SECONDS)

    def _run(self) -> None:
        """Write batch after batch; a message made again meanwhile goes into the next one."""
        while True:
            with self._cond:
                self._writing = False
                if not self._queue:
                    self._has_settled()
                while not self._queue and not self._stopping:
                    self._cond.wait()
                self._writing = True
                batch, self._queue = self._queue, {}
            for key, what in batch.items():
                if self._stopping:
                    return
                self._write(key, what)
            if self._stopping:
                return

    def _write(self, key: _Key, what: int) -> None:
        listener, nodeid, name = key
        try:
            if name is not None:
                if what < 0:
                    listener.delete_entry(nodeid, name, -what)
                else:
                    listener.inval_entry(nodeid, name, what == _EXPIRE)
            else:
                listener.inval_inode(nodeid, what == _ATTR)
        except FileNotFoundError:
            self.refused += 1
        except OSError as error:
            self.refused += 1
            if not self._stopping:
                _log.debug("invalidation of node %d refused: %s", nodeid, error)
        else:
            self.sent += 1

    def statistics(self) -> NotifyStatistics:
        """Counters since boot."""
        return NotifyStatistics(
            self.queued, self.sent, self.merged, self.refused, self.resyncs, len(self._queue)
        )


def covered(dvp: Vnode, name: bytes) -> bool:
    """Whether something is mounted on a name of a directory."""
    for ncp in dvp.ncps():
        child = (ncp.children or {}).get(name)
        if child is not None and child.flags & NCF.ISMOUNTPT:
            return True
    return False
