"""The middleware that breaks a disk in a planned way.

A `FaultDisk` is a disk on a disk. Without a plan it passes everything through. A plan is made of:

rules (`FaultRule`)
    Requests of some kind in some range, each, or with a probability, or the n-th one, fail with
    EIO, are cut short, are torn, or are delayed.
reordering (``reorder``)
    Requests are held back until so many have come, or a moment has passed, or a flush comes; then
    they are carried out in a shuffled order.
a volatile cache (``volatile``)
    Writes stay in a memory of ours until a flush, as in the cache of a drive. Reads see them.
power cuts (`power_cut`, ``cut_at``)
    At the n-th write, or at once: what is in the volatile cache reaches the lower disk in part (any
    subset, the write under way perhaps torn), and every request from then on fails with ENXIO until
    `power_on`.
recording (``log``)
    Every write, trim, zero and flush goes into a `record.WriteLog`.

All chance comes from one seed and is drawn in the order of requests: the same requests meet the
same faults. Everything that happens is counted.

The in-place form meets all faults but delay and reordering, which need somewhere to wait; what they
would have done is counted as ``undelayed``. A write that is torn or short fails with EIO, as a
drive would tell it, unless its rule is ``silent``: then the disk lies, and only check codes will
find out.

Counterpart: none in DragonFly; dm-flakey, dm-delay and dm-log-writes of Linux, nbdkit's filters.
Token/lock order: takes none.
Invariants: with a volatile cache the lower disk is what the medium would hold if the power failed
    now and nothing in the cache survived; ``pending`` is in the order of the writes.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import partial
from typing import Any, Final, NamedTuple

from dfuser.hw.clock import Alarm, Clock
from dfuser.libkern.errno import EINVAL, ENXIO, KError

from .disk import (
    SECTOR_SIZES,
    Disk,
    DiskBase,
    DiskCmd,
    DiskRequest,
    ShortTransfer,
    attempt,
)
from .faultrule import ArmedRule, Fault, FaultRule
from .record import Record, WriteLog, tear

#: Bytes a volatile cache holds before it empties itself, as a drive's does.
CACHE_BYTES: Final = 64 << 20
#: How long requests are held for reordering when too few come.
HOLD_NS: Final = 1_000_000


class FaultStatistics(NamedTuple):
    """What a `FaultDisk` did to its requests.

    Attributes:
        eio, shorts, torn: requests that met that fault.
        delayed: requests that waited; ``delay_ns`` how long in sum.
        undelayed: requests in place that would have waited.
        reordered: requests that were overtaken by a later one.
        holding: requests held back or delayed now.
        pending, pending_bytes: writes in the volatile cache, and their bytes.
        destaged: writes that left the volatile cache because it was full.
        cuts: power cuts. lost: writes that were in the cache and did not survive one.
        refused: requests that came while the power was off.
    """

    eio: int
    shorts: int
    torn: int
    delayed: int
    delay_ns: int
    undelayed: int
    reordered: int
    holding: int
    pending: int
    pending_bytes: int
    destaged: int
    cuts: int
    lost: int
    refused: int


class _Verdict(NamedTuple):
    """What shall happen to one request. ``action`` None is nothing."""

    action: Fault | None = None
    rule: FaultRule | None = None
    delay_ns: int = 0


_FINE: Final = _Verdict()


class _Pending(NamedTuple):
    """A change in the volatile cache; ``stable`` ones are on the lower disk as well."""

    cmd: DiskCmd
    offset: int
    length: int
    data: bytes
    stable: bool


class FaultDisk(DiskBase):
    """A disk that fails as planned.

    Args:
        lower: the disk that stores. Closing closes it too.
        rules: the plan; `add_rule` and `clear_rules` change it later.
        seed: of all chance.
        clock: for delays and reordering.
        log: where changes are recorded, or None.
        volatile: whether to keep writes from the lower disk until a flush. The lower disk must
            have the in-place form.
        reorder: requests held back for reordering; 0 or 1 is none.
        cut_at: the power fails at this write, counted from 1; 0 is never.
        survival: the chance of each write in the cache to survive a power cut.

    Raises:
        KError: EINVAL, delays or reordering without a clock, or a volatile cache on a disk that
            has no in-place form.
    """

    __slots__ = (
        "_clock",
        "_held",
        "_hold_alarm",
        "_overlay",
        "_pending",
        "_rng",
        "_waiting",
        "cache_bytes",
        "counts",
        "cut_at",
        "log",
        "lower",
        "pending_bytes",
        "powered",
        "reorder",
        "rules",
        "survival",
        "volatile",
        "writes_seen",
    )

    def __init__(
        self,
        lower: Disk,
        rules: Iterable[FaultRule] = (),
        *,
        seed: int = 0,
        clock: Clock | None = None,
        log: WriteLog | None = None,
        volatile: bool = False,
        reorder: int = 0,
        cut_at: int = 0,
        survival: float = 0.5,
    ) -> None:
        super().__init__(lower.name, lower.size, lower.sector_size, lower.readonly)
        if volatile and not lower.inplace:
            raise KError(EINVAL, f"{lower.name}: no volatile cache above a disk to be waited for")
        self.lower = lower
        self.log = log
        self.volatile = volatile
        self.reorder = reorder
        self.cut_at = cut_at
        self.survival = survival
        self.cache_bytes = CACHE_BYTES
        self.powered = True
        self.writes_seen = 0
        self.pending_bytes = 0
        self.rules: list[ArmedRule] = []
        self.counts = dict.fromkeys(FaultStatistics._fields, 0)
        self._clock = clock
        self._rng = random.Random(seed)
        self._pending: list[_Pending] = []
        self._overlay: dict[int, bytes] = {}
        self._held: list[tuple[DiskRequest, _Verdict, Record | None]] = []
        self._waiting: dict[DiskRequest, Alarm] = {}
        self._hold_alarm: Alarm | None = clock.alarm(self._release) if clock else None
        if reorder > 1 and clock is None:
            raise KError(EINVAL, "reordering needs a clock")
        for rule in rules:
            self.add_rule(rule)

    # --- the plan --------------------------------------------------------------------------

    def add_rule(self, rule: FaultRule) -> ArmedRule:
        """Put a rule into force; the result tells how often it struck.

        Raises:
            KError: EINVAL, a delay without a clock, or a grain that is no sector size.
        """
        if rule.action is Fault.DELAY and self._clock is None:
            raise KError(EINVAL, "a delay needs a clock")
        if rule.grain not in SECTOR_SIZES:
            raise KError(EINVAL, f"writes are not torn at {rule.grain} bytes")
        armed = ArmedRule(rule)
        self.rules.append(armed)
        return armed

    def clear_rules(self) -> None:
        """No more faults; what is delayed or held back stays so."""
        self.rules.clear()

    @property
    def inplace(self) -> bool:
        """Whether the lower disk has the in-place form."""
        return self.lower.inplace

    @property
    def can_trim(self) -> bool:
        """Whether the lower disk can."""
        return self.lower.can_trim

    def faults(self) -> FaultStatistics:
        """What was done to requests."""
        self.counts.update(
            holding=len(self._held) + len(self._waiting),
            pending=len(self._pending),
            pending_bytes=self.pending_bytes,
        )
        return FaultStatistics(**self.counts)

    def _judge(self, request: DiskRequest) -> _Verdict:
        """What shall happen to a request: the first fault that strikes, and all delays."""
        if not self.rules:
            return _FINE
        fault: FaultRule | None = None
        delay = 0
        for armed in self.rules:
            rule = armed.rule
            if rule.action is Fault.DELAY:
                if armed.strikes(request, self._rng):
                    delay += self._rng.randint(*rule.delay_ns)
            elif fault is None and armed.strikes(request, self._rng):
                fault = rule
        return _Verdict(fault.action if fault else None, fault, delay)

    def _admit(self, request: DiskRequest) -> _Verdict:
        """A request has come: power, power cut, verdict.

        Raises:
            KError: ENXIO, the power is off.
        """
        if not self.powered:
            self.counts["refused"] += 1
            raise KError(ENXIO, f"{self.name} has no power")
        if request.cmd is DiskCmd.WRITE:
            self.writes_seen += 1
            if self.writes_seen == self.cut_at:
                self.power_cut(request)
                raise KError(ENXIO, f"{self.name} has lost its power")
        return self._judge(request)

    # --- requests --------------------------------------------------------------------------

    def _transfer(self, request: DiskRequest) -> None:
        """The in-place form."""
        record = self.log.begin(request) if self.log is not None else None
        verdict = self._admit(request)
        if verdict.delay_ns or (self.reorder > 1 and request.cmd is not DiskCmd.FLUSH):
            self.counts["undelayed"] += 1
        self._carry_out(request, verdict)
        if self.log is not None:
            self.log.end(record)

    def _start(self, request: DiskRequest) -> None:
        record = self.log.begin(request) if self.log is not None else None
        try:
            verdict = self._admit(request)
        except KError as error:
            self._finish(request, error)
            return
        if verdict.delay_ns and self._clock is not None:
            self.counts["delayed"] += 1
            self.counts["delay_ns"] += verdict.delay_ns
            alarm = self._clock.alarm(partial(self._delayed, request, verdict, record))
            self._waiting[request] = alarm
            alarm.arm(self._clock.monotonic_ns() + verdict.delay_ns)
        else:
            self._queue(request, verdict, record)

    def _delayed(self, request: DiskRequest, verdict: _Verdict, record: Record | None) -> None:
        """An interrupt of the clock: the delay is over."""
        del self._waiting[request]
        self.waited += 1
        self._queue(request, verdict, record)

    def _queue(self, request: DiskRequest, verdict: _Verdict, record: Record | None) -> None:
        """Hold a request back for reordering, or go on with it."""
        alarm, clock = self._hold_alarm, self._clock
        if request.cmd is DiskCmd.FLUSH:
            self._release()
        if self.reorder < 2 or request.cmd is DiskCmd.FLUSH or alarm is None or clock is None:
            self._go(request, verdict, record)
            return
        self._held.append((request, verdict, record))
        if len(self._held) >= self.reorder:
            self._release()
        elif len(self._held) == 1:
            alarm.arm(clock.monotonic_ns() + HOLD_NS)

    def _release(self) -> None:
        """Carry out what is held back, in a shuffled order."""
        held, self._held = self._held, []
        if self._hold_alarm is not None:
            self._hold_alarm.cancel()
        order = list(range(len(held)))
        self._rng.shuffle(order)
        newest = -1
        for index in order:
            if index < newest:
                self.counts["reordered"] += 1
            newest = max(newest, index)
            self._go(*held[index])

    def _go(self, request: DiskRequest, verdict: _Verdict, record: Record | None) -> None:
        """Carry out a request whose time has come."""
        if self.volatile:
            error = attempt(partial(self._carry_out, verdict=verdict), request)
            self._end(request, record, error)
            return
        children, failure = self._children(request, verdict)
        if not children:
            self._end(request, record, failure)
            return
        left = len(children)
        first: list[KError] = [failure] if failure else []

        def done(child: DiskRequest) -> None:
            nonlocal left
            left -= 1
            if child.error and not first:
                first.append(ShortTransfer(child.error, request.length))
            if not left:
                self._end(request, record, first[0] if first else None)

        for child in children:
            child.done = done
            self.lower.submit(child)

    def _end(self, request: DiskRequest, record: Record | None, error: OSError | None) -> None:
        if self.log is not None and error is None:
            self.log.end(record)
        self._finish(request, error)

    def _children(
        self, request: DiskRequest, verdict: _Verdict
    ) -> tuple[list[DiskRequest], KError | None]:
        """What the lower disk is asked instead of the request, and how the request then fails."""
        rule = verdict.rule
        if rule is None:
            return [_copy(request)], None
        action = verdict.action
        if action is Fault.EIO or request.cmd not in (DiskCmd.READ, DiskCmd.WRITE):
            self.counts["eio"] += 1
            return [], (None if rule.silent else KError(rule.error, "a planned fault"))
        if action is Fault.TORN and request.cmd is DiskCmd.WRITE:
            self.counts["torn"] += 1
            pieces = tear(request.offset, request.data(), rule.grain, self._rng)
            children = [
                DiskRequest(DiskCmd.WRITE, offset, len(data), (data,), fua=request.fua)
                for offset, data in pieces
            ]
            return children, self._short(request, request.length, rule)
        self.counts["shorts"] += 1
        sectors = request.length // self.sector_size
        kept = self._rng.randrange(sectors) * self.sector_size if sectors else 0
        children = [_copy(request, kept)] if kept else []
        return children, self._short(request, request.length - kept, rule)

    def _short(self, request: DiskRequest, resid: int, rule: FaultRule) -> KError | None:
        if rule.silent:
            return None
        return ShortTransfer(rule.error, resid, f"{self.name}: {request!r}: a planned fault")

    def _carry_out(self, request: DiskRequest, verdict: _Verdict) -> None:
        """Carry out a request in place.

        Raises:
            KError: the planned fault, or what the lower disk raises.
        """
        children, failure = self._children(request, verdict)
        for child in children:
            if self.volatile:
                self._cache(child)
            else:
                perform(self.lower, child)
        if failure is not None:
            raise failure

    # --- the volatile cache ----------------------------------------------------------------

    def _cache(self, request: DiskRequest) -> None:
        """Carry out a request on the cache and the lower disk."""
        cmd = request.cmd
        if cmd is DiskCmd.READ:
            self._cached_read(request)
        elif cmd is DiskCmd.FLUSH:
            self._destage(len(self._pending))
            self.lower.flush()
        elif cmd is not DiskCmd.WRITE and request.length > self.cache_bytes:
            self._destage(len(self._pending))
            perform(self.lower, request)
        else:
            self._cached_change(request)

    def _cached_read(self, request: DiskRequest) -> None:
        perform(self.lower, request)
        overlay, size = self._overlay, self.sector_size
        if not overlay:
            return
        data = bytearray(request.data())
        changed = False
        for sector in range(request.offset // size, request.end // size):
            piece = overlay.get(sector)
            if piece is not None:
                at = sector * size - request.offset
                data[at : at + size] = piece
                changed = True
        if changed:
            request.fill(data)

    def _cached_change(self, request: DiskRequest) -> None:
        """Keep a write, trim or zero in the cache; with FUA give it to the medium as well."""
        stable = request.fua
        if stable:
            perform(self.lower, request)
        data = request.data() if request.cmd is DiskCmd.WRITE else b""
        self._pending.append(_Pending(request.cmd, request.offset, request.length, data, stable))
        self.pending_bytes += request.length
        data = data or bytes(request.length)
        size = self.sector_size
        first = request.offset // size
        for number in range(request.length // size):
            self._overlay[first + number] = data[number * size : (number + 1) * size]
        if self.pending_bytes > self.cache_bytes:
            half = len(self._pending) // 2 + 1
            self.counts["destaged"] += half
            self._destage(half)

    def _destage(self, count: int) -> None:
        """Write the oldest changes in the cache to the lower disk."""
        gone, self._pending = self._pending[:count], self._pending[count:]
        for entry in gone:
            self.pending_bytes -= entry.length
            self._settle(entry)
        if not self._pending:
            self._overlay.clear()

    def _settle(self, entry: _Pending) -> None:
        """Do one change from the cache to the lower disk."""
        perform(self.lower, DiskRequest(entry.cmd, entry.offset, entry.length, (entry.data,)))

    # --- power -----------------------------------------------------------------------------

    def power_cut(self, last: DiskRequest | None = None) -> None:
        """Cut the power now.

        Of what the volatile cache holds, and of ``last``, the write under way, any part may reach
        the lower disk. Requests that are held back or delayed fail with ENXIO, and all that come.
        """
        self.powered = False
        self.counts["cuts"] += 1
        pending, self._pending = self._pending, []
        self._overlay.clear()
        self.pending_bytes = 0
        for entry in pending:
            if entry.stable or self._rng.random() < self.survival:
                self._settle(entry)
            else:
                self.counts["lost"] += 1
        if last is not None and self.lower.inplace:
            self._last_write(last)
        self._drop_waiting()

    def _last_write(self, last: DiskRequest) -> None:
        """The write under way when the power fails: lost, whole or torn."""
        if self._rng.random() >= self.survival:
            self.counts["lost"] += 1
            return
        grain = self._rng.choice((512, 4096))
        for offset, data in tear(last.offset, last.data(), grain, self._rng):
            self.lower.write(offset, data)

    def _drop_waiting(self) -> None:
        """Fail what is held back or delayed."""
        held, self._held = self._held, []
        waiting, self._waiting = self._waiting, {}
        for alarm in waiting.values():
            alarm.cancel()
        if self._hold_alarm is not None:
            self._hold_alarm.cancel()
        for request in [*(entry[0] for entry in held), *waiting]:
            self._finish(request, KError(ENXIO, f"{self.name} has lost its power"))

    def power_on(self) -> None:
        """Switch on again: the cache is empty, the plan is as it was, writes go on counting."""
        self.powered = True
        self._lost = False

    def close(self) -> None:
        """Write the volatile cache to the lower disk and close both; a second call does nothing.

        Whoever wants the cache to be lost cuts the power before.
        """
        if self.closed:
            return
        super().close()
        if self.powered:
            self._destage(len(self._pending))
        self.lower.close()


def _copy(request: DiskRequest, length: int | None = None) -> DiskRequest:
    """A request for the lower disk like this one, or for its first ``length`` bytes."""
    if length is None or length == request.length:
        return DiskRequest(
            request.cmd, request.offset, request.length, request.buffers, fua=request.fua
        )
    buffers: list[Any] = []
    left = length
    for buffer in request.buffers:
        if not left:
            break
        part = memoryview(buffer)[:left]
        buffers.append(part)
        left -= len(part)
    return DiskRequest(request.cmd, request.offset, length, buffers, fua=request.fua)


def perform(disk: Disk, request: DiskRequest) -> None:
    """Carry out a request on a disk in place, whatever its command.

    Raises:
        KError: as the disk does.
    """
    cmd = request.cmd
    if cmd is DiskCmd.READ:
        request.fill(disk.read(request.offset, request.length))
    elif cmd is DiskCmd.WRITE:
        buffers = request.buffers
        data = buffers[0] if len(buffers) == 1 else request.data()
        disk.write(request.offset, data, request.fua)
    elif cmd is DiskCmd.FLUSH:
        disk.flush()
    elif cmd is DiskCmd.TRIM:
        disk.trim(request.offset, request.length)
    else:
        disk.zero(request.offset, request.length)
