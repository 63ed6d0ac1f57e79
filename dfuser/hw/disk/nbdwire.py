"""The protocol of network block devices: bytes in, values out, no I/O.

A connection has two lives. First the *handshake* (`Handshake`): the server says what it speaks, the
client asks for structured replies and for an export by name, the server tells its size, what it
can, and which block sizes it likes::

    S  NBDMAGIC IHAVEOPT flags
    C  flags, option STRUCTURED_REPLY            S  ACK | ERR_UNSUP
    C  option GO name [BLOCK_SIZE]               S  INFO EXPORT, INFO BLOCK_SIZE, ACK | ERR_...
    C  option EXPORT_NAME name (old servers)     S  size, flags

Then *transmission*: requests with a handle, replies in any order (`pack_request`, `ReplyDecoder`).
A simple reply is an error and, for a read, all its bytes. A structured reply comes in chunks: data,
holes, errors, with the last one marked.

Everything a server may send is checked: `NbdError` means that it broke the protocol or refused, and
that the connection is of no more use.

Counterpart: none in DragonFly. Specification: doc/proto.md of the nbd project.
Differs from a full client: fixed newstyle and newstyle only (no oldstyle), no TLS, no metadata
    contexts, no 64-bit lengths.
Token/lock order: takes none.
Invariants: a decoder never keeps more than one reply's bytes and what was fed last.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

NBDMAGIC: Final = b"NBDMAGIC"
IHAVEOPT: Final = b"IHAVEOPT"
DEFAULT_PORT: Final = 10809

# Flags of the handshake.
FLAG_FIXED_NEWSTYLE: Final = 0x1
FLAG_NO_ZEROES: Final = 0x2

# Options and their replies.
OPT_EXPORT_NAME: Final = 1
OPT_ABORT: Final = 2
OPT_GO: Final = 7
OPT_STRUCTURED_REPLY: Final = 8
OPT_REPLY_MAGIC: Final = 0x3E889045565A9
REP_ACK: Final = 1
REP_INFO: Final = 3
REP_ERR: Final = 0x8000_0000
INFO_EXPORT: Final = 0
INFO_BLOCK_SIZE: Final = 3

# Flags of an export.
FLAG_HAS_FLAGS: Final = 0x0001
FLAG_READ_ONLY: Final = 0x0002
FLAG_SEND_FLUSH: Final = 0x0004
FLAG_SEND_FUA: Final = 0x0008
FLAG_ROTATIONAL: Final = 0x0010
FLAG_SEND_TRIM: Final = 0x0020
FLAG_SEND_WRITE_ZEROES: Final = 0x0040
FLAG_SEND_DF: Final = 0x0080
FLAG_CAN_MULTI_CONN: Final = 0x0100

# Commands and their flags.
CMD_READ: Final = 0
CMD_WRITE: Final = 1
CMD_DISC: Final = 2
CMD_FLUSH: Final = 3
CMD_TRIM: Final = 4
CMD_WRITE_ZEROES: Final = 6
CMD_FLAG_FUA: Final = 0x1

# Replies.
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_MAGIC: Final = 0x67446698
STRUCTURED_MAGIC: Final = 0x668E33EF
REPLY_FLAG_DONE: Final = 0x1
REPLY_NONE: Final = 0
REPLY_OFFSET_DATA: Final = 1
REPLY_OFFSET_HOLE: Final = 2
REPLY_ERROR: Final = 0x8001
REPLY_ERROR_OFFSET: Final = 0x8002
#: The error of a server that is going away.
ESHUTDOWN: Final = 108

#: Largest request where the server names no limit.
MAX_PAYLOAD: Final = 32 << 20
#: Longest option reply that is believed, and longest name.
OPTION_MAX: Final = 64 << 10
NAME_MAX: Final = 4096

_REQUEST: Final = struct.Struct(">IHHQQI")
_SIMPLE: Final = struct.Struct(">IIQ")
_STRUCTURED: Final = struct.Struct(">IHHQI")
_OPTION: Final = struct.Struct(">8sII")
_OPTION_REPLY: Final = struct.Struct(">QIII")

#: Why a server refuses an option, by the number of its reply less `REP_ERR`.
REFUSALS: Final = (
    "", "it does not know this option", "its policy forbids it", "it found the request invalid",
    "it does not support this here", "it wants TLS, which is not there",
    "it has no export of that name", "it is shutting down",
    "it wants the client to ask for its block size", "the request is too long for it",
)  # fmt: skip


class NbdError(Exception):
    """The server broke the protocol, or refused; the text says how."""


class NbdAddress(NamedTuple):
    """Where a server is.

    Attributes:
        export: name of the export, often empty.
        path: of a Unix-domain socket; empty for TCP.
        host, port: of TCP.
    """

    export: str = ""
    path: str = ""
    host: str = "localhost"
    port: int = DEFAULT_PORT

    @classmethod
    def parse(cls, text: str) -> NbdAddress:
        """Read ``nbd://host[:port][/export]`` or ``nbd+unix:///[export]?socket=path``.

        Raises:
            ValueError: it is neither; the text says what is wrong.
        """
        parts = urlsplit(text)
        if parts.scheme == "nbd":
            if not parts.hostname:
                raise ValueError(f"{text}: no host")
            port = parts.port if parts.port is not None else DEFAULT_PORT
            return cls(unquote(parts.path[1:]), "", parts.hostname, port)
        if parts.scheme == "nbd+unix":
            path = parse_qs(parts.query).get("socket", [""])[0]
            if not path:
                raise ValueError(f"{text}: no socket=")
            return cls(unquote(parts.path[1:]), path)
        raise ValueError(f"{text}: neither nbd:// nor nbd+unix://")

    def __str__(self) -> str:
        if self.path:
            return f"nbd+unix:///{self.export}?socket={self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"nbd://{host}:{self.port}/{self.export}"


class Export(NamedTuple):
    """What a server says of an export.

    Attributes:
        size: bytes.
        flags: FLAG_READ_ONLY to FLAG_CAN_MULTI_CONN.
        minimum, preferred, maximum: block sizes; the largest payload is the last one.
        structured: whether replies may come in chunks.
    """

    size: int
    flags: int
    minimum: int = 1
    preferred: int = 4096
    maximum: int = MAX_PAYLOAD
    structured: bool = False


class Handshake:
    """The client's half of the handshake.

    `feed` takes what the server sends and returns what to send to it. When ``export`` is set, the
    handshake is over, and ``rest`` holds bytes that came too early to belong to it.

    Args:
        name: of the export.
        structured: whether to ask for structured replies.
    """

    __slots__ = ("_agreed", "_ask", "_buffer", "_info", "_name", "_state", "_zeroes", "export")

    def __init__(self, name: str = "", *, structured: bool = True) -> None:
        self._name = name.encode()
        if len(self._name) > NAME_MAX:
            raise NbdError(f"the name of an export has at most {NAME_MAX} bytes")
        self._ask = structured
        self._agreed = False
        self._buffer = bytearray()
        self._state: Callable[[], bytes | None] = self._greeting
        self._zeroes = True
        self._info: Export | None = None
        self.export: Export | None = None

    @property
    def rest(self) -> bytes:
        """Bytes behind the handshake."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the server.

        Raises:
            NbdError: it is no server of ours, or refuses.
        """
        self._buffer += data
        if len(self._buffer) > OPTION_MAX + 64 and self.export is None:
            raise NbdError("the server sends without end")
        answer = b""
        while self.export is None:
            step = self._state()
            if step is None:
                break
            answer += step
        return answer

    def _take(self, size: int) -> bytes | None:
        if len(self._buffer) < size:
            return None
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _greeting(self) -> bytes | None:
        """NBDMAGIC, IHAVEOPT, flags."""
        if len(self._buffer) >= 8 and self._buffer[:8] != NBDMAGIC:
            raise NbdError("this is no NBD server")
        if len(self._buffer) >= 16 and self._buffer[8:16] != IHAVEOPT:
            raise NbdError("the server speaks the protocol of before 2011")
        data = self._take(18)
        if data is None:
            return None
        flags = int.from_bytes(data[16:], "big")
        self._zeroes = not flags & FLAG_NO_ZEROES
        mine = flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)
        answer = mine.to_bytes(4, "big")
        if not flags & FLAG_FIXED_NEWSTYLE:
            return answer + self._export_name()
        if self._ask:
            self._state = self._structured_reply
            return answer + pack_option(OPT_STRUCTURED_REPLY)
        return answer + self._go()

    def _go(self) -> bytes:
        self._state = self._go_reply
        body = struct.pack(">I", len(self._name)) + self._name
        return pack_option(OPT_GO, body + struct.pack(">HH", 1, INFO_BLOCK_SIZE))

    def _export_name(self) -> bytes:
        self._state = self._export_reply
        return pack_option(OPT_EXPORT_NAME, self._name)

    def _reply(self, option: int) -> tuple[int, bytes] | None:
        """The next reply to an option: its type and its body."""
        if len(self._buffer) < _OPTION_REPLY.size:
            return None
        magic, about, kind, length = _OPTION_REPLY.unpack_from(self._buffer)
        if magic != OPT_REPLY_MAGIC or about != option:
            raise NbdError(f"no reply to option {option}")
        if length > OPTION_MAX:
            raise NbdError(f"a reply of {length} bytes to option {option}")
        data = self._take(_OPTION_REPLY.size + length)
        return None if data is None else (kind, data[_OPTION_REPLY.size :])

    def _structured_reply(self) -> bytes | None:
        reply = self._reply(OPT_STRUCTURED_REPLY)
        if reply is None:
            return None
        self._agreed = reply[0] == REP_ACK
        return self._go()

    def _go_reply(self) -> bytes | None:
        reply = self._reply(OPT_GO)
        if reply is None:
            return None
        kind, body = reply
        if kind == REP_INFO:
            self._note(body)
        elif kind == REP_ACK:
            if self._info is None:
                raise NbdError("the server did not tell the size of the export")
            self._finish(self._info)
        elif kind == REP_ERR | 1:
            return self._export_name()
        elif kind & REP_ERR:
            number = kind & ~REP_ERR
            why = REFUSALS[number] if number < len(REFUSALS) else f"error {number}"
            words = body.decode("utf-8", "replace")[:200]
            said = f' ("{words}")' if words else ""
            raise NbdError(f"the server refuses export {self._name.decode()!r}: {why}{said}")
        return b""

    def _note(self, body: bytes) -> None:
        """One piece of information about the export."""
        if len(body) < 2:
            raise NbdError("an information without a type")
        kind = int.from_bytes(body[:2], "big")
        info = self._info or Export(0, 0)
        if kind == INFO_EXPORT:
            if len(body) != 12:
                raise NbdError("an export of odd length")
            size, flags = struct.unpack(">QH", body[2:])
            self._info = info._replace(size=size, flags=flags)
        elif kind == INFO_BLOCK_SIZE:
            if len(body) != 14:
                raise NbdError("block sizes of odd length")
            low, middle, high = struct.unpack(">III", body[2:])
            good = low and not low & (low - 1) and low <= 65536 and high >= max(low, 4096)
            if not good or middle & (middle - 1):
                raise NbdError(f"block sizes {low}, {middle}, {high}")
            self._info = info._replace(
                minimum=low, preferred=middle, maximum=min(high, MAX_PAYLOAD) // low * low
            )

    def _export_reply(self) -> bytes | None:
        """The answer to EXPORT_NAME: no header, and a closed connection for a refusal."""
        data = self._take(134 if self._zeroes else 10)
        if data is not None:
            size, flags = struct.unpack_from(">QH", data)
            self._finish(Export(size, flags))
        return b"" if data is not None else None

    def _finish(self, info: Export) -> None:
        if not info.flags & FLAG_HAS_FLAGS:
            raise NbdError("the export has no flags")
        if info.size >= 1 << 63:
            raise NbdError(f"an export of {info.size} bytes")
        self.export = info._replace(structured=self._agreed)


def pack_option(option: int, body: bytes = b"") -> bytes:
    """An option of the handshake."""
    return _OPTION.pack(IHAVEOPT, option, len(body)) + body


def pack_request(cmd: int, handle: int, offset: int = 0, length: int = 0, flags: int = 0) -> bytes:
    """The head of a request; a write's data follow it."""
    return _REQUEST.pack(REQUEST_MAGIC, flags, cmd, handle, offset, length)


