"""Requests that must wait: copied, visible, interrupted, bounded, and ended with the connection."""

from __future__ import annotations

import errno
import os

import trio

from dfuser.fuse.wire import inputs as i
from dfuser.fuse.wire.const import Opcode
from dfuser.fuse.wire.kernel import parse_reply
from tests.unit.fuse.device_world import PID, Served, World, served

READ, WRITE, UNLOCK = 0, 1, 2
O_RDWR = 2
S_IFREG = 0o100000


def lock(fh: int, owner: int, start: int, end: int, kind: int = WRITE) -> i.LkIn:
    """A record lock of a process."""
    return i.LkIn(fh, owner, start, end, kind, owner, 0)


async def create(it: Served, name: bytes) -> tuple[int, int]:
    """A new file, open: its number and its handle."""
    made = await it.body(Opcode.CREATE, i.CreateIn(O_RDWR, S_IFREG | 0o644, 0, 0, name))
    return made.entry.nodeid, made.open.fh


async def waiting(it: Served, fh: int, node: int, owner: int, start: int = 5, end: int = 20) -> int:
    """A lock request that waits; its number."""
    before = it.world.held()["waiting"]
    unique = it.send(Opcode.SETLKW, lock(fh, owner, start, end), node)
    await it.until(lambda: it.world.held()["waiting"] == before + 1)
    return unique


async def test_a_waiting_request_has_bytes_of_its_own() -> None:
    # What if the buffer is used by other requests, long and short, while one waits?
    async with served() as it:
        node, fh = await create(it, b"a")
        await it.body(Opcode.SETLK, lock(fh, 1, 0, 9), node)
        parked = await waiting(it, fh, node, 2)
        for size in (1, 100, 5000):
            write = i.WriteIn(fh, 0, size, 0, 0, 0)
            await it.body(Opcode.WRITE, write, node, data=b"\xff" * size)
        assert parked not in it.answers
        await it.body(Opcode.SETLK, lock(fh, 1, 0, 9, UNLOCK), node)
        assert parse_reply(Opcode.SETLKW, await it.answer(parked)).error == 0
        found = await it.body(Opcode.GETLK, lock(fh, 3, 0, 100), node)
        assert (found.start, found.end, found.type, found.pid) == (5, 20, WRITE, 2)
        assert it.world.connection.device_statistics().parked == 0
        assert it.world.session.context.parked == 1


async def test_a_waiting_request_is_a_process() -> None:
    # What if somebody looks who waits: is the request there by name, and gone when answered?
    async with served() as it:
        kernel = it.world.kernel
        node, fh = await create(it, b"a")
        await it.body(Opcode.SETLK, lock(fh, 1, 0, 9), node)
        before = set(kernel.procs.allproc())
        parked = await waiting(it, fh, node, 2)
        (proc,) = set(kernel.procs.allproc()) - before
        assert proc.comm.startswith(f"fuse:setlkw/{PID}"[:15])
        assert proc.host_pid == PID
        threads = [td for td in kernel.lwkt.threads.values() if td.name == "fuse:setlkw"]
        await it.until(lambda: [td.wmesg for td in threads] == ["lockf"])
        assert it.world.connection.device_statistics().parked == 1
        await it.body(Opcode.RELEASE, i.ReleaseIn(fh, 0, 0, 1), node)
        assert parse_reply(Opcode.SETLKW, await it.answer(parked)).error in (0, errno.EBADF)
        await it.until(lambda: not it.world.held()["threads"])
        assert set(kernel.procs.allproc()) == before


