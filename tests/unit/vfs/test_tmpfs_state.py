"""Random use of a small tmpfs through the kernel's calls, against a model made of dicts."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dfuser.hw.clock import VirtualClock
from dfuser.hw.physmem import PhysMem
from dfuser.libkern.errno import (
    EEXIST,
    EINVAL,
    EISDIR,
    ENOATTR,
    ENOENT,
    ENOSPC,
    ENOTDIR,
    ENOTEMPTY,
    EPERM,
    KError,
)
from dfuser.libkern.fcntl import O_RDWR
from dfuser.libkern.param import PAGE_SIZE
from dfuser.vfs.file import File
from dfuser.vfs.tmpfs.vfsops import TmpfsVfsOps
from dfuser.vfs.vattr import Vattr
from dfuser.vfs.vfs import Vfs
from dfuser.vfs.vop import RENAME_EXCHANGE, RENAME_NOREPLACE
from dfuser.vm.page import VmPages
from tests.conform.world import ROOT, World

PAGES, NODES = 4, 8
NAMES = [b"a", b"b"]
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=2).map(b"/".join)
OFFSETS = st.sampled_from([0, 1, 4095, 4096, 9000, 20_000])
SIZES = st.sampled_from([1, 100, 4096, 5000, 12_000])


class MFile:
    """A file of the model: its pages by number, its size, its names."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.size = 0
        self.nlink = 1
        self.opens = 0
        self.xattrs: dict[bytes, bytes] = {}

    def read(self) -> bytes:
        whole = bytearray(self.size)
        for number, page in self.pages.items():
            part = page[: max(0, self.size - number * PAGE_SIZE)]
            whole[number * PAGE_SIZE : number * PAGE_SIZE + len(part)] = part
        return bytes(whole)


MDir = dict[bytes, Any]


