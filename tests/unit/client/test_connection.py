"""The blocking client against a real server on another thread."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dfuser.client import Connection, ConnectionLost, KernelError
from dfuser.client.wire import MAX_REQUEST, Decoder, Frame, Op

Script = Callable[[socket.socket, Decoder], None]


class FakeKernel:
    """A server that greets, then does what the script of a test says, for one connection."""

    def __init__(self, directory: str, script: Script, hello: Frame | None = None) -> None:
        self.path = str(Path(directory) / "s")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(1)
        self._script = script
        self._hello = hello or Frame(Op.REPLY, 0, 0, {"version": "fake"})
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        sock, _ = self._listener.accept()
        with sock, self._listener:
            decoder = Decoder(MAX_REQUEST)
            [hello] = decoder.feed(sock.recv(4096))
            assert hello.op == Op.HELLO
            sock.sendall(self._hello.encode())
            self._script(sock, decoder)


@pytest.fixture
def kernel() -> Iterator[Callable[..., FakeKernel]]:
    """Makes a fake kernel; its thread has ended when the test has."""
    made: list[FakeKernel] = []
    with tempfile.TemporaryDirectory(prefix="dfuser-") as directory:

        def make(script: Script, hello: Frame | None = None) -> FakeKernel:
            made.append(FakeKernel(directory, script, hello))
            return made[-1]

        yield make
        for one in made:
            one.thread.join(20)
            assert not one.thread.is_alive()


def take(sock: socket.socket, decoder: Decoder, count: int) -> list[Frame]:
    """So many frames from the client."""
    got: list[Frame] = []
    while len(got) < count:
        data = sock.recv(4096)
        assert data
        got += decoder.feed(data)
    return got


def test_replies_in_any_order_find_their_messages(kernel: Callable[..., FakeKernel]) -> None:
    # What if the last message is replied to first?
    def script(sock: socket.socket, decoder: Decoder) -> None:
        frames = take(sock, decoder, 3)
        for frame in reversed(frames):
            sock.sendall(Frame(Op.REPLY, frame.msgid, 0, frame.payload["args"]["n"]).encode())

    with Connection(kernel(script).path) as conn:
        assert conn.kernel == {"version": "fake"}
        msgs = [conn.sendmsg("p", "c", n=number) for number in range(3)]
        assert conn.waitmsg(msgs[0]) == 0
        assert [conn.waitport().value() for _ in range(2)] == [2, 1]
        assert all(msg.done for msg in msgs)


def test_an_error_is_raised_with_its_number_and_text(kernel: Callable[..., FakeKernel]) -> None:
    # What if the kernel refuses: is the number DragonFly's and the text the kernel's?
    def script(sock: socket.socket, decoder: Decoder) -> None:
        for payload in ({"error": "taken"}, None):
            [frame] = take(sock, decoder, 1)
            sock.sendall(Frame(Op.REPLY, frame.msgid, 16, payload).encode())

    with Connection(kernel(script).path) as conn:
        with pytest.raises(KernelError, match="taken") as caught:
            conn.domsg("p", "c")
        assert caught.value.errno == 16
        with pytest.raises(KernelError, match=r"p\.c failed"):
            conn.domsg("p", "c")


def test_an_abort_is_sent_only_for_what_is_open(kernel: Callable[..., FakeKernel]) -> None:
    # What if a message is aborted after its reply?
    def script(sock: socket.socket, decoder: Decoder) -> None:
        frame, abort = take(sock, decoder, 2)
        assert (abort.op, abort.msgid) == (Op.ABORT, frame.msgid)
        sock.sendall(Frame(Op.REPLY, frame.msgid, 85, {"error": "aborted"}).encode())
        assert sock.recv(4096) == b""

    with Connection(kernel(script).path) as conn:
        msg = conn.sendmsg("p", "c")
        conn.abortmsg(msg)
        with pytest.raises(KernelError, match="aborted"):
            conn.waitmsg(msg)
        conn.abortmsg(msg)


def test_a_kernel_that_goes_is_noticed(kernel: Callable[..., FakeKernel]) -> None:
    # What if the kernel is unmounted while a reply is awaited?
    def script(sock: socket.socket, decoder: Decoder) -> None:
        take(sock, decoder, 1)

    with Connection(kernel(script).path) as conn, pytest.raises(ConnectionLost):
        conn.domsg("p", "c")


def test_a_reason_for_the_end_is_told(kernel: Callable[..., FakeKernel]) -> None:
    # What if the kernel gave up on the connection and said why?
    def script(sock: socket.socket, decoder: Decoder) -> None:
        take(sock, decoder, 1)
        sock.sendall(Frame(Op.REPLY, 0, 89, {"error": "nonsense came"}).encode())

    with Connection(kernel(script).path) as conn, pytest.raises(ConnectionLost, match="nonsense"):
        conn.domsg("p", "c")


def test_a_server_that_speaks_something_else(kernel: Callable[..., FakeKernel]) -> None:
    # What if the socket belongs to another program?
    def script(sock: socket.socket, decoder: Decoder) -> None:
        take(sock, decoder, 1)
        sock.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

    with Connection(kernel(script).path) as conn, pytest.raises(ConnectionLost, match="protocol"):
        conn.domsg("p", "c")


def test_a_refused_client_hears_why(kernel: Callable[..., FakeKernel]) -> None:
    # What if the kernel does not want us: is that an error with a text?
    refusal = Frame(Op.REPLY, 0, 1, {"error": "not your kernel"})
    path = kernel(lambda *_: None, refusal).path
    with pytest.raises(KernelError, match="not your kernel"):
        Connection(path)


def test_waiting_has_an_end_when_asked_for(kernel: Callable[..., FakeKernel]) -> None:
    # What if the kernel does not answer at all?
    def script(sock: socket.socket, decoder: Decoder) -> None:
        [frame] = take(sock, decoder, 1)
        assert sock.recv(10)
        sock.sendall(Frame(Op.REPLY, frame.msgid, 0, "late").encode())

    with Connection(kernel(script).path) as conn:
        msg = conn.sendmsg("p", "c")
        with pytest.raises(TimeoutError):
            conn.waitmsg(msg, timeout=0.01)
        conn.abortmsg(msg)
        assert conn.waitmsg(msg) == "late"


def test_arguments_json_cannot_carry_send_nothing(kernel: Callable[..., FakeKernel]) -> None:
    # What if an argument is no JSON: is the connection still good?
    def script(sock: socket.socket, decoder: Decoder) -> None:
        [frame] = take(sock, decoder, 1)
        sock.sendall(Frame(Op.REPLY, frame.msgid, 0, "fine").encode())

    with Connection(kernel(script).path) as conn:
        with pytest.raises(TypeError):
            conn.sendmsg("p", "c", bad={1})
        assert conn.domsg("p", "c") == "fine"


def test_nobody_listens(tmp_path: Path) -> None:
    # What if the socket's file is there and its server is not?
    with pytest.raises(FileNotFoundError):
        Connection(str(tmp_path / "none"))
