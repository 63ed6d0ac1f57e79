"""What requests carry, as records: one for each structure that the kernel sends.

A record's leading fields are the structure's members; names and data that follow the structure on
the wire are further fields (``name``, ``data``). Reserved members are left out. The data of WRITE
and of a NOTIFY_REPLY is in no record: it begins at `const.WRITE_DATA` in the buffer the request
was read into, and there the file system takes it without a copy.

Times are seconds (signed: the kernel sends times before 1970 as two's complement) and nanoseconds.

Counterpart: the structures of linux/fuse.h whose names end in ``_in``.
Invariants: parse(emit(record)) == record for each of them; a layout has its C structure's size.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from .layout import Layout


class Header(NamedTuple):
    """The head of each request; `extlen` counts units of eight bytes.

    Counterpart: struct fuse_in_header (linux/fuse.h).
    """

    len: int
    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    total_extlen: int


class GetattrIn(NamedTuple):
    """GETATTR. Counterpart: struct fuse_getattr_in (linux/fuse.h)."""

    getattr_flags: int
    fh: int


class SetattrIn(NamedTuple):
    """SETATTR: `valid` says which fields are meant. Counterpart: struct fuse_setattr_in."""

    valid: int
    fh: int
    size: int
    lock_owner: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    uid: int
    gid: int


class SymlinkIn(NamedTuple):
    """SYMLINK: two names and no structure; the second is what the link says."""

    name: bytes
    target: bytes


class MknodIn(NamedTuple):
    """MKNOD: `rdev` as in `attr.decode_dev`. Counterpart: struct fuse_mknod_in."""

    mode: int
    rdev: int
    umask: int
    name: bytes


class MkdirIn(NamedTuple):
    """MKDIR. Counterpart: struct fuse_mkdir_in (linux/fuse.h)."""

    mode: int
    umask: int
    name: bytes


class RenameIn(NamedTuple):
    """RENAME. Counterpart: struct fuse_rename_in (linux/fuse.h)."""

    newdir: int
    name: bytes
    newname: bytes


class Rename2In(NamedTuple):
    """RENAME2, with Linux's RENAME_ flags. Counterpart: struct fuse_rename2_in."""

    newdir: int
    flags: int
    name: bytes
    newname: bytes


class LinkIn(NamedTuple):
    """LINK: another name for `oldnodeid`. Counterpart: struct fuse_link_in (linux/fuse.h)."""

    oldnodeid: int
    name: bytes


class OpenIn(NamedTuple):
    """OPEN and OPENDIR, with Linux's O_ flags. Counterpart: struct fuse_open_in."""

    flags: int
    open_flags: int


class CreateIn(NamedTuple):
    """CREATE and TMPFILE (whose name says nothing). Counterpart: struct fuse_create_in."""

    flags: int
    mode: int
    umask: int
    open_flags: int
    name: bytes


class ReadIn(NamedTuple):
    """READ, READDIR and READDIRPLUS. Counterpart: struct fuse_read_in (linux/fuse.h)."""

    fh: int
    offset: int
    size: int
    read_flags: int
    lock_owner: int
    flags: int


class WriteIn(NamedTuple):
    """WRITE; its data lies at `const.WRITE_DATA`. Counterpart: struct fuse_write_in."""

    fh: int
    offset: int
    size: int
    write_flags: int
    lock_owner: int
    flags: int


class ReleaseIn(NamedTuple):
    """RELEASE and RELEASEDIR. Counterpart: struct fuse_release_in (linux/fuse.h)."""

    fh: int
    flags: int
    release_flags: int
    lock_owner: int


class FsyncIn(NamedTuple):
    """FSYNC and FSYNCDIR. Counterpart: struct fuse_fsync_in (linux/fuse.h)."""

    fh: int
    fsync_flags: int


class FlushIn(NamedTuple):
    """FLUSH. Counterpart: struct fuse_flush_in (linux/fuse.h)."""

    fh: int
    lock_owner: int


class SetxattrIn(NamedTuple):
    """SETXATTR. `setxattr_flags` is zero where SETXATTR_EXT was not negotiated.

    Counterpart: struct fuse_setxattr_in (linux/fuse.h).
    """

    size: int
    flags: int
    setxattr_flags: int
    name: bytes
    data: bytes


class GetxattrIn(NamedTuple):
    """GETXATTR: size 0 asks how long the value is. Counterpart: struct fuse_getxattr_in."""

    size: int
    name: bytes


