"""rename(2) and the flags of renameat2(2)."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from tests.posix import linux
from tests.posix.case import case, refuse, same, table, true
from tests.posix.tools import Child, folder, opened, put


def _file(path: Path) -> None:
    put(path, path.name.encode())


def _link(path: Path) -> None:
    path.symlink_to("x")


def _directory(path: Path) -> None:
    path.mkdir()


MAKE: dict[str, Callable[[Path], None]] = {
    "file": _file,
    "dir": _directory,
    "link": _link,
    "fifo": os.mkfifo,
}


@table({name: (name,) for name in MAKE})
def keeps_the_inode(d: Path, kind: str) -> None:
    """What is renamed stays the same object."""
    MAKE[kind](d / "a")
    before = (d / "a").lstat()
    os.rename(d / "a", d / "b")
    after = (d / "b").lstat()
    same((after.st_ino, after.st_mode), (before.st_ino, before.st_mode), "object")
    refuse(errno.ENOENT, os.lstat, d / "a")


@table({f"{a}-{b}": (a, b) for a in ("file", "link", "fifo") for b in ("file", "link", "fifo")})
def replaces(d: Path, kind: str, over: str) -> None:
    """Anything but a directory replaces anything but a directory."""
    MAKE[kind](d / "a")
    MAKE[over](d / "b")
    inode = (d / "a").lstat().st_ino
    os.rename(d / "a", d / "b")
    same(((d / "b").lstat().st_ino, os.listdir(d)), (inode, ["b"]), "what is left")


@case()
def directory_over_an_empty_one(d: Path) -> None:
    """A directory replaces an empty directory, content and all."""
    put(folder(d / "a") / "f")
    folder(d / "b")
    os.rename(d / "a", d / "b")
    same((os.listdir(d), os.listdir(d / "b")), (["b"], ["f"]), "names")


@case()
def directory_over_a_full_one(d: Path) -> None:
    """A directory does not replace one that has entries: ENOTEMPTY."""
    folder(d / "a")
    put(folder(d / "b") / "f")
    refuse((errno.ENOTEMPTY, errno.EEXIST), os.rename, d / "a", d / "b")


@case()
def directory_over_a_file(d: Path) -> None:
    """A directory does not replace a file (ENOTDIR), nor a file a directory (EISDIR)."""
    folder(d / "dir")
    put(d / "file")
    refuse(errno.ENOTDIR, os.rename, d / "dir", d / "file")
    refuse(errno.EISDIR, os.rename, d / "file", d / "dir")


@case()
def into_itself(d: Path) -> None:
    """A directory cannot be moved below itself: EINVAL, at any depth."""
    folder(folder(d / "a") / "b")
    refuse(errno.EINVAL, os.rename, d / "a", d / "a" / "x")
    refuse(errno.EINVAL, os.rename, d / "a", d / "a" / "b" / "x")


@case()
def onto_its_parent(d: Path) -> None:
    """A directory cannot replace one of those above it: ENOTEMPTY."""
    folder(folder(d / "a") / "b")
    refuse((errno.ENOTEMPTY, errno.EEXIST), os.rename, d / "a" / "b", d / "a")


@case()
def onto_itself(d: Path) -> None:
    """Renaming a name to itself does nothing."""
    put(d / "f", b"abc")
    os.rename(d / "f", d / "f")
    same((d / "f").read_bytes(), b"abc", "bytes")


@case()
def onto_a_hard_link(d: Path) -> None:
    """Renaming a name onto another name of the same file leaves both."""
    put(d / "a")
    os.link(d / "a", d / "b")
    os.rename(d / "a", d / "b")
    same((sorted(os.listdir(d)), (d / "b").stat().st_nlink), (["a", "b"], 2), "names and links")


@case()
def dots(d: Path) -> None:
    """. and .. cannot be renamed: EBUSY or EINVAL."""
    folder(d / "a")
    for name in (".", ".."):
        refuse((errno.EBUSY, errno.EINVAL), os.rename, f"{d}/a/{name}", d / "b")
        refuse((errno.EBUSY, errno.EINVAL), os.rename, d / "a", f"{d}/a/{name}")


@case()
def counts_links_of_the_replaced(d: Path) -> None:
    """A replaced file loses one link."""
    put(d / "a")
    put(d / "b")
    os.link(d / "b", d / "other")
    os.rename(d / "a", d / "b")
    same((d / "other").stat().st_nlink, 1, "links")


@case()
def open_files_follow(d: Path) -> None:
    """A descriptor stays good over a rename across directories."""
    folder(d / "dir")
    with opened(put(d / "f", b"abc"), os.O_RDWR) as f:
        os.rename(d / "f", d / "dir" / "g")
        os.pwrite(f, b"X", 0)
    same((d / "dir" / "g").read_bytes(), b"Xbc", "bytes")


@case()
def working_directory_follows(d: Path) -> None:
    """getcwd tells the new name of a directory that was moved."""
    os.chdir(folder(folder(d / "a") / "here"))
    os.rename(d / "a", d / "b")
    same(os.getcwd(), str(d / "b" / "here"), "working directory")


@case()
def no_replace(d: Path) -> None:
    """RENAME_NOREPLACE is EEXIST on anything that is there, and moves otherwise."""
    put(d / "a", b"a")
    put(d / "b", b"b")
    refuse(errno.EEXIST, linux.renameat2, d / "a", d / "b", linux.RENAME_NOREPLACE)
    linux.renameat2(d / "a", d / "c", linux.RENAME_NOREPLACE)
    same(((d / "b").read_bytes(), (d / "c").read_bytes()), (b"b", b"a"), "bytes")


@case()
def exchange_files(d: Path) -> None:
    """RENAME_EXCHANGE swaps two files."""
    put(d / "a", b"a")
    put(d / "b", b"b")
    linux.renameat2(d / "a", d / "b", linux.RENAME_EXCHANGE)
    same(((d / "a").read_bytes(), (d / "b").read_bytes()), (b"b", b"a"), "bytes")


@case()
def exchange_file_and_directory(d: Path) -> None:
    """RENAME_EXCHANGE swaps a file and a full directory, link counts included."""
    put(folder(folder(d / "x") / "dir") / "inside")
    put(folder(d / "y") / "file")
    linux.renameat2(d / "x" / "dir", d / "y" / "file", linux.RENAME_EXCHANGE)
    same(os.listdir(d / "y" / "file"), ["inside"], "names")
    same(((d / "x").stat().st_nlink, (d / "y").stat().st_nlink), (2, 3), "link counts")


@case()
def exchange_needs_both(d: Path) -> None:
    """RENAME_EXCHANGE with a missing name is ENOENT."""
    put(d / "a")
    refuse(errno.ENOENT, linux.renameat2, d / "a", d / "missing", linux.RENAME_EXCHANGE)


@case()
def exchange_into_itself(d: Path) -> None:
    """RENAME_EXCHANGE of a directory with something below it is EINVAL."""
    folder(folder(d / "a") / "b")
    refuse(errno.EINVAL, linux.renameat2, d / "a", d / "a" / "b", linux.RENAME_EXCHANGE)
    refuse(errno.EINVAL, linux.renameat2, d / "a" / "b", d / "a", linux.RENAME_EXCHANGE)


@table({"unknown": (1 << 20,), "both": (3,), "whiteout-exchange": (6,)})
def flags_refused(d: Path, flags: int) -> None:
    """Flags that do not exist, or exclude each other, are EINVAL."""
    put(d / "a")
    put(d / "b")
    refuse(errno.EINVAL, linux.renameat2, d / "a", d / "b", flags)


@case(root=True)
def whiteout(d: Path) -> None:
    """RENAME_WHITEOUT leaves a character device 0/0 under the old name."""
    put(d / "a", b"a")
    linux.renameat2(d / "a", d / "b", linux.RENAME_WHITEOUT)
    found = (d / "a").lstat()
    same((stat.S_ISCHR(found.st_mode), found.st_rdev), (True, 0), "whiteout")
    same((d / "b").read_bytes(), b"a", "bytes")


@case(limit=30.0)
def is_atomic(d: Path) -> None:
    """A name that is replaced again and again is never missing for a reader."""
    put(d / "f", b"start")

    def replace() -> None:
        for n in range(400):
            put(d / "new", str(n).encode() * 100)
            os.rename(d / "new", d / "f")

    child = Child(replace)
    while not child.finished():
        true((d / "f").read_bytes(), "the name was there without content")
    child.result()


@case(limit=30.0)
def in_opposite_directions(d: Path) -> None:
    """Four processes that move files between two directories lose and double nothing."""
    a, b = folder(d / "a"), folder(d / "b")
    for n in range(40):
        put(a / f"f{n}")

    def move(source: Path, target: Path) -> None:
        for n in range(400):
            with contextlib.suppress(FileNotFoundError):
                os.rename(source / f"f{n % 40}", target / f"f{n % 40}")

    children = [Child(move, *pair) for pair in ((a, b), (b, a), (a, b), (b, a))]
    for child in children:
        child.result()
    names = sorted(os.listdir(a) + os.listdir(b))
    same(names, sorted(f"f{n}" for n in range(40)), "names in both")


@case(limit=30.0)
def directories_in_opposite_directions(d: Path) -> None:
    """Two processes that move directories into one another never make a loop or hang."""
    for name in ("a", "b"):
        folder(d / name)

    def move(first: str, second: str) -> None:
        for _ in range(200):
            with contextlib.suppress(OSError):
                os.rename(d / first, d / second / first)
            with contextlib.suppress(OSError):
                os.rename(d / second / first, d / first)

    children = [Child(move, "a", "b"), Child(move, "b", "a")]
    for child in children:
        child.result()
    found = [name for _, names, _ in os.walk(d) for name in names]
    same(sorted(found), ["a", "b"], "directories left")


@table({name: (name,) for name in MAKE})
def no_replace_of_each_kind(d: Path, kind: str) -> None:
    """RENAME_NOREPLACE moves every kind to a free name, and is EEXIST onto any kind."""
    MAKE[kind](d / "a")
    for other, make in MAKE.items():
        make(d / f"taken-{other}")
        refuse(errno.EEXIST, linux.renameat2, d / "a", d / f"taken-{other}", linux.RENAME_NOREPLACE)
    (d / "dangling").symlink_to("nobody")
    refuse(errno.EEXIST, linux.renameat2, d / "a", d / "dangling", linux.RENAME_NOREPLACE)
    refuse(errno.EEXIST, linux.renameat2, d / "a", d / "a", linux.RENAME_NOREPLACE)
    inode = (d / "a").lstat().st_ino
    linux.renameat2(d / "a", d / "free", linux.RENAME_NOREPLACE)
    same(((d / "free").lstat().st_ino, (d / "a").exists()), (inode, False), "inode, old name")


@table({f"{a}-{b}": (a, b) for a in MAKE for b in MAKE if a <= b})
def exchange_of_each_kind(d: Path, first: str, second: str) -> None:
    """RENAME_EXCHANGE swaps any two, in two directories; `..` and link counts follow."""
    (d / "one").mkdir()
    (d / "two").mkdir()
    MAKE[first](d / "one" / "a")
    MAKE[second](d / "two" / "b")
    before = ((d / "one" / "a").lstat(), (d / "two" / "b").lstat())
    linux.renameat2(d / "one" / "a", d / "two" / "b", linux.RENAME_EXCHANGE)
    after = ((d / "two" / "b").lstat(), (d / "one" / "a").lstat())
    same([x.st_ino for x in after], [x.st_ino for x in before], "inodes")
    same([x.st_mode for x in after], [x.st_mode for x in before], "kinds")
    for place, name in (("one", "a"), ("two", "b")):
        inside = (d / place / name).is_dir() and not (d / place / name).is_symlink()
        same((d / place).stat().st_nlink, 3 if inside else 2, f"links of {place}")
        if inside:
            up = os.stat(d / place / name / "..").st_ino
            same(up, (d / place).stat().st_ino, "the parent that .. leads to")


@case()
def exchange_of_one_file(d: Path) -> None:
    """Two names of one file exchanged, and a name with itself: nothing changes."""
    (d / "a").write_bytes(b"abc")
    os.link(d / "a", d / "b")
    linux.renameat2(d / "a", d / "b", linux.RENAME_EXCHANGE)
    linux.renameat2(d / "a", d / "a", linux.RENAME_EXCHANGE)
    same(((d / "a").stat().st_nlink, (d / "b").read_bytes()), (2, b"abc"), "links and bytes")


@case(limit=30.0)
def exchange_is_atomic(d: Path) -> None:
    """While two files are exchanged 300 times, both names are always there, one of each."""
    (d / "a").write_bytes(b"1")
    (d / "b").write_bytes(b"2")

    def swap() -> None:
        for _ in range(300):
            linux.renameat2(d / "a", d / "b", linux.RENAME_EXCHANGE)

    child = Child(swap)
    while not child.finished():
        same(sorted(os.listdir(d)), ["a", "b"], "names")
        true((d / "a").read_bytes() in (b"1", b"2"), "bytes")
    child.result()
    same(((d / "a").read_bytes(), (d / "b").read_bytes()), (b"1", b"2"), "after an even number")


@case(root=True)
def whiteout_device(d: Path) -> None:
    """A whiteout is a character device 0:0; a rename over it and its removal are ordinary."""
    (d / "a").write_bytes(b"abc")
    linux.renameat2(d / "a", d / "b", linux.RENAME_WHITEOUT)
    found = (d / "a").lstat()
    same((stat.S_ISCHR(found.st_mode), found.st_rdev, found.st_nlink), (True, 0, 1), "whiteout")
    os.rename(d / "b", d / "a")
    same((os.listdir(d), (d / "a").read_bytes()), (["a"], b"abc"), "names and bytes")
    linux.renameat2(d / "a", d / "b", linux.RENAME_WHITEOUT | linux.RENAME_NOREPLACE)
    os.unlink(d / "a")
    same(os.listdir(d), ["b"], "names")
