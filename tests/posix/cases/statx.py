"""statx(2): the fields beyond stat(2), birth times above all."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

from tests.posix import linux
from tests.posix.case import case, refuse, same, table, true
from tests.posix.tools import coarse_now, folder, opened, put, tick

BASIC, BIRTH = linux.STATX_BASIC, linux.STATX_BTIME
NOFOLLOW = linux.AT_SYMLINK_NOFOLLOW


def _born(path: Path) -> int:
    """The birth time; fails the case when there is none."""
    found = linux.birth_time(path)
    if found is None:
        true(False, "statx reports no birth time")
    return found or 0


def _symlink(path: Path) -> None:
    path.symlink_to("target")


def _fifo(path: Path) -> None:
    os.mkfifo(path)


MAKERS: dict[str, tuple[Callable[[Path], object]]] = {
    "file": (put,), "directory": (folder,), "link": (_symlink,), "fifo": (_fifo,),
}  # fmt: skip


@table(MAKERS)
def birth(d: Path, make: Callable[[Path], object]) -> None:
    """Every kind of file is born when it is made, at none of its later times."""
    start = coarse_now()
    make(d / "a")
    end = time.time_ns()
    tick()
    make(d / "b")
    true(start <= _born(d / "a") <= end, "born at another time")
    true(_born(d / "a") < _born(d / "b"), "born at one time")
    found = linux.statx(d / "a", BASIC | BIRTH, NOFOLLOW)
    true(found.btime <= found.mtime and found.btime <= found.ctime, "changed before it was born")


def _write(path: Path) -> None:
    with opened(path, os.O_WRONLY) as f:
        os.write(f, b"more")
        os.fsync(f)


def _move(path: Path) -> None:
    path.rename(path.with_name("other"))
    path.with_name("other").rename(path)


def _move_over(path: Path) -> None:
    path.rename(put(path.with_name("victim")))
    path.with_name("victim").rename(path)


def _link(path: Path) -> None:
    os.link(path, path.with_name("second"))
    os.unlink(path)
    path.with_name("second").rename(path)


def _truncate(path: Path) -> None:
    os.truncate(path, 0)
    path.open("w").close()


def _chmod(path: Path) -> None:
    path.chmod(0o600)


def _chown(path: Path) -> None:
    os.chown(path, os.geteuid(), os.getegid())


def _old_times(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def _xattr(path: Path) -> None:
    os.setxattr(path, "user.mark", b"1")


CHANGES: dict[str, tuple[Callable[[Path], object]]] = {
    "write": (_write,), "truncate": (_truncate,), "rename": (_move,), "replace": (_move_over,),
    "link": (_link,), "chmod": (_chmod,), "chown": (_chown,), "utime": (_old_times,),
    "xattr": (_xattr,), "read": (Path.read_bytes,),
}  # fmt: skip


@table(CHANGES)
def birth_stays(d: Path, change: Callable[[Path], object]) -> None:
    """Nothing that happens to a file moves its birth time."""
    path = put(d / "f", b"abc")
    born, inode = _born(path), path.stat().st_ino
    tick()
    change(path)
    same((_born(path), path.stat().st_ino), (born, inode), "birth time and inode")


@case()
def birth_of_a_copy(d: Path) -> None:
    """A new file of an old name, and one renamed there, have births of their own."""
    put(d / "f")
    first = _born(d / "f")
    tick()
    os.unlink(d / "f")
    put(d / "f")
    true(_born(d / "f") > first, "the new file is as old as the one before")
    tick()
    put(d / "g")
    born = _born(d / "g")
    os.rename(d / "g", d / "f")
    same(_born(d / "f"), born, "birth time after replacing")


@case()
def birth_of_the_directory(d: Path) -> None:
    """A directory's birth time stays while names come and go in it."""
    place = folder(d / "dir")
    born = _born(place)
    tick()
    put(place / "f")
    folder(place / "sub")
    os.unlink(place / "f")
    same(_born(place), born, "birth time")


@table({"file": (put,), "directory": (folder,), "link": (_symlink,)})
def agrees_with_stat(d: Path, make: Callable[[Path], object]) -> None:
    """Each field that both calls have is the same in both."""
    make(d / "x")
    found, known = linux.statx(d / "x", BASIC, NOFOLLOW), (d / "x").lstat()
    same(found.mask & BASIC, BASIC, "mask")
    same(
        (found.inode, found.mode, found.nlink, found.uid, found.gid, found.size, found.blocks),
        (known.st_ino, known.st_mode, known.st_nlink, known.st_uid, known.st_gid,
         known.st_size, known.st_blocks), "fields",
    )  # fmt: skip
    same(
        (found.atime, found.mtime, found.ctime),
        (known.st_atime_ns, known.st_mtime_ns, known.st_ctime_ns), "times",
    )  # fmt: skip
    same(os.makedev(*found.device), known.st_dev, "device")


