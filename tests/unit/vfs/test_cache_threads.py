"""The namecache with many threads whose operations wait in the middle of each other."""

from __future__ import annotations

import random
from typing import Any

import pytest

from dfuser.hw.clock import VirtualClock
from dfuser.libkern.errno import ENOENT, KError
from dfuser.libkern.ktr import Ktr
from dfuser.libkern.log import MsgBuf
from dfuser.lwkt.block import run_blocking
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.thread import lwkt_yield
from dfuser.vfs.cache import CINV, NamecacheEntry
from dfuser.vfs.mount import MNT
from dfuser.vfs.nlookup import NLC, NlookupData, nlookup
from dfuser.vfs.syscalls import (
    kern_lookup,
    kern_mkdir,
    kern_mknod,
    kern_rename,
    kern_rmdir,
    kern_unlink,
)
from dfuser.vfs.vop import RENAME_EXCHANGE
from tests.unit.vfs.dictfs import ROOT, Node, check, fs_of, make_vfs


class Crowd:
    """Threads that work on one small tree, the seed deciding everything."""

    def __init__(self, seed: int) -> None:
        self.clock = VirtualClock()
        self.lwkt = Lwkt(2, self.clock, Ktr(2, self.clock), MsgBuf())
        self.vfs = make_vfs(lwkt=self.lwkt, clock=self.clock)
        self.rng = random.Random(seed)
        self.fs = fs_of(self.vfs)
        self.fs.rng = random.Random(seed + 1)
        self.fs.wait = self.wait
        self.done = self.refused = 0

    async def wait(self) -> int:
        for _ in range(self.rng.randrange(4)):
            await lwkt_yield()
        return 0

    def path(self) -> bytes:
        return b"/".join(self.rng.choices([b"a", b"b", b"c"], k=self.rng.randrange(1, 4)))

    def one(self, op: int, path: bytes, other: bytes, flags: int) -> None:
        """One operation on resolved parents, from its start to its end, or Block."""
        vfs = self.vfs
        parent, _, name = path.rpartition(b"/")
        oparent, _, oname = other.rpartition(b"/")
        with (
            NlookupData(vfs, None, None, parent or b".", ROOT, NLC.FOLLOW) as nd,
            NlookupData(vfs, None, None, oparent or b".", ROOT, NLC.FOLLOW) as od,
        ):
            dnch = nlookup(nd)
            if op == 0:
                kern_mkdir(vfs, dnch, name, 0o755, ROOT)
            elif op == 1:
                kern_mknod(vfs, dnch, name, 0o100644, 0, 0, ROOT)
            elif op == 2:
                kern_unlink(vfs, dnch, name, ROOT)
            elif op == 3:
                kern_rmdir(vfs, dnch, name, ROOT)
            elif op == 4:
                kern_rename(vfs, dnch, name, nlookup(od), oname, flags, ROOT)
            else:
                kern_lookup(vfs, dnch, name, ROOT)

    async def worker(self, rounds: int) -> None:
        rng = self.rng
        for _ in range(rounds):
            op, flags = rng.randrange(7), rng.choice((0, 0, RENAME_EXCHANGE))
            try:
                await run_blocking(self.one, op, self.path(), self.path(), flags)
                self.done += 1
            except KError:
                self.refused += 1
            await lwkt_yield()

    async def disturber(self, rounds: int) -> None:
        for _ in range(rounds):
            if self.rng.random() < 0.5:
                self.vfs.cache.inval(self.vfs.rootnch.ncp, CINV.CHILDREN)
            else:
                self.vfs.vnodes.freesomevnodes(3)
            await lwkt_yield()

    def compare(self, ncp: NamecacheEntry, node: Node) -> None:
        """What is cached is what the file system has."""
        for name, child in (ncp.children or {}).items():
            entry = node.entries.get(name)
            if child.negative:
                assert entry is None
            elif child.vp is not None:
                assert entry is not None
                assert child.vp.data is entry
                self.compare(child, entry)


@pytest.mark.parametrize("seed", range(15))
def test_operations_that_wait_in_each_other_stay_consistent(seed: int) -> None:
    """What if eight threads change one tree while every lookup may wait? Cache equals tree."""
    crowd = Crowd(seed)
    for _ in range(8):
        crowd.lwkt.create(crowd.worker, 60, driver="coro", cpu=crowd.rng.randrange(2))
    crowd.lwkt.create(crowd.disturber, 100, driver="coro")
    crowd.lwkt.run_until_idle()
    assert crowd.done + crowd.refused == 480
    assert crowd.done > 50
    assert crowd.vfs.cache.waits > 50
    assert crowd.vfs.cache.locked == 0
    check(crowd.vfs)
    crowd.compare(crowd.vfs.rootnch.ncp, crowd.fs.root)
    crowd.vfs.cache.inval(crowd.vfs.rootnch.ncp, CINV.CHILDREN)
    assert crowd.vfs.cache.numcache == 0
    assert crowd.vfs.cache.numunlinked == 0
    crowd.lwkt.shutdown_nowait()


def test_forced_unmount_while_lookups_wait_inside() -> None:
    """What if a file system is torn away under waiting lookups? ENOENT for them, nothing left."""
    crowd = Crowd(1)
    vfs = crowd.vfs
    on = kern_mkdir_now(crowd, b"m")
    mp = vfs.mounts.mount("dict", "s", on, {}, 0, ROOT)
    fs = mp.data
    fs.slow = {b"x"}
    gate: list[int] = []

    async def gated() -> int:
        while not gate:
            await lwkt_yield()
        return 0

    fs.wait = gated
    results: list[Any] = []

    async def look() -> None:
        try:
            results.append(await run_blocking(kern_lookup, vfs, mp.ncmountpt, b"x", ROOT))
        except KError as error:
            results.append(error.errno)

    async def tear() -> None:
        with pytest.raises(KError) as err:
            vfs.mounts.unmount(mp)
        assert "namecache refs" in str(err.value)
        vfs.mounts.unmount(mp, MNT.FORCE)
        gate.append(1)

    for _ in range(3):
        crowd.lwkt.create(look, driver="coro")
    crowd.lwkt.create(tear, driver="coro")
    crowd.lwkt.run_until_idle()
    assert results == [ENOENT] * 3
    assert len(vfs.mounts) == 1
    assert (vfs.cache.locked, vfs.cache.numunlinked) == (0, 0)
    check(vfs)
    crowd.lwkt.shutdown_nowait()


def kern_mkdir_now(crowd: Crowd, name: bytes) -> Any:
    """A directory made without waiting."""
    crowd.fs.rng = None
    return kern_mkdir(crowd.vfs, crowd.vfs.rootnch, name, 0o755, ROOT)
