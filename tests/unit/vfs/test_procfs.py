"""procfs: processes and threads as directories, signals as writes, curproc."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dfuser.kern.proc import CallerId
from dfuser.kern.procsig import cursig
from dfuser.libkern.errno import (
    EACCES,
    EBUSY,
    EINTR,
    EINVAL,
    EMSGSIZE,
    ENOENT,
    EOPNOTSUPP,
    EPERM,
    EROFS,
)
from dfuser.libkern.fcntl import O_RDONLY, O_WRONLY
from dfuser.libkern.param import PCATCH
from dfuser.libkern.stat import VType
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt.synch import synch_of, tsleep
from dfuser.vfs.procfs.procfs import atopid
from dfuser.vfs.syscalls import kern_close, kern_mkdir, kern_read, kern_write

from .synth_world import ROOT, USER, SynthWorld


class World(SynthWorld):
    """The kernel, with requests that wait."""

    def __init__(self) -> None:
        super().__init__()
        synch_of(self.lwkt).cursig = cursig
        self.results: list[int] = []

    def park(self, uid: int = 1000, host_pid: int = 4321, op: str = "read") -> Any:
        """A request of the host that sleeps."""
        lwp = self.procs.request_enter(uid, 100, host_pid, op)

        async def body() -> None:
            try:
                self.results.append(await tsleep(self, PCATCH, "klog", 0))
            finally:
                self.procs.request_exit(lwp)

        td = self.lwkt.create(body, name=lwp.proc.comm, cpu=1, pri=10, start=False)
        td.lwp, lwp.thread = lwp, td
        self.lwkt.schedule(td)
        self.lwkt.run_until_idle()
        return lwp


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def test_every_process_is_a_directory(world: World) -> None:
    """What if the kernel, a parked request and nobody else exist?"""
    world.park()
    assert world.names("/proc") == ["curproc", "0", "2"]
    assert world.names("/proc/2") == ["ctl", "status", "note", "notepg", "cmdline", "threads"]
    attrs = world.stat("/proc/2/status")
    assert (attrs.type, attrs.mode, attrs.uid, attrs.gid) == (VType.VREG, 0o444, 1000, 100)
    assert world.stat("/proc/2").mode == 0o555
    assert world.stat("/proc/2/ctl").mode == 0o200


def test_the_status_line_is_the_one_of_bsd(world: World) -> None:
    """What if ps of a BSD reads the status of a parked request?"""
    start = world.clock.realtime_ns() // 10**9
    world.park()
    assert world.read("/proc/2/status") == (
        b"fuse:read/4321 2 0 0 0 -1,-1 noflags %d,0 0,0 0,0 klog 1000 1000 100,100 -\n" % start
    )
    fields = world.read("/proc/0/status").decode().split()
    assert fields[:7] == ["swapper", "0", "0", "0", "0", "-1,-1", "noflags"]
    assert fields[10:] == ["nochan", "0", "0", "0,0", "-"]
    assert len(fields) == 15


def test_the_jail_is_named(world: World) -> None:
    """What if a process is in a jail?"""

    class Prison:
        host = "jail.example"

    lwp = world.procs.request_enter(5, 5, 1, "x")
    lwp.proc.ucred = Ucred.of(5, 5, prison=Prison())
    assert world.read(f"/proc/{lwp.proc.pid}/status").endswith(b" jail.example\n")


def test_command_lines(world: World) -> None:
    """What if somebody reads the command lines of the kernel and of a request?"""
    world.park()
    assert world.read("/proc/2/cmdline") == b"fuse:read\x004321\x00"
    assert world.read("/proc/0/cmdline") == b"swapper\x00"


def test_kernel_threads_are_in_process_0(world: World) -> None:
    """What if a daemon sleeps: where is it seen, and how?"""

    async def daemon() -> None:
        await tsleep("forever", 0, "vlruwt", 0)

    td = world.lwkt.create(daemon, name="vnlru", pri=12, cpu=1)
    lwp = world.park()
    lines = world.read("/proc/0/threads").decode().splitlines()
    assert lines == [f"{td.tid} 12 1 S vlruwt 1 vnlru"]
    (line,) = world.read("/proc/2/threads").decode().splitlines()
    assert line == f"{lwp.thread.tid} 10 1 I klog 1 fuse:read/4321"


# --- signals and other commands ----------------------------------------


@pytest.mark.parametrize("who", [ROOT, Ucred.of(1000, 100)])
def test_a_parked_request_is_killed_by_a_write(world: World, who: Ucred) -> None:
    """What if root, or the user himself, writes `kill` to ctl?"""
    world.park()
    world.write("/proc/2/ctl", "kill\n", who)
    world.lwkt.run_until_idle()
    assert world.results == [EINTR]
    assert world.errno(world.stat, "/proc/2") == ENOENT
    assert world.names("/proc") == ["curproc", "0"]


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("attach", EOPNOTSUPP), ("detach", 0), ("step", EBUSY), ("run", EBUSY),
        ("wait", EOPNOTSUPP), ("stop", EOPNOTSUPP), ("chld\n", 0), ("", EOPNOTSUPP),
        ("nonsense", EOPNOTSUPP), ("nonsense\n", EMSGSIZE), ("x" * 9, EMSGSIZE),
    ],
)  # fmt: skip
def test_other_commands(world: World, command: str, error: int) -> None:
    """What if words of the debugger, unknown words or long words are written to ctl?"""
    world.park()
    assert world.errno(world.write, "/proc/2/ctl", command) == error
    world.lwkt.run_until_idle()
    assert world.results == []


def test_the_kernel_and_other_users_are_safe(world: World) -> None:
    """What if root kills process 0, or a user somebody else's request?"""
    world.park(uid=2000)
    assert world.errno(world.write, "/proc/0/ctl", "kill") == EPERM
    assert world.errno(world.open, "/proc/2/ctl", O_WRONLY, USER) == EACCES
    assert world.results == []


