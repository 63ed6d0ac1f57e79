from __future__ import annotations

from typing import Any

import pytest

from dfuser.libkern.errno import (
    EACCES,
    EEXIST,
    EINVAL,
    ELOOP,
    ENAMETOOLONG,
    ENOENT,
    ENOTDIR,
    ENOTEMPTY,
    EPERM,
    EROFS,
    KError,
)
from dfuser.libkern.stat import UF_APPEND, UF_IMMUTABLE, VType
from dfuser.libkern.ucred import Ucred
from dfuser.vfs.cache import NCF, NcHandle
from dfuser.vfs.mount import MNT, Mount
from dfuser.vfs.nlookup import NLC, NlookupData, nlookup
from dfuser.vfs.nlwatch import NlookupStep
from dfuser.vfs.syscalls import (
    kern_lookup,
    kern_mkdir,
    kern_mknod,
    kern_setattr,
    kern_symlink,
)
from dfuser.vfs.vattr import Vattr
from dfuser.vfs.vfs import Vfs
from tests.unit.vfs.dictfs import ROOT, check, fs_of, make_vfs

USER = Ucred.of(1000, 1000, (2000,))


def world() -> Vfs:
    """A tree with files, links, and a second file system on /mnt (with a third on /mnt/in)."""
    vfs = make_vfs()
    root = vfs.rootnch
    tmp = kern_mkdir(vfs, root, b"tmp", 0o1777, ROOT)
    kern_mknod(vfs, tmp, b"his", 0o100644, 0, 0, ROOT)
    a = kern_mkdir(vfs, root, b"a", 0o755, ROOT)
    b = kern_mkdir(vfs, a, b"b", 0o755, ROOT)
    kern_mknod(vfs, b, b"f", 0o100644, 0, 0, ROOT)
    private = kern_mkdir(vfs, root, b"private", 0o700, ROOT)
    kern_mknod(vfs, private, b"f", 0o100644, 0, 0, ROOT)
    kern_mkdir(vfs, root, b"mine", 0o700, USER, False)
    links = ((b"abs", b"/a/b"), (b"rel", b"a/b/f"), (b"loop", b"loop"), (b"up", b".."),
             (b"slash", b"/a/b/"), (b"dangling", b"nowhere"))  # fmt: skip
    for name, target in links:
        kern_symlink(vfs, root, name, target, ROOT)
    mount(vfs, b"mnt")
    return vfs


def mount(vfs: Vfs, name: bytes, dnch: NcHandle | None = None, flags: int = 0) -> Mount:
    """Mount a second file system on a new directory."""
    on = kern_mkdir(vfs, dnch or vfs.rootnch, name, 0o755, ROOT)
    return vfs.mounts.mount("dict", "second", on, {}, flags, ROOT)


def walk(
    vfs: Vfs, path: bytes, flags: int = NLC.FOLLOW, cred: Ucred = ROOT, **kw: Any
) -> bytes | None:
    """The full path found, None for a negative result."""
    with NlookupData(vfs, kw.get("start"), kw.get("root"), path, cred, flags) as nd:
        nch = nlookup(nd)
        return vfs.cache.fullpath(nch) if nch.ncp.vp is not None else None


FOUND = [
    (b"/", b"/"),
    (b"//", b"/"),
    (b"/a/b/f", b"/a/b/f"),
    (b"a//b///f", b"/a/b/f"),
    (b"/a/b/", b"/a/b"),
    (b"/a/./b/../b/.", b"/a/b"),
    (b"/..", b"/"),
    (b"/../../a", b"/a"),
    (b"/a/b/../../..", b"/"),
    (b"/abs/f", b"/a/b/f"),
    (b"/abs", b"/a/b"),
    (b"/abs/", b"/a/b"),
    (b"/abs/..", b"/a"),
    (b"/rel", b"/a/b/f"),
    (b"/slash", b"/a/b"),
    (b"/slash/f", b"/a/b/f"),
    (b"/up", b"/"),
    (b"/mnt", b"/mnt"),
    (b"/mnt/..", b"/"),
    (b"/mnt/../mnt/../a", b"/a"),
    (b"/mnt/.", b"/mnt"),
]


