"""What every call that takes a path answers to a path that is wrong.

The faults are the rows (a missing directory on the way, a file where a directory must be, a name
of 256 bytes, a path of 4,096, a loop of symbolic links, a directory that may not be searched), the
calls are the columns, and each pair is one case. A table instead of forty functions: the rule is
the same for all of them, and a call that differs from its neighbours is the bug that is looked for.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from tests.posix import linux
from tests.posix.case import case, refuse, table
from tests.posix.tools import ALICE, as_user, folder, put

Call = Callable[[Path, Path], object]


def _open(path: Path, _: Path) -> None:
    os.close(os.open(path, os.O_RDONLY))


def _create(path: Path, _: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))


def _bind(path: Path, _: Path) -> None:
    """Bind a Unix socket; long paths go through the directory, for sun_path holds 108 bytes."""
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path.name)


# Calls that look a name up. The second argument is a good, empty directory to work with.
CALLS: dict[str, Call] = {
    "open": _open,
    "creat": _create,
    "mkdir": lambda p, _: os.mkdir(p),
    "rmdir": lambda p, _: os.rmdir(p),
    "unlink": lambda p, _: os.unlink(p),
    "symlink": lambda p, _: os.symlink("x", p),
    "readlink": lambda p, _: os.readlink(p),
    "link_from": lambda p, good: os.link(p, good / "new"),
    "link_to": lambda p, good: os.link(put(good / "file"), p),
    "rename_from": lambda p, good: os.rename(p, good / "new"),
    "rename_to": lambda p, good: os.rename(put(good / "file"), p),
    "renameat2": lambda p, good: linux.renameat2(put(good / "file"), p, linux.RENAME_NOREPLACE),
    "stat": lambda p, _: os.stat(p),
    "lstat": lambda p, _: os.lstat(p),
    "access": lambda p, _: linux.access(p, os.F_OK),
    "chmod": lambda p, _: os.chmod(p, 0o600),
    "chown": lambda p, _: os.chown(p, -1, -1),
    "lchown": lambda p, _: os.lchown(p, -1, -1),
    "truncate": lambda p, _: os.truncate(p, 0),
    "utimensat": lambda p, _: os.utime(p),
    "mkfifo": lambda p, _: os.mkfifo(p),
    "chdir": lambda p, _: os.chdir(p),
    "opendir": lambda p, _: os.listdir(p),
    "statfs": lambda p, _: os.statvfs(p),
    "getxattr": lambda p, _: os.getxattr(p, "user.x"),
    "setxattr": lambda p, _: os.setxattr(p, "user.x", b"1"),
    "listxattr": lambda p, _: os.listxattr(p),
    "removexattr": lambda p, _: os.removexattr(p, "user.x"),
}
MAKERS = frozenset(["creat", "mkdir", "symlink", "link_to", "rename_to", "renameat2", "mkfifo"])
LOOKERS = frozenset(CALLS) - MAKERS
FOLLOWERS = LOOKERS - {
    "rmdir",
    "unlink",
    "readlink",
    "link_from",
    "rename_from",
    "lstat",
    "lchown",
}


def _rows(names: frozenset[str]) -> dict[str, tuple[str]]:
    return {name: (name,) for name in CALLS if name in names}


@table(_rows(frozenset(CALLS)))
def missing_directory(d: Path, name: str) -> None:
    """A component on the way that does not exist is ENOENT, for makers too."""
    refuse(errno.ENOENT, CALLS[name], d / "missing" / "x", folder(d / "good"))


@table(_rows(LOOKERS))
def missing_name(d: Path, name: str) -> None:
    """The last component missing is ENOENT for every call that needs the object."""
    refuse(errno.ENOENT, CALLS[name], d / "missing", folder(d / "good"))


@table(_rows(frozenset(CALLS)))
def file_on_the_way(d: Path, name: str) -> None:
    """A file where a directory must be is ENOTDIR."""
    refuse(errno.ENOTDIR, CALLS[name], put(d / "file") / "x", folder(d / "good"))


@table(_rows(frozenset(CALLS)))
def name_too_long(d: Path, name: str) -> None:
    """A name of 256 bytes is ENAMETOOLONG, whether it would be made or looked up."""
    refuse(errno.ENAMETOOLONG, CALLS[name], d / ("n" * 256), folder(d / "good"))


@table(_rows(frozenset(CALLS)))
def long_name_on_the_way(d: Path, name: str) -> None:
    """A name of 256 bytes in the middle of a path is ENAMETOOLONG, too."""
    refuse(errno.ENAMETOOLONG, CALLS[name], d / ("n" * 256) / "x", folder(d / "good"))


@table(_rows(frozenset(CALLS) - {"renameat2"}))
def path_too_long(d: Path, name: str) -> None:
    """A path of 4,096 bytes is ENAMETOOLONG before any component is looked at."""
    refuse(errno.ENAMETOOLONG, CALLS[name], Path(str(d) + "/x" * 2100), folder(d / "good"))


@table(_rows(frozenset(CALLS)))
def loop_on_the_way(d: Path, name: str) -> None:
    """Two links that name each other are ELOOP when they stand on the way."""
    (d / "a").symlink_to("b")
    (d / "b").symlink_to("a")
    refuse(errno.ELOOP, CALLS[name], d / "a" / "x", folder(d / "good"))


@table(_rows(FOLLOWERS))
def loop_at_the_end(d: Path, name: str) -> None:
    """A loop is ELOOP at the end of the path when the call follows links."""
    (d / "a").symlink_to("a")
    refuse(errno.ELOOP, CALLS[name], d / "a", folder(d / "good"))


@table(_rows(FOLLOWERS))
def dangling_link(d: Path, name: str) -> None:
    """A link to nothing is ENOENT when the call follows links."""
    (d / "a").symlink_to("nothing")
    refuse(errno.ENOENT, CALLS[name], d / "a", folder(d / "good"))


@table(_rows(frozenset(CALLS)), root=True)
def search_denied(d: Path, name: str) -> None:
    """A directory without x for the caller is EACCES for everything below it."""
    closed = folder(d / "closed")
    put(closed / "x", mode=0o666)
    closed.chmod(0o600)
    good = folder(d / "good", 0o777)
    os.chmod(d, 0o777)
    refuse(errno.EACCES, as_user, ALICE, CALLS[name], closed / "x", good)


@table(_rows(MAKERS), root=True)
def write_denied(d: Path, name: str) -> None:
    """Making a name in a directory that the caller may not write is EACCES."""
    closed = folder(d / "closed", 0o555)
    refuse(errno.EACCES, as_user, ALICE, CALLS[name], closed / "new", folder(d / "good", 0o777))


@table(_rows(MAKERS - {"creat", "rename_to"}))
def exists(d: Path, name: str) -> None:
    """Making a name that is there is EEXIST."""
    refuse(errno.EEXIST, CALLS[name], put(d / "there"), folder(d / "good"))


@table(_rows(MAKERS - {"creat", "rename_to"}))
def exists_as_dangling_link(d: Path, name: str) -> None:
    """A dangling symbolic link is a name that is there: EEXIST."""
    (d / "there").symlink_to("nothing")
    refuse(errno.EEXIST, CALLS[name], d / "there", folder(d / "good"))


@table({"mkdir": ("mkdir",), "link_to": ("link_to",), "symlink": ("symlink",)})
def exists_as_directory(d: Path, name: str) -> None:
    """A directory of that name is EEXIST as well."""
    refuse(errno.EEXIST, CALLS[name], folder(d / "there"), folder(d / "good"))


@case()
def bind_exists(d: Path) -> None:
    """Binding a socket to a name that is there is EADDRINUSE."""
    refuse(errno.EADDRINUSE, _bind, put(d / "there"), d)


@case()
def bind_missing_directory(d: Path) -> None:
    """Binding a socket below a directory that is not there is ENOENT."""
    os.chdir(d)
    with socket.socket(socket.AF_UNIX) as sock:
        refuse(errno.ENOENT, sock.bind, "missing/x")


@table({"unlink": ("unlink",), "open": ("open",), "truncate": ("truncate",), "creat": ("creat",)})
def directory_refused(d: Path, name: str) -> None:
    """A directory cannot be unlinked, opened for writing or truncated: EISDIR."""
    calls: dict[str, Call] = {
        **CALLS,
        "open": lambda p, _: os.open(p, os.O_WRONLY),
        "creat": lambda p, _: os.open(p, os.O_CREAT | os.O_RDWR),
    }
    refuse(errno.EISDIR, calls[name], folder(d / "there"), d)


@table({"rmdir": ("rmdir",), "opendir": ("opendir",), "chdir": ("chdir",)})
def file_refused(d: Path, name: str) -> None:
    """A file cannot be removed as a directory, listed or entered: ENOTDIR."""
    refuse(errno.ENOTDIR, CALLS[name], put(d / "there"), d)


@table({"mkdir": ("mkdir",), "rmdir": ("rmdir",), "unlink": ("unlink",), "open": ("open",)})
def empty_path(d: Path, name: str) -> None:
    """An empty path is ENOENT."""
    os.chdir(d)
    calls = {"mkdir": os.mkdir, "rmdir": os.rmdir, "unlink": os.unlink}
    call: Callable[[str], object] = calls.get(name, lambda p: os.open(p, os.O_RDONLY))
    refuse(errno.ENOENT, call, "")


@case()
def trailing_slash_on_a_file(d: Path) -> None:
    """A slash after a file's name asks for a directory: ENOTDIR."""
    put(d / "file")
    for call in (os.stat, os.unlink, os.listdir):
        refuse(errno.ENOTDIR, call, str(d / "file") + "/")


@case()
def trailing_slash_when_creating(d: Path) -> None:
    """A file cannot be created with a slash after its name: EISDIR; a directory can."""
    refuse(errno.EISDIR, os.open, str(d / "new") + "/", os.O_CREAT | os.O_WRONLY)
    os.mkdir(str(d / "dir") + "/")


@case()
def forty_links_in_a_row(d: Path) -> None:
    """A chain of 40 links is followed, one of 41 is ELOOP (the host's limit)."""
    put(d / "l0")
    for n in range(41):
        (d / f"l{n + 1}").symlink_to(f"l{n}")
    os.stat(d / "l40")
    refuse(errno.ELOOP, os.stat, d / "l41")


@case(root=True)
def device_needs_root(d: Path) -> None:
    """Making a device node is EPERM for others than root."""
    d.chmod(0o777)
    refuse(errno.EPERM, as_user, ALICE, os.mknod, d / "dev", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
