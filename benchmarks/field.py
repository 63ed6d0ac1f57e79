"""The mounted contestants of one run, and measuring all rows on all of them in turn."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Contestant, Rounds, rotate
from benchmarks.peers import Peer, Unavailable, mounts_below, served
from benchmarks.rows import Row, Sizes

HOST_TMPFS = Path("/dev/shm")
#: Seconds that one measurement may take.
STALLED = 120.0


@contextlib.contextmanager
def places() -> Iterator[tuple[Path, Path]]:
    """A directory to work in and one on the host's tmpfs, removed at the end of the block."""
    work = Path(tempfile.mkdtemp(prefix="dfuser-bench-"))
    host = Path(tempfile.mkdtemp(prefix="dfuser-bench-", dir=HOST_TMPFS))
    try:
        yield work, host
    finally:
        shutil.rmtree(host, ignore_errors=True)
        if not mounts_below(work):
            shutil.rmtree(work, ignore_errors=True)


class Field:
    """The mounted contestants of a run and where each of them is."""

    def __init__(self, work: Path, sizes: Sizes) -> None:
        """Prepare an empty field; `work` is for archives and logs."""
        self.work, self.sizes = work, sizes
        self.places: dict[str, tuple[Peer, Path, Contestant]] = {}
        self.skipped: dict[str, str] = {}
        self.failed: dict[tuple[str, str], str] = {}
        self.stalled: set[str] = set()

    def enter(self, peers: list[Peer], host: Path, stack: contextlib.ExitStack) -> None:
        """Mount all peers that can be mounted, for as long as `stack` lives."""
        for peer in peers:
            try:
                path, pid = stack.enter_context(served(peer, self.work, host))
            except Unavailable as reason:
                self.skipped[peer.name] = str(reason)
                continue
            self.places[peer.name] = (peer, path, Contestant(peer.name, pid))

    def run(self, rows: list[Row], rounds: int) -> Rounds:
        """Measure all rows on all contestants, round after round."""
        results = Rounds()
        everybody = [contestant for _, _, contestant in self.places.values()]
        for number in range(rounds):
            for row in rows:
                for contestant in rotate(everybody, number):
                    self._one(results, row, contestant)
        return results

    def _one(self, results: Rounds, row: Row, contestant: Contestant) -> None:
        """Measure one row on one contestant; what fails once is not tried again."""
        peer, path, _ = self.places[contestant.name]
        key = (row.name, contestant.name)
        if key in self.failed or (peer.read_only and not row.read_only):
            return
        if contestant.name in self.stalled or (peer.rows and row.name not in peer.rows):
            return
        with self.guarded(row.name, contestant):
            body = row.prepare(path, self.sizes, self.work)
            results.measure(row.name, contestant, body)

    @contextlib.contextmanager
    def guarded(self, what: str, contestant: Contestant) -> Iterator[None]:
        """Note what fails in the block, and end a server that keeps its clients waiting for ever.

        Nothing else would: a client waits for its answer even when it is interrupted.
        """
        timer = threading.Timer(STALLED, self._stalled, (what, contestant))
        timer.daemon = True
        timer.start()
        try:
            yield
        except (OSError, LookupError, subprocess.CalledProcessError) as error:
            self.failed.setdefault((what, contestant.name), f"{type(error).__name__}: {error}")
        finally:
            timer.cancel()

    def _stalled(self, what: str, contestant: Contestant) -> None:
        if contestant.pid is not None:
            self.stalled.add(contestant.name)
            self.failed[what, contestant.name] = f"not done in {STALLED:g} s; the server was killed"
            os.kill(contestant.pid, signal.SIGKILL)
