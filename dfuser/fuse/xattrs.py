"""Extended attributes and access control lists, as the host spells them.

``user.NAME`` is NAME in our user name space; every other name is kept as it is in the system one.
That a file has no attribute at all is remembered in its node, because programs and the host itself
ask for labels, capabilities and lists of every file they meet.

Counterpart: sys_extattr_* (sys/kern/vfs_syscalls.c).
Invariants: a node is marked bare only while its vnode has no attribute; see
`notify.Notifier.xattr_changed`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dfuser.libkern.acl import XATTR_ACCESS
from dfuser.libkern.errno import (
    ENOATTR,
    KError,
)
from dfuser.libkern.stat import S_ISGID
from dfuser.vfs import syscalls as kern
from dfuser.vfs.vattr import Vattr
from dfuser.vfs.vop import EXTATTR_NAMESPACE_SYSTEM, EXTATTR_NAMESPACE_USER

from .attr import VOLATILE
from .opsbase import ROOT_CRED, OperationsBase, bare

if TYPE_CHECKING:
    pass

_USER: Final = b"user."


class XattrOps(OperationsBase):
    """Set, get, list, remove."""

    @staticmethod
    def _xattr(name: bytes) -> tuple[int, bytes]:
        """Name space and name inside for a host attribute name."""
        if name.startswith(_USER):
            return EXTATTR_NAMESPACE_USER, name[len(_USER) :]
        return EXTATTR_NAMESPACE_SYSTEM, name

    def setxattr(
        self, ctx: Any, nodeid: int, name: bytes, value: bytes, flags: int = 0,
        *, kill_sgid: bool = False,
    ) -> None:  # fmt: skip
        """Set an attribute; ``flags`` are XATTR_CREATE and XATTR_REPLACE.

        For an access control list the host leaves it to us whether the set-group-id bit stays, and
        that depends on all groups of the caller; ``kill_sgid`` says that it has decided.
        """
        _, vp, nch = self._nch(nodeid)
        space, key = self._xattr(name)
        if name == XATTR_ACCESS and ctx.uid and not kill_sgid:
            cred = self.context.full_cred(ctx)
        else:
            cred = self.context.cred(ctx.uid, ctx.gid)
        kern.kern_setxattr(self.vfs, nch, space, key, value, flags, cred, chk=False)
        if kill_sgid:
            mode = vp.ops.use.vop_getattr(vp).mode or 0
            if mode & S_ISGID:
                kern.kern_setattr(self.vfs, nch, Vattr(mode=mode & ~S_ISGID), ROOT_CRED, chk=False)

    def getxattr(self, ctx: Any, nodeid: int, name: bytes) -> bytes:
        """The value of an attribute.

        The host asks for ``security.capability`` before writes, and programs for access lists and
        labels of every file. That a file has no attribute at all is remembered in its node until
        one of them changes.
        """
        node, vp, nch = self._nch(nodeid)
        if not node.plain and node.mount.coherence != VOLATILE:
            node.plain = bare(vp)
        if node.plain:
            raise KError(ENOATTR)
        space, key = self._xattr(name)
        cred = self.context.cred(ctx.uid, ctx.gid)
        return kern.kern_getxattr(self.vfs, nch, space, key, cred, chk=False)

    def listxattr(self, ctx: Any, nodeid: int) -> list[bytes]:
        """The names of all attributes, as the host spells them."""
        _, _, nch = self._nch(nodeid)
        cred = self.context.cred(ctx.uid, ctx.gid)
        user = kern.kern_listxattr(self.vfs, nch, EXTATTR_NAMESPACE_USER, cred, chk=False)
        system = kern.kern_listxattr(self.vfs, nch, EXTATTR_NAMESPACE_SYSTEM, cred, chk=False)
        return [_USER + name for name in user] + list(system)

    def removexattr(self, ctx: Any, nodeid: int, name: bytes) -> None:
        """Remove an attribute."""
        _, _, nch = self._nch(nodeid)
        space, key = self._xattr(name)
        cred = self.context.cred(ctx.uid, ctx.gid)
        kern.kern_removexattr(self.vfs, nch, space, key, cred, chk=False)
