"""Reference counts, and waiting for the last reference to go.

    ref = Refcount(1)
    ref.acquire()
    if ref.release():            # True for whoever gives the last one back
        ...
    await ref.wait("drain")      # until others have called release_wakeup often enough

Counterpart: sys/refcount.h, kern/kern_refcount.c.
Differs from DragonFly: the count is not an atomic integer with a flag bit; whether anybody waits is
its own field.
Token/lock order: takes none.
Invariants: the count never goes below zero.
"""

from __future__ import annotations

from dfuser.libkern.errno import panic

from .synch import tsleep, wakeup


class Refcount:
    """A count of references. Counterpart: a refcount(9) integer."""

    __slots__ = ("count", "waiting")

    def __init__(self, count: int = 1) -> None:
        self.count = count
        #: Threads inside `wait`.
        self.waiting = 0

    def acquire(self) -> None:
        """One reference more. Counterpart: refcount_acquire."""
        self.count += 1

    def acquire_n(self, n: int) -> None:
        """``n`` references more. Counterpart: refcount_acquire_n."""
        self.count += n

    def release(self) -> bool:
        """One reference less; True when it was the last. Counterpart: refcount_release."""
        return self.release_n(1)

    def release_n(self, n: int) -> bool:
        """``n`` references less; True when none is left. Counterpart: refcount_release_n."""
        if self.count < n:
            panic(f"refcount: {n} references released, {self.count} held")
        self.count -= n
        return self.count == 0

    def release_wakeup(self) -> bool:
        """Like `release`, and wakes those who `wait`. Counterpart: refcount_release_wakeup."""
        last = self.release_n(1)
        if last and self.waiting:
            wakeup(self)
        return last

    async def wait(self, wmesg: str) -> None:
        """Sleep until the count is 0. Counterpart: refcount_wait."""
        self.waiting += 1
        try:
            while self.count:
                await tsleep(self, 0, wmesg, 0)
        finally:
            self.waiting -= 1
