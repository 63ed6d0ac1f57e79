from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfuser.hw.clock import VirtualClock
from dfuser.libkern.errno import EAGAIN, EDEADLK, EINVAL, ENOLCK, KError
from dfuser.libkern.fcntl import (
    F_GETLK,
    F_POSIX,
    F_RDLCK,
    F_SETLK,
    F_UNLCK,
    F_WAIT,
    F_WRLCK,
    SEEK_END,
)
from dfuser.libkern.ktr import Ktr
from dfuser.libkern.log import MsgBuf
from dfuser.lwkt.block import Block, run_blocking
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.thread import lwkt_yield
from dfuser.vfs.lockf import OFF_MAX, Flock, Lockf, PosixLocks, lf_advlock


@attrs.define(eq=False)
class Owner:
    pid: int
    uid: int = 1000
    posixlocks: int = 0
    posixlock_limit: int = -1
    locks: PosixLocks | None = None


def vnode() -> Any:
    return SimpleNamespace(lockf=None, flag=0)


def lock(
    vp: Any, owner: Owner, type_: int, start: int, length: int, flags: int = F_POSIX
) -> Flock | None:
    return lf_advlock(vp, owner, F_SETLK, Flock(type_, start, length), flags, 1000)


def ranges(vp: Any) -> list[tuple[int, int, int, int]]:
    return [(r.owner.pid, r.type, r.start, r.end) for r in vp.lockf.ranges]


def errno(call: Any, *args: Any) -> int:
    with pytest.raises(KError) as caught:
        call(*args)
    return caught.value.errno


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from([F_RDLCK, F_WRLCK, F_UNLCK]),
            st.integers(0, 24),
            st.integers(1, 12),
        ),
        max_size=40,
    )
)
def test_random_against_bytes(steps: list[tuple[int, int, int, int]]) -> None:
    # What if three owners lock and unlock at random: does each byte have the locks it should?
    vp, limits = vnode(), PosixLocks()
    owners = [Owner(pid, locks=limits) for pid in range(3)]
    model: list[dict[int, int]] = [{} for _ in range(40)]
    for who, type_, start, length in steps:
        span = range(start, start + length)
        clash = type_ != F_UNLCK and any(
            other != who and F_WRLCK in (type_, held)
            for byte in span
            for other, held in model[byte].items()
        )
        try:
            lock(vp, owners[who], type_, start, length)
        except KError as error:
            got_errno = error.errno
        else:
            got_errno = 0
        assert got_errno == (EAGAIN if clash else 0)
        if clash:
            continue
        for byte in span:
            model[byte].pop(who, None)
            if type_ != F_UNLCK:
                model[byte][who] = type_
        if vp.lockf is None:
            continue
        vp.lockf.check()
        got: list[dict[int, int]] = [{} for _ in range(40)]
        for pid, held, first, last in ranges(vp):
            for byte in range(first, last + 1):
                got[byte][pid] = held
        assert got == model
        for owner in owners:
            assert owner.posixlocks == sum(1 for r in vp.lockf.ranges if r.owner is owner)
        assert limits.statistics().locks == len(vp.lockf.ranges)


def test_split_and_join() -> None:
    # What if a lock is cut in the middle and the hole filled again?
    vp, me = vnode(), Owner(1)
    lock(vp, me, F_RDLCK, 0, 100)
    lock(vp, me, F_WRLCK, 20, 10)
    assert ranges(vp) == [(1, F_RDLCK, 0, 19), (1, F_WRLCK, 20, 29), (1, F_RDLCK, 30, 99)]
    lock(vp, me, F_RDLCK, 20, 10)
    assert ranges(vp) == [(1, F_RDLCK, 0, 99)]
    lock(vp, me, F_UNLCK, 0, 0)
    assert ranges(vp) == []


