"""The tree of one mounted devfs.

A devfs has a node for each device on the kernel's list (`dfuser.dev.devlist`), in the directories
the device's name asks for, a link for each alias, and what users have made themselves: directories
and symbolic links. Each mount has its own tree, so that owners, modes and what is hidden can differ
from mount to mount; the devices behind are the same.

Rules (`rules.py`) are applied to a node when it is made, and again on demand.

Counterpart: struct devfs_node (sys/devfs.h), devfs_allocp, devfs_unlinkp, devfs_gc,
devfs_alias_create (vfs/devfs/devfs_core.c).
Differs from DragonFly: children are in a dictionary; an alias is a symbolic link with a relative
target (there it resolves to the target's vnode, which would give one file two names in the host's
eyes); what a user makes belongs to him (there to root), and is limited in number.
Token and lock order: takes none.
Invariants: a node that is not LINKED has no parent; a directory that no user made goes with its
last child; a link to a node goes with the node; inode numbers and cookies are never reused;
``opens`` of a node are closed when its vnode is reclaimed, at the latest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dfuser.libkern.errno import EEXIST, ENOSPC, KError
from dfuser.libkern.stat import DT_CHR, DT_DIR, DT_LNK, VType

from ..vnode import V

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfuser.dev.devlist import DevAlias, DevList
    from dfuser.dev.devsw import Cdev
    from dfuser.libkern.klist import Knote

    from ..mount import Mount
    from ..vfs import Vfs
    from ..vnode import Vnode
    from ..vop import OpsCell
    from .rules import DevfsRules

#: Directories and links that users may make in one mount.
USER_NODES_MAX: Final = 1024
ROOT_INO: Final = 2
COOKIE_DOT: Final = 1
COOKIE_DOTDOT: Final = 2
DEFAULT_MODE: Final = 0o755


class DEVFS:
    """Flags of a node. Counterpart: DEVFS_* (sys/devfs.h)."""

    LINKED: Final = 0x001
    USER_CREATED: Final = 0x002
    HIDDEN: Final = 0x010
    """Not to be found and not listed."""
    RULE_CREATED: Final = 0x100
    """A link that a rule has made."""
    RULE_HIDDEN: Final = 0x200
    """Hidden by a rule, so a reset shows it again."""


class DevOpen:
    """One open of a device: which device it became, and what the driver keeps for it."""

    __slots__ = ("dev", "nonblock", "priv")

    def __init__(self, dev: Cdev, priv: Any, nonblock: bool) -> None:
        self.dev = dev
        self.priv = priv
        self.nonblock = nonblock


class DevfsNode:
    """One node. Counterpart: struct devfs_node (sys/devfs.h)."""

    __slots__ = (
        "atime",
        "btime",
        "children",
        "cookie",
        "cookie_jar",
        "ctime",
        "dev",
        "flags",
        "gid",
        "ino",
        "link_target",
        "links",
        "mode",
        "mtime",
        "name",
        "note",
        "opens",
        "parent",
        "symlink",
        "type",
        "uid",
        "vp",
    )

    def __init__(self, vtype: VType, name: bytes, ino: int, now: int) -> None:
        self.type = vtype
        self.name = name
        self.ino = ino
        self.parent: DevfsNode | None = None
        self.children: dict[bytes, DevfsNode] = {}
        self.cookie = 0
        #: The cookie of the next child.
        self.cookie_jar = COOKIE_DOTDOT + 1
        self.dev: Cdev | None = None
        self.link_target: DevfsNode | None = None
        #: The links whose target this is.
        self.links: list[DevfsNode] = []
        self.symlink = b""
        self.flags = 0
        self.mode = DEFAULT_MODE
        self.uid = 0
        self.gid = 0
        self.atime = self.mtime = self.ctime = self.btime = now
        self.vp: Vnode | None = None
        #: Hands events of the device on to the watchers of the vnode.
        self.note: Knote | None = None
        #: Opens of the device through this node.
        self.opens: dict[DevOpen, None] = {}

    @property
    def hidden(self) -> bool:
        """Whether it is hidden, or is an alias of a hidden node."""
        target = self.link_target
        return bool(self.flags & DEVFS.HIDDEN or (target and target.flags & DEVFS.HIDDEN))

    @property
    def dtype(self) -> int:
        """The DT_* of its directory entry."""
        return {VType.VDIR: DT_DIR, VType.VLNK: DT_LNK}.get(self.type, DT_CHR)

    def path(self) -> bytes:
        """The path below the root, without a slash in front."""
        parts: list[bytes] = []
        node: DevfsNode | None = self
        while node is not None and node.parent is not None:
            parts.append(node.name)
            node = node.parent
        return b"/".join(reversed(parts))

    def readlink(self) -> bytes:
        """The target: an alias's is worked out, relative to the directory the link is in."""
        target = self.link_target
        if target is None:
            return self.symlink
        return b"../" * self.path().count(b"/") + target.path()

    def __repr__(self) -> str:
        return f"<DevfsNode {self.path()!r} {self.type.name} flags={self.flags:#x}>"