class ListxattrIn(NamedTuple):
    """LISTXATTR: size 0 asks how long the list is. Counterpart: struct fuse_getxattr_in."""

    size: int


class LkIn(NamedTuple):
    """GETLK, SETLK and SETLKW: Linux's F_RDLCK 0, F_WRLCK 1, F_UNLCK 2; `end` is included.

    Counterpart: struct fuse_lk_in with its struct fuse_file_lock (linux/fuse.h).
    """

    fh: int
    owner: int
    start: int
    end: int
    type: int
    pid: int
    lk_flags: int


class AccessIn(NamedTuple):
    """ACCESS. Counterpart: struct fuse_access_in (linux/fuse.h)."""

    mask: int


class InitIn(NamedTuple):
    """INIT. `flags` has all 64 bits, put together where the kernel said INIT_EXT.

    Counterpart: struct fuse_init_in (linux/fuse.h).
    """

    major: int
    minor: int
    max_readahead: int
    flags: int


class InterruptIn(NamedTuple):
    """INTERRUPT: the `unique` of the request to end. Counterpart: struct fuse_interrupt_in."""

    unique: int


class BmapIn(NamedTuple):
    """BMAP. Counterpart: struct fuse_bmap_in (linux/fuse.h)."""

    block: int
    blocksize: int


class IoctlIn(NamedTuple):
    """IOCTL: `data` is what the command's number says is passed in.

    Counterpart: struct fuse_ioctl_in (linux/fuse.h).
    """

    fh: int
    flags: int
    cmd: int
    arg: int
    in_size: int
    out_size: int
    data: bytes


class PollIn(NamedTuple):
    """POLL: `kh` names the waiter in a later notification. Counterpart: struct fuse_poll_in."""

    fh: int
    kh: int
    flags: int
    events: int


class NotifyRetrieveIn(NamedTuple):
    """NOTIFY_REPLY; its data lies at `const.WRITE_DATA`, its unique is the one we gave.

    Counterpart: struct fuse_notify_retrieve_in (linux/fuse.h).
    """

    offset: int
    size: int


class FallocateIn(NamedTuple):
    """FALLOCATE, with Linux's FALLOC_FL_ mode. Counterpart: struct fuse_fallocate_in."""

    fh: int
    offset: int
    length: int
    mode: int


class LseekIn(NamedTuple):
    """LSEEK: SEEK_DATA 3 or SEEK_HOLE 4. Counterpart: struct fuse_lseek_in (linux/fuse.h)."""

    fh: int
    offset: int
    whence: int


class CopyFileRangeIn(NamedTuple):
    """COPY_FILE_RANGE and COPY_FILE_RANGE_64. Counterpart: struct fuse_copy_file_range_in."""

    fh_in: int
    off_in: int
    nodeid_out: int
    fh_out: int
    off_out: int
    len: int
    flags: int


class SetupmappingIn(NamedTuple):
    """SETUPMAPPING, virtiofs only. Counterpart: struct fuse_setupmapping_in (linux/fuse.h)."""

    fh: int
    foffset: int
    len: int
    flags: int
    moffset: int


class StatxIn(NamedTuple):
    """STATX, with Linux's AT_ flags and STATX_ mask. Counterpart: struct fuse_statx_in."""

    getattr_flags: int
    fh: int
    sx_flags: int
    sx_mask: int


class ForgetIn(NamedTuple):
    """FORGET, as the tests see it; parsing answers the bare number.

    Counterpart: struct fuse_forget_in (linux/fuse.h).
    """

    nlookup: int


class ForgetOne(NamedTuple):
    """One of BATCH_FORGET, as the tests see it; parsing answers plain pairs.

    Counterpart: struct fuse_forget_one (linux/fuse.h).
    """

    nodeid: int
    nlookup: int


class RemovemappingOne(NamedTuple):
    """One of REMOVEMAPPING. Counterpart: struct fuse_removemapping_one (linux/fuse.h)."""

    moffset: int
    len: int


class Count(NamedTuple):
    """How many records follow. Counterpart: struct fuse_batch_forget_in and its like."""

    number: int


class InitInRaw(NamedTuple):
    """INIT as it lies on the wire. Counterpart: struct fuse_init_in (linux/fuse.h)."""

    major: int
    minor: int
    max_readahead: int
    flags: int
    flags2: int


class UnknownIn(NamedTuple):
    """A request whose opcode is not in the table: answer ENOSYS, once is enough."""

    opcode: int
    data: bytes


