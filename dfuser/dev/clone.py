"""Unit numbers of devices that are made by opening them.

Opening ``/dev/tap`` makes ``/dev/tap0``, the next time ``/dev/tap1``. The driver keeps one
`CloneBitmap` of the units in use, so that a unit given back is the next one handed out, and a
*clone handler* that devfs calls at such an open.

Counterpart: devfs_clone_bitmap_* (vfs/devfs/devfs_helper.c), struct devfs_bitmap (sys/devfs.h).
Differs from DragonFly: the bitmap is one Python int; it needs no extension and no lock.
Token and lock order: takes none.
Invariants: a unit is handed out at most once until it is put back.
"""

from __future__ import annotations

from typing import Final

from dfuser.libkern.errno import EINVAL, KError

#: Highest unit a bitmap holds: a minor number has 24 bits, eight of them unusable.
UNIT_MAX: Final = 0xFFFF


class CloneBitmap:
    """Units in use by one driver. Counterpart: struct devfs_bitmap (sys/devfs.h)."""

    __slots__ = ("_used", "limit")

    def __init__(self, limit: int = UNIT_MAX) -> None:
        """Make an empty bitmap.

        Args:
            limit: the highest unit that may be handed out.
        """
        self.limit = limit
        self._used = 0

    def chk(self, unit: int) -> bool:
        """Whether ``unit`` is in use. Counterpart: devfs_clone_bitmap_chk."""
        return bool(self._used >> unit & 1)

    def set(self, unit: int) -> bool:
        """Take ``unit``; False if it is in use already. Counterpart: devfs_clone_bitmap_set.

        Raises:
            KError: EINVAL, the unit is negative or above the limit.
        """
        if not 0 <= unit <= self.limit:
            raise KError(EINVAL, f"unit {unit} is not 0 to {self.limit}")
        if self.chk(unit):
            return False
        self._used |= 1 << unit
        return True

    def get(self, limit: int = 0) -> int:
        """Take the lowest free unit; -1 when all up to the limit are in use.

        Args:
            limit: highest unit acceptable to this caller; 0 means only the bitmap's own.

        Counterpart: devfs_clone_bitmap_get.
        """
        free = ~self._used
        unit = (free & -free).bit_length() - 1
        if unit > self.limit or (limit > 0 and unit > limit):
            return -1
        self._used |= 1 << unit
        return unit

    def put(self, unit: int) -> None:
        """Give ``unit`` back. Counterpart: devfs_clone_bitmap_put."""
        self._used &= ~(1 << unit)

    def __len__(self) -> int:
        return self._used.bit_count()
