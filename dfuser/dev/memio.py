"""The devices that are nothing but a rule: null, zero, full, random, urandom.

=========  =====  ====  ================================================================
name       minor  mode  reading gives, writing does
=========  =====  ====  ================================================================
null           2  0666  end of file; takes everything
random         3  0644  random bytes; EPERM
urandom        4  0644  random bytes; EPERM
zero          12  0666  zeroes; takes everything
full          13  0666  zeroes; ENOSPC
=========  =====  ====  ================================================================

Counterpart: kern/kern_memio.c (mem_ops).
Differs from DragonFly: ``full`` is an addition for the host's tools, DragonFly has none. ``random``
never waits, because the host's pool behind it is always ready; both random devices read the host's
pool directly, so there is no pool of ours that a writer could stir (DragonFly refuses writers too,
unless kern.seedenable is set). mem, kmem, io, upmap, kpmap and lpmap are windows on memory that
file reads cannot carry honestly; they are absent.
Token and lock order: takes none. Nothing here waits.
Invariants: one read allocates at most `MAXREAD` bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from dfuser.libkern.errno import ENODEV, ENOSPC, ENOTTY, EPERM, KError
from dfuser.libkern.sysctl import LONG, RD, Sysctl

from .devsw import GID_WHEEL, UID_ROOT, Buffer, Cdev, D, DevOps
from .ioccom import FIOASYNC

if TYPE_CHECKING:
    from dfuser.libkern.ucred import Ucred

    from .devlist import DevList

MINOR_NULL: Final = 2
MINOR_RANDOM: Final = 3
MINOR_URANDOM: Final = 4
MINOR_ZERO: Final = 12
MINOR_FULL: Final = 13

#: Most bytes one read gives; a larger one is answered in part.
MAXREAD: Final = 1 << 20

_DEVICES: Final = (
    ("null", MINOR_NULL, 0o666),
    ("random", MINOR_RANDOM, 0o644),
    ("urandom", MINOR_URANDOM, 0o644),
    ("zero", MINOR_ZERO, 0o666),
    ("full", MINOR_FULL, 0o666),
)


class EntropySource(Protocol):
    """What the random devices need of the host."""

    def read(self, n: int) -> bytes:
        """Exactly ``n`` random bytes."""


class MemStatistics(NamedTuple):
    """What the devices without hardware did since boot."""

    reads: int
    writes: int
    random_bytes: int
    refused: int


class MemOps(DevOps):
    """The driver of the five. Counterpart: mem_ops (kern/kern_memio.c)."""

    __slots__ = ("entropy", "random_bytes", "reads", "refused", "writes", "zeroes")

    sysctl_random_bytes = Sysctl(
        "kern.random_bytes",
        "Bytes read from the random devices",
        attr="random_bytes",
        kind=LONG,
        flags=RD,
    )

    def __init__(self, entropy: EntropySource) -> None:
        super().__init__("mem", D.QUICK)
        self.entropy = entropy
        self.zeroes = bytes(64 * 1024)
        self.random_bytes = 0
        self.reads = 0
        self.writes = 0
        self.refused = 0

    def attach(self, devices: DevList) -> None:
        """Make the five devices."""
        for name, minor, perms in _DEVICES:
            devices.make_dev(self, minor, UID_ROOT, GID_WHEEL, perms, name)

    def d_open(self, dev: Cdev, oflags: int, cred: Ucred) -> Any:
        """Anybody whom the permission bits let."""
        return None

    def d_read(self, dev: Cdev, offset: int, size: int, ioflag: int, priv: Any) -> Buffer:
        """End of file, zeroes or random bytes, by the minor number."""
        minor = dev.uminor
        size = min(size, MAXREAD)
        self.reads += 1
        if minor == MINOR_NULL:
            return b""
        if minor in (MINOR_ZERO, MINOR_FULL):
            return memoryview(self.zeroes)[:size] if size <= len(self.zeroes) else bytes(size)
        if minor in (MINOR_RANDOM, MINOR_URANDOM):
            self.random_bytes += size
            return self.entropy.read(size)
        raise KError(ENODEV)

    def d_write(self, dev: Cdev, offset: int, data: Buffer, ioflag: int, priv: Any) -> int:
        """Take everything, or refuse everything."""
        minor = dev.uminor
        if minor in (MINOR_NULL, MINOR_ZERO):
            self.writes += 1
            return len(data)
        self.refused += 1
        if minor == MINOR_FULL:
            raise KError(ENOSPC)
        if minor in (MINOR_RANDOM, MINOR_URANDOM):
            raise KError(EPERM)
        raise KError(ENODEV)

    def d_ioctl(
        self, dev: Cdev, cmd: int, data: Buffer, fflag: int, cred: Ucred, priv: Any = None
    ) -> bytes:
        """The random devices accept FIOASYNC and do nothing about it. Counterpart: random_ioctl.

        The interrupts that stir the pool (MEM_SETIRQ and its sisters) are the host's: ENOTTY.
        """
        if cmd == FIOASYNC and dev.uminor in (MINOR_RANDOM, MINOR_URANDOM):
            return b""
        raise KError(ENOTTY)

    def statistics(self) -> MemStatistics:
        """Counters since boot."""
        return MemStatistics(self.reads, self.writes, self.random_bytes, self.refused)
