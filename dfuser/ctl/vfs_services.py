"""The service about files: mounts, names, vnodes.

`nlookup` walks a path one component at a time with the kernel's own `lookup1` and says for each
what the namecache knew before and knows now, so that one can watch it work.

Counterpart: mount(8), umount(8), df(1); ``show ncp`` has no counterpart in DragonFly.
Token/lock order: takes none.
Invariants: nothing is held after a command; lists are cut at their limit and say so.
"""

from __future__ import annotations

import shlex
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dfuser.libkern.errno import EINVAL, ELOOP, ENOENT, ENOTDIR, KError, errno_name
from dfuser.libkern.param import MAXPATHLEN, MAXSYMLINKS
from dfuser.libkern.stat import VType
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt.block import Block
from dfuser.vfs.kernfs.ctl import ControlCommands
from dfuser.vfs.kernfs.registry import plain
from dfuser.vfs.kernfs.views_vfs import VfsViews
from dfuser.vfs.namecache import NCF
from dfuser.vfs.nlookup import lookup1

from .lwkt_services import MAX_ROWS, need_int
from .service import Service, command

if TYPE_CHECKING:
    from dfuser.boot.kernel import Kernel
    from dfuser.vfs.namecache import NamecacheEntry, NcHandle
    from dfuser.vfs.vnode import Vnode

#: Steps one `nlookup` describes at most: components of the path and of all links in it.
MAX_STEPS: Final = 2048


class VfsService(Service):
    """Mounts, names and vnodes."""

    name = "vfs"

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.lwkt, kernel.report, kernel.panicked)
        self.vfs = kernel.vfs
        self._views = VfsViews(kernel.vfs)
        self._commands = ControlCommands(kernel.vfs)

    # --- mounts ----------------------------------------------------------------------------

    @command
    def cmd_mounts(self, cred: Ucred) -> list[dict[str, Any]]:
        """What is mounted inside, oldest first."""
        return [plain(row) for row in self._views.mounts()]

    @command
    def cmd_df(self, cred: Ucred) -> list[dict[str, Any]]:
        """The figures of statfs for every mount; block counts in units of ``bsize`` bytes."""
        return [
            {
                "source": mp.fromname,
                "type": mp.fstype.name,
                "on": mp.onname,
                **mp.ops.vfs_statfs(mp)._asdict(),
            }
            for mp in self.vfs.mounts
        ]

    @command
    def cmd_mount(
        self, cred: Ucred, fstype: str, on: str, source: str = "", options: str = ""
    ) -> None:
        """Mount a file system inside, as ``mount`` written to /kern/ctl does."""
        words = ["mount", "-t", _word("fstype", fstype)]
        if options:
            words += ["-o", _word("options", options)]
        words += [_word("source", source or fstype), _path("on", on)]
        self._commands.obey(shlex.join(words), cred)

    @command
    def cmd_unmount(self, cred: Ucred, on: str, force: bool = False) -> None:
        """Unmount a file system inside, as ``umount`` written to /kern/ctl does."""
        if not isinstance(force, bool):
            raise KError(EINVAL, "force must be true or false")
        words = ["umount", *(["-f"] if force else []), _path("on", on)]
        self._commands.obey(shlex.join(words), cred)

    # --- vnodes and names ------------------------------------------------------------------

    @command
    def cmd_vnodes(self, cred: Ucred, limit: int = 1000, mount: int = 0) -> dict[str, Any]:
        """Vnodes in memory, active ones first; of one mount when its index is given."""
        limit = need_int("limit", limit, 1, MAX_ROWS)
        mount = need_int("mount", mount, 0, 1 << 31)
        found = (row for row in self._views.vnodes() if not mount or row.mount == mount)
        rows = [plain(row) for row in islice(found, limit + 1)]
        return {
            "rows": rows[:limit],
            "more": len(rows) > limit,
            "statistics": plain(self.vfs.vnodes.statistics()),
        }

    @command
    def cmd_ncache(self, cred: Ucred) -> dict[str, Any]:
        """The figures of the namecache."""
        return dict(plain(self.vfs.cache.statistics()))

    @command
    def cmd_nlookup(
        self, cred: Ucred, path: str, uid: int | None = None, gid: int | None = None
    ) -> dict[str, Any]:
        """Walk a path and tell each step; as another user when ``uid`` or ``gid`` is given."""
        if uid is not None or gid is not None:
            top = (1 << 32) - 1
            cred = Ucred.of(need_int("uid", uid or 0, 0, top), need_int("gid", gid or 0, 0, top))
        text = _path("path", path).encode("utf-8", "surrogateescape")
        return _Walk(self.vfs, cred).run(text)


