"""``dfuser sync``: write everything dirty. Counterpart: sync(8)."""

from __future__ import annotations

import click

from .talk import connect, mount_option


@click.command()
@mount_option
def command() -> None:
    """Write everything dirty and return when that is done.

    The host's own sync(1) never reaches a FUSE file system; this does.

    \b
    Example:
      dfuser sync -m /mnt
    """
    with connect() as kernel:
        kernel.domsg("kernel", "sync")