def test_reading_what_can_only_be_written(world: World) -> None:
    """What if root reads ctl and note?"""
    assert world.errno(world.read, "/proc/0/ctl") == EOPNOTSUPP
    assert world.errno(world.read, "/proc/0/note") == EINVAL
    assert world.errno(world.write, "/proc/0/note", "hello") == EOPNOTSUPP
    assert world.errno(world.write, "/proc/0/notepg", "x" * 65) == EMSGSIZE


def test_processes_are_not_made_by_mkdir(world: World) -> None:
    """What if somebody makes a directory in /proc?"""
    place = world.hold("/proc")
    assert world.errno(kern_mkdir, world.vfs, place, b"99", 0o755, ROOT) == EROFS
    world.vfs.cache.drop_nch(place)


# --- curproc ----------------------------------------


def test_curproc_is_the_reader(world: World) -> None:
    """What if different threads read the same link?"""
    assert world.readlink("/proc/curproc") == "0"
    seen: list[str] = []

    async def look() -> None:
        seen.append(world.readlink("/proc/curproc"))

    for _ in range(2):
        lwp = world.procs.request_enter(0, 0, 1, "readlink")
        td = world.lwkt.create(look, name="reader", cpu=0, start=False)
        td.lwp = lwp
        world.lwkt.schedule(td)
        world.lwkt.run_until_idle()
    assert seen == ["2", "3"]


def test_a_host_process_finds_itself(world: World) -> None:
    """What if `cat /proc/curproc/status` takes several requests that do not wait?"""
    world.procs.caller = lambda: CallerId(777, 1000, 100)
    pid = world.readlink("/proc/curproc")
    assert world.stat("/proc/curproc").size == 0
    line = world.read("/proc/curproc/status", USER).decode().split()
    assert line[:2] == ["host/777", pid]
    world.clock.advance(11 * 10**9)
    assert world.errno(world.stat, f"/proc/{pid}") == ENOENT
    assert world.errno(world.write, "/proc/curproc/ctl", "kill") == EPERM


