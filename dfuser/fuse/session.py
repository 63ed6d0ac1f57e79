"""One mounted kernel: from fusermount3 to the last request and back.

`FuseSession` puts the parts of the bridge together, mounts, serves, and unmounts. A session ends
when the host unmounts (``fusermount3 -u``, ``umount``, `FuseSession.unmount`), whoever asked for
it; what is dirty is written and every open file closed before the kernel goes on to stop.

pyfuse3 keeps one session a process. Many kernels can run in one process, one of them mounted.

Counterpart: mount_fusefs and fusefs_unmount, from the other side.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
import pyfuse3
import trio

from dfuser.libkern.errno import KError
from dfuser.libkern.klist import HookKnote
from dfuser.lwkt.synch import abort_sleep
from dfuser.vfs.mountflags import VQ_UNMOUNT
from dfuser.vfs.syscalls import kern_close

from . import mountpoint as host
from .attr import AttrCache
from .mountpoint import MountError
from .nodes import NodeTable
from .notify import Notifier
from .ops import Operations
from .polling import PollTable
from .request import RequestContext
from .watcher import SignalWatcher

if TYPE_CHECKING:
    from dfuser.kern.proc import ProcTable
    from dfuser.libkern.errno import Panic
    from dfuser.lwkt.machine import Lwkt
    from dfuser.lwkt.thread import Thread
    from dfuser.vfs.vfs import Vfs

_log = logging.getLogger(__name__)


@attrs.frozen
class SessionOptions:
    """How to mount."""

    mountpoint: str
    fsname: str = "dfuser"
    allow_other: bool | None = None
    """Let other users in; None: if the host permits it."""
    read_only: bool = False
    nonempty: bool = False
    writeback: bool = False
    """Let the host collect writes: faster small writes; sizes and times are the host's until it
    writes back, so changes from inside to the same file are not coherent."""
    max_parked: int = 2000

    def fuse_options(self) -> set[str]:
        """The option set for pyfuse3."""
        options = {"default_permissions", f"fsname={self.fsname}", "subtype=dfuser"}
        allowed = host.may_allow_other()
        if self.allow_other and not allowed:
            raise MountError(
                "permission",
                "allow_other needs the line 'user_allow_other' in /etc/fuse.conf, or root",
            )
        if allowed and self.allow_other is not False:
            options.add("allow_other")
        if self.read_only:
            options.add("ro")
        return options


class FuseSession:
    """A kernel's connection to the host.

    Args:
        vfs: what is served; its root must be mounted.
        lwkt: the machine that requests run on.
        procs: where parked requests become processes.
        report: called with an operation's name and a traceback when a request meets a bug.
        on_panic: called when a request panics the kernel.
    """

    def __init__(
        self,
        vfs: Vfs,
        lwkt: Lwkt,
        procs: ProcTable,
        options: SessionOptions,
        report: Callable[[str, str], None],
        on_panic: Callable[[Panic], None],
    ) -> None:
        self.vfs = vfs
        self.lwkt = lwkt
        self.options = options
        self.nodes = NodeTable(vfs.mounts.get)
        self.attrs = AttrCache()
        self.polls = PollTable()
        self.watcher = SignalWatcher(
            self._abort_sleep, lwkt.clock.monotonic_ns, lost=self._host_gone
        )
        self.context = RequestContext(
            lwkt, procs, self.watcher, report, on_panic, options.max_parked
        )
        procs.caller = self.context.caller
        self.notifier = Notifier(
            self.nodes,
            self.attrs,
            self.context,
            pyfuse3.invalidate_entry,
            pyfuse3.invalidate_inode,
        )
        self.ops = Operations(
            vfs,
            self.context,
            self.nodes,
            self.attrs,
            self.polls,
            settle=self.notifier.settle,
            writeback=options.writeback,
        )
        #: Set when the host has unmounted us.
        self.ended = trio.Event()
        self._unmounts = HookKnote(VQ_UNMOUNT, self._unmounted)
        self.mounted = False
        self._fd = -1
        self._connection = ""

    def owners(self) -> tuple[object, ...]:
        """The objects whose sysctls and statistics the kernel shows."""
        return (
            self.nodes,
            self.attrs,
            self.context,
            self.context.workers,
            self.watcher,
            self.notifier,
        )

    def _abort_sleep(self, td: Thread, error: int) -> bool:
        done: list[bool] = []
        td.cpu.interrupt(lambda: done.append(abort_sleep(td, error)))
        return bool(done and done[0])

    def mount(self) -> None:
        """Attach to the host. Blocks until fusermount3 is done. Raises `MountError`."""
        options = self.options
        host.check_fuse()
        if host.clear_stale(options.mountpoint):
            _log.info("cleared the stale mount on %s", options.mountpoint)
        host.check(options.mountpoint, nonempty=options.nonempty)
        root = self.vfs.mounts.root
        assert root is not None, "the root is mounted at boot"
        rootvp = root.ops.vfs_root(root)
        self.nodes.set_root(root, rootvp)
        self.vfs.hostcache = self.notifier
        before = host.fuse_descriptors()
        try:
            pyfuse3.init(self.ops, options.mountpoint, options.fuse_options())
        except RuntimeError as error:
            self.vfs.hostcache = None
            self.nodes.discard(self.nodes.by_id[pyfuse3.ROOT_INODE])
            rootvp.rele()
            raise MountError(
                "fuse", f"the host refused to mount on {options.mountpoint} ({error})"
            ) from None
        self.vfs.mounts.fs_klist.insert(self._unmounts)
        self.mounted = True
        self._fd = min(host.fuse_descriptors() - before, default=-1)
        self._connection = host.connection_of(options.mountpoint)
        host.set_max_background(self._connection, options.max_parked)

    def _unmounted(self, note: HookKnote) -> None:
        """A mount inside has gone: what the host has open of it fails from now on."""
        note.take()
        self.notifier.unmounted()
        mounted = self.vfs.mounts.get
        for opened in self.ops.files.values():
            mount = opened.node.mount
            if mounted(mount.index) is not mount:
                opened.gone = True

    def _host_gone(self) -> bool:
        """Whether the host has unmounted or aborted: nobody waits for an answer any more."""
        return self._fd >= 0 and host.is_disconnected(self._fd)

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer requests until the host unmounts; then close what it left open."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.watcher.run)
                self.notifier.start()
                task_status.started()
                await self.context.workers.run()
                nursery.cancel_scope.cancel()
        finally:
            self._end()

    def _end(self) -> None:
        """Take everything down, whatever ended the session. Needs no answer from the host.

        The connection is broken first: a message of the notifier may wait in the host for a lock
        that a request holds which nobody will answer any more.
        """
        self.context.close()
        self.vfs.mounts.fs_klist.remove(self._unmounts)
        if not self._host_gone():
            host.abort(self._connection)
        self.notifier.stop()
        self.vfs.hostcache = None
        still_mounted = self.mounted and host.mounted_at(self.options.mountpoint) is not None
        self._fd = -1
        pyfuse3.close(unmount=still_mounted)
        if still_mounted:
            host.detach_quietly(self.options.mountpoint, self._connection)
        self.mounted = False
        cpu = next((cpu for cpu in self.lwkt.cpus if cpu.lendable), None)
        if cpu is not None:
            td = cpu.borrow()
            try:
                self._release_all()
            finally:
                cpu.unborrow(td)
        self.ended.set()

    def _release_all(self) -> None:
        """Close what the host left open, and forget every number. A panicked kernel skips this."""
        for opened in list(self.ops.files.values()):
            try:
                kern_close(opened.file)
            except KError as error:
                _log.warning("closing a file at unmount: %s", error)
        self.ops.files.clear()
        self.attrs.clear()
        self.nodes.unmounted()
        root = self.nodes.by_id.get(pyfuse3.ROOT_INODE)
        rootvp = root.vp if root is not None else None
        for node in list(self.nodes.by_id.values()):
            self.nodes.discard(node)
        if rootvp is not None:
            rootvp.rele()

    async def unmount(self, *, lazy: bool = False) -> None:
        """Ask the host to unmount, serving meanwhile; `ended` is set once it has.

        Raises `MountError` "busy" naming the processes that hold the mount.
        """
        if not self.mounted:
            return
        path = self.options.mountpoint
        try:
            await trio.to_thread.run_sync(lambda: host.detach(path, lazy=lazy))
        except MountError as error:
            if error.kind != "busy":
                raise
            who = await trio.to_thread.run_sync(host.holders, path)
            names = ", ".join(f"{command} ({pid})" for pid, command in who) or "nobody I can see"
            raise MountError("busy", f"{path} is in use by {names}") from None

    def statistics(self) -> dict[str, Any]:
        """The statistics of every part, by name."""
        return {
            "nodes": self.nodes.statistics(),
            "requests": self.context.statistics(),
            "workers": self.context.workers.statistics(),
            "notifier": self.notifier.statistics(),
            "watcher": self.watcher.statistics(),
            "polls": self.polls.statistics(),
        }
