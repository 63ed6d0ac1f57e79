"""Who may do what: mode bits, sticky directories, chmod, chown, set-user-ID and set-group-ID."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from tests.posix import linux
from tests.posix.case import case, refuse, same, table
from tests.posix.tools import ALICE, BOB, FRIEND, User, as_user, folder, give, mode_of, opened, put

WHO = {"owner": (ALICE, 6), "group": (FRIEND, 3), "other": (BOB, 0)}
OPEN_FLAGS = {4: os.O_RDONLY, 2: os.O_WRONLY, 6: os.O_RDWR}
STICKY_CALLS: dict[str, Callable[[Path], object]] = {
    "unlink": lambda p: os.unlink(p / "f"),
    "rmdir": lambda p: os.rmdir(p / "d"),
    "rename": lambda p: os.rename(p / "f", p / "new"),
    "rename_directory": lambda p: os.rename(p / "d", p / "new"),
}


@table({f"{who}-{bits}": (who, bits) for who in WHO for bits in (0, 2, 4, 6)}, root=True)
def one_class_counts(d: Path, who: str, bits: int) -> None:
    """Only the bits of the caller's own class count, even when another class grants more."""
    user, shift = WHO[who]
    path = give(put(d / "f"), ALICE, 0o666 & ~(7 << shift) | bits << shift)
    for wanted, flags in OPEN_FLAGS.items():
        if wanted & bits == wanted:
            as_user(user, _open_close, path, flags)
        else:
            refuse(errno.EACCES, as_user, user, _open_close, path, flags)


def _open_close(path: Path, flags: int) -> None:
    os.close(os.open(path, flags))


@table({who: (who,) for who in WHO}, root=True)
def access_tells_the_same(d: Path, who: str) -> None:
    """access(2) answers by the same class."""
    user, shift = WHO[who]
    path = give(put(d / "f"), ALICE, 0o777 & ~(7 << shift) | 5 << shift)
    as_user(user, linux.access, path, os.R_OK | os.X_OK)
    refuse(errno.EACCES, as_user, user, linux.access, path, os.W_OK)


@case(root=True)
def root_may_read_and_write_all(d: Path) -> None:
    """Root reads and writes mode 0, and executes only what somebody may execute."""
    path = give(put(d / "f", b"abc"), ALICE, 0)
    same(path.read_bytes(), b"abc", "bytes")
    refuse(errno.EACCES, linux.access, path, os.X_OK)
    path.chmod(0o100)
    linux.access(path, os.X_OK)


@case(root=True)
def supplementary_groups_count(d: Path) -> None:
    """A member by a supplementary group has the group's rights."""
    path = give(put(d / "f"), ALICE, 0o060)
    as_user(FRIEND, _open_close, path, os.O_RDWR)
    refuse(errno.EACCES, as_user, BOB, _open_close, path, os.O_RDWR)


@table({name: (name,) for name in STICKY_CALLS}, root=True)
def sticky_protects(d: Path, name: str) -> None:
    """In a sticky directory nobody touches the names of others: EPERM."""
    place = _sticky(d)
    refuse((errno.EPERM, errno.EACCES), as_user, BOB, STICKY_CALLS[name], place)


@table({name: (name,) for name in STICKY_CALLS}, root=True)
def sticky_lets_the_owner(d: Path, name: str) -> None:
    """The owner of the file may."""
    as_user(ALICE, STICKY_CALLS[name], _sticky(d))


@table({name: (name,) for name in STICKY_CALLS}, root=True)
def sticky_lets_the_directory_owner(d: Path, name: str) -> None:
    """The owner of the directory may."""
    place = _sticky(d)
    os.chown(place, BOB.uid, BOB.gid)
    as_user(BOB, STICKY_CALLS[name], place)


@case(root=True)
def sticky_protects_the_replaced(d: Path) -> None:
    """A rename over somebody else's file in a sticky directory is EPERM."""
    place = _sticky(d)
    give(put(place / "mine"), BOB)
    refuse((errno.EPERM, errno.EACCES), as_user, BOB, os.rename, place / "mine", place / "f")


def _sticky(d: Path) -> Path:
    place = folder(d / "sticky", 0o1777)
    give(put(place / "f", mode=0o666), ALICE)
    give(folder(place / "d"), ALICE, 0o777)
    return place


@case(root=True)
def moving_a_directory_needs_write_on_it(d: Path) -> None:
    """Moving a directory elsewhere changes its .., so its own w is needed: EACCES."""
    give(d, BOB)
    give(folder(d / "to"), BOB)
    give(folder(d / "dir"), ALICE, 0o755)
    refuse(errno.EACCES, as_user, BOB, os.rename, d / "dir", d / "to" / "dir")


