"""lseek(2) with SEEK_DATA and SEEK_HOLE: what counts as data, and what as a hole.

Pieces are laid out in units of 64 KiB, the largest piece of memory that any of the file systems
keeps a small file in; `pages` asks the same of single pages. A file system may call a hole data
(POSIX), but tmpfs does not, and so nobody here may.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tests.posix import linux
from tests.posix.case import case, refuse, same, table, true
from tests.posix.tools import folder, opened, put

UNIT = 65536
PAGE = 4096
NEW = os.O_RDWR | os.O_CREAT
PUNCH = linux.FALLOC_PUNCH_HOLE | linux.FALLOC_KEEP_SIZE
#: Units with data, and the file's length in units.
LAYOUTS: dict[str, tuple[str, int]] = {
    "empty": ("", 0),
    "all-hole": ("", 5),
    "all-data": ("01234", 5),
    "hole-first": ("34", 5),
    "hole-last": ("01", 5),
    "hole-in-the-middle": ("014", 5),
    "data-in-the-middle": ("2", 5),
    "one-by-one": ("0246", 8),
    "holes-at-both-ends": ("1356", 9),
    "long-hole": ("09", 10),
}


def pieces(descriptor: int) -> list[tuple[int, int]]:
    """The (start, end) of each piece of data, by SEEK_DATA and SEEK_HOLE in turns."""
    found: list[tuple[int, int]] = []
    at = 0
    while True:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            same(error.errno, errno.ENXIO, "errno after the last piece")
            return found
        at = os.lseek(descriptor, start, os.SEEK_HOLE)
        true(start < at, f"a piece from {start} to {at}")
        found.append((start, at))


def _write_units(descriptor: int, units: str, count: int, unit: int = UNIT) -> None:
    os.ftruncate(descriptor, count * unit)
    for letter in units:
        os.pwrite(descriptor, b"x" * unit, int(letter) * unit)


def _expected(units: str, unit: int = UNIT) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for letter in units:
        start = int(letter) * unit
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], start + unit)
        else:
            found.append((start, start + unit))
    return found


@table(LAYOUTS)
def written(d: Path, units: str, count: int) -> None:
    """Data is where somebody wrote, holes are where nobody did."""
    with opened(d / "f", NEW) as f:
        _write_units(f, units, count)
        same(pieces(f), _expected(units), "pieces of data")
        os.fsync(f)
        same(pieces(f), _expected(units), "pieces of data after fsync")
    with opened(d / "f", os.O_RDONLY) as f:
        same(pieces(f), _expected(units), "pieces of data seen by a reader")


@table({name: row for name, row in LAYOUTS.items() if row[1]})
def pages(d: Path, units: str, count: int) -> None:
    """The same in a file whose pieces are single pages."""
    with opened(d / "f", NEW) as f:
        _write_units(f, units, count, PAGE)
        same(pieces(f), _expected(units, PAGE), "pieces of data")


@table({name: row for name, row in LAYOUTS.items() if row[1]})
def punched(d: Path, units: str, count: int) -> None:
    """A punched range is a hole like one that was never written."""
    with opened(put(d / "f", b"x" * (count * UNIT)), os.O_RDWR) as f:
        for n in range(count):
            if str(n) not in units:
                linux.fallocate(f, PUNCH, n * UNIT, UNIT)
        same(pieces(f), _expected(units), "pieces of data")


@table({name: row for name, row in LAYOUTS.items() if row[1]})
def each_offset(d: Path, units: str, count: int) -> None:
    """From every unit's start and middle both questions have the right answer."""
    size = count * UNIT
    with opened(d / "f", NEW) as f:
        _write_units(f, units, count)
        for at in range(0, size, UNIT // 2):
            full = [str(n) in units for n in range(at // UNIT, count)]
            same(_seek(f, at, os.SEEK_DATA), _next(full, True, at, None), f"data from {at}")
            same(_seek(f, at, os.SEEK_HOLE), _next(full, False, at, size), f"hole from {at}")


def _seek(descriptor: int, at: int, whence: int) -> int | None:
    try:
        return os.lseek(descriptor, at, whence)
    except OSError as error:
        same(error.errno, errno.ENXIO, "errno")
        return None


def _next(full: list[bool], wanted: bool, at: int, otherwise: int | None) -> int | None:
    for n, has in enumerate(full):
        if has is wanted:
            return max(at, (at // UNIT + n) * UNIT)
    return otherwise


@table({"data": (os.SEEK_DATA,), "hole": (os.SEEK_HOLE,)})
def outside(d: Path, whence: int) -> None:
    """At the end, beyond it and before the start: ENXIO, and the offset stays."""
    with opened(put(d / "f", b"x" * 5000), os.O_RDWR) as f:
        os.lseek(f, 77, os.SEEK_SET)
        for at in (5000, 5001, 1 << 40, 2**63 - 1, -1, -(2**62)):
            refuse(errno.ENXIO, os.lseek, f, at, whence)
        same(os.lseek(f, 0, os.SEEK_CUR), 77, "offset")
    with opened(put(d / "empty"), os.O_RDWR) as f:
        refuse(errno.ENXIO, os.lseek, f, 0, whence)


@case()
def bad_whence(d: Path) -> None:
    """An unknown whence is EINVAL."""
    with opened(put(d / "f", b"abc"), os.O_RDONLY) as f:
        refuse(errno.EINVAL, os.lseek, f, 0, 9)


@case()
def offset_moves(d: Path) -> None:
    """SEEK_DATA and SEEK_HOLE move the offset, from which read and write go on."""
    with opened(d / "f", NEW) as f:
        os.ftruncate(f, 4 * UNIT)
        os.pwrite(f, b"data", 2 * UNIT)
        os.lseek(f, 0, os.SEEK_DATA)
        same(os.read(f, 4), b"data", "bytes read at the data")
        hole = os.lseek(f, 2 * UNIT, os.SEEK_HOLE)
        same(os.write(f, b"more"), 4, "bytes written into the hole")
        same(os.pread(f, 4, hole), b"more", "bytes at the hole")


@case()
def odd_end(d: Path) -> None:
    """The last piece ends with the file, not with its block."""
    for size in (1, 4095, 4097, UNIT + 1, 3 * UNIT - 1):
        with opened(put(d / f"f{size}", b"x" * size), os.O_RDONLY) as f:
            same(pieces(f), [(0, size)], f"pieces of {size} bytes")
            same(os.lseek(f, size - 1, os.SEEK_HOLE), size, "hole from the last byte")
            same(os.lseek(f, size - 1, os.SEEK_DATA), size - 1, "data from the last byte")


@case()
def odd_hole_at_the_end(d: Path) -> None:
    """A hole at an odd end: SEEK_DATA finds nothing in it, SEEK_HOLE stays."""
    with opened(d / "f", NEW) as f:
        os.ftruncate(f, 3 * UNIT + 5)
        refuse(errno.ENXIO, os.lseek, f, 3 * UNIT + 2, os.SEEK_DATA)
        same(os.lseek(f, 3 * UNIT + 2, os.SEEK_HOLE), 3 * UNIT + 2, "hole")


@case()
def zeroes_are_data(d: Path) -> None:
    """Zeroes that were written are data."""
    with opened(d / "f", NEW) as f:
        os.ftruncate(f, 4 * UNIT)
        os.pwrite(f, bytes(UNIT), UNIT)
        same(pieces(f), [(UNIT, 2 * UNIT)], "pieces")


@case()
def reading_makes_no_data(d: Path) -> None:
    """A hole that was read is still a hole."""
    with opened(d / "f", NEW) as f:
        os.ftruncate(f, 8 * UNIT)
        os.pwrite(f, b"x" * UNIT, 4 * UNIT)
        same(len(os.pread(f, 8 * UNIT, 0)), 8 * UNIT, "bytes read")
        same(pieces(f), [(4 * UNIT, 5 * UNIT)], "pieces")


@case()
def truncation_cuts_and_grows(d: Path) -> None:
    """What is cut off comes back as a hole."""
    with opened(put(d / "f", b"x" * (8 * UNIT)), os.O_RDWR) as f:
        os.ftruncate(f, 3 * UNIT)
        same(pieces(f), [(0, 3 * UNIT)], "after the cut")
        os.ftruncate(f, 8 * UNIT)
        same(pieces(f), [(0, 3 * UNIT)], "after growing again")
        os.ftruncate(f, 0)
        same(pieces(f), [], "emptied")
        os.ftruncate(f, 8 * UNIT)
        same(pieces(f), [], "emptied and grown")


@case()
def refilled(d: Path) -> None:
    """A punched hole that is written again is data again."""
    with opened(put(d / "f", b"x" * (4 * UNIT)), os.O_RDWR) as f:
        linux.fallocate(f, PUNCH, UNIT, 2 * UNIT)
        os.pwrite(f, b"y" * UNIT, UNIT)
        same(pieces(f), [(0, 2 * UNIT), (3 * UNIT, 4 * UNIT)], "pieces")


@case()
def far_data(d: Path) -> None:
    """A page behind a terabyte of nothing is found."""
    with opened(d / "f", NEW) as f:
        os.pwrite(f, b"x" * PAGE, 1 << 40)
        same(os.lseek(f, 0, os.SEEK_DATA), 1 << 40, "data")
        same(os.lseek(f, 1 << 40, os.SEEK_HOLE), (1 << 40) + PAGE, "hole")


@case()
def every_descriptor(d: Path) -> None:
    """Reading, writing and appending descriptors all may ask; O_PATH is EBADF."""
    put(d / "f", b"x" * 10)
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_SYNC):
        with opened(d / "f", flags) as f:
            same((os.lseek(f, 0, os.SEEK_DATA), os.lseek(f, 0, os.SEEK_HOLE)), (0, 10), "")
    with opened(d / "f", os.O_PATH) as f:
        refuse(errno.EBADF, os.lseek, f, 0, os.SEEK_DATA)


@case()
def unlinked(d: Path) -> None:
    """A file without a name tells its holes as well."""
    with opened(d / "f", NEW) as f:
        os.unlink(d / "f")
        _write_units(f, "13", 5)
        same(pieces(f), _expected("13"), "pieces")


@case()
def directories(d: Path) -> None:
    """SEEK_DATA on a directory is refused, or is a place in it; nothing breaks."""
    put(folder(d / "dir") / "f")
    with opened(d / "dir", os.O_RDONLY) as f:
        try:
            os.lseek(f, 0, os.SEEK_DATA)
        except OSError as error:
            true(error.errno in (errno.EINVAL, errno.ENXIO), f"errno {error.errno}")
        same(
            [entry.name for entry in linux.read_directory(f) if b"." not in entry.name], [b"f"], ""
        )


@case()
def copied_sparsely(d: Path) -> None:
    """cp --sparse's way through a file: copying the pieces alone gives the same file."""
    with opened(d / "a", NEW) as a, opened(d / "b", NEW) as b:
        for n in (0, 3, 4, 9):
            os.pwrite(a, os.urandom(UNIT), n * UNIT)
        os.ftruncate(a, 12 * UNIT)
        for start, end in pieces(a):
            os.pwrite(b, os.pread(a, end - start, start), start)
        os.ftruncate(b, 12 * UNIT)
        same(os.fstat(b).st_blocks, os.fstat(a).st_blocks, "blocks")
        same(pieces(b), pieces(a), "pieces of the copy")
    true((d / "a").read_bytes() == (d / "b").read_bytes(), "other bytes")
