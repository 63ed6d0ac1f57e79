"""Fixtures of the tests on a mount: `mnt` (a `Mounted`), `host`, `place`, `twin`.

Every test here runs once for each transport (`tests.mount.fixtures.transport`)."""

from __future__ import annotations

from tests.mount.fixtures import host, mnt, place, transport, twin

__all__ = ["host", "mnt", "place", "transport", "twin"]
