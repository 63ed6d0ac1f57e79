"""A kernel whose bridge is put together but not mounted: handlers are called by hand."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from typing import Any, NamedTuple

import pytest

from dfuser.boot.config import Config
from dfuser.boot.kernel import Kernel
from dfuser.fuse.session import FuseSession, SessionOptions
from dfuser.fuse.stock.connection import StockConnection
from dfuser.hw.fake import FakeHost

MEMORY = 16 << 20


class Ctx(NamedTuple):
    """What pyfuse3 says of a caller."""

    uid: int = 1000
    gid: int = 1000
    pid: int = 4242
    umask: int = 0o022


class Bridge:
    """A session, its kernel, and what the notifier wrote."""

    def __init__(self) -> None:
        self.kernel = Kernel(Config(memory=MEMORY, seed=1, ncpu=2), FakeHost(MEMORY))
        self.kernel.boot()
        self.reports: list[str] = []
        self.panics: list[BaseException] = []
        self.session = FuseSession(
            self.kernel.vfs, self.kernel.lwkt, self.kernel.procs,
            SessionOptions("/nowhere", transport="pyfuse3"),
            lambda where, text: self.reports.append(f"{where}: {text}"), self.panics.append,
            self.kernel.posixlocks,
        )  # fmt: skip
        self.vfs = self.kernel.vfs
        self.vfs.hostcache = self.session.notifier
        root = self.session.root
        assert isinstance(root, StockConnection)
        self.connection = root
        self.root = root.mount
        self.kernel.in_context(root.take_root)
        self.rootvp = root.nodes.by_id[1].vp
        self.nodes = root.nodes
        self.attrs = root.attrs
        self.polls = root.polls
        self.files = root.ops.files
        self.ops = root.handlers

    def call(self, handler: Coroutine[Any, Any, Any]) -> Any:
        """Run a handler that does not wait to its end."""
        try:
            handler.send(None)
        except StopIteration as stop:
            return stop.value
        handler.close()
        raise AssertionError("the handler waits")

    def close(self) -> None:
        """Take everything down; the kernel checks that nothing is left."""
        self.kernel.in_context(self.connection.release_all)
        self.vfs.hostcache = None
        self.kernel.stop()


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    """A bridge for one test."""
    made = Bridge()
    yield made
    made.close()


@pytest.fixture
def ctx() -> Ctx:
    """A caller."""
    return Ctx()
