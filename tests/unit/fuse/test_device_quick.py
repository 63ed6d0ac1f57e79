"""Answers out of memory are those of the ordinary way: byte for byte, and in what they count."""

from __future__ import annotations

import errno
import random
from typing import Any

import pytest

from dfuser.fuse.wire import inputs as i
from dfuser.fuse.wire.const import Opcode
from dfuser.fuse.wire.kernel import parse_reply
from dfuser.libkern.errno import KError
from dfuser.libkern.ucred import Ucred
from dfuser.vfs import syscalls as kern
from dfuser.vfs.vattr import Vattr
from dfuser.vfs.vop import EXTATTR_NAMESPACE_USER
from tests.unit.fuse.device_world import Maker, World, asked, mutate

ROOT = Ucred.root()
COUNT = 6000
SECOND = 1_000_000_000


class Pair:
    """Two equal kernels: the first answers out of memory where it can, the second never."""

    def __init__(self, **options: Any) -> None:
        self.quick, self.plain = self.worlds = (
            World(**options), World(quick=False, **options),
        )  # fmt: skip

    def put(self, request: bytes) -> bytes:
        """One request to both; the answer, which is the same."""
        first, second = (world.put(request) for world in self.worlds)
        assert first == second, request
        return first

    def both(self, change: Any) -> None:
        """Do something inside, to both."""
        for world in self.worlds:
            world.kernel.in_context(change, world)

    def check(self) -> None:
        """Both hold the same."""
        first, second = (world.connection for world in self.worlds)
        held = first.nodes.statistics()
        assert held.revived <= second.nodes.revived, "what is not needed is not fetched again"
        assert held._replace(revived=0) == second.nodes.statistics()._replace(revived=0)
        assert lookups(self.quick) == lookups(self.plain)
        assert set(first.ops.files) == set(second.ops.files)
        assert first.locks.statistics()[:2] == second.locks.statistics()[:2]
        assert first.counts == second.counts
        assert first.garbled == second.garbled

    def close(self) -> None:
        """The end of both."""
        self.check()
        for world in self.worlds:
            world.close()


def lookups(world: World) -> dict[int, tuple[int, bool]]:
    """How often each number is held, and whether its vnode is kept for it."""
    return {n: (node.nlookup, node.pinned) for n, node in world.connection.nodes.by_id.items()}


def recycle(world: World) -> None:
    """Take every vnode that nobody uses."""
    world.vfs.vnodes.freesomevnodes(100_000)


def pass_time(world: World) -> None:
    """A second goes by."""
    world.kernel.host.clock.advance(SECOND)  # type: ignore[attr-defined]


def from_inside(name: bytes, what: int) -> Any:
    """A change that the host is not told of at once: of a name, of attributes, of contents."""

    def change(world: World) -> None:
        root, vfs = world.vfs.rootnch, world.vfs
        try:
            if what == 0:
                kern.kern_unlink(vfs, root, name, ROOT)
            elif what == 1:
                kern.kern_create(vfs, root, name, 0o600, 2, ROOT)[1].drop()
            else:
                nch = kern.kern_lookup(vfs, root, name, ROOT)
                if nch is not None:
                    kern.kern_setattr(vfs, nch, Vattr(mode=0o640, size=77), ROOT)
        except KError:
            pass

    return change


@pytest.mark.parametrize("options", [{}, {"noxattr": True}, {"noopen": True}], ids=str)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_same_answers(seed: int, options: dict[str, bool]) -> None:
    # What if thousands of random requests, some damaged, meet a cache, with vnodes being recycled
    # and files changed from inside between them: is any answer another than without the cache?
    rng, pair = random.Random(seed), Pair(**options)
    maker = Maker(rng)
    for number in range(2, 2 * COUNT + 2, 2):
        opcode, body, request = maker.request(number)
        damaged = rng.random() < 0.1
        answer = pair.put(mutate(rng, request) if damaged else request)
        if answer and not damaged:
            maker.learn(opcode, parse_reply(opcode, answer, asked(opcode, body)))
        chance = rng.randrange(400)
        if chance == 0:
            pair.both(recycle)
        elif chance == 1:
            pair.both(pass_time)
        elif chance < 5:
            pair.both(from_inside(rng.choice((b"a", b"b", b"dir")), chance - 2))
        if chance < 20:
            pair.check()
    hits = pair.quick.connection.attrs.packed, pair.plain.connection.attrs.packed
    assert hits[0] <= hits[1]
    assert all(world.session.context.failed == 0 for world in pair.worlds)
    pair.close()


