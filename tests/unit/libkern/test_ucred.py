"""Credentials: values that are shared, compared and derived."""

from __future__ import annotations

import attrs
import pytest

from dfuser.libkern.ucred import Ucred


def test_root() -> None:
    # What if the kernel's own identity lacked one of its seven numbers?
    root = Ucred.root()
    assert (root.uid, root.gid, root.ruid, root.svuid, root.rgid, root.svgid) == (0,) * 6
    assert root.groups == (0,)
    assert root.is_root
    assert root.prison is None


def test_groups_begin_with_the_effective_one() -> None:
    # What if groups[0] and gid disagreed, so that two checks answered differently?
    cred = Ucred.of(1000, 100, (4, 100, 27))
    assert cred.groups == (100, 4, 27)
    assert cred.groupmember(27)
    assert cred.groupmember(100)
    assert not cred.groupmember(0)
    with pytest.raises(ValueError, match="effective gid"):
        attrs.evolve(cred, gid=5)
    with pytest.raises(ValueError, match="effective gid"):
        attrs.evolve(cred, groups=())


def test_it_cannot_be_changed_only_derived() -> None:
    # What if one owner of a credential changed what another sees?
    cred = Ucred.of(1000, 100, (4,))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        cred.uid = 0  # type: ignore[misc]
    assert cred.with_uid(0) == attrs.evolve(cred, uid=0)
    assert cred.with_uid(0).ruid == 1000
    full = cred.with_uid(5, real=True)
    assert (full.uid, full.ruid, full.svuid) == (5, 5, 5)
    moved = cred.with_gid(7)
    assert (moved.gid, moved.groups, moved.rgid) == (7, (7, 4), 100)
    assert cred.with_gid(7, real=True).svgid == 7
    assert cred.with_groups((9, 100)).groups == (100, 9)


def test_equal_credentials_are_one_key() -> None:
    # What if a cache keyed by credential kept one entry for each request?
    assert len({Ucred.of(1, 2, (3,)), Ucred.of(1, 2, (3,)), Ucred.of(1, 2)}) == 2
    assert Ucred.of(1, 2) != Ucred.of(1, 2, prison="jail")
