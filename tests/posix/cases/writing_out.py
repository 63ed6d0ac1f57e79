"""Writing out and reading ahead: O_SYNC, O_DSYNC, fsync, sync_file_range, fadvise, readahead.

Nobody can see from here whether bytes reached a disk. What can be seen is that the calls work on
each kind of descriptor, refuse what they must, and never change a byte.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path

from tests.posix import linux
from tests.posix.case import case, refuse, same, table, true
from tests.posix.peer import Peer
from tests.posix.tools import folder, opened, put, tick

NEW = os.O_RDWR | os.O_CREAT
UNIT = 65536
EVERYTHING = linux.SYNC_WAIT_BEFORE | linux.SYNC_WRITE | linux.SYNC_WAIT_AFTER
FLAGS = {
    "O_SYNC": (os.O_SYNC,),
    "O_DSYNC": (os.O_DSYNC,),
    "O_RSYNC": (os.O_RSYNC,),
    "O_SYNC|O_APPEND": (os.O_SYNC | os.O_APPEND,),
    "O_SYNC|O_TRUNC": (os.O_SYNC | os.O_TRUNC,),
}


@table(FLAGS)
def synchronous_writes(d: Path, flag: int) -> None:
    """Each write of a synchronous descriptor is at once in size, bytes and times."""
    with opened(d / "f", NEW | flag) as f, opened(d / "f", os.O_RDONLY) as reader:
        size, before = 0, os.fstat(reader).st_mtime_ns
        for count in (1, 4095, 4096, 4097, 100_000):
            tick()
            same(os.write(f, b"x" * count), count, "bytes written")
            size += count
            found = os.fstat(reader)
            same(found.st_size, size, "size")
            true(found.st_mtime_ns > before, "mtime stood still")
            before = found.st_mtime_ns
        true(os.pread(reader, size + 1, 0) == b"x" * size, "other bytes")


@table(FLAGS)
def synchronous_in_pieces(d: Path, flag: int) -> None:
    """writev, pwrite into holes and a truncation work on it as on any other."""
    with opened(d / "f", NEW | flag) as f:
        same(os.writev(f, [b"ab", b"cd", b"e" * 5000]), 5004, "bytes written")
        os.ftruncate(f, 3)
        if not flag & os.O_APPEND:
            os.pwrite(f, b"far", UNIT)
            same(os.pread(f, 6, UNIT - 3), b"\0\0\0far", "bytes across the hole")
        same(os.pread(f, 3, 0), b"abc", "bytes")


@case()
def flag_is_told_and_kept(d: Path) -> None:
    """F_GETFL tells O_SYNC and O_DSYNC, and F_SETFL cannot change them."""
    for flag in (os.O_SYNC, os.O_DSYNC):
        with opened(d / "f", NEW | flag) as f:
            same(fcntl.fcntl(f, fcntl.F_GETFL) & os.O_SYNC, flag, "flags")
            fcntl.fcntl(f, fcntl.F_SETFL, 0)
            same(fcntl.fcntl(f, fcntl.F_GETFL) & os.O_SYNC, flag, "flags after F_SETFL")


@table({"fsync": (os.fsync,), "fdatasync": (os.fdatasync,), "syncfs": (linux.syncfs,)})
def every_descriptor(d: Path, call: object) -> None:
    """Files open in each mode, directories and nameless files can be written out."""
    put(d / "f", b"x" * UNIT)
    assert callable(call)
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND):
        with opened(d / "f", flags) as f:
            call(f)
    with opened(d, os.O_RDONLY) as f:
        call(f)
    with opened(d / "f", os.O_RDWR) as f:
        os.unlink(d / "f")
        os.write(f, b"more")
        call(f)
        same(os.pread(f, 5, 0), b"morex", "bytes")


@table({"fsync": (os.fsync,), "fdatasync": (os.fdatasync,), "syncfs": (linux.syncfs,)})
def wrong_descriptors(d: Path, call: object) -> None:
    """O_PATH and closed descriptors are EBADF."""
    assert callable(call)
    with opened(put(d / "f"), os.O_PATH) as f:
        refuse(errno.EBADF, call, f)
    refuse(errno.EBADF, call, f)


@case()
def fsync_of_fifos(d: Path) -> None:
    """A fifo has nothing to write out: EINVAL."""
    os.mkfifo(d / "fifo")
    with opened(d / "fifo", os.O_RDWR) as f:
        refuse(errno.EINVAL, os.fsync, f)


@case()
def mapped_stores_are_written_out(d: Path) -> None:
    """fsync carries stores of a mapping to other processes' reads and to a new opening."""
    put(d / "f", bytes(2 * UNIT))
    peer = Peer()
    theirs = peer(os.open, d / "f", os.O_RDONLY)
    with opened(d / "f", os.O_RDWR) as f, mmap.mmap(f, 2 * UNIT) as memory:
        for n in range(5):
            memory[n * 10_000 : n * 10_000 + 4] = b"here"
            os.fsync(f)
            same(peer(os.pread, theirs, 4, n * 10_000), b"here", "bytes in the other process")
    same((d / "f").read_bytes().count(b"here"), 5, "stores in the file")


RANGES = {
    "all": (0, 0),
    "part": (4096, 8192),
    "odd": (77, 1000),
    "across-the-end": (UNIT - 10, UNIT),
    "beyond": (10 * UNIT, UNIT),
}


