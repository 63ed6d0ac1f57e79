"""Reading and writing: append, holes, truncation, allocation, copying, limits, O_DIRECT."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.posix import linux
from tests.posix.case import NotApplicable, case, refuse, same, table, true
from tests.posix.tools import Child, opened, put

RDWR_NEW = os.O_RDWR | os.O_CREAT
RECORD = 100


@case(limit=30.0)
def append_by_several_writers(d: Path) -> None:
    """Records that six processes append arrive whole, none lost, none mixed."""
    put(d / "log")

    def write(letter: bytes) -> None:
        with opened(d / "log", os.O_WRONLY | os.O_APPEND) as f:
            for _ in range(200):
                os.write(f, letter * RECORD)

    for child in [Child(write, letter) for letter in (b"a", b"b", b"c", b"d", b"e", b"f")]:
        child.result()
    data = (d / "log").read_bytes()
    same(len(data), 6 * 200 * RECORD, "bytes in the file")
    records = [data[at : at + RECORD] for at in range(0, len(data), RECORD)]
    true(all(len(set(record)) == 1 for record in records), "a record is mixed")


@case()
def append_ignores_the_offset(d: Path) -> None:
    """With O_APPEND every write goes to the end, and moves the offset there."""
    with opened(put(d / "f", b"abc"), os.O_RDWR | os.O_APPEND) as f:
        os.lseek(f, 0, os.SEEK_SET)
        os.write(f, b"de")
        same(os.lseek(f, 0, os.SEEK_CUR), 5, "offset")
    same((d / "f").read_bytes(), b"abcde", "bytes")


@case()
def append_after_truncation(d: Path) -> None:
    """An O_APPEND writer continues at the new end after somebody truncated the file."""
    with opened(put(d / "f", b"x" * 10_000), os.O_WRONLY | os.O_APPEND) as f:
        os.truncate(d / "f", 0)
        os.write(f, b"new")
    same((d / "f").read_bytes(), b"new", "bytes")


@table({"1": (1,), "4095": (4095,), "4096": (4096,), "4097": (4097,), "70000": (70_000,)})
def truncate_and_grow(d: Path, size: int) -> None:
    """What a truncation cut off reads as zeroes when the file grows again."""
    path = put(d / "f", b"\xff" * 100_000)
    os.truncate(path, size)
    same(path.stat().st_size, size, "size")
    os.truncate(path, 100_000)
    same(path.read_bytes(), b"\xff" * size + bytes(100_000 - size), "bytes")


@case()
def truncate_errors(d: Path) -> None:
    """A negative size is EINVAL, by path and by descriptor."""
    path = put(d / "f", b"abc")
    refuse(errno.EINVAL, os.truncate, path, -1)
    with opened(path, os.O_RDWR) as f:
        refuse(errno.EINVAL, os.ftruncate, f, -1)
    same(path.read_bytes(), b"abc", "bytes")


@case()
def write_after_the_end(d: Path) -> None:
    """A write far past the end leaves zeroes between, and few blocks."""
    with opened(d / "f", RDWR_NEW) as f:
        os.pwrite(f, b"end", 10_000_000)
        same(os.fstat(f).st_size, 10_000_003, "size")
        same(os.pread(f, 10, 5_000_000), bytes(10), "bytes in the hole")
        true(os.fstat(f).st_blocks * 512 < 2_000_000, "the hole takes blocks")


@case()
def read_at_the_end(d: Path) -> None:
    """A read across the end is short; past the end it is empty."""
    with opened(put(d / "f", b"abc"), os.O_RDONLY) as f:
        same((os.pread(f, 10, 1), os.pread(f, 10, 3), os.pread(f, 10, 999)), (b"bc", b"", b""), "")


@case()
def far_offsets(d: Path) -> None:
    """Offsets past 4 GiB and near 2^62 work, or are EFBIG; negative ones are EINVAL."""
    with opened(d / "f", RDWR_NEW) as f:
        os.pwrite(f, b"x", 5 << 30)
        same((os.pread(f, 1, 5 << 30), os.fstat(f).st_size), (b"x", (5 << 30) + 1), "past 4 GiB")
        refuse(errno.EINVAL, os.lseek, f, -1, os.SEEK_SET)
        refuse(errno.EINVAL, os.pwrite, f, b"x", -5)


@case()
def largest_truncate(d: Path) -> None:
    """999,999,999,999,999 bytes is a sparse file or EFBIG, and nothing dies of it."""
    path = put(d / "f")
    try:
        os.truncate(path, 999_999_999_999_999)
    except OSError as error:
        same(error.errno, errno.EFBIG, "errno")
    else:
        same(path.stat().st_size, 999_999_999_999_999, "size")
        with opened(path, os.O_RDONLY) as f:
            same(os.pread(f, 4, 900_000_000_000_000), bytes(4), "bytes")
    os.unlink(path)
    put(path, b"still alive")


@case()
def beyond_the_largest_size(d: Path) -> None:
    """Writing at the end of 64-bit offsets is EFBIG or EINVAL, never a crash."""
    with opened(d / "f", RDWR_NEW) as f:
        refuse((errno.EFBIG, errno.EINVAL), os.pwrite, f, b"xy", 2**63 - 2)
        same(os.fstat(f).st_size, 0, "size")


@case()
def large_single_calls(d: Path) -> None:
    """One write and one read of 9,999,991 bytes come back as they went."""
    data = os.urandom(9_999_991)
    with opened(d / "f", RDWR_NEW) as f:
        same(os.write(f, data), len(data), "bytes written")
        true(os.pread(f, len(data), 0) == data, "other bytes came back")


@case()
def vectors(d: Path) -> None:
    """readv and writev take and fill their pieces in order."""
    with opened(d / "f", RDWR_NEW) as f:
        same(os.writev(f, [b"ab", b"", b"cde"]), 5, "bytes written")
        first, second = bytearray(3), bytearray(4)
        same(os.preadv(f, [first, second], 0), 5, "bytes read")
        same((bytes(first), bytes(second)), (b"abc", b"de\0\0"), "pieces")


@case()
def blocks_follow_the_data(d: Path) -> None:
    """st_blocks grows with data, and goes back when the file is emptied."""
    with opened(d / "f", RDWR_NEW) as f:
        os.write(f, os.urandom(1 << 20))
        os.fsync(f)
        true(os.fstat(f).st_blocks >= 2048, "a MiB takes less than 2048 blocks")
        os.ftruncate(f, 0)
        same(os.fstat(f).st_blocks, 0, "blocks of an empty file")


@case()
def seek_hole_and_data(d: Path) -> None:
    """SEEK_DATA and SEEK_HOLE find the pieces of a sparse file."""
    with opened(d / "f", RDWR_NEW) as f:
        os.ftruncate(f, 4 << 20)
        os.pwrite(f, b"x" * 65536, 1 << 20)
        os.fsync(f)
        same(os.lseek(f, 0, os.SEEK_DATA), 1 << 20, "first data")
        same(os.lseek(f, 1 << 20, os.SEEK_HOLE), (1 << 20) + 65536, "hole after the data")
        same(os.lseek(f, 0, os.SEEK_HOLE), 0, "first hole")
        refuse(errno.ENXIO, os.lseek, f, 2 << 20, os.SEEK_DATA)


@case()
def seek_hole_is_at_least_the_end(d: Path) -> None:
    """Without holes SEEK_DATA stays, SEEK_HOLE goes to the end, and past the end is ENXIO."""
    with opened(put(d / "f", b"x" * 5000), os.O_RDONLY) as f:
        same((os.lseek(f, 10, os.SEEK_DATA), os.lseek(f, 10, os.SEEK_HOLE)), (10, 5000), "")
        refuse(errno.ENXIO, os.lseek, f, 5000, os.SEEK_DATA)
        refuse(errno.ENXIO, os.lseek, f, 5000, os.SEEK_HOLE)


@case()
def posix_fallocate_grows(d: Path) -> None:
    """posix_fallocate makes room: the size grows, and the bytes are zeroes.

    The C library writes into each block where the file system has no fallocate of its own.
    """
    with opened(put(d / "f", b"abc"), os.O_RDWR) as f:
        os.posix_fallocate(f, 0, 100_000)
        same((os.fstat(f).st_size, os.pread(f, 4, 0)), (100_000, b"abc\0"), "size and bytes")


ALLOCATIONS = {
    "default": (0, 8192, 8192, 16384),
    "keep-size": (linux.FALLOC_KEEP_SIZE, 0, 65536, 16384),
    "punch-hole": (linux.FALLOC_KEEP_SIZE | linux.FALLOC_PUNCH_HOLE, 4096, 4096, 16384),
    "keep-size-past-end": (linux.FALLOC_KEEP_SIZE, 65536, 4096, 16384),
    "grow": (0, 16384, 4096, 20480),
}


@table(ALLOCATIONS)
def fallocate(d: Path, mode: int, offset: int, length: int, size: int) -> None:
    """Each mode of fallocate(2) keeps the data it must keep and gives the size it must give."""
    with opened(put(d / "f", b"\xff" * 16384), os.O_RDWR) as f:
        linux.fallocate(f, mode, offset, length)
        same(os.fstat(f).st_size, size, "size")
        want = bytearray(b"\xff" * 16384)
        if mode & linux.FALLOC_PUNCH_HOLE:
            want[offset : offset + length] = bytes(length)
        same(os.pread(f, 16384, 0), bytes(want), "bytes")


@table({"zero-length": (0, 0, 0), "negative": (0, -1, 10), "punch-alone": (2, 0, 10)})
def fallocate_errors(d: Path, mode: int, offset: int, length: int) -> None:
    """Wrong ranges are EINVAL; punching without KEEP_SIZE is EOPNOTSUPP."""
    with opened(put(d / "f", b"abc"), os.O_RDWR) as f:
        refuse((errno.EINVAL, errno.EOPNOTSUPP), linux.fallocate, f, mode, offset, length)


@case()
def copy_file_range(d: Path) -> None:
    """copy_file_range copies the range, short at the end, and leaves the rest."""
    put(d / "a", bytes(range(256)) * 100)
    put(d / "b", b"\xff" * 1000)
    with opened(d / "a", os.O_RDONLY) as a, opened(d / "b", os.O_RDWR) as b:
        same(os.copy_file_range(a, b, 500, 256, 100), 500, "bytes copied")
        same(os.copy_file_range(a, b, 500, 25_500, 600), 100, "bytes copied at the end")
        want = b"\xff" * 100 + (bytes(range(256)) * 3)[:500] + bytes(range(156, 256))
        same(os.pread(b, 700, 0), want, "bytes")


@case()
def copy_file_range_overlapping(d: Path) -> None:
    """Overlapping ranges of one file are EINVAL."""
    with opened(put(d / "f", b"x" * 10_000), os.O_RDWR) as f:
        refuse(errno.EINVAL, os.copy_file_range, f, f, 5000, 0, 100)


@case()
def sendfile(d: Path) -> None:
    """sendfile copies from one file to another."""
    data = os.urandom(300_000)
    put(d / "a", data)
    with opened(d / "a", os.O_RDONLY) as a, opened(d / "b", RDWR_NEW) as b:
        done = 0
        while done < len(data):
            done += os.sendfile(b, a, done, len(data) - done)
    true((d / "b").read_bytes() == data, "other bytes came back")


@case()
def splice(d: Path) -> None:
    """splice moves a file's bytes through a pipe into another file."""
    data = os.urandom(60_000)
    put(d / "a", data)
    reader, writer = os.pipe()
    with opened(d / "a", os.O_RDONLY) as a, opened(d / "b", RDWR_NEW) as b:
        done = 0
        while moved := os.splice(a, writer, 30_000):
            while moved:
                moved -= (step := os.splice(reader, b, moved))
                done += step
    same((done, (d / "b").read_bytes() == data), (60_000, True), "bytes moved")


