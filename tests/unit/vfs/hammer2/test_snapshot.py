"""PFSs made, copied and deleted on a volume in use."""

from __future__ import annotations

import random

import pytest

from dfuser.libkern.errno import EEXIST, EINVAL, ENAMETOOLONG, ENOENT, KError
from dfuser.vfs.hammer2 import strategy, xops
from dfuser.vfs.hammer2.bulkfree import Bulkfree
from dfuser.vfs.hammer2.ondisk.const import Check, Comp
from dfuser.vfs.hammer2.snapshot import pfs_create, pfs_delete, snapshot
from tests.unit.vfs.hammer2.world import (
    FOUR,
    content,
    deep_check,
    entropy,
    live_content,
    new_disk,
    open_disk,
    reader,
)


@pytest.mark.parametrize(("comp", "check"), [(Comp.LZ4, Check.XXHASH64), (Comp.NONE, Check.NONE)])
def test_snapshot(comp: int, check: int) -> None:
    """What if a snapshot changed with its source, or the source with its snapshot?"""
    disk = new_disk(FOUR, comp=comp, check=check)
    dev = open_disk(disk)
    pfs = dev.pfs(b"DATA")
    rng = random.Random(1)
    files = [xops.ncreate(pfs.root, b"%d" % number) for number in range(50)]
    for ip in files:
        strategy.write(ip, 0, rng.randbytes(rng.choice((300, 70_000))))
    before = live_content(pfs)
    snapshot(pfs, b"snap", entropy)
    assert live_content(dev.pfs(b"snap")) == before
    for ip in files[::2]:
        strategy.write(ip, 100, rng.randbytes(66_000))
    xops.nremove(pfs.root, b"1")
    live = live_content(pfs)
    dev.sync()
    assert content(reader(disk).pfs(b"snap")) == before
    dev = open_disk(disk)
    kept = dev.pfs(b"snap")
    new = xops.ncreate(kept.root, b"new")
    strategy.write(xops.nresolve(kept.root, b"3"), 0, b"changed")
    assert new.inum >= max(ip.inum for ip in files)
    for _ in range(3):
        assert Bulkfree(dev).run().corrupt == 0
    assert content(reader(disk).pfs(b"DATA")) == live
    assert content(reader(disk).pfs(b"snap")) == live_content(kept)
    assert deep_check(disk) == []


def test_snapshot_takes_no_time() -> None:
    """What if a snapshot of many files wrote more than one of a few?"""
    dev = open_disk(new_disk(FOUR))
    pfs = dev.pfs(b"DATA")
    for number in range(2000):
        xops.ncreate(pfs.root, b"%d" % number)
    dev.sync()
    free, loads = dev.free, dev.chains.statistics().loads
    snapshot(pfs, b"snap", entropy)
    assert dev.chains.statistics().loads - loads < 5
    assert dev.chains.modified < 8
    assert free - dev.free <= 3 * 16384


def test_create_and_delete() -> None:
    """What if labels were lost, doubled or taken that may not be, or space never came back?"""
    disk = new_disk(FOUR)
    dev = open_disk(disk)
    for number in range(20):
        pfs = pfs_create(dev, b"p%d" % number, entropy)
        strategy.write(xops.ncreate(pfs.root, b"f"), 0, random.Random(number).randbytes(200_000))
    for label, errno in (
        (b"DATA", EEXIST), (b"p3", EEXIST), (b"", ENOENT), (b"a/b", EINVAL),
        (b"x" * 256, ENAMETOOLONG),
    ):  # fmt: skip
        with pytest.raises(KError) as error:
            pfs_create(dev, label, entropy)
        assert error.value.errno == errno
    dev.sync()
    assert deep_check(disk) == []
    used = dev.free
    for number in range(20):
        pfs_delete(dev, b"p%d" % number)
    with pytest.raises(KError) as error:
        pfs_delete(dev, b"p1")
    assert error.value.errno == ENOENT
    pfs_delete(dev, b"LOCAL")
    with pytest.raises(KError) as error:
        pfs_delete(dev, b"DATA")
    assert error.value.errno == EINVAL
    for _ in range(2):
        Bulkfree(dev).run()
    assert dev.free - used >= 20 * 196_608
    assert deep_check(disk) == []
    assert open_disk(disk).pfs_labels() == [b"DATA"]


def test_snapshot_during_a_sync() -> None:
    """What if a snapshot is made while a sync waits for its device: does the next sync write it?"""
    disk = new_disk(FOUR)
    dev = open_disk(disk)
    pfs = dev.pfs(b"DATA")
    for number in range(4):
        strategy.write(xops.ncreate(pfs.root, b"%d" % number), 0, b"x" * 10_000)
        for step in dev.flush.sync_steps():
            dev.io.barrier()
            snapshot(pfs, b"snap%d%d" % (number, step), entropy)
            dev.flush.seal()
        assert dev.flush.pending
    dev.sync()
    assert not dev.flush.pending
    assert len(open_disk(disk).pfs_labels()) == 10
    for number in range(4):
        assert deep_check(disk, number) == []
