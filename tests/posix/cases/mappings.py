"""mmap(2): shared and private mappings, and how they agree with read and write."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import signal
from pathlib import Path

from tests.posix.case import case, refuse, same, true
from tests.posix.locking import UNLOCK, WRITE, lock
from tests.posix.tools import Child, Signpost, aged, opened, put

PAGE = mmap.PAGESIZE


@case()
def shared_write_reaches_the_file(d: Path) -> None:
    """Bytes stored in a shared mapping are in the file, at once for read(2)."""
    path = put(d / "f", bytes(3 * PAGE))
    with opened(path, os.O_RDWR) as f, mmap.mmap(f, 3 * PAGE) as memory:
        memory[PAGE : PAGE + 5] = b"hello"
        same(os.pread(f, 5, PAGE), b"hello", "bytes by read")
        memory.flush()
    same(path.read_bytes()[PAGE : PAGE + 5], b"hello", "bytes by another descriptor")


@case()
def write_reaches_the_mapping(d: Path) -> None:
    """Bytes written with write(2) are in the mapping at once."""
    with opened(put(d / "f", bytes(PAGE)), os.O_RDWR) as f, mmap.mmap(f, PAGE) as memory:
        for turn in range(1, 50):
            os.pwrite(f, bytes([turn]) * 100, 50)
            same(memory[50:150], bytes([turn]) * 100, f"turn {turn}")


@case()
def private_stays_private(d: Path) -> None:
    """Bytes stored in a private mapping never reach the file."""
    path = put(d / "f", b"x" * PAGE)
    with opened(path, os.O_RDONLY) as f, mmap.mmap(f, PAGE, flags=mmap.MAP_PRIVATE) as memory:
        memory[0:5] = b"mine!"
    same(path.read_bytes()[:5], b"xxxxx", "bytes")


@case()
def two_processes_share(d: Path) -> None:
    """Two processes with shared mappings of one file see each other's stores."""
    path = put(d / "f", bytes(PAGE))
    asked, answered = Signpost(), Signpost()

    def answer() -> None:
        with opened(path, os.O_RDWR) as f, mmap.mmap(f, PAGE) as memory:
            asked.wait()
            memory[100:110] = memory[0:10][::-1]
            answered.raise_()

    child = Child(answer)
    with opened(path, os.O_RDWR) as f, mmap.mmap(f, PAGE) as memory:
        memory[0:10] = b"0123456789"
        asked.raise_()
        answered.wait()
        same(memory[100:110], b"9876543210", "answer")
    child.result()


@case()
def past_the_end_is_sigbus(d: Path) -> None:
    """Touching a whole page past the end of the file is SIGBUS."""
    path = put(d / "f", b"x" * 100)

    def touch() -> int:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        with opened(path, os.O_RDWR) as f:
            os.ftruncate(f, 3 * PAGE)
            memory = mmap.mmap(f, 3 * PAGE)
            os.ftruncate(f, 100)
            return memory[2 * PAGE]

    child = Child(touch)
    same(os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]), -signal.SIGBUS, "exit status")


@case()
def tail_of_the_last_page(d: Path) -> None:
    """The rest of the last page reads as zeroes and does not lengthen the file."""
    path = put(d / "f", b"x" * 100)
    with opened(path, os.O_RDWR) as f, mmap.mmap(f, 100) as memory:
        same(memory[99:100], b"x", "last byte")
        memory[0:1] = b"y"
        memory.flush()
    same((path.stat().st_size, path.read_bytes()[:2]), (100, b"yx"), "size and bytes")


@case()
def zeroes_after_growth(d: Path) -> None:
    """Truncated under a mapping and grown again, the page shows zeroes."""
    path = put(d / "f", b"x" * (2 * PAGE))
    with opened(path, os.O_RDWR) as f, mmap.mmap(f, 2 * PAGE) as memory:
        same(memory[PAGE + 5 : PAGE + 6], b"x", "before")
        os.ftruncate(f, 10)
        os.ftruncate(f, 2 * PAGE)
        same(memory[0:12], b"x" * 10 + b"\0\0", "first page")
        same(memory[PAGE + 5 : PAGE + 6], b"\0", "second page")


@case()
def storing_moves_mtime(d: Path) -> None:
    """After msync the stores of a mapping show in mtime and ctime."""
    path = aged(put(d / "f", bytes(PAGE)))
    before = path.stat()
    with opened(path, os.O_RDWR) as f, mmap.mmap(f, PAGE) as memory:
        memory[0:1] = b"x"
        memory.flush()
        os.fsync(f)
    after = path.stat()
    true(after.st_mtime_ns > before.st_mtime_ns, "mtime stood still")
    true(after.st_ctime_ns >= before.st_ctime_ns, "ctime went back")


@case()
def survives_close_and_unlink(d: Path) -> None:
    """A mapping lives on after its descriptor is closed and the file removed."""
    path = put(d / "f", b"x" * PAGE)
    f = os.open(path, os.O_RDWR)
    memory = mmap.mmap(f, PAGE)
    os.close(f)
    os.unlink(path)
    memory[0:3] = b"abc"
    same(memory[0:4], b"abcx", "bytes")


