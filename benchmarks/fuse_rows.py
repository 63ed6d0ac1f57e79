"""What `benchmarks.fuse` measures: single requests by a client in C, data, and whole programs.

Rows are as in `rows`: `prepare` is called before every measurement, untimed, and its result is
timed. "Cold" means that the host was made to forget: names and inodes by a remount of the one mount
(root only), pages by posix_fadvise.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import client, rows
from benchmarks.harness import Body
from benchmarks.rows import MIB, Row, Sizes, one_file, sources, tool

BLOCK = 4096
_SERIAL = itertools.count()


def counted(count: int, call: Callable[[], None]) -> Body:
    """A body of `count` operations that are one call of the client."""

    def body() -> int:
        call()
        return count

    return body


def getattr_sync(directory: Path, sizes: Sizes, work: Path) -> Body:
    """One GETATTR each, whatever the host knows already."""
    one_file(directory)
    return counted(sizes.calls, partial(client.getattr_sync, directory / "f", sizes.calls))


def filled(directory: Path, name: str, count: int, size: int = 0) -> Path:
    """A directory with files 0, 1, ... of `size` bytes, made once."""
    place = directory / name
    if not place.exists():
        place.mkdir()
        client.create(place, "", count, size)
    return place


def cold(directory: Path) -> None:
    """Make the host forget what it knows of a mount; the host's own tmpfs has nothing behind it."""
    if os.path.ismount(directory):
        client.forget_names(directory)


def lookup(directory: Path, sizes: Sizes, work: Path) -> Body:
    """One LOOKUP each, of files that are there and that the host has forgotten."""
    place = filled(directory, "lookups", sizes.files)
    cold(directory)
    return counted(sizes.files, partial(client.lookup, place, "", sizes.files))


def lookup_missing(directory: Path, sizes: Sizes, work: Path) -> Body:
    """One LOOKUP each, of names that are not there and that nobody has asked for before."""
    place = filled(directory, "lookups", sizes.files)
    ask = partial(client.lookup, place, f"no-{next(_SERIAL)}-", sizes.calls, errno.ENOENT)
    return counted(sizes.calls, ask)


def create(directory: Path, sizes: Sizes, work: Path) -> Body:
    """Creating and closing empty files in an empty directory."""
    place = rows.fresh(directory, "created")
    return counted(sizes.files, partial(client.create, place, "", sizes.files))


def unlink(directory: Path, sizes: Sizes, work: Path) -> Body:
    """Removing empty files that were just made."""
    place = rows.fresh(directory, "removed")
    client.create(place, "", sizes.files)
    return counted(sizes.files, partial(client.remove_all, place, "", sizes.files))


def ls_cold(directory: Path, sizes: Sizes, work: Path) -> Body:
    """Run ls -l of a large directory of which the host knows nothing."""
    body = rows.ls_l(directory, sizes, work)
    cold(directory)
    return body


def read_cold(directory: Path, sizes: Sizes, work: Path) -> Body:
    """Reading a file from start to end by the mebibyte, not in the host's cache."""
    fd = rows.large(directory, sizes)

    def body() -> int:
        client.read_through(fd, MIB)
        os.close(fd)
        return sizes.mebibytes

    return body


def write_fsync(directory: Path, sizes: Sizes, work: Path) -> Body:
    """Writing a new file by the mebibyte, with an fsync at the end."""
    path = directory / "written"
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)

    def body() -> int:
        client.write_through(fd, MIB, sizes.mebibytes)
        os.close(fd)
        return sizes.mebibytes

    return body


