"""LWKT threads: who runs, on which CPU, and how a thread gives the CPU away.

A `Thread` is DragonFly's unit of execution. It belongs to one logical CPU and stays there until it
asks to move. It suspends in exactly one way, `switch`; sleeping, waiting for a message, a lock or a
token all end there. Two drivers run the body of a thread behind this one class:

* **task**: the thread is a trio task of its own. The task is parked in trio whenever its CPU has
  not elected it, so trio sees at most one runnable task per CPU and its random wake-up order
  decides nothing.
* **coro**: the thread is a coroutine that its CPU's own loop drives with ``send``; a switch costs
  well under a microsecond.

Both stand in the same run queues, obey the same rules and are seen in the same lists.

Counterpart: sys/kern/lwkt_thread.c, sys/sys/thread.h (struct thread).
Differs from DragonFly: code between two suspension points is never interrupted, because nothing can
preempt Python between two bytecodes. Preemption by interrupt threads therefore happens at defined
points (waking an interrupt thread, leaving a critical section, returning from an interrupt), and an
interrupt thread always uses the coro driver so that it can run nested above the thread it preempts.
Switching inside a critical section panics here; DragonFly permits it.

Invariants:
* a thread runs on ``td.cpu`` only, and at most one thread of a CPU is elected at a time;
* an elected thread stays on its run queue (as in DragonFly) until it is descheduled;
* every token a thread holds is released while it is suspended and held again before it continues.
"""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from dfuser.libkern.errno import panic

if TYPE_CHECKING:
    import trio

    from .msgport import Port
    from .sched import Cpu
    from .token import TokRef


class TDPRI:
    """Thread priorities 0 to 31. Counterpart: TDPRI_* (sys/thread.h)."""

    IDLE_THREAD: Final = 0
    IDLE_WORK: Final = 1
    USER_SCHEDULER: Final = 2
    USER_IDLE: Final = 4
    USER_NORM: Final = 6
    USER_REAL: Final = 8
    KERN_LPSCHED: Final = 9
    KERN_USER: Final = 10
    KERN_DAEMON: Final = 12
    SOFT_NORM: Final = 14
    SOFT_TIMER: Final = 16
    INT_SUPPORT: Final = 20
    INT_LOW: Final = 27
    INT_MED: Final = 28
    INT_HIGH: Final = 29
    MAX: Final = 31


class TDF:
    """Thread flags. Counterpart: TDF_* (sys/thread.h). Plain ints: they are tested on hot paths."""

    RUNQ: Final = 0x00000002
    """The thread stands on its CPU's run queue."""
    PREEMPT_LOCK: Final = 0x00000004
    """An interrupt thread is running nested above this one."""
    INTTHREAD: Final = 0x00000008
    """An interrupt thread: it may preempt."""
    BORROWED: Final = 0x00000010
    """A context lent to a request from the host; never on a run queue."""
    ADOPTED: Final = 0x00000020
    """The driver's trio task belongs to somebody else and outlives the thread."""
    SINTR: Final = 0x00000040
    """Asleep with PCATCH: a signal ends the sleep."""
    TSLEEPQ: Final = 0x00000080
    """On a sleep queue."""
    UPRI: Final = 0x00000100
    """Has a user priority: its place among its equals must be searched."""
    MIGRATING: Final = 0x00000200
    """Between two CPUs."""
    WAKEREQ: Final = 0x00000400
    """A schedule request for this thread is on its way to another CPU."""
    TASK: Final = 0x00000800
    """Driven by a trio task (the task driver); without it by the CPU's loop (the coro driver)."""
    TIMEOUT: Final = 0x00001000
    """The last sleep ended by its timeout."""
    KILLED: Final = 0x00100000
    """The thread must unwind: every resumption raises `ThreadKilled` from now on."""
    THROTTLED: Final = 0x00200000
    """The thread has filled an IPI ring and is parked when it next yields."""
    EXITING: Final = 0x00400000
    """The body has returned; the thread runs no more."""


class ThreadKilled(BaseException):
    """Raised inside a thread that the kernel ends at shutdown; unwinds the body."""


