"""What /kern shows: which views there are, and the few that only boot can give.

The views of a room are made where the room is known (`dfuser.vfs.kernfs`); here they are put
together for one kernel. Nothing is counted here.

Counterpart: none; DragonFly shows these through sysctl, vmstat, netstat and ddb.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dfuser.libkern.sysinit import stage_name, startup_steps
from dfuser.vfs.kernfs.ctl import ControlCommands
from dfuser.vfs.kernfs.views_lwkt import LwktViews
from dfuser.vfs.kernfs.views_vfs import VfsViews

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .kernel import Kernel


class StepRow(NamedTuple):
    """One start-up step."""

    stage: str
    order: int
    step: str


def register(kernel: Kernel) -> None:
    """Register every view and every source of statistics of ``kernel``."""
    views = kernel.world.views

    def steps() -> Iterator[StepRow]:
        for step in startup_steps(kernel.owners()):
            yield StepRow(stage_name(step.subsystem), step.order, step.name)

    LwktViews(kernel.lwkt, kernel.ktr).register(views)
    VfsViews(kernel.vfs).register(views)
    ControlCommands(kernel.vfs).register(views)
    views.add_lines("version", "what runs", lambda: [kernel.world.mib.version])
    views.add_lines("dmesg", "the kernel log", lambda: kernel.msgbuf.text().splitlines())
    views.add_rows("procs", "processes and their threads", kernel.world.kinfo.all)
    views.add_rows("sysinit", "start-up steps in their order", steps)
    for name, source in (
        ("sysctl", kernel.sysctl.statistics),
        ("vm", kernel.pages.statistics),
        ("procs", kernel.procs.statistics),
        ("devices", kernel.devices.statistics),
        ("clock", kernel.host.clock.statistics),
    ):
        views.add_statistics(name, source)
