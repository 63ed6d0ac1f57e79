"""The tree of /proc: a directory for each process, and ``curproc``.

``curproc`` is a symbolic link to whoever reads it. Each process directory has the same files; what
they contain is told by a `ProcContents`, which the room that has processes hands in, so that this
file knows no process.

A directory goes when its process ends: its names leave the namecache at once, whoever has a file of
it open still reads the text he opened, and everything else answers ENOENT.

Counterpart: sys/vfs/procfs (procfs_vnops.c, procfs_subr.c).
Differs from DragonFly: inode numbers are made from a process's serial number, which never repeats,
instead of its id. stat shows size 0 for ``curproc``, because finding the reader's process may have
to make it. Which of the thirteen files exist is the contents' business.
Token and lock order: takes none.
Invariants: inode number = (serial + 1) * 32 + index of the file; index 0 is the directory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from dfuser.libkern.errno import KKASSERT
from dfuser.libkern.stat import DT_DIR, DT_LNK

from ..pseudofs import (
    ROOT_INO,
    InodeTable,
    PfsDir,
    PfsEntry,
    PfsFile,
    PfsLink,
    PfsMount,
    PfsNode,
)
from ..pseudofs_vnops import PfsOps, PfsVfsOps

if TYPE_CHECKING:
    from dfuser.libkern.ucred import Ucred

    from ..mount import Mount
    from ..vop import VnodeOps

INO_CURPROC: Final = ROOT_INO + 1
INO_SHIFT: Final = 5
FILES_MAX: Final = (1 << INO_SHIFT) - 1
PID_MAX: Final = 999_999


class ProcRef(NamedTuple):
    """A process as procfs sees it: an id that may come back, and a number that does not."""

    pid: int
    serial: int


class ProcFileType(NamedTuple):
    """One file that every process directory has.

    Counterpart: struct proc_target (procfs_vnops.c).
    """

    name: bytes
    mode: int
    read: Callable[[ProcRef, Ucred], bytes] | None = None
    write: Callable[[ProcRef, bytes, Ucred], None] | None = None
    valid: Callable[[ProcRef], bool] | None = None


class ProcContents(Protocol):
    """What the room that has processes tells procfs. Nothing here may wait."""

    files: tuple[ProcFileType, ...]

    def find(self, pid: int, cred: Ucred) -> ProcRef | None:
        """The process of that id, if there is one and ``cred`` may see it."""

    def listing(self, cred: Ucred, after: int = -1) -> Iterable[ProcRef]:
        """Every process ``cred`` may see with a serial number above ``after``, in their order."""

    def alive(self, ref: ProcRef) -> bool:
        """Whether the process still exists."""

    def owner(self, ref: ProcRef) -> tuple[int, int]:
        """Effective user and group."""

    def curpid(self) -> int:
        """The id of the process that is running."""

    def listen(self, gone: Callable[[ProcRef], None]) -> None:
        """Call ``gone`` with each process that ends."""

    def unlisten(self, gone: Callable[[ProcRef], None]) -> None:
        """Stop calling."""


def fileno(serial: int, index: int = 0) -> int:
    """The inode number of a file of a process. Counterpart: PROCFS_FILENO."""
    return (serial + 1) << INO_SHIFT | index


def atopid(name: bytes) -> int:
    """A decimal process id, -1 for anything else. Counterpart: atopid (procfs_vnops.c)."""
    if not name.isdigit() or len(name) > len(str(PID_MAX)):
        return -1
    pid = int(name)
    return pid if str(pid).encode() == name else -1


class ProcRoot(PfsDir):
    """/proc itself. Counterpart: Proot."""

    __slots__ = ("contents",)

    ordered = True

    def __init__(self, contents: ProcContents) -> None:
        super().__init__(ROOT_INO, None)
        self.contents = contents

    def lookup(self, name: bytes, cred: Ucred) -> PfsNode | None:
        """``curproc`` or a process."""
        if name == b"curproc":
            return CurprocLink(self.contents, self)
        pid = atopid(name)
        ref = self.contents.find(pid, cred) if pid >= 0 else None
        return ProcDir(self.contents, ref, self) if ref is not None else None

    def entries(self, cred: Ucred, after: int = 0) -> Iterable[PfsEntry]:
        """``curproc`` and every process the caller may see."""
        yield PfsEntry(b"curproc", INO_CURPROC, DT_LNK)
        for ref in self.contents.listing(cred, (after >> INO_SHIFT) - 1):
            yield PfsEntry(str(ref.pid).encode(), fileno(ref.serial), DT_DIR)


class CurprocLink(PfsLink):
    """/proc/curproc. Counterpart: Pcurproc."""

    __slots__ = ("contents",)

    def __init__(self, contents: ProcContents, parent: PfsDir) -> None:
        super().__init__(INO_CURPROC, parent)
        self.contents = contents

    def readlink(self, cred: Ucred) -> bytes:
        """The id of the reader's process."""
        return str(self.contents.curpid()).encode()


