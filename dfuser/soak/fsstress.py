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
from collections.abc import Iterator
from pathlib import Path

from dfuser.soak.model import ModelTree, Node
from dfuser.soak.operations import Operation, Value, describe, perform
from dfuser.soak.run import StreamRun


class FsStress(StreamRun):
    """The tester: `run` does operations below `directory`, which must be empty."""

    __slots__ = ("_directory", "_model")

    name = "fsstress"

    def __init__(
        self, directory: Path, seed: int, *, without: frozenset[str] = frozenset()
    ) -> None:
        """Prepare a run; `without` names calls that the file system does not have."""
        super().__init__(seed, without=without)
        self._directory = directory
        self._model = ModelTree(directory.stat())

    def compare(self, operation: Operation) -> str:
        """Do an operation in the directory and on the model."""
        want = self._model.perform(operation)
        got = perform(self._directory, operation)
        return f"{got}, not {want}" if got != want else ""

    def difference(self) -> str:
        """Compare everything that the model knows with what is there."""
        return next(compare(self._directory, self._model.root), "")


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
