"""Signals, as far as there is somebody to receive them.

Today that is a request of the host that waits. It has no handlers, so only the default action
counts: a signal that would end a process ends the wait with EINTR, and the host's caller sees that;
a signal that is ignored by default does nothing; a signal that would stop a process is refused,
because a request cannot be stopped. The kernel itself (process 0) gets no signals, and a process
that stands for a host process is the host's to signal.

Counterpart: kern/kern_sig.c (ksignal, sigproptbl), sys/signal.h.
Differs from DragonFly: masks, handlers, stops and core dumps come with user processes.
Token and lock order: takes none; nothing here waits.
Invariants: a signal that ends a wait stays pending until the request is gone, so a second wait of
the same request ends at once too.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from dfuser.libkern.errno import EINTR, EINVAL, EOPNOTSUPP, EPERM, ESRCH, KError
from dfuser.lwkt.synch import abort_sleep

from .lwp import Lwp
from .proc import P, Proc, ProcStat

if TYPE_CHECKING:
    from dfuser.lwkt.thread import Thread

NSIG: Final = 64

#: Names as /proc/<pid>/ctl takes them, and numbers. Counterpart: signames (procfs_ctl.c).
SIGNALS: Final = MappingProxyType(
    {
        "hup": 1, "int": 2, "quit": 3, "ill": 4, "trap": 5, "abrt": 6, "iot": 6, "emt": 7,
        "fpe": 8, "kill": 9, "bus": 10, "segv": 11, "sys": 12, "pipe": 13, "alrm": 14,
        "term": 15, "urg": 16, "stop": 17, "tstp": 18, "cont": 19, "chld": 20, "ttin": 21,
        "ttou": 22, "io": 23, "xcpu": 24, "xfsz": 25, "vtalrm": 26, "prof": 27, "winch": 28,
        "info": 29, "usr1": 30, "usr2": 31,
    }
)  # fmt: skip

SIGKILL: Final = 9
_IGNORED: Final = frozenset(SIGNALS[n] for n in ("urg", "cont", "chld", "io", "winch", "info"))
_STOPS: Final = frozenset(SIGNALS[n] for n in ("stop", "tstp", "ttin", "ttou"))


def ksignal(proc: Proc, sig: int) -> None:
    """Send a signal to a process.

    Raises:
        KError: EINVAL, no such signal; ESRCH, the process has ended; EPERM, it is the kernel's or
            the host's; EOPNOTSUPP, it would have to stop.

    Counterpart: ksignal (kern/kern_sig.c).
    """
    if not 0 < sig < NSIG:
        raise KError(EINVAL)
    if proc.pid < 0 or proc.stat == ProcStat.SZOMB:
        raise KError(ESRCH)
    if proc.flags & (P.SYSTEM | P.VISITOR):
        raise KError(EPERM)
    if sig in _IGNORED:
        return
    if sig in _STOPS:
        raise KError(EOPNOTSUPP, "a request cannot be stopped")
    for lwp in tuple(proc.lwps.values()):
        lwp.siglist |= 1 << (sig - 1)
        lwp.ru.nsignals += 1
        if lwp.thread is not None:
            abort_sleep(lwp.thread, EINTR)


def cursig(td: Thread) -> int:
    """EINTR when a signal is pending for the thread's LWP, else 0.

    The hook that `dfuser.lwkt.synch` asks before and after an interruptible sleep.
    Counterpart: CURSIG (sys/signal2.h).
    """
    lwp: Any = td.lwp
    return EINTR if isinstance(lwp, Lwp) and lwp.siglist else 0
