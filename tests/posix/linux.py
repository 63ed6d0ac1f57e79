"""System calls that Python's `os` lacks, through the C library: plain functions raising OSError.

Only what the cases ask for is here. Each call checks the result and raises OSError with the errno,
as `os` does, so that `refuse` works on all of them alike.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_SYMLINK_FOLLOW = 0x400
AT_SYMLINK_NOFOLLOW = 0x100
UTIME_NOW = 0x3FFFFFFF
UTIME_OMIT = 0x3FFFFFFE
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_COLLAPSE, FALLOC_ZERO, FALLOC_INSERT = 1, 2, 8, 16, 32
IN_CREATE, IN_DELETE, IN_MODIFY, IN_MOVED_FROM, IN_MOVED_TO = 0x100, 0x200, 2, 0x40, 0x80
STATX_BASIC, STATX_BTIME, STATX_MNT_ID = 0x7FF, 0x800, 0x1000
AT_STATX_SYNC_AS_STAT, AT_STATX_FORCE_SYNC, AT_STATX_DONT_SYNC = 0, 0x2000, 0x4000
STATX_ATTR_IMMUTABLE, STATX_ATTR_APPEND, STATX_ATTR_NODUMP = 0x10, 0x20, 0x40
STATX_ATTR_MOUNT_ROOT = 0x2000
FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_IOC_GETVERSION = 0x80087601
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FIEMAP = 0xC020660B
FIGETBSZ = 2
FS_IMMUTABLE_FL, FS_APPEND_FL, FS_NODUMP_FL, FS_NOATIME_FL = 0x10, 0x20, 0x40, 0x80
FS_XFLAG_IMMUTABLE, FS_XFLAG_APPEND, FS_XFLAG_NODUMP = 8, 0x10, 0x80
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS = 1, 2, 4
RESOLVE_BENEATH, RESOLVE_IN_ROOT, RESOLVE_CACHED = 8, 16, 32
SYNC_WAIT_BEFORE, SYNC_WRITE, SYNC_WAIT_AFTER = 1, 2, 4
SYS_OPENAT2 = 437
SYS_GETDENTS64 = 217 if os.uname().machine == "x86_64" else 61

Name = str | bytes | os.PathLike[str]


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: object) -> int:
    """Call a C function that returns -1 and sets errno when it fails."""
    ctypes.set_errno(0)
    result = int(getattr(_libc(), name)(*args))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result


def renameat2(source: Name, target: Name, flags: int) -> None:
    """renameat2(2) relative to the working directory."""
    _call("renameat2", AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags)


def linkat(directory: int, source: Name, target: Name, flags: int, where: int = AT_FDCWD) -> None:
    """linkat(2): give `source` (below `directory`, or the descriptor itself) the name `target`."""
    _call("linkat", directory, os.fsencode(source), where, os.fsencode(target), flags)


def utimensat(path: Name, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    """utimensat(2) with raw (seconds, nanoseconds) pairs, UTIME_NOW and UTIME_OMIT included."""
    times = struct.pack("@qqqq", *atime, *mtime)
    _call("utimensat", AT_FDCWD, os.fsencode(path), times, flags)


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with a mode, which `os.posix_fallocate` does not have."""
    _call("fallocate", descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length))


class Statx(NamedTuple):
    """What statx(2) told; times in nanoseconds, and only those fields whose mask bit is set."""

    mask: int
    attributes: int
    attributes_mask: int
    nlink: int
    uid: int
    gid: int
    mode: int
    inode: int
    size: int
    blocks: int
    atime: int
    btime: int
    ctime: int
    mtime: int
    device: tuple[int, int]
    mount: int


def statx(
    path: Name, mask: int = STATX_BASIC | STATX_BTIME, flags: int = 0, directory: int = AT_FDCWD
) -> Statx:
    """statx(2); an empty path with AT_EMPTY_PATH asks about the descriptor `directory`."""
    buffer = ctypes.create_string_buffer(256)
    _call("statx", directory, os.fsencode(path), flags, ctypes.c_uint32(mask), buffer)
    got, _, attributes, nlink, uid, gid, mode = struct.unpack_from("=IIQIIIH", buffer, 0)
    inode, size, blocks, known = struct.unpack_from("=QQQQ", buffer, 32)
    times = (struct.unpack_from("=qI", buffer, at) for at in (64, 80, 96, 112))
    atime, btime, ctime, mtime = (seconds * 10**9 + rest for seconds, rest in times)
    device = struct.unpack_from("=II", buffer, 136)
    mount = struct.unpack_from("=Q", buffer, 144)[0]
    return Statx(
        got, attributes, known, nlink, uid, gid, mode, inode, size, blocks,
        atime, btime, ctime, mtime, device, mount,
    )  # fmt: skip


