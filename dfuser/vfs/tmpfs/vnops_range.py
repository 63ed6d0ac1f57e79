"""Ranges of tmpfs files: reserving, punching, zeroing, looking for data, copying.

Three states of a page of a file are told apart: a **hole** takes no memory and reads as zero; a
**reserved** page takes memory, reads as zero and is still a hole for whoever looks for data, as on
the host's tmpfs; **data** has been written. What is reserved counts against the mount's limit at
once, so that a later write into it cannot fail for want of room::

    fallocate mode             what it leaves behind                            size
    0                          data as it was, holes reserved                   may grow
    KEEP_SIZE                  the same, also beyond the end                    stays
    PUNCH_HOLE | KEEP_SIZE     whole pages are holes, the edges zero            stays
    ZERO_RANGE                 whole pages reserved, the edges zero             may grow
    ZERO_RANGE | KEEP_SIZE     the same                                         stays

Pages reserved beyond the end go with the next truncation, also one to the same size.

A copy stays inside the VM objects: data goes from page to page without a buffer between, and holes
stay holes. Pages are never *shared* between two files: that needs copy-on-write, which a VM object
of a file does not have (shadow chains belong to the maps of processes), so a copy of data takes
memory of its own.

Counterpart: none in DragonFly's tmpfs; shmem_fallocate of the host for the rules.
Differs from DragonFly: an addition for the programs of the host. The host's tmpfs has no
    ZERO_RANGE (EOPNOTSUPP there); here it has the meaning it has on the host's other file systems.
Token/lock order: none; nothing here suspends.
Invariants: size of node and object agree; what the limit forbids is refused before the first page
    changes, except that a copy stops where the room ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfuser.libkern.errno import (
    EFBIG,
    EINVAL,
    EISDIR,
    ENODEV,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    EROFS,
    KError,
)
from dfuser.libkern.klist import NOTE_EXTEND, NOTE_WRITE
from dfuser.libkern.param import PAGE_MASK, PAGE_SHIFT
from dfuser.libkern.stat import APPEND, IMMUTABLE, VType
from dfuser.vfs.event import vn_knote
from dfuser.vfs.mountflags import MNT
from dfuser.vfs.vop import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
)

from .dir import TmpfsDir
from .node import TmpfsReg
from .vnops_file import NO_ATIME, SUGID, FileOps

if TYPE_CHECKING:
    from dfuser.libkern.ucred import Ucred
    from dfuser.vfs.vnode import Vnode
    from dfuser.vm.object import VmObject

_KINDS: Final = (0, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE)


class RangeOps(FileOps):
    """The operations on ranges of a file. See `vnops.TmpfsVnodeOps`."""

    __slots__ = ()

    def vop_allocate(self, vp: Vnode, offset: int, length: int, mode: int, cred: Ucred) -> None:
        """Reserve a range, make it a hole, or make it zero. All or nothing.

        Args:
            vp: a regular file.
            offset: first byte.
            length: number of bytes, at least 1.
            mode: one of the head of this file.
            cred: who asks; anybody but root loses set-id bits.

        Raises:
            KError: EINVAL, EFBIG, ENOSPC, EPERM, EROFS, EOPNOTSUPP for another mode (collapse,
                insert, unshare, punch without KEEP_SIZE), EISDIR, ENODEV for other kinds of file.
        """
        node = vp.data
        if not isinstance(node, TmpfsReg):
            raise KError(EISDIR if isinstance(node, TmpfsDir) else ENODEV)
        kind = mode & ~FALLOC_KEEP_SIZE
        if kind not in _KINDS or mode == FALLOC_PUNCH_HOLE:
            raise KError(EOPNOTSUPP)
        if offset < 0 or length <= 0:
            raise KError(EINVAL)
        end = offset + length
        if end > self.tm.limits.maxfilesize:
            raise KError(EFBIG)
        if self.tm.mp.flag & MNT.RDONLY:
            raise KError(EROFS)
        if node.flags & IMMUTABLE or (node.flags & APPEND and kind):
            raise KError(EPERM)
        size = node.size
        self._allocate(node, offset, end, kind, bool(mode & FALLOC_KEEP_SIZE))
        self._contents_changed(vp, node, node.size > size, cred)

    def _allocate(self, node: TmpfsReg, offset: int, end: int, kind: int, keep: bool) -> None:
        """Do what `vop_allocate` has validated."""
        tm = self.tm
        if kind == FALLOC_PUNCH_HOLE:
            if node.object is not None:
                tm.change_data(node.object, node.object.punch, offset, end - offset)
            return
        obj = tm.data_object(node)
        self._want_pages(obj, offset, end)
        tm.change_data(obj, obj.populate, offset, end - offset)
        if kind == FALLOC_ZERO_RANGE:
            obj.zero_range(offset, end - offset)
        if end > node.size and not keep:
            obj.truncate(end)
            node.size = end

    def _want_pages(self, obj: VmObject, offset: int, end: int) -> None:
        """Refuse a range that needs more pages than are left, without counting far."""
        pages = ((end + PAGE_MASK) >> PAGE_SHIFT) - (offset >> PAGE_SHIFT)
        free = self.tm.pages_free
        if pages > free + obj.resident_page_count or self.tm.room(obj, offset, end) < end:
            raise self.tm.no_space()

    def _contents_changed(self, vp: Vnode, node: TmpfsReg, grown: bool, cred: Ucred) -> None:
        """Times, set-id bits and watchers after a change of contents."""
        node.mtime = node.ctime = self.tm.now()
        if cred.uid:
            node.mode &= ~SUGID
        vp.attr_changed()
        vn_knote(vp, NOTE_WRITE | NOTE_EXTEND if grown else NOTE_WRITE)

    def vop_seek(self, vp: Vnode, offset: int, hole: bool) -> int:
        """Where data, or a hole, begins at or after ``offset``; exact to the page.

        The end of the file counts as a hole.

        Raises:
            KError: ENXIO, the offset is not inside the file or no data follows; EINVAL, another
                kind of file.
        """
        node = vp.data
        if type(node) is not TmpfsReg:
            raise KError(EINVAL)
        if offset < 0 or offset >= node.size or node.object is None:
            raise KError(ENXIO)
        return node.object.seek_hole(offset) if hole else node.object.seek_data(offset)

    def vop_copyrange(
        self, fvp: Vnode, foff: int, tvp: Vnode, toff: int, length: int, cred: Ucred
    ) -> int:
        """Copy from a file of any tmpfs of this kernel into one of this mount; see the head.

        Returns:
            Bytes copied, holes included; fewer than asked for at the end of the source, at the
            longest file the mount allows, and where the room ends.

        Raises:
            KError: EOPNOTSUPP, the source is no regular file of a tmpfs; EINVAL, overlap; EFBIG,
                EPERM, EROFS; ENOSPC, nothing could be copied.
        """
        source, node, tm = fvp.data, tvp.data, self.tm
        if type(source) is not TmpfsReg or type(node) is not TmpfsReg or fvp.type is VType.VBAD:
            raise KError(EOPNOTSUPP)
        if tm.mp.flag & MNT.RDONLY:
            raise KError(EROFS)
        if node.flags & IMMUTABLE or (node.flags & APPEND and toff != node.size):
            raise KError(EPERM)
        if toff >= tm.limits.maxfilesize:
            raise KError(EFBIG)
        length = min(length, source.size - foff, tm.limits.maxfilesize - toff)
        if length <= 0 or source.object is None:
            return 0
        if source is node and foff < toff + length and toff < foff + length:
            raise KError(EINVAL)
        size, obj = node.size, tm.data_object(node)
        done = self._copy(source.object, foff, obj, toff, length)
        if toff + done > obj.size:
            obj.truncate(toff + done)
        node.size = obj.size
        if fvp.mount is not None and not fvp.mount.flag & NO_ATIME:
            self.accessed(source)
        self._contents_changed(tvp, node, node.size > size, cred)
        return done

    def _copy(self, source: VmObject, foff: int, obj: VmObject, toff: int, length: int) -> int:
        """Copy piece by piece, as `vop_copyrange` has validated; an error ends it short.

        Raises:
            KError: ENOSPC, at the first piece.
        """
        tm, shift = self.tm, toff - foff
        pos, end = foff, foff + length
        while pos < end:
            data = min(_next_data(source, pos), end)
            if data > pos:
                tm.change_data(obj, obj.punch, pos + shift, data - pos)
                pos = data
                continue
            hole = min(source.seek_hole(pos), end)
            try:
                stop = tm.room(obj, pos + shift, hole + shift) - shift
                tm.change_data(obj, source.copy_range, pos, obj, pos + shift, stop - pos)
            except KError:
                if pos == foff:
                    raise
                break
            pos = stop
            if stop < hole:
                break
        return pos - foff


def _next_data(source: VmObject, pos: int) -> int:
    """Where data begins at or after a position inside the object; its size if there is none."""
    try:
        return source.seek_data(pos)
    except KError:
        return source.size
