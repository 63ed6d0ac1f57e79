"""Whose a lock is and when it goes: close, fork, exec, exit, kill; names, links, renames.

A record lock belongs to a process and goes with the first descriptor of the file that the process
closes, whichever that is. An OFD lock belongs to an open file description and goes with the last
descriptor of that. Both belong to the file, not to one of its names.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from tests.posix import linux
from tests.posix.case import case, eventually, same, table, true
from tests.posix.locking import READ, UNLOCK, WRITE, Record, ask, lock, locked, shape
from tests.posix.peer import Peer, in_thread
from tests.posix.tools import opened, put

KINDS = {"process": (False,), "description": (True,)}


def _watcher(path: Path) -> tuple[Peer, int]:
    """A process that looks at the locks of `path`, and its descriptor."""
    peer = Peer()
    return peer, peer(os.open, path, os.O_RDWR)


def _close_duplicate(path: Path, f: int) -> None:
    os.close(os.dup(f))


def _close_second(path: Path, f: int) -> None:
    os.close(os.open(path, os.O_RDONLY))


def _close_other_name(path: Path, f: int) -> None:
    os.link(path, path.with_name("other"))
    os.close(os.open(path.with_name("other"), os.O_WRONLY))


def _replace_duplicate(path: Path, f: int) -> None:
    copy = os.dup(f)
    os.dup2(0, copy)


def _close_in_a_thread(path: Path, f: int) -> None:
    in_thread(_close_second, path, f)


def _read_bytes(path: Path, f: int) -> None:
    path.read_bytes()


CLOSES: dict[str, tuple[Callable[[Path, int], None]]] = {
    "duplicate": (_close_duplicate,),
    "second-open": (_close_second,),
    "other-name": (_close_other_name,),
    "dup2-over": (_replace_duplicate,),
    "by-a-thread": (_close_in_a_thread,),
    "whole-read": (_read_bytes,),
}


@table(CLOSES)
def any_close_drops_process_locks(d: Path, close: Callable[[Path, int], None]) -> None:
    """Closing any descriptor of the file drops all record locks that the process has on it."""
    path = put(d / "f", bytes(100))
    watcher, theirs = _watcher(path)
    with opened(path, os.O_RDWR) as f:
        lock(f, WRITE, 0, 10)
        lock(f, READ, 20, 10)
        same(watcher(shape, theirs), "w0+10 r20+10", "locks before")
        close(path, f)
        same(watcher(shape, theirs), "", "locks after the close")


@table(CLOSES)
def no_other_close_drops_description_locks(d: Path, close: Callable[[Path, int], None]) -> None:
    """An OFD lock stays whatever else is closed; a duplicate keeps its description open."""
    path = put(d / "f", bytes(100))
    watcher, theirs = _watcher(path)
    with opened(path, os.O_RDWR) as f:
        lock(f, WRITE, 0, 10, ofd=True)
        close(path, f)
        same(watcher(shape, theirs), "w0+10", "locks after the close")
    same(watcher(shape, theirs), "", "locks after the last close")


def _close_other_file(path: Path, f: int) -> None:
    os.close(os.open(put(path.with_name("other")), os.O_RDONLY))


def _close_path_descriptor(path: Path, f: int) -> None:
    os.close(os.open(path, os.O_PATH))


def _stat_and_move(path: Path, f: int) -> None:
    path.stat()
    path.chmod(0o600)
    os.truncate(path, 5)
    path.rename(path.with_name("moved"))


def _fork_and_close(path: Path, f: int) -> None:
    child = Peer(inherit=True)
    child(os.close, f)
    child(_close_second, path, f)
    same(child.end(), 0, "exit status")


@table(
    {
        "close-of-another-file": (_close_other_file,),
        "close-of-a-path-descriptor": (_close_path_descriptor,),
        "stat-chmod-truncate-rename": (_stat_and_move,),
        "close-in-a-child": (_fork_and_close,),
    }
)
def process_locks_stay(d: Path, doing: Callable[[Path, int], None]) -> None:
    """What does not close a descriptor of this file in this process leaves its locks alone."""
    path = put(d / "f", bytes(100))
    watcher, theirs = _watcher(path)
    with opened(path, os.O_RDWR) as f:
        lock(f, WRITE, 0, 10)
        doing(path, f)
        same(watcher(shape, theirs), "w0+10", "locks afterwards")


@case()
def children_do_not_inherit(d: Path) -> None:
    """After fork the child is another owner: kept out by the parent's lock, unable to drop it."""
    with opened(put(d / "f", bytes(100)), os.O_RDWR) as f:
        lock(f, WRITE, 0, 10)
        child = Peer(inherit=True)
        same(child(ask, f), Record(WRITE, 0, 10, os.SEEK_SET, os.getpid()), "seen by the child")
        same(child(locked, f, READ, 5, 1), False, "the child locks the parent's bytes")
        child(lock, f, UNLOCK)
        same(child(shape, f), "w0+10", "after the child unlocked")
        child(lock, f, WRITE, 50, 10)
        same(ask(f), Record(WRITE, 50, 10, os.SEEK_SET, child.pid), "the child's own lock")
        same(child.end(), 0, "exit status")
        same(ask(f), None, "after the child's end")


