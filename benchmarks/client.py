"""The client in C, `peers/client.c`, compiled once and loaded: loops of system calls, no more.

Each function raises OSError with the errno of the first call that failed. Directories are given by
descriptor, so that the way to them is not walked again for every name.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import mmap
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.peers import Unavailable, cache_directory

SOURCE = Path(__file__).parent / "peers" / "client.c"
MS_REMOUNT = 32
#: Flags of a mount that statvfs tells with the numbers of mount(2).
KEPT_FLAGS = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled client.

    Raises:
        Unavailable: there is no compiler, or it does not like the source.
    """
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    built = cache_directory() / f"client-{digest}.so"
    if not built.exists():
        if shutil.which("gcc") is None:
            raise Unavailable("gcc is missing")
        fresh = built.with_suffix(f".{os.getpid()}")
        build = ["gcc", "-O2", "-shared", "-fPIC", str(SOURCE), "-o", str(fresh)]
        done = subprocess.run(build, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Unavailable(f"gcc: {done.stderr.strip().splitlines()[-1:]}")
        fresh.rename(built)
    return ctypes.CDLL(str(built))


def _checked(error: int) -> None:
    if error:
        raise OSError(error, os.strerror(error))


@contextmanager
def opened(path: Path, flags: int = os.O_PATH) -> Iterator[int]:
    """A descriptor of a file or directory for the length of a `with` block."""
    fd = os.open(path, flags, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


def getattr_sync(path: Path, count: int) -> None:
    """Ask the server for the attributes of one file."""
    with opened(path) as fd:
        _checked(library().getattr_sync(fd, ctypes.c_long(count)))


def lookup(directory: Path, prefix: str, count: int, expected: int = 0) -> None:
    """Look up `count` names once each; `expected` is the errno that they must give."""
    with opened(directory) as fd:
        _checked(library().lookup(fd, prefix.encode(), ctypes.c_long(count), expected))


def create(directory: Path, prefix: str, count: int, size: int = 0) -> None:
    """Create files, with one write of `size` bytes (up to 4096) unless that is 0."""
    with opened(directory) as fd:
        _checked(library().create(fd, prefix.encode(), ctypes.c_long(count), ctypes.c_long(size)))


def remove_all(directory: Path, prefix: str, count: int) -> None:
    """Remove files."""
    with opened(directory) as fd:
        _checked(library().remove_all(fd, prefix.encode(), ctypes.c_long(count)))


def reread(directory: Path, prefix: str, count: int, size: int) -> None:
    """Open files, read `size` bytes (up to 4096) of each, and close them."""
    with opened(directory) as fd:
        _checked(library().reread(fd, prefix.encode(), ctypes.c_long(count), ctypes.c_long(size)))


def open_close(path: Path, count: int) -> None:
    """Open and close one file again and again."""
    with opened(path.parent) as fd:
        _checked(library().open_close(fd, path.name.encode(), ctypes.c_long(count)))


def read_through(fd: int, block: int) -> None:
    """Read to the end."""
    _checked(library().read_through(fd, ctypes.c_long(block)))


def write_through(fd: int, block: int, count: int) -> None:
    """Write `count` blocks and fsync."""
    _checked(library().write_through(fd, ctypes.c_long(block), ctypes.c_long(count)))


def read_at(fd: int, offsets: Sequence[int]) -> None:
    """Read 4 KiB at each of the offsets."""
    array = (ctypes.c_int64 * len(offsets))(*offsets)
    _checked(library().read_at(fd, array, ctypes.c_long(len(offsets))))


def latencies(path: Path, clients: int, count: int) -> list[int]:
    """Nanoseconds of each synchronous getattr of `clients` processes that ask at the same time."""
    number = clients * count
    with mmap.mmap(-1, number * ctypes.sizeof(ctypes.c_int64)) as shared, opened(path) as fd:
        array = (ctypes.c_int64 * number).from_buffer(shared)
        try:
            _checked(library().latencies(fd, clients, ctypes.c_long(count), array))
            return sorted(array)
        finally:
            del array


def forget_names(mountpoint: Path) -> None:
    """Make the host forget the names and unused inodes that it knows of one FUSE mount.

    A remount that changes nothing does this, for one mount only; it takes root. FORGETs follow;
    they are done when this returns, as far as a few requests behind them can tell.

    Raises:
        PermissionError: not root.
    """
    flags = os.statvfs(mountpoint).f_flag & KEPT_FLAGS
    libc = ctypes.CDLL(None, use_errno=True)
    where = os.fsencode(mountpoint)
    if libc.mount(b"none", where, None, ctypes.c_ulong(flags | MS_REMOUNT), None):
        _checked(ctypes.get_errno())
    for _ in range(32):
        os.statvfs(mountpoint)
