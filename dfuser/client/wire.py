"""The frames of the control socket. No I/O here.

A frame is a 20 byte header and a JSON payload in UTF-8::

    offset  size  field
    0       4     magic, "DFMP"
    4       1     version, 1
    5       1     operation (Op)
    6       2     flags, 0
    8       4     message id, chosen by the client, unique among its open messages
    12      4     error: DragonFly's errno in a reply, 0 otherwise (signed)
    16      4     length of the payload in bytes

All integers are little endian; flags are reserved and ignored. A connection begins with HELLO in
both directions. Bytes that are no frame end the connection, because nobody can say where the next
frame begins: the server first sends a REPLY for message 0 with error 43 (EPROTONOSUPPORT: a version
that is not spoken) or 89 (EBADMSG: anything else) and a text.

The same codec serves both ends.
Invariants: however a stream is cut into pieces, the same frames come out; every whole frame before
a corrupt one is delivered.
"""

from __future__ import annotations

import enum
import json
import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

MAGIC: Final = b"DFMP"
VERSION: Final = 1
HEADER: Final = struct.Struct("<4sBBHIiI")
#: Payloads are refused beyond this size: towards the kernel, and from it.
MAX_REQUEST: Final = 1 << 20
MAX_REPLY: Final = 64 << 20
#: DragonFly's numbers for a version that is not spoken here, and for bytes that are no frame.
EPROTONOSUPPORT: Final = 43
EBADMSG: Final = 89
#: Message ids are this wide.
MSGID_MASK: Final = 0xFFFFFFFF


class Op(enum.IntEnum):
    """What a frame asks or answers."""

    HELLO = 1
    """Client: who it is. Server: the kernel, its instance, the ports there are."""
    SENDMSG = 2
    """A message to a port: ``{"port": ..., "cmd": ..., "args": {...}}``."""
    REPLY = 3
    """The reply to a message: its result, or the error of the header and ``{"error": text}``."""
    ABORT = 4
    """Asks for an early reply to the message of this id; it may come too late and do nothing."""


class WireError(ValueError):
    """The bytes are not frames of this protocol. The connection cannot go on.

    ``errno`` is EPROTONOSUPPORT or EBADMSG.
    """

    def __init__(self, text: str, errno: int = EBADMSG) -> None:
        super().__init__(text)
        self.errno = errno


class Frame(NamedTuple):
    """One frame, decoded."""

    op: int
    msgid: int
    error: int
    payload: Any

    def encode(self) -> bytes:
        """The bytes on the socket. Raises TypeError or ValueError for what JSON cannot carry."""
        body = b"" if self.payload is None else json.dumps(self.payload).encode()
        return HEADER.pack(MAGIC, VERSION, self.op, 0, self.msgid, self.error, len(body)) + body


class Decoder:
    """Cuts a stream of bytes into frames.

    Args:
        limit: the longest payload to accept.
    """

    __slots__ = ("_buffer", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take ``data`` in and give the frames it completes.

        Raises `WireError` after the last whole frame before the corruption. The frames must be
        taken to the end before the next `feed`.
        """
        self._buffer += data
        while (end := self._measure()) and len(self._buffer) >= end:
            body = bytes(self._buffer[HEADER.size : end])
            _, _, op, _, msgid, error, _ = HEADER.unpack_from(self._buffer)
            del self._buffer[:end]
            yield Frame(op, msgid, error, _parse(body))

    def _measure(self) -> int:
        """The length of the first frame in the buffer, 0 while its header is not all there."""
        if len(self._buffer) < HEADER.size:
            if not self._buffer.startswith(MAGIC[: len(self._buffer)]):
                raise WireError("not a dfuser control message")
            return 0
        magic, version, _, _, _, _, length = HEADER.unpack_from(self._buffer)
        if magic != MAGIC:
            raise WireError("not a dfuser control message")
        if version != VERSION:
            raise WireError(
                f"protocol version {version} is not spoken here, {VERSION} is", EPROTONOSUPPORT
            )
        if length > self.limit:
            raise WireError(f"a message of {length} bytes is over the limit of {self.limit}")
        return HEADER.size + int(length)

    @property
    def pending(self) -> int:
        """Bytes of an incomplete frame."""
        return len(self._buffer)


def _parse(body: bytes) -> Any:
    if not body:
        return None
    try:
        return json.loads(body)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise WireError(f"the payload is not JSON: {error}") from None