@case()
def children_share_descriptions(d: Path) -> None:
    """An OFD lock is the child's, too: not in its way, changed and dropped by it."""
    path = put(d / "f", bytes(100))
    watcher, theirs = _watcher(path)
    with opened(path, os.O_RDWR) as f:
        lock(f, WRITE, 0, 30, ofd=True)
        child = Peer(inherit=True)
        same(child(ask, f, ofd=True), None, "in the child's way")
        child(lock, f, READ, 10, 10, ofd=True)
        same(watcher(shape, theirs), "w0+10 r10+10 w20+10", "after the child's change")
        child(lock, f, UNLOCK, 0, 20, ofd=True)
        same(watcher(shape, theirs), "w20+10", "after the child's unlock")
    same(watcher(shape, theirs), "w20+10", "the parent has closed, the child holds it open")
    child(os.close, f)
    same(watcher(shape, theirs), "", "after the last close")


@case()
def passed_descriptors(d: Path) -> None:
    """A descriptor sent to another process carries the OFD lock and not the record lock."""
    path = put(d / "f", bytes(100))
    watcher, theirs = _watcher(path)
    taker = Peer()
    f = os.open(path, os.O_RDWR)
    lock(f, WRITE, 0, 10)
    lock(f, WRITE, 50, 10, ofd=True)
    got = taker.hand(f)
    same(watcher(shape, theirs), "w0+10 w50+10", "both locks")
    os.close(f)
    same(watcher(shape, theirs), "w50+10", "after the sender's close")
    taker(os.close, got)
    same(watcher(shape, theirs), "", "after the taker's close")


@table(KINDS)
def threads_are_one_owner(d: Path, ofd: bool) -> None:
    """Threads share the locks of their process, and F_GETLK tells the process, not the thread."""
    path = put(d / "f", bytes(100))
    watcher, theirs = _watcher(path)
    with opened(path, os.O_RDWR) as f:
        in_thread(lambda: lock(f, WRITE, 0, 10, ofd=ofd))
        found = watcher(ask, theirs)
        same(found[:3], (WRITE, 0, 10), "lock that a thread took")
        true(ofd or found.owner == os.getpid(), f"process {found.owner}")
        true(locked(f, READ, 5, 1, ofd=ofd), "the thread's lock is in the process's way")
        in_thread(lambda: lock(f, UNLOCK, ofd=ofd))
        same(watcher(ask, theirs), None, "after a thread unlocked")


@table(KINDS)
def conflict_between_kinds(d: Path, ofd: bool) -> None:
    """A process's record lock and its own OFD lock are two owners' locks: they conflict."""
    with opened(put(d / "f", bytes(100)), os.O_RDWR) as f:
        lock(f, WRITE, 0, 10, ofd=ofd)
        same(locked(f, READ, 9, 5, ofd=not ofd), False, "the other kind over the same bytes")
        same(locked(f, WRITE, 10, 5, ofd=not ofd), True, "the other kind beside them")


