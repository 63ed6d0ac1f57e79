"""Processes: who does things in this kernel, and how to find them.

Everything that executes belongs to a process. **Process 0** (``swapper``) is the kernel itself and
owns the kernel threads. Further processes come from the host: a request that must wait becomes a
process of its own for as long as it waits (`ProcTable.request_enter`), named after what it does and
for whom: ``fuse:read/1234``. So ``ps``, ``/proc`` and every later accounting see host activity
where it matters, while a request that is answered at once costs nothing here. A host process that
asks who it is (``/proc/curproc``) also gets a process, kept a little while after its last question,
so that the answer is still true when it is used.

Process ids run upwards from 2 to 999999 and start again at 100. An id is not given out again while
its process lives, nor for ten seconds after, so that whoever holds a number a little too long hits
nobody else.

Counterpart: struct proc (sys/proc.h), kern/kern_proc.c (allproc, pfind, proc_makepid,
proc_remove_zombie), kern/kern_fork.c (the limits).
Differs from DragonFly: no process groups, sessions, zombies, descriptors or address spaces yet;
those come with user processes. The ten seconds are kept by remembering the ids of that time, not by
256-second domains, so an id is never skipped without need. Records are recycled through a bounded
pool: a reference across a suspension must compare ``serial``.
Token and lock order: takes none; nothing here waits.
Invariants: a pid names at most one process; process 0 always exists; ``serial`` never repeats in a
kernel's life; live processes never exceed ``maxproc``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from dfuser.libkern.errno import EAGAIN, KKASSERT, KError
from dfuser.libkern.param import MAXCOMLEN
from dfuser.libkern.sysctl import INT, LONG, RD, RW, UINT, Sysctl
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt import thread as _thread

from .lwp import Lwp, LwpStat
from .prot import CredTable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfuser.hw.clock import Clock
    from dfuser.lwkt.thread import Thread

PID_MAX: Final = 999_999
#: Where the numbering starts again after `PID_MAX`.
PID_WRAP: Final = 100
#: An id rests this long after its process is gone. Counterpart: PIDDOM_DELAY.
PID_DELAY_NS: Final = 10 * 1_000_000_000
#: A host process that asked for its own process keeps it this long after the last question.
VISITOR_NS: Final = 10 * 1_000_000_000
VISITORS_MAX: Final = 256
MAXPROC: Final = 6_164
#: The last few processes are kept for root. Counterpart: fork1 (kern/kern_fork.c).
ROOT_RESERVE: Final = 10
POOL_MAX: Final = 256

#: The credential of a process record that is not in use.
NOCRED: Final = Ucred.root()


class ProcStat:
    """State of a process. Counterpart: enum procstat (sys/proc_common.h)."""

    SIDL: Final = 1
    SACTIVE: Final = 2
    SSTOP: Final = 3
    SZOMB: Final = 4
    SCORE: Final = 5


class P:
    """Process flags. Counterpart: P_* (sys/proc.h)."""

    CONTROLT: Final = 0x0000_0002
    SUGID: Final = 0x0000_0100
    SYSTEM: Final = 0x0000_0200
    """A process of the kernel: it gets no signals."""
    REQUEST: Final = 0x1000_0000
    """Stands for a request of the host. Not in DragonFly."""
    VISITOR: Final = 0x2000_0000
    """Stands for a host process that asked who it is. Not in DragonFly."""


class Proc:
    """One process.

    Counterpart: struct proc (sys/proc.h); the p_ prefix is dropped.

    Attributes:
        serial: counts processes since boot; tells one user of a recycled record from the next.
        comm: name, at most MAXCOMLEN characters. args: the words of the command line.
        start: realtime of its beginning in nanoseconds.
        lwps: its light weight processes by tid; lasttid is the highest given out.
        host_pid: the host process it stands for, 0 for none.
        used: monotonic time of the last question of a visitor.
    """

    __slots__ = (
        "args",
        "comm",
        "flags",
        "host_pid",
        "lasttid",
        "lwps",
        "pid",
        "pptr",
        "serial",
        "start",
        "stat",
        "ucred",
        "used",
    )

    def __init__(self) -> None:
        self.lwps: dict[int, Lwp] = {}
        self.pid = -1
        self.serial = 0
        self.flags = 0
        self.stat = ProcStat.SIDL
        self.comm = ""
        self.args: tuple[str, ...] = ()
        self.ucred: Ucred = NOCRED
        self.pptr: Proc | None = None
        self.start = 0
        self.host_pid = 0
        self.lasttid = 0
        self.used = 0

    def __repr__(self) -> str:
        return f"<Proc {self.pid} {self.comm}>"

    @property
    def ppid(self) -> int:
        """The parent's pid, 0 when there is none."""
        return self.pptr.pid if self.pptr is not None else 0

    @property
    def first_lwp(self) -> Lwp | None:
        """The oldest LWP. Counterpart: FIRST_LWP_IN_PROC."""
        return next(iter(self.lwps.values()), None)


class CallerId(NamedTuple):
    """The host process behind the request that is running."""

    host_pid: int
    uid: int
    gid: int