class ThreadExit(ThreadKilled):
    """Raised by `lwkt_exit`: the thread ends itself."""


#: The running thread; in host code the idle thread of some CPU, and None while no machine lives.
#: The one module variable of dfuser: DragonFly keeps it in a CPU register.
curthread: Thread = cast("Thread", None)

#: Requests a CPU serves in `Cpu.splz`; the same value as ``sched.RQF.PENDING``.
RQF_PENDING: Final = 0x0007

#: What a coroutine thread yields to its CPU's loop; HANDED is what resuming a task thread returns.
SWITCH: Final = None
PAUSE: Final = 1
HANDED: Final = 2


class Thread:
    """One LWKT thread.

    Counterpart: struct thread (sys/thread.h).

    Attributes are DragonFly's without the ``td_`` prefix. ``wmesg`` names what a suspended thread
    waits for, ``wchan`` is the object it sleeps on; both are what ``ps`` shows.
    """

    __slots__ = (
        "__weakref__",
        "_upri",
        "args",
        "body",
        "cpu",
        "critcount",
        "done",
        "flags",
        "func",
        "intr_error",
        "lwp",
        "mpcount",
        "msgport",
        "name",
        "preempted",
        "pri",
        "refs",
        "result",
        "send",
        "sleepq_entry",
        "spinlocks",
        "switches",
        "task",
        "tid",
        "toks",
        "toks_have",
        "trap",
        "wchan",
        "wdomain",
        "wmesg",
    )

    def __init__(self, cpu: Cpu, tid: int, name: str, pri: int, flags: int = 0) -> None:
        self.cpu = cpu
        self.tid = tid
        self.name = name
        self.pri = pri
        self._upri = 0
        self.flags = flags
        self.critcount = 0
        self.spinlocks = 0
        self.toks: list[TokRef] = []
        #: How many of ``toks`` are really held while the last one is being waited for.
        self.toks_have: int | None = None
        self.wchan: object | None = None
        self.wdomain = 0
        self.wmesg = ""
        self.switches = 0
        self.mpcount = 0
        self.refs = 0
        self.intr_error = 0
        self.preempted: Thread | None = None
        self.sleepq_entry: Any = None
        self.msgport: Port | None = None
        #: The Lwp this thread executes; opaque here, owned by kern.
        self.lwp: Any = None
        self.func: Callable[..., Awaitable[Any]] | None = None
        self.args: tuple[Any, ...] = ()
        self.body: Coroutine[Any, Any, Any] | None = None
        #: What the body of a task thread yields to trio to be parked, see `sched.park_trap`.
        self.trap: Any = None
        #: Resumes the body; the first call makes it. For a task thread: has trio wake its task.
        self.send: Callable[[None], Any] = self._first_send
        self.task: trio.lowlevel.Task | None = None
        self.done: Callable[[Thread], None] | None = None
        self.result: Any = None

    def make_body(self) -> Coroutine[Any, Any, Any]:
        """Make the coroutine of the body. Made late: a thread that never ran leaves none behind."""
        assert self.func is not None
        body = cast("Coroutine[Any, Any, Any]", self.func(*self.args))
        self.body = body
        self.args = ()
        return body

    def _first_send(self, value: None) -> Any:
        """Start the body on the coro driver."""
        self.send = self.make_body().send
        return self.send(value)

    def kill(self) -> None:
        """Have every resumption from now on raise `ThreadKilled` in the body.

        A task thread looks at the flag itself when it resumes; the loop throws into a coroutine.
        """
        self.flags |= TDF.KILLED
        if not self.flags & TDF.TASK:
            self.send = self._throw_killed

    def _throw_killed(self, _value: None) -> Any:
        """Resume the body of a killed thread of the coro driver."""
        if self.body is None:
            raise ThreadKilled
        return self.body.throw(ThreadKilled())

    def bury(self) -> None:
        """The body has ended: let go of it, and of what refers back to the thread."""
        self.body = None
        self.func = None
        self.args = ()
        self.trap = None
        self.send = _resumed_after_exit

    def use_task(self) -> None:
        """Choose the task driver for a thread that has not run yet."""
        self.flags |= TDF.TASK
        self.send = self._hand_over

    def _hand_over(self, _value: None) -> int:
        """Let the task of a thread that the CPU's loop has elected run."""
        self.cpu.wake_task(self)
        return HANDED

    def __repr__(self) -> str:
        return f"<Thread {self.tid} {self.name} cpu{self.cpu.cpuid} pri{self.pri}>"

    @property
    def upri(self) -> int:
        """The user priority: orders threads of one priority, greatest first. Usually 0.

        May be changed while the thread is off its run queue. Counterpart: td_upri.
        """
        return self._upri

    @upri.setter
    def upri(self, upri: int) -> None:
        self._upri = upri
        self.flags = self.flags | TDF.UPRI if upri else self.flags & ~TDF.UPRI

    @property
    def coro(self) -> bool:
        """Whether the coro driver runs it."""
        return not self.flags & TDF.TASK

    @property
    def runnable(self) -> bool:
        """Whether the thread stands on its run queue."""
        return bool(self.flags & TDF.RUNQ)

    @property
    def running(self) -> bool:
        """Whether the thread is elected on its CPU. Counterpart: TDF_RUNNING."""
        return self.cpu.curthread is self

    @property
    def state(self) -> str:
        """One letter as ``ps`` shows it.

        R running or runnable, S asleep, I in an interruptible sleep, Z exited.
        """
        flags = self.flags
        if flags & TDF.EXITING:
            return "Z"
        if flags & (TDF.RUNQ | TDF.WAKEREQ) or self.running:
            return "R"
        return "I" if flags & TDF.SINTR else "S"


