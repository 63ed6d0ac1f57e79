"""Packed attributes: what the flags of a mount hide, and when a record is void."""

from __future__ import annotations

import pytest

from dfuser.fuse.attr import flags_of, mount_below, show
from dfuser.libkern.stat import VType
from dfuser.libkern.ucred import Ucred
from dfuser.vfs import syscalls as kern
from dfuser.vfs.mount import Mount
from dfuser.vfs.mountflags import MNT
from dfuser.vfs.vattr import Vattr

from .conftest import Bridge, Ctx

ROOT = Ucred.root()
S_IFREG = 0o100644


def mounted(bridge: Bridge, fstype: str, source: str, name: bytes, flags: int) -> Mount:
    """Mount something on a new directory of the root."""

    def do() -> Mount:
        vfs = bridge.vfs
        nch = kern.kern_mkdir(vfs, vfs.mounts.rootnch, name, 0o755, ROOT)
        return vfs.mounts.mount(fstype, source, nch, {}, flags, ROOT)

    made: Mount = bridge.kernel.in_context(do)
    return made


@pytest.mark.parametrize(
    ("vtype", "flags", "mode", "seen"),
    [
        (VType.VREG, 0, 0o6755, 0o6755),
        (VType.VREG, MNT.NOEXEC, 0o6755, 0o6644),
        (VType.VREG, MNT.NOSUID, 0o7755, 0o1755),
        (VType.VREG, MNT.NOEXEC | MNT.NOSUID, 0o6777, 0o0666),
        (VType.VREG, MNT.RDONLY | MNT.NOATIME, 0o6777, 0o6777),
        (VType.VDIR, MNT.NOEXEC | MNT.NOSUID, 0o2755, 0o2755),
        (VType.VLNK, MNT.NOEXEC, 0o777, 0o777),
    ],
)
def test_flags_hide_bits(bridge: Bridge, vtype: VType, flags: int, mode: int, seen: int) -> None:
    """What if a mount has flags that the host would read from the mode?"""
    mount = mounted(bridge, "tmpfs", "tmpfs", b"m", flags)
    va = Vattr(vtype, mode=mode, uid=0, gid=0, size=0)
    assert show(mount, va)[0] & 0o7777 == seen
    assert show(mount, va, host_flags=flags)[0] & 0o7777 == mode, "the host has the flags itself"


def test_flags_of_a_null_mount(bridge: Bridge) -> None:
    """What if a null mount and the one below it have different flags?"""
    low = mounted(bridge, "tmpfs", "tmpfs", b"low", MNT.NOEXEC)
    null = mounted(bridge, "nullfs", "/low", b"m", MNT.NOSUID)
    assert mount_below(null) is low
    assert mount_below(low) is None
    assert flags_of(null) & (MNT.NOEXEC | MNT.NOSUID) == MNT.NOEXEC | MNT.NOSUID
    assert not flags_of(low) & MNT.NOSUID


def test_an_update_voids_records(bridge: Bridge, ctx: Ctx) -> None:
    """What if a mount gets noexec while a null mount shows its files: is the host told of both?"""
    low = mounted(bridge, "tmpfs", "tmpfs", b"low", 0)
    mounted(bridge, "null", "/low", b"m", 0)
    dirs = [bridge.call(bridge.ops.lookup(1, name, ctx)).st_ino for name in (b"low", b"m")]
    bridge.call(bridge.ops.mknod(dirs[0], b"f", S_IFREG | 0o111, 0, ctx))
    files = [bridge.call(bridge.ops.lookup(parent, b"f", ctx)) for parent in dirs]
    assert [entry.st_mode & 0o111 for entry in files] == [0o111, 0o111]
    notifier = bridge.session.notifier
    queued = notifier.queued
    bridge.kernel.in_context(bridge.vfs.mounts.update, low, MNT.NOEXEC, {}, ROOT)
    notifier.mount_changed(low)
    assert notifier.queued - queued + notifier.merged >= 4
    for entry in files:
        assert not bridge.call(bridge.ops.getattr(entry.st_ino, ctx)).st_mode & 0o111
