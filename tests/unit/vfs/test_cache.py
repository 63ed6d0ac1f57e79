from __future__ import annotations

import random
from typing import Any

import pytest

from dfuser.hw.clock import VirtualClock
from dfuser.libkern.errno import EEXIST, EIO, ENOENT, KError, Panic
from dfuser.libkern.fcntl import O_RDWR
from dfuser.libkern.ktr import Ktr
from dfuser.libkern.log import MsgBuf
from dfuser.libkern.param import HZ
from dfuser.libkern.sysctl import SysctlTree
from dfuser.lwkt.block import Block, run_blocking
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.synch import tsleep, wakeup
from dfuser.vfs.cache import CINV, NCF, NcHandle
from dfuser.vfs.nlookup import NlookupData, nlookup
from dfuser.vfs.syscalls import (
    kern_create,
    kern_link,
    kern_lookup,
    kern_mkdir,
    kern_mknod,
    kern_rename,
    kern_rmdir,
    kern_stat,
    kern_unlink,
)
from dfuser.vfs.vfs import Vfs
from dfuser.vfs.vop import RENAME_EXCHANGE
from tests.unit.vfs.dictfs import ROOT, DictFs, check, fs_of, make_vfs


def touch(vfs: Vfs, dnch: NcHandle, name: bytes) -> NcHandle:
    return kern_mknod(vfs, dnch, name, 0o100644, 0, 0, ROOT)


def errno_of(fn: Any, *args: Any) -> int:
    with pytest.raises(KError) as err:
        fn(*args)
    return err.value.errno


def test_three_states_and_one_question_to_the_file_system() -> None:
    """What if a name is looked up twice? The file system is asked once, for hits and misses."""
    vfs = make_vfs()
    fs, root = fs_of(vfs), vfs.rootnch
    fs.root.entries[b"f"] = fs.new(fs.root.type.VREG, 0o644, ROOT)
    ncp = vfs.cache.nlookup(root.ncp, b"f")
    assert ncp.flags & NCF.UNRESOLVED
    vfs.cache.drop(ncp)
    check(vfs)
    for _ in range(3):
        assert kern_lookup(vfs, root, b"f", ROOT) is not None
        assert kern_lookup(vfs, root, b"none", ROOT) is None
    assert fs.calls["nresolve"] == 2
    assert (vfs.cache.numneg, vfs.cache.numcache) == (1, 2)
    stats = vfs.cache.nchstats()
    assert (stats.goodhits, stats.neghits, stats.miss) == (2, 2, 2)
    check(vfs)


def test_negative_entries_stay_within_the_limit_with_hysteresis() -> None:
    """What if 5,000 missing names are asked for? At most the limit and a tenth, oldest gone."""
    vfs = make_vfs(maxvnodes=32_000)
    root = vfs.rootnch
    limit = vfs.cache.limits.neglimit
    assert limit == 2000
    seen = []
    for i in range(5000):
        kern_lookup(vfs, root, b"n%d" % i, ROOT)
        kern_lookup(vfs, root, b"n0", ROOT)  # the one in use
        seen.append(vfs.cache.numneg)
    assert max(seen) <= limit * 11 // 10
    assert min(seen[limit:]) >= limit * 8 // 10
    assert b"n0" in (root.ncp.children or {})
    assert b"n1" not in (root.ncp.children or {})
    check(vfs)
    vfs.cache.hysteresis(False)
    assert vfs.cache.numneg <= limit * 8 // 10
    check(vfs)


def test_held_negative_entries_survive_the_flush() -> None:
    """What if a negative entry is held while the cache is flushed? It stays."""
    vfs = make_vfs(maxvnodes=16_000)
    root = vfs.rootnch
    held = vfs.cache.nlookup(root.ncp, b"held")
    vfs.cache.resolve(held, root.mount, ROOT)
    for i in range(4000):
        kern_lookup(vfs, root, b"n%d" % i, ROOT)
    assert root.ncp.children is not None
    assert root.ncp.children[b"held"] is held
    check(vfs)
    vfs.cache.drop(held)
    check(vfs)


