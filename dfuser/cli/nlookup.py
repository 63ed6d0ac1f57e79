"""``dfuser nlookup``: a walk along a path, step by step."""

from __future__ import annotations

from typing import Any, Final

import click

from dfuser.client import Connection

from .exits import CliError, ExitCode
from .output import Column, clean, dash, print_json, print_table
from .talk import talks
from .verb import verb

COLUMNS: Final = (
    Column("name", "NAME"),
    Column("before", "CACHE BEFORE"),
    Column("after", "AFTER"),
    Column("where", "MOUNT"),
    Column("type", "TYPE", False, lambda kind: dash(kind.removeprefix("V").lower())),
    Column("ino", "INO", True, lambda ino: str(ino) if ino else "-"),
    Column("asked_ns", "TIME", True, lambda ns: f"{ns / 1000:.1f} us"),
    Column("note", ""),
)


def describe(step: dict[str, Any]) -> dict[str, Any]:
    """A step with the two columns made of several fields."""
    note = f"-> {step['target']}" if step["target"] else ""
    if step["crossed"]:
        note = f"mount point crossed {note}".strip()
    return {**step, "where": str(step["mount"]), "note": note}


@verb()
@click.option("-u", "--uid", type=click.IntRange(0), help="Walk as this user.")
@click.option("-g", "--gid", type=click.IntRange(0), help="Walk as this group.")
@click.argument("path")
@talks
def command(kernel: Connection, uid: int | None, gid: int | None, path: str, as_json: bool) -> None:
    """Walk a path and show what the namecache does.

    PATH begins at the root of the mount. For each component: whether the namecache knew it (absent,
    unresolved, positive, negative), what it knows afterwards, and where the walk stands. Symbolic
    links are followed. A path that does not exist exits with 16; the steps are shown all the same.

    Examples:
      dfuser nlookup /tmp/new/file
      dfuser nlookup --uid 1000 /kern/ctl
    """
    if not path.startswith("/"):
        raise click.UsageError(f"{path!r} is not a path inside: begin it with /")
    answer = kernel.domsg("vfs", "nlookup", path=path, uid=uid, gid=gid)
    if as_json:
        print_json("nlookup", answer)
    else:
        print_table(map(describe, answer["steps"]), COLUMNS)
    if answer["error"]:
        raise CliError(
            ExitCode.KERNEL,
            f"{clean(path)}: {answer['error_text']} ({answer['error_name']})",
        )
