"""Operations on names and attributes: create, link, remove, rename, set attributes.

Each is whole or not at all: it looks at everything first, claims the blocks it will change
(`Chains.modify`, `Chains.claim`), and only then changes something. An operation that finds no
space has changed nothing. All that one operation does is in the same header.

Who may do it is decided above, by the VOPs; what the file system cannot do is refused here.
Directories have one link: ``..`` is no entry.

Counterpart: hammer2_xops.c; hammer2_vop_ncreate and its siblings (hammer2_vnops.c).
Differs from DragonFly: changing a directory also sets its ctime, changing a link count that of the
    file, as POSIX wants. Renaming can exchange two names and can refuse to replace one. Removing
    is allowed as long as there is any space at all.
Token/lock order: takes none; the holder of the volume's lock calls.
Invariants: ``nlinks`` of what is no directory is the number of its names.
"""

from __future__ import annotations

from enum import IntFlag
from typing import Final

from dfuser.libkern.errno import (
    EEXIST,
    EINVAL,
    EISDIR,
    EMLINK,
    ENAMETOOLONG,
    ENOENT,
    ENOSPC,
    ENOTDIR,
    ENOTEMPTY,
    EPERM,
    EXDEV,
    KError,
)
from dfuser.libkern.param import MAXPATHLEN
from dfuser.vfs.hammer2 import dirent, strategy
from dfuser.vfs.hammer2.errors import MediaError
from dfuser.vfs.hammer2.inode import Inode, inode_create_normal, inode_destroy
from dfuser.vfs.hammer2.ondisk.blockref import Blockref
from dfuser.vfs.hammer2.ondisk.const import ROOT_INUM, BrefType, ObjType
from dfuser.vfs.hammer2.ondisk.inode import InodeMeta, guid_to_uuid, nsec_to_time
from dfuser.vfs.hammer2.reader import Entry

_INODE: Final = int(BrefType.INODE)
_MODE_MASK: Final = 0o7777
_DEVICES: Final = (ObjType.CDEV, ObjType.BDEV)
_KINDS: Final = frozenset(ObjType) - {ObjType.UNKNOWN, ObjType.WHITEOUT}
#: Links are 64 bits on the media and 32 to everybody else.
_NLINKS_MAX: Final = 0xFFFF_FFFF
#: A path from a directory to the root longer than this is a loop.
_DEPTH_MAX: Final = 1 << 20


class RenameFlag(IntFlag):
    """How `nrename` treats a name that is there already."""

    NONE = 0
    NOREPLACE = 1
    EXCHANGE = 2


def now(ip: Inode) -> int:
    """The time as the media has it."""
    return nsec_to_time(ip.pfs.dev.clock())


def _touch(dip: Inode, mtid: int, time: int) -> None:
    """A directory's names change; it can be changed afterwards."""
    meta = dip.modify(mtid)
    meta.mtime = meta.ctime = time


# --- looking up ----------------------------------------------------------------------------


def nresolve(dip: Inode, name: bytes) -> Inode:
    """What a name leads to. Counterpart: hammer2_xop_nresolve.

    Raises:
        KError: ENOENT, ENOTDIR, ENAMETOOLONG, EINVAL.
        MediaError: a block on the way is damaged, or the name leads nowhere.
    """
    dip.pfs.dev.chains.trim()
    _directory(dip)
    dirent.check_name(name)
    return _target(dip, dirent.lookup(dip, name)[1])


def _target(dip: Inode, entry: Entry) -> Inode:
    """The inode of an entry; a name that leads nowhere is damage, and so EIO."""
    try:
        return dip.pfs.inode(entry.inum)
    except MediaError:
        raise
    except KError as exc:
        raise MediaError(f"{exc.strerror} behind the name {entry.name!r}") from None


def _directory(dip: Inode) -> None:
    """Refuse what is no directory, or no longer there.

    Raises:
        KError: ENOTDIR; ENOENT, it was removed.
    """
    if dip.deleted:
        raise KError(ENOENT)
    if not dip.is_directory:
        raise KError(ENOTDIR)


