"""A random tester of names: every answer and the final tree are compared with a model.

Runs a seeded stream of `operations` in a directory and on a `ModelTree` side by side. Each errno,
each list of names, each stat must agree; every so often, and at the end, the whole tree is walked
and compared: types, modes, owners, link counts, sizes, contents, link texts, extended attributes,
and the mtimes that were set by hand.

Counterpart: none (the idea is SGI's fsstress).
Differs from DragonFly: answers are compared, not only survived.
Token/lock order: takes none; it is a host program.
Invariants: after every operation the directory and the model hold the same tree.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from dfuser.soak.model import ModelTree, Node
from dfuser.soak.operations import Value, describe, perform, stream
from dfuser.soak.report import OperationLog, SoakFailure

CHECK_EVERY = 1000


class FsStress:
    """The tester: `run` does operations below `directory`, which must be empty.

    Attributes:
        seed: what the stream of operations is drawn from.
    """

    __slots__ = ("_directory", "_log", "_model", "_stream", "seed")

    def __init__(
        self, directory: Path, seed: int, *, without: frozenset[str] = frozenset()
    ) -> None:
        """Prepare a run; `without` names calls that the file system does not have."""
        self.seed = seed
        self._directory = directory
        self._log = OperationLog()
        self._model = ModelTree(directory.stat())
        self._stream = stream(seed, privileged=os.geteuid() == 0, without=without)

    @property
    def operations(self) -> int:
        """How many operations were done."""
        return self._log.count

    def run(self, operations: int | None = None, seconds: float | None = None) -> int:
        """Do `operations`, or as many as fit into `seconds`; return how many were done.

        The process' umask is 0 meanwhile, so that modes arrive as they were drawn.

        Raises:
            SoakFailure: an answer or the tree differs from the model.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        mask = os.umask(0)
        try:
            while operations is None or self._log.count < operations:
                if deadline is not None and time.monotonic() >= deadline:
                    break
                self.step()
                if self._log.count % CHECK_EVERY == 0:
                    self.check_tree()
            self.check_tree()
        finally:
            os.umask(mask)
        return self._log.count

    def step(self) -> None:
        """Do the next operation and compare its answer.

        Raises:
            SoakFailure: the answer differs.
        """
        operation = next(self._stream)
        self._log.add(str(operation))
        want = self._model.perform(operation)
        got = perform(self._directory, operation)
        if got != want:
            raise self._failure(f"{operation}: {got}, not {want}")

    def check_tree(self) -> None:
        """Compare everything that the model knows with what is there.

        Raises:
            SoakFailure: something differs.
        """
        for line in compare(self._directory, self._model.root):
            raise self._failure(line)

    def _failure(self, what: str) -> SoakFailure:
        return SoakFailure("fsstress", self.seed, self._log.count, what, self._log.lines())


def compare(path: Path, node: Node) -> Iterator[str]:
    """Yield a line for each difference between a tree and the model of it."""
    found = path.lstat()
    if describe(found) != node.describe():
        yield f"{path}: {describe(found)!r}, not {node.describe()!r}"
        return
    if node.mtime is not None and found.st_mtime_ns != node.mtime:
        yield f"{path}: mtime {found.st_mtime_ns}, not {node.mtime}"
    got, want = _inside(path, found), _inside_model(node)
    if got != want:
        yield f"{path}: {got!r:.200}, not {want!r:.200}"
    elif node.entries is not None:
        for name, child in node.entries.items():
            yield from compare(path / name, child)


def _inside(path: Path, found: os.stat_result) -> Value:
    if stat.S_ISLNK(found.st_mode):
        return os.readlink(path)
    if stat.S_ISFIFO(found.st_mode):
        return None
    xattrs: Value = tuple((name, os.getxattr(path, name)) for name in _user_xattrs(path))
    if stat.S_ISDIR(found.st_mode):
        return (xattrs, tuple(sorted(os.listdir(path))))
    return (xattrs, path.read_bytes())


def _user_xattrs(path: Path) -> list[str]:
    """The names of user.* attributes; none where the file system has no attributes at all."""
    try:
        return sorted(name for name in os.listxattr(path) if name.startswith("user."))
    except OSError:
        return []


def _inside_model(node: Node) -> Value:
    if stat.S_ISLNK(node.mode):
        return node.content.decode()
    if stat.S_ISFIFO(node.mode):
        return None
    xattrs: Value = tuple(sorted(node.xattrs.items()))
    return (xattrs, node.content if node.entries is None else tuple(sorted(node.entries)))
