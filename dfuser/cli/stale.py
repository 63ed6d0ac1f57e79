"""Mounts whose server was killed: recognising them, and taking them away.

A mount that a running instance has registered is not asked at all; how any other one is asked,
without waiting for a server that hangs, is the business of `dfuser.fuse.mountpoint`.
"""

from __future__ import annotations

from dfuser.client import instances
from dfuser.fuse import mountpoint as host
from dfuser.fuse.mountpoint import MountError


def is_stale(path: str) -> bool:
    """Whether ``path`` is a dfuser mount without a server. Takes seconds at most."""
    if any(item.mountpoint == path for item in instances()):
        return False
    return host.is_stale(path)


def clear_stale(path: str) -> bool:
    """Take a stale mount away; True if there was one.

    Raises:
        MountError: it is stale and cannot be taken away.
    """
    if not is_stale(path):
        return False
    try:
        host.detach(path, lazy=True)
    except MountError as error:
        text = f"{path} is the mount of a killed server, and not yours to clear: {error}"
        raise MountError(error.kind, text) from None
    return True
