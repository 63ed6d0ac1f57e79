"""The product's own testers on the mount: random data, random names, twins, fio, invariants."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dfuser.soak.driver import run_soak
from dfuser.soak.fsstress import FsStress
from dfuser.soak.fsx import Fsx
from dfuser.soak.invariants import check_tree
from dfuser.soak.loads import FIO_MODES, run_fio
from dfuser.soak.twin import TwinRun
from tests.mount.mounted import Mounted
from tests.mount.tools import sample_tree

pytestmark = pytest.mark.mount


@pytest.mark.parametrize("seed", range(4))
def test_fsx(place: Path, seed: int) -> None:
    """What if two ways to the same byte did not agree."""
    tester = Fsx(place, seed)
    assert tester.run(operations=1500) == 1500
    tester.close()


@pytest.mark.parametrize("seed", range(4))
def test_fsstress(place: Path, seed: int) -> None:
    """What if an errno, a link count or a name were not the model's."""
    assert FsStress(place, seed).run(operations=4000) == 4000


@pytest.mark.parametrize("seed", range(10, 12))
def test_twin_with_the_host(place: Path, twin: Path, seed: int) -> None:
    """What if the mount answered otherwise than the host's tmpfs."""
    assert TwinRun(twin, place, seed).run(operations=4000) == 4000


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
def test_long_runs(place: Path, twin: Path, seed: int) -> None:
    """What if it takes 50,000 operations to find it."""
    for name in ("data", "names", "twin"):
        (place / name).mkdir()
    Fsx(place / "data", seed).run(operations=20_000)
    FsStress(place / "names", seed).run(operations=50_000)
    TwinRun(twin, place / "twin", seed).run(operations=20_000)


@pytest.mark.parametrize(("engine", "label", "extra"), FIO_MODES, ids=[m[1] for m in FIO_MODES])
def test_fio_verify(place: Path, engine: str, label: str, extra: tuple[str, ...]) -> None:
    """What if a block that fio wrote came back with another checksum."""
    if shutil.which("fio") is None:
        pytest.skip("fio is not installed")
    run_fio(place, 1, engine, label, extra)


def test_invariants(mnt: Mounted, place: Path) -> None:
    """What if du, statfs, readdir and stat did not tell the same story."""
    sample_tree(place / "tree")
    report = check_tree(place)
    assert report.violations == ()
    assert report.files > 100


@pytest.mark.slow
def test_soak(place: Path) -> None:
    """What if the loads side by side found what none finds alone."""
    report = run_soak(place, 0.5, seed=1)
    assert report.ok, "\n".join(report.lines())
