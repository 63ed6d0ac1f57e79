"""ioctl(2) on files: chattr's flags and what they forbid, and the calls every file answers.

Flags are taken away at the end of each case, also of one that fails: nothing could be removed
otherwise. All that follows from them holds for root, too.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.posix import linux
from tests.posix.case import case, refuse, same, table, true
from tests.posix.tools import ALICE, BOB, as_user, folder, give, opened, put

IMMUTABLE, APPEND = linux.FS_IMMUTABLE_FL, linux.FS_APPEND_FL
NODUMP, NOATIME = linux.FS_NODUMP_FL, linux.FS_NOATIME_FL


@contextlib.contextmanager
def flagged(path: Path, flags: int) -> Iterator[int]:
    """Flags on a file or directory for a `with` block; yields a descriptor to change them by."""
    f = os.open(path, os.O_RDONLY)
    before = linux.file_flags(f)
    try:
        linux.set_file_flags(f, before | flags)
        yield f
    finally:
        linux.set_file_flags(f, before)
        os.close(f)


@table(
    {
        "nodump": (NODUMP, False), "noatime": (NOATIME, False),
        "immutable": (IMMUTABLE, True), "append": (APPEND, True),
        "several": (NODUMP | APPEND, True),
    }, root=True
)  # fmt: skip
def carried(d: Path, flags: int, privileged: bool) -> None:
    """Flags that are set are told, by another descriptor, too, and can be taken away."""
    path = put(d / "f", b"abc")
    with opened(path, os.O_RDONLY) as f:
        same(linux.file_flags(f) & (IMMUTABLE | APPEND | NODUMP | NOATIME), 0, "flags at first")
        with flagged(path, flags):
            same(linux.file_flags(f) & flags, flags, "flags")
            same(path.read_bytes(), b"abc", "bytes")
        same(linux.file_flags(f) & flags, 0, "flags afterwards")


@case(root=True)
def on_directories(d: Path) -> None:
    """A directory has flags as a file has."""
    place = folder(d / "dir")
    with flagged(place, NODUMP) as f:
        same(linux.file_flags(f) & NODUMP, NODUMP, "flags")


@case()
def unknown_flags(d: Path) -> None:
    """Flags that the file system cannot keep are EOPNOTSUPP, and the others stay as they are."""
    with opened(put(d / "f"), os.O_RDONLY) as f:
        before = linux.file_flags(f)
        for flag in (1, 2, 0x4000, 0x800000):
            refuse(errno.EOPNOTSUPP, linux.set_file_flags, f, before | flag)
        same(linux.file_flags(f), before, "flags")


@case(root=True)
def who_may(d: Path) -> None:
    """The owner sets nodump; immutable and append are root's; others set nothing: EPERM."""
    path = give(put(d / "f"), ALICE, 0o666)

    def change(flags: int) -> None:
        with opened(path, os.O_RDONLY) as f:
            linux.set_file_flags(f, flags)

    as_user(ALICE, change, NODUMP)
    refuse(errno.EPERM, as_user, ALICE, change, IMMUTABLE)
    refuse(errno.EPERM, as_user, ALICE, change, APPEND)
    refuse(errno.EPERM, as_user, BOB, change, 0)
    with opened(path, os.O_RDONLY) as f:
        same(linux.file_flags(f) & (NODUMP | IMMUTABLE | APPEND), NODUMP, "flags")


@case(root=True)
def owner_cannot_lift(d: Path) -> None:
    """What root has made immutable its owner cannot change back: EPERM."""
    path = give(put(d / "f"), ALICE)

    def lift() -> None:
        with opened(path, os.O_RDONLY) as f:
            linux.set_file_flags(f, 0)

    with flagged(path, IMMUTABLE) as f:
        refuse(errno.EPERM, as_user, ALICE, lift)
        same(linux.file_flags(f) & IMMUTABLE, IMMUTABLE, "flags")


def _open_to(flags: int) -> Callable[[Path], object]:
    return lambda path: os.close(os.open(path, flags))


def _rename_over(path: Path) -> None:
    path.with_name("source").write_bytes(b"")
    path.with_name("source").rename(path)


def _exchange(path: Path) -> None:
    path.with_name("second").write_bytes(b"")
    linux.renameat2(path.with_name("second"), path, linux.RENAME_EXCHANGE)


CHANGES: dict[str, Callable[[Path], object]] = {
    "open-write": _open_to(os.O_WRONLY),
    "open-rdwr": _open_to(os.O_RDWR),
    "open-truncate": _open_to(os.O_WRONLY | os.O_TRUNC),
    "open-append-truncate": _open_to(os.O_WRONLY | os.O_APPEND | os.O_TRUNC),
    "open-append": _open_to(os.O_WRONLY | os.O_APPEND),
    "truncate": lambda path: os.truncate(path, 1),
    "unlink": lambda path: os.unlink(path),
    "rename": lambda path: path.rename(path.with_name("other")),
    "rename-over": _rename_over,
    "exchange": _exchange,
    "link": lambda path: os.link(path, path.with_name("other")),
    "chmod": lambda path: path.chmod(0o600),
    "chown": lambda path: os.chown(path, 5, 5),
    "utime": lambda path: os.utime(path, ns=(5, 5)),
    "setxattr": lambda path: os.setxattr(path, "user.mark", b"1"),
}
APPENDING = {"open-append"}


