"""Vnodes: what the kernel knows about a file that is in use, and how long it stays in memory.

A vnode is the kernel's handle on one file of one mounted file system. The file system keeps its
own node behind it (``data``); names point at it through the namecache; open files, current
directories and mount points hold references on it. A vnode without references is not thrown away:
somebody will probably ask for the file again. `kern.maxvnodes` says how many may be in memory.

**States.** ``CACHED`` (0) is a vnode that is being made. ``ACTIVE`` is on the active list, with or
without references; active without references counts as cached. ``INACTIVE`` has been told so
(``vop_inactive``, exactly once a deactivation) and may be taken. ``DYING`` is gone. The way::

    getnewvnode -> ACTIVE --rele of the last reference--> ACTIVE (cached; nothing is called)
                          --the same with FINALIZE------> vop_inactive -> INACTIVE
    INACTIVE --vget/ref--> ACTIVE          INACTIVE --reclaim--> vop_reclaim -> DYING

FINALIZE is set when the last name of a file is removed, and by the scan that looks for vnodes to
free. So a plain close costs nothing, and an unlinked file goes the moment its last user goes.

**References.** ``refcnt`` keeps the vnode active. ``auxrefs`` (vhold) only keep it from being
freed: one for every namecache entry that points at it, one more for each such entry that has
children. Reclaim needs no references and ``auxrefs`` equal to the number of entries, so a
directory with cached children stays.

**Choosing.** Every use raises ``act`` (0 to 10 in steps of 2). The rover goes round the active
list, lowers ``act`` of what is not referenced, and deactivates at 0; then the inactive list is
emptied from its head. A file that is used survives a scan of any size.

Counterpart: struct vnode (sys/vnode.h), kern/vfs_lock.c, vclean and vgone in kern/vfs_subr.c,
    vnlru in kern/vfs_mount.c.
Differs from DragonFly: one pair of lists, not one a CPU; REF flags live in ``flag`` instead of the
    high bits of the count; ``ref`` on an inactive vnode reactivates it (vref and vget are one);
    a reclaimed vnode's memory is returned at once instead of being reused.
Token/lock order: none; everything here runs to completion, except `VnodeTable.vnlru_daemon`.
Invariants: numvnodes == activevnodes + inactivevnodes; cachedvnodes is the number of active
    vnodes with no reference; a RECLAIMED vnode is in no namecache entry and on no mount.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dfuser.libkern.errno import ENOENT, KError, panic
from dfuser.libkern.klist import NOTE_REVOKE, Klist
from dfuser.libkern.ktr import KtrInfo
from dfuser.libkern.param import HZ
from dfuser.libkern.stat import VType
from dfuser.libkern.sysctl import INT, LONG, RD, RW, Sysctl
from dfuser.lwkt import thread as lwkt_thread
from dfuser.lwkt.synch import tsleep, wakeup

from .deadfs import DeadOps
from .vop import OpsCell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .cache import NamecacheEntry
    from .mount import Mount
    from .vfs import Vfs

#: Bounds of kern.maxvnodes. Counterpart: MINVNODES, MAXVNODES (kern/vfs_subr.c).
MINVNODES: Final = 2000
MAXVNODES: Final = 4_000_000

#: Activity of a vnode. Counterpart: VACT_* (sys/vnode.h).
VACT_MAX: Final = 10
VACT_INC: Final = 2

#: Pages in memory from which a file loses its activity more slowly.
_MANY_PAGES: Final = 64


class VState(IntEnum):
    """Life of a vnode. Counterpart: VS_* (sys/vnode.h)."""

    CACHED = 0
    ACTIVE = 1
    INACTIVE = 2
    DYING = 3


class V:
    """Flags of a vnode. Counterpart: V* flags and VREF_* (sys/vnode.h)."""

    ROOT: Final = 0x00000001
    """Root of its file system."""
    TEXT: Final = 0x00000002
    """A program being executed: writing is refused with ETXTBSY."""
    SYSTEM: Final = 0x00000004
    """Used by the kernel; vflush leaves it alone unless forced."""
    ISTTY: Final = 0x00000008
    MAYHAVELOCKS: Final = 0x00000020
    PFSROOT: Final = 0x00000040
    ISDIRTY: Final = 0x00000080
    """Inode data waits to be written."""
    OBJDIRTY: Final = 0x00000100
    """Pages of its object wait to be written."""
    ONWORKLST: Final = 0x00000200
    """Is in a bucket of the syncer."""
    RECLAIMED: Final = 0x00000400
    """The file system's node is gone; only dead operations are left."""
    INACTIVE: Final = 0x00000800
    """vop_inactive has been called for this deactivation."""
    TERMINATE: Final = 0x00001000
    """Being deactivated. Counterpart: VREF_TERMINATE."""
    FINALIZE: Final = 0x00002000
    """Deactivate on the last rele. Counterpart: VREF_FINALIZE."""
    LASTWRITETS: Final = 0x00004000


