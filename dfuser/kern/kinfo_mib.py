"""Who this kernel is: the variables at the head of kern and hw.

Names, numbers and release are DragonFly's, because programs ask for them; kern.version says that
the kernel is dfuser. Only what is true is here: clocks that do not tick (stathz, profhz) and
hardware that does not exist are left out.

Counterpart: kern/kern_mib.c, and kern.boottime and kern.clockrate of kern/kern_clock.c.
Differs from DragonFly: kern.clockrate and kern.boottime are shown as sysctl(8) prints them.
Token and lock order: takes none.
Invariants: boottime never changes after boot.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from dfuser.libkern.param import (
    ARG_MAX,
    DRAGONFLY_VERSION,
    HZ,
    MAXHOSTNAMELEN,
    NGROUPS_MAX,
    NSEC_PER_SEC,
    OSRELEASE,
    OSTYPE,
    PAGE_SIZE,
)
from dfuser.libkern.sysctl import INT, OPAQUE, PRISON, RD, RW, STRING, Sysctl

if TYPE_CHECKING:
    from dfuser.hw.clock import Clock
    from dfuser.vfs.kernfs.registry import KernViews

_POSIX_VERSION = 200112


def _timeval(ns: int) -> str:
    """A time as sysctl(8) prints struct timeval."""
    sec, rest = divmod(ns, NSEC_PER_SEC)
    when = time.strftime("%a %b %e %H:%M:%S %Y", time.gmtime(sec))
    return f"{{ sec = {sec}, usec = {rest // 1000} }} {when}"


class KernMib:
    """Identity of one kernel.

    Args:
        clock: its clock; the moment of this call is kern.boottime.
        ncpu: logical CPUs.
        hostname: its name at first.
        version: name and version of this program, for kern.version.
    """

    sysctls = (
        Sysctl("kern.ostype", "Operating system type", getter=lambda _: OSTYPE, kind=STRING,
               number=1),
        Sysctl("kern.osrelease", "Operating system release", getter=lambda _: OSRELEASE,
               kind=STRING, number=2),
        Sysctl("kern.osrevision", "Operating system revision",
               getter=lambda _: DRAGONFLY_VERSION, kind=INT, number=3),
        Sysctl("kern.version", "Kernel version", attr="version", kind=STRING, number=4),
        Sysctl("kern.argmax", "Maximum bytes of argument to execve(2)",
               getter=lambda _: ARG_MAX, kind=INT, number=8),
        Sysctl("kern.hostname", "Hostname", attr="hostname", kind=STRING, flags=RW | PRISON,
               maximum=MAXHOSTNAMELEN - 1, number=10),
        Sysctl("kern.clockrate", "Rate and length of clock ticks",
               getter=lambda _: f"{{ hz = {HZ}, tick = {1_000_000 // HZ} }}", kind=OPAQUE,
               number=12),
        Sysctl("kern.posix1version", "Version of POSIX attempting to comply to",
               getter=lambda _: _POSIX_VERSION, kind=INT, number=17),
        Sysctl("kern.ngroups", "Maximum number of groups a user can belong to",
               getter=lambda _: NGROUPS_MAX, kind=INT, number=18),
        Sysctl("kern.boottime", "System boot time", attr="boottime", kind=OPAQUE,
               render=_timeval, number=21),
        Sysctl("kern.osreldate", "Operating system release date",
               getter=lambda _: DRAGONFLY_VERSION, kind=INT, number=24),
        Sysctl("kern.uptime", "Seconds since boot", getter="uptime", kind=INT, flags=RD),
        Sysctl("hw.ncpu", "Number of active CPUs", attr="ncpu", kind=INT, number=3),
        Sysctl("hw.byteorder", "System byte order",
               getter=lambda _: 1234 if sys.byteorder == "little" else 4321, kind=INT, number=4),
        Sysctl("hw.pagesize", "System memory page size", getter=lambda _: PAGE_SIZE, kind=INT,
               number=7),
        Sysctl("hw.machine_arch", "Cpu architecture", getter=lambda _: "x86_64", kind=STRING,
               number=11),
        Sysctl("hw.platform", "Platform architecture", getter=lambda _: "vkernel64",
               kind=STRING),
    )  # fmt: skip

    def __init__(self, clock: Clock, ncpu: int, hostname: str, version: str) -> None:
        self.clock = clock
        self.ncpu = ncpu
        self.hostname = hostname
        self.boottime = clock.realtime_ns()
        self._booted = clock.monotonic_ns()
        self.version = f"{OSTYPE} {OSRELEASE} ({version})"

    def register(self, views: KernViews) -> None:
        """Show /kern/version."""
        views.add_lines("version", "what kernel this is", lambda: (self.version,))

    def uptime(self) -> int:
        """Whole seconds since boot."""
        return (self.clock.monotonic_ns() - self._booted) // NSEC_PER_SEC
