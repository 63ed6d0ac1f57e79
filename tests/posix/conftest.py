"""Fixtures of the POSIX cases: every case's outcome on the host's tmpfs and on each mount."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.fixtures import host
from tests.mount.mounted import mounted
from tests.posix.differences import differences
from tests.posix.runner import Outcome
from tests.posix.transports import TRANSPORTS, why_not

__all__ = ["host"]
ROOT = Path(__file__).parents[2]
LIMIT = 800.0


def _run(directory: Path) -> dict[str, Outcome]:
    """Run all cases in a process of its own, which forks freely: pytest has threads."""
    command = [sys.executable, "-m", "tests.posix", str(directory), "--json"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    return {row["title"]: Outcome(**row) for row in json.loads(done.stdout)}


@pytest.fixture(scope="session")
def on_host(host: Path) -> dict[str, Outcome]:
    """What became of each case on the host's tmpfs."""
    return _run(host)


@pytest.fixture(scope="session", params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    """Each transport that can be had here, one after the other."""
    name: str = request.param
    if reason := why_not(name):
        pytest.skip(reason)
    return name


@pytest.fixture(scope="session")
def listed(transport: str) -> dict[str, str]:
    """The differences that are allowed on this transport."""
    return differences(transport)


@pytest.fixture(scope="session")
def on_mount(transport: str) -> Iterator[dict[str, Outcome]]:
    """What became of each case on a dfuser that this transport serves; its end is judged, too."""
    if given := os.environ.get("DFUSER_TEST_DIR"):
        yield _run(Path(given))
        return
    with mounted("tmpfs", "--transport", transport) as world:
        outcomes = _run(world.path)
    yield outcomes
