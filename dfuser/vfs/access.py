"""Who may do what with a file: the permission rules, all in one place.

Three questions are answered here. `naccess` decides whether a path walk may pass, and whether its
last component may be created, removed, renamed, opened (the NLC flags say which). `vaccess` is the
plain question of access(2). `setattr_check` has the rules of chmod, chown, chflags, truncate and
utimes.

The order of the rules is DragonFly's: file flags (immutable, append-only, no-unlink) bind even
root; then root passes; then the owner's bits decide for the owner, alone; then sticky directories
refuse others; then an access control list, if the file has one, else the bits of the first group
that matches, else those of everybody.

Whoever acts for a host that has checked already (NLC.HOSTCHECKED, ``chk=False``) does not come
here.

Counterpart: naccess, naccess_va (kern/vfs_nlookup.c), vop_helper_* (kern/vfs_helper.c), and what
    the setattr VOPs of the file systems have in common.
Differs from DragonFly: the rules of setattr are applied once before the file system is called;
    file systems may be stricter. Removal from a sticky directory is also granted to the owner of
    the directory, as POSIX has it (in C that falls out of the NLC_STICKY flag the same way).
Token/lock order: none.
Invariants: nothing here changes anything but the NCF.WXOK and NOTX hints of an entry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfuser.libkern.errno import (
    EACCES,
    EEXIST,
    EINVAL,
    EISDIR,
    ENOENT,
    EPERM,
    EROFS,
    KError,
)
from dfuser.libkern.fcntl import R_OK, W_OK, X_OK
from dfuser.libkern.stat import (
    ALLPERMS,
    APPEND,
    IMMUTABLE,
    NOUNLINK,
    S_IRWXG,
    S_IRWXO,
    S_ISGID,
    S_ISUID,
    S_ISVTX,
    S_IXGRP,
    S_IXOTH,
    S_IXUSR,
    SF_APPEND,
    SF_IMMUTABLE,
    SF_NOUNLINK,
    SF_SETTABLE,
    UF_SETTABLE,
    VEXEC,
    VREAD,
    VWRITE,
    VType,
)

from .mountflags import MNT
from .namecache import NCF, NamecacheEntry
from .vattr import Vattr

if TYPE_CHECKING:
    from dfuser.libkern.ucred import Ucred

    from .mount import Mount
    from .vfs import Vfs
    from .vnode import Vnode


class NLC:
    """What a path walk is for. Counterpart: NLC_* (sys/nlookup.h)."""

    FOLLOW: Final = 0x00000001
    NOCROSSMOUNT: Final = 0x00000002
    WILLBEDIR: Final = 0x00000010
    CREATE: Final = 0x00000080
    DELETE: Final = 0x00000100
    RENAME_DST: Final = 0x00000200
    OPEN: Final = 0x00000400
    TRUNCATE: Final = 0x00000800
    HLINK: Final = 0x00001000
    RENAME_SRC: Final = 0x00002000
    IGNBADDIR: Final = 0x00008000
    NOSOFTLINKTRAV: Final = 0x00020000
    REFDVP: Final = 0x00040000
    APPEND: Final = 0x00100000
    HOSTCHECKED: Final = 0x00200000
    """The caller's host has checked permissions (the bit is NLC_NLNCH_NOINIT in C)."""
    READ: Final = 0x00400000
    WRITE: Final = 0x00800000
    EXEC: Final = 0x01000000
    EXCL: Final = 0x02000000
    OWN: Final = 0x04000000
    STICKY: Final = 0x10000000
    APPENDONLY: Final = 0x20000000
    IMMUTABLE: Final = 0x40000000

    ALLCHKS: Final = (
        CREATE | DELETE | RENAME_DST | OPEN | TRUNCATE | RENAME_SRC | READ | WRITE | EXEC | OWN
    )
    MODIFYING_MASK: Final = CREATE | DELETE | RENAME_DST | RENAME_SRC


_WXOK: Final = 0o555
_XOK: Final = S_IXUSR | S_IXGRP | S_IXOTH
_OWN_CONTENTS: Final = (VType.VREG, VType.VDIR, VType.VLNK)


