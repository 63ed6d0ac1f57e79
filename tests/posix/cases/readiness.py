"""poll(2), select(2) and epoll(7) on what lives in a file system: files, directories, fifos.

A plain file is always ready and says so at once, whatever is or is not in it; epoll will not take
it (EPERM). A fifo has its name in the file system and its pipe in the host kernel: it must wait and
wake as fifos do everywhere.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
from pathlib import Path

from tests.posix.case import case, refuse, same, table, true
from tests.posix.peer import Peer
from tests.posix.tools import folder, opened, put

READABLE, WRITABLE = select.POLLIN | select.POLLRDNORM, select.POLLOUT | select.POLLWRNORM
BOTH = READABLE | WRITABLE


def _polled(descriptor: int, mask: int, milliseconds: int = 0) -> int:
    """The events that poll(2) gives for one descriptor."""
    poll = select.poll()
    poll.register(descriptor, mask)
    found = poll.poll(milliseconds)
    return found[0][1] if found else 0


@table({"empty": (b"",), "short": (b"x",), "long": (b"x" * 200_000,)})
def files_are_ready(d: Path, data: bytes) -> None:
    """A file can be read and written without waiting, at its end as well."""
    with opened(put(d / "f", data), os.O_RDWR) as f:
        same(_polled(f, BOTH), BOTH, "events at the start")
        os.lseek(f, 0, os.SEEK_END)
        same(_polled(f, BOTH, 5000), BOTH, "events at the end")
        same(_polled(f, select.POLLPRI), 0, "urgent data")


@table({"read": (os.O_RDONLY,), "write": (os.O_WRONLY,), "append": (os.O_WRONLY | os.O_APPEND,)})
def mode_does_not_matter(d: Path, flags: int) -> None:
    """poll does not ask how the file is open."""
    with opened(put(d / "f", b"x"), flags) as f:
        same(_polled(f, BOTH), BOTH, "events")
        same([len(part) for part in select.select([f], [f], [f], 0)][:2], [1, 1], "select")


@case()
def many_at_once(d: Path) -> None:
    """300 files in one poll are all ready."""
    files = [os.open(d / f"f{n}", os.O_RDWR | os.O_CREAT) for n in range(300)]
    poll = select.poll()
    for f in files:
        poll.register(f, select.POLLIN)
    same(sorted(poll.poll(0)), sorted((f, select.POLLIN) for f in files), "events")


@case()
def directories_are_ready(d: Path) -> None:
    """A directory is ready to be read."""
    with opened(folder(d / "dir"), os.O_RDONLY) as f:
        true(_polled(f, READABLE) & READABLE, "not readable")


@case()
def epoll_refuses_files(d: Path) -> None:
    """epoll does not take files nor directories: EPERM."""
    epoll = select.epoll()
    with opened(put(d / "f", b"x"), os.O_RDWR) as f:
        refuse(errno.EPERM, epoll.register, f, select.EPOLLIN)
    with opened(d, os.O_RDONLY) as f:
        refuse(errno.EPERM, epoll.register, f, select.EPOLLIN)
    epoll.close()


@case()
def removed_files_are_ready(d: Path) -> None:
    """Without a name, truncated or renamed: ready all the same."""
    with opened(put(d / "f", b"x"), os.O_RDWR) as f:
        os.rename(d / "f", d / "g")
        same(_polled(f, BOTH), BOTH, "renamed")
        os.ftruncate(f, 0)
        os.unlink(d / "g")
        same(_polled(f, BOTH), BOTH, "removed")


@case()
def path_descriptors(d: Path) -> None:
    """O_PATH descriptors and closed ones are POLLNVAL."""
    with opened(put(d / "f"), os.O_PATH) as f:
        same(_polled(f, BOTH), select.POLLNVAL, "O_PATH")
    same(_polled(f, BOTH), select.POLLNVAL, "closed")


@case()
def mixed_with_what_waits(d: Path) -> None:
    """A ready file ends a poll at once that would wait for a pipe."""
    reader, writer = os.pipe()
    with opened(put(d / "f", b"x"), os.O_RDONLY) as f:
        ready = select.select([reader, f], [], [], 5)
        same(ready[0], [f], "readable")
        os.write(writer, b".")
        same(set(select.select([reader, f], [], [], 5)[0]), {reader, f}, "readable")


@case()
def fifo_readiness(d: Path) -> None:
    """A fifo is writable when empty, readable when filled, and tells the writer's end."""
    os.mkfifo(d / "fifo")
    reader = os.open(d / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(d / "fifo", os.O_WRONLY | os.O_NONBLOCK)
    same((_polled(reader, READABLE), _polled(writer, WRITABLE)), (0, WRITABLE), "empty")
    os.write(writer, b"abc")
    same(_polled(reader, READABLE), READABLE, "filled")
    os.read(reader, 9)
    os.close(writer)
    same(_polled(reader, READABLE), select.POLLHUP, "after the writer's end")
    os.close(reader)


@case()
def fifo_wakes_who_polls(d: Path) -> None:
    """Who sleeps in poll, select or epoll on a fifo is woken by another process's write."""
    os.mkfifo(d / "fifo")
    peer = Peer()
    theirs = peer(os.open, d / "fifo", os.O_RDWR)
    with opened(d / "fifo", os.O_RDWR) as f:
        for ask in (_poll_long, _select_long, _epoll_long):
            peer.waits(ask, theirs)
            os.write(f, b"x")
            true(peer.reply(), f"{ask.__name__}: nothing was ready")
            same(peer(os.read, theirs, 9), b"x", "bytes")


def _poll_long(f: int) -> bool:
    return _polled(f, READABLE, 20_000) == READABLE


def _select_long(f: int) -> bool:
    return select.select([f], [], [], 20)[0] == [f]


def _epoll_long(f: int) -> bool:
    with select.epoll() as epoll:
        epoll.register(f, select.EPOLLIN)
        return epoll.poll(20) == [(f, select.EPOLLIN)]


@case()
def fifo_reader_is_interrupted(d: Path) -> None:
    """A signal ends a blocked read of a fifo, and a blocked open: EINTR."""
    os.mkfifo(d / "fifo")
    peer = Peer()
    peer.on_signal(signal.SIGUSR1)
    peer.waits(os.open, d / "fifo", os.O_RDONLY)
    peer.send(signal.SIGUSR1)
    refuse(errno.EINTR, peer.reply)
    theirs = peer(os.open, d / "fifo", os.O_RDWR)
    peer.waits(os.read, theirs, 1)
    peer.send(signal.SIGUSR1)
    refuse(errno.EINTR, peer.reply)


@case()
def socket_readiness(d: Path) -> None:
    """A listening socket with a name here becomes readable when somebody connects."""
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        os.chdir(d)
        server.bind("socket")
        server.listen()
        same(_polled(server.fileno(), READABLE), 0, "before")
        client.connect("socket")
        same(_polled(server.fileno(), READABLE, 5000), READABLE, "afterwards")


@case()
def nonblocking_files(d: Path) -> None:
    """O_NONBLOCK changes nothing for a file: reads and writes are whole."""
    with opened(put(d / "f"), os.O_RDWR | os.O_NONBLOCK) as f:
        same(os.write(f, b"x" * 300_000), 300_000, "bytes written")
        same(len(os.pread(f, 300_000, 0)), 300_000, "bytes read")
        same(os.read(f, 1), b"", "at the end")
