"""Names in a directory: finding them by hash, making, removing and listing them.

A name lies at a key of its hash's range (ondisk/keys.py): which of the 32768 is decided when it is
made, by looking at those in use, as DragonFly's kernel does. So a lookup compares all names in the
range, in nearly every directory one. A name of up to 64 bytes is in the blockref; a longer one has
a block of 1 KiB, written when the name is made.

Counterpart: hammer2_dirent_create (hammer2_inode.c); hammer2_xop_nresolve, _readdir, _scanlhc,
    checkdirempty (hammer2_xops.c); hammer2_chain_dirent_test (hammer2_chain.c).
Differs from DragonFly: directories of its very first versions, which have inodes in place of names,
    are read; changing such a name is EOPNOTSUPP.
Token/lock order: takes none; the holder of the volume's lock calls.
Invariants: no two names of a directory are equal; a name's key lies in the range of its hash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfuser.libkern.errno import EINVAL, ENAMETOOLONG, ENOENT, ENOSPC, EOPNOTSUPP, KError
from dfuser.libkern.param import NAME_MAX
from dfuser.vfs.hammer2.check import setcheck
from dfuser.vfs.hammer2.errors import MediaError
from dfuser.vfs.hammer2.ondisk.blockref import DIRENT_HEAD, NO_CHECK, Blockref
from dfuser.vfs.hammer2.ondisk.const import (
    ALLOC_MIN,
    DIRENT_INLINE_NAME,
    DIRHASH_VISIBLE,
    KEY_MAX,
    BrefType,
)
from dfuser.vfs.hammer2.ondisk.keys import dirhash, dirhash_last, key_of_cookie, probe
from dfuser.vfs.hammer2.reader import Entry

if TYPE_CHECKING:
    from dfuser.vfs.hammer2.inode import Inode

_DIRENT: Final = int(BrefType.DIRENT)
_unpack_head: Final = DIRENT_HEAD.unpack


def check_name(name: bytes) -> None:
    """Refuse what can be no name of an entry.

    Raises:
        KError: ENOENT, it is empty; ENAMETOOLONG, over 255 bytes; EINVAL, it is ``.`` or ``..`` or
            has a NUL or a slash.
    """
    if not name:
        raise KError(ENOENT)
    if len(name) > NAME_MAX:
        raise KError(ENAMETOOLONG)
    if b"/" in name or b"\0" in name or name in (b".", b".."):
        raise KError(EINVAL)


def entry_of(dip: Inode, bref: Blockref) -> Entry:
    """The entry of a blockref in a directory.

    Raises:
        MediaError: the entry, or the block its name is in, is damaged.
    """
    if bref.type == _DIRENT:
        inum, namlen, objtype = _unpack_head(bref.embed)
        if namlen <= DIRENT_INLINE_NAME:
            name = bref.check[:namlen]
        else:
            name = dip.pfs.dev.io.load(bref)[:namlen]
        if not 0 < namlen <= NAME_MAX or len(name) != namlen:
            raise MediaError(f"a name of {namlen} bytes at key {bref.key:#x}", bref.data_off)
        return Entry(bref.key, inum, objtype, name)
    chain = dip.pfs.dev.chains.lookup(dip.chain, bref.key)
    if isinstance(chain, Blockref):
        parent, index, _ = dip.pfs.dev.chains.seek(dip.chain, bref.key)
        chain = dip.pfs.dev.chains.load(parent, index)
    meta = getattr(chain, "meta", None)
    if meta is None:
        raise MediaError(f"no name at key {bref.key:#x}", bref.data_off)
    return Entry(bref.key, meta.inum, meta.type, chain.filename)  # type: ignore[union-attr]


def hash_range(dip: Inode, name: bytes) -> tuple[int, list[Blockref]]:
    """The hash of a name, and the entries in its range. Counterpart: hammer2_xop_scanlhc.

    Raises:
        MediaError: a block on the way is damaged.
    """
    base = dirhash(name)
    found: list[Blockref] = []
    dip.pfs.dev.chains.collect(dip.chain, base, dirhash_last(base), found, KEY_MAX)
    return base, found


def find(dip: Inode, name: bytes, candidates: list[Blockref]) -> tuple[Blockref, Entry] | None:
    """The entry with a name among those of its hash's range."""
    for bref in candidates:
        if bref.type == _DIRENT:
            namlen = int.from_bytes(bref.embed[8:10], "little")
            if namlen != len(name):
                continue
        entry = entry_of(dip, bref)
        if entry.name == name:
            return bref, entry
    return None


