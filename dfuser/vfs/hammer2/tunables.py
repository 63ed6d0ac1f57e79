"""What may be tuned: one object for all HAMMER2 volumes of a kernel.

The numbers are limits of memory, never of what a volume may hold; a volume works with the
smallest of them, only slower. What is counted against them is in `statistics()` of each part.

Counterpart: the sysctls vfs.hammer2.* (vfs/hammer2/hammer2_vfsops.c).
Differs from DragonFly: limits count chains and bytes of one volume; DragonFly counts dirty chains
    of each PFS and leaves the rest to its buffer cache.
Token/lock order: takes none.
"""

from __future__ import annotations

from typing import Final

from dfuser.libkern.sysctl import INT, RW, Sysctl

#: Chains kept in memory that could be read again; one takes one to thirty kilobytes.
LIMIT_CHAINS: Final = 8192
#: Chains that differ from the media before a sync is asked for; sealing takes 8 us for each.
LIMIT_DIRTY_CHAINS: Final = 4096
#: Bytes of blocks that wait to be written before writing begins by itself.
WRITE_BEHIND: Final = 8 << 20
#: Blocks that are remembered for sharing.
LIMIT_DEDUP: Final = 65536
#: The longest run of blocks that is written with one call.
CLUSTER_BYTES: Final = 1 << 20


class Tunables:
    """Limits that may be changed while volumes are mounted. A kernel registers one of these."""

    __slots__ = (
        "always_compress", "cluster_bytes", "dedup_enable", "limit_chains", "limit_dedup",
        "limit_dirty_chains", "write_behind",
    )  # fmt: skip

    sysctls = (
        Sysctl("vfs.hammer2.limit_chains", "Unchanged chains kept in memory, for each volume",
               attr="limit_chains", kind=INT, flags=RW, minimum=64),
        Sysctl("vfs.hammer2.limit_dirty_chains", "Changed chains before a sync is asked for",
               attr="limit_dirty_chains", kind=INT, flags=RW, minimum=64),
        Sysctl("vfs.hammer2.write_behind", "Bytes that wait to be written, for each volume",
               attr="write_behind", kind=INT, flags=RW, minimum=65536),
        Sysctl("vfs.hammer2.cluster_bytes", "Longest run of blocks written with one call",
               attr="cluster_bytes", kind=INT, flags=RW, minimum=65536),
        Sysctl("vfs.hammer2.always_compress", "Compress files that did not get smaller so far",
               attr="always_compress", kind=INT, flags=RW, minimum=0, maximum=1),
        Sysctl("vfs.hammer2.dedup_enable", "Share blocks with equal data when writing",
               attr="dedup_enable", kind=INT, flags=RW, minimum=0, maximum=1),
        Sysctl("vfs.hammer2.limit_dedup", "Blocks remembered for sharing, for each volume",
               attr="limit_dedup", kind=INT, flags=RW, minimum=0),
    )  # fmt: skip

    def __init__(self) -> None:
        """Everything as it is by default."""
        self.limit_chains = LIMIT_CHAINS
        self.limit_dedup = LIMIT_DEDUP
        self.limit_dirty_chains = LIMIT_DIRTY_CHAINS
        self.write_behind = WRITE_BEHIND
        self.cluster_bytes = CLUSTER_BYTES
        self.always_compress = 0
        self.dedup_enable = 1