@table(KINDS)
def dropped_at_exit(d: Path, ofd: bool) -> None:
    """The locks of a process go when it exits, its descriptors still open."""
    path = put(d / "f", bytes(100))
    watcher, theirs = _watcher(path)
    holder = Peer()
    holder(lock, holder(os.open, path, os.O_RDWR), WRITE, 0, 10, ofd=ofd)
    same(watcher(shape, theirs), "w0+10", "locks before")
    same(holder.end(), 0, "exit status")
    # FUSE tells a server of the last close a moment later, and OFD locks go with that.
    eventually(lambda: watcher(shape, theirs) == "", "the lock goes")


@table({"SIGKILL": (signal.SIGKILL,), "SIGTERM": (signal.SIGTERM,)})
def dropped_at_death(d: Path, number: signal.Signals) -> None:
    """A killed process leaves no lock of either kind."""
    path = put(d / "f", bytes(100))
    watcher, theirs = _watcher(path)
    for _ in range(5):
        holder = Peer()
        held = holder(os.open, path, os.O_RDWR)
        holder(lock, held, WRITE, 0, 10)
        holder(lock, held, WRITE, 20, 10, ofd=True)
        same(holder.kill(number), -number, "exit status")
        eventually(lambda: watcher(shape, theirs) == "", "the locks go")


def _become_cat(path: Path, ofd: bool, keep: bool, line: int) -> None:
    """Lock bytes, then exec a program that runs until the pipe `line` ends."""
    f = os.open(path, os.O_RDWR)
    os.set_inheritable(f, keep)
    lock(f, WRITE, 0, 10, ofd=ofd)
    os.dup2(line, 0)
    os.execv("/bin/cat", ["cat"])


@table(
    {
        "process": (False, True),
        "description": (True, True),
        "process-closing": (False, False),
        "description-closing": (True, False),
    }
)
def exec_keeps(d: Path, ofd: bool, keep: bool) -> None:
    """Locks live through exec, unless exec closes the descriptor (O_CLOEXEC)."""
    path = put(d / "f", bytes(100))
    watcher, theirs = _watcher(path)
    reader, writer = os.pipe()
    holder = Peer(inherit=True)
    holder(os.close, writer)
    holder.start(_become_cat, path, ofd, keep, reader)
    os.close(reader)
    _until_program(holder.pid, "cat")
    if keep:
        found = watcher(ask, theirs)
        same(found[:3], (WRITE, 0, 10), "the program's lock")
        true(ofd or found.owner == holder.pid, f"process {found.owner}")
    else:
        eventually(lambda: watcher(ask, theirs) is None, "closed by exec, the lock goes")
    os.close(writer)
    same(os.waitstatus_to_exitcode(os.waitpid(holder.pid, 0)[1]), 0, "exit status")
    eventually(lambda: watcher(ask, theirs) is None, "the lock goes with the program")


def _until_program(pid: int, name: str) -> None:
    eventually(lambda: Path(f"/proc/{pid}/comm").read_text().strip() == name, f"{name} is running")


@table(KINDS)
def hard_links_are_one_file(d: Path, ofd: bool) -> None:
    """Locks taken through one name stand in the way through every other name."""
    path = put(d / "f", bytes(100))
    os.link(path, d / "g")
    watcher, theirs = _watcher(d / "g")
    with opened(path, os.O_RDWR) as f:
        lock(f, WRITE, 0, 10, ofd=ofd)
        same(watcher(shape, theirs), "w0+10", "through the second name")
        os.link(d / "g", d / "h")
        os.unlink(path)
        with opened(d / "h", os.O_RDWR) as h:
            same(locked(h, READ, 0, 1, ofd=True), False, "through a name made later")
        if not ofd:
            lock(f, WRITE, 0, 10)  # closing `h` dropped it
        other, number = _watcher(d / "h")
        same(other(locked, number, WRITE, 5, 1), False, "a third process through that name")


@table(KINDS)
def unlinked_files(d: Path, ofd: bool) -> None:
    """A file without a name is locked between those who have it open as any other."""
    path = put(d / "f", bytes(100))
    other, theirs = _watcher(path)
    with opened(path, os.O_RDWR) as f:
        lock(f, WRITE, 0, 10, ofd=ofd)
        os.unlink(path)
        same(other(locked, theirs, READ, 0, 1), False, "held before the removal")
        lock(f, UNLOCK, ofd=ofd)
        other(lock, theirs, WRITE, 5, 5)
        same(ask(f), Record(WRITE, 5, 5, os.SEEK_SET, other.pid), "taken after the removal")
        put(path, bytes(100))
        with opened(path, os.O_RDWR) as g:
            same(ask(g), None, "on a new file of the old name")