def test_leaf_entries_of_hard_links_are_bounded() -> None:
    """What if one file has thousands of names? Leaf entries stay below the positive limit."""
    vfs = make_vfs(maxvnodes=2000)
    root = vfs.rootnch
    vfs.cache.limits.set_poslimit(1500)
    f = touch(vfs, root, b"f")
    vfs.cache.ref(f.ncp)
    for i in range(4000):
        kern_link(vfs, f, root, b"l%d" % i, ROOT)
        assert vfs.cache.numleafs <= 1500 * 11 // 10
    assert f.ncp.vp is not None
    check(vfs)
    assert kern_lookup(vfs, root, b"l3", ROOT) is not None


def test_rename_keeps_the_identity_of_the_source() -> None:
    """What if an open file and its directory are renamed? The open file shows the new path."""
    vfs = make_vfs()
    root = vfs.rootnch
    a = kern_mkdir(vfs, root, b"a", 0o755, ROOT)
    nch, file = kern_create(vfs, a, b"f", 0o644, O_RDWR, ROOT)
    other = touch(vfs, root, b"g").ncp
    vfs.cache.ref(other)
    generation = nch.ncp.generation
    kern_rename(vfs, a, b"f", root, b"g", 0, ROOT)
    assert vfs.cache.fullpath(file.nch) == b"/g"
    assert nch.ncp.generation > generation
    assert other.flags & NCF.DESTROYED
    assert errno_of(vfs.cache.fullpath, NcHandle(other, root.mount)) == ENOENT
    kern_rename(vfs, root, b"g", a, b"h", 0, ROOT)
    kern_rename(vfs, root, b"a", root, b"z", 0, ROOT)
    assert vfs.cache.fullpath(file.nch) == b"/z/h"
    check(vfs)
    vfs.cache.drop(other)
    file.drop()
    check(vfs)


def test_unlinked_name_can_be_used_again_while_the_old_file_is_open() -> None:
    """What if a file is removed and made again while open? Two files, the old without a path."""
    vfs = make_vfs()
    root = vfs.rootnch
    old_nch, old = kern_create(vfs, root, b"f", 0o644, O_RDWR, ROOT)
    kern_unlink(vfs, root, b"f", ROOT)
    assert kern_lookup(vfs, root, b"f", ROOT) is None
    new_nch, new = kern_create(vfs, root, b"f", 0o644, O_RDWR, ROOT)
    assert old.vp is not new.vp
    assert old_nch.ncp is not new_nch.ncp
    assert errno_of(vfs.cache.fullpath, old.nch) == ENOENT
    assert vfs.cache.fullpath(new.nch) == b"/f"
    assert vfs.cache.numunlinked == 1
    old.drop()
    assert vfs.cache.numunlinked == 0
    new.drop()
    check(vfs)


def test_removed_current_directory_has_no_path_and_takes_no_names() -> None:
    """What if somebody stands in a directory that is removed? ENOENT for path and new names."""
    vfs = make_vfs()
    root = vfs.rootnch
    d = vfs.cache.hold(kern_mkdir(vfs, root, b"d", 0o755, ROOT))
    assert d.ncp.vp is not None
    cdir = d.ncp.vp.ref()
    kern_lookup(vfs, d, b"missing", ROOT)
    kern_rmdir(vfs, root, b"d", ROOT)
    assert errno_of(vfs.cache.fullpath, d) == ENOENT
    assert errno_of(touch, vfs, d, b"x") == ENOENT
    nd = NlookupData(vfs, d, None, b"x", ROOT)
    assert errno_of(nlookup, nd) == ENOENT
    check(vfs)
    cdir.rele()
    vfs.cache.drop_nch(d)
    assert vfs.cache.numunlinked == 0
    check(vfs)


