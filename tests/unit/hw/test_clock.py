"""One conformance body over both clocks, then what is special about each."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from dfuser.hw.clock import Alarm, Clock, HostClock, QueueAlarm, VirtualClock
from dfuser.libkern.errno import Panic

MS = 1_000_000


class Stand:
    """A clock and the way to let time pass for it."""

    def __init__(self, kind: str, mock: trio.testing.MockClock) -> None:
        self.errors: list[Exception] = []
        self.mock = mock
        self.clock: VirtualClock | HostClock
        if kind == "virtual":
            self.clock = VirtualClock(on_error=self.on_error)
        else:
            self.clock = HostClock(on_error=self.on_error)

    def on_error(self, alarm: Alarm, error: Exception) -> None:
        self.errors.append(error)

    async def advance(self, ns: int) -> None:
        if isinstance(self.clock, VirtualClock):
            self.clock.advance(ns)
        else:
            self.mock.jump(ns / 1e9)
            await trio.testing.wait_all_tasks_blocked()

    def after(self, ns: int) -> int:
        return self.clock.monotonic_ns() + ns


def on_both(body: Callable[[Stand], Awaitable[None]]) -> Callable[[str], None]:
    """Make one test of each clock out of a body that takes a Stand."""

    async def main(kind: str, mock: trio.testing.MockClock) -> None:
        async with trio.open_nursery() as nursery:
            stand = Stand(kind, mock)
            if isinstance(stand.clock, HostClock):
                await nursery.start(stand.clock.run)
            await body(stand)
            nursery.cancel_scope.cancel()

    @pytest.mark.parametrize("kind", ["virtual", "host"])
    def test(kind: str) -> None:
        mock = trio.testing.MockClock()
        trio.run(main, kind, mock, clock=mock)

    test.__doc__ = body.__doc__
    return test


@on_both
async def test_fires_once_at_the_deadline(stand: Stand) -> None:
    """What if an alarm is armed and time passes its deadline, and then passes on?"""
    seen: list[int] = []
    alarm = stand.clock.alarm(lambda: seen.append(stand.clock.monotonic_ns()))
    deadline = stand.after(10 * MS)
    alarm.arm(deadline)
    assert alarm.deadline_ns == deadline
    await stand.advance(9 * MS)
    assert seen == []
    await stand.advance(2 * MS)
    assert len(seen) == 1
    assert seen[0] >= deadline
    assert alarm.deadline_ns is None
    await stand.advance(100 * MS)
    assert len(seen) == 1


@on_both
async def test_order_is_deadline_then_arm_order(stand: Stand) -> None:
    """What if several alarms are due in the same pass, some at the same moment?"""
    seen: list[str] = []

    def note(name: str) -> Callable[[], None]:
        return lambda: seen.append(name)

    base = stand.after(0)
    for name, delay in [("c", 3), ("a1", 1), ("b", 2), ("a2", 1), ("a3", 1)]:
        stand.clock.alarm(note(name)).arm(base + delay * MS)
    await stand.advance(5 * MS)
    assert seen == ["a1", "a2", "a3", "b", "c"]


@on_both
async def test_arm_replaces_and_requeues(stand: Stand) -> None:
    """What if an armed alarm is armed again, earlier, later, or for the same moment?"""
    seen: list[str] = []
    base = stand.after(0)
    one = stand.clock.alarm(lambda: seen.append("one"))
    two = stand.clock.alarm(lambda: seen.append("two"))
    one.arm(base + 1 * MS)
    two.arm(base + 4 * MS)
    one.arm(base + 8 * MS)
    two.arm(base + 8 * MS)
    one.arm(base + 8 * MS)
    await stand.advance(5 * MS)
    assert seen == []
    await stand.advance(5 * MS)
    assert seen == ["two", "one"]
    assert stand.clock.statistics().rearmed == 3


@on_both
async def test_earlier_deadline_wakes_earlier(stand: Stand) -> None:
    """What if a second alarm is armed for before the one the clock is sleeping for?"""
    seen: list[str] = []
    stand.clock.alarm(lambda: seen.append("late")).arm(stand.after(1000 * MS))
    await stand.advance(1 * MS)
    stand.clock.alarm(lambda: seen.append("soon")).arm(stand.after(5 * MS))
    await stand.advance(6 * MS)
    assert seen == ["soon"]


@on_both
async def test_cancel(stand: Stand) -> None:
    """What if an alarm is cancelled, also when idle, twice, or from another alarm?"""
    seen: list[str] = []
    victim = stand.clock.alarm(lambda: seen.append("victim"))
    victim.cancel()
    base = stand.after(0)
    stand.clock.alarm(victim.cancel).arm(base + 1 * MS)
    victim.arm(base + 1 * MS)
    await stand.advance(2 * MS)
    victim.cancel()
    assert seen == []
    assert stand.clock.statistics().cancelled == 1
    assert stand.clock.statistics().armed == 0


@on_both
async def test_arm_in_the_past_fires_soon_but_not_inside_arm(stand: Stand) -> None:
    """What if the deadline has passed already when the alarm is armed?"""
    seen: list[str] = []
    await stand.advance(10 * MS)
    alarm = stand.clock.alarm(lambda: seen.append("x"))
    alarm.arm(stand.after(-5 * MS))
    assert seen == []
    await stand.advance(0)
    assert seen == ["x"]


@on_both
async def test_function_may_rearm_itself(stand: Stand) -> None:
    """What if an alarm arms itself again each time it fires (a tick)?"""
    seen: list[int] = []
    base = stand.after(0)

    def tick() -> None:
        seen.append(stand.clock.monotonic_ns() - base)
        alarm.arm(base + (len(seen) + 1) * 10 * MS)

    alarm = stand.clock.alarm(tick)
    alarm.arm(base + 10 * MS)
    for _ in range(5):
        await stand.advance(10 * MS)
    assert len(seen) == 5
    assert all(at >= (i + 1) * 10 * MS for i, at in enumerate(seen))


@on_both
async def test_late_ticks_catch_up(stand: Stand) -> None:
    """What if the host sleeps through many ticks of an alarm that arms itself?"""
    count = 0
    base = stand.after(0)

    def tick() -> None:
        nonlocal count
        count += 1
        alarm.arm(base + (count + 1) * 10 * MS)

    alarm = stand.clock.alarm(tick)
    alarm.arm(base + 10 * MS)
    await stand.advance(1000 * MS)
    assert count == 100


@on_both
async def test_exception_goes_to_the_handler(stand: Stand) -> None:
    """What if an alarm's function raises while others are due with it?"""
    seen: list[str] = []
    boom = ValueError("boom")

    def bad() -> None:
        raise boom

    base = stand.after(0)
    stand.clock.alarm(bad).arm(base + MS)
    stand.clock.alarm(lambda: seen.append("next")).arm(base + MS)
    await stand.advance(2 * MS)
    assert stand.errors == [boom]
    assert seen == ["next"]
    assert stand.clock.statistics().errors == 1


