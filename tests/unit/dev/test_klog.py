"""/dev/klog: following the kernel log, with and without waiting."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from dfuser.dev.devlist import DevList
from dfuser.dev.devsw import IO_NDELAY, POLLIN, POLLOUT, Cdev
from dfuser.dev.ioccom import FIONREAD
from dfuser.dev.klog import LogOps
from dfuser.hw.clock import VirtualClock
from dfuser.libkern.errno import (
    EBUSY,
    EINTR,
    ENOTTY,
    EOPNOTSUPP,
    EWOULDBLOCK,
    KError,
)
from dfuser.libkern.klist import EVFILT_READ, EVFILT_WRITE, HookKnote
from dfuser.libkern.ktr import Ktr
from dfuser.libkern.log import MsgBuf
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt.block import Block, run_blocking
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.synch import abort_sleep

ROOT = Ucred.root()


class World:
    """A machine with a log device that is open."""

    def __init__(self, size: int = 4096, ncpu: int = 2) -> None:
        clock = VirtualClock()
        self.msgbuf = MsgBuf(size)
        self.lwkt = Lwkt(ncpu, clock, Ktr(ncpu, clock, entries=64), self.msgbuf)
        self.ops = LogOps(self.msgbuf, self.lwkt)
        self.devices = DevList()
        self.ops.attach(self.devices)
        dev = self.devices.find_device_by_name("klog")
        assert dev is not None
        self.dev: Cdev = dev
        dev.dopen(1, ROOT)
        self.got: list[bytes | int] = []

    def read(self, size: int = 4096, ioflag: int = 0) -> bytes:
        return bytes(self.ops.d_read(self.dev, 0, size, ioflag, None))

    async def reader(self) -> None:
        try:
            self.got.append(await run_blocking(self.read))
        except KError as error:
            self.got.append(error.errno or 0)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.lwkt.shutdown_nowait()
    assert not made.lwkt.threads


def test_what_is_read_does_not_come_again(world: World) -> None:
    """What if a reader takes the log in pieces, and another opens it afterwards?"""
    world.msgbuf.kprintf("one")
    world.msgbuf.kprintf("two")
    assert world.read(5) == b"one\nt"
    world.dev.dclose(1, None)
    world.dev.dopen(1, ROOT)
    assert world.read() == b"wo\n"


def test_only_one_reader_at_a_time(world: World) -> None:
    """What if two programs open the log?"""
    with pytest.raises(KError) as err:
        world.dev.dopen(1, ROOT)
    assert err.value.errno == EBUSY
    assert world.dev.opencount == 1
    world.dev.dclose(1, None)
    world.dev.dopen(1, ROOT)


def test_an_empty_log_blocks_or_says_so(world: World) -> None:
    """What if there is nothing to read?"""
    with pytest.raises(Block) as block:
        world.read()
    assert block.value.wmesg == "klog"
    with pytest.raises(KError) as err:
        world.read(ioflag=IO_NDELAY)
    assert err.value.errno == EWOULDBLOCK


@pytest.mark.parametrize("where", ["outside", "same cpu", "other cpu"])
def test_a_waiting_reader_is_woken_by_a_message(world: World, where: str) -> None:
    """What if a message comes from no thread, from the reader's CPU, from another one?"""
    td = world.lwkt.create(world.reader, name="reader", cpu=0)
    world.lwkt.run_until_idle()
    assert (world.got, td.wmesg, world.ops.waiters) == ([], "klog", 1)
    if where == "outside":
        world.msgbuf.kprintf("hello")
    else:

        async def speak() -> None:
            world.msgbuf.kprintf("hello")

        world.lwkt.create(speak, name="speaker", cpu=int(where == "other cpu"))
    world.lwkt.run_until_idle()
    assert world.got == [b"hello\n"]
    assert world.ops.statistics().waits == 1
    assert world.ops.waiters == 0


