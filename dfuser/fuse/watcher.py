"""One watcher for all blocked callers: a signal to a host process ends its wait here.

pyfuse3 has no callback for FUSE_INTERRUPT, and a process blocked in a FUSE request cannot even be
killed until it is answered. While requests wait, this task reads the pending signals of their
callers from the host's ``/proc`` every 20 ms and ends the wait of a signalled caller with EINTR.

A caller in another pid namespace has no number here (FUSE reports 0): its waits are bounded by
``vfs.fuse.foreign_wait`` seconds and end with EINTR as well.

Counterpart: the signal half of tsleep(PCATCH) (sys/kern/kern_synch.c), for processes that are not
ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from dfuser.libkern.errno import EINTR
from dfuser.libkern.sysctl import CtlFlag, Sysctl

if TYPE_CHECKING:
    from dfuser.kern.lwp import Lwp
    from dfuser.lwkt.thread import Thread

#: Seconds between two looks while anybody waits.
INTERVAL: Final = 0.02
_NS: Final = 1_000_000_000


class WatcherStatistics(NamedTuple):
    """What `SignalWatcher.statistics` returns."""

    watched: int
    looks: int
    interrupted: int


def pending_signals(pid: int) -> int:
    """Mask of signals that wait for host thread ``pid`` and that it does not block; -1: gone.

    Reads /proc/PID/status. Signals a process ignores never become pending.
    """
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            text = status.read()
    except (FileNotFoundError, ProcessLookupError):
        return -1
    pending = blocked = 0
    for line in text.splitlines():
        if line.startswith((b"SigPnd:", b"ShdPnd:")):
            pending |= int(line[7:], 16)
        elif line.startswith(b"SigBlk:"):
            blocked = int(line[7:], 16)
    return pending & ~blocked


class SignalWatcher:
    """Watches the callers of parked requests.

    Args:
        abort_sleep: ends the interruptible sleep of a thread with an errno (`synch.abort_sleep`).
        monotonic_ns: the kernel's clock.
        probe: reads the pending signals of a host thread.
    """

    sysctl_foreign = Sysctl(
        "vfs.fuse.foreign_wait", "longest wait in seconds of a caller without a pid here",
        attr="foreign_wait", flags=CtlFlag.RW, minimum=1, maximum=86400,
    )
    sysctl_looks = Sysctl("vfs.fuse.signal_looks", "times a caller's signals were read",
                          attr="looks")

    def __init__(
        self,
        abort_sleep: Callable[[Thread, int], bool],
        monotonic_ns: Callable[[], int],
        probe: Callable[[int], int] = pending_signals,
    ) -> None:
        self.abort_sleep = abort_sleep
        self.monotonic_ns = monotonic_ns
        self.probe = probe
        self.foreign_wait = 30
        self.looks = 0
        self.interrupted = 0
        self._watched: dict[Lwp, int] = {}
        self._wake = trio.Event()

    def watch(self, lwp: Lwp) -> None:
        """Start watching the host process for which ``lwp`` waits."""
        self._watched[lwp] = self.monotonic_ns()
        self._wake.set()

    def unwatch(self, lwp: Lwp) -> None:
        """The request has been answered."""
        self._watched.pop(lwp, None)

    async def run(self) -> None:
        """The watcher's task: looks while somebody waits, sleeps otherwise."""
        while True:
            if not self._watched:
                self._wake = trio.Event()
                await self._wake.wait()
            await trio.sleep(INTERVAL)
            self.look()

    def look(self) -> None:
        """Read every blocked caller's signals once and end the waits of those signalled."""
        now = self.monotonic_ns()
        signalled: dict[int, bool] = {}
        for lwp, since in list(self._watched.items()):
            pid = lwp.proc.host_pid
            if pid == 0:
                hit = now - since > self.foreign_wait * _NS
            else:
                known = signalled.get(pid)
                if known is None:
                    self.looks += 1
                    known = signalled[pid] = self.probe(pid) != 0
                hit = known
            td = lwp.thread
            if hit and td is not None and self.abort_sleep(td, EINTR):
                self.interrupted += 1

    def statistics(self) -> WatcherStatistics:
        """Counters since boot."""
        return WatcherStatistics(len(self._watched), self.looks, self.interrupted)
