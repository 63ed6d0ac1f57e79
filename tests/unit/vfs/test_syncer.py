from __future__ import annotations

import pytest

from dfuser.hw.clock import VirtualClock
from dfuser.libkern.errno import EINVAL, EIO, KError
from dfuser.libkern.ktr import Ktr
from dfuser.libkern.log import MsgBuf
from dfuser.libkern.stat import VType
from dfuser.libkern.sysctl import SysctlTree
from dfuser.lwkt.block import Block
from dfuser.lwkt.machine import Lwkt
from dfuser.vfs.mount import MNT, MNTK
from dfuser.vfs.syncer import SYNCER_MAXDELAY, SyncerCtx
from dfuser.vfs.syscalls import kern_mkdir, kern_mknod, kern_unlink
from dfuser.vfs.vfs import Vfs
from dfuser.vfs.vnode import V, Vnode, VState
from dfuser.vfs.vop import MNT_LAZY, MNT_WAIT
from tests.unit.vfs.dictfs import ROOT, check, fs_of, make_vfs


def file(vfs: Vfs, name: bytes = b"f") -> Vnode:
    vp = kern_mknod(vfs, vfs.rootnch, name, 0o100644, 0, 0, ROOT).ncp.vp
    assert vp is not None
    return vp


def wheel(vfs: Vfs) -> SyncerCtx:
    assert vfs.mounts.root is not None
    ctx = vfs.mounts.root.syncer
    assert isinstance(ctx, SyncerCtx)
    return ctx


def test_files_wait_30_seconds_directories_29_devices_28() -> None:
    """What if things get dirty? Each is written when its delay is over, and not before."""
    vfs = make_vfs()
    f = file(vfs)
    d = kern_mkdir(vfs, vfs.rootnch, b"d", 0o755, ROOT).ncp.vp
    dev = kern_mknod(vfs, vfs.rootnch, b"dev", 0o020600, 0, 0, ROOT).ncp.vp
    assert d is not None
    assert dev is not None
    assert dev.type is VType.VCHR
    for vp in (f, d, dev):
        vfs.syncer.setisdirty(vp)
        vfs.syncer.setisdirty(vp)
    assert vfs.syncer.pending() == 3
    written = []
    for second in range(1, 33):
        before = {vp for vp in (f, d, dev) if vp.flag & V.ISDIRTY}
        wheel(vfs).tick()
        written += [(second, vp) for vp in before if not vp.flag & V.ISDIRTY]
    assert written == [(28, dev), (29, d), (30, f)]
    assert vfs.syncer.pending() == 0
    check(vfs)


def test_shorter_syncdelay_shortens_the_wait() -> None:
    """What if kern.syncdelay is 2? Written after two seconds; out of bounds is EINVAL."""
    vfs = make_vfs()
    tree = SysctlTree()
    tree.register(vfs.syncer)
    tree.set("kern.syncdelay", "2", ROOT)
    for bad in ("0", "33"):
        with pytest.raises(KError) as err:
            tree.set("kern.syncdelay", bad, ROOT)
        assert err.value.errno == EINVAL
    f = file(vfs)
    vfs.syncer.setobjdirty(f)
    assert wheel(vfs).slot_of[f] == 2
    f2 = file(vfs, b"g")
    vfs.syncer.setisdirty(f2)
    wheel(vfs).tick()
    assert f2.flag & V.ISDIRTY
    wheel(vfs).tick()
    assert not f2.flag & V.ISDIRTY


def test_what_stays_dirty_is_tried_again_and_errors_are_logged() -> None:
    """What if writing fails, or more gets dirty meanwhile? Again a second later, nothing lost."""
    vfs = make_vfs()
    f = file(vfs)
    ops = f.ops.norm

    class Failing(type(ops)):  # type: ignore[misc]
        __slots__ = ()

        def vop_fsync(self, vp: Vnode, waitfor: int, cred: object = None) -> None:
            raise KError(EIO)

    f.ops.norm = Failing(fs_of(vfs))
    f.ops.relink()
    vfs.syncer.setisdirty(f)
    for _ in range(40):
        wheel(vfs).tick()
    stats = vfs.syncer.statistics()
    assert stats.failed == 11
    assert stats.retried == 11
    assert f.flag & V.ISDIRTY
    assert vfs.msgbuf.text().count("syncer: / ino") == 11
    f.ops.norm = ops
    f.ops.relink()
    wheel(vfs).tick()
    assert not f.flag & (V.ISDIRTY | V.ONWORKLST)
    check(vfs)


def test_file_that_goes_leaves_the_wheel() -> None:
    """What if a dirty file is removed? Its vnode goes and the wheel forgets it."""
    vfs = make_vfs()
    vfs.syncer.setisdirty(file(vfs))
    kern_unlink(vfs, vfs.rootnch, b"f", ROOT)
    assert vfs.syncer.pending() == 0
    assert not any(wheel(vfs).buckets)
    check(vfs)