@case()
def written_after_close_is_kept(d: Path) -> None:
    """Stores made after the last close(2) are in the file once unmapped."""
    path = put(d / "f", bytes(4 * PAGE))
    f = os.open(path, os.O_RDWR)
    memory = mmap.mmap(f, 4 * PAGE)
    os.close(f)
    memory[3 * PAGE : 3 * PAGE + 4] = b"late"
    memory.flush()
    memory.close()
    same(path.read_bytes()[3 * PAGE : 3 * PAGE + 4], b"late", "bytes")


@case()
def access_modes(d: Path) -> None:
    """A shared writable mapping needs a descriptor open for both: EACCES."""
    put(d / "f", bytes(PAGE))
    with opened(d / "f", os.O_RDONLY) as f:
        refuse(errno.EACCES, mmap.mmap, f, PAGE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    with opened(d / "f", os.O_WRONLY) as f:
        refuse(errno.EACCES, mmap.mmap, f, PAGE, prot=mmap.PROT_READ)


@case()
def large_sparse(d: Path) -> None:
    """A page in the middle of a sparse GiB can be mapped, stored and read back."""
    with opened(d / "f", os.O_RDWR | os.O_CREAT) as f:
        os.ftruncate(f, 1 << 30)
        with mmap.mmap(f, PAGE, offset=1 << 29) as memory:
            memory[0:3] = b"mid"
            memory.flush()
        same(os.pread(f, 4, 1 << 29), b"mid\0", "bytes")


@case()
def many_pages_in_random_order(d: Path) -> None:
    """500 pages stored in a scattered order are all where they belong."""
    path = put(d / "f", bytes(500 * PAGE))
    with opened(path, os.O_RDWR) as f, mmap.mmap(f, 500 * PAGE) as memory:
        for n in range(500):
            page = n * 193 % 500
            memory[page * PAGE : page * PAGE + 4] = page.to_bytes(4, "big")
        memory.flush()
    data = path.read_bytes()
    found = [int.from_bytes(data[at : at + 4], "big") for at in range(0, len(data), PAGE)]
    same(found, list(range(500)), "pages")


@case(limit=30.0)
def counter_under_record_locks(d: Path) -> None:
    """Four processes that count in a shared mapping under record locks lose nothing."""
    path = put(d / "f", bytes(PAGE))

    def count() -> None:
        with opened(path, os.O_RDWR) as f, mmap.mmap(f, PAGE) as memory:
            for _ in range(200):
                lock(f, WRITE, 0, 8, wait=True)
                number = int.from_bytes(memory[0:8], "little") + 1
                memory[0:8] = number.to_bytes(8, "little")
                lock(f, UNLOCK, 0, 8)

    for child in [Child(count) for _ in range(4)]:
        child.result()
    same(int.from_bytes(path.read_bytes()[:8], "little"), 800, "count")


@case(limit=30.0)
def ring_between_two_processes(d: Path) -> None:
    """A writer and a reader that pass 500 numbers through a mapping, a lock on each slot."""
    slots = 8
    path = put(d / "f", bytes(PAGE))

    def produce() -> None:
        with opened(path, os.O_RDWR) as f, mmap.mmap(f, PAGE) as memory:
            for n in range(1, 501):
                at, done = n % slots * 8, False
                while not done:
                    lock(f, WRITE, at, 8, wait=True)
                    if done := memory[at : at + 8] == bytes(8):
                        memory[at : at + 8] = n.to_bytes(8, "little")
                    lock(f, UNLOCK, at, 8)

    child = Child(produce)
    with opened(path, os.O_RDWR) as f, mmap.mmap(f, PAGE) as memory:
        for n in range(1, 501):
            at, got = n % slots * 8, 0
            while not got:
                lock(f, WRITE, at, 8, wait=True)
                got = int.from_bytes(memory[at : at + 8], "little")
                memory[at : at + 8] = bytes(8)
                lock(f, UNLOCK, at, 8)
            same(got, n, "number in the slot")
    child.result()


@case()
def private_mapping_keeps_what_it_copied(d: Path) -> None:
    """A page that a private mapping has written does not follow the file any more."""
    path = put(d / "f", b"x" * PAGE)
    with opened(path, os.O_RDWR) as f, mmap.mmap(f, PAGE, flags=mmap.MAP_PRIVATE) as memory:
        memory[0:4] = b"mine"
        os.pwrite(f, b"file", 0)
        same((memory[0:4], os.pread(f, 4, 0)), (b"mine", b"file"), "mapping and file")


@case()
def mapped_while_replaced(d: Path) -> None:
    """A mapping shows the file it was made of, after another took the name."""
    path = put(d / "f", b"old!" * 1024)
    put(d / "g", b"new!" * 1024)
    with opened(path, os.O_RDWR) as f, mmap.mmap(f, PAGE) as memory:
        os.rename(d / "g", path)
        same((memory[0:4], path.read_bytes()[:4]), (b"old!", b"new!"), "mapping and new file")
        memory[0:4] = b"gone"
    same(path.read_bytes()[:4], b"new!", "bytes of the new file")
