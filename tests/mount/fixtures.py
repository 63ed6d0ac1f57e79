"""The fixtures that every set of tests on a mount shares; a conftest.py imports what it needs."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.mounted import Mounted, mounted, why_no_mount

HOST_TMPFS = Path("/dev/shm")


@pytest.fixture(scope="session", autouse=True, params=["device", "pyfuse3"])
def transport(request: pytest.FixtureRequest) -> Iterator[str]:
    """Who serves the mounts of a test; mounts are made by the default that the variable sets."""
    before = os.environ.get("DFUSER_TRANSPORT")
    os.environ["DFUSER_TRANSPORT"] = request.param
    yield request.param
    if before is None:
        del os.environ["DFUSER_TRANSPORT"]
    else:
        os.environ["DFUSER_TRANSPORT"] = before


@pytest.fixture(scope="session")
def mnt(transport: str) -> Iterator[Mounted]:
    """The mounted dfuser of this session, or the directory that DFUSER_TEST_DIR names."""
    if given := os.environ.get("DFUSER_TEST_DIR"):
        yield Mounted(Path(given), None, None)
        return
    if reason := why_no_mount():
        pytest.skip(reason)
    with mounted("tmpfs") as world:
        yield world


@pytest.fixture(scope="session")
def host() -> Iterator[Path]:
    """A directory of this session on the host's tmpfs, to compare with."""
    if not HOST_TMPFS.is_dir():
        pytest.skip("the host has no tmpfs at /dev/shm")
    path = Path(tempfile.mkdtemp(prefix="dfuser-host-", dir=HOST_TMPFS))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def place(mnt: Mounted) -> Iterator[Path]:
    """A fresh directory on the mount."""
    path = Path(tempfile.mkdtemp(prefix="test-", dir=mnt.path))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def twin(host: Path) -> Iterator[Path]:
    """A fresh directory on the host's tmpfs."""
    path = Path(tempfile.mkdtemp(prefix="test-", dir=host))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)
