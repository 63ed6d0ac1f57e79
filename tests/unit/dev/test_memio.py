"""null, zero, full, random, urandom, console."""

from __future__ import annotations

import pytest

from dfuser.dev.console import LINE_MAX, ConsoleOps
from dfuser.dev.devlist import DevList
from dfuser.dev.devsw import POLLIN, POLLOUT, Cdev
from dfuser.dev.memio import MAXREAD, MemOps
from dfuser.hw.entropy import SeededEntropy
from dfuser.libkern.errno import ENODEV, ENOSPC, EPERM, KError
from dfuser.libkern.log import MsgBuf
from dfuser.libkern.ucred import Ucred


@pytest.fixture
def devices() -> DevList:
    devs = DevList()
    MemOps(SeededEntropy(7)).attach(devs)
    return devs


def dev(devices: DevList, name: str) -> Cdev:
    found = devices.find_device_by_name(name)
    assert found is not None
    found.dopen(3, Ucred.root())
    return found


def read(device: Cdev, size: int) -> bytes:
    return bytes(device.ops.d_read(device, 0, size, 0, None))


def write(device: Cdev, data: bytes) -> int:
    return device.ops.d_write(device, 0, data, 0, None)


def test_numbers_and_modes_are_dragonflys(devices: DevList) -> None:
    """What if a program looks at minor numbers and permissions?"""
    found = {d.name: (d.uminor, d.perms, d.uid, d.gid) for d in devices.devices()}
    assert found["null"] == (2, 0o666, 0, 0)
    assert found["random"] == (3, 0o644, 0, 0)
    assert found["urandom"] == (4, 0o644, 0, 0)
    assert found["zero"] == (12, 0o666, 0, 0)


def test_null_takes_everything_and_gives_nothing(devices: DevList) -> None:
    """What if somebody reads and writes /dev/null?"""
    null = dev(devices, "null")
    assert read(null, 100) == b""
    assert write(null, b"x" * 100_000) == 100_000


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, MAXREAD])
def test_zero_gives_exactly_the_zeroes_asked_for(devices: DevList, size: int) -> None:
    """What if reads of all sizes come to /dev/zero?"""
    assert read(dev(devices, "zero"), size) == bytes(size)


def test_a_huge_read_is_answered_in_part(devices: DevList) -> None:
    """What if somebody asks for a gigabyte of zeroes at once?"""
    assert len(read(dev(devices, "zero"), 1 << 30)) == MAXREAD
    assert len(read(dev(devices, "urandom"), 1 << 30)) == MAXREAD


def test_full_is_full(devices: DevList) -> None:
    """What if a program writes to a full device?"""
    full = dev(devices, "full")
    assert read(full, 10) == bytes(10)
    with pytest.raises(KError) as err:
        write(full, b"x")
    assert err.value.errno == ENOSPC
    assert isinstance(full.ops, MemOps)
    assert full.ops.statistics() == (1, 0, 0, 1)


@pytest.mark.parametrize("name", ["random", "urandom"])
def test_random_devices_give_the_hosts_bytes(devices: DevList, name: str) -> None:
    """What if two reads follow each other: are they the source's stream, whole?"""
    device = dev(devices, name)
    data = read(device, 4096) + read(device, 100)
    assert data[:4096] == SeededEntropy(7).read(4096)
    assert len(data) == 4196
    assert len(set(data)) > 200
    with pytest.raises(KError) as err:
        write(device, b"seed")
    assert err.value.errno == EPERM


def test_an_unknown_minor_is_no_device(devices: DevList) -> None:
    """What if a minor number is asked for that the driver does not have?"""
    ops = dev(devices, "null").ops
    odd = devices.make_dev(ops, 99, 0, 0, 0o600, "odd")
    for call in (lambda: read(odd, 1), lambda: write(odd, b"x")):
        with pytest.raises(KError) as err:
            call()
        assert err.value.errno == ENODEV


def test_plain_devices_are_always_ready(devices: DevList) -> None:
    """What if somebody polls /dev/null?"""
    null = dev(devices, "null")
    assert null.ops.d_poll(null, POLLIN | POLLOUT, None) == POLLIN | POLLOUT


def test_the_console_writes_whole_lines_into_the_log() -> None:
    """What if a writer sends his text in odd pieces and leaves the last line open?"""
    devs, msgbuf = DevList(), MsgBuf()
    ConsoleOps(msgbuf).attach(devs)
    console = dev(devs, "console")
    for piece in (b"gre", b"eting\nwor", b"ld"):
        assert write(console, piece) == len(piece)
    assert msgbuf.text() == "greeting\n"
    console.dclose(2, None)
    assert msgbuf.text() == "greeting\nworld\n"
    assert read(console, 10) == b""


def test_the_console_keeps_little_back() -> None:
    """What if a writer never ends his line?"""
    devs, msgbuf = DevList(), MsgBuf()
    ops = ConsoleOps(msgbuf)
    ops.attach(devs)
    write(dev(devs, "console"), b"x" * (LINE_MAX * 3 + 10))
    assert len(ops.partial) == 10
    assert msgbuf.text().count("\n") == 3
