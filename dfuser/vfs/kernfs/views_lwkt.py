"""Views of LWKT and of the trace rings: threads, CPUs, tokens, ports, callouts, ktr.

Counterpart: ps(1) with threads, ``show tokens`` and ``show callout`` of ddb, ktrdump(8).
Differs from DragonFly: an addition.
Token and lock order: takes none.
Invariants: rows are made while they are read, from the live structures, and hold values only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dfuser.libkern.errno import EINVAL, ENOENT, EPERM, KError

from .registry import record_items

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dfuser.libkern.ktr import Ktr
    from dfuser.libkern.ucred import Ucred
    from dfuser.lwkt.machine import Lwkt

    from .registry import KernViews

#: Trace entries one reading of ``ktr`` shows.
KTR_LINES: Final = 4096


class ThreadRow(NamedTuple):
    """One thread. Counterpart: struct thread, as ps -H shows it."""

    tid: int
    pri: int
    cpu: int
    state: str
    wmesg: str
    switches: int
    tokens: int
    critcount: int
    driver: str
    flags: str
    name: str


class CpuRow(NamedTuple):
    """One logical CPU. Counterpart: struct globaldata."""

    cpu: int
    running: str
    runnable: int
    runmask: str
    switches: int
    interrupts: int
    preempt_hit: int
    preempt_miss: int
    token_stalls: int
    stopped: bool


class CalloutRow(NamedTuple):
    """One armed callout. Counterpart: struct callout."""

    cpu: int
    tick: int
    ticks_left: int
    func: str


def _func_name(func: Any) -> str:
    return str(getattr(func, "__qualname__", None) or type(func).__name__)


class LwktViews:
    """The views of one machine."""

    def __init__(self, lwkt: Lwkt, ktr: Ktr) -> None:
        self.lwkt = lwkt
        self.ktr = ktr

    def register(self, views: KernViews) -> None:
        """Show them, and the counters."""
        views.add_rows("threads", "threads: priority, CPU, what they wait for", self.threads,
                       columns=ThreadRow._fields)  # fmt: skip
        views.add_rows("cpus", "logical CPUs and their run queues", self.cpus)
        views.add_rows("tokens", "well-known tokens: holder, collisions", self.tokens)
        views.add_rows("ports", "message ports of threads", self.ports)
        views.add_rows("callouts", "armed timers", self.callouts, columns=CalloutRow._fields)
        views.add_lines("ktr", "the newest entries of the trace rings", self.ktr_lines)
        views.add_control("ktrmask", "which trace masters are on", self.mask_lines, self.set_mask)
        views.add_statistics("lwkt", self.lwkt.statistics)
        views.add_statistics("ktr", self.ktr.statistics)

    def threads(self) -> Iterator[ThreadRow]:
        """The threads in the order of their numbers."""
        for _, td in sorted(self.lwkt.threads.items()):
            yield ThreadRow(
                tid=td.tid,
                pri=td.pri,
                cpu=td.cpu.cpuid,
                state=td.state,
                wmesg=td.wmesg,
                switches=td.switches,
                tokens=len(td.toks),
                critcount=td.critcount,
                driver="coro" if td.coro else "task",
                flags=f"{td.flags:#x}",
                name=td.name,
            )

    def cpus(self) -> Iterator[CpuRow]:
        """The CPUs."""
        for cpu in self.lwkt.cpus:
            td = cpu.curthread
            yield CpuRow(
                cpu=cpu.cpuid,
                running=td.name if td is not None else "",
                runnable=sum(len(queue) for queue in cpu.runq),
                runmask=f"{cpu.runmask:#x}",
                switches=cpu.switches,
                interrupts=cpu.interrupts,
                preempt_hit=cpu.preempt_hit,
                preempt_miss=cpu.preempt_miss,
                token_stalls=cpu.token_stalls,
                stopped=bool(cpu.stopped),
            )

    def tokens(self) -> Iterator[dict[str, Any]]:
        """The well-known tokens, each as its own statistics say."""
        for tok in self.lwkt.tokens:
            yield record_items(tok.statistics())

    def ports(self) -> Iterator[dict[str, Any]]:
        """The ports of the threads that have one, each as its own statistics say."""
        for _, td in sorted(self.lwkt.threads.items()):
            if td.msgport is not None:
                yield {"tid": td.tid, **record_items(td.msgport.statistics())}

    def callouts(self) -> Iterator[CalloutRow]:
        """What is on the wheels, soonest first for each CPU."""
        now = self.lwkt.ticks
        for cpu in self.lwkt.cpus:
            wheel = cpu.callwheel
            if wheel is None:
                continue
            armed = [c for bucket in wheel.buckets if bucket for c in bucket]
            for callout in sorted(armed, key=lambda c: c.qtick):
                yield CalloutRow(
                    cpu=cpu.cpuid,
                    tick=callout.qtick,
                    ticks_left=callout.qtick - now,
                    func=_func_name(callout.func),
                )

    # --- the trace rings -----------------------------------------------------------------------

    def ktr_lines(self) -> Iterable[str]:
        """The newest entries of all CPUs in the order they happened."""
        return self.ktr.lines(KTR_LINES)

    def mask_lines(self) -> Iterable[str]:
        """One line a master: its name and its mask, as `set_mask` takes it back."""
        for name, master in sorted(self.ktr.masters.items()):
            yield f"{name} {master.mask}"

    def set_mask(self, command: str, cred: Ucred) -> str | None:
        """``<master> <mask>``; ``*`` is every master, ``clear`` forgets the entries.

        Raises:
            KError: EPERM, the caller is not root; ENOENT, no such master; EINVAL, no such mask.
        """
        if not cred.is_root:
            raise KError(EPERM)
        if command == "clear":
            self.ktr.clear()
            return None
        name, _, text = command.partition(" ")
        try:
            mask = int(text, 0)
        except ValueError:
            raise KError(EINVAL, "usage: <master>|* <mask>") from None
        if not -(1 << 31) <= mask < 1 << 32:
            raise KError(EINVAL, "a mask has 32 bits")
        masters = self.ktr.masters
        if name != "*" and name not in masters:
            raise KError(ENOENT, f"no trace master {name!r}")
        for master in masters.values() if name == "*" else (masters[name],):
            master.mask = mask
        return None