async def test_an_interrupt_ends_the_wait() -> None:
    # What if the caller is signalled while his request waits?
    async with served() as it:
        node, fh = await create(it, b"a")
        await it.body(Opcode.SETLK, lock(fh, 1, 0, 9), node)
        one, two = [await waiting(it, fh, node, owner) for owner in (2, 3)]
        it.send(Opcode.INTERRUPT, i.InterruptIn(one), 0)
        assert parse_reply(Opcode.SETLKW, await it.answer(one)).error == errno.EINTR
        await it.until(lambda: it.world.held()["parked"] == 1)
        assert two not in it.answers, "the other one waits on"
        await it.body(Opcode.SETLK, lock(fh, 1, 0, 9, UNLOCK), node)
        assert parse_reply(Opcode.SETLKW, await it.answer(two)).error == 0
        found = await it.body(Opcode.GETLK, lock(fh, 9, 0, 100), node)
        assert found.pid == 3, "the interrupted one left nothing"
        assert it.world.session.context.interrupted == 1


async def test_an_interrupt_that_is_faster_than_the_wait() -> None:
    # What if the signal comes before the thread of the request has run at all?
    async with served() as it:
        node, fh = await create(it, b"a")
        await it.body(Opcode.SETLK, lock(fh, 1, 0, 9), node)
        parked = it.send(Opcode.SETLKW, lock(fh, 2, 0, 9), node)
        it.send(Opcode.INTERRUPT, i.InterruptIn(parked), 0)
        reply = parse_reply(Opcode.SETLKW, await it.answer(parked))
        assert reply.error == errno.EINTR


async def test_an_interrupt_in_one_burst_with_its_request() -> None:
    # What if both lie in the device when it is read, so that no task has run between them?
    async with served() as it:
        node, fh = await create(it, b"a")
        await it.body(Opcode.SETLK, lock(fh, 1, 0, 9), node)
        connection = it.world.connection
        request = it.world.emit(Opcode.SETLKW, lock(fh, 2, 0, 9), node)
        parked = it.world.unique
        connection.dispatch(request, len(request))
        assert not it.world.session.context.parked_threads, "its thread has not begun"
        request = it.world.emit(Opcode.INTERRUPT, i.InterruptIn(parked), 0)
        connection.dispatch(request, len(request))
        assert parse_reply(Opcode.SETLKW, await it.answer(parked)).error == errno.EINTR


async def test_an_interrupt_for_nobody() -> None:
    # What if the request was answered just now, or there never was one?
    async with served() as it:
        node, fh = await create(it, b"a")
        for unique in (0, 2, it.world.unique + 4, 1 << 63):
            it.send(Opcode.INTERRUPT, i.InterruptIn(unique), 0)
        await it.body(Opcode.SETLK, lock(fh, 1, 0, 9), node)
        parked = await waiting(it, fh, node, 2)
        await it.body(Opcode.SETLK, lock(fh, 1, 0, 9, UNLOCK), node)
        assert parse_reply(Opcode.SETLKW, await it.answer(parked)).error == 0
        assert it.world.session.context.interrupted == 0
        assert it.world.connection.device_statistics()[2:6] == (0, 0, 0, 0)


async def test_a_device_that_waits() -> None:
    # What if the log is read to its end, and a message comes then?
    async with served() as it:
        dev = (await it.body(Opcode.LOOKUP, b"dev")).nodeid
        log = (await it.body(Opcode.LOOKUP, b"klog", dev)).nodeid
        fh = (await it.body(Opcode.OPEN, i.OpenIn(0, 0), log)).fh
        read = i.ReadIn(fh, 0, 65536, 0, 0, 0)
        assert b"CPUs" in await it.body(Opcode.READ, read, log)
        parked = it.send(Opcode.READ, read, log)
        await it.until(lambda: it.world.held()["parked"] == 1)
        assert (await it.body(Opcode.STATFS)).blocks
        it.world.kernel.log("something new")
        reply = parse_reply(Opcode.READ, await it.answer(parked), 65536)
        assert b"something new" in reply.body
        await it.body(Opcode.RELEASE, i.ReleaseIn(fh, 0, 0, 0), log)


