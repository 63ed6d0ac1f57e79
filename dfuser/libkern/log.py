"""The kernel's message buffer: what kprintf says, kept in a bounded ring.

Everything the kernel has to tell its operator ("mounted /tmp", "ring full, dropped 3
packets", the report of a failed request) goes through one place. The text is kept in a
ring of bytes; when it is full the oldest text makes room. dmesg(8) shows the ring;
/dev/klog hands out new text as it comes.

A reader remembers a *sequence number*: how many bytes had been written, ever, when he
last read. `read_since` gives him what came after, and tells him how many bytes were lost
in between if the ring has moved on past him. So any number of readers can follow, slow
ones cost nothing, and nobody is lied to.

Counterpart: struct msgbuf (sys/msgbuf.h), kern/subr_prf.c, kern/subr_log.c,
    sys/syslog.h.
Differs from DragonFly: 64 KiB by default instead of 1 MiB; one call is one message, and
    a newline is added when it has none, so lines of different callers never mix.
Token/lock order: takes none; may be called anywhere, by interrupts and while panicking.
Invariants: 0 <= seq - first_seq <= size; kprintf never raises and never suspends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from dfuser.libkern.errno import EINVAL, ENOMEM, KError
from dfuser.libkern.sysctl import INT, LONG, RD, RW, SKIP, STRING, Sysctl

LOG_EMERG: Final = 0
LOG_ALERT: Final = 1
LOG_CRIT: Final = 2
LOG_ERR: Final = 3
LOG_WARNING: Final = 4
LOG_NOTICE: Final = 5
LOG_INFO: Final = 6
LOG_DEBUG: Final = 7

LOG_KERN: Final = 0 << 3
LOG_USER: Final = 1 << 3
LOG_PRIMASK: Final = 0x07
LOG_FACMASK: Final = 0x03F8

LEVEL_NAMES: Final = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")

MSGBUF_SIZE: Final = 64 * 1024
LISTENERS_MAX: Final = 1024


class MsgChunk(NamedTuple):
    """What a reader gets.

    Attributes:
        seq: give this to the next `MsgBuf.read_since`.
        lost: bytes that were overwritten before this reader came for them.
        data: the text, undecoded.
    """

    seq: int
    lost: int
    data: bytes


class MsgBufStatistics(NamedTuple):
    """How much was said.

    Attributes:
        size: bytes the ring holds.
        used: bytes that can be read.
        seq: bytes written since boot.
        overwritten: bytes that made room.
        messages: calls of kprintf and log.
        by_level: messages for each level, LOG_EMERG first.
        listeners: who is told of new text.
        listener_errors: listeners that failed and were dropped.
    """

    size: int
    used: int
    seq: int
    overwritten: int
    messages: int
    by_level: tuple[int, ...]
    listeners: int
    listener_errors: int


class MsgBuf:
    """The message buffer of one kernel.

    Counterpart: struct msgbuf (sys/msgbuf.h).
    """

    sysctls = (
        Sysctl("kern.msgbuf", "Contents of the kernel message buffer", getter="text",
               kind=STRING, flags=RD | SKIP),
        Sysctl("kern.msgbuf_clear", "Write 1 to clear the kernel message buffer",
               getter=lambda _: 0, setter="sysctl_clear", kind=INT, flags=RW, minimum=0,
               maximum=1),
        Sysctl("kern.msgbuf_size", "Bytes the kernel message buffer holds", attr="size"),
        Sysctl("kern.msgbuf_overwritten", "Bytes of messages that made room for newer ones",
               getter="overwritten", kind=LONG),
    )  # fmt: skip

    def __init__(self, size: int = MSGBUF_SIZE) -> None:
        """Make an empty buffer of so many bytes.

        Raises:
            ValueError: size is not positive.
        """
        if size <= 0:
            raise ValueError("the message buffer needs room")
        self.size = size
        self.seq = 0
        self._ring = bytearray(size)
        self._cleared = 0
        self._by_level = [0] * 8
        self._messages = 0
        self._listeners: list[Callable[[], None]] = []
        self._listener_errors = 0

    @property
    def first_seq(self) -> int:
        """Sequence number of the oldest byte that can still be read."""
        return max(self._cleared, self.seq - self.size)

    def overwritten(self) -> int:
        """Bytes that made room for newer text since boot."""
        return max(0, self.seq - self.size)

    def kprintf(self, text: str, level: int = LOG_INFO) -> None:
        """Say something; a message without a newline at its end gets one.

        Never raises and never suspends. Text that no encoding can hold is escaped.

        Args:
            text: one message, of one or more lines. Longer than the ring, its end is kept.
            level: LOG_EMERG to LOG_DEBUG, counted but not printed; see `log`.
        """
        if not text.endswith("\n"):
            text += "\n"
        data = text.encode("utf-8", "backslashreplace")
        self._messages += 1
        self._by_level[level & LOG_PRIMASK] += 1
        self._append(data)
        self._wake()

    def log(self, level: int, text: str) -> None:
        """Say something to syslogd as well: the message carries its level as ``<4>``.

        Counterpart: log(9).
        """
        self.kprintf(f"<{level & (LOG_PRIMASK | LOG_FACMASK)}>{text}", level)

    def read_since(self, seq: int, limit: int | None = None) -> MsgChunk:
        """Give a reader what was written after a sequence number.

        Args:
            seq: 0 for everything that is kept, else the `MsgChunk.seq` of the last read.
            limit: most bytes to give; the rest comes with the next read.

        Raises:
            KError: EINVAL, the number is negative or was never reached, or limit is
                negative.
        """
        if not 0 <= seq <= self.seq or (limit is not None and limit < 0):
            raise KError(EINVAL, "no such sequence number")
        start = max(seq, self.first_seq)
        end = self.seq if limit is None else min(self.seq, start + limit)
        return MsgChunk(end, start - seq, self._slice(start, end))

    def text(self) -> str:
        """Everything that is kept, as text; the first line may be cut."""
        return self.read_since(0).data.decode("utf-8", "replace")

    def tail(self, lines: int) -> list[str]:
        """The last lines, oldest first, without newlines."""
        return self.text().splitlines()[-lines:] if lines > 0 else []

    def clear(self) -> None:
        """Forget the text (dmesg -c); sequence numbers go on, nothing counts as lost."""
        self._cleared = self.seq

    def sysctl_clear(self, value: int) -> None:
        """Setter of kern.msgbuf_clear."""
        if value:
            self.clear()

    def listen(self, listener: Callable[[], None]) -> None:
        """Ask to be called after new text has come; the call must not suspend.

        A listener that raises is dropped and counted: the log must go on.

        Raises:
            KError: ENOMEM, LISTENERS_MAX are listening already.
        """
        if len(self._listeners) >= LISTENERS_MAX:
            raise KError(ENOMEM, "too many listeners of the kernel log")
        self._listeners.append(listener)

    def unlisten(self, listener: Callable[[], None]) -> None:
        """Stop being called; harmless when not listening."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def statistics(self) -> MsgBufStatistics:
        """Count what was said and what was lost."""
        return MsgBufStatistics(
            size=self.size,
            used=self.seq - self.first_seq,
            seq=self.seq,
            overwritten=self.overwritten(),
            messages=self._messages,
            by_level=tuple(self._by_level),
            listeners=len(self._listeners),
            listener_errors=self._listener_errors,
        )

    def _append(self, data: bytes) -> None:
        """Copy bytes into the ring, its end joined to its beginning."""
        kept = data[-self.size :]
        start = (self.seq + len(data) - len(kept)) % self.size
        head = min(len(kept), self.size - start)
        self._ring[start : start + head] = kept[:head]
        self._ring[: len(kept) - head] = kept[head:]
        self.seq += len(data)

    def _slice(self, start: int, end: int) -> bytes:
        """Copy the bytes between two sequence numbers that are still in the ring."""
        first = start % self.size
        length = end - start
        head = bytes(self._ring[first : first + min(length, self.size - first)])
        return head + bytes(self._ring[: length - len(head)])

    def _wake(self) -> None:
        """Call the listeners; one that fails is out."""
        for listener in tuple(self._listeners):
            try:
                listener()
            except Exception:
                self._listener_errors += 1
                self.unlisten(listener)
