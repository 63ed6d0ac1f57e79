"""The syncer: what was changed is written within half a minute, a little every second.

A file system that writes later marks a vnode dirty (`Syncer.setisdirty`, `setobjdirty`). The vnode
is then put into one of 32 buckets of its mount, each a second apart, and when the wheel comes round
to it, it is written. Files are put off longer than directories, directories longer than the
metadata of a device, so that names are on the disk before the data they lead to is missed. What is
still dirty afterwards comes back a second later. Once in kern.syncdelay the file system as a whole
is asked to write what it has (``vfs_sync`` with MNT_LAZY).

Each mount has a wheel and a thread of its own, so a slow disk delays nobody else. Mounts that have
nothing to write (MNTK.NOMSYNC: tmpfs, the synthetic trees, null mounts) have neither.

Counterpart: kern/vfs_sync.c; vsetisdirty, vclrisdirty, vsetobjdirty, vclrobjdirty.
Differs from DragonFly: the wheel's hand moves by the kernel's clock, so a thread that comes late
    catches up; boot says how threads are made (`Syncer.start`), and without threads the wheels are
    turned by hand (`SyncerCtx.tick`), which is how tests do it.
Token/lock order: none; only `SyncerCtx.daemon` waits.
Invariants: a vnode with V.ONWORKLST is in exactly one bucket of its mount's wheel, any other in
    none; ``count`` is the number of vnodes in the wheel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from dfuser.libkern.errno import KError
from dfuser.libkern.param import HZ, NSEC_PER_SEC
from dfuser.libkern.stat import VType
from dfuser.libkern.sysctl import INT, LONG, RW, Sysctl
from dfuser.lwkt import thread as lwkt_thread
from dfuser.lwkt.block import run_blocking
from dfuser.lwkt.synch import tsleep, wakeup

from .mountflags import MNT, MNTK
from .vnode import V
from .vop import MNT_LAZY, MNT_WAIT

if TYPE_CHECKING:
    from collections.abc import Callable

    from .mount import Mount
    from .vfs import Vfs
    from .vnode import Vnode

#: Buckets of a wheel and longest delay in seconds. Counterpart: SYNCER_MAXDELAY.
SYNCER_MAXDELAY: Final = 32


class SyncerStatistics(NamedTuple):
    """Figures of all wheels; the last four count since boot."""

    wheels: int
    pending: int
    ticks: int
    written: int
    retried: int
    failed: int


class SyncerCtx:
    """The wheel of one mount. Counterpart: struct syncer_ctx (kern/vfs_sync.c)."""

    __slots__ = ("buckets", "count", "delayno", "last_ns", "mount", "next_sync", "rush", "slot_of",
                 "stopping", "syncer")  # fmt: skip

    def __init__(self, syncer: Syncer, mount: Mount) -> None:
        self.syncer = syncer
        self.mount = mount
        self.buckets: tuple[dict[Vnode, None], ...] = tuple({} for _ in range(SYNCER_MAXDELAY))
        self.slot_of: dict[Vnode, int] = {}
        self.delayno = 0
        self.count = 0
        self.rush = 0
        self.next_sync = 0
        self.stopping = False
        self.last_ns = syncer.vfs.clock.monotonic_ns()

    def add(self, vp: Vnode, delay: int) -> None:
        """Put a vnode into the bucket ``delay`` seconds ahead. Counterpart: vn_syncer_add."""
        self.remove(vp)
        delay = max(1, min(delay, SYNCER_MAXDELAY - 2))
        slot = (self.delayno + delay) % SYNCER_MAXDELAY
        self.buckets[slot][vp] = None
        self.slot_of[vp] = slot
        vp.flag |= V.ONWORKLST
        self.count += 1

    def remove(self, vp: Vnode) -> None:
        """Take a vnode out of the wheel. Counterpart: vn_syncer_remove."""
        slot = self.slot_of.pop(vp, None)
        if slot is not None:
            del self.buckets[slot][vp]
            vp.flag &= ~V.ONWORKLST
            self.count -= 1

    def due(self) -> int:
        """How many seconds the hand is behind the clock, pushed ahead by `Syncer.rushjob`."""
        now = self.syncer.vfs.clock.monotonic_ns()
        behind = (now - self.last_ns) // NSEC_PER_SEC
        self.last_ns += behind * NSEC_PER_SEC
        extra, self.rush = self.rush, 0
        return min(behind + extra, SYNCER_MAXDELAY)

    def next_bucket(self) -> list[Vnode]:
        """Move the hand one second on and give the vnodes that are due."""
        self.syncer.ticks += 1
        self.delayno = (self.delayno + 1) % SYNCER_MAXDELAY
        return list(self.buckets[self.delayno])

    def sync_due(self) -> bool:
        """Whether the file system as a whole is to be asked in this second."""
        self.next_sync += 1
        if self.next_sync < self.syncer.syncdelay:
            return False
        self.next_sync = 0
        return not self.mount.flag & MNT.RDONLY

    def write_vnode(self, vp: Vnode, waitfor: int) -> None:
        """Write one vnode; what stays dirty comes back in retrydelay seconds.

        Raises:
            Block: the file system must wait.
        """
        if vp.flag & V.RECLAIMED or not vp.flag & V.ONWORKLST:
            return
        vp.ref()
        try:
            vp.ops.use.vop_fsync(vp, waitfor)
            self.syncer.written += 1
        except KError as error:
            self.syncer.failed += 1
            self.syncer.vfs.msgbuf.kprintf(f"syncer: {self.mount.onname} ino {vp.ino}: {error}\n")
        finally:
            if not vp.flag & (V.ISDIRTY | V.OBJDIRTY):
                self.remove(vp)
            elif self.slot_of.get(vp) == self.delayno:
                self.add(vp, self.syncer.retrydelay)
                self.syncer.retried += 1
            vp.rele()

    def tick(self) -> None:
        """Do what one second brings, for kernels whose wheels are turned by hand."""
        for vp in self.next_bucket():
            self.write_vnode(vp, MNT_LAZY)
        if self.sync_due():
            self.mount.ops.vfs_sync(self.mount, MNT_LAZY)

    async def daemon(self) -> None:
        """The syncer thread of this mount; runs until the mount goes. Sleeps in "syncer".

        Counterpart: syncer_thread.
        """
        while not self.stopping:
            for _ in range(self.due()):
                for vp in self.next_bucket():
                    await run_blocking(self.write_vnode, vp, MNT_LAZY)
                if self.sync_due() and not self.stopping:
                    await run_blocking(self.mount.ops.vfs_sync, self.mount, MNT_LAZY)
            await tsleep(self, 0, "syncer", HZ)

    def stop(self) -> None:
        """The mount goes: end the thread and empty the wheel."""
        self.stopping = True
        for vp in list(self.slot_of):
            self.remove(vp)
        if self.syncer.spawn is not None and lwkt_thread.curthread is not None:
            wakeup(self)


class Syncer:
    """The delays, and the wheels of all mounts."""

    sysctls = (
        Sysctl("kern.syncdelay", "Seconds until a dirty vnode is written", attr="syncdelay",
               kind=INT, flags=RW, minimum=1, maximum=SYNCER_MAXDELAY),
        Sysctl("kern.filedelay", "Seconds until a file is written", attr="filedelay", kind=INT,
               flags=RW, minimum=1, maximum=SYNCER_MAXDELAY),
        Sysctl("kern.dirdelay", "Seconds until a directory is written", attr="dirdelay", kind=INT,
               flags=RW, minimum=1, maximum=SYNCER_MAXDELAY),
        Sysctl("kern.metadelay", "Seconds until metadata is written", attr="metadelay", kind=INT,
               flags=RW, minimum=1, maximum=SYNCER_MAXDELAY),
        Sysctl("kern.retrydelay", "Seconds until a failed write is tried again",
               attr="retrydelay", kind=INT, flags=RW, minimum=1, maximum=SYNCER_MAXDELAY),
        Sysctl("debug.rush_requests", "Times the wheels were pushed ahead", attr="rush_requests",
               kind=INT, flags=RW),
        Sysctl("vfs.syncer_pending", "Vnodes that wait to be written", getter="pending",
               kind=LONG),
    )  # fmt: skip

    def __init__(self, vfs: Vfs) -> None:
        self.vfs = vfs
        self.syncdelay = 30
        self.filedelay = 30
        self.dirdelay = 29
        self.metadelay = 28
        self.retrydelay = 1
        self.rush_requests = 0
        self.ticks = 0
        self.written = 0
        self.retried = 0
        self.failed = 0
        #: Makes a thread that runs ``ctx.daemon``; None while there are none.
        self.spawn: Callable[[SyncerCtx], None] | None = None

    def start(self, spawn: Callable[[SyncerCtx], None]) -> None:
        """From now on every wheel has a thread, made by ``spawn`` (boot's choice)."""
        self.spawn = spawn
        for ctx in self.wheels():
            spawn(ctx)

    def wheels(self) -> list[SyncerCtx]:
        """The wheels of the mounts that have one."""
        return [mp.syncer for mp in self.vfs.mounts if mp.syncer is not None]

    def mount_added(self, mp: Mount) -> None:
        """A mount came. Counterpart: vn_syncer_thr_create."""
        if mp.kern_flag & (MNTK.NOMSYNC | MNTK.NCALIASED):
            return
        mp.syncer = SyncerCtx(self, mp)
        if self.spawn is not None:
            self.spawn(mp.syncer)

    def mount_removed(self, mp: Mount) -> None:
        """A mount goes. Counterpart: vn_syncer_thr_stop."""
        if mp.syncer is not None:
            mp.syncer.stop()
            mp.syncer = None

    # --- dirty marks -------------------------------------------------------------------------

    def delay_of(self, vp: Vnode) -> int:
        """Seconds until ``vp`` is written: by its type, never more than kern.syncdelay."""
        if vp.type is VType.VDIR:
            delay = self.dirdelay
        elif vp.type in (VType.VBLK, VType.VCHR):
            delay = self.metadelay
        else:
            delay = self.filedelay
        return min(delay, self.syncdelay)

    def setisdirty(self, vp: Vnode) -> None:
        """The inode of ``vp`` must be written some time. Counterpart: vsetisdirty."""
        self._set(vp, V.ISDIRTY)

    def setobjdirty(self, vp: Vnode) -> None:
        """Pages of ``vp`` must be written some time. Counterpart: vsetobjdirty."""
        self._set(vp, V.OBJDIRTY)

    def _set(self, vp: Vnode, bit: int) -> None:
        """Mark, and enter into the wheel if the mount has one."""
        vp.flag |= bit
        mount = vp.mount
        if not vp.flag & V.ONWORKLST and mount is not None and mount.syncer is not None:
            mount.syncer.add(vp, self.delay_of(vp))

    def clrisdirty(self, vp: Vnode) -> None:
        """The inode is written. Counterpart: vclrisdirty."""
        self._clear(vp, V.ISDIRTY)

    def clrobjdirty(self, vp: Vnode) -> None:
        """The pages are written. Counterpart: vclrobjdirty."""
        self._clear(vp, V.OBJDIRTY)

    def _clear(self, vp: Vnode, bit: int) -> None:
        """Unmark, and leave the wheel when nothing is dirty any more."""
        vp.flag &= ~bit
        if vp.flag & V.ONWORKLST and not vp.flag & (V.ISDIRTY | V.OBJDIRTY):
            self.remove(vp)

    def remove(self, vp: Vnode) -> None:
        """Take a vnode out of the wheel it is in."""
        if vp.mount is not None and vp.mount.syncer is not None:
            vp.mount.syncer.remove(vp)
        vp.flag &= ~V.ONWORKLST

    # --- syncing -----------------------------------------------------------------------------

    def sync_mount(self, mp: Mount, waitfor: int = MNT_WAIT) -> None:
        """Write everything dirty of one mount.

        Raises:
            KError: the file system could not.
            Block: it must wait.
        """
        if not mp.flag & MNT.RDONLY:
            mp.ops.vfs_sync(mp, waitfor)

    def sync_all(self, waitfor: int = MNT_WAIT) -> None:
        """Write everything dirty of every mount; goes on after errors and raises the first.

        Counterpart: sys_sync.
        """
        first: KError | None = None
        for mp in self.vfs.mounts:
            try:
                self.sync_mount(mp, waitfor)
            except KError as error:
                first = first or error
        if first is not None:
            raise first

    def rushjob(self, mp: Mount, seconds: int = 1) -> None:
        """Push a wheel ahead: memory is short. Counterpart: speedup_syncer."""
        if mp.syncer is not None:
            self.rush_requests += 1
            mp.syncer.rush += seconds
            if self.spawn is not None and lwkt_thread.curthread is not None:
                wakeup(mp.syncer)

    def pending(self) -> int:
        """How many vnodes wait to be written."""
        return sum(ctx.count for ctx in self.wheels())

    def statistics(self) -> SyncerStatistics:
        """The figures of this moment."""
        return SyncerStatistics(
            len(self.wheels()), self.pending(), self.ticks, self.written, self.retried, self.failed
        )
