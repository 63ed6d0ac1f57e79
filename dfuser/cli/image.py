r"""What verbs share that look into disk images: how images are named, opened, and shown.

A file in an image is called ``IMAGE[@LABEL][:/PATH]``. The path begins at the first ``:/``; the
label follows the last ``@`` behind the last slash of what is before. An image whose own name has
these characters is written with a backslash before them: ``odd\@name.img@DATA:/etc``. Nothing
is guessed from what exists, so a command means the same everywhere. Behind ``:`` every byte
counts as it is, backslashes too.

Without a label the only PFS besides LOCAL is meant, else ROOT, else DATA. The devices of a volume
of several are given with ``--device``, in any order.

Names are bytes. On a terminal control characters and what is not UTF-8 are escaped; into a pipe
the bytes go as they are. JSON has the escaped form as ``name``, and ``name_hex`` where it is not
the name itself.
"""

from __future__ import annotations

import functools
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID

import click

from dfuser.libkern.errno import EIO, KError, strerror
from dfuser.vfs.hammer2.errors import MediaError, VolumeError
from dfuser.vfs.hammer2.node import Node
from dfuser.vfs.hammer2.reader import Pfs, Reader
from dfuser.vfs.hammer2.volume import Device, VolumeSet, open_set

from .exits import CliError, ExitCode
from .output import clean, warn

_F = TypeVar("_F", bound=Callable[..., Any])
_ESCAPED: Final = re.compile(r"\\([@:\\])")
#: PFSs that are meant without a label if there are several, in this order.
_DEFAULTS: Final = (b"ROOT", b"DATA")
_LOCAL: Final = b"LOCAL"
_USEC: Final = 1_000_000


class Source(NamedTuple):
    """What ``IMAGE[@LABEL][:/PATH]`` says."""

    image: str
    label: bytes | None
    path: bytes | None


def parse_source(text: str) -> Source:
    """Take a name of a file in an image apart."""
    cut = re.search(r"(?<!\\)(?:\\\\)*:/", text)
    path = None
    if cut is not None:
        path = os.fsencode(text[cut.end() - 1 :])
        text = text[: cut.end() - 2]
    label = None
    found = re.search(r"(?<!\\)((?:\\\\)*)@([^@/]*)$", text)
    if found is not None:
        label = os.fsencode(_ESCAPED.sub(r"\1", found[2]))
        text = text[: found.end(1)]
    return Source(_ESCAPED.sub(r"\1", text), label, path)