@case(root=True)
def chmod_by_others(d: Path) -> None:
    """chmod is for the owner and root: EPERM."""
    path = give(put(d / "f"), ALICE)
    as_user(ALICE, os.chmod, path, 0o600)
    refuse(errno.EPERM, as_user, BOB, os.chmod, path, 0o777)
    same(mode_of(path), 0o600, "mode")


@table({f"{mode:04o}": (mode,) for mode in (0, 0o1, 0o111, 0o777, 0o1777, 0o4755, 0o2755, 0o7777)})
def chmod_sets_all_bits(d: Path, mode: int) -> None:
    """Root's chmod sets all twelve bits, on files and directories, by path and descriptor."""
    put(d / "f").chmod(mode)
    same(mode_of(d / "f"), mode, "file")
    with opened(folder(d / "dir"), os.O_RDONLY) as f:
        os.fchmod(f, mode)
    same(mode_of(d / "dir"), mode, "directory")


@case()
def chmod_follows_links(d: Path) -> None:
    """chmod of a link changes the file."""
    put(d / "f")
    (d / "s").symlink_to("f")
    os.chmod(d / "s", 0o640)
    same(mode_of(d / "f"), 0o640, "mode")


@case(root=True)
def chmod_set_group_id_by_a_stranger(d: Path) -> None:
    """The owner who is not in the file's group cannot set set-group-ID: the bit is dropped."""
    path = put(d / "f")
    os.chown(path, ALICE.uid, BOB.gid)
    as_user(ALICE, os.chmod, path, 0o2755)
    same(mode_of(path), 0o755, "mode")


@case(root=True)
def chmod_sticky_on_a_file(d: Path) -> None:
    """Linux lets an owner set the sticky bit on a file."""
    path = give(put(d / "f"), ALICE)
    as_user(ALICE, os.chmod, path, 0o1644)
    same(mode_of(path), 0o1644, "mode")


@case(root=True)
def chown_sets_both(d: Path) -> None:
    """Root's chown sets owner and group; -1 leaves one alone."""
    path = put(d / "f")
    os.chown(path, 7, 8)
    os.chown(path, 9, -1)
    same((path.stat().st_uid, path.stat().st_gid), (9, 8), "owner")
    os.chown(path, -1, 10)
    same((path.stat().st_uid, path.stat().st_gid), (9, 10), "owner")


@case(root=True)
def chown_large_numbers(d: Path) -> None:
    """User and group numbers have 32 bits."""
    path = put(d / "f")
    os.chown(path, 4_000_000_000, 4_000_000_001)
    found = path.stat()
    same((found.st_uid, found.st_gid), (4_000_000_000, 4_000_000_001), "owner")


@case(root=True)
def lchown_changes_the_link(d: Path) -> None:
    """lchown changes the link, chown the target."""
    put(d / "f")
    (d / "s").symlink_to("f")
    os.lchown(d / "s", 7, 8)
    os.chown(d / "s", 9, 10)
    same(((d / "s").lstat().st_uid, (d / "f").stat().st_uid), (7, 9), "owners")


@case(root=True)
def chown_by_others(d: Path) -> None:
    """Giving a file away is EPERM, and so is taking one."""
    path = give(put(d / "f"), ALICE)
    refuse(errno.EPERM, as_user, ALICE, os.chown, path, BOB.uid, -1)
    refuse(errno.EPERM, as_user, BOB, os.chown, path, BOB.uid, -1)
    refuse(errno.EPERM, as_user, BOB, os.chown, path, -1, BOB.gid)


@case(root=True)
def chgrp_by_the_owner(d: Path) -> None:
    """The owner may give the file to a group he is in, and to no other."""
    path = put(d / "f")
    os.chown(path, FRIEND.uid, FRIEND.gid)
    as_user(FRIEND, os.chown, path, -1, 4001)
    same(path.stat().st_gid, 4001, "group")
    refuse(errno.EPERM, as_user, FRIEND, os.chown, path, -1, 4002)


@table(
    {
        "suid": (0o4755, 0o755),
        "sgid": (0o2755, 0o755),
        "both": (0o6755, 0o755),
        "sgid-no-x": (0o2645, 0o2645),
    },
    root=True,
)
def chown_clears(d: Path, mode: int, want: int) -> None:
    """A chgrp by the owner takes set-user-ID and an executable's set-group-ID away.

    Without group x the bit means no program, and a member of the group keeps it.
    """
    path = put(d / "f")
    os.chown(path, FRIEND.uid, FRIEND.gid)
    path.chmod(mode)
    as_user(FRIEND, os.chown, path, -1, 4001)
    same(mode_of(path), want, "mode")


