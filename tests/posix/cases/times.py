"""atime, mtime, ctime: what changes which, to the nanosecond."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.posix import linux
from tests.posix.case import NotApplicable, case, refuse, same, table, true
from tests.posix.tools import OLD, aged, coarse_now, folder, opened, put, tick


class Stamps(NamedTuple):
    """The three times of a file in nanoseconds."""

    atime: int
    mtime: int
    ctime: int


def _stamps(path: Path) -> Stamps:
    found = path.lstat()
    return Stamps(found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)


def _fresh(d: Path) -> Path:
    """Return a directory with a file, a link, a subdirectory, two names of a file and a spare."""
    place = folder(d / "place")
    put(place / "f", b"x" * 100)
    put(place / "other")
    (place / "s").symlink_to("f")
    folder(place / "sub")
    os.link(place / "f", place / "second")
    for path in (*place.iterdir(), place):
        aged(path)
    tick()
    return place


def _write(path: Path) -> None:
    with opened(path, os.O_WRONLY) as f:
        os.write(f, b"y")


# What each operation must change: (operation, [(name, times)]); "." is the directory.
# a, m, c are the times that must move; all others of the named file must not.
OPERATIONS: dict[str, tuple[Callable[[Path], object], dict[str, str]]] = {
    "create": (lambda p: put(p / "new"), {".": "mc", "f": ""}),
    "mkdir": (lambda p: os.mkdir(p / "new"), {".": "mc", "f": ""}),
    "symlink": (lambda p: os.symlink("x", p / "new"), {".": "mc"}),
    "mkfifo": (lambda p: os.mkfifo(p / "new"), {".": "mc"}),
    "link": (lambda p: os.link(p / "f", p / "new"), {".": "mc", "f": "c", "second": "c"}),
    "unlink": (lambda p: os.unlink(p / "second"), {".": "mc", "f": "c"}),
    "rmdir": (lambda p: os.rmdir(p / "sub"), {".": "mc", "f": ""}),
    "rename": (lambda p: os.rename(p / "other", p / "new"), {".": "mc"}),
    "rename_over": (lambda p: os.rename(p / "other", p / "second"), {".": "mc", "f": "c"}),
    "rename_away": (lambda p: os.rename(p / "f", p / "sub" / "f"), {".": "mc", "sub": "mc"}),
    "write": (lambda p: _write(p / "f"), {".": "", "f": "mc"}),
    "truncate": (lambda p: os.truncate(p / "f", 10), {".": "", "f": "mc"}),
    "truncate_longer": (lambda p: os.truncate(p / "f", 1000), {"f": "mc"}),
    "open_truncating": (
        lambda p: os.close(os.open(p / "f", os.O_WRONLY | os.O_TRUNC)),
        {"f": "mc"},
    ),
    "open": (lambda p: os.close(os.open(p / "f", os.O_RDWR)), {".": "", "f": ""}),
    "stat": (lambda p: os.stat(p / "f"), {".": "", "f": ""}),
    "chmod": (lambda p: os.chmod(p / "f", 0o600), {".": "", "f": "c", "second": "c"}),
    "chown": (lambda p: os.chown(p / "f", os.getuid(), os.getgid()), {".": "", "f": "c"}),
    "setxattr": (lambda p: os.setxattr(p / "f", "user.x", b"1"), {".": "", "f": "c"}),
    "chmod_directory": (lambda p: os.chmod(p / "sub", 0o700), {".": "", "sub": "c"}),
    "write_nothing": (lambda p: os.write(os.open(p / "f", os.O_WRONLY), b""), {"f": ""}),
    "failing_create": (lambda p: _fails(os.mkdir, p / "f"), {".": "", "f": ""}),
    "failing_unlink": (lambda p: _fails(os.unlink, p / "missing"), {".": ""}),
}


def _fails(call: Callable[[Path], object], path: Path) -> None:
    try:
        call(path)
    except OSError:
        return
    raise AssertionError("the call succeeded")


@table({name: (name,) for name in OPERATIONS})
def moved_by(d: Path, name: str) -> None:
    """The operation moves exactly the times that POSIX lists for it."""
    place = _fresh(d)
    operation, wanted = OPERATIONS[name]
    paths = {key: place / key for key in wanted}
    before = {key: _stamps(path) for key, path in paths.items()}
    operation(place)
    for key, times in wanted.items():
        after = _stamps(paths[key])
        moved = "".join(t for t, x, y in zip("amc", before[key], after, strict=True) if x != y)
        same(moved, times, f"times of {key} that moved")


@case()
def mtime_and_ctime_agree(d: Path) -> None:
    """A write gives mtime and ctime the same, present time."""
    put(d / "f")
    start = coarse_now()
    _write(d / "f")
    stamps = _stamps(d / "f")
    same(stamps.mtime, stamps.ctime, "mtime and ctime")
    true(start <= stamps.mtime <= time.time_ns(), "mtime is not now")


@case()
def a_new_file_has_one_time(d: Path) -> None:
    """The three times of a new file are equal and present, and so is the directory's mtime."""
    start = coarse_now()
    os.close(os.open(d / "f", os.O_CREAT | os.O_EXCL))
    stamps = _stamps(d / "f")
    same(len(set(stamps)), 1, "different times")
    true(start <= stamps.atime <= time.time_ns(), "not now")
    true(_stamps(d).mtime >= start, "the directory's mtime is not now")