def lookup(dip: Inode, name: bytes) -> tuple[Blockref, Entry]:
    """The entry of a directory with a name.

    Raises:
        KError: ENOENT.
        MediaError: a block on the way is damaged.
    """
    found = find(dip, name, hash_range(dip, name)[1])
    if found is None:
        raise KError(ENOENT)
    return found


def dirent_create(
    dip: Inode, name: bytes, base: int, used: list[Blockref], inum: int, objtype: int, mtid: int
) -> None:
    """Make a name that does not exist yet. Counterpart: hammer2_dirent_create.

    Args:
        dip: the directory.
        name: the name.
        base: the name's hash.
        used: the entries in its range, as `hash_range` told.
        inum: where it leads.
        objtype: what kind of file that is.
        mtid: the operation.

    Raises:
        KError: ENOSPC, also if all keys of its hash are in use; EIO; nothing has changed.
    """
    key = probe(base, [bref.key for bref in used])
    if key is None:
        raise KError(ENOSPC)
    dev = dip.pfs.dev
    chain = dip.chain
    embed = DIRENT_HEAD.pack(inum, len(name), objtype)
    tid = dev.chains.mirror_tid + 1
    bref = Blockref(
        _DIRENT, chain.bref.methods, key=key, mirror_tid=tid, modify_tid=mtid, embed=embed,
        check=NO_CHECK,
    )  # fmt: skip
    if len(name) <= DIRENT_INLINE_NAME:
        dev.chains.insert(chain, bref._replace(check=name.ljust(64, b"\0")), mtid)
        return
    data_off = dev.freemap.alloc(_DIRENT, key, ALLOC_MIN)
    block = name.ljust(ALLOC_MIN, b"\0")
    try:
        dev.chains.insert(chain, setcheck(bref._replace(data_off=data_off), block), mtid)
    except KError:
        dev.freemap.give_back(_DIRENT, data_off)
        raise
    dev.io.write(data_off, block)


def refuse_old(bref: Blockref) -> None:
    """Refuse to change an entry that is an inode itself.

    Raises:
        KError: EOPNOTSUPP.
    """
    if bref.type != _DIRENT:
        raise KError(EOPNOTSUPP, "a directory of HAMMER2's first versions")


def repoint(dip: Inode, bref: Blockref, entry: Entry, inum: int, objtype: int, mtid: int) -> None:
    """Let a name lead to another inode; it keeps its key. The entry is claimed."""
    embed = DIRENT_HEAD.pack(inum, len(entry.name), objtype)
    tid = dip.pfs.dev.chains.mirror_tid + 1
    changed = bref._replace(embed=embed, mirror_tid=tid, modify_tid=mtid)
    dip.pfs.dev.chains.replace(dip.chain, changed, mtid)


def is_empty(dip: Inode) -> bool:
    """Whether a directory has no names. Counterpart: checkdirempty (hammer2_xops.c).

    Raises:
        MediaError: a block on the way is damaged.
    """
    found: list[Blockref] = []
    dip.pfs.dev.chains.collect(dip.chain, DIRHASH_VISIBLE, KEY_MAX, found, 1)
    return not found


def readdir(dip: Inode, cookie: int = 0, limit: int = 1024) -> list[Entry]:
    """Names of a directory by ascending key, without ``.`` and ``..``.

    Args:
        dip: the directory.
        cookie: where to begin: one more than the key, less bit 63, of the last entry seen.
        limit: at most so many; fewer come at the end only.

    Raises:
        MediaError: a block of the range is damaged.

    Counterpart: hammer2_xop_readdir.
    """
    dip.pfs.dev.chains.trim()
    found: list[Blockref] = []
    dip.pfs.dev.chains.collect(dip.chain, key_of_cookie(cookie), KEY_MAX, found, limit)
    return [entry_of(dip, bref) for bref in found]