def test_held_child_of_a_removed_directory_goes_with_its_holder() -> None:
    """What if a missing name is held while its directory is removed? Nothing is left later."""
    vfs = make_vfs()
    d = kern_mkdir(vfs, vfs.rootnch, b"d", 0o755, ROOT)
    vp = d.ncp.vp
    assert vp is not None
    vp.ref()
    child = vfs.cache.nlookup(d.ncp, b"x")
    vfs.cache.resolve(child, d.mount, ROOT)
    kern_rmdir(vfs, vfs.rootnch, b"d", ROOT)
    assert vfs.cache.numunlinked == 2
    assert child.flags & NCF.DESTROYED
    assert errno_of(vfs.cache.resolve, child, d.mount, ROOT) == ENOENT
    vfs.cache.drop(child)
    assert vfs.cache.numunlinked == 0
    vp.rele()
    check(vfs)


def test_replaced_file_goes_at_once() -> None:
    """What if a rename replaces a file that nobody uses? Its vnode and node are gone."""
    vfs = make_vfs()
    root = vfs.rootnch
    touch(vfs, root, b"a")
    ino = kern_stat(vfs, touch(vfs, root, b"b")).fileid
    kern_rename(vfs, root, b"a", root, b"b", 0, ROOT)
    assert ino not in fs_of(vfs).nodes
    assert vfs.vnodes.numvnodes == 2
    check(vfs)


def test_inval_of_a_subtree_leaves_held_entries_and_nothing_else() -> None:
    """What if a tree 200 deep is invalidated? All goes but what is held, which resolves again."""
    vfs = make_vfs()
    at = root = vfs.rootnch
    for i in range(200):
        at = kern_mkdir(vfs, at, b"%d" % i, 0o755, ROOT)
    held = vfs.cache.hold(at)
    assert vfs.cache.inval(root.ncp, CINV.CHILDREN) == 1
    assert vfs.cache.numcache == 200
    assert held.ncp.vp is None
    check(vfs)
    vfs.cache.resolve(held.ncp, held.mount, ROOT)
    assert kern_stat(vfs, held).nlink == 2
    path = vfs.cache.fullpath(held)
    assert path.startswith(b"/0/1/2/")
    assert path.endswith(b"/198/199")
    vfs.cache.drop_nch(held)
    assert vfs.cache.inval(root.ncp, CINV.CHILDREN) == 0
    assert vfs.cache.numcache == 0
    check(vfs)


def test_mount_generation_voids_negative_entries() -> None:
    """What if a device appears by itself? Old negative answers of that mount are not believed."""
    vfs = make_vfs()
    fs, root = fs_of(vfs), vfs.rootnch
    assert kern_lookup(vfs, root, b"vn9", ROOT) is None
    fs.root.entries[b"vn9"] = fs.new(fs.root.type.VREG, 0o644, ROOT)
    assert kern_lookup(vfs, root, b"vn9", ROOT) is None
    root.mount.namecache_news()
    assert kern_lookup(vfs, root, b"vn9", ROOT) is not None
    assert vfs.cache.badhits == 1
    check(vfs)


def test_entry_with_a_timeout_expires() -> None:
    """What if an entry has a time limit? Afterwards the file system is asked again."""
    clock = VirtualClock()
    lwkt = Lwkt(1, clock, Ktr(1, clock), MsgBuf())
    vfs = make_vfs(lwkt=lwkt, clock=clock)
    root = vfs.rootnch
    touch(vfs, root, b"f")
    nch = kern_lookup(vfs, root, b"f", ROOT)
    assert nch is not None
    vfs.cache.settimeout(nch.ncp, 50)
    asked = fs_of(vfs).calls["nresolve"]
    kern_lookup(vfs, root, b"f", ROOT)
    assert fs_of(vfs).calls["nresolve"] == asked
    clock.advance(1_000_000_000)
    kern_lookup(vfs, root, b"f", ROOT)
    assert fs_of(vfs).calls["nresolve"] == asked + 1
    check(vfs)
    lwkt.shutdown_nowait()


