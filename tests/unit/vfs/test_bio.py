"""The buffer cache on a file system of blocks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dfuser.boot.config import Config
from dfuser.boot.kernel import Kernel
from dfuser.hw.clock import VirtualClock
from dfuser.hw.disk.disk import DiskCmd
from dfuser.hw.disk.fault import FaultDisk
from dfuser.hw.disk.faultrule import Fault, FaultRule
from dfuser.hw.disk.ram import RamDisk
from dfuser.hw.fake import FakeHost
from dfuser.libkern.errno import EINVAL, EIO, KError, Panic
from dfuser.libkern.sysctl import SysctlTree
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt.block import Block, run_blocking
from dfuser.lwkt.synch import tsleep
from dfuser.vfs.bufpool import GETBLK_BHEAVY
from dfuser.vfs.bufqueue import B, BQueue
from dfuser.vfs.bufspace import default_nbuf
from dfuser.vfs.bufsync import V_SAVE
from dfuser.vfs.vop import MNT_NOWAIT, MNT_WAIT
from tests.unit.vfs.blkfs import MIB, World, blocks_of

MS = 1_000_000
Make = Callable[..., World]


@pytest.fixture
def make() -> Iterator[Make]:
    worlds: list[World] = []

    def maker(*args: Any, **kwargs: Any) -> World:
        worlds.append(World(*args, **kwargs))
        return worlds[-1]

    yield maker
    for world in worlds:
        world.stop()


def slow(ms: int = 5, cmds: frozenset[DiskCmd] = frozenset(DiskCmd)) -> FaultRule:
    return FaultRule(Fault.DELAY, cmds, delay_ns=(ms * MS, ms * MS))


def fault_world(make: Make, *rules: FaultRule, **kwargs: Any) -> tuple[World, FaultDisk, RamDisk]:
    """A world whose disk is broken after it was mounted."""
    ram = RamDisk(64 * MIB)
    clock = VirtualClock()
    disk = FaultDisk(ram, clock=clock)
    world = make(disk, **kwargs)
    disk._clock = world.clock
    for rule in rules:
        disk.add_rule(rule)
    return world, disk, ram


def pattern(size: int, seed: int = 1) -> bytes:
    return bytes((i * 7 + seed * 13 + (i >> 9)) & 0xFF for i in range(256)) * (size // 256)


def test_write_back(make: Make) -> None:
    """What if a file is written? Nothing reaches the disk before it is synced; then all of it."""
    w = make()
    vp = w.file(0)
    data = pattern(100_096)
    before = w.bufs.writes
    w.write(vp, 0, data)
    assert w.bufs.writes == before
    assert w.read(vp, 0, 200_000) == data
    assert w.bufs.dirtybufspace == 7 * 16384
    w.check()
    w.fsync(vp)
    assert w.bufs.dirtybufspace == 0
    assert w.disk.read(w.fs.place(0, 0), 16384) == data[:16384]
    w.check()
    w.evict()
    assert blocks_of(vp) == []
    assert w.read(vp, 0, 200_000) == data
    vp.rele()


def test_one_copy(make: Make) -> None:
    """What if a buffer is changed? The page of the vnode's object has changed; it is the same."""
    w = make(bsize=65536)
    vp = w.file(0)
    bp = w.bufs.getblk(vp, 65536, 65536)
    bp.write(5000, b"window")
    assert len(bp.extents) == 1
    address = bp.extents[0][0]
    assert w.physmem.mem[address + 5000 : address + 5006] == b"window"
    frame = vp.object.vm_page_lookup(17)
    assert frame == (address >> 12) + 1
    assert w.pages.wire_count(frame) == 1
    assert not w.pages.valid[frame]
    vp.data.blocks |= 2
    w.bufs.bdwrite(bp)
    assert w.pages.valid[frame] == 0xFF
    assert not w.pages.dirty[frame]
    w.check()
    vp.rele()


def test_small_blocks_share_a_page(make: Make) -> None:
    """What if blocks are smaller than a page? Each reads and writes its own part of it."""
    w = make(bsize=512)
    vp = w.file(0)
    data = pattern(8192)
    w.write(vp, 0, data)
    assert vp.object.resident_page_count == 2
    frame = vp.object.vm_page_lookup(0)
    assert w.pages.wire_count(frame) == 8
    w.fsync(vp)
    w.evict()
    assert vp.object.resident_page_count == 0
    assert w.read(vp, 1024, 512) == data[1024:1536]
    assert w.pages.valid[vp.object.vm_page_lookup(0)] != 0
    assert w.read(vp, 0, 8192) == data
    w.check()
    vp.rele()


