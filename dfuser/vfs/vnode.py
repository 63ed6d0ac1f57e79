"""Vnodes: what the kernel knows about a file that is in use, and how long it stays in memory.

A vnode is the kernel's handle on one file of one mounted file system. The file system keeps its
own node behind it (``data``); names point at it through the namecache; open files, current
directories and mount points hold references on it. A vnode without references is not thrown away:
somebody will probably ask for the file again. `kern.maxvnodes` says how many may be in memory.

**States.** ``CACHED`` (0) is a vnode that is being made. ``ACTIVE`` is on the active list, with or
without references; active without references counts as cached. ``INACTIVE`` has been told so
(``vop_inactive``, exactly once a deactivation) and may be taken. ``DYING`` is gone. The way::

    getnewvnode -> ACTIVE --rele of the last reference--> ACTIVE (cached; nothing is called)
                          --the same with FINALIZE------> vop_inactive -> INACTIVE
    INACTIVE --vget/ref--> ACTIVE          INACTIVE --reclaim--> vop_reclaim -> DYING

FINALIZE is set when the last name of a file is removed, and by the scan that looks for vnodes to
free. So a plain close costs nothing, and an unlinked file goes the moment its last user goes.

**References.** ``refcnt`` keeps the vnode active. ``auxrefs`` (vhold) only keep it from being
freed: one for every namecache entry that points at it, one more for each such entry that has
children. Reclaim needs no references and ``auxrefs`` equal to the number of entries, so a
directory with cached children stays.

The transitions are in `vnodetable`; which vnodes must go when there are too many, in `vnlru`.

Counterpart: struct vnode (sys/vnode.h).
Differs from DragonFly: one pair of lists, not one a CPU; REF flags live in ``flag`` instead of the
    high bits of the count; ``ref`` on an inactive vnode reactivates it (vref and vget are one);
    a reclaimed vnode's memory is returned at once instead of being reused.
Token/lock order: none; everything here runs to completion.
Invariants: numvnodes == activevnodes + inactivevnodes; cachedvnodes is the number of active
    vnodes with no reference; a RECLAIMED vnode is in no namecache entry and on no mount.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from dfuser.libkern.klist import Klist

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfuser.libkern.stat import VType

    from .bufqueue import VnodeBufs
    from .mount import Mount
    from .namecache import NamecacheEntry
    from .vnodetable import VnodeTable
    from .vop import OpsCell

#: Activity of a vnode. Counterpart: VACT_* (sys/vnode.h).
VACT_MAX: Final = 10
VACT_INC: Final = 2


class VState(IntEnum):
    """Life of a vnode. Counterpart: VS_* (sys/vnode.h)."""

    CACHED = 0
    ACTIVE = 1
    INACTIVE = 2
    DYING = 3


class V:
    """Flags of a vnode. Counterpart: V* flags and VREF_* (sys/vnode.h)."""

    ROOT: Final = 0x00000001
    """Root of its file system."""
    TEXT: Final = 0x00000002
    """A program being executed: writing is refused with ETXTBSY."""
    SYSTEM: Final = 0x00000004
    """Used by the kernel; vflush leaves it alone unless forced."""
    ISTTY: Final = 0x00000008
    MAYHAVELOCKS: Final = 0x00000020
    PFSROOT: Final = 0x00000040
    ISDIRTY: Final = 0x00000080
    """Inode data waits to be written."""
    OBJDIRTY: Final = 0x00000100
    """Pages of its object wait to be written."""
    ONWORKLST: Final = 0x00000200
    """Is in a bucket of the syncer."""
    RECLAIMED: Final = 0x00000400
    """The file system's node is gone; only dead operations are left."""
    INACTIVE: Final = 0x00000800
    """vop_inactive has been called for this deactivation."""
    TERMINATE: Final = 0x00001000
    """Being deactivated. Counterpart: VREF_TERMINATE."""
    FINALIZE: Final = 0x00002000
    """Deactivate on the last rele. Counterpart: VREF_FINALIZE."""
    LASTWRITETS: Final = 0x00004000
    LINKABLE: Final = 0x00008000
    """A file made without a name that may still be given its first. Counterpart: none (I_LINKABLE
    of the host)."""


class _Link:
    """A place in a list: vnodes carry their own links, the heads are bare ones."""

    __slots__ = ("v_next", "v_prev")

    v_next: Any
    v_prev: Any


