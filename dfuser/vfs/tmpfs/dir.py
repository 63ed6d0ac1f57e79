"""Directories: names, and positions in a listing that stay true while names come and go.

Two questions are asked of a directory: *what is called x* and *what comes after the entry
I had last*. The first is a dict. The second must be answered for a reader that returns
after thousands of other changes, without ever giving it an entry twice or leaving one
out. So every entry has a *cookie*, a number greater than all given out before on the
mount; entries are kept in the order of their cookies, and "after cookie c" means the first
entry with a greater one, whether the entry that had c still exists or not.

As cookies only grow, new entries go to the end. The order is kept in chunks of at most
`CHUNK` entries::

    heads   [   3,        900,       2417 ]     first cookie a chunk ever held
    chunks  [ [e3,e7..], [e901..], [e2417..] ]  never empty, but for a new directory

Finding a position is two binary searches, removing an entry moves at most one chunk, and
no operation ever touches the whole directory: a million names cost no pause.

What a rename does to a position: within a directory the entry keeps its cookie under the
new name; a name that is replaced keeps the *replaced* entry's cookie and gets the other
node, because that name was there throughout.

Counterpart: struct tmpfs_dirent and the two red-black trees of a directory, by name and by
    cookie (vfs/tmpfs/tmpfs.h, tmpfs_subr.c).
Differs from DragonFly: there the cookie is the entry's address, so entries are listed in
    no order, an entry made during a listing may take the place of a removed one, and a
    reader whose last entry was removed gets EINVAL.
Token/lock order: none; directories change only between two suspension points.
Invariants: `check` states them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from dfuser.libkern.errno import KKASSERT
from dfuser.libkern.stat import DT_DIR, S_IFDIR, VType

from .node import TmpfsNode

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK: Final = 512
"""Most entries in one chunk of the listing order."""

COOKIE_DOT: Final = 1
"""The position after ``.``; ``..`` comes next."""
COOKIE_DOTDOT: Final = 2
"""The position after ``..``; the entries come next."""

DIRENT_SIZE: Final = 88
"""What one entry adds to a directory's size: bytes of struct tmpfs_dirent on x86-64."""

_COOKIE: Final = attrgetter("cookie")


class TmpfsDirent:
    """One name in one directory. Counterpart: struct tmpfs_dirent (vfs/tmpfs/tmpfs.h)."""

    __slots__ = ("cookie", "name", "node")

    def __init__(self, name: bytes, node: TmpfsNode, cookie: int) -> None:
        self.name = name
        self.node = node
        self.cookie = cookie

    def __repr__(self) -> str:
        """Name, position and what it leads to."""
        return f"<TmpfsDirent {self.name!r} cookie={self.cookie} ino={self.node.ino}>"


