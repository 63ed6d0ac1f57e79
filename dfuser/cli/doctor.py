"""``dfuser doctor``: what this machine needs to mount, each checked, with the way to mend it."""

from __future__ import annotations

import importlib.metadata
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from dfuser.client import instances
from dfuser.client.instances import run_dir
from dfuser.fuse import mountpoint as host

from .exits import ExitCode
from .output import clean, paint, print_json, size
from .stale import is_stale
from .talk import json_option
from .verb import verb

DEVICE: Final = Path("/dev/fuse")
FUSE_LIMITS: Final = Path("/proc/sys/fs/fuse")
CONNECTIONS: Final = Path("/sys/fs/fuse/connections")
MEMINFO: Final = Path("/proc/meminfo")
PYTHON: Final = (3, 11)
FUSE: Final = (3, 2)
#: Descriptors below which a busy mount may run out, and free memory below which it is tight.
FILES: Final = 1024
MEMORY: Final = 256 << 20
PACKAGES: Final = ("pyfuse3", "trio", "psutil", "attrs", "sortedcontainers", "click")


class Finding(NamedTuple):
    """What one check found."""

    check: str
    verdict: str
    """ok, warn or fail."""
    text: str
    fix: str = ""


def device() -> Finding:
    """Whether FUSE is there."""
    if not DEVICE.exists():
        return Finding("device", "fail", f"there is no {DEVICE}", "run 'modprobe fuse'; start a "
                       "container with '--device /dev/fuse --cap-add SYS_ADMIN'")  # fmt: skip
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return Finding("device", "fail", f"{DEVICE} may not be opened", f"chmod 666 {DEVICE}")
    return Finding("device", "ok", f"{DEVICE} can be opened")


def fusermount() -> Finding:
    """Whether the mounting tool is there, and its version."""
    tool = shutil.which("fusermount3")
    fix = "apt-get install fuse3"
    if tool is None:
        return Finding("fusermount3", "fail", "fusermount3 is not installed", fix)
    done = subprocess.run([tool, "-V"], capture_output=True, text=True, check=False)
    version = done.stdout.split()[-1] if done.stdout.split() else "?"
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers and numbers < FUSE:
        return Finding("fusermount3", "warn", f"version {version} is old", fix)
    if os.geteuid() and not os.stat(tool).st_mode & 0o4000:
        return Finding("fusermount3", "fail", f"{tool} is not set-uid root", f"chmod u+s {tool}")
    return Finding("fusermount3", "ok", f"{tool}, version {version}")


def other_users() -> Finding:
    """Whether other users can be let in."""
    if os.geteuid() == 0:
        return Finding("allow_other", "ok", "root may let other users in")
    if host.may_allow_other():
        return Finding("allow_other", "ok", "/etc/fuse.conf has user_allow_other")
    return Finding("allow_other", "warn", "other users cannot be let in",
                   "add the line 'user_allow_other' to /etc/fuse.conf")  # fmt: skip


def files() -> Finding:
    """How many descriptors a server may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES:
        return Finding("limits", "warn", f"at most {soft} open files", f"ulimit -n {hard}")
    return Finding("limits", "ok", f"{soft} open files ({hard} at most)")


def connections() -> Finding:
    """Whether limits of connections can be raised, so that many blocked requests do not wedge."""
    found = []
    for name in ("max_user_bgreq", "max_user_congthresh"):
        try:
            found.append(f"{name} {(FUSE_LIMITS / name).read_text().strip()}")
        except OSError:
            continue
    if not os.path.ismount(CONNECTIONS) or not os.access(CONNECTIONS, os.X_OK):
        return Finding("fusectl", "warn", "the limits of a mount cannot be raised: many blocked "
                       "readers may stall it", f"mount -t fusectl none {CONNECTIONS}")  # fmt: skip
    return Finding("fusectl", "ok", ", ".join(found) or "connections can be tuned")


def stale() -> Iterator[Finding]:
    """Mounts of killed dfusers."""
    running = {item.mountpoint for item in instances()}
    left = [info.path for info in host.mounts() if info.fstype == host.FSTYPE]
    dead = [path for path in left if path not in running and is_stale(path)]
    for path in dead:
        yield Finding("mounts", "fail", f"{path} is left by a killed dfuser",
                      f"dfuser umount {path}")  # fmt: skip
    if not dead:
        yield Finding("mounts", "ok", f"{len(left)} dfuser mounts, none stale")


def python() -> Finding:
    """The interpreter."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON:
        return Finding("python", "fail", f"Python {version} is too old", "use 3.11 or later")
    return Finding("python", "ok", f"Python {version}, {sys.executable}")


def packages() -> Iterator[Finding]:
    """The packages a server imports."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            yield Finding("packages", "fail", f"{name} is not installed", f"pip install {name}")
    loads = [sys.executable, "-c", "import pyfuse3"]
    done = subprocess.run(loads, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        yield Finding(
            "packages",
            "fail",
            f"pyfuse3 cannot be loaded: {reason}",
            "apt-get install libfuse3-dev && pip install --force-reinstall pyfuse3",
        )
    yield Finding("packages", "ok", ", ".join(found))


def memory() -> Finding:
    """Memory for the files of a world."""
    rows = (line.split() for line in MEMINFO.read_text().splitlines())
    free = next((int(row[1]) << 10 for row in rows if row[0] == "MemAvailable:"), 0)
    if free < MEMORY:
        fix = "mount with '-o memory=64m'"
        return Finding("memory", "warn", f"{size(free)} are available", fix)
    return Finding("memory", "ok", f"{size(free)} available for files in memory")


def sockets() -> Iterator[Finding]:
    """The control sockets of what runs."""
    running = instances()
    for item in running:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(2)
            try:
                sock.connect(item.socket)
            except OSError as error:
                text = f"{item.mountpoint} (pid {item.pid}) does not answer: {error}"
                fix = f"dfuser umount --lazy {item.mountpoint}"
                yield Finding("sockets", "fail", text, fix)
            else:
                yield Finding("sockets", "ok", f"{item.mountpoint} (pid {item.pid}) answers")
    if not running:
        yield Finding("sockets", "ok", f"no dfuser is running ({run_dir()})")


def examine() -> Iterator[Finding]:
    """Make every check; one that fails by itself is a finding too."""
    checks: tuple[Callable[[], Finding | Iterator[Finding]], ...] = (
        device, fusermount, other_users, files, connections, stale, python, packages, memory,
        sockets,
    )  # fmt: skip
    for check in checks:
        try:
            found = check()
            yield from [found] if isinstance(found, Finding) else list(found)
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            yield Finding(check.__name__, "warn", f"cannot be checked: {error}")


@verb()
@json_option
def command(as_json: bool) -> int:
    """Check what this machine needs to mount, and say how to mend it.

    Exits with 1 when something is missing that a mount cannot do without.

    Examples:
      dfuser doctor
      dfuser doctor --json
    """
    findings = list(examine())
    if as_json:
        print_json("checks", [finding._asdict() for finding in findings])
    else:
        for finding in findings:
            pad = " " * (5 - len(finding.verdict))
            print(f"{paint(finding.verdict)}{pad} {finding.check:<12} {clean(finding.text)}")
            if finding.fix:
                print(f"{'':19}-> {clean(finding.fix)}")
    failed = any(finding.verdict == "fail" for finding in findings)
    return ExitCode.USAGE if failed else ExitCode.OK
