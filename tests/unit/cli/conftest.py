"""Running verbs in this process, against a kernel on another thread that is not mounted."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio

from dfuser.boot.config import Config
from dfuser.boot.kernel import Kernel
from dfuser.cli.main import run
from dfuser.client.instances import register, unregister
from dfuser.ctl.hostjob import HostJobs
from dfuser.ctl.server import ControlSocket
from dfuser.ctl.services import make_services

MOUNTPOINT = "/nowhere/mnt"


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, as JSON."""
        return json.loads(self.out)

    @property
    def line(self) -> str:
        """The one line it said on stderr."""
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("dfuser: ")
        assert "Traceback" not in self.err
        return self.err.removeprefix("dfuser: ").rstrip("\n")


Dfuser = Callable[..., Result]


@pytest.fixture(autouse=True)
def quiet_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's own surroundings."""
    for name in (
        "NO_COLOR", "DFUSER_TRACEBACK", "NOTIFY_SOCKET", "JOURNAL_STREAM", "WATCHDOG_USEC",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DFUSER_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def dfuser(capfd: pytest.CaptureFixture[str]) -> Dfuser:
    """Runs one command line."""

    def call(*args: str | Path) -> Result:
        capfd.readouterr()
        code = run([str(arg) for arg in args])
        return Result(code, *capfd.readouterr())

    return call


class Running:
    """A kernel on a thread of its own, with a control socket."""

    def __init__(self) -> None:
        self.kernel: Kernel | None = None
        self._ready = threading.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main)

    def start(self) -> None:
        """Boot and serve; returns when clients may come."""
        self._thread.start()
        assert self._ready.wait(60)
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Shut down; everything is gone afterwards."""
        assert self._token is not None
        assert self.kernel is not None
        self._token.run_sync_soon(self.kernel.request_stop)
        self._thread.join(60)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Run ``fn`` on the kernel's thread."""
        return trio.from_thread.run_sync(fn, *args, trio_token=self._token)

    def _main(self) -> None:
        try:
            trio.run(self._run)
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _run(self) -> None:
        self.kernel = kernel = Kernel(Config(memory=16 << 20, ncpu=2, seed=1))
        self._token = trio.lowlevel.current_trio_token()
        kernel.boot()
        instance = register(MOUNTPOINT, 1.0)
        try:
            async with trio.open_nursery() as nursery:
                control = ControlSocket(
                    instance.socket, kernel.lwkt, {"version": kernel.version, "pid": instance.pid}
                )
                for service in make_services(kernel, HostJobs(kernel.lwkt, nursery)):
                    control.add(service)
                await nursery.start(control.serve)
                async with trio.open_nursery() as inner:
                    await inner.start(kernel.run)
                    self._ready.set()
                nursery.cancel_scope.cancel()
        finally:
            unregister(instance)


@pytest.fixture
def running(quiet_environment: None) -> Iterator[Running]:
    """A running kernel that is the only instance."""
    made = Running()
    made.start()
    yield made
    made.stop()
