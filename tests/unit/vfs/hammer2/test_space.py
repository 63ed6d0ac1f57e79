"""Space: allocation, running out of it, bulkfree, and devices that fail."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from dfuser.hw.disk.disk import CHANGING, DiskCmd
from dfuser.hw.disk.fault import Fault, FaultDisk, FaultRule
from dfuser.hw.disk.ram import RamDisk
from dfuser.libkern.errno import EINPROGRESS, EIO, ENOSPC, EROFS, KError
from dfuser.vfs.hammer2 import strategy, xops
from dfuser.vfs.hammer2.bulkfree import Bulkfree
from dfuser.vfs.hammer2.dev import Dev
from dfuser.vfs.hammer2.inode import Inode
from dfuser.vfs.hammer2.io import DiskDevice
from dfuser.vfs.hammer2.newfs import newfs
from dfuser.vfs.hammer2.ondisk.bmap import POSSIBLY_FREE
from dfuser.vfs.hammer2.ondisk.const import BrefType, Check, Comp
from dfuser.vfs.hammer2.ondisk.volhdr import VolumeData
from tests.unit.vfs.hammer2.model import Driver
from tests.unit.vfs.hammer2.world import (
    FOUR,
    MIB,
    SMALL,
    Ticks,
    all_headers,
    content,
    deep_check,
    live_content,
    new_disk,
    open_disk,
    reader,
)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(1)


def no_space(call: Callable[[], object]) -> bool:
    """Whether a call fails for want of space; other failures are failures."""
    try:
        call()
    except KError as exc:
        if exc.errno != ENOSPC:
            raise
        return True
    return False


def fill(dev: Dev, *, root: bool = True, sizes: tuple[int, ...] = (300, 5000, 200_000)) -> int:
    """Make files of random data until there is no more space; how many."""
    rng = random.Random(1)
    pfs = dev.pfs(b"DATA")
    count = 0
    while True:
        try:
            ip = xops.ncreate(pfs.root, b"f%05d" % count, root=root)
            count += 1
            data = rng.randbytes(rng.choice(sizes))
            if strategy.write(ip, 0, data, root=root) < len(data):
                return count
        except KError as exc:
            if exc.errno != ENOSPC:
                raise
            return count


def test_full() -> None:
    """What if a volume is filled to the last byte: does it stay sound, and can it be emptied?"""
    disk = new_disk(SMALL)
    dev = open_disk(disk)
    fill(dev, root=False)
    users = dev.free
    assert dev.free_reserved <= users < 2 * dev.free_reserved
    fill_more = fill_again(dev)
    assert fill_more
    assert dev.free_reserved // 2 <= dev.free < users
    live = live_content(dev.pfs(b"DATA"))
    dev.sync()
    assert deep_check(disk) == []
    assert content(reader(disk).pfs(b"DATA")) == live
    dev = open_disk(disk)
    root = dev.pfs(b"DATA").root
    for path in [path for path in live if path]:
        (xops.nrmdir if path.startswith(b"d") else xops.nremove)(root, path)
    dev.sync()
    assert deep_check(disk) == []
    assert dev.enospace() == 2
    results = [Bulkfree(dev).run() for _ in range(2)]
    assert results[0].staged == results[1].freed > 1000
    assert results[0].corrupt + results[1].corrupt == 0
    assert dev.enospace() == 0
    assert deep_check(disk) == []
    assert fill(dev) > 100
    dev.sync()
    assert deep_check(disk) == []


def fill_again(dev: Dev) -> int:
    """Let the superuser go on where users may not."""
    root = dev.pfs(b"DATA").root
    for count in itertools.count():
        if no_space(partial(more, root, count)):
            return count
    raise AssertionError


def more(root: Inode, count: int) -> None:
    """One directory and one file more."""
    xops.nmkdir(root, b"d%05d" % count)
    strategy.write(xops.ncreate(root, b"e%05d" % count), 0, random.randbytes(30_000))


def test_exhausted() -> None:
    """What if every single block is taken: do operations fail whole, and can it be synced?"""
    disk = new_disk(32 * MIB)
    driver = Driver(disk)
    dev = driver.dev
    dev.__class__.enospace, saved = (lambda *_a, **_k: 0), dev.__class__.enospace  # type: ignore[method-assign]
    try:
        rng = random.Random(5)
        failures = 0
        while failures < 12:
            before = driver.content()
            try:
                full = no_space(lambda: driver.step(rng))
            except AssertionError:
                full = True  # a short write
            if full:
                failures += 1
                after = live_content(driver.pfs)
                assert after == before or partly(before, after)
                adopt(driver)
        live = live_content(driver.pfs)
        assert dev.freemap.exhausted
        dev.sync()
        assert deep_check(disk) == []
        assert content(reader(disk).pfs(b"DATA")) == live
        assert not any(Bulkfree(dev).run().corrupt for _ in range(2))
        assert deep_check(disk) == []
    finally:
        dev.__class__.enospace = saved  # type: ignore[method-assign]


def partly(before: dict[bytes, Any], after: dict[bytes, Any]) -> bool:
    """Whether nothing but the data of one file differs: a write that was cut short."""
    return before.keys() == after.keys() and sum(
        entry[3] != after[path][3] for path, entry in before.items() if entry != after[path]
    ) <= max(entry[2] for entry in before.values())


def adopt(driver: Driver) -> None:
    """Let the model have what the volume has, after a short write."""
    for path, entry in live_content(driver.pfs).items():
        if path:
            driver.thing(tuple(path.split(b"/"))).data[:] = entry[3]


def test_reserve_is_kept() -> None:
    """What if users could take what the superuser needs?"""
    dev = open_disk(new_disk(SMALL))
    assert dev.free_reserved == 4 * MIB
    assert dev.enospace(dev.free - 4 * MIB, root=False) == 1
    assert dev.enospace(dev.free - 4 * MIB + 1, root=False) == 2
    assert dev.enospace(dev.free - 2 * MIB) == 1
    assert dev.enospace(dev.free - 2 * MIB + 1) == 2


def test_classes() -> None:
    """What if inodes, names, tables and data were mixed in one segment?"""
    disk = new_disk(FOUR)
    dev = open_disk(disk)
    root = dev.pfs(b"DATA").root
    for number in range(300):
        ip = xops.ncreate(root, b"%d" % number * 40)
        strategy.write(ip, 0, random.randbytes(3000))
    dev.sync()
    kinds: dict[int, set[int]] = {}
    for bref in reader(disk).topology():
        if bref.data_off >= dev.flush.voldata.allocator_beg:
            kinds.setdefault(bref.data_off >> 22, set()).add(bref.type)
    assert sorted(kinds.values(), key=min) == [{1}, {2}, {3}, {4}]


def test_sequential_data_lies_in_order() -> None:
    """What if pieces of a file that follow each other did not on the media?"""
    dev = open_disk(new_disk(FOUR, comp=Comp.NONE))
    ip = xops.ncreate(dev.pfs(b"DATA").root, b"f")
    strategy.write(ip, 0, random.randbytes(8 << 20))
    found: list[Any] = []
    dev.chains.collect(ip.chain, 0, 1 << 40, found, 1000)
    places = [bref.offset for bref in found]
    assert len(places) == 128
    jumps = [b - a for a, b in itertools.pairwise(places) if b - a != 65536]
    assert len(jumps) <= 2
    assert all(place % (4 * MIB) == n * 65536 % (4 * MIB) for n, place in enumerate(places))


def test_bulkfree_two_passes() -> None:
    """What if a block were given out before every header had forgotten it?"""
    disk = new_disk(FOUR)
    dev = open_disk(disk)
    root = dev.pfs(b"DATA").root
    ip = xops.ncreate(root, b"f")
    strategy.write(ip, 0, random.randbytes(1 << 20))
    dev.sync()
    free = dev.flush.voldata.allocator_free
    xops.nremove(root, b"f")
    dev.sync()
    deleted = dev.chains.mirror_tid
    first = Bulkfree(dev).run()
    assert (first.freed, first.restored, first.corrupt) == (0, 0, 0)
    assert first.staged >= 64
    assert dev.flush.voldata.allocator_free <= free
    leaf = dev.freemap.leaf(dev.flush.voldata.allocator_beg)
    assert leaf is not None
    assert sum(leaf.entry(n).count(POSSIBLY_FREE) for n in range(256)) == first.staged
    assert dev.flush.oldest_copy() < deleted + 2
    second = Bulkfree(dev).run()
    assert second.freed == first.staged
    assert min(dev.flush.copies.values()) > deleted
    assert dev.flush.voldata.allocator_free > free
    assert deep_check(disk) == []


def test_bulkfree_small_pieces() -> None:
    """What if small pieces went on being packed into a block that was freed, or over one in use?"""
    disk = new_disk(FOUR, comp=Comp.NONE)
    dev = open_disk(disk)
    root = dev.pfs(b"DATA").root
    for keep in (False, True):
        for number in range(7):
            strategy.write(xops.ncreate(root, b"%d" % number), 0, random.randbytes(3000))
        dev.sync()
        for number in range(keep, 7):
            xops.nremove(root, b"%d" % number)
        for _ in range(2):
            assert Bulkfree(dev).run().corrupt == 0
            assert deep_check(disk) == []
        strategy.write(xops.ncreate(root, b"large"), 0, random.randbytes(16384))
        strategy.write(xops.ncreate(root, b"small"), 0, random.randbytes(3000))
        dev.sync()
        assert deep_check(disk) == []
        xops.nremove(root, b"large")
        xops.nremove(root, b"small")


def test_bulkfree_between_operations() -> None:
    """What if files are made and removed while a pass is under way?"""
    disk = new_disk(FOUR)
    driver = Driver(disk)
    rng = random.Random(8)
    for _ in range(600):
        driver.step(rng)
    for _ in range(4):
        pass_ = Bulkfree(driver.dev)
        for step in pass_.steps():
            if step is not None:
                driver.dev.io.barrier()
            with pytest.raises(KError) as error:
                Bulkfree(driver.dev).run()
            assert error.value.errno == EINPROGRESS
            for _ in range(20):
                driver.step(rng)
        assert pass_.result().corrupt == 0
        assert live_content(driver.pfs) == driver.content()
    driver.sync()
    assert deep_check(disk) == []
    assert content(reader(disk).pfs(b"DATA")) == driver.content()


def test_bulkfree_damaged() -> None:
    """What if a table cannot be read: would what lies below it be freed?"""
    disk = new_disk(FOUR)
    dev = open_disk(disk)
    root = dev.pfs(b"DATA").root
    for number in range(100):
        xops.ncreate(root, b"%d" % number)
    dev.sync()
    bref = next(b for b in reader(disk).topology() if b.type == BrefType.INDIRECT)
    disk.write(bref.offset, random.randbytes(4096))
    free = dev.flush.voldata.allocator_free
    for _ in range(3):
        with pytest.raises(KError) as error:
            Bulkfree(open_disk(disk)).run()
        assert error.value.errno == EIO
    assert reader(disk).volume.header.allocator_free == free


def test_dedup() -> None:
    """What if two equal files took twice the space, or one lost its data with the other?"""
    disk = new_disk(FOUR)
    dev = open_disk(disk)
    root = dev.pfs(b"DATA").root
    data = random.Random(3).randbytes(4 << 20)
    strategy.write(xops.ncreate(root, b"a"), 0, data)
    dev.sync()
    free = dev.flush.voldata.allocator_free
    strategy.write(xops.ncreate(root, b"b"), 0, data)
    dev.sync()
    assert free - dev.flush.voldata.allocator_free < 256 * 1024
    assert dev.dedup.statistics().hits == 64
    xops.nremove(root, b"a")
    for _ in range(2):
        assert Bulkfree(dev).run().corrupt == 0
    for number in range(20):
        strategy.write(xops.ncreate(root, b"n%d" % number), 0, random.randbytes(1 << 20))
    dev.sync()
    again = open_disk(disk).pfs(b"DATA")
    assert strategy.read(xops.nresolve(again.root, b"b"), 0, 5 << 20) == data
    assert deep_check(disk) == []


def test_shared_block_is_not_written_over() -> None:
    """What if a new block that another file shares were written over in place?"""
    dev = open_disk(new_disk(FOUR))
    root = dev.pfs(b"DATA").root
    data = random.Random(3).randbytes(65536)
    a, b = xops.ncreate(root, b"a"), xops.ncreate(root, b"b")
    strategy.write(a, 0, data)
    strategy.write(b, 0, data)
    assert dev.dedup.hits == 1
    strategy.write(a, 0, random.Random(4).randbytes(65536))
    assert strategy.read(b, 0, 65536) == data
    dev.sync()
    assert strategy.read(b, 0, 65536) == data


def test_given_back_block_is_not_shared() -> None:
    """What if a block that was given back, and is a table's by now, were found by its old bytes?"""
    dev = open_disk(new_disk(FOUR, comp=Comp.AUTOZERO))
    root = dev.pfs(b"DATA").root
    data = random.randbytes(16384)
    ip = xops.ncreate(root, b"a")
    strategy.write(ip, 0, data)
    dev.io.drain()
    place = dev.chains.lookup(ip.chain, 0).data_off  # type: ignore[union-attr]
    strategy.punch(ip, 0, 16384)
    leaf = dev.freemap.leaf(place)
    assert leaf is not None
    dev.freemap.relaxed = True
    dev.freemap._hints[BrefType.INDIRECT << 8 | 14] = leaf, place >> 22 & 255
    assert dev.freemap.alloc(BrefType.INDIRECT, 0, 16384) == place
    other = xops.ncreate(root, b"b")
    strategy.write(other, 0, data)
    assert dev.chains.lookup(other.chain, 0).data_off != place  # type: ignore[union-attr]


