"""Entropy: unpredictable bytes from the host, or predictable ones for a test.

The kernel's own generator (/dev/random, /dev/urandom, sequence numbers, hash seeds) is
seeded from here; it does not come here for every byte.

Counterpart: the entropy sources of kern/kern_nrandom.c (interrupt timing, RDRAND).
Differs from DragonFly: the host's pool is one source that is always ready after its boot,
    so nothing is gathered from interrupts.
Token/lock order: takes none.
"""

from __future__ import annotations

import os
import random
from typing import Protocol


class Entropy(Protocol):
    """A source of random bytes."""

    def read(self, n: int) -> bytes:
        """Exactly n random bytes.

        Raises:
            ValueError: n is negative.
            OSError: the source failed.
        """


class HostEntropy:
    """The host's random pool, getrandom(2). Blocks only while the host itself boots."""

    __slots__ = ("bytes_read",)

    def __init__(self) -> None:
        self.bytes_read = 0

    def read(self, n: int) -> bytes:
        """Exactly n random bytes; the host may answer a large request in pieces."""
        if n < 0:
            raise ValueError(f"cannot read {n} random bytes")
        data = os.getrandom(n)
        while len(data) < n:
            data += os.getrandom(n - len(data))
        self.bytes_read += n
        return data


class SeededEntropy:
    """The same bytes for the same seed: the fake twin, for replays. Not secret at all."""

    __slots__ = ("_random", "bytes_read")

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.bytes_read = 0

    def read(self, n: int) -> bytes:
        """The next n bytes of the seeded stream."""
        if n < 0:
            raise ValueError(f"cannot read {n} random bytes")
        self.bytes_read += n
        return self._random.randbytes(n)
