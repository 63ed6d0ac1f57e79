"""Every operation, through real system calls on a real mount. Users: test_bridge_users.py."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.rig import Rig, append, eventually, fresh_place, next_tick, rig

pytestmark = pytest.mark.mount

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
SECOND = 1_000_000_000
LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def world(transport: str) -> Iterator[Rig]:
    """One mount for all tests of this file; at the end nothing was ever reported as a bug."""
    with rig() as made:
        yield made
        assert made.stat("s.context.failed") == 0, made.stat("k.msgbuf.text()")
        made.end()


@pytest.fixture
def place(world: Rig) -> Iterator[Path]:
    """A fresh directory on the mount, open to everybody."""
    with fresh_place(world) as path:
        yield path


def fails(number: int, *call: object) -> None:
    """``call[0](*call[1:])`` fails with this errno."""
    function = call[0]
    assert callable(function)
    with pytest.raises(OSError) as caught:
        function(*call[1:])
    assert caught.value.errno == number, caught.value


def renameat2(old: Path, new: Path, flags: int) -> None:
    """The system call, which Python has no name for."""
    if LIBC.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


def utimensat(path: Path, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """The system call with the special nanosecond values."""
    times = (ctypes.c_long * 4)(*atime, *mtime)
    if LIBC.utimensat(-100, os.fsencode(path), times, 0):
        raise OSError(ctypes.get_errno(), "utimensat")


# --- names -------------------------------------------------------------------------------------


def test_rename_flags(place: Path) -> None:
    """What if a rename must not replace, or exchanges two names, also of different types?"""
    a, b = place / "a", place / "b"
    a.write_text("A")
    b.write_text("B")
    with pytest.raises(FileExistsError):
        renameat2(a, b, RENAME_NOREPLACE)
    renameat2(a, b, RENAME_EXCHANGE)
    assert (a.read_text(), b.read_text()) == ("B", "A")
    renameat2(a, place / "c", RENAME_NOREPLACE)
    assert not a.exists()
    d = place / "d"
    d.mkdir()
    (d / "in").touch()
    renameat2(d, b, RENAME_EXCHANGE)
    assert (b / "in").exists()
    assert d.read_text() == "A"
    with pytest.raises(FileNotFoundError):
        renameat2(b, place / "none", RENAME_EXCHANGE)
    fails(errno.EINVAL, renameat2, d, b, RENAME_EXCHANGE | RENAME_NOREPLACE)


def test_rename_replaces(place: Path) -> None:
    """What if the new name exists, is a full directory, or is of the other kind?"""
    for name in ("d1", "d2", "full"):
        (place / name).mkdir()
    (place / "full" / "x").touch()
    (place / "f").write_text("f")
    os.rename(place / "d1", place / "d2")
    fails(errno.ENOTEMPTY, os.rename, place / "d2", place / "full")
    fails(errno.EISDIR, os.rename, place / "f", place / "d2")
    fails(errno.ENOTDIR, os.rename, place / "d2", place / "f")
    fails(errno.EINVAL, os.rename, place / "d2", place / "d2" / "below")
    (place / "g").write_text("g")
    os.rename(place / "f", place / "g")
    assert (place / "g").read_text() == "f"


def test_hard_links_and_counts(place: Path) -> None:
    """What if a file has several names: is the count true through each of them, ctime moved?"""
    a, b = place / "a", place / "b"
    a.write_text("x")
    before = a.stat().st_ctime_ns
    next_tick()
    os.link(a, b)
    assert a.stat().st_nlink == b.stat().st_nlink == 2
    assert a.stat().st_ino == b.stat().st_ino
    assert a.stat().st_ctime_ns > before
    a.unlink()
    assert b.stat().st_nlink == 1
    with pytest.raises(PermissionError):
        os.link(place, place / "dirlink")
    with pytest.raises(FileExistsError):
        os.link(b, place / "b")


def test_directory_link_counts(place: Path) -> None:
    """What if directories come, move and go: does every parent count its children?"""
    assert place.stat().st_nlink == 2
    (place / "a" / "b").mkdir(parents=True)
    (place / "c").mkdir()
    assert place.stat().st_nlink == 4
    assert (place / "a").stat().st_nlink == 3
    os.rename(place / "a" / "b", place / "c" / "b")
    assert ((place / "a").stat().st_nlink, (place / "c").stat().st_nlink) == (2, 3)
    (place / "a").rmdir()
    assert place.stat().st_nlink == 3


def test_dot_and_dotdot(place: Path) -> None:
    """What if a listing is read raw: are . and .. in it, with the numbers and types stat gives?"""
    (place / "d").mkdir()
    found = raw_listing(place / "d")
    assert found[b"."] == ((place / "d").stat().st_ino, stat.S_IFDIR >> 12)
    assert found[b".."] == (place.stat().st_ino, stat.S_IFDIR >> 12)
    assert os.stat(place / "d" / "..").st_ino == place.stat().st_ino


def raw_listing(path: Path) -> dict[bytes, tuple[int, int]]:
    """Name to (d_ino, d_type), by readdir(3)."""

    class Dirent(ctypes.Structure):
        _fields_ = (
            ("d_ino", ctypes.c_uint64), ("d_off", ctypes.c_int64), ("d_reclen", ctypes.c_ushort),
            ("d_type", ctypes.c_ubyte), ("d_name", ctypes.c_char * 256),
        )  # fmt: skip

    LIBC.opendir.restype = ctypes.c_void_p
    LIBC.readdir.restype = ctypes.POINTER(Dirent)
    handle = ctypes.c_void_p(LIBC.opendir(os.fsencode(path)))
    found = {}
    while entry := LIBC.readdir(handle):
        found[entry.contents.d_name] = (entry.contents.d_ino, entry.contents.d_type)
    LIBC.closedir(handle)
    return found


def test_listing_tells_types_and_numbers(place: Path, world: Rig) -> None:
    """What if a directory holds every kind of file: d_type and d_ino are those of lstat?"""
    (place / "f").touch()
    (place / "d").mkdir()
    (place / "l").symlink_to("f")
    os.mkfifo(place / "p")
    os.mknod(place / "s", stat.S_IFSOCK | 0o600)
    for base in (place, world.path):
        for name, (ino, kind) in raw_listing(base).items():
            if name not in (b".", b"..") and not os.path.ismount(base / os.fsdecode(name)):
                is_ = os.lstat(base / os.fsdecode(name))
                assert (ino, kind) == (is_.st_ino, stat.S_IFMT(is_.st_mode) >> 12), name


def test_parent_of_an_inner_root_is_above(world: Rig) -> None:
    """What if .. is asked of the root of a mount inside: by path and by listing?"""
    assert raw_listing(world.path / "tmp")[b".."][0] == world.path.stat().st_ino
    assert os.stat(world.path / "tmp" / "..").st_ino == world.path.stat().st_ino


def test_names_of_255_and_256_bytes(place: Path) -> None:
    """What if a name is as long as allowed, or one byte longer, in every call that makes one?"""
    long, longer = "x" * 255, "y" * 256
    (place / long).touch()
    assert (place / long).exists()
    assert long in os.listdir(place)
    makers = (
        lambda: (place / longer).touch(), lambda: (place / longer).mkdir(),
        lambda: (place / longer).symlink_to("t"), lambda: os.link(place / long, place / longer),
        lambda: os.rename(place / long, place / longer), lambda: os.mkfifo(place / longer),
        lambda: os.stat(place / longer),
    )  # fmt: skip
    for maker in makers:
        fails(errno.ENAMETOOLONG, maker)


def test_names_that_are_not_utf8(place: Path) -> None:
    """What if a name is any bytes but slash and NUL?"""
    name = bytes(byte for byte in range(1, 256) if byte != 0x2F)[:255]
    path = os.path.join(os.fsencode(place), name)
    with open(path, "wb") as out:
        out.write(b"ok")
    assert os.listdir(os.fsencode(place)) == [name]
    with open(path, "rb") as back:
        assert back.read() == b"ok"
    os.unlink(path)


def test_symlinks(place: Path) -> None:
    """What if links dangle, loop, or are nearly 4 KiB long?"""
    (place / "l").symlink_to("nowhere")
    assert os.readlink(place / "l") == "nowhere"
    assert (place / "l").lstat().st_size == 7
    (place / "loop").symlink_to("loop")
    fails(errno.ELOOP, open, place / "loop")
    target = "t/" * 500
    (place / "long").symlink_to(target)
    assert os.readlink(place / "long") == target


def test_fifo_and_socket(place: Path) -> None:
    """What if a FIFO and a socket of the mount are used by host processes?"""
    fifo = place / "fifo"
    os.mkfifo(fifo, 0o640)
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(fifo, os.O_WRONLY)
    os.write(writer, b"through")
    assert os.read(reader, 10) == b"through"
    os.close(reader)
    os.close(writer)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(place / "sock"))
        server.listen()
        client.connect(str(place / "sock"))
        client.send(b"hello")
        other, _ = server.accept()
        assert other.recv(10) == b"hello"
        other.close()
    assert stat.S_ISSOCK((place / "sock").stat().st_mode)


def test_device_nodes_are_stored_and_closed(place: Path) -> None:
    """What if a device node is made: its number is kept, the host's device stays shut?"""
    if os.geteuid():
        pytest.skip("only root makes devices")
    os.mknod(place / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert (place / "null").stat().st_rdev == os.makedev(1, 3)
    fails(errno.EACCES, open, place / "null")


# --- data --------------------------------------------------------------------------------------


def test_unlinked_open_files(place: Path) -> None:
    """What if a file loses its last name while it is open, mapped, and opened again by number?"""
    fd = os.open(place / "f", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"alive")
    os.unlink(place / "f")
    assert os.fstat(fd).st_nlink == 0
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    os.pwrite(again, b"A", 0)
    assert os.pread(fd, 10, 0) == b"Alive"
    os.ftruncate(fd, 3)
    os.fchmod(fd, 0o600)
    os.close(fd)
    assert os.pread(again, 10, 0) == b"Ali"
    os.close(again)
    assert os.listdir(place) == []


def test_append_by_several_writers(place: Path) -> None:
    """What if four processes append records to one file at once?"""
    path = place / "log"
    children = []
    for who in range(4):
        pid = os.fork()
        if not pid:
            try:
                fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                for number in range(200):
                    os.write(fd, b"%d:%04d\n" % (who, number))
            finally:
                os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    lines = path.read_bytes().splitlines()
    assert sorted(lines) == sorted(b"%d:%04d" % (w, n) for w in range(4) for n in range(200))
    for who in b"0123":
        mine = [line for line in lines if line[0] == who]
        assert mine == sorted(mine)


def test_append_and_mapping_of_one_descriptor(place: Path) -> None:
    """What if dirty pages of a mapping are written back through a descriptor opened to append?"""
    fd = os.open(place / "f", os.O_RDWR | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"0" * 4096)
    with mmap.mmap(fd, 4096) as view:
        view[:5] = b"PAGES"
        view.flush()
    os.write(fd, b"end")
    os.close(fd)
    data = (place / "f").read_bytes()
    assert len(data) == 4099
    assert data[:5] == b"PAGES"
    assert data[-3:] == b"end"


def test_direct_io(place: Path) -> None:
    """What if O_DIRECT is aligned, unaligned, past the end, and mixed with the page cache?"""
    path = place / "f"
    path.write_bytes(bytes(range(256)) * 64)
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    page = mmap.mmap(-1, 8192)
    assert os.preadv(fd, [memoryview(page)[:4096]], 4096) == 4096
    assert page[:4096] == bytes(range(256)) * 16
    assert os.preadv(fd, [memoryview(page)[1:101]], 7) == 100
    assert page[1:101] == (bytes(range(256)) * 2)[7:107]
    assert os.preadv(fd, [memoryview(page)[:4096]], 16384) == 0
    page[:4] = b"DRCT"
    assert os.pwritev(fd, [memoryview(page)[:4]], 3) == 4
    assert path.read_bytes()[3:7] == b"DRCT"
    page[:4096] = b"z" * 4096
    assert os.pwritev(fd, [memoryview(page)[:4096]], 16384) == 4096
    assert path.stat().st_size == 20480
    with mmap.mmap(fd, 4096) as view:
        assert view[3:7] == b"DRCT"
        view[3:7] = b"MMAP"
        view.flush()
    assert os.preadv(fd, [memoryview(page)[:4096]], 0) == 4096
    assert page[3:7] == b"MMAP"
    os.close(fd)


def test_truncate(place: Path) -> None:
    """What if a file shrinks and grows, by path and by descriptor, and past every limit?"""
    path = place / "f"
    path.write_bytes(b"x" * 10000)
    os.truncate(path, 5000)
    assert path.stat().st_size == 5000
    os.truncate(path, 9000)
    assert path.read_bytes() == b"x" * 5000 + b"\0" * 4000
    fd = os.open(path, os.O_RDWR)
    os.ftruncate(fd, 10)
    assert os.pread(fd, 100, 0) == b"x" * 10
    os.close(fd)
    open(path, "w").close()
    assert path.stat().st_size == 0
    fails(errno.EINVAL, os.truncate, path, -1)
    fails(errno.EISDIR, os.truncate, place, 0)
    os.truncate(path, (1 << 63) - 1)
    assert path.stat().st_size == (1 << 63) - 1
    os.truncate(path, 3)
    assert path.read_bytes() == b"\0" * 3


def test_mapped_writes(place: Path) -> None:
    """What if a shared mapping is written: do read(2), a private mapping and mtime see it?"""
    path = place / "f"
    path.write_bytes(b"." * 8192)
    before = path.stat().st_mtime_ns
    next_tick()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 8192) as shared:
        with mmap.mmap(file.fileno(), 8192, access=mmap.ACCESS_COPY) as private:
            shared[100:104] = b"MARK"
            assert os.pread(file.fileno(), 4, 100) == b"MARK"
            private[:7] = b"private"
            os.pwrite(file.fileno(), b"W", 5000)
            assert shared[5000:5001] == b"W"
        shared.flush()
    assert path.read_bytes()[100:104] == b"MARK"
    assert path.read_bytes()[:7] == b"." * 7
    assert path.stat().st_mtime_ns > before


