"""IPv4 reassembly: fragments go in, datagrams come out, and memory stays bounded.

A queue belongs to one CPU; fragments reach it because they are hashed by addresses alone. A
datagram under reassembly (`Ipq`) is named by source, destination, protocol and identification.
Its fragments are kept in order and never overlap, because overlaps are resolved on arrival:

* what the **preceding** fragment already holds is cut from the front of the new one; if nothing
  is left, the new one is dropped;
* what the new one holds is cut from the front of the **following** fragments; those that it
  covers are dropped.

So old bytes win against a fragment that begins inside them, and new bytes win against fragments
that begin inside the new one. The datagram is complete when the fragments touch from 0 on and
the last of them is the one without IP_MF; its header is the first fragment's.

What an attacker can make us hold is bounded: `maxnipq` + 1 datagrams (a new one above the limit
throws out an old one of its hash bucket, else of the first bucket that has one), never more
than IPFRAG_MPIPE_MAX; `maxfragsperpacket` fragments in each (one more may complete it); and as
fragments do not overlap, less than 128 KiB each. A datagram that stays incomplete is thrown out
by the 60th half-second tick after its first fragment.

Time is passed in, in nanoseconds of any clock that only goes forward. `next_deadline` says when
`ipfrag_timeo` has something to do.

Counterpart: struct ipq (netinet/ip_var.h), struct ipfrag_queue, ip_reass, ip_freef,
    ipfrag_timeo_dispatch, ipfrag_drain_oncpu (netinet/ip_input.c).
Differs from DragonFly: fragments are copied out of the packet's buffer, which belongs to the
    driver. IPFRAG_MPIPE_MAX is each queue's own, not shared by all CPUs. Offsets are integers
    that cannot wrap. No checksum state is carried along: a reassembled datagram's checksum has
    not been verified. The tick is not a callout but whatever calls `ipfrag_timeo`, late calls
    included.
Token/lock order: takes none; a queue is used by its CPU's protocol thread only.
Invariants: fragments of a datagram are sorted and disjoint; `nipq` is the number of datagrams in
    the buckets; `nbytes` is the sum of the bytes held; a fragment is counted in `toosmall`, or
    in `fragments` and then is held, was part of a datagram that was completed, or is counted
    once in `fragdropped` or `fragtimeout`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from dfuser.libkern.sysctl import INT, RW, Sysctl
from dfuser.net.wire.base import Buffer
from dfuser.net.wire.ipv4 import IP_MAXPACKET, Ipv4Repr

#: Ticks of the slow timeout (PR_SLOWHZ) that an incomplete datagram lives.
IPFRAGTTL: Final = 60
PR_SLOWHZ: Final = 2
#: Nanoseconds between two ticks.
IPFRAG_TIMEO: Final = 1_000_000_000 // PR_SLOWHZ
#: Most datagrams under reassembly on one CPU, whatever maxfragpackets says.
IPFRAG_MPIPE_MAX: Final = 4096
#: The least that the default of maxfragpackets is.
MAXIPFRAG_MIN: Final = IPFRAG_MPIPE_MAX * 2 // 256
IPREASS_NHASH: Final = 64
MAXFRAGSPERPACKET: Final = 16

IpqKey = tuple[bytes, bytes, int, int]


class IpFragLimits:
    """The limits that the queues of all CPUs share.

    Counterpart: maxnipq, maxfragsperpacket (netinet/ip_input.c).
    """

    __slots__ = ("maxfragsperpacket", "maxnipq")

    sysctl_maxfragpackets = Sysctl(
        "net.inet.ip.maxfragpackets",
        "Maximum number of IPv4 fragment reassembly queue entries",
        attr="maxnipq",
        kind=INT,
        flags=RW,
        minimum=-1,
    )
    sysctl_maxfragsperpacket = Sysctl(
        "net.inet.ip.maxfragsperpacket",
        "Maximum number of IPv4 fragments allowed per packet",
        attr="maxfragsperpacket",
        kind=INT,
        flags=RW,
        minimum=0,
    )

    def __init__(self, nmbclusters: int = 0, ncpus: int = 1) -> None:
        """Choose limits that fit the memory for packets.

        Args:
            nmbclusters: clusters that mbufs may use.
            ncpus: CPUs that run protocol threads.
        """
        #: Datagrams under reassembly on each CPU; -1 for no limit of its own, 0 for none at all.
        self.maxnipq = max(nmbclusters // 32 // ncpus, MAXIPFRAG_MIN)
        #: Fragments of a datagram that are kept; 0 for none at all.
        self.maxfragsperpacket = MAXFRAGSPERPACKET


class Fragment:
    """A piece of a datagram, cut where others hold its bytes.

    Counterpart: an mbuf on ipq_frags, whose ip_off and ip_len are in bytes.
    """

    __slots__ = ("data", "header", "more", "off")

    def __init__(self, header: Ipv4Repr, data: bytes) -> None:
        """Take a copy of a fragment's payload, with the header it came with."""
        self.header: Final = header
        self.off = header.offset
        self.data = data
        self.more: Final = header.more_fragments

    @property
    def end(self) -> int:
        """Offset of the byte after the last."""
        return self.off + len(self.data)

    def cut(self, count: int) -> None:
        """Drop bytes from the front."""
        self.data = self.data[count:]
        self.off += count


