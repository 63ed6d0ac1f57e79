"""Cases for ranges of files, files without a name, control and locks; see vnode_ops.py.

What the host's device transport carries beyond the classic operations: fallocate, lseek for data
and holes, copy_file_range, O_TMPFILE, ioctl, advisory locks, the time of birth.
"""

from __future__ import annotations

from struct import pack, unpack

from dfuser.libkern.errno import (
    EACCES,
    EAGAIN,
    EBADF,
    EEXIST,
    EFBIG,
    EINVAL,
    EISDIR,
    ENODEV,
    ENOENT,
    ENOSPC,
    ENOTDIR,
    ENOTTY,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    EROFS,
    ESPIPE,
    ETXTBSY,
)
from dfuser.libkern.fcntl import (
    F_GETLK,
    F_POSIX,
    F_RDLCK,
    F_SETLK,
    F_UNLCK,
    F_WRLCK,
    O_APPEND,
    O_EXCL,
    O_RDONLY,
    O_RDWR,
    O_WRONLY,
    SEEK_CUR,
    SEEK_DATA,
    SEEK_END,
    SEEK_HOLE,
    SEEK_SET,
)
from dfuser.libkern.stat import (
    S_IFIFO,
    SF_APPEND,
    SF_IMMUTABLE,
    UF_APPEND,
    UF_IMMUTABLE,
    UF_NODUMP,
    UF_OPAQUE,
    VType,
)
from dfuser.vfs import fileflags as ff
from dfuser.vfs import syscalls as sc
from dfuser.vfs.lockf import Flock
from dfuser.vfs.mountflags import MNT
from dfuser.vfs.syscalls.range import COPY_MAX
from dfuser.vfs.vnode import V
from tests.conform.world import (
    ALICE,
    BOB,
    OFF_MAX,
    ROOT,
    Case,
    World,
    collector,
    errno,
)

CASES: list[Case] = []
case = collector(CASES)

PAGE = 4096
KEEP, PUNCH, COLLAPSE, ZERO, INSERT, UNSHARE = 1, 2, 8, 16, 32, 64


# --- fallocate and lseek ---------------------------------------------------------------------


@case
def every_mode_of_fallocate(w: World) -> None:
    # What if each mode is used on a file of five bytes: size, storage and contents?
    file = w.create(b"a")
    w.write(file, 0, b"12345")

    def state() -> tuple[int | None, int, bytes]:
        va = w.stat(b"a")
        w.check()
        return va.size, va.bytes // PAGE, w.read(file, 0, 8)

    sc.kern_fallocate(file, KEEP, PAGE, 2 * PAGE)
    assert state() == (5, 3, b"12345")
    sc.kern_fallocate(file, PUNCH | KEEP, PAGE, PAGE)
    assert state() == (5, 2, b"12345")
    sc.kern_fallocate(file, 0, 0, 2 * PAGE + 3)
    assert state() == (2 * PAGE + 3, 3, b"12345\0\0\0")
    sc.kern_fallocate(file, ZERO | KEEP, 2, 2)
    assert state() == (2 * PAGE + 3, 3, b"12\0\x005\0\0\0")
    sc.kern_fallocate(file, ZERO | KEEP, 0, 6 * PAGE)
    assert state() == (2 * PAGE + 3, 6, bytes(8))
    sc.kern_fallocate(file, ZERO, 0, 5 * PAGE)
    assert state() == (5 * PAGE, 6, bytes(8))
    sc.kern_fallocate(file, PUNCH | KEEP, 0, OFF_MAX)
    assert state() == (5 * PAGE, 0, bytes(8))
    file.drop()


