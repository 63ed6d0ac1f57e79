"""Serving while trio has nothing to do.

A task that waits for the device costs trio two passes of its scheduler and three system calls for
every request, twice what the request itself costs. But most of the time nothing else is runnable:
trio is about to sleep until a request comes. At that moment its instrument ``before_io_wait`` is
called, and here the sleep is done instead: one epoll of our own watches the devices and trio's own
epoll. A request is served on the spot. Anything else (another descriptor, a signal, a deadline, a
thread of the kernel that a request made runnable) hands back to trio at once.

So while the kernel is idle a request costs one epoll_wait, one read and one write. While it is busy
the instrument is called between any two passes of the scheduler, and a bounded burst of what waits
is served there. No task of trio's ever waits for a device.

trio does not tell how long it may sleep after something was made runnable during the instrument;
its run queue and deadlines are looked at for that, which are not public. `IdleDoor.install` checks
that they are where they are expected; if they are not, requests are read by ordinary tasks
(`loop`).

Counterpart: the idle loop of a CPU (lwkt_idle, sys/platform/vkernel64).
Invariants: nothing here raises into trio; when the instrument returns, trio either sleeps no longer
than is right or has been told to wake at once.
"""

from __future__ import annotations

import logging
import select
from typing import TYPE_CHECKING, Any, Final

import trio

from dfuser.libkern.sysctl import CtlFlag, Sysctl

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)

#: Descriptors looked at by one epoll_wait.
_EVENTS: Final = 16
#: Longest sleep, in seconds; trio's own limit is a day.
_LONGEST: Final = 86400.0


class IdleDoor(trio.abc.Instrument):
    """Serves requests in place of trio's sleep."""

    sysctl_idle = Sysctl(
        "vfs.fuse.idle_served", "times a device was served while nothing else ran", attr="served"
    )
    sysctl_burst = Sysctl(
        "vfs.fuse.idle_burst",
        "requests served before the event loop gets a turn",
        attr="burst",
        flags=CtlFlag.RW,
        minimum=1,
        maximum=100_000,
    )

    def __init__(self, burst: int = 256) -> None:
        self.burst = burst
        self.served = 0
        self.installed = False
        self._devices: dict[int, Callable[[], bool]] = {}
        self._epoll: select.epoll | None = None
        self._trio_fd = -1
        self._runner: Any = None
        self._token: trio.lowlevel.TrioToken | None = None

    # --- setting up ------------------------------------------------------------------------

    def install(self) -> bool:
        """Start; call from a trio task. False when this trio cannot be looked into."""
        try:
            runner = trio._core._run.GLOBAL_RUN_CONTEXT.runner
            trio_fd = runner.io_manager._epoll.fileno()
            len(runner.runq)
            runner.deadlines.next_deadline()
            runner.clock.deadline_to_sleep_time(runner.clock.current_time())
        except (AttributeError, TypeError) as error:
            _log.info("requests are served by tasks only: %s", error)
            return False
        self._runner, self._trio_fd = runner, trio_fd
        self._token = trio.lowlevel.current_trio_token()
        self._epoll = select.epoll()
        self._epoll.register(trio_fd, select.EPOLLIN)
        for fd in self._devices:
            self._epoll.register(fd, select.EPOLLIN)
        trio.lowlevel.add_instrument(self)
        self.installed = True
        return True

    def remove(self) -> None:
        """Stop. Idempotent."""
        if not self.installed:
            return
        self.installed = False
        trio.lowlevel.remove_instrument(self)
        if self._epoll is not None:
            self._epoll.close()
        self._epoll = self._runner = self._token = None

    def watch(self, fd: int, serve: Callable[[], bool]) -> None:
        """Serve this device, too.

        Args:
            fd: its descriptor, which never blocks.
            serve: called when it is ready; serves one request or finds out why not. It must not
                raise. False: the descriptor is not to be watched any more.
        """
        self._devices[fd] = serve
        if self._epoll is not None:
            self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """The device is about to be closed. Idempotent."""
        if fd in self._devices:
            del self._devices[fd]
            if self._epoll is not None:
                self._epoll.unregister(fd)

    # --- instead of sleeping ---------------------------------------------------------------

    def before_io_wait(self, timeout: float) -> None:
        """Trio is about to sleep ``timeout`` seconds (0: to look for events). Never raises."""
        if not self._devices:
            return
        try:
            if timeout > 0:
                self._idle(timeout)
            else:
                self._between()
        except Exception:
            _log.exception("serving requests ends")
            self._devices.clear()

    def _between(self) -> None:
        """Trio has work: serve a burst of what is there already, and let it go on."""
        epoll = self._epoll
        assert epoll is not None
        for _ in range(self.burst):
            if not self._serve_ready(epoll.poll(0, _EVENTS)):
                return

    def _serve_ready(self, ready: list[tuple[int, int]]) -> bool:
        """Serve each device that is ready once; whether there was one."""
        found = False
        for fd, _events in ready:
            serve = self._devices.get(fd)
            if serve is not None:
                found = True
                self.served += 1
                if not serve():
                    self.unwatch(fd)
        return found

    def _idle(self, timeout: float) -> None:
        """Trio has nothing to do: wait in its place, until it has."""
        runner, epoll = self._runner, self._epoll
        assert epoll is not None
        assert self._token is not None
        runq, next_deadline, poll = runner.runq, runner.deadlines.next_deadline, epoll.poll
        devices, to_sleep = self._devices, runner.clock.deadline_to_sleep_time
        deadline = next_deadline()
        for _ in range(self.burst):
            ready = poll(timeout, _EVENTS)
            if len(ready) != 1:
                self._serve_ready(ready)
                break
            # The one case that counts: a request, and nothing else.
            fd = ready[0][0]
            serve = devices.get(fd)
            if serve is None:
                break
            self.served += 1
            if not serve():
                self.unwatch(fd)
            if runq or next_deadline() != deadline:
                break
            timeout = min(to_sleep(deadline), _LONGEST)
            if timeout <= 0:
                break
        self._token.run_sync_soon(_wake)


def _wake() -> None:
    """What trio is woken with: it need only look again."""
