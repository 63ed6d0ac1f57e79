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
from pathlib import Path

from dfuser.soak.operations import Operation, Value, describe, perform
from dfuser.soak.run import StreamRun


class TwinRun(StreamRun):
    """The runner: `run` does the same stream in `left` and `right`, both empty at the start."""

    __slots__ = ("_left", "_right")

    name = "twin"

    def __init__(
        self, left: Path, right: Path, seed: int, *, without: frozenset[str] = frozenset()
    ) -> None:
        """Prepare a run; `without` names calls that one of the two does not have."""
        super().__init__(seed, without=without)
        self._left, self._right = left, right

    def compare(self, operation: Operation) -> str:
        """Do an operation on both sides."""
        left, right = perform(self._left, operation), perform(self._right, operation)
        return f"{left} on the left, {right} on the right" if left != right else ""

    def difference(self) -> str:
        """Compare the two trees whole."""
        left, right = snapshot(self._left), snapshot(self._right)
        for name in sorted(left.keys() | right.keys()):
            if left.get(name) != right.get(name):
                return f"{name}: {left.get(name)!r} and {right.get(name)!r}"
        return ""


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
