"""The second half of the conformance suite: times, owners, flags, attributes, locks, events."""

from __future__ import annotations

from collections.abc import Callable

from dfuser.libkern import acl
from dfuser.libkern.acl import Acl
from dfuser.libkern.errno import (
    EACCES,
    EEXIST,
    EINVAL,
    ENOATTR,
    ENOENT,
    EOPNOTSUPP,
    EPERM,
    EXDEV,
    KError,
)
from dfuser.libkern.fcntl import (
    F_POSIX,
    F_RDLCK,
    F_SETLK,
    F_WRLCK,
    O_APPEND,
    O_RDONLY,
    O_RDWR,
)
from dfuser.libkern.klist import (
    NOTE_ATTRIB,
    NOTE_DELETE,
    NOTE_EXTEND,
    NOTE_LINK,
    NOTE_RENAME,
    NOTE_WRITE,
    HookKnote,
)
from dfuser.libkern.stat import (
    SF_IMMUTABLE,
    UF_APPEND,
    UF_IMMUTABLE,
    UF_NODUMP,
    UF_NOUNLINK,
)
from dfuser.vfs.lockf import Flock
from dfuser.vfs.nlookup import NlookupData, nlookup
from dfuser.vfs.vop import (
    EXTATTR_CREATE,
    EXTATTR_REPLACE,
)
from tests.conform.world import (
    ALICE,
    BOB,
    ROOT,
    SECOND,
    SYSTEM,
    Case,
    World,
    collector,
    errno,
)

CASES: list[Case] = []
case = collector(CASES)


# --- times ----------------------------------------------------------------------------------


def _times(w: World, path: bytes) -> tuple[int, int, int]:
    at = w.stat(path)
    assert at.atime is not None
    assert at.mtime is not None
    assert at.ctime is not None
    return at.atime, at.mtime, at.ctime


@case
def times_of_a_new_file(w: World) -> None:
    # What if a file is made: are its four times now, and its directory's two?
    now = w.tick()
    w.put(b"a")
    at = w.stat(b"a")
    assert {at.atime, at.mtime, at.ctime, at.btime} == {now}
    assert _times(w, b"")[1:] == (now, now)


CHANGES: list[tuple[str, Callable[[World], None], str]] = [
    ("write", lambda w: w.put(b"d/a", b"x"), "mc"),
    ("truncate", lambda w: w.setattr(b"d/a", size=1), "mc"),
    ("chmod", lambda w: w.setattr(b"d/a", mode=0o600), "c"),
    ("chown", lambda w: w.setattr(b"d/a", uid=5), "c"),
    ("chflags", lambda w: w.setattr(b"d/a", flags=UF_NODUMP), "c"),
    ("link", lambda w: w.link(b"d/a", b"d/l"), "c"),
    ("rename", lambda w: w.rename(b"d/a", b"d/n"), "c"),
    ("setxattr", lambda w: w.setx(b"d/a", b"k", b"v"), "c"),
]


@case
def times_of_changes(w: World) -> None:
    # What if a file is changed in each way: which of mtime and ctime move, of it and its directory?
    for what, change, moved in CHANGES:
        w.mkdir(b"d")
        w.put(b"d/a", b"old")
        a0, m0, c0 = _times(w, b"d/a")
        d0 = _times(w, b"d")
        now = w.tick()
        change(w)
        path = b"d/n" if what == "rename" else b"d/a"
        want = (a0, now if "m" in moved else m0, now if "c" in moved else c0)
        assert _times(w, path) == want, what
        names = what in ("link", "rename")
        assert _times(w, b"d") == ((d0[0], now, now) if names else d0), what
        for name in w.ls(b"d"):
            w.unlink(b"d/" + name)
        w.rmdir(b"d")


@case
def times_of_removal(w: World) -> None:
    # What if one of two names goes: does the other's ctime move, by unlink and by rename over it?
    w.mkdir(b"d")
    w.put(b"d/a")
    w.link(b"d/a", b"keep")
    now = w.tick()
    w.unlink(b"d/a")
    assert _times(w, b"keep")[2] == now
    assert _times(w, b"d")[1:] == (now, now)
    w.link(b"keep", b"d/b")
    w.put(b"d/x")
    now = w.tick()
    w.rename(b"d/x", b"d/b")
    assert _times(w, b"keep")[2] == now


