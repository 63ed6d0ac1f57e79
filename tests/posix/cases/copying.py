"""copy_file_range(2), sendfile(2) and splice(2): bytes that go from file to file in the kernel."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
from pathlib import Path

from tests.posix import linux
from tests.posix.case import case, refuse, same, table, true
from tests.posix.peer import Peer
from tests.posix.tools import BOB, aged, as_user, folder, mode_of, opened, put, tick

UNIT = 65536
NEW = os.O_RDWR | os.O_CREAT
LAST = 2**63 - 1


def copy(source: int, target: int, count: int, start: int, to: int) -> int:
    """Copy a range however many calls it takes; the number of bytes that went."""
    done = 0
    while done < count:
        step = os.copy_file_range(source, target, count - done, start + done, to + done)
        if not step:
            break
        done += step
    return done


#: Length of source and target, then count, start in the source, place in the target.
RANGES = {
    "nothing": (1000, 1000, 0, 0, 0),
    "all": (200_000, 0, 200_000, 0, 0),
    "one-byte": (1000, 1000, 1, 999, 500),
    "into-the-middle": (100_000, 300_000, 100_000, 0, 100_000),
    "unaligned": (200_000, 200_000, 123_457, 333, 7777),
    "page-aligned": (200_000, 200_000, 65536, 4096, 8192),
    "across-the-source's-end": (1000, 5000, 700, 600, 100),
    "at-the-source's-end": (1000, 5000, 700, 1000, 100),
    "beyond-the-source's-end": (1000, 5000, 700, 9999, 100),
    "across-the-target's-end": (9000, 5000, 5000, 0, 4000),
    "beyond-the-target's-end": (9000, 5000, 5000, 0, 100_000),
    "from-an-empty-file": (0, 5000, 100, 0, 0),
}


@table(RANGES)
def two_files(d: Path, have: int, there: int, count: int, start: int, to: int) -> None:
    """The range arrives, short at the source's end; a gap before it is a hole; the rest stays."""
    source, target = os.urandom(have), os.urandom(there)
    with (
        opened(put(d / "a", source), os.O_RDONLY) as a,
        opened(put(d / "b", target), os.O_RDWR) as b,
    ):
        wanted = source[start : start + count]
        same(copy(a, b, count, start, to), len(wanted), "bytes copied")
        want = bytearray(target)
        if wanted:
            want += bytes(max(0, to - there))
            want[to : to + len(wanted)] = wanted
        same(os.fstat(b).st_size, len(want), "size")
        true(os.pread(b, len(want) + 1, 0) == bytes(want), "other bytes")
        same((os.lseek(a, 0, os.SEEK_CUR), os.lseek(b, 0, os.SEEK_CUR)), (0, 0), "offsets")
    true((d / "a").read_bytes() == source, "the source has changed")


@table(
    {
        "forward": (100_000, 0, 100_000),
        "backward": (100_000, 100_000, 0),
        "to-the-end": (100_000, 50_000, 200_000),
        "beside": (4096, 4096, 8192),
        "small": (10, 0, 10),
    }
)
def one_file(d: Path, count: int, start: int, to: int) -> None:
    """A range of a file can be copied within it when the two do not overlap."""
    data = os.urandom(200_000)
    with opened(put(d / "f", data), os.O_RDWR) as f:
        same(copy(f, f, count, start, to), count, "bytes copied")
        want = bytearray(data)
        want[to : to + count] = data[start : start + count]
        true(os.pread(f, len(want) + 1, 0) == bytes(want), "other bytes")


@table(
    {
        "same": (1000, 0, 0),
        "shifted": (5000, 0, 100),
        "backward": (5000, 100, 0),
        "one-byte": (100, 0, 99),
        "cut-by-the-end": (20_000, 0, 5000),
    }
)
def overlapping(d: Path, count: int, start: int, to: int) -> None:
    """Overlapping ranges of one file are EINVAL, through two descriptors and two names, too."""
    data = os.urandom(10_000)
    put(d / "f", data)
    os.link(d / "f", d / "g")
    with opened(d / "f", os.O_RDWR) as f, opened(d / "g", os.O_RDWR) as g:
        refuse(errno.EINVAL, os.copy_file_range, f, f, count, start, to)
        refuse(errno.EINVAL, os.copy_file_range, f, g, count, start, to)
    true((d / "f").read_bytes() == data, "other bytes")


