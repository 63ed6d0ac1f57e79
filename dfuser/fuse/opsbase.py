"""What every operation of a connection stands on: from numbers to files, and back to answers.

`OperationsBase` finds the node, the vnode and the place behind a number, names a file in an answer
(which counts a lookup), and keeps the table of opens. `listing`, `xattrs` and `ops` are made of it.

Counterpart: none of its own.
Invariants: every answer that names a file counts one lookup on its node, and nothing else does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dfuser.libkern.acl import XATTR_DEFAULT
from dfuser.libkern.errno import (
    EBADF,
    ENOENT,
    EOPNOTSUPP,
    ESTALE,
    KError,
)
from dfuser.libkern.fcntl import (
    O_APPEND,
    O_NOATIME,
    oflags_from_linux,
)
from dfuser.libkern.stat import VType
from dfuser.libkern.ucred import Ucred
from dfuser.vfs.file import File
from dfuser.vfs.mountflags import MNT
from dfuser.vfs.namecache import NcHandle
from dfuser.vfs.ncpath import live_ncp
from dfuser.vfs.vop import EXTATTR_NAMESPACE_SYSTEM, EXTATTR_NAMESPACE_USER

from .attr import VOLATILE, mount_below
from .nodes import NodeTable
from .request import Caller, OpenFile
from .wire.const import (
    FOPEN_CACHE_DIR,
    FOPEN_DIRECT_IO,
    FOPEN_KEEP_CACHE,
    FOPEN_PARALLEL_DIRECT_WRITES,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfuser.vfs.mount import Mount
    from dfuser.vfs.namecache import NamecacheEntry
    from dfuser.vfs.vfs import Vfs
    from dfuser.vfs.vnode import Vnode

    from .attr import AttrCache
    from .nodes import Node
    from .polling import PollTable
    from .request import RequestContext

#: Combinations of open flags that are remembered.
OFLAGS_MAX: Final = 256
#: Rebuilding the path of a directory is the kernel's own business.
ROOT_CRED: Final = Ucred.root()
#: How the host treats what is opened, by kind: its own caches, or every request to us.
_OPEN_CACHED: Final = FOPEN_KEEP_CACHE
_OPEN_DIRECT: Final = FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES
_OPENDIR_CACHED: Final = FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE


class Opened(NamedTuple):
    """An open: the number the host gets for it, and FOPEN_ flags."""

    fh: int
    flags: int


def bare(vp: Vnode) -> bool:
    """Whether a file has no extended attribute, of either name space."""
    for space in (EXTATTR_NAMESPACE_USER, EXTATTR_NAMESPACE_SYSTEM):
        try:
            if vp.ops.use.vop_listextattr(vp, space, ROOT_CRED):
                return False
        except KError as error:
            if error.errno != EOPNOTSUPP:
                return False
    return True


class OperationsBase:
    """The parts of `ops.Operations` that its operations share.

    Args:
        vfs: the file systems.
        context: credentials and CPUs.
        nodes: the files the host knows on this connection.
        attrs: packs their attributes.
        polls: who waits for events.
        separate: whether a mount has a connection of its own, so that the host crosses into it by
            itself and is shown the directory below.
    """

    def __init__(
        self,
        vfs: Vfs,
        context: RequestContext,
        nodes: NodeTable,
        attrs: AttrCache,
        polls: PollTable,
        separate: Callable[[Mount], bool] = lambda _mount: False,
    ) -> None:
        self.vfs = vfs
        self.context = context
        self.nodes = nodes
        self.attrs = attrs
        self.polls = polls
        self.separate = separate
        self.files: dict[int, OpenFile] = {}
        self._next_fh = 0
        #: The host's open flags in our numbers; programs use a handful of combinations.
        self._oflags: dict[int, int] = {}

    # --- helpers ---------------------------------------------------------------------------

    def _dir(self, nodeid: int) -> tuple[Node, NcHandle]:
        """Node and namecache handle of a directory."""
        node, vp = self.nodes.vnode(nodeid)
        return node, NcHandle(self._dncp(vp), node.mount)

    def _dncp(self, dvp: Vnode) -> NamecacheEntry:
        """The namecache entry of a directory, borrowed; its path is rebuilt if it was forgotten."""
        ncp = live_ncp(dvp)
        if ncp is None:
            ncp = self.vfs.cache.fromdvp(dvp, ROOT_CRED)
            self.vfs.cache.drop(ncp)
        return ncp

    def _nch(self, nodeid: int) -> tuple[Node, Vnode, NcHandle]:
        """Node, vnode and some namecache handle of any file; the entry may be None inside."""
        node, vp = self.nodes.vnode(nodeid)
        return node, vp, self.vfs.cache.nch_of(vp, node.mount)

    def _entry(self, mount: Mount, vp: Vnode) -> Any:
        """The reply that names ``vp``: counts a lookup."""
        node = self.nodes.find(mount, vp)
        entry = self.attrs.entry(node, vp)
        node.nlookup += 1
        return entry

    def _entry_of(self, nch: NcHandle) -> Any:
        """The same for a place; ENOENT when nothing is there any more."""
        vp = nch.ncp.vp
        if vp is None:
            raise KError(ENOENT)
        return self._entry(nch.mount, vp)

    def _covered(self, nch: NcHandle, dmount: Mount) -> NcHandle:
        """The place itself, where what is mounted on it is the host's to cross into.

        ``dmount`` is the directory's mount; mounts may lie on mounts.
        """
        while nch.mount is not dmount and self.separate(nch.mount):
            on = nch.mount.ncmounton
            if on is None:
                break
            nch = on
        return nch

    def _mode(self, nodeid: int, dnch: NcHandle, mode: int, umask: int) -> int:
        """The mode of a new file: the umask counts unless the directory has a default ACL."""
        if not umask:
            return mode & 0o7777
        node = self.nodes.by_id[nodeid]
        vp = dnch.ncp.vp
        if not node.plain and vp is not None:
            try:
                vp.ops.use.vop_getextattr(vp, EXTATTR_NAMESPACE_SYSTEM, XATTR_DEFAULT, ROOT_CRED)
                return mode & 0o7777
            except KError:
                node.plain = bare(vp)
        return mode & 0o7777 & ~umask

    def _opened(self, file: File, node: Node, ctx: Any) -> Opened:
        """Enter an open. An append is the host's to place; a null mount's atime rule is ours."""
        file.flags &= ~O_APPEND
        mount = node.mount
        if mount_below(mount) and mount.flag & (MNT.NOATIME | MNT.RDONLY):
            file.flags |= O_NOATIME
        self._next_fh = fh = self._next_fh + 1
        self.files[fh] = OpenFile(file, node, Caller(ctx.uid, ctx.gid, ctx.pid))
        if mount.coherence == VOLATILE:
            return Opened(fh, _OPEN_DIRECT)
        return Opened(fh, _OPEN_CACHED if file.vp.type is VType.VREG else _OPENDIR_CACHED)

    def oflags(self, flags: int) -> int:
        """The host's open flags in DragonFly's numbers."""
        ours = self._oflags.get(flags)
        if ours is None:
            if len(self._oflags) >= OFLAGS_MAX:
                self._oflags.clear()
            ours = self._oflags[flags] = oflags_from_linux(flags)
        return ours

    def file(self, fh: int) -> OpenFile:
        """An open by its number. Raises KError: EBADF, or ESTALE when its mount has gone."""
        opened = self.files.get(fh)
        if opened is None:
            raise KError(EBADF)
        if opened.gone:
            raise KError(ESTALE)
        return opened