@case()
def renames(d: Path) -> None:
    """Locks go with the file through renames, over others and to other directories."""
    path = put(d / "f", bytes(100))
    put(d / "victim", bytes(100))
    watcher, theirs = _watcher(d / "victim")
    holder = Peer()
    held = holder(os.open, path, os.O_RDWR)
    holder(lock, held, WRITE, 0, 10)
    lost = holder(os.open, d / "victim", os.O_RDWR)
    holder(lock, lost, READ, 50, 10)
    (d / "sub").mkdir()
    os.rename(path, d / "victim")
    same(watcher(shape, theirs), "r50+10", "locks of the file that was replaced")
    os.rename(d / "victim", d / "sub" / "f")
    other, number = _watcher(d / "sub" / "f")
    same(other(shape, number), "w0+10", "locks of the file that moved")


@case()
def exchange(d: Path) -> None:
    """Two files that exchange their names keep each its own locks."""
    put(d / "a", bytes(100))
    put(d / "b", bytes(100))
    holder = Peer()
    for name, text in (("a", 10), ("b", 20)):
        holder(lock, holder(os.open, d / name, os.O_RDWR), WRITE, text, 5)
    linux.renameat2(d / "a", d / "b", linux.RENAME_EXCHANGE)
    watcher, theirs = _watcher(d / "a")
    same(watcher(shape, theirs), "w20+5", "locks of what is called a now")
    watcher, theirs = _watcher(d / "b")
    same(watcher(shape, theirs), "w10+5", "locks of what is called b now")


@case()
def same_bytes_of_two_files(d: Path) -> None:
    """Locks of one file are never in the way on another."""
    holder = Peer()
    holder(lock, holder(os.open, put(d / "a"), os.O_RDWR), WRITE)
    with opened(put(d / "b"), os.O_RDWR) as f:
        same((ask(f), locked(f, WRITE)), (None, True), "the other file")


@case()
def opened_in_many_ways(d: Path) -> None:
    """Locks agree between descriptors opened for reading, writing, appending and O_SYNC."""
    path = put(d / "f", bytes(100))
    holder = Peer()
    ways = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_SYNC)
    for way in ways:
        kind = READ if way == os.O_RDONLY else WRITE
        held = holder(os.open, path, way)
        holder(lock, held, kind, 0, 10)
        for other in ways:
            with opened(path, other) as f:
                want = Record(kind, 0, 10, os.SEEK_SET, holder.pid)
                same(ask(f), want, f"opened with {other:#o}, locked through {way:#o}")
        holder(os.close, held)


@case(limit=30.0)
def sqlite_shape(d: Path) -> None:
    """The locks of a database: shared bytes, a pending byte, a reserved byte, an upgrade."""
    pending, reserved, shared = 1 << 30, (1 << 30) + 1, (1 << 30) + 2
    path = put(d / "db", bytes(4096))
    reader, r = _watcher(path)
    writer, w = _watcher(path)
    for peer, file in ((reader, r), (writer, w)):
        peer(lock, file, READ, pending, 1)
        peer(lock, file, READ, shared, 510)
        peer(lock, file, UNLOCK, pending, 1)
    writer(lock, w, WRITE, reserved, 1)
    same(reader(ask, r, WRITE, reserved, 1).owner, writer.pid, "who has reserved")
    writer(lock, w, WRITE, pending, 1)
    same(reader(locked, r, READ, pending, 1), False, "a new reader, while a writer is pending")
    same(writer(locked, w, WRITE, shared, 510), False, "the upgrade, while somebody reads")
    reader(lock, r, UNLOCK)
    writer(lock, w, WRITE, shared, 510)
    same(reader(shape, r), f"w{pending}+512", "the writer's locks")
    writer(os.close, w)
    same(reader(shape, r), "", "after the writer's close")