@pytest.mark.parametrize(("path", "want"), FOUND)
def test_paths_that_lead_somewhere(path: bytes, want: bytes) -> None:
    """What if a path has dots, doubled slashes, links, mounts? It leads where POSIX says."""
    vfs = world()
    assert walk(vfs, path) == want
    check(vfs)
    assert all(mp.refs == (1 if mp is vfs.mounts.root else 0) for mp in vfs.mounts)


REFUSED = [
    (b"", NLC.FOLLOW, ENOENT),
    (b"/none", NLC.FOLLOW, ENOENT),
    (b"/none/x", NLC.CREATE, ENOENT),
    (b"/a/b/f/x", NLC.FOLLOW, ENOTDIR),
    (b"/a/b/f/", NLC.FOLLOW, ENOTDIR),
    (b"/a/b/f/.", NLC.FOLLOW, ENOTDIR),
    (b"/a/b/f/..", NLC.FOLLOW, ENOTDIR),
    (b"/rel/", NLC.FOLLOW, ENOTDIR),
    (b"/loop", NLC.FOLLOW, ELOOP),
    (b"/loop/x", 0, ELOOP),
    (b"/dangling", NLC.FOLLOW, ENOENT),
    (b"/" + b"n" * 256, NLC.FOLLOW, ENAMETOOLONG),
    (b"/new/", NLC.CREATE, ENOENT),
    (b"/a/.", NLC.CREATE, EEXIST),
    (b"/a/..", NLC.CREATE, EEXIST),
    (b"/a/.", NLC.DELETE, EINVAL),
    (b"/a/b/..", NLC.DELETE, ENOTEMPTY),
    (b"/a/.", NLC.RENAME_SRC, EINVAL),
    (b"/a/..", NLC.RENAME_DST, EINVAL),
    (b"/", NLC.CREATE | NLC.REFDVP, EEXIST),
    (b"/", NLC.DELETE | NLC.REFDVP, EACCES),
    (b"/a", NLC.CREATE | NLC.EXCL, EEXIST),
]


@pytest.mark.parametrize(("path", "flags", "errno"), REFUSED)
def test_paths_that_lead_nowhere(path: bytes, flags: int, errno: int) -> None:
    """What if a path cannot be walked? The errno is the one of the table; nothing stays held."""
    vfs = world()
    with pytest.raises(KError) as err:
        walk(vfs, path, flags)
    assert err.value.errno == errno
    check(vfs)
    assert vfs.mounts.root is not None
    assert vfs.mounts.root.refs == 1


def test_missing_last_component_is_what_create_wants() -> None:
    """What if the name does not exist? Negative for CREATE and RENAME_DST, and with WILLBEDIR."""
    vfs = world()
    for path, flags in (
        (b"/a/new", NLC.CREATE),
        (b"/a/new", NLC.RENAME_DST),
        (b"/a/new/", NLC.CREATE | NLC.WILLBEDIR),
        (b"/a/new//", NLC.RENAME_DST | NLC.WILLBEDIR),
    ):
        with NlookupData(vfs, None, None, path, ROOT, flags | NLC.REFDVP) as nd:
            nch = nlookup(nd)
            assert nch.ncp.name == b"new"
            assert nd.vp is None
            assert nd.dvp is not None
            assert nd.dvp.refcnt == 1
    check(vfs)


def test_32_links_pass_and_33_do_not() -> None:
    """What if links point at links? 32 are followed, the 33rd is ELOOP."""
    vfs = make_vfs()
    root = vfs.rootnch
    kern_mknod(vfs, root, b"l0", 0o100644, 0, 0, ROOT)
    for i in range(1, 34):
        kern_symlink(vfs, root, b"l%d" % i, b"l%d" % (i - 1), ROOT)
    assert walk(vfs, b"l32") == b"/l0"
    with pytest.raises(KError) as err:
        walk(vfs, b"l33")
    assert err.value.errno == ELOOP


