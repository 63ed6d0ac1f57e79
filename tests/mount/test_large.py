"""Large directories on the mount: a listing stays exact while the directory changes under it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mount.mounted import Mounted
from tests.posix.linux import getdents

pytestmark = [pytest.mark.mount, pytest.mark.slow, pytest.mark.timeout(600)]
NAMES = 100_000
STEPS = 200  # of change; then it stops, or a listing that shows new names would never end


@pytest.fixture(scope="module")
def large(mnt: Mounted) -> Path:
    """A directory with 100,000 files, named in no useful order."""
    path = mnt.path / "large"
    path.mkdir()
    for n in range(NAMES):
        os.mknod(path / f"{n * 7919 % NAMES:06d}")
    return path


def test_listing_is_exact(large: Path) -> None:
    """What if 100,000 names were not all listed, once each?"""
    names = os.listdir(large)
    assert len(names) == NAMES
    assert set(names) == {f"{n:06d}" for n in range(NAMES)}


def test_listing_while_it_changes(large: Path) -> None:
    """What if names that stay were missed or doubled while others come and go?"""
    fd = os.open(large, os.O_RDONLY)
    seen: list[bytes] = []
    step = 0
    while batch := getdents(fd, 65536):
        seen += [entry.name for entry in batch]
        for n in range(step * 20, step * 20 + 20 if step < STEPS else 0):
            (large / f"new-{n}").touch()
            (large / f"{n * 2 + 1:06d}").unlink(missing_ok=True)
            (large / f"new-{n - 10}").unlink(missing_ok=True)
        step += 1
    os.close(fd)
    stayed = [name for name in seen if name.isdigit() and int(name) % 2 == 0]
    assert len(stayed) == NAMES // 2
    assert len(set(stayed)) == NAMES // 2
    assert len(seen) == len(set(seen))


def test_all_can_be_removed(large: Path) -> None:
    """What if removing each name as it is listed left some behind?"""
    with os.scandir(large) as entries:
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir(large) == []
    large.rmdir()