class Waiting:
    """A machine whose root file system makes some names wait."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.lwkt = Lwkt(1, self.clock, Ktr(1, self.clock), MsgBuf())
        self.vfs = make_vfs(lwkt=self.lwkt, clock=self.clock, msgbuf=self.lwkt.msgbuf)
        self.fs: DictFs = fs_of(self.vfs)
        self.error = 0
        self.fs.slow = {b"slow"}
        self.fs.wait = self.disk
        self.results: list[Any] = []

    async def disk(self) -> int:
        await tsleep("disk", 0, "biord", 0)
        self.fs.slow.clear()
        return self.error

    async def look(self, name: bytes = b"slow") -> None:
        try:
            found = await run_blocking(kern_lookup, self.vfs, self.vfs.rootnch, name, ROOT)
            self.results.append(None if found is None else kern_stat(self.vfs, found).fileid)
        except KError as error:
            self.results.append(error)

    async def done(self) -> None:
        wakeup("disk")

    def spawn(self, fn: Any, *args: Any) -> None:
        self.lwkt.create(fn, *args, driver="coro")
        self.lwkt.run_until_idle()

    def close(self) -> None:
        self.lwkt.shutdown_nowait()
        check(self.vfs)


def test_second_looker_waits_for_the_first_and_both_see_the_same() -> None:
    """What if three threads need a name that is being read? One asks, the others wait for it."""
    w = Waiting()
    w.fs.root.entries[b"slow"] = w.fs.new(w.fs.root.type.VREG, 0o644, ROOT)
    for _ in range(3):
        w.spawn(w.look)
    assert w.results == []
    assert w.vfs.cache.locked == 1
    assert w.fs.calls["nresolve"] == 1
    assert sorted(td.wmesg for td in w.lwkt.threads.values() if td.wmesg) == [
        "biord", "ncplk", "ncplk",
    ]  # fmt: skip
    w.spawn(w.done)
    assert len(set(w.results)) == 1
    assert len(w.results) == 3
    assert w.fs.calls["nresolve"] == 2
    assert w.vfs.cache.locked == 0
    w.close()


def test_long_wait_for_an_entry_is_reported() -> None:
    """What if an entry is waited for longer than debug.nclockwarn? The log says so, once."""
    w = Waiting()
    w.spawn(w.look)
    w.spawn(w.look)
    for _ in range(3):
        w.clock.advance((w.vfs.cache.nclockwarn + 1) * 1_000_000_000 // HZ)
        w.lwkt.run_until_idle()
    log = w.vfs.msgbuf.text()
    assert log.count("cache_lock: blocked on slow") == 1
    w.spawn(w.done)
    assert w.results == [None, None]
    w.close()


def test_entry_renamed_away_during_a_wait_is_not_resurrected() -> None:
    """What if the name appears under another name while it is waited for? Each sees the truth."""
    w = Waiting()
    w.fs.root.entries[b"other"] = w.fs.new(w.fs.root.type.VREG, 0o644, ROOT)
    w.spawn(w.look)

    async def rename() -> None:
        w.fs.root.entries[b"slow"] = w.fs.root.entries.pop(b"other")

    w.spawn(rename)
    w.spawn(w.done)
    assert w.results == [w.fs.root.entries[b"slow"].ino]
    w.close()


def test_failed_wait_is_the_error_of_the_waiting_one_only() -> None:
    """What if the read fails? Its caller gets the error; who waited for it tries for himself."""
    w = Waiting()
    w.error = EIO
    w.spawn(w.look)
    w.spawn(w.look)
    w.spawn(w.done)
    assert isinstance(w.results[0], KError)
    assert w.results[0].errno == EIO
    assert w.results[1] is None
    assert w.vfs.cache.locked == 0
    w.close()


def test_modifying_core_blocks_before_it_changes_anything() -> None:
    """What if a rename meets a name that must be read first? Block, and the tree is as before."""
    vfs = make_vfs()
    fs, root = fs_of(vfs), vfs.rootnch

    async def never() -> int:
        return 0

    fs.slow, fs.wait = {b"to"}, never
    touch(vfs, root, b"from")
    before = sorted(fs.root.entries)
    with pytest.raises(Block):
        kern_rename(vfs, root, b"from", root, b"to", 0, ROOT)
    assert sorted(fs.root.entries) == before
    fs.slow.clear()
    kern_rename(vfs, root, b"from", root, b"to", 0, ROOT)
    assert sorted(fs.root.entries) == [b"to"]


def test_dropping_once_too_often_is_a_panic() -> None:
    """What if an entry is dropped twice? A panic, not a dangling tree."""
    vfs = make_vfs()
    with pytest.raises(Panic):
        vfs.cache.drop(touch(vfs, vfs.rootnch, b"f").ncp)


def test_sysctls_show_the_live_figures() -> None:
    """What if vfs.cache.* is read? It is what a count of the tree gives."""
    vfs = make_vfs()
    tree = SysctlTree()
    for owner in vfs.sysctl_owners():
        tree.register(owner)
    for i in range(7):
        kern_lookup(vfs, vfs.rootnch, b"n%d" % i, ROOT)
    touch(vfs, vfs.rootnch, b"f")
    assert str(tree.get("vfs.cache.numneg")) == "7"
    assert str(tree.get("vfs.cache.numcache")) == "8"
    assert "miss=8" in str(tree.get("vfs.cache.nchstats"))
    tree.set("debug.ncnegfactor", "32", ROOT)
    assert vfs.cache.limits.neglimit == vfs.vnodes.maxvnodes // 32
    assert errno_of(tree.set, "vfs.cache.numneg", "0", ROOT) == 1


def test_exchange_moves_both_identities() -> None:
    """What if two open files are exchanged? Each open file shows the other's old path."""
    vfs = make_vfs()
    root = vfs.rootnch
    d = kern_mkdir(vfs, root, b"d", 0o755, ROOT)
    _, a = kern_create(vfs, root, b"a", 0o644, O_RDWR, ROOT)
    _, b = kern_create(vfs, d, b"b", 0o644, O_RDWR, ROOT)
    kern_rename(vfs, root, b"a", d, b"b", RENAME_EXCHANGE, ROOT)
    assert vfs.cache.fullpath(a.nch) == b"/d/b"
    assert vfs.cache.fullpath(b.nch) == b"/a"
    a.drop()
    b.drop()
    check(vfs)