async def test_the_connection_ends_while_requests_wait() -> None:
    # What if the mount is taken away under ten who wait: is every one of them let go?
    async with served() as it:
        node, fh = await create(it, b"a")
        await it.body(Opcode.SETLK, lock(fh, 1, 0, 9), node)
        for owner in range(2, 12):
            await waiting(it, fh, node, owner)
        it.ours.close()
        with trio.fail_after(30):
            await it.over.wait()
        assert it.world.held() == dict.fromkeys(it.world.held(), 0)
        assert it.world.connection.nursery is None
        connection, request = it.world.connection, it.world.emit(Opcode.SETLKW, lock(fh, 3, 0, 9))
        connection.dispatch(request, len(request))
        assert it.world.held() == dict.fromkeys(it.world.held(), 0), "nobody new begins to wait"


async def test_the_session_ends_while_requests_wait() -> None:
    # What if the kernel is going down: waiters get EINTR, newcomers are not let in?
    async with served() as it:
        node, fh = await create(it, b"a")
        await it.body(Opcode.SETLK, lock(fh, 1, 0, 9), node)
        parked = [await waiting(it, fh, node, owner) for owner in (2, 3, 4)]
        it.world.session.context.close()
        for unique in parked:
            assert parse_reply(Opcode.SETLKW, await it.answer(unique)).error == errno.EINTR
        reply = await it.ask(Opcode.SETLKW, lock(fh, 5, 0, 9), node)
        assert reply.error == errno.EAGAIN


async def test_too_many_wait() -> None:
    # What if more requests would wait than are allowed to?
    async with served(max_parked=3) as it:
        node, fh = await create(it, b"a")
        await it.body(Opcode.SETLK, lock(fh, 1, 0, 9), node)
        parked = [await waiting(it, fh, node, owner) for owner in (2, 3, 4)]
        for owner in (5, 6):
            reply = await it.ask(Opcode.SETLKW, lock(fh, owner, 5, 20), node)
            assert reply.error == errno.EAGAIN
        assert it.world.held()["parked"] == 3
        assert not set(parked) & set(it.answers)
        it.send(Opcode.INTERRUPT, i.InterruptIn(parked[0]), 0)
        await it.answer(parked[0])
        await it.until(lambda: it.world.held()["waiting"] == 2)
        await waiting(it, fh, node, 7)


async def test_waiters_are_served_in_their_turn() -> None:
    # What if fifty wait for one lock and each gives it on: does every one get it once?
    async with served() as it:
        node, fh = await create(it, b"a")
        await it.body(Opcode.SETLK, lock(fh, 1, 0, 9), node)
        parked = {await waiting(it, fh, node, n, 0, 9): n for n in range(2, 52)}
        holder = 1
        while parked:
            await it.body(Opcode.SETLK, lock(fh, holder, 0, 9, UNLOCK), node)
            await it.until(lambda: it.world.held()["waiting"] == len(parked) - 1)
            await it.body(Opcode.STATFS)
            (unique,) = set(parked) & set(it.answers)
            assert parse_reply(Opcode.SETLKW, it.answers[unique]).error == 0
            holder = parked.pop(unique)


def test_nobody_to_wait_in() -> None:
    # What if a request must wait before the loop has begun, or after its end?
    world = World()
    node, fh = world.make(b"a")
    world.body(Opcode.SETLK, lock(fh, 1, 0, 9), node)
    reply = world.ask(Opcode.SETLKW, lock(fh, 2, 0, 9), node)
    assert reply is not None
    assert reply.error == errno.EAGAIN
    world.close()


async def test_the_descriptor_is_closed_under_us() -> None:
    # What if somebody closes the device's descriptor by its number, with requests waiting?
    async with served() as it:
        node, fh = await create(it, b"a")
        await it.body(Opcode.SETLK, lock(fh, 1, 0, 9), node)
        await waiting(it, fh, node, 2)
        os.close(it.world.connection.fd)
        it.send(Opcode.STATFS)
        with trio.fail_after(30):
            await it.over.wait()
        assert it.world.connection.fd == -1, "whoever gets the number now is left alone"
        assert it.world.session.loop.statistics().connections == 0
