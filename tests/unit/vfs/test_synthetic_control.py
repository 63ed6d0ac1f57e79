"""Locks, ranges and control of files that are made when they are read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dfuser.libkern.errno import EAGAIN, EINVAL, ENOTTY, ENXIO, EOPNOTSUPP
from dfuser.libkern.fcntl import (
    F_GETLK,
    F_POSIX,
    F_RDLCK,
    F_SETLK,
    F_UNLCK,
    F_WRLCK,
    O_RDONLY,
    O_RDWR,
    O_WRONLY,
    SEEK_DATA,
    SEEK_HOLE,
)
from dfuser.vfs import fileflags as ff
from dfuser.vfs.lockf import Flock
from dfuser.vfs.syscalls import (
    kern_advlock,
    kern_close,
    kern_copy_file_range,
    kern_fallocate,
    kern_ioctl,
    kern_lseek,
    kern_tmpfile,
)
from tests.conform.vnode_ranges import Owner

from .synth_world import ROOT, SynthWorld

TEXTS = ("/kern/mounts", "/sysctl/kern/maxvnodes", "/kern/stats")


@pytest.fixture
def world() -> Iterator[SynthWorld]:
    made = SynthWorld()
    yield made
    made.close()


@pytest.mark.parametrize("path", [*TEXTS, "/kern", "/sysctl/kern", "/dev"])
def test_locks(world: SynthWorld, path: str) -> None:
    """What if two programs use a synthetic file, or a directory, to exclude each other?"""
    file, other = world.open(path), world.open(path)
    kern_advlock(file, Owner(1), F_SETLK, Flock(F_WRLCK), 0)
    assert world.errno(kern_advlock, other, Owner(2), F_SETLK, Flock(F_RDLCK), F_POSIX) == EAGAIN
    found = kern_advlock(other, Owner(2), F_GETLK, Flock(F_RDLCK), F_POSIX)
    assert found is not None
    assert found.type == F_WRLCK
    for held in list(file.vp.lockf.ranges):
        kern_advlock(file, held.owner, F_SETLK, Flock(F_UNLCK), 0)
    kern_advlock(other, Owner(2), F_SETLK, Flock(F_RDLCK), F_POSIX)
    file.vp.lockf = None
    kern_close(file)
    kern_close(other)


@pytest.mark.parametrize("path", TEXTS)
def test_ranges_and_control(world: SynthWorld, path: str) -> None:
    """What if a text of unknown length is sought in, copied, allocated, asked for flags?"""
    file = world.open(path, O_RDONLY)
    for whence in (SEEK_DATA, SEEK_HOLE):
        assert world.errno(kern_lseek, file, 0, whence) == ENXIO
    assert world.errno(kern_ioctl, file, ff.FS_IOC_GETFLAGS, b"", 8) == ENOTTY
    target = world.open("/sysctl/kern/maxvnodes", O_RDWR)
    assert kern_copy_file_range(file, 0, target, 0, 100) == 0
    assert world.errno(kern_copy_file_range, target, 0, target, 0, 10, 1) == EINVAL
    kern_close(target)
    kern_close(file)
    assert world.stat(path).btime is not None


def test_writable_texts_have_no_room(world: SynthWorld) -> None:
    """What if room is allocated for a command, or a nameless file is made among them?"""
    file = world.open("/sysctl/kern/maxvnodes", O_WRONLY)
    assert world.errno(kern_fallocate, file, 0, 0, 1) == EOPNOTSUPP
    kern_close(file)
    for path in ("/kern", "/sysctl", "/proc"):
        place = world.hold(path)
        assert world.errno(kern_tmpfile, world.vfs, place, 0o600, O_RDWR, ROOT) == EOPNOTSUPP
        world.vfs.cache.drop_nch(place)