def test_to_the_end() -> None:
    # What if length 0 is asked for: what does F_GETLK say before and after a cut?
    vp, me, you = vnode(), Owner(1), Owner(2)
    lock(vp, me, F_WRLCK, 10, 0)
    found = lf_advlock(vp, you, F_GETLK, Flock(F_RDLCK, 50, 5), F_POSIX, 0)
    assert found is not None
    assert (found.type, found.start, found.len, found.pid) == (F_WRLCK, 10, 0, 1)
    lock(vp, me, F_UNLCK, 100, 0)
    found = lf_advlock(vp, you, F_GETLK, Flock(F_RDLCK, 50, 5), F_POSIX, 0)
    assert found is not None
    assert (found.start, found.len) == (10, 90)
    free = lf_advlock(vp, you, F_GETLK, Flock(F_WRLCK, 100, 5), F_POSIX, 0)
    assert free is not None
    assert free.type == F_UNLCK


def test_bounds() -> None:
    # What if the range starts before the file, wraps, or counts from the end?
    vp, me = vnode(), Owner(1)
    assert errno(lock, vp, me, F_RDLCK, -1, 5) == EINVAL
    assert errno(lock, vp, me, F_RDLCK, 0, -5) == EINVAL
    assert errno(lock, vp, me, F_RDLCK, OFF_MAX, 2) == EINVAL
    assert Flock(F_RDLCK, -10, 5, SEEK_END).bounds(100) == (90, 94, 0)
    assert errno(Flock(F_RDLCK, -10, 5, SEEK_END).bounds, 5) == EINVAL
    assert errno(Flock(F_RDLCK, 0, 5, 9).bounds, 5) == EINVAL
    assert errno(lf_advlock, vp, me, 99, Flock(F_RDLCK), F_POSIX, 0) == EINVAL


def test_limit_per_user() -> None:
    # What if a user has as many locks as he may: is only a request that may add one refused?
    limits = PosixLocks(3)
    vp, me, root = vnode(), Owner(1, locks=limits), Owner(2, uid=0, locks=limits)
    for i in range(3):
        lock(vp, me, F_RDLCK, i * 10, 5)
    assert errno(lock, vp, me, F_RDLCK, 90, 5) == ENOLCK
    assert errno(lock, vp, me, F_UNLCK, 2, 1) == ENOLCK
    lock(vp, me, F_RDLCK, 2, 10)
    assert limits.counts == {1000: 2}
    for i in range(9):
        lock(vp, root, F_RDLCK, i * 10, 5)
    lock(vp, me, F_UNLCK, 0, 0)
    assert limits.counts == {0: 9}
    assert limits.refused == 2
    me.posixlock_limit = 1
    lock(vp, me, F_RDLCK, 0, 1)
    assert errno(lock, vp, me, F_RDLCK, 5, 1) == ENOLCK


def test_change_of_user() -> None:
    # What if a process with locks gets another user id: who is charged?
    limits = PosixLocks()
    vp, me = vnode(), Owner(1, locks=limits)
    lock(vp, me, F_RDLCK, 0, 5)
    lock(vp, me, F_WRLCK, 10, 5)
    limits.adjust(me, 7)
    me.uid = 7
    assert limits.counts == {7: 2}
    lock(vp, me, F_UNLCK, 0, 0)
    assert limits.counts == {}


def test_shallow_deadlock() -> None:
    # What if the one in the way waits on the same file; and what if he waits on another file?
    one, other, me, you = vnode(), vnode(), Owner(1), Owner(2)
    lock(one, me, F_WRLCK, 0, 10)
    lock(one, you, F_WRLCK, 20, 10)
    with pytest.raises(Block) as blocked:
        lock(one, you, F_WRLCK, 0, 10, F_POSIX | F_WAIT)
    coroutine = blocked.value.wait()
    waiter = blocked.value.wait.__self__  # type: ignore[attr-defined]
    one.lockf.blocked.append(waiter._request)
    assert errno(lock, one, me, F_WRLCK, 20, 10, F_POSIX | F_WAIT) == EDEADLK
    lock(other, you, F_WRLCK, 0, 10)
    with pytest.raises(Block):
        lock(other, me, F_WRLCK, 0, 10, F_POSIX | F_WAIT)
    coroutine.close()  # type: ignore[attr-defined]


