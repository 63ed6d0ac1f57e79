"""nlookup: the walk along a path.

A path is walked component by component down the namecache, over mount points and symbolic links,
with the permission to search checked in every directory. What the walk is *for* is said in flags
(`NLC`), because the answer depends on it: a name that does not exist is what CREATE wants and what
OPEN cannot use.

**Rules of the last component.** A missing name is no error for CREATE and RENAME_DST: the result
is a negative entry. ``.`` and ``..``: CREATE gives EEXIST, DELETE EINVAL (``.``) or ENOTEMPTY
(``..``), RENAME EINVAL. Slashes at the end demand a directory, or with WILLBEDIR one to be made.
A link at the end is followed with FOLLOW or when slashes follow it.

**Limits.** A component has at most 255 bytes (ENAMETOOLONG), the whole path less than 1024, again
after each link has been put in; 32 links (ELOOP); an empty path and an empty link are ENOENT.

**Jails.** ``nch_root`` is where ``/`` begins. ``..`` there stays there, and links that start with a
slash start there. A walk that somehow finds itself outside lands on ``nch_root`` when it leaves the
top of the tree.

**Watching.** `NlookupData.observer` is told of each step (`nlwatch`); it changes nothing.

Counterpart: kern/vfs_nlookup.c.
Differs from DragonFly: a walk that must wait says `Block`, drops everything, and starts again from
    the top; an empty path is ENOENT as POSIX has it (C returns the start directory); varsym
    expansion is offered to links through ``NlookupData.varsym``.
Token/lock order: none.
Invariants: after an error nothing is held; after success exactly ``nd.nch`` (and ``nd.dvp`` with
    REFDVP) until `NlookupData.done`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfuser.libkern.errno import (
    EACCES,
    EEXIST,
    EINVAL,
    ELOOP,
    ENAMETOOLONG,
    ENOENT,
    ENOTDIR,
    ENOTEMPTY,
    KError,
)
from dfuser.libkern.param import MAXPATHLEN, MAXSYMLINKS, NAME_MAX

from .access import NLC, naccess
from .mountflags import MNT, MNTK
from .namecache import NCF, NamecacheEntry, NcHandle
from .nlwatch import observed
from .vnode import VACT_INC, VACT_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfuser.libkern.ucred import Ucred

    from .cache import NameCache
    from .mount import Mount
    from .nlwatch import NlookupStep
    from .vfs import Vfs
    from .vnode import Vnode

__all__ = ["NLC", "NlookupData", "cross_mount", "lookup1", "nlookup"]

_DIRNAMES: Final = (b".", b"..", b"")


class NlookupData:
    """One walk: what is asked, and the answer. Counterpart: struct nlookupdata (sys/nlookup.h).

    Use as a context manager, or call `done`, to let go of the answer.

    Attributes:
        nch: the place found, held; None before and after.
        dvp: with NLC.REFDVP the directory the name is in, referenced.
        dflags: NLC.STICKY, APPENDONLY, IMMUTABLE as that directory has them.
        varsym: expands ``${VAR}`` in links, or None.
        observer: told of each component, or None.
    """

    __slots__ = ("vfs", "start", "root", "path", "cred", "flags", "nch", "dvp", "dflags",
                 "loopcnt", "hit", "varsym", "observer")  # fmt: skip

    def __init__(
        self,
        vfs: Vfs,
        nch_start: NcHandle | None,
        nch_root: NcHandle | None,
        path: bytes,
        cred: Ucred,
        flags: int = 0,
    ) -> None:
        """Prepare a walk; nothing is held by the arguments.

        Args:
            vfs: the VFS.
            nch_start: where a relative path begins (None: at the root).
            nch_root: where ``/`` is for the caller (None: the kernel's root).
            path: the path, without NUL.
            cred: who walks.
            flags: NLC.*
        """
        self.vfs = vfs
        self.root = nch_root if nch_root is not None else vfs.mounts.rootnch
        self.start = nch_start if nch_start is not None else self.root
        self.path = path
        self.cred = cred
        self.flags = flags
        self.nch: NcHandle | None = None
        self.dvp: Vnode | None = None
        self.dflags = 0
        self.loopcnt = 0
        self.hit = True
        self.varsym: Callable[[bytes], bytes] | None = None
        self.observer: Callable[[NlookupStep], None] | None = None

    @property
    def found(self) -> NcHandle:
        """The place found. Panics (KError EINVAL) when there is none."""
        if self.nch is None:
            raise KError(EINVAL)
        return self.nch

    @property
    def vp(self) -> Vnode | None:
        """The vnode found, borrowed; None when the name does not exist."""
        return self.nch.ncp.vp if self.nch is not None else None

    def done(self) -> None:
        """Let go of the answer. Counterpart: nlookup_done."""
        if self.dvp is not None:
            self.dvp.rele()
            self.dvp = None
        if self.nch is not None:
            nch, self.nch = self.nch, None
            self.vfs.cache.drop_nch(nch)

    def move(self, nch: NcHandle) -> None:
        """Stand on another place: hold it, let go of the last one."""
        cache = self.vfs.cache
        cache.hold(nch)
        if self.nch is not None:
            cache.drop_nch(self.nch)
        self.nch = nch

    def __enter__(self) -> NlookupData:
        return self

    def __exit__(self, *exc: object) -> None:
        self.done()


def nlookup(nd: NlookupData) -> NcHandle:
    """Walk ``nd.path``. Counterpart: nlookup.

    Returns:
        The place found, held by ``nd`` until `NlookupData.done`.

    Raises:
        KError: ENOENT, ENOTDIR, EACCES, ELOOP, ENAMETOOLONG, EEXIST, EPERM, EROFS, EISDIR,
            EINVAL, ENOTEMPTY, or an error of a file system.
        Block: a file system must wait; call again after that.
    """
    nd.done()
    nd.hit = True
    nd.loopcnt = 0
    nd.dflags = 0
    path = nd.path
    if not path:
        raise KError(ENOENT)
    if len(path) >= MAXPATHLEN:
        raise KError(ENAMETOOLONG)
    try:
        nd.move(nd.start)
        observer = nd.observer
        while path:
            path = _step(nd, path) if observer is None else observed(nd, _step, path, observer)
    except BaseException:
        nd.done()
        raise
    finally:
        if nd.hit:
            nd.vfs.cache.longhits += 1
        else:
            nd.vfs.cache.longmiss += 1
    nd.vfs.vnodes.userexit(nd.vp)
    return nd.found


def _step(nd: NlookupData, path: bytes) -> bytes:
    """Walk one component; the rest of the path, which starts with a slash or is empty."""
    if path[:1] == b"/":
        return _start_at_root(nd, path)
    name, slash, rest = path.partition(b"/")
    rest = slash + rest
    last = not rest.strip(b"/")
    here = nd.found
    dflags = _search(nd, here, last)
    if len(name) > NAME_MAX:
        raise KError(ENAMETOOLONG)
    if name in _DIRNAMES:
        nch = _dots(nd, here, name)
        if last:
            dflags = _dir_flags(nd, nch)
    else:
        nch = here
    ncp, error = _enter(nd, nch, name)
    try:
        if last:
            _early(nd, NcHandle(ncp, nch.mount), name, error, dflags)
        elif error:
            raise KError(error)
        if ncp.flags & NCF.ISSYMLINK and (rest or nd.flags & NLC.FOLLOW):
            return _readsymlink(nd, NcHandle(ncp, nch.mount), rest)
        return _arrive(nd, NcHandle(ncp, nch.mount), rest, last, dflags)
    finally:
        nd.vfs.cache.drop(ncp)


def _start_at_root(nd: NlookupData, path: bytes) -> bytes:
    """A slash in front: continue at the caller's root."""
    rest = path.lstrip(b"/")
    nd.move(nd.root)
    ncp, mount = nd.root
    if ncp.flags & NCF.UNRESOLVED:
        nd.vfs.cache.resolve(ncp, mount, nd.cred)
    if not rest:
        if nd.flags & NLC.REFDVP:
            raise KError(EEXIST if nd.flags & NLC.CREATE else EACCES)
        if nd.flags & NLC.ALLCHKS and not nd.flags & NLC.HOSTCHECKED:
            naccess(nd.vfs, ncp, mount, nd.flags & ~NLC.MODIFYING_MASK, nd.cred)
    return rest


def _search(nd: NlookupData, here: NcHandle, last: bool) -> int:
    """Check that the directory may be searched; its special flags if they matter."""
    ncp, mount = here
    if ncp.flags & NCF.UNRESOLVED:
        nd.hit = False
        if nd.vfs.cache.resolve(ncp, mount, nd.cred):
            raise KError(ENOENT)
    if not ncp.flags & NCF.ISDIR and ncp.vp is not None:
        raise KError(ENOTDIR)
    if nd.flags & NLC.HOSTCHECKED:
        return 0
    want = last and bool(nd.flags & (NLC.MODIFYING_MASK | NLC.HLINK))
    return naccess(nd.vfs, ncp, mount, NLC.EXEC, nd.cred, want)


def _dots(nd: NlookupData, here: NcHandle, name: bytes) -> NcHandle:
    """The place that ``.`` or ``..`` means, over mount points and not over the caller's root."""
    if name != b".." or here == nd.root:
        return here
    ncp, mount = here
    while ncp is mount.rootncp:
        if mount.ncmounton is None:
            return nd.root
        ncp, mount = mount.ncmounton
        if ncp is nd.root.ncp and mount is nd.root.mount:
            return nd.root
    if ncp.parent is None:
        raise KError(ENOENT)
    return NcHandle(ncp.parent, mount)


def _dir_flags(nd: NlookupData, nch: NcHandle) -> int:
    """The special flags of the directory in which ``.`` or ``..`` stands."""
    par = nch.ncp.parent
    if par is None or nd.flags & NLC.HOSTCHECKED or par.vp is None:
        return 0
    return naccess(nd.vfs, par, nch.mount, 0, nd.cred, True)


def _enter(nd: NlookupData, nch: NcHandle, name: bytes) -> tuple[NamecacheEntry, int]:
    """The entry of ``name`` in ``nch``, held and resolved, and 0 or ENOENT."""
    cache = nd.vfs.cache
    ncp = cache.ref(nch.ncp) if name in _DIRNAMES else cache.nlookup(nch.ncp, name)
    try:
        if ncp.flags & NCF.UNRESOLVED:
            nd.hit = False
            error = cache.resolve(ncp, nch.mount, nd.cred)
        else:
            error = ncp.error
            vp = ncp.vp
            if vp is None:
                cache.touch_negative(ncp)
            else:
                cache.goodhits += 1
                if vp.act < VACT_MAX:
                    vp.act += VACT_INC
    except BaseException:
        cache.drop(ncp)
        raise
    return ncp, error


def _early(nd: NlookupData, nch: NcHandle, name: bytes, error: int, dflags: int) -> None:
    """What the last component may not be."""
    flags = nd.flags
    if error:
        if error != ENOENT or not flags & (NLC.CREATE | NLC.RENAME_DST):
            raise KError(error)
        if not flags & NLC.HOSTCHECKED:
            naccess(nd.vfs, nch.ncp, nch.mount, flags | dflags, nd.cred)
    elif name in _DIRNAMES and flags & NLC.MODIFYING_MASK:
        if flags & NLC.CREATE:
            raise KError(EEXIST)
        if flags & NLC.DELETE:
            raise KError(ENOTEMPTY if name == b".." else EINVAL)
        raise KError(EINVAL)


def _readsymlink(nd: NlookupData, nch: NcHandle, rest: bytes) -> bytes:
    """The target of a link with the rest of the path, checked. Counterpart: nreadsymlink."""
    nd.loopcnt += 1
    if nd.loopcnt > MAXSYMLINKS:
        raise KError(ELOOP)
    vp = nch.ncp.vp
    if vp is None:
        raise KError(ENOENT)
    below = vp.mount.flag if vp.mount is not None else 0
    if (below | nch.mount.flag) & MNT.NOSYMFOLLOW or nd.flags & NLC.NOSOFTLINKTRAV:
        raise KError(ELOOP)
    target = bytes(vp.ops.use.vop_readlink(vp, nd.cred))
    if nd.varsym is not None and nd.vfs.varsym_enable:
        target = nd.varsym(target)
    if not target:
        raise KError(ENOENT)
    if len(target) + len(rest) >= MAXPATHLEN:
        raise KError(ENAMETOOLONG)
    return target + rest


def _arrive(nd: NlookupData, nch: NcHandle, rest: bytes, last: bool, dflags: int) -> bytes:
    """Step onto the component, over what is mounted there; the path that is left."""
    if nch.ncp.flags & NCF.ISMOUNTPT and not nd.flags & NLC.NOCROSSMOUNT:
        nch = cross_mount(nd.vfs, nch, nd.cred)
    ncp = nch.ncp
    to_be_made = last and ncp.vp is None and nd.flags & NLC.WILLBEDIR
    if rest and not ncp.flags & NCF.ISDIR and not to_be_made:
        raise KError(ENOENT if ncp.vp is None and last else ENOTDIR)
    if last:
        if ncp.vp is not None and nd.flags & NLC.ALLCHKS and not nd.flags & NLC.HOSTCHECKED:
            naccess(nd.vfs, ncp, nch.mount, _final_flags(nd, nch) | dflags, nd.cred)
        if nd.flags & NLC.REFDVP:
            _refdvp(nd, ncp)
        nd.dflags = dflags
        rest = b""
    nd.move(nch)
    return rest.lstrip(b"/")


def _final_flags(nd: NlookupData, nch: NcHandle) -> int:
    """The checks for the last component; the root of a mount has no directory to check."""
    if nch.ncp.parent is None:
        return nd.flags & ~NLC.MODIFYING_MASK
    return nd.flags


def _refdvp(nd: NlookupData, ncp: NamecacheEntry) -> None:
    """Reference the directory vnode for whoever is going to change it."""
    par = ncp.parent
    if par is not None and par.vp is not None:
        nd.dvp = par.vp.ref()


def cross_mount(vfs: Vfs, nch: NcHandle, cred: Ucred) -> NcHandle:
    """The root of what is mounted at ``nch`` (and on that, and so on), resolved; borrowed.

    Raises:
        KError: an error of the mounted file system.
    """
    while nch.ncp.flags & NCF.ISMOUNTPT:
        mount = vfs.cache.findmount(nch)
        if mount is None or mount.kern_flag & MNTK.UNMOUNT:
            break
        nch = NcHandle(mount.rootncp, mount)
        if nch.ncp.flags & NCF.UNRESOLVED:
            vfs.cache.resolve(nch.ncp, mount, cred)
    return nch


def lookup1_cached(cache: NameCache, dncp: NamecacheEntry, name: bytes) -> NamecacheEntry | None:
    """What the namecache alone can say: the entry, borrowed, whose ``vp`` is None for no such name.

    None when it cannot say: not there, unresolved, timed, or something is mounted on it. Neither
    raises nor needs a thread.
    """
    kids = dncp.children
    ncp = kids.get(name) if kids is not None else None
    if ncp is None or ncp.flags & NCF.SLOW:
        return None
    vp = ncp.vp
    if vp is not None:
        cache.goodhits += 1
        if vp.act < VACT_MAX:
            vp.act += VACT_INC
        return ncp
    return ncp if cache.touch_negative(ncp) else None


def lookup1(
    vfs: Vfs, dnch: NcHandle, name: bytes, cred: Ucred, chk: bool = False
) -> NcHandle | None:
    """Look one name up in a directory: the fast way for callers who walk paths themselves.

    Mounts are crossed, links are not followed, ``.`` and ``..`` work. With ``chk`` the directory
    must grant search permission.

    Returns:
        The place, borrowed; None when the name does not exist.

    Raises:
        KError: ENOTDIR, ENOENT (the directory is gone), ENAMETOOLONG, EACCES, or an error of the
            file system.
        Block: the file system must wait.
    """
    if not chk and (ncp := lookup1_cached(vfs.cache, dnch[0], name)) is not None:
        return NcHandle(ncp, dnch[1]) if ncp.vp is not None else None
    return _lookup1_slow(vfs, dnch, name, cred, chk)


def _lookup1_slow(vfs: Vfs, dnch: NcHandle, name: bytes, cred: Ucred, chk: bool) -> NcHandle | None:
    """`lookup1` where the cache has no plain answer."""
    dncp, mount = dnch
    cache = vfs.cache
    if dncp.flags & NCF.UNRESOLVED and cache.resolve(dncp, mount, cred):
        raise KError(ENOENT)
    if not dncp.flags & NCF.ISDIR:
        raise KError(ENOTDIR)
    if chk:
        naccess(vfs, dncp, mount, NLC.EXEC, cred)
    if len(name) > NAME_MAX:
        raise KError(ENAMETOOLONG)
    if name in _DIRNAMES:
        return _lookup1_dots(vfs, dnch, name)
    ncp = cache.nlookup(dncp, name)
    try:
        if ncp.flags & NCF.UNRESOLVED:
            error = cache.resolve(ncp, mount, cred)
            vfs.vnodes.userexit(ncp.vp)
        else:
            error = ncp.error
            cache.goodhits += not error
            cache.neghits += bool(error)
        if error:
            return None
        return _crossed(vfs, ncp, mount, cred)
    finally:
        cache.drop(ncp)


def _crossed(vfs: Vfs, ncp: NamecacheEntry, mount: Mount, cred: Ucred) -> NcHandle:
    """The place, or the root of what is mounted on it."""
    nch = NcHandle(ncp, mount)
    return cross_mount(vfs, nch, cred) if ncp.flags & NCF.ISMOUNTPT else nch


def _lookup1_dots(vfs: Vfs, dnch: NcHandle, name: bytes) -> NcHandle:
    """``.`` and ``..`` of a directory, over mount points."""
    if name != b"..":
        return dnch
    ncp, mount = dnch
    while ncp is mount.rootncp:
        if mount.ncmounton is None:
            return mount.ncmountpt
        ncp, mount = mount.ncmounton
    if ncp.parent is None:
        raise KError(ENOENT)
    return NcHandle(ncp.parent, mount)
