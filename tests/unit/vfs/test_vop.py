from __future__ import annotations

import inspect
import random
from collections import Counter
from typing import Any

import pytest

from dfuser.dev.devsw import POLLERR, POLLHUP, POLLIN
from dfuser.hw.clock import VirtualClock
from dfuser.libkern.errno import EINVAL, ENOATTR, ENOTTY, EOPNOTSUPP, KError
from dfuser.libkern.ktr import Ktr
from dfuser.libkern.log import MsgBuf
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.thread import lwkt_yield
from dfuser.vfs.deadfs import DeadOps
from dfuser.vfs.syscalls import kern_mknod, kern_stat, kern_unlink
from dfuser.vfs.vop import OpsCell, VnodeOps
from tests.unit.vfs.dictfs import ROOT, check, make_vfs

DEFAULTS = {
    "vop_access": EOPNOTSUPP, "vop_getattr": EOPNOTSUPP, "vop_setattr": EOPNOTSUPP,
    "vop_read": EOPNOTSUPP, "vop_write": EOPNOTSUPP, "vop_ioctl": ENOTTY,
    "vop_kqfilter": EOPNOTSUPP, "vop_mmap": EINVAL, "vop_readdir": EOPNOTSUPP,
    "vop_readlink": EINVAL, "vop_bmap": EOPNOTSUPP, "vop_strategy": EOPNOTSUPP,
    "vop_advlock": EINVAL, "vop_allocate": EOPNOTSUPP, "vop_seek": EINVAL,
    "vop_getpages": EOPNOTSUPP, "vop_putpages": EOPNOTSUPP, "vop_getextattr": EOPNOTSUPP,
    "vop_setextattr": EOPNOTSUPP, "vop_rmextattr": ENOATTR, "vop_listextattr": EOPNOTSUPP,
    "vop_nresolve": EOPNOTSUPP, "vop_nlookupdotdot": EOPNOTSUPP, "vop_ncreate": EOPNOTSUPP,
    "vop_nmkdir": EOPNOTSUPP, "vop_nmknod": EOPNOTSUPP, "vop_nlink": EOPNOTSUPP,
    "vop_nsymlink": EOPNOTSUPP, "vop_nwhiteout": EOPNOTSUPP, "vop_nremove": EOPNOTSUPP,
    "vop_nrmdir": EOPNOTSUPP, "vop_nrename": EOPNOTSUPP, "vop_copyrange": EOPNOTSUPP,
    "vop_ntmpfile": EOPNOTSUPP,
}  # fmt: skip
SUCCEED = {
    "vop_open", "vop_close", "vop_poll", "vop_fsync", "vop_inactive", "vop_reclaim", "vop_print",
    "vop_pathconf", "vop_markatime", "vop_aclcheck", "vop_ndirname",
}  # fmt: skip


class Anything:
    """Stands for every argument."""

    type = None


def call(ops: VnodeOps, name: str) -> Any:
    method = getattr(ops, name)
    return method(*[1 if p == "name" else Anything() for p in inspect.signature(method).parameters])


def test_every_operation_has_the_default_of_dragonfly() -> None:
    """What if a file system implements nothing? Each operation answers its default errno."""
    names = {n for n in vars(VnodeOps) if n.startswith("vop_")}
    assert names == set(DEFAULTS) | SUCCEED
    for name, errno in DEFAULTS.items():
        with pytest.raises(KError) as err:
            call(VnodeOps(), name)
        assert err.value.errno == errno, name
    for name in SUCCEED:
        call(VnodeOps(), name)


def test_dead_vnode_operations_fail_or_do_nothing() -> None:
    """What if a dead vnode is used? Every operation that matters raises, none touches anything."""
    dead = DeadOps()
    for name in set(DEFAULTS) - {"vop_nwhiteout", "vop_mmap"}:
        with pytest.raises(KError):
            call(dead, name)
    for name in ("vop_close", "vop_inactive", "vop_reclaim"):
        call(dead, name)


def test_poll_of_a_dead_vnode() -> None:
    """What if somebody waits for a file that was taken away? He is told, and finds the error."""
    vp: Any = Anything()
    cred: Any = Anything()
    assert DeadOps().vop_poll(vp, POLLIN, cred) == POLLIN | POLLERR | POLLHUP


class Layer(VnodeOps):
    """Passes everything to the layer below and writes down that it did."""

    __slots__ = ("below", "counts", "trace", "word")

    def __init__(self, word: str, below: VnodeOps, trace: list[str]) -> None:
        self.word = word
        self.below = below
        self.trace = trace
        self.counts: Counter[str] = Counter()


def _passing(name: str) -> Any:
    def method(self: Layer, *args: Any, **kwargs: Any) -> Any:
        self.trace.append(self.word)
        self.counts[name] += 1
        return getattr(self.below, name)(*args, **kwargs)

    return method


for _name in [n for n in vars(VnodeOps) if n.startswith("vop_")]:
    setattr(Layer, _name, _passing(_name))


def test_layers_are_called_coherency_journal_norm() -> None:
    """What if both layers are installed? The order is coherency, journal, norm; out again, gone."""
    vfs = make_vfs()
    assert vfs.mounts.root is not None
    cell = vfs.mounts.root.vn_cell
    trace: list[str] = []
    cell.journal = Layer("journal", cell.norm, trace)
    cell.coherency = Layer("coherency", cell.journal, trace)
    cell.relink()
    kern_stat(vfs, vfs.rootnch)
    assert trace == ["coherency", "journal"]
    cell.coherency = None
    cell.relink()
    kern_stat(vfs, vfs.rootnch)
    assert trace == ["coherency", "journal", "journal"]
    cell.journal = None
    cell.relink()
    kern_stat(vfs, vfs.rootnch)
    assert len(trace) == 3
    assert isinstance(cell, OpsCell)
    assert cell.use is cell.norm


def test_layer_goes_in_and_out_under_load_without_losing_an_operation() -> None:
    """What if a layer is installed 100 times while three threads work? Every call is counted."""
    clock = VirtualClock()
    lwkt = Lwkt(1, clock, Ktr(1, clock), MsgBuf())
    vfs = make_vfs(lwkt=lwkt, clock=clock)
    assert vfs.mounts.root is not None
    cell = vfs.mounts.root.vn_cell
    layer = Layer("journal", cell.norm, [])
    done = Counter[str]()

    async def worker(me: int) -> None:
        for i in range(200):
            seen = cell.journal is not None
            kern_mknod(vfs, vfs.rootnch, b"%d.%d" % (me, i), 0o100644, 0, 0, ROOT)
            done["layer" if seen else "plain"] += 1
            await lwkt_yield()
            seen = cell.journal is not None
            kern_unlink(vfs, vfs.rootnch, b"%d.%d" % (me, i), ROOT)
            done["removed" if seen else "plain"] += 1
            await lwkt_yield()

    rng = random.Random(11)

    async def switcher() -> None:
        for _ in range(400):
            cell.journal = rng.choice((layer, None))
            cell.relink()
            await lwkt_yield()

    for me in range(3):
        lwkt.create(worker, me, driver="coro")
    lwkt.create(switcher, driver="coro")
    lwkt.run_until_idle()
    assert sum(done.values()) == 1200
    assert layer.counts["vop_ncreate"] == done["layer"] > 0
    assert layer.counts["vop_nremove"] == done["removed"] > 0
    lwkt.shutdown_nowait()
    check(vfs)
