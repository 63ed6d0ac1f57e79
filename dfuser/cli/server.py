"""The process that runs a mounted kernel; shared by demo, mount and run.

Life of a server: the mount point is checked, the kernel boots, its CPUs run, the host mounts it,
the control socket and the instance file appear, and then everybody is told that it is ready. It
ends when the host has unmounted, whoever asked: ``dfuser umount``, ``fusermount3 -u``, a signal.

* SIGINT: sync and unmount; if somebody holds the mount say who, and stay. A second one unmounts all
  the same, and whoever is inside gets errors.
* SIGTERM: sync and unmount; if it is held, unmount all the same.
* SIGUSR1: threads and tokens into the log. SIGHUP: open the log file again.
* A panic takes the mount away and ends the process with `ExitCode.PANIC`.

Whatever ends it, nothing is left: no mount, no socket, no instance file, no thread.

Counterpart: the process of a vkernel; sys/platform/vkernel64.
Invariants: the mount goes before the kernel; the loop's thread never touches the mount.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import trio

from dfuser.boot.config import ConfigError
from dfuser.boot.kernel import Kernel
from dfuser.client.instances import register, sweep, unregister
from dfuser.ctl.hostjob import HostJobs
from dfuser.ctl.server import ControlSocket
from dfuser.ctl.services import make_services
from dfuser.fuse import mountpoint as host
from dfuser.fuse.mountpoint import MountError
from dfuser.fuse.session import FuseSession, SessionOptions
from dfuser.libkern.errno import EBUSY, EINVAL, EPERM, KError, Panic
from dfuser.lwkt.block import run_blocking
from dfuser.lwkt.synch import tsleep

from .collector import no_full_collections
from .exits import CliError, ExitCode
from .logs import ServerLog
from .notify import notify, watchdog_seconds
from .stale import clear_stale

if TYPE_CHECKING:
    from .plan import Plan

#: Seconds the host gets to answer the first look at a new mount.
READY_TIME: Final = 30.0
#: Seconds a sync may take before an unmount goes on without it.
SYNC_TIME: Final = 60.0
#: Seconds a lazily unmounted session gets to end by itself.
LAZY_TIME: Final = 0.5
#: Ticks a second, for the watchdog's thread.
_HZ: Final = 100
_KINDS: Final = (
    ("mountpoint", ExitCode.MOUNTPOINT),
    ("busy", ExitCode.MOUNTPOINT),
    ("mounted", ExitCode.MOUNTED),
    ("fuse", ExitCode.FUSE),
    ("permission", ExitCode.PERMISSION),
)

#: What runs beside a mounted kernel, and whose end unmounts it.
Body = Callable[["Server"], Awaitable[None]]


def mount_failed(error: MountError) -> CliError:
    """A failure of mounting or unmounting as what the user is told."""
    return CliError(dict(_KINDS).get(error.kind, ExitCode.FUSE), str(error))


class Server:
    """One kernel and its mount.

    Args:
        plan: what to boot and where to mount it.
        log: where messages go.
        on_ready: called once, when the mount answers.
        body: runs beside the mount; when it returns the mount is taken away.
    """

    def __init__(
        self,
        plan: Plan,
        log: ServerLog,
        on_ready: Callable[[], None] = lambda: None,
        body: Body | None = None,
    ) -> None:
        self.plan = plan
        self.log = log
        self.code: int = ExitCode.OK
        self.session: FuseSession
        self._on_ready = on_ready
        self._body = body
        self._scope = trio.CancelScope()
        self._everything = trio.CancelScope()
        self._panic = trio.Event()
        self._interrupts = 0
        self._booted: Kernel | None = None
        self._failure: CliError | None = None

    @property
    def kernel(self) -> Kernel:
        """The kernel, once it has booted."""
        assert self._booted is not None
        return self._booted

    # --- from beginning to end -------------------------------------------------------------

    def serve(self) -> int:
        """Boot, mount, live until unmounted; returns the exit code.

        Raises `CliError`: it could not be mounted, or it panicked.
        """
        try:
            self._check()
            trio.run(self._run, restrict_keyboard_interrupt_to_checkpoints=True)
        except BaseExceptionGroup as group:
            panics, rest = group.split(Panic)
            if rest is not None:
                raise rest from None
            assert panics is not None
            self._failure = self._panic_error(str(_first(panics)))
        finally:
            if self._booted is not None:
                self._booted.stop()
            self.log.close()
        if self._panic.is_set():
            self._failure = self._panic_error(self.kernel.panic_reason)
        if self._failure is not None:
            raise self._failure
        return self.code

    def _check(self) -> None:
        """Find out what can be known before anything is booted."""
        where = self.plan.mountpoint
        try:
            host.check_fuse()
            if clear_stale(where):
                self.log.say(f"cleared the mount of a killed dfuser on {where}")
            host.check(where, nonempty="nonempty" in self.plan.switches)
            self._options().fuse_options()
        except MountError as error:
            raise mount_failed(error) from None
        sweep()

    def _options(self) -> SessionOptions:
        switches = self.plan.switches
        return SessionOptions(
            self.plan.mountpoint,
            fsname=self.plan.fsname,
            allow_other=True if "allow_other" in switches else None,
            read_only="ro" in switches,
            nonempty="nonempty" in switches,
            writeback="writeback" in switches,
            transport=self.plan.transport,
            onemount="onemount" in switches,
            noopen="noopen" in switches,
            noxattr="noxattr" in switches,
        )

    def _boot(self) -> Kernel:
        try:
            kernel = Kernel(self.plan.config)
        except (OSError, MemoryError) as error:
            raise CliError(ExitCode.INTERNAL, f"cannot make the kernel's memory: {error}") from None
        try:
            kernel.boot()
        except ConfigError as error:
            kernel.stop()
            raise CliError(ExitCode.USAGE, str(error)) from None
        except KError as error:
            kernel.stop()
            code = ExitCode.USAGE if error.errno == EINVAL else ExitCode.SOURCE
            raise CliError(code, str(error.strerror)) from None
        except Panic as error:
            kernel.panic("boot", error)
            kernel.stop()
            raise CliError(ExitCode.PANIC, f"panic while booting: {error}") from None
        return kernel

    async def _run(self) -> None:
        try:
            self._booted = self._boot()
        except CliError as error:
            self._failure = error
            return
        self.log.follow(self.kernel.msgbuf)
        with self._everything:
            async with trio.open_nursery() as outer:
                await outer.start(self._signals, outer)
                async with trio.open_nursery() as nursery:
                    await nursery.start(self.kernel.run)
                    try:
                        await self._mounted()
                    except ExceptionGroup as group:
                        self._failure = _known(group)
                        if self._failure is None:
                            raise
                    finally:
                        self.kernel.request_stop()
                outer.cancel_scope.cancel()

    async def _mounted(self) -> None:
        """Mount, serve, and take everything down again."""
        kernel = self.kernel
        session = self.session = FuseSession(
            kernel.vfs, kernel.lwkt, kernel.procs, self._options(), kernel.report, kernel.panicked,
            kernel.posixlocks,
        )  # fmt: skip
        kernel.on_panic(self._panic.set)
        async with trio.open_nursery() as nursery:
            session.mount()
            with self._declared(*session.owners()):
                await nursery.start(self._serve_session)
                nursery.start_soon(self._bury)
                with self._instance() as control:
                    for service in make_services(
                        kernel, HostJobs(kernel.lwkt, nursery), self.unmount, session.statistics
                    ):
                        control.add(service)
                    await nursery.start(control.serve)
                    await self._ready(nursery)
                    await session.ended.wait()
                    nursery.cancel_scope.cancel()

    async def _serve_session(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        where = self.plan.mountpoint
        self.kernel.log(f"mounted on {where}")
        with self._scope:
            await self.session.serve(task_status)
        served = self.session.context.statistics().served
        self.kernel.log(f"unmounted from {where} after {served} requests")

    @contextlib.contextmanager
    def _declared(self, *owners: object) -> Iterator[None]:
        """Show the sysctls of the bridge and the socket while they exist."""
        for owner in owners:
            self.kernel.add_owner(owner)
        try:
            yield
        finally:
            for owner in owners:
                self.kernel.remove_owner(owner)

    @contextlib.contextmanager
    def _instance(self) -> Iterator[ControlSocket]:
        """The instance file and the control socket, not yet listening."""
        try:
            instance = register(self.plan.mountpoint, time.time())
        except OSError as error:
            code = ExitCode.PERMISSION if isinstance(error, PermissionError) else ExitCode.INTERNAL
            text = f"cannot make the control socket {error.filename}: {error.strerror}"
            raise CliError(code, text) from None
        about = {
            "version": self.kernel.version,
            "pid": instance.pid,
            "mountpoint": instance.mountpoint,
        }
        control = ControlSocket(instance.socket, self.kernel.lwkt, about)
        try:
            with self._declared(control):
                yield control
        finally:
            unregister(instance)

    async def _ready(self, nursery: trio.Nursery) -> None:
        """See that the mount answers, and tell everybody."""
        with trio.move_on_after(READY_TIME) as late:
            await trio.to_thread.run_sync(os.stat, self.plan.mountpoint, abandon_on_cancel=True)
        if late.cancelled_caught:
            raise CliError(ExitCode.FUSE, f"{self.plan.mountpoint} is mounted but does not answer")
        nursery.start_soon(self._collect)
        interval = watchdog_seconds()
        if interval is not None:
            ticks = max(1, int(interval * _HZ / 2))
            self.kernel.lwkt.create(self._watchdog, ticks, name="watchdog")
        self._on_ready()
        notify("READY=1", f"STATUS=mounted on {self.plan.mountpoint}", f"MAINPID={os.getpid()}")
        if self._body is not None:
            nursery.start_soon(self._run_body, self._body)

    async def _collect(self) -> None:
        """Keep full garbage collections away while mounted."""
        with no_full_collections():
            await trio.sleep_forever()

    async def _watchdog(self, ticks: int) -> None:
        """A kernel thread that gives signs of life: it fails when the scheduler does."""
        while True:
            notify("WATCHDOG=1")
            await tsleep(self, 0, "wdog", ticks)

    async def _run_body(self, body: Body) -> None:
        try:
            await body(self)
        finally:
            with trio.CancelScope(shield=True):
                await self._leave(insist=True)

    # --- unmounting ------------------------------------------------------------------------

    async def unmount(self, lazy: bool = False) -> None:
        """Unmount for a client. Raises `KError`: EBUSY naming who holds the mount, EPERM."""
        try:
            await self.session.unmount(lazy=lazy)
        except MountError as error:
            raise KError(EBUSY if error.kind == "busy" else EPERM, str(error)) from None
        if lazy:
            await self._drop()

    async def _sync(self) -> None:
        """Sync as a thread of the kernel; one that has panicked runs no thread any more."""
        if self._panic.is_set() or self.kernel.lwkt.panicked is not None:
            return
        with contextlib.suppress(KError), trio.move_on_after(SYNC_TIME):
            await self.kernel.lwkt.adopt(run_blocking, self.kernel.vfs.sync_all, name="sync")

    async def _leave(self, *, insist: bool, code: int = ExitCode.OK) -> bool:
        """Sync and unmount; with ``insist`` although somebody is inside. False: still mounted."""
        notify("STOPPING=1", "STATUS=unmounting")
        await self._sync()
        try:
            if host.mounted_at(self.plan.mountpoint) is not None:
                await self.session.unmount()
                return True
        except MountError as error:
            if host.mounted_at(self.plan.mountpoint) is not None:
                busy = error.kind == "busy"
                if not (busy and insist):
                    hint = "; Ctrl-C again unmounts all the same" if busy else ""
                    self.log.say(f"{error}: still mounted{hint}")
                    return False
                self.log.say(f"{error}: unmounted all the same")
                self.code = code
        await self._force()
        return True

    async def _force(self) -> None:
        with contextlib.suppress(MountError):
            await self.session.unmount(lazy=True)
        await self._drop()

    async def _drop(self) -> None:
        """End the session of a mount that is detached but still held by somebody."""
        with trio.move_on_after(LAZY_TIME):
            await self.session.ended.wait()
        self._scope.cancel()

    async def _bury(self) -> None:
        """After a panic: take the mount away, whoever is inside."""
        await self._panic.wait()
        with trio.CancelScope(shield=True):
            await self._force()

    def _panic_error(self, reason: str) -> CliError:
        dump = self.kernel.panic_dump
        where = f"the dump is {dump}" if dump else "no dump could be written"
        return CliError(ExitCode.PANIC, f"panic: {reason}; the mount was taken away; {where}")

    # --- signals ---------------------------------------------------------------------------

    async def _signals(
        self, nursery: trio.Nursery, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
        with trio.open_signal_receiver(*wanted) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP:
                    self.log.reopen()
                elif number == signal.SIGUSR1:
                    self.log_threads()
                else:
                    nursery.start_soon(self._stop_for, number)

    async def _stop_for(self, number: int) -> None:
        session = getattr(self, "session", None)
        if session is None or not session.mounted:
            if session is None or not session.ended.is_set():
                self.code = ExitCode.SIGNAL + number
                self._everything.cancel()
            return
        if number == signal.SIGINT and self._body is not None:
            return
        self._interrupts += number == signal.SIGINT
        insist = number == signal.SIGTERM or self._interrupts > 1
        if not await self._leave(insist=insist, code=ExitCode.SIGNAL + number):
            notify(f"STATUS=mounted on {self.plan.mountpoint}, in use")

    def log_threads(self) -> None:
        """Every thread, what it waits for and the tokens it holds, into the kernel log."""
        for td in list(self.kernel.lwkt.threads.values()):
            held = ", ".join(str(ref) for ref in td.toks)
            self.kernel.log(
                f"tid {td.tid} cpu {td.cpu.cpuid} pri {td.pri} {td.state} {td.wmesg or '-'} "
                f"{td.name}" + (f" holds {held}" if held else "")
            )


def _known(group: ExceptionGroup[Any]) -> CliError | None:
    """What the user is told when a group holds but one error, and that is for the user."""
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
        inner = inner.exceptions[0]
    if isinstance(inner, MountError):
        return mount_failed(inner)
    return inner if isinstance(inner, CliError) else None


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    """The first single exception in a group of groups."""
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    return inner
