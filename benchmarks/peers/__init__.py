"""The contestants of `benchmarks.mount`: each knows how to be mounted, or why it cannot be.

A peer is a context manager's worth of knowledge: `why_not` says in one line what is missing, and
`start` mounts it at a directory and returns the server's process. What is fetched or compiled goes
to a cache directory outside the project and is used again.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib.metadata
import os
import select
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

STARTING = 30.0
EXAMPLES = Path("/usr/share/doc/libfuse3-dev/examples")
MINIMAL_SERVER = Path(__file__).with_name("minimal.py")


class Unavailable(Exception):
    """The peer cannot run here; the text says why."""


class Peer(NamedTuple):
    """One contestant: its name, the command that serves it, and what it can do.

    `read_only` peers answer only the rows that look at one existing file.
    """

    name: str
    read_only: bool = False


PEERS = (
    Peer("tmpfs"),
    Peer("dfuser"),
    Peer("minimal", read_only=True),
    Peer("passthroughfs"),
    Peer("passthrough_ll"),
)


def cache_directory() -> Path:
    """Where fetched and compiled peers are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(base) / "dfuser-benchmarks"
    path.mkdir(parents=True, exist_ok=True)
    return path


def command(peer: Peer, source: Path, target: Path) -> list[str]:
    """The command line that serves `peer` at `target`, with `source` to pass through to.

    Raises:
        Unavailable: something that it needs is not here.
    """
    if peer.name == "minimal":
        return [sys.executable, str(MINIMAL_SERVER), str(target)]
    if peer.name == "passthroughfs":
        return [sys.executable, str(passthroughfs()), str(source), str(target)]
    if peer.name == "passthrough_ll":
        return [str(passthrough_ll()), "-f", "-s", "-o", f"source={source}", str(target)]
    program = Path(sys.executable).with_name("dfuser")
    if not program.exists():
        raise Unavailable(f"{program} is not installed")
    return [str(program), "mount", "-f", "tmpfs", str(target)]


def passthroughfs() -> Path:
    """pyfuse3's own example, out of the source distribution of the version that is installed.

    Raises:
        Unavailable: the source distribution cannot be had.
    """
    cache = cache_directory()
    version = importlib.metadata.version("pyfuse3")
    example = cache / f"pyfuse3-{version}" / "examples" / "passthroughfs.py"
    if example.exists():
        return example
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-binary",
        "pyfuse3",
    ]
    done = subprocess.run(
        [*pip, "-d", str(cache), f"pyfuse3=={version}"], capture_output=True, text=True, check=False
    )
    archives = list(cache.glob(f"pyfuse3-{version}.tar.gz"))
    if done.returncode != 0 or not archives:
        raise Unavailable(f"pip cannot fetch pyfuse3 {version}'s sources")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(cache, filter="data")
    return example


def passthrough_ll() -> Path:
    """The C example of libfuse, compiled from the sources that Debian's libfuse3-dev brings.

    Raises:
        Unavailable: the sources or a compiler are missing.
    """
    program = cache_directory() / "passthrough_ll"
    if program.exists():
        return program
    for name in ("passthrough_ll.c", "passthrough_helpers.h"):
        plain, packed = EXAMPLES / name, EXAMPLES / f"{name}.gz"
        if plain.exists():
            (program.parent / name).write_bytes(plain.read_bytes())
        elif packed.exists():
            (program.parent / name).write_bytes(gzip.decompress(packed.read_bytes()))
        else:
            raise Unavailable(f"{plain} is missing (package libfuse3-dev)")
    if shutil.which("gcc") is None or shutil.which("pkg-config") is None:
        raise Unavailable("gcc or pkg-config is missing")
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=True
    ).stdout.split()
    build = ["gcc", "-O2", "-w", "passthrough_ll.c", "-o", str(program), *flags]
    done = subprocess.run(build, cwd=program.parent, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(f"gcc: {done.stderr.strip().splitlines()[-1:]}")
    return program


@contextlib.contextmanager
def served(peer: Peer, work: Path, host: Path) -> Iterator[tuple[Path, int | None]]:
    """Serve a peer for the length of a `with` block; yield its directory and its process.

    Raises:
        Unavailable: it cannot run here.
    """
    source = host / peer.name
    source.mkdir(mode=0o755)
    if peer.name == "tmpfs":
        yield source, None
        return
    target = work / peer.name
    target.mkdir()
    log = work / f"{peer.name}.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            command(peer, source, target), stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    try:
        _wait(server, target, log)
        yield target, server.pid
    finally:
        subprocess.run(["fusermount3", "-u", str(target)], check=False, capture_output=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(20)
        if server.poll() is None:
            server.kill()
            server.wait()
        if os.path.ismount(target):
            subprocess.run(["fusermount3", "-uz", str(target)], check=False, capture_output=True)


def _wait(server: subprocess.Popen[bytes], target: Path, log: Path) -> None:
    """Wait until the kernel lists the mount; poll(2) tells changes of the list."""
    deadline = time.monotonic() + STARTING
    with open("/proc/self/mounts") as mounts:
        poll = select.poll()
        poll.register(mounts, select.POLLPRI)
        while f" {target} " not in Path("/proc/self/mounts").read_text():
            if server.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise Unavailable(f"it does not mount: {said}")
            poll.poll(200)
