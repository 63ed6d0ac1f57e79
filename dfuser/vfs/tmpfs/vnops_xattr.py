"""Extended attributes and access control lists of tmpfs files.

Attributes are pairs of name and value in a name space. In ``user`` only regular files and
directories can have them, under the name without its prefix; ``system`` holds what else the
host's programs keep with a file, under the full name (``trusted.*``, ``security.*``). Two
names of ``system`` are not stored but are a view of the file's access control lists
(`libkern.acl`): setting the access list changes the mode's bits, and a list that says no
more than a mode is kept as the mode. Any other name of ``system`` is EOPNOTSUPP.

The bytes of names and values count against the size of the mount.

Counterpart: vop_getextattr and its sisters (sys/extattr.h). DragonFly's tmpfs has none.
Differs from DragonFly: an addition for the programs of the host. Who may read and write
    attributes of ``user`` and ``system`` is checked by the caller, who knows whether the
    host has done it; the owner rule of the lists is checked here.
Token/lock order: none; nothing here suspends.
Invariants: `TmpfsMount.check`; a file's list of names fits `LIST_MAX`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfuser.libkern.acl import XATTR_ACCESS, XATTR_DEFAULT, Acl
from dfuser.libkern.errno import (
    E2BIG,
    EACCES,
    EEXIST,
    EINVAL,
    ENAMETOOLONG,
    ENOATTR,
    ENOSPC,
    EOPNOTSUPP,
    EPERM,
    EROFS,
    KError,
)
from dfuser.libkern.klist import NOTE_ATTRIB
from dfuser.libkern.param import NAME_MAX
from dfuser.libkern.stat import ACCESSPERMS, APPEND, IMMUTABLE, S_ISGID, VType
from dfuser.vfs.event import vn_knote
from dfuser.vfs.mountflags import MNT
from dfuser.vfs.vop import (
    EXTATTR_CREATE,
    EXTATTR_NAMESPACE_SYSTEM,
    EXTATTR_NAMESPACE_USER,
    EXTATTR_REPLACE,
)

from .dir import TmpfsDir
from .node import TmpfsNode, TmpfsReg
from .vnops_rename import RenameOps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dfuser.libkern.ucred import Ucred
    from dfuser.vfs.vnode import Vnode

VALUE_MAX: Final = 65_536
"""Longest value of an attribute, in bytes."""
LIST_MAX: Final = 65_536
"""Most bytes the names of one file may take as the host lists them."""
_LISTED: Final = 8
"""Bytes a listed name takes besides itself: the longest prefix in use, and a NUL."""

#: What names of ``system`` that are stored begin with.
_PREFIXES: Final = (b"trusted.", b"security.")

_ACLS: Final = (XATTR_ACCESS, XATTR_DEFAULT)


class XattrOps(RenameOps):
    """The operations on extended attributes. See `vnops.TmpfsVnodeOps`."""

    __slots__ = ()

    def vop_getextattr(self, vp: Vnode, namespace: int, name: bytes, cred: Ucred) -> bytes:
        """A value.

        Raises:
            KError: ENOATTR, there is none of that name; EOPNOTSUPP, nor can be.
        """
        node: TmpfsNode = vp.data
        if namespace == EXTATTR_NAMESPACE_SYSTEM and name in _ACLS:
            return self._getacl(node, name)
        self._known(namespace, name)
        if node.ext is None:
            raise KError(ENOATTR)
        value = node.ext.xattrs.get((namespace, name))
        if value is None:
            raise KError(ENOATTR)
        return value

    def vop_listextattr(self, vp: Vnode, namespace: int, cred: Ucred) -> Sequence[bytes]:
        """The names of one name space, in the order they were first set."""
        ext = vp.data.ext
        if ext is None:
            return ()
        names = [name for space, name in ext.xattrs if space == namespace]
        if namespace == EXTATTR_NAMESPACE_SYSTEM:
            names += [XATTR_ACCESS] if ext.acl is not None else []
            names += [XATTR_DEFAULT] if ext.default_acl is not None else []
        return names

    def vop_setextattr(
        self, vp: Vnode, namespace: int, name: bytes, value: bytes, flags: int, cred: Ucred
    ) -> None:
        """Set a value.

        Raises:
            KError: EEXIST (EXTATTR_CREATE), ENOATTR (EXTATTR_REPLACE), E2BIG, ENAMETOOLONG,
                ENOSPC, EPERM (kind of file, fixed file, not the owner), EROFS, EINVAL,
                EOPNOTSUPP (a name of ``system`` that means nothing here).
        """
        node: TmpfsNode = vp.data
        self._may_change(node, namespace, name)
        if namespace == EXTATTR_NAMESPACE_SYSTEM and name in _ACLS:
            exists = self._acl(node, name) is not None
            self._check_flags(exists, flags)
            self._setacl(vp, node, name, Acl.parse(bytes(value)), cred)
        else:
            self._set(node, (namespace, name), bytes(value), flags)
        self._changed(vp, node)

    def vop_rmextattr(self, vp: Vnode, namespace: int, name: bytes, cred: Ucred) -> None:
        """Remove an attribute, or an access control list.

        Raises:
            KError: ENOATTR, EPERM, EROFS.
        """
        node: TmpfsNode = vp.data
        self._may_change(node, namespace, name)
        if namespace == EXTATTR_NAMESPACE_SYSTEM and name in _ACLS:
            if self._acl(node, name) is None:
                raise KError(ENOATTR)
            self._setacl(vp, node, name, None, cred)
        else:
            ext = node.ext
            value = ext.xattrs.pop((namespace, name), None) if ext is not None else None
            if ext is None or value is None:
                raise KError(ENOATTR)
            ext.xattr_bytes -= len(name) + len(value)
            self.tm.ext_bytes -= len(name) + len(value)
            node.trim_ext()
        self._changed(vp, node)

    # --- attributes ------------------------------------------------------------------------

    def _may_change(self, node: TmpfsNode, namespace: int, name: bytes) -> None:
        """Refuse changes by mount, flags, name and kind of file."""
        if self.tm.mp.flag & MNT.RDONLY:
            raise KError(EROFS)
        if node.flags & (IMMUTABLE | APPEND):
            raise KError(EPERM)
        if not name:
            raise KError(EINVAL)
        if len(name) > NAME_MAX:
            raise KError(ENAMETOOLONG)
        self._known(namespace, name)
        plain = isinstance(node, TmpfsReg | TmpfsDir)
        if namespace == EXTATTR_NAMESPACE_USER and not plain:
            raise KError(EPERM)

    @staticmethod
    def _known(namespace: int, name: bytes) -> None:
        """Refuse names of ``system`` that mean nothing here (EOPNOTSUPP)."""
        known = name in _ACLS or name.startswith(_PREFIXES)
        if namespace == EXTATTR_NAMESPACE_SYSTEM and not known:
            raise KError(EOPNOTSUPP)

    @staticmethod
    def _check_flags(exists: bool, flags: int) -> None:
        """Apply the create and replace rules."""
        if exists and flags & EXTATTR_CREATE:
            raise KError(EEXIST)
        if not exists and flags & EXTATTR_REPLACE:
            raise KError(ENOATTR)

    def _set(self, node: TmpfsNode, key: tuple[int, bytes], value: bytes, flags: int) -> None:
        """Store a value, all or nothing."""
        if len(value) > VALUE_MAX:
            raise KError(E2BIG)
        held = node.ext.xattrs if node.ext is not None else {}
        old = held.get(key)
        self._check_flags(old is not None, flags)
        if old is None:
            diff = len(key[1]) + len(value)
            listed = sum(len(name) + _LISTED for _, name in held)
            if listed + len(key[1]) + _LISTED > LIST_MAX:
                raise KError(ENOSPC)
        else:
            diff = len(value) - len(old)
        self.tm.want_ext(diff)
        ext = node.extend()
        ext.xattrs[key] = value
        ext.xattr_bytes += diff
        self.tm.ext_bytes += diff

    def _changed(self, vp: Vnode, node: TmpfsNode) -> None:
        """Note the change of a file's attributes."""
        node.ctime = self.tm.now()
        vp.attr_changed()
        vn_knote(vp, NOTE_ATTRIB)

    # --- access control lists ----------------------------------------------------------------

    @staticmethod
    def _acl(node: TmpfsNode, name: bytes) -> Acl | None:
        """The stored list of that name, or None."""
        if node.ext is None:
            return None
        return node.ext.acl if name == XATTR_ACCESS else node.ext.default_acl

    def _getacl(self, node: TmpfsNode, name: bytes) -> bytes:
        """The value of a list.

        Raises:
            KError: ENOATTR, there is none; EOPNOTSUPP, a symbolic link cannot have one.
        """
        if node.type is VType.VLNK:
            raise KError(EOPNOTSUPP)
        acl = self._acl(node, name)
        if acl is None:
            raise KError(ENOATTR)
        return acl.pack()

    def _setacl(
        self, vp: Vnode, node: TmpfsNode, name: bytes, acl: Acl | None, cred: Ucred
    ) -> None:
        """Store, replace or remove a list; the access list and the mode move together.

        Raises:
            KError: EPERM, not the owner; EACCES, a default list for something that is not a
                directory; EOPNOTSUPP, a symbolic link.
        """
        if node.type is VType.VLNK:
            raise KError(EOPNOTSUPP)
        if cred.uid not in (0, node.uid):
            raise KError(EPERM)
        if name == XATTR_DEFAULT:
            if not isinstance(node, TmpfsDir):
                if acl is None:
                    return
                raise KError(EACCES)
            node.extend().default_acl = acl
        else:
            if acl is not None:
                node.mode = node.mode & ~ACCESSPERMS | acl.mode_bits
                if cred.uid and not cred.groupmember(node.gid):
                    node.mode &= ~S_ISGID
            node.extend().acl = None if acl is None or acl.is_minimal else acl
            self.tm.vfs.cache.inval_wxok(vp)
        node.trim_ext()
