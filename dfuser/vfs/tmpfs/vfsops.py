"""Mounting a tmpfs: options, and the operations on the mount as a whole.

========================= ==================================================================
option                    meaning
========================= ==================================================================
``size=``                 most bytes of data: a number with k, m, g or t, or ``50%`` of
                          physical memory; default a quarter of it, at least one page
``inodes=`` ``nodes=``    most files; default four for each page of the limit
``nr_inodes=``            the same, as Linux spells it
``maxfilesize=``          longest file; default 2^63 - 1 bytes
``maxsymlink=``           longest symbolic link, 1 to 4095; default 1023, DragonFly's limit
``uid=`` ``gid=``         owner of the root directory; default who mounts
``mode=``                 its permission bits, octal; default 755 (1777 suits ``/tmp``)
``coherence=``            how far the host's caches are trusted: ``exclusive`` (default: only
                          the host changes files here) or ``shared``
========================= ==================================================================

An update may change the limits, but not below what is in use.

Counterpart: vfs/tmpfs/tmpfs_vfsops.c; mount_tmpfs(8) for the options.
Differs from DragonFly: limits can be changed later (EOPNOTSUPP there); files are found by
    number in a table instead of a walk over all (tmpfs_fhtovp); the number of inodes is
    what was asked for, not cut to the number of pages.
Token/lock order: none; nothing here suspends.
Invariants: after an unmount every page of the mount is free and no cycle is left.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from dfuser.libkern.errno import EBUSY, EINVAL, KKASSERT, KError
from dfuser.libkern.param import PAGE_SHIFT, PAGE_SIZE
from dfuser.libkern.stat import ALLPERMS, SF_NOCACHE
from dfuser.vfs.mount import VfsOps
from dfuser.vfs.mountflags import MNT, MNTK
from dfuser.vfs.vattr import Statfs
from dfuser.vfs.vnode import V
from dfuser.vfs.vop import OpsCell
from dfuser.vm.object import OFF_MAX

from .mount import SYMLINK_LIMIT, SYMLINK_MAX, TmpfsLimits, TmpfsMount
from .vnops import TmpfsVnodeOps

if TYPE_CHECKING:
    from dfuser.libkern.ucred import Ucred
    from dfuser.vfs.mount import Mount
    from dfuser.vfs.vnode import Vnode

#: Mode of the root directory. Counterpart: TMPFS_DEFAULT_ROOT_MODE.
DEFAULT_ROOT_MODE: Final = 0o755

#: Files a mount may have for each page of its limit. Counterpart: tmpfs_mount.
NODES_A_PAGE: Final = 4
#: Fewest files a mount may be limited to: the root and two more.
NODES_MIN: Final = 3

_UNITS: Final = MappingProxyType({"k": 10, "m": 20, "g": 30, "t": 40})
_LIMITS: Final = frozenset({"size", "inodes", "nodes", "nr_inodes", "maxfilesize", "maxsymlink"})
_ROOT: Final = frozenset({"uid", "gid", "mode"})


def parse_size(text: str, whole: int) -> int:
    """A number of bytes: ``4096``, ``10m``, ``50%`` of ``whole``.

    Raises:
        KError: EINVAL, not such a number, or negative.
    """
    word = text.strip().lower()
    shift = _UNITS.get(word[-1:], 0)
    digits = word[:-1] if shift or word.endswith("%") else word
    if not digits.isascii() or not digits.isdigit():
        raise KError(EINVAL, f"not a size: {text!r}")
    number = int(digits)
    return whole * number // 100 if word.endswith("%") else number << shift


def _number(options: dict[str, str], name: str, default: int, base: int = 10) -> int:
    """A whole number from the options.

    Raises:
        KError: EINVAL, it is none.
    """
    text = options.get(name)
    if text is None:
        return default
    try:
        number = int(text, base)
    except ValueError:
        number = -1
    if number < 0:
        raise KError(EINVAL, f"bad value for {name}: {text!r}")
    return number


def parse_limits(options: dict[str, str], memory: int) -> TmpfsLimits:
    """What a mount may use, from its options.

    Args:
        options: the words and values of the mount.
        memory: bytes of physical memory, for percentages and the default.

    Raises:
        KError: EINVAL, a value makes no sense.
    """
    size = parse_size(options["size"], memory) if "size" in options else memory // 4
    pages = max(1, size >> PAGE_SHIFT)
    nodes = NODES_MIN + pages * NODES_A_PAGE
    for name in ("inodes", "nodes", "nr_inodes"):
        if name in options:
            nodes = max(NODES_MIN, parse_size(options[name], nodes))
    longest = parse_size(options["maxfilesize"], memory) if "maxfilesize" in options else OFF_MAX
    symlink = _number(options, "maxsymlink", SYMLINK_MAX)
    if not 0 < symlink <= SYMLINK_LIMIT:
        raise KError(EINVAL, f"maxsymlink is 1 to {SYMLINK_LIMIT}")
    return TmpfsLimits(pages, nodes, min(longest, OFF_MAX), symlink)


class TmpfsVfsOps(VfsOps):
    """One mounted tmpfs as a whole. Counterpart: tmpfs_vfsops."""

    stateless = True
    at_hand = True

    def vfs_mount(self, mp: Mount, source: str, options: dict[str, str], cred: Ucred) -> None:
        """Make an empty file system, or change the limits of a mounted one.

        Raises:
            KError: EINVAL, an option is unknown or makes no sense; EBUSY, an update asks for
                less than is in use.
        """
        unknown = options.keys() - _LIMITS - _ROOT - {"coherence"}
        if unknown:
            raise KError(EINVAL, f"tmpfs knows no option {sorted(unknown)[0]!r}")
        coherence = options.get("coherence", "exclusive")
        if coherence not in ("exclusive", "shared"):
            raise KError(EINVAL, f"coherence is exclusive or shared, not {coherence!r}")
        if mp.flag & MNT.UPDATE:
            self._update(mp, options)
            return
        limits = parse_limits(options, self._memory(mp))
        mode = _number(options, "mode", DEFAULT_ROOT_MODE, 8) & ALLPERMS
        uid = _number(options, "uid", cred.uid)
        gid = _number(options, "gid", cred.gid)
        tm = TmpfsMount(mp.vfs, mp, limits, mode, uid, gid)
        tm.root.flags = SF_NOCACHE
        mp.data = tm
        mp.vn_cell = OpsCell(TmpfsVnodeOps(tm))
        mp.flag |= MNT.LOCAL
        mp.kern_flag |= MNTK.NOMSYNC | MNTK.THR_SYNC | MNTK.QUICKHALT
        mp.coherence = coherence

    def _update(self, mp: Mount, options: dict[str, str]) -> None:
        """Take new limits for a mounted file system."""
        tm: TmpfsMount = mp.data
        limits = parse_limits(mp.options | options, self._memory(mp))
        if limits.pages < tm.used or limits.nodes < len(tm.nodes):
            raise KError(EBUSY, "more is in use than the new limits allow")
        tm.limits = limits
        if "coherence" in options:
            mp.coherence = options["coherence"]

    @staticmethod
    def _memory(mp: Mount) -> int:
        """Bytes of physical memory of the kernel."""
        pages = mp.vfs.pages
        return pages.v_page_count << PAGE_SHIFT if pages is not None else 0

    def vfs_unmount(self, mp: Mount, flags: int) -> None:
        """Give everything back. Counterpart: tmpfs_unmount.

        The caller has let all vnodes go (vflush).
        """
        tm: TmpfsMount = mp.data
        KKASSERT(all(node.vnode is None for node in tm.nodes.values()), "tmpfs: vnodes left")
        tm.dissolve()
        mp.data = None
        mp.vn_cell = mp.vfs.vnodes.dead_cell
        mp.flag &= ~MNT.LOCAL

    def vfs_root(self, mp: Mount) -> Vnode:
        """The root directory. Counterpart: tmpfs_root."""
        tm: TmpfsMount = mp.data
        vp = tm.alloc_vp(tm.root)
        vp.flag |= V.ROOT
        return vp

    def vfs_statfs(self, mp: Mount) -> Statfs:
        """Limits and use. Counterpart: tmpfs_statfs."""
        tm: TmpfsMount = mp.data
        limits = tm.limits
        free = max(0, tm.pages_free)
        ffree = limits.nodes - len(tm.nodes)
        return Statfs(PAGE_SIZE, limits.pages, free, free, limits.nodes, ffree, ffree)

    def vfs_sync(self, mp: Mount, waitfor: int) -> None:
        """Nothing is kept anywhere else."""

    def vfs_vget(self, mp: Mount, ino: int) -> Vnode:
        """The vnode of an inode number. Counterpart: tmpfs_fhtovp.

        Raises:
            KError: ENOENT, no such file (any more).
        """
        tm: TmpfsMount = mp.data
        return tm.alloc_vp(tm.find(ino))
