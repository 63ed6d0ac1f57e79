"""Python's garbage collector while a kernel is mounted.

A full collection looks at every object there is. With a million files in memory that stops every
request for most of a second, so full ones do not start by themselves while a kernel is mounted; the
young generations go on, and cycles of kernel objects are broken by hand where they are made. What
exists after boot is moved out of the collector's sight, so that young collections stay short.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Final

#: Young collections after so many new objects, middle ones after ten of those, full ones never.
THRESHOLDS: Final = (700, 10, (1 << 31) - 1)


@contextlib.contextmanager
def no_full_collections() -> Iterator[None]:
    """Keep automatic full collections off inside the ``with`` block."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
