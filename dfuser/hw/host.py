"""The host as the kernel sees it: CPUs, clock, physical memory, entropy in one bundle.

``boot`` makes one Host, hands its parts down, and closes it last. Nothing else in the
kernel reaches for the operating system by itself.

Counterpart: what a DragonFly kernel finds when it starts on a machine (platform/).
Token/lock order: takes none.
"""

from __future__ import annotations

import attrs

from dfuser.hw.clock import Clock, ErrorHandler, HostClock
from dfuser.hw.cpu import HostCpus
from dfuser.hw.entropy import Entropy, HostEntropy
from dfuser.hw.physmem import PhysMem


@attrs.define
class Host:
    """The resources of one machine, real or fake.

    Attributes:
        cpus: topology of the host.
        clock: time and alarms.
        physmem: the memory file.
        entropy: random bytes.
    """

    cpus: HostCpus
    clock: Clock
    physmem: PhysMem
    entropy: Entropy

    @classmethod
    def open(cls, memory: int, on_alarm_error: ErrorHandler | None = None) -> Host:
        """Take hold of the real host.

        Args:
            memory: bytes of physical memory, a multiple of 4 KiB.
            on_alarm_error: see HostClock; the clock's ``run`` must be started as a task.

        Raises:
            ValueError: a bad memory size.
            OSError: the host refuses the memory.
        """
        return cls(
            cpus=HostCpus.probe(),
            clock=HostClock(on_alarm_error),
            physmem=PhysMem(memory),
            entropy=HostEntropy(),
        )

    def close(self) -> None:
        """Give the memory back. A second call does nothing.

        Raises:
            BufferError: somebody still holds views of physical memory; names how many.
        """
        self.physmem.close()