def naccess(
    vfs: Vfs, ncp: NamecacheEntry, mount: Mount, nflags: int, cred: Ucred, want: bool = False
) -> int:
    """Whether the walk may use a resolved entry in the way ``nflags`` say.

    Counterpart: naccess.

    Args:
        vfs: the VFS.
        ncp: a resolved entry.
        mount: the mount it is seen through.
        nflags: NLC.*; STICKY, APPENDONLY, IMMUTABLE are what an earlier call told of the directory.
        cred: who asks.
        want: also answer what the directory's own flags mean for what is in it.

    Returns:
        With ``want`` the NLC.STICKY, APPENDONLY, IMMUTABLE bits of this entry, else 0.

    Raises:
        KError: EACCES, EPERM, EROFS, EEXIST, EISDIR, EINVAL, or ENOENT where the name must exist.
    """
    vp = ncp.vp
    if nflags & NLC.MODIFYING_MASK:
        _check_parent(vfs, ncp, mount, nflags, cred)
    if nflags & NLC.EXCL and vp is not None:
        raise KError(EEXIST)
    if not want and nflags == NLC.EXEC and ncp.flags & NCF.WXOK:
        return 0
    if vp is None:
        if nflags & (NLC.CREATE | NLC.RENAME_DST):
            return 0
        raise KError(ENOENT)
    va = vp.ops.use.vop_getattr(vp)
    _check_object(vp, va, mount, nflags)
    found = 0
    if want:
        mode, flags = va.mode or 0, va.flags or 0
        if mode & S_ISVTX and va.uid != cred.uid:
            found |= NLC.STICKY
        if flags & APPEND:
            found |= NLC.APPENDONLY
        if flags & IMMUTABLE:
            found |= NLC.IMMUTABLE
    _note_mode(vfs, vp, va, ncp)
    naccess_va(va, nflags, cred, vp)
    return found


def _check_parent(vfs: Vfs, ncp: NamecacheEntry, mount: Mount, nflags: int, cred: Ucred) -> None:
    """Creating, removing and renaming need write permission on the directory."""
    exists = ncp.vp is not None
    if not (
        (nflags & NLC.CREATE and not exists)
        or (nflags & (NLC.DELETE | NLC.RENAME_SRC) and exists)
        or nflags & NLC.RENAME_DST
    ):
        return
    par = ncp.parent
    if par is None:
        raise KError(EINVAL)
    naccess(vfs, par, mount, NLC.WRITE, cred)


def _check_object(vp: Vnode, va: Vattr, mount: Mount, nflags: int) -> None:
    """Truncation of what has no size; writing on a read-only mount."""
    if nflags & NLC.TRUNCATE and va.type not in (VType.VREG, VType.VCHR, VType.VBLK, VType.VFIFO):
        raise KError(EISDIR if va.type is VType.VDIR else EINVAL)
    if nflags & NLC.WRITE and va.type in _OWN_CONTENTS:
        below = vp.mount.flag if vp.mount is not None else 0
        if (below | mount.flag) & MNT.RDONLY:
            raise KError(EROFS)


def _note_mode(vfs: Vfs, vp: Vnode, va: Vattr, ncp: NamecacheEntry) -> None:
    """Keep the hints of the mode in the entry, so that walks need no attributes."""
    mode = va.mode or 0
    hints = 0
    open_to_all = va.type is VType.VDIR and mode & _WXOK == _WXOK
    if open_to_all and vp.ops.use.vop_aclcheck(vp, va, VEXEC, vfs.nobody) is None:
        hints |= NCF.WXOK
    if not mode & _XOK:
        hints |= NCF.NOTX
    ncp.flags = (ncp.flags & ~(NCF.WXOK | NCF.NOTX)) | hints


def naccess_va(va: Vattr, nflags: int, cred: Ucred, vp: Vnode | None = None) -> None:
    """Check the requested access against attributes. Counterpart: naccess_va.

    Raises:
        KError: EPERM (flags of the file or its directory), EISDIR, EACCES.
    """
    _check_flags(va.flags or 0, va.type, nflags)
    if cred.uid == 0:
        return
    want = 0
    if nflags & NLC.READ:
        want |= VREAD
    if nflags & NLC.WRITE:
        want |= VWRITE
    if nflags & NLC.EXEC:
        want |= VEXEC
    if cred.uid == va.uid:
        if not nflags & NLC.OWN and (va.mode or 0) & want != want:
            raise KError(EACCES)
        return
    if nflags & NLC.STICKY and nflags & (NLC.RENAME_SRC | NLC.RENAME_DST | NLC.DELETE):
        raise KError(EACCES)
    if not _class_permits(va, want, cred, vp):
        raise KError(EACCES)


