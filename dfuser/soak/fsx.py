"""A random tester of file data: many kinds of reading and writing against one model of bytes.

A few files are written, read, truncated, appended to, mapped, synced, closed, opened again and
accessed around the page cache (O_DIRECT), in an order drawn from a seed. A `bytearray` a file says
at any time what its bytes must be, and every read compares. What such a tester finds are the bugs
between two ways to the same byte: a page that truncate forgot to clear, a mapping that a write did
not reach, a direct read that did not see a dirty page.

All random numbers are drawn before an operation and never depend on an answer, so the same seed
is the same run everywhere, and a failure's seed and count replay it.

Counterpart: tools/regression/fsx (the idea: Apple's and Connectathon's fsx).
Differs from DragonFly: several files at once, O_DIRECT, the model kept in Python, no coredump.
Token/lock order: takes none; it is a host program.
Invariants: the model's bytes are the file's bytes after every operation; the file's size is the
model's length.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from dfuser.soak.report import OperationLog, SoakFailure

BLOCK = 4096
CHECK_EVERY = 200


class FileUnderTest:
    """One file under test: its path, an open descriptor, and what its bytes must be."""

    __slots__ = ("fd", "model", "path")

    def __init__(self, path: Path) -> None:
        """Make the file new and empty."""
        self.path = path
        self.model = bytearray()
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)

    def reopen(self) -> None:
        """Close the descriptor and open the file again."""
        os.close(self.fd)
        self.fd = os.open(self.path, os.O_RDWR)

    def put(self, offset: int, data: bytes) -> None:
        """Write into the model, filling a gap with zeroes as the file system must."""
        if len(self.model) < offset:
            self.model.extend(bytes(offset - len(self.model)))
        self.model[offset : offset + len(data)] = data

    def truncate(self, size: int) -> None:
        """Cut or lengthen the model."""
        if size < len(self.model):
            del self.model[size:]
        else:
            self.model.extend(bytes(size - len(self.model)))


class Fsx:
    """The tester: `run` does operations in `directory` until told to stop or something is wrong.

    Raises:
        SoakFailure: the bytes, the size or an error is not what the model says.
    """

    __slots__ = ("_actions", "_direct", "_files", "_largest", "_log", "_random", "_weights", "seed")

    def __init__(
        self, directory: Path, seed: int, *, files: int = 3, largest: int = 256 << 10
    ) -> None:
        """Make `files` empty files in `directory`; none grows beyond `largest` bytes."""
        self.seed = seed
        self._random = random.Random(seed)
        self._files = [FileUnderTest(directory / f"fsx-{n}") for n in range(files)]
        self._largest = largest
        self._log = OperationLog()
        self._direct = True
        choices: dict[Callable[[FileUnderTest, int, int, int], None], int] = {
            self._read: 20,
            self._write: 20,
            self._append: 6,
            self._truncate: 8,
            self._map_read: 10,
            self._map_write: 10,
            self._direct_read: 6,
            self._direct_write: 6,
            self._reopen: 4,
            self._sync: 3,
            self._drop_cache: 3,
            self._write_far: 2,
            self._vectored: 2,
        }
        self._actions, self._weights = list(choices), list(choices.values())

    @property
    def operations(self) -> int:
        """How many operations were done."""
        return self._log.count

    def run(self, operations: int | None = None, seconds: float | None = None) -> int:
        """Do `operations`, or as many as fit into `seconds`; return how many were done.

        Raises:
            SoakFailure: the file system differs from the model.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while operations is None or self._log.count < operations:
            if deadline is not None and time.monotonic() >= deadline:
                break
            self.step()
            if self._log.count % CHECK_EVERY == 0:
                self._check_all()
        self._check_all()
        return self._log.count

    def step(self) -> None:
        """Do one random operation and compare."""
        draw = self._random
        file = self._files[draw.randrange(len(self._files))]
        action = draw.choices(self._actions, self._weights)[0]
        offset, length = draw.randrange(self._largest), self._length()
        length = min(length, self._largest - offset) or 1
        filler = draw.randrange(1 << 32)
        name = action.__name__.removeprefix("_")
        self._log.add(f"{file.path.name} {name} {offset:#x} {length:#x} {filler:#x}")
        try:
            action(file, offset, length, filler)
        except OSError as error:
            raise self._failure(f"{name}: {error}") from error

    def close(self) -> None:
        """Close and remove the files."""
        for file in self._files:
            os.close(file.fd)
            file.path.unlink()

    def _length(self) -> int:
        """A length: often small, often a whole number of pages, sometimes large."""
        kind = self._random.randrange(4)
        if kind == 0:
            return self._random.randrange(1, 600)
        if kind == 1:
            return BLOCK * self._random.randrange(1, 9)
        if kind == 2:
            return self._random.randrange(1, 3 * BLOCK)
        return self._random.randrange(1, self._largest // 2)

    def _failure(self, what: str) -> SoakFailure:
        return SoakFailure("fsx", self.seed, self._log.count, what, self._log.lines())

    def _compare(self, file: FileUnderTest, offset: int, got: bytes, length: int) -> None:
        want = bytes(file.model[offset : offset + length])
        if got == want:
            return
        if len(got) != len(want):
            raise self._failure(f"{len(got)} bytes at {offset:#x}, not {len(want)}")
        at = next(n for n, (a, b) in enumerate(zip(got, want, strict=True)) if a != b)
        bad = sum(a != b for a, b in zip(got, want, strict=True))
        raise self._failure(
            f"byte {offset + at:#x} is {got[at]:#04x}, not {want[at]:#04x} ({bad} bytes differ)"
        )

    def _check_all(self) -> None:
        for file in self._files:
            size = os.fstat(file.fd).st_size
            if size != len(file.model):
                raise self._failure(f"{file.path.name}: size {size:#x}, not {len(file.model):#x}")
            self._compare(file, 0, os.pread(file.fd, size + 1, 0), size + 1)

    @staticmethod
    def _bytes(filler: int, length: int) -> bytes:
        """Bytes that tell where they came from: the filler's, then a running number."""
        pattern = filler.to_bytes(4, "big") + bytes(range(1, 252))
        return (pattern * (length // len(pattern) + 1))[:length]

    def _read(self, file: FileUnderTest, offset: int, length: int, filler: int) -> None:
        self._compare(file, offset, os.pread(file.fd, length, offset), length)

    def _write(self, file: FileUnderTest, offset: int, length: int, filler: int) -> None:
        data = self._bytes(filler, length)
        if os.pwrite(file.fd, data, offset) != length:
            raise self._failure("a short write")
        file.put(offset, data)

    def _append(self, file: FileUnderTest, offset: int, length: int, filler: int) -> None:
        data = self._bytes(filler, min(length, self._largest - len(file.model)))
        fd = os.open(file.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)
        file.put(len(file.model), data)

    def _truncate(self, file: FileUnderTest, offset: int, length: int, filler: int) -> None:
        if filler & 1:
            os.ftruncate(file.fd, offset)
        else:
            os.truncate(file.path, offset)
        file.truncate(offset)

    def _map_read(self, file: FileUnderTest, offset: int, length: int, filler: int) -> None:
        start = offset // BLOCK * BLOCK
        stop = min(start + length, len(file.model))
        if stop <= start:
            return
        with mmap.mmap(file.fd, stop - start, prot=mmap.PROT_READ, offset=start) as memory:
            self._compare(file, start, memory[:], stop - start)

    def _map_write(self, file: FileUnderTest, offset: int, length: int, filler: int) -> None:
        start = offset // BLOCK * BLOCK
        stop = min(start + length, len(file.model))
        if stop <= start:
            return
        data = self._bytes(filler, stop - start)
        with mmap.mmap(file.fd, stop - start, offset=start) as memory:
            memory[:] = data
            if filler & 1:
                memory.flush()
        file.put(start, data)

    def _direct_fd(self, file: FileUnderTest) -> int | None:
        if not self._direct:
            return None
        try:
            return os.open(file.path, os.O_RDWR | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._direct = False
            return None

    def _direct_read(self, file: FileUnderTest, offset: int, length: int, filler: int) -> None:
        fd = self._direct_fd(file)
        if fd is None:
            return
        start, size = offset // BLOCK * BLOCK, -(-length // BLOCK) * BLOCK
        try:
            with mmap.mmap(-1, size) as memory:
                count = os.preadv(fd, [memory], start)
                self._compare(file, start, memory[:count], size)
        finally:
            os.close(fd)

    def _direct_write(self, file: FileUnderTest, offset: int, length: int, filler: int) -> None:
        fd = self._direct_fd(file)
        if fd is None:
            return
        start, size = offset // BLOCK * BLOCK, -(-length // BLOCK) * BLOCK
        size = max(min(size, self._largest - start), BLOCK)
        data = self._bytes(filler, size)
        try:
            with mmap.mmap(-1, size) as memory:
                memory[:] = data
                if os.pwrite(fd, memory, start) != size:
                    raise self._failure("a short direct write")
        finally:
            os.close(fd)
        file.put(start, data)

    def _reopen(self, file: FileUnderTest, offset: int, length: int, filler: int) -> None:
        file.reopen()

    def _sync(self, file: FileUnderTest, offset: int, length: int, filler: int) -> None:
        (os.fsync if filler & 1 else os.fdatasync)(file.fd)

    def _drop_cache(self, file: FileUnderTest, offset: int, length: int, filler: int) -> None:
        os.fsync(file.fd)
        os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _write_far(self, file: FileUnderTest, offset: int, length: int, filler: int) -> None:
        """A few bytes behind the end, so that there is a hole to read."""
        offset = min(len(file.model) + length, self._largest - 8)
        self._write(file, offset, 8, filler)

    def _vectored(self, file: FileUnderTest, offset: int, length: int, filler: int) -> None:
        data = self._bytes(filler, length)
        cut = filler % length
        if os.pwritev(file.fd, [data[:cut], data[cut:]], offset) != length:
            raise self._failure("a short vectored write")
        file.put(offset, data)
