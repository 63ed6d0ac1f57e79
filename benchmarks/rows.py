"""What is measured on each mount: single calls, data, and whole programs.

A row has two parts. `prepare` is called once for each round, untimed, with the contestant's
directory, and returns the body; the body is timed, and returns how many operations it did. Bodies
leave things so that the next round finds the same.
"""

from __future__ import annotations

import compileall
import ctypes
import os
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import Body

AT_FDCWD, AT_STATX_FORCE_SYNC, STATX_BASIC_STATS = -100, 0x2000, 0x7FF
MIB = 1 << 20
PACKAGES = ("asyncio", "email", "http", "importlib", "json", "logging", "unittest", "xml")


class Sizes(NamedTuple):
    """How much each row does; `--quick` makes it less."""

    calls: int = 1000
    files: int = 300
    listed: int = 10_000
    mebibytes: int = 32


class Row(NamedTuple):
    """One row: its name, how it is prepared, and whether it only looks at one file."""

    name: str
    prepare: Callable[[Path, Sizes, Path], Body]
    read_only: bool = False


def sources(work: Path) -> Path:
    """A tar archive of some packages of Python's own library, about 200 files, made once."""
    archive = work / "sources.tar"
    if not archive.exists():
        library = Path(os.__file__).parent
        with tarfile.open(archive, "w") as tar:
            for name in PACKAGES:
                tar.add(library / name, f"src/{name}", filter=_no_caches)
    return archive


def _no_caches(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in entry.name else entry


def one_file(directory: Path) -> bytes:
    """The one file "f", which read-only peers have from the start."""
    path = directory / "f"
    if not path.exists():
        path.touch()
    return os.fsencode(path)


def getattr_sync(directory: Path, sizes: Sizes, work: Path) -> Body:
    """A statx that must ask the server: one GETATTR each."""
    statx = ctypes.CDLL(None).statx
    path, buffer = one_file(directory), ctypes.create_string_buffer(256)

    def body() -> int:
        for _ in range(sizes.calls):
            statx(AT_FDCWD, path, AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, buffer)
        return sizes.calls

    return body


def stat_cached(directory: Path, sizes: Sizes, work: Path) -> Body:
    """A stat of a file whose attributes the host may know already."""
    path = one_file(directory)
    os.stat(path)

    def body() -> int:
        for _ in range(10 * sizes.calls):
            os.stat(path)
        return 10 * sizes.calls

    return body


def negative(directory: Path, sizes: Sizes, work: Path) -> Body:
    """Looking for a name that is not there, again and again."""
    path = os.fsencode(directory / "missing")
    os.path.lexists(path)

    def body() -> int:
        for _ in range(10 * sizes.calls):
            os.path.lexists(path)
        return 10 * sizes.calls

    return body


def _names(directory: Path, sizes: Sizes) -> list[bytes]:
    place = directory / "files"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    return [os.fsencode(place / f"file-{n}") for n in range(sizes.files)]


def create_close(directory: Path, sizes: Sizes, work: Path) -> Body:
    """Creating and closing empty files."""
    names = _names(directory, sizes)

    def body() -> int:
        for name in names:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        return len(names)

    return body


def unlink(directory: Path, sizes: Sizes, work: Path) -> Body:
    """Removing empty files."""
    names = _names(directory, sizes)
    for name in names:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))

    def body() -> int:
        for name in names:
            os.unlink(name)
        return len(names)

    return body


def open_close(directory: Path, sizes: Sizes, work: Path) -> Body:
    """Opening and closing a file."""
    path = one_file(directory)

    def body() -> int:
        for _ in range(sizes.calls):
            os.close(os.open(path, os.O_RDONLY))
        return sizes.calls

    return body


def large(directory: Path, sizes: Sizes) -> int:
    """A file of the row's size, synced and out of the host's cache; returns a descriptor."""
    fd = os.open(directory / "large", os.O_RDWR | os.O_CREAT)
    if os.fstat(fd).st_size != sizes.mebibytes * MIB:
        for n in range(sizes.mebibytes):
            os.pwrite(fd, os.urandom(MIB), n * MIB)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return fd


def write_1m(directory: Path, sizes: Sizes, work: Path) -> Body:
    """Writing a file from start to end by the mebibyte, with an fsync at the end."""
    data = os.urandom(MIB)
    (directory / "written").unlink(missing_ok=True)

    def body() -> int:
        fd = os.open(directory / "written", os.O_WRONLY | os.O_CREAT)
        for _ in range(sizes.mebibytes):
            os.write(fd, data)
        os.fsync(fd)
        os.close(fd)
        return sizes.mebibytes

    return body


