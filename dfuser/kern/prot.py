"""Identities: making credentials, and who may do what to whom.

Requests of the host arrive with a user and a group id and nothing else; `CredTable.get` makes the
credential they run under. Credentials are values, so one is enough for all requests of a user, and
finding it again is one look into a dictionary.

Counterpart: kern/kern_prot.c (p_trespass), kern/kern_priv.c (priv_check_cred).
Differs from DragonFly: the supplementary groups of a host user are not sent with his requests; the
host has checked them before the request arrives.
Token and lock order: takes none.
Invariants: the table is bounded and holds values only, so forgetting one is harmless.
"""

from __future__ import annotations

from typing import Final

from dfuser.libkern.errno import EPERM, ESRCH, KError
from dfuser.libkern.ucred import Ucred

#: Identities remembered.
CREDS_MAX: Final = 1024


class CredTable:
    """Credentials of the host's users."""

    __slots__ = ("_creds", "limit")

    def __init__(self, limit: int = CREDS_MAX) -> None:
        """Remember at most ``limit`` of them."""
        self.limit = limit
        self._creds: dict[tuple[int, int], Ucred] = {}

    def get(self, uid: int, gid: int) -> Ucred:
        """The credential of a user: all three ids alike, one group, no prison."""
        key = (uid, gid)
        cred = self._creds.get(key)
        if cred is None:
            if len(self._creds) >= self.limit:
                self._creds.clear()
            cred = self._creds[key] = Ucred.of(uid, gid)
        return cred

    def __len__(self) -> int:
        return len(self._creds)


def p_trespass(cred: Ucred, target: Ucred) -> None:
    """Whether ``cred`` may meddle with a process that runs under ``target``.

    Root may, unless the other is outside his prison; a user may when his real or effective id is
    the other's real or saved one.

    Raises:
        KError: ESRCH, the other is invisible from the caller's prison; EPERM, he may not.

    Counterpart: p_trespass (kern/kern_prot.c).
    """
    if cred is target:
        return
    if cred.prison is not None and cred.prison is not target.prison:
        raise KError(ESRCH)
    mine = (cred.ruid, cred.uid)
    if cred.uid == 0 or target.ruid in mine or target.svuid in mine:
        return
    raise KError(EPERM)