class TmpfsMachine(RuleBasedStateMachine):
    """Every rule does the same to both and compares what comes back, error or not."""

    def __init__(self) -> None:
        super().__init__()
        self.physmem = PhysMem(1 << 20)
        self.pages = VmPages(self.physmem)
        self.free = self.pages.v_free_count
        self.vfs = Vfs(clock=VirtualClock(), pages=self.pages)
        self.vfs.fstypes.register("tmpfs", TmpfsVfsOps)
        options = {"size": str(PAGES * PAGE_SIZE), "inodes": str(NODES)}
        mp = self.vfs.mounts.mount("tmpfs", "tmpfs", None, options, 0, ROOT)
        self.w = World(self.vfs, self.vfs.cache.hold(mp.ncmountpt), lambda: mp.data.check())
        self.root: MDir = {}
        self.files: list[MFile] = []
        self.open: list[tuple[File, MFile]] = []

    # --- the model ------------------------------------------------------------------------

    def find(self, path: bytes) -> Any:
        at: Any = self.root
        for name in path.split(b"/") if path else ():
            if not isinstance(at, dict):
                raise KError(ENOTDIR)
            if name not in at:
                raise KError(ENOENT)
            at = at[name]
        return at

    def parent(self, path: bytes) -> tuple[MDir, bytes]:
        directory, _, name = path.rpartition(b"/")
        found = self.find(directory)
        if not isinstance(found, dict):
            raise KError(ENOTDIR)
        return found, name

    def dirs(self, at: MDir | None = None) -> int:
        at = self.root if at is None else at
        return 1 + sum(self.dirs(sub) for sub in at.values() if isinstance(sub, dict))

    def alive(self) -> list[MFile]:
        return [file for file in self.files if file.nlink or file.opens]

    def pages_left(self) -> int:
        ext = sum(len(k) + len(v) for f in self.alive() for k, v in f.xattrs.items())
        used = sum(len(file.pages) for file in self.alive())
        return PAGES - used - (ext + PAGE_SIZE - 1) // PAGE_SIZE

    def want_node(self) -> None:
        if self.dirs() + len(self.alive()) >= NODES:
            raise KError(ENOSPC)

    def m_create(self, path: bytes) -> MFile:
        directory, name = self.parent(path)
        if name in directory:
            raise KError(EEXIST)
        self.want_node()
        directory[name] = file = MFile()
        self.files.append(file)
        return file

    def m_mkdir(self, path: bytes) -> None:
        directory, name = self.parent(path)
        if name in directory:
            raise KError(EEXIST)
        self.want_node()
        directory[name] = {}

    def m_unlink(self, path: bytes) -> None:
        directory, name = self.parent(path)
        if name not in directory:
            raise KError(ENOENT)
        if isinstance(directory[name], dict):
            raise KError(EISDIR)
        directory.pop(name).nlink -= 1

    def m_rmdir(self, path: bytes) -> None:
        directory, name = self.parent(path)
        if name not in directory:
            raise KError(ENOENT)
        if not isinstance(directory[name], dict):
            raise KError(ENOTDIR)
        if directory[name]:
            raise KError(ENOTEMPTY)
        del directory[name]

    def m_link(self, old: bytes, new: bytes) -> None:
        file = self.find(old)
        directory, name = self.parent(new)
        if isinstance(file, dict):
            raise KError(EPERM)
        if name in directory:
            raise KError(EEXIST)
        directory[name] = file
        file.nlink += 1

    def inside(self, path: bytes, top: Any) -> bool:
        """Whether a directory on the way to ``path``, or its parent, is ``top``."""
        at: Any = self.root
        for name in path.split(b"/")[:-1]:
            at = at[name]
            if at is top:
                return True
        return False

    def m_rename(self, old: bytes, new: bytes, flags: int) -> None:
        fdir, fname = self.parent(old)
        tdir, tname = self.parent(new)
        if fname not in fdir:
            raise KError(ENOENT)
        source, target = fdir[fname], tdir.get(tname)
        if target is None and flags & RENAME_EXCHANGE:
            raise KError(ENOENT)
        if target is not None and flags & RENAME_NOREPLACE:
            raise KError(EEXIST)
        if isinstance(source, dict) and self.inside(new, source):
            raise KError(EINVAL)
        if flags & RENAME_EXCHANGE and isinstance(target, dict) and self.inside(old, target):
            raise KError(EINVAL)
        if source is target:
            return
        if flags & RENAME_EXCHANGE:
            fdir[fname], tdir[tname] = target, source
            return
        if isinstance(source, dict):
            if target is not None and not isinstance(target, dict):
                raise KError(ENOTDIR)
            if target:
                raise KError(ENOTEMPTY)
        elif isinstance(target, dict):
            raise KError(ENOTEMPTY if self.inside(old, target) else EISDIR)
        if isinstance(target, MFile):
            target.nlink -= 1
        tdir[tname] = fdir.pop(fname)

    def m_write(self, file: MFile, offset: int, data: bytes) -> int:
        free, end, at = self.pages_left(), offset + len(data), offset
        while at < end:
            number = at // PAGE_SIZE
            if number not in file.pages:
                if not free:
                    break
                free -= 1
                file.pages[number] = bytearray(PAGE_SIZE)
            upto = min(end, (number + 1) * PAGE_SIZE)
            part = data[at - offset : upto - offset]
            file.pages[number][at % PAGE_SIZE : at % PAGE_SIZE + len(part)] = part
            at = upto
        if at == offset:
            raise KError(ENOSPC)
        file.size = max(file.size, at)
        return at - offset

    def m_truncate(self, file: MFile, size: int) -> None:
        if size < file.size:
            last = (size + PAGE_SIZE - 1) // PAGE_SIZE
            file.pages = {n: page for n, page in file.pages.items() if n < last}
            tail = size % PAGE_SIZE
            if tail and size // PAGE_SIZE in file.pages:
                file.pages[size // PAGE_SIZE][tail:] = bytes(PAGE_SIZE - tail)
        file.size = size

    # --- the same to both -----------------------------------------------------------------

    def both(self, model: Any, real: Any, *same: set[int]) -> tuple[Any, Any]:
        """Run both; the results, or (None, None) after the same error (or one of a set)."""
        want = got = 0
        expected = result = None
        try:
            expected = model()
        except KError as error:
            want = error.errno
        try:
            result = real()
        except KError as error:
            got = error.errno
        if want != got:
            assert any({want, got} <= allowed for allowed in same), f"model {want}, tmpfs {got}"
        return expected, result

    @rule(path=PATHS)
    def create(self, path: bytes) -> None:
        before = self.w.exists(path)
        if before:
            return
        file, real = self.both(lambda: self.m_create(path), lambda: self.w.create(path))
        if file is not None:
            file.opens += 1
            self.open.append((real, file))

    @rule(path=PATHS)
    def open_again(self, path: bytes) -> None:
        if not self.w.exists(path) or isinstance(self.find(path), dict) or len(self.open) > 5:
            return
        file = self.find(path)
        file.opens += 1
        self.open.append((self.w.open(path, O_RDWR), file))

    @precondition(lambda self: self.open)
    @rule(index=st.integers(0, 9))
    def close(self, index: int) -> None:
        real, file = self.open.pop(index % len(self.open))
        real.drop()
        file.opens -= 1

    @rule(path=PATHS)
    def mkdir(self, path: bytes) -> None:
        self.both(lambda: self.m_mkdir(path), lambda: self.w.mkdir(path))

    @rule(path=PATHS)
    def unlink(self, path: bytes) -> None:
        self.both(lambda: self.m_unlink(path), lambda: self.w.unlink(path))

    @rule(path=PATHS)
    def rmdir(self, path: bytes) -> None:
        self.both(lambda: self.m_rmdir(path), lambda: self.w.rmdir(path))

    @rule(old=PATHS, new=PATHS)
    def link(self, old: bytes, new: bytes) -> None:
        both = {EEXIST, EPERM, ENOENT, ENOTDIR}
        self.both(lambda: self.m_link(old, new), lambda: self.w.link(old, new), both)

    @rule(old=PATHS, new=PATHS, flags=st.sampled_from([0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]))
    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        # Several errors may apply at once; which is told first is no promise.
        self.both(
            lambda: self.m_rename(old, new, flags),
            lambda: self.w.rename(old, new, flags),
            {ENOENT, EINVAL, ENOTEMPTY, EISDIR, ENOTDIR, EEXIST},
        )

    @precondition(lambda self: self.open)
    @rule(index=st.integers(0, 9), offset=OFFSETS, size=SIZES, fill=st.integers(1, 255))
    def write(self, index: int, offset: int, size: int, fill: int) -> None:
        real, file = self.open[index % len(self.open)]
        data = bytes([fill]) * size
        want, got = self.both(
            lambda: self.m_write(file, offset, data), lambda: self.w.write(real, offset, data)
        )
        assert want == got

    @precondition(lambda self: self.open)
    @rule(index=st.integers(0, 9), size=OFFSETS)
    def truncate(self, index: int, size: int) -> None:
        real, file = self.open[index % len(self.open)]
        self.m_truncate(file, size)
        real.vp.ops.use.vop_setattr(real.vp, Vattr(size=size), ROOT)

    @rule(path=PATHS, name=st.sampled_from([b"k", b"l"]), size=st.sampled_from([0, 9000, 12_000]))
    def setxattr(self, path: bytes, name: bytes, size: int) -> None:
        if not self.w.exists(path) or isinstance(self.find(path), dict):
            return
        file = self.find(path)

        def model() -> None:
            old = dict(file.xattrs)
            file.xattrs[name] = bytes(size)
            grows = name not in old or size > len(old[name])
            if self.pages_left() < 0 and grows:
                file.xattrs = old
                raise KError(ENOSPC)

        self.both(model, lambda: self.w.setx(path, name, bytes(size)))

    @rule(path=PATHS, name=st.sampled_from([b"k", b"l"]))
    def rmxattr(self, path: bytes, name: bytes) -> None:
        if not self.w.exists(path) or isinstance(self.find(path), dict):
            return
        file = self.find(path)

        def model() -> None:
            if name not in file.xattrs:
                raise KError(ENOATTR)
            del file.xattrs[name]

        self.both(model, lambda: self.w.rmx(path, name))

    @rule()
    def vnodes_go(self) -> None:
        """Every vnode that nobody uses is reclaimed."""
        for vp in list(self.vfs.vnodes):
            if not vp.refcnt and vp.auxrefs == vp.namecache_count:
                self.vfs.cache.inval_vp_nonblock(vp)
                self.vfs.vnodes.vgone(vp)

    # --- what must always hold --------------------------------------------------------------

    @invariant()
    def same_tree(self) -> None:
        self.w.check()
        self.compare(b"", self.root)
        for real, file in self.open:
            assert self.w.read(real, 0, 1 << 16) == file.read()
        left = self.pages_left()
        figures = self.w.statfs()
        assert figures.bfree == max(0, left)
        assert figures.ffree == NODES - self.dirs() - len(self.alive())
        used = sum(len(file.pages) for file in self.alive())
        assert self.free - self.pages.v_free_count == used

    def compare(self, path: bytes, model: MDir) -> None:
        assert sorted(self.w.ls(path, 2)) == sorted(model)
        subs = sum(isinstance(node, dict) for node in model.values())
        assert self.w.stat(path).nlink == 2 + subs
        for name, node in model.items():
            below = path + b"/" + name if path else name
            if isinstance(node, dict):
                self.compare(below, node)
            else:
                at = self.w.stat(below)
                assert (at.size, at.nlink) == (node.size, node.nlink)
                assert at.bytes == len(node.pages) * PAGE_SIZE

    def teardown(self) -> None:
        for real, _ in self.open:
            real.drop()
        self.w.check()
        self.w.close()
        self.vfs.close()
        assert self.pages.v_free_count == self.free
        self.physmem.close()


# What if a small tmpfs is used at random, full most of the time: does it ever differ from dicts?
TestTmpfsMachine = TmpfsMachine.TestCase
TestTmpfsMachine.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
