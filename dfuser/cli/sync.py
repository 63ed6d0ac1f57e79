"""``dfuser sync``: write everything dirty. Counterpart: sync(8)."""

from __future__ import annotations

from .talk import connect, mount_option
from .verb import verb


@verb()
@mount_option
def command() -> None:
    """Write everything dirty and return when that is done.

    The host's own sync(1) never reaches a FUSE file system; this does.

    Example:
      dfuser sync -m /mnt
    """
    with connect() as kernel:
        kernel.domsg("kernel", "sync")