@case
def what_fallocate_refuses(w: World) -> None:
    # What if the mode, the range, the file or its open does not fit?
    file = w.create(b"a")
    w.write(file, 0, b"x" * 100)
    for mode in (PUNCH, COLLAPSE, COLLAPSE | KEEP, INSERT, UNSHARE, ZERO | PUNCH | KEEP, 128):
        with errno(EOPNOTSUPP):
            sc.kern_fallocate(file, mode, 0, PAGE)
    for offset, length in ((-1, 5), (0, 0), (5, -5)):
        with errno(EINVAL):
            sc.kern_fallocate(file, 0, offset, length)
    for mode in (0, KEEP, PUNCH | KEEP, ZERO):
        with errno(EFBIG):
            sc.kern_fallocate(file, mode, OFF_MAX - 10, 11)
    reader = w.open(b"a", O_RDONLY)
    with errno(EBADF):
        sc.kern_fallocate(reader, 0, 0, 1)
    reader.drop()
    with errno(EBADF):
        sc.kern_fallocate(reader, 0, 0, 1)
    w.mknod(b"p", S_IFIFO | 0o600)
    pipe = w.open(b"p")
    with errno(ESPIPE):
        sc.kern_fallocate(pipe, 0, 0, 1)
    pipe.drop()
    file.vp.flag |= V.TEXT
    with errno(ETXTBSY):
        sc.kern_fallocate(file, 0, 0, 1)
    file.vp.flag &= ~V.TEXT
    assert w.stat(b"a").size == 100
    file.drop()


@case
def fallocate_and_file_flags(w: World) -> None:
    # What if a file becomes append-only or immutable while it is open?
    file = w.create(b"a", flags=O_RDWR | O_APPEND)
    w.write(file, 0, b"x" * 100)
    w.setattr(b"a", flags=SF_APPEND)
    sc.kern_fallocate(file, 0, 0, PAGE)
    sc.kern_fallocate(file, KEEP, 0, 2 * PAGE)
    for mode in (PUNCH | KEEP, ZERO, ZERO | KEEP):
        with errno(EPERM):
            sc.kern_fallocate(file, mode, 0, 50)
    w.setattr(b"a", flags=SF_IMMUTABLE)
    for mode in (0, KEEP, PUNCH | KEEP, ZERO):
        with errno(EPERM):
            sc.kern_fallocate(file, mode, 0, 50)
    assert w.read(file, 0, 100) == b"x" * 100
    w.setattr(b"a", flags=0)
    file.drop()


@case
def fallocate_changes_times(w: World) -> None:
    # What if a range is allocated, kept, punched, zeroed: do both times move, each time?
    file = w.create(b"a", mode=0o4711)
    for mode in (0, KEEP, PUNCH | KEEP, ZERO, ZERO | KEEP):
        now = w.tick()
        sc.kern_fallocate(file, mode, 0, PAGE)
        va = w.stat(b"a")
        assert (va.mtime, va.ctime) == (now, now)
        assert va.btime is not None
        assert va.btime < now
    assert w.mode(b"a") == 0o4711
    file.drop()
    w.setattr(b"a", uid=ALICE.uid, gid=ALICE.gid, mode=0o6711)
    file = w.open(b"a", O_RDWR, ALICE)
    sc.kern_fallocate(file, KEEP, 0, PAGE)
    assert w.mode(b"a") == 0o711
    file.drop()


@case
def allocated_room_cannot_run_out(w: World) -> None:
    # What if everything else is filled after a range was allocated: can it still be written?
    file = w.create(b"a")
    sc.kern_fallocate(file, KEEP, 0, 64 * PAGE)
    other = w.create(b"b")
    written = 0
    while w.statfs().bfree:
        written += sc.kern_write(other, written, bytes(64 * PAGE))
    with errno(ENOSPC):
        sc.kern_write(other, written, b"x")
    assert w.write(file, 0, b"z" * (64 * PAGE)) == 64 * PAGE
    assert w.read(file, 63 * PAGE, 5) == b"zzzzz"
    w.check()
    other.drop()
    file.drop()


@case
def truncation_ends_a_reservation(w: World) -> None:
    # What if a file with room beyond its end is truncated to the size it has, or grown?
    file = w.create(b"a")
    w.write(file, 0, b"x" * 10)
    sc.kern_fallocate(file, KEEP, 0, 8 * PAGE)
    w.setattr(b"a", size=PAGE + 1)
    assert w.stat(b"a").bytes == 8 * PAGE
    w.setattr(b"a", size=PAGE + 1)
    assert w.stat(b"a").bytes == 2 * PAGE
    w.check()
    file.drop()


