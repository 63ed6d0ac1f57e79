"""Bios, the queue's order, device counters, and the driver that feeds a disk."""

from __future__ import annotations

import gc
import random
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfuser.dev.disk.bio import (
    BIO,
    B,
    Bio,
    BioTrack,
    Buf,
    BufCmd,
    bio_start_transaction,
    biodone,
    biowait,
    clearbiocache,
    pop_bio,
    push_bio,
    start_sync,
)
from dfuser.dev.disk.bioq import BioqTunables, BioQueueHead
from dfuser.dev.disk.device import dev_dstrategy
from dfuser.dev.disk.devstat import Devstat, DevstatList
from dfuser.dev.disk.ioctl import DIOCGPART
from dfuser.hw.clock import VirtualClock
from dfuser.hw.disk.executor import HeldExecutor
from dfuser.hw.disk.fault import FaultDisk
from dfuser.hw.disk.faultrule import Fault, FaultRule
from dfuser.hw.disk.image import ImageDisk
from dfuser.hw.disk.ram import RamDisk
from dfuser.libkern.errno import EIO, ENXIO, EOPNOTSUPP, EWOULDBLOCK, KError, Panic
from tests.unit.dev.disk.world import MIB, SIZE, World, mbr_disk


def bio(cmd: BufCmd, offset: int = 0, size: int = 512) -> Bio:
    bp = Buf(bytearray(size))
    bp.cmd = cmd
    bp.bio1.offset = offset
    return bp.bio1


# --- bios ----------------------------------------------------------------------------------


def test_completion_runs_up_to_the_first_who_asked() -> None:
    """What if three layers pushed a bio, and the middle one wants to know?"""
    first = bio(BufCmd.READ, 100)
    second = push_bio(first)
    third = push_bio(second)
    told: list[Bio] = []
    second.done = told.append
    track = BioTrack()
    bio_start_transaction(third, track)
    assert track.active == 1
    biodone(third)
    assert told == [second]
    assert track.active == 0
    assert first.buf.cmd is BufCmd.READ
    biodone(pop_bio(second))
    assert first.buf.cmd is BufCmd.DONE
    with pytest.raises(Panic):
        biodone(first)
    with pytest.raises(Panic):
        pop_bio(first)


def test_translations_are_cached() -> None:
    """What if a bio is pushed again: is the translation of the layer below still there?"""
    first = bio(BufCmd.READ, 0)
    assert first.buf.bio2.offset == -1
    push_bio(first).offset = 4096
    assert first.buf.bio2.offset == 4096
    first.flags |= BIO.FUA
    assert push_bio(first).flags == BIO.FUA
    clearbiocache(first.next)
    assert first.buf.bio2.offset == -1


def test_freed_blocks_are_not_cached() -> None:
    """What if a request to free blocks is over: is its buffer marked?"""
    request = bio(BufCmd.FREEBLKS)
    biodone(request)
    assert request.buf.flags & B.NOCACHE
    bp = Buf(b"x" * 100, 50)
    assert [bytes(part) for part in bp.buffers()] == [b"x" * 50]
    bp.flags |= B.ERROR
    assert bp.outcome == EIO


def test_waiting_for_a_bio_and_for_none_in_flight() -> None:
    """What if threads wait for a transfer, for the device to be idle, and with a limit?"""
    world = World(machine=True)
    assert world.lwkt is not None
    request = start_sync(Buf(bytearray(512)), BufCmd.READ, 0)
    track = BioTrack()
    bio_start_transaction(request, track)
    order: list[object] = []

    async def waiter() -> None:
        order.append(("limit", await biowait(request, timo=1)))
        order.append(("bio", await biowait(request)))

    async def idler() -> None:
        order.append(("idle", await track.wait()))

    world.lwkt.create(waiter, name="waiter")
    world.lwkt.create(idler, name="idler", cpu=1)
    world.settle()
    assert order == []
    world.clock.advance(20_000_000)
    world.settle()
    assert order == [("limit", EWOULDBLOCK)]

    def intr() -> None:
        request.buf.fail(EIO)
        biodone(request)

    world.lwkt.cpus[1].interrupt(intr)
    world.settle()
    assert sorted(order[1:]) == [("bio", EIO), ("idle", 0)]  # type: ignore[type-var]
    world.lwkt.shutdown_nowait()


# --- the queue -----------------------------------------------------------------------------