def test_pages_outlive_their_buffer(make: Make) -> None:
    """What if a buffer is reused but its pages stay? The next one finds them and reads nothing."""
    w = make()
    vp = w.file(0)
    w.write(vp, 0, pattern(16384))
    w.fsync(vp)
    while w.bufs._reuse_one():
        pass
    assert blocks_of(vp) == []
    reads = w.bufs.reads
    assert w.bufs.inmem(vp, 0, 16384)
    assert w.read(vp, 0, 16384) == pattern(16384)
    assert w.bufs.reads == reads
    vp.rele()


def test_bogus_page(make: Make) -> None:
    """What if a block is read of which one page is valid and newer? The page stays as it is."""
    w = make()
    vp = w.file(0)
    w.write(vp, 0, pattern(16384))
    w.fsync(vp)
    w.evict()
    frame = vp.object.grab(4096, 4096)[0][0] >> 12
    w.pages.set_dirty(frame, 0, 4096)
    w.physmem.write(frame << 12, b"mapped and written".ljust(4096))
    data = w.read(vp, 0, 16384)
    assert data[4096:8192] == b"mapped and written".ljust(4096)
    assert data[:4096] == pattern(16384)[:4096]
    assert data[8192:] == pattern(16384)[8192:]
    assert w.pages.dirty[frame]
    w.pages.clear_dirty(frame, 0, 4096)
    vp.rele()


def test_a_read_that_must_wait(make: Make) -> None:
    """What if the disk takes its time? The core says Block having changed nothing, and comes back.

    While the transfer is under way others who want the block wait for it, and read nothing.
    """
    w, disk, _ = fault_world(make)
    vp = w.file(0)
    w.write(vp, 0, pattern(16384))
    w.fsync(vp)
    w.evict()
    disk.add_rule(slow())
    with pytest.raises(Block) as block:
        w.bufs.bread(vp, 0, 16384)
    assert block.value.wmesg == "biord"
    assert vp.bufs is not None
    assert vp.bufs.track_read.active == 1
    assert vp.auxrefs == 1
    with pytest.raises(Block) as block:
        w.bufs.getblk(vp, 0, 16384)
    assert block.value.wmesg == "bufwait"
    reads = w.bufs.reads
    one = w.thread(vp.ops.use.vop_read, vp, 0, 16384, 0, None)
    two = w.thread(vp.ops.use.vop_read, vp, 0, 16384, 0, None)
    w.check()
    w.until(lambda: one and two)
    assert one == two == [pattern(16384)]
    assert w.bufs.reads == reads
    assert vp.auxrefs == 0
    w.check()
    vp.rele()


def test_read_error(make: Make) -> None:
    """What if reading fails, at once or later? EIO to who asked, no valid page, and a new try."""
    for rules in ([], [slow()]):
        w, disk, _ = fault_world(make)
        vp = w.file(0)
        w.write(vp, 0, pattern(16384))
        w.fsync(vp)
        w.evict()
        disk.add_rule(FaultRule(Fault.EIO, frozenset({DiskCmd.READ}), times=1))
        for rule in rules:
            disk.add_rule(rule)
        with pytest.raises(KError) as error:
            w.read(vp, 0, 100)
        assert error.value.errno == EIO
        assert vp.object.resident_page_count == 0
        assert blocks_of(vp) == []
        assert w.bufs.read_errors == 1
        w.check()
        assert w.read(vp, 0, 16384) == pattern(16384)
        vp.rele()


@pytest.mark.parametrize("delay", [False, True])
def test_write_error_keeps_the_data(make: Make, delay: bool) -> None:
    """What if writing fails? EIO to fsync; the data stay, readable, and get there later."""
    w, disk, ram = fault_world(make)
    vp = w.file(0)
    w.write(vp, 0, pattern(16384))
    disk.add_rule(FaultRule(Fault.EIO, frozenset({DiskCmd.WRITE}), times=1))
    if delay:
        disk.add_rule(slow())
    with pytest.raises(KError) as error:
        w.fsync(vp)
    assert error.value.errno == EIO
    (bp,) = blocks_of(vp)
    assert bp.flags & B.ERROR
    assert bp.flags & B.DELWRI
    assert bp.qindex is BQueue.DIRTY
    assert w.bufs.write_errors == 1
    assert w.read(vp, 0, 16384) == pattern(16384)
    w.check()
    w.bufs.bufage = 5
    w.until(lambda: not w.bufs.dirtybufcount)
    assert w.bufs.retries == 1
    assert ram.read(w.fs.place(0, 0), 16384) == pattern(16384)
    w.fsync(vp)
    vp.rele()


