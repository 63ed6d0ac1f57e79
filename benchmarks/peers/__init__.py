"""The contestants of `mount` and `fuse`: each knows how to be mounted, or why it cannot be.

A peer is a context manager's worth of knowledge: `why_not` says in one line what is missing, and
`start` mounts it at a directory and returns the server's process. What is fetched or compiled goes
to a cache directory outside the project and is used again.
"""

from __future__ import annotations

import contextlib
import functools
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
    """One contestant: its name, the program that serves it, and what it can do.

    `read_only` peers answer only the rows that look at one existing file, those with `rows` only
    these. `program` is what serves it if it is not called so itself; `words` go to its command
    line, and for dfuser `needs` are what `dfuser mount --help` must speak of.
    """

    name: str
    read_only: bool = False
    program: str = ""
    words: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    rows: frozenset[str] = frozenset()

    @property
    def served_by(self) -> str:
        """The name of the program."""
        return self.program or self.name


PEERS = (
    Peer("tmpfs"),
    Peer("dfuser"),
    Peer("minimal", read_only=True),
    Peer("passthroughfs"),
    Peer("passthrough_ll", words=("-s",)),
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
    if peer.served_by == "minimal":
        return [sys.executable, str(MINIMAL_SERVER), str(target)]
    if peer.served_by == "passthroughfs":
        return [sys.executable, str(passthroughfs()), str(source), str(target)]
    if peer.served_by == "passthrough_ll":
        return [str(passthrough_ll()), "-f", *peer.words, "-o", f"source={source}", str(target)]
    missing = [word for word in peer.needs if word not in mount_help()]
    if missing:
        raise Unavailable(f"dfuser mount has no {missing[0]}")
    return [str(dfuser()), "mount", "-f", *peer.words, "tmpfs", str(target)]


def dfuser() -> Path:
    """The program of this environment.

    Raises:
        Unavailable: it is not installed.
    """
    program = Path(sys.executable).with_name("dfuser")
    if not program.exists():
        raise Unavailable(f"{program} is not installed")
    return program


@functools.cache
def mount_help() -> str:
    """What `dfuser mount --help` says: which options there are."""
    asked = [str(dfuser()), "mount", "--help"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout


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
    # A session of its own: Ctrl-C is for whoever measures, who then unmounts.
    with log.open("wb") as out:
        server = subprocess.Popen(
            command(peer, source, target), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            start_new_session=True,
        )  # fmt: skip
    try:
        _wait(server, target, log)
        yield target, server.pid
    finally:
        _end(peer, server, target)


def _end(peer: Peer, server: subprocess.Popen[bytes], target: Path) -> None:
    """Unmount, whatever state the server is in, and see its process off."""
    if peer.served_by == "dfuser" and mounts_below(target):
        _quietly(str(dfuser()), "umount", str(target))
    for inner in reversed(mounts_below(target)):
        _quietly("fusermount3", "-u", inner)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(20)
    if server.poll() is None:
        server.kill()
        server.wait()
    for inner in reversed(mounts_below(target)):
        _quietly("fusermount3", "-uz", inner)


def _quietly(*command: str) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(command, check=False, capture_output=True, timeout=90)


def mounts_below(path: Path) -> list[str]:
    """What is mounted at a path and below it, the outer ones first."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    places = (line.split()[1] for line in lines)
    return sorted(place for place in places if (place + "/").startswith(f"{path}/"))


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