def readlink(ip: Inode) -> bytes:
    """Where a symbolic link points.

    Raises:
        KError: EINVAL, it is none.
        MediaError: its data is damaged.
    """
    if ip.meta.type != ObjType.SOFTLINK:
        raise KError(EINVAL)
    return strategy.read(ip, 0, MAXPATHLEN)


# --- creating ------------------------------------------------------------------------------


def ncreate(
    dip: Inode, name: bytes, objtype: int = ObjType.REGFILE, *, mode: int = 0o644, uid: int = 0,
    gid: int = 0, rmajor: int = 0, rminor: int = 0, root: bool = True,
) -> Inode:  # fmt: skip
    """Make a file, directory, device, FIFO or socket, or an empty symbolic link.

    Args:
        dip: the directory.
        name: the new name.
        objtype: what to make, an `ObjType`.
        mode: permission bits.
        uid: owner.
        gid: group.
        rmajor: of a device.
        rminor: of a device.
        root: whether the superuser does it, who may use more of the space.

    Raises:
        KError: EEXIST, ENOTDIR, ENAMETOOLONG, EINVAL, EROFS, ENOSPC, EIO; nothing has changed.

    Counterpart: hammer2_vop_ncreate, _nmkdir, _nmknod.
    """
    base, used = _begin(dip, name, root)
    if objtype not in _KINDS:
        raise KError(EINVAL)
    pfs = dip.pfs
    mtid, time = pfs.trans_sub(), now(dip)
    meta = InodeMeta(
        type=int(objtype), mode=mode & _MODE_MASK, uid=guid_to_uuid(uid), gid=guid_to_uuid(gid),
        nlinks=1, ctime=time, mtime=time, atime=time, btime=time,
    )  # fmt: skip
    if objtype in _DEVICES:
        meta.rmajor, meta.rminor = rmajor, rminor
    dip.modify(mtid)
    ip = inode_create_normal(pfs, dip, meta, mtid)
    try:
        dirent.dirent_create(dip, name, base, used, ip.inum, int(objtype), mtid)
    except KError:
        _undo_create(ip, mtid)
        raise
    _touch(dip, mtid, time)
    return ip


def _undo_create(ip: Inode, mtid: int) -> None:
    """Take back an inode that got no name."""
    data_off = ip.chain.bref.data_off
    inode_destroy(ip, mtid)
    ip.pfs.dev.freemap.give_back(_INODE, data_off)


def _begin(dip: Inode, name: bytes, root: bool) -> tuple[int, list[Blockref]]:
    """See whether a new name can be made; its hash and what is in its range."""
    dev = dip.pfs.dev
    dev.modifying()
    _directory(dip)
    dirent.check_name(name)
    if dip.meta.nlinks == 0:
        raise KError(ENOENT)
    base, used = dirent.hash_range(dip, name)
    if used and dirent.find(dip, name, used) is not None:
        raise KError(EEXIST)
    if dev.enospace(root=root) > 1:
        raise KError(ENOSPC)
    return base, used


def nmkdir(
    dip: Inode, name: bytes, *, mode: int = 0o755, uid: int = 0, gid: int = 0, root: bool = True
) -> Inode:
    """Make a directory; see `ncreate`."""
    return ncreate(dip, name, ObjType.DIRECTORY, mode=mode, uid=uid, gid=gid, root=root)


def nsymlink(
    dip: Inode, name: bytes, target: bytes, *, mode: int = 0o755, uid: int = 0, gid: int = 0,
    root: bool = True,
) -> Inode:  # fmt: skip
    """Make a symbolic link; see `ncreate`. ENAMETOOLONG also if the target is too long.

    Counterpart: hammer2_vop_nsymlink.
    """
    if len(target) >= MAXPATHLEN:
        raise KError(ENAMETOOLONG)
    ip = ncreate(dip, name, ObjType.SOFTLINK, mode=mode, uid=uid, gid=gid, root=root)
    try:
        done = strategy.write(ip, 0, target, root=root)
    except KError:
        nremove(dip, name)
        raise
    if done != len(target):
        nremove(dip, name)
        raise KError(ENOSPC)
    return ip


