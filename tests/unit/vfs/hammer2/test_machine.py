"""The whole file system against a plain model, with syncs and remounts among the steps."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dfuser.vfs.hammer2.ondisk.const import ObjType
from dfuser.vfs.hammer2.xops import RenameFlag
from tests.unit.vfs.hammer2.model import NAMES, Driver, some_data
from tests.unit.vfs.hammer2.world import (
    FOUR,
    chain_problems,
    content,
    deep_check,
    live_content,
    new_disk,
    reader,
)

PLACE = st.integers(0, 1 << 20)
NAME = st.sampled_from(NAMES)
OFFSETS = st.sampled_from((0, 1, 500, 512, 65535, 65536, 131072, 8 << 20, (5 << 30) + 7))
SIZES = st.sampled_from((0, 1, 511, 512, 513, 1024, 65536, 65537, 300_000, (6 << 30)))
FLAGS = st.sampled_from((RenameFlag.NONE, RenameFlag.NOREPLACE, RenameFlag.EXCHANGE))
#: The model holds whole files; what is put beyond this is not compared.
SMALL_SIZE = 1 << 24


class Machine(RuleBasedStateMachine):
    """Each rule does one thing to both; the invariant compares cheap things."""

    def __init__(self) -> None:
        super().__init__()
        self.driver = Driver(new_disk(FOUR))

    def directory(self, place: int) -> tuple[bytes, ...]:
        found = self.driver.directories()
        return found[place % len(found)]

    def file(self, place: int) -> tuple[bytes, ...]:
        found = self.driver.files()
        return found[place % len(found)]

    @rule(place=PLACE, name=NAME,
          kind=st.sampled_from([k for k in ObjType if k not in (0, 7, 10)]))  # fmt: skip
    def create(self, place: int, name: bytes, kind: ObjType) -> None:
        self.driver.create(self.directory(place), name, int(kind))

    @rule(place=PLACE, name=NAME, size=st.sampled_from((1, 512, 513, 1023)))
    def symlink(self, place: int, name: bytes, size: int) -> None:
        self.driver.symlink(self.directory(place), name, b"t" * size)

    @precondition(lambda self: self.driver.files())
    @rule(place=PLACE, name=NAME, which=PLACE)
    def link(self, place: int, name: bytes, which: int) -> None:
        self.driver.link(self.directory(place), name, self.file(which))

    @rule(place=PLACE, name=NAME, directory=st.booleans())
    def remove(self, place: int, name: bytes, directory: bool) -> None:
        self.driver.remove(self.directory(place), name, directory=directory)

    @rule(place=PLACE, name=NAME, to=PLACE, tname=NAME, flags=FLAGS)
    def rename(self, place: int, name: bytes, to: int, tname: bytes, flags: RenameFlag) -> None:
        self.driver.rename(self.directory(place), name, self.directory(to), tname, flags)

    @precondition(lambda self: self.driver.files())
    @rule(which=PLACE, offset=OFFSETS, seed=PLACE)
    def write(self, which: int, offset: int, seed: int) -> None:
        if offset < SMALL_SIZE:
            self.driver.write(self.file(which), offset, some_data(random.Random(seed)))

    @precondition(lambda self: self.driver.files())
    @rule(which=PLACE, size=SIZES)
    def truncate(self, which: int, size: int) -> None:
        if size < SMALL_SIZE:
            self.driver.truncate(self.file(which), size)

    @precondition(lambda self: self.driver.files())
    @rule(which=PLACE, offset=OFFSETS, length=SIZES)
    def punch(self, which: int, offset: int, length: int) -> None:
        self.driver.punch(self.file(which), offset, length)

    @precondition(lambda self: self.driver.files())
    @rule(which=PLACE, offset=OFFSETS, length=SIZES)
    def read(self, which: int, offset: int, length: int) -> None:
        self.driver.read(self.file(which), offset, min(length, SMALL_SIZE))

    @rule(place=PLACE, comp=st.sampled_from((0, 1, 2, 3, 0x93)), check=st.integers(0, 4))
    def setcomp(self, place: int, comp: int, check: int) -> None:
        self.driver.setcomp(self.directory(place), comp, check)

    @rule(place=PLACE, limit=st.integers(1, 4))
    def list(self, place: int, limit: int) -> None:
        self.driver.list(self.directory(place), limit)

    @rule()
    def sync(self) -> None:
        self.driver.sync()

    @rule()
    def remount(self) -> None:
        self.driver.remount()

    @rule()
    def snapshot(self) -> None:
        if len(self.driver.snapshots) < 6:
            self.driver.snapshot()

    @rule()
    def bulkfree(self) -> None:
        self.driver.bulkfree()

    @invariant()
    def chains_are_sound(self) -> None:
        assert chain_problems(self.driver.dev) == []

    def teardown(self) -> None:
        assert live_content(self.driver.pfs) == self.driver.content()
        self.driver.sync()
        assert deep_check(self.driver.disk) == []
        assert content(reader(self.driver.disk).pfs(b"DATA")) == self.driver.content()
        for label, kept in self.driver.snapshots.items():
            assert content(reader(self.driver.disk).pfs(label)) == kept


def run(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip


def test_machine() -> None:
    """What if any sequence of operations left something else than the model has?"""
    run(15, 30)


@pytest.mark.slow
def test_machine_longer() -> None:
    """What if it took more operations, or rarer ones?"""
    run(300, 80)


@pytest.mark.parametrize("seed", range(2))
def test_long_run(seed: int) -> None:
    """What if something went wrong only after many operations and syncs?"""
    rng = random.Random(seed)
    driver = Driver(new_disk(FOUR))
    for number in range(1500):
        driver.step(rng)
        if rng.random() < 0.05:
            rng.choice((driver.sync, driver.remount, driver.bulkfree, driver.snapshot))()
        if number % 500 == 499:
            assert live_content(driver.pfs) == driver.content()
            driver.sync()
            assert deep_check(driver.disk) == []
    assert content(reader(driver.disk).pfs(b"DATA")) == driver.content()
    for label, kept in driver.snapshots.items():
        assert content(reader(driver.disk).pfs(label)) == kept


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 40))
def test_longer_runs(seed: int) -> None:
    """What if it took another seed?"""
    test_long_run(seed)
