"""Mounts inside, as the host sees them: their flags, their limits, their coming and going."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.mount.rig import Rig, append, as_user, eventually, rig

pytestmark = pytest.mark.mount

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes devices and asks for x as root")
GONE = (errno.ESTALE, errno.EIO)
LONG_AGO = 1_000_000_000


@pytest.fixture(scope="module")
def world(transport: str) -> Iterator[Rig]:
    """One mount for all tests of this file; at the end nothing was ever reported as a bug."""
    with rig() as made:
        (made.path / "m").mkdir()
        (made.path / "low").mkdir()
        yield made
        assert made.stat("s.context.failed") == 0, made.stat("k.msgbuf.text()")
        made.end()


@pytest.fixture
def ctl(world: Rig) -> Iterator[Callable[[str], None]]:
    """Gives a command to /kern/ctl; what it left on /m is forced off at the end."""

    def command(line: str) -> None:
        (world.path / "kern" / "ctl").write_text(line)

    yield command
    with contextlib.suppress(OSError):
        command("umount -f /m")
    shutil.rmtree(world.path / "low")
    (world.path / "low").mkdir()
    assert os.listdir(world.path / "m") == []


def number_of(call: Callable[[], object]) -> int:
    """The errno that a call fails with, 0 if it succeeds."""
    try:
        call()
    except OSError as error:
        return error.errno or -1
    return 0


# --- flags -------------------------------------------------------------------------------------


def fill(base: Path) -> None:
    """Put a file of every kind that a flag is about into a mount that allows everything."""
    shutil.copy(shutil.which("true") or "/bin/true", base / "prog")
    (base / "prog").chmod(0o6755)
    (base / "script").write_text("#!/bin/sh\nexit 0\n")
    (base / "script").chmod(0o755)
    (base / "dir").mkdir(mode=0o755)
    (base / "file").write_text("text")
    (base / "link").symlink_to("file")
    os.mknod(base / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))


def run(program: Path) -> int:
    """The errno of executing a program; 0 if it ran."""
    return number_of(lambda: subprocess.run([program], check=True))


def reads_move_atime(base: Path) -> bool:
    """Whether a read of the file moves its access time."""
    before = (base / "file").stat().st_atime_ns
    fd = os.open(base / "file", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.read(fd, 4) == b"text"
    os.close(fd)
    return (base / "file").stat().st_atime_ns != before


def check_noexec(base: Path, on: bool) -> None:
    """Nothing can be executed, by root neither; directories can be searched.

    A mount that the host has mounted so has no need to hide the bits.
    """
    wanted = errno.EACCES if on else 0
    assert run(base / "prog") == wanted
    assert run(base / "script") == wanted
    assert os.access(base / "prog", os.X_OK) is not on
    hidden = on and not os.statvfs(base).f_flag & os.ST_NOEXEC
    assert bool((base / "prog").stat().st_mode & 0o111) is not hidden
    assert stat.S_IMODE((base / "dir").stat().st_mode) == 0o755
    assert os.access(base / "dir", os.X_OK)


def check_nosuid(base: Path, on: bool) -> None:
    """No file has a set-id bit, by stat and in a listing with attributes."""
    assert bool((base / "prog").stat().st_mode & 0o6000) is not on
    with os.scandir(base) as entries:
        seen = {entry.name: entry.stat().st_mode for entry in entries if entry.name == "prog"}
    assert bool(seen["prog"] & 0o6000) is not on


def check_nodev(base: Path, on: bool) -> None:
    """A device cannot be opened: never, since the host's mount is nodev as well."""
    assert (base / "null").stat().st_rdev == os.makedev(1, 3)
    assert number_of(lambda: os.open(base / "null", os.O_RDONLY)) == errno.EACCES


def check_nosymfollow(base: Path, on: bool) -> None:
    """No link is followed; it still can be seen that there is one."""
    wanted = errno.ELOOP if on else 0
    assert number_of(lambda: (base / "link").read_text()) == wanted
    assert number_of(lambda: os.readlink(base / "link")) == wanted
    assert stat.S_ISLNK((base / "link").lstat().st_mode)
    assert "link" in os.listdir(base)