def test_append_in_small_steps() -> None:
    """What if appending byte by byte used up a block for each step?"""
    dev = open_disk(new_disk(FOUR, comp=Comp.NONE))
    ip = xops.ncreate(dev.pfs(b"DATA").root, b"f")
    free = dev.flush.voldata.allocator_free
    for number in range(640):
        strategy.write(ip, number * 100, random.randbytes(100))
    assert free - dev.flush.voldata.allocator_free < 300_000


def test_no_check_in_place() -> None:
    """What if a file without check code were copied on write, or a compressed one were not?"""
    disk = new_disk(FOUR, comp=Comp.NONE, check=Check.NONE)
    dev = open_disk(disk)
    ip = xops.ncreate(dev.pfs(b"DATA").root, b"f")
    strategy.write(ip, 0, bytes(200_000))
    dev.sync()
    place = dev.chains.lookup(ip.chain, 65536)
    strategy.write(ip, 65536, random.randbytes(65536))
    assert dev.chains.lookup(ip.chain, 65536).data_off == place.data_off  # type: ignore[union-attr]
    dev.sync()
    assert deep_check(disk) == []


def faulty(rule: FaultRule, size: int = FOUR) -> tuple[Any, Driver, FaultDisk]:
    """A driver on a disk that fails after some work."""
    base = new_disk(size)
    disk = FaultDisk(base)
    driver = Driver(disk)
    rng = random.Random(6)
    for _ in range(60):
        driver.step(rng)
    driver.sync()
    disk.add_rule(rule)
    return base, driver, disk