class PlainQueue:
    """The rule as DragonFly writes it: one list and a pointer to the first write to overtake."""

    def __init__(self, tunables: BioqTunables) -> None:
        self.t = tunables
        self.queue: list[Bio] = []
        self.transition: Bio | None = None
        self.reorder = 0

    def disksort(self, new: Bio) -> None:
        if new.buf.cmd is BufCmd.READ and self.transition is not None:
            self.queue.insert(self.queue.index(self.transition), new)
            self.reorder += 1
            if self.reorder % self.t.minor_interval == 0:
                self.writereorder()
                if self.reorder >= self.t.burst_interval:
                    self.reorder = 0
            return
        self.queue.append(new)
        if new.buf.cmd is BufCmd.WRITE:
            self.transition = self.transition or new
        elif new.buf.cmd is not BufCmd.READ:
            self.transition = None

    def after(self, one: Bio) -> Bio | None:
        place = self.queue.index(one) + 1
        return self.queue[place] if place < len(self.queue) else None

    def writereorder(self) -> None:
        minor = self.reorder < self.t.burst_interval or not self.t.severe()
        left = self.t.minor_bytes if minor else self.t.burst_bytes
        assert self.transition is not None
        following = self.transition.offset
        while (one := self.transition) is not None and (not minor or following == one.offset):
            following = one.offset + one.buf.bcount
            self.transition = self.after(one)
            if left < one.buf.bcount:
                break
            left -= one.buf.bcount

    def takefirst(self) -> Bio | None:
        if not self.queue:
            return None
        if self.queue[0] is self.transition:
            self.transition = self.after(self.queue[0])
        return self.queue.pop(0)


@given(
    st.lists(
        st.tuples(st.sampled_from("rrrrrwwwwf-"), st.integers(0, 6), st.sampled_from((1, 8, 128))),
        max_size=200,
    ),
    st.booleans(),
    st.integers(1, 4),
)
def test_the_order_is_dragonflys(
    steps: list[tuple[str, int, int]], severe: bool, minor: int
) -> None:
    """What if requests come and go in any order: is the queue's order the original rule's?"""
    tunables = BioqTunables(lambda: severe)
    tunables.minor_interval = minor
    tunables.burst_interval = 4 * minor
    tunables.burst_bytes = 300_000
    tunables.minor_bytes = 70_000
    ours, plain = BioQueueHead(tunables), PlainQueue(tunables)
    commands = {"r": BufCmd.READ, "w": BufCmd.WRITE, "f": BufCmd.FLUSH}
    place = 0
    for what, jump, sectors in steps:
        if what == "-":
            assert ours.takefirst() is plain.takefirst()
            continue
        place = place if jump < 4 else place + jump * MIB
        new = bio(commands[what], place, sectors * 512)
        place += sectors * 512
        ours.disksort(new)
        plain.disksort(new)
        assert ours.transition is plain.transition
        assert ours.first() is plain.queue[0]
    assert len(ours) == len(plain.queue)
    rest = [ours.takefirst() for _ in range(len(ours))]
    assert rest == plain.queue
    assert ours.takefirst() is None


def test_writes_trickle_by_the_interval() -> None:
    """What if 5 reads pass queued writes, adjacent ones and others, and the interval is 1?"""
    tunables = BioqTunables()
    queue = BioQueueHead(tunables)
    for number in range(4):
        queue.disksort(bio(BufCmd.WRITE, number * 65536, 65536))
    queue.disksort(bio(BufCmd.WRITE, 10 * MIB, 512))
    for number in range(5):
        queue.disksort(bio(BufCmd.READ, number))
    order = [entry.buf.cmd for entry in (*queue.before, *queue.writes)]
    assert order == [BufCmd.READ] * 5 + [BufCmd.WRITE] * 5
    assert (queue.released, queue.minors, queue.bursts) == (4, 1, 0)
    assert queue.transition is not None
    assert queue.transition.offset == 10 * MIB
    tunables.minor_interval = 1
    queue.disksort(bio(BufCmd.READ))
    assert queue.released == 5
    assert queue.transition is None
    assert queue.statistics().inserted == 11


def test_bursts_only_when_writes_are_severe() -> None:
    """What if 60 reads pass, while writes are severe and while they are not?"""
    for severe, expected in ((False, (12, 0, 12)), (True, (11, 1, 11 + 46))):
        queue = BioQueueHead(BioqTunables(lambda severe=severe: severe))
        for number in range(200):
            queue.disksort(bio(BufCmd.WRITE, number * 2 * MIB, 65536))
        for number in range(60):
            queue.disksort(bio(BufCmd.READ, number))
        assert (queue.minors, queue.bursts, queue.released) == expected
        assert queue.reorder == 0


def test_removing_from_the_middle() -> None:
    """What if requests are taken out of both halves, and one that is in neither?"""
    queue = BioQueueHead(BioqTunables())
    write, read = bio(BufCmd.WRITE), bio(BufCmd.READ)
    queue.disksort(write)
    queue.disksort(read)
    queue.remove(write)
    queue.remove(read)
    assert len(queue) == 0
    with pytest.raises(ValueError):
        queue.remove(read)


