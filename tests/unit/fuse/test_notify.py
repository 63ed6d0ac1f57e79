"""The notifier: who is told, merging, the bound, and errors of the host."""

from __future__ import annotations

import threading

import pytest

from dfuser.fuse.notify import Notifier
from dfuser.libkern.ucred import Ucred
from dfuser.vfs import syscalls as kern

from .conftest import Bridge, Ctx

ROOT = Ucred.root()


class Pipe:
    """Takes what a notifier writes; can be made to refuse or to be slow."""

    def __init__(self, bridge: Bridge, limit: int = 1000) -> None:
        self.entries: list[tuple[int, bytes]] = []
        self.inodes: list[tuple[int, bool]] = []
        self.error: OSError | None = None
        self.open = threading.Event()
        self.open.set()
        self.nodes = bridge.nodes
        self.nodes.connection = self
        self.expired: list[bytes] = []
        self.deleted: list[tuple[int, bytes, int]] = []
        self.notifier = Notifier(lambda: [self], bridge.session.context, limit)
        bridge.vfs.hostcache = self.notifier

    def inval_entry(self, nodeid: int, name: bytes, expire: bool) -> None:
        self.open.wait()
        if self.error:
            raise self.error
        self.entries.append((nodeid, name))
        if expire:
            self.expired.append(name)

    def delete_entry(self, nodeid: int, name: bytes, child: int) -> None:
        self.deleted.append((nodeid, name, child))

    def inval_inode(self, nodeid: int, attr_only: bool) -> None:
        self.open.wait()
        if self.error:
            raise self.error
        self.inodes.append((nodeid, attr_only))

    def drain(self) -> None:
        """Write everything that waits."""
        done = threading.Event()
        self.notifier.start()
        while self.notifier.statistics().waiting:
            done.wait(0.001)
        self.notifier.stop()


def test_a_change_from_the_host_is_not_told_back(bridge: Bridge, ctx: Ctx) -> None:
    """What if the host itself makes and removes a file?"""
    pipe = Pipe(bridge)
    bridge.call(bridge.ops.mkdir(1, b"d", 0o755, ctx))
    bridge.call(bridge.ops.rmdir(1, b"d", ctx))
    assert pipe.notifier.statistics().queued == 0


@pytest.mark.parametrize("coherence", ["exclusive", "shared"])
def test_a_change_from_inside_is_told(bridge: Bridge, coherence: str) -> None:
    """What if a file is made inside: the name and the directory's attributes, nothing else?"""
    bridge.root.coherence = coherence
    pipe = Pipe(bridge)
    nch = bridge.vfs.mounts.rootnch
    bridge.kernel.in_context(kern.kern_mkdir, bridge.vfs, nch, b"d", 0o755, ROOT)
    pipe.drain()
    assert pipe.entries == [(1, b"d")]
    assert pipe.inodes == [(1, True)]


def test_what_the_host_does_not_hold_is_not_named(bridge: Bridge) -> None:
    """What if something changes in a directory the host has never seen?"""
    pipe = Pipe(bridge)
    tmp = kern.kern_lookup(bridge.vfs, bridge.vfs.mounts.rootnch, b"tmp", ROOT)
    assert tmp is not None
    bridge.kernel.in_context(kern.kern_mkdir, bridge.vfs, tmp, b"d", 0o755, ROOT)
    assert pipe.notifier.statistics().queued == 0


def test_equal_messages_are_merged(bridge: Bridge) -> None:
    """What if one name changes a hundred times before a message is written?"""
    pipe = Pipe(bridge)
    for _ in range(100):
        pipe.notifier.entry_changed(bridge.rootvp, b"x")
        pipe.notifier.data_changed(bridge.rootvp)
    statistics = pipe.notifier.statistics()
    assert statistics.queued == 2
    assert statistics.merged == 298
    pipe.drain()
    assert pipe.entries == [(1, b"x")]
    assert pipe.inodes == [(1, False)], "data wins over attributes"


def test_the_queue_is_bounded(bridge: Bridge, ctx: Ctx) -> None:
    """What if more is due than the queue holds: is everything invalidated instead?"""
    pipe = Pipe(bridge, limit=16)
    entry = bridge.call(bridge.ops.mkdir(1, b"held", 0o755, ctx))
    for number in range(40):
        pipe.notifier.entry_changed(bridge.rootvp, b"n%d" % number)
    assert pipe.notifier.statistics().resyncs >= 1
    pipe.drain()
    assert (entry.st_ino, False) in pipe.inodes
    assert (1, b"held") in pipe.entries


@pytest.mark.parametrize("error", [FileNotFoundError(), OSError(107, "not connected")])
def test_the_host_refuses(bridge: Bridge, error: OSError) -> None:
    """What if the host does not know the name, or is gone: does the thread live on?"""
    pipe = Pipe(bridge)
    pipe.error = error
    pipe.notifier.entry_changed(bridge.rootvp, b"x")
    pipe.drain()
    assert pipe.notifier.statistics().refused == 2
    assert pipe.notifier.statistics().sent == 0


def test_volatile_mounts_are_not_told(bridge: Bridge, ctx: Ctx) -> None:
    """What if a file of /proc or a sysctl changes, which the host never caches?"""
    pipe = Pipe(bridge)
    entry = bridge.call(bridge.ops.lookup(1, b"sysctl", ctx))
    vp = bridge.nodes.by_id[entry.st_ino].vp
    assert vp is not None
    pipe.notifier.data_changed(vp)
    pipe.notifier.entry_changed(vp, b"kern")
    assert pipe.notifier.statistics().queued == 0


def test_stop_does_not_wait_for_what_is_queued(bridge: Bridge) -> None:
    """What if the session ends while messages wait?"""
    pipe = Pipe(bridge)
    pipe.open.clear()
    for number in range(10):
        pipe.notifier.entry_changed(bridge.rootvp, b"n%d" % number)
    pipe.notifier.start()
    threading.Timer(0.05, pipe.open.set).start()
    pipe.notifier.stop()
    assert len(pipe.entries) + len(pipe.inodes) < 11


def test_a_covered_name_is_only_expired(bridge: Bridge) -> None:
    """What if a name changes that something is mounted on: may the host detach what is there?"""
    pipe = Pipe(bridge)
    pipe.notifier.entry_changed(bridge.rootvp, b"tmp")
    pipe.notifier.entry_changed(bridge.rootvp, b"other")
    pipe.drain()
    assert pipe.expired == [b"tmp"]
    assert (1, b"other") in pipe.entries


def test_an_ended_connection_is_told_nothing(bridge: Bridge) -> None:
    """What if a connection ends while messages for it wait?"""
    pipe = Pipe(bridge)
    pipe.notifier.entry_changed(bridge.rootvp, b"x")
    pipe.notifier.gone(pipe)
    assert pipe.notifier.statistics().waiting == 0


def test_a_removal_inside_is_told_as_one(bridge: Bridge, ctx: Ctx) -> None:
    """What if a file the host knows is removed inside, and a name it does not know, too?"""
    pipe = Pipe(bridge)
    entry = bridge.call(bridge.ops.mkdir(1, b"known", 0o755, ctx))
    nch = bridge.vfs.mounts.rootnch
    for name in (b"known", b"strange"):
        if name == b"strange":
            bridge.kernel.in_context(kern.kern_mkdir, bridge.vfs, nch, name, 0o755, ROOT)
        bridge.kernel.in_context(kern.kern_rmdir, bridge.vfs, nch, name, ROOT)
    pipe.drain()
    assert pipe.deleted == [(1, b"known", entry.st_ino)]
    assert (1, b"strange") in pipe.entries
