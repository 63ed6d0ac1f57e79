"""Operations on what is left of a vnode after its file system has gone.

A forced unmount, or a vgone for another reason, cuts a vnode off from its file while somebody
still has it open. Such a vnode answers every operation at once with an error, so that its users
fail cleanly instead of touching memory of a file system that no longer exists.

Counterpart: sys/vfs/deadfs/dead_vnops.c (dead_vnode_vops).
Differs from DragonFly: `vop_fsync` says EIO where the default there succeeds; the operations on
    names say EBADF where the compatibility shims end in ENOTDIR; terminals (whose dead reads
    return end of file) are not vnodes of this table.
Token/lock order: takes none.
Invariants: no operation changes anything; close, inactive and reclaim succeed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dfuser.dev.devsw import POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDNORM
from dfuser.libkern.errno import EBADF, EIO, ENXIO, KError

from .vop import Buffer, VnodeOps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dfuser.libkern.ucred import Ucred

    from .cache import NamecacheEntry
    from .vattr import Dirent, Vattr
    from .vnode import Vnode


class DeadOps(VnodeOps):
    """Answers of a dead vnode. Counterpart: dead_vnode_vops."""

    __slots__ = ()

    def vop_open(self, vp: Vnode, mode: int, cred: Ucred) -> Any:
        """ENXIO."""
        raise KError(ENXIO)

    def vop_access(self, vp: Vnode, mode: int, cred: Ucred) -> None:
        """EBADF."""
        raise KError(EBADF)

    def vop_getattr(self, vp: Vnode) -> Vattr:
        """EBADF."""
        raise KError(EBADF)

    def vop_setattr(self, vp: Vnode, vap: Vattr, cred: Ucred) -> None:
        """EBADF."""
        raise KError(EBADF)

    def vop_read(
        self, vp: Vnode, offset: int, size: int, ioflag: int, cred: Ucred, fdata: Any = None
    ) -> Buffer:
        """EIO."""
        raise KError(EIO)

    def vop_write(
        self, vp: Vnode, offset: int, data: Buffer, ioflag: int, cred: Ucred, fdata: Any = None
    ) -> int:
        """EIO."""
        raise KError(EIO)

    def vop_ioctl(
        self,
        vp: Vnode,
        command: int,
        data: Buffer,
        fflag: int,
        cred: Ucred,
        fdata: Any = None,
    ) -> bytes:
        """EBADF."""
        raise KError(EBADF)

    def vop_poll(self, vp: Vnode, events: int, cred: Ucred, fdata: Any = None) -> int:
        """Ready, so that a waiter comes and finds the error."""
        return events & (POLLIN | POLLOUT | POLLRDNORM) | POLLERR | POLLHUP

    def vop_kqfilter(self, vp: Vnode, knote: Any) -> None:
        """EBADF."""
        raise KError(EBADF)

    def vop_fsync(self, vp: Vnode, waitfor: int, cred: Ucred | None = None) -> None:
        """EIO: what was not written is lost, and fsync must say so."""
        raise KError(EIO)

    def vop_readdir(
        self, vp: Vnode, cookie: int, limit: int, cred: Ucred, plus: bool = False
    ) -> Sequence[Dirent]:
        """EBADF."""
        raise KError(EBADF)

    def vop_readlink(self, vp: Vnode, cred: Ucred) -> bytes:
        """EBADF."""
        raise KError(EBADF)

    def vop_pathconf(self, vp: Vnode, name: int) -> int:
        """EBADF."""
        raise KError(EBADF)

    def vop_advlock(self, vp: Vnode, owner: Any, op: int, fl: Any, flags: int) -> Any:
        """EBADF."""
        raise KError(EBADF)

    def vop_bmap(self, vp: Vnode, offset: int) -> tuple[int, int, int]:
        """EIO."""
        raise KError(EIO)

    def vop_allocate(self, vp: Vnode, offset: int, length: int, mode: int, cred: Ucred) -> None:
        """EBADF."""
        raise KError(EBADF)

    def vop_seek(self, vp: Vnode, offset: int, hole: bool) -> int:
        """EBADF."""
        raise KError(EBADF)

    def vop_copyrange(
        self, fvp: Vnode, foff: int, tvp: Vnode, toff: int, length: int, cred: Ucred
    ) -> int:
        """EBADF."""
        raise KError(EBADF)

    def vop_getextattr(self, vp: Vnode, namespace: int, name: bytes, cred: Ucred) -> bytes:
        """EBADF."""
        raise KError(EBADF)

    def vop_setextattr(
        self, vp: Vnode, namespace: int, name: bytes, value: bytes, flags: int, cred: Ucred
    ) -> None:
        """EBADF."""
        raise KError(EBADF)

    def vop_rmextattr(self, vp: Vnode, namespace: int, name: bytes, cred: Ucred) -> None:
        """EBADF."""
        raise KError(EBADF)

    def vop_listextattr(self, vp: Vnode, namespace: int, cred: Ucred) -> Sequence[bytes]:
        """EBADF."""
        raise KError(EBADF)

    def vop_nresolve(self, dvp: Vnode, ncp: NamecacheEntry, cred: Ucred) -> None:
        """EBADF."""
        raise KError(EBADF)

    def vop_nlookupdotdot(self, dvp: Vnode, cred: Ucred) -> Vnode:
        """EBADF."""
        raise KError(EBADF)

    def vop_ncreate(self, dvp: Vnode, ncp: NamecacheEntry, vap: Vattr, cred: Ucred) -> Vnode:
        """EBADF."""
        raise KError(EBADF)

    vop_nmkdir = vop_ncreate
    vop_nmknod = vop_ncreate

    def vop_ntmpfile(self, dvp: Vnode, vap: Vattr, cred: Ucred) -> Vnode:
        """EBADF."""
        raise KError(EBADF)

    def vop_nlink(self, dvp: Vnode, ncp: NamecacheEntry, vp: Vnode, cred: Ucred) -> None:
        """EBADF."""
        raise KError(EBADF)

    def vop_nsymlink(
        self, dvp: Vnode, ncp: NamecacheEntry, vap: Vattr, target: bytes, cred: Ucred
    ) -> Vnode:
        """EBADF."""
        raise KError(EBADF)

    def vop_nremove(self, dvp: Vnode, ncp: NamecacheEntry, cred: Ucred) -> None:
        """EBADF."""
        raise KError(EBADF)

    vop_nrmdir = vop_nremove

    def vop_nrename(
        self,
        fdvp: Vnode,
        fncp: NamecacheEntry,
        tdvp: Vnode,
        tncp: NamecacheEntry,
        cred: Ucred,
        flags: int = 0,
    ) -> None:
        """EBADF."""
        raise KError(EBADF)