@pytest.mark.parametrize("nth", [1, 2, 3, 5])
def test_write_error(nth: int) -> None:
    """What if a write of a sync fails: is the old state kept, and does the next sync make it up?"""
    rule = FaultRule(Fault.EIO, frozenset(CHANGING), nth=nth)
    base, driver, _disk = faulty(rule)
    old = driver.content()
    rng = random.Random(7)
    driver.tunables.cluster_bytes = 65536
    for _ in range(40):
        driver.step(rng)
    with pytest.raises(OSError):
        driver.sync()
    assert live_content(open_disk(base.snapshot()).pfs(b"DATA")) in (old, driver.content())
    for _ in range(40):
        driver.step(rng)
    driver.sync()
    assert deep_check(base) == []
    assert content(reader(base).pfs(b"DATA")) == driver.content()
    assert driver.dev.flush.failures == 1


@pytest.mark.parametrize("headers", [False, True])
def test_many_failed_syncs(headers: bool) -> None:
    """What if sync after sync fails: is the freemap of a header that counts ever written over?"""
    base = new_disk(FOUR)
    disk = FaultDisk(base)
    driver = Driver(disk)
    rng = random.Random(6)
    for _ in range(5):
        driver.create((), b"%d" % rng.randrange(1 << 30), 2)
        driver.sync()
    for number in range(4 if headers else 1):
        end = (number << 31) + 65536 if headers else None
        disk.add_rule(FaultRule(Fault.EIO, frozenset(CHANGING), start=number << 31, end=end))
    for _ in range(14):
        for _ in range(6):
            driver.step(rng)
        with pytest.raises(OSError):
            driver.sync()
        for number in all_headers(base):
            assert deep_check(base, number) == []
    disk.clear_rules()
    if headers:
        with pytest.raises(OSError):
            driver.sync()
    else:
        driver.sync()
        assert content(reader(base).pfs(b"DATA")) == driver.content()
    assert deep_check(base) == []


