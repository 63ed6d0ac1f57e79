"""The buffer cache against a plain model, against power cuts, and on real threads."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dfuser.hw.clock import HostClock
from dfuser.hw.disk.disk import DiskCmd
from dfuser.hw.disk.fault import FaultDisk
from dfuser.hw.disk.faultrule import Fault, FaultRule
from dfuser.hw.disk.ram import RamDisk
from dfuser.hw.disk.record import CrashExplorer, WriteLog
from dfuser.hw.physmem import PhysMem
from dfuser.libkern.errno import KError
from dfuser.libkern.ktr import Ktr
from dfuser.libkern.log import MsgBuf
from dfuser.lwkt.block import run_blocking
from dfuser.lwkt.machine import Lwkt
from dfuser.vfs.bio import BufCache
from dfuser.vfs.bufsync import V_SAVE
from dfuser.vfs.vfs import Vfs
from dfuser.vfs.vnode import Vnode
from dfuser.vfs.vop import MNT_NOWAIT, MNT_WAIT
from dfuser.vm.page import VmPages
from tests.unit.vfs.blkfs import MIB, ROOT, BlkFs, World, contents

SPAN = 300_000


class Model(RuleBasedStateMachine):
    """Files as bytes; the cache must never tell anything else, whatever is evicted or fails."""

    def __init__(self) -> None:
        super().__init__()
        self.ram = RamDisk(64 * MIB)
        self.models = [bytearray(), bytearray()]
        self.start(16384, False, 0)

    @rule(bsize=st.sampled_from([512, 2048, 4096, 16384, 65536]), scatter=st.booleans(),
          delay=st.sampled_from([0, 1]))  # fmt: skip
    def remount(self, bsize: int, scatter: bool, delay: int) -> None:
        """Unmount; a new kernel with other blocks, on a new disk with the same files."""
        self.stop()
        old = self.models
        self.ram, self.models = RamDisk(64 * MIB), [bytearray(), bytearray()]
        self.start(bsize, scatter, delay)
        for number, data in enumerate(old):
            self.write(number, 0, bytes(data))

    def start(self, bsize: int, scatter: bool, delay: int) -> None:
        self.disk = FaultDisk(self.ram, seed=5)
        self.world = World(self.disk, bsize=bsize, nbuf=64, memory=4, scatter=scatter)
        self.disk._clock = self.world.clock
        if delay:
            self.disk.add_rule(FaultRule(Fault.DELAY, delay_ns=(10_000, 900_000)))
        self.vps = [self.world.file(number) for number in range(2)]

    def stop(self) -> None:
        while self.vps:
            self.vps.pop().rele()
        self.world.stop()
        for number, model in enumerate(self.models):
            assert contents(self.ram, self.world.fs, number) == model

    @rule(number=st.integers(0, 1), offset=st.integers(0, SPAN), size=st.integers(1, 70_000),
          seed=st.integers(0, 255))  # fmt: skip
    def fill(self, number: int, offset: int, size: int, seed: int) -> None:
        self.write(number, offset, random.Random(seed).randbytes(size))

    def write(self, number: int, offset: int, data: bytes) -> None:
        model = self.models[number]
        if not data:
            return
        self.world.write(self.vps[number], offset, data)
        if len(model) < offset:
            model.extend(bytes(offset - len(model)))
        model[offset : offset + len(data)] = data

    @rule(number=st.integers(0, 1), offset=st.integers(0, SPAN), size=st.integers(0, 200_000))
    def read(self, number: int, offset: int, size: int) -> None:
        got = self.world.read(self.vps[number], offset, size)
        assert got == self.models[number][offset : offset + size]

    @rule(number=st.integers(0, 1), length=st.integers(0, SPAN))
    def cut(self, number: int, length: int) -> None:
        length = min(length, len(self.models[number]))
        self.world.truncate(self.vps[number], length)
        del self.models[number][length:]

    @rule(number=st.integers(0, 1))
    def fsync(self, number: int) -> None:
        self.world.fsync(self.vps[number])
        assert contents(self.ram, self.world.fs, number) == self.models[number]

    @rule(number=st.integers(0, 1))
    def start_writing(self, number: int) -> None:
        self.world.bufs.vfsync(self.vps[number], MNT_NOWAIT)

    @rule()
    def evict(self) -> None:
        self.world.evict()

    @rule(number=st.integers(0, 1))
    def invalidate(self, number: int) -> None:
        self.world.call(self.world.bufs.vinvalbuf, self.vps[number], V_SAVE)

    @rule(number=st.integers(0, 1))
    def recycle(self, number: int) -> None:
        """Forget the vnode, if it has nothing to write."""
        world = self.world
        world.fsync(self.vps[number])
        self.vps[number].rele()
        world.vfs.vnodes.vgone(self.vps[number])
        self.vps[number] = world.file(number)

    @rule(number=st.integers(0, 1), cmd=st.sampled_from([DiskCmd.READ, DiskCmd.WRITE]))
    def fail(self, number: int, cmd: DiskCmd) -> None:
        """One transfer fails; who is told so loses nothing."""
        self.disk.add_rule(FaultRule(Fault.EIO, frozenset({cmd}), times=1))
        try:
            if cmd is DiskCmd.WRITE:
                self.world.fsync(self.vps[number])
            else:
                self.world.read(self.vps[number], 0, 1000)
        except KError:
            pass
        self.disk.rules[:] = [r for r in self.disk.rules if r.rule.action is not Fault.EIO]

    @invariant()
    def figures_are_right(self) -> None:
        self.world.bufs.check()

    def teardown(self) -> None:
        if self.vps:
            self.stop()


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=15, stateful_step_count=15, deadline=None, phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_what_fsync_acknowledged_survives_a_power_cut(seed: int) -> None:
    """What if the power fails at any instant? In each state the acknowledged bytes are there."""
    rng = random.Random(seed)
    ram = RamDisk(64 * MIB)
    log = WriteLog()
    disk = FaultDisk(ram, log=log, seed=seed)
    world = World(disk, bsize=4096, nbuf=64, memory=4)
    disk._clock = world.clock
    disk.add_rule(FaultRule(Fault.DELAY, delay_ns=(10_000, 3_000_000)))
    base = ram.snapshot()
    vps = [world.file(number) for number in range(2)]
    data = [b"", b""]
    for _ in range(12):
        number = rng.randrange(2)
        piece = rng.randbytes(rng.randrange(1, 20_000))
        world.write(vps[number], len(data[number]), piece)
        data[number] += piece
        if rng.random() < 0.6:
            world.fsync(vps[number])
            log.mark((number, data[number]))
        else:
            world.bufs.vfsync(vps[number], MNT_NOWAIT)
    states = 0
    for state in CrashExplorer(base, log, rng).states():
        states += 1
        for label in state.marks:
            assert isinstance(label, tuple)
            number, acknowledged = label
            found = contents(state.disk, world.fs, number)
            assert found[: len(acknowledged)] == acknowledged, str(state)
    assert states > 50
    for vp in vps:
        vp.rele()
    world.stop()


@pytest.mark.parametrize("driver", ["task", "coro"])
async def test_on_real_time_with_both_drivers(driver: str, tmp_path: Path) -> None:
    """What if threads are tasks of the host, or coroutines, and the disk is slow in real time?"""
    from dfuser.dev.devlist import DevList
    from dfuser.dev.disk.hwdisk import HwDiskOps
    from dfuser.dev.disk.layer import DiskLayer
    from tests.unit.dev.disk.world import Log

    clock = HostClock()
    ram = RamDisk(64 * MIB)
    physmem = PhysMem(8 * MIB)
    async with trio.open_nursery() as nursery:
        await nursery.start(clock.run)
        lwkt = Lwkt(2, clock, Ktr(2, clock), MsgBuf())
        await lwkt.start(nursery)
        lwkt.default_driver = driver
        devices = DevList()
        layer = DiskLayer(devices, Log())
        layer.start(lwkt)
        vkd = HwDiskOps(layer, clock, lwkt.cpus[0].interrupt)
        disk = FaultDisk(ram, clock=clock)
        vkd.attach(disk, name="vn0")
        pages = VmPages(physmem)
        vfs = Vfs(lwkt=lwkt, clock=clock, pages=pages)
        bufs = BufCache(pages, clock, vfs.syncer, 128)
        dev = devices.find_device_by_name("vn0")
        assert dev is not None
        fs = BlkFs(bufs, dev, 16384)
        vfs.fstypes.register("blkfs", lambda: fs)
        vfs.mounts.mount("blkfs", "vn0", None, {}, 0, ROOT)
        bufs.start(lambda fn, name: lwkt.create(fn, name=name, cpu=0))
        vps = [fs.vnode(number) for number in range(4)]
        disk.add_rule(FaultRule(Fault.DELAY, delay_ns=(100_000, 400_000)))
        bufs.set_hidirty(256 * 1024)
        running: list[int] = []

        async def writer(vp: Vnode) -> None:
            for block in range(24):
                data = bytes([vp.ino + block]) * 16384
                await run_blocking(vp.ops.use.vop_write, vp, block * 16384, data, 0, ROOT)
                running.append(bufs.runningbufspace)
            await run_blocking(vp.ops.use.vop_fsync, vp, MNT_WAIT)

        async with trio.open_nursery() as writers:
            for number, vp in enumerate(vps):
                writers.start_soon(
                    lambda vp=vp, number=number: lwkt.adopt(
                        writer, vp, name=f"writer {number}", cpu=number % 2
                    )
                )
        assert max(running) > 0
        assert bufs.stalls > 0
        assert bufs.dirtybufcount == 0
        for vp in vps:
            expected = b"".join(bytes([vp.ino + block]) * 16384 for block in range(24))
            assert contents(ram, fs, vp.data.number) == expected
            vp.rele()
        disk.clear_rules()
        await lwkt.shutdown()
        nursery.cancel_scope.cancel()
    vfs.close()
    bufs.close()
    assert pages.v_free_count == pages.v_page_count
    physmem.close()
