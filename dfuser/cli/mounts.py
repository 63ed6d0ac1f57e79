"""``dfuser mounts``: what is mounted inside. Counterpart: mount(8) without arguments."""

from __future__ import annotations

from typing import Final

from dfuser.client import Connection

from .output import Column, dash, print_json, print_table
from .talk import talks
from .verb import verb

COLUMNS: Final = (
    Column("number", "ID", True),
    Column("source", "SOURCE"),
    Column("on", "ON"),
    Column("type", "TYPE"),
    Column("coherence", "CACHING"),
    Column("vnodes", "VNODES", True),
    Column("flags", "FLAGS", False, dash),
)


@verb()
@talks
def command(kernel: Connection, as_json: bool) -> None:
    """List what is mounted inside.

    CACHING says how far the host may remember what it was told: exclusive (only the host changes
    it), shared (changes from inside are announced), volatile (nothing is remembered).

    Examples:
      dfuser mounts
      dfuser mounts --json
    """
    rows = kernel.domsg("vfs", "mounts")
    if as_json:
        print_json("mounts", rows)
    else:
        print_table(rows, COLUMNS)
