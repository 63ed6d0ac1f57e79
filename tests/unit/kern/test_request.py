"""Requests of the host that wait, under trio: seen in /proc, killed through ctl, then gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from dfuser.dev.devlist import DevList
from dfuser.dev.klog import LogOps
from dfuser.hw.clock import HostClock
from dfuser.kern.kinfo import KinfoTable
from dfuser.kern.proc import ProcTable
from dfuser.kern.procfs import ProcfsContents
from dfuser.kern.procsig import cursig
from dfuser.libkern.errno import EINTR, KError
from dfuser.libkern.ktr import Ktr
from dfuser.libkern.log import MsgBuf
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt.block import Block, run_blocking
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.synch import synch_of
from dfuser.vfs.procfs.procfs import ProcRef

ROOT = Ucred.root()


class World:
    """A machine under trio with a log device and a process table."""

    def __init__(self, lwkt: Lwkt) -> None:
        self.lwkt = lwkt
        self.msgbuf = lwkt.msgbuf
        self.procs = ProcTable(lwkt.clock)
        self.kinfo = KinfoTable(self.procs, lambda: lwkt.threads)
        self.contents = ProcfsContents(self.procs, self.kinfo)
        synch_of(lwkt).cursig = cursig
        self.log = LogOps(self.msgbuf, lwkt)
        self.devices = DevList()
        self.log.attach(self.devices)
        dev = self.devices.find_device_by_name("klog")
        assert dev is not None
        self.dev = dev
        self.answers: list[bytes | int] = []

    async def read(self, host_pid: int) -> None:
        """One read of the log, as the bridge does it: at once if it can be, else as a process."""

        def core() -> bytes:
            return bytes(self.log.d_read(self.dev, 0, 4096, 0, None))

        try:
            self.answers.append(core())
            return
        except Block:
            lwp = self.procs.request_enter(1000, 100, host_pid, "read")
        try:
            name = lwp.proc.comm
            self.answers.append(await self.lwkt.adopt(run_blocking, core, name=name, lwp=lwp))
        except KError as error:
            self.answers.append(error.errno or 0)
        finally:
            self.procs.request_exit(lwp)

    def ref(self, pid: int) -> ProcRef:
        ref = self.contents.find(pid, ROOT)
        assert ref is not None
        return ref


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    clock = HostClock()
    lwkt = Lwkt(2, clock, Ktr(2, clock, entries=64), MsgBuf(), default_driver="task")
    async with trio.open_nursery() as nursery:
        await nursery.start(clock.run)
        await lwkt.start(nursery)
        yield World(lwkt)
        await lwkt.shutdown()
        assert not lwkt.threads
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("readers", [1, 500])
async def test_waiting_requests_are_processes_until_they_are_answered(
    autojump_clock: trio.testing.MockClock, readers: int
) -> None:
    """What if very many readers wait at once, and a message comes?"""
    async with world() as w, trio.open_nursery() as nursery:
        for i in range(readers):
            nursery.start_soon(w.read, 1000 + i)
        await trio.testing.wait_all_tasks_blocked()
        stats = w.procs.statistics()
        assert (stats.requests, stats.procs, w.log.waiters) == (readers, readers + 1, readers)
        shown = [k for k in w.kinfo.all() if k.wmesg == "klog"]
        assert {k.comm for k in shown} == {f"fuse:read/{1000 + i}" for i in range(readers)}
        assert all(k.uid == 1000 and k.state == "I" for k in shown)
        for proc in list(w.procs.allproc())[2:]:
            w.contents.write_ctl(w.ref(proc.pid), b"kill", ROOT)
        await trio.testing.wait_all_tasks_blocked()
        w.msgbuf.kprintf("hello")
        await trio.testing.wait_all_tasks_blocked()
        assert w.answers.count(EINTR) == readers - 1
        assert w.answers.count(b"hello\n") == 1
        stats = w.procs.statistics()
        assert (stats.requests, stats.procs, stats.lwps) == (0, 1, 0)
        assert w.log.waiters == 0


async def test_a_kill_ends_the_wait(autojump_clock: trio.testing.MockClock) -> None:
    """What if the waiting reader is killed through /proc/N/ctl?"""
    async with world() as w, trio.open_nursery() as nursery:
        nursery.start_soon(w.read, 77)
        await trio.testing.wait_all_tasks_blocked()
        ref = w.ref(2)
        assert b" klog 1000 1000 100,100 -" in w.contents.read_status(ref, ROOT)
        w.contents.write_ctl(ref, b"term\n", Ucred.of(1000, 100))
        await trio.testing.wait_all_tasks_blocked()
        assert w.answers == [EINTR]
        assert not w.contents.alive(ref)


async def test_a_request_that_need_not_wait_is_no_process(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What if there is something to read?"""
    async with world() as w:
        w.msgbuf.kprintf("ready")
        await w.read(5)
        assert w.answers == [b"ready\n"]
        assert w.procs.statistics().created == 0
