"""The conformance suite over every read-write file system."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from dfuser.hw.clock import VirtualClock
from dfuser.hw.physmem import PhysMem
from dfuser.vfs import syscalls as sc
from dfuser.vfs.nullfs.vfsops import NullVfsOps
from dfuser.vfs.tmpfs.vfsops import TmpfsVfsOps
from dfuser.vfs.vfs import Vfs
from dfuser.vm.page import VmPages
from tests.conform import vnode_attrs, vnode_ops, vnode_ranges
from tests.conform.world import ROOT, Case, World

Maker = Callable[[Vfs], World]


def tmpfs_world(vfs: Vfs) -> World:
    """The root tmpfs itself."""
    mp = vfs.mounts.mount("tmpfs", "tmpfs", None, {"mode": "755"}, 0, ROOT)
    return World(vfs, vfs.cache.hold(mp.ncmountpt), lambda: mp.data.check())


def nullfs_world(vfs: Vfs) -> World:
    """A null mount of a directory of the root tmpfs."""
    mp = vfs.mounts.mount("tmpfs", "tmpfs", None, {}, 0, ROOT)
    sc.kern_mkdir(vfs, vfs.rootnch, b"lower", 0o755, ROOT)
    on = sc.kern_mkdir(vfs, vfs.rootnch, b"shown", 0o755, ROOT)
    shown = vfs.mounts.mount("null", "/lower", on, {}, 0, ROOT)
    return World(vfs, vfs.cache.hold(shown.ncmountpt), lambda: mp.data.check())


WORLDS: dict[str, Maker] = {"tmpfs": tmpfs_world, "nullfs": nullfs_world}


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A fresh world; afterwards its invariants hold and every page is free again."""
    physmem = PhysMem(8 << 20)
    pages = VmPages(physmem)
    before = pages.v_free_count
    vfs = Vfs(clock=VirtualClock(), pages=pages)
    vfs.fstypes.register("tmpfs", TmpfsVfsOps)
    vfs.fstypes.register("null", NullVfsOps)
    made = WORLDS[request.param](vfs)
    yield made
    made.check()
    made.close()
    for mp in reversed(list(vfs.mounts)):
        vfs.mounts.unmount(mp, halting=True)
    assert len(vfs.mounts) == 0
    assert vfs.vnodes.numvnodes == 0
    assert pages.v_free_count == before
    pages.check(contents=True)
    vfs.close()
    physmem.close()


CASES = [*vnode_ops.CASES, *vnode_attrs.CASES, *vnode_ranges.CASES]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_vnode_ops(world: World, case: Case) -> None:
    # What if this file system is put through the case, the question of which is its first line?
    case(world)
