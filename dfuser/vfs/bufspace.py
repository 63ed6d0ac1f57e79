"""How much the buffer cache may hold, may have dirty, and may have in flight; who must wait.

Three limits in bytes, each with a lower mark at which work stops again:

==================  ===============  =========================================================
what                high, low        at the high mark
==================  ===============  =========================================================
``bufspace``        hi-, lobufspace  clean buffers are reused, then who wants one waits
``dirtykvaspace``   hi-, lodirty...  writers wait; the daemon writes down to half the low mark
``runningbufspace`` hi-, lorunning   no further write is started above 4/6, until 3/6
==================  ===============  =========================================================

Dirty and in flight count together. In the middle between low and high mark (``mid1``) the daemon is
woken; in the middle between that and the high mark (``mid2``) writers wait. Each calls `bwillwrite`
before it changes anything, and is told `Block`. Those who wait stand in one line: who came first is
let go first, as soon as what is dirty, in flight, or promised to others is below ``mid2``. While
anybody stands in line a newcomer joins it. A promise holds for a second. Where the disk has refused
all that is dirty, writers get EIO.

Counterpart: bd_heatup, bd_wait, bd_signal, waitrunningbufspace, runningbufwakeup, bufinit
    (kern/vfs_bio.c), bwillwrite (kern/kern_iosched.c).
Differs from DragonFly: there a writer waits for an amount that its share of recent writes decides;
    here for its turn. ``dirtykvaspace`` counts pages the dirty buffers keep, because no address
    space is reserved for them (64 KiB a buffer there).
Token/lock order: takes none. Only `waitrunningbufspace` and what a `Block` names suspend.
Invariants: ``reserved`` is the sum of the promises; a thread has at most one.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from dfuser.libkern.errno import EINVAL, EIO, KError
from dfuser.libkern.param import HZ, MAXBSIZE, NSEC_PER_SEC, PINTERLOCKED
from dfuser.libkern.sysctl import INT, LONG, RW, Sysctl
from dfuser.lwkt import thread as _thread
from dfuser.lwkt.block import Block
from dfuser.lwkt.synch import tsleep, tsleep_interlock, wakeup

if TYPE_CHECKING:
    from dfuser.hw.clock import Clock

#: The size buffers are taken to have on average. Counterpart: NBUFCALCSIZE (sys/param.h).
NBUFCALCSIZE: Final = 16384
MIB: Final = 1 << 20


def default_nbuf(memory: int) -> int:
    """Buffer headers for so many bytes of memory. Counterpart: cpu_startup (machdep.c)."""
    factor = 4 * NBUFCALCSIZE // 1024
    kbytes = memory // 1024
    nbuf = 50
    if kbytes > 4096:
        nbuf += min((kbytes - 4096) // factor, 65536 // factor)
    if kbytes > 65536:
        nbuf += (kbytes - 65536) * 2 // (factor * 5)
    return nbuf


class Ticket:
    """A place in the line of writers, then a promise."""

    __slots__ = ("expires", "granted", "size", "td")

    def __init__(self, td: Any, size: int) -> None:
        self.td = td
        self.size = size
        self.granted = False
        self.expires = 0


#: What of it can be seen and set; `bio.BufCache` declares it.
SPACE_SYSCTLS: Final = (
    Sysctl("vfs.nbuf", "Total number of buffers in buffer cache", attr="nbuf", kind=LONG),
    Sysctl("vfs.maxbufspace", "Hard limit on maximum amount of memory usable for buffer space",
           attr="maxbufspace", kind=LONG),
    Sysctl("vfs.hibufspace", "Soft limit on maximum amount of memory usable for buffer space",
           attr="hibufspace", kind=LONG),
    Sysctl("vfs.lobufspace", "Minimum amount of memory to reserve for system buffer space",
           attr="lobufspace", kind=LONG),
    Sysctl("vfs.bufspace", "Amount of memory buffers take", attr="bufspace", kind=LONG),
    Sysctl("vfs.lodirtybufspace",
           "Bytes of dirty buffers at which bufdaemon becomes inactive",
           attr="lodirtybufspace", kind=LONG, flags=RW, minimum=0, setter="set_lodirty"),
    Sysctl("vfs.hidirtybufspace", "High watermark of dirty buffers: writers wait",
           attr="hidirtybufspace", kind=LONG, flags=RW, minimum=MAXBSIZE, setter="set_hidirty"),
    Sysctl("vfs.lorunningspace", "Minimum amount of buffer space required for active I/O",
           attr="lorunningspace", kind=LONG, flags=RW, minimum=0),
    Sysctl("vfs.hirunningspace", "Maximum amount of buffer space usable for active I/O",
           attr="hirunningspace", kind=LONG, flags=RW, minimum=MAXBSIZE),
    Sysctl("vfs.dirtykvaspace", "Bytes of pages that dirty buffers keep (all)",
           attr="dirtykvaspace", kind=LONG),
    Sysctl("vfs.dirtybufspace", "Pending bytes of dirty buffers (all)",
           attr="dirtybufspace", kind=LONG),
    Sysctl("vfs.dirtybufspacehw", "Pending bytes of dirty buffers (heavy weight)",
           attr="dirtybufspacehw", kind=LONG),
    Sysctl("vfs.dirtybufcount", "Pending number of dirty buffers", attr="dirtybufcount",
           kind=LONG),
    Sysctl("vfs.dirtybufcounthw", "Pending number of dirty buffers (heavy weight)",
           attr="dirtybufcounthw", kind=LONG),
    Sysctl("vfs.runningbufspace",
           "I/O bytes currently in progress due to asynchronous writes",
           attr="runningbufspace", kind=LONG),
    Sysctl("vfs.runningbufcount",
           "I/O buffers currently in progress due to asynchronous writes",
           attr="runningbufcount", kind=LONG),
    Sysctl("vfs.flushperqueue", "Number of buffers to flush in one go", attr="flushperqueue",
           kind=INT, flags=RW, minimum=1),
    Sysctl("vfs.dirtystalls", "Times a writer had to wait for dirty buffers", attr="stalls",
           kind=LONG),
)  # fmt: skip


class BufSpace:
    """The limits of the buffer cache, and the lines in front of them.

    Args:
        clock: for promises and ages.
        memory: bytes of physical memory.
        nbuf: headers; by memory if None.
    """

    def __init__(self, clock: Clock, memory: int, nbuf: int | None = None) -> None:
        self.clock = clock
        self.nbuf = nbuf or default_nbuf(memory)
        self.maxbufspace = self.nbuf * NBUFCALCSIZE
        self.hibufspace = max(3 * self.maxbufspace // 4, self.maxbufspace - MAXBSIZE * 10)
        low = max(self.hibufspace * 7 // 8, self.hibufspace - 64 * MIB)
        self.lobufspace = max(0, min(low, self.hibufspace - MAXBSIZE))
        self.hidirtybufspace = self.hibufspace // 2
        self.lodirtybufspace = self.hidirtybufspace // 2
        self.lorunningspace = 512 * 1024
        self.hirunningspace = max(self.hibufspace // 16, MIB)
        self.flushperqueue = 1024
        self.bufspace = 0
        self.dirtykvaspace = self.dirtybufspace = self.dirtybufspacehw = 0
        self.dirtybufcount = self.dirtybufcounthw = 0
        self.runningbufspace = self.runningbufcount = self.runningbufreq = 0
        self.stalls = 0
        self.reserved = 0
        self.needsbuffer = False
        #: Raised by `bd_speedup` for the daemons; they lower them.
        self.bd_request = [False, False]
        self._bd_ident: tuple[object, object] = (object(), object())
        self._run_ident = object()
        self._need_ident = object()
        #: Threads that never wait for dirty buffers: those that write them.
        self.flushers: set[Any] = set()
        self._line: deque[Ticket] = deque()
        self._promised: dict[Any, Ticket] = {}

    # --- marks -------------------------------------------------------------------------------

    def set_lodirty(self, value: int) -> None:
        """Set lodirtybufspace; EINVAL above hidirtybufspace."""
        if value > self.hidirtybufspace:
            raise KError(EINVAL, "vfs.lodirtybufspace above vfs.hidirtybufspace")
        self.lodirtybufspace = value
        self.bd_heatup()

    def set_hidirty(self, value: int) -> None:
        """Set hidirtybufspace; EINVAL above hibufspace. The low mark follows it down."""
        if value > self.hibufspace:
            raise KError(EINVAL, "vfs.hidirtybufspace above vfs.hibufspace")
        self.hidirtybufspace = value
        self.lodirtybufspace = min(self.lodirtybufspace, value // 2)
        self.bd_heatup()
        self._grant()

    @property
    def mid1(self) -> int:
        """Where the daemon wakes up."""
        return self.lodirtybufspace + (self.hidirtybufspace - self.lodirtybufspace) // 2

    @property
    def mid2(self) -> int:
        """Where writers wait."""
        mid1 = self.mid1
        return mid1 + (self.hidirtybufspace - mid1) // 2

    @property
    def waiting(self) -> int:
        """Writers that stand in line."""
        return len(self._line)

    def buf_dirty_count_severe(self) -> bool:
        """Whether far too much is dirty. Counterpart: buf_dirty_count_severe."""
        return (
            self.runningbufspace + self.dirtykvaspace >= self.hidirtybufspace
            or self.dirtybufcount >= self.nbuf // 2
        )

    def bd_speedup(self) -> None:
        """Have the daemons write. Counterpart: bd_speedup."""
        half = self.nbuf // 2
        if self.dirtykvaspace < self.lodirtybufspace and self.dirtybufcount < half:
            return
        much = self.dirtykvaspace > self.lodirtybufspace // 2
        for number, count in enumerate(
            (self.dirtybufcount - self.dirtybufcounthw, self.dirtybufcounthw)
        ):
            if not self.bd_request[number] and (much or count >= half):
                self.bd_request[number] = True
                wakeup(self._bd_ident[number])

    def bd_heatup(self) -> int:
        """Wake the daemons if much is dirty; returns the bytes above ``mid2``.

        Counterpart: bd_heatup.
        """
        total = self.runningbufspace + self.dirtykvaspace
        if total >= self.mid1 or self.dirtybufcount >= self.nbuf // 2:
            self.bd_speedup()
            return max(0, total - self.mid2)
        return 0

    def bd_signal(self) -> None:
        """Less is dirty, or in flight: let writers go on. Counterpart: bd_signal."""
        if self._line:
            self._grant()

    # --- writers -----------------------------------------------------------------------------

    def bwillwrite(self, size: int) -> None:
        """Somebody is about to make ``size`` bytes dirty. To be called before any change.

        Raises:
            Block: too much is dirty; the caller stands in line meanwhile ("flstik").
            KError: EIO, too much is dirty, and the disk has refused all of it: there is nothing to
                wait for.

        Counterpart: bwillwrite, bd_wait.
        """
        td: Any = _thread.curthread
        if self._promised and self._promised.pop(td, None) is not None:
            self._recount()
            return
        if self._admits() or td in self.flushers:
            return
        if not self.flushers:
            self.flush_inline()
            return
        self._grant()
        if self._admits():
            return
        if self._hopeless():
            raise KError(EIO, "the disk takes no writes")
        self.stalls += 1
        raise Block(partial(self._flstik, size), "flstik")

    def flush_inline(self) -> None:
        """Write what is dirty in place of the daemons, before there are any."""

    def failedbufspace(self) -> int:
        """Bytes of dirty buffers whose last write failed."""
        return 0

    def _hopeless(self) -> bool:
        """Whether waiting is of no use: what has failed is too much by itself."""
        return not self.runningbufspace and self.failedbufspace() >= self.mid2

    def _admits(self) -> bool:
        """Whether a newcomer may go on."""
        total = self.runningbufspace + self.dirtykvaspace + self.reserved
        return total < self.mid2 and not self._line

    async def _flstik(self, size: int) -> int:
        """Stand in line. Counterpart: bd_wait."""
        td = _thread.curthread
        ticket = Ticket(td, size)
        self._line.append(ticket)
        self.bd_heatup()
        self._grant()
        try:
            while not ticket.granted:
                tsleep_interlock(ticket)
                await tsleep(ticket, PINTERLOCKED, "flstik", HZ)
                self.bd_heatup()
                self._grant()
                if ticket in self._line and self._hopeless():
                    self._line.remove(ticket)
                    return EIO
        except BaseException:
            if not ticket.granted:
                self._line.remove(ticket)
            self._promised.pop(td, None)
            self._grant()
            raise
        return 0

    def _recount(self) -> None:
        """Work ``reserved`` out again; promises are few."""
        self.reserved = sum(ticket.size for ticket in self._promised.values())

    def _grant(self) -> None:
        """Let go who may, in the order they came; forget promises nobody came back for."""
        now = self.clock.monotonic_ns()
        for td, ticket in list(self._promised.items()):
            if ticket.expires <= now:
                del self._promised[td]
        self._recount()
        limit = self.mid2 - self.runningbufspace - self.dirtykvaspace
        while self._line and self.reserved < limit:
            ticket = self._line.popleft()
            ticket.granted = True
            ticket.expires = now + NSEC_PER_SEC
            self._promised[ticket.td] = ticket
            self.reserved += ticket.size
            wakeup(ticket)

    # --- in flight ---------------------------------------------------------------------------

    def bsetrunningbufspace(self, size: int) -> None:
        """So many bytes more are in flight. Counterpart: bsetrunningbufspace."""
        self.runningbufspace += size
        self.runningbufcount += 1

    def running_done(self, size: int) -> None:
        """So many bytes are in flight no longer. Counterpart: runningbufwakeup."""
        self.runningbufspace -= size
        self.runningbufcount -= 1
        if self.runningbufreq and self.runningbufspace <= self.hirunningspace * 3 // 6:
            self.runningbufreq = 0
            wakeup(self._run_ident)
        self.bd_signal()

    def buf_runningbufspace_severe(self) -> bool:
        """Whether too much is in flight. Counterpart: buf_runningbufspace_severe."""
        return self.runningbufspace >= self.hirunningspace * 4 // 6

    async def waitrunningbufspace(self) -> None:
        """Wait while more than 4/6 of hirunningspace are in flight, until it is 3/6.

        Counterpart: waitrunningbufspace.
        """
        limit = self.hirunningspace * 4 // 6
        while self.runningbufspace > limit or self.runningbufreq:
            tsleep_interlock(self._run_ident)
            others, self.runningbufreq = self.runningbufreq, self.runningbufreq + 1
            if self.runningbufspace <= limit and not others:
                self.runningbufreq = 0
                return
            await tsleep(self._run_ident, PINTERLOCKED, "wdrn1", HZ)

    # --- buffers -----------------------------------------------------------------------------

    def bufspacewakeup(self) -> None:
        """A buffer may be reused. Counterpart: bufspacewakeup, bufcountwakeup."""
        if self.needsbuffer:
            self.needsbuffer = False
            wakeup(self._need_ident)

    def need_block(self, wmesg: str) -> Block:
        """What getnewbuf raises when there is nothing to reuse."""
        self.bd_speedup()
        self.needsbuffer = True
        return Block(partial(self._need, wmesg), wmesg)

    async def _need(self, wmesg: str) -> int:
        tsleep_interlock(self._need_ident)
        if self.needsbuffer:
            await tsleep(self._need_ident, PINTERLOCKED, wmesg, HZ)
        return 0