@table(RANGES)
def sync_file_range(d: Path, start: int, length: int) -> None:
    """Each combination of its flags is taken for any range, and the bytes stay."""
    with opened(put(d / "f", b"x" * UNIT), os.O_RDWR) as f:
        os.pwrite(f, b"y" * 5000, 3000)
        for flags in range(EVERYTHING + 1):
            linux.sync_file_range(f, start, length, flags)
        want = b"x" * 3000 + b"y" * 5000 + b"x" * (UNIT - 8000)
        true(os.pread(f, UNIT, 0) == want, "other bytes")


@case()
def sync_file_range_refused(d: Path) -> None:
    """Unknown flags and negative ranges are EINVAL, pipes ESPIPE, closed descriptors EBADF."""
    reader, writer = os.pipe()
    with opened(put(d / "f", b"x"), os.O_RDWR) as f:
        refuse(errno.EINVAL, linux.sync_file_range, f, 0, 10, 8)
        refuse(errno.EINVAL, linux.sync_file_range, f, -1, 10, EVERYTHING)
        refuse(errno.EINVAL, linux.sync_file_range, f, 0, -10, EVERYTHING)
    refuse(errno.EBADF, linux.sync_file_range, f, 0, 10, EVERYTHING)
    refuse(errno.ESPIPE, linux.sync_file_range, writer, 0, 10, EVERYTHING)
    os.close(reader)


ADVICE = {
    name: (getattr(os, f"POSIX_FADV_{name}"),)
    for name in ("NORMAL", "SEQUENTIAL", "RANDOM", "NOREUSE", "WILLNEED", "DONTNEED")
}


@table(ADVICE)
def advice(d: Path, hint: int) -> None:
    """Each hint is taken for any range, of clean and dirty pages, and no byte changes."""
    with opened(put(d / "f", b"x" * UNIT), os.O_RDWR) as f:
        for start, length in ((0, 0), (4096, 4096), (77, 1000), (UNIT, UNIT), (0, 1 << 40)):
            os.pwrite(f, b"y", start % UNIT)
            os.posix_fadvise(f, start, length, hint)
            same(os.pread(f, 1, start % UNIT), b"y", "the byte just written")
        same(os.fstat(f).st_size, UNIT, "size")
    data = (d / "f").read_bytes()
    same((len(data), set(data)), (UNIT, set(b"xy")), "length and bytes")


@case()
def advice_refused(d: Path) -> None:
    """An unknown hint and a negative length are EINVAL, a pipe is ESPIPE."""
    reader, _ = os.pipe()
    with opened(put(d / "f", b"x"), os.O_RDWR) as f:
        refuse(errno.EINVAL, os.posix_fadvise, f, 0, 0, 99)
        refuse(errno.EINVAL, os.posix_fadvise, f, 0, -1, os.POSIX_FADV_NORMAL)
    refuse(errno.ESPIPE, os.posix_fadvise, reader, 0, 0, os.POSIX_FADV_NORMAL)


@case()
def dropped_pages_come_back(d: Path) -> None:
    """Pages dropped with DONTNEED are read again as they were written, 20 times over."""
    data = os.urandom(4 * UNIT)
    with opened(put(d / "f", data), os.O_RDWR) as f:
        for turn in range(20):
            os.pwrite(f, bytes([turn]) * 100, turn * 10_000)
            data = data[: turn * 10_000] + bytes([turn]) * 100 + data[turn * 10_000 + 100 :]
            os.fsync(f)
            os.posix_fadvise(f, 0, 0, os.POSIX_FADV_DONTNEED)
            true(os.pread(f, 4 * UNIT, 0) == data, f"other bytes in turn {turn}")


@case()
def readahead(d: Path) -> None:
    """readahead is taken for any range of a file that is open for reading."""
    with opened(put(d / "f", b"x" * UNIT), os.O_RDONLY) as f:
        for start, count in ((0, UNIT), (4096, 100), (UNIT, UNIT), (10 * UNIT, 1)):
            linux.readahead(f, start, count)
        same((os.lseek(f, 0, os.SEEK_CUR), len(os.read(f, 2 * UNIT))), (0, UNIT), "offset, bytes")


@case()
def readahead_refused(d: Path) -> None:
    """Not open for reading is EBADF, and what is no file EINVAL."""
    with opened(put(d / "f", b"x"), os.O_WRONLY) as f:
        refuse(errno.EBADF, linux.readahead, f, 0, 10)
    refuse(errno.EBADF, linux.readahead, f, 0, 10)
    os.mkfifo(d / "fifo")
    with opened(d / "fifo", os.O_RDWR) as f:
        refuse(errno.EINVAL, linux.readahead, f, 0, 10)


@case()
def directories_keep_their_names(d: Path) -> None:
    """fsync of a directory between creations and removals loses nothing."""
    place = folder(d / "dir")
    with opened(place, os.O_RDONLY) as f:
        for n in range(20):
            put(place / f"f{n}")
            os.fsync(f)
            if n % 2:
                os.unlink(place / f"f{n}")
                os.fsync(f)
    same(sorted(os.listdir(place)), sorted(f"f{n}" for n in range(0, 20, 2)), "names")