@case()
def offsets_move(d: Path) -> None:
    """Without explicit offsets both descriptors' offsets are used, and move by what went."""
    data = os.urandom(5000)
    with opened(put(d / "a", data), os.O_RDONLY) as a, opened(d / "b", NEW) as b:
        os.lseek(a, 100, os.SEEK_SET)
        os.lseek(b, 50, os.SEEK_SET)
        same(os.copy_file_range(a, b, 1000), 1000, "bytes copied")
        same((os.lseek(a, 0, os.SEEK_CUR), os.lseek(b, 0, os.SEEK_CUR)), (1100, 1050), "offsets")
        same(os.copy_file_range(a, b, 500, offset_src=0), 500, "bytes copied")
        same((os.lseek(a, 0, os.SEEK_CUR), os.lseek(b, 0, os.SEEK_CUR)), (1100, 1550), "offsets")
        same(os.copy_file_range(a, b, 500, offset_dst=0), 500, "bytes copied")
        same((os.lseek(a, 0, os.SEEK_CUR), os.lseek(b, 0, os.SEEK_CUR)), (1600, 1550), "offsets")
        want = data[1100:1600] + (bytes(50) + data[100:1100])[500:] + data[:500]
        same(os.pread(b, 9999, 0), want, "bytes")


@case()
def until_the_end(d: Path) -> None:
    """cp's loop, with a length larger than the file, copies all of it and then gets 0."""
    data = os.urandom(3_000_001)
    with opened(put(d / "a", data), os.O_RDONLY) as a, opened(d / "b", NEW) as b:
        while os.copy_file_range(a, b, 1 << 30):
            pass
        same(os.copy_file_range(a, b, 1 << 30), 0, "at the end")
    true((d / "b").read_bytes() == data, "other bytes")


@case(limit=60.0)
def large(d: Path) -> None:
    """20 MiB with an odd length arrive as they are, with blocks for all of it."""
    data = os.urandom((20 << 20) + 12345)
    with opened(put(d / "a", data), os.O_RDONLY) as a, opened(d / "b", NEW) as b:
        same(copy(a, b, len(data), 0, 0), len(data), "bytes copied")
        true(os.fstat(b).st_blocks * 512 >= len(data) - 4096, "blocks")
    true((d / "b").read_bytes() == data, "other bytes")


@case()
def holes(d: Path) -> None:
    """Holes of the source read as zeroes in the target, over what was there before."""
    with opened(d / "a", NEW) as a, opened(put(d / "b", b"\xff" * (5 * UNIT)), os.O_RDWR) as b:
        os.ftruncate(a, 5 * UNIT)
        os.pwrite(a, b"x" * UNIT, UNIT)
        os.pwrite(a, b"y" * 100, 3 * UNIT + 50)
        same(copy(a, b, 5 * UNIT, 0, 0), 5 * UNIT, "bytes copied")
        true(os.pread(b, 6 * UNIT, 0) == os.pread(a, 6 * UNIT, 0), "other bytes")


@case()
def copies_do_not_share(d: Path) -> None:
    """Written later, the copy and its source do not show in each other."""
    with opened(put(d / "a", b"a" * (4 * UNIT)), os.O_RDWR) as a, opened(d / "b", NEW) as b:
        same(copy(a, b, 4 * UNIT, 0, 0), 4 * UNIT, "bytes copied")
        os.pwrite(a, b"1", UNIT)
        os.pwrite(b, b"2", 2 * UNIT)
        os.ftruncate(a, 3 * UNIT)
        same(os.pread(a, 9 * UNIT, 0), b"a" * UNIT + b"1" + b"a" * (2 * UNIT - 1), "source")
        want = b"a" * (2 * UNIT) + b"2" + b"a" * (2 * UNIT - 1)
        true(os.pread(b, 9 * UNIT, 0) == want, "copy")