def test_whole_file_system_is_asked_once_in_syncdelay() -> None:
    """What if two minutes pass? vfs_sync comes every 30 s, lazily, and not when read-only."""
    vfs = make_vfs()
    fs = fs_of(vfs)
    for _ in range(120):
        wheel(vfs).tick()
    assert fs.synced == [MNT_LAZY] * 4
    assert vfs.mounts.root is not None
    vfs.mounts.root.flag |= MNT.RDONLY
    for _ in range(60):
        wheel(vfs).tick()
    assert len(fs.synced) == 4


def test_thread_follows_the_clock_and_ends_with_its_mount() -> None:
    """What if the thread runs on a clock? Written at 30 s; a late thread catches up; it ends."""
    clock = VirtualClock()
    lwkt = Lwkt(1, clock, Ktr(1, clock), MsgBuf())
    vfs = make_vfs(lwkt=lwkt, clock=clock)
    vfs.syncer.start(lambda ctx: lwkt.create(ctx.daemon, name="syncer", driver="coro") and None)
    f = file(vfs)
    vfs.syncer.setisdirty(f)
    for _ in range(28):
        lwkt.run_until_idle()
        clock.advance(1_000_000_000)
    lwkt.run_until_idle()
    assert f.flag & V.ISDIRTY
    clock.advance(3_000_000_000)
    lwkt.run_until_idle()
    assert not f.flag & V.ISDIRTY
    vfs.syncer.setisdirty(f)
    assert vfs.mounts.root is not None
    vfs.syncer.rushjob(vfs.mounts.root, 31)
    clock.advance(1_000_000_000)
    lwkt.run_until_idle()
    assert not f.flag & V.ISDIRTY

    async def close() -> None:
        vfs.close()

    lwkt.create(close, name="close", driver="coro")
    lwkt.run_until_idle()
    assert all(td.name not in ("syncer", "close") for td in lwkt.threads.values())
    lwkt.shutdown_nowait()


def test_mounts_that_have_nothing_to_write_have_no_wheel() -> None:
    """What if a mount is NOMSYNC? No wheel; dirty marks do no harm."""
    vfs = make_vfs()
    assert vfs.mounts.root is not None
    vfs.syncer.mount_removed(vfs.mounts.root)
    vfs.mounts.root.kern_flag |= MNTK.NOMSYNC
    vfs.syncer.mount_added(vfs.mounts.root)
    f = file(vfs)
    vfs.syncer.setisdirty(f)
    assert not f.flag & V.ONWORKLST
    assert vfs.syncer.statistics().wheels == 0
    vfs.syncer.clrisdirty(f)


def test_sync_all_goes_on_after_an_error() -> None:
    """What if one of two file systems cannot write? The other is written, the error is told."""
    vfs = make_vfs()
    on = kern_mkdir(vfs, vfs.rootnch, b"m", 0o755, ROOT)
    mp = vfs.mounts.mount("dict", "s", on, {}, 0, ROOT)

    def fails(mp: object, waitfor: int) -> None:
        raise KError(EIO)

    fs_of(vfs).vfs_sync = fails  # type: ignore[method-assign]
    with pytest.raises(KError) as err:
        vfs.sync_all()
    assert err.value.errno == EIO
    assert mp.data.synced == [MNT_WAIT]


def test_delays_beyond_the_wheel_are_cut() -> None:
    """What if a delay is longer than the wheel? The longest possible is used, never a wrap."""
    vfs = make_vfs()
    f = file(vfs)
    wheel(vfs).add(f, 1000)
    assert wheel(vfs).slot_of[f] == SYNCER_MAXDELAY - 2
    wheel(vfs).add(f, 0)
    assert wheel(vfs).slot_of[f] == 1
    assert wheel(vfs).count == 1


def test_dirty_vnode_is_written_before_it_is_reclaimed_and_stays_if_it_must_wait() -> None:
    """What if memory is short and vnodes are dirty? Written, then freed; else kept, never lost."""
    vfs = make_vfs()
    f = file(vfs)
    vfs.syncer.setisdirty(f)
    ops = f.ops.norm

    async def never() -> int:
        return 0

    class Waiting(type(ops)):  # type: ignore[misc]
        __slots__ = ()

        def vop_fsync(self, vp: Vnode, waitfor: int, cred: object = None) -> None:
            raise Block(never, "disk")

    f.ops.norm = Waiting(fs_of(vfs))
    f.ops.relink()
    for _ in range(40):
        vfs.vnodes.freesomevnodes(5)
        check(vfs)
    assert f.flag & V.ISDIRTY
    assert f.state is not VState.DYING
    assert vfs.syncer.rush_requests > 0
    f.ops.norm = ops
    f.ops.relink()
    for _ in range(40):
        vfs.vnodes.freesomevnodes(5)
    assert f.state is VState.DYING
    assert fs_of(vfs).calls["fsync"] == 1
    assert vfs.syncer.pending() == 0
    check(vfs)


def test_file_times_have_the_precision_asked_for() -> None:
    """What if vfs.timestamp_precision changes? Seconds, ticks, microseconds, nanoseconds."""
    vfs = make_vfs(clock=VirtualClock())
    now = vfs.clock.realtime_ns()
    for value, grain in enumerate((1_000_000_000, 10_000_000, 1000, 1)):
        vfs.timestamp_precision = value
        assert vfs.now() == now // grain * grain
