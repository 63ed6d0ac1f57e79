"""The trace service on a booted kernel without an event loop, on virtual time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from dfuser.boot.config import Config
from dfuser.boot.kernel import Kernel
from dfuser.boot.tracing import DECODE, tracers
from dfuser.ctl.service import CtlMsg
from dfuser.ctl.trace_services import TraceService
from dfuser.fuse.trace import FuseTrace
from dfuser.fuse.wire import reply
from dfuser.fuse.wire.const import Opcode
from dfuser.fuse.wire.kernel import emit_request
from dfuser.hw.fake import FakeHost
from dfuser.libkern.errno import ECANCELED, EINVAL, ENOENT
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt.msgkinds import initport_replyonly
from dfuser.lwkt.msgport import MSGF, LwktMsg, Port


class Place:
    """A kernel with a trace, and a client that sends messages."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        clock = kernel.host.clock
        self.trace = FuseTrace(clock.monotonic_ns, clock.realtime_ns, kernel.report)
        self.service = TraceService(kernel)
        self.port = initport_replyonly(self._reply, "test", kernel.lwkt)

    @staticmethod
    def _reply(port: Port, msg: LwktMsg) -> None:
        msg.flags |= MSGF.DONE | MSGF.REPLY

    def post(self, cmd: str, **args: Any) -> CtlMsg:
        """Send a message; the machine does not run yet."""
        msg = CtlMsg(self.port, 1, cmd, args, Ucred.root())
        self.kernel.in_context(self.service.port.sendmsg, msg)
        return msg

    def send(self, cmd: str, **args: Any) -> CtlMsg:
        """Send a message and let the machine run until it is idle."""
        msg = self.post(cmd, **args)
        self.kernel.lwkt.run_until_idle()
        return msg

    def do(self, cmd: str, **args: Any) -> Any:
        """The result of a message that must succeed; it must be plain JSON."""
        msg = self.send(cmd, **args)
        assert msg.done
        assert msg.error == 0, msg.result
        assert json.loads(json.dumps(msg.result)) == msg.result
        return msg.result

    def fails(self, cmd: str, **args: Any) -> tuple[int, str]:
        """Error and text of a message that must fail."""
        msg = self.send(cmd, **args)
        assert msg.done
        return msg.error, msg.result["error"]

    def abort(self, msg: CtlMsg) -> None:
        """Give a message up, as the end of its connection does."""
        self.kernel.in_context(msg.abortmsg)

    def request(self, name: bytes = b"usr", pid: int = 7) -> None:
        """A LOOKUP that fails."""
        raw = emit_request(Opcode.LOOKUP, name, unique=24, nodeid=1, pid=pid)
        self.trace.begin("/", raw, len(raw))
        self.trace.end("/", 24, 2, [reply.emit_error(24, 2)])


@pytest.fixture
def place() -> Iterator[Place]:
    """A booted kernel on a fake host, with a trace among its owners."""
    kernel = Kernel(Config(memory=16 << 20, seed=1, ncpu=2), FakeHost(16 << 20))
    kernel.boot()
    made = Place(kernel)
    kernel.add_owner(made.trace)
    yield made
    kernel.stop()
    assert not made.trace.failures


def test_a_trace_lasts_as_long_as_it_is_held(place: Place) -> None:
    # What if tracing stays on behind a reader who is gone, or ends before he goes?
    hold = place.send("hold", key="k")
    assert not hold.done
    assert place.trace.level == DECODE
    place.request()
    answer = place.do("wait", key="k", poll=True)
    assert [(r["op"], r["reply"]) for r in answer["records"]] == [("LOOKUP", "ENOENT")]
    assert (answer["lost"], answer["over"]) == (0, False)
    [row] = place.do("summary", key="k")
    assert (row["op"], row["count"], row["errors"]) == ("LOOKUP", 1, 1)
    place.abort(hold)
    assert place.trace.level == 0
    place.kernel.lwkt.run_until_idle()
    assert (hold.done, hold.error) == (True, ECANCELED)
    assert place.fails("wait", key="k")[0] == ENOENT
    assert place.fails("summary", key="k")[0] == ENOENT


def test_a_reader_that_goes_before_its_thread_runs(place: Place) -> None:
    # What if the connection ends in the moment between the message and its thread?
    hold = place.post("hold", key="k")
    assert place.trace.level == DECODE
    place.abort(hold)
    assert place.trace.level == 0
    place.kernel.lwkt.run_until_idle()
    assert (hold.done, place.trace.level, place.trace.count_taps()) == (True, 0, 0)


def test_the_machine_ends_under_a_trace(place: Place) -> None:
    # What if the kernel is shut down while somebody traces?
    place.send("hold", key="k")
    place.send("wait", key="k")
    place.kernel.lwkt.shutdown_nowait()
    assert place.trace.level == 0