def test_sparse_file(place: Path) -> None:
    """What if one byte is written far away: holes read as zeroes and take no room?"""
    fd = os.open(place / "f", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"!", 1 << 33)
    assert os.pread(fd, 4, 1 << 20) == b"\0" * 4
    assert os.fstat(fd).st_blocks <= 128
    os.close(fd)


def test_existing_file_is_opened_as_create_says(place: Path) -> None:
    """What if O_CREAT meets a file: with O_EXCL, O_TRUNC, a directory, O_DIRECTORY?"""
    path = place / "f"
    path.write_text("old")
    fails(errno.EEXIST, os.open, path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    assert path.read_text() == "old"
    os.close(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY))
    assert path.read_text() == ""
    fails(errno.EISDIR, os.open, place, os.O_CREAT | os.O_WRONLY)
    fails(errno.ENOTDIR, os.open, path, os.O_DIRECTORY)


# --- attributes --------------------------------------------------------------------------------


def test_statfs_moves(world: Rig, place: Path) -> None:
    """What if files come and go: do the block and inode figures follow, and come back?"""
    before = os.statvfs(world.path)
    assert before.f_namemax == 255
    (place / "big").write_bytes(b"x" * (1 << 20))
    for number in range(20):
        (place / f"n{number}").touch()
    during = os.statvfs(world.path)
    assert before.f_bfree - during.f_bfree >= (1 << 20) // during.f_frsize
    assert before.f_ffree - during.f_ffree == 21
    assert 0 < during.f_bavail <= during.f_bfree < during.f_blocks
    shutil.rmtree(place)
    place.mkdir()
    eventually(lambda: os.statvfs(world.path).f_ffree == before.f_ffree, "inodes come back")
    assert os.statvfs(world.path).f_bfree >= before.f_bfree - 2


