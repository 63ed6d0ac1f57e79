"""Nodeids: the numbers by which the host's kernel names our files.

A nodeid is a file handle, not a pinned vnode. It names a mount and an inode of its file system; the
vnode behind it may be reclaimed and comes back through ``vfs_vget`` when the host asks again. The
host may therefore remember millions of files while vnodes stay within ``kern.maxvnodes``.

The number is ``(mount index - index of the connection's mount) << 48 | inode``, and the root
directory of the connection is 1, as FUSE demands. So the files of the mount that a connection was
made for have their own inode numbers, and those of mounts inside that came later, seen through the
same connection, have others. Mount indices and inode numbers are never reused, so nodeids are not
either, and two files never share one. The nodeid is shown as ``st_ino``: programs that find hard
links by (st_dev, st_ino) are right about every mount behind the connection. An inode number that
does not fit below the mount index is given a number from a table of its own.

There is one exception to "not pinned": a file whose last name is removed while the host holds its
number. No handle could bring it back, and the host may still open it (it had found the name
before). Its vnode is referenced until the host forgets the number.

Counterpart: nfs file handles (struct fid, sys/mount.h); nothing in DragonFly's FUSE client.
Invariants: a `Node` stands in the table exactly while the host holds lookups on it, except the
root, which always does; a node's ``vp`` is None or alive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dfuser.libkern.errno import ENOENT, EOVERFLOW, ESTALE, KError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfuser.vfs.mount import Mount
    from dfuser.vfs.vnode import Vnode

#: The root of a FUSE connection. Counterpart: FUSE_ROOT_ID (linux/fuse.h).
FUSE_ROOT_ID: Final = 1
#: Bits of a nodeid that hold the inode number.
INO_BITS: Final = 48
INO_LIMIT: Final = 1 << INO_BITS
#: Mount indices that fit above the inode number; the last value marks numbers from the table.
_MAX_INDEX: Final = 0x7FFE
_TABLE_BASE: Final = 0x7FFF << INO_BITS


class Node:
    """What the host knows by one nodeid."""

    __slots__ = (
        "ino", "mount", "next", "nlookup", "nodeid", "packed", "pinned", "plain", "table", "vp",
    )  # fmt: skip

    def __init__(self, table: NodeTable, nodeid: int, mount: Mount, ino: int) -> None:
        #: The connection's table it stands in.
        self.table = table
        self.nodeid = nodeid
        self.mount = mount
        self.ino = ino
        #: References the host holds, given back by FORGET.
        self.nlookup = 0
        #: The vnode while it lives; unreferenced (unless ``pinned``), cleared at its reclaim.
        self.vp: Vnode | None = None
        self.pinned = False
        #: Known to have no extended attribute at all, access control lists included.
        self.plain = False
        #: The packed attributes (`attr.AttrCache`); None, or stale unless the vnode has them too.
        self.packed: Any = None
        #: Another node on the same vnode (seen through another mount).
        self.next: Node | None = None


class NodeStatistics(NamedTuple):
    """What `NodeTable.statistics` returns."""

    nodes: int
    lookups: int
    created: int
    forgotten: int
    revived: int


class NodeTable:
    """All nodeids that the host holds."""

    def __init__(
        self, mount_by_index: Callable[[int], Mount | None], connection: Any = None
    ) -> None:
        """``mount_by_index`` finds a live mount by its index; ``connection`` owns the table."""
        self.connection = connection
        self.by_id: dict[int, Node] = {}
        #: Nodes with packed attributes, oldest first; kept by `attr.AttrCache`.
        self.packed: dict[Node, None] = {}
        self._base = 1
        self._mount_by_index = mount_by_index
        self.created = 0
        self.forgotten = 0
        self.revived = 0
        self._root_key = 0
        #: Pinned vnodes that a forced unmount took, to be given back when it is over.
        self.orphans: list[Vnode] = []
        self._large: dict[tuple[int, int], int] = {}
        self._large_next = _TABLE_BASE

    def set_root(self, mount: Mount, vp: Vnode) -> Node:
        """Make ``vp``, the root of ``mount``, node 1; ``mount`` is the connection's own."""
        self._base = mount.index
        self._root_key = vp.ino
        node = self.by_id[FUSE_ROOT_ID] = Node(self, FUSE_ROOT_ID, mount, vp.ino)
        self.bind(node, vp)
        return node

    def nodeid(self, mount: Mount, ino: int) -> int:
        """The number of inode ``ino`` of ``mount``, whether or not the host knows it.

        Raises EOVERFLOW when the kernel has made more mounts than the numbering has room for.
        """
        index = mount.index - self._base
        if 0 < ino < INO_LIMIT and 0 <= index <= _MAX_INDEX:
            number = index << INO_BITS | ino
            if number != self._root_key:
                if number != FUSE_ROOT_ID:
                    return number
            else:
                return FUSE_ROOT_ID
        if not 0 <= index <= _MAX_INDEX:
            raise KError(EOVERFLOW, "too many mounts were made since this kernel booted")
        key = (index, ino)
        number = self._large.get(key, 0)
        if not number:
            self._large_next += 1
            number = self._large[key] = self._large_next
        return number

    def bind(self, node: Node, vp: Vnode) -> None:
        """Tie a live vnode to its node."""
        node.vp = vp
        node.next = vp.handle
        vp.handle = node

    def find(self, mount: Mount, vp: Vnode) -> Node:
        """The node of ``vp`` as seen through ``mount``; made when the host does not know it yet.

        The caller counts a lookup on it or drops it again.
        """
        node = vp.handle
        while node is not None:
            if node.mount is mount and node.table is self:
                return node  # type: ignore[no-any-return]
            node = node.next
        nodeid = self.nodeid(mount, vp.ino)
        known = self.by_id.get(nodeid)
        if known is None:
            known = self.by_id[nodeid] = Node(self, nodeid, mount, vp.ino)
            self.created += 1
        self.bind(known, vp)
        return known

    def find_ino(self, mount: Mount, ino: int) -> Node:
        """The node of an inode whose vnode need not exist (an entry of a listing)."""
        nodeid = self.nodeid(mount, ino)
        node = self.by_id.get(nodeid)
        if node is None:
            node = self.by_id[nodeid] = Node(self, nodeid, mount, ino)
            self.created += 1
        return node

    def vnode(self, nodeid: int) -> tuple[Node, Vnode]:
        """Node and live vnode of ``nodeid``; fetches the vnode again if it was reclaimed.

        Raises ESTALE for a number the host should not hold, or whose file or mount is gone.
        """
        node = self.by_id.get(nodeid)
        if node is None:
            raise KError(ESTALE)
        vp = node.vp
        if vp is None:
            vp = self._vget(node.mount, node.ino)
            self.revived += 1
            self.bind(node, vp)
            vp.rele()
        return node, vp

    def reopen(self, nodeid: int) -> tuple[Mount, Vnode]:
        """Mount and vnode of a number the host may have forgotten; the vnode is borrowed.

        For file handles that a program kept (open_by_handle_at): makes no node.
        Raises ESTALE as `vnode` does.
        """
        if nodeid in self.by_id:
            node, vp = self.vnode(nodeid)
            return node.mount, vp
        mount = self._mount_by_index((nodeid >> INO_BITS) + self._base)
        ino = nodeid & (INO_LIMIT - 1)
        if mount is None or nodeid > _TABLE_BASE or not ino:
            raise KError(ESTALE)
        vp = self._vget(mount, ino)
        vp.rele()
        return mount, vp

    def _vget(self, mount: Mount, ino: int) -> Vnode:
        """The vnode of an inode, referenced; ESTALE when it or its mount is gone."""
        if self._mount_by_index(mount.index) is not mount:
            raise KError(ESTALE)
        try:
            return mount.ops.vfs_vget(mount, ino)
        except KError as error:
            if error.errno == ENOENT:
                raise KError(ESTALE) from None
            raise

    @staticmethod
    def pin(vp: Vnode) -> None:
        """``vp`` has lost its last name: keep it while the host holds a number of it anywhere."""
        node = vp.handle
        while node is not None:
            if node.nlookup > 0 and not node.pinned:
                node.pinned = True
                vp.ref()
            node = node.next

    @staticmethod
    def reclaimed(vp: Vnode) -> None:
        """``vp`` is being reclaimed: its nodes, of every connection, stay without it."""
        node = vp.handle
        vp.handle = None
        while node is not None:
            node.vp = None
            node.plain = False
            if node.pinned:
                node.pinned = False
                node.table.orphans.append(vp)
            node.next, node = None, node.next

    def unmounted(self) -> list[Node]:
        """A mount has gone: take its nodes off their vnodes; returns them.

        From now on they are ESTALE, also those of a null mount, whose vnodes live on below.
        Needs a kernel context. Costs a walk over all nodes.
        """
        gone = [
            node
            for node in self.by_id.values()
            if self._mount_by_index(node.mount.index) is not node.mount
        ]
        for node in gone:
            self._unbind(node)
        orphans, self.orphans = self.orphans, []
        for vp in orphans:
            vp.rele()
        return gone

    def forget(self, nodeid: int, nlookup: int) -> None:
        """The host gives ``nlookup`` references back. Needs a kernel context."""
        node = self.by_id.get(nodeid)
        if node is None:
            return
        node.nlookup -= nlookup
        if node.nlookup <= 0 and nodeid != FUSE_ROOT_ID:
            self.discard(node)

    def discard(self, node: Node) -> None:
        """Take a node without lookups out of the table."""
        del self.by_id[node.nodeid]
        self.packed.pop(node, None)
        node.packed = None
        self.forgotten += 1
        if node.nodeid > _TABLE_BASE:
            self._large.pop((node.mount.index - self._base, node.ino), None)
        self._unbind(node)

    @staticmethod
    def _unbind(node: Node) -> None:
        """Part a node and its vnode."""
        vp = node.vp
        if vp is None:
            return
        node.vp = None
        if vp.handle is node:
            vp.handle = node.next
        else:
            other = vp.handle
            while other is not None and other.next is not node:
                other = other.next
            if other is not None:
                other.next = node.next
        node.next = None
        vp.attr_cache = None
        if node.pinned:
            node.pinned = False
            vp.rele()

    def statistics(self) -> NodeStatistics:
        """Counters; ``lookups`` is the sum over all nodes and costs a walk."""
        return NodeStatistics(
            nodes=len(self.by_id),
            lookups=sum(node.nlookup for node in self.by_id.values()),
            created=self.created,
            forgotten=self.forgotten,
            revived=self.revived,
        )