@case
def set_times(w: World) -> None:
    # What if times are set, to the nanosecond, one alone, and to now?
    w.put(b"a")
    w.setattr(b"a", atime=1_000_000_007, mtime=-5)
    assert _times(w, b"a")[:2] == (1_000_000_007, -5)
    now = w.tick()
    w.setattr(b"a", mtime=77)
    assert _times(w, b"a") == (1_000_000_007, 77, now)
    w.setattr(b"a", atime_now=True, mtime_now=True)
    assert _times(w, b"a") == (now, now, now)


@case
def access_time(w: World) -> None:
    # What if a file is read at once, again, after a change, and a day later?
    w.put(b"a", b"x")
    file = w.open(b"a", O_RDONLY)
    first = w.tick()
    w.read(file, 0, 1)
    assert _times(w, b"a")[0] == first
    w.tick()
    w.read(file, 0, 1)
    assert _times(w, b"a")[0] == first
    w.setattr(b"a", mode=0o600)
    second = w.tick()
    w.read(file, 0, 1)
    assert _times(w, b"a")[0] == second
    third = w.tick(25 * 3600 * SECOND)
    w.read(file, 0, 1)
    assert _times(w, b"a")[0] == third
    file.drop()
    w.mkdir(b"d")
    now = w.tick()
    w.readdir(b"d")
    assert _times(w, b"d")[0] == now
    w.symlink(b"x", b"l")
    now = w.tick()
    w.readlink(b"l")
    assert _times(w, b"l")[0] == now


# --- owners, modes, flags -------------------------------------------------------------------


@case
def owner_and_group_of_new_files(w: World) -> None:
    # What if another user creates, in a plain directory and in a set-gid one?
    w.mkdir(b"plain")
    w.setattr(b"plain", mode=0o777)
    w.mkdir(b"team")
    w.setattr(b"team", mode=0o2777, gid=500)
    for path, gid in ((b"plain", ALICE.gid), (b"team", 500)):
        w.put(path + b"/f", mode=0o640, cred=ALICE)
        w.mkdir(path + b"/d", 0o750, ALICE)
        w.symlink(b"t", path + b"/l", ALICE)
        for name in (b"/f", b"/d", b"/l"):
            at = w.stat(path + name)
            assert (at.uid, at.gid) == (ALICE.uid, gid), path + name
        assert w.mode(path + b"/f") == 0o640
        assert w.mode(path + b"/d") == (0o750 if path == b"plain" else 0o2750)


@case
def set_id_bits_go(w: World) -> None:
    # What if a set-id file is written, cut or given away, by its owner and by root?
    def fresh() -> None:
        w.put(b"s", b"x")
        w.setattr(b"s", uid=ALICE.uid, gid=ALICE.gid)
        w.setattr(b"s", mode=0o6777)

    fresh()
    file = w.open(b"s", O_RDWR, ALICE)
    w.write(file, 0, b"y")
    file.drop()
    assert w.mode(b"s") == 0o777
    fresh()
    w.setattr(b"s", ALICE, size=0)
    assert w.mode(b"s") == 0o777
    fresh()
    w.setattr(b"s", ALICE, gid=500)
    assert w.mode(b"s") == 0o777
    fresh()
    file = w.open(b"s", O_RDWR)
    w.write(file, 0, b"y")
    file.drop()
    assert w.mode(b"s") == 0o6777


@case
def who_may_change_attributes(w: World) -> None:
    # What if somebody who is not the owner changes mode, owner, times, size?
    w.put(b"a", b"x")
    w.setattr(b"a", uid=ALICE.uid, gid=ALICE.gid)
    for what in ({"mode": 0o777}, {"uid": BOB.uid}, {"gid": BOB.gid}, {"mtime": 5}):
        with errno(EPERM):
            w.setattr(b"a", BOB, **what)
    with errno(EACCES):
        w.setattr(b"a", BOB, size=0)
    with errno(EPERM):
        w.setattr(b"a", ALICE, uid=BOB.uid)
    with errno(EPERM):
        w.setattr(b"a", ALICE, gid=BOB.gid)
    w.setattr(b"a", ALICE, gid=500)
    w.setattr(b"a", ALICE, mode=0o2666)
    assert w.mode(b"a") == 0o2666
    w.setattr(b"a", BOB, atime_now=True, mtime_now=True)