def test_flush_error() -> None:
    """What if the device says that it lost data: is nothing acknowledged from then on?"""
    base, driver, _disk = faulty(FaultRule(Fault.EIO, frozenset({DiskCmd.FLUSH}), nth=1))
    old = driver.content()
    rng = random.Random(7)
    for _ in range(20):
        driver.step(rng)
    for _ in range(2):
        with pytest.raises(OSError):
            driver.sync()
    assert live_content(open_disk(base.snapshot()).pfs(b"DATA")) == old


def write_much(ip: Inode) -> None:
    """Write more than may wait."""
    for number in range(100):
        strategy.write(ip, number * 65536, random.randbytes(65536))


def test_device_takes_nothing() -> None:
    """What if no write ever succeeds: does memory stay bounded, and does the writer hear of it?"""
    _base, driver, _disk = faulty(FaultRule(Fault.EIO, frozenset(CHANGING)))
    driver.tunables.write_behind = 1 << 18
    driver.create((), b"big", 2)
    ip = driver.inode((b"big",))
    with pytest.raises(KError) as error:
        write_much(ip)
    assert error.value.errno == EIO
    assert driver.dev.io.waiting_bytes < 2 << 20


@pytest.mark.parametrize("seed", range(4))
def test_read_errors(seed: int) -> None:
    """What if reading fails now and then: does each operation happen whole or not at all?"""
    base, driver, disk = faulty(FaultRule(Fault.EIO, frozenset({DiskCmd.READ}), probability=0.2))
    rng = random.Random(seed)
    failures = 0
    for _ in range(300):
        driver.dev.tunables.limit_chains = 0
        try:
            driver.step(rng)
        except (KError, AssertionError):
            failures += 1
            rules, disk.rules = disk.rules, []
            after = live_content(driver.pfs)
            assert after == driver.content() or partly(driver.content(), after)
            adopt(driver)
            disk.rules = rules
        if rng.random() < 0.1:
            driver.sync()
    disk.clear_rules()
    driver.sync()
    assert failures
    assert deep_check(base) == []
    assert content(reader(base).pfs(b"DATA")) == driver.content()


