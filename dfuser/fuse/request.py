"""The way of a request: bind a context, run the core, answer; park it only if it must wait.

Whatever transport brings a request, it goes the same way:

1. a context is borrowed from a logical CPU and becomes ``curthread`` (`RequestContext.enter`);
2. a plain function runs to completion and its result is the reply;
3. if it says `Block`, nothing has been changed: the request becomes an LWKT thread and a process of
   its own, waits, and runs the function again (`RequestContext.park`);
4. whatever it raises becomes an errno of the host, here and nowhere else. A bug costs this request
   an EIO and leaves a report in the kernel log; the mount lives (`RequestContext.errno_of`).

A request for a CPU whose thread spins in a critical section runs on another CPU; when all do, it
waits like one that met `Block`. When the session ends, whoever still waits gets EINTR and new
requests are not let in (`RequestContext.close`).

Counterpart: trap and syscall entry (sys/platform/*/trap.c), as far as a request is a system call.
"""

from __future__ import annotations

import errno as host_errno
import os
import traceback
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import trio

from dfuser.kern.proc import CallerId
from dfuser.libkern.errno import EINTR, ERESTART, KError, Panic
from dfuser.libkern.linux_errno import to_linux
from dfuser.libkern.sysctl import CtlFlag, Sysctl
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt.block import Block, go_on

from .callers import groups_of

if TYPE_CHECKING:
    from dfuser.kern.lwp import Lwp
    from dfuser.kern.proc import ProcTable
    from dfuser.lwkt.machine import Lwkt
    from dfuser.lwkt.sched import Cpu
    from dfuser.lwkt.thread import Thread
    from dfuser.vfs.file import File

    from .nodes import Node
    from .watcher import SignalWatcher

R = TypeVar("R")

#: Credentials kept by (uid, gid).
_CRED_LIMIT: Final = 1024
#: Numbers from here on are no errnos for Linux (ERESTARTSYS and its like).
_ERRNO_LIMIT: Final = 512


class HostError(OSError):
    """The answer to a request is an error; ``number`` is the host's."""

    def __init__(self, number: int) -> None:
        super().__init__(number, os.strerror(number))
        self.number = number


class Caller(NamedTuple):
    """Who asks: the parts of a FUSE request header that matter here."""

    uid: int
    gid: int
    pid: int


class OpenFile:
    """One open of the host: a `File` and who opened it."""

    __slots__ = ("caller", "file", "gone", "node")

    def __init__(self, file: File, node: Node, caller: Caller) -> None:
        self.file = file
        self.node = node
        self.caller = caller
        #: The mount it was opened through has been taken away.
        self.gone = False


class Parked:
    """A request that waits, as its connection knows it."""

    __slots__ = ("interrupted", "lwp", "nodeid", "told")

    def __init__(self, nodeid: int = 0, *, told: bool = False) -> None:
        #: The file whose open the request came through; 0 when the caller himself is known.
        self.nodeid = nodeid
        #: The host tells us when the caller is signalled; nobody need look.
        self.told = told
        self.interrupted = False
        self.lwp: Lwp | None = None


class RequestTable(NamedTuple):
    """What `RequestContext.statistics` returns."""

    served: int
    parked: int
    parked_now: int
    failed: int
    interrupted: int