def test_length_limits_are_exact() -> None:
    """What if names and paths reach the limits? 255 and 1023 bytes pass, one more does not."""
    vfs = make_vfs()
    kern_mkdir(vfs, vfs.rootnch, b"n" * 255, 0o755, ROOT)
    assert walk(vfs, b"n" * 255) == b"/" + b"n" * 255
    filler = b"/" + b"./" * 511
    assert len(filler) == 1023
    assert walk(vfs, filler) == b"/"
    with pytest.raises(KError) as err:
        walk(vfs, filler + b".")
    assert err.value.errno == ENAMETOOLONG
    kern_symlink(vfs, vfs.rootnch, b"long", b"./" * 500, ROOT)
    assert walk(vfs, b"long/" + b"./" * 11) == b"/"
    with pytest.raises(KError) as err:
        walk(vfs, b"long/" + b"./" * 12)
    assert err.value.errno == ENAMETOOLONG


def test_nofollow_finds_the_link_itself() -> None:
    """What if links at the end are not to be followed? The link is found, unless slashes follow."""
    vfs = world()
    assert walk(vfs, b"/abs", 0) == b"/abs"
    assert walk(vfs, b"/abs/", 0) == b"/a/b"


def test_jail_root_cannot_be_left() -> None:
    """What if a walk starts in a jail? Slash, dots and links all stay inside."""
    vfs = world()
    root = vfs.cache.hold(walk_nch(vfs, b"/a"))
    inner = kern_symlink(vfs, root, b"out", b"/../../tmp", ROOT)
    assert inner.ncp.name == b"out"
    kern_mkdir(vfs, root, b"tmp", 0o755, ROOT)
    for path, want in (
        (b"/", b"/a"),
        (b"/..", b"/a"),
        (b"../../..", b"/a"),
        (b"b/../../b", b"/a/b"),
        (b"out", b"/a/tmp"),
    ):
        assert walk(vfs, path, root=root, start=root) == want
    second = mount(vfs, b"m", root)
    assert walk(vfs, b"/..", root=second.ncmountpt) == b"/a/m"
    assert walk(vfs, b"../..", root=second.ncmountpt, start=second.ncmountpt) == b"/a/m"
    vfs.cache.drop_nch(root)
    check(vfs)


def walk_nch(vfs: Vfs, path: bytes) -> NcHandle:
    """A borrowed handle."""
    with NlookupData(vfs, None, None, path, ROOT, NLC.FOLLOW) as nd:
        return nlookup(nd)


DENIED = [
    (b"/private/f", NLC.FOLLOW, EACCES),
    (b"/a/new", NLC.CREATE, EACCES),
    (b"/a/b", NLC.DELETE, EACCES),
    (b"/a/b/f", NLC.WRITE | NLC.OPEN, EACCES),
    (b"/tmp/his", NLC.DELETE, EACCES),
    (b"/tmp/his", NLC.RENAME_SRC, EACCES),
    (b"/tmp/his", NLC.RENAME_DST, EACCES),
]


@pytest.mark.parametrize(("path", "flags", "errno"), DENIED)
def test_permissions_of_a_user(path: bytes, flags: int, errno: int) -> None:
    """What if a user does what only others may? Refused; root and a checked host pass."""
    vfs = world()
    with pytest.raises(KError) as err:
        walk(vfs, path, flags, USER)
    assert err.value.errno == errno
    walk(vfs, path, flags, ROOT)
    walk(vfs, path, flags | NLC.HOSTCHECKED, USER)
    check(vfs)


def test_world_searchable_hint_goes_with_chmod() -> None:
    """What if a directory that everybody could search is closed? The very next walk is refused."""
    vfs = world()
    assert walk(vfs, b"/a/b/f", cred=USER) == b"/a/b/f"
    nch = walk_nch(vfs, b"/a/b")
    assert nch.ncp.flags & NCF.WXOK
    kern_setattr(vfs, nch, Vattr(mode=0o700), ROOT)
    with pytest.raises(KError) as err:
        walk(vfs, b"/a/b/f", cred=USER)
    assert err.value.errno == EACCES


