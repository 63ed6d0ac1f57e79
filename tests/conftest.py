"""What every test gets: reproducible randomness, and a check that nothing stays mounted.

A test that draws random numbers asks for `rng` (or `seed`). The seed is printed, pytest
shows it when the test fails, and ``DFUSER_SEED=n`` replays it.
"""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Iterator

import hypothesis
import pytest

hypothesis.settings.register_profile("dfuser", deadline=None, print_blob=True)
hypothesis.settings.load_profile("dfuser")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed that is the same in each run of the same test, unless DFUSER_SEED says else."""
    chosen = int(os.environ.get("DFUSER_SEED") or zlib.crc32(request.node.nodeid.encode()))
    print(f"replay with DFUSER_SEED={chosen}")
    return chosen


@pytest.fixture
def rng(seed: int) -> random.Random:
    """A random generator made from `seed`."""
    return random.Random(seed)


def fuse_mounts() -> set[str]:
    """The FUSE mounts this process can see."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        rows = [line.split() for line in table]
    return {row[4] for row in rows if row[row.index("-") + 1].startswith("fuse")}


@pytest.fixture(autouse=True)
def no_mount_stays(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """After a test that mounts, nothing may be left mounted in this run's own folders."""
    if request.node.get_closest_marker("mount") is None:
        yield
        return
    base = str(tmp_path_factory.getbasetemp())
    yield
    left = sorted(path for path in fuse_mounts() if path.startswith(base))
    assert not left, f"still mounted: {left}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot do."""
    if os.access("/dev/fuse", os.R_OK | os.W_OK):
        return
    for item in items:
        if item.get_closest_marker("mount") is not None:
            item.add_marker(pytest.mark.skip(reason="/dev/fuse cannot be opened"))