def random_cold(directory: Path, sizes: Sizes, work: Path) -> Body:
    """Reading scattered blocks of 4 KiB, not in the host's cache."""
    fd = rows.large(directory, sizes)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    count = min(sizes.calls, sizes.mebibytes * MIB // BLOCK)
    blocks = random.Random(1).sample(range(sizes.mebibytes * MIB // BLOCK), count)
    offsets = [block * BLOCK for block in blocks]

    def body() -> int:
        client.read_at(fd, offsets)
        os.close(fd)
        return count

    return body


def open_close(directory: Path, sizes: Sizes, work: Path) -> Body:
    """Opening and closing one file."""
    one_file(directory)
    return counted(sizes.calls, partial(client.open_close, directory / "f", sizes.calls))


def reread(directory: Path, sizes: Sizes, work: Path) -> Body:
    """Opening small files, reading their 4 KiB and closing them, not for the first time."""
    place = filled(directory, "small", sizes.files, BLOCK)
    again = partial(client.reread, place, "", sizes.files, BLOCK)
    again()
    return counted(sizes.files, again)


def tree(directory: Path, name: str, work: Path) -> Path:
    """The unpacked sources, made once."""
    place = directory / name
    if not place.exists():
        place.mkdir()
        tool("tar", "xf", sources(work), cwd=place)
    return place


def grep(directory: Path, sizes: Sizes, work: Path) -> Body:
    """Run grep -r over the tree, which has been read before."""
    place = tree(directory, "grepped", work)
    tool("grep", "-rlw", "import", ".", cwd=place)
    return partial(tool, "grep", "-rlw", "import", ".", cwd=place)


def git_status(directory: Path, sizes: Sizes, work: Path) -> Body:
    """Run git status in a clone that it has looked through before.

    Git cannot trust the time of a file that is as young, in seconds, as its index, and reads such a
    file again: the first look comes in another second than the clone.
    """
    copy = directory / "status" / "copy"
    if not copy.exists():
        rows.git_status(directory, sizes, work)
        time.sleep(1.1)
        tool("git", "status", cwd=copy)
    return partial(tool, "git", "status", cwd=copy)


def two_branches(work: Path) -> Path:
    """A git repository on the host whose branch "other" differs in every file, made once."""
    path = work / "branches"
    if not path.exists():
        shutil.copytree(rows.repository(work), path)
        tool("git", "branch", "-m", "one", cwd=path)
        tool("git", "checkout", "-q", "-b", "other", cwd=path)
        for source in path.rglob("*.py"):
            with source.open("a") as text:
                text.write("\n# changed\n")
        who = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org")
        tool("git", *who, "commit", "-qam", "other", cwd=path)
    return path


def checkout(directory: Path, sizes: Sizes, work: Path) -> Body:
    """Run git checkout of a branch that differs in every file."""
    place = directory / "checkout"
    if not place.exists():
        place.mkdir()
        tool("git", "clone", "-q", "--no-local", two_branches(work), "copy", cwd=place)
    copy = place / "copy"
    tool("git", "checkout", "-q", "one", cwd=copy)
    return partial(tool, "git", "checkout", "-q", "other", cwd=copy)


#: The large directory comes last: passthrough_ll searches a list of all inodes that the host knows,
#: which would not be fair to it in the rows that follow; `lookup` shortens the list again.
ROWS = (
    Row("getattr", getattr_sync),
    Row("lookup", lookup),
    Row("lookup missing", lookup_missing),
    Row("create", create),
    Row("unlink", unlink),
    Row("read 1M cold", read_cold),
    Row("write 1M fsync", write_fsync),
    Row("read 4K random", random_cold),
    Row("open+close", open_close),
    Row("re-read 4K", reread),
    Row("untar", rows.untar),
    Row("git clone", rows.git_clone),
    Row("git checkout", checkout),
    Row("git status", git_status),
    Row("compileall", rows.compile_all),
    Row("grep -r", grep),
    Row("rm -rf", rows.rm_rf),
    Row("ls -l", rows.ls_l),
    Row("ls -l cold", ls_cold),
)
APPLICATIONS = (
    "untar", "git clone", "git checkout", "git status", "compileall", "grep -r", "rm -rf",
)  # fmt: skip
NO_OPEN = frozenset({"open+close", "re-read 4K"})
#: What takes long enough to be measured once in a round; everything else is, this often.
LONG = frozenset({"git clone", "compileall", "ls -l", "ls -l cold"})
SHORT_ROUNDS = 3
