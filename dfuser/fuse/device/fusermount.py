"""Attaching further mounts: fusermount3 mounts a directory and hands the descriptor over.

pyfuse3 can mount one directory a process. The others are mounted by fusermount3 itself, which opens
the device, mounts, and sends the descriptor through a socket whose number it finds in the
environment. It resolves the path through our own outer mount, so it must run while that is served:
never call `attach` from the loop's thread.

Counterpart: fuse_mount_fusermount and receive_fd (lib/mount.c of libfuse).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING, Final

from dfuser.fuse.mountpoint import MountError, detach
from dfuser.vfs.mountflags import MNT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dfuser.vfs.mount import Mount

#: Where fusermount3 looks for the number of the socket.
_COMMFD: Final = "_FUSE_COMMFD"
#: Longest that fusermount3 may take, in seconds.
_PATIENCE: Final = 30
#: Flags of a mount that the host enforces for a connection of its own, and its words for them.
HOST_WORDS: Final = ((MNT.RDONLY, "ro"), (MNT.NOEXEC, "noexec"))
#: What the host enforces for every mount of an ordinary user, and for these.
ALWAYS: Final = MNT.NOSUID | MNT.NODEV


def told_flags(mount: Mount) -> int:
    """The MNT.* flags of ``mount`` that are given to the host as words."""
    return mount.flag & sum(flag for flag, _ in HOST_WORDS)


def host_flags(mount: Mount) -> int:
    """The MNT.* flags of ``mount`` that the host enforces once it is attached."""
    return told_flags(mount) | (mount.flag & ALWAYS)


def host_options(mount: Mount, common: Iterable[str]) -> str:
    """The options for attaching ``mount``, comma separated.

    Args:
        mount: what will be shown.
        common: what holds for all connections of the session (default_permissions ...).
    """
    words = [word for flag, word in HOST_WORDS if mount.flag & flag]
    name = f"{mount.fstype.name}:{mount.onname}".replace("\\", "\\\\").replace(",", "\\,")
    return ",".join(["nosuid", "nodev", *words, *common, f"fsname={name}", "subtype=dfuser"])


def attach(path: str, options: str) -> int:
    """Mount ``path`` on the host; the descriptor of the device. Blocks.

    Raises:
        MountError: "fuse", with what fusermount3 says.
    """
    tool = shutil.which("fusermount3")
    if tool is None:
        raise MountError("fuse", "fusermount3 is not installed: run 'apt-get install fuse3'")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            child = subprocess.Popen(
                [tool, "-o", options, "--", path],
                env={**os.environ, _COMMFD: str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd="/",
            )
        ours.settimeout(_PATIENCE)
        found: list[int] = []
        try:
            _, found, _, _ = socket.recv_fds(ours, 1, 1)
        except TimeoutError:
            child.kill()
        _, text = child.communicate()
    if child.returncode or not found:
        for fd in found:
            os.close(fd)
            detach(path, lazy=True)
        why = text.decode(errors="replace").strip() or "fusermount3 sent no descriptor"
        raise MountError("fuse", f"the host refused to mount on {path} ({why})")
    os.set_inheritable(found[0], False)
    return found[0]
