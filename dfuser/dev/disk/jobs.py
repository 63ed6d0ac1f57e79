"""Several transfers in a row, on a device that may make them wait or not.

Probing a disk and writing a label need a few sectors one after the other. Such work is a generator
that yields `Transfer` and goes on when that is done; an error is thrown into it. A `Job` drives it:
as long as transfers complete at once, on the spot; where one has to wait, the job gives up the
thread and goes on when the transfer is over, in the thread that ``resume`` finds for it.

Counterpart: none. DragonFly sleeps in biowait, in the thread disk_msg_core or in who called ioctl.
Token and lock order: takes none.
Invariants: a job ends once; then ``done`` is true and ``result`` or ``error`` is set.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeAlias

from dfuser.libkern.errno import KError
from dfuser.libkern.param import PINTERLOCKED
from dfuser.lwkt.synch import tsleep, tsleep_interlock, wakeup

from . import disklabel32, disklabel64
from .bio import Bio, Buf, BufCmd
from .label import Disklabel, LabelError
from .slices import Diskslice, Diskslices
from .table import Probe, SliceTable


class Transfer(NamedTuple):
    """One transfer: bytes from the start of the disk, and the memory (filled by a read)."""

    cmd: BufCmd
    offset: int
    data: bytearray


Steps: TypeAlias = "Generator[Transfer, None, Any]"


class Job:
    """A generator of transfers at work.

    Args:
        steps: the generator, not started.
        strategy: gives a bio to the raw device.
        resume: called from an interrupt when the job can go on: has `run` called.
        ended: called with the job when it is over, before anybody who waits for it goes on.
    """

    __slots__ = (
        "_buf",
        "_ended",
        "_inline",
        "_resume",
        "_steps",
        "_strategy",
        "_wanted",
        "done",
        "error",
        "result",
    )

    def __init__(
        self,
        steps: Steps,
        strategy: Callable[[Bio], object],
        resume: Callable[[Job], object],
        ended: Callable[[Job], object] | None = None,
    ) -> None:
        self._steps = steps
        self._strategy = strategy
        self._resume = resume
        self._ended = ended
        self._buf: Buf | None = None
        self._inline = False
        self._wanted = False
        self.done = False
        self.result: Any = None
        self.error: KError | None = None

    def run(self) -> None:
        """Go on until the end, or until a transfer has to be waited for."""
        while True:
            bp, self._buf = self._buf, None
            outcome = 0
            if bp is not None:
                outcome = bp.outcome
                bp.dispose()
            try:
                if outcome:
                    transfer = self._steps.throw(KError(outcome))
                else:
                    transfer = next(self._steps)
            except StopIteration as end:
                self._end(end.value, None)
                return
            except KError as error:
                self._end(None, KError(error.errno, error.strerror))
                return
            if not self._issue(transfer):
                return

    def _issue(self, transfer: Transfer) -> bool:
        """Start a transfer; returns whether it is over already."""
        bp = Buf(transfer.data)
        bp.cmd = transfer.cmd
        bio = bp.bio1
        bio.offset = transfer.offset
        bio.done = self._transferred
        self._inline = True
        self._strategy(bio)
        self._inline = False
        return self._buf is not None

    def _transferred(self, bio: Bio) -> None:
        """The device is done; perhaps an interrupt."""
        bp = bio.buf
        bp.bpdone(False)
        if not bp.outcome and bp.resid:
            bp.fail(0)
        self._buf = bp
        if not self._inline:
            self._resume(self)

    def _end(self, result: Any, error: KError | None) -> None:
        self.done = True
        self.result = result
        self.error = error
        if self._ended is not None:
            self._ended(self)
        if self._wanted:
            wakeup(self)

    async def wait(self) -> int:
        """Wait for the end; returns 0, or what ended the sleep."""
        while not self.done:
            tsleep_interlock(self)
            self._wanted = True
            error = await tsleep(self, PINTERLOCKED, "dskjob")
            if error:
                return error
        return 0


def probe_steps(probe: Probe, blksize: int) -> Generator[Transfer, None, SliceTable]:
    """A probe's reads as transfers.

    Raises:
        KError: a read failed and the probe cannot do without.
    """
    try:
        request = next(probe)
        while True:
            data = bytearray(request.nblocks * blksize)
            try:
                yield Transfer(BufCmd.READ, request.block * blksize, data)
            except KError as error:
                request = probe.throw(error)
            else:
                request = probe.send(bytes(data))
    except StopIteration as end:
        table: SliceTable = end.value
        return table


def read_label(slices: Diskslices, sp: Diskslice) -> Generator[Transfer, None, Disklabel]:
    """Read the label of a slice: one with 32 bits, then one with 64.

    Raises:
        LabelError: it has none, or it cannot be read.
    """
    secsize = slices.secsize
    base = sp.offset * secsize
    try:
        if sp.size > disklabel32.LABELSECTOR32:
            sector = bytearray(secsize)
            yield Transfer(BufCmd.READ, base + disklabel32.LABELSECTOR32 * secsize, sector)
            try:
                return disklabel32.parse(bytes(sector), slices.extent(sp))
            except LabelError as error:
                if not error.absent:
                    raise
        area = bytearray(min(disklabel64.span(secsize), sp.size * secsize))
        yield Transfer(BufCmd.READ, base, area)
        return disklabel64.parse(bytes(area))
    except KError as error:
        raise LabelError(f"I/O error: {error}") from None