def test_readonly() -> None:
    """What if something were changed on a volume opened for reading?"""
    disk = new_disk(SMALL)
    twin = disk.snapshot()
    dev = Dev([DiskDevice(disk)], Ticks(), readonly=True)
    root = dev.pfs(b"DATA").root
    for call in (
        lambda: xops.ncreate(root, b"a"), lambda: xops.setattr_(root, mode=0),
        lambda: Bulkfree(dev).run(), lambda: xops.nremove(root, b"a"),
    ):  # fmt: skip
        with pytest.raises(KError) as error:
            call()
        assert error.value.errno == EROFS
    dev.sync()
    assert disk.same(twin)


def test_recovery() -> None:
    """What if the freemap is older than the topology: are its blocks found and kept?"""
    disk = new_disk(FOUR)
    driver = Driver(disk)
    rng = random.Random(11)
    for _ in range(100):
        driver.step(rng)
    driver.sync()
    old = VolumeData.unpack_from(disk.read(driver.dev.flush.volhdrno * (2 << 30), 65536))
    for _ in range(100):
        driver.step(rng)
    driver.sync()
    at = driver.dev.flush.volhdrno * (2 << 30)
    header = VolumeData.unpack_from(disk.read(at, 65536))
    header.freemap_blockset = old.freemap_blockset
    header.freemap_tid, header.allocator_free = old.freemap_tid, old.allocator_free
    disk.write(at, header.seal())
    assert any("marked free" in text for text in deep_check(disk))
    driver.mount()
    assert driver.dev.recovered >= 10
    for _ in range(100):
        driver.step(rng)
    driver.sync()
    assert deep_check(disk) == []
    assert content(reader(disk).pfs(b"DATA")) == driver.content()


def test_damaged_leaf() -> None:
    """What if a leaf of the freemap is damaged: do writes go elsewhere?"""
    disk = new_disk(FOUR)
    dev = open_disk(disk)
    strategy.write(xops.ncreate(dev.pfs(b"DATA").root, b"a"), 0, b"a" * 100_000)
    dev.sync()
    leaf = next(iter(reader(disk).freemap()))
    disk.write(leaf.offset + 8192, b"\x55" * 512)
    dev = open_disk(disk)
    ip = xops.ncreate(dev.pfs(b"DATA").root, b"b")
    strategy.write(ip, 0, random.Random(1).randbytes(100_000))
    dev.sync()
    assert ip.chain.bref.data_off >> 30 == 1
    assert dev.statistics().freemap.damaged_leaves == 1
    again = open_disk(disk).pfs(b"DATA")
    assert strategy.read(xops.nresolve(again.root, b"a"), 0, 1 << 20) == b"a" * 100_000


def test_large_sectors() -> None:
    """What if sectors of the device are larger than an inode?"""
    disk = RamDisk(SMALL, 4096)
    newfs([DiskDevice(disk)], clock=Ticks(), entropy=random.Random(0).randbytes)
    driver = Driver(disk)
    rng = random.Random(3)
    for _ in range(150):
        driver.step(rng)
        if rng.random() < 0.1:
            driver.remount()
    driver.sync()
    assert deep_check(disk) == []
    assert content(reader(disk).pfs(b"DATA")) == driver.content()
