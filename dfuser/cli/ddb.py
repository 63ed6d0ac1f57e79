"""``dfuser ddb``: commands of the kernel debugger. Counterpart: ddb(4)."""

from __future__ import annotations

import click

from dfuser.client import Connection

from .output import clean, print_json
from .talk import talks
from .verb import verb


@verb()
@click.option("-c", "commands", multiple=True, required=True, metavar="COMMAND",
              help="Run a command; may be given several times.")  # fmt: skip
@talks
def command(kernel: Connection, commands: tuple[str, ...], as_json: bool) -> None:
    """Run a command of the kernel debugger.

    Names may be shortened as far as they stay unique. 'help' lists the commands.

    Examples:
      dfuser ddb -c help
      dfuser ddb -c 'show threads' -c 'show tokens'
    """
    for line in commands:
        lines = kernel.domsg("ddb", "run", line=line)
        if as_json:
            print_json("lines", lines, command=line)
            continue
        for text in lines:
            print(clean(text))
