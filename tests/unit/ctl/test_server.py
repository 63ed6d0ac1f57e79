"""The control socket: good peers, bad peers, slow peers."""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

import pytest
import trio
import trio.testing

from dfuser.client.wire import HEADER, MAGIC, MAX_REQUEST, VERSION, Frame, Op
from dfuser.ctl import server
from dfuser.libkern.errno import (
    EAGAIN,
    EBADMSG,
    EBUSY,
    ECANCELED,
    EFBIG,
    EINVAL,
    EIO,
    ENOENT,
    ENOSYS,
    EPERM,
    EPROTONOSUPPORT,
)
from dfuser.vfs.hostcache import NullHostCache

from .conftest import Place, message


async def test_a_message_is_served_and_the_ports_are_told(place: Place) -> None:
    # What if everything is as it should be?
    peer = await place.connect()
    about = await peer.hello()
    assert about["version"] == "test"
    assert about["ports"]["echo"]["say"] == "Give the value back."
    assert "hidden" not in about["ports"]["echo"]
    reply = await peer.call("say", 77, value=[1, None, "x"])
    assert (reply.op, reply.msgid, reply.error, reply.payload) == (Op.REPLY, 77, 0, [1, None, "x"])
    assert place.control.statistics().messages == 1
    assert place.service.statistics().served == 1


@pytest.mark.parametrize(
    ("payload", "errno"),
    [
        (None, EINVAL),
        (3, EINVAL),
        ({}, EINVAL),
        ({"port": ["echo"], "cmd": "say"}, EINVAL),
        ({"port": "echo", "cmd": {"a": 1}}, EINVAL),
        ({"port": "echo", "cmd": "say", "args": [1]}, EINVAL),
        ({"port": "nobody", "cmd": "say"}, ENOENT),
        ({"port": "echo", "cmd": "nothing"}, ENOSYS),
        ({"port": "echo", "cmd": "hidden"}, ENOSYS),
        ({"port": "echo", "cmd": "__init__"}, ENOSYS),
        ({"port": "echo", "cmd": "say", "args": {"valu": 1}}, EINVAL),
        ({"port": "echo", "cmd": "say", "args": {"cred": 1}}, EINVAL),
        ({"port": "echo", "cmd": "fail"}, EBUSY),
        ({"port": "echo", "cmd": "bug"}, EIO),
        ({"port": "echo", "cmd": "unsendable"}, EIO),
    ],
)
async def test_a_bad_message_gets_an_error_and_the_connection_lives(
    place: Place, payload: Any, errno: int
) -> None:
    # What if a message is malformed, names what does not exist, or meets a bug?
    peer = await place.connect()
    await peer.hello()
    await peer.send(Frame(Op.SENDMSG, 5, 0, payload))
    reply = await peer.reply()
    assert reply is not None
    assert (reply.msgid, reply.error) == (5, errno)
    assert reply.payload["error"]
    assert (await peer.call("say", 6, value="on")).payload == "on"


