"""Extended attributes: set, create, replace, list, remove, sizes, names, rights."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tests.posix.case import case, refuse, same, table, true
from tests.posix.tools import ALICE, BOB, as_user, folder, give, opened, put

ENODATA = errno.ENODATA


@table({"empty": (b"",), "one": (b"x",), "binary": (bytes(range(256)),), "4000": (b"v" * 4000,)})
def value_is_kept(d: Path, value: bytes) -> None:
    """A value comes back byte for byte, on files and directories."""
    for path in (put(d / "f"), folder(d / "dir")):
        os.setxattr(path, "user.name", value)
        same(os.getxattr(path, "user.name"), value, path.name)
        same(os.listxattr(path), ["user.name"], "names")


@case()
def create_and_replace(d: Path) -> None:
    """XATTR_CREATE is EEXIST on a name that is there, XATTR_REPLACE ENODATA on one that is not."""
    path = put(d / "f")
    refuse(ENODATA, os.setxattr, path, "user.a", b"1", os.XATTR_REPLACE)
    os.setxattr(path, "user.a", b"1", os.XATTR_CREATE)
    refuse(errno.EEXIST, os.setxattr, path, "user.a", b"2", os.XATTR_CREATE)
    os.setxattr(path, "user.a", b"3", os.XATTR_REPLACE)
    same(os.getxattr(path, "user.a"), b"3", "value")


@case()
def remove(d: Path) -> None:
    """A removed attribute is gone; removing it again is ENODATA."""
    path = put(d / "f")
    os.setxattr(path, "user.a", b"1")
    os.removexattr(path, "user.a")
    refuse(ENODATA, os.getxattr, path, "user.a")
    refuse(ENODATA, os.removexattr, path, "user.a")
    same(os.listxattr(path), [], "names")


@case()
def many_are_listed(d: Path) -> None:
    """60 attributes are all listed and all kept apart."""
    path = put(d / "f")
    want = {f"user.attribute-{n}": str(n).encode() for n in range(60)}
    for name, value in want.items():
        os.setxattr(path, name, value)
    same(sorted(os.listxattr(path)), sorted(want), "names")
    same({name: os.getxattr(path, name) for name in want}, want, "values")


@case()
def overwritten_with_shorter(d: Path) -> None:
    """A shorter value replaces a longer one whole."""
    path = put(d / "f")
    os.setxattr(path, "user.a", b"x" * 1000)
    os.setxattr(path, "user.a", b"y")
    same(os.getxattr(path, "user.a"), b"y", "value")


@case()
def name_lengths(d: Path) -> None:
    """A name of 255 bytes works, prefix included; 256 is ERANGE."""
    path = put(d / "f")
    os.setxattr(path, "user." + "n" * 250, b"1")
    refuse(errno.ERANGE, os.setxattr, path, "user." + "n" * 251, b"1")


@case()
def value_of_64_kib(d: Path) -> None:
    """A value of 64 KiB is kept or refused (E2BIG, ENOSPC, EDQUOT); 64 KiB and one is E2BIG."""
    path = put(d / "f")
    try:
        os.setxattr(path, "user.a", b"x" * 65536)
    except OSError as error:
        true(error.errno in (errno.E2BIG, errno.ENOSPC, errno.EDQUOT), f"errno {error.errno}")
    else:
        same(len(os.getxattr(path, "user.a")), 65536, "length")
    refuse(errno.E2BIG, os.setxattr, path, "user.b", b"x" * 65537)


@case()
def user_names_are_not_for_links(d: Path) -> None:
    """user.* on a symbolic link itself is EPERM; through the link it is the file's."""
    put(d / "f")
    (d / "s").symlink_to("f")
    refuse(errno.EPERM, os.setxattr, d / "s", "user.a", b"1", follow_symlinks=False)
    os.setxattr(d / "s", "user.a", b"1")
    same(os.getxattr(d / "f", "user.a"), b"1", "value")


@case()
def unknown_name_space(d: Path) -> None:
    """A name without a known prefix is EOPNOTSUPP."""
    refuse(errno.EOPNOTSUPP, os.setxattr, put(d / "f"), "nobody.a", b"1")


@case(root=True)
def trusted_is_for_root(d: Path) -> None:
    """trusted.* is root's: others are refused, and do not see it."""
    path = put(d / "f", mode=0o666)
    os.setxattr(path, "trusted.a", b"1")
    same(os.getxattr(path, "trusted.a"), b"1", "value")
    refuse(errno.EPERM, as_user, ALICE, os.setxattr, path, "trusted.b", b"1")
    refuse(ENODATA, as_user, ALICE, os.getxattr, path, "trusted.a")


@case(root=True)
def user_names_follow_the_mode(d: Path) -> None:
    """Reading user.* needs r, writing w: EACCES."""
    path = give(put(d / "f"), ALICE, 0o640)
    os.setxattr(path, "user.a", b"1")
    refuse(errno.EACCES, as_user, BOB, os.getxattr, path, "user.a")
    path.chmod(0o644)
    same(as_user(BOB, os.getxattr, path, "user.a"), b"1", "value")
    refuse(errno.EACCES, as_user, BOB, os.setxattr, path, "user.a", b"2")


@case()
def by_descriptor(d: Path) -> None:
    """The f calls work on descriptors, of unlinked files too."""
    with opened(put(d / "f"), os.O_RDWR) as f:
        os.setxattr(f, "user.a", b"1")
        os.unlink(d / "f")
        os.setxattr(f, "user.b", b"2")
        same((os.getxattr(f, "user.a"), sorted(os.listxattr(f))), (b"1", ["user.a", "user.b"]), "")


@case()
def follow_renames_and_links(d: Path) -> None:
    """Attributes belong to the file: all names see them, a copy does not."""
    path = put(d / "f")
    os.setxattr(path, "user.a", b"1")
    os.link(path, d / "second")
    os.rename(path, d / "third")
    same(
        (os.getxattr(d / "second", "user.a"), os.getxattr(d / "third", "user.a")), (b"1", b"1"), ""
    )
    same(os.listxattr(put(d / "new")), [], "names of another file")


@case()
def binary_names(d: Path) -> None:
    """Names are bytes, too."""
    path = os.fsencode(put(d / "f"))
    name = b"user.\xff\xfe \xc3\xa4"
    os.setxattr(path, name, b"1")
    same([os.fsencode(n) for n in os.listxattr(path)], [name], "names")
