"""SYSINIT: each subsystem says itself when it wants to be started.

A kernel comes up in stages: memory before threads, threads before the VFS, the VFS
before the root mount. Instead of one function that knows everybody, each subsystem
marks its own step with a stage and an order within it::

    @sysinit(SI_SUB_VFS, SI_ORDER_SECOND)
    def vfs_init(self) -> None: ...

    @sysuninit(SI_SUB_VFS, SI_ORDER_SECOND)
    def vfs_shutdown(self) -> None: ...

Boot collects the steps of the objects it has made, sorts them, and calls them; at the
end it calls the sysuninit steps the other way round. A step may be a coroutine function;
its caller awaits what it returns.

Counterpart: SYSINIT, SYSUNINIT, enum sysinit_sub_id and enum sysinit_elem_order
    (sys/kernel.h), mi_startup (kern/init_main.c).
Differs from DragonFly: steps are methods of objects that exist already, so two kernels
    of one process start independently; steps of equal stage and order run in the order
    in which their objects were given, in C that order is not defined. Stages that only
    hardware has (APICs, ISA, RAID probing) keep their numbers and are simply empty.
Token/lock order: takes none.
Invariants: collecting changes nothing; stop order is the exact reverse of start order.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, NamedTuple, TypeVar

# Stages, in the order they run.
SI_BOOT1_TUNABLES: Final = 0x0700000
SI_BOOT1_COPYRIGHT: Final = 0x0800000
SI_BOOT1_LOCK: Final = 0x0900000
SI_BOOT1_VM: Final = 0x1000000
SI_BOOT1_ALLOCATOR: Final = 0x1400000
SI_BOOT1_KMALLOC: Final = 0x1600000
SI_BOOT1_DYNALLOC: Final = 0x1700000
SI_BOOT1_POST: Final = 0x1800000
SI_BOOT2_LEAVE_CRIT: Final = 0x1900000
SI_BOOT2_PRESMP: Final = 0x1A00000
SI_BOOT2_START_CPU: Final = 0x1A40000
SI_BOOT2_LAPIC: Final = 0x1A50000
SI_BOOT2_CPU_TOPOLOGY: Final = 0x1A58000
SI_BOOT2_NUMA: Final = 0x1A5C000
SI_BOOT2_START_APS: Final = 0x1A60000
SI_BOOT2_IOAPIC: Final = 0x1A70000
SI_BOOT2_FINISH_PIC: Final = 0x1A80000
SI_BOOT2_FINISH_CPU: Final = 0x1A90000
SI_BOOT2_CLOCKREG: Final = 0x1AC0000
SI_BOOT2_OBJCACHE: Final = 0x1B00000
SI_BOOT2_LWKT_INIT: Final = 0x1B40000
SI_BOOT2_SOFTCLOCK: Final = 0x1B80000
SI_BOOT2_CLOCKS: Final = 0x1C00000
SI_BOOT2_FINISH_SMP: Final = 0x1C80000
SI_BOOT2_POST_SMP: Final = 0x1CC0000
SI_BOOT2_MACHDEP: Final = 0x1D80000
SI_BOOT2_KLD: Final = 0x1E00000
SI_BOOT2_VMM: Final = 0x1E40000
SI_BOOT2_USCHED: Final = 0x1E80000
SI_BOOT2_PROC0: Final = 0x1F00000
SI_SUB_CREATE_INIT: Final = 0x2300000
SI_SUB_PROP: Final = 0x2340000
SI_SUB_DEVFS_CORE: Final = 0x2380000
SI_SUB_PRE_DRIVERS: Final = 0x23C0000
SI_SUB_DRIVERS: Final = 0x2400000
SI_SUB_CONFIGURE: Final = 0x3800000
SI_SUB_ISWARM: Final = 0x3C00000
SI_SUB_VFS: Final = 0x4000000
SI_SUB_HELPER_THREADS: Final = 0x5400000
SI_SUB_SYSV_SHM: Final = 0x6400000
SI_SUB_SYSV_SEM: Final = 0x6800000
SI_SUB_SYSV_MSG: Final = 0x6C00000
SI_SUB_P1003_1B: Final = 0x6E00000
SI_SUB_PSEUDO: Final = 0x7000000
SI_SUB_EXEC: Final = 0x7400000
SI_SUB_PROTO_IF: Final = 0x8400000
SI_SUB_PROTO_DOMAIN: Final = 0x8800000
SI_SUB_PROTO_IFATTACHDOMAIN: Final = 0x8800001
SI_SUB_PROTO_END: Final = 0x8FFFFFF
SI_SUB_KICK_SCHEDULER: Final = 0xA000000
SI_SUB_INT_CONFIG_HOOKS: Final = 0xA800000
SI_SUB_ROOT_CONF: Final = 0xB000000
SI_SUB_DUMP_CONF: Final = 0xB200000
SI_SUB_RAID: Final = 0xB300000
SI_SUB_DM_TARGETS: Final = 0xB3A0000
SI_SUB_MOUNT_ROOT: Final = 0xB400000
SI_SUB_PROC0_POST: Final = 0xD000000
SI_SUB_KTHREAD_INIT: Final = 0xE000000
SI_SUB_KTHREAD_PAGE: Final = 0xE400000
SI_SUB_KTHREAD_VM: Final = 0xE800000
SI_SUB_KTHREAD_BUF: Final = 0xEA00000
SI_SUB_KTHREAD_UPDATE: Final = 0xEC00000
SI_SUB_KTHREAD_IDLE: Final = 0xEE00000
SI_SUB_RUN_SCHEDULER: Final = 0xFFFFFFF

# Order within a stage.
SI_ORDER_FIRST: Final = 0x0000000
SI_ORDER_SECOND: Final = 0x0000001
SI_ORDER_THIRD: Final = 0x0000002
SI_ORDER_FOURTH: Final = 0x0000003
SI_ORDER_EARLIER: Final = 0x0800000
SI_ORDER_MIDDLE: Final = 0x1000000
SI_ORDER_LATER: Final = 0x2000000
SI_ORDER_ANY: Final = 0xFFFFFFF

_INIT: Final = "__sysinit__"
_UNINIT: Final = "__sysuninit__"

StepFn = Callable[[], Awaitable[None] | None]
_F = TypeVar("_F", bound=Callable[..., Any])


class Sysinit(NamedTuple):
    """One step of starting or stopping, bound to its object.

    Counterpart: struct sysinit (sys/kernel.h).
    """

    subsystem: int
    order: int
    name: str
    func: StepFn


def stage_name(subsystem: int) -> str:
    """The symbol of a stage, for boot messages; its number in hex when it has none."""
    for name, value in globals().items():
        if value == subsystem and name.startswith(("SI_SUB_", "SI_BOOT")):
            return name
    return hex(subsystem)


def sysinit(subsystem: int, order: int = SI_ORDER_ANY) -> Callable[[_F], _F]:
    """Mark a method, without arguments, as a step of starting the kernel.

    Args:
        subsystem: the stage, SI_BOOT* or SI_SUB_*.
        order: the place within the stage, SI_ORDER_*.
    """
    return _marker(_INIT, subsystem, order)


def sysuninit(subsystem: int, order: int = SI_ORDER_ANY) -> Callable[[_F], _F]:
    """Mark a method as a step of stopping; give it the stage its start belongs to."""
    return _marker(_UNINIT, subsystem, order)


def startup_steps(owners: Iterable[object]) -> list[Sysinit]:
    """Collect the sysinit steps of objects in the order they have to run."""
    return _collect(_INIT, owners)


def shutdown_steps(owners: Iterable[object]) -> list[Sysinit]:
    """Collect the sysuninit steps of objects, the last started first."""
    return _collect(_UNINIT, owners)[::-1]


def _marker(mark: str, subsystem: int, order: int) -> Callable[[_F], _F]:
    """Make the decorator: it only notes stage and order on the function."""

    def note(func: _F) -> _F:
        setattr(func, mark, (subsystem, order))
        return func

    return note


def _collect(mark: str, owners: Iterable[object]) -> list[Sysinit]:
    """Find marked methods; a subclass that overrides a step replaces it."""
    steps: list[Sysinit] = []
    for owner in owners:
        seen: set[str] = set()
        for base in type(owner).__mro__:
            for key, entry in vars(base).items():
                place = getattr(entry, mark, None) if callable(entry) else None
                if place is not None and key not in seen:
                    name = f"{type(owner).__name__}.{key}"
                    steps.append(Sysinit(place[0], place[1], name, getattr(owner, key)))
                seen.add(key)
    steps.sort(key=lambda step: (step.subsystem, step.order))
    return steps
