"""``dfuser ports``: message ports of the kernel."""

from __future__ import annotations

from typing import Final

import click

from dfuser.client import Connection

from .output import Column, dash, print_json, print_table
from .talk import talks
from .verb import verb

COLUMNS: Final = (
    Column("name", "PORT"),
    Column("kind", "KIND"),
    Column("owner", "OWNER", False, dash),
    Column("cpuid", "CPU", True, lambda cpu: "-" if cpu == -1 else str(cpu)),
    Column("queued", "QUEUED", True),
    Column("waiting", "WAITING", False, lambda waits: "yes" if waits else "-"),
    Column("puts", "PUTS", True),
    Column("syncs", "SYNC", True),
    Column("replies", "REPLIES", True),
    Column("remote", "REMOTE", True),
)


@verb()
@click.option("-n", "--limit", type=click.IntRange(1, 10_000), default=1000, show_default=True,
              help="Show at most so many.")  # fmt: skip
@click.option("--commands", is_flag=True,
              help="Show the ports host programs may use, and their commands.")  # fmt: skip
@talks
def command(kernel: Connection, limit: int, commands: bool, as_json: bool) -> None:
    """List message ports.

    SYNC counts the messages that were served in their sender, without a queue or a switch.

    Examples:
      dfuser ports
      dfuser ports --commands
    """
    if commands:
        ports = kernel.kernel["ports"]
        if as_json:
            print_json("ports", ports)
            return
        rows = [
            {"command": f"{port}.{name}", "help": text}
            for port, names in ports.items()
            for name, text in names.items()
        ]
        print_table(rows, (Column("command", "COMMAND"), Column("help", "WHAT IT DOES")))
        return
    rows = kernel.domsg("ports", "list", limit=limit)
    if as_json:
        print_json("ports", rows)
    else:
        print_table(rows, COLUMNS)
