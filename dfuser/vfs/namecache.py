"""One entry of the namecache, and the pair that names a place in the tree of mounts.

An entry stands for one name in one directory. It is *unresolved* (nobody has asked the file system
yet, or what was known is void), *positive* (``vp`` is what the name means) or *negative* (the file
system said that there is no such name). A directory's entry holds the entries below it.

The same file system can be seen at several places (null mounts). So a place is never an entry
alone but a pair of entry and mount, `NcHandle`.

Counterpart: struct namecache, struct nchandle, NCF_*, CINV_* (sys/namecache.h).
Differs from DragonFly: children hang in a dictionary of their parent instead of one hash table
    over all. ``refs`` counts holders only (handles, open files, directories of processes, mounts,
    and removed children that still are somebody's); the references that C keeps for linkage, for
    the vnode and for each child follow from the structure and are added by `nc_refs`.
Token/lock order: none.
Invariants: ``parent.children[name] is entry`` unless DESTROYED or the root of a mount;
    ``children`` is None, never an empty dictionary; ``vp`` is set exactly if the entry is positive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from dfuser.libkern.errno import ENOTCONN

if TYPE_CHECKING:
    from .mount import Mount
    from .vnode import Vnode


class NCF:
    """Flags of an entry. Counterpart: NCF_* (sys/namecache.h)."""

    NOTX: Final = 0x0001
    """No execute bit in the mode."""
    WHITEOUT: Final = 0x0002
    UNRESOLVED: Final = 0x0004
    ISMOUNTPT: Final = 0x0008
    """Something may be mounted here."""
    SF_NOCACHE: Final = 0x0010
    UF_CACHE: Final = 0x0020
    SF_PNOCACHE: Final = 0x0040
    UF_PCACHE: Final = 0x0080
    ISSYMLINK: Final = 0x0100
    ISDIR: Final = 0x0200
    DESTROYED: Final = 0x0400
    """The name is gone; the entry lives on for those who hold it."""
    DEFEREDZAP: Final = 0x0800
    WXOK: Final = 0x1000
    """Readable and searchable by everybody: path walks need not ask for attributes."""
    DUMMY: Final = 0x2000
    TIMED: Final = 0x4000
    """``timeout`` is set (a DragonFly entry compares nc_timeout with 0 instead)."""
    LOCKED: Final = 0x8000
    """Its resolution waits; others wait for that."""

    #: What a lookup must look at more closely.
    SLOW: Final = UNRESOLVED | ISMOUNTPT | TIMED | DESTROYED
    #: What is forgotten with the vnode.
    RESOLVED: Final = (
        NOTX | WHITEOUT | SF_NOCACHE | UF_CACHE | SF_PNOCACHE | UF_PCACHE | ISSYMLINK | ISDIR
        | WXOK | TIMED | DEFEREDZAP
    )  # fmt: skip


class CINV:
    """What `NameCache.inval` does. Counterpart: CINV_* (sys/namecache.h)."""

    DESTROY: Final = 0x0001
    CHILDREN: Final = 0x0004


class NamecacheEntry:
    """One name in one directory. Counterpart: struct namecache; the ``nc_`` prefix is dropped."""

    __slots__ = (
        "parent",
        "name",
        "vp",
        "flags",
        "error",
        "refs",
        "children",
        "generation",
        "ncgen",
        "timeout",
    )

    def __init__(self, parent: NamecacheEntry | None, name: bytes) -> None:
        self.parent = parent
        self.name = name
        self.vp: Vnode | None = None
        self.flags = NCF.UNRESOLVED
        self.error = ENOTCONN
        self.refs = 0
        self.children: dict[bytes, NamecacheEntry] | None = None
        self.generation = 0
        self.ncgen = 0
        self.timeout = 0

    @property
    def negative(self) -> bool:
        """Whether the file system has said that this name does not exist."""
        return self.vp is None and not self.flags & NCF.UNRESOLVED

    @property
    def nc_refs(self) -> int:
        """The count a DragonFly entry would show: holders, linkage, vnode or list, children."""
        linked = self.parent is not None and not self.flags & NCF.DESTROYED
        resolved = not self.flags & NCF.UNRESOLVED
        return self.refs + linked + resolved + len(self.children or ())

    def __repr__(self) -> str:
        state = "positive" if self.vp else "negative" if self.negative else "unresolved"
        return f"<ncp {self.name!r} {state} refs={self.refs} flags={self.flags:#x}>"


class NcHandle(NamedTuple):
    """A place in the name space. Counterpart: struct nchandle (sys/namecache.h).

    Handles that a function returns are *borrowed* unless it says otherwise: good until the caller
    suspends or calls the VFS again. To keep one: `NameCache.hold`, and later `NameCache.drop_nch`.
    """

    ncp: NamecacheEntry
    mount: Mount