@pytest.mark.parametrize("flag", [UF_IMMUTABLE, UF_APPEND])
def test_flags_of_files_and_directories_bind_root(flag: int) -> None:
    """What if a file or its directory is immutable or append-only? EPERM even for root."""
    vfs = world()
    f, b = walk_nch(vfs, b"/a/b/f"), walk_nch(vfs, b"/a/b")
    kern_setattr(vfs, f, Vattr(flags=flag), ROOT)
    for flags in (NLC.DELETE, NLC.OPEN | NLC.WRITE, NLC.TRUNCATE):
        with pytest.raises(KError) as err:
            walk(vfs, b"/a/b/f", flags)
        assert err.value.errno == EPERM
    if flag == UF_APPEND:
        walk(vfs, b"/a/b/f", NLC.OPEN | NLC.WRITE | NLC.APPEND)
    kern_setattr(vfs, f, Vattr(flags=0), ROOT)
    kern_setattr(vfs, b, Vattr(flags=flag), ROOT)
    with pytest.raises(KError) as err:
        walk(vfs, b"/a/b/f", NLC.DELETE)
    assert err.value.errno == EPERM
    if flag == UF_IMMUTABLE:
        with pytest.raises(KError) as err:
            walk(vfs, b"/a/b/new", NLC.CREATE)
        assert err.value.errno == EPERM


def test_nosymfollow_mounts_refuse_their_links() -> None:
    """What if a mount forbids links? Reaching one is fine, following it is ELOOP."""
    vfs = world()
    mp = mount(vfs, b"ns", flags=MNT.NOSYMFOLLOW)
    kern_symlink(vfs, mp.ncmountpt, b"l", b"/a", ROOT)
    assert walk(vfs, b"/ns/l", 0) == b"/ns/l"
    with pytest.raises(KError) as err:
        walk(vfs, b"/ns/l")
    assert err.value.errno == ELOOP


def test_read_only_mount_refuses_writers() -> None:
    """What if a mount is read-only? EROFS for creation, removal and opening for writing."""
    vfs = world()
    mp = mount(vfs, b"ro")
    kern_mknod(vfs, mp.ncmountpt, b"f", 0o100666, 0, 0, ROOT)
    vfs.mounts.update(mp, MNT.RDONLY, {}, ROOT)
    for path, flags in ((b"/ro/x", NLC.CREATE), (b"/ro/f", NLC.DELETE), (b"/ro/f", NLC.WRITE)):
        with pytest.raises(KError) as err:
            walk(vfs, path, flags)
        assert err.value.errno == EROFS
    assert walk(vfs, b"/ro/f", NLC.READ) == b"/ro/f"


def test_path_statistics_count_one_per_walk() -> None:
    """What if nchstats are compared with the walks made? One long hit or miss for each."""
    vfs = world()
    vfs.cache.longhits = vfs.cache.longmiss = 0
    walk(vfs, b"/a/b/f")
    walk(vfs, b"/a/b/f")
    kern_mkdir(vfs, vfs.rootnch, b"cold", 0o755, ROOT)
    vfs.cache.inval(vfs.rootnch.ncp, 4)
    walk(vfs, b"/cold")
    assert (vfs.cache.longhits, vfs.cache.longmiss) == (2, 1)


def test_single_step_agrees_with_the_walk() -> None:
    """What if a caller walks by single steps? Dots, mounts and limits are those of nlookup."""
    vfs = world()
    root = vfs.rootnch
    mnt = kern_lookup(vfs, root, b"mnt", ROOT)
    assert mnt is not None
    assert mnt.mount is not root.mount
    assert kern_lookup(vfs, mnt, b"..", ROOT) == root
    assert kern_lookup(vfs, mnt, b".", ROOT) == mnt
    assert kern_lookup(vfs, root, b"..", ROOT) == root
    for name, errno in ((b"n" * 256, ENAMETOOLONG),):
        with pytest.raises(KError) as err:
            kern_lookup(vfs, root, name, ROOT)
        assert err.value.errno == errno
    f = kern_lookup(vfs, walk_nch(vfs, b"/a/b"), b"f", ROOT)
    assert f is not None
    with pytest.raises(KError) as err:
        kern_lookup(vfs, f, b"x", ROOT)
    assert err.value.errno == ENOTDIR
    private = kern_lookup(vfs, root, b"private", ROOT)
    assert private is not None
    with pytest.raises(KError) as err:
        kern_lookup(vfs, private, b"f", USER, True)
    assert err.value.errno == EACCES
    assert fs_of(vfs).calls["nresolve"] > 0


