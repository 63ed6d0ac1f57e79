"""Reassembly against a model of single bytes, and its limits one by one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfuser.libkern.errno import KError
from dfuser.libkern.sysctl import SysctlTree
from dfuser.libkern.ucred import Ucred
from dfuser.net.inet.ip_frag import (
    IPFRAG_MPIPE_MAX,
    IPFRAG_TIMEO,
    IPFRAGTTL,
    MAXIPFRAG_MIN,
    IpFragLimits,
    IpFragQueue,
    ipreass_hash,
)
from dfuser.net.wire.ipv4 import IP_DF, IP_MF, Ipv4Repr

SRC, DST = b"\x0a\0\0\1", b"\x0a\0\0\2"
SECOND = 1_000_000_000


def header(off: int, size: int, more: bool, ident: int = 1, **other: object) -> Ipv4Repr:
    fields: dict[str, object] = {"src": SRC, "dst": DST, "p": 17, "id": ident, **other}
    return Ipv4Repr(payload_len=size, off=off // 8 | (IP_MF if more else 0), **fields)  # type: ignore[arg-type]


def check(queue: IpFragQueue) -> None:
    """The invariants of a queue."""
    datagrams = [fp for head in queue.ipq for fp in head.values()]
    assert queue.nipq == len(datagrams) <= IPFRAG_MPIPE_MAX
    assert queue.nbytes == sum(fp.nbytes for fp in datagrams)
    for fp in datagrams:
        assert fp.nfrags == len(fp.frags) <= queue.limits.maxfragsperpacket
        assert fp.nbytes < 128 * 1024
        for one, two in zip(fp.frags, fp.frags[1:], strict=False):
            assert one.end <= two.off


class Model:
    """One datagram as a map from offset to (arrival, byte): who holds which byte."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes: dict[int, tuple[int, int]] = {}
        self.more: dict[int, bool] = {}
        self.clock = 0

    def take(self, off: int, data: bytes, more: bool) -> bytes | None:
        """Take a fragment; the payload if it completes the datagram."""
        self.clock += 1
        begin = off
        if off in self.bytes:
            owner = self.bytes[off][0]
            begin = max(at for at, (who, _) in self.bytes.items() if who == owner) + 1
        if begin >= off + len(data):
            return None
        for at in range(begin, off + len(data)):
            self.bytes[at] = (self.clock, data[at - off])
        self.more[self.clock] = more
        held = sorted(self.bytes)
        if held == list(range(len(held))) and not self.more[self.bytes[held[-1]][0]]:
            payload = bytes(self.bytes[at][1] for at in held)
            self.bytes.clear()
            return payload
        if len({who for who, _ in self.bytes.values()}) > self.limit:
            self.bytes.clear()
        return None


FRAGMENT = st.tuples(st.integers(0, 9), st.integers(1, 5), st.integers(0, 7), st.booleans())


@given(st.lists(FRAGMENT, max_size=40), st.integers(1, 6))
@settings(max_examples=250)
def test_it_is_the_model(arrivals: list[tuple[int, int, int, bool]], limit: int) -> None:
    # What if fragments overlap, repeat and contradict each other in any order?
    limits = IpFragLimits()
    limits.maxfragsperpacket = limit
    queue, model = IpFragQueue(limits), Model(limit)
    for count, (unit, units, short, more) in enumerate(arrivals):
        off, size = unit * 8, units * 8 - (0 if more else short)
        data = bytes((count * 31 + i) & 255 for i in range(size))
        got = queue.ip_reass(header(off, size, more), data, 0)
        expected = model.take(off, data, more)
        assert (got.payload if got else None) == expected
        if got:
            assert got.header.payload_len == len(got.payload)
            assert not got.header.is_fragment
        check(queue)
        assert queue.nbytes == len(model.bytes)
    done = queue.statistics()
    assert done.fragments == len(arrivals)
    assert done.fragtimeout == done.toosmall == done.toolong == 0