@case
def all_or_nothing(w: World) -> None:
    # What if one of two changes is not allowed: is the other made?
    w.put(b"a", b"x")
    w.setattr(b"a", uid=ALICE.uid)
    with errno(EPERM):
        w.setattr(b"a", ALICE, mode=0o600, uid=BOB.uid)
    assert w.mode(b"a") == 0o644


@case
def file_flags(w: World) -> None:
    # What if a file or directory is immutable, append-only or must keep its name?
    w.mkdir(b"d")
    w.put(b"d/a", b"x")
    for flag in (UF_IMMUTABLE, SF_IMMUTABLE):
        w.setattr(b"d/a", flags=flag)
        with errno(EPERM):
            w.open(b"d/a", O_RDWR)
        with errno(EPERM):
            w.setattr(b"d/a", mode=0o600)
        with errno(EPERM):
            w.unlink(b"d/a")
        with errno(EPERM):
            w.rename(b"d/a", b"d/b")
        with errno(EPERM):
            w.setx(b"d/a", b"k", b"v")
        w.setattr(b"d/a", flags=0)
    w.setattr(b"d/a", flags=UF_NOUNLINK)
    with errno(EPERM):
        w.unlink(b"d/a")
    w.put(b"d/a", b"y")
    w.setattr(b"d/a", flags=UF_APPEND)
    with errno(EPERM):
        w.open(b"d/a", O_RDWR)
    file = w.open(b"d/a", O_RDWR | O_APPEND)
    w.write(file, 0, b"z")
    file.drop()
    with errno(EPERM):
        w.setattr(b"d/a", size=0)
    assert w.get(b"d/a") == b"yz"
    w.setattr(b"d/a", flags=0)
    w.setattr(b"d", flags=UF_IMMUTABLE)
    for call in (lambda: w.put(b"d/n"), lambda: w.unlink(b"d/a"), lambda: w.mkdir(b"d/n")):
        with errno(EPERM):
            call()
    w.setattr(b"d", flags=UF_APPEND)
    w.put(b"d/n")
    with errno(EPERM):
        w.unlink(b"d/n")
    w.setattr(b"d", flags=0)


# --- extended attributes and access control lists --------------------------------------------


@case
def extended_attributes(w: World) -> None:
    # What if attributes are made, replaced, listed, removed, empty and too long?
    w.put(b"a")
    with errno(ENOATTR):
        w.getx(b"a", b"k")
    w.setx(b"a", b"k", b"")
    assert w.getx(b"a", b"k") == b""
    with errno(EEXIST):
        w.setx(b"a", b"k", b"v", EXTATTR_CREATE)
    w.setx(b"a", b"k", b"v", EXTATTR_REPLACE)
    with errno(ENOATTR):
        w.setx(b"a", b"other", b"v", EXTATTR_REPLACE)
    w.setx(b"a", b"other", b"\0" * 5000, EXTATTR_CREATE)
    assert sorted(w.listx(b"a")) == [b"k", b"other"]
    w.setx(b"a", b"security.x", b"s", space=SYSTEM)
    assert w.listx(b"a", SYSTEM) == [b"security.x"]
    with errno(EOPNOTSUPP):
        w.setx(b"a", b"nobody.x", b"", space=SYSTEM)
    w.rmx(b"a", b"k")
    with errno(ENOATTR):
        w.rmx(b"a", b"k")
    assert w.listx(b"a") == [b"other"]
    w.symlink(b"a", b"l")
    with errno(EPERM):
        w.setx(b"l", b"k", b"v")


