"""VM objects against a plain sparse model, with memory so small that it often runs out."""

from __future__ import annotations

import sys
from collections.abc import Iterator

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
from dfuser.libkern.errno import EFBIG, EINVAL, ENOMEM, ENXIO, KError, Panic
from dfuser.vm.object import OBJT_DEAD, OBJT_VNODE, OFF_MAX, PageViews, VmObject
from dfuser.vm.page import VM_ALLOC_INTERRUPT, VmPages

PAGE = 4096
CHUNK = 65536


@pytest.fixture
def pages() -> Iterator[VmPages]:
    phys = PhysMem(1024 * PAGE)
    pages = VmPages(phys)
    yield pages
    pages.check(contents=True)
    assert pages.v_free_count == pages.v_page_count, "pages leaked"
    phys.close()


@pytest.fixture
def obj(pages: VmPages) -> Iterator[VmObject]:
    obj = VmObject(pages)
    yield obj
    if obj.kind is not OBJT_DEAD:
        obj.drop()


def errno_of(call: object, *args: object) -> int:
    with pytest.raises(KError) as caught:
        call(*args)  # type: ignore[operator]
    number = caught.value.errno
    assert number is not None
    return number


def frames(obj: VmObject, count: int) -> list[int]:
    return [obj.vm_page_lookup(i) for i in range(count)]


def is_run(found: list[int]) -> bool:
    return found == list(range(found[0], found[0] + len(found))) and found[0] % 16 == 0


def test_empty_object_is_small(pages: VmPages) -> None:
    """What if there are a million empty objects: what does each cost?"""
    assert sys.getsizeof(VmObject(pages)) <= 150


def test_one_byte_costs_one_page(pages: VmPages, obj: VmObject) -> None:
    """What if a file of one byte is written?"""
    before = pages.v_free_count
    assert obj.write(0, b"x") == 1
    assert pages.v_free_count == before - 1
    assert (obj.size, obj.resident_page_count, obj.resident) == (1, 1, PAGE)
    assert obj.read(0, 100) == b"x"


