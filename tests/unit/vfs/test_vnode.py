from __future__ import annotations

import contextlib
import gc

import pytest

from dfuser.hw.clock import VirtualClock
from dfuser.libkern.ddbcmd import DdbCommands
from dfuser.libkern.errno import EBADF, EINVAL, EIO, ENOENT, KError, Panic
from dfuser.libkern.fcntl import O_RDWR
from dfuser.libkern.klist import NOTE_REVOKE, HookKnote
from dfuser.libkern.ktr import Ktr
from dfuser.libkern.log import MsgBuf
from dfuser.libkern.stat import VType
from dfuser.libkern.sysctl import SysctlTree
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.synch import tsleep
from dfuser.vfs.cache import NcHandle
from dfuser.vfs.syscalls import (
    kern_create,
    kern_fhtovp,
    kern_link,
    kern_lookup,
    kern_mkdir,
    kern_mknod,
    kern_read,
    kern_rename,
    kern_rmdir,
    kern_stat,
    kern_symlink,
    kern_unlink,
    kern_write,
)
from dfuser.vfs.vattr import Vattr
from dfuser.vfs.vfs import Vfs
from dfuser.vfs.vnode import V, VState
from dfuser.vfs.vnodetable import MINVNODES
from tests.unit.vfs.dictfs import ROOT, check, fs_of, make_vfs


def touch(vfs: Vfs, dnch: NcHandle, name: bytes) -> NcHandle:
    return kern_mknod(vfs, dnch, name, 0o100644, 0, 0, ROOT)


def test_last_reference_keeps_the_vnode_cached_and_calls_nothing() -> None:
    """What if a file is closed? The vnode stays active and vop_inactive is not called."""
    vfs = make_vfs()
    vp = touch(vfs, vfs.rootnch, b"f").ncp.vp
    assert vp is not None
    assert (vp.state, vp.refcnt) == (VState.ACTIVE, 0)
    assert fs_of(vfs).calls["inactive"] == 0
    vp.ref()
    assert vfs.vnodes.cachedvnodes == 1  # the root
    vp.rele()
    assert vfs.vnodes.cachedvnodes == 2
    check(vfs)


def test_unlinked_open_file_goes_with_its_last_user_and_inactive_runs_once() -> None:
    """What if a file is unlinked while open? It works until the close, then goes at once."""
    vfs = make_vfs()
    fs = fs_of(vfs)
    _nch, file = kern_create(vfs, vfs.rootnch, b"f", 0o600, O_RDWR, ROOT)
    second = file.ref()
    kern_unlink(vfs, vfs.rootnch, b"f", ROOT)
    vp = file.vp
    assert kern_write(file, 0, b"abc") == 3
    file.drop()
    assert kern_read(second, 0, 9) == b"abc"
    assert fs.calls["inactive"] == 0
    second.drop()
    assert (fs.calls["inactive"], fs.calls["reclaim"]) == (1, 1)
    assert vp.state is VState.DYING
    assert vp.ino not in fs.nodes
    check(vfs)


def test_removed_name_of_a_linked_file_deactivates_and_use_reactivates() -> None:
    """What if one of two names goes? The vnode turns inactive; the next use brings it back."""
    vfs = make_vfs()
    nch = touch(vfs, vfs.rootnch, b"a")
    vp = nch.ncp.vp
    assert vp is not None
    kern_link(vfs, nch, vfs.rootnch, b"b", ROOT)
    assert vp.namecache_count == 2
    kern_unlink(vfs, vfs.rootnch, b"a", ROOT)
    assert vp.state is VState.INACTIVE
    assert vp.flag & V.INACTIVE
    check(vfs)
    vp.ref()
    assert vp.state is VState.ACTIVE
    assert not vp.flag & (V.INACTIVE | V.FINALIZE | V.TERMINATE)
    vp.rele()
    assert vp.state is VState.ACTIVE
    assert fs_of(vfs).calls["inactive"] == 1
    check(vfs)


def test_directory_with_cached_child_is_not_reclaimed() -> None:
    """What if all vnodes are to go? One whose entry has children stays until they are gone."""
    vfs = make_vfs()
    d = kern_mkdir(vfs, vfs.rootnch, b"d", 0o755, ROOT).ncp
    f = touch(vfs, NcHandle(d, vfs.mounts.root), b"f").ncp  # type: ignore[arg-type]
    dvp = d.vp
    assert dvp is not None
    assert dvp.auxrefs == 2
    vfs.cache.ref(f)
    for _ in range(60):
        vfs.vnodes.freesomevnodes(10)
        check(vfs)
    assert f.vp is None  # a held name does not keep the vnode
    assert d.vp is dvp
    vfs.cache.drop(f)
    for _ in range(60):
        vfs.vnodes.freesomevnodes(10)
    assert dvp.state is VState.DYING
    check(vfs)


