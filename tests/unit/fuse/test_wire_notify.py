"""Notifications there and back, and those that a kernel would refuse."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfuser.fuse.wire import notify as n
from dfuser.fuse.wire.const import FUSE_EXPIRE_ONLY, FUSE_NAME_MAX, Notify
from dfuser.fuse.wire.layout import WireError

U64 = st.integers(0, 2**64 - 1)
S64 = st.integers(-(2**63), 2**63 - 1)
NAMES = st.binary(min_size=1, max_size=FUSE_NAME_MAX).map(lambda name: name.replace(b"\0", b"n"))


def back(raw: bytes, code: Notify) -> n.Notification:
    """What the kernel reads; the head must say what it is and how long."""
    assert struct.unpack_from("=IiQ", raw) == (len(raw), code, 0)
    return n.parse_notification(raw)


@given(U64, U64, S64, S64, NAMES, st.binary(max_size=200), st.lists(U64, max_size=20))
def test_there_and_back(
    a: int, b: int, off: int, length: int, name: bytes, data: bytes, nodeids: list[int]
) -> None:
    # What if a notification told the kernel about another file, name or range?
    size = len(data)
    assert back(n.emit_poll_wakeup(a), Notify.POLL) == (a,)
    assert back(n.emit_inval_inode(a, off, length), Notify.INVAL_INODE) == (a, off, length)
    entry = n.NotifyInvalEntry(a, 0, name)
    assert back(n.emit_inval_entry(a, name), Notify.INVAL_ENTRY) == entry
    expired = n.emit_inval_entry(a, name, expire_only=True)
    assert back(expired, Notify.INVAL_ENTRY) == entry._replace(flags=FUSE_EXPIRE_ONLY)
    assert back(n.emit_delete(a, b, name), Notify.DELETE) == n.NotifyDelete(a, b, name)
    stored = b"".join(n.emit_store(a, b, data))
    assert back(stored, Notify.STORE) == n.NotifyStore(a, b, size, data)
    wanted = n.NotifyRetrieve(b, a, 7, size)
    assert back(n.emit_retrieve(b, a, 7, size), Notify.RETRIEVE) == wanted
    assert back(n.emit_prune(nodeids), Notify.PRUNE) == n.NotifyPrune(tuple(nodeids))
    assert back(n.emit_resend(), Notify.RESEND) == n.NotifyResend()
    assert back(n.emit_inc_epoch(), Notify.INC_EPOCH) == n.NotifyIncEpoch()


def test_the_bytes_themselves() -> None:
    # What if both directions had the same mistake?
    assert n.emit_inval_entry(3, b"ab") == struct.pack("=IiQQII", 35, 3, 0, 3, 2, 0) + b"ab\0"
    assert n.emit_delete(3, 4, b"ab") == struct.pack("=IiQQQII", 43, 6, 0, 3, 4, 2, 0) + b"ab\0"
    assert n.emit_prune([5, 6]) == struct.pack("=IiQIIQQQ", 48, 9, 0, 2, 0, 0, 5, 6)
    page = memoryview(bytearray(4096))
    head, data = n.emit_store(5, 8192, page)
    assert head == struct.pack("=IiQQQII", 4136, 4, 0, 5, 8192, 4096, 0)
    assert data is page


@pytest.mark.parametrize("name", [b"", b"a\0b", b"n" * (FUSE_NAME_MAX + 1)])
def test_names_the_kernel_refuses(name: bytes) -> None:
    # What if a name were invalidated that the kernel reads otherwise?
    with pytest.raises(WireError):
        n.emit_inval_entry(1, name)
    with pytest.raises(WireError):
        n.emit_delete(1, 2, name)


def test_what_contradicts_itself() -> None:
    # What if a number inside is not what is there, or a byte too many follows?
    good = [
        n.emit_poll_wakeup(1), n.emit_inval_inode(1), n.emit_inval_entry(1, b"name"),
        n.emit_delete(1, 2, b"name"), b"".join(n.emit_store(1, 2, b"data")),
        n.emit_retrieve(1, 2, 3, 4), n.emit_resend(), n.emit_inc_epoch(), n.emit_prune([1, 2]),
    ]  # fmt: skip
    for raw in good:
        longer = struct.pack("=I", len(raw) + 1) + raw[4:] + b"\0"
        with pytest.raises(WireError):
            n.parse_notification(longer)
        with pytest.raises(WireError):
            n.parse_notification(raw + b"\0")
        for size in range(len(raw)):
            with pytest.raises(WireError):
                n.parse_notification(raw[:size])
            if size >= 16:
                with pytest.raises(WireError):
                    n.parse_notification(struct.pack("=I", size) + raw[4:size])
    for code in (0, 10, -1):
        with pytest.raises(WireError):
            n.parse_notification(struct.pack("=IiQ", 16, code, 0))
    with pytest.raises(WireError):
        n.parse_notification(struct.pack("=IiQ", 16, 7, 5))
