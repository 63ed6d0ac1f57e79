"""INIT negotiation: every flag a decision, old kernels and new ones, the bytes on the wire."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfuser.fuse.wire import flags as f
from dfuser.fuse.wire.const import Notify, Opcode
from dfuser.fuse.wire.init import Again, Negotiated, Refused, Wishes, decide, negotiate
from dfuser.fuse.wire.inputs import InitIn
from dfuser.fuse.wire.kernel import emit_request, parse_reply
from dfuser.fuse.wire.notify import NOTIFICATIONS
from dfuser.fuse.wire.outputs import InitOutRaw
from dfuser.fuse.wire.request import parse_request

from .wire_corpus import recorded

ALL = sum(flag.bit for flag in f.FLAGS)
BOOLS = ("writeback", "passthrough", "zero_open", "zero_opendir", "locks", "acl", "killpriv",
         "cache_symlinks", "explicit_inval")  # fmt: skip


def offer(minor: int) -> int:
    """All flags that a kernel of a version can offer."""
    return sum(flag.bit for flag in f.FLAGS if flag.since <= minor)


def agree(minor: int, wishes: Wishes | None = None, flags: int | None = None) -> Negotiated:
    """Negotiate with a kernel of a version that offers everything it can."""
    init = InitIn(7, minor, 131072, offer(minor) if flags is None else flags)
    outcome = negotiate(init, wishes or Wishes())
    assert isinstance(outcome, Negotiated)
    return outcome


def said(outcome: Negotiated | Again) -> InitOutRaw:
    """The reply as the kernel reads it."""
    body: InitOutRaw = parse_reply(Opcode.INIT, outcome.emit(2)).body
    return body


# minor, length of the reply's body, flags that must be on, flags that must be off, max_write
KERNELS = [
    (12, 24, {"ASYNC_READ", "POSIX_LOCKS", "ATOMIC_O_TRUNC", "EXPORT_SUPPORT", "BIG_WRITES",
              "DONT_MASK"}, {"FLOCK_LOCKS", "DO_READDIRPLUS"}, 131072),
    (19, 24, {"FLOCK_LOCKS", "HAS_IOCTL_DIR"}, {"AUTO_INVAL_DATA", "DO_READDIRPLUS"}, 131072),
    (23, 64, {"AUTO_INVAL_DATA", "DO_READDIRPLUS", "READDIRPLUS_AUTO", "ASYNC_DIO"},
     {"PARALLEL_DIROPS", "WRITEBACK_CACHE", "MAX_PAGES"}, 131072),
    (31, 64, {"MAX_PAGES", "CACHE_SYMLINKS", "EXPLICIT_INVAL_DATA", "HANDLE_KILLPRIV",
              "POSIX_ACL", "ABORT_ERROR"}, {"AUTO_INVAL_DATA", "SETXATTR_EXT", "INIT_EXT"},
     1 << 20),
    (38, 64, {"INIT_EXT", "CREATE_SUPP_GROUP", "HANDLE_KILLPRIV_V2", "SETXATTR_EXT"},
     {"HANDLE_KILLPRIV", "SECURITY_CTX", "HAS_RESEND"}, 1 << 20),
    (45, 64, {"HAS_RESEND", "HAS_EXPIRE_ONLY", "DIRECT_IO_ALLOW_MMAP"},
     {"PASSTHROUGH", "OVER_IO_URING", "ALLOW_IDMAP", "NO_EXPORT_SUPPORT", "REQUEST_TIMEOUT"},
     1 << 20),
]  # fmt: skip


@pytest.mark.parametrize(("minor", "length", "on", "off", "max_write"), KERNELS)
def test_kernels(minor: int, length: int, on: set[str], off: set[str], max_write: int) -> None:
    # What if an old kernel gets flags or a length that it does not know?
    outcome = agree(minor)
    names = set(f.names(outcome.flags))
    assert on <= names
    assert not off & names
    assert outcome.flags & ~offer(minor) == 0
    assert outcome.max_write == max_write
    assert len(outcome.emit(2)) == 16 + length
    reply = said(outcome)
    assert (reply.major, reply.minor) == (7, minor)
    assert reply.flags | (reply.flags2 << 32 if length == 64 else 0) == outcome.flags
    assert reply.max_write == max_write
    assert reply.max_pages == (256 if "MAX_PAGES" in names else 0)
    assert outcome.setxattr_ext is ("SETXATTR_EXT" in names)


def test_a_newer_minor_is_met_at_ours() -> None:
    # What if the kernel is newer than this code?
    outcome = agree(60, flags=ALL | 1 << 50)
    assert (outcome.minor, outcome.announced) == (45, 60)
    assert outcome.flags & ~ALL == 0


def test_another_major() -> None:
    # What if the kernel speaks another protocol altogether?
    newer = negotiate(InitIn(8, 0, 0, 0), Wishes())
    assert newer == Again(8)
    assert said(newer)[:3] == (7, 45, 0)  # type: ignore[arg-type]
    for major, minor in ((6, 50), (7, 11), (0, 0)):
        older = negotiate(InitIn(major, minor, 0, 0), Wishes())
        assert older == Refused(major, minor)
        assert parse_reply(Opcode.INIT, older.emit(2)).error == 71


def test_what_excludes_each_other() -> None:
    # What if both of two flags were answered that the kernel cannot have together?
    both = Wishes(writeback=True, passthrough=True, zero_open=True, max_stack_depth=2)
    outcome = agree(45, both)
    assert outcome.has("PASSTHROUGH")
    assert not outcome.has("WRITEBACK_CACHE")
    assert said(outcome).max_stack_depth == 2
    assert outcome.has("NO_OPEN_SUPPORT")
    assert not outcome.has("ATOMIC_O_TRUNC")
    reasons = {decision.name: decision for decision in outcome.decisions}
    assert reasons["WRITEBACK_CACHE"] == ("WRITEBACK_CACHE", False, "yields to PASSTHROUGH")
    # A kernel without passthrough leaves the way to writeback free.
    assert agree(38, both).has("WRITEBACK_CACHE")
    assert agree(38, both).max_stack_depth == 0


def test_what_needs_another() -> None:
    # What if a flag beyond bit 31 were answered without INIT_EXT, where nobody reads it?
    outcome = agree(45, flags=ALL & ~f.FUSE_INIT_EXT)
    assert outcome.flags >> 32 == 0
    reasons = {decision.name: decision.reason for decision in outcome.decisions}
    assert reasons["HAS_RESEND"] == "needs INIT_EXT"
    without = agree(45, flags=ALL & ~f.BY_NAME["DO_READDIRPLUS"].bit)
    assert not without.has("READDIRPLUS_AUTO")


def test_backported_flags_are_believed() -> None:
    # What if a distribution's old kernel offers a newer flag?
    outcome = agree(31, flags=offer(31) | f.FUSE_SETXATTR_EXT)
    assert outcome.setxattr_ext


@given(
    st.integers(0, 2**64 - 1),
    st.integers(12, 60),
    st.fixed_dictionaries({name: st.booleans() for name in BOOLS}),
    st.integers(0, 600),
)
def test_any_offer_and_any_wish(
    offered: int, minor: int, wished: dict[str, bool], timeout: int
) -> None:
    # What if some combination answers what was not offered, not wished for, or excludes itself?
    wishes = Wishes(request_timeout=timeout, **wished)
    outcome = agree(minor, wishes, offered)
    assert outcome.flags & ~offered == 0
    on = set(f.names(outcome.flags))
    for flag in f.FLAGS:
        if flag.name in on:
            assert flag.wish == f.ALWAYS or getattr(wishes, flag.wish)
            assert set(flag.needs) <= on
            assert not set(flag.yields) & on
    assert [decision.name for decision in outcome.decisions] == [flag.name for flag in f.FLAGS]
    assert {decision.name for decision in outcome.decisions if decision.on} == on
    assert all(decision.reason for decision in outcome.decisions)
    assert outcome.max_write % 4096 == 0
    assert outcome.buffer_size >= max(8192, outcome.max_write + 80)
    assert (outcome.request_timeout > 0) == ("REQUEST_TIMEOUT" in on)
    reply = said(outcome)
    assert reply.max_write == outcome.max_write


def test_the_order_of_rows_does_not_decide() -> None:
    # What if a flag yielded to one that is itself dropped?
    offered = f.BY_NAME["WRITEBACK_CACHE"].bit | f.FUSE_PASSTHROUGH
    flags, _ = decide(offered, Wishes(writeback=True, passthrough=True))
    assert f.names(flags) == ("WRITEBACK_CACHE",)


def test_sizes() -> None:
    # What if a write did not fit the pages of a request or the buffer it is read into?
    assert agree(12, flags=0).max_write == 4096
    assert agree(12, flags=f.FUSE_BIG_WRITES).max_write == 131072
    assert agree(45, Wishes(max_write=65536)).max_pages == 16
    assert agree(45, Wishes(max_write=4096)).buffer_size == 8192
    assert agree(45).buffer_size == (1 << 20) + 4096
    assert agree(45, Wishes(max_readahead=4096)).max_readahead == 4096
    assert agree(45).max_readahead == 131072
    for size in (0, -4096, 5000):
        with pytest.raises(ValueError, match="max_write"):
            negotiate(InitIn(7, 45, 0, 0), Wishes(max_write=size))


def test_notifications_by_version() -> None:
    # What if a notification went to a kernel that takes it for another, or for none?
    assert [rule.code for rule in NOTIFICATIONS] == list(Notify)
    for minor in (12, 15, 18, 40, 44, 45):
        outcome = agree(minor)
        can = {code for code in Notify if outcome.can_notify(code)}
        assert can == {rule.code for rule in NOTIFICATIONS if rule.since <= minor}
    assert not agree(45, flags=ALL & ~f.BY_NAME["HAS_RESEND"].bit).can_notify(Notify.RESEND)


def test_the_table_is_whole() -> None:
    # What if a bit had two rows or none, or a row named another that does not exist?
    assert [flag.bit for flag in f.FLAGS] == [1 << n for n in range(43)]
    for flag in f.FLAGS:
        assert set(flag.needs) | set(flag.yields) <= set(f.BY_NAME)
        assert flag.wish in (f.ALWAYS, f.NEVER) or hasattr(Wishes(), flag.wish)
        assert set(flag.brings) <= set(InitOutRaw._fields)
        assert flag.why
        assert flag.bit < 1 << 32 or "INIT_EXT" in flag.needs
    loops = itertools.permutations(f.FLAGS, 2)
    assert not [(a.name, b.name) for a, b in loops if a.name in b.yields and b.name in a.yields]
    assert f.names(1 << 45 | 1) == ("ASYNC_READ", "bit 45")
    with pytest.raises(KeyError):
        agree(45).has("NO_SUCH_FLAG")


def test_short_and_long_requests() -> None:
    # What if an INIT of an older kernel, which ends earlier, were refused or read too far?
    for minor, size in ((12, 56), (35, 56), (36, 104), (45, 104)):
        init = InitIn(7, minor, 4096, offer(minor))
        raw = emit_request(Opcode.INIT, init, unique=2)
        assert len(raw) == size
        assert parse_request(raw).body == init
    # The second half of the flags counts only if the first half says so.
    raw = emit_request(Opcode.INIT, InitIn(7, 45, 0, 1 << 34 | 1), unique=2)
    assert parse_request(raw).body.flags == 1


def test_the_recorded_kernel() -> None:
    # What if a real kernel's offer were understood otherwise than when it was recorded?
    replies = {m.mount: m.data for m in recorded() if not m.kernel and m.unique == 2}
    inits = {m.mount: parse_request(m.data) for m in recorded() if m.kernel and m.unique == 2}
    first = negotiate(inits[0].body, Wishes())
    second = negotiate(
        inits[1].body, Wishes(writeback=True, acl=False, explicit_inval=False, killpriv=False)
    )
    assert isinstance(first, Negotiated)
    assert isinstance(second, Negotiated)
    assert (first.announced, second.announced) == (45, 45)
    assert {0: first.emit(2), 1: second.emit(2)} == replies
    assert second.has("WRITEBACK_CACHE")
    assert second.has("AUTO_INVAL_DATA")
