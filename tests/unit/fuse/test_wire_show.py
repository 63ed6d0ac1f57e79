"""Messages in words: every opcode, both directions, whatever the bytes are."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dfuser.fuse.wire import attr, notify, outputs, reply, words
from dfuser.fuse.wire import inputs as i
from dfuser.fuse.wire.const import (
    FATTR_FH,
    FATTR_KILL_SUIDGID,
    FATTR_MODE,
    FATTR_MTIME,
    FATTR_MTIME_NOW,
    FATTR_SIZE,
    FOPEN_DIRECT_IO,
    FOPEN_KEEP_CACHE,
    FUSE_GETATTR_FH,
    FUSE_LK_FLOCK,
    FUSE_RELEASE_FLUSH,
    FUSE_WRITE_CACHE,
    Notify,
    Opcode,
)
from dfuser.fuse.wire.dirent import pack_dirents
from dfuser.fuse.wire.ext import SuppGroups
from dfuser.fuse.wire.kernel import emit_request
from dfuser.fuse.wire.operations import has_reply, refusal
from dfuser.fuse.wire.show import (
    KEEP,
    REPLY_KEEP,
    asked,
    gather,
    notification_name,
    reply_keep,
    request_keep,
    show_notification,
    show_reply,
    show_request,
)

from .test_wire_codec import EXTENSIONS, bodies, replies
from .test_wire_traffic import emitted
from .wire_corpus import recorded

MODE = 0o100644
PACKED = attr.pack_entry(
    42, 0, 1, 1, ino=42, size=1234, blocks=8, atime=0, mtime=0, ctime=0, mode=MODE, nlink=1,
    uid=7, gid=8,
)  # fmt: skip


QUOTED = re.compile(r'"(\\.|[^"\\])*"')
ESCAPE = re.compile(r"\\(x..|u....|U........|.)")


def unquoted(shown: str) -> bytes:
    """The bytes that a quoted name stands for."""

    def one(found: re.Match[str]) -> str:
        kind, digits = found[1][0], found[1][1:]
        if kind == "x":
            code = int(digits, 16)
            return chr(code if code < 0x80 else code + 0xDC00)
        return chr(int(digits, 16)) if digits else {"n": "\n", "t": "\t", "r": "\r"}.get(kind, kind)

    assert QUOTED.fullmatch(shown)
    return ESCAPE.sub(one, shown[1:-1]).encode("utf-8", "surrogateescape")


def request(opcode: Opcode, body: Any, nodeid: int = 42, **more: Any) -> str:
    """A request in words."""
    raw = emit_request(opcode, body, unique=24, nodeid=nodeid, pid=4711, **more)
    return show_request(raw)


def check_line(text: str) -> None:
    """One line, nothing that plays with a terminal."""
    assert text.isprintable()


REQUESTS: list[tuple[Opcode, Any, str]] = [
    (Opcode.LOOKUP, b"usr", '42 "usr"'),
    (Opcode.FORGET, 3, "42 nlookup 3"),
    (Opcode.GETATTR, i.GetattrIn(0, 9), "42"),
    (Opcode.GETATTR, i.GetattrIn(FUSE_GETATTR_FH, 9), "42 fh 9"),
    (
        Opcode.SETATTR,
        i.SetattrIn(
            FATTR_MODE | FATTR_SIZE | FATTR_FH | FATTR_KILL_SUIDGID | FATTR_MTIME | FATTR_MTIME_NOW,
            9, 5, 0, 0, 0, 0, 0, 0, 0, 0o100600, 0, 0,
        ),
        "42 mode 0600 size 5 mtime now fh 9 KILL_SUIDGID",
    ),
    (
        Opcode.SETATTR,
        i.SetattrIn(FATTR_MTIME, 0, 0, 0, 0, -5, 0, 0, 7, 0, 0, 0, 0),
        "42 mtime -5.000000007",
    ),
    (Opcode.READLINK, None, "42"),
    (Opcode.SYMLINK, i.SymlinkIn(b"a", b"/b c"), '42 "a" to "/b c"'),
    (
        Opcode.MKNOD,
        i.MknodIn(0o020600, 0x103, 0o22, b"null"),
        '42 "null" chr 0600 dev 1:3 umask 022',
    ),
    (Opcode.MKDIR, i.MkdirIn(0o755, 0o77, b"d"), '42 "d" 0755 umask 077'),
    (Opcode.UNLINK, b"\xff\n\"", '42 "\\xff\\n\\""'),
    (Opcode.RMDIR, "straße".encode(), '42 "straße"'),
    (Opcode.RENAME, i.RenameIn(7, b"a", b"b"), '42 "a" to 7 "b"'),
    (Opcode.RENAME2, i.Rename2In(7, 1, b"a", b"b"), '42 "a" to 7 "b" RENAME_NOREPLACE'),
    (Opcode.LINK, i.LinkIn(7, b"a"), '42 "a" of 7'),
    (Opcode.OPEN, i.OpenIn(os.O_RDWR | os.O_APPEND | 0x8000, 0), "42 O_RDWR|O_APPEND"),
    (Opcode.READ, i.ReadIn(3, 8192, 4096, 0, 0, 0), "42 fh 3 offset 8192 size 4096"),
    (Opcode.WRITE, i.WriteIn(3, 5, 4, FUSE_WRITE_CACHE, 0, 0), "42 fh 3 offset 5 size 4 CACHE"),
    (Opcode.STATFS, None, "42"),
    (Opcode.RELEASE, i.ReleaseIn(3, 0, FUSE_RELEASE_FLUSH, 0), "42 fh 3 O_RDONLY FLUSH"),
    (Opcode.FSYNC, i.FsyncIn(3, 1), "42 fh 3 FDATASYNC"),
    (
        Opcode.SETXATTR,
        i.SetxattrIn(5, os.XATTR_CREATE, 1, b"user.x", b"value"),
        '42 "user.x" "value" XATTR_CREATE ACL_KILL_SGID',
    ),
    (Opcode.GETXATTR, i.GetxattrIn(0, b"user.x"), '42 "user.x" size 0'),
    (Opcode.LISTXATTR, i.ListxattrIn(64), "42 size 64"),
    (Opcode.REMOVEXATTR, b"user.x", '42 "user.x"'),
    (Opcode.FLUSH, i.FlushIn(3, 255), "42 fh 3 owner 0xff"),
    (Opcode.INIT, i.InitIn(7, 45, 131072, 1), "42 7.45 max_readahead 131072 ASYNC_READ"),
    (Opcode.OPENDIR, i.OpenIn(os.O_DIRECTORY, 0), "42 O_RDONLY|O_DIRECTORY"),
    (Opcode.READDIR, i.ReadIn(3, 0, 4096, 0, 0, 0), "42 fh 3 offset 0 size 4096"),
    (Opcode.RELEASEDIR, i.ReleaseIn(3, 0, 0, 0), "42 fh 3 O_RDONLY"),
    (Opcode.FSYNCDIR, i.FsyncIn(3, 0), "42 fh 3"),
    (Opcode.GETLK, i.LkIn(3, 9, 0, 9, 1, 12, 0), "42 fh 3 F_WRLCK 0..9 pid 12 owner 0x9"),
    (
        Opcode.SETLK,
        i.LkIn(3, 9, 0, (1 << 63) - 1, 0, 0, FUSE_LK_FLOCK),
        "42 fh 3 F_RDLCK 0..end owner 0x9 FLOCK",
    ),
    (Opcode.SETLKW, i.LkIn(3, 9, 5, 5, 2, 0, 0), "42 fh 3 F_UNLCK 5..5 owner 0x9"),
    (Opcode.ACCESS, i.AccessIn(os.R_OK | os.X_OK), "42 R_OK|X_OK"),
    (
        Opcode.CREATE,
        i.CreateIn(os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o100644, 0o22, 0, b"f"),
        '42 "f" O_WRONLY|O_CREAT|O_EXCL mode 0644 umask 022',
    ),
    (Opcode.INTERRUPT, i.InterruptIn(22), "42 #22"),
    (Opcode.BMAP, i.BmapIn(3, 4096), "42 block 3 of 4096"),
    (Opcode.DESTROY, None, "42"),
    (
        Opcode.IOCTL,
        i.IoctlIn(3, 0, 0x80086601, 0x7F00, 0, 8, b""),
        "42 fh 3 _IOR('f',1,8) arg 0x7f00 in 0 out 8",
    ),
    (Opcode.POLL, i.PollIn(3, 8, 1, 5), "42 fh 3 kh 8 POLLIN|POLLOUT SCHEDULE_NOTIFY"),
    (Opcode.NOTIFY_REPLY, i.NotifyRetrieveIn(4096, 0), "42 offset 4096 size 0"),
    (Opcode.BATCH_FORGET, [(5, 1), (6, 2)], "42 2 nodes 5*1 6*2"),
    (
        Opcode.FALLOCATE,
        i.FallocateIn(3, 0, 10, 3),
        "42 fh 3 offset 0 size 10 FALLOC_FL_KEEP_SIZE|FALLOC_FL_PUNCH_HOLE",
    ),
    (Opcode.READDIRPLUS, i.ReadIn(3, 0, 4096, 0, 0, 0), "42 fh 3 offset 0 size 4096"),
    (Opcode.LSEEK, i.LseekIn(3, 7, 3), "42 fh 3 offset 7 SEEK_DATA"),
    (
        Opcode.COPY_FILE_RANGE,
        i.CopyFileRangeIn(3, 0, 43, 4, 9, 100, 0),
        "42 fh 3 offset 0 to 43 fh 4 offset 9 size 100",
    ),
    (
        Opcode.SETUPMAPPING,
        i.SetupmappingIn(3, 0, 4096, 1, 0),
        "42 fh 3 offset 0 size 4096 at 0x0 0x1",
    ),
    (Opcode.REMOVEMAPPING, [(4096, 4096)], "42 1 ranges 0x1000+0x1000"),
    (Opcode.SYNCFS, None, "42"),
    (Opcode.TMPFILE, i.CreateIn(2, 0o600, 0, 0, b"/"), '42 "/" O_RDWR mode 0600 umask 000'),
    (Opcode.STATX, i.StatxIn(0, 0, 0, 0xFFF), "42 0 STATX_ALL"),
    (
        Opcode.COPY_FILE_RANGE_64,
        i.CopyFileRangeIn(3, 0, 43, 4, 9, 1 << 40, 0),
        "42 fh 3 offset 0 to 43 fh 4 offset 9 size 1099511627776",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("opcode", "body", "text"), REQUESTS, ids=lambda v: getattr(v, "name", ""))
def test_what_is_asked(opcode: Opcode, body: Any, text: str) -> None:
    # What if an argument is shown in the wrong place or a flag by the wrong name?
    assert request(opcode, body, data=b"data" if opcode == Opcode.WRITE else b"") == text


def test_every_opcode_is_in_the_list_above() -> None:
    # What if a new opcode is decoded by nobody?
    assert {opcode for opcode, _, _ in REQUESTS} == set(Opcode)


def test_extensions_are_shown() -> None:
    # What if the group that a new file takes is not seen?
    text = request(Opcode.MKDIR, i.MkdirIn(0o755, 0, b"d"), extensions=(SuppGroups((5, 6)),))
    assert text == '42 "d" 0755 umask 000 groups 5,6'


REPLIES: list[tuple[Opcode, bytes, str]] = [
    (Opcode.LOOKUP, reply.emit_entry(2, PACKED), "node 42 reg 0644 7:8 1234 bytes"),
    (Opcode.LOOKUP, reply.emit_entry(2, attr.pack_negative(5)), "no such name, for 5 s"),
    (Opcode.LOOKUP, reply.emit_error(2, 2), "ENOENT"),
    (Opcode.SETLK, reply.emit_error(2, 11), "EAGAIN"),
    (Opcode.MKNOD, reply.emit_error(2, 95), "EOPNOTSUPP"),
    (Opcode.READ, reply.emit_error(2, 511), "error 511"),
    (Opcode.GETATTR, reply.emit_attr(2, PACKED), "reg 0644 7:8 1234 bytes"),
    (Opcode.OPEN, reply.emit_open(2, 3, FOPEN_DIRECT_IO), "fh 3 FOPEN_DIRECT_IO"),
    (Opcode.OPEN, reply.emit_open(2, 3, 0, 9), "fh 3 backing 9"),
    (
        Opcode.CREATE,
        reply.emit_create(2, PACKED, 3, FOPEN_KEEP_CACHE),
        "node 42 reg 0644 7:8 1234 bytes fh 3 FOPEN_KEEP_CACHE",
    ),
    (Opcode.READ, reply.emit_bytes(2, b"secret"), "6 bytes"),
    (Opcode.READLINK, reply.emit_bytes(2, b"/etc/\xff"), '"/etc/\\xff"'),
    (Opcode.GETXATTR, reply.emit_bytes(2, b"v" * 70), f'70 bytes "{"v" * 64}"...'),
    (Opcode.LISTXATTR, reply.emit_bytes(2, b"a\0b\0c\0d\0e\0"), '10 bytes "a" "b" "c" "d" ...'),
    (Opcode.WRITE, reply.emit_write(2, 512), "512 bytes"),
    (Opcode.POLL, reply.emit_poll(2, 1), "POLLIN"),
    (Opcode.LSEEK, reply.emit_lseek(2, 7), "offset 7"),
    (Opcode.BMAP, reply.emit_bmap(2, 7), "block 7"),
    (Opcode.IOCTL, reply.emit_ioctl(2, 0, b"1234"), "0 and 4 bytes"),
    (Opcode.IOCTL, reply.emit_ioctl_retry(2, [(1, 2)], []), "again with 1 pieces in, 0 out"),
    (Opcode.COPY_FILE_RANGE_64, reply.emit_copy_file_range_64(2, 1 << 33), "8589934592 bytes"),
    (Opcode.GETLK, reply.emit_lk(2, outputs.LkOut(0, 9, 1, 12)), "F_WRLCK 0..9 pid 12"),
    (
        Opcode.STATX,
        reply.emit_statx(2, attr.pack_statx(PACKED, btime=1_500_000_000)),
        "reg 0644 7:8 1234 bytes born 1.500000000",
    ),
    (Opcode.UNLINK, reply.emit_ok(2), "ok"),
    (Opcode.READDIR, reply.emit_bytes(2, b""), "end"),
    (
        Opcode.READDIR,
        reply.emit_bytes(2, pack_dirents([(1, 1, 4, b"."), (2, 2, 8, b"a b")], 999)[0]),
        '64 bytes, 2 entries: dir "." reg "a b"',
    ),
]


@pytest.mark.parametrize(("opcode", "data", "text"), REPLIES)
def test_what_is_answered(opcode: Opcode, data: bytes, text: str) -> None:
    # What if an answer is shown as another?
    assert show_reply(opcode, data) == text


def test_the_size_of_a_value_is_not_the_value() -> None:
    # What if GETXATTR asked how long the value is, and got eight bytes?
    assert show_reply(Opcode.GETXATTR, reply.emit_xattr_size(2, 70), 0) == "size 70"
    assert show_reply(Opcode.LISTXATTR, reply.emit_xattr_size(2, 70), 0) == "size 70"
    raw = emit_request(Opcode.GETXATTR, i.GetxattrIn(0, b"user.x"), unique=2)
    assert asked(Opcode.GETXATTR, raw) == 0
    assert asked(Opcode.LOOKUP, raw) is None


NOTIFICATIONS: list[tuple[bytes, str]] = [
    (notify.emit_poll_wakeup(8), "kh 8"),
    (notify.emit_inval_inode(42), "42 offset 0 size all"),
    (notify.emit_inval_inode(42, -1), "42 attributes"),
    (notify.emit_inval_entry(1, b"usr", expire_only=True), '1 "usr" EXPIRE_ONLY'),
    (b"".join(notify.emit_store(42, 4096, b"data")), "42 offset 4096 size 4"),
    (notify.emit_retrieve(5, 42, 0, 4096), "42 offset 0 size 4096 as #5"),
    (notify.emit_delete(1, 42, b"x\x1b"), '1 "x\\x1b" of 42'),
    (notify.emit_resend(), ""),
    (notify.emit_inc_epoch(), ""),
    (notify.emit_prune([1, 2, 3, 4, 5]), "5 nodes 1 2 3 4 ..."),
]


@pytest.mark.parametrize(("data", "text"), NOTIFICATIONS)
def test_what_is_told(data: bytes, text: str) -> None:
    # What if a notification is shown as another?
    assert show_notification(data) == text


def test_all_real_traffic_is_shown() -> None:
    # What if a mount says something that has no words, or a part of a message has too few?
    opened: dict[tuple[int, int], tuple[int, bytes]] = {}
    lines = 0
    for message in recorded():
        data = message.data
        if message.kernel:
            opcode = int.from_bytes(data[4:8], "little")
            kept = data[: request_keep(opcode, len(data))]
            text = show_request(kept, len(data))
            assert text == show_request(data)
            opened[message.mount, message.unique] = opcode, kept
        elif message.unique:
            opcode, kept = opened.pop((message.mount, message.unique))
            part = data[: reply_keep(opcode)]
            text = show_reply(opcode, part, asked(opcode, kept))
        else:
            text = show_notification(data[:REPLY_KEEP])
        check_line(text)
        assert "<" not in text
        lines += 1
    assert lines > 1000


@pytest.mark.parametrize("opcode", list(Opcode), ids=lambda op: op.name)
@settings(max_examples=5, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_every_request_and_reply_has_words(opcode: Opcode, data: st.DataObject) -> None:
    # What if some value of some member cannot be shown, whole or cut off anywhere?
    body, payload = data.draw(bodies(opcode))
    raw = emit_request(
        opcode, body, unique=2, nodeid=9, data=payload, extensions=data.draw(EXTENSIONS)
    )
    text = show_request(raw)
    check_line(text)
    assert text.startswith("9")
    assert "<" not in QUOTED.sub("", text)
    check_line(show_request(raw[: data.draw(st.integers(0, len(raw)))], len(raw)))
    if has_reply(opcode) and not refusal(opcode):
        answer = data.draw(replies(opcode))
        whole = emitted(opcode, 2, answer)
        check_line(show_reply(opcode, whole))
        check_line(show_reply(opcode, whole[: data.draw(st.integers(0, len(whole)))]))


@given(st.integers(0, 60), st.binary(max_size=400), st.booleans(), st.integers(0, 500))
@example(Opcode.READDIRPLUS, b"", True, 0)
def test_no_bytes_raise(opcode: int, tail: bytes, honest: bool, size: int) -> None:
    # What if the bytes are not what the protocol says?
    length = 40 + len(tail) if honest else size
    raw = i.IN_HEADER.pack(length, opcode, 2, 9, 0, 0, 0, len(tail) % 7) + tail
    for data in (raw, tail):
        check_line(show_request(data))
        check_line(show_request(data, size))
        asked(opcode, data)
    head = outputs.OUT_HEADER.pack(16 + len(tail) if honest else size, 0, 2)
    for data in (head + tail, tail):
        for room in (None, 0, 7):
            check_line(show_reply(opcode, data, room))
    told = outputs.OUT_HEADER.pack(16 + len(tail) if honest else size, opcode % 12, 0)
    check_line(show_notification(told + tail))
    check_line(show_notification(tail))


@given(st.binary(max_size=300))
def test_a_quoted_name_can_be_told_apart(name: bytes) -> None:
    # What if two names look alike, or one breaks out of its quotes?
    shown = words.quote(name, 300)
    check_line(shown)
    assert unquoted(shown) == name


def test_a_long_message_is_shown_from_its_beginning() -> None:
    # What if a value, a listing or a list of nodes is longer than what is kept of it?
    raw = emit_request(
        Opcode.SETXATTR, i.SetxattrIn(9000, 0, 0, b"user.x", b"v" * 9000), unique=2, nodeid=1
    )
    assert show_request(raw[:KEEP], len(raw)) == f'1 "user.x" "{"v" * 64}"...'
    short = emit_request(
        Opcode.SETXATTR, i.SetxattrIn(5, 0, 0, b"user.x", b"value"), unique=2, nodeid=1,
        setxattr_ext=False,
    )  # fmt: skip
    assert show_request(short) == '1 "user.x" "value"'
    forget = emit_request(Opcode.BATCH_FORGET, [(n, 1) for n in range(1000)], unique=2)
    assert show_request(forget[:KEEP], len(forget)) == "1000 nodes 0*1 1*1 2*1 3*1 ..."
    entries, count = pack_dirents([(n, n, 8, b"name%03d" % n) for n in range(500)], 1 << 20)
    listing = reply.emit_bytes(2, entries)
    assert count == 500
    text = show_reply(Opcode.READDIR, listing[:REPLY_KEEP])
    assert text.startswith(f'{len(entries)} bytes, 127+ entries: reg "name000"')
    assert text.endswith('"name003" ...')


def test_gather_takes_no_more_than_it_must() -> None:
    # What if a reply of a megabyte in three buffers were joined to see its head?
    buffers = [b"0123", memoryview(b"4567"), bytearray(b"89")]
    assert [gather(buffers, n) for n in (0, 3, 4, 6, 99)] == [
        b"", b"012", b"0123", b"012345", b"0123456789",
    ]  # fmt: skip
    assert gather([], 5) == b""


def test_names_of_notifications() -> None:
    # What if a code has no name?
    assert [notification_name(code) for code in Notify][:2] == ["NOTIFY_POLL", "NOTIFY_INVAL_INODE"]
    assert notification_name(99) == "NOTIFY_99"


def test_words_of_flags_that_contain_each_other() -> None:
    # What if O_SYNC were shown as O_DSYNC and something unnamed, or O_TMPFILE as O_DIRECTORY?
    assert words.open_words(os.O_SYNC) == "O_RDONLY|O_SYNC"
    assert words.open_words(os.O_DSYNC | 1) == "O_WRONLY|O_DSYNC"
    assert words.open_words(os.O_TMPFILE | 2) == "O_RDWR|O_TMPFILE"
    assert words.open_words(os.O_DIRECTORY | 1 << 30) == "O_RDONLY|O_DIRECTORY|0x40000000"
    assert words.flag_words(0x801, words.STATX_WORDS) == "STATX_TYPE|STATX_BTIME"
