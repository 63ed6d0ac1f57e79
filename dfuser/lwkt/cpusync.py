"""cpusync: hold other CPUs still for a moment.

    cs = Cpusync(lwkt, mask, func, data)
    await cs.interlock()        # the CPUs of the mask are quiet, the own one in a critical section
    ...                         # change what no CPU may be looking at
    await cs.deinterlock()      # every CPU of the mask runs func(data), then all go on

Between the two, the CPUs of the mask run no thread and no interrupt; IPIs they still serve, so that
nobody who waits for one of them hangs. The master spins; it must not suspend in between.

When two CPUs ask for each other, the one that asked first wins: the second holds still for the
first, whose own acknowledgement comes when it has finished. So the promise is exact even then
(in DragonFly two masters that acknowledge each other may be inside at once).

Counterpart: struct lwkt_cpusync (sys/thread.h), lwkt_cpusync_* (kern/lwkt_ipiq.c).
Differs from DragonFly: a held CPU does not poll, its loop is stopped (STOP.CPUSYNC).
Token/lock order: the master may hold tokens; they stay with it.
Invariants: ``mack`` is a subset of the mask and never contains the master's CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from dfuser.libkern.errno import KKASSERT, panic
from dfuser.libkern.ktr import KtrInfo

from . import thread as _thread
from .globaldata import STOP
from .thread import cpu_pause, crit_exit

if TYPE_CHECKING:
    from .machine import Lwkt
    from .sched import Cpu

_SECOND: Final = 1_000_000_000


class Cpusync:
    """One synchronisation of CPUs. Counterpart: struct lwkt_cpusync (sys/thread.h).

    Args:
        lwkt: the machine.
        mask: the CPUs to hold; the own one may be among them and then runs ``func`` too.
        func: run on each CPU of the mask by `deinterlock`, as an IPI.
        data: its argument.
    """

    __slots__ = ("data", "func", "lwkt", "mack", "mask", "master", "ticket")

    ktr_sync_start = KtrInfo("ipiq", "sync_start", "cpumask=%x")
    ktr_sync_end = KtrInfo("ipiq", "sync_end", "cpumask=%x")
    ktr_sync_quick = KtrInfo("ipiq", "sync_quick", "cpumask=%x")

    def __init__(
        self,
        lwkt: Lwkt,
        mask: Iterable[Cpu],
        func: Callable[[Any], object] | None = None,
        data: Any = None,
    ) -> None:
        self.lwkt = lwkt
        self.mask = sum(1 << cpu.cpuid for cpu in set(mask))
        self.func = func
        self.data = data
        #: CPUs that hold still (before deinterlock), or have run the function (after).
        self.mack = 0
        self.master: Cpu | None = None
        self.ticket = 0

    async def interlock(self) -> None:
        """Hold the CPUs of the mask still; returns inside a critical section.

        Spins until every one has acknowledged; CPUs stopped for debugging are left out.
        Counterpart: lwkt_cpusync_interlock.
        """
        targets = self._begin()
        if targets:
            self._send(targets, self._remote1)
            await self._spin(targets)

    async def deinterlock(self) -> None:
        """Run the function on every held CPU and the own one, let them go, leave the section.

        Counterpart: lwkt_cpusync_deinterlock.
        """
        cpu = self.master
        if cpu is None or cpu is not _thread.curthread.cpu:
            panic("lwkt_cpusync_deinterlock: not the master of an interlock")
        held = self.mack
        self.mack = 0
        for other in self._cpus(held):
            other.run_handler(self._remote2, other, 0)
            other.unstop(STOP.CPUSYNC)
        KKASSERT(self.mack == held, "cpusync: a CPU went on without acknowledging")
        self._end(cpu)

    async def quick(self) -> None:
        """Run the function on every CPU of the mask without holding them still first.

        Counterpart: lwkt_cpusync_quick.
        """
        targets = self._begin()
        if targets:
            self._send(targets, self._remote2)
            await self._spin(targets)
        self._end(_thread.curthread.cpu)

    async def simple(self) -> None:
        """`interlock` and `deinterlock`. Counterpart: lwkt_cpusync_simple."""
        await self.interlock()
        await self.deinterlock()

    # --- the master's side -----------------------------------------------------------------

    def _begin(self) -> int:
        td = _thread.curthread
        cpu = td.cpu
        if cpu.cpusync_mastered is not None:
            panic(f"lwkt_cpusync: {cpu} already masters one")
        td.critcount += 1
        self.mack = 0
        self.master = cpu
        targets = 0
        for other in self._cpus(self.mask):
            if other is not cpu and not other.stopped & STOP.DEBUG:
                targets |= 1 << other.cpuid
        if targets:
            cpu.cpusync_mastered = self
            self.lwkt.cpusync_tickets += 1
            self.ticket = self.lwkt.cpusync_tickets
            self.lwkt.ipiqs.cscount += 1
            ktr = self.lwkt.ipiqs.ktr
            if ktr.mask:
                ktr.log_cpu(cpu.cpuid, self.ktr_sync_start, targets)
        return targets

    def _send(self, targets: int, func: Callable[[Any, Any], object]) -> None:
        assert self.master is not None
        for other in self._cpus(targets):
            self.lwkt.ipiqs.post(self.master, other, func, other)

    async def _spin(self, targets: int) -> None:
        cpu = self.master
        assert cpu is not None
        clock = self.lwkt.clock
        warn_at = clock.monotonic_ns() + _SECOND
        while self.mack != targets:
            cpu.poll_ipiq()
            try:
                await cpu_pause()
            except BaseException:
                self._abandon(cpu)
                raise
            if clock.monotonic_ns() >= warn_at:
                late = targets & ~self.mack
                self.lwkt.msgbuf.kprintf(f"cpusync: cpu{cpu.cpuid} waits for cpus {late:#x}")
                warn_at += _SECOND

    def _end(self, cpu: Cpu) -> None:
        if cpu.cpusync_mastered is self:
            cpu.cpusync_mastered = None
            ktr = self.lwkt.ipiqs.ktr
            if ktr.mask:
                ktr.log_cpu(cpu.cpuid, self.ktr_sync_end, self.mack)
        self.master = None
        if self.func is not None and self.mask >> cpu.cpuid & 1:
            self.func(self.data)
        deferred, cpu.cpusync_deferred = cpu.cpusync_deferred, []
        for cs in deferred:
            cs._remote1(cpu, 0)
        crit_exit()

    def _abandon(self, cpu: Cpu) -> None:
        """The master is being ended while it spins: let everybody go, run nothing."""
        self.func = None
        for other in self._cpus(self.mack):
            other.unstop(STOP.CPUSYNC)
        self.mask = 0
        self._end(cpu)

    def _cpus(self, mask: int) -> list[Cpu]:
        return [cpu for cpu in self.lwkt.cpus if mask >> cpu.cpuid & 1]

    # --- the held CPU's side ---------------------------------------------------------------

    def _remote1(self, cpu: Cpu, _arg2: object) -> None:
        """Hold still, unless this CPU's own, earlier synchronisation comes first."""
        mastered = cpu.cpusync_mastered
        if mastered is not None and mastered.ticket < self.ticket:
            cpu.cpusync_deferred.append(self)
            return
        if self.master is not None:
            cpu.stopped |= STOP.CPUSYNC
            self.mack |= 1 << cpu.cpuid

    def _remote2(self, cpu: Cpu, _arg2: object) -> None:
        """Run the function and say so."""
        try:
            if self.func is not None:
                self.func(self.data)
        finally:
            self.mack |= 1 << cpu.cpuid