def check_ro(base: Path, on: bool) -> None:
    """Nothing can be changed."""
    wanted = errno.EROFS if on else 0
    for change in (
        lambda: (base / "file").open("r+b").close(),
        lambda: (base / "new").touch(),
        lambda: (base / "new").unlink(missing_ok=not on),
        lambda: (base / "file").chmod(0o600),
        lambda: os.truncate(base / "file", 4),
        lambda: os.rename(base / "file", base / "file2"),
        lambda: os.rename(base / "file2", base / "file"),
        lambda: os.setxattr(base / "file", "user.a", b"x"),
        lambda: os.utime(base / "file", (LONG_AGO, LONG_AGO)),
    ):
        assert number_of(change) in (wanted, errno.ENOENT if on else 0)
    assert not (base / "new").exists()
    if on:
        assert not reads_move_atime(base)


def check_noatime(base: Path, on: bool) -> None:
    """A read leaves the access time alone."""
    os.utime(base / "file", (LONG_AGO, LONG_AGO))
    assert reads_move_atime(base) is not on


CHECKS = {
    "noexec": check_noexec, "nosuid": check_nosuid, "nodev": check_nodev,
    "nosymfollow": check_nosymfollow, "ro": check_ro, "noatime": check_noatime,
}  # fmt: skip
OPPOSITE = {"ro": "rw"}


@as_root
@pytest.mark.parametrize("kind", ["tmpfs", "null", "below"])
@pytest.mark.parametrize("flag", CHECKS)
def test_flags(world: Rig, ctl: Callable[[str], None], flag: str, kind: str) -> None:
    """What if a mount inside, a null mount, or the mount below one, gets a flag and loses it?"""
    check, off = CHECKS[flag], OPPOSITE.get(flag, flag[2:])
    ctl("mount -t tmpfs tmpfs /low")
    fill(world.path / "low")
    if kind != "tmpfs":
        ctl("mount -t nullfs /low /m")
    base = world.path / ("low" if kind == "tmpfs" else "m")
    updated = "/m" if kind == "null" else "/low"
    try:
        check(base, False)
        ctl(f"mount -u -o {flag} {updated}")
        check(base, True)
        ctl(f"mount -u -o {off} {updated}")
        check(base, False)
    finally:
        if kind != "tmpfs":
            ctl("umount -f /m")
        ctl("umount -f /low")


@as_root
def test_flags_given_at_once(world: Rig, ctl: Callable[[str], None], transport: str) -> None:
    """What if a null mount is made with its flags, over a mount without any?

    A connection of its own is mounted nosuid by the host: the bits are seen, and mean nothing.
    """
    ctl("mount -t tmpfs tmpfs /low")
    fill(world.path / "low")
    ctl("mount -t null -o ro,noexec,nosuid,nosymfollow,noatime /low /m")
    try:
        assert not reads_move_atime(world.path / "m")
        for flag in ("ro", "noexec", "nosuid", "nosymfollow"):
            if transport == "pyfuse3" or flag != "nosuid":
                CHECKS[flag](world.path / "m", True)
        assert os.statvfs(world.path / "m").f_flag & os.ST_NOSUID
        assert reads_move_atime(world.path / "low")
        for flag in ("noexec", "nosuid", "nosymfollow", "ro"):
            CHECKS[flag](world.path / "low", False)
    finally:
        ctl("umount -f /m")
        ctl("umount -f /low")


def test_devices_of_a_nodev_mount(world: Rig, ctl: Callable[[str], None]) -> None:
    """What if devices that we serve ourselves are on a mount that allows none?"""
    ctl("mount -t devfs -o nodev devfs /m")
    assert number_of(lambda: os.open(world.path / "m" / "null", os.O_RDONLY)) == errno.ENXIO
    assert number_of(lambda: (world.path / "dev" / "null").read_bytes()) == 0


@as_root
def test_a_list_does_not_let_execute(world: Rig, ctl: Callable[[str], None]) -> None:
    """What if an access list gives x on a noexec mount, where the mode shows none?"""
    if shutil.which("setfacl") is None:
        pytest.skip("needs the acl package")
    ctl("mount -t tmpfs tmpfs /m")
    prog = world.path / "m" / "prog"
    shutil.copy(shutil.which("true") or "/bin/true", prog)
    subprocess.run(["setfacl", "-m", "u:1234:rwx", str(prog)], check=True)
    as_user(1234, 1234, [], lambda: subprocess.run([prog], check=True).returncode)
    ctl("mount -u -o noexec /m")
    with pytest.raises(PermissionError):
        as_user(1234, 1234, [], lambda: subprocess.run([prog], check=True).returncode)


