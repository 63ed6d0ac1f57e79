"""Fifos, Unix sockets, device nodes."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from tests.posix.case import NotApplicable, case, refuse, same, table, true
from tests.posix.tools import ALICE, BOB, Child, as_user, give, mode_of, opened, put


@case()
def fifo_carries_bytes(d: Path) -> None:
    """What one process writes into a fifo another reads, and the end is seen."""
    os.mkfifo(d / "fifo")

    def write() -> None:
        with opened(d / "fifo", os.O_WRONLY) as f:
            os.write(f, b"through the fifo")

    child = Child(write)
    with opened(d / "fifo", os.O_RDONLY) as f:
        same(os.read(f, 100), b"through the fifo", "bytes")
        same(os.read(f, 100), b"", "end")
    child.result()


@case()
def fifo_without_a_reader(d: Path) -> None:
    """Opening a fifo for writing without waiting is ENXIO when nobody reads."""
    os.mkfifo(d / "fifo")
    refuse(errno.ENXIO, os.open, d / "fifo", os.O_WRONLY | os.O_NONBLOCK)


@case()
def fifo_has_no_size(d: Path) -> None:
    """A fifo shows size 0 while it holds bytes, and cannot be seeked."""
    os.mkfifo(d / "fifo")
    with opened(d / "fifo", os.O_RDWR | os.O_NONBLOCK) as f:
        os.write(f, b"abc")
        found = os.fstat(f)
        same((stat.S_ISFIFO(found.st_mode), found.st_size), (True, 0), "type and size")
        refuse(errno.ESPIPE, os.lseek, f, 0, os.SEEK_SET)


@case(root=True)
def fifo_permissions(d: Path) -> None:
    """A fifo's mode is checked at open."""
    os.mkfifo(d / "fifo")
    give(d / "fifo", ALICE, 0o600)
    refuse(errno.EACCES, as_user, BOB, os.open, d / "fifo", os.O_RDONLY | os.O_NONBLOCK)


@case()
def fifo_renamed_while_open(d: Path) -> None:
    """A renamed fifo still leads to its reader."""
    os.mkfifo(d / "a")
    with opened(d / "a", os.O_RDWR | os.O_NONBLOCK) as f:
        os.rename(d / "a", d / "b")
        with opened(d / "b", os.O_WRONLY | os.O_NONBLOCK) as g:
            os.write(g, b"x")
        same(os.read(f, 10), b"x", "bytes")


@case()
def fifo_umask(d: Path) -> None:
    """mkfifo obeys the umask."""
    os.umask(0o027)
    os.mkfifo(d / "fifo", 0o777)
    same(mode_of(d / "fifo"), 0o750, "mode")


@case()
def socket_stream(d: Path) -> None:
    """A Unix socket bound here is connected to and talked through."""
    os.chdir(d)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("sock")
        server.listen()
        true(stat.S_ISSOCK(os.stat("sock").st_mode), "no socket")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("sock")
            peer, _ = server.accept()
            with peer:
                client.sendall(b"hello")
                same(peer.recv(10), b"hello", "bytes")


@case()
def socket_datagram(d: Path) -> None:
    """Datagrams reach a socket by its name, and a renamed one by the new name."""
    os.chdir(d)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind("sock")
        os.rename("sock", "moved")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.sendto(b"hello", "moved")
        same(server.recv(10), b"hello", "bytes")


@case()
def socket_nobody_listens(d: Path) -> None:
    """Connecting to a left-over socket is ECONNREFUSED, to a file too; opening one ENXIO."""
    os.chdir(d)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("sock")
    put(Path("file"))
    with socket.socket(socket.AF_UNIX) as client:
        refuse(errno.ECONNREFUSED, client.connect, "sock")
        refuse(errno.ECONNREFUSED, client.connect, "file")
    refuse(errno.ENXIO, os.open, "sock", os.O_RDONLY)


@table({"null": (1, 3), "large": (300, 70_000), "zero": (0, 0)}, root=True)
def device_numbers(d: Path, major: int, minor: int) -> None:
    """A device node keeps its type and its number."""
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        path = d / f"dev-{kind}"
        _mknod(path, kind | 0o600, os.makedev(major, minor))
        found = path.stat()
        same(stat.S_IFMT(found.st_mode), kind, "type")
        same((os.major(found.st_rdev), os.minor(found.st_rdev)), (major, minor), "number")


@case(root=True)
def device_null_works(d: Path) -> None:
    """A node of /dev/null's number swallows writes, or is EACCES where nodev holds."""
    _mknod(d / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    if os.statvfs(d).f_flag & os.ST_NODEV:
        refuse(errno.EACCES, os.open, d / "null", os.O_WRONLY)
        return
    with opened(d / "null", os.O_RDWR) as f:
        same((os.write(f, b"abc"), os.read(f, 10)), (3, b""), "write and read")


@case()
def mknod_makes_files(d: Path) -> None:
    """mknod makes plain files, fifos and sockets for anybody."""
    os.mknod(d / "f", stat.S_IFREG | 0o640)
    os.mknod(d / "fifo", stat.S_IFIFO | 0o600)
    os.mknod(d / "sock", stat.S_IFSOCK | 0o600)
    kinds = [stat.S_IFMT((d / name).stat().st_mode) for name in ("f", "fifo", "sock")]
    same(kinds, [stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK], "types")
    same((mode_of(d / "f"), (d / "f").stat().st_size), (0o640, 0), "mode and size")


def _mknod(path: Path, mode: int, device: int) -> None:
    os.umask(0)
    try:
        os.mknod(path, mode, device)
    except PermissionError as error:
        raise NotApplicable("device nodes may not be made in this container") from error
