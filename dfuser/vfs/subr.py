"""What the cores share: preparing a name in a directory, and telling others of a change.

Every core that changes the name space begins alike: the directory must exist and be one, the name
must be possible, the entry must be resolved, the caller must be allowed, the mount must be
writable. `prepare` does all that and gives the entry, held. Nothing has changed when it raises.

Counterpart: ncp_writechk, vn_writechk (kern/vfs_vnops.c), the first half of each kern_* function of
    kern/vfs_syscalls.c, where nlookup does it.
Differs from DragonFly: there a walk along a path has prepared the entry already.
Token/lock order: none.
Invariants: `prepare` holds exactly one entry on return and none when it raises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfuser.libkern.errno import (
    EEXIST,
    EINVAL,
    ENAMETOOLONG,
    ENOENT,
    ENOTDIR,
    ENOTEMPTY,
    EROFS,
    ETXTBSY,
    KError,
)
from dfuser.libkern.param import NAME_MAX
from dfuser.libkern.stat import VType

from .access import NLC, naccess
from .mountflags import MNT
from .namecache import NCF, NamecacheEntry, NcHandle
from .vnode import V

if TYPE_CHECKING:
    from dfuser.libkern.ucred import Ucred

    from .mount import Mount
    from .vfs import Vfs
    from .vnode import Vnode

_DIRNAMES: Final = (b"", b".", b"..")


def ncp_writechk(nch: NcHandle) -> None:
    """Refuse changes through a read-only mount. Counterpart: ncp_writechk.

    Raises:
        KError: EROFS.
    """
    if nch.mount.flag & MNT.RDONLY:
        raise KError(EROFS)


def vn_writechk(vp: Vnode) -> None:
    """Refuse writing to a running program or on a read-only file system.

    Counterpart: vn_writechk.

    Raises:
        KError: ETXTBSY, EROFS.
    """
    if vp.flag & V.TEXT:
        raise KError(ETXTBSY)
    if vp.mount is not None and vp.mount.flag & MNT.RDONLY:
        raise KError(EROFS)


def vnode_of(vfs: Vfs, nch: NcHandle, cred: Ucred) -> Vnode:
    """The vnode of a place, resolved if need be; borrowed. Counterpart: cache_vref.

    Raises:
        KError: ENOENT, the name does not exist (any more).
        Block: the file system must wait.
    """
    ncp = nch[0]
    vp = ncp.vp
    if vp is None:
        if ncp.flags & NCF.UNRESOLVED:
            vfs.cache.resolve(ncp, nch[1], cred)
        vp = ncp.vp
        if vp is None:
            raise KError(ENOENT)
    return vp


def directory(vfs: Vfs, dnch: NcHandle, cred: Ucred) -> Vnode:
    """The vnode of a directory in which a name is to be changed; borrowed.

    Raises:
        KError: ENOENT, it has been removed; ENOTDIR.
        Block: the file system must wait.
    """
    dvp = vnode_of(vfs, dnch, cred)
    if dvp.type is not VType.VDIR:
        raise KError(ENOTDIR)
    if dnch[0].flags & NCF.DESTROYED:
        raise KError(ENOENT)
    return dvp


def check_name(name: bytes, intent: int) -> None:
    """Refuse names that no directory can have, and ``.`` and ``..`` by what is intended.

    Raises:
        KError: ENAMETOOLONG; EINVAL for a slash or NUL; ENOENT for an empty name; for dots EEXIST
            (create), EINVAL or ENOTEMPTY (delete), EINVAL (rename).
    """
    if len(name) > NAME_MAX:
        raise KError(ENAMETOOLONG)
    if b"/" in name or b"\0" in name:
        raise KError(EINVAL)
    if name in _DIRNAMES:
        if not name:
            raise KError(ENOENT)
        if intent & NLC.CREATE:
            raise KError(EEXIST)
        if intent & NLC.DELETE and name == b"..":
            raise KError(ENOTEMPTY)
        raise KError(EINVAL)


def prepare(
    vfs: Vfs, dnch: NcHandle, name: bytes, intent: int, cred: Ucred, chk: bool
) -> tuple[Vnode, NamecacheEntry]:
    """Everything that must hold before a name is created, removed or renamed.

    Args:
        vfs: the VFS.
        dnch: the directory.
        name: the name in it.
        intent: NLC.CREATE, DELETE, RENAME_SRC or RENAME_DST (with EXCL where it must not exist).
            CREATE alone finds what exists, and then checks no more.
        cred: who asks.
        chk: check permissions.

    Returns:
        The directory's vnode (borrowed) and the resolved entry, held; the caller drops it.

    Raises:
        KError: ENOENT (for CREATE and RENAME_DST only if the directory is gone), EEXIST, EACCES,
            EPERM, EROFS, ENOTDIR, and those of `check_name`.
        Block: the file system must wait.
    """
    dvp = directory(vfs, dnch, cred)
    dncp, mount = dnch
    dflags = naccess(vfs, dncp, mount, NLC.EXEC, cred, True) if chk else 0
    check_name(name, intent)
    cache = vfs.cache
    ncp = cache.nlookup(dncp, name)
    try:
        if ncp.flags & NCF.UNRESOLVED:
            cache.resolve(ncp, mount, cred)
        exists = ncp.vp is not None
        if exists and intent & NLC.EXCL:
            raise KError(EEXIST)
        if not exists and not intent & (NLC.CREATE | NLC.RENAME_DST):
            raise KError(ENOENT)
        if exists and intent == NLC.CREATE:
            return dvp, ncp
        if (mount.flag | (dvp.mount.flag if dvp.mount is not None else 0)) & MNT.RDONLY:
            raise KError(EROFS)
        if chk:
            naccess(vfs, ncp, mount, intent | dflags, cred)
    except BaseException:
        cache.drop(ncp)
        raise
    return dvp, ncp


def same_mount(a: Mount | None, b: Mount | None) -> bool:
    """Whether two vnodes live on one file system."""
    return a is not None and a is b


def told_entry(
    vfs: Vfs, dvp: Vnode, name: bytes, vp: Vnode | None = None, *, removed: bool = False
) -> None:
    """Tell the host that a name changed, and with it the directory and perhaps the file.

    With ``removed`` the name was that of ``vp`` and is gone.
    """
    host = vfs.hostcache
    if host is not None:
        if removed and vp is not None:
            host.entry_removed(dvp, name, vp)
        else:
            host.entry_changed(dvp, name)
        host.attr_changed(dvp)
        if vp is not None:
            host.attr_changed(vp)
