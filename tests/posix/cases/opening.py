"""open(2) and creat(2): the flags, who owns what is made, and what a descriptor may do."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tests.posix import linux
from tests.posix.case import NotApplicable, case, refuse, same, table, true
from tests.posix.tools import (
    ALICE,
    BOB,
    Child,
    Signpost,
    as_user,
    folder,
    mode_of,
    opened,
    put,
)

O_PATH = 0o10000000


@table({"0022": (0o022, 0o644), "0000": (0, 0o666), "0077": (0o077, 0o600), "0777": (0o777, 0)})
def umask_takes_bits(d: Path, mask: int, want: int) -> None:
    """A new file has the asked mode without the bits of the umask."""
    os.umask(mask)
    with opened(d / "f", os.O_CREAT | os.O_WRONLY, 0o666):
        same(mode_of(d / "f"), want, "mode")


@case()
def mode_keeps_special_bits(d: Path) -> None:
    """Set-user-ID, set-group-ID and sticky given to open(2) reach the file."""
    os.umask(0)
    with opened(d / "f", os.O_CREAT | os.O_WRONLY, 0o7755):
        same(mode_of(d / "f"), 0o7755, "mode")


@case()
def created_read_only_can_be_written(d: Path) -> None:
    """The descriptor that made a file of mode 0 can write to it."""
    with opened(d / "f", os.O_CREAT | os.O_RDWR, 0) as f:
        same(os.write(f, b"data"), 4, "bytes written")


@case(root=True)
def owner_is_the_caller(d: Path) -> None:
    """A file belongs to the user and the group of the process that made it."""
    d.chmod(0o777)
    as_user(ALICE, put, d / "f")
    found = (d / "f").stat()
    same((found.st_uid, found.st_gid), (ALICE.uid, ALICE.gid), "owner")


@case(root=True)
def directory_owner_is_the_caller(d: Path) -> None:
    """So do directories, links, fifos."""
    d.chmod(0o777)
    as_user(ALICE, os.mkdir, d / "dir")
    as_user(ALICE, os.symlink, "x", d / "link")
    as_user(ALICE, os.mkfifo, d / "fifo")
    for name in ("dir", "link", "fifo"):
        found = (d / name).lstat()
        same((found.st_uid, found.st_gid), (ALICE.uid, ALICE.gid), name)


@case()
def exclusive_refuses_what_exists(d: Path) -> None:
    """O_CREAT|O_EXCL is EEXIST on a file, a directory, and a link that leads nowhere."""
    (d / "link").symlink_to("nothing")
    for path in (put(d / "file"), folder(d / "dir"), d / "link"):
        refuse(errno.EEXIST, os.open, path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    true(not (d / "nothing").exists(), "the link's target was made")


@case()
def creates_through_a_dangling_link(d: Path) -> None:
    """Without O_EXCL, creating through a dangling link makes the target."""
    (d / "link").symlink_to("target")
    with opened(d / "link", os.O_CREAT | os.O_WRONLY):
        true((d / "target").is_file(), "no target made")


@case(limit=30.0)
def exclusive_race_has_one_winner(d: Path) -> None:
    """Of six processes that create the same name with O_EXCL, exactly one wins, 50 times."""

    def race() -> list[int]:
        won = []
        for n in range(50):
            with contextlib.suppress(FileExistsError):
                os.close(os.open(d / f"f{n}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                won.append(n)
        return won

    racers = [Child(race) for _ in range(6)]
    wins = [n for racer in racers for n in racer.result()]
    same(sorted(wins), list(range(50)), "winners")


@case()
def truncate_on_open(d: Path) -> None:
    """O_TRUNC empties the file and keeps its inode and mode."""
    before = put(d / "f", b"x" * 5000, 0o640).stat()
    with opened(d / "f", os.O_WRONLY | os.O_TRUNC) as f:
        after = os.fstat(f)
    same((after.st_size, after.st_ino, after.st_mode), (0, before.st_ino, before.st_mode), "file")


@case()
def directory_flag(d: Path) -> None:
    """O_DIRECTORY is ENOTDIR on a file and opens a directory."""
    refuse(errno.ENOTDIR, os.open, put(d / "f"), os.O_RDONLY | os.O_DIRECTORY)
    with opened(d, os.O_RDONLY | os.O_DIRECTORY) as f:
        true(stat.S_ISDIR(os.fstat(f).st_mode), "no directory")


@case()
def directory_read_refused(d: Path) -> None:
    """read(2) of a directory is EISDIR."""
    with opened(d, os.O_RDONLY) as f:
        refuse(errno.EISDIR, os.read, f, 10)


@case()
def nofollow_flag(d: Path) -> None:
    """O_NOFOLLOW is ELOOP on a link at the end, and does not matter on the way."""
    put(folder(d / "dir") / "f")
    (d / "way").symlink_to("dir")
    (d / "end").symlink_to("dir/f")
    refuse(errno.ELOOP, os.open, d / "end", os.O_RDONLY | os.O_NOFOLLOW)
    with opened(d / "way" / "f", os.O_RDONLY | os.O_NOFOLLOW):
        pass


@case()
def path_descriptor(d: Path) -> None:
    """An O_PATH descriptor cannot read, can stat, and serves as dir_fd."""
    put(d / "f", b"abc")
    with opened(d / "f", O_PATH) as f:
        refuse(errno.EBADF, os.read, f, 1)
        same(os.fstat(f).st_size, 3, "size")
    with opened(d, O_PATH) as f:
        same(os.stat("f", dir_fd=f).st_size, 3, "size through dir_fd")


@case()
def path_descriptor_of_a_link(d: Path) -> None:
    """O_PATH|O_NOFOLLOW opens the link itself."""
    (d / "link").symlink_to("target")
    with opened(d / "link", O_PATH | os.O_NOFOLLOW) as f:
        true(stat.S_ISLNK(os.fstat(f).st_mode), "not the link")
        same(os.readlink("", dir_fd=f), "target", "target")


@case()
def write_needs_a_writing_descriptor(d: Path) -> None:
    """Writing through a read-only descriptor is EBADF, reading a write-only one too."""
    with opened(put(d / "f", b"x"), os.O_RDONLY) as f:
        refuse(errno.EBADF, os.write, f, b"y")
        refuse((errno.EBADF, errno.EINVAL), os.ftruncate, f, 0)
    with opened(d / "f", os.O_WRONLY) as f:
        refuse(errno.EBADF, os.read, f, 1)


@case(root=True)
def permission_is_checked_at_open_only(d: Path) -> None:
    """A descriptor keeps its rights after the mode is taken away."""
    d.chmod(0o777)
    put(d / "f", b"abc", 0o666)

    def read_after_chmod() -> bytes:
        with opened(d / "f", os.O_RDWR) as f:
            closed.raise_()
            done.wait()
            os.pwrite(f, b"X", 0)
            return os.pread(f, 3, 0)

    closed, done = Signpost(), Signpost()
    reader = Child(as_user, ALICE, read_after_chmod)
    closed.wait()
    (d / "f").chmod(0)
    done.raise_()
    same(reader.result(), b"Xbc", "bytes")


@table({"r": (0o444, os.O_WRONLY), "w": (0o222, os.O_RDONLY), "none": (0, os.O_RDONLY)}, root=True)
def mode_forbids(d: Path, mode: int, flags: int) -> None:
    """Opening against the mode is EACCES for others than root."""
    put(d / "f", mode=mode)
    refuse(errno.EACCES, as_user, BOB, os.open, d / "f", flags)


@case(root=True)
def truncating_needs_write(d: Path) -> None:
    """O_RDONLY|O_TRUNC needs permission to write and leaves the file alone without it."""
    put(d / "f", b"abc")
    refuse(errno.EACCES, as_user, BOB, os.open, d / "f", os.O_RDONLY | os.O_TRUNC)
    same((d / "f").read_bytes(), b"abc", "bytes")


@case(root=True)
def noatime_needs_the_owner(d: Path) -> None:
    """O_NOATIME is EPERM for who does not own the file."""
    put(d / "f", mode=0o666)
    refuse(errno.EPERM, as_user, BOB, os.open, d / "f", os.O_RDONLY | os.O_NOATIME)


@case()
def tmpfile_has_no_name(d: Path) -> None:
    """O_TMPFILE makes a file with no link, and leaves the directory empty."""
    with _tmpfile(d) as f:
        same((os.fstat(f).st_nlink, os.listdir(d)), (0, []), "links and names")
        os.write(f, b"abc")
        same(os.pread(f, 3, 0), b"abc", "bytes")


@case()
def tmpfile_can_be_linked(d: Path) -> None:
    """linkat gives an O_TMPFILE file its first name."""
    with _tmpfile(d) as f:
        os.write(f, b"abc")
        linux.linkat(linux.AT_FDCWD, f"/proc/self/fd/{f}", d / "name", linux.AT_SYMLINK_FOLLOW)
        same((os.fstat(f).st_nlink, (d / "name").read_bytes()), (1, b"abc"), "links and bytes")


@case()
def tmpfile_exclusive_cannot_be_linked(d: Path) -> None:
    """With O_EXCL an O_TMPFILE file stays without a name: ENOENT."""
    with _tmpfile(d, os.O_EXCL) as f:
        path = f"/proc/self/fd/{f}"
        refuse(errno.ENOENT, linux.linkat, linux.AT_FDCWD, path, d / "n", linux.AT_SYMLINK_FOLLOW)


@contextlib.contextmanager
def _tmpfile(d: Path, extra: int = 0) -> Iterator[int]:
    with opened(d, os.O_TMPFILE | os.O_RDWR | extra) as descriptor:
        yield descriptor


@case()
def duplicate_shares_the_offset(d: Path) -> None:
    """dup(2) shares the offset; a second open(2) does not."""
    with opened(put(d / "f", b"abcdef"), os.O_RDONLY) as f, opened(d / "f", os.O_RDONLY) as g:
        os.read(f, 2)
        other = os.dup(f)
        same((os.read(other, 2), os.read(g, 2)), (b"cd", b"ab"), "bytes read")
        os.close(other)


@case()
def status_flags_are_kept(d: Path) -> None:
    """F_GETFL tells the flags of open; F_SETFL turns O_APPEND on."""
    with opened(put(d / "f", b"abc"), os.O_RDWR) as f:
        flags = fcntl.fcntl(f, fcntl.F_GETFL)
        same(flags & os.O_ACCMODE, os.O_RDWR, "access mode")
        fcntl.fcntl(f, fcntl.F_SETFL, flags | os.O_APPEND)
        os.lseek(f, 0, os.SEEK_SET)
        os.write(f, b"d")
    same((d / "f").read_bytes(), b"abcd", "bytes")


@case(limit=30.0)
def thousand_open_files(d: Path) -> None:
    """1,000 files can be open at once, and each is its own."""
    files = [os.open(d / f"f{n}", os.O_CREAT | os.O_RDWR) for n in range(1000)]
    for n, f in enumerate(files):
        os.write(f, str(n).encode())
    for n, f in enumerate(files):
        same(os.pread(f, 9, 0), str(n).encode(), f"file {n}")
    same(len({os.fstat(f).st_ino for f in files}), 1000, "different inodes")


@case()
def same_file_open_many_times(d: Path) -> None:
    """300 descriptors of one file see each write."""
    put(d / "f")
    files = [os.open(d / "f", os.O_RDWR) for _ in range(300)]
    os.pwrite(files[0], b"seen", 0)
    true(all(os.pread(f, 4, 0) == b"seen" for f in files), "a descriptor missed the write")


@case()
def text_busy(d: Path) -> None:
    """A program that runs cannot be opened for writing: ETXTBSY."""
    program = d / "sleeper"
    program.write_bytes(Path("/bin/cat").read_bytes())
    program.chmod(0o755)
    reader, writer = os.pipe()
    pid = os.posix_spawn(program, ["cat"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, reader, 0)])
    try:
        refuse(errno.ETXTBSY, os.open, program, os.O_WRONLY)
        refuse(errno.ETXTBSY, os.truncate, program, 0)
    finally:
        os.close(reader)
        os.close(writer)
        os.kill(pid, 9)
        os.waitpid(pid, 0)


@case()
def executing(d: Path) -> None:
    """A program copied here runs, and one without x is EACCES."""
    program = d / "true"
    program.write_bytes(Path("/bin/true").read_bytes())
    refuse(errno.EACCES, os.execv, program, ["true"])
    program.chmod(0o755)
    pid = os.posix_spawn(program, ["true"], {})
    same(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0, "exit status")


@case(root=True)
def special_devices_are_not_for_reading(d: Path) -> None:
    """A device node of a number nobody serves is ENXIO, or EACCES where nodev holds."""
    try:
        os.mknod(d / "dev", 0o666 | stat.S_IFCHR, os.makedev(240, 77))
    except PermissionError as error:
        raise NotApplicable("device nodes may not be made here") from error
    refuse((errno.ENXIO, errno.EACCES), os.open, d / "dev", os.O_RDONLY)