class RequestContext:
    """Everything a request needs around its core: CPUs, credentials, processes, reports."""

    sysctl_served = Sysctl("vfs.fuse.served", "requests that came", getter="_served_count")
    sysctl_parked = Sysctl("vfs.fuse.parked", "requests that had to wait", attr="parked")
    sysctl_now = Sysctl("vfs.fuse.parked_now", "requests waiting now", getter="_parked_now")
    sysctl_failed = Sysctl("vfs.fuse.failed", "requests that met a bug", attr="failed")
    sysctl_intr = Sysctl(
        "vfs.fuse.interrupted", "waits ended by a signal of the caller", attr="interrupted"
    )
    sysctl_max = Sysctl(
        "vfs.fuse.max_parked",
        "requests that may wait at a time",
        attr="max_parked",
        flags=CtlFlag.RW,
        minimum=1,
        maximum=100_000,
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
        self.parked = 0
        self.failed = 0
        self.interrupted = 0
        #: Tells how many requests came, by operation; the session sets it.
        self.count: Callable[[], dict[str, int]] = dict
        self.closing = False
        #: Whether the code that runs now serves the host: its own changes need no notification.
        self.serving = False
        self.parked_threads: dict[Lwp, Caller] = {}
        self._caller: Any = None
        self._creds: dict[tuple[int, int], Ucred] = {}

    def _parked_now(self) -> int:
        return len(self.parked_threads)

    def _served_count(self) -> int:
        return sum(self.count().values())

    def cred(self, uid: int, gid: int) -> Ucred:
        """The credentials of a caller; its further groups stay with the host, which checks them."""
        cred = self._creds.get((uid, gid))
        if cred is None:
            if len(self._creds) >= _CRED_LIMIT:
                self._creds.clear()
            cred = self._creds[uid, gid] = Ucred.of(uid, gid)
        return cred

    @staticmethod
    def full_cred(caller: Any) -> Ucred:
        """The credentials with the supplementary groups, read from the host's ``/proc``.

        For the few questions the host leaves to us. Costs a file; without the process (another pid
        namespace, gone) the effective group is the only one.
        """
        return Ucred.of(caller.uid, caller.gid, groups_of(caller.pid))

    def enter(self, caller: Any) -> Thread:
        """Borrow a context on the CPU that serves callers like this one.

        ``caller`` has ``uid``, ``gid`` and ``pid``: a `Caller`, a request's head, or pyfuse3's
        request context.

        Raises:
            Block: every CPU is in the middle of something that must not be nested in.
            HostError: EIO, the CPUs are stopped: the kernel has panicked.
        """
        cpus = self.lwkt.cpus
        cpu: Cpu = cpus[caller.pid % len(cpus)]
        cur = cpu.curthread
        if cpu.stopped or (cur is not None and cur.critcount):
            cpu = self._another_cpu()
        td = cpu.borrow()
        self.serving = True
        self._caller = caller
        return td

    def _another_cpu(self) -> Cpu:
        """A CPU that can lend a context."""
        for cpu in self.lwkt.cpus:
            if cpu.lendable:
                return cpu
        if all(cpu.stopped for cpu in self.lwkt.cpus):
            raise HostError(host_errno.EIO)
        raise Block(_go_on, "cpu")

    def leave(self, td: Thread) -> None:
        """Give the context back."""
        self.serving = False
        self._caller = None
        td.cpu.unborrow(td)

    def caller(self) -> CallerId | None:
        """The host process whose request is running now (for ``/proc/curproc``)."""
        now = self._caller
        return CallerId(now.pid, now.uid, now.gid) if now is not None else None

    async def park(
        self,
        op: str,
        caller: Caller,
        parked: Parked,
        wait: Callable[[], Awaitable[int]],
        core: Callable[..., R],
        *args: Any,
    ) -> R:
        """Make the request a process and an LWKT thread that waits and runs ``core`` again.

        Args:
            op: the operation, for ``ps``.
            caller: who asks.
            parked: what the caller of this knows the wait by, to interrupt it.
            wait: of the `Block`.
            core: what was run and said it.
            args: its arguments; nothing in them may be used again by somebody else.

        Raises:
            HostError: what came of it; EINTR when the caller was signalled meanwhile, EAGAIN when
                more requests wait already than ``vfs.fuse.max_parked``.
        """
        if self.closing or len(self.parked_threads) >= self.max_parked:
            raise HostError(host_errno.EAGAIN)
        try:
            lwp = self.procs.request_enter(caller.uid, caller.gid, caller.pid, op)
        except KError as error:
            raise HostError(to_linux(error.errno)) from None
        parked.lwp = lwp
        self.parked += 1
        self.parked_threads[lwp] = caller
        cpu = caller.pid % len(self.lwkt.cpus)
        try:
            return await self.lwkt.adopt(
                self._wait, parked, caller, wait, core, *args, name=f"fuse:{op}", cpu=cpu, lwp=lwp
            )
        except BaseException as exc:
            raise HostError(self.errno_of(op, exc)) from None
        finally:
            del self.parked_threads[lwp]
            self.procs.request_exit(lwp)

    async def _wait(
        self,
        parked: Parked,
        caller: Caller,
        wait: Callable[[], Awaitable[int]],
        core: Callable[..., R],
        *args: Any,
    ) -> R:
        assert parked.lwp is not None
        self.watcher.watch(parked.lwp, parked.nodeid, told=parked.told)
        if parked.interrupted:
            self.watcher.interrupt(parked.lwp)
        try:
            return await go_on(wait, self._served, caller, core, *args)
        finally:
            self.watcher.unwatch(parked.lwp)

    def interrupt(self, parked: Parked) -> None:
        """The host says that the caller of a parked request was signalled: its wait ends."""
        parked.interrupted = True
        if parked.lwp is not None:
            self.watcher.interrupt(parked.lwp)

    def _served(self, caller: Caller, core: Callable[..., R], *args: Any) -> R:
        """Run ``core`` for the host within an adopted thread."""
        if self.closing:
            raise KError(EINTR)
        self.serving = True
        self._caller = caller
        try:
            return core(*args)
        finally:
            self.serving = False
            self._caller = None

    def close(self) -> None:
        """The session ends: every wait ends with EINTR and no new one begins."""
        self.closing = True
        self.watcher.end_all()

    def errno_of(self, op: str, exc: BaseException) -> int:
        """The host's number for what a request raised; reports it if it is a bug.

        Raises:
            BaseException: ``exc`` itself, when it is for the event loop (a cancellation).
        """
        if isinstance(exc, KError):
            error = exc.errno or 0
            if error in (ERESTART, EINTR):
                self.interrupted += 1
                error = EINTR
            return to_linux(error)
        if isinstance(exc, HostError):
            return exc.number
        if isinstance(exc, trio.Cancelled):
            raise exc
        self.failed += 1
        self.report(op, "".join(traceback.format_exception(exc)))
        if isinstance(exc, Panic):
            self.on_panic(exc)
        elif not isinstance(exc, Exception):
            raise exc
        elif isinstance(exc, MemoryError):
            return host_errno.ENOMEM
        elif isinstance(exc, OSError) and exc.errno and 0 < exc.errno < _ERRNO_LIMIT:
            return exc.errno
        return host_errno.EIO

    def statistics(self) -> RequestTable:
        """Counters since boot."""
        return RequestTable(
            served=self._served_count(),
            parked=self.parked,
            parked_now=len(self.parked_threads),
            failed=self.failed,
            interrupted=self.interrupted,
        )


async def _go_on() -> int:
    """The wait of a request that found no CPU: becoming a thread was all it needed."""
    return 0
