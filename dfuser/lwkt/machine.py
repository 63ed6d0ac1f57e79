"""The machine: all logical CPUs of one kernel and the threads on them.

`Lwkt` is what a kernel boots first and stops last. It creates threads, adopts trio tasks as
threads, runs the CPUs' loops, and can run the whole kernel without any event loop at all
(`run_until_idle`), one step at a time, in an order chosen by a seed, on virtual time.

How a machine ends. `shutdown` ends every thread: it is marked KILLED, taken out of whatever it
sleeps on and made runnable; when it is elected it unwinds by `ThreadKilled`, holding its tokens, on
its own CPU, so its ``finally`` clauses run as ordinary kernel code. Cancelling the nursery the
machine was started in does the same. After a panic nothing is elected any more; parked tasks are
released by trio's cancellation.

Counterpart: the machine-independent halves of sys/kern/lwkt_thread.c (lwkt_create, lwkt_exit,
lwkt_schedule, lwkt_migratecpu) and platform/vkernel64/platform/machdep.c.
Differs from DragonFly: logical CPUs are ordering, ownership and accounting. All of them share one
host thread, so more CPUs are never faster.
Token/lock order: takes none.
Invariants: every thread of the machine is in ``threads`` from `create` to its exit; nothing
survives `shutdown`: no thread, no task, no coroutine.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

import attrs
import trio

from dfuser.libkern.ddbcmd import ddb_show
from dfuser.libkern.errno import EINTR, KError, Panic, panic
from dfuser.libkern.ktr import Ktr, KtrInfo
from dfuser.libkern.param import HZ, NSEC_PER_TICK
from dfuser.libkern.sysctl import INT, LONG, QUAD, RD, RW, Sysctl

from . import thread as _thread
from .globaldata import SLICE_NS
from .ipiq import Ipiqs, apply_args
from .sched import Cpu, Outcome
from .synch import abort_sleep
from .thread import TDF, TDPRI, Thread, ThreadKilled
from .token import TokenSet

if TYPE_CHECKING:
    from dfuser.hw.clock import Alarm, Clock
    from dfuser.libkern.log import MsgBuf

R = TypeVar("R")

#: Steps a CPU's loop makes before it lets the host's event loop have a turn.
LOOP_BUDGET: Final = 1024
#: How often `shutdown` ends threads that go on sleeping while they unwind.
KILL_ROUNDS: Final = 8
_NOT_TO_WAKE: Final = TDF.WAKEREQ | TDF.RUNQ | TDF.EXITING
#: Seconds before the second round; each round waits twice as long.
_FIRST_ROUND_S: Final = 0.05
#: How often a cancelled loop ends threads again before it lets itself be cancelled.
_CANCEL_ROUNDS: Final = 100


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


class Lwkt:
    """The LWKT subsystem of one kernel.

    Args:
        ncpu: logical CPUs.
        clock: time source; its alarms arrive as interrupts.
        ktr: the trace rings.
        msgbuf: the kernel log.
        on_failure: called when a thread dies of an exception or an interrupt handler raises.
        default_driver: "task" (trio tasks, needs `start`) or "coro" (deterministic).
        seed: orders the turns of `run_until_idle` when the caller gives no order of his own.
    """

    ktr_switch = KtrInfo("ctxsw", "sw", "cpu%d to %s pri %d")
    ktr_newtd = KtrInfo("ctxsw", "newtd", "%s")
    sysctls = (
        Sysctl("lwkt.switch_count", "Number of switched threads", getter="_sum_switches",
               kind=QUAD, flags=RD),
        Sysctl("lwkt.preempt_hit", "Successful preemption events", getter="_sum_preempt_hit",
               kind=QUAD, flags=RD),
        Sysctl("lwkt.preempt_miss", "Failed preemption events", getter="_sum_preempt_miss",
               kind=QUAD, flags=RD),
        Sysctl("lwkt.preempt_weird", "Number of preempted threads.", getter="_sum_preempt_weird",
               kind=QUAD, flags=RD),
        Sysctl("lwkt.preempt_enable", "Enable preemption", attr="preempt_enable", kind=INT,
               flags=RW, minimum=0, maximum=1),
        Sysctl("lwkt.token_stalls", "Elections that passed a thread over for a token",
               getter="_sum_token_stalls", kind=QUAD, flags=RD),
        Sysctl("lwkt.stretch_enable", "Measure the time between preemption points",
               attr="measure_stretch", kind=INT, flags=RW, minimum=0, maximum=1),
        Sysctl("lwkt.stretch_max_ns", "Longest time without a preemption point",
               attr="longest_stretch", kind=LONG, flags=RW),
    )  # fmt: skip

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
        self._nursery: trio.Nursery | None = None
        self._empty: trio.Event | None = None
        self.cpus: tuple[Cpu, ...] = tuple(Cpu(self, i) for i in range(ncpu))
        self.ipiqs = Ipiqs(self)
        self.tokens = TokenSet(self)
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

    def create(
        self,
        func: Callable[..., Awaitable[Any]],
        *args: Any,
        name: str = "",
        pri: int = TDPRI.KERN_DAEMON,
        cpu: int | None = None,
        driver: str | None = None,
        start: bool = True,
        interrupt: bool = False,
    ) -> Thread:
        """Create a thread that runs ``await func(*args)`` on ``cpu`` (the caller's by default).

        With ``start=False`` it stays off the run queue until `schedule`. ``interrupt=True`` makes
        an interrupt thread, which may preempt and always uses the coro driver.
        Counterpart: lwkt_create.
        """
        home = self.cpus[cpu] if cpu is not None else self.mycpu()
        td = self.new_thread(home, name or getattr(func, "__name__", "thread"), pri)
        td.func = func
        td.args = args
        if interrupt:
            td.flags |= TDF.INTTHREAD
        self.set_driver(td, "coro" if interrupt else driver)
        if start:
            self.schedule(td)
        return td

    def set_driver(self, td: Thread, driver: str | None) -> None:
        """Choose how a new thread is driven; without a nursery only "coro" is possible."""
        nursery = self._nursery
        td.coro = nursery is None or (driver or self.default_driver) == "coro"
        if not td.coro:
            assert nursery is not None
            td.abort = functools.partial(self._task_cancelled, td)
            nursery.start_soon(self._task_main, td, name=f"lwkt:{td.name}")

    def new_thread(self, cpu: Cpu, name: str, pri: int, flags: int = 0) -> Thread:
        """A thread without a body, on the list of threads. Counterpart: lwkt_init_thread."""
        if not 0 <= pri <= TDPRI.MAX:
            panic(f"lwkt_create: priority {pri} of {name} is not between 0 and {TDPRI.MAX}")
        self.created += 1
        td = Thread(cpu, self.created, name, pri, flags | (TDF.KILLED if self.stopping else 0))
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
        if self.stopping and not self.threads:
            if self._empty is not None:
                self._empty.set()
            for cpu in self.cpus:
                cpu.kick()

    async def _task_main(self, td: Thread) -> None:
        """The trio task of a task thread."""
        td.task = trio.lowlevel.current_task()
        clean = False
        try:
            await _as_awaitable(td.cpu.task_start(td))
            if td.flags & TDF.KILLED:
                raise ThreadKilled
            td.result = await td.make_body()
            clean = True
        except ThreadKilled:
            pass
        except Exception as exc:
            self.thread_died(td, exc)
        except trio.Cancelled:
            raise
        except BaseException as exc:
            self.note_panic(td, exc)
            raise
        finally:
            td.cpu.task_exit(td, clean)

    def _task_cancelled(self, td: Thread, _raise_cancel: Any) -> trio.lowlevel.Abort:
        """The host cancels the task of a parked thread.

        An adopted thread has its sleep ended with EINTR and unwinds by itself. Cancelling one of
        the machine's own means that the machine goes down.
        """
        if self.panicked is not None:
            return trio.lowlevel.Abort.SUCCEEDED
        if not td.flags & TDF.ADOPTED:
            self.kill_threads()
        else:
            abort_sleep(td, EINTR)
        return trio.lowlevel.Abort.FAILED

    async def adopt(
        self,
        func: Callable[..., Awaitable[R]],
        *args: Any,
        name: str,
        pri: int = TDPRI.KERN_USER,
        cpu: int = 0,
        lwp: Any = None,
    ) -> R:
        """Run ``func(*args)`` with the calling trio task as an LWKT thread, and return its result.

        This is how a request from the host that must wait becomes visible and schedulable. When
        trio cancels the task, an interruptible sleep of the thread ends with EINTR; the thread goes
        on to its end and the cancellation is delivered at the task's next checkpoint.

        Raises:
            KError: EINTR, the machine is being shut down.
        """
        before = _thread.curthread
        clean = False
        td = self.new_thread(self.cpus[cpu], name, pri, TDF.ADOPTED)
        td.coro = False
        td.lwp = lwp
        td.task = trio.lowlevel.current_task()
        td.abort = functools.partial(self._task_cancelled, td)
        if lwp is not None:
            lwp.thread = td
        self.schedule(td)
        try:
            await _as_awaitable(td.cpu.task_start(td))
            if td.flags & TDF.KILLED:
                raise ThreadKilled
            result = await func(*args)
            clean = True
            return result
        except ThreadKilled:
            raise KError(EINTR, "the kernel is being shut down") from None
        except Panic as exc:
            self.note_panic(td, exc)
            raise
        finally:
            td.cpu.task_exit(td, clean)
            _thread.curthread = before

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

    def note_panic(self, td: Thread, exc: BaseException) -> None:
        """A thread has panicked: remember it, elect nobody any more."""
        if self.panicked is None:
            self.panicked = exc
            self.panic_thread = td
        for cpu in self.cpus:
            cpu.stop()

    def thread_died(self, td: Thread, exc: BaseException) -> None:
        """A thread's body raised: report it; the kernel decides whether that is a panic."""
        if self.on_failure is None:
            raise exc
        self.on_failure(f"thread {td.name} (tid {td.tid})", exc)

    def interrupt_failed(self, cpuid: int, fn: Callable[..., Any], exc: BaseException) -> None:
        """An interrupt handler or an IPI function raised."""
        if self.on_failure is None:
            raise exc
        self.on_failure(f"interrupt {getattr(fn, '__qualname__', fn)} on cpu{cpuid}", exc)

    # --- running under trio ----------------------------------------------------------------

    async def start(self, nursery: trio.Nursery) -> None:
        """Start one loop a CPU in ``nursery``; threads with the task driver live there too."""
        self._nursery = nursery
        for cpu in self.cpus:
            await nursery.start(self._cpu_loop, cpu)

    async def _cpu_loop(
        self, cpu: Cpu, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        cpu.loop_task = trio.lowlevel.current_task()
        task_status.started()
        rounds = 0

        def cancelled(_raise_cancel: Any) -> trio.lowlevel.Abort:
            nonlocal rounds
            rounds += 1
            if self.panicked is not None or not self.threads or rounds > _CANCEL_ROUNDS:
                return trio.lowlevel.Abort.SUCCEEDED
            self.kill_threads()
            return trio.lowlevel.Abort.FAILED

        try:
            while not (self.stopping and not self.threads) and self.panicked is None:
                busy = sum(not other.loop_parked for other in self.cpus)
                outcome = cpu.run(LOOP_BUDGET, SLICE_NS // busy)
                if outcome in (Outcome.MORE, Outcome.PAUSED):
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    if not self.stopping and trio.current_effective_deadline() < 0:
                        self.kill_threads()
                elif not (self.stopping and not self.threads):
                    cpu.loop_parked = True
                    await trio.lowlevel.wait_task_rescheduled(cancelled)
        finally:
            cpu.loop_parked = False
            cpu.loop_task = None

    # --- running without an event loop -----------------------------------------------------

    def run_until_idle(
        self,
        rng: random.Random | None = None,
        choose: Callable[[list[Cpu]], Cpu] | None = None,
        max_steps: int = 10_000_000,
    ) -> int:
        """Run every CPU without an event loop until none has work; returns the steps made.

        CPUs with work take turns one step at a time: in order, in the order ``rng`` (or the
        machine's seed) draws, or as ``choose`` picks. Time does not advance. Panics after
        ``max_steps``.
        """
        steps = 0
        turn = 0
        rng = rng or self.rng
        cpus = self.cpus
        while True:
            ready = [cpu for cpu in cpus if cpu.has_work()]
            if not ready:
                return steps
            if choose is not None:
                cpu = choose(ready)
            elif rng is not None:
                cpu = ready[int(rng.random() * len(ready))]
            else:
                cpu = ready[turn % len(ready)]
                turn += 1
            cpu.run(1)
            steps += 1
            if steps >= max_steps:
                panic(f"run_until_idle: still busy after {max_steps} steps")

    # --- the end ---------------------------------------------------------------------------

    def kill_threads(self) -> None:
        """End every thread but the running one: wake it wherever it waits, so that it unwinds.

        Only marks and wakes; `shutdown` waits for the end.
        """
        self.stopping = True
        for td in list(self.threads.values()):
            if td is _thread.curthread or td.flags & TDF.EXITING:
                continue
            if td.flags & TDF.KILLED:
                td.flags &= ~TDF.MIGRATING  # given away and never acquired
            td.flags |= TDF.KILLED
            self.ipiqs.forget(td)
            td.cpu.schedule_local(td)

    def shutdown_nowait(self) -> None:
        """End all threads of a machine that no event loop runs, and close what a panic left."""
        self._tick.cancel()
        if self.panicked is not None:
            self._close_bodies()
            self._leave()
            return
        for cpu in self.cpus:
            cpu.restart()
        self.kill_threads()
        for _ in range(KILL_ROUNDS):
            self.run_until_idle()
            if not self.threads:
                self._leave()
                return
            self.kill_threads()
        panic(f"shutdown: threads do not end: {list(self.threads.values())}")

    async def shutdown(self) -> None:
        """End all threads and the CPUs' loops; returns when nothing is left.

        The caller must not be a thread of this machine. Without `start` it does not suspend.
        """
        if self._nursery is None or self.panicked is not None:
            self.shutdown_nowait()
            return
        self._tick.cancel()
        self._empty = trio.Event()
        for cpu in self.cpus:
            cpu.restart()
        self.kill_threads()
        for cpu in self.cpus:
            cpu.kick()
        for number in range(KILL_ROUNDS):
            if not self.threads:
                break
            with trio.move_on_after(_FIRST_ROUND_S * 2**number):
                await self._empty.wait()
                break
            self.kill_threads()
        if self.threads:
            panic(f"shutdown: threads do not end: {list(self.threads.values())}")
        while any(cpu.loop_task is not None for cpu in self.cpus):
            await trio.lowlevel.checkpoint()
        self._leave()

    def _leave(self) -> None:
        """The machine is dead: `curthread` must not keep it alive."""
        if any(_thread.curthread is cpu.idle for cpu in self.cpus):
            _thread.curthread = cast("Thread", None)

    def _close_bodies(self) -> None:
        """After a panic: close the coroutines that will never run again."""
        for td in list(self.threads.values()):
            body, td.body = td.body, None
            if body is not None and td.coro:
                _thread.curthread = td
                try:
                    body.close()
                except RuntimeError:
                    self.msgbuf.kprintf(f"thread {td.name} did not let itself be closed")
            self.forget_thread(td)
        _thread.curthread = self.cpus[0].idle

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

    def trace_switch(self, cpuid: int, td: Thread) -> None:
        """Log a switch to the trace ring."""
        self.ktr_ctxsw.log_cpu(cpuid, self.ktr_switch, cpuid, td.name, td.pri)

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


class _as_awaitable:
    """Lets a trap generator of the task driver be awaited."""

    __slots__ = ("_gen",)

    def __init__(self, gen: Any) -> None:
        self._gen = gen

    def __await__(self) -> Any:
        return self._gen
