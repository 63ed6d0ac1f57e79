"""Listings: the entries of a directory with their attributes, or only their names.

A listing is made in two steps, because the transport alone knows how much fits its reply:
`ListingOps.readdir` collects entries and counts nothing, `ListingOps.listed` counts a lookup for
each that went in and drops what the rest had made. If the file system must wait in the middle, what
was found so far is the answer.

Counterpart: sys_getdirentries (sys/kern/vfs_syscalls.c), fuse_readdir (fs/fuse/readdir.c of Linux).
Invariants: ``.`` and ``..`` count no lookup; cookies are the file system's and stable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from dfuser.libkern.fcntl import (
    O_DIRECTORY,
    O_RDONLY,
)
from dfuser.libkern.stat import DT_DIR
from dfuser.lwkt.block import Block
from dfuser.vfs import syscalls as kern
from dfuser.vfs.namecache import NCF, NcHandle

from .opsbase import ROOT_CRED, Opened, OperationsBase
from .request import OpenFile

if TYPE_CHECKING:
    from dfuser.vfs.mount import Mount
    from dfuser.vfs.namecache import NamecacheEntry

    from .nodes import Node


class Listed(NamedTuple):
    """An entry of a listing."""

    record: Any
    """Packed attributes, in the transport's form."""
    ino: int
    cookie: int
    """Continues behind this entry."""
    dtype: int
    name: bytes
    node: Node | None
    """What the record names; None for ``.`` and ``..``."""


class ListingOps(OperationsBase):
    """Directories: open, list, sync."""

    def opendir(self, ctx: Any, nodeid: int) -> Opened:
        """Open a directory for listing."""
        node, _, nch = self._nch(nodeid)
        cred = self.context.cred(ctx.uid, ctx.gid)
        file = kern.kern_open(self.vfs, nch, O_RDONLY | O_DIRECTORY, cred, chk=False)
        return self._opened(file, node, ctx)

    def readdir(self, opened: OpenFile, cookie: int, limit: int) -> list[Listed]:
        """Up to about ``limit`` entries after ``cookie`` with their attributes; empty at the end.

        Nothing is counted yet: the transport counts what went into its reply and gives the rest
        back (`listed`).
        """
        file, mount = opened.file, opened.node.mount
        kids = file.nch.ncp.children
        found: list[Listed] = []
        while not found:
            entries = kern.kern_readdir(file, cookie, limit, plus=True)
            if not entries:
                break
            for dirent in entries:
                try:
                    one = self._list_one(opened, mount, kids, dirent)
                except Block:
                    if not found:
                        raise
                    break
                if one is not None:
                    found.append(one)
            cookie = entries[-1].cookie
        return found

    def _list_one(
        self, opened: OpenFile, mount: Mount, kids: dict[bytes, NamecacheEntry] | None, dirent: Any
    ) -> Listed | None:
        """An entry of a listing; None when it is gone meanwhile."""
        name = dirent.name
        if name == b"." or name == b"..":
            ino = self._dots(opened, name, dirent.ino)
            return Listed(
                self.attrs.packer.bare(ino, DT_DIR), ino, dirent.cookie, DT_DIR, name, None
            )
        ncp = kids.get(name) if kids is not None else None
        if ncp is not None and ncp.flags & NCF.ISMOUNTPT:
            upper = self.vfs.cache.findmount(NcHandle(ncp, mount))
            if upper is not None and not self.separate(upper):
                node, record = self._listed_mount(upper)
                return Listed(record, node.nodeid, dirent.cookie, dirent.dtype, name, node)
        vattr = dirent.vattr
        if vattr is not None:
            node = self.nodes.find_ino(mount, dirent.ino)
            vp = node.vp
            if vp is not None:
                record = self.attrs.entry(node, vp)
            else:
                record = self.attrs.pack(mount, node.nodeid, vattr)
        else:
            nch = kern.kern_lookup(self.vfs, opened.file.nch, name, opened.file.cred)
            if nch is None or nch.ncp.vp is None:
                return None
            node = self.nodes.find(nch.mount, nch.ncp.vp)
            record = self.attrs.entry(node, nch.ncp.vp)
        return Listed(record, node.nodeid, dirent.cookie, dirent.dtype, name, node)

    def listed(self, entries: list[Listed], count: int) -> None:
        """The first ``count`` entries went into a reply: each counts a lookup. Drops the rest."""
        for entry in entries[:count]:
            if entry.node is not None:
                entry.node.nlookup += 1
        self.unlisted(entries[count:])

    def unlisted(self, entries: list[Listed]) -> None:
        """Entries that the host was not told of, or only by name: their nodes need not stay."""
        for entry in entries:
            node = entry.node
            if node is not None and not node.nlookup and node.nodeid in self.nodes.by_id:
                self.nodes.discard(node)

    def names(self, opened: OpenFile, cookie: int, limit: int) -> list[tuple[int, int, int, bytes]]:
        """Up to ``limit`` entries without attributes: inode number, cookie, type, name."""
        mount = opened.node.mount
        nodeid = self.nodes.nodeid
        found = []
        for dirent in kern.kern_readdir(opened.file, cookie, limit):
            name = dirent.name
            if name == b"." or name == b"..":
                ino = self._dots(opened, name, dirent.ino)
            else:
                ino = nodeid(mount, dirent.ino)
            found.append((ino, dirent.cookie, dirent.dtype, name))
        return found

    def _dots(self, opened: OpenFile, name: bytes, ino: int) -> int:
        """The number of ``.`` or ``..`` in a listing."""
        mount, nch = opened.node.mount, opened.file.nch
        if name == b".." and nch.ncp is mount.ncmountpt.ncp and mount.ncmounton is not None:
            above = kern.kern_lookup(self.vfs, nch, name, ROOT_CRED)
            if above is not None and above.ncp.vp is not None and not self.separate(mount):
                mount, ino = above.mount, above.ncp.vp.ino
        return self.nodes.nodeid(mount, ino)

    def _listed_mount(self, upper: Mount) -> tuple[Node, Any]:
        root = upper.ops.vfs_root(upper)
        try:
            node = self.nodes.find(upper, root)
            return node, self.attrs.entry(node, root)
        finally:
            root.rele()

    def fsyncdir(self, opened: OpenFile, datasync: bool) -> None:
        """Write a directory to stable storage; for the root directory, everything."""
        if opened.file.nch.ncp is self.vfs.mounts.rootnch.ncp:
            self.vfs.sync_all()
            return
        kern.kern_fsync(opened.file, datasync)
