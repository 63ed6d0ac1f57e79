"""A file system of dictionaries for tests of the VFS: small, complete enough, and it can wait.

``fs.slow`` holds names whose resolution must wait: `vop_nresolve` says `Block` until the name is
taken out (by the wait itself, or by the test). With ``fs.rng`` any resolution waits now and then.
``fs.calls`` counts the operations.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any

from dfuser.libkern.errno import EISDIR, ENOENT, ENOTEMPTY, ESTALE, KError
from dfuser.libkern.stat import VType, vtype_to_dt
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt.block import Block
from dfuser.vfs.mount import Mount, VfsOps
from dfuser.vfs.mountflags import MNTK
from dfuser.vfs.namecache import NamecacheEntry
from dfuser.vfs.vattr import IO, Dirent, Statfs, Vattr
from dfuser.vfs.vfs import Vfs
from dfuser.vfs.vnode import V, Vnode
from dfuser.vfs.vop import RENAME_EXCHANGE, OpsCell, VnodeOps

ROOT = Ucred.root()


class Node:
    """One file."""

    def __init__(self, ino: int, vtype: VType, mode: int, cred: Ucred) -> None:
        self.ino = ino
        self.type = vtype
        self.mode = mode
        self.uid, self.gid = cred.uid, cred.gid
        self.flags = 0
        self.nlink = 2 if vtype is VType.VDIR else 1
        self.entries: dict[bytes, Node] = {}
        self.parent: Node = self
        self.data = bytearray()
        self.vnode: Vnode | None = None


class DictFs(VfsOps):
    """One mounted tree, which is also its file system's data."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {}
        self.next_ino = 2
        self.root = self.new(VType.VDIR, 0o755, ROOT)
        self.slow: set[bytes] = set()
        self.wait: Callable[[], Awaitable[int]] | None = None
        self.rng: random.Random | None = None
        self.calls: Counter[str] = Counter()
        self.synced: list[int] = []
        self.mp: Mount | None = None
        self.link_max = 32767

    def new(self, vtype: VType, mode: int, cred: Ucred) -> Node:
        node = self.nodes[self.next_ino] = Node(self.next_ino, vtype, mode, cred)
        self.next_ino += 1
        return node

    def vnode(self, node: Node) -> Vnode:
        assert self.mp is not None
        table = self.mp.vfs.vnodes
        if node.vnode is not None:
            return table.vget(node.vnode)
        vp = table.getnewvnode(self.mp, self.mp.vn_cell, node.type)
        vp.data, vp.ino, node.vnode = node, node.ino, vp
        if node is self.root:
            vp.flag |= V.ROOT
        return vp

    def vfs_mount(self, mp: Mount, source: str, options: dict[str, str], cred: Ucred) -> None:
        if "fail" in options:
            raise KError(int(options["fail"]))
        if self.mp is None:
            self.mp, mp.data, mp.vn_cell = mp, self, OpsCell(DictOps(self))
            if "nostk" in options:
                mp.kern_flag |= MNTK.NOSTKMNT

    def vfs_unmount(self, mp: Mount, flags: int) -> None:
        self.calls["unmount"] += 1
        for node in self.nodes.values():
            node.entries.clear()
            node.parent = node
        self.mp = None

    def vfs_root(self, mp: Mount) -> Vnode:
        return self.vnode(self.root)

    def vfs_statfs(self, mp: Mount) -> Statfs:
        return Statfs(4096, 1000, 500, 500, 100, 100 - len(self.nodes), 10)

    def vfs_sync(self, mp: Mount, waitfor: int) -> None:
        self.synced.append(waitfor)

    def vfs_vget(self, mp: Mount, ino: int) -> Vnode:
        node = self.nodes.get(ino)
        if node is None:
            raise KError(ESTALE)
        return self.vnode(node)