@on_both
async def test_statistics_count_what_happened(stand: Stand) -> None:
    """What if an outside observer counts arms, fires, re-arms and cancels of a random mix?"""
    fired = 0

    def fn() -> None:
        nonlocal fired
        fired += 1

    alarms = [stand.clock.alarm(fn) for _ in range(50)]
    base = stand.after(0)
    for i, alarm in enumerate(alarms):
        alarm.arm(base + i * MS)
    for alarm in alarms[::5]:
        alarm.arm(base + 500 * MS)
    for alarm in alarms[::7]:
        alarm.cancel()
    await stand.advance(40 * MS)
    stats = stand.clock.statistics()
    assert stats.fired == fired
    assert stats.armed == sum(alarm.deadline_ns is not None for alarm in alarms)
    assert (stats.rearmed, stats.cancelled) == (10, 8)


@on_both
async def test_a_million_rearms_leave_no_litter(stand: Stand) -> None:
    """What if one alarm is moved very often: does the queue of dead entries stay small?"""
    alarm = stand.clock.alarm(lambda: None)
    base = stand.after(0)
    for i in range(5000):
        alarm.arm(base + 1000 * MS + i)
    assert isinstance(alarm, QueueAlarm)
    assert len(stand.clock._heap) < 100


@on_both
async def test_clocks_satisfy_the_protocol(stand: Stand) -> None:
    """What if the kernel is handed either clock as a Clock?"""
    clock: Clock = stand.clock
    before = clock.monotonic_ns()
    await stand.advance(3 * MS)
    passed = clock.monotonic_ns() - before
    assert abs(passed - 3 * MS) <= 1


