"""The engine for synthetic file systems: trees of nodes that show live objects of the kernel.

A file system such as ``/sysctl`` or ``/proc`` has no storage. Its directories are lists that
somebody keeps anyway, its files are texts worked out when asked for. A *node* (`PfsNode`) is the
small object that says how: it is made when a name is resolved, hangs on the vnode, and goes with
it. What it shows lives elsewhere, so every operation first asks `PfsNode.alive`.

The rules of such a tree:

* **A file is worked out when it is opened** and stays as it was for that open, so that a reader
  that takes it in pieces gets one consistent text. Its size is 0 in stat, and so is that of a link,
  because nobody knows it before; readers read until the end (direct I/O).
* **One write is one command.** The offset means nothing, the error of the write is the error of the
  command. What a command answers can be read from the same open.
* **Inode numbers** belong to an identity (a path, a process and not its id), are the same as long
  as that lives, and never come back for another one.
* **Directory cookies are inode numbers**, and listings are in their order: an entry that is there
  throughout a listing is seen exactly once, whatever else comes and goes.
* **A negative answer is good for one operation**, because nobody announces that a name appears.
* Nothing can be created, removed or renamed: EROFS. Owner and mode are the node's own business:
  EPERM. Setting the size or the times of a writable file is accepted and does nothing, so that a
  shell's ``>`` works.

Counterpart: the common parts of sys/vfs/procfs (procfs_subr.c, procfs_vnops.c); pfs of FreeBSD's
pseudofs is the nearest relative by idea.
Differs from DragonFly: one engine for all trees; there each file system repeats it.
Token and lock order: takes none; nothing here waits, though a command may raise Block.
Invariants: ``vnodes`` has a live vnode for an inode number exactly while one exists; the bytes of
all opened texts together stay below ``maxcontent``.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

from dfuser.libkern.errno import EFBIG, EINVAL, ENOENT, ENOMEM, EOPNOTSUPP, KError
from dfuser.libkern.stat import DT_DIR, DT_LNK, DT_REG, VType

from .vnode import V

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping

    from dfuser.libkern.ucred import Ucred

    from .mount import Mount
    from .vfs import Vfs
    from .vnode import Vnode

#: Longest text of one file, and of all opened files of one mount together.
CONTENT_MAX: Final = 16 << 20
CONTENT_TOTAL_MAX: Final = 64 << 20
#: Longest command.
COMMAND_MAX: Final = 1 << 20
#: Identities whose number is remembered.
INODES_MAX: Final = 65_536

#: Cookies of ``.`` and ``..``; every inode number is larger.
COOKIE_DOT: Final = 1
COOKIE_DOTDOT: Final = 2
ROOT_INO: Final = 8
FIRST_INO: Final = 16

_DTYPES: Final = MappingProxyType({VType.VDIR: DT_DIR, VType.VREG: DT_REG, VType.VLNK: DT_LNK})


class PfsEntry(NamedTuple):
    """One name in a directory."""

    name: bytes
    ino: int
    dtype: int


class InodeTable:
    """Inode numbers by identity; counts up and never gives a number to a second identity.

    Bounded: when it is full the oldest identity is forgotten and would get a fresh number.
    """

    __slots__ = ("_next", "_numbers", "forgotten", "limit")

    def __init__(self, limit: int = INODES_MAX) -> None:
        """Make an empty table for at most ``limit`` identities."""
        self.limit = limit
        self.forgotten = 0
        self._next = FIRST_INO
        self._numbers: dict[Hashable, int] = {}

    def number(self, key: Hashable) -> int:
        """The number of an identity; given out when first asked for."""
        ino = self._numbers.get(key)
        if ino is None:
            if len(self._numbers) >= self.limit:
                del self._numbers[next(iter(self._numbers))]
                self.forgotten += 1
            ino = self._numbers[key] = self._next
            self._next = ino + 1
        return ino

    def __len__(self) -> int:
        return len(self._numbers)


class PfsNode:
    """One node of a synthetic tree.

    Counterpart: struct pfsnode (sys/vfs/procfs/procfs.h).

    Attributes:
        ino: inode number.
    """

    __slots__ = ("_parent", "ino")

    vtype: ClassVar[VType] = VType.VNON

    def __init__(self, ino: int, parent: PfsDir | None) -> None:
        self.ino = ino
        self._parent = parent

    @property
    def parent(self) -> PfsNode:
        """The directory it is in; the root is its own."""
        return self._parent if self._parent is not None else self

    def alive(self) -> bool:
        """Whether what it shows still exists."""
        return True

    def visible(self, cred: Ucred) -> bool:
        """Whether ``cred`` may know of it.

        Names in the namecache are everybody's, so this is asked again at each use.
        """
        return True

    def mode(self) -> int:
        """Permission bits."""
        return 0o444

    def owner(self) -> tuple[int, int]:
        """User and group it belongs to."""
        return (0, 0)

    def timestamp(self) -> int | None:
        """Its times in nanoseconds since the epoch; None takes those of the mount."""
        return None

    def extattrs(self) -> Mapping[bytes, bytes]:
        """Extended attributes in the user name space, without its prefix."""
        return {}

    def entry(self, name: bytes) -> PfsEntry:
        """The directory entry for this node under ``name``."""
        return PfsEntry(name, self.ino, _DTYPES[self.vtype])


class PfsDir(PfsNode):
    """A directory: whoever has the list answers for names."""

    __slots__ = ()

    vtype = VType.VDIR
    #: Whether `entries` gives ascending inode numbers, so that a long listing can stop early.
    ordered: ClassVar[bool] = False

    def mode(self) -> int:
        """Anybody may look."""
        return 0o555

    def lookup(self, name: bytes, cred: Ucred) -> PfsNode | None:
        """The node of a name now, None when there is none (or ``cred`` may not know of it)."""
        raise KError(ENOENT)

    def entries(self, cred: Ucred, after: int = 0) -> Iterable[PfsEntry]:
        """Every name there is now.

        Args:
            cred: who lists.
            after: names whose inode number is not larger need not be given.
        """
        return ()


class PfsFile(PfsNode):
    """A text that can be read, a place for commands, or both."""

    __slots__ = ()

    vtype = VType.VREG

    def read(self, cred: Ucred) -> bytes:
        """The text of this moment.

        Raises:
            KError: whatever the object answers; EOPNOTSUPP where there is nothing to read.
        """
        raise KError(EOPNOTSUPP)

    def write(self, data: bytes, cred: Ucred) -> bytes | None:
        """Obey one command; may return a text to be read from the same open.

        Raises:
            KError: the error of the command.
            Block: the command must wait and has changed nothing.
        """
        raise KError(EOPNOTSUPP)


class PfsLink(PfsNode):
    """A symbolic link whose target is worked out at each reading."""

    __slots__ = ()

    vtype = VType.VLNK

    def readlink(self, cred: Ucred) -> bytes:
        """The target of this moment."""
        raise KError(EINVAL)


class StaticDir(PfsDir):
    """A directory of fixed nodes, for trees that are put together at boot."""

    __slots__ = ("children",)

    def __init__(self, ino: int, parent: PfsDir | None) -> None:
        super().__init__(ino, parent)
        self.children: dict[bytes, PfsNode] = {}

    def lookup(self, name: bytes, cred: Ucred) -> PfsNode | None:
        """A child by name."""
        return self.children.get(name)

    def entries(self, cred: Ucred, after: int = 0) -> Iterable[PfsEntry]:
        """The children."""
        return [node.entry(name) for name, node in self.children.items()]


class TextFile(PfsFile):
    """A file made of two callables: what gives its text, and what obeys its commands."""

    __slots__ = ("_obey", "_owner", "_perm", "_render")

    def __init__(
        self,
        ino: int,
        parent: PfsDir | None,
        render: Callable[[], str | bytes] | None,
        obey: Callable[[bytes, Ucred], bytes | None] | None = None,
        perm: int | None = None,
        owner: tuple[int, int] = (0, 0),
    ) -> None:
        """Make the node.

        Args:
            ino: inode number.
            parent: the directory.
            render: gives the text; None when there is nothing to read.
            obey: is given a command and who wrote it; None when it cannot be written.
            perm: permission bits; by default 0444, 0200 or 0644 as the callables say.
            owner: user and group.
        """
        super().__init__(ino, parent)
        self._render = render
        self._obey = obey
        default = (0o444 if render is not None else 0) | (0o200 if obey is not None else 0)
        self._perm = default if perm is None else perm
        self._owner = owner

    def mode(self) -> int:
        """As it was made."""
        return self._perm

    def owner(self) -> tuple[int, int]:
        """As it was made."""
        return self._owner

    def read(self, cred: Ucred) -> bytes:
        """Ask the callable."""
        if self._render is None:
            return super().read(cred)
        text = self._render()
        return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text

    def write(self, data: bytes, cred: Ucred) -> bytes | None:
        """Hand the command on."""
        if self._obey is None:
            return super().write(data, cred)
        return self._obey(data, cred)


class PfsOpen:
    """One open of a file: the text as it was worked out for it."""

    __slots__ = ("content",)

    def __init__(self) -> None:
        self.content: bytes | None = None


class PfsStatistics(NamedTuple):
    """What one mounted synthetic file system holds and has done."""

    vnodes: int
    inodes: int
    opens: int
    content_bytes: int
    reads: int
    commands: int
    errors: int


class PfsMount:
    """The private half of a mounted synthetic file system.

    Counterpart: the hash of pfsnodes (sys/vfs/procfs/procfs_subr.c).

    Attributes:
        root: the node of the root directory.
        inodes: numbers for nodes that have no natural one.
        vnodes: the live vnode of each inode number.
        times: nanoseconds since the epoch shown as the times of nodes, or None for "now".
        maxcontent: most bytes of opened texts.
    """

    __slots__ = (
        "commands",
        "content_bytes",
        "errors",
        "inodes",
        "maxcontent",
        "mp",
        "opens",
        "reads",
        "root",
        "times",
        "vfs",
        "vnodes",
    )

    def __init__(self, vfs: Vfs, mp: Mount, root: PfsDir, inodes: InodeTable) -> None:
        self.vfs = vfs
        self.mp = mp
        self.root = root
        self.inodes = inodes
        self.vnodes: dict[int, Vnode] = {}
        self.times: int | None = None
        self.maxcontent = CONTENT_TOTAL_MAX
        self.opens = 0
        self.content_bytes = 0
        self.reads = 0
        self.commands = 0
        self.errors = 0

    def allocv(self, node: PfsNode) -> Vnode:
        """The vnode of a node, referenced; made when there is none. Counterpart: procfs_allocvp."""
        vp = self.vnodes.get(node.ino)
        if vp is not None:
            vp.table.vget(vp)
            return vp
        vp = self.vfs.vnodes.getnewvnode(self.mp, self.mp.vn_cell, node.vtype)
        vp.data = node
        vp.ino = node.ino
        self.vnodes[node.ino] = vp
        if node.ino == self.root.ino:
            vp.flag |= V.ROOT
        return vp

    def find_node(self, ino: int, cred: Ucred) -> PfsNode | None:
        """The node of an inode number, found by walking the tree; None when there is none."""
        if ino == self.root.ino:
            return self.root
        todo: list[PfsDir] = [self.root]
        while todo:
            directory = todo.pop()
            for entry in directory.entries(cred):
                if entry.ino != ino and entry.dtype != DT_DIR:
                    continue
                node = directory.lookup(entry.name, cred)
                if node is not None and node.ino == ino:
                    return node
                if isinstance(node, PfsDir):
                    todo.append(node)
        return None

    def freev(self, vp: Vnode) -> None:
        """The vnode is being reclaimed. Counterpart: procfs_freevp."""
        self.vnodes.pop(vp.ino, None)
        vp.data = None

    def forget(self, ino: int) -> None:
        """What inode ``ino`` showed is gone: its names go, and its vnode with its last user."""
        vp = self.vnodes.get(ino)
        if vp is None:
            return
        self.vfs.cache.inval_vp(vp)
        vp.attr_changed()
        if vp.refcnt:
            vp.set_finalize()
        else:
            self.vfs.vnodes.vgone(vp)

    def render(self, node: PfsFile, cred: Ucred, fdata: PfsOpen | None) -> bytes:
        """Work out the text of a file and keep it with the open, if there is one.

        Raises:
            KError: EFBIG, the text is too long; ENOMEM, too much is open; the file's own error.
        """
        try:
            content = node.read(cred)
        except KError:
            self.errors += 1
            raise
        if len(content) > CONTENT_MAX:
            raise KError(EFBIG, "text of a synthetic file is too long")
        self.reads += 1
        if fdata is not None:
            self.keep(fdata, content)
        return content

    def keep(self, fdata: PfsOpen, content: bytes | None) -> None:
        """Replace the text of an open; None drops it. Raises KError ENOMEM."""
        before = len(fdata.content) if fdata.content is not None else 0
        change = (len(content) if content is not None else 0) - before
        if change > 0 and self.content_bytes + change > self.maxcontent:
            raise KError(ENOMEM, "too many long synthetic files are open")
        self.content_bytes += change
        fdata.content = content

    def statistics(self) -> PfsStatistics:
        """Sizes now and counters since the mount."""
        return PfsStatistics(
            vnodes=len(self.vnodes),
            inodes=len(self.inodes),
            opens=self.opens,
            content_bytes=self.content_bytes,
            reads=self.reads,
            commands=self.commands,
            errors=self.errors,
        )
