"""The peer and the notation of locks that the cases are written with."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.posix.case import CaseFailed
from tests.posix.differences import titles_of
from tests.posix.locking import READ, WRITE, Record, apply, ask, lock, locked, shape, shape_of_bytes
from tests.posix.peer import Peer, in_thread


@pytest.fixture
def peer() -> Iterator[Peer]:
    """A peer that is gone after the test."""
    with Peer() as made:
        yield made


def _fail(text: str) -> None:
    raise ValueError(text)


def test_peer_answers(peer: Peer, tmp_path: Path) -> None:
    """What if a call's result, errno or bug did not come back as what it was?"""
    assert peer(os.getpid) == peer.pid != os.getpid()
    f = peer(os.open, tmp_path / "f", os.O_RDWR | os.O_CREAT)
    assert peer(os.write, f, b"x" * 300_000) == 300_000
    assert peer(os.pread, f, 300_000, 0) == b"x" * 300_000
    with pytest.raises(FileNotFoundError):
        peer(os.stat, tmp_path / "missing")
    with pytest.raises(CaseFailed, match="ValueError: oh"):
        peer(_fail, "oh")
    assert peer(os.getpid) == peer.pid, "it lives on after a failure"


def test_peer_holds_nothing_of_ours(peer: Peer) -> None:
    """What if a peer kept the descriptors it was born with: flocks would be shared unseen."""
    assert len(peer(os.listdir, "/proc/self/fd")) <= 5
    with Peer(inherit=True) as other:
        assert other(os.fstat, 0).st_ino == os.fstat(0).st_ino


def test_waits(peer: Peer) -> None:
    """What if a call that has to wait did not, or one that waits could not be ended?"""
    reader, writer = peer(os.pipe)
    with pytest.raises(CaseFailed, match="getpid did not wait"):
        peer.waits(os.getpid)
    peer.on_signal(signal.SIGUSR1)
    peer.waits(os.read, reader, 1)
    assert not peer.answered()
    peer.send(signal.SIGUSR1)
    with pytest.raises(InterruptedError):
        peer.reply()
    peer(os.write, writer, b".")
    assert peer(os.read, reader, 1) == b"."


def test_ends() -> None:
    """What if the ways in which a peer ends could not be told apart?"""
    assert Peer().end() == 0
    assert Peer().kill(signal.SIGTERM) == -signal.SIGTERM
    assert Peer().gone_by(os._exit, 7) == 7
    peer = Peer()
    with pytest.raises(CaseFailed, match="a peer died"):
        peer(os._exit, 3)
    os.waitpid(peer.pid, 0)
    peer.close()


def test_hand(peer: Peer, tmp_path: Path) -> None:
    """What if a descriptor that is passed were not the same open file over there?"""
    f = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    theirs = peer.hand(f)
    peer(os.write, theirs, b"abc")
    assert os.lseek(f, 0, os.SEEK_CUR) == 3
    os.close(f)


def test_in_thread() -> None:
    """What if a thread's outcome were lost?"""
    assert in_thread(os.getpid) == os.getpid()
    with pytest.raises(OSError) as caught:
        in_thread(os.close, 10_000)
    assert caught.value.errno == errno.EBADF


def test_shapes(peer: Peer, tmp_path: Path) -> None:
    """What if the text of a file's locks were not what stands there?"""
    f = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    theirs = peer(os.open, tmp_path / "f", os.O_RDWR)
    assert peer(shape, theirs) == ""
    apply(f, "w0+10 r20+5 w90+0 u3+2")
    assert peer(shape, theirs) == "w0+3 w5+5 r20+5 w90+0"
    assert peer(shape_of_bytes, theirs, 12) == "www..wwwww.."
    assert peer(ask, theirs, READ, 22, 1) is None
    assert peer(ask, theirs, WRITE, 22, 1) == Record(READ, 20, 5, os.SEEK_SET, os.getpid())
    assert not peer(locked, theirs, READ, 0, 1)
    assert peer(locked, theirs, READ, 20, 1)
    with pytest.raises(BlockingIOError):
        peer(lock, theirs, WRITE)
    os.close(f)


def test_flock_is_not_shared_with_a_peer(peer: Peer, tmp_path: Path) -> None:
    """What if a peer stood in the way of its case, or not in its way, by descriptors of birth?"""
    f = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    fcntl.flock(f, fcntl.LOCK_EX)
    with Peer() as other:
        os.close(f)
        g = other(os.open, tmp_path / "f", os.O_RDWR)
        other(fcntl.flock, g, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ("a.x", ["a.x[1]", "a.x[2]"]),
        ("a.x[2]", ["a.x[2]"]),
        ("a.x[2|1]", ["a.x[1]", "a.x[2]"]),
        ("a.xy", ["a.xy"]),
        ("a.xyz", []),
    ],
)
def test_entries_of_differences(entry: str, wanted: list[str]) -> None:
    """What if an entry of the list of differences meant more, or less, than it says?"""
    assert titles_of(entry, ["a.x[1]", "a.x[2]", "a.xy", "b.x"]) == wanted
