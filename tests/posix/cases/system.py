"""The file system as a whole: statfs, handles, notification, killed callers, chroot, flags."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import struct
from pathlib import Path

from tests.posix import linux
from tests.posix.case import (
    NotApplicable,
    case,
    eventually,
    refuse,
    same,
    settled,
    table,
    true,
    until_refused,
)
from tests.posix.tools import Child, Signpost, folder, opened, put, undisturbed


@case()
def statfs_fields(d: Path) -> None:
    """Sizes, free counts and the longest name make sense together."""
    found = os.statvfs(d)
    true(found.f_bsize >= 512 and found.f_frsize >= 512, "block sizes")
    true(found.f_blocks >= found.f_bfree >= found.f_bavail > 0, "blocks")
    true(found.f_files >= found.f_ffree >= found.f_favail > 0, "files")
    same(found.f_namemax, 255, "longest name")


@case(limit=60.0)
@undisturbed
def statfs_counts_blocks(d: Path) -> None:
    """8 MiB written take about that from the free blocks, and removing gives them back."""
    before = os.statvfs(d)
    with opened(put(d / "f"), os.O_WRONLY) as f:
        os.write(f, b"x" * (8 << 20))
        os.fsync(f)
    taken = (before.f_bfree - os.statvfs(d).f_bfree) * before.f_frsize
    true((7 << 20) <= taken <= (12 << 20), f"{taken} bytes taken")
    os.unlink(d / "f")
    # FUSE tells a server of the last close, and that it may forget the file, a moment later.
    eventually(
        lambda: (before.f_bfree - os.statvfs(d).f_bfree) * before.f_frsize < (2 << 20),
        "the bytes are given back",
    )


@case(limit=60.0)
@undisturbed
def statfs_counts_files(d: Path) -> None:
    """100 files take 100 from the free inodes."""
    before = settled(lambda: os.statvfs(d).f_ffree)
    for n in range(100):
        put(d / f"f{n}")
    same(before - os.statvfs(d).f_ffree, 100, "inodes taken")


@case()
def inodes_are_unique(d: Path) -> None:
    """500 files, directories and links have 500 different inode numbers."""
    for n in range(200):
        put(d / f"f{n}")
        folder(d / f"d{n}")
    for n in range(100):
        (d / f"s{n}").symlink_to("x")
    same(len({path.lstat().st_ino for path in d.iterdir()}), 500, "inode numbers")


@case()
def one_device(d: Path) -> None:
    """Everything in the tree has the directory's st_dev."""
    put(folder(d / "dir") / "f")
    same({p.lstat().st_dev for p in d.rglob("*")}, {d.stat().st_dev}, "devices")


@case(root=True)
def file_handles(d: Path) -> None:
    """A handle taken by name opens the same file after a rename; removed it becomes ESTALE."""
    put(d / "f", b"abc")
    try:
        handle = linux.file_handle(d / "f")
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EOVERFLOW):
            raise NotApplicable("the file system gives no handles") from error
        raise
    os.rename(d / "f", d / "g")
    with opened(d, os.O_RDONLY) as mount:
        f = linux.open_by_handle(mount, handle, os.O_RDONLY)
        same(os.read(f, 3), b"abc", "bytes")
        os.close(f)
        os.unlink(d / "g")
        # FUSE keeps the inode until the RELEASE of the last open has been answered.
        until_refused(errno.ESTALE, linux.open_by_handle, mount, handle, os.O_RDONLY)


@case()
def inotify_tells_changes(d: Path) -> None:
    """inotify tells creation, change, rename and removal by the host."""
    mask = (
        linux.IN_CREATE
        | linux.IN_DELETE
        | linux.IN_MODIFY
        | linux.IN_MOVED_FROM
        | linux.IN_MOVED_TO
    )
    watch = linux.inotify(d, mask)
    put(d / "f", b"abc")
    os.rename(d / "f", d / "g")
    os.unlink(d / "g")
    want = [
        (linux.IN_CREATE, b"f"),
        (linux.IN_MODIFY, b"f"),
        (linux.IN_MOVED_FROM, b"f"),
        (linux.IN_MOVED_TO, b"g"),
        (linux.IN_DELETE, b"g"),
    ]
    same(linux.inotify_events(watch), want, "events")
    os.close(watch)


