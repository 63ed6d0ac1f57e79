"""Extended attributes that a file system makes up: shown to everybody, changed by nobody.

A synthetic file says more about itself than stat(2) can carry: what device it is, which process.
The file system gives names and values of the moment (`OwnAttrs.extattrs`), without a name space;
they appear among the user's attributes, and a host may ask with or without its prefix ``user.``.

Counterpart: none.
Differs from DragonFly: an addition; synthetic file systems have no extended attributes there.
Token/lock order: none.
Invariants: nothing here changes anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfuser.libkern.errno import ENOATTR, EPERM, KError

from .vop import EXTATTR_NAMESPACE_USER, VnodeOps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dfuser.libkern.ucred import Ucred

    from .vnode import Vnode


class OwnAttrs(VnodeOps):
    """The four operations on extended attributes; derive and say what the attributes are."""

    __slots__ = ()

    def extattrs(self, vp: Vnode) -> Mapping[bytes, bytes]:
        """The attributes of a file. Raises KError ENOENT when what it shows is gone."""
        return {}

    def vop_getextattr(self, vp: Vnode, namespace: int, name: bytes, cred: Ucred) -> bytes:
        """A value, by its name with or without the prefix ``user.``. Raises KError ENOATTR."""
        value = self.extattrs(vp).get(name.removeprefix(b"user."))
        if namespace != EXTATTR_NAMESPACE_USER or value is None:
            raise KError(ENOATTR)
        return value

    def vop_setextattr(
        self, vp: Vnode, namespace: int, name: bytes, value: bytes, flags: int, cred: Ucred
    ) -> None:
        """EPERM: the attributes are the file's own."""
        raise KError(EPERM)

    def vop_rmextattr(self, vp: Vnode, namespace: int, name: bytes, cred: Ucred) -> None:
        """EPERM for an attribute that exists, else ENOATTR."""
        self.vop_getextattr(vp, namespace, name, cred)
        raise KError(EPERM)

    def vop_listextattr(self, vp: Vnode, namespace: int, cred: Ucred) -> Sequence[bytes]:
        """The names, without the prefix ``user.``."""
        return tuple(self.extattrs(vp)) if namespace == EXTATTR_NAMESPACE_USER else ()
