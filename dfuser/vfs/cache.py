"""The namecache: the kernel's memory of what names mean, and of what does not exist.

A tree of entries below the root entry of each mount. Walking a path is a walk down this tree; the
file system is asked only about entries that are not resolved yet. Every active vnode that was
reached by a name keeps its way to the root, so the kernel can always say where a file is: open
files and current directories follow a rename, because **a rename moves the entry** instead of
copying it. Removing a name marks its entry DESTROYED and takes it out of its directory: holders
keep a dead entry, and the name can be used again at once.

**What is bounded.** Negative entries: a sixteenth of kern.maxvnodes, least recently used first;
positive ones: the vnode limit takes their vnodes, and leaf entries beyond twice that limit (hard
links) go too. Both limits have hysteresis: work starts above the limit and ends at 9/10 (5/6), in
small batches on the way of whoever adds an entry, in large ones by vnlru.

**Waiting.** Nothing here waits. When a file system says `Block` while it resolves an entry, the
entry is locked for the time of the wait (sleep "ncplk"): others who need the same name wait for the
first one instead of asking again. Afterwards each runs its operation again from the start.
``generation`` of an entry counts its renames and removals, for code that held it across a wait.

Counterpart: kern/vfs_cache.c.
Differs from DragonFly: per-parent dictionaries instead of a global hash; one negative list;
    subtree invalidation is a loop, not a recursion of 64 levels with resume, and a child of a
    destroyed directory is destroyed with it; entries are locked only while their resolution waits,
    so zapping never has to be deferred (debug.numdefered is always the 0 it counts).
Token/lock order: entry locks child before parent; never more than one is taken here.
Invariants: numcache is the number of entries reachable from mount roots, roots not included;
    numleafs those of them without children; numneg == len(neg); a resolved entry is on exactly one
    of its vnode's list and the negative list.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from dfuser.libkern.errno import EINVAL, ENOENT, ENOTCONN, EXDEV, KKASSERT, KError, panic
from dfuser.libkern.ktr import KtrInfo
from dfuser.libkern.param import HZ
from dfuser.libkern.stat import VType
from dfuser.libkern.sysctl import INT, LONG, OPAQUE, RD, RW, ULONG, Sysctl
from dfuser.lwkt.block import Block
from dfuser.lwkt.synch import tsleep, wakeup

from . import ncpath
from .namecache import CINV, NCF, NamecacheEntry, NcHandle
from .ncmount import NcmountCache

if TYPE_CHECKING:
    from dfuser.libkern.ucred import Ucred

    from .mount import Mount
    from .vfs import Vfs
    from .vnode import Vnode

__all__ = ["CINV", "NCF", "NameCache", "NamecacheEntry", "NcHandle", "NchStats"]

#: No limit is enforced below these. Counterpart: MINNEG, MINPOS (kern/vfs_cache.c).
MINNEG: Final = 1024
MINPOS: Final = 1024


class NchStats(NamedTuple):
    """Counters since boot. Counterpart: struct nchstats (sys/nchstats.h)."""

    goodhits: int
    """Single names found, positive."""
    neghits: int
    """Single names known not to exist."""
    badhits: int
    """Entries found void (mount generation, timeout)."""
    miss: int
    """Single names the file system had to be asked about."""
    longhits: int
    """Whole paths that needed no file system."""
    longmiss: int
    """Whole paths that did."""


class CacheStatistics(NamedTuple):
    """Figures of the namecache; `nchstats` and the last four count since boot."""

    numcache: int
    numleafs: int
    numneg: int
    numunlinked: int
    neglimit: int
    poslimit: int
    locked: int
    nchstats: NchStats
    zapped: int
    negflushed: int
    posflushed: int
    waits: int


class NameCache:
    """All names a kernel knows. Counterpart: the globals of kern/vfs_cache.c."""

    ktr_resolve = KtrInfo("namecache", "resolve", "%s error %d")
    ktr_wait = KtrInfo("namecache", "wait", "%s")
    ktr_rename = KtrInfo("namecache", "rename", "%s to %s")
    ktr_unlink = KtrInfo("namecache", "unlink", "%s")
    ktr_inval = KtrInfo("namecache", "inval", "%s flags %d held %d")
    ktr_flush = KtrInfo("namecache", "flush", "negatives %d positives %d")

    sysctls = (
        Sysctl("vfs.cache.numneg", "Negative entries", attr="numneg", kind=LONG),
        Sysctl("vfs.cache.numcache", "Entries", attr="numcache", kind=LONG),
        Sysctl("vfs.cache.numleafs", "Entries without children", attr="numleafs", kind=LONG),
        Sysctl("vfs.cache.numunlinked", "Removed entries that are still held", attr="numunlinked",
               kind=LONG),
        Sysctl("vfs.cache.nchstats", "Hits and misses", getter="nchstats", kind=OPAQUE,
               render=lambda s: " ".join(f"{k}={v}" for k, v in s._asdict().items())),
        Sysctl("vfs.cache.numcwdcalls", "Paths asked for", attr="numcwdcalls", kind=ULONG),
        Sysctl("vfs.cache.numcwdfailnf", "Paths not found", attr="numcwdfailnf", kind=ULONG),
        Sysctl("vfs.cache.numcwdfailsz", "Paths too long", attr="numcwdfailsz", kind=ULONG),
        Sysctl("vfs.cache.numcwdfound", "Paths found", attr="numcwdfound", kind=ULONG),
        Sysctl("debug.ncnegflush", "Negative entries flushed at once", attr="ncnegflush", flags=RW,
               minimum=1, maximum=100_000),
        Sysctl("debug.ncposflush", "Positive entries flushed at once", attr="ncposflush", flags=RW,
               minimum=1, maximum=100_000),
        Sysctl("debug.ncnegfactor", "kern.maxvnodes by this is the limit of negative entries",
               attr="ncnegfactor", flags=RW, minimum=1, maximum=1 << 20, setter="set_negfactor"),
        Sysctl("debug.ncposlimit", "Most leaf entries; 0 is twice kern.maxvnodes",
               attr="ncposlimit", flags=RW, minimum=0, setter="set_poslimit"),
        Sysctl("debug.nclockwarn", "Warn when an entry is waited for longer, in ticks",
               attr="nclockwarn", flags=RW, minimum=1),
        Sysctl("debug.numdefered", "Entries whose zap was put off", getter=lambda _: 0, kind=LONG),
        Sysctl("debug.disablecwd", "Refuse getcwd", attr="disablecwd", flags=RW, minimum=0,
               maximum=1),
        Sysctl("debug.disablefullpath", "Refuse fullpath", attr="disablefullpath", flags=RW,
               minimum=0, maximum=1),
        Sysctl("debug.ncsize", "Bytes of an entry without its name", kind=INT, flags=RD,
               getter=lambda _: NamecacheEntry.__basicsize__),
    )  # fmt: skip

    def __init__(self, vfs: Vfs) -> None:
        self.vfs = vfs
        self.ncmount = NcmountCache(vfs.mounts)
        self.neg: OrderedDict[NamecacheEntry, None] = OrderedDict()
        self.numneg = 0
        self.numcache = 0
        self.numleafs = 0
        self.numunlinked = 0
        self.ncnegflush = 10
        self.ncposflush = 10
        self.ncnegfactor = 16
        self.ncposlimit = 0
        self.nclockwarn = 5 * HZ
        self.disablecwd = 0
        self.disablefullpath = 0
        self.goodhits = self.neghits = self.badhits = self.miss = 0
        self.longhits = self.longmiss = 0
        self.numcwdcalls = self.numcwdfailnf = self.numcwdfailsz = self.numcwdfound = 0
        self.zapped = self.negflushed = self.posflushed = self.waits = 0
        self.locked = 0
        #: Counts from which `hysteresis` may have something to do; below them it is not called.
        self._negmark = self._posmark = 0
        self._neg_high = [False, False]
        self._pos_high = [False, False]
        self._posrover: Vnode | None = None
        self._ktr = vfs.ktr.master("namecache")

    # --- holding -----------------------------------------------------------------------------

    def ref(self, ncp: NamecacheEntry) -> NamecacheEntry:
        """Hold an entry: it stays in the tree until `drop`."""
        ncp.refs += 1
        return ncp

    def drop(self, ncp: NamecacheEntry) -> None:
        """Give a hold back; an entry that says nothing goes with its last holder."""
        refs = ncp.refs - 1
        if refs < 0:
            panic("cache_drop of an entry that is not held")
        ncp.refs = refs
        if not refs and ncp.flags & (NCF.UNRESOLVED | NCF.DESTROYED):
            self.zap(ncp)

    def hold(self, nch: NcHandle) -> NcHandle:
        """Hold a place: its entry and its mount. Counterpart: cache_hold, cache_copy."""
        nch.ncp.refs += 1
        nch.mount.refs += 1
        return nch

    def drop_nch(self, nch: NcHandle) -> None:
        """Undo `hold`. Counterpart: cache_drop."""
        nch.mount.refs -= 1
        self.drop(nch.ncp)

    # --- the tree ----------------------------------------------------------------------------

    def allocroot(self, mount: Mount) -> NcHandle:
        """A root entry for a mount, held once. Counterpart: cache_allocroot."""
        ncp = NamecacheEntry(None, b"")
        ncp.refs = 1
        return NcHandle(ncp, mount)

    def nlookup(self, par: NamecacheEntry, name: bytes) -> NamecacheEntry:
        """The entry of ``name`` below ``par``, held; made unresolved if there is none.

        Gives an entry for any name; whether a file system can have it is the caller's question.
        Counterpart: cache_nlookup.

        Raises:
            KError: ENOENT, ``par`` has been removed.
        """
        kids = par.children
        ncp = kids.get(name) if kids is not None else None
        if ncp is None:
            return self._alloc(par, name)
        ncp.refs += 1
        if ncp.vp is None or ncp.flags & NCF.TIMED:
            self._auto_unresolve(ncp)
        return ncp

    def _alloc(self, par: NamecacheEntry, name: bytes) -> NamecacheEntry:
        """A new unresolved entry, linked and held; keeps the limits first."""
        if par.flags & NCF.DESTROYED:
            raise KError(ENOENT)
        if self.numneg > self._negmark or self.numleafs > self._posmark:
            par.refs += 1
            self.hysteresis(True)
            par.refs -= 1
        ncp = NamecacheEntry(par, name)
        ncp.refs = 1
        self._link(ncp, par)
        return ncp

    def _link(self, ncp: NamecacheEntry, par: NamecacheEntry) -> None:
        """Enter ``ncp`` into the children of ``par`` under its name."""
        ncp.parent = par
        if par.children is None:
            par.children = {ncp.name: ncp}
            if par.vp is not None:
                par.vp.auxrefs += 1
            if par.parent is not None and not par.flags & NCF.DESTROYED:
                self.numleafs -= 1
        else:
            par.children[ncp.name] = ncp
        self.numcache += 1
        if ncp.children is None:
            self.numleafs += 1

    def _unlink_parent(self, ncp: NamecacheEntry) -> None:
        """Take ``ncp`` out of its parent's children; its own ``parent`` stays set."""
        par = ncp.parent
        kids = par.children if par is not None else None
        if par is None or kids is None or kids.pop(ncp.name, None) is not ncp:
            panic("namecache entry is not among its parent's children")
        self.numcache -= 1
        if ncp.children is None:
            self.numleafs -= 1
        if not kids:
            par.children = None
            if par.vp is not None:
                par.vp.drop()
            if par.parent is not None and not par.flags & NCF.DESTROYED:
                self.numleafs += 1

    def zap(self, ncp: NamecacheEntry) -> bool:
        """Free an entry that nobody holds and that has no children, then empty parents above.

        A resolved entry is made unresolved first. Counterpart: cache_zap.

        Returns:
            Whether ``ncp`` is gone.
        """
        if ncp.refs or ncp.children is not None or ncp.parent is None:
            return False
        self.setunresolved(ncp)
        cur: NamecacheEntry | None = ncp
        while cur is not None and cur.parent is not None:
            par = cur.parent
            if cur.flags & NCF.DESTROYED:
                self.numunlinked -= 1
                par.refs -= 1
            else:
                self._unlink_parent(cur)
            if cur.flags & NCF.ISMOUNTPT:
                self.ncmount.forget(cur)
            cur.parent = None
            self.zapped += 1
            spent = not par.refs and par.children is None and par.parent is not None
            if spent and par.flags & NCF.DESTROYED:
                self.setunresolved(par)
            cur = par if spent and par.flags & NCF.UNRESOLVED else None
        return True

    # --- what an entry means -----------------------------------------------------------------

    def setvp(self, ncp: NamecacheEntry, vp: Vnode | None) -> None:
        """Resolve an entry: to a vnode, or with None to "does not exist".

        The entry must be unresolved. The vnode's reference stays the caller's.
        Counterpart: cache_setvp.
        """
        KKASSERT(ncp.flags & NCF.UNRESOLVED, "cache_setvp of a resolved entry")
        if vp is None:
            self.neg[ncp] = None
            self.numneg += 1
            ncp.error = ENOENT
            par = ncp.parent
            if par is not None and par.vp is not None and par.vp.mount is not None:
                ncp.ncgen = par.vp.mount.namecache_gen
            ncp.flags &= ~NCF.UNRESOLVED
            return
        ncp.vp = vp
        vp.auxrefs += 1 if ncp.children is None else 2
        nc = vp.namecache
        if nc is None:
            vp.namecache = ncp
        elif isinstance(nc, list):
            nc.append(ncp)
        else:
            vp.namecache = [nc, ncp]
        ncp.error = 0
        flags = ncp.flags & ~NCF.UNRESOLVED
        if vp.type is VType.VDIR:
            flags |= NCF.ISDIR
        elif vp.type is VType.VLNK:
            flags |= NCF.ISSYMLINK
        ncp.flags = flags

    def settimeout(self, ncp: NamecacheEntry, nticks: int) -> None:
        """Let a resolved entry expire after ``nticks``. Counterpart: cache_settimeout."""
        lwkt = self.vfs.lwkt
        if lwkt is not None and nticks:
            ncp.timeout = lwkt.ticks + nticks
            ncp.flags |= NCF.TIMED

    def setunresolved(self, ncp: NamecacheEntry) -> None:
        """Forget what an entry means; it keeps its place and its children.

        Counterpart: cache_setunresolved.
        """
        if ncp.flags & NCF.UNRESOLVED:
            return
        ncp.flags = (ncp.flags & ~NCF.RESOLVED) | NCF.UNRESOLVED
        ncp.error = ENOTCONN
        ncp.timeout = 0
        vp = ncp.vp
        if vp is None:
            del self.neg[ncp]
            self.numneg -= 1
            return
        ncp.vp = None
        nc = vp.namecache
        if nc is ncp:
            vp.namecache = None
        elif isinstance(nc, list):
            nc.remove(ncp)
            if len(nc) == 1:
                vp.namecache = nc[0]
        if ncp.children is not None:
            vp.auxrefs -= 1
        vp.drop()

    def _auto_unresolve(self, ncp: NamecacheEntry) -> None:
        """Make an entry unresolved whose time is over, or whose mount has had news since."""
        if ncp.flags & NCF.UNRESOLVED:
            return
        lwkt = self.vfs.lwkt
        if ncp.flags & NCF.TIMED and lwkt is not None and lwkt.ticks - ncp.timeout >= 0:
            self.badhits += 1
            self.setunresolved(ncp)
        elif ncp.vp is None:
            par = ncp.parent
            dvp = par.vp if par is not None else None
            mount = dvp.mount if dvp is not None else None
            if mount is not None and mount.namecache_gen != ncp.ncgen:
                self.badhits += 1
                self.setunresolved(ncp)

    def touch_negative(self, ncp: NamecacheEntry) -> bool:
        """A lookup met a negative entry: note the use. False if the entry turned out void."""
        self._auto_unresolve(ncp)
        if ncp.flags & NCF.UNRESOLVED:
            return False
        self.neg.move_to_end(ncp)
        self.neghits += 1
        return True

    # --- changes of the name space -----------------------------------------------------------

    def _destroy(self, ncp: NamecacheEntry) -> None:
        """Take the name away from an entry: out of its directory, DESTROYED, children too."""
        if ncp.flags & NCF.DESTROYED:
            return
        ncp.generation += 1
        if ncp.children is not None:
            self._destroy_children(ncp)
        par = ncp.parent
        if par is not None:
            self._unlink_parent(ncp)
            self.numunlinked += 1
            par.refs += 1
        ncp.flags |= NCF.DESTROYED

    def _destroy_children(self, top: NamecacheEntry) -> None:
        """Destroy everything below an entry that is about to be destroyed."""
        for ncp in reversed(self._descendants(top)):
            ncp.refs += 1
            self.setunresolved(ncp)
            self._destroy(ncp)
            self.drop(ncp)

    def _descendants(self, top: NamecacheEntry) -> list[NamecacheEntry]:
        """All entries below ``top``, parents before children."""
        found: list[NamecacheEntry] = []
        if top.children is not None:
            found.extend(top.children.values())
            for ncp in found:
                if ncp.children is not None:
                    found.extend(ncp.children.values())
        return found

    def unlink(self, ncp: NamecacheEntry) -> None:
        """The name has been removed; whoever holds the entry keeps a dead one.

        The vnode is told to finalize: without users it is deactivated here and now, so call this
        as the last step of a removal. Counterpart: cache_unlink.
        """
        if self._ktr.mask:
            self._ktr.log(self.ktr_unlink, ncp.name)
        ncp.refs += 1
        self._destroy(ncp)
        self._finalize(ncp)
        self.drop(ncp)

    def _finalize(self, ncp: NamecacheEntry) -> None:
        """Second half of unlink: let the vnode of a destroyed (held) entry go."""
        vp = ncp.vp
        if vp is None:
            return
        vp.set_finalize()
        if not vp.refcnt:
            vp.ref()
            vp.set_finalize()
            vp.rele()

    def rename(self, fncp: NamecacheEntry, tncp: NamecacheEntry) -> None:
        """``fncp`` takes the place of ``tncp``, which is destroyed.

        Holders of ``fncp`` see the new path. Counterpart: cache_rename.
        """
        if self._ktr.mask:
            self._ktr.log(self.ktr_rename, fncp.name, tncp.name)
        tpar = tncp.parent
        if tpar is None:
            panic("cache_rename onto the root of a mount")
        fncp.generation += 1
        fpar = fncp.parent
        if fpar is None:
            panic("cache_rename of the root of a mount")
        for ncp in (tncp, tpar, fncp, fpar):
            ncp.refs += 1
        self._destroy(tncp)
        self._unlink_parent(fncp)
        fncp.name = tncp.name
        self._link(fncp, tpar)
        self._finalize(tncp)
        for ncp in (tncp, fncp, tpar, fpar):
            self.drop(ncp)

    def exchange(self, a: NamecacheEntry, b: NamecacheEntry) -> None:
        """Two entries swap their places; holders of each see its new path."""
        pa, pb = a.parent, b.parent
        if pa is None or pb is None:
            panic("cache_exchange with the root of a mount")
        if a is b:
            return
        a.generation += 1
        b.generation += 1
        pa.refs += 1
        pb.refs += 1
        self._unlink_parent(a)
        self._unlink_parent(b)
        a.name, b.name = b.name, a.name
        self._link(a, pb)
        self._link(b, pa)
        self.drop(pa)
        self.drop(pb)

    # --- invalidation ------------------------------------------------------------------------

    def inval(self, ncp: NamecacheEntry, flags: int) -> int:
        """Make an entry unresolved; with CINV.CHILDREN all below; with DESTROY take its name.

        Counterpart: cache_inval.

        Returns:
            How many entries (of those below, with CHILDREN) are still held by somebody.
        """
        held = 0
        ncp.refs += 1
        if flags & CINV.CHILDREN:
            for child in reversed(self._descendants(ncp)):
                self.setunresolved(child)
                if child.refs:
                    held += 1
                elif child.children is None:
                    self.zap(child)
        self.setunresolved(ncp)
        if flags & CINV.DESTROY:
            self._destroy(ncp)
        if self._ktr.mask:
            self._ktr.log(self.ktr_inval, ncp.name, flags, held)
        self.drop(ncp)
        return held

    def inval_vp(self, vp: Vnode) -> None:
        """No entry may mean ``vp`` any longer. Counterpart: cache_inval_vp."""
        for ncp in vp.ncps():
            self.setunresolved(ncp)
            if not ncp.refs:
                self.zap(ncp)

    def inval_vp_nonblock(self, vp: Vnode) -> bool:
        """The same for a vnode that is to be reclaimed; False, and nothing done, if it may not.

        Counterpart: cache_inval_vp_nonblock.
        """
        for ncp in vp.ncps():
            if ncp.flags & NCF.LOCKED or ncp.children is not None:
                return False
        self.inval_vp(vp)
        return True

    def inval_wxok(self, vp: Vnode) -> None:
        """The mode or owner of a directory changed: no more short cut. Counterpart: the same."""
        for ncp in vp.ncps():
            ncp.flags &= ~(NCF.WXOK | NCF.NOTX)

    def purge(self, vp: Vnode) -> None:
        """Forget the names of a vnode and what is below them. Counterpart: cache_purge."""
        for ncp in vp.ncps():
            self.inval(ncp, CINV.CHILDREN)

    def purgevfs(self, mount: Mount) -> int:
        """Forget everything below the root of a mount; how many entries are held.

        Counterpart: cache_purgevfs.
        """
        return self.inval(mount.ncmountpt.ncp, CINV.CHILDREN)

    # --- resolving ---------------------------------------------------------------------------

    def resolve(self, ncp: NamecacheEntry, mount: Mount, cred: Ucred) -> int:
        """Make sure that an entry is resolved, asking the file system if need be.

        Counterpart: cache_resolve.

        Returns:
            0 for a positive, ENOENT for a negative entry; also for a name that does not exist and
            must not be remembered (the file system raised ENOENT; the entry stays unresolved).

        Raises:
            KError: EINVAL, the entry is destroyed; EXDEV, it hangs on nothing; or the file
                system's own error, and the entry stays unresolved.
            Block: the file system must wait.
        """
        if not ncp.flags & NCF.UNRESOLVED:
            return ncp.error
        if ncp.flags & NCF.DESTROYED:
            raise KError(EINVAL)
        if ncp is mount.ncmountpt.ncp:
            return self._resolve_mp(ncp, mount)
        par = ncp.parent
        if par is None:
            raise KError(EXDEV)
        if par.vp is None:
            self._resolve_chain(par, mount, cred)
        dvp = par.vp
        if dvp is None:
            raise KError(ENOENT)
        if ncp.flags & NCF.LOCKED:
            raise Block(self._waiter(ncp), "ncplk")
        self.miss += 1
        try:
            dvp.ops.use.vop_nresolve(dvp, ncp, cred)
        except Block as block:
            raise self._blocked(ncp, block) from None
        except KError as error:
            if error.errno != ENOENT or not ncp.flags & NCF.UNRESOLVED:
                raise
            return ENOENT
        KKASSERT(not ncp.flags & NCF.UNRESOLVED, "vop_nresolve left the entry unresolved")
        if self._ktr.mask:
            self._ktr.log(self.ktr_resolve, ncp.name, ncp.error)
        return ncp.error

    def _resolve_chain(self, ncp: NamecacheEntry, mount: Mount, cred: Ucred) -> None:
        """Resolve the unresolved directories above, the topmost first."""
        chain: list[NamecacheEntry] = []
        cur: NamecacheEntry | None = ncp
        while cur is not None and cur.vp is None:
            if cur.flags & NCF.DESTROYED:
                raise KError(ENOENT)
            chain.append(cur)
            if cur is mount.ncmountpt.ncp:
                break
            cur = cur.parent
        for entry in reversed(chain):
            entry.refs += 1
        try:
            for entry in reversed(chain):
                if self.resolve(entry, mount, cred):
                    raise KError(ENOENT)
        finally:
            for entry in chain:
                self.drop(entry)

    def _resolve_mp(self, ncp: NamecacheEntry, mount: Mount) -> int:
        """Resolve the root entry of a mount. Counterpart: cache_resolve_mp."""
        vp = mount.ops.vfs_root(mount)
        if ncp.flags & NCF.UNRESOLVED:
            self.setvp(ncp, vp)
        vp.rele()
        return 0

    def _blocked(self, ncp: NamecacheEntry, block: Block) -> Block:
        """Wrap a file system's `Block` so that the entry is locked while it is waited for."""
        self.waits += 1
        if self._ktr.mask:
            self._ktr.log(self.ktr_wait, ncp.name)
        ncp.refs += 1

        async def wait() -> int:
            ncp.flags |= NCF.LOCKED
            self.locked += 1
            try:
                return await block.wait()
            finally:
                ncp.flags &= ~NCF.LOCKED
                self.locked -= 1
                wakeup(ncp)
                self.drop(ncp)

        return Block(wait, block.wmesg, block.exclusive)

    def _waiter(self, ncp: NamecacheEntry) -> ncpath.Waiter:
        """What a second one who needs a locked entry waits for; says so after nclockwarn."""
        ncp.refs += 1

        async def wait() -> int:
            warned = False
            try:
                while ncp.flags & NCF.LOCKED:
                    await tsleep(ncp, 0, "ncplk", self.nclockwarn)
                    if ncp.flags & NCF.LOCKED and not warned:
                        warned = True
                        name = ncp.name.decode("utf-8", "replace")
                        self.vfs.msgbuf.kprintf(f"[diagnostic] cache_lock: blocked on {name}\n")
                return 0
            finally:
                self.drop(ncp)

        return wait

    # --- limits ------------------------------------------------------------------------------

    @property
    def neglimit(self) -> int:
        """Most negative entries (never enforced below MINNEG)."""
        return self.vfs.vnodes.maxvnodes // self.ncnegfactor

    @property
    def poslimit(self) -> int:
        """Most leaf entries (never enforced below MINPOS)."""
        return self.ncposlimit or self.vfs.vnodes.maxvnodes * 2

    def hysteresis(self, critpath: bool) -> None:
        """Keep the limits: small steps on the critical path, the whole excess for vnlru.

        Counterpart: cache_hysteresis.
        """
        neglimit, poslimit = self.neglimit, self.poslimit
        if not critpath:
            neglimit = neglimit * 8 // 10
            poslimit = poslimit * 8 // 10
        if self._neg_high[critpath]:
            over = min(self.numneg - MINNEG * 9 // 10, self.numneg * 9 // 10 - neglimit)
        else:
            over = min(self.numneg - MINNEG, self.numneg - neglimit)
        self._neg_high[critpath] = over > 0
        if over > 0:
            self._cleanneg(self.ncnegflush if critpath else self.ncnegflush + over)
        if self._pos_high[critpath]:
            over = min(self.numleafs - MINPOS, self.numleafs - poslimit * 5 // 6)
        else:
            over = min(self.numleafs - MINPOS, self.numleafs - poslimit)
        self._pos_high[critpath] = over > 0
        if over > 0:
            self._cleanpos(self.ncposflush if critpath else self.ncposflush + over)
        if critpath:
            self._set_marks(neglimit, poslimit)

    def _set_marks(self, neglimit: int, poslimit: int) -> None:
        """Say from when on the critical path has to look at the limits again."""
        low = max(MINNEG, neglimit)
        self._negmark = low * 9 // 10 if self._neg_high[True] else low
        low = max(MINPOS, poslimit)
        self._posmark = low * 5 // 6 if self._pos_high[True] else low

    def limits_changed(self) -> None:
        """A limit is not what it was: let the next new entry look."""
        self._negmark = self._posmark = 0

    def set_negfactor(self, value: int) -> None:
        """Change debug.ncnegfactor."""
        self.ncnegfactor = value
        self.limits_changed()

    def set_poslimit(self, value: int) -> None:
        """Change debug.ncposlimit."""
        self.ncposlimit = value
        self.limits_changed()

    def _cleanneg(self, count: int) -> None:
        """Zap the negative entries used longest ago; held ones go to the end of the line."""
        for _ in range(min(count, self.numneg)):
            ncp = next(iter(self.neg))
            if self.zap(ncp):
                self.negflushed += 1
            else:
                self.neg.move_to_end(ncp)

    def _cleanpos(self, count: int) -> None:
        """Zap leaf entries of vnodes, going round the active list."""
        vnodes = self.vfs.vnodes
        head = vnodes.active.head
        todo = count
        for _ in range(count * 4):
            vp = self._posrover
            if vp is None or vp.v_next is None or vp.v_next is head:
                vp = vnodes.active.first()
            else:
                vp = vp.v_next
            self._posrover = vp
            if vp is None or todo <= 0:
                break
            for ncp in vp.ncps()[:todo]:
                if self.zap(ncp):
                    self.posflushed += 1
                    todo -= 1

    # --- paths and mounts --------------------------------------------------------------------

    def findmount(self, nch: NcHandle) -> Mount | None:
        """The mount on top of a place, or None. Counterpart: cache_findmount."""
        return self.ncmount.findmount(nch)

    def fullpath(self, nch: NcHandle, base: NcHandle | None = None) -> bytes:
        """The path of a place from the root (or from ``base``). See `ncpath.fullpath`."""
        return ncpath.fullpath(self, nch, base)

    def fromdvp(self, dvp: Vnode, cred: Ucred) -> NamecacheEntry:
        """The entry of a directory vnode, held; rebuilds its path. See `ncpath.fromdvp`."""
        return ncpath.fromdvp(self, dvp, cred)

    def nch_of(self, vp: Vnode, mount: Mount | None = None) -> NcHandle:
        """A borrowed handle for a vnode reached without a name. See `ncpath.nch_of`."""
        return ncpath.nch_of(self, vp, mount)

    # --- views -------------------------------------------------------------------------------

    def nchstats(self) -> NchStats:
        """Hits and misses since boot."""
        return NchStats(
            self.goodhits, self.neghits, self.badhits, self.miss, self.longhits, self.longmiss
        )

    def statistics(self) -> CacheStatistics:
        """The figures of this moment."""
        return CacheStatistics(
            self.numcache, self.numleafs, self.numneg, self.numunlinked, self.neglimit,
            self.poslimit, self.locked, self.nchstats(), self.zapped, self.negflushed,
            self.posflushed, self.waits,
        )  # fmt: skip
