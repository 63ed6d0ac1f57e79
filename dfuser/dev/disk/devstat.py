"""What each device did: bytes, requests, and how long it was busy.

A driver makes a `Devstat`, calls `start_transaction` when it is given a request and
`end_transaction_buf` when that is over. The device is busy from the first request in flight to the
end of the last; that time is added up when it goes idle.

Counterpart: kern/subr_devstat.c, sys/devicestat.h.
Differs from DragonFly: a flush counts as "other" (DragonFly counts it as a write of no bytes).
Token and lock order: takes none.
Invariants: ``busy_count`` is the number of requests started and not ended; the list is sorted by
    descending priority, equal ones in the order in which they came.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from dfuser.libkern.errno import panic
from dfuser.libkern.sysctl import LONG, OPAQUE, RD, Sysctl

from .bio import Buf, BufCmd

DEVSTAT_VERSION: Final = 4
DEVSTAT_NAME_LEN: Final = 16

# What a device supports, what it is, and where it stands. Counterpart: sys/devicestat.h.
DEVSTAT_ALL_SUPPORTED: Final = 0x00
DEVSTAT_NO_BLOCKSIZE: Final = 0x01
DEVSTAT_NO_ORDERED_TAGS: Final = 0x02
DEVSTAT_TYPE_DIRECT: Final = 0x000
DEVSTAT_TYPE_IF_OTHER: Final = 0x030
DEVSTAT_PRIORITY_OTHER: Final = 0x020
DEVSTAT_PRIORITY_DISK: Final = 0x110
DEVSTAT_PRIORITY_ARRAY: Final = 0x120

_STRUCT: Final = struct.Struct("<QI16siQQQQQQQiIQQQqqqqqqqqIII4x")
_NSEC: Final = 1_000_000_000


class DevstatClock(Protocol):
    """What devstat needs of time."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since some fixed moment."""

    def realtime_ns(self) -> int:
        """Nanoseconds since 1970."""


class DevstatStatistics(NamedTuple):
    """The counters of one device. Times in ns."""

    name: str
    unit: int
    bytes_read: int
    bytes_written: int
    bytes_freed: int
    num_reads: int
    num_writes: int
    num_frees: int
    num_other: int
    busy_count: int
    busy_ns: int
    block_size: int


class Devstat:
    """The counters of one device. Counterpart: struct devstat (sys/devicestat.h)."""

    __slots__ = (
        "block_size",
        "busy_count",
        "busy_ns",
        "bytes_freed",
        "bytes_read",
        "bytes_written",
        "clock",
        "creation_ns",
        "device_name",
        "device_number",
        "device_type",
        "flags",
        "last_comp_ns",
        "num_frees",
        "num_other",
        "num_reads",
        "num_writes",
        "priority",
        "start_ns",
        "unit_number",
    )

    def __init__(
        self,
        clock: DevstatClock,
        name: str,
        unit: int,
        block_size: int,
        flags: int = DEVSTAT_NO_ORDERED_TAGS,
        device_type: int = DEVSTAT_TYPE_DIRECT | DEVSTAT_TYPE_IF_OTHER,
        priority: int = DEVSTAT_PRIORITY_DISK,
    ) -> None:
        self.clock = clock
        self.device_number = -1
        self.device_name = name
        self.unit_number = unit
        self.block_size = block_size
        self.flags = flags
        self.device_type = device_type
        self.priority = priority
        self.creation_ns = clock.realtime_ns()
        self.bytes_read = self.bytes_written = self.bytes_freed = 0
        self.num_reads = self.num_writes = self.num_frees = self.num_other = 0
        self.busy_count = 0
        self.busy_ns = self.start_ns = self.last_comp_ns = 0

    def start_transaction(self) -> None:
        """A request has come. Counterpart: devstat_start_transaction."""
        if not self.busy_count:
            self.start_ns = self.clock.monotonic_ns()
        self.busy_count += 1

    def end_transaction_buf(self, bp: Buf) -> None:
        """A request is over; ``bp`` still has its command.

        Counterpart: devstat_end_transaction_buf, devstat_end_transaction.
        """
        if self.busy_count <= 0:
            panic(f"devstat: {self.device_name} ended more than it began")
        size = bp.bcount - bp.resid
        if bp.cmd is BufCmd.READ:
            self.bytes_read += size
            self.num_reads += 1
        elif bp.cmd is BufCmd.WRITE:
            self.bytes_written += size
            self.num_writes += 1
        elif bp.cmd is BufCmd.FREEBLKS:
            self.bytes_freed += size
            self.num_frees += 1
        else:
            self.num_other += 1
        self.last_comp_ns = self.clock.monotonic_ns()
        self.busy_count -= 1
        if not self.busy_count:
            self.busy_ns += self.last_comp_ns - self.start_ns

    def statistics(self) -> DevstatStatistics:
        """The counters; a busy period that has not ended is included."""
        busy = self.busy_ns
        if self.busy_count:
            busy += self.clock.monotonic_ns() - self.start_ns
        return DevstatStatistics(
            self.device_name, self.unit_number, self.bytes_read, self.bytes_written,
            self.bytes_freed, self.num_reads, self.num_writes, self.num_frees, self.num_other,
            self.busy_count, busy, self.block_size,
        )  # fmt: skip

    def pack(self) -> bytes:
        """Struct devstat as kern.devstat.all gives it."""
        times = (self.creation_ns, self.busy_ns, self.start_ns, self.last_comp_ns)
        timevals = [part for ns in times for part in (ns // _NSEC, ns % _NSEC // 1000)]
        name = self.device_name.encode()[: DEVSTAT_NAME_LEN - 1]
        return _STRUCT.pack(
            0, self.device_number, name, self.unit_number, self.bytes_read, self.bytes_written,
            self.bytes_freed, self.num_reads, self.num_writes, self.num_frees, self.num_other,
            self.busy_count, self.block_size, 0, 0, 0, *timevals, self.flags, self.device_type,
            self.priority,
        )  # fmt: skip


class DevstatList:
    """The devices of one kernel that count. Counterpart: device_statq (kern/subr_devstat.c)."""

    sysctls = (
        Sysctl("kern.devstat.all", "All devices in the devstat list", getter="pack", kind=OPAQUE,
               flags=RD),
        Sysctl("kern.devstat.numdevs", "Number of devices in the devstat list", getter="count",
               flags=RD),
        Sysctl("kern.devstat.generation", "Devstat list generation", attr="generation", kind=LONG,
               flags=RD),
        Sysctl("kern.devstat.version", "Devstat list version number", attr="version", flags=RD),
    )  # fmt: skip

    def __init__(self) -> None:
        self.generation = 0
        self.version = DEVSTAT_VERSION
        self._next = 0
        self._list: list[Devstat] = []

    def add_entry(self, stat: Devstat) -> None:
        """Show a device. Counterpart: devstat_add_entry."""
        self.generation += 1
        stat.device_number = self._next
        self._next += 1
        place = len(self._list)
        while place and self._list[place - 1].priority < stat.priority:
            place -= 1
        self._list.insert(place, stat)

    def remove_entry(self, stat: Devstat) -> None:
        """Hide a device; harmless when it is not shown. Counterpart: devstat_remove_entry."""
        if stat in self._list:
            self.generation += 1
            self._list.remove(stat)

    def __iter__(self) -> Iterator[Devstat]:
        return iter(tuple(self._list))

    def count(self) -> int:
        """Devices on the list; limited by the number of devices."""
        return len(self._list)

    def pack(self) -> bytes:
        """The generation and every struct devstat."""
        return struct.pack("<q", self.generation) + b"".join(s.pack() for s in self._list)
