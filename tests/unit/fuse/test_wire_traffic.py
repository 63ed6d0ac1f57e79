"""What two real mounts have said: all of it is understood, and comes out again byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from dfuser.fuse.wire import attr, dirent, notify, outputs, reply
from dfuser.fuse.wire.const import WRITE_DATA, Notify, Opcode
from dfuser.fuse.wire.ext import SuppGroups
from dfuser.fuse.wire.inputs import UnknownIn
from dfuser.fuse.wire.kernel import emit_request, parse_reply
from dfuser.fuse.wire.layout import WireError
from dfuser.fuse.wire.request import Request, body_end, parse_header, parse_request

from .wire_corpus import recorded


def again(request: Request, data: bytes) -> bytes:
    """The request, made from what was understood of it."""
    head = request.header
    return emit_request(
        head.opcode, request.body, unique=head.unique, nodeid=head.nodeid, uid=head.uid,
        gid=head.gid, pid=head.pid, data=data[WRITE_DATA : body_end(head)],
        extensions=request.extensions,
    )  # fmt: skip


def test_requests_come_out_byte_for_byte() -> None:
    # What if the kernel says something that the records do not hold?
    seen = set()
    for message in recorded():
        if message.kernel:
            request = parse_request(message.data)
            assert not isinstance(request.body, UnknownIn)
            assert again(request, message.data) == message.data
            seen.add(request.header.opcode)
    assert len(seen) == len(Opcode) - 5
    assert Opcode.BATCH_FORGET in seen
    assert Opcode.INTERRUPT in seen
    assert Opcode.NOTIFY_REPLY in seen


def test_a_recycled_buffer_is_parsed_alike() -> None:
    # What if the rest of a longer buffer, left by an earlier request, leaked into a later one?
    buffer = bytearray(b"\xa5" * 70000)
    for message in recorded():
        if message.kernel:
            buffer[: len(message.data)] = message.data
            assert parse_request(buffer, len(message.data)) == parse_request(message.data)


EMITTED: dict[int, Any] = {
    Opcode.OPEN: lambda u, b: reply.emit_open(u, *b),
    Opcode.OPENDIR: lambda u, b: reply.emit_open(u, *b),
    Opcode.WRITE: lambda u, b: reply.emit_write(u, *b),
    Opcode.COPY_FILE_RANGE: lambda u, b: reply.emit_write(u, *b),
    Opcode.COPY_FILE_RANGE_64: lambda u, b: reply.emit_copy_file_range_64(u, *b),
    Opcode.STATFS: reply.emit_statfs,
    Opcode.GETLK: reply.emit_lk,
    Opcode.LSEEK: lambda u, b: reply.emit_lseek(u, *b),
    Opcode.POLL: lambda u, b: reply.emit_poll(u, *b),
    Opcode.IOCTL: lambda u, b: reply.emit_ioctl(u, b.result, b.data),
}


def emitted(opcode: int, unique: int, body: Any) -> bytes:
    """A reply, made from what was understood of it."""
    if body is None:
        return reply.emit_ok(unique)
    if isinstance(body, bytes):
        return b"".join(reply.emit_data(unique, body))
    if isinstance(body, outputs.EntryOut):
        return reply.emit_entry(unique, attr.pack_entry_out(body))
    if isinstance(body, outputs.AttrOut):
        packed = attr.pack_attr_out(body.attr, body.attr_valid, body.attr_valid_nsec)
        return reply.emit_bytes(unique, packed)
    if isinstance(body, outputs.CreateOut):
        return reply.emit_create(unique, attr.pack_entry_out(body.entry), *body.open)
    if isinstance(body, outputs.GetxattrOut):
        return reply.emit_xattr_size(unique, body.size)
    if isinstance(body, outputs.InitOutRaw):
        return reply.emit_bytes(unique, outputs.INIT_OUT.pack(*body))
    if isinstance(body, outputs.StatxOut):
        head = outputs.STATX_HEAD.pack(*body[:3])
        return reply.emit_statx(unique, head + outputs.STATX.pack(*body.stat))
    if opcode == Opcode.READDIR:
        return reply.emit_bytes(unique, dirent.pack_dirents(body, 1 << 20)[0])
    if opcode == Opcode.READDIRPLUS:
        rows = [(attr.pack_entry_out(entry), *row) for entry, row in body]
        return reply.emit_bytes(unique, dirent.pack_direntplus(rows, 1 << 20)[0])
    result: bytes = EMITTED[opcode](unique, body)
    return result


def test_replies_come_out_byte_for_byte() -> None:
    # What if a reply that a kernel has taken could not be read, or not be made again?
    asked: dict[tuple[int, int], Request] = {}
    count = 0
    for message in recorded():
        if message.kernel:
            request = parse_request(message.data)
            asked[message.mount, request.header.unique] = request
        elif message.unique:
            request = asked[message.mount, message.unique]
            opcode = request.header.opcode
            size = getattr(request.body, "out_size", getattr(request.body, "size", None))
            error, unique, body = parse_reply(opcode, message.data, size)
            if error:
                made = reply.emit_error(unique, error)
            else:
                made = emitted(opcode, unique, body)
            assert made == message.data
            count += 1
    assert count > 400


NOTIFIED: dict[type, Any] = {
    notify.NotifyPoll: lambda n: notify.emit_poll_wakeup(n.kh),
    notify.NotifyInvalInode: lambda n: notify.emit_inval_inode(*n),
    notify.NotifyInvalEntry: lambda n: notify.emit_inval_entry(
        n.parent, n.name, expire_only=bool(n.flags)
    ),
    notify.NotifyStore: lambda n: b"".join(notify.emit_store(n.nodeid, n.offset, n.data)),
    notify.NotifyRetrieve: lambda n: notify.emit_retrieve(*n),
    notify.NotifyDelete: lambda n: notify.emit_delete(*n),
    notify.NotifyResend: lambda _n: notify.emit_resend(),
    notify.NotifyIncEpoch: lambda _n: notify.emit_inc_epoch(),
    notify.NotifyPrune: lambda n: notify.emit_prune(n.nodeids),
}


def test_notifications_come_out_byte_for_byte() -> None:
    # What if a notification that a kernel has taken could not be read, or not be made again?
    kinds = set()
    for message in recorded():
        if not message.kernel and not message.unique:
            parsed = notify.parse_notification(message.data)
            assert NOTIFIED[type(parsed)](parsed) == message.data
            kinds.add(type(parsed))
    assert len(kinds) == len(Notify)


def test_a_group_is_told() -> None:
    # What if the extension of a request that makes a file were mistaken for a part of its name?
    found = [
        (Opcode(request.header.opcode).name, request.body.name)
        for request in (parse_request(m.data) for m in recorded() if m.kernel)
        if request.extensions == (SuppGroups((4242,)),)
    ]
    assert set(found) == {("CREATE", b"member"), ("MKDIR", b"folder"), ("SYMLINK", b"link")}


def readers() -> Iterator[tuple[bytes, Callable[[bytes], object]]]:
    """Every recorded message with the parser that it is for."""
    opcodes = {(m.mount, m.unique): parse_header(m.data, len(m.data)).opcode
               for m in recorded() if m.kernel}  # fmt: skip
    for message in recorded():
        if message.kernel:
            yield message.data, parse_request
        elif message.unique:
            yield message.data, partial(parse_reply, opcodes[message.mount, message.unique])
        else:
            yield message.data, notify.parse_notification


def test_every_truncation_of_every_message() -> None:
    # What if a message ends anywhere, and its head still says the whole length?
    for data, parse in readers():
        for size in range(len(data)):
            try:
                parse(data[:size])
            except WireError:
                continue
            pytest.fail(f"{data[:size].hex()} was taken")


def test_every_truncation_with_the_length_put_right() -> None:
    # What if what is left claims to be all: can anything but WireError come out?
    refused = 0
    for data, parse in readers():
        for size in range(16, len(data)):
            try:
                parse(size.to_bytes(4, "little") + data[4:size])
            except WireError:
                refused += 1
    assert refused > 50_000


def test_truncations_that_lie_about_their_length() -> None:
    # What if the length in the head is right for what is left of the request?
    refused = taken = 0
    shapes = {(m.data[4:8], len(m.data)): m.data for m in recorded() if m.kernel}
    for data in shapes.values():
        for size in range(40, len(data)):
            short = size.to_bytes(4, "little") + data[4:size]
            try:
                request = parse_request(short)
            except WireError:
                refused += 1
            else:
                taken += 1
                assert parse_header(short, size).len == size
                assert request.header.opcode == Opcode.INIT
    assert refused > 1000
    assert taken
