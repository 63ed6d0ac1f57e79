"""Locks of host processes: owners by number, and when their locks end."""

from __future__ import annotations

import random
from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from dfuser.fuse.hostlocks import (
    LINUX_F_RDLCK,
    LINUX_F_UNLCK,
    LINUX_F_WRLCK,
    HostLocks,
    LockReply,
)
from dfuser.hw.clock import VirtualClock
from dfuser.hw.physmem import PhysMem
from dfuser.libkern.errno import EAGAIN, EBADF, EDEADLK, EINTR, EINVAL, ENOLCK, KError
from dfuser.libkern.fcntl import F_POSIX, O_RDONLY, O_RDWR, O_WRONLY
from dfuser.libkern.ktr import Ktr
from dfuser.libkern.log import MsgBuf
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt.block import Block, run_blocking
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.sleepq import synch_of
from dfuser.vfs import syscalls as sc
from dfuser.vfs.file import File
from dfuser.vfs.kernfs.views_vfs import VfsViews
from dfuser.vfs.lockf import OFF_MAX, PosixLocks
from dfuser.vfs.mountflags import MNT
from dfuser.vfs.tmpfs.vfsops import TmpfsVfsOps
from dfuser.vfs.vfs import Vfs
from dfuser.vm.page import VmPages
from tests.conform.world import errno

ROOT = Ucred.root()
ALICE = Ucred.of(1001, 1001)
RD, WR, UN = LINUX_F_RDLCK, LINUX_F_WRLCK, LINUX_F_UNLCK


class World:
    """A tmpfs with files a and b, a machine for those who wait, and the owners of one host."""

    def __init__(self) -> None:
        clock = VirtualClock()
        self.physmem = PhysMem(1 << 20)
        self.lwkt = Lwkt(1, clock, Ktr(1, clock), MsgBuf())
        pages = VmPages(self.physmem)
        self.vfs = Vfs(lwkt=self.lwkt, clock=clock, pages=pages)
        self.vfs.fstypes.register("tmpfs", TmpfsVfsOps)
        self.vfs.mounts.mount("tmpfs", "tmpfs", None, {"mode": "777"}, 0, ROOT)
        for name in (b"a", b"b"):
            sc.kern_create(self.vfs, self.vfs.rootnch, name, 0o666, O_RDWR, ROOT)[1].drop()
        self.posix = PosixLocks()
        self.locks = HostLocks(self.posix)
        self.opened: list[File] = []

    def open(self, name: bytes = b"a", flags: int = O_RDWR, cred: Ucred = ALICE) -> File:
        nch = sc.kern_lookup(self.vfs, self.vfs.rootnch, name, ROOT)
        assert nch is not None
        file = sc.kern_open(self.vfs, nch, flags, cred)
        self.opened.append(file)
        return file

    def lock(
        self, file: File, owner: int, start: int, end: int, type_: int = WR, flock: bool = False,
        wait: bool = False,
    ) -> None:  # fmt: skip
        self.locks.setlk(file, owner, start, end, type_, 100 + owner, flock, wait)

    def flock(self, file: File, owner: int, type_: int = WR, wait: bool = False) -> None:
        self.lock(file, owner, 0, OFF_MAX, type_, True, wait)

    def run(self) -> None:
        self.lwkt.run_until_idle()

    def rows(self) -> list[tuple[str, str, str, int, int, int]]:
        """What /kern/locks shows."""
        return [
            (r.state, r.kind, r.type, r.pid, r.start, r.end) for r in VfsViews(self.vfs).locks()
        ]

    def close(self) -> None:
        self.lwkt.shutdown_nowait()
        self.locks.check()
        self.locks.gone()
        self.locks.check()
        assert not self.locks.owners
        assert not self.locks.opened
        assert self.posix.statistics()[:2] == (0, 0)
        for file in self.opened:
            if file.refs:
                file.drop()
        self.vfs.close()
        assert self.vfs.vnodes.numvnodes == 0
        self.physmem.close()