def _open_file(name: str) -> int:
    """Open an image for reading; anything that is no image is told in one sentence."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        hint = " (an @ or :/ in its name needs a backslash before it)" if "@" in name else ""
        raise CliError(ExitCode.SOURCE, f"there is no image {name}{hint}") from None
    except PermissionError:
        raise CliError(ExitCode.PERMISSION, f"{name} may not be read") from None
    except OSError as exc:
        raise CliError(ExitCode.SOURCE, f"{name} cannot be opened: {exc.strerror}") from None
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return fd
    os.close(fd)
    kind = "a directory" if stat.S_ISDIR(mode) else "neither a file nor a disk"
    raise CliError(ExitCode.SOURCE, f"{name} is {kind}, not an image")


def open_device(name: str) -> tuple[int, Device]:
    """An image as a device to read, and the file descriptor that its caller closes.

    Raises:
        CliError: it cannot be opened, or is no image.
    """
    fd = _open_file(name)

    def read_at(offset: int, count: int) -> bytes:
        return os.pread(fd, count, offset)

    return fd, Device(name, os.lseek(fd, 0, os.SEEK_END), read_at)


class Image:
    """An open volume; a context manager that closes its files."""

    def __init__(self, name: str, devices: Sequence[str] = (), header: int | None = None) -> None:
        """Open a volume.

        Args:
            name: the image, or one device of the volume.
            devices: the others.
            header: use this header copy, not the newest.

        Raises:
            CliError: it cannot be opened, or is no HAMMER2 volume.
        """
        self.name = name
        self._fds: list[int] = []
        self._reader: Reader | None = None
        try:
            self.volume = self._open_set([name, *devices], header)
        except BaseException:
            self.close()
            raise

    def _open_set(self, names: Sequence[str], header: int | None) -> VolumeSet:
        try:
            return open_set([self._device(name) for name in names], header)
        except VolumeError as exc:
            hint = ""
            if "devices, " in exc.strerror and "missing" in exc.strerror:
                hint = " (give the others with --device)"
            raise CliError(ExitCode.SOURCE, f"{exc.strerror}{hint}") from None

    def _device(self, name: str) -> Device:
        fd, device = open_device(name)
        self._fds.append(fd)
        return device

    def close(self) -> None:
        """Close the files."""
        while self._fds:
            os.close(self._fds.pop())

    def __enter__(self) -> Image:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    @property
    def reader(self) -> Reader:
        """A reader of the volume.

        Raises:
            CliError: the super-root is damaged.
        """
        if self._reader is None:
            try:
                self._reader = Reader(self.volume)
            except MediaError as exc:
                raise damaged(f"{self.name}: {exc.strerror}") from None
        return self._reader

    def labels(self) -> list[bytes]:
        """The labels of all PFSs that can be read."""
        return [pfs.label for pfs in self.reader.pfs_list(lambda *_: None)]

    def pfs(self, label: bytes | None) -> Pfs:
        """The PFS with a label, or the one that is meant without.

        Raises:
            CliError: there is none, or it is damaged.
        """
        if label is None:
            label = self._default()
        try:
            return self.reader.pfs(label)
        except MediaError as exc:
            raise damaged(f"{self.name}@{text(label)}: {exc.strerror}") from None
        except KError:
            raise CliError(
                ExitCode.SOURCE,
                f"{self.name} has no PFS {text(label)}; it has {self._told()}",
            ) from None

    def _default(self) -> bytes:
        labels = self.labels()
        others = [label for label in labels if label != _LOCAL]
        if len(others) == 1:
            return others[0]
        for label in _DEFAULTS:
            if label in others:
                return label
        raise CliError(
            ExitCode.SOURCE,
            f"{self.name} needs a label, as in {self.name}@LABEL; it has {self._told()}",
        )

    def _told(self) -> str:
        return ", ".join(map(text, self.labels())) or "none"


def damaged(told: str) -> CliError:
    """The error for something that cannot be read."""
    return CliError(ExitCode.DAMAGED, told)


def resolve(pfs: Pfs, source: Source, *, follow: bool = True) -> Node:
    """The inode at the path of a source.

    Raises:
        CliError: there is none, or a block on the way is damaged.
    """
    path = source.path or b"/"
    try:
        return pfs.resolve(path, follow=follow)
    except KError as exc:
        code = ExitCode.DAMAGED if exc.errno == EIO else ExitCode.SOURCE
        raise CliError(code, f"{text(path)}: {why(exc)}") from None


def why(exc: KError) -> str:
    """An error in words."""
    if exc.strerror and not exc.strerror.isupper():
        return exc.strerror
    return strerror(exc.errno or 0)


class Verdict:
    """Counts what went wrong while a verb goes on; its code ends the verb."""

    def __init__(self) -> None:
        """All is well."""
        self.code = ExitCode.OK

    def tell(self, error: CliError) -> None:
        """Say what went wrong; the first code counts."""
        warn(str(error))
        self.code = self.code or error.code


def image_options(fn: _F) -> _F:
    """Add ``--device`` and ``--header``, given on as ``devices`` and ``header``."""
    devices = click.option(
        "-D", "--device", "devices", multiple=True, metavar="FILE",
        help="A further device of a volume of several; may be repeated.",
    )  # fmt: skip
    header = click.option(
        "--header",
        type=click.IntRange(0, 3),
        metavar="N",
        help="Use header copy N (0 to 3) instead of the newest.",
    )

    @functools.wraps(fn)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return devices(header(inner))  # type: ignore[return-value]


def text(name: bytes) -> str:
    """A name for messages: control characters and what is not UTF-8 escaped."""
    return clean(os.fsdecode(name))


def emit(name: bytes) -> bytes:
    """A name for stdout: escaped on a terminal, as it is elsewhere."""
    return text(name).encode() if sys.stdout.isatty() else name


def named(name: bytes, key: str = "name") -> dict[str, str]:
    """A name for JSON; the bytes in hexadecimal where the text is not they."""
    shown = name.decode(errors="backslashreplace")
    return {key: shown} if shown.encode() == name else {key: shown, f"{key}_hex": name.hex()}


def when(usec: int) -> str:
    """A time of the media, in UTC as RFC 3339; the number itself where no calendar has it."""
    try:
        told = datetime.fromtimestamp(usec // _USEC, UTC)
    except (OverflowError, ValueError, OSError):
        return str(usec)
    return f"{told:%Y-%m-%dT%H:%M:%S}.{usec % _USEC:06d}Z"


def uuid(data: bytes) -> str:
    """A UUID of the media as text."""
    return str(UUID(bytes_le=data))


class Meter:
    """One line on the terminal that says how far long work is; nothing elsewhere."""

    _FIRST = 0.5
    _EVERY = 0.2

    def __init__(self) -> None:
        """Nothing is shown yet, and nothing is for work that is soon done."""
        self._on = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._next = time.monotonic() + self._FIRST
        self._shown = False

    def show(self, make: Callable[[], str]) -> None:
        """Show a line if it is time for one; only then it is made."""
        if not self._on or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._EVERY
        self._shown = True
        sys.stderr.write(f"\r{clean(make())[:78]}\x1b[K")
        sys.stderr.flush()

    def clear(self) -> None:
        """Take the line away, before anything else is printed."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = False