class Ipq:
    """A datagram under reassembly. Counterpart: struct ipq (netinet/ip_var.h)."""

    __slots__ = ("frags", "last_tick", "nfrags")

    def __init__(self, last_tick: int) -> None:
        """Begin a datagram that dies at a tick."""
        self.frags: list[Fragment] = []
        #: ipq_nfrags: what counts against the limit, and is counted when the datagram dies.
        self.nfrags = 0
        self.last_tick: Final = last_tick

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(len(frag.data) for frag in self.frags)

    def complete(self) -> bool:
        """Whether the fragments touch from 0 on up to one that is the last."""
        expected = 0
        for frag in self.frags:
            if frag.off != expected:
                return False
            expected += len(frag.data)
        return not self.frags[-1].more


class IpFragStatistics(NamedTuple):
    """What a queue has done. Counterpart: the fragment counters of struct ip_stats.

    Attributes:
        fragments: ips_fragments: received.
        fragdropped: ips_fragdropped: duplicates, covered ones, those of refused datagrams.
        fragtimeout: ips_fragtimeout: those of datagrams too old, or thrown out for a new one.
        reassembled: ips_reassembled: datagrams completed.
        toosmall: ips_toosmall: not the last, and empty or not a multiple of 8 bytes.
        toolong: ips_toolong: datagrams completed but longer than 65535 bytes.
        nipq: datagrams under reassembly now.
        nbytes: bytes held now.
    """

    fragments: int
    fragdropped: int
    fragtimeout: int
    reassembled: int
    toosmall: int
    toolong: int
    nipq: int
    nbytes: int


class Datagram(NamedTuple):
    """A datagram put together.

    Attributes:
        header: the first fragment's, with no fragment fields and the whole payload's length.
        payload: all bytes; their checksum is not verified.
    """

    header: Ipv4Repr
    payload: bytes


def ipreass_hash(src: bytes, ident: int) -> int:
    """Which bucket a datagram is in. Counterpart: IPREASS_HASH.

    DragonFly takes both numbers as they lie in a little-endian machine's memory.
    """
    swapped = (ident & 0xFF) << 8 | ident >> 8
    return ((src[0] & 15 | (src[1] & 15) << 4) ^ swapped) & IPREASS_NHASH - 1


