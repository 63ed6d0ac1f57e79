"""How many names are remembered: the limits of the namecache and how they are kept.

Negative entries may be a sixteenth of kern.maxvnodes; the one used longest ago goes first.
Positive entries are bounded by their vnodes; only a file with many names can have more, so leaf
entries beyond twice kern.maxvnodes go too, the vnodes' lists being gone round.

**Hysteresis.** Work starts above the limit and goes on until 9/10 of it (5/6 for positives). On the
critical path (somebody adds an entry) a batch of ten is flushed each time, so that nobody pays for
all; the vnlru thread works towards 8/10 and takes the whole excess, so that the critical path
seldom has to. Below `NcLimits.negmark` and `posmark` the critical path does not even look.

Counterpart: cache_hysteresis, _cache_cleanneg, _cache_cleanpos (kern/vfs_cache.c).
Differs from DragonFly: positives are found through vnodes, not by walking a hash table; negatives
    are in exact order of their last use.
Token/lock order: none.
Invariants: nothing is enforced below MINNEG and MINPOS; held entries are never taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfuser.libkern.ktr import KtrInfo
from dfuser.libkern.sysctl import RW, Sysctl

if TYPE_CHECKING:
    from .cache import NameCache
    from .vnode import Vnode

#: No limit is enforced below these. Counterpart: MINNEG, MINPOS (kern/vfs_cache.c).
MINNEG: Final = 1024
MINPOS: Final = 1024


class NcLimits:
    """The limits of one namecache."""

    ktr_flush = KtrInfo("namecache", "flush", "negatives %d positives %d")

    sysctls = (
        Sysctl("debug.ncnegflush", "Negative entries flushed at once", attr="ncnegflush", flags=RW,
               minimum=1, maximum=100_000),
        Sysctl("debug.ncposflush", "Positive entries flushed at once", attr="ncposflush", flags=RW,
               minimum=1, maximum=100_000),
        Sysctl("debug.ncnegfactor", "kern.maxvnodes by this is the limit of negative entries",
               attr="ncnegfactor", flags=RW, minimum=1, maximum=1 << 20, setter="set_negfactor"),
        Sysctl("debug.ncposlimit", "Most leaf entries; 0 is twice kern.maxvnodes",
               attr="ncposlimit", flags=RW, minimum=0, setter="set_poslimit"),
    )  # fmt: skip

    def __init__(self, cache: NameCache) -> None:
        self.cache = cache
        self.ncnegflush = 10
        self.ncposflush = 10
        self.ncnegfactor = 16
        self.ncposlimit = 0
        self.negflushed = 0
        self.posflushed = 0
        #: Counts from which `hysteresis` may have something to do on the critical path.
        self.negmark = 0
        self.posmark = 0
        self._neg_high = [False, False]
        self._pos_high = [False, False]
        self._posrover: Vnode | None = None
        self._ktr = cache.vfs.ktr.master("namecache")

    @property
    def neglimit(self) -> int:
        """Most negative entries (never enforced below MINNEG)."""
        return self.cache.vfs.vnodes.maxvnodes // self.ncnegfactor

    @property
    def poslimit(self) -> int:
        """Most leaf entries (never enforced below MINPOS)."""
        return self.ncposlimit or self.cache.vfs.vnodes.maxvnodes * 2

    def hysteresis(self, critpath: bool) -> None:
        """Keep the limits: small steps on the critical path, the whole excess for vnlru.

        Counterpart: cache_hysteresis.
        """
        cache = self.cache
        neglimit, poslimit = self.neglimit, self.poslimit
        flushed = self.negflushed, self.posflushed
        if not critpath:
            neglimit = neglimit * 8 // 10
            poslimit = poslimit * 8 // 10
        if self._neg_high[critpath]:
            over = min(cache.numneg - MINNEG * 9 // 10, cache.numneg * 9 // 10 - neglimit)
        else:
            over = min(cache.numneg - MINNEG, cache.numneg - neglimit)
        self._neg_high[critpath] = over > 0
        if over > 0:
            self._cleanneg(self.ncnegflush if critpath else self.ncnegflush + over)
        if self._pos_high[critpath]:
            over = min(cache.numleafs - MINPOS, cache.numleafs - poslimit * 5 // 6)
        else:
            over = min(cache.numleafs - MINPOS, cache.numleafs - poslimit)
        self._pos_high[critpath] = over > 0
        if over > 0:
            self._cleanpos(self.ncposflush if critpath else self.ncposflush + over)
        if critpath:
            self._set_marks(neglimit, poslimit)
        if self._ktr.mask and flushed != (self.negflushed, self.posflushed):
            done = self.negflushed - flushed[0], self.posflushed - flushed[1]
            self._ktr.log(self.ktr_flush, *done)

    def _set_marks(self, neglimit: int, poslimit: int) -> None:
        """Say from when on the critical path has to look at the limits again."""
        low = max(MINNEG, neglimit)
        self.negmark = low * 9 // 10 if self._neg_high[True] else low
        low = max(MINPOS, poslimit)
        self.posmark = low * 5 // 6 if self._pos_high[True] else low

    def changed(self) -> None:
        """A limit is not what it was: let the next new entry look."""
        self.negmark = self.posmark = 0

    def set_negfactor(self, value: int) -> None:
        """Change debug.ncnegfactor."""
        self.ncnegfactor = value
        self.changed()

    def set_poslimit(self, value: int) -> None:
        """Change debug.ncposlimit."""
        self.ncposlimit = value
        self.changed()

    def _cleanneg(self, count: int) -> None:
        """Zap the negative entries used longest ago; held ones go to the end of the line."""
        cache = self.cache
        for _ in range(min(count, cache.numneg)):
            ncp = next(iter(cache.neg))
            if cache.zap(ncp):
                self.negflushed += 1
            else:
                cache.neg.move_to_end(ncp)

    def _cleanpos(self, count: int) -> None:
        """Zap leaf entries of vnodes, going round the active list."""
        vnodes = self.cache.vfs.vnodes
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
                if self.cache.zap(ncp):
                    self.posflushed += 1
                    todo -= 1
