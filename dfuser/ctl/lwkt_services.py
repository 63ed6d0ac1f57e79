"""Services about what runs: ps, ports, ktr, log.

`log.wait` and `ktr.wait` are the commands that end when there is something new. They show what
asynchronous replies are for: a client sends one, does other things, and takes the reply when it
comes.

Counterpart: ps(1), ktrdump(8), dmesg(8) and their kernel halves.
Differs from DragonFly: an addition.
Token/lock order: takes none.
Invariants: ``seq`` numbers only grow; a client that gives the number of its last answer misses
nothing that the ring still holds, and is told how much it does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dfuser.libkern.errno import EINVAL, EWOULDBLOCK, KError
from dfuser.libkern.param import HZ, PCATCH
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt.block import Block
from dfuser.lwkt.msgport import ports_of
from dfuser.lwkt.synch import tsleep, wakeup
from dfuser.vfs.kernfs.registry import plain

from .service import Service, command

if TYPE_CHECKING:
    from dfuser.boot.kernel import Kernel
    from dfuser.libkern.ktr import KtrEntry, KtrMaster

MAX_ROWS: Final = 10_000
MAX_LOG: Final = 1 << 20
#: How often a follower of trace entries looks, in ticks.
KTR_POLL: Final = HZ // 10


def need_int(name: str, value: object, low: int, high: int) -> int:
    """An argument that must be a number in a range. Raises KError EINVAL."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise KError(EINVAL, f"{name} must be an integer from {low} to {high}")
    return value


class PsService(Service):
    """Processes and threads. Counterpart: kern.proc.all_lwp."""

    name = "ps"

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.lwkt, kernel.report, kernel.panicked)
        self.kinfo = kernel.world.kinfo

    @command
    def cmd_list(self, cred: Ucred, limit: int = MAX_ROWS) -> list[dict[str, Any]]:
        """Every thread with its process, kernel threads first."""
        limit = need_int("limit", limit, 1, MAX_ROWS)
        rows: list[dict[str, Any]] = []
        for record in self.kinfo.all():
            if len(rows) >= limit:
                break
            rows.append(plain(record))
        return rows


class PortsService(Service):
    """Message ports."""

    name = "ports"

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.lwkt, kernel.report, kernel.panicked)

    @command
    def cmd_list(self, cred: Ucred, limit: int = MAX_ROWS) -> list[dict[str, Any]]:
        """The ports with their queues and counters."""
        limit = need_int("limit", limit, 1, MAX_ROWS)
        ports = list(ports_of(self.lwkt))[:limit]
        return [plain(port.statistics()) for port in ports]


class KtrService(Service):
    """Trace masters and entries."""

    name = "ktr"

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.lwkt, kernel.report, kernel.panicked)
        self.ktr = kernel.ktr

    @command
    def cmd_masters(self, cred: Ucred) -> list[dict[str, Any]]:
        """The masters: mask, points and how often each was noted."""
        return [
            {
                "name": name,
                "mask": master.mask,
                "points": [
                    {"name": point.info.name, "bit": point.bit, "count": point.count}
                    for point in master.points.values()
                ],
            }
            for name, master in sorted(self.ktr.masters.items())
        ]

    @command
    def cmd_enable(self, cred: Ucred, master: str, mask: int = -1) -> int:
        """Switch a master on (-1: all its points); gives the old mask."""
        found = self._master(master)
        old = found.mask
        found.mask = need_int("mask", mask, -1, 0xFFFFFFFF)
        return old

    @command
    def cmd_disable(self, cred: Ucred, master: str) -> int:
        """Switch a master off; gives the old mask."""
        found = self._master(master)
        old, found.mask = found.mask, 0
        return old

    @command
    def cmd_dump(self, cred: Ucred, count: int = 1000) -> dict[str, Any]:
        """The newest entries of all CPUs in their order."""
        return self._answer(self.ktr.tail(need_int("count", count, 1, MAX_ROWS)))

    @command
    def cmd_wait(self, cred: Ucred, since: int = -1, count: int = 1000) -> dict[str, Any]:
        """Entries after the one numbered ``since``; waits until there is one."""
        since = need_int("since", since, -1, 1 << 62)
        count = need_int("count", count, 1, MAX_ROWS)
        fresh = [entry for entry in self.ktr.tail(MAX_ROWS) if entry.seq > since]
        if not fresh:
            raise Block(self._wait, "ktrwait")
        return self._answer(fresh[:count])

    async def _wait(self) -> int:
        error = await tsleep(self, PCATCH, "ktrwait", KTR_POLL)
        return 0 if error == EWOULDBLOCK else error

    def _master(self, name: object) -> KtrMaster:
        master = self.ktr.masters.get(name) if isinstance(name, str) else None
        if master is None:
            names = ", ".join(sorted(self.ktr.masters))
            raise KError(EINVAL, f"there is no trace master {name!r}: there are {names}")
        return master

    @staticmethod
    def _answer(entries: list[KtrEntry]) -> dict[str, Any]:
        rows = [
            {
                "seq": entry.seq,
                "timestamp_ns": entry.timestamp,
                "cpu": entry.cpu,
                "master": entry.info.master,
                "point": entry.info.name,
                "text": entry.info.format(entry.args),
            }
            for entry in entries
        ]
        return {"last": entries[-1].seq if entries else -1, "entries": rows}


class LogService(Service):
    """The kernel log. Counterpart: /dev/klog and kern.msgbuf, for any number of readers."""

    name = "log"

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.lwkt, kernel.report, kernel.panicked)
        self.msgbuf = kernel.msgbuf
        self.waiters = 0

    @command
    def cmd_tail(self, cred: Ucred, lines: int = 1000) -> dict[str, Any]:
        """The last lines, and the number to begin waiting from."""
        text = self.msgbuf.tail(need_int("lines", lines, 0, MAX_ROWS))
        return {"seq": self.msgbuf.seq, "lines": text}

    @command
    def cmd_wait(self, cred: Ucred, since: int, limit: int = 1 << 16) -> dict[str, Any]:
        """The text after byte ``since`` of the log; waits until there is some."""
        since = need_int("since", since, 0, 1 << 62)
        chunk = self.msgbuf.read_since(since, need_int("limit", limit, 1, MAX_LOG))
        if not chunk.data and not chunk.lost:
            raise Block(self._wait, "klog")
        text = chunk.data.decode("utf-8", "replace")
        return {"seq": chunk.seq, "lost": chunk.lost, "text": text}

    async def _wait(self) -> int:
        if not self.waiters:
            self.msgbuf.listen(self._arrived)
        self.waiters += 1
        try:
            return await tsleep(self, PCATCH, "klog")
        finally:
            self.waiters -= 1
            if not self.waiters:
                self.msgbuf.unlisten(self._arrived)

    def _arrived(self) -> None:
        self.lwkt.cpus[0].interrupt(wakeup, self)
