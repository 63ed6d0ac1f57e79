"""Which dfusers run on this host, and where their control sockets are.

A running instance keeps a small JSON file beside its socket: process id and start time, mount
point, socket path. The directory is ``/run/dfuser`` for root and ``$XDG_RUNTIME_DIR/dfuser`` (or
``/tmp/dfuser-UID``) for others; ``DFUSER_RUN_DIR`` overrides it. A process id alone is no proof,
because numbers are used again, so the start time that the host keeps is compared too. Files of a
process that is gone are ignored and removed by whoever meets them.

Nothing here looks at a mounted directory: one whose server hangs would hang the caller.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import Final, NamedTuple

#: What fits into a socket's address.
_SUN_PATH: Final = 107


class Instance(NamedTuple):
    """One running dfuser."""

    pid: int
    mountpoint: str
    socket: str
    started: float
    """When, in seconds since the epoch."""
    name: str
    birth: int
    """Start of the process in clock ticks after the host's boot, 0 if unknown."""


class NoInstance(LookupError):
    """No running instance fits; the text says which there are."""


def run_dir() -> Path:
    """The directory of sockets and instance files of this user."""
    override = os.environ.get("DFUSER_RUN_DIR")
    if override:
        return Path(override)
    if os.geteuid() == 0:
        return Path("/run/dfuser")
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "dfuser" if base else Path(f"/tmp/dfuser-{os.geteuid()}")


def birth(pid: int) -> int | None:
    """Start of a live process in clock ticks after the host's boot; None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])


def canonical(path: str) -> str:
    """An absolute path without symbolic links, found without a look at the last component's inside.

    The last component may be a mount whose server does not answer; only the name itself is read.
    """
    path = os.path.abspath(path)
    for _ in range(32):
        parent, base = os.path.split(path)
        path = os.path.join(os.path.realpath(parent), base)
        try:
            path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
        except OSError:
            return path
    return path


def instances() -> list[Instance]:
    """Every running instance of this user, oldest first."""
    found = []
    with contextlib.suppress(OSError):
        for path in run_dir().glob("*.json"):
            instance = _read(path)
            if instance is not None:
                found.append(instance)
    return sorted(found, key=lambda item: item.started)


def _read(path: Path) -> Instance | None:
    try:
        fields = json.loads(path.read_text())
        instance = Instance(**fields)
    except (OSError, ValueError, TypeError):
        return None
    alive = birth(instance.pid)
    if alive is not None and instance.birth in (0, alive):
        return instance
    for leftover in (path, path.with_suffix(".sock")):
        with contextlib.suppress(OSError):
            leftover.unlink()
    return None


def choose(mountpoint: str | None = None) -> Instance:
    """The instance mounted on ``mountpoint`` or above it; without one, the only instance there is.

    When several run and the current directory is inside one of them, that one. Raises `NoInstance`.
    """
    running = instances()
    if mountpoint is not None:
        wanted = canonical(mountpoint)
        found = _holding(running, wanted)
        if found is None:
            raise NoInstance(f"no dfuser is mounted on {wanted}" + _listing(running))
        return found
    if not running:
        raise NoInstance("no dfuser is running: start one with 'dfuser demo'")
    if len(running) == 1:
        return running[0]
    with contextlib.suppress(OSError):
        found = _holding(running, os.getcwd())
        if found is not None:
            return found
    raise NoInstance("several dfusers are running: choose one with '-m DIR'" + _listing(running))


def _holding(running: list[Instance], path: str) -> Instance | None:
    """The instance whose mount point is the longest beginning of ``path``."""
    fits = [item for item in running if (path + "/").startswith(item.mountpoint + "/")]
    return max(fits, key=lambda item: len(item.mountpoint), default=None)


def _listing(running: list[Instance]) -> str:
    if not running:
        return ""
    return "; running: " + ", ".join(f"{item.mountpoint} (pid {item.pid})" for item in running)


def register(mountpoint: str, started: float) -> Instance:
    """Write the file of this process's instance; returns where its socket belongs.

    Raises OSError: the directory cannot be used (ENAMETOOLONG: too long for a socket).
    """
    directory = _make_run_dir()
    pid = os.getpid()
    mountpoint = canonical(mountpoint)
    name = f"{os.path.basename(mountpoint)[:32] or 'root'}-{pid}"
    socket = str(directory / f"{name}.sock")
    if len(os.fsencode(socket)) > _SUN_PATH:
        raise OSError(36, "the path is too long for a socket; set DFUSER_RUN_DIR", socket)
    instance = Instance(pid, mountpoint, socket, started, name, birth(pid) or 0)
    fresh = directory / f"{name}.new"
    fresh.write_text(json.dumps(instance._asdict()))
    fresh.rename(directory / f"{name}.json")
    return instance


def sweep() -> None:
    """Remove what killed processes have left: instance files, and sockets without one."""
    known = {Path(item.socket).stem for item in instances()}
    with contextlib.suppress(OSError):
        for path in run_dir().iterdir():
            pid = path.stem.rpartition("-")[2]
            gone = pid.isdecimal() and birth(int(pid)) is None
            if path.suffix in (".sock", ".new", ".json") and path.stem not in known and gone:
                path.unlink(missing_ok=True)


def _make_run_dir() -> Path:
    """Make the directory, or see that the one there is ours alone."""
    directory = run_dir()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(1, "the directory for control sockets is not yours", str(directory))
    if found.st_mode & 0o022:
        directory.chmod(0o700)
    return directory


def unregister(instance: Instance) -> None:
    """Remove file and socket of an instance."""
    for suffix in (".json", ".sock"):
        Path(instance.socket).with_suffix(suffix).unlink(missing_ok=True)
