"""The transports a mount can be served by.

Every case runs once for each. DFUSER_TEST_TRANSPORT=NAME runs one only. With DFUSER_TEST_DIR
nothing is mounted and the cases judge that directory: once, by the differences of the transport
that is named (by default our own).
"""

from __future__ import annotations

import os

from tests.mount.mounted import why_no_mount

DEVICE, STOCK = "device", "pyfuse3"
TRANSPORTS = (DEVICE, STOCK)


def why_not(transport: str) -> str | None:
    """Why tests do not run on this transport here, or None."""
    wanted = os.environ.get("DFUSER_TEST_TRANSPORT")
    if os.environ.get("DFUSER_TEST_DIR"):
        wanted = wanted or DEVICE
    elif reason := why_no_mount():
        return reason
    if wanted and transport != wanted:
        return f"DFUSER_TEST_TRANSPORT asks for {wanted}"
    return None