class IpFragQueue:
    """The datagrams one CPU is putting together. Counterpart: struct ipfrag_queue."""

    __slots__ = (
        "fragdropped",
        "fragments",
        "fragtimeout",
        "ipq",
        "limits",
        "nbytes",
        "nipq",
        "reassembled",
        "toolong",
        "toosmall",
    )

    def __init__(self, limits: IpFragLimits) -> None:
        """Start empty, under limits that may change at any time."""
        self.limits: Final = limits
        #: Buckets, each with its oldest datagram first.
        self.ipq: Final[tuple[dict[IpqKey, Ipq], ...]] = tuple({} for _ in range(IPREASS_NHASH))
        self.nipq = 0
        self.nbytes = 0
        self.fragments = 0
        self.fragdropped = 0
        self.fragtimeout = 0
        self.reassembled = 0
        self.toosmall = 0
        self.toolong = 0

    def ip_reass(self, header: Ipv4Repr, payload: Buffer, now: int) -> Datagram | None:
        """Take a fragment.

        Args:
            header: of the fragment.
            payload: what is behind it, `header.payload_len` bytes; copied if it is kept.
            now: nanoseconds.

        Returns:
            The datagram that this fragment completes, or None.
        """
        limits = self.limits
        if limits.maxnipq == 0 or limits.maxfragsperpacket == 0:
            self.fragments += 1
            self.fragdropped += 1
            return None
        head = self.ipq[ipreass_hash(header.src, header.id)]
        key = (header.src, header.dst, header.p, header.id)
        fp = head.get(key)
        if fp is None and self.nipq > limits.maxnipq > 0:
            self._make_room(head)
        if header.more_fragments and (not payload or len(payload) & 7):
            self.toosmall += 1
            return None
        self.fragments += 1
        if fp is None:
            if self.nipq >= IPFRAG_MPIPE_MAX:
                self.fragdropped += 1
                return None
            fp = head[key] = Ipq(now // IPFRAG_TIMEO + IPFRAGTTL)
            self.nipq += 1
        fp.nfrags += 1
        if not self._insert(fp, Fragment(header, bytes(payload))):
            fp.nfrags -= 1
            self.fragdropped += 1
            return None
        return self._completed(head, key, fp)

    def _make_room(self, head: dict[IpqKey, Ipq]) -> None:
        """Throw out the oldest datagram of a bucket, or of the first one that has any."""
        bucket = head or next(bucket for bucket in self.ipq if bucket)
        key = next(iter(bucket))
        self.fragtimeout += bucket[key].nfrags
        self._freef(bucket, key)

    def _insert(self, fp: Ipq, new: Fragment) -> bool:
        """Put a fragment in its place and resolve overlaps.

        Returns:
            Whether anything of it was new.
        """
        frags = fp.frags
        at = len(frags)
        while at and frags[at - 1].off > new.off:
            at -= 1
        if at:
            overlap = frags[at - 1].end - new.off
            if overlap > 0:
                if overlap >= len(new.data):
                    return False
                new.cut(overlap)
        gone = at
        while gone < len(frags) and new.end > frags[gone].off:
            overlap = new.end - frags[gone].off
            if overlap < len(frags[gone].data):
                frags[gone].cut(overlap)
                self.nbytes -= overlap
                break
            self.nbytes -= len(frags[gone].data)
            gone += 1
        fp.nfrags -= gone - at
        self.fragdropped += gone - at
        frags[at:gone] = [new]
        self.nbytes += len(new.data)
        return True

    def _completed(self, head: dict[IpqKey, Ipq], key: IpqKey, fp: Ipq) -> Datagram | None:
        """The datagram if it is whole; drops it if it is hopeless."""
        if not fp.complete():
            if fp.nfrags > self.limits.maxfragsperpacket:
                self.fragdropped += fp.nfrags
                self._freef(head, key)
            return None
        first = fp.frags[0].header
        size = fp.frags[-1].end
        if size + first.wire_len > IP_MAXPACKET:
            self.toolong += 1
            self.fragdropped += fp.nfrags
            self._freef(head, key)
            return None
        payload = b"".join(frag.data for frag in fp.frags)
        self._freef(head, key)
        self.reassembled += 1
        return Datagram(first._replace(off=0, payload_len=size), payload)

    def _freef(self, head: dict[IpqKey, Ipq], key: IpqKey) -> None:
        """Forget a datagram. Counterpart: ip_freef."""
        self.nbytes -= head.pop(key).nbytes
        self.nipq -= 1

    def ipfrag_timeo(self, now: int) -> None:
        """Throw out what is too old, and what is above a limit that was lowered.

        Args:
            now: nanoseconds; never less than in an earlier call.
        """
        tick = now // IPFRAG_TIMEO
        for head in self.ipq:
            # All live equally long, so the oldest is the first to go.
            while head:
                key, fp = next(iter(head.items()))
                if fp.last_tick > tick:
                    break
                self.fragtimeout += fp.nfrags
                self._freef(head, key)
        limit = self.limits.maxnipq
        if limit >= 0:
            for head in self.ipq:
                while self.nipq > limit and head:
                    self._drop(head, next(reversed(head)))

    def next_deadline(self) -> int | None:
        """When `ipfrag_timeo` will have something to do, in nanoseconds; None for never."""
        if 0 <= self.limits.maxnipq < self.nipq:
            return 0
        ticks = [next(iter(head.values())).last_tick for head in self.ipq if head]
        return min(ticks) * IPFRAG_TIMEO if ticks else None

    def ipfrag_drain(self) -> None:
        """Throw out everything, because memory is short."""
        for head in self.ipq:
            while head:
                self._drop(head, next(reversed(head)))

    def _drop(self, head: dict[IpqKey, Ipq], key: IpqKey) -> None:
        """Throw out a datagram whose time was not over."""
        self.fragdropped += head[key].nfrags
        self._freef(head, key)

    def statistics(self) -> IpFragStatistics:
        """All counters, and what is held."""
        return IpFragStatistics(
            self.fragments,
            self.fragdropped,
            self.fragtimeout,
            self.reassembled,
            self.toosmall,
            self.toolong,
            self.nipq,
            self.nbytes,
        )
