"""O_TMPFILE: files that are born without a name, and how they get one, or none."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from tests.posix import linux
from tests.posix.case import case, eventually, refuse, same, table, true
from tests.posix.cases.acls import ACCESS, DEFAULT, USER, plain
from tests.posix.peer import Peer
from tests.posix.tools import ALICE, BOB, as_user, folder, give, opened, put, undisturbed

TMP = os.O_TMPFILE | os.O_RDWR
AGAIN = "/proc/self/fd"


@contextlib.contextmanager
def _nameless(d: Path, extra: int = 0, mode: int = 0o644) -> Iterator[int]:
    with opened(d, TMP | extra, mode) as f:
        yield f


def _name(f: int, path: Path) -> None:
    """Give it a name by way of /proc, which needs no privilege."""
    linux.linkat(linux.AT_FDCWD, f"{AGAIN}/{f}", path, linux.AT_SYMLINK_FOLLOW)


@case()
def is_a_file(d: Path) -> None:
    """It is a plain file of the caller on the same device, empty, with no link."""
    with _nameless(d) as f:
        found = os.fstat(f)
        same((found.st_size, found.st_nlink, found.st_blocks), (0, 0, 0), "size, links, blocks")
        same((found.st_uid, found.st_gid), (os.geteuid(), os.getegid()), "owner")
        true(stat.S_ISREG(found.st_mode), "kind")
        same(found.st_dev, d.stat().st_dev, "device")


@case()
def nobody_sees_it(d: Path) -> None:
    """The directory stays empty, keeps its times, and can be removed under it."""
    place = folder(d / "dir")
    before = place.stat()
    with _nameless(place) as f:
        os.write(f, b"abc")
        same(os.listdir(place), [], "names")
        after = place.stat()
        same((after.st_mtime_ns, after.st_nlink), (before.st_mtime_ns, before.st_nlink), "")
        os.rmdir(place)
        os.write(f, b"def")
        same(os.pread(f, 9, 0), b"abcdef", "bytes")


@case()
def two_are_two(d: Path) -> None:
    """Each has its own inode and bytes."""
    with _nameless(d) as f, _nameless(d) as g:
        true(os.fstat(f).st_ino != os.fstat(g).st_ino, "one inode")
        os.write(f, b"f")
        os.write(g, b"gg")
        same((os.pread(f, 9, 0), os.pread(g, 9, 0)), (b"f", b"gg"), "bytes")


@case()
def everything_works_on_it(d: Path) -> None:
    """Truncation, holes, chmod, times, xattrs, fsync: as with any file."""
    with _nameless(d) as f:
        os.pwrite(f, b"x" * 10, 100_000)
        os.ftruncate(f, 200_000)
        os.fchmod(f, 0o751)
        os.utime(f, ns=(5, 7))
        os.setxattr(f, "user.mark", b"1")
        os.fsync(f)
        found = os.fstat(f)
        got = (found.st_size, stat.S_IMODE(found.st_mode), found.st_mtime_ns)
        same(got, (200_000, 0o751, 7), "size, mode, mtime")
        same(os.getxattr(f, "user.mark"), b"1", "xattr")
        same(os.pread(f, 12, 99_999), b"\0" + b"x" * 10 + b"\0", "bytes")


@case()
def opened_again(d: Path) -> None:
    """Through /proc/self/fd it can be opened again, also after the first close."""
    with _nameless(d) as f:
        os.write(f, b"abc")
        again = os.open(f"{AGAIN}/{f}", os.O_RDONLY)
    same(os.read(again, 9), b"abc", "bytes through the second descriptor")
    refuse(errno.EBADF, os.write, again, b"x")
    os.close(again)


@table({"both": (os.O_RDWR,), "write": (os.O_WRONLY,), "append": (os.O_WRONLY | os.O_APPEND,)})
def access_modes(d: Path, flags: int) -> None:
    """It may be opened for writing in each way."""
    with opened(d, os.O_TMPFILE | flags) as f:
        same((os.write(f, b"abc"), os.write(f, b"def")), (3, 3), "bytes written")
        same(os.fstat(f).st_size, 6, "size")


@case()
def refused(d: Path) -> None:
    """Read-only is EINVAL, O_CREAT with it is EINVAL, a file as directory ENOTDIR."""
    refuse(errno.EINVAL, os.open, d, os.O_TMPFILE | os.O_RDONLY)
    refuse(errno.EINVAL, os.open, d, TMP | os.O_CREAT)
    refuse(errno.ENOTDIR, os.open, put(d / "f"), TMP)
    refuse(errno.ENOENT, os.open, d / "missing", TMP)
    same(os.listdir(d), ["f"], "names")


@case()
def gets_a_name(d: Path) -> None:
    """linkat by /proc names it: one link, the same inode, its bytes, and a moved directory."""
    before = d.stat().st_mtime_ns
    with _nameless(d) as f:
        os.write(f, b"abc")
        inode = os.fstat(f).st_ino
        _name(f, d / "name")
        same((os.fstat(f).st_nlink, (d / "name").stat().st_ino), (1, inode), "links and inode")
        os.write(f, b"def")
    same((os.listdir(d), (d / "name").read_bytes()), (["name"], b"abcdef"), "names and bytes")
    true(d.stat().st_mtime_ns >= before, "the directory's mtime")


@case(root=True)
def gets_a_name_by_descriptor(d: Path) -> None:
    """linkat with AT_EMPTY_PATH names it without /proc."""
    with _nameless(d) as f:
        os.write(f, b"abc")
        linux.linkat(f, "", d / "name", linux.AT_EMPTY_PATH)
    same(((d / "name").stat().st_nlink, (d / "name").read_bytes()), (1, b"abc"), "links, bytes")


@case()
def gets_several_names(d: Path) -> None:
    """Once it has a name it has as many as are made; without one again, it stays until closed."""
    place = folder(d / "elsewhere")
    with _nameless(d) as f:
        os.write(f, b"abc")
        _name(f, d / "one")
        _name(f, place / "two")
        os.link(d / "one", d / "three")
        same(os.fstat(f).st_nlink, 3, "links")
        for path in (d / "one", place / "two", d / "three"):
            same(path.read_bytes(), b"abc", "bytes")
            os.unlink(path)
        same((os.fstat(f).st_nlink, os.pread(f, 3, 0)), (0, b"abc"), "links and bytes")
        refuse(errno.ENOENT, _name, f, d / "once-more")


@case()
def name_is_taken(d: Path) -> None:
    """Onto a name that exists: EEXIST, and it stays without one."""
    put(d / "name", b"old")
    with _nameless(d) as f:
        refuse(errno.EEXIST, _name, f, d / "name")
        refuse(errno.ENOENT, _name, f, d / "missing" / "name")
        same((os.fstat(f).st_nlink, (d / "name").read_bytes()), (0, b"old"), "links, bytes")


@case()
def exclusive_gets_none(d: Path) -> None:
    """With O_EXCL it can never be named: ENOENT, by /proc and by descriptor."""
    with _nameless(d, os.O_EXCL) as f:
        os.write(f, b"abc")
        refuse(errno.ENOENT, _name, f, d / "name")
        refuse(errno.ENOENT, linux.linkat, f, "", d / "name", linux.AT_EMPTY_PATH)
    same(os.listdir(d), [], "names")


@case()
def replaces_by_rename(d: Path) -> None:
    """The safe way to write a file: nameless, named beside, renamed over; never half."""
    put(d / "config", b"old")
    for turn in range(20):
        with _nameless(d) as f:
            os.write(f, f"new {turn}".encode())
            os.fsync(f)
            _name(f, d / "config.new")
        os.rename(d / "config.new", d / "config")
        same((d / "config").read_bytes(), f"new {turn}".encode(), "bytes")
    same(os.listdir(d), ["config"], "names")


@table({"0022": (0o022, 0o644), "0": (0, 0o666), "0077": (0o077, 0o600)})
def umask(d: Path, mask: int, want: int) -> None:
    """The umask takes its bits from the asked mode; a mode of 0 still writes."""
    os.umask(mask)
    with _nameless(d, mode=0o666) as f:
        same(stat.S_IMODE(os.fstat(f).st_mode), want, "mode")
    with _nameless(d, mode=0) as f:
        same((stat.S_IMODE(os.fstat(f).st_mode), os.write(f, b"x")), (0, 1), "mode 0")


@case(root=True)
def owner_is_the_caller(d: Path) -> None:
    """It belongs to who opened it; in a setgid directory to that one's group."""
    place = give(folder(d / "dir"), ALICE, 0o2777)
    (d / "plain").mkdir()
    give(d / "plain", ALICE, 0o777)

    def owner(where: Path) -> tuple[int, int]:
        with _nameless(where) as f:
            return os.fstat(f).st_uid, os.fstat(f).st_gid

    same(as_user(BOB, owner, d / "plain"), (BOB.uid, BOB.gid), "owner")
    same(as_user(BOB, owner, place), (BOB.uid, ALICE.gid), "owner in a setgid directory")


