"""The soak: named loads side by side for some minutes, then the rules checked, then a report.

`run_soak` cuts the time into rounds. In each round every load runs once, in a child process and a
directory of its own, with a seed of its own, all at the same time. A load that fails does not stop
the others; one that hangs is killed some time after its round and reported as hanging, and the
soak ends there, since a hung file system answers nothing more. When all rounds are over and the
tree is at rest, `invariants` walks it.

The children are `python -m dfuser.soak load ...`: a process each, so that a hang or a crash of one
is seen and does not take the driver along.

Counterpart: test/stress.
Differs from DragonFly: bounded in time, seeded, one report.
Token/lock order: takes none; it is a host program, and never runs inside the kernel it loads.
Invariants: it leaves the directory as empty as it was, unless something failed: then the tree of
the failed load stays for the one who looks.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from dfuser.soak.invariants import check_tree
from dfuser.soak.loads import all_loads
from dfuser.soak.report import InvariantReport, LoadResult, SoakFailure, SoakReport

ROUND_SECONDS = 30.0
GRACE_SECONDS = 120.0
NOT_WALKED = InvariantReport(0, 0, 0, 0, 0, ("the tree was not walked: a load hangs",))


def run_load(load: str, directory: Path, seed: int, seconds: float) -> LoadResult:
    """Run one load in this process and say what it did; a failure is in the result.

    Raises:
        KeyError: there is no such load.
    """
    body, started = all_loads()[load], time.monotonic()
    operations, failure = 0, ""
    try:
        operations = body(directory, seed, seconds)
    except SoakFailure as error:
        operations, failure = error.operations, str(error)
    except (OSError, subprocess.SubprocessError) as error:
        failure = f"{load}, seed {seed}: {type(error).__name__}: {error}"
    return LoadResult(load, seed, round(time.monotonic() - started, 3), operations, failure)


def run_soak(
    directory: Path, minutes: float, seed: int, loads: Iterable[str] | None = None
) -> SoakReport:
    """Load the file system at `directory` for `minutes` and report.

    Args:
        directory: any directory; a new one is made below it to work in.
        minutes: how long; the last round is cut to fit.
        seed: what all seeds of all loads are made from.
        loads: names out of `all_loads`; all of them when None.

    Raises:
        KeyError: a load does not exist.
        OSError: the directory cannot be used.
    """
    names = tuple(all_loads()) if loads is None else tuple(loads)
    for name in names:
        all_loads()[name]
    started = time.monotonic()
    deadline = started + minutes * 60
    work = Path(tempfile.mkdtemp(prefix="soak-", dir=directory))
    results: list[LoadResult] = []
    number, hung = 0, False
    while not hung and (left := deadline - time.monotonic()) > 0:
        seconds = min(ROUND_SECONDS, left)
        done, hung = _run_round(names, work, seed + 1000 * number, seconds)
        results += done
        number += 1
    walk = NOT_WALKED if hung else check_tree(directory)
    if all(result.ok for result in results):
        shutil.rmtree(work, ignore_errors=True)
    seconds = round(time.monotonic() - started, 3)
    return SoakReport(str(directory), seed, seconds, tuple(results), walk)


def _run_round(
    names: tuple[str, ...], work: Path, seed: int, seconds: float
) -> tuple[list[LoadResult], bool]:
    """Run each load once, side by side; tell the results and whether one hung."""
    children = []
    for index, name in enumerate(names):
        place = work / f"{name}-{seed}"
        place.mkdir()
        children.append((name, seed + index, place, _start(name, place, seed + index, seconds)))
    limit = time.monotonic() + seconds + GRACE_SECONDS
    results, hung = [], False
    for name, own_seed, place, child in children:
        result = _finish(name, own_seed, child, max(limit - time.monotonic(), 0.1), seconds)
        results.append(result)
        hung = hung or "hangs" in result.failure
        if result.ok:
            shutil.rmtree(place, ignore_errors=True)
    return results, hung


def _start(name: str, place: Path, seed: int, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dfuser.soak", "load", name, str(place)]
    command += ["--seed", str(seed), "--seconds", str(seconds)]
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def _finish(
    name: str, seed: int, child: subprocess.Popen[str], limit: float, seconds: float
) -> LoadResult:
    """Wait for a load's result, and kill the load when it takes far too long."""
    try:
        out, err = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.communicate(timeout=5)
        return LoadResult(name, seed, seconds, 0, f"{name}, seed {seed}: it hangs")
    try:
        return LoadResult(**json.loads(out))
    except (ValueError, TypeError):
        said = err.strip().splitlines()[-3:]
        return LoadResult(name, seed, seconds, 0, f"{name}, seed {seed}: it died: {said}")
