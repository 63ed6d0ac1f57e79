"""The fault middleware: every fault strikes as planned, is counted, and is the same next time."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfuser.hw.clock import VirtualClock
from dfuser.hw.disk.disk import DiskCmd, DiskRequest
from dfuser.hw.disk.executor import HeldExecutor
from dfuser.hw.disk.fault import HOLD_NS, FaultDisk
from dfuser.hw.disk.faultrule import Fault, FaultRule
from dfuser.hw.disk.image import ImageDisk
from dfuser.hw.disk.ram import RamDisk
from dfuser.libkern.errno import EINVAL, EIO, ENOSPC, ENXIO, KError

SIZE = 1 << 20
WRITES = frozenset({DiskCmd.WRITE})
READS = frozenset({DiskCmd.READ})
A, B, C = b"A" * 512, b"B" * 512, b"C" * 512


def errors(disk: FaultDisk, count: int) -> list[int]:
    """The results of so many reads of one sector each, one after the other."""
    seen = []
    for number in range(count):
        try:
            disk.read(number * 512, 512)
            seen.append(0)
        except KError as error:
            seen.append(error.errno)
    return seen


def test_eio_by_range_nth_times_and_errno() -> None:
    """What if a rule names a range, a number, a limit or another errno?"""
    by_range = FaultDisk(RamDisk(SIZE), [FaultRule(Fault.EIO, start=1024, end=2048)])
    assert errors(by_range, 5) == [0, 0, EIO, EIO, 0]
    assert errors(FaultDisk(RamDisk(SIZE), [FaultRule(Fault.EIO, nth=3)]), 5) == [0, 0, EIO, 0, 0]
    limited = FaultDisk(RamDisk(SIZE), [FaultRule(Fault.EIO, times=2, error=ENOSPC)])
    assert errors(limited, 4) == [ENOSPC, ENOSPC, 0, 0]
    assert limited.faults().eio == 2
    assert limited.rules[0].matched == 4
    assert errors(FaultDisk(RamDisk(SIZE), [FaultRule(Fault.EIO, WRITES)]), 2) == [0, 0]
    limited.clear_rules()
    limited.add_rule(FaultRule(Fault.EIO, end=512))
    assert errors(limited, 2) == [EIO, 0]


def test_equal_seeds_are_equal_faults() -> None:
    """What if the same requests meet the same plan again, with the same seed and with another?"""

    def run(seed: int) -> list[int]:
        rule = FaultRule(Fault.EIO, READS, probability=0.3)
        return errors(FaultDisk(RamDisk(SIZE), [rule], seed=seed), 200)

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert 30 < sum(map(bool, run(1))) < 90


@pytest.mark.parametrize("volatile", [False, True])
def test_short_write_moves_a_prefix(volatile: bool) -> None:
    """What if a write is cut short: is a prefix there, does resid say how much is not?"""
    lower = RamDisk(SIZE)
    disk = FaultDisk(lower, [FaultRule(Fault.SHORT, WRITES)], volatile=volatile, seed=3)
    done: list[DiskRequest] = []
    disk.submit(DiskRequest.write(0, (A, B * 7), done.append))
    (request,) = done
    moved = request.length - request.resid
    assert request.error == EIO
    assert 0 < request.resid <= 4096
    assert moved % 512 == 0
    assert disk.read(0, 4096) == (A + B * 7)[:moved] + bytes(4096 - moved)
    assert disk.faults().shorts == 1


def test_short_read_fills_a_prefix() -> None:
    """What if a read is cut short?"""
    lower = RamDisk(SIZE)
    lower.write(0, A * 16)
    disk = FaultDisk(lower, [FaultRule(Fault.SHORT, READS)], seed=1)
    buffers = bytearray(1000), bytearray(8192 - 1000)
    done: list[DiskRequest] = []
    disk.submit(DiskRequest.read(0, buffers, done.append))
    moved = 8192 - done[0].resid
    assert done[0].error == EIO
    assert b"".join(buffers) == b"A" * moved + bytes(8192 - moved)


@pytest.mark.parametrize("grain", [512, 4096])
def test_torn_write_tears_at_its_grain(grain: int) -> None:
    """What if a write is torn: are the pieces whole grains of the disk, some new and some old?"""
    lower = RamDisk(SIZE)
    old, new = b"o" * 32768, b"n" * 32768
    lower.write(0, b"o" * SIZE)
    rule = FaultRule(Fault.TORN, WRITES, grain=grain, silent=True)
    disk = FaultDisk(lower, [rule], seed=grain)
    disk.write(512, new)  # starts inside of a 4 KiB grain
    seen = lower.read(0, 65536)
    assert seen[:512] == b"o" * 512
    assert seen[512 + 32768 :] == b"o" * (65536 - 512 - 32768)
    body = seen[512 : 512 + 32768]
    assert body not in (old, new)
    for start in range(0, 65536, grain):
        piece = seen[start : start + grain].replace(b"o" * 512, b"")
        touched = max(0, min(start + grain, 512 + 32768) - max(start, 512))
        assert len(piece) in (0, touched)
    assert disk.faults().torn == 1


def test_torn_write_tells_unless_silent() -> None:
    """What if a torn write is not silent?"""
    disk = FaultDisk(RamDisk(SIZE), [FaultRule(Fault.TORN, WRITES)])
    with pytest.raises(KError) as failed:
        disk.write(0, A * 8)
    assert failed.value.errno == EIO


def test_silent_eio_is_a_lie() -> None:
    """What if a disk says that it has written and has not?"""
    lower = RamDisk(SIZE)
    disk = FaultDisk(lower, [FaultRule(Fault.EIO, WRITES, silent=True)])
    disk.write(0, A)
    assert lower.read(0, 512) == bytes(512)


def test_delay_waits_on_the_clock() -> None:
    """What if requests are delayed: do they complete at their time, as interrupts?"""
    clock = VirtualClock()
    rule = FaultRule(Fault.DELAY, WRITES, delay_ns=(1000, 1000))
    disk = FaultDisk(RamDisk(SIZE), [rule], clock=clock)
    done: list[str] = []
    disk.submit(DiskRequest.write(0, (A,), lambda r: done.append("write")))
    buffer = bytearray(512)
    disk.submit(DiskRequest.read(0, (buffer,), lambda r: done.append("read")))
    assert done == ["read"]
    assert buffer == bytes(512)
    assert (disk.faults().holding, disk.statistics().inflight) == (1, 1)
    clock.advance(999)
    assert done == ["read"]
    clock.advance(1)
    assert done == ["read", "write"]
    disk.write(0, B)
    seen = disk.faults()
    assert (seen.delayed, seen.delay_ns, seen.undelayed, seen.holding) == (1, 1000, 1, 0)
    assert disk.statistics().waited == 1


def test_delay_and_fault_together() -> None:
    """What if a request is both delayed and failed?"""
    clock = VirtualClock()
    rules = [FaultRule(Fault.EIO), FaultRule(Fault.DELAY, delay_ns=(5, 5))]
    disk = FaultDisk(RamDisk(SIZE), rules, clock=clock)
    done: list[int] = []
    disk.submit(DiskRequest(DiskCmd.FLUSH, done=lambda r: done.append(r.error)))
    clock.advance(5)
    assert done == [EIO]


def test_delays_need_a_clock() -> None:
    """What if a plan delays or reorders where there is no clock, or tears at an odd grain?"""
    with pytest.raises(KError) as refused:
        FaultDisk(RamDisk(SIZE), [FaultRule(Fault.DELAY, delay_ns=(1, 1))])
    assert refused.value.errno == EINVAL
    with pytest.raises(KError):
        FaultDisk(RamDisk(SIZE), reorder=4)
    with pytest.raises(KError):
        FaultDisk(RamDisk(SIZE), [FaultRule(Fault.TORN, grain=100)])


def test_reordering_between_flushes() -> None:
    """What if writes are reordered: is each done once, none past a flush, none for ever?"""
    clock = VirtualClock()
    disk = FaultDisk(RamDisk(SIZE), clock=clock, reorder=8, seed=5)
    order: list[int] = []

    def submit(number: int) -> None:
        disk.submit(DiskRequest.write(number * 512, (A,), lambda r: order.append(r.offset // 512)))

    for number in range(8):
        submit(number)
    assert sorted(order) == list(range(8))
    assert order != list(range(8))
    assert disk.faults().reordered > 0
    for number in (8, 9, 10):
        submit(number)
    assert len(order) == 8
    disk.submit(DiskRequest(DiskCmd.FLUSH, done=lambda r: order.append(-1)))
    assert sorted(order[8:11]) == [8, 9, 10]
    assert order[11] == -1
    submit(11)
    clock.advance(HOLD_NS)
    assert order[12:] == [11]


# --- the volatile cache --------------------------------------------------------------------


def test_volatile_writes_are_seen_and_not_stable() -> None:
    """What if writes are read back before a flush, and the lower disk is looked at meanwhile?"""
    lower = RamDisk(SIZE)
    disk = FaultDisk(lower, volatile=True)
    disk.write(0, A + B)
    disk.write(512, C)
    disk.write(2048, C, fua=True)
    disk.zero(0, 512)
    assert disk.read(0, 2560) == bytes(512) + C + bytes(1024) + C
    assert lower.read(0, 2560) == bytes(2048) + C
    assert disk.faults().pending == 4
    disk.flush()
    assert lower.read(0, 2560) == bytes(512) + C + bytes(1024) + C
    assert disk.faults()[8:10] == (0, 0)


def test_fua_is_not_overtaken_by_an_older_write() -> None:
    """What if an old write in the cache survives a power cut after a newer FUA write there?"""
    for seed in range(20):
        lower = RamDisk(SIZE)
        disk = FaultDisk(lower, volatile=True, seed=seed)
        disk.write(0, A)
        disk.write(0, B, fua=True)
        disk.write(512, C)
        disk.power_cut()
        assert lower.read(0, 512) == B
        assert lower.read(512, 512) in (C, bytes(512))


def test_a_full_cache_destages_the_oldest() -> None:
    """What if more is written than the cache holds?"""
    lower = RamDisk(SIZE)
    disk = FaultDisk(lower, volatile=True)
    disk.cache_bytes = 4096
    for number in range(16):
        disk.write(number * 512, A)
    seen = disk.faults()
    assert seen.pending_bytes <= 4096
    assert seen.destaged + seen.pending == 16
    assert lower.read(0, 512) == A
    disk.zero(0, SIZE)
    assert disk.read(0, SIZE) == bytes(SIZE)
    assert lower.read(0, SIZE) == bytes(SIZE)


def test_power_cut_at_the_nth_write() -> None:
    """What if the power fails at the 5th write: what is flushed stays, the rest in any subset?"""
    outcomes = set()
    for seed in range(60):
        lower = RamDisk(SIZE)
        disk = FaultDisk(lower, volatile=True, cut_at=5, seed=seed)
        disk.write(0, A)
        disk.write(512, A)
        disk.flush()
        disk.write(1024, A)
        disk.write(1536, A)
        with pytest.raises(KError) as failed:
            disk.write(2048, A * 8)
        assert failed.value.errno == ENXIO
        with pytest.raises(KError):
            disk.read(0, 512)
        assert lower.read(0, 1024) == A + A
        outcomes.add((lower.read(1024, 512) == A, lower.read(1536, 512) == A))
        last = lower.read(2048, 4096)
        assert {last[i : i + 512] for i in range(0, 4096, 512)} <= {A, bytes(512)}
        assert (disk.faults().cuts, disk.faults().refused) == (1, 1)
        disk.power_on()
        assert disk.read(0, 512) == A
        disk.write(0, B)
        disk.flush()
    assert outcomes == {(a, b) for a in (False, True) for b in (False, True)}


def test_power_cut_fails_what_waits() -> None:
    """What if requests are delayed or held back when the power fails?"""
    clock = VirtualClock()
    rule = FaultRule(Fault.DELAY, READS, delay_ns=(100, 100))
    disk = FaultDisk(RamDisk(SIZE), [rule], clock=clock, reorder=4)
    done: list[int] = []
    disk.submit(DiskRequest.read(0, (bytearray(512),), lambda r: done.append(r.error)))
    disk.submit(DiskRequest.write(0, (A,), lambda r: done.append(r.error)))
    disk.power_cut()
    assert done == [ENXIO, ENXIO]
    clock.advance(1 << 40)
    assert done == [ENXIO, ENXIO]
    disk.close()


def test_survival_is_all_or_nothing_at_its_ends() -> None:
    """What if every write in the cache survives, or none?"""
    for survival, expected in ((0.0, bytes(512)), (1.0, A)):
        lower = RamDisk(SIZE)
        disk = FaultDisk(lower, volatile=True, survival=survival)
        disk.write(0, A)
        disk.power_cut()
        assert lower.read(0, 512) == expected


def test_an_orderly_close_loses_nothing(tmp_path: Path) -> None:
    """What if a disk with a volatile cache is closed without a flush?"""
    path = tmp_path / "a.img"
    disk = FaultDisk(ImageDisk.create(path, SIZE), volatile=True)
    disk.write(0, A)
    assert path.read_bytes()[:512] == bytes(512)
    disk.close()
    assert path.read_bytes()[:512] == A


def test_faults_above_a_disk_that_waits(tmp_path: Path) -> None:
    """What if the lower disk completes later: does the middleware wait for all its pieces?"""
    held = HeldExecutor()
    image = ImageDisk.create(tmp_path / "a.img", SIZE, executor=held)
    disk = FaultDisk(image, [FaultRule(Fault.TORN, WRITES, grain=512)], seed=9)
    done: list[DiskRequest] = []
    disk.submit(DiskRequest.write(0, (A * 16,), done.append, fua=True))
    assert len(held.held) > 1
    while held.held:
        assert not done
        held.release(len(held.held) - 1)
    assert done[0].error == EIO
    disk.submit(DiskRequest(DiskCmd.FLUSH, done=done.append))
    assert len(done) == 1
    held.release()
    assert done[1].error == 0
    disk.close()
    assert image.closed


@given(st.integers(0, 1 << 32), st.integers(1, 60))
def test_a_cache_is_invisible_but_for_power(seed: int, steps: int) -> None:
    """What if the same requests go to a plain disk and to one with a cache that overflows?"""
    rng = random.Random(seed)
    plain = RamDisk(64 * 512)
    cached = FaultDisk(RamDisk(64 * 512), volatile=True)
    cached.cache_bytes = 8192
    for step in range(steps):
        start = rng.randrange(64)
        count = rng.randrange(0, 64 - start + 1)
        what = rng.randrange(6)
        for disk in (plain, cached):
            if what < 3:
                disk.write(start * 512, bytes([step + 1]) * (count * 512), fua=what == 2)
            elif what == 3:
                disk.zero(start * 512, count * 512)
            elif what == 4:
                disk.trim(start * 512, count * 512)
            else:
                disk.flush()
        assert plain.read(0, plain.size) == cached.read(0, plain.size)
    cached.flush()
    assert plain.same(cached.lower)  # type: ignore[arg-type]
