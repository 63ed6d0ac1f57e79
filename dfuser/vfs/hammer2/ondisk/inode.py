"""The inode: 1024 bytes with a file's attributes, its old name, and its first data or blockrefs.

::

    000-0FF  meta        attributes, see `InodeMeta`
    100-1FF  filename    label of a PFS; ``0x%016x`` of the number for ordinary inodes
    200-3FF  either up to 512 bytes of data (op_flags has DIRECTDATA: small files, symlinks)
             or a blockset, four blockrefs at which the inode's own tree begins

Times are microseconds since 1970. Owners are UUIDs; the number of a UNIX user or group is in
bytes 12 to 15, the rest is zero. ``mode`` has permission bits only, the type of the file is an
`ObjType` of its own. ``name_key`` and ``filename`` say under which key the inode lies; names that
users see are directory entries elsewhere, and ``nlinks`` counts them.

Fields of the root of a PFS: ``pfs_type``, ``pfs_subtype``, ``pfs_clid`` (which cluster),
``pfs_fsid`` (which member), ``pfs_inum`` (highest inode number given out) and ``pfs_lsnap_tid``
(transaction of the last snapshot).

Counterpart: struct hammer2_inode_meta, struct hammer2_inode_data (vfs/hammer2/hammer2_disk.h),
    hammer2_to_unix_xid, hammer2_guid_to_uuid, hammer2_get_vtype (hammer2_subr.c).
Token/lock order: takes none. An `InodeMeta` may be changed by who holds it; an `InodeData` is
    what was read.
Invariants: reserved fields are kept as they were read and written back.
"""

from __future__ import annotations

from operator import attrgetter
from struct import Struct
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from attrs import define, fields

from dfuser.libkern.stat import VType
from dfuser.vfs.hammer2.ondisk.blockref import Buffer
from dfuser.vfs.hammer2.ondisk.const import (
    EMBEDDED_BYTES,
    INODE_BYTES,
    INODE_MAXNAME,
    INODE_VERSION_ONE,
    KEY_MAX,
    ObjType,
    OpFlag,
)

INODE_META: Final = Struct("<H2B3I4Q16s16s2BHI5QH6BQ16s16s7Q24s")
FILENAME_OFFSET: Final = 0x100
U_OFFSET: Final = 0x200
NO_UUID: Final = bytes(16)

_VTYPES: Final = MappingProxyType(
    {
        ObjType.DIRECTORY: VType.VDIR,
        ObjType.REGFILE: VType.VREG,
        ObjType.FIFO: VType.VFIFO,
        ObjType.CDEV: VType.VCHR,
        ObjType.BDEV: VType.VBLK,
        ObjType.SOFTLINK: VType.VLNK,
        ObjType.SOCKET: VType.VSOCK,
    }
)
_OBJTYPES: Final = MappingProxyType({vtype: obj for obj, vtype in _VTYPES.items()})


@define
class InodeMeta:
    """A file's attributes, in the order of the bytes.

    Counterpart: struct hammer2_inode_meta (hammer2_disk.h).
    """

    version: int = INODE_VERSION_ONE
    reserved02: int = 0
    pfs_subtype: int = 0
    uflags: int = 0
    rmajor: int = 0
    rminor: int = 0
    ctime: int = 0
    mtime: int = 0
    atime: int = 0
    btime: int = 0
    uid: bytes = NO_UUID
    gid: bytes = NO_UUID
    type: int = 0
    op_flags: int = 0
    cap_flags: int = 0
    mode: int = 0
    inum: int = 0
    size: int = 0
    nlinks: int = 0
    iparent: int = 0
    name_key: int = 0
    name_len: int = 0
    ncopies: int = 0
    comp_algo: int = 0
    target_type: int = 0
    check_algo: int = 0
    pfs_nmasters: int = 0
    pfs_type: int = 0
    pfs_inum: int = 0
    pfs_clid: bytes = NO_UUID
    pfs_fsid: bytes = NO_UUID
    data_quota: int = 0
    unusedB8: int = 0
    inode_quota: int = 0
    unusedC8: int = 0
    pfs_lsnap_tid: int = 0
    reservedD8: int = 0
    decrypt_check: int = 0
    reservedE8: bytes = bytes(24)

    def pack(self) -> bytes:
        """The record as 256 bytes.

        Raises:
            struct.error: a number does not fit its member; that is the caller's bug.
        """
        return INODE_META.pack(*_values(self))

    @property
    def unix_uid(self) -> int:
        """The owner's number."""
        return to_unix_xid(self.uid)

    @property
    def unix_gid(self) -> int:
        """The group's number."""
        return to_unix_xid(self.gid)

    @property
    def vtype(self) -> VType:
        """The kind of vnode; VBAD for kinds that have none.

        Counterpart: hammer2_get_vtype (hammer2_subr.c).
        """
        return get_vtype(self.type)

    @property
    def directdata(self) -> bool:
        """Whether the file's data lies in the inode."""
        return bool(self.op_flags & OpFlag.DIRECTDATA)


