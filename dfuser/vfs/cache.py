"""The namecache: the kernel's memory of what names mean, and of what does not exist.

A tree of entries below the root entry of each mount. Walking a path is a walk down this tree; the
file system is asked only about entries that are not resolved yet. Every active vnode that was
reached by a name keeps its way to the root, so the kernel can always say where a file is: open
files and current directories follow a rename, because **a rename moves the entry** instead of
copying it. Removing a name marks its entry DESTROYED and takes it out of its directory: holders
keep a dead entry, and the name can be used again at once.

How much is remembered is `nclimits`; how entries are resolved, and what waits for what, is
`ncresolve`; the way from entries to paths and back is `ncpath`; crossing mounts is `ncmount`.
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
from typing import TYPE_CHECKING, NamedTuple

from dfuser.libkern.errno import ENOENT, ENOTCONN, KKASSERT, KError, panic
from dfuser.libkern.ktr import KtrInfo
from dfuser.libkern.param import HZ
from dfuser.libkern.stat import VType
from dfuser.libkern.sysctl import INT, LONG, OPAQUE, RD, RW, ULONG, Sysctl

from . import ncpath, ncresolve
from .namecache import CINV, NCF, NamecacheEntry, NcHandle
from .nclimits import NcLimits
from .ncmount import NcmountCache

if TYPE_CHECKING:
    from dfuser.libkern.ucred import Ucred

    from .mount import Mount
    from .vfs import Vfs
    from .vnode import Vnode

__all__ = ["CINV", "NCF", "NameCache", "NamecacheEntry", "NcHandle", "NchStats"]


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
        self.nclockwarn = 5 * HZ
        self.disablecwd = 0
        self.disablefullpath = 0
        self.goodhits = self.neghits = self.badhits = self.miss = 0
        self.longhits = self.longmiss = 0
        self.numcwdcalls = self.numcwdfailnf = self.numcwdfailsz = self.numcwdfound = 0
        self.zapped = self.waits = 0
        self.locked = 0
        self.ktr = vfs.ktr.master("namecache")
        self.limits = NcLimits(self)

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
        if self.numneg > self.limits.negmark or self.numleafs > self.limits.posmark:
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
        vp.add_ncp(ncp)
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
        vp.remove_ncp(ncp)
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
        if self.ktr.mask:
            self.ktr.log(self.ktr_unlink, ncp.name)
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
        if self.ktr.mask:
            self.ktr.log(self.ktr_rename, fncp.name, tncp.name)
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
        if self.ktr.mask:
            self.ktr.log(self.ktr_inval, ncp.name, flags, held)
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
        return self.inval(mount.rootncp, CINV.CHILDREN)

    # --- resolving and limits ----------------------------------------------------------------

    def resolve(self, ncp: NamecacheEntry, mount: Mount, cred: Ucred) -> int:
        """Make sure an entry is resolved: 0 positive, ENOENT not there. See `ncresolve.resolve`."""
        if not ncp.flags & NCF.UNRESOLVED:
            return ncp.error
        return ncresolve.resolve(self, ncp, mount, cred)

    def hysteresis(self, critpath: bool) -> None:
        """Keep the limits. See `nclimits.NcLimits.hysteresis`."""
        self.limits.hysteresis(critpath)

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
            self.numcache, self.numleafs, self.numneg, self.numunlinked, self.limits.neglimit,
            self.limits.poslimit, self.locked, self.nchstats(), self.zapped,
            self.limits.negflushed, self.limits.posflushed, self.waits,
        )  # fmt: skip
