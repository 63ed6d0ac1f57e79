"""KTR: the kernel's flight recorder.

At points that matter (a token that is contended, a thread that sleeps, an IPI that is
sent) the kernel can note a line: when, on which CPU, and a few values. The notes go to
a ring per CPU that is always bounded and always holds the most recent ones, so after a
panic its tail tells what had just happened. Switched off, a point costs its caller one
test of an integer::

    m = self._ktr_tokens                  # a KtrMaster, fetched once
    if m.mask:
        m.log(KTR_FAIL, self.name, td.tid)

A *master* is a subject (``tokens``, ``tsleep``, ``namecache``); its ``mask`` is the
sysctl ``debug.ktr.<master>_enable``: 0 is off, -1 is everything, and each point has one
bit of it, shown as ``debug.ktr.<master>.<point>_mask``. A *point* is declared as part
of the class it belongs to: ``KTR_FAIL = KtrInfo("tokens", "fail", "%s by %s")``.

A note must not keep what it talks about alive: numbers and strings are stored as they
are, anything else is stored as its (shortened) text.

Counterpart: sys/ktr.h, kern/kern_ktr.c, ktrdump(8).
Differs from DragonFly: entries are Python tuples; timestamps are nanoseconds of the
    kernel's clock, not TSC ticks, so CPUs need no resynchronising; a sequence number
    over all CPUs gives the exact order. The place of the caller is noted only with
    debug.ktr.stacktrace set (off by default: it walks the frame).
Token/lock order: takes none; may be called anywhere, by interrupts too.
Invariants: a ring holds at most `entries` notes; index only grows; a master has at most
    32 bits, points beyond the 31st share the last one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from dfuser.libkern.sysctl import INT, NODE, RD, RW, UINT, Sysctl, SysctlTree

KTR_ENTRIES: Final = 2048
KTR_BUFSIZE: Final = 192
"""Bytes of arguments a C entry can hold; here the longest text of one argument."""
KTR_VERSION: Final = 4

MASTERS: Final = (
    "ctxsw", "tokens", "ipiq", "memory", "tsleep", "usched", "kernentry", "spin",
    "vfs", "namecache", "fuse", "testlog",
)  # fmt: skip
"""Masters every kernel has; others come into being when first asked for."""

_PLAIN: Final = frozenset({int, str, bool, type(None), float})
_LAST_BIT: Final = 31


class MonotonicClock(Protocol):
    """What KTR needs of the clock."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since some fixed moment, never going back."""
        ...


class KtrInfo:
    """Declares one trace point. Immutable; compared by identity.

    Counterpart: struct ktr_info, KTR_INFO (sys/ktr.h).
    """

    __slots__ = ("fmt", "master", "name")

    def __init__(self, master: str, name: str, fmt: str = "") -> None:
        """Declare a point.

        Args:
            master: the subject it belongs to.
            name: its own name within the subject.
            fmt: a %-format for the values the caller passes; %s suits everything.
        """
        self.master = master
        self.name = name
        self.fmt = fmt

    def format(self, args: tuple[object, ...]) -> str:
        """Print noted values. A format that does not fit shows the values raw."""
        try:
            return self.fmt % args
        except (TypeError, ValueError):
            return f"{self.fmt} {args!r}"

    def __repr__(self) -> str:
        """Master and name, as in ``tokens_fail``."""
        return f"<KtrInfo {self.master}_{self.name}>"


class KtrEntry(NamedTuple):
    """One note.

    Counterpart: struct ktr_entry (sys/ktr.h).
    """

    seq: int
    timestamp: int
    cpu: int
    idx: int
    info: KtrInfo
    args: tuple[object, ...]
    place: str

    def line(self) -> str:
        """Print the note as ktrdump(8) would: time in us, CPU, point, text, place."""
        text = self.info.format(self.args)
        where = f" at {self.place}" if self.place else ""
        name = f"{self.info.master}_{self.info.name}"
        return f"{self.timestamp // 1000:>14} cpu{self.cpu:<3} {name:<24} {text}{where}"


