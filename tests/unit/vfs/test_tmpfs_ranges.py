"""Ranges of tmpfs files at a limit: against a model that counts pages, and against the host."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from dfuser.hw.clock import VirtualClock
from dfuser.hw.physmem import PhysMem
from dfuser.libkern.errno import EFBIG, EINVAL, EIO, ENOSPC, ENXIO, KError
from dfuser.libkern.fcntl import O_RDWR, SEEK_DATA, SEEK_HOLE
from dfuser.libkern.klist import NOTE_EXTEND, NOTE_WRITE
from dfuser.vfs import syscalls as sc
from dfuser.vfs.event import VnodeKnote
from dfuser.vfs.file import File
from dfuser.vfs.syscalls.range import COPY_MAX
from dfuser.vfs.tmpfs.mount import TmpfsMount
from dfuser.vfs.tmpfs.vfsops import TmpfsVfsOps
from dfuser.vfs.vfs import Vfs
from dfuser.vm.object import VmObject
from dfuser.vm.page import VmPages
from tests.conform.world import ROOT, World, errno
from tests.unit.vm.test_object import Model

PAGE = 4096
LIMIT = 24
KEEP, PUNCH, ZERO = 1, 2, 16
MODES = (0, KEEP, PUNCH | KEEP, ZERO, ZERO | KEEP)


class Box:
    """A kernel with memory, and tmpfs mounts of so many pages."""

    def __init__(self, memory: int = 4 << 20) -> None:
        self.physmem = PhysMem(memory)
        self.pages = VmPages(self.physmem)
        self.free = self.pages.v_free_count
        self.vfs = Vfs(clock=VirtualClock(), pages=self.pages)
        self.vfs.fstypes.register("tmpfs", TmpfsVfsOps)

    def mount(self, on: bytes = b"", **options: str) -> World:
        """The root, or a mount on a new directory of it."""
        place = sc.kern_mkdir(self.vfs, self.vfs.rootnch, on, 0o755, ROOT) if on else None
        mp = self.vfs.mounts.mount("tmpfs", "tmpfs", place, options, 0, ROOT)
        return World(self.vfs, self.vfs.cache.hold(mp.ncmountpt), mp.data.check)

    def close(self) -> None:
        self.vfs.close()
        assert self.pages.v_free_count == self.free
        self.pages.check(contents=True)
        self.physmem.close()


@pytest.fixture
def box() -> Iterator[Box]:
    made = Box()
    yield made
    made.close()


def tm_of(w: World) -> TmpfsMount:
    tm = w.top.mount.data
    assert isinstance(tm, TmpfsMount)
    return tm


def spots(file: File, size: int) -> list[tuple[int, int]]:
    """Every piece of data as lseek finds it."""
    found, pos = [], 0
    while pos < size:
        try:
            start = sc.kern_lseek(file, pos, SEEK_DATA)
        except KError as error:
            if error.errno != ENXIO:
                raise
            break
        pos = sc.kern_lseek(file, start, SEEK_HOLE)
        found.append((start, pos))
    return found


OFFSETS = st.one_of(st.integers(0, LIMIT).map(lambda n: n * PAGE), st.integers(0, LIMIT * PAGE))
SIZES = st.one_of(
    st.integers(1, LIMIT).map(lambda n: n * PAGE), st.integers(1, 3 * PAGE), st.just(30 * PAGE)
)
WHICH = st.integers(0, 1)


class RangeMachine(RuleBasedStateMachine):
    """Two files share 24 pages; the model says which are there, which hold data, and what."""

    @initialize()
    def boot(self) -> None:
        self.box = Box()
        self.w = self.box.mount(size=f"{LIMIT * 4}k")
        self.files = [self.w.create(b"a"), self.w.create(b"b")]
        self.models = [Model(), Model()]
        self.counter = 0

    @property
    def left(self) -> int:
        return LIMIT - sum(len(model.pages) for model in self.models)

    def fitting(self, model: Model, offset: int, end: int) -> int:
        """Where a write must stop for want of room."""
        left = self.left
        for page in range(offset // PAGE, -(-end // PAGE)):
            left -= page not in model.pages
            if left < 0:
                return max(offset, page * PAGE)
        return end

    @rule(which=WHICH, offset=OFFSETS, size=SIZES)
    def write(self, which: int, offset: int, size: int) -> None:
        self.counter += 1
        data = bytes((self.counter + i) % 255 + 1 for i in range(97)) * (size // 97 + 1)
        model, file = self.models[which], self.files[which]
        fits = self.fitting(model, offset, offset + size) - offset
        if not fits:
            with errno(ENOSPC):
                sc.kern_write(file, offset, data[:size])
            return
        assert sc.kern_write(file, offset, data[:size]) == fits
        model.put(offset, data[:fits])

    @rule(which=WHICH, offset=OFFSETS, size=SIZES, mode=st.sampled_from(MODES))
    def fallocate(self, which: int, offset: int, size: int, mode: int) -> None:
        model, file, end = self.models[which], self.files[which], offset + size
        if mode & PUNCH:
            sc.kern_fallocate(file, mode, offset, size)
            model.punch(offset, size)
            return
        if self.fitting(model, offset, end) < end:
            refused = tm_of(self.w).refused
            with errno(ENOSPC):
                sc.kern_fallocate(file, mode, offset, size)
            assert tm_of(self.w).refused == refused + 1
            return
        sc.kern_fallocate(file, mode, offset, size)
        model.touch(offset, end)
        if mode & ZERO:
            model.zero_range(offset, size)
        if not mode & KEEP:
            model.size = max(model.size, end)

    @rule(which=WHICH, size=OFFSETS)
    def truncate(self, which: int, size: int) -> None:
        self.w.setattr((b"a", b"b")[which], size=size)
        self.models[which].truncate(size)

    @rule(source=WHICH, onto=WHICH, offset=OFFSETS, to=OFFSETS, size=SIZES)
    def copy(self, source: int, onto: int, offset: int, to: int, size: int) -> None:
        model, files = self.models[source], self.files
        size = max(0, min(size, model.size - offset))
        if source == onto and size and offset < to + size and to < offset + size:
            with errno(EINVAL):
                sc.kern_copy_file_range(files[source], offset, files[onto], to, size)
            return
        done = 0
        try:
            done = sc.kern_copy_file_range(files[source], offset, files[onto], to, size)
        except KError as error:
            if error.errno != ENOSPC:
                raise
            assert offset // PAGE in model.data
            target = self.models[onto]
            assert self.fitting(target, to, to + 1) == to
        expected = self.copied(source, onto, offset, to, size)
        assert done == expected

    def copied(self, source: int, onto: int, offset: int, to: int, size: int) -> int:
        """Do the copy in the model, page by page of the source; how far it came."""
        model, target = self.models[source], self.models[onto]
        pos, end, shift = offset, offset + size, to - offset
        while pos < end:
            data = pos // PAGE in model.data
            stop = pos
            while stop < end and (stop // PAGE in model.data) is data:
                stop = min(end, stop // PAGE * PAGE + PAGE)
            if not data:
                target.punch(pos + shift, stop - pos)
                pos = stop
                continue
            fits = self.fitting(target, pos + shift, stop + shift) - shift
            target.put(pos + shift, model.get(pos, fits - pos))
            pos = fits
            if fits < stop:
                break
        if pos > offset:
            target.size = max(target.size, pos + shift)
        return pos - offset

    @invariant()
    def everything_agrees(self) -> None:
        if not hasattr(self, "w"):
            return
        self.w.check()
        assert self.w.statfs().bfree == self.left
        for name, file, model in zip((b"a", b"b"), self.files, self.models, strict=True):
            va = self.w.stat(name)
            assert (va.size, va.bytes) == (model.size, len(model.pages) * PAGE)
            assert sc.kern_read(file, 0, model.size) == model.get(0, model.size)
            spans: list[tuple[int, int]] = []
            for page in sorted(model.data):
                start, stop = page * PAGE, min(model.size, page * PAGE + PAGE)
                if start >= model.size:
                    break
                if spans and spans[-1][1] == start:
                    spans[-1] = (spans[-1][0], stop)
                else:
                    spans.append((start, stop))
            assert spots(file, model.size) == spans

    def teardown(self) -> None:
        if hasattr(self, "w"):
            for file in self.files:
                file.drop()
            self.w.close()
            self.box.close()


TestRangeMachine = RangeMachine.TestCase
TestRangeMachine.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)


# --- the host -------------------------------------------------------------------------------


def host_tmpfs() -> str | None:
    """A directory on a tmpfs of the host."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "tmpfs" and os.access(place, os.W_OK) and "noswap" not in line:
            return place
    return None