def test_small_file_takes_no_page_too_many(pages: VmPages, obj: VmObject) -> None:
    """What if a file grows byte for byte over its first pages?"""
    for size in range(0, 3 * PAGE, 1000):
        obj.write(size, b"y" * 1000)
        assert obj.resident_page_count == -(-(size + 1000) // PAGE)


def test_large_writes_take_runs(obj: VmObject) -> None:
    """What if whole chunks are written at once: are their frames contiguous runs?"""
    obj.write(0, bytes(range(256)) * (3 * CHUNK // 256))
    for chunk in range(3):
        assert is_run(frames(obj, 48)[chunk * 16 : chunk * 16 + 16])
    assert obj.read(0, 3 * CHUNK) == bytes(range(256)) * (3 * CHUNK // 256)


def test_file_written_in_order_becomes_runs(obj: VmObject) -> None:
    """What if a file is appended in small pieces by a single writer?"""
    data = bytes(i * 7 % 251 for i in range(2 * CHUNK))
    for pos in range(0, len(data), 10240):
        obj.write(pos, data[pos : pos + 10240])
    assert is_run(frames(obj, 32)[:16])
    assert is_run(frames(obj, 32)[16:])
    assert obj.read(0, len(data)) == data


def test_singles_keep_their_content_when_the_file_grows(obj: VmObject) -> None:
    """What if a small file of scattered pages grows past 64 KiB and is overwritten?"""
    obj.write(5 * PAGE, b"five")
    obj.write(2 * PAGE, b"two")
    before = frames(obj, 6)
    obj.write(CHUNK - 10, b"z" * (CHUNK + 20))
    assert frames(obj, 6)[2] == before[2]
    assert frames(obj, 6)[5] == before[5]
    assert obj.read(2 * PAGE, 4) == b"two\0"
    assert obj.read(5 * PAGE, 5) == b"five\0"
    assert is_run(frames(obj, 32)[16:])


def test_fallback_to_single_pages(pages: VmPages, obj: VmObject) -> None:
    """What if no whole run is free, but sixteen pages here and there are?"""
    kept = [pages.alloc(req=VM_ALLOC_INTERRUPT) for _ in range(pages.v_free_count)]
    for frame in kept[::2]:
        pages.free(frame)
    assert pages.alloc_run() is None
    data = b"ab" * CHUNK
    assert obj.write(0, data) == len(data)
    assert not is_run(frames(obj, 16))
    assert obj.read(0, len(data)) == data
    pages.check()
    pages.free_pages(kept[1::2])


def test_freeing_part_of_a_run(pages: VmPages, obj: VmObject) -> None:
    """What if a hole is punched into a run and the file cut inside of another?"""
    obj.write(0, b"r" * (2 * CHUNK))
    obj.punch(4 * PAGE, 2 * PAGE)
    obj.truncate(CHUNK + 3 * PAGE + 1)
    assert obj.resident_page_count == 14 + 4
    assert frames(obj, 6)[4:] == [-1, -1]
    pages.check()
    assert obj.read(0, 3 * CHUNK) == (
        b"r" * (4 * PAGE) + bytes(2 * PAGE) + b"r" * (CHUNK - 3 * PAGE + 1)
    )


def test_truncate_zeroes_the_tail(obj: VmObject) -> None:
    """What if a file is cut inside a page and grown again: does old data come back?"""
    obj.write(0, b"s" * 5000)
    obj.truncate(4200)
    obj.truncate(6000)
    assert obj.read(0, 6000) == b"s" * 4200 + bytes(1800)
    obj.truncate(0)
    assert obj.resident_page_count == 0
    obj.truncate(10)
    assert obj.read(0, 10) == bytes(10)


def test_recycled_pages_show_nothing_old(pages: VmPages) -> None:
    """What if secrets are freed and their frames reused for partly written pages?"""
    secret = VmObject(pages)
    secret.write(0, b"SECRET!!" * (pages.v_free_count - pages.v_free_reserved) * 512)
    secret.drop()
    other = VmObject(pages)
    for i in range(400):
        other.write(i * PAGE + 100, b"x")
    assert b"S" not in other.read(0, 400 * PAGE)
    other.drop()


def test_holes_cost_nothing_and_read_as_zero(pages: VmPages, obj: VmObject) -> None:
    """What if one byte is written at the largest offset there is?"""
    before = pages.v_free_count
    obj.write(OFF_MAX - 1, b"e")
    assert obj.size == OFF_MAX
    assert pages.v_free_count == before - 1
    assert obj.read(1 << 40, 100) == bytes(100)
    assert obj.read(OFF_MAX - 3, 100) == b"\0\0e"[-3:]
    assert obj.seek_data(0) == (OFF_MAX - 1) // PAGE * PAGE
    assert obj.seek_hole(0) == 0
    obj.zero_range(0, OFF_MAX)
    assert obj.read(OFF_MAX - 3, 100) == bytes(3)
    obj.truncate(OFF_MAX - PAGE)
    assert obj.resident_page_count == 0
    assert errno_of(obj.seek_data, 0) == ENXIO


@pytest.mark.parametrize(
    ("name", "args", "number"),
    [
        ("write", (OFF_MAX, b"x"), EFBIG),
        ("write", (OFF_MAX - 1, b"xy"), EFBIG),
        ("write", (-1, b"x"), EINVAL),
        ("truncate", (-1,), EINVAL),
        ("truncate", (OFF_MAX + 1,), EFBIG),
        ("read", (-1, 1), EINVAL),
        ("read", (-5000, 5001), EINVAL),
        ("read", (0, -1), EINVAL),
        ("readinto", (-1, bytearray(3)), EINVAL),
        ("views", (-1, 1), EINVAL),
        ("views", (0, -1), EINVAL),
        ("populate", (-1, 1), EINVAL),
        ("populate", (0, OFF_MAX), ENOMEM),
        ("populate", (1, OFF_MAX), EFBIG),
        ("zero_range", (0, -1), EINVAL),
        ("punch", (1, OFF_MAX), EFBIG),
        ("seek_data", (-1,), EINVAL),
        ("seek_hole", (-1,), EINVAL),
        ("seek_hole", (10,), ENXIO),
        ("seek_data", (10,), ENXIO),
    ],
)
def test_bad_ranges(obj: VmObject, name: str, args: tuple[object, ...], number: int) -> None:
    """What if an offset or size is negative or beyond the largest file?"""
    obj.write(0, b"0123456789")
    assert errno_of(getattr(obj, name), *args) == number
    assert (obj.size, obj.read(0, 20), obj.resident_page_count) == (10, b"0123456789", 1)


def test_write_of_a_wrong_type_changes_nothing(obj: VmObject) -> None:
    """What if data is a string or is not contiguous?"""
    for bad in ("text", memoryview(b"abcdef")[::2]):
        with pytest.raises(TypeError):
            obj.write(0, bad)  # type: ignore[arg-type]
    assert obj.resident_page_count == 0
    assert obj.size == 0


def test_enomem_changes_nothing(pages: VmPages, obj: VmObject) -> None:
    """What if a write needs one page more than there are?"""
    obj.write(PAGE + 10, b"old" * 3000)
    hog = [pages.alloc() for _ in range(pages.v_free_count - pages.v_free_reserved - 20)]
    state = (obj.size, obj.read(0, obj.size), frames(obj, 40), pages.v_free_count)
    assert errno_of(obj.write, 0, b"n" * (25 * PAGE)) == ENOMEM
    assert errno_of(obj.populate, CHUNK, 21 * PAGE) == ENOMEM
    assert (obj.size, obj.read(0, obj.size), frames(obj, 40), pages.v_free_count) == state
    assert obj.write(0, b"n" * (20 * PAGE)) == 20 * PAGE
    pages.free_pages(hog)


def test_shortage_hook_may_shrink_the_written_object(pages: VmPages, obj: VmObject) -> None:
    """What if making room for a write frees pages of the very object that is written?"""
    obj.write(0, b"a" * (2 * CHUNK))
    hog = [pages.alloc() for _ in range(pages.v_free_count - pages.v_free_reserved - 3)]

    def reclaim(wanted: int) -> None:
        obj.punch(0, CHUNK)
        if hog:
            pages.free_pages(hog)
            hog.clear()

    pages.shortage.append(reclaim)
    obj.write(CHUNK - PAGE, b"b" * (CHUNK + 5 * PAGE))
    assert obj.read(0, obj.size) == bytes(CHUNK - PAGE) + b"b" * (CHUNK + 5 * PAGE)
    pages.check()
    pages.shortage.clear()


def test_shortage_hook_is_counted_again(pages: VmPages, obj: VmObject) -> None:
    """What if the hook takes away a page of the written range that gives no memory back?"""
    obj.write(0, b"a" * (2 * CHUNK))
    views = obj.views(0, 2 * CHUNK)
    hog = [pages.alloc() for _ in range(pages.v_free_count - pages.v_free_reserved - 3)]

    def reclaim(wanted: int) -> None:
        if obj.resident_page_count == 32:
            obj.punch(15 * PAGE, PAGE)
            pages.free(hog.pop())

    pages.shortage.append(reclaim)
    assert errno_of(obj.write, 15 * PAGE, b"b" * (21 * PAGE)) == ENOMEM
    assert obj.resident_page_count == 31
    assert pages.v_free_count >= pages.v_free_reserved
    pages.shortage.clear()
    views.release()
    pages.free_pages(hog)


def test_populate_makes_later_writes_safe(pages: VmPages, obj: VmObject) -> None:
    """What if space is preallocated and memory then runs out?"""
    obj.populate(100, 10 * PAGE)
    assert obj.size == 0
    assert obj.resident_page_count == 11
    hog = [pages.alloc() for _ in range(pages.v_free_count - pages.v_free_reserved)]
    assert obj.write(100, b"w" * (10 * PAGE)) == 10 * PAGE
    assert errno_of(obj.write, 11 * PAGE, b"x") == ENOMEM
    pages.free_pages(hog)


def test_views_keep_their_pages(pages: VmPages, obj: VmObject) -> None:
    """What if a file is destroyed while a reply still shows its pages?"""
    obj.write(10, b"v" * (CHUNK + 3 * PAGE))
    obj.truncate(2 * CHUNK)
    views = obj.views(0, 1 << 40)
    assert views.size == 2 * CHUNK
    joined = b"".join(views.buffers)
    assert joined == obj.read(0, 2 * CHUNK)
    obj.drop()
    assert pages.statistics().v_hold_count == 20
    assert b"".join(views.buffers) == joined
    pages.check()
    views.release()
    views.release()
    assert pages.statistics().v_hold_count == 0
    assert pages.v_free_count == pages.v_page_count


def test_views_of_the_same_page_twice(pages: VmPages, obj: VmObject) -> None:
    """What if two replies show one page, which is freed in between?"""
    obj.write(0, b"same")
    one, two = obj.views(0, 4), obj.views(1, 2)
    obj.truncate(0)
    one.release()
    assert bytes(two.buffers[0]) == b"am"
    pages.check()
    two.release()


def test_references(pages: VmPages) -> None:
    """What if an object is shared, dropped, and used after its end?"""
    obj = VmObject(pages)
    obj.write(0, b"x")
    obj.ref()
    obj.drop()
    assert obj.read(0, 1) == b"x"
    obj.drop()
    assert obj.kind is OBJT_DEAD
    assert pages.v_free_count == pages.v_page_count
    assert obj.read(0, 1) == b""
    for call in (obj.drop, obj.ref, lambda: obj.write(0, b"x"), lambda: obj.truncate(3)):
        with pytest.raises(Panic):
            call()


def test_seek_walks_data_and_holes(obj: VmObject) -> None:
    """What if a sparse file is walked from data to hole to data?"""
    obj.write(2 * PAGE + 5, b"d")
    obj.write(CHUNK, b"r" * CHUNK)
    obj.write(1 << 30, b"far")
    spans = []
    pos = 0
    for _ in range(3):
        start = obj.seek_data(pos)
        pos = obj.seek_hole(start)
        spans.append((start, pos))
    assert errno_of(obj.seek_data, pos) == ENXIO
    assert spans == [
        (2 * PAGE, 3 * PAGE),
        (CHUNK, 2 * CHUNK),
        (1 << 30, (1 << 30) + 3),
    ]


def test_reserved_pages_are_holes_until_written(pages: VmPages, obj: VmObject) -> None:
    """What if pages are only reserved: are they there, and holes, until the first write?"""
    obj.truncate(3 * CHUNK)
    obj.populate(0, 3 * CHUNK)
    assert obj.resident_page_count == 48
    assert is_run(frames(obj, 16))
    assert errno_of(obj.seek_data, 0) == ENXIO
    assert obj.seek_hole(5) == 5
    obj.write(CHUNK + 10, b"x")
    assert (obj.seek_data(0), obj.seek_hole(CHUNK)) == (CHUNK, CHUNK + PAGE)
    obj.write(CHUNK - 5, b"y" * (CHUNK + 10))
    assert (obj.seek_data(0), obj.seek_hole(CHUNK)) == (CHUNK - PAGE, 2 * CHUNK + PAGE)
    assert obj.resident_page_count == 48
    obj.zero_range(CHUNK, PAGE + 1)
    assert (obj.seek_hole(CHUNK), obj.seek_data(CHUNK)) == (CHUNK, CHUNK + PAGE)
    assert obj.read(CHUNK + PAGE, 2) == b"\0y"
    obj.truncate(0)
    assert not obj.reserved


def test_reservation_beyond_the_end(pages: VmPages, obj: VmObject) -> None:
    """What if pages are reserved beyond the end and the size is set to what it is?"""
    obj.write(0, b"abc")
    obj.populate(0, 4 * PAGE)
    obj.truncate(10)
    assert obj.resident_page_count == 4
    obj.truncate(10)
    assert obj.resident_page_count == 1
    obj.populate(0, 4 * PAGE)
    obj.punch(PAGE, 2 * PAGE)
    assert (obj.resident_page_count, obj.size) == (2, 10)


def test_copy_range_inside_one_object(obj: VmObject) -> None:
    """What if a range is copied within its file, overlapping or not?"""
    obj.write(0, b"0123456789")
    assert obj.copy_range(0, obj, 10, 10) == 10
    assert obj.read(0, 30) == b"0123456789" * 2
    assert errno_of(obj.copy_range, 0, obj, 5, 10) == EINVAL
    assert obj.copy_range(15, obj, 0, 100) == 5
    assert obj.read(0, 10) == b"5678956789"


def test_vnode_objects_track_dirty_blocks(pages: VmPages) -> None:
    """What if a file with backing store is written: which 512-byte blocks must go out?"""
    obj = VmObject(pages, OBJT_VNODE)
    obj.write(PAGE + 600, b"d" * 1000)
    frame = obj.vm_page_lookup(1)
    assert pages.dirty[frame] == 0b00001110
    pages.clear_dirty(frame, 0, PAGE)
    obj.write(PAGE, b"x")
    assert pages.dirty[frame] == 1
    obj.truncate(2 * PAGE)
    obj.zero_range(PAGE + 4000, 10)
    assert pages.dirty[frame] == 0b10000001
    obj.drop()


def test_anonymous_pages_are_valid_and_dirty(pages: VmPages, obj: VmObject) -> None:
    """What if pages have no backing store: is every one of them marked as the only copy?"""
    obj.write(3, b"x")
    obj.write(CHUNK, b"y" * CHUNK)
    for frame in [obj.vm_page_lookup(0), *(obj.vm_page_lookup(i) for i in range(16, 32))]:
        assert (pages.valid[frame], pages.dirty[frame]) == (0xFF, 0xFF)


BASES = st.sampled_from([0, PAGE, CHUNK, 2 * CHUNK, 3 * CHUNK, 1 << 40, (1 << 62) + CHUNK])
NEAR = st.one_of(st.sampled_from([-PAGE, -1, 0, 0, 0, 1, PAGE]), st.integers(-9000, 70000))
SIZES = st.one_of(
    st.sampled_from([0, 1, 512, PAGE - 1, PAGE, PAGE + 1, CHUNK, CHUNK + PAGE, 2 * CHUNK]),
    st.integers(0, 3 * CHUNK),
)
WHICH = st.integers(0, 1)


@st.composite
def offsets(draw: st.DrawFn) -> int:
    return max(0, draw(BASES) + draw(NEAR))


class Model:
    """A file as a dictionary of the pages that must be resident."""

    def __init__(self) -> None:
        self.size = 0
        self.pages: dict[int, bytearray] = {}
        self.data: set[int] = set()  # pages that are not only reserved

    def touch(self, offset: int, end: int) -> None:
        for i in range(offset // PAGE, -(-end // PAGE)):
            self.pages.setdefault(i, bytearray(PAGE))

    def put(self, offset: int, data: bytes) -> None:
        if not data:
            return
        self.touch(offset, offset + len(data))
        self.data.update(range(offset // PAGE, -(-(offset + len(data)) // PAGE)))
        pos = 0
        while pos < len(data):
            page, base = divmod(offset + pos, PAGE)
            take = min(PAGE - base, len(data) - pos)
            self.pages[page][base : base + take] = data[pos : pos + take]
            pos += take
        self.size = max(self.size, offset + len(data))

    def get(self, offset: int, size: int) -> bytes:
        end = min(offset + size, self.size)
        out = bytearray(max(0, end - offset))
        for i, page in self.pages.items():
            start, stop = max(offset, i * PAGE), min(end, (i + 1) * PAGE)
            if start < stop:
                out[start - offset : stop - offset] = page[start - i * PAGE : stop - i * PAGE]
        return bytes(out)

    def pieces(self, offset: int, end: int) -> list[tuple[bool, int, int]]:
        out: list[tuple[bool, int, int]] = []
        while offset < end:
            stop = min(end, offset // PAGE * PAGE + PAGE)
            data = offset // PAGE in self.pages
            if out and out[-1][0] == data:
                out[-1] = (data, out[-1][1], stop)
            else:
                out.append((data, offset, stop))
            offset = stop
        return out

    def zero(self, offset: int, end: int) -> None:
        for i, page in self.pages.items():
            start, stop = max(offset, i * PAGE), min(end, (i + 1) * PAGE)
            if start < stop:
                page[start - i * PAGE : stop - i * PAGE] = bytes(stop - start)

    def drop(self, first: int, stop: int) -> None:
        self.pages = {i: page for i, page in self.pages.items() if not first <= i < stop}
        self.data &= self.pages.keys()

    def truncate(self, size: int) -> None:
        if size <= self.size:
            self.drop(-(-size // PAGE), 1 << 60)
            self.zero(size, self.size)
        self.size = size

    def zero_range(self, offset: int, size: int) -> None:
        end = offset + size
        self.zero(offset, end)
        first, stop = -(-offset // PAGE), min(end // PAGE, self.size // PAGE)
        if end >= self.size:
            stop = -(-self.size // PAGE)
        self.data = {i for i in self.data if not first <= i < stop}

    def punch(self, offset: int, size: int) -> None:
        first, stop = -(-offset // PAGE), (offset + size) // PAGE
        self.zero(offset, offset + size)
        if first < stop:
            self.drop(first, stop)


class ObjectMachine(RuleBasedStateMachine):
    """Two objects and a hog share 96 pages; the model says what must be where."""

    @initialize()
    def boot(self) -> None:
        self.phys = PhysMem(98 * PAGE)
        self.pages = VmPages(self.phys)
        self.objects = [VmObject(self.pages) for _ in range(2)]
        self.models = [Model() for _ in range(2)]
        self.hog: list[int] = []
        self.views: list[tuple[PageViews, int]] = []
        self.counter = 0

    def data(self, size: int) -> bytes:
        self.counter += 1
        return bytes((self.counter + i) % 255 + 1 for i in range(97)) * (size // 97 + 1)

    def fits(self, model: Model, offset: int, end: int) -> bool:
        if offset == end:
            return True
        wanted = sum(i not in model.pages for i in range(offset // PAGE, -(-end // PAGE)))
        return not wanted or self.pages.v_free_count - wanted >= self.pages.v_free_reserved

    @rule(which=WHICH, offset=offsets(), size=SIZES)
    def write(self, which: int, offset: int, size: int) -> None:
        obj, model = self.objects[which], self.models[which]
        data = self.data(size)[:size]
        if self.fits(model, offset, offset + size):
            assert obj.write(offset, data) == size
            model.put(offset, data)
        else:
            assert errno_of(obj.write, offset, data) == ENOMEM

    @rule(which=WHICH, step=st.sampled_from([1000, 4096, 10240]), count=st.integers(1, 12))
    def append(self, which: int, step: int, count: int) -> None:
        for _ in range(count):
            self.write(which, self.models[which].size % (4 * CHUNK), step)

    @rule(which=WHICH, offset=offsets(), size=SIZES)
    def populate(self, which: int, offset: int, size: int) -> None:
        obj, model = self.objects[which], self.models[which]
        if self.fits(model, offset, offset + size):
            obj.populate(offset, size)
            if size:
                model.touch(offset, offset + size)
        else:
            assert errno_of(obj.populate, offset, size) == ENOMEM

    @rule(which=WHICH, size=offsets())
    def truncate(self, which: int, size: int) -> None:
        self.objects[which].truncate(size)
        self.models[which].truncate(size)

    @rule(which=WHICH, offset=offsets(), size=SIZES)
    def zero_range(self, which: int, offset: int, size: int) -> None:
        self.objects[which].zero_range(offset, size)
        self.models[which].zero_range(offset, size)

    @rule(which=WHICH, offset=offsets(), size=SIZES)
    def punch(self, which: int, offset: int, size: int) -> None:
        self.objects[which].punch(offset, size)
        self.models[which].punch(offset, size)

    @rule(which=WHICH, offset=offsets(), size=SIZES)
    def read(self, which: int, offset: int, size: int) -> None:
        obj, expected = self.objects[which], self.models[which].get(offset, size)
        assert obj.read(offset, size) == expected
        buffer = bytearray(size)
        assert obj.readinto(offset, buffer) == len(expected)
        assert buffer[: len(expected)] == expected
        views = obj.views(offset, size)
        assert b"".join(views.buffers) == expected
        views.release()

    @precondition(lambda self: len(self.views) < 3)
    @rule(which=WHICH, offset=offsets(), size=SIZES)
    def open_views(self, which: int, offset: int, size: int) -> None:
        views = self.objects[which].views(offset, size)
        self.views.append((views, views.size))

    @precondition(lambda self: self.views)
    @rule()
    def release_views(self) -> None:
        views, size = self.views.pop(0)
        assert len(b"".join(views.buffers)) == size
        views.release()

    @rule(which=WHICH, offset=offsets())
    def seek(self, which: int, offset: int) -> None:
        obj, model = self.objects[which], self.models[which]
        starts = [max(offset, i * PAGE) for i in sorted(model.data) if (i + 1) * PAGE > offset]
        if starts and starts[0] < model.size:
            assert obj.seek_data(offset) == starts[0]
        else:
            assert errno_of(obj.seek_data, offset) == ENXIO
        if offset >= model.size:
            assert errno_of(obj.seek_hole, offset) == ENXIO
        else:
            page = offset // PAGE
            while page in model.data:
                page += 1
            assert obj.seek_hole(offset) == min(max(offset, page * PAGE), model.size)

    @rule(source=WHICH, onto=WHICH, offset=offsets(), to=offsets(), size=SIZES)
    def copy_range(self, source: int, onto: int, offset: int, to: int, size: int) -> None:
        src, dst, model = self.objects[source], self.objects[onto], self.models[onto]
        size = min(size, max(0, src.size - offset))
        if source == onto and offset < to + size and to < offset + size:
            assert errno_of(src.copy_range, offset, dst, to, size) == EINVAL
            return
        pieces = self.models[source].pieces(offset, offset + size)
        shift = to - offset
        wanted = sum(
            page not in model.pages
            for data, start, stop in pieces
            if data
            for page in range((start + shift) // PAGE, -(-(stop + shift) // PAGE))
        )
        if wanted and self.pages.v_free_count - wanted < self.pages.v_free_reserved:
            assert errno_of(src.copy_range, offset, dst, to, size) == ENOMEM
            return
        assert src.copy_range(offset, dst, to, size) == size
        for data, start, stop in pieces:
            if data:
                model.put(start + shift, self.models[source].get(start, stop - start))
        for data, start, stop in pieces:
            if not data:
                model.punch(start + shift, stop - start)
        if size:
            model.size = max(model.size, to + size)

    @rule(which=WHICH)
    def replace(self, which: int) -> None:
        self.objects[which].drop()
        self.objects[which] = VmObject(self.pages)
        self.models[which] = Model()

    @rule(count=st.integers(1, 40))
    def eat(self, count: int) -> None:
        for _ in range(count):
            try:
                self.hog.append(self.pages.alloc())
            except KError:
                return

    @rule(step=st.integers(1, 3))
    def vomit(self, step: int) -> None:
        self.pages.free_pages(self.hog[::step])
        del self.hog[::step]

    @rule()
    def trim(self) -> None:
        self.pages.free_warm_max = 16
        self.pages.trim()

    @invariant()
    def everything_is_where_it_must_be(self) -> None:
        if not hasattr(self, "pages"):
            return
        self.pages.check(contents=True)
        held = self.pages.statistics().v_hold_count
        used = sum(obj.resident_page_count for obj in self.objects) + len(self.hog)
        assert used + held + self.pages.v_free_count == self.pages.v_page_count
        for obj, model in zip(self.objects, self.models, strict=True):
            assert obj.size == model.size
            assert obj.resident_page_count == len(model.pages)
            for i, page in model.pages.items():
                frame = obj.vm_page_lookup(i)
                assert frame >= 0
                assert self.phys.read(frame * PAGE, PAGE) == page
                assert bool(self.pages.dirty[frame]) == (i in model.data)

    def teardown(self) -> None:
        if not hasattr(self, "pages"):
            return
        for obj in self.objects:
            obj.drop()
        for views, _ in self.views:
            views.release()
        self.pages.free_pages(self.hog)
        assert self.pages.v_free_count == self.pages.v_page_count
        self.phys.close()


TestObjectMachine = ObjectMachine.TestCase
TestObjectMachine.settings = settings(max_examples=60, stateful_step_count=30)


@pytest.mark.slow
def test_object_machine_at_length() -> None:
    """What if the same machine runs twenty times as long?"""
    run_state_machine_as_test(
        ObjectMachine, settings=settings(max_examples=500, stateful_step_count=50)
    )
