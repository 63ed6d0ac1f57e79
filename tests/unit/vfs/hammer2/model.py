"""A plain model of a file system, and a driver that does the same to it and to a volume."""

from __future__ import annotations

import random
from typing import Any

import pytest

from dfuser.hw.disk.disk import Disk
from dfuser.libkern.errno import (
    EEXIST,
    EINVAL,
    EISDIR,
    ENOENT,
    ENOTDIR,
    ENOTEMPTY,
    EPERM,
    KError,
)
from dfuser.vfs.hammer2 import dirent, strategy, xops
from dfuser.vfs.hammer2.bulkfree import Bulkfree
from dfuser.vfs.hammer2.inode import Inode
from dfuser.vfs.hammer2.ondisk.const import ObjType
from dfuser.vfs.hammer2.snapshot import snapshot
from dfuser.vfs.hammer2.tunables import Tunables
from dfuser.vfs.hammer2.xops import RenameFlag
from tests.unit.vfs.hammer2.world import open_disk

DIR, REG, LNK = int(ObjType.DIRECTORY), int(ObjType.REGFILE), int(ObjType.SOFTLINK)
#: Names of each kind: short, with one hash (permuted parts), 64, 65 and 255 bytes, no UTF-8.
NAMES = [
    b"a", b"b", b"c.d.e", b"e.d.c", b"d.c.e", b"x" * 64, b"y" * 65, b"z" * 255, b"\xff\xfe\x80",
    b"w" * 254 + b"\xe9", b"c-d-e", b"f",
]  # fmt: skip


class Thing:
    """Anything that has an inode."""

    def __init__(self, kind: int, mode: int) -> None:
        self.kind = kind
        self.mode = mode
        self.data = bytearray()
        self.names: dict[bytes, Thing] = {}
        self.nlinks = 1

    def entry(self) -> tuple[Any, ...]:
        return (self.kind, self.mode, self.nlinks, bytes(self.data))