def nlink(dip: Inode, name: bytes, ip: Inode, *, root: bool = True) -> None:
    """Give a file one more name.

    Raises:
        KError: EXDEV, another PFS; EPERM, a directory; EMLINK; ENOENT, it has no name any more;
            else as `ncreate`.

    Counterpart: hammer2_vop_nlink.
    """
    if ip.pfs is not dip.pfs:
        raise KError(EXDEV)
    base, used = _begin(dip, name, root)
    if ip.is_directory:
        raise KError(EPERM)
    if not 0 < ip.meta.nlinks < _NLINKS_MAX:
        raise KError(EMLINK if ip.meta.nlinks else ENOENT)
    mtid, time = ip.pfs.trans_sub(), now(ip)
    dip.modify(mtid)
    meta = ip.modify(mtid)
    dirent.dirent_create(dip, name, base, used, ip.inum, meta.type, mtid)
    meta.nlinks += 1
    meta.ctime = time
    _touch(dip, mtid, time)


# --- removing ------------------------------------------------------------------------------


def nremove(dip: Inode, name: bytes, *, isopen: bool = False) -> Inode | None:
    """Remove a name of what is no directory.

    Args:
        dip: the directory.
        name: the name.
        isopen: the file is in use: if this was its last name, it stays until `inactive`.

    Returns:
        The file, if it is still there.

    Raises:
        KError: ENOENT, ENOTDIR, EISDIR, EROFS; ENOSPC or EIO, nothing has changed.

    Counterpart: hammer2_vop_nremove.
    """
    return _remove(dip, name, isopen, directory=False)


def nrmdir(dip: Inode, name: bytes, *, isopen: bool = False) -> Inode | None:
    """Remove an empty directory; see `nremove`. ENOTEMPTY, ENOTDIR, it is no directory.

    Counterpart: hammer2_vop_nrmdir.
    """
    return _remove(dip, name, isopen, directory=True)


def _remove(dip: Inode, name: bytes, isopen: bool, *, directory: bool) -> Inode | None:
    """Remove a name. Counterpart: hammer2_xop_unlink."""
    dev = dip.pfs.dev
    dev.modifying()
    _directory(dip)
    dirent.check_name(name)
    bref, entry = dirent.lookup(dip, name)
    dirent.refuse_old(bref)
    ip = _target(dip, entry)
    _removable(ip, directory)
    mtid, time = dip.pfs.trans_sub(), now(dip)
    dip.modify(mtid)
    _claim_unlink(ip, mtid, isopen)
    old = dev.chains.delete(dip.chain, bref.key, mtid)
    _drop_name(old, dip)
    _touch(dip, mtid, time)
    return _unlink_finisher(ip, mtid, time, isopen)


def _removable(ip: Inode, directory: bool) -> None:
    """Refuse the wrong kind, and directories that are not empty."""
    if ip.is_directory:
        if not directory:
            raise KError(EISDIR)
        if not dirent.is_empty(ip):
            raise KError(ENOTEMPTY)
    elif directory:
        raise KError(ENOTDIR)


def _claim_unlink(ip: Inode, mtid: int, isopen: bool) -> None:
    """See to it that a link can be taken from an inode, or the inode be deleted.

    What is deleted needs no block of its own any more.
    """
    if isopen or ip.meta.nlinks > 1:
        ip.modify(mtid)
    else:
        ip.pfs.dev.chains.claim(ip.pfs.root_chain, ip.inum, mtid)


def _drop_name(old: object, dip: Inode) -> None:
    """A name is gone: a new block that it had is free."""
    if isinstance(old, Blockref) and old.data_off in dip.pfs.dev.freemap.fresh:
        dip.pfs.dev.io.forget(old.data_off)
        dip.pfs.dev.freemap.give_back(old.type, old.data_off)


def _unlink_finisher(ip: Inode, mtid: int, time: int, isopen: bool) -> Inode | None:
    """One name less. Counterpart: hammer2_inode_unlink_finisher."""
    meta = ip.meta
    if meta.nlinks <= 1 and not isopen:
        inode_destroy(ip, mtid)
        return None
    meta.nlinks = max(0, meta.nlinks - 1)
    meta.ctime = time
    return ip


