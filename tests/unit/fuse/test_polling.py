"""Poll handles: notified once, dropped at close, and refused by a host that is gone."""

from __future__ import annotations

import os
import select
from typing import Any

from .conftest import Bridge, Ctx


class Handle:
    """pyfuse3's handle."""

    def __init__(self, error: OSError | None = None) -> None:
        self.notified = 0
        self.error = error

    def notify(self) -> None:
        self.notified += 1
        if self.error:
            raise self.error


def open_log(bridge: Bridge, ctx: Ctx) -> int:
    """An open of the log that has been read to its end."""
    dev = bridge.call(bridge.ops.lookup(1, b"dev", ctx))
    log = bridge.call(bridge.ops.lookup(dev.st_ino, b"klog", ctx))
    fh = bridge.call(bridge.ops.open(log.st_ino, os.O_RDONLY, ctx)).fh
    bridge.call(bridge.ops.read(fh, 0, 1 << 20))
    assert isinstance(fh, int)
    return fh


def test_a_message_notifies_once(bridge: Bridge, ctx: Ctx) -> None:
    """What if two messages come while a handle waits, and the host asks again?"""
    fh = open_log(bridge, ctx)
    handle: Any = Handle()
    assert bridge.call(bridge.ops.poll(0, fh, handle, ctx)) & select.POLLIN == 0
    bridge.kernel.log("one")
    bridge.kernel.log("two")
    assert handle.notified == 1
    assert bridge.call(bridge.ops.poll(0, fh, handle, ctx)) & select.POLLIN
    bridge.call(bridge.ops.read(fh, 0, 1 << 20))
    again: Any = Handle()
    assert bridge.call(bridge.ops.poll(0, fh, again, ctx)) & select.POLLIN == 0
    bridge.kernel.log("three")
    assert (handle.notified, again.notified) == (1, 1)
    bridge.call(bridge.ops.release(fh))


def test_close_drops_the_handle(bridge: Bridge, ctx: Ctx) -> None:
    """What if the file is closed while a handle waits?"""
    fh = open_log(bridge, ctx)
    handle: Any = Handle()
    bridge.call(bridge.ops.poll(0, fh, handle, ctx))
    assert bridge.polls.statistics().waiting == 1
    bridge.call(bridge.ops.release(fh))
    assert bridge.polls.statistics().waiting == 0
    bridge.kernel.log("nobody listens")
    assert handle.notified == 0


def test_a_host_that_is_gone(bridge: Bridge, ctx: Ctx) -> None:
    """What if notifying fails: does whoever logged go on?"""
    fh = open_log(bridge, ctx)
    handle: Any = Handle(OSError(107, "not connected"))
    bridge.call(bridge.ops.poll(0, fh, handle, ctx))
    bridge.kernel.log("message")
    assert bridge.polls.statistics().refused == 1
    bridge.call(bridge.ops.release(fh))