class _Link:
    """A place in a list: vnodes carry their own links, the heads are bare ones."""

    __slots__ = ("v_next", "v_prev")

    v_next: Any
    v_prev: Any


class Vnode(_Link):
    """One file in use.

    Counterpart: struct vnode (sys/vnode.h). The ``v_`` prefix is dropped. The file system sets
    ``data``, ``ino`` and the flags; ``attr_cache`` and ``handle`` belong to whoever exports the
    file (the bridge); ``lockf`` and ``klist`` are None until first used.
    """

    __slots__ = (
        "type",
        "state",
        "flag",
        "refcnt",
        "auxrefs",
        "opencount",
        "writecount",
        "act",
        "mount",
        "ops",
        "table",
        "data",
        "ino",
        "namecache",
        "object",
        "attr_cache",
        "handle",
        "lock",
        "lockf",
        "klist",
    )

    def __init__(self, table: VnodeTable, mount: Mount | None, ops: OpsCell, vtype: VType) -> None:
        self.type = vtype
        self.state = VState.CACHED
        self.flag = 0
        self.refcnt = 1
        self.auxrefs = 0
        self.opencount = 0
        self.writecount = 0
        self.act = 0
        self.mount = mount
        self.ops = ops
        self.table = table
        self.data: Any = None
        self.ino = 0
        self.namecache: NamecacheEntry | list[NamecacheEntry] | None = None
        self.object: Any = None
        self.attr_cache: Any = None
        self.handle: Any = None
        self.lock: Any = None
        self.lockf: Any = None
        self.klist: Klist | None = None

    def ref(self) -> Vnode:
        """Take a reference; an inactive vnode becomes active again. Returns the vnode.

        Counterpart: vref, vget. Panics on a vnode that has been freed.
        """
        count = self.refcnt
        self.refcnt = count + 1
        if not count:
            self.table.first_ref(self)
        return self

    def rele(self) -> None:
        """Give a reference back; the last one deactivates if FINALIZE is set.

        Counterpart: vrele.
        """
        count = self.refcnt - 1
        if count <= 0:
            self.table.last_rele(self, count)
        else:
            self.refcnt = count

    def hold(self) -> None:
        """Keep the vnode from being freed (not from being deactivated). Counterpart: vhold."""
        self.auxrefs += 1

    def drop(self) -> None:
        """Undo `hold`; frees a reclaimed vnode that nothing else keeps. Counterpart: vdrop."""
        self.auxrefs -= 1
        if not self.auxrefs and not self.refcnt and self.flag & V.RECLAIMED:
            self.table.free_reclaimed(self)

    def set_finalize(self) -> None:
        """The file has no name left: the last rele must call vop_inactive at once."""
        self.flag |= V.FINALIZE

    def attr_changed(self) -> None:
        """Some attribute changed: whatever was packed from the attributes is void."""
        self.attr_cache = None

    def knote(self, hint: int) -> None:
        """Tell watchers (NOTE_WRITE ...). Counterpart: KNOTE on v_pollinfo."""
        if self.klist is not None:
            self.klist.knote(hint)

    def get_klist(self) -> Klist:
        """The list of watchers, made when first asked for."""
        if self.klist is None:
            self.klist = Klist()
        return self.klist

    def ncps(self) -> tuple[NamecacheEntry, ...]:
        """The namecache entries that point here. Counterpart: v_namecache."""
        nc = self.namecache
        if nc is None:
            return ()
        return tuple(nc) if isinstance(nc, list) else (nc,)

    @property
    def namecache_count(self) -> int:
        """How many namecache entries point here. Counterpart: v_namecache_count."""
        nc = self.namecache
        if nc is None:
            return 0
        return len(nc) if isinstance(nc, list) else 1

    def __repr__(self) -> str:
        return (
            f"<Vnode {self.type.name} ino={self.ino} {self.state.name} ref={self.refcnt}"
            f" aux={self.auxrefs} flag={self.flag:#x}>"
        )


