"""`python -m dfuser.soak`: the soak, or one of its loads, on any directory.

    python -m dfuser.soak run DIR --minutes 5 --seed 1 [--loads fsx,fsstress] [--json]
    python -m dfuser.soak load fsx DIR --seed 7 --seconds 30
    python -m dfuser.soak twin LEFT RIGHT --seed 7 --operations 10000

A failure of `run` names a load and a seed; `load` with that seed does the same again. Exit status:
0 when nothing is wrong, 1 when something is, 2 for a wrong command line.

Counterpart: none.
Differs from DragonFly: an addition.
Token/lock order: takes none; it is a host program.
Invariants: only this module of the package writes to the standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from dfuser.soak.driver import run_load, run_soak
from dfuser.soak.loads import all_loads
from dfuser.soak.report import SoakFailure
from dfuser.soak.twin import TwinRun


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    options = _parser().parse_args(arguments)
    if options.command == "load":
        result = run_load(options.load, options.directory, options.seed, options.seconds)
        _say(json.dumps(result._asdict()))
        return 0 if result.ok else 1
    if options.command == "twin":
        return _twin(options)
    loads = options.loads.split(",") if options.loads else None
    report = run_soak(options.directory, options.minutes, options.seed, loads)
    _say(json.dumps(report.as_dict()) if options.json else "\n".join(report.lines()))
    return 0 if report.ok else 1


def _twin(options: argparse.Namespace) -> int:
    twin = TwinRun(options.left, options.right, options.seed)
    try:
        count = twin.run(operations=options.operations)
    except SoakFailure as failure:
        _say(str(failure))
        return 1
    _say(f"{count} operations, no difference")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dfuser.soak")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="all loads for some minutes, then the rules")
    run.add_argument("directory", type=Path)
    run.add_argument("--minutes", type=float, default=1.0)
    run.add_argument("--seed", type=int, default=1)
    run.add_argument("--loads", default="", help="comma-separated; default: all")
    run.add_argument("--json", action="store_true")
    load = commands.add_parser("load", help="one load; prints its result as JSON")
    load.add_argument("load", choices=sorted(all_loads()))
    load.add_argument("directory", type=Path)
    load.add_argument("--seed", type=int, default=1)
    load.add_argument("--seconds", type=float, default=10.0)
    twin = commands.add_parser("twin", help="the same operations on two directories")
    twin.add_argument("left", type=Path)
    twin.add_argument("right", type=Path)
    twin.add_argument("--seed", type=int, default=1)
    twin.add_argument("--operations", type=int, default=10_000)
    return parser


if __name__ == "__main__":
    sys.exit(main())
