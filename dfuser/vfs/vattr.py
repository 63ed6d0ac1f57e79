"""Vnode attributes and the records that VOPs exchange.

Counterpart: struct vattr (sys/vnode.h), struct dirent (sys/dirent.h), struct statfs (sys/mount.h).
Differs from DragonFly: times are nanoseconds since the epoch in one int; an attribute that is not
set is None (VNOVAL there).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from dfuser.libkern.stat import VType


class Vattr:
    """Attributes of a vnode, or a request to change some.

    From ``vop_getattr`` every field is set. For ``vop_setattr`` and the creating VOPs a field that
    is None is left alone. ``atime_now`` and ``mtime_now`` ask for the file system's own current
    time (UTIME_NOW), which a writer who is not the owner may also request.
    """

    __slots__ = (
        "atime",
        "atime_now",
        "blocksize",
        "btime",
        "bytes",
        "ctime",
        "fileid",
        "flags",
        "fsid",
        "gen",
        "gid",
        "mode",
        "mtime",
        "mtime_now",
        "nlink",
        "rmajor",
        "rminor",
        "size",
        "type",
        "uid",
    )

    def __init__(
        self,
        type: VType = VType.VNON,  # noqa: A002 - DragonFly's va_type
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime: int | None = None,
        mtime: int | None = None,
        ctime: int | None = None,
        flags: int | None = None,
        rmajor: int = 0,
        rminor: int = 0,
        nlink: int = 0,
        fileid: int = 0,
        fsid: int = 0,
        gen: int = 0,
        blocksize: int = 4096,
        bytes: int = 0,  # noqa: A002 - DragonFly's va_bytes
        btime: int | None = None,
        atime_now: bool = False,
        mtime_now: bool = False,
    ) -> None:
        self.type = type
        #: Permission bits with setuid, setgid and sticky; the file type is in ``type``.
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = size
        self.atime = atime
        self.mtime = mtime
        self.ctime = ctime
        self.btime = btime
        self.flags = flags
        self.rmajor = rmajor
        self.rminor = rminor
        self.nlink = nlink
        #: The file system's own inode number.
        self.fileid = fileid
        self.fsid = fsid
        self.gen = gen
        self.blocksize = blocksize
        #: Storage held by the file, in bytes.
        self.bytes = bytes
        self.atime_now = atime_now
        self.mtime_now = mtime_now


class Dirent(NamedTuple):
    """One directory entry of ``vop_readdir``."""

    ino: int
    """The file system's inode number."""
    dtype: int
    """DT_* (libkern.stat)."""
    name: bytes
    cookie: int
    """Give it back to continue after this entry. Stable while the entry lives; never reused."""
    vattr: Vattr | None = None
    """The entry's attributes, where the file system has them at hand and was asked (``plus``)."""


class Statfs(NamedTuple):
    """Figures of a mounted file system; block counts in units of ``bsize`` bytes."""

    bsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    favail: int
    namemax: int = 255


class IO:
    """ioflag bits of vop_read and vop_write. Counterpart: IO_* (sys/vnode.h)."""

    UNIT: Final = 0x0001
    APPEND: Final = 0x0002
    SYNC: Final = 0x0004
    NODELOCKED: Final = 0x0008
    NDELAY: Final = 0x0010
    DIRECT: Final = 0x0100
    ASYNC: Final = 0x0400
    NOATIME: Final = 0x0800
    """The read leaves the access time alone (O_NOATIME). Not in DragonFly."""