@given(
    st.binary(min_size=1, max_size=400),
    st.lists(st.integers(1, 8), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
@settings(max_examples=120)
def test_any_order_and_duplicates(data: bytes, sizes: list[int], random: object) -> None:
    # What if the network reorders and repeats, but nobody lies? The bytes are the bytes.
    pieces = []
    at = 0
    while at < len(data):
        size = sizes[len(pieces) % len(sizes)] * 8
        pieces.append((at, data[at : at + size], at + size < len(data)))
        at += size
    limits = IpFragLimits()
    limits.maxfragsperpacket = len(pieces)
    queue = IpFragQueue(limits)
    repeated = pieces * 2
    random.shuffle(repeated)  # type: ignore[attr-defined]
    results = [
        got
        for off, piece, more in repeated
        if (got := queue.ip_reass(header(off, len(piece), more), piece, 0))
    ]
    assert results
    assert {got.payload for got in results} == {data}
    check(queue)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 3), st.booleans(), st.integers(0, 9)),
        max_size=60,
    ),
    st.integers(1, 4),
)
@settings(max_examples=120)
def test_many_datagrams_with_time_passing(
    arrivals: list[tuple[int, int, bool, int]], maxnipq: int
) -> None:
    # What if many datagrams share the queue, and most of them never become complete?
    limits = IpFragLimits()
    limits.maxnipq = maxnipq
    queue = IpFragQueue(limits)
    now = 0
    born: dict[int, int] = {}
    finished = 0
    for ident, unit, more, wait in arrivals:
        now += wait * SECOND
        queue.ipfrag_timeo(now)
        deadline = queue.next_deadline()
        assert deadline is None or deadline > now
        alive = {key[3] for head in queue.ipq for key in head}
        for gone in set(born) - alive:
            del born[gone]
        assert all(now - since < 30 * SECOND for since in born.values())
        got = queue.ip_reass(header(unit * 8, 8, more, ident), bytes(8), now)
        finished += bool(got)
        check(queue)
        assert queue.nipq <= maxnipq + 1
        alive = {key[3] for head in queue.ipq for key in head}
        if ident in alive:
            born.setdefault(ident, now)
    queue.ipfrag_timeo(now + 31 * SECOND)
    assert queue.next_deadline() is None
    stats = queue.statistics()
    assert (stats.nipq, stats.nbytes, stats.reassembled) == (0, 0, finished)
    assert stats.fragments == len(arrivals)
    assert stats.fragdropped + stats.fragtimeout <= stats.fragments


def test_old_bytes_win_in_front_and_new_bytes_behind() -> None:
    # What if two fragments disagree about the same bytes?
    queue = IpFragQueue(IpFragLimits())
    assert queue.ip_reass(header(0, 16, True), b"a" * 16, 0) is None
    assert queue.ip_reass(header(24, 16, False), b"c" * 16, 0) is None
    got = queue.ip_reass(header(8, 24, True), b"b" * 24, 0)
    assert got is not None
    assert got.payload == b"a" * 16 + b"b" * 16 + b"c" * 8


def test_a_fragment_that_covers_others_replaces_them() -> None:
    # What if a large fragment comes after the small ones inside it?
    queue = IpFragQueue(IpFragLimits())
    for off in (8, 16, 24):
        queue.ip_reass(header(off, 8, True), b"s" * 8, 0)
    assert queue.ip_reass(header(0, 40, True), b"L" * 40, 0) is None
    assert queue.statistics().fragdropped == 3
    got = queue.ip_reass(header(40, 1, False), b"!", 0)
    assert got is not None
    assert got.payload == b"L" * 40 + b"!"


def test_the_header_is_the_first_fragments() -> None:
    # What if the fragments' headers differ in what may differ?
    queue = IpFragQueue(IpFragLimits())
    queue.ip_reass(header(8, 3, False, ttl=9, tos=1), b"end", 0)
    first = header(0, 8, True, ttl=64, tos=2, options=b"\x94\x04\0\0")
    got = queue.ip_reass(first._replace(off=first.off | IP_DF), b"beginning"[:8], 0)
    assert got is not None
    assert got.header == first._replace(off=0, payload_len=11)


