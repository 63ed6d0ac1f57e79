"""/dev/console: what is written to it goes into the kernel's message buffer.

dfuser has no screen of its own; its console is the log that dmesg and /dev/klog show. A writer's
text becomes lines of that log, complete lines only: a part without a newline waits for its rest
(at most `LINE_MAX` bytes) so that lines of different writers do not mix.

Counterpart: kern/tty_cons.c, and log_console (kern/subr_prf.c), which puts console output into the
message buffer.
Differs from DragonFly: there is no terminal behind it, so reading ends at once (as there without a
console) and it is no controlling terminal.
Token and lock order: takes none. Nothing here waits.
Invariants: at most `LINE_MAX` bytes are kept back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dfuser.libkern.log import LOG_INFO

from .devsw import GID_WHEEL, UID_ROOT, Buffer, Cdev, DevOps

if TYPE_CHECKING:
    from dfuser.libkern.log import MsgBuf
    from dfuser.libkern.ucred import Ucred

    from .devlist import DevList

#: A line that grows longer than this is printed in pieces.
LINE_MAX: Final = 1024


class ConsoleOps(DevOps):
    """The driver of /dev/console. Counterpart: cn_ops (kern/tty_cons.c)."""

    __slots__ = ("msgbuf", "partial", "written")

    def __init__(self, msgbuf: MsgBuf) -> None:
        super().__init__("console")
        self.msgbuf = msgbuf
        self.partial = b""
        self.written = 0

    def attach(self, devices: DevList) -> None:
        """Make /dev/console."""
        devices.make_dev(self, 0, UID_ROOT, GID_WHEEL, 0o600, "console")

    def d_open(self, dev: Cdev, oflags: int, cred: Ucred) -> Any:
        """Anybody whom the permission bits let."""
        return None

    def d_close(self, dev: Cdev, fflag: int, priv: Any) -> None:
        """The last writer is gone: print what he left without a newline."""
        if self.partial:
            self._print(self.partial)
            self.partial = b""

    def d_read(self, dev: Cdev, offset: int, size: int, ioflag: int, priv: Any) -> Buffer:
        """End of file: nobody types here."""
        return b""

    def d_write(self, dev: Cdev, offset: int, data: Buffer, ioflag: int, priv: Any) -> int:
        """Print the lines that are complete."""
        text = self.partial + bytes(data)
        *lines, rest = text.split(b"\n")
        for line in lines:
            self._print(line)
        while len(rest) > LINE_MAX:
            self._print(rest[:LINE_MAX])
            rest = rest[LINE_MAX:]
        self.partial = rest
        self.written += len(data)
        return len(data)

    def _print(self, line: bytes) -> None:
        self.msgbuf.kprintf(line.decode("utf-8", "backslashreplace"), LOG_INFO)