@case
def access_list_and_mode(w: World) -> None:
    # What if an access list is set, the mode changed, the list removed?
    w.put(b"a", b"x", 0o600)
    lst = Acl(6, 4, 0, ((BOB.uid, 6),), (), 6)
    w.setx(b"a", acl.XATTR_ACCESS, lst.pack(), space=SYSTEM)
    assert w.mode(b"a") == 0o660
    w.open(b"a", O_RDWR, BOB).drop()
    with errno(EACCES):
        w.open(b"a", O_RDONLY, ALICE)
    w.setattr(b"a", mode=0o640)
    assert Acl.parse(w.getx(b"a", acl.XATTR_ACCESS, SYSTEM)) == lst.chmod(0o640)
    with errno(EACCES):
        w.open(b"a", O_RDWR, BOB)
    w.rmx(b"a", acl.XATTR_ACCESS, SYSTEM)
    assert w.mode(b"a") == 0o640
    w.setx(b"a", acl.XATTR_ACCESS, Acl.from_mode(0o604).pack(), space=SYSTEM)
    assert w.mode(b"a") == 0o604
    with errno(ENOATTR):
        w.getx(b"a", acl.XATTR_ACCESS, SYSTEM)
    with errno(EPERM):
        w.setx(b"a", acl.XATTR_ACCESS, lst.pack(), space=SYSTEM, cred=BOB)
    with errno(EINVAL):
        w.setx(b"a", acl.XATTR_ACCESS, b"jnk", space=SYSTEM)
    with errno(EACCES):
        w.setx(b"a", acl.XATTR_DEFAULT, lst.pack(), space=SYSTEM)


@case
def access_list_shuts_a_directory(w: World) -> None:
    # What if a directory everybody may search gets a list that keeps one user out?
    w.mkdir(b"d")
    w.put(b"d/f")

    def walk() -> None:
        with NlookupData(w.vfs, w.top, w.top, b"d/f", BOB) as nd:
            nlookup(nd)

    walk()
    walk()
    lst = Acl(7, 5, 5, ((BOB.uid, 0),), (), 5)
    w.setx(b"d", acl.XATTR_ACCESS, lst.pack(), space=SYSTEM)
    with errno(EACCES):
        walk()
    w.rmx(b"d", acl.XATTR_ACCESS, SYSTEM)
    walk()


@case
def default_list_is_inherited(w: World) -> None:
    # What if a directory has a default list: what do a file, a directory and a link in it get?
    w.mkdir(b"d")
    lst = Acl(7, 5, 0, ((BOB.uid, 7),), (), 7)
    w.setx(b"d", acl.XATTR_DEFAULT, lst.pack(), space=SYSTEM)
    w.put(b"d/f", mode=0o666)
    assert w.mode(b"d/f") == 0o660
    got = Acl.parse(w.getx(b"d/f", acl.XATTR_ACCESS, SYSTEM))
    assert got == lst.inherit(0o666)[1]
    w.mkdir(b"d/s", 0o777)
    assert w.mode(b"d/s") == 0o770
    assert Acl.parse(w.getx(b"d/s", acl.XATTR_DEFAULT, SYSTEM)) == lst
    w.symlink(b"x", b"d/l")
    with errno(EOPNOTSUPP):
        w.getx(b"d/l", acl.XATTR_ACCESS, SYSTEM)
    w.rmx(b"d", acl.XATTR_DEFAULT, SYSTEM)
    w.put(b"d/g", mode=0o604)
    assert w.mode(b"d/g") == 0o604


# --- the rest -------------------------------------------------------------------------------


class _Owner:
    """A process as far as locks go."""

    def __init__(self, pid: int) -> None:
        self.pid, self.uid, self.posixlocks, self.posixlock_limit = pid, 0, 0, -1
        self.locks = None


@case
def advisory_locks(w: World) -> None:
    # What if two processes lock parts of a file?
    w.put(b"a", b"x" * 100)
    vp = w.vp(b"a")
    one, other = _Owner(1), _Owner(2)
    vp.ops.use.vop_advlock(vp, one, F_SETLK, Flock(F_WRLCK, 0, 50), F_POSIX)
    vp.ops.use.vop_advlock(vp, other, F_SETLK, Flock(F_RDLCK, 50, 0), F_POSIX)
    try:
        vp.ops.use.vop_advlock(vp, other, F_SETLK, Flock(F_RDLCK, 49, 1), F_POSIX)
    except KError as error:
        refused = error.errno
    else:
        refused = 0
    assert refused


