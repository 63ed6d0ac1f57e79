"""fallocate(2): room made, holes punched, ranges zeroed; sizes, blocks, times and refusals.

tmpfs can allocate and punch. ZERO_RANGE it refuses (EOPNOTSUPP); a file system that can do it must
do it right, so these cases take either answer and look at the bytes.
"""

from __future__ import annotations

import errno
import mmap
import os
import resource
import signal
from pathlib import Path

from tests.posix import linux
from tests.posix.case import case, eventually, refuse, same, table, true
from tests.posix.peer import Peer
from tests.posix.tools import BOB, aged, as_user, mode_of, opened, put, tick, undisturbed

UNIT = 65536
KEEP, ZERO = linux.FALLOC_KEEP_SIZE, linux.FALLOC_ZERO
PUNCH = linux.FALLOC_PUNCH_HOLE | KEEP
NEW = os.O_RDWR | os.O_CREAT
LAST = 2**63 - 1

#: Range in bytes, of a file of four units.
RANGES = {
    "first-unit": (0, UNIT),
    "middle-units": (UNIT, 2 * UNIT),
    "last-unit": (3 * UNIT, UNIT),
    "all": (0, 4 * UNIT),
    "one-byte": (UNIT + 7, 1),
    "one-page": (2 * UNIT + 4096, 4096),
    "odd-start": (100, UNIT),
    "odd-end": (UNIT, UNIT + 100),
    "odd-both": (UNIT - 3, 6),
    "inside-a-page": (UNIT + 10, 4000),
    "across-the-end": (4 * UNIT - 10, 1000),
    "beyond-the-end": (5 * UNIT, UNIT),
    "far-beyond": (1 << 40, UNIT),
}


def _filled(d: Path) -> tuple[Path, bytes]:
    data = os.urandom(4 * UNIT)
    return put(d / "f", data), data


def _zeroed(data: bytes, start: int, length: int) -> bytes:
    end = min(len(data), start + length)
    return data if start >= len(data) else data[:start] + bytes(end - start) + data[end:]


