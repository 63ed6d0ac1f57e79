"""IPI queues: how one CPU asks another to run a function.

For every pair of CPUs there is a ring of 256 entries {func, arg1, arg2}. The sender appends and
rings the target's doorbell, unless that has been rung already and not yet been answered: many
entries travel behind one bell. The target runs the functions in order, as an interrupt, inside a
critical section; they must not suspend. Sending to the own CPU runs the function at once.

Ways to send:

* ``await lwkt_send_ipiq(...)``: for threads. When the ring is more than half full the sender is
  parked until it is a quarter full; in a critical section it spins instead and serves its own
  incoming IPIs meanwhile.
* `Ipiqs.post`: for plain code (schedule, wakeup, replies), which must never wait. The entry is
  always taken. What exceeds the ring waits behind it, in order, and a sending thread that has gone
  over the mark is parked when it next yields.
* `lwkt_send_ipiq_passive`: no bell until the ring is a quarter full; the target finds the entries
  at its next IPI or tick.
* `lwkt_send_ipiq_nowait`: refuses (ENOENT) when the ring is more than half full.

Wake-ups are special: a thread is put on its CPU's ``wakereq`` list, each thread once, behind a
single ring entry, so that any number of them cannot fill a ring.

Counterpart: kern/lwkt_ipiq.c, struct lwkt_ipiq (sys/thread.h).
Differs from DragonFly: parks where DragonFly spins; the doorbell wakes the target's loop instead of
an APIC vector; `post` has an overflow.
Token/lock order: takes none.
Invariants: FIFO for each pair, overflow included; ``windex >= rindex >= xindex``; ``xindex`` counts
functions that have returned; ``npoll`` of a CPU is set exactly from the bell to its answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import attrs

from dfuser.libkern.errno import ENOENT, panic
from dfuser.libkern.ktr import KtrInfo
from dfuser.libkern.sysctl import QUAD, RD, RW, Sysctl

from . import thread as _thread
from .globaldata import RQF, STOP
from .thread import TDF, Thread, cpu_pause, lwkt_deschedule_self, switch

if TYPE_CHECKING:
    from .machine import Lwkt
    from .sched import Cpu

MAXCPUFIFO: Final = 256
#: Senders are stopped above this many entries, and go on at the second number.
HIGH_WATER: Final = MAXCPUFIFO // 2
LOW_WATER: Final = MAXCPUFIFO // 4
#: The same for senders that are themselves IPI functions.
NESTED_HIGH: Final = MAXCPUFIFO - 3
NESTED_LOW: Final = MAXCPUFIFO - 5

_SECOND: Final = 1_000_000_000

IpiFunc = Callable[[Any, Any], object]


def apply_args(func: Callable[..., object], args: tuple[Any, ...]) -> None:
    """An IPI function that takes any arguments: ``func(*args)``."""
    func(*args)


class Ipiq:
    """The ring from one CPU to another. Counterpart: struct lwkt_ipiq (sys/thread.h)."""

    __slots__ = (
        "drain", "dst", "entries", "fifofull", "rindex", "src", "waiters", "windex", "xindex",
    )  # fmt: skip

    def __init__(self, src: Cpu, dst: Cpu) -> None:
        self.src = src
        self.dst = dst
        #: The ring and, behind its 256 entries, the overflow.
        self.entries: deque[tuple[IpiFunc, Any, Any]] = deque()
        self.windex = 0
        self.rindex = 0
        self.xindex = 0
        #: A spinning sender wants the ring emptied down to this.
        self.drain = 0
        self.fifofull = 0
        #: Parked senders; scheduled when the ring is a quarter full.
        self.waiters: list[Thread] = []

    def __repr__(self) -> str:
        return f"<Ipiq {self.src.cpuid}->{self.dst.cpuid} {self.windex - self.rindex}>"


@attrs.frozen
class IpiqStatistics:
    """What `Ipiqs.statistics` returns; counters since boot.

    Attributes:
        count: entries sent to other CPUs.
        fifofull: times a sender found its ring over the mark.
        avoided: entries that needed no bell because one was ringing.
        passive: entries sent without a bell.
        cscount: cpusyncs.
        doorbells: bells rung; count - doorbells entries travelled for nothing.
        pending: entries not yet run.
        overflow: of those, entries that stand behind a full ring.
    """

    count: int
    fifofull: int
    avoided: int
    passive: int
    cscount: int
    doorbells: int
    pending: int
    overflow: int


class Ipiqs:
    """All rings of a machine."""

    __slots__ = (
        "avoided", "count", "cscount", "doorbells", "fifofull", "ktr", "lwkt", "passive", "rings",
    )  # fmt: skip

    sysctls = (
        Sysctl("lwkt.ipiq_count", "Number of IPI's sent", attr="count", kind=QUAD, flags=RW),
        Sysctl("lwkt.ipiq_fifofull", "Number of fifo full conditions detected",
               attr="fifofull", kind=QUAD, flags=RW),
        Sysctl("lwkt.ipiq_avoided", "Number of IPI's avoided by interlock with target cpu",
               attr="avoided", kind=QUAD, flags=RW),
        Sysctl("lwkt.ipiq_passive", "Number of passive IPI messages sent",
               attr="passive", kind=QUAD, flags=RW),
        Sysctl("lwkt.ipiq_cscount", "Number of cpu synchronizations",
               attr="cscount", kind=QUAD, flags=RW),
        Sysctl("lwkt.ipiq_doorbells", "Number of doorbells rung (simulated: no APIC)",
               attr="doorbells", kind=QUAD, flags=RD),
    )  # fmt: skip
    ktr_send_norm = KtrInfo("ipiq", "send_norm", "func=%s scpu=%d dcpu=%d")
    ktr_send_pasv = KtrInfo("ipiq", "send_pasv", "func=%s scpu=%d dcpu=%d")
    ktr_receive = KtrInfo("ipiq", "receive", "func=%s scpu=%d dcpu=%d")
    ktr_cpu_send = KtrInfo("ipiq", "cpu_send", "func=%s scpu=%d dcpu=%d")

    def __init__(self, lwkt: Lwkt) -> None:
        self.lwkt = lwkt
        self.ktr = lwkt.ktr.master("ipiq")
        self.rings: tuple[tuple[Ipiq, ...], ...] = tuple(
            tuple(Ipiq(src, dst) for dst in lwkt.cpus) for src in lwkt.cpus
        )
        self.count = 0
        self.fifofull = 0
        self.avoided = 0
        self.passive = 0
        self.cscount = 0
        self.doorbells = 0

    # --- sending ---------------------------------------------------------------------------

    def post(self, src: Cpu, dst: Cpu, func: IpiFunc, arg1: Any = None, arg2: Any = 0) -> int:
        """Send from plain code; never refuses, never waits. Returns the entry's sequence number."""
        if src is dst:
            self.run_here(src, func, arg1, arg2)
            return 0
        ring = self.rings[src.cpuid][dst.cpuid]
        used = ring.windex - ring.rindex
        if used > HIGH_WATER and (not src.processing_ipiq or used > NESTED_HIGH):
            self._over(ring, src)
        return self._append(ring, func, arg1, arg2)

    def run_here(self, cpu: Cpu, func: IpiFunc, arg1: Any, arg2: Any) -> None:
        """The target is the own CPU: run the function at once in a critical section."""
        td: Any = _thread.curthread
        if td is None or td.cpu is not cpu:
            cpu.run_handler(apply_args, func, (arg1, arg2))
            return
        td.critcount += 1
        try:
            func(arg1, arg2)
        finally:
            _thread.crit_exit()

    def _over(self, ring: Ipiq, src: Cpu) -> None:
        """A plain sender has gone over the mark: count, and throttle the thread behind it."""
        self.fifofull += 1
        ring.fifofull += 1
        td: Any = _thread.curthread
        mine = td is not None and td is src.curthread and not src.intr_nesting
        if mine and not td.flags & TDF.BORROWED:
            td.flags |= TDF.THROTTLED

    def _append(self, ring: Ipiq, func: IpiFunc, arg1: Any, arg2: Any) -> int:
        self.count += 1
        ring.entries.append((func, arg1, arg2))
        ring.windex += 1
        dst = ring.dst
        dst.ipimask |= 1 << ring.src.cpuid
        if self.ktr.mask:
            self._log(self.ktr_send_norm, ring, func)
        if dst.npoll:
            self.avoided += 1
        else:
            self.doorbell(dst)
            if self.ktr.mask:
                self._log(self.ktr_cpu_send, ring, func)
        return ring.windex

    def doorbell(self, dst: Cpu) -> None:
        """Ring a CPU's bell: it serves its IPIs at its next point, now if it is idle."""
        dst.npoll = True
        dst.reqflags |= RQF.IPIQ
        self.doorbells += 1
        dst.kick()

    def _log(self, point: KtrInfo, ring: Ipiq, func: Any) -> None:
        name = getattr(func, "__qualname__", str(func))
        where = ring.dst if point is self.ktr_receive else ring.src
        self.ktr.log_cpu(where.cpuid, point, name, ring.src.cpuid, ring.dst.cpuid)

    def passive_post(
        self, src: Cpu, dst: Cpu, func: IpiFunc, arg1: Any = None, arg2: Any = 0
    ) -> int:
        """Send without ringing, while the ring is less than a quarter full."""
        ring = self.rings[src.cpuid][dst.cpuid]
        if src is dst or ring.windex - ring.rindex >= LOW_WATER:
            return self.post(src, dst, func, arg1, arg2)
        self.count += 1
        self.passive += 1
        ring.entries.append((func, arg1, arg2))
        ring.windex += 1
        dst.ipimask |= 1 << src.cpuid
        if self.ktr.mask:
            self._log(self.ktr_send_pasv, ring, func)
        self.lwkt.start_tick()
        return ring.windex

    async def wait_drained(self, ring: Ipiq) -> None:
        """Park the running thread until the ring is a quarter full; spin in a critical section."""
        td = _thread.curthread
        if td.critcount == 0:
            self.throttle_on(ring, td)
            try:
                await switch()
            finally:
                if td in ring.waiters:
                    ring.waiters.remove(td)
            return
        before, ring.drain = ring.drain, LOW_WATER
        while ring.windex - ring.rindex > LOW_WATER:
            self.process_nested(ring.src)
            await cpu_pause()
        ring.drain = before

    def throttle_on(self, ring: Ipiq, td: Thread) -> None:
        """Take a sender off the run queue until ``ring`` has drained."""
        lwkt_deschedule_self()
        td.wmesg = "ipiq"
        ring.waiters.append(td)

    def throttle(self, td: Thread) -> None:
        """A thread that has gone over the mark from plain code yields now: park it.

        A thread that is about to sleep anyway is left alone.
        """
        if not td.flags & TDF.RUNQ:
            return
        for ring in self.rings[td.cpu.cpuid]:
            if ring.windex - ring.rindex > LOW_WATER:
                self.throttle_on(ring, td)
                return

    def forget(self, td: Thread) -> None:
        """The thread is being ended: it waits for no ring any more."""
        for ring in self.rings[td.cpu.cpuid]:
            if td in ring.waiters:
                ring.waiters.remove(td)

    # --- receiving -------------------------------------------------------------------------

    def process(self, cpu: Cpu) -> None:
        """Run everything other CPUs have sent to ``cpu``; called as an interrupt.

        Counterpart: lwkt_process_ipiq.
        """
        cpu.npoll = False
        cpu.processing_ipiq += 1
        try:
            mask = cpu.ipimask
            cpu.ipimask = 0
            while mask:
                low = mask & -mask
                mask ^= low
                self._drain(self.rings[low.bit_length() - 1][cpu.cpuid], 0)
        finally:
            cpu.processing_ipiq -= 1

    def process_nested(self, cpu: Cpu) -> None:
        """Serve only senders that spin for room, and only until they can go on.

        Counterpart: lwkt_process_ipiq_nested.
        """
        if cpu.intr_nesting:
            return
        cpu.processing_ipiq += 1
        try:
            for ring in (row[cpu.cpuid] for row in self.rings):
                if ring.drain and ring.windex - ring.rindex > ring.drain:
                    cpu.run_handler(self._drain, ring, ring.drain)
        finally:
            cpu.processing_ipiq -= 1

    def _drain(self, ring: Ipiq, limit: int) -> None:
        """Run entries of one ring until ``limit`` are left."""
        entries = ring.entries
        tracing = self.ktr.mask
        while ring.windex - ring.rindex > limit:
            func, arg1, arg2 = entries.popleft()
            ring.rindex += 1
            if tracing:
                self._log(self.ktr_receive, ring, func)
            try:
                func(arg1, arg2)
            except Exception as exc:
                self.lwkt.interrupt_failed(ring.dst.cpuid, func, exc)
            ring.xindex = ring.rindex
            if ring.waiters and ring.windex - ring.rindex <= LOW_WATER:
                waiters, ring.waiters = ring.waiters, []
                for td in waiters:
                    td.wmesg = ""
                    self.lwkt.schedule(td)

    # --- wake-ups --------------------------------------------------------------------------

    def send_wakereq(self, src: Cpu, td: Thread) -> None:
        """Ask the CPU of ``td`` to make it runnable. Counterpart: lwkt_schedule_remote."""
        td.flags |= TDF.WAKEREQ
        dst = td.cpu
        dst.wakereq.append(td)
        if len(dst.wakereq) == 1:
            self.post(src, dst, self._schedule_remote, dst)

    def _schedule_remote(self, cpu: Cpu, _arg2: object) -> None:
        wakereq = cpu.wakereq
        while wakereq:
            td = wakereq.popleft()
            td.flags &= ~TDF.WAKEREQ
            if td.cpu is cpu:
                cpu.schedule_local(td)
            else:
                self.lwkt.schedule(td)

    # --- statistics ------------------------------------------------------------------------

    def statistics(self) -> IpiqStatistics:
        """Counters, and what is on its way now."""
        used = [ring.windex - ring.rindex for row in self.rings for ring in row]
        return IpiqStatistics(
            count=self.count,
            fifofull=self.fifofull,
            avoided=self.avoided,
            passive=self.passive,
            cscount=self.cscount,
            doorbells=self.doorbells,
            pending=sum(used),
            overflow=sum(max(0, n - MAXCPUFIFO) for n in used),
        )


