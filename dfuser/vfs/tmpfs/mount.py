"""One mounted tmpfs: its files, its limits, and what is used of them.

**Pages** are counted where they are, in the VM objects: whoever changes an object's data
measures its resident pages before and after and tells `TmpfsMount.charge`. A hole costs
nothing, a file of one byte one page, and the limit is exact: the page that would pass it is
refused, the one before it is not. Extended attributes are kernel memory that users can
fill, so their bytes count too, rounded up to pages for the mount as a whole.

**Inodes** are counted in the node table, in which every file is found by number, whether a
vnode exists or not. It is what makes a number a file handle: `TmpfsVfsOps.vfs_vget`.

Inode numbers and directory cookies come from one counter that only grows. An entry made
together with its file uses the same number for both.

Counterpart: struct tmpfs_mount (vfs/tmpfs/tmpfs.h); tmpfs_alloc_node, tmpfs_free_node,
    tmpfs_alloc_vp (vfs/tmpfs/tmpfs_subr.c).
Differs from DragonFly: pages are counted when they exist, not by file size, so sparse files
    are as cheap as they look; the number of inodes asked for is not cut to the number of
    pages.
Token/lock order: none; nothing here suspends.
Invariants: `TmpfsMount.check` recomputes all of it from the tree.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from dfuser.libkern.errno import ENOENT, ENOMEM, ENOSPC, EOPNOTSUPP, KKASSERT, KError
from dfuser.libkern.param import PAGE_MASK, PAGE_SHIFT
from dfuser.vm.object import OFF_MAX, VmObject

from .dir import TmpfsDir
from .node import TmpfsNode, TmpfsReg

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfuser.vfs.mount import Mount
    from dfuser.vfs.vfs import Vfs
    from dfuser.vfs.vnode import Vnode

TMPFS_ROOTINO: Final = 2

SYMLINK_MAX: Final = 1023
"""Longest symbolic link unless the mount says otherwise (MAXPATHLEN - 1)."""
SYMLINK_LIMIT: Final = 4095
"""The most a mount may say: what the host's own programs can use."""


class TmpfsLimits(NamedTuple):
    """What a mount may use; `vfsops.parse_limits` makes it from options."""

    pages: int
    nodes: int
    maxfilesize: int = OFF_MAX
    maxsymlink: int = SYMLINK_MAX


class TmpfsStatistics(NamedTuple):
    """Use and limits of one tmpfs."""

    pages_max: int
    pages_used: int
    nodes_max: int
    nodes_inuse: int
    ext_bytes: int
    next_number: int
    refused: int