class InodeData(NamedTuple):
    """A whole inode as it lies on the media.

    Counterpart: struct hammer2_inode_data (hammer2_disk.h).
    """

    meta: InodeMeta
    filename: bytes
    u: bytes

    @property
    def name(self) -> bytes:
        """The part of filename that counts: the label of a PFS."""
        return self.filename[: self.meta.name_len]

    def pack(self) -> bytes:
        """The record as 1024 bytes.

        Raises:
            struct.error: a number does not fit its member; that is the caller's bug.
            ValueError: filename or u is longer than its place.
        """
        if len(self.filename) > INODE_MAXNAME or len(self.u) > EMBEDDED_BYTES:
            raise ValueError("an inode has 256 bytes for its name and 512 for data")
        name = self.filename.ljust(INODE_MAXNAME, b"\0")
        return b"".join((self.meta.pack(), name, self.u.ljust(EMBEDDED_BYTES, b"\0")))


_values: Final[attrgetter[Any]] = attrgetter(*[field.name for field in fields(InodeMeta)])


def unpack_meta(data: Buffer, offset: int = 0) -> InodeMeta:
    """The attributes that lie at a place of a buffer.

    Raises:
        struct.error: the buffer ends before they do.
    """
    return InodeMeta(*INODE_META.unpack_from(data, offset))


def unpack_inode(data: bytes) -> InodeData:
    """The inode in a block.

    Raises:
        ValueError: the block does not have 1024 bytes.
    """
    if len(data) != INODE_BYTES:
        raise ValueError(f"an inode has {INODE_BYTES} bytes, not {len(data)}")
    return InodeData(
        InodeMeta(*INODE_META.unpack_from(data)), data[FILENAME_OFFSET:U_OFFSET], data[U_OFFSET:]
    )


def to_unix_xid(uuid: bytes) -> int:
    """The user or group number in a UUID. Counterpart: hammer2_to_unix_xid (hammer2_subr.c)."""
    return int.from_bytes(uuid[12:16], "little")


def guid_to_uuid(number: int) -> bytes:
    """The UUID for a user or group number. Counterpart: hammer2_guid_to_uuid."""
    return bytes(12) + number.to_bytes(4, "little")


def time_to_nsec(xtime: int) -> int:
    """Nanoseconds since 1970 for a time of the media; what is before 1970 is negative.

    Counterpart: hammer2_time_to_timespec (hammer2_subr.c), which makes a far future of it.
    """
    return (xtime - (xtime >> 63 << 64)) * 1000


def nsec_to_time(nsec: int) -> int:
    """The time of the media for nanoseconds since 1970, rounded down to microseconds.

    Counterpart: hammer2_timespec_to_time (hammer2_subr.c).
    """
    return nsec // 1000 & KEY_MAX


def get_vtype(objtype: int) -> VType:
    """The kind of vnode for an ObjType; VBAD for those that have none."""
    return _VTYPES.get(objtype, VType.VBAD)  # type: ignore[call-overload, no-any-return]


def get_obj_type(vtype: VType) -> ObjType:
    """The ObjType for a kind of vnode. Counterpart: hammer2_get_obj_type (hammer2_subr.c)."""
    return _OBJTYPES.get(vtype, ObjType.UNKNOWN)