async def lwkt_send_ipiq(dst: Cpu, func: IpiFunc, arg1: Any = None, arg2: Any = 0) -> int:
    """Send to ``dst``; waits while the ring is over the mark. Returns the sequence number.

    Tokens are let go while it waits outside a critical section. Counterpart: lwkt_send_ipiq3.
    """
    src = _thread.curthread.cpu
    ipiqs = src.lwkt.ipiqs
    if src is dst:
        ipiqs.run_here(src, func, arg1, arg2)
        return 0
    ring = ipiqs.rings[src.cpuid][dst.cpuid]
    while ring.windex - ring.rindex > HIGH_WATER:
        ipiqs.fifofull += 1
        ring.fifofull += 1
        await ipiqs.wait_drained(ring)
    return ipiqs._append(ring, func, arg1, arg2)


async def lwkt_send_ipiq_bycpu(dcpu: int, func: IpiFunc, arg1: Any = None, arg2: Any = 0) -> int:
    """`lwkt_send_ipiq` to a CPU given by its number. Counterpart: lwkt_send_ipiq3_bycpu."""
    return await lwkt_send_ipiq(_thread.curthread.cpu.lwkt.cpus[dcpu], func, arg1, arg2)


def lwkt_send_ipiq_nowait(dst: Cpu, func: IpiFunc, arg1: Any = None, arg2: Any = 0) -> int:
    """Send if the ring is at most half full. Returns 0, or ENOENT and sends nothing.

    Counterpart: lwkt_send_ipiq_nowait.
    """
    src = _thread.curthread.cpu
    ipiqs = src.lwkt.ipiqs
    ring = ipiqs.rings[src.cpuid][dst.cpuid]
    if src is not dst and ring.windex - ring.rindex > HIGH_WATER:
        ipiqs.fifofull += 1
        ring.fifofull += 1
        return ENOENT
    ipiqs.post(src, dst, func, arg1, arg2)
    return 0