@table({"source": (False,), "copy": (True,)})
def holes_are_not_shared(d: Path, which: bool) -> None:
    """A hole punched later into one of the two is not in the other."""
    with opened(put(d / "a", b"a" * (4 * UNIT)), os.O_RDWR) as a, opened(d / "b", NEW) as b:
        same(copy(a, b, 4 * UNIT, 0, 0), 4 * UNIT, "bytes copied")
        punched, other = (b, a) if which else (a, b)
        linux.fallocate(punched, linux.FALLOC_PUNCH_HOLE | linux.FALLOC_KEEP_SIZE, 0, 2 * UNIT)
        want = bytes(2 * UNIT) + b"a" * (2 * UNIT)
        true(os.pread(punched, 9 * UNIT, 0) == want, "the one that was punched")
        true(os.pread(other, 9 * UNIT, 0) == b"a" * (4 * UNIT), "the other")


@case()
def seen_by_everybody(d: Path) -> None:
    """The copy is at once in other descriptors' reads, sizes and mappings."""
    put(d / "a", b"new" * 1000)
    put(d / "b", b"old" * 1000)
    with opened(d / "b", os.O_RDONLY) as reader:
        same(os.pread(reader, 3, 0), b"old", "before")
        with opened(d / "a", os.O_RDONLY) as a, opened(d / "b", os.O_WRONLY) as b:
            same(copy(a, b, 3000, 0, 1500), 3000, "bytes copied")
        same(os.fstat(reader).st_size, 4500, "size")
        same(os.pread(reader, 6, 1497), b"oldnew", "bytes")


@case()
def wrong_descriptors(d: Path) -> None:
    """Modes that do not fit and O_APPEND are EBADF, directories EISDIR, others EINVAL."""
    put(d / "f", b"x" * 100)
    put(d / "g", b"x" * 100)
    reader, writer = os.pipe()
    with (
        opened(d / "f", os.O_RDONLY) as r,
        opened(d / "g", os.O_WRONLY) as w,
        opened(d / "g", os.O_WRONLY | os.O_APPEND) as appending,
        opened(d / "g", os.O_PATH) as path,
        opened(d, os.O_RDONLY) as directory,
    ):
        refuse(errno.EBADF, os.copy_file_range, w, w, 10, 0, 50)
        refuse(errno.EBADF, os.copy_file_range, r, r, 10, 0, 50)
        refuse(errno.EBADF, os.copy_file_range, r, appending, 10, 0, 0)
        refuse(errno.EBADF, os.copy_file_range, r, path, 10, 0, 0)
        refuse(errno.EBADF, os.copy_file_range, path, w, 10, 0, 0)
        refuse((errno.EISDIR, errno.EBADF), os.copy_file_range, directory, w, 10, 0, 0)
        refuse((errno.EISDIR, errno.EBADF), os.copy_file_range, r, directory, 10, 0, 0)
        refuse(errno.EINVAL, os.copy_file_range, reader, w, 10)
        refuse(errno.EINVAL, os.copy_file_range, r, writer, 10)
    same((d / "g").read_bytes(), b"x" * 100, "bytes")


@case()
def to_another_file_system(d: Path) -> None:
    """Between two file systems the call is EXDEV in both directions, and nothing changes."""
    memory = os.memfd_create("other")
    os.write(memory, b"abc")
    with opened(put(d / "f", b"xyz"), os.O_RDWR) as f:
        refuse(errno.EXDEV, os.copy_file_range, memory, f, 3, 0, 0)
        refuse(errno.EXDEV, os.copy_file_range, f, memory, 3, 0, 0)
        same((os.pread(f, 9, 0), os.pread(memory, 9, 0)), (b"xyz", b"abc"), "bytes")
    os.close(memory)


