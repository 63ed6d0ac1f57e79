"""The table of nodeids: numbers, counts, revival, and what FORGET leaves."""

from __future__ import annotations

import errno
import os
from typing import Any

import pyfuse3
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dfuser.fuse.nodes import FUSE_ROOT_ID, INO_BITS, INO_LIMIT
from dfuser.libkern.errno import EOVERFLOW, ESTALE, KError

from .conftest import Bridge, Ctx

CTX = Ctx()
S_IFREG = 0o100644


def test_the_root_is_one(bridge: Bridge) -> None:
    """What if the root is asked for by its number and by its inode?"""
    nodes = bridge.nodes
    assert nodes.nodeid(bridge.root, bridge.rootvp.ino) == FUSE_ROOT_ID
    assert nodes.vnode(FUSE_ROOT_ID)[1] is bridge.rootvp


def test_numbers_keep_mount_and_inode(bridge: Bridge) -> None:
    """What if two mounts have files of one inode number?"""
    nodes = bridge.nodes
    one = bridge.vfs.mounts.get(1)
    two = bridge.vfs.mounts.get(2)
    assert one is not None
    assert two is not None
    assert nodes.nodeid(two, 5) == 1 << INO_BITS | 5
    assert nodes.nodeid(one, 5) == 5


def test_inodes_too_large_for_the_number(bridge: Bridge) -> None:
    """What if inode numbers do not fit: are they distinct and stable?"""
    nodes = bridge.nodes
    large = [nodes.nodeid(bridge.root, INO_LIMIT + number) for number in range(10)]
    assert len(set(large)) == 10
    assert large == [nodes.nodeid(bridge.root, INO_LIMIT + number) for number in range(10)]
    assert nodes.nodeid(bridge.root, 0) not in large


def test_more_mounts_than_numbers(bridge: Bridge) -> None:
    """What if a kernel has made more mounts than a number has room for?"""

    class Late:
        index = 0x8001

    late: Any = Late()
    with pytest.raises(KError) as caught:
        bridge.nodes.nodeid(late, 5)
    assert caught.value.errno == EOVERFLOW


def test_a_number_nobody_holds_is_stale(bridge: Bridge) -> None:
    """What if the host names a number it does not hold: by operation, and by file handle?"""
    nodes = bridge.nodes
    with pytest.raises(KError) as caught:
        nodes.vnode(999_999)
    assert caught.value.errno == ESTALE
    for number in (999_999, 77 << INO_BITS | 3, 0x7FFF << INO_BITS | 3):
        with pytest.raises(KError) as caught:
            nodes.reopen(number)
        assert caught.value.errno == ESTALE
    assert set(nodes.by_id) == {FUSE_ROOT_ID}


def test_a_reclaimed_vnode_is_fetched_again(bridge: Bridge, ctx: Ctx) -> None:
    """What if the vnode behind a number was recycled: same number, same file, counted?"""
    entry = bridge.call(bridge.ops.mknod(1, b"f", S_IFREG, 0, ctx))
    node = bridge.nodes.by_id[entry.st_ino]
    vp = node.vp
    assert vp is not None
    bridge.kernel.in_context(bridge.vfs.vnodes.freesomevnodes, 100_000)
    assert node.vp is None
    again = bridge.call(bridge.ops.getattr(entry.st_ino, ctx))
    assert again.st_ino == entry.st_ino
    assert bridge.nodes.revived == 1


def test_a_removed_file_is_kept_while_the_host_holds_it(bridge: Bridge, ctx: Ctx) -> None:
    """What if a file loses its last name while the host holds its number, and then forgets it?"""
    entry = bridge.call(bridge.ops.mknod(1, b"f", S_IFREG, 0, ctx))
    bridge.call(bridge.ops.unlink(1, b"f", ctx))
    bridge.kernel.in_context(bridge.vfs.vnodes.freesomevnodes, 100_000)
    info = bridge.call(bridge.ops.open(entry.st_ino, os.O_RDONLY, ctx))
    bridge.call(bridge.ops.release(info.fh))
    bridge.call(bridge.ops.forget([(entry.st_ino, 1)]))
    assert set(bridge.nodes.by_id) == {FUSE_ROOT_ID}


class Table(RuleBasedStateMachine):
    """Lookups and forgets in any order against a plain count."""

    def __init__(self) -> None:
        super().__init__()
        self.bridge = Bridge()
        self.held: dict[int, int] = {}
        self.names: dict[bytes, int] = {}

    def teardown(self) -> None:
        self.bridge.close()

    @rule(name=st.sampled_from([b"a", b"b", b"c", b"d"]))
    def look(self, name: bytes) -> None:
        """Find a name, making it when it is not there."""
        bridge = self.bridge
        entry = bridge.call(bridge.ops.lookup(1, name, CTX))
        if not entry.st_ino:
            entry = bridge.call(bridge.ops.mknod(1, name, S_IFREG, 0, CTX))
        assert self.names.setdefault(name, entry.st_ino) == entry.st_ino
        self.held[entry.st_ino] = self.held.get(entry.st_ino, 0) + 1

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        """Give some references of one number back."""
        number = data.draw(st.sampled_from(sorted(self.held)))
        count = data.draw(st.integers(1, self.held[number]))
        self.bridge.call(self.bridge.ops.forget([(number, count)]))
        self.held[number] -= count
        if not self.held[number]:
            del self.held[number]

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        """Remove a name; the number stays as long as it is held."""
        name = data.draw(st.sampled_from(sorted(self.names)))
        del self.names[name]
        self.bridge.call(self.bridge.ops.unlink(1, name, CTX))

    @rule()
    def recycle(self) -> None:
        """Take every vnode that nobody uses."""
        self.bridge.kernel.in_context(self.bridge.vfs.vnodes.freesomevnodes, 100_000)

    @invariant()
    def agrees(self) -> None:
        """The table is what the host holds, and every held number answers."""
        nodes = self.bridge.nodes
        counts = {n.nodeid: n.nlookup for n in nodes.by_id.values() if n.nodeid != FUSE_ROOT_ID}
        assert counts == self.held
        for number in self.held:
            assert self.bridge.call(self.bridge.ops.getattr(number, CTX)).st_ino == number


TestTable = Table.TestCase
TestTable.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


def test_an_unknown_error_is_no_answer(bridge: Bridge, ctx: Ctx) -> None:
    """What if an operation names a number nobody holds: does the host get ESTALE?"""
    with pytest.raises(pyfuse3.FUSEError) as caught:
        bridge.call(bridge.ops.getattr(123_456, ctx))
    assert caught.value.errno == errno.ESTALE
