"""Fixtures of the tests on a mount: `mnt` (a `Mounted`), `host`, `place`, `twin`.

Every test here runs once for each transport (`tests.mount.fixtures.transport`). With the reference
transport the fast set runs what looks into the bridge (``test_bridge_*``); the tools, the endings
and the rest run on it in the long set."""

from __future__ import annotations

import pytest

from tests.mount.fixtures import host, mnt, place, transport, twin

__all__ = ["host", "mnt", "place", "transport", "twin"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what need not be seen twice in a fast run into the long set."""
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        bridge = item.path.name.startswith("test_bridge_")
        if params.get("transport") == "pyfuse3" and item.path.parent.name == "mount" and not bridge:
            item.add_marker(pytest.mark.slow)
