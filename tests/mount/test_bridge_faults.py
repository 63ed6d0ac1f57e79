"""Any exception in a handler becomes an errno, the mount lives; panics end it."""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.rig import Rig, eventually, rig

pytestmark = pytest.mark.mount

#: Puts a layer on the root file system whose operations raise what they are told to.
LAYER = """
from dfuser.libkern.errno import Panic
class Broken:
    def __init__(self, below):
        self.below, self.fault, self.then, self.where = below, None, None, ""
    def __getattr__(self, name):
        call = getattr(self.below, name)
        def operation(*args, **kw):
            if self.fault is not None and name.startswith(self.where or "vop_n"):
                fault, self.fault, self.then = self.fault, self.then, None
                raise fault
            return call(*args, **kw)
        return operation
cell = vfs.mounts.root.ops.vfs_root(vfs.mounts.root)
k.broken = cell.ops.coherency = Broken(cell.ops.norm)
cell.ops.relink()
cell.rele()
"""
COUNT = itertools.count()
FAULTS = (
    ("ValueError('injected')", errno.EIO),
    ("KeyError('injected')", errno.EIO),
    ("RecursionError('injected')", errno.EIO),
    ("MemoryError('injected')", errno.ENOMEM),
    ("OSError(28, 'injected')", errno.ENOSPC),
    ("OSError('injected, without a number')", errno.EIO),
)


@pytest.fixture(scope="module")
def world(transport: str) -> Iterator[Rig]:
    """One mount, whose root file system fails on command."""
    with rig() as made:
        made.inside(LAYER)
        (made.path / "f").write_bytes(b"x" * 100)
        (made.path / "d").mkdir()
        (made.path / "l").symlink_to("f")
        os.setxattr(made.path / "f", "user.a", b"1")
        yield made
        (made.path / "last").write_text("alive")
        made.end()


class Attempts:
    """A system call for each handler that reaches the file system, and the VOP it fails in."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.fd = os.open(base / "f", os.O_RDWR)
        self.dfd = os.open(base / "d", os.O_RDONLY)
        self.direct = os.open(base / "f", os.O_RDWR | os.O_DIRECT)
        self.page = mmap.mmap(-1, 4096)

    def __enter__(self) -> dict[str, tuple[str, Callable[[], object]]]:
        base, fd, dfd = self.base, self.fd, self.dfd
        return {
            "lookup": ("nresolve", lambda: os.stat(base / f"absent{next(COUNT)}")),
            "mknod": ("nmknod", lambda: os.mkfifo(base / "p")),
            "mkdir": ("nmkdir", lambda: os.mkdir(base / "d2")),
            "symlink": ("nsymlink", lambda: os.symlink("x", base / "s")),
            "link": ("nlink", lambda: os.link(base / "f", base / "f2")),
            "unlink": ("nremove", lambda: os.unlink(base / "f")),
            "rmdir": ("nrmdir", lambda: os.rmdir(base / "d")),
            "rename": ("nrename", lambda: os.rename(base / "f", base / "g")),
            "readlink": ("readlink", lambda: os.readlink(base / "l")),
            "setattr": ("setattr", lambda: os.truncate(base / "f", 50)),
            "open": ("open", lambda: os.open(base / "f", os.O_RDONLY)),
            "create": ("ncreate", lambda: os.open(base / "new", os.O_CREAT | os.O_WRONLY)),
            "read": ("read", lambda: os.preadv(self.direct, [self.page], 0)),
            "write": ("write", lambda: os.pwrite(fd, b"y", 0)),
            "fsync": ("fsync", lambda: os.fsync(fd)),
            "opendir": ("open", lambda: os.open(base / "d", os.O_RDONLY | os.O_DIRECTORY)),
            "readdir": ("readdir", lambda: os.listdir(dfd)),
            "fsyncdir": ("fsync", lambda: os.fsync(dfd)),
            "setxattr": ("setextattr", lambda: os.setxattr(base / "f", "user.b", b"2")),
            "getxattr": ("getextattr", lambda: os.getxattr(base / "f", "user.a")),
            "listxattr": ("listextattr", lambda: os.listxattr(base / "f")),
            "removexattr": ("rmextattr", lambda: os.removexattr(base / "f", "user.a")),
        }

    def __exit__(self, *exc: object) -> None:
        for fd in (self.fd, self.dfd, self.direct):
            os.close(fd)


@pytest.mark.parametrize(("fault", "number"), FAULTS)
def test_any_exception_in_any_operation(world: Rig, fault: str, number: int) -> None:
    """What if the file system raises something nobody expects, in each operation in turn?"""
    with Attempts(world.path) as attempts:
        for name, (vop, call) in attempts.items():
            before = world.stat("s.context.failed")
            world.inside(f"k.broken.where = 'vop_{vop}'; k.broken.fault = {fault}")
            with pytest.raises(OSError, match=r"\[Errno") as caught:
                call()
            assert caught.value.errno == number, name
            assert world.stat("s.context.failed") == before + 1, name
            assert world.stat("k.broken.fault") is None
            report = world.stat("k.msgbuf.text()[-6000:]")
            assert "injected" in report, "a report is in the log"
            assert f"{name}: Traceback" in report or f"{name}plus: Traceback" in report
            assert (world.path / "f").stat().st_size == 100, name


def test_an_exception_after_a_wait(world: Rig) -> None:
    """What if a request waits first, and its operation raises when it is tried again?"""
    world.inside("""
