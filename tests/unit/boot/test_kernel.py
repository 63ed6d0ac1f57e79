"""Whole kernels without a host: boot, many at once, stop, and what is left (nothing)."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from dfuser.boot.config import Config, MountSpec
from dfuser.boot.kernel import Kernel
from dfuser.hw.fake import FakeHost
from dfuser.hw.host import Host
from dfuser.libkern.errno import EINVAL, ENODEV, ENOENT, EPERM, KError, Panic
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt import thread as lwkt_thread
from dfuser.lwkt.synch import tsleep
from dfuser.vfs.syscalls import (
    kern_close,
    kern_create,
    kern_lookup,
    kern_open,
    kern_read,
    kern_write,
)
from dfuser.vfs.vnodetable import default_maxvnodes

MEMORY = 16 << 20
ROOT = Ucred.root()


def make(tmp_path: Path, **settings: object) -> Kernel:
    """A kernel on a fake host."""
    config = Config(ncpu=2, memory=MEMORY, state_dir=str(tmp_path), **settings)  # type: ignore[arg-type]
    return Kernel(config, FakeHost(MEMORY))


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    """A booted kernel, stopped afterwards."""
    one = make(tmp_path)
    one.boot()
    yield one
    one.stop()


def read_all(kernel: Kernel, path: str) -> bytes:
    """The contents of a file by its path."""
    vfs = kernel.vfs
    nch = vfs.mounts.rootnch
    for name in filter(None, path.encode().split(b"/")):
        found = kern_lookup(vfs, nch, name, ROOT)
        assert found is not None, path
        nch = found
    file = kern_open(vfs, nch, 0, ROOT)
    try:
        out = b""
        while piece := bytes(kern_read(file, len(out), 65536)):
            out += piece
        return out
    finally:
        kern_close(file)


def test_the_default_world_is_there(kernel: Kernel) -> None:
    # What if nobody says what to mount?
    on = [mp.onname for mp in kernel.vfs.mounts]
    assert on == ["/", "/tmp", "/dev", "/proc", "/sysctl", "/kern"]
    assert b"ctl" in kernel.in_context(read_all, kernel, "/kern/README")
    assert kernel.in_context(read_all, kernel, "/sysctl/kern/ostype") == b"DragonFly\n"


def test_the_limit_of_vnodes_is_set_or_follows_memory(tmp_path: Path) -> None:
    # What if kern.maxvnodes is configured, and what if it is not?
    kernel = make(tmp_path, maxvnodes=3000)
    assert kernel.vfs.vnodes.maxvnodes == 3000
    kernel.stop()
    assert default_maxvnodes(16 << 20, 100) == 2000
    assert default_maxvnodes(1 << 30, 100) == (1 << 30) // 51200
    assert default_maxvnodes(4 << 30, 100) == (7 << 30) // 51200
    assert default_maxvnodes(1 << 20, 1000) == 8000
    assert default_maxvnodes(1 << 40, 1000) == 4_000_000


@pytest.mark.parametrize(
    ("settings", "error", "complaint"),
    [
        ({"sysctl": {"kern.maxvnodes": "5"}}, EINVAL, "sysctl kern.maxvnodes = 5: .*2000"),
        ({"sysctl": {"kern.nosuch": "5"}}, ENOENT, "sysctl kern.nosuch = 5"),
        ({"sysctl": {"kern.nprocs": "5"}}, EPERM, "sysctl kern.nprocs = 5"),
        ({"ktr": ("nosuch",)}, ENOENT, "no trace master 'nosuch'; there are callout, "),
    ],
)
def test_settings_that_cannot_be_applied(
    tmp_path: Path, settings: dict[str, object], error: int, complaint: str
) -> None:
    # What if a file asks for a variable or a trace master that is not there, or a bad value?
    kernel = make(tmp_path, **settings)
    with pytest.raises(KError, match=complaint) as caught:
        kernel.boot()
    assert caught.value.errno == error
    kernel.stop()


def test_daemons_run_on_virtual_time(kernel: Kernel) -> None:
    # What if hours pass in a kernel without an event loop?
    kernel.in_context(kernel.world.start_daemons)
    kernel.lwkt.run_until_idle()
    before = {td.name: td.switches for td in kernel.lwkt.threads.values()}
    assert {"vnlru", "pagetrim"} <= set(before)
    for _ in range(60):
        kernel.host.clock.advance(60 * 1_000_000_000)  # type: ignore[attr-defined]
        kernel.lwkt.run_until_idle()
    after = {td.name: td.switches for td in kernel.lwkt.threads.values()}
    assert after["vnlru"] > before["vnlru"]


def test_stopping_leaves_nothing(tmp_path: Path) -> None:
    # What if a kernel with open files, threads and data stops?
    descriptors = set(os.listdir("/proc/self/fd"))
    kernel = make(tmp_path)
    kernel.boot()
    kernel.in_context(kernel.world.start_daemons)
    kernel.lwkt.run_until_idle()
    vfs = kernel.vfs

    def work() -> None:
        _, file = kern_create(vfs, vfs.mounts.rootnch, b"f", 0o644, 2, ROOT)
        kern_write(file, 0, b"x" * 300_000)

    kernel.in_context(work)
    pages = kernel.pages
    kernel.stop()
    assert pages.v_free_count == pages.v_page_count
    assert not kernel.lwkt.threads
    assert not list(vfs.mounts)
    assert set(os.listdir("/proc/self/fd")) == descriptors
    kernel.stop()


def test_many_kernels_live_in_one_process(tmp_path: Path) -> None:
    # What if a test boots several kernels and steps them in turn?
    kernels = [make(tmp_path, hostname=f"k{i}") for i in range(5)]
    for kernel in kernels:
        kernel.boot()
        kernel.in_context(kernel.world.start_daemons)
    for kernel in reversed(kernels):
        kernel.lwkt.run_until_idle()
    names = [k.in_context(read_all, k, "/sysctl/kern/hostname") for k in kernels]
    assert names == [f"k{i}\n".encode() for i in range(5)]
    for kernel in kernels:
        kernel.stop()
    assert lwkt_thread.curthread is None


def test_a_stopped_kernel_is_garbage(tmp_path: Path) -> None:
    # What if thousands of kernels are booted one after the other?
    kernel = make(tmp_path)
    kernel.boot()
    kernel.stop()
    trace = weakref.ref(kernel)
    del kernel
    gc.collect()
    assert trace() is None


def test_a_mount_that_fails_is_named(tmp_path: Path) -> None:
    # What if the world asks for a file system that does not exist?
    world = (MountSpec("tmpfs", "/"), MountSpec("ufs", "/old"))
    kernel = make(tmp_path, world=world)
    with pytest.raises(KError, match="cannot mount ufs on /old") as caught:
        kernel.boot()
    assert caught.value.errno == ENODEV
    kernel.stop()


def test_sysctls_of_the_configuration_are_set(tmp_path: Path) -> None:
    # What if the configuration sets a limit?
    kernel = make(tmp_path, sysctl={"kern.maxvnodes": "2500"})
    kernel.boot()
    assert kernel.sysctl.get("kern.maxvnodes") == "2500"
    kernel.stop()


def test_a_panic_writes_a_dump_and_stops_the_cpus(tmp_path: Path) -> None:
    # What if a kernel thread breaks an invariant?
    kernel = make(tmp_path)
    kernel.boot()
    told: list[str] = []
    kernel.on_panic(lambda: told.append("unmount"))

    async def bad() -> None:
        raise ValueError("the invariant is broken")

    kernel.in_context(lambda: kernel.lwkt.create(bad, name="badthread", cpu=0))
    kernel.lwkt.run_until_idle()
    assert kernel.state == "panicked"
    assert told == ["unmount"]
    assert kernel.panic_dump is not None
    text = kernel.panic_dump.read_text()
    assert "the invariant is broken" in text
    assert "badthread" in text
    for section in ("== threads", "== tokens", "== ktr", "== log"):
        assert section in text
    assert all(cpu.stopped for cpu in kernel.lwkt.cpus)
    kernel.panic("again", Panic("second"))
    assert told == ["unmount"]
    kernel.stop()


def test_a_dump_that_cannot_be_written_does_not_hurt(tmp_path: Path) -> None:
    # What if the state directory is a file?
    place = tmp_path / "file"
    place.write_text("")
    config = Config(ncpu=1, memory=MEMORY, state_dir=str(place))
    kernel = Kernel(config, FakeHost(MEMORY))
    kernel.boot()
    kernel.panic("test", Panic("broken"))
    assert kernel.panic_dump is None
    assert "broken" in kernel.msgbuf.text()
    kernel.stop()


async def test_a_kernel_runs_under_trio_and_stops_when_asked(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    # What if a real kernel is started and stopped at once?
    config = Config(ncpu=2, memory=MEMORY, state_dir=str(tmp_path))
    kernel = Kernel(config, Host.open(MEMORY))
    async with trio.open_nursery() as nursery:
        await nursery.start(kernel.run)
        assert kernel.state == "running"
        await trio.sleep(5)
        assert any(td.name == "vnlru" for td in kernel.lwkt.threads.values())
        kernel.request_stop()
    assert kernel.state == "stopped"
    assert not kernel.lwkt.threads


async def test_a_panic_while_stopping_does_not_keep_the_kernel(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    # What if a thread meets a bug while it is being ended: does the kernel end all the same?
    kernel = Kernel(Config(ncpu=2, memory=MEMORY, state_dir=str(tmp_path)))

    async def bad() -> None:
        try:
            await tsleep("never", 0, "never", 0)
        finally:
            raise ValueError("broken on the way out")

    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            await nursery.start(kernel.run)
            kernel.in_context(lambda: kernel.lwkt.create(bad, name="badthread", cpu=1))
            await trio.testing.wait_all_tasks_blocked()
            kernel.request_stop()
    assert kernel.state == "stopped"
    assert kernel.panic_dump is not None
    assert "broken on the way out" in kernel.panic_dump.read_text()
    assert not kernel.lwkt.threads