def test_an_empty_last_fragment() -> None:
    # What if the last fragment has no bytes? It still says where the end is.
    queue = IpFragQueue(IpFragLimits())
    assert queue.ip_reass(header(8, 0, False), b"", 0) is None
    check(queue)
    got = queue.ip_reass(header(0, 8, True), b"payload!", 0)
    assert got is not None
    assert got.payload == b"payload!"
    assert queue.statistics().nipq == 0


@pytest.mark.parametrize("size", [0, 1, 7, 9, 1479])
def test_a_middle_fragment_must_be_whole_units(size: int) -> None:
    # What if a fragment that is not the last is empty or not a multiple of 8 bytes?
    queue = IpFragQueue(IpFragLimits())
    assert queue.ip_reass(header(0, size, True), bytes(size), 0) is None
    assert queue.statistics()[:6] == (0, 0, 0, 0, 1, 0)
    assert queue.nipq == 0


@pytest.mark.parametrize("other", [{"src": DST}, {"dst": SRC}, {"p": 6}, {"ident": 2}])
def test_datagrams_do_not_mix(other: dict[str, object]) -> None:
    # What if fragments agree in all but one part of the name?
    queue = IpFragQueue(IpFragLimits())
    assert queue.ip_reass(header(0, 8, True), bytes(8), 0) is None
    assert queue.ip_reass(header(8, 8, False, **other), bytes(8), 0) is None  # type: ignore[arg-type]
    assert queue.nipq == 2


def test_a_datagram_longer_than_any_is_dropped() -> None:
    # What if fragments add up to more than 65535 bytes (the ping of death)?
    queue = IpFragQueue(IpFragLimits())
    for off in range(0, 60000, 6000):
        assert queue.ip_reass(header(off, 6000, True), bytes(6000), 0) is None
    assert queue.ip_reass(header(60000, 5520, False), bytes(5520), 0) is None
    stats = queue.statistics()
    assert (stats.toolong, stats.fragdropped, stats.nbytes, stats.nipq) == (1, 11, 0, 0)
    for off in range(0, 60000, 6000):
        queue.ip_reass(header(off, 6000, True), bytes(6000), 0)
    got = queue.ip_reass(header(60000, 5515, False), bytes(5515), 0)
    assert got is not None
    assert got.header.payload_len + got.header.wire_len == 65535


def test_more_fragments_than_allowed() -> None:
    # What if a datagram comes in too many pieces? The one above the limit may still complete it.
    limits = IpFragLimits()
    limits.maxfragsperpacket = 3
    queue = IpFragQueue(limits)
    for off in (0, 8, 16):
        queue.ip_reass(header(off, 8, True), bytes(8), 0)
    assert queue.ip_reass(header(24, 8, False), bytes(8), 0) is not None
    for off in (0, 8, 16, 32):
        assert queue.ip_reass(header(off, 8, True), bytes(8), 0) is None
    stats = queue.statistics()
    assert (stats.nipq, stats.fragdropped, stats.reassembled) == (0, 4, 1)


def test_too_many_datagrams_throw_out_the_oldest_of_the_bucket() -> None:
    # What if an attacker begins datagrams and never ends them?
    limits = IpFragLimits()
    limits.maxnipq = 4
    queue = IpFragQueue(limits)
    idents = [0x0100, 0x0500, 0x0900, 0x4100, 0x8100]
    buckets = [ipreass_hash(SRC, ident) for ident in idents]
    assert buckets[0] == buckets[3] == buckets[4] != buckets[1]
    for ident in idents:
        queue.ip_reass(header(0, 8, True, ident), bytes(8), 0)
    assert queue.nipq == 5
    queue.ip_reass(header(0, 8, True, 0xC100), bytes(8), 0)
    assert {key[3] for head in queue.ipq for key in head} == {
        0x0500,
        0x0900,
        0x4100,
        0x8100,
        0xC100,
    }
    assert queue.statistics().fragtimeout == 1
    # A bucket without any: the first that has one gives up its oldest.
    queue.ip_reass(header(0, 8, True, 0x0D00), bytes(8), 0)
    assert queue.nipq == 5
    assert queue.statistics().fragtimeout == 2
    check(queue)


