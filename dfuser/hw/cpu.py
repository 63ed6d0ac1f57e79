"""The host's CPUs, and how many logical ones the kernel makes of them.

The kernel has its own logical CPUs: each a run queue, an IPI queue, a set of per-CPU
counters. How many is a choice (1 to MAXCPU); the default is what the host lets this
process use. They give ordering, ownership and accounting, **not parallel speed**: all of
them run on one host thread under Python's interpreter lock.

The topology is read once, at boot, and is only shown (hw.ncpu, hw.model and friends).
The process's affinity is read and never changed: a server pinned apart from its clients
answers ten times slower.

Counterpart: cpu_topology (kern/subr_cpu_topology.c), mp_machdep.c, identcpu.c.
Differs from DragonFly: no APIC ids, no probing; what psutil and /proc/cpuinfo say.
Token/lock order: takes none.
Invariants: 1 <= len(affinity) <= logical; the record never changes.
"""

from __future__ import annotations

import os
import platform

import attrs
import psutil

from dfuser.libkern.param import MAXCPU


@attrs.frozen
class HostCpus:
    """The processors of the host as this process may use them.

    Attributes:
        logical: hardware threads that are online.
        physical: cores, or ``logical`` where the host does not say.
        affinity: numbers of the hardware threads this process may run on.
        mhz: nominal clock rate in MHz, 0 where the host does not say.
        vendor: e.g. "GenuineIntel", or "unknown".
        model: the marketing name, or the machine type.
    """

    logical: int
    physical: int
    affinity: tuple[int, ...]
    mhz: int
    vendor: str
    model: str

    @classmethod
    def probe(cls) -> HostCpus:
        """Read the host's topology. Changes nothing, never fails."""
        affinity = tuple(sorted(os.sched_getaffinity(0)))
        logical = max(psutil.cpu_count(logical=True) or 1, len(affinity))
        vendor, model = _identify()
        return cls(
            logical=logical,
            physical=psutil.cpu_count(logical=False) or logical,
            affinity=affinity,
            mhz=_frequency(),
            vendor=vendor,
            model=model,
        )

    @property
    def usable(self) -> int:
        """Hardware threads this process may run on."""
        return len(self.affinity)

    def ncpu(self, wanted: int | None = None) -> int:
        """Choose the number of logical CPUs.

        Args:
            wanted: the configured number; None takes what the host lets us use, at most
                MAXCPU. More than the host has is allowed.

        Raises:
            ValueError: wanted is not between 1 and MAXCPU.
        """
        if wanted is None:
            return min(self.usable, MAXCPU)
        if not 1 <= wanted <= MAXCPU:
            raise ValueError(f"the number of CPUs must be 1 to {MAXCPU}, not {wanted}")
        return wanted


def _frequency() -> int:
    """Nominal MHz; virtual machines often hide it, and psutil then fails in many ways."""
    try:
        freq = psutil.cpu_freq()
    except (OSError, NotImplementedError, RuntimeError, ValueError):
        return 0
    return round(getattr(freq, "max", 0) or getattr(freq, "current", 0))


def _identify() -> tuple[str, str]:
    """Vendor and model of the first CPU in /proc/cpuinfo."""
    found: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as cpuinfo:
            for line in cpuinfo:
                key, _, value = line.partition(":")
                found.setdefault(key.strip(), value.strip())
                if "vendor_id" in found and "model name" in found:
                    break
    except OSError:
        pass
    return found.get("vendor_id", "unknown"), found.get("model name") or platform.machine()
