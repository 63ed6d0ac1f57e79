"""POSIX access control lists: stored, read back, enforced, inherited.

The lists are built by hand in the form the kernel keeps in system.posix_acl_access and _default:
a version, then entries of tag, permissions and number, sorted by tag. So no tool is needed.
"""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

from tests.posix.case import NotApplicable, case, refuse, same
from tests.posix.tools import (
    ALICE,
    BOB,
    FRIEND,
    as_user,
    folder,
    give,
    mode_of,
    opened,
    put,
)

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
NOBODY = 0xFFFFFFFF


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Return the stored form of (tag, permissions, number) entries."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def plain(
    user: int, group: int, other: int, *named: tuple[int, int, int], mask: int | None = None
) -> bytes:
    """The list of a mode, with named entries and, when there are any, their mask."""
    users = [entry for entry in named if entry[0] == USER]
    groups = [entry for entry in named if entry[0] == GROUP]
    entries = [(USER_OBJ, user, NOBODY), *users, (GROUP_OBJ, group, NOBODY), *groups]
    if named:
        entries.append((MASK, 7 if mask is None else mask, NOBODY))
    return acl(*entries, (OTHER, other, NOBODY))


def _set(path: Path, name: str, value: bytes) -> None:
    try:
        os.setxattr(path, name, value)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            raise NotApplicable("no POSIX ACLs here") from error
        raise


def _read(path: Path) -> bytes:
    with opened(path, os.O_RDONLY) as f:
        return os.read(f, 10)


@case(root=True)
def list_is_kept(d: Path) -> None:
    """An access list comes back as it was set, and shows among the names."""
    path, value = put(d / "f"), plain(6, 4, 0, (USER, 4, ALICE.uid))
    _set(path, ACCESS, value)
    same(os.getxattr(path, ACCESS), value, "list")
    same(os.listxattr(path), [ACCESS], "names")


@case(root=True)
def named_user_is_let_in(d: Path) -> None:
    """A named user has the entry's rights, and nobody else has."""
    path = put(d / "f", b"data", 0o600)
    _set(path, ACCESS, plain(6, 0, 0, (USER, 4, ALICE.uid)))
    same(as_user(ALICE, _read, path), b"data", "bytes")
    refuse(errno.EACCES, as_user, BOB, _read, path)
    refuse(errno.EACCES, as_user, ALICE, os.open, path, os.O_WRONLY)


@case(root=True)
def named_user_is_kept_out(d: Path) -> None:
    """An entry without rights keeps its user out although others may."""
    path = put(d / "f", b"data", 0o644)
    _set(path, ACCESS, plain(6, 4, 4, (USER, 0, ALICE.uid)))
    refuse(errno.EACCES, as_user, ALICE, _read, path)
    same(as_user(BOB, _read, path), b"data", "bytes")


@case(root=True)
def named_group_is_let_in(d: Path) -> None:
    """A named group's members have the entry's rights, supplementary members too."""
    path = put(d / "f", b"data", 0o600)
    _set(path, ACCESS, plain(6, 0, 0, (GROUP, 4, ALICE.gid)))
    same(as_user(ALICE, _read, path), b"data", "bytes of the group's own user")
    same(as_user(FRIEND, _read, path), b"data", "bytes of a member")
    refuse(errno.EACCES, as_user, BOB, _read, path)


@case(root=True)
def mask_limits(d: Path) -> None:
    """The mask takes rights from named users and groups, not from owner and others."""
    path = give(put(d / "f", b"data", 0o600), BOB)
    _set(path, ACCESS, plain(6, 0, 0, (USER, 6, ALICE.uid), mask=2))
    refuse(errno.EACCES, as_user, ALICE, _read, path)
    same(as_user(BOB, _read, path), b"data", "bytes of the owner")


@case(root=True)
def mode_shows_the_mask(d: Path) -> None:
    """The group bits of the mode are the mask, and chmod changes the mask."""
    path = put(d / "f", b"", 0o600)
    _set(path, ACCESS, plain(6, 0, 0, (USER, 6, ALICE.uid), mask=6))
    same(mode_of(path), 0o660, "mode")
    path.chmod(0o640)
    same(os.getxattr(path, ACCESS), plain(6, 0, 0, (USER, 6, ALICE.uid), mask=4), "list")
    refuse(errno.EACCES, as_user, ALICE, os.open, path, os.O_WRONLY)


