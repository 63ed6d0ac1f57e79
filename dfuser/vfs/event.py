"""Events of vnodes: who is told that a file was written, renamed or removed.

A watcher hangs a `VnodeKnote` on a vnode's list; file systems call `vn_knote` after each
change with a hint that says what happened. Three filters exist:

========== =====================================================================
VNODE      collects the hints asked for: NOTE_DELETE, WRITE, EXTEND, ATTRIB,
           LINK, RENAME, REVOKE
READ       ready while the reader's offset is not at the end of the file; ``data``
           is the number of bytes left, negative when the file became shorter
WRITE      always ready
========== =====================================================================

A revoked vnode ends every watch with EV_EOF.

Counterpart: filt_tmpfsread, filt_tmpfswrite, filt_tmpfsvnode and their attach and detach
    functions (vfs/tmpfs/tmpfs_vnops.c), which every file system there repeats; KNOTE on
    v_pollinfo.vpi_kqinfo (sys/vnode.h).
Differs from DragonFly: one set of filters for all file systems; the list of a vnode is
    made with its first watcher.
Token/lock order: none; a note never suspends.
Invariants: a vnode's list is None or a `Klist`; a note is on at most one vnode's list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from dfuser.libkern.errno import EOPNOTSUPP, KError
from dfuser.libkern.klist import (
    EV_EOF,
    EV_NODATA,
    EV_ONESHOT,
    EVFILT_READ,
    EVFILT_VNODE,
    EVFILT_WRITE,
    NOTE_ATTRIB,
    NOTE_DELETE,
    NOTE_EXTEND,
    NOTE_LINK,
    NOTE_OLDAPI,
    NOTE_RENAME,
    NOTE_REVOKE,
    NOTE_WRITE,
    Klist,
    Knote,
)

if TYPE_CHECKING:
    from .vnode import Vnode

#: Every hint a file system gives.
NOTE_VNODE_ALL: Final = (
    NOTE_DELETE | NOTE_WRITE | NOTE_EXTEND | NOTE_ATTRIB | NOTE_LINK | NOTE_RENAME | NOTE_REVOKE
)


def vn_knote(vp: Vnode, hint: int) -> None:
    """Tell the watchers of ``vp`` what happened. Costs one test when there are none.

    Counterpart: KNOTE(&vp->v_pollinfo.vpi_kqinfo.ki_note, hint).
    """
    klist = vp.klist
    if klist:
        klist.knote(hint)


def vn_kqfilter(vp: Vnode, knote: Knote) -> None:
    """Hang a note on ``vp``, for use as a file system's vop_kqfilter.

    Raises:
        KError: EOPNOTSUPP, the note's filter does not apply to a file.
    """
    if knote.filter not in (EVFILT_READ, EVFILT_WRITE, EVFILT_VNODE):
        raise KError(EOPNOTSUPP)
    if vp.klist is None:
        vp.klist = Klist()
    vp.klist.insert(knote)


class VnodeKnote:
    """A watch on one vnode.

    ``fflags`` collects what happened, ``data`` and ``flags`` are those of the kevent that
    will be delivered. ``offset`` tells the reader's position (EVFILT_READ).

    Counterpart: struct knote with tmpfsread_filtops and its sisters.
    """

    __slots__ = ("_activate", "_offset", "data", "fflags", "filter", "flags", "sfflags", "vp")

    def __init__(
        self,
        vp: Vnode,
        filter: int,  # noqa: A002 - DragonFly's kn_filter
        sfflags: int,
        activate: Callable[[VnodeKnote], None],
        offset: Callable[[], int] | None = None,
    ) -> None:
        self.vp = vp
        self.filter = filter
        self.sfflags = sfflags
        self.fflags = 0
        self.flags = 0
        self.data = 0
        self._activate = activate
        self._offset = offset

    def attach(self) -> None:
        """Start watching, through the file system's vop_kqfilter."""
        self.vp.ops.use.vop_kqfilter(self.vp, self)

    def detach(self) -> None:
        """Stop watching; nothing happens when it had ended already."""
        if self.vp.klist is not None:
            self.vp.klist.remove(self)

    def activate(self) -> None:
        """Queue the note for its watcher."""
        self._activate(self)

    def event(self, hint: int) -> bool:
        """Whether there is something to tell, after ``hint`` happened (0: just look)."""
        if hint == NOTE_REVOKE:
            self.flags |= EV_EOF | EV_NODATA
            if self.filter == EVFILT_VNODE:
                self.fflags |= self.sfflags & hint
            else:
                self.flags |= EV_ONESHOT
            return True
        if self.filter == EVFILT_READ:
            size = self.vp.ops.use.vop_getattr(self.vp).size or 0
            self.data = size - (self._offset() if self._offset is not None else 0)
            return self.data != 0 or bool(self.sfflags & NOTE_OLDAPI)
        if self.filter == EVFILT_WRITE:
            return True
        self.fflags |= self.sfflags & hint
        return self.fflags != 0

    def take(self) -> int:
        """Give the hints collected since the last call and forget them (EV_CLEAR)."""
        fflags, self.fflags = self.fflags, 0
        return fflags
