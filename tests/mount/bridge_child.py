"""The child process of the bridge's tests: a kernel, its mount, and a way to run code inside.

Usage: ``python -m tests.mount.bridge_child DIRECTORY OPTIONS``, where OPTIONS is a JSON object
with the fields of `SessionOptions` and under "sysctl" settings of the kernel. One JSON string a
line on standard input is the body of an async function with ``k`` (the kernel), ``s`` (the
session) and ``vfs``; it runs as an LWKT thread, so it may wait as kernel code waits. The answer
is a line with a JSON list: ["ok", value] or ["error", text]. The end of input asks for an
unmount."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from typing import Any

import trio

from dfuser.boot.config import Config
from dfuser.boot.kernel import Kernel
from dfuser.fuse.mountpoint import MountError
from dfuser.fuse.session import FuseSession, SessionOptions

PANIC_CODE = 30


def say(*words: Any) -> None:
    """One line to whoever started us."""
    os.write(1, json.dumps(words).encode() + b"\n")


async def obey(kernel: Kernel, session: FuseSession, source: str) -> None:
    """Run one piece of code on a kernel thread and report."""
    names: dict[str, Any] = {"k": kernel, "s": session, "vfs": kernel.vfs, "trio": trio, "os": os}
    exec("async def body():\n" + textwrap.indent(textwrap.dedent(source), "    "), names)
    try:
        say("ok", await kernel.lwkt.adopt(names["body"], name="inside"))
    except Exception as error:
        say("error", f"{type(error).__name__}: {error}")
    finally:
        del names["body"]  # it and its globals are a cycle, and garbage is counted


async def commands(kernel: Kernel, session: FuseSession) -> None:
    """Read commands until the input ends, then unmount."""
    buffer = b""
    stdin = trio.lowlevel.FdStream(os.dup(0))
    async with trio.open_nursery() as nursery:
        async for chunk in stdin:
            buffer += chunk
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                nursery.start_soon(obey, kernel, session, json.loads(line))
        nursery.cancel_scope.cancel()
    try:
        await session.unmount()
    except MountError as error:
        say("error", str(error))
        await session.unmount(lazy=True)


async def main(directory: str, options: dict[str, Any]) -> int:
    """Boot, mount, serve; the exit code says how it ended."""
    settings = options.pop("sysctl", {})
    options.setdefault("transport", os.environ.get("DFUSER_TRANSPORT", "device"))
    kernel = Kernel(Config(sysctl=settings, state_dir=options.pop("state", directory + ".state")))
    scope = trio.CancelScope()
    kernel.on_panic(scope.cancel)
    async with trio.open_nursery() as nursery:
        await nursery.start(kernel.run)
        session = FuseSession(
            kernel.vfs, kernel.lwkt, kernel.procs, SessionOptions(directory, **options),
            kernel.report, kernel.panicked, kernel.posixlocks,
        )  # fmt: skip
        session.mount()
        for owner in session.owners():
            kernel.add_owner(owner)
        with scope:
            async with trio.open_nursery() as inner:
                await inner.start(session.serve)
                say("mounted", os.getpid())
                inner.start_soon(commands, kernel, session)
                await session.ended.wait()
                inner.cancel_scope.cancel()
        if kernel.panic_dump is not None:
            say("panic", str(kernel.panic_dump))
        else:
            say("end", len(session.root.nodes.by_id), session.served()["write"])
        kernel.request_stop()
    sys.stderr.write(kernel.msgbuf.text())
    return PANIC_CODE if kernel.panic_dump is not None else 0


if __name__ == "__main__":
    sys.exit(trio.run(main, sys.argv[1], json.loads(sys.argv[2])))