@table({"zero": (0,), "nine": (999_999_999,), "odd": (123_456_789,), "one": (1,)})
def nanoseconds_are_kept(d: Path, nanoseconds: int) -> None:
    """utimensat keeps all nine digits, on files, directories and links."""
    put(d / "f")
    folder(d / "dir")
    (d / "s").symlink_to("f")
    want = (1_500_000_000 * 10**9 + nanoseconds, 1_600_000_000 * 10**9 + nanoseconds)
    for name in ("f", "dir", "s"):
        os.utime(d / name, ns=want, follow_symlinks=False)
        same(_stamps(d / name)[:2], want, name)


@table({"1969": (-86400,), "1901": (-(2**31),), "2038": (2**31,), "2106": (2**32 + 5,)})
def far_years_are_kept(d: Path, seconds: int) -> None:
    """Times before 1970 and after 2038 are kept."""
    os.utime(put(d / "f"), (seconds, seconds))
    same(int((d / "f").stat().st_mtime), seconds, "mtime")


@case()
def utime_now(d: Path) -> None:
    """UTIME_NOW sets the present, for one of the two alone."""
    aged(put(d / "f"))
    start = coarse_now()
    linux.utimensat(d / "f", (0, linux.UTIME_NOW), (5, 6))
    stamps = _stamps(d / "f")
    true(start <= stamps.atime <= time.time_ns(), "atime is not now")
    same(stamps.mtime, 5 * 10**9 + 6, "mtime")


@case()
def utime_omit(d: Path) -> None:
    """UTIME_OMIT leaves a time alone; both omitted leave ctime alone, too."""
    aged(put(d / "f"))
    linux.utimensat(d / "f", (0, linux.UTIME_OMIT), (5, 6))
    same(_stamps(d / "f")[:2], (OLD, 5 * 10**9 + 6), "times")
    linux.utimensat(d / "f", (7, 8), (0, linux.UTIME_OMIT))
    same(_stamps(d / "f")[:2], (7 * 10**9 + 8, 5 * 10**9 + 6), "times")
    before = _stamps(d / "f")
    tick()
    linux.utimensat(d / "f", (0, linux.UTIME_OMIT), (0, linux.UTIME_OMIT))
    same(_stamps(d / "f"), before, "times when both are omitted")


@case()
def utime_refuses_bad_nanoseconds(d: Path) -> None:
    """Nanoseconds beyond 999,999,999 are EINVAL."""
    refuse(errno.EINVAL, linux.utimensat, put(d / "f"), (1, 10**9), (1, 0))
    refuse(errno.EINVAL, linux.utimensat, d / "f", (1, 0), (1, -1))


