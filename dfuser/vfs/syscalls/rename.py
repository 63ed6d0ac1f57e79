"""rename(2) and renameat2(2): the one operation with two places.

The order of the checks is that of POSIX: both directories and names, then what would make the tree
a graph, then types, then the file system (which knows whether a directory is empty). Renaming a
file onto another name of itself does nothing. A directory that moves to another parent must be
writable for the caller, because its ``..`` changes.

Counterpart: kern_rename (kern/vfs_syscalls.c).
Differs from DragonFly: RENAME_NOREPLACE and RENAME_EXCHANGE exist; renaming a file onto another
    name of itself does nothing, as POSIX has it (C removes the source's name); a mount point is
    EBUSY (EINVAL in C). Replacing an ancestor is found here and is ENOTEMPTY, which in C the file
    system answers.
Token/lock order: none. (C must lock four entries in an order that cannot deadlock.)
Invariants: when the core raises nothing has changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfuser.libkern.errno import (
    EBUSY,
    EEXIST,
    EINVAL,
    EISDIR,
    ENOENT,
    ENOTDIR,
    ENOTEMPTY,
    EXDEV,
    KError,
)
from dfuser.libkern.stat import VType

from ..access import NLC, naccess
from ..namecache import NCF, NamecacheEntry, NcHandle
from ..subr import prepare, same_mount, told_entry
from ..vop import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT

if TYPE_CHECKING:
    from dfuser.libkern.ucred import Ucred

    from ..vfs import Vfs
    from ..vnode import Vnode

_KNOWN: Final = RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT


def kern_rename(
    vfs: Vfs,
    fdnch: NcHandle,
    fname: bytes,
    tdnch: NcHandle,
    tname: bytes,
    flags: int,
    cred: Ucred,
    chk: bool = True,
) -> None:
    """Rename, replace or exchange.

    Args:
        vfs: the VFS.
        fdnch: directory of the old name.
        fname: the old name.
        tdnch: directory of the new name.
        tname: the new name.
        flags: RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT or 0.
        cred: who renames.
        chk: check permissions.

    Raises:
        KError: ENOENT, EEXIST, EXDEV, EINVAL, EBUSY, EISDIR, ENOTDIR, ENOTEMPTY, EMLINK, those of
            `subr.prepare`.
        Block: a file system must wait.
    """
    if flags & ~_KNOWN or (flags & RENAME_EXCHANGE and flags & ~RENAME_EXCHANGE):
        raise KError(EINVAL)
    cache = vfs.cache
    fintent = NLC.RENAME_SRC | (NLC.RENAME_DST if flags & RENAME_EXCHANGE else 0)
    tintent = NLC.RENAME_DST | (NLC.RENAME_SRC if flags & RENAME_EXCHANGE else 0)
    if fdnch.mount is not tdnch.mount:
        raise KError(EXDEV)
    fdvp, fncp = prepare(vfs, fdnch, fname, fintent, cred, chk)
    try:
        if fncp.vp is None:
            raise KError(ENOENT)
        tdvp, tncp = prepare(vfs, tdnch, tname, tintent, cred, chk)
        try:
            _rename(vfs, fdnch, fdvp, fncp, tdnch, tdvp, tncp, flags, cred, chk)
        finally:
            cache.drop(tncp)
    finally:
        cache.drop(fncp)


def _rename(
    vfs: Vfs,
    fdnch: NcHandle,
    fdvp: Vnode,
    fncp: NamecacheEntry,
    tdnch: NcHandle,
    tdvp: Vnode,
    tncp: NamecacheEntry,
    flags: int,
    cred: Ucred,
    chk: bool,
) -> None:
    """Check the pair, call the file system, tell the host. Both entries are held and resolved."""
    fvp, tvp = fncp.vp, tncp.vp
    if fvp is None:
        raise KError(ENOENT)
    if flags & RENAME_EXCHANGE and tvp is None:
        raise KError(ENOENT)
    if flags & RENAME_NOREPLACE and tvp is not None:
        raise KError(EEXIST)
    if not same_mount(fdvp.mount, tdvp.mount) or not same_mount(fvp.mount, fdvp.mount):
        raise KError(EXDEV)
    if (fncp.flags | tncp.flags) & NCF.ISMOUNTPT:
        raise KError(EBUSY)
    _check_tree(fdnch.ncp, fncp, tdnch.ncp, tncp, flags)
    if fvp is tvp:
        return
    if tvp is not None and not flags & RENAME_EXCHANGE:
        _check_types(fvp, tvp)
    if chk and fdvp is not tdvp:
        _check_moves(vfs, fdnch, fncp, tncp, flags, cred)
    fname, tname = fncp.name, tncp.name
    fvp.ref()
    if tvp is not None:
        tvp.ref()
    try:
        fdvp.ops.use.vop_nrename(fdvp, fncp, tdvp, tncp, cred, flags)
        told_entry(vfs, fdvp, fname, fvp)
        told_entry(vfs, tdvp, tname, tvp)
    finally:
        if tvp is not None:
            tvp.rele()
        fvp.rele()


def _check_tree(
    fdncp: NamecacheEntry,
    fncp: NamecacheEntry,
    tdncp: NamecacheEntry,
    tncp: NamecacheEntry,
    flags: int,
) -> None:
    """Nothing may move below itself, and nothing may replace what it is in."""
    if _is_above(fncp, tdncp):
        raise KError(EINVAL)
    if _is_above(tncp, fdncp):
        raise KError(EINVAL if flags & RENAME_EXCHANGE else ENOTEMPTY)


def _is_above(ncp: NamecacheEntry, below: NamecacheEntry) -> bool:
    """Whether ``ncp`` is ``below`` or one of the directories it is in."""
    cur: NamecacheEntry | None = below
    while cur is not None:
        if cur is ncp:
            return True
        cur = cur.parent
    return False


def _check_types(fvp: Vnode, tvp: Vnode) -> None:
    """A directory replaces a directory, anything else replaces anything else."""
    if tvp.type is VType.VDIR and fvp.type is not VType.VDIR:
        raise KError(EISDIR)
    if tvp.type is not VType.VDIR and fvp.type is VType.VDIR:
        raise KError(ENOTDIR)


def _check_moves(
    vfs: Vfs,
    fdnch: NcHandle,
    fncp: NamecacheEntry,
    tncp: NamecacheEntry,
    flags: int,
    cred: Ucred,
) -> None:
    """A directory whose parent changes must be writable for the caller."""
    if fncp.flags & NCF.ISDIR:
        naccess(vfs, fncp, fdnch.mount, NLC.WRITE, cred)
    if flags & RENAME_EXCHANGE and tncp.flags & NCF.ISDIR:
        naccess(vfs, tncp, fdnch.mount, NLC.WRITE, cred)
