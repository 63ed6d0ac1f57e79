"""sysctlfs: the sysctl tree as files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dfuser.libkern.errno import EACCES, EEXIST, EINVAL, ENOENT, EPERM, EROFS, KError
from dfuser.libkern.fcntl import O_TRUNC, O_WRONLY
from dfuser.libkern.stat import VType
from dfuser.libkern.sysctl import ANYBODY, INT, RD, RW, STRING, WR, Sysctl
from dfuser.vfs.syscalls import kern_close, kern_getxattr, kern_lookup, kern_mkdir, kern_read
from dfuser.vfs.vop import EXTATTR_NAMESPACE_USER

from .synth_world import ROOT, USER, SynthWorld


class Knobs:
    """Variables of every kind."""

    sysctls = (
        Sysctl("kern.test.number", "A number", attr="number", flags=RW, minimum=0, maximum=100),
        Sysctl("kern.test.text", "A text", attr="text", kind=STRING, flags=RW),
        Sysctl("kern.test.fixed", "Cannot be changed", attr="number", flags=RD),
        Sysctl("kern.test.secret", "Can only be written", attr="number", flags=WR),
        Sysctl("kern.test.free", "Anybody may", attr="number", flags=RW | ANYBODY),
        Sysctl("kern.test.moody", "Refuses", attr="number", flags=RW, setter="refuse", kind=INT),
    )

    def __init__(self) -> None:
        self.number = 7
        self.text = "hello"

    def refuse(self, value: int) -> None:
        raise KError(EEXIST)


@pytest.fixture
def world() -> Iterator[SynthWorld]:
    made = SynthWorld()
    made.tree.register(Knobs())
    yield made
    made.close()


def test_the_files_are_the_variables(world: SynthWorld) -> None:
    """What if the tree of files is compared with a walk of the tree of variables?"""
    files = {path.removeprefix("/sysctl/").replace("/", ".") for path, _ in world.walk("/sysctl")}
    assert files == {oid.name for oid in world.tree.walk()}
    assert len(files) > 90


def test_values_are_live(world: SynthWorld) -> None:
    """What if a counter moves between two readings?"""
    assert world.read("/sysctl/kern/nprocs") == b"1\n"
    world.procs.request_enter(0, 0, 1, "x")
    assert world.read("/sysctl/kern/nprocs") == b"2\n"
    assert world.read("/sysctl/kern/ostype") == b"DragonFly\n"


def test_every_readable_file_is_the_variables_text(world: SynthWorld) -> None:
    """What if every file is read and compared with the variable?"""
    volatile = ("vfs.", "debug.", "kern.test.secret")
    for path, attrs in world.walk("/sysctl"):
        name = path.removeprefix("/sysctl/").replace("/", ".")
        if attrs.mode & 0o444:
            text = world.read(path).decode()
            assert text.endswith("\n")
            if not name.startswith(volatile):
                assert text == world.tree.get(name) + "\n"
        else:
            assert world.errno(world.read, path) == EPERM


def test_a_variable_that_listings_skip_opens_by_name(world: SynthWorld) -> None:
    """What if somebody reads kern.msgbuf, which listings leave out?"""
    world.msgbuf.kprintf("hello")
    assert "msgbuf" not in world.names("/sysctl/kern")
    assert world.read("/sysctl/kern/msgbuf") == b"hello\n\n"


def test_a_write_sets_the_variable(world: SynthWorld) -> None:
    """What if `echo 42 > file` and `echo text > file` are done?"""
    world.write("/sysctl/kern/test/number", "42\n", flags=O_WRONLY | O_TRUNC)
    world.write("/sysctl/kern/test/text", "new text\n")
    assert world.read("/sysctl/kern/test/number") == b"42\n"
    assert world.tree.get("kern.test.text") == "new text"


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("number", "101", EINVAL),
        ("number", "-1", EINVAL),
        ("number", "many", EINVAL),
        ("number", "", EINVAL),
        ("moody", "1", EEXIST),
        ("fixed", "1", EPERM),
        ("missing", "1", ENOENT),
    ],
)
def test_errors_are_the_handlers(world: SynthWorld, name: str, text: str, error: int) -> None:
    """What if a write is out of range, no number, refused by the owner, or not allowed?"""
    assert world.errno(world.write, f"/sysctl/kern/test/{name}", text) == error
    assert world.tree.get("kern.test.number") == "7"


def test_modes_say_what_can_be_done(world: SynthWorld) -> None:
    """What if somebody looks at the modes before he tries?"""
    modes = {n: world.stat(f"/sysctl/kern/test/{n}").mode for n in world.names("/sysctl/kern/test")}
    assert modes == {
        "number": 0o644, "text": 0o644, "fixed": 0o444, "secret": 0o200, "free": 0o666,
        "moody": 0o644,
    }  # fmt: skip


def test_users_may_what_everybody_may(world: SynthWorld) -> None:
    """What if a user reads, and writes what is his to write and what is not?"""
    assert world.read("/sysctl/kern/test/number", USER) == b"7\n"
    assert world.errno(world.open, "/sysctl/kern/test/number", O_WRONLY, USER) == EACCES
    world.write("/sysctl/kern/test/free", "8", USER)
    assert world.tree.get("kern.test.number") == "8"


def test_the_owner_of_the_files_can_be_chosen(world: SynthWorld) -> None:
    """What if the tree is mounted for a user: can he open, and does the tree still decide?"""
    world.mount("sysctlfs", "/mnt", uid="1000", gid="100")
    assert world.stat("/mnt/kern/test/number").uid == 1000
    assert world.stat("/mnt/kern").gid == 100
    assert world.errno(world.write, "/mnt/kern/test/number", "9", USER) == EPERM


def test_the_meaning_is_in_the_attributes(world: SynthWorld) -> None:
    """What if somebody asks what a variable means?"""

    def get(path: str, name: bytes) -> bytes:
        place = world.hold(path)
        try:
            return kern_getxattr(world.vfs, place, EXTATTR_NAMESPACE_USER, name, ROOT)
        finally:
            world.vfs.cache.drop_nch(place)

    assert get("/sysctl/kern/test/number", b"user.dfuser.descr") == b"A number"
    assert get("/sysctl/kern/test/number", b"user.dfuser.type") == b"int"
    assert get("/sysctl/kern/test/text", b"dfuser.fmt") == b"A"
    assert get("/sysctl/kern", b"dfuser.type") == b"node"
    assert get("/sysctl/kern/ostype", b"dfuser.oid") == b"1.1"


def test_variables_come_and_go(world: SynthWorld) -> None:
    """What if an object is registered and unregistered while its files are used?"""

    class Late:
        sysctl_x = Sysctl("kern.late.x", "x", attr="x")
        x = 5

    late = Late()
    assert world.errno(world.read, "/sysctl/kern/late/x") == ENOENT
    world.tree.register(late)
    assert world.read("/sysctl/kern/late/x") == b"5\n"
    file = world.open("/sysctl/kern/late/x")
    ino = world.stat("/sysctl/kern/late/x").fileid
    world.tree.unregister(late)
    assert bytes(kern_read(file, 0, 10)) == b"5\n"
    kern_close(file)
    assert world.errno(world.read, "/sysctl/kern/late/x") == ENOENT
    assert world.errno(world.names, "/sysctl/kern/late") == ENOENT
    assert "late" not in world.names("/sysctl/kern")
    world.tree.register(late)
    assert world.read("/sysctl/kern/late/x") == b"5\n"
    assert world.stat("/sysctl/kern/late/x").fileid == ino


def test_a_variable_that_becomes_a_node(world: SynthWorld) -> None:
    """What if a name was a variable and is a directory now?"""

    class Leaf:
        sysctl_x = Sysctl("kern.odd", "x", attr="x")
        x = 1

    class Deeper:
        sysctl_x = Sysctl("kern.odd.deep", "x", attr="x")
        x = 2

    leaf = Leaf()
    world.tree.register(leaf)
    assert world.stat("/sysctl/kern/odd").type is VType.VREG
    world.tree.unregister(leaf)
    world.tree.register(Deeper())
    world.vfs.cache.purgevfs(world.mount_of("sysctlfs"))
    assert world.read("/sysctl/kern/odd/deep") == b"2\n"


def test_variables_are_not_made_by_mkdir(world: SynthWorld) -> None:
    """What if somebody makes a directory in /sysctl?"""
    place = world.hold("/sysctl/kern")
    assert world.errno(kern_mkdir, world.vfs, place, b"mine", 0o755, ROOT) == EROFS
    world.vfs.cache.drop_nch(place)


def test_names_that_are_not_text(world: SynthWorld) -> None:
    """What if a name is not UTF-8, or tries to use the tree's own dots?"""
    place = world.hold("/sysctl")
    for name in (b"\xff\xfe", b"kern.ostype", b"kern "):
        assert kern_lookup(world.vfs, place, name, ROOT) is None
    world.vfs.cache.drop_nch(place)
