"""PFSs come and go: new ones, snapshots, deletion.

A snapshot is a new root with the blockrefs of an old one. From then on both trees share their
blocks, and since a change is always a copy, each keeps what it has. That takes one inode, however
large the file system is. A snapshot is a PFS like others: it can be changed, and be the source of
another snapshot.

Two things keep shared blocks as they are. The transaction is sealed first, so no block in the
snapshot is new any more, and only new blocks are ever written over. Blocks without check code are
written over in place even when old; ``pfs_lsnap_tid``, the operation of the last snapshot, says
which of them are too old for that.

Deleting a PFS takes its root out of the super-root; what it had for itself becomes free after two
passes of bulkfree.

Counterpart: hammer2_ioctl_pfs_create, hammer2_ioctl_pfs_snapshot, hammer2_ioctl_pfs_delete
    (vfs/hammer2/hammer2_ioctl.c); hammer2_inode_create_pfs (hammer2_inode.c).
Differs from DragonFly: the transaction is sealed, not synced, so that a snapshot waits for nothing;
    it is durable with the next sync.
Token/lock order: takes none; the holder of the volume's lock calls.
Invariants: labels are unique; a snapshot is what its source was when the call was made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from uuid import UUID

from attrs import evolve

from dfuser.libkern.errno import EEXIST, EINVAL, ENOENT, ENOSPC, KError
from dfuser.vfs.hammer2.chain import Chain
from dfuser.vfs.hammer2.dev import Dev
from dfuser.vfs.hammer2.dirent import check_name
from dfuser.vfs.hammer2.inode import InodeChain, inode_methods
from dfuser.vfs.hammer2.ondisk.blockref import Blockref
from dfuser.vfs.hammer2.ondisk.const import (
    INODE_BYTES,
    KEY_MAX,
    ROOT_INUM,
    BrefFlag,
    BrefType,
    ObjType,
    OpFlag,
    PfsSubtype,
    PfsType,
)
from dfuser.vfs.hammer2.ondisk.inode import InodeMeta, nsec_to_time
from dfuser.vfs.hammer2.ondisk.keys import dirhash, dirhash_last, probe
from dfuser.vfs.hammer2.pfs import Pfs

_INODE: Final = int(BrefType.INODE)
Entropy = Callable[[int], bytes]


def pfs_create(dev: Dev, label: bytes, entropy: Entropy) -> Pfs:
    """Make an empty PFS, with the compression and check code of the super-root.

    Raises:
        KError: EEXIST; EINVAL, ENAMETOOLONG, ENOENT for a bad label; EROFS, ENOSPC, EIO. Nothing
            has changed.

    Counterpart: hammer2_ioctl_pfs_create.
    """
    key = _new_label(dev, label)
    time = nsec_to_time(dev.clock())
    parent = dev.sroot.meta
    meta = InodeMeta(
        type=ObjType.DIRECTORY, mode=0o755, nlinks=1, inum=ROOT_INUM, ctime=time, mtime=time,
        atime=time, btime=time, comp_algo=parent.comp_algo, check_algo=parent.check_algo,
    )  # fmt: skip
    _add(dev, label, key, meta, [], [], entropy)
    return dev.pfs(label)


def snapshot(source: Pfs, label: bytes, entropy: Entropy) -> None:
    """Make a PFS that has what another has now. Takes as long for a large one as for a small one.

    Raises:
        KError: as `pfs_create`.

    Counterpart: hammer2_ioctl_pfs_snapshot.
    """
    dev = source.dev
    key = _new_label(dev, label)
    if dev.flush.pending:
        dev.flush.seal()
    mtid = source.trans_sub()
    root = source.root_chain
    # What is shared are the blockrefs as they were sealed; the change below is not part of it.
    keys, slots = list(root.keys), root.brefs()
    dev.chains.modify(root, mtid)
    root.meta.pfs_lsnap_tid = mtid
    meta = evolve(root.meta, pfs_subtype=int(PfsSubtype.SNAPSHOT), pfs_inum=source.inode_tid)
    _add(dev, label, key, meta, keys, slots, entropy)


def pfs_delete(dev: Dev, label: bytes) -> None:
    """Remove a PFS, which nobody may have in use.

    Raises:
        KError: ENOENT; EINVAL, it is the last one; EROFS, ENOSPC, EIO. Nothing has changed.

    Counterpart: hammer2_ioctl_pfs_delete.
    """
    dev.modifying()
    labels = dev.pfs_labels()
    if label not in labels:
        raise KError(ENOENT)
    if len(labels) == 1:
        raise KError(EINVAL, "a volume needs a PFS")
    root = dev.pfs(label).root_chain
    dev.chains.delete(dev.sroot, root.bref.key, 0)
    dev.forget_pfs(label)


def _new_label(dev: Dev, label: bytes) -> int:
    """The key of a new label."""
    dev.modifying()
    check_name(label)
    if label in dev.pfs_labels():
        raise KError(EEXIST)
    if dev.enospace() > 1:
        raise KError(ENOSPC)
    base = dirhash(label)
    used: list[Blockref] = []
    dev.chains.collect(dev.sroot, base, dirhash_last(base), used, KEY_MAX)
    key = probe(base, [bref.key for bref in used])
    if key is None:
        raise KError(ENOSPC)
    return key


def _add(
    dev: Dev, label: bytes, key: int, meta: InodeMeta, keys: list[int], slots: list[Blockref],
    entropy: Entropy,
) -> None:  # fmt: skip
    """Put a new root below the super-root. Counterpart: hammer2_inode_create_pfs."""
    meta.op_flags = int(OpFlag.PFSROOT)
    meta.pfs_type = int(PfsType.MASTER)
    meta.name_key, meta.name_len = key, len(label)
    meta.pfs_clid = UUID(bytes=entropy(16), version=4).bytes_le
    meta.pfs_fsid = UUID(bytes=entropy(16), version=4).bytes_le
    tid = max([bref.modify_tid for bref in slots], default=0)
    data_off = dev.freemap.alloc(_INODE, key, INODE_BYTES)
    bref = Blockref(
        _INODE, inode_methods(meta), key=key, flags=int(BrefFlag.PFSROOT), modify_tid=tid,
        mirror_tid=dev.chains.mirror_tid + 1, data_off=data_off,
    )  # fmt: skip
    chain = InodeChain(bref, meta, label, b"")
    table: list[Blockref | Chain] = [*slots]
    chain.keys, chain.slots = keys, table
    try:
        dev.chains.insert(dev.sroot, bref, tid, chain)
    except KError:
        dev.freemap.give_back(_INODE, data_off)
        raise
