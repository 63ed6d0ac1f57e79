"""The VFS of one kernel: the object that owns all the others of this room.

Boot makes one `Vfs`, registers the file system types, mounts the root, and hands the object to
everybody who works with files. Nothing of the VFS lives outside it, so many kernels run in one
process and each can be thrown away.

Counterpart: vfsinit (kern/vfs_init.c) and the globals of kern/vfs_*.c.
Differs from DragonFly: they are members of an object. File times are exact to the nanosecond by
    default (microseconds there), because the host's programs expect it.
Token/lock order: none.
Invariants: made once a kernel; `close` leaves no cycle behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from dfuser.hw.clock import Clock, VirtualClock
from dfuser.libkern.ktr import Ktr
from dfuser.libkern.log import MsgBuf
from dfuser.libkern.param import NSEC_PER_TICK
from dfuser.libkern.sysctl import INT, RW, Sysctl
from dfuser.libkern.ucred import Ucred

from .cache import CacheStatistics, NameCache
from .ddbshow import VfsDdb
from .mount import FsTypes, MountList, MountStatistics
from .syncer import Syncer, SyncerStatistics
from .vnodetable import VnodeStatistics, VnodeTable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfuser.lwkt.machine import Lwkt
    from dfuser.vm.page import VmPages

    from .hostcache import HostCache
    from .namecache import NcHandle

#: vfs.timestamp_precision. Counterpart: TSP_* (kern/vfs_subr.c).
TSP_SEC: Final = 0
TSP_HZ: Final = 1
TSP_USEC: Final = 2
TSP_NSEC: Final = 3

_GRAIN: Final = (1_000_000_000, NSEC_PER_TICK, 1000, 1)

#: Default of kern.maxvnodes where boot does not compute one.
DEFAULT_MAXVNODES: Final = 100_000


class VfsStatistics(NamedTuple):
    """The figures of all parts."""

    vnodes: VnodeStatistics
    cache: CacheStatistics
    mounts: MountStatistics
    syncer: SyncerStatistics


class Vfs:
    """Everything about files in one kernel.

    Args:
        lwkt: the machine; None in tests of pure cores (nothing can wait then).
        clock: gives file times; a virtual one by default.
        pages: physical pages for file data; None where no file system needs them.
        ktr: trace rings.
        msgbuf: kernel log.
        hostcache: who must hear of changes, or None; may be set later.
        maxvnodes: initial kern.maxvnodes.
    """

    sysctls = (
        Sysctl("vfs.timestamp_precision",
               "Precision of file times: 0 seconds, 1 ticks, 2 microseconds, 3 nanoseconds",
               attr="timestamp_precision", kind=INT, flags=RW, minimum=TSP_SEC, maximum=TSP_NSEC),
        Sysctl("vfs.varsym_enable", "Expand ${VAR} in symbolic links", attr="varsym_enable",
               kind=INT, flags=RW, minimum=0, maximum=1),
        Sysctl("security.hardlink_check_uid", "Only a file's owner may link to it",
               attr="hardlink_check_uid", kind=INT, flags=RW, minimum=0, maximum=1),
        Sysctl("security.hardlink_check_gid", "Only members of a file's group may link to it",
               attr="hardlink_check_gid", kind=INT, flags=RW, minimum=0, maximum=1),
    )  # fmt: skip

    def __init__(
        self,
        lwkt: Lwkt | None = None,
        clock: Clock | None = None,
        pages: VmPages | None = None,
        ktr: Ktr | None = None,
        msgbuf: MsgBuf | None = None,
        hostcache: HostCache | None = None,
        maxvnodes: int = DEFAULT_MAXVNODES,
    ) -> None:
        self.lwkt = lwkt
        self.clock: Clock = clock if clock is not None else VirtualClock()
        self.pages = pages
        self.ktr = ktr if ktr is not None else Ktr(1, self.clock)
        self.msgbuf = msgbuf if msgbuf is not None else MsgBuf()
        self.hostcache = hostcache
        self.timestamp_precision = TSP_NSEC
        self.varsym_enable = 0
        self.hardlink_check_uid = 0
        self.hardlink_check_gid = 0
        #: As whom the kernel itself asks a file system. Counterpart: proc0's credentials.
        self.fscred = Ucred.root()
        #: A user who owns nothing and is in no group.
        self.nobody = Ucred.of(65534, 65534)
        self.fstypes = FsTypes()
        self.mounts = MountList(self)
        self.vnodes = VnodeTable(self, maxvnodes)
        self.cache = NameCache(self)
        self.syncer = Syncer(self)
        #: The debugger's view, for boot to register.
        self.ddb = VfsDdb(self)

    @property
    def rootnch(self) -> NcHandle:
        """The root of the name space, borrowed."""
        return self.mounts.rootnch

    def now(self) -> int:
        """The time for file stamps: ns since the epoch, cut to vfs.timestamp_precision.

        Counterpart: vfs_timestamp.
        """
        now = self.clock.filetime_ns()
        grain = _GRAIN[self.timestamp_precision]
        return now - now % grain

    def sysctl_owners(self) -> Iterator[object]:
        """The objects that declare sysctls, trace points and commands, for boot to register."""
        yield from (self, self.vnodes, self.vnodes.lru, self.cache)
        yield from (self.cache.limits, self.cache.ncmount, self.mounts, self.syncer, self.ddb)

    def sync_all(self) -> None:
        """Write everything dirty of every mount, and wait for it. Counterpart: sys_sync."""
        self.syncer.sync_all()

    def statistics(self) -> VfsStatistics:
        """The figures of all parts at this moment."""
        return VfsStatistics(
            self.vnodes.statistics(), self.cache.statistics(), self.mounts.statistics(),
            self.syncer.statistics(),
        )  # fmt: skip

    def close(self) -> None:
        """Unmount everything (in reverse, forced where in use) and break all cycles.

        The daemons must have ended.
        """
        self.mounts.unmountall()
        self.vnodes.close()
        self.hostcache = None