def _check_flags(flags: int, vtype: VType, nflags: int) -> None:
    """The file flags, which bind everybody."""
    if flags & IMMUTABLE or nflags & NLC.IMMUTABLE:
        if nflags & NLC.IMMUTABLE and nflags & NLC.HLINK:
            raise KError(EPERM)
        if nflags & NLC.MODIFYING_MASK:
            raise KError(EPERM)
        if nflags & (NLC.WRITE | NLC.TRUNCATE):
            if vtype is VType.VDIR:
                raise KError(EISDIR if nflags & (NLC.OPEN | NLC.TRUNCATE) else EPERM)
            if vtype in (VType.VREG, VType.VLNK):
                raise KError(EPERM)
    removing = nflags & (NLC.DELETE | NLC.RENAME_SRC | NLC.RENAME_DST)
    if (flags & NOUNLINK or nflags & NLC.APPENDONLY) and removing:
        raise KError(EPERM)
    if flags & APPEND:
        if nflags & (NLC.DELETE | NLC.RENAME_DST | NLC.TRUNCATE):
            raise KError(EPERM)
        opening = nflags & (NLC.OPEN | NLC.WRITE) == NLC.OPEN | NLC.WRITE
        if opening and not nflags & NLC.APPEND:
            raise KError(EPERM)


def _class_permits(va: Vattr, want: int, cred: Ucred, vp: Vnode | None) -> bool:
    """What group and others (or an access control list) grant; ``want`` in owner position."""
    if not want:
        return True
    if vp is not None:
        verdict = vp.ops.use.vop_aclcheck(vp, va, want, cred)
        if verdict is not None:
            return verdict
    mode = va.mode or 0
    shift = 3 if va.gid is not None and cred.groupmember(va.gid) else 6
    want >>= shift
    return mode & want == want


def vaccess(vp: Vnode, va: Vattr, mode: int, cred: Ucred) -> None:
    """access(2): ``mode`` is VREAD, VWRITE, VEXEC bits. Counterpart: vop_helper_access.

    Raises:
        KError: EROFS, EPERM (immutable), EACCES. Root needs one execute bit to execute a file.
    """
    if mode & VWRITE:
        if va.type in _OWN_CONTENTS and vp.mount is not None and vp.mount.flag & MNT.RDONLY:
            raise KError(EROFS)
        if (va.flags or 0) & IMMUTABLE:
            raise KError(EPERM)
    if cred.uid == 0:
        if mode & VEXEC and va.type is not VType.VDIR and not (va.mode or 0) & _XOK:
            raise KError(EACCES)
        return
    if cred.uid == va.uid:
        permitted = (va.mode or 0) & mode == mode
    else:
        permitted = _class_permits(va, mode, cred, vp)
    if not permitted:
        raise KError(EACCES)


def access_mode(amode: int) -> int:
    """Turn R_OK, W_OK, X_OK of access(2) into VREAD, VWRITE, VEXEC.

    Raises:
        KError: EINVAL, other bits.
    """
    if amode & ~(R_OK | W_OK | X_OK):
        raise KError(EINVAL)
    return (
        (VREAD if amode & R_OK else 0)
        | (VWRITE if amode & W_OK else 0)
        | (VEXEC if amode & X_OK else 0)
    )


# --- attributes --------------------------------------------------------------------------------


def setattr_check(vp: Vnode, va: Vattr, vap: Vattr, cred: Ucred) -> Vattr:
    """Decide a request to change attributes, and complete it.

    Args:
        vp: the file.
        va: its attributes now.
        vap: what is asked for; not changed.
        cred: who asks.

    Returns:
        What the file system is to be asked for: set-id bits go when the owner of a file changes
        (a directory keeps them, they grant nobody anything), set-gid when the caller is not in the
        group.

    Raises:
        KError: EPERM, EACCES (UTIME_NOW and truncate without write permission), EISDIR, EINVAL.
    """
    out = copy_vattr(vap)
    flags = va.flags or 0
    if vap.flags is not None:
        out.flags = helper_setattr_flags(flags, vap.flags, va.uid or 0, cred)
        if flags & (IMMUTABLE | APPEND) and out.flags & (IMMUTABLE | APPEND):
            _no_other_change(vap)
    elif flags & IMMUTABLE or (flags & APPEND and _touches_more_than_times(vap)):
        raise KError(EPERM)
    if vap.uid is not None or vap.gid is not None:
        _chown_check(va, vap, out, cred)
    if vap.mode is not None:
        gid = out.gid if out.gid is not None else va.gid or 0
        out.mode = helper_chmod(vap.mode, va.uid or 0, gid, cred)
    if vap.size is not None:
        if va.type is VType.VDIR:
            raise KError(EISDIR)
        if vap.size < 0:
            raise KError(EINVAL)
        vaccess(vp, va, VWRITE, cred)
    _utimes_check(vp, va, vap, cred)
    return out


