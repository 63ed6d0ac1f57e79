"""The table of all vnodes: how one is made, shared, deactivated and freed.

The states and references of a vnode are explained in `vnode`; this file has the transitions. All of
them are plain functions that run to completion, so a vnode is never seen between two states.

The order of the end matters: `VnodeTable.vgone` first takes the names away, then tells the file
system that the vnode is inactive (if it has not heard so yet), then the host, then lets the file
system cut the link to its node, and only then changes what the vnode answers.

Counterpart: kern/vfs_lock.c; getnewvnode, vgone, vclean_vxlocked, vrecycle (kern/vfs_subr.c).
Differs from DragonFly: one pair of lists, not one a CPU; a reclaimed vnode's memory is returned at
    once instead of being reused; making a vnode never reclaims another.
Token/lock order: none.
Invariants: numvnodes == activevnodes + inactivevnodes; cachedvnodes is the number of active
    vnodes with no reference; a RECLAIMED vnode is in no namecache entry and on no mount.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from dfuser.libkern.errno import ENOENT, KError, panic
from dfuser.libkern.klist import NOTE_REVOKE
from dfuser.libkern.ktr import KtrInfo
from dfuser.libkern.stat import VType
from dfuser.libkern.sysctl import INT, LONG, RD, RW, Sysctl

from .deadfs import DeadOps
from .vnlru import Vnlru
from .vnode import VACT_INC, VACT_MAX, V, Vnode, VnodeList, VState
from .vop import OpsCell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .mount import Mount
    from .vfs import Vfs

#: Bounds of kern.maxvnodes. Counterpart: MINVNODES, MAXVNODES (kern/vfs_subr.c).
MINVNODES: Final = 2000
MAXVNODES: Final = 4_000_000
#: Memory above which kern.maxvnodes grows twice as fast. Counterpart: MAXVNBREAKMEM.
MAXVNBREAKMEM: Final = 1 << 30
#: Bytes of memory for each vnode: 50 times what a vnode and its VM object take, about 1 KiB.
MEMORY_A_VNODE: Final = 50 << 10


def default_maxvnodes(memory: int, maxproc: int) -> int:
    """kern.maxvnodes for so many bytes of memory. Counterpart: vfs_subr_init (kern/vfs_subr.c)."""
    count = (memory + max(0, memory - MAXVNBREAKMEM)) // MEMORY_A_VNODE
    return max(MINVNODES, min(max(count, maxproc * 8), MAXVNODES))


class VnodeStatistics(NamedTuple):
    """Figures of the vnode table; all but the first six count since boot."""

    maxvnodes: int
    numvnodes: int
    activevnodes: int
    cachedvnodes: int
    inactivevnodes: int
    mounted: int
    created: int
    inactivations: int
    reactivations: int
    reclaims: int
    recycles: int
    forced: int
    scans: int
    vnlru_rounds: int
    userexit_rounds: int


class VnodeTable:
    """All vnodes of one kernel, and the limits on them.

    Counterpart: the vnode_list_hash and counters of kern/vfs_lock.c.
    """

    ktr_getnew = KtrInfo("vfs", "getnewvnode", "%s num %d")
    ktr_inactive = KtrInfo("vfs", "inactive", "ino %d mount %d")
    ktr_reclaim = KtrInfo("vfs", "reclaim", "ino %d mount %d")

    sysctls = (
        Sysctl("kern.maxvnodes", "Maximum number of vnodes", attr="maxvnodes", kind=INT, flags=RW,
               minimum=MINVNODES, maximum=MAXVNODES, setter="set_maxvnodes"),
        Sysctl("debug.numvnodes", "Vnodes in memory", attr="numvnodes", kind=INT, flags=RD),
        Sysctl("debug.activevnodes", "Vnodes on the active list", attr="active.count", kind=INT,
               flags=RD),
        Sysctl("debug.cachedvnodes", "Active vnodes that nobody references", attr="cachedvnodes",
               kind=INT, flags=RD),
        Sysctl("debug.inactivevnodes", "Vnodes that may be taken", attr="inactive.count", kind=INT,
               flags=RD),
        Sysctl("debug.verbose_reclaims", "Log every reclaim", attr="verbose_reclaims", kind=INT,
               flags=RW, minimum=0, maximum=1),
        Sysctl("debug.vnsize", "Bytes of a vnode without what it points at",
               getter=lambda _: Vnode.__basicsize__, kind=INT, flags=RD),
        Sysctl("vfs.reclaims", "Vnodes reclaimed since boot", attr="reclaims", kind=LONG, flags=RD),
    )  # fmt: skip

    def __init__(self, vfs: Vfs, maxvnodes: int) -> None:
        self.vfs = vfs
        self.active = VnodeList()
        self.inactive = VnodeList()
        self.numvnodes = 0
        self.cachedvnodes = 0
        self.verbose_reclaims = 0
        self.created = 0
        self.inactivations = 0
        self.reactivations = 0
        self.reclaims = 0
        self.recycles = 0
        self.forced = 0
        self.dead_cell = OpsCell(DeadOps())
        self._ktr = vfs.ktr.master("vfs")
        self.maxvnodes = max(MINVNODES, min(maxvnodes, MAXVNODES))
        self.lru_mark = self.maxvnodes * 9 // 10
        self.duty_mark = self.maxvnodes * 11 // 10
        self.lru = Vnlru(self)

    # --- limits ------------------------------------------------------------------------------

    def set_maxvnodes(self, value: int) -> None:
        """Change kern.maxvnodes; vnlru works towards a lower limit in batches."""
        self.maxvnodes = max(MINVNODES, min(value, MAXVNODES))
        self.lru_mark = self.maxvnodes * 9 // 10
        self.duty_mark = self.maxvnodes * 11 // 10
        self.vfs.cache.limits.changed()
        self.lru.kick()

    # --- making ------------------------------------------------------------------------------

    def getnewvnode(self, mount: Mount | None, ops: OpsCell, vtype: VType) -> Vnode:
        """A new vnode with one reference, active, on the list of its mount.

        Counterpart: getnewvnode, allocvnode. Never blocks and reclaims nothing itself (the caller
        may hold vnodes without references): above the limit vnlru is woken, far above it the next
        `userexit` works.
        """
        vp = Vnode(self, mount, ops, vtype)
        vp.state = VState.ACTIVE
        self.active.insert_tail(vp)
        self.created += 1
        self.numvnodes += 1
        if mount is not None:
            mount.vnodes[vp] = None
        if self.numvnodes >= self.lru_mark:
            self.lru.kick()
        if self._ktr.mask:
            self._ktr.log(self.ktr_getnew, vtype.name, self.numvnodes)
        return vp

    # --- references --------------------------------------------------------------------------

    def vref(self, vp: Vnode) -> Vnode:
        """`Vnode.ref`."""
        return vp.ref()

    def vrele(self, vp: Vnode) -> None:
        """`Vnode.rele`."""
        vp.rele()

    def vhold(self, vp: Vnode) -> None:
        """`Vnode.hold`."""
        vp.auxrefs += 1

    def vdrop(self, vp: Vnode) -> None:
        """`Vnode.drop`."""
        vp.drop()

    def vget(self, vp: Vnode) -> Vnode:
        """Reference a vnode that may be inactive or gone, and note the use.

        Raises:
            KError: ENOENT, the vnode has been reclaimed.
        """
        if vp.flag & V.RECLAIMED:
            raise KError(ENOENT)
        vp.ref()
        vp.flag &= ~V.INACTIVE
        if vp.act < VACT_MAX:
            vp.act += VACT_INC
        return vp

    def vput(self, vp: Vnode) -> None:
        """Undo `vget`."""
        vp.rele()

    def first_ref(self, vp: Vnode) -> None:
        """The 0 to 1 transition: reactivate if need be. Called by `Vnode.ref` only."""
        if vp.state is VState.ACTIVE:
            if not vp.flag & V.TERMINATE:
                self.cachedvnodes -= 1
        elif vp.state is VState.INACTIVE:
            self.inactive.remove(vp)
            self.active.insert_tail(vp)
            vp.state = VState.ACTIVE
            vp.flag &= ~(V.INACTIVE | V.FINALIZE | V.TERMINATE)
            self.reactivations += 1
            if vp.flag & V.RECLAIMED:
                vp.flag |= V.FINALIZE
        else:
            vp.refcnt -= 1
            panic("vref of a vnode that has been freed")

    def last_rele(self, vp: Vnode, count: int) -> None:
        """The 1 to 0 transition. Called by `Vnode.rele` only."""
        if count < 0:
            panic("vrele of a vnode that has no references")
        vp.refcnt = 0
        if vp.flag & V.TERMINATE:
            return
        self.cachedvnodes += 1
        if vp.flag & V.FINALIZE:
            self.terminate(vp)

    def terminate(self, vp: Vnode) -> None:
        """Deactivate an active vnode that has no references: vop_inactive, inactive list.

        Counterpart: vnode_terminate.
        """
        self.cachedvnodes -= 1
        vp.flag |= V.TERMINATE
        if not vp.flag & (V.INACTIVE | V.RECLAIMED):
            vp.flag |= V.INACTIVE
            self.inactivations += 1
            if self._ktr.mask:
                self._ktr.log(self.ktr_inactive, vp.ino, vp.mount.index if vp.mount else 0)
            vp.ops.use.vop_inactive(vp)
        if vp.state is not VState.ACTIVE:
            return
        if vp.refcnt:
            vp.flag &= ~(V.TERMINATE | V.INACTIVE)
            return
        if vp.flag & V.RECLAIMED:
            self.free_reclaimed(vp)
            return
        self._active_remove(vp)
        vp.state = VState.INACTIVE
        self.inactive.insert_tail(vp)

    def _active_remove(self, vp: Vnode) -> None:
        """Take out of the active list; a rover that stands on the vnode moves on."""
        if self.lru.rover is vp:
            self.lru.rover = vp.v_next
        self.active.remove(vp)

    # --- the end -----------------------------------------------------------------------------

    def vrecycle(self, vp: Vnode) -> bool:
        """Reclaim now if nobody else uses the vnode; for vop_inactive of a file without names.

        Returns:
            Whether the vnode is gone.
        """
        if vp.refcnt > 1 or (vp.refcnt and not vp.flag & V.FINALIZE):
            return False
        if vp.auxrefs != vp.namecache_count:
            return False
        self.recycles += 1
        self.vgone(vp)
        return True

    def vgone(self, vp: Vnode) -> None:
        """Separate a vnode from its file for good; what still refers to it gets dead operations.

        Counterpart: vgone, vclean_vxlocked. Never blocks.
        """
        if vp.flag & V.RECLAIMED:
            return
        vp.flag |= V.RECLAIMED | V.FINALIZE
        vfs = self.vfs
        vfs.cache.inval_vp(vp)
        if vp.refcnt:
            self.forced += 1
        if not vp.flag & V.INACTIVE:
            vp.flag |= V.INACTIVE
            self.inactivations += 1
            vp.ops.use.vop_inactive(vp)
        self.reclaims += 1
        mount = vp.mount
        if self._ktr.mask:
            self._ktr.log(self.ktr_reclaim, vp.ino, mount.index if mount else 0)
        if vp.flag & V.ONWORKLST:
            vfs.syncer.remove(vp)
        if vfs.hostcache is not None:
            vfs.hostcache.vnode_reclaimed(vp)
        vp.ops.use.vop_reclaim(vp)
        vp.data = vp.object = vp.attr_cache = vp.lock = None
        vp.ops = self.dead_cell
        if mount is not None:
            vp.mount = None
            mount.vnodes.pop(vp, None)
        if vp.klist is not None:
            vp.klist.knote(NOTE_REVOKE)
        if vp.lockf is not None:
            vp.lockf.purge()
        if self.verbose_reclaims:
            vfs.msgbuf.kprintf(f"reclaim vnode ino {vp.ino}\n")
        vp.type = VType.VBAD
        if not vp.refcnt and not vp.auxrefs:
            self.free_reclaimed(vp)

    def free_reclaimed(self, vp: Vnode) -> None:
        """Take a reclaimed vnode off the lists and break what it points at."""
        if vp.state is VState.ACTIVE:
            if not vp.flag & V.TERMINATE:
                self.cachedvnodes -= 1
            self._active_remove(vp)
        elif vp.state is VState.INACTIVE:
            self.inactive.remove(vp)
        else:
            return
        vp.state = VState.DYING
        vp.klist = None
        vp.lockf = None
        self.numvnodes -= 1

    # --- keeping the limit ---------------------------------------------------------------------

    def freesomevnodes(self, count: int) -> int:
        """See `vnlru.Vnlru.freesomevnodes`."""
        return self.lru.freesomevnodes(count)

    def vnlru_round(self) -> bool:
        """One round of the daemon by hand; see `vnlru.Vnlru.round`."""
        return self.lru.round()

    def userexit(self, keep: Vnode | None = None) -> None:
        """At the end of an operation that may have made vnodes; see `vnlru.Vnlru.userexit`."""
        if self.numvnodes >= self.duty_mark:
            self.lru.userexit(keep)

    async def vnlru_daemon(self) -> None:
        """The vnlru thread, for boot; runs until `stop`."""
        await self.lru.daemon()

    def stop(self) -> None:
        """Let `vnlru_daemon` end. Must be called on an LWKT thread if it runs."""
        self.lru.stop()

    def close(self) -> None:
        """Forget what is left when everything is unmounted: dead vnodes somebody still holds."""
        self.active.dissolve()
        self.inactive.dissolve()
        self.lru.rover = None
        self.numvnodes = self.cachedvnodes = 0

    # --- views -------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Vnode]:
        """Every vnode in memory, the active ones first."""
        yield from self.active
        yield from self.inactive

    def statistics(self) -> VnodeStatistics:
        """The figures of this moment."""
        return VnodeStatistics(
            self.maxvnodes, self.numvnodes, self.active.count, self.cachedvnodes,
            self.inactive.count, sum(len(mp.vnodes) for mp in self.vfs.mounts),
            self.created, self.inactivations, self.reactivations, self.reclaims, self.recycles,
            self.forced, self.lru.scans, self.lru.rounds, self.lru.userexits,
        )  # fmt: skip
