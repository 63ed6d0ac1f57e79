"""One suite for every disk: what `dfuser.hw.disk.disk` promises, over each implementation."""

from __future__ import annotations

import contextlib
import gc
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfuser.hw.clock import VirtualClock
from dfuser.hw.disk.disk import Disk, DiskBase, DiskCmd, DiskRequest
from dfuser.hw.disk.executor import HeldExecutor
from dfuser.hw.disk.fault import FaultDisk
from dfuser.hw.disk.image import ImageDisk
from dfuser.hw.disk.nbd import BlockingNbdDisk
from dfuser.hw.disk.nbdwire import NbdAddress
from dfuser.hw.disk.ram import RamDisk
from dfuser.libkern.errno import EEXIST, EINVAL, EIO, ENOENT, ENXIO, EROFS, KError, Panic
from tests.unit.hw.disk.nbdserver import Server, ThreadServer

MIB = 1 << 20
SIZE = MIB
Factory = Callable[[Path], DiskBase]


def direct(path: Path) -> DiskBase:
    try:
        return ImageDisk.create(path / "direct.img", SIZE, direct=True, sector_size=4096)
    except KError as error:
        pytest.skip(f"no O_DIRECT here: {error}")


FACTORIES: dict[str, Factory] = {
    "ram": lambda path: RamDisk(SIZE),
    "ram4k": lambda path: RamDisk(SIZE, 4096),
    "image": lambda path: ImageDisk.create(path / "a.img", SIZE),
    "direct": direct,
    "fault": lambda path: FaultDisk(RamDisk(SIZE)),
    "reordering": lambda path: FaultDisk(RamDisk(SIZE), clock=VirtualClock(), reorder=1),
    "volatile": lambda path: FaultDisk(RamDisk(SIZE), volatile=True),
    "volatile-image": lambda path: FaultDisk(ImageDisk.create(path / "v.img", SIZE), volatile=True),
}


@pytest.fixture(params=[*FACTORIES, "nbd"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DiskBase]:
    if request.param == "nbd":
        server = ThreadServer(Server(SIZE), tmp_path / "s")
        with BlockingNbdDisk(NbdAddress("", str(tmp_path / "s"))) as network:
            yield network
        server.stop()
        return
    made = FACTORIES[request.param](tmp_path)
    yield made
    made.close()


def submit(disk: Disk, request: DiskRequest) -> DiskRequest:
    done: list[DiskRequest] = []
    request.done = done.append
    disk.submit(request)
    assert done == [request]
    return request


def test_both_forms_agree_with_plain_bytes(disk: DiskBase, rng: random.Random) -> None:
    """What if reads, writes, zeroes and flushes of any size and place follow each other?"""
    model = bytearray(SIZE)
    sector = disk.sector_size
    for _ in range(300):
        start = rng.randrange(SIZE // sector) * sector
        length = min(rng.choice((1, 2, 7, 40, 130)) * sector, SIZE - start)
        what = rng.randrange(8)
        if what < 3:
            data = rng.randbytes(length) if rng.random() < 0.8 else bytes(length)
            if what:
                disk.write(start, data, fua=what == 1)
            else:
                cut = rng.randrange(length + 1)
                buffers = (data[:cut], memoryview(data)[cut:])
                assert not submit(disk, DiskRequest.write(start, buffers, print)).error
            model[start : start + length] = data
        elif what == 3:
            disk.zero(start, length)
            model[start : start + length] = bytes(length)
        elif what == 4:
            assert not submit(disk, DiskRequest(DiskCmd.FLUSH)).error
        elif what == 5:
            halves = bytearray(length // 3), bytearray(length - length // 3)
            request = submit(disk, DiskRequest.read(start, halves, print))
            assert (request.error, request.resid) == (0, 0)
            assert b"".join(halves) == model[start : start + length]
        else:
            assert disk.read(start, length) == model[start : start + length]
    assert disk.read(0, SIZE) == model


def test_what_no_disk_does(disk: DiskBase) -> None:
    """What if a request is misaligned, negative, beyond the end, or empty?"""
    sector = disk.sector_size
    for offset, length in ((1, sector), (0, sector - 1), (-sector, sector), (SIZE, sector)):
        with pytest.raises(KError) as refused:
            disk.read(offset, length)
        assert refused.value.errno == EINVAL
        request = DiskRequest(DiskCmd.WRITE, offset, length, (bytes(length),))
        assert submit(disk, request).error == EINVAL
        assert request.resid == length
    assert disk.read(SIZE, 0) == b""
    disk.write(0, b"")
    disk.zero(0, 0)
    disk.trim(0, 0)
    assert disk.statistics().errors == 8


def test_counters_are_what_was_asked(disk: DiskBase) -> None:
    """What if the counters are compared with a tally kept outside?"""
    disk.write(0, bytes(8192))
    disk.write(8192, b"x" * 4096, fua=True)
    disk.read(0, 16384)
    disk.trim(0, 4096)
    disk.zero(4096, 8192)
    disk.flush()
    seen = disk.statistics()
    assert seen[:11] == (1, 2, 1, 1, 1, 16384, 12288, 4096, 8192, 1, 0)
    assert (seen.inflight, seen.inflight_max) == (0, 1)


def test_a_closed_disk_is_gone(disk: DiskBase) -> None:
    """What if a closed disk is used, and closed again?"""
    disk.close()
    with pytest.raises(KError) as refused:
        disk.read(0, disk.sector_size)
    assert refused.value.errno == ENXIO
    assert submit(disk, DiskRequest(DiskCmd.FLUSH)).error == ENXIO
    disk.close()


def test_a_request_completes_once() -> None:
    """What if a driver completes a request a second time?"""
    request = DiskRequest(DiskCmd.FLUSH, done=lambda _: None)
    request.complete()
    with pytest.raises(Panic):
        request.complete()


def test_impossible_geometry_is_refused() -> None:
    """What if the sector size or the size is one no disk has?"""
    for size, sector in ((4096, 520), (4096, 0), (1000, 512), (-512, 512)):
        with pytest.raises(KError) as refused:
            RamDisk(size, sector)
        assert refused.value.errno == EINVAL


@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 24), st.sampled_from("wzt"), st.booleans()),
        max_size=30,
    )
)
def test_ram_snapshots_are_apart(steps: list[tuple[int, int, str, bool]]) -> None:
    """What if a snapshot and its disk are written in turns: does either see the other?"""
    size = 64 * 512
    disk = RamDisk(size)
    disk.write(0, b"\x55" * size)
    twin = disk.snapshot()
    models = [bytearray(b"\x55" * size), bytearray(b"\x55" * size)]
    for number, (sector, count, what, second) in enumerate(steps):
        start, end = sector * 512, (sector + count) * 512
        target = twin if second else disk
        data = bytes([number + 1]) * (end - start) if what == "w" else bytes(end - start)
        if what == "w":
            target.write(start, data)
        elif what == "z":
            target.zero(start, end - start)
        else:
            target.trim(start, end - start)
        models[second][start:end] = data
    assert disk.read(0, size) == models[0]
    assert twin.read(0, size) == models[1]
    assert disk.same(twin) == (models[0] == models[1])