@case()
def far_ranges(d: Path) -> None:
    """A copy that would pass the last possible byte is short or refused; the mount lives on."""
    with opened(put(d / "a", b"x" * 100), os.O_RDONLY) as a, opened(d / "b", NEW) as b:
        refuse((errno.EOVERFLOW, errno.EINVAL), os.copy_file_range, a, b, 100, -5, 0)
        try:
            done = os.copy_file_range(a, b, 100, 0, LAST - 10)
        except OSError as error:
            true(error.errno in (errno.EOVERFLOW, errno.EFBIG), f"errno {error.errno}")
            same(os.fstat(b).st_size, 0, "size after a refusal")
        else:
            same((done, os.fstat(b).st_size), (10, LAST), "bytes copied and size")
            same(os.pread(b, 10, LAST - 10), b"x" * 10, "bytes")
        os.ftruncate(b, 0)
        same(os.copy_file_range(a, b, 100, 0, 0), 100, "bytes copied afterwards")


@case()
def size_limit(d: Path) -> None:
    """RLIMIT_FSIZE cuts a copy short, and refuses it with EFBIG at the limit."""
    put(d / "a", b"x" * 20_000)
    put(d / "b")
    peer = Peer()
    a, b = peer(os.open, d / "a", os.O_RDONLY), peer(os.open, d / "b", os.O_RDWR)
    peer(signal.signal, signal.SIGXFSZ, signal.SIG_IGN)
    peer(resource.setrlimit, resource.RLIMIT_FSIZE, (10_000, 10_000))
    same(peer(os.copy_file_range, a, b, 20_000, 0, 0), 10_000, "bytes copied")
    refuse(errno.EFBIG, peer, os.copy_file_range, a, b, 100, 0, 10_000)
    same((d / "b").stat().st_size, 10_000, "size")


@case()
def times(d: Path) -> None:
    """The target's mtime and ctime move, the source's do not."""
    aged(put(d / "a", b"x" * 1000))
    aged(put(d / "b", b"y" * 1000))
    before = {name: (d / name).stat() for name in "ab"}
    tick()
    with opened(d / "a", os.O_RDONLY) as a, opened(d / "b", os.O_WRONLY) as b:
        same(os.copy_file_range(a, b, 500, 0, 0), 500, "bytes copied")
    after = {name: (d / name).stat() for name in "ab"}
    same(after["a"].st_mtime_ns, before["a"].st_mtime_ns, "the source's mtime")
    true(after["b"].st_mtime_ns > before["b"].st_mtime_ns, "the target's mtime stood still")
    true(after["b"].st_ctime_ns > before["b"].st_ctime_ns, "the target's ctime stood still")


@case(root=True)
def set_user_id_is_cleared(d: Path) -> None:
    """A copy by somebody who is not root takes the target's setuid bit away."""
    put(d / "a", b"x" * 1000, 0o644)
    put(d / "b", b"y" * 1000, 0o4777)

    def change() -> None:
        with opened(d / "a", os.O_RDONLY) as a, opened(d / "b", os.O_WRONLY) as b:
            os.copy_file_range(a, b, 500, 0, 0)

    as_user(BOB, change)
    same(mode_of(d / "b") & 0o4000, 0, "setuid bit")


@case()
def unlinked_and_moved(d: Path) -> None:
    """Descriptors go on copying when the names are gone or elsewhere."""
    put(d / "a", b"x" * 1000)
    with opened(d / "a", os.O_RDONLY) as a, opened(d / "b", NEW) as b:
        os.unlink(d / "a")
        os.rename(d / "b", folder(d / "sub") / "c")
        same(copy(a, b, 1000, 0, 0), 1000, "bytes copied")
    same((d / "sub" / "c").read_bytes(), b"x" * 1000, "bytes")


@case()
def sendfile_ends(d: Path) -> None:
    """sendfile: short at the end, 0 past it, and its explicit offset leaves the descriptor's."""
    data = os.urandom(10_000)
    with opened(put(d / "a", data), os.O_RDONLY) as a, opened(d / "b", NEW) as b:
        same(os.sendfile(b, a, 9000, 5000), 1000, "bytes sent at the end")
        same(os.sendfile(b, a, 10_000, 5000), 0, "bytes sent past the end")
        same(os.sendfile(b, a, None, 4000), 4000, "bytes sent from the offset")
        same((os.lseek(a, 0, os.SEEK_CUR), os.lseek(b, 0, os.SEEK_CUR)), (4000, 5000), "offsets")
        same(os.pread(b, 9999, 0), data[9000:] + data[:4000], "bytes")