# --- life ----------------------------------------


def test_open_files_of_an_ended_process(world: World) -> None:
    """What if a process ends while its files are open?"""
    world.park()
    status = world.open("/proc/2/status", O_RDONLY)
    ctl = world.open("/proc/2/ctl", O_WRONLY)
    world.write("/proc/2/ctl", "term")
    world.lwkt.run_until_idle()
    assert bytes(kern_read(status, 0, 20)).startswith(b"fuse:read/4321 2 ")
    assert world.errno(kern_write, ctl, 0, b"kill") == ENOENT
    kern_close(status)
    kern_close(ctl)
    mp = world.mount_of("procfs")
    assert all(vp.data.ino < 32 + 32 for vp in mp.vnodes)


def test_a_process_with_an_old_id_is_another_directory(world: World) -> None:
    """What if a process id comes round while somebody stands in the old directory?"""
    lwp = world.procs.request_enter(0, 0, 1, "x")
    place = world.hold("/proc/2")
    before = world.stat("/proc/2").fileid
    world.procs.request_exit(lwp)
    world.clock.advance(11 * 10**9)
    world.procs._nextpid = 2
    world.procs.request_enter(0, 0, 2, "y")
    assert world.stat("/proc/2").fileid != before
    assert world.read("/proc/2/cmdline") == b"fuse:y\x002\x00"
    world.vfs.cache.drop_nch(place)


def test_processes_of_others_can_be_hidden(world: World) -> None:
    """What if security.ps_showallprocs is 0?"""
    world.park(uid=2000)
    world.park(uid=1000)
    assert world.names("/proc", USER) == ["curproc", "0", "2", "3"]
    world.tree.set("security.ps_showallprocs", "0", ROOT)
    assert world.names("/proc", USER) == ["curproc", "3"]
    world.read("/proc/2/status")
    assert world.errno(world.read, "/proc/2/status", USER) == ENOENT
    assert world.errno(world.names, "/proc/2", USER) == ENOENT
    assert world.names("/proc") == ["curproc", "0", "2", "3"]


def test_names_that_are_no_process(world: World) -> None:
    """What if somebody looks for odd names?"""
    for name in ("1", "00", "0x0", "-1", "99999999999", "2 ", "self", "+2"):
        assert world.errno(world.stat, f"/proc/{name}") == ENOENT
    assert [atopid(n) for n in (b"0", b"12", b"012", b"", b"1a", b"1234567")] == [
        0, 12, -1, -1, -1, -1,
    ]  # fmt: skip


def test_ten_thousand_requests_leave_nothing(world: World) -> None:
    """What if each request's directory is looked at before it ends?"""
    mp = world.mount_of("procfs")
    for i in range(2_000):
        lwp = world.procs.request_enter(1000, 100, i, "read")
        pid = lwp.proc.pid
        for name in ("status", "cmdline", "threads"):
            assert world.read(f"/proc/{pid}/{name}")
        world.names("/proc")
        world.procs.request_exit(lwp)
    assert len(mp.vnodes) == 1
    assert len(mp.data.vnodes) == 1
    assert world.vfs.cache.statistics().numcache < 20


def test_every_file_can_be_walked(world: World) -> None:
    """What if find walks all of /proc and reads what it may?"""
    world.park()
    found = dict(world.walk("/proc"))
    assert len(found) == 1 + 2 * 6
    for path, attrs in found.items():
        if attrs.type is VType.VREG and attrs.mode & 0o444:
            world.read(path)


def test_an_unmounted_procfs_hears_no_more(world: World) -> None:
    """What if procfs is unmounted and a process ends?"""
    lwp = world.procs.request_enter(0, 0, 1, "x")
    world.read("/proc/2/status")
    world.vfs.mounts.unmount(world.mount_of("procfs"))
    assert world.contents._gone == []
    world.procs.request_exit(lwp)