def test_reads_overtake_and_writes_never_starve() -> None:
    """What if one reader asks without end while a hundred scattered writes wait, at 1 ms each?"""

    def completions(minor_interval: int) -> str:
        """What a slow disk with one request at a time completes, in order."""
        world = World(depth=1)
        disk = FaultDisk(RamDisk(SIZE), clock=world.clock)
        world.vkd.attach(disk)
        world.layer.tunables.minor_interval = minor_interval
        disk.add_rule(FaultRule(Fault.DELAY, delay_ns=(1_000_000, 1_000_000)))
        order: list[str] = []

        def read(_bio: Bio | None = None) -> None:
            if _bio is not None:
                order.append("r")
            request = bio(BufCmd.READ, 0)
            request.done = read
            dev_dstrategy(world.dev("vkd0"), request)

        read()
        for number in range(100):
            request = bio(BufCmd.WRITE, number * 64 * 1024)
            request.done = lambda _: order.append("w")
            dev_dstrategy(world.dev("vkd0"), request)
        world.clock.advance(240_000_000)
        return "".join(order)

    five, one = completions(5), completions(1)
    assert five == "r" + "rrrrrw" * 39 + "rrrrr"
    assert one[:201] == "r" + "rw" * 100
    assert one[201:] == "r" * 39


# --- counters ------------------------------------------------------------------------------


def test_busy_time_is_from_the_first_to_the_last() -> None:
    """What if requests overlap: is the time counted once, and only while any is in flight?"""
    clock = VirtualClock()
    stat = Devstat(clock, "vkd", 3, 512)
    read, write, free, flush = (
        bio(cmd, 0, 1024).buf for cmd in (BufCmd.READ, BufCmd.WRITE, BufCmd.FREEBLKS, BufCmd.FLUSH)
    )
    stat.start_transaction()
    clock.advance(10)
    stat.start_transaction()
    clock.advance(10)
    write.resid = 512
    stat.end_transaction_buf(write)
    assert stat.statistics().busy_ns == 20
    clock.advance(5)
    stat.end_transaction_buf(read)
    clock.advance(1000)
    for bp in (free, flush):
        stat.start_transaction()
        stat.end_transaction_buf(bp)
    assert stat.statistics() == ("vkd", 3, 1024, 512, 1024, 1, 1, 1, 1, 0, 25, 512)
    with pytest.raises(Panic):
        stat.end_transaction_buf(read)


def test_the_list_is_sorted_by_priority() -> None:
    """What if devices of different priorities come and go?"""
    clock = VirtualClock()
    stats = DevstatList()
    made = [Devstat(clock, f"d{n}", n, 512, priority=p) for n, p in enumerate((2, 1, 3, 2))]
    for stat in made:
        stats.add_entry(stat)
    assert [stat.device_name for stat in stats] == ["d2", "d0", "d3", "d1"]
    stats.remove_entry(made[0])
    stats.remove_entry(made[0])
    assert (stats.count(), stats.generation) == (3, 5)
    data = stats.pack()
    assert struct.unpack_from("<q", data) == (5,)
    assert len(data) == 8 + 3 * 200
    assert data[8 + 12 : 8 + 14] == b"d2"


def test_counters_equal_the_disks_own(rng: random.Random) -> None:
    """What if devstat is compared with what the disk below counted?"""
    world = World()
    disk = RamDisk(SIZE)
    unit = world.vkd.attach(disk)
    for _ in range(100):
        offset, size = rng.randrange(1000) * 512, rng.randrange(1, 600) * 512
        if rng.random() < 0.5:
            world.write("vkd0", offset, bytes(size))
        else:
            world.read("vkd0", offset, size)
    ours, theirs = unit.stat.statistics(), disk.statistics()
    assert (ours.num_reads, ours.bytes_read) == (theirs.reads, theirs.bytes_read)
    assert (ours.num_writes, ours.bytes_written) == (theirs.writes, theirs.bytes_written)
    assert ours.busy_count == 0
    assert unit.statistics().bioq.inserted == theirs.reads + theirs.writes


# --- the driver ----------------------------------------------------------------------------


def submit(world: World, cmd: BufCmd, offset: int, size: int, done: list[str], name: str) -> Bio:
    request = bio(cmd, offset, size)
    request.done = lambda b: (b.buf.bpdone(False), done.append(name))  # type: ignore[func-returns-value]
    dev_dstrategy(world.dev("vkd0"), request)
    return request