@table({"nothing": (0,), "type": (1,), "size": (0x200,), "birth": (BIRTH,), "all": (0xFFF,)})
def any_mask(d: Path, mask: int) -> None:
    """Whatever is asked for is told, and marked as told."""
    put(d / "f", b"abc")
    found = linux.statx(d / "f", mask)
    same(found.mask & mask, mask, "mask")
    if mask & 0x200:
        same(found.size, 3, "size")


@table(
    {
        "as-stat": (linux.AT_STATX_SYNC_AS_STAT,),
        "force": (linux.AT_STATX_FORCE_SYNC,),
        "do-not": (linux.AT_STATX_DONT_SYNC,),
    }
)
def synchronization(d: Path, flags: int) -> None:
    """With each of the three flags the fields are told; what this host changed is never stale."""
    path = put(d / "f", b"abc")
    for size in (3, 10, 70_000, 1):
        os.truncate(path, size)
        found = linux.statx(path, BASIC | BIRTH, flags)
        same((found.size, found.mode, found.nlink), (size, 0o100644, 1), "size, mode, links")
        with opened(path, os.O_RDONLY) as f:
            same(linux.statx("", BASIC, flags | linux.AT_EMPTY_PATH, f).size, size, "by descriptor")


@case()
def refused(d: Path) -> None:
    """Contradicting flags and the reserved mask bit are EINVAL, missing names ENOENT."""
    path = put(d / "f")
    both = linux.AT_STATX_FORCE_SYNC | linux.AT_STATX_DONT_SYNC
    refuse(errno.EINVAL, linux.statx, path, BASIC, both)
    refuse(errno.EINVAL, linux.statx, path, 0x80000000)
    refuse(errno.EINVAL, linux.statx, path, BASIC, 0x8000_0000 - 0x1_0000_0000)
    refuse(errno.ENOENT, linux.statx, d / "missing")
    refuse(errno.ENOENT, linux.statx, "", BASIC, 0, linux.AT_FDCWD)
    refuse(errno.ENOTDIR, linux.statx, path / "f")


@case()
def by_descriptor(d: Path) -> None:
    """AT_EMPTY_PATH asks about the descriptor, O_PATH and nameless ones included."""
    path = put(d / "f", b"abc")
    want = linux.statx(path)
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_PATH):
        with opened(path, flags) as f:
            same(linux.statx("", BASIC | BIRTH, linux.AT_EMPTY_PATH, f), want, "by descriptor")
    with opened(path, os.O_RDONLY) as f:
        os.unlink(path)
        found = linux.statx("", BASIC | BIRTH, linux.AT_EMPTY_PATH, f)
        same((found.nlink, found.btime), (0, want.btime), "links and birth time without a name")


@case()
def relative_to_a_directory(d: Path) -> None:
    """A path counts from the directory's descriptor."""
    place = folder(d / "dir")
    put(place / "f", b"abc")
    with opened(place, os.O_RDONLY) as directory:
        same(linux.statx("f", BASIC, 0, directory).size, 3, "size")
        refuse(errno.ENOENT, linux.statx, "g", BASIC, 0, directory)


@case()
def links_are_followed_or_not(d: Path) -> None:
    """Without AT_SYMLINK_NOFOLLOW the target is told, with it the link."""
    put(d / "f", b"abc")
    (d / "s").symlink_to("f")
    same(linux.statx(d / "s").inode, (d / "f").stat().st_ino, "followed")
    same(linux.statx(d / "s", BASIC, NOFOLLOW).inode, (d / "s").lstat().st_ino, "not followed")


@case()
def mount_number(d: Path) -> None:
    """STATX_MNT_ID names the mount: one number in the tree, the one of /proc/self/mountinfo."""
    put(folder(d / "dir") / "f")
    numbers = set()
    for path in (d, d / "dir", d / "dir" / "f"):
        found = linux.statx(path, BASIC | linux.STATX_MNT_ID)
        true(found.mask & linux.STATX_MNT_ID, "no mount number")
        true(not found.attributes & linux.STATX_ATTR_MOUNT_ROOT, "a mount's root")
        numbers.add(found.mount)
    table_of_mounts = Path("/proc/self/mountinfo").read_text()
    listed = {int(line.split()[0]) for line in table_of_mounts.splitlines()}
    same(len(numbers), 1, "mounts in the tree")
    true(numbers <= listed, "a mount that nobody knows")


@case()
def nanoseconds(d: Path) -> None:
    """Times are told to the nanosecond, also before 1970."""
    path = put(d / "f")
    for moment in ((1, 999_999_999), (-5, 1), (2**32 + 1, 123_456_789)):
        linux.utimensat(path, moment, moment)
        want = moment[0] * 10**9 + moment[1]
        found = linux.statx(path)
        same((found.atime, found.mtime), (want, want), "times")