class KtrPoint:
    """A declared point inside one kernel: its bit in the master's mask, and its count."""

    __slots__ = ("bit", "count", "info", "mask")

    sysctl_mask = Sysctl(
        lambda point: f"debug.ktr.{point.info.master}.{point.info.name}_mask",
        "Bit of this event in its master's mask",
        attr="mask", kind=UINT, flags=RD,
    )  # fmt: skip

    def __init__(self, info: KtrInfo, bit: int) -> None:
        """Bind a declaration to a bit number (0 to 31)."""
        self.info = info
        self.bit = bit
        self.mask = 1 << bit
        self.count = 0


class KtrMaster:
    """A subject of tracing with its switch.

    ``mask`` is the one attribute hot code reads. Counterpart: KTR_INFO_MASTER (sys/ktr.h).
    """

    __slots__ = ("_ktr", "mask", "name", "points")

    sysctl_enable = Sysctl(
        lambda master: f"debug.ktr.{master.name}_enable",
        "Bit mask of the events to note; -1 is all, 0 is off",
        attr="mask", kind=INT, flags=RW,
    )  # fmt: skip

    def __init__(self, ktr: Ktr, name: str, mask: int = 0) -> None:
        """Make a switched-off master; `Ktr.master` is the way to get one."""
        self._ktr = ktr
        self.name = name
        self.mask = mask
        self.points: dict[KtrInfo, KtrPoint] = {}

    def point(self, info: KtrInfo) -> KtrPoint:
        """The point of a declaration in this kernel; made when first asked for."""
        point = self.points.get(info)
        if point is None:
            point = KtrPoint(info, min(len(self.points), _LAST_BIT))
            self.points[info] = point
            self._ktr.bind(point)
        return point

    def log(self, info: KtrInfo, *args: object) -> None:
        """Note an event on the running CPU, if its bit is on. Never suspends."""
        point = self.points.get(info) or self.point(info)
        if self.mask & point.mask:
            self._ktr.write(self._ktr.curcpu(), point, args)

    def log_cpu(self, cpu: int, info: KtrInfo, *args: object) -> None:
        """Note an event on a named CPU, for callers that know it already."""
        point = self.points.get(info) or self.point(info)
        if self.mask & point.mask:
            self._ktr.write(cpu, point, args)


class KtrStatistics(NamedTuple):
    """What the recorder has noted since boot."""

    entries: int
    written: tuple[int, ...]
    overwritten: tuple[int, ...]
    masters: int
    points: int
    stopped: bool


def _cpu_zero() -> int:
    """The CPU before there is a scheduler to ask."""
    return 0


