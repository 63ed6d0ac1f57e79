"""How a path is walked: openat2(2) with its rules, O_PATH descriptors, calls below a directory."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from tests.posix import linux
from tests.posix.case import case, refuse, same, table
from tests.posix.tools import BOB, as_user, folder, opened, put

BENEATH, IN_ROOT = linux.RESOLVE_BENEATH, linux.RESOLVE_IN_ROOT
NO_LINKS, NO_MAGIC = linux.RESOLVE_NO_SYMLINKS, linux.RESOLVE_NO_MAGICLINKS
NO_XDEV, CACHED = linux.RESOLVE_NO_XDEV, linux.RESOLVE_CACHED


def _tree(d: Path) -> Path:
    """A small world: files inside and outside of `top`, links of every kind between them."""
    put(d / "outside", b"outside")
    top = folder(d / "top")
    put(top / "f", b"top")
    put(folder(folder(top / "a") / "b") / "f", b"deep")
    for name, target in {
        "to-file": "f", "to-dir": "a", "up": "a/../f", "out": "../outside", "missing": "nobody",
        "absolute": str(top / "f"), "absolute-short": "/f", "a/up-out": "../../outside",
        "a/up-in": "../f", "loop": "loop", "chain": "to-file",
    }.items():  # fmt: skip
        (top / name).symlink_to(target)
    return top


#: Path, rules, and what comes: bytes of the file, or an errno.
WALKS: dict[str, tuple[str, int, bytes | int]] = {
    "plain": ("a/b/f", 0, b"deep"),
    "out-allowed": ("out", 0, b"outside"),
    "beneath": ("a/b/f", BENEATH, b"deep"),
    "beneath-dots": ("a/b/../../f", BENEATH, b"top"),
    "beneath-out": ("../outside", BENEATH, errno.EXDEV),
    "beneath-there-and-back": ("../top/f", BENEATH, errno.EXDEV),
    "beneath-link": ("to-file", BENEATH, b"top"),
    "beneath-link-up-in": ("a/up-in", BENEATH, b"top"),
    "beneath-link-out": ("out", BENEATH, errno.EXDEV),
    "beneath-link-up-out": ("a/up-out", BENEATH, errno.EXDEV),
    "beneath-absolute-link": ("absolute", BENEATH, errno.EXDEV),
    "beneath-absolute-path": ("/etc/passwd", BENEATH, errno.EXDEV),
    "in-root": ("a/b/f", IN_ROOT, b"deep"),
    "in-root-dots": ("../../../f", IN_ROOT, b"top"),
    "in-root-absolute-path": ("/a/b/f", IN_ROOT, b"deep"),
    "in-root-absolute-link": ("absolute-short", IN_ROOT, b"top"),
    "in-root-link-out": ("out", IN_ROOT, errno.ENOENT),
    "in-root-link-up": ("a/up-out", IN_ROOT, errno.ENOENT),
    "no-symlinks": ("a/b/f", NO_LINKS, b"deep"),
    "no-symlinks-at-the-end": ("to-file", NO_LINKS, errno.ELOOP),
    "no-symlinks-on-the-way": ("to-dir/b/f", NO_LINKS, errno.ELOOP),
    "no-symlinks-dangling": ("missing", NO_LINKS, errno.ELOOP),
    "no-magic-links": ("chain", NO_MAGIC, b"top"),
    "no-xdev": ("a/b/f", NO_XDEV, b"deep"),
    "no-xdev-link": ("up", NO_XDEV, b"top"),
    "no-xdev-out": ("/proc/self/status", NO_XDEV, errno.EXDEV),
    "loop": ("loop", BENEATH, errno.ELOOP),
    "nobody": ("missing", BENEATH, errno.ENOENT),
    "both-scopes": ("f", BENEATH | IN_ROOT, errno.EINVAL),
    "unknown-rule": ("f", 1 << 20, errno.EINVAL),
    "file-on-the-way": ("f/x", BENEATH, errno.ENOTDIR),
}


@table(WALKS)
def rules(d: Path, path: str, resolve: int, want: bytes | int) -> None:
    """Each rule lets the walks through that keep it, and stops the others with its errno."""
    with opened(_tree(d), os.O_RDONLY | os.O_DIRECTORY) as top:
        for _ in range(2):  # the second walk finds the names in the caches
            if isinstance(want, int):
                refuse(want, linux.openat2, path, os.O_RDONLY, resolve, top)
            else:
                f = linux.openat2(path, os.O_RDONLY, resolve, top)
                same(os.read(f, 99), want, "bytes")
                os.close(f)


@case()
def creating_under_rules(d: Path) -> None:
    """O_CREAT keeps the rules, too: inside it makes the file, outside it does not."""
    with opened(_tree(d), os.O_RDONLY) as top:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        os.close(linux.openat2("a/new", flags, BENEATH, top, 0o600))
        refuse(errno.EXDEV, linux.openat2, "../new", flags, BENEATH, top, 0o600)
        os.close(linux.openat2("../../new", flags, IN_ROOT, top, 0o600))
    same(stat.S_IMODE((d / "top" / "a" / "new").stat().st_mode), 0o600, "mode")
    same(((d / "new").exists(), (d / "top" / "new").exists()), (False, True), "where it was made")


@case()
def cached_walks(d: Path) -> None:
    """RESOLVE_CACHED answers from the caches or says EAGAIN; what it opens is the right file."""
    path = put(d / "f", b"abc")
    for _ in range(5):
        try:
            f = linux.openat2(path, os.O_RDONLY, CACHED)
        except BlockingIOError:
            path.stat()
            continue
        same(os.read(f, 9), b"abc", "bytes")
        os.close(f)
    refuse((errno.EINVAL, errno.EAGAIN), linux.openat2, d / "n", os.O_CREAT, CACHED)


@case()
def strict_arguments(d: Path) -> None:
    """openat2 refuses what open ignores: unknown flags, a mode without O_CREAT, EINVAL."""
    path = put(d / "f")
    refuse(errno.EINVAL, linux.openat2, path, os.O_RDONLY | (1 << 40), 0)
    refuse(errno.EINVAL, linux.openat2, path, os.O_RDONLY, 0, linux.AT_FDCWD, 0o644)
    refuse(errno.EINVAL, linux.openat2, d / "new", os.O_CREAT | os.O_WRONLY, 0, -100, 0o200000)
    refuse(errno.ENOENT, linux.openat2, "", os.O_RDONLY, 0)


@case()
def racing_directory_moves(d: Path) -> None:
    """A directory that is moved out from under a descriptor takes the walk below it along."""
    top = _tree(d)
    with opened(top / "a", os.O_RDONLY) as a:
        os.rename(top / "a", d / "moved")
        f = linux.openat2("b/f", os.O_RDONLY, BENEATH, a)
        same(os.read(f, 9), b"deep", "bytes")
        os.close(f)
        refuse(errno.EXDEV, linux.openat2, "../outside", os.O_RDONLY, BENEATH, a)
        same(os.read(os.open("../outside", os.O_RDONLY, dir_fd=a), 9), b"outside", "one up")


@case()
def path_directory(d: Path) -> None:
    """An O_PATH directory serves every call that goes below a directory, and lists nothing."""
    place = folder(d / "dir")
    with opened(place, os.O_PATH | os.O_DIRECTORY) as p:
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=p))
        os.mkdir("sub", dir_fd=p)
        os.symlink("f", "s", dir_fd=p)
        os.link("f", "g", src_dir_fd=p, dst_dir_fd=p)
        os.rename("g", "sub/h", src_dir_fd=p, dst_dir_fd=p)
        os.chmod("f", 0o600, dir_fd=p)
        os.utime("f", ns=(5, 7), dir_fd=p)
        same(os.readlink("s", dir_fd=p), "f", "link")
        found = os.stat("f", dir_fd=p)
        got = (stat.S_IMODE(found.st_mode), found.st_mtime_ns, found.st_nlink)
        same(got, (0o600, 7, 2), "mode, mtime, links")
        os.unlink("s", dir_fd=p)
        refuse(errno.EBADF, os.listdir, p)
        refuse(errno.EBADF, os.fchmod, p, 0o700)
        refuse(errno.EBADF, os.fsync, p)
        os.fchdir(p)
        same(os.stat("f").st_ino, found.st_ino, "after fchdir")
    same(sorted(os.listdir(place)), ["f", "sub"], "names")


@case()
def path_descriptor_of_a_file(d: Path) -> None:
    """An O_PATH file tells its attributes, opens again through /proc, and reads nothing itself."""
    with opened(put(d / "f", b"abc"), os.O_PATH) as p:
        same(os.fstat(p).st_size, 3, "size")
        for call in (os.read, os.ftruncate):
            refuse((errno.EBADF, errno.EINVAL), call, p, 1)
        refuse(errno.EBADF, os.fchown, p, -1, -1)
        refuse(errno.EBADF, os.getxattr, p, "user.x")
        refuse(errno.ENOTDIR, os.stat, "x", dir_fd=p)
        os.rename(d / "f", d / "g")
        again = os.open(f"/proc/self/fd/{p}", os.O_RDWR)
        os.write(again, b"xyz")
        os.close(again)
        os.unlink(d / "g")
        same(os.fstat(p).st_nlink, 0, "links")
        gone = os.open(f"/proc/self/fd/{p}", os.O_RDONLY)
        same(os.read(gone, 9), b"xyz", "bytes of the removed file")
        os.close(gone)


@case(root=True)
def path_descriptor_needs_search_only(d: Path) -> None:
    """O_PATH needs no permission on the file itself; opening it again does."""
    put(d / "f", b"abc", 0o000)

    def look() -> int:
        with opened(d / "f", os.O_PATH) as p:
            refuse(errno.EACCES, os.open, f"/proc/self/fd/{p}", os.O_RDONLY)
            return os.fstat(p).st_size

    same(as_user(BOB, look), 3, "size")


@case()
def removed_directory(d: Path) -> None:
    """Below a directory that was removed nothing can be made or found: ENOENT."""
    place = folder(d / "dir")
    with opened(place, os.O_PATH) as p, opened(place, os.O_RDONLY) as r:
        os.rmdir(place)
        for f in (p, r):
            refuse(errno.ENOENT, os.open, "new", os.O_CREAT | os.O_WRONLY, dir_fd=f)
            refuse(errno.ENOENT, os.mkdir, "new", dir_fd=f)
            refuse(errno.ENOENT, os.stat, "new", dir_fd=f)
            same(os.fstat(f).st_nlink, 0, "links")
        same(os.listdir(r), [], "names")


@case()
def wrong_directories(d: Path) -> None:
    """A file as directory is ENOTDIR, a closed descriptor EBADF; absolute paths need neither."""
    put(d / "f", b"abc")
    with opened(d / "f", os.O_RDONLY) as f:
        refuse(errno.ENOTDIR, os.stat, "x", dir_fd=f)
        refuse(errno.ENOTDIR, linux.openat2, "x", os.O_RDONLY, BENEATH, f)
    refuse(errno.EBADF, os.stat, "x", dir_fd=f)
    same(os.stat(d / "f", dir_fd=f).st_size, 3, "by an absolute path")


@table({"mkdir": (os.mkdir,), "rmdir": (os.rmdir,), "unlink": (os.unlink,)})
def dots(d: Path, call: object) -> None:
    """`.` and `..` as last name are refused, each call with errnos of its own."""
    place = folder(folder(d / "dir") / "sub")
    assert callable(call)
    wanted = (errno.EEXIST, errno.EINVAL, errno.ENOTEMPTY, errno.EISDIR, errno.EBUSY)
    for name in (".", ".."):
        refuse(wanted, call, f"{place}/{name}")
    same(os.listdir(d / "dir"), ["sub"], "names")
