"""Threads that change their CPU, and the calls of Table I that make and end threads.

A thread moves by its own wish (`lwkt_migratecpu`): it takes itself off its run queue, sends the
target an IPI that will adopt it, and suspends; it continues on the other CPU. A thread that does
not run can be handed over by two CPUs: the owner gives it away, the other acquires it.

The rest are the named calls of the paper: thin, over `Lwkt`.

Counterpart: lwkt_setcpu_self, lwkt_migratecpu, lwkt_giveaway, lwkt_acquire, lwkt_alloc_thread,
lwkt_init_thread, lwkt_free_thread, lwkt_create, lwkt_schedule, lwkt_deschedule, lwkt_setpri
(kern/lwkt_thread.c).
Differs from DragonFly: a thread has no stack to allocate, so alloc and init differ only in who
chooses the CPU; the setcpu IPI is sent before the switch, because no other CPU can run in between.
Token/lock order: tokens are let go by the move and held again on the new CPU.
Invariants: a migrating thread (TDF.MIGRATING) stands on no run queue and no sleep queue.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from dfuser.libkern.errno import panic

from . import thread as _thread
from .machine import Lwkt
from .sched import Cpu
from .synch import tsleep_remove
from .thread import TDF, TDPRI, Thread, cpu_pause, lwkt_deschedule_self, switch


def _lwkt() -> Lwkt:
    return _thread.curthread.cpu.lwkt


# --- moving --------------------------------------------------------------------------------


async def lwkt_setcpu_self(rgd: Cpu) -> None:
    """Move the running thread to the CPU ``rgd``. Counterpart: lwkt_setcpu_self."""
    td = _thread.curthread
    if td.cpu is rgd:
        return
    if td.critcount or td.spinlocks:
        panic(f"lwkt_setcpu_self: {td} is in a critical section")
    if td.flags & TDF.TSLEEPQ:
        tsleep_remove(td)
    lwkt_deschedule_self()
    td.flags |= TDF.MIGRATING
    td.cpu.lwkt.ipiqs.post(td.cpu, rgd, _setcpu_remote, td, rgd)
    td.flags &= ~TDF.THROTTLED
    await switch()


async def lwkt_migratecpu(cpuid: int) -> None:
    """Move the running thread to the CPU with this number. Counterpart: lwkt_migratecpu."""
    await lwkt_setcpu_self(_lwkt().cpus[cpuid])


def _setcpu_remote(td: Thread, rgd: Cpu) -> None:
    """On the new CPU: the thread belongs to us now. Counterpart: lwkt_setcpu_remote."""
    if td.flags & TDF.MIGRATING:
        rgd.lwkt.set_cpu(td, rgd)
        td.flags &= ~TDF.MIGRATING
        rgd.schedule_local(td)


def lwkt_giveaway(td: Thread) -> None:
    """Give a descheduled thread of this CPU away; another CPU may `lwkt_acquire` it.

    Counterpart: lwkt_giveaway.
    """
    if td.cpu is not _thread.curthread.cpu or td.flags & TDF.RUNQ:
        panic(f"lwkt_giveaway: {td} is runnable or belongs to another CPU")
    if td.flags & TDF.TSLEEPQ:
        tsleep_remove(td)
    td.flags |= TDF.MIGRATING


async def lwkt_acquire(td: Thread) -> None:
    """Take a thread that was given away; spins while it is still running on its old CPU.

    It stays descheduled. Counterpart: lwkt_acquire.
    """
    if not td.flags & TDF.MIGRATING:
        panic(f"lwkt_acquire: {td} was not given away")
    cpu = _thread.curthread.cpu
    while td.cpu is not cpu and (td.running or td.flags & TDF.PREEMPT_LOCK):
        cpu.poll_ipiq()
        await cpu_pause()
    cpu.lwkt.set_cpu(td, cpu)
    td.flags &= ~TDF.MIGRATING


# --- Table I: threads ----------------------------------------------------------------------


def lwkt_alloc_thread(cpu: int = -1, name: str = "thread") -> Thread:
    """Allocate a thread without a body on ``cpu`` (-1: CPUs take turns).

    It is on the list of threads and off every run queue. Counterpart: lwkt_alloc_thread.
    """
    lwkt = _lwkt()
    cpuid = lwkt.created % len(lwkt.cpus) if cpu < 0 else cpu
    return lwkt.new_thread(lwkt.cpus[cpuid], name, TDPRI.KERN_DAEMON)


def lwkt_init_thread(
    td: Thread, func: Callable[..., Awaitable[Any]], *args: Any, driver: str | None = None
) -> None:
    """Give an allocated thread its body, once; `lwkt_schedule` starts it.

    Counterpart: lwkt_init_thread, cpu_set_thread_handler.
    """
    if td.func is not None or td.flags & TDF.EXITING:
        panic(f"lwkt_init_thread: {td} has a body")
    td.func = func
    td.args = args
    td.cpu.lwkt.set_driver(td, driver)


def lwkt_free_thread(td: Thread) -> None:
    """Free a thread that never ran or has exited; nobody may hold it.

    Counterpart: lwkt_free_thread.
    """
    if td.refs or td.running or td.flags & (TDF.PREEMPT_LOCK | TDF.RUNQ | TDF.TSLEEPQ):
        panic(f"lwkt_free_thread: {td} is held, running or queued")
    if td.task is not None and not td.flags & TDF.EXITING:
        panic(f"lwkt_free_thread: {td} has a task; it must exit")
    td.flags |= TDF.EXITING
    td.bury()
    td.cpu.lwkt.forget_thread(td)


def lwkt_create(
    func: Callable[..., Awaitable[Any]],
    *args: Any,
    name: str = "",
    pri: int = TDPRI.KERN_DAEMON,
    cpu: int = -1,
    template: Thread | None = None,
    nostart: bool = False,
) -> Thread:
    """Create a thread that runs ``await func(*args)`` and, unless ``nostart``, schedule it.

    ``template`` is a thread from `lwkt_alloc_thread`; ``cpu`` -1 lets CPUs take turns.
    Counterpart: lwkt_create.
    """
    td = template if template is not None else lwkt_alloc_thread(cpu, name or func.__name__)
    td.name = name or td.name
    td.pri = pri
    lwkt_init_thread(td, func, *args)
    if not nostart:
        lwkt_schedule(td)
    return td


def lwkt_schedule(td: Thread) -> None:
    """Make a thread of any CPU runnable. Counterpart: lwkt_schedule."""
    td.cpu.lwkt.schedule(td)


def lwkt_schedule_self() -> None:
    """Put the running thread back on its run queue. Counterpart: lwkt_schedule_self."""
    td = _thread.curthread
    if not td.flags & TDF.RUNQ:
        td.cpu.runq_enqueue(td)


def lwkt_deschedule(td: Thread) -> None:
    """Take a thread off its run queue, by IPI on another CPU. Counterpart: lwkt_deschedule.

    It does not stop a thread that runs there; it will not be elected again.
    """
    cpu = _thread.curthread.cpu
    if td.cpu is cpu:
        if td.flags & TDF.RUNQ:
            cpu.runq_remove(td)
    else:
        cpu.lwkt.ipiqs.post(cpu, td.cpu, _deschedule_remote, td)


def _deschedule_remote(td: Thread, _arg2: object) -> None:
    lwkt_deschedule(td)


def lwkt_setpri(td: Thread, pri: int) -> None:
    """Change a thread's priority. Counterpart: lwkt_setpri."""
    td.cpu.lwkt.setpri(td, pri)


def lwkt_set_interrupt_support_thread() -> None:
    """Let the running thread preempt ordinary ones from now on, at TDPRI.INT_SUPPORT.

    Needs the coro driver. Counterpart: lwkt_set_interrupt_support_thread.
    """
    td = _thread.curthread
    if not td.coro:
        panic(f"lwkt_set_interrupt_support_thread: {td} uses the task driver")
    td.cpu.lwkt.setpri(td, TDPRI.INT_SUPPORT)
    td.flags |= TDF.INTTHREAD
