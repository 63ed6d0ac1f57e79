"""Light weight processes: the part of a process that executes.

A process has one `Lwp` for each thread of control in it, and each Lwp has at most one LWKT thread
behind it. A thread finds its Lwp in ``td.lwp``, the Lwp finds its thread in ``lwp.thread``.

Counterpart: struct lwp (sys/proc.h), kern/kern_fork.c (lwp_fork1).
Differs from DragonFly: no signal masks, no register frame and no user scheduler data yet; those
come with user processes.
Token and lock order: takes none.
Invariants: ``lwp.thread.lwp is lwp`` while both are set; a tid is not used twice in one process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dfuser.lwkt.thread import Thread

    from .proc import Proc


class LwpStat:
    """State of an LWP. Counterpart: enum lwpstat (sys/proc_common.h)."""

    LSRUN: Final = 1
    LSSTOP: Final = 2
    LSSLEEP: Final = 3


class Rusage:
    """What an LWP has used. Counterpart: struct rusage (sys/resource.h).

    Times are nanoseconds. Only what somebody counts is here: time is charged once a user scheduler
    exists, and shows as 0 until then.
    """

    __slots__ = ("inblock", "nivcsw", "nsignals", "nvcsw", "oublock", "stime", "utime")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin at nothing."""
        self.utime = 0
        self.stime = 0
        self.inblock = 0
        self.oublock = 0
        self.nsignals = 0
        self.nvcsw = 0
        self.nivcsw = 0


class Lwp:
    """One thread of control of a process.

    Counterpart: struct lwp (sys/proc.h); the lwp_ prefix is dropped.

    Attributes:
        tid: number within the process, from 1.
        thread: the LWKT thread that executes it now, None before and after.
        stat: LwpStat. siglist: pending signals, bit n-1 for signal n.
        ru: what it has used.
    """

    __slots__ = ("_proc", "flags", "ru", "siglist", "stat", "thread", "tid")

    def __init__(self) -> None:
        self._proc: Proc | None = None
        self.tid = 0
        self.flags = 0
        self.stat = LwpStat.LSRUN
        self.siglist = 0
        self.thread: Thread | None = None
        self.ru = Rusage()

    def reset(self, proc: Proc, tid: int) -> None:
        """Make it a new LWP of ``proc``."""
        self._proc = proc
        self.tid = tid
        self.flags = 0
        self.stat = LwpStat.LSRUN
        self.siglist = 0
        self.thread = None
        self.ru.clear()

    @property
    def proc(self) -> Proc:
        """The process it belongs to."""
        assert self._proc is not None
        return self._proc

    def __repr__(self) -> str:
        pid = self._proc.pid if self._proc is not None else -1
        return f"<Lwp {pid}.{self.tid}>"