class ProcTableStatistics(NamedTuple):
    """Sizes and counters since boot."""

    procs: int
    lwps: int
    maxproc: int
    requests: int
    visitors: int
    created: int
    exited: int
    refused: int
    pids_resting: int
    pooled: int


class ProcTable:
    """The processes of one kernel.

    Counterpart: procglob[] (kern/kern_proc.c).
    """

    sysctls = (
        Sysctl("kern.maxproc", "Maximum number of processes", attr="maxproc", kind=INT, flags=RW,
               minimum=ROOT_RESERVE + 2, maximum=PID_MAX - 1, number=6),
        Sysctl("kern.nprocs", "Processes now", getter="count", kind=INT, flags=RD),
        Sysctl("kern.proc_refused", "Processes refused at the limit", attr="refused", kind=LONG,
               flags=RD),
        Sysctl("kern.pid_inner_skips", "Process ids skipped because they were in use or resting",
               attr="pid_inner_skips", kind=UINT, flags=RD),
        Sysctl("kern.requests_parked", "Requests of the host that wait now", attr="requests",
               kind=INT, flags=RD),
        Sysctl("security.ps_showallprocs", "Whether processes of other users are shown",
               attr="showallprocs", kind=INT, flags=RW, minimum=0, maximum=1),
    )  # fmt: skip

    def __init__(self, clock: Clock, *, maxproc: int = MAXPROC) -> None:
        """Make the table with process 0 in it."""
        self.clock = clock
        self.maxproc = maxproc
        self.showallprocs = 1
        self.refused = 0
        self.created = 0
        self.exited = 0
        self.requests = 0
        self.pid_inner_skips = 0
        #: Asked for the host process whose request is running; set by the room that has requests.
        self.caller: Callable[[], CallerId | None] | None = None
        #: Called with each process that ends, while its pid is still its own. Must not wait.
        self.at_exit: list[Callable[[Proc], None]] = []
        self._nextpid = 2
        self._allproc: dict[int, Proc] = {}
        self._resting: OrderedDict[int, int] = OrderedDict()
        self._visitors: OrderedDict[int, Proc] = OrderedDict()
        self._pool: list[Proc] = []
        self._lwp_pool: list[Lwp] = []
        self.creds = CredTable()
        self.proc0 = self._make_proc0()

    def _make_proc0(self) -> Proc:
        proc = Proc()
        proc.pid = 0
        proc.flags = P.SYSTEM
        proc.ucred = self.creds.get(0, 0)
        proc.comm = "swapper"
        proc.start = self.clock.realtime_ns()
        proc.stat = ProcStat.SACTIVE
        self._allproc[0] = proc
        return proc

    # --- finding ---------------------------------------------------------------------------

    def pfind(self, pid: int) -> Proc | None:
        """The process of that id, None when there is none. Counterpart: pfind."""
        self._reap_visitors()
        return self._allproc.get(pid)

    def allproc(self) -> Iterator[Proc]:
        """Every process, oldest first. Those made meanwhile are not seen, ended ones may be.

        Counterpart: allproc_scan.
        """
        self._reap_visitors()
        return iter(tuple(self._allproc.values()))

    def visible(self, cred: Ucred, proc: Proc) -> bool:
        """Whether ``cred`` may see ``proc``: same prison, and security.ps_showallprocs.

        Counterpart: PRISON_CHECK and the test of ps_showallprocs in procfs_lookup.
        """
        if cred.prison is not None and cred.prison is not proc.ucred.prison:
            return False
        return bool(self.showallprocs) or cred.uid == 0 or cred.uid == proc.ucred.uid

    def curproc(self) -> Proc:
        """The process of the running thread.

        A request of the host that runs without a process gets one for its host process (kept for
        `VISITOR_NS`); a kernel thread belongs to process 0.

        Raises:
            KError: EAGAIN, a process is needed and the table is full.
        """
        td: Thread | None = _thread.curthread
        lwp = getattr(td, "lwp", None)
        if isinstance(lwp, Lwp):
            return lwp.proc
        who = self.caller() if self.caller is not None else None
        return self.proc0 if who is None else self.visitor(who)

    def count(self) -> int:
        """Processes now."""
        return len(self._allproc)

    # --- requests of the host --------------------------------------------------------------

    def request_enter(self, uid: int, gid: int, host_pid: int, op: str) -> Lwp:
        """A request of the host is about to wait: give it a process.

        The name shows what and for whom: ``fuse:read/1234``; a long operation's name is cut so that
        the host's process id is whole.

        Raises:
            KError: EAGAIN, the table is full; the last few places are for root.
        """
        tail = f"/{host_pid}"
        comm = f"fuse:{op}"[: max(1, MAXCOMLEN - len(tail))] + tail
        proc = self._create(self.creds.get(uid, gid), comm, P.REQUEST)
        proc.args = (f"fuse:{op}", str(host_pid))
        proc.host_pid = host_pid
        lwp = self._lwp_create(proc)
        lwp.stat = LwpStat.LSSLEEP
        self.requests += 1
        return lwp

    def request_exit(self, lwp: Lwp) -> None:
        """The request is answered: its process ends. Counterpart: exit1, without the zombie."""
        KKASSERT(bool(lwp.proc.flags & P.REQUEST and lwp.proc.serial), "request_exit: no request")
        self.requests -= 1
        self._exit(lwp.proc)

    def visitor(self, who: CallerId) -> Proc:
        """The process that stands for a host process which asks who it is.

        Raises:
            KError: EAGAIN, the table is full.
        """
        now = self.clock.monotonic_ns()
        self._reap_visitors()
        proc = self._visitors.get(who.host_pid)
        if proc is not None and (proc.ucred.uid, proc.ucred.gid) != (who.uid, who.gid):
            self._drop_visitor(who.host_pid)
            proc = None
        if proc is None:
            while len(self._visitors) >= VISITORS_MAX:
                self._drop_visitor(next(iter(self._visitors)))
            cred = self.creds.get(who.uid, who.gid)
            proc = self._create(cred, f"host/{who.host_pid}", P.VISITOR)
            proc.args = (proc.comm,)
            proc.host_pid = who.host_pid
            self._lwp_create(proc)
            self._visitors[who.host_pid] = proc
        proc.used = now
        self._visitors.move_to_end(who.host_pid)
        return proc

    def _drop_visitor(self, host_pid: int) -> None:
        self._exit(self._visitors.pop(host_pid))

    def _reap_visitors(self) -> None:
        """End visitors whose time is over; nobody can look at the table without passing here."""
        oldest = self.clock.monotonic_ns() - VISITOR_NS
        while self._visitors:
            host_pid, proc = next(iter(self._visitors.items()))
            if proc.used > oldest:
                return
            self._drop_visitor(host_pid)

    # --- making and ending -----------------------------------------------------------------

    def _create(self, ucred: Ucred, comm: str, flags: int) -> Proc:
        """A new process, child of process 0, without LWPs."""
        limit = self.maxproc if ucred.uid == 0 else self.maxproc - ROOT_RESERVE
        if len(self._allproc) >= limit:
            self.refused += 1
            raise KError(EAGAIN, "maxproc limit exceeded")
        pid = self._makepid()
        proc = self._pool.pop() if self._pool else Proc()
        self.created += 1
        proc.serial = self.created
        proc.pid = pid
        proc.ucred = ucred
        proc.comm = comm[:MAXCOMLEN]
        proc.flags = flags
        proc.pptr = self.proc0
        proc.start = self.clock.realtime_ns()
        proc.stat = ProcStat.SACTIVE
        self._allproc[pid] = proc
        return proc

    def _lwp_create(self, proc: Proc) -> Lwp:
        """A new LWP of ``proc``. Counterpart: lwp_fork1's allocation of the tid."""
        lwp = self._lwp_pool.pop() if self._lwp_pool else Lwp()
        proc.lasttid += 1
        lwp.reset(proc, proc.lasttid)
        proc.lwps[lwp.tid] = lwp
        return lwp

    def _exit(self, proc: Proc) -> None:
        """End ``proc``: tell who wants to know, rest its id, recycle the records."""
        proc.stat = ProcStat.SZOMB
        for hook in self.at_exit:
            hook(proc)
        del self._allproc[proc.pid]
        self._resting[proc.pid] = self.clock.monotonic_ns()
        self._forget_rested()
        self.exited += 1
        for lwp in proc.lwps.values():
            lwp.thread = None
            if len(self._lwp_pool) < POOL_MAX:
                self._lwp_pool.append(lwp)
        proc.lwps.clear()
        proc.pid = -1
        proc.serial = 0
        proc.lasttid = 0
        proc.args = ()
        if len(self._pool) < POOL_MAX:
            self._pool.append(proc)

    def _makepid(self) -> int:
        """The next free id that has rested. Counterpart: proc_makepid."""
        self._forget_rested()
        for _ in range(len(self._allproc) + len(self._resting) + PID_WRAP):
            pid = self._nextpid
            self._nextpid = pid + 1 if pid < PID_MAX else PID_WRAP
            if pid not in self._allproc and pid not in self._resting:
                return pid
            self.pid_inner_skips += 1
        self.refused += 1
        raise KError(EAGAIN, "no process id is free")

    def _forget_rested(self) -> None:
        """Forget ids that have rested long enough; they stand in the order they were freed."""
        resting = self._resting
        oldest = self.clock.monotonic_ns() - PID_DELAY_NS
        while resting:
            pid, freed = next(iter(resting.items()))
            if freed > oldest:
                return
            del resting[pid]

    def statistics(self) -> ProcTableStatistics:
        """Sizes now and counters since boot."""
        self._reap_visitors()
        return ProcTableStatistics(
            procs=len(self._allproc),
            lwps=sum(len(proc.lwps) for proc in self._allproc.values()),
            maxproc=self.maxproc,
            requests=self.requests,
            visitors=len(self._visitors),
            created=self.created,
            exited=self.exited,
            refused=self.refused,
            pids_resting=len(self._resting),
            pooled=len(self._pool),
        )
