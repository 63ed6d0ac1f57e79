"""vnlru: which vnodes must go when there are too many, and who does the work.

Every use of a vnode raises its activity (``act``, 0 to 10 in steps of 2). The *rover* goes round
the active list; it lowers the activity of what nobody references and deactivates at 0. Then the
inactive list is emptied from its head. So a file that is used survives a scan of any size, and a
scan's own files go first.

**When.** From 9/10 of kern.maxvnodes on, if at least half of the limit could be taken, the vnlru
thread frees batches of 1 % until it is below 9/10 again. It looks once a second by itself and is
woken by whoever crosses the mark. If it falls behind, whoever makes vnodes above 11/10 must free a
small batch at the end of his own operation (`Vnlru.userexit`): never in the middle of it, where he
may be using vnodes without references.

**What can go.** No references, and ``auxrefs`` equal to the number of namecache entries: no entry
of it has children, and nothing else holds it. A dirty vnode is written first; if that would have to
wait it stays, and the syncer is hurried.

Counterpart: cleanfreevnode, freesomevnodes, allocvnode_gc (kern/vfs_lock.c), vnlru_proc
    (kern/vfs_mount.c).
Differs from DragonFly: one list, one rover, no vnode looked at twice in a call.
Token/lock order: none; only `Vnlru.vnlru_daemon` waits.
Invariants: a vnode that is referenced is never deactivated here; a dirty one never reclaimed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dfuser.libkern.errno import KError
from dfuser.libkern.ktr import KtrInfo
from dfuser.libkern.param import HZ
from dfuser.libkern.sysctl import INT, RD, RW, Sysctl
from dfuser.lwkt import thread as lwkt_thread
from dfuser.lwkt.block import Block
from dfuser.lwkt.synch import tsleep, wakeup

from .vnode import VACT_INC, VACT_MAX, V, VState
from .vop import MNT_NOWAIT

if TYPE_CHECKING:
    from .vnode import Vnode
    from .vnodetable import VnodeTable

#: Pages in memory from which a file loses its activity more slowly.
_MANY_PAGES: Final = 64
_DIRTY: Final = V.ISDIRTY | V.OBJDIRTY


class Vnlru:
    """Keeps the number of vnodes below the limit. Belongs to one `vnodetable.VnodeTable`."""

    ktr_vnlru = KtrInfo("vfs", "vnlru", "freed %d of %d, num %d")

    sysctls = (
        Sysctl("debug.batchfreevnodes", "Least number of vnodes freed at once",
               attr="batchfreevnodes", kind=INT, flags=RW, minimum=1, maximum=100_000),
        Sysctl("debug.vnlru_nowhere", "Rounds of vnlru that freed nothing", attr="nowhere",
               kind=INT, flags=RD),
    )  # fmt: skip

    def __init__(self, table: VnodeTable) -> None:
        self.table = table
        #: The active vnode to be looked at next, or the head of the list.
        self.rover: Any = table.active.head
        self.batchfreevnodes = 5
        self.nowhere = 0
        self.rounds = 0
        self.userexits = 0
        self.scans = 0
        self.stopping = False
        self._asleep = False
        self._ktr = table.vfs.ktr.master("vfs")

    def over_limit(self) -> bool:
        """Whether there is something to do: 9/10 of the limit in use, half of it takeable."""
        t = self.table
        takeable = t.cachedvnodes + t.inactive.count
        return t.numvnodes >= t.lru_mark and takeable >= t.maxvnodes // 2

    # --- freeing -----------------------------------------------------------------------------

    def _deactivate_some(self, maxcount: int) -> None:
        """Let the rover look at ``maxcount`` active vnodes, none twice; unused ones go inactive."""
        table = self.table
        active = table.active
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
                many = vp.object is not None and vp.object.resident_page_count >= _MANY_PAGES
                vp.act = max(0, vp.act - (1 if many else VACT_INC))
            else:
                vp.flag |= V.FINALIZE
                table.terminate(vp)

    def _reclaim_one(self, vp: Vnode) -> bool:
        """Try to free the vnode at the head of the inactive list; it goes to the tail if not."""
        table = self.table
        clean = not vp.flag & _DIRTY or self._clean(vp)
        if vp.state is VState.DYING:
            return True
        free = clean and vp.auxrefs == vp.namecache_count
        if free and table.vfs.cache.inval_vp_nonblock(vp):
            table.vgone(vp)
            return True
        if vp.state is VState.INACTIVE:
            table.inactive.remove(vp)
            table.inactive.insert_tail(vp)
        return False

    def _clean(self, vp: Vnode) -> bool:
        """Try to write a dirty vnode that is to go; False if it must stay for the syncer.

        The caller is in the middle of somebody's operation, so nothing may wait here.
        """
        vp.ref()
        try:
            vp.ops.use.vop_fsync(vp, MNT_NOWAIT)
        except (Block, KError):
            if vp.mount is not None:
                self.table.vfs.syncer.rushjob(vp.mount)
        finally:
            vp.set_finalize()
            vp.rele()
        return not vp.flag & _DIRTY

    def freesomevnodes(self, count: int) -> int:
        """Free up to ``count`` vnodes that nobody uses. Never blocks.

        Counterpart: freesomevnodes, cleanfreevnode.

        Returns:
            How many were freed.
        """
        table = self.table
        freed = 0
        if table.cachedvnodes >= table.inactive.count:
            self._deactivate_some(count * 2)
        for _ in range(min(count * 2, table.inactive.count)):
            vp = table.inactive.first()
            if vp is None or freed >= count:
                break
            freed += self._reclaim_one(vp)
        return freed

    def userexit(self, keep: Vnode | None = None) -> None:
        """The direct caller's duty: free a small batch, if half of the limit could be taken.

        Args:
            keep: a vnode the caller is about to use without holding a reference.
        """
        table = self.table
        if table.cachedvnodes + table.inactive.count < table.maxvnodes // 2:
            return
        self.userexits += 1
        if keep is not None:
            keep.ref()
        self.freesomevnodes(self.batchfreevnodes * 2)
        if keep is not None:
            keep.rele()

    # --- the thread --------------------------------------------------------------------------

    def kick(self) -> None:
        """Wake the daemon if it sleeps and there is a thread to do it."""
        if self._asleep and lwkt_thread.curthread is not None:
            self._asleep = False
            wakeup(self)

    def round(self) -> bool:
        """One round of the daemon; True when another should follow at once. Never blocks."""
        table = self.table
        table.vfs.cache.hysteresis(False)
        if not self.over_limit():
            return False
        self.rounds += 1
        excess = table.numvnodes - table.lru_mark
        count = max(self.batchfreevnodes, min(excess, table.numvnodes // 100))
        freed = self.freesomevnodes(count)
        if self._ktr.mask:
            self._ktr.log(self.ktr_vnlru, freed, count, table.numvnodes)
        if not freed:
            self.nowhere += 1
        return table.numvnodes > table.lru_mark

    async def daemon(self) -> None:
        """The vnlru thread. Sleeps in "vlruwt" for a second at most; runs until `stop`.

        Counterpart: vnlru_proc.
        """
        fruitless = 0
        while not self.stopping:
            before = self.table.reclaims
            if self.round():
                fruitless = 0 if self.table.reclaims > before else fruitless + 1
                if fruitless < 2 * VACT_MAX:
                    await lwkt_thread.lwkt_yield()
                    continue
            fruitless = 0
            self._asleep = True
            await tsleep(self, 0, "vlruwt", HZ)
            self._asleep = False

    def stop(self) -> None:
        """Let the daemon end. Must be called on an LWKT thread if the daemon runs."""
        self.stopping = True
        self.kick()
