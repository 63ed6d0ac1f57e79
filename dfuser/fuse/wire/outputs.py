"""What replies and notifications carry, as records: one for each structure we send.

The hot replies are not made from these records but by `reply` with one struct call; the records
are what the other direction answers, and what cold replies are made from.

Counterpart: the structures of linux/fuse.h whose names end in ``_out``, and those inside them.
Invariants: parse(emit(record)) == record for each of them; a layout has its C structure's size.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from .layout import Layout


class OutHeader(NamedTuple):
    """The head of each reply; `error` is 0, a negative errno, or a notification's code.

    Counterpart: struct fuse_out_header (linux/fuse.h).
    """

    len: int
    error: int
    unique: int


class Attr(NamedTuple):
    """Attributes of a file; `blocks` counts 512 bytes. Counterpart: struct fuse_attr."""

    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int


class EntryOut(NamedTuple):
    """A name's answer: the file, and how long name and attributes may be kept.

    Nodeid 0 says that there is no such name. Counterpart: struct fuse_entry_out (linux/fuse.h).
    """

    nodeid: int
    generation: int
    entry_valid: int
    attr_valid: int
    entry_valid_nsec: int
    attr_valid_nsec: int
    attr: Attr


class AttrOut(NamedTuple):
    """Attributes, and how long they may be kept. Counterpart: struct fuse_attr_out."""

    attr_valid: int
    attr_valid_nsec: int
    attr: Attr


class SxTime(NamedTuple):
    """A time of statx. Counterpart: struct fuse_sx_time (linux/fuse.h)."""

    tv_sec: int
    tv_nsec: int


class Statx(NamedTuple):
    """What statx(2) tells, bit for bit. Counterpart: struct fuse_statx (linux/fuse.h)."""

    mask: int
    blksize: int
    attributes: int
    nlink: int
    uid: int
    gid: int
    mode: int
    ino: int
    size: int
    blocks: int
    attributes_mask: int
    atime_sec: int
    atime_nsec: int
    btime_sec: int
    btime_nsec: int
    ctime_sec: int
    ctime_nsec: int
    mtime_sec: int
    mtime_nsec: int
    rdev_major: int
    rdev_minor: int
    dev_major: int
    dev_minor: int


class StatxOut(NamedTuple):
    """STATX. Counterpart: struct fuse_statx_out (linux/fuse.h)."""

    attr_valid: int
    attr_valid_nsec: int
    flags: int
    stat: Statx


class OpenOut(NamedTuple):
    """OPEN and OPENDIR, with FOPEN_ flags. Counterpart: struct fuse_open_out."""

    fh: int
    open_flags: int
    backing_id: int


class CreateOut(NamedTuple):
    """CREATE and TMPFILE: struct fuse_entry_out, then struct fuse_open_out."""

    entry: EntryOut
    open: OpenOut


class WriteOut(NamedTuple):
    """WRITE and COPY_FILE_RANGE. Counterpart: struct fuse_write_out (linux/fuse.h)."""

    size: int


class StatfsOut(NamedTuple):
    """STATFS. Counterpart: struct fuse_statfs_out with its struct fuse_kstatfs."""

    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    bsize: int
    namelen: int
    frsize: int


class GetxattrOut(NamedTuple):
    """GETXATTR and LISTXATTR asked with size 0. Counterpart: struct fuse_getxattr_out."""

    size: int


class LkOut(NamedTuple):
    """GETLK: the lock in the way, or F_UNLCK. Counterpart: struct fuse_lk_out."""

    start: int
    end: int
    type: int
    pid: int


class InitOutRaw(NamedTuple):
    """INIT as it lies on the wire. Counterpart: struct fuse_init_out (linux/fuse.h)."""

    major: int
    minor: int
    max_readahead: int
    flags: int
    max_background: int
    congestion_threshold: int
    max_write: int
    time_gran: int
    max_pages: int
    map_alignment: int
    flags2: int
    max_stack_depth: int
    request_timeout: int


class BmapOut(NamedTuple):
    """BMAP. Counterpart: struct fuse_bmap_out (linux/fuse.h)."""

    block: int


class IoctlIovec(NamedTuple):
    """Memory of the caller that an ioctl wants. Counterpart: struct fuse_ioctl_iovec."""

    base: int
    len: int


class IoctlOut(NamedTuple):
    """IOCTL: the result and what is passed out, or the memory to retry with.

    Counterpart: struct fuse_ioctl_out (linux/fuse.h).
    """

    result: int
    flags: int
    in_iovs: int
    out_iovs: int
    data: bytes
    iovecs: tuple[IoctlIovec, ...]


class PollOut(NamedTuple):
    """POLL. Counterpart: struct fuse_poll_out (linux/fuse.h)."""

    revents: int


class LseekOut(NamedTuple):
    """LSEEK. Counterpart: struct fuse_lseek_out (linux/fuse.h)."""

    offset: int


class CopyFileRangeOut(NamedTuple):
    """COPY_FILE_RANGE_64. Counterpart: struct fuse_copy_file_range_out (linux/fuse.h)."""

    bytes_copied: int


class Dirent(NamedTuple):
    """An entry of a listing; `off` is the cookie that continues behind it.

    Counterpart: struct fuse_dirent (linux/fuse.h).
    """

    ino: int
    off: int
    type: int
    name: bytes


class DirentRaw(NamedTuple):
    """An entry of a listing as it lies on the wire. Counterpart: struct fuse_dirent."""

    ino: int
    off: int
    namelen: int
    type: int


OUT_HEADER: Final = Layout("fuse_out_header", OutHeader, Struct("=IiQ"))
ATTR: Final = Layout("fuse_attr", Attr, Struct("=QQQqqq10I"))
#: The members before the attributes.
ENTRY_HEAD: Final = Layout("fuse_entry_out", EntryOut, Struct("=QQQQII"))
ATTR_HEAD: Final = Layout("fuse_attr_out", AttrOut, Struct("=QI4x"))
SX_TIME: Final = Layout("fuse_sx_time", SxTime, Struct("=qI4x"))
STATX: Final = Layout("fuse_statx", Statx, Struct("=IIQIIIH2xQQQQqI4xqI4xqI4xqI4xIIII112x"))
STATX_HEAD: Final = Layout("fuse_statx_out", StatxOut, Struct("=QII16x"))
OPEN_OUT: Final = Layout("fuse_open_out", OpenOut, Struct("=QIi"))
WRITE_OUT: Final = Layout("fuse_write_out", WriteOut, Struct("=I4x"))
STATFS_OUT: Final = Layout("fuse_kstatfs", StatfsOut, Struct("=QQQQQIII28x"))
GETXATTR_OUT: Final = Layout("fuse_getxattr_out", GetxattrOut, Struct("=I4x"))
LK_OUT: Final = Layout("fuse_file_lock", LkOut, Struct("=QQII"))
INIT_OUT: Final = Layout("fuse_init_out", InitOutRaw, Struct("=IIIIHHIIHHIIH22x"))
BMAP_OUT: Final = Layout("fuse_bmap_out", BmapOut, Struct("=Q"))
IOCTL_IOVEC: Final = Layout("fuse_ioctl_iovec", IoctlIovec, Struct("=QQ"))
IOCTL_OUT: Final = Layout("fuse_ioctl_out", IoctlOut, Struct("=iIII"))
POLL_OUT: Final = Layout("fuse_poll_out", PollOut, Struct("=I4x"))
LSEEK_OUT: Final = Layout("fuse_lseek_out", LseekOut, Struct("=Q"))
COPY_FILE_RANGE_OUT: Final = Layout("fuse_copy_file_range_out", CopyFileRangeOut, Struct("=Q"))
DIRENT: Final = Layout("fuse_dirent", DirentRaw, Struct("=QQII"))
