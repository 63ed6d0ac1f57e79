"""The log of what was written, and every state a power cut could have left behind.

A `WriteLog` notes, for each write, trim, zero and flush, the moment it was submitted and the moment
it was reported complete. Moments are numbered events, no time. Whoever tests adds *marks*: "here
fsync of file 7 had returned". From that `CrashExplorer` derives, for each moment, what the medium
may hold if the power fails then:

- A write is **stable** if a flush was submitted after the write had completed, and that flush has
  completed; or if it was written with FUA and has completed. It is on the medium.
- A write that was submitted and is not stable is **volatile**. It may be on the medium, or not, or
  in part: any subset of the volatile writes may have made it, since a drive empties its cache in
  the order it likes.
- Two writes to the same sector keep their order: a drive does not bring old data back.
- One write is not atomic. It may be torn at a boundary of 512 bytes or of 4 KiB.

For each moment at which something new can be lost, the explorer makes the state with everything
(the *prefix* of the log), the state with nothing volatile, some random subsets, and torn versions
of the last write. A file system is right if in each of them it finds what was acknowledged by the
marks before that moment. States are cheap: a `ram.RamDisk` shares what does not differ.

Counterpart: none in DragonFly; Linux has dm-log-writes for the same purpose.
Token/lock order: takes none.
Invariants: records are in order of submission; ``ended`` is greater than ``begun``; the disk
    inside the explorer holds a prefix of the records, all of them stable.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from dfuser.libkern.errno import EINVAL, ENOSPC, KError

from .disk import CHANGING, DiskCmd, DiskRequest
from .ram import RamDisk

#: Bytes of data a log keeps before it gives up.
LOG_LIMIT: Final = 1 << 30
#: Moment of what has not happened.
NEVER: Final = 1 << 62
#: Where a write may be torn: the sector, and the block of modern drives.
GRAINS: Final = (512, 4096)


class Record:
    """One request that changes something, or a flush.

    Attributes:
        cmd, offset, length, fua: as requested.
        data: what was written; empty for others.
        begun: moment of submission.
        ended: moment at which success was reported, `NEVER` until then and after a failure.
    """

    __slots__ = ("begun", "cmd", "data", "ended", "fua", "length", "offset")

    def __init__(self, request: DiskRequest, begun: int) -> None:
        self.cmd = request.cmd
        self.offset = request.offset
        self.length = request.length
        self.fua = request.fua
        self.data = request.data() if request.cmd is DiskCmd.WRITE else b""
        self.begun = begun
        self.ended = NEVER

    def apply(self, disk: RamDisk) -> None:
        """Do it to ``disk``."""
        if self.cmd is DiskCmd.WRITE:
            disk.write(self.offset, self.data)
        elif self.cmd is not DiskCmd.FLUSH:
            disk.zero(self.offset, self.length)

    def __repr__(self) -> str:
        ended = "" if self.ended == NEVER else f" ended {self.ended}"
        return f"<{self.cmd.name} {self.offset}+{self.length} begun {self.begun}{ended}>"


class Mark(NamedTuple):
    """What a test noted. ``moment`` is the number of events before it."""

    moment: int
    label: object


class WriteLogStatistics(NamedTuple):
    """What a log holds."""

    records: int
    flushes: int
    marks: int
    bytes: int
    limit: int
    overflowed: bool


class WriteLog:
    """What was asked of one disk that changes it, in order.

    Args:
        limit: bytes of data to keep. When it is passed, recording stops, ``overflowed`` is set,
            and the explorer refuses the log: half a log would prove nothing.
    """

    __slots__ = ("bytes", "limit", "marks", "moment", "overflowed", "records")

    def __init__(self, limit: int = LOG_LIMIT) -> None:
        self.limit = limit
        self.records: list[Record] = []
        self.marks: list[Mark] = []
        self.moment = 0
        self.bytes = 0
        self.overflowed = False

    def begin(self, request: DiskRequest) -> Record | None:
        """Note that a request was submitted; the result is for `end`. None: not of interest."""
        if request.cmd is DiskCmd.READ or self.overflowed:
            return None
        if request.cmd is DiskCmd.WRITE:
            if self.bytes + request.length > self.limit:
                self.overflowed = True
                return None
            self.bytes += request.length
        self.moment += 1
        record = Record(request, self.moment)
        self.records.append(record)
        return record

    def end(self, record: Record | None) -> None:
        """Note that a request was reported to have succeeded."""
        if record is not None:
            self.moment += 1
            record.ended = self.moment

    def mark(self, label: object) -> None:
        """Note that everything up to here is acknowledged, under a name of the test's own."""
        self.marks.append(Mark(self.moment, label))

    def statistics(self) -> WriteLogStatistics:
        """What it holds."""
        return WriteLogStatistics(
            records=len(self.records),
            flushes=sum(record.cmd is DiskCmd.FLUSH for record in self.records),
            marks=len(self.marks),
            bytes=self.bytes,
            limit=self.limit,
            overflowed=self.overflowed,
        )


class CrashState(NamedTuple):
    """What one power cut left behind.

    Attributes:
        moment: when the power failed.
        kind: ``prefix``, ``stable``, ``subset``, ``torn512`` or ``torn4096``.
        lost: indexes, in the log, of the records that did not reach the medium.
        torn: index of the record that reached it in part, or -1.
        marks: what had been acknowledged by then, oldest first.
        disk: the medium; the caller's own.
    """

    moment: int
    kind: str
    lost: tuple[int, ...]
    torn: int
    marks: tuple[object, ...]
    disk: RamDisk

    def __str__(self) -> str:
        torn = f", {self.torn} torn" if self.torn >= 0 else ""
        return f"{self.kind} at {self.moment}: lost {list(self.lost)}{torn}"


