"""The Kernel: everything that one booted dfuser is made of.

Nothing in the project lives outside a `Kernel`, so a test process can boot many. Starting goes in
the order that SYSINIT gives: the objects are made (nothing runs yet), the steps they declare are
run stage by stage, and then the CPUs are let go. Stopping is the same way back: the world is
synced, the daemons end, file systems are unmounted last to first, memory is given back.

Two ways to run one:

* `Kernel.run` under trio: real time, task threads, a host that can mount it;
* `Kernel.boot` alone: no event loop; a test steps it with ``kernel.lwkt.run_until_idle`` on a fake
  host's virtual clock, in an order a seed chooses.

Counterpart: sys/kern/init_main.c, kern_shutdown.c; platform/vkernel64/platform/init.c.
Token/lock order: takes none; runs before and after all others.
Invariants: `stop` may be called in any state and more than once; after it nothing of the kernel is
left: no thread, no page, no mount, no alarm.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final, cast

import trio

import dfuser
from dfuser.dev.devlist import DevList
from dfuser.hw.clock import Alarm, HostClock
from dfuser.hw.host import Host
from dfuser.kern.proc import ProcTable
from dfuser.kern.procsig import cursig
from dfuser.libkern.ddbcmd import DdbCommands
from dfuser.libkern.errno import EINVAL, ENOENT, KError, Panic
from dfuser.libkern.ktr import Ktr
from dfuser.libkern.log import LOG_CRIT, LOG_ERR, LOG_INFO, LOG_WARNING, MsgBuf
from dfuser.libkern.sysctl import SysctlTree
from dfuser.libkern.sysinit import Sysinit, shutdown_steps, startup_steps
from dfuser.lwkt import thread as lwkt_thread
from dfuser.lwkt.callout import callwheel
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.msgport import ports_of
from dfuser.lwkt.sleepq import synch_of
from dfuser.lwkt.taskqueue import TaskQueues
from dfuser.lwkt.thread import TDPRI
from dfuser.vfs.bio import BufCache
from dfuser.vfs.lockf import PosixLocks
from dfuser.vfs.vfs import Vfs
from dfuser.vfs.vnodetable import default_maxvnodes
from dfuser.vm.page import VmPages

from . import panic as _panic
from .config import Config
from .world import World

#: States of a kernel, in order.
NEW: Final = "new"
BOOTED: Final = "booted"
RUNNING: Final = "running"
PANICKED: Final = "panicked"
STOPPED: Final = "stopped"


class Kernel:
    """One kernel.

    Args:
        config: what to boot.
        host: the machine; the real one by default. The kernel closes it.
    """

    def __init__(self, config: Config | None = None, host: Host | None = None) -> None:
        self.config = config or Config()
        self.host = host or Host.open(self.config.memory, self._alarm_failed)
        self.version = f"dfuser {dfuser.__version__}"
        self.state = NEW
        self.panic_dump: Path | None = None
        self.panic_reason = ""
        self.failures = 0
        self._made_at = self.host.clock.monotonic_ns()
        self._stop_requested: trio.Event | None = None
        #: The wait for the threads to end; a panic among them stops the CPUs, so it begins anew.
        self._ending = trio.CancelScope()
        self._on_panic: list[Callable[[], None]] = []
        self._make()

    # --- construction ----------------------------------------------------------------------

    def _make(self) -> None:
        """Make every object; nothing runs, nothing is mounted."""
        config, host = self.config, self.host
        ncpu = host.cpus.ncpu(config.ncpu or None)
        seed = config.seed
        self.rng = random.Random(
            seed if seed is not None else int.from_bytes(host.entropy.read(8), "little")
        )
        self.sysctl = SysctlTree()
        self.msgbuf = MsgBuf()
        self.ktr = Ktr(ncpu, host.clock)
        self.ddb = DdbCommands()
        self.lwkt = Lwkt(ncpu, host.clock, self.ktr, self.msgbuf, on_failure=self._failed)
        self.synch = synch_of(self.lwkt)
        self.synch.cursig = cursig
        self.taskqueues = TaskQueues(self.lwkt)
        self.pages = VmPages(host.physmem)
        self.procs = ProcTable(host.clock)
        self.devices = DevList()
        self.posixlocks = PosixLocks()
        self.vfs = Vfs(
            lwkt=self.lwkt,
            clock=host.clock,
            pages=self.pages,
            ktr=self.ktr,
            msgbuf=self.msgbuf,
            maxvnodes=config.maxvnodes or default_maxvnodes(config.memory, self.procs.maxproc),
        )
        self.bufs = BufCache(self.pages, host.clock, self.vfs.syncer)
        self.world = World(self)
        self._owners: list[object] = [
            self.msgbuf, *self.lwkt.sysctl_owners(), self.lwkt.tokens, self.synch,
            ports_of(self.lwkt),
            *(callwheel(cpu) for cpu in self.lwkt.cpus), self.taskqueues,
            self.pages, self.procs, self.devices, self.posixlocks, *self.vfs.sysctl_owners(),
            self.bufs, self.world, *self.world.owners(),
        ]  # fmt: skip
        self._steps: list[Sysinit] = []

    def owners(self) -> Iterator[object]:
        """Every object that declares sysctls, trace points, commands or start-up steps."""
        return iter(self._owners)

    def add_owner(self, owner: object) -> None:
        """Show what ``owner`` declares; for parts that come after boot (the bridge, the socket)."""
        self._owners.append(owner)
        self._declare(owner)

    def remove_owner(self, owner: object) -> None:
        """The opposite of `add_owner`."""
        self._owners.remove(owner)
        self.sysctl.unregister(owner)
        self.ddb.unregister(owner)

    def _declare(self, owner: object) -> None:
        self.sysctl.register(owner)
        self.ddb.register(owner)
        self.ktr.declare(type(owner))

    # --- starting --------------------------------------------------------------------------

    def boot(self) -> None:
        """Run every start-up step. Needs no event loop.

        Raises:
            KError: a mount fails, or a setting of the configuration cannot be applied.
        """
        self.ktr.attach(self.sysctl)
        for owner in self._owners:
            self._declare(owner)
        self._steps = startup_steps(self._owners)
        self.in_context(self._run_steps)
        self._apply_settings()
        self.state = BOOTED
        cpus, memory = len(self.lwkt.cpus), self.config.memory >> 20
        root = self.vfs.mounts.rootnch.mount.fromname
        self.log(f"{self.version}: {cpus} CPUs, {memory} MiB, root on {root}")

    def _apply_settings(self) -> None:
        """Set the variables and switch on the trace masters that the configuration names."""
        for name, value in self.config.sysctl.items():
            try:
                self.sysctl.set(name, value)
            except KError as error:
                text = f"sysctl {name} = {value}: {error.strerror}"
                raise KError(error.errno or EINVAL, text) from None
        for name in self.config.ktr:
            if name not in self.ktr.masters:
                known = ", ".join(sorted(self.ktr.masters))
                raise KError(ENOENT, f"there is no trace master {name!r}; there are {known}")
            self.ktr.master(name).mask = -1

    def _run_steps(self) -> None:
        for step in self._steps:
            step.func()

    def in_context(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Run ``fn`` synchronously in a borrowed kernel context on CPU 0 and return its result.

        A `Panic` stops the kernel and is raised on to the caller.
        """
        td = self.lwkt.cpus[0].borrow()
        try:
            return fn(*args)
        except Panic as exc:
            self.panic("request", exc)
            raise
        finally:
            td.cpu.unborrow(td)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Boot if that has not been done, let the CPUs go, and live until `request_stop`."""
        if self.state == NEW:
            self.boot()
        self._stop_requested = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                clock = self.host.clock
                if isinstance(clock, HostClock):
                    await nursery.start(clock.run)
                await self.lwkt.start(nursery)
                self.lwkt.default_driver = "task"
                self.state = RUNNING
                self.in_context(self.world.start_daemons)
                self.in_context(self.bufs.start, self._daemon)
                task_status.started()
                await self._stop_requested.wait()
                with self._ending:
                    await self._stop_threads()
                if self.state == PANICKED:
                    await self.lwkt.shutdown()
                nursery.cancel_scope.cancel()
        finally:
            self.stop()

    def request_stop(self) -> None:
        """Ask `run` to end. Safe to call more than once."""
        if self._stop_requested is not None:
            self._stop_requested.set()

    def _daemon(self, fn: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        """Make a thread of the kernel's own."""
        self.lwkt.create(fn, name=name, pri=TDPRI.KERN_DAEMON, cpu=0)

    # --- stopping --------------------------------------------------------------------------

    async def _stop_threads(self) -> None:
        try:
            if self.state != PANICKED:
                self.in_context(self.vfs.sync_all)
            await self.lwkt.shutdown()
        except Panic as exc:
            self.panic("stopping", exc)

    def stop(self) -> None:
        """Take the kernel down from any state; leaves nothing. Idempotent."""
        if self.state == STOPPED:
            return
        if self.state != PANICKED:
            try:
                self.lwkt.shutdown_nowait()
                self.in_context(self._unmount_all)
                self.in_context(self._run_shutdown)
            except Panic as exc:
                self.panic("stopping", exc)
        if self.lwkt.panicked is not None:
            self.lwkt.shutdown_nowait()
        self.state = STOPPED
        self.host.close()
        current: lwkt_thread.Thread | None = lwkt_thread.curthread
        if current is not None and current.cpu.lwkt is self.lwkt:
            lwkt_thread.curthread = cast("lwkt_thread.Thread", None)

    def _run_shutdown(self) -> None:
        for step in shutdown_steps(self._owners):
            step.func()

    def _unmount_all(self) -> None:
        for mp, error in self.vfs.mounts.unmountall():
            self.log(f"unmount of {mp.onname}: {error}", LOG_WARNING)
        self.vfs.close()
        self.bufs.close()

    # --- trouble ---------------------------------------------------------------------------

    def log(self, text: str, level: int = LOG_INFO) -> None:
        """A line in the kernel log."""
        self.msgbuf.log(level, text + "\n")

    def report(self, where: str, text: str) -> None:
        """A bug met in ``where`` that cost one request, and no more."""
        self.failures += 1
        self.log(f"{where}: {text}", LOG_ERR)

    def on_panic(self, fn: Callable[[], None]) -> None:
        """Call ``fn`` once if this kernel panics (the mount is taken away there)."""
        self._on_panic.append(fn)

    def _failed(self, where: str, exc: BaseException) -> None:
        """A kernel thread or interrupt handler died: that is a panic."""
        self.panic(where, exc)

    def _alarm_failed(self, _alarm: Alarm, exc: Exception) -> None:
        self.panic("clock interrupt", exc)

    def panic(self, where: str, exc: BaseException) -> None:
        """Stop the kernel for a broken invariant: stop the CPUs, dump, tell who must know."""
        if self.state in (PANICKED, STOPPED):
            return
        self.state = PANICKED
        self.lwkt.note_panic(lwkt_thread.curthread, exc)
        self.panic_reason = f"{where}: {exc}"
        self.log(f"panic: {exc} (in {where})", LOG_CRIT)
        self.log("".join(traceback.format_exception(exc)), LOG_CRIT)
        self.ktr.stop()
        self.panic_dump = _panic.write(self, where, exc)
        for fn in self._on_panic:
            fn()
        self.request_stop()
        self._ending.cancel()

    def panicked(self, exc: Panic) -> None:
        """`panic` for a `Panic` met while serving a request."""
        self.panic("request", exc)

    # --- views -----------------------------------------------------------------------------

    def uptime(self) -> float:
        """Seconds since this kernel was made."""
        return (self.host.clock.monotonic_ns() - self._made_at) / 1e9
