"""Sleep queues: who sleeps on what, on each CPU, and the ways a sleep ends.

Each CPU has a table of sleep queues, keyed by identifier and domain, that only this CPU changes,
and the machine has one mask per key of the CPUs that have sleepers on it. A wakeup serves its own
CPU directly and sends one IPI to each other CPU in the mask, and to no more.

This is the engine; the kernel calls the functions of `synch`.

Counterpart: sys/kern/kern_synch.c (gd_tsleep_hash, slpque_cpumasks, _wakeup, endtsleep).
Differs from DragonFly:

* the hash is exact (a dictionary), so there are no collisions and no spurious IPIs;
* ``wakeup_one`` wakes exactly one sleeper of the whole machine: a CPU that has none left by the
  time the request arrives passes it on to the next CPU of the mask. DragonFly asks all of them;
* a thread that is scheduled by mistake goes back to sleep; DragonFly returns 0 early;
* a wakeup that came before the signal wins over it (0, not EINTR), so that a ``wakeup_one`` is
  never swallowed; the signal is reported by the next PCATCH sleep.

Token and lock order: takes none. Tokens are released while asleep, as for every `switch`.
Invariants:

* a thread stands on at most one sleep queue, and TDF.TSLEEPQ says so; it stands there only while it
  sleeps or has announced that it will: nothing of it is left behind when `tsleep` returns, so the
  tables hold at most one entry a thread;
* a bit of a mask is set exactly while that CPU's queue for the key is not empty;
* of a wakeup, a timeout and an abort exactly one ends a sleep: the one that takes the thread off
  its queue;
* the identifier is referenced while anyone is on its queue, so an identity is not reused.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs

from dfuser.libkern.errno import EWOULDBLOCK, KKASSERT
from dfuser.libkern.ktr import KtrInfo
from dfuser.libkern.param import HZ, PCATCH, PDOMAIN_MASK, PWAKEUP_MYCPU, PWAKEUP_ONE
from dfuser.libkern.sysctl import Sysctl

from . import thread as _thread
from .callout import Callout
from .thread import TDF, Thread, lwkt_deschedule_self, switch

if TYPE_CHECKING:
    from .machine import Lwkt
    from .sched import Cpu

#: The thread has descheduled itself in `tsleep`. Counterpart: TDF_TSLEEP_DESCHEDULED.
TSLEEP_DESCHEDULED: Final = 0x00080000

#: The key of a sleep queue: what `ident_key` makes of the identifier, and the domain.
Key = tuple[Any, int]


class CursigHook(Protocol):
    """Asks the owner of a thread whether a signal must end an interruptible sleep."""

    def __call__(self, td: Thread) -> int:
        """Return EINTR or ERESTART when one is pending for ``td``, else 0."""


class Lbolt:
    """The identifier that is woken once a second. Counterpart: lbolt (sys/systm.h)."""

    __slots__ = ()


@attrs.frozen
class SynchStatistics:
    """What `Synch.statistics` returns; counters since boot.

    Attributes:
        sleepers: threads on sleep queues now.
        idents: sleep queues that exist now, over all CPUs.
        sleeps: sleeps begun (the interlock did not end them before).
        ilockfail: sleeps that returned at once because the wakeup had come first.
        timeouts: sleeps ended by their timeout.
        interrupted: sleeps ended or refused because of a signal or an abort.
        spurious: resumptions of a sleeper that nobody had woken.
        wakeups: wakeup calls of all kinds.
        woken: threads taken off a sleep queue by wakeups.
        ipis: requests sent to other CPUs.
        forwarded: wakeup_one requests passed on because the sleeper had gone.
    """

    sleepers: int
    idents: int
    sleeps: int
    ilockfail: int
    timeouts: int
    interrupted: int
    spurious: int
    wakeups: int
    woken: int
    ipis: int
    forwarded: int


def ident_key(ident: Any) -> Any:
    """What tells one identifier from another.

    Ints, strings and tuples of identifiers count by value, everything else by identity.
    """
    kind = type(ident)
    if kind is int or kind is str:
        return (ident,)
    if kind is tuple:
        return ("t", *[ident_key(part) for part in ident])
    return id(ident)


class Synch:
    """The sleep queues of one machine.

    Counterpart: gd_tsleep_hash of each CPU and slpque_cpumasks (kern_synch.c).
    """

    __slots__ = (
        "cursig",
        "delayed",
        "forwarded",
        "ilockfail",
        "interrupted",
        "ipis",
        "ktr",
        "lbolt",
        "lwkt",
        "masks",
        "queues",
        "sleeps",
        "spurious",
        "timeouts",
        "wakeups",
        "woken",
        "_lbolt_timer",
    )

    ktr_tsleep_beg = KtrInfo("tsleep", "tsleep_beg", "%s %s on %s")
    ktr_tsleep_end = KtrInfo("tsleep", "tsleep_end", "%s error %d")
    ktr_ilockfail = KtrInfo("tsleep", "ilockfail", "%s %s")
    ktr_wakeup_beg = KtrInfo("tsleep", "wakeup_beg", "%s domain %#x")
    ktr_wakeup_end = KtrInfo("tsleep", "wakeup_end", "%s woken %d")

    sysctl_sleepers = Sysctl("lwkt.tsleep.sleepers", "threads asleep", getter="count_sleepers")
    sysctl_sleeps = Sysctl("lwkt.tsleep.sleeps", "sleeps since boot", attr="sleeps")
    sysctl_wakeups = Sysctl("lwkt.tsleep.wakeups", "wakeup calls since boot", attr="wakeups")
    sysctl_ipis = Sysctl("lwkt.tsleep.ipis", "wakeup requests to other CPUs", attr="ipis")

    def __init__(self, lwkt: Lwkt) -> None:
        self.lwkt = lwkt
        self.ktr = lwkt.ktr.master("tsleep")
        self.queues: tuple[dict[Key, OrderedDict[Thread, None]], ...] = tuple({} for _ in lwkt.cpus)
        self.masks: dict[Key, int] = {}
        self.delayed: dict[Thread, list[tuple[Any, int]]] = {}
        #: Set by the owner of Lwps; None while no thread can have signals.
        self.cursig: CursigHook | None = None
        self.lbolt = Lbolt()
        self._lbolt_timer = Callout(self._lbolt_tick)
        self.sleeps = 0
        self.ilockfail = 0
        self.timeouts = 0
        self.interrupted = 0
        self.spurious = 0
        self.wakeups = 0
        self.woken = 0
        self.ipis = 0
        self.forwarded = 0

    # --- queues ----------------------------------------------------------------------------

    def interlock(self, td: Thread, ident: Any, flags: int) -> None:
        """Put the running thread ``td`` on the queue of ``ident``, off any other.

        Counterpart: _tsleep_interlock.
        """
        KKASSERT(ident is not None, "tsleep_interlock: no ident")
        domain = flags & PDOMAIN_MASK
        key: Key = (ident_key(ident), domain)
        if td.flags & TDF.TSLEEPQ:
            if td.sleepq_entry == key:
                return
            self.tsleep_remove(td)
        cpuid = td.cpu.cpuid
        queue = self.queues[cpuid].get(key)
        if queue is None:
            queue = self.queues[cpuid][key] = OrderedDict()
            self.masks[key] = self.masks.get(key, 0) | 1 << cpuid
        queue[td] = None
        td.flags |= TDF.TSLEEPQ
        td.sleepq_entry = key
        td.wchan = ident
        td.wdomain = domain
        if ident is self.lbolt and not self._lbolt_timer.pending:
            self._lbolt_timer.reset_bycpu(HZ - self.lwkt.ticks % HZ, self.lwkt.cpus[0])

    def tsleep_remove(self, td: Thread) -> None:
        """Take ``td`` off its sleep queue, if it is on one. Runs on the thread's own CPU.

        Counterpart: tsleep_remove.
        """
        if not td.flags & TDF.TSLEEPQ:
            return
        key = td.sleepq_entry
        cpuid = td.cpu.cpuid
        queue = self.queues[cpuid][key]
        del queue[td]
        if not queue:
            del self.queues[cpuid][key]
            mask = self.masks[key] & ~(1 << cpuid)
            if mask:
                self.masks[key] = mask
            else:
                del self.masks[key]
        td.flags &= ~TDF.TSLEEPQ
        td.sleepq_entry = None
        td.wchan = None
        td.wdomain = 0

    def interlocked(self, td: Thread, ident: Any, flags: int) -> bool:
        """Whether the announced sleep of ``td`` may begin: nobody has woken it meanwhile.

        When it may not, the thread is on no queue afterwards.
        """
        key: Key = (ident_key(ident), flags & PDOMAIN_MASK)
        if td.flags & TDF.TSLEEPQ and td.sleepq_entry == key:
            return True
        self.ilockfail += 1
        if self.ktr.mask:
            self.ktr.log(self.ktr_ilockfail, td.name, ident)
        self.tsleep_remove(td)
        return False

    # --- sleeping --------------------------------------------------------------------------

    def pending_signal(self, td: Thread) -> int:
        """EINTR or ERESTART when a signal must end an interruptible sleep of ``td``, else 0."""
        hook = self.cursig
        return hook(td) if hook is not None and td.lwp is not None else 0

    async def sleep(self, td: Thread, flags: int, wmesg: str, timo: int) -> int:
        """The second half of `tsleep`: the thread is on its queue; wait until it is not.

        Nothing happens between taking the thread off the run queue and the switch, so a wakeup is
        served either before (the caller sees it) or after (the thread is scheduled).
        """
        self.sleeps += 1
        catch = flags & PCATCH
        timer = None
        if timo > 0:
            timer = Callout(self._endtsleep, td, td.sleepq_entry)
            timer.reset(timo)
        lwkt_deschedule_self()
        td.flags |= TSLEEP_DESCHEDULED | (TDF.SINTR if catch else 0)
        td.wmesg = wmesg
        try:
            await switch()
            while td.flags & TDF.TSLEEPQ:
                if catch and (error := self.pending_signal(td)):
                    td.intr_error = error
                    break
                self.spurious += 1
                lwkt_deschedule_self()
                await switch()
        finally:
            if timer is not None:
                timer.stop()
            self.tsleep_remove(td)
            timedout = td.flags & TDF.TIMEOUT
            td.flags &= ~(TSLEEP_DESCHEDULED | TDF.SINTR | TDF.TIMEOUT)
            td.wmesg = ""
            error = td.intr_error
            td.intr_error = 0
        if timedout:
            return EWOULDBLOCK
        if error:
            self.interrupted += 1
        return error

    def _endtsleep(self, td: Thread, entry: Any) -> None:
        """A sleep's time is up: runs as a callout on the sleeper's CPU.

        ``entry`` tells this sleep from a later one on the same identifier.
        Counterpart: endtsleep.
        """
        if td.sleepq_entry is entry:
            self.timeouts += 1
            self.tsleep_remove(td)
            td.flags |= TDF.TIMEOUT
            self.lwkt.schedule(td)

    def abort_sleep(self, td: Thread, error: int) -> bool:
        """See `synch.abort_sleep`."""
        entry = td.sleepq_entry
        if not td.flags & TDF.SINTR or entry is None:
            return False
        self.lwkt.send_ipiq_nowait(td.cpu, self._abort, td, entry, error)
        return True

    def _abort(self, td: Thread, entry: Any, error: int) -> None:
        """End one interruptible sleep, known by its entry, with ``error``; on the sleeper's CPU."""
        if td.sleepq_entry is not entry or not td.flags & TDF.SINTR:
            return
        td.intr_error = error
        if td.flags & TDF.TSLEEPQ:
            self.tsleep_remove(td)
        else:
            td.sleepq_entry = None
        self.lwkt.schedule(td)

    def _lbolt_tick(self) -> None:
        """A second has passed. The timer is armed again by the next sleeper."""
        self.wakeup(self.lbolt, 0)

    # --- waking ----------------------------------------------------------------------------

    def wakeup(self, ident: Any, domain: int) -> None:
        """Wake the sleepers on ``ident`` as ``domain`` (PDOMAIN_*, PWAKEUP_*) says. Never suspends.

        Counterpart: _wakeup.
        """
        self.wakeups += 1
        key: Key = (ident_key(ident), domain & PDOMAIN_MASK)
        mask = self.masks.get(key, 0)
        ktr = self.ktr
        if ktr.mask:
            ktr.log(self.ktr_wakeup_beg, ident, domain)
        if not mask:
            return
        cur = _thread.curthread
        cpu = cur.cpu
        if mask >> cpu.cpuid & 1:
            woken = self._wake_queue(cpu, key, domain)
            if ktr.mask:
                ktr.log(self.ktr_wakeup_end, ident, woken)
            if woken and domain & PWAKEUP_ONE:
                return
        if not domain & PWAKEUP_MYCPU:
            self._wake_others(cpu, key, ident, domain)

    def _wake_queue(self, cpu: Cpu, key: Key, domain: int) -> int:
        """Wake one or all sleepers of ``cpu``; returns how many threads were asleep.

        Threads that have only announced a sleep are taken off too: their sleep will not begin.
        """
        queue = self.queues[cpu.cpuid].get(key)
        if queue is None:
            return 0
        asleep = []
        while queue:
            td = next(iter(queue))
            self.tsleep_remove(td)
            self.woken += 1
            if td.flags & TSLEEP_DESCHEDULED:
                asleep.append(td)
                if domain & PWAKEUP_ONE:
                    break
        for td in asleep:
            self.lwkt.schedule(td)
        return len(asleep)

    def _wake_others(self, cpu: Cpu, key: Key, ident: Any, domain: int) -> bool:
        """Send the request to the other CPUs with sleepers: to each, or to one for PWAKEUP_ONE."""
        mask = self.masks.get(key, 0) & ~(1 << cpu.cpuid)
        sent = False
        while mask:
            cpuid = mask.bit_length() - 1
            mask &= ~(1 << cpuid)
            self.ipis += 1
            sent = True
            target = self.lwkt.cpus[cpuid]
            self.lwkt.send_ipiq_nowait(target, self._wakeup_remote, target, key, ident, domain)
            if domain & PWAKEUP_ONE:
                break
        return sent

    def _wakeup_remote(self, cpu: Cpu, key: Key, ident: Any, domain: int) -> None:
        """A wakeup request has arrived at ``cpu`` by IPI; ``ident`` came along to stay alive."""
        if (
            not self._wake_queue(cpu, key, domain)
            and domain & PWAKEUP_ONE
            and self._wake_others(cpu, key, ident, domain)
        ):
            self.forwarded += 1

    # --- statistics ------------------------------------------------------------------------

    def count_sleepers(self) -> int:
        """Threads on sleep queues now."""
        return sum(len(queue) for table in self.queues for queue in table.values())

    def statistics(self) -> SynchStatistics:
        """Counters since boot, and what is on the queues now."""
        return SynchStatistics(
            sleepers=self.count_sleepers(),
            idents=sum(len(table) for table in self.queues),
            sleeps=self.sleeps,
            ilockfail=self.ilockfail,
            timeouts=self.timeouts,
            interrupted=self.interrupted,
            spurious=self.spurious,
            wakeups=self.wakeups,
            woken=self.woken,
            ipis=self.ipis,
            forwarded=self.forwarded,
        )


def synch_of(lwkt: Lwkt) -> Synch:
    """The sleep queues of ``lwkt``, made when first asked for."""
    own = lwkt.__dict__
    try:
        return own["synch"]  # type: ignore[no-any-return]
    except KeyError:
        synch = own["synch"] = Synch(lwkt)
        return synch


def count_asleep(threads: Iterable[Thread], ident: object) -> int:
    """How many of ``threads`` are on a sleep queue of ``ident``."""
    return sum(td.wchan is ident and bool(td.flags & TDF.TSLEEPQ) for td in threads)
