"""A tree of files in memory that answers every operation as POSIX and Linux say it must.

The model knows names, types, modes, owners, link counts, sizes, contents, link texts, extended
attributes and those mtimes that were set by hand. It resolves paths with symbolic links the way
the kernel does, and gives errors in the kernel's order: first the way to the parent, then the
name, then the rule of the call.

Counterpart: none.
Differs from DragonFly: the order of errors is Linux', since the operations come through its VFS.
Token/lock order: takes none.
Invariants: a directory's link count is two and one for each subdirectory; the count of any other
node is the number of its names.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from dfuser.soak.operations import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    XATTRS,
    Operation,
    Result,
    Value,
    contents,
)

MAXLINKS: Final = 40


class Node:
    """One file of any type. `names` counts the entries that lead to it."""

    __slots__ = ("content", "entries", "gid", "mode", "mtime", "names", "parent", "uid", "xattrs")

    def __init__(self, mode: int, uid: int, gid: int) -> None:
        """Make a node that has no name yet; a directory gets its (empty) entries."""
        self.mode, self.uid, self.gid = mode, uid, gid
        self.entries: dict[str, Node] | None = {} if stat.S_ISDIR(mode) else None
        self.parent: Node | None = None
        self.content = b""
        self.names = 0
        self.mtime: int | None = None
        self.xattrs: dict[str, bytes] = {}

    @property
    def links(self) -> int:
        """The link count that stat must show."""
        if self.entries is None:
            return self.names
        return 2 + sum(child.entries is not None for child in self.entries.values())

    def describe(self) -> Value:
        """What `operations.describe` must make of this node."""
        sized = stat.S_ISREG(self.mode) or stat.S_ISLNK(self.mode)
        size = len(self.content) if sized else 0
        return (self.mode, self.links, self.uid, self.gid, size)


class ModelTree:
    """The tree and its operations; `perform` answers like the file system under test."""

    __slots__ = ("_calls", "_gid", "_uid", "root")

    def __init__(self, found: os.stat_result) -> None:
        """Start with an empty root that has the mode and owner of a real directory."""
        self.root = Node(found.st_mode, found.st_uid, found.st_gid)
        self.root.names = 1
        self._uid, self._gid = os.geteuid(), os.getegid()
        self._calls: dict[str, Callable[[Operation], Value]] = {
            name.removeprefix("_do_"): getattr(self, name)
            for name in dir(self)
            if name.startswith("_do_")
        }

    def perform(self, operation: Operation) -> Result:
        """Do the operation on the model and return the answer that must come."""
        try:
            return Result(0, self._calls[operation.call](operation))
        except OSError as error:
            return Result(error.errno or 0)

    def _walk(self, start: Node, path: str, follow: bool, budget: list[int]) -> Node:
        """Resolve a path to a node; `budget` holds the symbolic links still allowed."""
        here = start
        parts = path.split("/")
        for index, name in enumerate(parts):
            if here.entries is None:
                raise OSError(errno.ENOTDIR, path)
            found = here.entries.get(name)
            if found is None:
                raise OSError(errno.ENOENT, path)
            last = index == len(parts) - 1
            if stat.S_ISLNK(found.mode) and (follow or not last):
                budget[0] -= 1
                if budget[0] < 0:
                    raise OSError(errno.ELOOP, path)
                found = self._walk(here, found.content.decode(), True, budget)
            here = found
        return here

    def _node(self, path: str, follow: bool = True) -> Node:
        return self._walk(self.root, path, follow, [MAXLINKS])

    def _parent(self, path: str, start: Node | None = None) -> tuple[Node, str]:
        """Resolve all but the last name; the parent must be a directory."""
        way, _, name = path.rpartition("/")
        here = start or self.root
        parent = self._walk(here, way, True, [MAXLINKS]) if way else here
        if parent.entries is None:
            raise OSError(errno.ENOTDIR, path)
        return parent, name

    def _entries(self, node: Node) -> dict[str, Node]:
        if node.entries is None:
            raise OSError(errno.ENOTDIR, "")
        return node.entries

    def _target(self, path: str) -> tuple[Node, str]:
        """Where a new name would go; EEXIST when it is there."""
        parent, name = self._parent(path)
        if name in self._entries(parent):
            raise OSError(errno.EEXIST, path)
        return parent, name

    def _add(self, parent: Node, name: str, node: Node) -> None:
        self._entries(parent)[name] = node
        node.names += 1
        parent.mtime = None
        if node.entries is not None:
            node.parent = parent

    def _drop(self, parent: Node, name: str) -> Node:
        node = self._entries(parent).pop(name)
        node.names -= 1
        parent.mtime = None
        return node

    def _make(self, path: str, mode: int, at: tuple[Node, str] | None = None) -> Node:
        """Make a node by the rules of set-group-ID directories."""
        parent, name = at or self._target(path)
        gid = parent.gid if parent.mode & stat.S_ISGID else self._gid
        if parent.mode & stat.S_ISGID and stat.S_ISDIR(mode):
            mode |= stat.S_ISGID
        node = Node(mode, self._uid, gid)
        self._add(parent, name, node)
        return node

    def _do_create(self, op: Operation) -> Value:
        self._make(op.path, stat.S_IFREG | op.number & 0o1777)
        return None

    def _do_open_create(self, op: Operation) -> Value:
        """Open for writing, creating it where the last symbolic link leads."""
        parent, name = self._parent(op.path)
        budget = MAXLINKS
        while (found := self._entries(parent).get(name)) and stat.S_ISLNK(found.mode):
            budget -= 1
            if budget < 0:
                raise OSError(errno.ELOOP, op.path)
            parent, name = self._parent(found.content.decode(), parent)
        if found is None:
            self._make("", stat.S_IFREG | op.number & 0o777, (parent, name))
        elif found.entries is not None:
            raise OSError(errno.EISDIR, op.path)
        elif stat.S_ISFIFO(found.mode):
            raise OSError(errno.ENXIO, op.path)
        return None

    def _writable(self, path: str) -> Node:
        node = self._node(path)
        if node.entries is not None:
            raise OSError(errno.EISDIR, path)
        return node

    def _do_write(self, op: Operation) -> Value:
        node = self._writable(op.path)
        if stat.S_ISFIFO(node.mode):
            raise OSError(errno.ENXIO, op.path)
        node.content = contents(op.number)
        node.mtime = None
        self._written(node)
        return len(node.content)

    def _do_read(self, op: Operation) -> Value:
        node = self._writable(op.path)
        return node.content

    def _do_truncate(self, op: Operation) -> Value:
        node = self._writable(op.path)
        if not stat.S_ISREG(node.mode):
            raise OSError(errno.EINVAL, op.path)
        node.content = node.content[: op.number].ljust(op.number, b"\0")
        node.mtime = None
        self._written(node)
        return None

    def _written(self, node: Node) -> None:
        """Writing by anybody but root takes the set-ID bits away."""
        if self._uid != 0:
            _clear_set_id(node)

    def _do_unlink(self, op: Operation) -> Value:
        parent, name = self._parent(op.path)
        node = self._entries(parent).get(name)
        if node is None:
            raise OSError(errno.ENOENT, op.path)
        if node.entries is not None:
            raise OSError(errno.EISDIR, op.path)
        self._drop(parent, name)
        return None

    def _do_mkdir(self, op: Operation) -> Value:
        self._make(op.path, stat.S_IFDIR | op.number & 0o1777)
        return None

    def _do_rmdir(self, op: Operation) -> Value:
        parent, name = self._parent(op.path)
        node = self._entries(parent).get(name)
        if node is None:
            raise OSError(errno.ENOENT, op.path)
        if self._entries(node):
            raise OSError(errno.ENOTEMPTY, op.path)
        self._drop(parent, name)
        return None

    def _do_link(self, op: Operation) -> Value:
        node = self._node(op.path, follow=False)
        parent, name = self._target(op.other)
        if node.entries is not None:
            raise OSError(errno.EPERM, op.path)
        self._add(parent, name, node)
        return None

    def _do_symlink(self, op: Operation) -> Value:
        self._make(op.path, stat.S_IFLNK | 0o777).content = op.other.encode()
        return None

    def _do_mkfifo(self, op: Operation) -> Value:
        self._make(op.path, stat.S_IFIFO | op.number & 0o777)
        return None

    def _do_rename(self, op: Operation) -> Value:
        return self._rename(op, 0)

    def _do_rename_noreplace(self, op: Operation) -> Value:
        return self._rename(op, RENAME_NOREPLACE)

    def _do_rename_exchange(self, op: Operation) -> Value:
        return self._rename(op, RENAME_EXCHANGE)

    def _rename(self, op: Operation, flags: int) -> Value:
        source, old = self._parent(op.path)
        target, new = self._parent(op.other)
        node, over = self._entries(source).get(old), self._entries(target).get(new)
        if node is None:
            raise OSError(errno.ENOENT, op.path)
        if over is not None and flags & RENAME_NOREPLACE:
            raise OSError(errno.EEXIST, op.other)
        if over is None and flags & RENAME_EXCHANGE:
            raise OSError(errno.ENOENT, op.other)
        if _is_above(node, target):
            raise OSError(errno.EINVAL, op.path)
        if over is not None and _is_above(over, source):
            raise OSError(errno.EINVAL if flags & RENAME_EXCHANGE else errno.ENOTEMPTY, op.other)
        if node is over:
            return None
        if flags & RENAME_EXCHANGE:
            self._add(target, new, self._drop(source, old))
            if over is not None:
                over.names -= 1
                self._add(source, old, over)
            return None
        if over is not None:
            _check_replaceable(node, over)
            self._drop(target, new)
        self._add(target, new, self._drop(source, old))
        return None

    def _do_chmod(self, op: Operation) -> Value:
        node = self._node(op.path)
        node.mode = stat.S_IFMT(node.mode) | op.number & 0o7777
        return None

    def _do_chown(self, op: Operation) -> Value:
        node = self._node(op.path, follow=False)
        if self._uid == 0:
            node.uid, node.gid = op.extra, op.number
        if node.entries is None:
            _clear_set_id(node)
        return None

    def _do_utimens(self, op: Operation) -> Value:
        self._node(op.path).mtime = op.number * 10**9 + op.extra
        return None

    def _attributed(self, path: str, lacking: int) -> Node:
        """The node for a user.* attribute, which only files and directories have."""
        node = self._node(path)
        if not (stat.S_ISREG(node.mode) or node.entries is not None):
            raise OSError(lacking, path)
        return node

    def _do_setxattr(self, op: Operation) -> Value:
        node, name = self._attributed(op.path, errno.EPERM), XATTRS[op.number % 3]
        kind = op.number % 4
        if kind == 2 and name in node.xattrs:
            raise OSError(errno.EEXIST, name)
        if kind == 3 and name not in node.xattrs:
            raise OSError(errno.ENODATA, name)
        node.xattrs[name] = contents(op.number % 60)
        return None

    def _do_removexattr(self, op: Operation) -> Value:
        node, name = self._attributed(op.path, errno.EPERM), XATTRS[op.number % 3]
        if node.xattrs.pop(name, None) is None:
            raise OSError(errno.ENODATA, name)
        return None

    def _do_getxattr(self, op: Operation) -> Value:
        value = self._attributed(op.path, errno.ENODATA).xattrs.get(XATTRS[op.number % 3])
        if value is None:
            raise OSError(errno.ENODATA, op.path)
        return value

    def _do_listxattr(self, op: Operation) -> Value:
        return tuple(sorted(self._node(op.path).xattrs))

    def _do_listdir(self, op: Operation) -> Value:
        return tuple(sorted(self._entries(self._node(op.path))))

    def _do_stat(self, op: Operation) -> Value:
        return self._node(op.path).describe()

    def _do_lstat(self, op: Operation) -> Value:
        return self._node(op.path, follow=False).describe()

    def _do_readlink(self, op: Operation) -> Value:
        node = self._node(op.path, follow=False)
        if not stat.S_ISLNK(node.mode):
            raise OSError(errno.EINVAL, op.path)
        return node.content.decode()


def _is_above(node: Node, directory: Node) -> bool:
    """Whether `node` is `directory` or one of those above it."""
    here: Node | None = directory
    while here is not None:
        if here is node:
            return True
        here = here.parent
    return False


def _check_replaceable(node: Node, over: Node) -> None:
    """What rename may put `node` in the place of."""
    if node.entries is None:
        if over.entries is not None:
            raise OSError(errno.EISDIR, "")
        return
    if over.entries is None:
        raise OSError(errno.ENOTDIR, "")
    if over.entries:
        raise OSError(errno.ENOTEMPTY, "")


def _clear_set_id(node: Node) -> None:
    node.mode &= ~stat.S_ISUID
    if node.mode & stat.S_IXGRP:
        node.mode &= ~stat.S_ISGID
