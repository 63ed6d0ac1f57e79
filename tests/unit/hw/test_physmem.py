"""The memory file: sizes, copies, windows, giving back, closing."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest

from dfuser.hw.physmem import PhysMem

PAGE = 4096


@pytest.fixture
def phys() -> Iterator[PhysMem]:
    phys = PhysMem(64 * PAGE)
    yield phys
    phys.close()


@pytest.mark.parametrize("size", [0, -PAGE, 1, PAGE - 1, PAGE + 512])
def test_bad_sizes(size: int) -> None:
    """What if memory is configured with a size that is not whole pages?"""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match="multiple of 4096"):
        PhysMem(size)
    assert len(os.listdir("/proc/self/fd")) == before


def test_impossible_size_leaves_nothing_open() -> None:
    """What if the size is more than any host can map?"""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises((OSError, OverflowError)):
        PhysMem(1 << 62)
    assert len(os.listdir("/proc/self/fd")) == before


def test_untouched_memory_is_free_of_charge() -> None:
    """What if 256 GiB are configured and one page is written?"""
    phys = PhysMem(256 << 30)
    assert phys.resident_bytes() == 0
    phys.write(128 << 30, b"x")
    assert phys.resident_bytes() == PAGE
    phys.close()


def test_write_read_zero(phys: PhysMem) -> None:
    """What if bytes are written across pages, read back and zeroed by frame?"""
    data = bytes(range(256)) * 40
    phys.write(PAGE - 100, data)
    assert phys.read(PAGE - 100, len(data)) == data
    phys.zero(1, 1)
    assert phys.read(PAGE, PAGE) == bytes(PAGE)
    assert phys.read(PAGE - 100, 100) == data[:100]
    assert phys.read(2 * PAGE, 100) == data[100 + PAGE : 200 + PAGE]


def test_zero_of_many_pages(phys: PhysMem) -> None:
    """What if more pages are zeroed than the constant of zeroes is long?"""
    phys.write(0, b"\xff" * (64 * PAGE))
    phys.zero(1, 40)
    assert phys.read(0, 64 * PAGE) == b"\xff" * PAGE + bytes(40 * PAGE) + b"\xff" * (23 * PAGE)
    assert phys.statistics().zeroed == 40 * PAGE


def test_discard_gives_memory_back(phys: PhysMem) -> None:
    """What if written frames are discarded: zero again, and no longer the host's?"""
    phys.write(0, b"\xaa" * (64 * PAGE))
    assert phys.resident_bytes() == 64 * PAGE
    phys.discard(16, 32)
    assert phys.resident_bytes() == 32 * PAGE
    assert phys.read(16 * PAGE, 32 * PAGE) == bytes(32 * PAGE)
    assert phys.read(15 * PAGE, PAGE) == b"\xaa" * PAGE
    assert phys.read(48 * PAGE, PAGE) == b"\xaa" * PAGE
    phys.write(20 * PAGE, b"again")
    assert phys.read(20 * PAGE, 6) == b"again\0"


@pytest.mark.parametrize(
    ("frame", "npages"), [(-1, 1), (64, 1), (63, 2), (0, 65), (0, -1), (1 << 60, 1)]
)
def test_frames_outside_are_refused(phys: PhysMem, frame: int, npages: int) -> None:
    """What if a frame number is wrong: is anything outside ever touched?"""
    for call in (phys.view, phys.zero, phys.discard):
        with pytest.raises(IndexError):
            call(frame, npages)


def test_bytes_outside_are_refused(phys: PhysMem) -> None:
    """What if a byte range leaves memory: is any of it written?"""
    with pytest.raises(IndexError):
        phys.write(64 * PAGE - 2, b"abc")
    assert phys.read(64 * PAGE - 2, 2) == b"\0\0"
    with pytest.raises(IndexError):
        phys.read(64 * PAGE - 2, 3)
    with pytest.raises(IndexError):
        phys.read(-1, 1)


def test_view_is_the_memory(phys: PhysMem) -> None:
    """What if a window is written: does everybody see it, and the other way round?"""
    with phys.view(3, 2) as view:
        assert len(view) == 2 * PAGE
        view[:3] = b"abc"
        assert phys.read(3 * PAGE, 3) == b"abc"
        phys.write(4 * PAGE, b"xyz")
        assert bytes(view[PAGE : PAGE + 3]) == b"xyz"


def test_fd_maps_the_same_bytes(phys: PhysMem) -> None:
    """What if a guest engine maps the memory file by its descriptor?"""
    with mmap.mmap(phys.fd, phys.size) as guest:
        guest[5 * PAGE : 5 * PAGE + 5] = b"guest"
        assert phys.read(5 * PAGE, 5) == b"guest"


def test_size_is_sealed(phys: PhysMem) -> None:
    """What if somebody who has the descriptor tries to shrink or grow the memory?"""
    for size in (0, PAGE, 128 * PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(phys.fd, size)


def test_close_twice_and_statistics() -> None:
    """What if memory is closed twice: is everything given back exactly once?"""
    before = len(os.listdir("/proc/self/fd"))
    phys = PhysMem(16 * PAGE)
    phys.write(0, b"x")
    phys.close()
    phys.close()
    assert phys.closed
    assert phys.statistics().resident == 0
    assert len(os.listdir("/proc/self/fd")) == before


def test_close_names_the_culprits() -> None:
    """What if windows are still open at close: does it say how many, and recover?"""
    phys = PhysMem(16 * PAGE)
    views = [phys.view(0), phys.view(1)]
    part = phys.view(2, 4)[100:200]
    with pytest.raises(BufferError, match="3 views"):
        phys.close()
    phys.write(0, b"still there")
    assert bytes(views[0][:5]) == b"still"
    views.clear()
    part.release()
    assert phys.live_views() == 0
    phys.close()
    assert phys.closed
