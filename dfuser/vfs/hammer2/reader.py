"""Reading a volume at rest: PFSs, directories, paths, every kind of file.

The reader needs nothing but a callable that reads bytes; it serves the tools that look into an
image without mounting it, and tests as the second opinion on a mounted one::

    reader = Reader(open_set([Device(name, size, read_at)]))
    pfs = reader.pfs(b"DATA")
    for entry in pfs.readdir(pfs.root): ...
    data = pfs.read(pfs.resolve(b"etc/motd"), 0, 65536)

Below the root of a PFS lie its inodes, by number, and its own names; other directories have names
only. A name leads to an inode by its number, so a hard link is one more name. Volumes of the very
first versions have inodes in place of names; those are read too.

Damage is kept local. Each method fails for what it was asked about (`MediaError`, EIO), and
listings take an `onerror` with which they go on behind the damaged part.

Counterpart: hammer2_xop_nresolve, hammer2_xop_readdir (vfs/hammer2/hammer2_xops.c),
    hammer2_chain_inode_find (hammer2_chain.c), hammer2_pfsalloc (hammer2_vfsops.c).
Token/lock order: takes none.
Invariants: every block is verified before use; every walk ends, whatever the bytes are (see
    tree.py; a directory that is met twice is an error).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from dfuser.libkern.errno import ELOOP, ENOENT, ENOTDIR, KError
from dfuser.libkern.param import MAXSYMLINKS, NAME_MAX
from dfuser.vfs.hammer2 import filedata
from dfuser.vfs.hammer2.errors import MediaError
from dfuser.vfs.hammer2.node import Node, load_node
from dfuser.vfs.hammer2.ondisk.blockref import DIRENT_HEAD, Blockref
from dfuser.vfs.hammer2.ondisk.const import (
    DIRENT_INLINE_NAME,
    DIRHASH_VISIBLE,
    KEY_MAX,
    SROOT_KEY,
    BrefType,
    ObjType,
    OpFlag,
)
from dfuser.vfs.hammer2.ondisk.keys import dirhash, dirhash_last, key_of_cookie
from dfuser.vfs.hammer2.tree import OnError, Table, Tree, make_table
from dfuser.vfs.hammer2.volume import VolumeSet

_DIRENT: Final = int(BrefType.DIRENT)
_INODE: Final = int(BrefType.INODE)
#: Names that lead elsewhere by themselves; a copy of a volume that had them would go astray.
_DOTS: Final = (b".", b"..")
_unpack_head: Final = DIRENT_HEAD.unpack


class Entry(NamedTuple):
    """One name in a directory. ``key`` without bit 63 is its cookie."""

    key: int
    inum: int
    type: int
    name: bytes


class Reader:
    """A volume at rest."""

    __slots__ = ("sroot", "tree", "volume")

    def __init__(self, volume: VolumeSet) -> None:
        """Find the super-root.

        Raises:
            MediaError: it is damaged, or there is none.
        """
        self.volume = volume
        self.tree = Tree(volume.read_at, volume.size)
        header = volume.header
        bref = self.tree.find(make_table(header.sroot_blockset, 0, KEY_MAX), SROOT_KEY)
        if bref is None:
            raise MediaError("the volume has no super-root")
        self.sroot = load_node(self.tree, bref)
        if not self.sroot.is_directory:
            raise MediaError("the super-root is no directory", bref.data_off)

    def pfs_list(self, onerror: OnError | None = None) -> Iterator[Pfs]:
        """All PFSs, snapshots among them, by the keys of their labels.

        Raises:
            MediaError: one is damaged and there is no `onerror`.
        """
        for bref in self.tree.scan(self.sroot.table(), DIRHASH_VISIBLE, KEY_MAX, onerror):
            try:
                yield self._pfs(bref)
            except MediaError as exc:
                if onerror is None:
                    raise
                onerror(bref, exc)

    def pfs(self, label: bytes) -> Pfs:
        """The PFS with a label.

        Raises:
            KError: ENOENT, there is none.
            MediaError: it is damaged.
        """
        key = dirhash(label)
        for bref in self.tree.scan(self.sroot.table(), key, dirhash_last(key)):
            pfs = self._pfs(bref)
            if pfs.label == label:
                return pfs
        raise KError(ENOENT, f"no PFS {label.decode(errors='backslashreplace')}")

    def _pfs(self, bref: Blockref) -> Pfs:
        """The PFS whose root a blockref of the super-root leads to."""
        root = load_node(self.tree, bref)
        if not root.meta.op_flags & OpFlag.PFSROOT or not root.is_directory:
            raise MediaError(f"inode {root.meta.inum:#x} is no root of a PFS", bref.data_off)
        return Pfs(self.tree, root)

    def freemap(self, onerror: OnError | None = None) -> Iterator[Blockref]:
        """The blockrefs of all freemap leaves, by the offset of what they stand for.

        Raises:
            MediaError: a node is damaged and there is no `onerror`.
        """
        return self.tree.scan(self.freemap_table(), onerror=onerror)

    def freemap_table(self) -> Table:
        """Where the freemap's tree begins.

        Raises:
            MediaError: the header's blockset is no table.
        """
        return make_table(self.volume.header.freemap_blockset, 0, KEY_MAX)

    def topology(self, onerror: OnError | None = None) -> Iterator[Blockref]:
        """All blockrefs that are reached from the super-root, its own first.

        A block that several trees share, after a snapshot or because equal data was found, is
        given for each blockref that leads to it; what lies below it, once.

        Raises:
            MediaError: a block is damaged and there is no `onerror`.
        """
        seen: set[int] = set()
        yield self.sroot.bref
        levels = [self._below(self.sroot, onerror)]
        while levels:
            for bref in levels[-1]:
                yield bref
                if bref.type != _INODE or bref.data_off in seen:
                    continue
                seen.add(bref.data_off)
                try:
                    levels.append(self._below(load_node(self.tree, bref), onerror))
                except MediaError as exc:
                    if onerror is None:
                        raise
                    onerror(bref, exc)
                    continue
                break
            else:
                levels.pop()

    def _below(self, node: Node, onerror: OnError | None) -> Iterator[Blockref]:
        """All blockrefs of an inode's own tree."""
        return self.tree.scan(node.table(), onerror=onerror, inner=True)


