"""File types, mode bits, file flags and directory entry types.

A mode is one number: four bits of file type on top, then set-id and sticky bits, then
nine permission bits. The VFS thinks in `VType` instead of the four bits, and a directory
entry carries a third, smaller spelling (DT_*). This module holds the three and the ways
between them.

File flags (``chflags``) are BSD's own: an immutable file refuses even root, an
append-only one grows but never changes. UF_ flags belong to the owner, SF_ flags to the
super-user.

Counterpart: sys/stat.h, sys/dirent.h, enum vtype (sys/vfscache.h), iftovt_tab and
    vttoif_tab (kern/vfs_subr.c).
Differs from DragonFly: VDATABASE is absent; no file system here has it, nor has Linux.
Token/lock order: takes none.
Invariants: S_IF* and the nine permission bits have the same values on Linux, so modes
    cross the FUSE edge untranslated; for every VType with a format,
    iftovt(vttoif(t)) is t.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

# File type part of a mode.
S_IFMT: Final = 0o170000
S_IFIFO: Final = 0o010000
S_IFCHR: Final = 0o020000
S_IFDIR: Final = 0o040000
S_IFBLK: Final = 0o060000
S_IFREG: Final = 0o100000
S_IFLNK: Final = 0o120000
S_IFSOCK: Final = 0o140000
S_IFWHT: Final = 0o160000

# Set-id, sticky and permission bits.
S_ISUID: Final = 0o4000
S_ISGID: Final = 0o2000
S_ISVTX: Final = 0o1000
S_ISTXT: Final = S_ISVTX
S_IRWXU: Final = 0o700
S_IRUSR: Final = 0o400
S_IWUSR: Final = 0o200
S_IXUSR: Final = 0o100
S_IRWXG: Final = 0o070
S_IRGRP: Final = 0o040
S_IWGRP: Final = 0o020
S_IXGRP: Final = 0o010
S_IRWXO: Final = 0o007
S_IROTH: Final = 0o004
S_IWOTH: Final = 0o002
S_IXOTH: Final = 0o001
ACCESSPERMS: Final = 0o777
ALLPERMS: Final = 0o7777
DEFFILEMODE: Final = 0o666

S_BLKSIZE: Final = 512
"""Unit of st_blocks."""

# What a VOP is asked to permit (VREAD and friends are mode bits in owner position).
VREAD: Final = 0o400
VWRITE: Final = 0o200
VEXEC: Final = 0o100

# File flags the owner may change.
UF_SETTABLE: Final = 0x0000_FFFF
UF_NODUMP: Final = 0x0000_0001
UF_IMMUTABLE: Final = 0x0000_0002
UF_APPEND: Final = 0x0000_0004
UF_OPAQUE: Final = 0x0000_0008
UF_NOUNLINK: Final = 0x0000_0010
UF_NOHISTORY: Final = 0x0000_0040
UF_CACHE: Final = 0x0000_0080
UF_XLINK: Final = 0x0000_0100

# File flags only the super-user may change.
SF_SETTABLE: Final = 0xFFFF_0000
SF_ARCHIVED: Final = 0x0001_0000
SF_IMMUTABLE: Final = 0x0002_0000
SF_APPEND: Final = 0x0004_0000
SF_NOUNLINK: Final = 0x0010_0000
SF_NOHISTORY: Final = 0x0040_0000
SF_NOCACHE: Final = 0x0080_0000
SF_XLINK: Final = 0x0100_0000

# Either of the pair; what the checks of the VFS ask for.
OPAQUE: Final = UF_OPAQUE
APPEND: Final = UF_APPEND | SF_APPEND
IMMUTABLE: Final = UF_IMMUTABLE | SF_IMMUTABLE
NOUNLINK: Final = UF_NOUNLINK | SF_NOUNLINK

# tv_nsec values of utimensat: take the clock's time, leave the old time.
UTIME_NOW: Final = -1
UTIME_OMIT: Final = -2

# Types in directory entries: the format bits of a mode, shifted down by 12.
DT_UNKNOWN: Final = 0
DT_FIFO: Final = 1
DT_CHR: Final = 2
DT_DIR: Final = 4
DT_BLK: Final = 6
DT_REG: Final = 8
DT_LNK: Final = 10
DT_SOCK: Final = 12
DT_WHT: Final = 14


class VType(IntEnum):
    """What a vnode is.

    Counterpart: enum vtype (sys/vfscache.h).
    """

    VNON = 0
    VREG = 1
    VDIR = 2
    VBLK = 3
    VCHR = 4
    VLNK = 5
    VSOCK = 6
    VFIFO = 7
    VBAD = 8


VNON: Final = VType.VNON
VREG: Final = VType.VREG
VDIR: Final = VType.VDIR
VBLK: Final = VType.VBLK
VCHR: Final = VType.VCHR
VLNK: Final = VType.VLNK
VSOCK: Final = VType.VSOCK
VFIFO: Final = VType.VFIFO
VBAD: Final = VType.VBAD

# Indexed by the format bits of a mode shifted down by 12, which is a DT_ value.
_IFTOVT: Final = (
    VNON, VFIFO, VCHR, VNON, VDIR, VNON, VBLK, VNON,
    VREG, VNON, VLNK, VNON, VSOCK, VNON, VNON, VBAD,
)  # fmt: skip

# Indexed by VType.
_VTTOIF: Final = (0, S_IFREG, S_IFDIR, S_IFBLK, S_IFCHR, S_IFLNK, S_IFSOCK, S_IFIFO, S_IFMT)


def iftovt(mode: int) -> VType:
    """Vnode type of a mode's format bits; VNON for formats the VFS has no type for."""
    return _IFTOVT[(mode & S_IFMT) >> 12]


