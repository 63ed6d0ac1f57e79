"""Power cuts: at every write, with everything before it, some of it, or a torn part of it.

A sync is the whole volume's, so what is found after a power cut must be exactly the tree of the
last sync that had returned, or of the one under way. Every header copy that could be chosen must
lead to a sound volume, not only the newest.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from dfuser.hw.disk.fault import FaultDisk
from dfuser.hw.disk.ram import RamDisk
from dfuser.hw.disk.record import CrashExplorer, CrashState, WriteLog
from dfuser.vfs.hammer2 import strategy, xops
from tests.unit.vfs.hammer2.model import Driver
from tests.unit.vfs.hammer2.world import (
    FOUR,
    SMALL,
    TWO,
    all_headers,
    deep_check,
    live_content,
    new_disk,
    open_disk,
)

Content = dict[bytes, tuple[Any, ...]]


class Recorded:
    """A driver whose writes are recorded, and what it had at each sync."""

    def __init__(self, size: int, *, write_behind: int = 1 << 16) -> None:
        self.base = new_disk(size)
        self.log = WriteLog()
        disk = FaultDisk(self.base.snapshot(), log=self.log)
        self.driver = Driver(disk)
        self.driver.tunables.write_behind = write_behind
        self.states: list[Content] = [self.driver.content()]
        self.snapshots: list[set[bytes]] = [set()]
        self.log.mark(0)

    def during(self, work: Callable[[], object]) -> None:
        """Do something that syncs, and note that it is acknowledged."""
        self.states.append(self.driver.content())
        self.snapshots.append(set(self.driver.snapshots))
        work()
        self.log.mark(len(self.states) - 1)

    def workload(self, seed: int, steps: int, rate: float = 0.12) -> None:
        """Random operations with syncs, remounts and bulkfree passes among them."""
        rng = random.Random(seed)
        driver = self.driver
        for _ in range(steps):
            driver.step(rng)
            if rng.random() < rate / 8:
                driver.snapshot()
            if rng.random() < rate:
                self.during(rng.choice((driver.sync, driver.sync, driver.remount,
                                        driver.bulkfree)))  # fmt: skip
        self.during(driver.sync)

    def check(self, seed: int, *, share: float = 1.0, subsets: int = 2) -> int:
        """Look at the states of power cuts, or a share of them; how many."""
        rng = random.Random(seed)
        count = 0
        for state in CrashExplorer(self.base, self.log, rng, subsets).states():
            if share == 1.0 or rng.random() < share:
                self.check_state(state, goes_on=count % 8 == 0)
                count += 1
        return count

    def check_state(self, state: CrashState, *, goes_on: bool) -> None:
        """One state: what is there, whether it is sound, and whether work can go on."""
        acknowledged = max((int(str(mark)) for mark in state.marks), default=0)
        expected = self.states[acknowledged : acknowledged + 2]
        for number in all_headers(state.disk):
            assert deep_check(state.disk, number) == [], f"{state}, header {number}"
        dev = open_disk(state.disk)
        pfs = dev.pfs(b"DATA")
        assert live_content(pfs) in expected, str(state)
        labels = set(dev.pfs_labels()) - {b"DATA", b"LOCAL"}
        assert labels in self.snapshots[acknowledged : acknowledged + 2]
        for label in labels:
            assert live_content(dev.pfs(label)) == self.driver.snapshots[label], str(state)
        if goes_on:
            strategy.write(xops.ncreate(pfs.root, b"after"), 0, b"the cut" * 100)
            live = live_content(pfs)
            dev.sync()
            again = open_disk(state.disk)
            assert live_content(again.pfs(b"DATA")) == live
            for number in all_headers(state.disk):
                assert deep_check(state.disk, number) == [], f"{state}, after, header {number}"


@pytest.mark.parametrize(("seed", "size"), [(1, FOUR), (2, TWO)])
def test_power_cut(seed: int, size: int) -> None:
    """What if the power fails somewhere in the midst of work?"""
    recorded = Recorded(size)
    recorded.workload(seed, 120)
    assert recorded.check(seed, share=0.15) > 50


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("size", [FOUR, TWO])
@pytest.mark.parametrize("seed", range(20, 26))
def test_power_cut_everywhere(seed: int, size: int) -> None:
    """What if it fails at any of many more writes, and any of what was not stable is lost?"""
    recorded = Recorded(size, write_behind=1 << (16 + seed % 4))
    recorded.workload(seed, 250, rate=0.08 + 0.04 * (seed % 3))
    assert recorded.check(seed, share=0.4, subsets=4) > 200


def test_one_header() -> None:
    """What if there is one header only: is a torn header the one thing that is lost?"""
    recorded = Recorded(SMALL)
    recorded.workload(3, 60)
    torn = 0
    for state in CrashExplorer(recorded.base, recorded.log, random.Random(3), 1).states():
        record = recorded.log.records[state.torn] if state.torn >= 0 else None
        if record is not None and record.offset == 0:
            torn += 1
            continue
        if state.moment % 5 == 0:
            recorded.check_state(state, goes_on=False)
    assert torn


def test_barriers_matter() -> None:
    """What if the barrier before the header were missing: would these tests find it?"""
    recorded = Recorded(FOUR)
    io = recorded.driver.dev.io
    recorded.driver.tunables.write_behind = 1 << 30
    io.devices = tuple(NoFlush(device) for device in io.devices)
    rng = random.Random(4)
    for _ in range(3):
        for _ in range(20):
            recorded.driver.step(rng)
        recorded.during(recorded.driver.sync)
    with pytest.raises((AssertionError, OSError)):
        recorded.check(4)


class NoFlush:
    """A device that forgets to flush."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.name, self.size = device.name, device.size
        self.sector_size = device.sector_size
        self.read_at, self.write_at = device.read_at, device.write_at

    def flush(self) -> None:
        """Do nothing."""


def test_torn_header_is_repaired() -> None:
    """What if the newest header is torn: is the one before used, and the torn one written next?"""
    disk = new_disk(FOUR)
    for number in range(5):
        dev = open_disk(disk)
        xops.ncreate(dev.pfs(b"DATA").root, b"%d" % number)
        dev.sync()
    newest = dev.flush.volhdrno
    disk.write(newest * (2 << 30) + 4096, b"\xff" * 512)
    dev = open_disk(disk)
    assert sorted(live_content(dev.pfs(b"DATA"))) == [b"", b"0", b"1", b"2", b"3"]
    xops.ncreate(dev.pfs(b"DATA").root, b"new")
    dev.sync()
    assert dev.flush.volhdrno == newest
    assert all_headers(disk) == [0, 1, 2, 3]
    assert [deep_check(disk, number) for number in range(4)] == [[]] * 4
    assert isinstance(disk, RamDisk)
