"""The service about files: mounts, names, vnodes.

`nlookup` is the kernel's own walk with an observer: for each component it says what the namecache
knew before and knows now, so that one can watch it work.

Counterpart: mount(8), umount(8), df(1); ``show ncp`` has no counterpart in DragonFly.
Token/lock order: takes none.
Invariants: nothing is held after a command; lists are cut at their limit and say so.
"""

from __future__ import annotations

from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from dfuser.libkern.errno import EINVAL, KError, errno_name
from dfuser.libkern.param import MAXPATHLEN
from dfuser.libkern.ucred import Ucred
from dfuser.vfs.kernfs.registry import plain
from dfuser.vfs.kernfs.views_vfs import VfsViews
from dfuser.vfs.nlookup import NLC, NlookupData, nlookup

from .lwkt_services import MAX_ROWS, need_int
from .service import Service, command

if TYPE_CHECKING:
    from dfuser.boot.kernel import Kernel
    from dfuser.vfs.hostcache import HostCache
    from dfuser.vfs.nlwatch import NlookupStep

#: What a walk may be for, with the flags that its system call gives to nlookup.
INTENTS: Final = MappingProxyType(
    {
        "stat": NLC.FOLLOW,
        "open": NLC.FOLLOW | NLC.OPEN | NLC.READ,
        "create": NLC.CREATE | NLC.EXCL | NLC.REFDVP,
        "delete": NLC.DELETE | NLC.REFDVP,
        "rename": NLC.RENAME_SRC | NLC.REFDVP,
    }
)
#: Steps one `nlookup` describes at most: components of the path and of all links in it.
MAX_STEPS: Final = 2048


class VfsService(Service):
    """Mounts, names and vnodes."""

    name = "vfs"

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.lwkt, kernel.report, kernel.panicked)
        self.vfs = kernel.vfs
        self._views = VfsViews(kernel.vfs)
        self._commands = kernel.world.commands

    @property
    def hostcache(self) -> HostCache | None:
        """The host, which must hear of mounts before who mounted goes on."""
        return self.vfs.hostcache

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

    @command(settles=True)
    def cmd_mount(
        self, cred: Ucred, fstype: str, on: str, source: str = "", options: str = ""
    ) -> None:
        """Mount a file system inside, as ``mount`` written to /kern/ctl does."""
        self._commands.mount(
            _word("fstype", fstype),
            _word("source", source or fstype),
            _path("on", on),
            _word("options", options) if options else "",
            cred,
        )

    @command(settles=True)
    def cmd_unmount(self, cred: Ucred, on: str, force: bool = False) -> None:
        """Unmount a file system inside, as ``umount`` written to /kern/ctl does."""
        if not isinstance(force, bool):
            raise KError(EINVAL, "force must be true or false")
        self._commands.umount(_path("on", on), cred, force=force)

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
        self,
        cred: Ucred,
        path: str,
        uid: int | None = None,
        gid: int | None = None,
        intent: str | None = None,
    ) -> dict[str, Any]:
        """Walk a path and tell each step; as another user when ``uid`` or ``gid`` is given.

        ``intent`` is what the walk is for: stat (the default), open, create, delete, rename.
        """
        if uid is not None or gid is not None:
            top = (1 << 32) - 1
            cred = Ucred.of(need_int("uid", uid or 0, 0, top), need_int("gid", gid or 0, 0, top))
        flags = INTENTS.get(intent or "stat")
        if flags is None:
            raise KError(EINVAL, f"intent must be one of {', '.join(INTENTS)}")
        text = _path("path", path).encode("utf-8", "surrogateescape")
        log = _StepLog()
        error, said = 0, ""
        with NlookupData(self.vfs, None, None, text, cred, flags) as nd:
            nd.observer = log
            try:
                nlookup(nd)
            except KError as exc:
                error, said = exc.errno or EINVAL, exc.strerror
        return {
            "path": plain(text),
            "error": error,
            "error_name": errno_name(error) if error else "",
            "error_text": said,
            "steps": log.rows,
            "more": log.count - len(log.rows),
            "nchstats": plain(self.vfs.cache.nchstats()),
        }


def _word(name: str, value: object) -> str:
    if not isinstance(value, str) or not value or len(value) > MAXPATHLEN:
        raise KError(EINVAL, f"{name} must be a text of 1 to {MAXPATHLEN} characters")
    return value


def _path(name: str, value: object) -> str:
    """A path inside, of any length: what is too long is for the walk to say."""
    text = value if isinstance(value, str) else ""
    if not text.startswith("/") or "\0" in text:
        raise KError(EINVAL, f"{name} must be a path inside that starts with /")
    return text


class _StepLog:
    """The observer of a walk: its first `MAX_STEPS` steps as plain data, and their number."""

    __slots__ = ("count", "rows")

    def __init__(self) -> None:
        self.count = 0
        self.rows: list[dict[str, Any]] = []

    def __call__(self, step: NlookupStep) -> None:
        self.count += 1
        if self.count > MAX_STEPS:
            return
        vp = step.vp
        self.rows.append(
            {
                "name": plain(step.name),
                "before": step.before,
                "after": step.after,
                "mount": step.place.mount.index,
                "crossed": step.crossed,
                "ino": vp.ino if vp is not None else 0,
                "type": vp.type.name if vp is not None else "",
                "target": plain(step.target),
                "error_name": errno_name(step.error) if step.error else "",
                "asked_ns": step.ns,
            }
        )