def birth_time(path: Name) -> int | None:
    """Return the birth time in nanoseconds by statx(2), or None when it is not reported."""
    found = statx(path, STATX_BTIME, AT_SYMLINK_NOFOLLOW)
    return found.btime if found.mask & STATX_BTIME else None


def openat2(path: Name, flags: int, resolve: int, directory: int = AT_FDCWD, mode: int = 0) -> int:
    """openat2(2): open with rules for how the path may be walked."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    buffer = ctypes.create_string_buffer(how, 24)
    return _call("syscall", SYS_OPENAT2, directory, os.fsencode(path), buffer, 24)


def file_flags(descriptor: int) -> int:
    """FS_IOC_GETFLAGS, as lsattr(1) asks."""
    return int(struct.unpack("=Ii", fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, bytes(8)))[0])


def set_file_flags(descriptor: int, flags: int) -> None:
    """FS_IOC_SETFLAGS, as chattr(1) does: all flags at once."""
    fcntl.ioctl(descriptor, FS_IOC_SETFLAGS, struct.pack("=Ii", flags, 0))


def sync_file_range(descriptor: int, start: int, length: int, flags: int) -> None:
    """sync_file_range(2): write out, and wait for, part of a file."""
    _call("sync_file_range", descriptor, ctypes.c_int64(start), ctypes.c_int64(length), flags)


def readahead(descriptor: int, start: int, length: int) -> None:
    """readahead(2): fill the page cache."""
    _call("readahead", descriptor, ctypes.c_int64(start), ctypes.c_size_t(length))


class Dirent(NamedTuple):
    """One record of getdents64(2); `cookie` is what telldir would return after it."""

    inode: int
    cookie: int
    kind: int
    name: bytes


def getdents(descriptor: int, size: int = 32768) -> list[Dirent]:
    """One getdents64(2) call on an open directory; an empty list means the end."""
    buffer = ctypes.create_string_buffer(size)
    count = _call("syscall", SYS_GETDENTS64, descriptor, buffer, size)
    return list(_dirents(buffer.raw[:count]))


def _dirents(data: bytes) -> Iterator[Dirent]:
    offset = 0
    while offset < len(data):
        inode, cookie, length, kind = struct.unpack_from("=QqHB", data, offset)
        name = data[offset + 19 : offset + length].split(b"\0", 1)[0]
        yield Dirent(inode, cookie, kind, name)
        offset += length


def read_directory(descriptor: int, size: int = 32768) -> list[Dirent]:
    """Read from the descriptor's position to the end with calls of `size` bytes."""
    entries: list[Dirent] = []
    while batch := getdents(descriptor, size):
        entries += batch
    return entries


def file_handle(path: Name) -> tuple[int, bytes]:
    """name_to_handle_at(2): the handle's (type, bytes)."""
    buffer = ctypes.create_string_buffer(struct.pack("@Ii", 128, 0), 136)
    mount = ctypes.c_int()
    _call("name_to_handle_at", AT_FDCWD, os.fsencode(path), buffer, ctypes.byref(mount), 0)
    length, kind = struct.unpack_from("@Ii", buffer, 0)
    return kind, buffer.raw[8 : 8 + length]


def open_by_handle(mount: int, handle: tuple[int, bytes], flags: int) -> int:
    """open_by_handle_at(2) on the file system that the descriptor `mount` stands on."""
    record = struct.pack("@Ii", len(handle[1]), handle[0]) + handle[1]
    return _call("open_by_handle_at", mount, ctypes.create_string_buffer(record), flags)


def inotify(path: Name, mask: int) -> int:
    """Return an inotify descriptor, not blocking, that watches `path` for `mask`."""
    descriptor = _call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)
    _call("inotify_add_watch", descriptor, os.fsencode(path), ctypes.c_uint32(mask))
    return descriptor


def inotify_events(descriptor: int) -> list[tuple[int, bytes]]:
    """Read what an inotify descriptor has queued, as (mask, name)."""
    data, offset, events = os.read(descriptor, 65536), 0, []
    while offset < len(data):
        _, mask, _, length = struct.unpack_from("=iIII", data, offset)
        name = data[offset + 16 : offset + 16 + length].rstrip(b"\0")
        events.append((mask, name))
        offset += 16 + length
    return events


def access(path: Name, mode: int) -> None:
    """access(2) that raises the errno, which `os.access` swallows."""
    _call("access", os.fsencode(path), mode)


def syncfs(descriptor: int) -> None:
    """syncfs(2): write out the file system that the descriptor stands on."""
    _call("syncfs", descriptor)
