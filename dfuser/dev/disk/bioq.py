"""The order in which a driver takes its requests: reads first, but writes trickle in.

Hundreds of megabytes of writes may be queued while somebody waits for one read. So a read goes
before the writes. But a flood of reads must not starve the writes, and a drive likes to see some of
them: every few reads a run of adjacent writes is let through, and now and then, when the system has
far too many writes under way, a large burst of them::

    [ reads and released writes | transition -> writes ... ]

A read is put before the *transition*, a write at the end. Every ``minor_interval`` (5) reads, up to
``minor_bytes`` (256 KiB) of writes that lie one behind the other move before the transition. When
the count reaches ``burst_interval`` (60) it starts anew, and at that moment, if running writes are
severe, ``burst_bytes`` (3 MB) move, adjacent or not. Anything that is neither read nor write is a
barrier: all that is queued goes before it, nothing that comes later overtakes it.

Counterpart: bioqdisksort, bioqwritereorder (kern/subr_disk.c), struct bio_queue_head, bioq_*
    (sys/buf2.h).
Differs from DragonFly: two queues, before and from the transition, are what there is one list with
    a pointer; the order is the same.
Token and lock order: takes none.
Invariants: from the transition on there are only writes, in the order in which they came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from dfuser.libkern.sysctl import RW, Sysctl

from .bio import Bio, BufCmd


class BioqTunables:
    """How much trickles, for all queues of a kernel.

    Attributes:
        severe: whether so many writes are under way that bursts are called for; the buffer cache
            puts its own function here. Counterpart: buf_runningbufspace_severe.
    """

    sysctls = (
        Sysctl("kern.bioq_reorder_burst_interval", "Reads between bursts of writes",
               attr="burst_interval", flags=RW, minimum=1),
        Sysctl("kern.bioq_reorder_minor_interval", "Reads between small runs of writes",
               attr="minor_interval", flags=RW, minimum=1),
        Sysctl("kern.bioq_reorder_burst_bytes", "Bytes of a burst of writes",
               attr="burst_bytes", flags=RW, minimum=0),
        Sysctl("kern.bioq_reorder_minor_bytes", "Bytes of a small run of writes",
               attr="minor_bytes", flags=RW, minimum=0),
    )  # fmt: skip

    def __init__(self, severe: Callable[[], bool] = lambda: False) -> None:
        self.burst_interval = 60
        self.minor_interval = 5
        self.burst_bytes = 3_000_000
        self.minor_bytes = 262_144
        self.severe = severe


class BioqStatistics(NamedTuple):
    """What a queue holds and did.

    Attributes:
        queued, queued_max: requests in it now, and the most there were.
        writes: those from the transition on.
        inserted: requests that ever came.
        minors, bursts: how often writes were let through in a small run or a burst.
        released: writes let through so.
        barriers: requests that were neither read nor write.
    """

    queued: int
    queued_max: int
    writes: int
    inserted: int
    minors: int
    bursts: int
    released: int
    barriers: int


class BioQueueHead:
    """A driver's queue. Counterpart: struct bio_queue_head (sys/buf.h).

    It is as long as its callers make it: the buffer cache limits bytes in flight, and everybody
    else waits for what he has asked for.
    """

    __slots__ = (
        "barriers",
        "before",
        "bursts",
        "inserted",
        "minors",
        "queued_max",
        "released",
        "reorder",
        "tunables",
        "writes",
    )

    def __init__(self, tunables: BioqTunables) -> None:
        self.tunables = tunables
        #: What is before the transition, and what is from it on.
        self.before: deque[Bio] = deque()
        self.writes: deque[Bio] = deque()
        self.reorder = 0
        self.queued_max = 0
        self.inserted = 0
        self.minors = 0
        self.bursts = 0
        self.released = 0
        self.barriers = 0

    def __len__(self) -> int:
        return len(self.before) + len(self.writes)

    @property
    def transition(self) -> Bio | None:
        """The first write that reads overtake, or None."""
        return self.writes[0] if self.writes else None

    def insert_tail(self, bio: Bio) -> None:
        """Put a request behind all others, and let nothing overtake what is queued.

        Counterpart: bioq_insert_tail.
        """
        self.before.extend(self.writes)
        self.writes.clear()
        self.before.append(bio)
        self._count()

    def disksort(self, bio: Bio) -> None:
        """Put a request where it belongs. Counterpart: bioqdisksort."""
        cmd = bio.buf.cmd
        if cmd is BufCmd.READ:
            self.before.append(bio)
            self._count()
            if self.writes:
                self.reorder += 1
                if self.reorder % self.tunables.minor_interval == 0:
                    self._write_reorder()
                    if self.reorder >= self.tunables.burst_interval:
                        self.reorder = 0
        elif cmd is BufCmd.WRITE:
            self.writes.append(bio)
            self._count()
        else:
            self.barriers += 1
            self.insert_tail(bio)

    def _write_reorder(self) -> None:
        """Let some writes through. Counterpart: bioqwritereorder."""
        tunables = self.tunables
        burst = self.reorder >= tunables.burst_interval and tunables.severe()
        left = tunables.burst_bytes if burst else tunables.minor_bytes
        self.bursts += burst
        self.minors += not burst
        following = self.writes[0].offset
        while self.writes and (burst or self.writes[0].offset == following):
            bio = self.writes.popleft()
            size = bio.buf.bcount
            following = bio.offset + size
            self.before.append(bio)
            self.released += 1
            if left < size:
                break
            left -= size

    def first(self) -> Bio | None:
        """The request to be taken next. Counterpart: bioq_first."""
        if self.before:
            return self.before[0]
        return self.writes[0] if self.writes else None

    def takefirst(self) -> Bio | None:
        """Take the next request out. Counterpart: bioq_takefirst."""
        if self.before:
            return self.before.popleft()
        return self.writes.popleft() if self.writes else None

    def remove(self, bio: Bio) -> None:
        """Take out a request that is somewhere in the queue. Counterpart: bioq_remove.

        Raises:
            ValueError: it is not in it.
        """
        try:
            self.before.remove(bio)
        except ValueError:
            self.writes.remove(bio)

    def _count(self) -> None:
        self.inserted += 1
        self.queued_max = max(self.queued_max, len(self))

    def statistics(self) -> BioqStatistics:
        """What it holds and did."""
        return BioqStatistics(
            queued=len(self),
            queued_max=self.queued_max,
            writes=len(self.writes),
            inserted=self.inserted,
            minors=self.minors,
            bursts=self.bursts,
            released=self.released,
            barriers=self.barriers,
        )
