"""kinfo: what ps shows, one record a thread.

A record joins a process, one of its LWPs, and the LWKT thread behind that. Kernel threads have no
LWP; they are shown under process 0 with their own thread number. Records are made when asked for
and hold values only.

Counterpart: struct kinfo_proc, struct kinfo_lwp (sys/kinfo.h), kern/kern_kinfo.c.
Differs from DragonFly: one flat record instead of a nested pair; kernel threads belong to pid 0
there only in name, and are listed as pid -1. Memory and time fields wait for a VM and a scheduler
that charge them.
Token and lock order: takes none.
Invariants: a thread is in one record; a process is in at least one.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from dfuser.libkern.ddbcmd import ddb_command

from .lwp import Lwp, LwpStat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from dfuser.libkern.ucred import Ucred
    from dfuser.lwkt.thread import Thread
    from dfuser.vfs.kernfs.registry import KernViews

    from .proc import Proc, ProcTable

_LWP_STATES: Final = MappingProxyType(
    {LwpStat.LSRUN: "R", LwpStat.LSSTOP: "T", LwpStat.LSSLEEP: "S"}
)


class KinfoProc(NamedTuple):
    """One line of ps. Counterpart: struct kinfo_proc with its kinfo_lwp."""

    pid: int
    ppid: int
    tid: int
    """LWKT thread number; for an LWP without a thread, minus its number in the process; 0 for a
    process without LWPs."""
    uid: int
    gid: int
    pri: int
    """LWKT priority 0 to 31, -1 without a thread."""
    cpu: int
    """CPU the thread belongs to, -1 without a thread."""
    state: str
    """R runnable, S asleep, I interruptibly asleep, T stopped, Z exited."""
    flags: int
    """Flags of the thread (TDF), 0 without one."""
    switches: int
    wmesg: str
    """What it waits for, "" when it does not."""
    host_pid: int
    start: int
    """Start of the process, nanoseconds since the epoch."""
    comm: str
    """Name of the process; of the thread for kernel threads."""


def fill_kinfo_proc(proc: Proc) -> KinfoProc:
    """The record of a process that has no threads now. Counterpart: fill_kinfo_proc."""
    return KinfoProc(
        pid=proc.pid,
        ppid=proc.ppid,
        tid=0,
        uid=proc.ucred.uid,
        gid=proc.ucred.gid,
        pri=-1,
        cpu=-1,
        state="S",
        flags=0,
        switches=0,
        wmesg="",
        host_pid=proc.host_pid,
        start=proc.start,
        comm=proc.comm,
    )


def fill_kinfo_lwp(proc: Proc, lwp: Lwp) -> KinfoProc:
    """The record of an LWP. Counterpart: fill_kinfo_lwp."""
    td = lwp.thread
    return KinfoProc(
        pid=proc.pid,
        ppid=proc.ppid,
        tid=td.tid if td is not None else -lwp.tid,
        uid=proc.ucred.uid,
        gid=proc.ucred.gid,
        pri=td.pri if td is not None else -1,
        cpu=td.cpu.cpuid if td is not None else -1,
        state=td.state if td is not None else _LWP_STATES[lwp.stat],
        flags=td.flags if td is not None else 0,
        switches=td.switches if td is not None else 0,
        wmesg=td.wmesg if td is not None else "",
        host_pid=proc.host_pid,
        start=proc.start,
        comm=proc.comm,
    )


def fill_kinfo_proc_kthread(proc0: Proc, td: Thread) -> KinfoProc:
    """The record of a kernel thread. Counterpart: fill_kinfo_proc_kthread."""
    return KinfoProc(
        pid=proc0.pid,
        ppid=proc0.ppid,
        tid=td.tid,
        uid=proc0.ucred.uid,
        gid=proc0.ucred.gid,
        pri=td.pri,
        cpu=td.cpu.cpuid,
        state=td.state,
        flags=td.flags,
        switches=td.switches,
        wmesg=td.wmesg,
        host_pid=0,
        start=proc0.start,
        comm=td.name,
    )


class KinfoTable:
    """Makes the records of one kernel.

    Args:
        procs: the processes.
        threads: gives the live threads by number; without it only LWPs are listed.
    """

    __slots__ = ("procs", "threads")

    def __init__(
        self, procs: ProcTable, threads: Callable[[], Mapping[int, Thread]] | None = None
    ) -> None:
        self.procs = procs
        self.threads = threads

    def register(self, views: KernViews) -> None:
        """Show /kern/procs, and the counters of the process table."""
        views.add_rows("procs", "processes and threads, parked requests included", self.all,
                       columns=KinfoProc._fields)  # fmt: skip
        views.add_statistics("procs", self.procs.statistics)

    def kthreads(self) -> Iterator[Thread]:
        """The threads that execute no LWP, in the order of their numbers."""
        live = self.threads() if self.threads is not None else {}
        return (td for _, td in sorted(live.items()) if not isinstance(td.lwp, Lwp))

    def of_proc(self, proc: Proc) -> list[KinfoProc]:
        """The records of one process: of its threads, or of itself if it has none."""
        return self.threads_of(proc) or [fill_kinfo_proc(proc)]

    def threads_of(self, proc: Proc) -> list[KinfoProc]:
        """The records of the threads of one process; process 0 has the kernel threads."""
        records = [fill_kinfo_lwp(proc, lwp) for lwp in proc.lwps.values()]
        if proc is self.procs.proc0:
            records += [fill_kinfo_proc_kthread(proc, td) for td in self.kthreads()]
        return records

    @ddb_command("ps")
    def ddb_ps(self, *args: str) -> Iterable[str]:
        """Processes and threads: pid tid pri cpu state wmesg name."""
        yield "   PID    TID PRI CPU S WMESG    COMMAND"
        for k in self.all():
            yield (f"{k.pid:6} {k.tid:6} {k.pri:3} {k.cpu:3} {k.state} {k.wmesg or '-':8} {k.comm}")

    def all(self, cred: Ucred | None = None) -> Iterable[KinfoProc]:
        """Every record ``cred`` may see (None: every record), kernel threads first.

        Counterpart: kern.proc.all_lwp.
        """
        for proc in self.procs.allproc():
            if cred is None or self.procs.visible(cred, proc):
                yield from self.of_proc(proc)
