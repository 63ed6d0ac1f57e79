"""Open files: one object for each open(2), shared by everything that was duplicated from it.

A `File` holds its vnode (a reference and the open and write counts), its place in the name space
(so the path of an open file can be told and follows a rename), the mode it was opened with, the
offset, and whatever the file system attached to this open.

Counterpart: struct file (sys/file.h), vn_close and vn_closefile (kern/vfs_vnops.c).
Differs from DragonFly: only files with a vnode are of this class; a device's or a pipe's operations
    are reached through its vnode.
Token/lock order: none.
Invariants: refs > 0 while open; the counts it added to the vnode are taken back exactly once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dfuser.libkern.errno import EBADF, KError, panic
from dfuser.libkern.fcntl import FREAD, FWRITE

if TYPE_CHECKING:
    from dfuser.libkern.ucred import Ucred

    from .namecache import NcHandle
    from .vfs import Vfs
    from .vnode import Vnode


class File:
    """One open file. Counterpart: struct file (sys/file.h)."""

    __slots__ = ("vfs", "nch", "vp", "flags", "offset", "fdata", "refs", "cred")

    def __init__(self, vfs: Vfs, nch: NcHandle, vp: Vnode, flags: int, cred: Ucred) -> None:
        """Made by `vn_open` only, which has counted the open."""
        self.vfs = vfs
        self.nch: NcHandle = nch
        self.vp: Vnode = vp
        #: FREAD, FWRITE and O_* (see libkern.fcntl.FMASK).
        self.flags = flags
        self.offset = 0
        self.fdata: Any = None
        self.refs = 1
        self.cred = cred

    def ref(self) -> File:
        """One more descriptor refers to this open. Counterpart: fhold."""
        self.refs += 1
        return self

    def drop(self) -> None:
        """A descriptor is gone; the last one closes. Counterpart: fdrop."""
        if self.refs <= 0:
            panic("fdrop of a closed file")
        self.refs -= 1
        if not self.refs:
            self._close()

    def _close(self) -> None:
        """Take the counts back, tell the file system, let the vnode and the name go."""
        vp = self.vp
        writing = self.flags & FWRITE
        if writing:
            vp.writecount -= 1
        vp.opencount -= 1
        fdata, self.fdata = self.fdata, None
        try:
            vp.ops.use.vop_close(vp, self.flags, fdata)
        finally:
            self.vfs.cache.drop_nch(self.nch)
            vp.rele()

    def want(self, mode: int) -> Vnode:
        """The vnode, if the file is open for ``mode`` (FREAD, FWRITE).

        Raises:
            KError: EBADF, it is not.
        """
        if self.refs <= 0 or self.flags & mode != mode:
            raise KError(EBADF)
        return self.vp

    def __repr__(self) -> str:
        mode = ("r" if self.flags & FREAD else "") + ("w" if self.flags & FWRITE else "")
        return f"<File {mode} ino={self.vp.ino} refs={self.refs}>"