@as_root
def test_access_to_write_on_a_ro_mount(
    world: Rig, ctl: Callable[[str], None], transport: str
) -> None:
    """What if root asks for W_OK on a mount that is read-only inside? See CAVEATS.md."""
    ctl("mount -t tmpfs tmpfs /m")
    (world.path / "m" / "f").touch()
    ctl("mount -u -o ro /m")
    assert os.access(world.path / "m" / "f", os.W_OK) is (transport == "pyfuse3")
    assert number_of(lambda: append(world.path / "m" / "f")) == errno.EROFS
    ctl("mount -u -o rw /m")
    append(world.path / "m" / "f")


# --- forced unmounts ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tmpfs", "null"])
def test_forced_unmount_with_open_files(world: Rig, ctl: Callable[[str], None], kind: str) -> None:
    """What if files and directories are open, mapped, read and unlinked when the mount goes?"""
    ctl("mount -t tmpfs tmpfs /m" if kind == "tmpfs" else "mount -t null /low /m")
    base = world.path / "m"
    (base / "dir").mkdir()
    (base / "dir" / "in").touch()
    (base / "file").write_bytes(b"x" * 10_000)
    (base / "unlinked").write_bytes(b"y" * 10_000)
    with contextlib.ExitStack() as stack:
        fds = []
        for name, how in (("file", os.O_RDWR), ("unlinked", os.O_RDWR), ("dir", os.O_RDONLY)):
            fds.append(os.open(base / name, how))
            stack.callback(os.close, fds[-1])
        file, unlinked, directory = fds
        (base / "unlinked").unlink()
        assert len(os.pread(file, 10_000, 0)) == len(os.pread(unlinked, 10_000, 0)) == 10_000
        assert os.listdir(directory) == ["in"]
        os.fstat(file)
        ctl("umount -f /m")
        for fd in (file, unlinked):
            for call in (
                lambda fd=fd: os.pread(fd, 10, 0),
                lambda fd=fd: os.fstat(fd),
                lambda fd=fd: os.pwrite(fd, b"z", 0),
                lambda fd=fd: os.fsync(fd),
                lambda fd=fd: os.ftruncate(fd, 3),
                lambda fd=fd: os.fchmod(fd, 0o600),
            ):
                assert number_of(call) in GONE
        assert number_of(lambda: os.listdir(directory)) in GONE
        assert number_of(lambda: os.fstat(directory)) in GONE
        assert number_of(lambda: os.stat("in", dir_fd=directory)) in GONE
        assert number_of(lambda: os.open("new", os.O_CREAT | os.O_RDWR, dir_fd=directory)) in GONE
    assert os.listdir(base) == []
    count = "sum(n.pinned for n in s.root.nodes.by_id.values()) + len(s.root.nodes.orphans)"
    assert world.stat(count) == 0


# --- null mounts -------------------------------------------------------------------------------


def tree(base: Path) -> dict[str, tuple[int, int, bytes]]:
    """Name to link count, number and contents of every file."""
    found = {}
    for where, _, files in os.walk(base):
        for name in files:
            path = Path(where) / name
            is_ = path.stat()
            found[str(path.relative_to(base))] = (is_.st_nlink, is_.st_ino, path.read_bytes())
    return found


def test_null_mount(world: Rig, ctl: Callable[[str], None]) -> None:
    """What if a null mount stands in the tree it shows a part of: numbers, links, copies, EXDEV?"""
    base = world.path / "whole"
    (base / "a").mkdir(parents=True)
    (base / "b").mkdir()
    for number in range(5):
        (base / "a" / f"f{number}").write_text(f"{number}")
        os.link(base / "a" / f"f{number}", base / "a" / f"g{number}")
    ctl("mount -t null /whole/a /whole/b")
    try:
        files = tree(base)
        assert len(files) == 20
        assert {nlink for nlink, _, _ in files.values()} == {2}
        assert (
            len({(os.stat(base / name).st_dev, ino) for name, (_, ino, _) in files.items()}) == 10
        )
        for number in range(5):
            for side in "ab":
                assert files[f"{side}/f{number}"] == files[f"{side}/g{number}"]
        check_copies(base, files, world.path.with_name("copies"))
        there = base / "b" / "new"
        assert number_of(lambda: os.link(base / "a" / "f0", there)) == errno.EXDEV
        assert number_of(lambda: os.rename(base / "a" / "f0", there)) == errno.EXDEV
        os.rename(base / "b" / "f0", base / "b" / "h0")
        assert (base / "a" / "h0").read_text() == "0"
        ctl("mount -u -o ro /whole/b")
        assert number_of(lambda: (base / "b" / "h0").write_text("x")) == errno.EROFS
        (base / "a" / "h0").write_text("changed")
        assert (base / "b" / "h0").read_text() == "changed"
    finally:
        ctl("umount -f /whole/b")
        shutil.rmtree(base)


