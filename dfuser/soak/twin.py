"""The same random operations on two directories: every answer and the final trees must agree.

One directory is the yardstick (the host's tmpfs), the other is judged. No model is needed, so the
twin run also judges what the model leaves out; and where the model itself is wrong, the two
testers disagree, which is how a model is kept honest.

Counterpart: none.
Differs from DragonFly: an addition.
Token/lock order: takes none; it is a host program.
Invariants: after every operation both directories hold the same tree.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from pathlib import Path

from dfuser.soak.operations import Value, describe, perform, stream
from dfuser.soak.report import OperationLog, SoakFailure

CHECK_EVERY = 1000


class TwinRun:
    """The runner: `run` does the same stream in `left` and `right`, both empty at the start.

    Attributes:
        seed: what the stream of operations is drawn from.
    """

    __slots__ = ("_left", "_log", "_right", "_stream", "seed")

    def __init__(
        self, left: Path, right: Path, seed: int, *, without: frozenset[str] = frozenset()
    ) -> None:
        """Prepare a run; `without` names calls that one of the two does not have."""
        self.seed = seed
        self._left, self._right = left, right
        self._log = OperationLog()
        self._stream = stream(seed, privileged=os.geteuid() == 0, without=without)

    @property
    def operations(self) -> int:
        """How many operations were done on each side."""
        return self._log.count

    def run(self, operations: int | None = None, seconds: float | None = None) -> int:
        """Do `operations`, or as many as fit into `seconds`; return how many were done.

        Raises:
            SoakFailure: an answer or the trees differ.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        mask = os.umask(0)
        try:
            while operations is None or self._log.count < operations:
                if deadline is not None and time.monotonic() >= deadline:
                    break
                self.step()
                if self._log.count % CHECK_EVERY == 0:
                    self.check_trees()
            self.check_trees()
        finally:
            os.umask(mask)
        return self._log.count

    def step(self) -> None:
        """Do the next operation on both sides and compare the answers.

        Raises:
            SoakFailure: they differ.
        """
        operation = next(self._stream)
        self._log.add(str(operation))
        left, right = perform(self._left, operation), perform(self._right, operation)
        if left != right:
            raise self._failure(f"{operation}: {left} on the left, {right} on the right")

    def check_trees(self) -> None:
        """Compare the two trees whole.

        Raises:
            SoakFailure: they differ.
        """
        left, right = snapshot(self._left), snapshot(self._right)
        for name in sorted(left.keys() | right.keys()):
            if left.get(name) != right.get(name):
                raise self._failure(f"{name}: {left.get(name)!r} and {right.get(name)!r}")

    def _failure(self, what: str) -> SoakFailure:
        return SoakFailure("twin", self.seed, self._log.count, what, self._log.lines())


def snapshot(root: Path) -> dict[str, Value]:
    """Describe every name below `root`: type, mode, links, owner, size, content, attributes.

    Hard links show as the list of names that share a file, which no stat of one name tells.
    """
    tree: dict[str, Value] = {".": describe(root.lstat())}
    shared: dict[int, list[str]] = {}
    for directory, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(directory, name)
            found = path.lstat()
            key = str(path.relative_to(root))
            tree[key] = (describe(found), _inside(path, found.st_mode))
            if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
                shared.setdefault(found.st_ino, []).append(key)
    for names in shared.values():
        tree["= " + min(names)] = tuple(sorted(names))
    return tree


def _inside(path: Path, mode: int) -> Value:
    if stat.S_ISLNK(mode):
        return os.readlink(path)
    if not stat.S_ISREG(mode):
        return None
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