@case
def data_and_holes_to_the_page(w: World) -> None:
    # What if every interesting offset of a sparse file is asked about?
    file = w.create(b"a")
    w.write(file, PAGE + 5, b"x")
    w.write(file, 4 * PAGE - 1, b"yy")
    w.setattr(b"a", size=6 * PAGE + 7)
    for offset, data, hole in (
        (0, PAGE, 0),
        (PAGE - 1, PAGE, PAGE - 1),
        (PAGE, PAGE, 2 * PAGE),
        (2 * PAGE - 1, 2 * PAGE - 1, 2 * PAGE),
        (2 * PAGE, 3 * PAGE, 2 * PAGE),
        (3 * PAGE + 9, 3 * PAGE + 9, 5 * PAGE),
        (5 * PAGE, None, 5 * PAGE),
        (6 * PAGE + 6, None, 6 * PAGE + 6),
    ):
        assert sc.kern_lseek(file, offset, SEEK_HOLE) == hole
        if data is None:
            with errno(ENXIO):
                sc.kern_lseek(file, offset, SEEK_DATA)
        else:
            assert sc.kern_lseek(file, offset, SEEK_DATA) == data
    for whence in (SEEK_DATA, SEEK_HOLE):
        for offset in (-1, 6 * PAGE + 7, OFF_MAX):
            with errno(ENXIO):
                sc.kern_lseek(file, offset, whence)
    w.write(file, 6 * PAGE, b"z")
    assert sc.kern_lseek(file, 6 * PAGE, SEEK_HOLE) == 6 * PAGE + 7
    file.drop()


@case
def allocated_pages_are_holes_until_written(w: World) -> None:
    # What if pages were only allocated, then some written, some zeroed?
    file = w.create(b"a")
    sc.kern_fallocate(file, 0, 0, 8 * PAGE)
    with errno(ENXIO):
        sc.kern_lseek(file, 0, SEEK_DATA)
    assert sc.kern_lseek(file, 3, SEEK_HOLE) == 3
    w.write(file, 2 * PAGE, b"x" * (4 * PAGE))
    assert sc.kern_lseek(file, 0, SEEK_DATA) == 2 * PAGE
    assert sc.kern_lseek(file, 2 * PAGE, SEEK_HOLE) == 6 * PAGE
    sc.kern_fallocate(file, ZERO | KEEP, 3 * PAGE - 1, PAGE + 2)
    assert sc.kern_lseek(file, 2 * PAGE, SEEK_HOLE) == 3 * PAGE
    assert sc.kern_lseek(file, 3 * PAGE, SEEK_DATA) == 4 * PAGE
    assert w.stat(b"a").bytes == 8 * PAGE
    file.drop()


@case
def seek_moves_lseek_does_not(w: World) -> None:
    # What if the offset is asked for with and without moving it?
    file = w.create(b"a")
    w.write(file, 0, b"x" * 10)
    assert sc.kern_lseek(file, 4, SEEK_SET) == 4
    assert file.offset == 0
    assert sc.kern_seek(file, 4, SEEK_SET) == 4
    assert sc.kern_lseek(file, 3, SEEK_CUR) == 7
    assert sc.kern_lseek(file, -1, SEEK_END) == 9
    assert sc.kern_seek(file, 0, SEEK_HOLE) == 10
    assert file.offset == 10
    with errno(EINVAL):
        sc.kern_lseek(file, -11, SEEK_CUR)
    with errno(EINVAL):
        sc.kern_lseek(file, OFF_MAX, SEEK_CUR)
    with errno(EINVAL):
        sc.kern_lseek(file, 0, 99)
    file.drop()
    with errno(EBADF):
        sc.kern_lseek(file, 0, SEEK_SET)
    directory = w.open(b"", O_RDONLY)
    for offset in (0, -1):
        with errno(EINVAL):
            sc.kern_lseek(directory, offset, SEEK_DATA)
    directory.drop()


# --- copy_file_range --------------------------------------------------------------------------


@case
def copy_keeps_holes(w: World) -> None:
    # What if a sparse file is copied over another's data, page borders not in line?
    source, target = w.create(b"a"), w.create(b"b")
    w.write(source, PAGE, b"one" * 2000)
    w.write(source, 9 * PAGE, b"two")
    w.setattr(b"a", size=12 * PAGE)
    w.write(target, 0, b"-" * (16 * PAGE))
    assert sc.kern_copy_file_range(source, 0, target, 100, 20 * PAGE) == 12 * PAGE
    expected = bytearray(b"-" * (16 * PAGE))
    expected[100 : 100 + 12 * PAGE] = w.read(source, 0, 12 * PAGE)
    assert w.read(target, 0, 16 * PAGE) == expected
    assert sc.kern_lseek(target, 4 * PAGE, SEEK_HOLE) == 4 * PAGE
    assert w.stat(b"a").size == 12 * PAGE
    w.check()
    fresh = w.create(b"c")
    assert sc.kern_copy_file_range(source, 0, fresh, 0, 12 * PAGE) == 12 * PAGE
    assert w.stat(b"c").bytes == w.stat(b"a").bytes
    assert w.get(b"c") == w.get(b"a")
    assert w.stat(b"c").size == 12 * PAGE
    for file in (source, target, fresh):
        file.drop()