@case(root=True)
def needs_permission(d: Path) -> None:
    """In a directory one may not write to: EACCES."""
    place = folder(d / "dir", 0o755)
    refuse(errno.EACCES, as_user, BOB, os.open, place, TMP, 0o644)
    place.chmod(0o777)
    as_user(BOB, os.open, place, TMP, 0o644)


@case(root=True)
def default_list(d: Path) -> None:
    """The directory's default access list becomes the file's, and the umask does not count."""
    place = folder(d / "dir")
    os.setxattr(place, DEFAULT, plain(7, 5, 0, (USER, 6, ALICE.uid)))
    os.umask(0o077)
    with _nameless(place, mode=0o666) as f:
        same(stat.S_IMODE(os.fstat(f).st_mode), 0o660, "mode")
        same(os.getxattr(f, ACCESS), plain(6, 5, 0, (USER, 6, ALICE.uid), mask=6), "list")


@case(limit=60.0)
@undisturbed
def space_is_given_back(d: Path) -> None:
    """What it holds counts as used while it is open, and is free after the last close."""

    def taken() -> int:
        found = os.statvfs(d)
        return (before.f_bfree - found.f_bfree) * found.f_frsize

    before = os.statvfs(d)
    with contextlib.ExitStack() as stack:
        f, *_ = [stack.enter_context(_nameless(d)) for _ in range(200)]
        os.write(f, b"x" * (8 << 20))
        os.fsync(f)
        true(taken() >= 7 << 20, f"{taken()} bytes taken")
        true(os.statvfs(d).f_ffree <= before.f_ffree - 150, "no inodes taken")
    eventually(lambda: taken() < 2 << 20, "the bytes are given back")
    eventually(lambda: os.statvfs(d).f_ffree >= before.f_ffree - 50, "the inodes are given back")


