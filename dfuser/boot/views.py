"""What /kern shows: which views there are, and the few that only boot can give.

The views of a room are made where the room is known (`dfuser.vfs.kernfs`); here they are put
together for one kernel. Nothing is counted here.

Counterpart: none; DragonFly shows these through sysctl, vmstat, netstat and ddb.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dfuser.libkern.sysinit import stage_name, startup_steps
from dfuser.vfs.kernfs.views_dev import DevViews
from dfuser.vfs.kernfs.views_lwkt import LwktViews
from dfuser.vfs.kernfs.views_vfs import VfsViews

from .attached import TABLES, attached_view
from .tracing import COLUMNS, latency_view

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

    world = kernel.world
    for part in (
        LwktViews(kernel.lwkt, kernel.ktr),
        VfsViews(kernel.vfs),
        DevViews(kernel.devices, kernel.msgbuf),
        world.commands,
        world.kinfo,
        world.mib,
    ):
        part.register(views)
    views.add_rows("sysinit", "start-up steps in their order", steps)
    views.add_rows("fuse_latency", "requests by opcode: count, latency, histogram 256 ns to 8 s",
                   latency_view(kernel, "fuse"), columns=COLUMNS)  # fmt: skip
    for table, what, columns in TABLES:
        views.add_rows(table, what, attached_view(kernel, table), columns=columns)
    for name, source in (
        ("sysctl", kernel.sysctl.statistics),
        ("synch", kernel.synch.statistics),
        ("vm", kernel.pages.statistics),
        ("clock", kernel.host.clock.statistics),
    ):
        views.add_statistics(name, source)