class _VnodeList:
    """Vnodes linked through themselves, so that putting in and taking out cost the same."""

    __slots__ = ("head", "count")

    def __init__(self) -> None:
        self.head = _Link()
        self.head.v_next = self.head.v_prev = self.head
        self.count = 0

    def insert_tail(self, vp: Vnode) -> None:
        """Append."""
        head = self.head
        last = head.v_prev
        vp.v_next = head
        vp.v_prev = last
        last.v_next = head.v_prev = vp
        self.count += 1

    def insert_head(self, vp: Vnode) -> None:
        """Put in front."""
        head = self.head
        first = head.v_next
        vp.v_next = first
        vp.v_prev = head
        first.v_prev = head.v_next = vp
        self.count += 1

    def remove(self, vp: Vnode) -> None:
        """Take out; the vnode's links are cleared so that no cycle is left."""
        vp.v_prev.v_next = vp.v_next
        vp.v_next.v_prev = vp.v_prev
        vp.v_next = vp.v_prev = None
        self.count -= 1

    def first(self) -> Vnode | None:
        """The vnode in front, or None."""
        link = self.head.v_next
        return link if link is not self.head else None

    def __iter__(self) -> Iterator[Vnode]:
        link = self.head.v_next
        while link is not self.head:
            following = link.v_next
            yield link
            link = following if following is not None else self.head

    def dissolve(self) -> None:
        """Break all links, for a kernel that stops; who still holds a vnode may let go later."""
        for vp in list(self):
            self.remove(vp)
            vp.state = VState.DYING
        self.head.v_next = self.head.v_prev = None


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
    ktr_vnlru = KtrInfo("vfs", "vnlru", "freed %d of %d, num %d")

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
        Sysctl("debug.batchfreevnodes", "Least number of vnodes freed at once",
               attr="batchfreevnodes", kind=INT, flags=RW, minimum=1, maximum=100_000),
        Sysctl("debug.verbose_reclaims", "Log every reclaim", attr="verbose_reclaims", kind=INT,
               flags=RW, minimum=0, maximum=1),
        Sysctl("debug.vnlru_nowhere", "Rounds of vnlru that freed nothing", attr="vnlru_nowhere",
               kind=INT, flags=RD),
        Sysctl("debug.vnsize", "Bytes of a vnode without what it points at",
               getter=lambda _: Vnode.__basicsize__, kind=INT, flags=RD),
        Sysctl("vfs.reclaims", "Vnodes reclaimed since boot", attr="reclaims", kind=LONG, flags=RD),
    )  # fmt: skip

    def __init__(self, vfs: Vfs, maxvnodes: int) -> None:
        self.vfs = vfs
        self.active = _VnodeList()
        self.inactive = _VnodeList()
        self.rover: Any = self.active.head
        self.numvnodes = 0
        self.cachedvnodes = 0
        self.batchfreevnodes = 5
        self.verbose_reclaims = 0
        self.vnlru_nowhere = 0
        self.created = 0
        self.inactivations = 0
        self.reactivations = 0
        self.reclaims = 0
        self.recycles = 0
        self.forced = 0
        self.scans = 0
        self.vnlru_rounds = 0
        self.userexit_rounds = 0
        self.dead_cell = OpsCell(DeadOps())
        self._ktr = vfs.ktr.master("vfs")
        self._vnlru_asleep = False
        self.stopping = False
        self.maxvnodes = max(MINVNODES, min(maxvnodes, MAXVNODES))
        self.lru_mark = self.maxvnodes * 9 // 10
        self.duty_mark = self.maxvnodes * 11 // 10

    # --- limits ------------------------------------------------------------------------------

    def set_maxvnodes(self, value: int) -> None:
        """Change kern.maxvnodes; vnlru works towards a lower limit in batches."""
        self.maxvnodes = max(MINVNODES, min(value, MAXVNODES))
        self.lru_mark = self.maxvnodes * 9 // 10
        self.duty_mark = self.maxvnodes * 11 // 10
        self.vfs.cache.limits_changed()
        self._kick_vnlru()

    def over_limit(self) -> bool:
        """Whether vnlru has something to do: 9/10 of the limit in use, half of it takeable."""
        takeable = self.cachedvnodes + self.inactive.count
        return self.numvnodes >= self.lru_mark and takeable >= self.maxvnodes // 2

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
            self._kick_vnlru()
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
        if self.rover is vp:
            self.rover = vp.v_next
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

    # --- reclaim -----------------------------------------------------------------------------

    def _deactivate_some(self, maxcount: int) -> None:
        """Let the rover look at ``maxcount`` active vnodes, none twice; unused ones go inactive."""
        active = self.active
        for _ in range(min(maxcount, active.count)):
            vp = self.rover
            if vp is active.head or vp.v_next is None:
                vp = active.first()
                if vp is None:
                    break
            self.rover = vp.v_next
            self.scans += 1
            if vp.refcnt:
                if vp.act < VACT_MAX:
                    vp.act += VACT_INC
            elif vp.act > 0:
                many = vp.object is not None and vp.object.resident >= _MANY_PAGES
                vp.act = max(0, vp.act - (1 if many else VACT_INC))
            else:
                vp.flag |= V.FINALIZE
                self.terminate(vp)

    def _reclaim_one(self, vp: Vnode) -> bool:
        """Try to free the vnode at the head of the inactive list; it goes to the tail if not."""
        if vp.auxrefs == vp.namecache_count and self.vfs.cache.inval_vp_nonblock(vp):
            if vp.flag & V.ISDIRTY and vp.mount is not None:
                self.vfs.syncer.write_vnode(vp)
            self.vgone(vp)
            return True
        if vp.state is VState.INACTIVE:
            self.inactive.remove(vp)
            self.inactive.insert_tail(vp)
        return False

    def freesomevnodes(self, count: int) -> int:
        """Free up to ``count`` vnodes that nobody uses. Never blocks.

        Counterpart: freesomevnodes, cleanfreevnode.

        Returns:
            How many were freed.
        """
        freed = 0
        if self.cachedvnodes >= self.inactive.count:
            self._deactivate_some(count * 2)
        for _ in range(min(count * 2, self.inactive.count)):
            vp = self.inactive.first()
            if vp is None or freed >= count:
                break
            freed += self._reclaim_one(vp)
        return freed

    def _batch(self) -> int:
        """How many to free in one round: the excess, at most 1 %, at least batchfreevnodes."""
        excess = self.numvnodes - self.lru_mark
        return max(self.batchfreevnodes, min(excess, self.numvnodes // 100))

    def userexit(self, keep: Vnode | None = None) -> None:
        """The direct caller's duty: above 11/10 of the limit, free a batch before going on.

        Args:
            keep: a vnode the caller is about to use without holding a reference.
        """
        if self.numvnodes < self.duty_mark:
            return
        if self.cachedvnodes + self.inactive.count < self.maxvnodes // 2:
            return
        self.userexit_rounds += 1
        if keep is not None:
            keep.ref()
        self.freesomevnodes(self.batchfreevnodes * 2)
        if keep is not None:
            keep.rele()

    def _kick_vnlru(self) -> None:
        """Wake the daemon if it sleeps and there is a thread to do it."""
        if self._vnlru_asleep and lwkt_thread.curthread is not None:
            self._vnlru_asleep = False
            wakeup(self)

    def vnlru_round(self) -> bool:
        """One round of the daemon; True when another should follow at once. Never blocks."""
        self.vfs.cache.hysteresis(False)
        if not self.over_limit():
            return False
        self.vnlru_rounds += 1
        count = self._batch()
        freed = self.freesomevnodes(count)
        if self._ktr.mask:
            self._ktr.log(self.ktr_vnlru, freed, count, self.numvnodes)
        if not freed:
            self.vnlru_nowhere += 1
        return self.numvnodes > self.lru_mark

    async def vnlru_daemon(self) -> None:
        """The vnlru thread: keeps the number of vnodes below the limit. Runs until `stop`.

        Counterpart: vnlru_proc. Sleeps in "vlruwt" for a second at most.
        """
        fruitless = 0
        while not self.stopping:
            before = self.reclaims
            if self.vnlru_round():
                fruitless = 0 if self.reclaims > before else fruitless + 1
                if fruitless < 2 * VACT_MAX:
                    await lwkt_thread.lwkt_yield()
                    continue
            fruitless = 0
            self._vnlru_asleep = True
            await tsleep(self, 0, "vlruwt", HZ)
            self._vnlru_asleep = False

    def stop(self) -> None:
        """Let the daemon end. Must be called on an LWKT thread if the daemon runs."""
        self.stopping = True
        self._kick_vnlru()

    def close(self) -> None:
        """Forget what is left when everything is unmounted: dead vnodes somebody still holds."""
        self.active.dissolve()
        self.inactive.dissolve()
        self.rover = None
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
            self.forced, self.scans, self.vnlru_rounds, self.userexit_rounds,
        )  # fmt: skip