def watched(
    vfs: Vfs, path: bytes, flags: int = NLC.FOLLOW, cred: Ucred = ROOT
) -> tuple[list[NlookupStep], int]:
    """The steps an observer is told of, and the error of the walk."""
    steps: list[NlookupStep] = []
    with NlookupData(vfs, None, None, path, cred, flags) as nd:
        nd.observer = steps.append
        try:
            nlookup(nd)
        except KError as error:
            return steps, error.errno or 0
    return steps, 0


def test_an_observer_sees_each_component_of_the_walk() -> None:
    """What if one watches a walk over a link, a mount point, dots, and to a name that is none?"""
    vfs = world()
    kern_symlink(vfs, vfs.rootnch, b"way", b"/mnt/../a//b", ROOT)
    vfs.cache.purgevfs(vfs.mounts.root)
    steps, error = watched(vfs, b"//way/./none")
    assert error == ENOENT
    told = [(s.name, s.before, s.after, s.crossed, s.target, s.error) for s in steps]
    assert told == [
        (b"way", "absent", "positive", False, b"/mnt/../a//b", 0),
        (b"mnt", "unresolved", "positive", True, b"", 0),
        (b"..", "-", "-", True, b"", 0),
        (b"a", "absent", "positive", False, b"", 0),
        (b"b", "absent", "positive", False, b"", 0),
        (b".", "-", "-", False, b"", 0),
        (b"none", "absent", "negative", False, b"", ENOENT),
    ]
    link, mount, *_, last = steps
    assert link.vp is not None
    assert link.vp.type is VType.VLNK
    assert link.place == vfs.rootnch
    assert mount.place.mount is not vfs.mounts.root
    assert last.vp is None
    assert vfs.cache.fullpath(last.place) == b"/a/b"
    assert all(step.ns >= 0 for step in steps)
    check(vfs)


@pytest.mark.parametrize(
    ("path", "flags", "cred", "names", "errno"),
    [
        (b"/rel/f", NLC.FOLLOW, ROOT, [b"rel", b"a", b"b", b"f"], ENOTDIR),
        (b"/private/f", NLC.FOLLOW, USER, [b"private", b"f"], EACCES),
        (b"/a/" + b"x" * 256, NLC.FOLLOW, ROOT, [b"a", b"x" * 256], ENAMETOOLONG),
        (b"/tmp/his", NLC.DELETE, USER, [b"tmp", b"his"], EACCES),
        (b"/a/.", NLC.DELETE, ROOT, [b"a", b"."], EINVAL),
        (b"/a/b", NLC.CREATE | NLC.EXCL, ROOT, [b"a", b"b"], EEXIST),
        (b"/loop", NLC.FOLLOW, ROOT, [b"loop"] * 33, ELOOP),
        (b"/" + b"x" * 1023, NLC.FOLLOW, ROOT, [], ENAMETOOLONG),
        (b"/", NLC.FOLLOW, ROOT, [], 0),
    ],
)
def test_an_observer_is_told_where_the_walk_ends(
    path: bytes, flags: int, cred: Ucred, names: list[bytes], errno: int
) -> None:
    """What if a walk fails: is the last step told the one that failed, with its error?"""
    vfs = world()
    steps, error = watched(vfs, path, flags, cred)
    assert error == errno
    assert [step.name for step in steps] == names
    assert [step.error for step in steps[:-1]] == [0] * max(0, len(steps) - 1)
    if steps:
        assert steps[-1].error == errno
    check(vfs)


def test_an_observer_changes_nothing() -> None:
    """What if a walk is watched: are its result and the figures those of one that is not?"""
    plain, seen = world(), world()
    paths = [b"/rel", b"/a/b/f", b"/a/none", b"/a/none", b"/mnt/..", b"/slash/f"]
    for path in paths:
        try:
            walk(plain, path)
            error = 0
        except KError as exc:
            error = exc.errno or 0
        assert watched(seen, path)[1] == error
    assert plain.cache.statistics() == seen.cache.statistics()
