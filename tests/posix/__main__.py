"""`python -m tests.posix DIR [--json] [--only TEXT] [--list]`: run the cases in DIR."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.posix.case import all_cases
from tests.posix.runner import FAIL, run_cases, table


def main() -> int:
    """Run the cases; the exit status is 1 when one fails and 2 when DIR cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m tests.posix")
    parser.add_argument("directory", type=Path, nargs="?", help="where the cases do their work")
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    parser.add_argument("--only", default="", help="only cases whose name holds this text")
    parser.add_argument("--list", action="store_true", help="print the names and run nothing")
    options = parser.parse_args()
    chosen = [case for case in all_cases() if options.only in case.title]
    if options.list:
        sys.stdout.write("".join(f"{case.title}\n" for case in chosen))
        return 0
    if options.directory is None or not options.directory.is_dir():
        parser.error(f"{options.directory}: not a directory")
    outcomes = list(run_cases(chosen, options.directory))
    if options.json:
        json.dump([outcome._asdict() for outcome in outcomes], sys.stdout, indent=1)
    else:
        sys.stdout.write("\n".join(table(outcomes)) + "\n")
    return 1 if any(outcome.verdict == FAIL for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
