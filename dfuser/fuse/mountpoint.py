"""The host's side of mounting: is this directory fit, is an old mount in the way, who holds it.

Nothing here may be called from the kernel's loop for a mount that the loop serves: looking at one's
own mount waits for oneself. `connection_of` and `mounted_at` read ``/proc/self/mountinfo`` instead.

Whether a mount is dead is found out by asking it, and a server that hangs never answers: Linux
does not let go of who asks, not even for SIGKILL. `is_stale` therefore sends a child process, and
leaves it behind when it does not come back. Mounts that are not ours are not asked.

Counterpart: none; libfuse's fusermount3 does the mounting itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

_FUSE_CONF: Final = Path("/etc/fuse.conf")
_CONNECTIONS: Final = Path("/sys/fs/fuse/connections")
#: The type of our mounts in the host's table ("subtype=dfuser").
FSTYPE: Final = "fuse.dfuser"
#: Longest that a mount is given to answer.
ASK_SECONDS: Final = 5.0
#: Longest that is waited for the end of a child that did not come back.
KILL_SECONDS: Final = 1.0
#: What the child of `ask` runs: its exit code is the errno.
_ASKER: Final = """
import os, sys
try:
    os.statvfs(sys.argv[1])
except OSError as error:
    sys.exit(error.errno)
"""
#: What mountinfo escapes in paths.
_ESCAPES: Final = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\"))


class MountError(Exception):
    """A mount cannot be made or ended. The text says why and what to do.

    ``kind`` is one of "mountpoint", "mounted", "fuse", "permission", "busy".
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class MountInfo(NamedTuple):
    """One line of /proc/self/mountinfo, as far as it matters here."""

    mount_id: int
    device: str
    path: str
    fstype: str
    source: str


def mounts() -> list[MountInfo]:
    """Every mount of this process's mount namespace, oldest first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        fstype, source = [*right.split(" "), ""][:2]
        path = fields[4]
        for escape, char in _ESCAPES:
            path = path.replace(escape, char)
        found.append(MountInfo(int(fields[0]), fields[2], path, fstype, source))
    return found


def mounted_at(path: str) -> MountInfo | None:
    """The topmost mount on ``path``, without touching the path itself."""
    wanted = os.path.abspath(path)
    hits = [info for info in mounts() if info.path == wanted]
    return hits[-1] if hits else None


def is_stale(path: str) -> bool:
    """Whether ``path`` is a dfuser mount whose server is gone (ENOTCONN for everybody).

    Takes `ASK_SECONDS` at most; a server that has not answered by then is not gone.
    """
    info = mounted_at(path)
    if info is None or info.fstype != FSTYPE:
        return False
    return ask(path) in (errno.ENOTCONN, errno.ECONNABORTED)


def ask(path: str) -> int | None:
    """The errno of a statfs(2) of ``path``, 0 if it has none, None when nobody answers in time.

    stat(2) would not do: the host may answer it from its cache.
    """
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _ASKER, os.fsencode(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
    )
    try:
        return child.wait(ASK_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(KILL_SECONDS)
        return None


def clear_stale(path: str) -> bool:
    """Take a stale mount away; True if there was one."""
    if not is_stale(path):
        return False
    detach(path, lazy=True)
    return True


def detach(path: str, *, lazy: bool = False) -> None:
    """Unmount ``path`` with fusermount3. Raises `MountError` "busy" or "permission"."""
    tool = shutil.which("fusermount3")
    if tool is None:
        raise MountError("fuse", "fusermount3 is not installed: run 'apt-get install fuse3'")
    done = subprocess.run(
        [tool, "-uz" if lazy else "-u", path], capture_output=True, text=True, check=False
    )
    if done.returncode:
        text = done.stderr.strip()
        if "busy" in text:
            raise MountError("busy", f"{path} is in use")
        raise MountError("permission", text or f"fusermount3 could not unmount {path}")


def check(path: str, *, nonempty: bool = False) -> None:
    """Whether a mount can be made on ``path``; raises `MountError` saying why not."""
    if not os.path.lexists(path):
        raise MountError("mountpoint", f"{path} does not exist: create it with 'mkdir -p {path}'")
    info = mounted_at(path)
    if info is not None and info.fstype.startswith("fuse"):
        raise MountError(
            "mounted", f"{path} is mounted already ({info.source}): unmount it or choose another"
        )
    if not os.path.isdir(path):
        raise MountError("mountpoint", f"{path} is not a directory")
    if os.geteuid() != 0 and not os.access(path, os.W_OK):
        raise MountError("permission", f"{path} is not yours to mount on: you may not write it")
    with os.scandir(path) as entries:
        empty = not any(entries)
    if not nonempty and not empty:
        raise MountError(
            "mountpoint", f"{path} is not empty: empty it, or mount over it with '-o nonempty'"
        )


def check_fuse() -> None:
    """Whether this machine can mount FUSE at all; raises `MountError` saying what is missing."""
    device = "/dev/fuse"
    if not os.path.exists(device):
        raise MountError(
            "fuse",
            "there is no /dev/fuse: load the fuse module ('modprobe fuse'), or start the "
            "container with '--device /dev/fuse --cap-add SYS_ADMIN'",
        )
    if shutil.which("fusermount3") is None:
        raise MountError("fuse", "fusermount3 is not installed: run 'apt-get install fuse3'")
    if not os.access(device, os.R_OK | os.W_OK):
        raise MountError("permission", f"{device} may not be opened by you: check its mode")


def may_allow_other() -> bool:
    """Whether other users may be let in: always for root, else by /etc/fuse.conf."""
    if os.geteuid() == 0:
        return True
    try:
        lines = _FUSE_CONF.read_text().splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def fuse_descriptors() -> set[int]:
    """This process's descriptors of the FUSE device."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                found.add(int(name))
        except OSError:
            continue
    return found


