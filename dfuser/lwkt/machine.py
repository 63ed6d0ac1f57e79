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
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, cast

import trio

from dfuser.libkern.errno import EINTR, KError, Panic, panic
from dfuser.libkern.sysctl import INT, LONG, QUAD, RD, RW, Sysctl

from . import thread as _thread
from .core import LwktCore
from .globaldata import SLICE_NS
from .sched import Cpu, Outcome, park_trap
from .synch import abort_sleep
from .thread import TDF, TDPRI, Thread, ThreadKilled

R = TypeVar("R")

#: Steps a CPU's loop makes before it lets the host's event loop have a turn.
LOOP_BUDGET: Final = 1024
#: How often `shutdown` ends threads that go on sleeping while they unwind.
KILL_ROUNDS: Final = 8
#: Seconds before the second round; each round waits twice as long.
_FIRST_ROUND_S: Final = 0.05
#: How often a cancelled loop ends threads again before it lets itself be cancelled.
_CANCEL_ROUNDS: Final = 100


class Lwkt(LwktCore):
    """The LWKT subsystem of one kernel. Its arguments are those of `LwktCore`."""

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

    #: Where the loops and the tasks of threads live; None while no event loop runs the machine.
    _nursery: trio.Nursery | None = None
    #: Set when the last thread of a machine in `shutdown` has gone.
    _empty: trio.Event | None = None

    def all_gone(self) -> None:
        """The last thread has gone: `shutdown` and the loops go on."""
        if self._empty is not None:
            self._empty.set()
        super().all_gone()

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
        if nursery is not None and (driver or self.default_driver) != "coro":
            td.use_task()
            td.trap = park_trap(functools.partial(self._task_cancelled, td))
            nursery.start_soon(self._task_main, td, name=f"lwkt:{td.name}")

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
            if self.on_failure is None or not isinstance(exc, Panic):
                raise
        finally:
            self._end_task(td, clean)

    def _end_task(self, td: Thread, clean: bool) -> None:
        """The body of a task thread of the machine has ended."""
        try:
            td.cpu.task_exit(td, clean)
        except Panic as exc:
            self.note_panic(td, exc)
            if self.on_failure is None:
                raise

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
            KError: EINTR, the machine is being shut down or has panicked.
        """
        if self.panicked is not None:
            raise KError(EINTR, "the kernel has panicked")
        clean = False
        td = self.new_thread(self.cpus[cpu], name, pri, TDF.ADOPTED)
        td.use_task()
        td.lwp = lwp
        td.task = trio.lowlevel.current_task()
        td.trap = park_trap(functools.partial(self._task_cancelled, td))
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
                cpu.loop_parked = False  # trio wakes it: nobody else may
                return trio.lowlevel.Abort.SUCCEEDED
            self.kill_threads()
            return trio.lowlevel.Abort.FAILED

        try:
            while not self._over():
                busy = sum(not other.loop_parked for other in self.cpus)
                outcome = cpu.run(LOOP_BUDGET, SLICE_NS // busy)
                if outcome in (Outcome.MORE, Outcome.PAUSED):
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    if not self.stopping and trio.current_effective_deadline() < 0:
                        self.kill_threads()
                elif not self._over():
                    cpu.loop_parked = True
                    await trio.lowlevel.wait_task_rescheduled(cancelled)
        except Panic as exc:
            self.note_panic(None, exc, f"cpu{cpu.cpuid}")
            if self.on_failure is None:
                raise
        finally:
            cpu.loop_parked = False
            cpu.loop_task = None

    def _over(self) -> bool:
        """Whether the loops have no more to do: a panic, or the last thread of a stop has gone."""
        return self.panicked is not None or (self.stopping and not self.threads)

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
            td.kill()
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
                except (Exception, Panic, ThreadKilled) as exc:
                    self.msgbuf.kprintf(f"thread {td.name} did not let itself be closed: {exc!r}")
            self.forget_thread(td)
        _thread.curthread = self.cpus[0].idle


class _as_awaitable:
    """Lets a trap generator of the task driver be awaited."""

    __slots__ = ("_gen",)

    def __init__(self, gen: Any) -> None:
        self._gen = gen

    def __await__(self) -> Any:
        return self._gen
