"""The per-CPU scheduler: election, the loop, and the task driver.

Each logical `Cpu` elects the first thread of its highest non-empty run queue. Equal priorities go
round robin. Nobody else decides: trio only wakes the one task that its CPU has elected.

Who calls what:

* the CPU's **loop** (`Cpu.run`, driven by trio through `machine.Lwkt` or by the deterministic
  scheduler) steps coroutine threads one after the other;
* a **task thread** that suspends elects its successor itself (`task_switch`) and wakes it directly,
  so that a switch between two task threads costs one trio reschedule;
* an **interrupt** runs nested above whatever is elected (see `intr`).

Between election and resumption a task thread already holds its CPU and its tokens: interrupts that
arrive meanwhile run above it, other CPUs see its tokens taken. If its CPU is stopped meanwhile it
freezes as soon as it wakes, until the CPU is restarted.

Fairness towards the host: a loop returns after so many steps or 500 us, whichever is first; a task
thread that keeps electing itself takes a real trio checkpoint after 64 times or 500 us.

`Cpu.run` and `task_switch` are hot and written flat: no call, no attribute of a module and no test
more than the usual switch needs; whatever is unusual goes through `elect`.

Counterpart: lwkt_switch (kern/lwkt_thread.c) and struct globaldata (sys/globaldata.h).
Differs from DragonFly: a thread whose tokens are not to be had is passed over and its CPU is kicked
when a token is released, where DragonFly polls.
Invariants: the elected thread has all its tokens; `Cpu.run` is never entered twice for one CPU;
``curthread`` of an idle CPU is None; after a panic nothing is elected any more.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Final

import trio

from dfuser.libkern.errno import panic
from dfuser.libkern.ktr import KtrInfo

from . import thread as _thread
from .globaldata import RQF, SLICE_NS, STOP
from .intr import InterruptCpu
from .thread import HANDED, TDF, Thread
from .token import lwkt_getalltokens, lwkt_relalltokens

__all__ = ["RQF", "STOP", "Cpu", "Outcome"]


class Outcome:
    """How one call of `Cpu.run` ended."""

    IDLE: Final = 0
    MORE: Final = 1
    HANDED: Final = 2
    PAUSED: Final = 3


#: Task threads take a real trio checkpoint after this many switches that found nobody else.
_SELF_SWITCH_LIMIT: Final = 64
#: `Cpu.run` looks at the clock once in so many steps; after every step when the time since the last
#: look was long, and four times less often when it was short.
_LOOK_STEPS: Final = 8
_LONG_STEPS_NS: Final = 60_000
_SHORT_STEPS_NS: Final = 30_000

_reschedule = trio.lowlevel.reschedule
_checkpoint = trio.lowlevel.cancel_shielded_checkpoint
_TASK: Final = TDF.TASK


class Cpu(InterruptCpu):
    """One logical CPU. Counterpart: struct globaldata (sys/globaldata.h)."""

    __slots__ = ()

    ktr_switch = KtrInfo("ctxsw", "sw", "from %s (%d) to %s (%d) pri %d")
    ktr_idle = KtrInfo("ctxsw", "idle", "from %s (%d) to %s (%d) pri %d")

    # --- election --------------------------------------------------------------------------

    def elect(self, left: Thread | None = None) -> Thread | None:
        """Serve what is pending, then choose the next thread and take its tokens; None: idle.

        ``left`` is who gives the CPU away, for the trace; None: nobody, or one that has exited.
        """
        ktr = self.lwkt.ktr_ctxsw
        if self.reqflags:
            if self.reqflags & RQF.PENDING:
                if ktr.mask and left is not None:
                    self.trace_switch(left, None)
                    left = None
                self.splz()
            self.reqflags &= ~RQF.RESCHED
            if self.reqflags & RQF.STOPPED:
                if ktr.mask and left is not None:
                    self.trace_switch(left, None)
                return None
        mask = self.runmask
        while mask:
            pri = mask.bit_length() - 1
            for td in self.runq[pri]:
                if not td.toks or lwkt_getalltokens(td):
                    td.switches += 1
                    self.stalled = False
                    if ktr.mask:
                        self.trace_switch(left, td)
                    return td
                self.token_stalls += 1
            mask ^= 1 << pri
        self.stalled = self.runmask != 0
        if ktr.mask and left is not None:
            self.trace_switch(left, None)
        return None

    def trace_switch(self, left: Thread | None, came: Thread | None) -> None:
        """Note who has left the CPU and who has come; None is its idle thread.

        With the notes of preemptions, of returns from them and of exits (after which the CPU is
        idle) this is the exact sequence of the threads that have run.
        """
        point = self.ktr_idle if came is None else self.ktr_switch
        left = left or self.idle
        came = came or self.idle
        self.lwkt.ktr_ctxsw.log_cpu(
            self.cpuid, point, left.name, left.tid, came.name, came.tid, came.pri
        )

    def relalltokens(self, td: Thread) -> None:
        """The thread is about to suspend: release its tokens."""
        lwkt_relalltokens(td)

    # --- the loop --------------------------------------------------------------------------

    def run(self, budget: int, limit_ns: int = 0) -> int:
        """Step coroutine threads until there is nothing to do or the turn is over.

        The turn is over when a task thread has been elected, when a thread spins, and when
        ``budget`` steps or ``limit_ns`` nanoseconds (0: no limit) are used up.
        Returns an `Outcome`. Never suspends.
        """
        lwkt = self.lwkt
        ktr = lwkt.ktr_ctxsw
        runq = self.runq
        register = self.register
        prev = _thread.curthread
        self.slice_start = self.last_look = lwkt.clock.monotonic_ns() if limit_ns else -1
        steps = 1 if lwkt.measure_stretch else min(budget, _LOOK_STEPS)
        best = 0
        queue = runq[0]
        td = self._next()
        if td is None:
            return Outcome.IDLE if self.curthread is None else Outcome.HANDED
        try:
            while True:
                for left in range(steps - 1, -1, -1):
                    self.curthread = register["curthread"] = td
                    send = td.send  # a slot, not a method: in two steps it is faster
                    try:
                        handed = send(None)
                    except BaseException as exc:
                        self.curthread = None
                        self.body_ended(td, exc)
                    else:
                        if handed is not None:
                            if handed == HANDED:
                                return Outcome.HANDED
                            self.paused = td
                            return Outcome.PAUSED
                    # The election, written out for the usual case: nothing is pending, nobody
                    # traces and the first of the best queue has no tokens to wait for.
                    mask = self.runmask
                    if mask and not self.reqflags and not ktr.mask:
                        if mask != best:
                            best = mask
                            queue = runq[mask.bit_length() - 1]
                        td = queue[0]
                        if not td.toks:
                            td.switches += 1
                            continue
                    if not left:
                        break
                    left_td, self.curthread = self.curthread, None
                    td = self.elect(left_td)
                    if td is None:
                        return Outcome.IDLE
                else:
                    td.switches -= 1  # not elected yet: the clock comes first
                left_td, self.curthread = self.curthread, None
                budget -= steps
                steps = self._look_at_clock(budget, limit_ns)
                if not steps:
                    if ktr.mask and left_td is not None:
                        self.trace_switch(left_td, None)
                    return Outcome.MORE
                td = self.elect(left_td)
                if td is None:
                    return Outcome.IDLE
        finally:
            _thread.curthread = prev

    def _look_at_clock(self, budget: int, limit_ns: int) -> int:
        """The steps until the next look at the clock; 0: the turn is over.

        Looks again after every step when steps are long, or when their time is to be measured, and
        seldom when they are short.
        """
        if budget <= 0:
            return 0
        if not limit_ns:
            return min(budget, _LOOK_STEPS)
        lwkt = self.lwkt
        now = lwkt.clock.monotonic_ns()
        spent = now - self.last_look
        self.last_look = now
        if now - self.slice_start >= limit_ns:
            steps = 0
        elif lwkt.measure_stretch or spent > _LONG_STEPS_NS:
            steps = 1
        else:
            steps = min(budget, 4 * _LOOK_STEPS if spent < _SHORT_STEPS_NS else _LOOK_STEPS)
        if lwkt.measure_stretch:
            lwkt.note_stretch(spent)
        return steps

    def _next(self) -> Thread | None:
        """The thread to resume: one that spins, one handed over, or a newly elected one."""
        td = self.paused
        if td is not None:
            if self.reqflags & RQF.PENDING and (self.stopped or not td.critcount):
                self.splz()
            if self.stopped:
                return None
            self.paused = None
            return td
        td = self.elected
        if td is not None:
            if self.stopped:
                return None
            self.elected = None
            return td
        if self.curthread is not None:
            if self.reqflags & RQF.PENDING:
                self.splz()
            return None
        return self.elect()

    # --- task threads ----------------------------------------------------------------------

    def wake_task(self, td: Thread) -> None:
        """Let the elected task thread ``td`` run: it holds the CPU from here on.

        A thread whose trio task has not started yet finds that out when it starts.
        """
        self.curthread = td
        if td.task is not None:
            _reschedule(td.task, self.woken)

    def hand_over(self, left: Thread | None) -> Thread | None:
        """The task thread ``left`` gives the CPU away: elect the successor and return it.

        A coroutine thread is left to the loop; a task thread is marked as running and the caller
        wakes it (it may be the caller itself).
        """
        self.curthread = None
        ntd: Thread | None
        if not self.runmask or self.reqflags or self.lwkt.ktr_ctxsw.mask:
            ntd = self.elect(left)
        else:
            ntd = self.runq[self.runmask.bit_length() - 1][0]
            if ntd.toks:
                ntd = self.elect(left)
            else:
                ntd.switches += 1
        if ntd is not None:
            if ntd.flags & _TASK:
                self.curthread = ntd
            else:
                self.elected = ntd
                self.kick()
        return ntd

    def task_switch(self, td: Thread) -> Generator[Any, Any, None]:
        """The task driver's half of `switch`."""
        ntd = self.hand_over(td)
        self.register["curthread"] = self.idle
        if ntd is td:
            self.self_switches += 1
            if self.self_switches < _SELF_SWITCH_LIMIT and not self._slice_used():
                self.register["curthread"] = td
                return
            yield from _checkpoint().__await__()
        else:
            if ntd is not None and ntd.task is not None and ntd.flags & _TASK:
                _reschedule(ntd.task, self.woken)
            try:
                answer = yield td.trap
                if answer is not self.woken:
                    answer.unwrap()
            except BaseException:  # trio ends the task of a machine that has panicked
                self.register["curthread"] = td
                raise
        cpu = td.cpu
        if cpu.reqflags and cpu.stopped:
            yield from cpu.freeze(td)
        cpu.task_resumed(td)

    def _slice_used(self) -> bool:
        """Whether the running task thread has kept the host from its turn for 500 us."""
        now = self.lwkt.clock.monotonic_ns()
        if self.slice_start < 0:
            self.slice_start = now
        return now - self.slice_start >= SLICE_NS

    def task_resumed(self, td: Thread) -> None:
        """The elected task thread has got the host's thread."""
        self.register["curthread"] = td
        self.self_switches = 0
        self.slice_start = -1
        if self.curthread is not td:
            panic(f"{td} woke without being elected")

    def freeze(self, td: Thread) -> Generator[Any, Any, None]:
        """The elected thread found its CPU stopped: wait for the restart."""
        while self.stopped:
            self.frozen = td
            yield from park(td)

    def task_pause(self, td: Thread) -> Generator[Any, Any, None]:
        """The task driver's half of `cpu_pause`."""
        if not td.critcount and self.reqflags & RQF.PENDING:
            self.splz()
        _thread.curthread = self.idle
        yield from _checkpoint().__await__()
        if self.reqflags & RQF.PENDING and (self.stopped or not td.critcount):
            self.splz()
        if self.stopped:
            yield from self.freeze(td)
        _thread.curthread = td

    def task_start(self, td: Thread) -> Generator[Any, Any, None]:
        """The trio task of a new thread has started: wait for the first election."""
        if self.curthread is not td:
            yield from park(td)
        cpu = td.cpu
        if cpu.stopped:
            yield from cpu.freeze(td)
        cpu.task_resumed(td)

    def task_exit(self, td: Thread, clean: bool = False) -> None:
        """A task thread's body has ended: give the CPU to the next one without parking."""
        mine = self.curthread is td
        try:
            self.thread_exited(td, clean)
        finally:
            _thread.curthread = self.idle
            if mine and not self.lwkt.panicked:
                ntd = self.hand_over(None)
                if ntd is not None and not ntd.coro and ntd.task is not None:
                    _reschedule(ntd.task, self.woken)


def park_trap(abort: Callable[[Any], trio.lowlevel.Abort]) -> Any:
    """What a task yields to trio to be parked; trio calls ``abort`` if it is cancelled meanwhile.

    It is what ``wait_task_rescheduled`` yields, asked of that function once for each thread. Making
    its two coroutines and the object anew, and an outcome for each waking, would be a third of what
    a switch between two tasks costs.
    """
    waiting = trio.lowlevel.wait_task_rescheduled(abort)  # noqa: ASYNC105 - driven by hand
    trap = waiting.send(None)
    waiting.close()
    return trap


def park(td: Thread) -> Generator[Any, Any, None]:
    """Park the task of ``td`` until somebody reschedules it."""
    answer = yield td.trap
    if answer is not td.cpu.woken:
        answer.unwrap()  # raises what trio has sent to end the task


def mycpu() -> Cpu:
    """The CPU of the running thread. Counterpart: mycpu."""
    return _thread.curthread.cpu
