"""`Rig`: a mount of its own in a child process, and a line into its kernel.

`Rig.inside(code)` runs the body of an async function as a thread of the kernel and returns its
value, so that a test can change files from inside, look into tables, or break something on
purpose."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PATIENCE = 60.0
#: Code for `Rig.inside`: a path to its place, by the kernel's own walk.
PLACE = """
from dfuser.libkern.ucred import Ucred
from dfuser.vfs import syscalls as kern
ROOT = Ucred.root()
def place(path):
    nch = vfs.mounts.rootnch
    for name in path.strip("/").encode().split(b"/"):
        if name:
            nch = kern.kern_lookup(vfs, nch, name, ROOT)
            assert nch is not None, path
    return nch
"""


class Rig:
    """A running child. Made by `rig`.

    Args:
        path: where it mounts.
        before: words of a command that runs the child.
        options: see `tests.mount.bridge_child`.
    """

    def __init__(self, path: Path, *before: str, **options: Any) -> None:
        self.path = path
        self.log = path.with_suffix(".log")
        self.err = self.log.open("wb")
        self.child = subprocess.Popen(
            [*before, sys.executable, "-m", "tests.mount.bridge_child", str(path),
             json.dumps(options)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.err,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip
        word = self.read()
        assert word[0] == "mounted", word

    def read(self) -> list[Any]:
        """The next line of the child."""
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        assert line, f"the child ended: {self.log.read_text()[-3000:]}"
        answer = json.loads(line)
        assert isinstance(answer, list)
        return answer

    def send(self, code: str) -> None:
        """Start code inside without waiting for its answer (`read`)."""
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps(code).encode() + b"\n")
        self.child.stdin.flush()

    def inside(self, code: str) -> Any:
        """Run code inside; its value."""
        self.send(code)
        answer = self.read()
        assert answer[0] == "ok", answer
        return answer[1]

    def at(self, code: str) -> Any:
        """`inside` with ``place(path)``, ``kern`` and ``ROOT`` at hand."""
        return self.inside(PLACE + code)

    def stat(self, what: str) -> Any:
        """An expression over ``s`` (the session), ``k`` (the kernel) and ``vfs``."""
        return self.inside(f"return {what}")

    def end(self) -> list[Any]:
        """Ask for an unmount and wait for the end; the child's last word."""
        assert self.child.stdin is not None
        self.child.stdin.close()
        word = self.read()
        assert self.child.wait(PATIENCE) == 0, self.log.read_text()[-3000:]
        return word

    def clear(self) -> None:
        """Leave nothing, whatever happened."""
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait(PATIENCE)
        for stream in (self.child.stdin, self.child.stdout, self.err):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
        if self.path in mounted_paths():
            subprocess.run(["fusermount3", "-uz", str(self.path)], check=False)


def mounted_paths() -> set[Path]:
    """Where something is mounted."""
    return {Path(line.split()[1]) for line in Path("/proc/self/mounts").read_text().splitlines()}


@contextlib.contextmanager
def rig(**options: Any) -> Iterator[Rig]:
    """A mount for the length of a ``with`` block."""
    base = Path(tempfile.mkdtemp(prefix="dfuser-rig-"))
    base.chmod(0o755)
    (base / "mnt").mkdir()
    made = Rig(base / "mnt", **options)
    try:
        yield made
    finally:
        made.clear()
        assert base / "mnt" not in mounted_paths()
        shutil.rmtree(base, ignore_errors=True)


@contextlib.contextmanager
def fresh_place(world: Rig) -> Iterator[Path]:
    """A fresh directory on a mount, open to everybody, for the length of a ``with`` block."""
    path = Path(tempfile.mkdtemp(prefix="t", dir=world.path))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


def append(path: Path) -> None:
    """Write a byte at the end of a file."""
    with path.open("ab", buffering=0) as file:
        file.write(b"y")


def as_user(uid: int, gid: int, groups: list[int], body: Callable[[], Any]) -> Any:
    """Run ``body`` in a child process as another user; its JSON-able result, or its errno."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(reader)
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            try:
                answer = ["ok", body()]
            except OSError as error:
                answer = ["errno", error.errno]
            os.write(writer, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    kind, value = json.loads(text)
    if kind == "errno":
        raise OSError(value, os.strerror(value))
    return value


def next_tick() -> None:
    """Wait until the clock that files are stamped with has moved: it does a few times in 10 ms."""
    coarse = 5  # CLOCK_REALTIME_COARSE, which Python's time has no name for
    start = time.clock_gettime_ns(coarse)
    eventually(lambda: time.clock_gettime_ns(coarse) > start, "the clock ticks")


def eventually(happened: Callable[[], bool], what: str) -> None:
    """Look until it has happened. Gives up, failing, after a time no machine needs."""
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.005)