def test_a_dead_disk_does_not_keep_the_daemon_busy(make: Make) -> None:
    """What if every write fails? The daemon tries each buffer once a second, not more."""
    w, disk, _ = fault_world(make, nbuf=64)
    disk.add_rule(FaultRule(Fault.EIO, frozenset({DiskCmd.WRITE})))
    w.bufs.set_hidirty(256 * 1024)
    vp = w.file(0)
    w.fs.clustered = False
    for block in range(10):
        w.write(vp, block * 16384, pattern(16384, block))
    w.pass_time(10_000 * MS)
    assert w.bufs.dirtybufcount == 10
    assert 50 <= w.bufs.write_errors <= 130
    assert w.read(vp, 0, 16384) == pattern(16384, 0)
    disk.clear_rules()
    w.fsync(vp)
    assert w.bufs.dirtybufcount == 0
    vp.rele()


@pytest.mark.parametrize("delay", [False, True])
def test_writers_do_not_wait_for_a_dead_disk(make: Make, delay: bool) -> None:
    """What if the disk refuses everything and too much is dirty? EIO instead of an endless wait.

    What was written before is there to be read, and reaches the disk when it works again.
    """
    w, disk, ram = fault_world(make)
    disk.add_rule(FaultRule(Fault.EIO, frozenset({DiskCmd.WRITE})))
    if delay:
        disk.add_rule(slow())
    w.bufs.set_hidirty(256 * 1024)
    w.fs.clustered = False
    vp = w.file(0)
    taken = 0

    def write_on() -> None:
        nonlocal taken
        for taken in range(40):
            w.write(vp, taken * 16384, pattern(16384, taken))

    with pytest.raises(KError) as error:
        write_on()
    assert error.value.errno == EIO
    assert 10 < taken < 18
    assert w.bufs.waiting == w.bufs.reserved == 0
    disk.clear_rules()
    w.until(lambda: w.bufs.dirtykvaspace < w.bufs.lodirtybufspace)
    w.write(vp, taken * 16384, b"again")
    w.fsync(vp)
    for block in range(taken):
        assert ram.read(w.fs.place(0, block), 16384) == pattern(16384, block)
    vp.rele()


def test_fsync_waits_for_what_was_dirty(make: Make) -> None:
    """What if somebody goes on writing during an fsync? It ends when what came before is stable."""
    w, _, ram = fault_world(make, slow())
    vp = w.file(0)
    w.write(vp, 0, pattern(65536))
    done = w.thread(vp.ops.use.vop_fsync, vp, MNT_WAIT)
    w.pass_time(1 * MS)
    assert not done
    assert w.bufs.runningbufspace == 65536
    assert vp.bufs is not None
    assert vp.bufs.track_write.active == 1
    w.check()
    w.write(vp, 65536, pattern(16384, 3))
    w.until(lambda: done)
    assert done == [None]
    assert ram.read(w.fs.place(0, 0), 65536) == pattern(65536)
    assert w.bufs.runningbufspace == 0
    vp.rele()


def test_a_busy_writer_does_not_hold_up_an_fsync(make: Make) -> None:
    """What if a block gets dirty again and again while fsync runs? It ends all the same."""
    w, _, _ = fault_world(make, slow())
    vp = w.file(0)
    w.write(vp, 0, pattern(16384))
    stop: list[int] = []
    wrote: list[int] = []

    async def writer() -> None:
        while not stop:
            await run_blocking(vp.ops.use.vop_write, vp, len(wrote) % 8 * 16384,
                               pattern(16384, len(wrote)), 0, None)  # fmt: skip
            wrote.append(1)
            await tsleep(wrote, 0, "pause", 1)

    w.machine.create(writer, name="writer", cpu=1)
    w.fsync(vp)
    assert wrote
    stop.append(1)
    w.pass_time(100 * MS)
    vp.rele()