@case()
def sendfile_to_a_socket(d: Path) -> None:
    """A file goes to a socket as it is, as web servers do it."""
    data = os.urandom(700_000)
    put(d / "f", data)
    ours, theirs = socket.socketpair()
    peer = Peer(inherit=True)
    peer.start(_receive_all, theirs.fileno(), len(data))
    theirs.close()
    with opened(d / "f", os.O_RDONLY) as f:
        done = 0
        while done < len(data):
            done += os.sendfile(ours.fileno(), f, done, len(data) - done)
    ours.close()
    true(peer.reply() == data, "other bytes arrived")


def _receive_all(line: int, count: int) -> bytes:
    data = b""
    while len(data) < count and (piece := os.read(line, 65536)):
        data += piece
    return data


@case()
def sendfile_refused(d: Path) -> None:
    """O_APPEND targets are EINVAL, wrong modes EBADF, a directory as source EINVAL."""
    put(d / "f", b"x" * 100)
    with opened(d / "f", os.O_RDONLY) as r, opened(d / "f", os.O_WRONLY) as w:
        refuse(errno.EBADF, os.sendfile, r, r, 0, 10)
        refuse(errno.EBADF, os.sendfile, w, w, 0, 10)
        with opened(put(d / "g"), os.O_WRONLY | os.O_APPEND) as appending:
            refuse(errno.EINVAL, os.sendfile, appending, r, 0, 10)
        with opened(d, os.O_RDONLY) as directory:
            refuse((errno.EINVAL, errno.EISDIR), os.sendfile, w, directory, 0, 10)


@case()
def splice_offsets(d: Path) -> None:
    """splice with explicit offsets reads and writes there and leaves the descriptors' own."""
    data = os.urandom(20_000)
    reader, writer = os.pipe()
    with opened(put(d / "a", data), os.O_RDONLY) as a, opened(d / "b", NEW) as b:
        same(os.splice(a, writer, 5000, offset_src=3000), 5000, "bytes into the pipe")
        same(os.splice(reader, b, 5000, offset_dst=100), 5000, "bytes out of the pipe")
        same((os.lseek(a, 0, os.SEEK_CUR), os.lseek(b, 0, os.SEEK_CUR)), (0, 0), "offsets")
        same(os.pread(b, 9999, 0), bytes(100) + data[3000:8000], "bytes")
        same(os.splice(a, writer, 5000, offset_src=20_000), 0, "at the end")


@case()
def splice_refused(d: Path) -> None:
    """Two files without a pipe are EINVAL, so is O_APPEND; an offset for a pipe is ESPIPE."""
    put(d / "f", b"x" * 100)
    reader, writer = os.pipe()
    with opened(d / "f", os.O_RDWR) as f, opened(d / "f", os.O_WRONLY | os.O_APPEND) as appending:
        refuse(errno.EINVAL, os.splice, f, f, 10)
        refuse(errno.ESPIPE, os.splice, f, writer, 10, offset_dst=5)
        os.write(writer, b"abc")
        refuse(errno.EINVAL, os.splice, reader, appending, 3)
        same(os.splice(reader, f, 3), 3, "bytes")
    same((d / "f").read_bytes()[:4], b"abcx", "bytes in the file")


@case()
def spliced_pages_are_a_snapshot_or_the_file(d: Path) -> None:
    """Bytes that went into a pipe come out of it after the file was removed."""
    data = os.urandom(40_000)
    reader, writer = os.pipe()
    with opened(put(d / "f", data), os.O_RDONLY) as f:
        same(os.splice(f, writer, 40_000), 40_000, "bytes into the pipe")
        os.unlink(d / "f")
    os.close(writer)
    same(_receive_all(reader, 40_000) == data, True, "the bytes came out")
