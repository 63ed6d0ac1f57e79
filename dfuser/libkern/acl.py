"""POSIX.1e access control lists: reading, writing, deciding, inheriting.

Nine permission bits name three classes: the owner, one group, everybody else. An access
control list splits the middle class: it may name further users and further groups, each
with permissions of its own. A *mask* entry then bounds what the whole middle class can
get, and takes the place of the group bits in the mode::

    mode  rw- r-- ---          u::rw-         the owner
                               u:1001:rw-     bounded by the mask
                               g::r-x         bounded by the mask
                               g:50:rwx       bounded by the mask
                               m::r--         the mask: the mode's group bits
                               o::---         the others

So a list and a mode are two views of one thing: `Acl.mode_bits` gives the bits a list
implies, `Acl.chmod` the list after chmod(2), and a list of three entries is no list at
all but a mode (`Acl.is_minimal`). A directory may carry a second, *default* list; what is
created inside it starts from that list (`Acl.inherit`). The umask is not used then: whoever
applies one to the mode of a new file looks for the default list of the directory first.

The form stored and exchanged is the one the host's tools (getfacl, setfacl, rsync -A)
read from the attributes ``system.posix_acl_access`` and ``system.posix_acl_default``
(`XATTR_ACCESS`, `XATTR_DEFAULT`): little-endian, a u32 version 2, then for each entry u16
tag, u16 permissions, u32 id.

Counterpart: none in the DragonFly source that is in use (sys/acl.h declares the
    interface, no file system of it implements one). The rules are those of IEEE
    1003.1e draft 17 as Linux applies them.
Differs from DragonFly: see above; this is an addition for the programs of the host.
Token/lock order: takes none. Sans-IO.
Invariants: an `Acl` is valid by construction: a list with named entries has a mask;
    permissions are 0 to 7; entries keep the order they came in.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

import attrs

from dfuser.libkern.errno import EINVAL, EOPNOTSUPP, KError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfuser.libkern.ucred import Ucred

ACL_EA_VERSION: Final = 2

ACL_USER_OBJ: Final = 0x01
ACL_USER: Final = 0x02
ACL_GROUP_OBJ: Final = 0x04
ACL_GROUP: Final = 0x08
ACL_MASK: Final = 0x10
ACL_OTHER: Final = 0x20
ACL_UNDEFINED_ID: Final = 0xFFFF_FFFF

XATTR_ACCESS: Final = b"system.posix_acl_access"
"""Full name of the attribute that holds the access list."""
XATTR_DEFAULT: Final = b"system.posix_acl_default"
"""Full name of the attribute that holds a directory's default list."""

_HEADER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")

#: The order the tags must come in; named entries may repeat.
_ORDER: Final = (ACL_USER_OBJ, ACL_USER, ACL_GROUP_OBJ, ACL_GROUP, ACL_MASK, ACL_OTHER)
_NAMED: Final = ACL_USER | ACL_GROUP
_REQUIRED: Final = ACL_USER_OBJ | ACL_GROUP_OBJ | ACL_OTHER


