"""``dfuser vnodes``: vnodes in memory. Counterpart: ``vmstat -s`` and ddb in DragonFly."""

from __future__ import annotations

from typing import Final

import click

from dfuser.client import Connection

from .output import Column, dash, print_json, print_table, warn
from .talk import talks
from .verb import verb

COLUMNS: Final = (
    Column("mount", "MOUNT", True),
    Column("ino", "INO", True),
    Column("type", "TYPE"),
    Column("state", "STATE"),
    Column("refs", "REFS", True),
    Column("auxrefs", "HOLDS", True),
    Column("opens", "OPENS", True),
    Column("names", "NAMES", True),
    Column("flags", "FLAGS", True),
    Column("name", "NAME", False, dash),
)


@verb()
@click.option("-n", "--limit", type=click.IntRange(1, 10_000), default=100, show_default=True,
              help="Show at most so many.")  # fmt: skip
@click.option("--on", "mount", type=click.IntRange(1), help="Only those of the mount with this ID.")
@talks
def command(kernel: Connection, limit: int, mount: int | None, as_json: bool) -> None:
    """List vnodes in memory, active ones first.

    'dfuser mounts' shows the IDs of mounts; 'dfuser sysctl kern.maxvnodes' is the limit.

    Examples:
      dfuser vnodes -n 20
      dfuser vnodes --on 1 --json
    """
    answer = kernel.domsg("vfs", "vnodes", limit=limit, mount=mount or 0)
    if as_json:
        print_json("vnodes", answer["rows"], more=answer["more"], statistics=answer["statistics"])
        return
    print_table(answer["rows"], COLUMNS)
    stats = answer["statistics"]
    more = "; there are more, see -n" if answer["more"] else ""
    warn(
        f"{stats['numvnodes']} vnodes of at most {stats['maxvnodes']}: "
        f"{stats['activevnodes']} active, {stats['cachedvnodes']} cached, "
        f"{stats['inactivevnodes']} inactive{more}"
    )
