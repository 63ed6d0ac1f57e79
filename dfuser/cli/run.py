"""``dfuser run``: a command of the host in a throw-away world."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from typing import TYPE_CHECKING, Any, Final

import click

from .exits import ExitCode
from .output import clean, warn
from .plan import make_plan
from .verb import verb

if TYPE_CHECKING:
    from .server import Server

#: A shell of the host goes into the mount first. The server must not: while it made a child whose
#: first act is to look at the mount, it could not answer that look.
_LAUNCHER: Final = ("/bin/sh", "-c", 'cd -- "$1" && shift && exec "$@"', "dfuser")
#: Operations the report names.
_TOP: Final = 6


class Runner:
    """Runs the command beside a mounted kernel, and remembers how it ended."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words
        self.code: int = ExitCode.INTERNAL
        self.seconds = 0.0
        self.counts: dict[str, int] = {}
        self.failed = 0

    async def __call__(self, server: Server) -> None:
        """Run the command to its end."""
        import trio

        where = server.plan.mountpoint
        started = time.monotonic()
        process = await trio.lowlevel.open_process(
            [*_LAUNCHER, where, *self.words], env={**os.environ, "PWD": where}
        )
        try:
            code = await process.wait()
        except trio.Cancelled:
            process.send_signal(signal.SIGTERM)
            with trio.CancelScope(shield=True):
                await process.wait()
            raise
        self.seconds = time.monotonic() - started
        self.code = code if code >= 0 else ExitCode.SIGNAL - code
        self.counts = {name: count for name, count in server.session.served().items() if count}
        self.failed = server.session.context.failed

    def report(self) -> dict[str, Any]:
        """What happened, for programs."""
        return {
            "schema": 1,
            "command": list(self.words),
            "exit_code": self.code,
            "seconds": round(self.seconds, 3),
            "requests": sum(self.counts.values()),
            "failed_requests": self.failed,
            "by_operation": self.counts,
        }

    def line(self) -> str:
        """What happened, for people."""
        total = sum(self.counts.values())
        top = sorted(self.counts.items(), key=lambda item: -item[1])[:_TOP]
        names = ", ".join(f"{name} {count}" for name, count in top)
        bugs = f", {self.failed} met a bug" if self.failed else ""
        return (
            f"{clean(self.words[0])} exited with {self.code} after {self.seconds:.2f} s; "
            f"{total} requests served{bugs}: {names}"
        )


@verb(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-o", "options", multiple=True, metavar="OPT[,OPT]...",
              help="Options as for 'dfuser mount'.")  # fmt: skip
@click.option("--report", "report_path", type=click.Path(dir_okay=False), metavar="FILE",
              help="Write the report as JSON.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="No report on stderr.")
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED,
                metavar="[--] COMMAND...")  # fmt: skip
def command(
    options: tuple[str, ...], report_path: str | None, quiet: bool, words: tuple[str, ...]
) -> int:
    """Run a command in a throw-away world.

    A new world is mounted on a temporary directory, the command of the host runs with that as its
    working directory, and the world is gone when it ends. The exit code is the command's; a short
    report of the requests it made goes to stderr.

    Examples:
      dfuser run -- sh -c 'git clone -q /src/project p && make -C p'
      dfuser run -o size=2g --report report.json -- fio job.fio
    """
    import logging

    from .logs import ServerLog
    from .server import Server

    runner = Runner(words)
    where = tempfile.mkdtemp(prefix="dfuser-run-")
    try:
        plan = make_plan("tmpfs", where, options)
        server = Server(plan, ServerLog(logging.WARNING), body=runner)
        code = server.serve()
    finally:
        os.rmdir(where)
    if report_path is not None:
        with open(report_path, "w", encoding="utf-8") as file:
            json.dump(runner.report(), file, indent=2)
    if not quiet:
        warn(runner.line())
    return runner.code or code
