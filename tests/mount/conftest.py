"""Fixtures of the tests on a mount: `mnt` (a `Mounted`), `host`, `place`, `twin`."""

from __future__ import annotations

from tests.mount.fixtures import host, mnt, place, twin

__all__ = ["host", "mnt", "place", "twin"]