def test_reclaim_between_any_two_operations_is_invisible() -> None:
    """What if vnodes and names go at random times? Answers are those of a plain dictionary."""
    vfs = make_vfs()
    root = vfs.rootnch
    rng = random.Random(5)
    model: dict[bytes, int] = {}
    for _ in range(4000):
        name = b"%d" % rng.randrange(40)
        match rng.randrange(6):
            case 0 | 1:
                if name in model:
                    assert errno_of(touch, vfs, root, name) == EEXIST
                else:
                    model[name] = kern_stat(vfs, touch(vfs, root, name)).fileid
            case 2:
                if name in model:
                    kern_unlink(vfs, root, name, ROOT)
                    del model[name]
                else:
                    assert errno_of(kern_unlink, vfs, root, name, ROOT) == ENOENT
            case 3:
                found = kern_lookup(vfs, root, name, ROOT)
                assert (found and kern_stat(vfs, found).fileid) == model.get(name)
            case 4:
                vfs.vnodes.freesomevnodes(5)
            case 5:
                vfs.cache.inval(root.ncp, CINV.CHILDREN)
    check(vfs)


def test_trace_points_tell_what_happened() -> None:
    """What if the namecache and vfs masters are on? Resolve, rename, unlink, reclaim are noted."""
    vfs = make_vfs()
    for master in ("namecache", "vfs"):
        vfs.ktr.master(master).mask = -1
    root = vfs.rootnch
    kern_lookup(vfs, root, b"none", ROOT)
    touch(vfs, root, b"f")
    kern_rename(vfs, root, b"f", root, b"g", 0, ROOT)
    kern_unlink(vfs, root, b"g", ROOT)
    names = [entry.info.name for entry in vfs.ktr.tail(50)]
    assert names.count("resolve") == 3
    assert names.count("getnewvnode") == 1
    assert names.count("inactive") == names.count("reclaim") == 1
    assert names.count("rename") == 1
    assert names.count("unlink") == 1