def test_a_flush_is_a_barrier(tmp_path: Path) -> None:
    """What if writes, a flush and writes are given to the driver at once?"""
    held = HeldExecutor()
    try:
        disk = ImageDisk.create(
            tmp_path / "a.img", SIZE, direct=True, sector_size=4096, executor=held
        )
    except KError as error:
        pytest.skip(f"no O_DIRECT here: {error}")
    world = World()
    world.vkd.attach(disk)
    held.release_all()
    done: list[str] = []
    for name in ("w1", "w2"):
        submit(world, BufCmd.WRITE, 0, 4096, done, name)
    submit(world, BufCmd.FLUSH, 0, 0, done, "flush")
    submit(world, BufCmd.WRITE, 4096, 4096, done, "w3")
    assert len(held.held) == 2
    held.release(1)
    assert len(held.held) == 1
    held.release()
    assert done == ["w2", "w1"]
    assert len(held.held) == 1
    assert disk.statistics().flushes == 0
    held.release()
    assert done == ["w2", "w1", "flush"]
    held.release()
    assert done[-1] == "w3"
    disk.close()


def test_the_driver_keeps_its_depth_and_its_order(tmp_path: Path) -> None:
    """What if more is queued than may be in flight: do reads go first, is the depth kept?"""
    held = HeldExecutor()
    try:
        disk = ImageDisk.create(
            tmp_path / "a.img", SIZE, direct=True, sector_size=4096, executor=held
        )
    except KError as error:
        pytest.skip(f"no O_DIRECT here: {error}")
    world = World(depth=2)
    unit = world.vkd.attach(disk)
    held.release_all()
    done: list[str] = []
    for number in range(4):
        submit(world, BufCmd.WRITE, number * MIB, 4096, done, f"w{number}")
    submit(world, BufCmd.READ, 0, 4096, done, "r")
    assert unit.running == 2
    assert len(held.held) == 2
    held.release_all()
    assert done == ["w0", "w1", "r", "w2", "w3"]
    assert disk.statistics().inflight_max == 2
    disk.close()


def test_completions_arrive_as_interrupts() -> None:
    """What if a disk delays: does the bio end on a CPU, later, in interrupt context?"""
    world = World(machine=True)
    assert world.lwkt is not None
    disk = FaultDisk(RamDisk(SIZE), clock=world.clock)
    world.vkd.attach(disk)
    disk.add_rule(FaultRule(Fault.DELAY, delay_ns=(1000, 1000)))
    where: list[int] = []
    request = bio(BufCmd.READ, 0, 512)
    request.done = lambda b: where.append(world.lwkt.cpus[0].intr_nesting)  # type: ignore[union-attr]
    dev_dstrategy(world.dev("vkd0"), request)
    assert not where
    world.clock.advance(1000)
    assert where == [1]
    world.lwkt.shutdown_nowait()


def test_freeing_fua_and_unknown_commands() -> None:
    """What if blocks are freed, a write is FUA, a command is none of a disk's?"""
    world = World()
    disk = RamDisk(SIZE)
    world.vkd.attach(disk)
    done: list[str] = []
    submit(world, BufCmd.FREEBLKS, MIB, 65536, done, "free")
    assert disk.statistics().bytes_trimmed == 65536
    request = bio(BufCmd.WRITE, 0, 512)
    request.flags |= BIO.FUA
    dev_dstrategy(world.dev("vkd0"), request)
    assert disk.statistics().fua == 1
    wrong = submit(world, BufCmd.FORMAT, 0, 512, done, "format")
    assert wrong.buf.outcome == EOPNOTSUPP
    assert done == ["free", "format"]


def test_a_device_that_takes_no_bios() -> None:
    """What if a bio is handed to a device without a strategy, or to a disk that is gone?"""
    world = World()
    unit = world.vkd.attach(RamDisk(SIZE))
    raw = unit.disk.rawdev
    world.vkd.detach(unit)
    request = bio(BufCmd.READ)
    dev_dstrategy(raw, request)
    assert request.buf.outcome == ENXIO


def test_many_completions_in_place_do_not_nest() -> None:
    """What if each completion starts the next transfer, ten thousand times?"""
    world = World()
    world.vkd.attach(RamDisk(SIZE))
    left = 10_000
    dev = world.dev("vkd0")

    def again(_bio: Bio) -> None:
        nonlocal left
        left -= 1
        if left:
            request = bio(BufCmd.READ)
            request.done = again
            dev_dstrategy(dev, request)

    first = bio(BufCmd.READ)
    first.done = again
    dev_dstrategy(dev, first)
    assert left == 0


def test_nothing_is_left_for_the_collector(rng: random.Random) -> None:
    """What if disks come and go, are read, written and asked: is there cyclic garbage?"""
    world = World()

    def once() -> None:
        unit = world.vkd.attach(mbr_disk(RamDisk(SIZE)))
        world.read("vkd0s1a", 0, 4096)
        world.write("vkd0s1a", 0, bytes(4096))
        world.ioctl("vkd0s1", DIOCGPART)
        world.layer.reprobe(unit.disk)
        world.vkd.detach(unit).close()

    once()
    gc.collect()
    gc.disable()
    try:
        for _ in range(50):
            once()
        assert gc.collect() == 0
    finally:
        gc.enable()
