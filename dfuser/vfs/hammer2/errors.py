"""What goes wrong with a volume, in one sentence each.

`VolumeError` refuses the whole volume: no valid header, another byte order, a version too new, a
device missing or too short. `MediaError` is about one block and what hangs below it; its number
is EIO, as DragonFly answers when a check code does not hold, and it says where the block lies.

Counterpart: HAMMER2_ERROR_* and hammer2_error_to_errno (vfs/hammer2/hammer2.h).
"""

from __future__ import annotations

from dfuser.libkern.errno import EINVAL, EIO, KError


class VolumeError(KError):
    """The volume cannot be used at all; carries EINVAL unless a device itself failed."""

    def __init__(self, text: str, number: int = EINVAL) -> None:
        """Say why in one sentence."""
        super().__init__(number, text)


class MediaError(KError):
    """One block is damaged, or says what no block may say. The number is EIO."""

    def __init__(self, text: str, data_off: int = 0) -> None:
        """Say what is wrong, and where.

        Args:
            text: what is wrong, without the place.
            data_off: the block's, 0 if it has none.
        """
        where = f" (block {data_off & ~63:#x}, {1 << (data_off & 63)} bytes)" if data_off else ""
        super().__init__(EIO, text + where)
        self.data_off = data_off
