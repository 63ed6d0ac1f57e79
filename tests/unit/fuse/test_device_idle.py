"""Serving in place of trio's sleep: nobody starves, nothing is late, nothing stays behind."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable
from functools import partial
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from dfuser.fuse.device import idle as module
from dfuser.fuse.device.idle import IdleDoor
from dfuser.fuse.wire import inputs as i
from dfuser.fuse.wire.const import Opcode
from tests.unit.fuse.device_world import served

PATIENCE = 30


class Device:
    """A socket that stands for a device: what is asked is echoed."""

    def __init__(self, door: IdleDoor) -> None:
        self.door = door
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.fd = theirs.detach()
        os.set_blocking(self.fd, False)
        self.served = 0
        self.progress = trio.Event()
        #: Called with each request.
        self.then: Callable[[bytes], object] = lambda data: None
        door.watch(self.fd, self.serve)

    def serve(self) -> bool:
        """As `DeviceConnection.server`."""
        try:
            data = os.read(self.fd, 4096)
        except BlockingIOError:
            return True
        if not data:
            return False
        self.served += 1
        self.then(data)
        os.write(self.fd, data)
        self.progress.set()
        return True

    async def reach(self, count: int) -> None:
        """Wait, asleep, until so many requests have been served."""
        while self.served < count:
            self.progress = trio.Event()
            await self.progress.wait()

    def ask(self, count: int, over: Callable[[], bool] = lambda: False) -> int:
        """From a thread: ask and wait for the answer, again and again; how often."""
        self.ours.settimeout(PATIENCE)
        for number in range(count):
            if over():
                return number
            self.ours.send(b"%d" % number)
            assert self.ours.recv(4096) == b"%d" % number
        return count

    def close(self) -> None:
        """Both ends."""
        self.door.unwatch(self.fd)
        self.ours.close()
        os.close(self.fd)


@pytest.fixture
async def door() -> AsyncIterator[IdleDoor]:
    """A door that is not installed yet; afterwards nothing is open that was not before."""
    before = set(os.listdir("/proc/self/fd"))
    made = IdleDoor()
    yield made
    made.remove()
    assert set(os.listdir("/proc/self/fd")) == before


def instruments() -> set[object]:
    """Everybody who is told when trio sleeps."""
    found = trio._core._run.GLOBAL_RUN_CONTEXT.runner.instruments
    return set(found.get("before_io_wait", ()))


async def test_served_while_nothing_else_runs(door: IdleDoor) -> None:
    # What if requests come while every task waits for something else?
    device = Device(door)
    assert door.install()
    passes = 0

    class Count(trio.abc.Instrument):
        def before_task_step(self, task: object) -> None:
            nonlocal passes
            passes += 1

    trio.lowlevel.add_instrument(counter := Count())
    with trio.fail_after(PATIENCE):
        assert await trio.to_thread.run_sync(device.ask, 1000) == 1000
    trio.lowlevel.remove_instrument(counter)
    assert device.served == 1000
    assert door.served >= 1000
    assert passes < 500, "no task is woken for a request"
    device.close()


async def test_a_busy_task_and_a_flood_both_go_on(door: IdleDoor) -> None:
    # What if a task never sleeps, and requests never stop?
    device = Device(door)
    door.burst = 8
    assert door.install()
    most = steps = seen = 0
    flooding = True

    async def busy() -> None:
        nonlocal steps, seen, most
        while flooding:
            await trio.lowlevel.checkpoint()
            steps += 1
            most = max(most, device.served - seen)
            seen = device.served

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(busy)
            asked = await trio.to_thread.run_sync(device.ask, 2000)
            flooding = False
    assert asked == device.served == 2000
    assert steps > 200
    assert most <= 2 * door.burst, "the task had its turn after each burst"
    device.close()


async def test_a_flood_that_lies_there_is_served_in_bursts(door: IdleDoor) -> None:
    # What if more requests wait than a burst has: is everybody else asked between two bursts?
    device = Device(door)
    door.burst = 5
    assert door.install()
    device.ours.setblocking(False)
    for number in range(43):
        device.ours.send(b"%d" % number)
    turns = []
    while device.served < 43:
        await trio.lowlevel.checkpoint()
        turns.append(device.served)
    assert max(b - a for a, b in zip([0, *turns], turns, strict=False)) <= 5
    assert [device.ours.recv(100) for _ in range(43)] == [b"%d" % n for n in range(43)]
    device.close()


async def test_deadlines_are_kept_while_requests_come(door: IdleDoor) -> None:
    # What if a task sleeps while requests never stop: does it wake, again and again?
    device = Device(door)
    assert door.install()
    slept = False

    async def sleeper() -> None:
        nonlocal slept
        for _ in range(10):
            await trio.sleep(0.005)
        slept = True

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sleeper)
            assert await trio.to_thread.run_sync(device.ask, 10_000_000, lambda: slept) > 10
    device.close()


async def test_a_deadline_that_a_request_sets(door: IdleDoor) -> None:
    # What if a request makes something due earlier than trio was about to sleep?
    device = Device(door)
    assert door.install()
    with trio.fail_after(PATIENCE) as outer, trio.CancelScope() as scope:
        device.then = lambda data: setattr(scope, "deadline", trio.current_time() + 0.01)
        device.ours.send(b"x")
        await trio.sleep_forever()
    assert scope.cancelled_caught
    assert not outer.cancelled_caught
    device.close()


async def test_a_call_from_another_thread(door: IdleDoor) -> None:
    # What if another thread wakes the loop, with and without requests meanwhile?
    device = Device(door)
    assert door.install()
    token = trio.lowlevel.current_trio_token()

    def work(ask: int, woken: trio.Event) -> None:
        device.ask(ask)
        token.run_sync_soon(woken.set)

    for ask in (0, 3):
        woken = trio.Event()

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, partial(work, ask, woken))
                await woken.wait()
    device.close()


async def test_what_a_request_wakes_runs_before_the_next(door: IdleDoor) -> None:
    # What if a request makes a task runnable, and another request lies there already?
    device = Device(door)
    order = []
    woken = trio.Event()

    def then(data: bytes) -> None:
        order.append(data.decode())
        woken.set()

    device.then = then

    async def task() -> None:
        await woken.wait()
        order.append("task")

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task)
            await trio.testing.wait_all_tasks_blocked()
            assert door.install()
            device.ours.send(b"one")
            device.ours.send(b"two")
            await device.reach(2)
    assert order == ["one", "task", "two"]
    device.close()


async def test_many_devices(door: IdleDoor) -> None:
    # What if more devices are ready than one look can tell?
    devices = [Device(door) for _ in range(40)]
    assert door.install()
    late = Device(door)
    for device in (*devices, late):
        for _ in range(3):
            device.ours.send(b"x")
    with trio.fail_after(PATIENCE):
        for device in (*devices, late):
            await device.reach(3)
    for device in (*devices, late):
        device.close()


async def test_a_device_that_ends(door: IdleDoor) -> None:
    # What if one device is gone, and another is taken away by what its neighbour serves?
    gone, taken, left = Device(door), Device(door), Device(door)
    assert door.install()
    gone.ours.close()
    left.then = lambda data: door.unwatch(taken.fd)
    with trio.fail_after(PATIENCE):
        left.ours.send(b"x")
        await left.reach(1)
        assert left.ours.recv(100) == b"x"
        taken.ours.send(b"x")
        assert await trio.to_thread.run_sync(left.ask, 50) == 50
    assert not taken.served
    for device in (gone, taken, left):
        device.close()


async def test_an_answer_that_raises(door: IdleDoor) -> None:
    # What if serving raises, which it must not: does trio live on?
    device = Device(door)
    assert door.install()

    def fail(data: bytes) -> None:
        raise ValueError("injected")

    device.then = fail
    device.ours.send(b"x")
    with trio.fail_after(PATIENCE):
        await trio.sleep(0.001)
        await trio.sleep(0.001)
    assert device.served == 1
    assert door in instruments()
    device.close()


async def test_nothing_is_left(door: IdleDoor) -> None:
    # What if the door is installed and removed, twice, and removed once more?
    before = instruments(), set(os.listdir("/proc/self/fd"))
    for _ in range(2):
        assert door.install()
        assert door in instruments()
        await trio.lowlevel.checkpoint()
        door.remove()
    door.remove()
    assert (instruments(), set(os.listdir("/proc/self/fd"))) == before


async def test_trio_sees_that_all_wait(door: IdleDoor) -> None:
    # What if a test waits until everything is blocked, which trio finds out by not sleeping?
    device = Device(door)
    assert door.install()
    with trio.fail_after(PATIENCE):
        await trio.testing.wait_all_tasks_blocked()
    device.close()


@pytest.mark.parametrize("missing", ["_core", "runner", "epoll", "deadlines"])
async def test_a_trio_that_cannot_be_looked_into(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    # What if trio's inside is not where it was: are requests served by tasks?
    runner = trio._core._run.GLOBAL_RUN_CONTEXT.runner
    fake = SimpleNamespace(
        io_manager=runner.io_manager, runq=runner.runq, deadlines=runner.deadlines,
        clock=runner.clock,
    )  # fmt: skip
    context = SimpleNamespace(runner=fake)
    if missing == "epoll":
        fake.io_manager = SimpleNamespace(_kqueue=None)
    elif missing == "deadlines":
        fake.deadlines = SimpleNamespace(next_deadline=lambda soon: 0)
    elif missing == "runner":
        del context.runner
    inside = SimpleNamespace(_run=SimpleNamespace(GLOBAL_RUN_CONTEXT=context))
    stand_in = SimpleNamespace(lowlevel=trio.lowlevel, _core=inside)
    if missing == "_core":
        del stand_in._core
    with monkeypatch.context() as patch:
        patch.setattr(module, "trio", stand_in)
        async with served() as it:
            loop = it.world.session.loop
            assert not loop.idle.installed
            assert loop.idle not in instruments()
            burst = [it.send(Opcode.GETATTR, i.GetattrIn(0, 0)) for _ in range(100)]
            with trio.fail_after(PATIENCE):
                for unique in burst:
                    await it.answer(unique)
                assert (await it.body(Opcode.STATFS)).blocks
            assert loop.statistics().bursts > 1
            assert loop.statistics().idle == 0


async def test_a_whole_kernel_between_two_tasks() -> None:
    # What if a kernel serves a flood while a task of trio's never sleeps?
    async with served() as it:
        assert it.world.session.loop.statistics().idle_installed
        busy = 0
        asked = [it.send(Opcode.GETATTR, i.GetattrIn(0, 0)) for _ in range(100)]
        while len(it.answers) < 100:
            await it.answer(next(n for n in asked if n not in it.answers))
            busy += 1
        assert busy >= 1
        assert it.world.session.loop.statistics().idle >= 100