def test_waiting_for_a_line(place: Place) -> None:
    # What if there is nothing yet: does the reply come when there is, on time?
    place.send("hold", key="k", ops=["LOOKUP"])
    wait = place.send("wait", key="k")
    assert not wait.done
    place.kernel.host.clock.advance(10_000_000_000)  # type: ignore[attr-defined]
    place.kernel.lwkt.run_until_idle()
    assert not wait.done
    place.request(b"x\x1b")
    place.kernel.host.clock.advance(200_000_000)  # type: ignore[attr-defined]
    place.kernel.lwkt.run_until_idle()
    assert wait.done
    assert wait.result["records"][0]["request"] == '1 "x\\x1b"'


def test_waiting_is_cut_short_when_many_lines_are_new(place: Place) -> None:
    # What if the ring fills up between two looks?
    place.trace.set_lines(8)
    place.send("hold", key="k")
    wait = place.send("wait", key="k")
    for _ in range(8):
        place.request()
    place.kernel.lwkt.run_until_idle()
    assert wait.done
    assert len(wait.result["records"]) + wait.result["lost"] == 8


def test_lines_are_gathered(place: Place) -> None:
    # What if each request were a message of its own, which costs more than the request?
    place.send("hold", key="k")
    place.request()
    wait = place.send("wait", key="k")
    place.request()
    assert not wait.done
    place.kernel.host.clock.advance(200_000_000)  # type: ignore[attr-defined]
    place.kernel.lwkt.run_until_idle()
    assert len(wait.result["records"]) == 2
    for _ in range(3):
        place.request()
    full = place.do("wait", key="k", count=3)
    assert len(full["records"]) == 3
    assert not place.service._rested


def test_a_trace_that_is_over(place: Place) -> None:
    # What if as many came as were wanted?
    place.send("hold", key="k", level=1, limit=2)
    wait = place.send("wait", key="k")
    place.request()
    place.request()
    place.kernel.host.clock.advance(200_000_000)  # type: ignore[attr-defined]
    place.kernel.lwkt.run_until_idle()
    assert wait.done
    assert wait.result == {"records": [], "lost": 0, "over": True}


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ({"layer": "net"}, "there are fuse"),
        ({"layer": 5}, "there is no layer 5"),
        ({"level": 3}, "level must be"),
        ({"ops": ["LOKUP"]}, "did you mean LOOKUP"),
        ({"ops": "LOOKUP"}, "ops must be a list"),
        ({"ops": [5]}, "ops must be a text"),
        ({"pid": "me"}, "pid must be"),
        ({"connection": None}, "connection must be"),
        ({"key": ""}, "key must be"),
        ({"limit": -1}, "limit must be"),
    ],
)
def test_wrong_arguments(place: Place, args: dict[str, Any], text: str) -> None:
    # What if a client asks for what there is not?
    error, said = place.fails("hold", **{"key": "k", **args})
    assert error == EINVAL
    assert text in said
    assert place.trace.count_taps() == 0


def test_layers_latency_and_reset(place: Place) -> None:
    # What if the variable is set and the table is read without a trace?
    place.kernel.sysctl.set("vfs.fuse.trace", 1)
    place.request()
    [layer] = place.do("layers")
    assert (layer["layer"], layer["note"], layer["statistics"]["ended"]) == ("fuse", "", 1)
    assert "LOOKUP" in layer["operations"]
    [row] = place.do("latency")
    assert (row["op"], sum(row["buckets"])) == ("LOOKUP", 1)
    assert place.do("reset") is None
    assert place.do("latency") == []


def test_the_view_in_kern(place: Place) -> None:
    # What if somebody reads /kern/fuse_latency, mounted or not?
    views = place.kernel.world.views
    view = views.find("fuse_latency")
    assert view is not None
    place.kernel.sysctl.set("vfs.fuse.trace", 1)
    place.request()
    head, row = views.render(view).splitlines()
    assert head.split() == [
        "OP", "COUNT", "ERRORS", "MEAN_NS", "P50_NS", "P90_NS", "P99_NS", "MAX_NS", "HISTOGRAM",
    ]  # fmt: skip
    assert row.split()[:3] == ["LOOKUP", "1", "1"]
    assert row.endswith("|")
    twin = json.loads(views.render_json(view))
    assert sum(twin["rows"][0]["buckets"]) == 1
    place.kernel.remove_owner(place.trace)
    assert tracers(place.kernel) == {}
    assert len(views.render(view).splitlines()) == 1
    assert "nothing is mounted" in place.fails("hold", key="k")[1]
    place.kernel.add_owner(place.trace)