def test_virtual_functions_see_their_own_deadline() -> None:
    """What if one advance passes many deadlines: which time does each function read?"""
    clock = VirtualClock()
    seen: list[int] = []
    for at in (30, 10, 20):
        clock.alarm(lambda: seen.append(clock.monotonic_ns())).arm(at)
    assert clock.next_deadline() == 10
    assert clock.advance(100) == 3
    assert seen == [10, 20, 30]
    assert clock.monotonic_ns() == 100
    assert clock.next_deadline() is None


def test_virtual_realtime_follows_and_steps() -> None:
    """What if the calendar is stepped while monotonic time goes on?"""
    clock = VirtualClock(base_ns=1000)
    clock.advance(5)
    assert clock.realtime_ns() == 1005
    clock.step(-500)
    assert clock.realtime_ns() == 505
    assert clock.monotonic_ns() == 5


def test_virtual_time_does_not_go_back() -> None:
    """What if somebody advances by a negative span?"""
    with pytest.raises(Panic):
        VirtualClock().advance(-1)


def test_virtual_exception_without_handler_leaves_advance() -> None:
    """What if nobody handles the exception: is it seen, and are the other alarms kept?"""
    clock = VirtualClock()
    seen: list[str] = []

    def bad() -> None:
        raise ValueError

    clock.alarm(bad).arm(1)
    clock.alarm(lambda: seen.append("later")).arm(2)
    with pytest.raises(ValueError):
        clock.advance(5)
    assert seen == []
    clock.advance(5)
    assert seen == ["later"]


async def test_host_pump_ends_with_its_error() -> None:
    """What if an alarm function raises and no handler was given to the host clock?"""
    clock = HostClock()

    def bad() -> None:
        raise ValueError("lost")

    clock.alarm(bad).arm(clock.monotonic_ns())
    with pytest.raises(ValueError, match="lost"):
        await clock.run()


async def test_host_autojump_drives_the_alarms(nursery, autojump_clock) -> None:  # type: ignore[no-untyped-def]
    """What if nothing runs but alarms an hour apart, under trio's autojump clock?"""
    clock = HostClock()
    await nursery.start(clock.run)
    done = trio.Event()
    clock.alarm(done.set).arm(clock.monotonic_ns() + 3600 * 1000 * MS)
    await done.wait()
    nursery.cancel_scope.cancel()


async def test_host_pump_can_be_restarted(nursery, mock_clock) -> None:  # type: ignore[no-untyped-def]
    """What if the pump is cancelled and started again with alarms still armed?"""
    clock = HostClock()
    seen: list[str] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        await clock.run()
    clock.alarm(lambda: seen.append("x")).arm(clock.monotonic_ns() + MS)
    await nursery.start(clock.run)
    mock_clock.jump(1)
    await trio.testing.wait_all_tasks_blocked()
    assert seen == ["x"]
    nursery.cancel_scope.cancel()


async def test_host_awkward_deadlines_are_met(nursery, mock_clock) -> None:  # type: ignore[no-untyped-def]
    """What if deadlines don't survive float seconds: is fn ever called before its time?"""
    clock = HostClock()
    await nursery.start(clock.run)
    mock_clock.jump(1_987_654_321.21)
    late: list[int] = []
    base = clock.monotonic_ns()
    for i in range(200):
        deadline = base + 333_333_331 * i + i * i
        clock.alarm(lambda d=deadline: late.append(clock.monotonic_ns() - d)).arm(deadline)
    for _ in range(200):
        mock_clock.jump(0.5)
        await trio.testing.wait_all_tasks_blocked()
    assert len(late) == 200
    assert min(late) >= 0
    nursery.cancel_scope.cancel()


async def test_host_alarm_storm_lets_others_run(nursery) -> None:  # type: ignore[no-untyped-def]
    """What if a function arms itself in the past again and again: do tasks still get turns?"""
    clock = HostClock()
    await nursery.start(clock.run)
    fired = 0

    def storm() -> None:
        nonlocal fired
        fired += 1
        if fired < 100:
            alarm.arm(0)

    alarm = clock.alarm(storm)
    alarm.arm(0)
    seen = set()
    while fired < 100:
        seen.add(fired)
        await trio.lowlevel.checkpoint()
    assert len(seen) > 10
    nursery.cancel_scope.cancel()


async def test_host_realtime_is_the_calendar() -> None:
    """What if the calendar is read between two readings of the host's?"""
    before = time.time_ns()
    now = HostClock().realtime_ns()
    assert before <= now <= time.time_ns()
