"""Work of the host that a command waits for: unmounting, for one.

A command is kernel code and waits through LWKT; running ``fusermount3`` waits through the host's
event loop. A host job joins the two: it runs as a task of the host, and its end is an interrupt
that wakes the commands which wait for it.

Counterpart: none; a device whose interrupt tells the end of a request.
Differs from DragonFly: an addition.
Token/lock order: takes none.
Invariants: at most one job of a name runs; whoever waits for it gets its outcome.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from dfuser.libkern.errno import EIO, KError
from dfuser.libkern.param import PCATCH
from dfuser.lwkt.block import Block
from dfuser.lwkt.synch import tsleep, wakeup

if TYPE_CHECKING:
    from dfuser.lwkt.machine import Lwkt


class HostJob:
    """One job: running, or done with an error or without."""

    __slots__ = ("done", "error", "waiters")

    def __init__(self) -> None:
        self.done = False
        self.error: KError | None = None
        self.waiters = 0


class HostJobs:
    """Starts jobs and lets commands wait for them.

    Args:
        lwkt: the machine whose threads wait.
        nursery: where the jobs run.
    """

    def __init__(self, lwkt: Lwkt, nursery: trio.Nursery) -> None:
        self.lwkt = lwkt
        self._nursery = nursery
        self._jobs: dict[str, HostJob] = {}

    def once(self, name: str, afn: Callable[[], Awaitable[None]]) -> None:
        """The outcome of the job ``name``: started by the first who asks, shared by who joins.

        Raises:
            Block: it runs.
            KError: what ``afn`` raised; EIO for any other failure of it.
        """
        job = self._jobs.get(name)
        if job is None:
            job = self._jobs[name] = HostJob()
            self._nursery.start_soon(self._run, name, job, afn, name=f"hostjob:{name}")
        if not job.done:
            raise Block(lambda: self._wait(job), "hostjob")
        if not job.waiters:
            self._jobs.pop(name, None)
        if job.error is not None:
            raise job.error

    async def _wait(self, job: HostJob) -> int:
        job.waiters += 1
        try:
            return 0 if job.done else await tsleep(job, PCATCH, "hostjob")
        finally:
            job.waiters -= 1

    async def _run(self, name: str, job: HostJob, afn: Callable[[], Awaitable[None]]) -> None:
        try:
            await afn()
        except KError as error:
            job.error = error
        except Exception as error:
            job.error = KError(EIO, f"the host failed: {error}")
        finally:
            job.done = True
            if not job.waiters:
                self._jobs.pop(name, None)
            self.lwkt.cpus[0].interrupt(wakeup, job)