class CrashExplorer:
    """Makes the states of a log.

    Args:
        base: the disk before the first record.
        log: what was done to it.
        rng: draws subsets and tears; equal seeds give equal states.
        subsets: random subsets for each moment with more than one volatile write.
        grains: where writes are torn.

    Raises:
        KError: ENOSPC, the log had overflowed; EINVAL, a grain no disk has.
    """

    def __init__(
        self,
        base: RamDisk,
        log: WriteLog,
        rng: random.Random,
        subsets: int = 2,
        grains: Sequence[int] = GRAINS,
    ) -> None:
        if log.overflowed:
            raise KError(ENOSPC, f"the log stopped after {log.limit} bytes")
        if any(grain not in GRAINS for grain in grains):
            raise KError(EINVAL, f"writes are torn at {GRAINS}, not {grains}")
        self._disk = base.snapshot("crash")
        self._log = log
        self._rng = rng
        self._subsets = subsets
        self._grains = grains
        self._stable_at = _stability(log.records)
        self._applied = 0
        self.made = 0

    def moments(self) -> list[int]:
        """The moments worth a power cut: before anything, and after each submission.

        The completion of a flush needs no moment of its own: it only makes writes stable, so its
        states are among those before it, except that more marks may count. Those moments are the
        marks' own, and they are included.
        """
        begun = {record.begun for record in self._log.records if record.cmd in CHANGING}
        return sorted({0, *begun, *(mark.moment for mark in self._log.marks), self._log.moment})

    def states(self) -> Iterator[CrashState]:
        """Every state, in the order of its moment. May be walked once."""
        for moment in self.moments():
            yield from self._at(moment)

    def _at(self, moment: int) -> Iterator[CrashState]:
        """The states of a power cut at one moment."""
        self._advance(moment)
        records = self._log.records
        rest = [
            index
            for index in range(self._applied, len(records))
            if records[index].begun <= moment and records[index].cmd in CHANGING
        ]
        volatile = [index for index in rest if self._stable_at[index] > moment]
        yield self._state(moment, "prefix", rest, frozenset())
        if not volatile:
            return
        yield self._state(moment, "stable", rest, frozenset(volatile))
        if len(volatile) > 1:
            for _ in range(self._subsets):
                lost = frozenset(i for i in volatile if self._rng.random() < 0.5)
                yield self._state(moment, "subset", rest, lost)
        last = volatile[-1]
        if records[last].cmd is DiskCmd.WRITE:
            for grain in self._grains:
                if records[last].length > grain:
                    yield self._state(moment, f"torn{grain}", rest, frozenset(), last, grain)

    def _advance(self, moment: int) -> None:
        """Bring what is stable by ``moment``, without a gap, onto the disk for good."""
        records = self._log.records
        while self._applied < len(records) and self._stable_at[self._applied] <= moment:
            records[self._applied].apply(self._disk)
            self._applied += 1

    def _state(
        self,
        moment: int,
        kind: str,
        rest: Sequence[int],
        lost: frozenset[int],
        torn: int = -1,
        grain: int = 0,
    ) -> CrashState:
        """Build one state from what is stable and what of the rest is not lost."""
        disk = self._disk.snapshot(f"crash{self.made}")
        for index in rest:
            record = self._log.records[index]
            if index == torn:
                for offset, data in tear(record.offset, record.data, grain, self._rng):
                    disk.write(offset, data)
            elif index not in lost:
                record.apply(disk)
        self.made += 1
        marks = tuple(mark.label for mark in self._log.marks if mark.moment <= moment)
        return CrashState(moment, kind, tuple(sorted(lost)), torn, marks, disk)


def _stability(records: Sequence[Record]) -> list[int]:
    """For each record the moment from which on it is stable; a flush is so from its beginning."""
    flushes = [
        (record.begun, record.ended)
        for record in records
        if record.cmd is DiskCmd.FLUSH and record.ended != NEVER
    ]
    # The earliest end among the flushes that begin at or after each one.
    best = NEVER
    ends: list[tuple[int, int]] = []
    for begun, ended in reversed(flushes):
        best = min(best, ended)
        ends.append((begun, best))
    ends.reverse()
    moments = []
    for record in records:
        if record.cmd is DiskCmd.FLUSH:
            moments.append(record.begun)
            continue
        moment = record.ended if record.fua else NEVER
        low, high = 0, len(ends)
        while low < high:  # the first flush that began after the write was complete
            middle = (low + high) // 2
            if ends[middle][0] > record.ended:
                high = middle
            else:
                low = middle + 1
        if low < len(ends):
            moment = min(moment, ends[low][1])
        moments.append(moment)
    return moments


def tear(offset: int, data: bytes, grain: int, rng: random.Random) -> list[tuple[int, bytes]]:
    """The pieces of a write that reach the medium when it is torn: not all, and not none.

    Pieces end at multiples of ``grain`` on the disk. A write within one grain is not torn; it is
    returned whole.
    """
    cuts = [offset, *range(offset - offset % grain + grain, offset + len(data), grain)]
    ends = [*cuts[1:], offset + len(data)]
    count = len(cuts)
    if count < 2:
        return [(offset, data)]
    kept = [i for i in range(count) if rng.random() < 0.5]
    if len(kept) in (0, count):
        kept = sorted(rng.sample(range(count), rng.randrange(1, count)))
    return [(cuts[i], data[cuts[i] - offset : ends[i] - offset]) for i in kept]
