"""``dfuser df``: how full the file systems inside are. Counterpart: df(1)."""

from __future__ import annotations

from typing import Any, Final

import click

from dfuser.client import Connection

from .output import Column, print_json, print_table, size
from .talk import talks
from .verb import verb


def figures(row: dict[str, Any]) -> dict[str, Any]:
    """The columns of df from those of statfs."""
    bsize, blocks, bfree, bavail = (row[key] for key in ("bsize", "blocks", "bfree", "bavail"))
    used = blocks - bfree
    whole = used + bavail
    return {
        **row,
        "size": blocks * bsize,
        "used": used * bsize,
        "avail": bavail * bsize,
        "capacity": f"{-(-used * 100 // whole)}%" if whole else "-",
        "iused": row["files"] - row["ffree"],
        "ifree": row["ffree"],
    }


COLUMNS: Final = (
    Column("source", "SOURCE"),
    Column("type", "TYPE"),
    Column("size", "SIZE", True, size),
    Column("used", "USED", True, size),
    Column("avail", "AVAIL", True, size),
    Column("capacity", "CAPACITY", True),
    Column("on", "MOUNTED ON"),
)
INODES: Final = (
    *COLUMNS[:-1],
    Column("iused", "IUSED", True),
    Column("ifree", "IFREE", True),
    COLUMNS[-1],
)


@verb()
@click.option("-i", "inodes", is_flag=True, help="Show inodes as well.")
@talks
def command(kernel: Connection, inodes: bool, as_json: bool) -> None:
    """Show how full the file systems inside are.

    Examples:
      dfuser df
      dfuser df -i --json
    """
    rows = kernel.domsg("vfs", "df")
    if as_json:
        print_json("filesystems", rows)
    else:
        print_table(map(figures, rows), INODES if inodes else COLUMNS)