class TmpfsDir(TmpfsNode):
    """A directory. Counterpart: tn_dir of struct tmpfs_node (vfs/tmpfs/tmpfs.h).

    ``parent`` is the directory above and ``dirent`` the name there; both are None for the
    root and for a directory that was removed. These methods keep names and positions; link
    counts and times are the callers' (vnops_name.py).
    """

    __slots__ = ("chunks", "dirent", "heads", "names", "parent")

    type: VType = VType.VDIR
    dtype: int = DT_DIR
    ifmt: int = S_IFDIR

    def __init__(
        self, ino: int, mode: int, uid: int, gid: int, now: int, parent: TmpfsDir | None
    ) -> None:
        super().__init__(ino, mode, uid, gid, now)
        self.parent = parent
        self.dirent: TmpfsDirent | None = None
        self.names: dict[bytes, TmpfsDirent] = {}
        self.chunks: list[list[TmpfsDirent]] = []
        self.heads: list[int] = []

    def lookup(self, name: bytes) -> TmpfsDirent | None:
        """The entry of that name. Counterpart: tmpfs_dir_lookup."""
        return self.names.get(name)

    def attach(self, name: bytes, node: TmpfsNode, cookie: int) -> TmpfsDirent:
        """Add a name that is not there. Counterpart: tmpfs_dir_attach_locked.

        Args:
            name: the name; not kept in a second copy.
            node: what it leads to.
            cookie: greater than every cookie given out before.
        """
        entry = TmpfsDirent(name, node, cookie)
        self.names[name] = entry
        chunks = self.chunks
        if chunks and len(chunks[-1]) < CHUNK:
            chunks[-1].append(entry)
        else:
            chunks.append([entry])
            self.heads.append(cookie)
        self.size += DIRENT_SIZE
        return entry

    def detach(self, entry: TmpfsDirent) -> None:
        """Remove an entry of this directory. Counterpart: tmpfs_dir_detach_locked."""
        del self.names[entry.name]
        at = bisect_right(self.heads, entry.cookie) - 1
        chunk = self.chunks[at]
        index = bisect_left(chunk, entry.cookie, key=_COOKIE)
        KKASSERT(chunk[index] is entry, "tmpfs: entry not in its directory's order")
        del chunk[index]
        if not chunk:
            del self.chunks[at], self.heads[at]
            if not self.chunks:
                self.names.clear()  # a dict gives its table back only so
        self.size -= DIRENT_SIZE

    def rename(self, entry: TmpfsDirent, name: bytes) -> None:
        """Give an entry another, free name; its position stays."""
        del self.names[entry.name]
        entry.name = name
        self.names[name] = entry

    def after(self, cookie: int, limit: int) -> list[TmpfsDirent]:
        """Up to ``limit`` entries that come after a position, in order.

        Args:
            cookie: of any entry that is or was here, or less than all of them.
            limit: most entries wanted.
        """
        found: list[TmpfsDirent] = []
        at = max(bisect_right(self.heads, cookie) - 1, 0)
        start = bisect_right(self.chunks[at], cookie, key=_COOKIE) if self.chunks else 0
        while at < len(self.chunks) and len(found) < limit:
            found += self.chunks[at][start : start + limit - len(found)]
            at, start = at + 1, 0
        return found

    def entries(self) -> Iterator[TmpfsDirent]:
        """Every entry in listing order; the directory must not change meanwhile."""
        for chunk in self.chunks:
            yield from chunk

    def drop_all(self) -> None:
        """Forget every entry, when the whole file system goes."""
        self.names.clear()
        self.chunks.clear()
        self.heads.clear()
        self.parent = self.dirent = None
        self.size = 0

    def is_below(self, other: TmpfsDir) -> bool:
        """Whether this directory is ``other`` or lies anywhere inside it."""
        at: TmpfsDir | None = self
        while at is not None:
            if at is other:
                return True
            at = at.parent
        return False

    def check(self) -> None:
        """Panic unless the order and the names agree.

        Cookies rise strictly through all chunks; each head is at most its chunk's first
        cookie and greater than all before; no chunk is empty or too long; the names are
        those of the entries, each once; the size follows their number.
        """
        flat = list(self.entries())
        cookies = [entry.cookie for entry in flat]
        KKASSERT(cookies == sorted(set(cookies)), "tmpfs: cookies out of order")
        KKASSERT(len(self.heads) == len(self.chunks), "tmpfs: heads without chunks")
        last = COOKIE_DOTDOT
        for head, chunk in zip(self.heads, self.chunks, strict=True):
            KKASSERT(0 < len(chunk) <= CHUNK, "tmpfs: chunk empty or too long")
            KKASSERT(last < head <= chunk[0].cookie, "tmpfs: head beyond its chunk")
            last = chunk[-1].cookie
        KKASSERT({e.name: e for e in flat} == self.names, "tmpfs: names and order differ")
        KKASSERT(len(flat) == len(self.names), "tmpfs: a name twice")
        KKASSERT(self.size == DIRENT_SIZE * len(flat), "tmpfs: directory size wrong")