@table({name: (name,) for name in CHANGES}, root=True)
def immutable_forbids(d: Path, name: str) -> None:
    """Nothing can be done to an immutable file, by root neither: EPERM."""
    path = put(d / "f", b"abc")
    with flagged(path, IMMUTABLE):
        before = path.stat()
        refuse(errno.EPERM, CHANGES[name], path)
        after = path.stat()
        same(
            (path.read_bytes(), after.st_mode, after.st_mtime_ns, after.st_nlink, after.st_uid),
            (b"abc", before.st_mode, before.st_mtime_ns, 1, before.st_uid), "the file afterwards",
        )  # fmt: skip
    CHANGES[name](path)


@table({name: (name,) for name in CHANGES}, root=True)
def append_only_forbids(d: Path, name: str) -> None:
    """An append-only file can be appended to, and nothing else: EPERM."""
    path = put(d / "f", b"abc")
    with flagged(path, APPEND):
        if name in APPENDING:
            with opened(path, os.O_WRONLY | os.O_APPEND) as f:
                os.write(f, b"def")
            same(path.read_bytes(), b"abcdef", "bytes")
        else:
            refuse(errno.EPERM, CHANGES[name], path)
            same((path.read_bytes(), path.stat().st_nlink), (b"abc", 1), "the file afterwards")
    CHANGES[name](path)


@case(root=True)
def touching_now(d: Path) -> None:
    """utimensat with both times now is allowed on append-only files, and not on immutable ones."""
    path = put(d / "f")
    with flagged(path, APPEND):
        os.utime(path)
    with flagged(path, IMMUTABLE):
        refuse(errno.EPERM, os.utime, path)


@case(root=True)
def held_open_before(d: Path) -> None:
    """A descriptor from before can neither truncate nor allocate in what is flagged since."""
    path = put(d / "f", b"abc")
    with opened(path, os.O_RDWR) as held:
        with flagged(path, APPEND):
            refuse(errno.EPERM, os.ftruncate, held, 1)
            punch = linux.FALLOC_PUNCH_HOLE | linux.FALLOC_KEEP_SIZE
            refuse(errno.EPERM, linux.fallocate, held, punch, 0, 1)
        with flagged(path, IMMUTABLE):
            refuse(errno.EPERM, linux.fallocate, held, 0, 0, 10_000)
        same(path.read_bytes(), b"abc", "bytes")


@case(root=True)
def append_only_descriptor_stays_so(d: Path) -> None:
    """O_APPEND cannot be taken off a descriptor of an append-only file: EPERM."""
    path = put(d / "f", b"abc")
    with flagged(path, APPEND), opened(path, os.O_WRONLY | os.O_APPEND) as f:
        flags = fcntl.fcntl(f, fcntl.F_GETFL)
        refuse(errno.EPERM, fcntl.fcntl, f, fcntl.F_SETFL, flags & ~os.O_APPEND)


@case(root=True)
def immutable_directory(d: Path) -> None:
    """No name comes or goes in an immutable directory; what is in it can be written."""
    place = folder(d / "dir")
    put(place / "f", b"abc")
    folder(place / "sub")
    put(d / "outside")
    with flagged(place, IMMUTABLE):
        refuse(errno.EPERM, put, place / "new")
        refuse(errno.EPERM, os.mkdir, place / "new")
        refuse(errno.EPERM, os.symlink, "x", place / "new")
        refuse(errno.EPERM, os.mkfifo, place / "new")
        refuse(errno.EPERM, os.unlink, place / "f")
        refuse(errno.EPERM, os.rmdir, place / "sub")
        refuse(errno.EPERM, os.rename, place / "f", place / "g")
        refuse(errno.EPERM, os.rename, place / "f", d / "g")
        refuse(errno.EPERM, os.rename, d / "outside", place / "g")
        refuse(errno.EPERM, os.link, d / "outside", place / "g")
        with opened(place / "f", os.O_WRONLY) as f:
            os.write(f, b"xyz")
    same((sorted(os.listdir(place)), (place / "f").read_bytes()), (["f", "sub"], b"xyz"), "")


@table({"empty": (False,), "full": (True,)}, root=True)
def immutable_directory_stays(d: Path, full: bool) -> None:
    """An immutable directory is not removed, moved nor replaced: EPERM, whatever is in it."""
    place = folder(d / "dir")
    if full:
        put(place / "f")
    folder(d / "other")
    with flagged(place, IMMUTABLE):
        refuse(errno.EPERM, os.rename, place, d / "moved")
        refuse(errno.EPERM, os.rename, d / "other", place)
        refuse(errno.EPERM, os.rmdir, place)


