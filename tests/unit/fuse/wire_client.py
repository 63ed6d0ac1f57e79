"""What a host program does on the test mount: one of everything the protocol has.

Run as a program of its own with the mount as its argument; an assertion that fails is its answer.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import select
import signal
import struct
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
RENAME_EXCHANGE = 2
STATX_BTIME, AT_STATX_FORCE_SYNC = 0x800, 0x2000


def call(name: str, *args: object) -> int:
    """A C function that answers -1 and errno."""
    result = int(getattr(LIBC, name)(*args))
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return result


def names() -> None:
    """Making, finding, renaming and removing names."""
    os.mkdir("dir")
    os.symlink("dir/target", "link")
    assert os.readlink("link") == "dir/target"
    os.mkfifo("fifo", 0o640)
    os.mknod("plain", 0o100600)
    os.link("plain", "dir/second")
    os.rename("dir/second", "dir/third")
    call("renameat2", AT_FDCWD, b"link", AT_FDCWD, b"dir/third", RENAME_EXCHANGE)
    call("renameat2", AT_FDCWD, b"link", AT_FDCWD, b"dir/third", RENAME_EXCHANGE)
    assert not os.path.exists("missing")
    for number in range(24):
        os.close(os.open(f"dir/file with a number {number}", os.O_CREAT | os.O_WRONLY, 0o644))
    assert len(os.listdir("dir")) == 25
    with os.scandir("dir") as found:
        assert sum(entry.stat().st_nlink for entry in found) == 26
    for number in range(0, 24, 2):
        os.unlink(f"dir/file with a number {number}")
    os.mkdir("gone")
    os.rmdir("gone")


def attributes() -> None:
    """Everything that SETATTR can say, and what describes a file."""
    os.chmod("plain", 0o4711)
    os.chown("plain", 1, 2)
    os.utime("plain", ns=(-1_500_000_001, 1_700_000_000_123_456_789))
    assert os.stat("plain").st_atime_ns == -1_500_000_001
    os.utime("plain")
    os.truncate("plain", 12345)
    assert os.stat("plain").st_size == 12345
    os.setxattr("plain", "user.one", b"value")
    os.setxattr("plain", "user.empty", b"")
    assert os.getxattr("plain", "user.one") == b"value"
    assert sorted(os.listxattr("plain")) == ["user.empty", "user.one"]
    os.removexattr("plain", "user.one")
    os.access("plain", os.X_OK)
    assert os.statvfs(".").f_namemax == 255
    buffer = ctypes.create_string_buffer(256)
    call("statx", AT_FDCWD, b"plain", AT_STATX_FORCE_SYNC, STATX_BTIME, buffer)
    assert struct.unpack_from("=I", buffer, 0)[0] & STATX_BTIME
    assert struct.unpack_from("=q", buffer, 80)[0] > 1_600_000_000


def data() -> None:
    """Reading, writing and everything else on an open file."""
    fd = os.open("data", os.O_CREAT | os.O_RDWR, 0o644)
    os.write(fd, b"0123456789" * 1000)
    assert os.pread(fd, 4, 9998) == b"89"
    os.fsync(fd)
    os.fdatasync(fd)
    call("fallocate", fd, 0, ctypes.c_long(0), ctypes.c_long(20000))
    call("fallocate", fd, 3, ctypes.c_long(4), ctypes.c_long(8))
    assert os.fstat(fd).st_size == 20000
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 20000
    assert os.lseek(fd, 10, os.SEEK_DATA) == 10
    with mmap.mmap(fd, 4096) as view:
        view[0:5] = b"mmap!"
    other = os.open("copy", os.O_CREAT | os.O_RDWR, 0o644)
    assert os.copy_file_range(fd, other, 5000, 0, 0) == 5000
    os.close(other)
    assert fcntl.ioctl(fd, 0x80086601, bytes(8))[:1] == b"\x10"
    both = 3 << 30 | 8 << 16 | ord("d") << 8 | 1
    argument = bytearray(b"abcdefgh")
    assert fcntl.ioctl(fd, both, argument) == 7
    assert argument == b"hgfedcba"
    locks(fd)
    os.close(fd)
    os.close(os.open("data", os.O_WRONLY | os.O_TRUNC))
    temporary = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(temporary, b"no name")
    os.close(temporary)
    folder = os.open(".", os.O_DIRECTORY)
    os.fsync(folder)
    os.close(folder)


def locks(fd: int) -> None:
    """Both kinds of locks."""
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(fd, fcntl.LOCK_UN)
    fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 10, 5)
    fcntl.lockf(fd, fcntl.LOCK_EX, 10, 5)
    asked = struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 0, 0, 0)
    fcntl.fcntl(fd, fcntl.F_GETLK, asked)
    fcntl.lockf(fd, fcntl.LOCK_UN)


def blocked() -> None:
    """A read that a signal ends, through INTERRUPT; direct reads and writes; poll."""
    fd = os.open("direct-block", os.O_CREAT | os.O_RDWR)
    os.close(fd)
    fd = os.open("direct-block", os.O_RDWR)
    os.write(fd, b"direct")
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(InterruptedError))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        os.read(fd, 10)
    except InterruptedError:
        pass
    else:
        raise AssertionError("the read was not interrupted")
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    assert poller.poll(0) == []
    if not os.fork():
        tell("poll")
        os._exit(0)
    assert poller.poll(10_000)
    assert os.wait()[1] == 0
    os.close(fd)


def tell(what: str) -> None:
    """Have the server send a notification about ``note``."""
    os.setxattr("plain", "user.notify", what.encode())


def told() -> None:
    """Have the server tell the kernel things, and see that the kernel has understood."""
    fd = os.open("note", os.O_CREAT | os.O_RDWR)
    tell("store")
    assert os.pread(fd, 6, 0) == b"stored"
    for what in ("retrieve", "inval_inode", "inval_attr", "expire", "inval_entry", "resend"):
        tell(what)
    os.close(fd)
    for what in ("inc_epoch", "prune", "delete"):
        assert os.path.exists("note")
        tell(what)
    assert not os.path.exists("note")


def grouped() -> None:
    """A member of the directory's group makes files there: the request names the group."""
    os.mkdir("group", 0o777)
    os.chown("group", 0, 4242)
    os.chmod("group", 0o2777)
    if not os.fork():
        os.setgroups([4242])
        os.close(os.open("group/member", os.O_CREAT | os.O_WRONLY, 0o644))
        os.mkdir("group/folder")
        os.symlink("x", "group/link")
        os._exit(0)
    assert os.wait()[1] == 0


def main() -> None:
    """Do everything in the directory given."""
    os.chdir(sys.argv[1])
    os.umask(0o022)
    for part in (names, attributes, data, blocked, told):
        part()
    if os.geteuid() == 0:
        grouped()
    assert not os.path.exists("x" * 256)


main()