@case
def copy_and_its_ends(w: World) -> None:
    # What if the source ends, the offsets are at their end, nothing is asked, too much is asked?
    source, target = w.create(b"a"), w.create(b"b")
    w.write(source, 0, b"0123456789")
    copy = sc.kern_copy_file_range
    assert copy(source, 4, target, 0, 100) == 6
    assert copy(source, 10, target, 0, 100) == 0
    assert copy(source, 1 << 40, target, 0, 100) == 0
    assert copy(source, 0, target, 0, 0) == 0
    assert w.get(b"b") == b"456789"
    assert copy(source, 0, target, OFF_MAX - 4, 10) == 4
    assert w.stat(b"b").size == OFF_MAX
    with errno(EFBIG):
        copy(source, 0, target, OFF_MAX, 10)
    for args in ((-1, 0, 1), (0, -1, 1), (0, 0, -1)):
        with errno(EINVAL):
            copy(source, args[0], target, args[1], args[2])
    with errno(EINVAL):
        copy(source, 0, target, 0, 1, 1)
    source.drop()
    target.drop()


@case
def copy_inside_a_file(w: World) -> None:
    # What if a file is copied into itself, next to itself, and over itself?
    file = w.create(b"a")
    w.write(file, 0, b"0123456789")
    copy = sc.kern_copy_file_range
    assert copy(file, 0, file, 10, 10) == 10
    assert w.get(b"a") == b"0123456789" * 2
    for offset in (1, 0, 9):
        with errno(EINVAL):
            copy(file, 0, file, offset, 10)
    with errno(EINVAL):
        copy(file, 5, file, 0, 10)
    other = w.open(b"a", O_RDONLY)
    with errno(EINVAL):
        copy(other, 0, file, 5, 10)
    assert copy(other, 15, file, 0, 100) == 5
    assert w.get(b"a")[:6] == b"567895"
    assert copy(file, 20, file, 21, 10) == 0
    other.drop()
    file.drop()


@case
def copy_and_what_it_refuses(w: World) -> None:
    # What if modes, kinds or flags of the two files do not fit?
    source, target = w.create(b"a"), w.create(b"b")
    w.write(source, 0, b"x" * 10)
    copy = sc.kern_copy_file_range
    reader, writer = w.open(b"b", O_RDONLY), w.open(b"a", O_WRONLY)
    appender = w.open(b"b", O_RDWR | O_APPEND)
    directory = w.open(b"", O_RDONLY)
    w.mknod(b"p", S_IFIFO | 0o600)
    pipe = w.open(b"p")
    for src, dst, number in (
        (source, reader, EBADF),
        (writer, target, EBADF),
        (source, appender, EBADF),
        (directory, target, EISDIR),
        (source, directory, EISDIR),
        (pipe, target, EINVAL),
        (source, pipe, EINVAL),
    ):
        with errno(number):
            copy(src, 0, dst, 0, 5)
    for flags in (SF_IMMUTABLE, UF_IMMUTABLE, SF_APPEND, UF_APPEND):
        w.setattr(b"b", flags=flags)
        with errno(EPERM):
            copy(source, 0, target, 0, 5)
        w.setattr(b"b", flags=0)
    target.vp.flag |= V.TEXT
    with errno(ETXTBSY):
        copy(source, 0, target, 0, 5)
    target.vp.flag &= ~V.TEXT
    w.setattr(b"a", flags=SF_IMMUTABLE)
    assert copy(source, 0, target, 0, 5) == 5
    w.setattr(b"a", flags=0)
    for file in (source, target, reader, writer, appender, directory, pipe):
        file.drop()
    with errno(EBADF):
        copy(source, 0, target, 0, 5)