def test_many_messages_wake_a_reader_once(world: World) -> None:
    """What if a burst comes before the reader runs?"""
    world.lwkt.create(world.reader, name="reader", cpu=0)
    world.lwkt.run_until_idle()

    async def burst() -> None:
        for i in range(50):
            world.msgbuf.kprintf(f"line {i}")

    world.lwkt.create(burst, name="burst", cpu=0)
    world.lwkt.run_until_idle()
    assert len(world.got) == 1
    assert bytes(world.got[0]).count(b"\n") == 50  # type: ignore[arg-type]


def test_a_message_between_look_and_sleep_is_not_lost(world: World) -> None:
    """What if text comes after the reader has said Block and before he sleeps?"""
    with pytest.raises(Block) as block:
        world.read()
    world.msgbuf.kprintf("just now")

    async def wait() -> None:
        world.got.append(await block.value.wait())

    world.lwkt.create(wait, name="late", cpu=0)
    world.lwkt.run_until_idle()
    assert world.got == [0]


def test_a_waiting_reader_can_be_interrupted(world: World) -> None:
    """What if the reader is killed while it waits?"""
    td = world.lwkt.create(world.reader, name="reader", cpu=0)
    world.lwkt.run_until_idle()
    assert abort_sleep(td, EINTR)
    world.lwkt.run_until_idle()
    assert world.got == [EINTR]
    assert world.ops.waiters == 0


def test_lost_text_is_reported() -> None:
    """What if the reader is so slow that the buffer has moved on?"""
    world = World(size=256)
    for i in range(100):
        world.msgbuf.kprintf(f"message number {i}")
    text = world.read(10_000)
    assert text.startswith(b"[klog: ")
    assert text.endswith(b"message number 99\n")
    lost = int(text.split()[1])
    total = sum(len(f"message number {i}\n") for i in range(100))
    assert lost == total - 256 == world.ops.bytes_lost
    with pytest.raises(KError):
        world.read(ioflag=IO_NDELAY)


def test_lost_text_read_in_small_pieces() -> None:
    """What if the note about lost text does not fit the reader's buffer with the text?"""
    world = World(size=64)
    for i in range(20):
        world.msgbuf.kprintf(f"m{i:03}")
    pieces = []
    while world.ops.seq < world.msgbuf.seq:
        pieces.append(world.read(40))
    text = b"".join(pieces)
    assert text.split(b"]\n", 1)[1] == world.msgbuf.text().encode()


def test_poll_and_fionread_tell_what_is_there(world: World) -> None:
    """What if a program asks before it reads?"""
    assert world.ops.d_poll(world.dev, POLLIN | POLLOUT, None) == 0
    world.msgbuf.kprintf("12345")
    assert world.ops.d_poll(world.dev, POLLIN | POLLOUT, None) == POLLIN
    out = world.ops.d_ioctl(world.dev, FIONREAD, b"", 1, ROOT)
    assert struct.unpack("=i", out) == (6,)
    with pytest.raises(KError) as err:
        world.ops.d_ioctl(world.dev, 0x1234, b"", 1, ROOT)
    assert err.value.errno == ENOTTY


def test_a_knote_hears_of_messages_until_it_is_taken_off(world: World) -> None:
    """What if somebody watches the log with kqueue?"""

    class Note(HookKnote):
        def event(self, hint: int) -> bool:
            return True

    heard: list[int] = []
    note = Note(0, lambda kn: heard.append(1), EVFILT_READ)
    world.ops.d_kqfilter(world.dev, note)
    world.msgbuf.kprintf("a")
    world.ops.d_kqdetach(world.dev, note)
    world.msgbuf.kprintf("b")
    assert heard == [1]
    wrong = Note(0, lambda kn: None, EVFILT_WRITE)
    with pytest.raises(KError) as err:
        world.ops.d_kqfilter(world.dev, wrong)
    assert err.value.errno == EOPNOTSUPP


def test_a_detached_driver_hears_nothing(world: World) -> None:
    """What if the kernel stops: does the log keep the driver?"""
    world.ops.detach()
    assert world.msgbuf.statistics().listeners == 0
