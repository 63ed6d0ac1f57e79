"""What is left of a kernel that panicked: a dump that a person can read.

The dump names the reason, the thread it happened in, every thread with what it waits for and the
tokens it holds, the newest trace entries and the end of the kernel log. It is plain text, written
to the state directory under a name that is never used twice. Writing it must not fail a second
time, so each section is guarded: one that cannot be worked out says why and the rest goes on.

Counterpart: panic(9), dumpsys and savecore (sys/kern/kern_shutdown.c).
Differs from DragonFly: memory is not dumped; the host's core files serve for that.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .kernel import Kernel

KTR_TAIL: Final = 200
LOG_TAIL: Final = 100


def render(kernel: Kernel, where: str, exc: BaseException) -> str:
    """The text of the dump."""
    sections: list[tuple[str, Callable[[], Iterable[str]]]] = [
        ("panic", lambda: [f"{exc}", f"in {where}"]),
        ("traceback", lambda: "".join(traceback.format_exception(exc)).splitlines()),
        ("kernel", lambda: _kernel_lines(kernel)),
        ("threads", lambda: _thread_lines(kernel)),
        ("tokens", lambda: _token_lines(kernel)),
        ("ktr", lambda: kernel.ktr.lines(KTR_TAIL)),
        ("log", lambda: kernel.msgbuf.tail(LOG_TAIL)),
    ]
    out = []
    for title, lines in sections:
        out.append(f"== {title}")
        try:
            out.extend(lines())
        except Exception as error:
            out.append(f"(cannot be shown: {error!r})")
        out.append("")
    return "\n".join(out)


def write(kernel: Kernel, where: str, exc: BaseException) -> Path | None:
    """Write the dump; returns its path, None when the host refuses."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    directory = kernel.config.state_path()
    text = render(kernel, where, exc)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for serial in range(1000):
            path = directory / f"panic-{now}-{os.getpid()}-{serial}.txt"
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                continue
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
            return path
    except OSError:
        return None
    return None


def _kernel_lines(kernel: Kernel) -> list[str]:
    stats = kernel.lwkt.statistics()
    return [f"{kernel.version}", f"uptime {kernel.uptime():.3f} s", f"{stats}"]


def _thread_lines(kernel: Kernel) -> list[str]:
    return [
        f"tid {td.tid:<5} cpu {td.cpu.cpuid} pri {td.pri:<2} {td.state} "
        f"{td.wmesg or '-':<8} {td.name}"
        for td in kernel.lwkt.threads.values()
    ]


def _token_lines(kernel: Kernel) -> list[str]:
    return [
        f"tid {td.tid} holds {', '.join(str(ref) for ref in td.toks)}"
        for td in kernel.lwkt.threads.values()
        if td.toks
    ] or ["none is held"]