def inactive(ip: Inode) -> None:
    """Nobody uses a file any more: if it has no name, it goes.

    Raises:
        KError: EROFS; ENOSPC or EIO, it is still there.

    Counterpart: hammer2_vop_inactive.
    """
    if not ip.deleted and ip.meta.nlinks == 0:
        ip.pfs.dev.modifying()
        inode_destroy(ip, ip.pfs.trans_sub())


# --- renaming ------------------------------------------------------------------------------


def nrename(
    fdip: Inode, fname: bytes, tdip: Inode, tname: bytes,
    flags: RenameFlag = RenameFlag.NONE, *, isopen: bool = False, root: bool = True,
) -> Inode | None:  # fmt: skip
    """Give a name, or exchange two.

    Args:
        fdip: the directory of what is renamed.
        fname: its name.
        tdip: the directory it shall be in.
        tname: its new name.
        flags: NOREPLACE: EEXIST if the name is there; EXCHANGE: both must be there.
        isopen: what is replaced is in use; see `nremove`.
        root: whether the superuser does it.

    Returns:
        What was replaced, if it is still there.

    Raises:
        KError: EXDEV; ENOENT; EEXIST; EINVAL, a directory into itself, or both flags; ENOTDIR,
            EISDIR, ENOTEMPTY for the wrong target; EROFS; ENOSPC, EIO. Nothing has changed.

    Counterpart: hammer2_vop_nrename, hammer2_xop_nrename.
    """
    dev = fdip.pfs.dev
    dev.modifying()
    if fdip.pfs is not tdip.pfs:
        raise KError(EXDEV)
    for dip, name in ((fdip, fname), (tdip, tname)):
        _directory(dip)
        dirent.check_name(name)
    bref, entry = dirent.lookup(fdip, fname)
    dirent.refuse_old(bref)
    base, used = dirent.hash_range(tdip, tname)
    found = dirent.find(tdip, tname, used)
    ip = _target(fdip, entry)
    if flags & RenameFlag.EXCHANGE:
        if flags & RenameFlag.NOREPLACE:
            raise KError(EINVAL)
        if found is None:
            raise KError(ENOENT)
        dirent.refuse_old(found[0])
        _exchange(fdip, bref, entry, ip, tdip, found)
        return None
    if found is not None and flags & RenameFlag.NOREPLACE:
        raise KError(EEXIST)
    _not_below(ip, tdip)
    tip = None
    if found is not None:
        dirent.refuse_old(found[0])
        tip = _target(tdip, found[1])
        if tip is ip:
            return None
        _removable(tip, ip.is_directory)
    if dev.enospace(root=root) > 1:
        raise KError(ENOSPC)
    return _rename(fdip, bref, tdip, tname, base, used, ip, found, tip, isopen)


def _rename(
    fdip: Inode, bref: Blockref, tdip: Inode, tname: bytes, base: int, used: list[Blockref],
    ip: Inode, found: tuple[Blockref, Entry] | None, tip: Inode | None, isopen: bool,
) -> Inode | None:  # fmt: skip
    """Claim everything, make the new name, then take away the old ones."""
    chains = fdip.pfs.dev.chains
    mtid, time = fdip.pfs.trans_sub(), now(fdip)
    fdip.modify(mtid)
    tdip.modify(mtid)
    meta = ip.modify(mtid)
    chains.claim(fdip.chain, bref.key, mtid)
    if found is not None and tip is not None:
        _claim_unlink(tip, mtid, isopen)
        chains.claim(tdip.chain, found[0].key, mtid)
    dirent.dirent_create(tdip, tname, base, used, ip.inum, meta.type, mtid)
    _drop_name(chains.delete(fdip.chain, bref.key, mtid), fdip)
    if found is not None:
        _drop_name(chains.delete(tdip.chain, found[0].key, mtid), tdip)
    meta.iparent = tdip.inum
    meta.ctime = time
    _touch(fdip, mtid, time)
    _touch(tdip, mtid, time)
    return None if tip is None else _unlink_finisher(tip, mtid, time, isopen)


