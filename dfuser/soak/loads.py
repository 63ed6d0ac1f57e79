"""The named loads of a soak: each works in a directory of its own for a number of seconds.

A load is a function of (directory, seed, seconds) that returns how many operations it did, and
raises `SoakFailure` when the file system is wrong. `fsx` and `fsstress` are random testers with a
model; `names` makes and removes many small files; `fio` is the host's fio with verification, where
it is installed.

Counterpart: test/stress (one program a load).
Differs from DragonFly: seeded, bounded in time, one report.
Token/lock order: takes none; these are host programs.
Invariants: a load leaves its directory empty when it succeeds.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from dfuser.soak.fsstress import FsStress
from dfuser.soak.fsx import Fsx
from dfuser.soak.report import SoakFailure

Load = Callable[[Path, int, float], int]

FIO_MODES = (
    ("psync", "buffered", ()),
    ("mmap", "mapped", ()),
    ("psync", "direct", ("--direct=1",)),
    ("psync", "four writers", ("--numjobs=4", "--group_reporting")),
)


def load_fsx(directory: Path, seed: int, seconds: float) -> int:
    """Random file data against a model of bytes."""
    tester = Fsx(directory, seed)
    count = tester.run(seconds=seconds)
    tester.close()
    return count


def load_fsstress(directory: Path, seed: int, seconds: float) -> int:
    """Random names against a model of the tree, in fresh directories of 20,000 operations."""
    deadline, count = time.monotonic() + seconds, 0
    while (left := deadline - time.monotonic()) > 0:
        place = directory / f"round-{count}"
        place.mkdir()
        count += FsStress(place, seed + count).run(operations=20_000, seconds=left)
        shutil.rmtree(place)
    return count


def load_names(directory: Path, seed: int, seconds: float) -> int:
    """Many small files: made, found, renamed, read and removed in batches of 500."""
    draw, deadline, count = random.Random(seed), time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        names = [f"{draw.randrange(1 << 48):x}" for _ in range(500)]
        for name in names:
            (directory / name).write_bytes(name.encode())
        found = {entry.name for entry in directory.iterdir()}
        if found != set(names):
            raise SoakFailure("names", seed, count, f"{len(found ^ set(names))} names differ", [])
        for name in names:
            moved = (directory / name).rename(directory / f"{name}.moved")
            if moved.read_bytes() != name.encode():
                raise SoakFailure("names", seed, count, f"{moved}: other bytes", [])
            moved.unlink()
        count += 5 * len(names)
    return count


def load_fio(directory: Path, seed: int, seconds: float) -> int:
    """Fio's random writes with verification: buffered, mapped, O_DIRECT, four writers in turn."""
    deadline, count = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        engine, label, extra = FIO_MODES[count % len(FIO_MODES)]
        run_fio(directory, seed + count, engine, label, extra)
        count += 1
    return count


def run_fio(
    directory: Path, seed: int, engine: str, label: str, extra: tuple[str, ...] = ()
) -> None:
    """One fio job of 8 MiB a writer: random writes, each block verified afterwards.

    Raises:
        SoakFailure: fio found a wrong block or failed otherwise.
    """
    command = [
        "fio", "--name=verify", f"--directory={directory}", f"--ioengine={engine}",
        "--rw=randwrite", "--bs=4k", "--size=8m",
        "--verify=crc32c", "--do_verify=1", "--verify_fatal=1",
        f"--randseed={seed}", "--fallocate=none", "--unlink=1", "--minimal", *extra,
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=directory, timeout=300
    )
    if done.returncode != 0:
        tail = (done.stderr or done.stdout).strip().splitlines()[-5:]
        raise SoakFailure("fio", seed, 1, f"{label}: exit status {done.returncode}", tail)


def all_loads() -> dict[str, Load]:
    """The loads that can run on this host, by name."""
    loads: dict[str, Load] = {"fsx": load_fsx, "fsstress": load_fsstress, "names": load_names}
    if shutil.which("fio"):
        loads["fio"] = load_fio
    return loads