def test_held_vnode_is_not_freed_until_it_is_dropped() -> None:
    """What if somebody holds (vhold) a vnode that nobody references? It is not reclaimed."""
    vfs = make_vfs()
    vp = touch(vfs, vfs.rootnch, b"f").ncp.vp
    assert vp is not None
    vp.hold()
    for _ in range(40):
        vfs.vnodes.freesomevnodes(10)
    assert vp.state is VState.INACTIVE
    check(vfs, {vp: 1})
    vfs.vnodes.vgone(vp)
    assert vp.state is VState.INACTIVE
    vp.drop()
    assert vp.state is VState.DYING
    check(vfs)


def test_used_file_survives_a_scan_of_many() -> None:
    """What if a scan of 3,000 files passes? What is looked at in between keeps its vnode."""
    vfs = make_vfs()
    d = kern_mkdir(vfs, vfs.rootnch, b"d", 0o755, ROOT)
    vfs.cache.ref(d.ncp)
    hot = touch(vfs, vfs.rootnch, b"hot").ncp.vp
    for i in range(3000):
        touch(vfs, d, b"%d" % i)
        kern_lookup(vfs, vfs.rootnch, b"hot", ROOT)
        if i % 10 == 0:
            vfs.vnodes.freesomevnodes(10)
    assert vfs.vnodes.reclaims > 1000
    assert hot is not None
    assert hot.state is VState.ACTIVE
    check(vfs)


def test_maxvnodes_bounds_20000_files_and_inode_numbers_stay() -> None:
    """What if 20,000 files are walked with kern.maxvnodes 2000? Bounded, and same numbers."""
    vfs = make_vfs(maxvnodes=MINVNODES)
    root = vfs.rootnch
    _held, file = kern_create(vfs, root, b"open", 0o600, O_RDWR, ROOT)
    kern_write(file, 0, b"still here")
    dirs = []
    for i in range(20):
        d = kern_mkdir(vfs, root, b"d%d" % i, 0o755, ROOT)
        vfs.cache.ref(d.ncp)
        dirs.append(d)
    inos = {}
    for i in range(20_000):
        nch = touch(vfs, dirs[i % 20], b"%d" % i)
        inos[i] = kern_stat(vfs, nch).fileid
        assert vfs.vnodes.numvnodes <= MINVNODES * 11 // 10 + 1
    check(vfs)
    for i in range(20_000):
        found = kern_lookup(vfs, dirs[i % 20], b"%d" % i, ROOT)
        assert found is not None
        assert kern_stat(vfs, found).fileid == inos[i]
    assert vfs.vnodes.numvnodes <= MINVNODES * 11 // 10 + 1
    rounds = 0
    while vfs.vnodes.lru.round() and rounds < 1000:
        rounds += 1
    assert vfs.vnodes.numvnodes <= MINVNODES
    assert kern_read(file, 0, 99) == b"still here"
    assert vfs.cache.fullpath(file.nch) == b"/open"
    check(vfs)


def test_file_handle_brings_back_a_reclaimed_vnode_with_its_path() -> None:
    """What if the host names a directory by number after its vnode went? Same file, same path."""
    vfs = make_vfs()
    root = vfs.rootnch
    a = kern_mkdir(vfs, root, b"a", 0o755, ROOT)
    b = kern_mkdir(vfs, a, b"b", 0o755, ROOT)
    c = kern_mkdir(vfs, b, b"c", 0o755, ROOT)
    ino = kern_stat(vfs, c).fileid
    while any(vp.data is not fs_of(vfs).root for vp in vfs.vnodes):
        assert vfs.vnodes.freesomevnodes(10) or vfs.vnodes.lru.scans < 1000
    assert vfs.mounts.root is not None
    vp = kern_fhtovp(vfs, vfs.mounts.root, ino)
    ncp = vfs.cache.fromdvp(vp, ROOT)
    assert vfs.cache.fullpath(NcHandle(ncp, vfs.mounts.root)) == b"/a/b/c"
    vfs.cache.drop(ncp)
    vp.rele()
    check(vfs)
    with pytest.raises(KError) as err:
        kern_fhtovp(vfs, vfs.mounts.root, 999_999)
    assert err.value.errno == 70


def test_vgone_of_a_used_vnode_leaves_dead_operations() -> None:
    """What if a vnode in use is revoked? Its users get errors, watchers hear, counts stay right."""
    vfs = make_vfs()
    _nch, file = kern_create(vfs, vfs.rootnch, b"f", 0o600, O_RDWR, ROOT)
    heard: list[int] = []
    note = HookKnote(NOTE_REVOKE, lambda kn: heard.append(kn.take()))
    file.vp.get_klist().insert(note)
    vfs.vnodes.vgone(file.vp)
    assert heard == [NOTE_REVOKE]
    assert file.vp.type is VType.VBAD
    with pytest.raises(KError) as err:
        kern_read(file, 0, 1)
    assert err.value.errno == EIO
    with pytest.raises(KError) as err:
        file.vp.ops.use.vop_getattr(file.vp)
    assert err.value.errno == EBADF
    with pytest.raises(KError) as err:
        vfs.vnodes.vget(file.vp)
    assert err.value.errno == ENOENT
    check(vfs)
    file.drop()
    assert file.vp.state is VState.DYING
    check(vfs)