class ProcDir(PfsDir):
    """The directory of one process. Counterpart: Pproc."""

    __slots__ = ("contents", "ref")

    def __init__(self, contents: ProcContents, ref: ProcRef, parent: PfsDir) -> None:
        super().__init__(fileno(ref.serial), parent)
        self.contents = contents
        self.ref = ref

    def alive(self) -> bool:
        """Whether the process still exists."""
        return self.contents.alive(self.ref)

    def visible(self, cred: Ucred) -> bool:
        """Whether ``cred`` may see the process."""
        return self.contents.find(self.ref.pid, cred) == self.ref

    def owner(self) -> tuple[int, int]:
        """The process's user and group."""
        return self.contents.owner(self.ref)

    def lookup(self, name: bytes, cred: Ucred) -> PfsNode | None:
        """One of the files."""
        for index, kind in enumerate(self.contents.files, 1):
            if kind.name == name and (kind.valid is None or kind.valid(self.ref)):
                return ProcFile(self, kind, index)
        return None

    def entries(self, cred: Ucred, after: int = 0) -> Iterable[PfsEntry]:
        """The files that this process has."""
        for index, kind in enumerate(self.contents.files, 1):
            if kind.valid is None or kind.valid(self.ref):
                yield ProcFile(self, kind, index).entry(kind.name)


class ProcFile(PfsFile):
    """One file of one process."""

    __slots__ = ("dir", "kind")

    def __init__(self, parent: ProcDir, kind: ProcFileType, index: int) -> None:
        super().__init__(fileno(parent.ref.serial, index), parent)
        self.dir = parent
        self.kind = kind

    def alive(self) -> bool:
        """Whether the process still exists."""
        return self.dir.alive()

    def visible(self, cred: Ucred) -> bool:
        """Whether ``cred`` may see the process."""
        return self.dir.visible(cred)

    def mode(self) -> int:
        """As the kind of file says."""
        return self.kind.mode

    def owner(self) -> tuple[int, int]:
        """The process's user and group."""
        return self.dir.owner()

    def read(self, cred: Ucred) -> bytes:
        """What the contents say. Raises KError EOPNOTSUPP where there is nothing to read."""
        if self.kind.read is None:
            return super().read(cred)
        return self.kind.read(self.dir.ref, cred)

    def write(self, data: bytes, cred: Ucred) -> bytes | None:
        """Hand the command to the contents."""
        if self.kind.write is None:
            return super().write(data, cred)
        self.kind.write(self.dir.ref, data, cred)
        return None


class ProcfsOps(PfsOps):
    """Vnode operations that also hear of processes that end. Counterpart: procfs_exit."""

    __slots__ = ("files",)

    def __init__(self, fs: PfsMount, files: int) -> None:
        super().__init__(fs)
        self.files = files

    def gone(self, ref: ProcRef) -> None:
        """Take the names of an ended process out of the namecache, and its unused vnodes."""
        if not self.fs.vnodes:
            return
        for index in range(self.files, -1, -1):
            self.fs.forget(fileno(ref.serial, index))


class ProcfsVfsOps(PfsVfsOps):
    """A mounted procfs. Counterpart: procfs_vfsops."""

    def __init__(self, contents: ProcContents) -> None:
        KKASSERT(len(contents.files) <= FILES_MAX, "procfs: too many kinds of files")
        self.contents = contents
        self._ops: ProcfsOps | None = None

    @classmethod
    def factory(cls, contents: ProcContents) -> Callable[[], ProcfsVfsOps]:
        """What to register as a file system type: makes one instance a mount."""
        return lambda: cls(contents)

    def make_root(self, inodes: InodeTable) -> PfsDir:
        """/proc."""
        return ProcRoot(self.contents)

    def make_ops(self, fs: PfsMount) -> VnodeOps:
        """Operations that listen for the ends of processes."""
        self._ops = ProcfsOps(fs, len(self.contents.files))
        self.contents.listen(self._ops.gone)
        return self._ops

    def vfs_unmount(self, mp: Mount, flags: int) -> None:
        """Stop listening."""
        if self._ops is not None:
            self.contents.unlisten(self._ops.gone)
            self._ops = None
        super().vfs_unmount(mp, flags)
