"""Callouts: functions called after a number of clock ticks.

Each CPU has a callwheel: a power of two of buckets, a callout due at tick t in bucket t modulo the
size, far callouts waiting in their bucket until the wheel has come round often enough. A softclock
thread per CPU executes what is due, tick by tick and in the order of arming within a tick.

There is no periodic tick. Each wheel has one alarm of the host's clock, armed at the next tick
whose bucket is not empty, so an idle machine sleeps; the tick counter itself is computed from the
clock and can be neither lost nor late. When the alarm comes (an interrupt on that CPU), the thread
is scheduled.

A callout armed for n ticks runs when the tick counter has advanced by n: between n - 1 and n ticks
of time later, as in DragonFly, and never before. Who must wait at least n ticks asks for n + 1.
How late callouts are is counted (``kern.callout.cpuN.late``), not hidden.

A function runs on the softclock thread and must not suspend; one that has to wait hands the work
to a taskqueue. With a lock given (``lock=``), the thread takes that lock around the call, and a
stop by the lock's holder is certain. While softclock waits for such a lock, the other callouts of
its CPU wait too, as in DragonFly: who holds it must not sleep until a timeout on that CPU.

Counterpart: sys/kern/kern_timeout.c (softclock_handler, struct softclock_pcpu), sys/sys/callout.h.
Differs from DragonFly: tickless; the softclock thread has priority TDPRI.SOFT_TIMER where DragonFly
lets it compete with daemons, because nothing here can interrupt a daemon between two suspension
points; like there it preempts nobody. All callouts are MP safe: no big lock exists. The wheel of
another CPU is changed directly, as there under the wheel's spinlock, not by IPI. A request that
meets a running callout needs no flags to defer it: each request gives the callout a new serial
number, and softclock calls only what still has the number it was taken off the wheel with.

Token and lock order: the callout's own lock, taken by softclock with nothing else held.
Invariants: bit b of ``occupied`` is set exactly while bucket b is not empty; a callout is on at
most one wheel; nothing on a wheel is due before ``softticks``; while the wheel is not empty, its
thread is running or its alarm is armed no later than the earliest callout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs

from dfuser.libkern.errno import KKASSERT, panic
from dfuser.libkern.ktr import KtrInfo
from dfuser.libkern.param import NSEC_PER_TICK
from dfuser.libkern.sysctl import LONG, Sysctl

from . import thread as _thread
from .thread import TDPRI, Thread, lwkt_deschedule_self, switch

if TYPE_CHECKING:
    from .machine import Lwkt
    from .sched import Cpu

#: Buckets of a wheel; a power of two. At 100 ticks a second one revolution takes 10 s.
CALLWHEEL_SIZE: Final = 1024


class CalloutLock(Protocol):
    """What a callout needs of its lock; `lockmgr.Lock` is one."""

    async def acquire(self) -> None:
        """Take it exclusively."""

    def release(self) -> None:
        """Give it back."""

    def owned(self) -> bool:
        """Whether the running thread holds it exclusively."""


@attrs.frozen
class CalloutStatistics:
    """What one wheel, or all together, have done since boot.

    Attributes:
        pending: callouts that wait for their tick now.
        resets: arming calls.
        fired: functions called.
        stopped: pending callouts that were stopped.
        late: functions called after their tick.
        late_ticks: by how many ticks in total.
        max_late: the worst of them, in ticks.
        alarms: alarms of the clock that came.
    """

    pending: int
    resets: int
    fired: int
    stopped: int
    late: int
    late_ticks: int
    max_late: int
    alarms: int


class CallWheel:
    """The callouts of one CPU. Counterpart: struct softclock_pcpu (kern_timeout.c)."""

    __slots__ = (
        "alarm",
        "alarms",
        "armed",
        "buckets",
        "cpu",
        "fired",
        "isrunning",
        "ktr",
        "late",
        "late_ticks",
        "lwkt",
        "max_late",
        "occupied",
        "pending",
        "resets",
        "running",
        "softticks",
        "stopped",
        "thread",
        "wheelmask",
    )

    ktr_fire = KtrInfo("callout", "fire", "tick %d late %d")
    ktr_reset = KtrInfo("callout", "reset", "tick %d cpu%d")

    sysctl_pending = Sysctl(
        lambda w: f"kern.callout.cpu{w.cpu.cpuid}.pending", "callouts armed", attr="pending"
    )
    sysctl_fired = Sysctl(
        lambda w: f"kern.callout.cpu{w.cpu.cpuid}.fired",
        "callouts executed",
        attr="fired",
        kind=LONG,
    )
    sysctl_late = Sysctl(
        lambda w: f"kern.callout.cpu{w.cpu.cpuid}.late",
        "callouts executed after their tick",
        attr="late",
        kind=LONG,
    )
    sysctl_late_ticks = Sysctl(
        lambda w: f"kern.callout.cpu{w.cpu.cpuid}.late_ticks",
        "ticks by which callouts were late, summed",
        attr="late_ticks",
        kind=LONG,
    )

    def __init__(self, cpu: Cpu, size: int = CALLWHEEL_SIZE) -> None:
        KKASSERT(size > 0 and size & (size - 1) == 0, "callwheel size is not a power of two")
        self.cpu = cpu
        self.lwkt = cpu.lwkt
        self.ktr = cpu.lwkt.ktr.master("callout")
        self.buckets: list[dict[Callout, None] | None] = [None] * size
        self.wheelmask = size - 1
        self.occupied = 0
        #: The next tick to be processed; everything before is done.
        self.softticks = cpu.lwkt.ticks
        self.armed: int | None = None
        self.alarm = cpu.lwkt.clock.alarm(self._alarm_fired)
        self.isrunning = False
        self.running: Callout | None = None
        self.thread: Thread | None = None
        self.pending = 0
        self.resets = 0
        self.fired = 0
        self.stopped = 0
        self.late = 0
        self.late_ticks = 0
        self.max_late = 0
        self.alarms = 0

    # --- the wheel -------------------------------------------------------------------------

    def insert(self, c: Callout, tick: int) -> None:
        """Put ``c`` on the wheel for ``tick``, at the earliest the one after those being done."""
        if self.isrunning:
            tick = max(tick, self.softticks + 1)
        elif not self.occupied:
            self.softticks = self.lwkt.ticks
        at = tick & self.wheelmask
        bucket = self.buckets[at]
        if bucket is None:
            bucket = self.buckets[at] = {}
        bucket[c] = None
        c.qtick = tick
        c.wheel = self
        self.occupied |= 1 << at
        self.pending += 1
        self.resets += 1
        if not self.isrunning and (self.armed is None or tick < self.armed):
            self._arm(tick)
        if self.ktr.mask:
            self.ktr.log(self.ktr_reset, tick, self.cpu.cpuid)

    def remove(self, c: Callout) -> None:
        """Take ``c`` off the wheel. An alarm that is not needed any more comes in vain."""
        at = c.qtick & self.wheelmask
        bucket = self.buckets[at]
        assert bucket is not None
        del bucket[c]
        if not bucket:
            self.buckets[at] = None
            self.occupied &= ~(1 << at)
            if not self.occupied and self.armed is not None:
                self.armed = None
                self.alarm.cancel()
        c.wheel = None
        self.pending -= 1

    def next_tick(self, start: int) -> int | None:
        """The first tick from ``start`` on whose bucket is not empty; None for an empty wheel."""
        occupied = self.occupied
        if not occupied:
            return None
        at = start & self.wheelmask
        ahead = occupied >> at
        if ahead:
            return start + (ahead & -ahead).bit_length() - 1
        behind = (occupied & -occupied).bit_length() - 1
        return start + self.wheelmask + 1 - at + behind

    def _arm(self, tick: int) -> None:
        self.armed = tick
        self.alarm.arm(tick * NSEC_PER_TICK)

    # --- softclock -------------------------------------------------------------------------

    def _alarm_fired(self) -> None:
        """The host's clock calls: raise the interrupt on the wheel's CPU."""
        self.cpu.interrupt(self.softtick)

    def softtick(self) -> None:
        """The interrupt: schedule the softclock thread. Counterpart: hardclock_softtick."""
        self.alarms += 1
        self.armed = None
        if self.isrunning or not self.occupied:
            return
        self.isrunning = True
        self.start()
        assert self.thread is not None
        self.lwkt.schedule(self.thread)

    def start(self) -> None:
        """Create the softclock thread unless it exists. Boot does it early, so that ps shows it."""
        if self.thread is None:
            self.thread = self.lwkt.create(
                self._softclock,
                name=f"softclock {self.cpu.cpuid}",
                pri=TDPRI.SOFT_TIMER,
                cpu=self.cpu.cpuid,
                driver="coro",
            )

    async def _softclock(self) -> None:
        """The thread: do what is due, arm the alarm for the rest, wait.

        Counterpart: softclock_handler.
        """
        while True:
            self.isrunning = True
            while (tick := self.next_tick(self.softticks)) is not None:
                now = self.lwkt.ticks
                if tick > now:
                    self.softticks = max(self.softticks, now)
                    break
                self.softticks = tick
                await self._run_tick(tick)
                self.softticks = tick + 1
            self.isrunning = False
            if tick is not None:
                self._arm(tick)
            lwkt_deschedule_self()
            await switch()

    async def _run_tick(self, tick: int) -> None:
        """Call what is due at ``tick``; callouts of later revolutions stay."""
        bucket = self.buckets[tick & self.wheelmask]
        assert bucket is not None
        for c in [c for c in bucket if c.qtick == tick]:
            if c.wheel is not self or c.qtick != tick:
                continue
            self.remove(c)
            late = self.lwkt.ticks - tick
            if late > 0:
                self.late += 1
                self.late_ticks += late
                self.max_late = max(self.max_late, late)
            if self.ktr.mask:
                self.ktr.log(self.ktr_fire, tick, late)
            self.running = c
            c.inprog = self
            try:
                if c.lock is None:
                    self.fired += 1
                    c.func(*c.args)
                else:
                    await self._call_locked(c, c.lock)
            finally:
                self.running = None
                c.inprog = None
                if c.waiters:
                    for td in c.waiters:
                        self.lwkt.schedule(td)
                    c.waiters.clear()

    async def _call_locked(self, c: Callout, lock: CalloutLock) -> None:
        """Call ``c`` under its lock, unless it was stopped or armed anew while we waited."""
        serial = c.serial
        await lock.acquire()
        try:
            if c.serial == serial:
                self.fired += 1
                c.func(*c.args)
        finally:
            lock.release()

    def statistics(self) -> CalloutStatistics:
        """Counters since boot."""
        return CalloutStatistics(
            pending=self.pending,
            resets=self.resets,
            fired=self.fired,
            stopped=self.stopped,
            late=self.late,
            late_ticks=self.late_ticks,
            max_late=self.max_late,
            alarms=self.alarms,
        )


class Callout:
    """A function to be called once, some ticks from now.

    Counterpart: struct callout (sys/callout.h).

    Args:
        func: called as ``func(*args)`` on the softclock thread of the CPU it was armed on.
        lock: held exclusively around the call (callout_init_lk).
    """

    __slots__ = (
        "active",
        "args",
        "func",
        "inprog",
        "lock",
        "qtick",
        "serial",
        "terminated",
        "waiters",
        "wheel",
    )

    def __init__(
        self, func: Callable[..., object], *args: Any, lock: CalloutLock | None = None
    ) -> None:
        self.func = func
        self.args = args
        self.lock = lock
        #: The wheel it is pending on.
        self.wheel: CallWheel | None = None
        #: The wheel whose softclock thread is calling it.
        self.inprog: CallWheel | None = None
        self.qtick = 0
        self.serial = 0
        self.active = False
        self.terminated = False
        self.waiters: list[Thread] = []

    @property
    def pending(self) -> bool:
        """Whether it waits for its tick. Counterpart: callout_pending."""
        return self.wheel is not None

    def deactivate(self) -> None:
        """Clear `active`, which arming sets and stopping clears but running leaves alone.

        Counterpart: callout_deactivate.
        """
        self.active = False

    def set(self, func: Callable[..., object], *args: Any) -> None:
        """Replace what will be called."""
        self.func = func
        self.args = args

    def reset(self, ticks: int) -> None:
        """Arm it, anew if it is pending, on the running CPU; at least one tick. Never suspends.

        Panics outside any thread: there is no running CPU; use `reset_bycpu`.
        Counterpart: callout_reset.
        """
        td = _thread.curthread
        if td is None:
            panic("callout_reset: no running CPU; use reset_bycpu")
        self.reset_bycpu(ticks, td.cpu)

    def reset_bycpu(self, ticks: int, cpu: Cpu) -> None:
        """Arm it on ``cpu``. Counterpart: callout_reset_bycpu."""
        if self.terminated:
            panic("callout_reset: the callout was terminated")
        if self.wheel is not None:
            self.wheel.remove(self)
        self.serial += 1
        self.active = True
        wheel = callwheel(cpu)
        wheel.insert(self, wheel.lwkt.ticks + (ticks if ticks > 0 else 1))

    def stop(self) -> bool:
        """Disarm it. Returns whether it was pending and now will not be called. Never suspends.

        A callout that waits for its lock is stopped for certain, too. One whose function is being
        called right now (by an interrupted softclock, or by itself) goes on.
        Counterpart: callout_stop.
        """
        self.active = False
        self.serial += 1
        wheel = self.wheel
        if wheel is not None:
            wheel.remove(self)
            wheel.stopped += 1
            return True
        return False

    async def cancel(self) -> bool:
        """`stop`, then wait until its function is not being called any more.

        Returns whether a call was prevented. Does not wait when called by the function itself, or
        by the holder of the callout's lock (the function cannot begin then).
        Counterpart: callout_cancel.
        """
        prevented = self.stop()
        while (
            (wheel := self.inprog) is not None
            and _thread.curthread is not wheel.thread
            and not (self.lock is not None and self.lock.owned())
        ):
            td = _thread.curthread
            self.waiters.append(td)
            td.wmesg = "cowait"
            lwkt_deschedule_self()
            await switch()
            td.wmesg = ""
        return prevented

    async def drain(self) -> bool:
        """The same as `cancel`. Counterpart: callout_drain."""
        return await self.cancel()

    async def terminate(self) -> None:
        """`cancel` for good: arming it again panics. Counterpart: callout_terminate."""
        self.terminated = True
        await self.cancel()


def callwheel(cpu: Cpu) -> CallWheel:
    """The wheel of ``cpu``, made when first asked for."""
    wheel = cpu.callwheel
    if wheel is None:
        wheel = cpu.callwheel = CallWheel(cpu)
    return wheel  # type: ignore[no-any-return]


def callout_statistics(lwkt: Lwkt) -> CalloutStatistics:
    """The wheels of all CPUs together."""
    each = [callwheel(cpu).statistics() for cpu in lwkt.cpus]
    return CalloutStatistics(
        pending=sum(s.pending for s in each),
        resets=sum(s.resets for s in each),
        fired=sum(s.fired for s in each),
        stopped=sum(s.stopped for s in each),
        late=sum(s.late for s in each),
        late_ticks=sum(s.late_ticks for s in each),
        max_late=max(s.max_late for s in each),
        alarms=sum(s.alarms for s in each),
    )


def callout_init(func: Callable[..., object], *args: Any) -> Callout:
    """Counterpart: callout_init. The same as `callout_init_mp`: there is no big lock to take."""
    return Callout(func, *args)


def callout_init_mp(func: Callable[..., object], *args: Any) -> Callout:
    """Counterpart: callout_init_mp."""
    return Callout(func, *args)


def callout_init_lk(lock: CalloutLock, func: Callable[..., object], *args: Any) -> Callout:
    """A callout whose function runs with ``lock`` held. Counterpart: callout_init_lk."""
    return Callout(func, *args, lock=lock)
