"""``dfuser dmesg``: the kernel log. Counterpart: dmesg(8)."""

from __future__ import annotations

import re
from typing import Final

import click

from dfuser.client import Connection

from .output import clean, print_json, warn
from .talk import talks
from .verb import verb

_LEVEL: Final = re.compile(r"<\d+>")


def show(line: str) -> None:
    """Print one line of the log without its level."""
    print(clean(_LEVEL.sub("", line, count=1)) if line.startswith("<") else clean(line), flush=True)


@verb()
@click.option("-w", "--follow", is_flag=True, help="Go on showing what comes, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(0, 10_000), default=1000, show_default=True,
              help="Begin so many lines before the end.")  # fmt: skip
@talks
def command(kernel: Connection, follow: bool, lines: int, as_json: bool) -> None:
    """Show the kernel log.

    Examples:
      dfuser dmesg
      dfuser dmesg -w -n 0
    """
    answer = kernel.domsg("log", "tail", lines=lines)
    if as_json:
        print_json("log", answer["lines"], seq=answer["seq"])
        return
    for line in answer["lines"]:
        show(line)
    seq, rest = answer["seq"], ""
    while follow:
        answer = kernel.domsg("log", "wait", since=seq)
        if answer["lost"]:
            warn(f"{answer['lost']} bytes were overwritten before they could be shown")
        seq = answer["seq"]
        *whole, rest = (rest + answer["text"]).split("\n")
        for line in whole:
            show(line)
