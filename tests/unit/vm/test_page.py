"""Frames: allocation, reserves, pins, bits, and a random machine against plain sets."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dfuser.hw.physmem import PhysMem
from dfuser.libkern.errno import EINVAL, ENOMEM, EPERM, KError, Panic
from dfuser.libkern.sysctl import SysctlTree
from dfuser.libkern.ucred import Ucred
from dfuser.vm.page import VM_ALLOC_INTERRUPT, VM_ALLOC_NORMAL, VM_ALLOC_SYSTEM, VmPages
from dfuser.vm.pagestate import PQ_ACTIVE, PQ_FREE, PQ_HOLD, PQ_INACTIVE, PQ_NONE, page_bits

PAGE = 4096


class Owner:
    """The simplest owner of pages."""

    def __init__(self) -> None:
        self.map: dict[int, int] = {}

    @property
    def resident_page_count(self) -> int:
        return len(self.map)

    def vm_page_lookup(self, pindex: int) -> int:
        return self.map.get(pindex, -1)


def make(npages: int) -> VmPages:
    return VmPages(PhysMem(npages * PAGE))


@pytest.fixture
def pages() -> Iterator[VmPages]:
    pages = make(1024)
    yield pages
    pages.check(contents=True)
    pages.physmem.close()


def exhaust(pages: VmPages, req: int, n: int = 1) -> list[int]:
    taken: list[int] = []
    while True:
        try:
            taken.append(pages.alloc(n, req=req))
        except KError as error:
            if error.errno != ENOMEM:
                raise
            return taken


def test_page_bits() -> None:
    """What if a byte range is turned into 512-byte bits, one block or many or none?"""
    assert page_bits(0, 0) == 0
    assert page_bits(0, 1) == 1
    assert page_bits(511, 2) == 3
    assert page_bits(512, 512) == 2
    assert page_bits(0, PAGE) == 0xFF
    assert page_bits(4095, 1) == 0x80
    with pytest.raises(Panic):
        page_bits(4095, 2)


@pytest.mark.parametrize("npages", [1, 2, 15, 16, 17, 31, 100, 1024, 16385])
def test_all_of_memory_can_be_used(npages: int) -> None:
    """What if interrupts take every page of memories of odd sizes, and give them back?"""
    pages = make(npages)
    taken = exhaust(pages, VM_ALLOC_INTERRUPT)
    assert sorted(taken) == list(range(npages))
    assert pages.v_free_count == 0
    pages.check()
    pages.free_pages(taken[::-1])
    pages.check()
    assert pages.v_free_count == npages
    runs = [run for run in iter(lambda: pages.alloc_run(req=VM_ALLOC_INTERRUPT), None)]  # noqa: C416
    assert len(runs) == npages // 16
    for run in runs:
        pages.free_run(run)
    pages.check()
    pages.physmem.close()


def test_bookkeeping_is_small_and_lazy() -> None:
    """What if a terabyte is configured: what does each frame cost before and after use?"""
    pages = make(1 << 28)
    arrays = [pages._owner, pages._pindex, pages._queue, pages.valid, pages.dirty]
    arrays += [pages._wire, pages._hold, pages._busy, pages._flags]
    known = len(pages._queue)
    assert known < 100_000
    assert all(len(array) == known for array in arrays)
    sizes = [8, 8, 1, 1, 1, pages._wire.itemsize, pages._hold.itemsize, 2, 1]
    assert sum(sizes) < 32
    for _ in range(known + 1):
        pages.alloc()
    assert all(len(array) == len(pages._queue) > known for array in arrays)
    pages.physmem.close()


def test_thresholds_are_dragonflys() -> None:
    """What if a machine has 1 GiB, and what if it is tiny?"""
    pages = make(1 << 18)
    assert pages.v_free_min == 64 + (1 << 18) // 200
    assert pages.v_free_reserved == pages.v_free_min * 4 // 8 + 7
    assert pages.v_pageout_free_min == pages.v_free_min * 2 // 8 + 7
    assert pages.v_interrupt_free_min == pages.v_free_min // 8 + 7
    assert pages.v_free_target == 4 * pages.v_free_min + pages.v_free_reserved
    pages.physmem.close()
    for npages in (1, 16, 64, 300, 2000):
        pages = make(npages)
        assert 0 <= pages.v_interrupt_free_min <= pages.v_free_reserved <= pages.v_free_min
        assert pages.v_free_min < pages.v_free_target or npages < 16
        assert pages.v_free_reserved < npages
        pages.physmem.close()


def test_reserves(pages: VmPages) -> None:
    """What if ordinary callers, then the system, then interrupts take all they can?"""
    exhaust(pages, VM_ALLOC_NORMAL)
    assert pages.v_free_count == pages.v_free_reserved
    assert pages.alloc_run() is None
    exhaust(pages, VM_ALLOC_SYSTEM)
    assert pages.v_free_count == pages.v_interrupt_free_min
    exhaust(pages, VM_ALLOC_INTERRUPT)
    assert pages.v_free_count == 0
    assert pages.v_alloc_fail == 3


def test_shortage_is_called_once_on_the_way_down(pages: VmPages) -> None:
    """What if free memory falls below v_free_min, recovers to the target, falls again?"""
    calls: list[int] = []
    pages.shortage.append(lambda wanted: calls.append(pages.v_free_count))
    taken = [pages.alloc() for _ in range(1024 - pages.v_free_min)]
    assert calls == []
    taken += [pages.alloc(), pages.alloc()]
    assert calls == [pages.v_free_min]
    while pages.v_free_count < pages.v_free_target - 1:
        pages.free(taken.pop())
    while pages.v_free_count >= pages.v_free_min:
        taken.append(pages.alloc())
    assert len(calls) == 1
    while pages.v_free_count < pages.v_free_target:
        pages.free(taken.pop())
    while pages.v_free_count >= pages.v_free_min:
        taken.append(pages.alloc())
    assert len(calls) == 2
    assert pages.statistics().v_shortages == 2


def test_shortage_gives_back_in_time(pages: VmPages) -> None:
    """What if the last reserve is asked for and a hook frees what it caches?"""
    cache = exhaust(pages, VM_ALLOC_NORMAL)[:10]

    def give(wanted: int) -> None:
        for _ in range(min(wanted, len(cache))):
            pages.free(cache.pop())

    pages.shortage.append(give)
    for _ in range(10):
        pages.alloc()
    assert cache == []
    with pytest.raises(KError) as caught:
        pages.alloc()
    assert caught.value.errno == ENOMEM


def test_shortage_function_may_allocate(pages: VmPages) -> None:
    """What if the function that is to free memory needs a page itself?"""
    taken = exhaust(pages, VM_ALLOC_NORMAL)
    depth: list[int] = []

    def give(wanted: int) -> None:
        depth.append(len(depth))
        scratch = pages.alloc(req=VM_ALLOC_SYSTEM)
        with pytest.raises(KError):
            pages.alloc()
        pages.free(scratch)
        pages.free(taken.pop())

    pages.shortage.append(give)
    pages.alloc()
    assert depth == [0]


def test_failing_shortage_function_leaves_no_mark(pages: VmPages) -> None:
    """What if a shortage function raises: is the next request asked for again?"""
    taken = exhaust(pages, VM_ALLOC_NORMAL)

    def bad(wanted: int) -> None:
        raise KError(EPERM)

    pages.shortage.append(bad)
    with pytest.raises(KError) as caught:
        pages.alloc()
    assert caught.value.errno == EPERM
    pages.shortage[:] = [lambda wanted: pages.free(taken.pop())]
    pages.alloc()


def test_reserve_promises(pages: VmPages) -> None:
    """What if a number of pages is reserved and then taken one by one?"""
    pages.reserve(1024 - pages.v_free_reserved)
    for _ in range(1024 - pages.v_free_reserved):
        pages.alloc(req=VM_ALLOC_INTERRUPT)
    with pytest.raises(KError):
        pages.reserve(1)


@pytest.mark.parametrize("n", range(2, 17))
def test_contiguous_pages(pages: VmPages, n: int) -> None:
    """What if n pages in a row are wanted, again and again until no run has them?"""
    owner = Owner()
    first = pages.alloc(n, owner, 100, zero=True)
    for i in range(n):
        owner.map[100 + i] = first + i
    pages.check()
    taken = exhaust(pages, VM_ALLOC_NORMAL, n)
    pages.check()
    spans = sorted([first, *taken])
    assert all(b - a >= n for a, b in pairwise(spans))
    for start in taken:
        pages.free_pages(range(start, start + n))
    owner.map.clear()
    pages.free_pages(range(first, first + n))
    assert pages.v_free_count == 1024


def test_contiguous_pages_from_fragments() -> None:
    """What if no whole run is left, but one run has three in a row?"""
    pages = make(64)
    taken = exhaust(pages, VM_ALLOC_INTERRUPT)
    pages.free_pages([f for f in taken if f % 2])
    pages.free(36)
    assert pages.alloc(3, req=VM_ALLOC_INTERRUPT) == 35
    with pytest.raises(KError):
        pages.alloc(2, req=VM_ALLOC_INTERRUPT)
    pages.check()
    pages.physmem.close()


def test_too_many_contiguous_pages_is_a_bug(pages: VmPages) -> None:
    """What if more than a run is asked for as contiguous?"""
    with pytest.raises(Panic):
        pages.alloc(17)


def test_runs_coalesce(pages: VmPages) -> None:
    """What if all of memory is taken page by page and freed in a shuffled order?"""
    taken = exhaust(pages, VM_ALLOC_INTERRUPT)
    taken.sort(key=lambda frame: frame * 7919 % 1031)
    pages.free_pages(taken)
    pages.check()
    runs = [pages.alloc_run(req=VM_ALLOC_INTERRUPT) for _ in range(64)]
    assert None not in runs
    assert sorted(run for run in runs if run is not None) == list(range(0, 1024, 16))


def test_zeroing_only_what_is_not_known_to_be_zero(pages: VmPages) -> None:
    """What if fresh, recycled and discarded pages are asked for zeroed?"""
    mem = pages.physmem
    frame = pages.alloc(zero=True)
    run = pages.alloc_run(zero=True)
    assert run is not None
    assert mem.bytes_zeroed == 0
    mem.write(frame * PAGE, b"dirt")
    mem.write(run * PAGE, b"dirt")
    pages.free(frame)
    pages.free_run(run)
    again = pages.alloc_run(zero=True)
    assert again == run
    assert mem.bytes_zeroed == 16 * PAGE
    assert mem.read(run * PAGE, 16 * PAGE) == bytes(16 * PAGE)
    assert pages.alloc(zero=True) == frame
    assert mem.bytes_zeroed == 17 * PAGE
    assert mem.read(frame * PAGE, PAGE) == bytes(PAGE)
    pages.free_run(run)
    pages.free_warm_max = 0
    assert pages.trim() == 16
    pages.alloc_run(zero=True)
    assert mem.bytes_zeroed == 17 * PAGE


def test_trim_gives_back_above_the_watermark(pages: VmPages) -> None:
    """What if much memory was used once and is free now: what does the host get back?"""
    runs = [pages.alloc_run() for _ in range(50)]
    for run in runs:
        assert run is not None
        pages.physmem.write(run * PAGE, b"x" * (16 * PAGE))
        pages.free_run(run)
    assert pages.physmem.resident_bytes() == 800 * PAGE
    pages.free_warm_max = 100
    assert pages.trim(limit=160) == 160
    assert pages.physmem.resident_bytes() == 640 * PAGE
    assert pages.trim() == 528
    assert pages.warm_pages() == 112, "a run is not given back in part"
    assert pages.trim() == 0
    pages.check(contents=True)


def test_double_free_and_wrong_free(pages: VmPages) -> None:
    """What if a page is freed twice, wired, busy, or on PQ_HOLD already?"""
    frame = pages.alloc()
    pages.free(frame)
    with pytest.raises(Panic, match=f"page {frame} is free"):
        pages.free(frame)
    frame = pages.alloc()
    pages.wire(frame)
    with pytest.raises(Panic, match="wired or busy"):
        pages.free(frame)
    pages.unwire(frame)
    assert pages.busy_try(frame)
    with pytest.raises(Panic, match="wired or busy"):
        pages.free(frame)
    pages.wakeup(frame)
    pages.hold(frame)
    pages.free(frame)
    with pytest.raises(Panic, match="free already"):
        pages.free(frame)
    pages.unhold(frame)
    run = pages.alloc_run()
    assert run is not None
    pages.free(run + 3)
    with pytest.raises(Panic, match=f"page {run + 3} is free"):
        pages.free_run(run)


def test_hold_keeps_the_bytes(pages: VmPages) -> None:
    """What if a page is freed while two hold it, and memory is then wanted?"""
    frame = pages.alloc()
    pages.physmem.write(frame * PAGE, b"keep me")
    pages.hold(frame)
    pages.hold(frame)
    pages.free(frame)
    assert pages.queue(frame) == PQ_HOLD
    assert frame not in exhaust(pages, VM_ALLOC_INTERRUPT)
    pages.unhold(frame)
    assert pages.physmem.read(frame * PAGE, 7) == b"keep me"
    pages.check()
    pages.unhold(frame)
    assert pages.queue(frame) == PQ_FREE
    assert pages.alloc(req=VM_ALLOC_INTERRUPT) == frame
    with pytest.raises(Panic, match="not held"):
        pages.unhold(frame)


def test_hold_of_a_free_page_is_a_bug(pages: VmPages) -> None:
    """What if a free page is held, wired or busied?"""
    frame = pages.alloc()
    pages.free(frame)
    for call in (pages.hold, pages.wire, pages.busy_try, pages.sbusy_try, pages.activate):
        with pytest.raises(Panic, match=str(frame)):
            call(frame)


def test_wire_counts(pages: VmPages) -> None:
    """What if a page is wired twice: when does it count, and where does it go at the end?"""
    owner = Owner()
    frame = owner.map[7] = pages.alloc(1, owner, 7)
    assert pages.queue(frame) == PQ_ACTIVE
    pages.wire(frame)
    pages.wire(frame)
    assert (pages.v_wire_count, pages.wire_count(frame)) == (1, 2)
    assert pages.queue(frame) == PQ_NONE
    pages.deactivate(frame)
    assert pages.queue(frame) == PQ_NONE
    pages.unwire(frame)
    assert pages.v_wire_count == 1
    pages.unwire(frame, activate=False)
    assert (pages.v_wire_count, pages.queue(frame)) == (0, PQ_INACTIVE)
    assert pages.v_inactive_count == 1
    pages.activate(frame)
    assert (pages.v_active_count, pages.v_inactive_count) == (1, 0)
    with pytest.raises(Panic, match="not wired"):
        pages.unwire(frame)
    assert pages.lookup(frame) == (owner, 7)


def test_busy(pages: VmPages) -> None:
    """What if hard and soft busies meet on one page?"""
    frame = pages.alloc()
    assert pages.busy_try(frame)
    assert not pages.busy_try(frame)
    assert not pages.sbusy_try(frame)
    pages.wakeup(frame)
    assert pages.sbusy_try(frame)
    assert pages.sbusy_try(frame)
    assert not pages.busy_try(frame)
    pages.sbusy_drop(frame)
    assert not pages.busy_try(frame)
    pages.sbusy_drop(frame)
    assert pages.busy_try(frame)
    with pytest.raises(Panic):
        pages.sbusy_drop(frame)
    pages.wakeup(frame)
    with pytest.raises(Panic):
        pages.wakeup(frame)


def test_valid_and_dirty(pages: VmPages) -> None:
    """What if parts of a recycled page become valid and dirty in 512-byte blocks?"""
    mem = pages.physmem
    frame = pages.alloc()
    mem.write(frame * PAGE, b"\xee" * PAGE)
    assert pages.valid[frame] == 0
    assert not pages.is_valid(frame, 0, 0)
    pages.set_valid(frame, 600, 1000)
    assert pages.valid[frame] == 0b1110
    got = mem.read(frame * PAGE, PAGE)
    expected = b"\xee" * 512 + bytes(88) + b"\xee" * 1000 + bytes(448) + b"\xee" * 2048
    assert got == expected
    assert pages.is_valid(frame, 512, 1536)
    assert not pages.is_valid(frame, 0, 600)
    assert not pages.test_dirty(frame)
    pages.set_dirty(frame, 1024, 1)
    assert pages.dirty[frame] == 0b100
    assert pages.test_dirty(frame)
    pages.set_validclean(frame, 1024, 512)
    assert pages.dirty[frame] == 0
    pages.set_dirty(frame, 0, PAGE)
    pages.set_invalid(frame, 0, 1024)
    assert (pages.valid[frame], pages.dirty[frame]) == (0xFC, 0xFC)


def test_set_valid_spares_what_is_valid(pages: VmPages) -> None:
    """What if the blocks at the edges of a new valid range are valid already?"""
    frame = pages.alloc(zero=True)
    pages.physmem.write(frame * PAGE, b"\xee" * PAGE)
    pages.set_valid(frame, 100, 1000)
    assert pages.physmem.read(frame * PAGE, PAGE) == b"\xee" * PAGE


def test_check_names_the_wrong_page(pages: VmPages) -> None:
    """What if an owner forgets a page, or claims too many: does check say which?"""
    owner = Owner()
    frame = pages.alloc(1, owner, 3)
    with pytest.raises(Panic, match=f"page {frame} "):
        pages.check()
    owner.map = {3: frame, 4: frame + 1}
    with pytest.raises(Panic, match="counts 2 pages, has 1"):
        pages.check()
    owner.map = {3: frame}
    pages.v_free_count += 1
    with pytest.raises(Panic, match="counted"):
        pages.check()
    pages.v_free_count -= 1
    pages._queue[frame] = PQ_FREE
    with pytest.raises(Panic, match=f"page {frame} "):
        pages.check()
    pages._queue[frame] = PQ_ACTIVE


def test_sysctls(pages: VmPages) -> None:
    """What if the counters are read and the limits set by name, well and badly?"""
    tree = SysctlTree()
    tree.register(pages)
    root = Ucred.root()
    pages.alloc()
    assert tree.get("vm.stats.vm.v_page_count") == "1024"
    assert tree.get("vm.stats.vm.v_free_count") == "1023"
    assert tree.get("vm.stats.vm.v_active_count") == "0"
    with pytest.raises(KError) as caught:
        tree.set("vm.stats.vm.v_free_count", "5", root)
    assert caught.value.errno == EPERM
    tree.set("vm.v_free_reserved", "60", root)
    assert (pages.v_free_reserved, pages.v_free_min) == (60, 64)
    for name, text in [
        ("vm.v_free_reserved", "65"),
        ("vm.v_free_min", "59"),
        ("vm.v_free_target", "1025"),
        ("vm.v_free_min", "-1"),
        ("vm.free_warm_max", "-1"),
    ]:
        with pytest.raises(KError) as caught:
            tree.set(name, text, root)
        assert caught.value.errno == EINVAL
    tree.set("vm.free_warm_max", "0", root)
    assert pages.free_warm_max == 0


def test_statistics_agree_with_an_outside_count(pages: VmPages) -> None:
    """What if an observer counts queues and free frames page by page?"""
    owner = Owner()
    for i in range(30):
        owner.map[i] = pages.alloc(1, owner, i)
    for i in range(0, 30, 3):
        pages.deactivate(owner.map[i])
    for i in range(5):
        pages.wire(owner.map[i])
        pages.hold(owner.map[i + 10])
    stats = pages.statistics()
    queues = [pages.queue(frame) for frame in range(1024)]
    assert stats.v_free_count == queues.count(PQ_FREE) == 994
    assert stats.v_active_count == queues.count(PQ_ACTIVE)
    assert stats.v_inactive_count == queues.count(PQ_INACTIVE)
    assert stats.v_wire_count == sum(pages.wire_count(frame) > 0 for frame in range(1024)) == 5
    assert sum(pages.hold_count(frame) for frame in range(1024)) == 5
    for i in range(5):
        pages.unwire(owner.map[i])
        pages.unhold(owner.map[i + 10])


class PageMachine(RuleBasedStateMachine):
    """Random use of 100 frames (the last run is short) against plain sets."""

    @initialize()
    def boot(self) -> None:
        self.pages = make(100)
        self.owner = Owner()
        self.used: dict[int, bytes] = {}
        self.runs: list[int] = []
        self.held: dict[int, int] = {}
        self.zombies: dict[int, bytes] = {}
        self.next = 0

    def got(self, first: int, n: int, pindex: int, zero: bool) -> None:
        mem = self.pages.physmem
        for frame in range(first, first + n):
            assert frame not in self.used
            assert frame not in self.zombies
            if zero:
                assert mem.read(frame * PAGE, PAGE) == bytes(PAGE)
            stamp = b"%d/%d" % (frame, self.next)
            mem.write(frame * PAGE, stamp)
            self.used[frame] = stamp
            self.owner.map[pindex + frame - first] = frame
        self.next += n

    def gone(self, frame: int) -> None:
        stamp = self.used.pop(frame)
        if frame in self.held:
            self.zombies[frame] = stamp
        pindex = self.pages.lookup(frame)[1]
        del self.owner.map[pindex]

    @rule(
        n=st.sampled_from([1, 1, 1, 2, 5, 16]), zero=st.booleans(), req=st.sampled_from([1, 2, 4])
    )
    def alloc(self, n: int, zero: bool, req: int) -> None:
        free = self.pages.v_free_count
        floor = {1: self.pages.v_free_reserved, 2: self.pages.v_interrupt_free_min, 4: 0}[req]
        try:
            first = self.pages.alloc(n, self.owner, self.next, zero=zero, req=req)
        except KError:
            assert n > 1 or free - n < floor
            assert self.pages.v_free_count == free
            return
        assert free - n >= floor
        self.got(first, n, self.next, zero)

    @rule(zero=st.booleans())
    def alloc_run(self, zero: bool) -> None:
        first = self.pages.alloc_run(self.owner, self.next, zero=zero)
        if first is not None:
            assert first % 16 == 0
            self.got(first, 16, self.next, zero)
            self.runs.append(first)

    @precondition(lambda self: self.used)
    @rule(data=st.data(), count=st.integers(1, 20))
    def free(self, data: st.DataObject, count: int) -> None:
        for _ in range(min(count, len(self.used))):
            frame = data.draw(st.sampled_from(sorted(self.used)))
            self.gone(frame)
            self.pages.free(frame)

    @precondition(lambda self: self.runs)
    @rule()
    def free_run(self) -> None:
        first = self.runs.pop(0)
        whole = range(first, first + 16)
        pindexes = {self.pages.lookup(f)[1] - f for f in whole if f in self.used}
        if all(f in self.used for f in whole) and len(pindexes) == 1:
            for frame in whole:
                self.gone(frame)
            self.pages.free_run(first)

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        frame = data.draw(st.sampled_from(sorted(self.used)))
        self.pages.hold(frame)
        self.held[frame] = self.held.get(frame, 0) + 1

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def unhold(self, data: st.DataObject) -> None:
        frame = data.draw(st.sampled_from(sorted(self.held)))
        self.pages.unhold(frame)
        self.held[frame] -= 1
        if not self.held[frame]:
            del self.held[frame]
            self.zombies.pop(frame, None)

    @rule(keep=st.sampled_from([0, 16, 64]))
    def trim(self, keep: int) -> None:
        self.pages.free_warm_max = keep
        self.pages.trim()
        assert self.pages.warm_pages() < keep + 16

    @invariant()
    def all_agree(self) -> None:
        if not hasattr(self, "pages"):
            return
        self.pages.check(contents=True)
        busy = len(self.used) + len(self.zombies)
        assert self.pages.v_free_count == 100 - busy
        for frame, stamp in (self.used | self.zombies).items():
            assert self.pages.physmem.read(frame * PAGE, len(stamp)) == stamp

    def teardown(self) -> None:
        if hasattr(self, "pages"):
            self.pages.physmem.close()


TestPageMachine = PageMachine.TestCase
TestPageMachine.settings = settings(max_examples=60, stateful_step_count=40)


@pytest.mark.slow
def test_page_machine_at_length() -> None:
    """What if the same machine runs twenty times as long?"""
    run_state_machine_as_test(
        PageMachine, settings=settings(max_examples=800, stateful_step_count=60)
    )
