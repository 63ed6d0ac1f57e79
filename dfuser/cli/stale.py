"""Mounts whose server was killed: recognising them, and taking them away.

The host answers for a dead mount from its caches as long as they are valid, so only a question that
always goes to the server tells: statfs(2) does, stat(2) does not. A live instance is never asked,
because one that hangs would hang whoever asks.
"""

from __future__ import annotations

import errno
import os

from dfuser.client import instances
from dfuser.fuse import mountpoint as host
from dfuser.fuse.mountpoint import MountError


def is_stale(path: str) -> bool:
    """Whether ``path`` is a FUSE mount without a server."""
    info = host.mounted_at(path)
    if info is None or not info.fstype.startswith("fuse"):
        return False
    if any(item.mountpoint == path for item in instances()):
        return False
    try:
        os.statvfs(path)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


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
