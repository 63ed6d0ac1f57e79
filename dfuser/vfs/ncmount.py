"""The mount cache: which file system is mounted at a place, without walking the mount list.

A path that crosses a mount point asks "is anything mounted on this pair of entry and mount?". The
flag ISMOUNTPT of an entry only says *perhaps*: a null mount shares the entries of the mount below,
and what is mounted on one view of a directory is not mounted on the other. So both answers are
worth remembering, the mount found and "nothing here".

Counterpart: struct ncmount_cache, ncmount_cache_lookup, cache_findmount, cache_ismounting,
    cache_unmounting, cache_clearmntcache (kern/vfs_cache.c).
Differs from DragonFly: 16,384 elements in one table that forgets the least recently used, where C
    has sets of eight ways with a tick each. An element holds its entry, so an address that is used
    again cannot be mistaken for another.
Token/lock order: none.
Invariants: at most `limit` elements; an element never outlives its mounts; a positive element
    always agrees with the mount's own ``ncmounton``.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from dfuser.libkern.sysctl import INT, LONG, RD, RW, Sysctl

if TYPE_CHECKING:
    from .mount import Mount, MountList
    from .namecache import NamecacheEntry, NcHandle

#: Elements of the table. Counterpart: NCMOUNT_NUMCACHE (kern/vfs_cache.c).
NCMOUNT_NUMCACHE: Final = 16384


class NcmountStatistics(NamedTuple):
    """Figures of the mount cache."""

    entries: int
    negative: int
    limit: int
    hits: int
    neghits: int
    misses: int
    evictions: int


class NcmountCache:
    """Remembers answers of `findmount`, positive and negative."""

    sysctls = (
        Sysctl("debug.ncmount_cache_enable", "Use the mount cache", attr="enable", kind=INT,
               flags=RW, minimum=0, maximum=1, setter="set_enable"),
        Sysctl("debug.ncmount.entries", "Elements in use", getter=lambda c: len(c.table), flags=RD),
        Sysctl("debug.ncmount.limit", "Elements at most", attr="limit", flags=RW, minimum=8,
               maximum=NCMOUNT_NUMCACHE, setter="set_limit"),
        Sysctl("debug.ncmount.hits", "Answers from the table", attr="hits", kind=LONG),
        Sysctl("debug.ncmount.neghits", "Answers 'nothing here'", attr="neghits", kind=LONG),
        Sysctl("debug.ncmount.misses", "Answers from the mount list", attr="misses", kind=LONG),
        Sysctl("debug.ncmount.evictions", "Elements forgotten for room", attr="evictions",
               kind=LONG),
    )  # fmt: skip

    def __init__(self, mounts: MountList, limit: int = NCMOUNT_NUMCACHE) -> None:
        self.mounts = mounts
        self.limit = limit
        self.enable = 1
        self.table: OrderedDict[tuple[int, NamecacheEntry], Mount | None] = OrderedDict()
        self.hits = 0
        self.neghits = 0
        self.misses = 0
        self.evictions = 0

    def set_enable(self, value: int) -> None:
        """Switch on or off; switching off forgets everything."""
        self.enable = value
        self.table.clear()

    def set_limit(self, value: int) -> None:
        """Change the size, forgetting the oldest elements that no longer fit."""
        self.limit = value
        self._trim()

    def findmount(self, nch: NcHandle) -> Mount | None:
        """The mount on top of ``nch``, or None. Never blocks.

        Counterpart: cache_findmount.
        """
        key = (nch.mount.index, nch.ncp)
        table = self.table
        if key in table:
            mount = table[key]
            table.move_to_end(key)
            if mount is None:
                self.neghits += 1
            else:
                self.hits += 1
            return mount
        self.misses += 1
        mount = self.mounts.find_on(nch)
        if self.enable:
            table[key] = mount
            self._trim()
        return mount

    def _trim(self) -> None:
        """Forget the least recently used elements above the limit."""
        while len(self.table) > self.limit:
            self.table.popitem(last=False)
            self.evictions += 1

    def ismounting(self, mount: Mount) -> None:
        """A mount came: what was negative at its place is not any more."""
        on = mount.ncmounton
        if on is not None:
            self.table.pop((on.mount.index, on.ncp), None)

    def unmounting(self, mount: Mount) -> None:
        """A mount goes: forget every element that leads to it or starts in it."""
        index = mount.index
        for key in [k for k, v in self.table.items() if v is mount or k[0] == index]:
            del self.table[key]

    def forget(self, ncp: NamecacheEntry) -> None:
        """An entry goes: forget it on every mount."""
        for key in [k for k in self.table if k[1] is ncp]:
            del self.table[key]

    def statistics(self) -> NcmountStatistics:
        """The figures of this moment."""
        return NcmountStatistics(
            len(self.table), sum(v is None for v in self.table.values()), self.limit,
            self.hits, self.neghits, self.misses, self.evictions,
        )  # fmt: skip
