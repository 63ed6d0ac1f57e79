"""The list of devices: names, aliases, clones, listeners, limits."""

from __future__ import annotations

from typing import Any

import pytest

from dfuser.dev.clone import CloneBitmap
from dfuser.dev.devlist import DevAlias, DevList
from dfuser.dev.devsw import Cdev, D, DevOps
from dfuser.libkern.errno import EEXIST, EINVAL, ENODEV, ENOENT, ENOSPC, ENXIO, KError
from dfuser.libkern.klist import HookKnote
from dfuser.libkern.sysctl import SysctlTree
from dfuser.libkern.ucred import Ucred

ROOT = Ucred.root()


class Recorder:
    """A listener that writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []

    def dev_created(self, dev: Cdev) -> None:
        self.heard.append(("+", dev.name))

    def dev_destroyed(self, dev: Cdev) -> None:
        self.heard.append(("-", dev.name))

    def alias_created(self, alias: DevAlias) -> None:
        self.heard.append(("+a", alias.name))

    def alias_destroyed(self, alias: DevAlias) -> None:
        self.heard.append(("-a", alias.name))


class CountingOps(DevOps):
    """A driver that counts opens and closes."""

    def __init__(self, flags: int = 0) -> None:
        super().__init__("counting", flags)
        self.opens = 0
        self.closes = 0

    def d_open(self, dev: Cdev, oflags: int, cred: Ucred) -> Any:
        self.opens += 1
        return None

    def d_close(self, dev: Cdev, fflag: int, priv: Any) -> None:
        self.closes += 1


def test_listeners_hear_everything_once_in_order() -> None:
    """What if a device goes while it has aliases: who hears what, and in which order?"""
    devices, ears = DevList(), Recorder()
    devices.listen(ears)
    dev = devices.make_dev(DevOps("x"), 0, 0, 0, 0o600, "disk0")
    devices.make_dev_alias(dev, "by-label/root")
    devices.destroy_dev(dev)
    devices.destroy_dev(dev)
    assert ears.heard == [
        ("+", "disk0"), ("+a", "by-label/root"), ("-a", "by-label/root"), ("-", "disk0"),
    ]  # fmt: skip
    assert devices.statistics()[:3] == (0, 0, 0)


@pytest.mark.parametrize("name", ["", "/x", "x/", "a//b", ".", "a/../b", "x" * 64, "a\0b"])
def test_bad_names_are_refused(name: str) -> None:
    """What if a driver asks for a name no directory could hold?"""
    devices = DevList()
    with pytest.raises(KError) as err:
        devices.make_dev(DevOps("x"), 0, 0, 0, 0o600, name)
    assert err.value.errno == EINVAL
    assert devices.count() == 0
    assert devices.statistics().drivers == 0


def test_a_name_is_taken_once() -> None:
    """What if two drivers, or a driver and an alias, want one name?"""
    devices = DevList()
    dev = devices.make_dev(DevOps("x"), 0, 0, 0, 0o600, "one")
    devices.make_dev_alias(dev, "two")
    for make in (
        lambda: devices.make_dev(DevOps("y"), 0, 0, 0, 0o600, "two"),
        lambda: devices.make_dev_alias(dev, "one"),
    ):
        with pytest.raises(KError) as err:
            make()
        assert err.value.errno == EEXIST
    assert devices.find_device_by_name("two") is dev
    assert devices.find_device_by_devid(dev.inode) is dev


def test_the_list_has_a_limit() -> None:
    """What if somebody makes devices without end?"""
    devices, ops = DevList(limit=3), DevOps("x")
    for i in range(3):
        devices.make_dev(ops, i, 0, 0, 0o600, f"d{i}")
    with pytest.raises(KError) as err:
        devices.make_dev(ops, 3, 0, 0, 0o600, "d3")
    assert err.value.errno == ENOSPC
    assert devices.statistics().refused == 1


def test_majors_are_given_out_and_come_back() -> None:
    """What if a driver's last device goes: is its major number free, and only then?"""
    devices, ops, other = DevList(), DevOps("x"), DevOps("y")
    a = devices.make_dev(ops, 0, 0, 0, 0o600, "a")
    b = devices.make_dev(ops, 1, 0, 0, 0o600, "b")
    assert (a.umajor, b.umajor) == (0, 0)
    assert devices.make_dev(other, 0, 0, 0, 0o600, "c").umajor == 1
    devices.destroy_dev(a)
    assert devices.make_dev(DevOps("z"), 0, 0, 0, 0o600, "d").umajor == 2
    devices.destroy_dev(b)
    assert devices.make_dev(DevOps("w"), 0, 0, 0, 0o600, "e").umajor == 0


