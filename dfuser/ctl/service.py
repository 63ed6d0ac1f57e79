"""Services: what host programs can ask of a kernel, as message ports.

A `Service` is a named group of commands. Its port serves a message in the sender's context, as a
system call would be; a command that says `Block` is finished by an LWKT thread of its own, and the
reply comes then. A command has no logic of its own: it calls what the system call, the sysctl
handler or the file in ``/kern`` calls.

A command may change what the host has cached: a mount covers a name. Such a command is marked
``settles``, and its message carries the wait that whoever writes the reply does first.

An abort ends the interruptible sleep of that thread; if it comes before the thread sleeps, it is
remembered and found before the next one. The reply is then ECANCELED.

Counterpart: sys/kern/lwkt_msgport.c (putonly ports), the sysmsg interface of system calls.
Token/lock order: takes none.
Invariants: every message is replied to exactly once, whatever a command raises, also when the
machine is shut down while it waits.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, overload

from dfuser.libkern.errno import (
    EASYNC,
    ECANCELED,
    EINTR,
    EINVAL,
    EIO,
    ENOMEM,
    ENOSYS,
    ERESTART,
    KError,
    Panic,
    strerror,
)
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt.block import Block, run_blocking
from dfuser.lwkt.msgkinds import initport_putonly
from dfuser.lwkt.msgport import LwktMsg, Port
from dfuser.lwkt.synch import abort_sleep
from dfuser.lwkt.thread import ThreadKilled

if TYPE_CHECKING:
    from dfuser.lwkt.machine import Lwkt
    from dfuser.lwkt.thread import Thread
    from dfuser.vfs.hostcache import HostCache

_MARK: Final = "__ctl_command__"
_SETTLES: Final = "__ctl_settles__"
_PREFIX: Final = "cmd_"
_F = TypeVar("_F", bound=Callable[..., Any])


@overload
def command(fn: _F, /) -> _F: ...
@overload
def command(*, settles: bool) -> Callable[[_F], _F]: ...
def command(fn: Any = None, /, *, settles: bool = False) -> Any:
    """Mark a method as a command: ``def cmd_name(self, cred, **arguments) -> JSON value``.

    With ``settles`` the reply goes out when the host has heard what the command changed.
    """

    def mark(method: _F) -> _F:
        setattr(method, _MARK, True)
        setattr(method, _SETTLES, settles)
        return method

    return mark if fn is None else mark(fn)


class CtlMsg(LwktMsg):
    """A message from a host program."""

    __slots__ = ("aborted", "args", "command", "cred", "msgid", "settle", "thread")

    def __init__(
        self, reply_port: Port, msgid: int, name: str, args: Mapping[str, Any], cred: Ucred
    ) -> None:
        super().__init__(reply_port)
        self.msgid = msgid
        self.command = name
        self.args = args
        self.cred = cred
        self.aborted = False
        #: What to await before the reply is written, or None.
        self.settle: Callable[[], Awaitable[None]] | None = None
        #: The thread that finishes a command that had to wait.
        self.thread: Thread | None = None


class ServiceStatistics(NamedTuple):
    """What `Service.statistics` returns."""

    served: int
    waited: int
    failed: int


class Service:
    """A named group of commands behind one port. Subclasses mark their commands with `command`.

    Args:
        lwkt: the machine.
        report: called with a place and a traceback when a command meets a bug.
        on_panic: called with a `Panic` met in a command.
    """

    name = ""

    def __init__(
        self,
        lwkt: Lwkt,
        report: Callable[[str, str], None],
        on_panic: Callable[[Panic], None],
    ) -> None:
        self.lwkt = lwkt
        self._report = report
        self._on_panic = on_panic
        self.served = 0
        self.waited = 0
        self.failed = 0
        self.port = initport_putonly(self._put, f"ctl:{self.name}", lwkt)

    @property
    def hostcache(self) -> HostCache | None:
        """Who must have heard of a change before its command is over; None where nobody caches."""
        return None

    def commands(self) -> dict[str, str]:
        """The commands and the first line of what each says about itself."""
        found = {}
        for name, method in inspect.getmembers(self, inspect.ismethod):
            if hasattr(method, _MARK):
                found[name.removeprefix(_PREFIX)] = (method.__doc__ or "").partition("\n")[0]
        return found

    def _put(self, port: Port, msg: LwktMsg) -> int:
        """The port's putport: serve the message now, or have a thread finish it."""
        assert isinstance(msg, CtlMsg)
        self.served += 1
        method = getattr(self, _PREFIX + msg.command, None)
        if method is None or not hasattr(method, _MARK):
            msg.result = {
                "error": f"{self.name} has no command {msg.command!r}: it has "
                + ", ".join(self.commands())
            }
            return ENOSYS
        try:
            bound = inspect.signature(method).bind(msg.cred, **msg.args)
        except TypeError as error:
            msg.result = {"error": f"{self.name}.{msg.command}: {error}"}
            return EINVAL

        host = self.hostcache if getattr(method, _SETTLES, False) else None
        msg.settle = host.settle if host is not None else None

        def core() -> Any:
            return method(*bound.args, **bound.kwargs)

        try:
            msg.result = core()
            return 0
        except Block:
            self.waited += 1
            msg.initmsg_abortable(self._abort)
            msg.thread = self.lwkt.create(self._finish, msg, core, name=f"ctl:{self.name}")
            return EASYNC
        except BaseException as exc:
            return self._error(msg, exc)

    async def _finish(self, msg: CtlMsg, core: Callable[[], Any]) -> None:
        """The body of the thread that brings a waiting command to its end."""

        def unless_aborted() -> Any:
            if msg.aborted:
                raise KError(EINTR)
            return core()

        error = ECANCELED
        try:
            msg.result = await run_blocking(unless_aborted)
            error = 0
        except ThreadKilled:
            msg.result = {"error": "the kernel is being shut down"}
            raise
        except BaseException as exc:
            error = self._error(msg, exc)
            if error in (EINTR, ERESTART):
                error = ECANCELED
                msg.result = {"error": "aborted"}
        finally:
            msg.thread = None
            msg.replymsg(error)

    def _abort(self, msg: LwktMsg) -> None:
        assert isinstance(msg, CtlMsg)
        msg.aborted = True
        if msg.thread is not None:
            abort_sleep(msg.thread, EINTR)

    def _error(self, msg: CtlMsg, exc: BaseException) -> int:
        """The errno and the text a failed command is replied with."""
        if isinstance(exc, KError):
            error = exc.errno or EIO
            msg.result = {"error": exc.strerror or strerror(error)}
            return error
        if isinstance(exc, MemoryError):
            msg.result = {"error": "the host is out of memory"}
            return ENOMEM
        self.failed += 1
        where = f"{self.name}.{msg.command}"
        self._report(where, "".join(traceback.format_exception(exc)))
        msg.result = {"error": f"{where} met a bug: {exc!r}"}
        if isinstance(exc, Panic):
            self._on_panic(exc)
        elif not isinstance(exc, Exception):
            raise exc
        return EIO

    def statistics(self) -> ServiceStatistics:
        """Counters since boot."""
        return ServiceStatistics(self.served, self.waited, self.failed)