def lwkt_send_ipiq_passive(dst: Cpu, func: IpiFunc, arg1: Any = None, arg2: Any = 0) -> int:
    """Send without ringing the bell while the ring is less than a quarter full.

    For work that is not urgent; the target meets it at its next IPI or tick.
    Counterpart: lwkt_send_ipiq3_passive.
    """
    src = _thread.curthread.cpu
    return src.lwkt.ipiqs.passive_post(src, dst, func, arg1, arg2)


async def lwkt_send_ipiq_mask(
    targets: Iterable[Cpu], func: IpiFunc, arg1: Any = None, arg2: Any = 0
) -> int:
    """Send to several CPUs, stopped ones left out, starting from the own one upwards.

    Returns how many were sent. Counterpart: lwkt_send_ipiq3_mask.
    """
    here = _thread.curthread.cpu.cpuid
    mask = {cpu.cpuid: cpu for cpu in targets if not cpu.stopped & STOP.DEBUG}
    order = sorted(mask, key=lambda cpuid: (cpuid < here, cpuid))
    for cpuid in order:
        await lwkt_send_ipiq(mask[cpuid], func, arg1, arg2)
    return len(order)


async def lwkt_wait_ipiq(dst: Cpu, seq: int) -> None:
    """Spin until ``dst`` has run the entry with sequence number ``seq``; serves own IPIs meanwhile.

    Warns after one second and panics after ten. Counterpart: lwkt_wait_ipiq.
    """
    cpu = _thread.curthread.cpu
    lwkt = cpu.lwkt
    ring = lwkt.ipiqs.rings[cpu.cpuid][dst.cpuid]
    warn_at = lwkt.clock.monotonic_ns() + _SECOND
    loops = 10
    while ring.xindex < seq:
        cpu.poll_ipiq()
        await cpu_pause()
        if lwkt.clock.monotonic_ns() >= warn_at:
            left = ring.xindex - seq
            lwkt.msgbuf.kprintf(f"LWKT_WAIT_IPIQ WARNING! {cpu.cpuid} wait {dst.cpuid} ({left})")
            warn_at += _SECOND
            loops -= 1
            if not loops:
                panic("LWKT_WAIT_IPIQ")


async def lwkt_synchronize_ipiqs(wmesg: str = "ipiqs") -> None:
    """Wait until every other running CPU has served the IPIs sent to it before.

    Counterpart: lwkt_synchronize_ipiqs.
    """
    td = _thread.curthread
    others = [cpu for cpu in td.cpu.lwkt.cpus if cpu is not td.cpu]
    left = len(others)
    done = False

    def sync_ipiq(_arg1: object, _arg2: object) -> None:
        nonlocal left
        left -= 1
        if not left and done:
            td.cpu.lwkt.schedule(td)

    left = await lwkt_send_ipiq_mask(others, sync_ipiq) if others else 0
    done = True
    while left > 0:
        lwkt_deschedule_self()
        td.wmesg = wmesg
        await switch()
    td.wmesg = ""
