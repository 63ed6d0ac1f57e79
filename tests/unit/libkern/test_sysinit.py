"""Boot steps: stages, orders, and the way back."""

from __future__ import annotations

from dfuser.libkern import sysinit as mod
from dfuser.libkern.sysinit import (
    SI_BOOT1_VM,
    SI_ORDER_ANY,
    SI_ORDER_FIRST,
    SI_SUB_MOUNT_ROOT,
    SI_SUB_VFS,
    shutdown_steps,
    stage_name,
    startup_steps,
    sysinit,
    sysuninit,
)


class Room:
    def __init__(self, log: list[str], name: str) -> None:
        self.log = log
        self.name = name

    @sysinit(SI_SUB_VFS)
    def late(self) -> None:
        self.log.append(f"{self.name}.late")

    @sysinit(SI_SUB_VFS, SI_ORDER_FIRST)
    def early(self) -> None:
        self.log.append(f"{self.name}.early")

    @sysuninit(SI_SUB_VFS)
    def stop(self) -> None:
        self.log.append(f"{self.name}.stop")


class Vm(Room):
    @sysinit(SI_BOOT1_VM)
    def late(self) -> None:
        self.log.append(f"{self.name}.vm")


def test_order() -> None:
    # What if the VFS were started before memory, or equals in random order?
    log: list[str] = []
    rooms = [Room(log, "a"), Vm(log, "v"), Room(log, "b")]
    steps = startup_steps(rooms)
    for step in steps:
        step.func()
    assert log == ["v.vm", "a.early", "v.early", "b.early", "a.late", "b.late"]
    assert steps[0].name == "Vm.late"
    log.clear()
    for step in shutdown_steps(rooms):
        step.func()
    assert log == ["b.stop", "v.stop", "a.stop"]


def test_stages_are_dragonflys() -> None:
    # What if a stage had a number of our own?
    assert SI_SUB_VFS == 0x4000000
    assert SI_SUB_MOUNT_ROOT == 0xB400000
    assert SI_ORDER_ANY == 0xFFFFFFF
    assert stage_name(SI_SUB_VFS) == "SI_SUB_VFS"
    assert stage_name(3) == "0x3"
    stages = [
        value
        for name, value in vars(mod).items()
        if name.startswith(("SI_SUB_", "SI_BOOT")) and isinstance(value, int)
    ]
    assert stages == sorted(stages)
    assert len(stages) == 64
