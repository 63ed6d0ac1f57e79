"""From an entry up to the root, and from a vnode back to an entry.

Three questions that go against the grain of the tree. *Where is this?* walks up, over mount points,
and answers with a path, or ENOENT for what has been removed. *How is this directory called?* is
asked when a vnode came by its number (a file handle of the host) and its entry has been forgotten:
the file system knows the parent of a directory, and the name is found there. *What about a file?*
A file can have many names or none; who came by number works with the vnode, and a handle is made
that has no place in the tree.

Counterpart: cache_fullpath, cache_fromdvp, cache_inefficient_scan (kern/vfs_cache.c).
Differs from DragonFly: the walk up is a loop; a file system that knows a directory's own name is
    asked for it (`VnodeOps.vop_ndirname`) before the parent is searched entry by entry.
Token/lock order: none.
Invariants: a path returned by `fullpath` led to the place at that moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfuser.libkern.errno import EINVAL, ENAMETOOLONG, ENOENT, ENOTDIR, KError
from dfuser.libkern.param import MAXPATHLEN
from dfuser.libkern.stat import VType

from .namecache import NCF, NamecacheEntry, NcHandle
from .vnode import V

if TYPE_CHECKING:
    from dfuser.libkern.ucred import Ucred

    from .cache import NameCache
    from .mount import Mount
    from .vnode import Vnode

#: Directory entries asked for at a time by the search for a name.
_SCAN: Final = 256
#: Directories whose path is rebuilt at once; a longer chain means a loop in the file system.
_MAX_DEPTH: Final = 1 << 16


def fullpath(cache: NameCache, nch: NcHandle, base: NcHandle | None = None) -> bytes:
    """The path of a place as seen from ``base`` (None: from the root of the kernel).

    Never blocks.

    Raises:
        KError: ENOENT, the place has been removed, is not below ``base``, or has no name;
            ENAMETOOLONG, the path does not fit MAXPATHLEN; EINVAL, switched off.
    """
    cache.numcwdcalls += 1
    if cache.disablefullpath:
        raise KError(EINVAL)
    parts: list[bytes] = []
    ncp: NamecacheEntry | None = nch.ncp
    mount = nch.mount
    while ncp is not None:
        if base is not None and ncp is base.ncp and mount is base.mount:
            break
        if ncp.flags & NCF.DESTROYED:
            ncp = None
        elif ncp is mount.rootncp:
            if mount.ncmounton is None:
                if base is not None or mount is not cache.vfs.mounts.root:
                    ncp = None
                break
            ncp, mount = mount.ncmounton
        else:
            parts.append(ncp.name)
            ncp = ncp.parent
    if ncp is None:
        cache.numcwdfailnf += 1
        raise KError(ENOENT)
    path = b"/" + b"/".join(reversed(parts))
    if len(path) >= MAXPATHLEN:
        cache.numcwdfailsz += 1
        raise KError(ENAMETOOLONG)
    cache.numcwdfound += 1
    return path


def live_ncp(vp: Vnode) -> NamecacheEntry | None:
    """An entry of ``vp`` that still is in the tree, or None."""
    ncp = vp.firstname
    if ncp is None or not ncp.flags & NCF.DESTROYED:
        return ncp
    return next((ncp for ncp in vp.morenames or () if not ncp.flags & NCF.DESTROYED), None)


def fromdvp(cache: NameCache, dvp: Vnode, cred: Ucred) -> NamecacheEntry:
    """The entry of a directory vnode, held; its path is rebuilt from the file system if need be.

    Raises:
        KError: ENOTDIR, not a directory; ENOENT, the directory has been removed; or an error of
            the file system.
        Block: the file system must wait.
    """
    if dvp.type is not VType.VDIR:
        raise KError(ENOTDIR)
    below: list[Vnode] = []
    cur = dvp.ref()
    try:
        while (ncp := _known(cache, cur)) is None:
            if len(below) >= _MAX_DEPTH:
                raise KError(ENOENT)
            above = cur.ops.use.vop_nlookupdotdot(cur, cred)
            below.append(cur)
            cur = above
        cache.ref(ncp)
        while below:
            ncp = _enter(cache, ncp, cur, below[-1], cred)
            cur.rele()
            cur = below.pop()
        return ncp
    finally:
        cur.rele()
        for vp in below:
            vp.rele()


def _known(cache: NameCache, dvp: Vnode) -> NamecacheEntry | None:
    """The entry a directory has, making the one of a mount's root."""
    ncp = live_ncp(dvp)
    if ncp is None and dvp.flag & V.ROOT and dvp.mount is not None:
        ncp = dvp.mount.rootncp
        if ncp.flags & NCF.UNRESOLVED:
            cache.setvp(ncp, dvp)
    return ncp


def _enter(
    cache: NameCache, par: NamecacheEntry, dvp: Vnode, vp: Vnode, cred: Ucred
) -> NamecacheEntry:
    """The held entry of directory ``vp`` below ``par`` (whose hold is taken over)."""
    ncp = None
    try:
        name = vp.ops.use.vop_ndirname(vp, cred)
        if name is None:
            name = _scan(dvp, vp.ino, cred)
        ncp = cache.nlookup(par, name)
        if ncp.flags & NCF.UNRESOLVED and vp.mount is not None:
            cache.resolve(ncp, vp.mount, cred)
        if ncp.vp is not vp:
            raise KError(ENOENT)
    except BaseException:
        if ncp is not None:
            cache.drop(ncp)
        cache.drop(par)
        raise
    cache.drop(par)
    return ncp


def _scan(dvp: Vnode, ino: int, cred: Ucred) -> bytes:
    """The name under which inode ``ino`` stands in directory ``dvp``; ENOENT if it does not."""
    cookie = 0
    while True:
        entries = dvp.ops.use.vop_readdir(dvp, cookie, _SCAN, cred)
        if not entries:
            raise KError(ENOENT)
        for entry in entries:
            if entry.ino == ino and entry.name not in (b".", b".."):
                return entry.name
        cookie = entries[-1].cookie


def nch_of(cache: NameCache, vp: Vnode, mount: Mount | None = None) -> NcHandle:
    """A borrowed handle for ``vp``: one of its entries, else one outside the tree.

    For operations on a file that came by number. The made-up entry is DESTROYED from birth: it has
    no path, no name can be looked up below it, and nothing needs to be given back.

    Args:
        cache: the namecache.
        vp: any vnode that is not reclaimed.
        mount: the mount it is seen through, if not its own (null mounts).

    Raises:
        KError: ENOENT, the vnode has been reclaimed.
    """
    through = mount if mount is not None else vp.mount
    if through is None:
        raise KError(ENOENT)
    ncp = live_ncp(vp)
    if ncp is None:
        ncp = NamecacheEntry(None, b"")
        ncp.vp = vp
        ncp.error = 0
        ncp.flags = NCF.DESTROYED | NCF.DUMMY
    return NcHandle(ncp, through)