@case(root=True)
def chroot(d: Path) -> None:
    """A process can make a directory its root; .. does not lead out of it."""
    put(folder(d / "root") / "f", b"inside")

    def enter() -> bytes:
        os.chroot(d / "root")
        os.chdir("/")
        return Path("/../../f").read_bytes()

    same(Child(enter).result(), b"inside", "bytes")


@case()
def flags_by_ioctl(d: Path) -> None:
    """FS_IOC_GETFLAGS and SETFLAGS (chattr) carry a flag there and back."""
    with opened(put(d / "f"), os.O_RDONLY) as f:
        buffer = bytearray(8)
        fcntl.ioctl(f, linux.FS_IOC_GETFLAGS, buffer)
        flags = struct.unpack_from("=I", buffer)[0] | linux.FS_NODUMP_FL
        fcntl.ioctl(f, linux.FS_IOC_SETFLAGS, struct.pack("=Ii", flags, 0))
        fcntl.ioctl(f, linux.FS_IOC_GETFLAGS, buffer)
        true(struct.unpack_from("=I", buffer)[0] & linux.FS_NODUMP_FL, "the flag is not kept")


@case()
def unknown_ioctl(d: Path) -> None:
    """An ioctl that nobody knows is ENOTTY."""
    with opened(put(d / "f"), os.O_RDONLY) as f:
        refuse((errno.ENOTTY, errno.EINVAL), fcntl.ioctl, f, 0x5EAD, b"")


@case()
def poll_is_ready(d: Path) -> None:
    """A plain file is always ready for select."""
    with opened(put(d / "f", b"x"), os.O_RDWR) as f:
        ready = select.select([f], [f], [], 0)
    same((len(ready[0]), len(ready[1])), (1, 1), "ready to read and to write")


@table({"SIGKILL": (signal.SIGKILL,), "SIGTERM": (signal.SIGTERM,)}, limit=30.0)
def killed_readers_harm_nobody(d: Path, number: signal.Signals) -> None:
    """30 readers killed in the middle of reading leave the file system as it was."""
    path = put(d / "f", os.urandom(1 << 20))
    started = Signpost()

    def read() -> None:
        first = True
        while True:
            with opened(path, os.O_RDONLY) as f:
                os.posix_fadvise(f, 0, 0, os.POSIX_FADV_DONTNEED)
                while os.read(f, 65536):
                    pass
            if first:
                started.raise_()
                first = False

    for _ in range(10):
        readers = [Child(read) for _ in range(3)]
        for _ in readers:
            started.wait()
        for reader in readers:
            same(reader.kill(number), -number, "exit status")
    same(len(path.read_bytes()), 1 << 20, "bytes")


@case(limit=30.0)
def killed_writers_leave_whole_records(d: Path) -> None:
    """Writers killed while they append leave nothing but whole records.

    The records divide a page: a kill may take effect between the pages of one write, also on the
    host's own file systems.
    """
    path, started = put(d / "f"), Signpost()

    def write() -> None:
        with opened(path, os.O_WRONLY | os.O_APPEND) as f:
            for n in range(1_000_000):
                os.write(f, b"r" * 127 + b"\n")
                if n == 20:
                    started.raise_()

    for _ in range(5):
        writer = Child(write)
        started.wait()
        writer.kill()
    data = path.read_bytes()
    same(len(data) % 128, 0, "bytes of a broken record")
    same(set(data.splitlines()), {b"r" * 127}, "records")


@case(limit=30.0)
def many_processes_at_once(d: Path) -> None:
    """Twenty processes that create, write, read and remove do not disturb each other."""

    def work(number: int) -> None:
        place = folder(d / f"p{number}")
        for n in range(30):
            put(place / f"f{n}", f"{number}-{n}".encode())
        for n in range(30):
            same((place / f"f{n}").read_bytes(), f"{number}-{n}".encode(), "bytes")
            os.unlink(place / f"f{n}")
        os.rmdir(place)

    for child in [Child(work, number) for number in range(20)]:
        child.result()
    same(os.listdir(d), [], "names left")


@case()
def sync_calls(d: Path) -> None:
    """fsync, fdatasync and sync_file_range's cousin syncfs succeed."""
    with opened(put(d / "f", b"abc"), os.O_RDWR) as f:
        os.fsync(f)
        os.fdatasync(f)
        linux.syncfs(f)