@case(root=True)
def minimal_list_is_the_mode(d: Path) -> None:
    """A list of three entries becomes the mode and is not stored."""
    path = put(d / "f", b"", 0o600)
    _set(path, ACCESS, plain(7, 5, 4))
    same(mode_of(path), 0o754, "mode")
    refuse(errno.ENODATA, os.getxattr, path, ACCESS)


@case(root=True)
def default_is_inherited_by_files(d: Path) -> None:
    """A file takes its directory's default list as access list, cut by the asked mode."""
    place = folder(d / "dir")
    _set(place, DEFAULT, plain(7, 5, 0, (USER, 6, ALICE.uid)))
    os.umask(0o077)
    os.close(os.open(place / "f", os.O_CREAT | os.O_WRONLY, 0o666))
    path = place / "f"
    same(mode_of(path), 0o660, "mode: the umask does not count")
    same(os.getxattr(path, ACCESS), plain(6, 5, 0, (USER, 6, ALICE.uid), mask=6), "list")
    refuse(errno.ENODATA, os.getxattr, path, DEFAULT)


@case(root=True)
def default_is_inherited_by_directories(d: Path) -> None:
    """A subdirectory takes it as access list and as default list."""
    place, value = folder(d / "dir"), plain(7, 5, 0, (USER, 7, ALICE.uid))
    _set(place, DEFAULT, value)
    os.mkdir(place / "sub")
    same(os.getxattr(place / "sub", DEFAULT), value, "default list")
    same(os.getxattr(place / "sub", ACCESS), value, "access list")


@case(root=True)
def default_does_not_grant(d: Path) -> None:
    """A default list changes nothing for its own directory."""
    place = folder(d / "dir", 0o700)
    _set(place, DEFAULT, plain(7, 0, 0, (USER, 7, ALICE.uid)))
    refuse(errno.EACCES, as_user, ALICE, os.listdir, place)
    same(mode_of(place), 0o700, "mode")


@case(root=True)
def default_is_for_directories(d: Path) -> None:
    """A default list on a file is EACCES."""
    path = put(d / "f")
    _set(folder(d / "probe"), DEFAULT, plain(7, 5, 5))
    refuse(errno.EACCES, os.setxattr, path, DEFAULT, plain(7, 5, 5))


@case(root=True)
def removal(d: Path) -> None:
    """Removing the list leaves the mode, and the named user is out."""
    path = put(d / "f", b"data", 0o600)
    _set(path, ACCESS, plain(6, 0, 0, (USER, 4, ALICE.uid)))
    os.removexattr(path, ACCESS)
    refuse(errno.ENODATA, os.getxattr, path, ACCESS)
    path.chmod(0o600)
    refuse(errno.EACCES, as_user, ALICE, _read, path)


@case(root=True)
def only_the_owner_sets(d: Path) -> None:
    """Setting a list is for the owner: EPERM."""
    path, value = give(put(d / "f", mode=0o666), ALICE), plain(6, 6, 6, (USER, 6, BOB.uid))
    _set(path, ACCESS, value)
    as_user(ALICE, os.setxattr, path, ACCESS, value)
    refuse(errno.EPERM, as_user, BOB, os.setxattr, path, ACCESS, value)


@case(root=True)
def malformed_lists(d: Path) -> None:
    """Lists that are cut, lack an entry or the mask are EINVAL (version: EOPNOTSUPP)."""
    path, good = put(d / "f"), plain(6, 4, 4)
    _set(path, ACCESS, good)
    bad = (
        good[:-1],
        acl((USER_OBJ, 6, NOBODY), (GROUP_OBJ, 4, NOBODY)),
        acl((USER_OBJ, 6, 0), (USER, 4, 1), (GROUP_OBJ, 4, 0), (OTHER, 4, 0)),
        acl((99, 6, 0), (GROUP_OBJ, 4, 0), (OTHER, 4, 0)),
    )
    for value in bad:
        refuse(errno.EINVAL, os.setxattr, path, ACCESS, value)
    refuse((errno.EOPNOTSUPP, errno.EINVAL), os.setxattr, path, ACCESS, b"\7" + good[1:])


@case(root=True)
def search_through_a_list(d: Path) -> None:
    """A directory's list decides who may pass."""
    place = folder(d / "dir", 0o700)
    put(place / "f", b"data", 0o644)
    _set(place, ACCESS, plain(7, 0, 0, (USER, 1, ALICE.uid)))
    same(as_user(ALICE, _read, place / "f"), b"data", "bytes")
    refuse(errno.EACCES, as_user, BOB, _read, place / "f")