@case
def copy_is_bounded_and_leaves_times(w: World) -> None:
    # What if a huge hole is copied, and who sees which time?
    w.put(b"a")
    w.setattr(b"a", size=1 << 40)
    source, target = w.open(b"a", O_RDONLY), w.create(b"b", mode=0o4711)
    before = w.stat(b"a")
    now = w.tick()
    assert sc.kern_copy_file_range(source, 0, target, 0, 1 << 40) == COPY_MAX
    assert (w.stat(b"b").size, w.stat(b"b").bytes) == (COPY_MAX, 0)
    assert (w.stat(b"b").mtime, w.stat(b"b").ctime) == (now, now)
    after = w.stat(b"a")
    assert (after.mtime, after.ctime, after.atime) == (before.mtime, before.ctime, now)
    assert sc.kern_copy_file_range(source, 1 << 40, target, 0, 5) == 0
    w.tick()
    assert w.stat(b"b").mtime == now
    source.drop()
    target.drop()


# --- files without a name ----------------------------------------------------------------------


@case
def file_without_a_name(w: World) -> None:
    # What if a file is made without a name and closed: was it ever there?
    free, files = w.statfs().bfree, w.statfs().ffree
    before = w.stat(b"")
    w.tick()
    nch, file = sc.kern_tmpfile(w.vfs, w.top, 0o640, O_RDWR, ROOT)
    assert nch.ncp.vp is file.vp
    w.write(file, 0, b"x" * 5000)
    va = sc.kern_stat(w.vfs, nch)
    assert (va.type, va.mode, va.nlink, va.size) == (VType.VREG, 0o640, 0, 5000)
    assert w.statfs().ffree == files - 1
    assert w.ls() == []
    assert w.stat(b"").mtime == before.mtime
    w.check()
    file.drop()
    assert (w.statfs().bfree, w.statfs().ffree) == (free, files)


@case
def first_name_of_a_file(w: World) -> None:
    # What if a file without a name gets one, loses it, and shall get another?
    _, file = sc.kern_tmpfile(w.vfs, w.top, 0o600, O_RDWR, ROOT)
    w.write(file, 0, b"data")
    w.put(b"taken")
    with errno(EEXIST):
        sc.kern_link(w.vfs, file.nch, w.top, b"taken", ROOT)
    sc.kern_link(w.vfs, file.nch, w.top, b"named", ROOT)
    assert w.stat(b"named").nlink == 1
    assert w.vp(b"named") is file.vp
    sc.kern_link(w.vfs, w.nch(b"named"), w.top, b"again", ROOT)
    assert w.stat(b"named").nlink == 2
    w.check()
    file.drop()
    assert w.get(b"again") == b"data"
    file = w.open(b"again")
    w.unlink(b"named")
    w.unlink(b"again")
    with errno(ENOENT):
        sc.kern_link(w.vfs, file.nch, w.top, b"revived", ROOT)
    w.check()
    file.drop()


@case
def linked_file_lives_on(w: World) -> None:
    # What if a file with its first name is closed and everything unused is thrown out?
    _, file = sc.kern_tmpfile(w.vfs, w.top, 0o600, O_RDWR, ROOT)
    w.write(file, 0, b"data")
    sc.kern_link(w.vfs, file.nch, w.top, b"named", ROOT)
    ino = file.vp.ino
    file.drop()
    w.vfs.vnodes.freesomevnodes(1000)
    assert w.stat(b"named").fileid == ino
    assert w.get(b"named") == b"data"
    w.check()


@case
def file_made_to_stay_nameless(w: World) -> None:
    # What if a file is made with O_EXCL: can it get a name?
    _, file = sc.kern_tmpfile(w.vfs, w.top, 0o600, O_RDWR | O_EXCL, ROOT)
    with errno(ENOENT):
        sc.kern_link(w.vfs, file.nch, w.top, b"named", ROOT)
    file.drop()


