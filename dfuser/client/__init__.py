"""client: LWKT message ports of a running dfuser, from any host program.

Stands alone on the standard library, so that a program can carry it along. The frames are described
in `wire`, the calls in `connection`; `docs/control-socket.md` has the whole protocol and the ports.
"""

from __future__ import annotations

from .connection import Connection, ConnectionLost, KernelError, Msg, connect
from .instances import Instance, NoInstance, choose, instances
from .wire import VERSION, WireError

__all__ = [
    "VERSION",
    "Connection",
    "ConnectionLost",
    "Instance",
    "KernelError",
    "Msg",
    "NoInstance",
    "WireError",
    "choose",
    "connect",
    "instances",
]
