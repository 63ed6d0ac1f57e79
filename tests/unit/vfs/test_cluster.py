"""Clusters and reading ahead."""

from __future__ import annotations

import pytest

from dfuser.hw.disk.disk import DiskCmd
from dfuser.hw.disk.fault import FaultDisk
from dfuser.hw.disk.faultrule import Fault, FaultRule
from dfuser.libkern.errno import EIO, KError
from dfuser.vfs.bufqueue import B
from dfuser.vfs.cluster import Sequential
from dfuser.vfs.vop import MNT_NOWAIT
from tests.unit.vfs.blkfs import MIB, blocks_of
from tests.unit.vfs.test_bio import Make, fault_world, make, pattern, slow

__all__ = ["make"]


@pytest.fixture(params=[False, True], ids=["together", "scattered"])
def scatter(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_dirty_neighbours_travel_together(make: Make) -> None:
    """What if 32 blocks of 16 KiB side by side are synced? Four transfers of 128 KiB, not 32."""
    w, disk, ram = fault_world(make)
    vp = w.file(0)
    data = pattern(32 * 16384)
    w.write(vp, 0, data)
    before = disk.writes_seen
    w.bufs.vfsync(vp, MNT_NOWAIT)
    assert disk.writes_seen - before == 4
    assert (w.bufs.clusters, w.bufs.clustered) == (4, 32)
    assert ram.read(w.fs.place(0, 0), len(data)) == data
    w.check()
    vp.rele()


def test_what_is_apart_on_the_device_travels_alone(make: Make) -> None:
    """What if neighbours in the file are none on the device? Each is written for itself."""
    w, disk, ram = fault_world(make, scatter=True)
    vp = w.file(0)
    w.write(vp, 0, pattern(8 * 16384))
    before = disk.writes_seen
    w.bufs.vfsync(vp, MNT_NOWAIT)
    assert disk.writes_seen - before == 8
    for block in range(8):
        got = ram.read(w.fs.place(0, block), 16384)
        assert got == pattern(8 * 16384)[block * 16384 : (block + 1) * 16384]
    vp.rele()


def test_a_gap_ends_a_cluster(make: Make) -> None:
    """What if one of the neighbours is clean, locked, held or smaller? The cluster ends there."""
    w, disk, _ = fault_world(make)
    vp = w.file(0)
    w.write(vp, 0, pattern(8 * 16384))
    bp = w.bufs.getblk(vp, 3 * 16384, 16384)
    before = disk.writes_seen
    w.bufs.cluster_awrite(w.bufs.getblk(vp, 0, 16384))
    assert disk.writes_seen - before == 1
    assert [b.loffset // 16384 for b in blocks_of(vp) if not b.flags & B.DELWRI] == [0, 1, 2]
    bp.flags |= B.LOCKED
    w.bufs.bqrelse(bp)
    w.bufs.cluster_awrite(w.bufs.getblk(vp, 7 * 16384, 16384))
    assert [b.loffset // 16384 for b in blocks_of(vp) if b.flags & B.DELWRI] == [3]
    bp = w.bufs.getblk(vp, 3 * 16384, 16384)
    bp.flags &= ~B.LOCKED
    w.bufs.bqrelse(bp)
    w.check()
    vp.rele()


@pytest.mark.parametrize("delay", [False, True])
def test_a_cluster_that_fails(make: Make, delay: bool) -> None:
    """What if the write of a cluster fails? What did not get there stays dirty, and does later.

    A disk that answers in place has had a second try of the others, each alone, by then.
    """
    w, disk, ram = fault_world(make)
    vp = w.file(0)
    data = pattern(8 * 16384)
    w.write(vp, 0, data)
    disk.add_rule(FaultRule(Fault.EIO, frozenset({DiskCmd.WRITE}), times=1))
    if delay:
        disk.add_rule(slow())
    with pytest.raises(KError) as error:
        w.fsync(vp)
    assert error.value.errno == EIO
    assert w.bufs.dirtybufcount == (8 if delay else 1)
    assert all(bp.flags & B.ERROR for bp in blocks_of(vp) if bp.flags & B.DELWRI)
    w.check()
    w.fsync(vp)
    assert ram.read(w.fs.place(0, 0), len(data)) == data
    vp.rele()


def test_a_cluster_read_that_fails(make: Make) -> None:
    """What if the read of a cluster fails? EIO, and no block of it is taken for valid."""
    w, disk, _ = fault_world(make)
    vp = w.file(0)
    w.write(vp, 0, pattern(8 * 16384))
    w.fsync(vp)
    w.evict()
    vp.data.seq = Sequential()
    disk.add_rule(FaultRule(Fault.EIO, frozenset({DiskCmd.READ}), times=1))
    disk.add_rule(slow())
    with pytest.raises(KError):
        w.read(vp, 0, 65536)
    assert blocks_of(vp) == []
    assert vp.object.resident_page_count == 0
    assert w.read(vp, 0, 8 * 16384) == pattern(8 * 16384)
    w.check()
    vp.rele()


def test_read_ahead(make: Make) -> None:
    """What if a file is read in order from a slow disk? Most blocks are there when asked for.

    The same read at random places reads nothing ahead.
    """
    w, _disk, _ = fault_world(make, memory=32, nbuf=1024)
    vp = w.file(0)
    blocks = 128
    data = b"".join(pattern(16384, block) for block in range(blocks))
    w.write(vp, 0, data)
    w.fsync(vp)
    w.evict()
    assert isinstance(w.disk, FaultDisk)
    w.disk.add_rule(slow(2))
    vp.data.seq = Sequential()
    began = w.clock.monotonic_ns()
    got = b"".join(w.read(vp, block * 16384, 16384) for block in range(blocks))
    in_order = w.clock.monotonic_ns() - began
    assert got == data
    assert w.bufs.readaheads > blocks // 2
    assert w.bufs.ahead_hits >= blocks - 20
    w.check()
    w.evict()
    vp.data.seq = Sequential()
    before = w.bufs.readaheads
    began = w.clock.monotonic_ns()
    for step in range(blocks):
        block = step * 37 % blocks
        assert w.read(vp, block * 16384, 16384) == pattern(16384, block)
    assert w.clock.monotonic_ns() - began > 4 * in_order
    assert w.bufs.readaheads - before < 8
    vp.rele()


def test_read_ahead_stops_at_the_end(make: Make) -> None:
    """What if the file ends? No block beyond it is read, and a small one is read alone."""
    w = make()
    vp = w.file(0)
    w.write(vp, 0, pattern(50_176))
    w.fsync(vp)
    w.evict()
    w.read(vp, 0, 65536)
    assert len(blocks_of(vp)) == 4
    w.evict()
    w.bufs.max_readahead = 0
    w.read(vp, 0, 100)
    assert len(blocks_of(vp)) == 1
    vp.rele()


def test_holes_are_read_as_zeroes(make: Make, scatter: bool) -> None:
    """What if blocks in the middle are not there? Zeroes, and reading ahead goes on behind them."""
    w = make(scatter=scatter)
    vp = w.file(0)
    w.write(vp, 0, b"a" * 16384)
    w.write(vp, 10 * 16384, b"b" * 16384)
    w.fsync(vp)
    w.evict()
    got = b"".join(w.read(vp, block * 16384, 16384) for block in range(11))
    assert got == b"a" * 16384 + bytes(9 * 16384) + b"b" * 16384
    w.check()
    vp.rele()


def test_write_behind(make: Make) -> None:
    """What if a large file is written in order? Full clusters leave at once; a small one waits."""
    w, disk, _ = fault_world(make, slow())
    vp = w.file(0)
    before = disk.writes_seen
    w.write(vp, 0, pattern(MIB))
    assert disk.writes_seen == before
    w.bufs.write_behind_minfilesize = 0
    vp2 = w.file(1)
    w.write(vp2, 0, pattern(20 * 16384))
    w.pass_time(50_000_000)
    assert vp2.bufs is not None
    assert sorted(o // 16384 for o in vp2.bufs.dirty) == [16, 17, 18, 19]
    w.bufs.write_behind = 0
    w.write(vp2, 20 * 16384, pattern(8 * 16384))
    w.pass_time(50_000_000)
    assert len(vp2.bufs.dirty) == 12
    w.check()
    for each in (vp, vp2):
        w.fsync(each)
        each.rele()


def test_sequential_heuristic() -> None:
    """What if reads follow each other, jump, and follow again? The count grows, falls, grows."""
    seq = Sequential()
    grown = [seq.note(at, 65536) for at in range(0, 10 * 65536, 65536)]
    assert grown == sorted(grown)
    assert grown[-1] == 10 * 65536
    assert seq.note(999 * 65536, 512) == 65536
    assert seq.note(5, 512) == 0
    for _ in range(200):
        seq.note(seq.nextoff, 65536)
    assert seq.count == 127


def test_breadn(make: Make) -> None:
    """What if further blocks are named? They are started too, and found when asked for."""
    w, _, _ = fault_world(make)
    vp = w.file(0)
    w.write(vp, 0, pattern(4 * 16384))
    w.fsync(vp)
    w.evict()
    assert isinstance(w.disk, FaultDisk)
    w.disk.add_rule(slow())
    ahead = [(16384, 16384), (3 * 16384, 16384)]
    bp = w.call(w.bufs.breadn, vp, 0, 16384, ahead)
    w.bufs.bqrelse(bp)
    assert [b.loffset // 16384 for b in blocks_of(vp)] == [0, 1, 3]
    w.pass_time(20_000_000)
    reads = w.bufs.reads
    bp = w.bufs.bread(vp, 3 * 16384, 16384)
    assert bp.read() == pattern(4 * 16384)[3 * 16384 :]
    w.bufs.bqrelse(bp)
    assert (w.bufs.reads, w.bufs.ahead_hits) == (reads, 1)
    vp.rele()