@pytest.fixture
def w() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def test_two_processes_and_their_ranges(w: World) -> None:
    """What if two processes lock, ask, split and release ranges of one file?"""
    one, other = w.open(), w.open()
    w.lock(one, 1, 0, 99)
    with errno(EAGAIN):
        w.lock(other, 2, 99, 99)
    w.lock(other, 2, 100, OFF_MAX, RD)
    assert w.locks.getlk(other, 2, 50, 200, WR, 102, False) == (0, 99, WR, 101)
    assert w.locks.getlk(one, 1, 0, 1 << 40, WR, 101, False) == (100, OFF_MAX, RD, 102)
    assert w.locks.getlk(one, 1, 0, 99, WR, 101, False) == LockReply(0, 99, UN, 0)
    assert w.locks.getlk(one, 3, 200, 300, RD, 103, False) == LockReply(200, 300, UN, 0)
    w.lock(one, 1, 40, 59, UN)
    w.lock(other, 2, 40, 59)
    assert w.rows() == [
        ("held", "posix", "write", 101, 0, 39),
        ("held", "posix", "write", 102, 40, 59),
        ("held", "posix", "write", 101, 60, 99),
        ("held", "posix", "read", 102, 100, OFF_MAX),
    ]
    assert w.posix.counts == {1001: 4}
    w.locks.check()
    assert w.locks.statistics()[:2] == (2, 2)
    w.lock(one, 1, 0, OFF_MAX, UN)
    w.lock(other, 2, 0, OFF_MAX, UN)
    assert w.locks.statistics()[:2] == (0, 0)


def test_a_close_ends_the_locks_of_its_process_on_its_file(w: World) -> None:
    """What if a process that locks two files through two descriptors each closes one?"""
    one, again, third = w.open(b"a"), w.open(b"a", O_RDONLY), w.open(b"b")
    w.lock(one, 1, 0, 9)
    w.lock(third, 1, 0, 9)
    w.lock(one, 2, 20, 29)
    w.locks.flush(again, 1)
    assert [row[3:] for row in w.rows()] == [(102, 20, 29), (101, 0, 9)]
    w.locks.flush(again, 1)
    w.locks.flush(again, 77)
    assert w.locks.statistics().flushed == 1
    w.locks.check()


def test_an_flock_ends_with_its_open_file(w: World) -> None:
    """What if two open files flock, one is flushed, and one is released?"""
    one, other = w.open(), w.open()
    w.flock(one, 5)
    with errno(EAGAIN):
        w.flock(other, 6, RD)
    w.locks.flush(one, 5)
    with errno(EAGAIN):
        w.flock(other, 6, RD)
    assert w.rows() == [("held", "flock", "write", 105, 0, OFF_MAX)]
    w.locks.release(one, 5, True)
    w.flock(other, 6, RD)
    w.flock(one, 5, RD)
    assert w.posix.counts == {}
    w.locks.release(one, 5, True)
    w.locks.release(other, 6, True)
    assert w.rows() == []


def test_one_number_for_a_process_and_an_open_file(w: World) -> None:
    """What if the host uses one number for both kinds of owner?"""
    one, third = w.open(b"a"), w.open(b"b")
    w.lock(one, 9, 0, 9)
    w.flock(third, 9)
    w.locks.release(third, 9, True)
    assert [row[1] for row in w.rows()] == ["posix"]
    with errno(EAGAIN):
        w.flock(one, 9)
    assert w.locks.getlk(third, 9, 0, 9, WR, 109, True).type == UN


def test_record_locks_of_an_open_file(w: World) -> None:
    """What if a lock's owner is an open file that no flush names (F_OFD_SETLK)?"""
    one, other = w.open(), w.open()
    w.lock(one, 40, 0, 9)
    w.lock(one, 41, 20, 29)
    w.lock(other, 41, 30, 39)
    w.locks.release(one)
    assert [row[3:] for row in w.rows()] == [(141, 20, 39)]
    w.locks.check()
    w.locks.release(other)
    assert w.rows() == []


