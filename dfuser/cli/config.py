"""``dfuser config``: the settings, and where each comes from."""

from __future__ import annotations

from typing import Final

import click

from .exits import CliError, ExitCode
from .output import Column, print_json, print_table
from .talk import connect, json_option, mount_option
from .verb import verb

COLUMNS: Final = (
    Column("name", "SETTING"),
    Column("value", "VALUE"),
    Column("origin", "FROM"),
)


@verb()
@click.option("--explain", is_flag=True, help="Say where each value comes from.")
@click.option("-c", "--config", "path", type=click.Path(), help="Take a TOML file into account.")
@click.option("--running", is_flag=True, help="Show the settings of the running kernel.")
@mount_option
@json_option
def command(explain: bool, path: str | None, running: bool, as_json: bool) -> None:
    """Show every setting and where its value comes from.

    Strongest first: flags of the command line, environment variables DFUSER_NAME, a TOML file, the
    defaults. Nothing is booted.

    Examples:
      dfuser config --explain
      DFUSER_NCPU=2 dfuser config --explain -c world.toml
      dfuser config --running
    """
    if running:
        with connect() as kernel:
            rows = kernel.domsg("kernel", "info")["settings"]
    else:
        rows = _gather(path)
    if as_json:
        print_json("settings", rows)
    else:
        print_table(rows, COLUMNS if explain or running else COLUMNS[:2])


def _gather(path: str | None) -> list[dict[str, str]]:
    import os

    from dfuser.boot.config import ConfigError, load

    try:
        config = load(None, os.environ, path)
    except ConfigError as error:
        raise CliError(ExitCode.USAGE, str(error)) from None
    return [
        {"name": name, "value": value, "origin": origin} for name, value, origin in config.explain()
    ]