def test_one_rele_too_many_is_a_panic() -> None:
    """What if a reference is given back twice? The kernel stops instead of freeing a live vnode."""
    vfs = make_vfs()
    vp = vfs.rootnch.ncp.vp
    assert vp is not None
    with pytest.raises(Panic):
        vp.rele()


def test_sysctl_of_the_limit_is_bounded_and_live() -> None:
    """What if kern.maxvnodes is set to nonsense? EINVAL; a good value is used at once."""
    vfs = make_vfs()
    tree = SysctlTree()
    for owner in vfs.sysctl_owners():
        tree.register(owner)
    for bad in ("1", "5000000", "x"):
        with pytest.raises(KError) as err:
            tree.set("kern.maxvnodes", bad, ROOT)
        assert err.value.errno == EINVAL
    tree.set("kern.maxvnodes", "4000", ROOT)
    assert vfs.vnodes.maxvnodes == 4000
    assert vfs.cache.limits.neglimit == 250


def test_vnlru_daemon_brings_the_number_down_by_itself() -> None:
    """What if the limit is lowered below what is in memory? The thread frees down to it."""
    clock = VirtualClock()
    lwkt = Lwkt(1, clock, Ktr(1, clock), MsgBuf())
    vfs = make_vfs(maxvnodes=10_000, lwkt=lwkt, clock=clock)
    for i in range(6000):
        touch(vfs, vfs.rootnch, b"%d" % i)
    lwkt.create(vfs.vnodes.vnlru_daemon, name="vnlru", driver="coro")
    lwkt.run_until_idle()
    vfs.vnodes.set_maxvnodes(MINVNODES)

    async def later() -> None:
        await tsleep("later", 0, "later", 300)
        vfs.vnodes.stop()

    lwkt.create(later, name="later", driver="coro")
    for _ in range(60):
        lwkt.run_until_idle()
        clock.advance(100_000_000)
    lwkt.run_until_idle()
    assert vfs.vnodes.numvnodes <= MINVNODES * 9 // 10 + 1
    assert all(td.name not in ("vnlru", "later") for td in lwkt.threads.values())
    lwkt.shutdown_nowait()
    check(vfs)


def test_ten_thousand_of_each_operation_leave_no_cyclic_garbage() -> None:
    """What if the collector never runs? Every operation frees what it made by counting alone."""
    vfs = make_vfs()
    root = vfs.rootnch

    def every() -> None:
        _nch, file = kern_create(vfs, root, b"f", 0o600, O_RDWR, ROOT)
        file.drop()
        kern_link(vfs, NcHandle(root.ncp.children[b"f"], root.mount), root, b"g", ROOT)  # type: ignore[index]
        kern_rename(vfs, root, b"f", root, b"h", 0, ROOT)
        kern_unlink(vfs, root, b"g", ROOT)
        kern_unlink(vfs, root, b"h", ROOT)
        kern_symlink(vfs, root, b"s", b"t", ROOT)
        kern_unlink(vfs, root, b"s", ROOT)
        d = kern_mkdir(vfs, root, b"d", 0o700, ROOT)
        kern_lookup(vfs, d, b"none", ROOT)
        kern_rmdir(vfs, root, b"d", ROOT)
        for bad in (b"none", b"."):
            with contextlib.suppress(KError):
                kern_unlink(vfs, root, bad, ROOT)

    every()
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(10_000):
            every()
        grown = len(gc.get_objects()) - before
        assert gc.collect() == 0
    finally:
        gc.enable()
    assert grown < 100
    check(vfs)
    assert vfs.vnodes.numvnodes == 1


def test_getattr_records_are_independent() -> None:
    """What if a caller changes the attributes it got? The file is not changed."""
    vfs = make_vfs()
    nch = touch(vfs, vfs.rootnch, b"f")
    va = kern_stat(vfs, nch)
    assert isinstance(va, Vattr)
    va.mode = 0
    assert kern_stat(vfs, nch).mode == 0o644


def test_debugger_shows_what_is_there() -> None:
    """What if ddb is asked for vnodes, names and mounts? Every one is a line."""
    vfs = make_vfs()
    d = kern_mkdir(vfs, vfs.rootnch, b"d", 0o755, ROOT)
    touch(vfs, d, b"f\xff")
    kern_lookup(vfs, d, b"none", ROOT)
    commands = DdbCommands()
    commands.register(vfs.ddb)
    assert len(list(vfs.ddb.ddb_show_vnodes())) == 1 + vfs.vnodes.numvnodes
    assert [line.split()[0] for line in vfs.ddb.ddb_show_ncache()] == [
        "/:", "/", "d", "f\\xff", "none",
    ]  # fmt: skip
    assert len(list(vfs.ddb.ddb_show_mounts())) == len(vfs.mounts)
