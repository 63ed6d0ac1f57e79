"""The way of a request: bind a context, run the core, answer; park it only if it must wait.

`request` turns a plain method of `ops.Operations` into the coroutine function that pyfuse3 wants:

1. a context is borrowed from a logical CPU and becomes ``curthread``;
2. the method runs to completion and its result is the reply;
3. if it says `Block`, nothing has been changed: the request becomes an LWKT thread and a process of
   its own, waits, and runs the method again (`park`);
4. whatever it raises becomes an errno of the host, here and nowhere else. A bug costs this request
   an EIO and leaves a report in the kernel log; the mount lives.

Handlers of open files get no caller from pyfuse3; they run for whoever opened the file.

Counterpart: trap and syscall entry (sys/platform/*/trap.c), as far as a request is a system call.
"""

from __future__ import annotations

import errno as host_errno
import functools
import traceback
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, Final, NamedTuple, ParamSpec, TypeVar, cast

import pyfuse3
import trio

from dfuser.libkern.errno import EINTR, ERESTART, KError, Panic
from dfuser.libkern.linux_errno import to_linux
from dfuser.libkern.sysctl import CtlFlag, Sysctl
from dfuser.libkern.ucred import Ucred
from dfuser.kern.proc import CallerId
from dfuser.lwkt.block import Block, run_blocking

if TYPE_CHECKING:
    from dfuser.kern.lwp import Lwp
    from dfuser.kern.proc import ProcTable
    from dfuser.lwkt.machine import Lwkt
    from dfuser.lwkt.sched import Cpu
    from dfuser.lwkt.thread import Thread
    from dfuser.vfs.file import File

    from .nodes import Node
    from .watcher import SignalWatcher

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")

#: Credentials kept by (uid, gid).
_CRED_LIMIT: Final = 1024


class Caller(NamedTuple):
    """Who asks: the parts of a FUSE request header that matter here."""

    uid: int
    gid: int
    pid: int
    umask: int


class OpenFile:
    """One open of the host: a `File` and who opened it."""

    __slots__ = ("caller", "file", "node")

    def __init__(self, file: File, node: Node, caller: Caller) -> None:
        self.file = file
        self.node = node
        self.caller = caller


class RequestTable(NamedTuple):
    """What `RequestContext.statistics` returns."""

    served: int
    parked: int
    parked_now: int
    failed: int
    interrupted: int
    by_operation: dict[str, int]