def test_ram_is_sparse() -> None:
    """What if a huge disk holds little, and what it holds is zeroed again?"""
    disk = RamDisk(1 << 40)
    disk.write((1 << 39) + 512, b"x" * 512)
    disk.write(0, bytes(1 << 16))
    assert disk.resident == 4096
    disk.zero(0, 1 << 40)
    assert disk.resident == 0
    disk.resize(1 << 41)
    assert disk.read((1 << 41) - 512, 512) == bytes(512)
    with pytest.raises(KError):
        disk.resize(1 << 40)


def test_ram_disks_and_files(tmp_path: Path, rng: random.Random) -> None:
    """What if a disk is written to a file and read again, with holes, odd ends, or no file?"""
    disk = RamDisk(5 * MIB + 512)
    for _ in range(20):
        disk.write(rng.randrange(2000) * 512, rng.randbytes(1536))
    disk.write(disk.size - 512, b"e" * 512)
    disk.dump(tmp_path / "a.img")
    assert (tmp_path / "a.img").read_bytes() == disk.read(0, disk.size)
    assert (tmp_path / "a.img").stat().st_blocks * 512 < 2 * MIB
    assert RamDisk.load(tmp_path / "a.img").same(disk)
    RamDisk(MIB).dump(tmp_path / "empty.img")
    assert RamDisk.load(tmp_path / "empty.img").same(RamDisk(MIB))
    for call, error in (
        (lambda: disk.dump(tmp_path / "a.img"), EEXIST),
        (lambda: RamDisk.load(tmp_path / "none"), ENOENT),
        (lambda: RamDisk.load(tmp_path / "a.img", 4096), EINVAL),
    ):
        with pytest.raises(KError) as refused:
            call()
        assert refused.value.errno == error


def test_readonly_disks_refuse_changes() -> None:
    """What if a read-only disk is written, trimmed, zeroed, flushed or read?"""
    disk = RamDisk(4096, readonly=True)
    for change in (lambda: disk.write(0, bytes(512)), lambda: disk.trim(0, 512),
                   lambda: disk.zero(0, 512)):  # fmt: skip
        with pytest.raises(KError) as refused:
            change()
        assert refused.value.errno == EROFS
    disk.flush()
    assert disk.read(0, 512) == bytes(512)


def test_a_failed_flush_is_remembered(tmp_path: Path) -> None:
    """What if a flush fails once: may a later one claim that all is well?"""
    executor = HeldExecutor()
    disk = ImageDisk.create(tmp_path / "a.img", SIZE, executor=executor)
    done: list[DiskRequest] = []
    disk.submit(DiskRequest(DiskCmd.FLUSH, done=done.append))
    assert not done
    assert disk.statistics().inflight == 1
    _work, finish = executor.held.popleft()
    finish(OSError(5, "Input/output error"))
    assert done[0].error == EIO
    assert submit(disk, DiskRequest(DiskCmd.FLUSH)).error == EIO
    with pytest.raises(KError):
        disk.flush()
    with pytest.raises(KError):
        disk.write(0, bytes(512), fua=True)
    disk.write(0, bytes(512))
    disk.close()
    with ImageDisk.open(tmp_path / "a.img") as again:
        again.flush()


def test_nothing_is_left_for_the_collector(disk: DiskBase) -> None:
    """What if requests of both forms succeed and fail: is there cyclic garbage?"""

    def once() -> None:
        disk.write(0, bytes(8192))
        disk.read(0, 8192)
        submit(disk, DiskRequest.write(0, (bytes(4096),), print))
        submit(disk, DiskRequest(DiskCmd.READ, 1, 1, (bytearray(1),)))
        disk.flush()
        for bad in (lambda: disk.read(1, 1), lambda: disk.write(SIZE, bytes(4096))):
            with contextlib.suppress(KError):
                bad()

    once()
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            once()
        assert gc.collect() == 0
    finally:
        gc.enable()