@pytest.mark.parametrize("quick", [True, False])
def test_an_attribute_that_is_set_while_the_vnode_is_away(quick: bool) -> None:
    # What if a file is known to have no attribute, its vnode is reclaimed, and it gets one inside?
    world = World(quick=quick)
    node, fh = world.make(b"a")
    world.body(Opcode.RELEASE, i.ReleaseIn(fh, 0, 0, 0), node)
    for _ in range(2):
        reply = world.ask(Opcode.GETXATTR, i.GetxattrIn(100, b"user.a"), node)
        assert reply is not None
        assert reply.error == errno.ENODATA
    world.kernel.in_context(recycle, world)
    assert world.connection.nodes.by_id[node].vp is None

    def give(world: World) -> None:
        nch = kern.kern_lookup(world.vfs, world.vfs.rootnch, b"a", ROOT)
        assert nch is not None
        kern.kern_setxattr(world.vfs, nch, EXTATTR_NAMESPACE_USER, b"a", b"value", 0, ROOT)

    world.kernel.in_context(give, world)
    assert world.body(Opcode.GETXATTR, i.GetxattrIn(100, b"user.a"), node) == b"value"
    world.close()


class Pedantic:
    """Counts how many requests each of the quick answers has served."""

    def __init__(self, world: World) -> None:
        self.counts: dict[int, int] = {}
        world.connection._quick = tuple(
            None if one is None else self.counted(opcode, one)
            for opcode, one in enumerate(world.connection._quick)
        )

    def counted(self, opcode: int, one: Any) -> Any:
        """The same function, counted where it has an answer."""

        def quick(*args: Any) -> Any:
            answer = one(*args)
            self.counts[opcode] = self.counts.get(opcode, 0) + (answer is not None)
            return answer

        return quick


def test_it_is_quick_where_it_should_be() -> None:
    # What if the answers of memory were never given: every test of them would hold?
    world = World()
    counts = Pedantic(world).counts
    node, fh = world.make(b"a")
    world.body(Opcode.WRITE, i.WriteIn(fh, 0, 40_000, 0, 0, 0), node, data=bytes(range(200)) * 200)
    for _ in range(5):
        assert world.body(Opcode.LOOKUP, b"a").nodeid == node
        world.body(Opcode.GETATTR, i.GetattrIn(0, 0), node)
        reply = world.ask(Opcode.GETXATTR, i.GetxattrIn(0, b"security.capability"), node)
        assert reply is not None
        assert reply.error == errno.ENODATA
        world.body(Opcode.FLUSH, i.FlushIn(fh, 1), node)
        for size in (100, 39_999):
            data = world.body(Opcode.READ, i.ReadIn(fh, 1, size, 0, 0, 0), node)
            assert data == (bytes(range(200)) * 200)[1 : 1 + size]
        world.ask(Opcode.FORGET, 1, node)
    for opcode in (Opcode.LOOKUP, Opcode.GETATTR, Opcode.GETXATTR, Opcode.FLUSH, Opcode.FORGET):
        assert counts[opcode] >= 4, opcode
    assert counts[Opcode.READ] == 10
    world.close()


def test_a_name_that_is_not_there_in_a_mount_the_host_must_ask_about() -> None:
    # What if a name is missing in /proc, seen through the root's connection: how long is it kept?
    for world in Pair().worlds:
        proc = world.body(Opcode.LOOKUP, b"proc").nodeid
        for _ in range(3):
            reply = world.ask(Opcode.LOOKUP, b"4711", proc)
            assert reply is not None
            assert reply.error == errno.ENOENT or not reply.body.entry_valid
        assert world.body(Opcode.LOOKUP, b"4711").entry_valid, "the root's are kept"
        world.close()
