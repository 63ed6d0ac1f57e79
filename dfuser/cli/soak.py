"""``dfuser soak``: load a mounted dfuser for minutes, and check it."""

from __future__ import annotations

import os
import random
from pathlib import Path

import click

from dfuser.client import choose

from .exits import CliError, ExitCode
from .output import print_json
from .talk import json_option, mount_option
from .verb import verb


@verb()
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True,
              help="How long.")  # fmt: skip
@click.option("--seed", type=int, help="What all random choices are made from (default: drawn).")
@click.option("--load", "loads", multiple=True, help="Only this load; may be given several times.")
@click.argument("directory", metavar="[DIR]", required=False)
@mount_option
@json_option
@click.pass_context
def command(
    ctx: click.Context, minutes: float, seed: int | None, loads: tuple[str, ...],
    directory: str | None, as_json: bool,
) -> int:  # fmt: skip
    """Load a mounted dfuser for minutes and check it.

    Works in DIR, any directory of any file system; without DIR in the /tmp of the running dfuser.
    Exits with 16 when something was found wrong. The seed in the report repeats the choices.

    Examples:
      dfuser soak --minutes 10
      dfuser soak --minutes 2 --seed 7 --load fsx /mnt/tmp
    """
    from dfuser.soak.driver import run_soak
    from dfuser.soak.loads import all_loads

    unknown = [name for name in loads if name not in all_loads()]
    if unknown:
        known = ", ".join(sorted(all_loads()))
        raise click.UsageError(f"there is no load {unknown[0]!r}: there are {known}")
    where = directory or _tmp(choose(ctx.find_root().obj).mountpoint)
    chosen = random.getrandbits(31) if seed is None else seed
    try:
        found = run_soak(Path(where), minutes, chosen, loads or None)
    except OSError as error:
        raise CliError(ExitCode.USAGE, f"cannot work in {where}: {error.strerror}") from None
    if as_json:
        print_json("soak", found.as_dict())
    else:
        print("\n".join(found.lines()))
    return ExitCode.OK if found.ok else ExitCode.KERNEL


def _tmp(mountpoint: str) -> str:
    """The /tmp of a world, which is one file system; its root where there is none."""
    inside = os.path.join(mountpoint, "tmp")
    return inside if os.path.isdir(inside) else mountpoint
