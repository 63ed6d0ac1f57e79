"""Copying out of an image: a tree of a PFS becomes a tree on the host, and nothing else does.

An image may say anything. So every name is used in one directory that is held open, never as a
path: directories are made or entered without following links, files are created anew beside what
was there, and a name that the image has twice is copied once. Names with a slash, ``.`` and
``..`` do not come out of the reader at all. Whatever an image holds, nothing outside of the
destination is opened, made or changed.

What cannot be read is told, and the rest is copied: a damaged piece of a file becomes a hole.
Holes stay holes. A file with several names in the tree is copied once and linked. Owners are kept
by root only; where they could not be, set-user-id and set-group-id are dropped, as cp(1) does.

Counterpart: cp(1) of the host.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from types import MappingProxyType
from typing import Final, NamedTuple

from attrs import define

from dfuser.libkern.errno import KError
from dfuser.vfs.hammer2.errors import MediaError
from dfuser.vfs.hammer2.node import Node
from dfuser.vfs.hammer2.ondisk.blockref import Blockref
from dfuser.vfs.hammer2.ondisk.const import ObjType
from dfuser.vfs.hammer2.ondisk.inode import time_to_nsec
from dfuser.vfs.hammer2.reader import Entry, Pfs

from .exits import CliError, ExitCode
from .image import Meter, Verdict, damaged, text

_NODES: Final = MappingProxyType(
    {
        int(ObjType.FIFO): stat.S_IFIFO,
        int(ObjType.SOCKET): stat.S_IFSOCK,
        int(ObjType.CDEV): stat.S_IFCHR,
        int(ObjType.BDEV): stat.S_IFBLK,
    }
)
_DEVICES: Final = (int(ObjType.CDEV), int(ObjType.BDEV))
#: How many damaged ranges of one file are told.
_TOLD: Final = 100
_SET_ID: Final = stat.S_ISUID | stat.S_ISGID
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: Files with several names that are remembered, to be linked and not copied again.
_LINKS: Final = 1_000_000


class Options(NamedTuple):
    """What is kept of a file besides its data."""

    recursive: bool
    preserve: bool


@define
class Totals:
    """What was copied."""

    files: int = 0
    directories: int = 0
    others: int = 0
    bytes: int = 0
    errors: int = 0


class Link(NamedTuple):
    """Where a file with several names was copied to, from the top, and what it is there."""

    host: bytes
    dev: int
    ino: int


@define(eq=False)
class Level:
    """A directory that is being filled.

    ``path`` is what it is called in the image, ``host`` below the destination. ``names`` are
    those met with the hash that was met last; names that are equal have equal hashes.
    """

    fd: int
    path: bytes
    host: bytes
    node: Node
    entries: Iterator[Entry]
    hash: int = -1
    names: frozenset[bytes] = frozenset()


def host_error(path: bytes, exc: OSError) -> CliError:
    """What the host refused, and its exit code."""
    code = ExitCode.OUTPUT
    if exc.errno in (errno.EACCES, errno.EPERM):
        code = ExitCode.PERMISSION
    return CliError(code, f"{text(path)}: {exc.strerror or exc}")


class Extractor:
    """Copies out of one PFS."""

    def __init__(self, pfs: Pfs, options: Options, verdict: Verdict) -> None:
        self._pfs = pfs
        self._options = options
        self._verdict = verdict
        self._meter = Meter()
        self._links: dict[int, Link] = {}
        self._seen: set[int] = set()
        self._top = -1
        self._root = os.geteuid() == 0
        self._mask = os.umask(0o077)
        os.umask(self._mask)
        self.totals = Totals()

    def copy(self, node: Node, name: bytes, directory: bytes, path: bytes) -> None:
        """Copy a file or tree into a directory of the host.

        Args:
            node: what is copied.
            name: what it is called there; empty to put what is in a directory there.
            directory: the host's directory; must exist.
            path: what it is called in the image, for messages.

        Raises:
            CliError: `directory` cannot be used, or a directory is not to be copied.
        """
        if node.is_directory and not self._options.recursive:
            raise CliError(ExitCode.USAGE, f"{text(path)} is a directory: -r copies it")
        try:
            self._top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise host_error(directory, exc) from None
        try:
            if name:
                below = self._one(self._top, name, node, path.rstrip(b"/"), b"")
            else:
                self._seen.add(node.meta.inum)
                fd = os.open(b".", _DIRECTORY, dir_fd=self._top)
                below = Level(fd, path.rstrip(b"/"), b"", node, self._entries(node, path))
            self._fill([below] if below is not None else [])
        finally:
            self._meter.clear()
            os.close(self._top)

    def _entries(self, node: Node, path: bytes) -> Iterator[Entry]:
        """The names of a directory; what is damaged is told."""
        return self._pfs.readdir(node, 0, lambda _, exc: self._damaged(path, exc.strerror))

    def _fill(self, levels: list[Level]) -> None:
        """Copy what is in directories, and what is in those."""
        try:
            while levels:
                level = levels[-1]
                below = self._next(level)
                if below is not None:
                    levels.append(below)
                    continue
                if level.host:
                    try:
                        self._attributes(level.fd, level.node)
                    except OSError as exc:
                        self._refused(level.path, exc)
                os.close(levels.pop().fd)
        finally:
            for level in levels:
                os.close(level.fd)

    def _next(self, level: Level) -> Level | None:
        """Copy entries of a directory up to the next directory; None at its end."""
        try:
            for entry in level.entries:
                path = level.path + b"/" + entry.name
                if entry.key >> 15 != level.hash:
                    level.hash, level.names = entry.key >> 15, frozenset()
                if entry.name in level.names:
                    self._damaged(path, "its directory has this name twice")
                    continue
                level.names |= {entry.name}
                try:
                    node = self._pfs.node(entry)
                except MediaError as exc:
                    self._damaged(path, exc.strerror)
                    continue
                below = self._one(level.fd, entry.name, node, path, level.host)
                if below is not None:
                    return below
        except MediaError as exc:
            self._damaged(level.path, exc.strerror)
        return None

    def _one(self, fd: int, name: bytes, node: Node, path: bytes, parent: bytes) -> Level | None:
        """Copy one object; for a directory, what is to be filled."""
        done = self.totals
        self._meter.show(lambda: f"{done.files} files, {done.bytes} bytes: {text(path)}")
        host = parent + b"/" + name if parent else name
        meta = node.meta
        try:
            if node.is_directory:
                return self._directory(fd, name, node, path, host)
            if meta.nlinks > 1 and self._linked(fd, name, meta.inum):
                return None
            self._object(fd, name, node, path)
            if meta.nlinks > 1 and len(self._links) < _LINKS:
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                self._links[meta.inum] = Link(host, found.st_dev, found.st_ino)
        except KError as exc:
            self._damaged(path, exc.strerror)
        except OSError as exc:
            self._refused(path, exc)
        return None

    def _directory(
        self, fd: int, name: bytes, node: Node, path: bytes, host: bytes
    ) -> Level | None:
        """Make or enter a directory of the host."""
        if node.meta.inum in self._seen:
            self._damaged(path, "this directory has a second name")
            return None
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=fd)
        inside = os.open(name, _DIRECTORY, dir_fd=fd)
        self._seen.add(node.meta.inum)
        self.totals.directories += 1
        return Level(inside, path, host, node, self._entries(node, path))

    def _linked(self, fd: int, name: bytes, inum: int) -> bool:
        """Make a name for a file that was copied before; whether that worked."""
        link = self._links.get(inum)
        if link is None:
            return False
        self._make_way(fd, name)
        try:
            os.link(link.host, name, src_dir_fd=self._top, dst_dir_fd=fd, follow_symlinks=False)
        except OSError:
            return False
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if (found.st_dev, found.st_ino) == (link.dev, link.ino):
            return True
        os.unlink(name, dir_fd=fd)
        return False

    @staticmethod
    def _make_way(fd: int, name: bytes) -> None:
        """Remove what has a name on the host, unless it is a directory."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=fd)

    def _object(self, fd: int, name: bytes, node: Node, path: bytes) -> None:
        """Copy anything but a directory."""
        meta = node.meta
        target = self._pfs.readlink(node) if meta.type == ObjType.SOFTLINK else b""
        self._make_way(fd, name)
        if meta.type == ObjType.REGFILE:
            self._file(fd, name, node, path)
            self.totals.files += 1
            return
        if meta.type == ObjType.SOFTLINK:
            os.symlink(target, name, dir_fd=fd)
        elif meta.type in _NODES:
            device = os.makedev(meta.rmajor, meta.rminor) if meta.type in _DEVICES else 0
            os.mknod(name, _NODES[meta.type] | 0o600, device, dir_fd=fd)
        else:
            self._damaged(path, f"files of type {meta.type} cannot be copied")
            return
        self.totals.others += 1
        self._later_attributes(fd, name, node)

    def _file(self, fd: int, name: bytes, node: Node, path: bytes) -> None:
        """Copy a file; what of it is damaged becomes a hole."""
        lost: list[tuple[int, int]] = []

        def damage(bref: Blockref, exc: MediaError) -> None:
            end = min(bref.last_key + 1, node.meta.size)
            if lost and lost[-1][1] == bref.key:
                lost[-1] = lost[-1][0], end
            elif len(lost) < _TOLD:
                lost.append((bref.key, end))

        out = os.open(name, _CREATE, 0o600, dir_fd=fd)
        try:
            os.ftruncate(out, node.meta.size)
            for at, data in self._pfs.pieces(node, onerror=damage):
                self._write(out, at, data)
                self._meter.show(lambda: f"{self.totals.bytes} bytes: {text(path)}")
            self._attributes(out, node)
        finally:
            os.close(out)
            for start, end in lost:
                self._damaged(path, f"bytes {start} to {end - 1} cannot be read; left as a hole")

    def _write(self, out: int, at: int, data: bytes) -> None:
        """Write all of some bytes."""
        view = memoryview(data)
        while view:
            done = os.pwrite(out, view, at)
            view, at = view[done:], at + done
            self.totals.bytes += done

    def _mode(self, node: Node, *, owned: bool) -> int:
        """The mode on the host: as it is, or as the user's umask wants new files."""
        mode = node.meta.mode & 0o7777
        if not self._options.preserve:
            return mode & 0o777 & ~self._mask
        return mode if owned else mode & ~_SET_ID

    def _attributes(self, fd: int, node: Node) -> None:
        """Give an open file or directory its owner, mode and times."""
        meta = node.meta
        owned = (meta.unix_uid, meta.unix_gid) == (os.geteuid(), os.getegid())
        if self._options.preserve and self._root:
            os.fchown(fd, meta.unix_uid, meta.unix_gid)
            owned = True
        os.fchmod(fd, self._mode(node, owned=owned))
        if self._options.preserve:
            os.utime(fd, ns=_times(node))

    def _later_attributes(self, fd: int, name: bytes, node: Node) -> None:
        """Give a link, FIFO, socket or device its owner, mode and times."""
        meta = node.meta
        if self._options.preserve and self._root:
            os.chown(name, meta.unix_uid, meta.unix_gid, dir_fd=fd, follow_symlinks=False)
        if meta.type != ObjType.SOFTLINK:
            held = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            try:
                os.chmod(f"/proc/self/fd/{held}", self._mode(node, owned=self._root))
            finally:
                os.close(held)
        if self._options.preserve:
            os.utime(name, ns=_times(node), dir_fd=fd, follow_symlinks=False)

    def _tell(self, error: CliError) -> None:
        self.totals.errors += 1
        self._meter.clear()
        self._verdict.tell(error)

    def _damaged(self, path: bytes, told: str | None) -> None:
        """Tell that something in the image cannot be read."""
        self._tell(damaged(f"{text(path or b'/')}: {told}"))

    def _refused(self, path: bytes, exc: OSError) -> None:
        """Tell that the host refused something; without room nothing else is tried."""
        error = host_error(path, exc)
        if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise error from None
        self._tell(error)


def _times(node: Node) -> tuple[int, int]:
    """Access and modification time in nanoseconds."""
    meta = node.meta
    return time_to_nsec(meta.atime or meta.mtime), time_to_nsec(meta.mtime)