def test_datagrams_begun_without_a_limit() -> None:
    # What if the limit of datagrams is taken away? The pool's own limit stays.
    limits = IpFragLimits()
    limits.maxnipq = -1
    queue = IpFragQueue(limits)
    for ident in range(IPFRAG_MPIPE_MAX + 10):
        queue.ip_reass(header(0, 8, True, ident), bytes(8), 0)
    assert queue.nipq == IPFRAG_MPIPE_MAX
    assert queue.statistics().fragdropped == 10
    check(queue)


@pytest.mark.parametrize("name", ["maxnipq", "maxfragsperpacket"])
def test_no_fragments_at_all(name: str) -> None:
    # What if an administrator forbids fragments?
    limits = IpFragLimits()
    setattr(limits, name, 0)
    queue = IpFragQueue(limits)
    assert queue.ip_reass(header(0, 8, True), bytes(8), 0) is None
    assert queue.statistics()[:2] == (1, 1)
    assert queue.nipq == 0


def test_it_dies_at_the_60th_tick() -> None:
    # What if the rest never comes?
    queue = IpFragQueue(IpFragLimits())
    begun = 7 * SECOND + IPFRAG_TIMEO // 3
    queue.ip_reass(header(0, 8, True), bytes(8), begun)
    queue.ip_reass(header(16, 8, True), bytes(8), begun + 20 * SECOND)
    deadline = queue.next_deadline()
    assert deadline == 7 * SECOND + IPFRAGTTL * IPFRAG_TIMEO
    queue.ipfrag_timeo(deadline - 1)
    assert queue.nipq == 1
    queue.ipfrag_timeo(deadline)
    stats = queue.statistics()
    assert (stats.nipq, stats.nbytes, stats.fragtimeout) == (0, 0, 2)
    assert queue.next_deadline() is None


def test_a_lowered_limit_is_enforced_at_the_next_tick() -> None:
    # What if memory for fragments is taken back while they are held?
    limits = IpFragLimits()
    queue = IpFragQueue(limits)
    for ident in range(10):
        queue.ip_reass(header(0, 8, True, ident), bytes(8), 0)
    limits.maxnipq = 3
    assert queue.next_deadline() == 0
    queue.ipfrag_timeo(1)
    assert queue.nipq == 3
    assert queue.statistics().fragdropped == 7
    check(queue)
    queue.ipfrag_drain()
    assert (queue.nipq, queue.nbytes, queue.statistics().fragdropped) == (0, 0, 10)


def test_the_buffer_may_be_reused() -> None:
    # What if the driver overwrites its buffer while fragments wait?
    queue = IpFragQueue(IpFragLimits())
    buffer = bytearray(b"first...")
    queue.ip_reass(header(0, 8, True), memoryview(buffer), 0)
    buffer[:] = b"second!!"
    got = queue.ip_reass(header(8, 8, False), buffer, 0)
    assert got is not None
    assert got.payload == b"first...second!!"


def test_limits_are_sysctls() -> None:
    # What if the names or defaults were not DragonFly's?
    limits = IpFragLimits(nmbclusters=65536, ncpus=4)
    tree = SysctlTree()
    tree.register(limits)
    root = Ucred.root()
    assert tree.get("net.inet.ip.maxfragpackets") == "512"
    assert tree.get("net.inet.ip.maxfragsperpacket") == "16"
    tree.set("net.inet.ip.maxfragpackets", "-1", root)
    assert limits.maxnipq == -1
    with pytest.raises(KError):
        tree.set("net.inet.ip.maxfragsperpacket", "-1", root)
    assert IpFragLimits(0).maxnipq == MAXIPFRAG_MIN == 32