class DevfsStatistics(NamedTuple):
    """Sizes and counters of one mounted devfs."""

    nodes: int
    user_nodes: int
    hidden: int
    created: int
    destroyed: int
    collisions: int


class DevfsMount:
    """The private half of a mounted devfs; listens to the list of devices.

    Counterpart: struct devfs_mnt_data (sys/devfs.h).

    Attributes:
        jailed: whether JAIL rules apply to it, and others do not.
        onname: where it is mounted, as rules name it.
        spec_cell: operations of device vnodes (mnt_vn_spec_ops).
    """

    __slots__ = (
        "_next_ino",
        "by_dev",
        "collisions",
        "created",
        "destroyed",
        "devices",
        "jailed",
        "mp",
        "nodes",
        "onname",
        "root",
        "rules",
        "spec_cell",
        "user_nodes",
        "vfs",
    )

    def __init__(
        self, vfs: Vfs, mp: Mount, devices: DevList, rules: DevfsRules, jailed: bool, onname: str
    ) -> None:
        self.vfs = vfs
        self.mp = mp
        self.devices = devices
        self.rules = rules
        self.jailed = jailed
        self.onname = onname
        #: Set by the one who makes the operations.
        self.spec_cell: OpsCell = mp.vn_cell
        #: Every linked node by its inode number, and those of each device.
        self.nodes: dict[int, DevfsNode] = {}
        self.by_dev: dict[Cdev, list[DevfsNode]] = {}
        self.user_nodes = 0
        self.created = 0
        self.destroyed = 0
        self.collisions = 0
        self._next_ino = ROOT_INO
        self.root = self._node(VType.VDIR, b"")
        self.root.flags |= DEVFS.LINKED

    # --- nodes -------------------------------------------------------------------------------

    def _node(self, vtype: VType, name: bytes) -> DevfsNode:
        node = DevfsNode(vtype, name, self._next_ino, self.vfs.now())
        self.nodes[self._next_ino] = node
        self._next_ino += 1
        self.created += 1
        return node

    def allocp(
        self,
        vtype: VType,
        name: bytes,
        parent: DevfsNode,
        dev: Cdev | None = None,
        target: DevfsNode | None = None,
        flags: int = 0,
    ) -> DevfsNode:
        """Make a node, link it in, and apply the rules to it. Counterpart: devfs_allocp."""
        node = self._node(vtype, name)
        node.flags = flags | DEVFS.LINKED
        node.dev = dev
        node.link_target = target
        if dev is not None:
            node.mode, node.uid, node.gid = dev.perms, dev.uid, dev.gid
            self.by_dev.setdefault(dev, []).append(node)
        if target is not None:
            target.links.append(node)
        node.parent = parent
        node.cookie = parent.cookie_jar
        parent.cookie_jar += 1
        parent.children[name] = node
        parent.mtime = parent.ctime = node.ctime
        self.changed(parent)
        self.mp.namecache_news()
        self.rules.check_apply(self, node)
        return node

    def user_node(self, vtype: VType, name: bytes, parent: DevfsNode) -> DevfsNode:
        """A directory or link that a user makes.

        Raises:
            KError: EEXIST, a hidden node has the name; ENOSPC, users have made too many.
        """
        if name in parent.children:
            raise KError(EEXIST)
        if self.user_nodes >= USER_NODES_MAX:
            raise KError(ENOSPC, "too many names made by users in this devfs")
        self.user_nodes += 1
        return self.allocp(vtype, name, parent, flags=DEVFS.USER_CREATED)

    def unlinkp(self, node: DevfsNode) -> None:
        """Take a node out of the tree; its names and its unused vnode go.

        Counterpart: devfs_unlinkp and devfs_freep.
        """
        parent = node.parent
        if parent is None:
            return
        del parent.children[node.name]
        parent.mtime = parent.ctime = self.vfs.now()
        self.changed(parent)
        node.parent = None
        node.flags &= ~DEVFS.LINKED
        del self.nodes[node.ino]
        if node.link_target is not None:
            node.link_target.links.remove(node)
        if node.dev is not None:
            self.by_dev[node.dev].remove(node)
        self.destroyed += 1
        if node.flags & DEVFS.USER_CREATED:
            self.user_nodes -= 1
        vp = node.vp
        if vp is not None:
            self.vfs.cache.inval_vp(vp)
            if vp.refcnt:
                vp.set_finalize()
            else:
                self.vfs.vnodes.vgone(vp)

    def gc(self, node: DevfsNode) -> None:
        """Take a node away, the links to it, and directories that become empty by that.

        Counterpart: devfs_gc.
        """
        for link in tuple(node.links):
            self.gc(link)
        parent = node.parent
        self.unlinkp(node)
        while parent is not None and parent.parent is not None and not parent.children:
            if parent.flags & DEVFS.USER_CREATED:
                return
            parent, empty = parent.parent, parent
            self.unlinkp(empty)

    def changed(self, node: DevfsNode) -> None:
        """Attributes of a node changed: whatever was packed from them is void."""
        if node.vp is not None:
            node.vp.attr_changed()

    def walk(self, top: DevfsNode) -> Iterator[DevfsNode]:
        """Every node below ``top``, children before their directory, ``top`` last.

        Counterpart: devfs_iterate_topology.
        """
        for child in tuple(top.children.values()):
            yield from self.walk(child)
        yield top

    def find(self, path: str) -> DevfsNode | None:
        """The node at a path below the root. Counterpart: devfs_find_device_node_by_name."""
        node: DevfsNode | None = self.root
        for word in path.encode().split(b"/"):
            node = node.children.get(word) if node is not None else None
        return node

    def _directory(self, path: bytes) -> DevfsNode | None:
        """The directory at a path, made where it is missing; None when a file is in the way.

        Counterpart: devfs_resolve_or_create_path.
        """
        node = self.root
        for word in path.split(b"/") if path else ():
            child = node.children.get(word)
            if child is None:
                child = self.allocp(VType.VDIR, word, node)
            elif child.type is not VType.VDIR:
                return None
            node = child
        return node

    def _place(self, name: str) -> tuple[DevfsNode, bytes] | None:
        """Directory and last word for a new node; None, counted, when the name is taken."""
        path, _, word = name.encode().rpartition(b"/")
        parent = self._directory(path)
        if parent is None or word in parent.children:
            self.collisions += 1
            self.vfs.msgbuf.kprintf(f"devfs: {name} exists already on {self.onname}\n")
            return None
        return parent, word

    # --- the list of devices -----------------------------------------------------------------

    def populate(self) -> None:
        """Make nodes for everything on the list. Counterpart: devfs_create_all_dev_worker."""
        for dev in self.devices.devices():
            self.dev_created(dev)
        for alias in self.devices.aliases():
            self.alias_created(alias)

    def dev_created(self, dev: Cdev) -> None:
        """Make the node of a device; a name that a user has taken stays his."""
        place = self._place(dev.name)
        if place is not None:
            self.allocp(VType.VCHR, place[1], place[0], dev=dev)

    def dev_destroyed(self, dev: Cdev) -> None:
        """Take every node of a device away."""
        for node in tuple(self.by_dev.get(dev, ())):
            self.gc(node)
        self.by_dev.pop(dev, None)

    def alias_created(self, alias: DevAlias) -> None:
        """Make a link for an alias."""
        targets = self.by_dev.get(alias.target)
        if targets:
            self.make_link(alias.name, targets[0])

    def alias_destroyed(self, alias: DevAlias) -> None:
        """Take the link of an alias away."""
        node = self.find(alias.name)
        if node is not None and node.link_target is not None:
            self.gc(node)

    def make_link(self, name: str, target: DevfsNode, flags: int = 0) -> DevfsNode | None:
        """A link to a node, None when the name is taken. Counterpart: devfs_alias_create."""
        place = self._place(name)
        if place is None:
            return None
        return self.allocp(VType.VLNK, place[1], place[0], target=target, flags=flags)

    # --- vnodes ------------------------------------------------------------------------------

    def allocv(self, node: DevfsNode) -> Vnode:
        """The vnode of a node, referenced. Counterpart: devfs_allocv."""
        vnodes = self.vfs.vnodes
        if node.vp is not None:
            return vnodes.vget(node.vp)
        cell = self.spec_cell if node.type is VType.VCHR else self.mp.vn_cell
        vp = vnodes.getnewvnode(self.mp, cell, node.type)
        vp.data = node
        vp.ino = node.ino
        if node is self.root:
            vp.flag |= V.ROOT
        node.vp = vp
        return vp

    def dissolve(self) -> None:
        """Take the tree apart at unmount; breaks its cycles."""
        for node in self.walk(self.root):
            node.children.clear()
            node.links.clear()
            node.parent = node.link_target = node.vp = None
        self.nodes.clear()
        self.by_dev.clear()

    def statistics(self) -> DevfsStatistics:
        """Sizes now and counters since the mount."""
        return DevfsStatistics(
            nodes=len(self.nodes),
            user_nodes=self.user_nodes,
            hidden=sum(1 for node in self.nodes.values() if node.hidden),
            created=self.created,
            destroyed=self.destroyed,
            collisions=self.collisions,
        )