def test_flock_and_record_locks_meet() -> None:
    # What if an open file holds an flock: does a record lock of a process run into it?
    vp, file, me = vnode(), Owner(-1), Owner(1)
    lf_advlock(vp, file, F_SETLK, Flock(F_WRLCK), 0, 0)
    assert errno(lock, vp, me, F_RDLCK, 5, 1) == EAGAIN
    found = lf_advlock(vp, me, F_GETLK, Flock(F_RDLCK, 5, 1), F_POSIX, 0)
    assert found is not None
    assert found.pid == -1
    lf_advlock(vp, file, F_SETLK, Flock(F_UNLCK), 0, 0)
    lock(vp, me, F_RDLCK, 5, 1)


async def test_wait_ends_when_lock_is_gone() -> None:
    # What if the lock in the way goes before the wait begins: does the wait begin at all?
    vp, me, you = vnode(), Owner(1), Owner(2)
    lock(vp, me, F_WRLCK, 0, 10)
    with pytest.raises(Block) as blocked:
        lock(vp, you, F_RDLCK, 5, 10, F_POSIX | F_WAIT)
    assert vp.lockf.blocked == []
    lock(vp, me, F_UNLCK, 0, 10)
    assert await blocked.value.wait() == 0
    lock(vp, you, F_RDLCK, 5, 10, F_POSIX | F_WAIT)
    assert ranges(vp) == [(2, F_RDLCK, 5, 14)]


def test_statistics() -> None:
    # What if nobody has locked yet, and after one lock?
    lockf = Lockf()
    assert lockf.statistics() == (0, 0)
    lockf.setlock(Owner(1), F_RDLCK, F_POSIX, 0, 5)
    assert lockf.statistics() == (1, 0)


def test_waiters_run_when_the_lock_goes() -> None:
    # What if several wait for one range and it is released: who gets it, and what is left?
    machine = Lwkt(2, clock := VirtualClock(), Ktr(2, clock), MsgBuf())
    vp, me = vnode(), Owner(1)
    lock(vp, me, F_WRLCK, 0, 10)
    got: list[int] = []

    async def want(owner: Owner, type_: int, start: int, length: int) -> None:
        flags = F_POSIX | F_WAIT
        await run_blocking(lf_advlock, vp, owner, F_SETLK, Flock(type_, start, length), flags, 0)
        got.append(owner.pid)

    readers = [Owner(2), Owner(3)]
    for cpu, owner in enumerate(readers):
        machine.create(want, owner, F_RDLCK, 0, 5, name=f"w{owner.pid}", cpu=cpu, driver="coro")
    machine.create(want, Owner(4), F_WRLCK, 20, 5, name="free", driver="coro")
    machine.run_until_idle()
    assert got == [4]
    assert vp.lockf.statistics().blocked == 2

    async def release() -> None:
        lock(vp, me, F_UNLCK, 0, 10)

    machine.create(release, name="release", driver="coro")
    machine.run_until_idle()
    assert sorted(got) == [2, 3, 4]
    assert vp.lockf.statistics() == (3, 0)
    vp.lockf.check()
    machine.shutdown_nowait()


def test_upgrade_of_flock_gives_the_shared_lock_up() -> None:
    # What if two open files hold shared flocks and both want them exclusive: does one get it?
    machine = Lwkt(1, clock := VirtualClock(), Ktr(1, clock), MsgBuf())
    vp, files = vnode(), [Owner(-1), Owner(-1)]
    got: list[Owner] = []

    async def upgrade(file: Owner) -> None:
        lf_advlock(vp, file, F_SETLK, Flock(F_RDLCK), 0, 0)
        await lwkt_yield()
        await run_blocking(lf_advlock, vp, file, F_SETLK, Flock(F_WRLCK), F_WAIT, 0)
        got.append(file)
        lf_advlock(vp, file, F_SETLK, Flock(F_UNLCK), 0, 0)

    for i, file in enumerate(files):
        machine.create(upgrade, file, name=f"f{i}", driver="coro")
    machine.run_until_idle()
    assert len(got) == 2
    assert vp.lockf.statistics() == (0, 0)
    machine.shutdown_nowait()