class Pfs:
    """One PFS of a volume at rest: a file system with a root of its own."""

    __slots__ = ("root", "tree")

    def __init__(self, tree: Tree, root: Node) -> None:
        """A PFS by its root."""
        self.tree = tree
        self.root = root

    @property
    def label(self) -> bytes:
        """The name it is mounted by."""
        return self.root.name

    def inode(self, inum: int) -> Node:
        """The inode with a number.

        Raises:
            KError: ENOENT, there is none.
            MediaError: it is damaged, or says another number.
        """
        if inum == self.root.meta.inum:
            return self.root
        bref = self.tree.find(self.root.table(), inum) if 0 < inum < DIRHASH_VISIBLE else None
        if bref is None:
            raise KError(ENOENT, f"no inode {inum:#x}")
        node = load_node(self.tree, bref)
        if node.meta.inum != inum:
            raise MediaError(f"inode {inum:#x} says it is {node.meta.inum:#x}", bref.data_off)
        return node

    def node(self, entry: Entry) -> Node:
        """The inode that a name leads to.

        Raises:
            MediaError: there is none, or it is damaged.
        """
        try:
            return self.inode(entry.inum)
        except MediaError:
            raise
        except KError as exc:
            raise MediaError(f"{exc.strerror} behind the name {entry.name!r}") from None

    def readdir(
        self, directory: Node, cookie: int = 0, onerror: OnError | None = None
    ) -> Iterator[Entry]:
        """The names of a directory by ascending key, without ``.`` and ``..``.

        Args:
            directory: what is listed.
            cookie: where to begin; one more than the key, less bit 63, of the last entry seen.
            onerror: called for each damaged block; the listing goes on behind it.

        Raises:
            KError: ENOTDIR.
            MediaError: a block or entry is damaged and there is no `onerror`.
        """
        if not directory.is_directory:
            raise KError(ENOTDIR)
        first = key_of_cookie(cookie)
        for bref in self.tree.scan(directory.table(), first, KEY_MAX, onerror):
            if bref.type == _DIRENT:
                inum, namlen, objtype = _unpack_head(bref.embed)
                if 0 < namlen <= DIRENT_INLINE_NAME:
                    name = bref.check[:namlen]
                    if b"/" not in name and b"\0" not in name and name not in _DOTS:
                        yield Entry(bref.key, inum, objtype, name)
                        continue
            try:
                yield self._entry(bref)
            except MediaError as exc:
                if onerror is None:
                    raise
                onerror(bref, exc)

    def _entry(self, bref: Blockref) -> Entry:
        """The entry of any blockref that may lie in a directory."""
        if bref.type == _DIRENT:
            inum, namlen, objtype = _unpack_head(bref.embed)
            if namlen <= DIRENT_INLINE_NAME:
                name = bref.check[:namlen]
            else:
                name = self.tree.load(bref)[:namlen]
            entry = Entry(bref.key, inum, objtype, name)
        else:
            node = load_node(self.tree, bref)
            entry = Entry(bref.key, node.meta.inum, node.meta.type, node.name)
            namlen = node.meta.name_len
        if not 0 < namlen <= NAME_MAX or len(entry.name) != namlen:
            raise MediaError(f"a name of {namlen} bytes at key {bref.key:#x}", bref.data_off)
        if b"/" in entry.name or b"\0" in entry.name or entry.name in _DOTS:
            raise MediaError(f"the name {entry.name!r} at key {bref.key:#x}", bref.data_off)
        return entry

    def readdir_nodes(
        self, directory: Node, onerror: OnError | None = None
    ) -> Iterator[tuple[Entry, Node | MediaError]]:
        """The names of a directory, each with its inode or with what is wrong with that.

        Raises:
            KError: ENOTDIR.
            MediaError: a block of the directory is damaged and there is no `onerror`.
        """
        for entry in self.readdir(directory, 0, onerror):
            try:
                yield entry, self.node(entry)
            except MediaError as exc:
                yield entry, exc

    def lookup(self, directory: Node, name: bytes) -> Entry:
        """The entry of a directory with a name.

        Raises:
            KError: ENOTDIR; ENOENT, there is none.
            MediaError: a block on the way is damaged.
        """
        if not directory.is_directory:
            raise KError(ENOTDIR)
        key = dirhash(name)
        for bref in self.tree.scan(directory.table(), key, dirhash_last(key)):
            entry = self._entry(bref)
            if entry.name == name:
                return entry
        raise KError(ENOENT)

    def resolve(self, path: bytes, *, follow: bool = True) -> Node:
        """The inode at a path from the root of the PFS.

        Args:
            path: names with slashes between; more slashes, ``.`` and ``..`` are allowed.
            follow: whether a symbolic link at the end is followed; others always are.

        Raises:
            KError: ENOENT, ENOTDIR, or ELOOP after 32 links.
            MediaError: a block on the way is damaged.
        """
        todo = path.split(b"/")[::-1]
        way = [self.root]
        links = 0
        while todo:
            name = todo.pop()
            if not way[-1].is_directory:
                raise KError(ENOTDIR)
            if name in (b"", b"."):
                continue
            if name == b"..":
                if len(way) > 1:
                    way.pop()
                continue
            node = self.node(self.lookup(way[-1], name))
            if node.meta.type != ObjType.SOFTLINK or not (follow or todo):
                way.append(node)
                continue
            links += 1
            if links > MAXSYMLINKS:
                raise KError(ELOOP)
            target = self.readlink(node)
            if target.startswith(b"/"):
                del way[1:]
            todo += target.split(b"/")[::-1]
        return way[-1]

    def walk(
        self,
        directory: Node | None = None,
        onerror: Callable[[bytes, MediaError], None] | None = None,
    ) -> Iterator[tuple[bytes, Node]]:
        """Everything below a directory, itself first: path and inode, parents before children.

        Args:
            directory: where to begin; the root if None. Its own path is empty.
            onerror: called with a path for each name or part of a directory that is damaged; the
                walk goes on behind it.

        Raises:
            MediaError: something is damaged and there is no `onerror`.
        """
        top = directory or self.root
        seen = {top.meta.inum}
        yield b"", top
        levels = [self._children(b"", top, seen, onerror)] if top.is_directory else []
        while levels:
            for path, node in levels[-1]:
                yield path, node
                if node.is_directory:
                    levels.append(self._children(path, node, seen, onerror))
                    break
            else:
                levels.pop()

    def _children(
        self,
        path: bytes,
        directory: Node,
        seen: set[int],
        onerror: Callable[[bytes, MediaError], None] | None,
    ) -> Iterator[tuple[bytes, Node]]:
        """Paths and inodes in a directory; directories that were seen before are errors."""

        def damaged(where: bytes, exc: MediaError) -> None:
            if onerror is None:
                raise exc
            onerror(where, exc)

        try:
            for entry, node in self.readdir_nodes(directory, lambda _, exc: damaged(path, exc)):
                below = path + b"/" + entry.name if path else entry.name
                if isinstance(node, MediaError):
                    damaged(below, node)
                elif not node.is_directory:
                    yield below, node
                elif node.meta.inum in seen:
                    damaged(below, MediaError(f"directory {node.meta.inum:#x} has two names"))
                else:
                    seen.add(node.meta.inum)
                    yield below, node
        except MediaError as exc:
            damaged(path, exc)

    def read(self, node: Node, offset: int, size: int) -> bytes:
        """Bytes of a file; see `filedata.read`."""
        return filedata.read(self.tree, node, offset, size)

    def pieces(
        self, node: Node, start: int = 0, stop: int | None = None, onerror: OnError | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """What of a file is no hole; see `filedata.pieces`."""
        return filedata.pieces(self.tree, node, start, stop, onerror)

    def readlink(self, node: Node) -> bytes:
        """Where a symbolic link points; see `filedata.readlink`."""
        return filedata.readlink(self.tree, node)