class HostFile:
    """A file on the host's tmpfs."""

    def __init__(self, directory: str) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.fd, name = tempfile.mkstemp(dir=directory)
        os.unlink(name)

    def fallocate(self, mode: int, offset: int, size: int) -> None:
        result = self.libc.fallocate(
            self.fd, mode, ctypes.c_longlong(offset), ctypes.c_longlong(size)
        )
        assert result == 0, os.strerror(ctypes.get_errno())

    def spots(self, size: int) -> list[tuple[int, int]]:
        found, pos = [], 0
        while pos < size:
            try:
                start = os.lseek(self.fd, pos, os.SEEK_DATA)
            except OSError:
                break
            pos = os.lseek(self.fd, start, os.SEEK_HOLE)
            found.append((start, pos))
        return found


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "truncate", 0, KEEP, PUNCH | KEEP]), OFFSETS, SIZES
    ),
    min_size=1,
    max_size=15,
)


@pytest.mark.skipif(host_tmpfs() is None, reason="the host has no tmpfs to write on")
@settings(max_examples=80, deadline=None)
@given(STEPS)
def test_twin_of_the_hosts_tmpfs(steps: list[tuple[str | int, int, int]]) -> None:
    # What if the same calls are made on the host's tmpfs: same bytes, blocks, data and holes?
    place = host_tmpfs()
    assert place is not None
    box, host = Box(), HostFile(place)
    w = box.mount()
    file = w.create(b"a")
    for what, offset, size in steps:
        if what == "write":
            data = bytes(i % 255 + 1 for i in range(size))
            assert sc.kern_write(file, offset, data) == os.pwrite(host.fd, data, offset)
        elif what == "truncate":
            w.setattr(b"a", size=offset)
            os.ftruncate(host.fd, offset)
        else:
            assert isinstance(what, int)
            obj = file.vp.object
            pages = range(offset // PAGE, -(-(offset + size) // PAGE))
            if obj and not what & PUNCH and any(is_reserved(obj, page) for page in pages):
                continue  # allocated twice, the host takes a page for data
            sc.kern_fallocate(file, what, offset, size)
            host.fallocate(what, offset, size)
        at, va = os.fstat(host.fd), w.stat(b"a")
        assert (va.size, va.bytes) == (at.st_size, at.st_blocks * 512)
        assert w.read(file, 0, at.st_size) == os.pread(host.fd, at.st_size, 0)
        assert spots(file, at.st_size) == host.spots(at.st_size)
    os.close(host.fd)
    file.drop()
    w.close()
    box.close()


def is_reserved(obj: VmObject, pindex: int) -> bool:
    """Whether a page is there without data."""
    frame = obj.vm_page_lookup(pindex)
    return frame >= 0 and not obj.pages.dirty[frame]


# --- single questions -------------------------------------------------------------------------


def test_copy_between_two_mounts(box: Box) -> None:
    # What if a file is copied to another tmpfs that has less room?
    w = box.mount()
    small = box.mount(b"small", size="16k")
    source = w.create(b"a")
    w.write(source, 2 * PAGE, b"x" * (6 * PAGE))
    target = small.create(b"a")
    assert sc.kern_copy_file_range(source, 0, target, 0, 8 * PAGE) == 6 * PAGE
    assert small.read(target, 0, 8 * PAGE) == bytes(2 * PAGE) + b"x" * (4 * PAGE)
    small.check()
    w.check()
    with errno(ENOSPC):
        sc.kern_copy_file_range(source, 2 * PAGE, target, 6 * PAGE, PAGE)
    assert small.stat(b"a").size == 6 * PAGE
    assert sc.kern_copy_file_range(source, 0, target, 2 * PAGE, PAGE) == PAGE
    assert small.statfs().bfree == 1
    for file in (source, target):
        file.drop()
    small.close()
    w.close()


def test_copy_when_physical_memory_is_out(box: Box) -> None:
    # What if the limit would allow a copy but the kernel has no page left?
    w = box.mount(size="100g")
    source, target = w.create(b"a"), w.create(b"b")
    w.write(source, 0, b"x" * (4 * PAGE))
    hog = [box.pages.alloc() for _ in range(box.pages.v_free_count - box.pages.v_free_reserved - 2)]
    with errno(ENOSPC):
        sc.kern_copy_file_range(source, 0, target, 0, 4 * PAGE)
    with errno(ENOSPC):
        sc.kern_fallocate(target, 0, 0, 4 * PAGE)
    assert (w.stat(b"b").size, w.stat(b"b").bytes) == (0, 0)
    assert sc.kern_copy_file_range(source, 0, target, 0, 2 * PAGE) == 2 * PAGE
    w.check()
    box.pages.free_pages(hog)
    source.drop()
    target.drop()
    w.close()


def test_allocating_more_than_there_is(box: Box) -> None:
    # What if far more is asked for than the mount has: is it refused at once, and nothing taken?
    w = box.mount(size="64k")
    file = w.create(b"a")
    for size in (17 * PAGE, 1 << 40, (1 << 63) - 1):
        with errno(ENOSPC):
            sc.kern_fallocate(file, 0, 0, size)
    assert (w.stat(b"a").size, w.stat(b"a").bytes, w.statfs().bfree) == (0, 0, 16)
    sc.kern_fallocate(file, 0, 0, 16 * PAGE)
    assert w.statfs().bfree == 0
    file.drop()
    w.close()


def test_longest_file(box: Box) -> None:
    # What if the mount limits the length of files?
    w = box.mount(maxfilesize="10000")
    file, other = w.create(b"a"), w.create(b"b")
    w.write(other, 0, b"x" * 9000)
    for mode in MODES:
        with errno(EFBIG):
            sc.kern_fallocate(file, mode, 5000, 5001)
    sc.kern_fallocate(file, 0, 5000, 5000)
    assert sc.kern_copy_file_range(other, 0, file, 4000, 9000) == 6000
    with errno(EFBIG):
        sc.kern_copy_file_range(other, 0, file, 10_000, 1)
    file.drop()
    other.drop()
    w.close()


def test_limit_of_files_holds_for_nameless_ones(box: Box) -> None:
    # What if files without names are made until there may be no more?
    w = box.mount(inodes="4")
    made = [sc.kern_tmpfile(w.vfs, w.top, 0o600, O_RDWR, ROOT)[1] for _ in range(3)]
    with errno(ENOSPC):
        sc.kern_tmpfile(w.vfs, w.top, 0o600, O_RDWR, ROOT)
    with errno(ENOSPC):
        w.put(b"f")
    sc.kern_link(w.vfs, made[0].nch, w.top, b"f", ROOT)
    w.check()
    for file in made:
        file.drop()
    assert w.statfs().ffree == 2
    w.check()
    w.close()


def test_nameless_files_at_unmount() -> None:
    # What if a file without a name is open when its mount goes by force?
    box = Box()
    w = box.mount()
    _, file = sc.kern_tmpfile(w.vfs, w.top, 0o600, O_RDWR, ROOT)
    w.write(file, 0, b"x" * 9000)
    w.close()
    box.vfs.mounts.unmountall()
    with errno(EIO):
        sc.kern_write(file, 0, b"x")
    file.drop()
    box.close()


def test_watchers_hear_of_ranges(box: Box) -> None:
    # What if somebody watches a file that is allocated, grown and copied to?
    w = box.mount()
    file, other = w.create(b"a"), w.create(b"b")
    w.write(other, 0, b"xyz")
    note = VnodeKnote(file.vp, -4, NOTE_WRITE | NOTE_EXTEND, lambda _: None)
    note.attach()
    sc.kern_fallocate(file, KEEP, 0, PAGE)
    assert note.take() == NOTE_WRITE
    sc.kern_fallocate(file, 0, 0, PAGE)
    assert note.take() == NOTE_WRITE | NOTE_EXTEND
    sc.kern_copy_file_range(other, 0, file, 0, 3)
    assert note.take() == NOTE_WRITE
    sc.kern_copy_file_range(other, 0, file, PAGE, 3)
    assert note.take() == NOTE_WRITE | NOTE_EXTEND
    note.detach()
    file.drop()
    other.drop()
    w.close()


def test_copy_of_alternating_pages_is_bounded() -> None:
    # What if a file of 16 MiB has data in every second page: how much does one call copy?
    box = Box(40 << 20)
    w = box.mount(size="100%")
    source, target = w.create(b"a"), w.create(b"b")
    for page in range(0, 5000, 2):
        w.write(source, page * PAGE, b"x")
    assert sc.kern_copy_file_range(source, 0, target, 0, 5000 * PAGE) == COPY_MAX
    assert w.stat(b"b").bytes == COPY_MAX // 2
    rest = sc.kern_copy_file_range(source, COPY_MAX, target, COPY_MAX, 5000 * PAGE)
    assert rest == 4998 * PAGE + 1 - COPY_MAX
    assert w.get(b"a") == w.get(b"b")
    w.check()
    source.drop()
    target.drop()
    w.close()
    box.close()