class Vnode(_Link):
    """One file in use.

    Counterpart: struct vnode (sys/vnode.h). The ``v_`` prefix is dropped. The file system sets
    ``data``, ``ino`` and the flags; ``attr_cache`` and ``handle`` belong to whoever exports the
    file (the bridge); ``lockf`` and ``klist`` are None until first used.
    """

    __slots__ = (
        "type",
        "state",
        "flag",
        "refcnt",
        "auxrefs",
        "opencount",
        "writecount",
        "act",
        "mount",
        "ops",
        "table",
        "data",
        "ino",
        "firstname",
        "morenames",
        "object",
        "bufs",
        "attr_cache",
        "handle",
        "lock",
        "lockf",
        "klist",
    )

    def __init__(self, table: VnodeTable, mount: Mount | None, ops: OpsCell, vtype: VType) -> None:
        self.type = vtype
        self.state = VState.CACHED
        self.flag = 0
        self.refcnt = 1
        self.auxrefs = 0
        self.opencount = 0
        self.writecount = 0
        self.act = 0
        self.mount = mount
        self.ops = ops
        self.table = table
        self.data: Any = None
        self.ino = 0
        #: The entry that points here, and the others if there are several (hard links): a
        #: dictionary for its order and its quick removal.
        self.firstname: NamecacheEntry | None = None
        self.morenames: dict[NamecacheEntry, None] | None = None
        self.object: Any = None
        #: Its buffers and the transfers under way, made by the buffer cache when first needed.
        self.bufs: VnodeBufs | None = None
        self.attr_cache: Any = None
        self.handle: Any = None
        self.lock: Any = None
        self.lockf: Any = None
        self.klist: Klist | None = None

    def ref(self) -> Vnode:
        """Take a reference; an inactive vnode becomes active again. Returns the vnode.

        Counterpart: vref, vget. Panics on a vnode that has been freed.
        """
        count = self.refcnt
        self.refcnt = count + 1
        if not count:
            self.table.first_ref(self)
        return self

    def rele(self) -> None:
        """Give a reference back; the last one deactivates if FINALIZE is set.

        Counterpart: vrele.
        """
        count = self.refcnt - 1
        if count <= 0:
            self.table.last_rele(self, count)
        else:
            self.refcnt = count

    def hold(self) -> None:
        """Keep the vnode from being freed (not from being deactivated). Counterpart: vhold."""
        self.auxrefs += 1

    def drop(self) -> None:
        """Undo `hold`; frees a reclaimed vnode that nothing else keeps. Counterpart: vdrop."""
        self.auxrefs -= 1
        if not self.auxrefs and not self.refcnt and self.flag & V.RECLAIMED:
            self.table.free_reclaimed(self)

    def set_finalize(self) -> None:
        """The file has no name left: the last rele must call vop_inactive at once."""
        self.flag |= V.FINALIZE

    def attr_changed(self) -> None:
        """Some attribute changed: whatever was packed from the attributes is void."""
        self.attr_cache = None

    def knote(self, hint: int) -> None:
        """Tell watchers (NOTE_WRITE ...). Counterpart: KNOTE on v_pollinfo."""
        if self.klist is not None:
            self.klist.knote(hint)

    def get_klist(self) -> Klist:
        """The list of watchers, made when first asked for."""
        if self.klist is None:
            self.klist = Klist()
        return self.klist

    def ncps(self) -> tuple[NamecacheEntry, ...]:
        """The namecache entries that point here. Counterpart: v_namecache."""
        nc = self.firstname
        if nc is None:
            return ()
        return (nc,) if self.morenames is None else (nc, *self.morenames)

    @property
    def namecache_count(self) -> int:
        """How many namecache entries point here. Counterpart: v_namecache_count."""
        if self.firstname is None:
            return 0
        return 1 if self.morenames is None else 1 + len(self.morenames)

    def add_ncp(self, ncp: NamecacheEntry) -> None:
        """An entry points here now. Called by the namecache."""
        if self.firstname is None:
            self.firstname = ncp
        elif self.morenames is None:
            self.morenames = {ncp: None}
        else:
            self.morenames[ncp] = None

    def remove_ncp(self, ncp: NamecacheEntry) -> None:
        """An entry points here no longer. Called by the namecache."""
        more = self.morenames
        if more is None:
            self.firstname = None
            return
        if self.firstname is ncp:
            self.firstname, _ = more.popitem()
        else:
            del more[ncp]
        if not more:
            self.morenames = None

    def __repr__(self) -> str:
        return (
            f"<Vnode {self.type.name} ino={self.ino} {self.state.name} ref={self.refcnt}"
            f" aux={self.auxrefs} flag={self.flag:#x}>"
        )


class VnodeList:
    """Vnodes linked through themselves, so that putting in and taking out cost the same."""

    __slots__ = ("head", "count")

    def __init__(self) -> None:
        self.head = _Link()
        self.head.v_next = self.head.v_prev = self.head
        self.count = 0

    def insert_tail(self, vp: Vnode) -> None:
        """Append."""
        head = self.head
        last = head.v_prev
        vp.v_next = head
        vp.v_prev = last
        last.v_next = head.v_prev = vp
        self.count += 1

    def insert_head(self, vp: Vnode) -> None:
        """Put in front."""
        head = self.head
        first = head.v_next
        vp.v_next = first
        vp.v_prev = head
        first.v_prev = head.v_next = vp
        self.count += 1

    def remove(self, vp: Vnode) -> None:
        """Take out; the vnode's links are cleared so that no cycle is left."""
        vp.v_prev.v_next = vp.v_next
        vp.v_next.v_prev = vp.v_prev
        vp.v_next = vp.v_prev = None
        self.count -= 1

    def first(self) -> Vnode | None:
        """The vnode in front, or None."""
        link = self.head.v_next
        return link if link is not self.head else None

    def __iter__(self) -> Iterator[Vnode]:
        link = self.head.v_next
        while link is not self.head:
            following = link.v_next
            yield link
            link = following if following is not None else self.head

    def dissolve(self) -> None:
        """Break all links, for a kernel that stops; who still holds a vnode may let go later."""
        for vp in list(self):
            self.remove(vp)
            vp.state = VState.DYING
        self.head.v_next = self.head.v_prev = None