@case()
def size_limit(d: Path) -> None:
    """Past RLIMIT_FSIZE a write is short, then EFBIG with SIGXFSZ ignored."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with opened(d / "f", RDWR_NEW) as f:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        same(os.write(f, b"x" * 20_000), 10_000, "bytes written")
        refuse(errno.EFBIG, os.write, f, b"x")
        refuse(errno.EFBIG, os.ftruncate, f, 10_001)
    same((d / "f").stat().st_size, 10_000, "size")


@case()
def size_limit_signal(d: Path) -> None:
    """Past RLIMIT_FSIZE the process gets SIGXFSZ."""

    def write() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
        with opened(d / "f", RDWR_NEW) as f:
            os.write(f, b"x" * 10)
            os.write(f, b"x")

    status = Child(write)
    same(os.waitstatus_to_exitcode(os.waitpid(status.pid, 0)[1]), -signal.SIGXFSZ, "exit status")


@contextmanager
def _aligned(size: int, fill: bytes = b"") -> Iterator[mmap.mmap]:
    """Yield page-aligned memory, which O_DIRECT wants."""
    with mmap.mmap(-1, size) as memory:
        memory[: len(fill)] = fill
        yield memory


def _direct(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_DIRECT, 0o644)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise NotApplicable("O_DIRECT is refused at open") from error
        raise


@table({"4096": (4096,), "65536": (65536,), "1MiB": (1 << 20,), "4MiB": (4 << 20,)})
def direct_aligned(d: Path, size: int) -> None:
    """Aligned O_DIRECT writes and reads carry the bytes, and buffered readers see them."""
    data = os.urandom(size)
    f = _direct(d / "f", RDWR_NEW)
    with _aligned(size, data) as memory, _aligned(size) as back:
        same(os.pwrite(f, memory, 0), size, "bytes written")
        same(os.preadv(f, [back], 0), size, "bytes read")
        true(back[:] == data, "other bytes came back")
    true((d / "f").read_bytes() == data, "the buffered reader sees other bytes")
    os.close(f)


@table({"odd-size": (1000, 0), "odd-offset": (4096, 512), "tiny": (1, 0), "both": (777, 33)})
def direct_unaligned(d: Path, size: int, offset: int) -> None:
    """Unaligned O_DIRECT writes work or are EINVAL; the file is right either way."""
    path = put(d / "f", b"\xff" * 8192)
    f = _direct(path, os.O_RDWR)
    want = bytearray(b"\xff" * 8192)
    with _aligned(4096, b"y" * size) as memory:
        try:
            count = os.pwrite(f, memoryview(memory)[:size], offset)
            want[offset : offset + count] = b"y" * count
        except OSError as error:
            same(error.errno, errno.EINVAL, "errno")
    os.close(f)
    true(path.read_bytes() == bytes(want), "other bytes came back")


@case()
def direct_and_buffered(d: Path) -> None:
    """Buffered writes are seen by O_DIRECT reads, and the other way round, in turns."""
    path = put(d / "f", bytes(8192))
    f = _direct(path, os.O_RDWR)
    with opened(path, os.O_RDWR) as buffered, _aligned(4096) as memory:
        for turn in range(1, 20):
            os.pwrite(buffered, bytes([turn]) * 4096, 0)
            os.preadv(f, [memory], 0)
            same(memory[:], bytes([turn]) * 4096, "direct read after a buffered write")
            memory[:] = bytes([turn + 100]) * 4096
            os.pwrite(f, memory, 0)
            same(os.pread(buffered, 4096, 0), bytes([turn + 100]) * 4096, "the other way round")
    os.close(f)


@case()
def direct_at_the_end(d: Path) -> None:
    """An O_DIRECT read across the end is short."""
    f = _direct(put(d / "f", b"x" * 5000), os.O_RDONLY)
    with _aligned(8192) as memory:
        same(os.preadv(f, [memory], 0), 5000, "bytes read")
    os.close(f)


@table({"O_SYNC": (os.O_SYNC,), "O_DSYNC": (os.O_DSYNC,)})
def synchronous_writes(d: Path, flag: int) -> None:
    """Synchronous descriptors write and read as others do."""
    with opened(d / "f", RDWR_NEW | flag) as f:
        os.write(f, b"abc")
        os.fsync(f)
        os.fdatasync(f)
        same(os.pread(f, 3, 0), b"abc", "bytes")


@case()
def reader_sees_the_writer(d: Path) -> None:
    """A second descriptor sees each write and each new size at once."""
    with opened(d / "f", RDWR_NEW) as f, opened(d / "f", os.O_RDONLY) as g:
        for n in range(1, 100):
            os.write(f, b"x" * 1000)
            same((os.fstat(g).st_size, len(os.pread(g, 200_000, 0))), (n * 1000, n * 1000), "size")


@case(limit=30.0)
def reader_in_another_process(d: Path) -> None:
    """A page that one process rewrites is never seen half old, half new, by a reader."""
    path = put(d / "f", b"a" * 4096)

    def rewrite() -> None:
        with opened(path, os.O_WRONLY) as f:
            for n in range(2000):
                os.pwrite(f, bytes([97 + n % 26]) * 4096, 0)

    child = Child(rewrite)
    with opened(path, os.O_RDONLY) as f:
        while not child.finished():
            same(len(os.pread(f, 4096, 0)), 4096, "bytes read")
    child.result()
    same(len(set(path.read_bytes())), 1, "different bytes at the end")


@case()
def advice(d: Path) -> None:
    """posix_fadvise and readahead hints are taken, and change nothing."""
    with opened(put(d / "f", b"x" * 100_000), os.O_RDWR) as f:
        os.fsync(f)
        for hint in (os.POSIX_FADV_SEQUENTIAL, os.POSIX_FADV_DONTNEED, os.POSIX_FADV_WILLNEED):
            os.posix_fadvise(f, 0, 0, hint)
        same(os.pread(f, 100_000, 0), b"x" * 100_000, "bytes")
