"""One watcher for all blocked callers: a signal to a host process ends its wait here.

A process blocked in a FUSE request cannot even be killed until it is answered. The device transport
is told of a signal by FUSE_INTERRUPT and passes it on (`SignalWatcher.interrupt`). pyfuse3 has no
callback for it: while requests wait, this task reads the pending signals of their callers from the
host's ``/proc`` every 20 ms and ends the wait of a signalled caller with EINTR. Both ways the look
is repeated until the wait is over, so no signal is lost to a thread that was not asleep yet.

Three kinds of callers are looked at:

* **the asker is known** (all operations that name a file): its thread is looked at.
* **only the opener is known** (read, write, fsync ... of an open file): every thread of the
  opener's process is looked at, and of every process that has the file open; these are looked for
  in a worker thread every second (`callers.holders_of`). A signal to one thread may end the wait
  of another one of the same process with EINTR, which then asks again.
* **nobody can be seen** (a caller in another pid namespace, for which FUSE reports 0; a process
  that is gone): the wait is bounded by ``vfs.fuse.foreign_wait`` seconds and ends with EINTR too.

Counterpart: the signal half of tsleep(PCATCH) (sys/kern/kern_synch.c), for processes that are not
ours.
Invariants: a wait is ended by name (its Lwp), never twice for one sleep; nothing is watched that
does not wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from dfuser.libkern.errno import EINTR
from dfuser.libkern.sysctl import CtlFlag, Sysctl

from .callers import GONE, holders_of, pending_signals, proc_is_ours, process_of, process_signals

if TYPE_CHECKING:
    from dfuser.kern.lwp import Lwp
    from dfuser.lwkt.thread import Thread

#: Seconds between two looks while anybody waits.
INTERVAL: Final = 0.02
#: A look over many callers is followed by a pause this many times as long as it took.
PAUSE_RATIO: Final = 4
#: Looks between two searches for the holders of files with waiting requests.
SEARCH_EVERY: Final = 50
_NS: Final = 1_000_000_000


class WatcherStatistics(NamedTuple):
    """What `SignalWatcher.statistics` returns."""

    watched: int
    looks: int
    searches: int
    interrupted: int


class Probes(NamedTuple):
    """How the host is asked; replaced in tests."""

    thread: Callable[[int], int] = pending_signals
    process: Callable[[int], int] = process_signals
    process_of: Callable[[int], int] = process_of
    holders: Callable[[frozenset[int]], dict[int, set[int]]] = holders_of
    sees: Callable[[], bool] = proc_is_ours


class Watch:
    """One waiting request."""

    __slots__ = ("interrupted", "nodeid", "opener", "since", "told")

    def __init__(self, since: int, nodeid: int, opener: int, told: bool) -> None:
        self.since = since
        #: The host says by itself when the caller is signalled (`SignalWatcher.interrupt`).
        self.told = told
        self.interrupted = False
        #: The open file it came through; 0 when the caller himself is known.
        self.nodeid = nodeid
        #: The process of the opener, 0 when it cannot be seen.
        self.opener = opener


class SignalWatcher:
    """Watches the callers of parked requests.

    Args:
        abort_sleep: ends the interruptible sleep of a thread with an errno (`synch.abort_sleep`).
        monotonic_ns: the kernel's clock.
        probes: how the host is asked.
        lost: asked at every look; True when the host has gone away and all waits are moot.
    """

    sysctl_foreign = Sysctl(
        "vfs.fuse.foreign_wait",
        "longest wait in seconds of a caller without a pid here",
        attr="foreign_wait",
        flags=CtlFlag.RW,
        minimum=1,
        maximum=86400,
    )
    sysctl_looks = Sysctl(
        "vfs.fuse.signal_looks", "times a caller's signals were read", attr="looks"
    )

    def __init__(
        self,
        abort_sleep: Callable[[Thread, int], bool],
        monotonic_ns: Callable[[], int],
        probes: Probes | None = None,
        lost: Callable[[], bool] = lambda: False,
    ) -> None:
        self.abort_sleep = abort_sleep
        self.monotonic_ns = monotonic_ns
        self.probes = probes or Probes()
        self.lost = lost
        self.foreign_wait = 30
        self.looks = 0
        self.searches = 0
        self.interrupted = 0
        self._sees = self.probes.sees()
        self._watched: dict[Lwp, Watch] = {}
        self._holders: dict[int, set[int]] = {}
        self._until_search = 0
        self._ending = False
        self._pause = 0.0
        self._wake = trio.Event()

    def watch(self, lwp: Lwp, nodeid: int = 0, *, told: bool = False) -> None:
        """Watch for whom ``lwp`` waits: its host process, or whoever has ``nodeid`` open.

        With ``told`` nobody is looked at: the host will say when the caller is signalled.
        """
        pid = lwp.proc.host_pid
        if told:
            nodeid = 0
        opener = self.probes.process_of(pid) if nodeid and pid and self._sees else 0
        self._watched[lwp] = Watch(self.monotonic_ns(), nodeid, opener, told)
        if nodeid and nodeid not in self._holders:
            self._until_search = min(self._until_search, 1)
        self._wake.set()

    def unwatch(self, lwp: Lwp) -> None:
        """The request has been answered."""
        self._watched.pop(lwp, None)

    def interrupt(self, lwp: Lwp) -> None:
        """The host has said that the caller was signalled: end the wait, now or when it begins."""
        watch = self._watched.get(lwp)
        if watch is not None:
            watch.interrupted = True
            self._end(lwp)

    def _end(self, lwp: Lwp) -> None:
        td = lwp.thread
        if td is not None and self.abort_sleep(td, EINTR):
            self.interrupted += 1

    def end_all(self) -> None:
        """End every wait, now and from now on: the session is over."""
        self._ending = True
        self._wake.set()
        self.look()

    async def run(self) -> None:
        """The watcher's task: looks while somebody waits, sleeps otherwise."""
        while True:
            if not self._watched:
                self._holders.clear()
                self._until_search = 0
                self._wake = trio.Event()
                await self._wake.wait()
            await trio.sleep(max(INTERVAL, self._pause))
            if self._until_search <= 0:
                await self.search()
                self._until_search = SEARCH_EVERY
            self._until_search -= 1
            self.look()

    async def search(self) -> None:
        """Find out who has the files open through which requests wait; in a worker thread."""
        files = frozenset(watch.nodeid for watch in self._watched.values() if watch.nodeid)
        if files and self._sees:
            self.searches += 1
            self._holders = await trio.to_thread.run_sync(self.probes.holders, files)

    def look(self) -> None:
        """Read every blocked caller's signals once and end the waits of those signalled."""
        now = began = self.monotonic_ns()
        everybody = self._ending or self.lost()
        known: dict[tuple[bool, int], int] = {}
        for lwp, watch in list(self._watched.items()):
            if everybody or self._hit(lwp.proc.host_pid, watch, now, known):
                self._end(lwp)
        self._pause = (self.monotonic_ns() - began) * PAUSE_RATIO / _NS

    def _hit(self, pid: int, watch: Watch, now: int, known: dict[tuple[bool, int], int]) -> bool:
        """Whether the wait is to end."""
        if watch.told:
            return watch.interrupted
        if not pid or not self._sees:
            return now - watch.since > self.foreign_wait * _NS
        if not watch.nodeid:
            return self._ask(False, pid, known) != 0
        seen = False
        for process in {watch.opener, *self._holders.get(watch.nodeid, ())} - {0}:
            mask = self._ask(True, process, known)
            if mask > 0:
                return True
            seen = seen or mask != GONE
        return not seen and now - watch.since > self.foreign_wait * _NS

    def _ask(self, process: bool, pid: int, known: dict[tuple[bool, int], int]) -> int:
        """The pending signals of a thread or process, read at most once a look."""
        mask = known.get((process, pid))
        if mask is None:
            self.looks += 1
            probe = self.probes.process if process else self.probes.thread
            mask = known[process, pid] = probe(pid)
        return mask

    def statistics(self) -> WatcherStatistics:
        """Counters since boot."""
        return WatcherStatistics(len(self._watched), self.looks, self.searches, self.interrupted)
