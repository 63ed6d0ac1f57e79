"""The service about traces: lines and latencies of a layer, for as long as somebody looks.

A reader sends ``hold`` and leaves it open: as long as it is not replied to, the layer traces what
it asked for, under the key it has chosen. ``wait`` gives the lines that are new, ``summary`` the
table. Ending the trace is aborting ``hold``, and so is anything that ends the connection, the
death of the reader included: nothing stays switched on behind somebody who is gone.

Counterpart: ktrace(2) with its KTROP_CLEAR at the end of the process that traces.
Differs from DragonFly: an addition.
Token/lock order: takes none.
Invariants: a tap is open exactly as long as a ``hold`` with its key is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dfuser.boot.tracing import COUNT, DECODE, Tap, Tracer, Want, tracers
from dfuser.libkern.errno import EINVAL, ENOENT, EWOULDBLOCK, KError
from dfuser.libkern.param import HZ, PCATCH
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt.block import Block
from dfuser.lwkt.synch import tsleep, wakeup
from dfuser.vfs.kernfs.registry import plain

from .lwkt_services import MAX_ROWS, need_int
from .service import CtlMsg, Service, command

if TYPE_CHECKING:
    from dfuser.boot.kernel import Kernel
    from dfuser.lwkt.msgport import LwktMsg

#: How often a reader's lines are looked for, in ticks; sooner when many are new. Lines are gathered
#: for so long even if there is one at once: a message for each would cost more than the request.
TRACE_POLL: Final = HZ // 20
#: Lines in a reply.
BATCH: Final = 512
MAX_KEY: Final = 64


class TraceService(Service):
    """Traces of layers."""

    name = "trace"

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.lwkt, kernel.report, kernel.panicked)
        self.kernel = kernel
        #: Taps whose reader has waited for lines to gather.
        self._rested: set[str] = set()

    @command
    def cmd_layers(self, cred: Ucred) -> list[dict[str, Any]]:
        """The layers that can be traced: operations, counters, what to know beforehand."""
        return [
            {
                "layer": layer,
                "note": tracer.note(),
                "operations": tracer.operations(),
                "statistics": plain(tracer.statistics()),
            }
            for layer, tracer in sorted(tracers(self.kernel).items())
        ]

    @command
    def cmd_hold(
        self,
        cred: Ucred,
        key: str,
        layer: str = "fuse",
        level: int = DECODE,
        ops: list[str] | None = None,
        pid: int = -1,
        connection: str = "",
        begun: bool = False,
        limit: int = 0,
    ) -> None:
        """Trace until this message is aborted; ``key`` is what `wait` and `summary` ask with."""
        tracer = self._tracer(layer)
        want = Want(
            need_int("level", level, COUNT, DECODE),
            _words("ops", ops or []),
            need_int("pid", pid, -1, (1 << 32) - 1),
            _word("connection", connection, empty=True),
            bool(begun),
            need_int("limit", limit, 0, 1 << 62),
        )
        tap = tracer.open_tap(_word("key", key), want)

        async def hold() -> int:
            try:
                return await tsleep(tap, PCATCH, "trchold")
            finally:
                self._close(tracer, key)

        raise Block(hold, "trchold")

    @command
    def cmd_wait(
        self, cred: Ucred, key: str, layer: str = "fuse", count: int = BATCH, poll: bool = False
    ) -> dict[str, Any]:
        """New lines of a trace; waits until there are some or it is over, unless ``poll``."""
        tracer, tap = self._tap(layer, key)
        count = need_int("count", count, 1, MAX_ROWS)
        if poll or key in self._rested or tap.unread() >= count:
            answer = tap.read(count)
            if poll or answer.records or answer.lost or answer.over:
                self._rested.discard(key)
                return dict(plain(answer))

        async def rest() -> int:
            tracer.listen(self._arrived)
            try:
                error = await tsleep(self, PCATCH, "trcwait", TRACE_POLL)
            finally:
                tracer.unlisten(self._arrived)
            if tracer.find_tap(key) is tap:
                self._rested.add(key)
            return 0 if error == EWOULDBLOCK else error

        raise Block(rest, "trcwait")

    @command
    def cmd_summary(self, cred: Ucred, key: str, layer: str = "fuse") -> list[dict[str, Any]]:
        """The latencies that a trace has seen, by operation, most time first."""
        return [plain(row) for row in self._tap(layer, key)[1].summary()]

    @command
    def cmd_latency(self, cred: Ucred, layer: str = "fuse") -> list[dict[str, Any]]:
        """The latencies since boot or `reset`, by operation, most time first."""
        return [plain(row) for row in self._tracer(layer).latency()]

    @command
    def cmd_reset(self, cred: Ucred, layer: str = "fuse") -> None:
        """Forget lines and latencies."""
        self._tracer(layer).reset()

    def _abort(self, msg: LwktMsg) -> None:
        """End the trace at once: the thread that holds it may not have run yet."""
        assert isinstance(msg, CtlMsg)
        if msg.command == "hold":
            tracer = tracers(self.kernel).get(msg.args.get("layer", "fuse"))
            if tracer is not None:
                self._close(tracer, msg.args["key"])
        super()._abort(msg)

    def _close(self, tracer: Tracer, key: str) -> None:
        tracer.close_tap(key)
        self._rested.discard(key)

    def _arrived(self) -> None:
        self.lwkt.cpus[0].interrupt(wakeup, self)

    def _tracer(self, layer: object) -> Tracer:
        found = tracers(self.kernel)
        tracer = found.get(layer) if isinstance(layer, str) else None
        if tracer is None:
            names = ", ".join(sorted(found)) or "none, because nothing is mounted on the host"
            raise KError(EINVAL, f"there is no layer {layer!r} to trace: there are {names}")
        return tracer

    def _tap(self, layer: object, key: object) -> tuple[Tracer, Tap]:
        tracer = self._tracer(layer)
        tap = tracer.find_tap(key) if isinstance(key, str) else None
        if tap is None:
            raise KError(ENOENT, f"there is no trace {key!r}")
        return tracer, tap


def _word(name: str, value: object, *, empty: bool = False) -> str:
    """An argument that must be a short text."""
    if not isinstance(value, str) or len(value) > MAX_KEY or not (value or empty):
        raise KError(EINVAL, f"{name} must be a text of 1 to {MAX_KEY} characters")
    return value


def _words(name: str, value: object) -> tuple[str, ...]:
    """An argument that must be a list of short texts."""
    if not isinstance(value, list) or len(value) > MAX_KEY:
        raise KError(EINVAL, f"{name} must be a list of at most {MAX_KEY} names")
    return tuple(_word(name, word) for word in value)