@case
def who_may_make_a_nameless_file(w: World) -> None:
    # What if the directory is not the caller's, not a directory, gone, or immutable?
    w.mkdir(b"d", 0o755)
    w.put(b"f")

    def make(path: bytes, flags: int = O_RDWR, chk: bool = True) -> None:
        sc.kern_tmpfile(w.vfs, w.nch(path), 0o600, flags, ALICE, chk)[1].drop()

    with errno(EACCES):
        make(b"d")
    make(b"d", chk=False)
    w.setattr(b"d", uid=ALICE.uid)
    make(b"d")
    make(b"d", O_WRONLY)
    with errno(EINVAL):
        make(b"d", O_RDONLY)
    with errno(ENOTDIR):
        make(b"f")
    w.setattr(b"d", flags=UF_IMMUTABLE)
    for chk in (True, False):
        with errno(EPERM):
            make(b"d", chk=chk)
    w.setattr(b"d", flags=0)
    held = w.vfs.cache.hold(w.nch(b"d"))
    w.rmdir(b"d")
    with errno(ENOENT):
        sc.kern_tmpfile(w.vfs, held, 0o600, O_RDWR, ROOT)
    w.vfs.cache.drop_nch(held)


@case
def nameless_file_inherits(w: World) -> None:
    # What if the directory is set-gid: whose is the file?
    w.mkdir(b"d")
    w.setattr(b"d", gid=500, mode=0o2777)
    nch, file = sc.kern_tmpfile(w.vfs, w.nch(b"d"), 0o2640, O_RDWR, BOB)
    va = sc.kern_stat(w.vfs, nch)
    assert (va.uid, va.gid, va.mode) == (BOB.uid, 500, 0o640)
    file.drop()


# --- control, locks ----------------------------------------------------------------------------


@case
def flags_of_the_host(w: World) -> None:
    # What if chattr and lsattr of the host read and set flags, in every form they use?
    w.put(b"a")
    w.setattr(b"a", flags=UF_OPAQUE | UF_IMMUTABLE)
    file = w.open(b"a", O_RDONLY)
    for command, size in ((ff.FS_IOC_GETFLAGS, 8), (ff.FS_IOC32_GETFLAGS, 4)):
        assert sc.kern_ioctl(file, command, b"", size) == pack("=I", ff.FS_IMMUTABLE_FL)
    assert sc.kern_ioctl(file, ff.FS_IOC_GETFLAGS, b"", 2) == b"\x10\0"
    wanted = ff.FS_NODUMP_FL | ff.FS_APPEND_FL
    now = w.tick()
    assert sc.kern_ioctl(file, ff.FS_IOC_SETFLAGS, pack("=Q", wanted), 0) == b""
    assert w.stat(b"a").flags == UF_OPAQUE | UF_NODUMP | SF_APPEND
    assert w.stat(b"a").ctime == now
    xattr = sc.kern_ioctl(file, ff.FS_IOC_FSGETXATTR, b"", 28)
    assert unpack("=5I8x", xattr) == (0x90, 0, 0, 0, 0)
    sc.kern_ioctl(file, ff.FS_IOC_FSSETXATTR, pack("=5I8x", 0x80, 0, 7, 0, 0), 0)
    assert w.stat(b"a").flags == UF_OPAQUE | UF_NODUMP
    sc.kern_ioctl(file, ff.FS_IOC32_SETFLAGS, pack("=I", 0), 0)
    assert w.stat(b"a").flags == UF_OPAQUE
    version = sc.kern_ioctl(file, ff.FS_IOC_GETVERSION, b"", 8)
    assert unpack("=I", version)[0] == w.stat(b"a").gen
    file.drop()


@case
def who_may_change_flags(w: World) -> None:
    # What if the owner, a stranger and root change flags the host's way?
    w.put(b"a")
    w.setattr(b"a", uid=ALICE.uid, gid=ALICE.gid)

    def setflags(flags: int, cred: object = ALICE) -> None:
        file = w.open(b"a", O_RDONLY, ROOT)
        file.cred = cred  # type: ignore[assignment]
        try:
            sc.kern_ioctl(file, ff.FS_IOC_SETFLAGS, pack("=I", flags), 0)
        finally:
            file.drop()

    setflags(ff.FS_NODUMP_FL)
    assert w.stat(b"a").flags == UF_NODUMP
    with errno(EPERM):
        setflags(0, BOB)
    for flag in (ff.FS_IMMUTABLE_FL, ff.FS_APPEND_FL):
        with errno(EPERM):
            setflags(flag)
        setflags(flag, ROOT)
        with errno(EPERM):
            setflags(0)
        setflags(0, ROOT)
    for flag in (ff.FS_NOATIME_FL, 1, 0x800000):
        with errno(EOPNOTSUPP):
            setflags(flag, ROOT)
    assert w.stat(b"a").flags == 0