from dfuser.lwkt.block import Block
from dfuser.lwkt.synch import tsleep
async def pause():
    k.broken.fault = ValueError('after a wait')
    await tsleep(k, 0, 'pause', 3)
    return 0
k.broken.where = 'vop_nmkdir'
k.broken.fault = k.broken.then = Block(pause, 'pause')
""")
    with pytest.raises(OSError, match="Input/output"):
        (world.path / "never").mkdir()
    assert "after a wait" in world.stat("k.msgbuf.text()[-9000:]")
    assert world.stat("len(s.context.parked_threads)") == 0


def test_a_request_that_waits_and_succeeds(world: Rig) -> None:
    """What if an operation must wait once: does it succeed when it is tried again?"""
    world.inside("""
from dfuser.lwkt.block import Block
from dfuser.lwkt.synch import tsleep
async def pause():
    await tsleep(k, 0, 'pause', 3)
    return 0
k.broken.where = 'vop_nmkdir'
k.broken.fault = k.broken.then = Block(pause, 'pause')
""")
    parked = world.stat("s.context.parked")
    (world.path / "after").mkdir()
    assert (world.path / "after").is_dir()
    assert world.stat("s.context.parked") == parked + 1


def test_a_context_that_leaks_a_lock() -> None:
    """What if an operation ends inside a critical section: a panic with a dump, and a clean end?"""
    with rig() as made:
        made.inside(LAYER)
        (made.path / "f").touch()
        made.inside("""
from dfuser.lwkt import thread
def leak(*args):
    thread.curthread.critcount += 1
    return ()
k.broken.vop_listextattr = leak
""")
        with pytest.raises(OSError, match=r"\[Errno"):
            os.listxattr(made.path / "f")
        check_panic(made)


def check_panic(made: Rig) -> None:
    """The child has written a dump, taken its mount away, and ends with its own code."""
    word = made.read()
    assert word[0] == "panic"
    assert made.child.wait(60) == 30, made.log.read_text()
    text = Path(word[1]).read_text()
    assert "== threads" in text
    assert "== panic" in text
    mounts = Path("/proc/self/mounts").read_text()
    assert str(made.path) not in mounts
    assert os.listdir(made.path) == []


@pytest.mark.parametrize("waiters", [0, 3])
def test_a_panic(waiters: int) -> None:
    """What if an operation finds a broken invariant, with and without others waiting?"""
    with rig() as made:
        made.inside(LAYER)
        (made.path / "f").write_text("x")
        pids = []
        for _ in range(waiters):
            pid = os.fork()
            if not pid:
                with contextlib.suppress(BaseException):
                    os.read(os.open(made.path / "dev" / "klog", os.O_RDONLY), 1 << 20)
                os._exit(0)
            pids.append(pid)
        made.inside(INJECT_PANIC)
        with pytest.raises(OSError, match=r"\[Errno"):
            os.stat(made.path / "none")
        check_panic(made)
        for pid in pids:
            os.waitpid(pid, 0)


INJECT_PANIC = """
from dfuser.libkern.errno import Panic
k.broken.where = 'vop_nresolve'
k.broken.fault = Panic('injected')
"""


def test_every_handler_was_asked(world: Rig) -> None:
    """What if a handler is missing from the list above: which operations were never served?"""
    eventually(lambda: world.stat("s.served()['release']") > 0, "a release has come")
    os.statvfs(world.path)
    never = {name for name, count in world.stat("s.served()").items() if not count}
    assert never <= {"access", "poll", "forget", "releasedir"}, never