def test_a_blocked_lock_is_shown_and_granted(w: World) -> None:
    """What if a process waits for another's lock, and it is released?"""
    one, other = w.open(), w.open()
    w.lock(one, 1, 0, 99)
    done: list[int] = []

    async def wait(owner: int, type_: int) -> None:
        await run_blocking(w.lock, other, owner, 50, 60, type_, False, True)
        done.append(owner)

    w.lwkt.create(wait, 2, RD, name="two", driver="coro")
    w.lwkt.create(wait, 3, RD, name="three", driver="coro")
    w.run()
    assert [row for row in w.rows() if row[0] == "waits"] == [
        ("waits", "posix", "read", 102, 50, 60),
        ("waits", "posix", "read", 103, 50, 60),
    ]
    assert (done, len(w.locks.owners), w.locks.statistics().waits) == ([], 1, 2)

    async def release() -> None:
        w.locks.flush(one, 1)

    w.lwkt.create(release, name="release", driver="coro")
    w.run()
    assert sorted(done) == [2, 3]
    assert [row[0] for row in w.rows()] == ["held", "held"]
    w.locks.check()


def test_an_interrupted_wait_leaves_nothing(w: World) -> None:
    """What if a process that waits gets a signal: is its owner gone, and an upgrade's too?"""
    one, other = w.open(), w.open()
    w.flock(one, 1, RD)
    w.flock(other, 2, RD)
    ended: list[int] = []

    async def wait(owner: int) -> None:
        try:
            await run_blocking(w.flock, other, owner, WR, True)
        except KError as error:
            ended.append(error.errno or -1)

    threads = [w.lwkt.create(wait, owner, name="w", driver="coro") for owner in (2, 3)]
    w.run()
    assert [row[3] for row in w.rows()] == [101, 102, 103]
    for td in threads:
        synch_of(w.lwkt).abort_sleep(td, EINTR)
    w.run()
    assert ended == [EINTR, EINTR]
    assert [row[3] for row in w.rows()] == [101]
    w.locks.release(other, 2, True)
    w.locks.release(other, 3, True)
    assert list(w.locks.owners) == [(1, True)]
    w.locks.check()


def test_deadlock_on_one_file(w: World) -> None:
    """What if two processes wait for each other on one file, and a third for one who waits?"""
    one, other = w.open(), w.open()
    w.lock(one, 1, 0, 0)
    w.lock(other, 2, 1, 1)

    async def wait() -> None:
        await run_blocking(w.lock, one, 1, 1, 1, WR, False, True)

    w.lwkt.create(wait, name="wait", driver="coro")
    w.run()
    with errno(EDEADLK):
        w.lock(other, 2, 0, 0, WR, False, True)
    with errno(EAGAIN):
        w.lock(other, 2, 0, 0)
    with errno(EDEADLK):
        w.lock(other, 3, 0, 0, WR, False, True)
    with pytest.raises(Block):
        w.lock(other, 3, 1, 1, WR, False, True)


def test_the_limit_of_a_user(w: World) -> None:
    """What if a user has as many record locks as he may, and root more?"""
    file, roots = w.open(), w.open(cred=ROOT)
    w.posix.maximum = 3
    for i in range(3):
        w.lock(file, 1, 10 * i, 10 * i + 1)
    with errno(ENOLCK):
        w.lock(file, 1, 50, 51)
    with errno(ENOLCK):
        w.lock(file, 2, 60, 61)
    assert len(w.locks.owners) == 1
    w.flock(w.open(b"b"), 4)
    w.lock(roots, 3, 50, 51)
    assert w.posix.counts == {1001: 3, 0: 1}
    w.locks.setlk(file, 8, 70, 71, RD, 108, False, False, uid=0)
    w.lock(file, 1, 0, OFF_MAX, UN)
    w.lock(file, 2, 60, 61)
    w.locks.check()


def test_the_limit_of_owners(w: World) -> None:
    """What if as many processes hold locks as a connection may have?"""
    file = w.open()
    w.locks.limit = 2
    w.lock(file, 1, 0, 0)
    w.lock(file, 2, 1, 1)
    with errno(ENOLCK):
        w.lock(file, 3, 2, 2)
    assert len(w.locks.owners) == 2
    assert w.locks.statistics().refused == 1
    w.lock(file, 2, 3, 3)
    w.lock(file, 1, 0, 0, UN)
    w.lock(file, 3, 2, 2)
    w.lock(file, 4, 2, 2, UN)