class Chunk(NamedTuple):
    """One piece of a reply.

    Attributes:
        handle: of the request.
        done: whether it is the last piece.
        error: 0, or an errno as the protocol (and Linux) counts them.
        offset: where the data belong on the disk; -1: they are all of the request.
        data: of a read, or nothing.
        hole: bytes that are zeroes, from ``offset`` on.
    """

    handle: int
    done: bool
    error: int = 0
    offset: int = -1
    data: bytes = b""
    hole: int = 0


class ReplyDecoder:
    """Makes chunks of the bytes a server sends.

    Args:
        expect: how many bytes the simple reply to a handle brings if there is no error; None for a
            handle that is unknown.
        maximum: most bytes of a chunk.
    """

    __slots__ = ("_buffer", "_expect", "_maximum")

    def __init__(self, expect: Callable[[int], int | None], maximum: int = MAX_PAYLOAD) -> None:
        self._buffer = bytearray()
        self._expect = expect
        self._maximum = maximum + 64

    def feed(self, data: bytes) -> list[Chunk]:
        """Take bytes; returns the chunks that are complete.

        Raises:
            NbdError: the server broke the protocol.
        """
        buffer = self._buffer
        buffer += data
        chunks = []
        at = 0
        while True:
            size, chunk = self._one(at)
            if chunk is None:
                break
            chunks.append(chunk)
            at += size
        if at:
            del buffer[:at]
        return chunks

    def _one(self, at: int) -> tuple[int, Chunk | None]:
        """The reply that begins at ``at``: its length, and its chunk if it is all there."""
        buffer = self._buffer
        have = len(buffer) - at
        if have < 4:
            return 0, None
        magic = int.from_bytes(buffer[at : at + 4], "big")
        if magic == SIMPLE_MAGIC:
            return self._simple(at, have)
        if magic == STRUCTURED_MAGIC:
            return self._structured(at, have)
        raise NbdError(f"a reply begins with {magic:#x}")

    def _simple(self, at: int, have: int) -> tuple[int, Chunk | None]:
        if have < _SIMPLE.size:
            return 0, None
        _magic, error, handle = _SIMPLE.unpack_from(self._buffer, at)
        length = self._expect(handle)
        if length is None:
            raise NbdError(f"a reply to nothing ({handle})")
        size = _SIMPLE.size + (0 if error else length)
        if have < size:
            return 0, None
        data = bytes(memoryview(self._buffer)[at + _SIMPLE.size : at + size])
        return size, Chunk(handle, True, error, -1, data)

    def _structured(self, at: int, have: int) -> tuple[int, Chunk | None]:
        if have < _STRUCTURED.size:
            return 0, None
        _magic, flags, kind, handle, length = _STRUCTURED.unpack_from(self._buffer, at)
        if self._expect(handle) is None:
            raise NbdError(f"a reply to nothing ({handle})")
        if length > self._maximum:
            raise NbdError(f"a chunk of {length} bytes")
        size = _STRUCTURED.size + length
        if have < size:
            return 0, None
        body = bytes(memoryview(self._buffer)[at + _STRUCTURED.size : at + size])
        return size, _chunk(handle, bool(flags & REPLY_FLAG_DONE), kind, body)


def _chunk(handle: int, done: bool, kind: int, body: bytes) -> Chunk:
    """The chunk of a structured reply.

    Raises:
        NbdError: its length is not that of its type, or its type is unknown and no error.
    """
    if kind == REPLY_NONE and not body and done:
        return Chunk(handle, done)
    if kind == REPLY_OFFSET_DATA and len(body) > 8:
        return Chunk(handle, done, 0, int.from_bytes(body[:8], "big"), body[8:])
    if kind == REPLY_OFFSET_HOLE and len(body) == 12:
        offset, hole = struct.unpack(">QI", body)
        return Chunk(handle, done, 0, offset, b"", hole)
    if kind & 0x8000 and len(body) >= 6:
        error = int.from_bytes(body[:4], "big")
        if not error:
            raise NbdError("an error of 0")
        return Chunk(handle, done, error)
    raise NbdError(f"a chunk of type {kind} with {len(body)} bytes")
