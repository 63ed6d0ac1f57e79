"""Credentials: as whom something is done.

A credential is a value that many owners share: a process, its threads, open files and
messages all point at the same one, and changing identity means making a new one. In
Python that is an immutable object: no reference count, no copy before write, and two
equal credentials are interchangeable (they hash, so caches can be keyed by them).

Three user ids and three groups, as everywhere: *effective* (``uid``, ``gid``) decides
permissions, *real* says who started it, *saved* is what a set-id program may return to.
``groups[0]`` is the effective group; the others are the supplementary ones.

``prison`` and ``caps`` belong to higher rooms (jails, system capabilities). They are
carried here as opaque handles, so that a low room can pass a credential on without
knowing what is inside.

Counterpart: struct ucred (sys/ucred.h), groupmember (kern/kern_prot.c).
Differs from DragonFly: immutable instead of counted; privilege is asked from the higher
    room that owns prisons and capabilities, `is_root` only compares the user id.
Token/lock order: takes none.
Invariants: groups is never empty and groups[0] == gid; at most NGROUPS_MAX + 1 groups
    come from our own setgroups, but a host caller may bring as many as Linux allows.
"""

from __future__ import annotations

from typing import Final

import attrs

ROOT_UID: Final = 0
ROOT_GID: Final = 0


def _groups_begin_with_gid(cred: Ucred, _attribute: object, groups: tuple[int, ...]) -> None:
    """Refuse a credential whose effective group is not the first of its groups."""
    if not groups or groups[0] != cred.gid:
        raise ValueError("groups[0] must be the effective gid")


@attrs.frozen(slots=True, cache_hash=True)
class Ucred:
    """An immutable identity: user ids, group ids, and two opaque handles.

    Make one with `Ucred.of` (all three ids alike) or `Ucred.root`; derive another with
    `with_uid` and its sisters or with attrs.evolve.

    Counterpart: struct ucred (sys/ucred.h).

    Raises:
        ValueError: groups is empty or does not begin with gid.
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = attrs.field(validator=_groups_begin_with_gid)
    ruid: int
    svuid: int
    rgid: int
    svgid: int
    prison: object | None = None
    caps: object | None = None

    @classmethod
    def of(cls, uid: int, gid: int, groups: tuple[int, ...] = (), prison: object = None) -> Ucred:
        """Make a credential whose real, effective and saved ids agree.

        Args:
            uid: the user id, three times.
            gid: the group id, three times.
            groups: supplementary groups; gid is put in front and not repeated.
            prison: the jail, or None for the host of the kernel.
        """
        others = tuple(g for g in groups if g != gid)
        return cls(uid, gid, (gid, *others), uid, uid, gid, gid, prison)

    @classmethod
    def root(cls) -> Ucred:
        """The super-user of the kernel itself: everything 0, not in a prison."""
        return cls.of(ROOT_UID, ROOT_GID)

    @property
    def is_root(self) -> bool:
        """Whether the effective user is 0. Privileged operations ask a finer question."""
        return self.uid == ROOT_UID

    def groupmember(self, gid: int) -> bool:
        """Whether gid is the effective group or one of the supplementary groups."""
        return gid in self.groups

    def with_uid(self, uid: int, *, real: bool = False) -> Ucred:
        """The same credential with another effective user id.

        Args:
            uid: the new effective id.
            real: change the real and the saved id too (setuid by root).
        """
        if real:
            return attrs.evolve(self, uid=uid, ruid=uid, svuid=uid)
        return attrs.evolve(self, uid=uid)

    def with_gid(self, gid: int, *, real: bool = False) -> Ucred:
        """The same credential with another effective group id; groups[0] follows it.

        Args:
            gid: the new effective group.
            real: change the real and the saved group too (setgid by root).
        """
        groups = (gid, *self.groups[1:])
        if real:
            return attrs.evolve(self, gid=gid, groups=groups, rgid=gid, svgid=gid)
        return attrs.evolve(self, gid=gid, groups=groups)

    def with_groups(self, groups: tuple[int, ...]) -> Ucred:
        """The same credential with other supplementary groups; the effective one stays."""
        return attrs.evolve(self, groups=(self.gid, *(g for g in groups if g != self.gid)))