def test_bwrite_waits(make: Make) -> None:
    """What if a thread writes one buffer and waits? It is told the errno; failed data stay."""
    w, disk, _ = fault_world(make, slow())
    vp = w.file(0)
    results: list[int] = []

    async def body() -> None:
        bp = w.bufs.getblk(vp, 0, 16384)
        bp.write(0, pattern(16384))
        vp.data.blocks |= 1
        results.append(await w.bufs.bwrite(bp))

    w.machine.create(body, name="one", cpu=0)
    w.until(lambda: results)
    assert w.bufs.dirtybufcount == 0
    disk.add_rule(FaultRule(Fault.EIO, frozenset({DiskCmd.WRITE}), times=1))
    w.machine.create(body, name="two", cpu=0)
    w.until(lambda: len(results) == 2)
    assert results == [0, EIO]
    assert w.bufs.dirtybufcount == 1
    assert vp.auxrefs == 1
    w.fsync(vp)
    assert vp.auxrefs == 0
    vp.rele()


def test_dirty_limits_stall_writers(make: Make) -> None:
    """What if a writer is faster than the disk? It waits; what is dirty stays below the mark."""
    w, _, _ = fault_world(make, slow(2))
    tree = SysctlTree()
    tree.register(w.bufs)
    tree.set("vfs.hidirtybufspace", str(MIB), Ucred.root())
    with pytest.raises(KError) as error:
        tree.set("vfs.lodirtybufspace", str(2 * MIB), Ucred.root())
    assert error.value.errno == EINVAL
    vp = w.file(0)
    w.fs.clustered = False
    high: list[int] = []

    async def writer() -> None:
        for block in range(200):
            await run_blocking(
                vp.ops.use.vop_write, vp, block * 16384, pattern(16384, block), 0, None
            )
            high.append(w.bufs.dirtybufspace)

    td = w.machine.create(writer, name="writer", cpu=1)
    w.until(lambda: len(high) == 200)
    assert td.tid
    assert w.bufs.stalls > 3
    assert max(high) <= MIB
    assert max(high) >= w.bufs.mid2
    w.fsync(vp)
    assert w.read(vp, 199 * 16384, 16384) == pattern(16384, 199)
    vp.rele()


def test_writers_are_let_go_in_the_order_they_came(make: Make) -> None:
    """What if many wait, and one writes much more than the others? First come, first served."""
    w, _, _ = fault_world(make, slow(2))
    w.bufs.set_hidirty(512 * 1024)
    vps = [w.file(number) for number in range(5)]
    w.fs.clustered = False
    order: list[int] = []
    grant = w.bufs._grant
    granted = 0

    def watched() -> None:
        nonlocal granted
        before = list(w.bufs._line)
        grant()
        left = list(w.bufs._line)
        assert before[len(before) - len(left) :] == left
        granted += len(before) - len(left)

    w.bufs._grant = watched  # type: ignore[method-assign]

    async def writer(number: int, blocks: int) -> None:
        for block in range(blocks):
            await run_blocking(
                vps[number].ops.use.vop_write, vps[number], block * 16384,
                pattern(16384, block), 0, None,
            )  # fmt: skip
            order.append(number)

    w.machine.create(writer, 0, 200, name="greedy", cpu=1)
    w.until(lambda: w.bufs.waiting == 1)
    order.clear()
    for number in range(1, 5):
        w.machine.create(writer, number, 3, name=f"modest {number}", cpu=number % 2)
    w.until(lambda: sum(order.count(n) for n in range(1, 5)) == 12)
    assert order.count(0) < 150
    w.until(lambda: w.bufs.waiting == 0 and order.count(0) > 150)
    assert granted == w.bufs.stalls > 5
    w.check()
    del w.bufs._grant
    for vp in vps:
        w.fsync(vp)
        vp.rele()


def test_running_space_is_bounded(make: Make) -> None:
    """What if very much is to be written? No more than hirunningspace is in flight."""
    w, _, _ = fault_world(make, slow(3), nbuf=512, memory=32)
    vp = w.file(0)
    w.bufs.hirunningspace = 256 * 1024
    seen: list[int] = []
    for block in range(64):
        w.write(vp, block * 16384, pattern(16384, block))
    done = w.thread(vp.ops.use.vop_fsync, vp, MNT_WAIT)

    def watch() -> bool:
        seen.append(w.bufs.runningbufspace)
        return bool(done)

    w.until(watch)
    assert max(seen) > 128 * 1024
    assert max(seen) <= 256 * 1024 * 4 // 6 + 128 * 1024
    vp.rele()


