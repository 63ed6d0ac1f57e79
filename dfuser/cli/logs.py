"""Where a server's messages go.

Everything that runs a kernel writes to stderr: the kernel log, one line a message, and what the
host side has to say. On a terminal lines are short; under systemd they carry their level as
``<n>``; else they have time and level. A daemon's stderr becomes its log file once the mount is
ready, and is opened again on SIGHUP, so that the file may be rotated.

Counterpart: syslogd(8) for the kernel's messages.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dfuser.libkern.log import MsgBuf

_LEVEL: Final = re.compile(r"<(\d+)>")
#: LOG_EMERG to LOG_DEBUG as levels of the logging module.
_LEVELS: Final = (
    logging.CRITICAL, logging.CRITICAL, logging.CRITICAL, logging.ERROR, logging.WARNING,
    logging.INFO, logging.INFO, logging.DEBUG,
)  # fmt: skip
_SYSTEMD: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4),
                   (logging.INFO, 6))  # fmt: skip


class _Formatter(logging.Formatter):
    """One line a message, as stderr wants it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self.journal = bool(os.environ.get("JOURNAL_STREAM"))

    def format(self, record: logging.LogRecord) -> str:
        """The line for ``record``."""
        if self.journal:
            level = next((n for limit, n in _SYSTEMD if record.levelno >= limit), 7)
            lines = record.getMessage().splitlines() or [""]
            return "\n".join(f"<{level}>{line}" for line in lines)
        if sys.stderr.isatty():
            mark = "" if record.levelno < logging.WARNING else f"{record.levelname}: "
            return f"dfuser: {mark}{record.getMessage()}"
        return super().format(record)


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to whatever stderr is at the moment."""

    def __init__(self, level: int) -> None:
        super().__init__(sys.stderr)
        self.setLevel(level)
        self.setFormatter(_Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        self.stream = sys.stderr
        super().emit(record)


class ServerLog:
    """The log of one server process.

    Args:
        level: messages below it are dropped.
        path: the file stderr becomes in `to_file`; None for a server in the foreground.
    """

    def __init__(self, level: int = logging.INFO, path: Path | None = None) -> None:
        self.path = path
        self._logger = logging.getLogger("dfuser")
        self._level = level
        self._filed = False
        self._handler = _Handler(level if path is None else logging.WARNING)
        self._logger.addHandler(self._handler)
        self._before = self._logger.level
        self._logger.setLevel(level)
        self._kernel = logging.getLogger("dfuser.kernel")
        self._msgbuf: MsgBuf | None = None
        self._seq = 0

    def say(self, text: str) -> None:
        """A line for whoever runs this server."""
        if self._filed:
            self._logger.info("%s", text)
        else:
            print(f"dfuser: {text}", file=sys.stderr)

    def follow(self, msgbuf: MsgBuf) -> None:
        """Write the kernel log, what is in it and what comes."""
        self._msgbuf = msgbuf
        msgbuf.listen(self._arrived)
        self._arrived()

    def _arrived(self) -> None:
        assert self._msgbuf is not None
        chunk = self._msgbuf.read_since(self._seq)
        self._seq = chunk.seq
        level = logging.INFO
        for line in chunk.data.decode("utf-8", "replace").splitlines():
            found = _LEVEL.match(line)
            if found:
                level = _LEVELS[int(found[1]) & 7]
                line = line[found.end() :]
            self._kernel.log(level, "%s", line)

    def to_file(self) -> None:
        """Make stdout nothing and stderr the log file. Raises OSError."""
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        log = os.open(self.path, flags, 0o600)
        null = os.open(os.devnull, os.O_RDWR)
        sys.stdout.flush()
        sys.stderr.flush()
        for target, source in ((0, null), (1, null), (2, log)):
            os.dup2(source, target)
        os.close(log)
        os.close(null)
        self._in_file()

    def _in_file(self) -> None:
        """From the first time on the file gets everything, from the beginning of the kernel log."""
        if not self._filed:
            self._filed = True
            self._handler.setLevel(self._level)
            self._seq = 0
            if self._msgbuf is not None:
                self._arrived()

    def reopen(self) -> None:
        """Open the log file again after a rotation."""
        if self.path is not None:
            self.to_file()

    def close(self) -> None:
        """Stop following and logging."""
        if self._msgbuf is not None:
            self._msgbuf.unlisten(self._arrived)
            self._msgbuf = None
        self._logger.removeHandler(self._handler)
        self._logger.setLevel(self._before)
        self._handler.close()
