"""CPUs, entropy, and the bundle of a real and a fake host."""

from __future__ import annotations

import os

import pytest

from dfuser.hw.clock import HostClock, VirtualClock
from dfuser.hw.cpu import HostCpus
from dfuser.hw.entropy import Entropy, HostEntropy, SeededEntropy
from dfuser.hw.fake import FakeHost, fake_cpus
from dfuser.hw.host import Host


def test_probe_agrees_with_the_host_and_changes_nothing() -> None:
    """What if the topology is probed: is the affinity the same before and after?"""
    before = os.sched_getaffinity(0)
    cpus = HostCpus.probe()
    assert os.sched_getaffinity(0) == before
    assert set(cpus.affinity) == before
    assert 1 <= cpus.usable <= cpus.logical
    assert 1 <= cpus.physical <= cpus.logical
    assert cpus.mhz >= 0
    assert cpus.vendor
    assert cpus.model


def test_ncpu_default_and_choice() -> None:
    """What if the number of CPUs is not configured, or is more than the host has?"""
    cpus = fake_cpus(3)
    assert cpus.ncpu() == 3
    assert cpus.ncpu(1) == 1
    assert cpus.ncpu(256) == 256
    assert fake_cpus(1000).ncpu() == 256


@pytest.mark.parametrize("wanted", [0, -1, 257])
def test_ncpu_out_of_range(wanted: int) -> None:
    """What if a nonsensical number of CPUs is configured?"""
    with pytest.raises(ValueError, match="1 to 256"):
        fake_cpus(2).ncpu(wanted)


@pytest.mark.parametrize("source", [HostEntropy(), SeededEntropy(1)], ids=["host", "seeded"])
def test_entropy_gives_what_was_asked(source: Entropy) -> None:
    """What if no, one, or more bytes than the host gives at once are wanted?"""
    for n in (0, 1, 257, 100_000):
        assert len(source.read(n)) == n
    assert source.read(32) != source.read(32)
    with pytest.raises(ValueError):
        source.read(-1)


def test_seeded_entropy_replays() -> None:
    """What if two machines are given the same seed, and a third another?"""
    a, b, c = SeededEntropy(7), SeededEntropy(7), SeededEntropy(8)
    first = [a.read(n) for n in (3, 50, 1)]
    assert first == [b.read(n) for n in (3, 50, 1)]
    assert first[1] != [c.read(n) for n in (3, 50, 1)][1]


def test_host_opens_and_closes() -> None:
    """What if the real host is taken and given back: is a descriptor left?"""
    before = len(os.listdir("/proc/self/fd"))
    host = Host.open(memory=1 << 20)
    assert isinstance(host.clock, HostClock)
    assert host.physmem.npages == 256
    host.close()
    host.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_host_refuses_bad_memory() -> None:
    """What if the configured memory is not whole pages?"""
    with pytest.raises(ValueError, match="multiple"):
        Host.open(memory=1000)


def test_fake_hosts_are_equal_machines() -> None:
    """What if two kernels are booted from equal fake hosts?"""
    one, two = FakeHost(seed=3, ncpu=4), FakeHost(seed=3, ncpu=4)
    assert isinstance(one.clock, VirtualClock)
    assert one.cpus == two.cpus
    assert one.cpus.usable == 4
    assert one.entropy.read(16) == two.entropy.read(16)
    assert one.clock.realtime_ns() == two.clock.realtime_ns()
    one.close()
    two.close()
