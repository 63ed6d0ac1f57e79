"""What is asked of an open device besides its bytes: ioctl, locks, ranges, time of birth."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest

from dfuser.dev.clone import CloneBitmap
from dfuser.dev.devsw import Buffer, Cdev, D, DevOps
from dfuser.dev.ioccom import (
    FIOASYNC,
    FIODTYPE,
    FIONBIO,
    FIONREAD,
    IOC_INOUT,
    ioc,
    ioc_to_host,
)
from dfuser.libkern.errno import (
    EAGAIN,
    EBADF,
    EINVAL,
    ENODEV,
    ENOENT,
    ENOTTY,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
)
from dfuser.libkern.fcntl import (
    F_RDLCK,
    F_SETLK,
    F_UNLCK,
    F_WRLCK,
    O_RDONLY,
    O_RDWR,
    SEEK_DATA,
    SEEK_SET,
)
from dfuser.libkern.ucred import Ucred
from dfuser.vfs.devfs.ruleioctl import (
    DEVFS_RULE_ADD,
    DEVFS_RULE_APPLY,
    DEVFS_RULE_CLEAR,
    DEVFS_RULE_HIDE,
    DEVFS_RULE_LINK,
    DEVFS_RULE_NAME,
    DEVFS_RULE_PERM,
    DEVFS_RULE_RESET,
    DEVFS_RULE_TYPE,
    RULE_SIZE,
    RuleIoctl,
)
from dfuser.vfs.lockf import Flock
from dfuser.vfs.syscalls import (
    kern_advlock,
    kern_close,
    kern_copy_file_range,
    kern_fallocate,
    kern_ioctl,
    kern_seek,
    kern_setattr,
    kern_tmpfile,
    vn_ioctl,
)
from dfuser.vfs.vattr import Vattr
from tests.conform.vnode_ranges import Owner

from .synth_world import ROOT, SynthWorld


@pytest.fixture
def world() -> Iterator[SynthWorld]:
    made = SynthWorld()
    yield made
    made.close()


class Control(DevOps):
    """A driver whose ioctl tells which device it is and what was kept for the open."""

    def d_open(self, dev: Cdev, oflags: int, cred: Ucred) -> Any:
        return f"open{oflags}"

    def d_ioctl(
        self, dev: Cdev, cmd: int, data: Buffer, fflag: int, cred: Ucred, priv: Any = None
    ) -> bytes:
        if cmd != ioc(IOC_INOUT, "t", 7, 64):
            return super().d_ioctl(dev, cmd, data, fflag, cred, priv)
        return f"{dev.name} {priv} ".encode() + bytes(data)


def test_an_ioctl_goes_to_the_device_of_the_open(world: SynthWorld) -> None:
    """What if a name that clones is opened twice and both opens get an ioctl of the host?"""
    ops, units = Control("ctl", D.TTY), CloneBitmap()

    def handler(dev: Cdev, mode: int, cred: Ucred) -> Cdev:
        unit = units.get()
        return world.devices.make_dev(ops, unit, 0, 0, 0o600, f"ctl{unit}")

    world.devices.make_autoclone_dev(ops, handler, 0, 0, 0o600, "ctl")
    first, second = world.open("/dev/ctl", O_RDONLY), world.open("/dev/ctl", O_RDWR)
    host = ioc_to_host(ioc(IOC_INOUT, "t", 7, 64))
    assert kern_ioctl(first, host, b"in", 64) == b"ctl0 open1 in"
    assert kern_ioctl(second, host, b"in", 64) == b"ctl1 open3 in"
    assert kern_ioctl(second, host, b"in", 4) == b"ctl1"
    assert vn_ioctl(second, ioc(IOC_INOUT, "t", 7, 64), b"", 64) == b"ctl1 open3 "
    assert world.errno(kern_ioctl, first, 0x5401, b"", 0) == ENOTTY
    assert vn_ioctl(first, FIODTYPE, b"", 4) == struct.pack("=i", D.TTY)
    gone = world.devices.find_device_by_name("ctl1")
    assert gone is not None
    world.devices.destroy_dev(gone)
    assert world.errno(kern_ioctl, second, host, b"in", 64) == ENXIO
    assert world.errno(vn_ioctl, second, FIODTYPE, b"", 4) == ENXIO
    kern_close(first)
    kern_close(second)
    assert world.errno(kern_ioctl, first, host, b"in", 64) == EBADF


@pytest.mark.parametrize(
    ("name", "command", "number"),
    [
        ("null", 0x5401, ENOTTY),
        ("zero", ioc_to_host(FIOASYNC), ENOTTY),
        ("random", ioc_to_host(FIOASYNC), 0),
        ("urandom", ioc_to_host(FIOASYNC), 0),
        ("random", 0x80045200, ENOTTY),
        ("full", FIONREAD, ENOTTY),
        ("console", 0x802C542A, ENOTTY),
        ("klog", ioc_to_host(FIONBIO), 0),
        ("klog", ioc_to_host(FIONREAD), 0),
        ("klog", ioc_to_host(FIOASYNC), ENOTTY),
        ("devfs", 0x80086601, EPERM),
    ],
)
def test_what_the_devices_know(world: SynthWorld, name: str, command: int, number: int) -> None:
    """What if an ioctl of the host reaches a device: does it know the number?"""
    file = world.open(f"/dev/{name}")
    assert world.errno(kern_ioctl, file, command, bytes(4), 64) == number
    kern_close(file)


def send(file: Any, command: int, record: RuleIoctl) -> bytes:
    """An ioctl as a program of the host sends it."""
    return kern_ioctl(file, ioc_to_host(command), record.pack(), RULE_SIZE)


def test_rules_come_as_ioctls(world: SynthWorld) -> None:
    """What if devfsctl hides, shows, links and gives permissions by ioctl?"""
    file = world.open("/dev/devfs", O_RDWR)
    by_name = RuleIoctl(rule_type=DEVFS_RULE_NAME, name=b"zero")
    hide = by_name._replace(rule_cmd=DEVFS_RULE_HIDE | DEVFS_RULE_PERM)
    assert send(file, DEVFS_RULE_ADD, hide) == hide.pack()
    everywhere = RuleIoctl()
    send(file, DEVFS_RULE_APPLY, everywhere)
    assert world.errno(world.stat, "/dev/zero") == ENOENT
    send(file, DEVFS_RULE_RESET, everywhere)
    assert world.stat("/dev/zero").mode == 0o666
    send(file, DEVFS_RULE_CLEAR, everywhere)
    perm = RuleIoctl(
        DEVFS_RULE_NAME | DEVFS_RULE_TYPE, DEVFS_RULE_PERM, b"/dev", b"f*", b"", D.MEM, 0o640, 5, 6
    )
    link = by_name._replace(rule_cmd=DEVFS_RULE_LINK, linkname=b"nought")
    send(file, DEVFS_RULE_ADD, perm)
    send(file, DEVFS_RULE_ADD, link)
    assert world.read("/dev/devfs").decode().splitlines() == [
        "add -m /dev -t mem -n 'f*' perm 640 5 6",
        "add -m '*' -n zero link nought",
    ]
    send(file, DEVFS_RULE_APPLY, RuleIoctl(mntpoint=b"/dev"))
    assert world.readlink("/dev/nought") == "zero"
    assert world.rules.commands == 7
    kern_close(file)


@pytest.mark.parametrize(
    "record",
    [
        RuleIoctl(),
        RuleIoctl(rule_cmd=DEVFS_RULE_HIDE, mntpoint=b""),
        RuleIoctl(DEVFS_RULE_NAME, DEVFS_RULE_HIDE),
        RuleIoctl(DEVFS_RULE_TYPE, DEVFS_RULE_HIDE),
        RuleIoctl(DEVFS_RULE_TYPE, DEVFS_RULE_HIDE, dev_type=3),
        RuleIoctl(0, DEVFS_RULE_LINK, linkname=b"x"),
        RuleIoctl(DEVFS_RULE_NAME, DEVFS_RULE_LINK, name=b"x"),
        RuleIoctl(DEVFS_RULE_NAME, DEVFS_RULE_HIDE, name=b"x" * 1024),
    ],
)
def test_rules_that_make_no_sense(world: SynthWorld, record: RuleIoctl) -> None:
    """What if a structure lacks what its rule needs?"""
    file = world.open("/dev/devfs", O_RDWR)
    assert world.errno(send, file, DEVFS_RULE_ADD, record) == EINVAL
    for command in (DEVFS_RULE_ADD, DEVFS_RULE_APPLY):
        assert world.errno(kern_ioctl, file, ioc_to_host(command), bytes(9), 9) == EINVAL
    assert world.errno(kern_ioctl, file, 0x5401, b"", 0) == ENOTTY
    assert world.rules.count() == 0
    kern_close(file)


def test_only_who_may_write_sends_rules(world: SynthWorld) -> None:
    """What if /dev/devfs is open for reading only?"""
    file = world.open("/dev/devfs", O_RDONLY)
    record = RuleIoctl(rule_cmd=DEVFS_RULE_HIDE)
    assert world.errno(send, file, DEVFS_RULE_ADD, record) == EPERM
    kern_close(file)


def test_locks_and_ranges_of_devices(world: SynthWorld) -> None:
    """What if a device is locked (as serial lines are), sought in, allocated, copied?"""
    file, other = world.open("/dev/null", O_RDWR), world.open("/dev/zero", O_RDWR)
    owner = Owner(7)
    kern_advlock(file, owner, F_SETLK, Flock(F_WRLCK), 0)
    assert world.errno(kern_advlock, file, Owner(8), F_SETLK, Flock(F_RDLCK), 0) == EAGAIN
    kern_advlock(file, owner, F_SETLK, Flock(F_UNLCK), 0)
    assert kern_seek(file, 9, SEEK_SET) == 9
    assert world.errno(kern_seek, file, 0, SEEK_DATA) == EINVAL
    assert world.errno(kern_fallocate, file, 0, 0, 1) == ENODEV
    assert world.errno(kern_copy_file_range, other, 0, file, 0, 1) == EINVAL
    kern_close(file)
    kern_close(other)
    directory = world.hold("/dev")
    tmpfile = (kern_tmpfile, world.vfs, directory, 0o600, O_RDWR, ROOT)
    assert world.errno(*tmpfile) == EOPNOTSUPP
    world.vfs.cache.drop_nch(directory)


def test_a_node_has_a_time_of_birth(world: SynthWorld) -> None:
    """What if a device's node is changed: does its birth stay?"""
    born = world.stat("/dev/null").btime
    world.clock.advance(10**9)
    with world.at("/dev/null") as nd:
        kern_setattr(world.vfs, nd.found, Vattr(mode=0o600), ROOT)
    attrs = world.stat("/dev/null")
    assert (attrs.btime, attrs.ctime) == (born, born + 10**9)