def _exchange(
    fdip: Inode, bref: Blockref, entry: Entry, ip: Inode, tdip: Inode,
    found: tuple[Blockref, Entry],
) -> None:  # fmt: skip
    """Let two names lead to each other's inode; both keep their keys."""
    tbref, tentry = found
    tip = _target(tdip, tentry)
    if tip is ip:
        return
    _not_below(ip, tdip)
    _not_below(tip, fdip)
    chains = fdip.pfs.dev.chains
    mtid, time = fdip.pfs.trans_sub(), now(fdip)
    chains.claim(fdip.chain, bref.key, mtid)
    chains.claim(tdip.chain, tbref.key, mtid)
    meta, tmeta = ip.modify(mtid), tip.modify(mtid)
    dirent.repoint(fdip, bref, entry, tip.inum, tmeta.type, mtid)
    dirent.repoint(tdip, tbref, tentry, ip.inum, meta.type, mtid)
    meta.iparent, tmeta.iparent = tdip.inum, fdip.inum
    meta.ctime = tmeta.ctime = time
    _touch(fdip, mtid, time)
    _touch(tdip, mtid, time)


def _not_below(ip: Inode, dip: Inode) -> None:
    """Refuse to move a directory into itself or below itself.

    Raises:
        KError: EINVAL.
    """
    if not ip.is_directory:
        return
    inum = dip.inum
    for _ in range(_DEPTH_MAX):
        if inum == ip.inum:
            raise KError(EINVAL)
        if inum == ROOT_INUM:
            return
        inum = dip.pfs.inode(inum).meta.iparent
    raise KError(EINVAL)


# --- attributes ----------------------------------------------------------------------------


def setattr_(
    ip: Inode, *, mode: int | None = None, uid: int | None = None, gid: int | None = None,
    atime: int | None = None, mtime: int | None = None, uflags: int | None = None,
) -> None:  # fmt: skip
    """Change attributes, and ctime with them; None leaves one as it is.

    Args:
        ip: the inode.
        mode: permission bits.
        uid: owner.
        gid: group.
        atime: nanoseconds since 1970; the media keeps microseconds.
        mtime: likewise.
        uflags: file flags.

    Raises:
        KError: EROFS; ENOSPC or EIO, nothing has changed.

    Counterpart: hammer2_vop_setattr.
    """
    ip.pfs.dev.modifying()
    meta = ip.modify(ip.pfs.trans_sub())
    if mode is not None:
        meta.mode = mode & _MODE_MASK
    if uid is not None:
        meta.uid = guid_to_uuid(uid)
    if gid is not None:
        meta.gid = guid_to_uuid(gid)
    if atime is not None:
        meta.atime = nsec_to_time(atime)
    if mtime is not None:
        meta.mtime = nsec_to_time(mtime)
    if uflags is not None:
        meta.uflags = uflags
    meta.ctime = now(ip)


def setcomp(ip: Inode, comp_algo: int) -> None:
    """Set how new data of a file is compressed, and what new files in a directory inherit.

    Raises:
        KError: EINVAL, nobody knows the algorithm; EROFS, ENOSPC, EIO.

    Counterpart: hammer2_ioctl_inode_comp_set (hammer2_ioctl.c).
    """
    if comp_algo & 15 > 3 or comp_algo >> 8:
        raise KError(EINVAL)
    ip.pfs.dev.modifying()
    meta = ip.modify(ip.pfs.trans_sub())
    meta.comp_algo = comp_algo
    ip.comp_heuristic = 0


def setcheck(ip: Inode, check_algo: int) -> None:
    """Set the check code of new data of a file, and what new files in a directory inherit.

    Raises:
        KError: EINVAL, nobody knows it; EROFS, ENOSPC, EIO.

    Counterpart: hammer2_ioctl_inode_comp_set, its check code.
    """
    if not 0 <= check_algo <= 4:
        raise KError(EINVAL)
    ip.pfs.dev.modifying()
    ip.modify(ip.pfs.trans_sub()).check_algo = check_algo
