"""A mounted kernel: the connections to the host from their making to the last forget.

The session makes the parts (requests' contexts, notifier, watcher), has pyfuse3 mount the root,
serves until the host has unmounted, and leaves nothing behind: every open file is closed and every
node forgotten, whatever ended the session.

Two transports serve requests. ``device`` speaks the protocol itself and gives each of our mounts a
connection of its own, so that the host sees it as a file system: its figures, its flags, its
limits and its caches. They are attached after the root, outer before inner, and detached the other
way round. ``pyfuse3`` leaves the serving to pyfuse3; everything rides on one connection, as it does
with ``onemount``.

A mount made later gets its connection then, and loses it when it is unmounted inside. One that
the host refuses to attach, or that was unmounted on the host alone, is seen through the connection
around it.

Counterpart: vfs_mountroot for the host's side; fuse_session of libfuse.
Invariants: `serve` returns only when nothing of the mount is left; the host's view of our root is
the mount list's root at the time of `mount`.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs
import pyfuse3
import trio

from dfuser.libkern.klist import HookKnote
from dfuser.libkern.sysctl import CtlFlag, Sysctl
from dfuser.lwkt.synch import abort_sleep
from dfuser.vfs.lockf import PosixLocks
from dfuser.vfs.mountflags import MNT, VQ_MOUNT, VQ_UNMOUNT

from . import mountpoint as host
from .device.connection import DeviceConnection
from .device.fusermount import attach, host_flags, host_options, told_flags
from .device.loop import DeviceLoop
from .hostlocks import OWNERS_MAX, HostLocks
from .mountpoint import MountError
from .notify import Notifier
from .request import RequestContext
from .stock.connection import StockConnection, close_mount, open_mount
from .trace import FuseTrace
from .views import ConnectionViews
from .watcher import SignalWatcher

if TYPE_CHECKING:
    from dfuser.kern.proc import ProcTable
    from dfuser.libkern.errno import Panic
    from dfuser.lwkt.machine import Lwkt
    from dfuser.lwkt.thread import Thread
    from dfuser.vfs.mount import Mount
    from dfuser.vfs.vfs import Vfs

    from .connection import Connection

_log = logging.getLogger(__name__)

#: The transports, the default first.
TRANSPORTS: Final = ("device", "pyfuse3")
#: Longest that a command waits for mounts to be attached or detached, in seconds.
CHANGE_SECONDS: Final = 5


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
    transport: str = TRANSPORTS[0]
    """Who serves: "device" or "pyfuse3"."""
    onemount: bool = False
    """Show every mount through the root's connection."""
    noopen: bool = False
    """No OPEN requests for file systems that need none: faster; opens are not seen inside, and
    locks are the host's."""
    noxattr: bool = False
    """No extended attributes and access control lists: saves a request or two for every file."""

    def common_options(self) -> set[str]:
        """What holds for every connection."""
        options = {"default_permissions"}
        allowed = host.may_allow_other()
        if self.allow_other and not allowed:
            raise MountError(
                "permission",
                "allow_other needs the line 'user_allow_other' in /etc/fuse.conf, or root",
            )
        if allowed and self.allow_other is not False:
            options.add("allow_other")
        return options

    def fuse_options(self) -> set[str]:
        """The option set for pyfuse3. Raises `MountError`."""
        options = self.common_options() | {f"fsname={self.fsname}", "subtype=dfuser"}
        if self.read_only:
            options.add("ro")
        return options


