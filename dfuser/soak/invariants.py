"""What must hold in any tree at rest, whatever was done to it before.

A walk that looks at every name once and checks the rules that programs like tar, rsync, find and
du rely on: link counts, the inode numbers that readdir and stat tell, one number for one file, the
parent that `..` leads to, and, on a mount of its own, the sums that statfs tells.

Counterpart: sbin/fsck (the rules, not the program: this one only sees what user programs see).
Differs from DragonFly: an addition: there fsck looks at the volume itself.
Token/lock order: takes none; it is a host program.
Invariants: these are it. The walk stays on one file system, as `find -xdev` does.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from dfuser.soak.report import InvariantReport

SECTOR = 512
MOST_VIOLATIONS = 100


class TreeWalk:
    """One walk: collects what it sees, then `report` judges it."""

    __slots__ = ("_bad", "_device", "_found", "_names", "_root", "directories", "names")

    def __init__(self, root: Path) -> None:
        """Prepare to walk the tree at `root`; nothing may change it meanwhile."""
        self._root = root
        self._device = root.lstat().st_dev
        self._bad: list[str] = []
        self._found: dict[int, tuple[Path, os.stat_result]] = {}
        self._names: dict[int, int] = {}
        self.directories = 0
        self.names = 0

    def walk(self) -> None:
        """Look at every name below the root, without recursion, so depth does not matter."""
        waiting = [self._root]
        self._note(self._root, self._root.lstat())
        while waiting:
            waiting += self._directory(waiting.pop())

    def report(self) -> InvariantReport:
        """Judge what was seen."""
        self._bad += self._link_counts()
        used_by_files = sum(found.st_blocks * SECTOR for _, found in self._found.values())
        whole = os.statvfs(self._root)
        in_use = (whole.f_blocks - whole.f_bfree) * whole.f_frsize
        if self._is_whole():
            self._bad += self._sums(used_by_files, in_use, whole)
        files = len(self._found) - self.directories
        bad = tuple(self._bad[:MOST_VIOLATIONS])
        return InvariantReport(self.directories, files, self.names, used_by_files, in_use, bad)

    def _is_whole(self) -> bool:
        """Whether the root is the root of its mount, so that the sums are ours to judge."""
        return os.path.ismount(self._root)

    def _note(self, path: Path, found: os.stat_result) -> None:
        self._names[found.st_ino] = self._names.get(found.st_ino, 0) + 1
        other = self._found.setdefault(found.st_ino, (path, found))
        if stat.S_ISDIR(found.st_mode):
            self.directories += 1
            if other[0] is not path:
                self._bad.append(f"{path} and {other[0]}: two directories, one inode number")
        elif stat.S_IFMT(other[1].st_mode) != stat.S_IFMT(found.st_mode):
            self._bad.append(f"{path} and {other[0]}: two types, one inode number")
        elif other[1].st_nlink != found.st_nlink:
            self._bad.append(f"{path} and {other[0]}: one file, two link counts")

    def _directory(self, directory: Path) -> list[Path]:
        """Look at one directory's entries; return the subdirectories."""
        below, seen = [], set[str]()
        with os.scandir(directory) as entries:
            for entry in entries:
                self.names += 1
                if entry.name in seen:
                    self._bad.append(f"{entry.path}: listed twice")
                seen.add(entry.name)
                found = os.lstat(entry.path)
                if found.st_dev != self._device:
                    continue
                self._entry(entry, found)
                self._note(Path(entry.path), found)
                if stat.S_ISDIR(found.st_mode):
                    below.append(Path(entry.path))
        self._parents(directory, below)
        return below

    def _entry(self, entry: os.DirEntry[str], found: os.stat_result) -> None:
        if entry.inode() != found.st_ino:
            self._bad.append(f"{entry.path}: d_ino {entry.inode()}, st_ino {found.st_ino}")
        if entry.is_dir(follow_symlinks=False) != stat.S_ISDIR(found.st_mode):
            self._bad.append(f"{entry.path}: d_type is wrong")
        if (
            stat.S_ISLNK(found.st_mode)
            and len(os.readlink(os.fsencode(entry.path))) != found.st_size
        ):
            self._bad.append(f"{entry.path}: st_size is not the link text's length")

    def _parents(self, directory: Path, below: list[Path]) -> None:
        links, want = directory.lstat().st_nlink, 2 + len(below)
        mounts = sum(child.lstat().st_dev != self._device for child in directory.iterdir())
        if links not in (1, want, want + mounts):
            self._bad.append(f"{directory}: {links} links, {len(below)} subdirectories")
        inode = directory.lstat().st_ino
        for child in below:
            if (child / "..").lstat().st_ino != inode:
                self._bad.append(f"{child}: .. leads elsewhere")

    def _link_counts(self) -> Iterator[str]:
        """A file has at least as many links as names; on a whole mount exactly as many."""
        whole = self._is_whole()
        for inode, (path, found) in self._found.items():
            if stat.S_ISDIR(found.st_mode):
                continue
            names = self._names[inode]
            if found.st_nlink < names or (whole and found.st_nlink != names):
                yield f"{path}: {found.st_nlink} links, {names} names"

    def _sums(self, used: int, in_use: int, whole: os.statvfs_result) -> Iterator[str]:
        """Du and statfs: files cannot hold more than the file system has in use."""
        if used > in_use + whole.f_frsize:
            yield f"files hold {used} bytes, statfs says {in_use} are in use"
        inodes = whole.f_files - whole.f_ffree
        if whole.f_files and len(self._found) > inodes:
            yield f"{len(self._found)} files, statfs says {inodes} are in use"


def check_tree(root: Path) -> InvariantReport:
    """Walk the tree at `root`, which nothing may change meanwhile, and judge it."""
    walk = TreeWalk(root)
    walk.walk()
    return walk.report()