def test_a_destroyed_device_is_dead_for_its_users() -> None:
    """What if a device goes while somebody has it open?"""
    devices, ops = DevList(), CountingOps()
    dev = devices.make_dev(ops, 0, 0, 0, 0o600, "gone")
    dev.dopen(1, ROOT)
    devices.destroy_dev(dev)
    assert dev.dead
    for call in (
        lambda: dev.ops.d_read(dev, 0, 1, 0, None),
        lambda: dev.ops.d_write(dev, 0, b"x", 0, None),
        lambda: dev.ops.d_ioctl(dev, 0, b"", 0, ROOT),
        lambda: dev.ops.d_kqfilter(dev, HookKnote(1, lambda kn: None)),
        lambda: dev.dopen(1, ROOT),
    ):
        with pytest.raises(KError) as err:
            call()
        assert err.value.errno == ENXIO
    dev.dclose(1, None)
    assert dev.opencount == 0


@pytest.mark.parametrize(("flags", "closes"), [(0, 1), (D.TRACKCLOSE, 2)])
def test_the_driver_hears_of_the_last_close(flags: int, closes: int) -> None:
    """What if a device is open twice: which close does the driver hear of?"""
    devices, ops = DevList(), CountingOps(flags)
    dev = devices.make_dev(ops, 0, 0, 0, 0o600, "x")
    dev.dopen(1, ROOT)
    dev.dopen(1, ROOT)
    dev.dclose(1, None)
    dev.dclose(1, None)
    assert (ops.opens, ops.closes) == (2, closes)


def test_an_unsupporting_driver_says_enodev() -> None:
    """What if a driver supports nothing?"""
    devices = DevList()
    dev = devices.make_dev(DevOps("none"), 0, 0, 0, 0o600, "x")
    with pytest.raises(KError) as err:
        dev.dopen(1, ROOT)
    assert err.value.errno == ENODEV
    assert dev.opencount == 0


def test_related_devices_go_together() -> None:
    """What if a disk goes: do its slices and their partitions go, and nothing else?"""
    devices, ops = DevList(), DevOps("disk")
    disk = devices.make_dev(ops, 0, 0, 0, 0o600, "vn0")
    slice0 = devices.make_dev(ops, 1, 0, 0, 0o600, "vn0s0", parent=disk)
    devices.make_dev(ops, 2, 0, 0, 0o600, "vn0s0a", parent=slice0)
    devices.make_dev(ops, 3, 0, 0, 0o600, "vn1")
    devices.destroy_related(disk)
    assert [d.name for d in devices.devices()] == ["vn0", "vn1"]
    devices.destroy_by_ops(ops, 3)
    assert [d.name for d in devices.devices()] == ["vn0"]


def test_an_alias_needs_a_living_device() -> None:
    """What if an alias is made for a device that is gone, or taken from the wrong one?"""
    devices = DevList()
    dev = devices.make_dev(DevOps("x"), 0, 0, 0, 0o600, "a")
    other = devices.make_dev(DevOps("y"), 0, 0, 0, 0o600, "b")
    devices.make_dev_alias(dev, "alias")
    with pytest.raises(KError) as err:
        devices.destroy_dev_alias(other, "alias")
    assert err.value.errno == ENOENT
    devices.destroy_dev_alias(dev, "alias")
    devices.destroy_dev(dev)
    with pytest.raises(KError) as err:
        devices.make_dev_alias(dev, "again")
    assert err.value.errno == ENOENT


def test_opening_a_clonable_name_makes_devices() -> None:
    """What if /dev/tap is opened three times, one is closed, and it is opened again?"""
    devices, units, ops = DevList(), CloneBitmap(), DevOps("tap")

    def handler(dev: Cdev, mode: int, cred: Ucred) -> Cdev:
        unit = units.get()
        return devices.make_dev(ops, unit, 0, 0, 0o600, f"tap{unit}")

    tap = devices.make_autoclone_dev(ops, handler, 0, 0, 0o600, "tap")
    made = [devices.clone(tap, 1, ROOT) for _ in range(3)]
    assert [d.name for d in made] == ["tap0", "tap1", "tap2"]
    devices.destroy_dev(made[1])
    units.put(1)
    assert devices.clone(tap, 1, ROOT).name == "tap1"
    assert devices.clone(made[0], 1, ROOT) is made[0]
    devices.destroy_dev(tap)
    assert devices.clone(tap, 1, ROOT) is tap


def test_the_bitmap_gives_the_lowest_free_unit() -> None:
    """What if units are taken and given back in any order?"""
    units = CloneBitmap(limit=4)
    assert [units.get() for _ in range(3)] == [0, 1, 2]
    assert not units.set(1)
    assert units.set(4)
    units.put(0)
    assert units.get() == 0
    assert units.get(limit=2) == -1
    assert units.get() == 3
    assert units.get() == -1
    assert len(units) == 5
    assert units.chk(4)
    with pytest.raises(KError) as err:
        units.set(5)
    assert err.value.errno == EINVAL


def test_the_sysctls_show_the_list() -> None:
    """What if an operator asks how many devices there are, and lowers the limit?"""
    devices, tree = DevList(), SysctlTree()
    tree.register(devices)
    devices.make_dev(DevOps("x"), 0, 0, 0, 0o600, "a")
    assert tree.get("kern.devices.count") == "1"
    tree.set("kern.devices.max", "1", ROOT)
    with pytest.raises(KError):
        devices.make_dev(DevOps("x"), 0, 0, 0, 0o600, "b")
