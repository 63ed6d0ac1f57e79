"""Users, groups, modes and access lists, through real system calls on a real mount."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.rig import Rig, append, as_user, fresh_place, rig

pytestmark = pytest.mark.mount

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs several users")


@pytest.fixture(scope="module")
def world(transport: str) -> Iterator[Rig]:
    """One mount for all tests of this file; at the end nothing was ever reported as a bug."""
    with rig() as made:
        yield made
        assert made.stat("s.context.failed") == 0, made.stat("k.msgbuf.text()")
        made.end()


@pytest.fixture
def place(world: Rig) -> Iterator[Path]:
    """A fresh directory on the mount, open to everybody."""
    with fresh_place(world) as path:
        yield path


@as_root
def test_new_files_belong_to_their_maker(place: Path) -> None:
    """What if another user creates with an umask, and in a set-group-id directory?"""
    gift = place / "sg"
    gift.mkdir()
    os.chown(gift, 0, 777)
    gift.chmod(0o2777)

    def make() -> None:
        os.umask(0o027)
        (place / "f").touch()
        (place / "d").mkdir()
        (gift / "f").touch()
        (gift / "d").mkdir()
        os.mkfifo(gift / "p")
        (gift / "l").symlink_to("x")

    as_user(1234, 1235, [1236], make)
    for name, gid, mode in (
        ("f", 1235, 0o640), ("d", 1235, 0o750), ("sg/f", 777, 0o640), ("sg/d", 777, 0o2750),
        ("sg/p", 777, 0o640), ("sg/l", 777, 0o777),
    ):  # fmt: skip
        is_ = (place / name).lstat()
        assert (is_.st_uid, is_.st_gid, stat.S_IMODE(is_.st_mode)) == (1234, gid, mode), name


@as_root
def test_default_permissions(place: Path) -> None:
    """What if another user reads, writes, lists, removes what he may not?"""
    secret = place / "secret"
    secret.write_text("s")
    secret.chmod(0o600)
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    place.chmod(0o1777)
    for attempt in (
        lambda: secret.read_text(),
        lambda: append(secret),
        lambda: os.listdir(closed),
        lambda: os.chmod(secret, 0o666),
        lambda: os.chown(secret, 1234, -1),
        lambda: os.unlink(secret),
        lambda: os.rename(secret, place / "mine"),
        lambda: os.utime(secret),
        lambda: os.truncate(secret, 0),
    ):
        with pytest.raises(PermissionError):
            as_user(1234, 1234, [], attempt)
    as_user(1234, 1234, [], lambda: os.stat(secret).st_size)


@as_root
def test_supplementary_groups_count(place: Path) -> None:
    """What if rights come from a group FUSE does not tell us of: read, write, chgrp, chmod?"""
    shared = place / "shared"
    shared.write_text("s")
    os.chown(shared, 0, 2000)
    shared.chmod(0o660)
    assert as_user(1234, 1234, [2000], lambda: shared.read_text()) == "s"
    with pytest.raises(PermissionError):
        as_user(1234, 1234, [2001], lambda: shared.read_text())
    mine = place / "mine"
    mine.touch()
    os.chown(mine, 1234, 1234)
    as_user(1234, 1234, [2000, 2001], lambda: os.chown(mine, -1, 2001))
    assert mine.stat().st_gid == 2001
    with pytest.raises(PermissionError):
        as_user(1234, 1234, [2000], lambda: os.chown(mine, -1, 2002))
    as_user(1234, 1234, [2001], lambda: os.chmod(mine, 0o2755))
    assert stat.S_IMODE(mine.stat().st_mode) == 0o2755
    as_user(1234, 1234, [2000], lambda: os.chmod(mine, 0o2755))
    assert stat.S_IMODE(mine.stat().st_mode) == 0o755
    (place / "sub").mkdir()
    os.chown(place / "sub", 0, 2000)
    (place / "sub").chmod(0o770)
    as_user(1234, 1234, [2000], lambda: (place / "sub" / "f").touch())
    as_user(1234, 1234, [2000], lambda: os.rename(place / "sub" / "f", place / "sub" / "g"))
    as_user(1234, 1234, [2000], lambda: (place / "sub" / "g").unlink())


@as_root
def test_set_id_bits_go(place: Path) -> None:
    """What if a set-id program is written to, truncated or given away by its owner?"""
    path = place / "f"

    def fresh() -> None:
        path.write_text("x")
        os.chown(path, 1234, 1234)
        path.chmod(0o6755)

    for change in (
        lambda: append(path),
        lambda: os.truncate(path, 0),
        lambda: os.chown(path, -1, 2001),
    ):
        fresh()
        as_user(1234, 1234, [2001], change)
        assert stat.S_IMODE(path.stat().st_mode) == 0o755


@as_root
@pytest.mark.skipif(shutil.which("setfacl") is None, reason="needs the acl package")
def test_access_control_lists(place: Path) -> None:
    """What if a list names another user: is he let in, and nobody else; is it told back?"""
    path = place / "f"
    path.write_text("s")
    path.chmod(0o600)
    subprocess.run(["setfacl", "-m", "u:1234:r,g:2000:rw", str(path)], check=True)
    assert as_user(1234, 1234, [], lambda: path.read_text()) == "s"
    with pytest.raises(PermissionError):
        as_user(1234, 1234, [], lambda: append(path))
    as_user(1235, 1235, [2000], lambda: append(path))
    with pytest.raises(PermissionError):
        as_user(1235, 1235, [], lambda: path.read_text())
    text = subprocess.run(["getfacl", "-np", str(path)], capture_output=True, text=True).stdout
    assert "user:1234:r--" in text
    assert "group:2000:rw-" in text
    assert "mask::rw-" in text
    path.chmod(0o640)
    text = subprocess.run(["getfacl", "-np", str(path)], capture_output=True, text=True).stdout
    assert "mask::r--" in text
    with pytest.raises(PermissionError):
        as_user(1235, 1235, [2000], lambda: append(path))
    subprocess.run(["setfacl", "-b", str(path)], check=True)
    with pytest.raises(PermissionError):
        as_user(1234, 1234, [], lambda: path.read_text())


@as_root
@pytest.mark.skipif(shutil.which("setfacl") is None, reason="needs the acl package")
def test_default_access_control_lists(place: Path) -> None:
    """What if a directory has a default list: do files and directories made in it inherit it?"""
    subprocess.run(["setfacl", "-m", "d:u:1234:rwx", str(place)], check=True)
    (place / "f").touch()
    (place / "d").mkdir()
    for name, wanted in (("f", "user:1234:rwx"), ("d", "default:user:1234:rwx")):
        text = subprocess.run(
            ["getfacl", "-np", str(place / name)], capture_output=True, text=True, check=True
        ).stdout
        assert wanted in text, (name, text)


@as_root
@pytest.mark.skipif(shutil.which("setfacl") is None, reason="needs the acl package")
def test_list_keeps_the_set_group_bit_of_a_member(place: Path) -> None:
    """What if an owner sets a list on a set-group-id file of a group of his, or not?"""
    path = place / "f"
    for groups, kept in (([2000], True), ([2001], False)):
        path.touch()
        os.chown(path, 1234, 2000)
        path.chmod(0o2750)
        as_user(
            1234, 1234, groups,
            lambda: subprocess.run(["setfacl", "-m", "u:99:r", str(path)]).returncode,
        )  # fmt: skip
        assert bool(path.stat().st_mode & stat.S_ISGID) is kept
        path.unlink()
