"""Fixtures of the POSIX cases: every case's outcome on the host's tmpfs and on the mount."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount.fixtures import host, mnt
from tests.mount.mounted import Mounted
from tests.posix.runner import Outcome

__all__ = ["host", "mnt"]
ROOT = Path(__file__).parents[2]
LIMIT = 600.0


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


@pytest.fixture(scope="session")
def on_mount(mnt: Mounted) -> dict[str, Outcome]:
    """What became of each case on the mounted dfuser."""
    return _run(mnt.path)