@case(root=True)
def append_only_directory(d: Path) -> None:
    """Names come, and do not go, in an append-only directory."""
    place = folder(d / "dir")
    put(place / "f", b"abc")
    with flagged(place, APPEND):
        put(place / "new")
        folder(place / "sub")
        os.link(place / "f", place / "second")
        refuse(errno.EPERM, os.unlink, place / "f")
        refuse(errno.EPERM, os.rmdir, place / "sub")
        refuse(errno.EPERM, os.rename, place / "f", place / "g")
    same(sorted(os.listdir(place)), ["f", "new", "second", "sub"], "names")


@case(root=True)
def through_every_name(d: Path) -> None:
    """Flags are the file's: they hold through each of its names."""
    path = put(d / "f")
    os.link(path, d / "g")
    with flagged(path, IMMUTABLE):
        refuse(errno.EPERM, os.unlink, d / "g")
        refuse(errno.EPERM, os.open, d / "g", os.O_WRONLY)
        with opened(d / "g", os.O_RDONLY) as f:
            same(linux.file_flags(f) & IMMUTABLE, IMMUTABLE, "flags")


@table(
    {"immutable": (IMMUTABLE, 0x10), "append": (APPEND, 0x20), "nodump": (NODUMP, 0x40)}, root=True
)
def told_by_statx(d: Path, flag: int, attribute: int) -> None:
    """statx tells the flags as attributes, and which attributes there can be."""
    path = put(d / "f")
    with flagged(path, flag):
        found = linux.statx(path)
        true(found.attributes_mask & attribute, "statx does not know the attribute")
        same(found.attributes & attribute, attribute, "attributes")
    same(linux.statx(path).attributes & attribute, 0, "attributes afterwards")


@table({"immutable": (IMMUTABLE, 8), "append": (APPEND, 0x10), "nodump": (NODUMP, 0x80)}, root=True)
def told_as_xflags(d: Path, flag: int, xflag: int) -> None:
    """FS_IOC_FSGETXATTR tells the same flags in its own numbers."""
    path = put(d / "f")
    with flagged(path, flag) as f:
        found = struct.unpack_from("=I", fcntl.ioctl(f, linux.FS_IOC_FSGETXATTR, bytes(28)))[0]
        same(found & xflag, xflag, "flags")


@case()
def how_much_is_left(d: Path) -> None:
    """FIONREAD on a file is what lies between the offset and the end."""
    with opened(put(d / "f", b"x" * 1000), os.O_RDONLY) as f:
        for offset, left in ((0, 1000), (400, 600), (1000, 0)):
            os.lseek(f, offset, os.SEEK_SET)
            answer = fcntl.ioctl(f, termios.FIONREAD, bytes(4))
            same(struct.unpack("=i", answer)[0], left, f"left from {offset}")


@case()
def block_size(d: Path) -> None:
    """FIGETBSZ tells a block size that is a power of two."""
    with opened(put(d / "f"), os.O_RDONLY) as f:
        size = struct.unpack("=i", fcntl.ioctl(f, linux.FIGETBSZ, bytes(4)))[0]
    true(size >= 512 and size & (size - 1) == 0, f"block size {size}")


@table(
    {
        "TCGETS": (termios.TCGETS, 60),
        "TIOCGWINSZ": (termios.TIOCGWINSZ, 8),
        "unknown": (0x5EAD, 8),
        "unknown-reading": (0x80085EAD, 8),
        "unknown-writing": (0x40085EAD, 8),
        "unknown-both": (0xC0405EAD, 64),
        "block-device-size": (0x80081272, 8),
    }
)
def unknown(d: Path, request: int, size: int) -> None:
    """What a plain file cannot be asked is ENOTTY, for directories, too."""
    for path in (put(d / "f"), folder(d / "dir")):
        with opened(path, os.O_RDONLY) as f:
            refuse(errno.ENOTTY, fcntl.ioctl, f, request, bytes(size))


@case()
def not_a_terminal(d: Path) -> None:
    """isatty and tcgetattr say that a file is no terminal."""
    with opened(put(d / "f"), os.O_RDWR) as f:
        true(not os.isatty(f), "a terminal")
        try:
            termios.tcgetattr(f)
        except termios.error as error:
            same(error.args[0], errno.ENOTTY, "errno")
        else:
            true(False, "tcgetattr succeeded")


@case()
def extents_and_generation(d: Path) -> None:
    """FIEMAP is EOPNOTSUPP; FS_IOC_GETVERSION is a number or ENOTTY, and both harm nothing."""
    with opened(put(d / "f", b"abc"), os.O_RDONLY) as f:
        refuse(errno.EOPNOTSUPP, fcntl.ioctl, f, linux.FS_IOC_FIEMAP, bytes(32))
        try:
            fcntl.ioctl(f, linux.FS_IOC_GETVERSION, bytes(8))
        except OSError as error:
            same(error.errno, errno.ENOTTY, "errno")
        same(os.read(f, 9), b"abc", "bytes")


@case()
def wrong_descriptors(d: Path) -> None:
    """O_PATH and closed descriptors are EBADF."""
    with opened(put(d / "f"), os.O_PATH) as f:
        refuse(errno.EBADF, linux.file_flags, f)
    refuse(errno.EBADF, linux.file_flags, f)