def read_1m(directory: Path, sizes: Sizes, work: Path) -> Body:
    """Reading a file from start to end by the mebibyte, not in the host's cache."""
    fd = large(directory, sizes)

    def body() -> int:
        while os.read(fd, MIB):
            pass
        os.close(fd)
        return sizes.mebibytes

    return body


def random_read_4k(directory: Path, sizes: Sizes, work: Path) -> Body:
    """Reading scattered blocks of 4 KiB, not in the host's cache."""
    fd = large(directory, sizes)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    offsets = random.Random(1).sample(range(sizes.mebibytes * 256), sizes.calls)

    def body() -> int:
        for offset in offsets:
            os.pread(fd, 4096, offset * 4096)
        os.close(fd)
        return len(offsets)

    return body


def random_write_4k(directory: Path, sizes: Sizes, work: Path) -> Body:
    """Writing scattered blocks of 4 KiB, with an fsync at the end."""
    fd, data = large(directory, sizes), os.urandom(4096)
    offsets = random.Random(2).sample(range(sizes.mebibytes * 256), sizes.calls)

    def body() -> int:
        for offset in offsets:
            os.pwrite(fd, data, offset * 4096)
        os.fsync(fd)
        os.close(fd)
        return len(offsets)

    return body


def tool(*command: str | Path, cwd: Path) -> int:
    """Run one program; it counts as one operation."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "PYTHONDONT"))}
    subprocess.run(
        list(map(str, command)), cwd=cwd, check=True, capture_output=True,
        env={**kept, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"},
    )  # fmt: skip
    return 1


def fresh(directory: Path, name: str) -> Path:
    path = directory / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


def untar(directory: Path, sizes: Sizes, work: Path) -> Body:
    """Run tar x of some 200 files."""
    place = fresh(directory, "untar")
    return partial(tool, "tar", "xf", sources(work), cwd=place)


def rm_rf(directory: Path, sizes: Sizes, work: Path) -> Body:
    """Run rm -rf of the same tree."""
    place = fresh(directory, "rm")
    tool("tar", "xf", sources(work), cwd=place)
    return partial(tool, "rm", "-rf", "src", cwd=place)


def compile_all(directory: Path, sizes: Sizes, work: Path) -> Body:
    """Python's compileall of the same tree."""
    place = fresh(directory, "compile")
    tool("tar", "xf", sources(work), cwd=place)
    module = Path(compileall.__file__).stem
    return partial(tool, sys.executable, "-m", module, "-q", "src", cwd=place)


def repository(work: Path) -> Path:
    """A git repository of the same tree on the host, made once."""
    path = work / "repository"
    if not path.exists():
        path.mkdir()
        tool("tar", "xf", sources(work), cwd=path)
        who = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org")
        for args in (("init", "-q"), ("add", "-A"), (*who, "commit", "-q", "-m", "all")):
            tool("git", *args, cwd=path)
    return path


def git_clone(directory: Path, sizes: Sizes, work: Path) -> Body:
    """Run git clone of the tree from the host."""
    place = fresh(directory, "clone")
    return partial(tool, "git", "clone", "-q", "--no-local", repository(work), "copy", cwd=place)


def git_status(directory: Path, sizes: Sizes, work: Path) -> Body:
    """Run git status in such a clone."""
    place = directory / "status"
    if not place.exists():
        place.mkdir()
        tool("git", "clone", "-q", "--no-local", repository(work), "copy", cwd=place)
        tool("git", "status", cwd=place / "copy")
    return partial(tool, "git", "status", cwd=place / "copy")


def ls_l(directory: Path, sizes: Sizes, work: Path) -> Body:
    """Run ls -l of a large directory; an operation is one entry."""
    place = directory / "listed"
    if not place.exists():
        place.mkdir()
        for n in range(sizes.listed):
            os.mknod(place / f"entry-{n:06d}")

    def body() -> int:
        tool("ls", "-l", cwd=place)
        return sizes.listed

    return body


ROWS = (
    Row("getattr sync", getattr_sync, read_only=True),
    Row("stat cached", stat_cached, read_only=True),
    Row("negative cached", negative, read_only=True),
    Row("open+close", open_close, read_only=True),
    Row("create+close", create_close),
    Row("unlink", unlink),
    Row("write 1 MiB", write_1m),
    Row("read 1 MiB", read_1m),
    Row("random read 4K", random_read_4k),
    Row("random write 4K", random_write_4k),
    Row("untar", untar),
    Row("git clone", git_clone),
    Row("git status", git_status),
    Row("compileall", compile_all),
    Row("rm -rf", rm_rf),
    Row("ls -l", ls_l),
)
APPLICATIONS = ("untar", "git clone", "git status", "compileall", "rm -rf")
