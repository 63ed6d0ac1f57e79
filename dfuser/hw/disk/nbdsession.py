"""What a client of a network block device remembers, so that a lost connection loses nothing.

`NbdSession` stands between requests and connections, without I/O of its own. It cuts requests into
what the server takes at once, gives each piece a handle, keeps it until it is answered, and puts
answers together. When a connection breaks, it knows what to send on the next one:

1. *Unstable changes.* A server that has FLUSH has a cache, and it may have lost that with the
   connection (it may have crashed). So every completed write, trim and zero is remembered, with its
   data, until a flush that was sent after its completion is answered. They are sent again, in
   order, in batches with a flush behind each, so that even a server that fails every minute gets
   through. What is remembered is limited: past `REPLAY_BYTES` the session sends a flush of its own.
2. *Unanswered requests*, in the order in which they were submitted.

Until the first are answered, nothing of the second is sent, so that old data cannot overtake new.
All commands may be carried out twice without harm.

If the export has changed when the connection is back (smaller, read-only, or a flush is missing),
it is not the same disk: everything fails with ENXIO.

Counterpart: none in DragonFly.
Token/lock order: takes none.
Invariants: a piece is unsent or in flight, never both; a request completes when its last piece is
    answered, once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final, NamedTuple

from dfuser.libkern.errno import EIO, ENXIO, KError
from dfuser.libkern.linux_errno import from_linux

from . import nbdwire as wire
from .disk import CHANGING, Buffer, DiskCmd, DiskRequest

#: Bytes of unstable changes that are remembered before the session flushes by itself.
REPLAY_BYTES: Final = 64 << 20
#: Changes that are sent again at once; after each such batch comes a flush.
REPLAY_BATCH: Final = 32

_COMMANDS: Final = (
    None, wire.CMD_READ, wire.CMD_WRITE, wire.CMD_FLUSH, wire.CMD_TRIM, wire.CMD_WRITE_ZEROES,
)  # fmt: skip


class NbdSessionStatistics(NamedTuple):
    """What a session did.

    Attributes:
        connects: connections that got through the handshake. answers: pieces answered.
        inflight: pieces sent and not answered. unsent: pieces waiting to be sent.
        resent: pieces sent again after a lost connection. replayed: those that had completed.
        unstable: changes remembered for replay. unstable_bytes: their bytes.
        autoflushes: flushes the session sent by itself.
    """

    connects: int
    answers: int
    inflight: int
    unsent: int
    resent: int
    replayed: int
    unstable: int
    unstable_bytes: int
    autoflushes: int


class Work:
    """A request and the pieces it was cut into. ``left`` of them are not answered."""

    __slots__ = ("done", "error", "flushed", "left", "request")

    def __init__(self, request: DiskRequest | None, done: Callable[[int], object]) -> None:
        self.request = request
        self.done = done
        self.left = 0
        self.error = 0
        #: For a flush: number of unstable changes it makes stable.
        self.flushed = 0


class Piece:
    """What one request on the wire says, and whom its answer is for."""

    __slots__ = ("cmd", "data", "flags", "got", "length", "offset", "sent", "start", "work")

    def __init__(
        self,
        work: Work,
        cmd: int,
        offset: int,
        length: int,
        data: bytes | memoryview = b"",
        flags: int = 0,
        start: int = 0,
    ) -> None:
        self.work = work
        self.cmd = cmd
        self.offset = offset
        self.length = length
        self.data = data
        self.flags = flags
        #: Offset of the piece in its request, and bytes of a read that have come.
        self.start = start
        self.got = 0
        self.sent = False
        work.left += 1


class _Change(NamedTuple):
    """A completed change that may have to be sent again."""

    number: int
    cmd: int
    offset: int
    length: int
    data: bytes


class NbdSession:
    """The memory of a client. See the head of this module.

    Args:
        replay: bytes of unstable changes to remember; 0 remembers none and trusts the server.
    """

    def __init__(self, replay: int = REPLAY_BYTES) -> None:
        self.export: wire.Export | None = None
        self.connected = False
        self.dead = ""
        self.connects = 0
        self.answers = 0
        self.resent = 0
        self.replayed = 0
        self.autoflushes = 0
        self._replay = replay
        self._unsent: deque[Piece] = deque()
        self._replaying: deque[Piece] = deque()
        self._held: deque[Piece] = deque()
        self._inflight: dict[int, Piece] = {}
        self._changes: deque[_Change] = deque()
        self._change_number = 0
        self._change_bytes = 0
        self._flushing = False
        self._handle = 0
        self._decoder = wire.ReplyDecoder(self._expect)

    # --- what the server can ---------------------------------------------------------------

    def can(self, flag: int) -> bool:
        """Whether the export has a flag."""
        return self.export is not None and bool(self.export.flags & flag)

    # --- requests --------------------------------------------------------------------------

    def submit(self, request: DiskRequest, done: Callable[[int], object]) -> None:
        """Take a request; ``done`` is called with its errno when it is answered.

        The session must have been connected once. Nothing is sent here: see `output`.
        """
        work = Work(request, done)
        if self.dead:
            done(ENXIO)
            return
        for piece in self._cut(work, request):
            (self._held if self._replaying else self._unsent).append(piece)
        if not work.left:
            done(0)

    def _cut(self, work: Work, request: DiskRequest) -> list[Piece]:
        """The pieces of a request; none where the server has no such command and needs none."""
        cmd = request.cmd
        if cmd is DiskCmd.FLUSH:
            work.flushed = self._change_number
            if self.can(wire.FLAG_SEND_FLUSH):
                return [Piece(work, wire.CMD_FLUSH, 0, 0)]
            return []
        if cmd is DiskCmd.TRIM and not self.can(wire.FLAG_SEND_TRIM):
            return []
        zero_by_hand = cmd is DiskCmd.ZERO and not self.can(wire.FLAG_SEND_WRITE_ZEROES)
        number = wire.CMD_WRITE if zero_by_hand else _COMMANDS[cmd]
        assert number is not None
        flags = wire.CMD_FLAG_FUA if request.fua and self.can(wire.FLAG_SEND_FUA) else 0
        limit = self.export.maximum if self.export is not None else wire.MAX_PAYLOAD
        data = _joined(request.buffers) if cmd is DiskCmd.WRITE else memoryview(b"")
        pieces = []
        for start in range(0, request.length, limit):
            size = min(limit, request.length - start)
            part: bytes | memoryview = bytes(size) if zero_by_hand else data[start : start + size]
            pieces.append(Piece(work, number, request.offset + start, size, part, flags, start))
        if request.fua and not flags and self.can(wire.FLAG_SEND_FLUSH):
            self._then_flush(work)
        return pieces

    def _then_flush(self, work: Work) -> None:
        """A server without FUA: the write is followed by a flush before it is done."""
        outer = work.done

        def written(error: int) -> None:
            if error:
                outer(error)
            else:
                self.submit(DiskRequest(DiskCmd.FLUSH), outer)

        work.done = written

    def output(self) -> list[Buffer]:
        """What is to be sent now; pieces in it are in flight from here on."""
        out: list[Buffer] = []
        if not self.connected:
            return out
        queue = self._replaying if self._replaying else self._unsent
        for piece in queue:
            if piece.sent:
                continue
            self._handle += 1
            self._inflight[self._handle] = piece
            self.resent += piece.got < 0
            piece.got = 0
            piece.sent = True
            out.append(
                wire.pack_request(piece.cmd, self._handle, piece.offset, piece.length, piece.flags)
            )
            if piece.cmd == wire.CMD_WRITE:
                out.append(piece.data)
        if queue is self._unsent:
            self._unsent.clear()
        return out

    # --- answers ---------------------------------------------------------------------------

    def _expect(self, handle: int) -> int | None:
        piece = self._inflight.get(handle)
        if piece is None:
            return None
        return piece.length if piece.cmd == wire.CMD_READ else 0

    def input(self, data: bytes) -> None:
        """Take bytes from the server; completes requests.

        Raises:
            NbdError: the server broke the protocol; the connection is to be closed.
        """
        for chunk in self._decoder.feed(data):
            piece = self._inflight.get(chunk.handle)
            if piece is None:
                raise wire.NbdError(f"a reply to nothing ({chunk.handle})")
            self._take(piece, chunk)
            if chunk.done:
                del self._inflight[chunk.handle]
                self._answered(piece)

    def _take(self, piece: Piece, chunk: wire.Chunk) -> None:
        """One chunk of an answer."""
        work = piece.work
        if chunk.error == wire.ESHUTDOWN:
            raise wire.NbdError("the server is going away")
        if chunk.error:
            work.error = work.error or from_linux(chunk.error) or EIO
            return
        size = len(chunk.data) or chunk.hole
        if not size:
            return
        offset = piece.offset if chunk.offset < 0 else chunk.offset
        inside = piece.offset <= offset and offset + size <= piece.offset + piece.length
        if piece.cmd != wire.CMD_READ or not inside:
            raise wire.NbdError(f"{size} bytes at {offset} that nobody asked for")
        piece.got += size
        assert work.request is not None
        place = piece.start + offset - piece.offset
        _scatter(work.request.buffers, place, chunk.data or bytes(chunk.hole))

    def _answered(self, piece: Piece) -> None:
        """A piece is done."""
        work = piece.work
        if piece.cmd == wire.CMD_READ and not work.error and piece.got != piece.length:
            raise wire.NbdError(f"a read of {piece.length} bytes was answered with {piece.got}")
        self.answers += 1
        if work.request is None:
            self._replay_answered(piece)
            return
        if not work.error:
            self._remember(piece)
        work.left -= 1
        if not work.left:
            self._complete(work)

    def _complete(self, work: Work) -> None:
        request = work.request
        if request is not None and request.cmd is DiskCmd.FLUSH and not work.error:
            self._forget(work.flushed)
        work.done(work.error)

    def _remember(self, piece: Piece) -> None:
        """Keep a completed change until it is stable.

        One with FUA is stable, but an older one to the same place may not be, and would overtake it
        if it were sent again alone.
        """
        request = piece.work.request
        assert request is not None
        if request.cmd not in CHANGING:
            return
        if not self._replay or not self.can(wire.FLAG_SEND_FLUSH):
            return
        self._change_number += 1
        self._change_bytes += len(piece.data)
        self._changes.append(
            _Change(self._change_number, piece.cmd, piece.offset, piece.length, bytes(piece.data))
        )
        if self._change_bytes > self._replay and not self._flushing:
            self._flushing = True
            self.autoflushes += 1
            self.submit(DiskRequest(DiskCmd.FLUSH), self._flushed)

    def _flushed(self, _error: int) -> None:
        self._flushing = False

    def _forget(self, number: int) -> None:
        """Changes up to this number are stable."""
        changes = self._changes
        while changes and changes[0].number <= number:
            self._change_bytes -= len(changes.popleft().data)

    # --- connections -----------------------------------------------------------------------

    def connection_made(self, export: wire.Export) -> None:
        """A handshake is over: what was lost is to be sent again.

        Raises:
            KError: ENXIO, it is not the same export any more; the session is dead.
        """
        old = self.export
        if old is not None and (
            export.size < old.size
            or old.flags & ~export.flags & _NEEDED
            or export.flags & ~old.flags & wire.FLAG_READ_ONLY
        ):
            self.kill("the export has changed")
            raise KError(ENXIO, self.dead)
        if old is not None:
            limit = min(old.maximum, export.maximum)
            if limit < old.maximum and (self._unsent or self._held):
                self.kill("the server takes less at once than before")
                raise KError(ENXIO, self.dead)
        self.export = export if old is None else export._replace(size=old.size)
        self.connected = True
        self.connects += 1
        self._decoder = wire.ReplyDecoder(self._expect, export.maximum)
        if self._changes:
            self._held, self._unsent = self._unsent, deque()
            self._next_batch()

    def _next_batch(self) -> None:
        """Send the oldest unstable changes again; go on with requests when there are none left."""
        batch = list(islice(self._changes, REPLAY_BATCH))
        if not batch:
            self._unsent, self._held = self._held, deque()
            return
        work = Work(None, _ignore)
        for change in batch:
            self._replaying.append(
                Piece(work, change.cmd, change.offset, change.length, change.data)
            )
        work.flushed = batch[-1].number
        self.replayed += len(batch)

    def _replay_answered(self, piece: Piece) -> None:
        """One unstable change is on the server again, or a flush has made a batch stable."""
        work = piece.work
        work.left -= 1
        if work.left:
            return
        self._replaying.clear()
        if work.error:
            self.kill("changes could not be sent again")
        elif piece.cmd == wire.CMD_FLUSH:
            self._forget(work.flushed)
            self._next_batch()
        else:
            flush = Work(None, _ignore)
            flush.flushed = work.flushed
            self._replaying.append(Piece(flush, wire.CMD_FLUSH, 0, 0))

    def connection_lost(self) -> None:
        """The connection is gone: what was not answered is to be sent again, in order."""
        self.connected = False
        inflight = sorted(self._inflight.items())
        self._inflight.clear()
        mine = [piece for _, piece in inflight if piece.work.request is not None]
        for piece in mine:
            piece.got = -1
            piece.sent = False
        waiting = self._held if self._replaying else self._unsent
        self._replaying.clear()
        self._held = deque()
        self._unsent = deque((*mine, *waiting))

    def kill(self, why: str) -> None:
        """Fail everything, now and from now on, with ENXIO."""
        self.dead = why
        self.connected = False
        pieces = (*self._inflight.values(), *self._held, *self._unsent)
        works = dict.fromkeys(piece.work for piece in pieces)
        for queue in (self._held, self._unsent, self._replaying, self._changes):
            queue.clear()
        self._inflight.clear()
        self._change_bytes = 0
        for work in works:
            if work.request is not None:
                work.done(ENXIO)

    @property
    def busy(self) -> bool:
        """Whether anything is not answered."""
        return bool(self._inflight or self._unsent or self._held or self._replaying)

    def statistics(self) -> NbdSessionStatistics:
        """What it did."""
        return NbdSessionStatistics(
            connects=self.connects,
            answers=self.answers,
            inflight=len(self._inflight),
            unsent=len(self._unsent) + len(self._held),
            resent=self.resent,
            replayed=self.replayed,
            unstable=len(self._changes),
            unstable_bytes=self._change_bytes,
            autoflushes=self.autoflushes,
        )


def _ignore(_error: int) -> None:
    """Nobody waits for what the session sends by itself."""


#: Flags an export must not lose.
_NEEDED: Final = wire.FLAG_SEND_FLUSH | wire.FLAG_SEND_TRIM | wire.FLAG_SEND_WRITE_ZEROES


def _joined(buffers: object) -> memoryview:
    """The data of a write as one piece of memory."""
    parts = list(buffers)  # type: ignore[call-overload]
    return memoryview(parts[0] if len(parts) == 1 else b"".join(parts))


def _scatter(buffers: object, place: int, data: Buffer) -> None:
    """Put data into the buffers of a read, from byte ``place`` on."""
    view = memoryview(data)
    for buffer in buffers:  # type: ignore[attr-defined]
        size = len(buffer)
        if place < size:
            part = view[: size - place]
            buffer[place : place + len(part)] = part
            view = view[len(part) :]
            place = 0
            if not view:
                return
        else:
            place -= size
