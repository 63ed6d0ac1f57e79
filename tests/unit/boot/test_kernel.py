"""Whole kernels without a host: boot, many at once, stop, and what is left (nothing)."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable, Iterator
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
from dfuser.vfs.mount import Mount
from dfuser.vfs.namecache import NcHandle
from dfuser.vfs.syscalls import (
    kern_close,
    kern_create,
    kern_lookup,
    kern_mkdir,
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


async def never(ident: str) -> None:
    """A thread that sleeps for ever."""
    await tsleep(ident, 0, "never", 0)


async def run_until_panic(tmp_path: Path, act: Callable[[Kernel], None]) -> Kernel:
    """Run a kernel with sleepers on both drivers, let ``act`` break it; ``run`` must return."""
    descriptors = len(os.listdir("/proc/self/fd"))
    kernel = Kernel(Config(ncpu=2, memory=MEMORY, state_dir=str(tmp_path)))
    told: list[str] = []
    kernel.on_panic(lambda: told.append("unmount"))
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            await nursery.start(kernel.run)
            for number, driver in enumerate(("task", "coro", "task", "coro")):
                kernel.in_context(
                    lambda d=driver, n=number: kernel.lwkt.create(
                        never, f"never{n}", cpu=n % 2, driver=d
                    )
                )
            await trio.testing.wait_all_tasks_blocked()
            act(kernel)
    assert told == ["unmount"]
    assert len(os.listdir("/proc/self/fd")) == descriptors
    return kernel


def check_panicked(
    kernel: Kernel, tmp_path: Path, where: str, why: str = "the invariant is broken"
) -> None:
    """One dump, and nothing that runs or is going to run."""
    dumps = list(tmp_path.glob("panic-*"))
    assert dumps == [kernel.panic_dump]
    assert why in dumps[0].read_text()
    assert kernel.panic_reason.startswith(where)
    assert kernel.state == "stopped"
    assert not kernel.lwkt.threads
    for cpu in kernel.lwkt.cpus:
        assert cpu.stopped
        assert cpu.loop_task is None
        assert not cpu.loop_parked
        cpu.restart()
        assert cpu.stopped
    assert lwkt_thread.curthread is None


async def broken() -> None:
    """A thread that meets a broken invariant."""
    raise Panic("the invariant is broken")


async def broken_at_its_end() -> None:
    """A thread that returns inside a critical section."""
    lwkt_thread.crit_enter()


def broken_now() -> None:
    """Plain code that meets one."""
    raise Panic("the invariant is broken")


@pytest.mark.parametrize("driver", ["task", "coro"])
@pytest.mark.parametrize("cpu", [0, 1])
async def test_a_panic_in_a_thread_ends_the_kernel(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, driver: str, cpu: int
) -> None:
    # What if a thread of either kind panics: one dump, run() returns, nothing left?
    def act(kernel: Kernel) -> None:
        kernel.in_context(
            lambda: kernel.lwkt.create(broken, name="badthread", cpu=cpu, driver=driver)
        )

    kernel = await run_until_panic(tmp_path, act)
    check_panicked(kernel, tmp_path, "thread badthread")


@pytest.mark.parametrize("driver", ["task", "coro"])
async def test_a_thread_that_exits_badly_ends_the_kernel(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, driver: str
) -> None:
    # What if a thread returns inside a critical section: is that a panic like any other?
    def act(kernel: Kernel) -> None:
        kernel.in_context(
            lambda: kernel.lwkt.create(broken_at_its_end, name="badthread", driver=driver)
        )

    kernel = await run_until_panic(tmp_path, act)
    check_panicked(kernel, tmp_path, "thread badthread", "exits in a critical section")


async def test_a_panic_in_an_interrupt_ends_the_kernel(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    # What if an interrupt handler panics while every CPU is idle?
    def act(kernel: Kernel) -> None:
        kernel.lwkt.cpus[1].interrupt(broken_now)

    kernel = await run_until_panic(tmp_path, act)
    check_panicked(kernel, tmp_path, "interrupt broken_now on cpu1")


async def test_a_panic_of_an_ipi_ends_the_kernel(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    # What if a function sent to another CPU panics in that CPU's loop?
    def act(kernel: Kernel) -> None:
        async def sender() -> None:
            kernel.lwkt.send_ipiq_nowait(kernel.lwkt.cpus[1], broken_now)

        kernel.in_context(lambda: kernel.lwkt.create(sender, cpu=0))

    kernel = await run_until_panic(tmp_path, act)
    check_panicked(kernel, tmp_path, "interrupt ")


async def test_a_panic_in_a_borrowed_context_ends_the_kernel(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    # What if a request panics while it holds a token, and its edge reports that once more?
    def act(kernel: Kernel) -> None:
        def request() -> None:
            assert kernel.lwkt.tokens.vnode_token.trytoken()
            broken_now()

        with pytest.raises(Panic, match="the invariant is broken") as caught:
            kernel.in_context(request)
        kernel.panicked(caught.value)

    kernel = await run_until_panic(tmp_path, act)
    check_panicked(kernel, tmp_path, "request")


@pytest.mark.parametrize("driver", ["task", "coro"])
async def test_a_panic_while_stopping_ends_the_kernel(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, driver: str
) -> None:
    # What if a thread panics on its way out: one dump, run() returns, nothing left?
    async def bad() -> None:
        try:
            await never("bad")
        finally:
            broken_now()

    kernel = Kernel(Config(ncpu=2, memory=MEMORY, state_dir=str(tmp_path)))
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            await nursery.start(kernel.run)
            kernel.in_context(lambda: kernel.lwkt.create(bad, name="badthread", driver=driver))
            await trio.testing.wait_all_tasks_blocked()
            kernel.request_stop()
    check_panicked(kernel, tmp_path, "thread badthread")


async def test_a_panic_of_the_last_sync_ends_the_kernel(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What if syncing the world, the first thing a stopping kernel does, panics?
    def act(kernel: Kernel) -> None:
        monkeypatch.setattr(kernel.vfs, "sync_all", broken_now)
        kernel.request_stop()

    kernel = await run_until_panic(tmp_path, act)
    check_panicked(kernel, tmp_path, "request")


async def test_a_panic_of_an_unmount_ends_the_kernel(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What if unmounting panics, after the event loop has left the machine?
    def act(kernel: Kernel) -> None:
        monkeypatch.setattr(kernel.vfs.mounts, "unmountall", broken_now)
        kernel.request_stop()

    kernel = await run_until_panic(tmp_path, act)
    check_panicked(kernel, tmp_path, "request")


async def test_what_a_panic_leaves_unwinding_does_not_matter(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    # What if the other threads fail, panic or sleep again while they are taken away?
    async def stubborn(how: str) -> None:
        try:
            await never(how)
        finally:
            if how == "fail":
                raise ValueError(how)
            if how == "panic":
                raise Panic(how)
            await never(how)

    def act(kernel: Kernel) -> None:
        lwkt = kernel.lwkt
        for driver in ("task", "coro"):
            for how in ("fail", "panic", "sleep"):
                kernel.in_context(lambda d=driver, h=how: lwkt.create(stubborn, h, driver=d))
        kernel.in_context(lambda: lwkt.create(broken, name="badthread", driver="coro", pri=9))

    kernel = await run_until_panic(tmp_path, act)
    check_panicked(kernel, tmp_path, "thread badthread")


async def test_a_loop_is_woken_once_when_a_panic_ends_it(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    # What if the host cancels the loops of a panicked machine and its last thread goes then?
    kernel = Kernel(Config(ncpu=2, memory=MEMORY, state_dir=str(tmp_path)))
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            await nursery.start(kernel.run)
            await trio.testing.wait_all_tasks_blocked()
            assert all(cpu.loop_parked for cpu in kernel.lwkt.cpus)
            kernel.panic("test", Panic("the invariant is broken"))
            nursery.cancel_scope.cancel()
            kernel.lwkt.all_gone()
    check_panicked(kernel, tmp_path, "test")


@pytest.mark.parametrize("fstype", ["tmpfs", "null", "devfs", "procfs", "sysctlfs", "kernfs"])
def test_an_unmounted_file_system_is_gone_at_once(kernel: Kernel, fstype: str) -> None:
    # What if file systems come and go for weeks: does each leave a cycle to the collector?
    vfs = kernel.vfs

    def mount_and_unmount(on: NcHandle) -> weakref.ref[Mount]:
        source = "/tmp" if fstype == "null" else fstype
        mp = vfs.mounts.mount(fstype, source, on, {}, 0, ROOT)
        assert kern_lookup(vfs, mp.ncmountpt, b"..", ROOT) is not None
        assert kern_lookup(vfs, mp.ncmountpt, b"nothing", ROOT) is None
        vfs.mounts.unmount(mp)
        return weakref.ref(mp)

    def twice() -> tuple[Mount | None, Mount | None]:
        on = vfs.cache.hold(kern_mkdir(vfs, vfs.rootnch, b"on", 0o755, ROOT))
        try:
            refs = mount_and_unmount(on), mount_and_unmount(on)
            return refs[0](), refs[1]()
        finally:
            vfs.cache.drop_nch(on)

    gc.collect()
    gc.disable()
    try:
        assert kernel.in_context(twice) == (None, None)
    finally:
        gc.enable()
