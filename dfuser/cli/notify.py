"""Telling a service manager how we are: the datagrams of sd_notify(3).

Nothing happens without ``NOTIFY_SOCKET``. Failures are ignored: a manager that does not listen is
no reason to stop.
"""

from __future__ import annotations

import contextlib
import os
import socket


def notify(*lines: str) -> bool:
    """Send ``READY=1``, ``STATUS=...``, ``STOPPING=1``; returns whether they were sent."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address[0] == "@":
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto("\n".join(lines).encode(), address)
        return True
    return False


def watchdog_seconds() -> float | None:
    """How often the manager wants a sign of life; None when it does not."""
    text = os.environ.get("WATCHDOG_USEC", "")
    wanted = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not text.isdecimal() or not int(text) or wanted != str(os.getpid()):
        return None
    return int(text) / 1e6