def copy_vattr(vap: Vattr) -> Vattr:
    """A copy of the settable part of a request."""
    return Vattr(
        vap.type, vap.mode, vap.uid, vap.gid, vap.size, vap.atime, vap.mtime, vap.ctime, vap.flags,
        vap.rmajor, vap.rminor, btime=vap.btime, atime_now=vap.atime_now, mtime_now=vap.mtime_now,
    )  # fmt: skip


def _no_other_change(vap: Vattr) -> None:
    """An immutable file that stays so lets nothing but its flags be changed."""
    if _touches_more_than_times(vap) or vap.atime is not None or vap.mtime is not None:
        raise KError(EPERM)


def _touches_more_than_times(vap: Vattr) -> bool:
    """Whether owner, mode or size are asked for."""
    return not (vap.uid is None and vap.gid is None and vap.mode is None and vap.size is None)


def _chown_check(va: Vattr, vap: Vattr, out: Vattr, cred: Ucred) -> None:
    """The rules of chown(2); completes ``out`` with the mode that is left."""
    helper_chown(va, vap.uid, vap.gid, cred)
    mode = va.mode or 0
    if va.type is VType.VDIR:
        return
    if cred.uid != 0 and vap.mode is None and mode & (S_ISUID | S_ISGID):
        out.mode = mode & ~(S_ISUID | S_ISGID)


def _utimes_check(vp: Vnode, va: Vattr, vap: Vattr, cred: Ucred) -> None:
    """Given times need the owner; "now" also a writer may ask for."""
    if cred.uid in (0, va.uid):
        return
    given = (vap.atime is not None and not vap.atime_now) or (
        vap.mtime is not None and not vap.mtime_now
    )
    if given or vap.btime is not None:
        raise KError(EPERM)
    if vap.atime_now or vap.mtime_now:
        if vap.atime_now != vap.mtime_now:
            raise KError(EPERM)
        vaccess(vp, va, VWRITE, cred)


def helper_setattr_flags(old: int, new: int, uid: int, cred: Ucred) -> int:
    """The flags after chflags(2). Counterpart: vop_helper_setattr_flags.

    Raises:
        KError: EPERM, not the owner, or a flag that belongs to the super-user.
    """
    if cred.uid == 0:
        return new
    if cred.uid != uid or old & (SF_NOUNLINK | SF_IMMUTABLE | SF_APPEND):
        raise KError(EPERM)
    if new & UF_SETTABLE != new:
        raise KError(EPERM)
    return old & SF_SETTABLE | new & UF_SETTABLE


def helper_chmod(mode: int, uid: int, gid: int, cred: Ucred) -> int:
    """The mode after chmod(2). Counterpart: vop_helper_chmod.

    Raises:
        KError: EPERM, not the owner.
    """
    mode &= ALLPERMS
    if cred.uid == 0:
        return mode
    if cred.uid != uid:
        raise KError(EPERM)
    return mode if cred.groupmember(gid) else mode & ~S_ISGID


def helper_chown(va: Vattr, uid: int | None, gid: int | None, cred: Ucred) -> None:
    """Whether the owner may be changed so. Counterpart: vop_helper_chown.

    Raises:
        KError: EPERM: only root gives files away; an owner may choose among his groups.
    """
    if cred.uid == 0:
        return
    foreign_group = gid is not None and gid != va.gid and not cred.groupmember(gid)
    if cred.uid != va.uid or (uid is not None and uid != va.uid) or foreign_group:
        raise KError(EPERM)


def helper_create_uid(
    dflags: int, dmode: int, duid: int, mode: int, cred: Ucred
) -> tuple[int, int]:
    """Owner and mode of a new file, with the rule of MNT.SUIDDIR mounts.

    Counterpart: vop_helper_create_uid.

    Args:
        dflags: flags of the mount.
        dmode: mode of the directory.
        duid: its owner.
        mode: mode asked for.
        cred: who creates.
    """
    if dflags & MNT.SUIDDIR and dmode & S_ISUID and duid not in (cred.uid, 0):
        return duid, mode & ~(S_ISUID | S_ISGID | 0o111 & (S_IRWXG | S_IRWXO))
    return cred.uid, mode