def _resumed_after_exit(_value: None) -> NoReturn:
    panic("lwkt_switch: an exited thread was elected")


@types.coroutine
def switch() -> Generator[Any, Any, None]:
    """Give the CPU to the next thread; return when this one is elected again.

    Tokens are released before and held again after. A caller that stays on the run queue merely
    lets others go first; one that has descheduled itself sleeps until somebody schedules it. A
    thread that has preempted another returns the CPU to that one.

    Panics in a critical section, under a spinlock, and in interrupt context.
    Counterpart: lwkt_switch.
    """
    td = curthread
    if td.critcount or td.flags & _SWITCH_CARE:
        switch_care(td)
    if td.toks:
        td.cpu.relalltokens(td)
    if td.flags & _TASK:
        yield from td.cpu.task_switch(td)
        if td.flags & _KILLED:
            raise ThreadKilled
    else:
        yield SWITCH


#: The name Table I of the paper gives it.
lwkt_switch = switch


@types.coroutine
def lwkt_yield() -> Generator[Any, Any, None]:
    """Go behind the runnable threads of the same priority, then let the best one run.

    Counterpart: lwkt_yield.
    Differs from DragonFly: there a yield in a tight loop rotates once a tick, here every time,
    because nothing else than a yield can end a thread's turn.
    """
    td = curthread
    cpu = td.cpu
    if td.flags & _RUNQ:
        queue = cpu.runq[td.pri]
        if queue[0] is td and not cpu.upri_used:
            queue.rotate(-1)
        else:
            cpu.runq_remove(td)
            cpu.runq_enqueue(td)
    else:
        cpu.runq_enqueue(td)
    if td.critcount or td.flags & _SWITCH_CARE:
        switch_care(td)
    if td.toks:
        cpu.relalltokens(td)
    if td.flags & _TASK:
        yield from cpu.task_switch(td)
        if td.flags & _KILLED:
            raise ThreadKilled
    else:
        yield SWITCH


@types.coroutine
def cpu_pause() -> Generator[Any, Any, None]:
    """Let other CPUs run while this thread keeps its CPU, its tokens and its critical section.

    This is what a spin-wait does on real hardware: interrupts and IPIs of this CPU are served
    meanwhile unless the thread is in a critical section. An interrupt thread that has preempted
    another cannot spin, for the one below is in the middle of plain code: outside a critical
    section it returns the CPU as `switch` does, inside one it panics.
    Counterpart: cpu_pause() in the spin loops.
    """
    td = curthread
    if td.flags & TDF.BORROWED:
        panic(f"cpu_pause: {td} is a borrowed context and cannot wait")
    if td.preempted is not None:
        if td.critcount:
            panic(f"cpu_pause: {td} spins in a critical section above {td.preempted}")
        yield from switch()
        return
    if td.flags & _TASK:
        yield from td.cpu.task_pause(td)
        if td.flags & _KILLED:
            raise ThreadKilled
    else:
        yield PAUSE


