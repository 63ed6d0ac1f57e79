"""Limits and fixed numbers of the kernel.

The numbers every room needs and nobody may choose for himself: how long a name may be,
how big a page is, how many ticks make a second. They are DragonFly's. Where Linux has
another limit (PATH_MAX 4096, a page of 64 KiB on some machines) ours counts inside.

Counterpart: sys/param.h, sys/syslimits.h, machine/param.h.
Differs from DragonFly: only what this kernel uses is listed. MAXCPU is DragonFly's
    limit, not a promise of speed: all logical CPUs share one host thread.
Token/lock order: takes none.
Invariants: PAGE_SIZE, MAXBSIZE and DEV_BSIZE are powers of two, each dividing the next.
"""

from __future__ import annotations

from typing import Final

# The system this kernel says it is.
OSTYPE: Final = "DragonFly"
OSRELEASE: Final = "5.9-DEVELOPMENT"
DRAGONFLY_VERSION: Final = 500901
"""__DragonFly_version of the sources whose numbers are used (kern.osreldate)."""
MAXCPU: Final = 256

# Time.
HZ: Final = 100
"""Ticks a second: one tick is 10 ms."""
NSEC_PER_SEC: Final = 1_000_000_000
NSEC_PER_TICK: Final = NSEC_PER_SEC // HZ

# Memory.
PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
PAGE_MASK: Final = PAGE_SIZE - 1
DEV_BSHIFT: Final = 9
DEV_BSIZE: Final = 1 << DEV_BSHIFT
"""The unit of st_blocks and of a page's valid and dirty bits: 512 bytes."""
MAXBSIZE: Final = 65536
"""Largest buffer of the buffer cache, and the size of a contiguous file run."""
BLKDEV_IOSIZE: Final = PAGE_SIZE
DFLTPHYS: Final = 64 * 1024
MAXPHYS: Final = 128 * 1024

# Names and paths; bytes, as everything in a path is.
NAME_MAX: Final = 255
PATH_MAX: Final = 1024
"""Length of a path in bytes with its terminating NUL, so 1023 are usable."""
MAXPATHLEN: Final = PATH_MAX
MAXSYMLINKS: Final = 32
MAXNAMLEN: Final = NAME_MAX
MNAMELEN: Final = 80
"""Bytes statfs keeps of a mount's source and target."""
MFSNAMELEN: Final = 16
LINK_MAX: Final = 32767
PIPE_BUF: Final = 512
IOV_MAX: Final = 1024
SPECNAMELEN: Final = 63

# Processes and users.
ARG_MAX: Final = 262144
NCARGS: Final = ARG_MAX
CHILD_MAX: Final = 40
OPEN_MAX: Final = 64
NOFILE: Final = OPEN_MAX
NGROUPS_MAX: Final = 16
NGROUPS: Final = NGROUPS_MAX
NOGROUP: Final = 65535
MAXCOMLEN: Final = 16
MAXINTERP: Final = 32
MAXLOGNAME: Final = 33
MAXHOSTNAMELEN: Final = 256
CMASK: Final = 0o022
NZERO: Final = 0

# Terminals.
MAX_CANON: Final = 255
MAX_INPUT: Final = 255

# Network buffers.
MSIZE: Final = 512
MCLSHIFT: Final = 11
MCLBYTES: Final = 1 << MCLSHIFT
MJUMPAGESIZE: Final = PAGE_SIZE
MJUM9BYTES: Final = 9 * 1024
MJUM16BYTES: Final = 16 * 1024

# Fixed-point load averages.
FSHIFT: Final = 11
FSCALE: Final = 1 << FSHIFT

# Sleep flags: what tsleep and wakeup are asked for.
PCATCH: Final = 0x0000_0100
"""A signal ends the sleep."""
PINTERLOCKED: Final = 0x0000_0400
"""The caller has announced the sleep with tsleep_interlock."""
PWAKEUP_CPUMASK: Final = 0x0000_3FFF
PWAKEUP_MYCPU: Final = 0x0000_4000
PWAKEUP_ONE: Final = 0x0000_8000
PDOMAIN_MASK: Final = 0xFFFF_0000
PDOMAIN_UMTX: Final = 0x0001_0000
PDOMAIN_XLOCK: Final = 0x0002_0000


def howmany(x: int, y: int) -> int:
    """Count the pieces of size y that x needs (the last one may be part)."""
    return (x + y - 1) // y


def rounddown(x: int, y: int) -> int:
    """Largest multiple of y that is at most x."""
    return x // y * y


def roundup(x: int, y: int) -> int:
    """Smallest multiple of y that is at least x."""
    return (x + y - 1) // y * y


def powerof2(x: int) -> bool:
    """Whether x has at most one bit set; like the C macro it counts 0 in."""
    return x & (x - 1) == 0


def trunc_page(x: int) -> int:
    """Address of the page that holds byte x."""
    return x & ~PAGE_MASK


def round_page(x: int) -> int:
    """First page boundary at or after byte x."""
    return (x + PAGE_MASK) & ~PAGE_MASK


def btoc(nbytes: int) -> int:
    """Pages ("clicks") needed for so many bytes."""
    return (nbytes + PAGE_MASK) >> PAGE_SHIFT


def btodb(nbytes: int) -> int:
    """Whole 512-byte device blocks in so many bytes."""
    return nbytes >> DEV_BSHIFT


def dbtob(nblocks: int) -> int:
    """Bytes in so many 512-byte device blocks."""
    return nblocks << DEV_BSHIFT