@case(limit=60.0)
@undisturbed
def space_is_given_back_at_death(d: Path) -> None:
    """A killed owner leaves nothing."""
    before = os.statvfs(d)
    owner = Peer()
    f = owner(os.open, d, TMP)
    owner(os.write, f, b"x" * (8 << 20))
    same(owner.kill(), -9, "exit status")
    eventually(
        lambda: (before.f_bfree - os.statvfs(d).f_bfree) * before.f_frsize < 2 << 20,
        "the bytes are given back",
    )


@case(limit=30.0)
def five_hundred(d: Path) -> None:
    """500 at once, every fifth of which gets a name."""
    files = [os.open(d, TMP, 0o644) for _ in range(500)]
    for n, f in enumerate(files):
        os.write(f, struct.pack("=I", n))
    same(len({os.fstat(f).st_ino for f in files}), 500, "different inodes")
    for n in range(0, 500, 5):
        _name(files[n], d / f"n{n}")
    for f in files:
        os.close(f)
    same(len(os.listdir(d)), 100, "names")
    for n in range(0, 500, 5):
        same((d / f"n{n}").read_bytes(), struct.pack("=I", n), f"bytes of {n}")


@case()
def birth(d: Path) -> None:
    """It is born when it is opened, not when it gets its name."""
    with _nameless(d) as f:
        born = linux.statx("", linux.STATX_BTIME, linux.AT_EMPTY_PATH, f)
        true(born.mask & linux.STATX_BTIME, "no birth time")
        _name(f, d / "name")
        same(linux.birth_time(d / "name"), born.btime, "birth time of the named file")