def test_nanosecond_times(place: Path) -> None:
    """What if times are set to the nanosecond, to now, or left alone?"""
    path = place / "f"
    path.touch()
    given = 1_234_567_890_123_456_789
    os.utime(path, ns=(given, given + 1))
    is_ = path.stat()
    assert (is_.st_atime_ns, is_.st_mtime_ns) == (given, given + 1)
    utimensat(path, (0, UTIME_OMIT), (7, 8))
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (given, 7 * SECOND + 8)
    utimensat(path, (5, 6), (0, UTIME_OMIT))
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (5 * SECOND + 6, 7 * SECOND + 8)
    utimensat(path, (0, UTIME_NOW), (0, UTIME_OMIT))
    assert path.stat().st_atime_ns > given
    assert path.stat().st_mtime_ns == 7 * SECOND + 8
    os.utime(path, ns=(-5, -5))
    assert path.stat().st_mtime_ns == -5


def test_times_follow_changes(place: Path) -> None:
    """What if a file or directory changes: which of its three times move?"""
    path = place / "f"
    path.write_text("x")
    old = 1_000_000_000 * SECOND
    for change, moved in (
        (lambda: append(path), "mc"),
        (lambda: path.chmod(0o600), "c"),
        (lambda: os.truncate(path, 0), "mc"),
        (lambda: os.rename(path, place / "f2") or os.rename(place / "f2", path), "c"),
    ):
        os.utime(path, ns=(old, old))
        ctime = path.stat().st_ctime_ns
        next_tick()
        change()
        is_ = path.stat()
        assert (is_.st_mtime_ns != old) == ("m" in moved)
        assert (is_.st_ctime_ns > ctime) == ("c" in moved)
    for change in (
        lambda: (place / "n").touch(),
        lambda: os.rename(place / "n", place / "m"),
        lambda: (place / "m").unlink(),
        lambda: (place / "d").mkdir(),
        lambda: (place / "d").rmdir(),
        lambda: os.link(path, place / "l"),
        lambda: (place / "s").symlink_to("x"),
    ):
        os.utime(place, ns=(old, old))
        change()
        assert place.stat().st_mtime_ns > old