@attrs.frozen(slots=True)
class Acl:
    """One access control list.

    ``users`` and ``groups`` are pairs of id and permissions (0 to 7). ``mask`` is None in
    a list without named entries that has none.

    Raises:
        KError: EINVAL, named entries without a mask or permissions out of range.
    """

    user_obj: int
    group_obj: int
    other: int
    users: tuple[tuple[int, int], ...] = ()
    groups: tuple[tuple[int, int], ...] = ()
    mask: int | None = None

    def __attrs_post_init__(self) -> None:
        """Refuse what could not be stored."""
        if self.mask is None and (self.users or self.groups):
            raise KError(EINVAL, "a list with named entries needs a mask")
        if any(not 0 <= perm <= 7 for _, perm, _ in self.entries()):
            raise KError(EINVAL, "permissions are three bits")

    # --- the two views ------------------------------------------------------------------

    @classmethod
    def from_mode(cls, mode: int) -> Acl:
        """The list of three entries that says what a mode's permission bits say."""
        return cls(mode >> 6 & 7, mode >> 3 & 7, mode & 7)

    @property
    def is_minimal(self) -> bool:
        """Whether the permission bits of a mode can say all of it."""
        return self.mask is None

    @property
    def mode_bits(self) -> int:
        """The nine permission bits a file with this access list shows."""
        middle = self.group_obj if self.mask is None else self.mask
        return self.user_obj << 6 | middle << 3 | self.other

    def chmod(self, mode: int) -> Acl:
        """The list after its file's permission bits were set; the mask follows the group's."""
        owner, middle, other = mode >> 6 & 7, mode >> 3 & 7, mode & 7
        if self.mask is None:
            return attrs.evolve(self, user_obj=owner, group_obj=middle, other=other)
        return attrs.evolve(self, user_obj=owner, mask=middle, other=other)

    # --- deciding -----------------------------------------------------------------------

    def permits(self, cred: Ucred, uid: int, gid: int, want: int) -> bool:
        """Whether the list grants all of ``want``. The super-user is the caller's business.

        Args:
            cred: who asks; the effective ids count.
            uid: owner of the file.
            gid: group of the file.
            want: permissions as three bits, read 4, write 2, execute 1.

        Returns:
            True when granted. The first class that names the caller decides: an owner
            who is refused is not looked up among the groups; of several matching groups
            any single one that grants everything is enough.
        """
        if cred.uid == uid:
            return self.user_obj & want == want
        bound = 7 if self.mask is None else self.mask
        for named, perm in self.users:
            if named == cred.uid:
                return perm & bound & want == want
        member = [perm for named, perm in self.groups if cred.groupmember(named)]
        if cred.groupmember(gid):
            member.append(self.group_obj)
        if member:
            return any(perm & bound & want == want for perm in member)
        return self.other & want == want

    def inherit(self, mode: int) -> tuple[int, Acl]:
        """What a file gets that is created in a directory with this default list.

        Args:
            mode: what the creator asked for; the umask is not applied when a default
                list is there.

        Returns:
            The new file's mode (type, set-id and sticky bits as asked) and its access
            list; a minimal list need not be stored.
        """
        acl = self.chmod(self.mode_bits & mode)
        return mode & ~0o777 | acl.mode_bits, acl

    # --- the stored form ----------------------------------------------------------------

    def entries(self) -> Iterator[tuple[int, int, int]]:
        """(tag, permissions, id) of every entry in stored order."""
        yield ACL_USER_OBJ, self.user_obj, ACL_UNDEFINED_ID
        for uid, perm in self.users:
            yield ACL_USER, perm, uid
        yield ACL_GROUP_OBJ, self.group_obj, ACL_UNDEFINED_ID
        for gid, perm in self.groups:
            yield ACL_GROUP, perm, gid
        if self.mask is not None:
            yield ACL_MASK, self.mask, ACL_UNDEFINED_ID
        yield ACL_OTHER, self.other, ACL_UNDEFINED_ID

    def pack(self) -> bytes:
        """The value of the extended attribute."""
        return _HEADER.pack(ACL_EA_VERSION) + b"".join(_ENTRY.pack(*e) for e in self.entries())

    @classmethod
    def parse(cls, value: bytes) -> Acl | None:
        """Read the value of the extended attribute.

        Returns:
            The list, or None for a value with a header and no entries, which asks for
            the list's removal.

        Raises:
            KError: EINVAL for a malformed value or a list that breaks a rule,
                EOPNOTSUPP for another version.
        """
        body = len(value) - _HEADER.size
        if body < 0:
            raise KError(EINVAL, "value too short")
        if _HEADER.unpack_from(value)[0] != ACL_EA_VERSION:
            raise KError(EOPNOTSUPP, "unknown version")
        if body % _ENTRY.size:
            raise KError(EINVAL, "value ends inside an entry")
        return cls._collect(list(_ENTRY.iter_unpack(value[_HEADER.size :]))) if body else None

    @classmethod
    def _collect(cls, entries: list[tuple[int, int, int]]) -> Acl:
        """Check the order of the entries and sort them into their places."""
        single: dict[int, int] = {}
        named: dict[int, list[tuple[int, int]]] = {ACL_USER: [], ACL_GROUP: []}
        stage = 0
        for tag, perm, ident in entries:
            if tag not in _ORDER or _ORDER.index(tag) < stage or tag in single:
                raise KError(EINVAL, "entries out of order")
            stage = _ORDER.index(tag)
            if not tag & _NAMED:
                single[tag] = perm
            elif ident == ACL_UNDEFINED_ID:
                raise KError(EINVAL, "named entry without a name")
            else:
                named[tag].append((ident, perm))
        if sum(single) & _REQUIRED != _REQUIRED:
            raise KError(EINVAL, "an entry every list has is missing")
        return cls(
            single[ACL_USER_OBJ],
            single[ACL_GROUP_OBJ],
            single[ACL_OTHER],
            tuple(named[ACL_USER]),
            tuple(named[ACL_GROUP]),
            single.get(ACL_MASK),
        )
