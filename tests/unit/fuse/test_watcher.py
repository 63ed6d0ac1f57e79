"""The watcher of blocked callers, with a host made of tables; and what it reads of the real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from dfuser.fuse import callers
from dfuser.fuse.watcher import Probes, SignalWatcher
from dfuser.libkern.errno import EINTR

SECOND = 1_000_000_000


class Host:
    """Pending signals of threads and processes, and who holds which file."""

    def __init__(self) -> None:
        self.threads: dict[int, int] = {}
        self.processes: dict[int, int] = {}
        self.files: dict[int, set[int]] = {}
        self.now = 0
        self.visible = True
        self.gone = False
        self.ended: list[tuple[Any, int]] = []

    def watcher(self) -> SignalWatcher:
        probes = Probes(
            lambda pid: self.threads.get(pid, callers.GONE),
            lambda pid: self.processes.get(pid, callers.GONE),
            lambda pid: pid if pid in self.processes else 0,
            lambda inodes: {ino: self.files.get(ino, set()) for ino in inodes},
            lambda: self.visible,
        )
        return SignalWatcher(self.abort, lambda: self.now, probes, lambda: self.gone)

    def abort(self, thread: Any, error: int) -> bool:
        self.ended.append((thread, error))
        return True


class Waiting:
    """As much of an Lwp as the watcher looks at."""

    def __init__(self, host_pid: int) -> None:
        self.thread = self
        self.proc = self
        self.host_pid = host_pid


def waiting(pid: int) -> Any:
    return Waiting(pid)


@pytest.fixture
def host() -> Host:
    return Host()


async def test_a_known_caller(host: Host) -> None:
    """What if the caller has no signal, then one, or has died?"""
    watcher = host.watcher()
    quiet, hit, dead = waiting(1), waiting(2), waiting(3)
    host.threads = {1: 0, 2: 1 << 8}
    for lwp in (quiet, hit, dead):
        watcher.watch(lwp)
    watcher.look()
    assert host.ended == [(hit, EINTR), (dead, EINTR)]
    watcher.unwatch(hit)
    watcher.unwatch(dead)
    host.ended.clear()
    watcher.look()
    assert not host.ended


async def test_the_reader_of_an_open_file(host: Host) -> None:
    """What if only the opener is known, and another process that holds the file is hit?"""
    watcher = host.watcher()
    lwp = waiting(10)
    host.processes = {10: 0, 11: 0}
    host.files = {7: {10, 11}}
    watcher.watch(lwp, 7)
    watcher.look()
    assert not host.ended
    host.processes[11] = 1 << 8
    watcher.look()
    assert not host.ended, "nobody has looked for the holders yet"
    await watcher.search()
    watcher.look()
    assert host.ended == [(lwp, EINTR)]


async def test_an_opener_that_is_gone(host: Host) -> None:
    """What if nobody who holds the file can be seen: is the wait bounded and not ended at once?"""
    watcher = host.watcher()
    lwp = waiting(10)
    watcher.watch(lwp, 7)
    await watcher.search()
    watcher.look()
    assert not host.ended
    host.now = 31 * SECOND
    watcher.look()
    assert host.ended == [(lwp, EINTR)]


@pytest.mark.parametrize(("pid", "visible"), [(0, True), (5, False)])
async def test_callers_of_another_namespace(host: Host, pid: int, visible: bool) -> None:
    """What if FUSE gives no number, or our /proc shows other processes than its numbers mean?"""
    host.visible = visible
    host.threads = {5: 1 << 8}
    watcher = host.watcher()
    watcher.foreign_wait = 2
    lwp = waiting(pid)
    watcher.watch(lwp)
    host.now = 2 * SECOND
    watcher.look()
    assert not host.ended
    host.now += 1
    watcher.look()
    assert host.ended == [(lwp, EINTR)]


async def test_the_host_goes_away(host: Host) -> None:
    """What if the mount is gone, or the session ends: do all waits end?"""
    watcher = host.watcher()
    host.threads = {1: 0, 2: 0}
    watcher.watch(waiting(1))
    watcher.watch(waiting(2))
    host.gone = True
    watcher.look()
    assert len(host.ended) == 2
    host.gone = False
    watcher.end_all()
    assert len(host.ended) == 4


async def test_one_look_reads_each_caller_once(host: Host) -> None:
    """What if five hundred requests of one process wait?"""
    watcher = host.watcher()
    host.threads = {1: 0}
    for _ in range(500):
        watcher.watch(waiting(1))
    watcher.look()
    assert watcher.statistics().looks == 1
    assert watcher.statistics().watched == 500


# --- the real host -------------------------------------------------------------------------------


def test_pending_and_blocked_signals() -> None:
    """What if a signal is blocked, pending and blocked, or unblocked?"""
    code = (
        "import os, signal, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
        "print('ready', flush=True); sys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    assert callers.pending_signals(child.pid) == 0, "pending, but blocked"
    assert callers.process_of(child.pid) == child.pid
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    child.send_signal(signal.SIGTERM)
    assert callers.process_signals(child.pid) & 1 << signal.SIGTERM - 1
    child.send_signal(signal.SIGCONT)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert callers.pending_signals(child.pid) == callers.GONE, "a zombie does not run again"
    child.communicate()
    assert callers.pending_signals(child.pid) == callers.GONE
    assert callers.process_signals(child.pid) == callers.GONE
    assert callers.process_of(child.pid) == 0


def test_holders_of_a_file(tmp_path: Any) -> None:
    """What if another process has a file open: is it found by the inode number?"""
    path = tmp_path / "f"
    path.touch()
    number = path.stat().st_ino
    with path.open() as file:
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE,
            pass_fds=[file.fileno()],
        )  # fmt: skip
    assert child.pid in callers.holders_of(frozenset([number]))[number]
    child.communicate()
    assert child.pid not in callers.holders_of(frozenset([number]))[number]


def test_groups_and_namespace() -> None:
    """What if our own groups are read, and those of nobody?"""
    assert set(callers.groups_of(os.getpid())) >= set(os.getgroups()) - {os.getgid()}
    assert callers.groups_of(0) == ()
    assert callers.proc_is_ours()