def test_atime_by_the_relatime_rules(world: Rig, place: Path) -> None:
    """What if a file is read whose atime is older than mtime, newer, or a day old?"""
    path = place / "f"
    path.write_text("x")

    def read_uncached() -> int:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.read(fd, 10)
        os.close(fd)
        return path.stat().st_atime_ns

    now = path.stat().st_mtime_ns
    os.utime(path, ns=(now - SECOND, now))
    next_tick()
    first = read_uncached()
    assert first > now
    assert read_uncached() == first
    day = 24 * 3600 * SECOND
    os.utime(path, ns=(now - day - SECOND, now - 2 * day))
    assert read_uncached() > now


def test_extended_attributes(place: Path) -> None:
    """What if attributes are made, replaced, listed, measured, and asked for with small buffers?"""
    path = place / "f"
    path.touch()
    os.setxattr(path, "user.a", b"1", os.XATTR_CREATE)
    fails(errno.EEXIST, os.setxattr, path, "user.a", b"2", os.XATTR_CREATE)
    os.setxattr(path, "user.a", b"two", os.XATTR_REPLACE)
    fails(errno.ENODATA, os.setxattr, path, "user.b", b"x", os.XATTR_REPLACE)
    os.setxattr(path, "user.empty", b"")
    os.setxattr(path, "user.big", b"z" * 60000)
    assert os.getxattr(path, "user.a") == b"two"
    assert os.getxattr(path, "user.empty") == b""
    assert os.getxattr(path, "user.big") == b"z" * 60000
    assert sorted(os.listxattr(path)) == ["user.a", "user.big", "user.empty"]
    name, buffer = os.fsencode(path), ctypes.create_string_buffer(2)
    assert LIBC.getxattr(name, b"user.a", None, 0) == 3
    assert LIBC.getxattr(name, b"user.a", buffer, 2) == -1
    assert ctypes.get_errno() == errno.ERANGE
    assert LIBC.listxattr(name, None, 0) == len(b"user.a\0user.big\0user.empty\0")
    assert LIBC.listxattr(name, buffer, 2) == -1
    assert ctypes.get_errno() == errno.ERANGE
    os.removexattr(path, "user.a")
    fails(errno.ENODATA, os.removexattr, path, "user.a")
    fails(errno.ENODATA, os.getxattr, path, "user.a")
    os.setxattr(place, "user.dir", b"d")
    assert os.getxattr(place, "user.dir") == b"d"
    with pytest.raises(OSError, match=r"too long|No space|Argument|Numerical"):
        os.setxattr(path, "user.toobig", b"z" * 65537)