IN_HEADER: Final = Layout("fuse_in_header", Header, Struct("=IIQQIIIH2x"))
GETATTR_IN: Final = Layout("fuse_getattr_in", GetattrIn, Struct("=I4xQ"))
SETATTR_IN: Final = Layout("fuse_setattr_in", SetattrIn, Struct("=I4xQQQqqqIIII4xII4x"))
MKNOD_IN: Final = Layout("fuse_mknod_in", MknodIn, Struct("=III4x"))
MKDIR_IN: Final = Layout("fuse_mkdir_in", MkdirIn, Struct("=II"))
RENAME_IN: Final = Layout("fuse_rename_in", RenameIn, Struct("=Q"))
RENAME2_IN: Final = Layout("fuse_rename2_in", Rename2In, Struct("=QI4x"))
LINK_IN: Final = Layout("fuse_link_in", LinkIn, Struct("=Q"))
OPEN_IN: Final = Layout("fuse_open_in", OpenIn, Struct("=II"))
CREATE_IN: Final = Layout("fuse_create_in", CreateIn, Struct("=IIII"))
READ_IN: Final = Layout("fuse_read_in", ReadIn, Struct("=QQIIQI4x"))
WRITE_IN: Final = Layout("fuse_write_in", WriteIn, Struct("=QQIIQI4x"))
RELEASE_IN: Final = Layout("fuse_release_in", ReleaseIn, Struct("=QIIQ"))
FSYNC_IN: Final = Layout("fuse_fsync_in", FsyncIn, Struct("=QI4x"))
FLUSH_IN: Final = Layout("fuse_flush_in", FlushIn, Struct("=Q8xQ"))
SETXATTR_IN: Final = Layout("fuse_setxattr_in", SetxattrIn, Struct("=III4x"))
#: Without SETXATTR_EXT only the first two members are sent.
SETXATTR_IN_COMPAT: Final = Layout("fuse_setxattr_in", SetxattrIn, Struct("=II"))
GETXATTR_IN: Final = Layout("fuse_getxattr_in", GetxattrIn, Struct("=I4x"))
LISTXATTR_IN: Final = Layout("fuse_getxattr_in", ListxattrIn, Struct("=I4x"))
LK_IN: Final = Layout("fuse_lk_in", LkIn, Struct("=QQQQIII4x"))
ACCESS_IN: Final = Layout("fuse_access_in", AccessIn, Struct("=I4x"))
INIT_IN: Final = Layout("fuse_init_in", InitInRaw, Struct("=IIIII44x"))
INTERRUPT_IN: Final = Layout("fuse_interrupt_in", InterruptIn, Struct("=Q"))
BMAP_IN: Final = Layout("fuse_bmap_in", BmapIn, Struct("=QI4x"))
IOCTL_IN: Final = Layout("fuse_ioctl_in", IoctlIn, Struct("=QIIQII"))
POLL_IN: Final = Layout("fuse_poll_in", PollIn, Struct("=QQII"))
NOTIFY_RETRIEVE_IN: Final = Layout("fuse_notify_retrieve_in", NotifyRetrieveIn, Struct("=8xQI20x"))
FALLOCATE_IN: Final = Layout("fuse_fallocate_in", FallocateIn, Struct("=QQQI4x"))
LSEEK_IN: Final = Layout("fuse_lseek_in", LseekIn, Struct("=QQI4x"))
COPY_FILE_RANGE_IN: Final = Layout("fuse_copy_file_range_in", CopyFileRangeIn, Struct("=7Q"))
SETUPMAPPING_IN: Final = Layout("fuse_setupmapping_in", SetupmappingIn, Struct("=5Q"))
STATX_IN: Final = Layout("fuse_statx_in", StatxIn, Struct("=I4xQII"))
FORGET_IN: Final = Layout("fuse_forget_in", ForgetIn, Struct("=Q"))
FORGET_ONE: Final = Layout("fuse_forget_one", ForgetOne, Struct("=QQ"))
BATCH_FORGET_IN: Final = Layout("fuse_batch_forget_in", Count, Struct("=I4x"))
REMOVEMAPPING_IN: Final = Layout("fuse_removemapping_in", Count, Struct("=I"))
REMOVEMAPPING_ONE: Final = Layout("fuse_removemapping_one", RemovemappingOne, Struct("=QQ"))
#: SYNCFS says nothing; its structure is eight reserved bytes.
SYNCFS_IN: Final = Layout("fuse_syncfs_in", tuple, Struct("=8x"))
