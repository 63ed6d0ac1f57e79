"""A machine made for a test: time by hand, given CPUs, seeded entropy, little memory.

The memory is real (a small memory file), because memory has no simpler honest twin; all
else is deterministic, so two kernels booted from equal FakeHosts do the same.

Counterpart: none in DragonFly.
"""

from __future__ import annotations

from dfuser.hw.clock import ErrorHandler, VirtualClock
from dfuser.hw.cpu import HostCpus
from dfuser.hw.entropy import SeededEntropy
from dfuser.hw.host import Host
from dfuser.hw.physmem import PhysMem


def fake_cpus(count: int = 2) -> HostCpus:
    """Topology of an invented machine: ``count`` cores of one thread each."""
    return HostCpus(
        logical=count,
        physical=count,
        affinity=tuple(range(count)),
        mhz=1000,
        vendor="FakeVendor",
        model="dfuser fake CPU",
    )


class FakeHost(Host):
    """The fake twin of Host.

    Args:
        memory: bytes of physical memory, a multiple of 4 KiB.
        ncpu: CPUs of the invented machine.
        seed: of the entropy.
        on_alarm_error: see VirtualClock.
    """

    clock: VirtualClock

    def __init__(
        self,
        memory: int = 4 << 20,
        ncpu: int = 2,
        seed: int = 0,
        on_alarm_error: ErrorHandler | None = None,
    ) -> None:
        super().__init__(
            cpus=fake_cpus(ncpu),
            clock=VirtualClock(on_error=on_alarm_error),
            physmem=PhysMem(memory),
            entropy=SeededEntropy(seed),
        )
