"""Views of the VFS: mounts, vnodes, names, locks.

Counterpart: getmntinfo(3) and mount(8) for mounts; ``show mount``, ``show lockedvnods`` of ddb and
debug.numvnodes for the rest.
Differs from DragonFly: an addition.
Token and lock order: takes none.
Invariants: rows are made while they are read, from the live structures, and hold values only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dfuser.libkern.errno import KError
from dfuser.libkern.fcntl import F_POSIX, F_RDLCK, F_WRLCK

from ..mountflags import format_flags
from ..namecache import NCF

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..namecache import NamecacheEntry
    from ..vfs import Vfs
    from ..vnode import Vnode
    from .registry import KernViews


class MountRow(NamedTuple):
    """One mounted file system. Counterpart: struct statfs (sys/mount.h)."""

    number: int
    type: str
    source: str
    on: str
    flags: str
    owner: int
    coherence: str
    vnodes: int
    fsid: str


class VnodeRow(NamedTuple):
    """One vnode."""

    mount: int
    ino: int
    type: str
    state: str
    refs: int
    auxrefs: int
    opens: int
    writers: int
    names: int
    flags: str
    name: bytes


class NcacheRow(NamedTuple):
    """One entry of the namecache."""

    mount: int
    state: str
    refs: int
    children: int
    ino: int
    flags: str
    path: bytes


class LockRow(NamedTuple):
    """One advisory lock, granted or waited for. Counterpart: struct lockf_range (sys/lockf.h)."""

    mount: int
    ino: int
    state: str
    """``held`` or ``waits``."""
    kind: str
    """``posix`` for a record lock, ``flock`` for that of an open file."""
    type: str
    pid: int
    """The process; of the host, for a program of the host."""
    start: int
    end: int
    """The last byte; 2**63 - 1 reaches to the end of the file, wherever that is."""
    file: bytes
    """A path of the file; empty when it has no name in memory."""


def mount_text(row: MountRow) -> str:
    """A mount as mount(8) prints it."""
    words = [row.type, *([row.flags] if row.flags else [])]
    if row.owner:
        words.append(f"mounted by {row.owner}")
    return f"{row.source} on {row.on} ({', '.join(words)})"


class VfsViews:
    """The views of one `Vfs`."""

    def __init__(self, vfs: Vfs) -> None:
        self.vfs = vfs

    def register(self, views: KernViews) -> None:
        """Show them, and the counters of all parts."""
        vfs = self.vfs
        views.add_rows("mounts", "mounted file systems, as mount(8) shows them", self.mounts,
                       mount_text)  # fmt: skip
        views.add_rows("vnodes", "vnodes in memory", self.vnodes, columns=VnodeRow._fields)
        views.add_rows("ncache", "names the kernel remembers, negative ones too", self.ncache,
                       columns=NcacheRow._fields)  # fmt: skip
        views.add_rows("locks", "advisory locks on files", self.locks, columns=LockRow._fields)
        views.add_statistics("vnodes", vfs.vnodes.statistics)
        views.add_statistics("ncache", vfs.cache.statistics)
        views.add_statistics("mounts", vfs.mounts.statistics)
        views.add_statistics("syncer", vfs.syncer.statistics)

    def mounts(self) -> Iterator[MountRow]:
        """The mounts, oldest first."""
        for mp in self.vfs.mounts:
            yield MountRow(
                number=mp.index,
                type=mp.fstype.name,
                source=mp.fromname,
                on=mp.onname,
                flags=format_flags(mp.flag),
                owner=mp.owner,
                coherence=mp.coherence,
                vnodes=len(mp.vnodes),
                fsid=f"{mp.fsid:#x}",
            )

    def vnodes(self) -> Iterator[VnodeRow]:
        """The vnodes, active ones first."""
        for vp in self.vfs.vnodes:
            ncps = vp.ncps()
            yield VnodeRow(
                mount=vp.mount.index if vp.mount is not None else 0,
                ino=vp.ino,
                type=vp.type.name,
                state=vp.state.name,
                refs=vp.refcnt,
                auxrefs=vp.auxrefs,
                opens=vp.opencount,
                writers=vp.writecount,
                names=len(ncps),
                flags=f"{vp.flag:#x}",
                name=ncps[0].name if ncps else b"",
            )

    def ncache(self) -> Iterator[NcacheRow]:
        """The entries below the root of each mount, parents before children."""
        for mp in self.vfs.mounts:
            root = mp.ncmountpt
            if root.mount is not mp:
                continue
            base = b"" if mp.onname == "/" else mp.onname.encode("utf-8", "surrogateescape")
            stack: list[tuple[NamecacheEntry, bytes]] = [(root.ncp, base)]
            while stack:
                ncp, path = stack.pop()
                yield self._entry(mp.index, ncp, path or b"/")
                children = ncp.children
                if children:
                    stack += [(kid, path + b"/" + name) for name, kid in children.items()]

    @staticmethod
    def _entry(index: int, ncp: NamecacheEntry, path: bytes) -> NcacheRow:
        state = "negative" if ncp.negative else "positive" if ncp.vp is not None else "unresolved"
        return NcacheRow(
            mount=index,
            state=state,
            refs=ncp.refs,
            children=len(ncp.children or ()),
            ino=ncp.vp.ino if ncp.vp is not None else 0,
            flags=f"{ncp.flags:#x}",
            path=path,
        )

    def locks(self) -> Iterator[LockRow]:
        """The advisory locks of every vnode."""
        kinds = {F_RDLCK: "read", F_WRLCK: "write"}
        for vp in self.vfs.vnodes:
            lockf = vp.lockf
            if lockf is None:
                continue
            for state, ranges in (("held", lockf.ranges), ("waits", lockf.blocked)):
                path = self._path(vp) if ranges else b""
                for lock in ranges:
                    yield LockRow(
                        mount=vp.mount.index if vp.mount is not None else 0,
                        ino=vp.ino,
                        state=state,
                        kind="posix" if lock.flags & F_POSIX else "flock",
                        type=kinds.get(lock.type, "unlock"),
                        pid=getattr(lock.owner, "pid", -1),
                        start=lock.start,
                        end=lock.end,
                        file=path,
                    )

    def _path(self, vp: Vnode) -> bytes:
        """A path of a file, if the namecache knows one."""
        cache = self.vfs.cache
        try:
            nch = cache.nch_of(vp)
            return b"" if nch.ncp.flags & NCF.DESTROYED else cache.fullpath(nch)
        except KError:
            return b""