class TmpfsMount:
    """What a mount's private data points at.

    Counterpart: struct tmpfs_mount (vfs/tmpfs/tmpfs.h). The ``tm_`` prefix is dropped.

    Attributes:
        limits: what may be used.
        pages_used: pages of all files' data.
        ext_bytes: bytes of all extended attributes, names and values.
        nodes: every file by inode number; its length is what statfs calls used.
        next_number: the next inode number or cookie.
        modes: one integer for each mode in use (4096 at most), which all its files share.
        refused: requests answered ENOSPC.
    """

    __slots__ = (
        "ext_bytes",
        "limits",
        "modes",
        "mp",
        "next_number",
        "nodes",
        "now",
        "pages_used",
        "refused",
        "root",
        "vfs",
    )

    def __init__(
        self, vfs: Vfs, mp: Mount, limits: TmpfsLimits, mode: int, uid: int, gid: int
    ) -> None:
        self.vfs = vfs
        self.mp = mp
        self.limits = limits
        self.now: Callable[[], int] = vfs.now
        self.pages_used = 0
        self.ext_bytes = 0
        self.refused = 0
        self.modes: dict[int, int] = {}
        self.nodes: dict[int, TmpfsNode] = {}
        self.next_number = TMPFS_ROOTINO + 1
        self.root = TmpfsDir(TMPFS_ROOTINO, mode, uid, gid, self.now(), None)
        self.root.nlink = 2
        self.nodes[TMPFS_ROOTINO] = self.root

    # --- numbers ------------------------------------------------------------------------

    def number(self) -> int:
        """A number never given out before on this mount, for an inode or a cookie.

        Counterpart: tmpfs_fetch_ino.
        """
        number = self.next_number
        self.next_number = number + 1
        return number

    # --- limits -------------------------------------------------------------------------

    @property
    def used(self) -> int:
        """Pages in use, those of extended attributes included."""
        return self.pages_used + ((self.ext_bytes + PAGE_MASK) >> PAGE_SHIFT)

    @property
    def pages_free(self) -> int:
        """Pages that may still be taken."""
        return self.limits.pages - self.used

    def want_node(self) -> None:
        """Make sure one more file may be made.

        Raises:
            KError: ENOSPC.
        """
        if len(self.nodes) >= self.limits.nodes:
            raise self.no_space()

    def want_ext(self, diff: int) -> None:
        """Make sure extended attributes may grow by ``diff`` bytes.

        Raises:
            KError: ENOSPC.
        """
        grown = (self.ext_bytes + diff + PAGE_MASK) >> PAGE_SHIFT
        if diff > 0 and self.pages_used + grown > self.limits.pages:
            raise self.no_space()

    def no_space(self) -> KError:
        """The error of a request that the limits refuse, counted."""
        self.refused += 1
        return KError(ENOSPC)

    # --- data ---------------------------------------------------------------------------

    def data_object(self, node: TmpfsReg) -> VmObject:
        """The object that holds a file's data, made now if there was none."""
        obj = node.object
        if obj is None:
            pages = self.vfs.pages
            if pages is None:
                raise KError(EOPNOTSUPP, "this kernel was made without memory for files")
            obj = node.object = VmObject(pages)
            if node.vnode is not None:
                node.vnode.object = obj
        return obj

    def room(self, obj: VmObject, offset: int, end: int) -> int:
        """How far a write from ``offset`` to ``end`` can go within the limits.

        Returns:
            The end of the part that fits.

        Raises:
            KError: ENOSPC, not a byte does.
        """
        first = offset >> PAGE_SHIFT
        last = (end - 1) >> PAGE_SHIFT
        free = max(self.pages_free, 0)
        if last - first < free:
            return end
        missing = (p for p in range(first, last + 1) if obj.vm_page_lookup(p) < 0)
        beyond = next(islice(missing, free, None), None)
        if beyond is None:
            return end
        if beyond == first:
            raise self.no_space()
        return beyond << PAGE_SHIFT

    def change_data(self, obj: VmObject, change: Callable[..., object], *args: object) -> None:
        """Let ``change`` work on an object and account the pages that came or went.

        Raises:
            KError: ENOSPC where the object said ENOMEM: physical memory is the device here.
        """
        before = obj.resident_page_count
        try:
            change(*args)
        except KError as error:
            if error.errno == ENOMEM:
                raise self.no_space() from None
            raise
        self.pages_used += obj.resident_page_count - before

    def drop_data(self, node: TmpfsReg) -> None:
        """Give all pages of a file back."""
        obj = node.object
        if obj is None:
            return
        self.pages_used -= obj.resident_page_count
        node.object = None
        node.size = 0
        if node.vnode is not None:
            node.vnode.object = None
        obj.drop()

    # --- nodes and vnodes ----------------------------------------------------------------

    def free_node(self, node: TmpfsNode) -> None:
        """Forget a file that has no names and no vnode. Counterpart: tmpfs_free_node."""
        KKASSERT(node.vnode is None, "tmpfs: freeing a node in use")
        del self.nodes[node.ino]
        if isinstance(node, TmpfsReg):
            self.drop_data(node)
        elif isinstance(node, TmpfsDir):
            node.drop_all()
        if node.ext is not None:
            self.ext_bytes -= node.ext.xattr_bytes
            node.ext = None

    def alloc_vp(self, node: TmpfsNode) -> Vnode:
        """The vnode of a file, referenced. Counterpart: tmpfs_alloc_vp."""
        vp = node.vnode
        table = self.vfs.vnodes
        if vp is not None:
            return table.vget(vp)
        vp = table.getnewvnode(self.mp, self.mp.vn_cell, node.type)
        vp.data = node
        vp.ino = node.ino
        if isinstance(node, TmpfsReg):
            vp.object = node.object
        elif node.nlink == 0:
            vp.set_finalize()
        node.vnode = vp
        return vp

    def find(self, ino: int) -> TmpfsNode:
        """The file with that number, vnode or not.

        Raises:
            KError: ENOENT, it does not exist (any more).
        """
        node = self.nodes.get(ino)
        if node is None:
            raise KError(ENOENT)
        return node

    def dissolve(self) -> None:
        """Give everything back at unmount; no vnode may be left. Breaks all cycles."""
        for node in list(self.nodes.values()):
            if isinstance(node, TmpfsDir):
                node.drop_all()
        for node in list(self.nodes.values()):
            self.free_node(node)
        KKASSERT(self.pages_used == 0, "tmpfs: pages left at unmount")
        KKASSERT(self.ext_bytes == 0, "tmpfs: extended attributes left at unmount")

    # --- views --------------------------------------------------------------------------

    def statistics(self) -> TmpfsStatistics:
        """Use and limits of this moment."""
        limits = self.limits
        return TmpfsStatistics(
            limits.pages, self.used, limits.nodes, len(self.nodes), self.ext_bytes,
            self.next_number, self.refused,
        )  # fmt: skip

    def check(self) -> None:
        """Panic unless tree, table, link counts and accounting agree.

        Everything reachable from the root is in the table under its number; what is in the
        table and not reachable has no names and a vnode; link counts are recounted; pages
        and attribute bytes are summed again; every number is below the counter.
        """
        links: dict[int, int] = {TMPFS_ROOTINO: 2}
        todo = [self.root]
        while todo:
            directory = todo.pop()
            directory.check()
            for entry in directory.entries():
                node = entry.node
                KKASSERT(self.nodes.get(node.ino) is node, "tmpfs: entry without a node")
                KKASSERT(entry.cookie < self.next_number, "tmpfs: cookie from the future")
                links[node.ino] = links.get(node.ino, 0) + 1
                if isinstance(node, TmpfsDir):
                    up = node.parent is directory and node.dirent is entry
                    KKASSERT(up, "tmpfs: wrong parent")
                    links[node.ino] += 1
                    links[directory.ino] += 1
                    todo.append(node)
        pages = ext = 0
        for ino, node in self.nodes.items():
            KKASSERT(node.nlink == links.get(ino, 0), "tmpfs: link count wrong")
            KKASSERT(node.nlink or node.vnode is not None, "tmpfs: node without name and vnode")
            KKASSERT(node.vnode is None or node.vnode.data is node, "tmpfs: vnode of another")
            if isinstance(node, TmpfsReg) and node.object is not None:
                pages += node.object.resident_page_count
                KKASSERT(node.object.size == node.size, "tmpfs: size and object differ")
            if node.ext is not None:
                ext += node.ext.xattr_bytes
                total = sum(len(name) + len(v) for (_, name), v in node.ext.xattrs.items())
                KKASSERT(node.ext.xattr_bytes == total, "tmpfs: attribute bytes wrong")
        KKASSERT(pages == self.pages_used, "tmpfs: page count wrong")
        KKASSERT(ext == self.ext_bytes, "tmpfs: attribute count wrong")
        KKASSERT(len(self.nodes) <= self.limits.nodes, "tmpfs: too many nodes")