def _word(name: str, value: object) -> str:
    if not isinstance(value, str) or not value or len(value) > MAXPATHLEN:
        raise KError(EINVAL, f"{name} must be a text of 1 to {MAXPATHLEN} characters")
    return value


def _path(name: str, value: object) -> str:
    text = _word(name, value)
    if not text.startswith("/") or "\0" in text:
        raise KError(EINVAL, f"{name} must be a path inside that starts with /")
    return text


class Step(NamedTuple):
    """One component of a walk."""

    name: str
    before: str
    """What the namecache knew: absent, unresolved, positive, negative; "-" for ``.`` and ``..``."""
    after: str
    mount: int
    """Index of the mount the walk stands on afterwards."""
    crossed: bool
    """Whether a mount point was crossed."""
    ino: int
    type: str
    target: str
    """Where a symbolic link leads."""
    asked_ns: int
    """Nanoseconds the step took."""


def _state(ncp: NamecacheEntry | None) -> str:
    if ncp is None:
        return "absent"
    if ncp.flags & NCF.UNRESOLVED:
        return "unresolved"
    return "positive" if ncp.vp is not None else "negative"


class _Walk:
    """A walk along one path. A `Block` on the way starts it again, from the top."""

    def __init__(self, vfs: Any, cred: Ucred) -> None:
        self.vfs = vfs
        self.cred = cred
        self.steps: list[Step] = []
        self.links = 0

    def run(self, path: bytes) -> dict[str, Any]:
        """Walk; the answer has the steps, and the error that ended the walk or 0."""
        error, text = 0, ""
        try:
            self._walk(self.vfs.mounts.rootnch, path)
        except Block:
            raise
        except KError as exc:
            error, text = exc.errno or EINVAL, exc.strerror
        stats = self.vfs.cache.nchstats()
        return {
            "path": plain(path),
            "error": error,
            "error_name": errno_name(error) if error else "",
            "error_text": text,
            "steps": [plain(step) for step in self.steps],
            "nchstats": plain(stats),
        }

    def _walk(self, nch: NcHandle, path: bytes) -> None:
        todo = path.split(b"/")[::-1]
        while todo and len(self.steps) < MAX_STEPS:
            name = todo.pop()
            if not name:
                continue
            nch, target = self._step(nch, name)
            if target:
                self.links += 1
                if self.links > MAXSYMLINKS:
                    raise KError(ELOOP)
                if target.startswith(b"/"):
                    nch = self.vfs.mounts.rootnch
                todo += target.split(b"/")[::-1]

    def _step(self, nch: NcHandle, name: bytes) -> tuple[NcHandle, bytes]:
        """Walk one component: where it leads, and the target if it is a link."""
        vp = nch.ncp.vp
        if vp is not None and vp.type != VType.VDIR:
            raise KError(ENOTDIR)
        dots = name in (b".", b"..")
        entry = None if dots else (nch.ncp.children or {}).get(name)
        before = "-" if dots else _state(entry)
        start = self.vfs.clock.monotonic_ns()
        found = lookup1(self.vfs, nch, name, self.cred, chk=True)
        spent = self.vfs.clock.monotonic_ns() - start
        if found is None:
            after = _state((nch.ncp.children or {}).get(name))
            self._note(name, before, after, nch, False, None, b"", spent)
            raise KError(ENOENT)
        vp = found.ncp.vp
        target = b""
        if vp is not None and vp.type == VType.VLNK:
            target = bytes(vp.ops.use.vop_readlink(vp, self.cred))
        crossed = found.mount is not nch.mount
        after = "-" if dots else _state(found.ncp)
        self._note(name, before, after, found, crossed, vp, target, spent)
        return (nch if target else found), target

    def _note(
        self, name: bytes, before: str, after: str, nch: NcHandle, crossed: bool,
        vp: Vnode | None, target: bytes, spent: int,
    ) -> None:  # fmt: skip
        self.steps.append(
            Step(
                name=plain(name),
                before=before,
                after=after,
                mount=nch.mount.index,
                crossed=crossed,
                ino=vp.ino if vp is not None else 0,
                type=vp.type.name if vp is not None else "",
                target=plain(target),
                asked_ns=spent,
            )
        )
