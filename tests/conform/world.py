"""The world a conformance case works in: a VFS, a directory in it, and the kern_* calls by path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dfuser.hw.clock import VirtualClock
from dfuser.libkern.errno import (
    ENOENT,
    KError,
)
from dfuser.libkern.fcntl import (
    O_RDONLY,
    O_RDWR,
    O_TRUNC,
    O_WRONLY,
)
from dfuser.libkern.ucred import Ucred
from dfuser.vfs import syscalls as sc
from dfuser.vfs.file import File
from dfuser.vfs.namecache import NcHandle
from dfuser.vfs.vattr import Dirent, Statfs, Vattr
from dfuser.vfs.vfs import Vfs
from dfuser.vfs.vnode import Vnode
from dfuser.vfs.vop import (
    EXTATTR_NAMESPACE_SYSTEM,
    EXTATTR_NAMESPACE_USER,
)

ROOT = Ucred.root()
ALICE = Ucred.of(1001, 1001, (500,))
BOB = Ucred.of(1002, 1002)
USER, SYSTEM = EXTATTR_NAMESPACE_USER, EXTATTR_NAMESPACE_SYSTEM
SECOND = 1_000_000_000
OFF_MAX = (1 << 63) - 1

Case = Callable[["World"], None]


def collector(cases: list[Case]) -> Callable[[Case], Case]:
    """A decorator that adds a case to a list."""

    def case(function: Case) -> Case:
        cases.append(function)
        return function

    return case


class _Errno:
    """See `errno`."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, traceback: object) -> bool:
        assert isinstance(error, KError), f"expected errno {self.number}, got {error!r}"
        assert error.errno == self.number, f"expected errno {self.number}, got {error}"
        return True


def errno(number: int) -> _Errno:
    """What is inside ``with errno(ENOENT):`` must fail with that errno."""
    return _Errno(number)