@case
def ioctls_nobody_knows(w: World) -> None:
    # What if a terminal's ioctl is asked of a file, a wrong length is given, a closed file used?
    w.put(b"a", b"12345")
    file = w.open(b"a")
    for command in (0x5401, 0x8008_7899, 0x802C_542A, 0x5413, 0xFFFF_FFFF, 0xA0006601):
        with errno(ENOTTY):
            sc.kern_ioctl(file, command, b"", 0x40)
    for data in (b"", b"123", b"12345"):
        with errno(EINVAL):
            sc.kern_ioctl(file, ff.FS_IOC_SETFLAGS, data, 0)
    with errno(EINVAL):
        sc.kern_ioctl(file, ff.FS_IOC_FSSETXATTR, bytes(27), 0)
    for xattr in (pack("=5I8x", 1, 0, 0, 0, 0), pack("=5I8x", 0, 0, 0, 9, 0)):
        with errno(EOPNOTSUPP):
            sc.kern_ioctl(file, ff.FS_IOC_FSSETXATTR, xattr, 0)
    assert sc.kern_ioctl(file, 0x8004667F, b"", 4) == pack("=i", 5)
    file.offset = 7
    assert sc.kern_ioctl(file, 0x8004667F, b"", 4) == pack("=i", -2)
    assert sc.kern_ioctl(file, 0x4004667D, pack("=i", 1), 0) == b""
    file.drop()
    with errno(EBADF):
        sc.kern_ioctl(file, ff.FS_IOC_GETFLAGS, b"", 8)


class Owner:
    """A process, for locks."""

    uid = 0
    posixlocks = 0
    posixlock_limit = -1
    locks = None

    def __init__(self, pid: int) -> None:
        self.pid = pid


@case
def advisory_locks(w: World) -> None:
    # What if two owners lock a file through two opens, and what if the opens do not allow it?
    w.put(b"a", b"x" * 100)
    file, reader, writer = w.open(b"a"), w.open(b"a", O_RDONLY), w.open(b"a", O_WRONLY)
    one, other = Owner(1), Owner(2)
    lock = sc.kern_advlock
    lock(file, one, F_SETLK, Flock(F_WRLCK, 0, 10), F_POSIX)
    with errno(EAGAIN):
        lock(reader, other, F_SETLK, Flock(F_RDLCK, 9, 1), F_POSIX)
    found = lock(reader, other, F_GETLK, Flock(F_RDLCK, 5, 50), F_POSIX)
    assert found is not None
    assert (found.type, found.start, found.len, found.pid) == (F_WRLCK, 0, 10, 1)
    with errno(EBADF):
        lock(reader, other, F_SETLK, Flock(F_WRLCK, 50, 1), F_POSIX)
    with errno(EBADF):
        lock(writer, other, F_SETLK, Flock(F_RDLCK, 50, 1), F_POSIX)
    lock(reader, other, F_SETLK, Flock(F_WRLCK, 50, 1), 0)
    file.offset = 10
    lock(file, one, F_SETLK, Flock(F_WRLCK, -5, 10, SEEK_CUR), F_POSIX)
    assert [(r.start, r.end) for r in file.vp.lockf.ranges] == [(0, 14), (50, 50)]
    lock(file, one, F_SETLK, Flock(F_WRLCK, -10, 0, SEEK_END), F_POSIX)
    for fl in (Flock(9), Flock(F_RDLCK, -1), Flock(F_RDLCK, 0, -1), Flock(F_RDLCK, OFF_MAX, 5)):
        with errno(EINVAL):
            lock(file, one, F_SETLK, fl, F_POSIX)
    for op, fl in ((F_GETLK, Flock(F_UNLCK)), (99, Flock(F_RDLCK))):
        with errno(EINVAL):
            lock(file, one, op, fl, F_POSIX)
    lock(file, one, F_UNLCK, Flock(F_RDLCK), F_POSIX)
    lock(file, other, F_SETLK, Flock(F_UNLCK), 0)
    assert file.vp.lockf.ranges == []
    directory = w.open(b"", O_RDONLY)
    lock(directory, one, F_SETLK, Flock(F_WRLCK), 0)
    lock(directory, one, F_UNLCK, Flock(F_WRLCK), 0)
    for opened in (file, reader, writer, directory):
        opened.drop()
    with errno(EBADF):
        lock(file, one, F_SETLK, Flock(F_RDLCK), F_POSIX)


