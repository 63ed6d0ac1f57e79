from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfuser.libkern.acl import ACL_UNDEFINED_ID, XATTR_ACCESS, Acl
from dfuser.libkern.errno import EINVAL, EOPNOTSUPP, KError
from dfuser.libkern.ucred import Ucred

PERM = st.integers(0, 7)
NAMED = st.lists(st.tuples(st.integers(1, 60), PERM), max_size=3, unique_by=lambda e: e[0])


@st.composite
def acls(draw: st.DrawFn) -> Acl:
    users, groups = tuple(draw(NAMED)), tuple(draw(NAMED))
    mask = draw(PERM) if users or groups else draw(st.none() | PERM)
    return Acl(draw(PERM), draw(PERM), draw(PERM), users, groups, mask)


def raw(*entries: tuple[int, int, int], version: int = 2) -> bytes:
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *e) for e in entries)


U, UN, G, GN, M, O = 1, 2, 4, 8, 16, 32  # noqa: E741 - getfacl's letters
NOID = ACL_UNDEFINED_ID
BASE = ((U, 7, NOID), (G, 5, NOID), (O, 4, NOID))


@given(acls())
def test_pack_parse(acl: Acl) -> None:
    # What if a list goes through its stored form: is it the same list?
    assert Acl.parse(acl.pack()) == acl


def test_known_bytes() -> None:
    # What if the bytes are those setfacl -m u:1000:rw writes on a 0644 file?
    value = bytes.fromhex(
        "02000000 01000600ffffffff 02000600e8030000 04000400ffffffff"
        "10000600ffffffff 20000400ffffffff"
    )
    acl = Acl.parse(value)
    assert acl == Acl(6, 4, 4, ((1000, 6),), (), 6)
    assert acl is not None
    assert acl.pack() == value
    assert acl.mode_bits == 0o664


def test_host_agrees(tmp_path_factory: pytest.TempPathFactory) -> None:
    # What if the host's own file system is given our bytes: does it keep them and show our mode?
    path = tmp_path_factory.mktemp("acl") / "f"
    path.write_bytes(b"")
    acl = Acl(6, 4, 0, ((12345, 7),), ((23456, 5),), 5)
    name = XATTR_ACCESS.decode()
    try:
        os.setxattr(path, name, acl.pack())
    except OSError as error:
        pytest.skip(f"the host's file system keeps no ACLs: {error}")
    assert os.getxattr(path, name) == acl.pack()
    assert path.stat().st_mode & 0o777 == acl.mode_bits
    path.chmod(0o631)
    assert Acl.parse(os.getxattr(path, name)) == acl.chmod(0o631)


@given(acls(), st.integers(0, 0o777))
def test_host_inherits_alike(acl: Acl, asked: int) -> None:
    # What if a file is created below a default list: what mode and list must come out?
    mode, child = acl.inherit(0o100000 | asked)
    assert mode == 0o100000 | child.mode_bits
    assert child.mode_bits & ~asked == 0
    assert child.mode_bits & ~acl.mode_bits == 0
    assert (child.users, child.groups) == (acl.users, acl.groups)


def test_inherit_on_host(tmp_path_factory: pytest.TempPathFactory) -> None:
    # What if the host creates below the same default list, with a umask that must not count?
    path = tmp_path_factory.mktemp("acl")
    acl = Acl(7, 5, 4, ((12345, 6),), (), 7)
    try:
        os.setxattr(path, "system.posix_acl_default", acl.pack())
    except OSError as error:
        pytest.skip(f"the host's file system keeps no ACLs: {error}")
    old = os.umask(0o077)
    try:
        os.close(os.open(path / "f", os.O_CREAT | os.O_WRONLY, 0o640))
    finally:
        os.umask(old)
    mode, child = acl.inherit(0o640)
    assert os.stat(path / "f").st_mode & 0o7777 == mode
    assert os.getxattr(path / "f", "system.posix_acl_access") == child.pack()


@pytest.mark.parametrize(
    ("value", "errno"),
    [
        (b"", EINVAL),
        (b"\2\0\0", EINVAL),
        (raw(*BASE, version=1), EOPNOTSUPP),
        (raw(*BASE) + b"x", EINVAL),
        (raw(*BASE[:2]), EINVAL),
        (raw(*reversed(BASE)), EINVAL),
        (raw((U, 7, NOID), *BASE), EINVAL),
        (raw((U, 8, NOID), *BASE[1:]), EINVAL),
        (raw((U, 7, NOID), (UN, 7, 5), *BASE[1:]), EINVAL),
        (raw((U, 7, NOID), (UN, 7, NOID), (G, 5, NOID), (M, 5, NOID), (O, 4, NOID)), EINVAL),
        (raw(*BASE, (64, 1, NOID)), EINVAL),
    ],
)
def test_bad_values(value: bytes, errno: int) -> None:
    # What if the value is cut, of another version, out of order or breaks a rule?
    with pytest.raises(KError) as caught:
        Acl.parse(value)
    assert caught.value.errno == errno


def test_empty_means_removal() -> None:
    # What if the value has a header and nothing else?
    assert Acl.parse(raw()) is None


CASES = [
    # (caller uid, groups, wanted, granted) for owner 10, group 20 and the list below
    (10, (99,), 6, True),
    (10, (20,), 1, False),  # the owner's entry decides, the groups are not asked
    (11, (99,), 4, True),
    (11, (20,), 2, False),  # named user: rw bounded by mask r-x is r
    (12, (20,), 4, True),
    (12, (20,), 1, False),  # owning group is r
    (12, (30,), 5, True),  # named group rwx bounded to r-x
    (12, (30,), 2, False),
    (12, (20, 30), 5, True),  # one of several groups grants it all
    (12, (99,), 1, True),
    (12, (99,), 4, False),
    (12, (40,), 1, False),  # a matching group that refuses keeps the others' entry away
]


@pytest.mark.parametrize(("uid", "groups", "want", "granted"), CASES)
def test_permits(uid: int, groups: tuple[int, ...], want: int, granted: bool) -> None:
    # What if the caller matches one class, several, or none?
    acl = Acl(6, 4, 1, ((11, 6),), ((30, 7), (40, 0)), 5)
    cred = Ucred.of(uid, groups[0], groups[1:])
    assert acl.permits(cred, 10, 20, want) is granted


@given(st.integers(0, 0o777), st.integers(0, 0o777))
def test_minimal_is_the_mode(mode: int, other: int) -> None:
    # What if there are no named entries: do list and mode say the same, before and after chmod?
    acl = Acl.from_mode(mode)
    assert acl.is_minimal
    assert acl.mode_bits == mode
    assert acl.chmod(other).mode_bits == other


@given(acls(), st.integers(0, 0o777))
def test_chmod_moves_the_mask(acl: Acl, mode: int) -> None:
    # What if chmod is applied to a real list: does the group's own entry stay?
    after = acl.chmod(mode)
    assert after.mode_bits == mode
    if acl.mask is not None:
        assert after.group_obj == acl.group_obj