@case(root=True)
def chown_clears_for_root_too(d: Path) -> None:
    """Linux takes the bits when root changes the owner, too, but not from directories."""
    path = give(put(d / "f"), ALICE, 0o6755)
    os.chown(path, BOB.uid, BOB.gid)
    same(mode_of(path), 0o755, "file")
    place = give(folder(d / "dir"), ALICE, 0o6755)
    os.chown(place, BOB.uid, BOB.gid)
    same(mode_of(place), 0o6755, "directory")


@table({"suid": (0o4777, 0o777), "sgid": (0o2777, 0o777), "both": (0o6777, 0o777)}, root=True)
def writing_clears(d: Path, mode: int, want: int) -> None:
    """A write by somebody without privilege takes set-user-ID and set-group-ID away."""
    path = give(put(d / "f", b"abc"), ALICE, mode)
    as_user(BOB, _write_byte, path)
    same(mode_of(path), want, "mode")


@table({"suid": (0o4777, 0o777), "sgid": (0o2777, 0o777)}, root=True)
def truncating_clears(d: Path, mode: int, want: int) -> None:
    """A truncate by somebody without privilege does so as well."""
    path = give(put(d / "f", b"abc"), ALICE, mode)
    as_user(BOB, os.truncate, path, 1)
    same(mode_of(path), want, "mode")


@case(root=True)
def writing_as_root_keeps(d: Path) -> None:
    """A write by root keeps them (root has CAP_FSETID)."""
    path = give(put(d / "f", b"abc"), ALICE, 0o6755)
    _write_byte(path)
    same(mode_of(path), 0o6755, "mode")


def _write_byte(path: Path) -> None:
    with opened(path, os.O_WRONLY) as f:
        os.write(f, b"x")


@case(root=True)
def set_user_id_program_runs_as_owner(d: Path) -> None:
    """A set-user-ID program runs with its owner's rights, unless the mount is nosuid."""
    if os.statvfs(d).f_flag & os.ST_NOSUID:
        want = BOB.uid
    else:
        want = ALICE.uid
    program = d / "id"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    give(program, ALICE, 0o4755)
    same(as_user(BOB, _effective_user, program), want, "effective user")


def _effective_user(program: Path) -> int:
    reader, writer = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, writer, 1)]
    pid = os.posix_spawn(program, ["id", "-u"], {}, file_actions=actions)
    os.close(writer)
    said = os.read(reader, 100)
    os.waitpid(pid, 0)
    return int(said)


@case(root=True)
def utime_by_others(d: Path) -> None:
    """Setting times needs the owner (EPERM); setting them to now needs write (EACCES)."""
    path = give(put(d / "f"), ALICE, 0o644)
    refuse(errno.EPERM, as_user, BOB, os.utime, path, (1, 1))
    refuse(errno.EACCES, as_user, BOB, os.utime, path)
    path.chmod(0o666)
    as_user(BOB, os.utime, path)
    refuse(errno.EPERM, as_user, BOB, os.utime, path, (1, 1))


@case(root=True)
def truncate_needs_write(d: Path) -> None:
    """truncate(2) by path needs write: EACCES."""
    path = give(put(d / "f", b"abc"), ALICE, 0o644)
    refuse(errno.EACCES, as_user, BOB, os.truncate, path, 0)
    same(path.stat().st_size, 3, "size")


@case(root=True)
def changes_are_seen_by_others_at_once(d: Path) -> None:
    """A mode that root takes away binds the very next call of another process."""
    path = put(d / "f", mode=0o666)
    for mode, works in ((0o666, True), (0o600, False), (0o604, True), (0, False)):
        path.chmod(mode)
        if works:
            as_user(BOB, _open_close, path, os.O_RDONLY)
        else:
            refuse(errno.EACCES, as_user, BOB, _open_close, path, os.O_RDONLY)


@case(root=True)
def execute_needs_x(d: Path) -> None:
    """A program without x for the caller is EACCES."""
    program = d / "true"
    program.write_bytes(Path("/bin/true").read_bytes())
    give(program, ALICE, 0o744)
    refuse(errno.EACCES, as_user, BOB, os.execv, program, ["true"])


@case(root=True)
def nobody_owns_by_accident(d: Path) -> None:
    """User 0 in the group is not root: the group's rights, no more."""
    path = give(put(d / "f"), ALICE, 0o600)
    refuse(errno.EACCES, as_user, User(4005, 0), _open_close, path, os.O_RDONLY)
    same(stat.S_IMODE(path.stat().st_mode), 0o600, "mode")