async def test_a_result_over_the_limit_is_an_error(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What if a command gives more than a client would take?
    monkeypatch.setattr(server, "MAX_REPLY", 1000)
    peer = await place.connect()
    await peer.hello()
    reply = await peer.call("say", 5, value="x", times=2000)
    assert reply.error == EFBIG
    assert "ask for less" in reply.payload["error"]


async def test_a_bug_is_reported_and_counted(place: Place) -> None:
    # What if a command raises what it must not: does anybody hear of it?
    peer = await place.connect()
    await peer.hello()
    reply = await peer.call("bug")
    assert "ZeroDivisionError" in reply.payload["error"]
    assert place.service.reports == ["echo.bug"]
    assert place.service.statistics().failed == 1


@pytest.mark.parametrize(
    ("data", "errno"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", EBADMSG),
        (HEADER.pack(MAGIC, 9, Op.SENDMSG, 0, 1, 0, 0), EPROTONOSUPPORT),
        (HEADER.pack(MAGIC, VERSION, Op.SENDMSG, 0, 1, 0, MAX_REQUEST + 1), EBADMSG),
        (HEADER.pack(MAGIC, VERSION, Op.SENDMSG, 0, 1, 0, 3) + b"{{{", EBADMSG),
    ],
)
async def test_corrupt_bytes_end_the_connection_with_a_reason(
    place: Place, data: bytes, errno: int
) -> None:
    # What if the stream is no stream of frames: is the reason told, and are others undisturbed?
    other = await place.connect()
    await other.hello()
    peer = await place.connect()
    await peer.hello()
    await peer.stream.send_all(message("say", 1, value=1).encode() + data)
    first, second = await peer.reply(), await peer.reply()
    assert first is not None
    assert second is not None
    assert first.payload == 1
    assert (second.msgid, second.error) == (0, errno)
    assert await peer.reply() is None
    assert place.control.statistics().corrupt == 1
    assert (await other.call("say", value=2)).payload == 2


async def test_a_message_before_hello_ends_the_connection(place: Place) -> None:
    # What if a client does not greet?
    peer = await place.connect()
    reply = await peer.call("say")
    assert reply.error == EINVAL
    assert "HELLO" in reply.payload["error"]
    assert await peer.reply() is None


async def test_an_unknown_operation_ends_the_connection(place: Place) -> None:
    # What if the operation of a frame is none?
    peer = await place.connect()
    await peer.hello()
    await peer.send(Frame(99, 4, 0, None))
    reply = await peer.reply()
    assert reply is not None
    assert (reply.msgid, reply.error) == (4, EINVAL)
    assert await peer.reply() is None


async def test_a_waiting_command_is_finished_by_a_thread_and_others_pass_it(place: Place) -> None:
    # What if a command waits: is the connection blocked meanwhile?
    peer = await place.connect()
    await peer.hello()
    await peer.send(message("wait", 1))
    assert (await peer.call("say", 2, value="quick")).msgid == 2
    await trio.testing.wait_all_tasks_blocked()
    assert [td.wmesg for td in place.lwkt.threads.values() if td.name == "ctl:echo"] == ["door"]
    place.service.open_door()
    reply = await peer.reply()
    assert reply is not None
    assert (reply.msgid, reply.payload) == (1, "open")
    assert place.service.statistics().waited == 1


async def test_an_abort_ends_a_waiting_command(place: Place) -> None:
    # What if the client does not want to wait any longer?
    peer = await place.connect()
    await peer.hello()
    await peer.send(message("wait", 1))
    await trio.testing.wait_all_tasks_blocked()
    await peer.send(Frame(Op.ABORT, 1, 0, None))
    reply = await peer.reply()
    assert reply is not None
    assert (reply.msgid, reply.error) == (1, ECANCELED)
    await trio.testing.wait_all_tasks_blocked()
    assert not any(td.name == "ctl:echo" for td in place.lwkt.threads.values())


async def test_an_abort_before_the_thread_sleeps_is_remembered(place: Place) -> None:
    # What if message and abort arrive together, before the thread has run at all?
    peer = await place.connect()
    await peer.hello()
    await peer.send(message("wait", 1), Frame(Op.ABORT, 1, 0, None))
    reply = await peer.reply()
    assert reply is not None
    assert (reply.msgid, reply.error) == (1, ECANCELED)
    assert place.service.sleepers == 0


async def test_an_abort_that_is_late_or_for_nobody_does_nothing(place: Place) -> None:
    # What if the reply is on its way already, or the number was never used?
    peer = await place.connect()
    await peer.hello()
    await peer.send(message("say", 1, value=1), Frame(Op.ABORT, 1, 0, None))
    await peer.send(Frame(Op.ABORT, 12345, 0, None))
    reply = await peer.reply()
    assert reply is not None
    assert (reply.msgid, reply.error) == (1, 0)
    assert (await peer.call("say", 2, value=2)).payload == 2


async def test_many_aborts_race_with_the_door(place: Place) -> None:
    # What if some replies race with aborts: is each message replied to exactly once?
    peer = await place.connect()
    await peer.hello()
    await peer.send(*(message("wait", number) for number in range(1, 101)))
    await trio.testing.wait_all_tasks_blocked()
    await peer.send(*(Frame(Op.ABORT, number, 0, None) for number in range(1, 101, 2)))
    place.service.open_door()
    got = [await peer.reply() for _ in range(100)]
    numbers = [frame.msgid for frame in got if frame is not None]
    assert sorted(numbers) == list(range(1, 101))
    assert all(frame is not None and frame.error in (0, ECANCELED) for frame in got)
    assert (await peer.call("say", 500, value="end")).msgid == 500


async def test_too_many_open_messages_are_refused_one_by_one(place: Place) -> None:
    # What if a client never takes its time into account?
    peer = await place.connect()
    await peer.hello()
    await peer.send(*(message("wait", number) for number in range(server.MAX_OPEN + 3)))
    refused = [await peer.reply() for _ in range(3)]
    assert [frame and frame.error for frame in refused] == [EAGAIN] * 3
    place.service.open_door()
    for _ in range(server.MAX_OPEN):
        frame = await peer.reply()
        assert frame is not None
        assert frame.error == 0


async def test_a_number_in_use_is_refused(place: Place) -> None:
    # What if a client uses the number of an open message again?
    peer = await place.connect()
    await peer.hello()
    await peer.send(message("wait", 1))
    reply = await peer.call("say", 1, value=1)
    assert reply.error == EINVAL
    place.service.open_door()
    last = await peer.reply()
    assert last is not None
    assert last.payload == "open"


async def test_a_connection_that_goes_aborts_what_it_left_open(place: Place) -> None:
    # What if a client dies while its command waits: does the thread stay for ever?
    peer = await place.connect()
    await peer.hello()
    await peer.send(message("wait", 1))
    await trio.testing.wait_all_tasks_blocked()
    assert place.service.sleepers == 1
    await peer.stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert place.service.sleepers == 0
    assert place.control.statistics().connections == 0


async def test_a_peer_that_half_closes_still_gets_its_replies(place: Place) -> None:
    # What if a client sends all it has and shuts its side, as netcat does?
    peer = await place.connect()
    await peer.hello()
    await peer.send(*(message("say", number, value="x" * 1000) for number in range(1, 200)))
    await peer.stream.send_eof()
    for number in range(1, 200):
        frame = await peer.reply()
        assert frame is not None
        assert frame.msgid == number
    assert await peer.reply() is None


async def test_a_peer_that_does_not_read_is_cut_off(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What if a client asks and never takes the answers: does the server's memory grow?
    monkeypatch.setattr(server, "MAX_OUTGOING", 1 << 20)
    peer = await place.connect()
    await peer.hello()

    async def flood() -> None:
        for number in range(1, 1000):
            await peer.send(message("say", number, value="x" * 1000, times=100))

    with trio.fail_after(20), pytest.raises(trio.BrokenResourceError):
        await flood()
    await trio.testing.wait_all_tasks_blocked()
    assert place.control.statistics().connections == 0
    other = await place.connect()
    await other.hello()
    assert (await other.call("say", value=1)).payload == 1


async def test_large_replies_reach_a_slow_reader_whole(place: Place) -> None:
    # What if a reply is far bigger than a socket's buffer?
    peer = await place.connect()
    await peer.hello()
    await peer.send(message("say", 1, value="x" * 1000, times=4000), message("say", 2, value=2))
    first, second = await peer.reply(), await peer.reply()
    assert first is not None
    assert len(first.payload) == 4_000_000
    assert second is not None
    assert second.payload == 2


async def test_too_many_connections_are_told_so(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What if a script forgets to close its connections?
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    peers = [await place.connect() for _ in range(2)]
    for peer in peers:
        await peer.hello()
    third = await place.connect()
    reply = await third.reply()
    assert reply is not None
    assert (reply.msgid, reply.error) == (0, EAGAIN)
    assert await third.reply() is None
    assert place.control.statistics().refused == 1
    await peers[0].stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert (await (await place.connect()).hello())["version"] == "test"


async def test_another_user_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    # What if somebody else got at the socket?
    monkeypatch.setattr(server, "_PEERCRED", _Credentials())
    peer = await place.connect()
    reply = await peer.reply()
    assert reply is not None
    assert reply.error == EPERM
    assert await peer.reply() is None


class _Credentials:
    """Unpacks SO_PEERCRED as if another user had connected."""

    size = struct.calcsize("3i")

    def unpack(self, raw: bytes) -> tuple[int, int, int]:
        pid, _uid, gid = struct.unpack("3i", raw)
        return pid, os.geteuid() + 12345, gid


async def test_the_socket_is_for_its_user_alone(place: Place) -> None:
    # What if the umask was 0?
    assert os.stat(place.control.path).st_mode & 0o777 == 0o600


async def test_a_reset_connection_ends_quietly(place: Place) -> None:
    # What if the client vanishes while replies are being written?
    peer = await place.connect()
    await peer.hello()
    await peer.send(message("say", 1, value="x" * 1000, times=4000))
    linger = struct.pack("ii", 1, 0)
    peer.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    await peer.stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert place.control.statistics().connections == 0


async def test_closed_connections_leave_no_port(place: Place) -> None:
    # What if every connection left a port behind? Full collections are off while mounted.
    from dfuser.lwkt.msgport import ports_of

    before = len(ports_of(place.lwkt))
    for _ in range(20):
        peer = await place.connect()
        await peer.hello()
        await peer.call("say", value=1)
        await peer.stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert len(ports_of(place.lwkt)) <= before + 1


class _SlowHost(NullHostCache):
    """A host that has heard of a change when the test says so."""

    def __init__(self) -> None:
        self.asked = trio.Event()
        self.heard = trio.Event()

    async def settle(self) -> None:
        self.asked.set()
        await self.heard.wait()


async def test_a_reply_waits_until_the_host_has_heard_of_the_change(place: Place) -> None:
    # What if the client looks through the host as soon as its command is answered?
    host = place.service.host = _SlowHost()
    peer = await place.connect()
    await peer.hello()
    await peer.send(message("change", 1), message("say", 2, value="later"))
    await host.asked.wait()
    with trio.move_on_after(0) as at_once:
        await peer.reply()
    assert at_once.cancelled_caught
    host.heard.set()
    first, second = await peer.reply(), await peer.reply()
    assert first is not None
    assert second is not None
    assert (first.msgid, first.payload) == (1, "changed")
    assert (second.msgid, second.payload) == (2, "later")


async def test_a_peer_that_leaves_while_the_host_is_told_leaves_nothing(place: Place) -> None:
    # What if the client dies in that wait?
    host = place.service.host = _SlowHost()
    peer = await place.connect()
    await peer.hello()
    await peer.send(message("change"))
    await host.asked.wait()
    await peer.stream.aclose()
    while place.control.statistics().connections:
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(0.01)
    assert not host.heard.is_set()
