"""What a machine is, apart from running it: its CPUs, its threads, its tick and its counters.

`LwktCore` owns everything there is one of in a kernel's LWKT and the operations that need no event
loop: putting a thread on the list, making it runnable on whatever CPU it belongs to, changing its
priority, reporting failures, printing. `machine.Lwkt` is built on it and adds what runs threads.

The scheduler's tick is not periodic: it is armed while some CPU has two runnable threads of one
priority, or while passive IPIs wait, and comes as an interrupt of the CPUs concerned.

Counterpart: the machine-independent halves of kern/lwkt_thread.c; hardclock for the tick.
Token/lock order: takes none.
Invariants: every thread of the machine is in ``threads`` from `new_thread` to its exit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import attrs
import outcome

from dfuser.libkern.ddbcmd import ddb_show
from dfuser.libkern.errno import panic
from dfuser.libkern.ktr import Ktr, KtrInfo
from dfuser.libkern.param import HZ, NSEC_PER_TICK

from . import thread as _thread
from .intr import interrupt_name
from .ipiq import Ipiqs, apply_args
from .sched import Cpu
from .thread import TDF, TDPRI, Thread
from .token import TokenSet

if TYPE_CHECKING:
    from dfuser.hw.clock import Alarm, Clock
    from dfuser.libkern.log import MsgBuf

    from .machine import Lwkt

_NOT_TO_WAKE: Final = TDF.WAKEREQ | TDF.RUNQ | TDF.EXITING


class PanicHandler(Protocol):
    """What the machine needs from its owner when a thread or an interrupt handler fails."""

    def __call__(self, where: str, exc: BaseException) -> None:
        """Report ``exc``, met in ``where``; may raise `Panic`."""


@attrs.frozen
class LwktStatistics:
    """What `Lwkt.statistics` returns; counters since boot."""

    ncpu: int
    threads: int
    created: int
    exited: int
    switches: int
    interrupts: int
    kicks: int
    preempt_hit: int
    preempt_miss: int
    preempt_weird: int
    token_stalls: int
    hardclocks: int
    longest_stretch_ns: int


class LwktCore:
    """CPUs, threads, tick and counters of one kernel. Base of `machine.Lwkt`.

    Args:
        ncpu: logical CPUs.
        clock: time source; its alarms arrive as interrupts.
        ktr: the trace rings.
        msgbuf: the kernel log.
        on_failure: called when a thread dies of an exception, an interrupt handler raises, or
            anything panics; without it all of these leave the code that ran the machine.
        default_driver: "task" (trio tasks, needs `start`) or "coro" (deterministic).
        seed: orders the turns of `run_until_idle` when the caller gives no order of his own.
    """

    ktr_newtd = KtrInfo("ctxsw", "newtd", "%s")

    def __init__(
        self,
        ncpu: int,
        clock: Clock,
        ktr: Ktr,
        msgbuf: MsgBuf,
        on_failure: PanicHandler | None = None,
        default_driver: str = "coro",
        seed: int | None = None,
    ) -> None:
        if ncpu < 1:
            raise ValueError(f"a machine needs at least one CPU, not {ncpu}")
        self.clock = clock
        self.ktr = ktr
        self.ktr_ctxsw = ktr.master("ctxsw")
        self.ktr_tokens = ktr.master("tokens")
        self.msgbuf = msgbuf
        self.on_failure = on_failure
        self.default_driver = default_driver
        self.rng = random.Random(seed) if seed is not None else None
        self.threads: dict[int, Thread] = {}
        self.created = 0
        self.exited = 0
        self.preempt_enable = 1
        self.cpusync_tickets = 0
        self.measure_stretch = 0
        self.longest_stretch = 0
        #: What stopped the kernel, and the thread it happened in.
        self.panicked: BaseException | None = None
        self.panic_thread: Thread | None = None
        #: Threads are being ended; new ones end as soon as they start.
        self.stopping = False
        self.tick_ns = NSEC_PER_TICK
        self.ticking = False
        self.hardclocks = 0
        self._tick: Alarm = clock.alarm(self._hardclock)
        #: What a task thread is woken with. It is known by identity and never unwrapped, so one
        #: serves for all; it is one for all CPUs because a thread may wake on another one.
        self.woken = outcome.Value(None)
        me = cast("Lwkt", self)
        self.cpus: tuple[Cpu, ...] = tuple(Cpu(me, i) for i in range(ncpu))
        self.ipiqs = Ipiqs(me)
        self.tokens = TokenSet(me)
        ktr.declare(Cpu)
        ktr.curcpu = self._curcpu
        _thread.curthread = self.cpus[0].idle

    def _curcpu(self) -> int:
        return self.mycpu().cpuid

    # --- time ------------------------------------------------------------------------------

    @property
    def ticks(self) -> int:
        """Clock ticks since boot, `HZ` a second."""
        return self.clock.monotonic_ns() * HZ // 1_000_000_000

    def start_tick(self) -> None:
        """Have the scheduler's tick come while it is of use.

        That is while CPUs are contended or passive IPIs wait. An idle machine has no tick.
        """
        if not self.ticking:
            self.ticking = True
            self._tick.arm(self.clock.monotonic_ns() + self.tick_ns)

    def _hardclock(self) -> None:
        """The tick, as an interrupt of every CPU that has a use for it."""
        self.ticking = False
        self.hardclocks += 1
        again = False
        for cpu in self.cpus:
            if cpu.contended or cpu.ipimask:
                again = again or cpu.contended
                cpu.interrupt(self._schedulerclock, cpu)
        if again and not self.panicked:
            self.start_tick()

    def _schedulerclock(self, cpu: Cpu) -> None:
        cpu.tick_start = self.clock.monotonic_ns()
        cpu.schedulerclock()
        if cpu.ipimask and not cpu.npoll:
            self.ipiqs.process(cpu)

    # --- threads ---------------------------------------------------------------------------

    def new_thread(self, cpu: Cpu, name: str, pri: int, flags: int = 0) -> Thread:
        """A thread without a body, on the list of threads. Counterpart: lwkt_init_thread."""
        if not 0 <= pri <= TDPRI.MAX:
            panic(f"lwkt_create: priority {pri} of {name} is not between 0 and {TDPRI.MAX}")
        self.created += 1
        td = Thread(cpu, self.created, name, pri, flags)
        if self.stopping:
            td.kill()
        self.threads[td.tid] = td
        if self.ktr_ctxsw.mask:
            self.ktr_ctxsw.log_cpu(cpu.cpuid, self.ktr_newtd, name)
        return td

    def new_borrowed(self, cpu: Cpu) -> Thread:
        """A fresh context for `Cpu.borrow`."""
        return Thread(cpu, 0, "request", TDPRI.KERN_USER, TDF.BORROWED)

    def forget_thread(self, td: Thread) -> None:
        """Take an exited thread off the list of threads."""
        if self.threads.pop(td.tid, None) is None:
            return
        self.exited += 1
        td.cpu.switches_gone += td.switches
        if self.stopping and not self.threads:
            self.all_gone()

    def all_gone(self) -> None:
        """The last thread of a machine that is being shut down has gone: the loops may end."""
        for cpu in self.cpus:
            cpu.kick()

    def schedule(self, td: Thread) -> None:
        """Make ``td`` runnable on its own CPU, by IPI when that is not the running one.

        Counterpart: lwkt_schedule.
        """
        cpu = td.cpu
        cur: Any = _thread.curthread
        if cur is None or cur.cpu is cpu or cur.cpu.lwkt is not self:
            cpu.schedule_local(td)
        elif not td.flags & _NOT_TO_WAKE:
            self.ipiqs.send_wakereq(cur.cpu, td)

    def send_ipiq_nowait(self, target: Cpu, func: Callable[..., object], *args: Any) -> None:
        """Have ``target`` run ``func(*args)`` as an IPI; for plain code, never refused.

        On the own CPU it runs at once, in a critical section. See `ipiq.Ipiqs.post`.
        """
        self.ipiqs.post(self.mycpu(), target, apply_args, func, args)

    def set_cpu(self, td: Thread, cpu: Cpu) -> None:
        """Give ``td`` to another CPU; its switches stay with the one that made them."""
        td.cpu.switches_gone += td.switches
        cpu.switches_gone -= td.switches
        td.cpu = cpu

    def setpri(self, td: Thread, pri: int) -> None:
        """Change a thread's priority; it does not switch. A runnable thread must be on this CPU.

        Counterpart: lwkt_setpri, lwkt_setpri_initial.
        """
        if not 0 <= pri <= TDPRI.MAX:
            panic(f"lwkt_setpri: priority {pri} of {td.name} is not between 0 and {TDPRI.MAX}")
        if td.pri == pri:
            return
        if td.flags & TDF.RUNQ:
            if _thread.curthread.cpu is not td.cpu:
                panic(f"lwkt_setpri: {td} is runnable on another CPU")
            td.cpu.runq_remove(td)
            td.pri = pri
            td.cpu.runq_enqueue(td)
        else:
            td.pri = pri

    def mycpu(self) -> Cpu:
        """The CPU of the running thread; CPU 0 outside any thread of this kernel."""
        cur: Any = _thread.curthread
        if cur is None or cur.cpu.lwkt is not self:
            return self.cpus[0]
        cpu: Cpu = cur.cpu
        return cpu

    # --- failures --------------------------------------------------------------------------

    def note_panic(self, td: Thread | None, exc: BaseException, where: str = "") -> None:
        """The machine has panicked, in ``td``: elect nobody any more, and tell the owner.

        Only the first panic counts; it is reported once. No CPU is restarted after it.
        """
        if self.panicked is not None:
            return
        self.panicked = exc
        self.panic_thread = td
        for cpu in self.cpus:
            cpu.stop()
        if self.on_failure is not None:
            self.on_failure(where or _thread_name(td), exc)

    def thread_died(self, td: Thread, exc: BaseException) -> None:
        """A thread's body raised: report it; the kernel decides whether that is a panic."""
        if self.on_failure is None:
            raise exc
        self.on_failure(_thread_name(td), exc)

    def interrupt_failed(self, cpuid: int, fn: Callable[..., Any], exc: BaseException) -> None:
        """An interrupt handler or an IPI function raised."""
        if self.on_failure is None:
            raise exc
        self.on_failure(interrupt_name(cpuid, fn), exc)

    # --- looking ---------------------------------------------------------------------------

    def sysctl_owners(self) -> Iterator[object]:
        """The objects whose sysctl variables belong into the kernel's tree."""
        yield self
        yield self.ipiqs
        yield from self.tokens

    @ddb_show("threads")
    def db_threads(self) -> list[str]:
        """Every thread: CPU, priority, state, what it waits for, name, tokens."""
        return [
            f"cpu{td.cpu.cpuid} tid {td.tid} pri {td.pri} {td.state} "
            f"{td.wmesg or '-'} {td.name} [{' '.join(ref.tok.name for ref in td.toks)}]"
            for td in self.threads.values()
        ]

    @ddb_show("ipiq")
    def db_ipiq(self) -> list[str]:
        """Every ring that has been used: sent, taken, run, parked senders."""
        return [
            f"{ring.src.cpuid}->{ring.dst.cpuid} windex={ring.windex} rindex={ring.rindex} "
            f"xindex={ring.xindex} fifofull={ring.fifofull} waiters={len(ring.waiters)}"
            for row in self.ipiqs.rings
            for ring in row
            if ring.windex
        ]

    # --- statistics ------------------------------------------------------------------------

    def note_stretch(self, ns: int) -> None:
        """A thread ran so long without a preemption point."""
        self.longest_stretch = max(self.longest_stretch, ns)

    def _sum_switches(self) -> int:
        return sum(cpu.switches for cpu in self.cpus)

    def _sum_preempt_hit(self) -> int:
        return sum(cpu.preempt_hit for cpu in self.cpus)

    def _sum_preempt_miss(self) -> int:
        return sum(cpu.preempt_miss for cpu in self.cpus)

    def _sum_preempt_weird(self) -> int:
        return sum(cpu.preempt_weird for cpu in self.cpus)

    def _sum_token_stalls(self) -> int:
        return sum(cpu.token_stalls for cpu in self.cpus)

    def statistics(self) -> LwktStatistics:
        """Counters of all CPUs."""
        cpus = self.cpus
        return LwktStatistics(
            ncpu=len(cpus),
            threads=len(self.threads),
            created=self.created,
            exited=self.exited,
            switches=self._sum_switches(),
            interrupts=sum(c.interrupts for c in cpus),
            kicks=sum(c.kicks for c in cpus),
            preempt_hit=self._sum_preempt_hit(),
            preempt_miss=self._sum_preempt_miss(),
            preempt_weird=self._sum_preempt_weird(),
            token_stalls=self._sum_token_stalls(),
            hardclocks=self.hardclocks,
            longest_stretch_ns=self.longest_stretch,
        )


def _thread_name(td: Thread | None) -> str:
    """How a report names the thread that failed."""
    return f"thread {td.name} (tid {td.tid})" if td is not None else "the machine"
