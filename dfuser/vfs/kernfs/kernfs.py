"""The tree of /kern: one directory with a file and a JSON twin for each registered view.

Counterpart: none; kernfs of 4.4BSD is the nearest relative by name.
Differs from DragonFly: an addition. The views are in `registry`, those of the VFS and of LWKT in
``views_vfs`` and ``views_lwkt``; every other room registers its own.
Token and lock order: takes none; a command may raise Block.
Invariants: the names are those registered, at every moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from dfuser.libkern.errno import EINVAL, ENOENT, KError

from ..pseudofs import ROOT_INO, InodeTable, PfsDir, PfsEntry, PfsFile, PfsNode
from ..pseudofs_vnops import PfsVfsOps, parse_owner

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dfuser.libkern.ucred import Ucred

    from ..mount import Mount
    from ..vfs import Vfs
    from .registry import KernView, KernViews

_JSON = ".json"


class KernDir(PfsDir):
    """/kern."""

    __slots__ = ("inodes", "uid_gid", "views")

    def __init__(self, views: KernViews, inodes: InodeTable, owner: tuple[int, int]) -> None:
        super().__init__(ROOT_INO, None)
        self.views = views
        self.inodes = inodes
        self.uid_gid = owner

    def owner(self) -> tuple[int, int]:
        """As the mount was told."""
        return self.uid_gid

    def lookup(self, name: bytes, cred: Ucred) -> PfsNode | None:
        """A view or the twin of one."""
        text = name.decode("utf-8", "replace")
        base = text.removesuffix(_JSON)
        if self.views.find(base) is None:
            return None
        return KernFile(self, base, base != text)

    def entries(self, cred: Ucred, after: int = 0) -> Iterable[PfsEntry]:
        """Every view and its twin."""
        for view in self.views:
            yield KernFile(self, view.name, False).entry(view.name.encode())
            yield KernFile(self, view.name, True).entry((view.name + _JSON).encode())


class KernFile(PfsFile):
    """One view, as text or as JSON."""

    __slots__ = ("dir", "json", "name")

    def __init__(self, parent: KernDir, name: str, json: bool) -> None:
        super().__init__(parent.inodes.number((name, json)), parent)
        self.dir = parent
        self.name = name
        self.json = json

    def _view(self) -> KernView:
        view = self.dir.views.find(self.name)
        if view is None:
            raise KError(ENOENT)
        return view

    def alive(self) -> bool:
        """Whether the view is still registered."""
        return self.dir.views.find(self.name) is not None

    def owner(self) -> tuple[int, int]:
        """As the mount was told."""
        return self.dir.uid_gid

    def mode(self) -> int:
        """Writable by the owner where commands are taken."""
        return 0o644 if not self.json and self._view().obey is not None else 0o444

    def extattrs(self) -> Mapping[bytes, bytes]:
        """The description."""
        return {b"dfuser.descr": self._view().descr.encode()}

    def read(self, cred: Ucred) -> bytes:
        """The view at this moment."""
        views = self.dir.views
        view = self._view()
        text = views.render_json(view) if self.json else views.render(view)
        return text.encode("utf-8", "surrogateescape")

    def write(self, data: bytes, cred: Ucred) -> bytes | None:
        """One command. Raises KError EINVAL for a twin, or the command's own error."""
        if self.json:
            raise KError(EINVAL)
        return self.dir.views.obey(self._view(), data, cred)


class KernfsVfsOps(PfsVfsOps):
    """A mounted kernfs. Options: ``uid``, ``gid``: who owns the files (0 by default)."""

    known_options = frozenset({"uid", "gid"})

    def __init__(self, views: KernViews) -> None:
        self.views = views
        self.owner = (0, 0)

    @classmethod
    def factory(cls, views: KernViews) -> Callable[[], KernfsVfsOps]:
        """What to register as a file system type: makes one instance a mount."""
        return lambda: cls(views)

    def vfs_mount(self, mp: Mount, source: str, options: dict[str, str], cred: Ucred) -> None:
        """Take the owner from the options, then as every synthetic file system."""
        self.owner = parse_owner(options)
        super().vfs_mount(mp, source, options, cred)

    def make_root(self, inodes: InodeTable) -> PfsDir:
        """/kern."""
        return KernDir(self.views, inodes, self.owner)

    def times(self, vfs: Vfs) -> int | None:
        """The time of the mount."""
        return vfs.now()