class RequestContext:
    """Everything a request needs around its core: CPUs, credentials, processes, reports."""

    sysctl_served = Sysctl("vfs.fuse.served", "requests answered", attr="served")
    sysctl_parked = Sysctl("vfs.fuse.parked", "requests that had to wait", attr="parked")
    sysctl_now = Sysctl("vfs.fuse.parked_now", "requests waiting now", getter="_parked_now")
    sysctl_failed = Sysctl("vfs.fuse.failed", "requests that met a bug", attr="failed")
    sysctl_intr = Sysctl(
        "vfs.fuse.interrupted", "waits ended by a signal of the caller", attr="interrupted"
    )
    sysctl_max = Sysctl(
        "vfs.fuse.max_parked", "requests that may wait at a time", attr="max_parked",
        flags=CtlFlag.RW, minimum=1, maximum=100_000,
    )

    def __init__(
        self,
        lwkt: Lwkt,
        procs: ProcTable,
        watcher: SignalWatcher,
        report: Callable[[str, str], None],
        on_panic: Callable[[Panic], None],
        max_parked: int = 2000,
    ) -> None:
        self.lwkt = lwkt
        self.procs = procs
        self.watcher = watcher
        self.report = report
        self.on_panic = on_panic
        self.max_parked = max_parked
        self.served = 0
        self.parked = 0
        self.failed = 0
        self.interrupted = 0
        self.counts: dict[str, int] = {}
        #: Whether the code that runs now serves the host: its own changes need no notification.
        self.serving = False
        self.parked_threads: dict[Lwp, Caller] = {}
        self._caller: Any = None
        self._creds: dict[tuple[int, int], Ucred] = {}

    def _parked_now(self) -> int:
        return len(self.parked_threads)

    def cred(self, uid: int, gid: int) -> Ucred:
        """The credentials of a caller; its further groups stay with the host, which checks them."""
        cred = self._creds.get((uid, gid))
        if cred is None:
            if len(self._creds) >= _CRED_LIMIT:
                self._creds.clear()
            cred = self._creds[uid, gid] = Ucred.of(uid, gid)
        return cred

    def enter(self, caller: Any) -> Thread:
        """Borrow a context on the CPU that serves callers like this one.

        ``caller`` has ``uid``, ``gid`` and ``pid``: a `Caller`, or pyfuse3's request context.
        """
        cpus = self.lwkt.cpus
        self.serving = True
        self._caller = caller
        cpu: Cpu = cpus[caller.pid % len(cpus)]
        return cpu.borrow()

    def leave(self, td: Thread) -> None:
        """Give the context back."""
        self.serving = False
        self._caller = None
        td.cpu.unborrow(td)

    def caller(self) -> CallerId | None:
        """The host process whose request is running now (for ``/proc/curproc``)."""
        now = self._caller
        return CallerId(now.pid, now.uid, now.gid) if now is not None else None

    async def park(self, op: str, caller: Caller, core: Callable[..., R], *args: Any) -> R:
        """Make the request a process and an LWKT thread that waits and runs ``core`` again.

        Raises FUSEError; EINTR when the caller was signalled meanwhile, EAGAIN when more requests
        wait already than ``vfs.fuse.max_parked``.
        """
        if len(self.parked_threads) >= self.max_parked:
            raise pyfuse3.FUSEError(host_errno.EAGAIN)
        try:
            lwp = self.procs.request_enter(caller.uid, caller.gid, caller.pid, op)
        except KError as error:
            raise pyfuse3.FUSEError(to_linux(error.errno)) from None
        self.parked += 1
        self.parked_threads[lwp] = caller
        cpu = caller.pid % len(self.lwkt.cpus)
        try:
            return await self.lwkt.adopt(
                self._wait, lwp, core, *args, name=f"fuse:{op}", cpu=cpu, lwp=lwp
            )
        except BaseException as exc:
            raise self.translate(op, exc) from None
        finally:
            del self.parked_threads[lwp]
            self.procs.request_exit(lwp)

    async def _wait(self, lwp: Lwp, core: Callable[..., R], *args: Any) -> R:
        self.watcher.watch(lwp)
        try:
            return await run_blocking(self._served, core, *args)
        finally:
            self.watcher.unwatch(lwp)

    def _served(self, core: Callable[..., R], *args: Any) -> R:
        """Run ``core`` for the host within an adopted thread."""
        self.serving = True
        try:
            return core(*args)
        finally:
            self.serving = False

    def translate(self, op: str, exc: BaseException) -> BaseException:
        """What to raise to pyfuse3 for ``exc``."""
        if isinstance(exc, pyfuse3.FUSEError | trio.Cancelled):
            return exc
        if isinstance(exc, KError):
            error = exc.errno or 0
            if error in (ERESTART, EINTR):
                self.interrupted += 1
                error = EINTR
            return pyfuse3.FUSEError(to_linux(error))
        if isinstance(exc, MemoryError):
            return pyfuse3.FUSEError(host_errno.ENOMEM)
        self.failed += 1
        self.report(op, "".join(traceback.format_exception(exc)))
        if isinstance(exc, Panic):
            self.on_panic(exc)
        elif not isinstance(exc, Exception):
            return exc
        elif isinstance(exc, OSError) and exc.errno:
            return pyfuse3.FUSEError(exc.errno)
        return pyfuse3.FUSEError(host_errno.EIO)

    def statistics(self) -> RequestTable:
        """Counters since boot."""
        return RequestTable(
            served=self.served,
            parked=self.parked,
            parked_now=len(self.parked_threads),
            failed=self.failed,
            interrupted=self.interrupted,
            by_operation=dict(self.counts),
        )


def request(core: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Make a handler out of ``core(self, *args, ctx)``; ``ctx`` is pyfuse3's, and comes last."""
    op = core.__name__

    @functools.wraps(core)
    async def handler(self: Any, *args: Any) -> R:
        context: RequestContext = self.context
        ctx = args[-1]
        td = context.enter(ctx)
        counts = context.counts
        counts[op] = counts.get(op, 0) + 1
        context.served += 1
        try:
            return core(self, *args)  # type: ignore[call-arg, arg-type]
        except Block:
            pass
        except BaseException as exc:
            raise context.translate(op, exc) from None
        finally:
            context.leave(td)
        caller = Caller(ctx.uid, ctx.gid, ctx.pid, ctx.umask)
        return await context.park(op, caller, core, self, *args)

    return cast("Callable[P, Coroutine[Any, Any, R]]", handler)


def fh_request(
    core: Callable[Concatenate[S, OpenFile, P], R],
) -> Callable[Concatenate[S, int, P], Coroutine[Any, Any, R]]:
    """Make a handler out of ``core(self, open_file, *args)``, called with the file's number."""
    op = core.__name__

    @functools.wraps(core)
    async def handler(self: Any, fh: int, *args: Any) -> R:
        context: RequestContext = self.context
        try:
            opened = self.files[fh]
        except KeyError:
            raise pyfuse3.FUSEError(host_errno.EBADF) from None
        td = context.enter(opened.caller)
        counts = context.counts
        counts[op] = counts.get(op, 0) + 1
        context.served += 1
        try:
            return core(self, opened, *args)  # type: ignore[call-arg]
        except Block:
            pass
        except BaseException as exc:
            raise context.translate(op, exc) from None
        finally:
            context.leave(td)
        return await context.park(op, opened.caller, core, self, opened, *args)

    return cast("Callable[Concatenate[S, int, P], Coroutine[Any, Any, R]]", handler)