def test_space_is_bounded_and_reused(make: Make) -> None:
    """What if more is read than there is space for buffers? The oldest go; limits hold."""
    w = make(nbuf=64, memory=32)
    vp = w.file(0)
    for block in range(200):
        w.write(vp, block * 16384, pattern(16384, block))
        assert w.bufs.bufspace <= w.bufs.hibufspace
    w.fsync(vp)
    for block in range(200):
        assert w.read(vp, block * 16384, 16384) == pattern(16384, block)
    assert w.bufs.headers <= 64
    assert w.bufs.reuses > 100
    w.check()
    vp.rele()


def test_without_a_clean_buffer_one_waits(make: Make) -> None:
    """What if all buffers are dirty or held? Who wants one waits, and gets one after a write."""
    w, _, _ = fault_world(make, slow(2), nbuf=16)
    vp = w.file(0)
    held = [w.bufs.getblk(vp, block * 16384, 16384) for block in range(w.bufs.hibufspace // 16384)]
    with pytest.raises(Block) as block:
        w.bufs.getblk(vp, 40 * 16384, 16384)
    assert block.value.wmesg == "bufspc"
    for bp in held:
        vp.data.blocks |= 1 << bp.loffset // 16384
        bp.zero()
        w.bufs.bdwrite(bp)
    got = w.call(w.bufs.getblk, vp, 50 * 16384, 16384)
    # The thread that got it has ended; nobody else looks at it.
    w.bufs.brelse(got)
    w.fsync(vp)
    w.check()
    vp.rele()


def test_memory_is_given_back(make: Make) -> None:
    """What if memory runs short? Cached pages go first, clean buffers after them."""
    w = make(nbuf=256, memory=8)
    vp = w.file(0)
    for block in range(300):
        w.write(vp, block * 16384, pattern(16384, block))
    w.fsync(vp)
    for _ in range(2):
        for block in range(300):
            assert w.read(vp, block * 16384, 16384) == pattern(16384, block)
    frames = []
    for _ in range(1200):
        frames.append(w.pages.alloc())
    assert w.bufs.scan.freed > 0
    w.pages.free_pages(frames)
    w.check()
    vp.rele()


def test_who_holds_a_buffer_must_not_ask_again(make: Make) -> None:
    """What if a thread asks for the buffer it holds? It would wait for ever: a panic says so."""
    w = make()
    vp = w.file(0)
    bp = w.bufs.getblk(vp, 0, 16384)
    with pytest.raises(Panic):
        w.bufs.getblk(vp, 0, 16384)
    assert w.bufs.getblk_nowait(vp, 0, 16384) is None
    w.bufs.brelse(bp)
    for offset, size in ((0, 0), (100, 512), (0, 100), (0, 128 * 1024), (-512, 512)):
        with pytest.raises(KError) as error:
            w.bufs.getblk(vp, offset, size)
        assert error.value.errno == EINVAL
    vp.rele()


def test_another_size(make: Make) -> None:
    """What if a block is asked for with another size? A dirty one is written first."""
    w = make()
    vp = w.file(0)
    bp = w.bufs.getblk(vp, 0, 4096)
    vp.data.blocks |= 1
    bp.write(0, pattern(4096))
    w.bufs.bdwrite(bp)
    bp = w.bufs.getblk(vp, 0, 16384)
    assert (bp.bufsize, bp.flags & B.CACHE) == (16384, 0)
    assert w.disk.read(w.fs.place(0, 0), 4096) == pattern(4096)
    w.bufs.brelse(bp)
    bp = w.call(w.bufs.bread, vp, 0, 16384)
    assert bp.read(0, 4096) == pattern(4096)
    w.bufs.bqrelse(bp)
    w.check()
    vp.rele()


def test_queues(make: Make) -> None:
    """What if buffers are locked, heavy, aged or held? Each lies where the source says."""
    w = make(daemons=False)
    vp = w.file(0)
    bufs = w.bufs
    vp.data.blocks = 0xFFFF
    heavy = bufs.getblk(vp, 0, 16384, GETBLK_BHEAVY)
    bufs.bdwrite(heavy)
    assert heavy.qindex is BQueue.DIRTY_HW
    assert (bufs.dirtybufcounthw, bufs.dirtybufspacehw) == (1, 16384)
    locked = bufs.getblk(vp, 16384, 16384)
    locked.flags |= B.LOCKED
    bufs.bdwrite(locked)
    assert locked.qindex is BQueue.LOCKED
    bufs.vfsync(vp, MNT_NOWAIT)
    assert locked.flags & B.DELWRI
    assert not heavy.flags & B.DELWRI
    locked = bufs.getblk(vp, 16384, 16384)
    locked.flags &= ~B.LOCKED
    bufs.bdwrite(locked)
    assert locked.qindex is BQueue.DIRTY
    bufs.bheavy(locked)
    w.check()
    held = bufs.getblk(vp, 32768, 16384)
    bufs.bqhold(held)
    bufs.bqrelse(held)
    assert held.qindex is BQueue.CLEAN
    w.evict()
    assert bufs.findblk(vp, 32768) is held
    bufs.bqdrop(held)
    w.evict()
    assert bufs.findblk(vp, 32768) is None
    gone = bufs.getblk(vp, 49152, 16384)
    gone.flags |= B.NOCACHE
    bufs.brelse(gone)
    assert bufs.findblk(vp, 49152) is None
    assert gone.qindex is BQueue.EMPTY
    w.fsync(vp)
    w.check()
    vp.rele()


def test_heavy_buffers_have_a_daemon_of_their_own(make: Make) -> None:
    """What if heavy buffers get old? bufdaemon_hw writes them, bufdaemon the others."""
    w, _, _ = fault_world(make, slow(2))
    vp = w.file(0)
    vp.data.blocks = 0xFFFF
    w.bufs.bufage = 2
    for number, flags in enumerate((0, GETBLK_BHEAVY, 0, GETBLK_BHEAVY)):
        bp = w.bufs.getblk(vp, number * 16384, 16384, flags)
        bp.zero()
        w.bufs.bdwrite(bp)
    w.pass_time(1000 * MS)
    assert w.bufs.dirtybufcount == 4
    w.pass_time(4000 * MS)
    assert w.bufs.dirtybufcount == 0
    assert w.bufs.daemon_writes == 4
    vp.rele()


def test_truncate(make: Make) -> None:
    """What if a file is cut while some of it is in flight? It waits; then the rest is there."""
    w, _, ram = fault_world(make, slow())
    vp = w.file(0)
    data = pattern(163_840)
    w.write(vp, 0, data)
    w.bufs.vfsync(vp, MNT_NOWAIT)
    with pytest.raises(Block):
        w.bufs.nvtruncbuf(vp, 40_000, 16384)
    assert len(blocks_of(vp)) == 10
    w.truncate(vp, 40_000)
    assert len(blocks_of(vp)) == 3
    assert vp.object.size == 40_000
    assert vp.object.resident_page_count == 12
    w.check()
    w.write(vp, 80_000, b"beyond")
    assert w.read(vp, 0, 1 << 20) == data[:40_000] + bytes(40_000) + b"beyond"
    w.fsync(vp)
    assert ram.read(w.fs.place(0, 2), 16384) == data[32768:40_000] + bytes(16384 - 7232)
    vp.rele()


def test_vinvalbuf(make: Make) -> None:
    """What if all buffers are to be forgotten? With V_SAVE dirty ones are written, else lost."""
    w, _, ram = fault_world(make, slow())
    vp = w.file(0)
    w.write(vp, 0, pattern(65536))
    w.call(w.bufs.vinvalbuf, vp, V_SAVE)
    assert blocks_of(vp) == []
    assert vp.object.resident_page_count == 0
    assert ram.read(w.fs.place(0, 0), 65536) == pattern(65536)
    w.write(vp, 0, b"y" * 16384)
    w.call(w.bufs.vinvalbuf, vp)
    assert w.bufs.dirtybufcount == 0
    assert vp.auxrefs == 0
    assert w.read(vp, 0, 16384) == pattern(16384)
    vp.rele()


def test_reclaim(make: Make) -> None:
    """What if a vnode goes while it has dirty buffers, or some in flight? Nothing is left of it.

    Dirty buffers keep it from going by itself; only force takes it.
    """
    w, _, _ = fault_world(make, slow())
    vp = w.file(0)
    w.write(vp, 0, pattern(32768))
    assert vp.auxrefs == 1
    vp.rele()
    assert not w.vfs.vnodes.vrecycle(vp)
    w.bufs.bawrite(w.bufs.getblk(vp, 16384, 16384))
    w.vfs.vnodes.vgone(vp)
    assert w.bufs.dirtybufcount == 1
    assert w.bufs.runningbufspace == 16384
    assert vp.bufs is None
    w.bufs.check()
    w.pass_time(50 * MS)
    assert w.bufs.dirtybufcount == 0
    assert w.bufs.runningbufspace == 0
    w.check()
    again = w.file(0)
    assert again is not vp
    again.rele()


def test_unmount(make: Make) -> None:
    """What if a file system with dirty files is unmounted? All is written, nothing is left."""
    w, _, ram = fault_world(make, slow())
    for number in range(3):
        vp = w.file(number)
        w.write(vp, 0, pattern(49152, number))
        vp.rele()
    w.unmount()
    s = w.bufs.statistics()
    assert (s.bufspace, s.dirtybufcount, s.headers) == (0, 0, s.empty)
    other = make(ram)
    for number in range(3):
        vp = other.file(number)
        assert other.read(vp, 0, 1 << 20) == pattern(49152, number)
        vp.rele()


def test_the_syncer_writes_after_half_a_minute(make: Make) -> None:
    """What if nobody calls fsync? The vnode is on the syncer's wheel while it has dirty buffers."""
    w = make()
    vp = w.file(0)
    w.write(vp, 0, pattern(16384))
    assert w.vfs.syncer.pending() == 1
    mp = w.vfs.mounts.root
    assert mp is not None
    assert mp.syncer is not None
    for _ in range(29):
        mp.syncer.tick()
    assert w.bufs.dirtybufcount == 1
    mp.syncer.tick()
    assert vp.bufs is not None
    assert not vp.bufs.dirty
    assert w.vfs.syncer.pending() == 0
    vp.rele()


def test_statistics_and_sysctls(make: Make) -> None:
    """What if an observer counts by himself? The figures are his; the sysctls say the same."""
    w, _, _ = fault_world(make, slow())
    tree = SysctlTree()
    tree.register(w.bufs)
    vp = w.file(0)
    for block in range(20):
        w.write(vp, block * 16384, pattern(16384, block))
    w.bufs.vfsync(vp, MNT_NOWAIT)
    w.write(vp, 20 * 16384, b"dirty")
    w.check()
    s = w.bufs.statistics()
    assert vp.bufs is not None
    flying = [bp for bp in blocks_of(vp) if bp.holder is not None]
    assert s.runningbufspace == sum(bp.bufsize for bp in flying) == 20 * 16384
    assert s.dirtybufcount == 21
    queues = (s.locked, s.clean, s.dirty, s.dirty_hw, s.empty)
    assert sum(queues) + len(flying) == s.headers
    for name in ("runningbufspace", "dirtybufspace", "dirtybufcount", "bufspace"):
        assert tree.get(f"vfs.{name}") == str(getattr(s, name))
    assert int(tree.get("vfs.nbuf")) == 256
    assert any("21" in line or "dirty" in line for line in w.bufs.show_bufs())
    w.fsync(vp)
    vp.rele()


def test_memory_short_and_all_dirty(make: Make) -> None:
    """What if no page is free because all are dirty? Who needs one waits for writes."""
    w, _, _ = fault_world(make, slow(1), nbuf=1024, memory=2)
    w.fs.clustered = False
    assert w.bufs.hidirtybufspace > 2 * MIB
    vp = w.file(0)
    for block in range(160):
        w.write(vp, block * 16384, pattern(16384, block))
    assert w.bufs.lowmempgallocs
    assert w.bufs.daemon_writes
    assert w.read(vp, 100 * 16384, 16384) == pattern(16384, 100)
    w.check()
    w.fsync(vp)
    vp.rele()


def test_a_writer_in_line_is_killed(make: Make) -> None:
    """What if a thread in line, or one that was promised its turn, goes away? The others go on."""
    w, disk, _ = fault_world(make, slow(50))
    w.bufs.set_hidirty(256 * 1024)
    w.fs.clustered = False
    vp = w.file(0)
    for block in range(64):
        if w.bufs.runningbufspace + w.bufs.dirtykvaspace >= w.bufs.mid2:
            break
        w.write(vp, block * 16384, pattern(16384))
    gone = w.machine.create(
        run_blocking, vp.ops.use.vop_write, vp, 0, b"gone", 0, None, name="gone", cpu=1
    )
    w.machine.run_until_idle()
    assert w.bufs.waiting == 1
    other = w.thread(vp.ops.use.vop_write, vp, 0, b"stays", 0, None)
    w.machine.run_until_idle()
    assert w.bufs.waiting == 2
    gone.kill()
    gone.cpu.schedule_local(gone)
    w.machine.run_until_idle()
    assert w.bufs.waiting == 1
    w.until(lambda: other)
    assert other == [5]
    assert w.bufs.reserved == 0
    disk.clear_rules()
    assert w.read(vp, 0, 5) == b"stays"
    w.fsync(vp)
    vp.rele()


def test_a_promise_does_not_hold_for_ever(make: Make) -> None:
    """What if a writer was let go and never came back? After a second its place is another's."""
    w, _, _ = fault_world(make, slow(20))
    w.bufs.set_hidirty(256 * 1024)
    w.fs.clustered = False
    vp = w.file(0)
    while w.bufs.runningbufspace + w.bufs.dirtykvaspace < w.bufs.mid2:
        w.write(vp, w.bufs.dirtybufcount * 16384, pattern(16384))
    asked: list[int] = []

    async def asks_and_leaves() -> None:
        try:
            w.bufs.bwillwrite(MIB)
        except Block as block:
            wait = block.wait
        await wait()
        asked.append(w.bufs.reserved)

    w.machine.create(asks_and_leaves, name="leaves", cpu=1)
    w.until(lambda: asked)
    assert asked == [MIB]
    other = w.thread(vp.ops.use.vop_write, vp, 0, b"next", 0, None)
    w.machine.run_until_idle()
    assert not other
    w.until(lambda: other)
    assert other == [4]
    w.fsync(vp)
    vp.rele()


def test_before_the_daemons_run(make: Make) -> None:
    """What if there are no daemons yet? A writer above the mark writes what is dirty himself."""
    w = make(daemons=False)
    w.bufs.set_hidirty(256 * 1024)
    w.fs.clustered = False
    vp = w.file(0)
    for block in range(40):
        w.write(vp, block * 16384, pattern(16384, block))
        assert w.bufs.dirtybufspace <= 256 * 1024
    assert w.bufs.writes > 20
    w.fsync(vp)
    vp.rele()


def test_the_oldest_goes_first_after_a_second_round(make: Make) -> None:
    """What if a buffer must be reused? The oldest that was passed over once (B.AGE), no other."""
    w = make(daemons=False)
    vp = w.file(0)
    vp.data.blocks = 0b1111
    bufs = w.bufs
    for block in range(4):
        bufs.bqrelse(bufs.bread(vp, block * 16384, 16384))
    for bp in blocks_of(vp):
        bp.flags &= ~B.AGE
    bufs.findblk(vp, 32768).flags |= B.AGE  # type: ignore[union-attr]
    clean = [bp.loffset // 16384 for bp in bufs.queues[BQueue.CLEAN] if bp.owner is vp.bufs]
    assert clean == [0, 1, 2, 3]
    left = []
    while blocks_of(vp):
        assert bufs._reuse_one()
        left.append([bp.loffset // 16384 for bp in blocks_of(vp)])
    # Between them the blocks of the device went, which are older.
    assert [order for order, _ in itertools.groupby(left)] == [[0, 1, 3], [1, 3], [3], []]
    vp.rele()


def test_a_booted_kernel_has_it(tmp_path: Path) -> None:
    """What if a kernel boots? Its sysctls are in the tree, the daemons run, and nothing is left."""
    memory = 64 * MIB
    kernel = Kernel(Config(ncpu=2, memory=memory, state_dir=str(tmp_path)), FakeHost(memory))
    kernel.boot()
    assert int(kernel.sysctl.get("vfs.nbuf")) == default_nbuf(memory) == 50 + 960
    assert int(kernel.sysctl.get("vfs.maxbufspace")) == 1010 * 16384
    assert int(kernel.sysctl.get("vfs.hidirtybufspace")) == kernel.bufs.hibufspace // 2
    kernel.in_context(kernel.bufs.start, kernel._daemon)
    kernel.lwkt.run_until_idle()
    names = {td.name for td in kernel.lwkt.threads.values()}
    assert {"bufdaemon", "bufdaemon_hw"} <= names
    assert len(kernel.bufs.flushers) == 2
    kernel.stop()
    assert not kernel.bufs.flushers
    assert kernel.bufs.headers == len(kernel.bufs.queues[BQueue.EMPTY])
