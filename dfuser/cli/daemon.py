"""Running a server in the background: the parent returns when the mount is ready.

The child keeps the user's stderr until it is ready, so that every message on the way is seen; then
its stderr becomes the log file. It tells the parent by one byte through a pipe. When the child ends
before, the parent ends with the child's exit code.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from .exits import ExitCode


def in_background(serve: Callable[[Callable[[], None]], int]) -> int:
    """Fork; the child runs ``serve(on_ready)`` and exits with what that returns.

    Args:
        serve: the server; calls its argument when the mount is ready.

    Returns:
        In the parent: 0 when the mount is ready, else the exit code of the child.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        code: int = ExitCode.INTERNAL
        try:
            os.setsid()
            code = _child(serve, writer)
        finally:
            os._exit(code)
    os.close(writer)
    try:
        told = os.read(reader, 1)
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise
    finally:
        os.close(reader)
    if told:
        return ExitCode.OK
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else ExitCode.SIGNAL - code


def _child(serve: Callable[[Callable[[], None]], int], writer: int) -> int:
    from .main import report

    def on_ready() -> None:
        os.chdir("/")
        os.write(writer, b"R")
        os.close(writer)

    try:
        return serve(on_ready)
    except BaseException as error:
        return report(error)
