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

#: What a walk may be for; without one of these it is for stat(2).
INTENTS: Final = ("open", "create", "delete", "rename")


def describe(step: dict[str, Any]) -> dict[str, Any]:
    """A step with the two columns made of several fields."""
    note = f"-> {step['target']}" if step["target"] else ""
    if step["crossed"]:
        note = f"mount point crossed {note}".strip()
    if step["error_name"]:
        note = step["error_name"]
    return {**step, "where": str(step["mount"]), "note": note}


@verb()
@click.option("-u", "--uid", type=click.IntRange(0), help="Walk as this user.")
@click.option("-g", "--gid", type=click.IntRange(0), help="Walk as this group.")
@click.option("--for", "intent", type=click.Choice(INTENTS), help="What the walk is for.")
@click.argument("path")
@talks
def command(
    kernel: Connection,
    uid: int | None,
    gid: int | None,
    intent: str | None,
    path: str,
    as_json: bool,
) -> None:
    """Walk a path and show what the namecache does.

    PATH begins at the root of the mount. For each component: whether the namecache knew it (absent,
    unresolved, positive, negative), what it knows afterwards, and where the walk stands. Symbolic
    links are followed. A path that does not exist exits with 16; the steps are shown all the same.

    What the last component may be depends on what the walk is for: --for open wants a file that
    may be read; --for create wants a name that is free, in a directory that may be written;
    --for delete and --for rename want one that exists and may go, and stop at a link.

    Examples:
      dfuser nlookup /tmp/new/file
      dfuser nlookup --uid 1000 /kern/ctl
      dfuser nlookup --for create /tmp/..
    """
    if not path.startswith("/"):
        raise click.UsageError(f"{path!r} is not a path inside: begin it with /")
    answer = kernel.domsg("vfs", "nlookup", path=path, uid=uid, gid=gid, intent=intent)
    if as_json:
        print_json("nlookup", answer)
    else:
        print_table(map(describe, answer["steps"]), COLUMNS)
    if answer["error"]:
        raise CliError(
            ExitCode.KERNEL,
            f"{clean(path)}: {answer['error_text']} ({answer['error_name']})",
        )