class FuseSession:
    """A kernel's connections to the host.

    Args:
        vfs: what is served; its root must be mounted.
        lwkt: the machine that requests run on.
        procs: where parked requests become processes.
        options: how to mount.
        report: called with an operation's name and a traceback when a request meets a bug.
        on_panic: called when a request panics the kernel.
        posixlocks: the kernel's count of record locks.
    """

    sysctl_nodes = Sysctl("vfs.fuse.nodes", "nodeids the host holds", getter="_count_nodes")
    sysctl_revived = Sysctl(
        "vfs.fuse.revived",
        "nodeids whose vnode had been reclaimed and was fetched again",
        getter="_count_revived",
    )
    sysctl_attr_limit = Sysctl(
        "vfs.fuse.attr_limit",
        "packed attribute records kept by each connection",
        attr="attr_limit",
        flags=CtlFlag.RW,
        minimum=0,
        maximum=10_000_000,
    )
    sysctl_attr_packed = Sysctl(
        "vfs.fuse.attr_packed", "attribute records packed", getter="_count_packed"
    )
    sysctl_connections = Sysctl(
        "vfs.fuse.connections", "mounts of the host that are served", getter="_count_connections"
    )

    sysctl_lock_owners = Sysctl(
        "vfs.fuse.lock_owners",
        "processes and open files of the host that hold locks",
        getter="_count_lock_owners",
    )
    sysctl_lock_limit = Sysctl(
        "vfs.fuse.lock_owners_limit",
        "how many there may be on each connection",
        attr="lock_owners_limit",
        flags=CtlFlag.RW,
        minimum=1,
        maximum=10_000_000,
    )
    sysctl_lock_requests = Sysctl(
        "vfs.fuse.lock_requests", "lock requests of the host", getter="_count_lock_requests"
    )

    def __init__(
        self,
        vfs: Vfs,
        lwkt: Lwkt,
        procs: ProcTable,
        options: SessionOptions,
        report: Callable[[str, str], None],
        on_panic: Callable[[Panic], None],
        posixlocks: PosixLocks | None = None,
    ) -> None:
        self.vfs = vfs
        self.lwkt = lwkt
        self.options = options
        self.posixlocks = posixlocks or PosixLocks()
        self._lock_limit = OWNERS_MAX
        self.trace = FuseTrace(lwkt.clock.monotonic_ns, lwkt.clock.realtime_ns, report)
        self.trace.fed = options.transport != "pyfuse3"
        self.watcher = SignalWatcher(
            self._abort_sleep, lwkt.clock.monotonic_ns, lost=self._host_gone
        )
        self.context = RequestContext(
            lwkt, procs, self.watcher, report, on_panic, options.max_parked
        )
        procs.caller = self.context.caller
        self.notifier = Notifier(
            self.connections, self.context, first=self._unchanging, flags=self._flags_changed
        )
        self.loop = DeviceLoop()
        #: Requests of connections that have ended.
        self._past: Counter[str] = Counter()
        self.context.count = self.served
        #: Mounts, by index, that were given a connection: what loses it does not get another.
        self._known: set[int] = set()
        #: Connections that were detached and live on for what is open there.
        self._lingering: list[DeviceConnection] = []
        #: Mounts that have, or are about to get, a connection of their own, by index.
        self._own: dict[int, DeviceConnection | None] = {}
        self.root = self._make_root()
        #: Set when the host has unmounted us.
        self.ended = trio.Event()
        self._mounts = HookKnote(VQ_MOUNT, self._mounted_inside)
        self._unmounts = HookKnote(VQ_UNMOUNT, self._unmounted_inside)
        self._nursery: trio.Nursery | None = None
        self._changing = 0
        self._unchanged = trio.Event()
        self._leaving = False
        self._follows = False
        self.mounted = False

    def _make_root(self) -> Connection:
        mount = self.vfs.mounts.rootnch.mount
        if self.options.transport == "pyfuse3":
            return StockConnection(
                self.vfs, self.context, mount, self.options.mountpoint, self._separate,
                self.settle, writeback=self.options.writeback,
            )  # fmt: skip
        return self._make(mount, self.options.mountpoint)

    def _make(self, mount: Mount, path: str) -> DeviceConnection:
        options = self.options
        locks = HostLocks(self.posixlocks)
        locks.limit = self._lock_limit
        return DeviceConnection(
            self.vfs, self.context, mount, path, self._separate, self.settle, self._settled,
            self.trace, locks, host_flags=host_flags(mount),
            writeback=options.writeback, noopen=options.noopen, noxattr=options.noxattr,
            max_background=options.max_parked,
        )  # fmt: skip

    # --- views -----------------------------------------------------------------------------

    def connections(self) -> Iterator[Connection]:
        """Every connection, the root's first, outer before inner."""
        yield self.root
        for connection in tuple(self._own.values()):
            if connection is not None:
                yield connection
        yield from tuple(self._lingering)

    def owners(self) -> tuple[object, ...]:
        """The objects whose sysctls and statistics the kernel shows."""
        own: tuple[object, ...] = self.loop.sysctl_owners()
        if isinstance(self.root, StockConnection):
            own = (self.root.workers,)
        return (
            self, ConnectionViews(self.connections), self.context, self.watcher, self.notifier,
            self.trace, *own,
        )  # fmt: skip

    def _count_nodes(self) -> int:
        return sum(len(connection.nodes.by_id) for connection in self.connections())

    def _count_revived(self) -> int:
        return sum(connection.nodes.revived for connection in self.connections())

    def _count_packed(self) -> int:
        return sum(connection.attrs.packed for connection in self.connections())

    def _count_connections(self) -> int:
        return sum(1 for _ in self.connections())

    def _locks(self) -> Iterator[HostLocks]:
        """The lock tables of all connections that serve locks."""
        for connection in self.connections():
            if isinstance(connection, DeviceConnection):
                yield connection.locks

    def _count_lock_owners(self) -> int:
        return sum(len(locks.owners) for locks in self._locks())

    def _count_lock_requests(self) -> int:
        return sum(locks.requests for locks in self._locks())

    @property
    def lock_owners_limit(self) -> int:
        """Lock owners that each connection may have."""
        return self._lock_limit

    @lock_owners_limit.setter
    def lock_owners_limit(self, limit: int) -> None:
        self._lock_limit = limit
        for locks in self._locks():
            locks.limit = limit

    def served(self) -> Counter[str]:
        """Requests so far by operation, as ``lookup``, on all connections there were."""
        total = Counter(self._past)
        for connection in self.connections():
            total.update(connection.served())
        return total

    @property
    def attr_limit(self) -> int:
        """Packed attribute records that each connection keeps."""
        return self.root.attrs.limit

    @attr_limit.setter
    def attr_limit(self, limit: int) -> None:
        for connection in self.connections():
            connection.attrs.limit = limit

    def statistics(self) -> dict[str, Any]:
        """The statistics of every part, by name."""
        return {
            "requests": self.context.statistics(),
            "notifier": self.notifier.statistics(),
            "watcher": self.watcher.statistics(),
            "trace": self.trace.statistics(),
            "loop": self.loop.statistics(),
            "connections": {
                connection.name: connection.statistics() for connection in self.connections()
            },
        }

    # --- mounting --------------------------------------------------------------------------

    def _abort_sleep(self, td: Thread, error: int) -> bool:
        done: list[bool] = []
        td.cpu.interrupt(lambda: done.append(abort_sleep(td, error)))
        return bool(done and done[0])

    def mount(self) -> None:
        """Attach the root to the host. Blocks until fusermount3 is done. Raises `MountError`."""
        options = self.options
        host.check_fuse()
        if host.clear_stale(options.mountpoint):
            _log.info("cleared the stale mount on %s", options.mountpoint)
        host.check(options.mountpoint, nonempty=options.nonempty)
        root = self.root
        self._in_context(root.take_root)
        self.vfs.hostcache = self.notifier
        stock = isinstance(root, StockConnection)
        handlers = root.handlers if isinstance(root, StockConnection) else pyfuse3.Operations()
        try:
            root.fd = open_mount(handlers, options.mountpoint, options.fuse_options())
        except MountError:
            self.vfs.hostcache = None
            self._in_context(root.release_all)
            raise
        self.vfs.mounts.fs_klist.insert(self._unmounts)
        self.mounted = True
        root.number = host.connection_of(options.mountpoint)
        if stock:
            host.set_max_background(root.number, options.max_parked)
        elif self._nests():
            self._own = {mount.index: None for mount in self._inner()}
            self.vfs.mounts.fs_klist.insert(self._mounts)
            self._follows = True

    def _nests(self) -> bool:
        """Whether mounts inside get connections of their own.

        fusermount3 acts for an ordinary user with root's rights, and the host keeps such a program
        out of a mount that only its owner may enter.
        """
        if self.options.onemount:
            return False
        if os.geteuid() and "allow_other" not in self.options.common_options():
            _log.info("without allow_other every mount is shown through the root's")
            return False
        return True

    def _inner(self) -> list[Mount]:
        """Our mounts but the root, outer before inner."""
        return [mount for mount in self.vfs.mounts if mount is not self.root.mount]

    def _in_context(self, fn: Callable[[], None]) -> None:
        """Run ``fn`` in a borrowed kernel context; not at all when the kernel has panicked."""
        cpu = next((cpu for cpu in self.lwkt.cpus if cpu.lendable), None)
        if cpu is None:
            return
        td = cpu.borrow()
        try:
            fn()
        finally:
            cpu.unborrow(td)

    def _separate(self, mount: Mount) -> bool:
        """Whether a mount has a connection of its own, or is about to get one."""
        return mount.index in self._own

    def _host_gone(self) -> bool:
        """Whether the host has unmounted or aborted: nobody waits for an answer any more."""
        return self.root.is_gone()

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer requests until the host unmounts; then close what it left open.

        Tells ``task_status`` when every mount is attached.
        """
        started = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.watcher.run)
                self.notifier.start()
                if isinstance(self.root, DeviceConnection):
                    self._nursery = nursery
                    self.loop.start()
                    nursery.start_soon(self._serve_root, nursery.cancel_scope)
                    self._changing += 1
                    await self._changed(self._attach_all, None)
                started = True
                task_status.started()
                if not isinstance(self.root, DeviceConnection):
                    await self.root.serve()
                    nursery.cancel_scope.cancel()
        finally:
            self._end()
            if not started:
                # Unmounted before everything was attached: an end like any other.
                task_status.started()

    async def _serve_root(self, everything: trio.CancelScope) -> None:
        assert isinstance(self.root, DeviceConnection)
        await self.loop.run(self.root)
        everything.cancel()

    # --- connections of their own ----------------------------------------------------------

    async def _attach_all(self, _subject: object) -> None:
        """Give every mount its connection, unless we are told to leave meanwhile."""
        for mount in self._inner():
            if self._separate(mount) and self._own[mount.index] is None and not self._leaving:
                await self._attach(mount)

    async def _attach(self, mount: Mount) -> None:
        """Give a mount its connection. On failure it is seen through the one around it."""
        path = self.host_path(mount)
        self._own[mount.index] = None
        self._known.add(mount.index)
        connection = self._make(mount, path)
        common = sorted(self.options.common_options())
        if self.options.read_only and not mount.flag & MNT.RDONLY:
            common.append("ro")
        connection.told = told_flags(mount)
        options = host_options(mount, common)
        try:
            connection.fd = await self._attach_host(path, options)
        except (MountError, OSError) as error:
            if not self._host_gone():
                _log.warning("%s is shown through the mount around it: %s", mount.onname, error)
            del self._own[mount.index]
            self._name_changed(mount)
            return
        connection.number = host.connection_of(path)
        if self.vfs.mounts.get(mount.index) is not mount or self._nursery is None:
            self._own.pop(mount.index, None)
            await self._detach(connection)
            connection.shut()
            return
        self._in_context(partial(connection.take_root, hold=False))
        self._own[mount.index] = connection
        self._nursery.start_soon(self._serve_inner, connection)

    @staticmethod
    async def _attach_host(path: str, options: str) -> int:
        """`attach` in a thread, which is left behind when the session ends meanwhile."""
        left = False

        def work() -> int:
            fd = attach(path, options)
            if left:
                os.close(fd)
            return fd

        try:
            return await trio.to_thread.run_sync(work, abandon_on_cancel=True)
        except trio.Cancelled:
            left = True
            raise

    async def _serve_inner(self, connection: DeviceConnection) -> None:
        try:
            await self.loop.run(connection)
            # Aborted, not unmounted: the dead mount is still there.
            await self._detach(connection)
        finally:
            self._part(connection)

    def _part(self, connection: DeviceConnection) -> None:
        """A connection inside has ended."""
        index = connection.mount.index
        if connection in self._lingering:
            self._lingering.remove(connection)
        if self._own.get(index) is connection:
            if self._leaving:
                self._own[index] = None
            else:
                del self._own[index]
        self._past.update(connection.served())
        self.notifier.gone(connection)
        if not connection.is_gone():
            host.abort(connection.number)
        self._in_context(connection.release_all)
        connection.shut()
        if not self._separate(connection.mount) and not self._leaving:
            self._name_changed(connection.mount)

    def _name_changed(self, mount: Mount) -> None:
        """The name that ``mount`` is mounted on means something else for the host now."""
        on = mount.ncmounton
        if on is not None and on.ncp.parent is not None and on.ncp.parent.vp is not None:
            self.notifier.entry_changed(on.ncp.parent.vp, on.ncp.name)

    def host_path(self, mount: Mount) -> str:
        """Where the host sees a mount."""
        return os.path.normpath(self.options.mountpoint + "/" + mount.onname)

    def _mounted_inside(self, note: HookKnote) -> None:
        """Something was mounted: give it its connection."""
        note.take()
        for mount in self._inner():
            new = not self._separate(mount) and mount.index not in self._known
            if new and self._nursery is not None:
                self._own[mount.index] = None
                self._change(self._attach, mount)

    def _unmounted_inside(self, note: HookKnote) -> None:
        """A mount inside has gone: what the host has open of it fails from now on."""
        note.take()
        self.notifier.unmounted()
        for connection in self.connections():
            connection.unmounted_inside()
        mounted = self.vfs.mounts.get
        for index, own in list(self._own.items()):
            if mounted(index) is None and own is not None and self._nursery is not None:
                self._change(self._detach, own)

    @staticmethod
    async def _detach(connection: Connection) -> None:
        """Take a connection off the host's tree, if it is still there.

        It goes on answering (ESTALE) for what is still open, and ends with the last of it. Done
        once: the next mount on that path may get the same number.
        """
        if connection.detached:
            return
        connection.detached = True
        await trio.to_thread.run_sync(
            host.detach_quietly, connection.path, connection.number, abandon_on_cancel=True
        )

    def _flags_changed(self, mount: Mount) -> None:
        """The flags of a mount are others: the host gets it anew if it was told otherwise."""
        own = self._own.get(mount.index)
        if own is not None and own.told != told_flags(mount) and self._nursery is not None:
            self._change(self._reattach, own)

    async def _reattach(self, connection: DeviceConnection) -> None:
        """Detach a mount and attach it with its flags of now. What is open stays with the old."""
        mount = connection.mount
        self._lingering.append(connection)
        self._own[mount.index] = None
        await self._detach(connection)
        await self._attach(mount)

    def _change(self, change: Callable[[Any], Any], subject: object) -> None:
        """Attach or detach in the background; commands wait for it (`settle`)."""
        assert self._nursery is not None
        self._changing += 1
        self._nursery.start_soon(self._changed, change, subject)

    async def _changed(self, change: Callable[[Any], Any], subject: object) -> None:
        """Do what was counted as a change."""
        try:
            await change(subject)
        finally:
            self._changing -= 1
            if not self._changing:
                done, self._unchanged = self._unchanged, trio.Event()
                done.set()

    def _settled(self) -> bool:
        """Whether the host knows of every change."""
        return not self._changing and not self.notifier.busy

    async def settle(self) -> None:
        """Wait, a bounded time, until the host knows of every change and every mount."""
        await self.notifier.settle()

    async def _unchanging(self) -> None:
        """Wait, a bounded time, until nothing is being attached or detached."""
        with trio.move_on_after(CHANGE_SECONDS):
            while self._changing:
                await self._unchanged.wait()

    # --- the end ---------------------------------------------------------------------------

    def _end(self) -> None:
        """Take everything down, whatever ended the session. Needs no answer from the host.

        The connections are broken first: a message of the notifier may wait in the host for a lock
        that a request holds which nobody will answer any more.
        """
        self._nursery = None
        self.context.close()
        self.loop.stop()
        klist = self.vfs.mounts.fs_klist
        klist.remove(self._unmounts)
        if self._follows:
            klist.remove(self._mounts)
        everybody = list(self.connections())
        for connection in reversed(everybody):
            if not connection.is_gone():
                host.abort(connection.number)
        self.notifier.stop()
        self.vfs.hostcache = None
        for connection in reversed(everybody):
            if connection is not self.root:
                connection.shut()
        self._own.clear()
        self._close_root()
        self.mounted = False
        for connection in everybody:
            self._in_context(connection.release_all)
        self.ended.set()

    def _close_root(self) -> None:
        """Give the root's descriptor back, which is pyfuse3's, and its mount with it."""
        if self.mounted:
            self.root.fd = -1
            close_mount(self.root)

    async def unmount(self, *, lazy: bool = False) -> None:
        """Ask the host to unmount, serving meanwhile; `ended` is set once it has.

        The mounts inside go first; if one of them, or the root, is in use, all are attached again.
        With ``lazy`` the whole tree is taken out of sight at once, whoever is inside.

        Raises `MountError` "busy" naming the processes that hold the mount.
        """
        if not self.mounted:
            return
        self._leaving = True
        await self._unchanging()
        try:
            if not lazy:
                await self._leave_inner()
            await trio.to_thread.run_sync(self._detach_host, self.options.mountpoint, lazy)
        except MountError as error:
            self._leaving = False
            self._changing += 1
            await self._changed(self._attach_all, None)
            if error.kind != "busy":
                raise
            path = self.options.mountpoint
            who = await trio.to_thread.run_sync(host.holders, path)
            names = ", ".join(f"{command} ({pid})" for pid, command in who) or "nobody I can see"
            raise MountError("busy", f"{path} is in use by {names}") from None

    async def _leave_inner(self) -> None:
        """Detach every mount inside, inner before outer. Raises `MountError` "busy"."""
        for connection in reversed([*self.connections()][1:]):
            await trio.to_thread.run_sync(self._detach_host, connection.path, False)
            connection.detached = True
            assert isinstance(connection, DeviceConnection)
            with trio.move_on_after(CHANGE_SECONDS):
                await connection.ended.wait()

    @staticmethod
    def _detach_host(path: str, lazy: bool) -> None:
        host.detach(path, lazy=lazy)