class Ktr:
    """The recorder of one kernel: a ring for each CPU, and the masters.

    Counterpart: ktr_cpu[] and the globals of kern/kern_ktr.c.
    """

    sysctls = (
        Sysctl("debug.ktr", "Kernel trace facility", kind=NODE),
        Sysctl("debug.ktr.entries", "Notes kept for each CPU", attr="entries"),
        Sysctl("debug.ktr.version", "Version of the entry format", getter=lambda _: KTR_VERSION),
        Sysctl("debug.ktr.stacktrace", "Note the caller's place too", attr="stacktrace",
               flags=RW, minimum=0, maximum=1),
        Sysctl("debug.ktr.stopped", "1 after a panic or a stop: nothing is noted",
               attr="stopped", flags=RW, minimum=0, maximum=1),
    )  # fmt: skip

    def __init__(
        self,
        ncpu: int,
        clock: MonotonicClock,
        *,
        entries: int = KTR_ENTRIES,
        curcpu: Callable[[], int] = _cpu_zero,
    ) -> None:
        """Preallocate the rings.

        Args:
            ncpu: number of logical CPUs.
            clock: gives the time stamps.
            entries: notes kept for each CPU; a power of two.
            curcpu: answers the running CPU; the scheduler sets it (attribute `curcpu`)
                once there is one.

        Raises:
            ValueError: entries is not a power of two.
        """
        if entries < 1 or entries & (entries - 1):
            raise ValueError("KTR entries must be a power of two")
        self.ncpu = ncpu
        self.entries = entries
        self.curcpu = curcpu
        self.stacktrace = 0
        self.stopped = False
        self._clock = clock
        self._slot_mask = entries - 1
        self._rings: list[list[KtrEntry | None]] = [[None] * entries for _ in range(ncpu)]
        self._index = [0] * ncpu
        self._seq = 0
        self._tree: SysctlTree | None = None
        self.masters: dict[str, KtrMaster] = {}
        for name in MASTERS:
            self.master(name)

    def master(self, name: str) -> KtrMaster:
        """The master of a subject; made, switched off, when first asked for."""
        master = self.masters.get(name)
        if master is None:
            master = self.masters[name] = KtrMaster(self, name)
            if self._tree is not None:
                self._tree.register(master)
        return master

    def declare(self, cls: type) -> None:
        """Make the points a class declares known, so that their bits can be listed."""
        for base in cls.__mro__:
            for entry in vars(base).values():
                if isinstance(entry, KtrInfo):
                    self.master(entry.master).point(entry)

    def attach(self, tree: SysctlTree) -> None:
        """Show masters and points, present and future, under debug.ktr."""
        tree.register(self)
        self._tree = tree
        for master in self.masters.values():
            tree.register(master)
            for point in master.points.values():
                tree.register(point)

    def bind(self, point: KtrPoint) -> None:
        """Show a new point under debug.ktr, if that is attached."""
        if self._tree is not None:
            self._tree.register(point)

    def write(self, cpu: int, point: KtrPoint, args: tuple[object, ...]) -> None:
        """Put a note into a CPU's ring. The masters' `log` is the usual way here."""
        if self.stopped:
            return
        plain = tuple(a if type(a) in _PLAIN else str(a)[:KTR_BUFSIZE] for a in args)
        place = _place() if self.stacktrace else ""
        index = self._index[cpu]
        now = self._clock.monotonic_ns()
        self._rings[cpu][index & self._slot_mask] = KtrEntry(
            self._seq, now, cpu, index, point.info, plain, place
        )
        self._seq += 1
        self._index[cpu] = index + 1
        point.count += 1

    def dump(self, cpu: int, count: int | None = None) -> list[KtrEntry]:
        """The last notes of one CPU, oldest first.

        Args:
            cpu: the CPU's number.
            count: how many at most; all that are kept by default.
        """
        end = self._index[cpu]
        kept = min(end, self.entries)
        first = end - (kept if count is None else min(kept, max(count, 0)))
        ring = self._rings[cpu]
        slots = (ring[i & self._slot_mask] for i in range(first, end))
        return [entry for entry in slots if entry is not None]

    def tail(self, count: int) -> list[KtrEntry]:
        """The last notes of all CPUs together in the order they happened."""
        merged = [entry for cpu in range(self.ncpu) for entry in self.dump(cpu, count)]
        merged.sort(key=lambda entry: entry.seq)
        return merged[-count:] if count > 0 else []

    def lines(self, count: int) -> list[str]:
        """The tail as printed lines, for panics, ddb and ktrdump."""
        return [entry.line() for entry in self.tail(count)]

    def clear(self) -> None:
        """Forget the notes; indices and counts go on."""
        for ring in self._rings:
            ring[:] = [None] * self.entries

    def stop(self) -> None:
        """Freeze the rings: a panic calls this first, so that its dump shows the cause."""
        self.stopped = True

    def statistics(self) -> KtrStatistics:
        """Notes written and overwritten for each CPU."""
        return KtrStatistics(
            entries=self.entries,
            written=tuple(self._index),
            overwritten=tuple(max(0, index - self.entries) for index in self._index),
            masters=len(self.masters),
            points=sum(len(master.points) for master in self.masters.values()),
            stopped=self.stopped,
        )


def _place() -> str:
    """File and line of the code that called KtrMaster.log."""
    frame = sys._getframe(3)  # _place, write, log, the caller
    return f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"
