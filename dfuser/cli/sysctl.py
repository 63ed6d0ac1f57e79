"""``dfuser sysctl``: show and change kernel variables. Counterpart: sysctl(8)."""

from __future__ import annotations

from typing import Any, Final

import click

from dfuser.client import Connection, KernelError

from .exits import CliError, ExitCode
from .output import clean, print_json
from .talk import talks
from .verb import verb

#: DragonFly's ENOENT and ENOTDIR.
_UNKNOWN: Final = (2, 20)


def show(row: dict[str, Any], names_only: bool, values_only: bool, describe: bool) -> None:
    """Print one variable."""
    if names_only:
        print(row["name"])
        return
    text = row["description"] if describe else row.get("value", "")
    lines = [clean(line) for line in text.splitlines()] or [""]
    if values_only:
        print("\n".join(lines))
    else:
        print(f"{row['name']}: {lines[0]}" + "".join(f"\n  {line}" for line in lines[1:]))


def assign(kernel: Connection, word: str, quiet: bool) -> dict[str, Any]:
    """Carry out ``name=value``; prints old and new as sysctl(8) does."""
    name, _, value = word.partition("=")
    answer = kernel.domsg("sysctl", "set", name=name.strip(), value=value.strip())
    if not quiet:
        print(f"{answer['name']}: {clean(answer['old'])} -> {clean(answer['new'])}")
    return dict(answer)


def look(kernel: Connection, name: str) -> list[dict[str, Any]]:
    """The variable of that name, or all below it."""
    found: list[dict[str, Any]] = kernel.domsg("sysctl", "list", prefix=name)
    return found


@verb()
@click.option("-a", "everything", is_flag=True, help="Show all variables.")
@click.option("-n", "values_only", is_flag=True, help="Show values without names.")
@click.option("-N", "names_only", is_flag=True, help="Show names without values.")
@click.option("-d", "describe", is_flag=True, help="Show descriptions instead of values.")
@click.option("-w", "--write", is_flag=True, hidden=True)
@click.argument("names", nargs=-1, metavar="[NAME[=VALUE]]...")
@talks
def command(
    kernel: Connection, everything: bool, values_only: bool, names_only: bool, describe: bool,
    write: bool, names: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Show and change kernel variables.

    A NAME that stands for a group shows all variables below it. NAME=VALUE changes a variable and
    shows the old and the new value. The same variables are files under /sysctl of the mount.

    Examples:
      dfuser sysctl kern.ostype
      dfuser sysctl -d vfs.cache
      dfuser sysctl kern.maxvnodes=200000
      dfuser sysctl -a --json
    """
    if not names and not everything:
        raise click.UsageError("name a variable, or use -a for all of them")
    rows: list[dict[str, Any]] = []
    failed: list[KernelError] = []
    for word in names or ("",):
        try:
            if "=" in word:
                rows.append(assign(kernel, word, as_json))
                continue
            found = look(kernel, word)
        except KernelError as error:
            failed.append(error)
            continue
        rows += found
        if not as_json:
            for row in found:
                show(row, names_only, values_only, describe)
    if as_json:
        print_json("variables", rows)
    if failed:
        first = failed[0]
        if first.errno in _UNKNOWN:
            raise CliError(ExitCode.USAGE, f"{first.strerror}: 'dfuser sysctl -aN' lists the names")
        raise first
