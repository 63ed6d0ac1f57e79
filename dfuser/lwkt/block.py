"""BLOCK: how synchronous kernel code says that it must wait.

The cores of the VFS and of most other rooms are plain functions that run to completion. When one
of them meets something it must wait for, it raises `Block` **before it has changed anything**,
naming what it waits for. Whoever runs the core at the edge (the FUSE bridge, a system call, a
kernel daemon) awaits `Block.wait` as an LWKT thread and runs the core again.

After three rounds the edge asks the core's object for exclusivity, so that a busy object cannot
starve one request for ever.

Differs from DragonFly: there any function may sleep. Here only the edges can, and the code between
two suspension points cannot race.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from dfuser.libkern.errno import KError

R = TypeVar("R")

#: Rounds after which an edge takes the exclusive lock that a `Block` offers.
MAX_ROUNDS: Final = 3


class Block(Exception):
    """Raised by a synchronous core that must wait and has changed nothing.

    Args:
        wait: called without arguments by the edge; its result is awaited as an LWKT thread. It
            returns an errno, 0 when the core may be tried again.
        wmesg: what ``ps`` shows meanwhile, at most 8 characters.
        exclusive: the lock to hold while the core runs again after `MAX_ROUNDS` fruitless rounds:
            an object with ``async acquire()`` and ``release()``.
    """

    __slots__ = ("exclusive", "wait", "wmesg")

    def __init__(
        self,
        wait: Callable[[], Awaitable[int]],
        wmesg: str,
        exclusive: Any = None,
    ) -> None:
        super().__init__(wmesg)
        self.wait = wait
        self.wmesg = wmesg
        self.exclusive = exclusive


async def go_on(wait: Callable[[], Awaitable[int]], core: Callable[..., R], *args: Any) -> R:
    """`run_blocking` for a core that has been run already and said `Block`.

    ``wait`` is that of the block: what it holds is let go when it has been awaited.
    """
    error = await wait()
    if error:
        raise KError(error)
    return await run_blocking(core, *args)


async def run_blocking(core: Callable[..., R], *args: Any) -> R:
    """Run the synchronous ``core`` to its end, waiting wherever it says `Block`.

    Must be called on an LWKT thread. Errors of the core propagate; a wait that ends with an errno
    (a signal, a timeout) raises it as `KError`.
    """
    rounds = 0
    held = None
    try:
        while True:
            try:
                return core(*args)
            except Block as block:
                # Kept itself, it would hold this frame by its traceback and be cyclic garbage.
                wait, exclusive = block.wait, block.exclusive
            error = await wait()
            if error:
                raise KError(error)
            rounds += 1
            if rounds == MAX_ROUNDS and exclusive is not None:
                await exclusive.acquire()
                held = exclusive
    finally:
        if held is not None:
            held.release()