class DictOps(VnodeOps):
    """The operations."""

    __slots__ = ("fs",)

    def __init__(self, fs: DictFs) -> None:
        self.fs = fs

    def vop_getattr(self, vp: Vnode) -> Vattr:
        n: Node = vp.data
        return Vattr(
            n.type, n.mode, n.uid, n.gid, len(n.data), 1, 2, 3, n.flags, nlink=n.nlink, fileid=n.ino
        )

    def vop_setattr(self, vp: Vnode, vap: Vattr, cred: Ucred) -> None:
        n: Node = vp.data
        for field in ("mode", "uid", "gid", "flags"):
            if (value := getattr(vap, field)) is not None:
                setattr(n, field, value)
        if vap.size is not None:
            n.data = n.data[: vap.size].ljust(vap.size, b"\0")
        vp.attr_changed()

    def vop_read(
        self, vp: Vnode, offset: int, size: int, ioflag: int, cred: Ucred, fdata: Any = None
    ) -> bytes:
        return bytes(vp.data.data[offset : offset + size])

    def vop_write(
        self, vp: Vnode, offset: int, data: Any, ioflag: int, cred: Ucred, fdata: Any = None
    ) -> int:
        buf: bytearray = vp.data.data
        if ioflag & IO.APPEND:
            offset = len(buf)
        buf[:] = buf.ljust(offset, b"\0")
        buf[offset : offset + len(data)] = data
        return len(data)

    def vop_fsync(self, vp: Vnode, waitfor: int, cred: Ucred | None = None) -> None:
        self.fs.calls["fsync"] += 1
        assert vp.mount is not None
        vp.mount.vfs.syncer.clrisdirty(vp)

    def vop_readdir(
        self, vp: Vnode, cookie: int, limit: int, cred: Ucred, plus: bool = False
    ) -> list[Dirent]:
        n: Node = vp.data
        self.fs.calls["readdir"] += 1
        entries = [(b".", n), (b"..", n.parent), *n.entries.items()]
        return [
            Dirent(e.ino, vtype_to_dt(e.type), name, i + 1)
            for i, (name, e) in enumerate(entries)
            if i >= cookie
        ][:limit]

    def vop_readlink(self, vp: Vnode, cred: Ucred) -> bytes:
        return bytes(vp.data.data)

    def vop_inactive(self, vp: Vnode) -> None:
        self.fs.calls["inactive"] += 1
        if vp.data is None or vp.data.nlink == 0:
            vp.table.vrecycle(vp)

    def vop_reclaim(self, vp: Vnode) -> None:
        self.fs.calls["reclaim"] += 1
        node: Node = vp.data
        node.vnode = vp.data = None
        if node.nlink == 0:
            del self.fs.nodes[node.ino]

    def vop_pathconf(self, vp: Vnode, name: int) -> int:
        return self.fs.link_max if name == 1 else super().vop_pathconf(vp, name)

    def vop_nresolve(self, dvp: Vnode, ncp: NamecacheEntry, cred: Ucred) -> None:
        fs = self.fs
        fs.calls["nresolve"] += 1
        assert fs.mp is not None
        cache = fs.mp.vfs.cache
        if ncp.name in fs.slow or (fs.rng is not None and fs.rng.random() < 0.4):
            assert fs.wait is not None
            raise Block(fs.wait, "dictfs")
        node = dvp.data.entries.get(ncp.name)
        if node is None:
            cache.setvp(ncp, None)
            return
        vp = fs.vnode(node)
        cache.setvp(ncp, vp)
        vp.rele()

    def vop_nlookupdotdot(self, dvp: Vnode, cred: Ucred) -> Vnode:
        node: Node = dvp.data
        if node.nlink == 0:
            raise KError(ENOENT)
        return self.fs.vnode(node.parent)

    def _make(self, dvp: Vnode, ncp: NamecacheEntry, vap: Vattr, cred: Ucred) -> Vnode:
        node = self.fs.new(vap.type, vap.mode or 0, cred)
        node.parent = dvp.data
        dvp.data.entries[ncp.name] = node
        if node.type is VType.VDIR:
            dvp.data.nlink += 1
        vp = self.fs.vnode(node)
        self._set(ncp, vp)
        return vp

    def _set(self, ncp: NamecacheEntry, vp: Vnode) -> None:
        cache = vp.table.vfs.cache
        cache.setunresolved(ncp)
        cache.setvp(ncp, vp)

    vop_ncreate = vop_nmkdir = vop_nmknod = _make

    def vop_nsymlink(
        self, dvp: Vnode, ncp: NamecacheEntry, vap: Vattr, target: bytes, cred: Ucred
    ) -> Vnode:
        vp = self._make(dvp, ncp, vap, cred)
        vp.data.data[:] = target
        return vp

    def vop_nlink(self, dvp: Vnode, ncp: NamecacheEntry, vp: Vnode, cred: Ucred) -> None:
        dvp.data.entries[ncp.name] = vp.data
        vp.data.nlink += 1
        self._set(ncp, vp)

    def vop_nremove(self, dvp: Vnode, ncp: NamecacheEntry, cred: Ucred) -> None:
        node = dvp.data.entries.pop(ncp.name)
        node.nlink -= 1
        dvp.table.vfs.cache.unlink(ncp)

    def vop_nrmdir(self, dvp: Vnode, ncp: NamecacheEntry, cred: Ucred) -> None:
        node = dvp.data.entries[ncp.name]
        if node.entries:
            raise KError(ENOTEMPTY)
        del dvp.data.entries[ncp.name]
        node.nlink = 0
        dvp.data.nlink -= 1
        dvp.table.vfs.cache.unlink(ncp)

    def vop_nrename(
        self,
        fdvp: Vnode,
        fncp: NamecacheEntry,
        tdvp: Vnode,
        tncp: NamecacheEntry,
        cred: Ucred,
        flags: int = 0,
    ) -> None:
        fd, td = fdvp.data.entries, tdvp.data.entries
        node, over = fd[fncp.name], td.get(tncp.name)
        cache = fdvp.table.vfs.cache
        if flags & RENAME_EXCHANGE:
            assert over is not None
            fd[fncp.name], td[tncp.name] = over, node
            node.parent, over.parent = tdvp.data, fdvp.data
            cache.exchange(fncp, tncp)
            return
        if over is not None:
            if over.entries:
                raise KError(ENOTEMPTY)
            if over.type is VType.VDIR and node.type is not VType.VDIR:
                raise KError(EISDIR)
            over.nlink = 0 if over.type is VType.VDIR else over.nlink - 1
        del fd[fncp.name]
        td[tncp.name] = node
        node.parent = tdvp.data
        cache.rename(fncp, tncp)


