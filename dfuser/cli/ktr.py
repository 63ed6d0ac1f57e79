"""``dfuser ktr``: kernel tracing. Counterpart: ktrdump(8)."""

from __future__ import annotations

from typing import Any, Final

import click

from dfuser.client import Connection

from .output import Column, clean, print_json, print_table, warn
from .talk import talks
from .verb import verb

MASTERS: Final = (
    Column("name", "MASTER"),
    Column("state", "STATE"),
    Column("noted", "NOTED", True),
    Column("names", "POINTS"),
)


def describe(master: dict[str, Any]) -> dict[str, Any]:
    """A master as a row."""
    mask = master["mask"]
    points = master["points"]
    return {
        "name": master["name"],
        "state": "off" if not mask else "on" if mask == -1 else f"mask {mask:#x}",
        "noted": sum(point["count"] for point in points),
        "names": ", ".join(sorted(point["name"] for point in points)) or "-",
    }


def show(entry: dict[str, Any]) -> None:
    """Print one entry as ktrdump does."""
    point = f"{entry['master']}_{entry['point']}"
    print(
        f"{entry['seq']:>8} {entry['timestamp_ns'] / 1000:>16.3f} cpu{entry['cpu']:<2} "
        f"{point:<20} {clean(entry['text'])}",
        flush=True,
    )


@verb()
@click.option("-e", "--enable", multiple=True, metavar="MASTER", help="Switch a master on.")
@click.option("-d", "--disable", multiple=True, metavar="MASTER", help="Switch a master off.")
@click.option("-f", "--follow", is_flag=True, help="Show entries as they come, until Ctrl-C.")
@click.option("-n", "--count", type=click.IntRange(1, 10_000),
              help="Show so many of the newest entries.")  # fmt: skip
@talks
def command(
    kernel: Connection, enable: tuple[str, ...], disable: tuple[str, ...], follow: bool,
    count: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Show and switch kernel tracing.

    Without options the masters are listed. Entries show number, microseconds, CPU, point and text.

    Examples:
      dfuser ktr                       the masters
      dfuser ktr -e tokens -e tsleep   switch two on
      dfuser ktr -n 50                 the newest entries
      dfuser ktr --follow
      dfuser ktr -d tokens -d tsleep
    """
    for name in enable:
        kernel.domsg("ktr", "enable", master=name)
    for name in disable:
        kernel.domsg("ktr", "disable", master=name)
    if count is not None and not follow:
        entries = kernel.domsg("ktr", "dump", count=count)["entries"]
        if as_json:
            print_json("entries", entries)
        for entry in () if as_json else entries:
            show(entry)
    elif follow:
        _follow(kernel, count or 20)
    elif not enable and not disable:
        masters = kernel.domsg("ktr", "masters")
        if as_json:
            print_json("masters", masters)
        else:
            print_table(map(describe, masters), MASTERS)


def _follow(kernel: Connection, count: int) -> None:
    answer = kernel.domsg("ktr", "dump", count=count)
    while True:
        for entry in answer["entries"]:
            show(entry)
        last = answer["last"]
        answer = kernel.domsg("ktr", "wait", since=last)
        lost = answer["entries"][0]["seq"] - last - 1
        if lost:
            warn(f"{lost} entries were overwritten before they could be shown")