def check_copies(base: Path, files: dict[str, tuple[int, int, bytes]], out: Path) -> None:
    """Copy a tree with tools that find hard links by number: no two files became one."""
    copies = {"tar": f"tar -C '{base}' -cf - . | tar -C '{out}/tar' -xf -"}
    if shutil.which("rsync") is not None:
        copies["rsync"] = f"rsync -aH '{base}/' '{out}/rsync/'"
    for tool, command in copies.items():
        (out / tool).mkdir(parents=True)
        subprocess.run(["sh", "-ec", command], check=True)
        copied = tree(out / tool)
        assert {name: (n, data) for name, (n, _, data) in copied.items()} == {
            name: (n, data) for name, (n, _, data) in files.items()
        }
        assert len({ino for _, ino, _ in copied.values()}) == 10


# --- limits of a tmpfs ---------------------------------------------------------------------------


def test_size_of_a_tmpfs(world: Rig, ctl: Callable[[str], None]) -> None:
    """What if 64 KiB are allowed: is every byte of them there, not one more, and again?"""
    ctl("mount -t tmpfs -o size=64k tmpfs /m")
    base = world.path / "m"
    used = "next(mp.data.pages_used for mp in vfs.mounts if mp.onname == '/m')"
    for _ in range(2):
        with (base / "f").open("wb", buffering=0) as file:
            assert file.write(b"x" * 65_536) == 65_536
            assert number_of(partial(file.write, b"y")) == errno.ENOSPC
            assert os.pwrite(file.fileno(), b"z", 65_535) == 1
        assert (base / "f").stat().st_size == 65_536
        assert number_of(lambda: (base / "g").write_bytes(b"y")) == errno.ENOSPC
        os.truncate(base / "f", 65_536 - 4096)
        (base / "g").write_bytes(b"y" * 4096)
        assert number_of(lambda: append(base / "g")) == errno.ENOSPC
        assert (base / "f").read_bytes() == b"x" * (65_536 - 4096)
        (base / "f").unlink()
        (base / "g").unlink()
        eventually(lambda: world.stat(used) == 0, "the host has released what was closed")
    with (base / "f").open("wb", buffering=0) as file:
        assert file.write(b"x" * 100_000) == 65_536, "what fits is written"
    assert (base / "f").read_bytes() == b"x" * 65_536


def test_inodes_of_a_tmpfs(world: Rig, ctl: Callable[[str], None]) -> None:
    """What if ten files are allowed, the root among them: files, directories, links, and again?"""
    ctl("mount -t tmpfs -o inodes=10 tmpfs /m")
    base = world.path / "m"
    used = "next(len(mp.data.nodes) for mp in vfs.mounts if mp.onname == '/m')"
    for _ in range(2):
        for number in range(8):
            (base / f"f{number}").touch()
        (base / "d").mkdir()
        for make in (
            lambda: (base / "more").touch(),
            lambda: (base / "more").mkdir(),
            lambda: (base / "more").symlink_to("f0"),
            lambda: os.mkfifo(base / "more"),
        ):
            assert number_of(make) == errno.ENOSPC
        os.link(base / "f0", base / "name")
        (base / "name").unlink()
        (base / "f0").unlink()
        eventually(lambda: not number_of((base / "more").mkdir), "the host has forgotten one")
        for path in base.iterdir():
            (path.rmdir if path.is_dir() else path.unlink)()
        eventually(lambda: world.stat(used) == 1, "the host has forgotten what was removed")


# --- coming and going --------------------------------------------------------------------------


def test_mounts_are_seen_at_return(world: Rig, ctl: Callable[[str], None]) -> None:
    """What if a file is made right after a mount, 200 times: is it ever in the wrong directory?"""
    base = world.path / "m"
    (base / "covered").touch()
    for number in range(200):
        ctl("mount -t tmpfs tmpfs /m")
        (base / f"f{number}").touch()
        assert os.listdir(base) == [f"f{number}"]
        ctl("umount /m")
        assert os.listdir(base) == ["covered"], number
        assert not (base / f"f{number}").exists()
    (base / "covered").unlink()
