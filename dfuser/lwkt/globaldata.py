"""struct globaldata: what belongs to one logical CPU, and its run queue.

A CPU owns 32 queues of runnable threads, one a priority. Everything here is data and the few
operations that only touch it: enqueue, dequeue, the tick's rotation, asking for a reschedule, the
doorbell that ends the idling of a CPU's loop, and stopping a CPU. Electing and running threads is
`sched.Cpu`; interrupts and preemption are `intr.InterruptCpu` between the two.

Counterpart: struct globaldata (sys/globaldata.h), _lwkt_enqueue, _lwkt_dequeue and
lwkt_schedulerclock (kern/lwkt_thread.c).
Differs from DragonFly: one queue a priority instead of one sorted list, so a switch is O(1); where
the tick's rotation has broken the order of user priorities, a newcomer is placed by a scan from the
tail only (DragonFly scans from both ends at once and takes what it finds first).
Token/lock order: takes none; only code that runs on the CPU may call, as in DragonFly.
Invariants: ``runmask`` has bit p set exactly while ``runq[p]`` is not empty; a thread stands on at
most one queue, the one of its CPU and priority, exactly while it has TDF.RUNQ.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

import trio

from . import thread as _thread
from .thread import RQF_PENDING, TDF, TDPRI, Thread

if TYPE_CHECKING:
    from .cpusync import Cpusync
    from .machine import Lwkt
    from .sched import Cpu


class RQF:
    """Request flags of a CPU. Counterpart: RQF_* (sys/globaldata.h)."""

    IPIQ: Final = 0x0001
    INTPEND: Final = 0x0002
    TIMER: Final = 0x0004
    RESCHED: Final = 0x0100
    #: The CPU is stopped, as ``stopped`` says in full: so that one test tells that all is well.
    STOPPED: Final = 0x0200
    #: What `splz` has to do something about.
    PENDING: Final = RQF_PENDING


class STOP:
    """Why a CPU is stopped; a bit mask."""

    DEBUG: Final = 1
    """Stopped by `GlobalData.stop`: serves nothing. Counterpart: stopped_cpus."""
    CPUSYNC: Final = 2
    """Held by a cpusync: runs no thread, still serves IPIs."""


#: The longest a CPU keeps the host's loop from having a turn, ns.
SLICE_NS: Final = 500_000
#: `slice_over` looks at the clock once in so many calls.
_QUICK_CALLS: Final = 16


_RUNQ: Final = TDF.RUNQ
_NOT_RUNQ: Final = ~TDF.RUNQ


class GlobalData:
    """The data of one logical CPU. Counterpart: struct globaldata (sys/globaldata.h)."""

    __slots__ = (
        "_stopped",
        "borrowed",
        "callwheel",
        "cpuid",
        "cpusync_deferred",
        "cpusync_mastered",
        "curthread",
        "elected",
        "frozen",
        "idle",
        "intpend",
        "interrupts",
        "intr_nesting",
        "ipimask",
        "kicks",
        "loop_parked",
        "loop_task",
        "last_look",
        "lwkt",
        "npoll",
        "paused",
        "preempt_hit",
        "preempt_miss",
        "preempt_weird",
        "processing_ipiq",
        "quick_calls",
        "register",
        "reqflags",
        "runmask",
        "runq",
        "self_switches",
        "slice_start",
        "stalled",
        "switches_gone",
        "tick_start",
        "token_stalls",
        "upri_used",
        "wakereq",
        "woken",
    )

    def __init__(self, lwkt: Lwkt, cpuid: int) -> None:
        self.lwkt = lwkt
        self.cpuid = cpuid
        #: Where ``curthread`` stands, for the loop that sets it at every step: storing through the
        #: dictionary costs half of what assigning the attribute of the module does.
        self.register: dict[str, Any] = vars(_thread)
        #: `Lwkt.woken`, here because every switch between tasks needs it.
        self.woken = lwkt.woken
        self.runq: list[deque[Thread]] = [deque() for _ in range(TDPRI.MAX + 1)]
        self.runmask = 0
        #: A thread with a user priority has been queued: order within a queue matters.
        self.upri_used = False
        self.reqflags = 0
        #: The thread that holds this CPU, None while it is idle.
        self.curthread: Thread | None = None
        #: A coroutine thread elected by a task thread for the loop to step.
        self.elected: Thread | None = None
        #: A coroutine thread that spins in cpu_pause: resumed before anything is elected.
        self.paused: Thread | None = None
        #: A task thread that woke while the CPU was stopped and waits for its restart.
        self.frozen: Thread | None = None
        #: The last election passed over threads whose tokens are held elsewhere.
        self.stalled = False
        self._stopped = 0
        self.intpend: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self.intr_nesting = 0
        #: IPIs: which CPUs have sent, whether the bell was rung already, depth of processing.
        self.ipimask = 0
        self.npoll = False
        self.processing_ipiq = 0
        self.wakereq: deque[Thread] = deque()
        #: The cpusync this CPU's running thread masters, and those that must wait for its end.
        self.cpusync_mastered: Cpusync | None = None
        self.cpusync_deferred: list[Cpusync] = []
        self.callwheel: Any = None
        self.borrowed: list[Thread] = []
        self.loop_task: trio.lowlevel.Task | None = None
        self.loop_parked = False
        self.self_switches = 0
        self.quick_calls = 0
        #: When the host last had a turn; -1: just now, the clock has not been looked at yet.
        self.slice_start = -1
        self.last_look = -1
        self.tick_start = 0
        #: Switches to threads that have exited or migrated, less those immigrants brought along.
        self.switches_gone = 0
        self.interrupts = 0
        self.kicks = 0
        self.preempt_hit = 0
        self.preempt_miss = 0
        self.preempt_weird = 0
        self.token_stalls = 0
        #: The context of interrupts that arrive while nothing is elected.
        self.idle = Thread(cast("Cpu", self), -1 - cpuid, f"idle_{cpuid}", TDPRI.IDLE_THREAD)

    @property
    def stopped(self) -> int:
        """Why the CPU is stopped, a mask of STOP; 0: it runs. Counterpart: stopped_cpus."""
        return self._stopped

    @stopped.setter
    def stopped(self, reasons: int) -> None:
        self._stopped = reasons
        self.reqflags = self.reqflags | RQF.STOPPED if reasons else self.reqflags & ~RQF.STOPPED

    @property
    def switches(self) -> int:
        """Elections made here since boot. Each thread counts its own; preemptions are none."""
        here = sum(td.switches for td in self.lwkt.threads.values() if td.cpu is self)
        return here + self.switches_gone - self.preempt_hit

    def __repr__(self) -> str:
        return f"<Cpu {self.cpuid}>"

    # --- run queue -------------------------------------------------------------------------

    def runq_enqueue(self, td: Thread) -> None:
        """Put ``td`` behind its equals: behind the last one whose user priority is not smaller.

        Counterpart: _lwkt_enqueue.
        """
        pri = td.pri
        queue = self.runq[pri]
        upri = td.upri
        if upri:
            self.upri_used = True
        if not queue:
            queue.append(td)
            self.runmask |= 1 << pri
        else:
            if self.upri_used and queue[-1].upri < upri:
                at = len(queue)
                while at and queue[at - 1].upri < upri:
                    at -= 1
                queue.insert(at, td)
            else:
                queue.append(td)
            if not self.lwkt.ticking:
                self.lwkt.start_tick()
        td.flags |= _RUNQ
        self.stalled = False

    def runq_remove(self, td: Thread) -> None:
        """Take ``td`` off its queue. Counterpart: _lwkt_dequeue."""
        pri = td.pri
        queue = self.runq[pri]
        if queue[0] is td:
            queue.popleft()
        else:
            queue.remove(td)
        if not queue:
            self.runmask &= ~(1 << pri)
        td.flags &= _NOT_RUNQ

    def runnable(self) -> list[Thread]:
        """The run queue, best first; the elected thread stands on it too."""
        return [td for queue in reversed(self.runq) for td in queue]

    @property
    def contended(self) -> bool:
        """Whether more than one thread of some priority wants this CPU: the tick has a use."""
        return any(len(queue) > 1 for queue in self.runq) if self.runmask else False

    def schedulerclock(self) -> None:
        """The tick: the running head of a queue goes behind its equals.

        User priorities are ignored here, as in DragonFly. When another thread than the running one
        heads the queue, a reschedule is asked for at every tick.
        Counterpart: lwkt_schedulerclock.
        """
        mask = self.runmask
        if not mask:
            return
        queue = self.runq[mask.bit_length() - 1]
        if queue[0] is not self.curthread:
            self.reqflags |= RQF.RESCHED
        elif len(queue) > 1:
            queue.rotate(-1)
            self.reqflags |= RQF.RESCHED

    def need_resched(self) -> None:
        """Ask the running thread to yield at its next point."""
        self.reqflags |= RQF.RESCHED

    def slice_over(self) -> bool:
        """For inner loops: has the running thread used up its tick, or its turn before the host?

        Looks at the clock once in 16 calls. A full tick does what the tick does.
        """
        self.quick_calls += 1
        if self.quick_calls < _QUICK_CALLS:
            return False
        self.quick_calls = 0
        now = self.lwkt.clock.monotonic_ns()
        if self.slice_start < 0:
            self.slice_start = now
        if now - self.tick_start >= self.lwkt.tick_ns:
            self.tick_start = now
            self.schedulerclock()
        if now - self.slice_start < SLICE_NS:
            return bool(self.reqflags)
        return True

    # --- the loop's doorbell ---------------------------------------------------------------

    def kick(self) -> None:
        """Wake the CPU's loop if it is parked. The doorbell of IPIs and interrupts."""
        if self.loop_parked and self.loop_task is not None:
            self.loop_parked = False
            self.kicks += 1
            trio.lowlevel.reschedule(self.loop_task)

    def kick_stalled(self) -> None:
        """A token this CPU could not get has been released: let it elect again."""
        if self.stalled:
            self.stalled = False
            if self.curthread is None:
                self.kick()

    # --- stop and restart ------------------------------------------------------------------

    def stop(self) -> None:
        """Stop this CPU: no thread, interrupt or IPI runs on it until `restart`.

        Counterpart: stop_cpus().
        """
        self.stopped |= STOP.DEBUG
        for cpu in self.lwkt.cpus:
            cpu.kick_stalled()

    def restart(self) -> None:
        """Let a stopped CPU go on. Counterpart: restart_cpus()."""
        self.unstop(STOP.DEBUG)

    def unstop(self, reason: int) -> None:
        """Take one reason to be stopped away; when none is left the CPU goes on.

        Does nothing after a panic: what has stopped then never goes on.
        """
        if not self.stopped & reason or self.lwkt.panicked is not None:
            return
        self.stopped &= ~reason
        if self.stopped:
            return
        td = self.frozen
        if td is not None and td.task is not None:
            self.frozen = None
            trio.lowlevel.reschedule(td.task)
        self.kick()

    def has_work(self) -> bool:
        """Whether a step of this CPU would do anything."""
        if self.stopped:
            return self.stopped == STOP.CPUSYNC and bool(self.reqflags & RQF.IPIQ)
        if self.paused is not None or self.reqflags & RQF.PENDING or self.elected is not None:
            return True
        return bool(self.runmask) and not self.stalled