# --- mounts -------------------------------------------------------------------------------------


@case
def read_only_mount(w: World) -> None:
    # What if the mount is read-only: is every change EROFS, and everything else as before?
    w.put(b"a", b"x" * PAGE)
    file, other = w.open(b"a"), w.create(b"b")
    mount = w.top.mount
    mount.flag |= MNT.RDONLY
    try:
        for call in (
            lambda: sc.kern_fallocate(file, 0, 0, PAGE),
            lambda: sc.kern_copy_file_range(file, 0, other, 0, 5),
            lambda: sc.kern_tmpfile(w.vfs, w.top, 0o600, O_RDWR, ROOT),
            lambda: sc.kern_ioctl(file, ff.FS_IOC_SETFLAGS, pack("=I", 0), 0),
        ):
            with errno(EROFS):
                call()
        assert sc.kern_lseek(file, 0, SEEK_HOLE) == PAGE
        assert sc.kern_ioctl(file, ff.FS_IOC_GETFLAGS, b"", 8) == bytes(4)
        sc.kern_advlock(file, Owner(1), F_SETLK, Flock(F_WRLCK), 0)
    finally:
        mount.flag &= ~MNT.RDONLY
    file.vp.lockf = None
    file.drop()
    other.drop()


@case
def file_taken_away(w: World) -> None:
    # What if the file system lets go of a file that is open (a forced unmount does so)?
    _, file = sc.kern_tmpfile(w.vfs, w.top, 0o600, O_RDWR, ROOT)
    alive = w.create(b"alive")
    w.write(alive, 0, b"x")
    sc.kern_advlock(file, Owner(1), F_SETLK, Flock(F_WRLCK), F_POSIX)
    w.vfs.vnodes.vgone(file.vp)
    for call in (
        lambda: sc.kern_fallocate(file, 0, 0, PAGE),
        lambda: sc.kern_lseek(file, 0, SEEK_DATA),
        lambda: sc.kern_seek(file, 0, SEEK_SET),
        lambda: sc.kern_copy_file_range(file, 0, alive, 0, 5),
        lambda: sc.kern_copy_file_range(alive, 0, file, 0, 5),
        lambda: sc.kern_ioctl(file, ff.FS_IOC_GETFLAGS, b"", 8),
        lambda: sc.kern_advlock(file, Owner(1), F_SETLK, Flock(F_WRLCK), F_POSIX),
    ):
        with errno(EBADF):
            call()
    assert file.vp.lockf.ranges == []
    file.drop()
    alive.drop()


@case
def writing_without_an_open(w: World) -> None:
    # What if a file or its mount is fixed after it was opened, or was never opened at all?
    file = w.create(b"a")
    w.write(file, 0, b"12345")
    w.setattr(b"a", flags=UF_IMMUTABLE)
    with errno(EPERM):
        w.write(file, 5, b"6")
    w.setattr(b"a", flags=UF_APPEND)
    with errno(EPERM):
        w.write(file, 4, b"6")
    w.write(file, 5, b"6")
    w.setattr(b"a", flags=0)
    assert file.vp.mount is not None
    file.vp.mount.flag |= MNT.RDONLY
    with errno(EROFS):
        w.write(file, 0, b"x")
    file.vp.mount.flag &= ~MNT.RDONLY
    assert w.get(b"a") == b"123456"
    file.drop()


@case
def time_of_birth(w: World) -> None:
    # What if a file is written, renamed and changed: does its birth stay where it was?
    w.mkdir(b"d")
    born = w.tick()
    w.put(b"a")
    w.symlink(b"a", b"l")
    w.tick()
    w.put(b"a", b"more")
    w.setattr(b"a", mode=0o600)
    w.rename(b"a", b"d/b")
    assert w.stat(b"d/b").btime == born
    assert w.stat(b"l").btime == born
    assert w.stat(b"d/b").ctime != born


@case
def devices_are_no_files(w: World) -> None:
    # What if a range of a character device's inode is allocated?
    w.mknod(b"c", 0o020600, (1, 3))
    file = w.open(b"c")
    with errno(ENODEV):
        sc.kern_fallocate(file, 0, 0, 1)
    file.drop()