@pytest.mark.parametrize(
    ("start", "end", "type_"),
    [(5, 4, RD), (-1, 4, RD), (0, OFF_MAX + 1, RD), (0, 1, 3), (0, 1, -1)],
)
def test_requests_that_make_no_sense(w: World, start: int, end: int, type_: int) -> None:
    """What if the host sends a range or a type that cannot be?"""
    file = w.open()
    with errno(EINVAL):
        w.lock(file, 1, start, end, type_)
    with errno(EINVAL):
        w.locks.getlk(file, 1, start, end, type_, 1, False)
    with errno(EINVAL):
        w.locks.getlk(file, 1, 0, 1, UN, 1, False)


def test_the_open_must_allow_the_lock(w: World) -> None:
    """What if a record lock does not fit how the file is open, and what of an flock?"""
    reader, writer = w.open(flags=O_RDONLY), w.open(flags=O_WRONLY)
    with errno(EBADF):
        w.lock(reader, 1, 0, 0, WR)
    with errno(EBADF):
        w.lock(writer, 1, 0, 0, RD)
    w.flock(reader, 1, WR)
    w.locks.release(reader, 1, True)
    reader.drop()
    with errno(EBADF):
        w.lock(reader, 1, 0, 0, RD)


def test_the_end_of_the_connection(w: World) -> None:
    """What if the connection ends while many hold locks and one waits?"""
    files = [w.open(b"a"), w.open(b"b")]
    for owner in range(20):
        w.lock(files[owner % 2], owner, owner, owner)
    waited: list[bool] = []

    async def wait() -> None:
        await run_blocking(w.lock, files[1], 50, 0, 5, WR, False, True)
        waited.append(True)

    w.lwkt.create(wait, name="wait", driver="coro")
    w.run()

    async def end() -> None:
        w.locks.gone()

    w.lwkt.create(end, name="end", driver="coro")
    w.run()
    assert waited == [True]
    assert list(w.locks.owners) == [(50, False)]
    assert w.posix.counts == {1001: 1}


def test_a_forced_unmount_takes_the_locks(w: World) -> None:
    """What if the file system goes by force while locks are held and waited for?"""
    file = w.open()
    w.lock(file, 1, 0, 9)
    ended: list[int] = []

    async def wait() -> None:
        try:
            await run_blocking(w.lock, file, 2, 0, 9, WR, False, True)
        except KError as error:
            ended.append(error.errno or -1)

    w.lwkt.create(wait, name="wait", driver="coro")
    w.run()

    async def unmount() -> None:
        root = w.vfs.mounts.root
        assert root is not None
        w.vfs.mounts.unmount(root, MNT.FORCE, halting=True)

    w.lwkt.create(unmount, name="unmount", driver="coro")
    w.run()
    assert ended == [EBADF]
    assert w.posix.counts == {}
    w.locks.check()
    w.locks.flush(file, 1)
    assert not w.locks.owners


STEPS = st.lists(
    st.tuples(
        st.integers(0, 3),  # open file
        st.integers(1, 3),  # owner
        st.sampled_from(["posix", "flock", "flush", "release"]),
        st.sampled_from([RD, WR, UN]),
        st.integers(0, 15),
        st.integers(0, 6),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.randoms(use_true_random=False))
def test_random_owners(
    steps: list[tuple[int, int, str, int, int, int]], chance: random.Random
) -> None:
    """What if owners lock, close and release at random: do tables, counts and locks agree?"""
    w = World()
    files = [w.open(b"a"), w.open(b"a"), w.open(b"b"), w.open(b"b")]
    for which, owner, what, type_, start, more in steps:
        file = files[which]
        try:
            if what == "posix":
                w.lock(file, owner, start, start + more, type_)
            elif what == "flock":
                w.flock(file, 10 + which, type_)
            elif what == "flush":
                w.locks.flush(file, owner)
            else:
                w.locks.release(file, 10 + which, True)
        except KError as error:
            if error.errno != EAGAIN:
                raise
        w.locks.check()
        held = [r for f in (files[0], files[2]) if f.vp.lockf for r in f.vp.lockf.ranges]
        assert w.posix.statistics().locks == sum(1 for r in held if r.flags & F_POSIX)
        assert {id(r.owner) for r in held} == {id(who) for who in w.locks.owners.values()}
        if what == "flush":
            assert not any(
                r.owner.number == owner and not r.owner.flock
                for r in (file.vp.lockf.ranges if file.vp.lockf else ())
            )
    chance.shuffle(files)
    for file in files:
        w.locks.release(file, 0, False)
        file.drop()
    w.close()