def vttoif(vtype: VType) -> int:
    """Format bits (S_IF*) of a vnode type; 0 for VNON, all bits for VBAD."""
    return _VTTOIF[vtype]


def makeimode(vtype: VType, perm: int) -> int:
    """Join a vnode type and permission bits to a full mode.

    Counterpart: MAKEIMODE (sys/vnode.h).
    """
    return _VTTOIF[vtype] | (perm & ALLPERMS)


def vtype_to_dt(vtype: VType) -> int:
    """Directory entry type (DT_*) of a vnode type; DT_UNKNOWN for VNON and VBAD."""
    return _VTTOIF[vtype] >> 12 if vtype is not VBAD else DT_UNKNOWN


def S_ISDIR(mode: int) -> bool:
    """Whether the mode is a directory's."""
    return mode & S_IFMT == S_IFDIR


def S_ISREG(mode: int) -> bool:
    """Whether the mode is a regular file's."""
    return mode & S_IFMT == S_IFREG


def S_ISLNK(mode: int) -> bool:
    """Whether the mode is a symbolic link's."""
    return mode & S_IFMT == S_IFLNK


def S_ISCHR(mode: int) -> bool:
    """Whether the mode is a character device's."""
    return mode & S_IFMT == S_IFCHR


def S_ISBLK(mode: int) -> bool:
    """Whether the mode is a block device's."""
    return mode & S_IFMT == S_IFBLK


def S_ISFIFO(mode: int) -> bool:
    """Whether the mode is a named pipe's."""
    return mode & S_IFMT == S_IFIFO


def S_ISSOCK(mode: int) -> bool:
    """Whether the mode is a local socket's."""
    return mode & S_IFMT == S_IFSOCK


_RWX: Final = ("---", "--x", "-w-", "-wx", "r--", "r-x", "rw-", "rwx")
_TYPE_LETTER: Final = "?pc?d?b?-?l?s?w?"


def strmode(mode: int) -> str:
    """Print a mode as ls(1) does: ten characters such as ``drwxr-xr-t``.

    Counterpart: strmode(3).
    """
    text = list(_RWX[mode >> 6 & 7] + _RWX[mode >> 3 & 7] + _RWX[mode & 7])
    for bit, place, letter in ((S_ISUID, 2, "s"), (S_ISGID, 5, "s"), (S_ISVTX, 8, "t")):
        if mode & bit:
            text[place] = letter if text[place] == "x" else letter.upper()
    return _TYPE_LETTER[(mode & S_IFMT) >> 12] + "".join(text)