class Driver:
    """Does each operation to a volume and to the model; both must agree."""

    def __init__(self, disk: Disk, label: bytes = b"DATA", limit_chains: int = 64) -> None:
        self.disk = disk
        self.label = label
        self.tunables = Tunables()
        self.tunables.limit_chains = limit_chains
        self.root = Thing(DIR, 0o755)
        self.snapshots: dict[bytes, dict[bytes, tuple[Any, ...]]] = {}
        self.mount()

    def mount(self) -> None:
        """Open the volume, forgetting all that is in memory."""
        self.dev = open_disk(self.disk, self.tunables)
        self.pfs = self.dev.pfs(self.label)

    # --- finding -----------------------------------------------------------------------

    def directories(self) -> list[tuple[bytes, ...]]:
        """The paths of all directories."""
        out: list[tuple[bytes, ...]] = [()]
        for path in out:
            thing = self.thing(path)
            out += [(*path, name) for name, below in thing.names.items() if below.kind == DIR]
        return out

    def files(self, kind: int = REG) -> list[tuple[bytes, ...]]:
        """The paths of all files of a kind."""
        return [
            (*path, name) for path in self.directories()
            for name, thing in self.thing(path).names.items() if thing.kind == kind
        ]  # fmt: skip

    def thing(self, path: tuple[bytes, ...]) -> Thing:
        thing = self.root
        for name in path:
            thing = thing.names[name]
        return thing

    def inode(self, path: tuple[bytes, ...]) -> Inode:
        ip = self.pfs.root
        for name in path:
            ip = xops.nresolve(ip, name)
        return ip

    def content(self) -> dict[bytes, tuple[Any, ...]]:
        """What the model has, as `world.content` tells it."""
        out: dict[bytes, tuple[Any, ...]] = {}
        todo: list[tuple[bytes, Thing]] = [(b"", self.root)]
        while todo:
            path, thing = todo.pop()
            out[path] = thing.entry()
            for name, below in thing.names.items():
                todo.append((path + b"/" + name if path else name, below))
        return out

    # --- operations --------------------------------------------------------------------

    def create(self, path: tuple[bytes, ...], name: bytes, kind: int) -> None:
        thing = self.thing(path)
        wanted = EEXIST if name in thing.names else 0
        if expect(wanted, lambda: xops.ncreate(self.inode(path), name, kind, mode=0o640)):
            thing.names[name] = Thing(kind, 0o640)

    def symlink(self, path: tuple[bytes, ...], name: bytes, target: bytes) -> None:
        thing = self.thing(path)
        wanted = EEXIST if name in thing.names else 0
        if expect(wanted, lambda: xops.nsymlink(self.inode(path), name, target, mode=0o777)):
            thing.names[name] = Thing(LNK, 0o777)
            thing.names[name].data[:] = target

    def link(self, path: tuple[bytes, ...], name: bytes, file: tuple[bytes, ...]) -> None:
        thing, other = self.thing(path), self.thing(file)
        wanted = EEXIST if name in thing.names else EPERM if other.kind == DIR else 0
        if expect(wanted, lambda: xops.nlink(self.inode(path), name, self.inode(file))):
            thing.names[name] = other
            other.nlinks += 1

    def remove(self, path: tuple[bytes, ...], name: bytes, *, directory: bool) -> None:
        thing = self.thing(path)
        wanted = wrong_kind(thing.names.get(name), directory)
        call = xops.nrmdir if directory else xops.nremove
        if expect(wanted, lambda: call(self.inode(path), name)):
            thing.names.pop(name).nlinks -= 1

    def rename(
        self, path: tuple[bytes, ...], name: bytes, tpath: tuple[bytes, ...], tname: bytes,
        flags: RenameFlag,
    ) -> None:  # fmt: skip
        source, target = self.thing(path), self.thing(tpath)
        moved, there = source.names.get(name), target.names.get(tname)
        wanted = self.rename_error(path, name, tpath, tname, flags)
        done = expect(
            wanted, lambda: xops.nrename(self.inode(path), name, self.inode(tpath), tname, flags)
        )
        if not done or moved is there:
            return
        assert moved is not None
        if flags & RenameFlag.EXCHANGE:
            assert there is not None
            source.names[name], target.names[tname] = there, moved
            return
        del source.names[name]
        target.names[tname] = moved
        if there is not None:
            there.nlinks -= 1

    def rename_error(
        self, path: tuple[bytes, ...], name: bytes, tpath: tuple[bytes, ...], tname: bytes,
        flags: RenameFlag,
    ) -> int:  # fmt: skip
        moved, there = self.thing(path).names.get(name), self.thing(tpath).names.get(tname)
        if moved is None:
            return ENOENT
        below = moved.kind == DIR and tpath[: len(path) + 1] == (*path, name)
        if flags & RenameFlag.EXCHANGE:
            if there is None:
                return ENOENT
            above = there.kind == DIR and path[: len(tpath) + 1] == (*tpath, tname)
            return EINVAL if moved is not there and (below or above) else 0
        if there is not None and flags & RenameFlag.NOREPLACE:
            return EEXIST
        if below:
            return EINVAL
        if there is None or there is moved:
            return 0
        return wrong_kind(there, moved.kind == DIR)

    def write(self, file: tuple[bytes, ...], offset: int, data: bytes) -> None:
        assert strategy.write(self.inode(file), offset, data) == len(data)
        content = self.thing(file).data
        if data:
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + len(data)] = data

    def truncate(self, file: tuple[bytes, ...], size: int) -> None:
        strategy.truncate(self.inode(file), size)
        content = self.thing(file).data
        del content[size:]
        content.extend(bytes(size - len(content)))

    def punch(self, file: tuple[bytes, ...], offset: int, length: int) -> None:
        strategy.punch(self.inode(file), offset, length)
        content = self.thing(file).data
        end = min(offset + length, len(content))
        if offset < end:
            content[offset:end] = bytes(end - offset)

    def chmod(self, path: tuple[bytes, ...], mode: int) -> None:
        xops.setattr_(self.inode(path), mode=mode)
        self.thing(path).mode = mode

    def setcomp(self, path: tuple[bytes, ...], comp: int, check: int) -> None:
        xops.setcomp(self.inode(path), comp)
        xops.setcheck(self.inode(path), check)

    def read(self, file: tuple[bytes, ...], offset: int, size: int) -> None:
        data = strategy.read(self.inode(file), offset, size)
        assert data == self.thing(file).data[offset : offset + size]

    def list(self, path: tuple[bytes, ...], limit: int) -> None:
        names, cookie = [], 0
        ip = self.inode(path)
        while entries := dirent.readdir(ip, cookie, limit):
            names += [entry.name for entry in entries]
            cookie = (entries[-1].key & (1 << 63) - 1) + 1
        assert sorted(names) == sorted(self.thing(path).names)

    def sync(self) -> None:
        self.dev.sync()

    def remount(self) -> None:
        """Sync, and open the volume again."""
        self.dev.sync()
        self.mount()

    def bulkfree(self) -> None:
        assert Bulkfree(self.dev).run().corrupt == 0

    def snapshot(self) -> None:
        """Keep what there is, and look at all that was kept before."""
        label = b"snap%d" % len(self.snapshots)
        snapshot(self.pfs, label, random.Random(len(self.snapshots)).randbytes)
        self.snapshots[label] = self.content()

    # --- at random ---------------------------------------------------------------------

    def step(self, rng: random.Random) -> None:
        """One random operation; most change data or names."""
        files = self.files()
        path = rng.choice(self.directories())
        name = rng.choice(NAMES)
        choice = rng.randrange(20)
        if choice < 4 or not files:
            self.create(path, name, rng.choice((REG, REG, DIR, int(ObjType.FIFO))))
        elif choice < 10:
            file = rng.choice(files)
            self.write(file, rng.choice((0, 0, 100, 65536, 200_000)) + rng.randrange(600),
                       some_data(rng))  # fmt: skip
        elif choice < 12:
            self.truncate(rng.choice(files), rng.choice((0, 1, 511, 513, 65536, 100_000)))
        elif choice == 12:
            self.punch(rng.choice(files), rng.randrange(100_000), rng.randrange(200_000))
        elif choice == 13:
            self.link(path, name, rng.choice(files))
        elif choice < 16:
            self.remove(path, name, directory=rng.random() < 0.3)
        elif choice < 18:
            flags = rng.choice((RenameFlag.NONE, RenameFlag.NONE, *RenameFlag))
            tpath = rng.choice(self.directories())
            self.rename(path, name, tpath, rng.choice(NAMES), flags)
        elif choice == 18:
            self.symlink(path, name, rng.randbytes(rng.choice((5, 511, 513, 1000))).replace(
                b"\0", b"1"))  # fmt: skip
        else:
            self.chmod(rng.choice(files), rng.randrange(0o10000))


def some_data(rng: random.Random) -> bytes:
    """Data that compresses well, badly, or is zero."""
    size = rng.choice((1, 50, 512, 513, 4096, 65536, 70_000, 200_000))
    kind = rng.randrange(3)
    if kind == 0:
        return bytes(size)
    if kind == 1:
        return (b"%d " % rng.randrange(1000)) * (size // 2)
    return rng.randbytes(size)


def wrong_kind(thing: Thing | None, directory: bool) -> int:
    """The errno for removing something as a directory or as a file."""
    if thing is None:
        return ENOENT
    if thing.kind == DIR:
        return EISDIR if not directory else ENOTEMPTY if thing.names else 0
    return ENOTDIR if directory else 0


def expect(wanted: int, call: Any) -> bool:
    """Call something that must fail with an errno, or must not fail with 0."""
    if not wanted:
        call()
        return True
    with pytest.raises(KError) as error:
        call()
    assert error.value.errno == wanted
    return False