@case
def watchers_are_told(w: World) -> None:
    # What if a file and its directory are watched while everything happens to them?
    w.mkdir(b"d")
    w.put(b"d/a")
    everything = NOTE_WRITE | NOTE_EXTEND | NOTE_ATTRIB | NOTE_LINK | NOTE_RENAME | NOTE_DELETE
    on_file = HookKnote(everything, lambda note: None)
    on_dir = HookKnote(everything, lambda note: None)
    vp, dvp = w.vp(b"d/a").ref(), w.vp(b"d").ref()
    vp.ops.use.vop_kqfilter(vp, on_file)
    dvp.ops.use.vop_kqfilter(dvp, on_dir)
    steps: list[tuple[Callable[[], None], int, int]] = [
        (lambda: w.setattr(b"d/a", mode=0o600), NOTE_ATTRIB, 0),
        (lambda: w.put(b"d/a", b"xyz"), NOTE_WRITE | NOTE_EXTEND, 0),
        (lambda: w.link(b"d/a", b"d/b"), NOTE_LINK, NOTE_WRITE),
        (lambda: w.rename(b"d/a", b"d/c"), NOTE_RENAME, NOTE_WRITE),
        (lambda: w.mkdir(b"d/s"), 0, NOTE_WRITE | NOTE_LINK),
        (lambda: w.rmdir(b"d/s"), 0, NOTE_WRITE | NOTE_LINK),
        (lambda: w.unlink(b"d/b"), NOTE_DELETE, NOTE_WRITE),
    ]
    for number, (step, told_file, told_dir) in enumerate(steps):
        step()
        assert on_file.take() & told_file == told_file, number
        assert on_dir.take() == told_dir, number
    vp.rele()
    dvp.rele()


@case
def figures_move(w: World) -> None:
    # What if files are made and removed: do free blocks and files follow, and come back?
    before = w.statfs()
    w.put(b"a", b"x" * 40_960)
    middle = w.statfs()
    assert before.bfree - middle.bfree == 40_960 // before.bsize
    assert before.ffree - middle.ffree == 1
    assert (middle.blocks, middle.files, middle.namemax) == (before.blocks, before.files, 255)
    w.unlink(b"a")
    assert w.statfs() == before


@case
def found_by_number(w: World) -> None:
    # What if a file is asked for by number, with its vnode in memory, reclaimed, and removed?
    w.put(b"a", b"data")
    vp = w.vp(b"a")
    mp, ino = vp.mount, vp.ino
    assert mp is not None
    again = mp.ops.vfs_vget(mp, ino)
    assert again is vp
    again.rele()
    w.vfs.vnodes.vgone(vp)
    fresh = mp.ops.vfs_vget(mp, ino)
    assert fresh.ops.use.vop_getattr(fresh).size == 4
    fresh.rele()
    assert w.get(b"a") == b"data"
    w.unlink(b"a")
    with errno(ENOENT):
        mp.ops.vfs_vget(mp, ino)


@case
def numbers_are_not_used_again(w: World) -> None:
    # What if many files are made and removed: is a number ever given out twice?
    seen = set()
    for _ in range(200):
        w.put(b"a")
        seen.add(w.stat(b"a").fileid)
        w.unlink(b"a")
    assert len(seen) == 200


@case
def across_mounts(w: World) -> None:
    # What if a name shall move to, or be linked from, another mount?
    w.mkdir(b"mnt")
    other = w.vfs.mounts.mount("tmpfs", "tmpfs", w.nch(b"mnt"), {}, 0, ROOT)
    w.put(b"a")
    with errno(EXDEV):
        w.rename(b"a", b"mnt/a")
    with errno(EXDEV):
        w.link(b"a", b"mnt/a")
    w.vfs.mounts.unmount(other)