def make_vfs(maxvnodes: int = 100_000, **kwargs: Any) -> Vfs:
    """A VFS with a mounted root of this kind."""
    vfs = Vfs(maxvnodes=maxvnodes, **kwargs)
    vfs.fstypes.register("dict", DictFs)
    vfs.mounts.mount("dict", "test", None, {}, 0, ROOT)
    return vfs


def fs_of(vfs: Vfs) -> DictFs:
    """The root file system."""
    assert vfs.mounts.root is not None
    fs = vfs.mounts.root.data
    assert isinstance(fs, DictFs)
    return fs


def check(vfs: Vfs, extra_holds: Mapping[Vnode, int] = MappingProxyType({})) -> None:
    """Recompute everything that the VFS counts; names the first difference."""
    vnodes, cache = vfs.vnodes, vfs.cache
    active, inactive = list(vnodes.active), list(vnodes.inactive)
    assert vnodes.numvnodes == len(active) + len(inactive)
    assert vnodes.active.count == len(active)
    assert vnodes.inactive.count == len(inactive)
    assert vnodes.cachedvnodes == sum(1 for vp in active if not vp.refcnt)
    assert all(vp.flag & V.TERMINATE and vp.flag & V.INACTIVE for vp in inactive)
    seen: list[NamecacheEntry] = []
    roots = {mp.ncmountpt.ncp for mp in vfs.mounts}
    todo = list(roots)
    while todo:
        ncp = todo.pop()
        assert ncp.children is None or ncp.children
        for name, child in (ncp.children or {}).items():
            assert child.name == name
            assert child.parent is ncp
            seen.append(child)
            todo.append(child)
    assert cache.numcache == len(seen)
    assert cache.numleafs == sum(1 for ncp in seen if ncp.children is None)
    assert all(ncp.vp is None or not ncp.vp.flag & V.RECLAIMED for ncp in seen)
    for vp in vnodes:
        holds = 0
        for ncp in vp.ncps():
            assert ncp.vp is vp
            holds += 1 if ncp.children is None else 2
        assert vp.auxrefs == holds + extra_holds.get(vp, 0), vp
        if isinstance(vp.data, Node) and vp.data.nlink == 0:
            assert vp.refcnt, "a file without names and users must be gone"
    negative = [n for n in seen if n.negative]
    assert cache.numneg == len(cache.neg)
    assert set(negative) <= set(cache.neg)
    for mp in vfs.mounts:
        assert all(vp.mount is mp for vp in mp.vnodes)
    assert sum(len(mp.vnodes) for mp in vfs.mounts) == vnodes.numvnodes - sum(
        1 for vp in vnodes if vp.mount is None
    )
