"""Telling the host's kernel what to forget.

The host caches names, attributes and pages of our files for as long as we allow. A change that came
from the host has already updated its caches; every other change (a process inside, a verb of the
command line, the same file seen through a second mount) is sent here as an invalidation.

Invalidations are written by an OS thread of their own, after the change and while nothing is
held: the host's kernel may take a directory lock that a request we are serving holds, so that
writing from the kernel's thread would deadlock. pyfuse3 releases the GIL during the call.

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
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from dfuser.libkern.sysctl import CtlFlag, Sysctl
from dfuser.vfs.vnode import V

from .attr import VOLATILE, mount_below

if TYPE_CHECKING:
    from dfuser.vfs.mount import Mount
    from dfuser.vfs.vnode import Vnode

    from .attr import AttrCache
    from .nodes import NodeTable
    from .request import RequestContext

_log = logging.getLogger(__name__)

#: A message: (nodeid, name) for a name, (nodeid, None) for attributes and pages, and a flag.
_ATTR: Final = 1
_DATA: Final = 2
#: Longest that `Notifier.stop` waits for a message the host is slow to take.
STOP_SECONDS: Final = 5
#: Longest that a command waits until the host has heard what it changed.
SETTLE_SECONDS: Final = 2


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
        nodes: what the host holds.
        attrs: the packed attribute records, which live and die with vnodes.
        context: tells whether the running code serves the host.
        inval_entry: ``(parent nodeid, name)``; writes one invalidation, may block.
        inval_inode: ``(nodeid, attributes only)``; likewise.
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
        nodes: NodeTable,
        attrs: AttrCache,
        context: RequestContext,
        inval_entry: Callable[[int, bytes], None],
        inval_inode: Callable[[int, bool], None],
        limit: int = 65536,
    ) -> None:
        self.nodes = nodes
        self.attrs = attrs
        self.context = context
        self._inval_entry = inval_entry
        self._inval_inode = inval_inode
        self.limit = limit
        self.queued = 0
        self.sent = 0
        self.merged = 0
        self.refused = 0
        self.resyncs = 0
        self._queue: dict[tuple[int, bytes | None], int] = {}
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
                self._put(node.nodeid, name, _ATTR)
                self._put(node.nodeid, None, _ATTR)
            node = node.next

    def attr_changed(self, vp: Vnode) -> None:
        """Attributes changed; a file may have lost its last name."""
        node = vp.handle
        if node is None:
            return
        while node is not None:
            node.plain = False
            node = node.next
        if vp.flag & V.FINALIZE and not vp.ops.use.vop_getattr(vp).nlink:
            self.nodes.pin(vp)
        self._changed(vp, _ATTR)

    def data_changed(self, vp: Vnode) -> None:
        """Contents or size changed."""
        self._changed(vp, _DATA)

    def vnode_reclaimed(self, vp: Vnode) -> None:
        """The vnode goes, its nodes stay."""
        self.attrs.drop(vp)
        self.nodes.reclaimed(vp)

    def mount_changed(self, mount: Mount) -> None:
        """The flags of a mount are others: what was packed from its files is void."""
        for node in self.nodes.by_id.values():
            if node.mount is mount or mount_below(node.mount) is mount:
                if node.vp is not None:
                    node.vp.attr_cache = None
                self._put(node.nodeid, None, _ATTR)

    def unmounted(self) -> None:
        """A mount has gone: the host must not answer from its caches for files that were open."""
        for node in self.nodes.unmounted():
            self._put(node.nodeid, None, _DATA)

    def _changed(self, vp: Vnode, what: int) -> None:
        node = vp.handle
        if node is None or (self.context.serving and node.next is None):
            return
        while node is not None:
            if node.mount.coherence != VOLATILE:
                self._put(node.nodeid, None, what)
            node = node.next

    def _put(self, nodeid: int, name: bytes | None, what: int) -> None:
        key = (nodeid, name)
        with self._cond:
            queue = self._queue
            before = queue.get(key)
            if before is not None:
                self.merged += 1
                queue[key] = before | what
                return
            if len(queue) >= self.limit:
                queue.clear()
                self.resyncs += 1
                for known in self._everything():
                    queue[known] = _DATA
            queue[key] = what
            self.queued += 1
            self._cond.notify()

    def _everything(self) -> list[tuple[int, bytes | None]]:
        keys: list[tuple[int, bytes | None]] = []
        for node in self.nodes.by_id.values():
            keys.append((node.nodeid, None))
            vp = node.vp
            kids = self._names(vp) if vp is not None else ()
            keys.extend((node.nodeid, name) for name in kids)
        return keys

    @staticmethod
    def _names(vp: Vnode) -> tuple[bytes, ...]:
        return tuple(name for ncp in vp.ncps() for name in ncp.children or ())

    @property
    def busy(self) -> bool:
        """Whether something has not been written yet."""
        return bool(self._queue) or self._writing

    async def settle(self) -> None:
        """Wait until the host knows what is queued, at most `SETTLE_SECONDS`.

        Bounded, because a message may wait in the host for a lock that a request holds which waits
        here.
        """
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

    def _write(self, key: tuple[int, bytes | None], what: int) -> None:
        nodeid, name = key
        try:
            if name is not None:
                self._inval_entry(nodeid, name)
            else:
                self._inval_inode(nodeid, what == _ATTR)
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
