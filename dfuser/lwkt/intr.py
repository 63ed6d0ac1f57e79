"""Interrupts, pending work, preemption and borrowed contexts of one CPU.

An **interrupt** (`InterruptCpu.interrupt`) is how anything from outside reaches the kernel: the
clock, a finished disk operation, a packet, and the doorbell of another CPU's IPIs. Its handler is a
plain function, runs nested above whatever is elected with the critical count raised, and never
suspends; usually it makes a thread runnable. If the CPU is in a critical section the interrupt is
kept and runs when the section ends (`splz`).

An **interrupt thread** (``TDF.INTTHREAD``) may preempt: it then runs at once, nested above the
running thread, until it suspends. The points where that can happen are: waking it outside a
critical section; the end of an interrupt; the end of a critical section. An ordinary thread never
preempts.

A **borrowed context** is how a request from the host (FUSE, control socket) uses the kernel: it
runs nested above the elected thread, which is always at a suspension point, and must not wait. To
wait it becomes an ordinary thread (`Lwkt.adopt`).

Counterpart: lwkt_preempt and splz_check (kern/lwkt_thread.c), splz (platform), doreti.
Differs from DragonFly: a preempting thread needs no stack of its own; it is one nested ``send`` of
its coroutine. A refused preemption is counted once; an attempt from inside an interrupt handler is
not an attempt yet, it is made when the handler has returned.
Token/lock order: takes none. A preempted thread keeps its tokens; if the interrupt thread wants one
of them it gives the CPU back and stays on the run queue.
Invariants: ``intr_nesting`` is 0 or 1; the thread below a preemption has TDF.PREEMPT_LOCK and
continues before any other thread of its CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from dfuser.libkern.errno import KKASSERT, Panic, panic
from dfuser.libkern.ktr import KtrInfo

from . import thread as _thread
from .globaldata import RQF, STOP, GlobalData
from .thread import TDF, TDPRI, Thread, ThreadKilled
from .token import lwkt_relalltokens

if TYPE_CHECKING:
    from .sched import Cpu


_RUNQ: Final = TDF.RUNQ
_INTTHREAD: Final = TDF.INTTHREAD
_NOT_SCHEDULABLE: Final = TDF.RUNQ | TDF.EXITING | TDF.MIGRATING


class InterruptCpu(GlobalData):
    """A CPU that takes interrupts and steps coroutine threads."""

    __slots__ = ()

    ktr_preempt = KtrInfo("ctxsw", "pre", "cpu%d %s above %s")
    ktr_return = KtrInfo("ctxsw", "preret", "cpu%d %s back to %s")
    ktr_dead = KtrInfo("ctxsw", "deadtd", "%s")

    # --- making threads runnable -----------------------------------------------------------

    def schedule_local(self, td: Thread) -> None:
        """Make ``td`` of this CPU runnable; preempt, ask for a reschedule, or end the idling.

        Does nothing for a thread that is runnable already, exiting, or between two CPUs.
        """
        pri = td.pri
        if td.flags or self.upri_used:
            flags = td.flags
            if flags & _NOT_SCHEDULABLE:
                return
            self.runq_enqueue(td)
            if flags & _INTTHREAD:
                if self.preempt(td):
                    return
                self.reqflags |= RQF.RESCHED
        else:
            # runq_enqueue, written out for a plain thread: every wake-up comes this way.
            queue = self.runq[pri]
            if not queue:
                self.runmask |= 1 << pri
            elif not self.lwkt.ticking:
                self.lwkt.start_tick()
            queue.append(td)
            td.flags = _RUNQ
            self.stalled = False
        cur = self.curthread
        if cur is None:
            if self.loop_parked:
                self.kick()
        elif pri > cur.pri:
            self.reqflags |= RQF.RESCHED

    def preempt(self, ntd: Thread) -> bool:
        """Run the interrupt thread ``ntd`` now, nested above the running one, if that is allowed.

        Refused and counted as a miss in a critical section, above another preemption, while a
        cpusync is mastered, when the priority is not higher, and when ``ntd`` waits for tokens.
        Counted as weird when ``ntd`` is the running thread or below a preemption itself.
        Returns whether it ran. Counterpart: lwkt_preempt.
        """
        if self.intr_nesting:
            self.reqflags |= RQF.RESCHED
            return False
        base = self.curthread or self.idle
        td: Any = _thread.curthread
        if td is None or td.cpu is not self or not td.flags & TDF.BORROWED:
            td = base
        if (
            ntd.pri <= base.pri
            or not self.lwkt.preempt_enable
            or base.critcount
            or td.critcount
            or base.preempted is not None
            or self.stopped
            or self.cpusync_mastered is not None
            or ntd.toks
            or not ntd.coro
        ):
            self.preempt_miss += 1
            return False
        if ntd is base or (base.flags | ntd.flags) & TDF.PREEMPT_LOCK:
            self.preempt_weird += 1
            return False
        self.preempt_hit += 1
        ktr = self.lwkt.ktr_ctxsw
        if ktr.mask:
            ktr.log_cpu(self.cpuid, self.ktr_preempt, self.cpuid, ntd.name, base.name)
        self._run_above(ntd, base)
        return True

    def _run_above(self, ntd: Thread, base: Thread) -> None:
        """Step ``ntd`` nested above ``base`` until it suspends."""
        base.flags |= TDF.PREEMPT_LOCK
        ntd.preempted = base
        holder = self.curthread
        self.curthread = ntd
        ntd.switches += 1
        try:
            self.step(ntd)
        finally:
            self.curthread = holder
            ntd.preempted = None
            base.flags &= ~TDF.PREEMPT_LOCK
            ktr = self.lwkt.ktr_ctxsw
            if ktr.mask:
                ktr.log_cpu(self.cpuid, self.ktr_return, self.cpuid, ntd.name, base.name)
        if self.runmask and (self.runmask.bit_length() - 1 > base.pri or holder is None):
            self.reqflags |= RQF.RESCHED
        if holder is None and self.runmask and self.loop_parked:
            self.kick()

    # --- stepping coroutine threads --------------------------------------------------------

    def step(self, td: Thread) -> bool:
        """Resume the coroutine thread ``td`` until its next suspension; True if it spins."""
        prev = _thread.curthread
        _thread.curthread = td
        try:
            pausing = td.send(None) is not None
        except BaseException as exc:
            self.body_ended(td, exc)
            return False
        finally:
            _thread.curthread = prev
        return pausing

    def body_ended(self, td: Thread, exc: BaseException) -> None:
        """The body of a coroutine thread has returned or raised."""
        if isinstance(exc, StopIteration):
            td.result = exc.value
            td.cpu.thread_exited(td, clean=True)
        elif isinstance(exc, ThreadKilled):
            td.cpu.thread_exited(td)
        elif isinstance(exc, Panic) or not isinstance(exc, Exception):
            self.lwkt.note_panic(td, exc)
            raise exc
        else:
            td.cpu.thread_exited(td)
            self.lwkt.thread_died(td, exc)

    def thread_exited(self, td: Thread, clean: bool = False) -> None:
        """Bury a thread whose body has ended. Counterpart: lwkt_exit.

        With ``clean`` the body has returned by itself and must not have left anything held.
        """
        if td.flags & TDF.RUNQ:
            self.runq_remove(td)
        td.flags = (td.flags | TDF.EXITING) & ~TDF.THROTTLED
        left = clean and bool(td.critcount or td.spinlocks or td.toks)
        if td.toks:
            lwkt_relalltokens(td)
            td.toks.clear()
        td.bury()
        ktr = self.lwkt.ktr_ctxsw
        if ktr.mask:
            ktr.log_cpu(self.cpuid, self.ktr_dead, td.name)
        if self.curthread is td:
            self.curthread = None
        if not td.refs:
            self.lwkt.forget_thread(td)
        if td.done is not None:
            td.done(td)
        if left:
            text = f"lwkt_exit: {td} exits in a critical section or with tokens or spinlocks"
            self.lwkt.note_panic(td, Panic(text))
            panic(text)

    # --- interrupts ------------------------------------------------------------------------

    def interrupt(self, fn: Callable[..., None], *args: Any) -> None:
        """Run ``fn(*args)`` as an interrupt on this CPU; later, if it is in a critical section.

        The handler must not suspend; it makes threads runnable. Anything it raises is reported by
        `Lwkt.interrupt_failed`. May be called by host code, by another interrupt, by any thread.
        """
        base = self.curthread or self.idle
        running: Any = _thread.curthread
        if (
            base.critcount
            or self.stopped
            or self.intr_nesting
            or (running is not None and running.cpu is self and running.critcount)
        ):
            self.intpend.append((fn, args))
            self.reqflags |= RQF.INTPEND
            if self.curthread is None:
                self.kick()
            return
        try:
            self._run_interrupt(base, fn, args)
            if self.reqflags & RQF.PENDING:
                self.splz()
        except Panic:
            # Host code is told by the machine's owner and has its own work to go on with.
            if self.lwkt.on_failure is None or not (running is None or running.tid < 0):
                raise
        if self.curthread is None and self.runmask and self.loop_parked:
            self.kick()

    def _run_interrupt(self, base: Thread, fn: Callable[..., None], args: tuple[Any, ...]) -> None:
        prev = _thread.curthread
        _thread.curthread = base
        base.critcount += 1
        self.intr_nesting += 1
        self.interrupts += 1
        try:
            fn(*args)
        except Exception as exc:
            self.lwkt.interrupt_failed(self.cpuid, fn, exc)
        except Panic as exc:
            self.lwkt.note_panic(base, exc, interrupt_name(self.cpuid, fn))
            raise
        finally:
            self.intr_nesting -= 1
            base.critcount -= 1
            _thread.curthread = prev
        if self.reqflags & RQF.RESCHED:
            self.preempt_pending(base)

    def run_handler(self, fn: Callable[..., None], *args: Any) -> None:
        """Run ``fn(*args)`` as an interrupt even now, in a critical section or on a held CPU.

        Only for code that spins for another CPU, and for the master of a cpusync.
        """
        self._run_interrupt(self.curthread or self.idle, fn, args)

    def preempt_pending(self, base: Thread) -> None:
        """Interrupt threads have become runnable meanwhile: run them nested before going on."""
        while self.runmask >> TDPRI.INT_SUPPORT and not base.critcount and not self.stopped:
            pri = self.runmask.bit_length() - 1
            if pri <= base.pri:
                return
            ntd = self.runq[pri][0]
            if not ntd.flags & TDF.INTTHREAD or ntd is base or ntd.toks:
                return
            if not self.preempt(ntd) or ntd.flags & TDF.RUNQ:
                return

    def splz(self) -> None:
        """Run the IPIs and interrupts that were deferred, then the interrupt threads they woke.

        Counterpart: splz.
        """
        if self.intr_nesting:
            return
        if self.stopped:
            if self.stopped == STOP.CPUSYNC and self.reqflags & RQF.IPIQ:
                self.poll_ipiq()
            return
        base = self.curthread or self.idle
        while self.reqflags & RQF.PENDING and not base.critcount and not self.stopped:
            if self.reqflags & RQF.IPIQ:
                self.reqflags &= ~RQF.IPIQ
                self._run_interrupt(base, self.lwkt.ipiqs.process, (self,))
            elif self.intpend:
                fn, args = self.intpend.popleft()
                self._run_interrupt(base, fn, args)
            else:
                self.reqflags &= ~(RQF.INTPEND | RQF.TIMER)
        if self.reqflags & RQF.RESCHED:
            self.preempt_pending(base)

    def poll_ipiq(self) -> None:
        """Serve this CPU's IPIs even in a critical section.

        Code that spins for another CPU must do so, or two such CPUs wait for each other.
        Counterpart: lwkt_process_ipiq called from a spin loop.
        """
        if self.ipimask and not self.intr_nesting:
            self.reqflags &= ~RQF.IPIQ
            self._run_interrupt(self.curthread or self.idle, self.lwkt.ipiqs.process, (self,))

    # --- borrowed contexts -----------------------------------------------------------------

    @property
    def lendable(self) -> bool:
        """Whether `borrow` may be called.

        The CPU must run, and its thread must not spin in a critical section (`cpu_pause`).
        """
        cur = self.curthread
        return not self.stopped and not self.intr_nesting and (cur is None or not cur.critcount)

    def borrow(self, lwp: Any = None) -> Thread:
        """Lend a context to a request from the host: it becomes ``curthread`` until `unborrow`.

        The request runs nested above the elected thread, which is always at a suspension point, and
        must not suspend; to wait it becomes an ordinary thread (`Lwkt.adopt`). Panics unless
        `lendable`; a caller that meets such a CPU takes another one or adopts at once.
        """
        cur = self.curthread
        if self.reqflags & RQF.STOPPED or (cur is not None and cur.critcount):
            KKASSERT(self.lendable, "borrow: the CPU is stopped or spins in a critical section")
        td = self.borrowed.pop() if self.borrowed else self.lwkt.new_borrowed(cast("Cpu", self))
        td.lwp = lwp
        td.preempted = _thread.curthread
        _thread.curthread = td
        return td

    def unborrow(self, td: Thread) -> None:
        """Take a borrowed context back and serve what it has made pending.

        Panics when it still holds anything, unless that is what a panic has left.
        """
        prev = td.preempted
        if td.critcount or td.spinlocks or td.toks:
            if self.lwkt.panicked is None:
                panic(f"unborrow: {td} returns inside a critical section or with locks")
            _thread.curthread = cast("Thread", prev)
            return
        td.preempted = None
        td.lwp = None
        _thread.curthread = cast("Thread", prev)
        self.borrowed.append(td)
        if self.reqflags & RQF.PENDING:
            self.splz()


def interrupt_name(cpuid: int, fn: Callable[..., object]) -> str:
    """How a report names the interrupt handler ``fn``."""
    return f"interrupt {getattr(fn, '__qualname__', fn)} on cpu{cpuid}"