def is_disconnected(descriptor: int) -> bool:
    """Whether the host has broken the connection of a FUSE descriptor (unmounted, aborted)."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def connection_of(path: str) -> str:
    """The number of the FUSE connection mounted on ``path``; empty when there is none."""
    info = mounted_at(path)
    return info.device.partition(":")[2] if info is not None else ""


def abort(connection: str) -> bool:
    """Break a connection: whoever waits for an answer gets ECONNABORTED. Needs no server."""
    try:
        (_CONNECTIONS / connection / "abort").write_text("1")
    except OSError:
        return False
    return bool(connection)


def detach_quietly(path: str, connection: str) -> None:
    """Take the mount of ``connection`` off ``path`` if it is still there, whatever that takes."""
    if connection and connection_of(path) == connection:
        try:
            detach(path, lazy=True)
        except MountError:
            return


def set_max_background(connection: str, count: int) -> bool:
    """Let ``count`` background requests of a connection wait at a time.

    Linux stops sending once its limit (12) of read-ahead and asynchronous requests wait; a few
    blocked readers would then wedge the mount. Needs the fusectl file system and ownership.
    """
    directory = _CONNECTIONS / connection
    try:
        (directory / "max_background").write_text(str(count))
        (directory / "congestion_threshold").write_text(str(count * 3 // 4))
    except OSError:
        return False
    return bool(connection)


def holders(path: str) -> list[tuple[int, str]]:
    """(pid, command) of host processes that have a file, directory or program under ``path`` open.

    Reads other processes' links in /proc, never the path itself.
    """
    prefix = os.path.abspath(path)
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        if _holds(f"/proc/{name}", prefix):
            try:
                command = Path("/proc", name, "comm").read_text().strip()
            except OSError:
                continue
            found.append((int(name), command))
    return found


def _holds(proc: str, prefix: str) -> bool:
    links = [f"{proc}/cwd", f"{proc}/root", f"{proc}/exe"]
    with contextlib.suppress(OSError), os.scandir(f"{proc}/fd") as entries:
        links.extend(entry.path for entry in entries)
    for link in links:
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target == prefix or target.startswith(prefix + "/"):
            return True
    return False