@case()
def utime_moves_ctime(d: Path) -> None:
    """Setting times back moves ctime to the present."""
    put(d / "f")
    before = _stamps(d / "f").ctime
    tick()
    os.utime(d / "f", (1, 1))
    true(_stamps(d / "f").ctime > before, "ctime stood still")


@case()
def utime_of_a_link(d: Path) -> None:
    """AT_SYMLINK_NOFOLLOW sets the link's times; without it the target's."""
    aged(put(d / "f"))
    (d / "s").symlink_to("f")
    os.utime(d / "s", (3, 3), follow_symlinks=False)
    os.utime(d / "s", (4, 4))
    same(((d / "s").lstat().st_mtime, (d / "f").stat().st_mtime), (3, 4), "mtimes")


@case()
def utime_by_descriptor(d: Path) -> None:
    """futimens works on a read-only descriptor of the owner."""
    with opened(put(d / "f"), os.O_RDONLY) as f:
        os.utime(f, ns=(11, 12))
    same(_stamps(d / "f")[:2], (11, 12), "times")


@case()
def reading_moves_atime(d: Path) -> None:
    """A read moves an atime that is older than mtime (relatime)."""
    _needs_atime(d)
    path = put(d / "f", b"abc")
    os.utime(path, ns=(OLD, OLD + 1))
    path.read_bytes()
    true(_stamps(path).atime > OLD, "atime stood still")


@case()
def listing_moves_atime(d: Path) -> None:
    """Listing a directory moves its atime likewise."""
    _needs_atime(d)
    place = folder(d / "dir")
    put(place / "f")
    os.utime(place, ns=(OLD, OLD + 1))
    os.listdir(place)
    true(_stamps(place).atime > OLD, "atime stood still")


@case()
def readlink_moves_atime(d: Path) -> None:
    """Reading a link moves its atime likewise."""
    _needs_atime(d)
    (d / "s").symlink_to("x")
    os.utime(d / "s", ns=(OLD, OLD + 1), follow_symlinks=False)
    os.readlink(d / "s")
    true(_stamps(d / "s").atime > OLD, "atime stood still")


@case()
def second_read_is_lazy(d: Path) -> None:
    """With relatime a second read at once leaves atime alone."""
    if not os.statvfs(d).f_flag & os.ST_RELATIME:
        raise NotApplicable("the directory is not mounted with relatime")
    path = put(d / "f", b"abc")
    path.read_bytes()
    first = _stamps(path).atime
    tick()
    path.read_bytes()
    same(_stamps(path).atime, first, "atime")


@case()
def noatime_flag(d: Path) -> None:
    """O_NOATIME reads without moving atime."""
    path = put(d / "f", b"abc")
    os.utime(path, ns=(OLD, OLD + 1))
    with opened(path, os.O_RDONLY | os.O_NOATIME) as f:
        os.read(f, 3)
    same(_stamps(path).atime, OLD, "atime")


def _needs_atime(d: Path) -> None:
    if os.statvfs(d).f_flag & os.ST_NOATIME:
        raise NotApplicable("the directory is mounted with noatime")


@case()
def birth_time(d: Path) -> None:
    """statx reports a birth time that lies at the creation and never moves."""
    start = coarse_now()
    put(d / "f")
    born = linux.birth_time(d / "f")
    true(born is not None, "statx reports no birth time")
    true(born is not None and start <= born <= time.time_ns(), "it is not the creation's time")
    os.utime(d / "f", (1, 1))
    _write(d / "f")
    same(linux.birth_time(d / "f"), born, "birth time afterwards")


@case()
def a_write_is_seen_in_fstat(d: Path) -> None:
    """fstat right after each of 50 writes shows times that never go back."""
    with opened(put(d / "f"), os.O_RDWR) as f:
        last = 0
        for _ in range(50):
            os.write(f, b"z")
            now = os.fstat(f).st_mtime_ns
            true(now >= last, "mtime went back")
            last = now
