"""Fixtures of the tests on a mount: `mnt` (a `Mounted`), `host`, `place`, `twin`.

Every test here runs once for each transport (`tests.mount.fixtures.transport`). The reference
transport's turn belongs to the long set; the POSIX cases see both in a fast run."""

from __future__ import annotations

import pytest

from tests.mount.fixtures import host, mnt, place, transport, twin

__all__ = ["host", "mnt", "place", "transport", "twin"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the reference transport's turn into the long set."""
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if params.get("transport") == "pyfuse3" and item.path.parent.name == "mount":
            item.add_marker(pytest.mark.slow)