@table(RANGES)
def punch(d: Path, start: int, length: int) -> None:
    """A punched range reads as zeroes, the rest and the size stay, whole units give blocks."""
    path, data = _filled(d)
    with opened(path, os.O_RDWR) as f:
        before = os.fstat(f).st_blocks
        linux.fallocate(f, PUNCH, start, length)
        after = os.fstat(f)
        same(after.st_size, len(data), "size")
        true(os.pread(f, len(data) + 1, 0) == _zeroed(data, start, length), "other bytes")
        whole = sum(start <= n * UNIT and (n + 1) * UNIT <= start + length for n in range(4))
        true(after.st_blocks <= before - whole * (UNIT // 512), "no blocks given back")
    true(path.read_bytes() == _zeroed(data, start, length), "other bytes for a new reader")


@table(RANGES)
def zero(d: Path, start: int, length: int) -> None:
    """ZERO_RANGE gives zeroes and grows the file, or is EOPNOTSUPP and changes nothing."""
    path, data = _filled(d)
    if start > 1 << 30:
        start = 6 * UNIT
    with opened(path, os.O_RDWR) as f:
        try:
            linux.fallocate(f, ZERO, start, length)
        except OSError as error:
            same(error.errno, errno.EOPNOTSUPP, "errno")
            true(os.pread(f, len(data) + 1, 0) == data, "other bytes after a refusal")
            return
        size = max(len(data), start + length)
        same(os.fstat(f).st_size, size, "size")
        want = _zeroed(data + bytes(size - len(data)), start, length)
        true(os.pread(f, size + 1, 0) == want, "other bytes")


@table(RANGES)
def zero_keeping_the_size(d: Path, start: int, length: int) -> None:
    """ZERO_RANGE with KEEP_SIZE gives zeroes and the same size, or is EOPNOTSUPP."""
    path, data = _filled(d)
    if start > 1 << 30:
        start = 6 * UNIT
    want = data
    with opened(path, os.O_RDWR) as f:
        try:
            linux.fallocate(f, ZERO | KEEP, start, length)
            want = _zeroed(data, start, length)
        except OSError as error:
            same(error.errno, errno.EOPNOTSUPP, "errno")
        same(os.fstat(f).st_size, len(data), "size")
        true(os.pread(f, len(data) + 1, 0) == want, "other bytes")


@table({name: row for name, row in RANGES.items() if name != "far-beyond"})
def allocate(d: Path, start: int, length: int) -> None:
    """Mode 0 keeps all bytes, grows the file to the range's end, and takes blocks for it."""
    path, data = _filled(d)
    with opened(path, os.O_RDWR) as f:
        linux.fallocate(f, 0, start, length)
        size = max(len(data), start + length)
        same(os.fstat(f).st_size, size, "size")
        true(os.pread(f, size + 1, 0) == data + bytes(size - len(data)), "other bytes")
        true(os.fstat(f).st_blocks * 512 >= len(data), "blocks")


@table({name: row for name, row in RANGES.items() if name != "far-beyond"})
def allocate_keeping_the_size(d: Path, start: int, length: int) -> None:
    """KEEP_SIZE changes neither bytes nor size; beyond the end it takes blocks all the same."""
    path, data = _filled(d)
    with opened(path, os.O_RDWR) as f:
        before = os.fstat(f).st_blocks
        linux.fallocate(f, KEEP, start, length)
        same(os.fstat(f).st_size, len(data), "size")
        true(os.pread(f, 2 * len(data), 0) == data, "other bytes")
        if start >= len(data):
            true(os.fstat(f).st_blocks >= before + length // 512, "no blocks taken")
        os.ftruncate(f, start + length)
        want = (data + bytes(start + length))[start : start + length]
        true(os.pread(f, length, start) == want, "other bytes once the size is there")


@case()
def allocate_in_holes(d: Path) -> None:
    """Room made in a hole takes blocks and reads as zeroes; what is there is left alone."""
    with opened(d / "f", NEW) as f:
        os.ftruncate(f, 8 * UNIT)
        os.pwrite(f, b"x" * UNIT, 3 * UNIT)
        same(os.fstat(f).st_blocks, UNIT // 512, "blocks before")
        linux.fallocate(f, 0, UNIT, 4 * UNIT)
        same(os.fstat(f).st_blocks, 4 * UNIT // 512, "blocks afterwards")
        want = bytes(3 * UNIT) + b"x" * UNIT + bytes(4 * UNIT)
        true(os.pread(f, 8 * UNIT, 0) == want, "other bytes")


@case()
def allocate_twice(d: Path) -> None:
    """Making room where there is room changes nothing."""
    with opened(d / "f", NEW) as f:
        for _ in range(3):
            linux.fallocate(f, 0, 0, 4 * UNIT)
            same((os.fstat(f).st_size, os.fstat(f).st_blocks), (4 * UNIT, UNIT // 128), "")
        os.pwrite(f, b"x" * (4 * UNIT), 0)
        same(os.fstat(f).st_blocks, UNIT // 128, "blocks after writing it")


@case()
def punch_all_and_refill(d: Path) -> None:
    """A file that is punched empty keeps its size, has no blocks, and can be written again."""
    path, data = _filled(d)
    with opened(path, os.O_RDWR) as f:
        for _ in range(5):
            linux.fallocate(f, PUNCH, 0, len(data))
            same((os.fstat(f).st_size, os.fstat(f).st_blocks), (len(data), 0), "size and blocks")
            true(os.pread(f, len(data), 0) == bytes(len(data)), "bytes in the hole")
            os.pwrite(f, data, 0)
    true(path.read_bytes() == data, "other bytes")


@case()
def punch_under_a_mapping(d: Path) -> None:
    """A shared mapping shows the hole, and a store into it brings the page back."""
    path, data = _filled(d)
    with opened(path, os.O_RDWR) as f, mmap.mmap(f, len(data)) as memory:
        same(memory[UNIT : UNIT + 4], data[UNIT : UNIT + 4], "before")
        linux.fallocate(f, PUNCH, UNIT, UNIT)
        same(memory[UNIT : UNIT + 4], bytes(4), "in the hole")
        same(memory[2 * UNIT : 2 * UNIT + 4], data[2 * UNIT : 2 * UNIT + 4], "beside the hole")
        memory[UNIT : UNIT + 3] = b"new"
        memory.flush()
        same(os.pread(f, 4, UNIT), b"new\0", "by read")


@case()
def unlinked(d: Path) -> None:
    """A file without a name is allocated and punched as any other."""
    path, data = _filled(d)
    with opened(path, os.O_RDWR) as f:
        os.unlink(path)
        linux.fallocate(f, PUNCH, 0, UNIT)
        linux.fallocate(f, 0, 4 * UNIT, UNIT)
        same(os.fstat(f).st_size, 5 * UNIT, "size")
        true(os.pread(f, 5 * UNIT, 0) == bytes(UNIT) + data[UNIT:] + bytes(UNIT), "other bytes")


@case(limit=60.0)
@undisturbed
def space_is_taken_and_given_back(d: Path) -> None:
    """statfs counts what is allocated, punched, and freed by truncation."""
    size = 16 << 20

    def taken() -> int:
        found = os.statvfs(d)
        return (before - found.f_bfree) * found.f_frsize

    before = os.statvfs(d).f_bfree
    with opened(d / "f", NEW) as f:
        linux.fallocate(f, 0, 0, size)
        true(size <= taken() <= size + (4 << 20), f"{taken()} bytes taken by fallocate")
        linux.fallocate(f, PUNCH, 0, size // 2)
        true(taken() <= size // 2 + (4 << 20), f"{taken()} bytes taken after the punch")
        os.ftruncate(f, 0)
        true(taken() <= 4 << 20, f"{taken()} bytes taken when empty")
        linux.fallocate(f, KEEP, 0, size)
        true(size <= taken(), f"{taken()} bytes taken past the end")
        same((os.fstat(f).st_size, os.fstat(f).st_blocks), (0, size // 512), "size and blocks")
        os.unlink(d / "f")
    eventually(lambda: taken() <= 4 << 20, "the bytes are given back by the last close")


@case(limit=60.0)
@undisturbed
def too_much(d: Path) -> None:
    """More than there is: ENOSPC, and size, blocks and free space are as before."""
    path, data = _filled(d)
    free = os.statvfs(d).f_bfree * os.statvfs(d).f_frsize
    with opened(path, os.O_RDWR) as f:
        before = (os.fstat(f).st_size, os.fstat(f).st_blocks)
        for mode in (0, KEEP):
            refuse(errno.ENOSPC, linux.fallocate, f, mode, 0, free + (64 << 20) + (1 << 40))
        same((os.fstat(f).st_size, os.fstat(f).st_blocks), before, "size and blocks")
    left = os.statvfs(d).f_bfree * os.statvfs(d).f_frsize
    true(left >= free - (16 << 20), "free space is gone")
    true(path.read_bytes() == data, "other bytes")


@table({"allocate": (0,), "keep-size": (KEEP,), "punch": (PUNCH,)})
def times_and_bits(d: Path, mode: int) -> None:
    """A change by fallocate moves mtime and ctime, for punching too, and not atime."""
    path, _ = _filled(d)
    aged(path)
    before = path.stat()
    tick()
    with opened(path, os.O_RDWR) as f:
        linux.fallocate(f, mode, 0, 6 * UNIT)
    after = path.stat()
    true(after.st_mtime_ns > before.st_mtime_ns, "mtime stood still")
    true(after.st_ctime_ns > before.st_ctime_ns, "ctime stood still")
    same(after.st_atime_ns, before.st_atime_ns, "atime")


@table({"allocate": (0,), "punch": (PUNCH,)}, root=True)
def set_user_id_is_cleared(d: Path, mode: int) -> None:
    """fallocate by somebody who is not root takes the setuid bit away, as a write does."""
    path, _ = _filled(d)
    path.chmod(0o6777)

    def change() -> None:
        with opened(path, os.O_RDWR) as f:
            linux.fallocate(f, mode, 0, UNIT)

    as_user(BOB, change)
    same(mode_of(path) & 0o4000, 0, "setuid bit")


BAD = {
    "zero-length": (0, 0, 0, errno.EINVAL),
    "negative-length": (0, 0, -5, errno.EINVAL),
    "negative-start": (0, -1, 10, errno.EINVAL),
    "both-negative": (PUNCH, -1, -1, errno.EINVAL),
    "punch-alone": (linux.FALLOC_PUNCH_HOLE, 0, 10, errno.EOPNOTSUPP),
    "punch-and-zero": (PUNCH | ZERO, 0, 10, errno.EOPNOTSUPP),
    "collapse": (linux.FALLOC_COLLAPSE, 0, UNIT, errno.EOPNOTSUPP),
    "insert": (linux.FALLOC_INSERT, 0, UNIT, errno.EOPNOTSUPP),
    "unshare": (64, 0, UNIT, errno.EOPNOTSUPP),
    "unknown": (1 << 20, 0, UNIT, errno.EOPNOTSUPP),
    "past-the-last-byte": (0, LAST, 1, errno.EFBIG),
    "overflow": (0, LAST - 10, 100, errno.EFBIG),
    "overflow-punching": (PUNCH, LAST - 10, 100, errno.EFBIG),
}


@table(BAD)
def refused(d: Path, mode: int, start: int, length: int, number: int) -> None:
    """Each wrong request has its errno, and the file is as it was."""
    path, data = _filled(d)
    with opened(path, os.O_RDWR) as f:
        refuse(number, linux.fallocate, f, mode, start, length)
        same(os.fstat(f).st_size, len(data), "size")
        true(os.pread(f, len(data) + 1, 0) == data, "other bytes")


@case()
def wrong_descriptors(d: Path) -> None:
    """Not open for writing, O_PATH, closed and directories are EBADF; a fifo is ESPIPE."""
    path, _ = _filled(d)
    with opened(path, os.O_PATH) as f:
        refuse(errno.EBADF, linux.fallocate, f, 0, 0, 10)
    with opened(path, os.O_RDONLY) as f:
        refuse(errno.EBADF, linux.fallocate, f, 0, 0, 10)
    refuse(errno.EBADF, linux.fallocate, f, 0, 0, 10)
    with opened(d, os.O_RDONLY) as f:
        refuse(errno.EBADF, linux.fallocate, f, 0, 0, 10)
    os.mkfifo(d / "fifo")
    with opened(d / "fifo", os.O_RDWR) as f:
        refuse(errno.ESPIPE, linux.fallocate, f, 0, 0, 10)


@case()
def appending_descriptor(d: Path) -> None:
    """O_APPEND does not move the range: fallocate works where it is told to."""
    path, data = _filled(d)
    with opened(path, os.O_WRONLY | os.O_APPEND) as f:
        linux.fallocate(f, PUNCH, 0, UNIT)
        linux.fallocate(f, 0, 4 * UNIT, 10)
        os.write(f, b"end")
    true(path.read_bytes() == bytes(UNIT) + data[UNIT:] + bytes(10) + b"end", "other bytes")


@case()
def size_limit(d: Path) -> None:
    """Past RLIMIT_FSIZE growing is EFBIG with SIGXFSZ; punching and KEEP_SIZE are not asked."""
    path, _ = _filled(d)
    peer = Peer()
    f = peer(os.open, path, os.O_RDWR)
    peer(_limit_size, 5 * UNIT)
    peer(linux.fallocate, f, 0, 0, 5 * UNIT)
    refuse(errno.EFBIG, peer, linux.fallocate, f, 0, 0, 5 * UNIT + 1)
    peer(linux.fallocate, f, PUNCH, 0, 6 * UNIT)
    same(path.stat().st_size, 5 * UNIT, "size")
    peer(signal.signal, signal.SIGXFSZ, signal.SIG_DFL)
    same(peer.gone_by(linux.fallocate, f, 0, 5 * UNIT, UNIT), -signal.SIGXFSZ, "exit status")


def _limit_size(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@case(limit=30.0)
def punching_beside_a_writer(d: Path) -> None:
    """One process punches a file again and again while another rewrites it: zeroes or bytes."""
    path = put(d / "f", b"x" * UNIT)
    puncher = Peer()
    puncher.start(_punch_often, path, 300)
    with opened(path, os.O_RDWR) as f:
        while not puncher.answered():
            os.pwrite(f, b"x" * UNIT, 0)
            true(set(os.pread(f, UNIT, 0)) <= {0, ord("x")}, "bytes nobody wrote")
        puncher.reply()
        os.pwrite(f, b"y" * UNIT, 0)
        same((os.fstat(f).st_size, os.fstat(f).st_blocks), (UNIT, UNIT // 512), "at the end")
    true(path.read_bytes() == b"y" * UNIT, "other bytes at the end")


def _punch_often(path: Path, times: int) -> None:
    with opened(path, os.O_RDWR) as f:
        for n in range(times):
            linux.fallocate(f, PUNCH, n * 4096 % UNIT, 4096)