_RUNQ: Final = TDF.RUNQ
_KILLED: Final = TDF.KILLED
_TASK: Final = TDF.TASK
_SWITCH_CARE: Final = TDF.BORROWED | TDF.THROTTLED


def switch_care(td: Thread) -> None:
    """Refuse a switch that must not be, or park a sender that has filled an IPI ring."""
    if td.spinlocks:
        panic(f"lwkt_switch: {td} still holds {td.spinlocks} spinlocks")
    if td.flags & TDF.BORROWED:
        panic(f"lwkt_switch: {td} is a borrowed context and cannot wait")
    if td.critcount:
        panic(f"lwkt_switch: {td} is in a critical section (depth {td.critcount})")
    td.flags &= ~TDF.THROTTLED
    td.cpu.lwkt.ipiqs.throttle(td)


def lwkt_deschedule_self() -> None:
    """Take the running thread off its run queue; its next `switch` sleeps until `lwkt_schedule`.

    Counterpart: lwkt_deschedule_self.
    """
    td = curthread
    if td.flags & _RUNQ:
        cpu = td.cpu
        queue = cpu.runq[td.pri]
        if queue[0] is td:
            queue.popleft()
            if not queue:
                cpu.runmask ^= 1 << td.pri
            td.flags ^= _RUNQ
        else:
            cpu.runq_remove(td)


async def lwkt_yield_quick() -> None:
    """Yield only when this CPU has been asked to reschedule. Cheap enough for inner loops.

    Now and then it also looks at the clock, as the tick would: when the thread has used its tick up
    it goes behind its equals, and after 500 us without a suspension it lets the host have a turn.
    Counterpart: lwkt_yield_quick, lwkt_user_yield.
    """
    cpu = curthread.cpu
    if cpu.reqflags or cpu.slice_over():
        if cpu.reqflags & RQF_PENDING and not curthread.critcount:
            cpu.splz()
        await switch()


def crit_enter() -> None:
    """Defer interrupts, IPIs and preemption on this CPU until the matching `crit_exit`.

    Counterpart: crit_enter.
    """
    curthread.critcount += 1


def crit_exit() -> None:
    """Leave a critical section; at depth 0 whatever was deferred runs now.

    Counterpart: crit_exit.
    """
    td = curthread
    depth = td.critcount = td.critcount - 1
    if depth < 0:
        panic(f"crit_exit: {td} was not in a critical section")
    if depth == 0 and td.cpu.reqflags:
        td.cpu.splz()


class critical:
    """``with critical():`` is `crit_enter` and `crit_exit` around a block.

    The block must not suspend: that panics.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        curthread.critcount += 1

    def __exit__(self, *exc: object) -> None:
        crit_exit()


def lwkt_hold(td: Thread) -> None:
    """Keep an exiting thread on the list of threads until `lwkt_rele`.

    It does not keep the thread on its CPU. Counterpart: lwkt_hold.
    """
    td.refs += 1


def lwkt_rele(td: Thread) -> None:
    """Give a reference of `lwkt_hold` back. Counterpart: lwkt_rele."""
    if td.refs <= 0:
        panic(f"lwkt_rele: {td} is not held")
    td.refs -= 1
    if not td.refs and td.flags & TDF.EXITING:
        td.cpu.lwkt.forget_thread(td)


def lwkt_setpri_self(pri: int) -> None:
    """Change the running thread's priority. It keeps the CPU; yield if it should not.

    Counterpart: lwkt_setpri_self.
    """
    td = curthread
    td.cpu.lwkt.setpri(td, pri)


def lwkt_exit() -> NoReturn:
    """End the running thread now, unwinding its body. Counterpart: lwkt_exit."""
    raise ThreadExit