class World:
    """A VFS with a directory of the file system under test. Paths are relative to it.

    Args:
        vfs: the VFS, on a virtual clock.
        top: the directory; the world takes over one hold on it.
        check: the file system's own invariants.
    """

    def __init__(self, vfs: Vfs, top: NcHandle, check: Callable[[], None]) -> None:
        self.vfs = vfs
        self.top = top
        self.check = check
        assert isinstance(vfs.clock, VirtualClock)
        self.clock = vfs.clock

    def close(self) -> None:
        """Let the directory go."""
        self.vfs.cache.drop_nch(self.top)

    def tick(self, ns: int = SECOND) -> int:
        """Let time pass; returns the time it is then."""
        self.clock.advance(ns)
        return self.vfs.now()

    # --- places --------------------------------------------------------------------------

    def nch(self, path: bytes, cred: Ucred = ROOT) -> NcHandle:
        """The place of a path, borrowed; ENOENT when there is nothing."""
        at = self.top
        for name in path.split(b"/") if path else ():
            found = sc.kern_lookup(self.vfs, at, name, cred)
            if found is None:
                raise KError(ENOENT)
            at = found
        return at

    def split(self, path: bytes) -> tuple[NcHandle, bytes]:
        """The directory of a path, borrowed, and its last name."""
        directory, _, name = path.rpartition(b"/")
        return self.nch(directory), name

    def vp(self, path: bytes) -> Vnode:
        """The vnode of a path, borrowed."""
        vp = self.nch(path).ncp.vp
        assert vp is not None
        return vp

    def exists(self, path: bytes) -> bool:
        """Whether the path leads to something."""
        try:
            self.nch(path)
        except KError:
            return False
        return True

    # --- making --------------------------------------------------------------------------

    def mkdir(self, path: bytes, mode: int = 0o755, cred: Ucred = ROOT) -> None:
        sc.kern_mkdir(self.vfs, *self.split(path), mode, cred)

    def mknod(self, path: bytes, mode: int, rdev: tuple[int, int] = (0, 0)) -> None:
        sc.kern_mknod(self.vfs, *self.split(path), mode, *rdev, ROOT)

    def open(self, path: bytes, flags: int = O_RDWR, cred: Ucred = ROOT) -> File:
        return sc.kern_open(self.vfs, self.nch(path), flags, cred)

    def create(
        self, path: bytes, mode: int = 0o644, cred: Ucred = ROOT, flags: int = O_RDWR
    ) -> File:
        return sc.kern_create(self.vfs, *self.split(path), mode, flags, cred)[1]

    def put(self, path: bytes, data: bytes = b"", mode: int = 0o644, cred: Ucred = ROOT) -> None:
        """Make a file with these contents, or give them to the one there."""
        file = self.open(path, O_WRONLY | O_TRUNC) if self.exists(path) else None
        file = file or self.create(path, mode, cred)
        if data:
            assert self.write(file, 0, data) == len(data)
        file.drop()

    def symlink(self, target: bytes, path: bytes, cred: Ucred = ROOT) -> None:
        sc.kern_symlink(self.vfs, *self.split(path), target, cred)

    def link(self, old: bytes, new: bytes, cred: Ucred = ROOT) -> None:
        sc.kern_link(self.vfs, self.nch(old), *self.split(new), cred)

    def unlink(self, path: bytes, cred: Ucred = ROOT) -> None:
        sc.kern_unlink(self.vfs, *self.split(path), cred)

    def rmdir(self, path: bytes, cred: Ucred = ROOT) -> None:
        sc.kern_rmdir(self.vfs, *self.split(path), cred)

    def rename(self, old: bytes, new: bytes, flags: int = 0, cred: Ucred = ROOT) -> None:
        sc.kern_rename(self.vfs, *self.split(old), *self.split(new), flags, cred)

    # --- contents and attributes ------------------------------------------------------------

    def read(self, file: File, offset: int, size: int) -> bytes:
        return bytes(sc.kern_read(file, offset, size))

    def write(self, file: File, offset: int, data: bytes) -> int:
        return sc.kern_write(file, offset, data)

    def get(self, path: bytes) -> bytes:
        """The whole contents of a file."""
        file = self.open(path, O_RDONLY)
        data = self.read(file, 0, self.stat(path).size or 0)
        file.drop()
        return data

    def readlink(self, path: bytes) -> bytes:
        return sc.kern_readlink(self.vfs, self.nch(path), ROOT)

    def stat(self, path: bytes) -> Vattr:
        return sc.kern_stat(self.vfs, self.nch(path))

    def mode(self, path: bytes) -> int:
        """Permission bits of a path."""
        mode = self.stat(path).mode
        assert mode is not None
        return mode

    def setattr(self, path: bytes, cred: Ucred = ROOT, **what: Any) -> None:
        sc.kern_setattr(self.vfs, self.nch(path), Vattr(**what), cred)

    def statfs(self) -> Statfs:
        return sc.kern_statfs(self.vfs, self.top)

    def readdir(self, path: bytes, cookie: int = 0, limit: int = 100) -> list[Dirent]:
        """One batch of a listing."""
        directory = self.open(path, O_RDONLY)
        entries = list(sc.kern_readdir(directory, cookie, limit))
        directory.drop()
        return entries

    def ls(self, path: bytes = b"", limit: int = 7) -> list[bytes]:
        """Every name in a directory but the dots, in listing order."""
        names: list[bytes] = []
        cookie = 0
        while part := self.readdir(path, cookie, limit):
            names += [entry.name for entry in part]
            cookie = part[-1].cookie
        assert names[:2] == [b".", b".."]
        return names[2:]

    # --- extended attributes ------------------------------------------------------------------

    def setx(
        self,
        path: bytes,
        name: bytes,
        value: bytes,
        flags: int = 0,
        space: int = USER,
        cred: Ucred = ROOT,
    ) -> None:
        sc.kern_setxattr(self.vfs, self.nch(path), space, name, value, flags, cred)

    def getx(self, path: bytes, name: bytes, space: int = USER) -> bytes:
        return sc.kern_getxattr(self.vfs, self.nch(path), space, name, ROOT)

    def rmx(self, path: bytes, name: bytes, space: int = USER, cred: Ucred = ROOT) -> None:
        sc.kern_removexattr(self.vfs, self.nch(path), space, name, cred)

    def listx(self, path: bytes, space: int = USER) -> list[bytes]:
        return list(sc.kern_listxattr(self.vfs, self.nch(path), space, ROOT))
