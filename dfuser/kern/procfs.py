"""What the files of /proc/<pid> say.

=========  ====  ==========================================================================
file       mode  contents
=========  ====  ==========================================================================
ctl        0200  a command: a signal's name (``kill``), or a word of the debugger
status     0444  one line: comm pid ppid pgid sid tty flags start user system wmesg ids jail
note       0200  takes a word and answers EOPNOTSUPP, as in DragonFly
notepg     0200  the same
cmdline    0444  the words of the command line, each ended by NUL
threads    0444  one line a thread: tid pri cpu state wmesg switches name (an addition)
=========  ====  ==========================================================================

DragonFly has thirteen files. mem, regs, fpregs, dbregs, map, etype, rlimit and file show address
spaces, registers, executables and limits; the processes that exist here have none of these, so the
files are absent instead of empty.

Of the debugger's words ``detach`` does nothing, because nobody is attached; ``step`` and ``run``
answer EBUSY, as for a process that is not being traced; ``attach`` and ``wait`` answer EOPNOTSUPP,
because a request cannot be stopped. A command is at most `CTLLEN` bytes (EMSGSIZE).

Counterpart: sys/vfs/procfs/procfs_status.c, procfs_ctl.c, procfs_note.c.
Differs from DragonFly: a signal through ctl is checked like kill(2) (EPERM); there the permission
bits of the file are the only check. Kernel threads are shown, in process 0.
Token and lock order: takes none; nothing here waits.
Invariants: a reference to a process is checked against its serial number before every use.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from dfuser.libkern.errno import (
    EBUSY,
    EINVAL,
    EMSGSIZE,
    ENOENT,
    EOPNOTSUPP,
    KError,
)
from dfuser.libkern.param import NSEC_PER_SEC
from dfuser.vfs.procfs.procfs import ProcFileType, ProcRef

from .procsig import SIGNALS, ksignal
from .prot import p_trespass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dfuser.libkern.ucred import Ucred

    from .kinfo import KinfoTable
    from .proc import Proc, ProcTable

#: Longest command and longest note. Counterpart: PROCFS_CTLLEN, PROCFS_NOTELEN (procfs.h).
CTLLEN: Final = 8
NOTELEN: Final = 64

#: Words of the debugger and what they answer; 0 is success.
_DEBUG_WORDS: Final = MappingProxyType(
    {
        b"attach": EOPNOTSUPP,
        b"detach": 0,
        b"step": EBUSY,
        b"run": EBUSY,
        b"wait": EOPNOTSUPP,
    }
)


def getuserstr(data: bytes, limit: int) -> bytes:
    """The word somebody wrote, without the newline at its end.

    Raises:
        KError: EMSGSIZE, it is longer than ``limit`` bytes.

    Counterpart: vfs_getuserstr (procfs_subr.c).
    """
    if len(data) > limit:
        raise KError(EMSGSIZE)
    return data.split(b"\0", 1)[0].removesuffix(b"\n")


def _timeval(ns: int) -> str:
    sec, rest = divmod(ns, NSEC_PER_SEC)
    return f"{sec},{rest // 1000}"


class ProcfsContents:
    """Tells procfs about the processes of one kernel."""

    def __init__(self, procs: ProcTable, kinfo: KinfoTable) -> None:
        self.procs = procs
        self.kinfo = kinfo
        self._gone: list[Callable[[ProcRef], None]] = []
        procs.at_exit.append(self._ended)
        self.files: tuple[ProcFileType, ...] = (
            ProcFileType(b"ctl", 0o200, None, self.write_ctl),
            ProcFileType(b"status", 0o444, self.read_status),
            ProcFileType(b"note", 0o200, self.read_note, self.write_note),
            ProcFileType(b"notepg", 0o200, self.read_note, self.write_note),
            ProcFileType(b"cmdline", 0o444, self.read_cmdline),
            ProcFileType(b"threads", 0o444, self.read_threads),
        )

    # --- which processes there are -----------------------------------------------------------

    def find(self, pid: int, cred: Ucred) -> ProcRef | None:
        """The process of that id, if ``cred`` may see it."""
        proc = self.procs.pfind(pid)
        if proc is None or not self.procs.visible(cred, proc):
            return None
        return ProcRef(proc.pid, proc.serial)

    def listing(self, cred: Ucred, after: int = -1) -> Iterable[ProcRef]:
        """Every process ``cred`` may see with a serial number above ``after``, in their order."""
        for proc in self.procs.allproc():
            if proc.serial > after and self.procs.visible(cred, proc):
                yield ProcRef(proc.pid, proc.serial)

    def alive(self, ref: ProcRef) -> bool:
        """Whether the process still exists."""
        proc = self.procs.pfind(ref.pid)
        return proc is not None and proc.serial == ref.serial

    def owner(self, ref: ProcRef) -> tuple[int, int]:
        """Effective user and group."""
        ucred = self._proc(ref).ucred
        return ucred.uid, ucred.gid

    def curpid(self) -> int:
        """The id of the running process. Raises KError EAGAIN when it cannot get one."""
        return self.procs.curproc().pid

    def listen(self, gone: Callable[[ProcRef], None]) -> None:
        """Call ``gone`` with each process that ends."""
        self._gone.append(gone)

    def unlisten(self, gone: Callable[[ProcRef], None]) -> None:
        """Stop calling."""
        self._gone.remove(gone)

    def _ended(self, proc: Proc) -> None:
        ref = ProcRef(proc.pid, proc.serial)
        for gone in self._gone:
            gone(ref)

    def _proc(self, ref: ProcRef) -> Proc:
        proc = self.procs.pfind(ref.pid)
        if proc is None or proc.serial != ref.serial:
            raise KError(ENOENT)
        return proc

    # --- the files ---------------------------------------------------------------------------

    def read_status(self, ref: ProcRef, cred: Ucred) -> bytes:
        """The line of `status`. Counterpart: procfs_dostatus."""
        proc = self._proc(ref)
        lwp = proc.first_lwp
        td = lwp.thread if lwp is not None else None
        usage = lwp.ru if lwp is not None else None
        cr = proc.ucred
        ids = f"{cr.uid} {cr.ruid} {cr.rgid}" + "".join(f",{gid}" for gid in cr.groups)
        line = " ".join(
            (
                proc.comm,
                f"{proc.pid} {proc.ppid} 0 0",
                "-1,-1 noflags",
                _timeval(proc.start),
                _timeval(usage.utime if usage is not None else 0),
                _timeval(usage.stime if usage is not None else 0),
                (td.wmesg if td is not None else "") or "nochan",
                ids,
                str(getattr(cr.prison, "host", "-")) if cr.prison is not None else "-",
            )
        )
        return line.encode() + b"\n"

    def read_cmdline(self, ref: ProcRef, cred: Ucred) -> bytes:
        """The words of the command line; the name where there are none.

        Counterpart: procfs_docmdline.
        """
        proc = self._proc(ref)
        words = proc.args or (proc.comm,)
        return b"".join(word.encode() + b"\0" for word in words)

    def read_threads(self, ref: ProcRef, cred: Ucred) -> bytes:
        """One line a thread, kernel threads included."""
        lines = [
            f"{k.tid} {k.pri} {k.cpu} {k.state} {k.wmesg or '-'} {k.switches} {k.comm}\n"
            for k in self.kinfo.threads_of(self._proc(ref))
        ]
        return "".join(lines).encode()

    def write_ctl(self, ref: ProcRef, data: bytes, cred: Ucred) -> None:
        """Obey a command.

        Raises:
            KError: EMSGSIZE, EPERM, EBUSY; EOPNOTSUPP for a word it does not know.

        Counterpart: procfs_doctl.
        """
        word = getuserstr(data, CTLLEN)
        proc = self._proc(ref)
        p_trespass(cred, proc.ucred)
        error = _DEBUG_WORDS.get(word)
        if error is not None:
            if error:
                raise KError(error)
            return
        sig = SIGNALS.get(word.decode("ascii", "replace"))
        if sig is None:
            raise KError(EOPNOTSUPP)
        ksignal(proc, sig)

    def read_note(self, ref: ProcRef, cred: Ucred) -> bytes:
        """EINVAL. Counterpart: procfs_donote."""
        raise KError(EINVAL)

    def write_note(self, ref: ProcRef, data: bytes, cred: Ucred) -> None:
        """EMSGSIZE for a long note, else EOPNOTSUPP. Counterpart: procfs_donote."""
        getuserstr(data, NOTELEN)
        raise KError(EOPNOTSUPP)
