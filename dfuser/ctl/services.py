"""The ports every dfuser exports: kernel, sysctl, kern, ddb here; the others in their own files.

Each service is a view on live structures. Its commands check their arguments, call what the sysctl
handler, the file in ``/kern`` or the system call would call, and give plain JSON data of bounded
size. `make_services` puts all of them together for one kernel.

====== ==================================================== =====================
port   about                                                file
====== ==================================================== =====================
kernel the instance: information, counters, sync, stop      services.py
sysctl the variables                                        services.py
kern   every view of ``/kern``, by name                     services.py
ddb    the debugger's commands                              services.py
ps     processes and threads                                lwkt_services.py
ports  message ports                                        lwkt_services.py
ktr    trace masters and entries                            lwkt_services.py
log    the kernel log, also as it comes                     lwkt_services.py
trace  lines and latencies of a layer, as they come         trace_services.py
vfs    mounts, names, vnodes                                vfs_services.py
====== ==================================================== =====================

Counterpart: sysctl(3), kldstat-like helpers and kvm(3) readers in DragonFly's base system.
Token/lock order: takes none; a command that must wait says `Block`.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from dfuser.libkern.errno import EINVAL, ENOENT, EOPNOTSUPP, KError
from dfuser.libkern.sysctl import CtlFlag, SysctlOid
from dfuser.libkern.ucred import Ucred
from dfuser.vfs.kernfs.registry import plain

from .hostjob import HostJobs
from .lwkt_services import KtrService, LogService, PortsService, PsService
from .service import Service, command
from .trace_services import TraceService
from .vfs_services import VfsService

if TYPE_CHECKING:
    from dfuser.boot.kernel import Kernel
    from dfuser.vfs.hostcache import HostCache

#: Most variables one `list` gives, and most bytes of a value or a command line.
MAX_LIST: Final = 20_000
MAX_TEXT: Final = 4096
#: How the flags of a variable are called.
_FLAG_WORDS: Final = (
    (CtlFlag.RD, "read"),
    (CtlFlag.WR, "write"),
    (CtlFlag.SECURE, "secure"),
    (CtlFlag.ANYBODY, "anybody"),
    (CtlFlag.PRISON, "prison"),
)


def need_str(name: str, value: object, limit: int = MAX_TEXT) -> str:
    """An argument that must be a text. Raises KError EINVAL."""
    if not isinstance(value, str) or len(value) > limit:
        raise KError(EINVAL, f"{name} must be a text of at most {limit} characters")
    return value


class KernelService(Service):
    """The instance as a whole."""

    name = "kernel"

    def __init__(
        self,
        kernel: Kernel,
        jobs: HostJobs,
        unmount: Callable[[bool], Awaitable[None]] | None = None,
        extra: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(kernel.lwkt, kernel.report, kernel.panicked)
        self.kernel = kernel
        self._jobs = jobs
        self._unmount = unmount
        self._extra = extra or dict

    @command
    def cmd_info(self, cred: Ucred) -> dict[str, Any]:
        """What runs: version, process, CPUs, memory, uptime, settings and their origins."""
        kernel = self.kernel
        settings = [
            {"name": name, "value": value, "origin": origin}
            for name, value, origin in kernel.config.explain()
        ]
        return {
            "version": kernel.version,
            "pid": os.getpid(),
            "state": kernel.state,
            "uptime_seconds": round(kernel.uptime(), 3),
            "cpus": len(kernel.lwkt.cpus),
            "memory_bytes": kernel.config.memory,
            "threads": len(kernel.lwkt.threads),
            "failures": kernel.failures,
            "settings": settings,
        }

    @command
    def cmd_statistics(self, cred: Ucred) -> dict[str, Any]:
        """The counters of every subsystem, as in /kern/stats."""
        stats: dict[str, Any] = dict(self.kernel.world.views.stats())
        stats.update(plain(self._extra()))
        return stats

    @command
    def cmd_sync(self, cred: Ucred) -> None:
        """Write everything dirty and return when that is done."""
        self.kernel.vfs.sync_all()

    @command
    def cmd_stop(self, cred: Ucred, lazy: bool = False) -> None:
        """Sync, unmount from the host and end; EBUSY names who holds the mount.

        The reply comes when the host has unmounted. ``lazy`` unmounts although it is in use.
        """
        if not isinstance(lazy, bool):
            raise KError(EINVAL, "lazy must be true or false")
        unmount = self._unmount
        if unmount is None:
            raise KError(EOPNOTSUPP, "this kernel is not mounted on the host")
        self.kernel.vfs.sync_all()
        self._jobs.once("unmount", lambda: unmount(lazy))


class SysctlService(Service):
    """The variables. The same checks as for the files under /sysctl."""

    name = "sysctl"

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.lwkt, kernel.report, kernel.panicked)
        self.tree = kernel.sysctl

    @command
    def cmd_get(self, cred: Ucred, name: str) -> dict[str, Any]:
        """One variable: value, type, description."""
        oid = self.tree.find(need_str("name", name))
        if oid.is_node:
            raise KError(EINVAL, f"{name} is a node: list it instead")
        return _oid(oid)

    @command
    def cmd_set(self, cred: Ucred, name: str, value: str | int) -> dict[str, Any]:
        """Change a variable; gives its old and its new value as text."""
        oid = self.tree.find(need_str("name", name))
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise KError(EINVAL, "value must be a text or an integer")
        text = need_str("value", str(value))
        old = oid.get() if oid.flags & CtlFlag.RD else ""
        try:
            oid.set(text, cred)
        except KError as error:
            if error.errno != EINVAL:
                raise
            raise KError(EINVAL, f"{name}={text}: {error.strerror}") from None
        return {"name": oid.name, "old": old, "new": oid.get() if oid.flags & CtlFlag.RD else ""}

    @command
    def cmd_list(self, cred: Ucred, prefix: str = "", values: bool = True) -> list[dict[str, Any]]:
        """The variables below a name, with their values unless ``values`` is false."""
        oids = islice(self.tree.walk(need_str("prefix", prefix)), MAX_LIST)
        return [_oid(oid, value=bool(values)) for oid in oids]


def _oid(oid: SysctlOid, *, value: bool = True) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": oid.name,
        "type": oid.kind.name.lower() if oid.kind.name else str(int(oid.kind)),
        "format": oid.fmt,
        "flags": [word for flag, word in _FLAG_WORDS if oid.flags & flag],
        "description": oid.descr,
    }
    if value and oid.flags & CtlFlag.RD:
        try:
            row["value"] = oid.get()
        except KError as error:
            row["error"] = error.errno
    return row


class KernService(Service):
    """The views of /kern, as data."""

    name = "kern"

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.lwkt, kernel.report, kernel.panicked)
        self.vfs = kernel.vfs
        self.views = kernel.world.views

    @property
    def hostcache(self) -> HostCache | None:
        """The host, which must hear what a view did before who asked for it goes on."""
        return self.vfs.hostcache

    @command
    def cmd_list(self, cred: Ucred) -> list[dict[str, Any]]:
        """The views: name, description, whether it takes commands."""
        return [
            {"name": view.name, "description": view.descr, "writable": view.obey is not None}
            for view in sorted(self.views, key=lambda view: view.name)
        ]

    @command
    def cmd_read(self, cred: Ucred, name: str) -> str:
        """The text of a view."""
        view = self.views.find(need_str("name", name))
        if view is None:
            raise KError(ENOENT, f"there is no view {name!r} in /kern")
        return self.views.render(view)

    @command(settles=True)
    def cmd_write(self, cred: Ucred, name: str, text: str) -> str | None:
        """Give a view one command."""
        view = self.views.find(need_str("name", name))
        if view is None:
            raise KError(ENOENT, f"there is no view {name!r} in /kern")
        data = need_str("text", text).encode("utf-8", "surrogateescape")
        answer = self.views.obey(view, data, cred)
        return answer.decode("utf-8", "replace") if answer is not None else None


class DdbService(Service):
    """The debugger's commands."""

    name = "ddb"

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.lwkt, kernel.report, kernel.panicked)
        self.ddb = kernel.ddb

    @command
    def cmd_run(self, cred: Ucred, line: str) -> list[str]:
        """Run one command line; gives the lines it prints."""
        if need_str("line", line).split() in (["help"], ["?"]):
            return [f"{entry.name:<24} {entry.help}" for entry in self.ddb.entries()]
        return self.ddb.run(line)


def make_services(
    kernel: Kernel,
    jobs: HostJobs,
    unmount: Callable[[bool], Awaitable[None]] | None = None,
    extra: Callable[[], dict[str, Any]] | None = None,
) -> list[Service]:
    """Every service of ``kernel``.

    Args:
        kernel: a booted kernel.
        jobs: runs what the host must do for a command.
        unmount: takes the mount away from the host, lazily or not; raises KError. None when the
            kernel is not mounted.
        extra: further statistics by name (the bridge's).
    """
    return [
        KernelService(kernel, jobs, unmount, extra),
        SysctlService(kernel),
        KernService(kernel),
        DdbService(kernel),
        PsService(kernel),
        PortsService(kernel),
        KtrService(kernel),
        LogService(kernel),
        TraceService(kernel),
        VfsService(kernel),
    ]
